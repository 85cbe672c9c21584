"""The options of the commands, beside a recipe's own fields."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional, UseAppendAction

from swap_fast.callbacks.trackers import TrackerName
from swap_fast.config.step_choice import StepName

Several = tyro.conf.arg(help_behavior_hint="(default: none)")

_MOST = {"threads": max(256, os.cpu_count() or 1), "seed": 2**63 - 1}
"""More threads than any machine has cores end the process; torch's generators take 64 bits."""


def require_counts(options: object, *names: str, least: int = 1) -> None:
    """Refuse options below `least`, or above what can be; None is not checked.

    Raises:
        ValueError: one is.
    """
    for name in names:
        value = getattr(options, name)
        if value is not None and value < least:
            raise ValueError(f"{name}: expected {least} or more, got {value}")
        if value is not None and value > _MOST.get(name, value):
            raise ValueError(f"{name}: expected {_MOST[name]} or less, got {value}")


@dataclass(frozen=True, kw_only=True)
class _DeviceOptions:
    """Where recipes are run, and what is kept and shown."""

    runs: int
    data: Path | None = None
    """Folder that holds the data set; else SWAP_DATA, and for CIFAR the cache, the download,
    synthetic images."""
    out: Path = Path("results")
    """Results folder: records go to OUT/runs, weights to OUT/checkpoints, the report to OUT."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to run; auto takes CUDA devices where there are any."""
    ranks: int | None = None
    """Processes; by default one a device, or one a CPU core, as many as a recipe can use."""
    cores: Annotated[
        Literal["any", "own"] | tuple[int, ...], tyro.conf.arg(metavar="any|own|INT ...")
    ] = "any"
    """On CPUs, where a device is a process of one thread. own: pin each process to a core that no
    other run has, for times on a quiet machine; beside other work it would wait for that core.
    Numbers: choose these from among them, as --cores 0 for a run on one device."""
    threads: int | None = None
    """CPU threads a process; by default 1 on CPUs, on GPUs the cores divided by the processes."""
    keep_epochs: bool = False
    """Keep the weights of every epoch, for Figure 4; else those at the ends of the phases."""
    quiet: bool = False
    """Print no progress."""

    def __post_init__(self) -> None:
        """Refuse counts below one, and cores that cannot be."""
        require_counts(self, "runs", "ranks", "threads")
        chosen = self.cores if isinstance(self.cores, tuple) else (0,)
        if not chosen or min(chosen) < 0 or len(set(chosen)) < len(chosen):
            given = ", ".join(map(str, chosen)) or "none"
            raise ValueError(f"cores: expected different numbers of 0 or more, got {given}")
        if self.cores != "any" and (self.threads or 1) > 1:
            raise ValueError(f"threads: expected 1 on cores of its own, got {self.threads}")


