"""What a user's run is made of: the optimizer, the net, the loss, the step, and the data."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from inspect import Parameter, signature
from itertools import islice
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from swap_fast.config.checks import one_line, typed
from swap_fast.config.execution import Execution
from swap_fast.config.phase import BatchShape, Phase, shapes
from swap_fast.data.cifar.batches import Loader
from swap_fast.distributed import Comm
from swap_fast.record import EpochRow
from swap_fast.training.batchnorm import is_compiled
from swap_fast.training.callback import Callback
from swap_fast.training.evaluate import Accuracies, Count, Evaluate, Evaluator
from swap_fast.training.optimizer import ScaledOptimizer
from swap_fast.training.state import PLAIN, Progress
from swap_fast.training.step import BaseStep, Forward
from swap_fast.training.weights import Weights
from swap_fast.user.batch import batch_length, leaves, transformed
from swap_fast.user.data import (
    Augment,
    BatchesAsGiven,
    Data,
    MicroBatch,
    Placement,
    one_pass,
    phase_batches,
    seed_everything,
    targets_of,
)
from swap_fast.user.objective import Measured, Metric, Objective, kind_of, require_numbers

Make = Callable[[Any], torch.optim.Optimizer]
"""Makes an optimizer of a list of parameters, or of groups of them."""

Groups = Callable[[nn.Module], Iterable[Any]]
"""What a model's optimizer is given in place of that list: parameters, or dicts of groups."""


