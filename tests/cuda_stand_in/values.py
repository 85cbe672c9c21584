"""Real values on the stand-in: every operator that torch has for CUDA runs on the CPU, in place.

Device memory is host memory, so a CPU tensor over the same bytes stands for the CUDA one. While a
stream is captured an operator is recorded with the addresses of its tensors, and a replay of the
graph runs it on whatever is at these addresses then, as a GPU would. With STANDIN_DELAY every
operator is recorded, and run when its stream's turn comes.

Installed when it is imported, by sitecustomize.py.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FAILED = 88
"""Exit status after an operator that failed on the device, where no caller can be told."""
KERNEL, COPY = 0, 2  # as stand_in.h numbers them
aten = torch.ops.aten
DELAYED = bool(os.environ.get("STANDIN_DELAY"))
KEEP = {  # torch's own are right: allocation, views, and what is true of the storage alone
    *("empty.memory_format", "empty_strided", "as_strided", "view", "_reshape_alias", "resize_"),
    *("set_", "set_.source_Storage", "set_.source_Storage_storage_offset", "set_.source_Tensor"),
    *("record_stream", "is_set_to", "_local_scalar_dense", "is_pinned", "_pin_memory", "unfold"),
    *("view_as_real", "view_as_complex", "_efficientzerotensor", "_nested_tensor_from_mask"),
}
WAITS = {  # their result's size depends on the data
    *("nonzero", "masked_select", "equal", "_unique2", "unique_dim", "unique_consecutive"),
    *("repeat_interleave", "is_nonzero", "bincount", "histc"),
}

library = torch.library.Library("aten", "IMPL")
stand_in = ctypes.CDLL(str(Path(os.environ["STANDIN_LIB"]) / "libstand_in.so"))
CALL = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
stand_in.standin_record.argtypes = [ctypes.c_void_p, CALL, ctypes.c_void_p, ctypes.c_int]
calls: dict[int, tuple[Callable[[], Any], bool]] = {}
"""The recorded work by number, and whether it is done once only: what is captured is repeated."""

watchers: list[Callable[[Any, Any], None]] = []
"""Told of each operator and its arguments, for the tests."""


@CALL
def _call(number: int) -> None:
    """Do recorded work, at its turn or at a replay."""
    work, once = calls[number]
    if once:
        del calls[number]
    try:
        with torch.no_grad():
            work()
    except BaseException:
        traceback.print_exc()
        os._exit(FAILED)


def record(stream: torch.cuda.Stream, work: Callable[[], Any], kind: int = KERNEL) -> None:
    """Do work now, or at the stream's turn, or at each replay where the stream is captured."""
    number = record.number = getattr(record, "number", 0) + 1
    calls[number] = work, not torch.cuda.is_current_stream_capturing()
    told = stand_in.standin_record(stream.cuda_stream, _call, number, kind)
    if told != 1:
        del calls[number]
    if told < 0:
        torch.cuda.check_error(torch.cuda.cudart().cudaGetLastError())
    if told == 0:
        work()


def alias(t: Tensor) -> Tensor:
    """A CPU tensor over the bytes of a CUDA one."""
    s = t.untyped_storage()
    if s.nbytes() == 0:
        return torch.empty_strided(t.size(), t.stride(), dtype=t.dtype)
    cpu = torch.device("cpu")
    storage = torch._C._construct_storage_from_data_pointer(s.data_ptr(), cpu, s.nbytes())
    made = torch.empty(0, dtype=t.dtype)
    return made.set_(storage, t.storage_offset(), t.size(), t.stride())


