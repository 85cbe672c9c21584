"""Read CIFAR-10 and CIFAR-100 in the layouts that their authors publish.

Each set comes as a folder or as an archive of it, and as binary records or as Python pickles.
Archives are read member by member in memory: nothing is written to disk, so that no member's path
can lead anywhere. A pickle is checked by its MD5 before it is loaded.
"""

import _codecs
import gzip
import hashlib
import io
import os
import pickle
import socket
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple

import numpy as np

from swap_fast.config.checks import one_line
from swap_fast.data.cifar.dataset import (
    IMAGE_BYTES,
    KNOWN,
    RECORD_BYTES,
    ByteArray,
    Dataset,
    DatasetName,
    build_dataset,
)
from swap_fast.data.cifar.synthetic import generate_synthetic

# The pickled layout. A pickle may name any function and have it called on loading: this unpickler
# knows only the names with which numpy rebuilds an array, and the one with which Python 3 writes
# bytes in the old protocols.


# The same function in every numpy, while the module that it lives in was renamed.
_RECONSTRUCT = np.empty(0).__reduce__()[0]

_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _codecs.encode,
}


class _RestrictedUnpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """The object of that name, if it is one that an array needs."""
        allowed = _ALLOWED.get((module_name, global_name))
        if allowed is None:
            raise pickle.UnpicklingError(f"it asks for {module_name}.{global_name}")
        return allowed


