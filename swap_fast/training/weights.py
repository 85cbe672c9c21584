"""A model's weights as the paper has them: one vector theta."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from swap_fast.distributed import ALONE, Comm

# Averages of models: line 28 of Algorithm 1.


def average(models: Iterable[tuple[int, Tensor]], comm: Comm = ALONE) -> Tensor:
    """The mean of weight vectors [P], those of this rank and of all others.

    One flat fp32 all-reduce; every rank gets the result.

    Arguments:
        models: this rank's workers' numbers, each with its vector; at least one.

    Raises:
        ValueError: on every rank, where a vector of any rank is not finite: one diverged model
            would spoil the average.
    """
    total: Tensor | None = None
    finite: dict[int, bool] = {}
    for worker, theta in models:
        finite[worker] = bool(torch.isfinite(theta).all())
        total = theta.clone() if total is None else total.add_(theta)
    for rank in comm.gather(finite):
        finite |= rank
    diverged = sorted(worker for worker, is_finite in finite.items() if not is_finite)
    if diverged:
        names = ", ".join(map(str, diverged))
        raise ValueError(
            f"worker {names}: expected finite weights to average, got NaN or infinity; "
            "lower the learning rate of phase 2"
        )
    assert total is not None, "a rank without a model to average"
    return comm.all_reduce_(total).div_(len(finite))


def mean_statistics(models: Sequence[Tensor], comm: Comm = ALONE) -> Tensor:
    """The mean of statistics [n], those of this rank's models and of all others.

    In float64, so that what all models have alike is in it to the bit.
    """
    total = torch.stack([*models]).double().sum(0)
    total = comm.all_reduce_(torch.cat([total, total.new_tensor([len(models)])]))
    return (total[:-1] / total[-1]).to(models[0].dtype)


def mean_of(samples: Sequence[Tensor]) -> Tensor:
    """The mean of one worker's samples [P]; of a single one, itself."""
    return samples[0] if len(samples) == 1 else torch.stack(tuple(samples)).mean(0)


def pairwise_distances(models: list[Tensor]) -> list[list[float]]:
    """Euclidean distances [W, W] between weight vectors."""
    return [[float((a.double() - b.double()).norm()) for b in models] for a in models]


def displacements(models: list[Tensor], origin: Tensor) -> tuple[list[float], list[list[float]]]:
    """How far, and in which directions, models went from where they began (Section 4.1).

    Returns:
        Norms [W] of theta_w - theta_T, and the cosines [W, W] among these.
    """
    ways = [model.double() - origin.double() for model in models]
    norms = [float(way.norm()) for way in ways]
    cosines = [
        [float(a @ b) / (m * n) if m * n else 0.0 for b, n in zip(ways, norms, strict=True)]
        for a, m in zip(ways, norms, strict=True)
    ]
    return norms, cosines


class Weights:
    """The parameters, gradients and batch-norm statistics of a model, each in one flat vector.

    The model goes on as before: its parameters, their gradients and its running statistics become
    views of these vectors. One update is then one kernel, the synchronisation of gradients one
    collective, and a copy, an average or a distance of models one operation.

    Arguments:
        model: its trainable parameters float32 on one device. Frozen parameters stay outside.
        set_apart: put these parameters at theta's end, for a learning rate or a weight decay of
            their own.

    Raises:
        ValueError: no trainable parameter, one that is not float32, or a batch norm whose momentum
            is None.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        set_apart: Literal["nothing", "biases", "norms_and_biases"] = "nothing",
    ) -> None:
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        if not named:
            raise ValueError("expected a model with trainable parameters, got none")
        for name, parameter in named:
            if parameter.dtype != torch.float32:
                raise ValueError(
                    f"parameter {name}: expected float32 weights, got {parameter.dtype}; lower "
                    "precision is autocast's work: pass the model in float32"
                )
        self.model = model
        apart = _names_apart(model, set_apart)
        named.sort(key=lambda pair: pair[0] in apart)
        parameters = [p for _, p in named]
        # Values at theta's end that are set apart.
        self.num_apart = sum(p.numel() for n, p in named if n in apart)
        # Values at the end of the statistics that are other buffers: here there are none.
        self.num_extra = 0
        self.theta = nn.Parameter(join(parameters))  # [P] fp32
        self.gradient = torch.zeros_like(self.theta)  # [P] fp32
        self.theta.grad = self.gradient
        views = split(self.theta.detach(), parameters), split(self.gradient, parameters)
        for parameter, value, gradient in zip(parameters, *views, strict=True):
            parameter.data, parameter.grad = value, gradient
        norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
        self.norms = [norm for norm in norms if norm.track_running_stats]
        if any(norm.momentum is None for norm in self.norms):
            raise ValueError(
                "batch norm: expected a momentum such as 0.1, got None; its cumulative mean would "
                "count the batches of all replicas, and be read on the host"
            )
        means = [norm.running_mean for norm in self.norms]
        variances = [norm.running_var for norm in self.norms]
        buffers = [b for b in means + variances if b is not None]
        # [2C] fp32: the running means of all layers, then their running variances.
        self.statistics = join(buffers) if buffers else self.theta.detach().new_zeros(0)
        for buffer, value in zip(buffers, split(self.statistics, buffers), strict=True):
            buffer.data = value

    def load_(self, theta: Tensor, statistics: Tensor) -> None:
        """Copy a vector of weights and one of statistics into the model."""
        self.theta.detach().copy_(theta)
        self.set_statistics_(statistics)

    def copy(self) -> tuple[Tensor, Tensor]:
        """Copies of theta [P] and of the statistics [2C]."""
        return self.theta.detach().clone(), self.statistics.clone()

    def set_statistics_(self, statistics: Tensor) -> None:
        """Copy statistics [2C] into the model."""
        self.statistics.copy_(statistics)

    def get_statistics(self) -> Tensor:
        """The statistics [2C], as forward passes have left them."""
        return self.statistics

    def gather_gradient_(self) -> None:
        """Add to `gradient` what a backward pass has left elsewhere: nothing, of views of it."""

    def state_dict(self) -> dict[str, Tensor]:
        """The model's state with its own names, at theta's precision."""
        return self.model.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Put such a state back."""
        self.model.load_state_dict(state)


def _names_apart(model: nn.Module, which: str) -> set[str]:
    """Of the biases, or of these and all that batch norms have."""
    if which == "nothing":
        return set()
    names = {name for name, _ in model.named_parameters() if name.endswith("bias")}
    if which == "norms_and_biases":
        for prefix, module in model.named_modules():
            if isinstance(module, _BatchNorm):
                names |= {f"{prefix}.{name}".lstrip(".") for name, _ in module.named_parameters()}
    return names


def join(tensors: Sequence[Tensor]) -> Tensor:
    """One vector of all values, each tensor's in the order of its own memory."""
    vectors = [t.detach().as_strided((t.numel(),), (1,), t.storage_offset()) for t in tensors]
    return torch.cat(vectors)


def split(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Views of the vector with the shapes and strides of the tensors given."""
    views, at = [], 0
    for tensor in like:
        views.append(vector.as_strided(tensor.shape, tensor.stride(), at))
        at += tensor.numel()
    return views
