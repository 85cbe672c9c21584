"""Tables and figures from the records of `python -m bench micro`, newest of each kind. No torch."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.document import NOTHING, Table, counted, percent
from bench.micro.records import MicroRecord, Timing, measured_peak, peak_shares
from bench.plots.training import figure_style, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes


# All-reduces by message size: bus bandwidth, its table and its figure.

BACKENDS = {"gloo": "gloo", "nccl": "NCCL"}
STYLES = {"fp32": ("#000000", "o", "-"), "fp16": ("#5b8db8", "s", "--")}
"""Colour, marker and line of each type: of unlike lightness and form, so that grey will do."""


def collective_table(record: MicroRecord) -> Table:
    """A row a message: time, bus bandwidth, and the copy of as many bytes beside it."""
    measured, machine = record.collective, record.machine
    assert measured is not None
    ranks = measured.ranks
    rows = [
        (
            f"{row.bytes:,}" + (" (the gradient)" if row.gradient else ""),
            row.precision,
            f"{1e6 * row.median_s:,.1f}",
            f"{1e6 * min(row.all_reduce_s):,.1f} to {1e6 * max(row.all_reduce_s):,.1f}",
            f"{measured.bus_bandwidth(row) / 1e9:.4f}",
            f"{row.copy_bytes_per_s / 1e9:.4f}",
        )
        for row in measured.rows
    ]
    return Table(
        name=record.name,
        title=f"All-reduce by message size, {BACKENDS[measured.backend]}, {ranks} processes",
        caption=(
            f"{machine['device']}, torch {machine['libraries'].get('torch')}, "
            f"{record.rounds} rounds, {record.created[:10]}. Time of the slowest process; bus "
            f"bandwidth is 2 (n - 1) / n x bytes / time with n = {ranks}. The copy is of as many "
            "bytes within each process, all at once. The gradient is that of ResNet-9 of width "
            f"{record.width}. Record {record.file}."
        ),
        columns=(
            "Message (bytes)",
            "Type",
            "Time (µs, median)",
            "Range (µs)",
            "Bus bandwidth (GB/s)",
            "Copy (GB/s)",
        ),
        rows=tuple(rows),
        footnotes=tuple(f"Left out: {reason}" for reason in measured.left_out),
    )


def collective_figure(record: MicroRecord, folder: Path) -> Path:
    """Bus bandwidth over message size, a line a type, with the copy above it.

    Returns:
        The file written, `folder/NAME.svg`.
    """
    measured = record.collective
    assert measured is not None
    with figure_style():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7.2, 3.6), layout="constrained")
        axes = figure.add_subplot()
        for precision, (color, marker, line) in STYLES.items():
            rows = [row for row in measured.rows if row.precision == precision]
            if not rows:
                continue
            sizes = [row.bytes for row in rows]
            speeds = [measured.bus_bandwidth(row) for row in rows]
            copies = [row.copy_bytes_per_s for row in rows]
            for values, width, what in ((speeds, 1.6, "all-reduce"), (copies, 0.8, "copy")):
                axes.plot(
                    sizes,
                    [value / 1e9 for value in values],
                    color=color if what == "all-reduce" else "0.55",
                    linestyle=line,
                    linewidth=width,
                    marker=marker,
                    markersize=4,
                    markerfacecolor=color if what == "all-reduce" else "white",
                    label=f"{what}, {precision}",
                )
            for row in rows:
                if row.gradient:
                    _mark_gradient(axes, row.bytes, precision)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel("message (bytes)")
        axes.set_ylabel("bandwidth (GB/s)")
        axes.grid()
        figure.legend(loc="outside upper center", ncols=4, fontsize=8)
        return save_figure(
            figure, folder, f"collective-{record.machine['device_type']}-width{record.width}"
        )


def _mark_gradient(axes: Axes, num_bytes: int, precision: str) -> None:
    axes.axvline(num_bytes, color="0.6", linewidth=0.8, linestyle=":", zorder=0)
    axes.annotate(
        f"gradient, {precision}",
        (num_bytes, 0),
        xycoords=("data", "axes fraction"),
        xytext=(-2, 4),
        textcoords="offset points",
        rotation=90,
        ha="right",
        fontsize=7.5,
        color="0.3",
    )


# The roofline: each variant's arithmetic against the device's measured peak, from a record.
#
# A variant lies at its counted arithmetic intensity and its measured speed. The bound is the copy's
# bandwidth times the intensity, up to the matrix product's speed, both of the same run. A point may
# lie over the slope, where caches serve what is counted as traffic.


OURS, THEIRS = "#a03000", "#5b8db8"
"""Of unlike lightness, so that grey will do; ours are filled, others' are not."""
MARKERS = "osD^vP*X<>hp"
LINES = ("-", "--", ":", "-.")


