"""Logits only where they are wanted."""

import pytest
import torch
import vocab_helpers

from hf_glmd import UsageError
from hf_glmd.models.heads import HeadRows, answer_logits, is_masked_lm, output_embedding, word_logits

IDS = torch.randint(5, vocab_helpers.V, (3, 7), generator=torch.Generator().manual_seed(0))
POSITIONS = torch.rand(3, 7, generator=torch.Generator().manual_seed(1)) < 0.4
ROWS = torch.tensor([0, 3, 50, 210, 7])


@pytest.mark.parametrize("name", ["bert", "bert-untied", "roberta", "albert", "electra", "distilbert", "gpt2", "llama", "gemma2"])
@torch.no_grad()
def test_they_are_those_of_the_whole_forward(name):
    model = vocab_helpers.tiny_model(name)
    whole = model(input_ids=IDS).logits
    some = word_logits(model, {"input_ids": IDS}, POSITIONS, HeadRows(model, ROWS))
    torch.testing.assert_close(some, whole[POSITIONS][:, ROWS], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(word_logits(model, {"input_ids": IDS}), whole)
    assert torch.equal(model(input_ids=IDS).logits, whole), "the model must be left as it was"


def test_the_head_is_restored_when_the_forward_fails():
    model = vocab_helpers.tiny_model("bert")
    with pytest.raises(ValueError):
        word_logits(model, {"no_such_input": IDS}, POSITIONS)
    assert model(input_ids=IDS).logits.shape == (3, 7, vocab_helpers.V)


def test_gradients_reach_body_and_tied_table():
    model = vocab_helpers.tiny_model("bert")
    word_logits(model, {"input_ids": IDS}, POSITIONS).sum().backward()
    grad = model.get_input_embeddings().weight.grad.clone()
    model.zero_grad()
    model(input_ids=IDS).logits[POSITIONS].sum().backward()
    torch.testing.assert_close(grad, model.get_input_embeddings().weight.grad)


def test_logits_are_wide_under_autocast_and_from_narrow_weights():
    model = vocab_helpers.tiny_model("bert")
    with torch.autocast("cpu", torch.bfloat16):
        assert word_logits(model, {"input_ids": IDS}, POSITIONS).dtype == torch.float32
    assert word_logits(model.bfloat16(), {"input_ids": IDS}, POSITIONS).dtype == torch.float32
    assert word_logits(model.double(), {"input_ids": IDS}, POSITIONS).dtype == torch.float64


def test_a_model_without_words_is_refused():
    with pytest.raises(UsageError, match="BertForSequenceClassification predicts no words"):
        output_embedding(vocab_helpers.tiny_model("bert-classifier"))


@pytest.mark.parametrize(
    ("name", "expected"), [("bert", True), ("bert-pretraining", False), ("roberta", True), ("gpt2", False), ("t5", False)]
)
def test_models_that_fill_blanks_are_known(name, expected):
    assert is_masked_lm(vocab_helpers.tiny_model(name)) is expected


def test_missing_candidates_are_ruled_out():
    logits = torch.arange(8.0).reshape(2, 4)
    found = answer_logits(logits, torch.tensor([[3, 0], [1, -100]]))
    assert found.tolist() == [[3.0, 0.0], [5.0, -torch.inf]]
