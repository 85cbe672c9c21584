"""What a run of the user's gives: models, accuracies, times, and files of these."""

import html
import json
import math
import platform
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from itertools import chain, combinations, count
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor, nn

from swap_fast.averaging_files.report import SoupReport
from swap_fast.averaging_files.weight_files import plain_names
from swap_fast.checkpoint.files import on_host
from swap_fast.checkpoint.run_folder import RunInfo
from swap_fast.config.checks import typed_arguments
from swap_fast.files import remove_parts, taken, write_file
from swap_fast.outcome import gather_rows, gather_times, workers_on_first
from swap_fast.record import EpochRow, Times, library_version, now
from swap_fast.training.state import Result
from swap_fast.training.trainer import Trainer
from swap_fast.training.weights import displacements, pairwise_distances
from swap_fast.user.clean_copy import copied
from swap_fast.user.net import bare

# The model card.

PAPER = """@inproceedings{gupta2020swap,
  title     = {Stochastic Weight Averaging in Parallel: Large-Batch Training That Generalizes Well},
  author    = {Gupta, Vipul and Serrano, Santiago Akle and DeCoste, Dennis},
  booktitle = {International Conference on Learning Representations},
  year      = {2020}
}"""

ENDS = {
    "stopping_accuracy": "its stopping accuracy",
    "noise_scale": "its gradient's noise",
    "max_epochs": "its last epoch",
}


def model_card(record: dict[str, Any]) -> str:
    """A README for the folder that a result is saved in, from its record."""
    net, workers = record["settings"]["model"], record["settings"]["num_workers"]
    files = "\n".join(f"| `worker{w}.safetensors` | worker {w}'s model |" for w in range(workers))
    accuracies = {
        name: "not measured" if value is None else f"{value:.4f}"
        for name, value in record["accuracies"].items()
        if name not in ("metric", "workers")
    }
    wrapper = "._orig_mod" if net.get("wrapped") else ""
    made = _made_by_swap(record) if record["method"] == "swap" else _made_by_refine(record)
    return f"""---
library_name: pytorch
tags:
- swap
- weight-averaging
---

# {net["name"]}, averaged by SWAP

The mean of the weights of {workers} model{"s" if workers > 1 else ""} ({net["parameters"]:,} \
trainable parameters each) that were trained with *Stochastic Weight Averaging in Parallel*: \
phase 1 trains one model with large batches, phase 2 refines a copy on each worker with small \
batches, phase 3 averages the copies and recomputes the batch-norm statistics.

## Files

| file | holds |
| --- | --- |
| `averaged.safetensors` | the averaged model |
{files}
| `record.json` | every setting, epoch, time and version |

## Use

```python
from safetensors.torch import load_file

model = make_model()  # {made.make_model}
model{wrapper}.load_state_dict(load_file("averaged.safetensors"))
model.eval()
```

## How it was made

{made.how}

## Results

| | test {record["accuracies"]["metric"]} | training time (s) |
| --- | ---: | ---: |
| phase 1's model | {accuracies["phase1"]} | |
| workers, mean | {accuracies["before_averaging"]} | {made.before_s:.1f} |
| **averaged** | **{accuracies["averaged"]}** | {made.after_s} |

{made.times}

## Licence

To be chosen by whoever publishes these weights.

## Citation

```bibtex
{PAPER}
```
"""


class _Made(NamedTuple):
    """What a card says of the one function or the other."""

    make_model: str
    how: str
    before_s: float
    after_s: str
    times: str


def _made_by_swap(record: dict[str, Any]) -> _Made:
    settings, data, times = record["settings"], record["data"], record["times"]
    phases, processes = (settings["phase1"], settings["phase2"]), record["world_size"]
    tau, tests = phases[0]["stopping_accuracy"], data["test_examples"]
    rates = [
        "a schedule of its own" if "learning_rate" in phase else f"{phase['peak_lr']:g}"
        for phase in phases
    ]
    epochs = f"{record['phase1_epochs']} of {phases[0]['max_epochs']}"
    rows = [
        ("batch size", *(f"{phase['global_batch_size']:,}" for phase in phases)),
        ("peak learning rate", *rates),
        ("epochs", epochs, phases[1]["max_epochs"]),
        ("stopping train accuracy", "none" if tau is None else f"{tau:g}", "none"),
    ]
    table = "\n".join(f"| {name} | {one} | {two} |" for name, one, two in rows)
    how = f"""| | phase 1 | phase 2, each worker |
| --- | ---: | ---: |
{table}

Optimizer: {settings["optimizer"]["name"]}; loss: {settings["loss"]}; precision: \
{settings["precision"]}; seed {settings["seed"]}; {data["train_examples"]:,} training examples. \
Phase 1 ended by {ENDS[record["stopped_by"]]}."""
    return _Made(
        make_model=f"the function that swap_fast.swap was given: {settings['model']['made_by']}",
        how=how,
        before_s=times["before_averaging_s"],
        after_s=f"{times['after_averaging_s']:.1f}",
        times=f"""{"Nothing was tested." if tests is None else f"On {tests:,} test examples."} \
Times are those of {processes} process{"es" if processes > 1 else ""} \
({record["environment"]["device"]}), and count training, averaging and the pass for batch-norm \
statistics, not tests and checkpoints.""",
    )


