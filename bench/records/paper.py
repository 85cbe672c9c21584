"""The published figures, results/paper.json, typed; and how far ours are from them. No torch."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.statistics import Difference, Summary, welch
from swap_fast.config.recipe import checked
from swap_fast.record import RunRecord

FILE = "paper.json"
CHECKOUT = Path(__file__).resolve().parents[2] / "results"
"""Where the file is kept; a results folder elsewhere may hold one of its own."""


@dataclass(frozen=True, kw_only=True)
class PaperTable:
    """One of the paper's tables: its number as "Table 1", its caption, the section about it."""

    table: str
    title: str
    source: str


@dataclass(frozen=True, kw_only=True)
class PaperValue:
    """One cell of the paper's Tables 1 to 4."""

    table: str
    """Such as "Table 1"."""
    row: str
    """The row's label, as printed."""
    column: str
    """Such as "test_accuracy" or "train_time"."""
    mean: float
    sd: float
    """What the paper prints after the plus-minus sign, in `units`."""
    n: int
    """Runs."""
    units: str
    """"percent", "seconds" or "minutes"."""
    device: str
    """The GPU's model, as a part of the name that CUDA gives it."""
    devices: int
    """GPUs that it was measured on; where `is_shared`, that the machine had."""
    is_shared: bool
    """Whether one machine is named for all rows, of which each used what it could."""

    @property
    def hardware(self) -> str:
        """What it was measured on, in words."""
        return f"{'one machine with ' * self.is_shared}{self.devices} NVIDIA {self.device}"

    @property
    def devices_cell(self) -> str:
        """The GPUs, for a table."""
        return f"{'up to ' * self.is_shared}{self.devices}"


@dataclass(frozen=True, kw_only=True)
class PaperSetting:
    """One cell of Tables 5 and 6, which list hyper-parameters."""

    table: str
    row: str
    """As printed, such as "Batch-size"."""
    column: str
    """Whose, as printed, such as "SWAP (Phase 1)"."""
    run: str
    """The row of Table 1 or 2 that was run with it."""
    phase: int
    """Of that run: 1 or 2."""
    value: float


@dataclass(frozen=True, kw_only=True)
class PublishedTime:
    """A published time to an accuracy on CIFAR-10."""

    name: str
    time_s: float
    target_accuracy: float
    """A fraction."""
    hardware: str
    source: str
    note: str
    """What else was said of it; may be empty."""


@dataclass(frozen=True, kw_only=True)
class PhaseOneMean:
    """How many epochs phase 1 took on average until it reached its train accuracy."""

    dataset: str
    """"cifar10" or "cifar100"."""
    epochs: float
    source: str
    """The section that says so."""


@dataclass(frozen=True, kw_only=True)
class Inconsistency:
    """Two statements of the paper that do not agree."""

    source: str
    """Which tables, sections or lines."""
    tables: tuple[str, ...]
    statement: str


@dataclass(frozen=True, kw_only=True)
class Paper:
    """All of results/paper.json."""

    source: str
    """Authors and title."""
    tables: tuple[PaperTable, ...]
    values: tuple[PaperValue, ...]
    """The cells of Tables 1 to 4."""
    settings: tuple[PaperSetting, ...]
    """Those of Tables 5 and 6."""
    claim: PublishedTime
    """Section 5.1's 27 seconds."""
    peers: tuple[PublishedTime, ...]
    """The DAWNBench leaderboard and what came after it."""
    phase1_means: tuple[PhaseOneMean, ...]
    """Of Tables 1 and 2."""
    inconsistencies: tuple[Inconsistency, ...]
    """Shown with every report."""

    def value(self, table: str, row: str, column: str) -> PaperValue:
        """The cell of that table, row and column.

        Raises:
            KeyError: the paper has no such cell.
        """
        for value in self.values:
            if (value.table, value.row, value.column) == (table, row, column):
                return value
        raise KeyError((table, row, column))

    def time_s(self, table: str, row: str) -> float:
        """A row's training time in seconds, whatever it is printed in.

        Raises:
            KeyError: the paper has no such row.
        """
        cell = self.value(table, row, "train_time")
        return cell.mean * {"seconds": 1, "minutes": 60}[cell.units]

    def phase1_mean(self, dataset: str) -> PhaseOneMean:
        """How many epochs phase 1 took on this data set.

        Raises:
            KeyError: the paper does not say.
        """
        return {mean.dataset: mean for mean in self.phase1_means}[dataset]


def load_paper(results: Path = CHECKOUT) -> Paper:
    """Read `paper.json` of the results folder, or, where it has none, the one kept with the code.

    Raises:
        ValueError: there is none, or it is not of this form.
    """
    places = [folder / FILE for folder in (results, CHECKOUT)]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise ValueError(
            f"published figures: expected the file {places[0]}, got none; "
            f"copy results/{FILE} of the source there"
        )
    try:
        return checked(json.loads(path.read_text(encoding="utf-8")), Paper, path.name)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path.name}: expected the published figures, got {error}; restore the file"
        ) from None


# Ours compared with the paper's: a verdict by Welch's test, and which runs may be compared.

ACCURACY_MARGIN = 0.3
"""Points of percent within which an accuracy counts as reproduced."""
TIME_MARGIN = 0.05
"""Share of the published time within which a time does."""

REPRODUCED, LOWER, HIGHER = "reproduced", "lower", "higher"
NOT_DISTINGUISHABLE = "not distinguishable"
NOT_COMPARED = "other hardware, net or data: not compared"

VERDICT_NOTE = (
    f"Verdict: {REPRODUCED}: the 95% interval of the difference from the paper (Welch) lies within "
    f"{ACCURACY_MARGIN:g} points, of times within {TIME_MARGIN:.0%}; {LOWER}, {HIGHER}: else, it "
    f"excludes 0; {NOT_DISTINGUISHABLE}: neither."
)


def difference_from(ours: Summary, published: PaperValue) -> Difference | None:
    """How far ours, in the paper's units, is from the published; None for a single run."""
    return welch((ours.mean, ours.std, ours.n), (published.mean, published.sd, published.n))


def verdict(ours: Summary, published: PaperValue) -> str:
    """What can be said of ours, in the paper's units, against the published figure."""
    difference = difference_from(ours, published)
    if difference is None:
        return NOT_DISTINGUISHABLE
    interval = difference.interval
    is_accuracy = published.units == "percent"
    margin = ACCURACY_MARGIN if is_accuracy else TIME_MARGIN * published.mean
    if -margin <= interval.low and interval.high <= margin:
        return REPRODUCED
    if interval.high < 0:
        return LOWER
    return HIGHER if interval.low > 0 else NOT_DISTINGUISHABLE


def is_comparable(records: Sequence[RunRecord], published: PaperValue) -> bool:
    """Whether the runs may be compared with the published figure.

    All need the paper's net, data and epochs; times also its hardware: as many V100 as the paper
    names, one process on each. Where it names a machine for all of a table's rows (Table 4), those
    of them that the recipe can use.
    """
    if not all(record.comparable for record in records):
        return False
    if published.units == "percent":
        return True
    devices = published.devices
    return all(
        published.device in record.machine["device"]
        and record.num_devices
        == (min(devices, record.settings.num_replicas) if published.is_shared else devices)
        and not record.emulated_workers
        for record in records
    )


def judge(ours: Summary, published: PaperValue, records: Sequence[RunRecord]) -> str:
    """The verdict on a figure of these runs, in the paper's units."""
    return verdict(ours, published) if is_comparable(records, published) else NOT_COMPARED
