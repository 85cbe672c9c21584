"""`python -m bench export FORMAT RUN...`: finds the runs, hands them to the format. No torch."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from bench.document import Table, csv_text, figure_columns, one_line
from bench.export.options import (
    CsvOptions,
    DawnbenchOptions,
    ExportOptions,
    LatexOptions,
    MlperfOptions,
    OnnxOptions,
    caveats_of,
)
from bench.records.paper import load_paper
from bench.records.paper_tables import table_groups
from bench.records.timing import dawnbench_time, energy_j, laps_of_slowest_rank
from bench.report.content import collect
from bench.report.paper_tables import all_run_tables, recipe_tables
from swap_fast.choices import choose
from swap_fast.record import EpochRow, RunRecord, flatten
from swap_fast.record_files import read_record

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


# LaTeX.

_LATEX = {
    "\0": "{}",
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "±": r"$\pm$",
    "≥": r"$\geq$",
    "†": r"$\dagger$",
    "‡": r"$\ddagger$",
    "§": r"\S{}",
    "¶": r"\P{}",
    "—": "---",
}


def escape_latex(text: str) -> str:
    """The text as it is, on one line, in LaTeX's text mode.

    A character that no usual font has is shown by its number.
    """
    # Two hyphens would join to a dash.
    apart = re.sub(r"-(?=-)", "-\0", one_line(text))
    # A row's end takes what follows it for its own, be it in the next row.
    guard = "{}" if apart.lstrip()[:1] in ("[", "*") else ""
    return guard + "".join(
        _LATEX.get(character)
        or (character if character < "\u0180" else f"(U+{ord(character):04X})")
        for character in apart
    )


def to_latex(table: Table) -> str:
    """A `table` environment as wide as the text, with its notes below; in UTF-8.

    It needs the packages booktabs and graphicx.
    """

    def line(cells: Sequence[str]) -> str:
        return " & ".join(map(escape_latex, cells)) + r" \\"

    alignment = "".join("r" if is_right else "l" for is_right in figure_columns(table))
    title, *notes = map(escape_latex, (table.title, table.caption, *table.footnotes))
    lines = [
        r"\begin{table}[p]",
        r"\centering",
        rf"\caption{{{title}}}",
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
        *(rf"{note}\par" for note in notes),
        r"\end{minipage}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


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
    """Tables 1 to 4 that these runs are in, then Tables 5 and 6 from the recipes of their sizes.

    Arguments:
        results: may hold published figures of its own.
        fragment: only the tables, which need the packages booktabs and graphicx.
    """
    paper = load_paper(results)
    tables = [*all_run_tables(records, paper), *recipe_tables(paper)]
    for size in dict.fromkeys(group.size for group in table_groups(records)):
        tables += recipe_tables(paper, size) if size != "paper" else []
    body = "\n".join(to_latex(table) for table in tables)
    return body if fragment else _PREAMBLE + body + _END


Written = TypeVar("Written")


@dataclass(frozen=True, kw_only=True)
class ExportedRun:
    """A run, and where it is from."""

    record: RunRecord
    results: Path
    """The results folder, which may hold its weights."""

    @property
    def weights(self) -> Path:
        """The final model, whether the file is there or not."""
        return self.results / "checkpoints" / self.record.run_id / "final.safetensors"


def run_export(options: ExportOptions) -> int:
    """Write one format, and say what was written; the exit status.

    Raises:
        ValueError: no such run, a run that the format does not take, or a model that onnxruntime
            computes otherwise.
    """
    runs = find_runs(options.runs, options.results)
    if isinstance(options, CsvOptions):
        text = _of_whole(runs, epochs_csv if options.epochs else runs_csv)
        name = "epochs.csv" if options.epochs else "runs.csv"
        _write(options.out or options.results / "exports" / name, text)
    elif isinstance(options, LatexOptions):
        text = _of_whole(
            runs, lambda records: latex(records, options.results, fragment=options.fragment)
        )
        _write(options.out or options.results / "exports" / "tables.tex", text)
    elif isinstance(options, DawnbenchOptions):
        from bench.export.submissions import TARGETS, make_entry

        taken = _taken(
            runs, options, lambda run: run.record.data["name"] in TARGETS, "on cifar10 or imagenet"
        )
        for run in taken:
            entry = _of_whole([run], lambda records: make_entry(records[0], options))
            stem = _place(options, "dawnbench", entry.name, len(taken))
            stem = stem.with_suffix("") if stem.suffix in (".json", ".tsv") else stem
            _write(stem.with_name(stem.name + ".json"), entry.json_text())
            _write(stem.with_name(stem.name + ".tsv"), entry.tsv_text())
            if entry.caveats:
                print(f"  not an official entry: {'; '.join(entry.caveats)}")
    elif isinstance(options, MlperfOptions):
        from bench.export.submissions import mlperf_log

        for run in runs:
            log = _of_whole([run], lambda records: mlperf_log(records[0], options))
            _write(_place(options, "mlperf", f"{run.record.run_id}.log", len(runs)), log)
    else:
        assert isinstance(options, OnnxOptions), options
        from bench.export.onnx import export_final_model

        taken = _taken(runs, options, lambda run: run.weights.is_file(), "whose weights are kept")
        for run in taken:
            path = _place(options, "onnx", f"{run.record.run_id}.onnx", len(taken))
            print(export_final_model(run.record, run.weights, path, options), flush=True)
    return 0


def find_runs(names: Sequence[str], results: Path) -> list[ExportedRun]:
    """The runs that are named, each once, in the order of their names; or all, by recipe and seed.

    Arguments:
        names: paths of records, run ids, or recipes for all of their runs.

    Raises:
        ValueError: none of these, or a record that cannot be read.
    """
    content = collect(results)
    everything = [ExportedRun(record=record, results=results) for record in content.records]
    if not names or not all(name.endswith(".json") for name in names):
        for reason in content.skipped:
            print(f"left out: {reason}", file=sys.stderr)
    if not names:
        if not everything:
            raise ValueError(
                f"results: expected records in {results / 'runs'}, found none; `python -m bench "
                "run` writes one"
            )
        return everything
    found: dict[str, ExportedRun] = {}
    for name in names:
        if name.endswith(".json"):
            path = Path(name)
            record = read_record(path)
            named = [ExportedRun(record=record, results=path.resolve().parent.parent)]
        else:
            known = {run.record.run_id for run in everything}
            known |= {run.record.recipe for run in everything}
            chosen = choose("run", name, sorted(known))
            named = [r for r in everything if chosen in (r.record.run_id, r.record.recipe)]
        found |= {run.record.run_id: run for run in named}
    return list(found.values())


def _taken(
    runs: list[ExportedRun], options: ExportOptions, fits: Callable[[ExportedRun], bool], what: str
) -> list[ExportedRun]:
    """The runs that a format can be written of.

    Arguments:
        what: they are.

    Raises:
        ValueError: a run that was named is none of them, or no run is.
    """
    odd = [run.record.run_id for run in runs if not fits(run)]
    if odd and (options.runs or len(odd) == len(runs)):
        raise ValueError(f"run: expected one {what}, got {odd[0]}")
    return [run for run in runs if fits(run)]


def _of_whole(
    runs: Sequence[ExportedRun], make: Callable[[Sequence[RunRecord]], Written]
) -> Written:
    """What is made of records; one that a path named may hold anything.

    Raises:
        ValueError: what is in a field is not what it is for.
    """
    try:
        return make([run.record for run in runs])
    except (ArithmeticError, AttributeError, LookupError, TypeError) as error:
        names = ", ".join(str(run.record.run_id) for run in runs)
        raise ValueError(f"{names}: expected whole records, got {error!r}") from None


def _place(options: ExportOptions, folder: str, name: str, num_runs: int) -> Path:
    """Where one run's file goes: `--out` is the file, or the folder of several or of an old one."""
    name = re.sub(r"[^\w.-]", "-", name)  # a record may call its run what it likes
    if options.out is None:
        return options.results / "exports" / folder / name
    return options.out / name if num_runs > 1 or options.out.is_dir() else options.out


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    print(path, flush=True)
