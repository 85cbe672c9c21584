"""The documentation's examples run, at small sizes."""

from __future__ import annotations

import importlib.util
import re
import runpy
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from repository import ROOT

from swap_fast.user import method

EXAMPLES = ROOT / "docs" / "examples"

TRAINERS = {
    "refine_accelerate": "accelerate",
    "refine_hf_trainer": "transformers",
    "refine_lightning": "lightning",
}
"""What an example needs beyond the library: the extra `trainers`."""


def example(name: str) -> ModuleType:
    if name in TRAINERS:
        pytest.importorskip(TRAINERS[name], reason=f"{TRAINERS[name]} is not installed")
    specification = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def test_five_lines() -> None:
    result = example("five_lines").main(examples=800)
    assert result.accuracy > 0.9


def test_refine_around_a_plain_loop() -> None:
    result = example("refine_plain_loop").main(examples=800, epochs=2)
    assert result.accuracy > 0.9
    assert len(result.worker_states) == 4


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINERS)
# Lightning's own: a name that torch 2.10 deprecates, and advice on loaders.
@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
def test_refine_around_a_trainer_twice_in_a_row(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    module = example(name)
    for _ in range(2):
        result = module.main(examples=2000)
        assert min(result.worker_accuracies) > 0.6  # of 4 kinds: 0.25 by chance
        assert result.accuracy > result.accuracy_before_averaging - 0.02
        result.save("refined")
    assert len([path.name for path in tmp_path.iterdir()]) == 2


@pytest.mark.slow
def test_five_lines_as_a_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    script = (EXAMPLES / "five_lines.py").read_text()
    (tmp_path / "own.py").write_text(script.replace("examples: int = 4000", "examples: int = 400"))
    runpy.run_path("own.py", run_name="__main__")
    assert (tmp_path / "swapped" / "averaged.safetensors").exists()


@pytest.mark.slow
def test_torchvision_net(monkeypatch: pytest.MonkeyPatch) -> None:
    module = example("torchvision_net")
    # A net as deep as the example's costs minutes on a CPU; a thin one of torchvision's does not.
    small = module.resnet18

    def thin(num_classes: int) -> torch.nn.Module:
        model = small(num_classes=num_classes)
        model.layer2 = model.layer3 = model.layer4 = torch.nn.Identity()
        model.fc = torch.nn.Linear(64, num_classes)
        return model

    monkeypatch.setattr(module, "resnet18", thin)
    result = module.main(train_images=64, test_images=16, batch=4, epochs=2)
    assert result.record["phase1_epochs"] <= 2
    assert [row.phase for row in result.epochs][-4:] == [2] * 4
    assert result.record["settings"]["augment"] == "flip"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Dark and light images, to train on and to test."""
    random = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 4)):
        for label, level in (("dark", 40), ("light", 200)):
            folder = tmp_path / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 55, size=(40, 48, 3)) + level
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.jpg")
    return tmp_path


SMALL_TIMM = {"net": "test_resnet", "pretrained": False, "side": 64, "loader_processes": 0}


@pytest.mark.slow
def test_timm_net_on_a_folder_of_images(tree: Path) -> None:
    result = example("timm_folder").main(tree, **SMALL_TIMM, batch=4, epochs=4)
    assert result.accuracy is not None
    data = result.record["data"]
    assert (data["train_examples"], data["test_examples"]) == (24, 8)
    assert result.model.num_classes == 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:worker . lies in another basin")  # by 1 of 8 images
def test_refine_around_a_timm_loop(tree: Path) -> None:
    result = example("refine_timm_loop").main(tree, **SMALL_TIMM, batch=4, epochs=2, workers=2)
    assert result.accuracy is not None
    assert result.record["settings"]["model"]["name"] == type(result.model).__name__


@pytest.mark.slow
def test_small_transformer() -> None:
    result: Any = example("small_transformer").main(examples=2000, epochs=6)
    assert not any(isinstance(m, torch.nn.BatchNorm1d) for m in result.model.modules())
    assert result.accuracy > 0.6
    assert result.record["settings"]["optimizer"]["groups"][1]["weight_decay"] == 0.0


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_nothing_happens_when_an_example_is_imported(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert callable(example(path.stem).main)
    assert capsys.readouterr().out == ""
    assert path.stem not in sys.modules


@pytest.mark.slow
def test_the_pages_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (EXAMPLES.parent / "own_training.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 14
    # The same arithmetic in fewer epochs.
    monkeypatch.setattr(method, "MIN_UPDATES", 40)
    monkeypatch.setattr(method, "MIN_EPOCHS", 4)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)
        assert names["result"].record["schema_version"] == 1
    assert (tmp_path / "swapped" / "README.md").exists()
    assert (tmp_path / "runs" / "1" / "run.json").exists()
    assert names["losses"].all
    assert (tmp_path / "runs" / "2" / "refined-worker3.safetensors").exists()
    averaged = names["averaged"].state_dict()
    for name, tensor in names["result"].model.state_dict().items():
        torch.testing.assert_close(averaged[name], tensor)
