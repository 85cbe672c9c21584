"""What a user's run is made of: the optimizer, the net, the loss, the step, and the data."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any, NamedTuple, NoReturn
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from swap_fast.config.execution import Execution
from swap_fast.config.phase import BatchShape, Phase, shapes
from swap_fast.data.cifar.batches import Loader
from swap_fast.distributed import Comm
from swap_fast.training.evaluate import Accuracies, Count, Evaluator
from swap_fast.training.optimizer import ScaledOptimizer
from swap_fast.training.state import PLAIN
from swap_fast.training.step import BaseStep, Forward
from swap_fast.training.trainer import Evaluate
from swap_fast.training.weights import Weights
from swap_fast.user.data import (
    Augment,
    Data,
    MicroBatch,
    Placement,
    one_pass,
    phase_batches,
    seed_everything,
)

Make = Callable[[Any], torch.optim.Optimizer]
"""Makes an optimizer of a list of parameters, or of groups of them."""

Groups = Callable[[nn.Module], Iterable[Any]]
"""What a model's optimizer is given in place of that list: parameters, or dicts of groups."""


class UserOptimizer(ScaledOptimizer):
    """A torch optimizer that follows a schedule, made again for each phase and worker.

    Where groups have learning rates of their own, each keeps its ratio to the optimizer's: the
    schedule gives the one, and the others follow.

    Arguments:
        make: called at each reset, so that no state can stay.
        groups: gives what `make` is given; None: the list of trainable parameters.
        scale_gradients: whether the loss is scaled against underflow: for fp16, of the forward
            pass or of parameters.
        largest_norm: clip the gradient of an update to this norm; None: do not.

    Raises:
        ValueError: no torch optimizer, one that cannot be used, or not all parameters in it.
    """

    def __init__(
        self,
        weights: Weights,
        make: Make,
        groups: Groups | None = None,
        *,
        scale_gradients: bool = False,
        largest_norm: float | None = None,
    ) -> None:
        self._trained, self._refresh = weights.trained, weights.refresh_
        self._model, self._make, self._groups = weights.model, make, groups
        self._largest_norm = largest_norm
        optimizer = self._new()
        self._check(optimizer)
        default = optimizer.defaults.get("lr")
        # The optimizer's own learning rate; None where it has none above 0.
        self.learning_rate = float(default) if default and float(default) > 0 else None
        ratios = [
            float(group["lr"]) / (self.learning_rate or 1.0) for group in optimizer.param_groups
        ]
        scaler = torch.amp.GradScaler(weights.theta.device.type, enabled=scale_gradients)
        super().__init__(weights, optimizer, ratios, scaler)

    def _new(self) -> torch.optim.Optimizer:
        trained = self._trained
        if self._groups is None:
            return self._make(list(trained.values()))

        def known(parameter: Any) -> Any:
            return trained.get(parameter, parameter)

        return self._make(
            [
                entry | {"params": [known(p) for p in _listed(entry["params"])]}
                if isinstance(entry, dict)
                else known(entry)
                for entry in self._groups(self._model)
            ]
        )

    def _check(self, optimizer: torch.optim.Optimizer) -> None:
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise ValueError(
                "optimizer: expected a function that makes a torch.optim.Optimizer of parameters, "
                f"got one that makes {type(optimizer).__name__}"
            )
        if isinstance(optimizer, torch.optim.LBFGS):
            raise ValueError("optimizer: expected one that needs no closure, got LBFGS")
        if any("lr" not in group for group in optimizer.param_groups):
            raise ValueError("optimizer: expected groups with a learning rate lr, got none")
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        missing = [p for p in self._trained.values() if id(p) not in held]
        if missing:
            raise ValueError(
                f"optimizer: expected every trainable parameter, got all but {len(missing)}; "
                "freeze these with requires_grad_(False) in make_model"
            )

    def describe(self) -> dict[str, Any]:
        """Its name, and its groups' options that are plain values, as JSON keeps them."""
        groups = [
            {name: value for name, value in group.items() if isinstance(value, PLAIN | tuple)}
            | {"lr_ratio": ratio, "parameters": sum(p.numel() for p in group["params"])}
            for group, ratio in zip(self._torch.param_groups, self._ratios, strict=True)
        ]
        for group in groups:
            group.pop("lr", None)
        return {"name": type(self._torch).__name__, "groups": groups}

    def step(self) -> None:
        """One update from `weights.gradient`; in fp16 it waits for the device."""
        if self._largest_norm is not None:
            self.scaler.unscale_(self._torch)
            gradient = self._weights.gradient
            norm = torch.linalg.vector_norm(gradient)
            gradient.mul_((self._largest_norm / (norm + 1e-6)).clamp(max=1.0))
        super().step()
        self._refresh()

    def reset_(self) -> None:
        """Make the optimizer again, without any state."""
        self._torch = self._new()
        self.scaler.load_state_dict(self._first_scale)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copy such a state into a new optimizer."""
        self._torch = self._new()
        super().load_state_dict(state)


def _listed(parameters: Any) -> list[Any]:
    return [parameters] if isinstance(parameters, Tensor) else list(parameters)


# The net.

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
            f"make_model: expected a function that makes the net, got {_kind(make_model)}; pass "
            "the class, or lambda: Net(...)"
        )
    torch.manual_seed(seed)
    model = make_model()
    if not isinstance(model, nn.Module):
        raise ValueError(
            "make_model: expected a function that returns an nn.Module, got one that returns "
            f"{_kind(model)}"
        )
    refuse_wrapped(model, "make_model")
    if bare(model) in _TRAINED:
        raise ValueError(
            "make_model: expected a new net from each call, got one that swap has trained before; "
            "return copy.deepcopy(net)"
        )
    _TRAINED.add(bare(model))
    return model.to(device)


def refuse_wrapped(model: nn.Module, name: str) -> None:
    """Refuse a net within a module that has it as its `module`.

    Raises:
        ValueError: it is in one of torch's.
    """
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)):
        raise ValueError(
            f"{name}: expected the bare net, got it in {_kind(model)}; give its .module"
        )


def bare(model: nn.Module) -> nn.Module:
    """The net itself, where torch.compile has put it in a module of its own."""
    inner = getattr(model, "_orig_mod", model)
    assert isinstance(inner, nn.Module), "torch's own name of what it compiles"
    return inner


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}"


# The loss.

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
    """The loss of a model on a batch, and how much of the batch was right.

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
            _refuse("batch", "(inputs, targets) for the cross entropy", _kind(batch))
        *inputs, targets = batch
        logits = self._model(*map(self._rounded, inputs))
        if not isinstance(logits, Tensor) or logits.dim() < 2:
            _refuse("model", "logits [B, C] for the cross entropy", _shape(logits))
        shape = [len(logits), *logits.shape[2:]]
        if not isinstance(targets, Tensor) or list(targets.shape) != shape:
            expected = f"class numbers {shape} for logits {list(logits.shape)}"
            _refuse("targets", expected, _shape(targets))
        if targets.is_floating_point():
            _refuse("targets", "class numbers", str(targets.dtype))
        targets = targets.long()
        exact = logits.float() if logits.dtype.itemsize == 2 else logits
        loss = nn.functional.cross_entropy(exact, targets)
        return Measured(loss, (logits.argmax(1) == targets).sum(), targets.numel())

    def _rounded(self, given: Any) -> Any:
        is_real = isinstance(given, Tensor) and given.is_floating_point()
        return given.to(self._half) if is_real and self._half is not None else given


def _refuse(what: str, expected: str, got: str) -> NoReturn:
    remedy = "pass loss=, a function of the model and a batch"
    raise ValueError(f"{what}: expected {expected}, got {got}; {remedy}")


def _shape(value: Any) -> str:
    return f"{list(value.shape)}" if isinstance(value, Tensor) else _kind(value)


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

    def open_(self, weights: Weights, execution: Execution, *, seed: int) -> None:
        """Note where the batches go."""
        self._place = Placement(device=weights.theta.device, seed=seed, augment=self._augment)
        self._autocast = execution.autocast

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
            self._train, self._place, batch_size=self._batch_size, shuffled=True, comm=comm
        )

    def evaluator(self, shape: BatchShape) -> Evaluate:
        """Accuracy or metric on the test data as they are; NaN without any."""
        if self._test is None:
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
                    f"metric: expected (a sum, over how many), got {_kind(said)}; return both, so "
                    "that batches can be added up"
                )
            correct, total = said
        return (0, 0, 0) if correct is None or total is None else (correct, 0, total)
