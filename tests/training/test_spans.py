"""Question answerers as student and teacher: soft labels of where an answer begins and where it ends."""

import datasets
import numpy as np
import pytest
import torch
import training_helpers as helpers
import vocab_helpers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForQuestionAnswering, DefaultDataCollator

from hf_glmd import GLMDTrainer, build_student
from hf_glmd.errors import UsageError
from hf_glmd.training.datasets import class_rows
from hf_glmd.training.objectives.spans import Spans

QUESTIONS, CONTEXTS = vocab_helpers.texts(23), [" ".join(vocab_helpers.texts(2, seed)) for seed in range(23)]
QUIET = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def reader(scale=1.0, name="BertForQuestionAnswering", **options):
    torch.manual_seed(int(scale))
    shape = (
        vocab_helpers._BART | vocab_helpers._IDS | {"dropout": 0.0} if name.startswith("Bart") else vocab_helpers._SMALL | QUIET
    )
    model = vocab_helpers.tiny_class(name, shape | {"num_labels": 2} | options, vocab_helpers.V)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
        for parameter in model.qa_outputs.parameters():
            parameter.normal_(std=0.3 * scale)
    return model


def teacher(**options):
    return reader(**{"scale": 3.0, "hidden_size": 24, "num_hidden_layers": 2, **options})


def table(count=23):
    return datasets.Dataset.from_dict({"question": QUESTIONS[:count], "context": CONTEXTS[:count], "id": list(range(count))})


COLUMNS = {"text_column": "question", "pair_column": "context"}


def trainer(folder, **options) -> GLMDTrainer:
    parts = {"model": reader(), "teacher": teacher(), "train_dataset": table(), "eval_dataset": table(11)}
    return helpers.trainer(folder, **{"objective": "soft_label", "max_length": 30, **COLUMNS, **parts, **options})


def reference(student, other, rows, temperature) -> float:
    """In fp64, a row at a time, by the definition of a cross-entropy."""
    total = 0.0
    for ids in rows:
        with torch.no_grad():
            ours, theirs = (model.double().eval()(input_ids=torch.tensor([ids])) for model in (student, other))
        for end in ("start_logits", "end_logits"):
            logits = [getattr(output, end)[0].numpy() / temperature for output in (ours, theirs)]
            chances = [np.exp(one) / np.exp(one).sum() for one in logits]
            total -= temperature**2 * float((chances[1] * np.log(chances[0])).sum())
    return total / len(rows)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_loss_is_that_of_the_formula_however_the_batch_is_cut(tmp_path, temperature):
    rows = class_rows(table(11), helpers.TOKENIZER, 30, "question", "context", questions=True)
    logs, wanted = [], reference(reader(), teacher(), rows["input_ids"], temperature)
    for batch, accumulation in ((6, 1), (2, 3)):
        options = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
        run = trainer(tmp_path, temperature=temperature, **options, per_device_eval_batch_size=batch, max_steps=3)
        assert run.evaluate()["eval_loss"] == pytest.approx(wanted, rel=1e-5)
        run.train()
        logs.append([entry["loss"] for entry in run.state.log_history if "loss" in entry])
    assert logs[1] == pytest.approx(logs[0], rel=1e-4)


@settings(max_examples=15, deadline=None)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4), seed=st.integers(0, 99), more=st.integers(0, 5))
def test_padding_takes_no_part(lengths, seed, more):
    """Whatever stands there: neither in the loss nor in a gradient."""
    rng = torch.Generator().manual_seed(seed)
    mask = torch.arange(max(lengths) + more) < torch.tensor(lengths)[:, None]
    student, other = (torch.randn(len(lengths), 2, mask.shape[1], generator=rng, dtype=torch.float64) for _ in range(2))
    objective = Spans.__new__(Spans)
    objective.args = type("", (), {"temperature": 1.5})
    found = []
    for junk in (0.0, 1e6):
        parts = [torch.where(mask[:, None], part, junk).requires_grad_() for part in (student, other)]
        masked = [part.masked_fill(~mask[:, None], -torch.inf) for part in parts]
        losses = objective._losses(*masked)
        losses.sum().backward()
        assert parts[0].grad[~mask[:, None].expand_as(student)].eq(0).all() and parts[1].grad is None
        found.append(losses.detach())
    alone = [
        sum(
            -(1.5**2) * float(torch.softmax(other[row, end, :n] / 1.5, 0) @ torch.log_softmax(student[row, end, :n] / 1.5, 0))
            for end in (0, 1)
        )
        for row, n in enumerate(lengths)
    ]
    torch.testing.assert_close(found[0], torch.tensor(alone, dtype=torch.float64))
    torch.testing.assert_close(found[1], found[0])


def test_the_teacher_is_what_is_learnt(tmp_path):
    run = trainer(tmp_path)
    batch = run.data_collator([run.train_dataset[number] for number in range(4)])
    found = []
    for change in (1.0, 1.0, -1.0):
        with torch.no_grad():
            run.teacher.model.qa_outputs.weight.mul_(change)
        run.model.zero_grad()
        run.compute_loss(run.model.train(), batch).backward()
        found.append(torch.cat([p.grad.flatten() for p in run.model.parameters() if p.grad is not None]))
    torch.testing.assert_close(found[1], found[0])
    assert (found[2] - found[0]).norm() > 0.1 * found[0].norm()


