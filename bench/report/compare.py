"""`python -m bench compare A B`: two groups of runs, side by side. No torch.

A difference of accuracies gets Welch's 95% interval. A ratio of times is one of geometric means:
Welch's interval of the difference of their logarithms, made a ratio again. Noise that multiplies a
time becomes even in its logarithm, neither spread nor number of runs need be equal, and unlike a
bootstrap it does not get too narrow with few runs. A single run has no spread: no interval.
Times are of the runs beside which no other programs ran, where a side has any.
"""

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from bench.document import (
    NOTHING,
    OTHER_WORK,
    UNSTABLE,
    Document,
    Paragraph,
    Section,
    Table,
    document_to_html,
    interval_cell,
    mark_notes,
    number_cell,
    show_table,
    summary_cell,
)
from bench.records.grouping import (
    Measure,
    accuracy_key,
    host_of,
    machine_key,
    scale_note,
    timed_alone,
    values_by_field,
)
from bench.records.timing import (
    dawnbench_time,
    in_clock_order,
    is_one_process,
    laps_of_slowest_rank,
    unattributed_s,
)
from bench.report.content import collect
from bench.statistics import Interval, Summary, Values, contrast, exponential, logarithms, summarize
from swap_fast.choices import choose
from swap_fast.record import RunRecord
from swap_fast.record_files import read_record

TEST_ACCURACY, TRAIN_TIME = "test accuracy (%)", "train time (s), measured"
ACCURACIES: dict[str, Measure] = {
    TEST_ACCURACY: lambda run: run.test_accuracy,
    "with mirrored test images (%)": lambda run: run.mirrored_test_accuracy,
    "before averaging (%)": lambda run: run.accuracy_before_averaging,
}
"""Fractions, printed as percent."""
TIMES: dict[str, Measure] = {
    TRAIN_TIME: lambda run: run.times.after_averaging_s,
    # Of SGD the modelled time is the measured one.
    "parallel time (s), modelled": lambda run: run.times.modelled_after_averaging_s,
    "time to the target (s)": dawnbench_time,
    "wall clock (s)": lambda run: run.times.wall_s,
}

UNATTRIBUTED = "unattributed"
"""Among the laps: the harness's own time."""

METHOD_NOTE = (
    "Differences: Welch's t, 95%. Ratios: of geometric means, Welch's t of the logarithms, 95%. "
    "A single run gives no interval."
)


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two groups: runs of one recipe."""

    name: str
    """As the user gave it."""
    runs: tuple[RunRecord, ...]
    """One at least, that agree in recipe, data, precision and type of device."""

    def __post_init__(self) -> None:
        """Refuse runs that may not be pooled."""
        if not self.runs:
            raise ValueError(f"{self.name}: expected one run or more, got none")
        kinds = len({(run.recipe, accuracy_key(run)) for run in self.runs})
        if kinds > 1:
            raise ValueError(
                f"{self.name}: expected runs of one recipe with one configuration, data set and "
                f"precision, got {kinds} kinds among {len(self.runs)} runs; name a run instead"
            )

    @property
    def timed(self) -> Sequence[RunRecord]:
        """The runs whose times count: those timed alone; all, where none was."""
        return timed_alone(self.runs)

    @property
    def mark(self) -> str:
        """Behind its times: whether other programs ran beside all of its runs."""
        return OTHER_WORK * all(run.had_other_work for run in self.runs)

    @property
    def machines(self) -> tuple[str, ...]:
        """The kinds of machine that its runs were made on, and the devices that they used."""
        return tuple(sorted({machine_key(run).label for run in self.runs}))


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """One measured quantity of both sides."""

    name: str
    """With its unit."""
    first: Summary | None
    """Of A; None where a run of it has no such value; `second` is B's."""
    second: Summary | None
    is_ratio: bool
    """Whether B is divided by A; else A is subtracted from B."""
    change: float | None
    """B / A of the geometric means, or B - A of the means; None where it may not be formed."""
    interval: Interval | None
    """95% of `change`; None where one side is a single run."""


Differing = dict[str, tuple[list[str], list[str]]]
"""Fields that are not alike on both sides, by dotted name: A's values and B's."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All that is said of two groups of runs, A and B."""

    first: Side
    second: Side
    quantities: tuple[Quantity, ...]
    laps_s: dict[str, tuple[float | None, float | None]]
    """A's and B's seconds of each lap of the slowest rank, mean over the timed runs; "unattributed"
    is the harness's own time, left out where a run was made by several processes."""
    configuration: Differing
    """What of recipe, execution and data differs."""
    machine: Differing
    """What of machine and code differs."""
    cautions: tuple[str, ...]
    """What a reader must know before the figures."""


