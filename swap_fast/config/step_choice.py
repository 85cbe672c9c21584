"""Which kernels make a step, and how that was chosen."""

from dataclasses import dataclass
from typing import Annotated, Literal

from msgspec import Meta

StepName = Literal["auto", "eager", "compiled", "fused", "winograd"]
"""The forward and backward pass: torch's operators, torch.compile, GPU kernels of our own for batch
norm, pool, ReLU and sum of ResNet-9, or on a CPU Winograd's form of wide 3x3 convolutions; auto:
the fastest of those that the device has, timed in the warm-up."""

ChosenStep = Literal["eager", "compiled", "fused", "winograd"]
"""One of them."""


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
