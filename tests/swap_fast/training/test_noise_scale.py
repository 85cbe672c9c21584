"""The gradient noise scale against gradients taken apart by autograd, and against known noise."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_trainer import (
    SWAP,
    SmallNet,
    calling,
    make_dataset,
    run_processes,
    small_trainer,
    with_phases,
)
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from swap_fast.algorithm import swap
from swap_fast.config.execution import Execution
from swap_fast.config.phase import Optimizer, Phase
from swap_fast.config.recipe import SWAPRecipe
from swap_fast.distributed import ALONE, Comm
from swap_fast.record import EpochRow
from swap_fast.training.optimizer import MomentumSGD
from swap_fast.training.step import GradientNoise, NoiseMeter, Step, gradient_noise
from swap_fast.training.weights import Weights

SLOTS, BATCH, RATE = 4, 24, 0.2
PHASE = Phase(global_batch_size=BATCH, peak_lr=1.0, max_epochs=1, gpus_per_model=SLOTS, stop="auto")


def make_step(
    comm: Comm = ALONE,
    *,
    phase: Phase = PHASE,
    scaled: bool = False,
    execution: Execution | None = None,
) -> tuple[Step, Weights, MomentumSGD]:
    torch.manual_seed(0)
    execution = execution or Execution()
    weights = Weights(execution.place(SmallNet(), torch.device("cpu")))
    optimizer = MomentumSGD(weights, Optimizer(), scale_gradients=scaled)
    step = Step(weights, optimizer, phase, comm, execution)
    step.set_learning_rate(RATE)
    return step, weights, optimizer


def batch_of(replica: int, update: int, size: int) -> tuple[Tensor, Tensor]:
    """A replica's images and labels, whichever rank it is on."""
    generator = torch.Generator().manual_seed(100 * update + replica)
    images = torch.randn(size, 3, 32, 32, generator=generator) * (1 + replica / 2)
    return images, torch.randint(10, (size,), generator=generator)


def run_updates(step: Step, comm: Comm = ALONE, updates: int = 3) -> None:
    for update in range(updates):
        replicas = comm.replicas(SLOTS)
        for replica, images, labels in zip(
            replicas,
            step.images.chunk(len(replicas)),
            step.labels.chunk(len(replicas)),
            strict=True,
        ):
            given = batch_of(replica, update, len(labels))
            images.copy_(given[0])
            labels.copy_(given[1])
        step()


