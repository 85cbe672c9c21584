"""Which run a figure shows, the weights that it needs, and how long making them takes. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.records.grouping import recipe_of
from swap_fast.config.recipe import SWAPRecipe, swap_recipe_again
from swap_fast.recipes.cifar10 import RECIPES
from swap_fast.record import RunRecord, read_record, read_records

WORKER = 0
"""Whose path Figure 4 shows, and whose end is Figure 2's SGD."""


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A model that a run has saved."""

    name: str
    """As a figure has it."""
    path: Path
    """Its weights."""
    phase: int
    """In which it was made; 3 for the average."""
    epoch: int
    """Of that phase, from 1; 0 for the average."""


def saved_models(figure: int, record: RunRecord, results: Path) -> list[Saved]:
    """The models of Figure 2, 3 or 4, the output of SWAP last, whether they are there or not.

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
        # Its end is in every run's folder, its epochs in that of the run whose phase 1 it was.
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
    """The run that a figure shows: the one named, or the lowest seed's that has all it needs.

    Figure 1 needs the record alone.

    Raises:
        ValueError: no such run, it is not of SWAP on images in memory, or its weights are gone.
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
    """The lowest seed that no run of the recipe has: a seed's second run would count twice."""
    records, _ = read_records(results / "runs")
    taken = {record.seed for record in records if record.recipe == recipe}
    return min(set(range(len(taken) + 1)) - taken)


def runs_of(results: Path, recipe: str) -> list[RunRecord]:
    """The recipe's runs as it stands, the newest last."""
    records, _ = read_records(results / "runs")
    fitting = [r for r in records if r.recipe == recipe and r.method == "swap" and not r.overrides]
    return sorted(fitting, key=lambda record: record.created)


def image_s(record: RunRecord) -> float | None:
    """Seconds that one thread, or device, took for an image of the batch-norm pass."""
    seconds = max(laps.get("batch_norm", 0.0) for laps in record.times.laps_by_rank)
    units = record.world_size
    if record.machine["device_type"] == "cpu":
        units *= record.threads
    images = record.data["train_images"]
    return seconds * units / images if seconds > 0 else None


def recipe_again(record: RunRecord) -> SWAPRecipe:
    """The recipe that a record was run with, whatever was changed in it.

    Raises:
        ValueError: it has fields that this version does not know.
    """
    return swap_recipe_again(recipe_of(record), record.run_id)


def swap_recipe(name: str) -> SWAPRecipe:
    """The recipe of that name.

    Raises:
        ValueError: it is not of SWAP, or of a tree of files.
    """
    recipe = RECIPES[name]()
    if not isinstance(recipe, SWAPRecipe):
        raise ValueError(f"recipe: expected one of SWAP such as cifar10_cpu, got {name}")
    return recipe


def _check(figure: int, record: RunRecord) -> None:
    if record.method != "swap":
        raise ValueError(f"run: expected one of SWAP, got {record.run_id} of {record.method}")
    if figure > 1 and recipe_of(record)["dataset"] == "imagenet":
        raise ValueError(
            f"run: figure {figure} is of CIFAR's images in memory, got {record.run_id} of a tree"
        )


def _absent(figure: int, record: RunRecord, results: Path) -> Sequence[Path]:
    if figure == 1:
        return []
    return [m.path for m in saved_models(figure, record, results) if not m.path.is_file()]
