"""The element-wise part of the word-prediction loss for CUDA, in Triton: softmax statistics in one pass, the gradient in another.

The products stay with cuBLAS. What is left is bound by memory: per token and column, 16 bytes read and 4 written.

Why not the plain formula: at T = 15 both softmaxes are nearly flat, and where the models nearly agree,
sum p_t (log p_t - log p_s) is a small difference of large terms. With a = log p_t - log p_s nothing cancels in

    KL(p_t || p_s)  =  sum p_s f(a),  f(a) = a e^a - (e^a - 1) >= 0        as sum p_s (e^a - 1) = sum p_t - sum p_s = 0
    p_t - p_s       =  p_s (e^a - 1)

Both come from one polynomial while |a| <= 1, and from p_s and p_t themselves beyond. An error c in the normalisation of `a`
enters the loss only as c^2 / 2, but the gradient as p_s c. So log(S_t / S_s), of the two partition sums, is taken from a sum of
the differences of their terms.

Triton is optional: ask `available` first. Run so far, with Triton 3.7.0 and 3.9.0: the tests under its interpreter on a CPU, and
its compiler for sm_80 and sm_90. Nothing here has been run or timed on a GPU yet.
"""

from __future__ import annotations

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # there are platforms without a wheel; `available` then says no, and nothing below is called
    triton = None


def _kernel(function):
    return function if triton is None else triton.jit(function)


def available(device: torch.device | str) -> bool:
    """Whether `kl_slice_` runs on `device`: Triton is installed, and it is a CUDA device or Triton's interpreter is on.

    The interpreter (TRITON_INTERPRET=1, set before anything imports Triton) is for tests: it runs on the CPU and is slow.
    """
    if triton is None:
        return False
    return torch.device(device).type == "cuda" or not isinstance(_kl_row, triton.JITFunction)


