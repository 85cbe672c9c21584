"""Section 4.1: independent runs compared with one run's samples, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from record_factory import make_record, with_recipe

from bench.document import Paragraph, Table
from bench.report.sampling import sampled, sampling_blocks
from swap_fast.record import RunRecord

TRIPLE = [[1.0, 0.3, 0.5], [0.3, 1.0, 0.1], [0.5, 0.1, 1.0]]


def _parallel(seed: int, accuracy: float) -> RunRecord:
    record = make_record("cifar100_swap_cpu", seed, test_accuracy=accuracy)
    phase2 = {**record.configuration["recipe"]["phase2"], "max_epochs": 2, "cycles": 1}
    return with_recipe(
        replace(
            record,
            displacement_norms=[1.0, 2.0, 3.0],
            displacement_cosines=TRIPLE,
            pairwise_distances=[[0.0, 2.0, 4.0], [2.0, 0.0, 6.0], [4.0, 6.0, 0.0]],
        ),
        phase2=phase2,
        num_workers=4,
    )


def _sequential(seed: int, accuracy: float, *, epochs: int = 8) -> RunRecord:
    record = make_record("cifar100_swa_large_small_cpu", seed)
    phase1 = record.configuration["recipe"]["phase1"]
    phase2 = {**phase1, "warmup_epochs": 0.0, "max_epochs": epochs, "cycles": 4}
    return with_recipe(
        replace(record, method="swa", accuracy_before_averaging=0.70, test_accuracy=accuracy),
        phase2=phase2,
    )


def test_means_by_hand() -> None:
    one = sampled(_parallel(0, 0.8))
    assert (one.models, one.epochs, one.distance, one.norm) == (4, 2.0, 4.0, 2.0)
    assert one.cosine == pytest.approx(0.3)
    other = sampled(_sequential(0, 0.8))
    assert (other.models, other.epochs) == (4, 2.0)
    assert (other.distance, other.norm, other.cosine) == (None, None, None)
    with pytest.raises(ValueError, match="one of SGD"):
        sampled(make_record("cifar10_sgd_small_cpu"))


def test_table_and_sentence() -> None:
    runs = [_parallel(s, 0.80 + s / 1000) for s in (0, 1, 2)]
    runs += [_sequential(s, 0.79 + s / 1000 + s * s / 10000) for s in (0, 1, 2)]
    table, sentence = sampling_blocks(runs)
    assert isinstance(table, Table)
    assert isinstance(sentence, Paragraph)
    assert table.name == "sampling_cpu_1"
    assert [(row[0], row[1]) for row in table.rows] == [
        (label, seed)
        for label in ("independent workers", "samples of one run")
        for seed in ("0", "1", "2", "mean")
    ]
    mean = dict(zip(table.columns, table.rows[3], strict=True))
    assert mean["After averaging (%)"] == "80.10 ± 0.10"
    assert (mean["Distance"], mean["Cosine of displacements"]) == ("4.000 ± 0.000", "0.300 ± 0.000")
    assert dict(zip(table.columns, table.rows[-1], strict=True))["Displacement norm"] == "—"
    assert sentence.text.startswith("At equal epochs, 4 models of 2 epochs each: ")
    assert " is higher than that of one run's samples: 80.10% against 79.12%" in sentence.text
    assert "paired t, by seed" in sentence.text


def test_other_outcomes_of_the_sentence() -> None:
    def said(*runs: RunRecord) -> str:
        _, sentence = sampling_blocks(runs)
        assert isinstance(sentence, Paragraph)
        return sentence.text

    lower = [_parallel(s, 0.70) for s in (0, 1)] + [_sequential(s, 0.80 + s / 1e3) for s in (0, 1)]
    assert "is lower than" in said(*lower)
    assert "not distinguishable from that of one run's samples at n = 1" in said(
        _parallel(0, 0.7), _sequential(0, 0.8)
    )
    text = said(_parallel(0, 0.7), _sequential(0, 0.8, epochs=12))
    assert text.startswith("Not at equal epochs (4 models of 2 epochs, and 4 of 3): ")
    assert "are not put together" in said(
        _parallel(0, 0.7), with_recipe(_parallel(1, 0.7), keep_momentum=True), _sequential(0, 0.8)
    )


def test_one_kind_alone_gives_no_table() -> None:
    assert sampling_blocks([_parallel(0, 0.8), make_record()]) == []
