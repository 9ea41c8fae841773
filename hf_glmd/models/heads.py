"""The output embedding of any model: what enters it, and its logits only where they are needed.

Almost all of the time and memory of a small model's forward goes into [tokens, vocabulary] logits. One mechanism serves every
architecture: for the length of one forward the output embedding hands over its input instead of multiplying it. What the model
does to its logits afterwards (scale, softcap, offset) is found by showing it known logits, and all of it is proved on a few
tokens against the model's own logits before it is used.
"""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import MODEL_FOR_MASKED_LM_MAPPING

from hf_glmd.errors import UsageError
from hf_glmd.losses.chunked import LazyLogits
from hf_glmd.losses.reference import dense_logits
from hf_glmd.models.config_ids import referenced_ids
from hf_glmd.models.distributed import gathered, is_sharded, whole

_PROBES = (0.0, 1e-3, 1.0, -30.0, 6e4)
"""Logits that are shown to a model: the offset, the slope, two points between, and where a softcap is reached."""

_TOKENS = 6
"""Length of the row that proves a head."""

_SLACK, _SLACK_LOW = 64, 4
"""Roundings of the dtype, relative to the largest logit, within which two ways of computing logits agree: in fp32 each sum of a
product has its own order, in low precision there is but the rounding of the result."""


def output_embedding(model: nn.Module) -> nn.Module:
    """The layer that turns hidden states into logits.

    Raises: UsageError, the model predicts no words (a bare encoder or a classifier).
    """
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if head is None:
        raise UsageError(
            f"{type(model).__name__} predicts no words: it has no output embedding. Use a checkpoint that was trained with one: "
            "AutoModelForMaskedLM, AutoModelForCausalLM or AutoModelForSeq2SeqLM loads it without new weights."
        )
    return head


def is_masked_lm(model: nn.Module) -> bool:
    """Whether a model predicts masked tokens from both sides, rather than the next word."""
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    classes = MODEL_FOR_MASKED_LM_MAPPING.get(type(model.config), ())
    return isinstance(model, classes)


