"""Where a run is, and all that its next update depends on: what a checkpoint holds."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from swap_fast.distributed import Comm
from swap_fast.record import EpochRow
from swap_fast.training.batchnorm import ReplicaStatistics
from swap_fast.training.evaluate import Accuracies
from swap_fast.training.weights import Weights

NOT_TESTED = Accuracies(0.0)


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
    """Updates done of the epoch after these; 0 but where a run was told to end within one."""
    sums: tuple[float, ...] = ()
    """This rank's sums behind that epoch's metrics."""
    stopped_by: str | None = None
    """What ended the phase; None: it goes on."""
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
    history: Any
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


class AnyOptimizer(Protocol):
    """What turns the gradient into an update: `Update` of Algorithm 1, lines 15 and 24."""

    def set_learning_rate(self, learning_rate: float) -> None:
        """Set the learning rate of the next updates."""

    def scale(self, loss: Tensor) -> Tensor:
        """The loss whose gradient is taken."""

    def step(self) -> None:
        """One update of the weights from their gradient."""

    def history(self) -> Any:
        """A copy of what former gradients have left, for `reset_`."""

    def reset_(self, history: Any = None) -> None:
        """Start from no history of gradients, or from the one given."""

    def gather(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and plain values that the next update depends on, on the host."""

    def scatter_(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Put back what `gather` gave."""


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """What the next update of a phase depends on, beside the plan of its epoch."""

    weights: Weights
    """The model. After an epoch its batch-norm statistics are those of all replicas merged."""
    optimizer: AnyOptimizer
    """Its history, and in fp16 the scale of the loss."""
    statistics: ReplicaStatistics
    """Of each replica of this rank."""
    comm: Comm
    """The ranks that share the phase's updates."""
    is_first: bool
    """Whether this rank speaks for them."""

    def gather(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and plain values of all the ranks, on the host; every one of them must call.

        Waits for the device.
        """
        replicas = self.comm.gather(self.statistics.values.cpu())
        tensors = {f"replicas.{rank}": values for rank, values in enumerate(replicas)}
        own, values = self.optimizer.gather()
        return tensors | own, values

    def scatter_(
        self, tensors: dict[str, Tensor], values: dict[str, Any], *, goes_on: bool
    ) -> None:
        """Put back this rank's part of what `gather` gave; the model's own is not in it.

        Arguments:
            goes_on: whether more updates of this phase follow, which need each replica's
            statistics.

        Raises:
            ValueError: more updates follow, and other ranks shared those before.
        """
        if goes_on:
            ranks = sum(name.startswith("replicas.") for name in tensors)
            if ranks != self.comm.world_size:
                raise ValueError(
                    f"ranks: expected {ranks}, which shared this model when it was saved within "
                    f"a phase, got {self.comm.world_size}; their number may change between "
                    "phases, and among the workers of phase 2"
                )
            self.statistics.values.copy_(tensors[f"replicas.{self.comm.rank}"])
        self.optimizer.scatter_(tensors, values)


class Checkpoints(Protocol):
    """Where a run is kept, so that one that was interrupted can go on."""

    def restore_(self, position: Progress, state: TrainingState) -> Progress:
        """Put back the last state that was saved of this phase and worker.

        Returns:
            Where it was saved; the position given, at epoch 0, where nothing was: the state is
            then left as it is.
        """

    def save(self, position: Progress, state: TrainingState, row: EpochRow | None) -> None:
        """Keep the state at an epoch's end, with the epoch's row, or within an epoch.

        Every rank that shares the model must call.
        """

    def theta(self, worker: int, epoch: int) -> Tensor:
        """The weights [P] of a worker after an epoch counted from 1, as they were saved."""


class NoCheckpoints:
    """Keeps nothing."""

    def restore_(self, position: Progress, state: TrainingState) -> Progress:
        """There is nothing."""
        return position

    def save(self, position: Progress, state: TrainingState, row: EpochRow | None) -> None:
        """Do nothing."""

    def theta(self, worker: int, epoch: int) -> Tensor:
        """There is none."""
        raise ValueError(f"worker {worker}, epoch {epoch}: expected saved weights, kept none")
