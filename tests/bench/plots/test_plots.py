"""Figure 1 and the laps: what they draw, and what they refuse."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from record_factory import V100, make_record, with_recipe

from bench.plots.training import averages_shown, figure_1, parts_of, timing_figure
from swap_fast.config.phase import StagedPhase
from swap_fast.recipes.cifar10 import RECIPES
from swap_fast.record import AverageRow


def test_parts_of_staged_recipes_are_their_stages() -> None:
    parts = parts_of(RECIPES["imagenet_swap"]())
    # Protocol: 22 epochs at the large batches, then 6 at the small ones.
    assert [(p.phase, p.epochs[0], p.epochs[-1]) for p in parts] == [
        *((1, 0, 7), (1, 7, 13), (1, 13, 22), (2, 22, 25), (2, 25, 28))
    ]
    assert [p.batch_size for p in parts] == [8192, 8192, 3584, 1792, 1024]
    ends = [(p.rates[0], p.rates[-1]) for p in parts]
    assert ends == [
        pytest.approx(pair)
        for pair in ((2, 4), (4, 0.5), (0.875, 0.0875), (0.04375, 0.004375), (0.0025, 0.00025))
    ]


def test_parts_of_cycles_go_from_the_peak_to_zero() -> None:
    recipe = RECIPES["cifar100_swa_large"]()
    first, *cycles = parts_of(recipe)
    assert (first.epochs[-1], max(first.rates)) == (150, pytest.approx(1.2))
    assert [(c.epochs[0], c.epochs[-1]) for c in cycles] == [
        (start, start + 10) for start in range(150, 230, 10)
    ]
    assert all((c.rates[0], c.rates[-1]) == (1.2, pytest.approx(0)) for c in cycles)
    assert cycles[3].rates[len(cycles[3].rates) // 2] == pytest.approx(0.6)


def test_a_stopped_phase_1_is_left_where_it_stops() -> None:
    first, second = parts_of(RECIPES["cifar100_swap"](), 112)
    # From 1.2 at epoch 45 to 0 at 150, left at 112; phase 2 from 0.05 to 0 in ten epochs.
    assert (first.epochs[-1], first.rates[-1]) == (112, pytest.approx(1.2 * 38 / 105))
    assert (second.epochs[0], second.epochs[-1]) == (112, 122)
    assert (second.rates[0], second.rates[-1]) == (pytest.approx(0.05), pytest.approx(0))


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_parts_follow_every_recipes_own_schedule(name: str) -> None:
    recipe = RECIPES[name]()
    parts = [part for part in parts_of(recipe) if part.phase == 1]
    for part in parts:
        for epoch, rate in list(zip(part.epochs, part.rates, strict=True))[1:]:
            assert rate == recipe.phase1.schedule(epoch)
    stages = recipe.phase1.stages if isinstance(recipe.phase1, StagedPhase) else ()
    assert len(parts) == max(len(stages), 1)


def test_a_horizon_beyond_the_last_epoch_is_kept() -> None:
    first, _ = parts_of(RECIPES["cifar10_dawnbench"](), 28)
    # From 1.2 at 5.6 towards 0 at 30, left at 28.
    assert (first.epochs[0], first.rates[0], first.epochs[-1]) == (0, 0, 28)
    assert (max(first.rates), first.rates[-1]) == (
        pytest.approx(1.2),
        pytest.approx(1.2 * 2 / 24.4),
    )


def test_other_records_give_another_figure(tmp_path: Path) -> None:
    one = figure_1(make_record(), tmp_path, "one")
    two = figure_1(make_record(seed=5), tmp_path, "two")
    assert one.read_bytes() != two.read_bytes()


def test_figures_of_what_cannot_be_drawn_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a run of SWAP"):
        figure_1(make_record("cifar10_sgd_small_cpu"), tmp_path)
    with pytest.raises(ValueError, match="one kind of machine"):
        timing_figure([make_record(), make_record(machine=V100)], tmp_path)
    assert not list(tmp_path.iterdir())
    # Other numbers of one machine's devices are bars of one figure.
    runs = [make_record("cifar10_swap", machine=V100, world_size=ranks) for ranks in (2, 8)]
    assert timing_figure(runs, tmp_path).exists()


def test_names_are_no_mathematics(tmp_path: Path) -> None:
    # An odd dollar sign or an unknown command would end in an error.
    record = replace(make_record(), recipe=r"$\nonsense{_^ $")
    assert timing_figure([record], tmp_path).exists()


def test_style_of_the_process_is_left_alone(tmp_path: Path) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    figure_1(make_record(), tmp_path)
    assert dict(matplotlib.rcParams) == before


def test_of_stages_the_averages_of_the_last_size_alone_are_shown() -> None:
    base = make_record()
    stages = [{"epochs": 1, "image_size": 64}, {"epochs": 2, "image_size": 72}]
    record = replace(
        with_recipe(base, phase2=base.configuration["recipe"]["phase2"] | {"stages": stages}),
        average_by_epoch=[AverageRow(epoch=e, test_accuracy=0.5 + e / 100) for e in (1, 2, 3)],
    )
    assert [row.epoch for row in averages_shown(record)] == [2, 3]
    assert averages_shown(base) == base.average_by_epoch
