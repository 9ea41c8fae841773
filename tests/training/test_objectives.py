"""A new objective and a new kind of teacher are one class each, and one line where the others stand."""

import pytest
import torch
import training_helpers as helpers

from hf_glmd import GLMDConfig
from hf_glmd.data.collators import WordPredictionCollator, model_inputs
from hf_glmd.errors import UsageError
from hf_glmd.teachers import kinds as teacher_kinds
from hf_glmd.teachers.base import Teacher
from hf_glmd.training.objectives import kinds
from hf_glmd.training.objectives.base import Objective


class MeanLogit(Objective):
    """The squared difference of the mean logits: nobody needs it, and it is no KL."""

    name = "mean_logit"
    default_temperature = 3.0

    @classmethod
    def collator(cls, args, tokenizer, model):
        return WordPredictionCollator(tokenizer, mlm_probability=0.0)

    def teach(self, inputs):
        return self.teacher_logits(inputs, self.args.temperature)

    def ask(self, model, inputs, compute):
        return self.head.of_logits(model, model_inputs(inputs), compute, inputs["prediction_mask"])

    def loss(self, student, teacher, inputs):
        return (student.mean(-1) - teacher.mean(-1)).square().sum()

    def scores(self, student, teacher, inputs, choices):
        return {"loss": (student.mean(-1) - teacher.mean(-1)).square()}


class Shouting(Teacher):
    """Finds the first token a thousand times as probable as any other, whatever it reads."""

    size = helpers.TOKENIZER.vocab_size
    fallback = "it has no weights"

    @classmethod
    def of(cls, source, vocab_map):
        return cls() if source == "shout" else None

    def logits(self, inputs, positions, temperature=1.0):
        logits = torch.zeros(int(positions.sum()), self.size)
        logits[:, 0] = torch.tensor(1000.0).log()
        return logits


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setattr(kinds, "OBJECTIVES", [*kinds.OBJECTIVES, MeanLogit])
    monkeypatch.setattr(teacher_kinds, "KINDS", [Shouting, *teacher_kinds.KINDS])


def test_a_new_objective_is_configured_trained_and_scored(registered, tmp_path):
    trainer = helpers.trainer(tmp_path, objective="mean_logit", max_steps=12, learning_rate=3e-3)
    assert trainer.args.temperature == 3.0 and isinstance(trainer.training_objective, MeanLogit)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.5 * before


def test_an_objective_that_nobody_registered_is_unknown(tmp_path):
    with pytest.raises(UsageError, match="objective='mean_logit' is unknown, use 'word_prediction' or 'soft_label'"):
        GLMDConfig(output_dir=tmp_path, objective="mean_logit")


def test_a_new_kind_of_teacher_is_found_by_its_source(registered, tmp_path):
    trainer = helpers.trainer(tmp_path, teacher="shout", temperature=1.0, max_steps=40, learning_rate=1e-2)
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert before["eval_agreement"] < 0.5 and after["eval_agreement"] == 1 and after["eval_kl"] < 0.5 * before["eval_kl"]


def test_what_no_kind_knows_is_refused(registered, tmp_path):
    with pytest.raises(UsageError, match="teacher is a int"):
        helpers.trainer(tmp_path, teacher=7)
