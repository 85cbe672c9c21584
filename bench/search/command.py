"""`python -m bench search`: runs each point of a grid, and ranks them by held-out images."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from operator import attrgetter
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from bench.document import NOTHING, Table, counted, summary_cell, to_markdown, write_table
from bench.plots.training import figure_style, save_figure
from bench.runner.launch import under_torchrun
from bench.runner.session import Prepared, differences, prepare
from bench.search.grid import (
    TAU,
    Grid,
    Outcome,
    Point,
    Scores,
    SearchOptions,
    Value,
    as_flags,
    describe,
    ranked,
    recipe_at,
    short_names,
    show,
)
from bench.search.study import GRACE_S, GridStudy, check_installed, database_file
from bench.search.trials import SearchRuns, phase_one, shares_phase1
from bench.statistics import Summary, summarize
from swap_fast.config.recipe import Recipe
from swap_fast.data.cifar.dataset import hold_out
from swap_fast.data.cifar.files import load_dataset

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Say = Callable[[str], None]


def run_search(options: SearchOptions, grid: Grid, recipe: Recipe, original: Recipe) -> int:
    """Run the points that are not done or running elsewhere; the exit status.

    Arguments:
        original: the recipe without the command line's changes.

    Raises:
        ValueError: the recipe or the grid cannot be searched.
    """
    check_installed()
    if recipe.dataset == "imagenet":
        raise ValueError("search: expected a recipe of CIFAR's images, got one of a tree of files")
    if under_torchrun():
        raise ValueError("search: expected one process, which starts the others, got torchrun's")
    shares_phase1(recipe, grid)  # raises for a grid that cannot be run
    name = options.name or "-".join([recipe.name, *short_names(list(grid.values)).values()])
    folder = options.out / "search" / name
    url = options.storage or f"sqlite:///{(options.out / 'search' / f'{name}.db').absolute()}"
    prepared = prepare(replace(options, out=folder), recipe, original)
    runs = _runs(prepared, grid, options, original, note=f"search {name}")
    if options.dry_run:
        file = database_file(url)
        is_started = file is None or file.exists()
        print(
            _plan(grid, GridStudy(url, name, grid, _settings(runs)) if is_started else None, runs)
        )
        return 0
    study = GridStudy(url, name, grid, _settings(runs))
    if damaged := study.num_damaged:
        prepared.say(f"search: {counted(damaged, 'damaged outcome')}: measured again")
    outcomes = _work(study, runs, options.trials, prepared.say)
    table = search_table(
        outcomes, recipe=recipe.name, held_out=options.held_out, seeds=options.seeds
    )
    write_table(table, folder)
    print(to_markdown(table))
    best = ranked(outcomes)[0]
    if best.scores is not None:
        search_figure(outcomes, folder, recipe=recipe.name)
        print(f"best: {describe(best.point)}: {best_line(best)}")
        print(f"  {_command(best.point, original, recipe)}")
    elsewhere = sum(outcome.state == "running" for outcome in outcomes)
    if elsewhere:
        print(
            f"{elsewhere} of {len(outcomes)} are run by other processes; should these have been "
            f"killed, a call in {GRACE_S} s or later takes them over"
        )
    print(f"table and figure: {folder}")
    return 1 if any(outcome.state == "failed" for outcome in outcomes) else 0


def _runs(
    prepared: Prepared, grid: Grid, options: SearchOptions, original: Recipe, *, note: str
) -> SearchRuns:
    """The runs of the search, after a check that there are enough images for each point."""
    spec, name = prepared.spec, prepared.spec.recipe.dataset
    assert name != "imagenet", "trees of files are refused before"
    dataset = hold_out(load_dataset(name, spec.data), options.held_out)
    recipe = _fitted(spec.recipe, len(dataset.train), prepared.say)
    for point in grid.points:
        _check_images(recipe_at(recipe, point), len(dataset.train))
    held_out_note = f"tested on {options.held_out:,} held-out training images"
    return SearchRuns(
        spec=replace(
            spec,
            recipe=recipe,
            held_out=options.held_out,
            notes=(*spec.notes, note, held_out_note),
        ),
        original=original,
        data=dataset.sha256,
        num_ranks=prepared.num_ranks,
        seeds=tuple(range(options.seed, options.seed + options.seeds)),
        taus=grid.values.get(TAU, ()),
        shared=shares_phase1(recipe, grid),
    )


def _settings(runs: SearchRuns) -> dict[str, Any]:
    """The settings that must be equal for all processes of a study."""
    spec = runs.spec
    return {
        "recipe": spec.recipe.name,
        "changed": differences(asdict(runs.original), asdict(spec.recipe)),
        "held_out": spec.held_out,
        "seeds": list(runs.seeds),
        "data": runs.data,
        "execution": [spec.execution.device_type, spec.execution.precision],
    }


def _plan(grid: Grid, study: GridStudy | None, runs: SearchRuns) -> str:
    """What a call would do: a line for each point, and the sum."""
    waiting = [Outcome(point=point, state="waiting") for point in grid.points]
    outcomes = waiting if study is None else study.outcomes
    left = [
        recipe_at(runs.spec.recipe, outcome.point)
        for outcome in outcomes
        if outcome.state in ("waiting", "failed")
    ]
    count = len(runs.seeds)
    lines = [f"{describe(outcome.point)}: {outcome.state}" for outcome in outcomes]
    lines.append(f"left: {len(left)} of {len(outcomes)}, with {counted(count, 'seed')} each")
    if runs.shared:
        ones = {repr(phase_one(one, None)) for one in left}
        lines.append(f"runs of phase 1: {count * len(ones)}, for {count * len(left)} of the rest")
    return "\n".join(lines)


def _command(point: Point, original: Recipe, recipe: Recipe) -> str:
    """The command that runs the point on all training images and the test set."""
    entries = differences(asdict(original), asdict(recipe))
    names = [entry.partition("=")[0] for entry in entries]
    values = {name: attrgetter(name)(recipe) for name in names if name not in point} | dict(point)
    return shlex.join(["python", "-m", "bench", "run", original.name, *as_flags(values)])


def _fitted(recipe: Recipe, train_images: int, say: Say) -> Recipe:
    """The recipe, with fewer training images where held-out ones were among them."""
    if recipe.train_images is None or recipe.train_images <= train_images:
        return recipe
    say(
        f"held out of {recipe.name}'s {recipe.train_images:,} training images, so that it trains "
        f"on {train_images:,}"
    )
    return replace(recipe, train_images=train_images)


def _check_images(recipe: Recipe, train_images: int) -> None:
    """Refuse, before the first run, a point that has too few images."""
    least, asked = recipe.largest_batch_size, recipe.train_images or train_images
    if not least <= asked <= train_images:
        raise ValueError(
            f"search: expected {least:,} to {train_images:,} training images beside the held-out "
            f"ones, got {asked:,}; change train_images, held_out or the batch size"
        )


def _work(study: GridStudy, runs: SearchRuns, limit: int | None, say: Say) -> list[Outcome]:
    """Run the points that are left, and print how each went; all outcomes."""

    def measure(point: Point) -> Scores:
        outcomes = study.outcomes
        done = sum(outcome.state == "done" for outcome in outcomes)
        say(f"search: {describe(point)}; {done} of {len(outcomes)} are done")
        return runs.measure(point)

    def print_outcome(outcome: Outcome) -> None:
        how = best_line(outcome) if outcome.scores else f"{outcome.state}: {outcome.why}"
        say(f"search: {describe(outcome.point)}: {how}")

    study.work(measure, limit=limit, on_end=print_outcome)
    return study.outcomes


# The table and the figure; the same outcomes give the same bytes.

SCORES = ("Held-out accuracy (%)", "Time (s)", "Phase 1 (mean epochs)")
"""Heads of columns."""

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
            f"{counted(seeds, 'seed')}; equal accuracies are ordered by time."
        ),
        columns=(*short.values(), *SCORES, "State"),
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
        return (*[NOTHING] * len(SCORES), state)
    return (
        summary_cell(_in_percent(outcome)),
        f"{fmean(scores.times_s):.1f}",
        f"{fmean(scores.phase1_epochs):.1f}",
        outcome.state,
    )


def _in_percent(outcome: Outcome) -> Summary:
    """Held-out accuracies over the seeds."""
    assert outcome.scores is not None
    return summarize(100 * accuracy for accuracy in outcome.scores.accuracies)


def search_figure(outcomes: Sequence[Outcome], folder: Path, *, recipe: str) -> Path:
    """A line for one setting, a map for two; for more, a map of the first two at the best others.

    Returns:
        The file written, `folder/search.svg`.

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
    means = [accuracy.mean for accuracy in accuracies]
    deviations = [accuracy.std or 0.0 for accuracy in accuracies]
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
        cells.setdefault(place, _in_percent(outcome).mean)
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
    accuracy, time_s = summary_cell(_in_percent(outcome)), fmean(outcome.scores.times_s)
    return f"held-out accuracy {accuracy}%, {time_s:.1f} s of training"
