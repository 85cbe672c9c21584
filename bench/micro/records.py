"""Records of `python -m bench micro`: written once, checked when they are read. No torch."""

import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from bench.options import MicroNet
from bench.records.grouping import NETS
from swap_fast.record import LARGEST, Amount, Code, Count, Index, Machine
from swap_fast.record_files import read_folder, read_json_record, write_json_record

SCHEMA_VERSION = 3

What = Literal["step", "data", "jpeg", "workers", "collective"]
Unit = Literal["images", "FLOP", "bytes"]


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The counted cost of training on one image: the same for every variant that does that."""

    flop: float
    """Floating-point operations forward and backward; a multiplication and an addition are two."""
    bytes: float
    """Memory traffic, as `bench.net_cost` counts it."""

    def __post_init__(self) -> None:
        """Refuse a cost of nothing, over which nothing can be divided."""
        if not all(0 < each <= LARGEST for each in (self.flop, self.bytes)):
            raise ValueError(f"cost: expected more than 0, got {self.flop} and {self.bytes}")


@dataclass(frozen=True, kw_only=True)
class Described:
    """What is said of a variant before and after it was timed."""

    name: str
    unit: Unit = "images"
    """Of what is counted in a second."""
    processes: Count = 1
    threads: Count = 1
    """Of each process."""
    cost: Cost | None = None
    """Of an image, where it is known."""
    is_ours: bool = False
    """Whether it is how runs of this package do it."""
    is_headline: bool = False
    """Whether the README's speed table compares it with the first variant of its group."""


@dataclass(frozen=True, kw_only=True)
class Timing(Described):
    """A variant's speed in each round, and against the first variant of the list."""

    per_s: list[float]
    """Units a second in each round, of all processes together."""
    ratios: list[Amount] = field(default_factory=list)
    """The first variant's units a second over this one's; none where the units differ."""
    facts: dict[str, Amount] = field(default_factory=dict)
    """Of an `ObservedTurn`."""

    def __post_init__(self) -> None:
        """Refuse what no rounds can give."""
        if not self.per_s or not all(0 < speed <= LARGEST for speed in self.per_s):
            raise ValueError(f"{self.name}: expected speeds above 0, got {self.per_s}")
        compared = self.unit == "images" or self.is_headline
        if compared and len(self.ratios) != len(self.per_s):
            raise ValueError(f"{self.name}: expected {len(self.per_s)} ratios, got {self.ratios}")

    @property
    def median(self) -> float:
        """Median units a second over the rounds."""
        return statistics.median(self.per_s)

    @property
    def ratio(self) -> tuple[float, float, float]:
        """The first variant's speed over this one's, round by round: minimum, median, maximum."""
        return min(self.ratios), statistics.median(self.ratios), max(self.ratios)


@dataclass(frozen=True, kw_only=True)
class Message:
    """All-reduces of one size and type, and copies of as many bytes within each process."""

    bytes: Count
    precision: Literal["fp32", "fp16"]
    gradient: bool
    """Whether it has the size of the net's gradient."""
    all_reduce_s: list[float]
    """Seconds of one call in each round, of the slowest rank."""
    copy_s: list[float]

    def __post_init__(self) -> None:
        """Refuse what no rounds can give."""
        for seconds in (self.all_reduce_s, self.copy_s):
            if not seconds or not all(0 < each <= LARGEST for each in seconds):
                raise ValueError(f"{self.bytes} bytes: expected times above 0, got {seconds}")

    @property
    def median_s(self) -> float:
        """Of an all-reduce."""
        return statistics.median(self.all_reduce_s)

    @property
    def copy_bytes_per_s(self) -> float:
        """The median copy's."""
        return self.bytes / statistics.median(self.copy_s)


@dataclass(frozen=True, kw_only=True)
class Collective:
    """All-reduces by message size."""

    backend: Literal["gloo", "nccl"]
    ranks: Count
    threads: Count
    """CPU threads a rank."""
    rows: list[Message]
    left_out: list[str]
    """What the backend cannot do, in its words."""

    def bus_bandwidth(self, message: Message) -> float:
        """Bytes a second that each rank's link carries in the median all-reduce."""
        return bus_bandwidth(message.bytes, message.median_s, self.ranks)


def bus_bandwidth(num_bytes: int, seconds: float, ranks: int) -> float:
    """Bytes a second that each rank's link carries in an all-reduce, as NCCL's tests define it.

    2 (n - 1) / n x bytes / time: what the best algorithm must move, so that the figure can be held
    against a link's speed, whatever the number n of ranks.
    """
    return 2 * (ranks - 1) / ranks * num_bytes / seconds


