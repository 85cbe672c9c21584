"""Loaders that make batches ahead of their use: which batch comes next, and where to start anew."""

from typing import Protocol

from torch import Tensor

from swap_fast.data.cifar.augment import Plan
from swap_fast.data.cifar.batches import Share


class Sequence:
    """All batches of one worker from a place on: the epoch's, then those of the epochs after it.

    A batch follows from its number alone, so that any may be asked for ahead, or twice.
    """

    def __init__(self, share: Share, worker: int, epoch: int, step: int) -> None:
        self._share, self._worker = share, worker
        self._first = epoch * share.steps_per_epoch + step
        self.largest_batch = share.images_per_step
        self._drawn: tuple[int, Plan] | None = None

    def __call__(self, i: int) -> Plan:
        """The plan of batch i, counted from the sequence's first."""
        epoch, step = divmod(self._first + i, self._share.steps_per_epoch)
        if self._drawn is None or self._drawn[0] != epoch:
            self._drawn = (epoch, self._share.plan(self._worker, epoch))
        return self._drawn[1].take(self._share.positions(step))


class Stream(Protocol):
    """Makes the batches of one sequence in their order, some ahead. Both phases share it."""

    sequence: Sequence | None
    """What is being made."""

    def start(self, sequence: Sequence) -> None:
        """Make `sequence(0)`, `sequence(1)`, ... in place of what was made before."""

    def load_(self, images: Tensor, labels: Tensor) -> None:
        """Write the next batch into [B, 3, 32, 32] and [B] tensors."""


class StreamedBatches:
    """A loader over a stream, which goes on where it is asked for what comes next anyway.

    That is so from step to step and from epoch to epoch of one worker. At the switch of phases, at
    another worker, and after an epoch that was left early, the stream starts anew at the step that
    is asked for: what it had made ahead is dropped.

    Arguments:
        stream: the backend, which both phases may share.
        share: what of each epoch is loaded.
    """

    def __init__(self, stream: Stream, share: Share) -> None:
        self.steps_per_epoch, self.images_per_step = share.steps_per_epoch, share.images_per_step
        self._stream, self._share = stream, share
        self._worker, self._epoch = 0, 0
        self._sequence: Sequence | None = None
        self._next: tuple[int, int] | None = None  # (worker, batches from its epoch 0 on)

    def start_epoch(self, worker: int, epoch: int) -> None:
        """Go to an epoch: its plan says what the batches hold."""
        self._worker, self._epoch = worker, epoch

    def load_(self, step: int, images: Tensor, labels: Tensor) -> None:
        """Write this rank's part of update `step` into [slots * micro-batch, ...] tensors."""
        batch = self._epoch * self.steps_per_epoch + step
        if self._stream.sequence is not self._sequence or self._next != (self._worker, batch):
            self._sequence = Sequence(self._share, self._worker, self._epoch, step)
            self._stream.start(self._sequence)
        self._stream.load_(images, labels)
        self._next = (self._worker, batch + 1)
