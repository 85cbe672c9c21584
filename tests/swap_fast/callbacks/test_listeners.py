"""What a run tells: each event of a tiny run, counted by hand; and what a listener may do to it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_trainer import SGD, SWAP, make_dataset, run_processes, small_trainer

from swap_fast.algorithm import sgd, swap
from swap_fast.callbacks.emitter import EventLogger
from swap_fast.callbacks.events import merge_events, read_events
from swap_fast.callbacks.progress import Lines, RunView, plan_of
from swap_fast.checkpoint.run_folder import RunFolder
from swap_fast.clock import Clock
from swap_fast.config.recipe import SGDRecipe, SWAPRecipe
from swap_fast.distributed import Comm
from swap_fast.record import EpochRow
from swap_fast.shutdown import InterruptedRunError
from swap_fast.training.state import Progress

DATA = make_dataset()


def logger(*listeners: Callable[[dict], object], **changed) -> EventLogger:
    made = {"reading": lambda: 0.0, "tick_s": 3600.0} | changed
    recipe: SWAPRecipe | SGDRecipe = made.pop("recipe", SWAP)
    return EventLogger(listeners, plan_of(recipe, len(DATA.train)), **made)


def told(event: dict) -> tuple:
    """What of an event can be counted by hand."""
    return tuple(event[name] for name in ("event", "phase", "worker", "epoch") if name in event)


def test_a_run_of_two_workers_tells_each_step_of_it(tmp_path: Path) -> None:
    clock, events = Clock(), []
    with logger(events.append, reading=clock.reading) as tells:
        folder = RunFolder(tmp_path, clock, on_save=tells.on_save)
        parts = small_trainer(dataset=DATA, clock=clock, callbacks=[tells], checkpoints=folder)
        swap(SWAP, parts)
    worker = [
        [("training", 2, w, 0)]
        + [(kind, 2, w, e) for e in (1, 2) for kind in ("epoch", "checkpoint")]
        + [("phase_end", 2, w, 2)]
        for w in (0, 1)
    ]
    assert [told(event) for event in events] == [
        ("training", 1, 0, 0),
        *[(kind, 1, 0, e) for e in (1, 2) for kind in ("epoch", "checkpoint")],
        ("phase_end", 1, 0, 2),
        *worker[0],
        *worker[1],
        ("averaging",),
    ]
    rows = {told(event)[1:]: event for event in events if event["event"] == "epoch"}
    assert rows.keys() == {(1, 0, 1), (1, 0, 2), *((2, w, e) for w in (0, 1) for e in (1, 2))}
    # 2 updates of 16 images; the reading holds the phase's time alone, and what came before.
    first, second = rows[1, 0, 1], rows[1, 0, 2]
    assert second["images_per_s"] == pytest.approx(32 / (second["time_s"] - first["time_s"]))
    last = rows[2, 1, 2]
    assert last["images_per_s"] == pytest.approx(40 / (last["time_s"] - rows[2, 1, 1]["time_s"]))
    assert [e["stopped_by"] for e in events if e["event"] == "phase_end"] == ["max_epochs"] * 3
    assert {row.epoch: row.train_loss for row in folder.rows if row.phase == 1} == {
        1: first["train_loss"],
        2: second["train_loss"],
    }


def test_an_accuracy_that_nothing_counted_is_null() -> None:
    events: list[dict] = []
    said: list[str] = []
    tells = logger(events.append, Lines(said.append))
    tells.emit_began("small", {"name": "small"})
    tells.on_begin(Progress(phase=1))
    values = {"learning_rate": 0.1, "train_loss": 1.0, "train_accuracy": math.nan, "time_s": 2.0}
    tells.on_epoch_end(EpochRow(phase=1, worker=0, epoch=1, **values))
    assert (events[-1]["train_accuracy"], events[-1]["images_per_s"]) == (None, 32 / 2)
    assert said == ["phase 1           epoch   1/2  lr 0.1000  loss 1.0000      2.0 s  16 images/s"]


def test_listeners_change_no_bit_and_no_reading_of_the_clock() -> None:
    plain = small_trainer(dataset=DATA)
    swap(SWAP, plain)
    with logger(lambda event: None, tick_s=0.001) as tells:
        watched = small_trainer(dataset=DATA, callbacks=[tells])
        swap(SWAP, watched)
    assert torch.equal(plain.weights.theta, watched.weights.theta)
    assert plain.clock.laps.keys() == watched.clock.laps.keys()


def test_an_update_costs_a_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is told, written or timed for an update: only the thread's tick tells."""
    events: list[dict] = []
    tells = logger(events.append)
    tells.on_begin(Progress(phase=1))
    del events[:]
    monkeypatch.setattr(
        "swap_fast.callbacks.emitter.time.monotonic", lambda: pytest.fail("a clock")
    )
    monkeypatch.setattr(
        "swap_fast.callbacks.emitter.make_event", lambda *a, **b: pytest.fail("an event")
    )
    for _ in range(1000):
        tells.on_step(8)
    assert events == []
    # One call of Python's, which makes none itself.
    assert tells.on_step.__func__.__code__.co_names == ("_step",)


