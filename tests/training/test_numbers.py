"""Numbers that make no sense are refused before training, and training that breaks stops before anything is written."""

import json
import logging

import pytest
import torch
import training_helpers as helpers
from safetensors import safe_open
from torch import nn

from hf_glmd import GLMDConfig, build_student
from hf_glmd.errors import UsageError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 1e-6}, "temperature=1e-06 is out of range"),
        ({"temperature": 1e30}, "temperature=1e+30 is out of range, use 0.01 to 1000"),
        ({"temperature": float("nan")}, "temperature=nan is not a finite number"),
        ({"learning_rate": float("inf")}, "learning_rate=inf is not a finite number"),
        ({"learning_rate": -1e-3}, "learning_rate=-0.001 is too small, use 0 or more"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps=0 is too small, use 1 or more"),
        ({"per_device_train_batch_size": -4}, "per_device_train_batch_size=-4 is too small"),
        ({"adam_beta2": 1.0}, "adam_beta2=1.0 is out of range, use less than 1"),
        ({"max_grad_norm": float("nan")}, "max_grad_norm=nan is not a finite number"),
        ({"num_train_epochs": -1.0}, "num_train_epochs=-1.0 is too small"),
        ({"loss_chunk_mib": float("inf")}, "loss_chunk_mib=inf is not a finite number"),
        ({"mlm_probability": float("nan")}, "mlm_probability=nan is not a finite number"),
        ({"temperature": "warm"}, "temperature='warm' is not a number"),
        ({"max_length": "long"}, "max_length='long' is not a number"),
        ({"adam_beta1": None}, "adam_beta1=None is not a number"),
        ({"save_steps": -5}, "save_steps=-5 is too small, use 0 or more"),
        ({"max_steps": -5}, "max_steps=-5 is too small, use -1 or more"),
        ({"seed": 2**70}, "seed=1180591620717411303424 is out of range, use less than 4294967296"),
    ],
)
def test_numbers_out_of_range_are_refused_with_what_would_do(options, message, tmp_path):
    with pytest.raises(UsageError) as caught:
        GLMDConfig(output_dir=str(tmp_path), **options)
    assert message in str(caught.value)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_training_stops_at_the_first_loss_that_is_not_finite(tmp_path, accumulation):
    """The batch is kept, no checkpoint has been written since, and the weights are those before the step."""
    accumulated = {"gradient_accumulation_steps": accumulation}
    trainer = helpers.trainer(tmp_path, max_steps=9, save_steps=1, save_strategy="steps", **accumulated)
    compute = trainer.compute_loss
    seen = []

    def broken(model, inputs, *args, **kwargs):
        seen.append(inputs)
        return compute(model, inputs, *args, **kwargs) * (float("nan") if len(seen) == 2 * accumulation + 1 else 1)

    trainer.compute_loss = broken
    with pytest.raises(UsageError, match=r"the loss is not finite at step 3.*Lower learning_rate \(now") as caught:
        trainer.train()
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-1", "checkpoint-2"}
    assert all(weight.isfinite().all() for weight in trainer.model.parameters())
    with safe_open(tmp_path / "not_finite" / "batch-0-0.safetensors", framework="pt") as batch:
        assert batch.metadata() == {"step": "3"}
        assert torch.equal(batch.get_tensor("input_ids"), seen[2 * accumulation]["input_ids"])
    assert str(tmp_path / "not_finite") in str(caught.value)


def test_a_gradient_that_is_not_finite_is_refused_before_the_step(tmp_path):
    """The loss alone would tell one step later, when the weights are broken and another batch is at hand."""
    trainer = helpers.trainer(tmp_path, max_steps=3, gradient_accumulation_steps=2)
    seen, before = [], [weight.detach().clone() for weight in trainer.model.parameters()]
    compute = trainer.compute_loss

    def watched(model, inputs, *args, **kwargs):
        seen.append(inputs["input_ids"])
        return compute(model, inputs, *args, **kwargs)

    trainer.compute_loss = watched
    next(trainer.model.parameters()).register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(UsageError, match=r"the gradient is not finite at step 1, .* before it changed the weights"):
        trainer.train()
    assert all(torch.equal(old, new) for old, new in zip(before, trainer.model.parameters(), strict=True))
    for number in range(2):  # each of them may be to blame
        with safe_open(tmp_path / "not_finite" / f"batch-0-{number}.safetensors", framework="pt") as batch:
            assert torch.equal(batch.get_tensor("input_ids"), seen[number])


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    trainer = helpers.trainer(tmp_path)
    nn.init.constant_(next(trainer.model.parameters()), float("nan"))
    with pytest.raises(UsageError, match="1 weights of the student are not finite"):
        trainer.save_model(str(tmp_path / "saved"))
    assert not list((tmp_path / "saved").glob("*.safetensors"))


