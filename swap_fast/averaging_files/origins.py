"""What a run's folder knows of its files of weights: the workers, where they began, their bytes."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swap_fast.averaging_files.weight_files import WeightFile
from swap_fast.checkpoint.files import MANIFEST, MODEL, read_manifest
from swap_fast.checkpoint.run_folder import RUN_FILE, read_run_info

PHASE_1 = f"phase1{MODEL}"

_OF_A_RUN = re.compile(rf"(worker(\d+)-epoch(\d+)|final|phase1){re.escape(MODEL)}")


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """The workers of one run of SWAP."""

    folder: Path
    """The run's."""
    workers: tuple[Path, ...]
    """The weights of each at the end of phase 2, by number."""
    description: dict[str, Any]
    """Its recipe, seed, data and execution."""


def finished_run(folder: Path) -> FinishedRun:
    """The workers that a run's folder holds.

    Raises:
        ValueError: no folder of a run of SWAP, or one whose workers are not all done.
    """
    description = read_run(folder)
    recipe = description["recipe"]
    if "num_workers" not in recipe or recipe["phase2"].get("cycles", 1) > 1:
        raise ValueError(
            f"{folder}: expected a run of SWAP with one model a worker, got {recipe.get('name')}; "
            "name the files that are to be averaged"
        )
    last = recipe["phase2"]["max_epochs"]
    workers = [folder / f"worker{w}-epoch{last}{MODEL}" for w in range(recipe["num_workers"])]
    missing = [path.name for path in workers if not path.is_file()]
    if missing:
        raise ValueError(
            f"{folder}: expected {len(workers)} workers after {last} epochs, {missing[0]} is not "
            "there; let the run end, or name the files that are to be averaged"
        )
    return FinishedRun(folder=folder, workers=tuple(workers), description=description)


def read_run(folder: Path) -> dict[str, Any]:
    """What the run of a folder is.

    Raises:
        ValueError: it is not a run's folder.
    """
    try:
        info = read_run_info(folder)
    except ValueError as error:
        raise ValueError(f"{error}; or name the files that are to be averaged") from None
    if info is None or "recipe" not in info.settings:
        raise ValueError(
            f"{folder}: expected files of weights or a run's folder such as "
            f"results/checkpoints/RUN, got a folder without a recipe's {RUN_FILE}"
        )
    return info.settings


def origin_of(file: WeightFile) -> str | None:
    """Names the model that a run's worker began from, by its content; None where unknown.

    Raises:
        ValueError: the bytes are not those that the checkpoint's manifest names.
    """
    stem = file.path.with_suffix("")
    try:
        expected = read_manifest(stem).sha256_by_ending[MODEL]
    except ValueError:
        expected = None
    if expected is not None:
        if expected != file.sha256:
            raise ValueError(
                f"{file.path}: expected the bytes with sha256 {expected[:12]}, as {stem.name}"
                f"{MANIFEST} says, got {file.sha256[:12]}: it was damaged or changed"
            )
        return _origin(stem)
    # A run that is done keeps phase 1's manifest alone.
    of_a_run = _OF_A_RUN.fullmatch(file.path.name)
    return _origin(file.path.parent / "phase1") if of_a_run else None


def require_one_origin(files: list[WeightFile]) -> str | None:
    """The model that all of these began from, if their runs say.

    Raises:
        ValueError: they began from different ones, or as `origin_of`.
    """
    known = [(file, origin) for file in files if (origin := origin_of(file)) is not None]
    for file, origin in known[1:]:
        first, expected = known[0]
        if origin != expected:
            raise ValueError(
                f"{file.path}: expected a worker that began from the same phase 1 as {first.path}, "
                f"{expected[:12]}, got one that began from {origin[:12]}; average workers of one "
                "run"
            )
    return known[0][1] if len(known) == len(files) else None


def start_beside(files: list[WeightFile]) -> Path | None:
    """Phase 1's weights, where the first file's own run has kept them."""
    path = files[0].path.parent / PHASE_1
    return path if _OF_A_RUN.fullmatch(files[0].path.name) and path.is_file() else None


def _origin(stem: Path) -> str | None:
    try:
        return read_manifest(stem).about.origin
    except ValueError:
        return None
