"""The public losses: check, apply the loss mask, choose the path, reduce. The KL itself is in chunked.py (`kl_slice_`), its plain
formula in reference.py."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from hf_glmd.errors import UsageError
from hf_glmd.losses.chunked import (
    DEFAULT_CHUNK_MIB,
    KLSlice,
    LazyLogits,
    kl_slice_,
    logit_slices,
    word_prediction_total,
    word_prediction_values,
)
from hf_glmd.losses.reference import dense_logits, dense_word_prediction_loss

Reduction = Literal["mean", "sum", "none"]
Implementation = Literal["auto", "dense", "chunked", "kernels"]


@torch.compiler.disable  # it looks at the data; to trace into it would gain nothing, for its time goes into products
def word_prediction_loss(
    student_hidden: Tensor,
    student_weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    student_bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    mask: Tensor | None = None,
    temperature: float = 15.0,
    reduction: Reduction = "mean",
    *,
    student_softcap: float | None = None,
    teacher_softcap: float | None = None,
    student_scale: float = 1.0,
    teacher_scale: float = 1.0,
    normalizer: Tensor | float | None = None,
    chunk_mib: float = DEFAULT_CHUNK_MIB,
    implementation: Implementation = "auto",
    check_teacher: bool = True,
) -> Tensor:
    """T^2 * KL(teacher || student) of two models' word predictions, from what enters their output embeddings.

    Logits are softcap * tanh(scale * (hidden weight^T + bias) / softcap), scaled first; without a softcap the inner part. They
    are made for one slice of tokens at a time, and the gradients along with them, in fp32 or wider whatever the dtype of the
    inputs and under autocast too. Positions that do not count are dropped before any product.

    Args:
        student_hidden: [..., H_s].
        student_weight: [K, H_s].
        teacher_hidden: [..., H_t], the leading dimensions of `student_hidden`.
        teacher_weight: [K, H_t], the teacher's rows of the student's tokens, in the student's order.
        student_bias, teacher_bias: [K]. -inf in the teacher's: it rules a token out.
        mask: [...], 1 or True where a position counts. None: everywhere. On a GPU, the host waits for a mask that is there, and
            does not for one on the CPU.
        temperature: T > 0, of both softmaxes; 0.5 to 50 makes sense.
        reduction: "mean" over the counted positions, "sum", or "none" for [...] with 0 where nothing counts. With "none",
            backward makes the logits again.
        student_softcap, teacher_softcap: what no logit exceeds (Gemma 2: 30). None: no cap.
        student_scale, teacher_scale: what logits are multiplied by (Cohere's logit_scale, one over Granite's logits_scaling).
        normalizer: for "mean": divide by this count instead, e.g. the counted positions of the whole global batch. A tensor is
            not read on the host.
        chunk_mib: room for the logits of one slice, both models'; on a CPU no more than 512 tokens are taken at once.
        implementation: "auto": slices, with Triton kernels where they run. "chunked": slices, without kernels. "kernels": slices,
            with kernels. "dense": the plain formula on [N, K] logits; it alone has second derivatives.
        check_teacher: on a CPU, refuse NaN and infinity from the teacher. On a GPU the host would have to wait for it.
    Returns: scalar, or [...] for "none", in nats, fp32 or wider. 0 with gradients of 0 when no position counts.
    Raises: UsageError: shapes, devices or dtypes do not fit, a number is out of range, or the teacher's values are not finite.
        From backward: a second one for the same value, or one that is to be differentiated again.
    Source: GLMD, arXiv:2306.06625 (word prediction).
    """
    return kl_loss(
        LazyLogits(student_hidden, student_weight, student_bias, student_scale, student_softcap),
        LazyLogits(teacher_hidden, teacher_weight, teacher_bias, teacher_scale, teacher_softcap),
        temperature,
        mask,
        reduction,
        normalizer=normalizer,
        chunk_mib=chunk_mib,
        implementation=implementation,
        check_teacher=check_teacher,
    )


@torch.compiler.disable  # it looks at the data; to trace into it would gain nothing, for its time goes into products
def kl_loss(
    student: LazyLogits,
    teacher: LazyLogits,
    temperature: float,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
    *,
    normalizer: Tensor | float | None = None,
    chunk_mib: float = DEFAULT_CHUNK_MIB,
    implementation: Implementation = "auto",
    check_teacher: bool = True,
) -> Tensor:
    """`word_prediction_loss` of two models' logits as what they are made of.

    Args:
        student, teacher: hidden states [..., H_s] and [..., H_t], weights [K, H_s] and [K, H_t].
        others: as of `word_prediction_loss`.
    """
    if reduction not in ("mean", "sum", "none"):
        raise UsageError(f"reduction='{reduction}' is unknown. Use 'mean', 'sum' or 'none'.")
    shape, device = student.hidden.shape[:-1], student.hidden.device
    student, teacher, counted = _counted_logits(student, teacher, mask, temperature, chunk_mib)
    if implementation == "dense":
        with torch.autocast(device.type, enabled=False):
            values = dense_word_prediction_loss(_dense(student), _dense(teacher).detach(), temperature)
            loss = reduced(values, reduction, counted, normalizer)
    else:
        how = {"chunk_mib": chunk_mib, "kl_slice": _kl_slice(implementation, device, student.dtype)}
        if reduction == "none":
            loss = reduced(word_prediction_values(student, teacher, temperature, **how), reduction, counted, None)
        else:
            divisor = 1.0 if reduction == "sum" else _divisor(normalizer, student.hidden)
            loss = word_prediction_total(student, teacher, temperature, divisor, **how)
    if check_teacher and loss.device.type == "cpu" and not torch.isfinite(loss.detach()).all():
        _refuse_broken_teacher(teacher)
    return loss.reshape(shape) if reduction == "none" else loss


@torch.compiler.disable
@torch.no_grad()
def word_prediction_scores(
    student: LazyLogits,
    teacher: LazyLogits,
    temperature: float,
    mask: Tensor | None = None,
    *,
    targets: Tensor | None = None,
    choices: bool = False,
    chunk_mib: float = DEFAULT_CHUNK_MIB,
    implementation: Implementation = "auto",
) -> dict[str, Tensor]:
    """How near the student's word predictions are to the teacher's, at each of the N counted positions.

    Args:
        student, teacher: hidden states [..., H_s] and [..., H_t], weights [K, H_s] and [K, H_t].
        targets: int64 [...], the true tokens as columns of the logits; -100: none.
        choices: also return the top tokens.
        others: as of `word_prediction_loss`; "dense" is no choice here.
    Returns: fp32 or wider, [N] each:
        loss: T^2 * KL(teacher || student) at `temperature`.
        kl: the same at T = 1.
        agreement: 1 where both models' top-1 tokens are the same, else 0.
        teacher_entropy: at T = 1, in nats.
        cross_entropy: of the student with the targets at T = 1, in nats; NaN where there is none. Only with `targets`.
        student_choice, teacher_choice: int64, the top tokens. Only with `choices`.
    Raises: UsageError, as of `word_prediction_loss`.
    """
    shape, device = student.hidden.shape[:-1], student.hidden.device
    student, teacher, counted = _counted_logits(student, teacher, mask, temperature, chunk_mib)
    if targets is not None:
        targets = _counted_targets(targets, counted, shape, len(student.weight))
    kl = _kl_slice(implementation, device, student.dtype)
    scores: dict[str, list[Tensor]] = {"loss": [], "kl": [], "agreement": [], "teacher_entropy": []}
    if targets is not None:
        scores["cross_entropy"] = []
    if choices:
        scores |= {"student_choice": [], "teacher_choice": []}
    empty = student.hidden.new_empty(0, dtype=torch.promote_types(student.dtype, teacher.dtype))
    with torch.autocast(device.type, enabled=False):
        for rows, (s, t, s_copy, t_copy) in logit_slices(student, teacher, chunk_mib, buffers=4):
            chosen = s.argmax(-1), t.argmax(-1)
            scores["agreement"].append((chosen[0] == chosen[1]).to(s.dtype))
            if choices:
                scores["student_choice"].append(chosen[0])
                scores["teacher_choice"].append(chosen[1])
            if targets is not None:
                wanted = targets[rows].to(s.device)
                likelihood = s.gather(-1, wanted.clamp(min=0)[:, None]).squeeze(-1) - torch.logsumexp(s, -1)
                scores["cross_entropy"].append(torch.where(wanted < 0, torch.nan, -likelihood))
            s_copy.copy_(s)
            t_copy.copy_(t)
            scores["kl"].append(kl(s_copy, t_copy, 1.0))
            s_copy.copy_(s)
            t_copy.copy_(t)
            scores["loss"].append(kl(s_copy, t_copy, temperature))
            scores["teacher_entropy"].append(torch.special.entr(torch.softmax(t, -1, out=s), out=t).sum(-1))
    return {name: torch.cat([empty.long() if "choice" in name else empty, *values]) for name, values in scores.items()}


def word_prediction_loss_from_logits(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float = 15.0,
    reduction: Reduction = "mean",
    *,
    counted: Tensor | None = None,
    normalizer: Tensor | float | None = None,
) -> Tensor:
    """`word_prediction_loss` from the logits of the counted positions.

    Args:
        student_logits, teacher_logits: [N, K], N counted positions, columns in the student's token order. Low-precision
            logits are widened first: at T = 15 the softmaxes are nearly flat and bf16 would round their difference away.
        temperature, reduction, normalizer: as in `word_prediction_loss`.
        counted: bool [...], N of them True: where "none" puts the N values.
    """
    check_temperature(temperature)
    dtype = torch.promote_types(student_logits.dtype, torch.float32)
    values = dense_word_prediction_loss(student_logits.to(dtype), teacher_logits.detach().to(dtype), temperature)
    return reduced(values, reduction, counted, normalizer)


# What does not fit


def check_temperature(temperature: float) -> None:
    if not 0 < temperature < math.inf:
        raise UsageError(f"temperature={temperature} is not positive. Use 15.0 for word prediction, 1.0 for soft labels.")


def _check_logits(model: str, logits: LazyLogits) -> None:
    """Refuses a model whose hidden states, weight and bias do not go together."""
    hidden, weight, bias = logits.hidden, logits.weight, logits.bias
    if weight.ndim != 2 or hidden.ndim < 1 or hidden.shape[-1] != weight.shape[1]:
        raise UsageError(
            f"{model}_hidden {tuple(hidden.shape)} and {model}_weight {tuple(weight.shape)} do not fit. "
            "Pass hidden states [..., H] and the output embedding [K, H]."
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise UsageError(
            f"{model}_bias {tuple(bias.shape)} does not fit {model}_weight {tuple(weight.shape)}. Pass one number per row of it."
        )
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is None:
            continue
        if tensor.device != hidden.device:
            raise UsageError(
                f"{model}_hidden is on {hidden.device} and {model}_{name} on {tensor.device}. Move both to one device."
            )
        if not _go_together(hidden.dtype, tensor.dtype):
            raise UsageError(
                f"{model}_hidden is {hidden.dtype} and {model}_{name} {tensor.dtype}. "
                "Use one dtype for a model, or float32 beside bfloat16 or float16."
            )
    if logits.softcap is not None and not 0 < logits.softcap < math.inf:
        raise UsageError(f"{model}_softcap={logits.softcap} is not positive. Leave it out for a model without one.")
    if not 0 < abs(logits.scale) < math.inf:
        raise UsageError(f"{model}_scale={logits.scale} leaves no logits to compare. Leave it out for a model without one.")


def _go_together(one: torch.dtype, other: torch.dtype) -> bool:
    if not (one.is_floating_point and other.is_floating_point):
        return False
    return one == other or (torch.float32 in (one, other) and torch.float64 not in (one, other))


def _refuse_broken_teacher(teacher: LazyLogits) -> None:
    """Says what is wrong with the teacher's values, if it is they that made a loss infinite or NaN."""
    broken = ~torch.isfinite(teacher.hidden).all(-1)
    if broken.any():
        raise UsageError(
            f"teacher_hidden holds NaN or infinity at {int(broken.sum())} of {len(broken)} counted positions, first at number "
            f"{int(broken.nonzero()[0])}. Look at the teacher's weights and at its dtype: float16 overflows at 65504."
        )
    for name, tensor in (("teacher_weight", teacher.weight), ("teacher_bias", teacher.bias)):
        if tensor is None:
            continue
        wrong = torch.isnan(tensor) | (tensor == torch.inf) | (torch.isinf(tensor) if name == "teacher_weight" else False)
        if wrong.any():
            row = int(wrong.nonzero()[0, 0])
            raise UsageError(f"{name} holds NaN or infinity, first in row {row}. Load the teacher again, or train it again.")


