"""The net and the data of one of our own runs, to try averages of its workers on."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from swap_fast.averaging_files.evaluate import Trial
from swap_fast.averaging_files.origins import read_run
from swap_fast.config.execution import Execution, default_execution
from swap_fast.config.recipe import SWAPRecipe, swap_recipe_again
from swap_fast.config.stages import Shape, shapes
from swap_fast.data.cifar.dataset import Dataset
from swap_fast.data.cifar.find import load_dataset, locate_dataset
from swap_fast.distributed import ALONE
from swap_fast.models import make_net
from swap_fast.tasks.cifar_source import CifarSource
from swap_fast.training.weights import Weights


def runs_trial(folder: Path, data: Path | None, device: torch.device) -> Trial:
    """The net of a run, its training images, and those that it was tested on.

    Arguments:
        data: where its data set is; None: where runs look for it.

    Raises:
        ValueError: a run of a tree of files, or other images than the run's.
    """
    about = read_run(folder)
    if about["recipe"]["dataset"] == "imagenet":
        raise ValueError(
            f"{folder}: expected a run on images in memory, got one of a tree of files; give "
            "--model and --data of your own, or --no-trial"
        )
    recipe = swap_recipe_again(about["recipe"], str(folder))
    assert recipe.dataset != "imagenet", "it was refused"
    dataset = load_dataset(recipe.dataset, locate_dataset(recipe.dataset, data))
    if dataset.sha256 != about["data"].get("sha256"):
        raise ValueError(
            f"{folder}: expected the images of {about['data'].get('name')} that the run had, got a "
            "set of other content; say where they are by --data-dir DIR"
        )
    execution = _execution(about, device)
    weights = Weights(
        execution.place(make_net(recipe, dataset), device), set_apart=recipe.optimizer.set_apart
    )
    images = RunImages(recipe, dataset, weights, execution, seed=about["seed"])
    return Trial(weights, images, execution.autocast)


class RunImages:
    """A run's own images: those of its batch-norm pass, and the test images."""

    splits: tuple[str, ...] = ("test",)
    trains = True

    def __init__(
        self,
        recipe: SWAPRecipe,
        dataset: Dataset,
        weights: Weights,
        execution: Execution,
        *,
        seed: int,
    ) -> None:
        self._source = CifarSource(recipe, dataset)
        self._source.open_(weights, execution, seed=seed)
        self._shape: Shape = shapes(recipe.phase2, self._source.image_size)[-1]
        side = self._shape.image_size
        self._buffer = execution.empty_images(
            (recipe.batch_norm_batch_size, 3, side, side), weights.theta.device
        )
        self._evaluate = self._source.evaluator(self._shape)

    def batches(self) -> Iterable[Tensor]:
        """The batches of phase 3's pass, as the run had them."""
        return self._source.batch_norm_batches(self._buffer, self._shape, ALONE)

    def accuracy(self, split: str) -> float:
        """Top-1 accuracy on the images that the run was tested on."""
        return self._evaluate(ALONE).top1


def _execution(about: dict[str, Any], device: torch.device) -> Execution:
    """The run's own arithmetic where it can be had here."""
    try:
        execution = Execution(**about["execution"])
    except (KeyError, TypeError, ValueError):
        return default_execution(device.type)
    return execution if execution.device_type == device.type else default_execution(device.type)
