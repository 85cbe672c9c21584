"""A table on the screen: all of it where there is room, else its main columns."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from bench.document.table import Table
from bench.records.grouping import CORES_HEAD, GPUS_HEAD

if TYPE_CHECKING:
    from rich.console import Console

WIDE = 120
"""Characters of a screen that has room for all columns."""

_LEFT_OUT = frozenset(
    {
        "n",
        "Ours: 95% interval (%)",
        "Verdict",
        "Phase 1 (mean epochs)",
        "Machine",
        "Devices",
        CORES_HEAD,
        GPUS_HEAD,
        "Source",
        "Note",
        "Recipe",
        "Phase 1 ended by",
        "Phase 1 (epochs)",
    }
)
"""Columns that a narrower one has no room for: the report has them."""

_LEFT_OUT_IF_TIGHT = "Runs at target"
"""Likewise, where the words of what is left are too wide still."""


def show_table(table: Table, console: Console) -> None:
    """Print a table and its footnotes."""
    from rich import box
    from rich.table import Table as ScreenTable
    from rich.text import Text

    # Text, not str: a name with brackets is no markup.
    screen = ScreenTable(title=Text(table.title), title_justify="left", box=box.SIMPLE_HEAD)
    left_out = _LEFT_OUT if console.width < WIDE else frozenset()
    kept = [i for i, column in enumerate(table.columns) if column not in left_out]
    cells = [[column[i] for column in (table.columns, *table.rows)] for i in kept]
    if sum(_longest_word(each) + 2 for each in cells) > console.width:
        kept = [i for i in kept if table.columns[i] != _LEFT_OUT_IF_TIGHT]
        cells = [[column[i] for column in (table.columns, *table.rows)] for i in kept]
    tight = sum(max(map(len, each)) + 2 for each in cells) > console.width
    for i, each in zip(kept, cells, strict=True):
        screen.add_column(
            Text(table.columns[i]),
            justify="left" if i == 0 else "right",
            # Where not all fits, lines break between words, and within none but long names.
            width=min(_longest_word(each), 40 if i == 0 else 12) if tight else None,
            overflow="fold",
        )
    for row in table.rows:
        screen.add_row(*(Text(row[i]) for i in kept))
    console.print(screen)
    for note in table.footnotes:
        console.print(Text(note))


def _longest_word(texts: Iterable[str]) -> int:
    return max(len(word) for text in texts for word in text.split())
