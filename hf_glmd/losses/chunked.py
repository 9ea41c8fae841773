"""The word-prediction loss one slice of tokens at a time: loss and gradients from one pass, [N, K] logits never.

The gradient with respect to the student's logits is T * (p_s - p_t), at hand as soon as a slice has its logits. So a slice costs
four matrix products (two projections, two gradients), and nothing is computed twice. What is element-wise happens in place
between the products, on blocks of rows that stay in cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from hf_glmd.errors import UsageError
from hf_glmd.losses.threads import has_fp32_products_of_low_precision, on_each_core

DEFAULT_CHUNK_MIB = 512.0
"""Room for the logits of one slice of tokens, both models'."""

KLSlice = Callable[[Tensor, Tensor, float], Tensor]
"""The element-wise part: `kl_slice_` below, or the Triton one."""

_ALIGNMENT = 16
"""Columns. A product takes up to 1.5 times as long where the rows of its result start off a cache line (MKL)."""

_MAX_CPU_ROWS = 512
"""With more rows no product is faster on a CPU, and less of a slice is in cache."""

_BLOCK_CPU, _BLOCK_OTHER = 2**18, 2**24
"""Logits that the element-wise part works on at once: on a CPU, on each core, what stays in cache."""

_WEIGHT_BLOCK = 2**21
"""Elements of a low-precision weight that are widened at once."""

_STUDENT_PAD, _TEACHER_PAD = -1e9, -2e9
"""Logits of columns that are there for alignment: no mass in either model, and no step on the way overflows."""

_FAR = 30.0
"""Up to this log(p_t / p_s) - constant, p_s e^x loses nothing to underflow of p_s."""


@dataclass(frozen=True)
class LazyLogits:
    """Logits of N tokens as what they are made of: softcap * tanh(scale * (hidden weight^T + bias) / softcap).

    Attributes:
        hidden: [N, H].
        weight: [K, H].
        bias: [K]; None: 0.
        scale: what the sum is multiplied by, before the cap.
        softcap: c > 0; None: no cap, the inner part is the logit.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Of the logits: fp32 or wider."""
        return torch.promote_types(torch.promote_types(self.hidden.dtype, self.weight.dtype), torch.float32)

    @property
    def multiplies_low_precision(self) -> bool:
        """Whether bf16 or fp16 factors enter the products as they are, and fp32 comes out. Otherwise they are widened first."""
        low = self.weight.dtype in (torch.bfloat16, torch.float16) and self.hidden.dtype == self.weight.dtype
        return low and has_fp32_products_of_low_precision(self.hidden.device)

    @property
    def divides_for_free(self) -> bool:
        return self.softcap is not None or not self.multiplies_low_precision

    def write(self, rows: slice, out: Tensor, divisor: float = 1.0) -> None:
        """Logits of some tokens, divided by `divisor`, into `out` [n, K]."""
        factor = self.scale / (divisor if self.softcap is None else self.softcap)
        hidden = self.hidden[rows]
        if self.multiplies_low_precision:
            torch.mm(hidden, self.weight.t(), out_dtype=out.dtype, out=out)
            if self.bias is not None:
                out.add_(self.bias)
            if factor != 1.0:
                out.mul_(factor)
        else:
            hidden = hidden.to(out.dtype)
            for columns, weight in _widened(self.weight, out.dtype):
                part = out[:, columns]
                if self.bias is None:
                    part.addmm_(hidden, weight.t(), beta=0, alpha=factor)
                else:
                    bias = self.bias[columns].to(out.dtype)
                    torch.addmm(bias, hidden, weight.t(), beta=factor, alpha=factor, out=part)
        if self.softcap is not None:
            out.tanh_().mul_(self.softcap / divisor)


