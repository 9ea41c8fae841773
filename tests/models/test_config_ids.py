from __future__ import annotations

import logging

import pytest
import vocab_helpers as helpers
from transformers import BartConfig, BertConfig, GenerationConfig, LlavaConfig, SeamlessM4TConfig, XLMConfig

from hf_glmd.errors import UsageError
from hf_glmd.models.config_ids import is_token_name, update_config_ids
from hf_glmd.vocab.vocab_map import VocabMap

V = helpers.V
KEPT = [0, 10, 20, 30, 40, 50]  # 10 * new id
MAP = VocabMap(KEPT, V)


def test_every_named_id_moves_and_is_reported():
    config = BartConfig(
        vocab_size=V, pad_token_id=10, bos_token_id=20, eos_token_id=[30, 40], decoder_start_token_id=30, forced_eos_token_id=0
    )
    changes = update_config_ids(config, MAP)
    assert (config.vocab_size, config.pad_token_id, config.bos_token_id) == (6, 1, 2)
    assert (config.eos_token_id, config.decoder_start_token_id, config.forced_eos_token_id) == ([3, 4], 3, 0)
    assert {change.name for change in changes} == {
        "vocab_size",
        "pad_token_id",
        "bos_token_id",
        "eos_token_id",
        "decoder_start_token_id",
    }
    assert "pad_token_id: 10 -> 1" in map(str, changes)


def test_lists_of_all_kinds_in_a_generation_config():
    config = GenerationConfig(
        eos_token_id=[10, 20],
        pad_token_id=0,
        suppress_tokens=[30, 11, -1],
        begin_suppress_tokens=[40],
        bad_words_ids=[[10, 20], [11, 20]],
        sequence_bias=[[[10, 50], -2.0], [[11], 1.0]],
        force_words_ids=[[10], [[20], [30]]],
        forced_decoder_ids=[[1, 50]],
        lang_to_id={"<|en|>": 20},
    )
    update_config_ids(config, MAP)
    assert config.eos_token_id == [1, 2] and config.pad_token_id == 0
    assert config.suppress_tokens == [3, -1] and config.begin_suppress_tokens == [4]
    assert config.bad_words_ids == [[1, 2]] and config.sequence_bias == [[[1, 5], -2.0]]
    assert config.force_words_ids == [[1], [[2], [3]]]
    assert config.forced_decoder_ids == [[1, 5]] and config.lang_to_id == {"<|en|>": 2}
    config = GenerationConfig(bad_words_ids=[[11]])
    config.sequence_bias = {(10, 20): 1.0}
    update_config_ids(config, MAP)
    assert config.bad_words_ids is None and config.sequence_bias == {(1, 2): 1.0}


def test_nested_configs_and_image_tokens():
    config = LlavaConfig(
        text_config={"model_type": "llama", "vocab_size": V, "eos_token_id": 20, "bos_token_id": 10, "pad_token_id": None},
        image_token_index=50,
    )
    update_config_ids(config, MAP)
    assert config.image_token_id == 5
    assert (config.text_config.vocab_size, config.text_config.eos_token_id, config.text_config.bos_token_id) == (6, 2, 1)


def test_task_specific_params_move():
    config = BertConfig(vocab_size=V)
    config.task_specific_params = {"summarization": {"bos_token_id": 20, "max_length": 20}}
    update_config_ids(config, MAP)
    assert config.task_specific_params == {"summarization": {"bos_token_id": 2, "max_length": 20}}


def test_other_vocabularies_stay():
    config = SeamlessM4TConfig(vocab_size=V, pad_token_id=10, bos_token_id=20, eos_token_id=30, decoder_start_token_id=30)
    before = (config.t2u_vocab_size, config.t2u_bos_token_id, config.t2u_eos_token_id)
    update_config_ids(config, MAP)
    assert (config.t2u_vocab_size, config.t2u_bos_token_id, config.t2u_eos_token_id) == before
    assert config.vocab_size == 6 and config.eos_token_id == 3


def test_old_style_names():
    config = XLMConfig(n_words=V, pad_index=20, eos_index=10, bos_index=0, unk_index=30, mask_index=50)
    update_config_ids(config, MAP)
    assert (config.n_words, config.pad_index, config.eos_index, config.unk_index, config.mask_index) == (6, 2, 1, 3, 5)


def test_a_padded_table_counts_as_the_vocabulary():
    config = BertConfig(vocab_size=256, pad_token_id=0)
    update_config_ids(config, MAP)
    assert config.vocab_size == 256
    update_config_ids(config, MAP, table_rows=256)
    assert config.vocab_size == 6


def test_a_needed_id_that_was_removed_is_refused():
    with pytest.raises(UsageError, match=r"eos_token_id=11 names a removed token.*keep=\[11\]"):
        update_config_ids(BertConfig(vocab_size=V, eos_token_id=11), MAP)


def test_an_id_of_no_token_becomes_none_with_a_warning(caplog):
    config = BertConfig(vocab_size=V, pad_token_id=0, bos_token_id=50256, eos_token_id=[10, 50256])
    config.some_token_id = -1
    with caplog.at_level(logging.WARNING):
        update_config_ids(config, MAP)
    assert config.bos_token_id is None and config.eos_token_id == [1] and config.some_token_id == -1
    assert "50256" in caplog.text


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("eos_token_id", True),
        ("image_token_index", True),
        ("visual_indicator_token_ids", True),
        ("suppress_tokens", True),
        ("boi_token_id", True),
        ("t2u_eos_token_id", False),
        ("codebook_pad_token_id", False),
        ("tts_codec_bos_token_id", False),
        ("num_tokens", False),
        ("max_new_tokens", False),
        ("token_type_ids", False),
        ("type_vocab_size", False),
    ],
)
def test_names(name, is_one):
    assert is_token_name(name) == is_one
