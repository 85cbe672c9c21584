"""Runs under a launcher of the user's own: nodes that torchrun joins, and ranks that fail."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.launch import launch
from swap_fast.comm import connect
from swap_fast.record import read_record

RUN = ["bench", "run", "cifar10_quick", "--dataset", "synthetic", "--device", "cpu"]
SMALL = ["--train-images", "512", "--width", "2", "--phase1.max-epochs", "1", "--threads", "1"]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


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
