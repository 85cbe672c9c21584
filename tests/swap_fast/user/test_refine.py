"""`swap_fast.refine` against a plain loop, means in float64, and all inputs at once."""

from __future__ import annotations

import copy
import json
import random
import re
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from own_nets import (
    BATCHES,
    Averaging,
    Compiled,
    Tied,
    W,
    X,
    Y,
    assert_same_bits,
    bits,
    net,
    partly,
    plain_net,
    share,
    small_refine,
    started,
    train,
)
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import TensorDataset

import swap_fast


def plain_workers(model: nn.Module, count: int = W, seed: int = 0) -> list[nn.Module]:
    workers = [copy.deepcopy(model) for _ in range(count)]
    for number, worker in enumerate(workers):
        words = np.random.SeedSequence((seed, 2, number)).generate_state(1, np.uint64)
        torch.manual_seed(int(words[0]) >> 1)
        train(number, worker)
    return workers


def mean(states: Sequence[dict[str, Tensor]], name: str) -> Tensor:
    return torch.stack([state[name].double() for state in states]).mean(0)


def test_refine_is_phases_2_and_3_of_algorithm_1() -> None:
    model = started()
    before = copy.deepcopy(model.state_dict())
    workers = plain_workers(model)
    result = small_refine(model, evaluate=share)
    states = [worker.state_dict() for worker in workers]
    for ours, theirs in zip(result.worker_states, states, strict=True):
        assert all(torch.equal(ours[n], t) for n, t in theirs.items() if "tracked" not in n)
    averaged = result.model.state_dict()
    for name, _ in model.named_parameters():
        torch.testing.assert_close(averaged[name].double(), mean(states, name), rtol=1e-6, atol=0)
    inner = result.model[0](X).detach().double().numpy()
    np.testing.assert_allclose(averaged["1.running_mean"], inner.mean(0), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(averaged["1.running_var"], inner.var(0, ddof=1), rtol=1e-5)
    assert result.worker_accuracies == tuple(share(worker.eval()) for worker in workers)
    assert result.accuracy_before_averaging == pytest.approx(np.mean(result.worker_accuracies))
    assert result.accuracy == share(result.model)
    assert result.phase1_accuracy == share(copy.deepcopy(model).eval())
    # The model handed in stays as it was.
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_record_says_where_the_workers_lie(tmp_path: Path) -> None:
    model = started()
    result = small_refine(model, evaluate=share)

    def theta(state: dict[str, Tensor]) -> Tensor:
        return torch.cat([state[n].double().flatten() for n, _ in model.named_parameters()])

    thetas = [theta(state) for state in result.worker_states]
    moves = torch.stack([each - theta(model.state_dict()) for each in thetas])
    record = result.record
    assert record["displacement_norms"] == pytest.approx(moves.norm(dim=1).tolist())
    unit = moves / moves.norm(dim=1, keepdim=True)
    np.testing.assert_allclose(record["displacement_cosines"], unit @ unit.T, atol=1e-6)
    distances = torch.cdist(torch.stack(thetas), torch.stack(thetas))
    np.testing.assert_allclose(record["pairwise_distances"], distances, rtol=1e-5, atol=1e-6)
    assert record["accuracies"]["metric"] == "share"
    assert record["accuracies"]["workers"] == list(result.worker_accuracies)
    assert len(result.worker_times_s) == W
    # What is saved is what was measured.
    folder = result.save(tmp_path / "out")
    assert json.loads((folder / "record.json").read_text(), parse_constant=pytest.fail) == record
    for name, accuracy in (("averaged", result.accuracy), ("worker1", result.worker_accuracies[1])):
        fresh = net()
        fresh.load_state_dict(load_file(folder / f"{name}.safetensors"))
        assert share(fresh.eval()) == accuracy
    assert share(result.worker_model(1)) == result.worker_accuracies[1]
    card = (folder / "README.md").read_text()
    assert f"**{result.accuracy:.4f}**" in card
    assert "`train` trained a copy of it on each worker, with seed 0." in card


def test_generators_are_seeded_by_the_worker_and_the_users_go_on() -> None:
    def draws() -> tuple[float, float, float]:
        return float(torch.rand(())), float(np.random.rand()), random.random()

    def drawing(worker: int, model: nn.Module) -> None:
        drawn.append(draws())
        with torch.no_grad():
            model[0].weight.add_(drawn[-1][0])

    drawn: list[tuple[float, float, float]] = []
    for seed in (0, 0, 1):
        small_refine(started(plain_net), drawing, seed=seed, workers=2)
    assert drawn[:2] == drawn[2:4]
    assert all(len({each[i] for each in drawn}) == 4 for i in range(3))

    def seed() -> None:
        torch.manual_seed(5)
        np.random.seed(5)
        random.seed(5)

    model = started(plain_net)
    seed()
    expected = draws()
    seed()
    small_refine(model, drawing)
    assert draws() == expected


class Wrapper(nn.Module):
    """As trainers wrap a net."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x)


def in_ddp(worker: int, model: nn.Module) -> nn.Module:
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    try:
        wrapped = DistributedDataParallel(model)
        train(worker, wrapped)
        return wrapped
    finally:
        torch.distributed.destroy_process_group()


def in_shards(worker: int, model: nn.Module) -> None:
    if not torch.distributed.is_initialized():
        store = torch.distributed.HashStore()
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    train(worker, model)


def leaving_hooks(worker: int, model: nn.Module) -> None:
    train(worker, model)
    for module in model.modules():
        module.register_forward_hook(lambda *_: pytest.fail("a hook that was left"))
    model.forward = lambda x: pytest.fail("a forward that was left")


def wrapped_by(wrap: Callable[[nn.Module], Any]) -> Any:
    def how(worker: int, model: nn.Module) -> Any:
        train(worker, model)
        return wrap(model)

    return how


TRAINERS = {
    "hooks": leaving_hooks,
    "ddp": in_ddp,
    "fsdp2": in_shards,
    "compiled": wrapped_by(lambda model: torch.compile(model, backend="eager")),
    "module": wrapped_by(Wrapper),
    "a state dict": wrapped_by(lambda model: model.state_dict()),
    "a checkpoint": wrapped_by(lambda model: {"state_dict": Wrapper(model).state_dict(), "t": 1}),
    "another net": wrapped_by(copy.deepcopy),
    "averaged": wrapped_by(AveragedModel),
}


@pytest.mark.parametrize("how", TRAINERS.values(), ids=TRAINERS.keys())
def test_what_a_trainer_leaves_on_the_model_does_not_matter(how: Any) -> None:
    plain = small_refine(evaluate=share)
    try:
        result = small_refine(how=how, evaluate=share)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()  # which FSDP2's trainer leaves open
    assert_same_bits(bits(result), bits(plain))
    assert result.accuracy == plain.accuracy


def test_a_net_in_shards_is_refused() -> None:
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        model = fully_shard(started(), mesh=init_device_mesh("cpu", (1,)))
        with pytest.raises(ValueError, match=r"^model: expected the bare net, got it in shards"):
            small_refine(model)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("make", [Compiled.wrapped, Compiled.in_place], ids=["wrapped", "in place"])
def test_a_compiled_net_is_refined(make: Any) -> None:
    made = make()
    getattr(made, "_orig_mod", made).load_state_dict(started().state_dict())
    with torch.compiler.set_stance("force_eager"):
        result = small_refine(made, evaluate=share)
    assert_same_bits(bits(result), bits(small_refine(evaluate=share)))


def frozen() -> nn.Module:
    model = net()
    model[0].requires_grad_(False)
    return model


NETS = {
    "frozen": frozen,
    "tied": Tied,
    "half": partly(torch.bfloat16),
    "own buffers": Averaging,
    "cumulative": lambda: nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4, momentum=None)),
}


@pytest.mark.parametrize("make", NETS.values(), ids=NETS.keys())
def test_nets_of_every_kind_are_averaged(make: Any) -> None:
    model = started(make)
    result = small_refine(model, evaluate=share)
    averaged = result.model.state_dict()
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and "running" not in name and name != "mask":
            expected = mean(result.worker_states, name).to(tensor.dtype)
            torch.testing.assert_close(averaged[name], expected, rtol=1e-6, atol=1e-8)
    if make is frozen:
        assert torch.equal(averaged["0.weight"], model[0].weight)
        assert not result.model[0].weight.requires_grad
    if make is Tied:
        assert result.model.read.weight is result.model.write.weight


# Do the workers share a basin?


def settled() -> nn.Module:
    model = started(plain_net)
    for _ in range(10):
        train(0, model)
    return model


def turned(worker: int, model: nn.Module) -> None:
    """Turn the hidden units of worker 1 around: the same function by far other weights."""
    with torch.no_grad():
        model[2].bias.add_(1e-4 * (worker + 1))
        if worker == 1:
            for tensor in (model[0].weight, model[0].bias, model[2].weight):
                tensor.neg_()


def test_workers_in_different_basins_are_told_of() -> None:
    with pytest.warns(UserWarning, match="^workers 0 and 1 lie in different basins: between them"):
        result = small_refine(settled(), turned, workers=2, evaluate=share, basin_points=3)
    assert min(result.worker_accuracies) > 0.9
    assert result.accuracy < 0.8
    # The line's middle is the average of two.
    assert result.barrier == result.accuracy_before_averaging - result.accuracy
    assert result.record["barrier"] == result.barrier
    assert result.record["notes"] == list(result.notes)


def test_workers_of_one_basin_have_no_barrier(capsys: pytest.CaptureFixture[str]) -> None:
    def close(worker: int, model: nn.Module) -> None:
        with torch.no_grad():
            model[0].weight.add_(1e-4 * (worker + 1))

    result = small_refine(how=close, evaluate=share, basin_points=3, progress=True)
    assert result.barrier < 0.02
    assert result.notes == ()
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"worker 0: trained in \d\.\d s", lines[0])
    assert any(line.startswith("average, batch norm recomputed: test ") for line in lines)
    assert lines[-1].startswith("workers 0 and 2: a barrier of ")


@pytest.mark.parametrize("value", [float("nan"), -float("inf")])
def test_a_measurement_that_fails_after_training_costs_no_worker(value: float) -> None:
    calls: list[float] = []

    def measured(model: nn.Module) -> float:
        calls.append(share(model) if len(calls) != 2 else value)  # of worker 1
        return calls[-1]

    with pytest.warns(UserWarning, match=r"^evaluate gave no finite number for worker 1: this"):
        result = small_refine(evaluate=measured)
    assert [each is None for each in result.worker_accuracies] == [False, True, False]
    assert result.accuracy_before_averaging == pytest.approx((calls[1] + calls[3]) / 2)
    assert json.loads(json.dumps(result.record, allow_nan=False))["notes"] == list(result.notes)


def test_a_line_that_cannot_be_measured_has_no_barrier() -> None:
    def measured(model: nn.Module) -> float:
        calls.append(0.5)
        return 0.5 if len(calls) < 7 else float("nan")

    calls: list[float] = []
    with pytest.warns(UserWarning, match="number for the line between workers"):
        result = small_refine(evaluate=measured, basin_points=3, workers=2)
    assert (result.barrier, result.record["barrier"]) == (None, None)


def test_workers_may_be_without_counts_of_batches() -> None:
    def how(worker: int, model: nn.Module) -> dict[str, Tensor]:
        train(worker, model)
        return {n: t for n, t in model.state_dict().items() if "tracked" not in n}

    result = small_refine(how=how, evaluate=share)
    assert_same_bits(bits(result), bits(small_refine(evaluate=share)))
    assert share(result.worker_model(1)) == result.worker_accuracies[1]


# What cannot be.


class Extra(nn.Linear):
    def get_extra_state(self) -> Any:
        return {"version": 1}

    def set_extra_state(self, state: Any) -> None: ...


def with_nan(worker: int, model: nn.Module) -> None:
    train(worker, model)
    if worker == 1:
        model[3].bias.data[2] = torch.nan


def with_a_seed_of_its_own(worker: int, model: nn.Module) -> None:
    torch.manual_seed(42)
    train(worker, model)


def synchronised() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 4), nn.SyncBatchNorm(4))


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no net": ({"model": 3}, "model: expected a Module, got 3"),
    "wrapped": ({"model": nn.DataParallel(net())}, "model: expected the bare net, .* its .module"),
    "synchronised": ({"model": synchronised()}, "batch norm: expected one of each worker's own"),
    "train": ({"train": 3}, "train: expected a function of 2 arguments, got 3"),
    "one worker": ({"workers": 1}, "workers: expected 2 or more"),
    "half a worker": ({"workers": 1.5}, "workers: expected a whole number"),
    "seed": ({"seed": -1}, "seed: expected a whole number"),
    "resume": ({"resume": True}, "resume: expected a folder="),
    "evaluate": ({"evaluate": 0.9}, "evaluate: expected a function of 1 argument or None, got 0.9"),
    "points": ({"basin_points": 2}, "basin_points: expected 3 to 1,000"),
    "barrier": ({"max_barrier": "0.1"}, "max_barrier: expected a number, got '0.1'"),
    "barrier of nan": ({"max_barrier": float("nan")}, "max_barrier: expected a fraction"),
    "device": ({"device": "gpu"}, "device: expected one that is here, such as cpu, got 'gpu': "),
    "forward": ({"forward": 3}, "forward: expected a function of 2 arguments or None, got 3"),
    "folder": ({"folder": 3}, "folder: expected a text, a Path or None, got 3"),
    "time limit": ({"timeout_s": 0}, "timeout_s: expected seconds above 0"),
    "more than tensors": ({"model": Extra(6, 4)}, "model: expected a net whose state is tensors"),
    "shapes": (
        {"batches": [torch.zeros(4, 9)]},
        r"batches: expected a batch that the net takes, .*, got float32 \[4, 9\]: .* pass forward=",
    ),
    "lazy": ({"model": nn.Sequential(nn.LazyLinear(3))}, "parameter 0.weight: expected .* a lazy"),
    "two numbers": ({"evaluate": lambda m: (1, 2)}, "evaluate: expected a number, got a tuple"),
    "no number": ({"evaluate": lambda m: float("nan")}, "evaluate: expected a finite number"),
    "no batches": ({"batches": None}, "batches: expected training batches for the statistics"),
    "empty": ({"batches": []}, "batches: expected batches, got none"),
    "once": ({"batches": iter(BATCHES)}, "batches: expected batches that every epoch"),
    "examples": ({"batches": TensorDataset(X, Y)}, "batches: expected a DataLoader, .* TensorData"),
    "columns": ({"batches": (X, Y)}, "batches: expected a DataLoader, .* got a tuple"),
    "a tensor": ({"batches": X}, "batches: expected a DataLoader, .* got a Tensor"),
    "a number": ({"train": lambda w, m: 3}, "train: expected None, a net or a state dict, got a"),
    "nothing": ({"train": lambda w, m: None}, "worker 0: expected weights of its own, got those"),
    "nan": ({"train": with_nan}, r"expected finite weights, got .* in worker 1 \(3.bias\)"),
    "one seed": ({"train": with_a_seed_of_its_own}, "worker 1: .* those of worker 0; have train"),
    "another net": ({"train": lambda w, m: plain_net()}, "worker 0, .*: expected .* the model"),
    "no names": ({"train": lambda w, m: nn.Linear(2, 2)}, "worker 0: expected the tensors of the "),
    "half": (
        {"train": lambda w, m: m.bfloat16()},
        "worker 0, .*: expected float32 .* got bfloat16",
    ),
    "empty state": ({"train": lambda w, m: {}}, "worker 0: expected tensors by name"),
}


@pytest.mark.parametrize(("said", "message"), BAD.values(), ids=BAD.keys())
def test_what_cannot_be_is_refused_in_one_line(said: dict[str, Any], message: str) -> None:
    given = {"model": net(), "train": train, "workers": 2, "batches": BATCHES, "progress": False}
    with pytest.raises(ValueError, match=f"^{message}") as refused:
        swap_fast.refine(**(given | said))
    assert "\n" not in str(refused.value)


def test_a_net_that_cannot_be_copied_is_refused() -> None:
    model = plain_net()
    model.lock = threading.Lock()
    with pytest.raises(ValueError, match=r"^model: expected one that copy.deepcopy copies, got Ty"):
        small_refine(model)
