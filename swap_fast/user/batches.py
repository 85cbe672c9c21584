"""The user's batches: those of a phase, slot by slot, and those of one pass over the data."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from swap_fast.config.phase import Phase
from swap_fast.distributed import ALONE, Comm
from swap_fast.user.data import BatchesAsGiven, Data, Examples, Request
from swap_fast.user.objective import batch_length, on_device
from swap_fast.user.seeds import AUGMENT, FETCH, FORWARD, order, seed_everything, seed_of

Augment = Callable[[Any, torch.Generator], Any]
"""Given a batch on its device, and a generator to draw from: the batch to train on."""


class MicroBatch(NamedTuple):
    """What a slot has in one update."""

    batch: Any
    """On the device."""
    examples: int
    """In it."""
    seed: int
    """Of what is drawn in its forward pass."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where batches go, and what is done to them there."""

    device: torch.device
    """The model's."""
    seed: int
    """Of the run."""
    augment: Augment | None
    """The user's; None: nothing is."""

    def put(self, batch: Any, *where: int) -> MicroBatch:
        """A batch of (phase, worker, epoch, step, slot), ready for its forward pass."""
        moved = on_device(batch, self.device)
        if self.augment is not None:
            generator = torch.Generator(self.device)
            moved = self.augment(moved, generator.manual_seed(seed_of(self.seed, *where, AUGMENT)))
        return MicroBatch(moved, batch_length(moved), seed_of(self.seed, *where, FORWARD))


class OwnBatches(Protocol):
    """This rank's micro-batches of a phase."""

    steps_per_epoch: int
    """Updates of an epoch."""

    def start_epoch(self, worker: int, epoch: int) -> None:
        """Go to an epoch."""

    def load(self, step: int) -> list[MicroBatch]:
        """Of update `step`, one a slot of this rank."""


def phase_batches(
    data: Data, phase: Phase, place: Place, *, number: int, slots: range
) -> OwnBatches:
    """The micro-batches of phase `number`, for the slots of this rank."""
    if isinstance(data, BatchesAsGiven):
        return _Given(data, phase, place, number, slots)
    return _Picked(data, phase, place, number, slots)


class _Picked:
    """Examples in an order drawn for each epoch; slot s of an update has its s-th equal slice."""

    def __init__(
        self, examples: Examples, phase: Phase, place: Place, number: int, slots: range
    ) -> None:
        self._examples, self._phase, self._place = examples, phase, place
        self._number, self._slots = number, slots
        self.steps_per_epoch = len(examples) // phase.global_batch_size
        self._worker, self._epoch = 0, 0
        self._made: Iterator[Any] = iter(())
        self._next: tuple[int, int] | None = None  # (worker, updates from its epoch 0 on)

    def start_epoch(self, worker: int, epoch: int) -> None:
        """Go to an epoch."""
        self._worker, self._epoch = worker, epoch

    def load(self, step: int) -> list[MicroBatch]:
        """Of update `step`, one a slot of this rank; in their order they are made ahead."""
        update = self._epoch * self.steps_per_epoch + step
        if self._next != (self._worker, update):
            self._made = self._examples.stream(self._requests(self._worker, update))
        self._next = self._worker, update + 1
        where = (self._number, self._worker, self._epoch, step)
        return [self._place.put(next(self._made), *where, slot) for slot in self._slots]

    def _requests(self, worker: int, first: int) -> Iterator[Request]:
        """Of all updates from one on to the phase's end."""
        size, whole = self._phase.micro_batch_size, self._phase.global_batch_size
        seed, steps = self._place.seed, self.steps_per_epoch
        indices = np.empty(0, np.int64)
        for update in range(first, self._phase.max_epochs * steps):
            epoch, step = divmod(update, steps)
            if update == first or step == 0:
                indices = order(len(self._examples), seed, self._number, worker, epoch)
            for slot in self._slots:
                start = step * whole + slot * size
                drawn = seed_of(seed, self._number, worker, epoch, step, slot, FETCH)
                yield Request(drawn, indices[start : start + size])


class _Given:
    """Batches as they come: an update takes as many as there are slots, one each.

    Every rank goes through all of them and keeps its own.
    """

    def __init__(
        self, given: BatchesAsGiven, phase: Phase, place: Place, number: int, slots: range
    ) -> None:
        self._given, self._place, self._number = given, place, number
        self._slots, self._num_slots = slots, phase.gpus_per_model
        self.steps_per_epoch = given.count // phase.gpus_per_model
        self._worker, self._epoch, self._step = 0, 0, 0
        self._coming: Iterator[Any] = iter(())

    def start_epoch(self, worker: int, epoch: int) -> None:
        """Go to an epoch."""
        self._worker, self._epoch, self._step = worker, epoch, 0
        seed = seed_of(self._place.seed, self._number, worker, epoch)
        self._coming = self._given.epoch(seed)

    def load(self, step: int) -> list[MicroBatch]:
        """Of update `step`, one a slot of this rank; those before it are passed over."""
        while self._step < step:
            self._take(self._step)
        return self._take(step)

    def _take(self, step: int) -> list[MicroBatch]:
        self._step, kept = step + 1, []
        where = (self._number, self._worker, self._epoch, step)
        for slot in range(self._num_slots):
            seed_everything(seed_of(self._place.seed, *where, slot, FETCH))
            try:
                batch = next(self._coming)
            except StopIteration:
                raise ValueError(
                    f"{self._given.name}: expected {self._given.count} batches in every epoch, got "
                    f"{step * self._num_slots + slot}; pass data whose length does not change"
                ) from None
            if slot in self._slots:
                kept.append(self._place.put(batch, *where, slot))
        return kept


def one_pass(
    data: Data, place: Place, *, batch_size: int, shuffled: bool, comm: Comm = ALONE
) -> Iterator[Any]:
    """All examples once, in batches that are dealt out to the ranks, on the device.

    The batches are the same for any number of ranks; the last one may be short. One example alone,
    of which batch norm can make no statistics, goes to the batch before it.

    Arguments:
        batch_size: of examples that can be picked.
        shuffled: for phase 3, in an order of its own and augmented; else as they are.
    """
    where = (3, 0, 0)
    chosen: Iterator[tuple[int, Any]]
    if isinstance(data, BatchesAsGiven):
        chosen = _dealt(data.epoch(seed_of(place.seed, *where)), comm)
    else:
        total = len(data)
        indices = order(total, place.seed, *where) if shuffled else np.arange(total)
        starts = list(range(0, total, batch_size))
        if total % batch_size == 1 and len(starts) > 1:
            starts.pop()
        parts = np.split(indices, starts[1:])
        numbers = range(comm.rank, len(parts), comm.world_size)
        asked = [Request(seed_of(place.seed, *where, i, 0, FETCH), parts[i]) for i in numbers]
        chosen = iter(zip(numbers, data.stream(asked), strict=True))
    for i, batch in chosen:
        made = place.put(batch, *where, i, 0)
        seed_everything(made.seed)
        yield made.batch


def _dealt(batches: Iterator[Any], comm: Comm) -> Iterator[tuple[int, Any]]:
    for i, batch in enumerate(batches):
        if i % comm.world_size == comm.rank:
            yield i, batch
