"""The run of a figure, its saved models, and the measurements of Figures 2, 3 and 4 on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.hardware.machine import describe_code, describe_machine
from bench.landscape.parallel_points import PointsFile, Values, evaluate_points
from bench.landscape.records import (
    CosineRecord,
    CosineRow,
    MarkedPoint,
    PlaneRecord,
    file_name,
    folder_of,
)
from bench.records.grouping import recipe_of
from swap_fast.checkpoint.files import known_sha256, load_theta
from swap_fast.config.execution import Execution
from swap_fast.config.recipe import SWAPRecipe, recipe_from
from swap_fast.data.cifar.dataset import Dataset
from swap_fast.landscape import (
    GRADIENT_MICRO_BATCH,
    MARGIN,
    Counts,
    FixedBatch,
    Landscape,
    cosine,
    grid_around,
    plane_through,
)
from swap_fast.models import make_net
from swap_fast.recipes.cifar10 import RECIPES
from swap_fast.record import RunRecord, now, plain
from swap_fast.record_files import read_record, read_records
from swap_fast.training.weights import Weights

Say = Callable[[str], None]
"""Prints a line of progress."""
WORKER = 0
"""The worker whose path is Figure 4, and whose last model is Figure 2's SGD."""


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A model that a run has saved."""

    name: str
    """In the figure."""
    path: Path
    phase: int
    """3 for the average."""
    epoch: int
    """Of the phase, from 1; 0 for the average."""


def saved_models(figure: int, record: RunRecord, results: Path) -> list[Saved]:
    """The models of Figure 2, 3 or 4, the output of SWAP last; their files may be missing.

    Raises:
        ValueError: too few workers for Figure 3.
    """
    recipe = recipe_of(record)
    last, border = recipe["phase2"]["max_epochs"], record.phase1_epochs
    folder = results / "checkpoints" / record.run_id

    def of_worker(worker: int, name: str, epoch: int = last) -> Saved:
        path = folder / f"worker{worker}-epoch{epoch}.safetensors"
        return Saved(name=name, path=path, phase=2, epoch=epoch)

    def of_phase1(name: str, epoch: int, file: str) -> Saved:
        # Each run's folder has phase 1's end; its epochs are in the folder of the run that made it.
        source = record.start["run_id"] if record.start and file != "phase1" else record.run_id
        path = folder.with_name(source) / f"{file}.safetensors"
        return Saved(name=name, path=path, phase=1, epoch=epoch)

    swap = Saved(name="SWAP", path=folder / "final.safetensors", phase=3, epoch=0)
    if figure == 2:
        return [of_phase1("LB", border, "phase1"), of_worker(WORKER, "SGD"), swap]
    if figure == 3:
        if recipe["num_workers"] < 3:
            raise ValueError(
                f"figure 3: expected a run with 3 workers or more, got {recipe['num_workers']} in "
                f"{record.run_id}"
            )
        return [*(of_worker(w, f"SGD{w + 1}") for w in range(3)), swap]
    return [
        *(of_phase1(f"phase 1, {e}", e, f"phase1-epoch{e}") for e in range(1, border + 1)),
        *(of_worker(WORKER, f"phase 2, {e}", e) for e in range(1, last + 1)),
        swap,
    ]


def find_run(
    figure: int, results: Path, recipe: str, run_id: str | None = None
) -> RunRecord | None:
    """The run of a figure: the named one, or the one of the lowest seed whose weights are there.

    Figure 1 needs no weights.

    Raises:
        ValueError: no such run, it is not of SWAP on images in memory, or its weights are missing.
    """
    if run_id is not None:
        path = results / "runs" / f"{run_id}.json"
        if not path.is_file():
            raise ValueError(f"run: expected one of {path.parent}, got {run_id!r}")
        named = read_record(path)
        _check(figure, named)
        if absent := _absent(figure, named, results):
            raise ValueError(
                f"run: expected the weights of {run_id}, {absent[0]} is not there; without --run "
                "the recipe is run again, and they are kept"
            )
        return named
    fitting = sorted(runs_of(results, recipe), key=lambda record: record.seed)
    return next((r for r in fitting if not _absent(figure, r, results)), None)


def next_seed(results: Path, recipe: str) -> int:
    """The lowest seed that no run of the recipe has: two runs of a seed would count twice."""
    records, _ = read_records(results / "runs")
    taken = {record.seed for record in records if record.recipe == recipe}
    return min(set(range(len(taken) + 1)) - taken)


def runs_of(results: Path, recipe: str) -> list[RunRecord]:
    """The recipe's runs without overrides, the newest last."""
    records, _ = read_records(results / "runs")
    fitting = [r for r in records if r.recipe == recipe and r.method == "swap" and not r.overrides]
    return sorted(fitting, key=lambda record: record.created)


