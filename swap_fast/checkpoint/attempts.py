"""Who is at a run: the lock of its folder, and of each attempt its start and its last heartbeat.

This module needs no torch, so that a run can be watched from anywhere.
"""

import errno
import fcntl
import json
import os
import time
import warnings
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from pathlib import Path

from swap_fast.files import write_file
from swap_fast.record import Interruptions
from swap_fast.training.callback import Callback

LOCK = "attempt-{}.lock"
HEARTBEAT_S = 1.0
"""An attempt's file is touched at most this often."""


NO_LOCKS = (errno.ENOLCK, errno.ENOSYS)
"""What a lock meets on a file system that has none, such as some network ones."""


class RunningError(ValueError):
    """Another process is at a run, or at this part of it."""


def locked(path: Path, timeout_s: float = -1.0) -> AbstractContextManager[object]:
    """Hold a lock's file from now on; without a lock, and with a warning, where there are none.

    Arguments:
        timeout_s: how long it is tried; below 0: for ever.

    Raises:
        filelock.Timeout: another process holds it.
    """
    from filelock import FileLock  # a slow import, of no use to `is_running`

    try:
        return FileLock(path).acquire(timeout=timeout_s, poll_interval=0.05)
    except NotImplementedError:  # an older filelock's word for ENOSYS
        pass
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    warnings.warn(
        f"{path.parent}: its file system has no locks; start no second process there meanwhile",
        stacklevel=1,  # one place, so that Python says it once
    )
    return nullcontext()


class Attempt(Callback):
    """One process's attempt at a run: a file in the run's folder, touched while it trains.

    What an attempt did after its last checkpoint is lost with it, and so is its set-up, since the
    next one counts its own. Nothing in the checkpoints can tell how long that was; the file can:
    its time of change is the attempt's start plus how long it has lived by the monotonic clock, so
    that neither a change of the machine's time nor a file server's clock is in their difference.
    An attempt that ends well deletes its file.

    Arguments:
        folder: the run's.
        name: of the part of the run; parts may run side by side.

    Raises:
        RunningError: another process is at it.
    """

    def __init__(self, folder: Path, name: str = "run") -> None:
        from filelock import Timeout

        folder.mkdir(parents=True, exist_ok=True)
        self._held = ExitStack()
        try:
            # Tried for a second, since `is_running` holds it for an instant.
            self._held.enter_context(locked(folder / LOCK.format(name), timeout_s=1.0))
        except Timeout:
            raise RunningError(
                f"{folder.name}: expected a run that nobody runs, got one that another process is "
                "at; wait for it"
            ) from None
        earlier = sorted(folder.glob(f"attempt-{name}-*.json"))
        self.resumed = bool(earlier)
        """Whether an earlier attempt ended badly."""
        self._folder = folder
        self._path = folder / f"attempt-{name}-{len(earlier) + 1:04d}.json"
        self._started, self._began = time.time(), time.monotonic()
        self._touched = self._began
        self.keep(0.0)

    def __enter__(self) -> "Attempt":
        """The process is at it."""
        return self

    def __exit__(self, error: object, *_: object) -> None:
        """The process is no longer at it."""
        if error is None:
            self._path.unlink(missing_ok=True)
        self._held.close()

    def on_step(self, images: int) -> None:
        """Show that the process lives; cheap enough for every step."""
        now = time.monotonic()
        if now - self._touched > HEARTBEAT_S:
            self._touched = now
            self._touch()

    def keep(self, seconds: float) -> None:
        """Note how many seconds of its training are in checkpoints."""
        content = {"started": self._started, "kept_s": seconds, "process": os.getpid()}
        write_file(self._path, (json.dumps(content) + "\n").encode())
        self._touch()

    def _touch(self) -> None:
        alive_at = self._started + time.monotonic() - self._began
        with suppress(OSError):  # a sign of life is not worth the run's end
            os.utime(self._path, (alive_at, alive_at))

    def interruptions(self) -> Interruptions | None:
        """How many attempts at any part ended badly, and the seconds lost; None where none did.

        Each attempt's seconds are by its own monotonic clock, and never negative.
        """
        others = [path for path in self._folder.glob("attempt-*.json") if path != self._path]
        if not others:
            return None
        return {"count": len(others), "lost_s": sum(map(_lost_s, others))}


def is_running(folder: Path, *, without: str | None = None) -> bool:
    """Whether a process is at this run, or at a part of it; needs no right to write.

    Where locks cannot be asked, nobody knows of one.

    Arguments:
        without: a part that does not count: the caller's own.
    """
    for path in folder.glob(LOCK.format("*")):
        if path.name == LOCK.format(without):
            continue
        try:
            with open(path) as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            continue
    return False


def _lost_s(path: Path) -> float:
    try:
        content = json.loads(path.read_bytes())
        return max(0.0, path.stat().st_mtime - float(content["started"]) - float(content["kept_s"]))
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return 0.0
