"""Each recipe's whole configuration, as its runs recorded it. No torch."""

from collections.abc import Sequence

from bench.document.page import Folded
from bench.document.table import Table
from bench.records.grouping import accuracy_key, group_by, machine_key
from bench.report.lists import flatten
from swap_fast.record import RunRecord


def configurations(records: Sequence[RunRecord]) -> list[Folded]:
    """A table for all runs of a recipe that agree in configuration and machine."""
    groups = group_by(records, lambda run: (run.recipe, accuracy_key(run), machine_key(run)))
    return [
        Folded(
            summary=f"{runs[0].recipe}: {len(runs)} run{'' if len(runs) == 1 else 's'}",
            table=_configuration(runs),
        )
        for runs in groups.values()
    ]


def _configuration(runs: Sequence[RunRecord]) -> Table:
    facts: dict[str, list[str]] = {}
    for run in runs:
        told = {
            **run.configuration,
            "seed": run.seed,
            "world_size": run.world_size,
            "threads": run.threads,
            "overrides": ", ".join(run.overrides) or None,
            "data": run.data,
            "machine": run.machine,
            "code": run.code,
        }
        for name, value in flatten(told):
            values = facts.setdefault(name, [])
            if value not in values:
                values.append(value)
    return Table(
        name="configuration",
        title=f"Configuration of {runs[0].recipe}",
        caption=f"Of {', '.join(run.run_id for run in runs)}. Where they differ, all values.",
        columns=("Field", "Value"),
        rows=tuple((name, "; ".join(values)) for name, values in facts.items()),
    )
