"""Who is told of a user's run: the screen, the events in its folder, listeners of the user's."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from swap_fast.callbacks.emitter import TICK_S, Narrator
from swap_fast.callbacks.events import EventFile, Listener, merge_events
from swap_fast.callbacks.progress import Lines, Screen, progress
from swap_fast.callbacks.run_view import plan_of_phase
from swap_fast.distributed import Comm
from swap_fast.record import EpochRow
from swap_fast.training.clock import Clock
from swap_fast.training.parts import Watch
from swap_fast.training.state import Position
from swap_fast.user.environment import describe_environment
from swap_fast.user.method import OwnMethod
from swap_fast.user.result import SwapResult

SCREEN_TICK_S = 0.5
"""How often bars move."""


def make_narrator(
    method: OwnMethod,
    num_examples: int,
    comm: Comm,
    clock: Clock,
    *,
    shows: bool,
    listeners: Sequence[Listener],
    folder: Path | None,
    metric: str | None,
) -> Narrator:
    """What tells of a run on this rank: each rank prints its own workers, the first draws bars.

    Arguments:
        num_examples: trained on.
        shows: whether anything is printed.
        listeners: told on the first rank.
        folder: keeps the events, where there is one.
        metric: what the test data give, by the user's name; None: an accuracy.
    """
    told: list[Listener] = list(listeners) if comm.rank == 0 else []
    shown = progress("auto" if shows else "none")
    if shown is not None:
        told.insert(0, shown if comm.rank == 0 else Lines())
    plan = {
        "workers": method.num_workers,
        "phases": [plan_of_phase(p, num_examples) for p in (method.phase1, method.phase2)],
        "metric": metric,
    }
    return Narrator(
        told,
        plan,
        reading=clock.reading,
        rank=comm.rank,
        file=None if folder is None else EventFile(folder, part="run", rank=comm.rank),
        tick_s=SCREEN_TICK_S if isinstance(shown, Screen) else TICK_S,
    )


def begin(narrator: Narrator, settings: dict[str, Any], comm: Comm, device: torch.device) -> None:
    """Tell that a run begins, on every rank: each shows what it does itself."""
    name = settings["model"]["name"]
    narrator.began(
        name,
        {"name": name, **settings},
        seed=settings["seed"],
        world_size=comm.world_size,
        machine=describe_environment(device),
        goes_on=False,
    )


def end(narrator: Narrator, result: SwapResult) -> None:
    """Tell with what it ended; the first rank does."""
    if result.is_first:
        narrator.tell(
            "done",
            test_accuracy=result.accuracy,
            accuracy_before_averaging=result.accuracy_before_averaging,
            worker_accuracies=list(result.worker_accuracies),
            phase1_epochs=result.record["phase1_epochs"],
            stopped_by=result.record["stopped_by"],
            training_time_s=result.times.after_averaging_s,
        )


def all_told(narrator: Narrator, watch: Watch | None, rows: list[EpochRow]) -> Watch:
    """One watch that tells the narrator, the user's own, and keeps the rows."""
    own, ours = watch or Watch(), narrator.watch

    def on_epoch(row: EpochRow) -> None:
        rows.append(row)
        ours.on_epoch(row)
        own.on_epoch(row)

    def on_step(images: int) -> None:
        ours.on_step(images)
        own.on_step(images)

    def on_begin(position: Position) -> None:
        ours.on_begin(position)
        own.on_begin(position)

    def on_end(position: Position) -> None:
        ours.on_end(position)
        own.on_end(position)

    def on_averaging() -> None:
        ours.on_averaging()
        own.on_averaging()

    return Watch(
        on_begin=on_begin,
        on_step=ours.on_step if watch is None else on_step,
        on_epoch=on_epoch,
        on_end=on_end,
        on_averaging=on_averaging,
    )


def put_events_together(folder: Path) -> None:
    """One file of a run that is done; where that fails, there are several."""
    with contextlib.suppress(OSError):
        merge_events(folder)
