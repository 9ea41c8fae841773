"""Loss and gradients of the sliced path against the dense formula in fp64."""

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from hf_glmd import UsageError
from hf_glmd.losses import chunked
from hf_glmd.losses.chunked import LazyLogits, kl_slice_, logit_slices, word_prediction_total, word_prediction_values
from hf_glmd.losses.reference import dense_logits, dense_word_prediction_loss

K, H_S, H_T = 211, 7, 11  # primes


def lazy(
    N: int, K: int, H: int, *, seed: int, spread: float = 3.0, bias: bool = True, dtype=torch.float64, **options
) -> LazyLogits:
    """Logits of standard deviation `spread`; the parts are leaves with gradients."""
    random = torch.Generator().manual_seed(seed)
    made = [torch.randn(*size, generator=random, dtype=torch.float64) for size in ((N, H), (K, H), (K,))]
    made[1] *= spread / H**0.5
    hidden, weight, offset = (part.to(dtype).requires_grad_() for part in made)
    return LazyLogits(hidden, weight, offset if bias else None, **options)


def pair(N: int = 13, K: int = K, **options) -> tuple[LazyLogits, LazyLogits]:
    return lazy(N, K, H_S, seed=0, **options), lazy(N, K, H_T, seed=1, **options)


def parts(logits: LazyLogits) -> list[Tensor]:
    return [part for part in (logits.hidden, logits.weight, logits.bias) if part is not None]


def truth(student: LazyLogits, teacher: LazyLogits, temperature: float, of_values: Tensor | None = None) -> list[Tensor]:
    """fp64: the losses [N], then the gradients of their sum, or of their sum with `of_values`."""
    wide = [part.detach().double().requires_grad_() for part in parts(student)]
    s = dense_logits(*wide, *[None] * (3 - len(wide)), student.scale, student.softcap)
    wide_teacher = [part.detach().double() for part in parts(teacher)]
    t = dense_logits(*wide_teacher, *[None] * (3 - len(wide_teacher)), teacher.scale, teacher.softcap)
    values = dense_word_prediction_loss(s, t, temperature)
    return [values.detach(), *torch.autograd.grad((values * (1 if of_values is None else of_values)).sum(), wide)]


def relative_error(value: Tensor, truth: Tensor) -> float:
    """Largest error beside the largest value."""
    return float((value.detach().double() - truth).abs().max() / truth.abs().max().clamp(min=1e-300))


def mean_error(value: Tensor, truth: Tensor) -> float:
    """Root of the mean squared error beside that of the values: rounding to bf16 alone makes 1.6e-3."""
    return float((value.detach().double() - truth).norm() / truth.norm())


