"""The user's data: tensors, a data set of examples, or batches as they come."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, default_collate

from swap_fast.user.objective import batch_length, leaves, transformed
from swap_fast.user.seeds import seed_everything

Collate = Callable[[list[Any]], Any]
"""Makes a batch of a list of examples."""


class Request(NamedTuple):
    """A batch that is asked for."""

    seed: int
    """Of what is drawn while its examples are read."""
    indices: NDArray[np.int64]
    """Of these, in this order."""


class Examples(Protocol):
    """Data whose examples can be picked in any order."""

    def __len__(self) -> int:
        """How many there are."""

    def stream(self, requests: Iterable[Request]) -> Iterator[Any]:
        """The batches asked for, in their order; some may be made ahead."""


class TensorExamples:
    """Tensors whose first dimension counts the examples: a tuple or a mapping of them, or one.

    Arguments:
        device: where they are kept; None: where they are.

    Raises:
        ValueError: their lengths differ, or there is none.
    """

    def __init__(self, tensors: Any, name: str, device: torch.device | None) -> None:
        lengths = [len(tensor) if tensor.dim() else 0 for tensor in leaves(tensors)]
        if len(set(lengths)) != 1 or 0 in lengths:
            raise ValueError(
                f"{name}: expected tensors of one length above 0, got lengths "
                f"{', '.join(map(str, lengths))}"
            )
        self._length = lengths[0]
        self._tensors = tensors if device is None else transformed(tensors, lambda t: t.to(device))

    def __len__(self) -> int:
        """How many examples there are."""
        return self._length

    def stream(self, requests: Iterable[Request]) -> Iterator[Any]:
        """The batches asked for, in their order."""
        for request in requests:
            indices = torch.from_numpy(request.indices)
            yield transformed(self._tensors, partial(_rows, indices))


def _rows(indices: Tensor, tensor: Tensor) -> Tensor:
    return tensor[indices.to(tensor.device)]


class DatasetExamples:
    """A map-style data set: whatever has a length and gives an example for each number.

    Arguments:
        processes: that read examples ahead; 0: none but this one.

    Raises:
        ValueError: it is empty.
    """

    def __init__(self, dataset: Any, name: str, collate: Collate | None, processes: int) -> None:
        if len(dataset) == 0:
            raise ValueError(f"{name}: expected examples, got none")
        self._length, self._processes = len(dataset), processes
        self._reader = _Reader(dataset, collate or default_collate)

    def __len__(self) -> int:
        """How many examples there are."""
        return self._length

    def stream(self, requests: Iterable[Request]) -> Iterator[Any]:
        """The batches asked for, in their order; processes read some ahead."""
        if self._processes == 0:
            return map(self._reader.__getitem__, requests)
        loader: DataLoader[Any] = DataLoader(
            self._reader, sampler=requests, batch_size=None, num_workers=self._processes
        )
        return iter(loader)


class _Reader(torch.utils.data.Dataset[Any]):
    """A batch as one item, so that its seed travels to the process that reads it."""

    def __init__(self, dataset: Any, collate: Collate) -> None:
        self._dataset, self._collate = dataset, collate

    def __getitem__(self, request: Request) -> Any:
        seed_everything(request.seed)
        return self._collate([self._dataset[int(index)] for index in request.indices])


class BatchesAsGiven:
    """Batches as they come, from something that can be gone through again and again.

    Raises:
        ValueError: it can be gone through only once, holds nothing, or shares batches out itself.
    """

    def __init__(self, batches: Iterable[Any], name: str) -> None:
        if isinstance(batches, Iterator):
            raise ValueError(
                f"{name}: expected batches that every epoch can go through anew, got a "
                f"{type(batches).__name__}, which the first one uses up; pass a DataLoader"
            )
        sampler = getattr(batches, "sampler", None)
        if isinstance(sampler, DistributedSampler):
            raise ValueError(
                f"{name}: expected a DataLoader without DistributedSampler, got one with it; the "
                "processes share the batches out by themselves"
            )
        self.name, self._batches = name, batches
        self._generators = [
            generator
            for owner in (batches, sampler)
            if isinstance(generator := getattr(owner, "generator", None), torch.Generator)
        ]
        self.batch_size = self._first_length()
        self.count = self._count()

    def _first_length(self) -> int:
        for batch in self._batches:
            return batch_length(batch)
        raise ValueError(f"{self.name}: expected batches, got none")

    def _count(self) -> int:
        try:
            return len(self._batches)  # type: ignore[arg-type]  # which raises where it has none
        except TypeError:
            return sum(1 for _ in self._batches)

    def epoch(self, seed: int) -> Iterator[Any]:
        """Go through them, with the generators that their order is drawn from seeded."""
        seed_everything(seed)
        for generator in self._generators:
            generator.manual_seed(seed)
        return iter(self._batches)


Data = Examples | BatchesAsGiven


def num_examples(data: Data | None) -> int | None:
    """How many there are; of batches as they come, if all are as long as the first."""
    if isinstance(data, BatchesAsGiven):
        return data.count * data.batch_size
    return None if data is None else len(data)


def open_data(
    data: Any,
    name: str,
    *,
    collate: Collate | None = None,
    processes: int = 0,
    device: torch.device | None = None,
) -> Data:
    """What the user's data are: tensors, a data set of examples, or batches as they come.

    Arguments:
        name: the argument's, for messages.
        device: where tensors are kept; None: where they are.

    Raises:
        ValueError: none of these, or such that no epoch can be made of them.
    """
    if isinstance(data, Tensor) or _is_tensors(data):
        return TensorExamples(_as_tensors(data), name, device)
    if isinstance(data, IterableDataset):
        raise ValueError(
            f"{name}: expected batches, got an IterableDataset, which gives single examples; wrap "
            "it in a DataLoader"
        )
    if hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, Mapping):
        return DatasetExamples(data, name, collate, processes)
    if hasattr(data, "__iter__") and not isinstance(data, Mapping):
        return BatchesAsGiven(data, name)
    raise ValueError(
        f"{name}: expected tensors, a data set with __len__ and __getitem__, or batches to iterate "
        f"over, got a {type(data).__name__}"
    )


def _is_tensors(data: Any) -> bool:
    """Whether these are a few columns of all examples: not a list, which holds examples."""
    if not isinstance(data, (tuple, Mapping)) or not data:
        return False
    columns = data.values() if isinstance(data, Mapping) else data
    return all(isinstance(column, (Tensor, np.ndarray)) for column in columns)


def _as_tensors(data: Any) -> Any:
    if isinstance(data, Tensor):
        return data
    if isinstance(data, Mapping):
        return {name: torch.as_tensor(column) for name, column in data.items()}
    return tuple(torch.as_tensor(column) for column in data)
