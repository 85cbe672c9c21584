"""`swap_fast.swap` against Algorithm 1 in plain torch, whatever optimizer and schedule."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from own_nets import PHASE1, PHASE2, assert_same_bits, bits, blobs, net, plain_net, small_swap
from plain_swap import PlainPhase, PlainSwap
from small_trainer import calling
from torch import nn

import swap_fast
from swap_fast.callbacks.emitter import EventLogger
from swap_fast.callbacks.events import read_events
from swap_fast.checkpoint.files import write_json
from swap_fast.checkpoint.run_folder import read_run_info
from swap_fast.record import EpochRow
from swap_fast.user.result import doubt_of

X, Y = blobs()


def double(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """In float64 the order of sums shows nowhere: equal to 1e-10 means the same arithmetic."""
    return lambda: make().double()


def triangle(peak: float, warmup: float, epochs: float) -> Callable[[float], float]:
    knots, rates = ([0, warmup, epochs], [0, peak, 0]) if warmup else ([0, epochs], [peak, 0])
    return lambda epoch: float(np.interp(epoch, knots, rates))


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=1.0, momentum=0.9, nesterov=True, weight_decay=5e-4)


def plain(make: Callable[[], nn.Module], **changed: Any) -> PlainSwap:
    said: dict[str, Any] = {
        "make": double(make),
        "x": X.double(),
        "y": Y,
        "workers": 2,
        "phase1": PlainPhase(batch=16, epochs=2, rate=triangle(0.2, 0.5, 2), replicas=2),
        "phase2": PlainPhase(batch=8, epochs=2, rate=triangle(0.1, 0, 2)),
        "optimizer": sgd,
    }
    return PlainSwap(**(said | changed))


def assert_same_models(result: Any, averaged: nn.Module, workers: list[nn.Module]) -> None:
    states = [result.model.state_dict(), *result.worker_states]
    for ours, theirs in zip(states, [averaged, *workers], strict=True):
        for name, tensor in theirs.state_dict().items():
            if "tracked" not in name:
                torch.testing.assert_close(ours[name], tensor, rtol=1e-9, atol=1e-10)


OPTIMIZERS: dict[str, Any] = {
    "sgd": None,
    "adamw": lambda p: torch.optim.AdamW(p, lr=1.0, weight_decay=0.1),
    "adagrad, whose state is made at once": lambda p: torch.optim.Adagrad(p, lr=1.0),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1.0, momentum=0.5),
}


@pytest.mark.parametrize("keep", [False, True], ids=["reset", "kept"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_swap_is_algorithm_1(optimizer: Any, keep: bool) -> None:
    expected = plain(net, optimizer=optimizer or sgd, keep_history=keep)
    averaged, workers = expected.run()
    result = small_swap(double(net), (X.double(), Y), optimizer=optimizer, keep_momentum=keep)
    assert_same_models(result, averaged, workers)
    assert [row.train_accuracy for row in result.epochs] == pytest.approx(expected.accuracies)


def test_in_float32_too() -> None:
    averaged, workers = replace(plain(net), make=net, x=X).run()
    result = small_swap(net, (X, Y))
    states = [result.model.state_dict(), *result.worker_states]
    for ours, theirs in zip(states, [averaged, *workers], strict=True):
        for name, tensor in theirs.state_dict().items():
            if "tracked" not in name:
                torch.testing.assert_close(ours[name], tensor, rtol=1e-4, atol=1e-5)


def test_a_net_without_batch_norm() -> None:
    averaged, workers = plain(plain_net).run()
    assert_same_models(small_swap(double(plain_net), (X.double(), Y)), averaged, workers)


def test_phase_1_ends_above_tau() -> None:
    long = PlainPhase(batch=16, epochs=9, rate=triangle(0.2, 0.5, 9), replicas=2, tau=0.8)
    expected = plain(net, phase1=long)
    averaged, workers = expected.run()
    phase1 = replace(PHASE1, max_epochs=9, stopping_accuracy=0.8)
    result = small_swap(double(net), (X.double(), Y), phase1=phase1)
    assert_same_models(result, averaged, workers)
    assert result.record["stopped_by"] == "stopping_accuracy"
    assert 1 < result.record["phase1_epochs"] < 9
    assert result.record["phase1_epochs"] == len(expected.accuracies) - 4


def test_a_schedule_of_the_users() -> None:
    rates = (lambda epoch: 0.05 * 0.5**epoch), (lambda epoch: 0.01 * (1 + epoch))
    expected = plain(
        net,
        phase1=PlainPhase(batch=16, epochs=2, rate=rates[0], replicas=2),
        phase2=PlainPhase(batch=8, epochs=2, rate=rates[1]),
    )
    result = small_swap(double(net), (X.double(), Y), schedule1=rates[0], schedule2=rates[1])
    assert_same_models(result, *expected.run())
    assert result.epochs[0].learning_rate == pytest.approx(0.025)


def test_gradients_are_clipped_as_torch_clips_them() -> None:
    expected = plain(net, largest_norm=0.05)
    result = small_swap(double(net), (X.double(), Y), clip_gradient_norm=0.05)
    averaged, workers = expected.run()
    for ours, theirs in zip(result.worker_states, workers, strict=True):
        # torch.nn.utils.clip_grad_norm_ adds its norms up in another order.
        for name, tensor in theirs.named_parameters():
            torch.testing.assert_close(ours[name], tensor.detach(), rtol=1e-9, atol=1e-10)
    assert_same_models(result, averaged, workers)


def test_groups_keep_their_ratio_to_the_optimizers_rate() -> None:
    def groups(model: nn.Module) -> list[dict[str, Any]]:
        biases = [p for n, p in model.named_parameters() if n.endswith("bias")]
        others = [p for n, p in model.named_parameters() if not n.endswith("bias")]
        return [{"params": others}, {"params": biases, "lr": 0.03, "weight_decay": 0.0}]

    def oracle(parameters: Any) -> torch.optim.Optimizer:
        every = list(parameters)
        return torch.optim.SGD(
            [
                {"params": [p for p in every if p.dim() > 1 or p is every[1]]},
                {
                    "params": [p for p in every if p.dim() == 1 and p is not every[1]],
                    "weight_decay": 0.0,
                    "own_ratio": 0.1,
                },
            ],
            lr=1.0,
            momentum=0.8,
            weight_decay=0.01,
        )

    expected = plain(net, optimizer=oracle)
    result = small_swap(
        double(net),
        (X.double(), Y),
        optimizer=lambda groups: torch.optim.SGD(groups, lr=0.3, momentum=0.8, weight_decay=0.01),
        parameter_groups=groups,
    )
    assert_same_models(result, *expected.run())


def test_groups_may_have_names_as_torch_takes_them() -> None:
    named = small_swap(parameter_groups=lambda model: model.named_parameters())
    assert_same_bits(bits(named), bits(small_swap()))


def test_five_lines_train() -> None:
    result = swap_fast.swap(net, blobs(400), blobs(200, seed=2), workers=2, progress=False)
    assert result.accuracy is not None
    assert result.accuracy > 0.9
    assert result.accuracy_before_averaging is not None
    assert result.record["settings"]["phase1"]["global_batch_size"] == 64


def test_the_reported_accuracies_are_those_of_the_models() -> None:
    x, y = blobs(60, seed=2)
    result = small_swap(net, None, (x, y))

    def share(model: nn.Module) -> float:
        with torch.no_grad():
            return float((model(x).argmax(1) == y).double().mean())

    assert result.accuracy == share(result.model)
    assert list(result.worker_accuracies) == [share(result.worker_model(w)) for w in range(2)]
    assert result.accuracy_before_averaging == sum(result.worker_accuracies) / 2
    last = [row for row in result.epochs if row.phase == 1][-1]
    assert result.phase1_accuracy == last.test_accuracy


def test_without_test_data_accuracies_are_none() -> None:
    result = small_swap()
    assert (result.accuracy, result.accuracy_before_averaging) == (None, None)
    assert result.worker_accuracies == (None, None)
    assert all(row.test_accuracy is None for row in result.epochs)


def test_the_same_seed_has_the_same_bits_and_another_has_not() -> None:
    one, same, other = (bits(small_swap(seed=seed)) for seed in (3, 3, 4))
    assert_same_bits(one, same)
    assert not torch.equal(one["averaged.0.weight"], other["averaged.0.weight"])
    assert not torch.equal(one["worker0.0.weight"], one["worker1.0.weight"])


def test_the_users_generators_go_on_as_if_nothing_had_been_drawn() -> None:
    def draws() -> tuple[float, float, float]:
        return float(torch.rand(())), float(np.random.rand()), random.random()

    def seed() -> None:
        torch.manual_seed(5)
        np.random.seed(5)
        random.seed(5)

    seed()
    expected = draws()
    seed()
    small_swap()
    assert draws() == expected


def test_a_callback_gets_every_update_and_epoch() -> None:
    rows: list[EpochRow] = []
    steps: list[int] = []
    result = small_swap(callbacks=[calling(on_step=steps.append, on_epoch_end=rows.append)])
    assert tuple(rows) == result.epochs
    assert [(r.phase, r.worker, r.epoch) for r in rows] == [
        *[(1, 0, 1), (1, 0, 2)],
        *[(2, w, e) for w in (0, 1) for e in (1, 2)],
    ]
    assert steps == [16] * 4 + [8] * 20


def test_progress_is_a_line_an_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    small_swap(test=blobs(20, seed=2), progress=True)
    first, second, *lines = capsys.readouterr().out.splitlines()
    assert first == "phase 1: batches of 16, learning rate up to 0.2, 2 epochs"
    assert second.startswith(
        "phase 2: 2 workers with batches of 8, learning rate up to 0.1, 2 epochs; on cpu, fp32, "
    )
    lines = [line for line in lines if not line.startswith("averaging did not help")]
    assert len(lines) == 6
    assert lines[0].startswith("phase 1           epoch   1/2  lr ")
    assert lines[-1].startswith("phase 2, worker 1 epoch   2/2  lr 0.0000  loss ")
    assert " train " in lines[0]
    assert " test " in lines[0]


def test_what_the_phases_will_be_and_a_tau_that_was_missed_are_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    phase1 = replace(PHASE1, stopping_accuracy=0.999)
    small_swap(phase1=phase1, schedule2=lambda epoch: 0.01, progress=True, precision="bf16")
    lines = capsys.readouterr().out.splitlines()
    tau = "until its train accuracy is above 0.999, at most 2 epochs"
    assert lines[0] == f"phase 1: batches of 16, learning rate up to 0.2, {tau}"
    values = sum(t.numel() for n, t in net().state_dict().items() if "tracked" not in n)
    assert lines[1].endswith(f"; on cpu, bf16, {4 * values / 1e6:.1f} MB of weights a worker")
    assert "batches of 8, your learning rate, 2 epochs" in lines[1]
    (missed,) = (line for line in lines if "ended by its last epoch" in line)
    assert missed.startswith("phase 1           ended by its last epoch, at a train accuracy of ")


def test_an_average_that_is_worse_is_said() -> None:
    assert str(doubt_of(0.5, 0.75)).startswith(
        "averaging did not help: 50.00% after it, 75.00% before, the workers' mean; "
    )
    assert doubt_of(0.75, 0.75) is None
    assert doubt_of(None, None) is None


def test_where_the_loss_counts_nothing_the_test_data_are_left_out(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        modes.append(model.training)
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    modes: list[bool] = []
    small_swap(plain_net, test=blobs(20, seed=2), loss=loss, progress=True)
    assert modes.count(False) == 1  # before training
    line = capsys.readouterr().out.splitlines()[2]
    assert line.startswith("nothing is measured on test_data: the loss does not count what is")


def test_runs_have_names_of_their_own_and_a_resumed_one_keeps_it(tmp_path: Path) -> None:
    def name(**said: Any) -> str:
        told: list[dict[str, Any]] = []
        small_swap(listeners=[told.append], **said)
        return next(event["run"] for event in told if event["event"] == "began")

    first = name(folder=tmp_path)
    assert re.fullmatch(r"Sequential-seed0-\d{14}", first)
    info = read_run_info(tmp_path)
    assert info is not None
    write_json(tmp_path / "run.json", replace(info, created="2020-01-02T03:04:05+00:00"))
    assert name(folder=tmp_path, resume=True) == "Sequential-seed0-20200102030405"
    assert name(seed=1).startswith("Sequential-seed1-")


def test_in_a_folder_the_first_process_hears_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[dict[str, Any]] = []

    class Noting(EventLogger):
        def __init__(self, *given: Any, **named: Any) -> None:
            made.append(named)
            super().__init__(*given, **named)

    monkeypatch.setattr("swap_fast.user.api.EventLogger", Noting)
    small_swap(folder=tmp_path)
    assert made[0]["follows"]


def test_a_metric_of_the_user_s_is_called_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    def squares(model: nn.Module, batch: Any) -> tuple[torch.Tensor, int]:
        return torch.tensor(5.0), 10

    small_swap(test=blobs(20, seed=2), metric=squares, progress=True)
    line = capsys.readouterr().out.splitlines()[2]
    assert "squares 0.5  " in line
    assert " test " not in line


def test_listeners_are_told_of_a_run_and_its_folder_keeps_the_events(tmp_path: Path) -> None:
    told: list[dict[str, Any]] = []
    result = small_swap(test=blobs(20, seed=2), listeners=[told.append], folder=tmp_path)
    kinds = [event["event"] for event in told if event["event"] not in ("progress", "note")]
    epochs = ["epoch", "checkpoint", "epoch", "checkpoint"]
    assert kinds == [
        *("began", "training", *epochs, "phase_end"),
        *2 * ("training", *epochs, "phase_end"),
        *("averaging", "done"),
    ]
    assert told[-1]["test_accuracy"] == result.accuracy
    assert read_events(tmp_path) == [event for event in told if event["event"] != "progress"]
    assert [path.name for path in tmp_path.glob("events*")] == ["events.jsonl"]


def test_the_gradients_noise_can_end_phase_1() -> None:
    phase1 = replace(PHASE1, max_epochs=30, stop="auto", gpus_per_model=2)
    result = small_swap(phase1=phase1, train=blobs(200))
    assert result.record["stopped_by"] == "noise_scale"
    assert result.epochs[0].noise_scale is not None


def test_workers_of_several_devices_share_their_batch() -> None:
    # Two replicas a worker, in turn: the mean of their gradients is the gradient of the whole
    # batch.
    shared = replace(PHASE2, gpus_per_model=2)
    one = small_swap(double(plain_net), (X.double(), Y), phase1=PHASE1, phase2=PHASE2)
    two = small_swap(double(plain_net), (X.double(), Y), phase1=PHASE1, phase2=shared)
    assert two.record["settings"]["phase1"]["gpus_per_model"] == 4
    for ours, theirs in zip(two.worker_states, one.worker_states, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


def test_importing_the_package_imports_no_torch() -> None:
    script = "import swap_fast, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
