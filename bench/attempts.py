"""The attempts at a run: when each began, and its last sign of life, for what was lost with it."""

import fcntl
import json
import os
import time
from pathlib import Path

LOCK = "attempt.lock"
BEAT_S = 1.0
"""At most so often an attempt says that it lives."""


class Attempt:
    """One process's try at a run: a file in the run's folder, touched while it trains.

    What an attempt did after its last checkpoint is lost with it, and so is its set-up, since the
    next one counts its own. Nothing in the checkpoints can tell how long that was; the file can.

    Arguments:
        folder: the run's.

    Raises:
        ValueError: another process is at it.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise ValueError(
                f"{folder.name}: expected a run that nobody runs, got one that another process is "
                "at; wait for it"
            ) from None
        earlier = sorted(folder.glob("attempt-*.json"))
        # How many there were before this one, and the seconds that they lived.
        self.earlier, self.earlier_s = len(earlier), sum(map(_lived_s, earlier))
        self._path = folder / f"attempt-{len(earlier) + 1:04d}.json"
        self._beaten = time.monotonic()
        self._path.write_text(json.dumps({"began": time.time()}) + "\n", encoding="utf-8")

    def __enter__(self) -> "Attempt":
        """The process is at it."""
        return self

    def __exit__(self, *_: object) -> None:
        """The process is no longer at it."""
        os.close(self._lock)

    def beat(self) -> None:
        """Say that it lives; cheap enough for every step."""
        now = time.monotonic()
        if now - self._beaten > BEAT_S:
            self._beaten = now
            self._path.touch()

    def interruptions(self, restored_s: float) -> dict[str, float] | None:
        """What a record says of them: how many, and the seconds lost; None where there were none.

        Arguments:
            restored_s: of what the earlier attempts did, what the checkpoints had kept.
        """
        if not self.earlier:
            return None
        return {"count": self.earlier, "lost_s": max(0.0, self.earlier_s - restored_s)}


def is_running(folder: Path) -> bool:
    """Whether a process is at this run."""
    try:
        with open(folder / LOCK) as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _lived_s(path: Path) -> float:
    try:
        began = float(json.loads(path.read_text(encoding="utf-8"))["began"])
    except (ValueError, TypeError, KeyError):
        return 0.0  # ended while it wrote this file: it had done nothing yet
    return max(0.0, path.stat().st_mtime - began)
