"""Recipes that only shrink: what they should come to, from the public shapes."""

import re
from pathlib import Path

import pytest
import torch
import transformers

from hf_glmd.recipe.reading import build_section
from hf_glmd.shrinking.command import ShrinkOptions

RECIPES = Path(__file__).parents[2] / "recipes" / "shrink"
_QWEN = {"hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128}
_GEMMA = {"hidden_size": 640, "num_hidden_layers": 18, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256}
_MT5 = {"d_model": 512, "d_kv": 64, "d_ff": 1024, "num_layers": 8, "num_heads": 6, "feed_forward_proj": "gated-gelu"}
SHAPES = {
    "gemma-3-270m-english": ("Gemma3ForCausalLM", _GEMMA | {"intermediate_size": 2048}),
    "qwen3-0.6b-english": ("Qwen3ForCausalLM", _QWEN | {"intermediate_size": 3072, "tie_word_embeddings": True}),
    "xlm-roberta-base-german": ("XLMRobertaForMaskedLM", {"max_position_embeddings": 514, "type_vocab_size": 1}),
    "mt5-small-german": ("MT5ForConditionalGeneration", _MT5),
}
"""As in the config.json of these checkpoints on the Hub."""


def test_each_recipe_has_a_shape():
    assert {path.stem for path in RECIPES.glob("*.yaml")} == set(SHAPES)


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_a_recipe_names_the_size_it_comes_to(name):
    options = build_section(ShrinkOptions, RECIPES / f"{name}.yaml")
    class_name, shape = SHAPES[name]
    cls = getattr(transformers, class_name)
    with torch.device("meta"):
        model = cls(cls.config_class(vocab_size=options.size, **shape))
    parameters = model.num_parameters()
    if name.startswith("mt5"):  # made here with one table for both ends, published with two
        parameters += options.size * shape["d_model"]
    comment = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8")
    said = re.search(r"should come to ([\d,]+) parameters", comment)
    assert said and int(said[1].replace(",", "")) == parameters
    assert f"recipes/shrink/{name}.yaml" in comment
