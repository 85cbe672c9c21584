"""A report and its tables as data, and their forms. No torch.

A table is Markdown, CSV or lines on the screen; a report is Markdown or one HTML file, by
the template document.html.jinja. The texts hold no markup: each form escapes them.
"""

from __future__ import annotations

import base64
import csv
import html
import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TextIO, TypeVar

from bench.statistics import Interval, Summary

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")

NOTHING = "—"
"""A cell that has no value."""

EMULATED, UNSTABLE, SHARED, OTHER_WORK = "†", "‡", "§", "¶"
"""Marks behind a time."""
MARKS = {
    EMULATED: "emulated_workers: fewer processes than the recipe's devices, whose replicas or "
    "workers take turns.",
    SHARED: "shared phase 1: taken from another run of the same seed, its time added as it was "
    "measured there.",
    OTHER_WORK: "other_work: other programs ran on the machine meanwhile, in every run of the row.",
    UNSTABLE: "unstable: the standard deviation is 10% of the mean or more.",
}
"""What each says, in the order of the footnotes."""

_MARKDOWN_BACKSLASHED = re.compile(r"([\\|_*`$~#\[\]])")
_NUMBER = r"-?\d[\d,]*(\.\d+)?"
_FIGURE = re.compile(
    rf"{NOTHING}|{_NUMBER}( ± \d+\.\d+| to {_NUMBER})? ?[{''.join(MARKS)}*]*( \(\d+ of \d+\))?"
)
_MARKDOWN_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table, built once and rendered in several ways. All text is plain, not yet escaped."""

    name: str
    """The name of its files."""
    title: str
    caption: str
    """What a reader must know before the figures."""
    columns: tuple[str, ...]
    """Heads, with units."""
    rows: tuple[tuple[str, ...], ...]
    footnotes: tuple[str, ...] = ()
    """What the cells' marks mean."""
    details: tuple[str, ...] = ()
    """Columns that a narrow screen leaves out."""

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.columns) for row in self.rows), self.name


def rows_of(
    columns: Mapping[str, Callable[[T], str]], items: Iterable[T]
) -> tuple[tuple[str, ...], ...]:
    """A row an item: each column says how its cell is made."""
    return tuple(tuple(cell(item) for cell in columns.values()) for item in items)


WIDE = 120
"""Characters of a screen that has room for all columns."""


@lru_cache(maxsize=10_000)  # a long table repeats most of its cells
def escape_markdown(text: str) -> str:
    """The text as it is, on one line, in a Markdown cell or sentence."""
    text = "".join(_MARKDOWN_ENTITIES.get(character, character) for character in one_line(text))
    return _MARKDOWN_BACKSLASHED.sub(r"\\\1", text)


def to_markdown(table: Table) -> str:
    """Title, caption, a pipe table, footnotes."""
    return "".join(markdown_lines(table))


def markdown_lines(table: Table) -> Iterator[str]:
    """The lines of `to_markdown`, each with its end; one by one, as a table may have 100,000."""
    right = figure_columns(table)
    widths = [max(3, *(len(escape_markdown(cell)) for cell in each)) for each in _columns(table)]
    if sum(widths) > WIDE:  # no editor shows such lines under one another
        widths = [3] * len(widths)

    def line(cells: Sequence[str]) -> str:
        aligned = (
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(cells, widths, right, strict=True)
        )
        return f"| {' | '.join(aligned)} |\n"

    yield f"**{escape_markdown(table.title)}**\n\n{escape_markdown(table.caption)}\n\n"
    yield line([escape_markdown(column) for column in table.columns])
    yield line(
        ["-" * (n - is_right) + ":" * is_right for n, is_right in zip(widths, right, strict=True)]
    )
    for row in table.rows:
        yield line([escape_markdown(cell) for cell in row])
    if table.footnotes:
        yield "\n" + "<br>\n".join(map(escape_markdown, table.footnotes)) + "\n"


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A CSV file's text, as `write_csv` writes it."""
    text = io.StringIO()
    write_csv(columns, rows, text)
    return text.getvalue()