def compare(first: Side, second: Side) -> Comparison:
    """B against A, from their records alone."""
    # Devices may differ between the sides, as between the paper's rows, and not within one.
    alike = len({host_of(run) for run in (*first.runs, *second.runs)}) == 1 and all(
        len(side.machines) == 1 for side in (first, second)
    )
    sides = (first, second)
    quantities = [_quantity(name, sides, of) for name, of in ACCURACIES.items()]
    quantities += [_ratio(name, sides, of, formed=alike) for name, of in TIMES.items()]
    laps = [_laps(side) for side in sides]
    if not all(is_one_process(run) for side in sides for run in side.timed):
        for each in laps:
            del each[UNATTRIBUTED]
    return Comparison(
        first=first,
        second=second,
        quantities=tuple(q for q in quantities if q.first or q.second),
        laps_s={
            name: (laps[0].get(name), laps[1].get(name))
            for name in in_clock_order([*laps[0], *laps[1]])
        },
        configuration=_differing(first, second, _settings),
        machine=_differing(first, second, lambda run: {"machine": run.machine, "code": run.code}),
        cautions=tuple(_cautions(first, second, alike)),
    )


Sides = tuple[Side, Side]
"""A and B."""


def _quantity(name: str, sides: Sides, of: Measure) -> Quantity:
    """An accuracy of both sides in percent, B less A by Welch's test."""
    a, b = (_values(side.runs, of, 100) for side in sides)
    found = contrast(b, a) if a and b else None
    return Quantity(
        name=name,
        first=_summary(a),
        second=_summary(b),
        is_ratio=False,
        change=None if found is None else found.mean,
        interval=None if found is None else found.interval,
    )


def _ratio(name: str, sides: Sides, of: Measure, *, formed: bool) -> Quantity:
    """A time of both sides, B over A by Welch's test; not compared unless `formed`."""
    a, b = (_values(side.timed, of) for side in sides)
    formed = formed and bool(a and b) and all(value > 0 for _, value in (*a, *b))
    found = contrast(logarithms(b), logarithms(a)) if formed else None
    return Quantity(
        name=name,
        first=_summary(a),
        second=_summary(b),
        is_ratio=True,
        change=None if found is None else math.exp(found.mean),
        interval=None if found is None else exponential(found.interval),
    )


def _summary(values: Values) -> Summary | None:
    return summarize(value for _, value in values) if values else None


def _values(runs: Sequence[RunRecord], of: Measure, factor: float = 1) -> Values:
    """Of every run, or none where one lacks it: a mean over some would mislead.

    The keys, one a run, keep runs of one seed from being paired.
    """
    found = [(object(), factor * value) for run in runs if (value := of(run)) is not None]
    return found if len(found) == len(runs) else []


def _laps(side: Side) -> dict[str, float]:
    laps = [{**laps_of_slowest_rank(run), UNATTRIBUTED: unattributed_s(run)} for run in side.timed]
    names = dict.fromkeys(name for each in laps for name in each)
    return {name: sum(each.get(name, 0.0) for each in laps) / len(laps) for name in names}


def _settings(run: RunRecord) -> dict[str, Any]:
    return {**run.configuration, "overrides": ", ".join(run.overrides) or None, "data": run.data}


def _differing(
    first: Side, second: Side, fields_of: Callable[[RunRecord], Mapping[str, Any]]
) -> Differing:
    a, b = (values_by_field(side.runs, fields_of) for side in (first, second))
    return {
        name: (a.get(name, []), b.get(name, []))
        for name in [*a, *(name for name in b if name not in a)]
        if set(a.get(name, [])) != set(b.get(name, []))
    }


