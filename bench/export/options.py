"""The options of each export format, and the caveats that an exported run carries. No torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

from bench.records.grouping import recipe_of, why_not_comparable
from swap_fast.record import RunRecord


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Which runs, and where their export is written."""

    runs: Annotated[
        Positional[tuple[str, ...]],
        tyro.conf.arg(metavar="[RUN ...]", help_behavior_hint="(default: none)"),
    ] = ()
    """Records' paths, run ids, or recipes for all of their runs; none: all of RESULTS that the
    format takes."""
    results: Path = Path("results")
    """Results folder: records are read from RESULTS/runs, weights from RESULTS/checkpoints."""
    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """The file to write, or, of several runs in a file each, the folder; by default in
    RESULTS/exports."""


@dataclass(frozen=True, kw_only=True)
class DawnbenchOptions(ExportOptions):
    """Write runs as DAWNBench entries, in that benchmark's format: a JSON and a TSV file each."""

    author: str = "anonymous"
    """The name of the entry's author, for which DAWNBench asks."""
    author_email: str = ""
    """The author's e-mail address."""
    code_url: str | None = None
    """Where the code is."""
    log_url: str | None = None
    """Where the training log is."""
    cost_per_hour: float | None = None
    """US dollars for an hour of the hardware, where it is rented."""

    def __post_init__(self) -> None:
        """Refuse what no entry could have."""
        if not self.author.strip():
            raise ValueError("author: expected a name, got none")
        if self.cost_per_hour is not None and not self.cost_per_hour >= 0:
            raise ValueError(f"cost_per_hour: expected 0 or more, got {self.cost_per_hour:g}")


@dataclass(frozen=True, kw_only=True)
class MlperfOptions(ExportOptions):
    """Write runs as MLPerf training logs of the open division, made from their records."""

    org: str = "unspecified"
    """The submitting organisation's name."""
    platform: str | None = None
    """The system's name; by default the devices' and their number."""

    def __post_init__(self) -> None:
        """Refuse names that the checker refuses."""
        for name in ("org", "platform"):
            value = getattr(self, name)
            if value is not None and not value.strip():
                raise ValueError(f"{name}: expected a name, got none")


@dataclass(frozen=True, kw_only=True)
class CsvOptions(ExportOptions):
    """Write runs as one CSV file: one line a run with all that its record holds."""

    epochs: bool = False
    """One line an epoch of each model instead."""


@dataclass(frozen=True, kw_only=True)
class LatexOptions(ExportOptions):
    """Write the paper's Tables 1 to 6 with these runs as one LaTeX document."""

    fragment: bool = False
    """Only the tables, for a document of one's own that has booktabs and graphicx."""


@dataclass(frozen=True, kw_only=True)
class OnnxOptions(ExportOptions):
    """Write the runs' final models as ONNX files, each checked with onnxruntime."""

    data: Path | None = None
    """Folder that holds CIFAR, or SWAP_DATA: checks on its test images; else on random ones."""
    images: int = 256
    """Images to check on."""

    def __post_init__(self) -> None:
        """Refuse fewer images than show that the batch may be of any size."""
        if self.images < 2:
            raise ValueError(f"images: expected 2 or more, got {self.images}")


FORMATS: dict[str, tuple[type[ExportOptions], str]] = {
    "dawnbench": (DawnbenchOptions, "an entry of DAWNBench: a JSON and a TSV file a run"),
    "mlperf": (MlperfOptions, "an MLPerf training log a run"),
    "csv": (CsvOptions, "all runs in one table; with --epochs all epochs"),
    "latex": (LatexOptions, "the paper's tables with ours"),
    "onnx": (OnnxOptions, "the final model of a run, checked with onnxruntime"),
}
"""Each format's options, and what it is."""


def caveats_of(record: RunRecord) -> list[str]:
    """Every reason why a run's figures are not those of a published benchmark; may be empty.

    Tables have captions and a list of other runs for this; an exported run carries it along.
    """
    recipe, found = recipe_of(record), []
    kind, train, test = (record.data.get(name) for name in ("kind", "train_images", "test_images"))
    if reason := why_not_comparable(record, kinds=(str(kind),)):
        found.append(reason)
    if kind != "published":
        found.append(f"{train} training and {test} test images, which are not the published set")
    if not recipe["paper_scale"]:
        found.append(f"{recipe['net']} of width {recipe['width']}, not the paper's net or epochs")
    if held_out := record.data.get("held_out"):
        found.append(f"tested on {held_out} held-out training images")
    if record.machine["device_type"] == "cpu":
        found.append("run on a CPU")
    if record.start is not None:
        found.append(f"phase 1 and its time are those of {record.start['run_id']}")
    if record.interruptions is not None:
        found.append("the run was interrupted; lost work is not counted")
    return found