def write_csv(columns: Sequence[str], rows: Iterable[Sequence[str]], file: TextIO) -> None:
    """Write the heads, then the rows.

    Text that a spreadsheet would run as a formula gets an apostrophe before it.
    """
    cells = ([_inert(cell) for cell in row] for row in (columns, *rows))
    csv.writer(file, lineterminator="\n").writerows(cells)


_NUMBERS = re.compile(r"[-+]?[\d.,]+(e[-+]?\d+)?%?( \w+ [-+]?[\d.,]+%?)?")
"""A number, or an interval."""


def _inert(cell: str) -> str:
    is_formula = cell.startswith(tuple("=+-@\t\r")) and not _NUMBERS.fullmatch(cell)
    return f"'{cell}" if is_formula else cell


def counted(number: int, noun: str, ending: str = "s") -> str:
    """ "1 thread", "2 threads"."""
    return f"{number} {noun}{'' if number == 1 else ending}"


def percent(fraction: float, decimals: int = 2) -> str:
    """A fraction as percent, without the sign."""
    return f"{100 * fraction:.{decimals}f}"


def plus_minus(mean: float, std: float | None, decimals: int = 2) -> str:
    """`mean ± std`, or the mean alone where there is no deviation."""
    text = f"{mean:.{decimals}f}"
    return text if std is None else f"{text} ± {std:.{decimals}f}"


def number_cell(value: float | None, decimals: int = 2, *, factor: float = 1) -> str:
    """A number times the factor, or NOTHING."""
    return NOTHING if value is None else f"{factor * value:.{decimals}f}"


def summary_cell(summary: Summary | None, factor: float = 1, decimals: int = 2) -> str:
    """`mean ± std`, each times the factor; NOTHING without a summary."""
    if summary is None:
        return NOTHING
    std = None if summary.std is None else factor * summary.std
    return plus_minus(factor * summary.mean, std, decimals)


def mark_notes(rows: Iterable[Sequence[str]]) -> list[str]:
    """The footnotes of those marks that the rows hold."""
    text = "".join(cell for row in rows for cell in row)
    return [f"{mark} {note}" for mark, note in MARKS.items() if mark in text]


def interval_cell(interval: Interval | None, factor: float = 1, decimals: int = 2) -> str:
    """`low to high`, each times the factor."""
    if interval is None:
        return NOTHING
    low, high = (f"{factor * end:.{decimals}f}" for end in (interval.low, interval.high))
    return f"{low} to {high}"


def figure_columns(table: Table) -> list[bool]:
    """Which columns hold figures alone, and are set to the right."""
    return [_is_of_figures(column[1:]) for column in _columns(table)]


def _columns(table: Table) -> list[tuple[str, ...]]:
    """Each head with the cells below it."""
    return list(zip(table.columns, *table.rows, strict=True))


def _is_of_figures(cells: Sequence[str]) -> bool:
    return bool(cells) and all(map(_FIGURE.fullmatch, cells))


def one_line(text: str) -> str:
    """Without line ends and other control characters, which would end a cell or a comment."""
    return "".join(character if character.isprintable() else " " for character in text)


def show_table(table: Table, console: Console) -> None:
    """Print a table and its footnotes; on a narrow screen without its details, and in parts."""
    from rich import box
    from rich.table import Table as ScreenTable
    from rich.text import Text

    left_out = table.details if console.width < WIDE else ()
    shown = [column for column in _columns(table) if column[0] not in left_out]
    # Text, not str: a name with brackets is no markup.
    console.print(Text(table.title, style="italic"))
    for part in _parts(shown, console.width):
        screen = ScreenTable(box=box.SIMPLE_HEAD)
        for column, width in zip(part, _widths(part, console.width), strict=True):
            justify: Literal["left", "right"] = "right" if _is_of_figures(column[1:]) else "left"
            screen.add_column(Text(column[0]), justify=justify, width=width, overflow="fold")
        for row in zip(*(column[1:] for column in part), strict=True):
            screen.add_row(*map(Text, row))
        console.print(screen)
    for note in table.footnotes:
        console.print(Text(note))


def _parts(columns: Sequence[Sequence[str]], screen: int) -> list[list[Sequence[str]]]:
    """Columns that fit side by side, the first in each part, so that no word need be broken."""
    parts = [[columns[0]]]
    for column in columns[1:]:
        if len(parts[-1]) > 1 and _whole_width(map(_longest_word, [*parts[-1], column])) > screen:
            parts.append([columns[0]])
        parts[-1].append(column)
    return parts


