"""What the screen shows of a results folder after a report: its main tables. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bench.document.terminal import show_table
from bench.report.content import collect, warning
from bench.report.lists import other_runs

if TYPE_CHECKING:
    from rich.console import Console


def print_summary(results: Path, console: Console | None = None) -> None:
    """Print the main tables on the screen; without one, the list of other runs."""
    import rich.console
    from rich.text import Text

    if console is None:
        console = rich.console.Console()
    content = collect(results)
    console.print(Text(warning(content), style="bold"))
    for table in content.main or [other_runs(content.records)]:
        show_table(table, console)
