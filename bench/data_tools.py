"""Writes data: `python -m bench prepare` and `small-tree`, and CIFAR-10's binary layout."""

import hashlib
import io
import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from bench.hardware.machine import available_cores
from bench.options import PrepareOptions, SmallTreeOptions
from swap_fast.data.cifar.dataset import Split
from swap_fast.data.cifar.files import load_dataset, locate_dataset
from swap_fast.data.imagenet.files import BadImageError, read_image
from swap_fast.data.imagenet.scan import PREPARED, BadFile, ImageSplit, ImageTree, scan_tree
from swap_fast.files import remove_parts, write_file

# Prepare: a tree's images at a smaller size.

JPEG_QUALITY = 90
_CHUNK = 16  # files a process takes at a time
_SECONDS_BETWEEN_LINES = 5.0


def prepare(options: PrepareOptions) -> int:
    """Write a tree's images at a smaller size, or those that are missing of them.

    The original ImageNet runs train from such trees, which decode faster: 160 px for the stage at
    128 px, 352 for 224. Pillow's bilinear filter brings the shorter side to the size; smaller
    images are copied. JPEGs are written at quality 90, PNGs as PNGs; the names stay.

    Raises:
        ValueError: bad files without --skip-bad-files, or a destination that holds other files.
    """
    source, destination = options.source.resolve(), options.dest.resolve()
    if source.is_relative_to(destination) or destination.is_relative_to(source):
        raise ValueError(
            f"{options.dest}: expected a folder outside of the source and not around it"
        )
    progress = _Progress("looking at", quiet=options.quiet)
    tree = scan_tree(
        source,
        skip_bad_files=options.skip_bad_files,
        on_bad_file=_name_bad_file,
        on_progress=progress,
    )
    note = _claim(destination, tree, options.size)
    jobs = [
        (split.path(index), str(destination / split.folder.name / split.names[index]))
        for split in (tree.train, tree.test)
        for index in range(len(split))
    ]
    _make_folders(destination, (tree.train, tree.test))
    missing = [job for job in jobs if not _is_done(*job)]
    if len(missing) < len(jobs):
        print(f"{len(jobs) - len(missing):,} of {len(jobs):,} files are there already")
    progress = _Progress("resizing", quiet=options.quiet)
    bad: list[BadFile] = []
    for done, (job, reason) in enumerate(_resize_all(missing, options), start=1):
        if reason is not None:
            bad.append(BadFile(name=os.path.relpath(job[0], source), reason=reason))
            _name_bad_file(bad[-1])
        progress(done, len(missing))
    if bad and not options.skip_bad_files:
        raise ValueError(
            f"{source}: {len(bad):,} of {len(missing):,} files cannot be decoded, the first is "
            f"{bad[0]}; mend or remove them and repeat, or go on without them by --skip-bad-files"
        )
    _write_note(destination, {**note, "finished": True})
    skipped = len(bad) + len(tree.skipped)
    print(
        f"{destination}: {len(jobs) - len(bad):,} images, shorter side {options.size} px"
        + (f"; {skipped:,} bad files left out" if skipped else "")
    )
    return 0


def _claim(destination: Path, tree: ImageTree, size: int) -> dict[str, object]:
    """Mark the destination as this tree's, unfinished; refuse one that holds another tree."""
    classes = hashlib.sha256(b"\0".join(os.fsencode(name) for name in tree.classes))
    wanted: dict[str, object] = {
        "size": size,
        "jpeg_quality": JPEG_QUALITY,
        "classes_sha256": classes.hexdigest(),
    }
    note = destination / PREPARED
    if note.exists():
        try:
            found = json.loads(note.read_text(encoding="utf-8"))
            found.pop("finished")
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
            found = "no note of prepare's"
        if found != wanted:
            raise ValueError(f"{note}: expected {wanted} to go on, got {found}; use another folder")
    elif destination.exists() and any(destination.iterdir()):
        raise ValueError(f"{destination}: expected an empty folder, or one that prepare began")
    destination.mkdir(parents=True, exist_ok=True)
    _write_note(destination, {**wanted, "finished": False})
    return wanted


def _write_note(destination: Path, note: dict[str, object]) -> None:
    write_file(destination / PREPARED, json.dumps(note, indent=1).encode())


def _make_folders(destination: Path, splits: Sequence[ImageSplit]) -> None:
    """Make all folders, and remove files that a killed run left unfinished.

    Raises:
        ValueError: there are files that the source does not have.
    """
    for split in splits:
        names = set(split.names)
        for below in sorted({os.path.dirname(name) for name in names}):
            folder = destination / split.folder.name / below
            folder.mkdir(parents=True, exist_ok=True)
            remove_parts(folder)
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_file() and f"{below}/{entry.name}" not in names:
                        raise ValueError(
                            f"{destination}: expected only files that the source has too, got "
                            f"{os.path.relpath(entry.path, destination)!r}; remove it"
                        )


