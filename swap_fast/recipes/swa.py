"""The recipes of Table 4: SWA beside SWAP on CIFAR-100 (Section 5.3), and forms for a CPU.

Its fourth row, SWAP (10 small-batch epochs), is `cifar100_swap`.
"""

from dataclasses import replace

from swap_fast.config.phase import Phase
from swap_fast.config.recipe import SWAPRecipe, SWARecipe
from swap_fast.recipes.cifar100 import (
    LARGE,
    LARGE_CPU,
    SMALL,
    SMALL_CPU,
    STOPPED,
    STOPPED_CPU,
    TARGET,
    cifar100_swap,
    cifar100_swap_cpu,
)

SMALL_CYCLES = Phase(global_batch_size=128, peak_lr=0.05, max_epochs=80, cycles=8)
"""Eight samples, ten epochs apart. The paper found the peak learning rate by grid search for SWA
and used it for SWAP too; SWAP's is in Table 6."""


def cifar100_swap_40() -> SWAPRecipe:
    """Section 5.3: two 20-epoch cycles, two samples a worker, 16 models."""
    return replace(
        cifar100_swap(),
        name="cifar100_swap_40",
        summary="SWAP: as cifar100_swap, with two cycles of 20 epochs and 16 models",
        table="Table 4, SWAP (40 small-batch epochs)",
        phase2=Phase(global_batch_size=128, peak_lr=0.05, max_epochs=40, cycles=2),
    )


def cifar100_swa_large() -> SWARecipe:
    """Section 5.3, large-batch SWA: the same batch throughout, and its peak learning rate."""
    return SWARecipe(
        name="cifar100_swa_large",
        summary="SWA with large batches: 150 epochs at 2048, then 8 cycles of 10",
        table="Table 4, Large-batch SWA",
        dataset="cifar100",
        target_accuracy=TARGET,
        phase1=LARGE,
        phase2=Phase(
            global_batch_size=2048, peak_lr=1.2, max_epochs=80, cycles=8, gpus_per_model=8
        ),
    )


def cifar100_swa_large_small() -> SWARecipe:
    """Section 5.3, large-batch followed by small-batch SWA: phase 1 of SWAP, then one worker."""
    return SWARecipe(
        name="cifar100_swa_large_small",
        summary="SWA: 2048 to 90% train accuracy, then one worker, 128, 8 cycles of 10 epochs",
        table="Table 4, Large-batch followed by small-batch SWA",
        dataset="cifar100",
        target_accuracy=TARGET,
        phase1=STOPPED,
        phase2=SMALL_CYCLES,
    )


def cifar100_swa_small() -> SWARecipe:
    """Section 5.3, small-batch SWA: from the model of Table 2, row 1."""
    return SWARecipe(
        name="cifar100_swa_small",
        summary="SWA with small batches: 150 epochs at 128, then 8 cycles of 10",
        table="Table 4, Small-batch SWA",
        dataset="cifar100",
        target_accuracy=TARGET,
        phase1=SMALL,
        phase2=SMALL_CYCLES,
    )


SMALL_CYCLES_CPU = Phase(global_batch_size=64, peak_lr=0.05, max_epochs=12, cycles=4)
"""Four samples, as far apart as the phase 2 of `cifar100_swap_cpu` is long."""


def cifar100_swap_40_cpu() -> SWAPRecipe:
    """Table 4's last row on two cores: two cycles of twice the length, 8 models of 4 workers."""
    return replace(
        cifar100_swap_cpu(),
        name="cifar100_swap_40_cpu",
        summary="SWAP: as cifar100_swap_cpu, with two cycles of 6 epochs and 8 models",
        table="Table 4, SWAP (40 small-batch epochs), at CPU size",
        phase2=Phase(global_batch_size=64, peak_lr=0.05, max_epochs=12, cycles=2),
    )


def cifar100_swa_large_cpu() -> SWARecipe:
    """Table 4's first row on two cores."""
    return replace(
        cifar100_swa_large(),
        name="cifar100_swa_large_cpu",
        summary="SWA with large batches on two CPU cores: 24 epochs at 512, then 4 cycles of 3",
        table="Table 4, Large-batch SWA, at CPU size",
        paper_scale=False,
        target_accuracy=0.38,
        train_images=10_000,
        width=8,
        phase1=LARGE_CPU,
        phase2=replace(SMALL_CYCLES_CPU, global_batch_size=512, peak_lr=0.8, gpus_per_model=4),
    )


def cifar100_swa_large_small_cpu() -> SWARecipe:
    """Table 4's second row on two cores."""
    return replace(
        cifar100_swa_large_cpu(),
        name="cifar100_swa_large_small_cpu",
        summary="SWA on two CPU cores: 512 to 39% train accuracy, then one worker, 4 cycles of 3",
        table="Table 4, Large-batch followed by small-batch SWA, at CPU size",
        phase1=STOPPED_CPU,
        phase2=SMALL_CYCLES_CPU,
    )


def cifar100_swa_small_cpu() -> SWARecipe:
    """Table 4's third row on two cores."""
    return replace(
        cifar100_swa_large_cpu(),
        name="cifar100_swa_small_cpu",
        summary="SWA with small batches on two CPU cores: 24 epochs at 64, then 4 cycles of 3",
        table="Table 4, Small-batch SWA, at CPU size",
        phase1=SMALL_CPU,
        phase2=SMALL_CYCLES_CPU,
    )


SWA_RECIPES = (
    cifar100_swap_40,
    cifar100_swa_large,
    cifar100_swa_large_small,
    cifar100_swa_small,
    cifar100_swap_40_cpu,
    cifar100_swa_large_cpu,
    cifar100_swa_large_small_cpu,
    cifar100_swa_small_cpu,
)
"""All of them."""
