"""Variants of making augmented training batches: ours, other implementations, and a copy."""

import io
from collections.abc import Callable, Sequence
from itertools import count, cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bench.micro.interleave import Turn
from bench.micro.peak import synchronize
from swap_fast.config.execution import Execution
from swap_fast.config.phase import Augmentation, Phase
from swap_fast.config.recipe import LoaderName
from swap_fast.data.cifar.augment import plan_epoch
from swap_fast.data.cifar.batches import Batch, Loader, ShardSpec
from swap_fast.data.cifar.dataset import Channels, Split
from swap_fast.data.cifar.resident import DeviceImages
from swap_fast.data.imagenet.batches import DecoderName, TreeBatches, make_decoder
from swap_fast.data.imagenet.scan import IMAGENET_MEAN, IMAGENET_STD, scan_tree
from swap_fast.host_memory import keep_freed_memory
from swap_fast.tasks.cifar import loader_maker

# Batches of CIFAR's size, [B, 3, 32, 32], from images of noise.

NUM_IMAGES = 20_480  # a turn
LOADER_IMAGES = 4_096  # a turn of the slowest variant
MEAN, STD = (125.31, 122.95, 113.87), (62.99, 62.09, 66.70)
DTYPES = {"float32": torch.float32, "float16": torch.float16}
PAD = 4
"""Pixels of reflected border around an image, from which the crop is taken."""


def random_split(num_images: int) -> Split:
    """Images of noise: the time does not depend on what they show."""
    random = np.random.default_rng(0)
    return Split(
        images=random.integers(256, size=(num_images, 32, 32, 3), dtype=np.uint8),
        labels=random.integers(10, size=num_images, dtype=np.uint8),
    )


def make_loader(
    split: Split,
    execution: Execution,
    phase: Phase,
    into: Batch,
    *,
    mean: Channels = MEAN,
    std: Channels = STD,
    seed: int = 0,
) -> Loader:
    """The loader of a phase, all of whose replicas are on this process's device."""
    device, augmentation = torch.device(execution.device_type), Augmentation()
    images = DeviceImages(split, mean=mean, std=std, device=device, pad=augmentation.pad)
    make = loader_maker(
        images, split, augmentation, mean=mean, std=std, execution=execution, device=device
    )
    return make(
        ShardSpec(
            num_images=len(split),
            augmentation=augmentation,
            phase=phase,
            seed=seed,
            number=1,
            replicas=range(phase.gpus_per_model),
        ),
        into,
    )


def our_batches(loader: LoaderName, device_type: str, batch_size: int, dtype: str) -> Turn:
    """Ours: a plan of crop, flip and cutout, and all batches of an epoch in the step's tensors."""
    keep_freed_memory()  # as in a run
    device = torch.device(device_type)
    split = random_split(LOADER_IMAGES if loader == "torchvision" else NUM_IMAGES)
    execution = Execution(
        device_type="cuda" if device_type == "cuda" else "cpu",
        precision="fp16" if dtype == "float16" else "fp32",
        loader=loader,
    )
    phase = Phase(global_batch_size=batch_size, peak_lr=0.1, max_epochs=1)
    batches = make_loader(split, execution, phase, Batch.empty(batch_size, 32, execution, device))
    return _whole_epoch(batches, batch_size, device)


def _whole_epoch(batches: Loader, batch_size: int, device: torch.device) -> Turn:
    """A turn is an epoch, so that no batch is made before the turn is timed."""
    epochs = count()

    def turn() -> int:
        batches.start_epoch(0, next(epochs))
        for step in range(batches.steps_per_epoch):
            batches.load(step)
        synchronize(device)
        return batches.steps_per_epoch * batch_size

    return turn


def bare_dali(device_type: str, batch_size: int, dtype: str, threads: int) -> Turn:
    """The operators of our DALI pipeline, on batches that lie ready; their output is not copied."""
    from swap_fast.data.cifar.dali import define_pipeline

    split = random_split(NUM_IMAGES)
    padded = np.pad(split.images, ((0, 0), (PAD, PAD), (PAD, PAD), (0, 0)), mode="reflect")
    plan = plan_epoch(NUM_IMAGES, Augmentation(), seed=0, phase=1, worker=0, epoch=0)
    ready = []
    for start in range(0, NUM_IMAGES - batch_size + 1, batch_size):
        part = plan.take(np.arange(start, start + batch_size))
        crop = np.stack([part.crop_y, part.crop_x]).astype(np.float32) / (2 * PAD)
        corner = np.stack([part.cutout_y, part.cutout_x], axis=1).astype(np.float32)
        here = slice(start, start + batch_size)
        labels = split.labels[here].astype(np.int64)
        flip = part.flip.astype(np.int32)
        ready.append((padded[here], labels, crop[0], crop[1], flip, corner))
    batches = cycle(ready)
    pipeline = define_pipeline(
        lambda: next(batches),
        batch_size=batch_size,
        pad=PAD,
        cutout=8,
        mean=MEAN,
        std=STD,
        half=dtype == "float16",
        channels_last=True,
        device_id=0 if device_type == "cuda" else None,
        threads=threads,
    )
    return _run_pipeline(pipeline, batch_size)


