"""How every figure looks and is written: the same records give the same bytes. No torch.

Fixed identifiers, no dates, text as paths; matplotlib's global state is not touched.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = {
    "font.family": "DejaVu Sans",  # matplotlib's own, so that every machine draws the same
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "0.88",
    "grid.linewidth": 0.6,
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "swap_fast",
}
DOTS_PER_INCH = 150


@contextmanager
def figure_style() -> Iterator[None]:
    """Within it, matplotlib draws in this style."""
    from matplotlib import style

    with style.context(["default", STYLE]):
        yield


def save_figure(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write `folder/NAME.svg` and `.png`, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.svg", folder / f"{name}.png"]
    figure.savefig(paths[0], metadata={"Date": None})
    figure.savefig(paths[1], dpi=DOTS_PER_INCH)
    return paths