# What counts


def counted_positions(mask: Tensor | None, shape: torch.Size) -> Tensor | None:
    if mask is None:
        return None
    if mask.shape != shape:
        raise UsageError(f"mask {tuple(mask.shape)} does not cover the positions {tuple(shape)}. Give one value per position.")
    return mask.bool()


def _counted_logits(
    student: LazyLogits, teacher: LazyLogits, mask: Tensor | None, temperature: float, chunk_mib: float
) -> tuple[LazyLogits, LazyLogits, Tensor | None]:
    """Both models' logits at the counted positions, hidden states [N, H], after all checks; and which positions count."""
    check_temperature(temperature)
    if not 0 < chunk_mib < math.inf:
        raise UsageError(f"chunk_mib={chunk_mib} is no room for a slice of logits. Use a positive number, e.g. 256.")
    hidden, weight = (student.hidden, teacher.hidden), (student.weight, teacher.weight)
    if hidden[0].shape[:-1] != hidden[1].shape[:-1]:
        raise UsageError(
            f"student_hidden {tuple(hidden[0].shape)} and teacher_hidden {tuple(hidden[1].shape)} are not of the same positions. "
            "Give both models the same tokens."
        )
    if weight[0].shape[:1] != weight[1].shape[:1]:
        raise UsageError(
            f"student_weight has {len(weight[0])} rows and teacher_weight {len(weight[1])}. "
            "Pass the teacher's rows of the student's tokens: teacher_weight[vocab_map.kept_ids]."
        )
    _check_logits("student", student)
    _check_logits("teacher", teacher)
    if hidden[0].device != hidden[1].device:
        raise UsageError(
            f"student_hidden is on {hidden[0].device} and teacher_hidden on {hidden[1].device}. Move both to one device."
        )
    if (student.dtype == torch.float64) != (teacher.dtype == torch.float64):
        raise UsageError(
            f"student_hidden is {hidden[0].dtype} and teacher_hidden {hidden[1].dtype}. Use float64 for both or for neither."
        )
    counted = counted_positions(mask, student.hidden.shape[:-1])
    positions = None if counted is None else counted.reshape(-1).nonzero().squeeze(-1)
    at_counted = []
    for logits in (student, replace(teacher, hidden=teacher.hidden.detach())):
        hidden = logits.hidden.reshape(-1, logits.hidden.shape[-1])
        if positions is not None and len(positions) < len(hidden):
            hidden = hidden.index_select(0, positions.to(hidden.device, non_blocking=True))
        at_counted.append(replace(logits, hidden=hidden))
    return *at_counted, counted


