"""One clock for a run: named laps, each counted or not by one stated rule.

Counted are the model's initialisation, moving and preparing the data, the three phases, averaging
and the batch-norm pass; for DAWNBench and MLPerf also reading the data from disk. Not counted are
imports, kernel warm-up on synthetic data, evaluation, checkpoints, and what is computed after the
run for the report.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

PAPER = ("data_preparation", "model_init", "phase1", "phase2", "averaging", "batch_norm")
"""The laps of Tables 1 to 4's training time: preprocessing counts, test evaluation does not."""

DAWNBENCH = ("data_loading", *PAPER)
"""DAWNBench: also reading the data from disk; validation and checkpoints do not count."""

MLPERF = (*DAWNBENCH, "evaluation", "checkpoint", "waiting")
"""MLPerf: from the first touch of the data, never paused, evaluation included."""

TRAINING = ("phase1", "phase2", "evaluation", "checkpoint", "waiting")
"""What a checkpoint keeps the laps of: all but the set-up."""

UNCOUNTED = ("imports", "kernel_warmup", "analysis")
"""In no reading: what precedes the run, and what is computed after it for the report."""

LAPS = (*MLPERF, *UNCOUNTED)
"""Every lap's name."""

READINGS = {"paper": PAPER, "dawnbench": DAWNBENCH, "mlperf": MLPERF}
"""Each reading of the clock is the sum of the laps it lists."""


def total(laps: Mapping[str, float], names: Iterable[str]) -> float:
    """The sum, in seconds, of the laps named; one that never ran counts nothing."""
    return sum(laps.get(name, 0.0) for name in names)


class Clock:
    """Named laps that do not overlap; `synchronize` is called at both ends of each.

    Arguments:
        synchronize: waits until the device has done all work given to it.
        now: seconds from a monotonic source.
        around: given a lap's name, a context that is entered before its time starts and left after
            it has stopped, so that what a meter does at both ends of a lap counts in none.
    """

    def __init__(
        self,
        synchronize: Callable[[], None] = lambda: None,
        now: Callable[[], float] = time.perf_counter,
        around: Callable[[str], AbstractContextManager[None]] = lambda name: nullcontext(),
    ) -> None:
        self._synchronize, self._now, self._around = synchronize, now, around
        self._running: str | None = None
        self._started = now()
        self.laps: dict[str, float] = {}

    @contextmanager
    def lap(self, name: str) -> Iterator[None]:
        """Add the time of the block to the lap `name`, one of `LAPS`."""
        assert name in LAPS, f"unknown lap {name}"
        assert self._running is None, f"lap {name} inside lap {self._running}"
        self._synchronize()
        with self._around(name):
            self._running, started = name, self._now()
            try:
                yield
                self._synchronize()
            finally:
                self.laps[name] = self.laps.get(name, 0.0) + self._now() - started
                self._running = None

    def add(self, name: str, seconds: float) -> None:
        """Add time that was measured before the clock existed: the imports."""
        assert name in LAPS, f"unknown lap {name}"
        self.laps[name] = self.laps.get(name, 0.0) + seconds

    def reading(self, laps: tuple[str, ...] = PAPER) -> float:
        """The sum, in seconds, of the finished laps named."""
        return total(self.laps, laps)

    def wall(self) -> float:
        """Seconds since the clock was made, whatever ran."""
        return self._now() - self._started
