"""The loss against a teacher's top tokens, beside its formula in fp64."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_glmd import UsageError
from hf_glmd.losses.chunked import LazyLogits
from hf_glmd.losses.reference import dense_word_prediction_loss
from hf_glmd.losses.topk import (
    TopTokens,
    dense_topk_loss,
    top_tokens,
    topk_word_prediction_loss,
    topk_word_prediction_scores,
)

N, K, H = 23, 211, 8


def made(dtype: torch.dtype = torch.float64, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"student_hidden": (N, H), "student_weight": (K, H), "student_bias": (K,)}
    return {name: torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype) for name, shape in shapes.items()}


def teacher_logits(seed: int = 1) -> torch.Tensor:
    return 3 * torch.randn(N, K, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def student_logits(head: dict[str, torch.Tensor], scale: float = 1.0, softcap: float | None = None) -> torch.Tensor:
    logits = (head["student_hidden"] @ head["student_weight"].T + head["student_bias"]) * scale
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, K), st.floats(0.5, 15), st.integers(0, 1000))
def test_the_formula_is_the_divergence_of_k_tokens_and_a_bucket(k, temperature, seed):
    ours, theirs = teacher_logits(seed), teacher_logits(seed + 1)
    top = top_tokens(theirs, k, temperature)
    p, q = (torch.softmax(logits / temperature, -1) for logits in (theirs, ours))
    rest = torch.ones_like(p, dtype=torch.bool).scatter(1, top.ids, False)
    buckets = [torch.cat([x.gather(1, top.ids), (x * rest).sum(1, keepdim=True)], 1) for x in (p, q)]
    expected = temperature**2 * torch.where(buckets[0] > 0, buckets[0] * (buckets[0] / buckets[1]).log(), 0.0).sum(1)
    torch.testing.assert_close(dense_topk_loss(ours, top), expected, rtol=1e-8, atol=1e-8)
    full = dense_word_prediction_loss(ours, theirs, temperature)
    assert (dense_topk_loss(ours, top) <= full + 1e-9).all()
    torch.testing.assert_close(dense_topk_loss(ours, top_tokens(theirs, K, temperature)), full, rtol=1e-8, atol=1e-8)


def lazy(head, scale=1.0, softcap=None) -> LazyLogits:
    return LazyLogits(head["student_hidden"], head["student_weight"], head.get("student_bias"), scale, softcap)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 15.0])
@pytest.mark.parametrize(("scale", "softcap"), [(1.0, None), (0.25, None), (0.5, 4.0)])
@pytest.mark.parametrize("k", [1, 16, K])
def test_value_and_gradients_are_those_of_the_formula(k, scale, softcap, temperature):
    head, top = made(), top_tokens(teacher_logits(), k, temperature)
    for tensor in head.values():
        tensor.requires_grad_()
    dense_topk_loss(student_logits(head, scale, softcap), top).sum().backward()
    expected = {name: tensor.grad for name, tensor in head.items()}
    for tensor in head.values():
        tensor.grad = None
    loss = topk_word_prediction_loss(lazy(head, scale, softcap), top, "sum", chunk_mib=5 * K * 24 / 2**20)
    torch.testing.assert_close(loss, dense_topk_loss(student_logits(head, scale, softcap), top).sum())
    (2 * loss).backward()
    for name, tensor in head.items():
        torch.testing.assert_close(tensor.grad, 2 * expected[name], msg=lambda text, name=name: f"{name}: {text}")


def test_neither_the_slice_nor_a_missing_bias_changes_anything():
    head, top = made(), top_tokens(teacher_logits(), 16, 2.0)
    del head["student_bias"]
    values = [topk_word_prediction_loss(lazy(head), top, chunk_mib=mib) for mib in (1e-9, 0.01, 64.0)]
    expected = dense_topk_loss(head["student_hidden"] @ head["student_weight"].T, top).mean()
    for value in values:
        torch.testing.assert_close(value, expected)


def test_reductions():
    head, top = made(), top_tokens(teacher_logits(), 16, 2.0)
    values = dense_topk_loss(student_logits(head), top)
    torch.testing.assert_close(topk_word_prediction_loss(lazy(head), top, reduction="none"), values)
    torch.testing.assert_close(topk_word_prediction_loss(lazy(head), top), values.mean())
    torch.testing.assert_close(topk_word_prediction_loss(lazy(head), top, normalizer=1000.0), values.sum() / 1000)


def test_each_position_can_have_a_factor_of_its_own():
    head, top, factors = made(), top_tokens(teacher_logits(), 16, 2.0), torch.rand(N, dtype=torch.float64)
    weight = head["student_weight"].requires_grad_()
    (expected,) = torch.autograd.grad((dense_topk_loss(student_logits(head), top) * factors).sum(), weight)
    (topk_word_prediction_loss(lazy(head), top, reduction="none") * factors).sum().backward()
    torch.testing.assert_close(weight.grad, expected)


def test_scores_are_those_of_each_position():
    head, theirs = made(), teacher_logits()
    ours = student_logits(head, 0.5, 4.0)
    theirs[::2] = ours[::2] + 1.0
    top = top_tokens(theirs, 16, 2.0)
    scores = topk_word_prediction_scores(lazy(head, 0.5, 4.0), top, chunk_mib=0.01)
    torch.testing.assert_close(scores["loss"], dense_topk_loss(ours, top))
    assert torch.equal(scores["agreement"], (ours.argmax(1) == theirs.argmax(1)).double())
    assert scores["agreement"][::2].all() and not scores["agreement"].all()


def test_a_student_that_agrees_pays_nothing_whatever_is_added_to_its_logits():
    logits = teacher_logits()
    top = top_tokens(logits, 16, 2.0)
    assert dense_topk_loss(logits + 7, top).abs().max() < 1e-10
    head = {"student_hidden": logits.requires_grad_(), "student_weight": torch.eye(K, dtype=torch.float64)}
    loss = topk_word_prediction_loss(lazy(head), top)
    loss.backward()
    assert loss.abs() < 1e-10 and logits.grad.abs().max() < 1e-10


def test_nothing_counted_is_a_zero_with_gradients():
    head = made()
    head["student_hidden"] = head["student_hidden"][:0]
    head["student_weight"].requires_grad_()
    top = TopTokens(torch.zeros(0, 4, dtype=torch.int64), torch.zeros(0, 4), torch.zeros(0), 1.0)
    assert topk_word_prediction_loss(lazy(head), top, reduction="none").shape == (0,)
    loss = topk_word_prediction_loss(lazy(head), top)
    loss.backward()
    assert loss.item() == 0 and head["student_weight"].grad.abs().max() == 0
    assert topk_word_prediction_scores(lazy(head), top)["loss"].shape == (0,)


@pytest.mark.parametrize("autocast", [False, True])
def test_low_precision_is_widened_even_under_autocast(autocast):
    head, top = made(torch.bfloat16), top_tokens(teacher_logits(), 16, 2.0)
    truth = dense_topk_loss(student_logits({name: tensor.double() for name, tensor in head.items()}), top).mean()
    head["student_weight"].requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = topk_word_prediction_loss(lazy(head), top)
    loss.backward()
    assert loss.dtype == torch.float32 and head["student_weight"].grad.dtype == torch.bfloat16
    torch.testing.assert_close(loss.double(), truth, rtol=1e-5, atol=1e-5)


def test_rounded_logits_still_make_a_distribution():
    top = top_tokens(teacher_logits(), 16, 2.0)
    rounded = dataclasses.replace(top, logits=top.logits.half().float(), log_tail=top.log_tail.float())
    total = rounded.log_probabilities().exp().sum(1) + rounded.log_tail.exp()
    torch.testing.assert_close(total, torch.ones(N), rtol=1e-6, atol=1e-6)


def test_tokens_that_the_teacher_rules_out_add_nothing():
    logits = teacher_logits()
    logits[:, 5:] = -torch.inf
    head, top = made(), top_tokens(logits, 16, 1.0)
    assert (top.log_tail == -torch.inf).all()
    head["student_hidden"].requires_grad_()
    loss = topk_word_prediction_loss(lazy(head), top)
    torch.testing.assert_close(loss, dense_word_prediction_loss(student_logits(head), logits, 1.0).mean())
    loss.backward()
    assert torch.isfinite(head["student_hidden"].grad).all()


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"student_hidden": torch.randn(5, H).double()}, {}, r"\(5, 8\).*\(23, 16\).*same positions"),
        ({"student_weight": torch.randn(7, H).double(), "student_bias": None}, {}, "16 top tokens, the student predicts 7"),
        ({}, {"reduction": "median"}, "reduction='median'"),
        ({}, {"chunk_mib": 0.0}, "chunk_mib=0.0"),
    ],
)
def test_what_does_not_fit_is_refused(change, options, message):
    with pytest.raises(UsageError, match=message):
        topk_word_prediction_loss(lazy(made() | change), top_tokens(teacher_logits(), 16, 2.0), **options)
