"""Nine small runs and the sha256 of their final weights: what must stay the same, bit for bit.

Run by hand, before and after a change (pytest does not collect it):
    python tests/same_bits.py --write   # record the hashes in same_bits.json
    python tests/same_bits.py           # run again and compare; exit 1 if a hash has changed
    python tests/same_bits.py --seed 1  # shows that it can fail: every hash changes

Other CPUs and versions of torch add in another order: there, the comparison is refused with exit 2.
"""

import argparse
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # before an installed copy
import swap_fast

# The only internals; `captured` needs them, since no public entry point traces a step.
from bench.data_tools import write_cifar10
from bench.verify.equivalence import BATCH, Trained, trace_
from swap_fast.config.execution import Execution

RECORDED = Path(__file__).with_suffix(".json")
State = Mapping[str, Tensor]
Options = dict[str, Any]


def sha256(state: State) -> str:
    """Of the sorted names, the types, the shapes and the bytes of all tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


def captured(folder: Path, seed: int) -> State:
    """Updates as a CUDA graph makes them: each replays one make_fx trace of CIFAR's step."""
    trained, random = Trained(Execution(), scaled=True), torch.Generator().manual_seed(seed)
    trace_(trained)
    for number in range(12):
        trained.step.images.copy_(torch.randn(BATCH, 3, 32, 32, generator=random))
        trained.step.labels.copy_(torch.randint(10, (BATCH,), generator=random))
        trained.step.set_learning_rate(0.02 * (number + 1))
        trained.step()
    trained.step.statistics.merge_()
    return trained.weights.model.state_dict()


# Runs by the command line, each in a folder of its own.

EVERY: Options = {"data": "data", "out": "out", "device": "cpu", "threads": 1, "ranks": 1}
SMALL: Options = EVERY | {"dataset": "cifar10", "train-images": 320, "width": 4}
SMALL |= {"phase1.max-epochs": 3, "phase1.global-batch-size": 64, "phase1.warmup-epochs": 0.5}
SMALL |= {"phase1.gpus-per-model": 2, "phase2.global-batch-size": 32, "batch-norm-batch-size": 100}
SWAP = SMALL | {"num-workers": 2, "phase2.max-epochs": 3}
SWA = SMALL | {"phase2.max-epochs": 4, "phase2.cycles": 2}
STAGES = {"1.stages.0": 16, "1.stages.1": 16, "1.stages.2": 8, "2.stages.0": 8, "2.stages.1": 8}
TREE = EVERY | {"loader": "torchvision", "width": 4, "batch-norm-batch-size": 30}
TREE |= {f"phase{stage}.epochs": 1 for stage in STAGES}
TREE |= {f"phase{stage}.global-batch-size": batch for stage, batch in STAGES.items()}


