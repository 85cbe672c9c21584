"""The mean of files of weights, and where they lie to each other: tensor by tensor, from disk.

No file is ever held whole: a part of one tensor is read of all of them, in float64, and the mean
is rounded once to the files' own type. So memory holds the average and little else, however many
files there are.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from swap_fast.averaging_files.weight_files import WeightFile

_VALUES = 1 << 22  # read at once, of all files together: 32 MiB in float64

COUNT = "num_batches_tracked"
"""Ends the name of a batch norm's count of batches; nothing reads it, and it becomes 0."""
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
    """Cosines [N, N] between the ways that they went from there."""


def require_alike(files: Sequence[WeightFile]) -> None:
    """Refuse files that are not of one net: other names, shapes or types.

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
        differ = [name for name in sorted(a.keys() | b.keys()) if _form(a, name) != _form(b, name)]
        if differ:
            name = differ[0]
            raise ValueError(
                f"{other.path}, {name}: expected {_form(a, name)} as in {first.path}, got "
                f"{_form(b, name)}" + _count_more(len(differ) - 1)
            )


def measure(files: Sequence[WeightFile], start: WeightFile | None) -> Geometry:
    """See that all weights are finite, and measure how far they lie apart.

    Arguments:
        start: where all of them began, if known.

    Raises:
        ValueError: names every file with weights that are not finite.
    """
    several = [*files, *([start] if start else [])]
    # Of the ways [N] from a point near all models, so that small distances keep their digits.
    products = torch.zeros(len(files), len(files), dtype=torch.float64)
    diverged: dict[int, tuple[str, int]] = {}
    for name in files[0].averaged:
        bad: set[int] = set()
        for _, block in _blocks(several, name):
            finite = torch.isfinite(block).all(dim=1).tolist()
            bad |= {i for i, is_finite in enumerate(finite) if not is_finite}
            if not name.endswith(STATISTICS):
                ways = block[: len(files)] - (block[-1] if start else block.mean(0))
                products += ways @ ways.T
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
    """The mean of every tensor of floating point, in the files' own types.

    Counts of batches become 0, as in a run's own checkpoints; what else is of whole numbers is the
    first file's.

    Arguments:
        weights: of each file, to be divided by their sum; None: all alike.
    """
    shares = torch.tensor(weights or [1.0] * len(files), dtype=torch.float64)
    found = {}
    for name, tensor in files[0].tensors.items():
        if not tensor.is_floating_point():
            found[name] = torch.zeros_like(tensor) if name.endswith(COUNT) else tensor.clone()
            continue
        mean = torch.empty(tensor.numel(), dtype=tensor.dtype)
        for part, block in _blocks(files, name):
            mean[part] = (shares @ block / shares.sum()).to(tensor.dtype)
        found[name] = mean.view(tensor.shape)
    return found


def between(a: dict[str, Tensor], b: WeightFile, share: float) -> dict[str, Tensor]:
    """The point a + share (b - a) of the segment from a to b."""
    return {
        name: torch.lerp(t.double(), b.tensors[name].double(), share).to(t.dtype)
        if t.is_floating_point()
        else t
        for name, t in a.items()
    }


def differing(files: Sequence[WeightFile]) -> list[str]:
    """Names of tensors of whole numbers, but for counts of batches, that files do not share."""
    first = files[0].tensors
    return [
        name
        for name, tensor in first.items()
        if not tensor.is_floating_point()
        and not name.endswith(COUNT)
        and any(not torch.equal(tensor, other.tensors[name]) for other in files[1:])
    ]


def _blocks(files: Sequence[WeightFile], name: str) -> Iterator[tuple[slice, Tensor]]:
    """A tensor's values part by part, with each part [N, values] of all files in float64."""
    rows = [file.tensors[name].reshape(-1) for file in files]
    size = max(1, _VALUES // len(files))
    for i in range(math.ceil(len(rows[0]) / size)):
        part = slice(i * size, (i + 1) * size)
        yield part, torch.stack([row[part].double() for row in rows])


def _form(tensors: dict[str, Tensor], name: str) -> str:
    if name not in tensors:
        return "no such tensor"
    dtype = str(tensors[name].dtype).removeprefix("torch.")
    return f"{dtype} {list(tensors[name].shape)}"


def _count_more(count: int) -> str:
    return f"; so with {count} more" if count else ""
