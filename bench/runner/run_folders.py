"""A recipe's run among the folders of OUT/checkpoints: a new one, one to resume, or one done."""

import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from bench.hardware.machine import describe_machine
from swap_fast.callbacks.events import merge_events
from swap_fast.callbacks.progress import Form
from swap_fast.callbacks.trackers import TrackerName
from swap_fast.checkpoint.attempts import is_running
from swap_fast.checkpoint.run_folder import (
    RunInfo,
    differences,
    last_of,
    prune,
    read_run_info,
    require_same,
)
from swap_fast.config.execution import Execution
from swap_fast.config.recipe import Recipe
from swap_fast.config.step_choice import StepChoice
from swap_fast.record import Code, Data, Flag, now, plain, run_id

Part = Literal["all", "phase1", "workers"]
"""The whole run; its phase 1 alone, or some workers' phase 2 from there, kept in its folder."""


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """A run's settings, the same for every rank."""

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
    cores: tuple[int, ...] = ()
    """The CPU cores of which each process takes one for itself; empty: all run on any."""
    code: Code
    """Version and commit, looked up before the run: files may change under a long one."""
    started: float
    """`time.monotonic()`, which a machine's processes share, when the run was asked for: to know
    what starting and importing took."""
    notes: tuple[str, ...] = ()
    """What the record's reader should know."""
    flags: tuple[Flag, ...] = ()
    """What keeps the run out of every table."""
    held_out: int = 0
    """Test on this many of the training images, which are not trained on; 0: on the test images."""
    skip_bad_files: bool = False
    """Leave out the files of a tree that cannot be used."""
    resume: Literal["no", "if_same", "yes"] = "no"
    """Resume a run that was interrupted: if it was started with the same settings; or refuse if it
    was not, and leave one alone that is done."""
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
    """Trackers that the run's events are sent to."""


@dataclass(frozen=True, kw_only=True)
class RunDir:
    """Where a run is kept, and from where it is resumed."""

    folder: Path
    """Its own."""
    created: str
    """When it was started: UTC, ISO 8601."""
    start: Path | None
    """Another run's folder, whose phase 1 it takes over."""
    record: Path | None
    """Of a run that is done."""
    step_choice: StepChoice | None = None
    """The step that it started with, or the run whose phase 1 it takes over."""


def describe_run(spec: RunSpec, data: Data, world_size: int) -> RunInfo:
    """What a run is, as its folder keeps it."""
    machine = describe_machine(spec.execution.device_type)
    settings = {
        "recipe": asdict(spec.recipe),
        "seed": spec.seed,
        "data": data,
        "execution": spec.execution.settings(),
    }
    return RunInfo(
        created=now(),
        settings=plain(settings),
        machine={
            **{name: machine[name] for name in ("device_type", "device", "device_count")},
            "torch": machine["libraries"]["torch"],
            "world_size": world_size,
            "threads": spec.threads,
        },
    )


def find_place(spec: RunSpec, info: RunInfo) -> RunDir:
    """A new folder; asked to resume, that of the run which was interrupted, or which is done.

    Raises:
        ValueError: the interrupted run was started with other settings, data or arithmetic; or the
            run.json is damaged, by which it is known.
    """
    out, name, seed = spec.out, spec.recipe.name, spec.seed
    start = spec.start
    if spec.share_phase1 and spec.folder is None:
        start = find_start(out / "checkpoints", info)
    folder, record = spec.folder, None
    if folder is None and spec.resume != "no":
        only_same = info if spec.resume == "if_same" else None
        folder = find_unfinished(out, name, seed, only_same=only_same)
        if folder is None and spec.resume == "yes":
            folder = _find_finished(out, info)
    if folder is None:
        folder = out / "checkpoints" / run_id(name, seed, info.created)
        while folder.exists():
            time.sleep(0.1)  # a run of this name was started in the same second
            info = replace(info, created=now())
            folder = out / "checkpoints" / run_id(name, seed, info.created)
    elif (found := read_run_info(folder)) is not None:
        require_same(folder, found, info)
        record = _record_of(out, folder)
        info = found
    before = info if start is None else read_run_info(start)
    choice = info.step_choice or (before.step_choice if before is not None else None)
    return RunDir(
        folder=folder, created=info.created, start=start, record=record, step_choice=choice
    )


_NOT_OF_PHASE_1 = frozenset(
    {
        *("name", "summary", "table", "paper_scale", "devices", "target_accuracy", "loader"),
        *("phase2", "num_workers", "keep_momentum"),
        *("batch_norm_batch_size", "batch_norm_augmented"),
    }
)
"""Fields of a recipe that phase 1 does not depend on."""


def find_start(checkpoints: Path, info: RunInfo) -> Path | None:
    """The oldest run with the same phase 1, done: seed, data, execution and machine included."""
    wanted = _phase1(info)
    for folder in sorted(checkpoints.glob("*"), key=lambda path: path.name.rsplit("-", 1)[-1]):
        try:
            found = read_run_info(folder)
            if found is None or _phase1(found) != wanted:
                continue
            progress = last_of(folder, phase=1)
        except ValueError:  # damaged, or of another version: another run's, which may stay so
            continue
        if progress is not None and progress.stopped_by is not None:
            return folder
    return None


def _phase1(info: RunInfo) -> tuple[Any, ...]:
    """What of a run decides its phase 1 and the time that it takes."""
    recipe = info.settings.get("recipe", {}).items()
    return (
        {name: value for name, value in recipe if name not in _NOT_OF_PHASE_1},
        {name: value for name, value in info.settings.items() if name != "recipe"},
        info.machine,
    )


def finish_run(folder: Path, *, keep_epochs: bool) -> None:
    """Do what a process that was killed just after it wrote the record had no time for.

    For callers that look for records, and do not resume a run that has one.
    """
    if any(folder.glob("attempt-*")) and not is_running(folder):
        with suppress(OSError):  # its events then stay in several files
            merge_events(folder)
        prune(folder, every=1 if keep_epochs else None)


def find_unfinished(
    out: Path, name: str, seed: int, *, only_same: RunInfo | None = None
) -> Path | None:
    """The newest run of this recipe and seed that has no record yet and that nobody runs.

    Arguments:
        only_same: leave out runs with other settings than these.

    Raises:
        ValueError: a run.json is damaged.
    """
    for folder in reversed(_folders_of(out, name, seed)):
        if _record_of(out, folder) or is_running(folder):
            continue
        found = read_run_info(folder)
        if found and not (only_same and differences(found, only_same)):
            return folder
    return None


def _find_finished(out: Path, info: RunInfo) -> Path | None:
    """The oldest run with these settings that has a record."""
    settings = info.settings
    for folder in _folders_of(out, settings["recipe"]["name"], settings["seed"]):
        if _record_of(out, folder):
            found = read_run_info(folder)
            if found and not differences(found, info):
                return folder
    return None


def _folders_of(out: Path, name: str, seed: int) -> list[Path]:
    """The folders of a recipe's runs with this seed, oldest first."""
    beginning = run_id(name, seed, "")
    return sorted(
        path for path in (out / "checkpoints").glob("*") if path.name.startswith(beginning)
    )


def _record_of(out: Path, folder: Path) -> Path | None:
    """The record of a run that is done; an empty file, as a killed process leaves it, is none."""
    path = out / "runs" / f"{folder.name}.json"
    return path if path.is_file() and path.stat().st_size else None
