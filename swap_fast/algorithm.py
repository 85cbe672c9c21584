"""Algorithm 1: Stochastic Weight Averaging in Parallel.

Line numbers are those of the paper's listing. Everything that depends on the hardware is handed
in as `Trainer`; a rank runs the replicas and workers that `comm` gives it.
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
from swap_fast.training.parts import Trainer
from swap_fast.training.state import Progress, TrainingState
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
    """Batch-norm statistics [2C], those of all replicas merged."""
    history: dict[str, Any]
    """The optimizer's state, for `keep_momentum`."""
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


def swap(recipe: Method, trainer: Trainer) -> Result:
    """Run the three phases (Section 3)."""
    phase1 = large_batch_phase(recipe, trainer)
    workers = small_batch_phase(recipe, trainer, phase1)
    before_averaging_s = trainer.clock.reading()
    averaging_phase(trainer, workers)
    with trainer.clock.lap("evaluation"):
        accuracies = trainer.evaluate(trainer.comm)
    return Result(
        workers=workers,
        phase1=phase1,
        before_averaging_s=before_averaging_s,
        accuracies=accuracies,
    )


def large_batch_phase(recipe: OnePhase, trainer: Trainer) -> PhaseOne:
    """Phase 1, lines 7-17: all replicas train one model until its train accuracy is above tau."""
    phase, clock, position = trainer.phases[0], trainer.clock, Progress(phase=1)

    def after_epoch(row: EpochRow, stopped_by: str | None) -> None:
        nonlocal position
        with clock.lap("evaluation"):
            phase.state.statistics.merge_()
            accuracies = phase.evaluate(row.epoch, trainer.comm)
        row = tested(row, accuracies)
        trainer.watch.on_epoch(row)
        position = Progress(phase=1, epoch=row.epoch, stopped_by=stopped_by, accuracies=accuracies)
        with clock.lap("checkpoint"):
            trainer.checkpoints.save(position, phase.state, row)
        if stopped_by is not None:
            trainer.watch.on_end(position)

    trainer.weights.model.train()
    with clock.lap("checkpoint"):
        position = trainer.checkpoints.restore_(position, phase.state)
    trainer.watch.on_begin(position)
    if position.stopped_by is None:
        train(
            phase.stages,
            recipe.phase1,
            begin=position,
            clock=clock,
            on_step=trainer.watch.on_step,
            after_epoch=after_epoch,
            shutdown=trainer.shutdown,
            comm=phase.state.comm,
            leave=partial(leave, phase.state, trainer),
        )
    assert position.stopped_by is not None, "every phase ends"
    with clock.lap("phase1"):
        theta, statistics = trainer.weights.copy()
        history = trainer.optimizer.state_dict()
    return PhaseOne(
        theta=theta,
        statistics=statistics,
        history=history,
        stopped_by=position.stopped_by,
        epochs=position.epoch,
        accuracies=position.accuracies,
    )


def small_batch_phase(recipe: Method, trainer: Trainer, start: PhaseOne) -> list[Worker]:
    """Phase 2, lines 18-27: each worker refines its own copy, with no communication among them.

    A worker's weights are sampled at the end of each cycle: once, but for Table 4's longer forms.
    """
    phase, group, clock = trainer.phases[1], trainer.group, trainer.clock
    cycle_epochs, workers = recipe.phase2.cycle_epochs, []
    samples: list[Tensor] = []

    def after_epoch(row: EpochRow, stopped_by: str | None) -> None:
        with clock.lap("evaluation"):
            phase.state.statistics.merge_()
            accuracies = phase.evaluate(row.epoch, group.inside)
        row = tested(row, accuracies)
        if group.is_first:
            trainer.watch.on_epoch(row)
        if row.epoch % cycle_epochs == 0:
            with clock.lap("phase2"):
                samples.append(trainer.weights.copy()[0])
        position = Progress(
            phase=2,
            worker=row.worker,
            epoch=row.epoch,
            stopped_by=stopped_by,
            accuracies=accuracies,
        )
        with clock.lap("checkpoint"):
            trainer.checkpoints.save(position, phase.state, row)
        if group.is_first and stopped_by is not None:
            trainer.watch.on_end(position)

    for number in group.workers:
        started_s, samples = clock.reading(), []
        with clock.lap("phase2"):
            trainer.weights.load_(start.theta, start.statistics)
            phase.state.statistics.reset_()
            trainer.optimizer.reset_()
            if recipe.keep_momentum:
                trainer.optimizer.load_state_dict(start.history)
        with clock.lap("checkpoint"):
            position = trainer.checkpoints.restore_(Progress(phase=2, worker=number), phase.state)
            samples = sampled_before(position, cycle_epochs, trainer)
        if group.is_first:
            trainer.watch.on_begin(position)
        if position.stopped_by is None:
            train(
                phase.stages,
                recipe.phase2,
                begin=position,
                clock=clock,
                on_step=trainer.watch.on_step,
                after_epoch=after_epoch,
                shutdown=trainer.shutdown,
                comm=phase.state.comm,
                leave=partial(leave, phase.state, trainer),
            )
        time_s = clock.reading() - started_s
        workers.append(
            Worker(
                number=number,
                samples=tuple(samples),
                statistics=trainer.weights.statistics.clone(),
                time_s=time_s,
            )
        )
    return workers


