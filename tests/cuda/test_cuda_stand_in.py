"""The rules of CUDA and NCCL that the stand-in keeps, each with the page that states it.

"Guide" is the CUDA C++ Programming Guide (docs.nvidia.com/cuda/cuda-c-programming-guide), "Runtime"
the CUDA Runtime API (docs.nvidia.com/cuda/cuda-runtime-api), "NCCL" NCCL's user guide
(docs.nvidia.com/deeplearning/nccl/user-guide); then the section's title.
"""

from __future__ import annotations

import json
import textwrap
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from cuda_stand_in import StandIn

pytestmark = pytest.mark.slow

SEEDS = range(1, 9)
UNSUPPORTED, INVALIDATED, UNMATCHED, UNJOINED, ISOLATION = 900, 901, 903, 904, 905
IMPLICIT, CAPTURED_EVENT, WRONG_THREAD, NOT_READY = 906, 907, 908, 600

RUNTIME = """
import ctypes, os, threading
from ctypes import byref, c_void_p, memmove, memset, string_at
rt = ctypes.CDLL(os.environ["STANDIN_LIB"] + "/libstand_in.so")
GLOBAL, THREAD_LOCAL, RELAXED = 0, 1, 2
LEGACY = c_void_p()

def ok(error):
    assert error == 0, error

def stream(blocking=False):
    made = c_void_p()
    ok(rt.cudaStreamCreateWithPriority(byref(made), not blocking, 0))
    return made

def event(on=None):
    made = c_void_p()
    ok(rt.cudaEventCreateWithFlags(byref(made), 2))
    if on is not None:
        ok(rt.cudaEventRecord(made, on))
    return made

def wait(waiting, on):
    ok(rt.cudaStreamWaitEvent(waiting, event(on), 0))

def memory(value=0, allocate=lambda p: rt.cudaMalloc(p, ctypes.c_size_t(64))):
    made = c_void_p()
    ok(allocate(byref(made)))
    memset(made, value, 64)
    return made

def pinned(value=0):
    return memory(value, lambda p: rt.cudaHostAlloc(p, ctypes.c_size_t(64), 0))

def fill(to, value, on):
    return rt.cudaMemsetAsync(to, value, ctypes.c_size_t(64), on)

def copy(to, source, on):
    return rt.cudaMemcpyAsync(to, source, ctypes.c_size_t(64), 4, on)

def first(of):
    return string_at(of, 1)[0]

def begin(on, mode=GLOBAL):
    ok(rt.cudaStreamBeginCapture(on, mode))
    return on

def end(on):
    graph = c_void_p()
    error = rt.cudaStreamEndCapture(on, byref(graph))
    assert bool(graph) == (error == 0)
    return error if error else graph

def instance(graph):
    made = c_void_p()
    ok(rt.cudaGraphInstantiate(byref(made), graph, ctypes.c_ulonglong(0)))
    return made

def elsewhere(work):
    made = []
    thread = threading.Thread(target=lambda: made.append(work()))
    thread.start()
    thread.join()
    return made[0]
"""


def result(cuda: StandIn, code: str, *, devices: int = 1, values: int = 1, **env: str) -> Any:
    """What a program leaves in `answer`."""
    program = textwrap.dedent(code) + "\nimport json\nprint(json.dumps(answer))"
    done = cuda.run(program, devices=devices, values=values, env=env)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def runtime(cuda: StandIn, code: str, **env: str) -> Any:
    """The same of a program that calls the runtime's functions themselves, without torch."""
    return result(cuda, RUNTIME + textwrap.dedent(code), values=0, **env)


def by_seed(cuda: StandIn, code: str, seeds: range = SEEDS) -> list[Any]:
    """The runtime's answers with work delayed, in the order of some seeds."""
    return [runtime(cuda, code, STANDIN_DELAY=str(seed)) for seed in seeds]


# ---- captures ----
def test_the_legacy_stream_cannot_be_captured(cuda_stand_in: StandIn) -> None:
    """Guide, Creating a Graph Using Stream Capture."""
    assert runtime(cuda_stand_in, "answer = rt.cudaStreamBeginCapture(LEGACY, 0)") == UNSUPPORTED


