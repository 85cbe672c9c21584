"""The paper's claims: each held, not held, and not told by constructed runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from zlib import crc32

import pytest
from landscape_factory import bowl, cosine_path
from record_factory import V100, make_record

from bench.document import Table
from bench.landscape.records import CosineRecord, PlaneRecord
from bench.plots.training import averages_against_workers
from bench.records.paper import load_paper
from bench.report.claims import ACCURACY_CLAIMS, TIME_CLAIMS, Claim, PaperCell
from bench.report.claims_tables import claims_of
from swap_fast.record import AverageRow, RunRecord

PAPER = load_paper()
NOISE = (0.0, 0.0004, -0.0003)
SEEDS = (0, 1, 2)


def claims_table(*args: Any) -> Table:
    """Of all sizes."""
    table = claims_of(*args).table
    assert table is not None
    return table


def _runs(
    side: PaperCell, value: float, *, before: float = 0.7, machine: dict[str, object] | None = None
) -> list[RunRecord]:
    """Three CPU-size runs of a side's row, with that accuracy (a fraction) or time (seconds)."""
    recipe = side.row.recipes["cpu"]
    made = []
    for seed in SEEDS:
        base, noise = (
            make_record(recipe, seed),
            NOISE[seed] * (1 + crc32(recipe.encode()) % 997 / 997),
        )
        accuracy = (0.8 if side.column is None else value) + noise
        time_s = value * (1 + noise) if side.column is None else 100.0
        made.append(
            replace(
                base,
                method="swap" if "swap" in recipe or recipe == "cifar10_cpu" else base.method,
                data={**base.data, "kind": "own" if "imagenet" in recipe else "published"},
                test_accuracy=accuracy,
                accuracy_before_averaging=before + 2 * noise,
                times=replace(
                    base.times, after_averaging_s=time_s, modelled_after_averaging_s=time_s / 2
                ),
                **({} if machine is None else {"machine": machine}),
            )
        )
    return made


def _rows(table: Table, claim: Claim) -> list[dict[str, str]]:
    """A claim's rows: in all but the first the cells that say which it is are empty."""
    found, which = [], ("", "")
    for row in table.rows:
        which = row[:2] if row[0] else which
        if which == (claim.says, claim.source):
            found.append(dict(zip(table.columns, row, strict=True)))
    return found


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
        (row,) = _rows(claims_table(_of_two(claim, first, second), PAPER), claim)
        assert row["Outcome"] == expected
        assert row["n"] == "3"
        assert float(row["Difference (points) or ratio"]) == pytest.approx(
            100 * (first - second), abs=0.02
        )
        assert f"{100 * first:.0f}." in row["Ours"].split(" against ")[0]
        paired_by = "run" if claim.is_of_one_row else "seed; Welch's t "
        assert row["Test"].startswith(f"paired t, by {paired_by}")
    # A tie is no more, and on par.
    (row,) = _rows(claims_table(_of_two(claim, 0.80, 0.80), PAPER), claim)
    assert row["Outcome"] == ("undecided at n = 3" if claim.rule == "higher" else "held")


@pytest.mark.parametrize("claim", TIME_CLAIMS, ids=lambda claim: f"{claim.source}: {claim.says}")
def test_each_claim_of_times_by_the_modelled_time(claim: Claim) -> None:
    times = [cell.published(PAPER) for cell in (claim.first, claim.second)]
    ratio = times[0].mean / times[1].mean
    claimed = ratio if claim.rule == "longer by a factor" else 1.0
    for factor, expected in ((1.1, "held"), (0.9, "did not hold"), (0.975, "held")):
        runs = _of_two(claim, 50 * claimed * factor, 100.0)
        if times[0].devices < times[1].devices:
            slow = claim.first.row.recipes["cpu"]
            runs = [replace(run, threads=1) if run.recipe == slow else run for run in runs]
        measured, modelled = _rows(claims_table(runs, PAPER), claim)
        # Four workers took turns: side by side they take half as long.
        assert measured["Outcome"] == "not tested"
        assert modelled["Ours"].startswith("modelled: ")
        is_below_1 = claim.rule == "longer" and factor < 1
        assert modelled["Outcome"] == ("did not hold" if is_below_1 else expected)
        share = float(modelled["Difference (points) or ratio"])
        assert share == pytest.approx(claimed * factor, abs=0.01)
        assert f"{ratio:.2f}: " in measured["Paper"] + modelled["Paper"]


