"""Being told to end: at the boundary of a step, on all ranks alike, with a checkpoint."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from swap_fast.distributed import Comm

EXIT_STATUS = 75
"""Of a run that was told to end and can go on: sysexits.h's "temporary failure, try again"."""
AGREEMENT_S = 10.0
"""How long a rank that was told waits for the others to be told too."""
ONE_TELLING_S = 1.0
"""A terminal's Ctrl-C reaches every process, and the launcher passes it on: that is one telling."""


class InterruptedRunError(Exception):
    """The run was told to end; what it had done is in its checkpoints.

    Arguments:
        together: all ranks that share updates end here, by agreement.
    """

    def __init__(self, message: str, *, together: bool = False) -> None:
        super().__init__(message)
        self.together = together


class GracefulShutdown:
    """SIGTERM and SIGINT: the first ends the run after a step, the second at once.

    While nothing is trained there is nothing to save: the first then ends the run there.

    Arguments:
        synchronize: waits until the device has done all work given to it, so that ranks which
            were told are never further apart than a step.
    """

    def __init__(self, synchronize: Callable[[], None] = lambda: None) -> None:
        self._synchronize = synchronize
        self._told_at: float | None = None
        self._training = False

    @property
    def told(self) -> bool:
        """Whether this process was told to end."""
        return self._told_at is not None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within it, signals are heeded as above; then as before, unless it was told to end."""
        before = {
            number: signal.signal(number, self._on_signal)
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        try:
            yield
        finally:
            if not self.told:  # else it is ending, and the next signal is still the second
                for number, handler in before.items():
                    signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._told_at is not None:
            if now - self._told_at > ONE_TELLING_S:
                os._exit(EXIT_STATUS)
            return
        self._told_at = now
        if not self._training:
            raise InterruptedRunError(signal.Signals(number).name)

    @contextmanager
    def training(self) -> Iterator[None]:
        """Around a phase's epochs: a signal waits until `ends_after` or `ends_here` is asked."""
        self._training = True
        try:
            yield
        finally:
            self._training = False

    def ends_here(self, comm: "Comm") -> bool:
        """Whether any rank of `comm` was told to end; all must ask, and all get the same answer.

        At an epoch's end, after its evaluation and checkpoint: a rank that ended there alone would
        leave the others waiting in the next epoch's first update.
        """
        return comm.any(self.told)

    def ends_after(self, comm: "Comm", where: str, step: int) -> bool:
        """Whether all ranks of `comm` end after this step of `where`, a phase and worker.

        Ranks that share updates are told at different moments. Each says at which step it was,
        and the last of these steps plus one is the one after which they end: no rank can be
        further by the time it knows, since each waits for its device from then on.

        Raises:
            InterruptedRunError: the others were not told, so that this rank ends alone, and the
                last checkpoint stands.
        """
        if self._told_at is None:
            return False
        if comm.world_size == 1:
            return True
        self._synchronize()
        last = comm.last_step_told(where, step)
        if last is None and time.monotonic() > self._told_at + AGREEMENT_S:
            raise InterruptedRunError("the other processes were not told to end")
        return last is not None and step > last


NEVER = GracefulShutdown()
"""Listens to nothing."""
