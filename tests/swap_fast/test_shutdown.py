"""A run that gets a signal ends after a step, with a checkpoint from which it resumes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_trainer import calling, make_dataset, run_processes, small_trainer, with_phases
from torch import Tensor

from swap_fast import shutdown as module
from swap_fast.algorithm import swap
from swap_fast.checkpoint.run_folder import RunFolder
from swap_fast.clock import Clock
from swap_fast.distributed import ALONE, Comm
from swap_fast.record import EpochRow
from swap_fast.shutdown import EXIT_STATUS, GracefulShutdown, InterruptedRunError

DATA = make_dataset(train_images=70)
RECIPE = with_phases(phase1={"max_epochs": 3})
"""Three epochs of 4 updates, then two workers of two epochs of 8 updates."""
UPDATES = 3 * 4 + 2 * 2 * 8


@pytest.fixture(autouse=True)
def _handlers_as_before() -> Iterator[None]:
    numbers = signal.SIGTERM, signal.SIGINT
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def run(
    folder: Path,
    signal_after: int | None = None,
    comm: Comm = ALONE,
    number: int = signal.SIGTERM,
    signal_at_epoch: int | None = None,
) -> tuple[list[Tensor], list[EpochRow], int]:
    """Run, with a signal after so many updates, or after the evaluation of an epoch.

    Returns:
        The weights, the rows, and the updates done.
    """
    shutdown, clock, updates = GracefulShutdown(), Clock(), 0

    def on_step(images: int) -> None:
        nonlocal updates
        updates += 1
        if updates == signal_after:
            os.kill(os.getpid(), number)

    def on_epoch(row: EpochRow) -> None:
        if row.epoch == signal_at_epoch:
            os.kill(os.getpid(), number)

    kept = RunFolder(folder, clock)
    with shutdown.installed():
        parts = small_trainer(
            RECIPE,
            dataset=DATA,
            clock=clock,
            comm=comm,
            callbacks=[calling(on_step=on_step, on_epoch_end=on_epoch)],
            checkpoints=kept,
            shutdown=shutdown,
        )
        swap(RECIPE, parts)
    rows = [replace(row, time_s=0.0) for row in kept.rows]
    return [*parts.weights.copy(), parts.optimizer.velocity], rows, updates


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_after_a_signal_at_any_step_it_resumes_there(tmp_path: Path, number: int) -> None:
    bits, rows, updates = run(tmp_path / "whole")
    assert updates == UPDATES
    for signal_after in range(1, UPDATES + 1, 1 if number == signal.SIGTERM else 10):
        folder = tmp_path / str(signal_after)
        with pytest.raises(InterruptedRunError):
            run(folder, signal_after, number=number)
        ours, own_rows, rest = run(folder)
        assert rest == UPDATES - signal_after  # nothing is done twice
        assert all(torch.equal(a, b) for a, b in zip(ours, bits, strict=True))
        assert own_rows == rows


def test_signals_are_handled_only_within(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with GracefulShutdown().installed():
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_while_nothing_is_trained_it_ends_at_once() -> None:
    with pytest.raises(InterruptedRunError, match="SIGTERM"), GracefulShutdown().installed():
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_ctrl_c_that_is_passed_on_counts_once() -> None:
    shutdown = GracefulShutdown()
    with shutdown.installed(), shutdown.training():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert shutdown.requested


def test_the_second_signal_ends_it_at_once() -> None:
    code = """
import os, signal, time
from swap_fast import shutdown
shutdown.SIGNAL_INTERVAL_S = 0.0
handler = shutdown.GracefulShutdown()
with handler.installed(), handler.training():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGTERM)
    print("still here")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (EXIT_STATUS, "", "")


def run_both(comm: Comm, folder: Path) -> None:
    """Get signals in phase 1 at unlike steps, then in phase 2, then resume; save the end."""
    for name, signal_after in (("first", 5 + comm.rank), ("second", 9 - comm.rank)):
        with pytest.raises(InterruptedRunError):
            run(folder / "cut", signal_after, comm)
        (folder / f"{name}{comm.rank}").touch()
        comm.barrier()
    bits, _, _ = run(folder / "cut", comm=comm)
    whole, _, _ = run(folder / "whole", comm=comm)
    assert all(torch.equal(a, b) for a, b in zip(bits, whole, strict=True))
    (folder / f"equal{comm.rank}").touch()


@pytest.mark.slow
def test_ranks_that_share_updates_end_after_the_same_step(tmp_path: Path) -> None:
    run_processes(run_both, 2, tmp_path)
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {
        f"{name}{rank}" for name in ("first", "second", "equal") for rank in range(2)
    }


def signal_one_between_epochs(comm: Comm, folder: Path) -> None:
    """Rank 1 gets a signal after the evaluation of an epoch, rank 0 none: both end there."""
    signal_at_epoch = 1 if comm.rank == 1 else None
    with pytest.raises(InterruptedRunError, match="after epoch 1") as raised:
        run(folder / "cut", comm=comm, signal_at_epoch=signal_at_epoch)
    assert raised.value.together
    (folder / f"ended{comm.rank}").touch()


@pytest.mark.slow
def test_ranks_agree_at_an_epoch_s_end(tmp_path: Path) -> None:
    run_processes(signal_one_between_epochs, 2, tmp_path)
    assert {path.name for path in tmp_path.glob("ended*")} == {"ended0", "ended1"}


def signal_one(comm: Comm, folder: Path) -> None:
    """Only rank 1 gets a signal: it ends alone, and rank 0 names it."""
    module.AGREEMENT_S = 0.0
    expected = InterruptedRunError if comm.rank == 1 else RuntimeError
    with pytest.raises(expected) as raised:
        run(folder / "cut", 5 if comm.rank == 1 else None, comm)
    (folder / f"rank{comm.rank}").write_text(str(raised.value))
    if comm.rank == 1:
        os._exit(0)  # it leaves without a word to the group


@pytest.mark.slow
def test_a_rank_with_a_signal_of_its_own_ends_alone(tmp_path: Path) -> None:
    run_processes(signal_one, 2, tmp_path, collectives_s=10)
    assert (tmp_path / "rank1").read_text() == "the other processes got no signal to end"
    assert "no answer from rank 1" in (tmp_path / "rank0").read_text()
    assert (tmp_path / "cut" / "phase1-epoch1.json").exists()


def test_a_loaders_process_ends_by_the_signal_as_python_has_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with GracefulShutdown().installed():
        monkeypatch.setattr(os, "getpid", lambda: -1)  # forked, it has the handlers too
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
