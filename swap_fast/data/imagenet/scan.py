"""A tree of image files like ImageNet's: train/ and val/ (or test/), with a folder for each class.

The scan reads the head and the tail of every file before training, so that a bad file is named at
the start and not after hours. Classes are numbered in the order of their names, as in torchvision.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from swap_fast.data.imagenet.files import BadImageError, inspect_image, read_image


@dataclass(frozen=True, kw_only=True)
class BadFile:
    """A file that cannot be used."""

    name: str
    """Path below the tree's folder."""
    reason: str

    def __str__(self) -> str:
        return f"{self.name!r} ({self.reason})"  # one line, whatever is in the name


def find_split(root: Path, *names: str) -> Path:
    """The first of these folders that exists.

    Raises:
        ValueError: none exists.
    """
    for name in names:
        if (root / name).is_dir():
            return root / name
    raise ValueError(f"{root}: expected a folder {' or '.join(names)} in it, found none")


def common_classes(folders: Sequence[Path]) -> tuple[str, ...]:
    """The sorted names of the class folders, which must be the same in both splits.

    Raises:
        ValueError: a split has none, or the two differ.
    """
    found = []
    for folder in folders:
        with os.scandir(folder) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
        found.append(sorted(entry.name for entry in visible if entry.is_dir()))
        if not found[-1]:
            raise ValueError(
                f"{folder}: expected a folder a class, got {len(visible):,} files and no folder"
            )
    train, test = found
    if train != test:
        name = min(set(train) ^ set(test))
        here, there = folders if name in train else reversed(folders)
        raise ValueError(
            f"{folders[0].parent}: expected the same classes in {folders[0].name} and "
            f"{folders[1].name}, got class {name!r} in {here.name} and not in {there.name} "
            f"({len(set(train) ^ set(test))} differ)"
        )
    return tuple(train)


ListedFile = tuple[str, int]
"""A file's path below train/ or val/, and the number of its class."""


def list_files(folder: Path, classes: Sequence[str]) -> tuple[list[ListedFile], list[BadFile]]:
    """The files of all classes, sorted, and the links that cannot be followed.

    Hidden files and folders are left out; folders in class folders are searched too.
    """
    files: list[ListedFile] = []
    bad: list[BadFile] = []
    for label, name in enumerate(classes):
        # Byte order, so that the order is the same for every locale and file system.
        for found, reason in sorted(_walk(folder, name, ()), key=lambda item: os.fsencode(item[0])):
            if reason is None:
                files.append((found, label))
            else:
                bad.append(BadFile(name=f"{folder.name}/{found}", reason=reason))
    return files, bad


def _walk(folder: Path, name: str, above: tuple[Path, ...]) -> Iterator[tuple[str, str | None]]:
    """Each file below a class folder with None, or with the reason why it cannot be used."""
    here = (folder / name).resolve()
    if here in above:
        yield name, "a link to a folder that holds it"
        return
    with os.scandir(folder / name) as entries:
        for entry in entries:
            below = f"{name}/{entry.name}"
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _walk(folder, below, (*above, here))
            elif not entry.is_file():
                yield below, "no file" if not entry.is_symlink() else "a link to nothing"
            else:
                yield below, None


# The scan.

IMAGENET_MEAN, IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
"""Of the three channels, on the scale 0..255: torchvision's constants."""

PREPARED = "prepared.json"
"""The note of `bench prepare` in a tree's folder."""

_SCAN_THREADS = 8  # they mostly wait for the disk
_CHUNK = 256  # files a thread takes at a time
_NAMED_IN_ERROR = 5


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageSplit:
    """The usable files of train/ or of val/, by class and then by name."""

    folder: Path
    """train/ or val/."""
    names: tuple[str, ...]
    """Paths below the folder, "class/file"."""
    labels: NDArray[np.int64]
    """[N]: the number of each file's class."""
    sizes: NDArray[np.int32]
    """[N, 2]: height and width."""
    file_bytes: NDArray[np.int64]
    """[N]: the files' sizes."""

    def __len__(self) -> int:
        return len(self.names)

    def path(self, index: int) -> str:
        """Of image `index`."""
        return os.path.join(self.folder, self.names[index])

    def read(self, index: int) -> bytes:
        """The content of image `index`.

        Raises:
            ValueError: the file is damaged, missing, or not of the scanned size; its name and the
                reason, in one line.
        """
        try:
            header, content = read_image(self.path(index))
        except BadImageError as error:
            raise ValueError(self.error_line(index, str(error))) from None
        height, width = self.sizes[index].tolist()
        if (header.height, header.width) != (height, width):
            now = f"{header.width} x {header.height} pixels"
            raise ValueError(self.error_line(index, f"changed since the scan: {now}"))
        return content

    def error_line(self, index: int, reason: str) -> str:
        """The message for a file that was found to be bad after the scan."""
        bad = BadFile(name=f"{self.folder.name}/{self.names[index]}", reason=reason)
        return f"{self.folder.parent}: {bad} cannot be used; mend or remove it"


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageTree:
    """Both splits of a tree."""

    root: Path
    classes: tuple[str, ...]
    """The folders' names, sorted."""
    train: ImageSplit
    test: ImageSplit
    """val/, or test/ if there is no val/."""
    skipped: tuple[BadFile, ...]
    """Bad files that were left out."""
    sha256: str
    """64 hexadecimal digits over the classes and every usable file's name, class and size."""
    prepared_size: int | None
    """The images' shorter side after `python -m bench prepare`; None: originals."""

    def describe(self) -> str:
        """One short line: counts and the start of the hash."""
        parts = [
            f"{len(self.train):,} + {len(self.test):,} images of {len(self.classes):,} classes",
            "original sizes"
            if self.prepared_size is None
            else f"resized to {self.prepared_size} px",
            f"sha256 {self.sha256[:12]}…",
        ]
        if self.skipped:
            parts.append(f"{len(self.skipped):,} bad files skipped")
        return ", ".join(parts)


