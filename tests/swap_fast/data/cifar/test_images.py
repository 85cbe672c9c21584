"""Batches on a device against images cropped, flipped, normalised and cut one by one in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_trainer import MEAN, STD, make_split, oracle_image
from torch import Tensor

from swap_fast.config.phase import Augmentation
from swap_fast.data.cifar.augment import AugmentationPlan, plain_plan, plan_epoch
from swap_fast.data.cifar.resident import DeviceImages

CPU = torch.device("cpu")
N = 24
SPLIT = make_split(N, 0)
AUGMENTATIONS = [
    Augmentation(),
    Augmentation(cutout=0),
    Augmentation(pad=0),
    Augmentation(flip="none"),
    Augmentation(pad=31, cutout=31),
    Augmentation(pad=1, cutout=32),
    Augmentation(pad=0, flip="none", cutout=0),
]


def resident(pad: int, *, raw: bool = False) -> DeviceImages:
    mean, std = ((0.0,) * 3, (1.0,) * 3) if raw else (MEAN, STD)
    return DeviceImages(SPLIT, mean=mean, std=std, device=CPU, pad=pad)


def draw(augmentation: Augmentation) -> AugmentationPlan:
    return plan_epoch(N, augmentation, seed=1, phase=1, worker=0, epoch=0)


def load(
    images: DeviceImages,
    plan: AugmentationPlan,
    positions: list[int] | slice,
    *,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.channels_last,
) -> tuple[Tensor, Tensor]:
    count = len(range(*positions.indices(N)) if isinstance(positions, slice) else positions)
    out = torch.full((count, 3, 32, 32), torch.nan, dtype=dtype).to(memory_format=memory_format)
    labels = torch.full((count,), -1)
    at = positions if isinstance(positions, slice) else torch.tensor(positions)
    images.load_(images.upload(plan), at, out, labels)
    assert out.is_contiguous(memory_format=memory_format)
    return out, labels


@pytest.mark.parametrize("augmentation", AUGMENTATIONS, ids=str)
def test_geometry_is_exact(augmentation: Augmentation) -> None:
    # With mean 0 and deviation 1 the values are the pixels; what is cut is compared elsewhere.
    plan = draw(augmentation)
    uncut = AugmentationPlan(**{**vars(plan), "cutout": 0})
    seen, _ = load(resident(augmentation.pad, raw=True), uncut, slice(0, N))
    for position in range(N):
        image = SPLIT.images[plan.order[position]]
        crop, _ = oracle_image(image, augmentation, plan, position)
        assert np.array_equal(seen[position].permute(1, 2, 0).numpy(), crop), position


@pytest.mark.parametrize("augmentation", AUGMENTATIONS, ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float16, 2e-3)])
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_values_are_the_oracle_s(
    augmentation: Augmentation,
    dtype: torch.dtype,
    tolerance: float,
    memory_format: torch.memory_format,
) -> None:
    plan = draw(augmentation)
    positions = [5, 0, 23, 11, 5]
    images = resident(augmentation.pad)
    seen, labels = load(images, plan, positions, dtype=dtype, memory_format=memory_format)
    for row, position in enumerate(positions):
        number = plan.order[position]
        _, expected = oracle_image(SPLIT.images[number], augmentation, plan, position)
        np.testing.assert_allclose(seen[row].double().numpy(), expected, rtol=0, atol=tolerance)
        assert labels[row] == SPLIT.labels[number]
    assert labels.dtype == torch.int64


def test_the_cut_square_is_exactly_zero_and_nothing_else_is() -> None:
    augmentation = Augmentation()
    plan = draw(augmentation)
    seen, _ = load(resident(4), plan, slice(0, N))
    for position in range(N):
        top, left = plan.cutout_y[position], plan.cutout_x[position]
        zero = (seen[position] == 0).all(0)
        expected = torch.zeros(32, 32, dtype=torch.bool)
        expected[top : top + 8, left : left + 8] = True
        assert torch.equal(zero, expected)


@pytest.mark.parametrize("positions", [slice(0, 1), slice(7, 12), slice(20, 24), [3]])
def test_slices_and_indices_are_the_same_batches(positions: list[int] | slice) -> None:
    plan, images = draw(Augmentation()), resident(4)
    whole, labels = load(images, plan, slice(0, N))
    part, part_labels = load(images, plan, positions)
    assert torch.equal(part, whole[positions])
    assert torch.equal(part_labels, labels[positions])


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_part_of_a_buffer_is_filled_and_no_more(
    dtype: torch.dtype, memory_format: torch.memory_format
) -> None:
    plan, images = draw(Augmentation()), resident(4)
    buffer = torch.full((9, 3, 32, 32), 7.0, dtype=dtype).to(memory_format=memory_format)
    labels = torch.full((9,), -1)
    images.load_(images.upload(plan), slice(10, 14), buffer[3:7], labels[3:7])
    expected = load(images, plan, slice(10, 14), dtype=dtype, memory_format=memory_format)
    assert torch.equal(buffer[3:7], expected[0])
    assert torch.equal(labels[3:7], expected[1])
    rest = torch.tensor([0, 1, 2, 7, 8])
    assert (buffer[rest] == 7).all()
    assert (labels[rest] == -1).all()


def test_the_plain_plan_shows_every_image_unchanged() -> None:
    for pad in (0, 4):
        seen, labels = load(resident(pad, raw=True), plain_plan(N, pad), slice(0, N))
        assert np.array_equal(seen.permute(0, 2, 3, 1).numpy(), SPLIT.images)
        assert labels.tolist() == SPLIT.labels.tolist()


def test_the_split_itself_is_not_written_to() -> None:
    before = SPLIT.images.copy()
    images = resident(0)
    assert len(images) == N
    load(images, draw(Augmentation(pad=0)), slice(0, N))
    assert np.array_equal(SPLIT.images, before)
