"""The weights of any net as one vector theta, whatever their types and its buffers."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from swap_fast.training.weights import Weights, join, split


class OwnWeights(Weights):
    """The parameters, gradients and buffers of any model, each in one flat vector.

    theta and its gradient are float32, or float64 where a parameter is. A parameter of that type
    becomes a view of them, as in `Weights`; one in half precision stays, and is the rounded copy
    of its part of theta, which is what the optimizer updates and phase 3 averages.

    Floating-point buffers that are no batch norm's statistics (a spectral norm's vectors, a moving
    average of the net's own) stand behind these: each replica and each worker has its own, and the
    mean of theirs is taken where statistics are merged and models averaged.

    Raises:
        ValueError: no trainable parameter, parameters that are lazy, complex, on several devices
            or share memory, or a batch norm that cannot be had.
    """

    def __init__(self, model: nn.Module) -> None:
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        _check(named)
        self.model, self.num_apart = model, 0
        parameters = [p for _, p in named]
        wide = any(p.dtype == torch.float64 for p in parameters)
        dtype = torch.float64 if wide else torch.float32
        dense = [_dense(p.detach()).to(dtype) for p in parameters]
        self.theta = nn.Parameter(join(dense))  # [P]
        self.gradient = torch.zeros_like(self.theta, requires_grad=False)  # [P]
        self.theta.grad = self.gradient
        # What an optimizer is given for each parameter: itself, or its part of theta.
        self.trained: dict[nn.Parameter, nn.Parameter] = {}
        views = split(self.theta.detach(), dense), split(self.gradient, dense)
        for parameter, value, gradient in zip(parameters, *views, strict=True):
            if parameter.dtype == dtype:
                parameter.data, trained = value, parameter
            else:
                trained = nn.Parameter(value)
            trained.grad = gradient
            self.trained[parameter] = trained
        self._rounded = [(p, t) for p, t in self.trained.items() if p is not t]
        # Whether gradients can underflow, without a loss scale.
        self.has_fp16 = any(p.dtype == torch.float16 for p in parameters)
        self._collect_buffers(dtype)

    def _collect_buffers(self, dtype: torch.dtype) -> None:
        norms = [m for m in self.model.modules() if isinstance(m, _BatchNorm)]
        self.norms = [norm for norm in norms if norm.track_running_stats]
        _check_norms(self.norms)
        places = [(norm, "running_mean") for norm in self.norms]
        places += [(norm, "running_var") for norm in self.norms]
        of_norms = set(places)
        further = [
            (module, name)
            for module in self.model.modules()
            for name, buffer in module.named_buffers(recurse=False)
            if buffer.is_floating_point()
            and name not in module._non_persistent_buffers_set
            and (module, name) not in of_norms
        ]
        buffers = [module.get_buffer(name) for module, name in places + further]
        copies = [_dense(buffer).to(self.theta.device, dtype) for buffer in buffers]
        self.num_extra = sum(copy.numel() for copy in copies[len(places) :])
        # [2C + further]
        self.statistics = join(copies) if copies else self.theta.detach().new_zeros(0)
        # Buffers that are no views: of another type, or such as a net may put another in place of.
        self._mirrored: list[tuple[nn.Module, str, Tensor]] = []
        values = split(self.statistics, copies)
        for (module, name), buffer, value in zip(places + further, buffers, values, strict=True):
            if buffer.dtype == dtype and (module, name) in of_norms:
                buffer.data = value
            else:
                self._mirrored.append((module, name, value))

    def refresh_(self) -> None:
        """Round theta into the parameters that are no views of it."""
        for parameter, trained in self._rounded:
            parameter.data.copy_(trained.data)

    def gather_gradient_(self) -> None:
        """Add the gradients of parameters in half precision to `gradient`, in its precision."""
        for parameter, trained in self._rounded:
            if parameter.grad is not None:
                assert trained.grad is not None, "a part of `gradient`"
                trained.grad.add_(parameter.grad)
                parameter.grad = None

    def load_(self, theta: Tensor, statistics: Tensor) -> None:
        """Copy a vector of weights and one of statistics into the model."""
        super().load_(theta, statistics)
        self.refresh_()

    def copy(self) -> tuple[Tensor, Tensor]:
        """Copies of theta [P] and of the statistics [2C + further]."""
        return self.theta.detach().clone(), self.get_statistics().clone()

    def set_statistics_(self, statistics: Tensor) -> None:
        """Copy statistics [2C + further] into the model."""
        self.statistics.copy_(statistics)
        for module, name, value in self._mirrored:
            module.get_buffer(name).copy_(value)

    def get_statistics(self) -> Tensor:
        """The statistics [2C + further], as forward passes have left them."""
        for module, name, value in self._mirrored:
            value.copy_(module.get_buffer(name))
        return self.statistics

    def state_dict(self) -> dict[str, Tensor]:
        """The model's state with its own names, at theta's precision: all that is known of it."""
        return self.model.state_dict() | self._hidden()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Put such a state back."""
        self.model.load_state_dict(state)
        self.get_statistics()
        for name, value in self._hidden().items():
            value.copy_(state[name])

    def _hidden(self) -> dict[str, Tensor]:
        """By name, the values of which the model holds rounded ones."""
        of = {parameter: trained.detach() for parameter, trained in self._rounded}
        named = self.model.named_parameters(remove_duplicate=False)
        hidden = {name: of[parameter] for name, parameter in named if parameter in of}
        prefixes = {module: prefix for prefix, module in self.model.named_modules()}
        for module, name, value in self._mirrored:
            if module.get_buffer(name).dtype != value.dtype:
                hidden[f"{prefixes[module]}.{name}".lstrip(".")] = value
        return hidden

    def release_(self) -> None:
        """Give the model memory of its own again, parameter by parameter, and no gradients.

        Counts of batches, which depend on how replicas were dealt out to processes, become 0.
        """
        for parameter in self.trained:
            parameter.data, parameter.grad = parameter.data.clone(), None
        for norm in self.norms:
            for name in ("running_mean", "running_var"):
                norm.get_buffer(name).data = norm.get_buffer(name).data.clone()
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked.zero_()


