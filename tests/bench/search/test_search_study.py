"""The study: each point once, whoever works at it, and what becomes of points that end badly."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("optuna", reason="Optuna is not installed")

from bench.search import study as search_study
from bench.search.grid import Grid, Point, Scores
from bench.search.study import GridStudy
from swap_fast.shutdown import InterruptedRunError

GRID = Grid(values={"phase1.peak_lr": (0.5, 1.0, 2.0), "width": (4, 8)})
SETTINGS = {"held_out": 10, "seeds": [0]}

# A process that notes each point as it begins it, and lingers, so that others come in between.
WORKER = """
import json, sys, time
from bench.search.grid import Grid
from bench.search.grid import Scores
from bench.search.study import GridStudy
url, notes, seconds = sys.argv[1:]
grid = Grid(values={"phase1.peak_lr": (0.5, 1.0, 2.0), "width": (4, 8)})
def measure(point):
    with open(notes, "a") as file:
        file.write(json.dumps(point) + "\\n")
    time.sleep(float(seconds))
    return Scores(accuracies=(0.5,), times_s=(1.0,), phase1_epochs=(1,), run_ids=("a",))
GridStudy(url, "s", grid, {"held_out": 10, "seeds": [0]}).work(measure)
"""


def _study(folder: Path, grid: Grid = GRID, **settings: object) -> GridStudy:
    return GridStudy(f"sqlite:///{folder / 's.db'}", "s", grid, {**SETTINGS, **settings})


def _measure(point: Point) -> Scores:
    accuracy = float(point["phase1.peak_lr"]) / 10 + int(point["width"]) / 100  # type: ignore[arg-type]
    return Scores(accuracies=(accuracy,), times_s=(1.0,), phase1_epochs=(2,), run_ids=("a",))


def _start(folder: Path, seconds: float) -> subprocess.Popen[bytes]:
    arguments = [f"sqlite:///{folder / 's.db'}", str(folder / "notes"), str(seconds)]
    return subprocess.Popen([sys.executable, "-c", WORKER, *arguments])


def test_each_point_is_measured_once_with_its_values(tmp_path: Path) -> None:
    ended = []
    study = _study(tmp_path)
    study.work(_measure, on_end=ended.append)
    assert [dict(o.point) for o in ended] == [dict(p) for p in GRID.points]
    assert {o.state for o in study.outcomes} == {"done"}
    assert {json.dumps(o.point): o.scores for o in study.outcomes} == {
        json.dumps(p): _measure(p) for p in GRID.points
    }


def test_a_later_call_goes_on_where_the_last_one_stopped(tmp_path: Path) -> None:
    first, rest = [], []
    _study(tmp_path).work(_measure, limit=4, on_end=first.append)
    study = _study(tmp_path)
    study.work(_measure, on_end=rest.append)
    assert [dict(o.point) for o in first + rest] == [dict(p) for p in GRID.points]
    study.work(_measure, on_end=rest.append)
    assert len(first + rest) == len(GRID.points)


@pytest.mark.parametrize("signal", [KeyboardInterrupt(), InterruptedRunError("SIGTERM")], ids=repr)
def test_an_interrupted_point_is_measured_by_the_next_call(
    tmp_path: Path, signal: BaseException
) -> None:
    def interrupted(point: Point) -> Scores:
        raise signal

    study, ended = _study(tmp_path), []
    with pytest.raises(type(signal)):
        study.work(interrupted)
    assert {o.state for o in study.outcomes} == {"waiting"}
    study.work(_measure, on_end=ended.append)
    assert len(ended) == len(GRID.points)
    assert {o.state for o in study.outcomes} == {"done"}


def test_divergence_is_a_result_and_another_failure_is_tried_once_a_call(tmp_path: Path) -> None:
    calls: Counter[float] = Counter()

    def measure(point: Point) -> Scores:
        rate = float(point["phase1.peak_lr"])  # type: ignore[arg-type]
        calls[rate] += 1
        if rate == 2.0:
            raise FloatingPointError("the loss is nan")
        if rate == 1.0:
            raise RuntimeError("out of memory")
        return _measure(point)

    study = _study(tmp_path)
    study.work(measure)
    assert calls == {0.5: 2, 1.0: 2, 2.0: 2}
    states = [(o.point["phase1.peak_lr"], o.state, o.why) for o in study.outcomes]
    assert states == [
        *[(0.5, "done", None)] * 2,
        *[(1.0, "failed", "out of memory")] * 2,
        *[(2.0, "diverged", "the loss is nan")] * 2,
    ]
    study.work(measure)
    assert calls == {0.5: 2, 1.0: 4, 2.0: 2}


def test_a_wider_grid_adds_its_new_points(tmp_path: Path) -> None:
    _study(tmp_path).work(_measure)
    wider = Grid(values={"phase1.peak_lr": (1.0, 4.0), "width": (4, 8)})
    study, ended = _study(tmp_path, wider), []
    study.work(_measure, on_end=ended.append)
    assert [o.point["phase1.peak_lr"] for o in ended] == [4.0, 4.0]
    assert len(study.outcomes) == 8


def test_another_search_of_the_same_name_is_refused(tmp_path: Path) -> None:
    _study(tmp_path)
    with pytest.raises(
        ValueError, match=r"^search s: was started with held_out = 10, got 20; take"
    ):
        _study(tmp_path, held_out=20)


@pytest.mark.parametrize("url", ["no url", "nosuchdb://host/x", "sqlite:////no/such/folder/x.db"])
def test_a_database_that_cannot_be_had_gets_one_line(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_study, "OPENINGS", 1)
    with pytest.raises(ValueError, match=r"^--storage[^\n]*$"):
        GridStudy(url, "s", GRID, SETTINGS)


@pytest.mark.slow
def test_processes_at_one_study_measure_each_point_once(tmp_path: Path) -> None:
    # Started at the same time, they also make the database at the same time.
    processes = [_start(tmp_path, 0.2) for _ in range(3)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0, 0]
    notes = (tmp_path / "notes").read_text().splitlines()
    assert sorted(notes) == sorted(json.dumps(dict(point)) for point in GRID.points)


@pytest.mark.slow
def test_a_killed_processs_point_is_measured_by_another_after_the_grace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = _start(tmp_path, 600)
    try:
        while not (tmp_path / "notes").exists():
            assert process.poll() is None
    finally:
        process.kill()
        process.wait()
    study, ended = _study(tmp_path), []
    study.work(_measure, on_end=ended.append)
    assert len(ended) == len(GRID.points) - 1
    assert [o.state for o in study.outcomes].count("running") == 1
    monkeypatch.setattr(search_study, "GRACE_S", 1)
    time.sleep(2.5)  # a heartbeat is kept in whole seconds
    study = _study(tmp_path)
    study.work(_measure, on_end=ended.append)
    assert len(ended) == len(GRID.points)
    assert {o.state for o in study.outcomes} == {"done"}


def test_a_point_whose_process_was_killed_right_after_its_claim_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from optuna.trial import TrialState

    study, ended = _study(tmp_path), []
    study._queue(again=True)
    claimed = study._trials()[0]
    study._database.set_trial_state_values(claimed._trial_id, state=TrialState.RUNNING)
    study.work(_measure, on_end=ended.append)
    assert len(ended) == len(GRID.points) - 1, "it may still begin"
    monkeypatch.setattr(search_study, "GRACE_S", 0.01)
    study.work(_measure, on_end=ended.append)
    assert len(ended) == len(GRID.points)
