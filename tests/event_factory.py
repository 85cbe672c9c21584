"""A run's events as they are told, made by hand, at seconds of a day."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from platform import node
from typing import Any

from swap_fast.callbacks.events import SCHEMA, Event

BEGAN = datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)
PLAN = {
    "workers": 2,
    "phases": [
        {"epochs": [[3, 10, 100]], "replicas": 2, "may_end_early": True},
        {"epochs": [[2, 40, 25]], "replicas": 1, "may_end_early": False},
    ],
}
"""Phase 1: 3 epochs of 10 updates of 100 images; each of 2 workers: 2 epochs of 40 of 25."""


def at(seconds: float, kind: str, *, part: str = "run", rank: int = 0, **values: Any) -> Event:
    """An event, so many seconds after the beginning."""
    time = (BEGAN + timedelta(seconds=seconds)).isoformat(timespec="microseconds")
    return {"schema": SCHEMA, "time": time, "part": part, "rank": rank, "event": kind, **values}


def began(seconds: float = 0.0, **changed: Any) -> Event:
    """A run of two processes begins."""
    values: dict[str, Any] = {
        "run": "small-seed3-20261122120000",
        "recipe": {"name": "small", "phase1": {"peak_lr": 0.5}},
        "plan": PLAN,
        "seed": 3,
        "host": node(),
        "process": 1,
        "machine": {"device": "Example CPU"},
        "world_size": 2,
        "resumed": False,
    }
    return at(seconds, "began", **values | changed)


def training(seconds: float, phase: int, worker: int = 0, **changed: Any) -> Event:
    """A model's training begins."""
    values = {"epoch": 0, "step": 0, "stopped_by": None, "restored": False}
    return at(seconds, "training", phase=phase, worker=worker, **values | changed)


def progress(seconds: float, phase: int, worker: int, epoch: int, step: int) -> Event:
    """A model has come so far."""
    where = {"phase": phase, "worker": worker, "epoch": epoch, "step": step}
    return at(seconds, "progress", **where, images_per_s=50.0)


def epoch(seconds: float, phase: int, worker: int, number: int, **changed: Any) -> Event:
    """An epoch has ended."""
    values = {
        "learning_rate": 0.25,
        "train_loss": 1.5,
        "train_accuracy": 0.5,
        "time_s": seconds,
        "test_accuracy": 0.4375,
        "noise_scale": None,
        "images_per_s": 100.0,
    }
    where = {"phase": phase, "worker": worker, "epoch": number}
    return at(seconds, "epoch", **where, **values | changed)


def phase_end(seconds: float, phase: int, worker: int, number: int, why: str) -> Event:
    """A model's training has ended."""
    where = {"phase": phase, "worker": worker, "epoch": number}
    return at(seconds, "phase_end", **where, stopped_by=why, test_accuracy=0.4375)


def done(seconds: float) -> Event:
    """The run is done."""
    return at(
        seconds,
        "done",
        test_accuracy=0.75,
        accuracy_before_averaging=0.5,
        worker_accuracies=[0.5, 0.5],
        phase1_epochs=1,
        stopped_by="stopping_accuracy",
        training_time_s=60.0,
        record="results/runs/small.json",
    )
