from __future__ import annotations

import copy
import logging

import pytest
import vocab_helpers as helpers
from transformers import (
    BartConfig,
    BertConfig,
    Cohere2VisionConfig,
    Gemma3nTextConfig,
    GenerationConfig,
    LlavaConfig,
    Qwen2_5OmniConfig,
    SeamlessM4TConfig,
    XLMConfig,
)

from hf_glmd.errors import UsageError
from hf_glmd.models.config_ids import is_token_name, referenced_ids, update_config_ids
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
    update_config_ids(config, MAP, table_rows=V)
    assert config.vocab_size == 256
    update_config_ids(config, MAP, table_rows=256)
    assert config.vocab_size == 6
    config = LlavaConfig(text_config={"model_type": "llama", "vocab_size": 256, "bos_token_id": 10, "eos_token_id": 20})
    update_config_ids(config, MAP)  # what it says about its table is believed
    assert (config.text_config.vocab_size, config.text_config.eos_token_id) == (6, 2)


def test_a_per_layer_table_is_cut_to_the_rows_it_has():
    config = Gemma3nTextConfig(vocab_size=V, vocab_size_per_layer_input=25, pad_token_id=0, bos_token_id=10, eos_token_id=20)
    update_config_ids(config, MAP)
    assert config.vocab_size == 6 and config.vocab_size_per_layer_input == 3  # 0, 10, 20


def test_configs_nested_twice_and_beside_others():
    text = {"model_type": "qwen2_5_omni_text", "vocab_size": V, "bos_token_id": 10, "eos_token_id": 20, "pad_token_id": None}
    config = Qwen2_5OmniConfig(
        thinker_config={"text_config": text, "audio_token_index": 30, "image_token_index": 40, "video_token_index": 50},
        talker_config={"vocab_size": 97, "tts_codec_start_token_id": 11, "audio_token_index": 12},
    )
    for name, value in vars(config.thinker_config).items():
        if name.endswith("_token_id") and isinstance(value, int):
            setattr(config.thinker_config, name, 0)
    update_config_ids(config, MAP)
    thinker = config.thinker_config
    assert (thinker.text_config.vocab_size, thinker.text_config.eos_token_id) == (6, 2)
    assert (thinker.audio_token_id, thinker.image_token_id, thinker.video_token_id) == (3, 4, 5)
    assert config.talker_config.tts_codec_start_token_id == 11 and config.talker_config.audio_token_id == 12


def test_an_id_of_a_setting_that_must_be_a_number_stays_beyond_the_vocabulary(caplog):
    strict = Cohere2VisionConfig(text_config={"model_type": "llama", "vocab_size": V, "eos_token_id": 10, "bos_token_id": 20})
    assert strict.image_token_id == 255036
    with caplog.at_level(logging.WARNING):
        update_config_ids(strict, MAP)
    assert strict.image_token_id == 255036 and "255036" in caplog.text


def test_speech_settings():
    config = GenerationConfig(
        forced_decoder_ids=[[1, None], [2, 50]],
        task_to_id={"transcribe": 10},
        text_decoder_lang_to_code_id={"deu": 20},
        t2u_lang_code_to_id={"deu": 11},
        id_to_text={"30": "x", "31": "y"},
        max_initial_timestamp_index=11,
    )
    update_config_ids(config, MAP)
    assert config.forced_decoder_ids == [[1, None], [2, 5]] and config.task_to_id == {"transcribe": 1}
    assert config.text_decoder_lang_to_code_id == {"deu": 2} and config.t2u_lang_code_to_id == {"deu": 11}
    assert config.id_to_text == {"3": "x"} and config.max_initial_timestamp_index == 11
    with pytest.raises(UsageError, match=r"time stamps\)=39 names a removed token"):
        update_config_ids(GenerationConfig(no_timestamps_token_id=40), MAP)


def test_the_ids_a_config_needs():
    config = LlavaConfig(
        text_config={"model_type": "llama", "vocab_size": V, "eos_token_id": [20, 70], "bos_token_id": 10, "pad_token_id": None},
        vision_config={"model_type": "clip_vision_model"},
        image_token_index=33,
    )
    config.task_specific_params = {"summary": {"bos_token_id": 44, "max_length": 99}}
    assert referenced_ids(config, V) == {
        10: "text_config.bos_token_id",
        20: "text_config.eos_token_id",
        33: "image_token_index",
        44: "task_specific_params.summary.bos_token_id",
        70: "text_config.eos_token_id",
    }
    assert referenced_ids(config, 40) == {
        10: "text_config.bos_token_id",
        20: "text_config.eos_token_id",
        33: "image_token_index",
    }
    config.text_config.vocab_size = 256  # a padded table
    assert 70 in referenced_ids(config, V) and 70 not in referenced_ids(config, V, table_rows=V)


def test_the_ids_a_generation_config_needs():
    config = GenerationConfig(
        eos_token_id=[10, 20],
        pad_token_id=-1,
        suppress_tokens=[30],
        begin_suppress_tokens=[31],
        bad_words_ids=[[32]],
        sequence_bias=[[[33], -2.0]],
        force_words_ids=[[50], [[51], [52, 53]]],
        forced_decoder_ids=[[1, None], [2, 60]],
        lang_to_id={"<|en|>": 70, "<|de|>": 71},
        decoder_start_token_id=50_000,
        no_timestamps_token_id=V - 3,
        t2u_eos_token_id=90,
    )
    needed = referenced_ids(config, V)
    assert list(needed) == [10, 20, 50, 51, 52, 53, 60, 70, 71, V - 4, V - 3, V - 2, V - 1]
    assert needed[52] == "force_words_ids" and needed[60] == "forced_decoder_ids" and "time stamps" in needed[V - 1]
    # a cut that keeps them all, and only such a one, goes through
    update_config_ids(copy.deepcopy(config), VocabMap(list(needed), V))
    for token_id in needed:
        with pytest.raises(UsageError, match=rf"keep=\[{token_id}\]"):
            update_config_ids(copy.deepcopy(config), VocabMap([one for one in needed if one != token_id], V))


def test_a_needed_id_that_was_removed_is_refused():
    config = BertConfig(vocab_size=V, bos_token_id=10, eos_token_id=11)
    with pytest.raises(UsageError, match=r"eos_token_id=11 names a removed token.*keep=\[11\]"):
        update_config_ids(config, MAP)
    assert (config.vocab_size, config.bos_token_id) == (V, 10)  # nothing is changed


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
        ("tts_bos_token_id", True),
        ("codec_eos_token_id", False),
        ("forced_bos_token_id", True),
        ("video_token_index", True),
        ("blank_token_id", True),
        ("fullatt_block_indexes", False),
        ("semantic_loss_ignore_index", False),
        ("max_initial_timestamp_index", False),
        ("alignment_heads", False),
        ("pad_index", True),
        ("tts_codec_bos_token_id", False),
        ("num_tokens", False),
        ("max_new_tokens", False),
        ("token_type_ids", False),
        ("type_vocab_size", False),
    ],
)
def test_names(name, is_one):
    assert is_token_name(name) == is_one