def test_an_exploding_learning_rate_ends_in_one_line_or_a_warning_but_no_push(tmp_path, caplog):
    options = {"max_steps": 12, "max_grad_norm": 0, "optim": "sgd", "lr_scheduler_type": "constant", "logging_steps": 1}
    with caplog.at_level(logging.WARNING):
        for rate in (1e2, 1e6, 1e30):
            trainer = helpers.trainer(tmp_path, learning_rate=rate, **options)
            try:
                trainer.train()
            except UsageError as error:
                assert "not finite" in str(error)
                continue
            assert "further from its teacher than before training: loss went from" in caplog.text
            with pytest.raises(UsageError, match="nothing is pushed, for the student is further from its teacher"):
                trainer.push_to_hub()
            losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
            assert 0.0 not in losses and json.dumps(losses)


def test_the_settings_for_short_runs_are_defaults_that_give_way(tmp_path):
    masked = GLMDConfig.preset("masked", str(tmp_path), max_steps=7, weight_decay=0.0)
    assert (masked.positions, masked.mask_replace_prob, masked.max_steps, masked.weight_decay) == ("masked", 0.9, 7, 0.0)
    paper = GLMDConfig.preset("paper", str(tmp_path))
    assert (paper.temperature, paper.positions, paper.max_steps) == (15.0, "all", 150_000)
    with pytest.raises(UsageError, match="preset='long' is unknown"):
        GLMDConfig.preset("long", str(tmp_path))
    short = GLMDConfig.short(str(tmp_path), max_steps=7)
    assert (short.temperature, short.learning_rate, short.lr_scheduler_type, short.max_steps) == (1.0, 1e-3, "cosine", 7)
    own = GLMDConfig.short(str(tmp_path), temperature=4.0, learning_rate=2e-3)
    assert (own.temperature, own.learning_rate) == (4.0, 2e-3)
    assert GLMDConfig(str(tmp_path)).temperature == 15.0
    with pytest.raises(UsageError, match="temperature=0 is not positive"):
        GLMDConfig.short(str(tmp_path), temperature=0)


def test_training_that_helps_says_nothing(tmp_path, caplog):
    trainer = helpers.trainer(tmp_path, max_steps=12, learning_rate=1e-2, logging_steps=1)
    trainer.train()
    assert trainer.worse_than_at_start() is None and "further from its teacher" not in caplog.text


@pytest.mark.parametrize("fast", [True, False])
def test_half_precision_that_the_processor_lacks_is_said(tmp_path, caplog, monkeypatch, fast):
    """Measured on an AVX2 processor: 20 to 25 s a step instead of 2.7."""
    monkeypatch.setattr("hf_glmd.training.token_mean.has_fast_bf16", lambda device: fast)
    helpers.trainer(tmp_path / "fp32")
    assert "bf16" not in caplog.text
    helpers.trainer(tmp_path / "bf16", bf16=True)
    assert ("has no instructions for it: training takes many times as long as with bf16=False" in caplog.text) is not fast


def test_the_student_of_a_teacher_in_half_precision_learns(tmp_path, caplog):
    """As the README has it: its weights are float32, the teacher's stay as they are."""
    teacher = helpers.teacher().to(torch.bfloat16)
    student = build_student(teacher, num_layers=1, init="random")
    trainer = helpers.trainer(tmp_path, model=student, teacher=teacher, max_steps=60, learning_rate=1e-2, temperature=2.0)
    before = trainer.evaluate()["eval_kl"]
    trainer.train()
    assert trainer.evaluate()["eval_kl"] < before / 2
    assert teacher.dtype == torch.bfloat16 and "small steps of the optimizer" not in caplog.text


def test_an_optimizer_that_would_step_in_half_precision_is_said(tmp_path, caplog):
    helpers.trainer(tmp_path, model=helpers.student().to(torch.bfloat16))
    assert "The student's weights are bfloat16, in which small steps of the optimizer change nothing." in caplog.text
