"""The paper's claims: each held, not held, and not told by constructed runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from landscape_factory import bowl, cosine_path
from record_factory import V100, make_record

from bench.document import Table
from bench.landscape.records import CosineRecord, PlaneRecord
from bench.plots.training import averages_against_workers
from bench.records.paper import load_paper
from bench.report.claims import ACCURACY_CLAIMS, TIME_CLAIMS, Claim, PaperCell
from bench.report.claims_tables import claims_tables as all_claims_tables
from swap_fast.record import AverageRow, RunRecord

PAPER = load_paper()
NOISE = (0.0, 0.0004, -0.0003)
SEEDS = (0, 1, 2)


def claims_tables(*args: Any) -> list[Table]:
    """Those that stand in the report; here there are no first looks beside them."""
    found = all_claims_tables(*args)
    assert found.first_looks == []
    return found.tables


def _runs(
    side: PaperCell, value: float, *, before: float = 0.7, machine: dict[str, object] | None = None
) -> list[RunRecord]:
    """Three CPU-size runs of a side's row, with that accuracy (a fraction) or time (seconds)."""
    recipe = side.row.recipes["cpu"]
    made = []
    for seed in SEEDS:
        base = make_record(recipe, seed)
        accuracy = (0.8 if side.column is None else value) + NOISE[seed]
        time_s = value * (1 + NOISE[seed]) if side.column is None else 100.0
        made.append(
            replace(
                base,
                method="swap" if "swap" in recipe or recipe == "cifar10_cpu" else base.method,
                data={**base.data, "kind": "own" if "imagenet" in recipe else "published"},
                test_accuracy=accuracy,
                accuracy_before_averaging=before + 2 * NOISE[seed],
                times=replace(
                    base.times, after_averaging_s=time_s, modelled_after_averaging_s=time_s / 2
                ),
                **({} if machine is None else {"machine": machine}),
            )
        )
    return made


def _rows(tables: list[Table], claim: Claim) -> list[dict[str, str]]:
    (table,) = tables
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    return [r for r in rows if (r["The paper says"], r["Where"]) == (claim.says, claim.source)]


def _of_two(claim: Claim, first: float, second: float) -> list[RunRecord]:
    """Runs whose two sides have these figures."""
    if claim.is_of_one_row:
        is_before = claim.first.label.startswith("SWAP (before") or (
            claim.first.column is not None
            and claim.first.column.name == "accuracy_before_averaging"
        )
        before, after = (first, second) if is_before else (second, first)
        return _runs(claim.second, after, before=before)
    return [*_runs(claim.first, first), *_runs(claim.second, second)]


@pytest.mark.parametrize(
    "claim", ACCURACY_CLAIMS, ids=lambda claim: f"{claim.source}: {claim.says}"
)
def test_each_claim_of_accuracies_held_and_not(claim: Claim) -> None:
    for first, second, expected in ((0.80, 0.75, "held"), (0.75, 0.80, "did not hold")):
        (row,) = _rows(claims_tables(_of_two(claim, first, second), PAPER), claim)
        assert row["Outcome"] == expected
        assert row["n"] == "3"
        assert float(row["Difference (points) or ratio"]) == pytest.approx(
            100 * (first - second), abs=0.02
        )
        assert f"{100 * first:.0f}." in row["Ours"].split(" against ")[0]
        assert row["Test"] == f"paired t, by {'run' if claim.is_of_one_row else 'seed'}"
    # A tie is no more, and on par.
    (row,) = _rows(claims_tables(_of_two(claim, 0.80, 0.80), PAPER), claim)
    tie = "not distinguishable at n = 3" if claim.rule == "higher" else "held"
    assert row["Outcome"] == tie


@pytest.mark.parametrize("claim", TIME_CLAIMS, ids=lambda claim: claim.says)
def test_each_claim_of_times_by_the_measured_and_the_modelled_time(claim: Claim) -> None:
    ratio = PAPER.time_s("Table 4", claim.first.label) / PAPER.time_s("Table 4", claim.second.label)
    for factor, expected in ((1.1, "held"), (0.9, "did not hold"), (0.97, "held")):
        measured, modelled = _rows(
            claims_tables(_of_two(claim, 100 * ratio * factor, 100.0), PAPER), claim
        )
        assert measured["Ours"].startswith("measured: ")
        assert modelled["Ours"].startswith("modelled: ")
        assert measured["Outcome"] == expected
        assert float(measured["Difference (points) or ratio"]) == pytest.approx(
            ratio * factor, abs=0.01
        )
        # SWA has no workers to be modelled; SWAP's take half as long.
        assert float(modelled["Difference (points) or ratio"]) == pytest.approx(
            2 * ratio * factor, abs=0.01
        )
        assert f"{ratio:.2f}: " in measured["Paper"]


