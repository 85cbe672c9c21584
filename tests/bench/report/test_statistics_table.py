"""The table of statistics from records with round figures."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from record_factory import DATA, V100, make_record

from bench.document import Table
from bench.records.paper import NOT_COMPARED, load_paper
from bench.report.paper_tables import all_run_tables
from bench.report.statistics_table import statistics_tables


def _rows(table: Table) -> dict[tuple[str, str], dict[str, str]]:
    return {(row[0], row[2]): dict(zip(table.columns, row, strict=True)) for row in table.rows}


def test_forms_for_a_cpu() -> None:
    records = [make_record(seed=seed) for seed in (0, 1, 2)]
    (table,) = statistics_tables(records, load_paper())
    assert table.name == "statistics_table1_cpu_machine1"
    rows = _rows(table)
    accuracy = rows["SWAP (after averaging)", "test accuracy (%)"]
    # 81.0, 81.1, 81.2: t's quantile at 2 is 4.3027, so 81.1 +- 4.3027 * 0.1 / sqrt(3).
    assert accuracy["Cores (processes x threads)"] == "2 (1 x 2)"
    assert accuracy["Mean ± std"] == "81.10 ± 0.10"
    assert accuracy["95% interval, t"] == "80.85 to 81.35"
    assert accuracy["Verdict"] == NOT_COMPARED
    assert accuracy["p"] == "—"
    time = rows["SWAP (after averaging)", "time (s), measured"]
    assert (time["Mean ± std"], time["Paper"]) == ("99.00 ± 1.00 †", "169.20 ± 3.25 (n = 10)")
    share = rows["SWAP (after averaging)", "share at 80% or more (%)"]
    assert (share["Mean ± std"], share["95% interval, t"]) == ("100", "44 to 100")
    # DAWNBench's reading adds 2 s of data loading.
    reached = rows["SWAP (after averaging)", "time (s) to 80%, DAWNBench's reading"]
    assert reached["Mean ± std"] == "101.00 ± 1.00 †"
    # A worker of phase 2 is not what the run returns.
    assert ("SWAP (before averaging)", "share at 80% or more (%)") not in rows
    assert not any(label.startswith("SGD") for label, _ in rows)


def test_the_paper_s_setting_gets_a_verdict() -> None:
    def run(seed: int, **changed: Any) -> Any:
        gpu = {"machine": V100, "world_size": 8, "emulated_workers": False}
        return make_record("cifar10_swap", seed, **gpu, **changed)

    records = [run(seed, test_accuracy=0.9520 + seed / 5000) for seed in (0, 1, 2, 3)]
    (table,) = statistics_tables(records, load_paper())
    rows = _rows(table)
    accuracy = rows["SWAP (after averaging)", "test accuracy (%)"]
    # 95.20 to 95.26, whose mean is the paper's.
    assert accuracy["Verdict"] == "reproduced"
    assert accuracy["p"] == "1"
    # 98 to 101 s; the paper's 169.2.
    assert rows["SWAP (after averaging)", "time (s), measured"]["Verdict"] == "lower"
    assert rows["SWAP (before averaging)", "test accuracy (%)"]["Verdict"] == "lower"


def test_times_are_of_the_runs_that_nothing_ran_beside() -> None:
    # 98, 99 and 100 s; the second had half a core's other work.
    load = (None, 0.5, 0.02)
    records = [make_record(seed=seed, other_work=of) for seed, of in enumerate(load)]
    (table,) = statistics_tables(records, load_paper())
    rows = _rows(table)
    time = rows["SWAP (after averaging)", "time (s), measured"]
    assert (time["Mean ± std"], time["n"]) == ("99.00 ± 1.41 †", "2")
    assert rows["SWAP (after averaging)", "test accuracy (%)"]["n"] == "3"
    reached = rows["SWAP (after averaging)", "time (s) to 80%, DAWNBench's reading"]
    assert (reached["Mean ± std"], reached["n"]) == ("101.00 ± 1.41 †", "2")
    (table,) = all_run_tables(records, load_paper())
    cell = dict(zip(table.columns, table.rows[-1], strict=True))["Ours: time (s), measured"]
    assert cell == "99.00 ± 1.41 † (2 of 3)"
    # Where other work ran beside each, the times are shown, and marked.
    (table,) = all_run_tables([replace(records[1], other_work=0.11)], load_paper())
    cell = dict(zip(table.columns, table.rows[-1], strict=True))["Ours: time (s), measured"]
    assert cell == "99.00 †¶"
    assert any("other programs ran on the machine" in note for note in table.footnotes)


def test_runs_that_stand_in_no_table_have_no_statistics() -> None:
    assert statistics_tables([make_record("cifar10_quick")], load_paper()) == []


def test_each_column_and_the_paper_s_unit_of_time() -> None:
    tree = {**DATA, "name": "imagenet", "kind": "own", "train_images": 4000, "test_images": 1000}
    part = {**tree, "name": "cifar100", "kind": "subset"}
    records = [
        *(make_record("imagenet_swap_cpu", s, data=tree, test_top5_accuracy=0.95) for s in (0, 1)),
        *(make_record("cifar100_swap_cpu", s, data=part) for s in (0, 1)),
    ]
    tables = {table.name: _rows(table) for table in statistics_tables(records, load_paper())}
    assert list(tables) == [f"statistics_table{n}_cpu_machine1" for n in (2, 3, 4)]
    rows = tables["statistics_table3_cpu_machine1"]
    label = "SWAP (after averaging)"
    # 98 and 99 s.
    time = rows[label, "time (min), measured"]
    assert (time["Mean ± std"], time["Paper"]) == ("1.64 ± 0.01 †", "156.55 ± 0.56 (n = 3)")
    assert rows[label, "top-5 accuracy (%)"]["Mean ± std"] == "95.00 ± 0.00"
    assert ("SWAP (before averaging)", "top-5 accuracy (%)") not in rows
    # Of Table 4's two accuracies, the one after averaging is held against the target.
    rows = tables["statistics_table4_cpu_machine1"]
    label = "SWAP (10 small-batch epochs)"
    assert rows[label, "accuracy before averaging (%)"]["Mean ± std"] == "79.35 ± 0.07"
    assert rows[label, "accuracy after averaging (%)"]["Mean ± std"] == "81.05 ± 0.07"
    assert rows[label, "share at 80% or more (%)"]["Mean ± std"] == "100"
