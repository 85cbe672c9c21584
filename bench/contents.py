"""What a results folder holds: its usable records, why others are not, and the main tables."""

from dataclasses import dataclass
from pathlib import Path

from bench.energy import energy_table
from bench.lists import other_runs, runs_table
from bench.paper import Paper, load_paper
from bench.places import place_of
from bench.plots import learning_rate_curves
from bench.rendering import Table
from bench.stats import accuracy_key, group_by, machine_key, scale_note
from bench.tables import cpu_warning, table_1, time_to_target
from bench.timing import lap_table, readings_table
from swap_fast.record import RunRecord, read_records


@dataclass(frozen=True, kw_only=True)
class Content:
    """What a results folder holds."""

    paper: Paper
    """The published figures."""
    records: list[RunRecord]
    """By recipe, seed and time."""
    skipped: list[str]
    """Why other files were left out."""
    main: list[Table]
    """Table 1, and the times to an accuracy where we have one."""


def collect(results: Path) -> Content:
    """Read a results folder; records that cannot be read, or twice the same, are left out.

    Raises:
        ValueError: the published figures cannot be read.
    """
    paper = load_paper(results)
    found, skipped = read_records(results / "runs")
    records: dict[str, RunRecord] = {}
    for record in found:
        if record.run_id in records:
            skipped.append(f"{record.run_id}: expected one record of this run, got another")
        elif reason := _unreadable(record):
            skipped.append(reason)
        else:
            records[record.run_id] = record
    ordered = sorted(records.values(), key=lambda r: (r.recipe, r.seed, r.created, r.run_id))
    main = [*table_1(ordered, paper, "table1"), *table_1(ordered, paper, "table1_cpu")]
    if any(place_of(record) == "time_to_target" for record in ordered):
        main.append(time_to_target(ordered, paper))
    return Content(paper=paper, records=ordered, skipped=skipped, main=main)


def warning(content: Content) -> str:
    """The report's first line: how far its figures are from the paper's setting."""
    by_place = group_by(content.records, place_of)
    lines = []
    if cpu := by_place.get("table1_cpu"):
        lines.append(cpu_warning(cpu))
    full = [*by_place.get("table1", []), *by_place.get("time_to_target", [])]
    machines = sorted({machine_key(r).short for r in full if "V100" not in machine_key(r).device})
    if machines:
        lines.append(f"Not the paper's hardware, 8 NVIDIA Tesla V100: {' and '.join(machines)}.")
    if not content.records:
        lines.append("There are no runs yet.")
    elif not cpu and not full:
        lines.append("No run here may stand beside published figures; the list of runs says why.")
        lines.append(scale_note(content.records).strip())
    return " ".join(filter(None, lines)) or "On the paper's hardware."


def _unreadable(record: RunRecord) -> str | None:
    """Why a record with the right fields still cannot be used: what is in them is not."""
    try:
        accuracy_key(record)
        readings_table([record])
        lap_table(record)
        energy_table([record])
        place_of(record)
        runs_table([record])
        other_runs([record])
        cpu_warning([record])
        if record.method == "swap":
            learning_rate_curves(record)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        return f"{record.run_id}: expected a whole record, got {error!r}"
    return None
