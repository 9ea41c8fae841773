"""The trainer's result does not depend on how the batch is cut, and nothing but the teacher's predictions reaches the student."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import datasets
import peft
import pytest
import torch
import training_helpers as helpers
import vocab_helpers

from hf_glmd import ClozeTask, UsageError, VocabMap
from hf_glmd.data.collators import CandidateCollator, WordPredictionCollator
from hf_glmd.losses.reference import dense_soft_label_loss, dense_word_prediction_loss
from hf_glmd.models.heads import WordHead
from hf_glmd.tasks.candidates import candidate_log_probs
from hf_glmd.tasks.scoring import sequences
from hf_glmd.teachers.cache import TeacherCache
from hf_glmd.teachers.ensemble import TeacherEnsemble
from hf_glmd.teachers.live import AdaptersOffTeacher, LiveTeacher
from hf_glmd.vocab.counting import tokenizer_fingerprint

CUTS = [(6, 1), (3, 2), (2, 3), (1, 6)]  # rows per step, accumulated steps


def run(folder, batch=6, accumulation=1, **settings) -> tuple[list[dict], torch.Tensor]:
    trainer = helpers.trainer(folder, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation, **settings)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    return logs, torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


@pytest.mark.parametrize("settings", [{"positions": "masked", "temperature": 2.0}, {"positions": "all"}])
def test_micro_batches_and_accumulation_change_nothing(tmp_path, settings):
    logs, weights = run(tmp_path, **settings)
    assert len(logs) == 4 and logs[0]["loss"] > 0
    for batch, accumulation in CUTS[1:]:
        other_logs, other_weights = run(tmp_path, batch, accumulation, **settings)
        for one, other in zip(logs, other_logs, strict=True):
            assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)
            assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)
        torch.testing.assert_close(other_weights, weights, rtol=1e-4, atol=2e-6)


def test_the_first_loss_is_that_of_the_formula(tmp_path):
    """T^2, padding excluded, mean over the counted tokens of the whole batch, every position counted."""
    logs, _ = run(tmp_path, max_steps=1, positions="all", temperature=15.0, train_sampling_strategy="sequential")
    rows = [{"input_ids": ids} for ids in helpers.rows()["input_ids"][:6]]
    collator = WordPredictionCollator(helpers.TOKENIZER, "all", 0.15, seed=42)
    collator.epoch = 1
    batch = collator(rows)
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    with torch.no_grad():
        student, teacher = (model(**inputs).logits.double() for model in (helpers.student(), helpers.teacher()))
    values = dense_word_prediction_loss(student, teacher, 15.0)[batch["attention_mask"].bool()]
    assert logs[0]["loss"] == pytest.approx(values.mean().item(), rel=1e-4)


def test_evaluation_means_are_over_tokens_whatever_the_batch(tmp_path):
    found = [helpers.trainer(tmp_path, per_device_eval_batch_size=size).evaluate() for size in (1, 4, 11)]
    for name in ("eval_loss", "eval_kl", "eval_agreement"):
        assert [metrics[name] for metrics in found[1:]] == pytest.approx([found[0][name]] * 2, rel=1e-5)
    assert found[0]["eval_loss"] > 0


def test_a_student_that_is_the_teacher_has_no_loss(tmp_path):
    metrics = helpers.trainer(tmp_path, model=helpers.teacher(), positions="masked").evaluate()
    assert abs(metrics["eval_loss"]) < 1e-3 and abs(metrics["eval_kl"]) < 1e-6 and metrics["eval_agreement"] == 1


def test_training_brings_the_student_to_the_teacher(tmp_path):
    trainer = helpers.trainer(tmp_path, max_steps=60, temperature=1.0, learning_rate=5e-3)
    before = trainer.evaluate()
    trainer.train()
    assert trainer.evaluate()["eval_kl"] < 0.6 * before["eval_kl"]


SCRIPT = """
import gc, json, sys
import torch, training_helpers as helpers
trainer = helpers.trainer(sys.argv[1], **json.loads(sys.argv[2]))
metrics = trainer.evaluate()
trainer.train()
if trainer.is_world_process_zero():
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    weights = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
    torch.save({"metrics": metrics, "logs": logs, "weights": weights}, sys.argv[1] + "/result.pt")
