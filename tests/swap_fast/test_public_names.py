"""Every public name of the package is where `swap_fast` looks for it."""

from __future__ import annotations

import pytest

import swap_fast


@pytest.mark.parametrize("name", sorted(set(swap_fast.__all__) - {"RECIPES"}))
def test_a_class_or_a_function_is_found_by_its_own_name(name: str) -> None:
    assert getattr(swap_fast, name).__name__ == name


def test_the_recipes_are_found_by_name() -> None:
    assert swap_fast.RECIPES["cifar10_swap"]().name == "cifar10_swap"


def test_another_name_is_not() -> None:
    with pytest.raises(AttributeError, match=r"has no attribute .swop.$"):
        _ = swap_fast.swop
