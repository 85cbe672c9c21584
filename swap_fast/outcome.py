"""What the ranks of a finished run know together, and Figure 1's running average."""

from collections.abc import Sequence

import torch
from torch import Tensor

from swap_fast.clock import PAPER, READINGS, total
from swap_fast.config.recipe import SWAPRecipe, SWARecipe
from swap_fast.record import AverageRow, EpochRow, Times
from swap_fast.training.state import Result, TrainedModel
from swap_fast.training.trainer import Trainer
from swap_fast.training.weights import average, mean_of


def gather_times(trainer: Trainer, result: Result) -> Times:
    """The run's times from the clocks of all ranks, of which the slowest counts.

    Every rank must call.
    """
    comm, clock = trainer.comm, trainer.clock
    gathered = comm.gather([(w.worker, w.time_s) for w in result.workers if trainer.group.is_first])
    worker_phase2_s = [time_s for _, time_s in sorted(pair for rank in gathered for pair in rank)]
    laps = comm.gather(clock.laps)
    before_s = max(comm.gather(result.before_averaging_s))
    slowest = max(laps, key=lambda rank: total(rank, PAPER))
    readings_s = {reading: total(slowest, names) for reading, names in READINGS.items()}
    after_s = readings_s["paper"]
    phase2_s = slowest.get("phase2", 0.0)
    saved_s = phase2_s - max(worker_phase2_s, default=phase2_s)
    has_phase2 = bool(worker_phase2_s)
    return Times(
        before_averaging_s=before_s if has_phase2 else None,
        after_averaging_s=after_s,
        modelled_before_averaging_s=before_s - saved_s if has_phase2 else None,
        modelled_after_averaging_s=after_s - saved_s,
        readings_s=readings_s,
        reading_laps={reading: list(names) for reading, names in READINGS.items()},
        laps_by_rank=laps,
        worker_phase2_s=worker_phase2_s,
        wall_s=clock.wall() + laps[comm.rank].get("imports", 0.0),
    )


def gather_rows(trainer: Trainer, rows: Sequence[EpochRow]) -> list[EpochRow]:
    """This rank's epochs of phase 1, then all ranks' of phase 2 by worker; every rank must call."""
    own = [row for row in rows if row.phase == 2] if trainer.group.is_first else []
    phase2 = [row for rank in trainer.comm.gather(own) for row in rank]
    phase2.sort(key=lambda row: (row.worker, row.epoch))
    return [row for row in rows if row.phase == 1] + phase2


def workers_on_first(
    trainer: Trainer, result: Result
) -> list[tuple[list[Tensor], Tensor, dict[str, Tensor]]]:
    """Each worker's samples [P], statistics and unaveraged buffers, by number, on rank 0's host.

    Elsewhere none.

    Every rank must call.
    """
    own = [
        (
            model.worker,
            [theta.cpu() for theta in model.samples],
            model.statistics.cpu(),
            {name: value.cpu() for name, value in model.unaveraged_buffers.items()},
        )
        for model in (result.workers if trainer.group.is_first else [])
    ]
    gathered = [each for rank in trainer.comm.gather_on_first(own) for each in rank]
    gathered.sort(key=lambda each: each[0])
    return [each[1:] for each in gathered]


def running_average(recipe: SWAPRecipe, trainer: Trainer, result: Result) -> list[AverageRow]:
    """The test accuracy of the average model, had phase 2 stopped after each of its epochs.

    Computed from the weights that each worker saved, so that phase 2 has no communication. Of a
    phase in stages only the last stage's epochs are taken, since the others have another image
    size. The model has its final weights again at the end.

    Arguments:
        result: of this run; its accuracy is the last row.
    """
    rows, final, group = [], trainer.weights.copy(), trainer.group

    def theta_after(model: TrainedModel, epoch: int) -> Tensor:
        if group.is_first:
            theta = trainer.checkpoints.theta(model.worker, epoch)
        else:
            theta = torch.empty_like(model.theta)
        return group.inside.broadcast_(theta)

    first = trainer.phases[1].stages[-1].epochs.start + 1
    for epoch in range(first, recipe.phase2.max_epochs):
        # The samples of the finished cycles, and the weights of the current one.
        done = (epoch - 1) // recipe.phase2.cycle_epochs
        models = (
            (model.worker, mean_of([*model.samples[:done], theta_after(model, epoch)]))
            for model in result.workers
        )
        theta = average(models, group.across)
        trainer.weights.load_(theta, final[1])
        trainer.recompute_batchnorm(trainer.batch_norm_batches(), trainer.comm)
        rows.append(AverageRow(epoch=epoch, test_accuracy=trainer.evaluate(trainer.comm).top1))
    trainer.weights.load_(*final)
    last = AverageRow(epoch=recipe.phase2.max_epochs, test_accuracy=result.accuracies.top1)
    return [*rows, last]


def average_by_cycle(recipe: SWARecipe, trainer: Trainer, result: Result) -> list[AverageRow]:
    """The test accuracy of the samples' average after each cycle of SWA.

    The model has its final weights again at the end.
    """
    rows, final, cycle_epochs = [], trainer.weights.copy(), recipe.phase2.cycle_epochs
    (worker,) = result.workers
    for count in range(1, recipe.phase2.cycles):
        trainer.weights.load_(mean_of(worker.samples[:count]), final[1])
        trainer.recompute_batchnorm(trainer.batch_norm_batches(), trainer.comm)
        accuracy = trainer.evaluate(trainer.comm).top1
        rows.append(AverageRow(epoch=count * cycle_epochs, test_accuracy=accuracy))
    trainer.weights.load_(*final)
    return [*rows, AverageRow(epoch=recipe.phase2.max_epochs, test_accuracy=result.accuracies.top1)]
