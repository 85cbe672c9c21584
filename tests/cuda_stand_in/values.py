"""Real values on the stand-in: every kernel that torch has for CUDA runs on the CPU, in place.

Device memory is host memory, so a CPU tensor over the same bytes stands for the CUDA one. While a
stream is captured an operator is recorded with the addresses of its tensors, and not run; a replay
of the graph runs it on whatever is at these addresses then, as a GPU would.
"""

import ctypes
import os
import traceback
from pathlib import Path

import torch

lib = ctypes.CDLL(
    str(Path(os.environ.get("STANDIN_LIB", Path(__file__).parent / "lib")) / "libstand_in.so")
)
CALL = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
lib.standin_record.argtypes = [ctypes.c_void_p, CALL, ctypes.c_void_p, ctypes.c_char_p]

aten = torch.ops.aten
KEEP = {  # allocation, views, and what is true of the storage alone
    "empty.memory_format",
    "empty_strided",
    "as_strided",
    "view",
    "_reshape_alias",
    "resize_",
    "set_.source_Storage",
    "set_.source_Storage_storage_offset",
    "set_.source_Tensor",
    "set_",
    "record_stream",
    "is_set_to",
    "_local_scalar_dense",
    "is_pinned",
    "_pin_memory",
    "unfold",
    "view_as_real",
    "view_as_complex",
    "_efficientzerotensor",
    "_nested_tensor_from_mask",
}
SYNC = (
    "nonzero",
    "masked_select",
    "equal",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "repeat_interleave",
    "is_nonzero",
    "bincount",
    "histc",
)
calls: dict[int, object] = {}
errors: list[str] = []
counts: dict[str, int] = {}


@CALL
def _call(number):
    try:
        with torch.no_grad():
            calls[number]()
    except BaseException:
        errors.append(traceback.format_exc())
        traceback.print_exc()


def alias(t):
    """A CPU tensor over the bytes of a CUDA one."""
    s = t.untyped_storage()
    if s.nbytes() == 0:
        return torch.empty_strided(t.size(), t.stride(), dtype=t.dtype)
    storage = torch._C._construct_storage_from_data_pointer(
        s.data_ptr(), torch.device("cpu"), s.nbytes()
    )
    made = torch.empty(0, dtype=t.dtype)
    made.set_(storage, t.storage_offset(), t.size(), t.stride())
    return made


def tree(f, value):
    if isinstance(value, torch.Tensor):
        return f(value)
    if isinstance(value, (list, tuple)):
        return type(value)(tree(f, v) for v in value)
    if isinstance(value, dict):
        return {k: tree(f, v) for k, v in value.items()}
    return value


def clean(value):
    """Devices and generators of the CPU."""
    if isinstance(value, torch.device) and value.type == "cuda":
        return torch.device("cpu")
    if isinstance(value, torch.Generator):
        return None
    return value


def record(stream, work, name):
    """Run now, or where the stream is captured, at each replay."""
    number = len(calls) + 1
    calls[number] = work
    code = lib.standin_record(stream.cuda_stream, _call, number, name.encode())
    if code < 0:
        raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
    if code == 0:
        del calls[number]
        work()


def run(name, op, args, kwargs):
    counts[name] = counts.get(name, 0) + 1
    first = next((t for t in tensors((args, kwargs)) if t.is_cuda), None)
    index = first.device.index if first is not None else torch.cuda.current_device()
    stream = torch.cuda.current_stream(index)
    if name.split(".")[0] in SYNC:
        stream.synchronize()
    seen = {}

    def of(t):
        if not t.is_cuda:
            return t
        made = alias(t)
        seen[id(made)] = (made, t)
        return made

    args = tuple(clean(tree(of, a)) for a in args)
    kwargs = {k: clean(tree(of, v)) for k, v in kwargs.items()}
    capturing = torch.cuda.is_current_stream_capturing()
    if capturing:  # on copies, for the shapes alone
        copies = {}

        def copy(t):
            if id(t) in seen:
                if 0 in t.stride():  # expanded: it is only read
                    return t
                c = (
                    torch.empty_strided(t.size(), t.stride(), dtype=t.dtype)
                    if t.numel()
                    else t.clone()
                )
                if not t.is_floating_point():
                    c.zero_()
                elif t.numel():
                    c.copy_(t)
                copies[id(c)] = (c, seen[id(t)][1])
                return c
            return t

        given = tree(copy, args), tree(copy, kwargs)
        results, known = op(*given[0], **given[1]), copies
    else:
        results, known = op(*args, **kwargs), seen
    outputs = []

    def back(t):
        if id(t) in known:
            made, original = known[id(t)]
            if made.shape != original.shape:
                original.resize_(made.shape)
                outputs.append((t, original))
            return original
        made = torch.empty_strided(t.size(), t.stride(), dtype=t.dtype, device=f"cuda:{index}")
        outputs.append((t, made))
        return made

    answer = tree(back, results)
    if not capturing:
        for t, made in outputs:
            alias(made).copy_(t)
        return answer
    targets = [(i, alias(made)) for i, (t, made) in enumerate(outputs)]
    order = [t for t, _ in outputs]
    flat_before = tensors_list(results)
    places = [next(i for i, r in enumerate(flat_before) if r is t) for t in order]

    def again():
        found = tensors_list(op(*args, **kwargs))
        for (_, target), place in zip(targets, places, strict=True):
            target.copy_(found[place])

    record(stream, again, name)
    return answer


