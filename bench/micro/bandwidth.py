"""All-reduces by message size: bus bandwidth, its table and its figure. No torch."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.document.table import Table
from bench.micro.records import MicroRecord
from bench.plots.style import figure_style, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BACKENDS = {"gloo": "gloo", "nccl": "NCCL"}
STYLES = {"fp32": ("#000000", "o", "-"), "fp16": ("#5b8db8", "s", "--")}
"""Colour, marker and line of each type: of unlike lightness and form, so that grey will do."""


def bus_bandwidth(num_bytes: int, seconds: float, ranks: int) -> float:
    """Bytes a second that each rank's link carries in an all-reduce, as NCCL's tests define it.

    2 (n - 1) / n x bytes / time: what the best algorithm must move, so that the figure can be held
    against a link's speed, whatever the number n of ranks.
    """
    return 2 * (ranks - 1) / ranks * num_bytes / seconds


def collective_table(record: MicroRecord) -> Table:
    """A row a message: time, bus bandwidth, and the copy of as many bytes beside it."""
    measured = _measured(record)
    ranks, machine = measured["ranks"], record.machine
    rows = []
    for row in measured["rows"]:
        seconds = row["all_reduce_s"]
        median, copy = statistics.median(seconds), statistics.median(row["copy_s"])
        rows.append(
            (
                f"{row['bytes']:,}" + (" (the gradient)" if row["gradient"] else ""),
                row["precision"],
                f"{1e6 * median:,.1f}",
                f"{1e6 * min(seconds):,.1f} to {1e6 * max(seconds):,.1f}",
                f"{bus_bandwidth(row['bytes'], median, ranks) / 1e9:.4f}",
                f"{row['bytes'] / copy / 1e9:.4f}",
            )
        )
    return Table(
        name=record.name,
        title=f"All-reduce by message size, {BACKENDS[measured['backend']]}, {ranks} processes",
        caption=(
            f"{machine['device']}, torch {machine['libraries']['torch']}, {record.rounds} rounds, "
            f"{record.created[:10]}. Time of the slowest process; bus bandwidth is 2 (n - 1) / n x "
            f"bytes / time with n = {ranks}. The copy is of as many bytes within each process, all "
            f"at once. The gradient is that of ResNet-9 of width {record.width}. "
            f"Record {record.file}."
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
        footnotes=tuple(f"Left out: {reason}" for reason in measured["left_out"]),
    )


def collective_figure(record: MicroRecord, folder: Path) -> list[Path]:
    """Bus bandwidth over message size, a line a type, with the copy above it.

    Returns:
        The files written: `folder/NAME.svg` and `.png`.
    """
    measured = _measured(record)
    with figure_style():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7.2, 3.6), layout="constrained")
        axes = figure.add_subplot()
        for precision, (color, marker, line) in STYLES.items():
            rows = [row for row in measured["rows"] if row["precision"] == precision]
            if not rows:
                continue
            sizes = [row["bytes"] for row in rows]
            speeds = [
                bus_bandwidth(
                    row["bytes"], statistics.median(row["all_reduce_s"]), measured["ranks"]
                )
                for row in rows
            ]
            copies = [row["bytes"] / statistics.median(row["copy_s"]) for row in rows]
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
                if row["gradient"]:
                    _mark_gradient(axes, row["bytes"], precision)
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


def _measured(record: MicroRecord) -> dict[str, Any]:
    assert record.collective is not None
    return record.collective
