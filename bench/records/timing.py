"""Where each second and each joule of a run went, and when it reached its target. No torch."""

from collections.abc import Callable, Iterable, Sequence
from statistics import fmean

from bench.document import NOTHING, Table, number_cell, percent, rows_of
from bench.records.grouping import group_by, recipe_of, scale_note
from swap_fast.clock import LAPS, total
from swap_fast.record import LapTelemetry, RunRecord

READING_TITLES = {"paper": "paper", "dawnbench": "DAWNBench", "mlperf": "MLPerf"}
"""How each reading of the clock is printed."""

LAP_COLUMNS = ("Lap", "Seconds", "Share of wall (%)", "Counted by")


def laps_of_slowest_rank(record: RunRecord) -> dict[str, float]:
    """The laps, in seconds, of the rank that the readings are of; in the clock's order.

    Laps that this version of the clock does not know come last, by name.
    """
    counted, reading_s = record.times.reading_laps["paper"], record.times.readings_s["paper"]
    laps = min(record.times.laps_by_rank, key=lambda rank: abs(total(rank, counted) - reading_s))
    return {name: laps[name] for name in in_clock_order(laps)}


def in_clock_order(laps: Iterable[str]) -> list[str]:
    """The names of laps in the clock's order; unknown ones last, by name."""
    present = set(laps)
    return [*(name for name in LAPS if name in present), *sorted(present - set(LAPS))]


def counted_by(record: RunRecord, lap: str) -> list[str]:
    """The readings, by their titles, that count this lap."""
    return [
        READING_TITLES.get(reading, reading)
        for reading, laps in record.times.reading_laps.items()
        if lap in laps
    ]


def is_one_process(record: RunRecord) -> bool:
    """Whether the wall clock, which is of the last process, is of all laps.

    Laps of a run that was resumed are of each of its processes; of one that began from another
    run's phase 1, of that run too.
    """
    return record.start is None and record.interruptions is None


def unattributed_s(record: RunRecord) -> float:
    """The harness's own time: the wall clock less all laps of the slowest rank.

    It has a meaning where `is_one_process` alone.
    """
    return record.times.wall_s - sum(laps_of_slowest_rank(record).values())


def checkpoint_s(record: RunRecord) -> float:
    """Seconds in which the slowest rank wrote checkpoints."""
    return laps_of_slowest_rank(record).get("checkpoint", 0.0)


def checkpoint_notes(records: Sequence[RunRecord]) -> list[str]:
    """What checkpoints took of the wall clock: of all runs of each recipe, and of one at most."""
    notes = []
    whole = filter(is_one_process, records)
    for recipe, runs in group_by(whole, lambda run: run.recipe).items():
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


def before_phase1_s(record: RunRecord) -> float:
    """What DAWNBench's reading adds to the paper's, which an epoch's row holds: earlier laps."""
    readings = record.times.reading_laps
    return total(record.times.laps_by_rank[0], set(readings["dawnbench"]) - set(readings["paper"]))


def dawnbench_time(record: RunRecord) -> float | None:
    """DAWNBench's time in seconds to the recipe's target, read at the first row at or over it.

    The rows are phase 1's epochs and, for SWAP, the averaged model at the end. A worker of
    phase 2 is not what the run returns, so that its rows do not count. None: never reached.
    """
    target = record.settings.target_accuracy
    for row in record.epochs:
        if row.phase == 1 and (row.test_accuracy or 0.0) >= target:
            return row.time_s + before_phase1_s(record)
    return record.times.readings_s["dawnbench"] if record.test_accuracy >= target else None


def lap_table(record: RunRecord) -> Table:
    """Every lap of one run: seconds, share of the wall clock, and who counts it."""
    ranks = f"{len(record.times.laps_by_rank)} rank(s); the slowest one's laps."
    return Table(
        name="laps",
        title=f"Laps of {record.run_id}",
        caption=ranks + scale_note([record]),
        columns=LAP_COLUMNS,
        rows=tuple(lap_rows(record)),
        footnotes=(
            *(
                f"{READING_TITLES.get(name, name)}: {record.times.readings_s[name]:.2f} s"
                f" = {' + '.join(laps)}."
                for name, laps in record.times.reading_laps.items()
            ),
            *_process_notes([record]),
        ),
    )


