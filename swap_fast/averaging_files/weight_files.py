"""Files of weights from anywhere, read without running what is in them, and one written.

A model in memory goes the same way (`weights_of`): its checks, its mean and its distances are those
of files.
"""

import hashlib
import io
import json
import math
import re
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from swap_fast.averaging_files.content import read_content
from swap_fast.checkpoint.files import COUNT, on_host
from swap_fast.choices import choose

WRAPPERS = (
    *("state_dict", "model_state_dict", "model_state", "model", "module"),
    *("net", "network", "weights", "params"),
)
"""Names under which training checkpoints keep a model's state."""

TORCH_SUFFIXES = (".pt", ".pth")
"""Of files that are written as torch's."""

_MOST_REPEATED = 2**28  # values that a file may show without holding them


@dataclass(frozen=True, kw_only=True)
class WeightFile:
    """The tensors of one file, by the model's plain names; mapped, not read, where possible."""

    path: Path
    """The file; of a model in memory, its name in messages."""
    sha256: str
    """Of its bytes; of a model in memory, of those that `serialize` gives."""
    tensors: dict[str, Tensor]
    """What it holds; never written to."""
    left_out: tuple[str, ...]
    """Names of what is no tensor."""

    @property
    def averaged(self) -> list[str]:
        """Names of the tensors that an average is taken of: of floating point, or complex."""
        return [name for name, t in self.tensors.items() if _is_averaged(t)]


def read_weights(path: Path, key: str | None = None) -> WeightFile:
    """Open a safetensors file or one of torch's, a state dict or a checkpoint that has one.

    The index of a model in shards stands for all of them. Files of torch before 1.6 are read into
    memory whole, all others as they are needed.

    Arguments:
        key: of a checkpoint that holds several things, the name of the state dict.

    Raises:
        ValueError: no such file, a damaged one, one that would run code, one without weights, or
            with tensors that cannot be averaged.
    """
    digest, found = read_content(path)
    tensors, left_out = _state_dict(found, str(path), key)
    return WeightFile(path=path, sha256=digest, tensors=_checked(tensors, path), left_out=left_out)


def weights_of(name: str, model: nn.Module | Mapping[str, Any]) -> WeightFile:
    """A model in memory as if it were a file: copies on the host.

    Arguments:
        name: for messages.
        model: a net, or its state dict. Tensors that are sharded over processes are put together,
            so that all of these have to call.

    Raises:
        ValueError: no weights, or tensors that cannot be averaged.
    """
    found = model.state_dict() if isinstance(model, nn.Module) else model
    tensors, left_out = _state_dict(found, name, None)
    try:
        whole = {n: t.full_tensor() if hasattr(t, "full_tensor") else t for n, t in tensors.items()}
    except RuntimeError as error:
        raise ValueError(
            f"{name}: expected tensors whose process group is open, got shards (FSDP2) of a closed "
            "one; return the full state dict, as get_model_state_dict(model, options="
            "StateDictOptions(full_state_dict=True)) gives it, before the group is closed"
        ) from error
    copies = _checked(on_host(whole), name)
    digest = hashlib.sha256(serialize(copies, {})).hexdigest()
    return WeightFile(path=Path(name), sha256=digest, tensors=copies, left_out=left_out)


def _checked(tensors: dict[str, Tensor], where: Path | str) -> dict[str, Tensor]:
    """Tensors that can be averaged, by their plain names."""
    for name, tensor in tensors.items():
        _require_plain(tensor, f"{where}, {name}")
    if not any(map(_is_averaged, tensors.values())):
        raise ValueError(f"{where}: expected weights of floating point, got none")
    return plain(tensors, where)


