"""Accuracy of a model on a split."""

import math
from typing import NamedTuple

import torch

from swap_fast.config.execution import Execution
from swap_fast.data.cifar.augment import plain_plan
from swap_fast.data.cifar.batches import deal
from swap_fast.data.cifar.resident import DeviceImages
from swap_fast.distributed import ALONE, Comm
from swap_fast.training.weights import Weights

TEST_BATCH_SIZE = 500
"""Images of a forward pass, unless another number is given."""


class Accuracies(NamedTuple):
    """Shares of the test images, as fractions."""

    top1: float
    """The class with the largest logit is the right one; NaN where nothing is tested."""
    top5: float | None = None
    """One of the five with the largest is; None where it is not measured."""

    @property
    def tested(self) -> float | None:
        """`top1`, and None where nothing is tested."""
        return None if math.isnan(self.top1) else self.top1


class Evaluator:
    """Top-1 accuracy on the images of a split as they are.

    Arguments:
        images: the split; its batches are dealt out to the ranks.
        mirrored: take the mean logits of an image and its mirror image (test-time augmentation,
            of which the paper says nothing).
        batch_size: images a forward pass.
    """

    def __init__(
        self,
        weights: Weights,
        images: DeviceImages,
        execution: Execution,
        *,
        mirrored: bool = False,
        batch_size: int = TEST_BATCH_SIZE,
    ) -> None:
        self._weights, self._split, self._execution = weights, images, execution
        self._mirrored = mirrored
        device = images.labels.device
        self._images = execution.empty_images((batch_size, 3, 32, 32), device)
        self._labels = torch.zeros(batch_size, dtype=torch.int64, device=device)
        self._plan = images.upload(plain_plan(len(images), images.pad))

    @torch.no_grad()
    def __call__(self, comm: Comm = ALONE) -> Accuracies:
        """The share of images that the model in eval mode gets right.

        With a `comm` all its ranks must call, and all get the accuracy over the whole split.
        """
        model, batch = self._weights.model, (self._images, self._labels)
        was_training = model.training
        model.eval()
        correct = torch.zeros((), dtype=torch.int64, device=self._labels.device)
        try:
            for images, labels in deal(self._split, self._plan, *batch, comm):
                with self._execution.autocast():
                    logits = model(images)
                    if self._mirrored:
                        logits = logits + model(images.flip(3))
                correct += (logits.argmax(1) == labels).sum()
        finally:
            model.train(was_training)
        return Accuracies(comm.all_reduce_(correct).item() / len(self._split))
