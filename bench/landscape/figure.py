"""`python -m bench figure N`: draws a figure of the paper, and first measures what is missing."""

from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

import torch

from bench.hardware.machine import available_cores
from bench.landscape.measure import (
    Measurement,
    Say,
    find_run,
    image_s,
    measure_cosines,
    measure_plane,
    next_seed,
    recipe_again,
    runs_of,
    saved_models,
    swap_recipe,
)
from bench.landscape.parallel_points import in_words
from bench.landscape.plots import cosine_figure, plane_figure
from bench.landscape.records import (
    CosineRecord,
    PlaneRecord,
    basin,
    file_name,
    folder_of,
    read_all_cosines,
    read_planes,
    write_landscape,
)
from bench.options import FigureOptions, RunOptions
from bench.plots.schedules import figure_5, figure_6
from bench.plots.training import figure_1
from bench.runner.session import run_session
from swap_fast.choices import choose, choose_device
from swap_fast.config.execution import Execution, default_execution
from swap_fast.config.recipe import SWAPRecipe
from swap_fast.data.cifar.files import load_dataset, locate_dataset
from swap_fast.landscape import GRADIENT_IMAGES, Counts, cut
from swap_fast.recipes.cifar10 import RECIPES
from swap_fast.record import RunRecord


def make_figure(options: FigureOptions) -> int:
    """Draw the figure, and print the files that were written.

    Raises:
        ValueError: no such run or recipe, data that are not the run's, or settings that differ
            from those of the finished record.
    """
    plots = options.out / "plots"
    if options.number > 4:
        if options.dry_run:
            print(f"figure {options.number}: drawn from the recipes; nothing is run")
            return 0
        return _written((figure_5 if options.number == 5 else figure_6)(plots))
    if options.number > 1 and (measured := _finished(options)):
        _check_settings(options, measured)
        return _draw(measured, options)
    device = choose_device(options.device)
    default = "cifar10_swap" if device == "cuda" else "cifar10_cpu"
    recipe = swap_recipe(choose("recipe", options.recipe or default, RECIPES))
    _check_recipe(options.number, recipe)
    record = find_run(options.number, options.out, recipe.name, options.run)
    if options.dry_run:
        return _dry_run(options, recipe, record, device)
    record = record or _run(options, recipe)
    if options.number == 1:
        return _written(figure_1(record, plots, file_name(1, record.run_id)))
    landscape = _measure(options, record, device)
    write_landscape(landscape, options.out)
    name = file_name(options.number, record.run_id)
    (options.out / folder_of(options.number) / f"{name}.part.jsonl").unlink(missing_ok=True)
    return _draw(landscape, options)


def _finished(options: FigureOptions) -> PlaneRecord | CosineRecord | None:
    """The finished record of this figure: of the named run, or of the lowest seed."""
    records: list[PlaneRecord] | list[CosineRecord]
    records, _ = (read_all_cosines if options.number == 4 else read_planes)(options.out)
    fitting = [
        record
        for record in records
        if record.figure == options.number
        and (record.run_id == options.run if options.run else True)
        and (options.recipe is None or record.recipe == options.recipe)
    ]
    return min(fitting, key=lambda record: (record.seed, record.run_id), default=None)


def _check_settings(options: FigureOptions, record: PlaneRecord | CosineRecord) -> None:
    """Refuse flags that differ from the settings of the finished record."""
    for name in ("grid", "batch_norm_images", "train_images", "test_images"):
        asked, has = getattr(options, name), record.settings.get(name)
        if asked is not None and has is not None and asked != has:
            path = options.out / folder_of(record.figure) / f"{record.name}.json"
            raise ValueError(
                f"{name}: figure {record.figure} of {record.run_id} was measured with {has}, got "
                f"{asked}; remove {path} to measure it again"
            )


def _draw(record: PlaneRecord | CosineRecord, options: FigureOptions) -> int:
    if options.dry_run:
        print(f"figure {options.number}: drawn from {record.name}.json; nothing is run")
        return 0
    plots = options.out / "plots"
    if isinstance(record, CosineRecord):
        return _written(cosine_figure(record, plots))
    found = basin(record)
    distances = ", ".join(f"{name} {distance:.2f}" for name, distance in found.distances.items())
    border = "; the basin reaches beyond the grid" if found.cut_off else ""
    print(f"from the basin's centre: {distances}{border}")
    return _written(plane_figure(record, plots))


def _written(path: Path) -> int:
    print(f"written: {path}")
    return 0


def _check_recipe(figure: int, recipe: SWAPRecipe) -> None:
    if figure > 1 and recipe.dataset == "imagenet":
        raise ValueError(
            f"recipe: figure {figure} is of CIFAR's images in memory, got {recipe.name}"
        )
    if figure == 3 and recipe.num_workers < 3:
        raise ValueError(
            f"figure 3: expected a recipe with 3 workers or more, got {recipe.num_workers} in "
            f"{recipe.name}"
        )


def _run(options: FigureOptions, recipe: SWAPRecipe) -> RunRecord:
    """Run the recipe with the next seed, and keep the weights of every epoch."""
    _say(options)(
        f"figure {options.number}: no run of {recipe.name} in {options.out} has what it needs"
    )
    run_options = RunOptions(
        seed=next_seed(options.out, recipe.name),
        data=options.data,
        out=options.out,
        device=options.device,
        keep_epochs=True,
        quiet=options.quiet,
    )
    run_session(run_options, recipe, recipe, resume=True)
    record = find_run(options.number, options.out, recipe.name)
    assert record is not None, "a run that has ended left no record"
    return record


def _say(options: FigureOptions) -> Say:
    return (lambda line: None) if options.quiet else (lambda line: print(line, flush=True))


