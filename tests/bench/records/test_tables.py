"""Tables 1 to 4 and their kin from records with round figures, and the three forms of a table."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace
from typing import Any

import pytest
from record_factory import CPU, DATA, V100, cpu_runs, make_record, with_recipe

from bench.document import (
    Table,
    csv_text,
    escape_markdown,
    plus_minus,
    to_markdown,
)
from bench.export.command import to_latex
from bench.records.paper import load_paper
from bench.records.paper_tables import (
    TABLE_1,
    TABLE_2,
    TABLE_3,
    TABLE_4,
    number_machines,
    place_of,
    places_of,
)
from bench.report.paper_tables import all_run_tables, run_tables, time_to_target
from bench.report.run_lists import machines_table, other_runs, runs_table
from swap_fast.record import RunRecord

PAPER = load_paper()
CORES = "Ours: cores (processes x threads)"
SWAP = "SWAP (after averaging)"
SLOWER = {"before_averaging_s": 390.0, "after_averaging_s": 400.0}
HOSTILE = "<script>|_%&$\\"


def _absent(table: Table, label: str) -> bool:
    """Whether a row without runs is only named below the table."""
    (note,) = (note for note in table.footnotes if note.startswith("No runs of: "))
    return label in note and label not in [row[0] for row in table.rows]


def _cells(table: Table, label: str) -> dict[str, str]:
    (row,) = (row for row in table.rows if row[0] == label)
    return dict(zip(table.columns, row, strict=True))


def _gpu(recipe: str, seed: int = 0, **changed: Any) -> RunRecord:
    return make_record(recipe, seed, machine=V100, world_size=8, emulated_workers=False, **changed)


def test_cpu_table_by_hand() -> None:
    (table,) = run_tables(TABLE_1, "cpu", cpu_runs(3), PAPER)
    # Three seeds, 0.1% and 1 s apart: the means are seed 1's, the deviations 0.10 and 1.00.
    assert _cells(table, "SWAP (before averaging)") == {
        "CIFAR-10": "SWAP (before averaging)",
        "Paper: test accuracy (%)": "94.70 ± 0.20",
        "Ours: test accuracy (%)": "79.40 ± 0.10",
        "Ours: 95% interval (%)": "79.15 to 79.65",
        "Paper: time (s)": "167.57 ± 3.25",
        "Ours: time (s), measured": "94.50 ± 1.00 †",
        "Ours: parallel time (s), modelled": "70.50 ± 1.00",
        "n": "3",
        "Phase 1 (mean epochs)": "5.0",
        "Paper: GPUs": "8",
        CORES: "2 (1 x 2)",
    }
    after = _cells(table, "SWAP (after averaging)")
    assert after["Ours: test accuracy (%)"] == "81.10 ± 0.10"
    assert after["Ours: time (s), measured"] == "99.00 ± 1.00 †"
    assert after["Ours: parallel time (s), modelled"] == "75.00 ± 1.00"
    small = _cells(table, "SGD (small-batch)")
    assert small["Paper: time (s)"] == "254.12 ± 0.62"
    assert small["Ours: time (s), measured"] == "62.50 ± 1.00"
    assert small["Ours: parallel time (s), modelled"] == "—"
    assert "Not the paper's hardware, net or epochs. Net: ResNet-9 of width 16." in table.caption
    assert any("emulated_workers" in note for note in table.footnotes)


def test_full_size_and_cpu_size_never_share_a_table() -> None:
    records = [*cpu_runs(3), _gpu("cifar10_swap"), _gpu("cifar10_swap", 1)]
    (full,) = run_tables(TABLE_1, "paper", records, PAPER)
    (cpu,) = run_tables(TABLE_1, "cpu", records, PAPER)
    assert _cells(full, "SWAP (after averaging)")["n"] == "2"
    assert _absent(full, "SGD (small-batch)")
    assert _cells(full, "SWAP (after averaging)")["Ours: GPUs"] == "8"
    assert "Not the paper's" not in full.caption
    assert "†" not in to_markdown(full)
    assert _cells(cpu, "SWAP (after averaging)")["n"] == "3"


def test_verdicts_stand_in_the_full_table() -> None:
    records = [_gpu("cifar10_swap", seed) for seed in range(4)]
    (table,) = run_tables(TABLE_1, "paper", records, PAPER)
    # 81% in 98 s and more, beside 95.23% in 169.2 s.
    after = _cells(table, "SWAP (after averaging)")
    assert after["Verdict"] == "accuracy: lower; time: lower"
    (table,) = run_tables(
        TABLE_1, "paper", [replace(r, world_size=4) for r in records], load_paper()
    )
    time = "time: other hardware, net or data: not compared"
    assert _cells(table, "SWAP (after averaging)")["Verdict"] == f"accuracy: lower; {time}"
    assert _absent(table, "SGD (small-batch)")


def test_one_table_for_each_kind_of_machine() -> None:
    four_cores = {**CPU, "device_count": 4}
    records = [make_record(), make_record(seed=1, machine=four_cores)]
    tables = run_tables(TABLE_1, "cpu", records, PAPER)
    assert [table.name for table in tables] == ["table1_cpu_machine1", "table1_cpu_machine2"]
    assert [_cells(t, "SWAP (after averaging)")["n"] for t in tables] == ["1", "1"]
    assert [_cells(t, "SWAP (after averaging)")[CORES] for t in tables] == ["2 (1 x 2)"] * 2
    assert ["4 CPU cores (" in table.caption for table in tables] == [False, True]
    assert list(number_machines(reversed(records)).values()) == [1, 2]


def test_rows_on_two_and_on_eight_devices_of_a_machine_stand_in_one_table() -> None:
    records = [
        *(_gpu("cifar10_swap", seed) for seed in (0, 1)),
        *(replace(_gpu("cifar10_sgd_small", seed), world_size=2) for seed in (0, 1, 2)),
    ]
    (table,) = run_tables(TABLE_1, "paper", records, PAPER)
    assert table.title == "Table 1, machine 1"
    assert "Ours: machine 1, 8 Tesla V100-SXM2-16GB, torch 2.10." in table.caption
    small, after = (_cells(table, label) for label in ("SGD (small-batch)", SWAP))
    assert (small["Ours: GPUs"], small["n"]) == ("2", "3")
    assert (after["Ours: GPUs"], after["n"]) == ("8", "2")
    assert _absent(table, "SGD (large-batch)")
    # The paper's SGD of small batches is on two V100, its SWAP on eight: both times are judged.
    assert "not compared" not in small["Verdict"] + after["Verdict"]


def test_times_on_unlike_numbers_of_devices_are_rows_of_their_own() -> None:
    eight = [_gpu("cifar10_swap", seed) for seed in (0, 1)]
    two = [
        replace(r, run_id=f"{r.run_id}-2", world_size=2, times=replace(r.times, **SLOWER))
        for r in (_gpu("cifar10_swap", seed) for seed in (0, 1, 2))
    ]
    (table,) = run_tables(TABLE_1, "paper", [*eight, *two], PAPER)
    rows = [_cells(table, f"{SWAP} [{i}]") for i in (1, 2)]
    assert [(row["Ours: GPUs"], row["n"], row["Ours: time (s), measured"]) for row in rows] == [
        ("2", "3", "400.00 ± 0.00"),
        ("8", "2", "98.50 ± 0.71"),
    ]
    (note,) = (note for note in table.footnotes if note.startswith(f"{SWAP} [1]: "))
    assert note == (
        f"{SWAP} [1]: {', '.join(r.run_id for r in two)}; "
        "not the same recipe, data or number of devices."
    )


def test_runs_of_unlike_recipes_have_rows_of_their_own() -> None:
    records = [make_record(), with_recipe(make_record(seed=1), width=17)]
    (table,) = run_tables(TABLE_1, "cpu", records, PAPER)
    labels = [row[0] for row in table.rows]
    assert "SWAP (after averaging) [1]" in labels
    assert "SWAP (after averaging) [2]" in labels
    assert any(records[1].run_id in note for note in table.footnotes)


def test_unstable_times_are_marked() -> None:
    records = [make_record(seed=seed) for seed in (0, 100)]
    (table,) = run_tables(TABLE_1, "cpu", records, PAPER)
    # 98 s and 198 s: mean 148, sample deviation 100 / sqrt(2).
    cell = _cells(table, "SWAP (after averaging)")["Ours: time (s), measured"]
    assert cell == "148.00 ± 70.71 †‡"
    assert any("unstable" in note for note in table.footnotes)


# Tables 2 to 4.

PART = {"name": "cifar100", "kind": "subset", "sha256": "cd" * 32}
PART |= {"train_images": 10_000, "test_images": 2_000}
TREE = {"name": "imagenet", "kind": "own", "sha256": "ef" * 32, "classes": 10}
TREE |= {"train_images": 4_000, "test_images": 1_000}


def _swa(recipe: str, seed: int = 0, **changed: Any) -> RunRecord:
    """A run of SWA: 75% before averaging, 78% after; each seed adds a tenth of a percent."""
    more = {"accuracy_before_averaging": 0.75 + seed / 1000, "test_accuracy": 0.78 + seed / 1000}
    return make_record(recipe, seed, **{"method": "swa", "data": PART, **more, **changed})


def test_table_4_by_hand() -> None:
    swap = [make_record("cifar100_swap_cpu", seed, data=PART) for seed in (0, 1, 2)]
    begun = [
        _swa(
            "cifar100_swa_large_small_cpu", seed, start={"run_id": swap[seed].run_id, "origin": "0"}
        )
        for seed in (0, 1, 2)
    ]
    alone = _swa("cifar100_swa_small_cpu")
    (table,) = run_tables(TABLE_4, "cpu", [*swap, *begun, alone], PAPER)
    assert _cells(table, "Large-batch followed by small-batch SWA") == {
        "CIFAR-100": "Large-batch followed by small-batch SWA",
        "Paper: accuracy before averaging (%)": "76.26 ± 0.35",
        "Ours: accuracy before averaging (%)": "75.10 ± 0.10",
        "Paper: accuracy after averaging (%)": "78.12 ± 0.14",
        "Ours: accuracy after averaging (%)": "78.10 ± 0.10",
        "Ours: 95% interval (%)": "77.85 to 78.35",
        "Paper: time (s)": "398.00 ± 1.35",
        "Ours: time (s), measured": "62.50 ± 1.00 §",
        "Ours: parallel time (s), modelled": "—",
        "n": "3",
        "Phase 1 (mean epochs)": "5.0",
        "Paper: GPUs": "up to 8",
        CORES: "2 (1 x 2)",
    }
    ten = _cells(table, "SWAP (10 small-batch epochs)")
    assert ten["Ours: accuracy before averaging (%)"] == "79.40 ± 0.10"
    assert ten["Ours: accuracy after averaging (%)"] == "81.10 ± 0.10"
    assert ten["Ours: time (s), measured"] == "99.00 ± 1.00 †"
    assert ten["Ours: parallel time (s), modelled"] == "75.00 ± 1.00"
    assert _cells(table, "Small-batch SWA")["Ours: time (s), measured"] == "61.50"
    assert _absent(table, "SWAP (40 small-batch epochs)")
    started = ", ".join(record.run_id for record in swap)
    label = "Large-batch followed by small-batch SWA"
    assert f"{label}: 3 of 3 runs began from the phase 1 of {started}." in table.footnotes
    assert any(note.startswith("§ shared phase 1") for note in table.footnotes)
    assert "112 (Section 5.1)" in " ".join(table.footnotes)
    part = "Data: a part of CIFAR-100, not the whole, 10,000 training and 2,000 test images"
    assert f"{part} (content cdcdcdcd)." in table.caption
    # The same runs fill Table 2's rows.
    (other,) = run_tables(TABLE_2, "cpu", [*swap, *begun, alone], PAPER)
    assert _cells(other, "SWAP (after averaging)")["n"] == "3"
    assert [places_of(record) for record in (swap[0], alone)] == [
        ("table2_cpu", "table4_cpu"),
        ("table4_cpu",),
    ]


def test_runs_on_unlike_data_are_never_put_together() -> None:
    whole = {**PART, "kind": "published", "sha256": "ab" * 32, "test_images": 10_000}
    first = with_recipe(make_record("cifar100_swap_cpu", 1, data=whole), train_images=10_000)
    records = [make_record("cifar100_swap_cpu", data=PART), first]
    (table,) = run_tables(TABLE_2, "cpu", records, PAPER)
    cells = [_cells(table, f"SWAP (after averaging) [{i}]") for i in (1, 2)]
    assert [cell["n"] for cell in cells] == ["1", "1"]
    assert "Data differ, and rows with other data are no comparison" in table.caption
    assert "first 10,000 training and 10,000 test images of CIFAR-100" in table.caption


def test_table_3_is_in_minutes_and_has_the_first_five() -> None:
    records = [
        make_record("imagenet_swap_cpu", seed, data=TREE, test_top5_accuracy=0.95)
        for seed in (0, 1, 2)
    ]
    (table,) = run_tables(TABLE_3, "cpu", records, PAPER)
    after, before = (_cells(table, f"SWAP ({when} averaging)") for when in ("after", "before"))
    # 98, 99 and 100 s.
    assert after["Ours: time (min), measured"] == "1.65 ± 0.02 †"
    assert after["Paper: time (min)"] == "156.55 ± 0.56"
    assert after["Ours: parallel time (min), modelled"] == "1.25 ± 0.02"
    assert after["Ours: top-1 accuracy (%)"] == "81.10 ± 0.10"
    assert after["Ours: top-5 accuracy (%)"] == "95.00 ± 0.00"
    assert before["Ours: top-1 accuracy (%)"] == "79.40 ± 0.10"
    assert before["Ours: top-5 accuracy (%)"] == "—"
    assert "Phase 1 (mean epochs)" not in table.columns
    tree = "a tree of images that is not ImageNet, 4,000 training and 1,000 test images in 10 class"
    assert tree in table.caption
    assert "Net: ResNet-50 of width 16 with 1, 1, 1, 1 blocks." in table.caption


def test_each_accuracy_of_the_paper_s_setting_gets_a_verdict() -> None:
    imagenet = {**TREE, "kind": "published"}
    machine = {**V100, "device_count": 16}
    times = make_record("imagenet_swap").times
    records = [
        _gpu(
            "imagenet_swap",
            seed,
            data=imagenet,
            test_accuracy=0.7619 + seed / 10_000,
            test_top5_accuracy=0.80,
            times=replace(times, after_averaging_s=60 * 156.5 + seed),
        )
        for seed in (0, 1, 2)
    ]
    records = [replace(record, world_size=16, machine=machine) for record in records]
    (table,) = run_tables(TABLE_3, "paper", records, PAPER)
    after = _cells(table, "SWAP (after averaging)")
    assert after["Verdict"] == "top-1: reproduced; top-5: lower; time: reproduced"
    assert _cells(table, "SWAP (before averaging)")["Verdict"].startswith("top-1: higher; time: ")


def test_a_mark_of_another_run_s_time_is_known_to_the_forms() -> None:
    begun = [_swa("cifar100_swa_small_cpu", start={"run_id": "other", "origin": "0"})]
    (table,) = run_tables(TABLE_4, "cpu", begun, PAPER)
    assert r"61.50 \S{}" in to_latex(table)
    lines = to_markdown(table).splitlines()
    head = next(line for line in lines if line.startswith("| CIFAR-100"))
    rule = lines[lines.index(head) + 1]
    at = head.split("|").index(next(c for c in head.split("|") if "(s), measured" in c))
    assert rule.split("|")[at].endswith("-: ")  # still a column of figures


@pytest.mark.parametrize(
    ("recipe", "kind", "place"),
    [
        ("cifar100_swap", "published", "table2"),
        ("cifar100_swap", "subset", "other"),
        ("cifar100_swap_cpu", "synthetic", "other"),
        ("cifar100_swa_large", "published", "table4"),
        ("imagenet_sgd_small", "own", "other"),
        ("imagenet_sgd_small_cpu", "own", "table3_cpu"),
        ("imagenet_sgd_small_cpu", "subset", "other"),
        ("cifar10_dawnbench", "published", "time_to_target"),
        ("cifar10_quick", "published", "other"),
    ],
)
def test_where_a_run_stands(recipe: str, kind: str, place: str) -> None:
    assert place_of(make_record(recipe, data={**PART, "kind": kind})) == place


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"data": {**DATA, "kind": "synthetic"}}, "synthetic data"),
        ({"data": {**DATA, "kind": "subset"}}, "subset data"),
        (
            {"flags": ["profiled"]},
            "profiled: the profiler ran in some steps, and their time counts",
        ),
        ({"overrides": ["phase1.peak_lr=1.5"]}, "overrides: phase1.peak_lr=1.5"),
    ],
)
@pytest.mark.parametrize("recipe", ["cifar10_cpu", "cifar10_swap", "cifar10_dawnbench"])
def test_other_runs_are_in_no_other_table(recipe: str, changed: dict, why: str) -> None:
    record = make_record(recipe, **changed)
    assert place_of(record) == "other"
    assert all_run_tables([record], PAPER) == []
    assert not any("Ours" in row[0] for row in time_to_target([record], PAPER).rows)
    assert runs_table([record]).rows == ()
    (row,) = other_runs([record]).rows
    assert why in row
    assert record.run_id in row


def test_times_to_an_accuracy() -> None:
    reached = _gpu("cifar10_dawnbench", test_accuracy=0.9412)
    records = [reached, _gpu("cifar10_dawnbench", 1, test_accuracy=0.9388), *cpu_runs(3)]
    table = time_to_target(records, PAPER)
    assert _cells(table, "Paper: SWAP")["Time (s)"] == "27"
    assert _cells(table, "Apple")["Hardware"] == "8 NVIDIA Tesla V100"
    ours = _cells(table, "Ours: cifar10_dawnbench")
    # DAWNBench's reading of seed 0: its laps sum to 100 s.
    assert ours["Time (s)"] == "100.00"
    assert ours["Note"] == "1 of 2 runs; final 94.00 ± 0.17%"
    assert sum("Ours" in row[0] for row in table.rows) == 1


def test_every_run_is_listed() -> None:
    table = runs_table(cpu_runs(3))
    assert len(table.rows) == 9
    assert "Not the paper's hardware or net" in table.caption
    row = dict(zip(table.columns, table.rows[0], strict=True))
    assert row["Workers (%), lowest to highest"] == "79.00 to 79.60"
    assert row["Phase 1 ended by"] == "stopping_accuracy"
    assert row["Before averaging (%)"] == "79.30"
    # Of SWAP the best average, of SGD the best model.
    assert row["Best by epoch (%)"] == "81.00"
    assert dict(zip(table.columns, table.rows[3], strict=True))["Best by epoch (%)"] == "76.00"


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


def test_csv_gives_back_every_cell() -> None:
    table = _hostile_table()
    assert list(csv.reader(io.StringIO(csv_text(table.columns, table.rows)))) == [
        list(row) for row in (table.columns, *table.rows)
    ]


def test_text_that_a_spreadsheet_would_run_is_made_text() -> None:
    numbers = ["-1.5", "+0.8", "-5.25 to -1.65", "-1,024", "+3%", "-1e-05", "a=b"]
    formulas = ["=1+1", "+A1", "-2+3+cmd|' /C calc'!A0", "@SUM(A1)", "\t=1"]
    (_, *rows) = csv.reader(io.StringIO(csv_text(["c"], [[c] for c in numbers + formulas])))
    assert [cell for row in rows for cell in row] == [*numbers, *(f"'{c}" for c in formulas)]


def test_figures_stand_right_and_words_left() -> None:
    lines = to_markdown(_hostile_table()).splitlines()
    (rule,) = (line for line in lines if line.startswith("| -"))
    assert re.fullmatch(r"\| -+ \| -+: \|", rule)
    assert r"\begin{tabular}{lr}" in to_latex(_hostile_table())


def test_plus_minus() -> None:
    assert plus_minus(95.2, 0.085) == "95.20 ± 0.09"
    assert plus_minus(95.2, None) == "95.20"


def test_times_on_one_and_on_two_cores_are_measured_side_by_side() -> None:
    swap = make_record("cifar10_cpu", world_size=2, threads=1, emulated_workers=False)
    laps = replace(swap.times, modelled_after_averaging_s=swap.times.after_averaging_s)
    small = make_record("cifar10_sgd_small_cpu", threads=1)
    records = [small, replace(swap, times=laps)]
    (table,) = run_tables(TABLE_1, "cpu", records, PAPER)
    one, two = _cells(table, "SGD (small-batch)"), _cells(table, SWAP)
    assert (one[CORES], two[CORES]) == ("1 (1 x 1)", "2 (2 x 1)")
    assert (one["Paper: GPUs"], two["Paper: GPUs"]) == ("2", "8")
    times = [float(row["Ours: time (s), measured"]) for row in (one, two)]  # without a mark
    assert times == [small.times.after_averaging_s, swap.times.after_averaging_s]
