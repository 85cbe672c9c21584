"""A run as an entry of DAWNBench, and as an MLPerf training log of the open division. No torch.

DAWNBench's JSON and TSV follow its published rules: what loads, prepares and trains counts, testing
and saving do not (`swap_fast.clock.DAWNBENCH`).

MLPerf's log needs the time of each event. A record holds sums of laps, and of each epoch the
paper's reading at its end: an event's time is worked out from these (`Timeline`), and the log's
first lines say how.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from bench.export.options import DawnbenchOptions, MlperfOptions, caveats_of
from bench.records.grouping import host_of, machine_key, recipe_of
from bench.records.timing import before_phase1_s, laps_of_slowest_rank
from swap_fast.clock import total
from swap_fast.record import EpochRow, RunRecord

TARGETS = {"cifar10": 94.0, "imagenet": 93.0}
"""Percent that an entry must reach, by data set: top-1 accuracy on CIFAR-10, top-5 on ImageNet."""

VERSION = "v1.0"
"""Of the competition; its only one."""


@dataclass(frozen=True, kw_only=True)
class EntryRow:
    """The model after an epoch; accuracies in percent."""

    epoch: int
    """Epochs that this model was trained for, from 1."""
    hours: float
    """DAWNBench's reading of the clock at its end."""
    top1: float
    top5: float | None
    """Of ImageNet."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A run as DAWNBench takes it."""

    name: str
    """Of both files, without their endings."""
    about: dict[str, Any]
    rows: tuple[EntryRow, ...]
    """Of the TSV file."""
    caveats: list[str]
    """Why it is no official result; empty for one that may be submitted."""

    def json_text(self) -> str:
        """The JSON file."""
        return json.dumps(self.about, indent=4, ensure_ascii=False) + "\n"

    def tsv_text(self) -> str:
        """The TSV file: `epoch`, `hours`, `top1Accuracy` and, of ImageNet, `top5Accuracy`."""
        count = 3 if self.rows[-1].top5 is None else 4
        heads = ("epoch", "hours", "top1Accuracy", "top5Accuracy")[:count]
        values = ((row.epoch, row.hours, row.top1, row.top5)[:count] for row in self.rows)
        lines = ["\t".join(heads), *("\t".join(map(repr, row)) for row in values)]
        return "\n".join(lines) + "\n"


def make_entry(record: RunRecord, options: DawnbenchOptions) -> Entry:
    """The entry of a run on CIFAR-10 or ImageNet.

    The rows are phase 1's epochs and the averaged model. Epochs of phase 2 have none: a worker is
    not what the run returns, and the average was measured once, at the end.
    """
    rows = rows_of(record)
    target = TARGETS[record.data["name"]]
    best = max((row.top1 if row.top5 is None else row.top5) for row in rows)
    caveats = caveats_of(record)
    if best < target:
        caveats.append(f"reached {best:.2f}%, less than the {target:g}% that an entry must reach")
    if not options.author_email:
        caveats.append("no --author-email, which an entry must have")
    recipe = recipe_of(record)
    optional = {
        "codeURL": options.code_url,
        "costPerHour": options.cost_per_hour,
        "logFilename": options.log_url,
    }
    about: dict[str, Any] = {
        "version": VERSION,
        "author": options.author,
        "authorEmail": options.author_email,
        "framework": f"PyTorch {host_of(record).torch_minor}",
        "model": f"{recipe['net']} of width {recipe['width']}, {record.method.upper()}",
        "hardware": hardware_of(record),
        "timestamp": record.created[:10],
        # What is not known is left out: the rules call these fields optional.
        **{name: value for name, value in optional.items() if value is not None},
        "misc": _misc(record, caveats),
    }
    words = (options.author, record.run_id, _hardware_tag(record), "pytorch")
    return Entry(
        name="_".join(_word(word) for word in words), about=about, rows=rows, caveats=caveats
    )


def rows_of(record: RunRecord) -> tuple[EntryRow, ...]:
    """Phase 1's epochs, and after a phase 2 the averaged model; of ImageNet those with top-5."""
    before_s, is_imagenet = before_phase1_s(record), record.data["name"] == "imagenet"
    rows = [
        EntryRow(
            epoch=row.epoch,
            hours=(row.time_s + before_s) / 3600,
            top1=percent(row.test_accuracy),
            top5=None if row.test_top5_accuracy is None else percent(row.test_top5_accuracy),
        )
        for row in record.epochs
        if row.phase == 1
        and row.test_accuracy is not None
        and (row.test_top5_accuracy is not None or not is_imagenet)
    ]
    top5 = record.test_top5_accuracy if is_imagenet else None
    phase2_epochs = max((row.epoch for row in record.epochs if row.phase == 2), default=0)
    if phase2_epochs or not rows:
        rows.append(
            EntryRow(
                epoch=record.phase1_epochs + phase2_epochs,
                hours=record.times.readings_s["dawnbench"] / 3600,
                top1=percent(record.test_accuracy),
                top5=None if top5 is None else percent(top5),
            )
        )
    return tuple(rows)


