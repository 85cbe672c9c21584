"""The lock of a run's folder, and what its attempts leave."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from pathlib import Path
from threading import Timer

import pytest

from swap_fast.checkpoint.attempts import Attempt, is_running
from swap_fast.checkpoint.run_folder import RunInfo, enter_folder


def test_who_only_looks_keeps_no_attempt_from_beginning(tmp_path: Path) -> None:
    (tmp_path / "attempt-run.lock").touch()
    with open(tmp_path / "attempt-run.lock") as looked:
        fcntl.flock(looked, fcntl.LOCK_SH)
        Timer(0.2, lambda: fcntl.flock(looked, fcntl.LOCK_UN)).start()
        with Attempt(tmp_path):
            assert is_running(tmp_path)


def test_what_was_lost_is_known_from_the_signs_of_life(tmp_path: Path) -> None:
    class KilledError(Exception):
        """In place of a signal."""

    for name, lived_s, kept_s in (("run", 100.0, 60.0), ("worker3", 10.0, 0.0)):
        attempt = Attempt(tmp_path, name)
        attempt.keep(kept_s)
        with pytest.raises(KilledError), attempt:
            raise KilledError
        (path,) = tmp_path.glob(f"attempt-{name}-*.json")
        began = json.loads(path.read_text())["started"]
        os.utime(path, (began + lived_s, began + lived_s))
    with Attempt(tmp_path, "worker3") as again:  # ends well, and leaves nothing
        assert again.resumed
    with Attempt(tmp_path) as last:
        assert last.interruptions() == {"count": 2, "lost_s": pytest.approx(50.0, abs=1e-3)}


def test_what_was_lost_does_not_depend_on_the_machine_s_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is set back by a day while an attempt runs: 30 s of it, of which 10 are kept, are 20 s."""
    wall, passed = 1_800_000_000.0, 500.0
    monkeypatch.setattr(time, "time", lambda: wall)
    monkeypatch.setattr(time, "monotonic", lambda: passed)
    first = Attempt(tmp_path)
    wall, passed = wall - 86_400, passed + 20
    first.keep(10.0)
    passed += 10
    first.on_step(1)
    with pytest.raises(KeyboardInterrupt), first:
        raise KeyboardInterrupt
    with Attempt(tmp_path) as second:
        assert second.interruptions() == {"count": 1, "lost_s": pytest.approx(20.0, abs=1e-3)}


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks_is_used_without(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(file: object, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    class NoLock:
        def __init__(self, path: Path) -> None: ...

        def acquire(self, **how: float) -> None:
            no_locks(None, 0)

    monkeypatch.setattr("filelock.FileLock", NoLock)
    monkeypatch.setattr(fcntl, "flock", no_locks)
    (tmp_path / "attempt-worker1.lock").touch()
    assert not is_running(tmp_path)
    info = RunInfo(created="", settings={}, machine={})
    with (
        pytest.warns(UserWarning, match="its file system has no locks; start no second process"),
        enter_folder(tmp_path, info) as attempt,
    ):
        assert not attempt.resumed


def test_an_attempt_that_ends_well_leaves_nothing_to_tell(tmp_path: Path) -> None:
    with Attempt(tmp_path) as first:
        assert first.interruptions() is None
    with Attempt(tmp_path) as second:
        assert not second.resumed
        assert second.interruptions() is None
