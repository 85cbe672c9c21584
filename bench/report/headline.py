"""How fast ours is beside others' ways: the few rows that come first, from records. No torch."""

from collections.abc import Sequence

from bench.document.table import Table, counted
from bench.micro.records import MicroRecord

WHATS = ("step", "data", "jpeg")
"""The measurements that have a headline, in this order."""
OURS, FLOOR = "ours", "floor"
"""How the names of our own ways begin, and of what is no way to do the work."""


def speed_table(records: Sequence[MicroRecord]) -> Table | None:
    """Whole training and the making of batches beside others'; None where neither was measured."""
    rows = [
        row for what in WHATS for record in records if record.what == what for row in _rows(record)
    ]
    if not rows:
        return None
    return Table(
        name="micro_speed",
        title="Ours beside others' ways",
        caption=(
            "Ways that took turns; how many times as fast ours is, round by round, as the median "
            "and the range of the rounds."
        ),
        columns=("Work", "Machine", "Ours (images/s)", "Beside", "Images/s", "Times as fast"),
        rows=tuple(rows),
    )


def _rows(record: MicroRecord) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for title, ways in record.results.items():
        if not _is_headline(record, title):
            continue
        others = [
            way for way in ways if way.unit == "images" and not way.name.startswith((OURS, FLOOR))
        ]
        for number, way in enumerate(others):
            least, median, most = way.ratio
            rows.append(
                (
                    *((title, _machine(record)) if number == 0 else ("", "")),
                    f"{ways[0].median:,.0f}" if number == 0 else "",
                    way.name,
                    f"{way.median:,.0f}",
                    f"{median:.2f} ({least:.2f} to {most:.2f})",
                )
            )
    return rows


def _is_headline(record: MicroRecord, title: str) -> bool:
    """Whole training; batches as a run makes them, with all of the threads."""
    if record.what == "step":
        return title.startswith("whole training")
    return record.what == "jpeg" or (
        record.what == "data"
        and title.startswith("augmented")
        and title.endswith(counted(record.threads, "thread"))
    )


def _machine(record: MicroRecord) -> str:
    return f"{record.machine['device']}, {counted(record.threads, 'thread')}"
