"""What NVIDIA's driver says of a device, asked through pynvml. No torch, and no CUDA.

What cannot be told is None, with its reason: pynvml or the driver is not there or does not fit, the
driver, a virtual device or a container keeps a value to itself, the device is a slice (MIG) or was
lost, the answer is no value. A question that failed once is not asked again, and none raises.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeVar

Answer = TypeVar("Answer")

EVERY_VALUE = "every value of the device"
"""What is missing where nothing can be asked."""

OF_THE_BOARD = "a MIG slice has no meter of its own, the board's counts every slice"
"""Why a slice has neither energy nor power."""

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


class _UntoldError(Exception):
    """The driver answered, and its answer is no value of this device."""


class Nvml:
    """A session with the driver, open within a `with` block.

    Attributes:
        missing: why an answer is None, by what was asked; in the driver's words, where it has some.
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
        self._pynvml = pynvml
        self.ask(EVERY_VALUE, lambda pynvml: pynvml.nvmlInit())
        if EVERY_VALUE in self.missing:
            self._pynvml = None
        return self

    def __exit__(self, *_: object) -> None:
        """Close the session."""
        if self._pynvml is not None:
            with suppress(Exception):  # of a device that was lost
                self._pynvml.nvmlShutdown()
            self._pynvml = None

    def ask(self, what: str, question: Callable[[Any], Answer]) -> Answer | None:
        """The answer of pynvml's functions, given as the module; None where it is missing.

        No failure is let through: no run ends for want of telemetry.
        """
        if self._pynvml is None or what in self.missing:
            return None
        try:
            return question(self._pynvml)
        except (self._pynvml.NVMLError, _UntoldError) as error:
            self.missing[what] = str(error)
        except Exception as error:  # a name that is no text, a function that pynvml lacks
            self.missing[what] = f"{type(error).__name__}: {error}"
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
        uuid: of a device or of a MIG slice, as torch tells it: such as
            "12345678-1234-1234-1234-123456789abc", without the driver's "GPU-" or "MIG-"; empty or
            zeros where torch tells none.
    """

    def __init__(self, nvml: Nvml, uuid: str) -> None:
        self._nvml = nvml
        found: tuple[Any, bool] | None = nvml.ask(EVERY_VALUE, lambda n: _find(n, uuid))
        self._handle: Any = found[0] if found else None
        if found and found[1]:  # a slice, never asked: a driver may answer with the board's
            nvml.missing |= dict.fromkeys(("energy", "power_w"), OF_THE_BOARD)
        self._energy_mj = 0
        self.driver = _driver_version(nvml)
        self.name = self._ask("name", lambda n, device: str(n.nvmlDeviceGetName(device)))

    @property
    def found(self) -> bool:
        """Whether there is anything to ask."""
        return self._handle is not None

    def energy_mj(self) -> int | None:
        """Millijoules that the board used since the driver was loaded; from Volta on."""

        def count(n: Any, device: Any) -> int:
            counted = _value(n.nvmlDeviceGetTotalEnergyConsumption(device), most=_MOST_64)
            if counted < self._energy_mj:
                raise _UntoldError(f"the counter went from {self._energy_mj} back to {counted} mJ")
            self._energy_mj = counted
            return counted

        return self._ask("energy", count)

    def read(self) -> Reading:
        """All that changes from moment to moment."""
        bits = self._ask(
            "throttle_reasons",
            # Its newer name, with "Event" for "Throttle", is not in every driver that torch takes.
            lambda n, d: _value(n.nvmlDeviceGetCurrentClocksThrottleReasons(d), most=_MOST_64),
        )
        return Reading(
            sm_clock_mhz=self._ask(
                "sm_clock_mhz",
                lambda n, d: float(_value(n.nvmlDeviceGetClockInfo(d, n.NVML_CLOCK_SM))),
            ),
            memory_clock_mhz=self._ask(
                "memory_clock_mhz",
                lambda n, d: float(_value(n.nvmlDeviceGetClockInfo(d, n.NVML_CLOCK_MEM))),
            ),
            power_w=self._ask("power_w", lambda n, d: _value(n.nvmlDeviceGetPowerUsage(d)) / 1000),
            utilization=self._ask(
                "utilization",
                lambda n, d: _value(n.nvmlDeviceGetUtilizationRates(d).gpu, most=100) / 100,
            ),
            memory_used_gib=self._ask(
                "memory_used_gib",
                lambda n, d: _value(n.nvmlDeviceGetMemoryInfo(d).used, most=_MOST_64) / 2**30,
            ),
            temperature_c=self._ask(
                "temperature_c",
                lambda n, d: float(_value(n.nvmlDeviceGetTemperature(d, n.NVML_TEMPERATURE_GPU))),
            ),
            throttle_reasons=None if bits is None else throttle_words(bits),
        )

    def _ask(self, what: str, question: Callable[[Any, Any], Answer]) -> Answer | None:
        if self._handle is None:
            return None
        return self._nvml.ask(what, lambda pynvml: question(pynvml, self._handle))


def _find(pynvml: Any, uuid: str) -> tuple[Any, bool]:
    """The driver's handle of a device or a slice, and whether it is a slice.

    Raises:
        _UntoldError: there is none, or it is of a whole device of which CUDA uses a slice.
    """
    if not uuid.strip("0-"):
        raise _UntoldError("torch tells no UUID of the device")
    try:
        whole = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    except pynvml.NVMLError as error:
        try:
            return pynvml.nvmlDeviceGetHandleByUUID(f"MIG-{uuid}"), True
        except pynvml.NVMLError as other:
            reasons = f"no device GPU-{uuid} ({error}) or MIG-{uuid} ({other})"
            raise _UntoldError(reasons) from None
    try:
        is_sliced = pynvml.nvmlDeviceGetMigMode(whole)[0] != 0
    except pynvml.NVMLError as error:
        if error.value not in (
            pynvml.NVML_ERROR_NOT_SUPPORTED,  # before Ampere, or a virtual device
            pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,  # a driver older than MIG
        ):
            raise
        is_sliced = False
    if is_sliced:  # CUDA before 12 tells the UUID of the slice's whole device
        raise _UntoldError(f"GPU-{uuid} is the whole device, and MIG is on: this run has a slice")
    return whole, False


_MOST_64 = 2**63 - 1


def _value(answer: int, *, most: int = 2**31 - 1) -> int:
    """An unsigned answer, where it is a value: drivers set all bits of what they do not know."""
    if answer > most:
        raise _UntoldError(f"the driver's answer is no value: {answer:#x}")
    return answer


def throttle_words(bits: int) -> frozenset[str]:
    """The reasons whose bits are set; a bit that this version has no word for is a number."""
    return frozenset(
        THROTTLE_REASONS.get(1 << i, f"reason {1 << i:#x}")
        for i in range(bits.bit_length())
        if bits >> i & 1
    )
