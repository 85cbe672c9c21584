"""Algorithm 1 as a whole against a plain implementation of it, and what a run tells on its way."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from small_trainer import (
    MEAN,
    PHASE1,
    SGD,
    STD,
    SWAP,
    SmallNet,
    calling,
    make_dataset,
    oracle_batch,
    small_trainer,
    with_phases,
)
from torch import Tensor, nn

from swap_fast.algorithm import sgd, swap
from swap_fast.clock import Clock
from swap_fast.config.phase import Phase
from swap_fast.config.recipe import SGDRecipe, SWAPRecipe
from swap_fast.data.cifar.augment import AugmentationPlan, plain_plan, plan_epoch
from swap_fast.record import EpochRow
from swap_fast.training.state import NoCheckpoints, Progress, TrainingState

SEED = 3
DATA = make_dataset()
N = len(DATA.train)


@dataclass
class PlainRun:
    """What the plain implementation has done."""

    workers: list[nn.Module] = field(default_factory=list)
    rows: list[tuple[float, ...]] = field(default_factory=list)
    """(phase, worker, epoch, last rate, loss, train accuracy, test accuracy)."""
    epochs: int = 0
    """Of phase 1."""
    history: dict[str, Any] = field(default_factory=dict)
    """The optimizer's state at the end of phase 1."""


def share_right(model: nn.Module) -> float:
    images = (torch.from_numpy(DATA.test.images).float() - torch.tensor(MEAN)) / torch.tensor(STD)
    model.eval()
    with torch.no_grad():
        predicted = model(images.permute(0, 3, 1, 2)).argmax(1).numpy()
    model.train()
    return float((predicted == DATA.test.labels).mean())


def running(model: nn.Module) -> dict[str, Tensor]:
    return {n: b for n, b in model.named_buffers() if "running" in n}


def merged(replicas: list[dict[str, Tensor]], model: nn.Module) -> nn.Module:
    """A copy of the model with the moments of all replicas' statistics taken together."""
    model = copy.deepcopy(model)
    for name, buffer in running(model).items():
        mean_name = name.replace("running_var", "running_mean")
        means = torch.stack([replica[mean_name].double() for replica in replicas])
        if "running_mean" in name:
            buffer.copy_(means.mean(0))
        else:
            variances = torch.stack([replica[name].double() for replica in replicas])
            buffer.copy_((variances + means**2).mean(0) - means.mean(0) ** 2)
    return model


def rate(phase: Phase, epoch: float) -> float:
    horizon = phase.horizon_epochs or phase.max_epochs
    if phase.warmup_epochs:
        return float(np.interp(epoch, [0, phase.warmup_epochs, horizon], [0, phase.peak_lr, 0]))
    return float(np.interp(epoch, [0, horizon], [phase.peak_lr, 0]))