def test_the_legacy_stream_beside_a_captured_blocking_one(cuda_stand_in: StandIn) -> None:
    """Guide, Prohibited and Unhandled Operations: it would depend on the captured one."""
    code = """
    x, answer = memory(), []
    for blocking in (False, True):
        s = begin(stream(blocking))
        answer.append(fill(x, 1, LEGACY))
        made = end(s)
        answer.append(made if isinstance(made, int) else 0)
    """
    assert runtime(cuda_stand_in, code) == [0, 0, IMPLICIT, INVALIDATED]


@pytest.mark.parametrize("call", ["cudaStreamSynchronize", "cudaStreamQuery"])
def test_a_wait_for_a_captured_stream_breaks_its_capture(cuda_stand_in: StandIn, call: str) -> None:
    """Guide, Prohibited and Unhandled Operations, and Invalidation: no graph is made."""
    code = f"""
    s, x = stream(), memory()
    begin(s, RELAXED)
    answer = [rt.{call}(s), fill(x, 1, s), end(s)]
    """
    assert runtime(cuda_stand_in, code) == [UNSUPPORTED, INVALIDATED, INVALIDATED]


@pytest.mark.parametrize("call", ["cudaEventSynchronize", "cudaEventQuery"])
def test_a_captured_event_cannot_be_waited_for(cuda_stand_in: StandIn, call: str) -> None:
    """Guide, Prohibited and Unhandled Operations."""
    code = f"""
    s = stream()
    begin(s, RELAXED)
    answer = [rt.{call}(event(s)), end(s)]
    """
    assert runtime(cuda_stand_in, code) == [CAPTURED_EVENT, INVALIDATED]


@pytest.mark.parametrize("call", ["cudaDeviceSynchronize()", "cudaMemcpy(x, x, 1, 4)"])
def test_a_wait_for_the_device_breaks_a_capture(cuda_stand_in: StandIn, call: str) -> None:
    """Guide, Prohibited and Unhandled Operations: broader handles, and synchronous calls."""
    code = f"""
    s, x = stream(), memory()
    begin(s)
    answer = [rt.{call}, end(s)]
    """
    assert runtime(cuda_stand_in, code) == [UNSUPPORTED, INVALIDATED]


def test_pageable_memory_cannot_be_copied_in_a_capture(cuda_stand_in: StandIn) -> None:
    """Runtime, API synchronization behavior: such a copy may wait; a pinned one does not."""
    code = """
    s, x, page, lasting = stream(), memory(), ctypes.create_string_buffer(64), pinned()
    begin(s, RELAXED)
    answer = [copy(x, lasting, s), copy(x, page, s), end(s)]
    """
    assert runtime(cuda_stand_in, code) == [0, UNSUPPORTED, INVALIDATED]


def test_a_captured_stream_cannot_wait_for_work_outside(cuda_stand_in: StandIn) -> None:
    """Guide, Cross-stream Dependencies and Events."""
    code = """
    inside, outside = stream(), stream()
    before = event(outside)
    begin(inside, RELAXED)
    answer = [rt.cudaStreamWaitEvent(inside, before, 0), end(inside)]
    """
    assert runtime(cuda_stand_in, code) == [ISOLATION, INVALIDATED]


def test_a_stream_joins_a_capture_and_must_be_joined(cuda_stand_in: StandIn) -> None:
    """Guide, Cross-stream Dependencies and Events: fork, join, and the error without."""
    code = """
    answer = []
    for joined in (True, False):
        one, two, x = stream(), stream(), memory()
        begin(one, RELAXED)
        wait(two, one)
        fill(x, 1, two)
        if joined:
            wait(one, two)
        made = end(one)
        answer += [made if isinstance(made, int) else 0, fill(x, 2, two), first(x)]
    """
    assert runtime(cuda_stand_in, code) == [0, 0, 2, UNJOINED, 0, 2]


def test_who_may_end_a_capture(cuda_stand_in: StandIn) -> None:
    """Runtime, cudaStreamEndCapture: on the first stream, and but for relaxed in its thread."""
    code = """
    one, two = stream(), stream()
    begin(one)
    wait(two, one)
    answer = [end(two)]
    for mode in (GLOBAL, THREAD_LOCAL, RELAXED):
        s = stream()
        begin(s, mode)
        made = elsewhere(lambda: end(s))
        answer.append(made if isinstance(made, int) else 0)
    """
    assert runtime(cuda_stand_in, code) == [UNMATCHED, WRONG_THREAD, WRONG_THREAD, 0]


