"""The user's loss, and a step and an evaluator that go by it."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from swap_fast.config.execution import Execution
from swap_fast.config.phase import Phase, shapes
from swap_fast.distributed import Comm
from swap_fast.training.evaluate import Count, Evaluator
from swap_fast.training.step import BaseStep, Forward
from swap_fast.training.weights import Weights
from swap_fast.user.data import Data, MicroBatch, Placement, one_pass, seed_everything
from swap_fast.user.optimizer import UserOptimizer

Loss = Callable[[nn.Module, Any], Any]
"""Given the model and a batch: the mean loss, or (the mean loss, how many were right, of how many).
"""

Metric = Callable[[nn.Module, Any], tuple[Any, Any]]
"""Given the model and a test batch: a sum, and over how many."""


class Measured(NamedTuple):
    """What a forward pass says of a batch."""

    loss: Tensor
    """The mean, a scalar."""
    correct: Tensor | float | None
    """How many were right; None where the loss does not say."""
    total: Tensor | float | None
    """Of how many."""


class Objective:
    """The loss of a model on a batch, and what of it was right.

    Without a loss function a batch is (inputs..., targets): the model is called with the inputs and
    gives logits [B, C] or [B, C, ...] for targets [B] or [B, ...] of class numbers. Inputs are
    rounded to half precision where all of the model's parameters are of one such type.

    Arguments:
        loss: the user's; None: cross entropy.
    """

    def __init__(self, model: nn.Module, loss: Loss | None) -> None:
        self._model, self._loss = model, loss
        types = {p.dtype for p in model.parameters() if p.is_floating_point()}
        (only,) = types if len(types) == 1 else (torch.float32,)
        self._half = only if only.itemsize == 2 else None

    def __call__(self, batch: Any) -> Measured:
        """Run the model on a batch.

        Raises:
            ValueError: a batch, logits or a loss of another form.
        """
        if self._loss is None:
            return self._cross_entropy(batch)
        said = self._loss(self._model, batch)
        loss, *counts = said if isinstance(said, tuple) else (said,)
        if not isinstance(loss, Tensor) or loss.dim() != 0 or len(counts) not in (0, 2):
            got = f"a tensor {list(loss.shape)}" if isinstance(loss, Tensor) else _kind(loss)
            expected = "a mean loss, or (a mean loss, how many were right, of how many)"
            got += f" and {len(counts)} more values" if counts else ""
            raise ValueError(f"loss: expected {expected}, got {got}; take the loss's mean()")
        return Measured(loss, *(counts or (None, None)))

    def _cross_entropy(self, batch: Any) -> Measured:
        if not isinstance(batch, (tuple, list)) or len(batch) < 2:
            raise ValueError(
                f"batch: expected (inputs, targets) for the cross entropy, got {_kind(batch)}; "
                "pass loss=, a function of the model and a batch"
            )
        *inputs, targets = batch
        if self._half is not None:
            inputs = [self._rounded(given) for given in inputs]
        logits = self._model(*inputs)
        if not isinstance(logits, Tensor) or logits.dim() < 2:
            got = f"{list(logits.shape)}" if isinstance(logits, Tensor) else _kind(logits)
            raise ValueError(
                f"model: expected logits [B, C] for the cross entropy, got {got}; pass loss=, a "
                "function of the model and a batch"
            )
        expected = (len(logits), *logits.shape[2:])
        if not isinstance(targets, Tensor) or tuple(targets.shape) != expected:
            got = f"{list(targets.shape)}" if isinstance(targets, Tensor) else _kind(targets)
            raise ValueError(
                f"targets: expected class numbers {list(expected)} for logits "
                f"{list(logits.shape)}, got {got}; pass loss=, a function of the model and a batch"
            )
        if targets.is_floating_point():
            raise ValueError(
                f"targets: expected class numbers, got {targets.dtype}; pass loss=, a function of "
                "the model and a batch"
            )
        targets = targets.long()
        exact = logits.float() if logits.dtype.itemsize == 2 else logits
        loss = nn.functional.cross_entropy(exact, targets)
        return Measured(loss, (logits.argmax(1) == targets).sum(), targets.numel())

    def _rounded(self, given: Any) -> Any:
        is_real = isinstance(given, Tensor) and given.is_floating_point()
        return given.to(self._half) if is_real else given


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}"


def user_evaluator(
    model: nn.Module,
    data: Data,
    place: Placement,
    *,
    metric: Metric | None,
    autocast: Callable[[], AbstractContextManager[object]],
    objective: Objective,
    batch_size: int,
) -> Evaluator:
    """The share of the test data that the model gets right, as its loss counts it.

    Arguments:
        metric: measured in its place.
        batch_size: examples a forward pass.
    """

    def count(batch: Any) -> Count:
        if metric is None:
            _, correct, total = objective(batch)
        else:
            said = metric(model, batch)
            if not isinstance(said, tuple) or len(said) != 2:
                raise ValueError(
                    "metric: expected (a sum, over how many), got a "
                    f"{type(said).__name__}; return both, so that batches can be added up"
                )
            correct, total = said
        return (0, 0, 0) if correct is None or total is None else (correct, 0, total)

    batches = partial(one_pass, data, place, batch_size=batch_size, shuffled=False)
    return Evaluator(model, lambda comm: batches(comm=comm), count, autocast, place.device)


class UserStep(BaseStep):
    """An update from a micro-batch of any kind for each replica of this rank.

    What is drawn in a replica's forward pass, as for dropout, follows from the place of its
    micro-batch, so that it is the same on any number of processes and after an interruption.

    Arguments:
        objective: the loss.
    """

    def __init__(
        self,
        weights: Weights,
        optimizer: UserOptimizer,
        phase: Phase,
        comm: Comm,
        execution: Execution,
        objective: Objective,
    ) -> None:
        super().__init__(weights, optimizer, phase, comm, global_batch_size=phase.global_batch_size)
        self._autocast, self._objective = execution.autocast, objective
        self._needs_counts = phase.stopping_accuracy is not None
        self.shape = shapes(phase, image_size=0)[0]
        # What a loader fills: a micro-batch for each replica of this rank.
        self.batch: list[MicroBatch] = []

    @property
    def num_images(self) -> int:
        """Examples of this rank in the update."""
        return sum(each.examples for each in self.batch)

    def forward(self, replica: int) -> Forward:
        """Run the model on a replica's micro-batch.

        Raises:
            ValueError: the loss or the batch is not what it should be.
        """
        batch, examples, seed = self.batch[replica]
        seed_everything(seed)
        with self._autocast():
            loss, correct, total = self._objective(batch)
        if not loss.requires_grad:
            raise ValueError(
                "loss: expected one that depends on the trainable parameters, got one without a "
                "gradient; compute it from what the model returns, outside torch.no_grad()"
            )
        if correct is None or total is None:
            if self._needs_counts:
                raise ValueError(
                    "loss: expected (the mean loss, how many were right, of how many), which "
                    "phase 1's stopping_accuracy needs, got a loss alone; return all three, or set "
                    "stopping_accuracy=None"
                )
            correct = total = 0
        return Forward(loss, correct, total, examples)
