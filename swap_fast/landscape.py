"""The loss landscape of a run: planes through models, errors on them, the angle of descent.

Figures 2 and 3 show train and test error on the plane through three weight vectors, Figure 4 the
cosine between -g and the direction to the output of SWAP (Sections 4.1 and 4.2).
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from swap_fast.config.checks import check
from swap_fast.config.execution import Execution
from swap_fast.config.recipe import AveragingRecipe
from swap_fast.data.cifar.augment import plan_epoch
from swap_fast.data.cifar.batches import Batch, one_pass, pass_plan
from swap_fast.data.cifar.dataset import Dataset
from swap_fast.data.cifar.resident import DeviceImages
from swap_fast.training.batchnorm import BatchNormRecompute
from swap_fast.training.evaluate import image_evaluator
from swap_fast.training.weights import Weights

MARGIN = 0.6
"""Of a grid around its points, as a share of their largest distance. With two workers the second is
as far beyond SWAP as the first is before it: the frame of Figure 2 has room for it."""

GRADIENT_IMAGES = 4096
"""Figure 4's fixed training batch: the large batch of Table 5."""
GRADIENT_MICRO_BATCH = 512
"""Images that share batch-norm statistics, as on a device of phase 1."""
GRADIENT_PLAN = 4
"""In place of a phase's number, so that the plan is not one of training."""


@dataclass(frozen=True, kw_only=True)
class Coordinates:
    """A weight vector's projection on a plane, and its distance from the plane."""

    alpha: float
    """Along u, a distance in weight space."""
    beta: float
    """Along v."""
    off_plane: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Plane:
    """theta(alpha, beta) = origin + alpha u + beta v, with u and v orthonormal."""

    origin: Tensor
    """[P]."""
    u: Tensor
    """[P], of length 1."""
    v: Tensor
    """[P], of length 1 and at right angles to u."""

    def at(self, alpha: float, beta: float) -> Tensor:
        """The weight vector [P] with these coordinates."""
        return torch.add(self.origin, self.u, alpha=alpha).add_(self.v, alpha=beta)

    def coordinates(self, theta: Tensor) -> Coordinates:
        """Of a weight vector [P]."""
        offset = (theta - self.origin).double()
        alpha, beta = float(offset @ self.u.double()), float(offset @ self.v.double())
        rest = offset - alpha * self.u.double() - beta * self.v.double()
        return Coordinates(alpha=alpha, beta=beta, off_plane=float(rest.norm()))


def plane_through(first: Tensor, second: Tensor, third: Tensor) -> Plane:
    """The plane through three weight vectors [P]: u along second - first, v by Gram-Schmidt.

    Raises:
        ValueError: they are on one line.
    """
    u = (second - first).double()
    towards = (third - first).double()
    lengths = float(u.norm()), float(towards.norm())
    if min(lengths) > 0:
        u = u / lengths[0]
        v = towards - (towards @ u) * u
        v = v - (v @ u) * u  # again, to remove the rounding of the first time
        if (height := float(v.norm())) > 1e-6 * max(lengths):
            return Plane(origin=first, u=u.to(first.dtype), v=(v / height).to(first.dtype))
    raise ValueError(
        "plane: expected three models that are not on one line, got some that are; take three "
        "that were trained apart"
    )