def kl_slice_(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """T^2 * KL(teacher || student) of the two softmaxes at temperature T per row; writes the gradient over the student's logits.

    Args:
        student_logits: fp32 [n, K], K < 2^31, rows contiguous; the row stride may exceed K. Overwritten with
            d loss_row / d student_logits = T * (p_s - p_t). -inf in both models: no candidate, adds nothing, gradient 0.
            Read 16 bytes at a time where K and both row strides are multiples of 16, else 4.
        teacher_logits: fp32 [n, K], likewise. Left as it is. -inf: the teacher rules the token out.
        temperature: T > 0, of both softmaxes.
    Returns: fp32 [n], in nats, within 1e-6 of the exact value, relative, unless it hangs on tokens far below e^-15: an exponent x
        is good to x * 2^-24. Infinite where the student alone rules out a token; NaN where a row holds NaN, +inf or no candidate.
    Raises: ValueError, shapes, dtypes, devices or strides do not fit.
    Source: GLMD, arXiv:2306.06625 (word prediction); the running maximum: Milakov and Gimelshein, arXiv:1805.02867.
    """
    for name, logits in (("student", student_logits), ("teacher", teacher_logits)):
        if logits.dtype != torch.float32 or logits.ndim != 2 or (logits.shape[1] > 1 and logits.stride(1) != 1):
            raise ValueError(
                f"{name} logits must be fp32 [n, K] with contiguous rows, not {logits.dtype} {tuple(logits.shape)} of strides "
                f"{logits.stride()}."
            )
    if student_logits.shape != teacher_logits.shape or student_logits.device != teacher_logits.device:
        raise ValueError(
            f"student logits {tuple(student_logits.shape)} on {student_logits.device} and teacher logits "
            f"{tuple(teacher_logits.shape)} on {teacher_logits.device} differ."
        )
    n, K = student_logits.shape
    loss = torch.empty(n, dtype=torch.float32, device=student_logits.device)
    if n > 0:
        block, num_warps = launch_shape(n, K)
        with torch.cuda.device(student_logits.get_device()):  # Triton launches on the current device; -1, a CPU, changes nothing
            _kl_row[(n,)](
                student_logits,
                teacher_logits,
                loss,
                student_logits.stride(0),
                teacher_logits.stride(0),
                K,
                float(temperature),
                1.0 / temperature,
                BLOCK=block,
                num_warps=num_warps,
            )
    return loss


def launch_shape(n: int, K: int) -> tuple[int, int]:
    """Columns per step of a row's program, and its warps, for n rows of K logits.

    Sixteen columns of each model per thread: with eight, a reduction's shuffles are a tenth of all instructions. Many small
    programs per SM hide each other's waits best: 2,048 columns take 80 to 114 registers in each of 128 threads, so that four to
    six programs share an SM of sm_90, 64 to 96 KiB under way. Few rows do not fill the device with those and take wider steps, so
    that 128 rows still have 64 KiB under way on each SM. From the compiler's output (no spills), not measured.
    """
    widest = 8192 if n < 256 else 4096 if n < 512 else 2048
    block = 32
    while block < min(K, widest):  # no bit tricks: torch.compile may pass symbolic sizes
        block *= 2
    return block, max(block // 512, 1)


@_kernel
def _kl_row(
    student,  # fp32 [n, K]: logits in, gradient out
    teacher,  # fp32 [n, K]
    loss,  # fp32 [n]
    student_stride,
    teacher_stride,
    K,
    temperature,
    inverse_temperature,
    BLOCK: tl.constexpr,
):
    """One row per program."""
    row = tl.program_id(0).to(tl.int64)  # n * K may exceed 2^31
    student += row * student_stride
    teacher += row * teacher_stride
    columns = tl.arange(0, BLOCK)
    per_bit = inverse_temperature * 1.4426950408889634  # e^(x / T) = 2^(x * per_bit), which is one instruction

    # Pass 1. Sums of e^((x - max) / T) under the running maxima, and the sum of the two models' differences. The maxima start at
    # the lowest finite value and not at -inf, because a first block may hold nothing but -inf, and -inf - -inf is NaN.
    student_max = -3.4028234663852886e38
    teacher_max = -3.4028234663852886e38
    student_sum = 0.0
    teacher_sum = 0.0
    excess_sum = 0.0  # teacher_sum - student_sum, to the precision of its own terms
    for start in range(0, K, BLOCK):
        inside = columns < K - start
        s = tl.load(student + start + columns, mask=inside, other=float("-inf"))
        t = tl.load(teacher + start + columns, mask=inside, other=float("-inf"))
        old_student_max, old_teacher_max = student_max, teacher_max
        student_max = tl.maximum(student_max, tl.max(s, 0))
        teacher_max = tl.maximum(teacher_max, tl.max(t, 0))

        student_scale = tl.exp2((old_student_max - student_max) * per_bit)
        teacher_scale = tl.exp2((old_teacher_max - teacher_max) * per_bit)
        log_ratio = _gap(old_student_max, old_teacher_max, student_max, teacher_max) * inverse_temperature
        scale_excess = _excess(student_scale, teacher_scale, log_ratio)
        # Scaled by the lesser and completed from the sum of the other, so that no term is larger than the new sums.
        scaled = excess_sum * tl.minimum(student_scale, teacher_scale)
        excess_sum = scaled + tl.where(teacher_scale > student_scale, teacher_sum, student_sum) * scale_excess

        student_mass = tl.exp2((s - student_max) * per_bit)
        teacher_mass = tl.exp2((t - teacher_max) * per_bit)
        log_ratio = _gap(s, t, student_max, teacher_max) * inverse_temperature
        student_sum = student_sum * student_scale + tl.sum(student_mass, 0)
        teacher_sum = teacher_sum * teacher_scale + tl.sum(teacher_mass, 0)
        excess_sum += tl.sum(_excess(student_mass, teacher_mass, log_ratio), 0)

    # Far apart, the excess is as coarse as the larger sum; near, the quotient of the sums is as coarse as 1.
    excess = excess_sum / student_sum
    log_sums = tl.where(tl.abs(excess) <= 0.25, _log1p_small(excess), tl.log(teacher_sum) - tl.log(student_sum))
    student_norm = 1.0 / student_sum
    teacher_norm = 1.0 / teacher_sum

    # Pass 2. The gradient, and the loss summed per lane: each lane adds few terms, and the reduction is a tree.
    divergence = tl.zeros([BLOCK], dtype=tl.float32)
    for start in range(0, K, BLOCK):
        inside = columns < K - start
        s = tl.load(student + start + columns, mask=inside, other=float("-inf"))
        t = tl.load(teacher + start + columns, mask=inside, other=float("-inf"))
        p_s = tl.exp2((s - student_max) * per_bit) * student_norm
        p_t = tl.exp2((t - teacher_max) * per_bit) * teacher_norm
        a = _gap(s, t, student_max, teacher_max) * inverse_temperature - log_sums
        a = tl.where(s == float("-inf"), float("inf"), a)  # the gap is NaN there; where p_t is 0 as well it does not count
        divergence += _divergence(p_s, p_t, a)
        tl.store(student + start + columns, -temperature * _excess(p_s, p_t, a), mask=inside)
    tl.store(loss + row, temperature * temperature * tl.sum(divergence, 0))


@_kernel
def _gap(student, teacher, student_max, teacher_max):
    """(teacher - teacher_max) - (student - student_max), rounded once: a constant added to a row's logits costs nothing."""
    high, low = _exact_difference(teacher, student)
    max_high, max_low = _exact_difference(teacher_max, student_max)
    return (high - max_high) + (low - max_low)


@_kernel
def _exact_difference(x, y):
    """high + low = x - y exactly, high = fl(x - y), for finite x and y. Source: Knuth, TAOCP 2, section 4.2.2."""
    high = x - y
    minus_y = high - x
    return high, (x - (high - minus_y)) - (y + minus_y)


@_kernel
def _excess(p, q, a):
    """q - p, for q = p e^a."""
    m = _expm1_over_a_minus_1(a)
    return tl.where(tl.abs(a) <= 1.0, p * (a + a * m), q - p)


@_kernel
def _divergence(p, q, a):
    """q a - q + p >= 0, for q = p e^a."""
    m = _expm1_over_a_minus_1(a)
    far = tl.where(q == 0.0, 0.0, q * (a - 1.0)) + p  # 0 log 0 is 0, and NaN is not 0
    return tl.where(tl.abs(a) <= 1.0, p * (a * ((a + a * m) - m)), far)


@_kernel
def _expm1_over_a_minus_1(a):
    """(e^a - 1) / a - 1 for |a| <= 1 within 2e-8, relative: a times the Chebyshev fit of (e^a - 1 - a) / a^2, degree 7."""
    value = 2.8062802e-06
    value = tl.fma(value, a, 2.5358513e-05)
    value = tl.fma(value, a, 1.9838102e-04)
    value = tl.fma(value, a, 1.3885397e-03)
    value = tl.fma(value, a, 8.3333390e-03)
    value = tl.fma(value, a, 4.1666735e-02)
    value = tl.fma(value, a, 1.6666667e-01)
    value = tl.fma(value, a, 0.5)
    return value * a


@_kernel
def _log1p_small(x):
    """log(1 + x) for |x| <= 1/4, to fp32 precision: 2 artanh(z) = 2 (z + z^3/3 + z^5/5 + ...), z = x / (2 + x), |z| <= 1/7."""
    z = x / (2.0 + x)
    square = z * z
    value = 1.0 / 9.0
    value = tl.fma(value, square, 1.0 / 7.0)
    value = tl.fma(value, square, 1.0 / 5.0)
    value = tl.fma(value, square, 1.0 / 3.0)
    return 2.0 * z + 2.0 * z * square * value
