"""The crops of ImageNet's images: the plan of a training epoch, and of a test pass.

A plan depends only on (seed, phase, worker, epoch) and the images' sizes, so that every decoder, on
any number of processes and any device, makes the same crops in the same order.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

RATIOS = (3 / 4, 4 / 3)
"""Least and greatest width over height of a random window."""

TRIES = 10
RESIZE_FACTOR = 1.14
"""The shorter side before a centre crop, over the crop's side."""

Ints = NDArray[np.int32]


@dataclass(frozen=True, kw_only=True)
class Crops:
    """Crops, one a row: a window of an image, which is resized, cropped again and mirrored.

    Training resizes a random window to the crop's size; a test resizes the whole image and crops
    its centre.
    """

    image: NDArray[np.int64]
    """[n]: the image's index in the split."""
    window: Ints
    """[n, 4]: top, left, height, width in the decoded image."""
    resized: Ints
    """[n, 2]: height and width of the resized window."""
    start: Ints
    """[n, 2]: first row and column of the crop in it; outside of it the crop is black."""
    flip: Ints
    """[n]: 1 where the crop is mirrored left and right."""
    size: tuple[int, int]
    """Height and width of every crop."""

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, rows: slice | NDArray[np.int64]) -> "Crops":
        return replace(
            self,
            image=self.image[rows],
            window=self.window[rows],
            resized=self.resized[rows],
            start=self.start[rows],
            flip=self.flip[rows],
        )


def plan_crops(
    sizes: Ints, *, px: int, min_scale: float, seed: int, phase: int, worker: int, epoch: int
) -> Crops:
    """Draw an epoch's order, random resized crops and flips.

    Arguments:
        sizes: [N, 2], height and width of each image of the split.
        px: the crop's side.
        min_scale: least share of an image's area in a window.
        phase, worker, epoch: as for CIFAR; phase 1 has one plan for all its replicas (worker 0),
            and in phase 2 each worker has its own.

    Returns:
        All N images, each once, in a random order that is independent between workers and epochs.
    """
    random = np.random.default_rng(np.random.SeedSequence((seed, phase, worker, epoch)))
    order = random.permutation(len(sizes))
    window = draw_windows(sizes[order], min_scale, random)
    flip = random.integers(2, size=len(sizes), dtype=np.int32)
    return Crops(
        image=order,
        window=window,
        resized=np.full((len(sizes), 2), px, np.int32),
        start=np.zeros((len(sizes), 2), np.int32),
        flip=flip,
        size=(px, px),
    )


def draw_windows(sizes: Ints, min_scale: float, random: np.random.Generator) -> Ints:
    """Random windows with the distribution of torchvision's RandomResizedCrop, for all images.

    The share of the area is uniform in (min_scale, 1), the logarithm of width over height uniform
    between those of 3/4 and 4/3, the place uniform. A window that does not fit is drawn again, at
    most ten times; then it is the largest centred window with a ratio within the limits.

    Returns:
        [N, 4]: top, left, height, width.
    """
    height, width = sizes[:, 0].astype(np.int64), sizes[:, 1].astype(np.int64)
    window_height, window_width = _largest_within_ratios(height, width)
    fallback_top = (height - window_height) // 2
    fallback_left = (width - window_width) // 2
    waiting = np.arange(len(sizes))
    for _ in range(TRIES):
        area = height[waiting] * width[waiting] * random.uniform(min_scale, 1, len(waiting))
        log_ratio = random.uniform(math.log(RATIOS[0]), math.log(RATIOS[1]), len(waiting))
        ratio = np.exp(log_ratio)
        tried_width = np.rint(np.sqrt(area * ratio)).astype(np.int64)
        tried_height = np.rint(np.sqrt(area / ratio)).astype(np.int64)
        fits = (tried_width > 0) & (tried_width <= width[waiting])
        fits &= (tried_height > 0) & (tried_height <= height[waiting])
        window_height[waiting[fits]] = tried_height[fits]
        window_width[waiting[fits]] = tried_width[fits]
        waiting = waiting[~fits]
    top = random.integers(height - window_height + 1)
    left = random.integers(width - window_width + 1)
    top[waiting], left[waiting] = fallback_top[waiting], fallback_left[waiting]
    return np.stack([top, left, window_height, window_width], axis=1).astype(np.int32)


def _largest_within_ratios(
    height: NDArray[np.int64], width: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Height and width of the largest windows whose ratio is within the limits."""
    ratio = width / height
    narrow, wide = ratio < RATIOS[0], ratio > RATIOS[1]
    return (
        np.where(narrow, np.rint(width / RATIOS[0]).astype(np.int64), height),
        np.where(wide, np.rint(height * RATIOS[1]).astype(np.int64), width),
    )


def evaluation_batches(sizes: Ints, *, px: int, batch_size: int, rectangular: bool) -> list[Crops]:
    """Centre crops of all images in batches, the shorter side resized to int(1.14 * px).

    Arguments:
        rectangular: sort the images by aspect ratio, and crop each batch to its mean ratio, as the
            original does at 288 px: the crop's shorter side is px, its longer one px times the
            ratio, rounded down to a multiple of 8. So little of an image is cut off, and a batch
            is still one tensor. Else all crops are px by px.
    """
    ratios = sizes[:, 1] / sizes[:, 0]
    order = np.argsort(ratios, kind="stable") if rectangular else np.arange(len(sizes))
    batches = []
    for start in range(0, len(order), batch_size):
        rows, size = order[start : start + batch_size], (px, px)
        if rectangular:
            mean = round(float(ratios[rows].mean()), 5)
            size = (int(px / mean) // 8 * 8, px) if mean < 1 else (px, int(px * mean) // 8 * 8)
        batches.append(_centre(rows, sizes[rows], px, size))
    return batches


def _centre(image: NDArray[np.int64], sizes: Ints, px: int, size: tuple[int, int]) -> Crops:
    """Centre crops of whole images, with torchvision's roundings."""
    short = int(RESIZE_FACTOR * px)
    height, width = sizes[:, 0].astype(np.int64), sizes[:, 1].astype(np.int64)
    shorter = np.minimum(height, width)
    resized = np.stack([short * height // shorter, short * width // shorter], axis=1)
    room = resized - np.array(size)
    # Where there is no room, torchvision adds a black border, the smaller part of an odd one at the
    # start; else it rounds half of the room to the nearest even number.
    start = np.where(room < 0, -(-room // 2), np.rint(room / 2).astype(np.int64))
    zeros = np.zeros(len(sizes), np.int32)
    return Crops(
        image=image,
        window=np.stack([zeros, zeros, sizes[:, 0], sizes[:, 1]], axis=1),
        resized=resized.astype(np.int32),
        start=start.astype(np.int32),
        flip=zeros,
        size=size,
    )
