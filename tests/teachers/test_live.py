"""The teacher in the student's vocabulary."""

import json

import pytest
import torch
import vocab_helpers

from hf_glmd import LiveTeacher, UsageError
from hf_glmd.models.loading import load_word_model

SMALL_IDS = torch.randint(0, 97, (2, 6), generator=torch.Generator().manual_seed(0))
EVERYWHERE = torch.ones(2, 6, dtype=torch.bool)


@torch.no_grad()
def test_it_reads_small_ids_and_predicts_small_tokens():
    model, vocab_map = vocab_helpers.tiny_model("bert"), vocab_helpers.tiny_map()
    teacher = LiveTeacher(model, vocab_map)
    original = torch.tensor(vocab_map.kept_ids)[SMALL_IDS]
    expected = model(input_ids=original).logits[..., vocab_map.kept_ids].reshape(12, 97)
    torch.testing.assert_close(teacher.logits({"input_ids": SMALL_IDS}, EVERYWHERE), expected, rtol=1e-5, atol=1e-5)
    assert teacher.size == 97


def test_it_is_frozen_and_evaluated():
    model = vocab_helpers.tiny_model("bert").train()
    teacher = LiveTeacher(model)
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert not teacher.logits({"input_ids": SMALL_IDS}, EVERYWHERE).requires_grad


def test_a_table_longer_than_the_tokenizer_does_no_harm():
    vocab_map = vocab_helpers.tiny_map()
    model = vocab_helpers.tiny_model("bert", vocab_size=223)
    assert LiveTeacher(model, vocab_map).logits({"input_ids": SMALL_IDS}, EVERYWHERE).shape == (12, 97)


def test_a_map_of_a_larger_vocabulary_is_refused():
    with pytest.raises(UsageError, match="from 211 tokens, the teacher predicts 199"):
        LiveTeacher(vocab_helpers.tiny_model("bert", vocab_size=199), vocab_helpers.tiny_map())


@pytest.mark.parametrize("name", ["bert", "gpt2", "t5"])
def test_it_is_loaded_by_what_it_predicts(tmp_path, name):
    model = vocab_helpers.tiny_model(name)
    model.save_pretrained(tmp_path)
    assert type(load_word_model(tmp_path)) is type(model)


def test_missing_folders_and_classifiers_are_refused(tmp_path):
    with pytest.raises(UsageError, match="no model at"):
        load_word_model(tmp_path / "nothing")
    vocab_helpers.tiny_model("bert-classifier").save_pretrained(tmp_path / "classifier")
    with pytest.raises(UsageError, match="BertForSequenceClassification, which predicts no words"):
        load_word_model(tmp_path / "classifier")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text(json.dumps({"model_type": "no-such-type"}))
    with pytest.raises(UsageError, match="no model at"):
        load_word_model(tmp_path / "broken")