def _is_done(source: str, destination: str) -> bool:
    """Whether the destination is newer than its source."""
    try:
        return os.stat(destination).st_mtime_ns >= os.stat(source).st_mtime_ns
    except FileNotFoundError:
        return False


Job = tuple[str, str]
"""Where an image is, and where it goes."""


def _resize_all(jobs: Sequence[Job], options: PrepareOptions) -> Iterator[tuple[Job, str | None]]:
    """Each job when it is done, with the reason where the file cannot be decoded."""
    processes = min(options.processes or available_cores(), -(-len(jobs) // _CHUNK))
    if processes == 0:
        return
    context = multiprocessing.get_context("spawn")
    # The waiting process handles an interrupt, and ends the others.
    ignore = (signal.SIGINT, signal.SIG_IGN)
    with ProcessPoolExecutor(
        processes, mp_context=context, initializer=signal.signal, initargs=ignore
    ) as pool:
        reasons = pool.map(resize_file, jobs, repeat(options.size), chunksize=_CHUNK)
        try:
            yield from zip(jobs, reasons, strict=True)
        except BaseException:  # such as an interrupt or a full disk: start no further job
            pool.shutdown(cancel_futures=True)
            raise


def resize_file(job: Job, size: int) -> str | None:
    """Write one image at the smaller size, atomically; the reason where it cannot be decoded."""
    source, destination = job
    try:
        _, content = read_image(source)
        content = resized(content, size)
    except BadImageError as error:
        return str(error)
    except (SyntaxError, ValueError, OSError) as error:  # what Pillow raises for damage
        return f"cannot be decoded: {' '.join(str(error).split())}"
    write_file(Path(destination), content, sync=False)  # a million of them
    return None


def resized(content: bytes, size: int) -> bytes:
    """An image file with the shorter side brought down to `size` pixels."""
    from PIL import Image

    with Image.open(io.BytesIO(content)) as opened:
        shorter = min(opened.size)
        if shorter <= size:
            opened.load()  # a damaged image is not copied
            return content
        kind, image = opened.format, opened.convert("RGB")
    width, height = (size * side // shorter for side in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    if kind == "PNG":
        image.save(buffer, "PNG")
    else:
        image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def _name_bad_file(bad: BadFile) -> None:
    print(f"bad file: {bad}", file=sys.stderr)


class _Progress:
    """Progress as a line that is overwritten on a terminal, or a new line every few seconds."""

    def __init__(self, what: str, *, quiet: bool) -> None:
        self._what, self._quiet = what, quiet
        self._started = self._last = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now, on_terminal = time.monotonic(), sys.stdout.isatty()
        interval = 0.2 if on_terminal else _SECONDS_BETWEEN_LINES
        if self._quiet or (now - self._last < interval and done < total):
            return
        self._last = now
        remaining = (now - self._started) / done * (total - done)
        line = f"{self._what} {done:,} of {total:,} files, {remaining:.0f} s to go"
        if on_terminal:
            print(f"\r{line:<60}", end="\n" if done == total else "", flush=True)
        else:
            print(line, flush=True)


# Small tree: CIFAR-10's images, enlarged, as a tree of JPEG files.

CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
"""CIFAR-10's, in the order of their labels."""
RATIOS = (3 / 4, 4 / 3)  # least and greatest width over height, as rectangular tests need


def make_small_tree(options: SmallTreeOptions) -> int:
    """Write the tree, whole or not at all: every part of ImageNet's path can run on it.

    Raises:
        ValueError: the destination exists, or a class has too few images.
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
    """Write the first images of each class, in the data's order; how many."""
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
    """Write an image [32, 32, 3], its shorter side enlarged to `size`, its ratio one of seven."""
    from PIL import Image

    ratio = RATIOS[0] * (RATIOS[1] / RATIOS[0]) ** (number % 7 / 6)
    width, height = round(size * max(ratio, 1)), round(size * max(1 / ratio, 1))
    enlarged = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
    enlarged.save(path, quality=JPEG_QUALITY)


def write_cifar10(folder: Path, train: NDArray[np.uint8], test: NDArray[np.uint8]) -> None:
    """Write CIFAR-10's binary layout into `folder`/cifar-10-batches-bin.

    Arguments:
        train, test: uint8 [n, 3073], a record an image: the label, then three planes of 32 x 32.
    """
    inside = folder / "cifar-10-batches-bin"
    inside.mkdir(parents=True)
    for number, part in enumerate(np.array_split(train, 5), start=1):
        part.tofile(inside / f"data_batch_{number}.bin")
    test.tofile(inside / "test_batch.bin")
