"""Figure 1 and the laps: what they draw, and what they refuse."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from record_factory import V100, make_record, with_recipe

from bench.plots.training import averages_shown, figure_1, learning_rate_curves, timing_figure
from swap_fast.record import AverageRow


def test_learning_rate_by_hand() -> None:
    # Phase 1: up to 1.0 at 1.5 epochs, then towards 0 at 8; left at 5. Phase 2: 0.1 to 0 in 2.
    record = with_recipe(
        make_record(),
        phase1={"peak_lr": 1.0, "warmup_epochs": 1.5, "horizon_epochs": None, "max_epochs": 8,
                "final_lr": 0.0},
        phase2={"peak_lr": 0.1, "warmup_epochs": 0.0, "horizon_epochs": None, "max_epochs": 2,
                "final_lr": 0.0},
    )  # fmt: skip
    (first, first_rates), (second, second_rates) = learning_rate_curves(record)
    assert (first[0], first[-1], second[0], second[-1]) == (0.0, 5.0, 5.0, 7.0)
    assert first_rates[0] == 0.0
    assert first_rates[first.index(0.5)] == pytest.approx(1 / 3)
    assert first_rates[first.index(1.5)] == 1.0
    assert first_rates[-1] == pytest.approx(3 / 6.5)
    assert second_rates[0] == 0.1
    assert second_rates[second.index(6.0)] == pytest.approx(0.05)
    assert second_rates[-1] == 0.0
    assert len(first) > 100


def test_cycles_begin_at_the_peak_again() -> None:
    # Two cycles of one epoch, each from 0.1 to 0.
    phase2 = {**make_record().configuration["recipe"]["phase2"], "peak_lr": 0.1, "cycles": 2}
    _, (epochs, rates) = learning_rate_curves(with_recipe(make_record(), phase2=phase2))
    start = epochs[0]
    assert [rates[epochs.index(start + x)] for x in (0, 0.5, 1.0, 1.5, 2.0)] == pytest.approx(
        [0.1, 0.05, 0.0, 0.05, 0.0]
    )


def test_horizon_beyond_the_last_epoch_is_kept() -> None:
    record = make_record("cifar10_dawnbench")
    (epochs, rates), _ = learning_rate_curves(replace(record, phase1_epochs=28))
    # From 1.2 at 5.6 towards 0 at 30, left at 28.
    assert epochs[-1] == 28.0
    assert rates[-1] == pytest.approx(1.2 * 2 / 24.4)


def test_other_records_give_another_figure(tmp_path: Path) -> None:
    one, _ = figure_1(make_record(), tmp_path, "one")
    two, _ = figure_1(make_record(seed=5), tmp_path, "two")
    assert one.read_bytes() != two.read_bytes()


def test_figures_of_what_cannot_be_drawn_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a run of SWAP"):
        figure_1(make_record("cifar10_sgd_small_cpu"), tmp_path)
    with pytest.raises(ValueError, match="one kind of machine"):
        timing_figure([make_record(), make_record(machine=V100)], tmp_path)
    assert not list(tmp_path.iterdir())
    # Other numbers of one machine's devices are bars of one figure.
    runs = [make_record("cifar10_swap", machine=V100, world_size=ranks) for ranks in (2, 8)]
    assert len(timing_figure(runs, tmp_path)) == 2


def test_names_are_no_mathematics(tmp_path: Path) -> None:
    # An odd dollar sign or an unknown command would end in an error.
    record = replace(make_record(), recipe=r"$\nonsense{_^ $")
    assert timing_figure([record], tmp_path)[0].exists()


def test_style_of_the_process_is_left_alone(tmp_path: Path) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    figure_1(make_record(), tmp_path)
    assert dict(matplotlib.rcParams) == before


def test_stages_have_a_straight_piece_each_and_averages_of_the_last_size_only() -> None:
    def stage(epochs: int, size: int, first: float, last: float) -> dict[str, float]:
        return {"epochs": epochs, "image_size": size, "first_lr": first, "last_lr": last}

    base = make_record()
    recipe = base.configuration["recipe"]
    first, second = (
        recipe["phase1"] | {"stages": [stage(2, 48, 0.1, 0.4), stage(3, 64, 0.2, 0.1)]},
        recipe["phase2"] | {"stages": [stage(1, 64, 0.05, 0.02), stage(2, 72, 0.02, 0.01)]},
    )
    record = replace(
        with_recipe(base, phase1=first, phase2=second),
        phase1_epochs=5,
        average_by_epoch=[AverageRow(epoch=e, test_accuracy=0.5 + e / 100) for e in (1, 2, 3)],
    )
    assert learning_rate_curves(record) == [
        ([0, 2], [0.1, 0.4]),
        ([2, 5], [0.2, 0.1]),
        ([5, 6], [0.05, 0.02]),
        ([6, 8], [0.02, 0.01]),
    ]
    assert [row.epoch for row in averages_shown(record)] == [2, 3]
    assert averages_shown(base) == base.average_by_epoch
