"""The events of a run: one JSON object a line, in files of its folder.

Each process appends to a file of its own, so that no two ever write into one: a shared file system
keeps no order among machines that append. When the run is done, one file has the lines of all. This
module needs no torch, so that a run can be watched from anywhere.
"""

import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from swap_fast.files import write_file

SCHEMA = 1
"""Of the lines."""

Event = dict[str, Any]
"""One line: schema, time (UTC, ISO 8601), part (of the run that the process does), rank, event (its
kind), and what belongs to the kind."""

Listener = Callable[[Event], None]
"""Gets events: any function of one."""

MERGED = "events.jsonl"
"""The lines of all processes, once a run is done."""
ENDINGS = ("done", "part_done", "interrupted", "failed")
"""Kinds of event after which a process emits no more."""


def make_event(kind: str, *, part: str = "run", rank: int = 0, **values: Any) -> Event:
    """An event that happens now."""
    now = datetime.now(UTC).isoformat(timespec="microseconds")
    return {"schema": SCHEMA, "time": now, "part": part, "rank": rank, "event": kind, **values}


def file_name(part: str, rank: int) -> str:
    """Of one process's events."""
    return f"events-{part}-rank{rank}.jsonl"


def seconds_of(event: Event) -> float:
    """When it happened, in seconds since 1970."""
    return datetime.fromisoformat(event["time"]).timestamp()


def to_line(event: Event) -> str:
    """An event as its line, without the line's end."""
    return json.dumps(event, separators=(",", ":"))


class EventFile:
    """Appends events to the file of one process; a listener.

    A line is one write of the system: a process that is killed leaves at most half a line, the
    last, which readers leave out.

    Raises:
        OSError: the folder cannot be written to.
    """

    def __init__(self, folder: Path, *, part: str, rank: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / file_name(part, rank)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        size = os.fstat(self._file).st_size
        if size and os.pread(self._file, 1, size - 1) != b"\n":
            os.write(self._file, b"\n")  # a former process was killed within a line

    def __call__(self, event: Event) -> None:
        os.write(self._file, f"{to_line(event)}\n".encode())

    def close(self) -> None:
        os.close(self._file)


class Tail:
    """Reads a folder's events as they are written.

    Arguments:
        folder: the run's; it may not be there yet.
        without: the name of a file that is left out: the reader's own.
        from_end: leave out what is there already.
    """

    def __init__(self, folder: Path, *, without: str = "", from_end: bool = False) -> None:
        self._folder, self._without = folder, without
        self._read: dict[str, int] = {}
        if from_end:
            self.poll()

    def poll(self) -> list[Event] | None:
        """What is new since the last call, in the order of time.

        None: files were put together, or removed, so that all events come again from the next call.
        """
        paths = {p.name: p for p in self._folder.glob("events*.jsonl") if p.name != self._without}
        if self._read.keys() - paths.keys():
            self._read = {}
            return None
        found: list[Event] = []
        for name, path in sorted(paths.items()):
            begin = self._read.get(name, 0)
            try:
                with open(path, "rb") as file:
                    file.seek(begin)
                    content = file.read()
            except FileNotFoundError:
                continue
            whole = content.rfind(b"\n") + 1
            self._read[name] = begin + whole
            found += _events(content[:whole])
        return sorted(found, key=lambda event: event["time"])


def read_events(folder: Path) -> list[Event]:
    """All events of a run's folder in the order of time, each once."""
    found = {to_line(event): event for event in Tail(folder).poll() or []}
    return list(found.values())


def merge_events(folder: Path) -> None:
    """Put the events of all processes of a run that is done into one file.

    A process that is killed while it does so leaves lines in both places, which are then read once.

    Raises:
        OSError: the folder cannot be written to; the files are then as they were.
    """
    paths = sorted(folder.glob("events-*.jsonl"))
    if not paths:
        return
    lines = "".join(f"{to_line(event)}\n" for event in read_events(folder))
    write_file(folder / MERGED, lines.encode())
    for path in paths:
        path.unlink(missing_ok=True)


def _events(content: bytes) -> list[Event]:
    """The events of whole lines; what is no event of this schema is left out."""
    found = []
    for line in content.splitlines():
        try:
            event = json.loads(line)
            datetime.fromisoformat(event["time"])
        except (ValueError, TypeError, KeyError, RecursionError):
            continue
        if event.get("schema") == SCHEMA and isinstance(event.get("event"), str):
            found.append(event)
    return found
