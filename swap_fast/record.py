"""A run's record: one JSON file, written once, from which every table and figure is made.

A record is checked when it is read, field by field; what is handed on is typed and whole. This
module needs no torch, so that a report can be drawn anywhere.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from importlib import metadata
from typing import Annotated, Any, Literal, NotRequired, TypedDict

from msgspec import Meta

from swap_fast.clock import READINGS
from swap_fast.config.recipe import RECIPE_KINDS, Method, Recipe, recipe_from
from swap_fast.config.step_choice import StepChoice, StepName

SCHEMA_VERSION = 7

LARGEST = 10**18
"""No number of a record is larger: what a damaged one gives would overflow where it is drawn."""
Amount = Annotated[float, Meta(ge=0, le=LARGEST)]
"""Seconds, GiB, joules, distances."""
Duration = Annotated[float, Meta(gt=0, le=LARGEST)]
"""Seconds of what took some time, over which other numbers are divided."""
Fraction = Annotated[float, Meta(ge=0, le=1)]
"""An accuracy, an error, a share."""
Cosine = Annotated[float, Meta(ge=-1.000001, le=1.000001)]
"""Rounding leads a little beyond 1."""
Index = Annotated[int, Meta(ge=0, le=LARGEST)]
"""A count that may be 0, or a number from 0."""
Count = Annotated[int, Meta(ge=1, le=LARGEST)]
"""A count, or a number from 1."""

DeviceType = Literal["cpu", "cuda"]

CPU_UNITS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
"""Vector and matrix units that decide a CPU's speed, as Linux names them: virtual machines of one
CPU model do not all have the same."""

Flag = Literal["degraded", "profiled"]
"""What keeps a run out of every table: an average that lacks workers; the profiler ran in it."""


class Machine(TypedDict):
    """What something was measured on."""

    device_type: DeviceType
    device: str  # the model
    device_count: Count  # GPUs, or CPU cores, that the machine has
    cpu: str
    cpu_count: Count
    cpu_units: NotRequired[list[str]]  # of `CPU_UNITS`; Linux only
    memory_gib: Amount
    system: str
    python: str
    driver: str | None
    cuda: str | None
    libraries: dict[str, str | None]  # their versions


class Code(TypedDict):
    """What ran."""

    version: str | None
    commit: str | None
    changed: bool | None  # whether files differed from the commit


class Data(TypedDict):
    """The images of a run."""

    name: Literal["cifar10", "cifar100", "synthetic", "imagenet"]
    kind: Literal["published", "subset", "synthetic", "own", "held-out"]
    sha256: str  # of the content
    train_images: Count
    test_images: Count
    held_out: NotRequired[Count]  # training images on which a search's run is tested
    classes: NotRequired[Count]  # of a tree of files, as what follows
    prepared_size: NotRequired[Count | None]
    skipped_files: NotRequired[Index]


class ExecutionSettings(TypedDict):
    """How the arithmetic was done: `swap_fast.config.execution.Execution`."""

    device_type: DeviceType
    precision: Literal["fp16", "bf16", "fp32"]
    memory_format: Literal["channels_last", "contiguous"]
    step: StepName
    capture: bool
    all_reduce: Literal["fp16", "fp32"]
    all_reduce_buckets: NotRequired[Count]  # where there are several
    loader: str


class Configuration(TypedDict):
    """The whole recipe and how it was executed."""

    recipe: dict[str, Any]  # typed: `RunRecord.settings`
    execution: ExecutionSettings


class Start(TypedDict):
    """Where phase 1 was taken over from."""

    run_id: str
    origin: str  # the model's hash


class Interruptions(TypedDict):
    """How often a run was resumed from a checkpoint."""

    count: Count
    lost_s: Amount  # seconds


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochRow:
    """One epoch of one model."""

    phase: int
    """1 or 2."""
    worker: Index
    """The model of phase 2, from 0; 0 in phase 1, where all workers share one."""
    epoch: Count
    """Epochs done in this phase, from 1."""
    learning_rate: float
    """Of the epoch's last update."""
    train_loss: float
    """Mean over the epoch's own batches."""
    train_accuracy: float
    """Mean over the epoch's own augmented batches, a fraction."""
    time_s: Amount
    """The paper's reading of this rank's clock at the epoch's end."""
    test_accuracy: float | None = None
    """After the epoch, a fraction; None where it was not evaluated."""
    test_top5_accuracy: float | None = None
    """Likewise, with the right class among the first five; of ImageNet only."""
    mirrored_test_accuracy: float | None = None
    """Likewise, of the mean logits of an image and its mirror image; where the recipe has it."""
    noise_scale: float | None = None
    """The epoch's gradient noise scale in images; None where it was not measured, which it is in a
    phase that ends by it, or where the noise hid the gradient."""
    skipped_updates: Index = 0
    """The epoch's updates that were left out, since their gradient overflowed fp16."""


