"""How many token ids a row of text has, and the most that models can read."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from hf_glmd.errors import UsageError

MAX_DEFAULT_LENGTH = 512
"""Token ids per row of text, unless more are asked for."""

UNLIMITED = 2**31


def row_length(
    wanted: int | None, limit: int, tokenizer: PreTrainedTokenizerBase, readers: str = "student and teacher can both"
) -> int:
    """Token ids per row of text. Raises: UsageError, more are wanted than the models can read.

    Args:
        wanted: what was asked for; None: nothing.
        limit: the most that all models can read.
        tokenizer: its `model_max_length` is not exceeded unless that is asked for.
        readers: who they are, for the message.
    """
    if wanted is not None and wanted > limit:
        raise UsageError(f"max_length={wanted} is more than the {limit} tokens that {readers} read.")
    return wanted or min(limit, tokenizer.model_max_length, MAX_DEFAULT_LENGTH)


def readable(models: Sequence[nn.Module]) -> int:
    """The most token ids that all of some models can read; very large when none is limited by a table."""
    return min((_readable(model) for model in models), default=UNLIMITED)


def _readable(model: nn.Module) -> int:
    # RoBERTa and its kin count positions from behind the padding's, so that their tables have rows no text can use.
    tables = (module for name, module in model.named_modules() if name.endswith("position_embeddings"))
    unused = (table.padding_idx + 1 for table in tables if getattr(table, "padding_idx", None) is not None)
    return max_positions(model.config) - max(unused, default=0)


def max_positions(config: PreTrainedConfig) -> int:
    """The longest input a configuration speaks of; very large when its positions are not limited by a table."""
    return getattr(config.get_text_config(), "max_position_embeddings", None) or UNLIMITED
