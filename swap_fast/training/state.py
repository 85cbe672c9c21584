"""Where a run is, and all that its next update depends on: what a checkpoint holds."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from swap_fast.distributed import Comm
from swap_fast.record import EpochRow
from swap_fast.training.batchnorm import ReplicaStatistics
from swap_fast.training.evaluate import Accuracies
from swap_fast.training.optimizer import ScaledOptimizer
from swap_fast.training.weights import Weights

NOT_TESTED = Accuracies(math.nan)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far the training of one model has come."""

    phase: int
    """1 or 2."""
    worker: int = 0
    """The model of phase 2; 0 in phase 1."""
    epoch: int = 0
    """Epochs done in this phase."""
    step: int = 0
    """Updates done of the epoch after these; 0 but where a signal ended the run within one."""
    sums: tuple[float, ...] = ()
    """This rank's sums behind that epoch's metrics."""
    stopped_by: str | None = None
    """What ended the phase; None: it has not ended."""
    accuracies: Accuracies = NOT_TESTED
    """On the test images, after the last epoch."""


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """A model at the end of a phase: phase 1's, or a worker's."""

    progress: Progress
    """Its phase, worker, epochs, and what ended it."""
    samples: tuple[Tensor, ...]
    """Its weights [P] at the end of each cycle of the learning rate; the last are its own."""
    statistics: Tensor
    """Its batch-norm statistics [2C]; of phase 1, those of all replicas merged."""
    unaveraged_buffers: dict[str, Tensor]
    """Its integer and non-persistent buffers, by name."""
    optimizer_state: Any
    """The optimizer's state at the end of phase 1, for `keep_momentum`; None: of a worker."""
    time_s: float
    """Of the clock's paper reading, its own."""

    @property
    def worker(self) -> int:
        """w, from 0."""
        return self.progress.worker

    @property
    def theta(self) -> Tensor:
        """theta_T [P], or a worker's theta_{T+Q}."""
        return self.samples[-1]


@dataclass(frozen=True, kw_only=True)
class Result:
    """What this rank has when a run is done; the model holds the final weights."""

    phase1: TrainedModel
    """Where the workers began; of SGD, its end."""
    workers: list[TrainedModel]
    """This rank's workers, which a group of ranks has in common; empty for SGD."""
    before_averaging_s: float
    """The paper's reading of this rank's clock when its training was done."""
    accuracies: Accuracies
    """Of the final model, on the test images."""


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """What the next update of a phase depends on, beside the plan of its epoch."""

    weights: Weights
    """The model. After an epoch its batch-norm statistics are those of all replicas merged."""
    optimizer: ScaledOptimizer
    """Its state, and in fp16 the scale of the loss."""
    statistics: ReplicaStatistics
    """Of each replica of this rank."""
    comm: Comm
    """The ranks that share the phase's updates."""
    is_first: bool
    """Whether this rank speaks for them."""

    def gather_for_checkpoint(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and plain values of all the ranks, on the host; every one of them must call.

        Waits for the device.
        """
        replicas = self.comm.gather(self.statistics.values.cpu())
        tensors = {f"replicas.{rank}": values for rank, values in enumerate(replicas)}
        return tensors, {"optimizer": pack(self.optimizer.state_dict(), "optimizer", tensors)}

    def load_checkpoint_(
        self, tensors: dict[str, Tensor], values: dict[str, Any], *, unfinished: bool
    ) -> None:
        """Put back this rank's part of what was gathered; the model's own is not in it.

        Arguments:
            unfinished: whether more updates of this phase follow, which need each replica's
            statistics.

        Raises:
            ValueError: more updates follow, and other ranks shared those before.
        """
        if unfinished:
            ranks = sum(name.startswith("replicas.") for name in tensors)
            if ranks != self.comm.world_size:
                raise ValueError(
                    f"ranks: expected {ranks}, which shared this model when it was saved within "
                    f"a phase, got {self.comm.world_size}; their number may change between "
                    "phases, and among the workers of phase 2"
                )
            self.statistics.values.copy_(tensors[f"replicas.{self.comm.rank}"])
        device = self.weights.theta.device
        self.optimizer.load_state_dict(unpack(values["optimizer"], tensors, device))


PLAIN = bool | int | float | str | None


def pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """A value as JSON keeps it; its tensors go to `tensors`, by names that begin with `name`.

    Raises:
        ValueError: something in it is no tensor, number, text, list or mapping.
    """
    if isinstance(value, Tensor):
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": name, "on_host": value.device.type == "cpu"}
    if isinstance(value, Mapping):
        items = enumerate(value.items())
        return {"mapping": [[key, pack(v, f"{name}.{i}", tensors)] for i, (key, v) in items]}
    if isinstance(value, (list, tuple)):
        entries = [pack(v, f"{name}.{i}", tensors) for i, v in enumerate(value)]
        return {"tuple" if isinstance(value, tuple) else "list": entries}
    if isinstance(value, PLAIN):
        return value
    raise ValueError(
        f"optimizer: expected a state of tensors, numbers and texts, got a "
        f"{type(value).__name__} in it, which no checkpoint can keep; leave `folder` out"
    )


def unpack(value: Any, tensors: Mapping[str, Tensor], device: torch.device) -> Any:
    """What `pack` was given, its tensors where they were: on the host or on the device."""
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        tensor = tensors[value["tensor"]].clone()
        return tensor if value["on_host"] else tensor.to(device)
    if "mapping" in value:
        return {key: unpack(each, tensors, device) for key, each in value["mapping"]}
    if "tuple" in value:
        return tuple(unpack(each, tensors, device) for each in value["tuple"])
    return [unpack(each, tensors, device) for each in value["list"]]


class Checkpoints(Protocol):
    """Where a run is kept, so that one that was interrupted can go on."""

    def restore_(self, progress: Progress, state: TrainingState) -> Progress:
        """Put back the last state that was saved of this phase and worker.

        Returns:
            Where it was saved; the progress given, at epoch 0, where nothing was: the state is
            then left as it is.
        """

    def save(self, progress: Progress, state: TrainingState, row: EpochRow | None) -> None:
        """Keep the state at an epoch's end, with the epoch's row, or within an epoch.

        Every rank that shares the model must call.
        """

    def theta(self, worker: int, epoch: int) -> Tensor:
        """The weights [P] of a worker after an epoch counted from 1, as they were saved."""


class NoCheckpoints:
    """Keeps the epochs' rows alone."""

    def __init__(self) -> None:
        self.rows: list[EpochRow] = []

    def restore_(self, progress: Progress, state: TrainingState) -> Progress:
        return progress

    def save(self, progress: Progress, state: TrainingState, row: EpochRow | None) -> None:
        self.rows += [] if row is None else [row]

    def theta(self, worker: int, epoch: int) -> Tensor:
        raise ValueError(f"worker {worker}, epoch {epoch}: expected saved weights, kept none")
