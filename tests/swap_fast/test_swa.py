"""SWA, and SWAP in cycles: what is trained, sampled and averaged, against plain ways to do it."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from small_trainer import (
    MEAN,
    STD,
    SWA,
    SWAP,
    Kept,
    SmallNet,
    calling,
    make_dataset,
    oracle_batch,
    run_processes,
    small_trainer,
)
from torch import Tensor, nn

from bench.cli import main
from swap_fast.algorithm import large_batch_phase, small_batch_phase, swa, swap
from swap_fast.config.phase import Phase
from swap_fast.config.recipe import AveragingRecipe
from swap_fast.data.cifar.augment import plan_epoch
from swap_fast.distributed import ALONE, Comm
from swap_fast.outcome import average_by_cycle, running_average
from swap_fast.record import EpochRow
from swap_fast.training.state import TrainedModel
from swap_fast.training.trainer import Trainer

SEED = 3
DATA = make_dataset()
TOGETHER = replace(SWA, phase2=replace(SWA.phase2, global_batch_size=16, gpus_per_model=2))
CYCLES = replace(SWAP, phase2=Phase(global_batch_size=8, peak_lr=0.1, max_epochs=4, cycles=2))


class KeptRun:
    """A run's trainer, with its rows and the weights after each epoch."""

    def __init__(self, recipe: AveragingRecipe) -> None:
        self.rows: list[EpochRow] = []
        kept = Kept()
        self.thetas = kept.thetas
        callbacks = [calling(on_epoch_end=self.rows.append)]
        self.parts: Trainer = small_trainer(
            recipe, dataset=DATA, seed=SEED, callbacks=callbacks, checkpoints=kept
        )


def numpy_mean(thetas: list[Tensor]) -> Tensor:
    return torch.from_numpy(np.mean([theta.double().numpy() for theta in thetas], axis=0))


def accuracy(model: nn.Module) -> float:
    images = (torch.from_numpy(DATA.test.images).float() - torch.tensor(MEAN)) / torch.tensor(STD)
    with torch.no_grad():
        predicted = model.eval()(images.permute(0, 3, 1, 2)).argmax(1).numpy()
    return float((predicted == DATA.test.labels).mean())


def test_swa_averages_the_end_of_each_cycle() -> None:
    kept = KeptRun(SWA)
    result = swa(SWA, kept.parts)
    (worker,) = result.workers
    ends = [kept.thetas[2, 0, epoch] for epoch in (2, 4, 6)]
    assert len(worker.samples) == 3
    for sample, end in zip(worker.samples, ends, strict=True):
        assert torch.equal(sample, end)
    final = kept.parts.weights.copy()[0].double()
    torch.testing.assert_close(final, numpy_mean(ends), rtol=1e-6, atol=1e-7)
    assert min((a - b).norm() for a, b in pairwise(ends)) > 1e-3
    # The test accuracy is of the average, with statistics of its own.
    assert result.accuracies.top1 == pytest.approx(accuracy(kept.parts.weights.model))
    phase2 = [row for row in kept.rows if row.phase == 2]
    assert [row.epoch for row in phase2] == [1, 2, 3, 4, 5, 6]
    assert [row.learning_rate for row in phase2] == pytest.approx([0.05, 0.0] * 3, abs=1e-15)


