"""A step's memory traffic and launches, counted operator by operator, without a device.

The step runs on a CPU, but computes nothing: a dispatch mode sees every operator of torch and
answers with memory of the right shape, and what stands for the Triton kernels of `swap_fast` counts
their launches. A launch reads its arguments and writes its results once, as if no cache kept any of
them, but for the exceptions in the tables below.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from bench import net_cost
from bench.document import NOTHING
from bench.micro.step import make_step
from bench.options import MicroNet
from swap_fast.config.execution import Execution
from swap_fast.models.layers import FusableNorm

UNREAD = {
    "copy_": (0,),
    "zero_": (0,),
    "fill_": (0,),
    "max_pool2d_with_indices_backward": (1,),
    "ones_like": (0,),
    "zeros_like": (0,),
    "full_like": (0,),
}
"""Arguments that an operator is given and does not read."""
READ_TWICE = {
    "native_batch_norm": (0,),
    "native_batch_norm_backward": (0, 1),
}
"""For moments or sums, and then for values."""
NO_KERNEL = ("empty", "new_empty", "lift_fresh", "scalar_tensor", "_local_scalar_dense")
"""Operators that only allocate or read, by the beginnings of their names."""


@dataclass(frozen=True, kw_only=True)
class StepCount:
    """What a step starts and moves."""

    launches: int | None
    """Kernels; None: a compiler's, not known before it made them."""
    bytes: float
    """Read and written."""
    update_bytes: float
    """Of these what depends on no image, without the weights that the layers themselves read and
    the gradients that they write: casts, sums, zeros, the search for overflow, the update."""