@pytest.mark.parametrize(
    ("mode", "own", "other"),
    [("GLOBAL", False, False), ("THREAD_LOCAL", False, True), ("RELAXED", True, True)],
)
def test_what_each_mode_of_capture_lets_threads_do(
    cuda_stand_in: StandIn, mode: str, own: bool, other: bool
) -> None:
    """Runtime, cudaThreadExchangeStreamCaptureMode: an allocation is potentially unsafe."""
    code = f"""
    answer = []
    for do in (lambda work: work(), elsewhere):
        s, p = stream(), c_void_p()
        begin(s, {mode})
        allowed = do(lambda: rt.cudaMalloc(byref(p), ctypes.c_size_t(64))) == 0
        answer.append([allowed, not isinstance(end(s), int)])
    """
    assert runtime(cuda_stand_in, code) == [[own, own], [other, other]]


def test_a_thread_may_take_the_risk(cuda_stand_in: StandIn) -> None:
    """Runtime, cudaThreadExchangeStreamCaptureMode, as torch's allocator does in a capture."""
    code = """
    s = stream()
    begin(s)
    mode = ctypes.c_int(RELAXED)
    ok(rt.cudaThreadExchangeStreamCaptureMode(byref(mode)))
    memory()
    answer = [mode.value, isinstance(end(s), int)]
    """
    assert runtime(cuda_stand_in, code) == [0, False]


def test_a_graph_repeats_its_work_on_the_addresses(cuda_stand_in: StandIn) -> None:
    """Guide, CUDA Graphs: nothing runs in the capture; a launch runs it all."""
    code = """
    s, x, y = stream(), memory(1), memory(0)
    begin(s)
    ok(copy(y, x, s))
    ok(fill(x, 9, s))
    graph = instance(end(s))
    answer = [first(y)]
    for value in (5, 6):
        memset(x, value, 64)
        ok(rt.cudaGraphLaunch(graph, s))
        answer += [first(y), first(x)]
    """
    assert runtime(cuda_stand_in, code) == [0, 5, 9, 6, 9]


# ---- limits ----
@pytest.mark.parametrize(
    ("grid", "block", "shared", "error"),
    [
        ((2**31 - 1, 65535, 65535), (1024, 1, 1), 163 << 10, 0),
        ((0, 1, 1), (1, 1, 1), 0, 9),
        ((1, 65536, 1), (1, 1, 1), 0, 9),
        ((1, 1, 65536), (1, 1, 1), 0, 9),
        ((1, 1, 1), (32, 33, 1), 0, 9),
        ((1, 1, 1), (1, 1, 65), 0, 9),
        ((1, 1, 1), (1, 1, 1), (163 << 10) + 1, 1),
    ],
)
def test_limits_of_a_launch(
    cuda_stand_in: StandIn,
    grid: tuple[int, ...],
    block: tuple[int, ...],
    shared: int,
    error: int,
) -> None:
    """Guide, Features and Technical Specifications, of compute capability 8.0."""
    sizes = [*grid, *block, shared]
    code = f"answer = rt.cuLaunchKernel(c_void_p(), *{sizes}, stream(), None, None)"
    assert runtime(cuda_stand_in, code) == error


def test_memory_has_an_end_and_is_freed_once(cuda_stand_in: StandIn) -> None:
    """Runtime, cudaMalloc and cudaFree."""
    code = """
    p, x = c_void_p(), memory()
    large = lambda: rt.cudaMalloc(byref(p), ctypes.c_size_t(9 << 30))
    answer = [large(), large(), rt.cudaFree(x), rt.cudaFree(x)]
    """
    assert runtime(cuda_stand_in, code) == [0, 2, 0, 1]


