"""Classifiers as student and teacher: soft labels alone, whatever the batch, with the teacher's names of classes."""

import datasets
import pytest
import torch
import training_helpers as helpers
import vocab_helpers
from transformers import AutoModelForSequenceClassification

from hf_glmd import GLMDTrainer, build_student
from hf_glmd.data.collators import ClassCollator
from hf_glmd.errors import UsageError
from hf_glmd.losses.classification import class_loss
from hf_glmd.models.class_heads import PROBLEMS, problem_of
from hf_glmd.models.surgery import resize_model
from hf_glmd.training.datasets import class_rows

NAMES = ["bad", "fair", "good"]
QUIET = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def classifier(names=NAMES, name="bert-classifier", scale=1.0, **settings):
    labels = (
        {"id2label": dict(enumerate(names)), "label2id": {name: number for number, name in enumerate(names)}} if names else {}
    )
    torch.manual_seed(0)
    if name == "llama-classifier":
        model = vocab_helpers.tiny_class(
            "LlamaForSequenceClassification", vocab_helpers._DECODER | labels | settings, vocab_helpers.V
        )
    else:
        model = vocab_helpers.tiny_model(name, **QUIET, **labels, **settings)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    return model


def teacher(names=NAMES, **settings):
    return classifier(names, scale=3.0, **{"hidden_size": 24, "num_hidden_layers": 2, **settings})


def table(labels=None, count=23):
    texts = vocab_helpers.texts(count)
    columns = {"text": texts, "other": texts[::-1]} | ({"label": labels, "labels": labels} if labels is not None else {})
    return datasets.Dataset.from_dict(columns)


def trainer(folder, **settings) -> GLMDTrainer:
    parts = {"model": classifier(), "teacher": teacher(), "train_dataset": table(), "eval_dataset": table(count=11)}
    return helpers.trainer(folder, **{"objective": "soft_label", **parts, **settings})


def outputs(model, dataset):
    rows = class_rows(dataset, helpers.TOKENIZER, 40, "text")
    with torch.no_grad():
        return torch.cat([model.eval()(input_ids=torch.tensor([ids])).logits for ids in rows["input_ids"]])


@pytest.mark.parametrize("problem", PROBLEMS)
def test_the_loss_is_that_of_the_formula_however_the_batch_is_cut(tmp_path, problem):
    logs, means = [], []
    for batch, accumulation in ((6, 1), (2, 3)):
        models = {"model": classifier(problem_type=problem), "teacher": teacher(problem_type=problem)}
        settings = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
        run = trainer(tmp_path, **models, **settings, per_device_eval_batch_size=batch, max_steps=3)
        means.append(run.evaluate())
        run.train()
        logs.append([entry["loss"] for entry in run.state.log_history if "loss" in entry])
    expected = class_loss(outputs(classifier(), table(count=11)), outputs(teacher(), table(count=11)), problem, 1.0).mean()
    assert means[0]["eval_loss"] == pytest.approx(float(expected), rel=1e-5)
    assert means[1]["eval_loss"] == pytest.approx(means[0]["eval_loss"], rel=1e-5)
    assert logs[1] == pytest.approx(logs[0], rel=1e-4)


def test_gold_labels_have_no_influence_on_the_student(tmp_path):
    """Right, others or missing: the same weights, bit for bit."""
    weights = []
    for labels in ([number % 3 for number in range(23)], [0] * 23, None):
        run = trainer(tmp_path, train_dataset=table(labels))
        run.train()
        weights.append(torch.cat([p.detach().flatten() for p in run.model.parameters()]))
    start = torch.cat([p.detach().flatten() for p in classifier().parameters()])
    assert not weights[0].equal(start)
    assert weights[0].equal(weights[1]) and weights[0].equal(weights[2])


@pytest.mark.parametrize("names", [NAMES, ["score"]], ids=["classes", "number"])
def test_the_student_comes_to_answer_as_the_teacher(tmp_path, names):
    run = trainer(tmp_path, model=classifier(names), teacher=teacher(names), max_steps=60, learning_rate=1e-2)
    before = run.evaluate()
    run.train()
    after = run.evaluate()
    if len(names) == 1:
        assert problem_of(run.model.config) == "regression"
        assert after["eval_loss"] < 0.2 * before["eval_loss"]
        assert after["eval_absolute_difference"] < before["eval_absolute_difference"]
    else:
        assert after["eval_kl"] < 0.2 * before["eval_kl"] and after["eval_agreement"] > 0.9