def tensors(value):
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for v in value:
            yield from tensors(v)
    elif isinstance(value, dict):
        for v in value.values():
            yield from tensors(v)


def tensors_list(value):
    return list(tensors(value))


# ---- operators that only CUDA has, or that a CPU has only in fp32 ----
def up(t):
    return (
        t.float() if isinstance(t, torch.Tensor) and t.dtype in (torch.half, torch.bfloat16) else t
    )


def cudnn_convolution(
    x, w, padding, stride, dilation, groups, benchmark, deterministic, allow_tf32
):
    y = aten.convolution(
        up(x), up(w), None, stride, padding, dilation, False, [0] * len(stride), groups
    )
    like = (
        torch.channels_last
        if x.dim() == 4
        and (
            x.is_contiguous(memory_format=torch.channels_last)
            or w.is_contiguous(memory_format=torch.channels_last)
        )
        and not (x.is_contiguous() and w.is_contiguous())
        else torch.contiguous_format
    )
    return y.to(x.dtype).contiguous(memory_format=like)


def convolution_backward(
    g, x, w, bias_sizes, stride, padding, dilation, transposed, output_padding, groups, mask
):
    made = aten.convolution_backward(
        up(g),
        up(x),
        up(w),
        bias_sizes,
        stride,
        padding,
        dilation,
        transposed,
        output_padding,
        groups,
        mask,
    )
    like = [x, w, None]
    out = []
    for t, source in zip(made, like, strict=True):
        if t is None:
            out.append(None)
            continue
        t = t.to(g.dtype)
        if (
            source is not None
            and t.dim() == 4
            and source.is_contiguous(memory_format=torch.channels_last)
            and not source.is_contiguous()
        ):
            t = t.contiguous(memory_format=torch.channels_last)
        out.append(t)
    return tuple(out)


def cudnn_batch_norm(x, w, b, mean, var, training, momentum, eps):
    y, m, i = aten.native_batch_norm(up(x), w, b, mean, var, training, momentum, eps)
    y = y.to(x.dtype)
    y = torch.empty_like(x).copy_(y)
    return y, m, i, torch.empty(0, dtype=torch.uint8)


def cudnn_batch_norm_backward(x, g, w, mean, var, m, i, eps, reserve):
    a, b, c = aten.native_batch_norm_backward(
        up(g), up(x), w, mean, var, m, i, True, eps, [True, True, True]
    )
    return torch.empty_like(x).copy_(a), b, c


OWN = {
    "cudnn_convolution": cudnn_convolution,
    "convolution_backward": convolution_backward,
    "cudnn_batch_norm": cudnn_batch_norm,
    "cudnn_batch_norm_backward": cudnn_batch_norm_backward,
}


def copy_(to, source, non_blocking=False):
    if to.is_cuda and source.is_cuda:
        return run("copy_", aten.copy_.default, (to, source), {})
    device, host = (to, source) if to.is_cuda else (source, to)
    stream = torch.cuda.current_stream(device.device.index)
    if not non_blocking:
        stream.synchronize()  # refused in a capture, and where waits are watched for
    elif torch.cuda.is_current_stream_capturing() and not host.is_pinned():
        stream.synchronize()
    ours, theirs = (alias(to), source) if to.is_cuda else (to, alias(source))
    if not torch.cuda.is_current_stream_capturing():
        ours.copy_(theirs)
        return to
    record(stream, lambda: ours.copy_(theirs), "memcpy")
    return to


library = torch.library.Library("aten", "IMPL")


def install():
    import warnings

    made = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for full in torch._C._dispatch_get_registrations_for_dispatch_key("CUDA"):
            space, _, name = full.partition("::")
            if space != "aten" or name in KEEP:
                continue
            base, _, overload = name.partition(".")
            try:
                op = getattr(getattr(aten, base), overload or "default")
            except AttributeError:
                continue
            if any(
                r.alias_info is not None and not r.alias_info.is_write for r in op._schema.returns
            ):
                continue
            call = OWN.get(name, op)

            def kernel(*args, _n=name, _c=call, **kwargs):
                return run(_n, _c, args, kwargs)

            try:
                library.impl(name, kernel, "CUDA", allow_override=True)
                made += 1
            except RuntimeError as error:
                if "STANDIN_LOG" in os.environ:
                    print("not replaced:", name, str(error)[:100])
        library.impl("copy_", copy_, "CUDA")
    return made


def install_triton():
    """Triton's kernels: compiled and launched as on a GPU, and interpreted for their values."""
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    original = JITFunction.run

    def launch(self, *args, grid, warmup, **kwargs):
        made = original(self, *args, grid=grid, warmup=warmup, **kwargs)
        if not warmup:
            aliases = [alias(a) if isinstance(a, torch.Tensor) and a.is_cuda else a for a in args]
            named = {
                k: alias(v) if isinstance(v, torch.Tensor) and v.is_cuda else v
                for k, v in kwargs.items()
            }
            interpreted = InterpretedFunction(self.fn)
            record(
                torch.cuda.current_stream(),
                lambda: interpreted[grid](*aliases, **named),
                "triton " + self.fn.__name__,
            )
        return made

    JITFunction.run = launch
    # a kernel's helpers, which the interpreter calls by name
    JITFunction.__call__ = lambda self, *args, **kwargs: InterpretedFunction(self.fn)(
        *args, **kwargs
    )


installed = install()
if os.environ.get("STANDIN_VALUES") == "2":
    install_triton()
