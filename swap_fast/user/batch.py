"""Tensors in any container: a batch as a net takes it, and columns of all examples."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def batch_length(batch: Any) -> int:
    """The examples of a batch: the length that its tensors [B, ...] share.

    Where they differ, what more than half of them share, so that a graph's edges [2, E] do not
    count; of lists alone, as a detector's images and boxes, the length of the lists. A class of
    batches without tensors in sight says it by `num_graphs` or `len`.

    Raises:
        ValueError: none of these.
    """
    lengths = Counter(len(tensor) for tensor in leaves(batch) if tensor.dim())
    if not lengths:
        own = getattr(batch, "num_graphs", None) if hasattr(batch, "to") else None
        if own is None and hasattr(batch, "to") and hasattr(batch, "__len__"):
            own = len(batch)
        if isinstance(own, int):
            return own
        raise ValueError(
            "batch: expected tensors [B, ...], or a class with `to` and `__len__`, got a "
            f"{type(batch).__name__}"
        )
    (length, count), *others = lengths.most_common()
    if not others:
        return length
    is_lists = isinstance(batch, (tuple, list)) and all(type(x) in (tuple, list) for x in batch)
    if is_lists and len(of_lists := {len(each) for each in batch}) == 1:
        return of_lists.pop()
    if 2 * count > lengths.total():
        return length
    raise ValueError(
        "batch: expected tensors [B, ...] of one length B, got lengths "
        f"{', '.join(map(str, lengths))}; make it a class with `to` and `__len__`"
    )


def leaves(batch: Any) -> list[Tensor]:
    """All tensors of a batch, in their order."""
    if isinstance(batch, Tensor):
        return [batch]
    if isinstance(batch, Mapping):
        return [tensor for value in batch.values() for tensor in leaves(value)]
    if isinstance(batch, (tuple, list)):
        return [tensor for value in batch for tensor in leaves(value)]
    return []


def transformed(batch: Any, change: Callable[[Any], Any]) -> Any:
    """The batch with whatever can be moved changed, its tensors above all; the rest as it is."""
    if hasattr(batch, "to"):
        return change(batch)
    if isinstance(batch, Mapping):
        return {name: transformed(value, change) for name, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(transformed(value, change) for value in batch))
    if isinstance(batch, (tuple, list)):
        return type(batch)(transformed(value, change) for value in batch)
    return batch


def on_device(batch: Any, device: torch.device) -> Any:
    """The batch on a device; a kind of batch with a method `to` of its own moves itself."""

    def move(part: Any) -> Any:
        if isinstance(part, Tensor):
            return part.to(device, non_blocking=True)
        return part.to(device)

    return transformed(batch, move)


# Columns of all examples as people have them: of torch, numpy, pandas, or lists.


def as_tensors(data: Any, name: str) -> Any:
    """One column of all examples, or a few; None for other data, such as a list of examples.

    Raises:
        ValueError: a column that is no table of numbers.
    """
    if _is_array(data):
        return _as_tensor(data, name)
    columns = list(data.values()) if isinstance(data, Mapping) else data
    if not isinstance(columns, (tuple, list)) or not any(map(_is_array, columns)):
        return None
    # The labels of a tuple or a mapping may be a list of numbers.
    also = () if isinstance(data, list) else list
    if not all(_is_array(each) or isinstance(each, also) for each in columns):
        return None
    # A list holds examples, but for inputs [N, D] and labels [N]: unlike, and of one length.
    if isinstance(data, list):
        shapes = [np.shape(each) for each in columns]
        if len(set(map(len, shapes))) == 1 or len({shape[:1] for shape in shapes}) > 1:
            return None
    tensors = [_as_tensor(each, name) for each in columns]
    return dict(zip(data, tensors, strict=True)) if isinstance(data, Mapping) else tuple(tensors)


def _is_array(column: Any) -> bool:
    """Whether it is a tensor, or what numpy reads as an array: one of its own, or of pandas."""
    return isinstance(column, Tensor) or hasattr(column, "__array__")


def _as_tensor(column: Any, name: str) -> Tensor:
    if isinstance(column, Tensor):
        return column
    try:
        array = np.asarray(column)
        # torch reads neither reversed nor foreign-endian memory, and warns of what is read-only.
        array = np.require(
            array.astype(array.dtype.newbyteorder("="), copy=False), None, ["C", "W"]
        )
        return torch.as_tensor(array)
    except (TypeError, ValueError) as error:
        kind = type(column).__name__
        raise ValueError(f"{name}: expected columns of numbers, got a {kind}: {error}") from None