def grid_around(
    coordinates: Iterable[tuple[float, float]], count: int
) -> tuple[list[float], list[float]]:
    """A grid around points: its coordinates along u and along v, `count` each, at equal steps.

    Arguments:
        coordinates: (alpha, beta) of two points or more.
    """
    points = torch.tensor(list(coordinates), dtype=torch.float64)  # [points, 2]
    border = MARGIN * torch.pdist(points).max()
    low, high = points.amin(0) - border, points.amax(0) + border
    alphas, betas = (
        torch.linspace(float(a), float(b), count, dtype=torch.float64).tolist()
        for a, b in zip(low, high, strict=True)
    )
    return alphas, betas


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How many images are used for each part of an error: the first, since the order is random."""

    batch_norm_images: int
    """Training images of the pass that computes batch-norm statistics."""
    train_images: int
    """Training images of the train error, not augmented."""
    test_images: int

    def __post_init__(self) -> None:
        for name, least in (("batch_norm_images", 2), ("train_images", 1), ("test_images", 1)):
            check(self, name, getattr(self, name) >= least, f"{least} or more")

    @property
    def total(self) -> int:
        """Images that pass through the net for one point."""
        return self.batch_norm_images + self.train_images + self.test_images

    def within(self, train: int, test: int) -> "Counts":
        """At most as many as there are."""
        return Counts(
            batch_norm_images=min(self.batch_norm_images, train),
            train_images=min(self.train_images, train),
            test_images=min(self.test_images, test),
        )


@dataclass(frozen=True, kw_only=True)
class Errors:
    """Error rates of a model, as fractions."""

    train: float
    test: float


class Landscape:
    """Errors of weight vectors, each with its own batch-norm statistics.

    These are computed as in phase 3 (Algorithm 1, line 29) over the counted images: with all images
    the output of SWAP has exactly the test error of its run.

    Arguments:
        weights: the model, whose weights and statistics are overwritten.
        seed: the run's, for the augmentation of the pass.
    """

    def __init__(
        self,
        recipe: AveragingRecipe,
        dataset: Dataset,
        weights: Weights,
        execution: Execution,
        counts: Counts,
        *,
        seed: int,
    ) -> None:
        self._weights = weights
        device = weights.theta.device
        on_device = partial(DeviceImages, mean=dataset.mean, std=dataset.std, device=device)
        passed = on_device(dataset.train[: counts.batch_norm_images], pad=recipe.augmentation.pad)
        self._statistics_pass = BatchNormRecompute(weights, execution.autocast)
        augmentation = recipe.augmentation if recipe.batch_norm_augmented else None
        self._batches = partial(
            one_pass,
            passed,
            pass_plan(passed, augmentation, seed=seed),
            Batch.empty(recipe.batch_norm_batch_size, 32, execution, device),
        )
        self._on_train, self._on_test = (
            image_evaluator(weights, on_device(split), execution)
            for split in (dataset.train[: counts.train_images], dataset.test[: counts.test_images])
        )

    def errors(self, theta: Tensor) -> Errors:
        """Train and test error of the weights theta [P]."""
        self._weights.load_(theta, self._weights.statistics)
        self._statistics_pass(batch.images for batch in self._batches())
        return Errors(train=1 - self._on_train().top1, test=1 - self._on_test().top1)


class FixedBatch:
    """Figure 4's g: the mean gradient over one batch of augmented training images.

    In train mode, of the loss alone (no weight decay), in slices with their own batch-norm
    statistics. Of the model only the gradient changes.

    Arguments:
        seed: the run's, for the augmentation.
    """

    def __init__(
        self,
        recipe: AveragingRecipe,
        dataset: Dataset,
        weights: Weights,
        *,
        seed: int,
        num_images: int = GRADIENT_IMAGES,
        micro_batch_size: int = GRADIENT_MICRO_BATCH,
    ) -> None:
        self._weights, self._label_smoothing = weights, recipe.label_smoothing
        device, split = weights.theta.device, dataset.train[:num_images]
        augmentation = recipe.augmentation
        images = DeviceImages(
            split, mean=dataset.mean, std=dataset.std, device=device, pad=augmentation.pad
        )
        plan = plan_epoch(
            len(split), augmentation, seed=seed, phase=GRADIENT_PLAN, worker=0, epoch=0
        )
        size, self.num_images = min(micro_batch_size, len(split)), len(split)
        # float32 on every device: the small gradients of late epochs then need no loss scale.
        buffer = torch.empty((size, 3, 32, 32), device=device)
        labels = torch.zeros(size, dtype=torch.int64, device=device)
        into = Batch(buffer.to(memory_format=torch.channels_last), labels)
        self._slices = partial(one_pass, images, images.upload(plan), into)

    def gradient(self, theta: Tensor) -> Tensor:
        """The gradient [P] at the weights theta [P]."""
        model, weights = self._weights.model, self._weights
        former, was_training = weights.copy(), model.training
        weights.load_(theta, former[1])
        weights.gradient.zero_()
        try:
            model.train()
            for images, labels in self._slices():
                loss = F.cross_entropy(
                    model(images), labels, reduction="sum", label_smoothing=self._label_smoothing
                )
                (loss / self.num_images).backward()
        finally:
            model.train(was_training)
            weights.load_(*former)
        return weights.gradient.clone()


def cosine(a: Tensor, b: Tensor) -> float:
    """The cosine of two vectors [P]: <a, b> / (|a| |b|)."""
    return float(torch.dot(a.double(), b.double()) / (a.double().norm() * b.double().norm()))


def cut(dataset: Dataset, train_images: int, test_images: int) -> Dataset:
    """The first images of both splits; the hash is still that of the whole set."""
    return replace(dataset, train=dataset.train[:train_images], test=dataset.test[:test_images])
