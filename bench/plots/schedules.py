"""Figures 5 and 6: the learning-rate and mini-batch schedules, drawn from the recipes. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.document import counted
from bench.plots.training import figure_style, mark_border, parts_of, save_figure
from bench.records.paper import load_paper
from swap_fast.config.recipe import AveragingRecipe, Recipe, SWARecipe
from swap_fast.recipes.cifar10 import RECIPES

if TYPE_CHECKING:
    from matplotlib.axes import Axes


LARGE = {"label": "SGD, large batches", "color": "#a9c7e3", "linewidth": 4.5}
SMALL = {"label": "SGD, small batches", "color": "#e0a878", "linewidth": 4.5}
SWAP = {"label": "SWAP", "color": "#000000", "linewidth": 1.4, "linestyle": "--"}
"""Of unlike lightness, for grey print; the lower lines are wider, so that none hides another."""
IMAGENET_LINES: dict[str, dict[str, Any]] = {
    "imagenet_sgd_large": LARGE,
    "imagenet_sgd_small": SMALL,
    "imagenet_swap": SWAP,
}
"""Figure 5's three recipes; their forms for a CPU are drawn alike."""


def figure_5(folder: Path) -> Path:
    """Figure 5: ImageNet's learning rates and mini-batches, at the paper's size and at a CPU's.

    Returns:
        The file written, `folder/figure5.svg`.
    """
    with figure_style():
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator

        figure = Figure(figsize=(7.6, 4.6), layout="constrained")
        panels = figure.subplots(2, 2, sharex="col")
        for column, (form, title) in enumerate((("", "the paper's size"), ("_cpu", "CPU size"))):
            rates, batches = panels[0][column], panels[1][column]
            for recipe, style in IMAGENET_LINES.items():
                parts = parts_of(RECIPES[recipe + form]())
                # One line through all parts: steps where they do not meet.
                epochs = [x for part in parts for x in part.epochs]
                rates.plot(epochs, [rate for part in parts for rate in part.rates], **style)
                ends = [x for part in parts for x in (part.epochs[0], part.epochs[-1])]
                batches.plot(ends, [p.batch_size for p in parts for _ in range(2)], **style)
            swap = RECIPES[f"imagenet_swap{form}"]()
            for axes in (rates, batches):
                mark_border(axes, swap.phase1.max_epochs)
                axes.margins(x=0.02)
                axes.grid(axis="y")
                axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
            # The last stages' rates are a thousandth of the first's.
            rates.set_yscale("log")
            batches.set_ylim(bottom=0)
            rates.set_title(title, fontsize=10)
            batches.set_xlabel("epoch")
        panels[0][0].set_ylabel("learning rate (log scale)")
        panels[1][0].set_ylabel("images in a mini-batch")
        handles, labels = panels[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=3)
        return save_figure(figure, folder, "figure5")


SWA_PANELS = (
    ("a", "large-batch SWA", "cifar100_swa_large"),
    ("b", "large-batch followed by small-batch SWA", "cifar100_swa_large_small"),
    ("c", "SWAP, 10 small-batch epochs", "cifar100_swap"),
    ("d", "SWAP, 40 small-batch epochs", "cifar100_swap_40"),
)
"""Figure 6's two, and SWAP's two to compare them with."""


SMALL_BATCHES = "#a8622a"
"""Figure 6's colour of their lines and of their scale."""


def figure_6(folder: Path) -> Path:
    """Figure 6: the learning rates of SWA and of SWAP, and where models are sampled.

    A phase 1 that stops at a train accuracy ends after the paper's mean epochs; what it would have
    had to its maximum is dotted.

    Returns:
        The file written, `folder/figure6.svg`.
    """
    with figure_style():
        from matplotlib.figure import Figure

        stopped_after = round(load_paper().phase1_mean("cifar100").epochs)
        figure = Figure(figsize=(8.6, 4.8), layout="constrained")
        panels = figure.subplots(2, 2, sharex=True, sharey=True)
        for axes, (letter, title, recipe) in zip(panels.flat, SWA_PANELS, strict=True):
            _draw_samples(axes, RECIPES[recipe](), stopped_after)
            axes.set_title(f"({letter}) {title}", fontsize=9.5)
            axes.set_ylim(0, 1.75)  # above the curves there is room for what they are
            axes.set_yticks([0, 0.4, 0.8, 1.2])
            axes.margins(x=0.02)
            axes.grid(axis="y")
        for axes in panels[1]:
            axes.set_xlabel("epoch")
        for axes in panels[:, 0]:
            axes.set_ylabel("learning rate")
        # Small batches are on axes of their own, the last.
        found = [axes.get_legend_handles_labels() for axes in (panels[0][1], figure.axes[-1])]
        handles, labels = (
            [large, *small, *rest] for (large, *rest), small in zip(*found, strict=True)
        )
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
        return save_figure(figure, folder, "figure6")


def _draw_samples(axes: Axes, recipe: Recipe, stopped_after: int) -> None:
    """Learning rate by batch, and a mark where a model is sampled."""
    stops = recipe.phase1.stopping_accuracy is not None
    parts = parts_of(recipe, stopped_after if stops else None)
    if stops:
        (whole,) = (part for part in parts_of(recipe) if part.phase == 1)
        axes.plot(whole.epochs, whole.rates, color="0.55", linewidth=1.0, linestyle=":")
    large = max(part.batch_size for part in parts)
    sampled = [(part.epochs[-1], part.rates[-1]) for part in parts if part.phase == 2]
    small: Axes | None = None
    for i, part in enumerate(parts):
        is_large = part.batch_size == large
        first = not any((p.batch_size == large) == is_large for p in parts[:i])
        batch = "large" if is_large else "small"
        small = small or (None if is_large else _small_scale(axes, part.rates[0]))
        (axes if small is None else small).plot(
            part.epochs,
            part.rates,
            color="#1b3a5c" if is_large else SMALL_BATCHES,
            linewidth=1.6,
            linestyle="-" if is_large else (0, (3, 1)),
            label=f"{batch} batches" if first else None,
        )
    copies = "" if isinstance(recipe, SWARecipe) else " of each worker"
    axes.plot(
        *zip(*sampled, strict=True),
        marker="o",
        markersize=4,
        markerfacecolor="white",
        markeredgecolor="black",
        linestyle="none",
        clip_on=False,
        zorder=4,
        label="a model is sampled",
    )
    mark_border(axes, next(p.epochs[0] for p in parts if p.phase == 2), height=0.75)
    assert isinstance(recipe, AveragingRecipe), "models are sampled in a phase 2"
    before, after = (
        f"batches of {phase.global_batch_size:,}, peak {phase.peak_lr:g}"
        for phase in (recipe.phase1, recipe.phase2)
    )
    samples = f"{counted(len(sampled), 'sample')}{copies}"
    axes.annotate(
        f"{before}; then\n{after}; {samples}",
        (0.98, 0.95),
        xycoords="axes fraction",
        ha="right",
        va="top",
        fontsize=8,
        color="0.25",
    )


def _small_scale(axes: Axes, peak: float) -> Axes:
    """A scale of their own, on the right, for rates that would lie on the axis."""
    scale = axes.twinx()
    scale.set_ylim(0, 3.5 * peak)
    scale.set_yticks([0, peak])
    scale.tick_params(axis="y", colors=SMALL_BATCHES)
    scale.spines["right"].set_visible(True)
    scale.spines["right"].set_color(SMALL_BATCHES)
    scale.set_ylabel("small batches", color=SMALL_BATCHES, fontsize=8, y=0.15)
    return scale