@dataclass(frozen=True, kw_only=True)
class RunOptions(_DeviceOptions):
    """How a recipe is run; its own fields are options too."""

    runs: int = 1
    """Runs, with seeds SEED, SEED + 1, ..."""
    seed: int = 0
    """Seed of the first run: of weights, orders and augmentation."""
    precision: Literal["fp16", "bf16", "fp32"] | None = None
    """Type of the matrix work; by default fp16 on CUDA devices and fp32 on CPUs."""
    memory_format: Literal["channels_last", "contiguous"] = "channels_last"
    """Layout of images and convolution weights."""
    step: StepName = "auto"
    """eager: torch's operators. compiled: torch.compile. fused: loss, update and ResNet-9's batch
    norm, pool, ReLU and sum in kernels of our own, CUDA devices alone. winograd: a quarter of the
    multiplications in wide 3x3 convolutions, CPUs in fp32 alone. auto: the fastest of these,
    timed before training; on CPUs eager or winograd, and eager for narrow nets."""
    loader: Literal["auto", "tensor", "dali", "torchvision"] = "auto"
    """What makes the batches; auto takes the recipe's own on CUDA devices, else the fastest."""
    skip_bad_files: bool = False
    """Skip files of an image tree that cannot be used; the record counts them."""
    capture: Literal["auto", "on", "off"] = "auto"
    """Capture the whole step as one CUDA graph; auto does on CUDA devices."""
    all_reduce: Literal["fp16", "fp32"] = "fp32"
    """Type in which the processes' gradients are summed; fp16 halves the bytes."""
    all_reduce_buckets: Literal[1, 2, 3, 4] = 1
    """Sum them in up to 4 parts, each beside the rest of the backward pass; 1: at once, after it.
    For CUDA devices and steps that are not compiled: see `plan`, and measure."""
    resume: bool = False
    """Resume the interrupted run of this recipe and seed in OUT, if there is one, else start one; a
    finished one is left as it is. The same command may be given again and again."""
    phase2: Literal["together", "separate"] = "together"
    """separate: each worker is a process of its own from phase 1's checkpoint, so that one which
    dies costs one worker; --resume runs it alone."""
    min_workers: int | None = None
    """separate: average this many workers if others are missing; no such run is in a table."""
    share_phase1: bool = False
    """Begin where an earlier run in OUT ended the same phase 1 (same seed, data and machine); its
    time counts."""
    profile: bool = False
    """Trace some steps of each phase into OUT/profiles, for Perfetto; the run is in no table."""
    timeout_s: float = 300.0
    """Seconds after which a process that no longer answers the others ends the run."""
    json: bool = False
    """Print events as lines of JSON, and nothing else."""
    track: UseAppendAction[tuple[TrackerName, ...]] = ()
    """Also log to this tracker; may be given several times. TensorBoard's and W&B's files are in
    OUT; W&B and MLflow take their own environment variables."""

    def __post_init__(self) -> None:
        """Refuse counts below one."""
        if self.json and self.quiet:
            raise ValueError("json: expected without quiet, which prints nothing, got both")
        super().__post_init__()
        require_counts(self, "min_workers")
        if self.min_workers is not None and self.phase2 == "together":
            raise ValueError("min_workers: expected --phase2 separate beside it, got together")
        if not 0 < self.timeout_s < 1e6:
            raise ValueError(
                f"timeout_s: expected seconds above 0 and below 1e6, got {self.timeout_s:g}"
            )
        require_counts(self, "seed", least=0)


@dataclass(frozen=True, kw_only=True)
class FigureOptions:
    """Draw a figure of the paper from a run of SWAP, and run and measure what is missing."""

    number: Positional[Literal[1, 2, 3, 4, 5, 6]]
    """1: learning rate and accuracies. 2: the plane through LB, SGD and SWAP. 3: the plane through
    three workers. 4: the cosine of -g and the direction to SWAP. 5: ImageNet's schedules. 6: SWA's
    schedules."""
    recipe: str | None = None
    """1 to 4: the SWAP recipe; by default cifar10_swap with CUDA devices, else cifar10_cpu."""
    run: str | None = None
    """1 to 4: a run of OUT; by default the recipe's lowest seed that has what is needed."""
    data: Path | None = None
    """Folder that holds the data set; else SWAP_DATA, the cache, the download, synthetic images."""
    out: Path = Path("results")
    """Results folder: runs are read from OUT/runs and OUT/checkpoints, figures go to OUT/plots."""
    grid: int | None = None
    """2, 3: points along each side; by default 31 on CUDA devices and 15 on CPUs."""
    batch_norm_images: int | None = None
    """2, 3: training images of each point's batch-norm pass; by default all, on CPUs 2,048."""
    train_images: int | None = None
    """2, 3: training images of each point's error; by default all, on CPUs 4,096. 4: of g's batch;
    by default 4,096."""
    test_images: int | None = None
    """2, 3: test images of each point's error; by default all, on CPUs 2,000."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to measure; auto takes CUDA devices where there are any."""
    processes: int | None = None
    """Processes that measure; by default one a device, or one a CPU core."""
    dry_run: bool = False
    """Say what would be run and measured, and how long that takes."""
    quiet: bool = False
    """Print no progress."""

    def __post_init__(self) -> None:
        """Refuse counts that no figure could have."""
        require_counts(self, "grid", least=3)
        require_counts(self, "batch_norm_images", least=2)
        require_counts(self, "train_images", "test_images", "processes")


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """The jobs that a run is submitted as."""

    cluster: Literal["slurm", "local"] = "slurm"
    """local runs them here, one after another, to try what would be submitted."""
    nodes: int = 1
    """Nodes of phase 1 and phase 3; a worker of phase 2 has one."""
    gpus_per_node: int | None = None
    """GPUs of phase 1 and phase 3, one a process; by default as many of 8 as the recipe can use.
    0 runs on CPUs. A worker of phase 2 has one."""
    cpus_per_task: int = 4
    """CPU cores a process."""
    time_min: int = 60
    """Minutes after which a job is queued again, to resume; at most 100 times."""
    at_once: int = 256
    """Workers of phase 2 that may run at the same time."""
    partition: str | None = None
    """SLURM's partition."""
    account: str | None = None
    """SLURM's account."""

    def __post_init__(self) -> None:
        """Refuse counts below one."""
        require_counts(self, "nodes", "cpus_per_task", "time_min", "at_once")
        require_counts(self, "gpus_per_node", least=0)


