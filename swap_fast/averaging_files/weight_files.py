"""Files of weights from anywhere, read without running what is in them, and one written.

A pickle may call any function when it is loaded, so that torch's files are read with its own
unpickler of weights alone, which knows tensors, containers and numbers; safetensors have no code.
"""

import argparse
import hashlib
import json
import re
import struct
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from swap_fast.checkpoint.files import write_file
from swap_fast.choices import choose

WRAPPERS = (
    *("state_dict", "model_state_dict", "model_state", "model", "module"),
    *("net", "network", "weights", "params"),
)
"""Names under which training checkpoints keep a model's state."""

_LONGEST_HEADER = 100_000_000  # bytes: the format's own limit
_MOST_REPEATED = 2**28  # values that a file may show without holding them


@dataclass(frozen=True, kw_only=True)
class WeightFile:
    """The tensors of one file, by the model's plain names; mapped, not read, where possible."""

    path: Path
    """The file."""
    sha256: str
    """Of its bytes."""
    tensors: dict[str, Tensor]
    """What it holds; never written to."""
    left_out: tuple[str, ...]
    """Names of what is no tensor."""

    @property
    def averaged(self) -> list[str]:
        """Names of the tensors that an average is taken of: those of floating point."""
        return [name for name, t in self.tensors.items() if t.is_floating_point()]


def read_weights(path: Path, key: str | None = None) -> WeightFile:
    """Open a safetensors file or one of torch's, a state dict or a checkpoint that has one.

    Files of torch before 1.6 are read into memory whole, all others as they are needed.

    Arguments:
        key: of a checkpoint that holds several things, the name of the state dict.

    Raises:
        ValueError: no such file, a damaged one, one that would run code, one without weights, or
            with tensors that cannot be averaged.
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
    found = _safetensors(path, head) if _is_safetensors(head) else _torch_file(path, head)
    tensors, left_out = _state_dict(found, str(path), key)
    for name, tensor in tensors.items():
        _require_plain(tensor, f"{path}, {name}")
    if not any(tensor.is_floating_point() for tensor in tensors.values()):
        raise ValueError(f"{path}: expected weights of floating point, got none")
    return WeightFile(path=path, sha256=digest, tensors=plain(tensors, path), left_out=left_out)


def write_weights(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> str:
    """Write a safetensors file whole or not at all, the same bytes for the same content.

    Arguments:
        about: the file's metadata.

    Returns:
        The sha256 of its bytes.

    Raises:
        OSError: as `write_file`.
    """
    content = save(dict(tensors))
    # The library writes metadata in an order that changes from call to call.
    (length,) = struct.unpack_from("<Q", content)
    header = {"__metadata__": {"format": "pt", **about}, **json.loads(content[8 : 8 + length])}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    content = b"".join([struct.pack("<Q", len(text)), text, memoryview(content)[8 + length :]])
    write_file(path, content)
    return hashlib.sha256(content).hexdigest()


def plain(tensors: Mapping[str, Tensor], path: Path | str) -> dict[str, Tensor]:
    """The same tensors by names without what torch.compile, DDP and averaged models put before.

    Raises:
        ValueError: two names that are then one.
    """
    names = plain_names(tensors)
    counted: dict[str, list[str]] = {}
    for name, short in names.items():
        counted.setdefault(short, []).append(name)
    for short, several in counted.items():
        if len(several) > 1:
            raise ValueError(f"{path}: expected one tensor {short}, got {' and '.join(several)}")
    return {short: tensors[name] for name, short in names.items()}


def plain_names(names: Iterable[str]) -> dict[str, str]:
    """Names -> without `_orig_mod.` anywhere, and without a `module.` that all begin with."""
    found = {name: re.sub(r"(^|\.)(_orig_mod\.)+", r"\1", name) for name in names}
    # torch's AveragedModel counts its models beside the module.
    own = [name for name in found if name != "n_averaged"]
    while own and all(found[name].startswith("module.") for name in own):
        found = {name: found[name].removeprefix("module.") for name in own}
    return found


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
        raise ValueError(f"{path}: expected a safetensors file, got {_line(error)}") from None


def _torch_file(path: Path, head: bytes) -> object:
    try:
        with warnings.catch_warnings():
            # Of a pickle's protocol and the like: what follows is an error or a whole state dict.
            warnings.simplefilter("ignore")
            # What many training scripts keep of their command line: names and values, no code.
            with torch.serialization.safe_globals([argparse.Namespace]):
                return torch.load(path, "cpu", weights_only=True, mmap=head.startswith(b"PK"))
    except UnpicklingError as error:
        # torch's own words are many lines, which advise to run it.
        wanted = re.search(r"(?:GLOBAL|class(?:es)?) ['\"<]*([\w.]+)", str(error))
        if wanted is None:
            _, _, why = str(error).partition("WeightsUnpickler error:")
            why = _line(why.strip().partition("\n")[0] or "a damaged pickle")
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
            f"{path}: expected a file of torch or safetensors, got {_line(error)}"
        ) from None


def _line(error: object) -> str:
    """The first words of a message that may have many lines."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else f"{text[:157]}..."


def _state_dict(
    found: object, path: str, key: str | None
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """A state dict, or that within a training checkpoint; and the names of what is no tensor."""
    if not isinstance(found, Mapping):
        raise ValueError(f"{path}: expected a state dict, got {_kind(found)}")
    state: Mapping[Any, Any]
    within = {
        str(name): each
        for name, each in found.items()
        if isinstance(each, Mapping) and any(isinstance(t, Tensor) for t in each.values())
    }
    if key is not None:
        state = within[choose(f"key of {path}", key, within)]
    else:
        wrapped = [name for name in WRAPPERS if name in within]
        if len(wrapped) > 1:
            raise ValueError(
                f"{path}: expected one state dict, got {', '.join(wrapped)}; choose by --key NAME"
            )
        state = within[wrapped[0]] if wrapped else found
    tensors = {str(name): t for name, t in state.items() if isinstance(t, Tensor)}
    if not tensors:
        keys = [str(name) for name in state]
        raise ValueError(
            f"{path}: expected tensors by name, or a checkpoint with {', '.join(WRAPPERS[:4])}, "
            f"got {_some(keys)}" + ("; choose by --key NAME" if within else "")
        )
    return tensors, tuple(str(name) for name in state if str(name) not in tensors)


def _some(names: list[str]) -> str:
    """The first names of many."""
    if not names:
        return "nothing"
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _kind(value: Any) -> str:
    return "one tensor without a name" if isinstance(value, Tensor) else type(value).__name__


def _require_plain(tensor: Tensor, where: str) -> None:
    """Refuse tensors that have no values, or none that can be averaged."""
    got = None
    if tensor.layout != torch.strided:
        got = f"one of layout {str(tensor.layout).removeprefix('torch.')}"
    elif tensor.is_quantized or tensor.is_complex():
        got = f"one of type {str(tensor.dtype).removeprefix('torch.')}"
    elif tensor.device.type != "cpu":
        got = "one without values, on the device meta"
    elif tensor.numel() > tensor.untyped_storage().nbytes() + _MOST_REPEATED:
        # A stride of 0 shows one value many times: a small file would fill all memory.
        got = f"{tensor.numel():,} values of {tensor.untyped_storage().nbytes():,} bytes"
    if got is not None:
        raise ValueError(f"{where}: expected a plain tensor, got {got}")
