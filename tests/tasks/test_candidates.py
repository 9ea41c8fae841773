"""Scores of candidates, against one forward pass for each of them."""

import datasets
import numpy as np
import pytest
import tasks_helpers as helpers
import torch
import vocab_helpers
from torch.nn import functional as F

from hf_glmd import ClozeTask
from hf_glmd.data.collators import CandidateCollator
from hf_glmd.tasks.candidates import candidate_log_probs, label_loss
from hf_glmd.tasks.examples import answer_ids
from hf_glmd.tasks.scoring import score_candidates

BYTES = helpers.byte_level_tokenizer()
TEXTS = ["jump read", "play", "look call turn help", "rest"]
OPTIONS = [["walk", "talk read", "xyz"], ["jump", "help"], ["walking talked", "read 42", "rest", "mark"], ["zzz 1"]]
RIGHT = [["talk read"], ["help", "jump"], ["mark"], ["zzz 1"]]
ROWS = datasets.Dataset.from_dict({"text": TEXTS, "options": OPTIONS, "gold": RIGHT})
TASK = ClozeTask("choose", "call {text} . {mask}", candidates="options", label_column="gold")
MODELS = {"bert": helpers.TOKENIZER, "roberta": helpers.TOKENIZER, "gpt2": BYTES, "llama": BYTES}


def setting(name: str, **fields):
    tokenizer = MODELS[name]
    model = helpers.opinionated(name, len(tokenizer))
    task = ClozeTask(**{"name": "choose", "pattern": TASK.pattern, "candidates": "options", "label_column": "gold", **fields})
    return tokenizer, model, task.encode(ROWS, tokenizer, 60, labelled=True)


def alone(model, tokenizer, text: str, option: str) -> torch.Tensor:
    """The log-probability of a candidate's tokens [L], in a pass of its own and without any of the code that is tested."""
    (ids,) = answer_ids([option], True, tokenizer)
    context = tokenizer(f"call {text} .", add_special_tokens=False)["input_ids"]
    if tokenizer.mask_token_id is None:
        sequence = torch.tensor([[tokenizer.bos_token_id, *context, *ids]])
        predicted = model(input_ids=sequence).logits[0, -len(ids) - 1 : -1]
    else:
        hidden = [tokenizer.mask_token_id] * len(ids)
        sequence = torch.tensor([[tokenizer.cls_token_id, *context, *hidden, tokenizer.sep_token_id]])
        predicted = model(input_ids=sequence).logits[0, -len(ids) - 1 : -1]
    return predicted.log_softmax(-1)[torch.arange(len(ids)), torch.tensor(ids)]


@pytest.mark.parametrize("name", MODELS)
def test_batched_scores_are_those_of_each_candidate_alone(name):
    tokenizer, model, rows = setting(name)
    batch = CandidateCollator(tokenizer)(list(rows))
    scores = candidate_log_probs(helpers.logits_at(model), batch)
    assert scores.shape == (4, 4) and (batch["candidate_ids"] >= 0).sum(-1).max() > 1
    for text, options, found in zip(TEXTS, OPTIONS, scores, strict=True):
        expected = torch.stack([alone(model, tokenizer, text, option).sum() for option in options])
        torch.testing.assert_close(found[: len(options)], expected, rtol=1e-4, atol=1e-4)
        assert torch.isneginf(found[len(options) :]).all()


