"""Columns of all examples as people have them, as tensors: of torch, numpy, pandas, or lists."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def as_tensors(data: Any, name: str) -> Any:
    """One column of all examples, or a few; None for other data, such as a list of examples.

    Raises:
        ValueError: a column that is no table of numbers.
    """
    if isinstance(data, Tensor):
        return data
    columns = list(data.values()) if isinstance(data, Mapping) else data
    if not isinstance(columns, (tuple, list)) or not any(map(_is_array, columns)):
        return None
    # The labels of a tuple may be a list of numbers.
    also = list if isinstance(data, tuple) else ()
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
