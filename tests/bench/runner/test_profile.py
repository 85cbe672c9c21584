"""Traces by --profile: which steps are in them, and that a run without has nothing of it."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.cli import main
from bench.records.grouping import why_not_comparable
from bench.records.paper_tables import OTHER, place_of, why_other
from bench.runner.profiler import ACTIVE, WAIT, WARMUP, Profiler, longest_operators, steps_within
from swap_fast.recipes.cifar10 import RECIPES
from swap_fast.record_files import read_record
from swap_fast.training.state import Progress

pytestmark = pytest.mark.usefixtures("small_cifar")

SMALL = (
    *("--dataset", "cifar10", "--train-images", "512", "--width", "4", "--device", "cpu"),
    *("--threads", "1", "--phase1.global-batch-size", "64", "--phase1.max-epochs", "1"),
    *("--phase1.horizon-epochs", "2", "--phase1.stopping-accuracy", "None"),
)
SWAP = (*SMALL, "--phase2.global-batch-size", "32", "--batch-norm-batch-size", "64")


def _events(path: Path) -> Counter[str]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        trace: dict[str, Any] = json.load(file)
    return Counter(e["name"] for e in trace["traceEvents"] if e.get("ph") == "X")


@pytest.mark.parametrize("steps", range(0, 40))
def test_what_is_traced_fits_into_an_epoch(steps: int) -> None:
    found = steps_within(steps)
    if steps < 2:
        assert found is None
        return
    assert found is not None
    assert found.wait + found.warmup + found.active <= steps
    assert found.active >= 1
    assert found.warmup >= 1  # torch warns of none
    if steps >= 8:
        assert (found.wait, found.warmup, found.active) == (WAIT, WARMUP, ACTIVE) == (3, 2, 3)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", ["1", "2"])
def test_a_run_leaves_a_trace_of_each_phase(
    ranks: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = ["run", "cifar10_quick", "--out", str(tmp_path), "--ranks", ranks, "--profile"]
    assert main([*run, *SWAP]) == 0
    (path,) = (tmp_path / "runs").glob("*.json")
    record = read_record(path)
    traces = tmp_path / "profiles" / record.run_id
    assert sorted(file.name for file in traces.iterdir()) == [
        *("phase1.json.gz", "phase2-worker0.json.gz", "phase3.json.gz")
    ]
    # Of phase 1's 8 steps three are in the trace, of 4 replicas, or the 2 of rank 0, each.
    first = _events(traces / "phase1.json.gz")
    replicas = 4 // int(ranks)
    assert first["phase1"] == ACTIVE
    assert first["aten::cross_entropy_loss"] == ACTIVE * replicas
    second = _events(traces / "phase2-worker0.json.gz")
    assert second["phase2"] == second["aten::cross_entropy_loss"] == ACTIVE
    third = _events(traces / "phase3.json.gz")
    assert (third["averaging"], third["batch_norm"]) == (1, ACTIVE)
    assert third["aten::cross_entropy_loss"] == 0
    said = capfd.readouterr().out
    assert said.count("profile: ") == 3
    assert "own CPU time" in said
    assert f"profile: {traces / 'phase1.json.gz'}" in said
    # No table takes it, and the report says why.
    assert record.flags == ["profiled"]
    why = why_not_comparable(record, kinds=("subset",))
    assert why is not None
    assert why.startswith("profiled: ")
    assert place_of(record) == OTHER
    assert why_other(record) == why


@dataclass(frozen=True)
class _Trainer:
    """What the profiler touches of a trainer."""

    batch_norm_batches: Callable[[], Iterable[torch.Tensor]]


def test_a_phase_that_was_done_before_has_no_trace_and_spoils_no_other(tmp_path: Path) -> None:
    # As a worker apart goes on from phase 1's checkpoint: laps of phase 1, and none of its steps.
    recipe, profiler, said = RECIPES["cifar10_quick"](), Profiler(), []
    batches = [torch.ones(2)] * 6
    images = 8 * recipe.phase1.global_batch_size
    profiler.begin(recipe, images, tmp_path / "traces", said.append)
    trainer: Any = _Trainer(lambda: batches)
    trainer = profiler.trace_batch_norm(trainer)
    for name in ("checkpoint", "phase1", "phase2", "checkpoint"):
        with profiler.lap(name):
            pass
    profiler.on_begin(Progress(phase=2, worker=3))
    with profiler.lap("phase2"):
        for _ in range(9):
            torch.ones(2) + 1
            profiler.on_step(64)
    for name in ("evaluation", "checkpoint", "phase2"):  # and no second trace of a phase
        with profiler.lap(name):
            torch.ones(2) + 1
            profiler.step()
    with profiler.lap("waiting"):
        torch.ones(2) / 2
    with profiler.lap("averaging"):
        torch.ones(2) * 2
    with profiler.lap("batch_norm"):
        assert len([-batch for batch in trainer.batch_norm_batches()]) == 6
    counts = {path.name: _events(path) for path in (tmp_path / "traces").iterdir()}
    assert sorted(counts) == ["phase2-worker3.json.gz", "phase3.json.gz"]
    second, third = counts["phase2-worker3.json.gz"], counts["phase3.json.gz"]
    assert (second["phase2"], second["aten::add"]) == (ACTIVE, ACTIVE)
    assert (third["averaging"], third["aten::mul"], third["aten::div"]) == (1, 1, 0)
    assert (third["batch_norm"], third["aten::neg"]) == (ACTIVE, ACTIVE)
    assert sum(line.startswith("profile: ") for line in said) == 2


@pytest.mark.slow
def test_without_the_option_there_is_no_trace_and_the_same_run(tmp_path: Path) -> None:
    losses = []
    for name, option in (("off", []), ("on", ["--profile"])):
        out = tmp_path / name
        run = ["run", "cifar10_sgd_small_cpu", "--out", str(out), "--ranks", "1", "--quiet"]
        assert main([*run, *SMALL, *option]) == 0
        (path,) = (out / "runs").glob("*.json")
        record = read_record(path)
        losses.append([row.train_loss for row in record.epochs])
        assert (out / "profiles").is_dir() == bool(option) == bool(record.flags)
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_a_run_that_shares_a_profiled_phase_1_is_marked_too(tmp_path: Path) -> None:
    run = ["run", "cifar10_quick", "--out", str(tmp_path), "--ranks", "1", "--quiet", *SWAP]
    assert main([*run, "--profile"]) == 0
    again = ["--share-phase1", "--phase2.peak-lr", "0.01", "--seed", "0"]
    (first,) = (tmp_path / "runs").glob("*.json")
    assert main([*run, *again]) == 0
    records = [read_record(path) for path in (tmp_path / "runs").glob("*.json") if path != first]
    assert [record.start is not None for record in records] == [True]
    assert records[0].flags == ["profiled"]


def test_the_longest_operators_are_those_with_the_most_time_of_their_own() -> None:
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True
    ) as trace:
        a = torch.ones(300, 300)
        for _ in range(5):
            a @ a
        torch.ones(3) + 1
    head, *lines = longest_operators(trace)
    assert head.split() == ["operator", "calls", "own", "CPU", "time", "share"]
    shares = [float(line.split()[-1].rstrip("%")) for line in lines]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(100, abs=1)
    calls = {line.split()[0]: int(line.split()[1]) for line in lines}
    assert (calls["aten::mm"], calls["aten::add"]) == (5, 1)
