"""What a run is made of on one rank, and how it is put together."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from swap_fast.batchnorm import recompute_statistics_
from swap_fast.clock import Clock
from swap_fast.comm import ALONE, Comm
from swap_fast.config import Recipe, SWAPRecipe
from swap_fast.data.augment import IMAGE_SIZE, plain_plan, plan_epoch
from swap_fast.data.batches import Loader, Share, one_pass
from swap_fast.data.dataset import Dataset, Split
from swap_fast.data.images import DeviceImages
from swap_fast.data.loaders import loader_maker
from swap_fast.evaluate import Evaluator
from swap_fast.execution import Execution
from swap_fast.optimizer import NesterovSGD
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
class Parts:
    """What a run is made of on this rank."""

    weights: Weights
    """The model, at its initial weights theta_0."""
    optimizer: NesterovSGD
    """Shared by both phases' steps."""
    steps: tuple[Step, ...]
    """One update of phase 1 and, for SWAP, of phase 2."""
    batches: tuple[Loader, ...]
    """Each phase's batches of this rank."""
    batch_norm_batches: Callable[[], Iterable[Tensor]]
    """This rank's share of phase 3's pass over the training data."""
    evaluate: Evaluator
    """Test accuracy."""
    execution: Execution
    """Precision of forward passes."""
    comm: Comm
    """The ranks."""
    clock: Clock
    """Laps of this rank."""
    watch: Watch
    """Who is told."""


def _warm_up_batch_norm(weights: Weights, recipe: SWAPRecipe, execution: Execution) -> None:
    """Run phase 3's pass on one batch of random images, then put the statistics back."""
    before = weights.statistics.clone()
    shape = (recipe.batch_norm_batch_size, 3, IMAGE_SIZE, IMAGE_SIZE)
    images = execution.empty_images(shape, weights.theta.device).normal_()
    recompute_statistics_(weights, [images], autocast=execution.autocast)
    weights.statistics.copy_(before)


def _warm_up_gathers(recipe: Recipe, execution: Execution, device: torch.device) -> None:
    """Gather one image in each of the run's ways: as phases, clean passes and evaluation do."""
    split = Split(images=np.zeros((1, 32, 32, 3), np.uint8), labels=np.zeros(1, np.uint8))
    batch = execution.empty_images((1, 3, IMAGE_SIZE, IMAGE_SIZE), device)
    labels = torch.zeros(1, dtype=torch.int64, device=device)
    of_phases = plan_epoch(1, recipe.augmentation, seed=0, phase=1, worker=0, epoch=0)
    pad, channels = recipe.augmentation.pad, (1.0, 1.0, 1.0)
    for border, plan in ((pad, of_phases), (pad, plain_plan(1, pad)), (0, plain_plan(1, 0))):
        images = DeviceImages(split, mean=channels, std=channels, device=device, pad=border)
        images.load_(images.upload(plan), slice(0, 1), batch, labels)


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

    So the steps are captured before a loader's threads use the device.

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
    phases = (recipe.phase1, recipe.phase2) if isinstance(recipe, SWAPRecipe) else (recipe.phase1,)
    phase_comms = (comm, ALONE)[: len(phases)]
    with clock.lap("model_init"):
        torch.manual_seed(seed)
        weights = Weights(
            execution.place(make_model(), device),
            biases_last=recipe.optimizer.bias_lr_factor != 1,
        )
        comm.broadcast_(weights.theta.detach())
        optimizer = NesterovSGD(
            weights, recipe.optimizer, scale_gradients=execution.precision == "fp16"
        )
        steps = tuple(
            Step(
                weights, optimizer, phase, ranks, execution, label_smoothing=recipe.label_smoothing
            )
            for phase, ranks in zip(phases, phase_comms, strict=True)
        )
    with clock.lap("kernel_warmup"):
        for step in steps:
            step.warm_up()
        _warm_up_gathers(recipe, execution, device)
        if isinstance(recipe, SWAPRecipe):
            _warm_up_batch_norm(weights, recipe, execution)
    with clock.lap("data_preparation"):
        mean, std, pad = dataset.mean, dataset.std, recipe.augmentation.pad
        train = dataset.train
        train = Split(images=train.images[:size], labels=train.labels[:size])
        images = DeviceImages(train, mean=mean, std=std, device=device, pad=pad)
        test = DeviceImages(dataset.test, mean=mean, std=std, device=device)
        evaluate = Evaluator(weights, test, execution, mirrored=recipe.mirrored_evaluation)
        make_loader = loader_maker(
            images,
            train,
            recipe.augmentation,
            mean=mean,
            std=std,
            execution=execution,
            device=device,
        )
        batches = tuple(
            make_loader(
                Share(
                    num_images=size,
                    augmentation=recipe.augmentation,
                    phase=phase,
                    seed=seed,
                    number=number,
                    slots=ranks.slots(phase.gpus_per_model),
                )
            )
            for number, (phase, ranks) in enumerate(zip(phases, phase_comms, strict=True), start=1)
        )

    def batch_norm_batches() -> Iterable[Tensor]:
        assert isinstance(recipe, SWAPRecipe)
        augmentation = recipe.augmentation if recipe.batch_norm_augmented else None
        size = recipe.batch_norm_batch_size
        buffer = execution.empty_images((size, 3, 32, 32), device)
        return one_pass(images, augmentation, buffer, seed=seed, comm=comm)

    return Parts(
        weights=weights,
        optimizer=optimizer,
        steps=steps,
        batches=batches,
        batch_norm_batches=batch_norm_batches,
        evaluate=evaluate,
        execution=execution,
        comm=comm,
        clock=clock,
        watch=watch,
    )