def lap_rows(record: RunRecord) -> list[tuple[str, ...]]:
    """The rows of a run's table of laps."""
    laps = [
        (name, seconds, ", ".join(counted_by(record, name)) or "none")
        for name, seconds in laps_of_slowest_rank(record).items()
    ]
    if is_one_process(record):
        laps.append(("unattributed (harness)", unattributed_s(record), "none"))
    laps.append(("wall", record.times.wall_s, NOTHING))
    return [(name, f"{s:.2f}", _share_of_wall(record, s), counted) for name, s, counted in laps]


def all_laps_table(records: Sequence[RunRecord]) -> Table:
    """The laps of every run, one a line."""
    return Table(
        name="laps",
        title="Laps",
        caption="The slowest rank's laps of every run." + scale_note(records),
        columns=("Run", *LAP_COLUMNS),
        rows=tuple((record.run_id, *row) for record in records for row in lap_rows(record)),
        footnotes=tuple(_process_notes(records)),
    )


def readings_table(records: Sequence[RunRecord]) -> Table:
    """One line a run: the three readings, the modelled time, and what they leave out.

    The device's memory has a column where any run has it.
    """

    def reading(name: str) -> Callable[[RunRecord], str]:
        return lambda run: number_cell(run.times.readings_s.get(name))

    columns: dict[str, Callable[[RunRecord], str]] = {
        "Run": lambda run: run.run_id,
        "Paper (s)": reading("paper"),
        "DAWNBench (s)": reading("dawnbench"),
        "MLPerf (s)": reading("mlperf"),
        "Modelled parallel (s), not measured": lambda run: number_cell(
            run.times.modelled_after_averaging_s if run.method == "swap" else None
        ),
        "To target (s)": lambda run: number_cell(dawnbench_time(run)),
        "Wall (s)": lambda run: number_cell(run.times.wall_s),
        "Unattributed (s)": lambda run: number_cell(
            unattributed_s(run) if is_one_process(run) else None
        ),
        "Unattributed (%)": lambda run: _share_of_wall(run, unattributed_s(run)),
        "Checkpoints (%)": lambda run: _share_of_wall(run, checkpoint_s(run)),
        "Phase 1 (images/s)": lambda run: number_cell(images_per_second(run, 1), 0),
        "Phase 2 (images/s)": lambda run: number_cell(images_per_second(run, 2), 0),
        "Peak host memory (GiB a process)": lambda run: number_cell(run.peak_memory_gib),
    }
    device_note: list[str] = []
    if any(record.peak_device_reserved_gib is not None for record in records):
        columns["Peak device memory (GiB)"] = lambda run: number_cell(run.peak_device_reserved_gib)
        device_note = ["Peak device memory: what torch reserved of a process's device."]
    return Table(
        name="timing",
        title="Readings of the clock",
        caption=(
            "The paper's reading counts preprocessing and not test evaluation; DAWNBench's also "
            "counts loading the data; MLPerf's is never paused. To target: DAWNBench's reading at "
            "the first row of phase 1, or the final model, at or over the recipe's target."
            + scale_note(records)
        ),
        columns=tuple(columns),
        rows=rows_of(columns, records),
        footnotes=(
            "Modelled parallel: the paper's reading, had all workers of phase 2 run at once; "
            "phase 1 as measured.",
            "Images/s: those of all ranks together over the phase's lap.",
            "Unattributed and checkpoints: shares of the wall clock.",
            *_process_notes(records),
            *device_note,
            *checkpoint_notes(records),
        ),
    )


def _share(part: float, whole: float) -> str:
    return percent(part / whole) if whole > 0 else NOTHING


def _share_of_wall(record: RunRecord, seconds: float) -> str:
    return _share(seconds, record.times.wall_s) if is_one_process(record) else NOTHING


def _process_notes(records: Sequence[RunRecord]) -> list[str]:
    """Why some runs have no share of the wall clock."""
    if all(map(is_one_process, records)):
        return []
    return [
        "No share of the wall clock, and no unattributed time: of a run that was resumed or began "
        "from another run's phase 1. Its laps are of several processes, the wall clock of the last."
    ]


# Where each joule went, and what held the devices back.

IN_PAPER = "all that the paper's reading counts"
"""The row that adds a run's laps up."""


def energy_j(record: RunRecord, laps: Sequence[str]) -> float | None:
    """Joules of all ranks' devices together in the laps named; None where a part is not known.

    A lap that no rank ran counts nothing.
    """
    parts = [lap.energy_j for name in laps for lap in _lap_by_rank(record, name).values()]
    known = [part for part in parts if part is not None]
    return sum(known) if parts and len(known) == len(parts) else None


