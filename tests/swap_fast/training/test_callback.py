"""Callbacks: several as one, and what an update costs those that take no step."""

from __future__ import annotations

from typing import Any

from small_trainer import SWAP, make_dataset, small_trainer

from swap_fast.algorithm import swap
from swap_fast.training.callback import Callback, Callbacks

METHODS = [name for name in vars(Callback) if name.startswith("on_")]


class Noting(Callback):
    """Notes each call but `on_step`."""

    def __init__(self, name: str, notes: list[tuple[str, str]]) -> None:
        for method in METHODS:
            if method != "on_step":
                setattr(self, method, self._note(name, method, notes))

    @staticmethod
    def _note(name: str, method: str, notes: list[tuple[str, str]]) -> Any:
        return lambda *arguments: notes.append((name, method))


def test_each_callback_is_called_in_order() -> None:
    notes: list[tuple[str, str]] = []
    both = Callbacks([Noting("first", notes), Callback(), Noting("second", notes)])
    for method in METHODS:
        getattr(both, method)(*[None] * (method != "on_averaging"))
    expected = [method for method in METHODS if method != "on_step"]
    assert notes == [(name, method) for method in expected for name in ("first", "second")]


def test_an_update_calls_only_those_that_take_steps() -> None:
    class Counting(Callback):
        images = 0

        def on_step(self, images: int) -> None:
            self.images += images

    counting = Counting()
    both = Callbacks([Callback(), counting, Noting("silent", [])])
    assert both._steps == [counting.on_step]
    both.on_step(3)
    both.on_step(4)
    assert counting.images == 7


def test_a_run_begins_with_its_trainer() -> None:
    class First(Callback):
        trainer: Any = None

        def on_start(self, trainer: Any) -> None:
            self.trainer = trainer

    first = First()
    trainer = small_trainer(dataset=make_dataset(), callbacks=[first])
    assert first.trainer is trainer
    swap(SWAP, trainer)
