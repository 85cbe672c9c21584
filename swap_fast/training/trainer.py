"""What a run is made of on one rank, and how it is put together."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from swap_fast.clock import Clock
from swap_fast.config.checks import require, typed_arguments
from swap_fast.config.execution import Execution
from swap_fast.config.phase import Phase, shapes
from swap_fast.config.recipe import AveragingRecipe, Recipe, SWARecipe
from swap_fast.config.step_choice import StepChoice
from swap_fast.data.cifar.batches import require_a_batch
from swap_fast.distributed import ALONE, Comm, WorkerGroup
from swap_fast.record import EpochRow
from swap_fast.shutdown import NEVER, GracefulShutdown, InterruptedRunError
from swap_fast.training.batchnorm import BatchNormRecompute
from swap_fast.training.callback import Callback, Callbacks
from swap_fast.training.capture import Captures
from swap_fast.training.choice import (
    Candidate,
    build_in_turn,
    candidates,
    choose_step,
    describe,
    phase_shapes,
)
from swap_fast.training.evaluate import Accuracies, Evaluate
from swap_fast.training.loop import ImageSource, Source, TrainStage, train_epochs
from swap_fast.training.optimizer import ScaledOptimizer, recipe_optimizer
from swap_fast.training.state import (
    Checkpoints,
    NoCheckpoints,
    Progress,
    Result,
    TrainedModel,
    TrainingState,
)
from swap_fast.training.step import BaseStep, Metrics, Step
from swap_fast.training.weights import Weights, average


@dataclass(frozen=True, kw_only=True)
class PhaseContext:
    """What one phase is made of on this rank."""

    stages: tuple[TrainStage, ...]
    """Steps and batches, epoch by epoch."""
    state: TrainingState
    """What its next update depends on."""
    evaluators: tuple[Evaluate, ...]
    """Of each stage."""

    def evaluate(self, epoch: int, comm: Comm) -> Accuracies:
        """Test accuracy after an epoch counted from 1, over the ranks of `comm`."""
        at = [epoch - 1 in stage.epochs for stage in self.stages].index(True)
        return self.evaluators[at](comm)


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """What a run is made of on this rank."""

    weights: Weights
    """The model, at its initial weights theta_0."""
    optimizer: ScaledOptimizer
    """Shared by both phases' steps."""
    phases: tuple[PhaseContext, ...]
    """Phase 1 and, for SWAP and SWA, phase 2."""
    recompute_batchnorm: Callable[[Iterable[Any], Comm], None]
    """Phase 3's computation of batch-norm statistics ..."""
    batch_norm_batches: Callable[[], Iterable[Any]]
    """... and this rank's share of the training data for it."""
    evaluate: Evaluate
    """Test accuracy of the final model."""
    comm: Comm
    """The ranks."""
    group: WorkerGroup
    """Of these, the ones that run the same workers of phase 2."""
    clock: Clock
    """Laps of this rank."""
    callbacks: Callbacks
    """Called as training goes on."""
    checkpoints: Checkpoints
    """Where the run is kept."""
    shutdown: GracefulShutdown
    """Ends the run after a signal."""
    step_choice: StepChoice | None = None
    """The step of all updates, where the execution left it open."""

    def load_(self, start: TrainedModel, *, keep_momentum: bool) -> None:
        """Begin a worker from phase 1's model: weights, statistics, and its optimizer's state."""
        with self.clock.lap("phase2"):
            self.weights.load_(start.theta, start.statistics)
            self.weights.set_unaveraged_buffers_(start.unaveraged_buffers)
            self.phases[1].state.statistics.reset_()
            self.optimizer.reset_()
            if keep_momentum:
                self.optimizer.load_state_dict(start.optimizer_state)

    def load_average_(
        self, theta: Tensor, statistics: Tensor, workers: Sequence[TrainedModel]
    ) -> None:
        """Put an average into the model; buffers that have none are the first worker's."""
        self.weights.load_(theta, statistics)
        if self.weights.has_unaveraged_buffers:
            first = workers[0].unaveraged_buffers.items()
            self.weights.set_unaveraged_buffers_(
                self.comm.on_first(lambda: {name: value.cpu() for name, value in first})
            )

    def resume(self, number: int, phase: Phase, worker: int) -> tuple[Progress, list[Tensor]]:
        """Put back what an interrupted run had done of a phase; at its start, nothing.

        Returns:
            The progress, and the samples [P] of the learning rate's cycles that are done.
        """
        self.weights.model.train()
        with self.clock.lap("checkpoint"):
            progress = self.checkpoints.restore_(
                Progress(phase=number, worker=worker), self.phases[number - 1].state
            )
            cycles = range(phase.cycle_epochs, progress.epoch + 1, phase.cycle_epochs)
            ends = [end for end in cycles if end < progress.epoch or progress.stopped_by is None]
            if ends and number == 2:
                now = self.weights.copy()
                samples = [self.checkpoints.theta(worker, end) for end in ends]
                self.weights.load_(*now)
            else:
                samples = []
        if self._reports(number):
            self.callbacks.on_begin(progress)
        return progress, samples

    def epochs(self, phase: Phase, begin: Progress) -> Iterator[tuple[EpochRow, Metrics]]:
        """The updates of a phase, epoch by epoch: see `train_epochs`."""
        context = self.phases[begin.phase - 1]

        def save(progress: Progress) -> None:
            with self.clock.lap("checkpoint"):
                self.checkpoints.save(progress, context.state, None)

        return train_epochs(
            context.stages,
            phase,
            begin=begin,
            clock=self.clock,
            on_step=self.callbacks.on_step,
            shutdown=self.shutdown,
            comm=context.state.comm,
            save=save,
        )

    def finish_epoch(self, row: EpochRow, stopped_by: str | None) -> Progress:
        """Off the clock: test the model, report the epoch, save a checkpoint.

        Raises:
            InterruptedRunError: a signal ended the run; the epoch is saved.
        """
        context = self.phases[row.phase - 1]
        comm, reports = context.state.comm, self._reports(row.phase)
        with self.clock.lap("evaluation"):
            context.state.statistics.merge_()
            accuracies = context.evaluate(row.epoch, comm)
        row = replace(
            row,
            test_accuracy=accuracies.tested,
            test_top5_accuracy=accuracies.top5,
            mirrored_test_accuracy=accuracies.mirrored,
        )
        if reports:
            modes = [(module, module.training) for module in self.weights.model.modules()]
            self.callbacks.on_epoch_end(row)
            if not self.weights.model.training:  # a callback has tested it
                for module, mode in modes:
                    module.training = mode
        progress = Progress(
            phase=row.phase,
            worker=row.worker,
            epoch=row.epoch,
            stopped_by=stopped_by,
            accuracies=accuracies,
        )
        with self.clock.lap("checkpoint"):
            self.checkpoints.save(progress, context.state, row)
        if reports and stopped_by is not None:
            self.callbacks.on_end(progress)
        # Whether the checkpoint was the last thing to do; not "waiting", which is phase 3's.
        with self.clock.lap("checkpoint") if comm.world_size > 1 else nullcontext():
            ends_here = self.shutdown.ends_here(comm)
        if ends_here:
            raise InterruptedRunError(f"after epoch {row.epoch}", together=True)
        return progress

    def sample(self, number: int) -> Tensor:
        """A copy of the weights [P] after a cycle of a phase's learning rate."""
        with self.clock.lap(f"phase{number}"):
            return self.weights.copy()[0]

    def trained(
        self, progress: Progress, samples: Sequence[Tensor], started_s: float
    ) -> TrainedModel:
        """The model as it is at the end of a phase."""
        with self.clock.lap(f"phase{progress.phase}"):
            theta, statistics = self.weights.copy()
            unaveraged_buffers = self.weights.unaveraged_buffers()
            optimizer_state = self.optimizer.state_dict() if progress.phase == 1 else None
        return TrainedModel(
            progress=progress,
            samples=(*samples, theta),
            statistics=statistics,
            unaveraged_buffers=unaveraged_buffers,
            optimizer_state=optimizer_state,
            time_s=self.clock.reading() - started_s,
        )

    def result(
        self, phase1: TrainedModel, workers: list[TrainedModel], before_averaging_s: float
    ) -> Result:
        """The run's result, with the final model's test accuracy: phase 1's where it is that."""
        accuracies = phase1.progress.accuracies
        if workers:
            with self.clock.lap("evaluation"):
                accuracies = self.evaluate(self.comm)
        return Result(
            phase1=phase1,
            workers=workers,
            before_averaging_s=before_averaging_s,
            accuracies=accuracies,
        )

    def _reports(self, number: int) -> bool:
        """Whether this rank reports a phase: in phase 2 the first of those that share a worker."""
        return number == 1 or self.group.is_first


