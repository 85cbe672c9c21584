"""A check of `verify-gpu`, and the process that runs it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.runner.process import RemoteFunction


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


class CheckProcess(RemoteFunction):
    """A process in which checks run one after another.

    After a CUDA error every later call of the same process fails too, so a failed process is
    replaced: `start` and `call` start one where none runs.
    """

    def __init__(self) -> None:
        super().__init__(_make_call)

    def start(self) -> None:
        """Start a process where none runs, and wait until it is ready.

        Raises:
            NoAnswerError: it does not start in time, or dies.
        """
        if not self.is_running:
            super().start()
            self.receive(START_S)

    def call(self, work: Callable[..., Any], *arguments: Any, limit_s: float) -> Any:
        """Call `work`, a function at the top level of a module, in the process.

        Arguments:
            limit_s: how long it may take, once the process has started.

        Raises:
            UnavailableError: raised by `work`.
            ValueError, RuntimeError, NoAnswerError: as `RemoteFunction.receive`.
        """
        self.start()
        self.send((work, arguments))
        answer = self.receive(limit_s)
        if isinstance(answer, UnavailableError):
            raise answer
        return answer


def _make_call() -> Callable[[tuple[Callable[..., Any], tuple[Any, ...]]], Any]:
    return _call


def _call(request: tuple[Callable[..., Any], tuple[Any, ...]]) -> Any:
    """The result of a function; what it lacks is a result too, after which the process goes on."""
    work, arguments = request
    try:
        return work(*arguments)
    except UnavailableError as missing:
        return missing
