"""`bench watch`: follow a run from another process or machine, by reading its events.

Needs no torch, so that it starts at once.
"""

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from platform import node
from typing import Annotated

import tyro
from tyro.conf import Positional

from swap_fast.callbacks.events import Tail, seconds_of
from swap_fast.callbacks.progress import RunView, bars, duration, line_of, print_line, state_lines
from swap_fast.checkpoint.attempts import is_running
from swap_fast.shutdown import EXIT_STATUS

POLL_S = 0.5
SILENT_S = 5.0
"""After this time without an event the lock is asked whether a process still runs."""


@dataclass(frozen=True, kw_only=True)
class WatchOptions:
    """Follow a run, from any terminal that sees its folder; Ctrl-C leaves it as it is."""

    run: Annotated[Positional[str | None], tyro.conf.arg(metavar="[RUN]")] = None
    """Its name, the beginning of its name, or its folder; by default the newest of OUT."""
    out: Path = Path("results")
    """Results folder: runs are looked for in OUT/checkpoints."""
    once: bool = False
    """Print how far it is, and leave."""


def watch(options: WatchOptions) -> int:
    """Follow a run until it ends; the exit status: 0, 75 if it was interrupted, 1 if it failed.

    Raises:
        ValueError: there is no such run, or it has no event.
    """
    folder = find_run(options.run, options.out)
    follower = Follower(folder)
    follower.poll()
    if not follower.view.run:
        raise ValueError(f"watch: expected a run with events, got none in {folder}")
    try:
        if options.once:
            print(*follower.lines(), sep="\n")
        elif sys.stdout.isatty():
            _draw(follower)
        else:
            _print(follower)
    except KeyboardInterrupt:
        return 0
    return follower.exit_status()


def find_run(run: str | None, out: Path) -> Path:
    """The folder of a run by its path, its name, or the beginning of its name: the newest one.

    Raises:
        ValueError: there is none.
    """
    if run is not None and any(Path(run).glob("events*.jsonl")):
        return Path(run)
    found = {
        folder: max(path.stat().st_mtime for path in folder.glob("events*.jsonl"))
        for folder in (out / "checkpoints").glob("*")
        if folder.name.startswith(run or "") and any(folder.glob("events*.jsonl"))
    }
    if not found:
        what = "a run" if run is None else f"a run whose name begins with {run!r}"
        raise ValueError(f"watch: expected {what} in {out / 'checkpoints'}, found none; give --out")
    exact = out / "checkpoints" / (run or "")
    return exact if exact in found else max(found, key=lambda folder: found[folder])


class Follower:
    """A run's events so far, and whether a process still works on it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.view = folder, RunView()
        self._tail = Tail(folder)

    def poll(self, say: Callable[[str], None] = lambda line: None) -> None:
        """Read the new events, and print their lines."""
        events = self._tail.poll()
        if events is None:
            # The run is done, and its event files are merged: all events are read again.
            self.view, events, say = RunView(), self._tail.poll() or [], lambda line: None
        for event in events:
            self.view(event)
            if (line := line_of(event, self.view)) is not None:
                say(line)

    def is_over(self) -> bool:
        """Whether no more events will come."""
        ending = self.view.ending
        if self._is_done():
            return True
        if ending is None and (self._silent_s() < SILENT_S or self._is_between()):
            return False
        if not self._is_here():  # nor can its locks be asked: each part's last event says all
            return ending is not None and None not in self.view.parts.values()
        return not is_running(self.folder)

    def state(self) -> str:
        """In words: "running", "done", ..."""
        ending, silent = self.view.ending, duration(self._silent_s())
        if self._is_done():
            return "done"
        if is_running(self.folder):
            return "running"
        if ending is not None:
            words = ending.get("reason") or ending.get("error")
            return f"{ending['event']} ({words})"
        if self._is_between():
            return "between two parts: no process runs now"
        if not self._is_here():
            return f"on {self._host()}, last sign of life {silent} ago"
        return f"dead: no process runs it, last sign of life {silent} ago"

    def lines(self) -> list[str]:
        """Its state, each model's progress, the result, and how many events could not be read."""
        damaged = self._tail.damaged
        note = [f"{damaged} damaged lines of its events are left out"] if damaged else []
        return [self.head(), *state_lines(self.view), *self._result(), *note]

    def head(self) -> str:
        """Its name, state, start and machine, in one line."""
        began = self.view.began
        assert began is not None, "the first event is `began`"
        since = datetime.fromisoformat(began["time"]).astimezone().strftime("%Y-%m-%d %H:%M:%S")
        state = self.state()
        if self.is_over():
            for part in self.view.parts:
                self.view.stop(part)
        ranks = began["world_size"]
        processes = f"{ranks} process{'es' if ranks > 1 else ''}"
        return (
            f"{self.view.run}: {state}; started {since}, {processes}, {began['machine']['device']}"
        )

    def exit_status(self) -> int:
        """0 for a run that is done or goes on, 75 if it was interrupted, 1 if it failed."""
        ending = self.view.ending
        if not self.is_over() or self._is_done():
            return 0
        return EXIT_STATUS if ending is not None and ending["event"] == "interrupted" else 1

    def _is_done(self) -> bool:
        return self.view.ending is not None and self.view.ending["event"] == "done"

    def _result(self) -> list[str]:
        ending = self.view.ending
        if ending is None or not self._is_done():
            return []
        metric = self.view.plan.get("metric")

        def words(value: float | None) -> str:
            if value is None:
                return "not measured"
            return f"{value:.2%}" if metric is None else f"{value:.4g}"

        before, record = ending["accuracy_before_averaging"], ending.get("record")
        return [
            f"{metric or 'test accuracy'} {words(ending['test_accuracy'])}"
            + ("" if before is None else f", {words(before)} before averaging")
            + f"; training time {ending['training_time_s']:.1f} s"
            + ("" if record is None else f"; record: {record}")
        ]

    def _silent_s(self) -> float:
        """Seconds since its last event, or since the last heartbeat of a process."""
        last = [seconds_of(self.view.last)] if self.view.last is not None else []
        for path in self.folder.glob("attempt-*.json"):
            with suppress(FileNotFoundError):
                last.append(path.stat().st_mtime)
        return max(0.0, time.time() - max(last))

    def _is_between(self) -> bool:
        """Whether each part that was started has ended well, and the last one has not started."""
        return all(
            event is not None and event["event"] == "part_done"
            for event in self.view.parts.values()
        )

    def _host(self) -> str:
        return str((self.view.began or {})["host"])

    def _is_here(self) -> bool:
        """Whether the run is on this machine, which knows its locks."""
        return self._host() == node()


def _print(follower: Follower) -> None:
    """Print a line for each event."""
    if not follower.is_over():
        print(*follower.lines(), sep="\n", flush=True)
    while not follower.is_over():
        time.sleep(POLL_S)
        follower.poll(print_line)
    print(*follower.lines(), sep="\n", flush=True)


def _draw(follower: Follower) -> None:
    """Draw bars."""
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    def drawn() -> Group:
        return Group(Text(follower.head()), bars(follower.view))

    with Live(drawn(), auto_refresh=False, transient=True) as live:
        while not follower.is_over():
            time.sleep(POLL_S)
            follower.poll()
            live.update(drawn(), refresh=True)
    print(*follower.lines(), sep="\n")
