"""GGUF: what a converter reads of a shrunk model is consistent, and what is written of it is read back the same.

The checks are those that llama.cpp's convert_hf_to_gguf.py makes, or relies on without making them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import interop_helpers
import numpy as np
import pytest
import torch
import vocab_helpers
from transformers import AutoModelForCausalLM, AutoTokenizer

pytestmark = pytest.mark.interop


@pytest.fixture(scope="module")
def with_bytes(tmp_path_factory):
    """A causal model with a tokenizer as Llama 2 has it: BPE of characters that falls back to bytes."""
    tokenizer = vocab_helpers.fast_tokenizer("bpe fallback", eos_token="[SEP]", bos_token="[CLS]", model_max_length=40)
    settings = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
    return interop_helpers.shrunk(tmp_path_factory.mktemp("bytes"), "llama", tokenizer, 367, **settings)


def tokens_of(tokenizer: Any) -> list[str]:
    """As a converter lists them: by id, from 0 on without a gap."""
    return tokenizer.convert_ids_to_tokens(range(len(tokenizer)))


def check_inputs(pair: interop_helpers.Pair, tokens: list[str]) -> None:
    """One token for each row of the embedding, none made up, and every id of the configs among them."""
    config = pair.small_model.config
    assert len(tokens) == len(set(tokens)) == pair.vocab_map.size == config.vocab_size
    assert sorted(pair.small_tokenizer.get_vocab().values()) == list(range(len(tokens)))  # a gap is filled with [PAD17]
    shapes = {name: tuple(tensor.shape) for name, tensor in pair.small_model.state_dict().items()}
    assert shapes["model.embed_tokens.weight"][0] == shapes["lm_head.weight"][0] == len(tokens)
    assert not (pair.small / "added_tokens.json").exists()  # it would be read for further tokens
    for part in (config, pair.small_model.generation_config):
        for name in ("bos_token_id", "eos_token_id"):
            token_id, before = getattr(part, name), getattr(pair.original_model.config, name)
            assert tokens[token_id] == pair.original_tokenizer.convert_ids_to_tokens(before)


def test_inputs_of_a_byte_level_tokenizer(causal, tool, record_property):
    tool("gguf", "inputs of a shrunk model with byte-level BPE: tokens, types, merges, special ids, shapes")
    record_property("result", "consistent")
    import gguf

    assert gguf.vocab.BpeVocab(causal.small).vocab_size == causal.vocab_map.size
    tokens = tokens_of(causal.small_tokenizer)
    check_inputs(causal, tokens)
    special = gguf.SpecialVocab(causal.small, load_merges=True, n_vocab=len(tokens))
    merges = [merge.split(" ") for merge in special.merges]
    assert len(merges) > 20 and all({left, right, left + right} <= set(tokens) for left, right in merges)
    assert set(gguf.SpecialVocab(causal.original, load_merges=True).merges) > set(special.merges)
    for name, token_id in special.special_token_ids.items():
        assert token_id == getattr(causal.small_tokenizer, f"{name}_token_id")
    assert {"bos", "eos", "unk", "pad"} <= special.special_token_ids.keys()


def test_inputs_of_a_tokenizer_with_byte_fallback(with_bytes, tool, record_property):
    tool("gguf", "inputs of a shrunk model with byte fallback, by `LlamaHfVocab`: tokens, types, special ids, shapes")
    record_property("result", "consistent")
    import gguf

    vocab = gguf.LlamaHfVocab(with_bytes.small)
    entries = list(vocab.all_tokens())
    tokens = [text.decode() for text, _, _ in entries]
    check_inputs(with_bytes, tokens_of(with_bytes.small_tokenizer))
    assert vocab.vocab_size == len(entries) == with_bytes.vocab_map.size
    kinds = {text: kind for text, (_, _, kind) in zip(tokens, entries, strict=True)}
    assert sum(kind == gguf.TokenType.BYTE for kind in kinds.values()) == 256
    assert {kinds[text] for text in ("[CLS]", "[SEP]", "[MASK]", "[UNK]")} == {gguf.TokenType.CONTROL}
    special = gguf.SpecialVocab(with_bytes.small, n_vocab=len(tokens))
    assert special.special_token_ids["eos"] == with_bytes.small_tokenizer.eos_token_id


def test_a_written_file_is_read_back(causal, tmp_path, tool):
    tool("gguf transformers", "a shrunk model written as GGUF, read by `from_pretrained(gguf_file=)`: logits, token ids")
    write_gguf(causal.small, causal.small_model, tmp_path / "model.gguf")
    model = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    inputs = causal.small_tokenizer(interop_helpers.TEXTS[:8], padding=True, return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, causal.small_model(**inputs).logits, rtol=1e-4, atol=1e-4)
    for text in interop_helpers.TEXTS:
        plain = {"add_special_tokens": False}  # GGUF knows of a first and a last token, not of other templates
        assert tokenizer(text, **plain)["input_ids"] == causal.small_tokenizer(text, **plain)["input_ids"]


def write_gguf(folder: Path, model: Any, file: Path) -> None:
    """The Llama model of the folder in fp32, with a byte-level tokenizer."""
    import gguf

    config = model.config
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens, special = tokens_of(tokenizer), set(tokenizer.all_special_tokens)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL for token in tokens])
    gguf.SpecialVocab(folder, load_merges=True, n_vocab=len(tokens)).add_to_gguf(writer)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        array = tensor.float().numpy()
        if name.endswith(("q_proj.weight", "k_proj.weight")):  # llama.cpp rotates neighbours, transformers halves
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            array = array.reshape(heads, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