def test_a_claim_without_runs_and_results_without_claims() -> None:
    assert claims_tables([], PAPER) == []
    assert claims_tables([make_record("cifar10_quick")], PAPER) == []
    tables = claims_tables([make_record(seed=seed) for seed in SEEDS], PAPER)
    assert not _rows(tables, ACCURACY_CLAIMS[1])  # SWAP against small-batch SGD
    assert not _rows(tables, TIME_CLAIMS[0])
    others = len(ACCURACY_CLAIMS) + len(TIME_CLAIMS) + 4 + 1 - len(tables[0].rows)
    assert f"Of {others} further claims there are no runs at this size." in tables[0].footnotes


def test_other_seeds_and_one_seed() -> None:
    claim = ACCURACY_CLAIMS[1]
    runs = _of_two(claim, 0.80, 0.75)
    moved = [replace(r, seed=r.seed + 9) if r.recipe == "cifar10_cpu" else r for r in runs]
    (row,) = _rows(claims_tables(moved, PAPER), claim)
    assert (row["Test"], row["n"], row["Outcome"]) == ("Welch's t", "3 and 3", "held")
    (row,) = _rows(claims_tables([r for r in runs if r.seed == 0], PAPER), claim)
    assert row["Outcome"] == "not distinguishable at n = 1"


def test_sizes_and_machines_have_tables_of_their_own() -> None:
    other = {**V100, "device": "NVIDIA H200", "device_count": 1}
    runs = [
        *[make_record("cifar10_swap", seed, machine=V100, world_size=8) for seed in SEEDS],
        *[make_record("cifar10_sgd_small", seed, machine=V100, world_size=2) for seed in SEEDS],
        *[make_record("cifar10_swap", seed, machine=other) for seed in SEEDS],
        *[make_record(seed=seed) for seed in SEEDS],
    ]
    found = all_claims_tables(runs, PAPER)
    tables = [*found.tables, *found.first_looks]
    assert sorted(table.name for table in tables) == [
        "claims_cpu_1_first_looks",
        "claims_paper_1",
        "claims_paper_2",
    ]
    small = {
        table.title.partition(", ")[2]: [
            row["Outcome"] for row in _rows([table], ACCURACY_CLAIMS[1])
        ]
        for table in tables
    }
    # Rows of one machine are compared whatever they use of it.
    assert small["8 Tesla V100-SXM2-16GB, torch 2.10"] == ["held"]
    assert small["1 NVIDIA H200, torch 2.10"] == []


def test_runs_of_unlike_recipes_are_held_apart() -> None:
    claim = ACCURACY_CLAIMS[1]
    runs = _of_two(claim, 0.80, 0.75)
    for record in _runs(claim.first, 0.70):
        recipe = {**record.configuration["recipe"], "keep_momentum": True}
        configuration = {**record.configuration, "recipe": recipe}
        runs.append(replace(record, run_id=f"{record.run_id}-b", configuration=configuration))
    tables = claims_tables(runs, PAPER)
    assert [row["Outcome"] for row in _rows(tables, claim)] == ["held", "did not hold"]
    assert any(note.startswith("[2] ") and "-b" in note for note in tables[0].footnotes)
    # Of another precision, they are not held against each other at all.
    fp16 = [
        replace(r, configuration={**r.configuration, "execution": {"precision": "fp16"}})
        if r.recipe == "cifar10_cpu"
        else r
        for r in _of_two(claim, 0.80, 0.75)
    ]
    assert _rows(claims_tables(fp16, PAPER), claim) == []


def test_a_claim_at_cpu_size_is_a_first_look_where_a_nearer_size_has_runs() -> None:
    on_par, small_best = ACCURACY_CLAIMS[1:3]
    old = [*_of_two(on_par, 0.80, 0.75), *_runs(small_best.second, 0.7)]
    table_2 = _of_two(ACCURACY_CLAIMS[4], 0.40, 0.45)
    narrow = [make_record("cifar10_narrow", seed) for seed in SEEDS]
    narrow += [make_record("cifar10_narrow_sgd_small", seed) for seed in SEEDS]
    found = all_claims_tables([*old, *table_2, *narrow], PAPER)
    tables, first_looks = found.tables, found.first_looks
    assert [table.name for table in tables] == ["claims_narrow_1", "claims_cpu_1"]
    assert [table.name for table in first_looks] == ["claims_cpu_1_first_looks"]
    by_claim = [{row[:2]: row[-1] for row in table.rows} for table in (*tables, *first_looks)]
    at_narrow, at_cpu, first = by_claim
    key = (on_par.says, on_par.source)
    assert key in at_narrow
    assert key not in at_cpu
    assert first[key] == "held"
    # A claim that no nearer size has runs of stays, with the others of its table.
    assert (small_best.says, small_best.source) in at_cpu
    assert at_cpu[ACCURACY_CLAIMS[4].says, ACCURACY_CLAIMS[4].source] == "did not hold"
    assert tables[1].caption.startswith("12 runs")


