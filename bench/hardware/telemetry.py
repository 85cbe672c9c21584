"""What this rank's device did during a run, lap by lap: sampled by a thread off the hot path.

The thread asks the driver alone, never CUDA or torch, so that it cannot disturb a capture or wait
for a kernel. The energy counter is read at both ends of a lap, outside the time that counts.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import fmean

from bench.hardware.nvml import Device, Nvml, Reading
from swap_fast.record import LapTelemetry, Telemetry


class Sampler:
    """Reads this rank's device every so often while a lap runs.

    Arguments:
        interval_s: from one sample to the next.
    """

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
        """Watch a device during the block, and no longer; None, on a CPU: watch nothing.

        Arguments:
            uuid: of the device, as `device_uuid` tells it.
        """
        if uuid is None:
            yield
            return
        with self._nvml:
            device = Device(self._nvml, uuid)
            device.energy_mj()  # asked everything once, to know what is missing
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
        """What is null so far, and why."""
        return dict(self._nvml.missing)  # a copy at once: the thread may add to it

    @contextmanager
    def lap(self, name: str) -> Iterator[None]:
        """Give the samples and the energy of the block to the lap `name`."""
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
        """Stop, and give what was seen; None on a CPU."""
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
        """End the thread and wait for it; again is no harm."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(self._interval_s):
            self.sample()


def summarize_lap(readings: Sequence[Reading], energies_mj: Sequence[int | None]) -> LapTelemetry:
    """A lap's samples and the energy of each time that it ran.

    The energy is None where one of its parts is: a sum of the others would be too low.
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
    """One line on what no rank, or not every rank, could be told; None where all was told.

    Each reason comes once.
    """
    reasons = {f"{what} ({why})": None for rank in missing_by_rank for what, why in rank.items()}
    return f"telemetry is unavailable for {', '.join(reasons)}" if reasons else None


def _of_known(
    summary: Callable[[list[float]], float], values: Sequence[float | None]
) -> float | None:
    known = [value for value in values if value is not None]
    return summary(known) if known else None
