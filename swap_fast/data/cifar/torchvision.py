"""Batches made image by image by torchvision in a DataLoader: the baseline.

Imported only where it is asked for: torchvision is slow to import.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import functional

from swap_fast.data.cifar.augment import IMAGE_SIZE
from swap_fast.data.cifar.batches import Plans
from swap_fast.data.cifar.dataset import Channels, Split

Entry = tuple[int, int, int, int, int, int]
"""What the plan says of one image: number, crop row and column, flip, cutout row and column."""


class TorchvisionImages:
    """A split from which a DataLoader makes batches: a `Stream`.

    Its processes stay from one start to the next. They come from a server process and not from
    this one: what is forked beside a GPU's or DALI's threads may hang.

    Arguments:
        split: uint8 images [N, 32, 32, 3] and labels [N].
        mean, std: of the three channels, on the scale 0..255.
        pad: pixels of reflected border.
        cutout: side of the square that is set to 0 after normalisation.
        device: where the batches go.
        threads: processes of the DataLoader; with one, it works in this process.
    """

    def __init__(
        self,
        split: Split,
        *,
        mean: Channels,
        std: Channels,
        pad: int,
        cutout: int,
        device: torch.device,
        threads: int,
    ) -> None:
        self.plans: Plans | None = None
        self._iterator: Iterator[tuple[Tensor, Tensor]] = iter(())
        processes = threads if threads > 1 else 0
        self._loader = DataLoader(
            _Samples(split, mean, std, pad, cutout),
            batch_sampler=self,
            num_workers=processes,
            persistent_workers=processes > 0,
            multiprocessing_context="forkserver" if processes else None,
            pin_memory=device.type == "cuda",
        )

    def start(self, plans: Plans, batch_size: int) -> None:
        self.plans = plans
        self._iterator = iter(self._loader)

    def __iter__(self) -> Iterator[list[Entry]]:
        """The entries of each batch: the plan travels to the loader's processes as indices."""
        assert self.plans is not None, "plans are given first"
        for plan in self.plans:
            crop, cutout = (plan.crop_y, plan.crop_x), (plan.cutout_y, plan.cutout_x)
            columns = (plan.order, *crop, plan.flip, *cutout)
            yield list(zip(*(column.tolist() for column in columns), strict=True))

    def load_(self, images: Tensor, labels: Tensor) -> None:
        made, numbers = next(self._iterator)
        images.copy_(made, non_blocking=True)
        labels.copy_(numbers, non_blocking=True)


class _Samples(Dataset[tuple[Tensor, int]]):
    """One image as its entry in the plan wants it: float32 [3, 32, 32], and its label."""

    def __init__(self, split: Split, mean: Channels, std: Channels, pad: int, cutout: int) -> None:
        self._images = torch.from_numpy(split.images).permute(0, 3, 1, 2).contiguous()
        self._labels = split.labels.tolist()
        self._mean, self._std, self._pad, self._cutout = list(mean), list(std), pad, cutout

    def __getitem__(self, entry: Entry) -> tuple[Tensor, int]:
        number, crop_y, crop_x, flip, cutout_y, cutout_x = entry
        image = self._images[number]
        if self._pad:
            image = functional.pad(image, [self._pad], padding_mode="reflect")
            image = functional.crop(image, crop_y, crop_x, IMAGE_SIZE, IMAGE_SIZE)
        if flip:
            image = functional.horizontal_flip(image)
        image = functional.to_dtype(image, torch.float32)
        image = functional.normalize(image, self._mean, self._std)
        if self._cutout:
            square = (cutout_y, cutout_x, self._cutout, self._cutout)
            image = functional.erase(image, *square, image.new_zeros(1))
        return image, self._labels[number]
