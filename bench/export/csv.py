"""Runs as CSV: one line a run with all that its record holds, or one line an epoch. No torch.

Accuracies are fractions; units are in the names. What a run does not have is empty.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from bench.analysis.energy import energy_j
from bench.export.caveats import caveats_of
from bench.records.grouping import recipe_of
from bench.records.timing import dawnbench_time, laps_of_slowest_rank
from swap_fast.record import EpochRow, RunRecord

_TABLES = ("epochs", "average_by_epoch", "telemetry", "times")
"""What a record holds that is more than a value: tables of their own, or told otherwise."""

Cells = dict[str, Any]


def runs_csv(records: Sequence[RunRecord]) -> str:
    """One line a run. A run's dictionaries are spread out: `recipe.phase1.peak_lr`."""
    return _table([_run(record) for record in records])


def epochs_csv(records: Sequence[RunRecord]) -> str:
    """One line an epoch of each model, and of phase 2's running average (Figure 1)."""
    lines = []
    for record in records:
        run = {"run_id": record.run_id, "recipe": record.recipe, "seed": record.seed}
        for row in record.epochs:
            model = "phase 1" if row.phase == 1 else f"worker {row.worker}"
            lines.append(run | {"model": model} | asdict(row))
        for average in record.average_by_epoch:
            known = {"phase": 2, "worker": None} | asdict(average)
            empty: Cells = {each.name: None for each in fields(EpochRow)}
            lines.append(run | {"model": "average"} | empty | known)
    return _table(lines)


def _run(record: RunRecord) -> Cells:
    """All values of a record, and what tables read from it, under flat names."""
    told = {name: value for name, value in asdict(record).items() if name not in _TABLES}
    configuration = told.pop("configuration")
    times = record.times
    readings = {f"{name}_reading_s": seconds for name, seconds in times.readings_s.items()}
    laps = {f"lap_{name}_s": seconds for name, seconds in laps_of_slowest_rank(record).items()}
    clock = {
        each.name: getattr(times, each.name)
        for each in fields(times)
        if each.name.endswith("_s") and not isinstance(getattr(times, each.name), dict)
    }
    laps_seen = {name for rank in record.telemetry or () for name in rank.laps}
    first = {
        **{name: told.pop(name) for name in ("run_id", "recipe", "method", "seed", "created")},
        "dataset": recipe_of(record)["dataset"],
        "comparable": record.comparable,
        "caveats": caveats_of(record),
        "time_to_target_s": dawnbench_time(record),
        "phase2_epochs": max((row.epoch for row in record.epochs if row.phase == 2), default=None),
        "energy_j": energy_j(record, sorted(laps_seen)),
    }
    settings = {"recipe": configuration["recipe"], "execution": configuration["execution"]}
    return {**first, **_spread(told), **clock, **readings, **laps, **_spread(settings)}


def _spread(values: Mapping[str, Any], at: str = "") -> Cells:
    """Dictionaries within dictionaries as one, its names joined by dots."""
    cells: Cells = {}
    for name, value in values.items():
        if isinstance(value, dict):
            cells |= _spread(value, f"{at}{name}.")
        else:
            cells[f"{at}{name}"] = value
    return cells


def _cell(value: Any) -> str:
    """A value as text; a list's values apart by semicolons, within brackets where they nest."""
    if value is None:
        return ""
    if isinstance(value, list):
        nested = (f"[{_cell(each)}]" if isinstance(each, list) else _cell(each) for each in value)
        return "; ".join(nested)
    if isinstance(value, dict):
        return "; ".join(f"{name}={_cell(each)}" for name, each in value.items())
    return str(value)


def _table(lines: Sequence[Cells]) -> str:
    """All columns that any line has, in the order in which they first come."""
    columns = list(dict.fromkeys(name for line in lines for name in line))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_cell(line.get(column)) for column in columns] for line in lines)
    return text.getvalue()
