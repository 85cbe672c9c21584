"""Names and values of a grid: typed and checked by the recipe before anything runs."""

import pytest

from bench.cli import parse
from bench.search.grid import as_flags, describe, parse_grid, recipe_at
from swap_fast.recipes.cifar10 import cifar10_cpu, cifar10_sgd_small_cpu

RECIPE = cifar10_cpu()


def test_points_are_the_product_of_typed_values() -> None:
    grid = parse_grid(RECIPE, ["peak_lr=0.5,1", "stopping-accuracy=0.6,none", "width= 8"])
    assert grid.values == {
        "phase1.peak_lr": (0.5, 1.0),
        "phase1.stopping_accuracy": (0.6, None),
        "width": (8,),
    }
    assert [tuple(point.values()) for point in grid.points] == [
        (0.5, 0.6, 8),
        (0.5, None, 8),
        (1.0, 0.6, 8),
        (1.0, None, 8),
    ]
    assert [type(value) for value in grid.points[0].values()] == [float, float, int]
    assert describe(grid.points[1]) == "peak_lr=0.5, stopping_accuracy=None, width=8"


def test_each_type_of_setting() -> None:
    grid = parse_grid(
        RECIPE, ["nesterov=true,false", "net=resnet9", "num_workers=4", "phase2.peak_lr=1e-3"]
    )
    assert grid.values == {
        "optimizer.nesterov": (True, False),
        "net": ("resnet9",),
        "num_workers": (4,),
        "phase2.peak_lr": (0.001,),
    }


def test_settings_that_depend_on_each_other_are_changed_together() -> None:
    point = {"num_workers": 2, "phase1.gpus_per_model": 2}
    changed = recipe_at(RECIPE, point)
    assert (changed.num_workers, changed.phase1.gpus_per_model) == (2, 2)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("texts", "line"),
    [
        ([], "search: expected --grid NAME=VALUE,VALUE once or more, got none"),
        (["peak_lr"], "--grid: expected NAME=VALUE,VALUE, got 'peak_lr'"),
        (["peek_lr=1"], "unknown setting 'peek_lr'; did you mean peak_lr"),
        (["phase1.peek_lr=1"], "unknown setting 'phase1.peek_lr'; did you mean phase1.peak_lr"),
        (["name=a"], "unknown setting 'name'"),
        (["dataset=cifar10"], "unknown setting 'dataset'"),
        (["peak_lr=fast"], "--grid phase1.peak_lr: expected numbers, got 'fast'"),
        (["peak_lr=1,"], "--grid phase1.peak_lr: expected numbers, got ''"),
        (["peak_lr=inf"], "--grid phase1.peak_lr: expected numbers, got 'inf'"),
        (["width=8.5"], "--grid width: expected whole numbers, got '8.5'"),
        (["nesterov=maybe"], "unknown value of optimizer.nesterov 'maybe'"),
        (["net=resnet8"], "unknown value of net 'resnet8'; did you mean resnet9"),
        (["width=8,8"], "--grid width: expected each value once, got 8,8"),
        (["peak_lr=1", "phase1.peak-lr=2"], "expected each setting once, got phase1.peak_lr twice"),
        (["peak_lr=1,-1"], "--grid: peak_lr=-1: peak_lr: expected a finite number > 0, got -1.0"),
        (["num_workers=2"], "--grid: num_workers=2: phase1.gpus_per_model: expected"),
    ],
)
def test_what_cannot_be_searched_gets_one_line(texts: list[str], line: str) -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011
        parse_grid(RECIPE, texts)
    assert line in str(refused.value)
    assert "\n" not in str(refused.value)


def test_sgd_has_no_setting_of_phase_2() -> None:
    with pytest.raises(ValueError, match=r"unknown setting 'num_workers'"):
        parse_grid(cifar10_sgd_small_cpu(), ["num_workers=2"])


def test_flags_give_the_same_recipe_to_the_run_command() -> None:
    (point,) = parse_grid(
        RECIPE,
        ["peak_lr=0.1", "nesterov=false", "stopping_accuracy=none", "keep_momentum=true"],
    ).points
    parsed = parse("run", RECIPE.name, RECIPE, as_flags(point))
    assert parsed.recipe == recipe_at(RECIPE, point)
