"""Ways to make augmented training batches: ours beside others' and beside a copy."""

import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bench.micro.interleave import Work
from bench.micro.peak import synchronize
from swap_fast.config.execution import Execution
from swap_fast.config.phase import Augmentation, Phase
from swap_fast.config.recipe import LoaderName
from swap_fast.data.cifar.augment import plan_epoch
from swap_fast.data.cifar.batches import Batch, ShardSpec
from swap_fast.data.cifar.dataset import Split
from swap_fast.data.cifar.resident import DeviceImages
from swap_fast.data.imagenet.batches import DecoderName, TreeBatches, make_decoder
from swap_fast.data.imagenet.scan import IMAGENET_MEAN, IMAGENET_STD, ImageTree, scan_tree
from swap_fast.tasks.cifar import loader_maker
from swap_fast.training.capture import keep_freed_memory

# Ways to make training batches from JPEG files: ours beside torchvision's DataLoader.
#
# The files are generated, of 500 x 375 pixels and about 110 kB, as ImageNet's are. All ways read
# the same ones, show a random resized crop of 224 pixels, perhaps mirrored, and normalise it.


NUM_FILES = 1024  # a turn of every way: so many that its start weighs little
CLASSES = 4
WIDTH, HEIGHT = 500, 375
PX, MIN_SCALE = 224, 0.08
_QUALITY, _NOISE, _CELL = 92, 20, 12  # give files of about 110 kB


def write_jpegs(root: Path, num_files: int = NUM_FILES) -> Path:
    """Write the files as a tree, of which the test split has one file a class."""
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


