"""What an average of files is made of and where it goes: checked before the work, not after it."""

import os
from collections.abc import Sequence
from pathlib import Path

from swap_fast.averaging_files.evaluate import Trial
from swap_fast.averaging_files.origins import finished_run, require_one_origin, start_beside
from swap_fast.averaging_files.weight_files import WeightFile, read_weights, require_alike


def files_of(paths: Sequence[Path | str]) -> list[Path]:
    """Files as they are, folders of runs as their workers."""
    found: list[Path] = []
    for path in map(Path, paths):
        found += finished_run(path).workers if path.is_dir() else [path]
    if len(found) < 2:
        raise ValueError(f"expected two files of weights or more to average, got {len(found)}")
    return found


def target(output: Path, files: Sequence[WeightFile], *, overwrite: bool) -> Path:
    """Where the average goes: checked before the work, not after it."""
    path = output if output.suffix else output.with_suffix(".safetensors")
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: expected an output that ends in .safetensors")
    if path.exists():
        if any(os.path.samefile(path, file.path) for file in files):
            raise ValueError(f"{path}: expected an output beside the inputs, got one of them")
        if path.is_dir() or not overwrite:
            raise ValueError(f"{path}: is there already; choose another name, or give --force")
    folder = next(each for each in path.absolute().parents if each.exists())
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise ValueError(f"{path}: expected a folder that can be written to, got {folder}")
    return path


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
    fit = len(shares) == len(files) and all(0 < share < float("inf") for share in shares)
    if not fit:
        raise ValueError(
            f"shares: expected a finite number > 0 for each of {len(files)} files, got "
            f"{', '.join(f'{share:g}' for share in shares)}"
        )
    return shares


def require_settings(
    soup: str, trial: Trial | None, select_on: str, basin_points: int, *, require_basin: bool
) -> None:
    """Refuse settings that want data which is not there, or that mean nothing.

    Raises:
        ValueError: says which.
    """
    splits = () if trial is None else trial.data.splits
    if soup == "greedy" and select_on not in splits:
        raise ValueError(
            f"greedy: expected {select_on} data to choose by, got {' and '.join(splits) or 'none'}"
            + (
                "; what is chosen by the test images fits them: give held_out data, or accept that "
                "by --select-on test"
                if "test" in splits
                else "; give a net and data"
            )
        )
    if basin_points not in (0, *range(3, 1001)):
        raise ValueError(f"basin_points: expected 3 to 1,000, or 0 for none, got {basin_points}")
    if require_basin and not (splits and basin_points):
        raise ValueError("require_basin: expected a net, data to test it on, and basin points")


def find_start(
    named: Path | str | None, files: list[WeightFile], key: str | None
) -> WeightFile | None:
    """Where all began, if it is known and is a model of the same form."""
    beside = start_beside(files)
    if named is None and (beside is None or require_one_origin(files) is None):
        return None
    found = read_weights(Path(named or beside or ""), key)
    require_alike([files[0], found])
    require_one_origin([*files, found])
    return found


def short_names(files: Sequence[WeightFile]) -> list[str]:
    """The files' names, or their paths where two have one name."""
    names = [file.path.name for file in files]
    return names if len(set(names)) == len(names) else [str(file.path) for file in files]
