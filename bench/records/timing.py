"""Where each second of a run went, and when it reached its target. No torch."""

from collections.abc import Sequence

from bench.document.table import NOTHING, Table, percent
from bench.records.grouping import group_by, recipe_of, scale_note
from swap_fast.record import RunRecord
from swap_fast.training.clock import LAPS, total

READING_TITLES = {"paper": "paper", "dawnbench": "DAWNBench", "mlperf": "MLPerf"}
"""How each reading of the clock is printed."""

LAP_COLUMNS = ("Lap", "Seconds", "Share of wall (%)", "Counted by")


def laps_of_slowest_rank(record: RunRecord) -> dict[str, float]:
    """The laps, in seconds, of the rank that the readings are of; in the clock's order.

    Laps that this version of the clock does not know come last, by name.
    """
    counted, reading_s = record.times.reading_laps["paper"], record.times.readings_s["paper"]
    laps = min(
        record.times.laps_by_rank,
        key=lambda rank: abs(total(rank, counted) - reading_s),
    )
    known = [name for name in LAPS if name in laps]
    return {name: laps[name] for name in [*known, *sorted(set(laps) - set(LAPS))]}


def counted_by(record: RunRecord, lap: str) -> list[str]:
    """The readings, by their titles, that count this lap."""
    return [
        READING_TITLES.get(reading, reading)
        for reading, laps in record.times.reading_laps.items()
        if lap in laps
    ]


def unattributed_s(record: RunRecord) -> float:
    """The harness's own time: the wall clock less all laps of the slowest rank."""
    return record.times.wall_s - sum(laps_of_slowest_rank(record).values())


def checkpoint_s(record: RunRecord) -> float:
    """Seconds in which the slowest rank wrote checkpoints."""
    return laps_of_slowest_rank(record).get("checkpoint", 0.0)


def checkpoint_notes(records: Sequence[RunRecord]) -> list[str]:
    """What checkpoints took of the wall clock: of all runs of each recipe, and of one at most."""
    notes = []
    for recipe, runs in group_by(records, lambda run: run.recipe).items():
        share = _share(sum(map(checkpoint_s, runs)), sum(run.times.wall_s for run in runs))
        shares = [checkpoint_s(run) / run.times.wall_s for run in runs if run.times.wall_s > 0]
        at_most = percent(max(shares)) if shares else NOTHING
        notes.append(
            f"Checkpoints of {recipe} took {share}% of the wall clock, {at_most}% at most "
            f"(n = {len(runs)})."
        )
    return notes


