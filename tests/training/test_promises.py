"""What people expect of a Trainer holds for this one, too."""

import math
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import training_helpers as helpers
import vocab_helpers
from transformers import AutoModelForMaskedLM, AutoTokenizer, EarlyStoppingCallback, TrainerCallback

from hf_glmd import TeacherCache, UsageError, VocabMap
from hf_glmd.data.collators import WordPredictionCollator
from hf_glmd.losses.reference import dense_word_prediction_loss
from hf_glmd.teachers.ensemble import TeacherEnsemble
from hf_glmd.teachers.live import LiveTeacher
from hf_glmd.teachers.writing import write_cache

TESTS = Path(__file__).parents[1]


def opinionated(noise: float = 0.0):
    """A model that predicts other words in other places; with noise, some others."""
    model, weights, others = helpers.student(), torch.Generator().manual_seed(0), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                drawn = (torch.randn(parameter.shape, generator=generator) for generator in (weights, others))
                parameter.copy_(next(drawn) + noise * next(drawn))
            else:
                parameter.fill_(1.0 if name.endswith("LayerNorm.weight") else 0.0)
    return model


def losses(trainer) -> list[float]:
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


# Scores


def teacher_of_kind(kind: str, folder: Path):
    if kind == "dense":
        return TeacherEnsemble([LiveTeacher(opinionated()), LiveTeacher(opinionated())])
    if kind == "top tokens":
        collator = WordPredictionCollator(helpers.TOKENIZER, "all", 0.15, seed=42)
        parts = [(helpers.rows(), 1), (helpers.rows(11), 1)]
        teacher = LiveTeacher(opinionated())
        write_cache(teacher, parts, collator, helpers.TOKENIZER, folder / "cache", data={}, kind="topk", k=20, temperature=2.0)
        return TeacherCache.load(folder / "cache")
    return opinionated()


@pytest.mark.parametrize("kind", ["fused", "dense", "top tokens"])
def test_metrics_get_the_likeliest_tokens_of_both_models(tmp_path, kind):
    seen = []

    def compute_metrics(found):
        seen.append(found)
        teacher, words = found.label_ids
        counted = teacher >= 0
        return {"same": (found.predictions == teacher)[counted].mean(), "right": (found.predictions == words)[words >= 0].mean()}

    settings = {"compute_metrics": compute_metrics, "temperature": 2.0, "per_device_eval_batch_size": 4}
    settings["model"] = opinionated(0.2)
    trainer = helpers.trainer(tmp_path, teacher=teacher_of_kind(kind, tmp_path), **settings)
    metrics = trainer.evaluate()
    (found,) = seen
    longest = max(len(ids) for ids in helpers.rows(11)["input_ids"])
    assert found.predictions.shape == (11, longest) and found.predictions.dtype == np.int64
    assert [part.shape for part in found.label_ids] == [(11, longest)] * 2
    assert ((found.predictions >= 0) == (found.label_ids[0] >= 0)).all()
    assert metrics["eval_same"] == pytest.approx(metrics["eval_agreement"], abs=1e-6) and 0 < metrics["eval_same"] < 1
    hidden = found.label_ids[1] >= 0
    assert 0 < hidden.sum() < (found.predictions >= 0).sum()  # only words that were hidden are known
    batch = WordPredictionCollator(helpers.TOKENIZER, "all", 0.15, seed=42)(list(helpers.rows(11)))
    with torch.no_grad():
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        student = opinionated(0.2).eval()(**inputs).logits.argmax(-1)
    assert (student.numpy() == found.predictions)[found.predictions >= 0].all()


def test_metrics_choose_the_best_checkpoint_and_perplexity_is_that_of_the_cross_entropy(tmp_path):
    metrics = helpers.trainer(tmp_path).evaluate()
    assert metrics["eval_perplexity"] == pytest.approx(math.exp(metrics["eval_cross_entropy"]))
    with pytest.raises(UsageError, match="preprocess_logits_for_metrics has nothing to do"):
        trainer = helpers.trainer(tmp_path)
        type(trainer)(
            trainer.model,
            helpers.teacher(),
            trainer.args,
            processing_class=helpers.TOKENIZER,
            preprocess_logits_for_metrics=print,
        )