def test_a_tick_tells_how_far_it_is_and_how_fast() -> None:
    events: list[dict] = []
    tells = logger(events.append)
    tells.on_begin(Progress(phase=2, worker=1, epoch=1, step=1))
    for now, steps in ((10.0, 1), (12.0, 2), (14.0, 0)):
        for _ in range(steps):
            tells.on_step(8)
        tells._tick(now)
    tells.on_step(8)
    tells._tick(16.0)  # all 5 updates are done: what follows is the test
    found = [(e["epoch"], e["step"], e["images_per_s"]) for e in events[1:]]
    assert found == [(1, 2, None), (1, 4, 16 / 2), (1, 5, None)]
    tells._tick(18.0)
    assert len(events) == 4  # nothing has moved


def test_a_file_keeps_progress_every_two_seconds_at_most(tmp_path: Path) -> None:
    heard: list[dict] = []
    with logger(heard.append, folder=tmp_path) as tells:
        tells.on_begin(Progress(phase=2))
        for tick in range(5):
            tells.on_step(8)
            tells._tick(10.0 + tick / 2)
    assert [e["step"] for e in heard[1:]] == [1, 2, 3, 4, 5]
    assert [e["step"] for e in read_events(tmp_path)[1:]] == [1, 5]


def test_the_thread_ticks() -> None:
    events: list[dict] = []
    with logger(events.append, tick_s=0.001) as tells:
        tells.on_begin(Progress(phase=1))
        tells.on_step(8)
        while not any(event["event"] == "progress" for event in events):
            pass
    assert [told(event) for event in events] == [("training", 1, 0, 0), ("progress", 1, 0, 0)]


def test_a_listener_that_fails_is_said_once_and_training_goes_on() -> None:
    warnings, heard = [], []

    def fails(event: dict) -> None:
        raise OSError("no\nnetwork")

    with logger(fails, heard.append, warn=warnings.append, recipe=SGD) as tells:
        sgd(SGD, small_trainer(SGD, dataset=DATA, callbacks=[tells]))
    assert warnings == ["function failed, and gets no more events of the run: no network"]
    assert len(heard) == 4


def test_a_full_disk_is_said_once_and_training_goes_on(tmp_path: Path) -> None:
    warnings: list[str] = []
    with logger(warn=warnings.append, folder=tmp_path) as tells:
        tells.note("one")
        full = os.open("/dev/full", os.O_WRONLY)
        os.dup2(full, tells._file._file)
        os.close(full)
        tells.note("two")
        tells.note("three")
    assert len(warnings) == 1
    assert warnings[0].startswith("events are no longer kept: ")
    assert [event["text"] for event in read_events(tmp_path)] == ["one"]


def test_being_told_to_end_passes_through_a_listener() -> None:
    def told_to_end(event: dict) -> None:
        raise InterruptedRunError("SIGTERM")

    tells = logger(told_to_end)
    with pytest.raises(InterruptedRunError):
        tells.note("one")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (InterruptedRunError("SIGTERM"), {"event": "interrupted", "reason": "SIGTERM"}),
        (ValueError("one\n two"), {"event": "failed", "error": "ValueError: one two"}),
    ],
)
def test_a_bad_end_is_told(error: Exception, expected: dict) -> None:
    events: list[dict] = []
    with pytest.raises(type(error)), logger(events.append):
        raise error
    assert expected.items() <= events[-1].items()


def _rank(comm: Comm, folder: Path) -> None:
    clock, heard = Clock(), []
    about = {"rank": comm.rank, "folder": folder, "follows": comm.rank == 0}
    with logger(heard.append, reading=clock.reading, **about) as tells:
        if comm.rank == 0:
            tells.emit_began("small", {"name": "small"}, world_size=2)
        swap(SWAP, small_trainer(dataset=DATA, clock=clock, comm=comm, callbacks=[tells]))
        comm.barrier()
    (folder / f"heard-{comm.rank}.json").write_text(json.dumps(heard))


def test_rank_0_tells_of_all_ranks(tmp_path: Path) -> None:
    run_processes(_rank, 2, tmp_path)
    merge_events(tmp_path)
    events = read_events(tmp_path)
    heard = json.loads((tmp_path / "heard-0.json").read_text())
    assert sorted(e["time"] for e in heard) == sorted(e["time"] for e in events)
    epochs = [(e["rank"], *told(e)[1:]) for e in events if e["event"] == "epoch"]
    assert sorted(epochs) == [
        *[(0, 1, 0, 1), (0, 1, 0, 2), (0, 2, 0, 1), (0, 2, 0, 2)],
        *[(1, 2, 1, 1), (1, 2, 1, 2)],
    ]
    view = RunView()
    for event in events:
        view(event)
    assert {model.state for model in view.models.values()} == {"ended"}
