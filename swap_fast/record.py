"""A run's record: one JSON file, written once, from which every table and figure is made.

A record is checked when it is read, field by field; what is handed on is typed and whole. This
module needs no torch, so that a report can be drawn anywhere.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict, TypeVar

from swap_fast.config.recipe import RECIPE_KINDS, AveragingRecipe, Recipe, checked, recipe_from
from swap_fast.files import write_file

SCHEMA_VERSION = 6

DeviceType = Literal["cpu", "cuda"]

Flag = Literal["degraded", "profiled"]
"""What keeps a run out of every table: an average that lacks workers; the profiler ran in it."""

READINGS = ("paper", "dawnbench", "mlperf")
"""The readings of the clock that each record has."""


class Machine(TypedDict):
    """What something was measured on."""

    device_type: DeviceType
    device: str  # the model
    device_count: int  # GPUs, or CPU cores, that the machine has
    cpu: str
    cpu_count: int
    memory_gib: float
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
    train_images: int
    test_images: int
    held_out: NotRequired[int]  # training images on which a search's run is tested
    classes: NotRequired[int]  # of a tree of files, as what follows
    prepared_size: NotRequired[int | None]
    skipped_files: NotRequired[int]


class ExecutionSettings(TypedDict):
    """How the arithmetic was done: `swap_fast.config.execution.Execution`."""

    device_type: DeviceType
    precision: Literal["fp16", "bf16", "fp32"]
    memory_format: Literal["channels_last", "contiguous"]
    compile: bool
    capture: bool
    all_reduce: Literal["fp16", "fp32"]
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
    """How often a run went on from a checkpoint."""

    count: int
    lost_s: float  # seconds


@dataclass(frozen=True, kw_only=True)
class EpochRow:
    """One epoch of one model."""

    phase: int
    """1 or 2."""
    worker: int
    """The model of phase 2, from 0; 0 in phase 1, where all workers share one."""
    epoch: int
    """Epochs done in this phase, from 1."""
    learning_rate: float
    """Of the epoch's last update."""
    train_loss: float
    """Mean over the epoch's own batches."""
    train_accuracy: float
    """Mean over the epoch's own augmented batches, a fraction."""
    time_s: float
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
    skipped_updates: int = 0
    """The epoch's updates that were left out, since their gradient overflowed fp16."""


@dataclass(frozen=True, kw_only=True)
class AverageRow:
    """The average of all workers, were phase 2 to stop after this epoch (Figure 1)."""

    epoch: int
    """Epochs done in phase 2, from 1."""
    test_accuracy: float
    """With batch-norm statistics of its own, a fraction."""


@dataclass(frozen=True, kw_only=True)
class Times:
    """Training times in seconds, by the paper's reading of the clock, and the laps behind them."""

    before_averaging_s: float | None
    """Up to the slowest rank's end of phase 2; None without phase 2."""
    after_averaging_s: float
    """The whole: with averaging and the batch-norm pass. Of SGD: its only time."""
    modelled_before_averaging_s: float | None
    """As `before_averaging_s`, had every worker of phase 2 run at the same time."""
    modelled_after_averaging_s: float
    """As `after_averaging_s`, had every worker of phase 2 run at the same time."""
    readings_s: dict[str, float]
    """The paper's, DAWNBench's and MLPerf's reading: sums of laps of the slowest rank."""
    reading_laps: dict[str, list[str]]
    """The laps that each reading sums."""
    laps_by_rank: list[dict[str, float]]
    """Every lap of every rank, counted or not."""
    worker_phase2_s: list[float]
    """Each worker's own time in phase 2."""
    wall_s: float
    """From the process's start to the record, whatever ran."""

    def __post_init__(self) -> None:
        """Refuse times that lack a rank or a reading."""
        if not self.laps_by_rank:
            raise ValueError("laps_by_rank: expected the laps of a rank or more, got none")
        for name, found in (("readings_s", self.readings_s), ("reading_laps", self.reading_laps)):
            if missing := set(READINGS) - set(found):
                raise ValueError(f"{name}: missing {', '.join(sorted(missing))}")


@dataclass(frozen=True, kw_only=True)
class LapTelemetry:
    """What a device did during one lap; None is what its driver could not tell."""

    samples: int
    """How often it was read. What follows, but the energy, is over these."""
    energy_j: float | None
    """By the device's own counter, read at both ends of the lap."""
    mean_power_w: float | None
    """Of the whole board."""
    mean_sm_clock_mhz: float | None
    """Of the multiprocessors."""
    lowest_sm_clock_mhz: float | None
    """Of the multiprocessors."""
    mean_memory_clock_mhz: float | None
    """Of the device's memory."""
    mean_utilization: float | None
    """Share of the time in which a kernel ran, a fraction."""
    peak_memory_used_gib: float | None
    """By all processes on the device."""
    peak_temperature_c: float | None
    """Of the chip."""
    throttle_reasons: dict[str, float] | None
    """What kept the clocks from being higher, and in which share of the samples."""

    def __post_init__(self) -> None:
        """Refuse shares of no samples."""
        if self.throttle_reasons and self.samples < 1:
            raise ValueError(f"samples: expected 1 or more, got {self.samples}")