def percent(fraction: float) -> float:
    """In percent, without the digits that the product's rounding adds."""
    return round(100 * fraction, 6)


def hardware_of(record: RunRecord) -> str:
    """Devices, memory and CPU cores in a line, as entries give them."""
    machine = record.machine
    return (
        f"{record.num_devices} x {machine['device']} / {machine['memory_gib']:g} GiB / "
        f"{machine['cpu_count']} CPU"
    )


def _hardware_tag(record: RunRecord) -> str:
    machine = record.machine
    model = "cpu" if machine["device_type"] == "cpu" else machine["device"]
    return f"{record.num_devices}{model}"


def _word(text: str) -> str:
    """Text as a part of an entry's name, where `_` is between the parts."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-.") or "unnamed"


def _misc(record: RunRecord, caveats: list[str]) -> dict[str, Any]:
    """What a reader of the entry should know of how the run was made."""
    recipe, execution = recipe_of(record), record.configuration["execution"]
    fields = {
        "batchSize": "global_batch_size",
        "peakLearningRate": "peak_lr",
        "warmupEpochs": "warmup_epochs",
        "maxEpochs": "max_epochs",
    }
    phases: dict[str, Any] = {
        phase: {theirs: recipe[phase][ours] for theirs, ours in fields.items()}
        for phase in ("phase1", "phase2")
        if phase in recipe
    }
    rows = "every epoch"
    if record.method != "sgd":
        rows = "epochs of phase 1, then the average of the workers; a worker's epochs have no row"
    if record.data["name"] == "imagenet":
        rows += "; an epoch whose top-5 accuracy is not known has none"
    return {
        "runId": record.run_id,
        "method": record.method,
        "seed": record.seed,
        **phases,
        **({"workers": recipe["num_workers"]} if "num_workers" in recipe else {}),
        "optimizer": recipe["optimizer"],
        "labelSmoothing": recipe.get("label_smoothing", 0.0),
        "precision": execution["precision"],
        "libraries": record.machine["libraries"],
        "commit": record.code.get("commit"),
        "data": {key: record.data.get(key) for key in ("name", "kind", "sha256", "train_images")},
        "rows": rows,
        "notCounted": "testing, checkpoints, imports, kernel warm-up on synthetic data",
        "emulatedWorkers": record.emulated_workers,
        "notes": record.notes,
        "notComparable": caveats,
    }


TOKEN = ":::MLLOG"
"""The beginning of every line of the log but the remarks."""

QUALITY = 0.759
"""Top-1 accuracy at which MLPerf's ResNet-50 is trained."""

EventType = Literal["INTERVAL_START", "INTERVAL_END", "POINT_IN_TIME"]
START: EventType = "INTERVAL_START"
END: EventType = "INTERVAL_END"
POINT: EventType = "POINT_IN_TIME"


@dataclass(frozen=True, kw_only=True)
class Event:
    """One line."""

    at_s: float
    """Since the run's start by MLPerf's reading; below 0 before it."""
    type: EventType
    key: str
    """As MLPerf names it."""
    value: Any = None
    metadata: dict[str, Any] = field(default_factory=dict)
    namespace: str = ""
    """Each worker of phase 2 has its own: workers train at the same time."""


def mlperf_log(record: RunRecord, options: MlperfOptions) -> str:
    """The log of a run: remarks, then one line an event, in the order of their times."""
    timeline = Timeline(record)
    events = [
        *_submission(record, options, timeline.init_s),
        *_settings(record, timeline.init_s),
        *_run(record, timeline),
    ]
    ordered = sorted(events, key=lambda event: event.at_s)
    lines = [f"# {line}" for line in _remarks(record)]
    return "\n".join([*lines, *(_line(event, timeline.start_ms) for event in ordered)]) + "\n"


