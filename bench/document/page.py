"""A report as data: sections of paragraphs, lists, figures and tables, in no markup. No torch.

What it says is built once (`bench.report.sections`); Markdown and HTML are two forms of it.
"""

from dataclasses import dataclass
from pathlib import Path

from bench.document.table import Table


@dataclass(frozen=True, kw_only=True)
class Paragraph:
    """Sentences."""

    text: str
    """Plain, not yet escaped."""
    strong: bool = False
    """Whether it must not be overlooked."""


@dataclass(frozen=True, kw_only=True)
class Bullets:
    """A list without an order of its own."""

    items: tuple[str, ...]
    """Plain, not yet escaped."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A drawn figure and what it shows."""

    caption: str
    """Plain, not yet escaped."""
    svg: Path
    """The drawing."""
    png: Path
    """The same, for what shows no SVG."""


@dataclass(frozen=True, kw_only=True)
class Folded:
    """A table that few readers want: one line until it is opened."""

    summary: str
    """That line: plain, not yet escaped."""
    table: Table
    """What it opens to."""


Block = Paragraph | Bullets | Figure | Folded | Table


@dataclass(frozen=True, kw_only=True)
class Section:
    """What stands under one heading."""

    title: str
    """Of one line."""
    blocks: tuple[Block, ...]
    """In the order of reading."""


@dataclass(frozen=True, kw_only=True)
class Document:
    """A whole report."""

    title: str
    """Of one line."""
    opening: tuple[Paragraph | Bullets, ...]
    """What stands before the first heading, and before the contents."""
    sections: tuple[Section, ...]
    """In the order of reading."""
