"""A search's table and figure; the same outcomes give the same bytes. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from bench.document.table import NOTHING, Table, plus_minus
from bench.plots.training import figure_style, save_figure
from bench.search.grid import Outcome, Value, ranked, short_names, show

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LINE = "#1b3a5c"
"""The line's colour; the best point has its own mark, not its own colour."""

SPREAD_OF_LOG = 8.0
"""The axis is logarithmic where the largest value is at least this multiple of the smallest."""


def search_table(outcomes: Sequence[Outcome], *, recipe: str, held_out: int, seeds: int) -> Table:
    """All points, best first."""
    names = list(outcomes[0].point)
    short = short_names(names)
    return Table(
        name="search",
        title=f"Search of {recipe} over {', '.join(short.values())}",
        caption=(
            f"Chosen on {held_out:,} training images that were held out, the last of their "
            "canonical order, not stratified; no test image was looked at. A row is the mean over "
            f"{seeds} seed{'s' if seeds > 1 else ''}; equal accuracies are ordered by time."
        ),
        columns=(
            *short.values(),
            "Held-out accuracy (%)",
            "Time (s)",
            "Phase 1 (mean epochs)",
            "State",
        ),
        rows=tuple(
            (*(show(outcome.point[name]) for name in names), *_cells(outcome))
            for outcome in ranked(outcomes)
        ),
        footnotes=(
            "Time: of training, by the paper's reading, with the whole of phase 1, also where "
            "several points share one.",
            *(("± is the sample standard deviation over the seeds.",) if seeds > 1 else ()),
        ),
    )


def _cells(outcome: Outcome) -> tuple[str, ...]:
    """The cells after the settings."""
    scores = outcome.scores
    if scores is None:
        state = outcome.state + (f": {outcome.why}" if outcome.why else "")
        return NOTHING, NOTHING, NOTHING, state
    mean, deviation = _in_percent(outcome)
    return (
        plus_minus(mean, deviation),
        f"{fmean(scores.times_s):.1f}",
        f"{fmean(scores.phase1_epochs):.1f}",
        outcome.state,
    )


def _in_percent(outcome: Outcome) -> tuple[float, float | None]:
    """Mean held-out accuracy, and its deviation over seeds where there are several."""
    assert outcome.scores is not None
    accuracies = [100 * accuracy for accuracy in outcome.scores.accuracies]
    return fmean(accuracies), stdev(accuracies) if len(accuracies) > 1 else None


def search_figure(outcomes: Sequence[Outcome], folder: Path, *, recipe: str) -> list[Path]:
    """A line for one setting, a map for two; for more, a map of the first two at the best others.

    Returns:
        The files written: `folder/search.svg` and `.png`.

    Raises:
        ValueError: no point is done.
    """
    done = [outcome for outcome in ranked(outcomes) if outcome.scores is not None]
    if not done:
        raise ValueError("search figure: expected a point that is done, got none")
    names = list(outcomes[0].point)
    with figure_style():
        from matplotlib.figure import Figure

        if len(names) == 1:
            figure = Figure(figsize=(4.8, 3.4), layout="constrained")
            _draw_line(figure.add_subplot(), done, names[0])
        else:
            across, down = (_values(outcomes, name) for name in names[:2])
            size = (2.6 + 0.75 * len(across), 1.9 + 0.45 * len(down))
            figure = Figure(figsize=size, layout="constrained")
            _draw_map(figure, done, (names[0], across), (names[1], down))
        of_rest = ", each at its best " + ", ".join(names[2:]) if len(names) > 2 else ""
        figure.suptitle(f"{recipe}{of_rest}", fontsize=9, parse_math=False)
        return save_figure(figure, folder, "search")