# The cost of measuring Figure 2, 3 or 4.

CPU_GRID, CUDA_GRID = 15, 31
"""Points along each side of the grid."""
CPU_COUNTS = (2048, 4096, 2000)
"""Images of a point on CPUs: batch-norm pass, train error, test error."""


@dataclass(frozen=True, kw_only=True)
class FigureCost:
    """The points, images and processes of a measurement."""

    points: int
    """Of the grid and the models marked on it, or models of a path."""
    images: int
    """Of each point."""
    passes: int
    """Over each image; a backward pass counts as two."""
    processes: int

    @property
    def what(self) -> str:
        """Such as "229 points of 8,144 images"."""
        return f"{self.points} points of {self.images:,} images"

    @property
    def where(self) -> str:
        """Such as "on 2 processes"."""
        return f"on {self.processes} process{'es' if self.processes > 1 else ''}"

    def seconds(self, record: RunRecord) -> float | None:
        """At the speed of the run's own batch-norm pass; None where it had none."""
        each_s = image_s(record)
        passes = self.points * self.images * self.passes / self.processes
        return None if each_s is None else each_s * passes


def _cost(options: FigureOptions, record: RunRecord, device: str) -> FigureCost:
    models = len(saved_models(options.number, record, options.out))
    processes = _processes(options, device)
    if options.number == 4:
        images = min(options.train_images or GRADIENT_IMAGES, record.data["train_images"])
        return FigureCost(points=models - 1, images=images, passes=3, processes=processes)
    points = models + _grid(options, device) ** 2
    images = _counts(options, record, device).total
    return FigureCost(points=points, images=images, passes=1, processes=processes)


def _grid(options: FigureOptions, device: str) -> int:
    return options.grid or (CUDA_GRID if device == "cuda" else CPU_GRID)


def _counts(options: FigureOptions, record: RunRecord, device: str) -> Counts:
    """Images of each point: as asked for, or the device's default; no more than there are."""
    train, test = record.data["train_images"], record.data["test_images"]
    passed, on_train, on_test = (train, train, test) if device == "cuda" else CPU_COUNTS
    return Counts(
        batch_norm_images=options.batch_norm_images or passed,
        train_images=options.train_images or on_train,
        test_images=options.test_images or on_test,
    ).within(train, test)


def _processes(options: FigureOptions, device: str) -> int:
    """One process for each CUDA device, or for each core."""
    if device == "cpu":
        return options.processes or available_cores()
    devices = torch.cuda.device_count()
    if options.processes is not None and options.processes > devices:
        raise ValueError(
            f"processes: expected at most one a CUDA device, {devices}, got {options.processes}"
        )
    return options.processes or devices


def _dry_run(
    options: FigureOptions, recipe: SWAPRecipe, record: RunRecord | None, device: str
) -> int:
    """Print what would be done, and how long it takes if the records tell."""
    what, seconds = f"figure {options.number}", 0.0
    shown = record
    if record is None:
        seed = next_seed(options.out, recipe.name)
        print(f"{what}: runs {recipe.name} with seed {seed} and keeps its weights", end="")
        others = runs_of(options.out, recipe.name)
        if not others:
            print(f"; `python -m bench plan {recipe.name} --hardware this` says how long")
            return 0
        shown, seconds = others[-1], mean(run.times.wall_s for run in others)
        print(f", {in_words(seconds)} as its runs here took")
    assert shown is not None
    if options.number == 1:
        print(f"{what}: drawn from {'it' if record is None else record.run_id}")
        return 0
    cost = _cost(options, shown, device)
    measuring_s = cost.seconds(shown)
    expected = "" if measuring_s is None else f", {in_words(measuring_s)}"
    whose = "that run" if record is None else record.run_id
    print(f"{what}: measures {cost.what} of {whose}, {cost.where}{expected}")
    if measuring_s is not None:
        print(f"in all {in_words(seconds + measuring_s)}")
    return 0


def _measure(options: FigureOptions, record: RunRecord, device: str) -> PlaneRecord | CosineRecord:
    """Measure Figure 2, 3 or 4 of a run."""
    say, cost = _say(options), _cost(options, record, device)
    seconds = cost.seconds(record)
    expected = "" if seconds is None else f", {in_words(seconds)}"
    say(f"figure {options.number}, {record.run_id}: {cost.what} {cost.where}{expected}")
    subject = _measurement(options, record, device, say)
    if options.number == 4:
        return measure_cosines(subject, cost.images)
    counts = _counts(options, record, device)
    return measure_plane(options.number, subject, counts, _grid(options, device))


def _measurement(options: FigureOptions, record: RunRecord, device: str, say: Say) -> Measurement:
    recipe = recipe_again(record)
    assert recipe.dataset != "imagenet"
    dataset = load_dataset(
        recipe.dataset, locate_dataset(recipe.dataset, options.data, announce=say)
    )
    if dataset.sha256 != record.data["sha256"]:
        raise ValueError(
            f"data: expected the images of {record.run_id}, sha256 {record.data['sha256'][:12]}, "
            f"got {dataset.describe()}; give its folder by --data"
        )
    if options.number == 4:
        execution = Execution(device_type="cuda" if device == "cuda" else "cpu")
    else:
        execution = replace(default_execution(device), capture=False)
        if (ran := record.configuration["execution"])["device_type"] == device:
            execution = replace(
                execution, precision=ran["precision"], memory_format=ran["memory_format"]
            )
    return Measurement(
        record=record,
        recipe=recipe,
        dataset=cut(dataset, record.data["train_images"], record.data["test_images"]),
        execution=execution,
        results=options.out,
        processes=_processes(options, device),
        say=say,
    )