# ---- delayed work ----
def test_work_is_done_once_it_is_waited_for(cuda_stand_in: StandIn) -> None:
    """Guide, Asynchronous Concurrent Execution; Runtime, cudaEventQuery: not ready."""
    code = f"""
    s, x = stream(), pinned()
    ok(fill(x, 1, s))
    done = event(s)
    answer = [first(x)]
    while (error := rt.cudaEventQuery(done)) == {NOT_READY}:
        pass
    answer += [error, first(x)]
    ok(fill(x, 2, s))
    answer += [first(x), rt.cudaStreamSynchronize(s), first(x)]
    """
    assert by_seed(cuda_stand_in, code, range(1, 3)) == [[0, 0, 1, 1, 0, 2]] * 2


@pytest.mark.parametrize("waits", [True, False])
def test_a_missing_wait_between_streams_shows(cuda_stand_in: StandIn, waits: bool) -> None:
    """Guide, Streams: only an event orders the work of two of them."""
    code = f"""
    one, two, x, y = stream(), stream(), memory(), memory()
    ok(fill(x, 1, one))
    if {waits}:
        wait(two, one)
    ok(copy(y, x, two))
    ok(rt.cudaDeviceSynchronize())
    answer = first(y)
    """
    assert set(by_seed(cuda_stand_in, code)) == ({1} if waits else {0, 1})


@pytest.mark.parametrize("waits", [True, False])
def test_a_missing_wait_in_a_graph_shows(cuda_stand_in: StandIn, waits: bool) -> None:
    """Guide, Cross-stream Dependencies and Events: a graph keeps these edges, and no others."""
    code = f"""
    one, two, x, y = stream(), stream(), memory(), memory()
    begin(one)
    wait(two, one)
    ok(fill(x, 1, one))
    if {waits}:
        wait(two, one)
    ok(copy(y, x, two))
    wait(one, two)
    ok(rt.cudaGraphLaunch(instance(end(one)), one))
    ok(rt.cudaStreamSynchronize(one))
    answer = first(y)
    """
    assert set(by_seed(cuda_stand_in, code)) == ({1} if waits else {0, 1})


def test_a_stream_keeps_its_order(cuda_stand_in: StandIn) -> None:
    """Guide, Streams, and Host Functions (Callbacks): in order, whatever other streams do."""
    code = """
    one, two, order = stream(), stream(), []
    CALL = ctypes.CFUNCTYPE(None, c_void_p)
    calls = [CALL(lambda _, i=i: order.append(i)) for i in range(8)]
    for i, call in enumerate(calls):
        ok(rt.cudaLaunchHostFunc((one, two)[i % 2], call, None))
    ok(rt.cudaDeviceSynchronize())
    answer = [order, sorted(order[:]) == list(range(8))]
    """
    orders = by_seed(cuda_stand_in, code)
    for order, whole in orders:
        assert whole
        assert [i for i in order if i % 2] == [1, 3, 5, 7]
        assert [i for i in order if not i % 2] == [0, 2, 4, 6]
    assert len({tuple(order) for order, _ in orders}) > 1


def test_the_legacy_stream_waits_for_blocking_ones(cuda_stand_in: StandIn) -> None:
    """Runtime, Stream synchronization behavior, Legacy default stream; non-blocking: not."""
    code = """
    answer = []
    for blocking in (True, False):
        s, x, y = stream(blocking), memory(), memory()
        ok(fill(x, 1, s))
        ok(copy(y, x, LEGACY))
        ok(rt.cudaDeviceSynchronize())
        answer.append(first(y))
    """
    answers = by_seed(cuda_stand_in, code)
    assert {blocking for blocking, _ in answers} == {1}
    assert {other for _, other in answers} == {0, 1}


def test_what_waits_by_itself(cuda_stand_in: StandIn) -> None:
    """Runtime, API synchronization behavior: copies of pageable memory, and cudaFree."""
    code = """
    s, x, page = stream(), memory(), ctypes.create_string_buffer(64)
    ok(fill(x, 1, s))
    ok(copy(page, x, s))
    answer = [page[0][0]]
    y = pinned()
    ok(copy(y, x, s))
    answer.append(first(y))
    ok(rt.cudaFree(x))
    answer.append(first(y))
    """
    assert by_seed(cuda_stand_in, code, range(1, 3)) == [[1, 0, 1]] * 2


