"""`python -m bench search`: runs each point of a grid, and ranks them by held-out images."""

import shlex
from collections.abc import Callable
from dataclasses import asdict, replace
from operator import attrgetter
from typing import Any

from bench.document.table import to_markdown, write_table
from bench.runner.launch import under_torchrun
from bench.runner.session import Prepared, differences, prepare
from bench.search.grid import (
    TAU,
    Grid,
    Outcome,
    Point,
    Scores,
    SearchOptions,
    as_flags,
    describe,
    ranked,
    recipe_at,
    short_names,
)
from bench.search.report import best_line, search_figure, search_table
from bench.search.study import GRACE_S, GridStudy, check_installed, database_file
from bench.search.trials import SearchRuns, phase_one, shares_phase1
from swap_fast.config.recipe import AveragingRecipe, Recipe
from swap_fast.data.cifar.dataset import hold_out
from swap_fast.data.cifar.files import load_dataset

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
        begun = file is None or file.exists()
        print(_plan(grid, GridStudy(url, name, grid, _settings(runs)) if begun else None, runs))
        return 0
    study = GridStudy(url, name, grid, _settings(runs))
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
    request, name = prepared.request, prepared.request.recipe.dataset
    assert name != "imagenet", "trees of files are refused before"
    dataset = hold_out(load_dataset(name, request.data), options.held_out)
    recipe = _fitted(request.recipe, len(dataset.train), prepared.say)
    for point in grid.points:
        _check_images(recipe_at(recipe, point), len(dataset.train))
    held_out_note = f"tested on {options.held_out:,} held-out training images"
    return SearchRuns(
        request=replace(
            request,
            recipe=recipe,
            held_out=options.held_out,
            notes=(*request.notes, note, held_out_note),
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
    request = runs.request
    return {
        "recipe": request.recipe.name,
        "changed": differences(asdict(runs.original), asdict(request.recipe)),
        "held_out": request.held_out,
        "seeds": list(runs.seeds),
        "data": runs.data,
        "execution": [request.execution.device_type, request.execution.precision],
    }


def _plan(grid: Grid, study: GridStudy | None, runs: SearchRuns) -> str:
    """What a call would do: a line for each point, and the sum."""
    waiting = [Outcome(point=point, state="waiting") for point in grid.points]
    outcomes = waiting if study is None else study.outcomes
    left = [
        recipe_at(runs.request.recipe, outcome.point)
        for outcome in outcomes
        if outcome.state in ("waiting", "failed")
    ]
    count = len(runs.seeds)
    lines = [f"{describe(outcome.point)}: {outcome.state}" for outcome in outcomes]
    lines.append(
        f"left: {len(left)} of {len(outcomes)}, with {count} seed{'s' if count > 1 else ''} each"
    )
    if runs.shared:
        ones = {repr(phase_one(one, None)) for one in left}
        lines.append(f"runs of phase 1: {count * len(ones)}, for {count * len(left)} of the rest")
    return "\n".join(lines)


def _command(point: Point, original: Recipe, recipe: Recipe) -> str:
    """The command that runs the point on all training images and the test set."""
    changed = {}
    for entry in differences(asdict(original), asdict(recipe)):
        name, _, _ = entry.partition("=")
        if name not in point:
            changed[name] = attrgetter(name)(recipe)
    words = ["python", "-m", "bench", "run", original.name, *as_flags({**changed, **point})]
    return shlex.join(words)


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
    phases = [recipe.phase1, *([recipe.phase2] if isinstance(recipe, AveragingRecipe) else [])]
    least = max(phase.global_batch_size for phase in phases)
    asked = recipe.train_images or train_images
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
