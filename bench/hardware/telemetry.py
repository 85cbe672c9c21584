"""Telemetry of this rank's device, lap by lap: energy, clocks, temperature, throttling.

A thread samples the driver, never CUDA or torch, so that it cannot disturb a capture or wait for a
kernel. The energy counter is read at both ends of a lap, outside the counted time.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from statistics import fmean
from types import ModuleType
from typing import Any, TypeVar

from swap_fast.record import LapTelemetry, Telemetry

# The driver's values, through pynvml. A value that is not available is None, with its reason:
# pynvml or the driver is missing or does not fit, the driver, a virtual device or a container
# withholds it, the device is a slice (MIG) or was lost, or the answer is not a value. A query that
# failed once is not repeated, and none raises.

Answer = TypeVar("Answer")

EVERY_VALUE = "every value of the device"
"""The name in `missing` where nothing can be queried."""

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
"""By the bits of the driver's answer: why the clocks are not higher."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A device's values at one moment."""

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
    """In words; empty where nothing lowers the clocks."""


class _NoValueError(Exception):
    """The driver's answer is not a value of this device."""


class Nvml:
    """A session with the driver, open within a `with` block.

    Attributes:
        missing: by name, the reason why a value is None, in the driver's words if it has some.
    """

    def __init__(self) -> None:
        self.missing: dict[str, str] = {}
        self._pynvml: ModuleType | None = None

    def __enter__(self) -> "Nvml":
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
        if self._pynvml is not None:
            with suppress(Exception):  # such as of a lost device
                self._pynvml.nvmlShutdown()
            self._pynvml = None

    def ask(self, what: str, question: Callable[[Any], Answer]) -> Answer | None:
        """The answer of a function of the module pynvml; None where it is missing.

        Nothing is raised, so that no run fails for lack of telemetry.
        """
        if self._pynvml is None or what in self.missing:
            return None
        try:
            return question(self._pynvml)
        except (self._pynvml.NVMLError, _NoValueError) as error:
            self.missing[what] = str(error)
        except (
            Exception
        ) as error:  # such as a name that is not text, or a function that pynvml lacks
            self.missing[what] = f"{type(error).__name__}: {error}"
        return None


def driver_version() -> str | None:
    """The NVIDIA driver's version; None without pynvml or without a driver."""
    with Nvml() as nvml:
        return _driver_version(nvml)


def _driver_version(nvml: Nvml) -> str | None:
    return nvml.ask("driver", lambda pynvml: str(pynvml.nvmlSystemGetDriverVersion()))


_QUERIES: dict[str, Callable[[Any, Any], float]] = {
    "sm_clock_mhz": lambda n, d: float(_value(n.nvmlDeviceGetClockInfo(d, n.NVML_CLOCK_SM))),
    "memory_clock_mhz": lambda n, d: float(_value(n.nvmlDeviceGetClockInfo(d, n.NVML_CLOCK_MEM))),
    "power_w": lambda n, d: _value(n.nvmlDeviceGetPowerUsage(d)) / 1000,
    "utilization": lambda n, d: _value(n.nvmlDeviceGetUtilizationRates(d).gpu, most=100) / 100,
    "memory_used_gib": lambda n, d: (
        _value(n.nvmlDeviceGetMemoryInfo(d).used, most=_MOST_64) / 2**30
    ),
    "temperature_c": lambda n, d: float(
        _value(n.nvmlDeviceGetTemperature(d, n.NVML_TEMPERATURE_GPU))
    ),
}
"""The values of a `Reading`, from the module pynvml and a device's handle."""


