"""Which kernels make a step, and how that was chosen."""

from dataclasses import dataclass
from typing import Annotated, Literal

from msgspec import Meta

StepName = Literal["auto", "eager", "compiled", "fused"]
"""The forward and backward pass: torch's operators, torch.compile, kernels of our own for batch
norm, pool, ReLU and sum of ResNet-9; auto: the fastest of these, timed in the warm-up."""

ChosenStep = Literal["eager", "compiled", "fused"]
"""One of the three themselves."""


@dataclass(frozen=True, kw_only=True)
class StepChoice:
    """What the warm-up measured, and which step it chose."""

    chosen: ChosenStep
    """The step of the whole run."""
    times_s: dict[str, dict[str, Annotated[float, Meta(gt=0)]]]
    """Of each step that was timed, by the shape of its batches: seconds of an update, the median of
    replays on the slowest rank, without the all-reduce, which is the same for all."""
    dropped: dict[str, str]
    """Of each other step: why it was not."""
