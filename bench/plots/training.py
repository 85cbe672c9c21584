"""Figures from records: Figure 1, and where each second of every run went. No torch.

matplotlib is imported where a figure is made, and its global state is not touched. The same
records give the same bytes: fixed identifiers, no dates, text as paths.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from bench.records.grouping import group_by, host_of, machine_key, recipe_of
from bench.records.paper_tables import OTHER, place_of
from bench.records.timing import counted_by, in_clock_order, laps_of_slowest_rank, unattributed_s
from swap_fast.config.phase import Phase, StagedPhase
from swap_fast.config.recipe import Recipe
from swap_fast.record import AverageRow, RunRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


STYLE = {
    "font.family": "DejaVu Sans",  # matplotlib's own, so that every machine draws the same
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "0.88",
    "grid.linewidth": 0.6,
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "swap_fast",
}


@contextmanager
def figure_style() -> Iterator[None]:
    """Within it, matplotlib draws in this style."""
    from matplotlib import style

    with style.context(["default", STYLE]):
        yield


def save_figure(figure: Figure, folder: Path, name: str) -> Path:
    """Write `folder/NAME.svg`, and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.svg"
    figure.savefig(path, metadata={"Date": None})
    return path


# The learning rate over the epochs.

POINTS_AN_EPOCH = 20
"""Of a drawn learning rate, whose corners may lie between epochs."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Epochs of a recipe with one straight or bent piece of learning rate, and one batch."""

    epochs: tuple[float, ...]
    """Positions in the recipe, rising."""
    rates: tuple[float, ...]
    batch_size: int
    """Images in one update of one model."""
    phase: int
    """1 or 2, at each of whose ends a model is sampled."""


def parts_of(recipe: Recipe, phase1_epochs: int | None = None) -> list[Part]:
    """A recipe's schedules: a part a stage, a cycle, or a phase without either.

    Arguments:
        phase1_epochs: after which a phase 1 without stages is left; None: all that it may take.
    """
    parts: list[Part] = []
    start = 0
    for number, phase in enumerate(recipe.phases, start=1):
        lengths, before = _lengths(phase), start
        if number == 1 and phase1_epochs is not None and not isinstance(phase, StagedPhase):
            lengths = [(phase1_epochs, phase.global_batch_size)]
        for length, batch_size in lengths:
            at = start - before
            steps = range(length * POINTS_AN_EPOCH + 1)
            inside = [at + i / POINTS_AN_EPOCH for i in steps]
            rates = [phase.schedule(x) for x in inside]
            # A schedule gives a position between two pieces to the first of them.
            rates[0] = _rate_at_start(phase, at)
            parts.append(
                Part(
                    epochs=tuple(start + i / POINTS_AN_EPOCH for i in steps),
                    rates=tuple(rates),
                    batch_size=batch_size,
                    phase=number,
                )
            )
            start += length
    return parts


def _lengths(phase: Phase) -> list[tuple[int, int]]:
    """Epochs and batch of each part."""
    if isinstance(phase, StagedPhase):
        return [(stage.epochs, stage.global_batch_size) for stage in phase.stages]
    return [(phase.cycle_epochs, phase.global_batch_size)] * phase.cycles


def _rate_at_start(phase: Phase, epoch: int) -> float:
    if isinstance(phase, StagedPhase):
        start = 0
        for stage in phase.stages:
            if start == epoch:
                return stage.first_lr
            start += stage.epochs
    return phase.peak_lr if phase.cycles > 1 else phase.schedule(epoch)


# Figure 1, and the laps.

AVERAGE, SHARED, WORKER = "#a03000", "#000000", "#5b8db8"
"""The average's, phase 1's and the workers' lines: of unlike lightness, so that grey will do."""

COUNTED_COLORS = ("#1b3a5c", "#a9c7e3", "#b5541c", "#4b7f52", "#d8c46a", "#8c8c8c")
"""Of the laps in the paper's reading, longest first."""

HATCHES = ("////", "xxxx", "----", "++++", "||||", "\\\\", "//", "xx")
"""Of the laps that it leaves out, longest first. Dots and rings would be half a megabyte of SVG."""