class Tensors(TorchDispatchMode):
    """Counts what is made inside: the largest tensor, and the matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0
        self.products = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        if isinstance(made, Tensor):
            self.largest = max(self.largest, made.numel())
        self.products += function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_)
        return made


# Value and gradients


@settings(max_examples=60, deadline=None)
@given(
    N=st.integers(0, 9),
    K=st.integers(2, 70),
    widths=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    temperature=st.floats(0.5, 50),
    spread=st.floats(0.01, 30),
    rows=st.integers(1, 10),
    bias=st.booleans(),
    scales=st.tuples(st.floats(0.1, 4), st.floats(0.1, 4)),
    softcaps=st.tuples(*[st.none() | st.floats(1, 50)] * 2),
)
def test_value_and_gradients_are_those_of_the_formula(N, K, widths, temperature, spread, rows, bias, scales, softcaps):
    student, teacher = (
        lazy(N, K, H, seed=N + K + i, spread=spread, bias=bias, scale=scales[i], softcap=softcaps[i])
        for i, H in enumerate(widths)
    )
    chunk_mib = rows * 2 * math.ceil(K / 16) * 16 * 8 / 2**20
    values, *gradients = truth(student, teacher, temperature)
    total = word_prediction_total(student, teacher, temperature, chunk_mib=chunk_mib)
    # In fp64 the dense formula has its own rounding: 1e-16 of terms as large as T^2, and larger where logits are.
    slack = 1e-13 * temperature**2 * max(N, 1) * (1 + spread)
    torch.testing.assert_close(total.detach(), values.sum(), rtol=1e-9, atol=slack)
    for made, wanted in zip(torch.autograd.grad(total, parts(student)), gradients, strict=True):
        torch.testing.assert_close(made, wanted, rtol=1e-8, atol=slack * 100)
    each = word_prediction_values(student, teacher, temperature, chunk_mib=chunk_mib)
    torch.testing.assert_close(each.detach(), values, rtol=1e-9, atol=slack)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 15.0, 50.0])
@pytest.mark.parametrize("K", [2, 1009, 30_011])
def test_fp32_is_exact_to_its_rounding(K, temperature):
    student, teacher = (lazy(32, K, H, seed=H, dtype=torch.float32, bias=False) for H in (37, 53))
    values, *gradients = truth(student, teacher, temperature)
    total = word_prediction_total(student, teacher, temperature, 32.0)
    assert relative_error(total, values.mean()) < 1e-6
    for made, wanted in zip(torch.autograd.grad(total, parts(student)), gradients, strict=True):
        assert relative_error(made, wanted / 32) < 1e-5


def test_the_largest_vocabulary():
    student, teacher = pair(K=262_144, N=3, dtype=torch.float32)
    values, *gradients = truth(student, teacher, 15.0)
    total = word_prediction_total(student, teacher, 15.0, chunk_mib=1.0)  # less than one token: one at a time
    assert relative_error(total, values.sum()) < 1e-6
    for made, wanted in zip(torch.autograd.grad(total, parts(student)), gradients, strict=True):
        assert relative_error(made, wanted) < 1e-5


@pytest.mark.parametrize("reduction", ["total", "values"])
def test_each_value_may_have_its_own_upstream_gradient(reduction):
    student, teacher = pair()
    upstream = torch.randn(13, dtype=torch.float64) if reduction == "values" else torch.tensor(-2.5, dtype=torch.float64)
    _, *gradients = truth(student, teacher, 3.0, upstream)
    loss = {"total": word_prediction_total, "values": word_prediction_values}[reduction](student, teacher, 3.0, chunk_mib=0.01)
    for made, wanted in zip(torch.autograd.grad(loss, parts(student), upstream), gradients, strict=True):
        torch.testing.assert_close(made, wanted)


def test_gradcheck():
    student, teacher = pair(N=3, K=5, softcap=4.0, scale=0.5)

    def values(*parts: Tensor) -> Tensor:
        return word_prediction_values(LazyLogits(*parts, student.scale, student.softcap), teacher, 2.0, chunk_mib=1e-4)

    assert torch.autograd.gradcheck(values, parts(student))


def test_no_gradient_reaches_the_teacher():
    student, teacher = pair()
    word_prediction_total(student, teacher, 15.0).backward()
    assert all(part.grad is None for part in parts(teacher)) and all(part.grad is not None for part in parts(student))


# The element-wise part, on given logits


def slice_truth(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Of the logits as they are: what rounding them took away is not the element-wise part's."""
    s, t = (torch.log_softmax(logits.double() / temperature, -1) for logits in (student, teacher))
    losses = dense_word_prediction_loss(student.double(), teacher.double(), temperature)
    return losses, temperature * (s.exp() - t.exp())


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    K=st.integers(50, 3000),
    temperature=st.floats(0.5, 50),
    spread=st.floats(0.1, 20),
    distance=st.sampled_from([0.01, 0.1, 1.0, 10.0]),
    outlier=st.floats(-200, 200),
)
@example(seed=126, K=126, temperature=0.5, spread=17.140625, distance=0.01, outlier=0.0)  # p_s does not add up to 1
def test_near_and_far_and_between(seed, K, temperature, spread, distance, outlier):
    random = torch.Generator().manual_seed(seed)
    student = torch.randn(3, K, generator=random) * spread
    teacher = student + torch.randn(3, K, generator=random) * distance
    teacher[:, 0] = student[:, 0] + outlier
    losses, gradients = slice_truth(student, teacher, temperature)
    made = student.clone()
    values = kl_slice_(made, teacher.clone(), temperature)
    # x = (t - s) / T is as good as its own rounding, so the error is relative to the square root of KL too.
    rounding = 1e-15 + 4e-7 * temperature * losses.clamp(min=0).sqrt()
    assert ((values - losses).abs() <= 4e-6 * losses + rounding).all()
    assert (made - gradients).abs().max() <= 1e-5 * gradients.abs().max()


