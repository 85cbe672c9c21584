"""Batches of an image tree decoded by Pillow and torchvision in a DataLoader's processes.

Used without DALI, and as the reference of the DALI backend: the same crops of the same plan.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from swap_fast.config.checks import one_line
from swap_fast.config.execution import Execution
from swap_fast.data.imagenet.crops import Crops
from swap_fast.data.imagenet.scan import IMAGENET_MEAN, IMAGENET_STD, ImageSplit

Job = tuple[int, list[int], list[int], list[int], int, tuple[int, int]]
"""One row of `Crops`: image, window, resized, start, flip, size."""


class TorchvisionLoader:
    """Decodes batches of crops in order, some batches ahead.

    It has the interface and arguments of `DaliLoader`; `threads` is the number of processes, and
    with 0 each batch is made when it is loaded.
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
        del batch_size, centred  # only DALI needs these
        self._mean = torch.tensor(IMAGENET_MEAN, device=device)
        self._std = torch.tensor(IMAGENET_STD, device=device)
        self._jobs = _Jobs()  # without a reference to this object, so that its processes end soon
        self._loader = DataLoader(
            _Decoded(split),
            batch_sampler=self._jobs,
            num_workers=threads,
            collate_fn=_stack,
            persistent_workers=threads > 0,
            pin_memory=device.type == "cuda",
            # A fork of a process with threads, which torch has, may deadlock.
            multiprocessing_context="forkserver" if threads > 0 else None,
        )
        self._batches: Iterator[Tensor | str] = iter(())

    def start(self, batches: Iterable[Crops]) -> None:
        """Begin to decode these batches, and drop those that were not loaded yet."""
        self._jobs.batches = batches
        self._batches = iter(self._loader)

    def load_(self, images: Tensor) -> None:
        """Write the next batch into `images`, [n, 3, height, width], floating.

        Raises:
            ValueError: a file is damaged or missing; its name and the reason, in one line.
        """
        batch = next(self._batches)
        if isinstance(batch, str):
            raise ValueError(batch)
        values = batch.to(images.device, non_blocking=True).float()  # [n, H, W, 3]
        images.permute(0, 2, 3, 1).copy_(values.sub_(self._mean).div_(self._std))


class _Jobs:
    """The crops of each batch; it changes in each epoch, and the processes stay."""

    batches: Iterable[Crops] = ()

    def __iter__(self) -> Iterator[list[Job]]:
        for crops in self.batches:
            columns = (crops.image, crops.window, crops.resized, crops.start, crops.flip)
            rows = zip(*(column.tolist() for column in columns), strict=True)
            yield [(*row, crops.size) for row in rows]


class _Decoded(Dataset[Tensor | str]):
    """Makes crops, uint8 [H, W, 3], or an error message for a file."""

    def __init__(self, split: ImageSplit) -> None:
        self._split = split

    def __getitem__(self, job: Job) -> Tensor | str:
        index, window, resized, start, flip, size = job
        # The message is returned, since an exception of the process would have many lines.
        try:
            content = self._split.read(index)
        except ValueError as error:
            return str(error)
        try:
            return decode_crop(content, window, resized, start, flip, size)
        except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises for damage
            return self._split.error_line(index, f"cannot be decoded: {one_line(error)}")


def decode_crop(
    content: bytes,
    window: list[int],
    resized: list[int],
    start: list[int],
    flip: int,
    size: tuple[int, int],
) -> Tensor:
    """One crop by torchvision's functions on Pillow's image: uint8 [H, W, 3]."""
    import io

    from PIL import Image
    from torchvision.transforms.v2 import functional

    with Image.open(io.BytesIO(content)) as opened:
        image = opened.convert("RGB")
    image = functional.resized_crop(image, *window, size=resized)
    if (start, tuple(resized)) != ([0, 0], size):
        image = functional.crop(image, *start, *size)
    if flip:
        image = functional.horizontal_flip(image)
    return functional.pil_to_tensor(image).permute(1, 2, 0).contiguous()


def _stack(made: list[Tensor | str]) -> Tensor | str:
    """A batch, or the first error message in it."""
    for each in made:
        if isinstance(each, str):
            return each
    return torch.stack([each for each in made if isinstance(each, Tensor)])
