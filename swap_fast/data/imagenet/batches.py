"""A phase's batches of an image tree, replica by replica, and passes over each image once."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from swap_fast.config.execution import Execution
from swap_fast.data.cifar.batches import require_a_batch
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


def decoder_class(name: DecoderName) -> Callable[..., Decoder]:
    """The decoder's class; imports what it needs."""
    if name == "dali":
        from swap_fast.data.imagenet.dali import DaliLoader

        return DaliLoader
    from swap_fast.data.imagenet.torchvision import TorchvisionLoader

    return TorchvisionLoader


def make_decoder(
    name: DecoderName,
    split: ImageSplit,
    *,
    batch_size: int,
    execution: Execution,
    device: torch.device,
    threads: int,
    centred: bool = False,
) -> Decoder:
    """A decoder of that name; its arguments are those of `DaliLoader`."""
    return decoder_class(name)(
        split,
        batch_size=batch_size,
        execution=execution,
        device=device,
        threads=threads,
        centred=centred,
    )


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
        device: where the labels are.

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
        device: torch.device,
    ) -> None:
        require_a_batch(number, global_batch_size, len(split))
        self.steps_per_epoch = len(split) // global_batch_size
        self._split, self._decoder, self._device = split, decoder, device
        self._px, self._min_scale = px, min_scale
        self._seed, self._number = seed, number
        positions = np.arange(self.steps_per_epoch * global_batch_size)
        by_replica = positions.reshape(self.steps_per_epoch, num_replicas, -1)[:, list(replicas)]
        self._positions = by_replica.reshape(self.steps_per_epoch, -1)  # [steps, images a step]
        self.images_per_step = self._positions.shape[1]

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
        self._labels = torch.from_numpy(labels).to(self._device)
        self._start_at(0)

    def _start_at(self, step: int) -> None:
        plan = self._plan  # not self: in a circle of references neither would be freed
        self._decoder.start(plan[rows] for rows in self._positions[step:])
        self._next = step

    def load_(self, step: int, images: Tensor, labels: Tensor) -> None:
        """Write this rank's part of update `step` into [replicas * micro-batch, ...] tensors.

        Steps are decoded ahead in order; a step out of order starts the decoder again from there,
        and drops what was decoded ahead.
        """
        if step != self._next:
            self._start_at(step)
        self._decoder.load_(images)
        labels.copy_(self._labels[step])
        self._next += 1


def one_pass(
    split: ImageSplit,
    decoder: Decoder,
    buffer: Tensor,
    *,
    min_scale: float,
    seed: int,
    comm: Comm = ALONE,
) -> Iterator[Tensor]:
    """Every training image once, augmented, divided among the ranks: phase 3's pass (line 29).

    The batches are the same for any number of ranks; the last one may be short.

    Arguments:
        buffer: [B, 3, px, px], overwritten by each batch.

    Yields:
        The buffer, or the part of it that the last batch fills.
    """
    plan = plan_crops(
        split.sizes, px=buffer.shape[2], min_scale=min_scale, seed=seed, phase=3, worker=0, epoch=0
    )
    size = len(buffer)
    batches = [plan[start : start + size] for start in range(0, len(plan), size)]
    mine = batches[comm.rank :: comm.world_size]
    decoder.start(mine)
    for crops in mine:
        images = buffer[: len(crops)]
        decoder.load_(images)
        yield images


def deal(
    decoder: Decoder,
    batches: Sequence[Crops],
    execution: Execution,
    device: torch.device,
    comm: Comm = ALONE,
) -> Iterator[tuple[Tensor, Crops]]:
    """This rank's batches, every world_size-th: images [n, 3, H, W], and their crops.

    All are written into one buffer of the largest batch's size.
    """
    mine = batches[comm.rank :: comm.world_size]
    numbers = [len(crops) * 3 * crops.size[0] * crops.size[1] for crops in mine]
    buffer = torch.empty(max(numbers, default=0), dtype=execution.dtype, device=device)
    decoder.start(mine)
    for crops, count in zip(mine, numbers, strict=True):
        height, width = crops.size
        if execution.memory_format == "channels_last":
            images = buffer[:count].view(len(crops), height, width, 3).permute(0, 3, 1, 2)
        else:
            images = buffer[:count].view(len(crops), 3, height, width)
        decoder.load_(images)
        yield images, crops