MicroNet = Literal["resnet9", "speed_net"]
"""Nets whose step is measured."""


@dataclass(frozen=True, kw_only=True)
class MicroOptions:
    """Measure a part of the work on this machine, in turns with other implementations."""

    what: Positional[Literal["step", "data", "jpeg", "workers", "collective"]]
    """What to measure: the training step; the input path; workers of phase 2 on one device, in
    turn and side by side; or all-reduces by message size."""
    width: int | None = None
    """Channels of the net's first block; by default 64 on CUDA devices and 16 on CPUs."""
    net: MicroNet = "resnet9"
    """step: the paper's net, or that of the speed recipes with its optimizer."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """step: of the forward pass; auto is fp16 on CUDA devices and fp32 on CPUs."""
    batch_size: int = 256
    """Images a step."""
    batch_sizes: Annotated[tuple[int, ...], Several] = ()
    """step: a sweep over these images a step, in place of batch_size."""
    peers: bool = False
    """step: also whole training loops over real batches, beside a stock one and torch's best."""
    dataset: Literal["cifar10", "synthetic"] = "cifar10"
    """peers: which images."""
    data: Path | None = None
    """peers: folder that holds CIFAR-10; else SWAP_DATA, the cache, the download, synthetic."""
    images: int = 4096
    """peers: images of an epoch, which is a turn."""
    ranks: int | None = None
    """collective: processes; by default one a CUDA device, or one a CPU core and two at least."""
    largest: int = 2**26
    """collective: bytes of the largest message."""
    rounds: int = 7
    """Rounds, each of which times every implementation once."""
    threads: int | None = None
    """CPU threads; by default all cores."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to measure; auto takes CUDA devices where there are any."""
    out: Path | None = None
    """Folder for a JSON record of the measurement."""

    def __post_init__(self) -> None:
        """Refuse counts below one."""
        require_counts(
            self, "width", "batch_size", "images", "ranks", "largest", "rounds", "threads"
        )
        plain = self.net == "resnet9" and self.precision == "auto"
        if not plain and (self.what != "step" or self.peers):
            raise ValueError(
                f"net and precision: expected resnet9 and auto but for step without --peers, got "
                f"{self.net} and {self.precision}"
            )
        if any(size < 1 for size in self.batch_sizes):
            raise ValueError(f"batch_sizes: expected 1 or more each, got {self.batch_sizes}")


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """What a recipe will take, before it is run."""

    recipe: Annotated[Positional[str | None], tyro.conf.arg(metavar="[RECIPE]")] = None
    """The recipe; not needed with --check-paper and --forms."""
    hardware: Literal["v100", "a100", "h100", "this"] = "v100"
    """Devices by their makers' figures, or this machine, measured for some seconds."""
    gpus: int | None = None
    """Devices of each node; by default as many as the recipe can use."""
    nodes: int = 1
    """How many nodes."""
    phase1_epochs: float | None = None
    """Epochs of phase 1; by default the paper's mean, or the recipe's maximum."""
    price_per_gpu_hour: float | None = None
    """Adds the cost, in the price's currency."""
    check_paper: bool = False
    """Print our estimate of every time in the paper beside it."""
    forms: bool = False
    """Print the seconds of the fastest runs with each form of the step, on 1 and 8 GPUs."""
    scaling: bool = False
    """Show phase 1 on up to 1,024 devices: a table and a figure in OUT."""
    out: Path | None = None
    """Folder for tables and figures; --scaling takes `results` by default."""
    json: bool = False
    """Print the plan as one JSON object; times in seconds, memory and messages in bytes."""

    def __post_init__(self) -> None:
        """Refuse what cannot be planned."""
        if self.recipe is None and not (self.check_paper or self.forms):
            raise ValueError("plan: expected a recipe, --check-paper or --forms, got none of them")
        require_counts(self, "gpus", "nodes")
        if self.nodes > 1 and self.gpus is None:
            raise ValueError(f"gpus: expected the devices of each of {self.nodes} nodes, got none")
        if self.price_per_gpu_hour is not None and self.price_per_gpu_hour < 0:
            raise ValueError(
                f"price_per_gpu_hour: expected 0 or more, got {self.price_per_gpu_hour:g}"
            )
        if self.json and (self.check_paper or self.forms or self.scaling or self.out):
            raise ValueError(
                "json: expected a recipe's plan alone, which is printed, got --check-paper, "
                "--forms, --scaling or --out"
            )
        if self.scaling and self.hardware == "this":
            raise ValueError(
                "scaling: expected v100, a100 or h100, got this machine; a few of its steps say "
                "nothing of a network"
            )


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """Write a tree of images (train/ and val/, a folder a class) again at a smaller size."""

    source: Annotated[Positional[Path], tyro.conf.arg(metavar="SOURCE")]
    """The tree to read."""
    dest: Annotated[Positional[Path], tyro.conf.arg(metavar="DEST")]
    """The folder to write; what is there already of the same tree and size is kept."""
    size: int
    """Pixels of the shorter side: 160 for a stage at 128 px, 352 for one at 224 px."""
    processes: int | None = None
    """Processes; by default one a core."""
    skip_bad_files: bool = False
    """Skip files that cannot be used."""
    quiet: bool = False
    """Print no progress."""

    def __post_init__(self) -> None:
        """Refuse sizes and counts below one."""
        require_counts(self, "size", "processes")


