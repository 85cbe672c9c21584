"""Tables and figures from the records of `python -m bench micro`, newest of each kind. No torch."""

import statistics
from pathlib import Path

from bench.document.table import NOTHING, Table, counted, percent
from bench.micro.bandwidth import collective_figure, collective_table
from bench.micro.interleave import Timing
from bench.micro.records import MicroRecord, efficiency, read_micro_records
from bench.micro.roofline import has_roofline, roofline_figure

WHAT = {
    "step": "The training step and what is around it",
    "data": "The input path",
    "jpeg": "The input path from JPEG files",
    "workers": "Phase 2 of several workers on one device",
}


def micro_tables(folder: Path) -> tuple[list[Table], list[str]]:
    """The tables of each measurement, and why other files of the folder were left out."""
    shown, skipped = showable(folder)
    return [table for _, tables in shown for table in tables], skipped


def showable(folder: Path) -> tuple[list[tuple[MicroRecord, list[Table]]], list[str]]:
    """The newest whole record of each kind with its tables, and why other files were left out."""
    records, skipped = read_micro_records(folder)
    shown = []
    for record in records:
        try:
            shown.append((record, tables_of(record)))
        except (AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            skipped.append(f"{record.file}: expected a whole measurement, got {error!r}")
    return shown, skipped


def tables_of(record: MicroRecord) -> list[Table]:
    """A record's speeds, and what they are of the device's where that was counted."""
    if record.collective is not None:
        return [collective_table(record)]
    costed = any(timing.cost is not None for group in record.results.values() for timing in group)
    return [_speeds(record), *([_efficiencies(record)] if costed else [])]


def micro_figures(folder: Path, plots: Path) -> dict[str, list[Path]]:
    """Draw the roofline of each step's record and the bandwidths of each collective's, by title."""
    figures = {}
    for record, _ in showable(folder)[0]:
        where = f"{record.machine['device']}, {record.created[:10]}"
        if record.collective is not None:
            figures[f"Bandwidth of all-reduces, {where}"] = collective_figure(record, plots)
        elif has_roofline(record):
            title = f"Roofline, ResNet-9 of width {record.width}, {where}"
            figures[title] = roofline_figure(record, plots)
    return figures


def _speeds(record: MicroRecord) -> Table:
    rows = []
    for title, timings in record.results.items():
        ways = [timing for timing in timings if timing.unit == "images"]
        for number, timing in enumerate(ways):
            speeds, ratios = timing.per_s, timing.ratios
            rows.append(
                (
                    title if number == 0 else "",
                    timing.name,
                    f"{statistics.median(speeds):,.0f}",
                    f"{min(speeds):,.0f} to {max(speeds):,.0f}",
                    f"{statistics.median(ratios):.3f}",
                    f"{min(ratios):.2f} to {max(ratios):.2f}",
                )
            )
    return Table(
        name=record.name,
        title=WHAT[record.what],
        caption=(
            f"{_where(record)}; {record.rounds} rounds in which the ways took turns, "
            f"{record.created[:10]}. The ratio is the first way's images/s over this way's, round "
            f"by round. Record {record.file}."
        ),
        columns=("", "Way", "Images/s (median)", "Range", "Ratio (median)", "Range of the ratio"),
        rows=tuple(rows),
        footnotes=record.notes,
    )


def _efficiencies(record: MicroRecord) -> Table:
    rows = []
    for title, group in record.results.items():
        shown = [timing for timing in group if timing.cost is not None or timing.unit != "images"]
        for number, timing in enumerate(shown):
            rows.append((title if number == 0 else "", *_efficiency_cells(timing, group)))
    return Table(
        name=f"{record.name}_efficiency",
        title=f"{WHAT[record.what]}: of what the device can do",
        caption=(
            f"{_where(record)}; {record.created[:10]}. Medians of the same rounds. TFLOP/s by "
            "torch's count over the net, forward and backward; the shares are of the matrix "
            "product and of the copy that took turns with the ways, with as many processes and "
            "threads. The bytes are counted from the shapes, as if no cache kept any, so that a "
            f"share of the copy's bandwidth can be over 100%. Record {record.file}."
        ),
        columns=(
            "",
            "Way",
            "TFLOP/s",
            "Of the matrix product (%)",
            "GB/s, counted",
            "Of the copy (%)",
            "Started a step",
            "First step (s)",
            "Peak memory (GiB)",
        ),
        rows=tuple(rows),
        footnotes=(
            "Started a step: kernels and, in brackets, the calls that start them, on a CUDA "
            "device; on a CPU torch's operators that no other called, which leaves out the fused "
            "loops of a compiled way.",
            "First step: from a made step to its first finished update; of ours, its whole "
            "warm-up with it. Peak memory: allocated on a CUDA device; on a CPU, growth of one "
            "process's resident memory.",
        ),
    )


def _efficiency_cells(timing: Timing, group: list[Timing]) -> tuple[str, ...]:
    facts = timing.facts
    first, memory = facts.get("first_step_s"), facts.get("peak_memory_bytes")
    rest = (
        _started(facts),
        NOTHING if first is None else f"{first:.2f}",
        NOTHING if memory is None else f"{memory / 2**30:.2f}",
    )
    found = efficiency(timing, group)
    if found is None or timing.cost is None:
        name = f"{timing.name}, {timing.processes} x {timing.threads} threads"
        flop = f"{timing.median / 1e12:.3f}" if timing.unit == "FLOP" else NOTHING
        moved = f"{timing.median / 1e9:.1f}" if timing.unit == "bytes" else NOTHING
        return name, flop, NOTHING, moved, NOTHING, *rest
    return (
        timing.name,
        f"{found.flop_per_s / 1e12:.3f}",
        _share(found.matrix_share),
        f"{timing.median * timing.cost.bytes / 1e9:.1f}",
        _share(found.bandwidth_share),
        *rest,
    )


def _started(facts: dict[str, float]) -> str:
    if "operators" in facts:
        return f"{facts['operators']:,.0f} operators"
    if "kernels" in facts:
        return f"{facts['kernels']:,.0f} ({facts['host_launches']:,.0f})"
    return NOTHING


def _share(share: float | None) -> str:
    return NOTHING if share is None else percent(share, 1)


def _where(record: MicroRecord) -> str:
    machine, threads = record.machine, record.threads
    size = f"batch {record.batch_size}"
    if record.what not in ("data", "jpeg"):
        size = f"ResNet-9 of width {record.width}, {size}"
    return (
        f"{machine['device']}, {counted(threads, 'thread')}, torch "
        f"{machine['libraries']['torch']}; {size}"
    )
