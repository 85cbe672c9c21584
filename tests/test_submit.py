"""A run as jobs, by submitit's local executor: the same bits as of one run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bench.cli import main
from bench.options import JobOptions

pytest.importorskip("submitit")

SMALL = [
    *("--dataset", "synthetic", "--train-images", "4096", "--width", "4"),
    *("--phase1.max-epochs", "8", "--phase1.warmup-epochs", "0.5", "--phase2.max-epochs", "1"),
    *("--ranks", "1", "--threads", "1", "--device", "cpu", "--quiet"),
]
JOBS = ["--cluster", "local", "--gpus-per-node", "0"]


def final(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "final.safetensors")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
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
    assert f"done: record {record}" in said
    assert json.loads(record.read_text())["interruptions"] is None


def test_where_there_is_no_slurm_it_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["submit", "cifar10_quick", *SMALL, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("bench: submit: ")
    assert error.endswith("--cluster local runs the jobs here\n")
    assert error.count("\n") == 1


@pytest.mark.parametrize("name", ["nodes", "cpus_per_task", "time_min", "at_once"])
def test_counts_below_one_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected 1 or more, got 0"):
        JobOptions(**{name: 0})
