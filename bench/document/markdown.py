"""A document as Markdown, with its figures as links. No torch."""

import html
from pathlib import Path

from bench.document.page import Block, Bullets, Document, Figure, Folded, Paragraph
from bench.document.table import escape_markdown, to_markdown


def document_to_markdown(document: Document, folder: Path) -> str:
    """The document as the text of a file.

    Arguments:
        folder: where the file is to stand, from which its links lead.
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
