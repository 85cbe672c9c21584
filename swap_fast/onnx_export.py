"""Writes a model as an ONNX file, if onnxruntime gives the same outputs as torch.

Needs the extra `export`: onnx, onnxruntime and onnxscript are imported when they are used.
"""

import copy
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from swap_fast.config.checks import one_line, typed_arguments
from swap_fast.files import write_file

INPUT, OUTPUT = "images", "logits"
"""The default names of input and output in the file."""

TOLERANCE = 1e-4
"""Largest difference allowed, as a share of the largest output, or of 1."""


@typed_arguments()
def export_onnx(
    model: nn.Module,
    path: Path | str,
    inputs: Tensor,
    *,
    metadata: Mapping[str, Any] | None = None,
    input_name: str = INPUT,
    output_name: str = OUTPUT,
    tolerance: float = TOLERANCE,
) -> float:
    """Write a model of one input and one output for batches of any size, in fp32.

    A copy is exported, in evaluation mode on the CPU; the model itself does not change. onnx checks
    the file, and onnxruntime runs it on all inputs and on the first alone; it is written only if
    the outputs agree with torch's.

    Arguments:
        model: any module, compiled or not, of any precision.
        inputs: [B, ...] with B of 2 or more, on which the model is traced and checked.
        metadata: written to the file; values that are not text, as JSON.
        tolerance: largest difference, as a share of the largest output, or of 1.

    Returns:
        The largest difference of any output.

    Raises:
        ValueError: the model cannot be exported, a package is missing, or the outputs differ; no
            file is written then.
        OSError: the file cannot be written.
    """
    (onnx, runtime), path = _packages(), Path(path)
    if (size := len(inputs) if inputs.dim() else 0) < 2:
        raise ValueError(f"inputs: expected a batch of 2 or more, got {size}")
    # A compiled module holds the one that it was made from.
    original = getattr(model, "_orig_mod", model)
    plain = copy.deepcopy(original).to(device="cpu", dtype=torch.float32).eval()
    inputs = inputs.detach().cpu()
    inputs = inputs.float() if inputs.is_floating_point() else inputs
    batches = (inputs, inputs[:1])
    try:
        with torch.no_grad():
            expected = [plain(batch) for batch in batches]
    except RuntimeError as error:
        words = f"model: expected one that takes any batch, got: {one_line(error)}"
        raise ValueError(words) from error
    if not all(isinstance(outputs, torch.Tensor) for outputs in expected):
        got = type(expected[0]).__name__
        raise ValueError(
            f"model: expected one that returns a tensor, got a {got}; wrap it in a module that "
            "returns one"
        )
    try:
        with warnings.catch_warnings(), torch.no_grad():
            # torch's exporter and onnxscript use deprecated parts of torch.
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                plain,
                (inputs[:2],),
                dynamo=True,
                verbose=False,
                input_names=[input_name],
                output_names=[output_name],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
            )
    except torch.onnx.OnnxExporterError as error:
        cause = one_line(error.__cause__ or error)
        raise ValueError(
            f"model: expected one that torch.export can trace for any batch, got: {cause}"
        ) from error
    assert program is not None, "torch's exporter by dynamo returns the program"
    proto = program.model_proto
    # If torch cannot trace for any batch size, it may trace for the given size alone.
    if not proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param:
        raise ValueError(
            "model: expected one that torch.export can trace for any batch, got one whose trace "
            f"is for {len(inputs[:2])} alone"
        )
    texts = {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in (metadata or {}).items()
    }
    onnx.helper.set_model_props(proto, texts)
    onnx.checker.check_model(proto, full_check=True)
    content = proto.SerializeToString()
    session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
    largest, scale = 0.0, 1.0
    for batch, outputs in zip(batches, expected, strict=True):
        (found,) = session.run([output_name], {input_name: batch.numpy()})
        difference = (torch.from_numpy(found) - outputs).abs().max().item()
        # Not `max`, which would lose a NaN.
        largest = difference if not difference <= largest else largest
        scale = max(scale, outputs.abs().max().item())
    if not largest <= tolerance * scale:
        raise ValueError(
            f"onnx: expected outputs within {tolerance * scale:.1e} of torch's, got "
            f"{largest:.1e} away; {path.name} is not written"
        )
    write_file(path, content)
    return largest


def _packages() -> tuple[Any, Any]:
    """The packages onnx and onnxruntime; torch's exporter needs onnxscript.

    Raises:
        ValueError: one is missing.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401 # for the message below
    except ModuleNotFoundError as error:
        raise ValueError(
            f"onnx: expected the package {error.name}, which is not installed; pip install "
            "'swap_fast[export]'"
        ) from None
    return onnx, onnxruntime
