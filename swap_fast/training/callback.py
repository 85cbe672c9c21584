"""What a run calls while it trains; callbacks of your own derive from `Callback`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from swap_fast.record import EpochRow

if TYPE_CHECKING:  # so that this module needs no torch
    from swap_fast.training.state import Progress
    from swap_fast.training.trainer import Trainer


class Callback:
    """Methods that do nothing; override those that you need.

    Each rank calls them for what it trains: phase 1, then its own workers of phase 2. The clock
    stands still in all of them but `on_step` and `on_save`.
    """

    def on_start(self, trainer: Trainer) -> None:
        """The trainer is built, and nothing is trained yet."""

    def on_begin(self, progress: Progress) -> None:
        """Before a model is trained; `progress` is what a former process has done of it.

        A model that was finished before has `progress.stopped_by`.
        """

    def on_step(self, images: int) -> None:
        """After each update, with the images that this rank gave to it; must be cheap."""

    def on_epoch_end(self, row: EpochRow) -> None:
        """After each epoch and its evaluation."""

    def on_save(self, progress: Progress) -> None:
        """A checkpoint was written; called on the rank that wrote it."""

    def on_end(self, progress: Progress) -> None:
        """After the last epoch of a model, once it is saved."""

    def on_averaging(self) -> None:
        """Before phase 3: this rank has trained, and may have to wait for the others."""


class Callbacks(Callback):
    """Several callbacks as one, called in their order.

    An update calls only those that override `on_step`.
    """

    def __init__(self, callbacks: Iterable[Callback] = ()) -> None:
        self._all = tuple(callbacks)
        steps = [each.on_step for each in self._all]
        self._steps = [f for f in steps if getattr(f, "__func__", None) is not Callback.on_step]

    def on_start(self, trainer: Trainer) -> None:
        self._call("on_start", trainer)

    def on_begin(self, progress: Progress) -> None:
        self._call("on_begin", progress)

    def on_step(self, images: int) -> None:
        for on_step in self._steps:
            on_step(images)

    def on_epoch_end(self, row: EpochRow) -> None:
        self._call("on_epoch_end", row)

    def on_save(self, progress: Progress) -> None:
        self._call("on_save", progress)

    def on_end(self, progress: Progress) -> None:
        self._call("on_end", progress)

    def on_averaging(self) -> None:
        self._call("on_averaging")

    def _call(self, name: str, *arguments: Any) -> None:
        for each in self._all:
            getattr(each, name)(*arguments)