# ---- NCCL ----
COMMUNICATOR = """
class Id(ctypes.Structure):
    _fields_ = [("internal", ctypes.c_char * 128)]
name, group, s, x = Id(), c_void_p(), stream(), memory()
ok(rt.ncclGetUniqueId(byref(name)))
ok(rt.ncclCommInitRankConfig(byref(group), 1, name, 0, None))
begin(s)
ok(rt.ncclAllReduce(x, x, ctypes.c_size_t(16), 7, 0, group, s))
template = end(s)
graph = instance(template)
ok(rt.cudaGraphDestroy(template))
"""


@pytest.mark.parametrize("call", ["ncclCommDestroy", "ncclCommAbort"])
def test_a_communicator_outlives_its_graphs(cuda_stand_in: StandIn, call: str) -> None:
    """NCCL, Using NCCL with CUDA Graphs: destroyed before its graphs, it waits for ever."""
    program = RUNTIME + COMMUNICATOR
    done = cuda_stand_in.run(f"{program}ok(rt.{call}(group))", values=0)
    assert done.returncode == 86
    assert "NCCL would wait for ever" in done.stderr
    reset = f"ok(rt.cudaGraphExecDestroy(graph))\nok(rt.{call}(group))"
    done = cuda_stand_in.run(f"{program}{reset}", values=0)
    assert (done.returncode, done.stderr) == (0, "")


RANKS = """
import os, sys, torch
import torch.distributed as dist
rank, world_size = int(os.environ["RANK"]), 2
torch.cuda.set_device(rank)
dist.init_process_group("nccl", device_id=torch.device("cuda", rank))
pair = dist.new_group([0, 1])
y = torch.full((3,), rank + 1.0, device="cuda")
seen = [y.clone()]
dist.all_reduce(seen[0])
s = torch.cuda.Stream()
s.wait_stream(torch.cuda.current_stream())
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph, stream=s, capture_error_mode="thread_local"):
    z = y * 2
    dist.all_reduce(z, group=pair)
y.fill_(rank + 5.0)
graph.replay()
last = y.clone() if rank == 1 else torch.empty_like(y)
dist.broadcast(last, 1)
rows = [torch.empty_like(y) for _ in range(2)]
dist.all_gather(rows, y)
sent = torch.empty_like(y)
(dist.send(y, 1), sent.copy_(y)) if rank == 0 else dist.recv(sent, 0)
print([t.tolist() for t in (*seen, z, last, *rows, sent)])
if os.environ["RESET"]:
    graph.reset()
dist.destroy_process_group()
"""


@pytest.mark.parametrize("reset", [True, False])
def test_two_ranks_with_a_collective_in_a_graph(cuda_stand_in: StandIn, reset: bool) -> None:
    """NCCL, Using NCCL with CUDA Graphs, through torch's own process group."""
    env = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29655"}
    env |= {"RESET": "1" if reset else "", "STANDIN_DELAY": "3" if reset else ""}
    ranks = [cuda_stand_in.start(RANKS, devices=2, env={**env, "RANK": str(r)}) for r in (0, 1)]
    said = [rank.communicate(timeout=200) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0 if reset else 86] * 2, said
    rows = [[value] * 3 for value in (3.0, 22.0, 6.0, 5.0, 6.0, 5.0)]
    if reset:
        assert [json.loads(out) for out, _ in said] == [rows] * 2


# ---- torch on it ----
def test_an_unforeseen_call_ends_the_process_with_its_name(cuda_stand_in: StandIn) -> None:
    done = cuda_stand_in.run(RUNTIME + "rt.cudaMallocAsync(None, 1, None)", values=0)
    assert done.returncode == 87
    assert "cudaMallocAsync" in done.stderr


def test_a_kernel_without_values_ends_the_process(cuda_stand_in: StandIn) -> None:
    code = "rt.cuLaunchKernel(c_void_p(), 1, 1, 1, 1, 1, 1, 0, stream(), None, None)"
    done = cuda_stand_in.run(RUNTIME + code, values=1)
    assert done.returncode == 87
    assert "a kernel without values" in done.stderr


