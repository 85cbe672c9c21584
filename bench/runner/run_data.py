"""A run's data on one rank: images of CIFAR's size in memory, or the files of a tree."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from bench.runner.request import Request
from swap_fast.data.cifar.dataset import Dataset
from swap_fast.data.cifar.find import load_dataset
from swap_fast.data.cifar.held_out import hold_out
from swap_fast.data.imagenet.scan import ImageTree, scan_tree
from swap_fast.distributed import Comm
from swap_fast.models import make_tree_net, net_maker
from swap_fast.tasks.cifar_source import CifarSource
from swap_fast.tasks.imagenet import TreeSource
from swap_fast.training.parts import Source

IMAGENET = (1_281_167, 50_000, 1_000)
"""Training images, test images and classes of ImageNet as published."""


@dataclass(frozen=True, kw_only=True)
class RunData:
    """What a run needs of its data."""

    source: Source
    """Makes the batches."""
    make_model: Callable[[], nn.Module]
    """The recipe's net for these classes."""
    description: dict[str, Any]
    """The data as a record keeps it: by its content, not by its place on a machine."""


def load_run_data(request: Request, comm: Comm, say: Callable[[str], None]) -> RunData:
    """Read the data set, or look through the tree; every rank must call.

    Raises:
        ValueError: damaged or different data.
    """
    if request.recipe.dataset == "imagenet":
        return _tree(request, comm, say)
    dataset = load_dataset(request.recipe.dataset, request.data)
    if request.held_out:
        dataset = hold_out(dataset, request.held_out)
    if len(set(comm.gather(dataset.sha256))) > 1:
        raise ValueError(
            f"{request.recipe.dataset}: expected the same data on every rank, got sets of "
            "different content; give all of them --data DIR"
        )
    return RunData(
        source=CifarSource(request.recipe, dataset),
        make_model=net_maker(request.recipe, dataset),
        description=_describe_dataset(dataset, request),
    )


def _describe_dataset(dataset: Dataset, request: Request) -> dict[str, Any]:
    return {
        "name": dataset.name,
        "kind": dataset.kind,
        "sha256": dataset.sha256,
        "train_images": request.recipe.train_images or len(dataset.train),
        "test_images": len(dataset.test),
        **({"held_out": request.held_out} if request.held_out else {}),
    }


def _tree(request: Request, comm: Comm, say: Callable[[str], None]) -> RunData:
    """One rank looks at the files, and tells the others: all have the same list."""
    assert request.data is not None, "a tree has no stand-in"
    root: Path = request.data

    def scan() -> ImageTree:
        tree = scan_tree(
            root,
            skip_bad_files=request.skip_bad_files,
            on_bad_file=lambda bad: say(f"bad file: {bad}"),
        )
        say(f"{root.name}: {tree.describe()}")
        return tree

    tree: ImageTree = comm.on_first(scan)
    loader = request.execution.loader
    assert loader != "tensor", "a tree's images are not resident"
    counts = (len(tree.train), len(tree.test), len(tree.classes))
    return RunData(
        source=TreeSource(tree, loader=loader, threads=request.threads),
        make_model=partial(make_tree_net, request.recipe, len(tree.classes)),
        description={
            "name": "imagenet",
            # By its counts: there is no published hash of the files.
            "kind": "published" if counts == IMAGENET else "own",
            "sha256": tree.sha256,
            "train_images": len(tree.train),
            "test_images": len(tree.test),
            "classes": len(tree.classes),
            "prepared_size": tree.prepared_size,
            "skipped_files": len(tree.skipped),
        },
    )