@dataclass(frozen=True, kw_only=True)
class MicroRecord:
    """One measurement: what, where, when, and what each variant achieved."""

    what: What
    created: str
    """ISO 8601 with its time zone."""
    width: Index
    """Channels of the net's first block."""
    net: MicroNet = "resnet9"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: fp16 on CUDA devices, fp32 on CPUs."""
    batch_size: Count
    """Images a step."""
    threads: Count
    """CPU threads in all."""
    rounds: Count
    """In which every variant was timed once."""
    machine: Machine
    code: Code
    results: dict[str, list[Timing]] = field(default_factory=dict)
    """Variants that took turns, by their group's title; the first is the reference."""
    collective: Collective | None = None
    """Of a collective, which has no other results."""
    notes: tuple[str, ...] = ()
    """What a reader must know, such as the data."""
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        """Refuse a record without its results."""
        if not self.results if self.collective is None else self.collective.ranks < 2:
            raise ValueError("expected the results of a group, or of 2 ranks or more, got none")
        if not all(self.results.values()):
            raise ValueError("results: expected a variant or more in each group, got none")

    @property
    def key(self) -> tuple[str, str, int, str, str]:
        """Of the records with one key, a report shows the newest."""
        width = 0 if self.what == "data" else self.width
        return self.what, self.machine["device_type"], width, self.net, self.precision

    @property
    def name(self) -> str:
        """For the files of its tables and figures."""
        what, device, width, net, precision = self.key
        more = [f"width{width}"] * (width > 0) + [net] * (net != "resnet9")
        return "_".join(["micro", what, device, *more, *[precision] * (precision != "auto")])

    @property
    def net_words(self) -> str:
        """Such as "SpeedNet of width 64, bf16"; nothing of an input path."""
        if self.what in ("data", "jpeg"):
            return ""
        precision = "" if self.precision == "auto" else f", {self.precision}"
        return f"{NETS[self.net]} of width {self.width}{precision}"

    def work(self, title: str) -> str:
        """A group's title with what it does not say: the net, or the batch of an input path."""
        return f"{title}, {self.net_words or f'batch {self.batch_size}'}"

    @property
    def file(self) -> str:
        """The name of the record's own file: it ends in the record's time."""
        return f"micro-{self.what}-{self.machine['device_type']}-{time_stamp(self.created)}.json"


def write_micro_record(record: MicroRecord, folder: Path) -> Path:
    """Write a record to a file of its own, whose name ends in its time."""
    return write_json_record(asdict(record), folder, record.file.removesuffix(".json"))


def time_stamp(created: str) -> str:
    """A record's time as its file's name has it."""
    return created[:19].replace(":", "").replace("-", "")


def read_micro_records(folder: Path) -> tuple[list[MicroRecord], list[str]]:
    """The newest record of each key, in the order of the keys, and why other files were left out.

    Older records of a key are passed over in silence: they are no fault.
    """
    records, skipped = read_folder(
        folder, lambda path: read_json_record(path, MicroRecord, SCHEMA_VERSION)
    )
    newest = {record.key: record for record in records}  # a file's name ends in its time
    return [record for _, record in sorted(newest.items())], skipped


@dataclass(frozen=True, kw_only=True)
class PeakShares:
    """A variant's median speed as arithmetic, and as shares of the device's measured peak."""

    flop_per_s: float
    """Counted operations a second."""
    matrix_share: float | None
    """Of the matrix product's operations a second, with the same processes and threads."""
    bandwidth_share: float | None
    """Of the copy's bytes a second; may be over 1 where caches serve what is counted."""


def peak_shares(timing: Timing, group: list[Timing]) -> PeakShares | None:
    """A variant against the peak measured in its own group; None without a counted cost."""
    if timing.cost is None:
        return None
    flop_per_s, bytes_per_s = timing.median * timing.cost.flop, timing.median * timing.cost.bytes
    matrix, copy = (measured_peak(group, unit, timing) for unit in ("FLOP", "bytes"))
    return PeakShares(
        flop_per_s=flop_per_s,
        matrix_share=None if matrix is None else flop_per_s / matrix,
        bandwidth_share=None if copy is None else bytes_per_s / copy,
    )


def measured_peak(group: list[Timing], unit: Unit, like: Timing) -> float | None:
    """Units a second that the device reached with as many processes and threads."""
    found = [
        each.median
        for each in group
        if (each.unit, each.processes, each.threads) == (unit, like.processes, like.threads)
    ]
    return statistics.median(found) if found else None
