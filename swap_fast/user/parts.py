"""The net and the data of a user's run."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any
from weakref import WeakSet

import torch
from torch import nn

from swap_fast.config.execution import Execution
from swap_fast.config.phase import BatchShape, Phase
from swap_fast.distributed import Comm
from swap_fast.training.evaluate import Accuracies
from swap_fast.training.loop import Batches
from swap_fast.training.trainer import Evaluate
from swap_fast.training.weights import Weights
from swap_fast.user.data import Augment, Data, Placement, one_pass, phase_batches
from swap_fast.user.step import Metric, Objective, user_evaluator

_TRAINED: WeakSet[nn.Module] = WeakSet()
"""Nets that a run has trained: one may not be the start of another by mistake."""


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


def refuse_lone_examples(
    phase: Phase, name: str, weights: Weights, objective: Objective, data: Data, place: Placement
) -> None:
    """Try the net on one example, where a phase's devices get one each, before anything is trained.

    Raises:
        ValueError: its batch norm has one value a channel then, of which there is no variance.
    """
    if phase.micro_batch_size > 1 or not weights.norms:
        return
    before = weights.copy()
    (batch, *_) = islice(one_pass(data, place, batch_size=1, shuffled=False), 1)
    try:
        with torch.no_grad():
            objective(batch)
    except ValueError as error:
        raise ValueError(
            f"{name}.global_batch_size: expected 2 examples or more for each device, got 1, on "
            f"which the net fails: {error}"
        ) from None
    finally:
        weights.load_(*before)


class UserSource:
    """The user's data, and how the model is measured on them.

    Arguments:
        model: the net, compiled or not.
        test: None: nothing is tested.
        objective: the loss.
        metric: measured on the test data in place of the share that is right.
        augment: changes the batches that are trained on.
        batch_size: examples of phase 3's batches; a test batch has four times as many.
    """

    def __init__(
        self,
        model: nn.Module,
        train: Data,
        test: Data | None,
        objective: Objective,
        *,
        metric: Metric | None,
        augment: Augment | None,
        batch_size: int,
    ) -> None:
        self._model, self._train, self._test = model, train, test
        self._objective, self._metric, self._augment = objective, metric, augment
        self._batch_size = batch_size

    def open_(self, weights: Weights, execution: Execution, *, seed: int) -> None:
        """Note where the batches go."""
        self._place = Placement(device=weights.theta.device, seed=seed, augment=self._augment)
        self._autocast = execution.autocast

    def batches(
        self, phase: Phase, shape: BatchShape, *, number: int, replicas: range, into: Any
    ) -> Batches:
        """Puts a phase's micro-batches into a step's list."""
        return phase_batches(
            self._train, phase, self._place, number=number, replicas=replicas, into=into
        )

    def batch_norm_batches(self, buffer: None, shape: BatchShape, comm: Comm) -> Iterator[Any]:
        """All training examples once, augmented."""
        return one_pass(
            self._train, self._place, batch_size=self._batch_size, shuffled=True, comm=comm
        )

    def evaluator(self, shape: BatchShape) -> Evaluate:
        """Accuracy or metric on the test data as they are; NaN without any."""
        if self._test is None:
            return lambda comm: Accuracies(math.nan)
        return user_evaluator(
            self._model,
            self._test,
            replace(self._place, augment=None),
            metric=self._metric,
            autocast=self._autocast,
            objective=self._objective,
            batch_size=4 * self._batch_size,
        )
