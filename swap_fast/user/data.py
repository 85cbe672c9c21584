"""The user's data: tensors, a data set of examples, or batches as they come."""

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    SequentialSampler,
    default_collate,
)

from swap_fast.config.checks import require
from swap_fast.config.phase import Phase
from swap_fast.data.cifar.batches import Loader
from swap_fast.distributed import ALONE, Comm
from swap_fast.user.batch import as_tensors, batch_length, leaves, on_device, transformed

# Seeds: each follows from where its numbers are needed, and from nothing drawn before.

FETCH, AUGMENT, FORWARD = 1, 2, 3
"""What a number is drawn for, behind (seed, phase, worker, epoch, step, replica)."""


def order(num_examples: int, seed: int, phase: int, worker: int, epoch: int) -> NDArray[np.int64]:
    """The order of an epoch's examples."""
    sequence = np.random.SeedSequence((seed, phase, worker, epoch))
    return np.random.default_rng(sequence).permutation(num_examples)


def seed_of(*words: int) -> int:
    """A seed of 63 bits from whole numbers of 0 or more."""
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0]) >> 1


def require_seed(seed: object) -> None:
    """Refuse what is no seed of a run."""
    is_whole = isinstance(seed, int) and not isinstance(seed, bool) and 0 <= seed < 2**63
    require(is_whole, "seed", "a whole number from 0 to 2**63 - 1", seed)


def seed_everything(seed: int) -> None:
    """Seed the generators that data sets, augmentation and dropout draw from."""
    # torch.manual_seed writes a stack trace for a CUDA device that nobody uses.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


@contextmanager
def generators_kept(device_type: str) -> Iterator[None]:
    """Afterwards the user's generators go on as if nothing had been drawn."""
    numpys, pythons = np.random.get_state(), random.getstate()
    devices = [torch.cuda.current_device()] if device_type == "cuda" else []
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            np.random.set_state(numpys)
            random.setstate(pythons)


Collate = Callable[[list[Any]], Any]
"""Makes a batch of a list of examples."""


class SampleRequest(NamedTuple):
    """A batch that is asked for."""

    seed: int
    """Of what is drawn while its examples are read."""
    indices: NDArray[np.int64]
    """Of these, in this order."""


class Examples(Dataset[Any]):
    """Data whose examples can be picked in any order.

    A batch is one item, so that its seed travels to the process that reads it.

    Arguments:
        read: makes a batch.
        processes: that read batches ahead; 0: none but this one.
        columns: all examples, where they are tensors.
        hint: what to do where there are too few.
    """

    def __init__(
        self,
        length: int,
        read: Callable[[SampleRequest], Any],
        processes: int = 0,
        *,
        columns: Any = None,
        hint: str = "",
    ) -> None:
        self._length, self._read, self._processes = length, read, processes
        self.columns, self.hint = columns, hint

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, request: SampleRequest) -> Any:
        return self._read(request)

    def stream(self, requests: Iterable[SampleRequest]) -> Iterator[Any]:
        """The batches asked for, in their order; processes read some ahead."""
        if self._processes == 0:
            return map(self._read, requests)
        loader: DataLoader[Any] = DataLoader(
            self, sampler=requests, batch_size=None, num_workers=self._processes
        )
        return iter(loader)


def tensor_examples(tensors: Any, name: str, device: torch.device | None) -> Examples:
    """Tensors whose first dimension counts the examples: a tuple or a mapping of them, or one.

    Arguments:
        device: where they are kept; None: where they are.

    Raises:
        ValueError: their lengths differ, or there is none.
    """
    lengths = [len(tensor) if tensor.dim() else 0 for tensor in leaves(tensors)]
    if len(set(lengths)) != 1 or 0 in lengths:
        raise ValueError(
            f"{name}: expected tensors of one length above 0, got lengths "
            f"{', '.join(map(str, lengths))}"
        )
    if device is not None:
        tensors = transformed(tensors, lambda tensor: tensor.to(device))

    def read(request: SampleRequest) -> Any:
        rows = torch.from_numpy(request.indices)
        return transformed(tensors, lambda tensor: tensor[rows.to(tensor.device)])

    return Examples(lengths[0], read, columns=tensors)


def targets_of(data: "Data") -> Tensor | None:
    """The targets of all examples, the last column or "labels", where these are tensors."""
    columns = data.columns if isinstance(data, Examples) else None
    if isinstance(columns, Mapping):
        return columns.get("labels")
    return columns[-1] if isinstance(columns, tuple) else None


SAMPLED = 1024
"""Examples of a tensor that `digest_of` looks at."""


