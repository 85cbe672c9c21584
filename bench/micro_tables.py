"""Tables from the records of `python -m bench micro`, the newest of each kind. No torch."""

import json
import statistics
from pathlib import Path
from typing import Any

from bench.rendering import Table

WHAT = {"step": "The training step and what is around it", "data": "The input path"}


def micro_tables(folder: Path) -> tuple[list[Table], list[str]]:
    """A table for each measurement, and why other files of the folder were left out."""
    newest: dict[tuple[str, str], Table] = {}
    skipped = []
    for path in sorted(folder.glob("*.json")):  # a name ends in its time
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            key = record["what"], record["machine"]["device_type"]
            newest[key] = _table(record)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            skipped.append(f"{path.name}: expected a record of a measurement, got {error!r}")
    return [table for _, table in sorted(newest.items())], skipped


def _table(record: dict[str, Any]) -> Table:
    machine, rows = record["machine"], []
    for title, timings in record["results"].items():
        for number, timing in enumerate(timings):
            speeds, ratios = timing["images_per_s"], timing["ratios"]
            rows.append(
                (
                    title if number == 0 else "",
                    timing["name"],
                    f"{statistics.median(speeds):,.0f}",
                    f"{min(speeds):,.0f} to {max(speeds):,.0f}",
                    f"{statistics.median(ratios):.3f}",
                    f"{min(ratios):.2f} to {max(ratios):.2f}",
                )
            )
    threads = record["threads"]
    size = f"batch {record['batch_size']}"
    if record["what"] == "step":
        size = f"ResNet-9 of width {record['width']}, {size}"
    return Table(
        name=f"micro_{record['what']}_{machine['device_type']}",
        title=WHAT[record["what"]],
        caption=(
            f"{machine['device']}, {threads} thread{'s' if threads > 1 else ''}, torch "
            f"{machine['libraries']['torch']}; {size}; {record['rounds']} rounds in which the ways "
            f"took turns, {record['created'][:10]}. The ratio is the first way's images/s over "
            "this way's, round by round."
        ),
        columns=("", "Way", "Images/s (median)", "Range", "Ratio (median)", "Range of the ratio"),
        rows=tuple(rows),
    )