state = trainer.accelerator.state
del trainer  # DDP's reducer keeps the process group, whose threads may abort a process that ends before they do
gc.collect()
state.destroy_process_group()
"""


def test_two_processes_train_as_one(tmp_path):
    """DDP over gloo. 23 rows do not divide by 2 x 3: the last window is uneven, and evaluation repeats a row to fill up."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    results = {}
    for processes, batch in ((1, 6), (2, 3)):
        folder = tmp_path / str(processes)
        folder.mkdir()
        settings = {"per_device_train_batch_size": batch, "max_steps": 8, "positions": "masked", "temperature": 2.0}
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        environment = {**_environment(), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*launch, str(script), str(folder), json.dumps(settings)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        results[processes] = torch.load(folder / "result.pt", weights_only=False)
    one, two = results[1], results[2]
    for name in ("eval_loss", "eval_kl", "eval_agreement"):
        assert two["metrics"][name] == pytest.approx(one["metrics"][name], rel=1e-5)
    for name in ("loss", "grad_norm"):
        # The 4th step is an epoch's last, of 5 rows: accelerate gives two processes 6, but the repeated one does not count.
        assert [log[name] for log in two["logs"]] == pytest.approx([log[name] for log in one["logs"]], rel=1e-5)
    assert (two["weights"] - one["weights"]).norm() <= 1e-5 * one["weights"].norm()


def _environment() -> dict[str, str]:
    import os

    here = str(Path(__file__).parents[1])
    return {**os.environ, "PYTHONPATH": os.pathsep.join([here, str(Path(here).parent), os.environ.get("PYTHONPATH", "")])}


TASK = ClozeTask("verbs", "call {mask} : {text}", {"yes": "walk", "no": "talk", "maybe": "jump"})


SPLIT = ClozeTask("verbs", "call {mask} : {text}", {"yes": "walk read", "no": "talk", "maybe": "jump"}, split_verbalizers="score")
KINDS = pytest.mark.parametrize("task", [TASK, SPLIT], ids=["single tokens", "several tokens"])


def questions(task: ClozeTask, labels: list[str] | None) -> datasets.Dataset:
    texts = vocab_helpers.texts(12)
    columns = {"text": texts} | ({"label": labels} if labels else {})
    return task.encode(datasets.Dataset.from_dict(columns), helpers.TOKENIZER, 20, labelled=labels is not None)


@KINDS
@pytest.mark.parametrize("objective", ["soft_label", "word_prediction"])
def test_gold_labels_have_no_influence_on_the_student(tmp_path, task, objective):
    """Right, shuffled or missing: the same weights, bit for bit."""
    weights = []
    for labels in (["yes", "no"] * 6, ["maybe", "yes"] * 6, None):
        rows, held_out = questions(task, labels), questions(task, None)
        if objective == "word_prediction":
            rows, held_out = sequences(rows), sequences(held_out)
        weights.append(run(tmp_path, objective=objective, train_dataset=rows, eval_dataset=held_out)[1])
    assert not torch.equal(weights[0], torch.cat([p.detach().flatten() for p in helpers.student().parameters()]))
    assert torch.equal(weights[0], weights[1]) and torch.equal(weights[0], weights[2])


@KINDS
def test_soft_labels_do_not_depend_on_the_cut(tmp_path, task):
    losses, means = [], []
    for batch, accumulation in ((6, 1), (2, 3)):
        rows = questions(task, None)
        settings = {"objective": "soft_label", "train_dataset": rows, "eval_dataset": rows, "per_device_eval_batch_size": batch}
        logs, _ = run(tmp_path, batch, accumulation, **settings)
        losses.append([log["loss"] for log in logs])
        means.append(helpers.trainer(tmp_path, **settings).evaluate())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for name in ("eval_loss", "eval_kl", "eval_agreement", "eval_teacher_entropy"):
        assert means[0][name] == pytest.approx(means[1][name], rel=1e-5)


def test_the_loss_of_answers_counts_examples_not_predictions(tmp_path):
    """The mean over the 12 questions, however many tokens their candidates have."""
    rows = questions(SPLIT, None)
    logs, _ = run(tmp_path, 12, objective="soft_label", train_dataset=rows, max_steps=1)
    batch = CandidateCollator(helpers.TOKENIZER)(list(rows))
    assert batch["prediction_mask"].sum() > 12
    with torch.no_grad():
        student, teacher = (
            candidate_log_probs(partial(WordHead(model).logits, model), batch) for model in (helpers.student(), helpers.teacher())
        )
    assert logs[0]["loss"] == pytest.approx(dense_soft_label_loss(student, teacher, 1.0).mean().item(), rel=1e-5)


def test_text_is_tokenised_by_itself(tmp_path):
    text = datasets.Dataset.from_dict({"text": vocab_helpers.texts(30), "other": list(range(30))})
    trainer = helpers.trainer(tmp_path, train_dataset=text, eval_dataset=text, max_steps=1)
    assert trainer.train_dataset.column_names == ["input_ids"]
    assert max(map(len, trainer.train_dataset["input_ids"])) == 40  # what both models can read
    trainer.train()
    assert trainer.state.global_step == 1


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_causal_student_learns_the_next_word_from_a_causal_teacher(tmp_path, name):
    teacher = vocab_helpers.tiny_model(name, **({"n_embd": 24} if name == "gpt2" else {"intermediate_size": 40}))
    student = vocab_helpers.tiny_model(
        name, **({"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0} if name == "gpt2" else {})
    )
    trainer = helpers.trainer(tmp_path, model=student, teacher=teacher, max_steps=60, temperature=1.0, learning_rate=1e-2)
    batch = trainer.data_collator([{"input_ids": row} for row in helpers.rows()["input_ids"]])
    assert not (batch["input_ids"] == helpers.TOKENIZER.mask_token_id).any(), "no word is hidden from a causal model"
    before = trainer.evaluate()["eval_kl"]
    trainer.train()
    assert trainer.evaluate()["eval_kl"] < 0.7 * before
    with pytest.raises(UsageError, match="predicts the next one"):
        helpers.trainer(tmp_path, model=student, teacher=teacher, positions="masked")


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_a_decoder_learns_what_follows(tmp_path, name):
    settings = {"dropout_rate": 0.0} if name == "t5" else {"dropout": 0.0, "decoder_start_token_id": 2}
    student = vocab_helpers.tiny_model(name, **settings)
    teacher = vocab_helpers.tiny_model(name, **settings | ({"d_ff": 40} if name == "t5" else {"decoder_ffn_dim": 40}))
    trainer = helpers.trainer(tmp_path, model=student, teacher=teacher, max_steps=30, temperature=1.0, learning_rate=1e-2)
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_kl"] < 0.7 * before["eval_kl"]
    assert after["eval_cross_entropy"] > 0 and after["eval_teacher_entropy"] > 0
    with pytest.raises(UsageError, match=r"T5.* \(encoder-decoder\) and the teacher BertForMaskedLM|Bart.*Bert"):
        helpers.trainer(tmp_path, model=student)


def test_pairs_of_texts_are_read_and_predicted(tmp_path):
    texts = vocab_helpers.texts(10)
    pairs = datasets.Dataset.from_dict({"text": texts, "target": texts[::-1]})
    settings = {"train_dataset": pairs, "eval_dataset": pairs, "target_column": "target", "max_length": 12, "max_steps": 1}
    trainer = helpers.trainer(tmp_path, model=vocab_helpers.tiny_model("t5"), teacher=vocab_helpers.tiny_model("t5"), **settings)
    batch = trainer.data_collator([trainer.train_dataset[0]])
    target = helpers.TOKENIZER(texts[-1])["input_ids"]
    assert batch["targets"].tolist()[0][:11] == target[:11]
    assert batch["decoder_input_ids"].tolist()[0][1:] == batch["targets"].tolist()[0][:-1]
    trainer.train()


def test_packed_texts_do_not_see_each_other(tmp_path):
    texts = datasets.Dataset.from_dict({"text": vocab_helpers.texts(12)})
    one_by_one = datasets.Dataset.from_dict({"input_ids": [helpers.TOKENIZER(text)["input_ids"] for text in texts["text"]]})
    model, teacher = vocab_helpers.tiny_model("llama"), vocab_helpers.tiny_model("llama", intermediate_size=40)
    packed, single = (
        helpers.trainer(
            tmp_path,
            model=model,
            teacher=teacher,
            train_dataset=data,
            eval_dataset=data,
            separate_documents=True,
            max_length=36,
            temperature=1.0,
        ).evaluate()
        for data in (texts.select(range(2)), one_by_one.select(range(2)))
    )
    assert len(helpers.pack_blocks(texts.select(range(2)), helpers.TOKENIZER, 36, separate=True)) == 1
    for name in ("eval_loss", "eval_kl", "eval_cross_entropy"):
        assert packed[name] == pytest.approx(single[name], rel=1e-5)


def test_the_teacher_may_be_the_student_without_its_adapters(tmp_path):
    model = peft.get_peft_model(
        vocab_helpers.tiny_model("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0),
        peft.LoraConfig(target_modules=["query", "value"], r=2),
    )
    trainer = helpers.trainer(tmp_path, model=model, teacher=AdaptersOffTeacher(model))
    assert abs(trainer.evaluate()["eval_kl"]) < 1e-6, "fresh adapters change nothing"
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter)
    before = trainer.evaluate()["eval_kl"]
    trainer.train()
    assert before > 0 and trainer.evaluate()["eval_kl"] < before
    with pytest.raises(UsageError, match="BertForMaskedLM has no adapters"):
        AdaptersOffTeacher(helpers.student())


def test_several_teachers_are_averaged(tmp_path):
    first, second = helpers.teacher(), vocab_helpers.tiny_model("bert", num_hidden_layers=1)
    trainer = helpers.trainer(tmp_path, teacher=[first, second], temperature=2.0, eval_dataset=helpers.rows(3))
    batch = trainer.data_collator(list(helpers.rows(3)))
    words, counted = {name: batch[name] for name in ("input_ids", "attention_mask")}, batch["prediction_mask"]
    with torch.no_grad():
        mean = sum(torch.softmax(one(**words).logits / 2.0, -1) for one in (first, second)) / 2
        student = trainer.model(**words).logits
    expected = dense_word_prediction_loss(student[counted], 2.0 * mean[counted].log(), 2.0).mean()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected.item(), rel=1e-4)
    trainer.train()
    with pytest.raises(UsageError, match="one positive weight per teacher"):
        TeacherEnsemble([LiveTeacher(first), LiveTeacher(second)], [1.0, 0.0])


def test_the_dense_and_the_fused_loss_train_alike(tmp_path):
    fused_logs, fused = run(tmp_path)
    dense_logs, dense = run(tmp_path, fused_loss=False)
    assert [entry["loss"] for entry in fused_logs] == pytest.approx([entry["loss"] for entry in dense_logs], rel=1e-5)
    torch.testing.assert_close(fused, dense, rtol=1e-4, atol=2e-6)
    metrics = [helpers.trainer(tmp_path, fused_loss=kind).evaluate() for kind in (True, False)]
    for name in ("eval_loss", "eval_kl", "eval_agreement", "eval_teacher_entropy", "eval_cross_entropy"):
        assert metrics[0][name] == pytest.approx(metrics[1][name], rel=1e-4)


def test_a_head_that_cannot_be_fused_is_named_once(tmp_path, caplog):
    model = peft.get_peft_model(
        vocab_helpers.tiny_model("bert-untied"), peft.LoraConfig(target_modules=["query", "cls.predictions.decoder"], r=2)
    )
    helpers.trainer(tmp_path, model=model).train()
    said = [record.message for record in caplog.records if "All logits of the student" in record.message]
    assert len(said) == 1 and "cls.predictions.decoder" in said[0]


def test_training_logs_say_how_fast_and_how_large(tmp_path):
    logs, _ = run(tmp_path, max_steps=2)
    assert all(entry["tokens_per_second"] > 0 and entry["peak_memory_mib"] > 1 for entry in logs)


def test_a_teacher_that_means_other_words_by_the_same_ids_is_refused(tmp_path):
    teacher = helpers.teacher()
    vocabulary = vocab_helpers.wordpiece_vocabulary()
    other = dict(zip(vocabulary, [*list(vocabulary.values())[:40], 41, 40, *list(vocabulary.values())[42:]], strict=True))
    backend = vocab_helpers.wordpiece_backend()
    data = json.loads(backend.to_str())
    data["model"]["vocab"] = other
    vocab_helpers.generic_tokenizer(type(backend).from_str(json.dumps(data))).save_pretrained(tmp_path / "teacher")
    teacher.save_pretrained(tmp_path / "teacher")
    with pytest.raises(UsageError, match="2 of the student's 211 tokens are others to the teacher: id 40 is"):
        helpers.trainer(tmp_path / "out", teacher=str(tmp_path / "teacher"))
    helpers.TOKENIZER.save_pretrained(tmp_path / "teacher")
    helpers.trainer(tmp_path / "out", teacher=str(tmp_path / "teacher"))


def test_a_cut_vocabulary_needs_its_map_and_is_saved_with_the_student(tmp_path):
    vocab_map = vocab_helpers.tiny_map()
    small = vocab_helpers.tiny_model("bert", vocab_size=97)
    with pytest.raises(UsageError, match="student predicts 97 tokens, the teacher 211.*vocab_map"):
        helpers.trainer(tmp_path, model=small)
    rows = datasets.Dataset.from_dict({"input_ids": [[0, 5, 6, 96], [1, 2, 3]]})
    trainer = helpers.trainer(
        tmp_path, model=small, vocab_map=vocab_map, train_dataset=rows, eval_dataset=rows, mask_share=0.0, max_steps=1
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    assert VocabMap.load(tmp_path / "saved").kept_ids.tolist() == vocab_map.kept_ids.tolist()
    names = {path.name for path in (tmp_path / "saved").iterdir()}
    assert {"model.safetensors", "tokenizer.json", "config.json", "vocab_map.safetensors"} <= names


def test_a_resumed_run_ends_as_one_that_was_never_stopped(tmp_path):
    whole = helpers.trainer(tmp_path / "whole", max_steps=6, positions="masked")
    whole.train()
    settings = {"max_steps": 6, "positions": "masked", "save_strategy": "steps", "save_steps": 3}
    helpers.trainer(tmp_path / "cut", **settings).train()
    resumed = helpers.trainer(tmp_path / "cut", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-3"))
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_teacher_of_nan_is_named(tmp_path):
    broken = helpers.teacher()
    broken.get_input_embeddings().weight.data.fill_(torch.nan)
    with pytest.raises(UsageError, match="teacher .* predicts NaN at step 0"):
        helpers.trainer(tmp_path, teacher=broken).train()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"processing_class": None}, "processing_class is missing"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path, settings, message):
    from hf_glmd import GLMDTrainer

    with pytest.raises(UsageError, match=message):
        GLMDTrainer(
            **{"model": helpers.student(), "teacher": helpers.teacher(), "processing_class": helpers.TOKENIZER, **settings}
        )


@pytest.mark.parametrize("kind", ["hidden", "topk"])
def test_a_cache_stands_for_its_teacher(tmp_path, kind):
    settings = {"positions": "masked", "temperature": 1.0, "max_steps": 3, "num_train_epochs": 1}
    collator = WordPredictionCollator(helpers.TOKENIZER, "masked", 0.15, seed=42)
    rows = list(helpers.rows())
    batches = [collator(rows[start : start + 5]) for start in range(0, len(rows), 5)]
    kinds = {"hidden": {"dtype": "fp32"}, "topk": {"k": vocab_helpers.V - 1, "temperature": 1.0}}[kind]
    cache = TeacherCache.build(
        LiveTeacher(helpers.teacher()),
        batches,
        tmp_path / "cache",
        kind,
        fingerprint={"tokenizer": tokenizer_fingerprint(helpers.TOKENIZER)},
        **kinds,
    )
    found = helpers.trainer(tmp_path / "a", teacher=cache, eval_dataset=helpers.rows(), **settings)
    live = helpers.trainer(tmp_path / "b", eval_dataset=helpers.rows(), **settings)
    assert found.evaluate()["eval_loss"] == pytest.approx(live.evaluate()["eval_loss"], rel=1e-3 if kind == "topk" else 1e-5)
    before = found.evaluate()["eval_loss"]
    found.train()
    assert found.evaluate()["eval_loss"] < before
    with pytest.raises(UsageError, match="objective='soft_label' needs a teacher that runs"):
        helpers.trainer(tmp_path / "c", teacher=cache, objective="soft_label")
    if kind == "topk":
        with pytest.raises(UsageError, match="temperature 1.0"):
            helpers.trainer(tmp_path / "c", teacher=cache, temperature=2.0)