def measured_bounds(record: MicroRecord) -> dict[tuple[int, int], tuple[float, float]]:
    """FLOP/s and bytes/s of each (processes, threads), at their best over the groups of the run."""
    found: dict[tuple[int, int], tuple[float, float]] = {}
    for group in record.results.values():
        for timing in group:
            matrix = measured_peak(group, "FLOP", timing)
            copy = measured_peak(group, "bytes", timing)
            if matrix is not None and copy is not None:
                shape = timing.processes, timing.threads
                before = found.get(shape, (0.0, 0.0))
                found[shape] = max(matrix, before[0]), max(copy, before[1])
    return found


def intensities(record: MicroRecord) -> Iterator[tuple[Timing, float, float]]:
    """(variant, FLOP/byte, FLOP/s) of every variant whose cost was counted."""
    for timing in (timing for group in record.results.values() for timing in group):
        if (cost := timing.cost) is not None:
            yield timing, cost.flop / cost.bytes, timing.median * cost.flop


def roofline_figure(record: MicroRecord, folder: Path) -> Path:
    """Draw a step's record.

    Returns:
        The file written, `folder/roofline-DEVICE-widthN.svg`.

    Raises:
        ValueError: the record has no variant with a counted cost, or no measured bound.
    """
    bounds, found = measured_bounds(record), list(intensities(record))
    if not bounds or not found:
        raise ValueError(
            f"roofline: expected variants with a counted cost, got none in {record.name}"
        )
    with figure_style():
        from matplotlib.figure import Figure
        from matplotlib.ticker import LogLocator, NullLocator

        figure = Figure(figsize=(7.2, 5.4), layout="constrained")
        axes = figure.add_subplot()
        shown = [intensity for _, intensity, _ in found]
        shown += [matrix / copy for matrix, copy in bounds.values()]
        low, high = min(shown) / 2, max(shown) * 2
        for ((processes, threads), (matrix, copy)), line in zip(
            sorted(bounds.items()), LINES, strict=False
        ):
            ridge = matrix / copy
            axes.plot(
                [low, ridge, high],
                [copy * low / 1e9, matrix / 1e9, matrix / 1e9],
                color="0.2",
                linestyle=line,
                linewidth=1.2,
                label=_bound_label(processes, threads, matrix, copy),
            )
        names = {timing.name: timing.is_ours for timing, _, _ in found}
        for name, mine in names.items():
            own = [(x, y / 1e9) for each, x, y in found if each.name == name]
            axes.plot(
                [x for x, _ in own],
                [y for _, y in own],
                linestyle="none",
                marker=MARKERS[list(names).index(name) % len(MARKERS)],
                markersize=6,
                markerfacecolor=OURS if mine else "white",
                markeredgecolor=OURS if mine else THEIRS,
                markeredgewidth=1.2,
                label=name,
            )
        axes.set_xscale("log")
        axes.set_yscale("log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter("{x:g}")
            axis.set_minor_locator(NullLocator())
        axes.set_xlim(low, high)
        axes.set_xlabel("arithmetic intensity (FLOP a byte of counted traffic)")
        axes.set_ylabel("arithmetic (GFLOP/s)")
        axes.grid()
        figure.legend(loc="outside lower center", ncols=1, fontsize=7.5)
        return save_figure(
            figure, folder, record.name.replace("micro_step", "roofline").replace("_", "-")
        )


def has_roofline(record: MicroRecord) -> bool:
    """Whether a record can be drawn."""
    return bool(measured_bounds(record)) and any(True for _ in intensities(record))


def _bound_label(processes: int, threads: int, matrix: float, copy: float) -> str:
    plural = "es" if processes > 1 else ""
    return (
        f"bound, {processes} process{plural} of {counted(threads, 'thread')}: "
        f"{matrix / 1e9:,.0f} GFLOP/s, {copy / 1e9:,.1f} GB/s"
    )


WHAT = {
    "step": "The training step and what is around it",
    "data": "The input path",
    "jpeg": "The input path from JPEG files",
    "workers": "Phase 2 of several workers on one device",
}


def micro_tables(records: Sequence[MicroRecord]) -> list[Table]:
    """The tables of each measurement."""
    return [table for record in records for table in tables_of(record)]


def tables_of(record: MicroRecord) -> list[Table]:
    """A record's speeds, and what they are of the device's where that was counted."""
    if record.collective is not None:
        return [collective_table(record)]
    costed = any(timing.cost is not None for group in record.results.values() for timing in group)
    return [_speeds(record), *([_efficiencies(record)] if costed else [])]


def micro_figures(records: Sequence[MicroRecord], plots: Path) -> dict[str, Path]:
    """Draw the roofline of each step's record and the bandwidths of each collective's, by title."""
    figures = {}
    for record in records:
        where = f"{record.machine['device']}, {record.created[:10]}"
        if record.collective is not None:
            figures[f"Bandwidth of all-reduces, {where}"] = collective_figure(record, plots)
        elif has_roofline(record):
            figures[f"Roofline, {record.net_words}, {where} ({record.file})"] = roofline_figure(
                record, plots
            )
    return figures


def _speeds(record: MicroRecord) -> Table:
    rows = []
    for title, timings in record.results.items():
        variants = [timing for timing in timings if timing.unit == "images"]
        for number, timing in enumerate(variants):
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
            f"{_where(record)}; {record.rounds} rounds in which the implementations took turns, "
            f"{record.created[:10]}. The ratio is the first implementation's images/s over this "
            f"one's, round by round. Record {record.file}."
        ),
        columns=(
            *("", "Implementation", "Images/s (median)", "Range"),
            *("Ratio (median)", "Range of the ratio"),
        ),
        rows=tuple(rows),
        footnotes=record.notes,
    )


