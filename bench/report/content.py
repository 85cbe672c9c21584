"""What a results folder holds: its usable records, why others are not, and the main tables."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.analysis.claims import landscape_facts
from bench.analysis.energy import energy_table
from bench.document.table import Table
from bench.landscape.records import (
    CosineRecord,
    LandscapeRecord,
    PlaneRecord,
    read_all_cosines,
    read_planes,
)
from bench.plots.training import learning_rate_curves
from bench.records.grouping import accuracy_key, host_of, machine_key, scale_note
from bench.records.paper import Paper, load_paper
from bench.records.paper_tables import OTHER, TIME_TO_TARGET, place_of, places_of
from bench.records.timing import lap_table, readings_table
from bench.report.paper_tables import all_run_tables, cpu_warning, time_to_target
from bench.report.run_lists import other_runs, runs_table
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
    planes: list[PlaneRecord]
    """Of runs among the records, in the order of their names."""
    cosines: list[CosineRecord]
    """Likewise."""
    main: list[Table]
    """Tables 1 to 4 in their forms that have runs; the times to an accuracy where we have one."""


def collect(results: Path) -> Content:
    """Read a results folder; records that cannot be read, or twice the same, are left out.

    Raises:
        ValueError: the published figures cannot be read.
    """
    paper = load_paper(results)
    found, skipped = read_records(results / "runs")
    records: dict[str, RunRecord] = {}
    for record in found:
        if reason := _unreadable(record, paper):
            skipped.append(reason)
        elif record.run_id in records:
            skipped.append(f"{record.run_id}: expected one record of this run, got another")
        else:
            records[record.run_id] = record
    ordered = sorted(records.values(), key=lambda r: (r.recipe, r.seed, r.created, r.run_id))
    main = all_run_tables(ordered, paper)
    if any(place_of(record) == TIME_TO_TARGET for record in ordered):
        main.append(time_to_target(ordered, paper))
    planes, odd_planes = read_planes(results)
    cosines, odd_cosines = read_all_cosines(results)
    skipped += [*odd_planes, *odd_cosines]
    for odd in (_unusable(each, records) for each in (*planes, *cosines)):
        skipped += [odd] if odd else []
    return Content(
        paper=paper,
        records=ordered,
        planes=[plane for plane in planes if _unusable(plane, records) is None],
        cosines=[path for path in cosines if _unusable(path, records) is None],
        skipped=skipped,
        main=main,
    )


def warning(content: Content) -> str:
    """The report's first line: how far its figures are from the paper's setting."""
    standing = [record for record in content.records if place_of(record) != OTHER]
    cpu = [record for record in standing if not record.comparable]
    full = [record for record in standing if record.comparable]
    lines = []
    if cpu:
        lines.append(cpu_warning(cpu))
    machines = sorted({machine_key(r).used for r in full if "V100" not in host_of(r).device})
    if machines:
        lines.append(f"Not the paper's hardware, NVIDIA Tesla V100: {' and '.join(machines)}.")
    if not content.records:
        lines.append("There are no runs yet.")
    elif not standing:
        lines.append("No run here may stand beside published figures; the list of runs says why.")
        lines.append(scale_note(content.records).strip())
    return " ".join(filter(None, lines)) or "On the paper's hardware."


def _unreadable(record: RunRecord, paper: Paper) -> str | None:
    """Why a record with the right fields still cannot be used: what is in them is not."""
    try:
        if not isinstance(record.run_id, str):
            raise TypeError("a run without a name")
        hash((record.recipe, record.seed, record.created))
        accuracy_key(record)
        readings_table([record])
        lap_table(record)
        energy_table([record])
        places_of(record)
        runs_table([record])
        other_runs([record])
        cpu_warning([record])
        all_run_tables([record], paper)
        if record.method == "swap":
            learning_rate_curves(record)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        name = " ".join(str(record.run_id).split())
        return f"{name}: expected a whole record, got {error!r}"
    return None


def _unusable(landscape: LandscapeRecord, records: Mapping[str, RunRecord]) -> str | None:
    """Why a whole record of a landscape still cannot be shown."""
    if landscape.run_id not in records:
        return f"{landscape.name}: expected a run of this folder, got {landscape.run_id}"
    if not re.fullmatch(r"[\w-]+", landscape.name):  # it names the figure's files
        return f"{landscape.name}: expected letters, digits, _ and - in a run's name"
    try:
        landscape_facts(
            [landscape] if isinstance(landscape, PlaneRecord) else [],
            [landscape] if isinstance(landscape, CosineRecord) else [],
        )
    except KeyError as error:
        return f"{landscape.name}: expected the marked points of its figure, got none named {error}"
    return None
