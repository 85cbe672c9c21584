"""A wrong name is answered with up to three near ones."""

from __future__ import annotations

import pytest

from swap_fast.choices import choose


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("sgb", "did you mean sgd?"),
        ("swap3", "did you mean swap or swap_8?"),
        ("run", "expected one of sgd, swap, swap_8, lamb_1, lamb_2, lamb_3, lamb_4"),
        ("lamb_9", "did you mean lamb_4, lamb_3 or lamb_2?"),
    ],
)
def test_near_names_come_first_and_three_at_most(name: str, hint: str) -> None:
    names = ["sgd", "swap", "swap_8", "lamb_1", "lamb_2", "lamb_3", "lamb_4"]
    with pytest.raises(ValueError) as refused:  # noqa: PT011
        choose("method", name, names)
    assert str(refused.value) == f"unknown method {name!r}; {hint}"