def image_s(record: RunRecord) -> float | None:
    """Seconds that one device took for one image in the run's batch-norm pass."""
    seconds = max(laps.get("batch_norm", 0.0) for laps in record.times.laps_by_rank)
    images = record.data["train_images"]
    return seconds * record.num_devices / images if seconds > 0 else None


def recipe_again(record: RunRecord) -> SWAPRecipe:
    """The recipe of a record, with its overrides.

    Raises:
        ValueError: it has unknown fields.
    """
    return recipe_from(recipe_of(record), SWAPRecipe, record.run_id)


def swap_recipe(name: str) -> SWAPRecipe:
    """The recipe of that name.

    Raises:
        ValueError: it is not of SWAP.
    """
    recipe = RECIPES[name]()
    if not isinstance(recipe, SWAPRecipe):
        raise ValueError(f"recipe: expected one of SWAP such as cifar10_cpu, got {name}")
    return recipe


def _check(figure: int, record: RunRecord) -> None:
    if record.method != "swap":
        raise ValueError(f"run: expected one of SWAP, got {record.run_id} of {record.method}")
    if figure > 1 and record.settings.dataset == "imagenet":
        raise ValueError(
            f"run: figure {figure} is of CIFAR's images in memory, got {record.run_id} of a tree"
        )


def _absent(figure: int, record: RunRecord, results: Path) -> Sequence[Path]:
    if figure == 1:
        return []
    return [m.path for m in saved_models(figure, record, results) if not m.path.is_file()]


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """The run whose models are measured, and the execution of the measurement."""

    record: RunRecord
    recipe: SWAPRecipe
    dataset: Dataset
    """The images that the run used."""
    execution: Execution
    results: Path
    processes: int
    say: Say

    @property
    def loader(self) -> ModelLoader:
        """The part that is sent to a process."""
        return ModelLoader(
            recipe=self.recipe,
            dataset=self.dataset,
            execution=self.execution,
            seed=self.record.seed,
        )

    def points_file(self, figure: int, settings: dict[str, Any]) -> PointsFile:
        """The file of the finished points, until the record is written."""
        run_id = self.record.run_id
        path = self.results / folder_of(figure) / f"{file_name(figure, run_id)}.part.jsonl"
        execution = asdict(self.execution)
        key = {"figure": figure, "run_id": run_id, "settings": settings, "execution": execution}
        return PointsFile(path, key)

    def common(self, figure: int, settings: dict[str, Any]) -> dict[str, Any]:
        """The fields that all records of a landscape have."""
        record = self.record
        return {
            "figure": figure,
            "run_id": record.run_id,
            "recipe": record.recipe,
            "seed": record.seed,
            "created": now(),
            "settings": settings,
            "execution": plain(asdict(self.execution)),
            "machine": describe_machine(self.execution.device_type),
            "code": describe_code(),
            "data": record.data,
        }


@dataclass(frozen=True, kw_only=True)
class ModelLoader:
    """Loads a run's models in a process."""

    recipe: SWAPRecipe
    dataset: Dataset
    execution: Execution
    seed: int

    def weights(self, rank: int) -> Weights:
        """A model on this rank's device, which only one process uses."""
        torch.set_num_threads(1)
        device = torch.device("cpu")
        if self.execution.device_type == "cuda":
            device = torch.device("cuda", rank)
            torch.cuda.set_device(device)
        net = self.execution.place(make_net(self.recipe, self.dataset), device)
        return Weights(net, groups=self.recipe.optimizer.groups)


def _theta(weights: Weights, path: Path) -> Tensor:
    """The vector theta [P] of a saved model, whose bytes are those that its run wrote.

    Raises:
        ValueError: a damaged file, or one that no manifest of the run knows.
    """
    sha256 = known_sha256(path)
    if sha256 is None:
        raise ValueError(
            f"{path.name}: expected its sha256 in a manifest of {path.parent.name}, got none; "
            "remove the file, and without --run the recipe is run again"
        )
    return load_theta(weights, path, sha256)


