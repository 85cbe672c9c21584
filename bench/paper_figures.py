"""Figures 2 to 6 of a results folder: all that it has records for, and the schedules. No torch."""

from __future__ import annotations

from pathlib import Path

from bench.landscape_plots import cosine_figure, plane_figure
from bench.landscape_records import LandscapeRecord, read_all_cosines, read_planes
from bench.schedule_plots import figure_5, figure_6


def paper_figures(results: Path, folder: Path) -> tuple[dict[str, list[Path]], list[str]]:
    """Draw them.

    Arguments:
        results: the folder whose `planes` and `cosines` hold the records.
        folder: where the figures go.

    Returns:
        The files of each figure, SVG and PNG, by the figure's title; and why records were left out.
    """
    planes, skipped = read_planes(results)
    cosines, others = read_all_cosines(results)
    figures: dict[str, list[Path]] = {}
    for number in (2, 3):
        for plane in planes:
            if plane.figure == number:
                figures[_title(plane)] = plane_figure(plane, folder)
    for record in cosines:
        figures[_title(record)] = cosine_figure(record, folder)
    figures["Figure 5: learning rates and mini-batches of ImageNet's recipes"] = figure_5(folder)
    figures["Figure 6: learning rates of SWA and of SWAP, from the recipes"] = figure_6(folder)
    return figures, [*skipped, *others]


_SHOWN = {
    2: "train and test error on the plane through LB, SGD and SWAP",
    3: "train and test error on the plane through three workers",
    4: "cosine of -g and the direction to the output of SWAP",
}


def _title(record: LandscapeRecord) -> str:
    return f"Figure {record.figure}: {_SHOWN[record.figure]}, {record.run_id}"