def plain_phase(
    run: PlainRun, recipe: SGDRecipe, model: nn.Module, number: int, worker: int
) -> nn.Module:
    """One model through a phase: returns it with its replicas' statistics merged."""
    phase: Phase = getattr(recipe, f"phase{number}")
    count, micro = phase.gpus_per_model, phase.micro_batch_size
    replicas = [{n: b.clone() for n, b in running(model).items()} for _ in range(count)]
    optimizer = torch.optim.SGD(
        model.parameters(), lr=1.0, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    if number == 2 and isinstance(recipe, SWAPRecipe) and recipe.keep_momentum:
        optimizer.load_state_dict(copy.deepcopy(run.history))
    steps = N // phase.global_batch_size
    whole = model
    for epoch in range(phase.max_epochs):
        plan = plan_epoch(
            N, recipe.augmentation, seed=SEED, phase=number, worker=worker, epoch=epoch
        )
        loss_sum, correct = 0.0, 0
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = rate(phase, epoch + (step + 1) / steps)
            optimizer.zero_grad()
            for replica, statistics in enumerate(replicas):
                start = step * phase.global_batch_size + replica * micro
                images, labels = oracle_batch(
                    DATA.train, recipe.augmentation, plan, range(start, start + micro)
                )
                for name, buffer in running(model).items():
                    buffer.copy_(statistics[name])
                logits = model(images)
                losses = nn.functional.cross_entropy(logits, labels, reduction="none")
                (losses.sum() / phase.global_batch_size).backward()
                loss_sum += losses.sum().item()
                correct += int((logits.argmax(1) == labels).sum())
                replicas[replica] = {n: b.clone() for n, b in running(model).items()}
            optimizer.step()
        whole = merged(replicas, model)
        seen = steps * phase.global_batch_size
        train_accuracy = correct / seen
        run.rows.append(
            (
                *(number, worker, epoch + 1, rate(phase, epoch + 1.0)),
                *(loss_sum / seen, train_accuracy, share_right(whole)),
            )
        )
        if phase.stopping_accuracy is not None and train_accuracy > phase.stopping_accuracy:
            break
    if number == 1:
        run.epochs = epoch + 1
        run.history = copy.deepcopy(optimizer.state_dict())
    return whole


def plain_swap(recipe: SWAPRecipe) -> tuple[nn.Module, PlainRun]:
    """Algorithm 1 with copies of the model, torch's SGD, and images made one by one."""
    torch.manual_seed(SEED)
    model = SmallNet()
    run = PlainRun()
    start = plain_phase(run, recipe, model, 1, 0)
    for worker in range(recipe.num_workers):
        run.workers.append(plain_phase(run, recipe, copy.deepcopy(start), 2, worker))
    return averaged(recipe, run.workers), run


def averaged(recipe: SWAPRecipe, workers: list[nn.Module]) -> nn.Module:
    """Line 28 parameter by parameter, and line 29 from the activations themselves."""
    model = copy.deepcopy(workers[0])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            copies = [worker.get_parameter(name).double() for worker in workers]
            parameter.copy_(torch.stack(copies).mean(0))
    seen: dict[str, list[Tensor]] = {}
    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            seen[name] = []
            hooks.append(
                module.register_forward_pre_hook(
                    lambda _, inputs, kept=seen[name]: kept.append(inputs[0].detach().double())
                )
            )
    plan: AugmentationPlan = plain_plan(N, recipe.augmentation.pad)
    if recipe.batch_norm_augmented:
        plan = plan_epoch(N, recipe.augmentation, seed=SEED, phase=3, worker=0, epoch=0)
    size = recipe.batch_norm_batch_size
    for start in range(0, N, size):
        model(
            oracle_batch(DATA.train, recipe.augmentation, plan, range(start, min(N, start + size)))[
                0
            ]
        )
    for hook in hooks:
        hook.remove()
    for name, activations in seen.items():
        values = torch.cat([a.transpose(0, 1).flatten(1) for a in activations], dim=1)
        model.get_buffer(f"{name}.running_mean").copy_(values.mean(1))
        model.get_buffer(f"{name}.running_var").copy_(values.var(1))
    return model


def assert_same_model(ours: nn.Module, expected: nn.Module) -> None:
    for name, parameter in expected.named_parameters():
        torch.testing.assert_close(ours.get_parameter(name), parameter, rtol=1e-3, atol=2e-5)
    for name, buffer in running(expected).items():
        torch.testing.assert_close(ours.get_buffer(name), buffer, rtol=1e-3, atol=2e-5)


def assert_same_rows(ours: list[EpochRow], expected: list[tuple[float, ...]]) -> None:
    values = [
        (
            *(r.phase, r.worker, r.epoch, r.learning_rate),
            *(r.train_loss, r.train_accuracy, r.test_accuracy),
        )
        for r in ours
    ]
    assert len(values) == len(expected)
    for row, plain in zip(values, expected, strict=True):
        assert row == pytest.approx(plain, rel=1e-4, abs=1e-9)


VARIANTS = {
    "as in the paper": SWAP,
    "momentum kept": replace(SWAP, keep_momentum=True),
    "clean batch-norm pass": replace(SWAP, batch_norm_augmented=False),
    "left at tau": with_phases(phase1={"stopping_accuracy": 0.05, "max_epochs": 4}),
    "one worker": replace(SWAP, num_workers=1, phase1=replace(PHASE1, gpus_per_model=1)),
}


@pytest.mark.parametrize("recipe", VARIANTS.values(), ids=VARIANTS.keys())
def test_swap_is_algorithm_1(recipe: SWAPRecipe) -> None:
    expected, plain = plain_swap(recipe)
    rows: list[EpochRow] = []
    parts = small_trainer(
        recipe, dataset=DATA, seed=SEED, callbacks=[calling(on_epoch_end=rows.append)]
    )
    result = swap(recipe, parts)
    assert_same_rows(rows, plain.rows)
    assert_same_model(parts.weights.model, expected)
    assert result.accuracies.top1 == pytest.approx(share_right(expected), abs=1e-9)
    stopped_early = plain.epochs < recipe.phase1.max_epochs
    assert result.phase1.progress.stopped_by == (
        "stopping_accuracy" if stopped_early else "max_epochs"
    )
    assert stopped_early == (recipe.phase1.stopping_accuracy is not None)
    assert [worker.worker for worker in result.workers] == list(range(recipe.num_workers))
    final, statistics = parts.weights.copy()
    for worker, plain_worker in zip(result.workers, plain.workers, strict=True):
        parts.weights.load_(worker.theta, statistics)
        for name, parameter in plain_worker.named_parameters():
            ours = parts.weights.model.get_parameter(name)
            torch.testing.assert_close(ours, parameter, rtol=1e-3, atol=2e-5)
    mean = torch.stack([worker.theta.double() for worker in result.workers]).mean(0)
    torch.testing.assert_close(final.double(), mean, rtol=1e-6, atol=1e-7)


def test_sgd_is_phase_1_alone() -> None:
    torch.manual_seed(SEED)
    model = SmallNet()
    plain = PlainRun()
    expected = plain_phase(plain, SGD, model, 1, 0)
    rows: list[EpochRow] = []
    clock = Clock()
    parts = small_trainer(
        SGD, dataset=DATA, clock=clock, callbacks=[calling(on_epoch_end=rows.append)]
    )
    result = sgd(SGD, parts)
    assert_same_rows(rows, plain.rows)
    assert_same_model(parts.weights.model, expected)
    assert (result.phase1.progress.stopped_by, result.workers) == ("max_epochs", [])
    assert result.accuracies.top1 == rows[-1].test_accuracy
    assert result.before_averaging_s == clock.reading()


class NotingClock(Clock):
    """A clock that keeps the order of its laps, and whose every second is one lap's."""

    def __init__(self) -> None:
        self.order: list[str] = []
        self.seconds = 0.0
        super().__init__(now=lambda: self.seconds)

    @contextmanager
    def lap(self, name: str) -> Iterator[None]:
        self.order.append(name)
        with super().lap(name):
            yield
            self.seconds += 1.0


def test_laps_follow_one_another_in_the_order_of_the_algorithm() -> None:
    clock = NotingClock()
    events: list[object] = []

    class Saving(NoCheckpoints):
        def save(self, progress: Progress, state: TrainingState, row: EpochRow | None) -> None:
            events.append(("saved", progress.phase, progress.worker, progress.stopped_by))

    watch = calling(
        on_step=lambda images: events.append(images),
        on_epoch_end=lambda row: events.append((row.phase, row.worker, row.epoch)),
        on_begin=lambda at: events.append(("begins", at.phase, at.worker, at.epoch)),
        on_end=lambda at: events.append(("ended", at.phase, at.worker, at.epoch)),
        on_averaging=lambda: events.append("averaging"),
    )
    result = swap(
        SWAP, small_trainer(dataset=DATA, clock=clock, callbacks=[watch], checkpoints=Saving())
    )
    worker = [
        *["phase2", "checkpoint", "phase2"],
        *["phase2", "evaluation", "checkpoint"],
        *["phase2", "evaluation", "checkpoint", "phase2"],
    ]
    assert clock.order == [
        *["model_init", "model_init", "kernel_warmup", "data_preparation"],
        *["checkpoint", "phase1", *["phase1", "evaluation", "checkpoint"] * 2, "phase1"],
        *worker * 2,
        *["waiting", "averaging", "batch_norm", "evaluation"],
    ]
    assert events == [
        *[("begins", 1, 0, 0), 16, 16, (1, 0, 1), ("saved", 1, 0, None)],
        *[16, 16, (1, 0, 2), ("saved", 1, 0, "max_epochs"), ("ended", 1, 0, 2)],
        *[("begins", 2, 0, 0), *[8] * 5, (2, 0, 1), ("saved", 2, 0, None)],
        *[*[8] * 5, (2, 0, 2), ("saved", 2, 0, "max_epochs"), ("ended", 2, 0, 2)],
        *[("begins", 2, 1, 0), *[8] * 5, (2, 1, 1), ("saved", 2, 1, None)],
        *[*[8] * 5, (2, 1, 2), ("saved", 2, 1, "max_epochs"), ("ended", 2, 1, 2)],
        "averaging",
    ]
    # A second a lap: model, its steps, data, four of phase 1 and five of each worker.
    assert [worker.time_s for worker in result.workers] == [5.0, 5.0]
    assert result.before_averaging_s == 3 + 4 + 10
    assert clock.reading() == 3 + 4 + 10 + 2


def test_the_same_run_twice_has_the_same_bits() -> None:
    runs = []
    for _ in range(2):
        rows: list[EpochRow] = []
        parts = small_trainer(dataset=DATA, callbacks=[calling(on_epoch_end=rows.append)])
        swap(SWAP, parts)
        runs.append((parts.weights.copy(), [replace(row, time_s=0.0) for row in rows]))
    assert torch.equal(runs[0][0][0], runs[1][0][0])
    assert torch.equal(runs[0][0][1], runs[1][0][1])
    assert runs[0][1] == runs[1][1]


def test_workers_diverge_and_seeds_differ() -> None:
    runs = [swap(SWAP, small_trainer(dataset=DATA, seed=seed)) for seed in (1, 2)]
    thetas = [worker.theta for run in runs for worker in run.workers]
    for i, one in enumerate(thetas):
        assert all((one - other).norm() > 1e-3 for other in thetas[:i])


def test_a_diverging_phase_2_stops_the_run() -> None:
    recipe = with_phases(phase2={"peak_lr": 1e30})
    where = r"^phase 2, worker 0, epoch [12] \(updates \d+ to \d+\): the loss is "
    with pytest.raises(FloatingPointError, match=where):
        swap(recipe, small_trainer(recipe, dataset=DATA))
