"""The published figures, to compare ours with: results/paper.json, typed. No torch."""

import json
from dataclasses import dataclass
from pathlib import Path

FILE = "paper.json"
CHECKOUT = Path(__file__).resolve().parents[2] / "results"
"""Where the file is kept; a results folder elsewhere may hold one of its own."""


@dataclass(frozen=True, kw_only=True)
class PaperTable:
    """One of the paper's tables."""

    table: str
    """Such as "Table 1"."""
    title: str
    """Its caption."""
    source: str
    """The section that describes it."""


@dataclass(frozen=True, kw_only=True)
class PaperValue:
    """One cell of the paper's Tables 1 to 4."""

    table: str
    """Such as "Table 1"."""
    row: str
    """The row's label, as printed."""
    column: str
    """What it is, such as "test_accuracy" or "train_time"."""
    mean: float
    """As printed, in `units`."""
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
    """Such as "Table 5"."""
    row: str
    """What it is, as printed, such as "Batch-size"."""
    column: str
    """Whose, as printed, such as "SWAP (Phase 1)"."""
    run: str
    """The row of Table 1 or 2 that was run with it."""
    phase: int
    """Of that run: 1 or 2."""
    value: float
    """As printed."""


@dataclass(frozen=True, kw_only=True)
class PublishedTime:
    """A published time to an accuracy on CIFAR-10."""

    name: str
    """Whose."""
    time_s: float
    """Seconds to `target_accuracy`."""
    target_accuracy: float
    """A fraction."""
    hardware: str
    """What it was measured on."""
    source: str
    """Where it was published."""
    note: str
    """What else was said of it; may be empty."""


@dataclass(frozen=True, kw_only=True)
class PhaseOneMean:
    """How many epochs phase 1 took on average until it reached its train accuracy."""

    dataset: str
    """"cifar10" or "cifar100"."""
    epochs: float
    """The mean."""
    source: str
    """The section that says so."""


@dataclass(frozen=True, kw_only=True)
class Inconsistency:
    """Two statements of the paper that do not agree."""

    source: str
    """Which tables, sections or lines."""
    tables: tuple[str, ...]
    """Those tables."""
    statement: str
    """What they say."""


@dataclass(frozen=True, kw_only=True)
class Paper:
    """All of results/paper.json."""

    source: str
    """Authors and title."""
    tables: tuple[PaperTable, ...]
    """Tables 1 to 6."""
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
        content = json.loads(path.read_text(encoding="utf-8"))
        return Paper(
            source=content["source"],
            tables=tuple(PaperTable(**each) for each in content["tables"]),
            values=tuple(PaperValue(**each) for each in content["values"]),
            settings=tuple(PaperSetting(**each) for each in content["settings"]),
            claim=PublishedTime(**content["claim"]),
            peers=tuple(PublishedTime(**each) for each in content["peers"]),
            phase1_means=tuple(PhaseOneMean(**each) for each in content["phase1_means"]),
            inconsistencies=tuple(
                Inconsistency(**each | {"tables": tuple(each["tables"])})
                for each in content["inconsistencies"]
            ),
        )
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path.name}: expected the published figures, got {error!r}; restore the file"
        ) from None
