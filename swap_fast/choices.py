"""A name among names, and the device that is meant; else a line that helps. No torch at import."""

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch


def choose(what: str, name: str, names: Iterable[str]) -> str:
    """The name, where it is one of the names.

    Raises:
        ValueError: it is not; says up to three that may have been meant, the nearest first.
    """
    names = list(names)
    if name in names:
        return name
    *others, last = difflib.get_close_matches(name, names) or [""]
    close = f"{', '.join(others)} or {last}" if others else last
    hint = f"did you mean {close}?" if close else f"expected one of {', '.join(names)}"
    raise ValueError(f"unknown {what} {name!r}; {hint}")


def choose_device(device: str) -> Literal["cpu", "cuda"]:
    """The type of device for "auto", "cpu" or "cuda".

    Raises:
        ValueError: another name, or "cuda" without a CUDA device.
    """
    import torch

    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device: expected auto, cpu or cuda, got {device!r}")
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise ValueError("device: expected a CUDA device, found none; choose cpu")
    return "cuda" if available and device != "cpu" else "cpu"


def as_device(device: "torch.device | str") -> "torch.device":
    """The device of that name.

    Raises:
        ValueError: torch knows none of that name, or there is none here.
    """
    import torch

    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"device: expected one that is here, such as cpu, got {str(device)!r}: {reason}"
        ) from None
