"""SWAP's phases for data of any size: what the user says of them, and the rest."""

import hashlib
import math
import re
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from swap_fast.config.checks import require, whole
from swap_fast.config.phase import Phase, Schedule, StagedPhase
from swap_fast.training.state import PLAIN
from swap_fast.user.data import SAMPLED, BatchesAsGiven, Data, num_examples

RATE_PER_EXAMPLE = 1.2 / 4096
"""Peak learning rate over batch size, of both of CIFAR-10's phases in Table 5."""

TAU = 0.98
"""Train accuracy at which phase 1 ends: the paper's of CIFAR-10."""

MIN_UPDATES, MIN_EPOCHS, MAX_EPOCHS = 400, 15, 100
"""Of phase 1, where nothing is said of it."""

WARM_UP = 0.2
"""Share of phase 1 in which the learning rate rises, as in Table 5."""

PHASE2_SHARE = 0.25
"""Epochs of phase 2 over those of phase 1."""

MAX_MICRO_BATCH = 128


@dataclass(frozen=True, kw_only=True)
class UserMethod:
    """The settings of Algorithm 1 for a user's run."""

    num_workers: int
    """W."""
    phase1: Phase
    """With a replica for each of the workers'."""
    phase2: Phase
    """Of each worker."""
    keep_momentum: bool
    """Whether phase 2 starts from phase 1's optimizer state."""


@dataclass(frozen=True, kw_only=True)
class ScheduledPhase(Phase):
    """A phase with a schedule of the user's."""

    learning_rate: Schedule
    """Of the position in epochs; step i of n in an epoch, from 1, is at epoch + i / n."""

    @property
    def schedule(self) -> Schedule:
        """Learning rate as a function of the position in epochs.

        Raises:
            ValueError: the user's gives no finite number of 0 or more.
        """

        def learning_rate(epoch: float) -> float:
            rate: Any = self.learning_rate(epoch)
            try:
                number = math.nan if isinstance(rate, str) else float(rate)
            except (TypeError, ValueError):
                number = math.nan
            if not 0 <= number < math.inf:
                require(False, f"learning rate at epoch {epoch:g}", "a finite number >= 0", rate)
            return number

        return learning_rate