def _widths(columns: Sequence[Sequence[str]], screen: int) -> list[int | None]:
    """Each column's width in characters; None, as wide as its text, where all columns fit.

    Where they do not, lines break between words. The column that lacks the most gets the room that
    is left.
    """
    full = [max(map(len, column)) for column in columns]
    if _whole_width(full) <= screen:
        return [None] * len(columns)
    widths = [min(_longest_word(each), 40 if i == 0 else screen) for i, each in enumerate(columns)]
    lacking = [most - width for most, width in zip(full, widths, strict=True)]
    widest = lacking.index(max(lacking))
    widths[widest] += max(0, min(screen - _whole_width(widths), lacking[widest]))
    return list(widths)


def _whole_width(widths: Iterable[int]) -> int:
    """Of a table on the screen: three characters are between two columns, two at each end."""
    return sum(width + 3 for width in widths) + 1


def _longest_word(texts: Iterable[str]) -> int:
    return max(len(word) for text in texts for word in text.split())


def write_table(table: Table, folder: Path) -> list[Path]:
    """Write a table in each form: `folder/NAME.md` and `.csv`."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{table.name}.{ending}" for ending in ("md", "csv")]
    with paths[0].open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(markdown_lines(table))
    with paths[1].open("w", encoding="utf-8", newline="\n") as file:
        write_csv(table.columns, table.rows, file)
    return paths


@dataclass(frozen=True, kw_only=True)
class Paragraph:
    """Sentences, printed strong where they must not be overlooked."""

    text: str
    strong: bool = False


@dataclass(frozen=True, kw_only=True)
class Bullets:
    """A list without an order of its own."""

    items: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A drawn figure and what it shows."""

    caption: str
    svg: Path


@dataclass(frozen=True, kw_only=True)
class Folded:
    """A table that few readers want: one line, the summary, until it is opened."""

    summary: str
    table: Table


Block = Paragraph | Bullets | Figure | Folded | Table


@dataclass(frozen=True, kw_only=True)
class Section:
    """What is under one heading."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, kw_only=True)
class Document:
    """A whole report."""

    title: str
    opening: tuple[Block, ...]
    """What comes before the first heading, and before the contents."""
    sections: tuple[Section, ...]


TEMPLATE = Path(__file__).with_name("document.html.jinja")


def document_to_html(document: Document) -> str:
    """The document as the text of one file that needs nothing beside it: no script, no network.

    Raises:
        OSError: a figure cannot be read.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["one_line"] = one_line
    environment.globals.update(kind=_kind, data_uri=_data_uri, figure_columns=figure_columns)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(document=document)


def _kind(block: Block) -> str:
    """Which of the template's forms a block takes."""
    return type(block).__name__.lower()


def _data_uri(svg: Path) -> str:
    """A drawing as the address of an image: in one page, the names within many would collide."""
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.read_bytes()).decode('ascii')}"


def document_to_markdown(document: Document, folder: Path) -> str:
    """The document as the text of a file, its figures as links.

    Arguments:
        folder: where the file will be, from which its links lead.
    """
    parts = [f"# {escape_markdown(document.title)}\n"]
    parts += [_block(block, folder) for block in document.opening]
    for section in document.sections:
        parts.append(f"## {escape_markdown(section.title)}\n")
        parts += [_block(block, folder) for block in section.blocks]
    return "\n".join(parts)


def _block(block: Block, folder: Path) -> str:
    """Whole lines, each with its end."""
    match block:
        case Paragraph():
            text = escape_markdown(block.text)
            return f"**{text}**\n" if block.strong else f"{text}\n"
        case Bullets():
            return "".join(f"- {escape_markdown(item)}\n" for item in block.items)
        case Figure():
            caption = escape_markdown(block.caption)
            return f"![{caption}]({block.svg.relative_to(folder).as_posix()})\n\n{caption}.\n"
        case Folded():
            # Within HTML, Markdown's escapes are not read.
            summary = html.escape(block.summary)
            table = to_markdown(block.table)
            return f"<details><summary>{summary}</summary>\n\n{table}\n</details>\n"
        case _:
            return to_markdown(block)