def load_arrays(content: bytes, where: str) -> dict[str, Any]:
    """The dictionary in a pickle of numpy arrays, lists, numbers and strings.

    Arguments:
        content: the pickle, of Python 2 or 3; of either the keys become str.
        where: the file's name, for the error.

    Raises:
        ValueError: the pickle names anything else, is damaged or is not a dictionary.
    """
    try:
        loaded = _RestrictedUnpickler(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # a damaged pickle may raise anything, as pickle's manual says
        raise ValueError(
            f"{where}: expected a pickle of numpy arrays and lists only, "
            f"got one that cannot be loaded: {one_line(error)}"
        ) from error
    if not isinstance(loaded, dict):
        raise ValueError(f"{where}: expected a pickled dictionary, got {type(loaded).__name__}")
    return {
        key.decode("latin1") if isinstance(key, bytes) else str(key): value
        for key, value in loaded.items()
    }


CifarName = Literal["cifar10", "cifar100"]

PUBLISHED_MD5: dict[CifarName, dict[str, str]] = {
    "cifar10": {
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40351d587109b95175f43aff81a1287e",
    },
    "cifar100": {
        "train": "16019d7e3df5f24257cddd939b257f8d",
        "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    },
}
"""MD5 of each Python file, as its publishers give it."""

_NUM_COARSE_CLASSES = 20


class _Layout(NamedTuple):
    """One form in which a set is published: as Python pickles, or as binary files."""

    folder: str
    archive: str
    files: tuple[str, ...]
    """The training files, and the test file."""

    @property
    def pickled(self) -> bool:
        return not self.files[0].endswith(".bin")

    def is_at(self, path: Path) -> bool:
        """Whether `path` is this layout's archive, or a folder with at least one of its files."""
        if path.is_dir():
            return path.name == self.folder or any((path / file).is_file() for file in self.files)
        return path.name == self.archive and path.is_file()


# The pickled layouts come first: their MD5s show whether they are the published set.
_LAYOUTS: dict[CifarName, tuple[_Layout, _Layout]] = {
    "cifar10": (
        _Layout("cifar-10-batches-py", "cifar-10-python.tar.gz", tuple(PUBLISHED_MD5["cifar10"])),
        _Layout(
            "cifar-10-batches-bin",
            "cifar-10-binary.tar.gz",
            tuple(f"{file}.bin" for file in PUBLISHED_MD5["cifar10"]),
        ),
    ),
    "cifar100": (
        _Layout("cifar-100-python", "cifar-100-python.tar.gz", ("train", "test")),
        _Layout("cifar-100-binary", "cifar-100-binary.tar.gz", ("train.bin", "test.bin")),
    ),
}


def find_cifar(name: CifarName, root: Path) -> Path | None:
    """The layout folder or archive of a set at `root` or directly in it, or None.

    Only names are looked at, so that this is cheap; `read_cifar` accepts what it returns.
    """
    found = _find_layout(name, root)
    return None if found is None else found[0]


def _find_layout(name: CifarName, root: Path) -> tuple[Path, _Layout] | None:
    for layout in _LAYOUTS[name]:
        for path in (root, root / layout.folder, root / layout.archive):
            if layout.is_at(path):
                return path, layout
    return None


def expected_names(name: CifarName) -> str:
    """The folders and archives that `find_cifar` looks for, in words, for messages."""
    names = [each for layout in _LAYOUTS[name] for each in (layout.folder, layout.archive)]
    return f"{', '.join(names[:-1])} or {names[-1]}"


def read_cifar(
    name: CifarName, root: Path, *, python_md5: Mapping[str, str] | None = None
) -> Dataset:
    """Read a set from a folder, from an archive, or from a directory that holds one of them.

    Arguments:
        python_md5: expected MD5 of each Python file by its name; the published ones by default.

    Returns:
        The set in canonical order, with the fine labels for CIFAR-100.

    Raises:
        ValueError: nothing is found, a file is missing, empty, damaged, not a whole number of
            records or not the file of that MD5, or a label is out of range; with the file's name.
    """
    found = _find_layout(name, root)
    if found is None:
        got = "a path that does not exist" if not root.exists() else "none of them"
        raise ValueError(
            f"{root}: expected {KNOWN[name].title} as {expected_names(name)}, got {got}; "
            f"name the folder that holds one"
        )
    path, layout = found
    expected_md5 = PUBLISHED_MD5[name] if python_md5 is None else python_md5

    records: dict[str, ByteArray] = {}
    published: set[str] = set()
    for file, where, content in _contents(layout, path):
        if file in records:
            raise ValueError(f"{where}: expected one member of that name, got a second one")
        if not content:
            raise ValueError(f"{where}: expected records, got an empty file")
        if layout.pickled:
            # An MD5 is enough against damage; the restricted unpickler stands against intent.
            md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
            if md5 != expected_md5.get(file):
                raise ValueError(
                    f"{where}: expected the file with MD5 {expected_md5.get(file)}, got {md5}; "
                    f"it is damaged or another file: fetch it again"
                )
            if md5 == PUBLISHED_MD5[name][file]:
                published.add(file)
            records[file] = _pickled_records(name, content, where)
        else:
            records[file] = _binary_records(name, content, where)

    *train_files, test_file = layout.files
    train = [records[file] for file in train_files if file in records]
    if not train:
        raise ValueError(f"{path}: expected {' or '.join(train_files)}, got no such file")
    if test_file not in records:
        raise ValueError(f"{path}: expected {test_file}, got no such file")
    verified = published == set(layout.files)
    return build_dataset(name, train, [records[test_file]], source=str(path), verified=verified)


def _contents(layout: _Layout, path: Path) -> Iterator[tuple[str, str, bytes]]:
    """Name, place in words and content of each wanted file that is there, one at a time."""
    if not path.is_dir():
        yield from _archive_contents(layout, path)
        return
    for file in layout.files:
        try:
            content = (path / file).read_bytes()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise ValueError(
                f"{path / file}: expected a readable file, got: {error.strerror}"
            ) from error
        yield file, str(path / file), content


_MOST_BYTES = 2**28
"""Of a file in an archive; the largest published one, CIFAR-100's of training, has 155 million."""


def _archive_contents(layout: _Layout, path: Path) -> Iterator[tuple[str, str, bytes]]:
    try:
        with (
            gzip.open(path) as unzipped,
            tarfile.open(fileobj=unzipped, mode="r|", bufsize=1 << 20) as archive,
        ):
            for member in archive:
                file = PurePosixPath(member.name).name
                if file not in layout.files:
                    continue
                where = f"{path}, member {member.name}"
                stream = archive.extractfile(member) if member.isreg() else None
                if stream is None:
                    raise ValueError(f"{where}: expected a regular file, got a link or a device")
                if member.size > _MOST_BYTES:
                    raise ValueError(
                        f"{where}: expected {_MOST_BYTES:,} bytes or less, got {member.size:,}"
                    )
                yield file, where, stream.read()
            while unzipped.read(1 << 20):  # to the end, where gzip checks its CRC
                pass
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise ValueError(
            f"{path}: expected a whole .tar.gz archive, got one that cannot be read: {error}; "
            f"fetch it again"
        ) from error


def _binary_records(name: CifarName, content: bytes, where: str) -> ByteArray:
    """uint8 [n, 3073] of a binary file; CIFAR-100's coarse label is checked and left out."""
    size = RECORD_BYTES + (name == "cifar100")
    count, over = divmod(len(content), size)
    if over:
        raise ValueError(
            f"{where}: expected a whole number of {size:,}-byte records, "
            f"got {len(content):,} bytes ({count:,} records and {over:,} bytes over)"
        )
    records = np.frombuffer(content, dtype=np.uint8).reshape(count, size)
    if name == "cifar100":
        _check_labels(records[:, 0], _NUM_COARSE_CLASSES, "coarse label", where)
        records = records[:, 1:]
    _check_labels(records[:, 0], KNOWN[name].num_classes, "label", where)
    return records


def _pickled_records(name: CifarName, content: bytes, where: str) -> ByteArray:
    """uint8 [n, 3073] of a Python file, with the fine label for CIFAR-100."""
    loaded = load_arrays(content, where)
    key = "fine_labels" if name == "cifar100" else "labels"
    data, labels = loaded.get("data"), loaded.get(key)
    if not isinstance(data, np.ndarray) or not isinstance(labels, list):
        raise ValueError(
            f"{where}: expected an array `data` and a list `{key}`, got keys {sorted(loaded)}"
        )
    if data.dtype != np.uint8 or data.shape != (len(labels), IMAGE_BYTES):
        raise ValueError(
            f"{where}: expected `data` as uint8 {(len(labels), IMAGE_BYTES)} for its labels, "
            f"got {data.dtype} {data.shape}"
        )
    _check_labels(np.asarray(labels), KNOWN[name].num_classes, "label", where)
    records = np.empty((len(labels), RECORD_BYTES), dtype=np.uint8)
    records[:, 0] = labels
    records[:, 1:] = data
    return records


def _check_labels(labels: np.ndarray, num_classes: int, what: str, where: str) -> None:
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if wrong.size:
        raise ValueError(
            f"{where}: expected each {what} in 0..{num_classes - 1}, "
            f"got {labels[wrong[0]]} in record {wrong[0]:,}"
        )


# Where a data set is looked for. The launching process calls `locate_dataset` once, so that one
# process alone downloads; each rank then calls `load_dataset` with what was found. Ranks that
# torchrun started each look for themselves.


DOWNLOAD_TIMEOUT_S = 10.0


def find_at_hand(name: DatasetName, data: Path | None = None) -> Path | None:
    """What `locate_dataset` gives without a download; None where it would download or raise."""
    if name == "synthetic":
        return None
    folder = _named_folder(data)[1] or _cache_folder()
    return None if folder is None else find_cifar(name, folder)


def locate_dataset(
    name: DatasetName,
    data: Path | None = None,
    *,
    announce: Callable[[str], object] = print,
) -> Path | None:
    """The folder or archive that holds a data set; None for the built-in synthetic one.

    In this order: `data`, the environment's SWAP_DATA, the cache, the official download into the
    cache, the synthetic set. A user without a home folder has no cache. What the user names must
    hold the set: there is no falling through.

    Raises:
        ValueError: `data` or SWAP_DATA is given and does not hold the set.
    """
    if name == "synthetic":
        return None
    (option, folder), found = _named_folder(data), find_at_hand(name, data)
    if found is None and folder is not None:
        raise ValueError(
            f"{option}: expected {expected_names(name)} in {folder}, found none of them"
        )
    if found is None and (cache := _cache_folder()) is not None:
        found = _download(name, cache, announce)
    if found is None:
        announce(
            f"{KNOWN[name].title} was not found: the built-in synthetic images stand in for "
            "it, and their figures are never compared with published ones; to use it, give "
            "--data DIR"
        )
    return found


def locate_tree(data: Path | None = None) -> Path:
    """The folder that holds train/ and val/, a folder a class: `data`, or SWAP_DATA.

    Raises:
        ValueError: neither is given, or it has no train/.
    """
    option, root = _named_folder(data)
    expected = "a folder with train/ and val/, in each a folder of images a class"
    remedy = "`python -m bench small-tree DEST` makes a small one"
    if root is None:
        raise ValueError(f"--data: expected {expected}, got none; {remedy}")
    if not (root / "train").is_dir():
        raise ValueError(f"{option}: expected {expected}, found no train/ in {root}; {remedy}")
    return root


def _named_folder(data: Path | None) -> tuple[str, Path | None]:
    """What names the folder of the data, and the folder; None: the user names none."""
    if data is not None:
        return "--data", data
    named = os.environ.get("SWAP_DATA")
    return "SWAP_DATA", Path(named) if named else None


def load_dataset(name: DatasetName, path: Path | None) -> Dataset:
    """Load what `locate_dataset` found.

    Raises:
        ValueError: a file is missing, damaged, or not a whole number of records.
    """
    if name == "synthetic" or path is None:
        return generate_synthetic()
    return read_cifar(name, path)


def _cache_folder() -> Path | None:
    """None: the user has no home folder, as in a container with a user id of its own."""
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "swap_fast"
    try:
        return Path.home() / ".cache" / "swap_fast"
    except RuntimeError:
        return None


def _download(name: CifarName, cache: Path, announce: Callable[[str], object]) -> Path | None:
    """The official archive, fetched and checked by torchvision; None where that fails."""
    announce(f"{KNOWN[name].title}: downloading into {cache}")
    try:
        from torchvision.datasets import CIFAR10, CIFAR100

        cache.mkdir(parents=True, exist_ok=True)
        # Unpacked aside, then renamed: what is cut short never looks like a whole set.
        with TemporaryDirectory(dir=cache) as aside, ExitStack() as stack:
            # A network that does not answer would be waited for without an end.
            stack.callback(socket.setdefaulttimeout, socket.getdefaulttimeout())
            socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_S)
            (CIFAR10 if name == "cifar10" else CIFAR100)(aside, download=True)
            unpacked = find_cifar(name, Path(aside))
            if unpacked is not None and find_cifar(name, cache) is None:
                unpacked.rename(cache / unpacked.name)
    except (OSError, RuntimeError, HTTPException, KeyError) as error:
        # KeyError: torch asks for the name of a user who has none; the environment's USER says one.
        # Of ranks that torchrun started, another may have put the same set there meanwhile.
        if find_cifar(name, cache) is None:
            announce(f"{KNOWN[name].title}: the download failed: {error}")
    return find_cifar(name, cache)
