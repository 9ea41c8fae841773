"""The teacher that comes with the repository is what its card says."""

import pytest
import recipe_helpers
import torch
from huggingface_hub import ModelCard
from safetensors import safe_open

from hf_glmd.data.docstrings import docstring_corpus
from hf_glmd.data.packing import pack_blocks
from hf_glmd.evaluation.words import masked_word_accuracy
from hf_glmd.models.loading import load_word_model
from hf_glmd.recipe.config import load_recipe
from hf_glmd.recipe.inputs import Inputs
from hf_glmd.vocab.mapped_tokenizer import load_tokenizer

FOLDER = recipe_helpers.ROOT / "recipes" / "quickstart_teacher"


def test_it_is_small_and_in_half_precision():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 12e6
    with safe_open(FOLDER / "model.safetensors", "pt") as weights:
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"F16"}


def test_it_knows_the_answers_of_the_quickstart(monkeypatch):
    monkeypatch.chdir(recipe_helpers.ROOT)
    inputs = Inputs(load_recipe("recipes/quickstart.yaml"), None)
    inputs.check_teacher()
    (given,) = inputs.tasks
    assert len(given.task.candidate_ids(inputs.teacher_tokenizer)) == 8


def test_it_fills_a_blank():
    model, tokenizer = load_word_model(FOLDER, dtype=torch.float32), load_tokenizer(FOLDER)
    inputs = tokenizer("returns true if the [MASK] is empty, false otherwise.", return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits[inputs["input_ids"] == tokenizer.mask_token_id]
    top = tokenizer.convert_ids_to_tokens(logits.topk(20).indices[0].tolist())
    assert {"list", "string", "object", "value", "set", "path", "tensor", "dictionary", "file"} & set(top)


@pytest.mark.slow
def test_its_card_says_what_it_scores():
    """About the installed versions: those of constraints.txt give the card's figure."""
    (result,) = ModelCard.load(FOLDER / "README.md").data.eval_results
    model, tokenizer = load_word_model(FOLDER, dtype=torch.float32), load_tokenizer(FOLDER)
    blocks = pack_blocks(docstring_corpus()["test"], tokenizer, 128)
    assert masked_word_accuracy(model, tokenizer, blocks).accuracy == pytest.approx(result.metric_value, abs=2e-3)
