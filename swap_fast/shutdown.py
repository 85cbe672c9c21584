"""Graceful shutdown: a signal ends the run after a step, on all ranks alike, with a checkpoint."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from swap_fast.distributed import Comm

EXIT_STATUS = 75
"""Of a run that was interrupted and can be resumed: sysexits.h's "temporary failure, try again"."""
AGREEMENT_S = 10.0
"""How long a rank that got a signal waits until the others have got one too."""
SIGNAL_INTERVAL_S = 1.0
"""Signals closer together are one: a terminal sends Ctrl-C to all processes, and the launcher
passes it on."""


class InterruptedRunError(BaseException):
    """A signal ended the run; what it had done is in its checkpoints.

    No `Exception`, as KeyboardInterrupt is none: it is raised within a user's code too, whose
    `except Exception` must not keep the run going.

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
            got a signal are never further apart than a step.
    """

    def __init__(self, synchronize: Callable[[], None] = lambda: None) -> None:
        self._synchronize = synchronize
        self._requested_at: float | None = None
        self._training = False
        self._process = os.getpid()

    @property
    def requested(self) -> bool:
        """Whether this process got a signal."""
        return self._requested_at is not None

    @contextmanager
    def installed(self, *, always_uninstall: bool = False) -> Iterator[None]:
        """Handle both signals within it; outside the main thread Python has no way to.

        Arguments:
            always_uninstall: bring the former handlers back even after a signal, for a script or
                notebook that continues; else a second signal still ends the process at once.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {
            number: signal.signal(number, self._on_signal)
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        try:
            yield
        finally:
            if always_uninstall or not self.requested:
                for number, handler in before.items():
                    signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._requested_at is not None:
            if now - self._requested_at > SIGNAL_INTERVAL_S:
                os._exit(EXIT_STATUS)
            return
        self._requested_at = now
        if not self._training and os.getpid() != self._process:
            raise KeyboardInterrupt  # a loader's process, which then ends without a message
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
        """Whether any rank of `comm` got a signal; all must ask, and all get the same answer.

        At an epoch's end, after its evaluation and checkpoint: a rank that ended there alone would
        leave the others waiting in the next epoch's first update.
        """
        return comm.any(self.requested)

    def ends_after(self, comm: "Comm", where: str, step: int) -> bool:
        """Whether all ranks of `comm` end after this step of `where`, a phase and worker.

        Ranks that share updates get their signals at different moments. Each publishes its step
        then, and all end one step after the last of these: no rank can be further by the time it
        knows, since each waits for its device from then on.

        Raises:
            InterruptedRunError: the others got no signal, so that this rank ends alone, and the
                last checkpoint stands.
        """
        if self._requested_at is None:
            return False
        if comm.world_size == 1:
            return True
        self._synchronize()
        last = comm.last_step_requested(where, step)
        if last is None and time.monotonic() > self._requested_at + AGREEMENT_S:
            raise InterruptedRunError("the other processes got no signal to end")
        return last is not None and step > last


NEVER = GracefulShutdown()
"""Handles no signal."""
