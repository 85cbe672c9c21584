"""A function in a process of its own: its answers, its errors, how the process ended. No torch."""

import contextlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from tempfile import NamedTemporaryFile
from typing import Any, Self

from bench.runner.launch import end_with_parent
from swap_fast.config.checks import one_line

ENDS_S = 10.0
"""Seconds that a process may take to end; one that waits in a driver may never end."""


class NoAnswerError(RuntimeError):
    """The function took too long, or its process ended; the process is gone."""


class RemoteFunction:
    """A function that `make(*arguments)` returns in a process of its own, and that is called there.

    A call may hang in a driver, where no exception reaches it, or end the process. A process is
    killed with all that it started; none is left after the `with` block. What it prints is dropped;
    what it writes to standard error is shown when it has ended.

    Arguments:
        make: at the top level of a module, since it is sent to the process.
    """

    def __init__(self, make: Callable[..., Callable[[Any], Any]], *arguments: object) -> None:
        self._made_by = make, arguments
        self._process: BaseProcess | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.end()
        else:
            self.kill()

    @property
    def is_running(self) -> bool:
        """Whether the process was started, and did not end or fail to answer since."""
        return self._process is not None

    def start(self) -> None:
        """Start the process, without waiting for it: its first answer, None, says it is ready."""
        context = multiprocessing.get_context("spawn")  # a fork would share the device's state
        self.connection, theirs = context.Pipe()
        self._errors = NamedTemporaryFile("r", errors="replace")  # noqa: SIM115 (`kill` closes it)
        self._process = context.Process(
            target=_serve, args=(theirs, self._errors.name, *self._made_by)
        )
        self._process.start()
        theirs.close()

    def send(self, request: object) -> None:
        """Call the function with one argument; `receive` waits for the answer."""
        with contextlib.suppress(BrokenPipeError):  # the process ended: `receive` says so
            self.connection.send(request)

    def receive(self, limit_s: float | None = None) -> Any:
        """The answer to the oldest request that has none.

        Raises:
            ValueError: the function raised one.
            RuntimeError: the function raised another error; the message names its type.
            NoAnswerError: no answer within `limit_s` seconds, or the process ended.
        """
        assert self._process is not None, "it was started"
        if not wait([self.connection, self._process.sentinel], limit_s):
            self.kill()
            raise NoAnswerError(f"no answer within {limit_s:g} s")
        try:
            if not self.connection.poll():
                raise EOFError
            value, error = self.connection.recv()
        except (EOFError, ConnectionResetError):
            self._process.join(ENDS_S)
            ending = _ending(self._process.exitcode)
            said = self.kill().split("\n")
            last_line = next((f": {line.strip()}" for line in said[::-1] if line.strip()), "")
            raise NoAnswerError(f"its process {ending}{last_line}") from None
        if error is not None:
            raise error
        return value

    def end(self) -> None:
        """Let the process end, if there is one, and kill what is left of its group."""
        if self._process is not None:
            self.connection.close()
            self._process.join(ENDS_S)
        self.kill()

    def kill(self) -> str:
        """Kill the process, if there is one, and every process of its group.

        Returns:
            What they wrote to standard error, which is shown here too.
        """
        process, self._process = self._process, None
        if process is None or process.pid is None:
            return ""
        with contextlib.suppress(ProcessLookupError):  # the group is empty
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.join(ENDS_S)
        self.connection.close()
        with self._errors as file:
            said = file.read()
        sys.stderr.write(said)
        return said


def _ending(code: int | None) -> str:
    if code is None:
        return "no longer answers"
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"


def _serve(
    connection: Connection,
    errors: str,
    make: Callable[..., Callable[[Any], Any]],
    arguments: tuple[object, ...],
) -> None:
    """Make the function, and call it for each request until the other end closes."""
    os.setpgid(0, 0)  # with the ranks and loaders that the function starts; Ctrl-C is not for them
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(errors, os.O_WRONLY | os.O_APPEND), 2)
    end_with_parent()
    with contextlib.suppress(EOFError, BrokenPipeError):
        function, error = _try(make, *arguments)
        connection.send((None, error))
        while True:
            connection.send(_try(function, connection.recv()))


def _try(function: Callable[..., Any], *arguments: object) -> tuple[Any, Exception | None]:
    """The function's result, or its error in one line."""
    try:
        return function(*arguments), None
    except Exception as error:  # whatever a device answers is a finding
        text = one_line(error)
        if type(error) is ValueError:
            return None, ValueError(text)
        return None, RuntimeError(f"{type(error).__name__}: {text}")
