"""A run's record: one JSON file, written once, from which every table and figure is made.

This module needs no torch, so that a report can be drawn anywhere.
"""

import copy
import json
import os
import re
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

SCHEMA_VERSION = 4
"""`read_record` reads the former ones too, which had fewer fields."""

_ADDED = {
    2: {"telemetry": None, "test_top5_accuracy": None},
    3: {
        "start": None,
        "interruptions": None,
        "displacement_norms": [],
        "displacement_cosines": [],
    },
    4: {"peak_device_reserved_gib": None, "peak_device_allocated_gib": None},
}
"""The fields that each version brought, and what an older record has in their place."""


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
    noise_scale: float | None = None
    """The epoch's gradient noise scale in images; None where it was not measured, which it is in a
    phase that ends by it, or where the noise hid the gradient."""


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
    method: str
    """"swap", "swa" or "sgd"."""
    seed: int
    """Of the initial weights, the orders and the augmentation."""
    created: str
    """UTC, ISO 8601."""
    configuration: dict[str, Any]
    """The whole recipe and how it was executed."""
    overrides: list[str]
    """What the command line changed in the recipe."""
    code: dict[str, Any]
    """Version, commit, and whether files differed from it."""
    data: dict[str, Any]
    """Name, kind (published, subset, synthetic), content hash, counts."""
    machine: dict[str, Any]
    """Device, counts, memory, driver, library versions."""
    world_size: int
    """Processes."""
    threads: int
    """CPU threads a process."""
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
    telemetry: list[Telemetry] | None = None
    """One entry a rank, for the device that it used; None on CPUs."""
    peak_device_reserved_gib: float | None = None
    """Most memory that torch's allocator held of any process's device, its earlier runs included;
    not what NCCL, DALI and CUDA itself take. None on CPUs, and where an older record has none."""
    peak_device_allocated_gib: float | None = None
    """Likewise, most memory that tensors took of it."""
    displacement_norms: list[float] = field(default_factory=list)
    """Of theta_w - theta_T for each averaged model w; empty without phase 2."""
    displacement_cosines: list[list[float]] = field(default_factory=list)
    """Among these differences; empty without phase 2."""
    start: dict[str, Any] | None = None
    """The run whose phase 1 this one took over, and the model's hash; None: it ran its own."""
    interruptions: dict[str, Any] | None = None
    """How often the run went on from a checkpoint, and the seconds lost by it; None: never."""
    schema_version: int = SCHEMA_VERSION
    """Of this layout."""
    notes: list[str] = field(default_factory=list)
    """What a reader should know: a quick form, a fallback, a missing driver."""

    @property
    def comparable(self) -> bool:
        """Whether net, data and epochs are the paper's, as far as the record can tell."""
        recipe = self.configuration["recipe"]
        return bool(
            recipe["paper_scale"] and self.data["kind"] == "published" and not self.overrides
        )


def plain(value: Any) -> Any:
    """A value as JSON keeps it: tuples are lists."""
    return json.loads(json.dumps(value))


def write_record(record: RunRecord, folder: Path) -> Path:
    """Write `folder/RUN_ID.json`, as `write_json_record` does."""
    return write_json_record(asdict(record), folder, record.run_id)


def write_json_record(content: dict[str, Any], folder: Path, name: str) -> Path:
    """Write `folder/NAME.json` whole or not at all, and never over another.

    Raises:
        FileExistsError: a record of that name is there.
        OSError: the folder cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    part = folder / f".{name}.{uuid4().hex}.part"
    try:
        with open(part, "x", encoding="utf-8") as file:
            json.dump(content, file, indent=1)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.link(part, path)  # fails where the name is taken; a rename would replace it
    finally:
        part.unlink(missing_ok=True)
    return path


def read_record(path: Path) -> RunRecord:
    """Read one record.

    Raises:
        ValueError: not JSON, of another schema version, or with other fields.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path.name}: expected a JSON record, got {error}") from None
    version = content.get("schema_version") if isinstance(content, dict) else None
    if type(version) is int and 1 <= version < SCHEMA_VERSION:
        for number in range(version + 1, SCHEMA_VERSION + 1):
            content |= copy.deepcopy(_ADDED[number])
        content["schema_version"] = SCHEMA_VERSION
    elif version != SCHEMA_VERSION:
        raise ValueError(
            f"{path.name}: expected schema version 1 to {SCHEMA_VERSION}, got {version!r}; "
            "use the swap_fast that wrote it"
        )
    expected = {f.name for f in fields(RunRecord)}
    if set(content) != expected:
        odd = sorted(set(content) ^ expected)
        raise ValueError(f"{path.name}: missing or unknown fields {', '.join(odd)}")
    try:
        content["epochs"] = [EpochRow(**row) for row in content["epochs"]]
        content["average_by_epoch"] = [AverageRow(**row) for row in content["average_by_epoch"]]
        content["times"] = Times(**content["times"])
        if content["telemetry"] is not None:
            content["telemetry"] = [_read_telemetry(**rank) for rank in content["telemetry"]]
    except (AttributeError, TypeError) as error:
        raise ValueError(f"{path.name}: {error}") from None
    return RunRecord(**content)


def _read_telemetry(*, laps: dict[str, Any], **others: Any) -> Telemetry:
    return Telemetry(laps={name: LapTelemetry(**lap) for name, lap in laps.items()}, **others)


def read_records(folder: Path) -> tuple[list[RunRecord], list[str]]:
    """All records of a folder in the order of their names, and why others were left out."""
    records, skipped = [], []
    for path in sorted(folder.glob("*.json")):
        try:
            records.append(read_record(path))
        except ValueError as error:
            skipped.append(str(error))
    return records, skipped


def run_id(recipe: str, seed: int, created: str) -> str:
    """A run's name: recipe, seed and second of its start, safe as a file name."""
    stamp = re.sub(r"\D", "", created)[:14]
    return f"{re.sub(r'[^A-Za-z0-9_-]', '-', recipe)}-seed{seed}-{stamp}"


def now() -> str:
    """The present time as a record has it."""
    return datetime.now(UTC).isoformat(timespec="seconds")
