"""Measures what Figures 2, 3 and 4 show of a run's models, point by point, in parallel."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from bench.hardware.machine import describe_code, describe_machine
from bench.landscape.figure_runs import WORKER, Saved, saved_models
from bench.landscape.parallel_points import PointsFile, Values, evaluate_points
from bench.landscape.records import (
    CosineRecord,
    CosineRow,
    MarkedPoint,
    PlaneRecord,
    file_name,
    folder_of,
)
from bench.micro.records import now
from swap_fast.checkpoint.files import load_theta
from swap_fast.config.execution import Execution
from swap_fast.config.recipe import SWAPRecipe
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
from swap_fast.record import RunRecord, plain
from swap_fast.training.weights import Weights


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The run whose models are measured, and how."""

    record: RunRecord
    """Its record."""
    recipe: SWAPRecipe
    """As it was run."""
    dataset: Dataset
    """Its images, as many as are needed."""
    execution: Execution
    """How the arithmetic is done."""
    results: Path
    """The results folder."""
    processes: int
    """That measure."""
    say: Callable[[str], None]
    """Told of progress."""

    @property
    def run(self) -> "Run":
        """What a process is sent."""
        return Run(
            recipe=self.recipe,
            dataset=self.dataset,
            execution=self.execution,
            seed=self.record.seed,
        )

    def points_file(self, figure: int, settings: dict[str, Any]) -> PointsFile:
        """Where the finished points are until all are."""
        run_id = self.record.run_id
        path = self.results / folder_of(figure) / f"{file_name(figure, run_id)}.part.jsonl"
        execution = asdict(self.execution)
        key = {"figure": figure, "run_id": run_id, "settings": settings, "execution": execution}
        return PointsFile(path, key)

    def common(self, figure: int, settings: dict[str, Any]) -> dict[str, Any]:
        """What every record of a landscape says."""
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
class Run:
    """What a process needs to have a run's models again."""

    recipe: SWAPRecipe
    """Gives the net."""
    dataset: Dataset
    """Gives its classes."""
    execution: Execution
    """Gives its device and memory format."""
    seed: int
    """The run's."""

    def weights(self, rank: int) -> Weights:
        """A model on the device of this rank, which a process alone uses."""
        torch.set_num_threads(1)
        device = torch.device("cpu")
        if self.execution.device_type == "cuda":
            device = torch.device("cuda", rank)
            torch.cuda.set_device(device)
        net = self.execution.place(make_net(self.recipe, self.dataset), device)
        return Weights(net, set_apart=self.recipe.optimizer.set_apart)


@dataclass(frozen=True, kw_only=True)
class PlaneTask:
    """Errors of the marked models, points 0 to m - 1, and of the grid, row by row after them."""

    run: Run
    """Whose models."""
    files: tuple[Path, ...]
    """Of the marked models; the first three span the plane."""
    counts: Counts
    """Images of each point."""
    alphas: tuple[float, ...]
    """The grid's columns."""
    betas: tuple[float, ...]
    """The grid's rows."""

    def open_(self, rank: int) -> Callable[[int], Values]:
        """Load the models, and move the images to this rank's device."""
        run, weights = self.run, self.run.weights(rank)
        thetas = [load_theta(weights, path) for path in self.files]
        plane = plane_through(*thetas[:3])
        landscape = Landscape(
            run.recipe, run.dataset, weights, run.execution, self.counts, seed=run.seed
        )

        def evaluate(number: int) -> Values:
            if number < len(thetas):
                theta = thetas[number]
            else:
                row, column = divmod(number - len(thetas), len(self.alphas))
                theta = plane.at(self.alphas[column], self.betas[row])
            errors = landscape.errors(theta)
            return [errors.train, errors.test]

        return evaluate


@dataclass(frozen=True, kw_only=True)
class CosineTask:
    """Of the model after each epoch: cosine of -g and the direction to SWAP, |g|, the distance."""

    run: Run
    """Whose models."""
    files: tuple[Path, ...]
    """Of the models after each epoch, and of the output of SWAP last."""
    num_images: int
    """Of the batch that g is over."""

    def open_(self, rank: int) -> Callable[[int], Values]:
        """Load the output of SWAP, and move the batch to this rank's device."""
        run, weights = self.run, self.run.weights(rank)
        batch = FixedBatch(
            run.recipe, run.dataset, weights, seed=run.seed, num_images=self.num_images
        )
        swap = load_theta(weights, self.files[-1])

        def evaluate(number: int) -> Values:
            theta = load_theta(weights, self.files[number])
            gradient, towards = batch.gradient(theta), swap - theta
            return [cosine(-gradient, towards), float(gradient.norm()), float(towards.norm())]

        return evaluate


def survey_plane(figure: int, subject: Subject, counts: Counts, grid: int) -> PlaneRecord:
    """Measure Figure 2 or 3, and give its record; finished points are kept until it is written."""
    models = saved_models(figure, subject.record, subject.results)
    files = tuple(model.path for model in models)
    weights = Weights(make_net(subject.recipe, subject.dataset))
    thetas = [load_theta(weights, path) for path in files]
    plane = plane_through(*thetas[:3])
    places = [plane.place(theta) for theta in thetas]
    alphas, betas = grid_around([(place.alpha, place.beta) for place in places], grid)
    settings = {"grid": grid, "margin": MARGIN, **asdict(counts)}
    task = PlaneTask(
        run=subject.run, files=files, counts=counts, alphas=tuple(alphas), betas=tuple(betas)
    )
    values = evaluate_points(
        task,
        len(files) + grid * grid,
        subject.points_file(figure, settings),
        processes=subject.processes,
        say=subject.say,
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
        **subject.common(figure, settings),
        marked=marked,
        alphas=alphas,
        betas=betas,
        train_error=[[train for train, _ in row] for row in rows],
        test_error=[[test for _, test in row] for row in rows],
    )


def survey_cosines(subject: Subject, num_images: int) -> CosineRecord:
    """Measure Figure 4, and give its record; finished points are kept until it is written."""
    *models, swap = saved_models(4, subject.record, subject.results)
    files = (*(model.path for model in models), swap.path)
    settings = {"train_images": num_images, "micro_batch_size": GRADIENT_MICRO_BATCH}
    values = evaluate_points(
        CosineTask(run=subject.run, files=files, num_images=num_images),
        len(models),
        subject.points_file(4, settings),
        processes=subject.processes,
        say=subject.say,
    )
    return CosineRecord(
        **subject.common(4, settings),
        worker=WORKER,
        phase1_epochs=subject.record.phase1_epochs,
        rows=[_row(model, each) for model, each in zip(models, values, strict=True)],
    )


def _row(model: Saved, values: Values) -> CosineRow:
    similarity, gradient_norm, distance = values
    return CosineRow(
        phase=model.phase,
        epoch=model.epoch,
        cosine=similarity,
        gradient_norm=gradient_norm,
        distance=distance,
    )
