"""The formulas against textbook values in fp64."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_glmd.losses.reference import dense_logits, dense_soft_label_loss, dense_word_prediction_loss

K = 13


def logits(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, K, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 3


def test_logits_are_scaled_and_then_capped():
    hidden, weight, bias = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 0.0], [0.0, 50.0]]), torch.tensor([1.0, -10.0])
    torch.testing.assert_close(dense_logits(hidden, weight), torch.tensor([[3.0, 100.0]]))
    torch.testing.assert_close(dense_logits(hidden, weight, bias, scale=0.5), torch.tensor([[2.0, 45.0]]))
    capped = torch.tensor([[30 * math.tanh(2 / 30), 30 * math.tanh(45 / 30)]])
    torch.testing.assert_close(dense_logits(hidden, weight, bias, scale=0.5, softcap=30.0), capped)


@given(st.integers(0, 1000), st.floats(0.5, 50))
def test_it_is_the_kullback_leibler_divergence_times_the_squared_temperature(seed, temperature):
    student, teacher = logits(seed, 5), logits(seed + 1, 5)
    p, q = torch.softmax(teacher / temperature, -1), torch.softmax(student / temperature, -1)
    expected = temperature**2 * (p * (p / q).log()).sum(-1)
    torch.testing.assert_close(dense_word_prediction_loss(student, teacher, temperature), expected, rtol=1e-9, atol=1e-9)


def test_it_is_zero_where_both_agree_and_blind_to_constants():
    student = logits(0, 4)
    assert dense_word_prediction_loss(student, student + 7.0, 2.0).abs().max() < 1e-12


def test_its_gradient_is_the_temperature_times_the_difference_of_the_softmaxes():
    student, teacher = logits(0, 4).requires_grad_(), logits(1, 4)
    dense_word_prediction_loss(student, teacher, 3.0).sum().backward()
    expected = 3.0 * (torch.softmax(student / 3, -1) - torch.softmax(teacher / 3, -1))
    torch.testing.assert_close(student.grad, expected.detach())


def test_a_token_that_the_teacher_rules_out_adds_nothing():
    student, teacher = logits(0, 2).requires_grad_(), logits(1, 2)
    teacher[:, 3] = -torch.inf
    loss = dense_word_prediction_loss(student, teacher, 1.0)
    loss.sum().backward()
    assert torch.isfinite(loss).all() and torch.isfinite(student.grad).all()


@pytest.mark.parametrize("loss", [dense_word_prediction_loss, dense_soft_label_loss])
def test_different_shapes_are_refused_by_name(loss):
    with pytest.raises(ValueError, match=r"\(2, 13\).*\(3, 13\)"):
        loss(logits(0, 2), logits(0, 3), 1.0)


def test_soft_labels_are_cross_entropy_with_the_teachers_answers():
    student, teacher = torch.tensor([[0.0, math.log(3)]]), torch.tensor([[0.0, 0.0]])
    expected = -(0.5 * math.log(0.25) + 0.5 * math.log(0.75))
    assert dense_soft_label_loss(student, teacher, 1.0).item() == pytest.approx(expected)


def test_soft_labels_ignore_missing_candidates():
    student, teacher = logits(0, 2).requires_grad_(), logits(1, 2)
    padded = [torch.cat([part, torch.full((2, 1), -torch.inf, dtype=torch.float64)], 1) for part in (student, teacher)]
    loss = dense_soft_label_loss(*padded, 1.0)
    torch.testing.assert_close(loss, dense_soft_label_loss(student, teacher, 1.0))
    loss.sum().backward()
    assert torch.isfinite(student.grad).all()
