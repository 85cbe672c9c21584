"""The run folders of a results folder: what each run is, whose phase 1 serves, which goes on."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from bench.hardware.machine import describe_machine
from bench.runner.attempts import is_running
from swap_fast.callbacks.progress import Form
from swap_fast.callbacks.trackers import TrackerName
from swap_fast.checkpoint.files import write_file
from swap_fast.checkpoint.run_folder import last_of
from swap_fast.config.execution import Execution
from swap_fast.config.recipe import Recipe
from swap_fast.record import Code, Data, Flag, now, plain, run_id

# What every rank of a run is told.


Part = Literal["all", "phase1", "workers"]
"""The whole run; its phase 1 alone, or some workers' phase 2 from there, kept in its folder."""


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """What every rank of a run is told."""

    recipe: Recipe
    """What to run."""
    overrides: tuple[str, ...]
    """What of it the command line changed."""
    seed: int
    """Of weights, orders and augmentation."""
    data: Path | None
    """Where the data set was found; None for the synthetic one."""
    out: Path
    """The results folder."""
    execution: Execution
    """How the arithmetic is done."""
    threads: int
    """CPU threads a process."""
    code: Code
    """Version and commit, looked up before the run: files may change under a long one."""
    started: float
    """`time.time()` when the run was asked for, to know what starting and importing took."""
    notes: tuple[str, ...] = ()
    """What the record's reader should know."""
    flags: tuple[Flag, ...] = ()
    """What keeps the run out of every table."""
    held_out: int = 0
    """Test on so many of the training images, which are not trained on; 0: on the test images."""
    skip_bad_files: bool = False
    """Go on without the files of a tree that cannot be used."""
    resume: Literal["no", "if_same", "yes"] = "no"
    """Go on with a run that was interrupted: if it was begun with the same settings; or refuse if
    it was not, and leave one alone that is done."""
    part: Part = "all"
    """What of the run this process does."""
    workers: tuple[int, ...] | None = None
    """Of phase 2, run or averaged by one process alone; None: all."""
    folder: Path | None = None
    """The run's folder, where it is known; else it is found, or a new one."""
    share_phase1: bool = False
    """Take phase 1 over from an earlier run that had the same."""
    start: Path | None = None
    """The folder whose phase 1 is taken over, where it is known; named by the run that made it."""
    keep_epochs: bool = False
    """Keep the weights of every epoch."""
    profile: bool = False
    """Trace some steps of each phase."""
    timeout_s: float = 300.0
    """How long a collective may last."""
    first: bool = True
    """Whether it is its session's first run, which says what holds for all of them."""
    progress: Form = "auto"
    """How progress is shown on standard output."""
    track: tuple[TrackerName, ...] = ()
    """Trackers that are told of the run."""


FILE = "run.json"

_NOT_OF_PHASE_1 = frozenset(
    {
        *("name", "summary", "table", "paper_scale", "target_accuracy", "loader"),
        *("phase2", "num_workers", "keep_momentum"),
        *("batch_norm_batch_size", "batch_norm_augmented"),
    }
)
"""Fields of a recipe that phase 1 does not depend on."""

Description = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class RunDir:
    """Where a run is kept, and from where it goes on."""

    folder: Path
    """Its own."""
    created: str
    """When it first began: UTC, ISO 8601."""
    start: Path | None
    """Another run's folder, whose phase 1 it takes over."""
    record: Path | None
    """It is done, and this is its record."""


def describe_run(request: RunSpec, data: Data, world_size: int) -> Description:
    """What a run is, as its folder keeps it; beside that, when it began."""
    machine = describe_machine(request.execution.device_type)
    return plain(
        {
            "created": now(),
            "recipe": asdict(request.recipe),
            "seed": request.seed,
            "data": data,
            "execution": asdict(request.execution),
            "machine": {
                **{name: machine[name] for name in ("device_type", "device", "device_count")},
                "torch": machine["libraries"]["torch"],
                "world_size": world_size,
                "threads": request.threads,
            },
        }
    )