def test_times_on_as_many_devices_test_no_claim_of_more() -> None:
    (claim, *_) = TIME_CLAIMS
    rows = _rows(claims_table(_of_two(claim, 300.0, 100.0), PAPER), claim)
    assert [row["Outcome"] for row in rows] == ["not tested"] * 2


def test_a_claim_without_runs_and_results_without_claims() -> None:
    assert claims_of([], PAPER).table is None
    assert claims_of([make_record("cifar10_quick")], PAPER).table is None
    table = claims_table([make_record(seed=seed) for seed in SEEDS], PAPER)
    assert not _rows(table, ACCURACY_CLAIMS[1])  # SWAP against small-batch SGD
    assert not _rows(table, TIME_CLAIMS[0])
    others = len(ACCURACY_CLAIMS) + len(TIME_CLAIMS) + 5 + 1 - len(table.rows)
    assert f"Of {others} further claims there are no runs." in table.footnotes


def test_other_seeds_and_one_seed() -> None:
    claim = ACCURACY_CLAIMS[1]
    runs = _of_two(claim, 0.80, 0.75)
    moved = [replace(r, seed=r.seed + 9) if r.recipe == "cifar10_cpu" else r for r in runs]
    (row,) = _rows(claims_table(moved, PAPER), claim)
    assert (row["Test"], row["n"], row["Outcome"]) == ("Welch's t", "3 and 3", "held")
    (row,) = _rows(claims_table([r for r in runs if r.seed == 0], PAPER), claim)
    assert row["Outcome"] == "undecided at n = 1"


def test_equal_differences_decide_nothing() -> None:
    claim = ACCURACY_CLAIMS[1]
    alike = [
        replace(run, test_accuracy=round(run.test_accuracy, 2)) for run in _of_two(claim, 0.8, 0.7)
    ]
    (row,) = _rows(claims_table(alike, PAPER), claim)
    assert (row["95% interval"], row["Outcome"]) == ("—", "undecided at n = 3")


def test_sizes_and_machines_have_rows_of_their_own() -> None:
    other = {**V100, "device": "NVIDIA H200", "device_count": 1}
    runs = [
        *[make_record("cifar10_swap", seed, machine=V100, world_size=8) for seed in SEEDS],
        *[make_record("cifar10_sgd_small", seed, machine=V100, world_size=2) for seed in SEEDS],
        *[make_record("cifar10_swap", seed, machine=other) for seed in SEEDS],
        *[make_record(seed=seed) for seed in SEEDS],
    ]
    rows = _rows(claims_table(runs, PAPER), ACCURACY_CLAIMS[1])
    # Rows of one machine are compared whatever they use of it.
    assert [(row["Ours: size"], row["Outcome"]) for row in rows] == [
        ("at the paper's size, machine 3", "undecided at n = 3")
    ]
    rows = _rows(claims_table(runs, PAPER), ACCURACY_CLAIMS[0])
    assert [row["Ours: size"] for row in rows] == [
        *(f"at the paper's size, machine {n}" for n in (2, 3)),
        "at CPU size, machine 1",
    ]


def test_runs_of_unlike_recipes_are_held_apart() -> None:
    claim = ACCURACY_CLAIMS[1]
    runs = _of_two(claim, 0.80, 0.75)
    for record in _runs(claim.first, 0.70):
        recipe = {**record.configuration["recipe"], "keep_momentum": True}
        configuration = {**record.configuration, "recipe": recipe}
        runs.append(replace(record, run_id=f"{record.run_id}-b", configuration=configuration))
    table = claims_table(runs, PAPER)
    assert [row["Outcome"] for row in _rows(table, claim)] == ["held", "did not hold"]
    assert any(note.startswith("[2] ") and "-b" in note for note in table.footnotes)
    # Of another precision, they are not held against each other at all.
    fp16 = [
        replace(r, configuration={**r.configuration, "execution": {"precision": "fp16"}})
        if r.recipe == "cifar10_cpu"
        else r
        for r in _of_two(claim, 0.80, 0.75)
    ]
    assert _rows(claims_table(fp16, PAPER), claim) == []


