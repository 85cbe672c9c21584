"""Workers of `swap_fast.refine`: kept in a folder, shared by processes, dealt out to ranks."""

from __future__ import annotations

import errno
import os
import signal
import threading
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from own_nets import assert_same_bits, bits, net, plain_net, share, small_refine, train
from processes import run_torchrun
from torch import nn

from swap_fast.checkpoint.attempts import Attempt
from swap_fast.shutdown import InterruptedRunError


class Counting:
    """Notes which workers are trained."""

    def __init__(self, dies_at: int | None = None, how: BaseException | int = 0) -> None:
        self.trained: list[int] = []
        self._dies_at, self._how = dies_at, how

    def __call__(self, worker: int, model: nn.Module) -> None:
        self.trained.append(worker)
        train(worker, model)
        if worker == self._dies_at:
            if isinstance(self._how, BaseException):
                raise self._how
            os.kill(os.getpid(), self._how)


def test_a_worker_that_died_is_trained_again_alone_to_the_same_bits(tmp_path: Path) -> None:
    whole, dying, again = small_refine(evaluate=share), Counting(1, MemoryError("dead")), Counting()
    with pytest.raises(MemoryError, match="dead"):
        small_refine(how=dying, folder=tmp_path)
    assert dying.trained == [0, 1]
    result = small_refine(how=again, folder=tmp_path, resume=True, evaluate=share)
    assert again.trained == [1, 2]
    assert_same_bits(bits(result), bits(whole))
    assert (result.accuracy, result.worker_accuracies) == (whole.accuracy, whole.worker_accuracies)
    # All are there; then one is damaged.
    done, damaged = Counting(), Counting()
    assert_same_bits(bits(small_refine(how=done, folder=tmp_path, resume=True)), bits(whole))
    assert done.trained == []
    file = tmp_path / "refined-worker2.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    assert_same_bits(bits(small_refine(how=damaged, folder=tmp_path, resume=True)), bits(whole))
    assert damaged.trained == [2]


def test_a_worker_that_cannot_be_read_now_is_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_refine(how=Counting(), folder=tmp_path)
    read, again = Path.read_bytes, Counting()

    def denied(path: Path) -> bytes:
        if path.name == "refined-worker1.safetensors":
            raise PermissionError(errno.EACCES, "Permission denied")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", denied)
    line = (
        r"refined-worker1\.safetensors: could not be read: Permission denied; nothing was changed"
    )
    with pytest.raises(ValueError, match=line):
        small_refine(how=again, folder=tmp_path, resume=True)
    assert again.trained == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_in_one_line_that_says_how_to_go_on(number: int, tmp_path: Path) -> None:
    handlers = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(InterruptedRunError, match=r"^SIG.*: the workers .* resume=True") as ended:
        small_refine(how=Counting(2, number), folder=tmp_path)
    assert "\n" not in str(ended.value)
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == handlers
    again = Counting()
    assert_same_bits(
        bits(small_refine(how=again, folder=tmp_path, resume=True)), bits(small_refine())
    )
    assert again.trained == [2]
    with pytest.raises(KeyboardInterrupt):
        small_refine(how=Counting(0, KeyboardInterrupt()))


def test_a_trainer_that_catches_exceptions_does_not_swallow_a_signal(tmp_path: Path) -> None:
    dying = Counting(1, signal.SIGINT)

    def tolerant(worker: int, model: nn.Module) -> None:
        try:
            dying(worker, model)
        except Exception:
            pytest.fail("the signal ended in the trainer")

    with pytest.raises(InterruptedRunError, match=r"^SIGINT: "):
        small_refine(how=tolerant, folder=tmp_path)
    assert dying.trained == [0, 1]


def test_a_folder_has_one_run(tmp_path: Path) -> None:
    small_refine(folder=tmp_path)
    with pytest.raises(ValueError, match=r"^folder: expected one without a run, .* resume=True"):
        small_refine(folder=tmp_path)
    with pytest.raises(ValueError, match=r"^resume: expected the settings .* seed 1 in place of 0"):
        small_refine(folder=tmp_path, resume=True, seed=1)
    with pytest.raises(ValueError, match=r"^resume: expected the settings .* model.sha256 "):
        small_refine(net(), folder=tmp_path, resume=True)
    with Attempt(tmp_path), pytest.raises(ValueError, match="another process is at; wait for it"):
        small_refine(folder=tmp_path, resume=True)


