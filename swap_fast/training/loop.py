"""The data of a run, and the updates of a phase, epoch by epoch."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from swap_fast.clock import Clock
from swap_fast.config.execution import Execution
from swap_fast.config.phase import BatchShape, Phase
from swap_fast.data.cifar.batches import Batches, Loader
from swap_fast.distributed import ALONE, Comm
from swap_fast.record import EpochRow
from swap_fast.shutdown import NEVER, GracefulShutdown, InterruptedRunError
from swap_fast.training.evaluate import Evaluate
from swap_fast.training.state import NOT_TESTED, Progress
from swap_fast.training.step import BaseStep, Metrics
from swap_fast.training.weights import Weights


class Source(Protocol):
    """A run's data: read when it is made, and moved to the device when the steps are warm."""

    def open_(self, weights: Weights, execution: Execution, *, seed: int) -> None:
        """Move the data to the weights' device."""

    def batches(
        self, phase: Phase, shape: BatchShape, *, number: int, replicas: range, into: Any
    ) -> Loader:
        """What fills the step's batch in a stage of phase `number`, for this rank's replicas."""

    def batch_norm_batches(self, buffer: Any, shape: BatchShape, comm: Comm) -> Iterable[Any]:
        """This rank's share of phase 3's pass over the training data: of images the buffer
        [B, 3, H, W] or its first part, written over for each batch."""

    def evaluator(self, shape: BatchShape) -> Evaluate:
        """Test accuracy as it is measured during these epochs."""


class ImageSource(Source, Protocol):
    """The images of a recipe."""

    num_images: int
    """To train on."""
    image_size: int
    """Side of the images of a phase without stages, in pixels."""

    def warm_up(self, weights: Weights, execution: Execution) -> None:
        """Import and run whatever makes its batches and tests the model, without the data."""

    def resident_batches(
        self,
        phase: Phase,
        into: Any,
        execution: Execution,
        *,
        number: int,
        replicas: range,
        seed: int,
    ) -> Batches | None:
        """Batches that a captured update itself can load, in memory that `open_` fills."""
        return None  # for images that are decoded on their way


@dataclass(frozen=True, kw_only=True)
class TrainStage:
    """Epochs of a phase that share a step: all of them for CIFAR, a stage's for ImageNet."""

    epochs: range
    """Of the phase, from 0."""
    step: BaseStep
    """One update."""
    open_batches: Callable[[], Loader]
    """Gives what makes its batches, when the stage begins and those before it are gone; not called
    where the step's own feed does."""


class HostFeed:
    """Gives each update its batch and its learning rate from the host: see `DeviceFeed`."""

    def __init__(self, batches: Loader, step: BaseStep) -> None:
        self._batches, self._step = batches, step
        self.steps_per_epoch = batches.steps_per_epoch
        self._rates: Sequence[float] = ()

    def start_epoch(
        self, worker: int, epoch: int, *, first: int, learning_rates: Sequence[float]
    ) -> None:
        """Go to an epoch, whose updates have these learning rates."""
        self._batches.start_epoch(worker, epoch)
        self._rates = learning_rates

    def before(self, step: int) -> None:
        """Load the batch of an update, and set its learning rate."""
        self._batches.load(step)
        self._step.set_learning_rate(self._rates[step])


def train_epochs(
    stages: Sequence[TrainStage],
    phase: Phase,
    *,
    begin: Progress,
    clock: Clock,
    on_step: Callable[[int], None],
    shutdown: GracefulShutdown = NEVER,
    comm: Comm = ALONE,
    save: Callable[[Progress], None] = lambda progress: None,
) -> Iterator[tuple[EpochRow, Metrics]]:
    """The updates of one epoch after another: lines 9-16 of Algorithm 1, and 20-24.

    Metrics are the means over an epoch's own augmented batches, of all ranks, and are read once,
    at the epoch's end: an epoch's only wait for the device.

    Arguments:
        begin: the phase, whose time goes to the lap of its name, the worker, and the epochs and
            updates that are done.
        on_step: called after every update with the images that this rank gave to it.
        shutdown: asked after each update whether the run is to end there, ...
        comm: ... on these ranks, which share the updates.
        save: given the progress within an epoch where the run ends, off the clock.

    Yields:
        Each epoch's row, and its metrics.

    Raises:
        InterruptedRunError: a signal ended the run, and its progress is saved.
        FloatingPointError: the loss of an epoch is not finite, or fp16 overflows for ever.
    """
    number, worker, schedule = begin.phase, begin.worker, phase.schedule
    for stage in stages:
        step, epochs = stage.step, range(max(stage.epochs.start, begin.epoch), stage.epochs.stop)
        if not epochs:
            continue
        with clock.lap(f"phase{number}"):
            feed = step.feed or HostFeed(stage.open_batches(), step)
        steps = feed.steps_per_epoch
        for epoch in epochs:
            first, done = begin.step if epoch == begin.epoch else 0, steps
            if first:
                step.add_sums_(begin.sums)
            with clock.lap(f"phase{number}"):
                rates = [schedule(epoch + (i + 1) / steps) for i in range(steps)]
                feed.start_epoch(worker, epoch, first=first, learning_rates=rates)
                for i in range(first, steps):
                    feed.before(i)
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
                here = replace(begin, epoch=epoch, step=done, accuracies=NOT_TESTED)
                save(replace(here, sums=step.read_sums()))
                raise InterruptedRunError(f"after step {done} of epoch {epoch + 1}", together=True)
            where = (
                f"phase {number}, worker {worker}, epoch {epoch + 1} (updates {epoch * steps + 1} "
                f"to {(epoch + 1) * steps})"
            )
            if not math.isfinite(metrics.loss):
                raise FloatingPointError(
                    f"{where}: the loss is {metrics.loss}, expected a finite one; lower the "
                    f"learning rate (now {rates[-1]:g}, the phase's peak {phase.peak_lr:g}), or "
                    "look for NaN in the data"
                )
            # A first epoch of few updates may skip them all until the scale of the loss fits.
            is_last = epoch + 1 == phase.max_epochs
            if metrics.loss_scale < 1 or (is_last and metrics.skipped_updates == steps):
                raise FloatingPointError(
                    f"{where}: {metrics.skipped_updates} of {steps} updates were skipped, since "
                    f"their gradients overflow fp16 at a loss scale of {metrics.loss_scale:g}; "
                    "lower the learning rate, or use precision bf16 or fp32"
                )
            row = EpochRow(
                phase=number,
                worker=worker,
                epoch=epoch + 1,
                learning_rate=rates[-1],
                train_loss=metrics.loss,
                train_accuracy=metrics.accuracy,
                time_s=clock.reading(),
                noise_scale=None if metrics.noise is None else metrics.noise.scale,
                skipped_updates=metrics.skipped_updates,
            )
            yield row, metrics
        del feed  # a stage's loader is gone before the next one is opened
