"""What the report says: its tables, and the sections that they stand in. No torch.

The same records give the same document: nothing holds the present time, and the order is fixed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean

from bench.analysis.claims import SWA_LARGE_SMALL, SWAP_10, claims_tables
from bench.analysis.comparison import pair_tables
from bench.analysis.energy import energy_table
from bench.analysis.stability import stability_table
from bench.analysis.verdicts import NOT_COMPARED, is_comparable, verdict
from bench.document.page import Block, Bullets, Document, Folded, Paragraph, Section
from bench.document.table import NOTHING, Table, counted, interval_cell, percent, plus_minus
from bench.micro.records import MicroRecord
from bench.micro.tables import micro_tables
from bench.planner.check import check_table
from bench.planner.command import scalings
from bench.planner.scaling import scaling_table
from bench.records.grouping import Host, accuracy_key, group_by, host_of, pool_accuracies, recipe_of
from bench.records.paper_tables import (
    RUN_TABLES,
    SIZES,
    TIME_TO_TARGET,
    Size,
    deal,
    number_machines,
    places_of,
)
from bench.records.timing import all_laps_table, lap_table, readings_table
from bench.report.content import Content, warning
from bench.report.figures import Drawn, figure_blocks
from bench.report.lists import configurations, machines_table, other_runs, recipe_tables, runs_table
from bench.report.paper_tables import time_to_target
from bench.report.statistics_table import statistics_tables
from bench.statistics import Values, contrast, summarize
from swap_fast.record import RunRecord

# The report at one look: what was measured, on what, the verdict, and how sure it is. No torch.


def glance(content: Content, warned: Table) -> Bullets:
    """A few sentences, each from the records."""
    records = content.records
    recipes = sorted({record.recipe for record in records})
    data = sorted({f"{r.data.get('name')} ({r.data.get('kind')})" for r in records})
    lines = [
        f"Measured: {len(records)} runs of {len(recipes)} recipes on {', '.join(data)}."
        if records
        else "Measured: nothing yet.",
        *(f"Machine {number}: {host.label}." for host, number in number_machines(records).items()),
        *_verdicts(content),
    ]
    if records:
        count = len(warned.rows)
        lines.append(
            f"Stability: {count} warning{'' if count == 1 else 's'}; see what to do."
            if count
            else "Stability: no warnings."
        )
    return Bullets(items=tuple(lines))


def _verdicts(content: Content) -> list[str]:
    """SWAP's final accuracy in each table that has runs of it, beside the published one."""
    lines = []
    for table in RUN_TABLES.values():
        for size in SIZES:
            standing = [r for r in content.records if table.place(size) in places_of(r)]
            for runs in group_by(standing, host_of).values():
                for each in deal(table, size, runs):
                    if each.machine is None:
                        continue
                    if not (each.row.is_final and each.records[0].method == "swap"):
                        continue
                    column = table.target
                    ours = pool_accuracies(each.records, partial(each.row.accuracy, column))
                    if ours is None:
                        continue
                    published = content.paper.value(table.name, each.row.label, column.name)
                    percent = plus_minus(100 * ours.mean, ours.scaled(100).std)
                    judged = (
                        verdict(ours.scaled(100), published)
                        if is_comparable(each.records, published)
                        else NOT_COMPARED
                    )
                    lines.append(
                        f"{table.title(size)}, {each.label}, {column.short}: "
                        f"{percent}% on {each.machine.used} "
                        f"(n = {ours.n}), the paper's {plus_minus(published.mean, published.sd)}%: "
                        f"{judged}."
                    )
    return lines


# How fast ours is beside others' ways: the few rows that come first, from records. No torch.


WHATS = ("step", "data", "jpeg")
"""The order of the measurements."""


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
        others = [way for way in ways if way.is_headline]
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


def _machine(record: MicroRecord) -> str:
    return f"{record.machine['device']}, {counted(record.threads, 'thread')}"


# Section 4.1: the average of independent runs beside that of one run's samples. No torch.
#
# SWAP's workers each give one model; SWA's one worker gives as many in sequence, as many epochs
# apart. Both begin from the same phase 1.


COLUMNS = (
    "Models",
    "Seed",
    "n models",
    "Epochs a sample",
    "Before averaging (%)",
    "After averaging (%)",
    "Distance",
    "Displacement norm",
    "Cosine of displacements",
)


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """What one run averaged."""

    models: int
    """How many."""
    epochs: float
    """Of phase 2, from one sample of a worker to its next."""
    before: float
    """Mean test accuracy of the workers at their end, a fraction."""
    after: float
    """Of the average, a fraction."""
    distance: float | None
    """Mean Euclidean distance of two of the models."""
    norm: float | None
    """Mean norm of theta_w - theta_T; None in older records."""
    cosine: float | None
    """Mean cosine of two of these differences; None in older records."""