class Counter(TorchDispatchMode):
    """Adds up what is launched and moved within its block."""

    def __init__(self) -> None:
        super().__init__()
        self.launches, self.bytes = 0, 0

    def add(self, num_bytes: int, launches: int = 1) -> None:
        """Count a kernel."""
        self.launches += launches
        self.bytes += num_bytes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count an operator that runs a kernel, and do not run it."""
        kwargs, name, returns = kwargs or {}, func.overloadpacket.__name__, func._schema.returns
        views = any(r.alias_info and not r.alias_info.is_write for r in returns)
        if views or name.startswith(NO_KERNEL):
            return func(*args, **kwargs)
        made: Any
        if func._schema.is_mutable:
            changed = [a for s, a in zip(func._schema.arguments, args, strict=False) if s.is_write]
            made = changed if len(returns) != 1 else changed[0]
        else:
            made = tree_map(_shaped, func(*tree_map(_meta, args), **tree_map(_meta, kwargs)))
        launches = 1
        if name == "convolution":  # as cuDNN lays its results out
            made = made.to(memory_format=torch.channels_last)
        elif name == "convolution_backward":  # as it lays them out: a kernel for each of the two
            like = zip(made[:2], args[1:3], strict=True)
            made = (*(m if m is None else torch.empty_like(a) for m, a in like), made[2])
            launches = len(_tensors(made))
            dy, x, w = args[:3]
            args = (dy, x) if made[0] is None else (dy, x, dy, w)
        read: list[Any] = [a for i, a in enumerate(args) if i not in UNREAD.get(name, ())]
        read += [args[i] for i in READ_TWICE.get(name, ())]
        moved = [*_tensors((read, kwargs)), *_tensors(made)]
        self.add(sum(map(_num_bytes, moved)), launches)
        return made if returns else None


def _meta(value: Any) -> Any:
    if isinstance(value, Tensor):
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
    return torch.device("meta") if isinstance(value, torch.device) else value


def _shaped(value: Any) -> Any:
    if isinstance(value, Tensor):
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype)
    return value


def _tensors(nested: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(nested) if isinstance(leaf, Tensor)]


def _num_bytes(tensor: Tensor) -> int:
    """Of the values that there are: an expanded tensor has fewer than it shows."""
    shown = zip(tensor.shape, tensor.stride(), strict=True)
    return tensor.element_size() * _product(size for size, stride in shown if stride)


def _product(sizes: Iterable[int]) -> int:
    product = 1
    for size in sizes:
        product *= size
    return product


def _by_arguments(*twice: str) -> Callable[[dict[str, Any]], int]:
    """A kernel that goes once over each of its vectors, and twice over some."""

    def moved(arguments: dict[str, Any]) -> int:
        found = {id(a): _num_bytes(a) for a in arguments.values() if isinstance(a, Tensor)}
        return sum(found.values()) + sum(_num_bytes(arguments[name]) for name in twice)

    return moved


def _by_parts(arguments: dict[str, Any]) -> int:
    """A kernel over parts of theta: 4 bytes of each value read and written, of two vectors."""
    itemsize, values = arguments["gradients"][0].element_size(), sum(arguments["SIZE"])
    if "theta" not in arguments:
        return values * itemsize
    rounded = arguments["rounded"].element_size() if arguments["ROUNDS"] else 0
    return values * (2 * 8 + rounded + itemsize)


def _of_matrices(**passes: int) -> Callable[[dict[str, Any]], int]:
    """A kernel over matrices: how often it goes over each of these vectors at their places.

    A tuple's tensors are matrices of one type. What there is a value of for each matrix, or for
    each program, is left out.
    """

    def moved(arguments: dict[str, Any]) -> int:
        found = {name: arguments[name] for name in passes}
        each = {n: (v[0] if isinstance(v, tuple) else v).element_size() for n, v in found.items()}
        if not arguments.get("ROUNDS", True):
            each["rounded"] = 0
        return sum(arguments["SIZE"]) * sum(n * each[name] for name, n in passes.items())

    return moved


KERNELS: dict[str, dict[str, Callable[[dict[str, Any]], int]]] = {
    "swap_fast.models.fused_norm": {
        "moments_kernel": _by_arguments(
            "means", "squares", "running_mean", "running_var", "counter"
        ),
        "values_kernel": _by_arguments(),
        "sums_kernel": _by_arguments("sums", "products", "counter"),
        "gradient_kernel": _by_arguments(),
    },
    "swap_fast.models.fused_loss": {
        "loss_kernel": _by_arguments("partial", "loss_sum", "correct", "counted", "counter"),
    },
    "swap_fast.training.update_kernel": {
        "overflow_kernel": _by_parts,
        "update_kernel": _by_parts,
        "scale_kernel": _by_arguments("scale", "tracker", "skipped"),
        "muon_norms_kernel": _of_matrices(gradients=1, theta=1, velocity=1),
        "muon_direction_kernel": _of_matrices(gradients=1, velocity=2, direction=1),
        "muon_update_kernel": _of_matrices(directions=1, theta=2, rounded=1),
    },
}
"""What each kernel reads and writes, from its arguments by name."""


@contextmanager
def _counted_kernels(counter: Counter) -> Iterator[None]:
    """Within the block, a launch of a kernel is counted, and runs nothing."""

    class Counted:
        def __init__(self, kernel: Any, moved: Callable[[dict[str, Any]], int]) -> None:
            self._names, self._moved = kernel.arg_names, moved

        def __getitem__(self, grid: Any) -> Callable[..., None]:
            def launch(*args: Any, **named: Any) -> None:
                values = dict(zip(self._names, args, strict=False)) | named
                counter.add(self._moved(values))

            return launch

    with ExitStack() as stack:
        for module, kernels in KERNELS.items():
            for name, moved in kernels.items():
                kernel = getattr(__import__(module, fromlist=[name]), name)
                stack.enter_context(patch(f"{module}.{name}", Counted(kernel, moved)))
        yield


def count(
    execution: Execution,
    width: int,
    batch_size: int,
    *,
    fused_update: bool,
    net: MicroNet = "resnet9",
) -> StepCount:
    """Count a step of a net with its optimizer on a CUDA device.

    Arguments:
        fused_update: by our kernels; of a step that has them, with the loss.
    """
    modelled = {"resnet9": net_cost.resnet9, "speed_net": net_cost.speed_net}[net]
    if execution.step == "compiled":
        parameters = modelled(width, 10).parameters
        return StepCount(
            launches=None,
            bytes=modelled(width, 10, fused=True).step_bytes(batch_size, 2),
            update_bytes=parameters * net_cost.update_bytes(2),
        )
    (launches, small), (_, large) = (
        _count_once(execution, width, size, fused_update=fused_update, net=net)
        for size in (batch_size, 2 * batch_size)
    )
    layers = modelled(width, 10).layers
    weights = sum((1 + layer.backward_products) * layer.weights for layer in layers)
    own = 2 * small - large - weights * execution.dtype.itemsize
    return StepCount(launches=launches, bytes=small, update_bytes=own)


def _count_once(
    execution: Execution, width: int, batch_size: int, *, fused_update: bool, net: MicroNet
) -> tuple[int, int]:
    counter = Counter()
    plain = replace(execution, device_type="cpu", step="eager")
    step, _ = make_step(plain, width, batch_size, net=net)
    for module in step._weights.model.train().modules():
        if isinstance(module, FusableNorm):
            module.fused = execution.step == "fused"
    with _counted_kernels(counter):
        step._optimizer.fuse_(execution.dtype if fused_update else None)
        with counter:
            step.update_no_sync()
            counter.launches, counter.bytes = 0, 0  # what is made once, is made
            step.update_no_sync()
    return counter.launches, counter.bytes


def traffic_lines(width: int, batch_size: int, net: MicroNet = "resnet9") -> list[str]:
    """A line for each form of the step on a CUDA device, without one; none without Triton."""
    if find_spec("triton") is None:
        return []
    eager = Execution(device_type="cuda", precision="fp16")
    fused = replace(eager, step="fused")
    forms = {
        "eager": (eager, False),
        "compiled (modelled)": (replace(eager, step="compiled"), False),
        "fused norm": (fused, False),
        "fused": (fused, True),
    }
    if net == "speed_net":  # whose norms have no fused kernels
        del forms["fused norm"], forms["compiled (modelled)"]
    name_of = {"resnet9": "ResNet-9", "speed_net": "SpeedNet with Muon"}[net]
    lines = [
        f"counted for a CUDA device in fp16: {name_of} of width {width}, batch {batch_size}",
        f"{'':<24} {'MB an image':>12} {'MB the update':>14} {'launches':>9}",
    ]
    for name, (execution, fused_update) in forms.items():
        found = count(execution, width, batch_size, fused_update=fused_update, net=net)
        lines.append(
            f"{name:<24} {found.bytes / batch_size / 1e6:>12.2f} {found.update_bytes / 1e6:>14.1f} "
            f"{NOTHING if found.launches is None else found.launches:>9}"
        )
    return lines