class Timeline:
    """The time of each event, in seconds of MLPerf's reading of the clock, which begins at 0.

    A row's time leaves out loading, tests and checkpoints, of which the record has each rank's
    sums: loading came first, and the others are shared out evenly over the rank's epochs and, of
    an averaged model, the test at the end.
    """

    def __init__(self, record: RunRecord) -> None:
        self._record, self._laps = record, record.times.laps_by_rank
        self._rows = [self._rows_of(rank) for rank in range(len(self._laps))]
        self.is_averaged = any(row.phase == 2 for row in record.epochs)
        self.end_s = float(record.times.readings_s["mlperf"])
        slowest = laps_of_slowest_rank(record)
        tests = len(self._rows[0]) + self.is_averaged
        self.final_test_s = slowest.get("evaluation", 0.0) / tests if self.is_averaged else 0.0
        self._last_training_s = self.end_s - self.final_test_s
        self.first_epoch_s = total(
            self._laps[0], ("data_loading", "model_init", "data_preparation")
        )
        self.init_s = -total(self._laps[0], ("imports", "kernel_warmup"))
        # The record's time was taken when rank 0 had loaded the data.
        loaded_ms = 1000 * datetime.fromisoformat(record.created).timestamp()
        self.start_ms = loaded_ms - 1000 * self._laps[0].get("data_loading", 0.0)

    def epoch(self, row: EpochRow) -> tuple[float, float, float]:
        """Start, end, and the end of the test after it; never after the training's own end."""
        rank = self.rank_of(row)
        place = self._rows[rank].index(row)
        start_s = self._after(rank, place - 1) if place > 0 else self.first_epoch_s
        if row.phase == 2:
            start_s = max(start_s, self.phase1_end_s)
        end_s = self._reading(rank, place)
        tested_s = end_s + self._share(rank, "evaluation")
        start_s, end_s, tested_s = (
            min(moment, self._last_training_s) for moment in (start_s, end_s, tested_s)
        )
        return start_s, max(start_s, end_s), max(start_s, tested_s)

    @property
    def phase1_end_s(self) -> float:
        """When rank 0's phase 1 was tested and kept."""
        last = max(i for i, row in enumerate(self._rows[0]) if row.phase == 1)
        return min(self._after(0, last), self._last_training_s)

    def rank_of(self, row: EpochRow) -> int:
        """The rank that recorded an epoch."""
        ranks = len(self._laps)
        if row.phase == 1 or self._record.method != "swap":
            return 0
        num_workers = int(recipe_of(self._record)["num_workers"])
        if ranks <= num_workers:
            return row.worker % ranks
        return row.worker * (ranks // num_workers)

    def _rows_of(self, rank: int) -> list[EpochRow]:
        """The epochs whose tests and checkpoints are in a rank's laps, in their order."""
        rows = self._record.epochs
        own = [row for row in rows if row.phase == 2 and self.rank_of(row) == rank]
        return [row for row in rows if row.phase == 1] + sorted(own, key=lambda row: row.time_s)

    def _reading(self, rank: int, place: int) -> float:
        """MLPerf's reading at the end of a rank's epoch, before its test."""
        loading_s = self._laps[rank].get("data_loading", 0.0)
        return loading_s + self._rows[rank][place].time_s + place * self._kept(rank)

    def _after(self, rank: int, place: int) -> float:
        """MLPerf's reading when that epoch was tested and kept."""
        return self._reading(rank, place) + self._kept(rank)

    def _kept(self, rank: int) -> float:
        """One epoch's test and checkpoint."""
        return self._share(rank, "evaluation") + self._share(rank, "checkpoint")

    def _share(self, rank: int, lap: str) -> float:
        """One epoch's part of a rank's lap."""
        return self._laps[rank].get(lap, 0.0) / (len(self._rows[rank]) + self.is_averaged)


def is_resnet50(record: RunRecord) -> bool:
    """Whether the run is of the net that MLPerf's image classification trains."""
    return record.settings.net == "resnet50"


def _remarks(record: RunRecord) -> list[str]:
    caveats = [
        f"unofficial: {each}" for each in (*caveats_of(record), *_caveats_of_the_log(record))
    ]
    return [
        f"Made by swap_fast from the record of {record.run_id}, after the run.",
        "run_start is when rank 0 began to read the data: the record's time, to a second, less",
        "its time to load. run_stop is after MLPerf's reading of the clock, to which the run's",
        "laps add up. Of tests and checkpoints a record has sums alone: they are shared out",
        "evenly. Imports and the kernels' warm-up on synthetic data, which came after the model",
        "was made, stand before run_start, where MLPerf has what touches no data.",
        *(" ".join(line.split()) for line in caveats),
    ]


def _caveats_of_the_log(record: RunRecord) -> list[str]:
    """Why the log is no submission, whatever its run is."""
    found = ["made after the run", "one run, where MLPerf wants several", "caches not cleared"]
    if not is_resnet50(record):
        found.insert(0, f"{record.data['name']} is no benchmark of MLPerf")
    return found


def _submission(record: RunRecord, options: MlperfOptions, at_s: float) -> Iterator[Event]:
    benchmark = "resnet" if is_resnet50(record) else f"unofficial_{record.data['name']}"
    machine = machine_key(record)
    values = {
        "submission_benchmark": benchmark,
        "submission_division": "open",
        "submission_org": options.org,
        "submission_platform": options.platform or machine.used,
        "submission_status": "research",
        "unofficial": [*caveats_of(record), *_caveats_of_the_log(record)],
        "cache_clear": False,
    }
    yield Event(at_s=at_s, type=START, key="init_start")
    yield from _facts(values, at_s)


def _facts(values: dict[str, Any], at_s: float) -> Iterator[Event]:
    for key, value in values.items():
        yield Event(at_s=at_s, type=POINT, key=key, value=value)


def _settings(record: RunRecord, at_s: float) -> Iterator[Event]:
    recipe = recipe_of(record)
    phase1, optimizer = recipe["phase1"], recipe["optimizer"]
    values = {
        "seed": record.seed,
        "train_samples": recipe.get("train_images") or record.data["train_images"],
        "eval_samples": record.data["test_images"],
        "global_batch_size": phase1["global_batch_size"],
        "gradient_accumulation_steps": max(1, record.settings.num_replicas // record.world_size),
        "opt_name": record.settings.optimizer.kind,
        "opt_base_learning_rate": phase1["peak_lr"],
        "opt_learning_rate_warmup_epochs": phase1["warmup_epochs"],
        "opt_weight_decay": optimizer["weight_decay"],
        "sgd_opt_momentum": optimizer["momentum"],
        "sgd_opt_nesterov": optimizer.get("nesterov", True),
    }
    yield from _facts(values, at_s)
    yield Event(at_s=0.0, type=END, key="init_stop")


def _run(record: RunRecord, timeline: Timeline) -> Iterator[Event]:
    recipe, first = recipe_of(record), record.phase1_epochs + 1
    yield Event(at_s=0.0, type=START, key="run_start")
    for phase in (1, 2):
        rows = [row for row in record.epochs if row.phase == phase]
        if not rows:
            continue
        settings = recipe[f"phase{phase}"]
        began_s = timeline.first_epoch_s if phase == 1 else timeline.phase1_end_s
        block = {"first_epoch_num": 1 if phase == 1 else first}
        about = {
            "epoch_count": max(row.epoch for row in rows),
            "phase": phase,
            "models": len({row.worker for row in rows}),
            "global_batch_size": settings["global_batch_size"],
            "peak_learning_rate": settings["peak_lr"],
        }
        yield Event(at_s=began_s, type=START, key="block_start", metadata=block | about)
        for row in rows:
            yield from _epoch(row, timeline, row.epoch if phase == 1 else first - 1 + row.epoch)
        end_s = max(timeline.epoch(row)[2] for row in rows)
        yield Event(at_s=end_s, type=END, key="block_stop", metadata=block)
    last = first - 1 + max((row.epoch for row in record.epochs if row.phase == 2), default=0)
    target = QUALITY if is_resnet50(record) else float(recipe["target_accuracy"])
    status = "success" if record.test_accuracy >= target else "aborted"
    at = {"epoch_num": last}
    if timeline.is_averaged:
        began_s = timeline.end_s - timeline.final_test_s
        yield Event(at_s=began_s, type=START, key="eval_start", metadata=at)
        averaged = {"metadata": at | {"model": "average"}}
        yield from _tested(timeline.end_s, record.test_accuracy, averaged)
    yield Event(at_s=timeline.end_s, type=END, key="run_stop", metadata={"status": status} | at)


def _epoch(row: EpochRow, timeline: Timeline, number: int) -> Iterator[Event]:
    start_s, end_s, tested_s = timeline.epoch(row)
    namespace = "" if row.phase == 1 else f"worker{row.worker}"
    about: dict[str, Any] = {"metadata": {"epoch_num": number}, "namespace": namespace}
    yield Event(at_s=start_s, type=START, key="epoch_start", **about)
    yield Event(at_s=end_s, type=END, key="epoch_stop", **about)
    yield Event(at_s=end_s, type=START, key="eval_start", **about)
    if row.test_accuracy is not None:
        yield from _tested(tested_s, row.test_accuracy, about)


def _tested(at_s: float, accuracy: float, about: dict[str, Any]) -> Iterator[Event]:
    yield Event(at_s=at_s, type=POINT, key="eval_accuracy", value=accuracy, **about)
    yield Event(at_s=at_s, type=END, key="eval_stop", **about)


def _line(event: Event, start_ms: float) -> str:
    content = {
        "namespace": event.namespace,
        "time_ms": round(start_ms + 1000 * event.at_s),
        "event_type": event.type,
        "key": event.key,
        "value": event.value,
        "metadata": event.metadata,
    }
    return f"{TOKEN} {json.dumps(content)}"