@typed_arguments()
def build_trainer(
    recipe: Recipe,
    make_model: Callable[[], nn.Module],
    source: ImageSource,
    *,
    seed: int,
    device: torch.device,
    execution: Execution,
    comm: Comm = ALONE,
    clock: Clock,
    callbacks: Iterable[Callback] = (),
    checkpoints: Checkpoints | None = None,
    shutdown: GracefulShutdown = NEVER,
    workers: Sequence[int] | None = None,
    captures: Captures | None = None,
    step_choice: StepChoice | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Trainer:
    """Make the model, warm the kernels up, and move the data to the device, in that order.

    So the steps are captured before a loader's threads use the device.

    Every rank makes the same model from the seed, and takes rank 0's weights to be sure.

    Arguments:
        workers: those of phase 2 that a process alone is to run; None: all, shared out.
        captures: owner of the CUDA graphs, where the execution has the steps captured.
        step_choice: which step an interrupted run had, where the execution leaves it open; None:
            it is chosen here, off the clock.
        say: given what was measured for the choice, line by line, on rank 0.

    Raises:
        ValueError: more ranks than the recipe has use for, too little data, a seed below 0, or
            fused kernels for a net that has none.
    """
    assert captures is not None or not execution.capture, "captured steps, and nobody to reset them"
    require(seed >= 0, "seed", "0 or more", seed)
    group = worker_group(recipe, comm, workers)
    phases = [(recipe.phase1, comm)]
    if isinstance(recipe, AveragingRecipe):
        phases.append((recipe.phase2, group.inside))
    for number, (phase, _) in enumerate(phases, start=1):
        require_a_batch(number, phase.global_batch_size, source.num_images)
    with clock.lap("model_init"):
        torch.manual_seed(seed)
        weights = Weights(execution.place(make_model(), device), groups=recipe.optimizer.groups)
        comm.broadcast_(weights.theta.detach())
        optimizer = recipe_optimizer(
            weights, recipe.optimizer, scale_gradients=execution.precision == "fp16"
        )
    smoothing = recipe.label_smoothing
    if execution.step != "auto":
        step_choice = None
    elif len(names := candidates(execution, weights.model)) == 1:
        step_choice, execution = None, replace(execution, step=names[0])
    else:
        with clock.lap("kernel_warmup"):
            if step_choice is None:
                if comm.rank == 0:
                    say(f"timing the steps that the run may use: {', '.join(names)}")
                of_run = phase_shapes(
                    phases,
                    len(group.workers),
                    num_images=source.num_images,
                    image_size=source.image_size,
                )
                step_choice = choose_step(
                    partial(Candidate, weights, optimizer, label_smoothing=smoothing),
                    execution,
                    of_run,
                    names,
                    weights=weights,
                    optimizer=optimizer,
                    comm=comm,
                )
                for line in describe(step_choice) if comm.rank == 0 else ():
                    say(line)
            execution = replace(execution, step=step_choice.chosen)
            execution.choose_kernels_(weights.model)
    with clock.lap("model_init"):
        make_step = partial(
            Step, weights, optimizer, execution=execution, label_smoothing=smoothing
        )
        steps = [make_steps(make_step, phase, ranks, source.image_size) for phase, ranks in phases]
        recompute_batchnorm, buffer = BatchNormRecompute(weights, execution.autocast), None
    with clock.lap("kernel_warmup"):
        for number, ((phase, ranks), of_phase) in enumerate(zip(phases, steps, strict=True), 1):
            told: Any = {"number": number, "replicas": ranks.replicas(phase.gpus_per_model)}
            for step in of_phase:
                if execution.is_built:
                    build_in_turn(step.first_pass, comm)
                step.load_from_(
                    source.resident_batches(phase, step.batch, execution, seed=seed, **told)
                )
                step.warm_up(captures=captures)
        source.warm_up(weights, execution)
        if isinstance(recipe, AveragingRecipe):
            side, size = steps[-1][-1].shape.image_size, recipe.batch_norm_batch_size
            buffer = execution.empty_images((size, 3, side, side), device)
            short = source.num_images % size  # images in the pass's last batch, on some rank
            recompute_batchnorm.warm_up(
                buffer,
                short=[short] if short else [],
                captures=captures if execution.capture else None,
                comm=comm,
            )
            # For nothing, but that NCCL makes the communicator, and the kernels are loaded.
            average([(group.across.rank, weights.theta.detach())], group.across)
    return assemble(
        source,
        phases,
        steps,
        weights=weights,
        optimizer=optimizer,
        recompute_batchnorm=recompute_batchnorm,
        buffer=buffer,
        seed=seed,
        execution=execution,
        comm=comm,
        group=group,
        clock=clock,
        callbacks=callbacks,
        checkpoints=checkpoints or NoCheckpoints(),
        shutdown=shutdown,
        step_choice=step_choice,
    )


def worker_group(recipe: Recipe, comm: Comm, workers: Sequence[int] | None) -> WorkerGroup:
    """The workers of phase 2 that this rank runs, and the ranks it shares them with.

    Raises:
        ValueError: more ranks than the recipe has use for.
    """
    if comm.world_size > recipe.num_replicas:
        raise ValueError(
            f"recipe {recipe.name}: expected 1 to {recipe.num_replicas} processes, one a "
            f"replica of phase 1, got {comm.world_size}"
        )
    if not isinstance(recipe, AveragingRecipe):
        return WorkerGroup(workers=range(0), inside=ALONE, across=comm)
    if workers is not None:
        assert comm.world_size == 1, "a process alone runs the workers named"
        return WorkerGroup(workers=tuple(workers), inside=ALONE, across=ALONE)
    if isinstance(recipe, SWARecipe):
        return comm.sequence_group(recipe.phase2.gpus_per_model)
    return comm.worker_group(recipe.num_workers)


def make_steps(
    make_step: Callable[..., Step], phase: Phase, ranks: Comm, image_size: int
) -> list[Step]:
    """A step for each shape of a phase's batches; they share one set of statistics a replica."""
    steps: list[Step] = []
    for shape in shapes(phase, image_size):
        shared = steps[0].statistics if steps else None
        steps.append(make_step(phase, ranks, shape=shape, statistics=shared))
    return steps


def assemble(
    source: Source,
    phases: Sequence[tuple[Phase, Comm]],
    steps: Sequence[Sequence[BaseStep]],
    *,
    weights: Weights,
    optimizer: ScaledOptimizer,
    recompute_batchnorm: Callable[[Iterable[Any], Comm], None],
    buffer: Tensor | None,
    seed: int,
    execution: Execution,
    comm: Comm,
    group: WorkerGroup,
    clock: Clock,
    callbacks: Iterable[Callback],
    checkpoints: Checkpoints,
    shutdown: GracefulShutdown,
    step_choice: StepChoice | None = None,
) -> Trainer:
    """Move the data to the device, and put warm steps and the data together as a trainer.

    Arguments:
        phases: each with the ranks that share its updates.
        steps: of each phase, one for each shape of its batches.
        buffer: for the images [B, 3, H, W] of phase 3; None: the source needs none.
    """

    def make_phase(number: int) -> PhaseContext:
        (phase, ranks), of_phase = phases[number - 1], steps[number - 1]
        replicas = ranks.replicas(phase.gpus_per_model)

        def stage(step: BaseStep) -> TrainStage:
            opened = partial(source.batches, phase, step.shape, number=number, replicas=replicas)
            return TrainStage(
                epochs=step.shape.epochs, step=step, open_batches=partial(opened, into=step.batch)
            )

        return PhaseContext(
            stages=tuple(map(stage, of_phase)),
            state=TrainingState(
                weights=weights,
                optimizer=optimizer,
                statistics=of_phase[0].statistics,
                comm=ranks,
                is_first=comm.rank == 0 if number == 1 else group.is_first,
            ),
            evaluators=tuple(source.evaluator(step.shape) for step in of_phase),
        )

    with clock.lap("data_preparation"):
        source.open_(weights, execution, seed=seed)
        made = tuple(make_phase(number) for number in range(1, len(phases) + 1))
    last = steps[-1][-1].shape
    trainer = Trainer(
        weights=weights,
        optimizer=optimizer,
        phases=made,
        recompute_batchnorm=recompute_batchnorm,
        batch_norm_batches=lambda: source.batch_norm_batches(buffer, last, comm),
        evaluate=made[-1].evaluators[-1],
        comm=comm,
        group=group,
        clock=clock,
        callbacks=Callbacks(callbacks),
        checkpoints=checkpoints,
        shutdown=shutdown,
        step_choice=step_choice,
    )
    trainer.callbacks.on_start(trainer)
    return trainer
