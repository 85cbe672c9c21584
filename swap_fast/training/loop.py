"""The one training loop."""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Protocol

from swap_fast.config.phase import Phase
from swap_fast.distributed import ALONE, Comm
from swap_fast.record import EpochRow
from swap_fast.training.clock import Clock
from swap_fast.training.shutdown import NEVER, GracefulShutdown, InterruptedRunError
from swap_fast.training.state import Progress
from swap_fast.training.step import Metrics


class Batches(Protocol):
    """The batches of one rank in a phase."""

    @property
    def steps_per_epoch(self) -> int:
        """Updates of an epoch."""

    def start_epoch(self, worker: int, epoch: int) -> None:
        """Go to an epoch."""

    def load(self, step: int) -> None:
        """Give the step its part of update `step`."""


class TrainStep(Protocol):
    """One update of the weights."""

    @property
    def num_images(self) -> int:
        """Of this rank, in the update."""

    def set_learning_rate(self, learning_rate: float) -> None:
        """Set the learning rate of the next updates."""

    def __call__(self) -> None:
        """Update the weights."""

    def read_metrics(self) -> Metrics:
        """Metrics of all ranks since the last reading. Waits for the device."""

    def read_sums(self) -> tuple[float, ...]:
        """This rank's sums behind them. Waits for the device."""

    def add_sums_(self, sums: tuple[float, ...]) -> None:
        """Count what an interrupted epoch had done before."""


@dataclass(frozen=True, kw_only=True)
class TrainStage:
    """Epochs of a phase that share a step: all of them for CIFAR, a stage's for ImageNet."""

    epochs: range
    """Of the phase, from 0."""
    step: TrainStep
    """One update."""
    open_batches: Callable[[], Batches]
    """Gives what makes its batches, when the stage begins and those before it are gone."""


def train(
    stages: Sequence[TrainStage],
    phase: Phase,
    *,
    begin: Progress,
    clock: Clock,
    on_step: Callable[[int], None],
    after_epoch: Callable[[EpochRow, str | None], None],
    shutdown: GracefulShutdown = NEVER,
    comm: Comm = ALONE,
    leave: Callable[[Progress], None] = lambda position: None,
) -> None:
    """Train one model through a phase, up to its last epoch or to where its own rule ends it.

    The train accuracy is the running mean over an epoch's own augmented batches, taken over all
    ranks and read once, at the epoch's end; the phase ends where it is above tau. So is what the
    gradient's noise is measured by, where that ends the phase: every rank decides alike.

    Arguments:
        begin: the phase, whose time goes to the lap of its name, the worker, and what of it is
            done already.
        on_step: called after every update with the images that this rank gave to it.
        after_epoch: given each epoch's row, off the clock; and what ended the phase there,
            "stopping_accuracy", "noise_scale" or "max_epochs", or None where it goes on.
        shutdown: asked after each update and each epoch whether the run is to end there, ...
        comm: ... on these ranks, which share the updates.
        leave: given the position within an epoch where it is, off the clock.

    Raises:
        InterruptedRunError: the run was told to end, and has left.
        FloatingPointError: the loss of an epoch is not finite.
    """
    number, worker = begin.phase, begin.worker

    def stops(stage: TrainStage) -> bool:
        step, epochs = (
            stage.step,
            range(max(stage.epochs.start, begin.epoch), stage.epochs.stop),
        )
        if not epochs:
            return False
        with clock.lap(f"phase{number}"):
            batches = stage.open_batches()
        steps = batches.steps_per_epoch
        for epoch in epochs:
            learning_rate = 0.0
            first, done = begin.step if epoch == begin.epoch else 0, steps
            if first:
                step.add_sums_(begin.sums)
            with clock.lap(f"phase{number}"):
                batches.start_epoch(worker, epoch)
                for i in range(first, steps):
                    batches.load(i)
                    learning_rate = phase.schedule(epoch + (i + 1) / steps)
                    step.set_learning_rate(learning_rate)
                    step()
                    on_step(step.num_images)
                    if i + 1 < steps and shutdown.ends_after(
                        comm, f"{number}/{worker}", epoch * steps + i + 1
                    ):
                        done = i + 1
                        break
                if done == steps:
                    metrics = step.read_metrics()
            if done < steps:
                leave(replace(begin, epoch=epoch, step=done, sums=step.read_sums()))
                raise InterruptedRunError(f"after step {done} of epoch {epoch + 1}", together=True)
            if not math.isfinite(metrics.loss):
                raise FloatingPointError(
                    f"phase {number}, worker {worker}, epoch {epoch + 1} (updates "
                    f"{epoch * steps + 1} to {(epoch + 1) * steps}): the loss is {metrics.loss}, "
                    f"expected a finite one; lower the learning rate (now {learning_rate:g}, the "
                    f"phase's peak {phase.peak_lr:g})"
                )
            ended_by = stopped_by(phase, epoch, metrics)
            after_epoch(
                EpochRow(
                    phase=number,
                    worker=worker,
                    epoch=epoch + 1,
                    learning_rate=learning_rate,
                    train_loss=metrics.loss,
                    train_accuracy=metrics.accuracy,
                    time_s=clock.reading(),
                    noise_scale=None if metrics.noise is None else metrics.noise.scale,
                ),
                ended_by,
            )
            # Whether the checkpoint was the last thing to do; not "waiting", which is phase 3's.
            with clock.lap("checkpoint") if comm.world_size > 1 else nullcontext():
                ends_here = shutdown.ends_here(comm)
            if ends_here:
                raise InterruptedRunError(f"after epoch {epoch + 1}", together=True)
            if ended_by is not None:
                return True
        return False

    with shutdown.training():
        for stage in stages:
            if stops(stage):
                return


def stopped_by(phase: Phase, epoch: int, metrics: Metrics) -> str | None:
    """What ends a phase after an epoch; None: it goes on.

    Noise counts in epochs that begin when the learning rate is past its peak. Before, it says how
    far the weights still are from where they settle: the noise scale of the very first epoch is
    large, falls while the learning rate rises, and only then begins to grow.

    Arguments:
        epoch: that has ended, from 0.
        metrics: of this epoch.
    """
    tau, noise = phase.stopping_accuracy, metrics.noise
    if tau is not None and metrics.accuracy > tau:
        return "stopping_accuracy"
    past_peak = epoch >= phase.peak_epoch
    if noise is not None and past_peak and noise.exceeds(phase.stopping_noise_ratio):
        return "noise_scale"
    return "max_epochs" if epoch + 1 == phase.max_epochs else None