def serialize(
    tensors: Mapping[str, Tensor], about: Mapping[str, str], *, as_torch: bool = False
) -> bytes:
    """A safetensors file, the same bytes for the same content.

    Arguments:
        about: the file's metadata.
        as_torch: a file of torch's instead, which has the tensors alone.
    """
    if as_torch:
        buffer = io.BytesIO()
        torch.save(dict(tensors), buffer)
        return buffer.getvalue()
    content = save(dict(tensors))
    # The library writes metadata in an order that changes from call to call.
    (length,) = struct.unpack_from("<Q", content)
    header = {"__metadata__": {"format": "pt", **about}, **json.loads(content[8 : 8 + length])}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([struct.pack("<Q", len(text)), text, memoryview(content)[8 + length :]])


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
                f"{path}: expected one state dict, got {', '.join(wrapped)}; choose by key (--key "
                "NAME)"
            )
        state = within[wrapped[0]] if wrapped else found
    tensors = {str(name): t for name, t in state.items() if isinstance(t, Tensor)}
    if not tensors:
        keys = [str(name) for name in state]
        raise ValueError(
            f"{path}: expected tensors by name, or a checkpoint with {', '.join(WRAPPERS[:4])}, "
            f"got {_some(keys)}" + ("; choose by key (--key NAME)" if within else "")
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
    elif tensor.is_quantized or tensor.dtype == torch.complex128:  # safetensors has none
        got = f"one of type {str(tensor.dtype).removeprefix('torch.')}"
    elif tensor.device.type != "cpu":
        got = "one without values, on the device meta"
    elif tensor.numel() > tensor.untyped_storage().nbytes() + _MOST_REPEATED:
        # A stride of 0 shows one value many times: a small file would fill all memory.
        got = f"{tensor.numel():,} values of {tensor.untyped_storage().nbytes():,} bytes"
    if got is not None:
        raise ValueError(f"{where}: expected a plain tensor, got {got}")


# The mean of files of weights, and where they lie to each other: tensor by tensor, from disk.
#
# No file is ever held whole: a part of one tensor is read of all of them, in float64, and the mean
# is rounded once to the files' own type. So memory holds the average and little else, however many
# files there are.


_VALUES = 1 << 22  # read at once, of all files together: 32 MiB in float64

STATISTICS = ("running_mean", "running_var")
"""Ends of the names of a batch norm's running statistics."""


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Where models lie to each other, without what is no parameter: statistics and counts."""

    distances: list[list[float]]
    """Euclidean distances [N, N] between the models."""
    lengths: list[float] | None
    """Distances [N] from where they began; None where that is not known."""
    cosines: list[list[float]] | None
    """Cosines [N, N] between their displacements from there."""


def require_alike(files: Sequence[WeightFile]) -> None:
    """Refuse files that are not of one net: other names, shapes or types.

    Counts of batches may be missing, as in files of torch before 0.4.1.

    Raises:
        ValueError: names the first tensor that differs, and says how many do.
    """
    first = files[0]
    for other in files[1:]:
        a, b = first.tensors, other.tensors
        if not a.keys() & b.keys():
            raise ValueError(
                f"{other.path}: expected the tensors of {first.path}, got none of them: it has "
                f"{next(iter(b))} and the like, not {next(iter(a))}"
            )
        names = sorted(name for name in a.keys() | b.keys() if not name.endswith(COUNT))
        differ = [name for name in names if _form(a, name) != _form(b, name)]
        if differ:
            name = differ[0]
            raise ValueError(
                f"{other.path}, {name}: expected {_form(a, name)} as in {first.path}, got "
                f"{_form(b, name)}" + _count_more(len(differ) - 1)
            )


def measure(files: Sequence[WeightFile], start: WeightFile | None) -> Geometry:
    """See that all weights are finite, and measure how far they lie apart.

    Infinity may stand where all models have it, as in the mask of an attention.

    Arguments:
        start: where all of them began, if known.

    Raises:
        ValueError: names every file with weights that are not finite.
    """
    several = [*files, *([start] if start else [])]
    # Of the displacements [N] from a point near all models: small distances keep their digits.
    products = torch.zeros(len(files), len(files), dtype=torch.float64)
    diverged: dict[int, tuple[str, int]] = {}
    for name in files[0].averaged:
        bad: set[int] = set()
        for _, block in _blocks(several, name):
            alike = (block == block[0]).all(dim=0)
            finite = (torch.isfinite(block) | alike).all(dim=1).tolist()
            bad |= {i for i, is_finite in enumerate(finite) if not is_finite}
            if not name.endswith(STATISTICS):
                moves = block[: len(files)] - (block[-1] if start else block.mean(0))
                moves = moves.masked_fill(alike, 0.0)
                products += moves @ moves.T
        for i in bad:
            tensor, count = diverged.get(i, (name, 0))
            diverged[i] = tensor, count + 1
    if diverged:
        each = (
            f"{several[i].path} ({name}{_count_more(count - 1)})"
            for i, (name, count) in sorted(diverged.items())
        )
        raise ValueError(f"expected finite weights, got NaN or infinity in {', '.join(each)}")
    squares = products.diagonal()
    distances = (squares[:, None] + squares[None, :] - 2 * products).clamp(min=0).sqrt()
    if start is None:
        return Geometry(distances=distances.tolist(), lengths=None, cosines=None)
    lengths = squares.sqrt()
    scale = lengths[:, None] * lengths[None, :]
    cosines = torch.where(scale > 0, products / scale.clamp(min=1e-300), 0.0)
    return Geometry(
        distances=distances.tolist(), lengths=lengths.tolist(), cosines=cosines.tolist()
    )


def mean_of_files(
    files: Sequence[WeightFile], weights: Sequence[float] | None = None
) -> dict[str, Tensor]:
    """The mean of every tensor of floating point, or complex, in the files' own types.

    Counts of batches become 0, as in a run's own checkpoints; what else is of whole numbers is the
    first file's.

    Arguments:
        weights: of each file, to be divided by their sum; None: all alike.
    """
    shares = torch.tensor(weights or [1.0] * len(files), dtype=torch.float64)
    found = {}
    for name, tensor in files[0].tensors.items():
        if not _is_averaged(tensor):
            found[name] = torch.zeros_like(tensor) if name.endswith(COUNT) else tensor.clone()
            continue
        found[name] = torch.empty(tensor.shape, dtype=tensor.dtype)
        mean = _reals(found[name])
        for part, block in _blocks(files, name):
            mean[part] = (shares @ block / shares.sum()).to(mean.dtype)
    return found


def between(a: dict[str, Tensor], b: WeightFile, share: float) -> dict[str, Tensor]:
    """The point a + share (b - a) of the segment from a to b."""
    point = {}
    for name, tensor in a.items():
        point[name] = tensor
        if _is_averaged(tensor):
            other = b.tensors[name]
            between = torch.lerp(_wide(tensor), _wide(other), share).to(tensor.dtype)
            point[name] = torch.where(tensor == other, tensor, between)  # infinity stays
    return point


def differing(files: Sequence[WeightFile]) -> list[str]:
    """Names of tensors of whole numbers, but for counts of batches, that files do not share."""
    first = files[0].tensors
    return [
        name
        for name, tensor in first.items()
        if not _is_averaged(tensor)
        and not name.endswith(COUNT)
        and any(not torch.equal(tensor, other.tensors[name]) for other in files[1:])
    ]


def _blocks(files: Sequence[WeightFile], name: str) -> Iterator[tuple[slice, Tensor]]:
    """A tensor's values part by part, with each part [N, values] of all files in float64."""
    rows = [_reals(file.tensors[name]) for file in files]
    size = max(1, _VALUES // len(files))
    for i in range(math.ceil(len(rows[0]) / size)):
        part = slice(i * size, (i + 1) * size)
        yield part, torch.stack([row[part].double() for row in rows])


def _is_averaged(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _reals(tensor: Tensor) -> Tensor:
    """Its values [n], a view where possible; of complex ones the real and imaginary parts."""
    return (torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor).reshape(
        -1
    )


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


def _form(tensors: dict[str, Tensor], name: str) -> str:
    if name not in tensors:
        return "no such tensor"
    dtype = str(tensors[name].dtype).removeprefix("torch.")
    return f"{dtype} {list(tensors[name].shape)}"


def _count_more(count: int) -> str:
    return f"; so with {count} more" if count else ""
