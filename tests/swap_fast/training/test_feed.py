"""Updates that read their batch and their learning rate at a counter, without a GPU.

The same update, run eagerly on a CPU or as a trace, which is like a graph the tensor operations of
one call and nothing else; a captured one is in tests/cuda.
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from small_trainer import MEAN, STD, SWAP, SmallNet, make_dataset, make_split

from bench.verify import step as checks
from bench.verify.check import Form
from swap_fast.algorithm import swap
from swap_fast.clock import Clock
from swap_fast.config.execution import Execution
from swap_fast.config.phase import Augmentation, Optimizer
from swap_fast.config.recipe import SWAPRecipe
from swap_fast.data.cifar.batches import Batch, Batches, ShardSpec
from swap_fast.data.cifar.resident import DeviceImages
from swap_fast.distributed import ALONE
from swap_fast.tasks.cifar import CifarSource, black
from swap_fast.training.capture import DeviceFeed
from swap_fast.training.optimizer import recipe_optimizer
from swap_fast.training.step import Step
from swap_fast.training.trainer import Trainer, build_trainer
from swap_fast.training.weights import Weights

CPU = torch.device("cpu")
SPLIT = make_split(44, 1)
SMALL = Form(device_type="cpu", small=True)


class Loads(CifarSource):
    """As for a captured step: each update loads its own batch."""

    def resident_batches(self, *phase: Any, **told: Any) -> Batches | None:
        """As if the execution were captured."""
        *of_step, _ = phase
        execution: Any = SimpleNamespace(capture=True, loader="tensor")
        return super().resident_batches(*of_step, execution, **told)


def trainer_of(source: type[CifarSource], recipe: SWAPRecipe, execution: Execution) -> Trainer:
    return build_trainer(
        recipe,
        SmallNet,
        source(recipe, make_dataset()),
        seed=3,
        device=CPU,
        execution=execution,
        clock=Clock(),
    )


BIASES = Optimizer(bias_lr_factor=4.0)
MUON = Optimizer(kind="muon", momentum=0.6, bias_lr_factor=4.0, head_lr_factor=2.0)


@pytest.mark.parametrize("optimizer", [Optimizer(), BIASES, MUON])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_is_to_the_bit_the_one_whose_host_loads(optimizer: Optimizer, precision: str) -> None:
    """Two replicas in phase 1, then two workers in turn with a batch of another size."""
    recipe = replace(SWAP, optimizer=optimizer)
    execution = Execution(precision=precision)  # type: ignore[arg-type]
    results = []
    for source in (CifarSource, Loads):
        trainer = trainer_of(source, recipe, execution)
        feeds = [stage.step.feed for phase in trainer.phases for stage in phase.stages]
        assert all((feed is None) == (source is CifarSource) for feed in feeds)
        result = swap(recipe, trainer)
        rates = [float(group["lr"]) for group in trainer.optimizer._torch.param_groups]
        state = trainer.weights.state_dict()
        results.append((result, state, rates))
    (given, theirs, host_rates), (read, ours, rates) = results
    assert rates == host_rates
    for one, other in zip(read.workers, given.workers, strict=True):
        assert torch.equal(one.theta, other.theta)
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert read.accuracies == given.accuracies


def small_step(loads: bool = True) -> tuple[Step, Batches]:
    """A step that is not warm yet, and batches of 6 updates of 16 images for it."""
    torch.manual_seed(0)
    weights = Weights(SmallNet())
    optimizer = recipe_optimizer(weights, Optimizer(), scale_gradients=False)
    phase = replace(SWAP.phase1, global_batch_size=16)
    step = Step(weights, optimizer, phase, ALONE, Execution())
    share = ShardSpec(
        num_images=100,
        augmentation=Augmentation(),
        phase=phase,
        seed=5,
        number=1,
        replicas=range(2),
    )
    images = DeviceImages(make_split(100, 2), mean=MEAN, std=STD, device=CPU, pad=4)
    batches = Batches(images, share, step.batch)
    step.load_from_(batches if loads else None)
    return step, batches


def test_the_warm_up_leaves_the_counter_and_the_plan_as_they_were() -> None:
    step, batches = small_step()
    assert step.feed is not None
    counter = step.feed._counter
    step.warm_up(10)  # more than the epoch's 6
    assert counter.tolist() == [0, 0]
    assert not batches._plan.columns.any()
    addresses = [t.data_ptr() for t in (counter, step.feed._rates, batches._plan.columns)]
    step.feed.start_epoch(1, 2, first=4, learning_rates=[0.1 * i for i in range(6)])
    assert counter.tolist() == [4, 1]
    for number in (4, 5):
        step()
        seen = step.labels.clone()
        batches.load(number)
        assert torch.equal(seen, step.labels)
        (group,) = step._optimizer._torch.param_groups
        assert torch.equal(group["lr"], torch.tensor(0.1 * number))
    assert addresses == [t.data_ptr() for t in (counter, step.feed._rates, batches._plan.columns)]
    with pytest.raises(IndexError, match="out of range"):  # there is no seventh update
        step()


def test_a_step_of_its_own_loads_nothing() -> None:
    step, _ = small_step(loads=False)
    assert step.feed is None


def without(name: str) -> Any:
    """A feed that leaves something out."""
    whole = DeviceFeed.start_epoch

    def first_plan_stays(self: DeviceFeed, worker: int, epoch: int, **told: Any) -> None:
        whole(self, worker, 0, **told)

    def starts_at_0(self: DeviceFeed, worker: int, epoch: int, **told: Any) -> None:
        whole(self, worker, epoch, **told | {"first": 0})

    def first_rates_stay(self: DeviceFeed, worker: int, epoch: int, **told: Any) -> None:
        kept = self._rates.clone()
        whole(self, worker, epoch, **told)
        if epoch > 0:
            self._rates.copy_(kept)

    def counter_stays(self: DeviceFeed) -> None:
        self._batches.load_at_(self._next)
        self._optimizer.take_learning_rates_(self._rates, self._next)

    def rate_of_the_host(self: DeviceFeed) -> None:
        self._batches.load_at_(self._next)
        self._optimizer.set_learning_rate(0.05)
        self._next += self._one

    changed = locals()[name]
    return ("fill_" if name in ("counter_stays", "rate_of_the_host") else "start_epoch"), changed


@pytest.mark.slow  # a net is traced
@pytest.mark.parametrize(
    ("wrong", "found"),
    [
        ("first_plan_stays", "update 7 reads another images"),
        ("starts_at_0", "update 13 reads another images"),
        ("first_rates_stay", "update 7 reads another learning rate"),
        ("counter_stays", "update 2 reads another images"),
        ("rate_of_the_host", "update 1 reads another learning rate"),
    ],
)
def test_the_check_of_the_feed_can_fail(
    wrong: str, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DeviceFeed, *without(wrong))
    with pytest.raises(AssertionError, match=f"^{found}"):
        checks.feed(SMALL)


@pytest.mark.slow
def test_the_check_of_the_feed_is_confirmed_by_the_trace() -> None:
    assert checks.feed(SMALL).startswith("15 updates read what the host gives")


@pytest.mark.parametrize("pad", [0, 4])
def test_other_images_in_the_same_memory_are_as_if_they_had_been_there_first(pad: int) -> None:
    augmentation = Augmentation(pad=pad)
    zeros, ones = (0.0,) * 3, (1.0,) * 3
    filled = DeviceImages(black(len(SPLIT)), mean=zeros, std=ones, device=CPU, pad=pad)
    address = filled._gather._both.data_ptr()  # type: ignore[attr-defined]
    filled.fill_(SPLIT, mean=MEAN, std=STD)
    assert filled._gather._both.data_ptr() == address  # type: ignore[attr-defined]
    first = DeviceImages(SPLIT, mean=MEAN, std=STD, device=CPU, pad=pad)
    phase = replace(SWAP.phase1, global_batch_size=22, gpus_per_model=1)
    share = ShardSpec(
        num_images=44,
        augmentation=augmentation,
        phase=phase,
        seed=5,
        number=1,
        replicas=range(1),
    )
    made = []
    for images in (filled, first):
        batch = Batch.empty(22, 32, Execution(), CPU)
        batches = Batches(images, share, batch)
        batches.start_epoch(0, 1)
        for step in range(2):
            batches.load(step)
            made.append([t.clone() for t in batch])
            batches.load_at_(torch.tensor([step]))
            assert all(torch.equal(a, b) for a, b in zip(batch, made[-1], strict=True))
    for ours, theirs in zip(made[:2], made[2:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_the_table_holds_what_the_host_would_set() -> None:
    weights = Weights(SmallNet(), groups=MUON.groups)
    optimizer = recipe_optimizer(weights, MUON, scale_gradients=False)
    rates = np.linspace(0.3, 1e-5, 7).tolist()
    table = optimizer.learning_rates(rates)
    groups = optimizer._torch.param_groups
    assert table.shape == (len(groups), 7)
    for number, rate in enumerate(rates):
        optimizer.set_learning_rate(rate)
        told = [group["lr"].clone() for group in groups]
        optimizer.set_learning_rate(9.0)
        tensors = [group["lr"] for group in groups]
        optimizer.take_learning_rates_(table, torch.tensor([number]))
        assert all(group["lr"] is tensor for group, tensor in zip(groups, tensors, strict=True))
        assert [group["lr"] for group in groups] == told
