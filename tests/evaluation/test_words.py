"""What is measured of a model."""

import pytest
import torch
import training_helpers as helpers
import vocab_helpers

from hf_glmd import LiveTeacher, UsageError, WordPredictionCollator
from hf_glmd.evaluation.words import compare_word_predictions, masked_word_accuracy, model_facts
from hf_glmd.losses.reference import dense_word_prediction_loss
from hf_glmd.utils.system import hardware, versions


@pytest.mark.parametrize("visible", [False, True])
def test_scores_are_those_of_whole_forwards(visible):
    student, teacher, rows = helpers.student(), helpers.teacher(), helpers.rows()
    options = {"mlm_probability": 0.4, "batch_size": 5, "visible": visible}
    scores = compare_word_predictions(student, LiveTeacher(teacher), helpers.TOKENIZER, rows, **options)
    batch = WordPredictionCollator(helpers.TOKENIZER, "masked", 0.4)([{"input_ids": ids} for ids in rows["input_ids"]])
    gold = WordPredictionCollator(helpers.TOKENIZER, "all", 0.0)([{"input_ids": ids} for ids in rows["input_ids"]])["input_ids"]
    chosen = batch.pop("prediction_mask")
    if visible:
        batch["input_ids"] = gold
    with torch.no_grad():
        one, two = (model(**batch).logits[chosen].double() for model in (student.eval(), teacher))
    assert scores.positions == int(chosen.sum()) > 30
    assert scores.accuracy == pytest.approx((one.argmax(-1) == gold[chosen]).double().mean().item())
    assert scores.teacher_accuracy == pytest.approx((two.argmax(-1) == gold[chosen]).double().mean().item())
    assert scores.agreement == pytest.approx((one.argmax(-1) == two.argmax(-1)).double().mean().item())
    assert scores.kl == pytest.approx(dense_word_prediction_loss(one, two, 1.0).mean().item(), rel=1e-4)


def test_they_do_not_depend_on_the_batch_nor_on_the_order_of_the_rows():
    student, rows = helpers.student(), helpers.rows()
    first = masked_word_accuracy(student, helpers.TOKENIZER, rows, batch_size=3)
    assert masked_word_accuracy(student, helpers.TOKENIZER, rows.shuffle(seed=1), batch_size=23) == first
    assert first.kl is None and first.teacher_accuracy is None


def test_the_model_is_left_as_it_was():
    student = helpers.student().train()
    masked_word_accuracy(student, helpers.TOKENIZER, helpers.rows())
    assert student.training


def test_nothing_to_score_is_refused():
    with pytest.raises(UsageError, match="no token of 23 rows"):
        masked_word_accuracy(helpers.student(), helpers.TOKENIZER, helpers.rows(), mlm_probability=1e-9)
    causal = vocab_helpers.generic_tokenizer()
    causal.mask_token = None
    with pytest.raises(UsageError, match="no mask token"):
        masked_word_accuracy(helpers.student(), causal, helpers.rows())


@pytest.mark.parametrize(("name", "tables"), [("bert", 1), ("bert-untied", 2), ("t5", 1)])
def test_parameters_are_counted_once(name, tables, monkeypatch):
    monkeypatch.setattr("hf_glmd.evaluation.words.tokens_per_second", lambda models, size, length: [1.0 * size * length])
    model = vocab_helpers.tiny_model(name)
    [facts] = model_facts([model], ["m"], [1, 3], 999)
    assert facts.embedding_parameters == tables * vocab_helpers.V * 16
    assert facts.parameters == sum(p.numel() for p in model.parameters())
    assert facts.vocabulary == vocab_helpers.V
    if name == "bert":
        assert facts.layers == 3 and facts.speed_length == 40 and facts.tokens_per_second == {1: 40.0, 3: 120.0}


def test_speeds_are_measured_in_turns(monkeypatch):
    monkeypatch.setattr("hf_glmd.evaluation.words.SPEED_SECONDS", 0.02)
    models, order = [vocab_helpers.tiny_model("bert"), vocab_helpers.tiny_model("bert", num_hidden_layers=1)], []
    for number, model in enumerate(models):
        model.register_forward_hook(lambda *_, number=number: order.append(number))
    facts = model_facts(models, ["m", "n"], [2], 8)
    assert all(one.tokens_per_second[2] > 100 for one in facts) and [one.name for one in facts] == ["m", "n"]
    assert len(order) > 4 and order == [0, 1] * (len(order) // 2)


def test_machine_and_versions_have_names():
    assert "core" in hardware() or torch.cuda.is_available()
    assert set(versions("torch")) == {"python", "torch"}
