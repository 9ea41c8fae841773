"""Pipelines and loading with nothing but transformers, in a process that cannot import this package."""

import interop_helpers
import pytest
import torch
from transformers import AutoModelForMaskedLM

PROMPT = "walk talk [MASK] walking"

READ = """
import json, torch
from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline
masked, causal, encoder, student, prompt, text = sys.argv[1:]
def words(folder):
    return [(found["token_str"], found["score"]) for found in pipeline("fill-mask", model=folder)(prompt)]
half = AutoModelForMaskedLM.from_pretrained(masked, dtype=torch.bfloat16)
placed = AutoModelForMaskedLM.from_pretrained(masked, device_map={"": "cpu"})
ids = AutoTokenizer.from_pretrained(masked)(text, return_tensors="pt")
print(json.dumps({
    "fill-mask": words(masked),
    "fill-mask, student": words(student),
    "text-generation": pipeline("text-generation", model=causal)(text, do_sample=False, max_new_tokens=8)[0]["generated_text"],
    "feature-extraction": pipeline("feature-extraction", model=encoder)(text),
    "bfloat16": [str(half.dtype), half(**ids).logits[0, 1].float().tolist()],
    "device_map": placed(**ids).logits[0, 1].tolist(),
    "ours": [name for name, module in sys.modules.items() if name.startswith("hf_glmd") and module],
}))
"""


@pytest.fixture(scope="module")
def text(masked, causal, encoder):
    """One whose tokens all three smaller vocabularies have kept."""
    return causal.kept_texts(encoder.kept_texts(masked.kept_texts()))[0]


@pytest.fixture(scope="module")
def read(masked, causal, encoder, student, text):
    """What the pipelines of a fresh process say."""
    found = interop_helpers.fresh_process(READ, masked.small, causal.small, encoder.small, student, PROMPT, text)
    assert found["ours"] == []
    return found


def top(model, tokenizer, columns=None):
    """The five most probable words at the mask of the prompt and their probabilities, among those of `columns`."""
    inputs = tokenizer(PROMPT, return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits[inputs["input_ids"] == tokenizer.mask_token_id][0]
    columns = torch.arange(logits.numel()) if columns is None else torch.from_numpy(columns.copy())
    scores, places = logits[columns].softmax(0).topk(5)
    return [(tokenizer.decode([columns[place]]), pytest.approx(float(p), 1e-4)) for p, place in zip(scores, places, strict=True)]


def test_fill_mask(masked, read, tool):
    tool("transformers", '`pipeline("fill-mask")` of a shrunk model with the original, among the kept words')
    assert [tuple(found) for found in read["fill-mask"]] == top(
        masked.original_model, masked.original_tokenizer, masked.vocab_map.kept_ids
    )


def test_fill_mask_of_a_student(masked, student, read, tool):
    tool("transformers", '`pipeline("fill-mask")` of a distilled student with the model in memory')
    model = AutoModelForMaskedLM.from_pretrained(student).eval()
    assert model.config.num_hidden_layers == 2 and model.config.vocab_size == masked.vocab_map.size
    assert [tuple(found) for found in read["fill-mask, student"]] == top(model, masked.small_tokenizer)


def test_text_generation(causal, read, text, tool):
    tool("transformers", '`pipeline("text-generation")` of a shrunk model with the original, removed tokens suppressed')
    tokenizer, model = causal.original_tokenizer, causal.original_model
    removed = sorted(set(range(causal.vocab_map.original_size)) - set(causal.vocab_map.kept_ids.tolist()))
    inputs = tokenizer(text, return_tensors="pt")
    written = model.generate(**inputs, do_sample=False, max_new_tokens=8, suppress_tokens=removed)[0]
    assert read["text-generation"] == tokenizer.decode(written, skip_special_tokens=True)
    assert len(read["text-generation"]) > len(text)


def test_feature_extraction(encoder, read, text, tool):
    tool("transformers", '`pipeline("feature-extraction")` of a shrunk encoder with the original, text of kept tokens')
    with torch.no_grad():
        states = encoder.original_model(**encoder.original_tokenizer(text, return_tensors="pt")).last_hidden_state
    assert torch.equal(torch.tensor(read["feature-extraction"]), states)


def test_bfloat16_and_device_map(masked, read, text, tool):
    tool("transformers accelerate", "`from_pretrained` with `device_map=`, and with `dtype=bfloat16`: logits with the original's")
    inputs = masked.original_tokenizer(text, return_tensors="pt")
    kept = torch.from_numpy(masked.vocab_map.kept_ids.copy())
    with torch.no_grad():
        expected = masked.original_model(**inputs).logits[0, 1, kept]
        half = AutoModelForMaskedLM.from_pretrained(masked.original, dtype=torch.bfloat16)(**inputs).logits[0, 1, kept]
    torch.testing.assert_close(torch.tensor(read["device_map"]), expected)
    dtype, logits = read["bfloat16"]
    assert dtype == "torch.bfloat16"
    torch.testing.assert_close(torch.tensor(logits), half.float(), rtol=0.02, atol=0.02)


def test_nothing_is_missing_or_left_over(masked, causal, encoder, student, tool):
    tool("transformers", "`from_pretrained`: no weight is missing, made up or left over")
    for folder, model in (
        (masked.small, masked.small_model),
        (causal.small, causal.small_model),
        (encoder.small, encoder.small_model),
    ):
        _, said = type(model).from_pretrained(folder, output_loading_info=True)
        assert not any(said.values()), said
    _, said = AutoModelForMaskedLM.from_pretrained(student, output_loading_info=True)
    assert not any(said.values()), said