def user_method(
    data: Data,
    *,
    workers: int,
    phase1: Phase | None,
    phase2: Phase | None,
    schedules: tuple[Schedule | None, Schedule | None],
    learning_rate: float | None,
    counts: bool,
    keep_momentum: bool,
) -> UserMethod:
    """The phases as they are given, and what follows from the data where they are not.

    B1 = W B2 as in the paper, B2 the largest power of 2 up to 128 of which phase 1's epoch has 4
    updates or more; the learning rate goes with the batch; phase 1 has 400 updates or more, and
    phase 2 a quarter of its epochs.

    Arguments:
        learning_rate: phase 1's peak, where no phase says one: that of the user's optimizer; None:
            the paper's, by the size of the batch.
        counts: whether the loss is known to say how many were right, as phase 1's tau needs.

    Raises:
        ValueError: phases that the data or the workers do not fit.
    """
    whole("workers", workers)
    for name, phase in (("phase1", phase1), ("phase2", phase2)):
        expected = "a swap_fast.Phase without stages, or None"
        is_plain = isinstance(phase, Phase) and not isinstance(phase, StagedPhase)
        require(phase is None or is_plain, name, expected, phase)
    replicas = workers * (phase2.gpus_per_model if phase2 else 1)
    given = data.batch_size if isinstance(data, BatchesAsGiven) else None
    examples = num_examples(data)
    if phase1 is None:
        if phase2 is not None:
            batch_size, rate = workers * phase2.global_batch_size, workers * phase2.peak_lr
            epochs = math.ceil(phase2.max_epochs / PHASE2_SHARE)
        else:
            # B2: a power of 2 of 2 or more, where the data do not say it.
            most = min(MAX_MICRO_BATCH, max(2, examples // (4 * workers)))
            batch_size = workers * (given or 2 ** int(math.log2(most)))
            rate = learning_rate or RATE_PER_EXAMPLE * batch_size
            updates = max(1, examples // batch_size)
            epochs = min(max(MIN_EPOCHS, math.ceil(MIN_UPDATES / updates)), MAX_EPOCHS)
        phase1 = Phase(
            global_batch_size=batch_size,
            peak_lr=rate,
            max_epochs=epochs,
            warmup_epochs=WARM_UP * epochs,
            stopping_accuracy=TAU if counts else None,
        )
    if phase2 is None:
        phase2 = Phase(
            global_batch_size=max(1, phase1.global_batch_size // workers),
            peak_lr=phase1.peak_lr / workers,
            max_epochs=max(1, round(PHASE2_SHARE * phase1.max_epochs)),
        )
    phase1, phase2 = _with_replicas(phase1, replicas), _with_schedule(phase2, schedules[1])
    _check(phase1, phase2, given, data)
    return UserMethod(
        num_workers=workers,
        phase1=_with_schedule(phase1, schedules[0]),
        phase2=phase2,
        keep_momentum=keep_momentum,
    )


def _with_replicas(phase1: Phase, replicas: int) -> Phase:
    require(
        phase1.gpus_per_model in (1, replicas),
        "phase1.gpus_per_model",
        f"{replicas}, the workers' devices, which train phase 1 together, or nothing said",
        phase1.gpus_per_model,
    )
    require(
        phase1.global_batch_size % replicas == 0,
        "phase1.global_batch_size",
        f"a multiple of {replicas}, a share for each of the workers' devices",
        phase1.global_batch_size,
    )
    return replace(phase1, gpus_per_model=replicas)


def _with_schedule(phase: Phase, schedule: Schedule | None) -> Phase:
    if schedule is None:
        return phase
    said = {field.name: getattr(phase, field.name) for field in fields(Phase)}
    return ScheduledPhase(**said, learning_rate=schedule)


def _check(phase1: Phase, phase2: Phase, given: int | None, data: Data) -> None:
    examples, hint = num_examples(data), "" if isinstance(data, BatchesAsGiven) else data.hint
    require(
        phase2.stopping_accuracy is None,
        "phase2.stopping_accuracy",
        "None: every worker trains for all of phase 2's epochs (line 19)",
        phase2.stopping_accuracy,
    )
    expected = "accuracy: phase 1 alone ends by itself"
    require(phase2.stop == "accuracy", "phase2.stop", expected, phase2.stop)
    for name, phase in (("phase1", phase1), ("phase2", phase2)):
        if given is not None:
            require(
                phase.global_batch_size == given * phase.gpus_per_model,
                f"{name}.global_batch_size",
                f"{given * phase.gpus_per_model}: for each of {phase.gpus_per_model} devices a "
                f"batch of train_data, which has {given} examples",
                phase.global_batch_size,
            )
        if examples < phase.global_batch_size:
            raise ValueError(
                f"train_data: expected at least one batch of {phase.global_batch_size} examples "
                f"for {name}, got {examples}; lower its batch size, the workers, or use more "
                f"data{hint}"
            )


def describe_method(method: UserMethod) -> dict[str, Any]:
    """A method as JSON keeps it."""
    said = asdict(method)
    for name in ("phase1", "phase2"):
        if "learning_rate" in said[name]:
            said[name]["learning_rate"] = name_of(said[name]["learning_rate"])
    return said


def opening_lines(
    method: UserMethod, device: torch.device, precision: str, size_mb: float
) -> list[str]:
    """What a run does, in a line for each phase, before it starts.

    Arguments:
        size_mb: of one worker's weights and statistics.
    """
    one, two, workers = method.phase1, method.phase2, method.num_workers
    end = ""
    if one.stop == "auto":
        end = "until its gradient's noise ends it, at most "
    elif one.stopping_accuracy is not None:
        end = f"until its train accuracy is above {one.stopping_accuracy:.4g}, at most "

    def rate(phase: Phase) -> str:
        is_own = isinstance(phase, ScheduledPhase)
        return "your learning rate" if is_own else f"learning rate up to {phase.peak_lr:.4g}"

    return [
        f"phase 1: batches of {one.global_batch_size:,}, {rate(one)}, {end}{one.max_epochs} epochs",
        f"phase 2: {workers} workers with batches of {two.global_batch_size:,}, {rate(two)}, "
        f"{two.max_epochs} epochs; on {device}, {precision}, {size_mb:,.1f} MB of weights a worker",
    ]


def order_lines(data: Data, method: UserMethod) -> list[str]:
    """What a fixed order of the batches does to a run; nothing of other data."""
    if not isinstance(data, BatchesAsGiven) or not data.is_in_one_order:
        return []
    lines = [
        f"{data.name} gives its batches in the same order in every epoch, so that workers differ "
        "by random augmentation and dropout alone: pass shuffle=True to its DataLoader"
    ]
    for name, phase in (("phase 1", method.phase1), ("phase 2", method.phase2)):
        if rest := data.count % phase.gpus_per_model:
            lines.append(
                f"{name} never uses the last {rest} of {data.count} batches: an update takes "
                f"{phase.gpus_per_model}"
            )
    return lines


def name_of(function: Any) -> str:
    """What a function of the user's is called, with a partial's or a loss's own settings."""
    inner = getattr(function, "func", function)  # a partial's
    own = getattr(function, "keywords", {})
    if isinstance(function, nn.Module):
        own = vars(function) | function.state_dict()
    settings = [
        f"{name}={_digest(value) if isinstance(value, Tensor) else repr(value)}"
        for name, value in sorted(own.items())
        if isinstance(value, PLAIN | Tensor) and name != "training" and not name.startswith("_")
    ]
    named = getattr(inner, "__qualname__", type(inner).__name__)
    return f"{named}({', '.join(settings)})" if settings else str(named)


def _digest(tensor: Tensor) -> str:
    """12 digits of what tells a tensor from others, by up to 1,024 of its values."""
    flat = tensor.detach().reshape(-1)
    sample = flat[:: max(1, -(-len(flat) // SAMPLED))].cpu().contiguous()
    digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}".encode())
    digest.update(sample.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]


def structure_of(model: nn.Module) -> str:
    """12 digits of the net as it is printed: its modules and their settings."""
    printed = re.sub(r" at 0x[0-9a-f]+", "", repr(model))  # where a function lies in memory
    return hashlib.sha256(printed.encode()).hexdigest()[:12]
