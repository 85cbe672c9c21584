"""A document as one HTML file that needs nothing beside it: no script, no network. No torch.

Every text goes through the template's escaping; what a record says never becomes markup.
"""

import base64
from pathlib import Path

from bench.document.page import Block, Bullets, Document, Figure, Folded, Paragraph
from bench.document.table import Table, figure_columns, one_line

TEMPLATE = Path(__file__).with_name("report.html.jinja")


def document_to_html(document: Document) -> str:
    """The document as the text of a file, its figures within it.

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
    environment.globals |= {"kind": _kind, "data_uri": _data_uri, "figure_columns": figure_columns}
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(document=document)


def _kind(block: Block) -> str:
    """Which of the template's forms a block takes."""
    kinds = {
        Paragraph: "paragraph",
        Bullets: "bullets",
        Figure: "figure",
        Folded: "folded",
        Table: "table",
    }
    return kinds[type(block)]


def _data_uri(svg: Path) -> str:
    """A drawing as the address of an image: in one page, the names within many would collide."""
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.read_bytes()).decode('ascii')}"
