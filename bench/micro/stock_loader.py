"""The stock input path: torchvision's transforms of one image after another, in a DataLoader."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from swap_fast.data.cifar.dataset import Split

PAD = 4
"""Pixels of reflected border, in which a crop has its place."""


class _Augmented(Dataset[tuple[Tensor, int]]):
    """Images augmented one by one."""

    def __init__(self, split: Split, transform: Callable[[Tensor], Tensor]) -> None:
        self._images = torch.from_numpy(split.images).permute(0, 3, 1, 2).contiguous()
        self._labels, self._transform = split.labels.tolist(), transform

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._transform(self._images[index]), self._labels[index]


def stock_loader(
    split: Split,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    batch_size: int,
    loader_processes: int,
    dtype: torch.dtype = torch.float32,
    pin_memory: bool = False,
) -> DataLoader[tuple[Tensor, int]]:
    """Whole batches in a new order each epoch: cropped, mirrored, normalised; no cutout.

    Arguments:
        mean: of each channel, of bytes as they are; `std` likewise.
        loader_processes: 0 makes the batches in this process.
        dtype: of the images [B, 3, 32, 32].
    """
    from torchvision.transforms import v2

    transforms = [
        v2.RandomCrop(32, padding=PAD, padding_mode="reflect"),
        v2.RandomHorizontalFlip(),
        v2.ToDtype(torch.float32),
        v2.Normalize(mean, std),
    ]
    if dtype != torch.float32:
        transforms.append(v2.ToDtype(dtype))
    return DataLoader(
        _Augmented(split, v2.Compose(transforms)),
        batch_size=batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=loader_processes,
        persistent_workers=loader_processes > 0,
        pin_memory=pin_memory,
    )