def sampled(record: RunRecord) -> Sampled:
    """What a run of SWAP or SWA averaged.

    Raises:
        ValueError: the run averaged nothing.
    """
    if record.accuracy_before_averaging is None:
        raise ValueError(f"{record.run_id}: expected a run that averages models, got one of SGD")
    recipe = recipe_of(record)
    cycles = recipe["phase2"].get("cycles", 1)
    return Sampled(
        models=recipe.get("num_workers", 1) * cycles,  # SWA has one worker
        epochs=recipe["phase2"]["max_epochs"] / cycles,
        before=record.accuracy_before_averaging,
        after=record.test_accuracy,
        distance=_mean_of_pairs(record.pairwise_distances),
        norm=fmean(record.displacement_norms) if record.displacement_norms else None,
        cosine=_mean_of_pairs(record.displacement_cosines),
    )


def sampling_blocks(records: Sequence[RunRecord]) -> list[Block]:
    """A table and a sentence for each size and machine that has runs of both kinds."""
    blocks: list[Block] = []
    for size in SIZES:
        groups = group_by((r for r in records if _kind(r, size)), _setting)
        both = [group for group in groups.values() if len({_kind(r, size) for r in group}) == 2]
        for number, group in enumerate(both, start=1):
            parallel, sequential = (
                [record for record in group if _kind(record, size) == label]
                for label in (SWAP_10, SWA_LARGE_SMALL)
            )
            blocks.append(_table(size, number, parallel, sequential))
            blocks.append(Paragraph(text=_sentence(parallel, sequential)))
    return blocks


def _table(
    size: Size, number: int, parallel: Sequence[RunRecord], sequential: Sequence[RunRecord]
) -> Table:
    rows = []
    for label, runs in (("independent workers", parallel), ("samples of one run", sequential)):
        several = len({accuracy_key(record) for record in runs}) > 1
        rows += [_row(label, str(record.seed), [sampled(record)]) for record in runs]
        if not several:
            rows.append(_row(label, "mean", [sampled(record) for record in runs]))
    at = "at the paper's size" if size == "paper" else "at CPU size"
    return Table(
        name=f"sampling_{size}_{number}",
        title=f"Sampling from independent runs or from one, {at}",
        caption=(
            f"Section 4.1, on {host_of(parallel[0]).label}: models from {parallel[0].recipe} "
            f"beside models from {sequential[0].recipe}, both from a phase 1 that ends alike. "
            "Distances, norms and cosines are means over the models or their pairs."
        ),
        columns=COLUMNS,
        rows=tuple(rows),
        footnotes=(
            "Displacement: theta_w - theta_T, from the end of phase 1 to each averaged model. "
            f"{NOTHING}: records of before it was measured. Means: ± sample standard deviation "
            "over seeds.",
        ),
    )


def _row(label: str, seed: str, runs: Sequence[Sampled]) -> tuple[str, ...]:
    def cell(values: Sequence[float | None], decimals: int) -> str:
        present = [value for value in values if value is not None]
        if len(present) < len(runs):
            return NOTHING
        summary = summarize(present)
        return plus_minus(summary.mean, summary.std, decimals)

    return (
        label,
        seed,
        " or ".join(map(str, sorted({run.models for run in runs}))),
        " or ".join(f"{epochs:g}" for epochs in sorted({run.epochs for run in runs})),
        cell([100 * run.before for run in runs], 2),
        cell([100 * run.after for run in runs], 2),
        cell([run.distance for run in runs], 3),
        cell([run.norm for run in runs], 3),
        cell([run.cosine for run in runs], 3),
    )


def _sentence(parallel: Sequence[RunRecord], sequential: Sequence[RunRecord]) -> str:
    """What the accuracies say of the two ways, computed."""
    one, other = sampled(parallel[0]), sampled(sequential[0])
    if len({accuracy_key(r) for r in parallel}) + len({accuracy_key(r) for r in sequential}) > 2:
        return "Runs of unlike recipes or precision are not put together: no mean is compared."
    first, second = _accuracies(parallel), _accuracies(sequential)
    found = contrast(first, second)
    after = [percent(summarize(v for _, v in values).mean) for values in (first, second)]
    if found.interval is None or found.interval.low <= 0 <= found.interval.high:
        word = f"not distinguishable from that of one run's samples at n = {found.n}"
    else:
        word = ("higher" if found.mean > 0 else "lower") + " than that of one run's samples"
    equal = (one.models, one.epochs) == (other.models, other.epochs)
    epochs = (
        f"at equal epochs, {one.models} models of {one.epochs:g} epochs each"
        if equal
        else f"not at equal epochs ({one.models} models of {one.epochs:g} epochs, and "
        f"{other.models} of {other.epochs:g})"
    )
    interval = (
        f", 95% interval {interval_cell(found.interval, 100)} ({found.test})"
        if found.interval is not None
        else ""
    )
    return (
        f"{epochs[0].upper()}{epochs[1:]}: the accuracy of the average of independent workers is "
        f"{word}: {after[0]}% against {after[1]}%, a difference of {100 * found.mean:.2f} points"
        f"{interval}."
    )