def _dense(tensor: Tensor) -> Tensor:
    """A tensor whose values lie side by side in its own order of dimensions."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    kept = formats.get(tensor.dim(), torch.contiguous_format)
    return tensor if tensor.is_contiguous(memory_format=kept) else tensor.contiguous()


def _check(named: Sequence[tuple[str, nn.Parameter]]) -> None:
    """Refuse parameters that cannot be parts of one vector."""
    if not named:
        raise ValueError(
            "model: expected trainable parameters, got none; unfreeze some with requires_grad_()"
        )
    device, owners = named[0][1].device, dict[int, str]()
    for name, parameter in named:
        if isinstance(parameter, nn.UninitializedParameter):
            raise ValueError(
                f"parameter {name}: expected one with a shape, got a lazy one; call the model on "
                "a batch in make_model"
            )
        if not parameter.is_floating_point():
            raise ValueError(f"parameter {name}: expected real numbers, got {parameter.dtype}")
        if parameter.device != device:
            raise ValueError(
                f"parameter {name}: expected one on {device}, as the others, got "
                f"{parameter.device}; each process trains on one device"
            )
        other = owners.setdefault(parameter.data_ptr(), name)
        if other != name and parameter.numel():
            raise ValueError(
                f"parameter {name}: expected memory of its own, got that of {other}; tie weights "
                f"by assigning the parameter itself"
            )


def _check_norms(norms: Sequence[_BatchNorm]) -> None:
    if any(norm.momentum is None for norm in norms):
        raise ValueError(
            "batch norm: expected a momentum such as 0.1, got None; its cumulative mean would "
            "count the batches of all replicas"
        )
    if any(isinstance(norm, nn.SyncBatchNorm) for norm in norms):
        raise ValueError(
            "batch norm: expected one of each worker's own, got SyncBatchNorm; use BatchNorm1d, 2d "
            "or 3d"
        )
