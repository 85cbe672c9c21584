"""What NVIDIA's driver says of a device, asked through pynvml. No torch, and no CUDA.

What cannot be told is None: pynvml or the driver is not there, the driver or the device does not
have the function, the device was lost. A question that failed once is not asked again.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeVar

Answer = TypeVar("Answer")

EVERY_VALUE = "every value of the device"
"""What is missing where nothing can be asked."""

THROTTLE_REASONS = {
    0x001: "idle",
    0x002: "application clocks",
    0x004: "software power cap",
    0x008: "hardware slowdown",
    0x010: "sync boost",
    0x020: "software thermal slowdown",
    0x040: "hardware thermal slowdown",
    0x080: "hardware power brake",
    0x100: "display clocks",
    0x200: "board limit",
    0x400: "reliability limit",
}
"""Each bit of the driver's answer: why the clocks are not higher than they are."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a device said at one moment."""

    sm_clock_mhz: float | None
    """Of the multiprocessors."""
    memory_clock_mhz: float | None
    """Of the device's memory."""
    power_w: float | None
    """Of the whole board."""
    utilization: float | None
    """Share of the driver's own sampling period in which a kernel ran, a fraction."""
    memory_used_gib: float | None
    """By all processes."""
    temperature_c: float | None
    """Of the chip."""
    throttle_reasons: frozenset[str] | None
    """In words; empty where nothing holds the clocks down."""


class Nvml:
    """A session with the driver, open within a `with` block.

    Attributes:
        missing: why an answer is None, in the driver's words, by what was asked.
    """

    def __init__(self) -> None:
        self.missing: dict[str, str] = {}
        self._pynvml: ModuleType | None = None

    def __enter__(self) -> "Nvml":
        """Open the session, or know why there is none."""
        try:
            import pynvml
        except ImportError:
            self.missing[EVERY_VALUE] = "pynvml is not installed: pip install nvidia-ml-py"
            return self
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            self.missing[EVERY_VALUE] = str(error)
        else:
            self._pynvml = pynvml
        return self

    def __exit__(self, *_: object) -> None:
        """Close the session."""
        if self._pynvml is not None:
            with suppress(self._pynvml.NVMLError):  # of a device that was lost
                self._pynvml.nvmlShutdown()
            self._pynvml = None

    def ask(self, what: str, question: Callable[[Any], Answer]) -> Answer | None:
        """The answer of pynvml's functions, given as the module; None where it is missing."""
        if self._pynvml is None or what in self.missing:
            return None
        try:
            return question(self._pynvml)
        except self._pynvml.NVMLError as error:
            self.missing[what] = str(error)
            return None


def driver_version() -> str | None:
    """The NVIDIA driver's version; None without pynvml or without a driver."""
    with Nvml() as nvml:
        return _driver_version(nvml)


def _driver_version(nvml: Nvml) -> str | None:
    return nvml.ask("driver", lambda pynvml: str(pynvml.nvmlSystemGetDriverVersion()))


class Device:
    """One device, found by its UUID: CUDA_VISIBLE_DEVICES renumbers torch's devices, not NVML's.

    Arguments:
        nvml: an open session.
        uuid: such as "GPU-12345678-1234-1234-1234-123456789abc".
    """

    def __init__(self, nvml: Nvml, uuid: str) -> None:
        self._nvml = nvml
        self._handle = nvml.ask("device", lambda pynvml: pynvml.nvmlDeviceGetHandleByUUID(uuid))
        if "device" in nvml.missing:
            nvml.missing[EVERY_VALUE] = f"no device {uuid}: {nvml.missing.pop('device')}"
        self.driver = _driver_version(nvml)
        self.name = self._ask("name", lambda n, device: str(n.nvmlDeviceGetName(device)))

    @property
    def found(self) -> bool:
        """Whether there is anything to ask."""
        return self._handle is not None

    def energy_mj(self) -> int | None:
        """Millijoules that the board used since the driver was loaded; from Volta on."""
        return self._ask(
            "energy", lambda n, device: int(n.nvmlDeviceGetTotalEnergyConsumption(device))
        )

    def read(self) -> Reading:
        """All that changes from moment to moment."""
        bits = self._ask(
            "throttle_reasons",
            # Its newer name, with "Event" for "Throttle", is not in every driver that torch takes.
            lambda n, device: int(n.nvmlDeviceGetCurrentClocksThrottleReasons(device)),
        )
        return Reading(
            sm_clock_mhz=self._ask(
                "sm_clock_mhz", lambda n, d: float(n.nvmlDeviceGetClockInfo(d, n.NVML_CLOCK_SM))
            ),
            memory_clock_mhz=self._ask(
                "memory_clock_mhz",
                lambda n, d: float(n.nvmlDeviceGetClockInfo(d, n.NVML_CLOCK_MEM)),
            ),
            power_w=self._ask("power_w", lambda n, d: n.nvmlDeviceGetPowerUsage(d) / 1000),
            utilization=self._ask(
                "utilization", lambda n, d: n.nvmlDeviceGetUtilizationRates(d).gpu / 100
            ),
            memory_used_gib=self._ask(
                "memory_used_gib", lambda n, d: n.nvmlDeviceGetMemoryInfo(d).used / 2**30
            ),
            temperature_c=self._ask(
                "temperature_c",
                lambda n, d: float(n.nvmlDeviceGetTemperature(d, n.NVML_TEMPERATURE_GPU)),
            ),
            throttle_reasons=None if bits is None else throttle_words(bits),
        )

    def _ask(self, what: str, question: Callable[[Any, Any], Answer]) -> Answer | None:
        if self._handle is None:
            return None
        return self._nvml.ask(what, lambda pynvml: question(pynvml, self._handle))


def throttle_words(bits: int) -> frozenset[str]:
    """The reasons whose bits are set; a bit that this version has no word for is a number."""
    return frozenset(
        THROTTLE_REASONS.get(1 << i, f"reason {1 << i:#x}")
        for i in range(bits.bit_length())
        if bits >> i & 1
    )