def digest_of(data: "Data") -> str | None:
    """12 digits of what tells tensors from others of their length; None of other data.

    Of whole numbers, such as classes, tokens and bytes, the values; of floating point the mean and
    the deviation to a few digits, so that another machine's rounding is no other data. All values
    of a tensor [N], and of larger ones those of up to 1,024 examples that lie evenly in it.
    """
    if not isinstance(data, Examples) or data.columns is None:
        return None
    digest = hashlib.sha256()
    for tensor in leaves(data.columns):
        digest.update(f"{tensor.dtype} {list(tensor.shape)}".encode())
        sample = tensor if tensor.dim() == 1 else tensor[:: -(-len(tensor) // SAMPLED)]
        if sample.numel() == 0:
            continue
        if sample.is_floating_point() or sample.is_complex():
            values = (sample.abs() if sample.is_complex() else sample).detach().double()
            std, mean = torch.std_mean(values, correction=0)
            digest.update(f"{std.item():.3g} {(mean / std).item():z.2f}".encode())
        else:
            digest.update(sample.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]


def _collated(dataset: Any, collate: Collate, request: SampleRequest) -> Any:
    """A batch of a map-style data set: whatever gives an example for each number."""
    seed_everything(request.seed)
    return collate([dataset[int(index)] for index in request.indices])


MOST_COUNTED = 1_000_000
"""Batches without a length that are counted; a stream without an end has more."""


class BatchesAsGiven:
    """Batches as they come, from something that can be gone through again and again.

    Arguments:
        say: given a line, where the batches have to be counted.

    Raises:
        ValueError: it can be gone through only once, holds nothing, or shares batches out itself.
    """

    def __init__(
        self, batches: Iterable[Any], name: str, say: Callable[[str], None] = lambda line: None
    ) -> None:
        if isinstance(batches, Iterator):
            raise ValueError(
                f"{name}: expected batches that every epoch can go through again, got a "
                f"{type(batches).__name__}, which the first one uses up; pass a DataLoader"
            )
        sampler = getattr(batches, "sampler", None)
        if isinstance(sampler, DistributedSampler):
            raise ValueError(
                f"{name}: expected a DataLoader without DistributedSampler, got one with it; the "
                "processes share the batches out by themselves"
            )
        self.name, self._batches, self._say = name, batches, say
        self._generators = [
            generator
            for owner in (batches, sampler)
            if isinstance(generator := getattr(owner, "generator", None), torch.Generator)
        ]
        for batch in batches:
            self.batch_size = batch_length(batch)
            break
        else:
            raise ValueError(f"{name}: expected batches, got none")

    @cached_property
    def count(self) -> int:
        """Batches of an epoch; where they have no length, one epoch is gone through.

        Raises:
            ValueError: an epoch of more than `MOST_COUNTED`, which may have no end.
        """
        with suppress(TypeError):  # they have no length
            return len(self._batches)  # type: ignore[arg-type]
        self._say(
            f"{self.name} has no length: counting its batches, which reads an epoch of them; give "
            "it a __len__"
        )
        found = sum(1 for _ in islice(self._batches, MOST_COUNTED + 1))
        if found > MOST_COUNTED:
            raise ValueError(
                f"{self.name}: expected epochs with an end, or a length, got more than "
                f"{MOST_COUNTED:,} batches without one; end each epoch, as by itertools.islice"
            )
        return found

    @property
    def is_in_one_order(self) -> bool:
        """Whether a sampler is known to give the same order in every epoch."""
        batched = getattr(self._batches, "batch_sampler", None)
        owner = self._batches if batched is None else batched
        return isinstance(getattr(owner, "sampler", None), SequentialSampler)

    @property
    def ends_alone(self) -> bool:
        """Whether the last batch is known to have one example, and others have more."""
        sampler = getattr(self._batches, "batch_sampler", None)
        if not isinstance(sampler, BatchSampler) or sampler.drop_last or sampler.batch_size < 2:
            return False
        with suppress(TypeError):  # it has no length
            return len(sampler.sampler) % sampler.batch_size == 1  # type: ignore[arg-type]
        return False

    def epoch(self, seed: int) -> Iterator[Any]:
        """Go through them, with the generators that their order is drawn from seeded."""
        seed_everything(seed)
        for generator in self._generators:
            generator.manual_seed(seed)
        return iter(self._batches)


Data = Examples | BatchesAsGiven


def num_examples(data: Data) -> int:
    """How many there are; of batches as they come, if all are as long as the first."""
    return data.count * data.batch_size if isinstance(data, BatchesAsGiven) else len(data)


def open_data(
    data: Any,
    name: str,
    *,
    collate: Collate | None = None,
    processes: int = 0,
    device: torch.device | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Data:
    """What the user's data are: tensors, a data set of examples, or batches as they come.

    Arguments:
        name: the argument's, for messages.
        device: where tensors are kept; None: where they are.
        say: given a line, where batches have to be counted.

    Raises:
        ValueError: none of these, or such that no epoch can be made of them.
    """
    if (tensors := as_tensors(data, name)) is not None:
        return tensor_examples(tensors, name, device)
    if isinstance(data, IterableDataset):
        raise ValueError(
            f"{name}: expected batches, got an IterableDataset, which gives single examples; wrap "
            "it in a DataLoader"
        )
    is_other = isinstance(data, (Mapping, str, bytes))
    if hasattr(data, "__getitem__") and hasattr(data, "__len__") and not is_other:
        if len(data) == 0:
            raise ValueError(f"{name}: expected examples, got none")
        hint = "; a list is one of examples: of batches make DataLoader(batches, batch_size=None)"
        return Examples(
            len(data),
            partial(_collated, data, collate or default_collate),
            processes,
            hint=hint if isinstance(data, list) else "",
        )
    if hasattr(data, "__iter__") and not is_other:
        return BatchesAsGiven(data, name, say)
    raise ValueError(
        f"{name}: expected tensors, a data set with __len__ and __getitem__, or batches to iterate "
        f"over, got a {type(data).__name__}"
    )


def require_use(found: Iterable[Data | None], *, collate: Collate | None, processes: int) -> None:
    """Refuse what only a data set of examples uses, where there is none.

    Raises:
        ValueError: names the argument.
    """
    if any(isinstance(each, Examples) and each.columns is None for each in found):
        return
    uses = {"collate": collate is not None, "loader_processes": processes > 0}
    for name, is_given in uses.items():
        if is_given:
            raise ValueError(
                f"{name}: expected a data set of examples to use it on, got tensors or batches; "
                "leave it out, or give a DataLoader its own"
            )


# Batches of a phase, replica by replica, and of one pass over the data.

Augment = Callable[[Any, torch.Generator], Any]
"""Given a batch on its device, and a generator to draw from: the batch to train on."""


class MicroBatch(NamedTuple):
    """What a replica has in one update."""

    batch: Any
    """On the device."""
    examples: int
    """In it."""
    seed: int
    """Of what is drawn in its forward pass."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where batches go, and what is done to them there."""

    device: torch.device
    """The model's."""
    seed: int
    """Of the run."""
    augment: Augment | None
    """The user's; None: nothing is."""
    check: Callable[[Any], None] | None = None
    """Refuses a batch before it is moved."""

    def put(self, batch: Any, *where: int) -> MicroBatch:
        """A batch of (phase, worker, epoch, step, replica), ready for its forward pass."""
        if self.check is not None:
            self.check(batch)
        moved = on_device(batch, self.device)
        if self.augment is not None:
            generator = torch.Generator(self.device)
            moved = self.augment(moved, generator.manual_seed(seed_of(self.seed, *where, AUGMENT)))
            require(moved is not None, "augment", "the batch to train on, which it returns", moved)
        if (examples := batch_length(moved)) == 0:
            raise ValueError("batch: expected examples, got an empty batch; leave it out")
        return MicroBatch(moved, examples, seed_of(self.seed, *where, FORWARD))


def phase_batches(
    data: Data,
    phase: Phase,
    place: Placement,
    *,
    number: int,
    replicas: range,
    into: list[MicroBatch],
) -> Loader:
    """What puts the micro-batches of phase `number` into a list: one a replica of this rank."""
    if isinstance(data, BatchesAsGiven):
        return _Given(data, phase, place, number, replicas, into)
    return _Picked(data, phase, place, number, replicas, into)


class _PhaseBatches:
    """Puts a micro-batch for each replica of this rank into a list, update by update."""

    def __init__(
        self,
        phase: Phase,
        place: Placement,
        number: int,
        replicas: range,
        into: list[MicroBatch],
    ) -> None:
        self._phase, self._place, self._number = phase, place, number
        self._replicas, self._into = replicas, into
        self._worker, self._epoch = 0, 0

    def start_epoch(self, worker: int, epoch: int) -> None:
        self._worker, self._epoch = worker, epoch


class _Picked(_PhaseBatches):
    """Examples in an order drawn for each epoch; replica s has the s-th slice of an update."""

    def __init__(self, examples: Examples, phase: Phase, *shared: Any) -> None:
        super().__init__(phase, *shared)
        self._examples = examples
        self.steps_per_epoch = len(examples) // phase.global_batch_size
        self._made: Iterator[Any] = iter(())
        self._next: tuple[int, int] | None = None  # (worker, updates from its epoch 0 on)

    def load(self, step: int) -> None:
        """Load update `step`; in their order updates are made ahead."""
        update = self._epoch * self.steps_per_epoch + step
        if self._next != (self._worker, update):
            self._made = self._examples.stream(self._requests(self._worker, update))
        self._next = self._worker, update + 1
        where = (self._number, self._worker, self._epoch, step)
        self._into[:] = [self._place.put(next(self._made), *where, r) for r in self._replicas]

    def _requests(self, worker: int, first: int) -> Iterator[SampleRequest]:
        """Of all updates from one on to the phase's end."""
        size, whole = self._phase.micro_batch_size, self._phase.global_batch_size
        seed, steps = self._place.seed, self.steps_per_epoch
        indices = np.empty(0, np.int64)
        for update in range(first, self._phase.max_epochs * steps):
            epoch, step = divmod(update, steps)
            if update == first or step == 0:
                indices = order(len(self._examples), seed, self._number, worker, epoch)
            for replica in self._replicas:
                start = step * whole + replica * size
                drawn = seed_of(seed, self._number, worker, epoch, step, replica, FETCH)
                yield SampleRequest(drawn, indices[start : start + size])


class _Given(_PhaseBatches):
    """Batches as they come: an update takes as many as there are replicas, one each.

    Every rank goes through all of them and keeps its own.
    """

    def __init__(self, given: BatchesAsGiven, phase: Phase, *shared: Any) -> None:
        super().__init__(phase, *shared)
        self._given, self._num_replicas = given, phase.gpus_per_model
        self.steps_per_epoch = given.count // phase.gpus_per_model
        self._step = 0
        self._coming: Iterator[Any] = iter(())

    def start_epoch(self, worker: int, epoch: int) -> None:
        """Go to an epoch: from its first batch on."""
        super().start_epoch(worker, epoch)
        self._step = 0
        seed = seed_of(self._place.seed, self._number, worker, epoch)
        self._coming = self._given.epoch(seed)

    def load(self, step: int) -> None:
        """Load update `step`; those before it are passed over."""
        while self._step < step:
            self._take(self._step)
        self._into[:] = self._take(step)

    def _take(self, step: int) -> list[MicroBatch]:
        self._step, kept = step + 1, []
        where = (self._number, self._worker, self._epoch, step)
        for replica in range(self._num_replicas):
            seed_everything(seed_of(self._place.seed, *where, replica, FETCH))
            try:
                batch = next(self._coming)
            except StopIteration:
                raise ValueError(
                    f"{self._given.name}: expected {self._given.count} batches in every epoch, got "
                    f"{step * self._num_replicas + replica}; pass data whose length does not change"
                ) from None
            if replica in self._replicas:
                kept.append(self._place.put(batch, *where, replica))
        return kept


def one_pass(
    data: Data,
    place: Placement,
    *,
    batch_size: int,
    shuffled: bool,
    comm: Comm = ALONE,
) -> Iterator[Any]:
    """All examples once, in batches that are dealt out to the ranks, on the device.

    The batches are the same for any number of ranks; the last one may be short. One example alone,
    of which batch norm can make no statistics, goes to the batch before it where it can.

    Arguments:
        batch_size: of examples that can be picked.
        shuffled: for phase 3, in an order of its own and augmented; else as they are.
    """
    where = (3, 0, 0)
    chosen: Iterator[tuple[int, Any]]
    if isinstance(data, BatchesAsGiven):
        given = enumerate(data.epoch(seed_of(place.seed, *where)))
        chosen = islice(given, comm.rank, None, comm.world_size)
    else:
        total = len(data)
        indices = order(total, place.seed, *where) if shuffled else np.arange(total)
        starts = list(range(0, total, batch_size))
        if total % batch_size == 1 and len(starts) > 1:
            starts.pop()
        parts = np.split(indices, starts[1:])
        numbers = range(comm.rank, len(parts), comm.world_size)
        asked = [SampleRequest(seed_of(place.seed, *where, i, 0, FETCH), parts[i]) for i in numbers]
        chosen = iter(zip(numbers, data.stream(asked), strict=True))
    for i, batch in chosen:
        made = place.put(batch, *where, i, 0)
        seed_everything(made.seed)
        yield made.batch
