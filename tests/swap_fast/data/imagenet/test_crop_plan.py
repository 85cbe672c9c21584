"""ImageNet's plan: order, windows and centre crops, against torchvision's own."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from image_trees import encoded, texture
from PIL import Image
from scipy import stats

from swap_fast.data.imagenet.crops import (
    Crops,
    draw_windows,
    evaluation_batches,
    plan_crops,
)
from swap_fast.data.imagenet.torchvision import decode_crop


def sizes_of(count: int, height: int = 375, width: int = 500) -> np.ndarray:
    return np.tile(np.array([[height, width]], dtype=np.int32), (count, 1))


def planned(sizes: np.ndarray, **changed: int) -> Crops:
    arguments = {"seed": 1, "phase": 2, "worker": 0, "epoch": 0, **changed}
    return plan_crops(sizes, px=128, min_scale=0.08, **arguments)


def torchvision_windows(
    count: int, height: int, width: int, min_scale: float, ratio: tuple[float, float]
) -> np.ndarray:
    from torchvision.transforms import RandomResizedCrop

    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    draw = RandomResizedCrop.get_params
    return np.array([draw(image, (min_scale, 1.0), ratio) for _ in range(count)])


@pytest.mark.parametrize("min_scale", [0.08, 0.5])
@pytest.mark.parametrize(("height", "width"), [(375, 500), (90, 400), (61, 40)])
def test_windows_have_torchvisions_distribution(height: int, width: int, min_scale: float) -> None:
    count = 4_000
    theirs = torchvision_windows(count, height, width, min_scale, (3 / 4, 4 / 3))
    ours = draw_windows(sizes_of(count, height, width), min_scale, np.random.default_rng(3))
    for quantity in (
        lambda top, left, h, w: h * w / (height * width),
        lambda top, left, h, w: w / h,
        lambda top, left, h, w: top,
        lambda top, left, h, w: left,
        lambda top, left, h, w: top + h,
    ):
        p = stats.ks_2samp(quantity(*ours.T), quantity(*theirs.T)).pvalue
        assert p > 1e-3


def test_area_and_ratio_are_uniform_where_all_fits() -> None:
    """Against the formula: with windows of at most half the area nothing is drawn again."""
    window = draw_windows(sizes_of(20_000, 4_000, 4_000), 0.08, np.random.default_rng(0))
    area = window[:, 2].astype(float) * window[:, 3] / 4_000**2
    small = area[area < 0.5]
    assert stats.kstest(small, stats.uniform(0.08, 0.42).cdf).pvalue > 1e-3
    log_ratio = np.log(window[:, 3] / window[:, 2])[area < 0.5]
    low = math.log(3 / 4)
    assert stats.kstest(log_ratio, stats.uniform(low, -2 * low).cdf).pvalue > 1e-3


@pytest.mark.parametrize(("height", "width"), [(10, 2_000), (2_000, 10), (7, 64)])
def test_what_never_fits_gets_torchvisions_centre_window(height: int, width: int) -> None:
    ours = draw_windows(sizes_of(50, height, width), 0.9, np.random.default_rng(0))
    theirs = torchvision_windows(1, height, width, 0.9, (3 / 4, 4 / 3))
    assert (ours == theirs).all()


def test_windows_lie_inside_images_of_every_size() -> None:
    random = np.random.default_rng(5)
    sizes = random.integers(1, 60, size=(20_000, 2)).astype(np.int32)
    top, left, height, width = draw_windows(sizes, 0.08, random).T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (height > 0).all()
    assert (width > 0).all()
    assert (top + height <= sizes[:, 0]).all()
    assert (left + width <= sizes[:, 1]).all()


def test_an_epoch_shows_each_image_once_with_a_window_of_its_own_size() -> None:
    sizes = np.random.default_rng(0).integers(20, 600, size=(5_000, 2)).astype(np.int32)
    plan = planned(sizes)
    assert sorted(plan.image) == list(range(5_000))
    assert (plan.window[:, :2] + plan.window[:, 2:] <= sizes[plan.image]).all()
    assert abs(plan.flip.mean() - 0.5) < 0.03
    assert set(plan.flip) == {0, 1}
    assert (plan.resized == 128).all()
    assert plan.size == (128, 128)


@pytest.mark.parametrize("change", [{"worker": 1}, {"epoch": 1}, {"seed": 2}, {"phase": 1}])
def test_orders_windows_and_flips_are_independent(change: dict[str, int]) -> None:
    sizes = sizes_of(10_000)
    first, second = planned(sizes), planned(sizes, **change)
    place = [np.argsort(plan.image) for plan in (first, second)]
    assert abs(np.corrcoef(*place)[0, 1]) < 0.05
    for values in ("window", "flip"):
        of_image = [
            getattr(plan, values).reshape(10_000, -1)[at].T
            for plan, at in zip((first, second), place, strict=True)
        ]
        for one, other in zip(*of_image, strict=True):
            assert abs(np.corrcoef(one, other)[0, 1]) < 0.05
    assert (planned(sizes).image == first.image).all()


def test_the_order_of_the_files_says_nothing_of_the_order_in_the_epoch() -> None:
    place = np.argsort(planned(sizes_of(10_000)).image)
    assert abs(np.corrcoef(place, np.arange(10_000))[0, 1]) < 0.05


def as_torchvision(image: Image.Image, px: int, size: tuple[int, int]) -> np.ndarray:
    from torchvision.transforms.v2 import functional

    resized = functional.resize(image, [int(1.14 * px)])
    return np.asarray(functional.center_crop(resized, list(size)))


@pytest.mark.parametrize("px", [32, 45, 64])
@pytest.mark.parametrize("shape", [(97, 131), (131, 97), (60, 60), (33, 200), (52, 53), (20, 31)])
def test_centre_crops_are_torchvisions_pixel_for_pixel(shape: tuple[int, int], px: int) -> None:
    height, width = shape
    content = encoded(texture(0, 1, width, height), "PNG")
    (crops,) = evaluation_batches(
        sizes_of(1, height, width), px=px, batch_size=1, rectangular=False
    )
    image = texture(0, 1, width, height)
    assert (one_crop(content, crops) == as_torchvision(image, px, (px, px))).all()


def one_crop(content: bytes, crops: Crops, row: int = 0) -> np.ndarray:
    window, resized, start = (
        values[row].tolist() for values in (crops.window, crops.resized, crops.start)
    )
    return decode_crop(content, window, resized, start, int(crops.flip[row]), crops.size).numpy()


def test_rectangular_batches_follow_the_originals_rule() -> None:
    random = np.random.default_rng(0)
    sizes = random.integers(200, 600, size=(101, 2)).astype(np.int32)
    batches = evaluation_batches(sizes, px=288, batch_size=16, rectangular=True)
    together = np.concatenate([crops.image for crops in batches])
    assert sorted(together) == list(range(101))
    ratios = sizes[together, 1] / sizes[together, 0]
    assert (np.diff(ratios) >= 0).all()
    assert [len(crops) for crops in batches] == [16] * 6 + [5]
    for crops in batches:
        mean = np.mean([sizes[i, 1] / sizes[i, 0] for i in crops.image])
        height, width = crops.size
        assert min(height, width) == 288 or height == width == 288
        longer = 288 * mean if mean > 1 else 288 / mean
        assert 0 <= longer - max(height, width) < 8
        assert (width >= height) == (mean >= 1)
        assert (crops.resized.min(axis=1) == 328).all()


@pytest.mark.parametrize("shapes", [[(60, 90), (60, 96), (60, 80)], [(90, 40), (70, 60), (99, 20)]])
def test_rectangular_crops_are_torchvisions_pixel_for_pixel(
    shapes: list[tuple[int, int]],
) -> None:
    sizes = np.array(shapes, dtype=np.int32)
    (crops,) = evaluation_batches(sizes, px=64, batch_size=3, rectangular=True)
    for row, index in enumerate(crops.image):
        height, width = shapes[index]
        image = texture(1, 0, width, height)
        got = one_crop(encoded(image, "PNG"), crops, row)
        assert (got == as_torchvision(image, 64, crops.size)).all()


def test_rows_of_a_plan_are_a_plan() -> None:
    plan = planned(sizes_of(20))
    rows = np.array([3, 1])
    assert (plan[rows].window == plan.window[rows]).all()
    assert len(plan[5:9]) == 4
    assert plan[5:9].size == plan.size
