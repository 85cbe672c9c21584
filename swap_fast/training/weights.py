"""A model's weights as the paper has them: one vector theta."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from swap_fast.config.checks import require, typed, typed_arguments
from swap_fast.config.phase import GroupName
from swap_fast.distributed import ALONE, Comm

LAYERS_IN_HALF = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
"""Whose weights and biases autocast rounds to half precision."""


class Weights:
    """The parameters, gradients and buffers of a model, each in one flat vector.

    theta and its gradient are float32, or float64 where a parameter is. The model goes on as
    before: a parameter of that type, its gradient and a batch norm's running statistics become
    views of these vectors. One update is then one kernel, the synchronisation of gradients one
    collective, and a copy, an average or a distance of models one operation.

    A parameter in half precision stays, and is the rounded copy of its part of theta, which is what
    the optimizer updates and phase 3 averages. Floating-point buffers that are no batch norm's
    statistics (a spectral norm's vectors, a moving average of the net's own) stand behind these:
    each replica and each worker has its own, and their mean is taken where statistics are merged
    and models averaged. Other buffers (integers, flags, such as are not saved) are in no vector:
    see `unaveraged_buffers`.

    Arguments:
        model: on one device. Frozen parameters stay outside.
        groups: parameters that are updated alike, in the order of their places in theta. "others"
            has those that are in no other group.
        may_move: whether the net may put other tensors into its parameters, as `p.data = ...` in a
            forward pass does. Else theta is what an update writes to, which would not reach them.

    Raises:
        ValueError: no trainable parameter, parameters that are lazy, complex, on several devices
            or share memory, a batch norm whose momentum is None, a buffer that is sparse or
            expanded, or groups without a parameter's.
    """

    @typed_arguments("self")
    def __init__(
        self,
        model: nn.Module,
        *,
        groups: Iterable[GroupName] = ("others",),
        may_move: bool = False,
    ) -> None:
        order = typed("groups", list(groups), Sequence[GroupName])
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        _require_one_vector(named)
        group_of = _groups(model, order)
        require(set(group_of.values()) <= set(order), "groups", '"others" among them', order)
        named.sort(key=lambda pair: order.index(group_of[pair[0]]))
        parameters = [p for _, p in named]
        wide = any(p.dtype == torch.float64 for p in parameters)
        dtype = torch.float64 if wide else torch.float32
        dense = [_dense(p.detach()).to(dtype) for p in parameters]
        self.model, self._may_move = model, may_move
        self.theta = nn.Parameter(join(dense))  # [P]
        self.gradient = torch.zeros_like(self.theta, requires_grad=False)  # [P]
        self.theta.grad = self.gradient
        # What an optimizer is given for each parameter: itself, or its part of theta.
        self.trained: dict[nn.Parameter, nn.Parameter] = {}
        views = split(self.theta.detach(), dense), split(self.gradient, dense)
        # Of each parameter its part of theta, even while the net has another tensor in it.
        self._parts = dict(zip(parameters, views[0], strict=True))
        for parameter, value, gradient in zip(parameters, *views, strict=True):
            if parameter.dtype == dtype:
                parameter.data, trained = value, parameter
            else:
                trained = nn.Parameter(value)
            trained.grad = gradient
            self.trained[parameter] = trained
        # Of each group: what an optimizer is given, and its place in theta.
        self.groups: dict[GroupName, list[nn.Parameter]] = {group: [] for group in order}
        for (name, _), trained in zip(named, self.trained.values(), strict=True):
            self.groups[group_of[name]].append(trained)
        sizes = [sum(p.numel() for p in group) for group in self.groups.values()]
        self.places = {
            group: slice(end - size, end)
            for group, size, end in zip(order, sizes, accumulate(sizes), strict=True)
        }
        # Parameters whose gradients autograd leaves elsewhere, each with its part of `gradient`.
        self.loose: list[tuple[nn.Parameter, Tensor]] = []
        # Of `loosen_`: theta in half precision [P], and the parameters that are parts of it.
        self.rounded: Tensor | None = None
        self._loosened: set[nn.Parameter] = set()
        self.tighten_()
        # Whether gradients can underflow, without a loss scale.
        self.has_fp16 = any(p.dtype == torch.float16 for p in parameters)
        self._collect_buffers(dtype)

    def _collect_buffers(self, dtype: torch.dtype) -> None:
        named = list(self.model.named_modules())
        norms = [m for _, m in named if isinstance(m, _BatchNorm)]
        self.norms = [norm for norm in norms if norm.track_running_stats]
        if any(norm.momentum is None for norm in self.norms):
            raise ValueError(
                "batch norm: expected a momentum such as 0.1, got None; its cumulative mean would "
                "count the batches of all replicas, and be read on the host"
            )
        places: list[tuple[nn.Module, str]] = [(norm, "running_mean") for norm in self.norms]
        places += [(norm, "running_var") for norm in self.norms]
        of_norms = set(places)
        places += [
            (module, name)
            for module in self.model.modules()
            for name, buffer in module.named_buffers(recurse=False)
            if buffer.is_floating_point()
            and name not in module._non_persistent_buffers_set
            and (module, name) not in of_norms
        ]
        prefixes = {module: f"{prefix}." * bool(prefix) for prefix, module in named}
        counters = [(norm, "num_batches_tracked") for norm in self.norms]
        self._held = {f"{prefixes[module]}{name}" for module, name in (*places, *counters)}
        # By the net's form alone, so that all ranks say the same.
        self.has_unaveraged_buffers = any(
            f"{prefixes[module]}{name}" not in self._held
            for _, module in named
            for name in module._buffers
        )
        buffers = [module.get_buffer(name) for module, name in places]
        for (module, name), buffer in zip(places, buffers, strict=True):
            _require_own_memory(self.model, module, name, buffer)
        copies = [_dense(buffer).to(self.theta.device, dtype) for buffer in buffers]
        # Values at the end of the statistics that are other buffers.
        self.num_extra = sum(copy.numel() for copy in copies[len(of_norms) :])
        # [2C + extra]: the running means of all layers, their running variances, other buffers.
        self.statistics = join(copies) if copies else self.theta.detach().new_zeros(0)
        # Buffers that are no views: of another type, or such as a net may put another in place of.
        self._mirrored: list[tuple[nn.Module, str, Tensor]] = []
        values = split(self.statistics, copies)
        for (module, name), buffer, value in zip(places, buffers, values, strict=True):
            if buffer.dtype == dtype and (module, name) in of_norms:
                buffer.data = value
            else:
                self._mirrored.append((module, name, value))

    @property
    def _rounded(self) -> list[tuple[nn.Parameter, nn.Parameter]]:
        """Parameters that are rounded copies of their parts of theta, each with its part."""
        return [(p, t) for p, t in self.trained.items() if p is not t]

    def _split(self, vector: Tensor) -> dict[nn.Parameter, Tensor]:
        """The parts of a vector [P] that belong to each parameter."""
        parts = split(vector, list(self._parts.values()))
        return dict(zip(self._parts, parts, strict=True))

    @contextmanager
    def gradients_apart(self) -> Iterator[None]:
        """Within it parameters have no gradient, as before a first backward pass.

        So code of a user that makes gradients of its own, or drops them, leaves `gradient` as it
        is. What is in the parameters at its end is added to it.
        """
        for parameter, _ in (*self._attached, *self.loose):  # of loose ones all is gathered
            parameter.grad = None
        yield
        for parameter, part in self._attached:
            if parameter.grad is not None:
                part.add_(parameter.grad)
            parameter.grad = part

    @property
    def gradient_parts(self) -> dict[nn.Parameter, Tensor]:
        """The parts of `gradient` that belong to each parameter."""
        return self._split(self.gradient)

    def loosen_(self, dtype: torch.dtype) -> None:
        """Let gradients lie where autograd leaves them, for an update that takes them there.

        `gradient` has the sum of what is gathered.

        In half precision, convolutions and linear layers also get rounded copies of their parts of
        theta, the same that autocast would make in every pass.

        Arguments:
            dtype: of the forward pass.
        """
        self.tighten_()
        if dtype != self.theta.dtype:
            if self.rounded is None or self.rounded.dtype != dtype:
                self.rounded = self.theta.detach().to(dtype)
            parts, copies = self._split(self.theta.detach()), self._split(self.rounded)
            layers = [m for m in self.model.modules() if isinstance(m, LAYERS_IN_HALF)]
            for parameter in (p for layer in layers for p in layer.parameters(recurse=False)):
                if self.trained.get(parameter) is parameter:
                    self.trained[parameter] = nn.Parameter(parts[parameter])
                    self.trained[parameter].grad, parameter.grad = parameter.grad, None
                    parameter.data = copies[parameter]
                    self._loosened.add(parameter)
            self.refresh_()
        self.loose = list(self.gradient_parts.items())
        self.drop_gradients_()

    def tighten_(self) -> None:
        """Undo `loosen_`: parameters and their gradients are parts of the vectors again."""
        for parameter in self._loosened:
            parameter.grad = None
            parameter.data, self.trained[parameter] = self.trained[parameter].data, parameter
        self._loosened.clear()
        views = self.gradient_parts
        # Parameters whose gradients autograd adds to their parts of `gradient`.
        self._attached = [(p, views[p]) for p, trained in self.trained.items() if p is trained]
        for parameter, part in self._attached:
            parameter.grad = part
        self.loose = [(parameter, views[parameter]) for parameter, _ in self._rounded]

    def drop_gradients_(self) -> None:
        """Leave no loose gradient behind."""
        for parameter, _ in self.loose:
            parameter.grad = None

    def _moved(self) -> list[tuple[nn.Parameter, Tensor]]:
        """Parameters into which the net has put another tensor, each with its part of theta.

        Raises:
            ValueError: the net may not.
        """
        moved = [
            (parameter, part)
            for parameter, part in self._parts.items()
            if self.trained[parameter] is parameter and parameter.data_ptr() != part.data_ptr()
        ]
        if moved and not self._may_move:
            name = next(n for n, p in self.model.named_parameters() if p is moved[0][0])
            raise ValueError(
                f"parameter {name}: expected the tensor that updates write to, got another one, "
                "which the net has put there by .data; let it write into the parameter by copy_"
            )
        return moved

    def take_in_(self) -> None:
        """Copy what the net has put into its parameters to theta, and make them its parts again."""
        for parameter, part in self._moved():
            part.copy_(parameter.data)
            parameter.data = part

    def load_(self, theta: Tensor, statistics: Tensor) -> None:
        """Copy a vector of weights and one of statistics into the model."""
        for parameter, part in self._moved():
            parameter.data = part
        self.theta.detach().copy_(theta)
        self.set_statistics_(statistics)
        self.refresh_()

    def copy(self) -> tuple[Tensor, Tensor]:
        """Copies of theta [P] and of the statistics [2C + extra]."""
        self.take_in_()
        return self.theta.detach().clone(), self.get_statistics().clone()

    def refresh_(self) -> None:
        """Round theta into the parameters that are no views of it."""
        if self.rounded is not None:
            self.rounded.copy_(self.theta.detach())
        for parameter, trained in self._rounded:
            if parameter not in self._loosened:
                parameter.data.copy_(trained.data)

    def gather_gradient_(
        self, *, replaces: bool = False, among: Collection[nn.Parameter] | None = None
    ) -> None:
        """Add the gradients that lie elsewhere to `gradient`, in its precision.

        Arguments:
            replaces: whether they take the place of what is there; a missing one counts as 0.
            among: of these parameters alone; None: of all.
        """
        loose = [(p, part) for p, part in self.loose if among is None or p in among]
        found = [(part, p.grad) for p, part in loose if p.grad is not None]
        if replaces:
            for part in (part for p, part in loose if p.grad is None):
                part.zero_()
        if found:
            parts, gradients = map(list, zip(*found, strict=True))
            (torch._foreach_copy_ if replaces else torch._foreach_add_)(parts, gradients)
            for parameter, _ in loose:
                parameter.grad = None

    def unaveraged_buffers(self) -> dict[str, Tensor]:
        """Copies, by name, of the buffers that have no mean: integers, and what is not saved.

        Without a batch norm's `num_batches_tracked`.
        """
        named = self.model.named_buffers()
        return {name: buffer.detach().clone() for name, buffer in named if name not in self._held}

    def set_unaveraged_buffers_(self, values: Mapping[str, Tensor]) -> None:
        """Put such copies into the model; a buffer that has its value already is not touched."""
        for name, value in values.items():
            owner, _, leaf = name.rpartition(".")
            module = self.model.get_submodule(owner)
            now = module._buffers.get(leaf)
            value = value.to(self.theta.device if now is None else now.device)
            dense = now is not None and now.layout == value.layout == torch.strided
            if now is None or not dense or (now.shape, now.dtype) != (value.shape, value.dtype):
                module._buffers[leaf] = value.clone()
            elif not torch.equal(now, value):
                now.copy_(value)

    def set_statistics_(self, statistics: Tensor) -> None:
        """Copy statistics [2C + extra] into the model."""
        self.statistics.copy_(statistics)
        for module, name, value in self._mirrored:
            module.get_buffer(name).copy_(value)

    def get_statistics(self) -> Tensor:
        """The statistics [2C + extra], as forward passes have left them."""
        for module, name, value in self._mirrored:
            value.copy_(module.get_buffer(name))
        return self.statistics

    def state_dict(self) -> dict[str, Tensor]:
        """The model's state with its own names, at theta's precision."""
        return self.model.state_dict() | self._unrounded()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Put such a state back; what is no tensor (`get_extra_state`) may be missing in it."""
        self.take_in_()
        own = self.model.state_dict().items()
        others = {name: value for name, value in own if not isinstance(value, Tensor)}
        self.model.load_state_dict({**others, **state} if others else state)
        self.get_statistics()
        for name, value in self._unrounded().items():
            value.copy_(state[name])

    def _unrounded(self) -> dict[str, Tensor]:
        """By name, the values of which the model holds rounded ones."""
        of = {parameter: trained.detach() for parameter, trained in self._rounded}
        named = self.model.named_parameters(remove_duplicate=False)
        unrounded = {name: of[parameter] for name, parameter in named if parameter in of}
        prefixes = {module: prefix for prefix, module in self.model.named_modules()}
        for module, name, value in self._mirrored:
            if module.get_buffer(name).dtype != value.dtype:
                unrounded[f"{prefixes[module]}.{name}".lstrip(".")] = value
        return unrounded

    def release_(self) -> None:
        """Give the model memory of its own again, parameter by parameter, and no gradients.

        Counts of batches, which depend on how replicas were dealt out to processes, become 0.
        """
        self.tighten_()
        for parameter in self.trained:
            parameter.data, parameter.grad = parameter.data.clone(), None
        for norm in self.norms:
            for name in ("running_mean", "running_var"):
                norm.get_buffer(name).data = norm.get_buffer(name).data.clone()
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked.zero_()


