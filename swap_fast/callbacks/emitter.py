"""The callback that turns what a run does into events, for a file, the screen and trackers."""

import math
import os
import platform
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from swap_fast.callbacks.events import (
    ENDINGS,
    Event,
    EventFile,
    Listener,
    Tail,
    file_name,
    make_event,
)
from swap_fast.callbacks.progress import Plan, Screen, images_until
from swap_fast.config.checks import one_line
from swap_fast.record import EpochRow
from swap_fast.shutdown import InterruptedRunError
from swap_fast.training.callback import Callback

if TYPE_CHECKING:
    from swap_fast.training.state import Progress, Result

TICK_S = 2.0
"""The shortest time between two `progress` events in a file."""
SCREEN_TICK_S = 0.5
"""The period of the thread where bars are drawn, else `TICK_S`."""
SAMPLES = 5
"""Ticks over which images per second are averaged."""


def _warn(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class EventLogger(Callback):
    """Turns what this rank does into events, writes them to a file and calls the listeners.

    An update costs the training loop one addition: a thread reads the count every `tick_s` and
    emits `progress`, which the file gets every `TICK_S` at most. All other events are emitted
    while the clock stands still. A listener that raises is warned of once and not called again;
    training goes on.

    Arguments:
        listeners: called with this rank's events; None among them is left out.
        plan: what the run does at most.
        reading: the paper's reading of this rank's clock.
        part: of the run that this process does.
        logs_phase1: whether this rank logs phase 1, which is the same on every rank; None: rank 0
            does.
        folder: where this rank's own events are kept; None: nowhere.
        follows: call the listeners with the events of the folder's other processes too.
        tick_s: the period of the thread; None: as short as the listeners need it.
        warn: prints a warning.
    """

    def __init__(
        self,
        listeners: Iterable[Listener | None],
        plan: "Plan",
        *,
        reading: Callable[[], float],
        part: str = "run",
        rank: int = 0,
        logs_phase1: bool | None = None,
        folder: Path | None = None,
        follows: bool = False,
        tick_s: float | None = None,
        warn: Callable[[str], None] = _warn,
    ) -> None:
        self._listeners = [listener for listener in listeners if listener is not None]
        self._plan, self._reading = plan, reading
        self._part, self._rank, self._warn = part, rank, warn
        self._logs_phase1 = rank == 0 if logs_phase1 is None else logs_phase1
        shows_bars = any(isinstance(each, Screen) for each in self._listeners)
        self._tick_s = tick_s or (SCREEN_TICK_S if shows_bars else TICK_S)
        self._file: EventFile | None = None
        self._tail: Tail | None = None
        if folder is not None:
            try:
                self._file = EventFile(folder, part=part, rank=rank)
            except OSError as error:
                warn(f"no events of this run are kept: {error}")
            if follows and self._listeners:
                self._tail = Tail(folder, without=file_name(part, rank), from_end=True)
        self._lock = threading.RLock()
        self._model: tuple[int, int] | None = None  # phase and worker that this rank logs now
        self._epoch = self._step = 0
        self._epoch_start_s, self._epoch_first_step = 0.0, 0
        self._last_progress: tuple[Any, ...] = ()
        self._last_write = -math.inf
        self._samples: deque[tuple[float, int]] = deque(maxlen=SAMPLES)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="logger", daemon=True)

    def __enter__(self) -> "EventLogger":
        """Start the thread."""
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Emit `interrupted` or `failed` after an exception, and close."""
        self._stopping.set()
        self._thread.join()
        if isinstance(error, InterruptedRunError | KeyboardInterrupt):
            self.emit("interrupted", reason=str(error))
        elif error is not None:
            self.emit("failed", error=f"{type(error).__name__}: {one_line(error)}")
        self.close()

    # The callback.

    def on_begin(self, progress: "Progress") -> None:
        """Emit `training`: a model's training starts, is resumed, or was finished before."""
        with self._lock:
            self._model = (progress.phase, progress.worker)
            if progress.phase == 1 and not self._logs_phase1:
                self._model = None
                return
            self._epoch, self._step = progress.epoch, progress.step
            self._epoch_start_s, self._epoch_first_step = self._reading(), progress.step
            self._samples.clear()
        tested = {"test_accuracy": progress.accuracies.tested} if progress.epoch > 0 else {}
        self._emit_of_model(
            "training",
            epoch=progress.epoch,
            step=progress.step,
            stopped_by=progress.stopped_by,
            restored=progress.epoch > 0 or progress.step > 0,
            **tested,
        )

    def on_step(self, images: int) -> None:
        self._step += 1

    def on_epoch_end(self, row: EpochRow) -> None:
        if self._model is None:
            return
        with self._lock:
            phase = self._plan["phases"][row.phase - 1]
            before = images_until(phase, row.epoch - 1, self._epoch_first_step)
            images = images_until(phase, row.epoch) - before
            seconds = row.time_s - self._epoch_start_s
            self._epoch, self._step = row.epoch, 0
            self._epoch_start_s, self._epoch_first_step = row.time_s, 0
            self._samples.clear()
        values = asdict(row) | {"images_per_s": images / seconds if seconds > 0 else None}
        self.emit("epoch", **{name: _finite(value) for name, value in values.items()})

    def on_save(self, progress: "Progress") -> None:
        where = {"phase": progress.phase, "worker": progress.worker}
        self.emit("checkpoint", **where, epoch=progress.epoch, step=progress.step)

    def on_end(self, progress: "Progress") -> None:
        self._emit_of_model(
            "phase_end",
            epoch=progress.epoch,
            stopped_by=progress.stopped_by,
            test_accuracy=progress.accuracies.tested,
        )
        self._model = None

    def on_averaging(self) -> None:
        """Emit `averaging`, from rank 0 alone."""
        if self._rank == 0:
            self.emit("averaging")

    # Events that are no callback's.

    def emit_began(self, run: str, recipe: dict[str, Any], **about: Any) -> None:
        """Emit `began`, the first event of this process.

        Arguments:
            recipe: the whole of it, with its `name`.
            about: seed, machine, world_size and other facts.
        """
        here = {"host": platform.node(), "process": os.getpid()}
        self.emit("began", run=run, recipe=recipe, plan=self._plan, **here, **about)

    def emit_done(
        self,
        result: "Result",
        *,
        worker_accuracies: Sequence[float | None],
        accuracy_before_averaging: float | None,
        training_time_s: float,
        **about: Any,
    ) -> None:
        """Emit `done`, the last event of the run; for rank 0."""
        self.emit(
            "done",
            test_accuracy=result.accuracies.tested,
            accuracy_before_averaging=accuracy_before_averaging,
            worker_accuracies=list(worker_accuracies),
            phase1_epochs=result.phase1.progress.epoch,
            stopped_by=result.phase1.progress.stopped_by,
            training_time_s=training_time_s,
            **about,
        )

    def note(self, text: str) -> None:
        """Emit a line of text."""
        self.emit("note", text=text)

    def emit(self, kind: str, **values: Any) -> None:
        """Write an event to the file and call the listeners with it."""
        event = make_event(kind, part=self._part, rank=self._rank, **values)
        with self._lock:
            if kind == "note" or kind in ENDINGS:
                self._read_tail()  # earlier events of other processes come first
            self._write(event)
            self._call_listeners(event)

    def replay(self, events: Iterable[Event], *, only: type = object) -> None:
        """Call the listeners, or those of one type, with events that a file has already."""
        with self._lock:
            for event in events:
                self._call_listeners(event, only)

    def close(self) -> None:
        """Pass on the other processes' last events, then close the listeners and the file."""
        with self._lock:
            self._read_tail()
            for listener in self._listeners:
                if (close := getattr(listener, "close", None)) is not None:
                    self._try(listener, close)
            self._listeners.clear()
            if self._file is not None:
                self._file.close()
                self._file = None

    def _emit_of_model(self, kind: str, **values: Any) -> None:
        if self._model is not None:
            phase, worker = self._model
            self.emit(kind, phase=phase, worker=worker, **values)

    def _write(self, event: Event) -> None:
        if self._file is not None:
            try:
                self._file(event)
            except OSError as error:
                self._file.close()
                self._file = None
                self._warn(f"events are no longer kept: {error}")

    def _call_listeners(self, event: Event, only: type = object) -> None:
        for listener in list(self._listeners):
            if isinstance(listener, only):
                self._try(listener, partial(listener, event))

    def _try(self, listener: Listener, call: Callable[[], object]) -> None:
        try:
            call()
        except Exception as error:
            self._listeners.remove(listener)
            name = getattr(listener, "name", None) or type(listener).__name__
            self._warn(f"{name} failed, and gets no more events of the run: {one_line(error)}")

    # The thread.

    def _run(self) -> None:
        while not self._stopping.wait(self._tick_s):
            with self._lock:
                self._tick(time.monotonic())
                self._read_tail()

    def _tick(self, now: float) -> None:
        """Emit `progress` if the model has had an update since the last one."""
        epoch, step = self._epoch, self._step
        if self._model is None or step == 0 or self._last_progress == (self._model, epoch, step):
            return
        self._last_progress = (self._model, epoch, step)
        phase = self._plan["phases"][self._model[0] - 1]
        images, rate = images_until(phase, epoch, step), None
        if images < images_until(phase, epoch + 1):  # else the evaluation is running
            self._samples.append((now, images))
            then, before = self._samples[0]
            rate = (images - before) / (now - then) if now > then else None
        where = dict(zip(("phase", "worker"), self._model, strict=True))
        values = where | {"epoch": epoch, "step": step, "images_per_s": rate}
        event = make_event("progress", part=self._part, rank=self._rank, **values)
        if now - self._last_write >= TICK_S:
            self._last_write = now
            self._write(event)
        self._call_listeners(event)

    def _read_tail(self) -> None:
        if self._tail is not None:
            self.replay(self._tail.poll() or [])


def _finite(value: Any) -> Any:
    """The value; None for a number that JSON does not have, such as the mean of no images."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