class UserOptimizer(ScaledOptimizer):
    """A torch optimizer that follows a schedule, made again for each phase and worker.

    Where groups have learning rates of their own, each keeps its ratio to the optimizer's: the
    schedule gives the one, and the others follow. An optimizer's own rate of 0 has no effect.

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
        self._model, self._groups, self._largest_norm = weights.model, groups, largest_norm
        if isinstance(make, torch.optim.Optimizer):
            name = type(make).__name__
            raise ValueError(
                f"optimizer: expected a function that makes one of parameters, got a {name} that "
                f"is made already; pass lambda parameters: {name}(parameters, lr=...)"
            )
        self._make = typed("optimizer", make, Make)
        optimizer = self._new()
        self._check(optimizer)
        default = optimizer.defaults.get("lr")
        # The optimizer's own learning rate; None where it has none above 0.
        self.learning_rate = float(default) if default and float(default) > 0 else None
        rates = [float(group["lr"]) for group in optimizer.param_groups]
        own = None if default is None else float(default)
        ratios = [1.0 if rate == own else rate / (self.learning_rate or 1.0) for rate in rates]
        scaler = torch.amp.GradScaler(weights.theta.device.type, enabled=scale_gradients)
        super().__init__(weights, optimizer, ratios, scaler)

    def _new(self) -> torch.optim.Optimizer:
        trained: Mapping[Any, Any] = self._trained
        if self._groups is None:
            return self._make(list(trained.values()))

        def known(entry: Any) -> Any:
            if isinstance(entry, dict) and "params" in entry:
                listed = entry["params"]
                listed = [listed] if isinstance(listed, Tensor) else listed
                return entry | {"params": list(map(known, listed))}
            if isinstance(entry, Tensor):
                return trained.get(entry, entry)
            if isinstance(entry, tuple) and len(entry) == 2:  # with its name, as torch takes it
                return entry[0], known(entry[1])
            raise ValueError(
                "parameter_groups: expected parameters, or dicts with params, for the net, got "
                f"{kind_of(entry)}"
            )

        groups = self._groups(self._model)
        return self._make(list(map(known, groups if isinstance(groups, Iterable) else [groups])))

    def _check(self, optimizer: torch.optim.Optimizer) -> None:
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise ValueError(
                "optimizer: expected a function that makes a torch.optim.Optimizer of parameters, "
                f"got one that makes {type(optimizer).__name__}"
            )
        name = type(optimizer).__name__
        of_step = signature(optimizer.step).parameters.values()
        optional = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
        if any(each.default is each.empty and each.kind not in optional for each in of_step):
            raise ValueError(f"optimizer: expected one that needs no closure, got {name}")
        if hasattr(optimizer, "train") and hasattr(optimizer, "eval"):
            raise ValueError(
                f"optimizer: expected one that leaves its weights in the model, got {name}, which "
                "has other ones to train and to test with; take it without its schedule-free form"
            )
        if any(group.get("lr") is None for group in optimizer.param_groups):
            raise ValueError(
                "optimizer: expected groups with a learning rate lr, which the schedule sets, got "
                f"{name} with none; give it a number, such as lr=1e-3"
            )
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


# The net.

_TRAINED: WeakSet[nn.Module] = WeakSet()
"""Nets that a run has trained: one may not be the start of another by mistake."""


def mark_trained(model: nn.Module) -> None:
    """Note that a run trains this net from here on."""
    _TRAINED.add(bare(model))


def make_net(make_model: Callable[[], nn.Module], seed: int, device: torch.device) -> nn.Module:
    """The net at its initial weights, on its device.

    Raises:
        ValueError: no function, or one whose result is no net, a wrapped one, one that was trained
            before, or one whose state is more than tensors.
    """
    if isinstance(make_model, nn.Module) or not callable(make_model):
        raise ValueError(
            f"make_model: expected a function that makes the net, got {kind_of(make_model)}; pass "
            "the class, or lambda: Net(...)"
        )
    make_model = typed("make_model", make_model, Callable[[], nn.Module])
    torch.manual_seed(seed)
    model = make_model()
    if not isinstance(model, nn.Module):
        raise ValueError(
            "make_model: expected a function that returns an nn.Module, got one that returns "
            f"{kind_of(model)}"
        )
    refuse_wrapped(model, "make_model")
    if bare(model) in _TRAINED:
        raise ValueError(
            "make_model: expected a new net from each call, got one that swap has trained before; "
            "return copy.deepcopy(net)"
        )
    refuse_extra_state(bare(model), "make_model")
    return model.to(device)


def refuse_wrapped(model: nn.Module, name: str) -> None:
    """Refuse a net within a module that has it as its `module`, and one in shards.

    Raises:
        ValueError: it is in one of torch's, or sharded over processes.
    """
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)):
        raise ValueError(
            f"{name}: expected the bare net, got it in {kind_of(model)}; give its .module"
        )
    if isinstance(model, nn.Module) and any(hasattr(p, "full_tensor") for p in model.parameters()):
        raise ValueError(
            f"{name}: expected the bare net, got it in shards over processes (FSDP2); give a net "
            "that has loaded its full state dict"
        )


def refuse_extra_state(model: nn.Module, name: str) -> None:
    """Refuse a net whose state no file of tensors holds.

    Raises:
        ValueError: its `get_extra_state` gives what is no tensor.
    """
    for key, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise ValueError(
                f"{name}: expected a net whose state is tensors, got {kind_of(value)} in it, "
                f"{key}; keep it in a buffer, or leave get_extra_state out"
            )


class FrozenValues(Callback):
    """Sees that frozen parameters stay as they are, as an averaging teacher's do not.

    They are no part of theta: a worker would go on from the one before it, and the average have
    the last worker's.
    """

    def __init__(self, model: nn.Module) -> None:
        self._frozen = {
            name: parameter
            for name, parameter in model.named_parameters()
            if not parameter.requires_grad and parameter.is_floating_point()
        }
        self._sums: list[float] = []

    def _read(self) -> list[float]:
        sums = [p.detach().sum(dtype=torch.float64) for p in self._frozen.values()]
        return torch.stack(sums).nan_to_num().tolist() if sums else []

    def on_begin(self, progress: Progress) -> None:
        self._sums = self._read()

    def on_epoch_end(self, row: EpochRow) -> None:
        """Compare their sums. Waits for the device, off the clock.

        Raises:
            ValueError: names the first that has changed.
        """
        pairs = zip(self._frozen, self._read(), self._sums, strict=True)
        if (name := next((n for n, now, before in pairs if now != before), None)) is not None:
            raise ValueError(
                f"parameter {name}: expected a frozen one to keep its values, got one that the net "
                "changes itself; register it as a buffer, of which each worker has its own and the "
                "average the mean"
            )


def bare(model: nn.Module) -> nn.Module:
    """The net itself, where torch.compile has put it in a module of its own."""
    inner = getattr(model, "_orig_mod", model)
    assert isinstance(inner, nn.Module), "torch's own name of what it compiles"
    return inner


def refuse_lone_examples(
    phases: Mapping[str, Phase],
    weights: Weights,
    objective: Objective,
    data: Data,
    place: Placement,
) -> None:
    """Try the net on one example, where a device may get one alone, before anything is trained.

    Raises:
        ValueError: its batch norm has one value a channel then, of which there is no variance.
    """
    alone = [
        f"{name}.global_batch_size: expected 2 examples or more for each device, got 1"
        for name, phase in phases.items()
        if phase.micro_batch_size == 1
    ]
    if isinstance(data, BatchesAsGiven) and data.ends_alone:
        alone.append(
            f"{data.name}: expected 2 examples or more in every batch, got 1 in the last; pass "
            "drop_last=True to its DataLoader"
        )
    if not alone or not weights.norms:
        return
    before = weights.copy()
    (batch, *_) = islice(one_pass(data, place, batch_size=1, shuffled=False), 1)
    length = batch_length(batch)

    def first(part: Any) -> Any:
        is_column = isinstance(part, Tensor) and part.dim() > 0 and len(part) == length
        return part[:1] if is_column else part

    try:
        with torch.no_grad():
            objective(transformed(batch, first))
    except ValueError as error:
        raise ValueError(f"{alone[0]}; the net fails on one alone: {error}") from None
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


@contextmanager
def explained(name: str, batch: Any, model: nn.Module, remedy: str) -> Iterator[None]:
    """What the net raises on a batch, as one line that names the data, their types and the net's.

    Arguments:
        remedy: what to change.

    Raises:
        ValueError: in place of any other exception, but for a lack of memory.
    """
    try:
        yield
    except (ValueError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        got = ", ".join(f"{_type(each)} {list(each.shape)}" for each in leaves(batch))
        own = sorted({_type(parameter) for parameter in model.parameters()})
        raise ValueError(
            f"{name}: expected a batch that the net takes, whose parameters are "
            f"{' and '.join(own)}, got {got}: {one_line(error, 160)}; change {remedy}"
        ) from error


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


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
