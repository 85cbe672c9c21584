"""The one training loop."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from swap_fast.clock import Clock
from swap_fast.config import Phase
from swap_fast.data.batches import Loader
from swap_fast.record import EpochRow
from swap_fast.state import Position
from swap_fast.step import Step


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """Epochs of a phase that share a step: all of them for CIFAR, a stage's for ImageNet."""

    epochs: range
    """Of the phase, from 0."""
    step: Step
    """One update."""
    open_batches: Callable[[], Loader]
    """Gives what makes its batches, when the stretch begins and those before it are gone."""


def train(
    stretches: Sequence[Stretch],
    phase: Phase,
    *,
    begin: Position,
    clock: Clock,
    on_step: Callable[[int], None],
    after_epoch: Callable[[EpochRow, str | None], None],
) -> None:
    """Train one model through a phase, up to its last epoch or its stopping accuracy.

    The train accuracy is the running mean over an epoch's own augmented batches, taken over all
    ranks and read once, at the epoch's end; the phase ends where it is above tau.

    Arguments:
        begin: the phase, whose time goes to the lap of its name, the worker, and the epochs that
            it has done already.
        on_step: called after every update with the images that this rank gave to it.
        after_epoch: given each epoch's row, off the clock; and what ended the phase there,
            "stopping_accuracy" or "max_epochs", or None where it goes on.

    Raises:
        FloatingPointError: the loss of an epoch is not finite.
    """
    number, worker = begin.phase, begin.worker

    def stops(stretch: Stretch) -> bool:
        step, epochs = (
            stretch.step,
            range(max(stretch.epochs.start, begin.epoch), stretch.epochs.stop),
        )
        if not epochs:
            return False
        with clock.lap(f"phase{number}"):
            batches = stretch.open_batches()
        steps = batches.steps_per_epoch
        for epoch in epochs:
            learning_rate = 0.0
            with clock.lap(f"phase{number}"):
                batches.start_epoch(worker, epoch)
                for i in range(steps):
                    batches.load_(i, step.images, step.labels)
                    learning_rate = phase.schedule(epoch + (i + 1) / steps)
                    step.set_learning_rate(learning_rate)
                    step()
                    on_step(len(step.labels))
                loss, accuracy = step.read_metrics()
            if not math.isfinite(loss):
                raise FloatingPointError(
                    f"phase {number}, worker {worker}, epoch {epoch + 1}: the loss is {loss}, "
                    f"expected a finite one; lower the learning rate (the phase's peak is "
                    f"{phase.peak_lr:g})"
                )
            stopped_by = None
            if phase.stopping_accuracy is not None and accuracy > phase.stopping_accuracy:
                stopped_by = "stopping_accuracy"
            elif epoch + 1 == phase.max_epochs:
                stopped_by = "max_epochs"
            after_epoch(
                EpochRow(
                    phase=number,
                    worker=worker,
                    epoch=epoch + 1,
                    learning_rate=learning_rate,
                    train_loss=loss,
                    train_accuracy=accuracy,
                    time_s=clock.reading(),
                ),
                stopped_by,
            )
            if stopped_by is not None:
                return True
        return False

    for stretch in stretches:
        if stops(stretch):
            return
