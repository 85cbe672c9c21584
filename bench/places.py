"""Which table a run belongs in, and the number of the machine that it ran on. No torch."""

from collections.abc import Iterable
from typing import Literal

from bench.stats import MachineKey, machine_key, recipe_of, why_not_comparable
from swap_fast.record import RunRecord

Place = Literal["table1", "table1_cpu", "time_to_target", "other"]
"""Table 1 of the paper's size or at CPU size, the times to an accuracy, or none of them."""

TABLE_1_RECIPES = {
    "table1": {
        "small": "cifar10_sgd_small",
        "large": "cifar10_sgd_large",
        "swap": "cifar10_swap",
    },
    "table1_cpu": {
        "small": "cifar10_sgd_small_cpu",
        "large": "cifar10_sgd_large_cpu",
        "swap": "cifar10_cpu",
    },
}
"""Whose runs stand in Table 1's rows, at the paper's size and at CPU size."""


def place_of(record: RunRecord) -> Place:
    """Which table a run belongs in."""
    if why_not_comparable(record) is not None:
        return "other"
    if record.recipe in TABLE_1_RECIPES["table1_cpu"].values():
        return "table1_cpu"
    if record.comparable and record.recipe in TABLE_1_RECIPES["table1"].values():
        return "table1"
    if record.comparable and recipe_of(record)["dataset"] == "cifar10":
        return "time_to_target"
    return "other"


def why_other(record: RunRecord) -> str:
    """Why a run stands in the list of other runs."""
    return why_not_comparable(record) or "no published figure for this recipe"


def number_machines(records: Iterable[RunRecord]) -> dict[MachineKey, int]:
    """Kinds of machine, numbered from 1 in a fixed order."""
    return {key: i for i, key in enumerate(sorted({machine_key(r) for r in records}), start=1)}
