"""What a check of `verify-gpu` is."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


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
    """In one word."""
    claim: str
    """What holds where the check passes."""
    confirm: Callable[[Form], str]
    """A function of a module, since another process runs it: says what was seen, or raises
    AssertionError or UnavailableError."""
    limit_s: float = 90.0
    """Seconds after which it has failed: several times what an H100 should take."""
    uses_data: bool = False
    """Whether it looks at CIFAR-10."""
