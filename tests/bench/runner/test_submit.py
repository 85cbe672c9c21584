"""A run as jobs, by submitit's local executor: the same bits as of one run."""

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
from bench.options import JobOptions
from bench.runner.session import check_ranks
from bench.runner.slurm import default_gpus
from swap_fast.recipes.cifar10 import RECIPES

pytest.importorskip("submitit")

pytestmark = pytest.mark.usefixtures("small_cifar")

SMALL = [
    *("--dataset", "cifar10", "--train-images", "2048", "--width", "4"),
    *("--phase1.max-epochs", "6", "--phase1.warmup-epochs", "0.5", "--phase2.max-epochs", "1"),
    *("--ranks", "1", "--threads", "1", "--device", "cpu", "--quiet"),
]
JOBS = ["--cluster", "local", "--gpus-per-node", "0"]


def final(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "final.safetensors")


@pytest.fixture(scope="module")
def whole(small_cifar: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    out = tmp_path_factory.mktemp("whole")
    assert main(["run", "cifar10_quick", *SMALL, "--out", str(out)]) == 0
    (folder,) = (out / "checkpoints").iterdir()
    return final(folder)


@pytest.mark.slow
def test_jobs_end_with_the_bits_of_a_run(
    whole: dict[str, torch.Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", "cifar10_quick", *SMALL, *JOBS, "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert [line.split(": ")[1] for line in said.splitlines()[:-1]] == [
        "phase 1",
        *(f"phase 2, worker {worker}" for worker in range(4)),
        "phase 3",
    ]
    (folder,) = (tmp_path / "checkpoints").iterdir()
    assert all(torch.equal(final(folder)[name], tensor) for name, tensor in whole.items())
    (record,) = (tmp_path / "runs").glob("*.json")
    assert f"record: {record}" in said
    assert json.loads(record.read_text())["interruptions"] is None


def tell_the_job_of_phase_1(out: Path, number: int, *options: str) -> subprocess.Popen[str]:
    """Submit, and send its first job a signal when it has a checkpoint."""
    command = [sys.executable, "-m", "bench", "submit", "cifar10_quick", *SMALL, *JOBS, *options]
    process = subprocess.Popen(
        [*command, "--out", str(out)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not (saved := list(out.glob("checkpoints/*/phase1-epoch1.json"))):
        assert process.poll() is None, "it ended before it was told"
        time.sleep(0.01)
    attempt = json.loads((saved[0].parent / "attempt-run-0001.json").read_text())
    os.kill(attempt["process"], number)
    return process


@pytest.mark.slow
def test_a_job_that_is_pre_empted_is_queued_again_and_goes_on(
    whole: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    # The signal that SLURM sends for submitit before it takes a node away.
    process = tell_the_job_of_phase_1(tmp_path, signal.SIGUSR2)
    said, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    (record,) = (tmp_path / "runs").glob("*.json")
    assert f"record: {record}" in said
    assert json.loads(record.read_text())["interruptions"]["count"] == 1
    (folder,) = (tmp_path / "checkpoints").iterdir()
    assert all(torch.equal(final(folder)[name], tensor) for name, tensor in whole.items())


@pytest.mark.slow
def test_a_job_that_is_told_to_end_says_how_to_go_on(
    whole: dict[str, torch.Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    process = tell_the_job_of_phase_1(tmp_path, signal.SIGTERM)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 1
    (folder,) = (tmp_path / "checkpoints").iterdir()
    last = error.strip().splitlines()[-1]
    assert last.startswith(f"bench: {folder.name}: a job did not end well (Job ")
    assert last.endswith("); the same command with --resume continues it")
    again = ["submit", "cifar10_quick", *SMALL, *JOBS, "--resume", "--out", str(tmp_path)]
    assert main([*again, "--width", "8"]) == 1
    assert "recipe.width 8 in place of 4" in capsys.readouterr().err
    assert main(again) == 0
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [folder.name]
    assert all(torch.equal(final(folder)[name], tensor) for name, tensor in whole.items())


def test_where_there_is_no_slurm_it_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["submit", "cifar10_quick", *SMALL, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("bench: submit: ")
    assert error.endswith("--cluster local runs the jobs here\n")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--share-phase1"], "submit: expected a run of its own, got --share-phase1 "),
        (["--phase2", "separate"], "submit: expected a run of its own, got --share-phase1 "),
        (["--gpus-per-node", "3", "--nodes", "3"], "ranks: expected 1 to 4, one a replica of "),
    ],
)
def test_what_jobs_cannot_do_is_refused_before_they_are_submitted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], line: str
) -> None:
    small = SMALL[: SMALL.index("--ranks")]
    assert main(["submit", "cifar10_quick", *small, *flags, "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"bench: {line}")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("recipe", "nodes", "gpus"),
    [
        ("cifar10_swap", 1, 8),
        ("cifar10_sgd_small", 1, 2),
        ("imagenet_swap", 1, 8),
        ("imagenet_swap", 2, 8),
        ("imagenet_swap", 3, 4),  # 15 processes cannot share 2 workers
    ],
)
def test_by_default_a_job_has_the_gpus_that_its_recipe_can_use(
    recipe: str, nodes: int, gpus: int
) -> None:
    made = RECIPES[recipe]()
    found = default_gpus(JobOptions(nodes=nodes), made)
    assert found == gpus
    check_ranks(made, nodes * found)


@pytest.mark.parametrize("name", ["nodes", "cpus_per_task", "time_min", "at_once"])
def test_counts_below_one_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected 1 or more, got 0"):
        JobOptions(**{name: 0})
