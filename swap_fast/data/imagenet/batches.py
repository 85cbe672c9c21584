"""A phase's batches of an image tree, replica by replica, and passes over each image once."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from swap_fast.config.execution import Execution
from swap_fast.data.cifar.batches import Batch, require_a_batch
from swap_fast.data.imagenet.crops import Crops, plan_crops
from swap_fast.data.imagenet.scan import ImageSplit
from swap_fast.distributed import ALONE, Comm


class Decoder(Protocol):
    """Decodes batches: `DaliLoader` or `TorchvisionLoader`."""

    def start(self, batches: Iterable[Crops]) -> None:
        """Begin to decode these batches, and drop those that were not loaded yet."""

    def load_(self, images: Tensor) -> None:
        """Write the next batch into `images` [n, 3, height, width]."""


DecoderName = Literal["dali", "torchvision"]


def make_decoder(name: DecoderName, split: ImageSplit, **options: Any) -> Decoder:
    """A decoder of that name; its arguments are those of `DaliLoader`."""
    if name == "dali":
        from swap_fast.data.imagenet.dali import DaliLoader

        return DaliLoader(split, **options)
    from swap_fast.data.imagenet.torchvision import TorchvisionLoader

    return TorchvisionLoader(split, **options)


class TreeBatches:
    """An epoch of global batches, of which this rank loads the slices of its own replicas.

    Update i of an epoch covers positions [i * B, (i + 1) * B) of the plan, and replica s the s-th
    of its equal slices (Algorithm 1, line 11), as in `Batches`. Images that fill no whole batch
    are left out. Each stage with its own image size has its own object: drop the old one first.

    Arguments:
        decoder: of this split.
        px: the crop's side.
        min_scale: least share of an image's area in a crop.
        global_batch_size: images in one update of one model.
        num_replicas: replicas that share an update; `replicas` are those of this rank.
        number: the phase's number.
        into: the step's batch.

    Raises:
        ValueError: fewer images than one global batch.
    """

    def __init__(
        self,
        split: ImageSplit,
        decoder: Decoder,
        *,
        px: int,
        min_scale: float,
        global_batch_size: int,
        num_replicas: int,
        replicas: range,
        seed: int,
        number: int,
        into: Batch,
    ) -> None:
        require_a_batch(number, global_batch_size, len(split))
        self.steps_per_epoch = len(split) // global_batch_size
        self._split, self._decoder, self._into = split, decoder, into
        self._px, self._min_scale = px, min_scale
        self._seed, self._number = seed, number
        positions = np.arange(self.steps_per_epoch * global_batch_size)
        by_replica = positions.reshape(self.steps_per_epoch, num_replicas, -1)[:, list(replicas)]
        self._positions = by_replica.reshape(self.steps_per_epoch, -1)  # [steps, images a step]

    def start_epoch(self, worker: int, epoch: int) -> None:
        """Draw the epoch's plan, and begin to decode it."""
        self._plan = plan_crops(
            self._split.sizes,
            px=self._px,
            min_scale=self._min_scale,
            seed=self._seed,
            phase=self._number,
            worker=worker,
            epoch=epoch,
        )
        labels = self._split.labels[self._plan.image[self._positions]]
        self._labels = torch.from_numpy(labels).to(self._into.labels.device)
        self._start_at(0)

    def _start_at(self, step: int) -> None:
        plan = self._plan  # not self: in a circle of references neither would be freed
        self._decoder.start(plan[rows] for rows in self._positions[step:])
        self._next = step

    def load(self, step: int) -> None:
        """Fill the step's batch with this rank's part of update `step`.

        Steps are decoded ahead in order; a step out of order starts the decoder again from there,
        and drops what was decoded ahead.
        """
        if step != self._next:
            self._start_at(step)
        self._decoder.load_(self._into.images)
        self._into.labels.copy_(self._labels[step])
        self._next += 1


def one_pass(
    decoder: Decoder,
    batches: Sequence[Crops],
    buffer: Tensor,
    execution: Execution,
    comm: Comm = ALONE,
) -> Iterator[tuple[Tensor, Crops]]:
    """This rank's batches, every world_size-th: images [n, 3, H, W], and their crops.

    Arguments:
        buffer: written over for each batch: [B, 3, H, W] where all have one size of crop, else
            memory for the largest: see `pass_buffer`.
    """
    mine = batches[comm.rank :: comm.world_size]
    decoder.start(mine)
    for crops in mine:
        (height, width), n = crops.size, len(crops)
        images = buffer[:n]
        if buffer.dim() == 1:
            used = buffer[: n * 3 * height * width]
            images = used.view(n, 3, height, width)
            if execution.memory_format == "channels_last":
                images = used.view(n, height, width, 3).permute(0, 3, 1, 2)
        decoder.load_(images)
        yield images, crops


def pass_buffer(batches: Sequence[Crops], execution: Execution, device: torch.device) -> Tensor:
    """Memory for the largest of some batches."""
    largest = max((len(crops) * 3 * crops.size[0] * crops.size[1] for crops in batches), default=0)
    return torch.empty(largest, dtype=execution.dtype, device=device)
