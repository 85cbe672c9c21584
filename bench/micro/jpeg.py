"""Ways to make training batches from JPEG files: ours beside torchvision's DataLoader.

The files are generated, of 500 x 375 pixels and about 110 kB, as ImageNet's are. All ways read the
same ones, show a random resized crop of 224 pixels, perhaps mirrored, and normalise it.
"""

import io
from pathlib import Path

import numpy as np
import torch

from bench.micro.footprint import synchronize
from bench.micro.interleave import Work
from swap_fast.config.execution import Execution
from swap_fast.data.imagenet.batches import DecoderName, TreeBatches, make_decoder
from swap_fast.data.imagenet.scan import IMAGENET_MEAN, IMAGENET_STD, ImageTree, scan_tree

NUM_FILES = 1024  # a turn of every way: so many that its start weighs little
CLASSES = 4
WIDTH, HEIGHT = 500, 375
PX, MIN_SCALE = 224, 0.08
_QUALITY, _NOISE, _CELL = 92, 20, 12  # give files of about 110 kB


def write_jpegs(root: Path, num_files: int = NUM_FILES) -> Path:
    """Write the files as a tree, of which the test split has one file a class."""
    from PIL import Image

    random = np.random.default_rng(0)
    for split, count in (("train", num_files), ("val", CLASSES)):
        for number in range(count):
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
        num_slots=1,
        slots=range(1),
        seed=0,
        number=1,
        device=device,
    )
    images = execution.empty_images((batch_size, 3, PX, PX), device)
    labels = torch.empty(batch_size, dtype=torch.int64, device=device)
    epoch = 0

    def work() -> int:
        nonlocal epoch
        # A whole epoch, so that no batch is decoded before its turn is timed.
        batches.start_epoch(0, epoch)
        epoch += 1
        for step in range(batches.steps_per_epoch):
            batches.load_(step, images, labels)
        synchronize(device)
        return batches.steps_per_epoch * batch_size

    return work


def our_dali(root: str, device_type: str, batch_size: int, threads: int) -> Work:
    """Ours: DALI with so many threads, into a step's static tensor."""
    return _our_work(scan_tree(Path(root)), "dali", device_type, batch_size, threads)


def our_torchvision(root: str, device_type: str, batch_size: int, processes: int) -> Work:
    """Ours without DALI: the same crops by torchvision in so many processes."""
    return _our_work(scan_tree(Path(root)), "torchvision", device_type, batch_size, processes)


def torchvision_loader(root: str, batch_size: int, processes: int) -> Work:
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
