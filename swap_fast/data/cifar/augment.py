"""The augmentation plan: what happens to each image of an epoch, drawn in advance.

A plan follows from (seed, phase, worker, epoch) alone, so that every way of loading data, on any
number of processes and any device, shows the same images.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from swap_fast.config.phase import Augmentation

IMAGE_SIZE = 32


@dataclass(frozen=True, kw_only=True)
class AugmentationPlan:
    """One epoch: position i shows image `order[i]`, cropped, flipped and cut as entry i says.

    All arrays have length N.
    """

    order: NDArray[np.int64]
    """A permutation of the N images."""
    crop_y: NDArray[np.int64]
    """First row of the crop in the padded image, 0 to 2 * pad."""
    crop_x: NDArray[np.int64]
    """First column of the crop in the padded image, 0 to 2 * pad; the flip comes after the crop."""
    flip: NDArray[np.int64]
    """1 where the crop is mirrored left and right."""
    cutout_y: NDArray[np.int64]
    """First row of the square that is set to 0 in the crop."""
    cutout_x: NDArray[np.int64]
    """First column of that square."""
    cutout: int
    """The square's side; 0 means that nothing is cut."""

    def __len__(self) -> int:
        """N, the number of positions."""
        return len(self.order)

    def take(self, positions: NDArray[np.int64]) -> "AugmentationPlan":
        """The plan of one batch: that of these positions."""
        return AugmentationPlan(
            order=self.order[positions],
            crop_y=self.crop_y[positions],
            crop_x=self.crop_x[positions],
            flip=self.flip[positions],
            cutout_y=self.cutout_y[positions],
            cutout_x=self.cutout_x[positions],
            cutout=self.cutout,
        )


def plan_epoch(
    num_images: int, augmentation: Augmentation, *, seed: int, phase: int, worker: int, epoch: int
) -> AugmentationPlan:
    """Draw an epoch's order and augmentation.

    Phase 1 has one plan for all its replicas (worker 0), of which each takes a disjoint slice
    (Algorithm 1, line 11); in phase 2 each worker sees all the data in its own order (line 22).
    """
    random = np.random.default_rng(np.random.SeedSequence((seed, phase, worker, epoch)))
    order = random.permutation(num_images)
    offsets, places = 2 * augmentation.pad + 1, IMAGE_SIZE - augmentation.cutout + 1
    crop_y, crop_x = random.integers(offsets, size=(2, num_images))
    flip = random.integers(2 if augmentation.flip == "random" else 1, size=num_images)
    if augmentation.flip == "alternating":
        # A draw of its own, the same in all epochs: image n is mirrored in every other one.
        first = np.random.default_rng(np.random.SeedSequence((seed, phase, worker), spawn_key=(1,)))
        flip = (first.integers(2, size=num_images)[order] + epoch) % 2
    cutout_y, cutout_x = random.integers(places, size=(2, num_images))
    return AugmentationPlan(
        order=order,
        crop_y=crop_y,
        crop_x=crop_x,
        flip=flip,
        cutout_y=cutout_y,
        cutout_x=cutout_x,
        cutout=augmentation.cutout,
    )


def plain_plan(num_images: int, pad: int) -> AugmentationPlan:
    """The images as they are, in their own order: for evaluation and clean passes."""
    zeros, centre = np.zeros(num_images, np.int64), np.full(num_images, pad, np.int64)
    return AugmentationPlan(
        order=np.arange(num_images),
        crop_y=centre,
        crop_x=centre,
        flip=zeros,
        cutout_y=zeros,
        cutout_x=zeros,
        cutout=0,
    )
