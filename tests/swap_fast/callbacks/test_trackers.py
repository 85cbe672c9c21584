"""TensorBoard, read back by its own reader; W&B and MLflow against stand-ins that note each call.

With the packages themselves: test_trackers_whole.py, which is run by `pytest -m trackers`.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from event_factory import at, began, done, epoch, phase_end, progress, training

from bench.cli import main
from swap_fast.callbacks import trackers
from swap_fast.callbacks.trackers import MLflow, Tracking, WandB, make_tracking, require_trackers
from swap_fast.record_files import read_record

EVENTS = [
    began(),
    training(1, 1),
    progress(2, 1, 0, 0, 3),
    epoch(10, 1, 0, 1),
    phase_end(10, 1, 0, 1, "max_epochs"),
    epoch(20, 2, 1, 1, noise_scale=None, test_accuracy=0.625),
    done(30),
]
PHASE1 = {
    "train_loss": 1.5,
    "train_accuracy": 0.5,
    "test_accuracy": 0.4375,
    "learning_rate": 0.25,
    "images_per_s": 100.0,
    "time_s": 10.0,
}
WORKER = PHASE1 | {"test_accuracy": 0.625, "time_s": 20.0}
FINAL = {
    "test_accuracy": 0.75,
    "accuracy_before_averaging": 0.5,
    "phase1_epochs": 1,
    "training_time_s": 60.0,
}


def track(tracker: Any, events: list[dict] = EVENTS) -> list[str]:
    """Tell a tracker; what was complained of."""
    warnings: list[str] = []
    tracking = Tracking(tracker, "tracker", warnings.append)
    for event in events:
        tracking(event)
    tracking.close()
    return warnings


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard's own reader finds."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    return {
        tag: [(scalar.step, scalar.value) for scalar in found.Scalars(tag)]
        for tag in found.Tags()["scalars"]
    }


def test_tensorboard_reads_what_was_told(tmp_path: Path) -> None:
    warnings: list[str] = []
    tracking = make_tracking("tensorboard", tmp_path, warnings.append)
    for event in EVENTS:
        tracking(event)
    tracking.close()
    assert warnings == []
    found = scalars(tmp_path / "tensorboard" / "small-seed3-20261122120000")
    assert found == {
        **{f"phase1/{name}": [(1, value)] for name, value in PHASE1.items()},
        **{f"phase2/worker1/{name}": [(1, value)] for name, value in WORKER.items()},
        **{f"final/{name}": [(0, value)] for name, value in FINAL.items()},
    }


@pytest.mark.slow
def test_a_run_is_tracked_from_the_command_line(tmp_path: Path) -> None:
    run = ["run", "cifar10_quick", "--dataset", "synthetic", "--train-images", "256"]
    small = ["--width", "4", "--phase1.global-batch-size", "64", "--phase1.max-epochs", "2"]
    rest = ["--device", "cpu", "--threads", "1", "--ranks", "2", "--quiet"]
    assert main([*run, *small, *rest, "--out", str(tmp_path), "--track", "tensorboard"]) == 0
    (path,) = (tmp_path / "runs").glob("*.json")
    record = read_record(path)
    found = scalars(tmp_path / "tensorboard" / record.run_id)
    for worker in range(4):  # of both ranks
        rows = [r for r in record.epochs if (r.phase, r.worker) == (2, worker)]
        expected = [(r.epoch, pytest.approx(r.train_loss, rel=1e-6)) for r in rows]
        assert found[f"phase2/worker{worker}/train_loss"] == expected
    losses = [pytest.approx(r.train_loss, rel=1e-6) for r in record.epochs if r.phase == 1]
    assert found["phase1/train_loss"] == list(enumerate(losses, start=1))
    assert found["final/test_accuracy"] == [(0, pytest.approx(record.test_accuracy, rel=1e-6))]


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_tracker_that_is_not_installed_is_found_before_training(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda module: None)
    out = ["--out", str(tmp_path / "out"), "--dataset", "synthetic"]
    assert main(["run", "cifar10_quick", *out, "--track", name]) == 2
    said = capsys.readouterr()
    assert said.err == (
        f"bench: track: expected {name} to be installed, found none; "
        f"pip install 'swap_fast[{name}]'\n"
    )
    assert not list((tmp_path / "out").glob("checkpoints/*"))
    require_trackers(())


class Calls:
    """Notes each call of what it stands in for, with the names of keywords."""

    def __init__(self, **answers: Any) -> None:
        self.made: list[tuple[Any, ...]] = []
        self._answers = answers

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            self.made.append((name, *arguments, *([named] if named else [])))
            return self._answers.get(name)

        return call


def test_wandb_is_called_as_its_interface_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Calls()
    module = Calls(init=run, Settings="settings")
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    assert track(WandB(tmp_path / "new")) == []
    (_, settings), (_, begun) = module.made
    assert settings == {"silent": True, "console": "off"}
    assert begun.pop("config")["seed"] == 3
    name = "small-seed3-20261122120000"
    assert begun == {
        **{"project": "mine", "id": name, "name": name, "resume": "allow"},
        **{"dir": str(tmp_path / "new"), "settings": "settings"},
    }
    logged = [call[1] for call in run.made if call[0] == "log"]
    assert logged == [
        {f"phase1/{name}": value for name, value in PHASE1.items()} | {"phase1/epoch": 1},
        {f"phase2/worker1/{name}": value for name, value in WORKER.items()}
        | {"phase2/worker1/epoch": 1},
        {f"final/{name}": value for name, value in FINAL.items()} | {"final/epoch": 0},
    ]
    defined = [call[1:] for call in run.made if call[0] == "define_metric"]
    assert defined[:2] == [
        ("phase1/epoch", {"hidden": True}),
        ("phase1/*", {"step_metric": "phase1/epoch"}),
    ]
    assert run.made[-1] == ("finish", {"exit_code": 0})


@pytest.mark.parametrize("is_there", [False, True])
def test_mlflow_is_called_as_its_interface_says(
    is_there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = SimpleNamespace(info=SimpleNamespace(run_id="r7"))
    client = Calls(
        get_experiment_by_name=SimpleNamespace(experiment_id="e1") if is_there else None,
        create_experiment="e1",
        search_runs=[made] if is_there else [],
        create_run=made,
    )
    module = SimpleNamespace(MlflowClient=lambda: client)
    monkeypatch.setitem(sys.modules, "mlflow", module)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    assert track(MLflow()) == []
    names = [call[0] for call in client.made]
    assert ("create_experiment" in names) == ("create_run" in names) == (not is_there)
    run = "small-seed3-20261122120000"
    assert ("search_runs", ["e1"], f"attributes.run_name = '{run}'") in client.made
    parameters = {call[2]: call[3] for call in client.made if call[0] == "log_param"}
    assert parameters == (
        {}
        if is_there
        else {
            **{"recipe.name": "small", "recipe.phase1.peak_lr": "0.5", "seed": "3"},
            **{"world_size": "2", "machine.device": "Example CPU"},
        }
    )
    ten = 1795348810000  # 2026-11-22 12:00:10 UTC in milliseconds
    metrics = [call[1:] for call in client.made if call[0] == "log_metric"]
    assert metrics == [
        *[("r7", f"phase1/{name}", value, ten, 1) for name, value in PHASE1.items()],
        *[("r7", f"phase2/worker1/{name}", v, ten + 10000, 1) for name, v in WORKER.items()],
        *[("r7", f"final/{name}", value, ten + 20000, 0) for name, value in FINAL.items()],
    ]
    assert client.made[-1] == ("set_terminated", "r7", "FINISHED")


class Noting:
    """A tracker that notes what it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def begin(self, run: str, configuration: dict[str, Any]) -> None:
        self.told.append(run)

    def log(self, group: str, values: dict[str, float], step: int, time_s: float) -> None:
        self.told.append((group, step))

    def end(self, *, well: bool) -> None:
        self.told.append(well)


@pytest.mark.parametrize("kind", ["interrupted", "failed", "part_done"])
def test_each_end_is_told(kind: str) -> None:
    noting = Noting()
    track(noting, [*EVENTS[:4], at(11, kind)])
    assert noting.told == ["small-seed3-20261122120000", ("phase1", 1), kind == "part_done"]


@pytest.mark.parametrize("where", ["begin", "log", "end"])
def test_a_tracker_that_fails_is_said_once(where: str) -> None:
    class Failing(Noting):
        pass

    def fail(*arguments: Any, **named: Any) -> None:
        raise ConnectionError("no\nroute")

    setattr(Failing, where, fail)
    said = track(Failing())
    assert said == ["tracker failed, and gets no more events of the run: no route"]


def test_training_does_not_wait_for_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(trackers, "LAST_WAIT_S", 0.01)
    answers = threading.Event()

    class Hanging(Noting):
        def begin(self, run: str, configuration: dict[str, Any]) -> None:
            answers.wait()

    said = track(Hanging())
    assert said == ["tracker did not take everything within 0 s"]
    answers.set()
