"""Where a run is kept: a folder of its checkpoints, begun once and gone on with."""

import json
import re
from pathlib import Path
from typing import Any

from swap_fast.checkpoint.files import MANIFEST, MODEL, write_file
from swap_fast.distributed import Comm
from swap_fast.record import plain

SETTINGS = "settings.json"


def enter_folder(folder: Path, settings: dict[str, Any], comm: Comm, *, resume: bool) -> None:
    """Begin a run in a folder, or see that the one there is the same.

    Raises:
        ValueError: a run is there and may not go on, or has other settings.
    """
    problem = comm.on_first(lambda: _enter(folder, plain(settings), resume))
    if problem is not None:
        raise ValueError(problem)


def _enter(folder: Path, settings: dict[str, Any], resume: bool) -> str | None:
    path = folder / SETTINGS
    try:
        former = json.loads(path.read_bytes()) if path.exists() else None
    except ValueError as error:
        return f"folder: expected settings in {path}, got {error}; choose another folder"
    if former is None:
        try:
            write_file(path, (json.dumps(settings, indent=1) + "\n").encode())
        except OSError as error:
            return f"folder: expected one that can be written to, got {error}"
        return None
    if not resume:
        return (
            f"folder: expected one without a run, got {folder} with {SETTINGS}; pass resume=True "
            "to go on with it, or choose another folder"
        )
    for name in sorted(former.keys() | settings.keys()):
        if former.get(name) != settings.get(name):
            return (
                f"{name}: expected {former.get(name)} as the run in {folder} has, got "
                f"{settings.get(name)}; choose another folder for other settings"
            )
    return None


def leave_only_ends(folder: Path, cycle_epochs: int) -> None:
    """Of a run that is done delete weights of epochs that nothing needs to go on."""
    for path in folder.glob(f"worker*{MODEL}"):
        match = re.fullmatch(r"worker\d+-epoch(\d+)", path.name.removesuffix(MODEL))
        manifest = path.with_name(path.name.removesuffix(MODEL) + MANIFEST)
        if match and not manifest.exists() and int(match[1]) % cycle_epochs:
            path.unlink(missing_ok=True)