def tested(row: EpochRow, accuracies: Accuracies) -> EpochRow:
    """The epoch's row with its accuracy on the test images."""
    return replace(row, test_accuracy=accuracies.tested, test_top5_accuracy=accuracies.top5)


def leave(state: TrainingState, trainer: Trainer, position: Progress) -> None:
    """Keep a run that was told to end, where it is."""
    with trainer.clock.lap("checkpoint"):
        trainer.checkpoints.save(position, state, None)


def sampled_before(position: Progress, cycle_epochs: int, trainer: Trainer) -> list[Tensor]:
    """The samples [P] of the cycles that an interrupted worker had done; the model is as it was."""
    ends = range(cycle_epochs, position.epoch + 1, cycle_epochs)
    now = trainer.weights.copy()
    samples = [trainer.checkpoints.theta(position.worker, epoch) for epoch in ends]
    trainer.weights.load_(*now)
    return samples


def averaging_phase(trainer: Trainer, workers: list[Worker]) -> None:
    """Phase 3, lines 28-29: average the weights, then compute the batch-norm statistics anew."""
    trainer.watch.on_averaging()
    with trainer.clock.lap("waiting"):
        trainer.comm.barrier()
    with trainer.clock.lap("averaging"):
        models = ((worker.number, mean_of(worker.samples)) for worker in workers)
        theta = average(models, trainer.group.across)
        statistics = trainer.weights.statistics
        if trainer.weights.num_extra:  # buffers that the pass over the data does not make anew
            own = [worker.statistics for worker in workers]
            statistics = mean_statistics(own, trainer.group.across)
        trainer.weights.load_(theta, statistics)
    with trainer.clock.lap("batch_norm"):
        trainer.recompute_batchnorm(trainer.batch_norm_batches(), trainer.comm)


# What SWAP is compared with: the same trainer, in another order.


def sgd(recipe: SGDRecipe, trainer: Trainer) -> Result:
    """SGD alone, with small or with large batches: rows 1 and 2 of Tables 1 and 2."""
    phase1 = large_batch_phase(recipe, trainer)
    return Result(
        workers=[],
        phase1=phase1,
        before_averaging_s=trainer.clock.reading(),
        accuracies=phase1.accuracies,
    )


def swa(recipe: SWARecipe, trainer: Trainer) -> Result:
    """SWA: one model goes on, is sampled at the end of each cycle, and its samples are averaged.

    Rows 1 to 3 of Table 4: phase 1 is a whole large-batch run, one stopped as SWAP's, or a whole
    small-batch run.
    """
    phase1 = large_batch_phase(recipe, trainer)
    workers = small_batch_phase(recipe, trainer, phase1)
    before_averaging_s = trainer.clock.reading()
    with trainer.clock.lap("waiting"):
        trainer.comm.barrier()
    with trainer.clock.lap("averaging"):
        for worker in workers:
            for theta in worker.samples:
                # Ranks that trained the same model may differ in its last digits.
                trainer.comm.broadcast_(theta)
    averaging_phase(trainer, workers)
    with trainer.clock.lap("evaluation"):
        accuracies = trainer.evaluate(trainer.comm)
    return Result(
        workers=workers,
        phase1=phase1,
        before_averaging_s=before_averaging_s,
        accuracies=accuracies,
    )