def test_the_nearest_size_that_decides_a_claim_stands_for_it() -> None:
    on_par = ACCURACY_CLAIMS[1]
    old = _of_two(on_par, 0.70, 0.75)
    one = [make_record("cifar10_narrow"), make_record("cifar10_narrow_sgd_small")]
    more = [make_record(run.recipe, seed) for run in one for seed in SEEDS]
    more = [replace(r, test_accuracy=r.test_accuracy + NOISE[r.seed] / len(r.recipe)) for r in more]
    cpu, narrow = ("at CPU size, machine 1", "did not hold"), ("at width 16, machine 1", "held")
    for nearer, expected in (([], [cpu]), (one, [cpu]), (more, [narrow, cpu])):
        found = claims_of([*old, *nearer], PAPER)
        assert found.nearest is not None
        rows = _rows(found.nearest, on_par)
        # What came out the other way is shown below, and counted.
        assert [(row["Ours: size"], row["Outcome"]) for row in rows] == expected
        assert found.contradicted == len(expected) - 1


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
        table = claims_table(runs, PAPER)
        (why,) = (note for note in table.footnotes if note.startswith("Why not"))
        assert f"{accuracy:.1%} were right against 75.0%" in why
        assert says in why
    runs = _of_two(TIME_CLAIMS[-2], 110.0, 100.0)
    table = claims_table(runs, PAPER)
    (why,) = (note for note in table.footnotes if note.startswith("Why not"))
    assert "The paper's had 8 GPUs; our 4 shared 2 CPU cores" in why
    # Of the same runs, before averaging and after, training says nothing.
    for held in (_of_two(claim, 0.80, 0.75), _of_two(ACCURACY_CLAIMS[0], 0.75, 0.80)):
        table = claims_table(held, PAPER)
        assert not any(note.startswith("Why not") for note in table.footnotes)


def test_average_against_each_worker_at_each_epoch() -> None:
    # Workers reach at most 78.6% after the first epoch of phase 2, 79.6% after the second.
    record = make_record()
    assert averages_against_workers(record) == pytest.approx([0.014, 0.014])
    says = "The averaged model performs consistently better than each individual model"

    def figure_1(records: list[RunRecord]) -> tuple[str, ...]:
        table = claims_table(records, PAPER)
        (row,) = (row for row in table.rows if row[0] == says)
        return row

    row = figure_1([make_record(seed=seed) for seed in SEEDS])
    assert row[-1] == "held"
    assert "6 of 6 epochs, by 1.40 or more" in row[4]
    once = [AverageRow(epoch=1, test_accuracy=0.786), AverageRow(epoch=2, test_accuracy=0.81)]
    row = figure_1([record, replace(make_record(seed=1), average_by_epoch=once)])
    assert row[-1] == "did not hold"
    assert "3 of 4 epochs" in row[4]
    table = claims_table([replace(record, average_by_epoch=[])], PAPER)
    assert says not in [row[0] for row in table.rows]


# The loss's landscape.


def _landscape_outcomes(planes: list[PlaneRecord], paths: list[CosineRecord]) -> list[str]:
    table = claims_table([make_record()], PAPER, planes, paths)
    return [row[-1] for row in table.rows if "Figure" in row[1] and "Section 3" not in row[1]]


def test_claims_of_the_landscape() -> None:
    good = bowl(2, LB=(-1.5, 0.2), SGD=(1.5, 0.0), SWAP=(0.1, 0.0))
    bad = bowl(2, LB=(1.5, 0.2), SGD=(0.5, 0.0), SWAP=(1.8, 0.0))
    three = bowl(3, SGD1=(-1.5, 0.2), SGD2=(1.5, 0.0), SGD3=(0.0, 1.5), SWAP=(0.1, 0.0))
    falling, rising = cosine_path(0.5, 0.4, 0.3, 0.2, 0.1, 0.0), cosine_path(0.1, 0.2, 0.3)
    assert _landscape_outcomes([good, three], [falling]) == ["held"] * 5
    assert _landscape_outcomes([bad], [rising]) == ["did not hold"] * 3  # of Figures 2, 2 and 4
    assert _landscape_outcomes([good, bad], []) == ["did not hold"] * 2
    strange = replace(good, run_id="of-another-folder")
    assert _landscape_outcomes([strange], []) == []


def test_landscapes_that_do_not_hold_say_what_was_seen() -> None:
    bad = bowl(2, LB=(0.0, 0.0), SGD=(0.5, 0.0), SWAP=(1.8, 0.0))
    rising = cosine_path(0.1, 0.3, 0.2)
    table = claims_table([make_record()], PAPER, [bad], [rising])
    crossing, cosine = (note for note in table.footnotes if "Why not (Section 4" in note)
    assert "the way from LB to SGD, 0.50 long, passes the center after " in crossing
    assert cosine.endswith(
        "begins at 0.100, is highest at 0.300 (phase 1, epoch 2) "
        "and ends at 0.200 (phase 1, epoch 3)."
    )