def test_a_first_look_does_not_count() -> None:
    on_par = ACCURACY_CLAIMS[1]
    old = _of_two(on_par, 0.70, 0.75)  # did not hold, as averaging did
    one = [make_record("cifar10_narrow"), make_record("cifar10_narrow_sgd_small")]
    assert all_claims_tables(old, PAPER).outcomes.count("did not hold") == 1
    # Runs that are nearer make it a first look, which does not count.
    more = [replace(run, run_id=f"{run.run_id}-{n}", seed=n) for run in one for n in SEEDS]
    more = [replace(r, test_accuracy=r.test_accuracy + NOISE[r.seed]) for r in more]
    for nearer in (one, more):
        assert all_claims_tables([*old, *nearer], PAPER).outcomes.count("did not hold") == 0


def test_why_a_claim_did_not_hold() -> None:
    def trained(record: RunRecord, accuracy: float) -> RunRecord:
        rows = [replace(row, train_accuracy=accuracy) for row in record.epochs]
        rows[0] = replace(rows[0], train_accuracy=0.1)  # the last epochs alone count
        return replace(record, epochs=rows)

    claim = ACCURACY_CLAIMS[1]
    for accuracy, says in ((0.6, "behind in training already"), (0.9, "but in generalization")):
        runs = [
            trained(record, accuracy if record.recipe == "cifar10_cpu" else 0.75)
            for record in _of_two(claim, 0.70, 0.75)
        ]
        (table,) = claims_tables(runs, PAPER)
        (why,) = (note for note in table.footnotes if note.startswith("Why not"))
        assert f"{accuracy:.1%} were right against 75.0%" in why
        assert says in why
    runs = _of_two(TIME_CLAIMS[1], 110.0, 100.0)
    (table,) = claims_tables(runs, PAPER)
    (why,) = (note for note in table.footnotes if note.startswith("Why not"))
    assert "The paper's had 8 GPUs; of ours 4 shared 2 cores" in why
    # Of the same runs, before averaging and after, training says nothing.
    for held in (_of_two(claim, 0.80, 0.75), _of_two(ACCURACY_CLAIMS[0], 0.75, 0.80)):
        (table,) = claims_tables(held, PAPER)
        assert not any(note.startswith("Why not") for note in table.footnotes)


def test_average_against_each_worker_at_each_epoch() -> None:
    # Workers reach at most 78.6% after the first epoch of phase 2, 79.6% after the second.
    record = make_record()
    assert averages_against_workers(record) == pytest.approx([0.014, 0.014])
    says = "The averaged model performs consistently better than each individual model"

    def figure_1(records: list[RunRecord]) -> tuple[str, ...]:
        (table,) = claims_tables(records, PAPER)
        (row,) = (row for row in table.rows if row[0] == says)
        return row

    row = figure_1([make_record(seed=seed) for seed in SEEDS])
    assert row[-1] == "held"
    assert "6 of 6 epochs, by 1.40 or more" in row[3]
    once = [AverageRow(epoch=1, test_accuracy=0.786), AverageRow(epoch=2, test_accuracy=0.81)]
    row = figure_1([record, replace(make_record(seed=1), average_by_epoch=once)])
    assert row[-1] == "did not hold"
    assert "3 of 4 epochs" in row[3]
    (table,) = claims_tables([replace(record, average_by_epoch=[])], PAPER)
    assert says not in [row[0] for row in table.rows]


# The loss's landscape.


def _landscape_outcomes(planes: list[PlaneRecord], paths: list[CosineRecord]) -> list[str]:
    (table,) = claims_tables([make_record()], PAPER, planes, paths)
    return [row[-1] for row in table.rows if "Figure" in row[1] and "Section 3" not in row[1]]


def test_claims_of_the_landscape() -> None:
    good = bowl(2, LB=(-1.5, 0.2), SGD=(1.5, 0.0), SWAP=(0.1, 0.0))
    bad = bowl(2, LB=(1.5, 0.2), SGD=(0.5, 0.0), SWAP=(1.8, 0.0))
    three = bowl(3, SGD1=(-1.5, 0.2), SGD2=(1.5, 0.0), SGD3=(0.0, 1.5), SWAP=(0.1, 0.0))
    falling, rising = cosine_path(0.5, 0.4, 0.3, 0.2, 0.1, 0.0), cosine_path(0.1, 0.2, 0.3)
    assert _landscape_outcomes([good, three], [falling]) == ["held"] * 4
    assert _landscape_outcomes([bad], [rising]) == ["did not hold"] * 3  # of Figures 2, 2 and 4
    assert _landscape_outcomes([good, bad], []) == ["did not hold"] * 2
    strange = replace(good, run_id="of-another-folder")
    assert _landscape_outcomes([strange], []) == []


def test_landscapes_that_do_not_hold_say_what_was_seen() -> None:
    bad = bowl(2, LB=(0.0, 0.0), SGD=(0.5, 0.0), SWAP=(1.8, 0.0))
    rising = cosine_path(0.1, 0.3, 0.2)
    (table,) = claims_tables([make_record()], PAPER, [bad], [rising])
    crossing, cosine = (note for note in table.footnotes if "Why not (Section 4" in note)
    assert "the way from LB to SGD, 0.50 long, passes the center after " in crossing
    assert cosine.endswith(
        "begins at 0.100, is highest at 0.300 (phase 1, epoch 2) "
        "and ends at 0.200 (phase 1, epoch 3)."
    )
