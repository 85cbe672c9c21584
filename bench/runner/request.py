"""What every rank of a run is told."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from swap_fast.callbacks.progress import Form
from swap_fast.callbacks.trackers import TrackerName
from swap_fast.config.execution import Execution
from swap_fast.config.recipe import Recipe

Part = Literal["all", "phase1", "workers"]
"""The whole run; its phase 1 alone, or some workers' phase 2 from there, kept in its folder."""


@dataclass(frozen=True, kw_only=True)
class Request:
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
    code: dict[str, Any]
    """Version and commit, looked up before the run: files may change under a long one."""
    started: float
    """`time.time()` when the run was asked for, to know what starting and importing took."""
    notes: tuple[str, ...] = ()
    """What the record's reader should know."""
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