@dataclass(frozen=True, kw_only=True)
class SmallTreeOptions:
    """Write a small tree of JPEG files from CIFAR-10's images, to try ImageNet's path on."""

    destination: Annotated[Positional[Path], tyro.conf.arg(metavar="FOLDER")]
    """A new folder."""
    per_class: int = 400
    """Training images of each of the ten classes."""
    test_per_class: int = 100
    """Test images of each."""
    size: int = 96
    """The images' shorter side in pixels."""
    data: Path | None = None
    """Folder that holds CIFAR-10; else SWAP_DATA, the cache, the download, synthetic images."""

    def __post_init__(self) -> None:
        """Refuse counts below one."""
        require_counts(self, "per_class", "test_per_class", "size")


@dataclass(frozen=True, kw_only=True)
class TableOptions(_DeviceOptions):
    """A table of the paper: run what is missing of it, then draw it and the report.

    Runs that are there, made on this kind of machine, are not made again. Tables 5 and 6 list the
    recipes' settings and are printed at once.
    """

    number: Positional[Literal[1, 2, 3, 4, 5, 6, "all"]]
    """The paper's number; all: each in turn, without those that this machine has no data for."""
    size: Literal["auto", "paper", "modern", "narrow", "cpu"] = "auto"
    """The paper's net and data; a modern net for 94%; the paper's net at width 16; minutes on a
    CPU. auto takes the first with CUDA devices, else the last."""
    runs: int = 3
    """Runs of each row, with seeds from 0."""
    dry_run: bool = False
    """Only say what would run, and how long each run and all of them are expected to take."""


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Draw the tables, the figures and the report (Markdown and HTML) from the records alone."""

    results: Path = Path("results")
    """Results folder: records are read from RESULTS/runs."""
    readme: Path | None = None
    """Also write the main table between the results markers of this file."""
    performance: Path | None = None
    """Also write the tables of measurements between the micro markers of this file."""
    appendix: bool = False
    """Also write RESULTS/appendix.md and .html: statistics, settings, laps, further figures."""


@dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """Confirm what only a GPU can confirm, and write a record of it.

    Each check has a time limit, and the record is written again as each ends. The same command
    given again runs what failed or did not run; --all runs everything.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """cpu runs the checks that have a form for CPUs."""
    out: Path = Path("results/verify")
    """Folder for the records."""
    data: Path | None = None
    """Folder that holds CIFAR-10; else SWAP_DATA, the cache, the download, synthetic images."""
    small: bool = False
    """Small nets and few images, as on a CPU: confirms how it works, and neither speed nor memory
    nor accuracy."""
    everything: Annotated[bool, tyro.conf.arg(name="all")] = False
    """Also run what an earlier record of this machine and code has as confirmed."""
    only: Annotated[tuple[str, ...], Several] = ()
    """Names of checks: run these alone, even if confirmed."""
