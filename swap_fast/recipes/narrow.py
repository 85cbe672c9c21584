"""The paper's net near convergence on two CPU cores: Tables 1, 2 and 4 at width 16.

A core is a device: one process of one thread. Small batches run on one core, large ones and SWAP
with two workers on two, so that the paper's comparison of times is measured; more workers take
turns. A model sees 20 epochs, in SWAP the last 4 of them apart. The ratio of the batches is Table
5's, 8. The peak rates of CIFAR-10's SGD rows were the best of three on 5,000 held-out training
images, one run each: small batches at 0.1, 0.2, 0.4: 90.02, 90.08, 89.52%; large ones at 0.4, 0.8,
1.6: 89.30, 89.04, 89.42%. SWAP on CIFAR-10 had no trial of its own: its phase 1 is the large-batch
row, ended by the train accuracy which that row had after 16 epochs (85.3%, one run), and phase 2
begins at the rate that the small-batch row has there, 0.05. CIFAR-100's rates and tau are first
guesses.
"""

from dataclasses import replace

from swap_fast.config.phase import Phase
from swap_fast.config.recipe import SGDRecipe, SWAPRecipe, SWARecipe

WIDTH = 16
"""A quarter of the paper's net: a sixteenth of its arithmetic."""

SMALL = Phase(global_batch_size=128, peak_lr=0.2, max_epochs=20, warmup_epochs=4)
"""On one core."""

LARGE = Phase(global_batch_size=1024, peak_lr=1.6, max_epochs=20, warmup_epochs=4, gpus_per_model=2)
"""On two cores."""

APART = Phase(global_batch_size=128, peak_lr=0.05, max_epochs=4)
"""A worker of SWAP, on one core."""


def cifar10_narrow_sgd_small() -> SGDRecipe:
    """Table 1's first row."""
    return SGDRecipe(
        name="cifar10_narrow_sgd_small",
        summary="SGD with small batches: width 16, 128 on one core, 20 epochs",
        table="Table 1, SGD (small-batch), at width 16",
        paper_scale=False,
        devices="cores",
        target_accuracy=0.90,
        width=WIDTH,
        phase1=SMALL,
    )


def cifar10_narrow_sgd_large() -> SGDRecipe:
    """Table 1's second row."""
    return replace(
        cifar10_narrow_sgd_small(),
        name="cifar10_narrow_sgd_large",
        summary="SGD with large batches: width 16, 1024 on two cores, 20 epochs",
        table="Table 1, SGD (large-batch), at width 16",
        phase1=LARGE,
    )


def cifar10_narrow() -> SWAPRecipe:
    """Table 1's SWAP with two workers, each on a core of its own."""
    return SWAPRecipe(
        name="cifar10_narrow",
        summary="SWAP: width 16, 1024 to 85% train accuracy, then 2 workers, 128, 4 epochs",
        table="Table 1, SWAP, at width 16",
        paper_scale=False,
        devices="cores",
        target_accuracy=0.90,
        width=WIDTH,
        num_workers=2,
        phase1=replace(LARGE, stopping_accuracy=0.85),
        phase2=APART,
    )


def cifar10_narrow_4() -> SWAPRecipe:
    """The same with four workers, which take turns on two cores."""
    return replace(
        cifar10_narrow(),
        name="cifar10_narrow_4",
        summary="SWAP: as cifar10_narrow with 4 workers",
        table="none: cifar10_narrow with 4 workers",
        num_workers=4,
        phase1=replace(LARGE, stopping_accuracy=0.85, gpus_per_model=4),
    )


def cifar100_narrow_sgd_small() -> SGDRecipe:
    """Table 2's first row."""
    return replace(
        cifar10_narrow_sgd_small(),
        name="cifar100_narrow_sgd_small",
        table="Table 2, SGD (small-batch), at width 16",
        dataset="cifar100",
        target_accuracy=0.60,
    )


def cifar100_narrow_sgd_large() -> SGDRecipe:
    """Table 2's second row."""
    return replace(
        cifar100_narrow_sgd_small(),
        name="cifar100_narrow_sgd_large",
        summary=cifar10_narrow_sgd_large().summary,
        table="Table 2, SGD (large-batch), at width 16",
        phase1=LARGE,
    )


def cifar100_narrow() -> SWAPRecipe:
    """Table 2's SWAP, and Table 4's fourth row, with two workers."""
    return replace(
        cifar10_narrow(),
        name="cifar100_narrow",
        summary="SWAP: width 16, 1024 to 60% train accuracy, then 2 workers, 128, 4 epochs",
        table="Table 2, SWAP, at width 16",
        dataset="cifar100",
        target_accuracy=0.60,
        phase1=replace(LARGE, stopping_accuracy=0.60),
    )


def cifar100_narrow_long() -> SWAPRecipe:
    """Table 4's last row: two cycles of twice the length, two samples a worker."""
    return replace(
        cifar100_narrow(),
        name="cifar100_narrow_long",
        summary="SWAP: as cifar100_narrow, with two cycles of 8 epochs and 4 models",
        table="Table 4, SWAP (40 small-batch epochs), at width 16",
        phase2=replace(APART, max_epochs=16, cycles=2),
    )


def cifar100_narrow_swa_large() -> SWARecipe:
    """Table 4's first row."""
    return SWARecipe(
        name="cifar100_narrow_swa_large",
        summary="SWA with large batches: width 16, 20 epochs at 1024, then 4 cycles of 4",
        table="Table 4, Large-batch SWA, at width 16",
        dataset="cifar100",
        paper_scale=False,
        devices="cores",
        target_accuracy=0.60,
        width=WIDTH,
        phase1=LARGE,
        phase2=replace(LARGE, max_epochs=16, cycles=4, warmup_epochs=0),
    )


def cifar100_narrow_swa_large_small() -> SWARecipe:
    """Table 4's second row: phase 1 of SWAP, then one worker."""
    return replace(
        cifar100_narrow_swa_large(),
        name="cifar100_narrow_swa_large_small",
        summary="SWA: width 16, 1024 to 60% train accuracy, then one worker, 4 cycles of 4",
        table="Table 4, Large-batch followed by small-batch SWA, at width 16",
        phase1=cifar100_narrow().phase1,
        phase2=replace(APART, max_epochs=16, cycles=4),
    )


def cifar100_narrow_swa_small() -> SWARecipe:
    """Table 4's third row."""
    return replace(
        cifar100_narrow_swa_large(),
        name="cifar100_narrow_swa_small",
        summary="SWA with small batches: width 16, 20 epochs at 128, then 4 cycles of 4",
        table="Table 4, Small-batch SWA, at width 16",
        phase1=cifar100_narrow_sgd_small().phase1,
        phase2=replace(APART, max_epochs=16, cycles=4),
    )


NARROW_RECIPES = (
    cifar10_narrow,
    cifar10_narrow_4,
    cifar10_narrow_sgd_small,
    cifar10_narrow_sgd_large,
    cifar100_narrow,
    cifar100_narrow_long,
    cifar100_narrow_sgd_small,
    cifar100_narrow_sgd_large,
    cifar100_narrow_swa_large,
    cifar100_narrow_swa_large_small,
    cifar100_narrow_swa_small,
)
"""All of them."""
