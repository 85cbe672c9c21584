"""Runs under a launcher of the user's own: nodes that torchrun joins, and ranks that fail."""

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
from processes import all_end, free_port
from safetensors.torch import load_file

from bench.cli import main
from bench.runner.launch import launch
from swap_fast.checkpoint.attempts import is_running
from swap_fast.distributed import connect
from swap_fast.record_files import read_record

pytestmark = pytest.mark.usefixtures("small_cifar")

RUN = ["bench", "run", "cifar10_quick", "--dataset", "cifar10", "--device", "cpu"]
SMALL = ["--train-images", "512", "--width", "2", "--phase1.max-epochs", "1", "--threads", "1"]


@pytest.mark.slow
def test_two_nodes_make_one_run(tmp_path: Path) -> None:
    agent = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nnodes",
        "2",
        "--nproc-per-node",
        "1",
    ]
    agent += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{free_port()}"]
    agent += ["--rdzv-id", "test", "--local-addr", "127.0.0.1", "-m", *RUN, *SMALL]
    nodes = [
        subprocess.Popen(
            [*agent, "--out", str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(2)
    ]
    outputs = [node.communicate(timeout=180)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], outputs
    (path,) = (tmp_path / "runs").glob("*.json")
    record = read_record(path)
    assert record.world_size == 2
    assert len(record.worker_accuracies) == 4
    assert len(record.times.laps_by_rank) == 2


@pytest.mark.slow
def test_ranks_of_different_commands_all_end_with_the_same_line(tmp_path: Path) -> None:
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = [sys.executable, "-m", *RUN, *SMALL, "--out", str(tmp_path)]
    ranks = [
        subprocess.Popen(
            [*command, "--phase1.peak-lr", rate],
            env=os.environ | shared | {"RANK": rank, "LOCAL_RANK": rank},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, rate in (("0", "0.1"), ("1", "0.2"))
    ]
    said = [rank.communicate(timeout=100)[1].splitlines()[-1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [2, 2]
    assert said == 2 * [
        "bench: ranks: expected the same settings on all, got recipe.phase1.peak_lr 0.1 on rank 0, "
        "0.2 on rank 1; start all with the same command"
    ]


def stop_on_rank_1() -> None:
    """Rank 1 stops, as on a node that hangs, while rank 0 waits for it."""
    comm = connect("cpu", timeout_s=5)
    if comm.rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    comm.barrier()


def kill_rank_1() -> None:
    """Rank 1 is killed, as by a system out of memory, while rank 0 waits for it."""
    comm = connect("cpu", timeout_s=30)
    if comm.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    comm.barrier()


@pytest.mark.slow
def test_a_rank_that_hangs_ends_the_run_with_its_name() -> None:
    started = time.monotonic()
    with pytest.raises(RuntimeError, match="no answer from rank 1, which hangs") as caught:
        launch(stop_on_rank_1, num_ranks=2)
    assert time.monotonic() - started < 90
    assert "\n" not in str(caught.value)


def test_a_rank_that_is_killed_ends_the_run_with_its_name() -> None:
    with pytest.raises(RuntimeError, match=r"^rank 1 was ended by SIGKILL$"):
        launch(kill_rank_1, num_ranks=2)


TWO = ["run", "cifar10_quick", "--dataset", "cifar10", "--device", "cpu", "--ranks", "2"]
TWO += ["--train-images", "1024", "--width", "4", "--phase1.max-epochs", "2", "--threads", "1"]
TWO += ["--phase1.warmup-epochs", "0.5", "--phase2.max-epochs", "2", "--quiet", "--resume"]
"""Two epochs that two processes share, then two of each of four workers, two at a time."""


def kill_one_process_at(out: Path, checkpoint: str) -> tuple[Path, str]:
    """Run, kill a process when a checkpoint is there; the run's folder, and what it said."""
    command = [sys.executable, "-m", "bench", *TWO, "--out", str(out)]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        while not list(out.glob(f"checkpoints/*/{checkpoint}.json")):
            assert process.poll() is None, "it ended before it was killed"
            time.sleep(0.01)
        (folder,) = (out / "checkpoints").iterdir()
        first = json.loads((folder / "attempt-run-0001.json").read_text())["process"]
        os.kill(first, signal.SIGKILL)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 1
    assert all_end(process.pid), "an orphan was left"
    assert not is_running(folder)
    return folder, error.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def whole(small_cifar: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    out = tmp_path_factory.mktemp("whole")
    assert main([*TWO, "--out", str(out)]) == 0
    (path,) = out.glob("checkpoints/*/final.safetensors")
    return load_file(path)


@pytest.mark.slow
def test_a_run_whose_process_is_killed_in_phase_1_says_so_and_goes_on_to_the_same_bits(
    whole: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    folder, said = kill_one_process_at(tmp_path, "phase1-epoch1")
    assert said == "bench: rank 0 was ended by SIGKILL in phase 1 after epoch 1"
    assert main([*TWO, "--out", str(tmp_path)]) == 0
    ours = load_file(folder / "final.safetensors")
    assert all(torch.equal(ours[name], tensor) for name, tensor in whole.items())


@pytest.mark.slow
def test_workers_that_were_done_when_a_process_was_killed_are_not_run_again(
    whole: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    folder, said = kill_one_process_at(tmp_path, "worker2-epoch1")
    assert said.startswith("bench: rank 0 was ended by SIGKILL in phase 2 after epoch ")
    done = [folder / f"worker{worker}-epoch2.safetensors" for worker in (0, 1)]
    kept = [path.stat().st_mtime_ns for path in done]
    assert main([*TWO, "--out", str(tmp_path)]) == 0
    assert [path.stat().st_mtime_ns for path in done] == kept
    ours = load_file(folder / "final.safetensors")
    assert all(torch.equal(ours[name], tensor) for name, tensor in whole.items())