@dataclass(frozen=True, kw_only=True)
class Telemetry:
    """What the driver told of one rank's device during a run."""

    device: str | None
    """The device's name."""
    driver: str | None
    """The driver's version."""
    interval_s: float
    """From one sample to the next."""
    laps: dict[str, LapTelemetry]
    """Of every lap that ran while the device was watched."""
    missing: dict[str, str]
    """What is None from some moment on, and why, in the driver's words."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """All that is known of one run."""

    run_id: str
    """Unique, and the file's name."""
    recipe: str
    """The recipe's name."""
    method: Literal["swap", "swa", "sgd"]
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
    world_size: int
    """Processes."""
    threads: int
    """CPU threads a process."""
    is_pinned: bool = False
    """Whether each process ran on a CPU core that no other run had; False of CUDA devices."""
    flags: list[Flag] = field(default_factory=list)
    emulated_workers: bool
    """Whether fewer processes than the recipe's devices did their work, some of it in turn."""
    stopped_by: str
    """What ended phase 1: "stopping_accuracy", "noise_scale" or "max_epochs"."""
    phase1_epochs: int
    """Epochs that phase 1 took."""
    epochs: list[EpochRow]
    """Phase 1's rows, then each worker's of phase 2."""
    worker_accuracies: list[float]
    """Test accuracy of each worker at its end; of SGD: of the model."""
    accuracy_before_averaging: float | None
    """Their mean; None without phase 2."""
    test_accuracy: float
    """Of the final model: after averaging, or of SGD's last epoch."""
    pairwise_distances: list[list[float]]
    """Euclidean distances between the averaged models; empty without phase 2."""
    average_by_epoch: list[AverageRow]
    """Figure 1's running average; of SWA, the average of its samples after each cycle."""
    times: Times
    """The clock."""
    peak_memory_gib: float
    """Largest resident memory of any process on its host, its earlier runs included."""
    test_top5_accuracy: float | None = None
    """Share of test images with the right class among the first five; of ImageNet only."""
    mirrored_test_accuracy: float | None = None
    """Of the final model by the mean logits of an image and its mirror image; None: not measured,
    since the recipe has no `mirrored_evaluation`."""
    mirrored_accuracy_before_averaging: float | None = None
    """Likewise, the workers' mean; None without phase 2."""
    telemetry: list[Telemetry] | None = None
    """One entry a rank, for the device that it used; None on CPUs."""
    peak_device_reserved_gib: float | None = None
    """Most memory that torch's allocator held of any process's device, its earlier runs included;
    not what NCCL, DALI and CUDA itself take. None on CPUs."""
    peak_device_allocated_gib: float | None = None
    """Likewise, most memory that tensors took of it."""
    displacement_norms: list[float] = field(default_factory=list)
    """Of theta_w - theta_T for each averaged model w; empty without phase 2."""
    displacement_cosines: list[list[float]] = field(default_factory=list)
    """Among these differences; empty without phase 2."""
    start: Start | None = None
    """None: the run trained its own phase 1."""
    interruptions: Interruptions | None = None
    """None: never."""
    notes: list[str] = field(default_factory=list)
    """For a reader; nothing is decided by them."""
    schema_version: int = SCHEMA_VERSION

    def check(self) -> None:
        """Refuse fields that do not agree with each other, and a recipe that no run could have.

        Raises:
            ValueError: which, and why.
        """
        for name in ("world_size", "threads"):
            if (count := getattr(self, name)) < 1:
                raise ValueError(f"{name}: expected 1 or more, got {count}")
        recipe, ranks = self.settings, len(self.times.laps_by_rank)
        if not isinstance(recipe, AveragingRecipe) and "degraded" in self.flags:
            raise ValueError("flags: expected degraded of a run that averages models alone")
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


T = TypeVar("T")


def write_record(record: RunRecord, folder: Path) -> Path:
    """Write `folder/RUN_ID.json`, as `write_json_record` does."""
    return write_json_record(asdict(record), folder, record.run_id)


def write_json_record(
    content: dict[str, Any], folder: Path, name: str, *, replace: bool = False
) -> Path:
    """Write `folder/NAME.json` whole or not at all.

    Raises:
        FileExistsError: a record of that name is there, and is not to be replaced.
        OSError: the folder cannot be written to.
    """
    path = folder / f"{name}.json"
    write_file(path, (json.dumps(content, indent=1) + "\n").encode(), new=not replace)
    return path


def read_record(path: Path) -> RunRecord:
    """Read one run's record, as `read_json_record` does."""
    record = read_json_record(path, RunRecord, SCHEMA_VERSION)
    try:
        record.check()
    except ValueError as error:
        raise ValueError(" ".join(f"{path.name}: {error}".split())) from None
    return record


def read_json_record(path: Path, kind: type[T], expected: int) -> T:
    """Read one record, every field checked.

    Raises:
        ValueError: not JSON, of another schema version, or a field that is missing, unknown or of
            another type; in one line.
    """
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name}: expected a JSON record, got {error}") from None
    version = content.get("schema_version") if isinstance(content, dict) else None
    if type(version) is not int or version != expected:
        raise ValueError(
            f"{path.name}: expected schema version {expected}, got {version!r}; "
            "use the swap_fast that wrote it"
        )
    return checked(content, kind, path.name)


def read_records(folder: Path) -> tuple[list[RunRecord], list[str]]:
    """All records of a folder in the order of their names, and why others were left out."""
    return read_folder(folder, read_record)


def read_folder(folder: Path, read: Callable[[Path], T]) -> tuple[list[T], list[str]]:
    """What can be read of a folder, in the order of the names, and why the rest cannot."""
    records, skipped = [], []
    for path in sorted(folder.glob("*.json")):
        try:
            records.append(read(path))
        except ValueError as error:
            skipped.append(str(error))
    return records, skipped


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
