"""Soft labels of classifiers: classes, several labels at once, numbers."""

import pytest
import torch

from hf_glmd.losses.classification import class_loss, class_scores
from hf_glmd.models.class_heads import PROBLEMS

torch.manual_seed(0)
STUDENT, TEACHER = torch.randn(7, 5, dtype=torch.float64), torch.randn(7, 5, dtype=torch.float64) * 3


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_classes_cost_what_the_distributions_say(temperature):
    ours, theirs = (torch.distributions.Categorical(logits=logits / temperature) for logits in (STUDENT, TEACHER))
    expected = temperature**2 * (torch.distributions.kl_divergence(theirs, ours) + theirs.entropy())
    torch.testing.assert_close(class_loss(STUDENT, TEACHER, "single_label_classification", temperature), expected)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_labels_cost_what_their_two_way_choices_say(temperature):
    ours, theirs = (torch.distributions.Bernoulli(logits=logits / temperature) for logits in (STUDENT, TEACHER))
    expected = temperature**2 * (torch.distributions.kl_divergence(theirs, ours) + theirs.entropy()).mean(-1)
    torch.testing.assert_close(class_loss(STUDENT, TEACHER, "multi_label_classification", temperature), expected)


def test_a_number_costs_its_squared_difference():
    torch.testing.assert_close(class_loss(STUDENT, TEACHER, "regression", 2.0), ((STUDENT - TEACHER) ** 2).mean(-1))
    one = class_loss(STUDENT[:, :1], TEACHER[:, :1], "regression", 1.0)
    assert (one > 0).all(), "of one output a softmax would see nothing"


@pytest.mark.parametrize("problem", PROBLEMS)
def test_nothing_is_better_than_the_teacher_itself(problem):
    student = TEACHER.clone().requires_grad_()
    loss = class_loss(student, TEACHER, problem, 1.0)
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    assert gradient.abs().max() < 1e-12 and (class_loss(STUDENT, TEACHER, problem, 1.0) > loss).all()
    scores = class_scores(TEACHER, TEACHER, problem)
    if problem == "regression":
        assert scores["absolute_difference"].eq(0).all()
    else:
        assert scores["kl"].abs().max() < 1e-12 and scores["agreement"].eq(1).all()
        torch.testing.assert_close(scores["teacher_entropy"], loss.detach())


def test_half_precision_is_summed_in_full():
    loss = class_loss(STUDENT.bfloat16(), TEACHER.bfloat16(), "single_label_classification", 1.0)
    assert loss.dtype == torch.float32