@pytest.mark.parametrize("temperature", [1.0, 15.0, 50.0])
def test_it_is_better_than_plain_where_models_nearly_agree(temperature):
    student = torch.randn(16, 30_011, generator=torch.Generator().manual_seed(0)) * 3
    teacher = student + 0.02 * torch.randn(student.shape, generator=torch.Generator().manual_seed(1))
    losses, gradients = slice_truth(student, teacher, temperature)
    plain = dense_word_prediction_loss(student, teacher, temperature)
    made = student.clone()
    values = kl_slice_(made, teacher.clone(), temperature)
    assert (values - losses).abs().max() < 0.02 * (plain - losses).abs().max()
    assert relative_error(values.mean(), losses.mean()) < 5e-6
    assert relative_error(made, gradients) < 1e-5


@pytest.mark.parametrize("temperature", [1.0, 15.0])
@pytest.mark.parametrize("low", [-1e4, -3e38, -torch.inf])
def test_tokens_that_the_teacher_rules_out(low, temperature):
    student, teacher = torch.randn(4, K), torch.randn(4, K)
    teacher[:, :9] = low
    losses, gradients = slice_truth(student, teacher, temperature)
    values = kl_slice_(student, teacher, temperature)
    assert relative_error(values, losses) < 2e-6 and relative_error(student, gradients) < 1e-5


def test_tokens_that_both_rule_out_are_none():
    student, teacher = torch.randn(4, K), torch.randn(4, K)
    padded = [torch.cat([logits, torch.full((4, 3), -torch.inf)], 1) for logits in (student, teacher)]
    values = kl_slice_(*padded, 2.0)
    torch.testing.assert_close(values, kl_slice_(student, teacher, 2.0))
    torch.testing.assert_close(padded[0], torch.cat([student, torch.zeros(4, 3)], 1))


def test_a_token_that_the_student_alone_rules_out_is_infinitely_bad():
    student, teacher = torch.randn(2, K), torch.randn(2, K)
    student[0, 3] = -torch.inf
    values = kl_slice_(student, teacher, 1.0)
    assert values[0] == torch.inf and torch.isfinite(values[1]) and torch.isfinite(student).all()


def test_what_is_no_number_stays_visible():
    student, teacher = torch.randn(2, K), torch.randn(2, K)
    teacher[0, 3] = torch.nan
    assert torch.isnan(kl_slice_(student, teacher, 1.0)).tolist() == [True, False]


def test_agreement_is_exactly_zero():
    student = torch.randn(4, K)
    made = student.clone()
    assert (kl_slice_(made, student.clone(), 15.0) == 0).all() and (made == 0).all()


# What must not change anything


def test_a_constant_added_to_all_logits_of_a_model():
    student, teacher = pair()
    shifted = LazyLogits(teacher.hidden, teacher.weight, teacher.bias + 40.0)
    one, other = (word_prediction_total(student, model, 15.0) for model in (teacher, shifted))
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize("chunk_mib", [1e-6, 0.01, 0.1, 1000.0])
def test_the_size_of_a_slice(chunk_mib):
    student, teacher = pair(softcap=9.0)
    made = word_prediction_total(student, teacher, 5.0, chunk_mib=chunk_mib)
    wanted = word_prediction_total(student, teacher, 5.0)
    torch.testing.assert_close(made, wanted)
    for one, other in zip(*(torch.autograd.grad(loss, parts(student)) for loss in (made, wanted)), strict=True):
        torch.testing.assert_close(one, other)


def test_the_order_of_tokens():
    student, teacher = pair()
    order = torch.randperm(13)
    shuffled = [LazyLogits(model.hidden[order], model.weight, model.bias) for model in (student, teacher)]
    values, other = word_prediction_values(student, teacher, 5.0), word_prediction_values(*shuffled, 5.0)
    torch.testing.assert_close(values[order], other)
    upstream = torch.randn(13, dtype=torch.float64)
    one = torch.autograd.grad(values, parts(student), upstream)
    for made, wanted in zip(torch.autograd.grad(other, parts(student), upstream[order]), one, strict=True):
        torch.testing.assert_close(made, wanted)


def test_where_a_batch_is_split():
    student, teacher = pair()
    count = torch.tensor(13)
    whole = torch.autograd.grad(word_prediction_total(student, teacher, 5.0, count), parts(student))
    loss = sum(
        word_prediction_total(
            LazyLogits(student.hidden[part], student.weight, student.bias),
            LazyLogits(teacher.hidden[part], teacher.weight, teacher.bias),
            5.0,
            count,
        )
        for part in (slice(0, 4), slice(4, 4), slice(4, 13))
    )
    for made, wanted in zip(torch.autograd.grad(loss, parts(student)), whole, strict=True):
        torch.testing.assert_close(made, wanted)


# Slices


