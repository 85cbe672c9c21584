"""What the planner makes of all-reduces in buckets: by hand, and beside the net's own buckets."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.cli import main
from bench.net_cost import Layer, Net, resnet9
from bench.planner.command import make_plan, modelled, plan_table
from bench.planner.forms import forms_table
from bench.planner.model import FLOOR, Hardware, Modelled
from bench.planner.overlap import Overlap, left_s, overlap
from bench.planner.workload import PhaseWork
from bench.records.paper import load_paper
from swap_fast.config.buckets import cut_sizes
from swap_fast.models import ResNet9
from swap_fast.recipes.cifar10 import RECIPES
from swap_fast.training import all_reduce
from swap_fast.training.weights import Weights

PAPER = load_paper()
ROUND = Hardware(
    name="round",
    matrix_flop_s=1e6,
    memory_bytes_s=1e7,
    memory_bytes=1e9,
    link_bytes_s=1e6,
    network_bytes_s=1e5,
    hop_s=0.0,
)
# Backward 4 and 2 ms an image; the last layer has three quarters of the gradient.
NET = Net(layers=(Layer(macs=1000, parameters=1000), Layer(macs=500, parameters=3000)))
PHASE = PhaseWork(
    number=1, name="phase 1", net=NET, epochs=3, images=105, global_batch_size=20, gpus_per_model=4
)


def _speed(**changed: float) -> Modelled:
    return Modelled(hardware=replace(ROUND, **changed), efficiency=FLOOR)


def test_two_buckets_by_hand() -> None:
    """5 images a device: the last layer's gradient is there after 10 ms, the other's after 30."""
    slower_s = 3 * 1.5 * 12_000 / 1e7  # of 12,000 bytes, sent 1.5 times, three passes
    assert 0.010 + 1.5 * 12_000 / 1e6 < 0.030  # summed before the pass ends
    last_s = 1.5 * 4_000 / 1e6
    assert left_s(PHASE, _speed(), 4, 2) == pytest.approx(slower_s + last_s)
    found = overlap(PHASE, _speed(), 4)
    assert found == Overlap(after_s=0.024, num_buckets=2, left_s=pytest.approx(slower_s + last_s))
    assert found.saved_s == pytest.approx(0.024 - slower_s - last_s)
    # Through a slow link the second waits for the first.
    slow = _speed(link_bytes_s=1e5)
    assert left_s(PHASE, slow, 4, 2) == pytest.approx(0.010 + 0.18 + 0.06 - 0.030)


def test_it_does_not_pay_where_an_all_reduce_is_all_latency() -> None:
    found = overlap(PHASE, _speed(hop_s=0.02), 4)
    assert found == Overlap(after_s=pytest.approx(0.104), num_buckets=1, left_s=found.after_s)
    assert found.saved_s == 0.0


@pytest.mark.parametrize("num_buckets", [1, 2, 3, 4])
def test_the_buckets_are_the_net_s_own(num_buckets: int) -> None:
    sizes = [layer.parameters for layer in resnet9(64, 10).layers]
    planned = [sum(sizes[i] for i in layers) for layers in cut_sizes(sizes, num_buckets)]
    weights = Weights(ResNet9(width=64))
    made = [
        sum(place.stop - place.start for place in bucket.places)
        for bucket in all_reduce.cut(weights, num_buckets)
    ]
    assert planned == made


def test_a_plan_says_what_buckets_save(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = RECIPES["cifar10_dawnbench"]()
    for name, generation in (("v100", "16"), ("a100", "32"), ("h100", "64")):
        plan = make_plan(recipe, modelled(name, None, PAPER), None, PAPER)
        (line,) = [note for note in plan_table(plan).footnotes if note.startswith("Planned, for")]
        assert "all-reduce of 26.3 MB among 8 GPUs" in line
        assert f"by PCIe ({generation} GB/s)" in line
        assert line.count(" buckets, ") == 2
    alone = make_plan(recipe, modelled("v100", None, PAPER), 1, PAPER)
    assert not any("buckets" in note for note in plan_table(alone).footnotes)
    assert "V100 0.2" in " ".join(forms_table(PAPER).footnotes)
    assert main(["plan", "cifar10_dawnbench"]) == 0
    assert "--all-reduce-buckets" in " ".join(capsys.readouterr().out.split())