def figure_1(record: RunRecord, folder: Path, name: str = "figure1") -> Path:
    """Figure 1 of a SWAP run: the learning rate, and test accuracy of workers and of the average.

    Returns:
        The file written, `folder/NAME.svg`.

    Raises:
        ValueError: the run has no phase 2.
    """
    if record.method != "swap":
        raise ValueError(
            f"Figure 1: expected a run of SWAP, got {record.run_id} of {record.method}"
        )
    with figure_style():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7.2, 5.2), layout="constrained")
        grid = figure.add_gridspec(2, 2, width_ratios=(2.1, 1), height_ratios=(1, 1.9))
        rate, whole = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[1, 0])
        whole.sharex(rate)
        end = figure.add_subplot(grid[1, 1])
        _draw_learning_rate(rate, record)
        _draw_accuracies(whole, record, num_ticks=9)
        _draw_accuracies(end, record, num_ticks=4)
        _zoom_on_phase_2(end, record)
        end.set_title("phase 2, enlarged", fontsize=9, color="0.25")
        handles, labels = whole.get_legend_handles_labels()
        # In the free quarter above the enlarged panel.
        corner = figure.add_subplot(grid[0, 1])
        corner.axis("off")
        corner.legend(handles, labels, loc="center left", fontsize=8.5, borderaxespad=0)
        return save_figure(figure, folder, name)


def timing_figure(records: Sequence[RunRecord], folder: Path, name: str = "timing") -> Path:
    """A bar a recipe, the mean of the slowest ranks' laps; hatched: not in the paper's reading.

    Bars are named by the devices too where not all runs used the same.

    Returns:
        The file written, `folder/NAME.svg`.

    Raises:
        ValueError: no runs, or runs of more than one kind of machine.
    """
    if len({host_of(record) for record in records}) != 1:
        raise ValueError("timing figure: expected runs of one kind of machine; group them first")
    groups = group_by(records, lambda r: (r.recipe, machine_key(r), place_of(r) == OTHER))
    bars = [_bar(runs) for runs in groups.values()]
    with figure_style():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7.2, 1.5 + 0.3 * len(bars)), layout="constrained")
        axes = figure.add_subplot()
        left = [0.0] * len(bars)
        for lap, (color, hatch) in _lap_styles(records).items():
            widths = [bar.get(lap, 0.0) for bar in bars]
            axes.barh(
                range(len(bars)),
                widths,
                left=left,
                height=0.7,
                color=color,
                hatch=hatch,
                edgecolor="0.25",
                linewidth=0.4,
                label=lap,
            )
            left = [x + width for x, width in zip(left, widths, strict=True)]
        axes.margins(x=0.01)
        several = len({machine for _, machine, _ in groups}) > 1
        names = [
            f"{recipe}, n = {len(runs)}"
            + f", {machine.devices_cell}" * several
            + " (other)" * is_other
            for (recipe, machine, is_other), runs in groups.items()
        ]
        # A name is no mathematics, whatever dollar signs it holds.
        axes.set_yticks(range(len(bars)), names, parse_math=False)
        axes.invert_yaxis()
        axes.set_xlabel("seconds of the wall clock (hatched: not in the paper's reading)")
        axes.grid(axis="x")
        axes.tick_params(axis="y", length=0)
        figure.legend(loc="outside upper center", ncols=4, fontsize=8)
        return save_figure(figure, folder, name)


def averages_shown(record: RunRecord) -> list[AverageRow]:
    """The running average where its size of test images is that of the workers': the last stage's.

    Records made before it was left out elsewhere hold it for all stages.
    """
    stages = recipe_of(record)["phase2"].get("stages", [])
    last = stages[-1]["image_size"] if stages else None
    before = sum(stage["epochs"] for stage in stages if stage["image_size"] != last)
    return [row for row in record.average_by_epoch if row.epoch > before]


def averages_against_workers(record: RunRecord) -> list[float]:
    """Figure 1 of a SWAP run: at each epoch of phase 2, the average less the best worker."""
    best: dict[int, float] = {}
    for row in record.epochs:
        if row.phase == 2 and row.test_accuracy is not None:
            best[row.epoch] = max(row.test_accuracy, best.get(row.epoch, 0.0))
    return [
        row.test_accuracy - best[row.epoch] for row in averages_shown(record) if row.epoch in best
    ]


def _phase2_epochs(record: RunRecord) -> int:
    return max((row.epoch for row in record.epochs if row.phase == 2), default=0)


