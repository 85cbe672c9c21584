"""One update from batches of any kind, through a loss of the user's."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from swap_fast.config.execution import Execution
from swap_fast.config.phase import Phase
from swap_fast.distributed import ALONE, Comm
from swap_fast.training.evaluate import Accuracies
from swap_fast.training.step import Update
from swap_fast.user.data import Data, MicroBatch, OwnBatches, Placement, one_pass, seed_everything
from swap_fast.user.objective import Metric, Objective
from swap_fast.user.optimizer import UserOptimizer
from swap_fast.user.weights import OwnWeights

# Accuracy of the user's net on the test data, or a metric of theirs.


class OwnEvaluator:
    """The share of the test data that the model gets right, as its loss counts it.

    Arguments:
        metric: measured in its place.
        batch_size: examples a forward pass.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Data,
        place: Placement,
        *,
        metric: Metric | None,
        autocast: Callable[[], AbstractContextManager[object]],
        objective: Objective,
        batch_size: int,
    ) -> None:
        self._model, self._data, self._place = model, data, place
        self._metric, self._autocast, self._objective = metric, autocast, objective
        self._batch_size = batch_size

    @torch.no_grad()
    def __call__(self, comm: Comm = ALONE) -> Accuracies:
        """Test the model in eval mode; NaN where nothing is counted.

        With a `comm` all its ranks must call, and all get the figure of the whole.
        """
        was_training = self._model.training
        self._model.eval()
        sums = torch.zeros(2, dtype=torch.float64, device=self._place.device)
        try:
            for batch in one_pass(
                self._data, self._place, batch_size=self._batch_size, shuffled=False, comm=comm
            ):
                with self._autocast():
                    value, total = self._measure(batch)
                if value is not None and total is not None:
                    sums[0] += value
                    sums[1] += total
        finally:
            self._model.train(was_training)
        value, total = comm.all_reduce_(sums).tolist()
        return Accuracies(value / total if total else math.nan)

    def _measure(self, batch: Any) -> tuple[Any, Any]:
        if self._metric is None:
            return self._objective(batch)[1:]
        said = self._metric(self._model, batch)
        if not isinstance(said, tuple) or len(said) != 2:
            raise ValueError(
                f"metric: expected (a sum, over how many), got a {type(said).__name__}; return "
                "both, so that batches can be added up"
            )
        return said


class OwnStep(Update):
    """An update from a micro-batch for each replica of this rank, as they come.

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
        # A loss may count tokens, or parts of one, as well as examples.
        self.correct = torch.zeros_like(self.loss_sum)
        self.counted = torch.zeros_like(self.loss_sum)
        self._extra_sums = [self.counted]
        self._loaded: list[MicroBatch] = []

    def load_batch(self, batches: OwnBatches, i: int) -> None:
        """Take this rank's micro-batches of update i of the epoch that was started."""
        self._loaded = batches.load(i)

    @property
    def num_images(self) -> int:
        """Examples of this rank, in the update."""
        return sum(loaded.examples for loaded in self._loaded)

    def __call__(self) -> None:
        """Update the weights.

        Raises:
            ValueError: the loss or the batch is not what it should be.
        """
        self.update_no_sync()
        self._seen += self.num_images

    def _forward_replica(self, replica: int) -> tuple[Tensor, Any, int]:
        batch, examples, seed = self._loaded[replica]
        seed_everything(seed)
        with self._autocast():
            loss, correct, count = self._objective(batch)
        if not loss.requires_grad:
            raise ValueError(
                "loss: expected one that depends on the trainable parameters, got one without a "
                "gradient; compute it from what the model returns, outside torch.no_grad()"
            )
        if correct is None or count is None:
            if self._needs_counts:
                raise ValueError(
                    "loss: expected (the mean loss, how many were right, of how many), which "
                    "phase 1's stopping_accuracy needs, got a loss alone; return all three, or set "
                    "stopping_accuracy=None"
                )
            return loss, 0, examples
        self.counted += count
        return loss, correct, examples

    def _share(self, correct: float, images: float, further: list[float]) -> float:
        """Of what the loss counts; NaN where it counts nothing."""
        (counted,) = further
        return correct / counted if counted else math.nan
