"""Evaluates points in several processes, and writes each to disk as soon as it is done. No torch.

An interrupted measurement resumes: the file of finished points begins with a line of all settings,
and a file with other settings is written again from the start.
"""

import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from bench.runner.process import RemoteFunction
from swap_fast.callbacks.progress import duration

Values = list[float]
"""Of one point."""

BETWEEN_LINES_S = 10.0
"""Seconds from one line of progress to the next."""


class PointsFile:
    """The finished points of a measurement: JSON lines, the first of which is the key.

    Arguments:
        key: everything that the values depend on.
    """

    def __init__(self, path: Path, key: Mapping[str, Any]) -> None:
        self.path, self._header = path, json.dumps({"key": key}, sort_keys=True)

    def read(self) -> dict[int, Values]:
        """The finished points by their numbers, damaged lines left out; none with another key."""
        if not self.path.exists():
            return {}
        header, *lines = self.path.read_text("utf-8", errors="replace").split("\n")
        if header != self._header:
            return {}
        points = {}
        for line in lines[:-1]:  # what follows the last line break was cut short
            with suppress(ValueError, KeyError, TypeError):
                point = json.loads(line)
                points[int(point["point"])] = [float(value) for value in point["values"]]
        return points

    @contextmanager
    def writing(self) -> Iterator[Callable[[int, Values], None]]:
        """Write the finished points again, whole lines only; yields a function that adds one."""
        points = self.read()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "w", encoding="utf-8") as file:

            def append(number: int, values: Values) -> None:
                file.write(json.dumps({"point": number, "values": values}) + "\n")
                file.flush()

            file.write(self._header + "\n")
            for number, values in points.items():
                append(number, values)
            yield append


def evaluate_points(
    make: Callable[[int], Callable[[int], Values]],
    num_points: int,
    file: PointsFile,
    *,
    processes: int,
    say: Callable[[str], None],
) -> list[Values]:
    """Evaluate points 0 to `num_points` - 1 except those in the file; all values in order.

    Arguments:
        make: called with its rank in each process; returns the function of a point's number.

    Raises:
        ValueError: a process raised one.
        RuntimeError: a process raised another error, or was killed.
    """
    points = file.read()
    waiting = deque(number for number in range(num_points) if number not in points)
    if points and waiting:
        say(f"{len(points)} of {num_points} points are done already")
    if waiting:
        report = _Report(len(points), num_points, say)
        with file.writing() as append, ExitStack() as stack:
            # The point that each process evaluates; None while it gets ready.
            at_work: dict[Any, tuple[RemoteFunction, int | None]] = {}
            for rank in range(min(processes, len(waiting))):
                process = stack.enter_context(RemoteFunction(make, rank))
                process.start()
                at_work[process.connection] = process, None
            while at_work:
                for connection in wait([*at_work]):
                    process, number = at_work.pop(connection)
                    values = process.receive()
                    if number is None:
                        report.start()
                    else:
                        points[number] = values
                        append(number, values)
                        report.one_done()
                    if waiting:
                        at_work[connection] = process, waiting.popleft()
                        process.send(at_work[connection][1])
                    else:
                        process.end()
    return [points[number] for number in range(num_points)]


class _Report:
    """Prints every few seconds how many points are done, and how long the rest will take."""

    def __init__(self, done: int, total: int, say: Callable[[str], None]) -> None:
        self._done, self._total, self._say = done, total, say
        self._before, self._started, self._last = done, 0.0, 0.0

    def start(self) -> None:
        """Start the clock, when the first process is ready."""
        if not self._started:
            self._started = self._last = time.monotonic()

    def one_done(self) -> None:
        self._done += 1
        now = time.monotonic()
        if now - self._last < BETWEEN_LINES_S or self._done == self._total:
            return
        self._last = now
        each_s = (now - self._started) / (self._done - self._before)
        rest = in_words(each_s * (self._total - self._done))
        self._say(f"{self._done} of {self._total} points, {rest} to go")


def in_words(seconds: float) -> str:
    """A duration in a line of progress: "about 3 min"."""
    return f"about {duration(seconds)}"
