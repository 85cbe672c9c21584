"""The batches of a phase: each update's positions in the epoch's plan, replica by replica."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from swap_fast.config.execution import Execution
from swap_fast.config.phase import Augmentation, Phase
from swap_fast.data.cifar.augment import AugmentationPlan, plain_plan, plan_epoch
from swap_fast.data.cifar.resident import DeviceImages, DevicePlan
from swap_fast.distributed import ALONE, Comm


class Batch(NamedTuple):
    """A step's batch: memory that a loader is given once, and fills for each update."""

    images: Tensor
    """[B, 3, H, W]: B images, those of all replicas of this rank."""
    labels: Tensor
    """[B] int64."""

    @classmethod
    def empty(cls, count: int, side: int, execution: Execution, device: torch.device) -> "Batch":
        """Memory for `count` images of `side` by `side` pixels."""
        return cls(
            execution.empty_images((count, 3, side, side), device),
            torch.zeros(count, dtype=torch.int64, device=device),
        )


class Loader(Protocol):
    """A phase's batches of one rank, whatever makes them.

    What a batch holds follows from (worker, epoch, step) alone: any epoch may be started at any
    time, and any step of it loaded, without those before it. In their order they are fast.
    """

    @property
    def steps_per_epoch(self) -> int:
        """Updates of an epoch."""

    def start_epoch(self, worker: int, epoch: int) -> None:
        """Go to an epoch: its plan says what the batches hold."""

    def load(self, step: int) -> None:
        """Fill the step's batch with this rank's part of update `step`."""


def require_a_batch(number: int, global_batch_size: int, num_images: int) -> None:
    """Refuse a phase whose data fill no batch.

    Raises:
        ValueError: phase `number` has fewer images than one global batch.
    """
    if num_images < global_batch_size:
        raise ValueError(
            f"phase {number}: expected at least one batch of {global_batch_size} images, "
            f"got {num_images}; lower the phase's batch size or use more data"
        )


@dataclass(frozen=True, kw_only=True)
class ShardSpec:
    """What of each epoch's plan one rank loads.

    Update i of an epoch covers positions [i * B, (i + 1) * B) of the plan, and replica s the s-th
    of its equal slices (Algorithm 1, line 11).

    Raises:
        ValueError: fewer images than one global batch.
    """

    num_images: int
    """Of the training split."""
    augmentation: Augmentation
    """How the plan is drawn."""
    phase: Phase
    """Gives the replicas and the batch size."""
    seed: int
    """Of all plans."""
    number: int
    """The phase's number, 1 or 2."""
    replicas: range
    """The replicas of this rank, among `phase.gpus_per_model`."""

    def __post_init__(self) -> None:
        require_a_batch(self.number, self.phase.global_batch_size, self.num_images)

    @property
    def steps_per_epoch(self) -> int:
        """Updates of an epoch; images that fill no whole batch are left out."""
        return self.num_images // self.phase.global_batch_size

    @property
    def images_per_step(self) -> int:
        """Images of this rank in a whole batch."""
        return len(self.replicas) * self.phase.micro_batch_size

    def plan(self, worker: int, epoch: int) -> AugmentationPlan:
        """Draw an epoch's plan: that of all replicas."""
        return plan_epoch(
            self.num_images,
            self.augmentation,
            seed=self.seed,
            phase=self.number,
            worker=worker,
            epoch=epoch,
        )

    def positions(self, step: int) -> NDArray[np.int64]:
        """This rank's positions in the plan at one update."""
        size = self.phase.micro_batch_size
        starts = step * self.phase.global_batch_size + np.array(self.replicas) * size
        return (starts[:, None] + np.arange(size)).ravel()