ACCURACIES = ("train_accuracy", "test_accuracy", "test_top5_accuracy", "mirrored_test_accuracy")
"""Fields of a row that are fractions in a record; `swap_fast.swap` has other metrics in theirs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AverageRow:
    """The average of all workers, were phase 2 to stop after this epoch (Figure 1)."""

    epoch: Count
    """Epochs done in phase 2, from 1."""
    test_accuracy: Fraction
    """With batch-norm statistics of its own, a fraction."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Times:
    """Training times in seconds, by the paper's reading of the clock, and the laps behind them."""

    before_averaging_s: Duration | None
    """Up to the slowest rank's end of phase 2; None without phase 2."""
    after_averaging_s: Duration
    """The whole: with averaging and the batch-norm pass. Of SGD: its only time."""
    modelled_before_averaging_s: Duration | None
    """As `before_averaging_s`, had every worker of phase 2 run at the same time."""
    modelled_after_averaging_s: Duration
    """As `after_averaging_s`, had every worker of phase 2 run at the same time."""
    readings_s: dict[str, Amount]
    """The paper's, DAWNBench's and MLPerf's reading: sums of laps of the slowest rank."""
    reading_laps: dict[str, list[str]]
    """The laps that each reading sums."""
    laps_by_rank: list[dict[str, Amount]]
    """Every lap of every rank, counted or not."""
    worker_phase2_s: list[Amount]
    """Each worker's own time in phase 2."""
    wall_s: Duration
    """From the process's start to the record, whatever ran."""

    def __post_init__(self) -> None:
        """Refuse times that lack a rank or a reading."""
        if not self.laps_by_rank:
            raise ValueError("laps_by_rank: expected the laps of a rank or more, got none")
        for name, found in (("readings_s", self.readings_s), ("reading_laps", self.reading_laps)):
            if missing := set(READINGS) - set(found):
                raise ValueError(f"{name}: missing {', '.join(sorted(missing))}")


