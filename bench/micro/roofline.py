"""The roofline: each way's arithmetic against what the device can do, from a record. No torch.

A way lies at its counted arithmetic intensity and its measured speed. The roof is the copy's
bandwidth times the intensity, up to the matrix product's speed, both of the same run. A point may
lie over the slope, where caches serve what is counted as traffic.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bench.document.table import counted
from bench.micro.records import MicroRecord, roof
from bench.plots.style import figure_style, save_figure

OURS, THEIRS = "#a03000", "#5b8db8"
"""Of unlike lightness, so that grey will do; ours are filled, others' are not."""
MARKERS = "osD^vP*X<>hp"
LINES = ("-", "--", ":", "-.")

Shape = tuple[int, int]


def roofs(record: MicroRecord) -> dict[Shape, tuple[float, float]]:
    """FLOP/s and bytes/s of each (processes, threads), at their best over the groups of the run."""
    found: dict[Shape, tuple[float, float]] = {}
    for group in record.results.values():
        for timing in group:
            matrix, copy = roof(group, "FLOP", timing), roof(group, "bytes", timing)
            if matrix is not None and copy is not None:
                shape = timing.processes, timing.threads
                before = found.get(shape, (0.0, 0.0))
                found[shape] = max(matrix, before[0]), max(copy, before[1])
    return found


def points(record: MicroRecord) -> Iterator[tuple[str, str, float, float]]:
    """(group, way, FLOP/byte, FLOP/s) of every way whose cost was counted."""
    for title, group in record.results.items():
        for timing in group:
            if timing.cost is not None:
                intensity = timing.cost.flop / timing.cost.bytes
                yield title, timing.name, intensity, timing.median * timing.cost.flop


def roofline_figure(record: MicroRecord, folder: Path) -> list[Path]:
    """Draw a step's record.

    Returns:
        The files written: `folder/roofline-DEVICE-widthN.svg` and `.png`.

    Raises:
        ValueError: the record has no way with a counted cost, or no roof.
    """
    tops, found = roofs(record), list(points(record))
    if not tops or not found:
        raise ValueError(f"roofline: expected ways with a counted cost, got none in {record.name}")
    with figure_style():
        from matplotlib.figure import Figure
        from matplotlib.ticker import LogLocator, NullLocator

        figure = Figure(figsize=(7.2, 5.4), layout="constrained")
        axes = figure.add_subplot()
        intensities = [intensity for _, _, intensity, _ in found]
        ridges = [matrix / copy for matrix, copy in tops.values()]
        low, high = min(*intensities, *ridges) / 2, max(*intensities, *ridges) * 2
        for ((processes, threads), (matrix, copy)), line in zip(
            sorted(tops.items()), LINES, strict=False
        ):
            ridge = matrix / copy
            axes.plot(
                [low, ridge, high],
                [copy * low / 1e9, matrix / 1e9, matrix / 1e9],
                color="0.2",
                linestyle=line,
                linewidth=1.2,
                label=_roof_label(processes, threads, matrix, copy),
            )
        names = list(dict.fromkeys(name for _, name, _, _ in found))
        for name in names:
            mine = name.startswith("ours")
            own = [(x, y / 1e9) for _, each, x, y in found if each == name]
            axes.plot(
                [x for x, _ in own],
                [y for _, y in own],
                linestyle="none",
                marker=MARKERS[names.index(name) % len(MARKERS)],
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
        _, device, width = record.key
        return save_figure(figure, folder, f"roofline-{device}-width{width}")


def has_roofline(record: MicroRecord) -> bool:
    """Whether a record can be drawn."""
    return bool(roofs(record)) and any(True for _ in points(record))


def _roof_label(processes: int, threads: int, matrix: float, copy: float) -> str:
    plural = "es" if processes > 1 else ""
    return (
        f"roof, {processes} process{plural} of {counted(threads, 'thread')}: "
        f"{matrix / 1e9:,.0f} GFLOP/s, {copy / 1e9:,.1f} GB/s"
    )
