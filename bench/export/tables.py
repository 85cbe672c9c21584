"""Runs as CSV, and the paper's tables with ours as one LaTeX document. No torch."""

from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from bench.document.table import csv_text, to_latex
from bench.export.options import caveats_of
from bench.records.paper import load_paper
from bench.records.timing import dawnbench_time, energy_j, laps_of_slowest_rank
from bench.report.paper_tables import all_run_tables, recipe_tables
from swap_fast.record import EpochRow, RunRecord, flatten

# CSV: accuracies are fractions; units are in the names; what a run does not have is empty.

_NOT_FLAT = ("epochs", "average_by_epoch", "telemetry", "times", "configuration")
"""Fields of a record that are tables of their own, or get columns with other names."""

Cells = dict[str, Any]


def runs_csv(records: Sequence[RunRecord]) -> str:
    """One line a run. A run's dictionaries are spread out: `recipe.phase1.peak_lr`."""
    return _csv([_run(record) for record in records])


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
    return _csv(lines)


def _run(record: RunRecord) -> Cells:
    """All values of a record, and what tables read from it, under flat names."""
    values = {name: value for name, value in asdict(record).items() if name not in _NOT_FLAT}
    times = asdict(record.times)
    laps_seen = {name for rank in record.telemetry or () for name in rank.laps}
    first = {
        **{name: values.pop(name) for name in ("run_id", "recipe", "method", "seed", "created")},
        "dataset": record.settings.dataset,
        "comparable": record.comparable,
        "caveats": caveats_of(record),
        "time_to_target_s": dawnbench_time(record),
        "phase2_epochs": max((row.epoch for row in record.epochs if row.phase == 2), default=None),
        "energy_j": energy_j(record, sorted(laps_seen)),
    }
    settings = {name: record.configuration[name] for name in ("recipe", "execution")}
    return {
        **first,
        **flatten(values),
        **{n: v for n, v in times.items() if n.endswith("_s") and not isinstance(v, dict)},
        **{f"{name}_reading_s": seconds for name, seconds in times["readings_s"].items()},
        **{f"lap_{name}_s": seconds for name, seconds in laps_of_slowest_rank(record).items()},
        **flatten(settings),
    }


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


def _csv(lines: Sequence[Cells]) -> str:
    """All columns that any line has, in the order in which they first come."""
    columns = list(dict.fromkeys(name for line in lines for name in line))
    return csv_text(columns, [[_cell(line.get(column)) for column in columns] for line in lines])


_PREAMBLE = r"""\documentclass{article}
\usepackage[utf8]{inputenc}
\usepackage[T1]{fontenc}
\usepackage[landscape,margin=1.5cm]{geometry}
\usepackage{booktabs}
\usepackage{graphicx}
\begin{document}
"""
_END = "\\end{document}\n"


def latex(records: Sequence[RunRecord], results: Path, *, fragment: bool) -> str:
    """Tables 1 to 4 that these runs are in, then Tables 5 and 6 from the recipes.

    Arguments:
        results: may hold published figures of its own.
        fragment: only the tables, which need the packages booktabs and graphicx.
    """
    paper = load_paper(results)
    tables = [*all_run_tables(records, paper), *recipe_tables(paper)]
    if any(not record.comparable for record in records):
        tables += recipe_tables(paper, "cpu")
    body = "\n".join(to_latex(table, full_page=True) for table in tables)
    return body if fragment else _PREAMBLE + body + _END