@dataclass(frozen=True, kw_only=True, slots=True)
class LapTelemetry:
    """What a device did during one lap; None is what its driver could not tell."""

    samples: Index
    """How often it was read. What follows, but the energy, is over these."""
    energy_j: Amount | None
    """By the device's own counter, read at both ends of the lap."""
    mean_power_w: Amount | None
    """Of the whole board."""
    mean_sm_clock_mhz: Amount | None
    """Of the multiprocessors."""
    lowest_sm_clock_mhz: Amount | None
    """Of the multiprocessors."""
    mean_memory_clock_mhz: Amount | None
    """Of the device's memory."""
    mean_utilization: Fraction | None
    """Share of the time in which a kernel ran, a fraction."""
    peak_memory_used_gib: Amount | None
    """By all processes on the device."""
    peak_temperature_c: Amount | None
    """Of the chip."""
    throttle_reasons: dict[str, Fraction] | None
    """What kept the clocks from being higher, and in which share of the samples."""

    def __post_init__(self) -> None:
        """Refuse means and shares of no samples."""
        over_samples = {k: v for k, v in asdict(self).items() if k not in ("samples", "energy_j")}
        if self.samples < 1 and any(value is not None for value in over_samples.values()):
            raise ValueError(f"samples: expected 1 or more, got {self.samples}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Telemetry:
    """What the driver says of one rank's device during a run."""

    device: str | None
    """The device's name."""
    driver: str | None
    """The driver's version."""
    interval_s: Amount
    """From one sample to the next."""
    laps: dict[str, LapTelemetry]
    """Of every lap that ran while the device was watched."""
    missing: dict[str, str]
    """What is None from some moment on, and why, in the driver's words."""


QUIET_CORES = 0.1
"""CPU cores, on average, from which on other programs count: those of an idle machine use fewer."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """All that is known of one run."""

    run_id: str
    """Unique, and the file's name."""
    recipe: str
    """The recipe's name."""
    method: Method
    seed: int
    """Of the initial weights, the orders and the augmentation."""
    created: str
    """UTC, ISO 8601."""
    configuration: Configuration
    overrides: list[str]
    """What the command line changed in the recipe."""
    code: Code
    data: Data
    machine: Machine
    world_size: Count
    """Processes."""
    threads: Count
    """CPU threads a process."""
    is_pinned: bool = False
    """Whether each process ran on a CPU core that no other run had; False of CUDA devices."""
    flags: list[Flag] = field(default_factory=list)
    emulated_workers: bool
    """Whether fewer processes than the recipe's devices did their work, some of it in turn."""
    stopped_by: str
    """What ended phase 1: "stopping_accuracy", "noise_scale" or "max_epochs"."""
    phase1_epochs: Count
    """Epochs that phase 1 took."""
    epochs: list[EpochRow]
    """Phase 1's rows, then each worker's of phase 2."""
    worker_accuracies: list[Fraction]
    """Test accuracy of each worker at its end; of SGD: of the model."""
    accuracy_before_averaging: Fraction | None
    """Their mean; None without phase 2."""
    test_accuracy: Fraction
    """Of the final model: after averaging, or of SGD's last epoch."""
    pairwise_distances: list[list[Amount]]
    """Euclidean distances between the averaged models; empty without phase 2."""
    average_by_epoch: list[AverageRow]
    """Figure 1's running average; of SWA, the average of its samples after each cycle."""
    times: Times
    """The clock."""
    peak_memory_gib: Amount
    """Largest resident memory of any process on its host, its earlier runs included."""
    test_top5_accuracy: Fraction | None = None
    """Share of test images with the right class among the first five; of ImageNet only."""
    mirrored_test_accuracy: Fraction | None = None
    """Of the final model by the mean logits of an image and its mirror image; None: not measured,
    since the recipe has no `mirrored_evaluation`."""
    mirrored_accuracy_before_averaging: Fraction | None = None
    """Likewise, the workers' mean; None without phase 2."""
    telemetry: list[Telemetry] | None = None
    """One entry a rank, for the device that it used; None on CPUs."""
    peak_device_reserved_gib: Amount | None = None
    """Most memory that torch's allocator held of any process's device, its earlier runs included;
    not what NCCL, DALI and CUDA itself take. None on CPUs."""
    peak_device_allocated_gib: Amount | None = None
    """Likewise, most memory that tensors took of it."""
    displacement_norms: list[Amount] = field(default_factory=list)
    """Of theta_w - theta_T for each averaged model w; empty without phase 2."""
    displacement_cosines: list[list[Cosine]] = field(default_factory=list)
    """Among these differences; empty without phase 2."""
    start: Start | None = None
    """None: the run trained its own phase 1."""
    interruptions: Interruptions | None = None
    """None: never."""
    other_work: Amount | None = None
    """CPU cores that other programs used on a host of the run meanwhile, on average; None: not
    known, as of a resumed run whose last process was alone. Where workers ran separately, it is
    of the last process."""
    step_choice: StepChoice | None = None
    """Which step ran and why, where that was left to the warm-up."""
    notes: list[str] = field(default_factory=list)
    """For a reader; nothing is decided by them."""
    schema_version: int = SCHEMA_VERSION

    def check(self) -> None:
        """Refuse fields that do not agree with each other, and a recipe that no run could have.

        Raises:
            ValueError: which, and why.
        """
        recipe, ranks = self.settings, len(self.times.laps_by_rank)
        phases = range(1, len(recipe.phases) + 1)
        if len(phases) == 1 and "degraded" in self.flags:
            raise ValueError("flags: expected degraded of a run that averages models alone")
        tested = {row.phase for row in self.epochs if row.test_accuracy is not None}
        if missing := set(phases) - tested:
            raise ValueError(f"epochs: expected a tested one in phase {min(missing)}, got none")
        rows = sum(row.phase == 1 for row in self.epochs)
        if rows != self.phase1_epochs:
            raise ValueError(f"phase1_epochs: expected the {rows} rows, got {self.phase1_epochs}")
        for name in ACCURACIES:
            odd = [x for row in self.epochs if not 0 <= (x := getattr(row, name) or 0.0) <= 1]
            if odd:
                raise ValueError(f"epochs, {name}: expected fractions, got {odd[0]}")
        if self.telemetry and len(self.telemetry) != ranks:
            raise ValueError(f"telemetry: expected {ranks} ranks, got {len(self.telemetry)}")
        for name, matrix in (
            ("pairwise_distances", self.pairwise_distances),
            ("displacement_cosines", self.displacement_cosines),
        ):
            if any(len(row) != len(matrix) for row in matrix):
                raise ValueError(f"{name}: expected a square matrix, got rows of unlike length")

    @cached_property
    def settings(self) -> Recipe:
        """The recipe, checked as a new one is."""
        return recipe_from(
            self.configuration["recipe"], RECIPE_KINDS[self.method], where=self.run_id
        )

    @property
    def num_devices(self) -> int:
        """Devices that the run used, of the model `machine["device"]`: GPUs, or CPU cores."""
        return count_devices(self.machine["device_type"], self.world_size, self.threads)

    @property
    def had_other_work(self) -> bool:
        """Whether other programs ran beside, which makes its times longer."""
        return (self.other_work or 0.0) >= QUIET_CORES

    @property
    def comparable(self) -> bool:
        """Whether net, data and epochs are the paper's, as far as the record can tell."""
        paper_scale = self.settings.paper_scale
        return paper_scale and self.data["kind"] == "published" and not self.overrides


def count_devices(device_type: DeviceType, processes: int, threads: int) -> int:
    """A GPU is a process's; on CPUs a device is a core, and runs one thread."""
    return processes if device_type == "cuda" else processes * threads


def library_version(name: str) -> str | None:
    """The installed version; None where it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def plain(value: Any) -> Any:
    """A value as JSON keeps it: tuples are lists."""
    return json.loads(json.dumps(value))


def run_id(recipe: str, seed: int, created: str) -> str:
    """A run's name: recipe, seed and second of its start, safe as a file name."""
    stamp = re.sub(r"\D", "", created)[:14]
    return f"{re.sub(r'[^A-Za-z0-9_-]', '-', recipe)}-seed{seed}-{stamp}"


def flatten(values: Mapping[str, Any], at: str = "") -> dict[str, Any]:
    """Dictionaries within dictionaries as one, its names joined by dots."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= flatten(value, f"{at}{name}.") if isinstance(value, dict) else {at + name: value}
    return flat


def now() -> str:
    """The present time as a record has it."""
    return datetime.now(UTC).isoformat(timespec="seconds")