@torch.no_grad()
@pytest.mark.parametrize(
    ("N", "mib", "sizes"), [(1000, 1000, [512, 488]), (40, 0.04, [20, 20]), (3, 1e-9, [1, 1, 1]), (0, 1, [])]
)
def test_slices_follow_the_budget(N, mib, sizes):
    student, teacher = pair(N=N, dtype=torch.float32)
    made = [(rows.stop - rows.start, buffers[0].shape) for rows, buffers in logit_slices(student, teacher, mib)]
    width = 224  # 211 columns, and more up to 64 bytes
    assert made == [(size, (size, width)) for size in sizes]
    assert all(size == 1 or 2 * size * width * 4 <= mib * 2**20 for size in sizes)


@torch.no_grad()
def test_columns_for_alignment_have_no_mass():
    student, teacher = pair(N=2, dtype=torch.float32)
    for _, buffers in logit_slices(student, teacher, 1.0, divisor=50.0):
        assert all(buffer.shape == (2, 224) and (torch.softmax(buffer, -1)[:, K:] == 0).all() for buffer in buffers)


def test_never_all_logits():
    N = 400
    student, teacher = pair(N=N, dtype=torch.float32)
    with Tensors() as seen:
        word_prediction_total(student, teacher, 15.0, chunk_mib=0.1).backward()
        word_prediction_values(student, teacher, 15.0, chunk_mib=0.1).sum().backward()
    assert seen.largest < N * K / 2


def test_four_products_and_no_more():
    student, teacher = pair(bias=False)
    with Tensors() as seen:
        word_prediction_total(student, teacher, 15.0).backward()
    assert seen.products == 4


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_what_is_frozen_costs_no_product(frozen):
    student, teacher = pair(bias=False)
    getattr(student, frozen).requires_grad_(False)
    with Tensors() as seen:
        word_prediction_total(student, teacher, 15.0).backward()
    assert seen.products == 3
    trained = student.weight if frozen == "hidden" else student.hidden
    torch.testing.assert_close(trained.grad, truth(student, teacher, 15.0)[2 if frozen == "hidden" else 1])
    assert getattr(student, frozen).grad is None


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_none_are_made(mode):
    student, teacher = lazy(2, K, 5000, seed=0), lazy(2, K, H_T, seed=1)
    wanted = word_prediction_total(student, teacher, 15.0)
    with mode(), Tensors() as seen:
        made = word_prediction_total(student, teacher, 15.0)
    torch.testing.assert_close(made, wanted.detach())
    assert seen.products == 2 and not made.requires_grad
    assert seen.largest == student.weight.numel()  # the weight itself, transposed


# Autograd


def test_the_weights_gradient_is_handed_over_and_not_copied():
    student, teacher = pair(dtype=torch.float32)
    total = word_prediction_total(student, teacher, 15.0)
    made = total.grad_fn.gradients.weight.data_ptr()
    total.backward()
    assert student.weight.grad.data_ptr() == made


def test_a_second_backward_is_refused():
    student, teacher = pair()
    total = word_prediction_total(student, teacher, 15.0)
    total.backward(retain_graph=True)
    with pytest.raises(UsageError, match="backward was called twice"):
        total.backward()


@pytest.mark.parametrize("loss", [word_prediction_total, word_prediction_values])
def test_a_second_derivative_is_refused(loss):
    student, teacher = pair()
    with pytest.raises(UsageError, match="no second derivatives"):
        torch.autograd.grad(loss(student, teacher, 15.0).sum(), parts(student), create_graph=True)


def test_values_may_go_backward_twice():
    student, teacher = pair()
    values = word_prediction_values(student, teacher, 15.0)
    first = torch.autograd.grad(values.sum(), parts(student), retain_graph=True)
    second = torch.autograd.grad(values.sum(), parts(student))
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other)