class Device:
    """One device, found by its UUID: CUDA_VISIBLE_DEVICES renumbers torch's devices, not NVML's.

    Arguments:
        nvml: an open session.
        uuid: of a device or of a MIG slice, in torch's form: such as
            "12345678-1234-1234-1234-123456789abc", without the driver's "GPU-" or "MIG-"; empty or
            zeros if torch has none.
    """

    def __init__(self, nvml: Nvml, uuid: str) -> None:
        self._nvml = nvml
        found: tuple[Any, bool] | None = nvml.ask(EVERY_VALUE, lambda n: _find(n, uuid))
        self._handle: Any = found[0] if found else None
        if found and found[1]:  # not queried for a slice: a driver may answer with the board's
            nvml.missing |= dict.fromkeys(("energy", "power_w"), OF_THE_BOARD)
        self._energy_mj = 0
        self.driver = _driver_version(nvml)
        self.name = self._ask("name", lambda n, device: str(n.nvmlDeviceGetName(device)))

    @property
    def found(self) -> bool:
        """Whether the device can be queried."""
        return self._handle is not None

    def energy_mj(self) -> int | None:
        """Millijoules that the board used since the driver was loaded; from Volta on."""

        def count(n: Any, device: Any) -> int:
            counted = _value(n.nvmlDeviceGetTotalEnergyConsumption(device), most=_MOST_64)
            if counted < self._energy_mj:
                raise _NoValueError(f"the counter went from {self._energy_mj} back to {counted} mJ")
            self._energy_mj = counted
            return counted

        return self._ask("energy", count)

    def read(self) -> Reading:
        """The device's values now."""
        bits = self._ask(
            "throttle_reasons",
            # The newer name, with "Event", is not in every driver that torch supports.
            lambda n, d: _value(n.nvmlDeviceGetCurrentClocksThrottleReasons(d), most=_MOST_64),
        )
        values = {name: self._ask(name, query) for name, query in _QUERIES.items()}
        reasons = None if bits is None else throttle_words(bits)
        return Reading(**values, throttle_reasons=reasons)

    def _ask(self, what: str, question: Callable[[Any, Any], Answer]) -> Answer | None:
        if self._handle is None:
            return None
        return self._nvml.ask(what, lambda pynvml: question(pynvml, self._handle))


def _find(pynvml: Any, uuid: str) -> tuple[Any, bool]:
    """The driver's handle of a device or a slice, and whether it is a slice.

    Raises:
        _NoValueError: there is none, or CUDA uses a slice of this whole device.
    """
    if not uuid.strip("0-"):
        raise _NoValueError("torch tells no UUID of the device")
    try:
        whole = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    except pynvml.NVMLError as error:
        try:
            return pynvml.nvmlDeviceGetHandleByUUID(f"MIG-{uuid}"), True
        except pynvml.NVMLError as other:
            reasons = f"no device GPU-{uuid} ({error}) or MIG-{uuid} ({other})"
            raise _NoValueError(reasons) from None
    try:
        is_sliced = pynvml.nvmlDeviceGetMigMode(whole)[0] != 0
    except pynvml.NVMLError as error:
        if error.value not in (
            pynvml.NVML_ERROR_NOT_SUPPORTED,  # before Ampere, or a virtual device
            pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,  # a driver older than MIG
        ):
            raise
        is_sliced = False
    if is_sliced:  # CUDA before 12 gives the UUID of the slice's whole device
        raise _NoValueError(f"GPU-{uuid} is the whole device, and MIG is on: this run has a slice")
    return whole, False


_MOST_64 = 2**63 - 1


def _value(answer: int, *, most: int = 2**31 - 1) -> int:
    """An unsigned answer; drivers set all bits of a value that they do not know."""
    if answer > most:
        raise _NoValueError(f"the driver's answer is no value: {answer:#x}")
    return answer


def throttle_words(bits: int) -> frozenset[str]:
    """The reasons whose bits are set; an unknown bit as a number."""
    return frozenset(
        THROTTLE_REASONS.get(1 << i, f"reason {1 << i:#x}")
        for i in range(bits.bit_length())
        if bits >> i & 1
    )


