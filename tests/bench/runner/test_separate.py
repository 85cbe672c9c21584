"""Each worker of phase 2 as a process of its own: the same bits, and one death costs one worker."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bench.cli import main

pytestmark = pytest.mark.usefixtures("small_cifar")

SMALL = [
    *("--dataset", "cifar10", "--train-images", "1024", "--width", "4"),
    *("--phase1.max-epochs", "1", "--phase1.warmup-epochs", "0.5", "--phase2.max-epochs", "2"),
    *("--ranks", "1", "--threads", "1", "--device", "cpu", "--quiet"),
]
RUN = ["run", "cifar10_quick", *SMALL]
SEPARATE = [*RUN, "--phase2", "separate"]


def final(out: Path) -> dict[str, torch.Tensor]:
    (path,) = out.glob("checkpoints/*/final.safetensors")
    return load_file(path)


def record(out: Path) -> dict:
    (path,) = (out / "runs").glob("*.json")
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def together(small_cifar: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("together")
    assert main([*RUN, "--out", str(out)]) == 0
    return out


def kill_worker(out: Path, number: int, *options: str) -> str:
    """Run, kill a worker as soon as it has begun, and return what is said in the end."""
    command = [sys.executable, "-m", "bench", *SEPARATE, "--out", str(out), *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while not (found := list(out.glob(f"checkpoints/*/attempt-worker{number}-*.json"))):
            assert process.poll() is None, "it ended before the worker began"
            time.sleep(0.01)
        os.kill(json.loads(found[0].read_text())["process"], signal.SIGKILL)
        _, error = process.communicate(timeout=180)
    assert process.returncode == 1
    return error.strip().splitlines()[-1]


@pytest.mark.slow
def test_separate_workers_end_with_the_bits_of_those_together(
    together: Path, tmp_path: Path
) -> None:
    assert main([*SEPARATE, "--out", str(tmp_path)]) == 0
    ours, expected = final(tmp_path), final(together)
    assert all(torch.equal(ours[name], tensor) for name, tensor in expected.items())
    assert record(tmp_path)["interruptions"] is None
    rows = [
        [(row["phase"], row["worker"], row["epoch"], row["train_loss"]) for row in each["epochs"]]
        for each in (record(tmp_path), record(together))
    ]
    assert rows[0] == rows[1]
    names = [sorted(p.name for p in o.glob("checkpoints/*/*")) for o in (tmp_path, together)]
    assert names[0] == names[1]


@pytest.mark.slow
def test_a_dead_worker_is_run_again_alone(together: Path, tmp_path: Path) -> None:
    said = kill_worker(tmp_path, 1)
    assert said == (
        "bench: worker 1 missing; the same command with --resume runs it alone, and with "
        "--min-workers 3 leaves it out"
    )
    (folder,) = (tmp_path / "checkpoints").iterdir()
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("worker[023]-epoch2.safetensors")}
    assert len(kept) == 3
    assert main([*SEPARATE, "--out", str(tmp_path), "--resume"]) == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == kept  # they are not run again
    ours, expected = final(tmp_path), final(together)
    assert all(torch.equal(ours[name], tensor) for name, tensor in expected.items())
    assert record(tmp_path)["interruptions"]["count"] == 1


@pytest.mark.slow
def test_the_average_may_leave_a_dead_worker_out(together: Path, tmp_path: Path) -> None:
    kill_worker(tmp_path, 2)
    (folder,) = (tmp_path / "checkpoints").iterdir()
    run = [*SEPARATE, "--out", str(tmp_path), "--resume", "--min-workers", "3"]
    # The worker is tried again first: make that fail too.
    command = [sys.executable, "-m", "bench", *run]
    with subprocess.Popen(command, text=True) as process:
        while not (found := list(folder.glob("attempt-worker2-0002.json"))):
            assert process.poll() is None
            time.sleep(0.01)
        os.kill(json.loads(found[0].read_text())["process"], signal.SIGKILL)
        assert process.wait(timeout=180) == 0
    told = record(tmp_path)
    assert told["flags"] == ["degraded"]
    assert len(told["worker_accuracies"]) == 3
    assert {row["worker"] for row in told["epochs"] if row["phase"] == 2} == {0, 1, 3}
    workers = [load_file(folder / f"worker{w}-epoch2.safetensors") for w in (0, 1, 3)]
    mean = torch.stack([worker["linear.weight"].double() for worker in workers]).mean(0)
    torch.testing.assert_close(final(tmp_path)["linear.weight"].double(), mean, rtol=0, atol=1e-7)
    assert main(["report", "--results", str(tmp_path)]) == 0
    assert "degraded: averaged 3 of 4 workers" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--min-workers", "2"], "min_workers: expected --phase2 separate beside it, got together"),
        (["--phase2", "separate", "--min-workers", "0"], "min_workers: expected 1 or more, got 0"),
    ],
)
def test_what_makes_no_sense_is_refused(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*RUN, "--out", str(tmp_path), *options]) == 2
    assert message in capsys.readouterr().err


def test_sgd_has_no_workers_to_separate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ["run", "cifar10_sgd_small_cpu", "--dataset", "synthetic", "--phase2", "separate"]
    assert main([*run, "--out", str(tmp_path), "--quiet"]) == 2
    assert "phase2: separate is for SWAP with one device a worker" in capsys.readouterr().err
