"""A run's times, from the clocks of all ranks."""

from swap_fast.algorithm import Result
from swap_fast.record import Times
from swap_fast.training.clock import PAPER, READINGS, total
from swap_fast.training.parts import Parts


def gather_times(parts: Parts, result: Result) -> Times:
    """The times of all ranks together; every rank must call.

    Of ranks that ran side by side, the slowest counts.
    """
    comm, clock = parts.comm, parts.clock
    gathered = comm.gather([(w.number, w.time_s) for w in result.workers if parts.group.is_first])
    worker_phase2_s = [time_s for _, time_s in sorted(pair for rank in gathered for pair in rank)]
    laps = comm.gather(clock.laps)
    before_s = max(comm.gather(result.before_averaging_s))
    slowest = max(laps, key=lambda rank: total(rank, PAPER))
    readings_s = {reading: total(slowest, names) for reading, names in READINGS.items()}
    after_s = readings_s["paper"]
    phase2_s = slowest.get("phase2", 0.0)
    saved_s = phase2_s - max(worker_phase2_s, default=phase2_s)
    has_phase2 = bool(worker_phase2_s)
    return Times(
        before_averaging_s=before_s if has_phase2 else None,
        after_averaging_s=after_s,
        modelled_before_averaging_s=before_s - saved_s if has_phase2 else None,
        modelled_after_averaging_s=after_s - saved_s,
        readings_s=readings_s,
        reading_laps={reading: list(names) for reading, names in READINGS.items()},
        laps_by_rank=laps,
        worker_phase2_s=worker_phase2_s,
        wall_s=clock.wall() + laps[comm.rank].get("imports", 0.0),
    )