def find_place(request: RunSpec, description: Description) -> RunDir:
    """A new folder; asked to resume, that of the run which was interrupted, or which is done.

    Raises:
        ValueError: the interrupted run was begun with other settings, data or arithmetic.
    """
    created, out = description["created"], request.out
    if request.folder is not None:
        begun = read_description(request.folder) or description
        _require_same(request.folder, begun, description)
        done = out / "runs" / f"{request.folder.name}.json"
        return RunDir(
            folder=request.folder,
            created=begun["created"],
            start=None,
            record=done if done.exists() else None,
        )
    folder = out / "checkpoints" / run_id(request.recipe.name, request.seed, created)
    start, record = request.start, None
    if request.share_phase1:
        start = find_start(out / "checkpoints", description)
    if request.resume != "no":
        found = find_unfinished(out, description, only_same=request.resume == "if_same")
        if found is None and request.resume == "yes":
            record = find_finished(out, description)
            found = None if record is None else out / "checkpoints" / record.stem
        if found is not None:
            folder = found
            created = (read_description(folder) or description)["created"]
    return RunDir(folder=folder, created=created, start=start, record=record)


def write_description(folder: Path, description: Description) -> None:
    """Put it into the run's folder."""
    write_file(folder / FILE, (json.dumps(description, indent=1) + "\n").encode())


def read_description(folder: Path) -> Description | None:
    """What the folder's run is; None where it does not say."""
    try:
        content = json.loads((folder / FILE).read_bytes())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def find_start(checkpoints: Path, description: Description) -> Path | None:
    """The oldest run with the same phase 1, done: seed, data, execution and machine included."""
    wanted = _phase1(description)
    for folder in sorted(checkpoints.glob("*"), key=lambda path: path.name.rsplit("-", 1)[-1]):
        found = read_description(folder)
        if found is None or _phase1(found) != wanted:
            continue
        position = last_of(folder, phase=1)
        if position is not None and position.stopped_by is not None:
            return folder
    return None


def _phase1(description: Description) -> Description:
    """What of a run decides its phase 1 and the time that it takes."""
    recipe = {k: v for k, v in description.get("recipe", {}).items() if k not in _NOT_OF_PHASE_1}
    return {**description, "recipe": recipe, "created": None}


def find_unfinished(out: Path, description: Description, *, only_same: bool) -> Path | None:
    """The newest run of this recipe and seed that has no record yet and that nobody runs.

    Arguments:
        only_same: overlook runs that were begun with other settings, data or arithmetic.

    Raises:
        ValueError: the newest was begun with others, and is not to be overlooked.
    """
    name, seed = description["recipe"]["name"], description["seed"]
    for folder, begun in reversed(_folders_of(out / "checkpoints", name, seed)):
        if (out / "runs" / f"{folder.name}.json").exists() or is_running(folder):
            continue
        if not only_same:
            _require_same(folder, begun, description)
        if not _differences(begun, description):
            return folder
    return None


def _require_same(folder: Path, begun: Description, description: Description) -> None:
    """Refuse to go on with a run that was begun with other settings, data or arithmetic."""
    changed = _differences(begun, description)
    if changed:
        raise ValueError(
            f"--resume: {folder.name} was begun with {'; '.join(changed)}; give it the same "
            "again, or start anew with another --out or without --resume"
        )


def newest_unfinished(out: Path, name: str, seed: int) -> Path | None:
    """The newest run of this recipe and seed that has no record yet and that nobody runs."""
    for folder, _ in reversed(_folders_of(out / "checkpoints", name, seed)):
        if not (out / "runs" / f"{folder.name}.json").exists() and not is_running(folder):
            return folder
    return None


def find_finished(out: Path, description: Description) -> Path | None:
    """The record of a run that is this one, done; None where there is none."""
    for folder, found in _folders_of(
        out / "checkpoints", description["recipe"]["name"], description["seed"]
    ):
        record = out / "runs" / f"{folder.name}.json"
        if record.exists() and not _differences(found, description):
            return record
    return None


def _folders_of(checkpoints: Path, name: str, seed: int) -> list[tuple[Path, Description]]:
    """The folders of a recipe's runs with this seed, oldest first, with what they say."""
    found = [(folder, read_description(folder)) for folder in sorted(checkpoints.glob("*"))]
    return [
        (folder, about)
        for folder, about in found
        if about is not None
        and (about.get("recipe", {}).get("name"), about.get("seed")) == (name, seed)
    ]


def _differences(begun: Description, now: Description) -> list[str]:
    """What was set otherwise: "recipe.phase1.peak_lr 1.0, not 1.2". The machine may be another."""
    a, b = (
        dict(_leaves({k: v for k, v in each.items() if k not in ("machine", "created")}))
        for each in (begun, now)
    )
    return [
        f"{name} {a.get(name)!r}, not {b.get(name)!r}"
        for name in sorted(a.keys() | b.keys())
        if a.get(name) != b.get(name)
    ]


def _leaves(value: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, each in value.items():
            yield from _leaves(each, f"{at}.{name}" if at else name)
    else:
        yield at, value
