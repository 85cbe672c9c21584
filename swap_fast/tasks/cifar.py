"""Which backend makes the batches: chosen by name, by recipe, and by what is there."""

import importlib
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from swap_fast.config.execution import Execution
from swap_fast.config.phase import Augmentation, BatchShape, Phase, StagedPhase
from swap_fast.config.recipe import AveragingRecipe, LoaderName, Recipe
from swap_fast.data.cifar.augment import IMAGE_SIZE, plain_plan, plan_epoch
from swap_fast.data.cifar.batches import (
    Batch,
    Batches,
    Loader,
    ShardSpec,
    StreamedBatches,
    one_pass,
    pass_plan,
)
from swap_fast.data.cifar.dataset import Channels, Dataset, Split
from swap_fast.data.cifar.resident import DeviceImages
from swap_fast.distributed import Comm
from swap_fast.training.evaluate import TEST_BATCH_SIZE, Evaluator, image_evaluator
from swap_fast.training.weights import Weights


def choose_loader(
    asked: LoaderName | Literal["auto"], of_recipe: LoaderName | None, device_type: str
) -> tuple[LoaderName, str | None]:
    """The backend of a run, and a line that says why where it is not the one that was named.

    "auto" is the recipe's own where it names one, and else the tensor backend, which is the
    fastest on CPUs, and on GPUs by the work that it has to do. A recipe names its loader for GPUs.
    """
    named = of_recipe if asked == "auto" else asked
    if named is None or named == "tensor":
        return "tensor", None
    missing = missing_for_dali(device_type) if named == "dali" else None
    if named == "dali" and asked == "auto" and device_type != "cuda":
        missing = missing or "no CUDA device, for which the recipe names it"
    if missing is None:
        return named, None
    return "tensor", f"loader {named}: {missing}; the tensor backend makes the batches"


def choose_decoder(
    asked: LoaderName | Literal["auto"], device_type: str
) -> tuple[Literal["dali", "torchvision"], str | None]:
    """What decodes the files of a tree, and a line that says why where DALI cannot.

    Raises:
        ValueError: the tensor backend, whose images are resident.
    """
    if asked == "tensor":
        raise ValueError(
            "loader: expected auto, dali or torchvision for a tree of files, got tensor"
        )
    missing = None if asked == "torchvision" else missing_for_dali(device_type)
    if asked != "torchvision" and missing is None:
        return "dali", None
    note = f"loader dali: {missing}; torchvision's DataLoader decodes the images"
    return "torchvision", note if missing else None


def missing_for_dali(device_type: str) -> str | None:
    """What DALI lacks on this machine to serve a type of device, in a few words; or None."""
    try:
        backend = importlib.import_module("nvidia.dali.backend")
    except (ImportError, OSError) as error:  # absent, or a library that it needs is
        reason = str(error).strip().partition("\n")[0]
        return f"DALI cannot be imported ({reason})"
    if device_type == "cuda" and backend.GetCUDADeviceCount() == 0:
        return "DALI finds no NVIDIA driver"
    return None


def warm_up_loader(execution: Execution) -> None:
    """Import what makes batches with the execution's backend, as no lap of training shall."""
    if execution.loader == "dali":
        from swap_fast.data.cifar.dali import define_once

        define_once()
    elif execution.loader == "torchvision":
        importlib.import_module("swap_fast.data.cifar.torchvision")


def loader_maker(
    images: DeviceImages,
    split: Split,
    augmentation: Augmentation,
    *,
    mean: Channels,
    std: Channels,
    execution: Execution,
    device: torch.device,
) -> Callable[[ShardSpec, Batch], Loader]:
    """What makes a phase's loader from this rank's share and the step's batch.

    Arguments:
        images: the training split on the device: the tensor backend's.
        split: the same images in memory, from which the others make their own.
        execution: names the backend.
        mean, std: of the three channels, on the scale 0..255.
    """
    if execution.loader == "tensor":
        return partial(Batches, images)
    options: dict[str, Any] = {
        **{"mean": mean, "std": std, "pad": augmentation.pad, "cutout": augmentation.cutout},
        **{"device": device, "threads": torch.get_num_threads()},
    }
    if execution.loader == "torchvision":
        from swap_fast.data.cifar.torchvision import TorchvisionImages

        return partial(StreamedBatches, TorchvisionImages(split, **options))
    from swap_fast.data.cifar.dali import DaliImages

    return partial(StreamedBatches, DaliImages(split, execution=execution, **options))


# A run's CIFAR images on this rank.