def _efficiencies(record: MicroRecord) -> Table:
    rows = []
    for title, group in record.results.items():
        shown = [timing for timing in group if timing.cost is not None or timing.unit != "images"]
        for number, timing in enumerate(shown):
            rows.append((title if number == 0 else "", *_peak_cells(timing, group)))
    return Table(
        name=f"{record.name}_efficiency",
        title=f"{WHAT[record.what]}: shares of the device's peak",
        caption=(
            f"{_where(record)}; {record.created[:10]}. Medians of the same rounds. TFLOP/s by "
            "torch's count over the net, forward and backward; the shares are of the matrix "
            "product and of the copy that took turns with the implementations, with as many "
            "processes and threads. The bytes are counted from the shapes, as if no cache kept "
            f"any, so that a share of the copy's bandwidth can be over 100%. Record {record.file}."
        ),
        columns=(
            "",
            "Implementation",
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
            "loops of a compiled implementation.",
            "First step: from a made step to its first finished update; of ours, its whole "
            "warm-up with it. Peak memory: allocated on a CUDA device; on a CPU, growth of one "
            "process's resident memory.",
        ),
    )


def _peak_cells(timing: Timing, group: list[Timing]) -> tuple[str, ...]:
    facts = timing.facts
    first, memory = facts.get("first_step_s"), facts.get("peak_memory_bytes")
    rest = (
        _started(facts),
        NOTHING if first is None else f"{first:.2f}",
        NOTHING if memory is None else f"{memory / 2**30:.2f}",
    )
    found = peak_shares(timing, group)
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
    if {"kernels", "host_launches"} <= facts.keys():
        return f"{facts['kernels']:,.0f} ({facts['host_launches']:,.0f})"
    return NOTHING


def _share(share: float | None) -> str:
    return NOTHING if share is None else percent(share, 1)


def _where(record: MicroRecord) -> str:
    machine, threads = record.machine, record.threads
    size = ", ".join(filter(None, (record.net_words, f"batch {record.batch_size}")))
    return (
        f"{machine['device']}, {counted(threads, 'thread')}, torch "
        f"{machine['libraries'].get('torch')}; {size}"
    )
