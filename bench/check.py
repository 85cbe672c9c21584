"""What a check of `verify-gpu` is."""

from collections.abc import Callable
from dataclasses import dataclass


class UnavailableError(Exception):
    """The check needs what this machine does not have."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing to confirm."""

    name: str
    """In one word."""
    claim: str
    """What holds where the check passes."""
    confirm: Callable[[str], str]
    """Given "cpu" or "cuda": says what was seen, or raises AssertionError or UnavailableError."""