def stock_dali(device_type: str, batch_size: int, dtype: str, threads: int) -> Turn:
    """DALI as its examples have it: its own random crops and flips; no cutout."""
    import nvidia.dali

    dali: Any = nvidia.dali
    fn, types = dali.fn, dali.types
    split = random_split(NUM_IMAGES)
    padded = np.pad(split.images, ((0, 0), (PAD, PAD), (PAD, PAD), (0, 0)), mode="reflect")
    labels = split.labels.astype(np.int64)
    device_id = 0 if device_type == "cuda" else None
    order = np.random.default_rng(0).permutation(NUM_IMAGES)
    places = [order[i : i + batch_size] for i in range(0, NUM_IMAGES - batch_size + 1, batch_size)]

    def source(batch: Any) -> tuple[Any, ...]:
        chosen = places[batch.iteration % len(places)]
        return padded[chosen], labels[chosen]

    pipeline = dali.Pipeline(
        batch_size=batch_size, num_threads=threads, device_id=device_id, seed=0
    )
    with pipeline:
        images, numbers = fn.external_source(
            source=source, num_outputs=2, batch=True, batch_info=True, layout=["HWC", None]
        )
        if device_id is not None:
            images, numbers = images.gpu(), numbers.gpu()
        images = fn.crop_mirror_normalize(
            images,
            crop=(32, 32),
            crop_pos_x=fn.random.uniform(range=(0.0, 1.0)),
            crop_pos_y=fn.random.uniform(range=(0.0, 1.0)),
            mirror=fn.random.coin_flip(),
            mean=list(MEAN),
            std=list(STD),
            dtype=types.FLOAT16 if dtype == "float16" else types.FLOAT,
            output_layout="HWC",
        )
        pipeline.set_outputs(images, numbers)
    return _run_pipeline(pipeline, batch_size)


def _run_pipeline(pipeline: Any, batch_size: int) -> Turn:
    """An epoch of a pipeline's batches, each released as soon as it is there."""
    pipeline.build()
    pipeline.schedule_run()

    def turn() -> int:
        batches = NUM_IMAGES // batch_size
        for _ in range(batches):
            pipeline.share_outputs()
            pipeline.release_outputs()
            pipeline.schedule_run()
        return batches * batch_size

    return turn


def whole_epoch_crop(device_type: str, batch_size: int, dtype: str) -> Turn:
    """An epoch flipped and cropped at once, offset by offset, on the device; no cutout.

    This is airbench's method in code of our own.
    """
    device = torch.device(device_type)
    split = random_split(NUM_IMAGES)
    scaled = torch.from_numpy(split.images).to(device).permute(0, 3, 1, 2).float()
    mean = torch.tensor(MEAN, device=device).view(1, 3, 1, 1)
    std = torch.tensor(STD, device=device).view(1, 3, 1, 1)
    normalised = ((scaled - mean) / std).to(DTYPES[dtype])
    padded = torch.nn.functional.pad(normalised, (4, 4, 4, 4), "reflect")
    labels = torch.from_numpy(split.labels).to(device, torch.int64)

    def turn() -> int:
        number = len(padded)
        flip = torch.rand(number, device=device) < 0.5
        flipped = torch.where(flip.view(-1, 1, 1, 1), padded.flip(-1), padded)
        offsets = torch.randint(9, (number, 2), device=device)
        rows = padded.new_empty(number, 3, 32, 40)
        crops = padded.new_empty(number, 3, 32, 32)
        for offset in range(9):
            chosen = offsets[:, 0] == offset
            rows[chosen] = flipped[chosen, :, offset : offset + 32]
        for offset in range(9):
            chosen = offsets[:, 1] == offset
            crops[chosen] = rows[chosen, :, :, offset : offset + 32]
        order = torch.randperm(number, device=device)
        made = 0
        for start in range(0, number - batch_size + 1, batch_size):
            index = order[start : start + batch_size]
            made += len(crops[index]) + 0 * len(labels[index])
        synchronize(device)
        return made

    return turn


