"""Collectives between two real processes, and alone; who runs which replica."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from itertools import chain
from pathlib import Path
from shutil import which

import pytest
import torch
import torch.distributed as dist
from repository import ROOT
from small_trainer import SWAP, make_dataset, run_processes, small_trainer

from swap_fast import distributed
from swap_fast.distributed import ALONE, Comm, Store, connect


@pytest.mark.parametrize("num_replicas", [1, 4, 7, 8])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 8])
def test_replicas_are_dealt_out_once_each(num_replicas: int, world_size: int) -> None:
    dealt = [
        list(Comm(rank=rank, world_size=world_size).replicas(num_replicas))
        for rank in range(world_size)
    ]
    assert sorted(chain.from_iterable(dealt)) == list(range(num_replicas))
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1
    assert all(
        replica % world_size == rank for rank, replicas in enumerate(dealt) for replica in replicas
    )


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
    tensor = torch.full((3,), float(comm.rank))
    assert comm.broadcast_(tensor) is tensor
    assert tensor.tolist() == [0.0] * 3
    assert comm.gather({"rank": comm.rank}) == [{"rank": 0}, {"rank": 1}]
    calls = []

    def make() -> list[int]:
        calls.append(comm.rank)
        return [7, comm.rank]

    inside = [comm.worker_group(1).inside for _ in range(2)]
    assert inside[0].group is inside[1].group  # of one connection, whatever the number of runs
    assert inside[0].group is not None
    options = inside[0].group._get_backend(torch.device("cpu")).options
    assert options._timeout == timedelta(seconds=60)
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


@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 2), (3, 8), (2, 2), (4, 2), (16, 2)])
def test_workers_are_shared_out(world_size: int, num_workers: int) -> None:
    comms = [Comm(rank=rank, world_size=world_size) for rank in range(world_size)]
    dealt = [worker for comm in comms for worker in comm.workers(num_workers)]
    each = max(1, world_size // num_workers)
    assert sorted(dealt) == sorted(list(range(num_workers)) * each)
    if each > 1:  # neighbours work together
        assert dealt == sorted(dealt)


def test_ranks_that_cannot_be_shared_out_are_refused() -> None:
    with pytest.raises(ValueError, match=r"a multiple of the 2 workers, got 3$"):
        Comm(world_size=3).worker_group(2)


@pytest.fixture
def fake_rank(request: pytest.FixtureRequest) -> Iterator[Comm]:
    """A rank of 16 whose collectives do nothing: for shapes and groups."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=request.param, world_size=16, store=FakeStore())
    yield Comm(rank=request.param, world_size=16)
    dist.destroy_process_group()


@pytest.mark.parametrize("fake_rank", [0, 7, 8, 13], indirect=True)
def test_groups_of_imagenet_s_two_workers_of_eight(fake_rank: Comm) -> None:
    rank, group = fake_rank.rank, fake_rank.worker_group(2)
    worker, place = rank // 8, rank % 8
    assert list(group.workers) == [worker]
    assert group.is_first == (place == 0)
    assert (group.inside.rank, group.inside.world_size) == (place, 8)
    assert (group.across.rank, group.across.world_size) == (worker, 2)
    inside = dist.get_process_group_ranks(group.inside.group)
    assert inside == list(range(8 * worker, 8 * worker + 8))
    assert dist.get_process_group_ranks(group.across.group) == [place, place + 8]
    assert group.inside.replicas(8) == range(place, 8, 8)


@pytest.mark.parametrize("fake_rank", [0, 13], indirect=True)
def test_a_step_of_sixteen_ranks_has_one_replica_of_each_phase(fake_rank: Comm) -> None:
    recipe = replace(
        SWAP,
        phase1=replace(SWAP.phase1, global_batch_size=64, gpus_per_model=16),
        phase2=replace(SWAP.phase2, global_batch_size=32, gpus_per_model=8),
    )
    parts = small_trainer(recipe, comm=fake_rank, dataset=make_dataset(128))
    stages = [phase.stages[0] for phase in parts.phases]
    assert [stage.step.images.shape for stage in stages] == [(4, 3, 32, 32)] * 2
    assert [stage.open_batches().steps_per_epoch for stage in stages] == [2, 4]
    for stage in stages:
        stage.step()


def hang_on_rank_1(comm: Comm, folder: Path) -> None:
    if comm.rank == 1:
        while not (folder / "seen").exists():
            time.sleep(0.1)
        return
    try:
        comm.all_reduce_(torch.zeros(1))
    except RuntimeError as error:
        (folder / "error").write_text(str(error))
    (folder / "seen").touch()


def die_on_rank_1(comm: Comm, folder: Path) -> None:
    if comm.rank == 1:
        os._exit(0)
    try:
        comm.all_reduce_(torch.zeros(1))
    except RuntimeError as error:
        (folder / "error").write_text(str(error))


@pytest.mark.parametrize("fault", [hang_on_rank_1, die_on_rank_1])
def test_a_rank_that_does_not_answer_is_named(
    fault: Callable[[Comm, Path], None], tmp_path: Path
) -> None:
    run_processes(fault, 2, tmp_path, collectives_s=3.0)
    error = (tmp_path / "error").read_text()
    assert error.startswith("all-reduce: no answer from rank 1, which hangs or has ended (")
    assert "\n" not in error


def run_twice(comm: Comm, folder: Path) -> None:
    comm.close()
    again = connect("cpu", timeout_s=30, settings={"seed": 1})
    again.barrier()
    (folder / f"done{again.rank}").touch()


def test_a_second_run_reads_nothing_of_the_first_s(tmp_path: Path) -> None:
    run_processes(run_twice, 2, tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"done0", "done1"}