def _made_by_refine(record: dict[str, Any]) -> _Made:
    settings, times_s = record["settings"], record["worker_times_s"]
    return _Made(
        make_model="a net of the class that swap_fast.refine was given",
        how=f"`swap_fast.refine` was given phase 1's model, and `{settings['train']}` trained a "
        f"copy of it on each worker, with seed {settings['seed']}.",
        before_s=sum(times_s) / len(times_s),
        after_s="",
        times=f"The time is the mean of one worker's training ({record['environment']['device']}).",
    )


# The environment, for the record.

LIBRARIES = ("swap_fast", "torch", "numpy", "safetensors")


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Device, system and versions."""
    is_cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if is_cuda else platform.machine() + " CPU",
        "device_type": device.type,
        "cuda": torch.version.cuda if is_cuda else None,
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "libraries": {name: library_version(name) for name in LIBRARIES},
    }


RECORD = "record.json"
SCHEMA_VERSION = 1
"""Of `record.json`."""


@dataclass(frozen=True, kw_only=True, repr=False)
class AveragedResult:
    """An averaged model, the workers that it is the mean of, and how these were measured."""

    model: nn.Module
    """The averaged model, in eval mode, on the run's device."""
    worker_states: tuple[dict[str, Tensor], ...]
    """The state of each worker's model, on the host; of several processes, on the first alone."""
    accuracy: float | None
    """Of the averaged model on the test data, or the metric; None without test data."""
    accuracy_before_averaging: float | None
    """The mean of the workers'."""
    worker_accuracies: tuple[float | None, ...]
    """Of each worker at its end."""
    phase1_accuracy: float | None
    """At the end of phase 1."""
    record: dict[str, Any]
    """All that is known of the run, as `record.json` keeps it."""
    notes: tuple[str, ...]
    """What you should know, such as workers that are equal; each was printed or a warning."""
    is_first: bool
    """Whether this process is the first, which writes."""

    def _rows(self) -> list[tuple[str, str]]:
        """Five lines of a name and what there is to know first."""
        metric = self.record["accuracies"]["metric"]

        def words(value: float | None) -> str:
            if value is None:
                return "not measured"
            return f"{value:.2%}" if metric == "accuracy" else f"{value:.4g}"

        known = [value for value in self.worker_accuracies if value is not None]
        spread = f" ({words(min(known))} to {words(max(known))})" if known else ""
        name, workers = type(bare(self.model)).__name__, len(self.worker_accuracies)
        return [
            ("model", f"{name}, the mean of {workers} worker{'s' if workers > 1 else ''}"),
            ("measured", f"{metric} on the test data"),
            ("phase 1", words(self.phase1_accuracy)),
            ("workers, mean", words(self.accuracy_before_averaging) + spread),
            ("averaged", words(self.accuracy)),
        ]

    def __repr__(self) -> str:
        return "\n".join(f"{name:<14} {value}" for name, value in self._rows())

    def _repr_html_(self) -> str:
        """The same as a table, which a notebook shows."""
        cells = [tuple(map(html.escape, row)) for row in self._rows()]
        rows = "".join(f"<tr><th>{name}</th><td>{value}</td></tr>" for name, value in cells)
        return f"<table>{rows}</table>"

    def worker_model(self, number: int) -> nn.Module:
        """A net of its own with a worker's weights, in eval mode, where the averaged one is.

        Raises:
            ValueError: there is no such worker here, or the net cannot be copied.
        """
        if number not in range(len(self.worker_states)):
            raise ValueError(
                f"worker: expected 0 to {len(self.worker_states) - 1}, got {number!r}"
                if self.is_first
                else "workers: expected the first process, which alone has them"
            )
        made = copied(bare(self.model))
        made.load_state_dict(self.worker_states[number])
        return made.eval()

    @typed_arguments("self")
    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write the weights as safetensors, a model card and the record; only one process does.

        The record is written last: a folder with one that is not empty is whole.

        Arguments:
            overwrite: replace a result that is there; else this one goes into the first free
                folder of FOLDER-2, FOLDER-3 and so on, and a line says so.

        Returns:
            The folder, with averaged.safetensors, worker0.safetensors and so on, README.md and
            record.json.

        Raises:
            OSError: the folder cannot be written to.
        """
        folder = Path(folder)
        if not self.is_first:
            return folder
        with nullcontext(folder) if overwrite else _free(folder) as folder:
            remove_parts(folder)
            if overwrite and (folder / RECORD).exists():
                (folder / RECORD).unlink()
                for former in folder.glob("worker[0-9]*.safetensors"):
                    if former.stem.removeprefix("worker").isdigit():
                        former.unlink()
            averaged = on_host(bare(self.model).state_dict())
            named = {f"worker{w}": state for w, state in enumerate(self.worker_states)}
            for stem, state in {"averaged": averaged, **named}.items():
                write_file(folder / f"{stem}.safetensors", save(state, {"format": "pt"}))
            write_file(folder / "README.md", model_card(self.record).encode())
            write_file(folder / RECORD, (json.dumps(self.record, indent=1) + "\n").encode())
        return folder


@contextmanager
def _free(wanted: Path) -> Iterator[Path]:
    """The first free folder of WANTED, WANTED-2 and so on, which others find taken meanwhile."""
    name = wanted.resolve() if wanted.name in ("", "..") else wanted
    with ExitStack() as claim:
        for folder in chain([wanted], (Path(f"{name}-{number}") for number in count(2))):
            with suppress(FileExistsError):
                folder.mkdir(parents=True, exist_ok=True)
                claim.enter_context(taken(folder / RECORD))
                break
        if folder != wanted:
            print(f"{wanted} holds another result: this one is saved in {folder}")
        yield folder


@dataclass(frozen=True, kw_only=True, repr=False)
class SwapResult(AveragedResult):
    """The models of a run of `swap_fast.swap`, and how they were made and measured."""

    epochs: tuple[EpochRow, ...]
    """Phase 1's rows, then each worker's of phase 2; NaN stands for accuracies not counted."""
    times: Times
    """The clock's readings."""


