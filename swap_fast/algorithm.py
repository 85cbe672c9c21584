"""Algorithm 1: Stochastic Weight Averaging in Parallel.

Line numbers are those of the paper's listing. Everything that depends on the hardware is handed
in as `Parts`; a rank runs the slots and workers that `comm` gives it.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

from torch import Tensor

from swap_fast.config.phase import Phase
from swap_fast.config.recipe import SGDRecipe, SWARecipe
from swap_fast.record import EpochRow
from swap_fast.training.evaluate import Accuracies
from swap_fast.training.loop import train
from swap_fast.training.parts import Parts
from swap_fast.training.state import Position, TrainingState
from swap_fast.training.weights import average, mean_of, mean_statistics


class OnePhase(Protocol):
    """What SGD needs of a recipe."""

    @property
    def phase1(self) -> Phase:
        """Lines 1-6: batch size, learning rate, tau."""


class Method(OnePhase, Protocol):
    """What Algorithm 1 needs of a recipe."""

    @property
    def phase2(self) -> Phase:
        """The same of each worker."""

    @property
    def keep_momentum(self) -> bool:
        """Whether phase 2 goes on with phase 1's history of gradients."""


@dataclass(frozen=True, kw_only=True)
class PhaseOne:
    """The output of phase 1."""

    theta: Tensor
    """theta_T [P]."""
    statistics: Tensor
    """Batch-norm statistics [2C], those of all slots merged."""
    history: Any
    """The optimizer's, for `keep_momentum`."""
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
    statistics: Tensor
    """Its batch-norm statistics [2C] at the end."""
    time_s: float
    """Its own time in phase 2."""

    @property
    def theta(self) -> Tensor:
        """theta_{T+Q}^w [P]."""
        return self.samples[-1]


@dataclass(frozen=True, kw_only=True)
class Result:
    """What this rank has when a run is done; the model holds the final weights."""

    workers: list[Worker]
    """This rank's workers, which a group of ranks has in common; empty for SGD."""
    phase1: PhaseOne
    """Where they began; of SGD, its end."""
    before_averaging_s: float
    """The paper's reading of this rank's clock when its training was done."""
    accuracies: Accuracies
    """Of the final model, on the test images."""


def swap(recipe: Method, parts: Parts) -> Result:
    """Run the three phases (Section 3)."""
    phase1 = large_batch_phase(recipe, parts)
    workers = small_batch_phase(recipe, parts, phase1)
    before_averaging_s = parts.clock.reading()
    averaging_phase(parts, workers)
    with parts.clock.lap("evaluation"):
        accuracies = parts.evaluate(parts.comm)
    return Result(
        workers=workers,
        phase1=phase1,
        before_averaging_s=before_averaging_s,
        accuracies=accuracies,
    )


def large_batch_phase(recipe: OnePhase, parts: Parts) -> PhaseOne:
    """Phase 1, lines 7-17: all slots train one model until its train accuracy is above tau."""
    phase, clock, position = parts.phases[0], parts.clock, Position(phase=1)

    def after_epoch(row: EpochRow, stopped_by: str | None) -> None:
        nonlocal position
        with clock.lap("evaluation"):
            phase.state.statistics.merge_()
            accuracies = phase.evaluate(row.epoch, parts.comm)
        row = tested(row, accuracies)
        parts.watch.on_epoch(row)
        position = Position(phase=1, epoch=row.epoch, stopped_by=stopped_by, accuracies=accuracies)
        with clock.lap("checkpoint"):
            parts.checkpoints.save(position, phase.state, row)
        if stopped_by is not None:
            parts.watch.on_end(position)

    parts.weights.model.train()
    with clock.lap("checkpoint"):
        position = parts.checkpoints.restore_(position, phase.state)
    parts.watch.on_begin(position)
    if position.stopped_by is None:
        train(
            phase.stretches,
            recipe.phase1,
            begin=position,
            clock=clock,
            on_step=parts.watch.on_step,
            after_epoch=after_epoch,
            interruption=parts.interruption,
            comm=phase.state.comm,
            leave=partial(leave, phase.state, parts),
        )
    assert position.stopped_by is not None, "every phase ends"
    with clock.lap("phase1"):
        theta, statistics = parts.weights.copy()
        history = parts.optimizer.history()
    return PhaseOne(
        theta=theta,
        statistics=statistics,
        history=history,
        stopped_by=position.stopped_by,
        epochs=position.epoch,
        accuracies=position.accuracies,
    )


