"""The planner as a user meets it, and phase 1 on ever more devices."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from repository import ROOT

from bench.cli import main
from bench.planner import measure as this_machine
from bench.planner.command import make_plan, modelled, plan_table
from bench.planner.forms import RUNS, forms_of, forms_table, headline_table, planned_seconds
from bench.planner.model import HARDWARE, Efficiency, Modelled, epoch_s, layers_s
from bench.planner.scaling import (
    Scaling,
    ScalingPoint,
    advice,
    scale,
    scaling_figure,
    scaling_table,
)
from bench.planner.workload import workload_of
from bench.records.paper import load_paper
from swap_fast.recipes.cifar10 import RECIPES
from swap_fast.recipes.imagenet import imagenet_swap_cpu

PAPER = load_paper()


def test_plan_of_swap_by_hand() -> None:
    plan = make_plan(RECIPES["cifar10_swap"](), modelled("v100", None, PAPER), None, PAPER)
    table = plan_table(plan, 3.0)
    rows = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert rows["phase 1"]["Steps"] == f"{108 * 12:,}"
    assert rows["phase 2"]["Images (M)"] == f"{8 * 30 * 97 * 512 / 1e6:.3f}"
    # 2.272 GFLOP an image in training, and one pass forward of 37.9 TFLOP.
    trained = 108 * 12 * 4096 + 8 * 30 * 97 * 512
    whole = float(rows["whole"]["PFLOP"])
    assert whole == pytest.approx(2.272e-6 * trained + 0.0379, rel=1e-3)
    notes = " ".join(table.footnotes)
    assert f"Cost at 3 a GPU and hour: {8 * 3 * plan.expected.total_s / 3600:.4g}." in notes
    assert "By the paper's own rates: 168.37 s." in notes
    # 108 epochs of 12 all-reduces and one average, each 2 x 7/8 of 26.3 MB.
    assert f"{(108 * 12 + 1) * 1.75 * 4 * 6_573_120 / 1e9:.2f} GB" in notes
    assert plan.floor.total_s < plan.expected.total_s


def test_other_hardware_and_fewer_devices_have_no_rate_of_the_paper() -> None:
    recipe = RECIPES["cifar10_swap"]()
    a100, v100 = (modelled(name, None, PAPER) for name in ("a100", "v100"))
    assert make_plan(recipe, a100, None, PAPER).rate_model_s is None
    assert make_plan(recipe, v100, 4, PAPER).rate_model_s is None
    assert make_plan(RECIPES["cifar10_cpu"](), v100, None, PAPER).rate_model_s is None
    whole = [make_plan(recipe, v100, n, PAPER).expected.total_s for n in (1, 2, 4, 8)]
    assert whole == sorted(whole, reverse=True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["cifar10_swop"], "unknown recipe 'cifar10_swop'; did you mean cifar10_swap"),
        (["cifar10_swap", "--gpus", "9"], "gpus: expected 1 to 8"),
        (["cifar10_large_18"], "resnet9, speed_net or resnet50, got whitened_resnet9"),
        (["imagenet_swap", "--hardware", "this"], "expected a recipe of 32 px images"),
        (["cifar10_swap", "--phase1-epochs", "151"], "at most 150, got 151"),
    ],
)
def test_what_cannot_be_planned_is_one_line_and_exit_2(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_the_speed_net_is_planned_too() -> None:
    phase1, phase2 = workload_of(RECIPES["cifar10_speed"](), PAPER).phases
    assert phase1.net.parameters == 1_971_352  # 1,972,792 less the fixed filters and factors
    assert phase2.flop == phase2.images_trained * phase1.net.train_flop


def test_a_recipe_for_any_tree_of_images_is_refused() -> None:
    with pytest.raises(ValueError, match="known size, got imagenet_swap_cpu"):
        workload_of(imagenet_swap_cpu(), PAPER)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "expected a recipe, --check-paper or --forms"),
        (["cifar10_swap", "--gpus", "0"], "gpus: expected 1 or more, got 0"),
        (["cifar10_swap", "--nodes", "2"], "gpus: expected the devices of each of 2 nodes"),
        (["cifar10_swap", "--price-per-gpu-hour", "-1"], "expected 0 or more, got -1"),
        (["cifar10_swap", "--scaling", "--hardware", "this"], "expected v100, a100 or h100"),
        (["--check-paper", "--json"], "json: expected a recipe's plan alone"),
        (["cifar10_swap", "--json", "--out", "x"], "json: expected a recipe's plan alone"),
    ],
)
def test_options_that_cannot_be_exit_2(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(["plan", *arguments])
    except SystemExit as exit_:
        code = exit_.code
    assert code == 2
    assert words in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_a_plan_as_json_has_the_figures_of_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "cifar10_swap", "--json", "--price-per-gpu-hour", "3"]) == 0
    found = json.loads(capsys.readouterr().out)
    plan = make_plan(RECIPES["cifar10_swap"](), modelled("v100", None, PAPER), None, PAPER)
    assert [phase["steps"] for phase in found["phases"]] == [108 * 12, 30 * 97]
    times_s = [phase["time_s"] for phase in found["phases"]]
    assert sum(times_s) + found["averaging_s"] == pytest.approx(found["time_s"])
    assert found["cost"] == pytest.approx(8 * 3 * plan.expected.total_s / 3600)
    assert found["sent_bytes_per_gpu"] == (108 * 12 + 1) * 1.75 * 4 * 6_573_120


@pytest.mark.parametrize("what", [["cifar10_swap"], ["imagenet_swap"], ["--check-paper"]])
def test_a_plan_fits_80_columns(
    what: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["plan", *what]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_planning_on_paper_loads_no_torch() -> None:
    script = (
        "import sys\n"
        "from bench.cli import main\n"
        "assert main(['plan', 'cifar10_swap', '--gpus', '4', '--nodes', '2']) == 0\n"
        "assert main(['plan', '--check-paper']) == 0\n"
        "assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Plan of cifar10_swap on 8 x V100" in done.stdout


def test_tables_and_figures_go_to_the_folder(tmp_path: Path) -> None:
    assert main(["plan", "cifar10_swap", "--scaling", "--out", str(tmp_path)]) == 0
    assert main(["plan", "--check-paper", "--out", str(tmp_path)]) == 0
    assert {path.name for path in (tmp_path / "tables").iterdir()} == {
        f"{name}.{ending}"
        for name in ("scaling_cifar10_swap", "plan_check_paper")
        for ending in ("md", "csv")
    }
    assert [path.name for path in (tmp_path / "plots").iterdir()] == ["scaling_cifar10_swap.svg"]


# Scaling.


def _scaling(name: str = "cifar10_swap") -> Scaling:
    return scale(workload_of(RECIPES[name](), PAPER), modelled("v100", None, PAPER))


def test_phase_1_on_more_devices() -> None:
    scaling = _scaling()
    assert [point.gpus for point in scaling.points] == [2**i for i in range(11)]
    assert [point.weak_batch for point in scaling.points] == [512 * 2**i for i in range(11)]
    # 128 devices of 512 images would need more images than there are.
    assert [p.gpus for p in scaling.points if p.weak_s is None] == [128, 256, 512, 1024]
    at_8 = scaling.points[3]
    phase = scaling.work.phases[0]
    assert at_8.weak_s == at_8.strong_s == epoch_s(phase, scaling.speed, 8)
    strong = [point.strong_s for point in scaling.points if point.strong_s is not None]
    assert strong == sorted(strong, reverse=True)


def test_the_limit_is_where_doubling_gives_too_little() -> None:
    seconds = [8.0, 4.0, 2.5, 1.9, None]
    points = tuple(
        ScalingPoint(gpus=2**i, weak_batch=0, weak_s=s, strong_s=2.0**-i)
        for i, s in enumerate(seconds)
    )
    scaling = replace(_scaling(), points=points)
    assert (scaling.weak_limit, scaling.strong_limit) == (4, 16)
    assert "stops scaling at 16 GPUs with the recipe's batch of 4,096, and at 4" in advice(scaling)


def test_without_a_fixed_cost_phase_1_scales_further() -> None:
    scaling = _scaling()
    free = replace(scaling.speed.efficiency, epoch_s=0.0)
    faster = scale(scaling.work, Modelled(hardware=scaling.speed.hardware, efficiency=free))
    assert faster.weak_limit > scaling.weak_limit


def test_workers_are_given_where_there_are_any() -> None:
    swap, sgd = _scaling(), _scaling("cifar10_sgd_large")
    assert "1,024 GPUs refine 1,024 models in the time of 8" in scaling_table(swap).caption
    assert [row[-1] for row in scaling_table(swap).rows][:4] == ["1", "2", "4", "8"]
    assert "W should grow" not in scaling_table(sgd).caption
    assert {row[-1] for row in scaling_table(sgd).rows} == {"—"}


def test_the_figure_is_the_same_each_time(tmp_path: Path) -> None:
    scaling = _scaling()
    for folder in ("one", "two"):
        scaling_figure(scaling, tmp_path / folder)
    name = "scaling_cifar10_swap.svg"
    assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


# This machine.


def test_this_machine_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(this_machine, "LEAST_S", 1e-3)
    monkeypatch.setattr(this_machine, "available_cores", lambda: 1)
    monkeypatch.setattr(this_machine, "MATRIX_SIZE", {"cpu": 64})
    monkeypatch.setattr(this_machine, "COPIED_BYTES", {"cpu": 2**16})
    recipe = replace(RECIPES["cifar10_quick"](), width=4)
    measured = this_machine.measure(recipe, "cpu")
    assert set(measured.micro_batches_s) == {128, 64}
    assert min(*measured.micro_batches_s.values(), measured.pass_s) > 0
    assert measured.hardware.activation_bytes == 4
    plan = make_plan(recipe, measured, 1, PAPER)
    # Four replicas of 128 images take turns; so do four workers.
    step_s = 4 * measured.micro_batches_s[128]
    assert plan.expected.phases_s[0] == pytest.approx(6 * 16 * step_s)
    assert plan.expected.phases_s[1] == pytest.approx(4 * 128 * measured.micro_batches_s[64])
    assert "measured here" in " ".join(plan_table(plan).footnotes)
    assert measured.efficiency == Efficiency(slowdown=1.0, epoch_s=0.0)


# The forms of the step.


def test_each_fused_part_makes_a_planned_run_faster() -> None:
    assert main(["plan", "--forms"]) == 0
    for name, gpus in RUNS:
        recipe = RECIPES[name]()
        rows = [
            [planned_seconds(recipe, gpus, form, hardware, PAPER) for hardware in HARDWARE]
            for form in forms_of(recipe)
        ]
        for slower, faster in pairwise(rows):
            assert all(a > b for a, b in zip(slower, faster, strict=True)), (name, gpus)
        assert all(v100 > a100 > h100 for v100, a100, h100 in rows)
    table = forms_table(PAPER)
    assert len(table.rows) == 3 * len(RUNS)
    assert [row[3] for row in table.rows[-3:]] == ["eager", "compiled", "fused update"]
    assert "planned, not measured" in table.title
    assert table.rows[0][2] == "28 + 8 x 1"


def test_a_planned_run_by_hand() -> None:
    """13 epochs of 100 steps by two replicas in turn, then 5 of 200 by each of two workers."""
    hardware = HARDWARE["v100"]
    recipe = RECIPES["cifar10_speed"]()
    eager, _, fused = forms_of(recipe)
    phase1 = workload_of(recipe, PAPER).phases[0]
    image_s = layers_s(phase1.net, hardware)
    forward_s = layers_s(phase1.net, hardware, forward_only=True)
    # With Muon's matrix products; phase 1's replicas gather the gradient, a worker need not.
    for form, together, apart in ((eager, 296.2, 296.2), (fused, 70.6 + 10, 70.6)):
        first_s, second_s = (n * phase1.net.parameters / 900e9 for n in (together, apart))
        steps_s = 13 * 100 * (2 * 250 * image_s + first_s)
        steps_s += 2 * 5 * 200 * (250 * image_s + second_s)
        expected_s = (steps_s + 50_000 * forward_s) / 0.475 + (13 + 10) * 0.006
        found = planned_seconds(recipe, 1, form, "v100", PAPER)
        assert found == pytest.approx(expected_s)


def test_the_27_seconds_on_each_kind_of_device() -> None:
    table, recipe = headline_table(PAPER), RECIPES["cifar10_dawnbench"]()
    (v100, a100, h100) = table.rows
    assert v100[:2] == ("V100", "27")
    assert (a100[1], h100[1]) == ("—", "—")
    plan = make_plan(recipe, modelled("v100", None, PAPER), None, PAPER)
    assert v100[2] == f"{plan.expected.total_s:.1f}"
    for key, row in zip(HARDWARE, table.rows, strict=True):
        assert [float(cell) for cell in row[3:]] == [
            pytest.approx(planned_seconds(recipe, 8, form, key, PAPER), abs=0.05)
            for form in forms_of(recipe)
        ]
    assert all("planned" in column.lower() for column in table.columns[2:])
    # The worst of CIFAR's rows is large-batch SWA, 195 of 376 s; 29 epochs have 0.52 s each.
    assert "by 12% on average and up to 48%" in table.footnotes[-1]
    assert "15 s of the column" in table.footnotes[-1]
    assert "94% on a GPU is not known" in table.footnotes[-1]