def start(folder: Path, command: str, options: Options) -> subprocess.Popen[str]:
    """Start a command of `python -m bench`, with this checkout's code."""
    words = [sys.executable, "-m", "bench", *command.split()]
    words += [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    environment = os.environ | {"PYTHONPATH": sys.path[0], "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(words, cwd=folder, env=environment, stdout=pipe, stderr=pipe, text=True)


def end(process: subprocess.Popen[str], status: int = 0) -> None:
    """Wait for a command, whose exit status should be this one."""
    output, error = process.communicate(timeout=300)
    if process.returncode != status:
        got = f"expected exit status {status}, got {process.returncode}"
        raise SystemExit(f"{process.args!r}: {got}\n{output}{error}")


def run(folder: Path, command: str, options: Options) -> State:
    """The final weights of a run."""
    end(start(folder, command, options))
    (path,) = folder.glob("out/checkpoints/*/final.safetensors")
    return load_file(path)


def write_cifar(folder: Path, train_images: int = 320, test_images: int = 80) -> None:
    """A small CIFAR-10 in its binary layout, a pattern a class."""
    random = np.random.default_rng(0)
    patterns = random.integers(128, size=(10, 3072), dtype=np.uint8)
    parts = []
    for count in (*5 * [train_images // 5], test_images):
        labels = np.arange(count, dtype=np.uint8) % 10
        images = patterns[labels] + random.integers(128, size=(count, 3072), dtype=np.uint8)
        parts.append(np.concatenate([labels[:, None], images], axis=1))
    write_cifar10(folder, np.concatenate(parts[:5]), parts[5])


def on_cifar(folder: Path, seed: int, *, recipe: str, options: Options) -> State:
    write_cifar(folder / "data")
    return run(folder, f"run {recipe}", options | {"seed": seed})


def on_tree(folder: Path, seed: int) -> State:
    """SWAP on a small tree of JPEG files: 80 training and 40 test images."""
    write_cifar(folder / "cifar")
    counts = {"per-class": 8, "test-per-class": 4}
    end(start(folder, "small-tree data", {"data": "cifar", "size": 64} | counts))
    return run(folder, "run imagenet_swap_cpu", TREE | {"seed": seed})


def interrupted(folder: Path, seed: int) -> State:
    """SWAP, ended by SIGTERM in phase 1 and again in phase 2, and resumed each time."""
    write_cifar(folder / "data")
    command, options = "run cifar10_quick --resume", SWAP | {"seed": seed}
    for checkpoint in ("phase1*.safetensors", "worker*.safetensors"):
        process = start(folder, command, options)
        while process.poll() is None and not list(folder.glob(f"out/checkpoints/*/{checkpoint}")):
            time.sleep(0.005)
        process.send_signal(signal.SIGTERM)
        end(process, 75)  # told to end, and can go on
    return run(folder, command, options)


# Runs of `swap_fast.swap`.

PHASES: Options = {
    "phase1": swap_fast.Phase(global_batch_size=32, peak_lr=0.1, max_epochs=3, warmup_epochs=0.5),
    "phase2": swap_fast.Phase(global_batch_size=16, peak_lr=0.05, max_epochs=2),
}
ADAMW: Options = {"optimizer": partial(torch.optim.AdamW, lr=1e-3), "keep_momentum": True}
ADAMW["parameter_groups"] = lambda net: [
    {"params": [p], "weight_decay": 0.05 * (p.dim() > 1)} for p in net.parameters()
]
ADAMW["phase1"] = swap_fast.Phase(global_batch_size=32, peak_lr=3e-3, max_epochs=3)


def by_function(net: Callable[[], nn.Module], data: Any, **own: Any) -> State:
    """The weights of the averaged model and of both workers."""
    options = PHASES | {"workers": 2, "device": "cpu", "progress": False} | own
    result = swap_fast.swap(net, data, **options)
    states = enumerate([result.model.state_dict(), *result.worker_states])
    return {f"{i}.{name}": tensor for i, state in states for name, tensor in state.items()}


def on_conv_net(folder: Path, seed: int, **own: Any) -> State:
    """A net with batch norm and dropout, 200 augmented images: an epoch's last batch is short."""

    def net() -> nn.Module:
        first = [nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)]
        second = [nn.Conv2d(8, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout(0.1)]
        return nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(16 * 9, 5))

    def noisy(batch: list[Tensor], random: torch.Generator) -> tuple[Tensor, Tensor]:
        return batch[0] + 0.1 * torch.randn(batch[0].shape, generator=random), batch[1]

    random, labels = torch.Generator().manual_seed(0), torch.arange(200) % 5
    patterns = torch.randn(5, 3, 12, 12, generator=random)
    images = patterns[labels] + torch.randn(200, 3, 12, 12, generator=random)
    return by_function(net, (images, labels), seed=seed, augment=noisy, **own)


def on_transformer(folder: Path, seed: int) -> State:
    """160 texts of 12 tokens, in dicts; the label says whether there are more 0s than 1s."""

    def net() -> nn.Module:
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True)
        return nn.Sequential(nn.Embedding(8, 16), layer, nn.Linear(16, 2))

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, int]:
        logits, label = model(batch["tokens"]).mean(1), batch["label"]
        right = (logits.argmax(1) == label).sum()
        return nn.functional.cross_entropy(logits, label), right, len(label)

    tokens = torch.randint(8, (160, 12), generator=torch.Generator().manual_seed(0))
    texts = {"tokens": tokens, "label": ((tokens == 0).sum(1) > (tokens == 1).sum(1)).long()}
    return by_function(net, texts, seed=seed, loss=loss, clip_gradient_norm=1.0)


UNDISTURBED, INTERRUPTED = "SWAP, 1 process", "SWAP, interrupted and resumed"
RUNS: dict[str, Callable[[Path, int], State]] = {  # of an empty folder and a seed
    "CIFAR's step, traced": captured,
    UNDISTURBED: partial(on_cifar, recipe="cifar10_quick", options=SWAP),
    "SWAP, 2 processes": partial(on_cifar, recipe="cifar10_quick", options=SWAP | {"ranks": 2}),
    "SWA": partial(on_cifar, recipe="cifar100_swa_small_cpu", options=SWA),
    "ImageNet's SWAP, small tree": on_tree,
    "swap(), conv net": on_conv_net,
    "swap(), transformer": on_transformer,
    "swap(), AdamW": partial(on_conv_net, **ADAMW),
    INTERRUPTED: interrupted,
}


def describe_machine() -> dict[str, str]:
    """What must be equal for hashes to be comparable."""
    about = cpus.read_text() if (cpus := Path("/proc/cpuinfo")).exists() else ""
    machine = dict(re.findall(r"^(model name|cpu family|model)\s*: (.*)$", about, re.MULTILINE))
    machine |= {"instructions": torch.backends.cpu.get_cpu_capability(), "torch": torch.__version__}
    return machine | {name: version(name) for name in ("torchvision", "numpy", "pillow")}


def main() -> int:
    """Make the runs, and record their hashes or compare them with the recorded ones."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--write", action="store_true", help=f"record them in {RECORDED.name}")
    way.add_argument("--seed", type=int, default=0, help="any but 0 must change every hash")
    asked = parser.parse_args()
    record = {"machine": (machine := describe_machine()), "sha256": {}}
    if not asked.write:
        record = json.loads(RECORDED.read_text())
        if record["machine"] != machine:
            kinds = f"recorded on {record['machine']}, this is {machine}"
            parser.error(f"not comparable: {kinds}; use --write with the code before your change")
    torch.set_num_threads(1)
    found: dict[str, str] = {}
    for number, (name, make) in enumerate(RUNS.items(), start=1):
        print(f"{number} of {len(RUNS)}: {name} ", end="", flush=True)
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            found[name] = sha256(make(Path(folder), asked.seed))
        outcome = "same" if found[name] == record["sha256"].get(name) else "changed"
        outcome = "recorded" if asked.write else outcome
        print(f"({time.monotonic() - started:.0f} s): {outcome}", flush=True)
    if found[INTERRUPTED] != found[UNDISTURBED]:
        sys.exit(f"changed: {INTERRUPTED}: other bits than {UNDISTURBED}")
    if asked.write:
        RECORDED.write_text(json.dumps({"machine": machine, "sha256": found}, indent=2) + "\n")
    return int(not asked.write and found != record["sha256"])


if __name__ == "__main__":
    sys.exit(main())
