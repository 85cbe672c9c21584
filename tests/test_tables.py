"""Table 1 and its kin from records with round figures, and the three forms of a table."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace
from typing import Any

import pytest
from record_factory import CPU, V100, make_record, with_recipe

from bench.lists import machines_table, other_runs, runs_table
from bench.paper import load_paper
from bench.places import number_machines, place_of
from bench.rendering import (
    Table,
    escape_latex,
    escape_markdown,
    plus_minus,
    to_csv,
    to_latex,
    to_markdown,
)
from bench.tables import TABLE_1_COLUMNS, table_1, time_to_target
from swap_fast.record import RunRecord

HOSTILE = "<script>|_%&$\\"


def _cells(table: Table, label: str) -> dict[str, str]:
    (row,) = (row for row in table.rows if row[0] == label)
    return dict(zip(table.columns, row, strict=True))


def _cpu_runs() -> list[RunRecord]:
    recipes = ("cifar10_cpu", "cifar10_sgd_small_cpu", "cifar10_sgd_large_cpu")
    return [make_record(recipe, seed) for recipe in recipes for seed in (0, 1, 2)]


def _gpu(recipe: str, seed: int = 0, **changed: Any) -> RunRecord:
    return make_record(recipe, seed, machine=V100, world_size=8, emulated_workers=False, **changed)


def test_cpu_table_by_hand() -> None:
    (table,) = table_1(_cpu_runs(), load_paper(), "table1_cpu")
    assert [row[0] for row in table.rows] == [
        "SGD (small-batch)",
        "SGD (large-batch)",
        "SWAP (before averaging)",
        "SWAP (after averaging)",
    ]
    # Three seeds, 0.1% and 1 s apart: the means are seed 1's, the deviations 0.10 and 1.00.
    assert _cells(table, "SWAP (before averaging)") == dict(
        zip(
            TABLE_1_COLUMNS,
            (
                "SWAP (before averaging)",
                "94.70 ± 0.20",
                "79.40 ± 0.10",
                "79.15 to 79.65",
                "167.57 ± 3.25",
                "94.50 ± 1.00 †",
                "70.50 ± 1.00",
                "3",
                "0 of 3 ≥ 80% (0 to 56%)",
                "5.0",
                "2 CPU cores",
                "other hardware, net or data: not compared",
            ),
            strict=True,
        )
    )
    after = _cells(table, "SWAP (after averaging)")
    assert after["Ours: test accuracy (%)"] == "81.10 ± 0.10"
    assert after["Ours: time (s), measured"] == "99.00 ± 1.00 †"
    assert after["Ours: parallel time (s), modelled"] == "75.00 ± 1.00"
    assert after["Runs at target"] == "3 of 3 ≥ 80% (44 to 100%)"
    small = _cells(table, "SGD (small-batch)")
    assert small["Paper: time (s)"] == "254.12 ± 0.62"
    assert small["Ours: time (s), measured"] == "62.50 ± 1.00"
    assert small["Ours: parallel time (s), modelled"] == "—"
    assert "Not the paper's hardware or net: ResNet-9 of width 16 on 2 CPU cores" in table.caption
    assert "orientation only" in table.caption
    assert any("emulated_workers" in note for note in table.footnotes)


def test_full_size_and_cpu_size_never_share_a_table() -> None:
    records = [*_cpu_runs(), _gpu("cifar10_swap"), _gpu("cifar10_swap", 1)]
    paper = load_paper()
    (full,) = table_1(records, paper, "table1")
    (cpu,) = table_1(records, paper, "table1_cpu")
    assert _cells(full, "SWAP (after averaging)")["n"] == "2"
    assert _cells(full, "SGD (small-batch)")["Ours: test accuracy (%)"] == "—"
    assert _cells(full, "SWAP (after averaging)")["Machine"] == "8 Tesla V100-SXM2-16GB"
    assert "Not the paper's" not in full.caption
    assert "†" not in to_markdown(full)
    assert _cells(cpu, "SWAP (after averaging)")["n"] == "3"


def test_verdicts_stand_in_the_full_table() -> None:
    records = [_gpu("cifar10_swap", seed) for seed in range(4)]
    (table,) = table_1(records, load_paper(), "table1")
    # 81% in 98 s and more, beside 95.23% in 169.2 s.
    after = _cells(table, "SWAP (after averaging)")
    assert after["Verdict"] == "accuracy: lower; time: lower"
    (table,) = table_1([replace(r, world_size=4) for r in records], load_paper(), "table1")
    time = "time: other hardware, net or data: not compared"
    assert _cells(table, "SWAP (after averaging)")["Verdict"] == f"accuracy: lower; {time}"
    assert _cells(table, "SGD (small-batch)")["Verdict"] == "—"


def test_one_table_for_each_kind_of_machine() -> None:
    four_cores = {**CPU, "device_count": 4}
    records = [make_record(), make_record(seed=1, machine=four_cores)]
    tables = table_1(records, load_paper(), "table1_cpu")
    assert [table.name for table in tables] == ["table1_cpu_machine1", "table1_cpu_machine2"]
    assert [_cells(t, "SWAP (after averaging)")["n"] for t in tables] == ["1", "1"]
    assert [_cells(t, "SWAP (after averaging)")["Machine"] for t in tables] == [
        "2 CPU cores",
        "4 CPU cores",
    ]
    assert list(number_machines(reversed(records)).values()) == [1, 2]


def test_runs_of_unlike_recipes_have_rows_of_their_own() -> None:
    records = [make_record(), with_recipe(make_record(seed=1), width=17)]
    (table,) = table_1(records, load_paper(), "table1_cpu")
    labels = [row[0] for row in table.rows]
    assert "SWAP (after averaging) [1]" in labels
    assert "SWAP (after averaging) [2]" in labels
    assert any(records[1].run_id in note for note in table.footnotes)


def test_unstable_times_are_marked() -> None:
    records = [make_record(seed=seed) for seed in (0, 100)]
    (table,) = table_1(records, load_paper(), "table1_cpu")
    # 98 s and 198 s: mean 148, sample deviation 100 / sqrt(2).
    cell = _cells(table, "SWAP (after averaging)")["Ours: time (s), measured"]
    assert cell == "148.00 ± 70.71 †‡"
    assert any("unstable" in note for note in table.footnotes)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"data": {"name": "cifar10", "kind": "synthetic"}}, "synthetic data"),
        ({"data": {"name": "cifar10", "kind": "subset"}}, "subset data"),
        ({"notes": ["quick form"]}, "quick form"),
        ({"overrides": ["phase1.peak_lr=1.5"]}, "overrides: phase1.peak_lr=1.5"),
    ],
)
@pytest.mark.parametrize("recipe", ["cifar10_cpu", "cifar10_swap", "cifar10_dawnbench"])
def test_other_runs_are_in_no_other_table(recipe: str, changed: dict, why: str) -> None:
    record = make_record(recipe, **changed)
    paper = load_paper()
    assert place_of(record) == "other"
    assert table_1([record], paper, "table1") == []
    assert table_1([record], paper, "table1_cpu") == []
    assert not any("Ours" in row[0] for row in time_to_target([record], paper).rows)
    assert runs_table([record]).rows == ()
    (row,) = other_runs([record]).rows
    assert why in row
    assert record.run_id in row


def test_times_to_an_accuracy() -> None:
    reached = _gpu("cifar10_dawnbench", test_accuracy=0.9412)
    records = [reached, _gpu("cifar10_dawnbench", 1, test_accuracy=0.9388), *_cpu_runs()]
    table = time_to_target(records, load_paper())
    assert _cells(table, "Paper: SWAP")["Time (s)"] == "27"
    assert _cells(table, "Apple")["Hardware"] == "8 NVIDIA Tesla V100"
    ours = _cells(table, "Ours: cifar10_dawnbench")
    # DAWNBench's reading of seed 0: its laps sum to 100 s.
    assert ours["Time (s)"] == "100.00"
    assert ours["Note"] == "1 of 2 runs; final 94.00 ± 0.17%"
    assert sum("Ours" in row[0] for row in table.rows) == 1


def test_every_run_is_listed() -> None:
    table = runs_table(_cpu_runs())
    assert len(table.rows) == 9
    assert "Not the paper's hardware or net" in table.caption
    row = dict(zip(table.columns, table.rows[0], strict=True))
    assert row["Workers (%), lowest to highest"] == "79.00 to 79.60"
    assert row["Phase 1 ended by"] == "stopping_accuracy"
    assert row["Before averaging (%)"] == "79.30"
    # SGD's best epoch; the last one's is 76.0.
    assert dict(zip(table.columns, table.rows[3], strict=True))["Best epoch (%)"] == "76.00"


def test_machines_that_differ_within_a_kind_are_told() -> None:
    records = [make_record(), make_record(seed=1, machine={**CPU, "memory_gib": 16.0})]
    facts = {what: value for _, what, value in machines_table(records).rows}
    assert facts["machine.memory_gib"] == "8.0; 16.0"
    assert "machine.driver" not in facts


# The three forms.


def _hostile_table() -> Table:
    return Table(
        name="hostile",
        title=f"Title {HOSTILE}",
        caption=f"Caption {HOSTILE}",
        columns=("Run", "Time (s)"),
        rows=((HOSTILE, "1.00 ± 0.10 †"), ("two\nlines, `code` *em* [x](y) #~^{}", "—")),
        footnotes=(f"Note {HOSTILE}",),
    )


def test_markdown_is_escaped() -> None:
    assert escape_markdown(HOSTILE) == r"&lt;script&gt;\|\_%&amp;\$\\"
    text = to_markdown(_hostile_table())
    assert "<script>" not in text
    body = [line for line in text.splitlines() if line.startswith("|")]
    # Every line of the table has its three bars and no other that is not escaped.
    assert [len(re.findall(r"(?<!\\)\|", line)) for line in body] == [3] * 4
    assert r"two lines, \`code\` \*em\* \[x\](y) \#\~^{}" in text


def test_latex_is_escaped() -> None:
    expected = r"\textless{}script\textgreater{}\textbar{}\_\%\&\$\textbackslash{}"
    assert escape_latex(HOSTILE) == expected
    assert escape_latex("#~^{}") == r"\#\textasciitilde{}\textasciicircum{}\{\}"
    text = to_latex(_hostile_table())
    # Without commands and escaped characters, no special one is left but those of the form.
    bare = re.sub(r"\\[A-Za-z]+(\{\})?|\\.", "", text)
    assert not re.search(r"[%#~^<>|_]", bare)
    assert bare.count("&") == 3
    assert text.count(expected) == 4


def test_csv_gives_back_every_cell() -> None:
    table = _hostile_table()
    assert list(csv.reader(io.StringIO(to_csv(table)))) == [
        list(row) for row in (table.columns, *table.rows)
    ]


def test_hostile_names_of_runs_come_out_escaped() -> None:
    record = replace(make_record(), run_id=HOSTILE, recipe=HOSTILE)
    text = to_markdown(other_runs([record]))
    assert "<script>" not in text
    assert text.count(escape_markdown(HOSTILE)) == 3  # the run, its recipe, and the caption's


def test_figures_stand_right_and_words_left() -> None:
    lines = to_markdown(_hostile_table()).splitlines()
    (rule,) = (line for line in lines if line.startswith("| -"))
    assert re.fullmatch(r"\| -+ \| -+: \|", rule)
    assert r"\begin{tabular}{lr}" in to_latex(_hostile_table())


def test_plus_minus() -> None:
    assert plus_minus(95.2, 0.085) == "95.20 ± 0.09"
    assert plus_minus(95.2, None) == "95.20"