@pytest.mark.parametrize("seed", ["", "1", "2", "3"])
def test_a_captured_update_repeats_the_eager_one(cuda_stand_in: StandIn, seed: str) -> None:
    code = """
    from bench.verify.equivalence import largest_difference
    from swap_fast.config.execution import Execution
    execution = Execution(device_type="cuda", precision="fp16", capture=True)
    answer = largest_difference(execution, scaled=True)
    """
    assert result(cuda_stand_in, code, STANDIN_DELAY=seed) == 0.0


@pytest.mark.parametrize("waits", [True, False])
def test_a_missing_wait_shows_in_torch(cuda_stand_in: StandIn, waits: bool) -> None:
    code = f"""
    import torch
    side, answer = torch.cuda.Stream(), []
    for _ in range(16):
        x = torch.zeros(4, device="cuda")
        torch.cuda.synchronize()
        x += 1
        if {waits}:
            side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            y = x * 2
        torch.cuda.synchronize()
        answer.append(y.sum().item())
    """
    assert set(result(cuda_stand_in, code, STANDIN_DELAY="1")) == ({8} if waits else {0, 8})


def test_memory_that_nothing_was_written_to_is_not_a_number(cuda_stand_in: StandIn) -> None:
    code = """
    import torch
    kinds = torch.half, torch.bfloat16, torch.float, torch.double
    made = [torch.empty(9, dtype=kind, device="cuda") for kind in kinds]
    answer = [bool(one.isnan().all()) for one in made]
    """
    assert result(cuda_stand_in, code) == [True] * 4


@pytest.mark.parametrize("seed", ["", "1"])
def test_sizes_that_depend_on_data_wait(cuda_stand_in: StandIn, seed: str) -> None:
    code = """
    import torch
    x = torch.arange(4.0, device="cuda")
    x += 1
    answer = [x[x > 2].tolist(), (x > 2).nonzero().tolist()]
    for size in (lambda: x[x > 2], lambda: x.nonzero(), lambda: x.sum().item()):
        try:
            with torch.cuda.graph(torch.cuda.CUDAGraph()):
                size()
        except RuntimeError as error:
            answer.append("operation" in str(error.__context__ or error))
    """
    seen = result(cuda_stand_in, code, STANDIN_DELAY=seed)
    assert seen == [[3.0, 4.0], [[2], [3]], True, True, True]


def test_updates_are_one_launch_each(cuda_stand_in: StandIn) -> None:
    """What bench's `launches` check asks of the profiler, which sees nothing here."""
    code = """
    import torch
    from bench.verify.equivalence import Trained
    from cuda_stand_in import counts
    from swap_fast.config.execution import Execution
    answer = []
    for capture in (True, False):
        execution = Execution(device_type="cuda", precision="fp16", capture=capture)
        trained = Trained(execution, scaled=True)
        before = counts()
        for _ in range(50 if capture else 1):
            trained.step()
        torch.cuda.synchronize()
        answer.append({kind: n - before[kind] for kind, n in counts().items() if n > before[kind]})
    """
    captured, eager = result(cuda_stand_in, code)
    assert captured == {"graph launches": 50, "waits": 1}
    assert eager["kernels"] > 100
    assert "graph launches" not in eager


def test_captures_share_a_pool_s_memory_on_one_stream_only(cuda_stand_in: StandIn) -> None:
    """pytorch.org, CUDA semantics, Sharing memory across captures; the allocator is torch's own."""
    code = """
    import torch
    MIB = 1 << 20

    def reserved(streams):
        pool, graphs = torch.cuda.graph_pool_handle(), []
        for stream, mib in zip(streams, (64, 32), strict=True):
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool, stream=stream):
                for _ in range(2):  # one at a time: the second takes the first one's place
                    torch.empty(mib * MIB, dtype=torch.uint8, device="cuda").fill_(1)
            graphs.append(graph)
        segments = [
            segment
            for segment in torch.cuda.memory_snapshot()
            if tuple(segment["segment_pool_id"]) == tuple(pool)
        ]
        found = [sum(s[size] for s in segments) // MIB for size in ("total_size", "allocated_size")]
        for graph in graphs:
            graph.reset()
        return found

    one, two = torch.cuda.Stream(), torch.cuda.Stream()
    answer = [reserved([one, one]), reserved([one, two])]
    """
    assert result(cuda_stand_in, code) == [[64, 0], [96, 0]]
