"""Figures 2, 3 and 4, drawn from their records. No torch."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.landscape.records import CosineRecord, PlaneRecord, best
from bench.plots.training import figure_style, mark_border, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = "cividis_r"
"""Light where the error is low, dark where it is high, also in grey."""
NUM_LEVELS = 12
"""Lines of equal error; their distance grows from the lowest on."""
OFF_PLANE = 0.01
"""A point further from the plane than this share of the largest distance is noted as projected."""
HALO: dict[str, Any] = {"linewidth": 2.4, "foreground": "white"}


def plane_figure(record: PlaneRecord, folder: Path) -> Path:
    """Figure 2 or 3: train and test error on the plane, in weight space, with the models on it.

    Returns:
        The file written, `folder/NAME.svg`.
    """
    with figure_style():
        from matplotlib.figure import Figure

        width = max(record.alphas) - min(record.alphas)
        height = max(record.betas) - min(record.betas)
        # Both axes have the same scale, so the height follows from the plane's shape.
        size = (8.4, min(max(3.0 * height / width + 0.9, 2.4), 5.4))
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(1, 2, sharex=True, sharey=True)
        for axes, title, errors in (
            (panels[0], "train error", record.train_error),
            (panels[1], "test error", record.test_error),
        ):
            _draw_errors(figure, axes, record, errors)
            _mark_points(axes, record)
            axes.set_title(title, fontsize=10)
            axes.set_xlabel("distance along $u$ in weight space")
        panels[0].set_ylabel("distance along $v$")
        if note := _off_plane(record):
            figure.supxlabel(note, fontsize=8, color="0.25")
        return save_figure(figure, folder, record.name)


def error_levels(errors: list[list[float]], count: int = NUM_LEVELS) -> list[float]:
    """Levels (%) between the lowest and the highest error, close together near the lowest.

    The figure is about the basin's floor; its walls are many times higher.
    """
    values = [100 * error for row in errors for error in row]
    low, high = min(values), max(values)
    spread = max(high - low, 1e-3)  # a flat plane has levels too
    return [low + spread * (i / count) ** 2 for i in range(count + 1)]


def _draw_errors(
    figure: Figure, axes: Axes, record: PlaneRecord, errors: list[list[float]]
) -> None:
    from matplotlib.colors import BoundaryNorm

    levels = error_levels(errors)
    percent = [[100 * error for error in row] for row in errors]
    filled = axes.contourf(
        record.alphas,
        record.betas,
        percent,
        levels=levels,
        cmap=COLORS,
        norm=BoundaryNorm(levels, 256),
    )
    axes.contour(
        record.alphas, record.betas, percent, levels=levels[1:], colors="0.15", linewidths=0.4
    )
    axes.set_aspect("equal")
    bar = figure.colorbar(filled, cax=axes.inset_axes((1.03, 0, 0.045, 1)), spacing="uniform")
    bar.set_label("error (%)")
    bar.set_ticks(levels[::2], labels=[f"{level:.1f}" for level in levels[::2]])
    bar.ax.tick_params(length=0)
    bar.outline.set_linewidth(0.4)


def _mark_points(axes: Axes, record: PlaneRecord) -> None:
    from matplotlib.patheffects import withStroke

    halo = [withStroke(**HALO)]
    lowest = best(record)
    marks = [(p.alpha, p.beta, p.name, "s" if p.name == "SWAP" else "o") for p in record.marked]
    if record.figure == 3:
        marks.append((lowest.alpha, lowest.beta, "BEST", "*"))
    middle = sum(a for a, *_ in marks) / len(marks), sum(b for _, b, *_ in marks) / len(marks)
    for alpha, beta, label, marker in marks:
        axes.plot(
            alpha,
            beta,
            marker=marker,
            markersize=9 if marker == "*" else 6,
            markerfacecolor="white",
            markeredgecolor="black",
            markeredgewidth=1.1,
            linestyle="none",
            zorder=4,
        )
        # Each label points away from the middle, so that it covers no point.
        right, up = alpha >= middle[0], beta >= middle[1]
        axes.annotate(
            label,
            (alpha, beta),
            xytext=(7 if right else -7, 6 if up else -6),
            textcoords="offset points",
            ha="left" if right else "right",
            va="bottom" if up else "top",
            fontweight="bold",
            path_effects=halo,
            zorder=5,
        )


def _off_plane(record: PlaneRecord) -> str:
    """For each point that is not in the plane, its distance."""
    reach = max(math.hypot(p.alpha, p.beta) for p in record.marked)
    return "; ".join(
        f"{point.name} is {point.off_plane:.2g} off the plane: its projection is shown"
        for point in record.marked
        if point.off_plane > OFF_PLANE * reach
    )


def cosine_figure(record: CosineRecord, folder: Path) -> Path:
    """Figure 4: the cosine of -g and the direction to the output of SWAP, epoch by epoch.

    Returns:
        The file written, `folder/NAME.svg`.
    """
    with figure_style():
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator

        figure = Figure(figsize=(6.0, 3.4), layout="constrained")
        axes = figure.add_subplot()
        border = record.phase1_epochs
        epochs = [row.epoch + (border if row.phase == 2 else 0) for row in record.rows]
        cosines = [row.cosine for row in record.rows]
        last_of_phase1 = sum(row.phase == 1 for row in record.rows)
        axes.axhline(0, color="0.6", linewidth=0.8)
        mark_border(axes, border)
        axes.plot(epochs, cosines, color="black", linewidth=1.2, zorder=2)
        for part, marker, face, label in (
            (slice(0, last_of_phase1), "s", "black", "phase 1, all workers' model"),
            (slice(last_of_phase1, None), "o", "white", f"phase 2, worker {record.worker}"),
        ):
            axes.plot(
                epochs[part],
                cosines[part],
                marker=marker,
                markersize=5,
                markerfacecolor=face,
                markeredgecolor="black",
                linestyle="none",
                zorder=3,
                label=label,
            )
        axes.set_ylim(bottom=min(0.0, *cosines) - 0.02)
        axes.set_xlabel("epoch")
        axes.set_ylabel(r"cosine of $-g$ and $\theta_{\mathrm{SWAP}} - \theta$")
        axes.xaxis.set_major_locator(MaxNLocator(9, integer=True))
        axes.grid(axis="y")
        figure.legend(loc="outside upper center", ncols=2)
        return save_figure(figure, folder, record.name)