def tree(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """A copy of nested arguments with each tensor changed, and no CUDA device or generator."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, list | tuple):
        return type(value)(tree(change, v) for v in value)
    if isinstance(value, dict):
        return {k: tree(change, v) for k, v in value.items()}
    if isinstance(value, torch.device):
        return torch.device("cpu")
    return None if isinstance(value, torch.Generator) else value


def tensors(value: Any) -> list[Tensor]:
    """The tensors in nested arguments or results."""
    found: list[Tensor] = []
    tree(lambda t: found.append(t) or t, value)
    return found


def by_mask(op: Any, args: Any) -> bool:
    """Whether places are chosen by a mask: how many depends on it."""
    if op not in (aten.index.Tensor, aten._index_put_impl_.default):
        return False
    fills = op is not aten.index.Tensor and args[2].numel() == 1  # as `masked_fill_` does
    return not fills and any(t.dtype == torch.bool for t in tensors(args[1]))


def run(op: Any, waits: bool, draws: bool, /, *args: Any, **kwargs: Any) -> Any:
    """An operator on the current stream of its device.

    Arguments:
        waits: whether the host needs what is on the device, for a size.
        draws: whether it draws random numbers, which it does in the program's order.
    """
    for watch in watchers:
        watch(op, args)
    on_device = [t.device.index for t in tensors((args, kwargs)) if t.is_cuda]
    index = on_device[0] if on_device else torch.cuda.current_device()
    stream = torch.cuda.current_stream(index)
    captured = torch.cuda.is_current_stream_capturing()
    now = waits or by_mask(op, args) or (draws and not captured)
    if now and (DELAYED or not draws):
        stream.synchronize()  # refused in a capture
    later = captured or (DELAYED and not now)
    known: dict[int, tuple[Tensor, Tensor]] = {}  # by the CPU tensor's id: it, and the CUDA one

    def on_cpu(t: Tensor) -> Tensor:
        if not t.is_cuda:  # a launch takes a host's scalar by its value
            return t.clone() if later else t
        made = alias(t)
        known[id(made)] = made, t
        return made

    given, named = tree(on_cpu, args), tree(on_cpu, kwargs)
    if later:  # now for the shapes alone, on copies
        aliases = dict(known)
        known.clear()

        def copied(t: Tensor) -> Tensor:
            if id(t) not in aliases or 0 in t.stride():  # an expanded one is only read
                return t
            copy = torch.empty_strided(t.size(), t.stride(), dtype=t.dtype).zero_()
            if t.is_floating_point():  # a place or a label that is not there yet could be any
                copy.copy_(t)
            known[id(copy)] = copy, aliases[id(t)][1]
            return copy

        results = op(*tree(copied, given), **tree(copied, named))
    else:
        record(stream, lambda: None)
        results = op(*given, **named)
    made: list[tuple[Tensor, Tensor]] = []  # a result on the CPU, and the CUDA tensor for it

    def on_device_again(t: Tensor) -> Tensor:
        cpu, original = known.get(id(t), (None, None))
        if original is None or cpu is None:
            new = torch.empty_strided(t.size(), t.stride(), dtype=t.dtype, device=f"cuda:{index}")
            made.append((t, new))
            return new
        if cpu.shape != original.shape:
            original.resize_(cpu.shape)
            made.append((t, original))
        return original

    answer = tree(on_device_again, results)
    if not later:
        for t, new in made:
            alias(new).copy_(t)
        return answer
    order = tensors(results)
    places = [next(i for i, r in enumerate(order) if r is t) for t, _ in made]
    targets = [alias(new) for _, new in made]

    def again() -> None:
        found = tensors(op(*given, **named))
        for place, target in zip(places, targets, strict=True):
            target.copy_(found[place])

    record(stream, again)
    return answer


def copy_(to: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """Between devices, or with the host: only a pinned, non-blocking copy does not wait."""
    if to.is_cuda and source.is_cuda:
        if to.device != source.device:
            torch.cuda.current_stream(source.device).synchronize()
        return run(aten.copy_.default, to.device != source.device, False, to, source)
    on_device, host = (to, source) if to.is_cuda else (source, to)
    stream = torch.cuda.current_stream(on_device.device)
    waits = not (non_blocking and host.is_pinned())
    if waits and (not non_blocking or DELAYED or torch.cuda.is_current_stream_capturing()):
        stream.synchronize()  # refused in a capture, and where waits are watched for
    ours, theirs = (alias(to), source) if to.is_cuda else (to, alias(source))
    record(stream, lambda: ours.copy_(theirs), COPY)
    if waits and DELAYED:
        stream.synchronize()
    return to


# ---- operators that only CUDA has, or that a CPU has only in fp32 ----
def up(t: Tensor) -> Tensor:
    """In float32, as the accumulation of CUDA's kernels is."""
    return t.float() if t.dtype in (torch.half, torch.bfloat16) else t


def laid_out(made: Tensor, dtype: torch.dtype, *like: Tensor) -> Tensor:
    """In a type, and in channels_last where one of `like` is."""
    plain, last = torch.contiguous_format, torch.channels_last
    of_images = [t for t in like if t.dim() == 4 and not t.is_contiguous()]
    is_last = any(t.is_contiguous(memory_format=last) for t in of_images)
    return made.to(dtype).contiguous(memory_format=last if is_last else plain)


def cudnn_convolution(x, w, padding, stride, dilation, groups, *_):
    zero = [0] * len(stride)
    y = aten.convolution(up(x), up(w), None, stride, padding, dilation, False, zero, groups)
    return laid_out(y, x.dtype, x, w)


def convolution_backward(g, x, w, *rest):
    gx, gw, gb = aten.convolution_backward(up(g), up(x), up(w), *rest)
    return (
        gx if gx is None else laid_out(gx, g.dtype, x),
        gw if gw is None else laid_out(gw, g.dtype, w),
        gb if gb is None else gb.to(g.dtype),
    )


def cudnn_batch_norm(x, *rest):
    y, mean, inverse = aten.native_batch_norm(up(x), *rest)
    return torch.empty_like(x).copy_(y), mean, inverse, torch.empty(0, dtype=torch.uint8)


def cudnn_batch_norm_backward(x, g, w, mean, var, m, i, eps, _):
    gx, gw, gb = aten.native_batch_norm_backward(
        up(g), up(x), w, mean, var, m, i, True, eps, [True, True, True]
    )
    return torch.empty_like(x).copy_(gx), gw, gb


CONVOLUTION = (cudnn_convolution, convolution_backward)
OWN = {f.__name__: f for f in (*CONVOLUTION, cudnn_batch_norm, cudnn_batch_norm_backward)}


def install() -> None:
    """Put the CPU's operators in the place of CUDA's."""
    for full in torch._C._dispatch_get_registrations_for_dispatch_key("CUDA"):
        space, _, name = full.partition("::")
        base, _, overload = name.partition(".")
        op = getattr(getattr(aten, base, None), overload or "default", None)
        if space != "aten" or name in KEEP or op is None:
            continue
        if any(r.alias_info and not r.alias_info.is_write for r in op._schema.returns):
            continue  # a view
        draws = any(a.name == "generator" for a in op._schema.arguments)
        kernel = functools.partial(run, OWN.get(name, op), base in WAITS, draws)
        library.impl(name, kernel, "CUDA", allow_override=True)
    library.impl("copy_", copy_, "CUDA", allow_override=True)


@contextlib.contextmanager
def language_kept():
    """Put Triton's language back afterwards: the interpreter leaves a part of it interpreted.

    It does so where a kernel calls a function of Triton's own, such as a sum, and no further kernel
    could be compiled.
    """
    from triton import language as tl

    places = (tl, tl.core, tl.math, tl.core.tensor, tl.core.tensor_descriptor_base)
    before = [(place, name, value) for place in places for name, value in vars(place).items()]
    try:
        yield
    finally:
        for place, name, value in before:
            if vars(place).get(name) is not value:
                setattr(place, name, value)


def install_triton() -> None:
    """Triton's kernels: with STANDIN_VALUES=2 compiled and launched as on a GPU, and interpreted.

    That is slow; with STANDIN_VALUES=1 a launch of one is an error, since it would do nothing.
    """
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    original = JITFunction.run

    def on_cpu(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(on_cpu, value))
        return alias(value) if isinstance(value, Tensor) and value.is_cuda else value

    def launch(self, *args, grid, warmup, **kwargs):
        if not warmup and os.environ["STANDIN_VALUES"] != "2":
            raise RuntimeError("a Triton kernel has values with STANDIN_VALUES=2 only")
        compiled = original(self, *args, grid=grid, warmup=warmup, **kwargs)
        if not warmup:
            places, named = [on_cpu(a) for a in args], {k: on_cpu(v) for k, v in kwargs.items()}
            interpreted = InterpretedFunction(self.fn)

            def interpret():
                with language_kept():
                    interpreted[grid](*places, **named)

            record(torch.cuda.current_stream(), interpret)
        return compiled

    JITFunction.run = launch
    # A kernel's helpers, which the interpreter calls by name.
    JITFunction.__call__ = lambda self, *args, **kw: InterpretedFunction(self.fn)(*args, **kw)


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch tells of each operator that is replaced
    install()
install_triton()
