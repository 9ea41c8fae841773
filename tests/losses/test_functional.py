"""What the losses do around the formulas: checks, masks, reductions."""

import pytest
import torch

from hf_glmd import UsageError, soft_label_loss, word_prediction_loss
from hf_glmd.losses.functional import word_prediction_loss_from_logits
from hf_glmd.losses.reference import dense_word_prediction_loss

K, H_S, H_T = 31, 7, 11


@pytest.fixture
def inputs() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    made = {
        "student_hidden": torch.randn(3, 5, H_S),
        "student_weight": torch.randn(K, H_S),
        "teacher_hidden": torch.randn(3, 5, H_T),
        "teacher_weight": torch.randn(K, H_T),
        "student_bias": torch.randn(K),
        "teacher_bias": torch.randn(K),
    }
    return {name: tensor.double() for name, tensor in made.items()}


def dense(inputs: dict[str, torch.Tensor], temperature: float) -> torch.Tensor:
    student = inputs["student_hidden"] @ inputs["student_weight"].T + inputs["student_bias"]
    teacher = inputs["teacher_hidden"] @ inputs["teacher_weight"].T + inputs["teacher_bias"]
    return dense_word_prediction_loss(student, teacher, temperature)


def test_reductions_agree_with_the_reference(inputs):
    mask = torch.rand(3, 5) < 0.6
    values = dense(inputs, 4.0)
    assert word_prediction_loss(**inputs, mask=mask, temperature=4.0).item() == pytest.approx(values[mask].mean().item())
    assert word_prediction_loss(**inputs, mask=mask, temperature=4.0, reduction="sum").item() == pytest.approx(
        values[mask].sum().item()
    )
    per_position = word_prediction_loss(**inputs, mask=mask, temperature=4.0, reduction="none")
    torch.testing.assert_close(per_position, torch.where(mask, values, 0.0))


def test_positions_that_do_not_count_are_not_even_read(inputs):
    mask = torch.zeros(3, 5, dtype=torch.bool)
    mask[0, 1] = True
    inputs["student_hidden"][~mask] = torch.nan
    inputs["teacher_hidden"][~mask] = torch.nan
    assert torch.isfinite(word_prediction_loss(**inputs, mask=mask))


def test_nothing_counted_is_a_zero_with_gradients(inputs):
    inputs["student_weight"].requires_grad_()
    loss = word_prediction_loss(**inputs, mask=torch.zeros(3, 5))
    loss.backward()
    assert loss.item() == 0 and inputs["student_weight"].grad.abs().max() == 0


def test_the_normalizer_replaces_the_count(inputs):
    total = word_prediction_loss(**inputs, reduction="sum")
    assert word_prediction_loss(**inputs, normalizer=1000.0).item() == pytest.approx(total.item() / 1000)


def test_no_gradient_reaches_the_teacher(inputs):
    for tensor in inputs.values():
        tensor.requires_grad_()
    word_prediction_loss(**inputs).backward()
    assert inputs["teacher_weight"].grad is None and inputs["teacher_hidden"].grad is None
    assert inputs["student_weight"].grad.abs().max() > 0


def test_low_precision_logits_are_widened():
    student = torch.randn(64, 999, dtype=torch.float64) * 4
    teacher = (student + torch.randn_like(student) * 0.1).bfloat16()
    student = student.bfloat16()
    truth = dense_word_prediction_loss(student.double(), teacher.double(), 15.0).mean()
    plain = dense_word_prediction_loss(student, teacher, 15.0).mean()
    ours = word_prediction_loss_from_logits(student, teacher, 15.0)
    assert ours.dtype == torch.float32
    assert (ours - truth).abs() < 0.01 * (plain - truth).abs()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "temperature=0.0 is not positive"),
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"reduction": "median"}, "reduction='median'"),
        ({"mask": torch.ones(3, 4)}, r"mask \(3, 4\).*\(3, 5\)"),
        ({"teacher_weight": torch.randn(K + 1, H_T).double()}, f"{K} rows and teacher_weight {K + 1}"),
        ({"teacher_hidden": torch.randn(3, 4, H_T).double()}, r"\(3, 5, 7\).*\(3, 4, 11\)"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(inputs, change, message):
    with pytest.raises(UsageError, match=message):
        word_prediction_loss(**{**inputs, **change})


def test_soft_labels_of_chosen_examples():
    student, teacher = torch.randn(4, 3), torch.randn(4, 3)
    mask = torch.tensor([1, 0, 1, 0])
    assert soft_label_loss(student, teacher, mask=mask).item() == pytest.approx(
        soft_label_loss(student[::2], teacher[::2]).item()
    )
    with pytest.raises(UsageError, match=r"\(4, 3\).*\(4, 2\)"):
        soft_label_loss(student, teacher[:, :2])
