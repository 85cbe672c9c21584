"""Comparisons against scipy and hand counts; how A and B are named; what is refused."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from record_factory import V100, cpu_runs, make_record, write_results
from repository import ROOT
from scipy.stats import ttest_ind

from bench.cli import main
from bench.document import NOTHING, OTHER_WORK
from bench.report.compare import (
    Comparison,
    Quantity,
    Side,
    compare,
    comparison_json,
    comparison_tables,
    pair_sides,
)
from bench.report.statistics_table import pair_tables
from swap_fast.record import RunRecord


def _side(recipe: str, *seeds: int) -> Side:
    return Side(name=recipe, runs=tuple(make_record(recipe, seed) for seed in seeds))


def _quantity(found: Comparison, name: str) -> Quantity:
    (quantity,) = (each for each in found.quantities if each.name.startswith(name))
    return quantity


def test_ratio_and_difference_are_welchs() -> None:
    a, b = _side("cifar10_sgd_small_cpu", 0, 1, 5), _side("cifar10_cpu", 0, 1, 2, 9)
    found = compare(a, b)
    times = [np.log([r.times.after_averaging_s for r in side.runs]) for side in (b, a)]
    reference = ttest_ind(*times, equal_var=False).confidence_interval()
    time = _quantity(found, "train time")
    assert time.interval is not None
    assert time.change == pytest.approx(math.exp(times[0].mean() - times[1].mean()))
    assert (time.interval.low, time.interval.high) == pytest.approx(
        (math.exp(reference.low), math.exp(reference.high))
    )
    accuracies = [[100 * r.test_accuracy for r in side.runs] for side in (b, a)]
    reference = ttest_ind(*accuracies, equal_var=False).confidence_interval()
    accuracy = _quantity(found, "test accuracy")
    assert accuracy.interval is not None
    assert (accuracy.interval.low, accuracy.interval.high) == pytest.approx(
        (reference.low, reference.high)
    )


def test_equal_seeds_are_not_paired() -> None:
    # Paired by seed the difference would have no spread at all.
    found = compare(_side("cifar10_sgd_small_cpu", 0, 1), _side("cifar10_cpu", 0, 1))
    interval = _quantity(found, "test accuracy").interval
    assert interval is not None
    assert interval.high - interval.low > 0.1


def test_other_work_beside_a_run_is_a_caution() -> None:
    quiet = [make_record(seed=s, other_work=0.09) for s in (0, 1, 2)]
    busy = [*quiet[:2], make_record(seed=2, other_work=0.1)]
    found = compare(Side(name="a", runs=tuple(quiet)), Side(name="b", runs=tuple(busy)))
    (caution,) = [each for each in found.cautions if "other programs" in each]
    assert caution.startswith("B: other programs ran beside 1 of its 3 runs")
    assert caution.endswith("times are of the other 2.")


def test_times_are_of_the_runs_timed_alone() -> None:
    quiet = tuple(make_record(seed=s) for s in (0, 1))
    slow = replace(quiet[1].times, after_averaging_s=500.0)
    mixed = (quiet[0], make_record(seed=1, other_work=1.0, times=slow))
    found = compare(Side(name="a", runs=quiet), Side(name="b", runs=mixed))
    time, accuracy = _quantity(found, "train time"), _quantity(found, "test accuracy")
    assert time.second is not None
    assert time.second.values == (98.0,)
    assert accuracy.second is not None
    assert accuracy.second.n == 2
    assert comparison_json(found)["B"]["timed_runs"] == [quiet[0].run_id]
    # Where none was, all count, and are marked.
    found = compare(Side(name="a", runs=quiet), Side(name="b", runs=mixed[1:]))
    rows = {row[0]: row for row in comparison_tables(found)[0].rows}
    assert rows["train time (s), measured"][1:3] == ("98.50 ± 0.71", "500.00 ¶")
    assert OTHER_WORK not in rows["test accuracy (%)"][2]
    assert any(caution.endswith("its times are marked.") for caution in found.cautions)


def test_runs_of_several_processes_have_no_unattributed_time() -> None:
    resumed = make_record(seed=1, interruptions={"count": 1, "lost_s": 1.0})
    found = compare(_side("cifar10_cpu", 0), Side(name="resumed", runs=(resumed,)))
    assert "unattributed" not in found.laps_s
    assert "phase1" in found.laps_s


def test_a_single_run_has_a_ratio_without_an_interval() -> None:
    found = compare(_side("cifar10_sgd_small_cpu", 0), _side("cifar10_cpu", 0, 1))
    time = _quantity(found, "train time")
    assert time.change is not None
    assert time.interval is None
    assert any(caution.startswith("A: a single run") for caution in found.cautions)


def test_unlike_machines_have_accuracies_and_no_ratio() -> None:
    there = tuple(make_record(seed=seed, machine={**V100}) for seed in (0, 1))
    found = compare(_side("cifar10_cpu", 0, 1), Side(name="there", runs=there))
    assert found.cautions[0].startswith(
        "Times are not compared, as the machines differ: A on 2 CPU"
    )
    ratios = [each for each in found.quantities if each.is_ratio]
    assert ratios
    assert all(each.change is None and each.interval is None for each in ratios)
    assert _quantity(found, "test accuracy").change == pytest.approx(0)
    assert "machine.device_count" in found.machine


def test_laps_and_settings_stand_side_by_side() -> None:
    found = compare(_side("cifar10_sgd_small_cpu", 0, 2), _side("cifar10_cpu", 0))
    laps = found.laps_s
    assert laps["phase1"] == (61.0, 60.0)
    assert laps["phase2"] == (None, 32.0)
    assert laps["unattributed"] == pytest.approx((1.25, 1.25))
    differing = found.configuration
    assert differing["recipe.num_workers"] == ([], ["4"])
    assert "recipe.width" not in differing
    content = json.loads(json.dumps(comparison_json(found)))
    assert content["laps_s"]["phase1"] == {"A": 61.0, "B": 60.0}
    assert [table.name for table in comparison_tables(found)][:2] == [
        "comparison",
        "comparison_laps",
    ]


def test_unlike_runs_make_no_side() -> None:
    other = replace(make_record(seed=1), overrides=["width=4"])
    with pytest.raises(ValueError, match="got 2 kinds among 2 runs; name a run instead"):
        Side(name="both", runs=(make_record(), other))


def test_names_of_recipes_runs_records_and_folders(tmp_path: Path) -> None:
    old = write_results(tmp_path / "old", [make_record(), make_record("cifar10_sgd_small_cpu")])
    new = write_results(tmp_path / "new", [make_record(seed=1), make_record(seed=2)])
    run = make_record(seed=1).run_id
    for first, second, expected in (
        ("cifar10_cpu", run, (2, 1)),
        (run, str(old / "runs" / f"{make_record().run_id}.json"), (1, 1)),
        (str(old), str(new), (1, 2)),
        (str(old), "cifar10_cpu", (1, 2)),
    ):
        ((a, b),) = pair_sides(first, second, new)
        assert (len(a.runs), len(b.runs)) == expected
        assert {each.recipe for each in (*a.runs, *b.runs)} == {"cifar10_cpu"}
    with pytest.raises(ValueError, match="did you mean cifar10_cpu"):
        pair_sides("cifar10_cpuu", run, new)
    with pytest.raises(ValueError, match="both ran, found none"):
        pair_sides(str(new), "cifar10_sgd_small_cpu", old)
    with pytest.raises(ValueError, match="expected records in"):
        pair_sides("a", "b", tmp_path)


def test_the_command_prints_tables_json_and_a_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    results = write_results(tmp_path, cpu_runs())
    both = ["compare", "cifar10_sgd_small_cpu", "cifar10_cpu", "--results", str(results)]
    page = tmp_path / "pages" / "page.html"
    assert main([*both, "--html", str(page)]) == 0
    assert "train time" in capsys.readouterr().out
    assert "Laps, side by side" in page.read_text(encoding="utf-8")
    assert main([*both, "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["A"]["name"] == "cifar10_sgd_small_cpu"
    assert main(["compare", "cifar10_cpp", "cifar10_cpu", "--results", str(results)]) == 2
    assert "did you mean cifar10_cpu" in capsys.readouterr().err


def test_compare_needs_no_torch(tmp_path: Path) -> None:
    results = write_results(tmp_path, [make_record(), make_record(seed=1)])
    script = (
        "import sys\nfrom bench.cli import main\n"
        f"main(['compare', 'cifar10_cpu', 'cifar10_cpu', '--results', {str(results)!r}])\n"
        "assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False,
        cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "2 of the runs are on both sides" in done.stdout


def test_the_report_pairs_a_tables_recipes() -> None:
    recipes = ("cifar10_cpu", "cifar10_sgd_small_cpu", "cifar10_sgd_large_cpu")
    records = [make_record(recipe, seed) for recipe in recipes for seed in (0, 1)]
    (table,) = pair_tables(records)
    assert table.name == "pairs_table1_cpu_machine1"
    assert len(table.rows) == 3
    runs = ("cifar10_cpu", "cifar10_sgd_small_cpu", "2 and 2")
    assert table.rows[0][:4] == (*runs, "2 (1 x 2) and 2 (1 x 2)")
    assert pair_tables(records[:2]) == []


def test_pairs_are_timed_alone_and_of_one_precision() -> None:
    swap = [make_record(seed=seed, other_work=0.5 * seed) for seed in (0, 1)]
    sgd = [make_record("cifar10_sgd_small_cpu", seed, other_work=0.5) for seed in (0, 1)]
    (table,) = pair_tables([*swap, *sgd])
    ((*_, ratio, interval),) = table.rows
    # All of the sides' runs, or the one that was alone: 61.5 and 62.5 s against 98 s.
    assert (ratio, interval) == (f"{(61.5 * 62.5) ** 0.5 / 98:.2f} ¶", NOTHING)
    note = "cifar10_cpu: times of 1 of 2 runs; other programs ran beside the rest."
    assert note in table.footnotes
    assert any(note.startswith(OTHER_WORK) for note in table.footnotes)

    def in_bf16(run: RunRecord) -> RunRecord:
        execution = {**run.configuration["execution"], "precision": "bf16"}
        changed = {**run.configuration, "execution": execution}
        return replace(run, run_id=f"{run.run_id}-bf16", configuration=changed)

    assert pair_tables([swap[0], in_bf16(swap[1])]) == []
    (table,) = pair_tables([*swap, *sgd, in_bf16(swap[0]), in_bf16(sgd[0])])
    assert [row[:2] for row in table.rows] == [
        (f"cifar10_cpu, {precision}", f"cifar10_sgd_small_cpu, {precision}")
        for precision in ("fp32", "bf16")
    ]


def test_rows_on_other_numbers_of_a_machines_devices_are_paired() -> None:
    def runs(recipe: str, ranks: int) -> list[RunRecord]:
        return [
            make_record(recipe, seed, run_id=f"{recipe}-{seed}-{ranks}", machine=V100)
            for seed in (0, 1)
        ]

    small, swap = (
        tuple(replace(run, world_size=ranks) for run in runs(recipe, ranks))
        for recipe, ranks in (("cifar10_sgd_small", 1), ("cifar10_swap", 8))
    )
    (table,) = pair_tables([*small, *swap])
    ((_, _, _, gpus, *_, ratio, interval),) = table.rows
    assert table.columns[3] == "GPUs"
    assert gpus == "1 and 8"
    # 61.5 and 62.5 s against 98 and 99 s, by geometric means.
    assert ratio == f"{(98 * 99 / 61.5 / 62.5) ** 0.5:.2f}"
    assert interval != NOTHING
    found = compare(Side(name="small", runs=small), Side(name="swap", runs=swap))
    assert found.cautions[0].startswith("The devices differ: A on 1 of 8 Tesla V100-SXM2-16GB, ")
    # Within a side, times on unlike numbers of devices have no mean.
    mixed = Side(name="mixed", runs=(swap[0], replace(swap[1], world_size=4)))
    found = compare(Side(name="small", runs=small), mixed)
    assert found.cautions[0].startswith("Times are not compared, as the devices differ within a si")
    assert all(each.change is None for each in found.quantities if each.is_ratio)
