"""The augmentation plan: its distributions, independence, and that it stays the same for ever."""

from __future__ import annotations

import hashlib
from dataclasses import astuple, fields
from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray

from swap_fast.config.phase import Augmentation
from swap_fast.data.cifar.augment import AugmentationPlan, plain_plan, plan_epoch

N = 50_000
ARRAYS = [f.name for f in fields(AugmentationPlan) if f.name != "cutout"]


def draw(
    num_images: int = N, augmentation: Augmentation | None = None, **changed: int
) -> AugmentationPlan:
    where = {"seed": 0, "phase": 1, "worker": 0, "epoch": 0} | changed
    return plan_epoch(num_images, augmentation or Augmentation(), **where)


def assert_uniform(values: NDArray[np.int64], num_values: int) -> None:
    """A chi-square test at 99.9%, by Wilson and Hilferty's formula; the seeds are fixed."""
    counts = np.bincount(values, minlength=num_values)
    assert len(counts) == num_values
    expected = len(values) / num_values
    statistic = ((counts - expected) ** 2 / expected).sum()
    spread = 2 / (9 * (num_values - 1))
    low, high = ((num_values - 1) * (1 - spread + z * spread**0.5) ** 3 for z in (-3.09, 3.09))
    assert low < statistic < high


@pytest.mark.parametrize("seed", [0, 1])
def test_offsets_flips_and_cutouts_are_uniform(seed: int) -> None:
    plan = draw(seed=seed)
    assert_uniform(plan.crop_y * 9 + plan.crop_x, 81)
    assert_uniform(plan.cutout_y * 25 + plan.cutout_x, 625)
    # One degree of freedom is too few for a two-sided test: within 3.3 standard deviations.
    assert abs(plan.flip.sum() - N / 2) < 3.3 * (N / 4) ** 0.5
    assert_uniform((plan.crop_y * 9 + plan.crop_x) * 2 + plan.flip, 162)
    # Whatever happens to an image, it does not depend on its place in the order.
    assert_uniform(plan.order // (N // 25) * 25 + plan.cutout_x, 625)


def test_ranges_follow_the_augmentation() -> None:
    plan = draw(2_000, Augmentation(pad=1, flip="none", cutout=30))
    for name, top in (("crop_y", 2), ("crop_x", 2), ("cutout_y", 2), ("cutout_x", 2), ("flip", 0)):
        values = getattr(plan, name)
        assert (values.min(), values.max()) == (0, top), name
    assert plan.cutout == 30
    none = draw(100, Augmentation(pad=0, flip="none", cutout=0))
    assert not any(getattr(none, n).any() for n in ("crop_y", "crop_x", "flip"))
    assert none.cutout == 0
    assert sorted(none.order) == list(range(100))


@pytest.mark.parametrize("num_images", [1, 2, 97, 10_000])
def test_the_order_is_a_permutation(num_images: int) -> None:
    plan = draw(num_images)
    assert np.array_equal(np.sort(plan.order), np.arange(num_images))
    for name in ARRAYS:
        assert getattr(plan, name).shape == (num_images,), name
        assert getattr(plan, name).dtype == np.int64, name


def test_seeds_phases_workers_and_epochs_are_independent() -> None:
    n = 10_000
    plans = [draw(n)]
    plans += [draw(n, seed=s) for s in (1, 2)]
    plans += [draw(n, phase=p) for p in (2, 3)]
    plans += [draw(n, phase=2, worker=w) for w in range(1, 8)]
    plans += [draw(n, epoch=e) for e in range(1, 6)]
    plans += [draw(n, phase=2, worker=1, epoch=1), draw(n, phase=2, worker=2, epoch=1)]
    for one, other in combinations(plans, 2):
        for name in ARRAYS:
            a, b = getattr(one, name), getattr(other, name)
            assert not np.array_equal(a, b), name
            assert abs(np.corrcoef(a, b)[0, 1]) < 0.05, name
    # Where two plans show the same image, its crops agree as often as chance has it.
    rows = np.empty((len(plans), n), dtype=np.int64)
    for row, plan in zip(rows, plans, strict=True):
        row[plan.order] = plan.crop_y * 9 + plan.crop_x
    for a, b in combinations(rows, 2):
        assert abs((a == b).mean() - 1 / 81) < 5 * (1 / 81 / n) ** 0.5


def test_the_same_place_gives_the_same_plan() -> None:
    one, other = (draw(500, seed=9, phase=2, worker=3, epoch=4) for _ in range(2))
    for a, b in zip(astuple(one), astuple(other), strict=True):
        assert np.array_equal(a, b)


def test_the_plan_is_what_it_always_was() -> None:
    # A change of this hash changes every result: it is a change of the experiment.
    plan = draw(1_000, seed=7, phase=2, worker=5, epoch=3)
    content = b"".join(getattr(plan, name).astype("<i8").tobytes() for name in ARRAYS)
    assert hashlib.sha256(content).hexdigest() == (
        "a62f2353a823a106eb61be0928d36064538ddc73a4d5c94b427fabea6ec28b36"
    )


def test_the_plain_plan_shows_the_images_as_they_are() -> None:
    plan = plain_plan(5, 4)
    assert plan.order.tolist() == [0, 1, 2, 3, 4]
    assert plan.crop_y.tolist() == plan.crop_x.tolist() == [4] * 5
    assert not plan.flip.any()
    assert plan.cutout == 0


def test_alternating_flips_are_drawn_once_and_turn_in_each_epoch() -> None:
    turns = Augmentation(flip="alternating")

    def by_image(epoch: int, **where: int) -> NDArray[np.int64]:
        plan = draw(5_000, turns, epoch=epoch, **where)
        return plan.flip[np.argsort(plan.order)]

    first = by_image(0)
    assert abs(first.sum() - 2_500) < 3.3 * 1_250**0.5
    for epoch in range(1, 5):
        assert (by_image(epoch) == (first + epoch) % 2).all()
    for other in ({"seed": 1}, {"phase": 2}, {"worker": 1}):
        assert 0.45 < (by_image(0, **other) == first).mean() < 0.55
    # All else is as without.
    plain, plan = draw(5_000), draw(5_000, turns)
    assert (plain.order == plan.order).all()
    assert (plain.crop_y == plan.crop_y).all()
    # The draw has nothing to do with the order or the crops.
    assert_uniform((plan.crop_y * 9 + plan.crop_x) * 2 + plan.flip, 162)
