"""Interleaved timing: speeds, ratios, and the message of a failure."""

import time

import pytest

from bench.micro.interleave import Timing, Turn, Variant, time_interleaved


def sleeper(seconds: float, images: int) -> Turn:
    def turn() -> int:
        time.sleep(seconds)
        return images

    return turn


def failing() -> Turn:
    raise ValueError("cannot be prepared")


def test_rounds_speeds_and_ratios() -> None:
    variants = [
        Variant("quick", sleeper, (0.01, 10)),
        Variant("slow, but two of them", sleeper, (0.02, 10), processes=2),
    ]
    quick, slow = time_interleaved(variants, rounds=3)
    assert len(quick.per_s) == len(slow.ratios) == 3
    # A sleep lasts at least as long as asked: 10 images in 0.01 s, 20 in 0.02 s, at the most.
    assert max(quick.per_s) <= 1000
    assert max(slow.per_s) <= 1000
    assert quick.ratios == [1.0, 1.0, 1.0]
    for ratio, a, b in zip(slow.ratios, quick.per_s, slow.per_s, strict=True):
        assert ratio == a / b


def test_a_variant_that_fails_is_named() -> None:
    with pytest.raises(RuntimeError, match=r"^the bad one: cannot be prepared$"):
        time_interleaved([Variant("the bad one", failing)], rounds=1)


def test_medians() -> None:
    timing = Timing(name="a", per_s=[1.0, 9.0, 2.0], ratios=[3.0, 1.0, 2.0])
    assert timing.median == 2.0
    assert timing.ratio == (1.0, 2.0, 3.0)
