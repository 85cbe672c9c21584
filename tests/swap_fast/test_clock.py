"""Laps on a clock that a test winds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from swap_fast.clock import DAWNBENCH, LAPS, MLPERF, PAPER, READINGS, UNCOUNTED, Clock


class Source:
    """Seconds that pass only when told to; a synchronisation takes one of them."""

    def __init__(self) -> None:
        self.seconds = 100.0
        self.events: list[str] = []

    def now(self) -> float:
        self.events.append("now")
        return self.seconds

    def synchronize(self) -> None:
        self.events.append("synchronize")
        self.seconds += 1


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def clock(source: Source) -> Clock:
    return Clock(now=source.now)


def test_a_lap_adds_up(clock: Clock, source: Source) -> None:
    for seconds in (2.0, 0.5):
        with clock.lap("phase1"):
            source.seconds += seconds
        source.seconds += 40  # between laps
    assert clock.laps == {"phase1": 2.5}


def test_synchronize_is_called_at_both_ends(source: Source) -> None:
    clock = Clock(source.synchronize, source.now)
    source.events.clear()
    with clock.lap("phase1"):
        source.events.append("work")
        source.seconds += 5
    # The wait before a lap belongs to what came before it; the wait at its end to the lap.
    assert source.events == ["synchronize", "now", "work", "synchronize", "now"]
    assert clock.laps == {"phase1": 6.0}


def test_what_surrounds_a_lap_counts_in_none(source: Source) -> None:
    @contextmanager
    def meter(name: str) -> Iterator[None]:
        source.events.append(f"{name} begins")
        source.seconds += 20
        try:
            yield
        finally:
            source.seconds += 20
            source.events.append(f"{name} ended")

    clock = Clock(source.synchronize, source.now, meter)
    source.events.clear()
    with clock.lap("phase1"):
        source.seconds += 5
    assert source.events == [
        *("synchronize", "phase1 begins", "now"),
        *("synchronize", "now", "phase1 ended"),
    ]
    with pytest.raises(FloatingPointError), clock.lap("phase1"):
        raise FloatingPointError
    assert source.events[-1] == "phase1 ended"
    assert clock.laps == {"phase1": 6.0}


def test_readings_are_sums_of_the_laps_they_list(clock: Clock, source: Source) -> None:
    seconds = {name: 2.0**power for power, name in enumerate(LAPS)}
    for name, length in seconds.items():
        with clock.lap(name):
            source.seconds += length
    assert clock.laps == seconds
    for names in READINGS.values():
        assert clock.reading(names) == sum(seconds[name] for name in names)
    assert clock.reading() == clock.reading(PAPER)


def test_what_each_reading_counts() -> None:
    # The paper: preprocessing counts, evaluation does not; DAWNBench adds reading from disk;
    # MLPerf is never paused.
    assert set(PAPER) == {
        *("data_preparation", "model_init", "phase1", "phase2", "averaging", "batch_norm"),
    }
    assert set(DAWNBENCH) - set(PAPER) == {"data_loading"}
    assert set(MLPERF) - set(DAWNBENCH) == {"evaluation", "checkpoint", "waiting"}
    assert set(UNCOUNTED) == {"imports", "kernel_warmup", "analysis"}
    assert sorted(LAPS) == sorted({*MLPERF, *UNCOUNTED})
    assert READINGS == {"paper": PAPER, "dawnbench": DAWNBENCH, "mlperf": MLPERF}


def test_laps_that_did_not_run_count_nothing(clock: Clock) -> None:
    assert clock.reading() == 0.0


def test_a_lap_inside_a_lap_is_refused(clock: Clock, source: Source) -> None:
    def nest() -> None:
        with clock.lap("phase1"):
            source.seconds += 1
            with clock.lap("evaluation"):
                source.seconds += 10

    with pytest.raises(AssertionError, match="lap evaluation inside lap phase1"):
        nest()
    assert clock.laps == {"phase1": 1.0}


def test_a_lap_that_fails_is_kept_and_ended(clock: Clock, source: Source) -> None:
    def fail() -> None:
        with clock.lap("phase1"):
            source.seconds += 3
            raise FloatingPointError

    with pytest.raises(FloatingPointError):
        fail()
    with clock.lap("phase2"):
        source.seconds += 4
    assert clock.laps == {"phase1": 3.0, "phase2": 4.0}


def test_unknown_names_are_refused(clock: Clock) -> None:
    with pytest.raises(AssertionError, match="unknown lap training"), clock.lap("training"):
        pass
    with pytest.raises(AssertionError, match="unknown lap training"):
        clock.add("training", 1.0)


def test_time_from_before_the_clock_is_added(clock: Clock, source: Source) -> None:
    clock.add("imports", 2.5)
    clock.add("imports", 1.0)
    source.seconds += 7
    assert clock.laps == {"imports": 3.5}
    assert clock.wall() == 7.0
