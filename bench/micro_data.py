"""Ways to make augmented training batches: ours beside others' and beside a copy."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from bench.alternation import Work
from swap_fast.config import Augmentation, Phase
from swap_fast.data.batches import Batches
from swap_fast.data.dataset import Split
from swap_fast.data.images import DeviceImages

NUM_IMAGES = 20_480
LOADER_IMAGES = 4_096  # a turn of the slowest way
MEAN, STD = (125.31, 122.95, 113.87), (62.99, 62.09, 66.70)


def random_split(num_images: int) -> Split:
    """Images of noise: what they show does not matter to the clock."""
    random = np.random.default_rng(0)
    return Split(
        images=random.integers(256, size=(num_images, 32, 32, 3), dtype=np.uint8),
        labels=random.integers(10, size=num_images, dtype=np.uint8),
    )


def our_batches(device_type: str, batch_size: int) -> Work:
    """An epoch's plan and all its batches: crop, flip, cutout, normalised float32."""
    device = torch.device(device_type)
    images = DeviceImages(random_split(NUM_IMAGES), mean=MEAN, std=STD, device=device, pad=4)
    phase = Phase(global_batch_size=batch_size, peak_lr=0.1, max_epochs=1)
    batches = Batches(images, Augmentation(), phase, seed=0, number=1, slots=range(1))
    batch = torch.empty((batch_size, 3, 32, 32), device=device)
    batch = batch.to(memory_format=torch.channels_last)
    labels = torch.empty(batch_size, dtype=torch.int64, device=device)
    epoch = 0

    def work() -> int:
        nonlocal epoch
        batches.start_epoch(0, epoch)
        epoch += 1
        for step in range(batches.steps_per_epoch):
            batches.load_(step, batch, labels)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return batches.steps_per_epoch * batch_size

    return work


def whole_epoch_crop(device_type: str, batch_size: int) -> Work:
    """The peer on resident data: an epoch flipped and cropped at once, offset by offset.

    After the way that airbench works, written anew; without cutout, which it does not have.
    """
    device = torch.device(device_type)
    split = random_split(NUM_IMAGES)
    scaled = torch.from_numpy(split.images).to(device).permute(0, 3, 1, 2).float()
    mean = torch.tensor(MEAN, device=device).view(1, 3, 1, 1)
    std = torch.tensor(STD, device=device).view(1, 3, 1, 1)
    padded = torch.nn.functional.pad((scaled - mean) / std, (4, 4, 4, 4), "reflect")
    labels = torch.from_numpy(split.labels).to(device, torch.int64)

    def work() -> int:
        count = len(padded)
        flip = torch.rand(count, device=device) < 0.5
        flipped = torch.where(flip.view(-1, 1, 1, 1), padded.flip(-1), padded)
        offsets = torch.randint(9, (count, 2), device=device)
        rows = torch.empty(count, 3, 32, 40, device=device)
        crops = torch.empty(count, 3, 32, 32, device=device)
        for offset in range(9):
            chosen = offsets[:, 0] == offset
            rows[chosen] = flipped[chosen, :, offset : offset + 32]
        for offset in range(9):
            chosen = offsets[:, 1] == offset
            crops[chosen] = rows[chosen, :, :, offset : offset + 32]
        order = torch.randperm(count, device=device)
        made = 0
        for start in range(0, count - batch_size + 1, batch_size):
            index = order[start : start + batch_size]
            made += len(crops[index]) + 0 * len(labels[index])
        if device.type == "cuda":
            torch.cuda.synchronize()
        return made

    return work


class _Augmented(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Samples augmented one by one by torchvision."""

    def __init__(self, split: Split, transform: Callable[[Tensor], Tensor]) -> None:
        self._images = torch.from_numpy(split.images).permute(0, 3, 1, 2).contiguous()
        self._labels, self._transform = split.labels.tolist(), transform

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._transform(self._images[index]), self._labels[index]


def torchvision_loader(batch_size: int, loader_processes: int) -> Work:
    """The stock way: torchvision v2's transforms in a DataLoader; crop and flip, no cutout."""
    from torchvision.transforms import v2

    transform = v2.Compose(
        [
            v2.RandomCrop(32, padding=4, padding_mode="reflect"),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32),
            v2.Normalize(MEAN, STD),
        ]
    )
    loader = torch.utils.data.DataLoader(
        _Augmented(random_split(LOADER_IMAGES), transform),
        batch_size=batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=loader_processes,
        persistent_workers=loader_processes > 0,
    )

    def work() -> int:
        # A whole epoch, so that no batch is made before its turn is timed.
        return sum(len(images) for images, _ in loader)

    return work


def copy_floor(device_type: str, batch_size: int) -> Work:
    """The floor: one pass that reads an image's bytes and writes it as float32."""
    device = torch.device(device_type)
    images = torch.from_numpy(random_split(NUM_IMAGES).images).to(device)
    batch = torch.empty((batch_size, 32, 32, 3), device=device)

    def work() -> int:
        for start in range(0, NUM_IMAGES, batch_size):
            batch.copy_(images[start : start + batch_size])
        if device.type == "cuda":
            torch.cuda.synchronize()
        return NUM_IMAGES

    return work
