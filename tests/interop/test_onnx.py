"""torch.onnx.export of what this package writes, run by onnxruntime on inputs of other shapes than the exported ones."""

from pathlib import Path
from typing import Any

import interop_helpers
import numpy as np
import pytest
import torch
from transformers import AutoModelForMaskedLM

pytestmark = pytest.mark.interop


class Logits(torch.nn.Module):
    """Only the logits (or the hidden states), as a tensor."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        options = {} if not hasattr(self.model.config, "use_cache") else {"use_cache": False}
        return self.model(input_ids=input_ids, attention_mask=attention_mask, **options)[0]


def largest_difference(model: Any, tokenizer: Any, texts: list[str], file: Path) -> float:
    """Of what onnxruntime and torch compute, for a batch of texts and for a single one; exported with another batch."""
    import onnx
    import onnxruntime

    wrapped = Logits(model).eval()
    batch, sequence = torch.export.Dim("batch", min=1, max=64), torch.export.Dim("sequence", min=2, max=38)
    example = tokenizer(texts[:3], padding=True, return_tensors="pt")
    torch.onnx.export(
        wrapped,
        (example["input_ids"], example["attention_mask"]),
        file,
        dynamo=True,
        input_names=["input_ids", "attention_mask"],
        output_names=["logits"],
        dynamic_shapes=({0: batch, 1: sequence}, {0: batch, 1: sequence}),
        verbose=False,
    )
    onnx.checker.check_model(file)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    worst = 0.0
    for some in (texts[:11], texts[:1]):
        inputs = {name: tokenizer(some, padding=True, return_tensors="pt")[name] for name in ("input_ids", "attention_mask")}
        (found,) = session.run(["logits"], {name: value.numpy() for name, value in inputs.items()})
        with torch.no_grad():
            expected = wrapped(**inputs).numpy()
        attended = inputs["attention_mask"].bool().numpy()  # what stands at padding means nothing
        assert found.shape == expected.shape and np.ptp(expected[attended]) > 1
        worst = max(worst, float(np.abs(found - expected)[attended].max()))
    return worst


@pytest.mark.parametrize("kind", ["masked", "causal", "encoder"])
def test_a_shrunk_model(kind, request, tmp_path, tool, record_property):
    tool("onnxruntime onnx onnxscript", f"`torch.onnx.export` of a shrunk {kind} model with torch, other batch and length")
    pair = request.getfixturevalue(kind)
    tokenizer = pair.small_tokenizer
    worst = largest_difference(pair.small_model, tokenizer, interop_helpers.TEXTS, tmp_path / "model.onnx")
    record_property("result", f"differ by {worst:.1e} at most")
    assert worst < 1e-4


def test_a_distilled_student(masked, student, tmp_path, tool, record_property):
    tool("onnxruntime onnx onnxscript", "`torch.onnx.export` of a distilled student with torch, other batch and length")
    model = AutoModelForMaskedLM.from_pretrained(student)
    worst = largest_difference(model, masked.small_tokenizer, interop_helpers.TEXTS, tmp_path / "model.onnx")
    record_property("result", f"differ by {worst:.1e} at most")
    assert worst < 1e-4