@pytest.mark.parametrize("fused", [True, False])
def test_a_logged_step_says_how_near_the_student_was(tmp_path, fused):
    settings = {"train_sampling_strategy": "sequential", "logging_steps": 2, "max_steps": 2, "learning_rate": 0.0}
    trainer = helpers.trainer(
        tmp_path, fused_loss=fused, per_device_train_batch_size=3, gradient_accumulation_steps=2, **settings
    )
    trainer.train()
    (log,) = (entry for entry in trainer.state.log_history if "loss" in entry)
    collator = WordPredictionCollator(helpers.TOKENIZER, "all", 0.15, seed=42)
    collator.epoch = 1
    batch = collator(
        [{"input_ids": ids} for ids in helpers.rows()["input_ids"][6:12]]
    )  # all of the second step, and nothing else
    with torch.no_grad():
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        student, teacher = (model.eval()(**inputs).logits.double() for model in (helpers.student(), helpers.teacher()))
    counted = batch["prediction_mask"]
    assert log["kl"] == pytest.approx(dense_word_prediction_loss(student, teacher, 1.0)[counted].mean().item(), rel=1e-4)
    agreement = (student.argmax(-1) == teacher.argmax(-1))[counted].double().mean().item()
    assert log["agreement"] == pytest.approx(agreement, abs=1e-6)
    found = torch.nn.functional.cross_entropy(student.flatten(0, 1), batch["targets"].flatten()).item()
    assert log["cross_entropy"] == pytest.approx(found, rel=1e-4) and log["perplexity"] == pytest.approx(
        math.exp(found), rel=1e-3
    )


def test_steps_that_are_not_logged_are_not_scored(tmp_path, monkeypatch):
    scored = []
    trainer = helpers.trainer(tmp_path, logging_steps=3, max_steps=4, logging_first_step=True)
    monkeypatch.setattr(trainer, "add_scores", lambda scores: scored.append(trainer.state.global_step + 1))
    trainer.train()
    assert scored == [1, 3]


# Control


def test_the_best_checkpoint_is_kept_and_training_stops_early(tmp_path):
    class Counting(TrainerCallback):
        evaluations = 0

        def on_evaluate(self, args, state, control, **kwargs):
            type(self).evaluations += 1

    trainer = helpers.trainer(
        tmp_path,
        callbacks=[EarlyStoppingCallback(2), Counting],
        learning_rate=30.0,  # so that it only gets worse
        max_steps=20,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="kl",
        greater_is_better=False,
    )
    trainer.train()
    assert Counting.evaluations == trainer.state.global_step < 20
    best = trainer.state.best_model_checkpoint
    kept = AutoModelForMaskedLM.from_pretrained(best)
    assert all(torch.equal(one, other) for one, other in zip(kept.parameters(), trainer.model.parameters(), strict=True))
    logged = {entry["step"]: entry["eval_kl"] for entry in trainer.state.log_history if "eval_kl" in entry}
    assert min(logged, key=logged.get) == int(best.split("-")[-1])


def test_logs_are_reported(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "logs"))
    helpers.trainer(tmp_path, report_to="tensorboard").train()
    assert list((tmp_path / "logs").rglob("events*"))


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_gradient_checkpointing_changes_nothing(tmp_path, name):
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0} if name == "bert" else {}
    found = []
    for checkpointing in (False, True):
        student = vocab_helpers.tiny_model(name, **dropout)
        with torch.no_grad():
            teacher = vocab_helpers.tiny_model(name, **dropout)
            for parameter in teacher.parameters():
                parameter.mul_(1.5)
        settings = {"model": student, "teacher": teacher, "gradient_checkpointing": checkpointing, "max_steps": 3}
        found.append(losses(helpers.trainer(tmp_path, **settings)))
    assert found[1] == pytest.approx(found[0], rel=1e-5) and found[0][0] > 0


def test_half_precision(tmp_path):
    plain = losses(helpers.trainer(tmp_path, max_steps=3, temperature=2.0))
    low = losses(helpers.trainer(tmp_path, max_steps=3, temperature=2.0, bf16=True))
    assert low == pytest.approx(plain, rel=0.05) and low != plain
    with pytest.raises(UsageError, match="fp16=True does nothing on a CPU"):
        helpers.trainer(tmp_path, fp16=True)


@pytest.mark.slow
def test_compiling(tmp_path):
    plain = losses(helpers.trainer(tmp_path, max_steps=3, temperature=2.0))
    compiled = helpers.trainer(tmp_path, max_steps=3, temperature=2.0, torch_compile=True, torch_compile_backend="eager")
    assert losses(compiled) == pytest.approx(plain, rel=1e-5)
    assert type(compiled.model_wrapped).__name__ == "OptimizedModule"