def test_the_student_comes_to_answer_as_the_teacher(tmp_path):
    run = trainer(tmp_path, objective="span", max_steps=60, learning_rate=1e-2)
    before = run.evaluate()
    run.train()
    after = run.evaluate()
    assert after["eval_kl"] < 0.3 * before["eval_kl"] and 0 <= after["eval_agreement"] <= 1
    assert after["eval_loss"] == pytest.approx(after["eval_kl"] + after["eval_teacher_entropy"], rel=1e-4)


def test_a_smaller_student_with_a_smaller_vocabulary_is_loaded_by_transformers(tmp_path):
    vocab_map, large = vocab_helpers.tiny_map(), teacher(num_hidden_layers=3)
    large.save_pretrained(tmp_path / "teacher")
    student, same = (build_student(large, num_layers=layers, vocab=vocab_map) for layers in (1, 3))
    rows = datasets.Dataset.from_dict({"input_ids": [[10, 15, 9], [12, 50, 96, 7], [13, 14]]})
    parts = {"teacher": str(tmp_path / "teacher"), "train_dataset": rows, "eval_dataset": rows, "vocab_map": vocab_map}
    assert trainer(tmp_path, model=same, **parts).evaluate()["eval_kl"] == pytest.approx(0, abs=1e-9)
    run = trainer(tmp_path, model=student, max_steps=2, **parts)
    assert run.evaluate()["eval_kl"] > 0
    run.train()
    run.save_model(str(tmp_path / "student"))
    loaded, info = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "student", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and loaded.config.vocab_size == vocab_map.size
    ids = {"input_ids": torch.tensor([[1, 5, 9]])}
    assert loaded.eval()(**ids).start_logits.equal(run.model.eval()(**ids).start_logits)
    assert "pipeline_tag: question-answering" in (tmp_path / "student" / "README.md").read_text()


def test_encoder_decoders_and_models_without_token_types(tmp_path):
    bart = {"name": "BartForQuestionAnswering"}
    trainer(tmp_path, model=reader(**bart), teacher=reader(3.0, **bart)).train()
    small = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "max_position_embeddings": 40}
    torch.manual_seed(0)
    other = vocab_helpers.tiny_class("DistilBertForQuestionAnswering", small, vocab_helpers.V)
    types = vocab_helpers.generic_tokenizer(model_input_names=["input_ids", "token_type_ids", "attention_mask"])
    run = trainer(tmp_path, model=other, processing_class=types)
    assert "token_type_ids" in run.train_dataset.column_names
    run.train()


def test_the_question_is_whole_and_its_text_is_cut(caplog):
    rows = class_rows(table(3), helpers.TOKENIZER, 22, "question", "context", questions=True)
    for row, question in zip(rows, QUESTIONS, strict=False):
        asked = helpers.TOKENIZER(question)["input_ids"]
        assert row["input_ids"][: len(asked)] == asked and len(row["input_ids"]) <= 22
    last = class_rows(table(3), vocab_helpers.generic_tokenizer(padding_side="left"), 22, "question", "context", questions=True)
    for row, question in zip(last, QUESTIONS, strict=False):
        asked = helpers.TOKENIZER(question)["input_ids"][1:]
        assert row["input_ids"][-len(asked) :] == asked and len(row["input_ids"]) <= 22
    with pytest.raises(UsageError, match="a question of column 'question' leaves no room for its text in max_length=5"):
        class_rows(table(3), helpers.TOKENIZER, 5, "question", "context", questions=True)


def test_rows_of_other_collators_count_once_each(tmp_path):
    ids = [[5, 6, 7, 8], [9, 10, 11, 12], [13, 14, 15, 16]]
    rows = datasets.Dataset.from_dict({"input_ids": ids, "start_positions": [1, 2, 3], "end_positions": [2, 3, 3]})
    run = trainer(tmp_path, train_dataset=rows, eval_dataset=rows, data_collator=DefaultDataCollator())
    assert run.evaluate()["eval_loss"] == pytest.approx(reference(reader(), teacher(), ids, 1.0), rel=1e-5)
    run.train()


def test_several_teachers_are_averaged(tmp_path):
    run = trainer(tmp_path, teacher=[teacher(), teacher()])
    wanted = reference(reader(), teacher(), run.eval_dataset["input_ids"], 1.0)
    assert run.evaluate()["eval_loss"] == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "word_prediction"}, "BertForQuestionAnswering predicts answers. Use objective='soft_label'"),
        ({"objective": "token_label"}, "is about a token classifier, and BertForQuestionAnswering is a question answerer"),
        ({"pair_column": None}, "pair_column is not set, and the dataset has the columns"),
        ({"pair_column": "txt"}, "the dataset has no column 'txt'"),
        ({"teacher": helpers.teacher()}, r"\(question answerer\) and the teacher BertForMaskedLM .* do not predict the same"),
        ({"compute_metrics": dict}, "an answer has two ends"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, options, message):
    with pytest.raises(UsageError, match=message):
        trainer(tmp_path, **options)