class CifarSource:
    """The training images that a recipe takes, and the test images.

    Raises:
        ValueError: fewer images than the recipe trains on, or a phase in stages.
    """

    image_size = IMAGE_SIZE

    def __init__(self, recipe: Recipe, dataset: Dataset) -> None:
        for number, phase in enumerate(recipe.phases, start=1):
            if isinstance(phase, StagedPhase):
                raise ValueError(
                    f"phase{number}: expected no stages for {recipe.dataset}, whose images "
                    f"have one size, got {len(phase.stages)}; take another recipe"
                )
        size = recipe.train_images or len(dataset.train)
        if size > len(dataset.train):
            raise ValueError(
                f"train_images: expected at most the data set's {len(dataset.train):,}, "
                f"got {size:,}"
            )
        self.num_images, self._recipe = size, recipe
        self._dataset: Dataset | None = dataset
        self._reserved: DeviceImages | None = None

    def warm_up(self, weights: Weights, execution: Execution) -> None:
        """Gather an image by each kind of plan, import the loader, evaluate black images."""
        assert self._dataset is not None, "a source is warmed up before it is opened"
        device, tests = weights.theta.device, len(self._dataset.test)
        split = black(1)
        batch = execution.empty_images((1, 3, IMAGE_SIZE, IMAGE_SIZE), device)
        labels = torch.zeros(1, dtype=torch.int64, device=device)
        augmentation, channels = self._recipe.augmentation, (1.0, 1.0, 1.0)
        of_phases = plan_epoch(1, augmentation, seed=0, phase=1, worker=0, epoch=0)
        pad = augmentation.pad
        for border, plan in ((pad, of_phases), (pad, plain_plan(1, pad)), (0, plain_plan(1, 0))):
            images = DeviceImages(split, mean=channels, std=channels, device=device, pad=border)
            images.load_(images.upload(plan), slice(0, 1), batch, labels)
        warm_up_loader(execution)
        # As many images as give a batch of each size that the test images give.
        test = DeviceImages(
            black(min(tests, TEST_BATCH_SIZE + tests % TEST_BATCH_SIZE)),
            mean=channels,
            std=channels,
            device=device,
        )
        image_evaluator(weights, test, execution, mirrored=self._recipe.mirrored_evaluation)()

    def resident_batches(
        self,
        phase: Phase,
        into: Batch,
        execution: Execution,
        *,
        number: int,
        replicas: range,
        seed: int,
    ) -> Batches | None:
        """Batches of black images, which `open_` replaces, where a captured step may load them."""
        if not execution.capture or execution.loader != "tensor":
            return None
        if self._reserved is None:
            self._reserved = DeviceImages(
                black(self.num_images),
                mean=(0.0, 0.0, 0.0),
                std=(1.0, 1.0, 1.0),
                device=into.labels.device,
                pad=self._recipe.augmentation.pad,
            )
        return Batches(self._reserved, self._share(phase, number, replicas, seed), into)

    def open_(self, weights: Weights, execution: Execution, *, seed: int) -> None:
        """Move the data to the weights' device, and forget what is not needed on the host."""
        assert self._dataset is not None, "a source is opened once"
        dataset, device = self._dataset, weights.theta.device
        train = dataset.train[: self.num_images]
        mean, std, pad = dataset.mean, dataset.std, self._recipe.augmentation.pad
        if self._reserved is None:
            self._images = DeviceImages(train, mean=mean, std=std, device=device, pad=pad)
        else:
            self._images = self._reserved
            self._images.fill_(train, mean=mean, std=std)
        test = DeviceImages(dataset.test, mean=mean, std=std, device=device)
        mirrored = self._recipe.mirrored_evaluation
        self._evaluator = image_evaluator(weights, test, execution, mirrored=mirrored)
        self._make_loader = loader_maker(
            self._images,
            train,
            self._recipe.augmentation,
            mean=mean,
            std=std,
            execution=execution,
            device=device,
        )
        self._seed, self._dataset = seed, None

    def batches(
        self, phase: Phase, shape: BatchShape, *, number: int, replicas: range, into: Batch
    ) -> Loader:
        return self._make_loader(self._share(phase, number, replicas, self._seed), into)

    def _share(self, phase: Phase, number: int, replicas: range, seed: int) -> ShardSpec:
        return ShardSpec(
            num_images=self.num_images,
            augmentation=self._recipe.augmentation,
            phase=phase,
            seed=seed,
            number=number,
            replicas=replicas,
        )

    def batch_norm_batches(self, buffer: Tensor, shape: BatchShape, comm: Comm) -> Iterable[Tensor]:
        """Every training image once, augmented where the recipe says so."""
        recipe = self._recipe
        assert isinstance(recipe, AveragingRecipe), "without a phase 2 nothing is averaged"
        augmentation = recipe.augmentation if recipe.batch_norm_augmented else None
        plan = pass_plan(self._images, augmentation, seed=self._seed)
        into = Batch(buffer, torch.zeros(len(buffer), dtype=torch.int64, device=buffer.device))
        return (batch.images for batch in one_pass(self._images, plan, into, comm))

    def evaluator(self, shape: BatchShape) -> Evaluator:
        return self._evaluator


def black(count: int) -> Split:
    """`count` black images of class 0."""
    images = np.zeros((count, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    return Split(images=images, labels=np.zeros(count, np.uint8))