def test_the_mean_over_the_tokens_if_asked_for():
    tokenizer, model, rows = setting("bert", length_normalised=True)
    scores = candidate_log_probs(helpers.logits_at(model), CandidateCollator(tokenizer)(list(rows)))
    expected = torch.stack([alone(model, tokenizer, TEXTS[2], option).mean() for option in OPTIONS[2]])
    torch.testing.assert_close(scores[2], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_single_tokens_take_one_row_and_score_the_same(name):
    tokenizer, model = MODELS[name], helpers.opinionated(name, len(MODELS[name]))
    words = ["walk", "talk"] if name == "bert" else ["yes", "no"]
    cheap = ClozeTask("verbs", TASK.pattern, {"a": words[0], "b": words[1]}, label_column="letter")
    data = ROWS.add_column("letter", ["a", "b", "b", "a"]).remove_columns("options").add_column("options", [words] * 4)
    rows = cheap.encode(data, tokenizer, 60, labelled=True)
    assert set(rows.column_names) == {"input_ids", "blank", "candidate_ids", "answer"}
    data = data.remove_columns("gold").add_column("gold", [words[0], words[1], words[1], words[0]])
    general = TASK.encode(data, tokenizer, 60, labelled=True)
    one, other = (CandidateCollator(tokenizer)(list(part)) for part in (rows, general))
    assert torch.equal(one["right"], other["right"])
    scores = [candidate_log_probs(helpers.logits_at(model), batch) for batch in (one, other)]
    torch.testing.assert_close(scores[0], scores[1])
    assert len(one["input_ids"]) == len(other["input_ids"]) == 4


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_neither_batch_size_nor_company_changes_a_score(name):
    tokenizer, model, rows = setting(name)
    ask = helpers.logits_at(model)
    tables = [score_candidates(ask, rows, tokenizer, helpers.CPU, size) for size in (1, 3, 64)]
    np.testing.assert_allclose(tables[0], tables[1], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(tables[0], tables[2], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_gradients_are_those_of_each_candidate_alone(name):
    tokenizer, model, rows = setting(name)
    batch = CandidateCollator(tokenizer)(list(rows))
    label_loss(candidate_log_probs(helpers.logits_at(model), batch), batch["right"]).sum().backward()
    found = {key: value.grad.clone() for key, value in model.named_parameters() if value.grad is not None}
    model.zero_grad()
    for text, options, right in zip(TEXTS, OPTIONS, RIGHT, strict=True):
        scores = torch.stack([alone(model, tokenizer, text, option).sum() for option in options])
        chosen = torch.stack([scores[options.index(option)] for option in right])
        (scores.logsumexp(0) - chosen.logsumexp(0)).backward()
    expected = {key: value.grad for key, value in model.named_parameters() if value.grad is not None}
    assert found.keys() == expected.keys()
    largest = max(float(value.abs().max()) for value in expected.values())
    assert largest > 1e-3
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-3, atol=1e-4 * largest, msg=key)


def test_one_right_answer_costs_its_cross_entropy():
    torch.manual_seed(0)
    scores = torch.randn(5, 4).masked_fill(torch.arange(4) > torch.tensor([[3], [3], [2], [3], [1]]), -torch.inf)
    answers = torch.tensor([0, 3, 2, 1, 1])
    torch.testing.assert_close(
        label_loss(scores, F.one_hot(answers, 4).bool()), F.cross_entropy(scores, answers, reduction="none")
    )


def test_examples_come_first_in_a_batch():
    """The Trainer counts the examples of a batch by its first tensor."""
    batch = CandidateCollator(helpers.TOKENIZER)(list(TASK.encode(ROWS, helpers.TOKENIZER, 60)))
    assert len(next(iter(batch.values()))) == 4 < len(batch["input_ids"])
    assert "right" not in batch
    assert int(batch["prediction_mask"].sum()) == int(batch["candidate_positions"].max()) + 1


def test_a_model_without_opinions_prefers_none_of_one_length():
    tokenizer, model, rows = setting("bert")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    scores = score_candidates(helpers.logits_at(model), rows, tokenizer, helpers.CPU)
    lengths = [len(ids) for ids in answer_ids(OPTIONS[0], True, tokenizer)]
    np.testing.assert_allclose(scores[0, :3], [-length * np.log(vocab_helpers.V) for length in lengths], rtol=1e-5)


def test_single_tokens_of_different_numbers_are_padded():
    mask = helpers.TOKENIZER.mask_token_id
    rows = [
        {"input_ids": [1, mask, 2], "blank": 1, "candidate_ids": [5, 6, 7], "answer": 2},
        {"input_ids": [1, 9, mask, 2], "blank": 2, "candidate_ids": [8, 9], "answer": 0},
    ]
    batch = CandidateCollator(helpers.TOKENIZER)(rows)
    assert batch["candidate_ids"].tolist() == [[5, 6, 7], [8, 9, -100]]
    assert batch["candidate_mask"].tolist() == [[True, True, True], [True, True, False]]
    assert batch["prediction_mask"].nonzero().tolist() == [[0, 1], [1, 2]]
    assert batch["right"].nonzero().tolist() == [[0, 2], [1, 0]]