class Batches:
    """The tensor backend: batches gathered from images that are resident on the device.

    For a GPU a thread draws the next epoch's plan meanwhile, some milliseconds of the host. What a
    load reads stays in its place, so that a captured one reads whatever plan is there then.

    Arguments:
        images: the training split.
        share: what of each epoch is loaded.
        into: the step's batch.
    """

    def __init__(self, images: DeviceImages, share: ShardSpec, into: Batch) -> None:
        self.steps_per_epoch, self.device = share.steps_per_epoch, images.labels.device
        self._images, self._share, self._into = images, share, into
        positions = np.stack([share.positions(step) for step in range(share.steps_per_epoch)])
        self._positions = torch.from_numpy(positions).to(self.device)  # [steps, B]
        self._row = torch.zeros_like(self._positions[:1])
        self._plan = images.empty_plan(share.augmentation.cutout)
        self._drawer = ThreadPoolExecutor(max_workers=1) if images.on_gpu else None
        # What it draws, by worker and epoch.
        self._ahead: dict[tuple[int, int], Future[DevicePlan]] = {}

    def start_epoch(self, worker: int, epoch: int) -> None:
        """Draw the epoch's plan and move it to the device, to the same place each time."""
        drawn = self._ahead.get((worker, epoch))
        packed = self._draw(worker, epoch) if drawn is None else drawn.result()
        self._images.upload(packed, self._plan)
        if self._drawer is not None:
            following = worker, epoch + 1
            self._ahead = {following: self._drawer.submit(self._draw, *following)}

    def _draw(self, worker: int, epoch: int) -> DevicePlan:
        return self._images.pack(self._share.plan(worker, epoch))

    def load(self, step: int) -> None:
        self._images.load_(self._plan, self._positions[step], *self._into)

    def load_at_(self, step: Tensor) -> None:
        """Fill the step's batch with that of an update whose number [1] is on the device."""
        torch.index_select(self._positions, 0, step, out=self._row)
        self._images.load_(self._plan, self._row[0], *self._into)


def pass_plan(
    images: DeviceImages, augmentation: Augmentation | None, *, seed: int = 0
) -> DevicePlan:
    """The plan of a pass over all images: phase 3's (line 29), or a test.

    Arguments:
        augmentation: how the images are augmented; None shows them as they are.
    """
    return images.upload(
        plain_plan(len(images), images.pad)
        if augmentation is None
        else plan_epoch(len(images), augmentation, seed=seed, phase=3, worker=0, epoch=0)
    )


def one_pass(
    images: DeviceImages, plan: DevicePlan, into: Batch, comm: Comm = ALONE
) -> Iterator[Batch]:
    """Every image of a plan once: this rank's batches, every world_size-th.

    The batches are the same for any number of ranks; the last one may be short.

    Yields:
        `into`, written over each time, or as much of it as the last batch fills.
    """
    total, size = len(plan), len(into.labels)
    for start in range(comm.rank * size, total, comm.world_size * size):
        n = min(size, total - start)
        batch = Batch(into.images[:n], into.labels[:n])
        images.load_(plan, slice(start, start + n), *batch)
        yield batch


# Backends that make batches ahead of their use.


Plans = Iterator[AugmentationPlan]
"""Of one batch after another."""


def plans_from(share: ShardSpec, worker: int, epoch: int, step: int) -> Plans:
    """The plans of a worker's batches from a step on: the epoch's, then the next epochs'."""
    for later in count(epoch):
        plan = share.plan(worker, later)
        for i in range(step if later == epoch else 0, share.steps_per_epoch):
            yield plan.take(share.positions(i))


class Stream(Protocol):
    """Makes batches in the order of their plans, some ahead. Both phases share it."""

    plans: Plans | None
    """Those of the batches that are being made."""

    def start(self, plans: Plans, batch_size: int) -> None:
        """Make these batches in place of those that were made before."""

    def load_(self, images: Tensor, labels: Tensor) -> None:
        """Write the next batch into [B, 3, 32, 32] and [B] tensors."""


class StreamedBatches:
    """A loader over a stream, which continues where the next batch in order is asked for.

    That is so from step to step and from epoch to epoch of one worker. At the switch of phases, at
    another worker, and after an epoch that was left early, the stream starts again at the step that
    is asked for, and drops what it had made ahead.

    Arguments:
        stream: the backend, which both phases may share.
        share: what of each epoch is loaded.
        into: the step's batch.
    """

    def __init__(self, stream: Stream, share: ShardSpec, into: Batch) -> None:
        self.steps_per_epoch = share.steps_per_epoch
        self._stream, self._share, self._into = stream, share, into
        self._worker, self._epoch = 0, 0
        self._plans: Plans | None = None
        self._next: tuple[int, int] | None = None  # (worker, batches from its epoch 0 on)

    def start_epoch(self, worker: int, epoch: int) -> None:
        self._worker, self._epoch = worker, epoch

    def load(self, step: int) -> None:
        batch = self._epoch * self.steps_per_epoch + step
        if self._stream.plans is not self._plans or self._next != (self._worker, batch):
            self._plans = plans_from(self._share, self._worker, self._epoch, step)
            self._stream.start(self._plans, self._share.images_per_step)
        self._stream.load_(*self._into)
        self._next = (self._worker, batch + 1)
