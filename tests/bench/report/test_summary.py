"""The report at one look: what runs ended with, and the rows of speed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from micro_factory import MICRO, timing, write
from record_factory import make_record

from bench.document import Table
from bench.micro.records import read_micro_records
from bench.records.paper import load_paper
from bench.report.claims_tables import Claims
from bench.report.content import Content, collect, overview, speed_table, summary
from bench.report.run_lists import stability_table
from bench.report.write import (
    BEGIN,
    END,
    SPEED_BEGIN,
    SPEED_END,
    update_readme,
)
from swap_fast.config.recipe import SWAPRecipe
from swap_fast.record import RunRecord


@pytest.mark.parametrize("count", [0, 3])
def test_the_final_accuracies_and_the_paper_s(count: int) -> None:
    subset = {"name": "cifar100", "kind": "subset", "sha256": "cd" * 32}
    data = subset | {"train_images": 10_000, "test_images": 2_000}
    recipes = ("cifar100_swap_cpu", "cifar10_cpu", "cifar10_sgd_small_cpu")
    records = [
        make_record(recipe, seed, **({"data": data} if "100" in recipe else {}))
        for recipe in recipes
        for seed in range(count)
    ]
    content = _content(records)
    outcomes = [("accuracies", "held"), ("accuracies", "did not hold"), ("times", "not tested")]
    claims = Claims(table=None, nearest=None, outcomes=outcomes, modelled=1, contradicted=1)
    items = summary(content, claims, stability_table(records)).items
    table = overview(content)
    if not count:
        assert items == ("Measured: nothing yet.",)
        assert table is None
        return
    # 81.0, 81.1, 81.2%; before averaging they are at 79.3% and more. The paper's: Tables 1, 2, 4.
    ours, small = "81.10 ± 0.10", "SGD (small-batch)"
    # Of seeds 0 to 2: the reading of SWAP, and of SGD that has no phases 2 and 3.
    swap_s, sgd_s = (make_record(name, 1).times.after_averaging_s for name in (recipes[1:]))
    share = f"{swap_s / sgd_s:.2f}"
    assert table is not None
    assert table.rows == (
        (
            *("Table 1 at CPU size, machine 1", ours, "76.10 ± 0.10", "5.00", share),
            # Epochs of all models over devices; both rows on two cores.
            *(f"{_epochs(records[-4]) / _epochs(records[-1]):.2f}", "2 and 2", "3 and 3", small),
            *("95.23 ± 0.08", "95.24 ± 0.09", "0.67"),  # 169.20 of 254.12 s
        ),
        (
            *("Table 2 at CPU size, machine 1", ours, *["—"] * 4, "2", "3", small),
            *("78.18 ± 0.21", "77.01 ± 0.25", "0.22"),  # 125.34 of 573.76 s
        ),
        (
            "Table 4 at CPU size, machine 1, SWAP (10 small-batch epochs), ours 2",
            *(ours, *["—"] * 4, "2", "3", "Small-batch SWA"),
            *("78.18 ± 0.21", "79.09 ± 0.19", "0.15"),  # 125.30 of 848.60 s
        ),
    )
    assert items[0] == (
        "Table 1 at CPU size, machine 1 (ResNet-9 of width 16): SWAP 81.10 ± 0.10% (n = 3) in "
        f"{swap_s:,.0f} s on 2 CPU cores, SGD (small-batch) 76.10 ± 0.10% (n = 3) in {sgd_s:,.0f} "
        "s on 2 CPU cores. Difference to SGD (small-batch), in points: 5.00. Averaging added 1.70 "
        "± 0.00 points to the workers' mean."
    )
    assert items[1] == f"SWAP's time as a share: of {small}'s {share} on as many devices."
    assert items[2] == (
        "3 claims of the paper, each at the nearest size that decides it: of accuracies 1 held, "
        "1 did not; of times 1 not tested. 1 of them by modelled times. At another size 1 came "
        "out the other way."
    )
    assert items[3].startswith(
        "Measured: 9 runs of 3 recipes on cifar10 (published), cifar100 (subset); machine 1: 2 CPU"
    )
    assert items[3].endswith(
        "Of these 0 had the machine to themselves, 0 had other programs beside them, and of 9 it "
        "was not recorded."
    )
    assert items[4:] == ("Stability: no warnings.",)


def _epochs(record: RunRecord) -> float:
    recipe = record.settings
    apart = recipe.num_workers * recipe.phase2.max_epochs if isinstance(recipe, SWAPRecipe) else 0
    return record.phase1_epochs + apart


STEP: dict[str, Any] = {
    **MICRO,
    "results": {
        "whole training, input included, batch 256": [
            timing("ours, 2 processes of 1 thread", [90.0, 100.0, 110.0]),
            timing("ours", [80.0, 80.0, 80.0]),
            timing("stock", [40.0, 50.0, 60.0], ratios=[2.25, 2.0, 1.8], is_headline=True),
            timing("roof: copy", [1.0e10] * 3, unit="bytes", ratios=[]),
        ],
        "the step, batch 256": [
            timing("ours", [90.0, 100.0, 110.0]),
            timing("torch", [50.0, 50.0, 50.0], ratios=[1.8, 2.0, 2.2]),
        ],
    },
}


def batches(*, is_headline: bool) -> list[dict[str, Any]]:
    return [
        timing("ours, tensor", [2000.0, 2000.0]),
        timing("ours, dali", [1000.0, 1000.0], ratios=[2.0, 2.0]),
        timing("theirs", [10.0, 20.0], ratios=[200.0, 100.0], is_headline=is_headline),
        timing("floor: read bytes, write values", [9000.0, 9000.0], ratios=[0.2, 0.2]),
    ]


DATA: dict[str, Any] = {
    **MICRO,
    "what": "data",
    "results": {
        "augmented batches, float32, 1 thread": batches(is_headline=False),
        "augmented batches, float32, 2 threads": batches(is_headline=True),
        "DALI's own, float32, 2 threads": batches(is_headline=False),
    },
}
ROWS = (
    (
        "whole training, input included, batch 256, ResNet-9 of width 16",
        *("A CPU, 2 threads", "100"),
        *("stock", "50", "2.00 (1.80 to 2.25)"),
    ),
    (
        *("augmented batches, float32, 2 threads, batch 256", "A CPU, 2 threads", "2,000"),
        *("theirs", "15", "150.00 (100.00 to 200.00)"),
    ),
)


def _table(folder: Path) -> Table | None:
    return speed_table(read_micro_records(folder)[0])


def test_whole_training_and_batches_of_all_threads_are_compared(tmp_path: Path) -> None:
    write(tmp_path, "a.json", DATA)
    write(tmp_path, "b.json", STEP)
    table = _table(tmp_path)
    assert table is not None
    assert table.rows == ROWS


def test_without_such_a_measurement_there_is_no_table(tmp_path: Path) -> None:
    assert _table(tmp_path) is None
    write(tmp_path, "a.json", MICRO)
    assert _table(tmp_path) is None


def test_it_stands_between_a_readmes_markers_if_there_are_any(tmp_path: Path) -> None:
    readme, results = tmp_path / "README.md", tmp_path / "results"
    rest = f"{BEGIN}\n{END}\n"
    readme.write_text(f"{rest}## Speed\n\n{SPEED_BEGIN}\nold\n{SPEED_END}\nBottom\n")
    update_readme(readme, collect(results))
    assert "No measurement has been recorded yet." in readme.read_text()
    write(results / "micro", "a.json", STEP)
    update_readme(readme, collect(results))
    text = readme.read_text()
    assert "2.00 (1.80 to 2.25)" in text
    assert "old" not in text
    assert text.endswith(f"{SPEED_END}\nBottom\n")
    readme.write_text(rest)
    update_readme(readme, collect(results))
    assert SPEED_BEGIN not in readme.read_text()


def test_swap_is_compared_in_its_own_precision() -> None:
    names = ("cifar10_cpu", "cifar10_sgd_small_cpu")
    fp32 = [make_record(name, seed) for name in names for seed in range(3)]
    execution = {**fp32[0].configuration["execution"], "precision": "bf16"}
    bf16 = [
        replace(r, configuration={**r.configuration, "execution": execution})
        for r in (make_record(name, 7) for name in names)
    ]
    table = overview(_content([*fp32, bf16[0]]))
    assert table is not None
    assert [(row[0], row[7], row[2]) for row in table.rows] == [
        ("Table 1 at CPU size, machine 1, bf16", "1", "—"),
        ("Table 1 at CPU size, machine 1, fp32", "3 and 3", "76.10 ± 0.10"),
    ]
    table = overview(_content([*fp32, *bf16]))
    assert table is not None
    assert [row[2] for row in table.rows] == ["76.70", "76.10 ± 0.10"]


def _content(records: list[RunRecord]) -> Content:
    return Content(
        results=Path(),
        paper=load_paper(),
        records=records,
        skipped=[],
        planes=[],
        cosines=[],
        micro=[],
        main=[],
        first_looks=[],
    )