def word_prediction_total(
    student: LazyLogits,
    teacher: LazyLogits,
    temperature: float,
    normalizer: Tensor | float = 1.0,
    *,
    chunk_mib: float = DEFAULT_CHUNK_MIB,
    kl_slice: KLSlice | None = None,
) -> Tensor:
    """Sum over tokens of T^2 * KL(teacher || student), divided by `normalizer`.

    The gradients are made along with the value, so there is one backward; it only scales them.

    Args:
        student, teacher: N tokens, K columns each. No gradient reaches the teacher.
        temperature: T > 0.
        normalizer: not 0; a number, or a scalar tensor on the device, which is not read on the host.
        chunk_mib: room for the logits of one slice of tokens; one token at least.
        kl_slice: the element-wise part. None: `kl_slice_`.
    Returns: scalar, fp32 or wider.
    """
    work = _Work(as_multiplied(student), as_multiplied(teacher), temperature, chunk_mib, kl_slice or kl_slice_)
    weight = torch.ones((), dtype=work.dtype, device=student.hidden.device) / normalizer
    if not torch.is_grad_enabled():
        return work.losses().sum() * weight
    return FusedTotal.apply(student.hidden, student.weight, student.bias, work, weight)


def word_prediction_values(
    student: LazyLogits,
    teacher: LazyLogits,
    temperature: float,
    *,
    chunk_mib: float = DEFAULT_CHUNK_MIB,
    kl_slice: KLSlice | None = None,
) -> Tensor:
    """T^2 * KL(teacher || student) of each token, [N]. Its backward makes the logits again: each token brings its own factor.

    Arguments as of `word_prediction_total`.
    """
    work = _Work(as_multiplied(student), as_multiplied(teacher), temperature, chunk_mib, kl_slice or kl_slice_)
    if not torch.is_grad_enabled():
        return work.losses()
    return FusedValues.apply(student.hidden, student.weight, student.bias, work)


def logit_slices(
    student: LazyLogits, teacher: LazyLogits, chunk_mib: float, buffers: int = 2, divisor: float = 1.0
) -> Iterator[tuple[slice, tuple[Tensor, ...]]]:
    """Both models' logits of one slice of tokens after another, in the same memory each time.

    Args:
        student, teacher: N tokens, K columns each.
        chunk_mib: room for all buffers together.
        buffers: the first is the student's, the second the teacher's, the rest are as they were left.
        divisor: of the logits.
    Yields: which tokens, and the buffers, [n, width] with width >= K. Columns from K on have no mass.
    """
    N, K = student.hidden.shape[0], student.weight.shape[0]
    dtype = torch.promote_types(student.dtype, teacher.dtype)
    width = math.ceil(K / _ALIGNMENT) * _ALIGNMENT
    most = rows_per_slice(chunk_mib, buffers * width * dtype.itemsize, student.hidden.device)
    n = math.ceil(N / max(1, math.ceil(N / most)))  # slices of about one size: a small last one would be slow
    if math.ceil(n / _ALIGNMENT) * _ALIGNMENT <= min(most, N):
        n = math.ceil(n / _ALIGNMENT) * _ALIGNMENT
    memory = torch.empty(buffers, n, width, dtype=dtype, device=student.hidden.device)
    for start in range(0, N, max(1, n)):
        rows = slice(start, min(start + n, N))
        slices = memory[:, : rows.stop - start].unbind(0)
        for logits, buffer, pad in ((student, slices[0], _STUDENT_PAD), (teacher, slices[1], _TEACHER_PAD)):
            logits.write(rows, buffer[:, :K], divisor)
            buffer[:, K:] = pad
        yield rows, slices


