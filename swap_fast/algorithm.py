"""Algorithm 1: Stochastic Weight Averaging in Parallel, beside SGD and SWA from the same parts.

Line numbers are those of the paper's listing. All that depends on the hardware and on the data is
in the `Trainer`; a rank runs the replicas and the workers that its `comm` gives it.
"""

from typing import Protocol

from swap_fast.config.phase import Phase
from swap_fast.config.recipe import SGDRecipe, SWARecipe
from swap_fast.training.state import Result, TrainedModel
from swap_fast.training.step import Metrics
from swap_fast.training.trainer import Trainer
from swap_fast.training.weights import average, mean_of, mean_statistics


class TwoPhases(Protocol):
    """What Algorithm 1 needs of a recipe."""

    @property
    def phase1(self) -> Phase:
        """Lines 2-4: tau, the learning rate LR_1 and the batch size B_1."""

    @property
    def phase2(self) -> Phase:
        """LR_2 and B_2, of each worker."""

    @property
    def keep_momentum(self) -> bool:
        """Whether phase 2 starts with phase 1's optimizer state, or without one."""


def swap(recipe: TwoPhases, trainer: Trainer) -> Result:
    """The three phases of Section 3."""
    phase1 = large_batch_phase(recipe.phase1, trainer)  # lines 7-17
    workers = small_batch_phase(recipe, trainer, phase1)  # lines 18-27
    before_averaging_s = trainer.clock.reading()
    averaging_phase(trainer, workers)  # lines 28-29
    return trainer.result(phase1, workers, before_averaging_s)


def large_batch_phase(phase: Phase, trainer: Trainer) -> TrainedModel:
    """Phase 1, lines 7-17: all replicas together train one model."""
    return train(trainer, 1, phase)


def small_batch_phase(
    recipe: TwoPhases, trainer: Trainer, start: TrainedModel
) -> list[TrainedModel]:
    """Phase 2, lines 18-27: each worker refines its own copy, with no communication among them."""
    workers = []
    for worker in trainer.group.workers:  # in parallel, on the ranks
        started_s = trainer.clock.reading()
        trainer.load_(start, keep_momentum=recipe.keep_momentum)
        workers.append(train(trainer, 2, recipe.phase2, worker, started_s))
    return workers


def train(
    trainer: Trainer, number: int, phase: Phase, worker: int = 0, started_s: float = 0.0
) -> TrainedModel:
    """Train one model until its train accuracy is above tau, or to the phase's last epoch.

    Its weights are sampled at the end of each cycle of the learning rate: once, at the end, but
    for Table 4's longer forms.
    """
    progress, samples = trainer.resume(number, phase, worker)
    epochs = trainer.epochs(phase, progress)
    with trainer.shutdown.training():
        while progress.stopped_by is None:  # line 8: while the train accuracy is at most tau
            row, metrics = next(epochs)  # lines 9-16, of phase 2 lines 20-24: an epoch's updates
            progress = trainer.finish_epoch(row, stopped_by(phase, row.epoch, metrics))
            if progress.stopped_by is None and progress.epoch % phase.cycle_epochs == 0:
                samples.append(trainer.sample(number))
    return trainer.trained(progress, samples, started_s)


def stopped_by(phase: Phase, epoch: int, metrics: Metrics) -> str | None:
    """What ends a phase after this epoch, counted from 1; None: the phase continues.

    The train accuracy is the mean over the epoch's own augmented batches, of all ranks. Gradient
    noise counts in epochs that begin past the peak of the learning rate. Earlier it shows how far
    the weights are from where they settle: it is large in the first epoch, falls while the
    learning rate rises, and only then begins to grow.
    """
    tau, noise = phase.stopping_accuracy, metrics.noise
    if tau is not None and metrics.accuracy > tau:
        return "stopping_accuracy"
    past_peak = epoch - 1 >= phase.peak_epoch
    if noise is not None and past_peak and noise.exceeds(phase.stopping_noise_ratio):
        return "noise_scale"
    return "max_epochs" if epoch == phase.max_epochs else None


def averaging_phase(trainer: Trainer, workers: list[TrainedModel]) -> None:
    """Phase 3, lines 28-29: average the weights, then recompute the batch-norm statistics."""
    trainer.callbacks.on_averaging()
    with trainer.clock.lap("waiting"):
        trainer.comm.barrier()
    with trainer.clock.lap("averaging"):
        models = ((model.worker, mean_of(model.samples)) for model in workers)
        theta = average(models, trainer.group.across)
        statistics = trainer.weights.statistics
        if trainer.weights.num_extra:  # buffers that the pass over the data does not recompute
            own = [model.statistics for model in workers]
            statistics = mean_statistics(own, trainer.group.across)
        trainer.load_average_(theta, statistics, workers)
    with trainer.clock.lap("batch_norm"):
        trainer.recompute_batchnorm(trainer.batch_norm_batches(), trainer.comm)


def sgd(recipe: SGDRecipe, trainer: Trainer) -> Result:
    """SGD alone, with small or with large batches: rows 1 and 2 of Tables 1 and 2."""
    phase1 = large_batch_phase(recipe.phase1, trainer)
    return trainer.result(phase1, [], trainer.clock.reading())


def swa(recipe: SWARecipe, trainer: Trainer) -> Result:
    """SWA: one model continues, is sampled after each cycle, and its samples are averaged.

    Rows 1 to 3 of Table 4: phase 1 is a whole large-batch run, one stopped as SWAP's, or a whole
    small-batch run.
    """
    phase1 = large_batch_phase(recipe.phase1, trainer)
    workers = small_batch_phase(recipe, trainer, phase1)
    before_averaging_s = trainer.clock.reading()
    with trainer.clock.lap("waiting"):
        trainer.comm.barrier()
    with trainer.clock.lap("averaging"):
        for sample in (sample for model in workers for sample in model.samples):
            # Ranks that trained the same model may differ in its last digits.
            trainer.comm.broadcast_(sample)
    averaging_phase(trainer, workers)
    return trainer.result(phase1, workers, before_averaging_s)
