"""The average of three checkpoints that timm wrote, beside what timm's own script computes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.models import load_state_dict
from timm.utils import CheckpointSaver, ModelEmaV3
from torch import Tensor, nn

from swap_fast.__main__ import main


def avg_checkpoints(paths: Sequence[Path], use_ema: bool) -> dict[str, Tensor]:
    """The arithmetic of timm's avg_checkpoints.py: sums in float64, their mean in float32."""
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    for path in paths:
        for name, tensor in load_state_dict(str(path), use_ema).items():
            sums[name] = sums.get(name, torch.zeros((), dtype=torch.float64)) + tensor.double()
            counts[name] = counts.get(name, 0) + 1
    limits = torch.finfo(torch.float32)
    means = {name: tensor / counts[name] for name, tensor in sums.items()}
    return {name: mean.clamp(limits.min, limits.max).float() for name, mean in means.items()}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Of a net's three epochs, with its moving average and its optimizer beside it."""
    folder = tmp_path_factory.mktemp("timm")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model("test_resnet", num_classes=3)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        average = ModelEmaV3(model, decay=0.8)
        saver = CheckpointSaver(
            model, optimizer, model_ema=average, checkpoint_dir=str(folder), max_history=3
        )
        for epoch in range(3):
            for _ in range(2):
                images, labels = torch.randn(8, 3, 32, 32), torch.randint(3, (8,))
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(images), labels).backward()
                optimizer.step()
                average.update(model)
            saver.save_checkpoint(epoch, metric=epoch)
    return sorted(folder.glob("checkpoint-*.pth.tar"))


@pytest.mark.parametrize("key", ["state_dict", "state_dict_ema"])
def test_the_mean_is_that_of_timms_script(
    key: str, checkpoints: list[Path], tmp_path: Path
) -> None:
    output = tmp_path / "average.safetensors"
    files = [str(path) for path in checkpoints]
    assert len(files) == 3
    assert main(["average", *files, "-o", str(output), "--key", key, "--quiet"]) == 0
    found = load_file(output)
    expected = avg_checkpoints(checkpoints, use_ema=key == "state_dict_ema")
    assert found.keys() == expected.keys()
    for name, mean in expected.items():
        if not name.endswith("num_batches_tracked"):  # a count, which nothing reads
            torch.testing.assert_close(found[name], mean, rtol=1.2e-7, atol=0)
