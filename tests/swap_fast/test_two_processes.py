"""A whole run of SWAP on one, two and three gloo processes: the same figures from each."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_trainer import SWAP, Kept, calling, make_dataset, run_processes, small_trainer
from torch import Tensor, nn

from swap_fast.algorithm import swap
from swap_fast.config.execution import Execution
from swap_fast.config.phase import Optimizer, Phase
from swap_fast.data.cifar.augment import IMAGE_SIZE
from swap_fast.distributed import ALONE, Comm
from swap_fast.outcome import running_average
from swap_fast.record import EpochRow
from swap_fast.training.batchnorm import ReplicaStatistics, recompute_statistics_
from swap_fast.training.optimizer import MomentumSGD
from swap_fast.training.step import Step
from swap_fast.training.trainer import Trainer
from swap_fast.training.weights import Weights, average

W = 4
RECIPE = replace(
    SWAP,
    num_workers=W,
    phase1=Phase(
        global_batch_size=32, peak_lr=0.05, max_epochs=2, warmup_epochs=1, gpus_per_model=W
    ),
    phase2=Phase(global_batch_size=16, peak_lr=0.01, max_epochs=1),
    batch_norm_batch_size=60,
)
DATA = make_dataset(train_images=128, test_images=600)
"""Test images for two batches of 500, so that a third rank has none; 60, 60 and 8 to train."""

# Sums over replicas are taken in another order, so that float32 differs in its last digits. In a
# net without kinks that stays small: of ten relative changes of 6e-8 in the initial weights none
# moved a final one by more than 2e-7 of the largest. ResNet-9's ReLUs and max pools at width 4
# turn the same changes into 1e-3, so that it could show no error smaller than that.
TOLERANCE = 2e-6


class SmoothNet(nn.Module):
    """Convolutions, batch norm and tanh: what a small change does to it is small."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=4, bias=False),
            nn.BatchNorm2d(8),
            nn.Tanh(),
            nn.Conv2d(8, 8, 3, stride=2, bias=False),
            nn.BatchNorm2d(8),
            nn.Tanh(),
        )
        self.linear = nn.Linear(72, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Map [B, 3, 32, 32] to [B, 10]."""
        return self.linear(self.body(images).flatten(1))


def run_swap(comm: Comm, folder: Path) -> None:
    """Run SWAP as this rank and save what it has at the end."""
    rows: list[EpochRow] = []
    trainer = small_trainer(
        RECIPE,
        dataset=DATA,
        make_model=SmoothNet,
        comm=comm,
        callbacks=[calling(on_epoch_end=rows.append)],
    )
    result = swap(RECIPE, trainer)
    state = {n: t for n, t in trainer.weights.model.state_dict().items() if "tracked" not in n}
    torch.save(
        {
            "state": state,
            "rows": [asdict(replace(row, time_s=0.0)) for row in rows],
            "workers": {worker.worker: worker.theta for worker in result.workers},
            "test_accuracy": result.accuracies.top1,
            "stopped_by": result.phase1.progress.stopped_by,
            **pieces(trainer, comm),
        },
        folder / f"rank{comm.rank}of{comm.world_size}.pt",
    )


def pieces(trainer: Trainer, comm: Comm) -> dict[str, Any]:
    """What single operations give from inputs that are the same for any number of ranks."""
    weights = trainer.weights
    replicas = ReplicaStatistics(weights, W, comm)
    vectors = torch.rand(W, len(weights.statistics), generator=torch.Generator().manual_seed(0))
    for here, replica in enumerate(comm.replicas(W)):
        weights.statistics.copy_(vectors[replica])
        replicas.swap_out(here)
    replicas.merge_()
    merged = weights.statistics.clone()
    thetas = torch.randn(W, 1000, generator=torch.Generator().manual_seed(1))
    mean = average([(replica, thetas[replica]) for replica in comm.replicas(W)], comm)
    images = torch.randn(90, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(2))
    batches = images.split(40)[comm.rank :: comm.world_size]  # 40, 40 and 10, dealt out
    recompute_statistics_(weights, batches, comm)
    return {"merged": merged, "mean": mean, "moments": weights.statistics.clone()}


Runs = list[dict[str, Any]]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process saved."""
    folder = tmp_path_factory.mktemp("alone")
    run_swap(ALONE, folder)
    return torch.load(folder / "rank0of1.pt")


@pytest.fixture(
    scope="module", params=[2, pytest.param(3, marks=pytest.mark.slow)], ids="{} processes".format
)
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """What each of two processes saved, or of three, which do not divide the four workers."""
    folder = tmp_path_factory.mktemp("ranks")
    run_processes(run_swap, request.param, folder)
    files = [folder / f"rank{rank}of{request.param}.pt" for rank in range(request.param)]
    return [torch.load(file) for file in files]


def sum_gradients(comm: Comm, folder: Path) -> None:
    """One update of phase 1 in fp16, its gradients summed in fp32 and in half the bytes."""
    for all_reduce in ("fp32", "fp16"):
        torch.manual_seed(0)
        execution = Execution(precision="fp16", all_reduce=all_reduce)
        weights = Weights(execution.place(SmoothNet(), torch.device("cpu")))
        optimizer = MomentumSGD(weights, Optimizer(), scale_gradients=True)
        step = Step(weights, optimizer, RECIPE.phase1, comm, execution)
        for replica, images in enumerate(step.images.chunk(len(comm.replicas(W)))):
            generator = torch.Generator().manual_seed(comm.replicas(W)[replica])
            images.copy_(torch.randn(images.shape, generator=generator))
        optimizer.scaler.update(1024.0)
        step()
        name = f"{all_reduce}-rank{comm.rank}of{comm.world_size}.pt"
        torch.save(weights.gradient / 1024, folder / name)


def test_gradients_summed_in_half_the_bytes_are_the_same_but_for_rounding(tmp_path: Path) -> None:
    run_processes(sum_gradients, 2, tmp_path)
    whole, half = (torch.load(tmp_path / f"{t}-rank0of2.pt") for t in ("fp32", "fp16"))
    assert torch.equal(half, torch.load(tmp_path / "fp16-rank1of2.pt"))
    assert not torch.equal(whole, half)
    # Half precision keeps 11 bits of each rank's part and of the sum.
    assert_close(half, whole, 3 * 2.0**-11)


GROUPS = replace(
    RECIPE,
    num_workers=2,
    phase2=replace(RECIPE.phase2, gpus_per_model=2),
)
"""Two workers, each of two replicas: on four ranks a worker is two ranks' work."""


def run_groups(comm: Comm, folder: Path) -> None:
    """Run SWAP with workers of two replicas as this rank, with the weights that it saves."""
    rows: list[EpochRow] = []
    kept = Kept()
    recipe = replace(GROUPS, phase2=replace(GROUPS.phase2, max_epochs=2))
    trainer = small_trainer(
        recipe,
        dataset=DATA,
        make_model=SmoothNet,
        comm=comm,
        callbacks=[calling(on_epoch_end=rows.append)],
        checkpoints=kept,
    )
    result = swap(recipe, trainer)
    averages = running_average(recipe, trainer, result)
    torch.save(
        {
            "theta": trainer.weights.theta.detach(),
            "statistics": trainer.weights.statistics,
            "rows": [where(asdict(row)) for row in rows],
            "saved": sorted(place[1:] for place in kept.thetas if place[0] == 2),
            "workers": {worker.worker: worker.theta for worker in result.workers},
            "averages": [row.test_accuracy for row in averages],
        },
        folder / f"rank{comm.rank}of{comm.world_size}.pt",
    )


@pytest.mark.slow
def test_workers_of_several_ranks_are_those_of_one(tmp_path: Path) -> None:
    run_groups(ALONE, tmp_path)
    alone = torch.load(tmp_path / "rank0of1.pt")
    for world_size in (2, 4):
        run_processes(run_groups, world_size, tmp_path)
        size = world_size // 2  # ranks a worker
        for rank in range(world_size):
            run = torch.load(tmp_path / f"rank{rank}of{world_size}.pt")
            worker = rank // size
            for name in ("theta", "statistics"):
                assert_close(run[name], alone[name], TOLERANCE)
            assert list(run["workers"]) == [worker]
            assert_close(run["workers"][worker], alone["workers"][worker], TOLERANCE)
            own = [(2, worker, 1), (2, worker, 2)] if rank % size == 0 else []
            assert run["rows"] == [(1, 0, 1), (1, 0, 2), *own]
            assert run["saved"] == [place[1:] for place in own]
            assert run["averages"] == alone["averages"]


def assert_close(ours: Tensor, expected: Tensor, tolerance: float) -> None:
    """Within a tolerance that is a share of the largest value."""
    torch.testing.assert_close(ours, expected, rtol=0, atol=tolerance * float(expected.abs().max()))


def where(row: dict[str, Any]) -> tuple[int, int, int]:
    return row["phase"], row["worker"], row["epoch"]


def test_final_weights_and_statistics_are_the_same(alone: dict[str, Any], ranks: Runs) -> None:
    for rank in ranks:
        assert rank["state"].keys() == alone["state"].keys()
        for name, tensor in alone["state"].items():
            assert_close(rank["state"][name], tensor, TOLERANCE)


def test_all_ranks_have_the_same_bits(ranks: Runs) -> None:
    for rank in ranks[1:]:
        assert rank["test_accuracy"] == ranks[0]["test_accuracy"]
        for name, tensor in ranks[0]["state"].items():
            assert torch.equal(rank["state"][name], tensor), name


def test_each_worker_ran_once_and_came_out_the_same(alone: dict[str, Any], ranks: Runs) -> None:
    assert sorted(alone["workers"]) == list(range(W))
    numbers = [list(rank["workers"]) for rank in ranks]
    assert numbers == [list(range(rank, W, len(ranks))) for rank in range(len(ranks))]
    for rank in ranks:
        for number, theta in rank["workers"].items():
            assert_close(theta, alone["workers"][number], TOLERANCE)


def test_rows_and_accuracies_are_the_same(alone: dict[str, Any], ranks: Runs) -> None:
    expected = {where(row): row for row in alone["rows"]}
    phase1, phase2 = [(1, 0, 1), (1, 0, 2)], [(2, worker, 1) for worker in range(W)]
    assert list(expected) == phase1 + phase2
    for rank, run in enumerate(ranks):
        # Phase 1's rows on every rank, a worker's on its own.
        assert [where(row) for row in run["rows"]] == phase1 + phase2[rank :: len(ranks)]
        for row in run["rows"]:
            # Accuracies are shares of so few images that the last digits turn none.
            not_measured = ("noise_scale", "test_top5_accuracy", "mirrored_test_accuracy")
            assert {row.pop(name) for name in not_measured} == {None}
            known = {k: v for k, v in expected[where(row)].items() if k not in not_measured}
            assert row == pytest.approx(known, rel=1e-5)
        assert run["test_accuracy"] == alone["test_accuracy"]
        assert run["stopped_by"] == alone["stopped_by"]


@pytest.mark.parametrize(
    # The moments are those of weights that differ as the runs do; the others start from equals.
    ("piece", "tolerance"),
    [("merged", 2e-7), ("mean", 2e-7), ("moments", TOLERANCE)],
)
def test_single_operations_agree(
    alone: dict[str, Any], ranks: Runs, piece: str, tolerance: float
) -> None:
    for rank in ranks:
        assert_close(rank[piece], alone[piece], tolerance)
