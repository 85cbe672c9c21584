"""CIFAR's data of a run on this rank: resident on the device."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from swap_fast.config.execution import Execution
from swap_fast.config.phase import Phase
from swap_fast.config.recipe import AveragingRecipe, Recipe
from swap_fast.config.stages import Shape, StagedPhase
from swap_fast.data.cifar.augment import IMAGE_SIZE, plain_plan, plan_epoch
from swap_fast.data.cifar.batches import Loader, Share, one_pass
from swap_fast.data.cifar.dataset import Dataset, Split
from swap_fast.data.cifar.resident import DeviceImages
from swap_fast.distributed import Comm
from swap_fast.tasks.cifar import loader_maker, warm_up_loader
from swap_fast.training.evaluate import TEST_BATCH_SIZE, Evaluator
from swap_fast.training.weights import Weights


class CifarSource:
    """The training images that a recipe takes, and the test images.

    Raises:
        ValueError: fewer images than the recipe trains on, or a phase in stages.
    """

    image_size = IMAGE_SIZE

    def __init__(self, recipe: Recipe, dataset: Dataset) -> None:
        phases = [recipe.phase1, *([recipe.phase2] if isinstance(recipe, AveragingRecipe) else [])]
        for number, phase in enumerate(phases, start=1):
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

    def warm_up(self, weights: Weights, execution: Execution) -> None:
        """Gather an image in each of the run's ways, import the loader, evaluate black images."""
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
        Evaluator(weights, test, execution, mirrored=self._recipe.mirrored_evaluation)()

    def open_(self, weights: Weights, execution: Execution, *, seed: int) -> None:
        """Move the data to the weights' device, and forget what is not needed on the host."""
        assert self._dataset is not None, "a source is opened once"
        dataset, device, size = self._dataset, weights.theta.device, self.num_images
        train = Split(images=dataset.train.images[:size], labels=dataset.train.labels[:size])
        mean, std, pad = dataset.mean, dataset.std, self._recipe.augmentation.pad
        self._images = DeviceImages(train, mean=mean, std=std, device=device, pad=pad)
        test = DeviceImages(dataset.test, mean=mean, std=std, device=device)
        mirrored = self._recipe.mirrored_evaluation
        self._evaluator = Evaluator(weights, test, execution, mirrored=mirrored)
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

    def batches(self, phase: Phase, shape: Shape, *, number: int, slots: range) -> Loader:
        """Makes the phase's batches with the execution's backend."""
        share = Share(
            num_images=self.num_images,
            augmentation=self._recipe.augmentation,
            phase=phase,
            seed=self._seed,
            number=number,
            slots=slots,
        )
        return self._make_loader(share)

    def batch_norm_batches(self, buffer: Tensor, shape: Shape, comm: Comm) -> Iterable[Tensor]:
        """Every training image once, augmented where the recipe says so."""
        recipe = self._recipe
        assert isinstance(recipe, AveragingRecipe), "without a phase 2 nothing is averaged"
        augmentation = recipe.augmentation if recipe.batch_norm_augmented else None
        return one_pass(self._images, augmentation, buffer, seed=self._seed, comm=comm)

    def evaluator(self, shape: Shape) -> Evaluator:
        """Top-1 accuracy, the same in all epochs."""
        return self._evaluator


def black(count: int) -> Split:
    """So many black images of class 0."""
    images = np.zeros((count, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    return Split(images=images, labels=np.zeros(count, np.uint8))
