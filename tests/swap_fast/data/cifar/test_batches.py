"""Which images an update sees, on any number of ranks."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import numpy as np
import pytest
import torch

from swap_fast.config.execution import Execution
from swap_fast.config.phase import Augmentation, Phase
from swap_fast.data.cifar.augment import plan_epoch
from swap_fast.data.cifar.batches import Batch, Batches, ShardSpec, one_pass, pass_plan
from swap_fast.data.cifar.dataset import Split
from swap_fast.data.cifar.resident import DeviceImages
from swap_fast.distributed import Comm

N = 107
PHASE = Phase(global_batch_size=16, peak_lr=0.1, max_epochs=1, gpus_per_model=4)
AUGMENTATION = Augmentation(cutout=4)


def numbered_images(num_images: int = N) -> DeviceImages:
    """Image i is all of value i + 1, with the label i."""
    number = np.arange(num_images, dtype=np.uint8)
    images = np.broadcast_to((number + 1)[:, None, None, None], (num_images, 32, 32, 3)).copy()
    split = Split(images=images, labels=number)
    zeros, ones = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    return DeviceImages(split, mean=zeros, std=ones, device=torch.device("cpu"), pad=4)


def numbers(images: torch.Tensor) -> list[int]:
    """Which images of `numbered_images` a batch has: cutout leaves the maximum as it is."""
    return (images.amax((1, 2, 3)) - 1).int().tolist()


def share_of(
    num_images: int = N,
    augmentation: Augmentation = AUGMENTATION,
    *,
    phase: Phase = PHASE,
    number: int = 1,
    replicas: range = range(4),
) -> ShardSpec:
    return ShardSpec(
        num_images=num_images,
        augmentation=augmentation,
        phase=phase,
        seed=5,
        number=number,
        replicas=replicas,
    )


def empty_batch(share: ShardSpec) -> Batch:
    return Batch.empty(share.images_per_step, 32, Execution(), torch.device("cpu"))


def epoch_of(rank: int, world_size: int, *, worker: int = 0, epoch: int = 0) -> list[list[int]]:
    """The images of each update that one rank loads."""
    comm = Comm(rank=rank, world_size=world_size)
    share = share_of(replicas=comm.replicas(4))
    images, labels = batch = empty_batch(share)
    batches = Batches(numbered_images(), share, batch)
    assert batches.steps_per_epoch == 6
    batches.start_epoch(worker, epoch)
    loaded = []
    for step in range(6):
        batches.load(step)
        assert numbers(images) == labels.tolist()
        loaded.append(labels.tolist())
    return loaded


def test_an_epoch_is_the_start_of_the_plan_each_image_once() -> None:
    order = plan_epoch(N, AUGMENTATION, seed=5, phase=1, worker=0, epoch=0).order
    loaded = epoch_of(0, 1)
    seen = list(chain.from_iterable(loaded))
    assert seen == order[: 6 * 16].tolist()
    assert len(set(seen)) == 6 * 16


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_replicas_of_all_ranks_make_the_global_batch(world_size: int) -> None:
    order = plan_epoch(N, AUGMENTATION, seed=5, phase=1, worker=0, epoch=0).order
    ranks = [epoch_of(rank, world_size) for rank in range(world_size)]
    for step in range(6):
        whole = order[step * 16 : (step + 1) * 16].reshape(4, 4)
        for rank in range(world_size):
            # Replica s is the s-th quarter of the batch, and belongs to rank s % world_size.
            assert ranks[rank][step] == whole[rank::world_size].flatten().tolist()
        together = list(chain.from_iterable(loaded[step] for loaded in ranks))
        assert sorted(together) == sorted(whole.flatten().tolist())
        assert len(set(together)) == 16


def test_epochs_and_workers_have_their_own_order() -> None:
    first = epoch_of(0, 1)
    assert first == epoch_of(0, 1)
    assert first != epoch_of(0, 1, epoch=1)
    assert first != epoch_of(0, 1, worker=1)


def test_a_second_epoch_replaces_the_first() -> None:
    _, labels = batch = empty_batch(share_of())
    batches = Batches(numbered_images(), share_of(), batch)
    batches.start_epoch(0, 0)
    batches.start_epoch(2, 3)
    batches.load(1)
    order = plan_epoch(N, AUGMENTATION, seed=5, phase=1, worker=2, epoch=3).order
    assert labels.tolist() == order[16:32].tolist()


def test_a_batch_that_fits_exactly() -> None:
    share = share_of(16, Augmentation(pad=0, flip="none", cutout=0), number=2)
    batches = Batches(numbered_images(16), share, empty_batch(share))
    assert batches.steps_per_epoch == 1


def test_fewer_images_than_a_batch_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^phase 2: expected .* 16 images, got 15; [^\n]+$"):
        share_of(15, number=2)


@pytest.mark.parametrize("world_size", [1, 3, 8])
@pytest.mark.parametrize("batch_size", [4096, 2048])
def test_all_ranks_together_show_each_image_once(world_size: int, batch_size: int) -> None:
    phase = Phase(global_batch_size=batch_size, peak_lr=0.1, max_epochs=1, gpus_per_model=8)
    shares = [
        share_of(50_000, phase=phase, replicas=Comm(rank=rank, world_size=world_size).replicas(8))
        for rank in range(world_size)
    ]
    order = shares[0].plan(0, 0).order
    steps = range(shares[0].steps_per_epoch)
    seen = np.concatenate([order[share.positions(step)] for share in shares for step in steps])
    assert len(seen) == 50_000 // batch_size * batch_size
    assert len(np.unique(seen)) == len(seen)


def test_each_epoch_s_plan_lies_where_the_first_did() -> None:
    # A captured step would read it there.
    batches = Batches(numbered_images(), share_of(), empty_batch(share_of()))
    batches.start_epoch(0, 0)
    plan = batches._plan
    assert plan is not None
    before, address = plan.columns.clone(), plan.columns.data_ptr()
    batches.start_epoch(0, 1)
    assert batches._plan is plan
    assert plan.columns.data_ptr() == address
    assert not torch.equal(plan.columns, before)


def test_a_plan_that_was_drawn_ahead_is_the_epoch_s_own() -> None:
    images, share = numbered_images(), share_of()
    drawn_now, drawn_ahead = (Batches(images, share, empty_batch(share)) for _ in range(2))
    assert drawn_now._drawer is None  # on a CPU, whose core the updates need
    drawn_ahead._drawer = ThreadPoolExecutor(max_workers=1)
    for worker, epoch in ((0, 0), (0, 1), (0, 2), (1, 0), (1, 5), (1, 6)):  # a jump drops it
        for batches in (drawn_now, drawn_ahead):
            batches.start_epoch(worker, epoch)
        assert drawn_now._plan is not None
        assert drawn_ahead._plan is not None
        assert torch.equal(drawn_ahead._plan.columns, drawn_now._plan.columns)
        assert [*drawn_ahead._ahead] == [(worker, epoch + 1)]
    drawn_ahead._drawer.shutdown()


@pytest.mark.parametrize("augmentation", [AUGMENTATION, None])
@pytest.mark.parametrize(("world_size", "size"), [(1, 25), (2, 25), (3, 25), (2, 107), (4, 40)])
def test_a_pass_shows_each_image_once(
    world_size: int, size: int, augmentation: Augmentation | None
) -> None:
    buffer = torch.empty(size, 3, 32, 32).to(memory_format=torch.channels_last)
    into = Batch(buffer, torch.zeros(size, dtype=torch.int64))
    by_rank = []
    for rank in range(world_size):
        comm = Comm(rank=rank, world_size=world_size)
        images = numbered_images()
        batches = one_pass(images, pass_plan(images, augmentation, seed=5), into, comm)
        by_rank.append([numbers(batch.images) for batch in batches])
    together = chain.from_iterable(chain.from_iterable(by_rank))
    assert sorted(together) == list(range(N))
    sizes = sorted(len(batch) for batches in by_rank for batch in batches)
    short = [N % size] if N % size else []
    assert sizes == short + [size] * (N // size)
    # Batch b goes to rank b % world_size: the same batches for any number of ranks.
    order = (
        np.arange(N)
        if augmentation is None
        else plan_epoch(N, augmentation, seed=5, phase=3, worker=0, epoch=0).order
    )
    for rank, batches in enumerate(by_rank):
        for turn, batch in enumerate(batches):
            start = (turn * world_size + rank) * size
            assert batch == order[start : start + size].tolist()


def test_a_clean_pass_shows_the_images_as_they_are() -> None:
    images, into = numbered_images(), Batch(torch.empty(50, 3, 32, 32), torch.zeros(50).long())
    plan = pass_plan(images, None)
    for start, (batch, _) in zip((0, 50, 100), one_pass(images, plan, into)):  # noqa: B905
        expected = torch.arange(start + 1, start + 1 + len(batch)).float()
        assert torch.equal(batch, expected.view(-1, 1, 1, 1).expand_as(batch))