def _counted_targets(targets: Tensor, counted: Tensor | None, shape: torch.Size, size: int) -> Tensor:
    """The true tokens at the N counted positions, int64 [N], out of int64 [...]; `size` rows has the student's weight."""
    if targets.shape != shape:
        raise UsageError(
            f"targets {tuple(targets.shape)} are not of the positions {tuple(shape)}. Give one token id, or -100, per position."
        )
    targets = targets.reshape(-1) if counted is None else targets[counted.to(targets.device)]
    # Elsewhere the look would make the host wait for the device.
    if targets.device.type == "cpu" and len(targets) and int(targets.max()) >= size:
        raise UsageError(
            f"targets hold {int(targets.max())} and student_weight has {size} rows. "
            "Give the ids of the student's vocabulary: vocab_map.to_small(ids)."
        )
    return targets


# Which path, and what is returned


def _kl_slice(implementation: Implementation, device: torch.device, dtype: torch.dtype) -> KLSlice:
    """The element-wise part for logits of that dtype."""
    if implementation not in ("auto", "chunked", "kernels"):
        raise UsageError(f"implementation='{implementation}' is unknown. Use 'auto', 'chunked', 'kernels' or 'dense'.")
    if implementation == "kernels" or (implementation == "auto" and device.type == "cuda"):
        from hf_glmd.losses import kernels  # loads Triton, which nobody else needs

        if kernels.available(device) and dtype == torch.float32:
            return kernels.kl_slice_
        if implementation == "kernels":
            raise UsageError(
                f"implementation='kernels' does not run for {dtype} on {device}: it needs Triton, a CUDA device and less than "
                "float64. Use 'auto'."
            )
    return kl_slice_