def _draw_learning_rate(axes: Axes, record: RunRecord) -> None:
    for part in parts_of(record.settings, record.phase1_epochs):
        axes.plot(part.epochs, part.rates, color=SHARED, linewidth=1.4)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("learning rate")
    axes.tick_params(labelbottom=False)
    axes.grid(axis="y")
    mark_border(axes, record.phase1_epochs)
    border, ends = record.phase1_epochs, _phase2_epochs(record)
    for x, text in ((border / 2, "phase 1"), (border + ends / 2, "phase 2")):
        axes.annotate(
            text,
            (x, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            color="0.25",
        )


def _draw_accuracies(axes: Axes, record: RunRecord, num_ticks: int) -> None:
    from matplotlib.ticker import MaxNLocator

    border = record.phase1_epochs

    def points(phase: int, worker: int = 0) -> list[tuple[float, float]]:
        before = border if phase == 2 else 0
        return [
            (before + row.epoch, 100 * row.test_accuracy)
            for row in record.epochs
            if (row.phase, row.worker) == (phase, worker) and row.test_accuracy is not None
        ]

    def draw(line: Sequence[tuple[float, float]], count: int, **style: Any) -> None:
        # At most some 15 markers a line.
        every = max(1, math.ceil(count / 15))
        axes.plot([x for x, _ in line], [y for _, y in line], markevery=every, **style)

    shared = points(1)
    draw(
        shared,
        len(shared),
        color=SHARED,
        linewidth=1.4,
        marker="s",
        markersize=3,
        zorder=3,  # over the workers, which start from its end
        label="all workers, one model (phase 1)",
    )
    for i, worker in enumerate(sorted({row.worker for row in record.epochs if row.phase == 2})):
        own = points(2, worker)
        label = "each worker (phase 2)" if i == 0 else None
        style = {"color": WORKER, "linewidth": 1.0, "linestyle": "--", "label": label}
        draw(shared[-1:] + own, len(own), marker="x", markersize=4, **style)
    average = [(border + row.epoch, 100 * row.test_accuracy) for row in averages_shown(record)]
    draw(
        average,
        len(average),
        color=AVERAGE,
        linewidth=2.0,
        marker="o",
        markersize=4.5,
        zorder=4,
        label="average of the workers,\nwere phase 2 to stop here",
    )
    axes.set_xlabel("epoch")
    axes.set_ylabel("test accuracy (%)")
    axes.grid()
    mark_border(axes, record.phase1_epochs)
    axes.margins(x=0.02)
    axes.xaxis.set_major_locator(MaxNLocator(num_ticks, integer=True))


def _zoom_on_phase_2(axes: Axes, record: RunRecord) -> None:
    border, epochs = record.phase1_epochs, _phase2_epochs(record)
    accuracies = [
        100 * row.test_accuracy
        for row in record.epochs
        if row.test_accuracy is not None and (row.phase == 2 or row.epoch == border)
    ]
    accuracies += [100 * row.test_accuracy for row in averages_shown(record)]
    margin = max(0.05 * (max(accuracies) - min(accuracies)), 0.05)
    axes.set_xlim(border - 0.06 * epochs, border + 1.06 * epochs)
    axes.set_ylim(min(accuracies) - margin, max(accuracies) + margin)
    axes.set_ylabel("")


def mark_border(axes: Axes, epoch: float, height: float = 1.0) -> None:
    """Draw where phase 2 starts, up to this share of the axes."""
    axes.axvline(epoch, ymax=height, color="0.45", linewidth=0.9, linestyle=":")


def _bar(runs: Sequence[RunRecord]) -> dict[str, float]:
    """Mean seconds of each lap over the runs."""
    # Laps that began before the clock did can make the rest a little less than nothing.
    parts = [
        {**laps_of_slowest_rank(run), "unattributed": max(0.0, unattributed_s(run))} for run in runs
    ]
    laps = dict.fromkeys(lap for each in parts for lap in each)
    return {lap: fmean(each.get(lap, 0.0) for each in parts) for lap in laps}


def _lap_styles(records: Sequence[RunRecord]) -> dict[str, tuple[str, str | None]]:
    """Colour and hatch of each lap that took time: counted ones first, in the clock's order."""
    totals: dict[str, float] = {}
    counted: set[str] = set()
    for record in records:
        for lap, seconds in _bar([record]).items():
            totals[lap] = totals.get(lap, 0.0) + seconds
            if "paper" in counted_by(record, lap):
                counted.add(lap)
    present = [lap for lap in in_clock_order(totals) if totals[lap] > 0]
    by_length = sorted(present, key=lambda lap: -totals[lap])
    solid = [lap for lap in by_length if lap in counted]
    hatched = [lap for lap in by_length if lap not in counted]
    styles: dict[str, tuple[str, str | None]] = {
        **{lap: (COUNTED_COLORS[i % len(COUNTED_COLORS)], None) for i, lap in enumerate(solid)},
        **{lap: ("white", HATCHES[i % len(HATCHES)]) for i, lap in enumerate(hatched)},
    }
    return {lap: styles[lap] for lap in sorted(present, key=lambda lap: lap not in counted)}
