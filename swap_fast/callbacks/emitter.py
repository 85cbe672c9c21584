"""Tells listeners of a run as it goes on: from the algorithm's `Watch` to events."""

import math
import os
import platform
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

from swap_fast.callbacks.events import ENDINGS, Event, EventFile, Listener, Tail, make_event
from swap_fast.callbacks.progress import Plan, images_until
from swap_fast.record import EpochRow
from swap_fast.training.shutdown import InterruptedRunError

if TYPE_CHECKING:
    from swap_fast.training.parts import Watch
    from swap_fast.training.state import Progress

TICK_S = 2.0
"""At most so often the progress of a model is kept."""
SAMPLES = 5
"""Ticks over which images per second are taken."""


def _complain(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _finite(value: Any) -> Any:
    """The value; None for a number that JSON does not have: an accuracy that nothing counted."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


class EventLogger:
    """Turns what this rank does into events, and tells the listeners.

    An update costs the training loop the count of one: a thread of its own looks at the count
    every `tick_s`, and tells. All else is told where the clock stands still. A listener that fails
    is told no more, which is said once, and training goes on.

    Arguments:
        listeners: told of this rank's events, and of those that `tail` brings.
        plan: what the run does at most.
        reading: the paper's reading of this rank's clock.
        part: of the run that this process does.
        rank: of this process.
        tells_phase1: whether it speaks for phase 1, which is the same on every rank; None: rank 0
            does.
        file: where this rank's own events are kept.
        tail: the events of the run's other processes.
        tick_s: how often the thread looks, and tells; a file keeps it no more often than `TICK_S`.
        complain: given the line about a listener that has failed.
    """

    def __init__(
        self,
        listeners: Iterable[Listener],
        plan: Plan,
        *,
        reading: Callable[[], float],
        part: str = "run",
        rank: int = 0,
        tells_phase1: bool | None = None,
        file: EventFile | None = None,
        tail: Tail | None = None,
        tick_s: float = TICK_S,
        complain: Callable[[str], None] = _complain,
    ) -> None:
        self._listeners, self._plan, self._reading = list(listeners), plan, reading
        self._part, self._rank, self._file, self._tail = part, rank, file, tail
        self._tells_phase1 = rank == 0 if tells_phase1 is None else tells_phase1
        self._tick_s, self._complain = tick_s, complain
        self._lock = threading.RLock()
        self._model: tuple[int, int] | None = None
        self._epoch = self._step = 0
        self._begun_s, self._begun_step = 0.0, 0
        self._told: tuple[Any, ...] = ()
        self._kept_at = -math.inf
        self._samples: deque[tuple[float, int]] = deque(maxlen=SAMPLES)
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._look, name="logger", daemon=True)

    def __enter__(self) -> "EventLogger":
        """Begin to look at the count."""
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Tell how it ended, where it ended badly, and let the listeners go."""
        self._ends.set()
        self._thread.join()
        if isinstance(error, InterruptedRunError | KeyboardInterrupt):
            self.tell("interrupted", reason=str(error))
        elif error is not None:
            words = " ".join(str(error).split())
            self.tell("failed", error=f"{type(error).__name__}: {words}")
        self.close()

    @property
    def watch(self) -> "Watch":
        """What a run's parts are given."""
        from swap_fast.training.parts import Watch

        return Watch(
            on_begin=self.on_begin,
            on_step=self.on_step,
            on_epoch=self.on_epoch,
            on_end=self.on_end,
            on_averaging=self.on_averaging,
        )

    def began(self, run: str, recipe: dict[str, Any], **about: Any) -> None:
        """Tell that this process has begun, and with what; from rank 0 alone.

        Arguments:
            recipe: the whole of it, with its `name`.
            about: seed, machine, world_size and what else there is to say.
        """
        here = {"host": platform.node(), "process": os.getpid()}
        self.tell("began", run=run, recipe=recipe, plan=self._plan, **here, **about)

    def note(self, text: str) -> None:
        """Tell something in words."""
        self.tell("note", text=text)

    def on_begin(self, position: "Progress") -> None:
        """A model's training begins, goes on, or was done before."""
        with self._lock:
            self._model = (position.phase, position.worker)
            if position.phase == 1 and not self._tells_phase1:
                self._model = None
                return
            self._epoch, self._step = position.epoch, position.step
            self._begun_s, self._begun_step = self._reading(), position.step
            self._samples.clear()
        begun = position.epoch > 0 or position.step > 0
        values: dict[str, Any] = {
            "step": position.step,
            "stopped_by": position.stopped_by,
            "restored": begun,
        }
        if position.epoch > 0:
            values["test_accuracy"] = position.accuracies.top1
        self._tell_of_model("training", epoch=position.epoch, **values)

    def on_step(self, images: int) -> None:
        """Count an update."""
        self._step += 1

    def on_epoch(self, row: EpochRow) -> None:
        """An epoch has ended."""
        if self._model is None:
            return
        with self._lock:
            phase = self._plan["phases"][row.phase - 1]
            before = images_until(phase, row.epoch - 1, self._begun_step)
            images, seconds = images_until(phase, row.epoch) - before, row.time_s - self._begun_s
            self._epoch, self._step = row.epoch, 0
            self._begun_s, self._begun_step = row.time_s, 0
            self._samples.clear()
        values = asdict(row) | {"images_per_s": images / seconds if seconds > 0 else None}
        self.tell("epoch", **{name: _finite(value) for name, value in values.items()})

    def on_save(self, position: "Progress") -> None:
        """A checkpoint was written."""
        where = {"phase": position.phase, "worker": position.worker}
        self.tell("checkpoint", **where, epoch=position.epoch, step=position.step)

    def on_end(self, position: "Progress") -> None:
        """A model's training has ended."""
        self._tell_of_model(
            "phase_end",
            epoch=position.epoch,
            stopped_by=position.stopped_by,
            test_accuracy=position.accuracies.top1,
        )
        self._model = None

    def on_averaging(self) -> None:
        """Phase 3 begins, as rank 0 sees it."""
        if self._rank == 0:
            self.tell("averaging")

    def tell(self, kind: str, **values: Any) -> None:
        """Tell all listeners of an event, and keep it."""
        event = make_event(kind, part=self._part, rank=self._rank, **values)
        with self._lock:
            if kind == "note" or kind in ENDINGS:
                self._follow()  # what came before stands before it
            self._keep(event)
            self._pass_on(event)

    def catch_up(self, events: Iterable[Event], *, only: type = object) -> None:
        """Tell the listeners, or those of one type, of events that are kept already."""
        with self._lock:
            for event in events:
                self._pass_on(event, only)

    def close(self) -> None:
        """Tell the last of what the other processes did, and let the listeners go."""
        with self._lock:
            self._follow()
            for listener in self._listeners:
                if (close := getattr(listener, "close", None)) is not None:
                    self._try(listener, close)
            self._listeners.clear()
            if self._file is not None:
                self._file.close()
                self._file = None

    def _keep(self, event: Event) -> None:
        if self._file is not None:
            try:
                self._file(event)
            except OSError as error:
                self._file.close()
                self._file = None
                self._complain(f"events are no longer kept: {error}")

    def _tell_of_model(self, kind: str, **values: Any) -> None:
        if self._model is not None:
            phase, worker = self._model
            self.tell(kind, phase=phase, worker=worker, **values)

    def _pass_on(self, event: Event, only: type = object) -> None:
        for listener in list(self._listeners):
            if isinstance(listener, only):
                self._try(listener, partial(listener, event))

    def _try(self, listener: Listener, call: Callable[[], object]) -> None:
        try:
            call()
        except InterruptedRunError:
            raise
        except Exception as error:
            self._listeners.remove(listener)
            name = getattr(listener, "name", None) or type(listener).__name__
            words = " ".join(str(error).split())
            self._complain(f"{name} failed, and is told no more of the run: {words}")

    def _look(self) -> None:
        while not self._ends.wait(self._tick_s):
            with self._lock:
                self._tick(time.monotonic())
                self._follow()

    def _tick(self, now: float) -> None:
        """Tell how far the model is, if it has moved."""
        epoch, step = self._epoch, self._step
        if self._model is None or step == 0 or self._told == (self._model, epoch, step):
            return
        self._told = (self._model, epoch, step)
        phase = self._plan["phases"][self._model[0] - 1]
        images, rate = images_until(phase, epoch, step), None
        if images < images_until(phase, epoch + 1):  # else the time since was the test's
            self._samples.append((now, images))
            then, before = self._samples[0]
            rate = (images - before) / (now - then) if now > then else None
        where = dict(zip(("phase", "worker"), self._model, strict=True))
        values = where | {"epoch": epoch, "step": step, "images_per_s": rate}
        event = make_event("progress", part=self._part, rank=self._rank, **values)
        if now - self._kept_at >= TICK_S:
            self._kept_at = now
            self._keep(event)
        self._pass_on(event)

    def _follow(self) -> None:
        if self._tail is not None:
            self.catch_up(self._tail.poll() or [])