def test_processes_that_share_a_folder_share_the_workers(tmp_path: Path) -> None:
    # Another thread stands for another process: nothing is drawn, so that they do not disturb.
    model, other_is_done, results = plain_net(), threading.Event(), {}
    trained: dict[str, list[int]] = {"one": [], "other": []}

    def run(name: str) -> None:
        def how(worker: int, net: nn.Module) -> None:
            trained[name].append(worker)
            with torch.no_grad():
                net[0].bias.add_(worker + 1)
            if name == "one":
                other.start()
                assert other_is_done.wait(30)
            else:
                other_is_done.set()

        how.__qualname__ = "train"
        results[name] = small_refine(model, how, workers=2, folder=tmp_path, resume=True)

    other = threading.Thread(target=run, args=("other",))
    run("one")
    other.join()
    assert trained == {"one": [0], "other": [1]}
    assert_same_bits(bits(results["one"]), bits(results["other"]))
    torch.testing.assert_close(results["one"].model[0].bias, model[0].bias + 1.5)


# Under torchrun.


def test_torchruns_variables_are_hidden_from_the_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = {"LOCAL_WORLD_SIZE": "1", "TORCHELASTIC_RUN_ID": "a", "MASTER_PORT": "1"}
    for name, value in hidden.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_KEY", "mine")

    def how(worker: int, model: nn.Module) -> None:
        assert not hidden.keys() & os.environ.keys()
        assert os.environ["MASTER_KEY"] == "mine"
        train(worker, model)

    small_refine(how=how)
    assert {name: os.environ[name] for name in hidden} == hidden


def test_processes_that_cannot_be_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(
        ValueError, match=r"^processes: expected 1 to 3, one a worker, got 4; start"
    ):
        small_refine()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with pytest.raises(ValueError, match=r"^processes: expected no process group but swap_fas"):
            small_refine()
    finally:
        dist.destroy_process_group()


SHARDED = """
import os, sys
rank, world = (int(os.environ.pop(name)) for name in ("RANK", "WORLD_SIZE"))
import torch
import torch.distributed as dist
from own_nets import bits, small_refine, train
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

def how(worker, model):
    if not dist.is_initialized():
        store = dist.FileStore(f"{sys.argv[1]}/store{closes}", world)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    fully_shard(model, mesh=init_device_mesh("cpu", (world,)))
    train(worker, model)
    assert type(next(model.parameters())).__name__ == "DTensor"
    if closes:
        dist.destroy_process_group()

closes = False
found = bits(small_refine(how=how))
dist.destroy_process_group()
closes = True
try:
    small_refine(how=how)
except ValueError as error:
    torch.save((found, str(error)), f"{sys.argv[1]}/{rank}.pt")
"""


@pytest.mark.slow
def test_a_trainer_may_shard_the_net_over_processes_of_its_own(tmp_path: Path) -> None:
    run_torchrun(SHARDED, tmp_path, 2)
    alone = bits(small_refine())
    for rank in (0, 1):
        found, error = torch.load(tmp_path / f"{rank}.pt")
        # Both processes have the same batches, so that the mean gradient is that of one.
        for name, tensor in alone.items():
            torch.testing.assert_close(found[name], tensor)
        assert error.startswith("worker 0: expected tensors whose process group is open, got sha")
        assert "\n" not in error


SCRIPT = """
import os, sys
import torch
from own_nets import bits, share, small_refine, small_swap, train

def alone(worker, model):
    assert "WORLD_SIZE" not in os.environ and not torch.distributed.is_initialized()
    train(worker, model)

rank = os.environ["RANK"]
for timeout_s in (60, 90):  # runs of swap before it, of which each has a time limit of its own
    small_swap(timeout_s=timeout_s)
for _ in range(2):
    result = small_refine(how=alone, evaluate=share)
assert result.is_first == (rank == "0")
found = result.accuracy, result.worker_accuracies, result.record["pairwise_distances"]
torch.save((bits(result), found), f"{sys.argv[1]}/{rank}.pt")
"""


@pytest.mark.slow
def test_processes_of_torchrun_give_the_same_bits_as_one(tmp_path: Path) -> None:
    run_torchrun(SCRIPT, tmp_path, 2)
    alone = small_refine(evaluate=share)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    found = alone.accuracy, alone.worker_accuracies, alone.record["pairwise_distances"]
    assert first[1] == second[1] == found
    assert_same_bits(first[0], bits(alone))
    averaged = {name: t for name, t in first[0].items() if name.startswith("averaged")}
    assert_same_bits(second[0], averaged)  # the first one alone has the workers
