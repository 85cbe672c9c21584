"""Follows a run in the terminal, from another process or machine: by its events, without a touch.

Needs no torch, and starts at once.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from platform import node

from tyro.conf import Positional

from swap_fast.callbacks.events import Tail, seconds_of
from swap_fast.callbacks.progress import RunView, bars, duration, line_of, print_line, state_lines
from swap_fast.checkpoint.attempts import is_running
from swap_fast.training.shutdown import EXIT_STATUS

POLL_S = 0.5
SILENT_S = 5.0
"""After so long without a word it is asked whether a process is still at the run."""


@dataclass(frozen=True, kw_only=True)
class WatchOptions:
    """Follow a run, from any terminal that sees its folder; Ctrl-C leaves it as it is."""

    run: Positional[str | None] = None
    """Its name, the beginning of its name, or its folder; by default the newest of OUT."""
    out: Path = Path("results")
    """Results folder: runs are looked for in OUT/checkpoints."""
    once: bool = False
    """Print how far it is, and leave."""


def watch(options: WatchOptions) -> int:
    """Follow a run until it ends; the exit status: 0, 75 if it was interrupted, 1 if it failed.

    Raises:
        ValueError: there is no such run, or it tells nothing.
    """
    folder = find_run(options.run, options.out)
    follower = Follower(folder)
    follower.poll()
    if not follower.view.run:
        raise ValueError(f"watch: expected a run that tells of itself, got no event in {folder}")
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
    """The folder of a run by its name, the beginning of it, or its path: the newest that fits.

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
    """What is known of a run, and whether somebody is at it.

    Arguments:
        folder: the run's.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.view = folder, RunView()
        self._tail = Tail(folder)

    def poll(self, say: Callable[[str], None] = lambda line: None) -> None:
        """Take in what is new, and say it."""
        events = self._tail.poll()
        if events is None:
            # Now that it is done one file has the lines of all, which come anew.
            self.view, events, say = RunView(), self._tail.poll() or [], lambda line: None
        for event in events:
            self.view(event)
            if (line := line_of(event, self.view)) is not None:
                say(line)

    def is_over(self) -> bool:
        """Whether nothing more is to be expected."""
        ending = self.view.ending
        if ending is not None and ending["event"] == "done":
            return True
        if ending is None and (self._silent_s() < SILENT_S or self._is_between()):
            return False
        return self._is_here() and not is_running(self.folder)

    def state(self) -> str:
        """In words: "running", "done", ..."""
        ending, silent = self.view.ending, duration(self._silent_s())
        if ending is not None and ending["event"] == "done":
            return "done"
        if is_running(self.folder):
            return "running"
        if ending is not None:
            words = ending.get("reason") or ending.get("error")
            return f"{ending['event']} ({words})"
        if self._is_between():
            return "between two parts: no process is at it now"
        if not self._is_here():
            return f"on {self._host()}, last heard of {silent} ago"
        return f"dead: no process is at it, and it was last heard of {silent} ago"

    def lines(self) -> list[str]:
        """How far it is."""
        return [self.head(), *state_lines(self.view), *self._result()]

    def head(self) -> str:
        """What it is, since when, and whether somebody is at it."""
        began = self.view.began
        assert began is not None, "a run that tells of itself has begun"
        since = datetime.fromisoformat(began["time"]).astimezone().strftime("%Y-%m-%d %H:%M:%S")
        state = self.state()
        if self.is_over():
            for part in self.view.parts:
                self.view.stop(part)
        ranks = began["world_size"]
        processes = f"{ranks} process{'es' if ranks > 1 else ''}"
        return f"{self.view.run}: {state}; begun {since}, {processes}, {began['machine']['device']}"

    def exit_status(self) -> int:
        """By how it ended."""
        ending = self.view.ending
        if not self.is_over() or (ending is not None and ending["event"] == "done"):
            return 0
        return EXIT_STATUS if ending is not None and ending["event"] == "interrupted" else 1

    def _result(self) -> list[str]:
        ending = self.view.ending
        if ending is None or ending["event"] != "done":
            return []
        before = ending["accuracy_before_averaging"]
        words = "" if before is None else f", {before:.2%} before averaging"
        return [
            f"test accuracy {ending['test_accuracy']:.2%}{words}; training time "
            f"{ending['training_time_s']:.1f} s; record: {ending['record']}"
        ]

    def _silent_s(self) -> float:
        """How long nothing was heard of it: no event, and no sign of life of an attempt at it."""
        heard = [seconds_of(self.view.last)] if self.view.last is not None else []
        for path in self.folder.glob("attempt-*.json"):
            try:
                heard.append(path.stat().st_mtime)
            except FileNotFoundError:
                continue
        return max(0.0, time.time() - max(heard))

    def _is_between(self) -> bool:
        """Whether each part that was begun ended well, and the last one has not begun."""
        return all(
            event is not None and event["event"] == "part_done"
            for event in self.view.parts.values()
        )

    def _host(self) -> str:
        return str((self.view.began or {})["host"])

    def _is_here(self) -> bool:
        """Whether the run is this machine's, where its locks can be seen."""
        return self._host() == node()


def _print(follower: Follower) -> None:
    """Lines, as they come."""
    if not follower.is_over():
        print(*follower.lines(), sep="\n", flush=True)
    while not follower.is_over():
        time.sleep(POLL_S)
        follower.poll(print_line)
    print(*follower.lines(), sep="\n", flush=True)


def _draw(follower: Follower) -> None:
    """Bars, in their place."""
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