def reference(updates: int = 3) -> GradientNoise:
    """The same updates with each replica's gradient by autograd, and the paper's two formulas."""
    torch.manual_seed(0)
    model = SmallNet()
    sgd = torch.optim.SGD(
        model.parameters(), lr=RATE, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    b_small, b_big = BATCH // SLOTS, BATCH
    norms, variances = [], []
    for update in range(updates):
        gradients = []
        for replica in range(SLOTS):
            images, labels = batch_of(replica, update, b_small)
            loss = nn.functional.cross_entropy(model(images), labels)
            taken = torch.autograd.grad(loss, list(model.parameters()))
            gradients.append(np.concatenate([g.double().numpy().ravel() for g in taken]))
        g_big = np.mean(gradients, axis=0)
        small_square = np.mean([(g**2).sum() for g in gradients])
        big_square = (g_big**2).sum()
        norms.append((b_big * big_square - b_small * small_square) / (b_big - b_small))
        variances.append((small_square - big_square) / (1 / b_small - 1 / b_big))
        flat = torch.from_numpy(g_big).float()
        for p, part in zip(
            model.parameters(), flat.split([p.numel() for p in model.parameters()]), strict=True
        ):
            p.grad = part.view_as(p)
        sgd.step()
    return GradientNoise(
        squared_norm=float(np.mean(norms)),
        variance=float(np.mean(variances)),
        global_batch_size=BATCH,
    )


def assert_close(ours: GradientNoise | None, expected: GradientNoise, rel: float = 1e-4) -> None:
    assert ours is not None
    assert ours.global_batch_size == expected.global_batch_size
    assert ours.variance == pytest.approx(expected.variance, rel=rel)
    # Of a difference of the same size as its parts.
    assert ours.squared_norm == pytest.approx(
        expected.squared_norm, abs=rel * expected.variance / expected.global_batch_size
    )


@pytest.mark.parametrize("scaled", [False, True])
def test_one_rank_of_four_replicas(scaled: bool) -> None:
    step, _, optimizer = make_step(scaled=scaled)
    optimizer.scaler.update(256.0) if scaled else None
    run_updates(step)
    assert_close(step.read_metrics().noise, reference())


def save_noise(comm: Comm, folder: Path) -> None:
    """What this rank reads after three updates, in fp32 and with halved gradients."""
    for name, execution in (
        ("fp32", Execution()),
        ("fp16", Execution(precision="fp16", all_reduce="fp16")),
    ):
        step, _, optimizer = make_step(comm, scaled=name == "fp16", execution=execution)
        if name == "fp16":
            optimizer.scaler.update(256.0)
        run_updates(step, comm)
        noise = step.read_metrics().noise
        assert noise is not None
        path = folder / f"{name}-rank{comm.rank}of{comm.world_size}.json"
        path.write_text(json.dumps(asdict(noise)))


@pytest.mark.parametrize(
    "world_size", [2, pytest.param(SLOTS, marks=pytest.mark.slow)], ids="{} processes".format
)
def test_ranks_that_share_the_replicas(world_size: int, tmp_path: Path) -> None:
    run_processes(save_noise, world_size, tmp_path)
    expected = reference()
    for name, rel in (("fp32", 1e-4), ("fp16", 2e-2)):
        read = [
            GradientNoise(
                **json.loads((tmp_path / f"{name}-rank{rank}of{world_size}.json").read_text())
            )
            for rank in range(world_size)
        ]
        assert_close(read[0], expected, rel)
        assert read.count(read[0]) == world_size  # to the bit: all decide alike


def test_a_reading_starts_anew() -> None:
    step, _, _ = make_step()
    step.set_learning_rate(0.0)
    run_updates(step, updates=3)
    step.read_metrics()
    run_updates(step, updates=1)  # of the same weights
    assert_close(step.read_metrics().noise, reference(updates=1))


def test_an_update_that_overflows_is_not_counted() -> None:
    step, _, optimizer = make_step(scaled=True)
    optimizer.scaler.update(256.0)
    run_updates(step)
    step.images[5] = torch.inf
    step()
    assert_close(step.read_metrics().noise, reference())
    step.images[5] = torch.nan
    step()
    assert step.read_metrics().noise is None


@pytest.mark.parametrize("replicas", [2, 8])
def test_both_estimates_are_unbiased(replicas: int) -> None:
    """Loss |theta - x|^2 / 2 of x ~ N(mean, Sigma): G is theta - mean, and S the trace of Sigma."""
    size, micro, updates = 20, 3, 4000
    generator = torch.Generator().manual_seed(5)
    true_gradient = torch.full((size,), 0.3)  # |G|^2 = 1.8
    deviations = torch.linspace(0.1, 2.0, size)  # S = sum of squares
    gradient = torch.zeros(size)
    meter = NoiseMeter(
        gradient, num_replicas=replicas, replicas=replicas, global_batch_size=replicas * micro
    )
    singles = []
    for _ in range(updates):
        before = meter.sums.clone()
        gradient.zero_()
        for replica in range(replicas):
            images = torch.randn(micro, size, generator=generator) * deviations
            gradient.add_((true_gradient + images.mean(0)) / replicas)
            meter.after_replica_(replica)
        meter.after_sum_(lambda one: one)
        single = meter.estimate((meter.sums - before).tolist())
        assert single is not None
        singles.append((single.squared_norm, single.variance))
    means, errors = np.mean(singles, axis=0), np.std(singles, axis=0, ddof=1) / np.sqrt(updates)
    expected = np.array([1.8, float(deviations.square().sum())])
    assert np.all(np.abs(means - expected) < 3 * errors)
    assert np.all(errors < 0.05 * expected)  # so that a bias could be seen
    whole = meter.estimate(meter.sums.tolist())
    assert whole is not None
    assert (whole.squared_norm, whole.variance) == pytest.approx(tuple(means), rel=1e-9)


def test_the_formulas_by_hand() -> None:
    # |G|^2 = 2, S = 24: micro-batches of 3 have 2 + 8, global batches of 12 have 2 + 2.
    noise = gradient_noise(10.0, 4.0, micro_batch_size=3, global_batch_size=12)
    assert (noise.squared_norm, noise.variance, noise.scale) == pytest.approx((2.0, 24.0, 12.0))


@pytest.mark.parametrize(
    ("squared_norm", "variance", "ratio", "above"),
    [
        (2.0, 40.0, 2.0, False),  # 20 images are 2 batches of 10, and not more
        (2.0, 40.1, 2.0, True),
        (2.0, 40.1, 2.1, False),
        (0.0, 1.0, 1e9, True),  # noise alone
        (-1.0, 1.0, 1e9, True),
        (0.0, 0.0, 1.0, False),  # nothing at all
    ],
)
def test_the_rule(squared_norm: float, variance: float, ratio: float, above: bool) -> None:
    noise = GradientNoise(squared_norm=squared_norm, variance=variance, global_batch_size=10)
    assert noise.exceeds(ratio) == above
    assert (noise.scale is None) == (squared_norm <= 0)


DATA = make_dataset(train_images=72)
RECIPE = replace(
    SWAP,
    num_workers=SLOTS,
    phase1=Phase(
        global_batch_size=BATCH, peak_lr=0.3, max_epochs=4, warmup_epochs=1.5, gpus_per_model=SLOTS
    ),
    phase2=Phase(global_batch_size=8, peak_lr=0.1, max_epochs=1),
)


def run_swap(recipe: SWAPRecipe) -> tuple[str, Tensor, Tensor, list[EpochRow]]:
    rows: list[EpochRow] = []
    parts = small_trainer(recipe, dataset=DATA, callbacks=[calling(on_epoch_end=rows.append)])
    result = swap(recipe, parts)
    return (
        result.phase1.progress.stopped_by,
        *parts.weights.copy(),
        [replace(row, time_s=0.0) for row in rows],
    )


def test_measuring_changes_no_bit() -> None:
    # So late a peak that nothing ends the phase: three updates an epoch may find no signal at all.
    late = with_phases(RECIPE, phase1={"warmup_epochs": 3.5})
    plain, measured = run_swap(late), run_swap(with_phases(late, phase1={"stop": "auto"}))
    assert measured[0] == plain[0] == "max_epochs"
    assert torch.equal(measured[1], plain[1])
    assert torch.equal(measured[2], plain[2])
    assert [replace(row, noise_scale=None) for row in measured[3]] == plain[3]
    assert any(row.noise_scale is not None for row in measured[3] if row.phase == 1)
    assert all(row.noise_scale is None for row in measured[3] if row.phase == 2)


def test_a_run_ends_phase_1_by_itself() -> None:
    recipe = with_phases(RECIPE, phase1={"stop": "auto", "stopping_noise_ratio": 1e-9})
    stopped_by, _, _, rows = run_swap(recipe)
    assert stopped_by == "noise_scale"
    # The third epoch is the first that begins past the peak, at 1.5.
    assert [row.epoch for row in rows if row.phase == 1] == [1, 2, 3]


class Seen(TorchDispatchMode):
    """Notes the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_where_it_is_not_asked_for_nothing_is_done() -> None:
    names = []
    for stop in ("accuracy", "auto"):
        step, _, _ = make_step(phase=replace(PHASE, stop=stop))
        with Seen() as seen:
            step()
        names.append(seen.names)
    plain, measured = names
    assert "linalg_vector_norm" not in plain
    assert measured.count("linalg_vector_norm") == SLOTS + 1
