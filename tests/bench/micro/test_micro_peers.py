"""The peers' loops: that they learn, and that their batches are the images they were given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from small_trainer import make_dataset

from bench.micro import step as micro_peers
from bench.micro.step import Epoch, Setup
from swap_fast.config.execution import Execution


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Setup:
    dataset = make_dataset(train_images=160)
    monkeypatch.setattr(micro_peers, "load_dataset", lambda name, path: dataset)
    return Setup(
        execution=Execution(),
        width=4,
        batch_size=32,
        dataset="synthetic",
        data=Path("nowhere"),
        num_images=128,
    )


def epochs(epoch: Epoch, number: int) -> list[tuple[float, float]]:
    return [epoch() for _ in range(number)]


@pytest.mark.parametrize("peer", ["stock", "best"])
def test_peers_learn(given: Setup, peer: str) -> None:
    torch.manual_seed(0)
    make = micro_peers.stock_epoch if peer == "stock" else micro_peers.best_practice_epoch
    epoch = make(given, 0) if peer == "stock" else micro_peers.best_practice_epoch(given, None)
    seen = epochs(epoch, 6)
    assert seen[0][0] == pytest.approx(np.log(10), abs=0.3)
    assert seen[-1][0] < 0.8 * seen[0][0]
    assert seen[-1][1] > seen[0][1]


def test_work_counts_the_images_of_whole_batches(given: Setup) -> None:
    assert micro_peers.our_training(given)() == 128
    assert micro_peers.stock_training(given, 0)() == 128
    assert micro_peers.best_practice_training(given, None)() == 128


def test_learning_rates_are_those_of_our_phase(given: Setup) -> None:
    model = torch.nn.Linear(1, 1)
    sgd, schedule = given.optimizer(model, fused=False)
    rates = []
    for _ in range(5):
        rates.append(sgd.param_groups[0]["lr"])
        sgd.step()
        schedule.step()
    # Four steps an epoch: the rate of step i is that of position (i + 1) / 4, as in `train`.
    assert rates == pytest.approx([0.075, 0.05, 0.025, 0.0, 0.075])


def test_crops_are_windows_of_the_padded_images_half_of_them_mirrored(given: Setup) -> None:
    torch.manual_seed(0)
    split, _ = given.load()
    padded = micro_peers._padded(split, torch.device("cpu"))
    expected = np.pad(split.images, ((0, 0), (4, 4), (4, 4), (0, 0)), mode="reflect")
    assert np.array_equal(padded.numpy(), expected)
    index = torch.arange(64)
    crops = micro_peers._cropped(padded, index).numpy()
    mirrored = 0
    for i, crop in enumerate(crops):
        windows = {
            flip: np.lib.stride_tricks.sliding_window_view(expected[i], (32, 32, 3))[:, :, 0]
            for flip in (False, True)
        }
        seen = [
            bool((windows[flip] == (crop[:, ::-1] if flip else crop)).all((2, 3, 4)).any())
            for flip in (False, True)
        ]
        assert any(seen)
        mirrored += seen[1]
    assert 16 < mirrored < 48
