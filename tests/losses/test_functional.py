"""What the losses do around the formulas: checks, masks, paths, reductions."""

import math

import pytest
import torch
from torch.nn import functional as F

from hf_glmd import UsageError, soft_label_loss, word_prediction_loss
from hf_glmd.losses import functional
from hf_glmd.losses.chunked import LazyLogits
from hf_glmd.losses.functional import word_prediction_loss_from_logits, word_prediction_scores
from hf_glmd.losses.reference import dense_logits, dense_soft_label_loss, dense_word_prediction_loss

K, H_S, H_T = 31, 7, 11
IMPLEMENTATIONS = ["auto", "chunked", "dense"]


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


def logits(inputs: dict[str, torch.Tensor], model: str, **options: float | None) -> torch.Tensor:
    return dense_logits(*(inputs[f"{model}_{part}"] for part in ("hidden", "weight", "bias")), **options)


def dense(inputs: dict[str, torch.Tensor], temperature: float) -> torch.Tensor:
    return dense_word_prediction_loss(logits(inputs, "student"), logits(inputs, "teacher"), temperature)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("kind", [torch.bool, torch.int64, torch.float32])
def test_reductions_agree_with_the_reference(inputs, implementation, kind):
    mask = torch.rand(3, 5) < 0.6
    values = dense(inputs, 4.0)
    arguments = {**inputs, "mask": mask.to(kind), "temperature": 4.0, "implementation": implementation}
    torch.testing.assert_close(word_prediction_loss(**arguments), values[mask].mean())
    torch.testing.assert_close(word_prediction_loss(**arguments, reduction="sum"), values[mask].sum())
    torch.testing.assert_close(word_prediction_loss(**arguments, reduction="none"), torch.where(mask, values, 0.0))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_without_a_mask_every_position_counts(inputs, implementation):
    values = dense(inputs, 4.0)
    arguments = {**inputs, "temperature": 4.0, "implementation": implementation}
    torch.testing.assert_close(word_prediction_loss(**arguments), values.mean())
    torch.testing.assert_close(word_prediction_loss(**arguments, reduction="none"), values)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_gradients_of_all_paths_agree(inputs, implementation, reduction):
    mask = torch.tensor([[1, 1, 0, 1, 0], [0] * 5, [1] * 5])
    options = {"student_softcap": 9.0, "teacher_softcap": 7.0, "student_scale": 0.5, "teacher_scale": 2.0}
    trained = [inputs[f"student_{part}"].requires_grad_() for part in ("hidden", "weight", "bias")]
    student = logits(inputs, "student", scale=0.5, softcap=9.0)
    teacher = logits(inputs, "teacher", scale=2.0, softcap=7.0)
    upstream = torch.randn(3, 5).double()
    values = dense_word_prediction_loss(student, teacher, 4.0) * mask
    expected = values.sum() / mask.sum() if reduction == "mean" else (values * upstream).sum()
    loss = word_prediction_loss(
        **inputs, mask=mask, temperature=4.0, reduction=reduction, implementation=implementation, **options
    )
    loss = loss if reduction == "mean" else (loss * upstream).sum()
    torch.testing.assert_close(loss, expected)
    wanted = torch.autograd.grad(expected, trained)
    for made, gradient in zip(torch.autograd.grad(loss, trained), wanted, strict=True):
        torch.testing.assert_close(made, gradient)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_positions_that_do_not_count_are_not_even_read(inputs, implementation):
    mask = torch.zeros(3, 5, dtype=torch.bool)
    mask[0, 1] = True
    inputs["student_hidden"][~mask] = torch.nan
    inputs["teacher_hidden"][~mask] = torch.nan
    assert torch.isfinite(word_prediction_loss(**inputs, mask=mask, implementation=implementation))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("normalizer", [None, 0, torch.tensor(0), torch.tensor(12)])
def test_nothing_counted_is_a_zero_with_gradients(inputs, implementation, normalizer):
    trained = [inputs[name].requires_grad_() for name in ("student_hidden", "student_weight", "student_bias")]
    loss = word_prediction_loss(**inputs, mask=torch.zeros(3, 5), implementation=implementation, normalizer=normalizer)
    loss.backward()
    assert loss.item() == 0 and all(tensor.grad.shape == tensor.shape and (tensor.grad == 0).all() for tensor in trained)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_the_normalizer_replaces_the_count(inputs, implementation):
    total = word_prediction_loss(**inputs, reduction="sum")
    for normalizer in (1000.0, torch.tensor(1000)):
        loss = word_prediction_loss(**inputs, normalizer=normalizer, implementation=implementation)
        torch.testing.assert_close(loss, total / 1000)


