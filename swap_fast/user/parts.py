"""The step and the data of a user's run."""

import math
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from swap_fast.config.execution import Execution
from swap_fast.config.phase import BatchShape, Phase, shapes
from swap_fast.data.cifar.batches import Loader
from swap_fast.distributed import Comm
from swap_fast.training.batchnorm import is_compiled
from swap_fast.training.evaluate import Accuracies, Count, Evaluate, Evaluator
from swap_fast.training.step import BaseStep, Forward
from swap_fast.training.weights import Weights
from swap_fast.user.data import (
    Augment,
    Data,
    MicroBatch,
    Placement,
    one_pass,
    phase_batches,
    seed_everything,
    targets_of,
)
from swap_fast.user.net import explained
from swap_fast.user.objective import Measured, Metric, Objective, kind_of, require_numbers
from swap_fast.user.optimizer import UserOptimizer

# The step.


class UserStep(BaseStep):
    """An update from a micro-batch of any kind for each replica of this rank.

    What is drawn in a replica's forward pass, as for dropout, follows from the place of its
    micro-batch, so that it is the same on any number of processes and after an interruption.
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
        with self._weights.gradients_apart(), self._autocast():
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


# The data.


class UserSource:
    """The user's data, and how the model is measured on them.

    Arguments:
        model: the net, compiled or not.
        test: None: nothing is tested.
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
        self.measures = test is not None
        """Whether there is anything to measure on the test data; known once batches were tried."""

    def open_(self, weights: Weights, execution: Execution, *, seed: int) -> None:
        """Note where the batches go."""
        device, check = weights.theta.device, None
        if device.type != "cpu" and self._augment is None:
            check = self._objective.check_targets
        self._place = Placement(device=device, seed=seed, augment=self._augment, check=check)
        self._autocast = execution.autocast

    def try_batches(self) -> None:
        """Run the net on a batch of each kind as the tests will, before anything is trained.

        Raises:
            ValueError: names the data that the net does not take, with the types that it got.
        """
        was_training = self._model.training
        self._model.eval()
        # A compiled net runs uncompiled: it is compiled for the batches that are trained on.
        compiled = is_compiled(self._model)
        eager = torch.compiler.set_stance("force_eager") if compiled else nullcontext()
        try:
            with eager, torch.no_grad(), self._autocast():
                if self._objective.is_criterion:
                    self._try("train_data", self._train, self._place)
                if self._test is None:
                    return
                place = replace(self._place, augment=None)
                if self._metric is not None:  # what the user's own function raises says where
                    self._count(self._first(self._test, place))
                elif self._objective.is_criterion:
                    self.measures = self._try("test_data", self._test, place).correct is not None
                else:
                    said = self._objective(self._first(self._test, place))
                    self.measures = said.correct is not None
        finally:
            self._model.train(was_training)

    def _try(self, name: str, data: Data, place: Placement) -> Measured:
        batch = self._first(data, place)
        # What augment makes of the targets is known of this batch alone.
        targets = targets_of(data) if place.augment is None else None
        with explained(name, batch, self._model, "the data, collate= or augment="):
            tried = self._objective.try_batch(batch, targets)
        return tried

    def _first(self, data: Data, place: Placement) -> Any:
        passing = one_pass(data, place, batch_size=self._batch_size, shuffled=False)
        return next(iter(passing))

    def batches(
        self, phase: Phase, shape: BatchShape, *, number: int, replicas: range, into: Any
    ) -> Loader:
        """Puts a phase's micro-batches into a step's list."""
        return phase_batches(
            self._train, phase, self._place, number=number, replicas=replicas, into=into
        )

    def batch_norm_batches(self, buffer: None, shape: BatchShape, comm: Comm) -> Iterator[Any]:
        """All training examples once, augmented."""
        return one_pass(
            self._train,
            self._place,
            batch_size=self._batch_size,
            shuffled=True,
            comm=comm,
        )

    def evaluator(self, shape: BatchShape) -> Evaluate:
        """Accuracy or metric on the test data as they are; NaN without any."""
        if self._test is None or not self.measures:
            return lambda comm: Accuracies(math.nan)
        place = replace(self._place, augment=None)
        batches = partial(
            one_pass, self._test, place, batch_size=4 * self._batch_size, shuffled=False
        )
        return Evaluator(
            self._model,
            lambda comm: batches(comm=comm),
            self._count,
            self._autocast,
            place.device,
        )

    def _count(self, batch: Any) -> Count:
        if self._metric is None:
            _, correct, total = self._objective(batch)
        else:
            said = self._metric(self._model, batch)
            if not isinstance(said, tuple) or len(said) != 2:
                raise ValueError(
                    f"metric: expected (a sum, over how many), got {kind_of(said)}; return both, "
                    "so that batches can be added up"
                )
            require_numbers("metric", said)
            correct, total = said
        return (0, 0, 0) if correct is None or total is None else (correct, 0, total)