def small_batch_phase(recipe: Method, parts: Parts, start: PhaseOne) -> list[Worker]:
    """Phase 2, lines 18-27: each worker refines its own copy, with no communication among them.

    A worker's weights are sampled at the end of each cycle: once, but for Table 4's longer forms.
    """
    phase, group, clock = parts.phases[1], parts.group, parts.clock
    cycle_epochs, workers = recipe.phase2.cycle_epochs, []
    samples: list[Tensor] = []

    def after_epoch(row: EpochRow, stopped_by: str | None) -> None:
        with clock.lap("evaluation"):
            phase.state.statistics.merge_()
            accuracies = phase.evaluate(row.epoch, group.inside)
        row = tested(row, accuracies)
        if group.is_first:
            parts.watch.on_epoch(row)
        if row.epoch % cycle_epochs == 0:
            with clock.lap("phase2"):
                samples.append(parts.weights.copy()[0])
        position = Position(
            phase=2,
            worker=row.worker,
            epoch=row.epoch,
            stopped_by=stopped_by,
            accuracies=accuracies,
        )
        with clock.lap("checkpoint"):
            parts.checkpoints.save(position, phase.state, row)
        if group.is_first and stopped_by is not None:
            parts.watch.on_end(position)

    for number in group.workers:
        started_s, samples = clock.reading(), []
        with clock.lap("phase2"):
            parts.weights.load_(start.theta, start.statistics)
            phase.state.statistics.reset_()
            parts.optimizer.reset_(start.history if recipe.keep_momentum else None)
        with clock.lap("checkpoint"):
            position = parts.checkpoints.restore_(Position(phase=2, worker=number), phase.state)
            samples = sampled_before(position, cycle_epochs, parts)
        if group.is_first:
            parts.watch.on_begin(position)
        if position.stopped_by is None:
            train(
                phase.stretches,
                recipe.phase2,
                begin=position,
                clock=clock,
                on_step=parts.watch.on_step,
                after_epoch=after_epoch,
                interruption=parts.interruption,
                comm=phase.state.comm,
                leave=partial(leave, phase.state, parts),
            )
        time_s = clock.reading() - started_s
        workers.append(
            Worker(
                number=number,
                samples=tuple(samples),
                statistics=parts.weights.statistics.clone(),
                time_s=time_s,
            )
        )
    return workers


def tested(row: EpochRow, accuracies: Accuracies) -> EpochRow:
    """The epoch's row with its accuracy on the test images."""
    return replace(row, test_accuracy=accuracies.tested, test_top5_accuracy=accuracies.top5)


def leave(state: TrainingState, parts: Parts, position: Position) -> None:
    """Keep a run that was told to end, where it is."""
    with parts.clock.lap("checkpoint"):
        parts.checkpoints.save(position, state, None)


def sampled_before(position: Position, cycle_epochs: int, parts: Parts) -> list[Tensor]:
    """The samples [P] of the cycles that an interrupted worker had done; the model is as it was."""
    ends = range(cycle_epochs, position.epoch + 1, cycle_epochs)
    now = parts.weights.copy()
    samples = [parts.checkpoints.theta(position.worker, epoch) for epoch in ends]
    parts.weights.load_(*now)
    return samples


def averaging_phase(parts: Parts, workers: list[Worker]) -> None:
    """Phase 3, lines 28-29: average the weights, then compute the batch-norm statistics anew."""
    parts.watch.on_averaging()
    with parts.clock.lap("waiting"):
        parts.comm.barrier()
    with parts.clock.lap("averaging"):
        models = ((worker.number, mean_of(worker.samples)) for worker in workers)
        theta = average(models, parts.group.across)
        statistics = parts.weights.statistics
        if parts.weights.num_further:  # buffers that the pass over the data does not make anew
            own = [worker.statistics for worker in workers]
            statistics = mean_statistics(own, parts.group.across)
        parts.weights.load_(theta, statistics)
    with parts.clock.lap("batch_norm"):
        parts.statistics_pass(parts.batch_norm_batches(), parts.comm)


# What SWAP is compared with: the same parts, in another order.


def sgd(recipe: SGDRecipe, parts: Parts) -> Result:
    """SGD alone, with small or with large batches: rows 1 and 2 of Tables 1 and 2."""
    phase1 = large_batch_phase(recipe, parts)
    return Result(
        workers=[],
        phase1=phase1,
        before_averaging_s=parts.clock.reading(),
        accuracies=phase1.accuracies,
    )


def swa(recipe: SWARecipe, parts: Parts) -> Result:
    """SWA: one model goes on, is sampled at the end of each cycle, and its samples are averaged.

    Rows 1 to 3 of Table 4: phase 1 is a whole large-batch run, one stopped as SWAP's, or a whole
    small-batch run.
    """
    phase1 = large_batch_phase(recipe, parts)
    workers = small_batch_phase(recipe, parts, phase1)
    before_averaging_s = parts.clock.reading()
    with parts.clock.lap("waiting"):
        parts.comm.barrier()
    with parts.clock.lap("averaging"):
        for worker in workers:
            for theta in worker.samples:
                # Ranks that trained the same model may differ in its last digits.
                parts.comm.broadcast_(theta)
    averaging_phase(parts, workers)
    with parts.clock.lap("evaluation"):
        accuracies = parts.evaluate(parts.comm)
    return Result(
        workers=workers,
        phase1=phase1,
        before_averaging_s=before_averaging_s,
        accuracies=accuracies,
    )
