"""Batches of an image tree decoded by DALI: one pipeline definition for CPUs and GPUs.

Only a plan's window is decoded (fused crop and decoding), then resized as Pillow does it, mirrored,
normalised, and copied into the step's static tensor. Our own threads read the files one batch
further ahead, and check them for damage that decoders ignore.

The "mixed" decoder and the copy on the device have not run on a GPU; the tests build their graph.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import nvidia.dali
import torch
from numpy.typing import NDArray
from torch import Tensor

from swap_fast.config.execution import Execution
from swap_fast.data.cifar.dali import QUEUE_DEPTH, device_id_of, feed_
from swap_fast.data.imagenet.crops import Crops
from swap_fast.data.imagenet.scan import IMAGENET_MEAN, IMAGENET_STD, ImageSplit

dali: Any = nvidia.dali  # its types refuse valid calls

READERS = 8  # threads that wait for the disk

_ON_GPU = {
    # The largest sides in ImageNet, so that the GPU's decoder allocates once, before the run.
    "preallocate_width_hint": 5_980,
    "preallocate_height_hint": 6_430,
    # The share of a batch for the JPEG unit of A100 and later.
    "hw_decoder_load": 0.65,
}

Encoded = NDArray[np.uint8]


class DaliLoader:
    """Decodes batches of crops in order, some batches ahead.

    `start` may be called in the middle of a list of batches: it drops what was decoded ahead.

    Arguments:
        batch_size: of the largest batch.
        execution: type and memory format of the images.
        device: of the batches.
        threads: of DALI, for decoding on the CPU.
        centred: the crops are cut from resized images, as in a test pass; else the resized window
            is the crop.
    """

    def __init__(
        self,
        split: ImageSplit,
        *,
        batch_size: int,
        execution: Execution,
        device: torch.device,
        threads: int,
        centred: bool = False,
    ) -> None:
        self._split, self._source = split, _Source(split, centred=centred)
        self._channels_last = execution.memory_format == "channels_last"
        self._device_id = device_id_of(device)
        self._pipeline = define_pipeline(
            self._source,
            batch_size=batch_size,
            threads=threads,
            device_id=self._device_id,
            half=execution.dtype == torch.float16,
            channels_last=self._channels_last,
            centred=centred,
        )
        self._pipeline.build()

    def start(self, batches: Iterable[Crops]) -> None:
        """Begin to decode these batches, and drop those that were not loaded yet."""
        pipeline = self._pipeline
        self._source.restart(())
        pipeline.schedule_run()  # the source is empty, so the pipeline ends its epoch
        while not pipeline.empty():
            pipeline.share_outputs()
            pipeline.release_outputs()
        pipeline.reset()
        self._source.restart(batches)
        pipeline.schedule_run()

    def load_(self, images: Tensor) -> None:
        """Write the next batch into `images`, [n, 3, height, width] of the execution's type.

        Raises:
            ValueError: a file is damaged or missing; its name and the reason, in one line.
        """
        crops = self._source.given.popleft()
        target = images.permute(0, 2, 3, 1) if self._channels_last else images
        try:
            feed_(self._pipeline, [target], self._device_id)
        except RuntimeError:
            _raise_for_undecodable(self._split, crops)
            raise


def define_pipeline(
    source: "_Source",
    *,
    batch_size: int,
    threads: int,
    device_id: int | None,
    half: bool,
    channels_last: bool,
    centred: bool,
) -> Any:
    """The pipeline from files to images, not built yet. It decodes on the GPU `device_id`, if any.

    Its output is [n, H, W, 3], or [n, 3, H, W] where not channels_last; fp16 or fp32.
    """
    fn, types = dali.fn, dali.types
    pipeline = dali.Pipeline(
        batch_size=batch_size,
        num_threads=threads,
        device_id=device_id,
        prefetch_queue_depth=QUEUE_DEPTH,
    )
    with pipeline:
        inputs = fn.external_source(source=source, num_outputs=7 if centred else 5, batch=True)
        encoded, corner, window, resized, flip = inputs[:5]
        images = fn.decoders.image_slice(
            encoded,
            start=corner,
            shape=window,
            axes=[0, 1],
            device="cpu" if device_id is None else "mixed",
            output_type=types.RGB,
            adjust_orientation=False,  # as Pillow and torchvision leave it
            **({} if device_id is None else _ON_GPU),
        )
        images = fn.resize(images, size=resized, interp_type=types.INTERP_LINEAR, antialias=True)
        if centred:
            start, size = inputs[5:]
            images = fn.slice(
                images,
                start=start,
                shape=size,
                axes=[0, 1],
                out_of_bounds_policy="pad",
                fill_values=[0],
            )
        images = fn.crop_mirror_normalize(
            images,
            dtype=types.FLOAT16 if half else types.FLOAT,
            output_layout="HWC" if channels_last else "CHW",
            mirror=flip,
            mean=list(IMAGENET_MEAN),
            std=list(IMAGENET_STD),
        )
        pipeline.set_outputs(images)
    return pipeline


class _Source:
    """Gives the pipeline its batches; without a reference to it, so that both are freed."""

    def __init__(self, split: ImageSplit, *, centred: bool) -> None:
        self._split, self._centred = split, centred
        self._pool = ThreadPoolExecutor(READERS)
        self.restart(())

    def restart(self, batches: Iterable[Crops]) -> None:
        """Give these batches from the next call on."""
        self.given: deque[Crops] = deque()
        self._batches = iter(batches)
        self._reading: deque[tuple[Crops, Iterator[Encoded]]] = deque()

    def __call__(self) -> tuple[object, ...]:
        """The inputs of the next batch; the files of the one after it are read meanwhile."""
        while len(self._reading) < 2 and (crops := next(self._batches, None)) is not None:
            self._reading.append((crops, self._pool.map(self._read, crops.image.tolist())))
        if not self._reading:
            raise StopIteration
        crops, contents = self._reading.popleft()
        encoded = list(contents)
        self.given.append(crops)
        corner, window = crops.window[:, :2].copy(), crops.window[:, 2:].copy()
        inputs = (encoded, corner, window, crops.resized.astype(np.float32), crops.flip)
        if not self._centred:
            return inputs
        return (*inputs, crops.start, np.full((len(crops), 2), crops.size, np.int32))

    def _read(self, index: int) -> Encoded:
        return np.frombuffer(self._split.read(index), np.uint8)


def _raise_for_undecodable(split: ImageSplit, crops: Crops) -> None:
    """Name the first file of a batch that Pillow cannot decode; DALI names none."""
    from PIL import Image

    for index in crops.image.tolist():
        try:
            with Image.open(split.path(index)) as image:
                image.load()
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(split.error_line(index, f"cannot be decoded: {error}")) from None
