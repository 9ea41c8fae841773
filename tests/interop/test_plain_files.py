"""The files by themselves, read by the libraries that define their formats."""

import interop_helpers
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TorchAoConfig


@pytest.mark.parametrize("kind", ["masked", "causal"])
def test_tokenizers_alone(kind, request, tool):
    tool("tokenizers", f"`Tokenizer.from_file` of a shrunk {kind} model with `AutoTokenizer`: ids, offsets, decoded text")
    pair = request.getfixturevalue(kind)
    alone, loaded = Tokenizer.from_file(str(pair.small / "tokenizer.json")), pair.small_tokenizer
    assert alone.get_vocab_size() == len(loaded) == pair.vocab_map.size
    for text in interop_helpers.TEXTS:
        encoding = loaded(text, return_offsets_mapping=True)
        found = alone.encode(text)
        assert (found.ids, found.offsets) == (encoding["input_ids"], encoding["offset_mapping"])
        assert alone.decode(found.ids) == loaded.decode(encoding["input_ids"], skip_special_tokens=True)


@pytest.mark.parametrize("kind", ["masked", "causal", "encoder"])
def test_safetensors_alone(kind, request, tool):
    tool("safetensors", f"`load_file` of a shrunk {kind} model: rows of the kept tokens, all else with the original")
    pair = request.getfixturevalue(kind)
    original, small = (load_file(folder / "model.safetensors") for folder in (pair.original, pair.small))
    assert original.keys() == small.keys()
    kept = torch.from_numpy(pair.vocab_map.kept_ids.copy())
    cut = 0
    for name, tensor in small.items():
        whole = original[name]
        if whole.shape != tensor.shape:
            assert whole.shape[0] == pair.vocab_map.original_size
            whole, cut = whole[kept], cut + 1
        assert torch.equal(tensor, whole), name
    assert cut == {"masked": 2, "causal": 1, "encoder": 1}[kind]  # the bias of the masked model's head, too


@pytest.mark.interop
@pytest.mark.parametrize("width", ["4bit", "8bit"])
def test_bitsandbytes(width, causal, tool):
    tool("bitsandbytes", f"`load_in_{width}` of a shrunk causal model with the original's: logits of the kept tokens")
    check_quantised(causal, f"Linear{width}".replace("8bit", "8bitLt"), BitsAndBytesConfig(**{f"load_in_{width}": True}))


@pytest.mark.interop
def test_torchao(causal, tool):
    tool("torchao", "int8 weights of a shrunk causal model with the original's: logits of the kept tokens")
    from torchao.quantization import Int8WeightOnlyConfig

    check_quantised(causal, "Int8Tensor", TorchAoConfig(Int8WeightOnlyConfig()))


def check_quantised(pair, kind, config):
    """Both are quantised by the tool; the body is the same, and so is each row of a kept token."""
    small, original = (
        AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, device_map={"": "cpu"}).eval()
        for folder in (pair.small, pair.original)
    )
    modules = [part for part in (*small.modules(), *small.parameters()) if type(part).__name__ == kind]
    assert len(modules) >= 7 * small.config.num_hidden_layers, {type(part).__name__ for part in small.parameters()}
    inputs = pair.small_tokenizer(interop_helpers.TEXTS[:8], padding=True, return_tensors="pt")
    with torch.no_grad():
        found = small(**inputs).logits
        full = pair.small_model(**inputs).logits
        inputs["input_ids"] = pair.vocab_map.to_original(inputs["input_ids"])
        expected = original(**inputs).logits[..., torch.from_numpy(pair.vocab_map.kept_ids.copy())]
    assert (found - full).abs().max() > 1e-3  # quantised indeed
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