def _cautions(first: Side, second: Side, alike: bool) -> list[str]:
    cautions = []
    if not alike:
        hosts = {host_of(run) for run in (*first.runs, *second.runs)}
        what = "machines differ" if len(hosts) > 1 else "devices differ within a side"
        cautions.append(
            f"Times are not compared, as the {what}: "
            f"A on {' and '.join(first.machines)}; B on {' and '.join(second.machines)}. "
            "Run both on one machine to compare them; accuracies are shown all the same."
        )
    elif first.machines != second.machines:
        cautions.append(
            f"The devices differ: A on {first.machines[0]}; B on {second.machines[0]}. "
            "The ratios of times are of these."
        )
    single = [label for label, side in (("A", first), ("B", second)) if len(side.runs) == 1]
    if single:
        cautions.append(
            f"{' and '.join(single)}: a single run says nothing of its spread, so that no interval "
            "can be given; repeat with --runs 3 or more."
        )
    shared = {run.run_id for run in first.runs} & {run.run_id for run in second.runs}
    if shared:
        cautions.append(f"{len(shared)} of the runs are on both sides: they are not independent.")
    if first.runs[0].data.get("sha256") != second.runs[0].data.get("sha256"):
        cautions.append("The data differ, so that the accuracies are of different tests.")
    emulated = {run.emulated_workers for run in (*first.runs, *second.runs)}
    if len(emulated) == 2:
        cautions.append(
            "Workers took turns on one side alone: its measured time holds their sum; the modelled "
            "parallel time does not."
        )
    for label, side in (("A", first), ("B", second)):
        if beside := sum(run.had_other_work for run in side.runs):
            rest = len(side.runs) - beside
            cautions.append(
                f"{label}: other programs ran beside {beside} of its {len(side.runs)} runs, which "
                "makes their times longer; "
                + (f"times are of the other {rest}." if rest else "its times are marked.")
            )
    return cautions


def comparison_tables(found: Comparison) -> list[Table]:
    """The figures, the laps, and what differs; in the order of reading."""
    runs = (*found.first.runs, *found.second.runs)
    rows = [_quantity_row(quantity, found) for quantity in found.quantities]
    tables = [
        Table(
            name="comparison",
            title=f"{found.first.name} and {found.second.name}",
            caption=sides_line(found) + scale_note(runs),
            columns=("Quantity", "A", "B", "B - A", "B / A", "95% interval"),
            rows=tuple(rows),
            footnotes=(METHOD_NOTE, *mark_notes(row[1:] for row in rows)),
        ),
        Table(
            name="comparison_laps",
            title="Laps, side by side",
            caption="Seconds of the slowest rank, mean over the runs whose times count.",
            columns=("Lap", "A (s)", "B (s)", "B - A (s)"),
            rows=tuple(
                (name, number_cell(a), number_cell(b), f"{(b or 0.0) - (a or 0.0):.2f}")
                for name, (a, b) in found.laps_s.items()
            ),
        ),
    ]
    tables += [
        Table(
            name=name,
            title=title,
            caption="What is alike on both sides is left out.",
            columns=("Field", "A", "B"),
            rows=tuple(
                (field, *("; ".join(each) or NOTHING for each in sides))
                for field, sides in differing.items()
            ),
        )
        for name, title, differing in (
            ("comparison_configuration", "Configuration: what differs", found.configuration),
            ("comparison_machine", "Machine and code: what differs", found.machine),
        )
        if differing
    ]
    return tables


def sides_line(found: Comparison) -> str:
    """What A and B are."""
    a, b = (f"{side.name} (n = {len(side.runs)})" for side in (found.first, found.second))
    return f"A: {a}; B: {b}."


def comparison_json(found: Comparison) -> dict[str, Any]:
    """The same as plain values, with every run's name."""

    def by_side(pairs: Mapping[str, tuple[Any, Any]]) -> dict[str, Any]:
        return {name: {"A": a, "B": b} for name, (a, b) in pairs.items()}

    def about(side: Side) -> dict[str, Any]:
        runs = [run.run_id for run in side.runs]
        timed = [run.run_id for run in side.timed]
        machines = list(side.machines)
        return {"name": side.name, "runs": runs, "timed_runs": timed, "machines": machines}

    return {
        "A": about(found.first),
        "B": about(found.second),
        "cautions": list(found.cautions),
        "quantities": [
            {
                "name": quantity.name,
                "A": _summary_json(quantity.first),
                "B": _summary_json(quantity.second),
                "kind": "ratio" if quantity.is_ratio else "difference",
                "change": quantity.change,
                "interval": quantity.interval and list(asdict(quantity.interval).values()),
            }
            for quantity in found.quantities
        ],
        "laps_s": by_side(found.laps_s),
        "configuration": by_side(found.configuration),
        "machine": by_side(found.machine),
        "method": METHOD_NOTE,
    }


