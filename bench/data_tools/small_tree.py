"""`python -m bench small-tree`: a small tree of JPEG files from CIFAR-10's images, enlarged.

ImageNet cannot be had everywhere; with this every part of its path runs anywhere, on real images.
"""

import json
import shutil
from pathlib import Path
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from bench.options import SmallTreeOptions
from swap_fast.data.cifar.dataset import Split
from swap_fast.data.cifar.find import load_dataset, locate_dataset

CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
QUALITY = 90  # of the JPEGs
RATIOS = (3 / 4, 4 / 3)  # the images' width over height, so that rectangular tests have work to do


def make_small_tree(options: SmallTreeOptions) -> int:
    """Write the tree whole or not at all.

    Raises:
        ValueError: the destination is there, or a class has too few images.
    """
    destination = options.destination
    if destination.exists():
        raise ValueError(f"{destination}: expected a new folder, got one that is there")
    dataset = load_dataset("cifar10", locate_dataset("cifar10", options.data))
    part = destination.parent / f".{destination.name}.{uuid4().hex}.part"
    try:
        counts = {
            name: _write_split(part / name, split, per_class, options.size)
            for name, split, per_class in (
                ("train", dataset.train, options.per_class),
                ("val", dataset.test, options.test_per_class),
            )
        }
        about = {"made_from": dataset.name, "kind": dataset.kind, "sha256": dataset.sha256}
        (part / "about.json").write_text(json.dumps({**about, "size": options.size}, indent=1))
        part.rename(destination)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    print(
        f"{destination}: {counts['train']:,} + {counts['val']:,} images of {len(CLASSES)} classes"
    )
    return 0


def _write_split(folder: Path, split: Split, per_class: int, size: int) -> int:
    """The first images of each class in the data's canonical order."""
    for label, name in enumerate(CLASSES):
        places = np.flatnonzero(split.labels == label)
        if len(places) < per_class:
            raise ValueError(
                f"{folder.name}: expected at most {len(places):,} images a class, got {per_class:,}"
            )
        (folder / name).mkdir(parents=True)
        for number, place in enumerate(places[:per_class]):
            path = folder / name / f"{name}_{number:05d}.jpg"
            _write_jpeg(path, split.images[place], size, number)
    return per_class * len(CLASSES)


def _write_jpeg(path: Path, image: NDArray[np.uint8], size: int, number: int) -> None:
    """An image [32, 32, 3], its shorter side enlarged to `size`, its ratio one of seven."""
    from PIL import Image

    ratio = RATIOS[0] * (RATIOS[1] / RATIOS[0]) ** (number % 7 / 6)
    width, height = round(size * max(ratio, 1)), round(size * max(1 / ratio, 1))
    enlarged = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
    enlarged.save(path, quality=QUALITY)