def _dense(logits: LazyLogits) -> Tensor:
    hidden, weight = logits.hidden.to(logits.dtype), logits.weight.to(logits.dtype)
    bias = None if logits.bias is None else logits.bias.to(logits.dtype)
    return dense_logits(hidden, weight, bias, logits.scale, logits.softcap)


def reduced(values: Tensor, reduction: Reduction, counted: Tensor | None, normalizer: Tensor | float | None) -> Tensor:
    if reduction == "none":
        return values if counted is None else _scattered(values, counted)
    if reduction == "sum":
        return values.sum()
    if reduction == "mean":
        return values.sum() / _divisor(normalizer, values)
    raise UsageError(f"reduction='{reduction}' is unknown. Use 'mean', 'sum' or 'none'.")


def _divisor(normalizer: Tensor | float | None, counted: Tensor) -> Tensor | float:
    """What a mean over the rows of `counted` divides by. Never 0: a batch in which nothing counts is a 0 with gradients of 0."""
    if not isinstance(normalizer, Tensor):
        return (len(counted) if normalizer is None else normalizer) or 1.0
    normalizer = normalizer.to(counted.device, non_blocking=True)
    return normalizer + (normalizer == 0)


def _scattered(values: Tensor, counted: Tensor) -> Tensor:
    """[N] -> the shape of `counted`, 0 where nothing counts."""
    return values.new_zeros(counted.shape).masked_scatter(counted.to(values.device), values)
