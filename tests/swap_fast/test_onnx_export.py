"""Models as ONNX files: what onnxruntime computes of them, held against torch itself."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from swap_fast.models import ResNet9
from swap_fast.onnx_export import export_onnx


def _run(path: Path, inputs: Tensor, name: str = "images") -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (outputs,) = session.run(None, {name: inputs.numpy()})
    return np.asarray(outputs)


class _Attention(nn.Module):
    """A small transformer over 6 tokens: no batch norm, two axes that are not images'."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(20, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.5, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map int64 [B, 6] to [B, 3]."""
        return self.head(self.layer(self.tokens(tokens)).mean(1))


class _Forgetful(nn.Module):
    """Its output depends on what was called before, which no trace knows."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.calls = nn.Linear(4, 2), 0

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, 4] to [B, 2]."""
        self.calls += 1
        return self.linear(x) + self.calls


class _FixedBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        """Map [2, 4] to [4, 2], and nothing else."""
        return x.view(2, 2, 2).transpose(0, 1).reshape(4, 2)


class _Counting(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        """Do something else with two images than with others."""
        return 2 * x if len(x) == 2 else 3 * x


def test_a_resnet9_for_batches_of_any_size(tmp_path: Path) -> None:
    torch.manual_seed(1)
    net = ResNet9(10, 4)
    for _ in range(3):  # so that the statistics are those of something
        net(2 * torch.randn(8, 3, 32, 32) + 1)
    images = torch.randn(6, 3, 32, 32)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    difference = export_onnx(
        net, tmp_path / "net.onnx", images, metadata={"mean": [1.5, 2], "run": "a"}
    )
    assert net.training
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
    net.eval()
    for batch in (images, images[:1], torch.randn(9, 3, 32, 32)):
        with torch.no_grad():
            expected = net(batch).numpy()
        np.testing.assert_allclose(_run(tmp_path / "net.onnx", batch), expected, atol=1e-5)
    assert 0 <= difference < 1e-5
    model = onnx.load(tmp_path / "net.onnx")
    (inside,), (outside,) = model.graph.input, model.graph.output
    shape = [each.dim_param or each.dim_value for each in inside.type.tensor_type.shape.dim]
    assert (inside.name, outside.name, shape) == ("images", "logits", ["batch", 3, 32, 32])
    told = {each.key: each.value for each in model.metadata_props}
    assert (json.loads(told["mean"]), told["run"]) == ([1.5, 2], "a")


def test_any_module_compiled_or_in_half_precision(tmp_path: Path) -> None:
    torch.manual_seed(2)
    net = _Attention()
    tokens = torch.randint(20, (5, 6))
    with torch.no_grad():
        expected = net.eval()(tokens).numpy()
    export_onnx(
        torch.compile(net), tmp_path / "a.onnx", tokens, input_name="tokens", output_name="scores"
    )
    np.testing.assert_allclose(_run(tmp_path / "a.onnx", tokens, "tokens"), expected, atol=1e-5)
    half = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).to(torch.bfloat16)
    export_onnx(half, tmp_path / "b.onnx", torch.randn(4, 3, 2, 2).to(torch.bfloat16))
    images = torch.randn(3, 3, 2, 2)
    weight, bias = (t.detach().float().numpy() for t in half[1].parameters())
    by_hand = images.numpy().reshape(3, 12) @ weight.T + bias
    np.testing.assert_allclose(_run(tmp_path / "b.onnx", images), by_hand, atol=1e-5)
    assert half[1].weight.dtype is torch.bfloat16


def test_a_file_that_computes_something_else_is_not_left(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    with pytest.raises(ValueError, match=r"expected outputs within .* net.onnx is not written"):
        export_onnx(_Forgetful(), path, torch.randn(4, 4))
    assert list(tmp_path.iterdir()) == []
    path.write_bytes(b"the former one")
    net = nn.Linear(4, 2)
    with pytest.raises(ValueError, match=r"expected outputs within"):
        export_onnx(net, path, torch.full((3, 4), float("nan")))
    assert path.read_bytes() == b"the former one"


def test_a_model_of_one_batch_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model: expected one that takes any batch, got: shape"):
        export_onnx(_FixedBatch(), tmp_path / "net.onnx", torch.randn(2, 4))
    with pytest.raises(ValueError, match=r"model: expected one that torch.export can trace"):
        export_onnx(_Counting(), tmp_path / "net.onnx", torch.randn(4, 4))
    with pytest.raises(ValueError, match=r"expected a batch of 2 or more, got 1"):
        export_onnx(nn.Linear(4, 2), tmp_path / "net.onnx", torch.randn(1, 4))
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_gives_no_tensor_is_refused(tmp_path: Path) -> None:
    class Named(nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"logits": x}

    with pytest.raises(
        ValueError, match=r"^model: expected one that returns a tensor, got a dict;"
    ):
        export_onnx(Named(), tmp_path / "net.onnx", torch.zeros(2, 3))


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_a_missing_package_is_named_with_its_extra(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    expected = rf"expected the package {package}, .* pip install 'swap_fast\[export\]'"
    with pytest.raises(ValueError, match=expected):
        export_onnx(nn.Linear(4, 2), tmp_path / "net.onnx", torch.randn(2, 4))