def _accuracies(records: Sequence[RunRecord]) -> Values:
    return [(record.seed, record.test_accuracy) for record in records]


def _kind(record: RunRecord, size: Size) -> str | None:
    """Which of Table 4's two rows a run stands in; None: in neither."""
    table = RUN_TABLES[4]
    if table.place(size) not in places_of(record):
        return None
    return next(
        (
            row.label
            for row in table.rows
            if row.label in (SWAP_10, SWA_LARGE_SMALL) and row.recipes[size] == record.recipe
        ),
        None,
    )


def _setting(record: RunRecord) -> tuple[Host, str, str]:
    """What must be equal for runs of the two ways to stand in one table."""
    key = accuracy_key(record)
    return host_of(record), key.precision, key.data_hash


def _mean_of_pairs(matrix: Sequence[Sequence[float]]) -> float | None:
    """Mean over the pairs of two unlike models; None without any."""
    pairs = [matrix[i][j] for i in range(len(matrix)) for j in range(i)]
    return fmean(pairs) if pairs else None


@dataclass(frozen=True, kw_only=True)
class ReportFigures:
    """All figures of a report."""

    paper: dict[str, Drawn]
    """The paper's, by their numbers."""
    timing: Drawn
    """Where each second went."""
    speed: Drawn
    """Of the measurements of single parts."""
    scaling: Drawn
    """Phase 1 on more and more devices, as planned."""


def build_document(content: Content, figures: ReportFigures) -> tuple[Document, list[Table]]:
    """Every section of a results folder's report, and every table that gets files of its own.

    These are the sections' own, and those that they have no room for.
    """
    records, skipped = content.records, content.skipped
    headline, warned = speed_table(content.micro), stability_table(records)
    runs, others, laps = runs_table(records), other_runs(records), all_laps_table(records)
    published = [table for table in content.main if table.name == TIME_TO_TARGET]
    beside = [*content.main, *([] if published else [time_to_target(records, content.paper)])]
    energy = energy_table(records)
    figures_of_paper = [
        block for what, drawn in figures.paper.items() for block in figure_blocks(what, drawn)
    ]
    sections = [
        _section("Beside the paper", [*beside, *statistics_tables(records, content.paper)]),
        _section(
            "The paper's claims",
            claims_tables(records, content.paper, content.planes, content.cosines),
        ),
        _section("Independent runs or one (Section 4.1)", sampling_blocks(records)),
        _section("The paper's figures", figures_of_paper),
        _section("The paper's settings", recipe_tables(content.paper)),
        _section("Comparisons", pair_tables(records)),
        _section("Stability", _stability(content, warned)),
        _section("Runs", [table for table in (runs, others) if table.rows]),
        _section(
            "Timing: where each second went",
            [
                *figure_blocks("Laps", figures.timing),
                readings_table(records),
                *([energy] if energy.rows else []),
                *(Folded(summary=r.run_id, table=lap_table(r)) for r in records),
            ],
        ),
        _section(
            "Speed of the parts",
            [
                *([] if headline is None else [headline]),
                *micro_tables(content.micro),
                *(figure_blocks("Speed", figures.speed) if figures.speed else []),
            ],
        ),
        _section(
            "Planned, not measured",
            [
                check_table(content.paper),
                *(scaling_table(each) for each in scalings(content.paper)),
                *(figure_blocks("Scaling", figures.scaling) if figures.scaling else []),
            ],
        ),
        _section("Machines", [machines_table(records)]),
        _section("Configuration", configurations(records)),
        Section(
            title=f"Records left out: {len(skipped)}",
            blocks=(Bullets(items=tuple(skipped)),) if skipped else (),
        ),
        _section(
            "What does not agree in the paper",
            [
                Bullets(
                    items=tuple(
                        f"{each.source}: {each.statement}" for each in content.paper.inconsistencies
                    )
                )
            ],
        ),
    ]
    document = Document(
        title="Results",
        opening=(
            Paragraph(text=warning(content), strong=True),
            glance(content, warned),
            Paragraph(
                text=f"Made from {len(records)} records by python -m bench report; "
                f"{len(skipped)} left out. The same records give the same report."
            ),
        ),
        sections=tuple(each for each in sections if each is not None),
    )
    shown = [b for section in document.sections for b in section.blocks if isinstance(b, Table)]
    files = {table.name: table for table in [*shown, runs, others, laps]}
    return document, list(files.values())


def _stability(content: Content, warned: Table) -> list[Block]:
    if warned.rows or not content.records:
        return [warned] if warned.rows else []
    return [Paragraph(text=f"No warnings. {warned.caption}")]


def _section(title: str, blocks: Sequence[Block]) -> Section | None:
    """A section; None where it would be empty."""
    return Section(title=title, blocks=tuple(blocks)) if blocks else None
