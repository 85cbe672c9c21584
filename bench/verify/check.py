"""A check of `verify-gpu`, and the process that runs it."""

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from bench.runner.launch import end_with_parent


class UnavailableError(Exception):
    """The check needs what this machine does not have."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """On what a check runs, and how large it is."""

    device_type: str
    """"cpu" or "cuda"."""
    small: bool = False
    """Sizes for a CPU, or for a device with little time; every check has them."""
    data: Path | None = None
    """Where CIFAR-10 was found; None: synthetic images take its place."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing to confirm."""

    name: str
    claim: str
    """What is true if the check passes."""
    confirm: Callable[[Form], str]
    """Says what was seen, or raises AssertionError or UnavailableError. A function at the top level
    of a module, since another process runs it."""
    limit_s: float = 90.0
    """Seconds after which it has failed: several times what an H100 should take."""
    uses_data: bool = False
    """Whether it reads CIFAR-10."""


START_S = 120.0
"""Seconds that a process may take to import torch."""
KILLED_S = 10.0
"""Seconds that a process may take to end; one that waits in a driver may never end."""


class NoAnswerError(RuntimeError):
    """The function took too long, or its process ended; the process is gone."""


class CheckProcess:
    """A process in which checks run one after another, and which is killed with all it started.

    A check may hang in the driver or in NCCL, where no exception reaches it, or end the process;
    and after a CUDA error every later call of the same process fails too. So a failed process is
    replaced: one is started when there is work and none runs, and none is left after the block.
    """

    def __init__(self) -> None:
        self._pipe: Connection | None = None
        self._process: BaseProcess | None = None

    def __enter__(self) -> "CheckProcess":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.end()
        else:
            self.kill()

    def start(self) -> None:
        """Start a process where there is none.

        Raises:
            NoAnswerError: it does not start in time, or dies.
        """
        if self._pipe is not None:
            return
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,))
        self._process.start()
        theirs.close()
        self._answer(START_S)

    def ask(self, work: Callable[..., Any], *arguments: Any, limit_s: float) -> Any:
        """Call `work`, a function at the top level of a module, in the process.

        Arguments:
            limit_s: how long it may take, once the process has started.

        Raises:
            UnavailableError: raised by `work`.
            RuntimeError: `work` raised another error; the message names its type.
            NoAnswerError: `work` did not end in time, or the process died.
        """
        self.start()
        assert self._pipe is not None, "it was started"
        with contextlib.suppress(BrokenPipeError):  # the process died: `_answer` says so
            self._pipe.send((work, arguments))
        how, value = self._answer(limit_s)
        if how == "missing":
            raise UnavailableError(value)
        if how == "error":
            raise RuntimeError(value)
        return value

    def _answer(self, limit_s: float) -> tuple[str, Any]:
        assert self._pipe is not None, "it was started"
        assert self._process is not None, "it was started"
        if not wait([self._pipe, self._process.sentinel], limit_s):
            self.kill()
            raise NoAnswerError(f"no answer within {limit_s:g} s")
        try:
            if not self._pipe.poll():
                raise EOFError
            return self._pipe.recv()
        except (EOFError, ConnectionResetError):
            self._process.join(KILLED_S)
            code = self._process.exitcode
            self.kill()
            raise NoAnswerError(f"its process {_ending(code)}") from None

    def end(self) -> None:
        """Let the process end, if there is one, and kill what is left of its group."""
        if self._pipe is not None and self._process is not None:
            self._pipe.close()
            self._process.join(KILLED_S)
        self.kill()

    def kill(self) -> None:
        """Kill the process, if there is one, and every process of its group."""
        process, self._process, self._pipe = self._process, None, None
        if process is None or process.pid is None:
            return
        with contextlib.suppress(ProcessLookupError):  # the group is empty
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.join(KILLED_S)


def _ending(code: int | None) -> str:
    if code is None:
        return "no longer answers"
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"


def _serve(pipe: Connection) -> None:
    """Call each function that is sent, until the other end closes."""
    os.setpgid(0, 0)  # the ranks and loaders that a check starts are in this group too
    # What a check or a library prints is not part of the command's output.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    end_with_parent()
    pipe.send(("value", None))  # it has started
    while True:
        try:
            work, arguments = pipe.recv()
        except EOFError:
            return
        try:
            answer = "value", work(*arguments)
        except UnavailableError as missing:
            answer = "missing", str(missing)
        except Exception as error:  # whatever a GPU answers is a finding
            text = " ".join(str(error).split())[:300]
            answer = "error", f"{type(error).__name__}: {text}"
        pipe.send(answer)