def make_result(
    trainer: Trainer,
    done: Result,
    rows: list[EpochRow],
    model: nn.Module,
    *,
    settings: dict[str, Any],
    data: dict[str, Any],
) -> SwapResult:
    """Gather what the ranks know; every rank must call. The model leaves its flat vectors."""
    comm, weights = trainer.comm, trainer.weights
    times = gather_times(trainer, done)
    epochs = gather_rows(trainer, rows)
    last = {row.worker: row.test_accuracy for row in epochs if row.phase == 2}
    accuracies = tuple(last[worker] for worker in sorted(last))
    known = [accuracy for accuracy in accuracies if accuracy is not None]
    before = sum(known) / len(known) if known else None
    final, thetas, states = weights.copy(), [], []
    averaged_buffers = weights.unaveraged_buffers()
    for samples, statistics, buffers in workers_on_first(trainer, done):
        thetas.append(samples[-1])
        weights.load_(samples[-1], statistics)
        weights.set_unaveraged_buffers_(buffers)
        states.append(on_host(weights.model.state_dict()))
    weights.load_(*final)
    weights.set_unaveraged_buffers_(averaged_buffers)
    norms, cosines = displacements(thetas, done.phase1.theta.cpu())
    weights.release_()
    accuracy, distances = done.accuracies.tested, pairwise_distances(thetas)
    metric = "accuracy" if settings["metric"] is None else settings["metric"]
    doubts = [twins_in(distances), doubt_of(accuracy, before) if metric == "accuracy" else None]
    notes = [each for each in doubts if each is not None]
    record = {
        "schema_version": SCHEMA_VERSION,
        "method": "swap",
        "created": now(),
        "settings": settings,
        "data": data,
        "environment": describe_environment(weights.theta.device),
        "world_size": comm.world_size,
        "stopped_by": done.phase1.progress.stopped_by,
        "phase1_epochs": done.phase1.progress.epoch,
        "accuracies": {
            "metric": metric,
            "phase1": done.phase1.progress.accuracies.tested,
            "workers": list(accuracies),
            "before_averaging": before,
            "averaged": accuracy,
        },
        "epochs": [_row(row) for row in epochs],
        "times": asdict(times),
        "pairwise_distances": distances,
        "displacement_norms": norms,
        "displacement_cosines": cosines,
        "notes": notes,
    }
    return SwapResult(
        model=model.eval(),
        worker_states=tuple(states),
        accuracy=accuracy,
        accuracy_before_averaging=before,
        worker_accuracies=accuracies,
        phase1_accuracy=done.phase1.progress.accuracies.tested,
        epochs=tuple(epochs),
        times=times,
        record=record,
        notes=tuple(notes),
        is_first=comm.rank == 0,
    )


