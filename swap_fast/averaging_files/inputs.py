"""The files that are averaged: named one by one, or a run's folder, which knows their origin."""

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from swap_fast.averaging_files.weight_files import (
    TORCH_SUFFIXES,
    WeightFile,
    read_weights,
    require_alike,
)
from swap_fast.checkpoint.files import (
    MODEL,
    known_sha256,
    read_manifest,
)
from swap_fast.checkpoint.run_folder import RUN_FILE, read_run_info

_OF_A_RUN = re.compile(rf"(worker(\d+)-epoch(\d+)|final|phase1){re.escape(MODEL)}")

_SAVED = re.compile(r"worker(\d+)\.safetensors")


def files_of(paths: Sequence[Path | str | WeightFile]) -> list[Path | WeightFile]:
    """Files and models as they are; folders of runs and of saved results as their workers."""
    found: list[Path | WeightFile] = []
    for path in paths:
        if isinstance(path, WeightFile):
            found.append(path)
        else:
            found += workers_of(Path(path)) if Path(path).is_dir() else [Path(path)]
    if len(found) < 2:
        raise ValueError(f"expected two files or models, or more, to average, got {len(found)}")
    return found


def require_shares(
    shares: Sequence[float] | None, files: Sequence[WeightFile], soup: str
) -> Sequence[float]:
    """The weight of each file: those given, or all alike.

    Raises:
        ValueError: not one above 0 for each, or some beside a greedy soup.
    """
    if shares is None:
        return [1.0] * len(files)
    if soup == "greedy":
        raise ValueError("shares: expected none with a greedy soup, which finds its own")
    if len(shares) != len(files) or not all(0 < share < float("inf") for share in shares):
        raise ValueError(
            f"shares: expected a finite number > 0 for each of {len(files)} files, got "
            f"{', '.join(f'{share:g}' for share in shares)}"
        )
    return shares


def target(output: Path, files: Sequence[WeightFile], *, overwrite: bool) -> Path:
    """Where the average goes: checked before the work, not after it."""
    path = output if output.suffix else output.with_suffix(".safetensors")
    if path.suffix not in (".safetensors", *TORCH_SUFFIXES):
        raise ValueError(f"{path}: expected an output that ends in .safetensors, .pt or .pth")
    if path.exists():
        if any(os.path.samefile(path, file.path) for file in files):
            raise ValueError(f"{path}: expected an output beside the inputs, got one of them")
        if path.is_dir() or not overwrite:
            raise ValueError(
                f"{path}: is there already; choose another name, or give overwrite (--force)"
            )
    folder = next(each for each in path.absolute().parents if each.exists())
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise ValueError(f"{path}: expected a folder that can be written to, got {folder}")
    return path


def short_names(files: Sequence[WeightFile]) -> list[str]:
    """The files' names, or their paths where two have one name."""
    names = [file.path.name for file in files]
    return names if len(set(names)) == len(names) else [str(file.path) for file in files]


# What a run's folder knows: its workers, where they began, and their bytes.


def read_run(folder: Path) -> dict[str, Any]:
    """What the run of a folder is: its recipe, seed, data and execution.

    Raises:
        ValueError: it is not a run's folder.
    """
    try:
        info = read_run_info(folder)
    except ValueError as error:
        raise ValueError(f"{error}; or name the files that are to be averaged") from None
    if info is None or "recipe" not in info.settings:
        raise ValueError(
            f"{folder}: expected files of weights, a saved result or a run's folder such as "
            f"results/checkpoints/RUN, got a folder without workers or a recipe's {RUN_FILE}"
        )
    return info.settings


def workers_of(folder: Path) -> list[Path]:
    """The weights of each worker of a run of SWAP at the end of phase 2, by number.

    Arguments:
        folder: of a run, or one into which `swap` or `refine` saved a result.

    Raises:
        ValueError: no such folder, or one of a run whose workers are not all done.
    """
    saved = {int(m[1]): path for path in folder.iterdir() if (m := _SAVED.fullmatch(path.name))}
    if saved and not (folder / RUN_FILE).exists():
        return [saved[worker] for worker in sorted(saved)]
    recipe = read_run(folder)["recipe"]
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
    return workers


def require_one_origin(files: Sequence[WeightFile]) -> str | None:
    """The model that all of these began from, by its content, if their runs say.

    Raises:
        ValueError: they began from different ones, or the bytes of one are not those that its
            checkpoint's manifest names.
    """
    known = [(file, origin) for file in files if (origin := _origin_of(file)) is not None]
    for file, origin in known[1:]:
        first, expected = known[0]
        if origin != expected:
            raise ValueError(
                f"{file.path}: expected a worker that began from the same phase 1 as {first.path}, "
                f"{expected[:12]}, got one that began from {origin[:12]}; average workers of one "
                "run"
            )
    return known[0][1] if len(known) == len(files) else None


def find_start(
    named: Path | str | WeightFile | None, files: Sequence[WeightFile], key: str | None
) -> WeightFile | None:
    """Where all began: the model named, or phase 1 beside the first, if it is a run's."""
    if named is None:
        named = files[0].path.parent / f"phase1{MODEL}"
        of_a_run = _OF_A_RUN.fullmatch(files[0].path.name) and named.is_file()
        if not of_a_run or require_one_origin(files) is None:
            return None
    found = named if isinstance(named, WeightFile) else read_weights(Path(named), key)
    require_alike([files[0], found])
    require_one_origin([*files, found])
    return found


def _origin_of(file: WeightFile) -> str | None:
    if not file.path.exists():  # a model in memory
        return None
    expected = known_sha256(file.path)
    if expected is not None and expected != file.sha256:
        raise ValueError(
            f"{file.path}: expected the bytes with sha256 {expected[:12]}, as the run's manifests "
            f"say, got {file.sha256[:12]}: it was damaged or changed"
        )
    stems = [file.path.with_suffix("")]
    if _OF_A_RUN.fullmatch(file.path.name):
        stems.append(file.path.parent / "phase1")  # whose manifest each run keeps
    for stem in stems:
        with suppress(ValueError):
            return read_manifest(stem).about.origin
    return None
