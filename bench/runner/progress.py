"""Who is told of a run on one rank: the screen, the events' file, and trackers."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

from bench.runner.run_folders import RunSpec
from swap_fast.callbacks.emitter import TICK_S, EventLogger
from swap_fast.callbacks.events import EventFile, Listener, Tail, make_event, read_events
from swap_fast.callbacks.progress import (
    Form,
    JsonLines,
    Lines,
    Screen,
    plan_of,
    print_line,
    progress,
)
from swap_fast.callbacks.trackers import Tracking, make_tracking
from swap_fast.distributed import Comm
from swap_fast.training.clock import Clock

SCREEN_TICK_S = 0.5
"""How often bars move."""


def speaker(form: Form) -> Callable[[str], None]:
    """What prints a line that is no event of a run."""
    if form == "none":
        return _say_nothing
    if form == "json":
        return lambda line: JsonLines()(make_event("note", text=line))
    return print_line


def complain(line: str) -> None:
    """Say what does not end the run, on standard error."""
    print(f"bench: {line}", file=sys.stderr, flush=True)


def make_narrator(
    request: RunSpec, comm: Comm, clock: Clock, folder: Path, num_images: int
) -> EventLogger:
    """What tells of a run on this rank; of all its ranks on rank 0, where their files can be read.

    Arguments:
        folder: the run's.
        num_images: trained on.
    """
    part = part_of(request)
    try:
        file = EventFile(folder, part=part, rank=comm.rank)
    except OSError as error:
        complain(f"no events of this run are kept: {error}")
        file = None
    listeners: list[Listener] = []
    tail, tick_s = None, TICK_S
    if comm.rank == 0:
        if (shown := progress(request.progress)) is not None:
            listeners.append(shown)
            tick_s = SCREEN_TICK_S if isinstance(shown, Screen) else TICK_S
        for name in request.track:
            listeners.append(make_tracking(name, request.out, complain))
        if listeners and request.part != "workers":
            tail = Tail(folder, without=f"events-{part}-rank0.jsonl", from_end=True)
    return EventLogger(
        listeners,
        plan_of(request.recipe, num_images),
        reading=clock.reading,
        part=part,
        rank=comm.rank,
        tells_phase1=comm.rank == 0 and request.part != "workers",
        file=file,
        tail=tail,
        tick_s=tick_s,
        complain=complain,
    )


def part_of(request: RunSpec) -> str:
    """What of a run a process does, as its files are named: parts may run side by side."""
    if request.part == "workers":
        return f"worker{'-'.join(map(str, request.workers or ()))}"
    return "run"


def track_workers(logger: EventLogger, folder: Path) -> None:
    """Tell trackers of the epochs of workers that were processes of their own."""
    rows = [e for e in read_events(folder) if e["part"] != "run" and e["event"] == "epoch"]
    logger.catch_up(rows, only=Tracking)


@contextmanager
def following(folder: Path, form: Form) -> Iterator[None]:
    """Show what other processes of a run do, while this one waits for them."""
    shown = progress(form)
    if shown is None:
        yield
        return
    tail = Tail(folder)
    for event in tail.poll() or []:
        if isinstance(shown, Lines | Screen):
            shown.view(event)
    ended = Event()

    def follow() -> None:
        while not ended.wait(SCREEN_TICK_S):
            for event in tail.poll() or []:
                shown(event)

    thread = Thread(target=follow, name="following", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        for event in tail.poll() or []:
            shown(event)
        if isinstance(shown, Screen):
            shown.close()


def _say_nothing(line: str) -> None:
    """Print nothing."""
