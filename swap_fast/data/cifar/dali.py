"""Batches made by DALI: one pipeline definition for CPUs and GPUs.

The pipeline's source gives it the images of a batch, padded once beforehand, and what the plan
says of each; it crops, mirrors, normalises and erases, and what comes out is copied straight into
the step's tensors. The source goes by the number of a batch alone, so that running ahead of the
training changes nothing.

DALI cannot be captured, and its threads use the device: steps are captured before any pipeline for
a GPU is built, which happens when the first batch is asked for.
"""

from collections import deque
from typing import Any

import numpy as np
import nvidia.dali
import nvidia.dali.plugin.pytorch
import torch
from numpy.typing import NDArray
from torch import Tensor

from swap_fast.config.execution import Execution
from swap_fast.data.cifar.augment import IMAGE_SIZE
from swap_fast.data.cifar.batches import Sequence
from swap_fast.data.cifar.dataset import Channels, Split

dali: Any = nvidia.dali  # its types forbid more than is wrong

QUEUE_DEPTH = 2
"""Batches that DALI makes ahead."""


class DaliImages:
    """A split from which DALI makes the batches of one sequence at a time.

    Arguments:
        split: uint8 images [N, 32, 32, 3] and labels [N].
        mean, std: of the three channels, on the scale 0..255.
        pad: pixels of reflected border.
        cutout: side of the square that is set to 0 after normalisation.
        execution: type and memory format of the batches.
        device: where the batches are made, and where they go.
        threads: DALI's CPU threads.
    """

    def __init__(
        self,
        split: Split,
        *,
        mean: Channels,
        std: Channels,
        pad: int,
        cutout: int,
        execution: Execution,
        device: torch.device,
        threads: int,
    ) -> None:
        border = ((0, 0), (pad, pad), (pad, pad), (0, 0))
        self._padded = np.pad(split.images, border, mode="reflect") if pad else split.images
        self._labels = split.labels.astype(np.int64)
        self._pad, self._cutout, self._mean, self._std = pad, cutout, mean, std
        self._execution, self._threads = execution, threads
        self._device_id: int | None = None
        if device.type == "cuda":
            index = device.index
            self._device_id = torch.cuda.current_device() if index is None else index
        self._feeder: StaticFeeder | None = None
        self.sequence: Sequence | None = None

    def start(self, sequence: Sequence) -> None:
        """Build a pipeline that makes `sequence(0)`, `sequence(1)`, ... and no other's batches."""
        self._feeder = None  # the old pipeline goes before the new one comes
        self.sequence = sequence
        pipeline = define_pipeline(
            Source(sequence, self._padded, self._labels, self._pad),
            batch_size=sequence.largest_batch,
            pad=self._pad,
            cutout=self._cutout,
            mean=self._mean,
            std=self._std,
            half=self._execution.dtype == torch.float16,
            channels_last=self._execution.memory_format == "channels_last",
            device_id=self._device_id,
            threads=self._threads,
        )
        self._feeder = StaticFeeder(pipeline, self._device_id)

    def load_(self, images: Tensor, labels: Tensor) -> None:
        """Write the next batch into [B, 3, 32, 32] and [B] tensors."""
        assert self._feeder is not None, "a sequence is started first"
        if self._execution.memory_format == "channels_last":
            images = images.permute(0, 2, 3, 1)
        self._feeder.feed_(images, labels)


