"""`python -m bench compare A B`: which runs they are, and where the comparison goes. No torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from swap_fast.choices import choose

if TYPE_CHECKING:
    from bench.report.comparison import Comparison, Side
    from swap_fast.record import RunRecord


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """Compare two groups of runs: accuracies, times, laps, settings, machines.

    A and B are each a recipe or a run of RESULTS, a record's path, or a results folder; of two
    folders every recipe that both hold is compared.
    """

    first: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="A")]
    """What B is compared with."""
    second: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="B")]
    """Its times are divided by A's, and A's accuracy is subtracted from its."""
    results: Path = Path("results")
    """Results folder in which recipes and runs are looked for."""
    json: bool = False
    """Print JSON in place of tables."""
    html: Path | None = None
    """Also write the comparison as a page of its own."""


def compare_runs(options: CompareOptions) -> int:
    """Print the comparison of A and B.

    Raises:
        ValueError: no such runs, or runs that cannot be put together.
    """
    from bench.report.comparison import compare, comparison_json, comparison_tables, sides_line

    found = [compare(a, b) for a, b in pair_sides(options.first, options.second, options.results)]
    if options.html is not None:
        _write_page(found, f"{options.first} and {options.second}", options.html)
    if options.json:
        print(json.dumps([comparison_json(each) for each in found], indent=1))
        return 0
    from rich.console import Console
    from rich.text import Text

    from bench.document import show_table

    console = Console()
    for each in found:
        console.print(Text(sides_line(each)))
        for caution in each.cautions:
            console.print(Text(caution, style="bold"))
        for table in comparison_tables(each):
            show_table(table, console)
    if options.html is not None:
        console.print(Text(f"page: {options.html}"))
    return 0


def _write_page(found: Sequence[Comparison], title: str, path: Path) -> None:
    from bench.document import Document, Paragraph, Section, document_to_html
    from bench.report.comparison import comparison_tables

    sections = []
    for each in found:
        cautions = (Paragraph(text=caution, strong=True) for caution in each.cautions)
        names = f"{each.first.name} and {each.second.name}"
        sections.append(Section(title=names, blocks=(*cautions, *comparison_tables(each))))
    page = document_to_html(Document(title=title, opening=(), sections=tuple(sections)))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8", newline="\n")


def pair_sides(first: str, second: str, results: Path) -> list[tuple[Side, Side]]:
    """The pairs to compare: one, or one for each recipe that two folders share.

    Raises:
        ValueError: no such runs, or no recipe that both have.
    """
    from bench.report.comparison import Side

    sides = [(name, Path(name).is_dir(), _runs_of(name, results)) for name in (first, second)]
    if not any(is_folder for _, is_folder, _ in sides):
        a, b = (Side(name=name, runs=tuple(runs)) for name, _, runs in sides)
        return [(a, b)]
    recipes = [{run.recipe for run in runs} for _, _, runs in sides]
    pairs = []
    for recipe in sorted(recipes[0] & recipes[1]):
        a, b = (
            Side(
                name=f"{name}: {recipe}" if is_folder else name,
                runs=tuple(run for run in runs if run.recipe == recipe),
            )
            for name, is_folder, runs in sides
        )
        pairs.append((a, b))
    if not pairs:
        raise ValueError(f"expected a recipe that {first} and {second} both ran, found none")
    return pairs


def _runs_of(name: str, results: Path) -> list[RunRecord]:
    """The runs that a name, a path or a folder stands for."""
    from swap_fast.record import read_record

    path = Path(name)
    if path.is_dir():
        return _records_in(path)
    if path.is_file():
        return [read_record(path)]
    records = _records_in(results)
    names = [run.recipe for run in records] + [run.run_id for run in records]
    chosen = choose("run or recipe", name, dict.fromkeys(names))
    return [run for run in records if chosen in (run.recipe, run.run_id)]


def _records_in(results: Path) -> list[RunRecord]:
    from bench.report.content import collect

    records = collect(results).records
    if not records:
        raise ValueError(f"{results}: expected records in {results / 'runs'}, found none")
    return records