def _quantity_row(quantity: Quantity, found: Comparison) -> tuple[str, ...]:
    def cell(summary: Summary | None, side: Side) -> str:
        if summary is None or not quantity.is_ratio:
            return summary_cell(summary)
        marks = side.mark + UNSTABLE * summary.unstable
        return summary_cell(summary) + (f" {marks}" if marks else "")

    change = (NOTHING, number_cell(quantity.change))
    both = (cell(quantity.first, found.first), cell(quantity.second, found.second))
    interval = interval_cell(quantity.interval)
    return (quantity.name, *both, *(change if quantity.is_ratio else change[::-1]), interval)


def _summary_json(summary: Summary | None) -> dict[str, Any] | None:
    return None if summary is None else {"n": summary.n, **asdict(summary)}


# The command.


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """Compare two groups of runs: accuracies, times, laps, settings, machines.

    A and B are each a recipe or a run of RESULTS, a record's path, or a results folder; of two
    folders every recipe that both hold is compared.
    """

    first: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="A")]
    """What B is compared with."""
    second: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="B")]
    """Its times are divided by A's, and A's accuracy is subtracted from its."""
    results: Path = Path("results")
    """Results folder in which recipes and runs are looked for."""
    json: bool = False
    """Print JSON in place of tables."""
    html: Path | None = None
    """Also write the comparison as a page of its own."""


def compare_runs(options: CompareOptions) -> int:
    """Print the comparison of A and B.

    Raises:
        ValueError: no such runs, or runs that cannot be put together.
    """
    found = [compare(a, b) for a, b in pair_sides(options.first, options.second, options.results)]
    if options.html is not None:
        _write_page(found, f"{options.first} and {options.second}", options.html)
    if options.json:
        print(json.dumps([comparison_json(each) for each in found], indent=1))
        return 0
    from rich.console import Console
    from rich.text import Text

    console = Console()
    for each in found:
        console.print(Text(sides_line(each)))
        for caution in each.cautions:
            console.print(Text(caution, style="bold"))
        for table in comparison_tables(each):
            show_table(table, console)
    if options.html is not None:
        console.print(Text(f"page: {options.html}"))
    return 0


def _write_page(found: Sequence[Comparison], title: str, path: Path) -> None:
    sections = []
    for each in found:
        cautions = (Paragraph(text=caution, strong=True) for caution in each.cautions)
        names = f"{each.first.name} and {each.second.name}"
        sections.append(Section(title=names, blocks=(*cautions, *comparison_tables(each))))
    page = document_to_html(Document(title=title, opening=(), sections=tuple(sections)))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8", newline="\n")


def pair_sides(first: str, second: str, results: Path) -> list[tuple[Side, Side]]:
    """The pairs to compare: one, or one for each recipe that two folders share.

    Raises:
        ValueError: no such runs, or no recipe that both have.
    """
    sides = [(name, Path(name).is_dir(), _runs_of(name, results)) for name in (first, second)]
    if not any(is_folder for _, is_folder, _ in sides):
        a, b = (Side(name=name, runs=tuple(runs)) for name, _, runs in sides)
        return [(a, b)]
    recipes = [{run.recipe for run in runs} for _, _, runs in sides]
    pairs = []
    for recipe in sorted(recipes[0] & recipes[1]):
        a, b = (
            Side(
                name=f"{name}: {recipe}" if is_folder else name,
                runs=tuple(run for run in runs if run.recipe == recipe),
            )
            for name, is_folder, runs in sides
        )
        pairs.append((a, b))
    if not pairs:
        raise ValueError(
            f"expected a recipe that {first} and {second} both ran, found none; name a recipe or "
            "a run of each to compare these"
        )
    return pairs


def _runs_of(name: str, results: Path) -> list[RunRecord]:
    """The runs that a name, a path or a folder stands for."""
    path = Path(name)
    if path.is_dir():
        return _records_in(path)
    if path.is_file():
        return [read_record(path)]
    records = _records_in(results)
    names = [run.recipe for run in records] + [run.run_id for run in records]
    chosen = choose("run or recipe", name, dict.fromkeys(names))
    return [run for run in records if chosen in (run.recipe, run.run_id)]


def _records_in(results: Path) -> list[RunRecord]:
    content = collect(results)
    for reason in content.skipped:
        print(f"left out: {reason}", file=sys.stderr)
    if not content.records:
        raise ValueError(f"{results}: expected records in {results / 'runs'}, found none")
    return content.records
