"""Where a data set is looked for, from what the user says to what is always there.

The launching process calls `locate_dataset` once, so that one process alone downloads; each rank
then calls `load_dataset` with what was found. Ranks that torchrun started each look for themselves.
"""

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory

from swap_fast.data.cifar.dataset import Dataset, DatasetName, title_of
from swap_fast.data.cifar.files import CifarName, expected_names, find_cifar, read_cifar
from swap_fast.data.cifar.synthetic import generate_synthetic

DOWNLOAD_TIMEOUT_S = 10.0


def find_at_hand(name: DatasetName, data: Path | None = None) -> Path | None:
    """What `locate_dataset` gives without a download; None where it would download or raise."""
    if name == "synthetic":
        return None
    named = data or os.environ.get("SWAP_DATA")
    return find_cifar(name, Path(named) if named else _cache_folder())


def locate_dataset(
    name: DatasetName,
    data: Path | None = None,
    *,
    announce: Callable[[str], object] = print,
) -> Path | None:
    """The folder or archive that holds a data set; None for the built-in synthetic one.

    In this order: `data`, the environment's SWAP_DATA, the cache, the official download into the
    cache, the synthetic set. What the user names must hold the set: there is no falling through.

    Raises:
        ValueError: `data` or SWAP_DATA is given and does not hold the set.
    """
    if name == "synthetic":
        return None
    named = ("--data", str(data)) if data else ("SWAP_DATA", os.environ.get("SWAP_DATA"))
    found = find_at_hand(name, data)
    if named[1]:
        if found is None:
            raise ValueError(
                f"{named[0]}: expected {expected_names(name)} in {named[1]}, found none of them"
            )
        return found
    if found is None:
        found = _download(name, _cache_folder(), announce)
    if found is None:
        announce(
            f"{title_of(name)} was not found: the built-in synthetic images stand in for it, and "
            "their figures never stand beside published ones; to use it, give --data DIR"
        )
    return found


def locate_tree(data: Path | None = None) -> Path:
    """The folder that holds train/ and val/, a folder a class: `data`, or SWAP_DATA.

    Raises:
        ValueError: neither is given, or it has no train/.
    """
    named = ("--data", data) if data else ("SWAP_DATA", os.environ.get("SWAP_DATA"))
    expected = "a folder with train/ and val/, in each a folder of images a class"
    remedy = "`python -m bench small-tree DEST` makes a small one"
    if not named[1]:
        raise ValueError(f"--data: expected {expected}, got none; {remedy}")
    root = Path(named[1])
    if not (root / "train").is_dir():
        raise ValueError(f"{named[0]}: expected {expected}, found no train/ in {root}; {remedy}")
    return root


def load_dataset(name: DatasetName, path: Path | None) -> Dataset:
    """Load what `locate_dataset` found.

    Raises:
        ValueError: a file is missing, damaged, or not a whole number of records.
    """
    if name == "synthetic" or path is None:
        return generate_synthetic()
    return read_cifar(name, path)


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "swap_fast"


def _download(name: CifarName, cache: Path, announce: Callable[[str], object]) -> Path | None:
    """The official archive, fetched and checked by torchvision; None where that fails."""
    from torchvision.datasets import CIFAR10, CIFAR100

    announce(f"{title_of(name)}: downloading into {cache}")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        # Unpacked aside, then renamed: what is cut short never looks like a whole set.
        with TemporaryDirectory(dir=cache) as aside:
            with _socket_timeout(DOWNLOAD_TIMEOUT_S):
                (CIFAR10 if name == "cifar10" else CIFAR100)(aside, download=True)
            unpacked = find_cifar(name, Path(aside))
            if unpacked is not None and find_cifar(name, cache) is None:
                unpacked.rename(cache / unpacked.name)
    except (OSError, RuntimeError, HTTPException) as error:
        # Of ranks that torchrun started, another may have put the same set there meanwhile.
        if find_cifar(name, cache) is None:
            announce(f"{title_of(name)}: the download failed: {error}")
    return find_cifar(name, cache)


@contextlib.contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """Give up on a network that does not answer, instead of waiting for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
