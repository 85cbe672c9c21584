"""The events of a run: one JSON object a line, in files of its folder.

Each process appends to a file of its own, so that no two ever write into one: a shared file system
keeps no order among machines that append. When the run is done, one file has the lines of all. This
module needs no torch, so that a run can be watched from anywhere.
"""

import json
import os
import zlib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from swap_fast.files import write_file

SCHEMA = 2
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


def _for_file(event: Event) -> bytes:
    """An event's line in a file: its `crc32` is that of the line without it, and shows damage."""
    line = to_line(event)
    return f'{line[:-1]},"crc32":{zlib.crc32(line.encode())}}}\n'.encode()


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
        os.write(self._file, _for_file(event))

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
        self.damaged = 0
        """Lines that were left out: half of one, as a killed process leaves it, or others."""
        if from_end:
            self.poll()

    def poll(self) -> list[Event] | None:
        """What is new since the last call, in the order of time.

        None: files were put together, or removed, so that all events come again from the next call.
        """
        paths = {p.name: p for p in self._folder.glob("events*.jsonl") if p.name != self._without}
        if self._read.keys() - paths.keys():
            self._read, self.damaged = {}, 0
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
            lines = content[:whole].splitlines()
            events = [event for line in lines if (event := _event_of(line)) is not None]
            self.damaged += len(lines) - len(events)
            found += events
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
    write_file(folder / MERGED, b"".join(map(_for_file, read_events(folder))))
    for path in paths:
        path.unlink(missing_ok=True)


def _event_of(line: bytes) -> Event | None:
    """The event of a line; None of one that is damaged or of another schema."""
    try:
        event: Event = json.loads(line)
        if event["schema"] == SCHEMA and event.pop("crc32") == zlib.crc32(to_line(event).encode()):
            return event
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    return None
