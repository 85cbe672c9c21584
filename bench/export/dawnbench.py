"""A run as an entry of DAWNBench: its JSON and its TSV, by that benchmark's published rules.

Time is read as DAWNBench reads it: what loads, prepares and trains counts, testing and saving do
not (`swap_fast.training.clock.DAWNBENCH`). No torch.
"""

import json
import re
from dataclasses import dataclass
from typing import Any

from bench.export.options import DawnbenchOptions, caveats_of
from bench.records.grouping import host_of, recipe_of
from bench.records.timing import before_phase1_s
from swap_fast.record import RunRecord

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
