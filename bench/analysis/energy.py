"""Where each joule of a run went, and what held its devices back. No torch."""

from collections.abc import Sequence
from statistics import fmean

from bench.document.table import NOTHING, Table, number_cell, percent
from bench.records.grouping import scale_note
from swap_fast.record import LapTelemetry, RunRecord
from swap_fast.training.clock import LAPS

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


def energy_table(records: Sequence[RunRecord]) -> Table:
    """One line a lap of every run whose devices told anything; without any, no lines."""
    shown = [record for record in records if record.telemetry]
    return Table(
        name="energy",
        title="Energy, power and clocks",
        caption=(
            "Of all ranks' devices: the energy together, the rest a device. Energy is the devices' "
            "own counter, read at both ends of a lap; it moves in steps, so that laps of much less "
            "than a second are rough." + scale_note(shown)
        ),
        columns=(
            "Run",
            "Lap",
            "Energy (J)",
            "Mean power (W)",
            "Mean SM clock (MHz)",
            "Lowest SM clock (MHz)",
            "Utilization (%)",
            "Highest temperature (C)",
            "Clocks held down by (% of samples)",
        ),
        rows=tuple(row for record in shown for row in _rows(record)),
        footnotes=("Power: energy over time, or where no energy is counted the mean of samples.",),
    )


def _rows(record: RunRecord) -> list[tuple[str, ...]]:
    names = {name for rank in record.telemetry or [] for name in rank.laps}
    ordered = [*(name for name in LAPS if name in names), *sorted(names - set(LAPS))]
    rows = [(record.run_id, name, *_cells(record, name)) for name in ordered]
    told = [row for row in rows if set(row[2:]) != {NOTHING}]
    in_paper_j = energy_j(record, record.times.reading_laps["paper"])
    if in_paper_j is not None:
        told.append((record.run_id, IN_PAPER, f"{in_paper_j:.0f}", *[NOTHING] * 6))
    return told


def _cells(record: RunRecord, name: str) -> tuple[str, ...]:
    laps = list(_lap_by_rank(record, name).values())
    utilization = _over_samples(laps, "mean_utilization")
    lowest = [lap.lowest_sm_clock_mhz for lap in laps if lap.lowest_sm_clock_mhz is not None]
    highest = [lap.peak_temperature_c for lap in laps if lap.peak_temperature_c is not None]
    shares = throttle_shares(record, name)
    return (
        number_cell(energy_j(record, [name]), 0),
        number_cell(mean_power_w(record, name), 0),
        number_cell(_over_samples(laps, "mean_sm_clock_mhz"), 0),
        number_cell(min(lowest, default=None), 0),
        NOTHING if utilization is None else percent(utilization, 0),
        number_cell(max(highest, default=None), 0),
        ", ".join(f"{word} {percent(share, 0)}" for word, share in shares.items()) or NOTHING,
    )


def _lap_by_rank(record: RunRecord, name: str) -> dict[int, LapTelemetry]:
    """A lap of each rank that ran it."""
    ranks = enumerate(record.telemetry or [])
    return {number: rank.laps[name] for number, rank in ranks if name in rank.laps}


def _over_samples(laps: Sequence[LapTelemetry], quantity: str) -> float | None:
    """The mean over ranks, each with the weight of its samples."""
    known = [lap for lap in laps if getattr(lap, quantity) is not None]
    if not known:
        return None
    return fmean([getattr(lap, quantity) for lap in known], [lap.samples for lap in known])
