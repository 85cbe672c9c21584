"""What a rank shows of a run: its event logger with the screen and trackers, and single lines."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from threading import Event, Thread

from bench.hardware.machine import describe_machine
from bench.runner.run_folders import RunDir, RunSpec
from swap_fast.callbacks.emitter import SCREEN_TICK_S, EventLogger
from swap_fast.callbacks.events import (
    Listener,
    Tail,
    make_event,
    read_events,
)
from swap_fast.callbacks.progress import (
    Form,
    JsonLines,
    Lines,
    Screen,
    plan_of,
    print_line,
    progress_listener,
)
from swap_fast.callbacks.trackers import Tracking, make_tracking
from swap_fast.clock import Clock
from swap_fast.distributed import Comm
from swap_fast.record import plain


def line_printer(form: Form) -> Callable[[str], None]:
    """What prints a line that is no event of a run."""
    if form == "none":
        return lambda line: None
    if form == "json":
        return lambda line: JsonLines()(make_event("note", text=line))
    return print_line


def warn(line: str) -> None:
    """Print a warning on standard error."""
    print(f"bench: {line}", file=sys.stderr, flush=True)


def make_logger(
    spec: RunSpec, comm: Comm, clock: Clock, folder: Path, num_images: int
) -> EventLogger:
    """The event logger of this rank; rank 0's also shows the other ranks' events.

    Arguments:
        folder: the run's.
        num_images: trained on.
    """
    listeners: list[Listener | None] = []
    if comm.rank == 0:
        trackers = (make_tracking(name, spec.out, warn) for name in spec.track)
        listeners = [progress_listener(spec.progress), *trackers]
    leads = comm.rank == 0 and spec.part != "workers"
    return EventLogger(
        listeners,
        plan_of(spec.recipe, num_images),
        reading=clock.reading,
        part=part_of(spec),
        rank=comm.rank,
        logs_phase1=leads,
        folder=folder,
        follows=leads,
        warn=warn,
    )


def part_of(spec: RunSpec) -> str:
    """The part of a run that a process does, as in its files' names: parts may run side by side."""
    if spec.part == "workers":
        return f"worker{'-'.join(map(str, spec.workers or ()))}"
    return "run"


def log_start(
    logger: EventLogger, spec: RunSpec, place: RunDir, world_size: int, *, resumed: bool
) -> None:
    """Emit the first events of this process; rank 0 must call."""
    logger.emit_began(
        place.folder.name,
        plain(asdict(spec.recipe)),
        seed=spec.seed,
        machine=describe_machine(spec.execution.device_type),
        world_size=world_size,
        resumed=resumed,
        held_out=spec.held_out,
    )
    # Trackers also get the epochs of workers that were processes of their own.
    events = [e for e in read_events(place.folder) if e["part"] != "run" and e["event"] == "epoch"]
    logger.replay(events, only=Tracking)
    if resumed:
        logger.note(f"{place.folder.name} is resumed")
    if place.start is not None:
        logger.note(f"phase 1 is that of {place.start.name}; its time counts")


@contextmanager
def follow_run(folder: Path, form: Form) -> Iterator[None]:
    """Show what other processes of a run do, while this one waits for them."""
    shown = progress_listener(form)
    if shown is None:
        yield
        return
    tail = Tail(folder)
    for event in tail.poll() or []:
        if isinstance(shown, Lines | Screen):
            shown.view(event)
    stopping = Event()

    def show() -> None:
        for event in tail.poll() or []:
            shown(event)

    def follow() -> None:
        while not stopping.wait(SCREEN_TICK_S):
            show()

    thread = Thread(target=follow, name="follow run", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()
        show()
        if isinstance(shown, Screen):
            shown.close()
