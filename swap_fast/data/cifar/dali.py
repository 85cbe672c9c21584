"""Batches made by DALI: one pipeline definition for CPUs and GPUs.

The pipeline's source gives it the images of a batch, padded once beforehand, and what the plan
says of each; it crops, mirrors, normalises and erases, and what comes out is copied straight into
the step's tensors.

DALI cannot be captured, and its threads use the device: steps are captured before any pipeline for
a GPU is built, which happens when the first batch is asked for.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import nvidia.dali
import nvidia.dali.plugin.pytorch
import torch
from numpy.typing import NDArray
from torch import Tensor

from swap_fast.config.execution import Execution
from swap_fast.data.cifar.augment import IMAGE_SIZE
from swap_fast.data.cifar.batches import Plans
from swap_fast.data.cifar.dataset import Channels, Split

dali: Any = nvidia.dali  # its types forbid more than is wrong

QUEUE_DEPTH = 2
"""Batches that DALI makes ahead."""


class DaliImages:
    """A split from which DALI makes batches: a `Stream`.

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
        self._device_id = device_id_of(device)
        self._pipeline: Any = None
        self.plans: Plans | None = None

    def start(self, plans: Plans, batch_size: int) -> None:
        """Build a pipeline that makes these batches and no others."""
        self._pipeline = None  # the old one goes before the new one comes
        self.plans = plans
        self._pipeline = define_pipeline(
            Source(plans, self._padded, self._labels, self._pad),
            batch_size=batch_size,
            pad=self._pad,
            cutout=self._cutout,
            mean=self._mean,
            std=self._std,
            half=self._execution.dtype == torch.float16,
            channels_last=self._execution.memory_format == "channels_last",
            device_id=self._device_id,
            threads=self._threads,
        )
        self._pipeline.build()
        self._pipeline.schedule_run()  # the first call fills the queue

    def load_(self, images: Tensor, labels: Tensor) -> None:
        if self._execution.memory_format == "channels_last":
            images = images.permute(0, 2, 3, 1)
        feed_(self._pipeline, (images, labels), self._device_id)


class Source:
    """What a pipeline asks for the inputs of a batch. It holds no pipeline, which holds it.

    Arguments:
        padded: uint8 [N, 32 + 2 * pad, 32 + 2 * pad, 3].
        labels: int64 [N].
        pad: pixels of border.
    """

    def __init__(
        self, plans: Plans, padded: NDArray[np.uint8], labels: NDArray[np.int64], pad: int
    ) -> None:
        self._plans, self._padded, self._labels = plans, padded, labels
        self._places = max(2 * pad, 1)
        # On a CPU DALI reads these arrays themselves, until their batch is taken.
        self._in_use: deque[object] = deque(maxlen=QUEUE_DEPTH + 2)

    def __call__(self) -> tuple[NDArray[Any], ...]:
        """Images, labels, crop row and column in 0..1, flip, and a cutout's first corner."""
        plan = next(self._plans)
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
            dtype=types.FLOAT,
            output_layout="HWC" if channels_last else "CHW",
        )
        if cutout:
            images = fn.erase(
                images, anchor=inputs[5], shape=(cutout, cutout), axis_names="HW", fill_value=0.0
            )
        if half:  # last: on a GPU `erase` has no fp16
            images = fn.cast(images, dtype=types.FLOAT16)
        pipeline.set_outputs(images, labels)
    return pipeline


def define_once() -> None:
    """Define a pipeline that is never built: DALI makes its operators' wrappers on first use."""
    define_pipeline(
        lambda: (),
        batch_size=1,
        pad=1,
        cutout=1,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        half=True,
        channels_last=True,
        device_id=None,
        threads=1,
    )


def feed_(pipeline: Any, tensors: Sequence[Tensor], device_id: int | None) -> None:
    """Copy a pipeline's next batch into tensors that stay in their place.

    One copy on the device and the current stream, no new tensor, and the host does not wait for
    it; the next batch is ordered as soon as one is taken.

    Arguments:
        tensors: contiguous, of the shapes of the pipeline's outputs.
    """
    stream = None if device_id is None else torch.cuda.current_stream(device_id)
    outputs = pipeline.share_outputs(stream)
    for made, tensor in zip(outputs, tensors, strict=True):
        assert tensor.is_contiguous(), "the images have the execution's memory format"
        target = tensor
        if tensor.dtype == torch.bfloat16:  # a type that DALI does not have
            target = torch.empty(tensor.shape, device=tensor.device)
        dali.plugin.pytorch.feed_ndarray(made.as_tensor(), target, cuda_stream=stream)
        if target is not tensor:
            tensor.copy_(target)
    pipeline.release_outputs()
    pipeline.schedule_run()


def device_id_of(device: torch.device) -> int | None:
    """The number by which DALI knows a device; None: the CPU."""
    if device.type != "cuda":
        return None
    return torch.cuda.current_device() if device.index is None else device.index