def mean_power_w(record: RunRecord, lap: str) -> float | None:
    """Watts of one device during a lap, mean over the ranks; None where not known.

    The energy over the time, where the device counts energy; else the mean of the samples.
    """
    spent_j, by_rank = energy_j(record, [lap]), _lap_by_rank(record, lap)
    seconds = sum(record.times.laps_by_rank[rank].get(lap, 0.0) for rank in by_rank)
    if spent_j is not None and seconds > 0:
        return spent_j / seconds
    return _over_samples(list(by_rank.values()), "mean_power_w")


def throttle_shares(record: RunRecord, lap: str) -> dict[str, float]:
    """Share of the samples of all ranks in which each reason held; most frequent first."""
    counts: dict[str, float] = {}
    samples = 0
    for each in _lap_by_rank(record, lap).values():
        if each.throttle_reasons is not None:
            samples += each.samples
            for word, share in each.throttle_reasons.items():
                counts[word] = counts.get(word, 0.0) + share * each.samples
    ordered = sorted(counts, key=lambda word: (-counts[word], word))
    return {word: counts[word] / samples for word in ordered}


ENERGY_COLUMNS: dict[str, Callable[[RunRecord, str], str]] = {
    "Energy (J)": lambda run, lap: number_cell(energy_j(run, [lap]), 0),
    "Mean power (W)": lambda run, lap: number_cell(mean_power_w(run, lap), 0),
    "Mean SM clock (MHz)": lambda run, lap: number_cell(
        _over_samples(_laps(run, lap), "mean_sm_clock_mhz"), 0
    ),
    "Lowest SM clock (MHz)": lambda run, lap: number_cell(
        min(_known(_laps(run, lap), "lowest_sm_clock_mhz"), default=None), 0
    ),
    "Utilization (%)": lambda run, lap: number_cell(
        _over_samples(_laps(run, lap), "mean_utilization"), 0, factor=100
    ),
    "Highest temperature (C)": lambda run, lap: number_cell(
        max(_known(_laps(run, lap), "peak_temperature_c"), default=None), 0
    ),
    "Clocks held down by (% of samples)": lambda run, lap: (
        ", ".join(f"{word} {percent(s, 0)}" for word, s in throttle_shares(run, lap).items())
        or NOTHING
    ),
}
"""The cells of a lap of a run."""


def energy_table(records: Sequence[RunRecord]) -> Table:
    """One line a lap of every run whose devices were sampled; without any, no lines."""
    shown = [record for record in records if record.telemetry]
    return Table(
        name="energy",
        title="Energy, power and clocks",
        caption=(
            "Of all ranks' devices: the energy together, the rest a device. Energy is the devices' "
            "own counter, read at both ends of a lap; it moves in steps, so that laps of much less "
            "than a second are rough." + scale_note(shown)
        ),
        columns=("Run", "Lap", *ENERGY_COLUMNS),
        rows=tuple(row for record in shown for row in _energy_rows(record)),
        footnotes=("Power: energy over time, or where no energy is counted the mean of samples.",),
    )


def _energy_rows(record: RunRecord) -> list[tuple[str, ...]]:
    names = in_clock_order({name for rank in record.telemetry or [] for name in rank.laps})
    rows = [
        (record.run_id, name, *(cell(record, name) for cell in ENERGY_COLUMNS.values()))
        for name in names
    ]
    known = [row for row in rows if set(row[2:]) != {NOTHING}]
    in_paper_j = energy_j(record, record.times.reading_laps["paper"])
    if in_paper_j is not None:
        nothing = [NOTHING] * (len(ENERGY_COLUMNS) - 1)
        known.append((record.run_id, IN_PAPER, f"{in_paper_j:.0f}", *nothing))
    return known


def _lap_by_rank(record: RunRecord, name: str) -> dict[int, LapTelemetry]:
    """A lap of each rank that ran it."""
    ranks = enumerate(record.telemetry or [])
    return {number: rank.laps[name] for number, rank in ranks if name in rank.laps}


def _laps(record: RunRecord, name: str) -> list[LapTelemetry]:
    return list(_lap_by_rank(record, name).values())


def _known(laps: Sequence[LapTelemetry], quantity: str) -> list[float]:
    values = (getattr(lap, quantity) for lap in laps)
    return [value for value in values if value is not None]


def _over_samples(laps: Sequence[LapTelemetry], quantity: str) -> float | None:
    """The mean over ranks, each with the weight of its samples."""
    known = [lap for lap in laps if getattr(lap, quantity) is not None]
    if not known:
        return None
    return fmean(_known(known, quantity), [lap.samples for lap in known])
