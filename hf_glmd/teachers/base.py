"""What a trainer asks of a teacher."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from hf_glmd.losses.topk import TopTokens
from hf_glmd.models.heads import HeadInputs
from hf_glmd.teachers.keys import teacher_fingerprint
from hf_glmd.vocab.vocab_map import VocabMap


class Teacher:
    """What a trainer asks for predictions of the student's tokens or classes: frozen models, or a cache of what they said.

    A new kind is one class that overrides what it answers otherwise, and one line in `hf_glmd.teachers.kinds.KINDS`.

    Attributes:
        size: number of tokens it predicts for, columns of its logits.
        vocab_map: the student's vocabulary, as cut from the teacher's; None: both share one.
        models: those that are run; a cache has none.
        fallback: None: `head_inputs` can be used. Otherwise the reason why only `logits` can.
        has_top_tokens: it knows its top tokens alone, for one temperature: `top_tokens` is used in place of both.
        mixes_probabilities: its logits depend on the temperature they are used at.
        epochs: how many choices of masked tokens it knows; None: any.
        max_length: token ids per row of text that it was run over; None: any that its models can read.
    """

    size: int
    vocab_map: VocabMap | None = None
    models: Sequence[nn.Module] = ()
    fallback: str | None = None
    has_top_tokens = False
    mixes_probabilities = False
    epochs: int | None = None
    max_length: int | None = None

    @classmethod
    def of(cls, source: Any, vocab_map: VocabMap | None) -> Teacher | None:
        """A teacher made from what a user passed to a trainer; None: it is nothing of this kind."""
        return None

    def to(self, device: torch.device) -> Teacher:
        """Puts what it computes with on a device."""
        return self

    def prepare(self, accelerator: Accelerator) -> Teacher:
        """Puts what it computes with where the student is put: on the device, or sharded over the processes."""
        return self.to(accelerator.device)

    def logits(self, inputs: Mapping[str, Any], positions: Tensor, temperature: float = 1.0) -> Tensor:
        """What it predicts at the chosen positions.

        Args:
            inputs: keyword arguments of a model, `input_ids` [B, S] in the student's ids.
            positions: bool [B, S], N of them True.
            temperature: at which the logits will be used.
        Returns: [N, K].
        """
        raise TypeError(f"{type(self).__name__} has no logits.")

    def head_inputs(self, inputs: Mapping[str, Any], positions: Tensor) -> HeadInputs:
        """What its logits are made of, N positions and K rows of the output embedding. Arguments as of `logits`."""
        raise TypeError(f"{type(self).__name__} has no hidden states: {self.fallback}.")

    def top_tokens(self, inputs: Mapping[str, Any], positions: Tensor, temperature: float) -> TopTokens:
        """Its top tokens at N positions. Arguments as of `logits`."""
        raise TypeError(f"{type(self).__name__} predicts all tokens: use logits.")

    def check_fits(self, tokenizer: Any, objective: str, temperature: float) -> None:
        """Raises: UsageError, it cannot teach this objective at this temperature, or with the student's tokenizer."""

    def check_rows(self, datasets: Mapping[str, Any], collator: Callable[..., Any], read: Callable[..., dict[str, Any]]) -> None:
        """Looks at the rows that it is going to be asked about.

        Args:
            datasets: what to call a dataset in a message -> rows of token ids.
            collator: makes a batch of rows.
            read: the part of a batch that the teacher reads.
        Raises: UsageError, it knows nothing of some.
        """

    def with_first_rows(self, size: int) -> Teacher:
        """The same, predicting the first `size` tokens alone: the rest is padding. It may be changed itself."""
        raise TypeError(f"{type(self).__name__} predicts {self.size} tokens, and cannot predict fewer.")

    def fingerprint(self) -> str:
        """What tells it from other teachers. Raises: UsageError, its weights are sharded over processes."""
        return " ".join(teacher_fingerprint(model) for model in self.models)
