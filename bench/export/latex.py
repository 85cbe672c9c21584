"""The paper's tables beside ours as one LaTeX document, with booktabs. No torch."""

from collections.abc import Sequence
from pathlib import Path

from bench.document.table import Table, escape_latex, figure_columns
from bench.records.paper import load_paper
from bench.report.paper_tables import all_run_tables
from bench.report.recipe_tables import recipe_tables
from swap_fast.record import RunRecord

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
