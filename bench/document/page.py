"""A report as data, and its two forms: Markdown, and one HTML file. No torch.

Its texts hold no markup: each form escapes them.
"""

import base64
import html
from dataclasses import dataclass
from pathlib import Path

from bench.document.table import Table, escape_markdown, figure_columns, one_line, to_markdown


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
    """A drawn figure and what it shows; a PNG for what shows no SVG."""

    caption: str
    svg: Path
    png: Path


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
    opening: tuple[Paragraph | Bullets, ...]
    """What comes before the first heading, and before the contents."""
    sections: tuple[Section, ...]


TEMPLATE = Path(__file__).with_name("report.html.jinja")


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
            svg, png = (path.relative_to(folder).as_posix() for path in (block.svg, block.png))
            caption = escape_markdown(block.caption)
            return f"![{caption}]({svg})\n\n{caption} ([PNG]({png})).\n"
        case Folded():
            # Within HTML, Markdown's escapes are not read.
            summary = html.escape(block.summary)
            table = to_markdown(block.table)
            return f"<details><summary>{summary}</summary>\n\n{table}\n</details>\n"
        case _:
            return to_markdown(block)
