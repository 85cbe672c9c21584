"""The batches of a phase: each update's positions in the epoch's plan, slot by slot."""

from collections.abc import Iterator

import torch
from torch import Tensor

from swap_fast.comm import ALONE, Comm
from swap_fast.config import Augmentation, Phase
from swap_fast.data.augment import plain_plan, plan_epoch
from swap_fast.data.images import DeviceImages, DevicePlan


class Batches:
    """An epoch of global batches, of which this rank loads the slices of its own slots.

    Update i of an epoch covers positions [i * B, (i + 1) * B) of the plan, and slot s the s-th of
    its equal slices (Algorithm 1, line 11). Images that fill no whole batch are left out.

    Arguments:
        images: the training split.
        slots: the slots of this rank, among `phase.gpus_per_model`.
        number: the phase's number, 1 or 2.

    Raises:
        ValueError: fewer images than one global batch.
    """

    def __init__(
        self,
        images: DeviceImages,
        augmentation: Augmentation,
        phase: Phase,
        *,
        seed: int,
        number: int,
        slots: range,
    ) -> None:
        self.steps_per_epoch = len(images) // phase.global_batch_size
        if self.steps_per_epoch == 0:
            raise ValueError(
                f"phase {number}: expected at least one batch of {phase.global_batch_size} images, "
                f"got {len(images)}; lower --phase{number}.global-batch-size or use more data"
            )
        self.images_per_step = len(slots) * phase.micro_batch_size
        self._images, self._augmentation = images, augmentation
        self._seed, self._number = seed, number
        shape = (self.steps_per_epoch, phase.gpus_per_model, phase.micro_batch_size)
        positions = torch.arange(self.steps_per_epoch * phase.global_batch_size).view(shape)
        self._positions = positions[:, list(slots)].flatten(1).to(images.labels.device)

    def start_epoch(self, worker: int, epoch: int) -> None:
        """Draw the epoch's plan and move it to the device."""
        plan = plan_epoch(
            len(self._images),
            self._augmentation,
            seed=self._seed,
            phase=self._number,
            worker=worker,
            epoch=epoch,
        )
        self._plan = self._images.upload(plan)

    def load_(self, step: int, images: Tensor, labels: Tensor) -> None:
        """Write this rank's part of update `step` into [slots * micro-batch, ...] tensors."""
        self._images.load_(self._plan, self._positions[step], images, labels)


def one_pass(
    images: DeviceImages,
    augmentation: Augmentation | None,
    buffer: Tensor,
    *,
    seed: int,
    comm: Comm = ALONE,
) -> Iterator[Tensor]:
    """Every image once, in batches that are dealt out to the ranks: phase 3's pass (line 29).

    The batches are the same for any number of ranks; the last one may be short.

    Arguments:
        augmentation: how the images are augmented; None shows them as they are.
        buffer: [B, 3, 32, 32], written over for each batch.

    Yields:
        The buffer, or as much of it as the last batch fills.
    """
    plan = images.upload(
        plain_plan(len(images), images.pad)
        if augmentation is None
        else plan_epoch(len(images), augmentation, seed=seed, phase=3, worker=0, epoch=0)
    )
    labels = torch.zeros(len(buffer), dtype=torch.int64, device=buffer.device)
    for batch, _ in deal(images, plan, buffer, labels, comm):
        yield batch


def deal(
    images: DeviceImages, plan: DevicePlan, buffer: Tensor, labels: Tensor, comm: Comm
) -> Iterator[tuple[Tensor, Tensor]]:
    """This rank's batches of a plan, every world_size-th, images [n, 3, 32, 32] and labels [n].

    They are written into `buffer` [B, 3, 32, 32] and `labels` [B], over each other.
    """
    total, size = len(plan), len(buffer)
    for start in range(comm.rank * size, total, comm.world_size * size):
        n = min(size, total - start)
        images.load_(plan, slice(start, start + n), buffer[:n], labels[:n])
        yield buffer[:n], labels[:n]
