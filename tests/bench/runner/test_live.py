"""A whole run tells of itself: as JSON on standard output, and by one file when it is done."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.cli import main
from bench.options import RunOptions
from swap_fast.callbacks import emitter
from swap_fast.callbacks.events import read_events

pytestmark = pytest.mark.usefixtures("small_cifar")

RUN = [
    *("run", "cifar10_quick", "--dataset", "cifar10", "--train-images", "256", "--width", "4"),
    *("--phase1.global-batch-size", "64", "--phase1.max-epochs", "2", "--phase2.max-epochs", "1"),
    *("--device", "cpu", "--threads", "1"),
]


@pytest.mark.parametrize("ranks", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_json_is_all_that_is_printed(ranks: str, tmp_path: Path, capfd) -> None:
    assert main([*RUN, "--json", "--ranks", ranks, "--out", str(tmp_path)]) == 0
    said = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    (folder,) = (tmp_path / "checkpoints").iterdir()
    (record,) = (tmp_path / "runs").iterdir()
    kept = read_events(folder)
    # What the launching process says stands around the run's own, which are those of the file.
    own = [event for event in said if event in kept]
    assert sorted(event["time"] for event in own) == [event["time"] for event in kept]
    assert {event["event"] for event in said if event not in kept} == {"note"}
    first, last = kept[0], kept[-1]
    assert (first["event"], first["run"], first["seed"]) == ("began", folder.name, 0)
    assert (first["recipe"]["width"], first["world_size"]) == (4, int(ranks))
    assert first["machine"]["device_type"] == "cpu"
    told = json.loads(record.read_text())
    assert (last["event"], last["record"]) == ("done", str(record))
    assert last["test_accuracy"] == told["test_accuracy"]
    rows = [event for event in kept if event["event"] == "epoch"]
    assert {(e["phase"], e["worker"], e["epoch"], e["train_loss"]) for e in rows} == {
        (r["phase"], r["worker"], r["epoch"], r["train_loss"]) for r in told["epochs"]
    }


def test_a_run_that_diverges_says_so(tmp_path: Path) -> None:
    assert main([*RUN, "--ranks", "1", "--out", str(tmp_path), "--phase1.peak-lr", "1e30"]) == 1
    (folder,) = (tmp_path / "checkpoints").iterdir()
    last = read_events(folder)[-1]
    assert last["event"] == "failed"
    assert last["error"].startswith("FloatingPointError: phase 1, worker 0, epoch ")


@pytest.mark.slow
def test_workers_that_are_processes_are_shown_by_the_one_that_waits(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = [*RUN, "--ranks", "2", "--phase2", "separate", "--out", str(tmp_path)]
    assert main([*run, "--track", "tensorboard"]) == 0
    lines = capfd.readouterr().out.splitlines()
    # Shown once as it happens, and named once more by the process that averages.
    for worker in range(4):
        own = [line for line in lines if line.startswith(f"phase 2, worker {worker} ")]
        assert ["epoch   1/1" in line for line in own] == [True, False]
        assert own[1].endswith("done after epoch 1, as it was saved")
    (folder,) = (tmp_path / "checkpoints").iterdir()
    events = read_events(folder)
    parts = {event["part"] for event in events if event["event"] == "part_done"}
    assert parts == {"run", *(f"worker{worker}" for worker in range(4))}
    assert [path.name for path in folder.glob("events*")] == ["events.jsonl"]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(tmp_path / "tensorboard" / folder.name))
    found.Reload()
    tags = found.Tags()["scalars"]
    assert all(f"phase2/worker{worker}/train_loss" in tags for worker in range(4))
    assert [s.step for s in found.Scalars("phase1/train_loss")] == [1, 2]


def test_json_and_quiet_exclude_each_other() -> None:
    with pytest.raises(ValueError, match=r"^json: expected without quiet, which prints nothing"):
        RunOptions(json=True, quiet=True)


def test_a_folder_that_cannot_be_written_costs_the_events_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **named: object) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(emitter, "EventFile", refuse)
    assert main([*RUN, "--ranks", "1", "--quiet", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().err == "bench: no events of this run are kept: read-only\n"
    assert len(list((tmp_path / "runs").iterdir())) == 1