def test_no_gradient_reaches_the_teacher(inputs):
    for tensor in inputs.values():
        tensor.requires_grad_()
    word_prediction_loss(**inputs).backward()
    assert inputs["teacher_weight"].grad is None and inputs["teacher_hidden"].grad is None
    assert inputs["student_weight"].grad.abs().max() > 0


def test_it_is_compiled_around():
    torch.manual_seed(0)
    body, teacher = torch.nn.Linear(H_S, H_S), (torch.randn(5, H_T), torch.randn(K, H_T))
    weight, hidden, mask = torch.randn(K, H_S, requires_grad=True), torch.randn(5, H_S), torch.tensor([1, 0, 1, 1, 1])

    def step(hidden: torch.Tensor) -> torch.Tensor:
        return 2 * word_prediction_loss(torch.tanh(body(hidden)), weight, *teacher, mask=mask)

    wanted = torch.autograd.grad(step(hidden), [body.weight, weight])
    made = torch.autograd.grad(torch.compile(step, backend="aot_eager")(hidden), [body.weight, weight])
    for one, other in zip(made, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_low_precision_logits_are_widened():
    student = torch.randn(64, 999, dtype=torch.float64) * 4
    teacher = (student + torch.randn_like(student) * 0.1).bfloat16()
    student = student.bfloat16()
    truth = dense_word_prediction_loss(student.double(), teacher.double(), 15.0).mean()
    plain = dense_word_prediction_loss(student, teacher, 15.0).mean()
    ours = word_prediction_loss_from_logits(student, teacher, 15.0)
    assert ours.dtype == torch.float32
    assert (ours - truth).abs() < 0.01 * (plain - truth).abs()


# What does not fit


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "temperature=0.0 is not positive"),
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"temperature": math.nan}, "temperature=nan"),
        ({"temperature": math.inf}, "temperature=inf"),
        ({"reduction": "median"}, "reduction='median'"),
        ({"implementation": "fast"}, "implementation='fast'"),
        ({"implementation": "kernels"}, "implementation='kernels' does not run for torch.float64 on cpu"),
        ({"chunk_mib": 0}, "chunk_mib=0"),
        ({"student_softcap": 0.0}, "student_softcap=0.0"),
        ({"teacher_softcap": -3.0}, "teacher_softcap=-3.0"),
        ({"teacher_scale": 0.0}, "teacher_scale=0.0"),
        ({"mask": torch.ones(3, 4)}, r"mask \(3, 4\).*\(3, 5\)"),
        ({"teacher_weight": torch.randn(K + 1, H_T).double()}, f"{K} rows and teacher_weight {K + 1}"),
        ({"teacher_weight": torch.randn(K - 1, H_T).double()}, f"{K} rows and teacher_weight {K - 1}"),
        ({"teacher_hidden": torch.randn(3, 4, H_T).double()}, r"\(3, 5, 7\).*\(3, 4, 11\)"),
        ({"student_weight": torch.randn(K, 6).double()}, r"student_hidden \(3, 5, 7\) and student_weight \(31, 6\)"),
        ({"student_bias": torch.randn(1, K).double()}, r"student_bias \(1, 31\).*student_weight \(31, 7\)"),
        ({"teacher_bias": torch.randn(K, device="meta").double()}, "teacher_hidden is on cpu and teacher_bias on meta"),
        ({"teacher_weight": torch.randn(K, H_T)}, "teacher_hidden is torch.float64 and teacher_weight torch.float32"),
        ({"student_hidden": torch.ones(3, 5, H_S).long()}, "student_hidden is torch.int64 and student_weight torch.float64"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(inputs, change, message):
    with pytest.raises(UsageError, match=message):
        word_prediction_loss(**{**inputs, **change})


def test_models_of_different_precision_fit_and_fp64_beside_another_does_not(inputs):
    teacher = {name: tensor.bfloat16() for name, tensor in inputs.items() if name.startswith("teacher")}
    student = {name: tensor.float() for name, tensor in inputs.items() if name.startswith("student")}
    assert torch.isfinite(word_prediction_loss(**student, **teacher))
    with pytest.raises(UsageError, match="student_hidden is torch.float64 and teacher_hidden torch.bfloat16"):
        word_prediction_loss(**{**inputs, **teacher})
    teacher["teacher_weight"] = teacher["teacher_weight"].half()
    with pytest.raises(UsageError, match="teacher_hidden is torch.bfloat16 and teacher_weight torch.float16"):
        word_prediction_loss(**student, **teacher)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_a_broken_teacher_is_named(inputs, implementation, reduction, broken):
    inputs["teacher_hidden"][1, 2, 3] = broken
    mask = torch.ones(3, 5)
    mask[0, 0] = 0
    arguments = {**inputs, "implementation": implementation, "reduction": reduction}
    with pytest.raises(UsageError, match="teacher_hidden holds NaN or infinity at 1 of 14 counted positions, first at number 6"):
        word_prediction_loss(**arguments, mask=mask)
    mask[1, 2] = 0
    assert torch.isfinite(word_prediction_loss(**arguments, mask=mask)).all()
    assert not torch.isfinite(word_prediction_loss(**arguments, check_teacher=False)).all()


@pytest.mark.parametrize("name", ["teacher_weight", "teacher_bias"])
def test_a_broken_row_of_the_teacher_is_named(inputs, name):
    inputs[name][17] = torch.nan
    with pytest.raises(UsageError, match=f"{name} holds NaN or infinity, first in row 17"):
        word_prediction_loss(**inputs)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_teacher_may_rule_tokens_out_and_a_student_may_diverge(inputs, implementation):
    inputs["teacher_bias"][:4] = -torch.inf
    wanted = dense(inputs, 15.0).mean()
    torch.testing.assert_close(word_prediction_loss(**inputs, implementation=implementation), wanted)
    inputs["student_hidden"][0, 0, 0] = torch.nan
    assert torch.isnan(word_prediction_loss(**inputs, implementation=implementation))


# Scores


def pair(inputs, softcap=None) -> tuple[LazyLogits, LazyLogits]:
    return tuple(
        LazyLogits(inputs[f"{who}_hidden"], inputs[f"{who}_weight"], inputs.get(f"{who}_bias"), softcap=softcap)
        for who in ("student", "teacher")
    )


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("chunk_mib", [0.002, 256.0])
def test_scores_are_those_of_the_logits(inputs, masked, chunk_mib):
    mask = torch.rand(3, 5) < 0.7 if masked else None
    counted = torch.ones(3, 5).bool() if mask is None else mask
    targets = torch.randint(0, K, (3, 5))
    targets[0], targets[2, 3] = -100, K - 1
    inputs["student_hidden"], inputs["student_weight"] = inputs["teacher_hidden"][..., :7], inputs["teacher_weight"][:, :7]
    student, teacher = (logits(inputs, model, softcap=8.0)[counted] for model in ("student", "teacher"))
    scores = word_prediction_scores(*pair(inputs, softcap=8.0), 3.0, mask, targets=targets, chunk_mib=chunk_mib)
    torch.testing.assert_close(scores["loss"], dense_word_prediction_loss(student, teacher, 3.0))
    torch.testing.assert_close(scores["kl"], dense_word_prediction_loss(student, teacher, 1.0))
    assert 0 < scores["agreement"].sum() < counted.sum()
    torch.testing.assert_close(scores["agreement"], (student.argmax(-1) == teacher.argmax(-1)).double())
    entropy = torch.distributions.Categorical(logits=teacher).entropy()
    torch.testing.assert_close(scores["teacher_entropy"], entropy)
    cross_entropy = F.cross_entropy(student, targets[counted], reduction="none")
    wanted = torch.where(targets[counted] < 0, torch.nan, cross_entropy)
    torch.testing.assert_close(scores["cross_entropy"], wanted, equal_nan=True)


def test_scores_need_no_targets_and_no_positions(inputs):
    scores = word_prediction_scores(*pair(inputs), 15.0, torch.zeros(3, 5))
    assert list(scores) == ["loss", "kl", "agreement", "teacher_entropy"] and all(len(s) == 0 for s in scores.values())
    inputs["student_weight"].requires_grad_()
    assert not any(score.requires_grad for score in word_prediction_scores(*pair(inputs), 15.0).values())


def test_targets_that_do_not_fit_are_refused(inputs):
    with pytest.raises(UsageError, match=r"targets \(15,\).*\(3, 5\)"):
        word_prediction_scores(*pair(inputs), 15.0, targets=torch.zeros(15).long())
    with pytest.raises(UsageError, match="targets hold 31 and student_weight has 31 rows"):
        word_prediction_scores(*pair(inputs), 15.0, targets=torch.full((3, 5), K))


# Soft labels


def test_soft_labels_of_chosen_examples():
    student, teacher = torch.randn(4, 3), torch.randn(4, 3)
    mask = torch.tensor([1, 0, 1, 0])
    chosen = soft_label_loss(student[::2], teacher[::2])
    torch.testing.assert_close(soft_label_loss(student, teacher, mask=mask), chosen)
    with pytest.raises(UsageError, match=r"\(4, 3\).*\(4, 2\)"):
        soft_label_loss(student, teacher[:, :2])


@pytest.mark.parametrize("form", ["lists", "padded"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_soft_labels_over_lists_of_different_lengths(form, reduction):
    sizes, mask = (3, 1, 5, 2), torch.tensor([1, 1, 0, 1])
    student = [torch.randn(size, dtype=torch.float64, requires_grad=True) for size in sizes]
    teacher = [torch.randn(size, dtype=torch.float64) for size in sizes]
    values = torch.stack([dense_soft_label_loss(s, t, 2.0) for s, t in zip(student, teacher, strict=True)]) * mask
    wanted = {"mean": values.sum() / 3, "sum": values.sum(), "none": values}[reduction]
    given = [student, teacher]
    if form == "padded":
        given = [torch.stack([F.pad(row, (0, 5 - len(row)), value=-torch.inf) for row in model]) for model in given]
    made = soft_label_loss(*given, temperature=2.0, mask=mask, reduction=reduction)
    torch.testing.assert_close(made, wanted)
    gradients = torch.autograd.grad(wanted.sum(), student, retain_graph=True, materialize_grads=True)
    for one, other in zip(torch.autograd.grad(made.sum(), student, materialize_grads=True), gradients, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        ([[1.0, 2.0], [1.0]], [[1.0, 2.0], [1.0, 2.0]], r"Example 1: student logits \(1,\) and teacher logits \(2,\)"),
        ([[1.0]], [[1.0], [2.0]], "student has 1 examples and the teacher 2"),
        ([[[1.0]]], [[[1.0]]], r"Example 0: student logits \(1, 1\)"),
        ([], [], "no examples"),
        ([[1.0], []], [[1.0], []], "Example 1 has no candidate"),
    ],
)
def test_lists_that_do_not_fit_are_refused(student, teacher, message):
    with pytest.raises(UsageError, match=message):
        soft_label_loss(*([torch.tensor(row) for row in model] for model in (student, teacher)))


@pytest.mark.parametrize("longer", [0, 1])
def test_padding_that_does_not_fit_is_refused(longer):
    padded = [torch.tensor([[1.0, 2.0], [9.0, 9.0], [3.0, -torch.inf]]) for _ in range(2)]
    padded[longer][2, 1] = 4.0
    with pytest.raises(UsageError, match="Example 2 has candidates, logits above -inf, in one model that it lacks in the other"):
        soft_label_loss(*padded, mask=torch.tensor([1, 0, 1]))
    soft_label_loss(*padded, mask=torch.tensor([1, 1, 0]))


def test_the_path_follows_the_device(monkeypatch):
    from hf_glmd.losses import kernels

    chosen, cpu, cuda = functional._kl_slice, torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr(kernels, "available", lambda device: True)
    assert chosen("auto", cpu, torch.float32) is functional.kl_slice_
    assert chosen("auto", cuda, torch.float32) is kernels.kl_slice_
    assert chosen("auto", cuda, torch.float64) is functional.kl_slice_
    assert chosen("chunked", cuda, torch.float32) is functional.kl_slice_
    monkeypatch.setattr(kernels, "available", lambda device: False)
    assert chosen("auto", cuda, torch.float32) is functional.kl_slice_
