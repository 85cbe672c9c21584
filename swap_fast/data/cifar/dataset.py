"""What a data set is in memory: two splits in one canonical order, known by their content.

A *record* is one label byte followed by the 3,072 pixel bytes of an image as red, green and blue
planes: the layout of CIFAR-10's binary files, with the fine label for CIFAR-100. A record's digest
is BLAKE2b with 16 bytes of output. The records of a split are put in the order of their digests,
and the set's SHA-256 is taken over those digests. So the archive, the binary files and a copy in
another order have one hash and, which matters more, give the same batches for the same seed. The
order is as good as random with respect to the images, so that the first n of a split are a fair
sample of it.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from swap_fast.data.cifar.augment import IMAGE_SIZE

DatasetName = Literal["cifar10", "cifar100", "synthetic"]
DatasetKind = Literal["published", "subset", "synthetic", "held-out"]
Channels = tuple[float, float, float]
ByteArray = npt.NDArray[np.uint8]

IMAGE_BYTES = 3 * IMAGE_SIZE * IMAGE_SIZE
RECORD_BYTES = 1 + IMAGE_BYTES
DIGEST_BYTES = 16
FULL_COUNTS = (50_000, 10_000)
"""Training and test images of each set, where it is whole."""


@dataclass(frozen=True, kw_only=True)
class KnownSet:
    """What is fixed by the name of a data set."""

    title: str
    num_classes: int
    mean: Channels
    """Of each channel, on the 0..255 scale, like `std`."""
    std: Channels
    published_sha256: str | None


KNOWN: dict[DatasetName, KnownSet] = {
    "cifar10": KnownSet(
        title="CIFAR-10",
        num_classes=10,
        mean=(125.31, 122.95, 113.87),
        std=(62.99, 62.09, 66.70),
        published_sha256="9ca8a68e595f26a51716116d398606b8eefde1e7eb795d6a285de5cff4c3bf07",
    ),
    "cifar100": KnownSet(
        title="CIFAR-100",
        num_classes=100,
        mean=(129.30, 124.07, 112.43),
        std=(68.17, 65.39, 70.42),
        # Of the binary files with the published SHA-256, which test_cifar.py has.
        published_sha256="cb08878971c50009492feac3f9c92ac8879526dd8b39f19a3aecf64afd25714f",
    ),
    "synthetic": KnownSet(
        title="built-in synthetic set",
        num_classes=10,
        mean=(128.0, 115.7, 124.3),
        std=(70.3, 71.1, 69.9),
        published_sha256=None,
    ),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """The training or the test half of a data set.

    Raises:
        ValueError: the two arrays do not have the shapes and type below.
    """

    images: ByteArray
    """uint8 [N, 32, 32, 3], height, width, then red, green, blue."""
    labels: ByteArray
    """uint8 [N]; the fine label for CIFAR-100."""

    def __post_init__(self) -> None:
        expected = (len(self.labels), IMAGE_SIZE, IMAGE_SIZE, 3)
        if self.images.shape != expected or self.labels.ndim != 1:
            raise ValueError(
                f"a split: expected images {expected} for one label an image, "
                f"got images {self.images.shape} and labels {self.labels.shape}"
            )
        if self.images.dtype != np.uint8 or self.labels.dtype != np.uint8:
            raise ValueError(
                f"a split: expected uint8 images and labels, "
                f"got {self.images.dtype} and {self.labels.dtype}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, images: slice) -> "Split":
        return Split(images=self.images[images], labels=self.labels[images])


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """A data set in its canonical order. Two are the same when their `sha256` are."""

    name: DatasetName
    kind: DatasetKind
    """Only figures from a "published" set can be compared with published figures."""
    train: Split
    test: Split
    num_classes: int
    sha256: str
    """64 hexadecimal digits: the content, whatever files it came from and in whatever order."""
    source: str
    """The folder or archive that was read, or the generator with its seed."""
    mean: Channels
    """Of each channel, on the 0..255 scale, for normalisation; so is `std`."""
    std: Channels

    def describe(self) -> str:
        """One short line: name, kind, counts and the start of the hash."""
        title, counts = KNOWN[self.name].title, (len(self.train), len(self.test))
        parts = [f"{counts[0]:,} + {counts[1]:,} images", f"sha256 {self.sha256[:12]}…"]
        if self.kind == "subset" and counts == FULL_COUNTS:
            # All the images may well be here, but nothing shows that they are the published ones.
            parts.insert(1, "not verified as published")
        return ", ".join([title if self.kind == "synthetic" else f"{title}, {self.kind}", *parts])


def build_dataset(
    name: DatasetName,
    train_records: Sequence[ByteArray],
    test_records: Sequence[ByteArray],
    *,
    source: str,
    verified: bool = False,
) -> Dataset:
    """Put records in canonical order and name what they are by their hash.

    Arguments:
        train_records: blocks of records, each uint8 [n, 3073]; their order does not matter.
        source: where the records are from, for the run's record.
        verified: every published file was read and each had its published MD5 (pickles only).

    Returns:
        The data set; its kind is "published" where `verified` or where the hash is the published
        one, "synthetic" for the generated set, and "subset" for all else.
    """
    known = KNOWN[name]
    train, train_digests = _canonical_split(train_records)
    test, test_digests = _canonical_split(test_records)
    sha256 = _content_sha256(name, known.num_classes, train_digests, test_digests)
    kind: DatasetKind = "subset"
    if name == "synthetic":
        kind = "synthetic"
    elif verified or sha256 == known.published_sha256:
        kind = "published"
    return Dataset(
        name=name,
        kind=kind,
        train=train,
        test=test,
        num_classes=known.num_classes,
        sha256=sha256,
        source=source,
        mean=known.mean,
        std=known.std,
    )


def _canonical_split(blocks: Sequence[ByteArray]) -> tuple[Split, bytes]:
    """The split in the order of its records' digests, and those digests, sorted, in one string."""
    digests = b"".join(
        hashlib.blake2b(record, digest_size=DIGEST_BYTES).digest()
        for block in blocks
        for record in block
    )
    # Two big-endian words compare as the 16 bytes do.
    words = np.frombuffer(digests, dtype=">u8").reshape(-1, 2)
    order = np.lexsort((words[:, 1], words[:, 0]))
    place = np.empty_like(order)
    place[order] = np.arange(len(order))

    pixels = np.empty((len(order), IMAGE_SIZE * IMAGE_SIZE, 3), dtype=np.uint8)
    labels = np.empty(len(order), dtype=np.uint8)
    start = 0
    for block in blocks:
        to = place[start : start + len(block)]
        labels[to] = block[:, 0]
        planes = block[:, 1:].reshape(-1, 3, IMAGE_SIZE * IMAGE_SIZE)
        for channel in range(3):  # twice as fast as one transposed copy
            pixels[to, :, channel] = planes[:, channel]
        start += len(block)
    images = pixels.reshape(-1, IMAGE_SIZE, IMAGE_SIZE, 3)
    return Split(images=images, labels=labels), words[order].tobytes()