# What is saved


def test_a_checkpoint_holds_vocabulary_and_tokenizer_and_never_the_teacher(tmp_path):
    vocab_map = VocabMap(np.arange(vocab_helpers.V), vocab_helpers.V)
    trainer = helpers.trainer(tmp_path, vocab_map=vocab_map, save_strategy="steps", save_steps=2, max_steps=2)
    trainer.train()
    folder = tmp_path / "checkpoint-2"
    assert VocabMap.load(folder).size == vocab_helpers.V
    assert AutoTokenizer.from_pretrained(folder).get_vocab() == helpers.TOKENIZER.get_vocab()
    student = AutoModelForMaskedLM.from_pretrained(folder)
    assert all(torch.equal(one, other) for one, other in zip(student.parameters(), trainer.model.parameters(), strict=True))
    unique = sum(p.numel() for p in student.parameters()) * 4
    states = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert unique <= states["model.safetensors"] < 1.2 * unique  # and no second model
    moments = torch.load(folder / "optimizer.pt")["state"].values()
    assert sum(state["exp_avg"].numel() for state in moments) * 4 == unique and states["training_args.bin"] < 20_000


SCRIPT = """
import json, sys, time, torch, training_helpers as helpers
from pathlib import Path
from transformers import TrainerCallback

folder, wait = Path(sys.argv[1]), float(sys.argv[2])

class Slow(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        print(state.global_step, flush=True)
        time.sleep(wait)

settings = {"max_steps": 30, "save_strategy": "steps", "save_steps": 3, "save_total_limit": 2}
trainer = helpers.trainer(folder / "run", model=helpers.student(hidden_dropout_prob=0.1), **settings)
trainer.add_callback(Slow())
complete = [path for path in (folder / "run").glob("checkpoint-*") if (path / "trainer_state.json").exists()]
newest = max(complete, key=lambda path: int(path.name.split("-")[-1]), default=None)
trainer.train(resume_from_checkpoint=str(newest) if newest else None)
timed = ("tokens_per_second", "peak_memory_mib")
logs = [{n: v for n, v in log.items() if n not in timed} for log in trainer.state.log_history if "loss" in log]
torch.save({"weights": trainer.model.state_dict(), "optimizer": trainer.optimizer.state_dict(), "logs": logs}, folder / "end.pt")
"""


def run_script(folder: Path, wait: float) -> subprocess.Popen:
    folder.mkdir(exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT, str(folder), str(wait)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


@pytest.mark.slow
def test_killed_at_any_step_it_ends_as_if_nothing_had_happened(tmp_path):
    """Weights, optimizer, order of the data, dropout and logs."""
    whole = run_script(tmp_path / "whole", 0.0)
    whole.communicate(timeout=200)
    seed = random.randrange(10**6)
    draw = random.Random(seed)
    for _ in range(3):
        process = run_script(tmp_path / "killed", 0.05)
        steps = draw.randrange(1, 15)
        for number, _line in enumerate(process.stdout, 1):
            if number == steps:
                break
        process.send_signal(signal.SIGKILL)
        process.stdout.close()
        assert process.wait(60) == -signal.SIGKILL
    run_script(tmp_path / "killed", 0.0).communicate(timeout=200)
    one, other = (torch.load(tmp_path / name / "end.pt", weights_only=False) for name in ("whole", "killed"))
    assert one["logs"] == other["logs"] and len(one["logs"]) == 30, f"seed {seed}"
    for name, tensor in one["weights"].items():
        assert torch.equal(tensor, other["weights"][name]), f"{name}, seed {seed}"
    for number, state in one["optimizer"]["state"].items():
        for name, value in state.items():
            assert torch.equal(value, other["optimizer"]["state"][number][name]), f"{name}, seed {seed}"


def test_text_without_labels_trains_and_evaluates(tmp_path):
    rows = datasets.Dataset.from_dict({"text": vocab_helpers.texts(60), "label": list(range(60)), "other": [None] * 60})
    trainer = helpers.trainer(tmp_path, train_dataset=rows, eval_dataset=rows, max_length=16)
    assert len(losses(trainer)) == 4 and trainer.evaluate()["eval_loss"] > 0
