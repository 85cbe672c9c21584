"""The figures of the report, by the paper's numbers, drawn from the records. No torch.

matplotlib is an extra: without it there are none, and the report says so.
"""

import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path

from bench.document.page import Block, Figure, Paragraph
from bench.landscape.plots import cosine_figure, plane_figure
from bench.landscape.records import CosineRecord, LandscapeRecord, PlaneRecord
from bench.micro.records import MicroRecord
from bench.micro.tables import micro_figures
from bench.planner.command import scalings
from bench.planner.scaling import scaling_figure
from bench.plots.schedules import figure_5, figure_6
from bench.plots.training import figure_1, timing_figure
from bench.records.grouping import group_by, host_of, machine_key
from bench.records.paper import Paper
from bench.records.paper_tables import OTHER, number_machines, place_of, why_other
from swap_fast.record import RunRecord

Drawn = dict[str, list[Path]]
"""The files of each figure, SVG first, by what it shows."""

SHOWN = {
    2: "train and test error on the plane through LB, SGD and SWAP",
    3: "train and test error on the plane through three workers",
    4: "cosine of -g and the direction to the output of SWAP",
}
"""What the figures of landscapes show."""


def paper_figures(
    records: Sequence[RunRecord],
    planes: Sequence[PlaneRecord],
    cosines: Sequence[CosineRecord],
    folder: Path,
    figure_run: str | None,
) -> dict[str, Drawn]:
    """Draw the paper's figures of all that was run and measured; by number, in its order."""
    if not _can_draw():
        return {f"Figure {number}": {} for number in range(1, 7)}
    drawn = {"Figure 1": _figures_1(records, folder, figure_run)}
    for number in (2, 3):
        drawn[f"Figure {number}"] = {
            _of_run(plane): plane_figure(plane, folder)
            for plane in planes
            if plane.figure == number
        }
    drawn["Figure 4"] = {_of_run(path): cosine_figure(path, folder) for path in cosines}
    drawn["Figure 5"] = {"ImageNet's schedules, from the recipes": figure_5(folder)}
    drawn["Figure 6"] = {"schedules of SWA and SWAP, from the recipes": figure_6(folder)}
    return drawn


def timing_figures(records: Sequence[RunRecord], folder: Path) -> Drawn:
    """Draw the laps of each machine's runs."""
    if not _can_draw():
        return {}
    numbers = number_machines(records)
    return {
        f"machine {numbers[host]}": timing_figure(group, folder, f"timing-machine{numbers[host]}")
        for host, group in group_by(records, host_of).items()
    }


def speed_figures(micro: Sequence[MicroRecord], folder: Path) -> Drawn:
    """Draw what the measurements of single parts show."""
    return micro_figures(micro, folder) if _can_draw() else {}


def planned_figures(paper: Paper, folder: Path) -> Drawn:
    """Draw how phase 1 is expected to scale."""
    if not _can_draw():
        return {}
    return {
        f"phase 1 of {each.work.name}, modelled": scaling_figure(each, folder)
        for each in scalings(paper)
    }


def figure_blocks(what: str, drawn: Drawn) -> list[Block]:
    """Each figure with a caption that says what it is; or a line that says why there is none."""
    if not drawn:
        return [
            Paragraph(
                text=f"{what}: no figure (no run of its kind, or matplotlib is not installed)."
            )
        ]
    return [
        Figure(caption=f"{what}: {title}", svg=svg, png=png) for title, (svg, png) in drawn.items()
    ]


def _can_draw() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def _of_run(record: LandscapeRecord) -> str:
    return f"{SHOWN[record.figure]}, {record.run_id}"


def _figures_1(records: Sequence[RunRecord], folder: Path, figure_run: str | None) -> Drawn:
    """Figure 1 for each SWAP recipe and machine."""
    figures: Drawn = {}
    numbers = number_machines(records)
    swap = [record for record in records if record.method == "swap"]
    for (recipe, host, other), group in group_by(
        swap, lambda r: (r.recipe, host_of(r), place_of(r) == OTHER)
    ).items():
        shown = next((r for r in group if r.run_id == figure_run), group[0])
        name = f"figure1-{re.sub(r'[^A-Za-z0-9_-]', '-', recipe)}-machine{numbers[host]}"
        why = f" ({why_other(shown)})" if other else ""
        title = f"{shown.run_id}{why}, {machine_key(shown).label}"
        figures[title] = figure_1(shown, folder, f"{name}-other" if other else name)
    return figures
