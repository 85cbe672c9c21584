"""What one file holds: of safetensors, of torch, or the shards of a model that an index names.

A pickle may call any function when it is loaded, so that torch's files are read with its own
unpickler of weights alone, which knows tensors, containers and numbers; safetensors have no code.
"""

import argparse
import hashlib
import json
import re
import struct
import warnings
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from pickle import UnpicklingError
from types import SimpleNamespace
from typing import Any
from zipfile import ZIP_STORED, ZipFile

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from swap_fast.config.checks import one_line

INDEX = ".index.json"
"""Ends the name of a JSON object whose `weight_map` gives the file of each tensor, a shard."""

_LONGEST_HEADER = 100_000_000  # bytes: the format's own limit


def read_content(path: Path) -> tuple[str, object]:
    """The sha256 of a file's bytes, and what it holds; of an index, of all its shards.

    Raises:
        ValueError: no such file, a damaged one, or one that would run code.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(9)
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ValueError(f"{path}: expected a file of weights, got {error.strerror}") from None
    if not head:
        raise ValueError(f"{path}: expected a file of weights, got an empty file")
    if path.name.endswith(INDEX):
        return _shards(path, digest)
    return digest, _safetensors(path, head) if _is_safetensors(head) else _torch_file(path, head)


def _shards(path: Path, digest: str) -> tuple[str, dict[str, Tensor]]:
    """The same of the files that an index names, whose own sha256 is `digest`."""
    try:
        places = json.loads(path.read_bytes())["weight_map"]
        names = sorted(set(places.values()))
        is_beside = all(Path(n).name == n and not n.endswith(INDEX) for n in names)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        is_beside = False
    if not is_beside:
        raise ValueError(
            f"{path}: expected an index of shards, with a weight_map from tensors to files beside "
            "it, got another"
        )
    shards = {name: read_content(path.parent / name) for name in names}
    tensors: dict[str, Tensor] = {}
    for name, place in places.items():
        shard = shards[place][1]
        if not isinstance(shard, Mapping) or not isinstance(shard.get(name), Tensor):
            raise ValueError(f"{path.parent / place}: expected {name} in it, as the index says")
        tensors[name] = shard[name]
    whole = " ".join([digest, *(each for each, _ in shards.values())])
    return hashlib.sha256(whole.encode()).hexdigest(), tensors


def _is_safetensors(head: bytes) -> bool:
    """Whether a file begins with the length of a header, and the header with a brace."""
    return len(head) == 9 and head[8:] == b"{" and struct.unpack("<Q", head[:8])[0] < 2**48


def _safetensors(path: Path, head: bytes) -> dict[str, Tensor]:
    (length,) = struct.unpack("<Q", head[:8])
    if length > min(_LONGEST_HEADER, path.stat().st_size):
        raise ValueError(
            f"{path}: expected a safetensors file, got one cut short: its header alone would have "
            f"{length:,} bytes"
        )
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 no dict
    except Exception as error:  # damage may raise anything that the library does not foresee
        raise ValueError(
            f"{path}: expected a safetensors file, got {one_line(error, 160)}"
        ) from None


_TEXTS = {
    b"version h": "a Git LFS pointer, which stands for the file: fetch that by `git lfs pull`",
    b"<": "a page of HTML or XML: the download gave no file",
    b"{": f"JSON: of a model in shards name its index, which ends in {INDEX}",
}
"""What text is often taken for a file of weights, by its first bytes."""


def _empty_dict(factory: object = None) -> dict[Any, Any]:
    """Stands for a defaultdict, which torch's unpickler does not fill."""
    return {}


def _plain_globals() -> list[Any]:
    """What scripts keep beside weights: numpy's numbers and arrays, paths, namespaces; no code.

    With the names by which pickles know them, where these changed.
    """
    scalar, rebuild = np.float64(0).__reduce__()[0], np.empty(0).__reduce__()[0]
    codes = "?bhilqBHILQefdgFDGSU"  # of numbers and text, not of objects
    numpys = (("scalar", scalar), ("_reconstruct", rebuild))
    paths = (("PosixPath", PurePosixPath), ("WindowsPath", PureWindowsPath))
    return [
        *(list, dict, int, float, str, bytes, PurePosixPath, PureWindowsPath),
        *(argparse.Namespace, SimpleNamespace, np.ndarray, np.dtype),
        *{type(np.dtype(code)) for code in codes},
        *((f, f"numpy.{core}.multiarray.{n}") for core in ("core", "_core") for n, f in numpys),
        *((kind, f"pathlib.{at}{n}") for at in ("", "_local.") for n, kind in paths),
        (_empty_dict, f"{defaultdict.__module__}.{defaultdict.__name__}"),
    ]


def _torch_file(path: Path, head: bytes) -> object:
    for begin, kind in _TEXTS.items():
        if head.lstrip().startswith(begin):
            raise ValueError(f"{path}: expected a file of torch or safetensors, got {kind}")
    try:
        with warnings.catch_warnings():
            # Of a pickle's protocol and the like: what follows is an error or a whole state dict.
            warnings.simplefilter("ignore")
            with torch.serialization.safe_globals(_plain_globals()):
                mapped = head.startswith(b"PK") and _is_stored(path)
                return torch.load(path, "cpu", weights_only=True, mmap=mapped)
    except UnpicklingError as error:
        # torch's own words are many lines, which advise to run it.
        wanted = re.search(r"(?:GLOBAL|class(?:es)?) ['\"<]*([\w.]+)", str(error))
        if wanted is None:
            _, _, why = str(error).partition("WeightsUnpickler error:")
            why = one_line(why.strip().partition("\n")[0] or "a damaged pickle", 160)
            if why.startswith("Unsupported operand"):
                why = "text" if head.isascii() else "bytes that torch.save did not write"
            raise ValueError(
                f"{path}: expected a file of torch or safetensors, got another: {why}"
            ) from None
        raise ValueError(
            f"{path}: expected weights alone, got a pickle that asks for {wanted[1]}; nothing of "
            "it was run: where it was made, save the model's state_dict() by torch.save or as "
            "safetensors"
        ) from None
    except Exception as error:  # as above
        raise ValueError(
            f"{path}: expected a file of torch or safetensors, got {one_line(error, 160)}"
        ) from None


def _is_stored(path: Path) -> bool:
    """Whether no entry of a zip is compressed: torch maps those as if they were not."""
    with ZipFile(path) as archive:
        return all(entry.compress_type == ZIP_STORED for entry in archive.infolist())
