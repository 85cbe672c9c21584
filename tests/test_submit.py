"""A run as jobs, by submitit's local executor: the same bits, and a job that goes on."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bench.cli import main
from bench.commands import derived
from bench.options import JobOptions, RunOptions
from bench.submit import JobPart
from swap_fast.recipes import cifar10_quick

pytest.importorskip("submitit")

SMALL = [
    *("--dataset", "synthetic", "--train-images", "1024", "--width", "4"),
    *("--phase1.max-epochs", "2", "--phase1.warmup-epochs", "0.5", "--phase2.max-epochs", "1"),
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
    assert f"record: {record}" in said
    assert json.loads(record.read_text())["interruptions"] is None


@pytest.mark.slow
def test_a_pre_empted_job_goes_on(whole: dict[str, torch.Tensor], tmp_path: Path) -> None:
    from submitit import AutoExecutor

    original = cifar10_quick()
    recipe = replace(
        original,
        dataset="synthetic",
        train_images=1024,
        width=4,
        phase1=replace(original.phase1, max_epochs=2, warmup_epochs=0.5),
        phase2=replace(original.phase2, max_epochs=1),
    )
    options = RunOptions(ranks=1, threads=1, device="cpu", quiet=True, out=tmp_path)
    folder = tmp_path / "checkpoints" / "run"
    executor = AutoExecutor(folder=tmp_path / "jobs", cluster="local")
    executor.update_parameters(timeout_min=10)
    part = JobPart(
        options=options, recipe=derived(recipe), original=original, part="all", folder=folder
    )
    job = executor.submit(part)
    while not list(folder.glob("phase1-epoch1.json")):
        assert not job.done()
        time.sleep(0.01)
    job._interrupt()  # as a cluster does that needs the node
    job.result()
    assert all(torch.equal(final(folder)[name], tensor) for name, tensor in whole.items())
    (record,) = (tmp_path / "runs").glob("*.json")
    assert json.loads(record.read_text())["interruptions"]["count"] == 1


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
