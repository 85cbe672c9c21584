"""What a run is made of on one rank, and how it is put together."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from swap_fast.batchnorm import SlotStatistics, StatisticsPass
from swap_fast.clock import Clock
from swap_fast.comm import ALONE, Comm, WorkerGroup
from swap_fast.config import AveragingRecipe, Recipe, SWARecipe
from swap_fast.data.augment import IMAGE_SIZE
from swap_fast.data.batches import Batches, one_pass
from swap_fast.data.dataset import Dataset, Split
from swap_fast.data.images import DeviceImages
from swap_fast.evaluate import Evaluator
from swap_fast.execution import Execution
from swap_fast.optimizer import MomentumSGD
from swap_fast.record import EpochRow
from swap_fast.step import Step
from swap_fast.weights import Weights


@dataclass(frozen=True, kw_only=True)
class Watch:
    """Who is told of a run's progress. Each is called off the clock but `on_step`."""

    on_step: Callable[[int], None] = lambda phase: None
    """After every update, with its phase: from the hot loop, so it must be cheap."""
    on_epoch: Callable[[EpochRow], None] = lambda row: None
    """After every epoch of this rank."""
    on_weights: Callable[[int, int, int], None] = lambda phase, worker, epoch: None
    """(phase, worker, epoch): the model now holds weights worth keeping."""


@dataclass(frozen=True, kw_only=True)
class PhaseParts:
    """What one phase is made of on this rank."""

    step: Step
    """One update."""
    batches: Batches
    """What it is given."""
    statistics: SlotStatistics
    """Batch-norm statistics of the slots that share an update."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a run is made of on this rank."""

    weights: Weights
    """The model, at its initial weights theta_0."""
    optimizer: MomentumSGD
    """Shared by both phases' steps."""
    phases: tuple[PhaseParts, ...]
    """Phase 1 and, for SWAP and SWA, phase 2."""
    statistics_pass: StatisticsPass
    """Phase 3's computation of batch-norm statistics ..."""
    batch_norm_batches: Callable[[], Iterable[Tensor]]
    """... and this rank's share of the training data for it."""
    evaluate: Evaluator
    """Test accuracy."""
    execution: Execution
    """Precision of forward passes."""
    comm: Comm
    """The ranks."""
    group: WorkerGroup
    """Of these, the ones that run the same workers of phase 2."""
    clock: Clock
    """Laps of this rank."""
    watch: Watch
    """Who is told."""


def make_parts(
    recipe: Recipe,
    make_model: Callable[[], nn.Module],
    dataset: Dataset,
    *,
    seed: int,
    device: torch.device,
    execution: Execution,
    comm: Comm = ALONE,
    clock: Clock,
    watch: Watch,
) -> Parts:
    """Make the model, warm the kernels up, and move the data to the device, in that order.

    Every rank makes the same model from the seed, and takes rank 0's weights to be sure.

    Raises:
        ValueError: more ranks than the recipe has use for, too little data, or a seed below 0.
    """
    if seed < 0:
        raise ValueError(f"seed: expected 0 or more, got {seed}")
    size = recipe.train_images or len(dataset.train)
    if size > len(dataset.train):
        raise ValueError(
            f"train_images: expected at most the data set's {len(dataset.train):,}, got {size:,}"
        )
    if comm.world_size > recipe.num_slots:
        raise ValueError(
            f"recipe {recipe.name}: expected 1 to {recipe.num_slots} processes, one a "
            f"slot of phase 1, got {comm.world_size}"
        )
    group, phases = (
        WorkerGroup(workers=range(0), inside=ALONE, across=comm),
        [(recipe.phase1, comm)],
    )
    if isinstance(recipe, AveragingRecipe):
        group = (
            comm.sequence_group(recipe.phase2.gpus_per_model)
            if isinstance(recipe, SWARecipe)
            else comm.worker_group(recipe.num_workers)
        )
        phases.append((recipe.phase2, group.inside))
    with clock.lap("model_init"):
        torch.manual_seed(seed)
        weights = Weights(
            execution.place(make_model(), device),
            set_apart=recipe.optimizer.set_apart,
        )
        comm.broadcast_(weights.theta.detach())
        optimizer = MomentumSGD(
            weights, recipe.optimizer, scale_gradients=execution.precision == "fp16"
        )
        steps = tuple(
            Step(
                weights, optimizer, phase, ranks, execution, label_smoothing=recipe.label_smoothing
            )
            for phase, ranks in phases
        )
        statistics_pass = StatisticsPass(weights, execution.autocast)
    with clock.lap("kernel_warmup"):
        for step in steps:
            step.warm_up()
        if isinstance(recipe, AveragingRecipe):
            shape = (recipe.batch_norm_batch_size, 3, IMAGE_SIZE, IMAGE_SIZE)
            buffer = execution.empty_images(shape, device)
            statistics_pass.warm_up(buffer, captured=execution.capture)
    with clock.lap("data_preparation"):
        mean, std, pad = dataset.mean, dataset.std, recipe.augmentation.pad
        train = dataset.train
        train = Split(images=train.images[:size], labels=train.labels[:size])
        images = DeviceImages(train, mean=mean, std=std, device=device, pad=pad)
        test = DeviceImages(dataset.test, mean=mean, std=std, device=device)
        evaluate = Evaluator(weights, test, execution, mirrored=recipe.mirrored_evaluation)
        batches = tuple(
            Batches(
                images,
                recipe.augmentation,
                phase,
                seed=seed,
                number=number,
                slots=ranks.slots(phase.gpus_per_model),
            )
            for number, (phase, ranks) in enumerate(phases, start=1)
        )

    def batch_norm_batches() -> Iterable[Tensor]:
        assert isinstance(recipe, AveragingRecipe)
        augmentation = recipe.augmentation if recipe.batch_norm_augmented else None
        return one_pass(images, augmentation, buffer, seed=seed, comm=comm)

    return Parts(
        weights=weights,
        optimizer=optimizer,
        phases=tuple(
            PhaseParts(step=step, batches=of_step, statistics=step.statistics)
            for step, of_step in zip(steps, batches, strict=True)
        ),
        statistics_pass=statistics_pass,
        batch_norm_batches=batch_norm_batches,
        evaluate=evaluate,
        execution=execution,
        comm=comm,
        group=group,
        clock=clock,
        watch=watch,
    )