def compared(*settings: dict[str, object], world_size: int | None = None) -> list[str]:
    """What each of these ranks says when all compare their settings, in threads over one store."""
    shared = dist.HashStore()

    def compare(rank: int) -> str:
        store, size = Store(shared, timeout_s=1.0), world_size or len(settings)
        try:
            Comm(rank=rank, world_size=size, store=store).require_same(settings[rank])
        except (ValueError, RuntimeError) as error:
            return f"{type(error).__name__}: {error}"
        return "the same"

    with ThreadPoolExecutor(len(settings)) as ranks:
        return list(ranks.map(compare, range(len(settings))))


def test_ranks_with_different_settings_are_refused_by_the_same_line() -> None:
    same: dict[str, object] = {"seed": 3, "phase1.peak_lr": 0.1, "net": "resnet9", "a": 1, "b": 2}
    assert compared(same, same, same) == ["the same"] * 3
    assert compared(same, same, same | {"seed": 4}) == 3 * [
        "ValueError: ranks: expected the same settings on all, got seed 3 on rank 0, 4 on rank 2; "
        "start all with the same command"
    ]
    assert compared({"seed": 1}, same)[1].endswith(
        "got a None on rank 0, 1 on rank 1; b None on rank 0, 2 on rank 1; net None on rank 0, "
        "'resnet9' on rank 1; and 2 more; start all with the same command"
    )


def test_a_rank_that_does_not_start_is_named() -> None:
    (said,) = compared({}, world_size=3)
    assert said.startswith("RuntimeError: no answer from rank 1, 2 within 1 s")


def working(*work: Callable[[], object]) -> list[tuple[object, float]]:
    """What each of these ranks has when all have done their work, in threads over one store, and
    how many seconds it took."""
    shared = dist.HashStore()

    def run(rank: int) -> tuple[object, float]:
        comm = Comm(rank=rank, world_size=len(work), store=Store(shared, timeout_s=0.1))
        started = time.monotonic()
        try:
            made = comm.finish_together(work[rank])
        except (ValueError, RuntimeError) as error:
            made = f"{type(error).__name__}: {error}"
        return made, time.monotonic() - started

    with ThreadPoolExecutor(len(work)) as ranks:
        return list(ranks.map(run, range(len(work))))


def test_work_is_waited_for_longer_than_a_collective() -> None:
    slow, other = working(lambda: time.sleep(0.5), lambda: "at once")
    assert (slow[0], other[0]) == (None, "at once")
    assert min(slow[1], other[1]) > 0.4
    assert ALONE.finish_together(lambda: 5) == 5


def test_work_that_fails_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "GRACE_S", 0.0)

    def fail() -> None:
        raise ValueError("no such folder")

    assert [made for made, _ in working(lambda: 1, fail, lambda: 3)] == [
        "RuntimeError: the other ranks wait for rank 1, whose work failed",
        "ValueError: no such folder",
        "RuntimeError: the other ranks wait for rank 1, whose work failed",
    ]


def test_a_silent_program_on_the_port_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "STORE_S", 0.5)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = silent.getsockname()[1]
        environment = {"RANK": 1, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        for name, value in environment.items():
            monkeypatch.setenv(name, str(value))
        expected = (
            rf"^rendezvous: expected rank 0 at 127\.0\.0\.1:{port}, got no answer within 0\.5 s"
        )
        with pytest.raises(RuntimeError, match=expected):
            connect("cpu", timeout_s=0.5)


TWO_NODES = """
ip link set lo up
unshare --net sleep 60 & node=$!
while [ /proc/$node/ns/net -ef /proc/self/ns/net ]; do sleep 0.1; done
ip link add near type veth peer name far netns $node
ip address add 10.9.8.1/24 dev near; ip link set near up
nsenter --net=/proc/$node/ns/net sh -c '
    ip link set lo up; ip address add 10.9.8.2/24 dev far; ip link set far up'
export WORLD_SIZE=2 MASTER_ADDR=10.9.8.1 MASTER_PORT=29500
RANK=0 GLOO_SOCKET_IFNAME=near "$@" & first=$!
RANK=1 GLOO_SOCKET_IFNAME=far nsenter --net=/proc/$node/ns/net "$@" & second=$!
while [ ! -e joined0 ] || [ ! -e joined1 ]; do sleep 0.1; done
ip link set near down
wait $first; wait $second; kill $node
"""
"""Two network namespaces with one link, which is cut once their ranks work together."""

A_RANK = """
import os, pathlib, torch
from swap_fast.distributed import connect
comm = connect("cpu", timeout_s=3.0)
comm.barrier()
pathlib.Path(f"joined{comm.rank}").touch()
try:
    while True:
        comm.all_reduce_(torch.zeros(1))
except RuntimeError as error:
    pathlib.Path(f"said{comm.rank}").write_text(str(error))
"""


@pytest.mark.slow
def test_after_the_network_is_cut_each_side_names_the_other(tmp_path: Path) -> None:
    namespace = ["unshare", "--map-root-user", "--net"]
    if not (which("unshare") and which("ip")) or subprocess.run([*namespace, "true"]).returncode:
        pytest.skip("no network namespaces")
    command = [*namespace, "sh", "-euc", TWO_NODES, "sh"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run(
        [*command, sys.executable, "-c", A_RANK],
        cwd=tmp_path,
        env=environment,
        check=True,
        timeout=100,
    )
    said = [(tmp_path / f"said{rank}").read_text() for rank in (0, 1)]
    assert said[0].startswith("all-reduce: no answer from rank 1, which hangs or has ended (")
    assert said[1].startswith("all-reduce: no answer from rank 0, which hangs or has ended (")
