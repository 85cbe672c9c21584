"""Accuracy of a model on test data."""

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from swap_fast.config.execution import Execution
from swap_fast.data.cifar.augment import IMAGE_SIZE
from swap_fast.data.cifar.batches import Batch, one_pass, pass_plan
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
    mirrored: float | None = None
    """The class with the largest mean logit over the image and its mirror image is the right one;
    None where it is not measured."""

    @property
    def tested(self) -> float | None:
        """`top1`, and None where nothing is tested."""
        return None if math.isnan(self.top1) else self.top1


Evaluate = Callable[[Comm], Accuracies]
"""The model's accuracies on the test images, shared out over the ranks given."""

Count = tuple[Tensor | float, Tensor | float, Tensor | float]
"""Of a batch: right by the largest logit, right by a second measure (0: none), of all."""

IGNORED_TARGET = -100
"""A target that torch's cross entropy leaves out, and so does the accuracy."""


def logits_of(output: Any) -> Any:
    """The logits in what a net returns: its own `logits` (transformers), `out` (torchvision's
    segmentation), or the whole."""
    if isinstance(output, Mapping):
        return output.get("logits", output.get("out", output))
    return getattr(output, "logits", output)


def count_right(
    logits: Tensor, targets: Tensor, ignored: int = IGNORED_TARGET
) -> tuple[Tensor, Tensor]:
    """How many targets [B, ...] the largest logit [B, C, ...] gets right, and of how many.

    Arguments:
        ignored: the target that does not count.
    """
    kept = targets != ignored
    return ((logits.argmax(1) == targets) & kept).sum(), kept.sum()


def require_classes(targets: Tensor, num_classes: int, ignored: int = IGNORED_TARGET) -> None:
    """Refuse targets that are no class numbers. Waits for the device.

    Raises:
        ValueError: names the first.
    """
    wrong = targets[(targets != ignored) & ((targets < 0) | (targets >= num_classes))]
    if len(wrong):
        raise ValueError(
            f"targets: expected class numbers 0 to {num_classes - 1}, as the logits have, got "
            f"{int(wrong[0])}; number the classes from 0, and leave targets out by {ignored}"
        )


class Evaluator:
    """Accuracy of a model in eval mode on test data that the ranks share out.

    Arguments:
        batches: given the ranks, this rank's part of the data, batch by batch.
        count: runs the model on a batch and counts what is right.
        autocast: makes the context of each forward pass.
        second: what is counted beside the largest logit.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Callable[[Comm], Iterable[Any]],
        count: Callable[[Any], Count],
        autocast: Callable[[], AbstractContextManager[object]],
        device: torch.device,
        *,
        second: Literal["top5", "mirrored"] | None = None,
    ) -> None:
        self._model, self._batches, self._count = model, batches, count
        self._autocast, self._device, self._second = autocast, device, second

    @torch.no_grad()
    def __call__(self, comm: Comm = ALONE) -> Accuracies:
        """The shares that the model gets right; NaN where nothing is counted.

        With a `comm` all its ranks must call, and all get the accuracy over the whole data.
        """
        was_training = self._model.training
        self._model.eval()
        sums = torch.zeros(3, dtype=torch.float64, device=self._device)
        try:
            for batch in self._batches(comm):
                with self._autocast():
                    counts = self._count(batch)
                for place, value in enumerate(counts):
                    sums[place] += value
        finally:
            self._model.train(was_training)
        top1, also, total = comm.all_reduce_(sums).tolist()
        if not total:
            return Accuracies(math.nan)
        return Accuracies(top1 / total, **({self._second: also / total} if self._second else {}))


def image_evaluator(
    weights: Weights,
    images: DeviceImages,
    execution: Execution,
    *,
    mirrored: bool = False,
    batch_size: int = TEST_BATCH_SIZE,
) -> Evaluator:
    """Top-1 accuracy on resident images as they are.

    Arguments:
        mirrored: measure the accuracy of the mean logits of an image and its mirror image too
            (test-time augmentation, of which the paper says nothing).
        batch_size: images a forward pass.
    """
    model, device = weights.model, images.labels.device

    def count(batch: Batch) -> Count:
        logits, labels = model(batch.images), batch.labels
        right = (logits.argmax(1) == labels).sum()
        if not mirrored:
            return right, 0, len(labels)
        both = logits + model(batch.images.flip(3))
        return right, (both.argmax(1) == labels).sum(), len(labels)

    into = Batch.empty(batch_size, IMAGE_SIZE, execution, device)
    batches = partial(one_pass, images, pass_plan(images, None), into)
    second: Literal["mirrored"] | None = "mirrored" if mirrored else None
    return Evaluator(model, batches, count, execution.autocast, device, second=second)
