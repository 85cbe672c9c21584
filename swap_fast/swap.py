"""Algorithm 1: Stochastic Weight Averaging in Parallel.

Line numbers are those of the paper's listing. Everything that depends on the hardware is handed
in as `Parts`; a rank runs the slots and workers that `comm` gives it.
"""

from dataclasses import dataclass, replace

from torch import Tensor

from swap_fast.averaging import average, mean_of
from swap_fast.config import AveragingRecipe, SGDRecipe, SWAPRecipe
from swap_fast.evaluate import Accuracies
from swap_fast.parts import Parts
from swap_fast.record import EpochRow
from swap_fast.train import train


@dataclass(frozen=True, kw_only=True)
class PhaseOne:
    """The output of phase 1."""

    theta: Tensor
    """theta_T [P]."""
    statistics: Tensor
    """Batch-norm statistics [2C], those of all slots merged."""
    velocity: Tensor
    """The optimizer's history [P], for `keep_momentum`."""
    stopped_by: str
    """What ended it."""
    epochs: int
    """How many it took."""
    accuracies: Accuracies
    """On the test images, at its end."""


@dataclass(frozen=True, kw_only=True)
class Worker:
    """The output of one worker of phase 2."""

    number: int
    """w, from 0."""
    samples: tuple[Tensor, ...]
    """Its weights [P] at the end of each cycle of the learning rate."""
    time_s: float
    """Its own time in phase 2."""

    @property
    def theta(self) -> Tensor:
        """theta_{T+Q}^w [P]."""
        return self.samples[-1]


@dataclass(frozen=True, kw_only=True)
class Result:
    """What this rank has when a run is done; the model holds the final weights."""

    stopped_by: str
    """What ended phase 1."""
    workers: list[Worker]
    """This rank's workers, which a group of ranks has in common; empty for SGD."""
    before_averaging_s: float
    """The paper's reading of this rank's clock when its training was done."""
    test_accuracy: float
    """Of the final model, a fraction."""
    test_top5_accuracy: float | None
    """The same for the five best classes; None where it is not measured."""


def swap(recipe: SWAPRecipe, parts: Parts) -> Result:
    """Run the three phases (Section 3)."""
    phase1 = large_batch_phase(recipe, parts)
    workers = small_batch_phase(recipe, parts, phase1)
    before_averaging_s = parts.clock.reading()
    averaging_phase(recipe, parts, workers)
    with parts.clock.lap("evaluation"):
        accuracies = parts.evaluate(parts.comm)
    return Result(
        stopped_by=phase1.stopped_by,
        workers=workers,
        before_averaging_s=before_averaging_s,
        test_accuracy=accuracies.top1,
        test_top5_accuracy=accuracies.top5,
    )


def large_batch_phase(recipe: SGDRecipe, parts: Parts) -> PhaseOne:
    """Phase 1, lines 7-17: all slots train one model until its train accuracy is above tau."""
    phase, epochs, accuracies = parts.phases[0], 0, Accuracies(0.0)

    def after_epoch(row: EpochRow) -> None:
        nonlocal epochs, accuracies
        with parts.clock.lap("evaluation"):
            phase.statistics.merge_()
            accuracies = phase.evaluate(row.epoch, parts.comm)
        epochs = row.epoch
        parts.watch.on_epoch(replace(row, test_accuracy=accuracies.top1))

    parts.weights.model.train()
    stopped_by = train(
        phase.stretches,
        recipe.phase1,
        number=1,
        clock=parts.clock,
        on_step=parts.watch.on_step,
        after_epoch=after_epoch,
    )
    with parts.clock.lap("phase1"):
        phase.statistics.merge_()
        theta, statistics = parts.weights.copy()
        velocity = parts.optimizer.velocity.clone()
    with parts.clock.lap("checkpoint"):
        parts.watch.on_weights(1, 0, epochs)
        parts.comm.barrier()
    return PhaseOne(
        theta=theta,
        statistics=statistics,
        velocity=velocity,
        stopped_by=stopped_by,
        epochs=epochs,
        accuracies=accuracies,
    )


def small_batch_phase(recipe: AveragingRecipe, parts: Parts, start: PhaseOne) -> list[Worker]:
    """Phase 2, lines 18-27: each worker refines its own copy, with no communication among them.

    A worker's weights are sampled at the end of each cycle: once, but for Table 4's longer forms.
    """
    phase, group, workers = parts.phases[1], parts.group, []
    samples: list[Tensor] = []

    def after_epoch(row: EpochRow) -> None:
        with parts.clock.lap("evaluation"):
            phase.statistics.merge_()
            accuracies = phase.evaluate(row.epoch, group.inside)
        if group.is_first:
            parts.watch.on_epoch(replace(row, test_accuracy=accuracies.top1))
            with parts.clock.lap("checkpoint"):
                parts.watch.on_weights(2, row.worker, row.epoch)
        if row.epoch % recipe.phase2.cycle_epochs == 0:
            with parts.clock.lap("phase2"):
                theta, _ = parts.weights.copy()
                samples.append(theta)

    for number in group.workers:
        started_s, samples = parts.clock.reading(), []
        with parts.clock.lap("phase2"):
            parts.weights.load_(start.theta, start.statistics)
            phase.statistics.reset_()
            parts.optimizer.reset_(start.velocity if recipe.keep_momentum else None)
        train(
            phase.stretches,
            recipe.phase2,
            number=2,
            worker=number,
            clock=parts.clock,
            on_step=parts.watch.on_step,
            after_epoch=after_epoch,
        )
        time_s = parts.clock.reading() - started_s
        workers.append(Worker(number=number, samples=tuple(samples), time_s=time_s))
    return workers


def averaging_phase(recipe: AveragingRecipe, parts: Parts, workers: list[Worker]) -> None:
    """Phase 3, lines 28-29: average the weights, then compute the batch-norm statistics anew."""
    with parts.clock.lap("waiting"):
        parts.comm.barrier()
    with parts.clock.lap("averaging"):
        thetas = (mean_of(worker.samples) for worker in workers)
        theta = average(thetas, recipe.num_workers, parts.group.across)
        parts.weights.load_(theta, parts.weights.statistics)
    with parts.clock.lap("batch_norm"):
        parts.statistics_pass(parts.batch_norm_batches(), parts.comm)