def copy_floor(device_type: str, batch_size: int, dtype: str) -> Turn:
    """The floor: one pass that reads the bytes of the images and writes their values."""
    device = torch.device(device_type)
    images = torch.from_numpy(random_split(NUM_IMAGES).images).to(device)
    batch = torch.empty((batch_size, 32, 32, 3), dtype=DTYPES[dtype], device=device)

    def turn() -> int:
        for start in range(0, NUM_IMAGES - batch_size + 1, batch_size):
            batch.copy_(images[start : start + batch_size])
        synchronize(device)
        return NUM_IMAGES // batch_size * batch_size

    return turn


def torchvision_loader(batch_size: int, dtype: str, loader_processes: int) -> Turn:
    """The stock implementation: torchvision v2's transforms in a DataLoader; no cutout."""
    loader = stock_loader(
        random_split(LOADER_IMAGES),
        mean=MEAN,
        std=STD,
        batch_size=batch_size,
        loader_processes=loader_processes,
        dtype=DTYPES[dtype],
    )

    def turn() -> int:
        # A whole epoch, so that no batch is made before the turn is timed.
        return sum(len(images) for images, _ in loader)

    return turn


class _Augmented(Dataset[tuple[Tensor, int]]):
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
    """Whole batches [B, 3, 32, 32] in a new order each epoch: cropped, mirrored, normalised.

    Arguments:
        mean, std: of each channel, on the scale 0..255.
        loader_processes: 0 makes the batches in this process.
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


# Batches of ImageNet's size from JPEG files. The files are generated: 500 x 375 pixels and about
# 110 kB, as ImageNet's are. All variants read the same files, take a random resized crop of 224
# pixels, mirror half of them, and normalise.

NUM_FILES = 1024  # a turn; large, so that its start takes a small share of it
CLASSES = 4
WIDTH, HEIGHT = 500, 375
PX, MIN_SCALE = 224, 0.08
_QUALITY, _NOISE, _CELL = 92, 20, 12  # give files of about 110 kB


def write_jpegs(root: Path, num_files: int = NUM_FILES) -> Path:
    """Write the files as a tree; its test split has one file for each class."""
    from PIL import Image

    random = np.random.default_rng(0)
    for split, num in (("train", num_files), ("val", CLASSES)):
        for number in range(num):
            cells = random.integers(
                256, size=(HEIGHT // _CELL + 1, WIDTH // _CELL + 1, 3), dtype=np.uint8
            )
            smooth = Image.fromarray(cells).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
            noise = random.integers(-_NOISE, _NOISE + 1, size=(HEIGHT, WIDTH, 1))
            pixels = (np.asarray(smooth) + noise).clip(0, 255).astype(np.uint8)
            folder = root / split / f"class{number % CLASSES}"
            folder.mkdir(parents=True, exist_ok=True)
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "JPEG", quality=_QUALITY)
            (folder / f"{number:04}.JPEG").write_bytes(buffer.getvalue())
    return root


def our_jpegs(
    decoder: DecoderName, root: str, device_type: str, batch_size: int, threads: int
) -> Turn:
    """Ours, into a step's static tensors, with `threads` threads (torchvision: processes)."""
    train = scan_tree(Path(root)).train
    device = torch.device(device_type)
    execution = Execution(
        device_type="cuda" if device_type == "cuda" else "cpu",
        precision="fp16" if device_type == "cuda" else "fp32",
    )
    batches = TreeBatches(
        train,
        make_decoder(
            decoder,
            train,
            batch_size=batch_size,
            execution=execution,
            device=device,
            threads=threads,
        ),
        px=PX,
        min_scale=MIN_SCALE,
        global_batch_size=batch_size,
        num_replicas=1,
        replicas=range(1),
        seed=0,
        number=1,
        into=Batch.empty(batch_size, PX, execution, device),
    )
    return _whole_epoch(batches, batch_size, device)


def torchvision_jpeg_loader(root: str, batch_size: int, processes: int) -> Turn:
    """The stock implementation: ImageFolder, torchvision v2's transforms and a DataLoader."""
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    transform = v2.Compose(
        [
            v2.RandomResizedCrop(PX, scale=(MIN_SCALE, 1.0)),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32),
            v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    loader = torch.utils.data.DataLoader(
        ImageFolder(str(Path(root) / "train"), transform),
        batch_size=batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=processes,
        persistent_workers=processes > 0,
    )

    return lambda: sum(len(images) for images, _ in loader)