def refuse_synchronized(norms: Sequence[_BatchNorm]) -> None:
    """Refuse batch norms that would sum over all processes: each worker has statistics of its own.

    Raises:
        ValueError: one is a SyncBatchNorm.
    """
    if any(isinstance(norm, nn.SyncBatchNorm) for norm in norms):
        raise ValueError(
            "batch norm: expected one of each worker's own, got SyncBatchNorm; use BatchNorm1d, 2d "
            "or 3d"
        )


def _require_one_vector(named: Sequence[tuple[str, nn.Parameter]]) -> None:
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
                "by assigning the parameter itself"
            )


def _require_own_memory(model: nn.Module, module: nn.Module, name: str, buffer: Tensor) -> None:
    """Refuse a buffer into which no values can be copied."""
    got = None
    if buffer.layout != torch.strided:
        got = "a sparse one; register its to_dense()"
    elif any(
        size > 1 and step == 0 for size, step in zip(buffer.shape, buffer.stride(), strict=True)
    ):
        got = "one that expand() has made, whose values share memory; register its clone()"
    if got is not None:
        prefix = next(prefix for prefix, each in model.named_modules() if each is module)
        raise ValueError(
            f"buffer {f'{prefix}.{name}'.lstrip('.')}: expected one with memory for each value, "
            f"got {got}"
        )