class Sampler:
    """Samples this rank's device every `interval_s` seconds while a lap runs."""

    def __init__(self, *, interval_s: float = 0.5) -> None:
        self._interval_s = interval_s
        self._nvml = Nvml()
        self._device: Device | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)
        self._lap: str | None = None
        self._readings: dict[str, list[Reading]] = {}
        self._energies_mj: dict[str, list[int | None]] = {}

    @contextmanager
    def watching(self, uuid: str | None) -> Iterator[None]:
        """Sample a device within the block.

        Arguments:
            uuid: from `device_uuid`; None, on a CPU: sample nothing.
        """
        if uuid is None:
            yield
            return
        with self._nvml:
            device = Device(self._nvml, uuid)
            device.energy_mj()  # query everything once, to know what is missing
            device.read()
            self._device = device
            if device.found:
                self._thread.start()
            try:
                yield
            finally:
                self._stop()

    @property
    def missing(self) -> dict[str, str]:
        """The values that are null so far, and why."""
        return dict(self._nvml.missing)  # a copy, since the thread may add to it

    @contextmanager
    def lap(self, name: str) -> Iterator[None]:
        """Add the samples and the energy of the block to the lap `name`."""
        if self._device is None:
            yield
            return
        before = self._device.energy_mj()
        self._lap = name
        try:
            yield
        finally:
            self._lap = None
            after = self._device.energy_mj()
            spent = None if before is None or after is None else after - before
            self._energies_mj.setdefault(name, []).append(spent)

    def sample(self) -> None:
        """Read the device once, if a lap is running."""
        lap = self._lap
        if lap is not None and self._device is not None:
            self._readings.setdefault(lap, []).append(self._device.read())

    def finish(self) -> Telemetry | None:
        """Stop, and return the summary; None on a CPU."""
        if self._device is None:
            return None
        self._stop()
        return Telemetry(
            device=self._device.name,
            driver=self._device.driver,
            interval_s=self._interval_s,
            laps={
                name: summarize_lap(self._readings.get(name, []), energies_mj)
                for name, energies_mj in self._energies_mj.items()
            },
            missing=self.missing,
        )

    def _stop(self) -> None:
        """End the thread and wait for it; may be called again."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(self._interval_s):
            self.sample()


def summarize_lap(readings: Sequence[Reading], energies_mj: Sequence[int | None]) -> LapTelemetry:
    """Summarise a lap's samples, and the energy of each time that it ran.

    The energy is None if one of its parts is, since the sum of the others would be too low.
    """
    spent = [energy for energy in energies_mj if energy is not None]
    reasons = [r.throttle_reasons for r in readings if r.throttle_reasons is not None]
    words = sorted({word for each in reasons for word in each})
    sm_clocks = [r.sm_clock_mhz for r in readings]
    return LapTelemetry(
        samples=len(readings),
        energy_j=sum(spent) / 1000 if len(spent) == len(energies_mj) else None,
        mean_power_w=_of_known(fmean, [r.power_w for r in readings]),
        mean_sm_clock_mhz=_of_known(fmean, sm_clocks),
        lowest_sm_clock_mhz=_of_known(min, sm_clocks),
        mean_memory_clock_mhz=_of_known(fmean, [r.memory_clock_mhz for r in readings]),
        mean_utilization=_of_known(fmean, [r.utilization for r in readings]),
        peak_memory_used_gib=_of_known(max, [r.memory_used_gib for r in readings]),
        peak_temperature_c=_of_known(max, [r.temperature_c for r in readings]),
        throttle_reasons={w: fmean(w in each for each in reasons) for w in words}
        if reasons
        else None,
    )


def missing_line(missing_by_rank: Sequence[Mapping[str, str]]) -> str | None:
    """One line on the values that some rank lacks, each reason once; None if none is missing."""
    reasons = {f"{what} ({why})": None for rank in missing_by_rank for what, why in rank.items()}
    return f"telemetry is unavailable for {', '.join(reasons)}" if reasons else None


def _of_known(
    summary: Callable[[list[float]], float], values: Sequence[float | None]
) -> float | None:
    known = [value for value in values if value is not None]
    return summary(known) if known else None