class Tied(nn.Module):
    """Hidden states from the embedding that the head shares."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(K, H_S, dtype=torch.float64)
        self.body = nn.Sequential(nn.Linear(H_S, H_S, dtype=torch.float64), nn.Tanh())

    def forward(self, ids: Tensor, how: str = "plain") -> Tensor:
        embedded = self.embedding(ids)
        return self.body(embedded) if how == "plain" else checkpoint(self.body, embedded, use_reentrant=how == "reentrant")


@pytest.mark.parametrize("how", ["plain", "reentrant", "saved hooks"])
def test_a_tied_weight_and_a_checkpointed_body(how):
    model, teacher = Tied(), lazy(13, K, H_T, seed=1)
    ids = torch.arange(13) * 7

    hidden = model(ids)
    logits = dense_logits(hidden, model.embedding.weight)
    dense_word_prediction_loss(logits, dense_logits(*parts(teacher)).detach(), 15.0).sum().backward()
    wanted = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()

    word_prediction_total(LazyLogits(model(ids, how), model.embedding.weight), teacher, 15.0).backward()
    for parameter, gradient in zip(model.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_a_checkpointed_loss():
    student, teacher = pair()
    wanted = torch.autograd.grad(word_prediction_total(student, teacher, 15.0), parts(student))

    def loss(*parts: Tensor) -> Tensor:
        return word_prediction_total(LazyLogits(*parts), teacher, 15.0)

    made = torch.autograd.grad(checkpoint(loss, *parts(student), use_reentrant=False), parts(student))
    for one, other in zip(made, wanted, strict=True):
        torch.testing.assert_close(one, other)


# Low precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("temperature", [1.0, 15.0])
@pytest.mark.parametrize("weight_block", [1000, 2**21])
def test_low_precision_inputs_have_wide_arithmetic(dtype, temperature, weight_block, monkeypatch):
    monkeypatch.setattr(chunked, "_WEIGHT_BLOCK", weight_block)
    student, teacher = pair(N=64, K=1009, dtype=dtype)
    values, *gradients = truth(student, teacher, temperature)
    total = word_prediction_total(student, teacher, temperature, 64.0)
    assert total.dtype == torch.float32 and relative_error(total, values.mean()) < 1e-6
    for part, made, wanted in zip(parts(student), torch.autograd.grad(total, parts(student)), gradients, strict=True):
        assert made.dtype == part.dtype and mean_error(made, wanted / 64) < 2e-3


def test_a_low_precision_body_before_a_wide_head():
    student, teacher = pair(dtype=torch.float32)[0], pair(dtype=torch.bfloat16)[1]
    mixed = LazyLogits(student.hidden.detach().bfloat16().requires_grad_(), student.weight, student.bias)
    values, *gradients = truth(mixed, teacher, 15.0)
    total = word_prediction_total(mixed, teacher, 15.0)
    assert relative_error(total, values.sum()) < 1e-6
    hidden, weight, bias = torch.autograd.grad(total, parts(mixed))
    assert hidden.dtype == torch.bfloat16 and mean_error(hidden, gradients[0]) < 2e-3
    assert relative_error(weight, gradients[1]) < 1e-5 and relative_error(bias, gradients[2]) < 1e-5


def test_autocast_does_not_narrow_it():
    student, teacher = pair(dtype=torch.float32)
    wanted = word_prediction_total(student, teacher, 15.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made = word_prediction_total(student, teacher, 15.0)
    assert torch.equal(made, wanted)
    for one, other in zip(*(torch.autograd.grad(loss, parts(student)) for loss in (made, wanted)), strict=True):
        assert torch.equal(one, other)


class Fp32Products(torch.overrides.TorchFunctionMode):
    """`out_dtype=torch.float32` of `torch.mm` and `torch.addmm`, which CPUs lack: low-precision factors, wide sums."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if kwargs.pop("out_dtype", None) is not None:
            *added, one, other = args
            assert one.dtype == other.dtype == torch.bfloat16 and all(part.dtype == torch.float32 for part in added)
            args = (*added, one.float(), other.float())
        return function(*args, **kwargs)


@pytest.mark.parametrize("softcap", [None, 8.0])
def test_products_of_low_precision_factors(softcap, monkeypatch):
    """The branch that CUDA takes for bf16; its products are imitated."""
    monkeypatch.setattr(chunked, "has_fp32_products_of_low_precision", lambda device: True)
    student, teacher = pair(N=64, K=1009, dtype=torch.bfloat16, scale=0.7, softcap=softcap)
    values, *gradients = truth(student, teacher, 4.0)
    with Fp32Products():
        total = word_prediction_total(student, teacher, 4.0, torch.tensor(64), chunk_mib=0.2)
    assert relative_error(total, values.mean()) < 1e-6
    for made, wanted in zip(torch.autograd.grad(total, parts(student)), gradients, strict=True):
        assert mean_error(made, wanted / 64) < 3e-3  # p_s - p_t is rounded, too


def test_without_a_look_at_the_data(monkeypatch):
    """The branch of devices where a look would make the host wait: one form for near and far."""
    monkeypatch.setattr(chunked, "_near_kl_", lambda *_: None)
    test_near_and_far_and_between()
