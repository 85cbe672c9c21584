"""The attempts at a run: when each began, and its last sign of life, for what was lost with it."""

import fcntl
import json
import os
import time
from pathlib import Path

from swap_fast.record import Interruptions

LOCK = "attempt-{}.lock"
BEAT_S = 1.0
"""At most so often an attempt says that it lives."""


class Attempt:
    """One process's try at a run: a file in the run's folder, touched while it trains.

    What an attempt did after its last checkpoint is lost with it, and so is its set-up, since the
    next one counts its own. Nothing in the checkpoints can tell how long that was; the file can.
    An attempt that ends well takes its file away.

    Arguments:
        folder: the run's.
        name: of what is tried; parts of a run may be tried side by side.

    Raises:
        ValueError: another process is at it.
    """

    def __init__(self, folder: Path, name: str = "run") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(folder / LOCK.format(name), os.O_RDWR | os.O_CREAT)
        if not _is_locked(self._lock):
            os.close(self._lock)
            raise ValueError(
                f"{folder.name}: expected a run that nobody runs, got one that another process is "
                "at; wait for it"
            )
        earlier = sorted(folder.glob(f"attempt-{name}-*.json"))
        self.goes_on = bool(earlier)
        self._folder = folder
        self._path = folder / f"attempt-{name}-{len(earlier) + 1:04d}.json"
        self._began, self._beaten = time.time(), time.monotonic()
        self.keep(0.0)

    def __enter__(self) -> "Attempt":
        """The process is at it."""
        return self

    def __exit__(self, error: object, *_: object) -> None:
        """The process is no longer at it."""
        if error is None:
            self._path.unlink(missing_ok=True)
        os.close(self._lock)

    def beat(self) -> None:
        """Say that it lives; cheap enough for every step."""
        now = time.monotonic()
        if now - self._beaten > BEAT_S:
            self._beaten = now
            self._path.touch()

    def keep(self, seconds: float) -> None:
        """Note how many seconds of its training are in checkpoints."""
        told = {"began": self._began, "kept_s": seconds, "process": os.getpid()}
        part = self._path.with_suffix(".part")
        part.write_text(json.dumps(told) + "\n")
        part.replace(self._path)

    def interruptions(self) -> Interruptions | None:
        """How many attempts at any part ended badly, and the seconds lost; None where none did."""
        others = [path for path in self._folder.glob("attempt-*.json") if path != self._path]
        if not others:
            return None
        return {"count": len(others), "lost_s": sum(map(_lost_s, others))}


def _is_locked(lock: int) -> bool:
    """Lock it; tried again for a second, since who asks `is_running` holds it for an instant."""
    deadline = time.monotonic() + 1.0
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)


def is_running(folder: Path) -> bool:
    """Whether a process is at this run, or at a part of it."""
    for path in folder.glob(LOCK.format("*")):
        try:
            with open(path) as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            continue
        except BlockingIOError:
            return True
    return False


def _lost_s(path: Path) -> float:
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        return max(0.0, path.stat().st_mtime - float(told["began"]) - float(told["kept_s"]))
    except (OSError, ValueError, TypeError, KeyError):
        return 0.0
