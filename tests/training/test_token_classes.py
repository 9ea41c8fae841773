"""Token classifiers as student and teacher: soft labels of every token that is neither padding nor special."""

import datasets
import numpy as np
import pytest
import torch
import training_helpers as helpers
import vocab_helpers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForTokenClassification, BertForMaskedLM, DataCollatorForTokenClassification

from hf_glmd import GLMDTrainer, VocabShrinker, build_student
from hf_glmd.data.collators import TokenClassCollator
from hf_glmd.errors import UsageError
from hf_glmd.models.surgery import resize_model
from hf_glmd.training.objectives.token_classes import TokenClasses

NAMES = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
QUIET = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
TEXTS = vocab_helpers.texts(23)


def tagger(names=NAMES, scale=1.0, name="BertForTokenClassification", **settings):
    labels = {"id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}} if names else {}
    torch.manual_seed(int(scale))
    shape = vocab_helpers._DECODER if name.startswith("Llama") else vocab_helpers._SMALL | QUIET
    model = vocab_helpers.tiny_class(name, shape | labels | settings, vocab_helpers.V)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
        for parameter in model.classifier.parameters() if hasattr(model, "classifier") else ():
            parameter.normal_(std=0.3 * scale)
    return model


def teacher(**settings):
    return tagger(**{"scale": 3.0, "hidden_size": 24, "num_hidden_layers": 2, **settings})


def trainer(folder, **settings) -> GLMDTrainer:
    rows = datasets.Dataset.from_dict({"text": TEXTS})
    parts = {"model": tagger(), "teacher": teacher(), "train_dataset": rows, "eval_dataset": rows.select(range(11))}
    return helpers.trainer(folder, **{"objective": "soft_label", **parts, **settings})


def reference(student, other, texts, temperature) -> float:
    """The mean over all words' tokens in fp64, a row at a time, by the definition of a cross-entropy."""
    total, count = 0.0, 0
    for text in texts:
        ids = helpers.TOKENIZER(text)["input_ids"]
        with torch.no_grad():
            ours, theirs = (m.double().eval()(input_ids=torch.tensor([ids])).logits[0].numpy() for m in (student, other))
        for place in range(1, len(ids) - 1):  # between [CLS] and [SEP]
            chances = [np.exp(x[place] / temperature) / np.exp(x[place] / temperature).sum() for x in (ours, theirs)]
            total -= temperature**2 * float((chances[1] * np.log(chances[0])).sum())
            count += 1
    return total / count


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_loss_is_that_of_the_formula_however_the_batch_is_cut(tmp_path, temperature):
    wanted = reference(tagger(), teacher(), TEXTS[:11], temperature)
    logs = []
    for batch, accumulation in ((6, 1), (2, 3)):
        settings = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
        run = trainer(tmp_path, temperature=temperature, **settings, per_device_eval_batch_size=batch, max_steps=3)
        assert run.evaluate()["eval_loss"] == pytest.approx(wanted, rel=1e-5)
        run.train()
        logs.append([entry["loss"] for entry in run.state.log_history if "loss" in entry])
    assert logs[1] == pytest.approx(logs[0], rel=1e-4)


def gradients(run) -> torch.Tensor:
    batch = run.data_collator([run.train_dataset[number] for number in range(4)])
    run.model.zero_grad()
    run.compute_loss(run.model.train(), batch).backward()
    return torch.cat([p.grad.flatten() for p in run.model.parameters() if p.grad is not None])


def test_the_teacher_is_what_is_learnt(tmp_path):
    run = trainer(tmp_path)
    before = gradients(run)
    torch.testing.assert_close(gradients(run), before)
    with torch.no_grad():
        run.teacher.model.classifier.weight.mul_(-1)
    assert (gradients(run) - before).norm() > 0.1 * before.norm()
    assert not any(p.requires_grad for p in run.teacher.model.parameters())


def test_padding_and_special_tokens_say_nothing(tmp_path):
    run = trainer(tmp_path)
    batch = run.data_collator([run.train_dataset[number] for number in range(4)])
    special = torch.isin(batch["input_ids"], torch.tensor([helpers.TOKENIZER.cls_token_id, helpers.TOKENIZER.sep_token_id]))
    assert batch["prediction_mask"].equal(batch["attention_mask"].bool() & ~special) and special.sum() == 8
    longer = {name: torch.nn.functional.pad(value, (0, 3)) for name, value in batch.items()}
    losses = [float(run.compute_loss(run.model.eval(), inputs).detach()) for inputs in (batch, longer)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_an_unknown_word_counts_and_a_row_may_say_what_is_special():
    unknown, cls = helpers.TOKENIZER.unk_token_id, helpers.TOKENIZER.cls_token_id
    rows = [{"input_ids": [cls, unknown, 9]}, {"input_ids": [cls, 8], "special_tokens_mask": [0, 1]}]
    assert TokenClassCollator(helpers.TOKENIZER)(rows)["prediction_mask"].tolist() == [[False, True, True], [True, False, False]]


@pytest.mark.parametrize("collator", [None, DataCollatorForTokenClassification(helpers.TOKENIZER)], ids=["ours", "transformers"])
def test_labels_choose_tokens_and_reach_compute_metrics_alone(tmp_path, collator):
    ids = [[5, 6, 7, 8], [9, 10], [11, 12, 13]]
    labels = [[1, -100, 0, 2], [-100, 3], [0, 0, -100]]
    seen = []

    def metrics(prediction):
        seen.append(prediction)
        return {"right": 0.0}

    for shift in (0, 1):  # other labels, same places
        values = [[v if v == -100 else (v + shift) % 5 for v in row] for row in labels]
        rows = datasets.Dataset.from_dict({"input_ids": ids, "labels": values})
        settings = {"positions": "labels"} if collator is None else {"data_collator": collator}
        run = trainer(tmp_path, train_dataset=rows, eval_dataset=rows, compute_metrics=metrics, **settings)
        seen.append(run.evaluate()["eval_loss"])
    assert seen[1] == seen[3]
    _, (theirs, true) = seen[0].predictions, seen[0].label_ids
    assert true.tolist() == [[1, -100, 0, 2], [-100, 3, -100, -100], [0, 0, -100, -100]]
    assert ((theirs == -100) == (true == -100)).all() and seen[0].predictions.shape == (3, 4)


def test_the_student_comes_to_answer_as_the_teacher(tmp_path):
    run = trainer(tmp_path, max_steps=60, learning_rate=1e-2)
    before = run.evaluate()
    run.train()
    after = run.evaluate()
    assert after["eval_kl"] < 0.2 * before["eval_kl"] and after["eval_agreement"] > 0.9
    assert after["eval_loss"] == pytest.approx(after["eval_kl"] + after["eval_teacher_entropy"], rel=1e-5)


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
    loaded, info = AutoModelForTokenClassification.from_pretrained(tmp_path / "student", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert list(loaded.config.id2label.values()) == NAMES and loaded.config.vocab_size == vocab_map.size
    ids = {"input_ids": torch.tensor([[1, 5, 9]])}
    assert loaded.eval()(**ids).logits.equal(run.model.eval()(**ids).logits)
    assert "pipeline_tag: token-classification" in (tmp_path / "student" / "README.md").read_text()


def test_the_teacher_reads_the_words_that_others_stand_for(tmp_path):
    """removed="nearest": a student of all layers that reads similar tokens, and its teacher the text as it was."""
    large = teacher(num_hidden_layers=2)
    table = large.get_input_embeddings().weight.detach()
    counted = VocabShrinker(helpers.TOKENIZER).count(TEXTS[:1], progress=False)
    vocab = counted.shrink(size=31, removed="nearest", embeddings=table)
    same = build_student(large, num_layers=2, vocab=vocab)
    parts = {"model": same, "teacher": large, "vocab_map": vocab.vocab_map, "processing_class": vocab.tokenizer}
    run, deaf = (trainer(tmp_path, **parts, teacher_reads_replaced=replaced) for replaced in (False, True))
    batch = run.data_collator([run.train_dataset[number] for number in range(23)])
    told = run.training_objective.teach(batch)
    replaced = (batch["original_input_ids"] != vocab.vocab_map.to_original(batch["input_ids"]))[batch["prediction_mask"]]
    assert replaced.any() and told.shape == (int(batch["prediction_mask"].sum()), 5)
    original = {"input_ids": batch["original_input_ids"], "attention_mask": batch["attention_mask"]}
    torch.testing.assert_close(told, large(**original).logits[batch["prediction_mask"]])
    assert run.evaluate()["eval_kl"] > 1e-4 and deaf.evaluate()["eval_kl"] < 1e-9


def test_resized_token_classifiers_say_the_same():
    model, vocab_map = tagger(), vocab_helpers.tiny_map()
    ids = torch.arange(12).view(2, 6)
    original = torch.as_tensor(vocab_map.to_original(ids.numpy()))
    torch.testing.assert_close(resize_model(model, vocab_map)(input_ids=ids).logits, model(input_ids=original).logits)


def test_a_causal_token_classifier_needs_no_padding_token_in_its_configuration(tmp_path):
    models = [tagger(name="LlamaForTokenClassification", scale=scale, pad_token_id=None) for scale in (1.0, 3.0)]
    run = trainer(tmp_path, model=models[0], teacher=models[1], objective="token_label")
    run.train()
    assert isinstance(run.training_objective, TokenClasses) and run.args.temperature == 1.0


def test_several_teachers_are_averaged(tmp_path):
    found = trainer(tmp_path, teacher=[teacher(), teacher()]).evaluate()["eval_loss"]
    assert found == pytest.approx(reference(tagger(), teacher(), TEXTS[:11], 1.0), rel=1e-5)


def test_logits_of_all_tokens_are_handed_out(tmp_path):
    run = trainer(tmp_path)
    batch = run.data_collator([run.train_dataset[number] for number in range(4)])
    loss, outputs = run.compute_loss(run.model, batch, return_outputs=True)
    assert outputs.logits.shape == (*batch["input_ids"].shape, 5)
    torch.testing.assert_close(loss, run.compute_loss(run.model, batch))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "word_prediction"}, "BertForTokenClassification predicts classes. Use objective='soft_label'"),
        ({"objective": "span"}, "objective='span' is about a question answerer, and BertForTokenClassification is a token class"),
        ({"model": tagger(["O", "B"])}, "the student has 2 outputs, the teacher 5. Set num_labels=5"),
        ({"model": tagger(NAMES[::-1])}, "the student's classes are .* the teacher's"),
        ({"model": tagger(["O"]), "teacher": teacher(names=["O"])}, "num_labels=1: of one class"),
        ({"teacher": teacher(problem_type="regression")}, "problem_type='regression' of BertForTokenClassification"),
        ({"teacher": helpers.teacher()}, r"\(token classifier\) and the teacher BertForMaskedLM .* do not predict the same"),
        ({"positions": "masked"}, "positions='masked' has no meaning for classes of tokens"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, settings, message):
    with pytest.raises(UsageError, match=message):
        trainer(tmp_path, **settings)


def test_a_head_that_was_never_trained_is_refused(tmp_path):
    """Of a teacher that is loaded, of one that the user has loaded, and of a student by its name."""
    helpers.teacher().save_pretrained(tmp_path / "words")
    fresh = AutoModelForTokenClassification.from_pretrained(tmp_path / "words", num_labels=5)
    with pytest.raises(UsageError, match="was saved as BertForMaskedLM: its head for BertForTokenClassification is newly init"):
        trainer(tmp_path, teacher=fresh)
    with torch.no_grad():
        fresh.classifier.bias[0] += 1e-3  # it has been trained
    trainer(tmp_path, teacher=fresh)
    vocab_helpers.tiny_class("BertModel", vocab_helpers._SMALL, vocab_helpers.V).save_pretrained(tmp_path / "encoder")
    with pytest.raises(UsageError, match="was saved as BertModel: its head for BertForMaskedLM is newly initialised"):
        helpers.trainer(tmp_path, teacher=BertForMaskedLM.from_pretrained(tmp_path / "encoder"), objective="soft_label")
    with pytest.raises(UsageError, match="is about what a head predicts, and BertModel has none. Use objective='embedding'"):
        helpers.trainer(tmp_path, model=str(tmp_path / "encoder"), teacher=str(tmp_path / "encoder"), objective="soft_label")
    teacher().save_pretrained(tmp_path / "headless")
    weights = tmp_path / "headless" / "model.safetensors"
    save_file({k: v for k, v in load_file(weights).items() if "classifier" not in k}, weights, metadata={"format": "pt"})
    for part in ({"teacher": str(tmp_path / "headless")}, {"model": str(tmp_path / "headless")}):
        with pytest.raises(UsageError, match="lacks 2 weights of BertForTokenClassification.*trained with this head"):
            trainer(tmp_path, **part)