def plain_cycles(start: TrainedModel, phase: Phase) -> list[Tensor]:
    """The sequence of SWA by torch's own SGD, from the end of phase 1: theta after each cycle."""
    trainer = small_trainer(SWA, dataset=DATA, seed=SEED)
    trainer.weights.load_(start.theta, start.statistics)
    model = SmallNet()
    model.load_state_dict(trainer.weights.model.state_dict())
    optimizer = torch.optim.SGD(
        model.parameters(), lr=1.0, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    steps, samples = len(DATA.train) // phase.global_batch_size, []
    c = steps * phase.max_epochs // phase.cycles
    for i in range(1, steps * phase.max_epochs + 1):
        epoch, step = divmod(i - 1, steps)
        plan = plan_epoch(
            len(DATA.train), SWA.augmentation, seed=SEED, phase=2, worker=0, epoch=epoch
        )
        first = step * phase.global_batch_size
        images, labels = oracle_batch(
            DATA.train, SWA.augmentation, plan, range(first, first + phase.global_batch_size)
        )
        optimizer.param_groups[0]["lr"] = phase.peak_lr * (1 - ((i - 1) % c + 1) / c)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        if i % c == 0:
            trainer.weights.model.load_state_dict(model.state_dict())
            samples.append(trainer.weights.copy()[0])
    return samples


def test_the_sequence_is_torch_s_sgd_with_cyclic_rates() -> None:
    trainer = small_trainer(SWA, dataset=DATA, seed=SEED)
    start = large_batch_phase(SWA.phase1, trainer)
    (worker,) = small_batch_phase(SWA, trainer, start)
    for ours, plain in zip(worker.samples, plain_cycles(start, SWA.phase2), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-3, atol=2e-5)


def test_the_average_after_each_cycle() -> None:
    kept = KeptRun(SWA)
    result = swa(SWA, kept.parts)
    before = kept.parts.weights.copy()
    rows = average_by_cycle(SWA, kept.parts, result)
    assert [row.epoch for row in rows] == [2, 4, 6]
    assert rows[-1].test_accuracy == result.accuracies.top1
    for now, then in zip(kept.parts.weights.copy(), before, strict=True):
        assert torch.equal(now, then)
    kept.parts.weights.load_(kept.thetas[2, 0, 2], before[1])
    kept.parts.recompute_batchnorm(kept.parts.batch_norm_batches(), ALONE)
    assert rows[0].test_accuracy == pytest.approx(accuracy(kept.parts.weights.model))


def test_swap_in_cycles_averages_every_worker_s_samples() -> None:
    kept = KeptRun(CYCLES)
    result = swap(CYCLES, kept.parts)
    ends = [kept.thetas[2, worker, epoch] for worker in (0, 1) for epoch in (2, 4)]
    samples = [sample for worker in result.workers for sample in worker.samples]
    assert all(torch.equal(a, b) for a, b in zip(samples, ends, strict=True))
    assert torch.equal(result.workers[1].theta, ends[-1])
    final = kept.parts.weights.copy()
    torch.testing.assert_close(final[0].double(), numpy_mean(ends), rtol=1e-6, atol=1e-7)
    # Were it to stop after epoch 3: each worker's first sample, and where it is.
    rows = running_average(CYCLES, kept.parts, result)
    assert [row.epoch for row in rows] == [1, 2, 3, 4]
    at_3 = [kept.thetas[2, worker, epoch] for worker in (0, 1) for epoch in (2, 3)]
    kept.parts.weights.load_(numpy_mean(at_3).float(), final[1])
    kept.parts.recompute_batchnorm(kept.parts.batch_norm_batches(), ALONE)
    assert rows[2].test_accuracy == pytest.approx(accuracy(kept.parts.weights.model))


def run_both(comm: Comm, folder: Path) -> None:
    """Run both kinds of sequence as this rank, and save what it has at the end."""
    for name, recipe in (("single", SWA), ("together", TOGETHER)):
        rows: list[EpochRow] = []
        callbacks = [calling(on_epoch_end=rows.append)]
        trainer = small_trainer(recipe, dataset=DATA, seed=SEED, comm=comm, callbacks=callbacks)
        result = swa(recipe, trainer)
        torch.save(
            {
                "theta": trainer.weights.copy()[0],
                "samples": [sample for worker in result.workers for sample in worker.samples],
                "accuracy": result.accuracies.top1,
                "rows": [asdict(replace(row, time_s=0.0)) for row in rows if row.phase == 2],
                "speaks": trainer.group.is_first,
            },
            folder / f"{name}{comm.rank}of{comm.world_size}.pt",
        )


def test_two_processes_have_the_result_of_one(tmp_path: Path) -> None:
    run_both(ALONE, tmp_path)
    run_processes(run_both, 2, tmp_path)
    for name in ("single", "together"):
        alone = torch.load(tmp_path / f"{name}0of1.pt")
        ranks = [torch.load(tmp_path / f"{name}{rank}of2.pt") for rank in (0, 1)]
        # One rank speaks; the other has the same model.
        assert [rank["speaks"] for rank in ranks] == [True, False]
        assert [len(rank["rows"]) for rank in ranks] == [6, 0]
        assert torch.equal(ranks[0]["theta"], ranks[1]["theta"])
        for sample, other in zip(ranks[0]["samples"], ranks[1]["samples"], strict=True):
            assert torch.equal(sample, other)
        # ReLU switches on what differs in the last digit.
        torch.testing.assert_close(ranks[0]["theta"], alone["theta"], rtol=1e-2, atol=1e-3)
        assert ranks[0]["accuracy"] == pytest.approx(alone["accuracy"], abs=2 / len(DATA.test))


@pytest.mark.slow
def test_a_whole_small_run_leaves_a_record_and_a_report(tmp_path: Path) -> None:
    arguments = (
        *("--dataset", "synthetic", "--train-images", "256", "--width", "4", "--device", "cpu"),
        *("--threads", "1", "--ranks", "1", "--quiet", "--out", str(tmp_path)),
        *("--phase1.global-batch-size", "64", "--phase1.max-epochs", "1"),
        *("--phase1.warmup-epochs", "0", "--phase2.global-batch-size", "32"),
        *("--phase2.max-epochs", "4", "--phase2.cycles", "2"),
    )
    assert main(["run", "cifar100_swa_large_small", *arguments]) == 0
    (path,) = (tmp_path / "runs").glob("*.json")
    record = json.loads(path.read_text())
    assert (record["method"], record["emulated_workers"]) == ("swa", False)
    assert [row["epoch"] for row in record["epochs"]] == [1, 1, 2, 3, 4]
    assert [row["epoch"] for row in record["average_by_epoch"]] == [2, 4]
    assert record["average_by_epoch"][-1]["test_accuracy"] == record["test_accuracy"]
    assert record["accuracy_before_averaging"] == record["epochs"][-1]["test_accuracy"]
    assert len(record["pairwise_distances"]) == 2
    assert record["pairwise_distances"][0][1] > 0
    times = record["times"]
    assert times["before_averaging_s"] < times["after_averaging_s"]
    assert times["modelled_after_averaging_s"] == pytest.approx(times["after_averaging_s"])
    (folder,) = (tmp_path / "checkpoints").iterdir()
    assert {file.name for file in folder.glob("*.safetensors")} == {
        *("phase1.safetensors", "phase1.state.safetensors"),
        *("worker0-epoch4.safetensors", "final.safetensors"),
    }
    assert main(["report", "--results", str(tmp_path)]) == 0
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "Records left out: 0" in text
    assert record["run_id"].replace("_", "\\_") in text
