"""Random damage for tests of faults: 50 cases a test in CI, 2,000 where `-m soak` asks for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

Draw = Callable[[Any], Any]
"""Draws a value of a strategy."""

CASES = pytest.mark.parametrize("cases", [50, pytest.param(2000, marks=pytest.mark.soak)])
"""Of a test that calls `try_many`."""


def try_many(check: Callable[[st.DataObject], None], cases: int) -> None:
    """Call a function with random cases, the same at each run."""
    options = settings(
        max_examples=cases,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    options(given(st.data())(check))()


def one_line(error: BaseException) -> None:
    assert str(error), "an error says what is wrong"
    assert "\n" not in str(error)


def damage(content: bytes, draw: Draw, near: tuple[bytes, ...] = ()) -> bytes:
    """Flip, cut, lengthen, repeat or overwrite some bytes.

    Arguments:
        near: what the damage is close to, where this is drawn.
    """
    made = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, len(made) - 1)))
        if near and draw(st.booleans()):
            found = made.find(draw(st.sampled_from(near)), at)
            at = min(max(found, 0) + draw(st.integers(-8, 90)), len(made) - 1)
        at = max(at, 0)
        match draw(st.sampled_from(["flip", "cut", "insert", "repeat", "zero"])):
            case "flip" if made:
                made[at] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del made[at:]
            case "insert":
                made[at:at] = draw(st.binary(min_size=1, max_size=40))
            case "repeat":
                made += made[at : at + 200]
            case _:
                made[at : at + 20] = bytes(len(made[at : at + 20]))
    return bytes(made)


def copied(source: Path, target: Path) -> None:
    """Make a folder's files those of another, and no others."""
    target.mkdir(exist_ok=True)
    for path in target.iterdir():
        path.unlink()
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