def _draw_line(axes: Axes, done: Sequence[Outcome], name: str) -> None:
    """Held-out accuracy over a setting, with its deviation over seeds; the best value is marked."""
    values = _values(done, name)
    at = {outcome.point[name]: outcome for outcome in done}
    numbers = [value for value in values if isinstance(value, int | float)]
    is_number = len(numbers) == len(values) and not isinstance(values[0], bool)
    places = [float(value) for value in numbers] if is_number else list(range(len(values)))
    accuracies = [_in_percent(at[value]) for value in values]
    means = [mean for mean, _ in accuracies]
    deviations = [deviation or 0.0 for _, deviation in accuracies]
    axes.errorbar(
        places,
        means,
        yerr=deviations if any(deviations) else None,
        color=LINE,
        linestyle="-" if is_number else "none",
        marker="o",
        markersize=4,
        capsize=3,
    )
    best = values.index(done[0].point[name])
    axes.plot(
        places[best],
        means[best],
        marker="o",
        markersize=11,
        markerfacecolor="none",
        markeredgecolor="black",
        linestyle="none",
        label="best",
    )
    if is_number and min(places) > 0 and max(places) >= SPREAD_OF_LOG * min(places):
        axes.set_xscale("log")
    axes.set_xticks(places, [show(value) for value in values])
    axes.minorticks_off()
    axes.set_xlabel(name, parse_math=False)
    axes.set_ylabel("held-out accuracy (%)")
    axes.grid(axis="y")
    axes.legend()


def _draw_map(
    figure: Figure,
    done: Sequence[Outcome],
    across: tuple[str, list[Value]],
    down: tuple[str, list[Value]],
) -> None:
    """A cell for each pair of values: darker for a higher accuracy, with the accuracy as text."""
    axes = figure.add_subplot()
    cells: dict[tuple[int, int], float] = {}
    for outcome in done:  # best first, so that a cell has the best of its points
        place = (down[1].index(outcome.point[down[0]]), across[1].index(outcome.point[across[0]]))
        cells.setdefault(place, _in_percent(outcome)[0])
    low, high = min(cells.values()), max(cells.values())
    rows, columns = len(down[1]), len(across[1])
    grid = [[cells.get((i, j), float("nan")) for j in range(columns)] for i in range(rows)]
    # The darkest grey is not black; text on dark cells is white.
    image = axes.imshow(
        grid, cmap="Greys", vmin=low - 0.15 * (high - low), vmax=high + 0.4 * (high - low)
    )
    image.set_rasterized(False)
    for i in range(rows):
        for j in range(columns):
            mean = cells.get((i, j))
            dark = mean is not None and high > low and mean > low + 0.7 * (high - low)
            text = NOTHING if mean is None else f"{mean:.2f}"
            axes.text(j, i, text, ha="center", va="center", color="white" if dark else "black")
    best = next(iter(cells))
    from matplotlib.patches import Rectangle

    frame = Rectangle((best[1] - 0.5, best[0] - 0.5), 1, 1, fill=False, linewidth=2.2)
    frame.set(edgecolor="black", clip_on=False)
    axes.add_patch(frame)
    axes.set_xticks(range(columns), [show(value) for value in across[1]])
    axes.set_yticks(range(rows), [show(value) for value in down[1]])
    axes.tick_params(length=0)
    axes.set_xlabel(across[0], parse_math=False)
    axes.set_ylabel(down[0], parse_math=False)
    figure.colorbar(image, ax=axes, label="held-out accuracy (%), best framed", shrink=0.9)


def _values(outcomes: Sequence[Outcome], name: str) -> list[Value]:
    """A setting's values: numbers by size, then the others."""

    def place(value: Value) -> tuple[bool, float, str]:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return not is_number, float(value) if is_number else 0.0, str(value)  # type: ignore[arg-type]

    return sorted({outcome.point[name] for outcome in outcomes}, key=place)


def best_line(outcome: Outcome) -> str:
    """A point's accuracy and time in one line."""
    assert outcome.scores is not None
    mean, deviation = _in_percent(outcome)
    return (
        f"held-out accuracy {plus_minus(mean, deviation)}%, "
        f"{fmean(outcome.scores.times_s):.1f} s of training"
    )
