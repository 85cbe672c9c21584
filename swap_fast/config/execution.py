"""How the arithmetic is run: device, precision, memory format, and which kernels make a step."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import nn

from swap_fast.config.recipe import LoaderName
from swap_fast.config.step_choice import StepName
from swap_fast.models.layers import Convolution, FusableNorm

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How a step is run on one kind of device."""

    device_type: Literal["cpu", "cuda"] = "cpu"
    """Where the model and the data are."""
    precision: Literal["fp16", "bf16", "fp32"] = "fp32"
    """Type of the matrix work under autocast; the weights are float32 throughout."""
    memory_format: Literal["channels_last", "contiguous"] = "channels_last"
    """Layout of convolution weights and of images."""
    step: StepName = "eager"
    """What makes the forward and backward pass, and if fused the update; auto is settled in a run's
    warm-up."""
    capture: bool = False
    """Whether the whole step is captured as one CUDA graph."""
    all_reduce: Literal["fp16", "fp32"] = "fp32"
    """Type in which the ranks' gradients are summed."""
    all_reduce_buckets: Literal[1, 2, 3, 4] = 1
    """Parts in which they are summed, all but the last beside the backward pass; 1: whole, after
    it. See `swap_fast.training.all_reduce`."""
    loader: LoaderName = "tensor"
    """What makes the batches; of CIFAR's, evaluation and phase 3 always use the tensor backend."""

    def __post_init__(self) -> None:
        """Refuse a capture without CUDA graphs, and halved gradients without a loss scale."""
        if self.all_reduce == "fp16" and self.precision != "fp16":
            raise ValueError(
                "all_reduce: expected fp32, got fp16, in which small gradients are lost without "
                f"the loss scale of --precision fp16 (now {self.precision})"
            )
        if self.capture and self.device_type != "cuda":
            raise ValueError(
                f"capture: expected a CUDA device, got {self.device_type}; use --capture off"
            )

        if self.step == "fused" and not self.can_be_fused:
            raise ValueError(
                f"step fused: expected a CUDA device and channels_last, got {self.device_type} and "
                f"{self.memory_format}; use --step eager"
            )
        if self.step == "winograd" and not self.can_be_winograd:
            raise ValueError(
                f"step winograd: expected a CPU, fp32 and channels_last, got {self.device_type}, "
                f"{self.precision} and {self.memory_format}; use --step eager"
            )

    def settings(self) -> dict[str, Any]:
        """As records and run.json keep it; one bucket goes unsaid, as in older ones."""
        settings = asdict(self)
        if self.all_reduce_buckets == 1:
            del settings["all_reduce_buckets"]
        return settings

    @property
    def can_be_fused(self) -> bool:
        """Whether the fused kernels are for this device and memory format."""
        return self.device_type == "cuda" and self.memory_format == "channels_last"

    @property
    def can_be_winograd(self) -> bool:
        """Whether Winograd's convolutions are for this device, precision and memory format."""
        here = self.device_type, self.precision, self.memory_format
        return here == ("cpu", "fp32", "channels_last")

    @property
    def is_built(self) -> bool:
        """Whether a compiler makes kernels of the step."""
        return self.step in ("compiled", "fused")

    @property
    def fused_update(self) -> bool:
        """Whether the update is one set of GPU kernels: see `swap_fast.training.update_kernel`."""
        return self.step == "fused"

    @property
    def dtype(self) -> torch.dtype:
        """Type of the images that a step is given."""
        return DTYPES[self.precision]

    @property
    def format(self) -> torch.memory_format:
        """torch's name of the memory format."""
        return {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}[
            self.memory_format
        ]

    def autocast(self) -> AbstractContextManager[object]:
        """The context of every forward pass."""
        if self.precision == "fp32":
            return nullcontext()
        # No cache of cast weights: each is used once a pass, and a cache would outlive a capture.
        return torch.autocast(self.device_type, self.dtype, cache_enabled=False)

    def place(self, model: nn.Module, device: torch.device) -> nn.Module:
        """Move a model to the device in this memory format."""
        model.to(device)
        # As arguments of its own `to`, torch types this keyword on tensors only.
        for parameter in model.parameters():
            if parameter.dim() == 4:
                parameter.data = parameter.data.to(memory_format=self.format)
        self.choose_kernels_(model)
        return model

    def choose_kernels_(self, model: nn.Module) -> None:
        """Have the model's batch norms and convolutions use this step's kernels, or torch's."""
        for module in model.modules():
            if isinstance(module, FusableNorm):
                module.fused = self.step == "fused"
            elif isinstance(module, Convolution):
                module.winograd = self.step == "winograd"

    def empty_images(self, shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
        """An uninitialised batch [B, C, H, W] of this type and memory format."""
        return torch.empty(shape, dtype=self.dtype, device=device).to(memory_format=self.format)


def default_execution(device_type: str) -> Execution:
    """By default fp16 and a captured step on CUDA devices, fp32 on CPUs; channels_last on both."""
    if device_type == "cuda":
        return Execution(device_type="cuda", precision="fp16", capture=True)
    return Execution()