def images_per_second(record: RunRecord, phase: int) -> float | None:
    """Training images of all ranks together a second of the phase's lap; None where not known.

    Workers that took turns count with the time that they took.
    """
    settings = recipe_of(record).get(f"phase{phase}")
    seconds = max(laps.get(f"phase{phase}", 0.0) for laps in record.times.laps_by_rank)
    num_images = record.settings.train_images or record.data.get("train_images")
    if settings is None or not num_images or seconds <= 0:
        return None
    batch = settings["global_batch_size"]
    epochs = sum(row.phase == phase for row in record.epochs)
    # Images that fill no whole batch are left out of an epoch.
    return epochs * (num_images // batch) * batch / seconds


def dawnbench_time(record: RunRecord) -> float | None:
    """DAWNBench's time in seconds to the recipe's target, read at the first row at or over it.

    The rows are phase 1's epochs and, for SWAP, the averaged model at the end. A worker of
    phase 2 is not what the run returns, so that its rows do not count. None: never reached.
    """
    target, readings = record.settings.target_accuracy, record.times.reading_laps
    # An epoch's row holds the paper's reading; DAWNBench's adds laps that end before phase 1.
    more = set(readings["dawnbench"]) - set(readings["paper"])
    before_s = total(record.times.laps_by_rank[0], more)
    for row in record.epochs:
        if row.phase == 1 and (row.test_accuracy or 0.0) >= target:
            return row.time_s + before_s
    if record.test_accuracy >= target:
        return record.times.readings_s["dawnbench"]
    return None


def lap_table(record: RunRecord) -> Table:
    """Every lap of one run: seconds, share of the wall clock, and who counts it."""
    sums = [
        f"{READING_TITLES.get(name, name)}: {record.times.readings_s[name]:.2f} s"
        f" = {' + '.join(laps)}."
        for name, laps in record.times.reading_laps.items()
    ]
    return Table(
        name="laps",
        title=f"Laps of {record.run_id}",
        caption=f"{len(record.times.laps_by_rank)} rank(s); the slowest one's laps."
        + scale_note([record]),
        columns=LAP_COLUMNS,
        rows=tuple(lap_rows(record)),
        footnotes=tuple(sums),
    )


def lap_rows(record: RunRecord) -> list[tuple[str, ...]]:
    """The rows of a run's table of laps."""
    wall_s, harness_s = record.times.wall_s, unattributed_s(record)
    rows = [
        (name, f"{seconds:.2f}", _share(seconds, wall_s), _counted(record, name))
        for name, seconds in laps_of_slowest_rank(record).items()
    ]
    rows.append(("unattributed (harness)", f"{harness_s:.2f}", _share(harness_s, wall_s), "none"))
    return [*rows, ("wall", f"{wall_s:.2f}", _share(wall_s, wall_s), NOTHING)]


def all_laps_table(records: Sequence[RunRecord]) -> Table:
    """The laps of every run, one a line."""
    rows = [(record.run_id, *row) for record in records for row in lap_rows(record)]
    return Table(
        name="laps",
        title="Laps",
        caption="The slowest rank's laps of every run." + scale_note(records),
        columns=("Run", *LAP_COLUMNS),
        rows=tuple(rows),
    )


def readings_table(records: Sequence[RunRecord]) -> Table:
    """One line a run: the three readings, the modelled time, and what they leave out.

    The device's memory has a column where any run has it.
    """
    device_column = any(record.peak_device_reserved_gib is not None for record in records)
    device_note = "Peak device memory: what torch reserved of a process's device."
    return Table(
        name="timing",
        title="Readings of the clock",
        caption=(
            "The paper's reading counts preprocessing and not test evaluation; DAWNBench's also "
            "counts loading the data; MLPerf's is never paused. To target: DAWNBench's reading at "
            "the first row of phase 1, or the final model, at or over the recipe's target."
            + scale_note(records)
        ),
        columns=(
            "Run",
            "Paper (s)",
            "DAWNBench (s)",
            "MLPerf (s)",
            "Modelled parallel (s), not measured",
            "To target (s)",
            "Wall (s)",
            "Unattributed (s)",
            "Unattributed (%)",
            "Checkpoints (%)",
            "Phase 1 (images/s)",
            "Phase 2 (images/s)",
            "Peak host memory (GiB a process)",
            *(["Peak device memory (GiB)"] if device_column else []),
        ),
        rows=tuple(
            _readings_row(record) + ((_device_memory(record),) if device_column else ())
            for record in records
        ),
        footnotes=(
            "Modelled parallel: the paper's reading, had all workers of phase 2 run at once; "
            "phase 1 as measured.",
            "Images/s: those of all ranks together over the phase's lap.",
            "Unattributed and checkpoints: shares of the wall clock.",
            *([device_note] if device_column else []),
            *checkpoint_notes(records),
        ),
    )


def _device_memory(record: RunRecord) -> str:
    reserved = record.peak_device_reserved_gib
    return NOTHING if reserved is None else f"{reserved:.2f}"


def _readings_row(record: RunRecord) -> tuple[str, ...]:
    times, harness_s = record.times, unattributed_s(record)
    modelled = times.modelled_after_averaging_s if record.method == "swap" else None
    return (
        record.run_id,
        *(_seconds(times.readings_s.get(reading)) for reading in READING_TITLES),
        _seconds(modelled),
        _seconds(dawnbench_time(record)),
        f"{times.wall_s:.2f}",
        f"{harness_s:.2f}",
        _share(harness_s, times.wall_s),
        _share(checkpoint_s(record), times.wall_s),
        *(_rate(images_per_second(record, phase)) for phase in (1, 2)),
        f"{record.peak_memory_gib:.2f}",
    )


def _counted(record: RunRecord, lap: str) -> str:
    return ", ".join(counted_by(record, lap)) or "none"


def _seconds(seconds: float | None) -> str:
    return NOTHING if seconds is None else f"{seconds:.2f}"


def _rate(rate: float | None) -> str:
    return NOTHING if rate is None else f"{rate:.0f}"


def _share(part: float, whole: float) -> str:
    return percent(part / whole) if whole > 0 else NOTHING
