"""Accuracy of the user's net on the test data, or a metric of theirs."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from swap_fast.distributed import ALONE, Comm
from swap_fast.training.evaluate import Accuracies
from swap_fast.user.batches import Place, one_pass
from swap_fast.user.data import Data
from swap_fast.user.objective import Metric, Objective


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
        place: Place,
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