def test_a_smaller_student_with_a_smaller_vocabulary_keeps_the_names(tmp_path):
    vocab_map = vocab_helpers.tiny_map()
    large = teacher(num_hidden_layers=3)
    large.save_pretrained(tmp_path / "teacher")
    student = build_student(large, num_layers=1, vocab=vocab_map)
    rows = datasets.Dataset.from_dict({"input_ids": [[1, 5, 9], [2, 50, 96, 7], [3, 4]]})
    run = trainer(tmp_path, model=student, teacher=str(tmp_path / "teacher"), train_dataset=rows, eval_dataset=rows,
                  vocab_map=vocab_map, max_steps=1)  # fmt: skip
    found = run.evaluate()["eval_loss"]
    same = build_student(large, num_layers=3, vocab=vocab_map)  # all layers: the cut changes nothing
    with torch.no_grad():
        for ids in rows["input_ids"]:
            original = torch.tensor([vocab_map.to_original(ids)])
            torch.testing.assert_close(same(input_ids=torch.tensor([ids])).logits, large(input_ids=original).logits)
    run.train()
    run.save_model(str(tmp_path / "student"))
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "student")
    assert [loaded.config.id2label[number] for number in range(3)] == NAMES and loaded.config.vocab_size == vocab_map.size
    assert found > 0


def test_a_student_without_names_gets_the_teachers(tmp_path):
    run = trainer(tmp_path, model=classifier(None, num_labels=3))
    assert run.model.config.id2label == dict(enumerate(NAMES)) and run.model.config.label2id["good"] == 2


def test_pairs_are_read_as_pairs(tmp_path):
    run = trainer(tmp_path, pair_column="other", max_length=20)
    row = run.train_dataset[0]
    assert set(run.train_dataset.column_names) <= {"input_ids", "token_type_ids"} and len(row["input_ids"]) <= 20
    plain = helpers.TOKENIZER(table()["text"][0], table()["other"][0], truncation=True, max_length=20)
    assert row["input_ids"] == plain["input_ids"]
    run.train()


def test_token_types_reach_the_models_that_take_them():
    rows = [{"input_ids": [1, 2, 3], "token_type_ids": [0, 0, 1], "label": 7}, {"input_ids": [1, 2], "token_type_ids": [0, 1]}]
    batch = ClassCollator(helpers.TOKENIZER)(rows)
    assert set(batch) == {"input_ids", "token_type_ids", "attention_mask", "prediction_mask"}
    assert batch["token_type_ids"].tolist() == [[0, 0, 1], [0, 1, 0]] and batch["prediction_mask"].tolist() == [[True], [True]]


def test_a_causal_classifier_reads_to_the_last_word_whatever_the_padding(tmp_path):
    models = [classifier(NAMES, "llama-classifier", scale, pad_token_id=helpers.TOKENIZER.pad_token_id) for scale in (1.0, 3.0)]
    means = [
        trainer(tmp_path, model=models[0], teacher=models[1], per_device_eval_batch_size=batch).evaluate()["eval_loss"]
        for batch in (1, 8)
    ]
    assert means[0] == pytest.approx(means[1], rel=1e-5)
    with pytest.raises(UsageError, match="has no pad_token_id. Set model.config.pad_token_id"):
        trainer(tmp_path, model=classifier(NAMES, "llama-classifier", pad_token_id=None))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "word_prediction"}, "predicts classes. Use objective='soft_label'"),
        ({"model": classifier(["yes", "no"])}, "the student has 2 outputs, the teacher 3. Set num_labels=3"),
        ({"model": classifier(["good", "fair", "bad"])}, "the student's classes are .* the teacher's"),
        ({"model": classifier(problem_type="regression")}, "the student is made for regression, the teacher for single"),
        ({"teacher": helpers.teacher()}, "classifier.* and the teacher BertForMaskedLM .* do not predict the same"),
        ({"text_column": "txt"}, "the dataset has no column 'txt'"),
        ({"pair_column": "second"}, "the dataset has no column 'second'"),
        (
            {"model": classifier(["score"]), "teacher": [teacher(["score"]), teacher(["score"])]},
            "several teachers of a regression cannot be averaged",
        ),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, settings, message):
    with pytest.raises(UsageError, match=message):
        trainer(tmp_path, **settings)


def test_several_teachers_are_averaged(tmp_path):
    teachers = [teacher(), classifier(scale=2.0)]
    found = trainer(tmp_path, teacher=teachers).evaluate()["eval_loss"]
    mean = torch.stack([outputs(one, table(count=11)).softmax(-1) for one in teachers]).mean(0)
    expected = class_loss(outputs(classifier(), table(count=11)), mean.log(), "single_label_classification", 1.0).mean()
    assert found == pytest.approx(float(expected), rel=1e-5)


def test_resized_classifiers_say_the_same():
    model, vocab_map = classifier(), vocab_helpers.tiny_map()
    small = resize_model(model, vocab_map)
    ids = torch.arange(12).view(2, 6)
    original = torch.as_tensor(vocab_map.to_original(ids.numpy()))
    torch.testing.assert_close(small.eval()(input_ids=ids).logits, model.eval()(input_ids=original).logits)
