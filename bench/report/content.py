"""What a results folder holds: its usable records, why others are not, and the main tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from bench.document import Table
from bench.landscape.records import (
    CosineRecord,
    LandscapeRecord,
    PlaneRecord,
    read_all_cosines,
    read_planes,
)
from bench.micro.records import MicroRecord, read_micro_records
from bench.records.grouping import host_of, machine_key, scale_note
from bench.records.paper import Paper, load_paper
from bench.records.paper_tables import OTHER, TIME_TO_TARGET, place_of
from bench.report.paper_tables import all_run_tables, cpu_warning, time_to_target
from swap_fast.record import RunRecord, read_records

L = TypeVar("L", bound=LandscapeRecord)


@dataclass(frozen=True, kw_only=True)
class Content:
    """What a results folder holds, read and checked once."""

    results: Path
    paper: Paper
    records: list[RunRecord]
    """By recipe, seed and time."""
    planes: list[PlaneRecord]
    """Of runs among the records, as `cosines`, in the order of their names."""
    cosines: list[CosineRecord]
    micro: list[MicroRecord]
    """The newest of each kind."""
    skipped: list[str]
    """Why other files were left out."""
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
        if record.run_id in records:
            name = " ".join(record.run_id.split())
            skipped.append(f"{name}: expected one record of this run, got another")
        else:
            records[record.run_id] = record
    ordered = sorted(records.values(), key=lambda r: (r.recipe, r.seed, r.created, r.run_id))
    planes, odd_planes = read_planes(results)
    cosines, odd_cosines = read_all_cosines(results)
    micro, odd_micro = read_micro_records(results / "micro")
    skipped += [*odd_planes, *odd_cosines]
    main = all_run_tables(ordered, paper)
    if any(place_of(record) == TIME_TO_TARGET for record in ordered):
        main.append(time_to_target(ordered, paper))
    return Content(
        results=results,
        paper=paper,
        records=ordered,
        planes=_of_runs(planes, records, skipped),
        cosines=_of_runs(cosines, records, skipped),
        micro=micro,
        skipped=[*skipped, *odd_micro],
        main=main,
    )


def _of_runs(
    landscapes: Sequence[L], records: Mapping[str, RunRecord], skipped: list[str]
) -> list[L]:
    """Those of runs that are there; why others are not goes to `skipped`."""
    skipped += [
        f"{each.name}: expected a run of this folder, got {each.run_id}"
        for each in landscapes
        if each.run_id not in records
    ]
    return [each for each in landscapes if each.run_id in records]


def warning(content: Content) -> str:
    """The report's first line: how far its figures are from the paper's setting."""
    shown = [record for record in content.records if place_of(record) != OTHER]
    cpu = [record for record in shown if not record.comparable]
    full = [record for record in shown if record.comparable]
    lines = []
    if cpu:
        lines.append(cpu_warning(cpu))
    device = content.paper.values[0].device
    machines = sorted({machine_key(r).used for r in full if device not in host_of(r).device})
    if machines:
        lines.append(f"Not the paper's hardware, NVIDIA {device}: {' and '.join(machines)}.")
    if not content.records:
        lines.append("There are no runs yet.")
    elif not shown:
        lines.append("No run here can be compared with published figures; the list says why.")
        lines.append(scale_note(content.records).strip())
    return " ".join(filter(None, lines)) or "On the paper's hardware."
