"""Evaluates points in several processes, and writes each to disk as soon as it is done. No torch.

An interrupted measurement resumes: the file of finished points begins with a line of all settings,
and a file with other settings is written again from the start.
"""

import json
import multiprocessing
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol

from swap_fast.callbacks.progress import duration

Values = list[float]
"""Of one point."""

BETWEEN_LINES_S = 10.0
"""Seconds from one line of progress to the next."""


class Task(Protocol):
    """Evaluates points by their numbers, after it was sent to a process."""

    def open_(self, rank: int) -> Callable[[int], Values]:
        """Prepare in the process of this rank; returns the function of a point's number."""


class PointsFile:
    """The finished points of a measurement: JSON lines, the first of which is the key.

    Arguments:
        key: everything that the values depend on.
    """

    def __init__(self, path: Path, key: Mapping[str, Any]) -> None:
        self.path, self._header = path, json.dumps({"key": key}, sort_keys=True)

    def read(self) -> dict[int, Values]:
        """The finished points by their numbers; none if the file has another key."""
        if not self.path.exists():
            return {}
        header, *lines = self.path.read_text(encoding="utf-8").split("\n")
        if header != self._header:
            return {}
        points = {}
        for line in lines[:-1]:  # what follows the last line break was cut short
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
    task: Task,
    num_points: int,
    file: PointsFile,
    *,
    processes: int,
    say: Callable[[str], None],
) -> list[Values]:
    """Evaluate points 0 to `num_points` - 1 except those in the file; all values in order.

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
        with file.writing() as append, _serving(task, min(processes, len(waiting))) as served:
            while served:
                for connection in wait([*served]):
                    assert isinstance(connection, Connection)
                    number, values = _receive(connection, served[connection])
                    if number is None:
                        report.start()
                    else:
                        points[number] = values
                        append(number, values)
                        report.one_done()
                    if waiting:
                        connection.send(waiting.popleft())
                    else:
                        connection.close()
                        del served[connection]
    return [points[number] for number in range(num_points)]


@contextmanager
def _serving(task: Task, processes: int) -> Iterator[dict[Connection, BaseProcess]]:
    """Processes by their connections; they end with these, or with this process."""
    context = multiprocessing.get_context("spawn")  # a fork would share the device's state
    served: dict[Connection, BaseProcess] = {}
    started: list[BaseProcess] = []
    try:
        for rank in range(processes):
            here, there = context.Pipe()
            process: BaseProcess = context.Process(
                target=_serve, args=(there, task, rank), daemon=True
            )
            process.start()
            there.close()
            served[here] = process
            started.append(process)
        yield served
    except BaseException:
        for process in started:
            process.terminate()
        raise
    finally:
        for connection in served:
            connection.close()
        for process in started:
            process.join()


def _serve(connection: Connection, task: Task, rank: int) -> None:
    """Evaluate each point that is sent, until the other end closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process handles a Ctrl-C
    try:
        evaluate = task.open_(rank)
        connection.send((None, []))
        while True:
            number = connection.recv()
            connection.send((number, evaluate(number)))
    except (EOFError, BrokenPipeError):
        return
    except Exception as error:
        connection.send((None, f"{type(error).__name__}: {' '.join(str(error).split())}"))


def _receive(connection: Connection, process: BaseProcess) -> tuple[int | None, Values]:
    """A point's number and values; no number if the process has just become ready."""
    try:
        number, values = connection.recv()
    except (EOFError, ConnectionResetError):
        process.join()
        raise RuntimeError(f"a process ended with code {process.exitcode}") from None
    if isinstance(values, str):
        kind, _, message = values.partition(": ")
        raise ValueError(message) if kind == "ValueError" else RuntimeError(values)
    return number, values


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
