"""The paper's tables beside ours as one LaTeX document, with booktabs. No torch."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from bench.analysis.energy import energy_j
from bench.document.table import Table, escape_latex, figure_columns
from bench.export.options import caveats_of
from bench.records.grouping import recipe_of
from bench.records.paper import load_paper
from bench.records.timing import dawnbench_time, laps_of_slowest_rank
from bench.report.lists import recipe_tables
from bench.report.paper_tables import all_run_tables
from swap_fast.record import EpochRow, RunRecord

# Runs as CSV: one line a run with all that its record holds, or one line an epoch. No torch.
#
# Accuracies are fractions; units are in the names. What a run does not have is empty.


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
    """Tables 1 to 4 that these runs stand in, then Tables 5 and 6 from the recipes.

    Arguments:
        results: may hold published figures of its own.
        fragment: only the tables, which need the packages booktabs and graphicx.
    """
    paper = load_paper(results)
    tables = [*all_run_tables(records, paper), *recipe_tables(paper)]
    if any(not record.comparable for record in records):
        tables += recipe_tables(paper, "cpu")
    body = "\n".join(to_booktabs(table) for table in tables)
    return body if fragment else _PREAMBLE + body + _END


def to_booktabs(table: Table) -> str:
    """A `table` environment, as wide as the text, its notes below it."""

    def line(cells: Sequence[str]) -> str:
        return " & ".join(latex_text(cell) for cell in cells) + r" \\"

    alignment = "".join("r" if is_right else "l" for is_right in figure_columns(table))
    notes = [rf"{latex_text(note)}\par" for note in (table.caption, *table.footnotes)]
    lines = [
        r"\begin{table}[p]",
        r"\centering",
        rf"\caption{{{latex_text(table.title)}}}",
        rf"\label{{tab:{table.name.replace('_', '-')}}}",
        r"\resizebox{\textwidth}{!}{%",
        rf"\begin{{tabular}}{{{alignment}}}",
        r"\toprule",
        line(table.columns),
        r"\midrule",
        *(line(row) for row in table.rows),
        r"\bottomrule",
        r"\end{tabular}}",
        r"\par\smallskip",
        r"\begin{minipage}{\textwidth}\footnotesize",
        *notes,
        r"\end{minipage}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def latex_text(text: str) -> str:
    """Escaped text; a character that no usual font has is told by its number."""
    return "".join(
        character if ord(character) < 0x180 else f"(U+{ord(character):04X})"
        for character in escape_latex(text)
    )
