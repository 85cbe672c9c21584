"""Points evaluated in processes of their own, each kept on disk as soon as it is done. No torch.

What was interrupted goes on where it was: the file of finished points begins with a line that says
what they are points of, and a file of anything else is begun anew.
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
"""What is measured at one point."""

BETWEEN_LINES_S = 10.0
"""Seconds from one line of progress to the next."""


class Task(Protocol):
    """What can be sent to a process and there evaluates points by their numbers."""

    def open_(self, rank: int) -> Callable[[int], Values]:
        """Get ready, on the process of this number."""


class PointsFile:
    """The finished points of one survey: JSON lines, the first of which says what of.

    Arguments:
        path: the file; its folder is made.
        key: all that the values depend on.
    """

    def __init__(self, path: Path, key: Mapping[str, Any]) -> None:
        self.path, self._header = path, json.dumps({"key": key}, sort_keys=True)

    def read(self) -> dict[int, Values]:
        """The finished points by their numbers; none where the file is of something else."""
        if not self.path.exists():
            return {}
        header, *lines = self.path.read_text(encoding="utf-8").split("\n")
        if header != self._header:
            return {}
        points = {}
        for line in lines[:-1]:  # what follows the last line's end was cut short
            point = json.loads(line)
            points[int(point["point"])] = [float(value) for value in point["values"]]
        return points

    @contextmanager
    def writing(self) -> Iterator[Callable[[int, Values], None]]:
        """Write the finished points again, whole lines only, and give what appends one."""
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
    """Evaluate points 0 to `num_points` - 1, but those that the file has; their values in order.

    Raises:
        ValueError: a process raised one.
        RuntimeError: a process failed otherwise, or was ended from outside.
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
    """Processes by the connections to them; they end with the connections, or with this process."""
    context = multiprocessing.get_context("spawn")  # a fork would share a device's state
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
    """Evaluate the points that come in, until no more can come."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process decides what a Ctrl-C ends
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
    """A point's number and values; no number where the process has just become ready."""
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
    """Says now and then how many points are done, and how long the rest will take."""

    def __init__(self, done: int, total: int, say: Callable[[str], None]) -> None:
        self._done, self._total, self._say = done, total, say
        self._before, self._started, self._last = done, 0.0, 0.0

    def start(self) -> None:
        """Measure time from here, where a process is ready."""
        if not self._started:
            self._started = self._last = time.monotonic()

    def one_done(self) -> None:
        """Count a point."""
        self._done += 1
        now = time.monotonic()
        if now - self._last < BETWEEN_LINES_S or self._done == self._total:
            return
        self._last = now
        each_s = (now - self._started) / (self._done - self._before)
        rest = in_words(each_s * (self._total - self._done))
        self._say(f"{self._done} of {self._total} points, {rest} to go")


def in_words(seconds: float) -> str:
    """A duration as a line of progress has it: "about 3 min"."""
    return f"about {duration(seconds)}"