def _content_sha256(name: str, num_classes: int, train: bytes, test: bytes) -> str:
    """SHA-256 over the name, the number of classes and the sorted digests of both splits."""
    content = hashlib.sha256(f"{name} {num_classes}\n".encode())
    for split, digests in (("train", train), ("test", test)):
        content.update(f"{split} {len(digests) // DIGEST_BYTES}\n".encode())
        content.update(digests)
    return content.hexdigest()


# A held-out part of the training images, by which a search chooses settings: settings chosen by
# the test images would fit the test images.


def hold_out(dataset: Dataset, count: int) -> Dataset:
    """The set without its test images: tested on its last `count` training images.

    The canonical order is as good as random with respect to the images, so that its end is a fair
    sample; it is not stratified: each class has about its share of it. Channel means and
    deviations are those fixed for the set's name, so that nothing of the held-out images is learnt.

    Raises:
        ValueError: no image would be left on one side.
    """
    left = len(dataset.train) - count
    if count < 1 or left < 1:
        raise ValueError(
            f"held_out: expected 1 to {len(dataset.train) - 1:,} of the training images, "
            f"got {count:,}"
        )
    name = f"{dataset.sha256} without its test images, tested on the last {count}"
    return replace(
        dataset,
        kind="held-out",
        train=dataset.train[:left],
        test=dataset.train[left:],
        sha256=hashlib.sha256(name.encode()).hexdigest(),
    )