def _groups(model: nn.Module, groups: Iterable[GroupName]) -> dict[str, GroupName]:
    """Of these groups, the one that each parameter is in."""
    parameters = dict(model.named_parameters())
    biases = {name for name in parameters if name.endswith("bias")}
    norms = {
        f"{prefix}.{name}".lstrip(".")
        for prefix, module in model.named_modules()
        if isinstance(module, _BatchNorm)
        for name, _ in module.named_parameters()
    }
    members: dict[GroupName, set[str]] = {
        "filters": {name for name, p in parameters.items() if p.dim() > 2},
        "biases": biases,
        "norms": norms,
        "norms_and_biases": biases | norms,
    }
    asked = [group for group in groups if group != "others"]
    return {n: next((g for g in asked if n in members[g]), "others") for n in parameters}


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


def _dense(tensor: Tensor) -> Tensor:
    """A tensor whose values lie side by side in its own order of dimensions."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    kept = formats.get(tensor.dim(), torch.contiguous_format)
    return tensor if tensor.is_contiguous(memory_format=kept) else tensor.contiguous()


# Averages of models: line 28 of Algorithm 1.


@typed_arguments()
def average(models: Iterable[tuple[int, Tensor]], comm: Comm = ALONE) -> Tensor:
    """The mean of weight vectors [P], those of this rank and of all others.

    One flat fp32 all-reduce; every rank gets the result.

    Arguments:
        models: this rank's workers' numbers, each with its vector; at least one.

    Raises:
        ValueError: no model; on every rank, where a vector of any rank is not finite: one diverged
            model would spoil the average.
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
    if total is None:
        raise ValueError("models: expected a weight vector or more on each rank, got none")
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
    origin = origin.double()
    norms = [float((model.double() - origin).norm()) for model in models]
    cosines = []
    for one, m in zip(models, norms, strict=True):
        # One at a time: the differences of all workers in float64 are two weight vectors each.
        a = one.double() - origin
        cosines.append(
            [
                float(a @ (other.double() - origin)) / (m * n) if m * n else 0.0
                for other, n in zip(models, norms, strict=True)
            ]
        )
    return norms, cosines