class HeadInputs(LazyLogits):
    """What a model's logits are made of, as its output embedding hands it over; `hidden` is [N, H] or [B, S, H]."""

    def logits(self) -> Tensor:
        """[N, K] or [B, S, K], fp32 or wider, whatever the dtype of the parts and under autocast too."""
        # At T = 15 the two softmaxes differ by less than bf16 can tell.
        dtype = torch.promote_types(self.hidden.dtype, torch.float32)
        with torch.autocast(self.hidden.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.to(dtype)
            return dense_logits(self.hidden.to(dtype), self.weight.to(dtype), bias, self.scale, self.softcap)


class WordHead:
    """How a model comes from hidden states to word logits, found out and proved once.

    Attributes:
        size: V, rows of the output embedding.
        fallback: None: logits are made from what enters the output embedding. Otherwise the reason, with the name of the module,
            why they are not: every logit of the model is then computed, and the wanted ones are picked.

    Args:
        model: a model that predicts words, not wrapped (DDP, compiled) yet; what is called later may be.
    Raises: UsageError, the model predicts no words.
    """

    def __init__(self, model: nn.Module) -> None:
        self.size = 0
        self._module = output_embedding(model)
        self._scale = 1.0
        self._softcap: float | None = None
        self._offset: Tensor | None = None
        self._name = next((name for name, module in model.named_modules() if module is self._module), "output embedding")
        self._collect: Callable[[Tensor], Any] | None = None
        self._collected: Any = None
        unwrapped = model.get_base_model() if hasattr(model, "get_base_model") else model
        # Keys and values would be kept for words that are never generated, and a cache hides where packed texts end.
        accepted = set(inspect.signature(unwrapped.forward).parameters)
        self._accepted = accepted if "input_ids" in accepted else None  # a wrapper that hands on whatever it gets
        self._settings = {"use_cache": False} if "use_cache" in accepted else {}
        with gathered(model.parameters()):  # of a model that was sharded when it was loaded
            self.fallback = self._find_out(model)

    @property
    def is_sharded(self) -> bool:
        """Whether the rows that `inputs` returns are gone when the model's forward is over; those of `rows` stay."""
        return is_sharded(self._module.weight)

    def rows(self, token_ids: Tensor) -> HeadRows:
        """The rows of some tokens, gathered once, for a frozen model; where logits are picked afterwards, only their numbers."""
        return HeadRows(self._module, token_ids, self._offset) if self.fallback is None else HeadRows(None, token_ids, None)

    def collect(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        compute: Callable[[HeadInputs], Any],
        positions: Tensor | None = None,
        rows: HeadRows | None = None,
    ) -> Any:
        """Runs the model, and `compute` where it would multiply by the output embedding.

        `compute` runs inside of the model's forward, so that whatever gathers sharded weights there has gathered them.

        Args:
            model: the one this head was found in, wrapped or not.
            inputs: its keyword arguments.
            compute: what to do with the head's inputs; its result is returned. A scalar also becomes the model's output.
            positions: bool [B, S], N of them True: the hidden states of those alone, [N, H]. None: everywhere, [B, S, H].
            rows: rows to use instead of the model's own.
        """
        if self.fallback is not None:
            raise RuntimeError(f"The hidden states of this model cannot be used: {self.fallback}.")

        def at_head(hidden: Tensor) -> Any:
            hidden = hidden if positions is None else at_positions(hidden, positions)
            if rows is not None:
                return compute(HeadInputs(hidden, rows.weight, rows.bias, self._scale, self._softcap))
            bias = with_offset(getattr(self._module, "bias", None), self._offset)
            return compute(HeadInputs(hidden, self._module.weight, bias, self._scale, self._softcap))

        return self._run(model, inputs, at_head)

    def inputs(
        self, model: nn.Module, inputs: Mapping[str, Any], positions: Tensor | None = None, rows: HeadRows | None = None
    ) -> HeadInputs:
        """What enters the output embedding, and its rows. Arguments as of `collect`."""
        return self.collect(model, inputs, lambda head: head, positions, rows)

    def logits(
        self, model: nn.Module, inputs: Mapping[str, Any], positions: Tensor | None = None, rows: HeadRows | None = None
    ) -> Tensor:
        """Logits of `model(**inputs)` at the chosen positions for the chosen rows: [N, K], or [B, S, K] without positions.

        They are fp32, or wider where the model is. Arguments as of `collect`.
        """
        if self.fallback is None:
            return self.collect(model, inputs, HeadInputs.logits, positions, rows)
        logits = model(**self._own(inputs), **self._settings).logits
        if positions is not None:
            logits = at_positions(logits, positions)
        if rows is not None:
            logits = logits.index_select(-1, rows.token_ids.to(logits.device))
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def of_logits(
        self, model: nn.Module, inputs: Mapping[str, Any], compute: Callable[[Tensor], Any], positions: Tensor | None = None
    ) -> Any:
        """What `compute` makes of the logits while the model runs. A scalar becomes the model's output: so DDP, which takes
        parameters that the output does not depend on for unused, knows that they are used.

        Args:
            compute: of logits [N, K]; its result is returned. The others as of `collect`.
        """
        if self.fallback is None:
            return self.collect(model, inputs, lambda head: compute(head.logits()), positions)
        return compute(self.logits(model, inputs, positions))

    def _own(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The inputs that this model takes: a DistilBERT reads no token_type_ids, its teacher may."""
        return {name: value for name, value in inputs.items() if self._accepted is None or name in self._accepted}

    # How it is found out

    def _run(self, model: nn.Module, inputs: Mapping[str, Any], at_head: Callable[[Tensor], Any]) -> Any:
        self._collect, self._collected = at_head, None
        try:
            with replaced_forward(self._module, self._forward):
                output = model(**self._own(inputs), **self._settings)
            result, output = self._collected, getattr(output, "logits", None)
            if isinstance(result, Tensor) and result.requires_grad and isinstance(output, Tensor):
                return _ThroughOutput.apply(result, output)
            return result
        finally:
            self._collect = self._collected = None

    @torch.compiler.disable  # it does something else each time, so a compiled model has to leave it alone
    def _forward(self, hidden: Tensor) -> Tensor:
        result = self._collected = self._collect(hidden)
        # A scalar stands in for the logits, so that a scale or an offset of the model does not broadcast to [B, S, V]. A loss is
        # returned itself, since a sharded module waits for the gradient of its output. Any other result is at least made part of
        # the output: DDP calls a parameter unused when the output does not depend on it.
        if not isinstance(result, Tensor):
            return hidden.new_zeros(())
        return result if result.ndim == 0 else result.flatten()[:1].sum()

    @torch.no_grad()
    def _find_out(self, model: nn.Module) -> str | None:
        name = type(model).__name__
        with evaluating(model), without_autocast(model):
            inputs = _few_tokens(model)
            try:
                wanted = getattr(model(**inputs), "logits", None)
            except (RuntimeError, ValueError, TypeError, AttributeError) as error:
                raise UsageError(
                    f"{name} does not run on token ids alone ({str(error).splitlines()[0]}). Use a language model for text."
                ) from error
            if wanted is None:
                raise UsageError(
                    f"{name} returns no logits of words. "
                    "Load it with AutoModelForMaskedLM, AutoModelForCausalLM or AutoModelForSeq2SeqLM."
                )
            self.size = wanted.shape[-1]
            what = f"{self._name} ({type(self._module).__name__})"
            weight = getattr(self._module, "weight", None)
            if not isinstance(self._module, nn.Linear) or not isinstance(weight, Tensor) or not weight.is_floating_point():
                return f"{what} is no plain linear layer"
            try:
                if not self._find_transform(model, inputs, wanted.shape):
                    return f"{name} changes the logits of {what} in an unknown way"
                self.fallback = None
                found = self.logits(model, inputs)
            except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
                return f"{name} uses {what} in an unknown way ({str(error).splitlines()[0]})"
        if found is None:
            return f"{name} does not call {what}"
        eps = torch.finfo(wanted.dtype).eps
        tolerance = (_SLACK if eps < 1e-6 else _SLACK_LOW) * eps * max(1.0, float(wanted.abs().max()))
        if found.shape != wanted.shape or not float((found - wanted).abs().max()) <= tolerance:
            return f"{name} does not compute its logits from {what} alone"
        return None

    def _find_transform(self, model: nn.Module, inputs: Mapping[str, Any], shape: torch.Size) -> bool:
        """Scale, softcap and offset, from what becomes of known logits. Returns: whether they explain it."""
        shown = []
        for probe in _PROBES:
            constant = torch.full(shape, probe, device=self._module.weight.device)
            with replaced_forward(self._module, lambda hidden, constant=constant: constant):
                shown.append(model(**inputs).logits.double())
        if any(logits.shape != shape for logits in shown):
            return False
        offset = shown[0][(0,) * (len(shape) - 1)]
        slack = float(offset.abs().max())
        values = []
        for logits in shown:
            change = logits - offset
            values.append(float(change.mean()))
            if not float((change - values[-1]).abs().max()) <= 1e-5 * max(abs(values[-1]), slack):
                return False  # tokens or positions are treated differently
        scale, softcap = values[2] / _PROBES[2], None
        if not math.isclose(values[-1], scale * _PROBES[-1], rel_tol=1e-3):
            scale, softcap = values[1] / _PROBES[1], abs(values[-1])
        for probe, value in zip(_PROBES, values, strict=True):
            expected = scale * probe if softcap is None else softcap * math.tanh(scale * probe / softcap)
            if not math.isclose(value, expected, rel_tol=1e-4, abs_tol=1e-5 * max(slack, 1e-3)):
                return False
        if scale == 0 or (softcap is not None and slack):
            return False
        self._scale = 1.0 if math.isclose(scale, 1.0, rel_tol=1e-6) else scale
        self._softcap = softcap
        self._offset = (offset / scale).to(self._module.weight.dtype) if slack else None
        return True


class _ThroughOutput(torch.autograd.Function):
    """A result of the head, whose backward passes the model's output first, with a gradient of 0.

    FSDP and DeepSpeed gather a module's weights for the backward when it reaches the module's output. What the head made knows
    nothing of what the modules around it did to their outputs.
    """

    @staticmethod
    def forward(ctx: Any, result: Tensor, output: Tensor) -> Tensor:
        ctx.output = output.shape, output.dtype, output.device
        return result.view_as(result)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        shape, dtype, device = ctx.output
        return gradient, torch.zeros(shape, dtype=dtype, device=device)


class HeadRows:
    """The rows of a frozen output embedding for some tokens, gathered once: from all processes, where it is sharded.

    Args:
        module: the output embedding; None: there is nothing to gather, only the ids matter.
        token_ids: int64 [K], rows to keep, in the order of the wanted logits.
        offset: [V], added to the bias.
    """

    def __init__(self, module: nn.Module | None, token_ids: Tensor, offset: Tensor | None) -> None:
        self.token_ids = token_ids
        if module is None:
            return
        parts = [module.weight] if module.bias is None else [module.weight, module.bias]
        with torch.no_grad(), gathered(parts):
            weight, *bias = (whole(part) for part in parts)
            bias = with_offset(bias[0] if bias else None, offset)
            token_ids = token_ids.to(weight.device)
            self.weight = weight.detach().index_select(0, token_ids)
            self.bias = None if bias is None else bias.detach().index_select(0, token_ids)


def at_positions(states: Tensor, positions: Tensor) -> Tensor:
    """[B, P + S, D], bool [B, S] with N of them True -> [N, D]. The first P are those that prompt learning puts before a text."""
    return states[:, -positions.shape[1] :][positions]


def with_offset(bias: Tensor | None, offset: Tensor | None) -> Tensor | None:
    if offset is None:
        return bias
    return offset if bias is None else bias + offset.to(bias.device)


@contextmanager
def replaced_forward(module: nn.Module, forward: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside this context the module computes something else; its hooks fire as ever."""
    before = module.__dict__.get("forward")  # accelerate, too, replaces the forward of a module, in the module's own attributes
    module.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before  # type: ignore[method-assign]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside this context the model is in evaluation mode; afterwards each of its modules is in the mode it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def without_autocast(model: nn.Module) -> Iterator[None]:
    """Inside this context a model computes in its own precision, whatever autocast accelerate left around its forward when it was
    trained before: two ways of computing logits would differ by its roundings."""
    left = model.__dict__.pop("forward", None) if "_original_forward" in model.__dict__ else None
    try:
        yield
    finally:
        if left is not None:
            model.forward = left  # type: ignore[method-assign]


def _few_tokens(model: nn.Module) -> dict[str, Tensor]:
    """A row of ordinary tokens: none that the config gives a meaning, such as the place of an image."""
    size = model.get_input_embeddings().weight.shape[0]
    meant = referenced_ids(model.config, original_size=size)
    ids = list(itertools.islice((token for token in range(size) if token not in meant), _TOKENS))
    row = torch.tensor([ids or [0]], device=model.device)
    inputs = {"input_ids": row, "attention_mask": torch.ones_like(row)}
    return inputs | ({"decoder_input_ids": row} if model.config.is_encoder_decoder else {})