def plane_errors(
    loader: ModelLoader,
    files: Sequence[Path],
    counts: Counts,
    alphas: Sequence[float],
    betas: Sequence[float],
    rank: int,
) -> Callable[[int], Values]:
    """Train and test error of the marked models, points 0 to m - 1, and of the grid, row by row.

    Arguments:
        files: of the m marked models; the first three span the plane.
        alphas: the grid's columns.
        betas: the grid's rows.
        rank: chooses the device, to which the models and images are moved.
    """
    weights = loader.weights(rank)
    thetas = [_theta(weights, path) for path in files]
    plane = plane_through(*thetas[:3])
    landscape = Landscape(
        loader.recipe, loader.dataset, weights, loader.execution, counts, seed=loader.seed
    )

    def evaluate(number: int) -> Values:
        if number < len(thetas):
            theta = thetas[number]
        else:
            row, column = divmod(number - len(thetas), len(alphas))
            theta = plane.at(alphas[column], betas[row])
        errors = landscape.errors(theta)
        return [errors.train, errors.test]

    return evaluate


def path_cosines(
    loader: ModelLoader, files: Sequence[Path], num_images: int, rank: int
) -> Callable[[int], Values]:
    """For the model after each epoch: cosine of -g and the direction to SWAP, |g|, the distance.

    Arguments:
        files: of the models after each epoch, the output of SWAP last.
        num_images: of the batch of g.
        rank: chooses the device, to which the batch is moved.
    """
    weights = loader.weights(rank)
    batch = FixedBatch(
        loader.recipe, loader.dataset, weights, seed=loader.seed, num_images=num_images
    )
    swap = _theta(weights, files[-1])

    def evaluate(number: int) -> Values:
        path = files[number]
        theta = _theta(weights, path)
        gradient, towards = batch.gradient(theta), swap - theta
        return [cosine(-gradient, towards), float(gradient.norm()), float(towards.norm())]

    return evaluate


def measure_plane(figure: int, measured: Measurement, counts: Counts, grid: int) -> PlaneRecord:
    """Measure Figure 2 or 3; the file of finished points is kept."""
    models = saved_models(figure, measured.record, measured.results)
    files = [model.path for model in models]
    weights = Weights(make_net(measured.recipe, measured.dataset))
    thetas = [_theta(weights, path) for path in files]
    plane = plane_through(*thetas[:3])
    places = [plane.coordinates(theta) for theta in thetas]
    alphas, betas = grid_around([(place.alpha, place.beta) for place in places], grid)
    settings = {"grid": grid, "margin": MARGIN, **asdict(counts)}
    values = evaluate_points(
        partial(plane_errors, measured.loader, files, counts, alphas, betas),
        len(files) + grid * grid,
        measured.points_file(figure, settings),
        processes=measured.processes,
        say=measured.say,
    )
    of_grid = values[len(files) :]
    rows = [of_grid[start : start + grid] for start in range(0, grid * grid, grid)]
    marked = [
        MarkedPoint(
            name=model.name,
            file=model.path.name,
            **asdict(place),
            train_error=train_error,
            test_error=test_error,
        )
        for model, place, (train_error, test_error) in zip(models, places, values, strict=False)
    ]
    return PlaneRecord(
        **measured.common(figure, settings),
        marked=marked,
        alphas=alphas,
        betas=betas,
        train_error=[[train for train, _ in row] for row in rows],
        test_error=[[test for _, test in row] for row in rows],
    )


def measure_cosines(measured: Measurement, num_images: int) -> CosineRecord:
    """Measure Figure 4; the file of finished points is kept."""
    *models, swap = saved_models(4, measured.record, measured.results)
    files = [*(model.path for model in models), swap.path]
    settings = {"train_images": num_images, "micro_batch_size": GRADIENT_MICRO_BATCH}
    values = evaluate_points(
        partial(path_cosines, measured.loader, files, num_images),
        len(models),
        measured.points_file(4, settings),
        processes=measured.processes,
        say=measured.say,
    )
    return CosineRecord(
        **measured.common(4, settings),
        worker=WORKER,
        phase1_epochs=measured.record.phase1_epochs,
        rows=[
            CosineRow(
                phase=model.phase,
                epoch=model.epoch,
                cosine=similarity,
                gradient_norm=gradient_norm,
                distance=distance,
            )
            for model, (similarity, gradient_norm, distance) in zip(models, values, strict=True)
        ],
    )