def scan_tree(
    root: Path,
    *,
    skip_bad_files: bool = False,
    on_bad_file: Callable[[BadFile], None] = lambda bad: None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> ImageTree:
    """List a tree's files and inspect the beginning and the end of each.

    Hidden files are ignored. Links are followed wherever they lead, so that a tree may be one of
    links to images that are elsewhere.

    Arguments:
        skip_bad_files: leave bad files out, instead of refusing the tree.
        on_bad_file: called with each bad file.
        on_progress: called every 1,000 files with the number done, and of all.

    Raises:
        ValueError: a folder is missing or empty, a class has no usable file, the classes of the
            splits differ, or there are bad files without `skip_bad_files`.
    """
    if not root.is_dir():
        raise ValueError(f"{root}: expected a folder with train/ and val/, found none")
    root = root.resolve()
    folders = [find_split(root, "train"), find_split(root, "val", "test")]
    classes = common_classes(folders)
    listed = [list_files(folder, classes) for folder in folders]
    num_files, num_links = (sum(map(len, column)) for column in zip(*listed, strict=True))
    done, good_files, bad_files = 0, [], []
    for folder, (files, bad) in zip(folders, listed, strict=True):
        good: list[tuple[ListedFile, Shape]] = []
        for file, found in zip(files, _inspect(folder, files), strict=True):
            if isinstance(found, str):
                bad.append(BadFile(name=f"{folder.name}/{file[0]}", reason=found))
            else:
                good.append((file, found))
            done += 1
            if done % 1_000 == 0 or done == num_files:
                on_progress(done, num_files)
        for bad_file in bad:
            on_bad_file(bad_file)
        good_files.append(good)
        bad_files += bad
    if bad_files and not skip_bad_files:
        raise ValueError(_refusal(root, bad_files, num_files + num_links))
    train, test = (_split(*each, classes) for each in zip(folders, good_files, strict=True))
    return ImageTree(
        root=root,
        classes=classes,
        train=train,
        test=test,
        skipped=tuple(bad_files),
        sha256=_digest(classes, (train, test)),
        prepared_size=_prepared_size(root),
    )


Shape = tuple[int, int, int]
"""A usable file's height, width and size in bytes."""


def _inspect(folder: Path, files: Sequence[ListedFile]) -> Iterator[Shape | str]:
    """The shape of each file, in order; of a bad one the reason."""

    def inspect(file: ListedFile) -> Shape | str:
        path = os.path.join(folder, file[0])
        try:
            header, size = inspect_image(path)
        except BadImageError as error:
            return str(error)
        return header.height, header.width, size

    remaining = iter(files)
    chunks = iter(lambda: list(islice(remaining, _CHUNK)), [])
    with ThreadPoolExecutor(_SCAN_THREADS) as pool:
        for found in pool.map(lambda chunk: list(map(inspect, chunk)), chunks):
            yield from found


def _split(
    folder: Path, good: Sequence[tuple[ListedFile, Shape]], classes: Sequence[str]
) -> ImageSplit:
    labels = np.array([label for (_, label), _ in good], dtype=np.int64)
    empty = np.flatnonzero(np.bincount(labels, minlength=len(classes)) == 0)
    if len(empty) > 0:
        raise ValueError(
            f"{folder}: expected at least one usable image a class, got none for class "
            f"{classes[empty[0]]!r} ({len(empty)} of {len(classes)} classes are empty)"
        )
    shapes = np.array([shape for _, shape in good], dtype=np.int64)
    return ImageSplit(
        folder=folder,
        names=tuple(name for (name, _), _ in good),
        labels=labels,
        sizes=shapes[:, :2].astype(np.int32),
        file_bytes=shapes[:, 2].copy(),
    )


def _refusal(root: Path, bad_files: Sequence[BadFile], total: int) -> str:
    """A message that counts the reasons and names the first files."""
    reasons = Counter(bad.reason.partition(":")[0] for bad in bad_files)
    counts = ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common())
    named = ", ".join(str(bad) for bad in bad_files[:_NAMED_IN_ERROR])
    more = len(bad_files) - _NAMED_IN_ERROR
    return (
        f"{root}: {len(bad_files):,} of {total:,} files cannot be used ({counts}): {named}"
        f"{f' and {more:,} more' if more > 0 else ''}; mend or remove them, or go on without them "
        "by --skip-bad-files"
    )


def _digest(classes: Sequence[str], splits: Sequence[ImageSplit]) -> str:
    """SHA-256 of the classes and the files' names, classes and sizes, not of their content."""
    content = hashlib.sha256()
    for name in classes:
        content.update(os.fsencode(name) + b"\0")
    for split in splits:
        content.update(b"%d\0" % len(split))
        for name, label, size in zip(split.names, split.labels, split.file_bytes, strict=True):
            content.update(b"%s\0%d %d\0" % (os.fsencode(name), label, size))
    return content.hexdigest()


def _prepared_size(root: Path) -> int | None:
    path = root / PREPARED
    if not path.exists():
        return None
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
        size, finished = int(note["size"]), note["finished"]
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{path}: expected what `bench prepare` writes, got {error}") from None
    if not finished:
        raise ValueError(f"{root}: `bench prepare` has not finished; repeat it to go on")
    return size