def twins_in(distances: list[list[float]]) -> str | None:
    """A line, where workers are equal: an average of these gains nothing."""
    pairs = combinations(range(len(distances)), 2)
    twins = [(one, other) for one, other in pairs if distances[one][other] == 0]
    if not twins:
        return None
    more = f", and {len(twins) - 1} more pairs of workers too" if twins[1:] else ""
    return (
        f"workers {twins[0][0]} and {twins[0][1]} have the same weights{more}: let train_data give "
        "its batches in another order in each epoch, as a DataLoader with shuffle=True, and phase "
        "2 have a learning rate above 0"
    )


def doubt_of(accuracy: float | None, before: float | None) -> str | None:
    """A line, where the average is no better than what it was made of."""
    if accuracy is None or before is None or accuracy >= before:
        return None
    return (
        f"averaging did not help: {accuracy:.2%} after it, {before:.2%} before, the workers' mean; "
        "end phase 1 at a higher stopping_accuracy, or lower phase 2's learning rate"
    )


def _row(row: EpochRow) -> dict[str, Any]:
    """An epoch as JSON has it, which knows no NaN."""
    return {name: None if value != value else value for name, value in asdict(row).items()}


# Of `swap_fast.refine`.


@dataclass(frozen=True, kw_only=True, repr=False)
class RefineResult(AveragedResult):
    """The averaged model of `swap_fast.refine`, and what is known of its workers."""

    worker_times_s: tuple[float, ...]
    """Each worker's training, in seconds."""
    barrier: float | None
    """How far the accuracy falls below the straight line on the way between the two workers that
    lie farthest apart, a fraction; None where it was not measured."""


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def make_refine_result(
    net: nn.Module,
    tensors: dict[str, Tensor],
    report: SoupReport,
    workers: Sequence[dict[str, Tensor]],
    times_s: tuple[float, ...],
    barrier: float | None,
    info: RunInfo,
    *,
    metric: str,
    phase1_accuracy: float | None,
    is_first: bool,
) -> RefineResult:
    """Load the average into a clean net, and put what is known of it together.

    Arguments:
        tensors: the average, by the net's plain names.
        workers: on the first rank, each one's tensors likewise.
    """
    names = plain_names(net.state_dict())

    def state_of(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """With the net's own names."""
        return {name: tensors[short] for name, short in names.items() if short in tensors}

    net.load_state_dict(net.state_dict() | state_of(tensors))
    accuracies = tuple(_finite(each.accuracies.get("test")) for each in report.ingredients)
    known = [accuracy for accuracy in accuracies if accuracy is not None]
    before, after = sum(known) / len(known) if known else None, _finite(report.after.get("test"))
    record = {
        "schema_version": SCHEMA_VERSION,
        "method": "refine",
        "created": info.created,
        "settings": info.settings,
        "environment": info.machine,
        "world_size": info.machine["world_size"],
        "accuracies": {
            "metric": metric,
            "phase1": phase1_accuracy,
            "workers": list(accuracies),
            "before_averaging": before,
            "averaged": after,
        },
        "worker_times_s": list(times_s),
        "barrier": barrier,
        "pairwise_distances": report.distances,
        "displacement_norms": [each.from_start for each in report.ingredients],
        "displacement_cosines": report.cosines,
        "notes": list(report.notes),
    }
    return RefineResult(
        model=net.eval(),
        worker_states=tuple(map(state_of, workers)),
        accuracy=after,
        accuracy_before_averaging=before,
        worker_accuracies=accuracies,
        phase1_accuracy=phase1_accuracy,
        record=record,
        is_first=is_first,
        worker_times_s=times_s,
        barrier=barrier,
        notes=report.notes,
    )