def _our_work(
    tree: ImageTree, name: DecoderName, device_type: str, batch_size: int, threads: int
) -> Work:
    device = torch.device(device_type)
    execution = Execution(
        device_type="cuda" if device_type == "cuda" else "cpu",
        precision="fp16" if device_type == "cuda" else "fp32",
    )
    batch = Batch.empty(batch_size, PX, execution, device)
    batches = TreeBatches(
        tree.train,
        make_decoder(
            name,
            tree.train,
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
        into=batch,
    )
    epoch = 0

    def work() -> int:
        nonlocal epoch
        # A whole epoch, so that no batch is decoded before its turn is timed.
        batches.start_epoch(0, epoch)
        epoch += 1
        for step in range(batches.steps_per_epoch):
            batches.load(step)
        synchronize(device)
        return batches.steps_per_epoch * batch_size

    return work


def our_dali(root: str, device_type: str, batch_size: int, threads: int) -> Work:
    """Ours: DALI with so many threads, into a step's static tensor."""
    return _our_work(scan_tree(Path(root)), "dali", device_type, batch_size, threads)


def our_torchvision(root: str, device_type: str, batch_size: int, processes: int) -> Work:
    """Ours without DALI: the same crops by torchvision in so many processes."""
    return _our_work(scan_tree(Path(root)), "torchvision", device_type, batch_size, processes)


def torchvision_jpeg_loader(root: str, batch_size: int, processes: int) -> Work:
    """The stock way: ImageFolder, torchvision v2's transforms and a DataLoader, on the CPU."""
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

    def work() -> int:
        return sum(len(images) for images, _ in loader)

    return work


# The stock input path: torchvision's transforms of one image after another, in a DataLoader.


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


NUM_IMAGES = 20_480
LOADER_IMAGES = 4_096  # a turn of the slowest way
MEAN, STD = (125.31, 122.95, 113.87), (62.99, 62.09, 66.70)
DTYPES = {"float32": torch.float32, "float16": torch.float16}


def random_split(num_images: int) -> Split:
    """Images of noise: what they show does not matter to the clock."""
    random = np.random.default_rng(0)
    return Split(
        images=random.integers(256, size=(num_images, 32, 32, 3), dtype=np.uint8),
        labels=random.integers(10, size=num_images, dtype=np.uint8),
    )


def our_batches(loader: LoaderName, device_type: str, batch_size: int, dtype: str) -> Work:
    """An epoch's plan and all its batches, in the step's tensors: crop, flip, normalise, cutout."""
    keep_freed_memory()  # as in a run
    device = torch.device(device_type)
    split = random_split(LOADER_IMAGES if loader == "torchvision" else NUM_IMAGES)
    images = DeviceImages(split, mean=MEAN, std=STD, device=device, pad=4)
    execution = Execution(loader=loader)
    if dtype == "float16":
        execution = replace(execution, precision="fp16")
    augmentation = Augmentation()
    make_loader = loader_maker(
        images, split, augmentation, mean=MEAN, std=STD, execution=execution, device=device
    )
    share = ShardSpec(
        num_images=len(split),
        augmentation=augmentation,
        phase=Phase(global_batch_size=batch_size, peak_lr=0.1, max_epochs=1),
        seed=0,
        number=1,
        replicas=range(1),
    )
    batches = make_loader(share, Batch.empty(batch_size, 32, execution, device))
    epochs = count()

    def work() -> int:
        batches.start_epoch(0, next(epochs))
        for step in range(batches.steps_per_epoch):
            batches.load(step)
        synchronize(device)
        return batches.steps_per_epoch * batch_size

    return work


def bare_dali(device_type: str, batch_size: int, dtype: str, threads: int) -> Work:
    """The operators of our pipeline, given batches that lie ready; nothing takes what they make."""
    from swap_fast.data.cifar.dali import define_pipeline

    split, pad = random_split(NUM_IMAGES), 4
    padded = np.pad(split.images, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode="reflect")
    plan = plan_epoch(NUM_IMAGES, Augmentation(), seed=0, phase=1, worker=0, epoch=0)
    ready = []
    for start in range(0, NUM_IMAGES - batch_size + 1, batch_size):
        part = plan.take(np.arange(start, start + batch_size))
        crop = np.stack([part.crop_y, part.crop_x]).astype(np.float32) / (2 * pad)
        corner = np.stack([part.cutout_y, part.cutout_x], axis=1).astype(np.float32)
        here = slice(start, start + batch_size)
        labels = split.labels[here].astype(np.int64)
        inputs = (padded[here], labels, crop[0], crop[1], part.flip.astype(np.int32), corner)
        ready.append(inputs)
    pipeline = define_pipeline(
        lambda batch: ready[batch.iteration % len(ready)],
        batch_size=batch_size,
        pad=pad,
        cutout=8,
        mean=MEAN,
        std=STD,
        half=dtype == "float16",
        channels_last=True,
        device_id=0 if device_type == "cuda" else None,
        threads=threads,
    )
    return _run_pipeline(pipeline, batch_size)


def stock_dali(device_type: str, batch_size: int, dtype: str, threads: int) -> Work:
    """DALI as its examples have it: places and flips of its own drawing; no cutout."""
    import nvidia.dali

    dali: Any = nvidia.dali
    fn, types = dali.fn, dali.types
    split = random_split(NUM_IMAGES)
    padded = np.pad(split.images, ((0, 0), (4, 4), (4, 4), (0, 0)), mode="reflect")
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


def _run_pipeline(pipeline: Any, batch_size: int) -> Work:
    """An epoch of a pipeline's batches, each given back as soon as it is there."""
    pipeline.build()
    pipeline.schedule_run()

    def work() -> int:
        batches = NUM_IMAGES // batch_size
        for _ in range(batches):
            pipeline.share_outputs()
            pipeline.release_outputs()
            pipeline.schedule_run()
        return batches * batch_size

    return work


def whole_epoch_crop(device_type: str, batch_size: int, dtype: str) -> Work:
    """The peer on resident data: an epoch flipped and cropped at once, offset by offset.

    After the way that airbench works, written anew; without cutout, which it does not have.
    """
    device = torch.device(device_type)
    split = random_split(NUM_IMAGES)
    scaled = torch.from_numpy(split.images).to(device).permute(0, 3, 1, 2).float()
    mean = torch.tensor(MEAN, device=device).view(1, 3, 1, 1)
    std = torch.tensor(STD, device=device).view(1, 3, 1, 1)
    normalised = ((scaled - mean) / std).to(DTYPES[dtype])
    padded = torch.nn.functional.pad(normalised, (4, 4, 4, 4), "reflect")
    labels = torch.from_numpy(split.labels).to(device, torch.int64)

    def work() -> int:
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

    return work


def torchvision_loader(batch_size: int, dtype: str, loader_processes: int) -> Work:
    """The stock way: torchvision v2's transforms in a DataLoader; crop and flip, no cutout."""
    loader = stock_loader(
        random_split(LOADER_IMAGES),
        mean=MEAN,
        std=STD,
        batch_size=batch_size,
        loader_processes=loader_processes,
        dtype=DTYPES[dtype],
    )

    def work() -> int:
        # A whole epoch, so that no batch is made before its turn is timed.
        return sum(len(images) for images, _ in loader)

    return work


def copy_floor(device_type: str, batch_size: int, dtype: str) -> Work:
    """The floor: one pass that reads an image's bytes and writes its values."""
    device = torch.device(device_type)
    images = torch.from_numpy(random_split(NUM_IMAGES).images).to(device)
    batch = torch.empty((batch_size, 32, 32, 3), dtype=DTYPES[dtype], device=device)

    def work() -> int:
        for start in range(0, NUM_IMAGES - batch_size + 1, batch_size):
            batch.copy_(images[start : start + batch_size])
        synchronize(device)
        return NUM_IMAGES // batch_size * batch_size

    return work