def rows_per_slice(chunk_mib: float, bytes_per_row: int, device: torch.device) -> int:
    """How many tokens a slice may hold, 1 at least."""
    most = max(1, int(chunk_mib * 2**20) // bytes_per_row)
    return min(most, _MAX_CPU_ROWS) if device.type == "cpu" else most


def kl_slice_(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """T^2 * KL(teacher || student) of the two softmaxes at temperature T per row; writes the gradient over the student's logits.

    At T = 15 both softmaxes are nearly flat, and the plain formula is a small difference of large terms. Here everything is made
    of x = log(p_t / p_s), which is small where the models are near each other: p_t - p_s = p_s (e^x - 1).

    Args:
        student_logits: [n, K], overwritten with d loss_row / d student_logits = T * (p_s - p_t).
        teacher_logits: [n, K], overwritten. -inf: the teacher rules the token out; in both models: no candidate.
        temperature: T > 0, of both softmaxes.
    Returns: [n] in nats, in the dtype of the logits. Infinite where the student alone rules out a token.
    Source: GLMD, arXiv:2306.06625 (word prediction).
    """
    n, K = student_logits.shape
    losses = student_logits.new_empty(n)
    on_cpu = student_logits.device.type == "cpu"
    size = min(_BLOCK_CPU // K, math.ceil(n / torch.get_num_threads())) if on_cpu else _BLOCK_OTHER // K
    size = max(size, 1)

    def work(number: int, count: int) -> None:
        # Off the CPU, a look at the data would make the host wait for it, so there is one form for near and far.
        scratch = student_logits.new_empty(3, min(size, n), K) if on_cpu else None
        for start in range(number * size, n, count * size):
            rows = slice(start, start + size)
            s, t = student_logits[rows], teacher_logits[rows]
            divergence = _near_kl_(s, t, temperature, *scratch[:, : len(s)]) if on_cpu else None
            losses[rows] = _any_kl_(s, t, temperature) if divergence is None else divergence

    on_each_core(work) if on_cpu else work(0, 1)
    return losses.mul_(temperature**2)


def _near_kl_(s: Tensor, t: Tensor, temperature: float, p: Tensor, x: Tensor, scratch: Tensor) -> Tensor | None:
    """KL per row, and T (p_s - p_t) into `s`; or None, and `s` and `t` as they were, where p_t / p_s is out of bounds.

    Args:
        s, t: [n, K], logits of the student and the teacher, overwritten.
        temperature: T > 0.
        p, x, scratch: [n, K], overwritten.
    """
    torch.sub(t, s, out=x)  # before the division, which would round both
    if temperature == 1.0:
        torch.softmax(s, -1, out=p)
    else:
        x.div_(temperature)
        torch.softmax(torch.div(s, temperature, out=scratch), -1, out=p)
    mass = p.sum(-1, keepdim=True)  # 1 but for rounding: `softmax` adds up one term after another, `sum` in pairs
    x.sub_(torch.mul(p, x, out=scratch).sum(-1, keepdim=True) / mass)
    if not x.amax() <= _FAR:  # NaN is not, either
        return None
    # x is right but for a constant, log sum p_s e^x = log(1 + excess). Where that is no small correction, once more with it.
    excess = _excess(p, mass, x, t, s)
    if excess.amax() > 1 / 16:
        x.sub_(excess.log1p())
        excess = _excess(p, mass, x, t, s)
    torch.add(p, s, out=t)  # p_t, but for normalisation
    norm = mass * (1 + excess)
    divergence = torch.mul(t, x, out=scratch).sum(-1, keepdim=True) / norm - excess.log1p()
    torch.addcmul(s, p, excess, value=-1, out=s).mul_(-temperature / norm)
    return divergence.squeeze(-1)


def _excess(p: Tensor, mass: Tensor, x: Tensor, scratch: Tensor, out: Tensor) -> Tensor:
    """p (e^x - 1) into `out`, and its sum over a row, relative to that of p."""
    torch.mul(p, torch.expm1(x, out=scratch), out=out)
    return out.sum(-1, keepdim=True) / mass


def _any_kl_(s: Tensor, t: Tensor, temperature: float) -> Tensor:
    """As `_near_kl_`, for logits however far apart, -inf among them."""
    x = (t - s) / temperature
    y_s, y_t = s / temperature, t / temperature
    log_mass_s, log_mass_t = torch.logsumexp(y_s, -1, keepdim=True), torch.logsumexp(y_t, -1, keepdim=True)
    x = torch.where(t == -torch.inf, -torch.inf, x - (log_mass_t - log_mass_s))
    p_s, p_t = torch.exp(y_s - log_mass_s), torch.exp(y_t - log_mass_t)
    change = torch.where(x > _FAR, p_t - p_s, p_s * torch.expm1(x.clamp(max=_FAR)))  # p_t - p_s
    mass = p_s.sum(-1, keepdim=True)  # 1 but for rounding, of the logits too
    excess = change.sum(-1, keepdim=True) / mass  # 0 but for rounding
    norm = mass * (1 + excess)
    p_t = (p_s + change) / norm
    s.copy_((excess * p_s - change) * (temperature / norm))
    return torch.where(p_t == 0, 0.0, p_t * (x - excess.log1p())).sum(-1)  # 0 log 0 is 0


class GradientSums:
    """What the student's hidden states, weight and bias get, summed slice by slice; fp32 or wider until it is handed over.

    Args:
        student: N tokens.
        dtype: of the sums.
        wanted: which of hidden states, weight, bias.
    """

    def __init__(self, student: LazyLogits, dtype: torch.dtype, wanted: tuple[bool, bool, bool]) -> None:
        self._student = student
        self._first = True
        make = torch.empty if student.hidden.shape[0] else torch.zeros  # the first slice overwrites what is there
        self.hidden = make(student.hidden.shape, dtype=dtype, device=student.hidden.device) if wanted[0] else None
        self.weight = make(student.weight.shape, dtype=dtype, device=student.hidden.device) if wanted[1] else None
        self.bias = torch.zeros(student.weight.shape[0], dtype=dtype, device=student.hidden.device) if wanted[2] else None

    def add(self, rows: slice, of_logits: Tensor, factor: Tensor, scratch: Tensor) -> None:
        """One slice.

        Args:
            rows: which tokens.
            of_logits: [n, K], the gradient of hidden weight^T + bias, but for a factor.
            factor: [n].
            scratch: contiguous [n, >= K] of the same dtype, overwritten.
        """
        weight, hidden = self._student.weight, self._student.hidden[rows]
        if self.bias is not None:
            self.bias.addmv_(of_logits.t(), factor)
        # Not fp16: it has no numbers below 6e-8, and p_s - p_t is often less.
        if self._student.multiplies_low_precision and weight.dtype == torch.bfloat16:
            low = scratch.view(weight.dtype)[:, : of_logits.shape[1]]
            torch.mul(of_logits, factor[:, None], out=low)
            if self.hidden is not None:
                torch.mm(low, weight, out_dtype=self.hidden.dtype, out=self.hidden[rows])
            if self.weight is not None and self._first:
                torch.mm(low.t(), hidden, out_dtype=self.weight.dtype, out=self.weight)
            elif self.weight is not None:
                torch.addmm(self.weight, low.t(), hidden, out_dtype=self.weight.dtype, out=self.weight)
        else:
            if self.hidden is not None:
                gradient = self.hidden[rows]
                for columns, block in _widened(weight, of_logits.dtype):
                    gradient.addmm_(of_logits[:, columns], block, beta=0 if columns.start == 0 else 1)
                gradient.mul_(factor[:, None])
            if self.weight is not None:
                self.weight.addmm_(of_logits.t(), hidden * factor[:, None], beta=0 if self._first else 1)
        self._first = False

    def take(self) -> list[Tensor | None]:
        """The sums of hidden states, weight and bias. This object lets go of them, or autograd would have to copy them."""
        taken = [self.hidden, self.weight, self.bias]
        del self.hidden, self.weight, self.bias
        return taken


@dataclass(frozen=True)
class _Work:
    """One batch.

    Attributes:
        student, teacher: N tokens.
        temperature: T > 0.
        chunk_mib: room for the logits of one slice.
        kl_slice: the element-wise part.
    """

    student: LazyLogits
    teacher: LazyLogits
    temperature: float
    chunk_mib: float
    kl_slice: KLSlice

    @property
    def dtype(self) -> torch.dtype:
        return torch.promote_types(self.student.dtype, self.teacher.dtype)

    def losses(self) -> Tensor:
        """[N], without gradients."""
        with torch.no_grad():
            return self.losses_and_gradients(None, (False, False, False))[0]

    def losses_and_gradients(self, weights: Tensor | None, wanted: tuple[bool, bool, bool]) -> tuple[Tensor, GradientSums | None]:
        """[N], and the gradients of their sum with `weights` [N]."""
        student, teacher = self.student, self.teacher
        losses = torch.empty(student.hidden.shape[0], dtype=self.dtype, device=student.hidden.device)
        gradients = GradientSums(student, self.dtype, wanted) if any(wanted) else None
        divisor = self.temperature if student.divides_for_free and teacher.divides_for_free else 1.0
        buffers = 2 if student.softcap is None or gradients is None else 3
        with torch.autocast(student.hidden.device.type, enabled=False):
            for rows, (s, t, *capped) in logit_slices(student, teacher, self.chunk_mib, buffers, divisor):
                for before in capped:
                    before.copy_(s)
                losses[rows] = self.kl_slice(s, t, self.temperature / divisor).mul_(divisor**2)
                if gradients is None:
                    continue
                for before in capped:  # tanh' = 1 - tanh^2
                    torch.addcmul(s, s, before.mul_(divisor / student.softcap).square_(), value=-1, out=s)
                factor = weights[rows] * (student.scale * divisor)
                gradients.add(rows, s[:, : student.weight.shape[0]], factor, scratch=t)
        return losses, gradients


class LossWork(Protocol):
    """The losses of one batch's positions, with or without gradients; what `FusedTotal` and `FusedValues` are made of."""

    def losses(self) -> Tensor:
        """[N], without gradients."""

    def losses_and_gradients(self, weights: Tensor | None, wanted: tuple[bool, bool, bool]) -> tuple[Tensor, GradientSums | None]:
        """[N], and the gradients of their sum with `weights` [N], for those of hidden states, weight and bias that are wanted."""


class FusedTotal(torch.autograd.Function):
    """Sum of the losses, times `weight`. The gradients are there when forward returns."""

    @staticmethod
    def forward(ctx: FunctionCtx, hidden: Tensor, weight: Tensor, bias: Tensor | None, work: LossWork, scalar: Tensor) -> Tensor:
        wanted = ctx.needs_input_grad[:3]
        losses, ctx.gradients = work.losses_and_gradients(scalar.expand(hidden.shape[0]), wanted)
        ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in (hidden, weight, bias)]
        return losses.sum() * scalar

    @staticmethod
    def backward(ctx: FunctionCtx, of_total: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_second_derivatives()
        if ctx.gradients is None:
            raise UsageError(
                "backward was called twice for one word_prediction_loss, whose gradients are made with its value and handed over "
                "once. Call it again, add the losses before backward, or use implementation='dense'."
            )
        gradients, ctx.gradients = ctx.gradients.take(), None
        # Usually 1, which only a CPU can see without waiting.
        scaled = of_total.device.type != "cpu" or of_total != 1
        made = []
        while gradients:  # one at a time, so that none is referred to from here when it is handed over
            gradient, dtype = gradients.pop(0), ctx.dtypes[len(made)]
            if gradient is not None:
                gradient = (gradient.mul_(of_total) if scaled else gradient).to(dtype)
            made.append(gradient)
        return *made, None, None


class FusedValues(torch.autograd.Function):
    """The losses [N]."""

    @staticmethod
    def forward(ctx: FunctionCtx, hidden: Tensor, weight: Tensor, bias: Tensor | None, work: LossWork) -> Tensor:
        ctx.save_for_backward(hidden, weight, bias)
        ctx.work = work
        return work.losses()

    @staticmethod
    def backward(ctx: FunctionCtx, of_values: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_second_derivatives()
        saved = ctx.saved_tensors  # raises where one of them has changed since
        wanted = ctx.needs_input_grad[:3]
        _, gradients = ctx.work.losses_and_gradients(of_values.contiguous(), wanted)
        made = gradients.take()
        return *(None if g is None else g.to(tensor.dtype) for g, tensor in zip(made, saved, strict=True)), None


@torch.no_grad()
def as_multiplied(logits: LazyLogits) -> LazyLogits:
    """On CUDA with factors of the dtype that autocast asks for, if any. Elsewhere low precision makes no product faster."""
    if not (logits.hidden.is_cuda and torch.is_autocast_enabled("cuda")) or logits.dtype == torch.float64:
        return logits
    dtype = torch.get_autocast_dtype("cuda")
    return replace(logits, hidden=logits.hidden.to(dtype), weight=logits.weight.to(dtype))


def _refuse_second_derivatives() -> None:
    if torch.is_grad_enabled():  # which it is in backward for create_graph alone
        raise UsageError("word_prediction_loss has no second derivatives. Use implementation='dense' with create_graph=True.")


def _widened(weight: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """The rows of a weight in a wider dtype, a block at a time; all at once where it has that dtype."""
    size = len(weight) if weight.dtype == dtype else max(1, _WEIGHT_BLOCK // weight.shape[1])
    for start in range(0, len(weight), size):
        rows = slice(start, min(start + size, len(weight)))
        yield rows, weight[rows].to(dtype)
