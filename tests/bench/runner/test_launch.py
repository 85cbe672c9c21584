"""Starting ranks: their result, and what is said when one fails or all are interrupted."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from processes import all_end
from repository import ROOT

from bench.runner.launch import launch
from swap_fast.distributed import connect
from swap_fast.shutdown import EXIT_STATUS, SIGNAL_INTERVAL_S


def add_ranks(start: float) -> float:
    """Sum over the ranks, on each of them."""
    comm = connect("cpu", timeout_s=30)
    total = comm.all_reduce_(torch.tensor(start + comm.rank)).item()
    comm.close()
    return total


def fail_on_rank_1(error: type[Exception]) -> None:
    """Raise on rank 1, while rank 0 waits for it in a collective."""
    comm = connect("cpu", timeout_s=30)
    if comm.rank == 1:
        raise error("data_batch_3.bin: expected whole records")
    comm.barrier()


def test_one_rank_is_called_right_here() -> None:
    assert launch(os.getpid, num_ranks=1) == os.getpid()


def test_ranks_work_together() -> None:
    assert launch(add_ranks, 10.0, num_ranks=2) == 21.0


def test_the_machine_s_name_need_not_resolve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.getfqdn", lambda name="": "a-name-that-does-not-resolve.invalid")
    assert launch(add_ranks, 10.0, num_ranks=2) == 21.0


def test_a_port_that_is_taken_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither torch's usual one nor one that the environment names."""
    with socket.socket() as usual, socket.socket() as named:
        with suppress(OSError):  # taken already
            usual.bind(("127.0.0.1", 29500))
        named.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MASTER_PORT", str(named.getsockname()[1]))
        assert launch(add_ranks, 10.0, num_ranks=2) == 21.0


def test_a_rank_s_value_error_is_the_launcher_s() -> None:
    with pytest.raises(ValueError, match=r"^data_batch_3\.bin: expected whole records$"):
        launch(fail_on_rank_1, ValueError, num_ranks=2)


def test_another_failure_names_the_rank_in_one_line() -> None:
    with pytest.raises(RuntimeError, match=r"^rank 1 failed: OSError: data_batch_3") as caught:
        launch(fail_on_rank_1, OSError, num_ranks=2)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_an_interrupt_ends_all_ranks_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench", "run", "cifar10_quick", "--dataset", "synthetic"]
    command += ["--ranks", "2", "--threads", "1", "--device", "cpu", "--out", str(tmp_path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        while "phase 1" not in (line := process.stdout.readline()):
            assert line, process.stderr and process.stderr.read()
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to every process
        _, error = process.communicate(timeout=60)
    assert process.returncode == EXIT_STATUS == 75
    last = error.strip().splitlines()[-1]
    assert last.startswith("bench: interrupted (")
    assert last.endswith("); the same command with --resume continues it")
    assert "Traceback" not in error
    assert not list((tmp_path / "runs").glob("*.json"))
    assert all_end(process.pid), "an orphan was left"


LONG_STEP = """
import os, sys, time
from pathlib import Path
from bench.runner.launch import launch
from swap_fast.shutdown import EXIT_STATUS, GracefulShutdown, InterruptedRunError

def step(folder):
    shutdown = GracefulShutdown()
    with shutdown.installed(), shutdown.training():
        (Path(folder) / f"in-step-{os.environ['RANK']}").touch()
        time.sleep(100)

if __name__ == "__main__":
    try:
        launch(step, sys.argv[1], num_ranks=2)
    except InterruptedRunError:
        sys.exit(EXIT_STATUS)
"""


@pytest.mark.slow
def test_the_second_signal_ends_all_ranks_at_once(tmp_path: Path) -> None:
    """The first waits for the end of a step, of 100 s."""
    (tmp_path / "script.py").write_text(LONG_STEP)
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "script.py"), str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    while len(list(tmp_path.glob("in-step-*"))) < 2:
        assert process.poll() is None, "it ended before it was told"
        time.sleep(0.01)
    process.terminate()
    time.sleep(SIGNAL_INTERVAL_S + 0.5)
    assert process.poll() is None
    process.terminate()
    assert process.wait(timeout=20) == EXIT_STATUS
    assert all_end(process.pid), "an orphan was left"


def leave_on_rank_1() -> None:
    """Rank 1 ends as if all were well, by an exit that Python does not see."""
    if os.environ["RANK"] == "1":
        os._exit(0)


def die_on_rank_1() -> None:
    """Be killed on rank 1; rank 0 waits for it in native code, deaf to signals."""
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    connect("cpu", timeout_s=300)


@pytest.mark.slow
def test_a_rank_that_waits_for_a_killed_one_ends_soon() -> None:
    began = time.monotonic()
    with pytest.raises(RuntimeError, match=r"^rank 1 was ended by SIGKILL$"):
        launch(die_on_rank_1, num_ranks=2)
    assert time.monotonic() - began < 30  # torch's launcher by itself waits so long


def test_a_rank_that_ends_early_with_status_0_has_failed() -> None:
    with pytest.raises(RuntimeError, match=r"^rank 1 ended early, without a result$"):
        launch(leave_on_rank_1, num_ranks=2)


STARTS_A_RANK = """
import multiprocessing, os, time
from tests_of_launch import linger
if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=linger)
    process.start()
    print(process.pid, flush=True)
    time.sleep(60)
"""
LINGERS = """
import time
from bench.runner.launch import end_with_parent
def linger():
    end_with_parent()
    time.sleep(60)
"""


def test_a_process_ends_with_the_one_that_started_it(tmp_path: Path) -> None:
    (tmp_path / "start.py").write_text(STARTS_A_RANK)
    (tmp_path / "tests_of_launch.py").write_text(LINGERS)
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    with subprocess.Popen(
        [sys.executable, str(tmp_path / "start.py")],
        env=env,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        time.sleep(1.0)  # it has come to where it lingers
        process.kill()
        process.wait()
        assert all_end(process.pid), "an orphan was left"
