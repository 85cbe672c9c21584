"""What a run of the user's is made of on one rank: the trainer that Algorithm 1 is given."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import torch
from torch import nn

from swap_fast.config.execution import Execution
from swap_fast.config.phase import Phase
from swap_fast.distributed import Comm
from swap_fast.training.batchnorm import BatchNormRecompute
from swap_fast.training.callback import Callback, Callbacks
from swap_fast.training.clock import Clock
from swap_fast.training.evaluate import Accuracies
from swap_fast.training.loop import Batches, TrainStage
from swap_fast.training.shutdown import GracefulShutdown
from swap_fast.training.state import Checkpoints, TrainingState
from swap_fast.training.trainer import Evaluate, PhaseContext, Trainer
from swap_fast.training.weights import Weights
from swap_fast.user.data import Augment, Data, Placement, one_pass, phase_batches
from swap_fast.user.method import UserMethod
from swap_fast.user.optimizer import UserOptimizer
from swap_fast.user.step import Loss, Metric, Objective, UserStep, user_evaluator

_TRAINED: WeakSet[nn.Module] = WeakSet()
"""Nets that a run has trained: one may not be the start of another by mistake."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is trained on, and how it is measured."""

    train: Data
    """The training data."""
    test: Data | None
    """The test data; None: nothing is tested."""
    loss: Loss | None
    """The user's; None: cross entropy."""
    metric: Metric | None
    """Measured on the test data in place of the share that is right."""
    augment: Augment | None
    """Changes the batches that are trained on."""


def make_net(make_model: Callable[[], nn.Module], seed: int, device: torch.device) -> nn.Module:
    """The net at its initial weights, on its device.

    Raises:
        ValueError: no function, or one whose result is no net, a wrapped one, or one that was
            trained before.
    """
    if isinstance(make_model, nn.Module) or not callable(make_model):
        raise ValueError(
            "make_model: expected a function that makes the net, got a "
            f"{type(make_model).__name__}; pass the class, or lambda: Net(...)"
        )
    torch.manual_seed(seed)
    model = make_model()
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"make_model: expected a function that returns an nn.Module, got one that returns a "
            f"{type(model).__name__}"
        )
    wrapped = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    if isinstance(model, wrapped):
        raise ValueError(
            f"make_model: expected the bare net, got it in a {type(model).__name__}; the processes "
            "share the work by themselves"
        )
    if bare(model) in _TRAINED:
        raise ValueError(
            "make_model: expected a new net from each call, got one that swap has trained before; "
            "return copy.deepcopy(net)"
        )
    _TRAINED.add(bare(model))
    return model.to(device)


def bare(model: nn.Module) -> nn.Module:
    """The net itself, where torch.compile has put it in a module of its own."""
    inner = getattr(model, "_orig_mod", model)
    assert isinstance(inner, nn.Module), "torch's own name of what it compiles"
    return inner


def build_user_trainer(
    method: UserMethod,
    work: Work,
    model: nn.Module,
    weights: Weights,
    optimizer: UserOptimizer,
    *,
    seed: int,
    execution: Execution,
    comm: Comm,
    clock: Clock,
    callbacks: Iterable[Callback],
    checkpoints: Checkpoints,
    shutdown: GracefulShutdown,
) -> Trainer:
    """Put a run together on this rank.

    Arguments:
        model: the net, compiled or not; `weights` has it bare.

    Raises:
        ValueError: more ranks than the phases have replicas, or a number that the workers cannot
        use.
    """
    replicas = method.phase1.gpus_per_model
    if comm.world_size > replicas:
        raise ValueError(
            f"processes: expected 1 to {replicas}, one a worker's device, got {comm.world_size}; "
            "start fewer, or raise `workers`"
        )
    group = comm.worker_group(method.num_workers)
    device = weights.theta.device
    training = Placement(device=device, seed=seed, augment=work.augment)
    objective = Objective(model, work.loss)
    largest = max(phase.micro_batch_size for phase in (method.phase1, method.phase2))

    evaluate: Evaluate = _no_test
    if work.test is not None:
        evaluate = user_evaluator(
            model,
            work.test,
            Placement(device=device, seed=seed, augment=None),
            metric=work.metric,
            autocast=execution.autocast,
            objective=objective,
            batch_size=4 * largest,
        )

    def make_phase(number: int, phase: Phase, ranks: Comm, is_first: bool) -> PhaseContext:
        step = UserStep(weights, optimizer, phase, ranks, execution, objective)

        def open_batches() -> Batches:
            replicas = ranks.replicas(phase.gpus_per_model)
            return phase_batches(
                work.train,
                phase,
                training,
                number=number,
                replicas=replicas,
                into=step.micro_batches,
            )

        return PhaseContext(
            stages=(
                TrainStage(epochs=range(phase.max_epochs), step=step, open_batches=open_batches),
            ),
            state=TrainingState(
                weights=weights,
                optimizer=optimizer,
                statistics=step.statistics,
                comm=ranks,
                is_first=is_first,
            ),
            evaluators=(evaluate,),
        )

    def batch_norm_batches() -> Iterator[Any]:
        return one_pass(work.train, training, batch_size=largest, shuffled=True, comm=comm)

    trainer = Trainer(
        weights=weights,
        optimizer=optimizer,
        phases=(
            make_phase(1, method.phase1, comm, comm.rank == 0),
            make_phase(2, method.phase2, group.inside, group.is_first),
        ),
        recompute_batchnorm=BatchNormRecompute(
            weights, execution.autocast, forward=Objective(weights.model, work.loss)
        ),
        batch_norm_batches=batch_norm_batches,
        evaluate=evaluate,
        comm=comm,
        group=group,
        clock=clock,
        callbacks=Callbacks(callbacks),
        checkpoints=checkpoints,
        shutdown=shutdown,
    )
    trainer.callbacks.on_start(trainer)
    return trainer


def _no_test(comm: Comm) -> Accuracies:
    """Without test data nothing is tested."""
    return Accuracies(math.nan)
