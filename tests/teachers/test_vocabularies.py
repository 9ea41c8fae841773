"""Students and teachers of one tokenizer whose tables are padded to different sizes."""

import numpy as np
import pytest
import torch
import training_helpers as helpers
import vocab_helpers
from transformers import AutoModelForMaskedLM

from hf_glmd import TeacherCache, UsageError, VocabMap
from hf_glmd.data.collators import WordPredictionCollator
from hf_glmd.models.surgery import resize_model
from hf_glmd.teachers.live import LiveTeacher
from hf_glmd.teachers.writing import write_cache

V = vocab_helpers.V
STEPS = {"max_steps": 3, "temperature": 2.0}


def made(size: int, seed: int, **settings):
    torch.manual_seed(seed)
    return vocab_helpers.tiny_model(
        "bert", vocab_size=size, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **settings
    )


def cropped(model):
    """By hand: the rows that the tokenizer has tokens for."""
    small = resize_model(model, VocabMap(np.arange(V), model.config.vocab_size))
    return small[0] if isinstance(small, tuple) else small


@pytest.fixture(scope="module")
def padded_teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    teacher = made(224, 1)
    with torch.no_grad():
        teacher.cls.predictions.decoder.bias[V:] += 5.0  # what stands in rows of no token must not matter
    teacher.save_pretrained(folder)
    helpers.TOKENIZER.save_pretrained(folder)
    return folder


def run(folder, **parts):
    trainer = helpers.trainer(folder, **STEPS, **parts)
    metrics = trainer.evaluate()
    trainer.train()
    return metrics, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], trainer.model


@pytest.mark.parametrize(("size", "fused"), [(V, True), (217, True), (230, False)])
def test_it_is_as_if_both_were_cropped_by_hand(tmp_path, padded_teacher, size, fused):
    teacher = AutoModelForMaskedLM.from_pretrained(padded_teacher)
    wanted = run(tmp_path, model=cropped(made(size, 2)), teacher=cropped(teacher), fused_loss=fused)
    student = made(size, 2)
    found = run(tmp_path, model=student, teacher=str(padded_teacher), fused_loss=fused)
    for name in ("eval_loss", "eval_kl", "eval_agreement", "eval_cross_entropy"):
        assert found[0][name] == pytest.approx(wanted[0][name], rel=1e-5)
    assert found[1] == pytest.approx(wanted[1], rel=1e-5)
    before = made(size, 2).get_output_embeddings().weight[V:]
    after = student.get_output_embeddings().weight[V:]
    assert len(after) == size - V and torch.equal(before, after)  # no gradient but 0 ever reached the rest


def test_a_map_or_a_cache_says_it_too(tmp_path, padded_teacher):
    student = made(217, 2)
    wanted = helpers.trainer(tmp_path, model=student, teacher=str(padded_teacher), **STEPS).evaluate()["eval_loss"]
    memory = AutoModelForMaskedLM.from_pretrained(padded_teacher)
    vocab_map = VocabMap(np.arange(V), 224)
    found = helpers.trainer(tmp_path, model=student, teacher=memory, vocab_map=vocab_map, **STEPS)
    assert found.evaluate()["eval_loss"] == pytest.approx(wanted, rel=1e-6)
    collator = WordPredictionCollator(helpers.TOKENIZER, "all", 0.15, seed=42)
    parts = [(helpers.rows(), 1), (helpers.rows(11), 1)]
    write_cache(LiveTeacher(memory), parts, collator, helpers.TOKENIZER, tmp_path / "cache", data={}, dtype="fp32")
    found = helpers.trainer(tmp_path, model=student, teacher=TeacherCache.load(tmp_path / "cache"), **STEPS)
    assert found.evaluate()["eval_loss"] == pytest.approx(wanted, rel=1e-5)


def test_sizes_that_nothing_explains_are_refused(tmp_path):
    for size in (217, 250):
        with pytest.raises(UsageError, match=rf"predicts {size} tokens, the teacher 224. Pass vocab_map=.*arange\(211\), 224\)"):
            helpers.trainer(tmp_path, model=made(size, 2), teacher=made(224, 1))
    with pytest.raises(UsageError, match=r"the student predicts 199 tokens, the teacher 211. Pass vocab_map=vocab.vocab_map"):
        helpers.trainer(tmp_path, model=made(199, 2), teacher=made(V, 1))