class Source:
    """What a pipeline asks for the inputs of a batch. It holds no pipeline, which holds it.

    Arguments:
        sequence: the plan of each batch.
        padded: uint8 [N, 32 + 2 * pad, 32 + 2 * pad, 3].
        labels: int64 [N].
        pad: pixels of border.
    """

    def __init__(
        self, sequence: Sequence, padded: NDArray[np.uint8], labels: NDArray[np.int64], pad: int
    ) -> None:
        self._sequence, self._padded, self._labels = sequence, padded, labels
        self._places = max(2 * pad, 1)
        # On a CPU DALI reads these arrays themselves, until their batch is taken.
        self._in_use: deque[object] = deque(maxlen=QUEUE_DEPTH + 2)

    def __call__(self, batch: Any) -> tuple[NDArray[Any], ...]:
        """Images, labels, crop row and column in 0..1, flip, and a cutout's first corner."""
        plan = self._sequence(batch.iteration)
        # DALI rounds a place in 0..1 to a pixel, so that the division loses nothing.
        crop = np.stack([plan.crop_y, plan.crop_x]).astype(np.float32) / self._places
        images, labels = self._padded[plan.order], self._labels[plan.order]
        inputs: tuple[NDArray[Any], ...]
        inputs = (images, labels, crop[0], crop[1], plan.flip.astype(np.int32))
        if plan.cutout:
            corner = np.stack([plan.cutout_y, plan.cutout_x], axis=1)
            inputs = (*inputs, corner.astype(np.float32))
        self._in_use.append(inputs)
        return inputs


def define_pipeline(
    source: Any,
    *,
    batch_size: int,
    pad: int,
    cutout: int,
    mean: Channels,
    std: Channels,
    half: bool,
    channels_last: bool,
    device_id: int | None,
    threads: int,
) -> Any:
    """The pipeline, not yet built: on the GPU `device_id`, or on the CPU where that is None.

    Its outputs are images [B, 32, 32, 3], or [B, 3, 32, 32] where not channels_last, in fp16 or
    fp32, and labels int64 [B].
    """
    fn, types = dali.fn, dali.types
    pipeline = dali.Pipeline(
        batch_size=batch_size,
        num_threads=threads,
        device_id=device_id,
        prefetch_queue_depth=QUEUE_DEPTH,
    )
    with pipeline:
        inputs = fn.external_source(
            source=source,
            num_outputs=6 if cutout else 5,
            batch=True,
            batch_info=True,
            no_copy=device_id is None,
            layout=["HWC", *[None] * (5 if cutout else 4)],
        )
        images, labels, crop_y, crop_x, flip = inputs[:5]
        if device_id is not None:
            images, labels = images.gpu(), labels.gpu()
        images = fn.crop_mirror_normalize(
            images,
            crop=(IMAGE_SIZE, IMAGE_SIZE),
            crop_pos_y=crop_y,
            crop_pos_x=crop_x,
            mirror=flip,
            mean=list(mean),
            std=list(std),
            dtype=types.FLOAT16 if half else types.FLOAT,
            output_layout="HWC" if channels_last else "CHW",
        )
        if cutout:
            images = fn.erase(
                images, anchor=inputs[5], shape=(cutout, cutout), axis_names="HW", fill_value=0.0
            )
        pipeline.set_outputs(images, labels)
    return pipeline


def define_once() -> None:
    """Define a pipeline that is never built: DALI makes its operators' wrappers on first use."""
    define_pipeline(
        lambda info: (),
        batch_size=1,
        pad=1,
        cutout=1,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        half=False,
        channels_last=True,
        device_id=None,
        threads=1,
    )


class StaticFeeder:
    """Copies a pipeline's batches into tensors that stay in their place, as a captured step needs.

    One copy on the device and the current stream, no new tensor, and the host does not wait for
    it; the next batch is ordered as soon as one is taken.
    """

    def __init__(self, pipeline: Any, device_id: int | None) -> None:
        self._copy = dali.plugin.pytorch.feed_ndarray
        self._pipeline, self._device_id = pipeline, device_id
        pipeline.build()
        pipeline.schedule_run()  # the first call fills the queue

    def feed_(self, images: Tensor, labels: Tensor) -> None:
        """Write the next batch into contiguous tensors of the pipeline's own shapes."""
        assert images.is_contiguous(), "the images have the execution's memory format"
        stream = None if self._device_id is None else torch.cuda.current_stream(self._device_id)
        made, numbers = self._pipeline.share_outputs(stream)
        target = images
        if images.dtype == torch.bfloat16:  # a type that DALI does not have
            target = torch.empty(images.shape, device=images.device)
        self._copy(made.as_tensor(), target, cuda_stream=stream)
        self._copy(numbers.as_tensor(), labels, cuda_stream=stream)
        if target is not images:
            images.copy_(target)
        self._pipeline.release_outputs()
        self._pipeline.schedule_run()
