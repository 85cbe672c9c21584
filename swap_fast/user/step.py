"""One update from batches of any kind, through a loss of the user's."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from torch import nn

from swap_fast.config.execution import Execution
from swap_fast.config.phase import Phase
from swap_fast.distributed import Comm
from swap_fast.training.evaluate import Count, Evaluator
from swap_fast.training.step import BaseStep, Forward
from swap_fast.user.data import Data, MicroBatch, Placement, one_pass, seed_everything
from swap_fast.user.objective import Metric, Objective
from swap_fast.user.optimizer import UserOptimizer
from swap_fast.user.weights import OwnWeights


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
        weights: OwnWeights,
        optimizer: UserOptimizer,
        phase: Phase,
        comm: Comm,
        execution: Execution,
        objective: Objective,
    ) -> None:
        super().__init__(weights, optimizer, phase, comm, global_batch_size=phase.global_batch_size)
        self._autocast, self._objective = execution.autocast, objective
        self._needs_counts = phase.stopping_accuracy is not None
        # What a loader fills: a micro-batch for each replica of this rank.
        self.micro_batches: list[MicroBatch] = []

    @property
    def num_images(self) -> int:
        """Examples of this rank in the update."""
        return sum(each.examples for each in self.micro_batches)

    def forward(self, replica: int) -> Forward:
        """Run the model on a replica's micro-batch.

        Raises:
            ValueError: the loss or the batch is not what it should be.
        """
        batch, examples, seed = self.micro_batches[replica]
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
