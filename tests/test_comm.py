"""Collectives between two real processes, and alone; who runs which slot."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from small_parts import run_processes

from swap_fast.comm import ALONE, Comm, connect


@pytest.mark.parametrize("num_slots", [1, 4, 7, 8])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 8])
def test_slots_are_dealt_out_once_each(num_slots: int, world_size: int) -> None:
    dealt = [
        list(Comm(rank=rank, world_size=world_size).slots(num_slots)) for rank in range(world_size)
    ]
    assert sorted(chain.from_iterable(dealt)) == list(range(num_slots))
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1
    assert all(slot % world_size == rank for rank, slots in enumerate(dealt) for slot in slots)


def test_alone_collectives_are_the_identity() -> None:
    tensor = torch.arange(3.0)
    assert ALONE.all_reduce_(tensor) is tensor
    assert ALONE.broadcast_(tensor) is tensor
    assert tensor.tolist() == [0, 1, 2]
    assert ALONE.gather("a") == ["a"]
    assert ALONE.on_first(lambda: 5) == 5
    ALONE.barrier()
    ALONE.close()


def test_without_torchrun_one_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "LOCAL_RANK", "RANK"):
        monkeypatch.delenv(name, raising=False)
    assert connect("cpu") == ALONE
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert connect("cpu") == ALONE
    assert not dist.is_initialized()


def check_collectives(comm: Comm, folder: Path) -> None:
    assert comm.world_size == 2
    assert comm.rank == comm.local_rank == dist.get_rank()
    assert dist.get_backend() == "gloo"
    for dtype in (torch.float32, torch.float64, torch.int64):
        tensor = torch.tensor([1, 10], dtype=dtype) * (comm.rank + 1)
        assert comm.all_reduce_(tensor) is tensor
        assert tensor.tolist() == [3, 30]
        assert tensor.dtype == dtype
    for source in (0, 1):
        tensor = torch.full((3,), float(comm.rank))
        assert comm.broadcast_(tensor, source) is tensor
        assert tensor.tolist() == [source] * 3
    assert comm.gather({"rank": comm.rank}) == [{"rank": 0}, {"rank": 1}]
    calls = []

    def make() -> list[int]:
        calls.append(comm.rank)
        return [7, comm.rank]

    assert comm.on_first(make) == [7, 0]
    assert calls == ([0] if comm.rank == 0 else [])
    comm.barrier()
    # What one rank writes before a barrier, the other sees after it.
    if comm.rank == 1:
        (folder / "written").write_text("by rank 1")
    comm.barrier()
    assert (folder / "written").read_text() == "by rank 1"
    (folder / f"done{comm.rank}").touch()


def test_collectives_of_two_processes(tmp_path: Path) -> None:
    run_processes(check_collectives, 2, tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"written", "done0", "done1"}
