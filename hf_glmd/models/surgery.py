"""Cuts the vocabulary of a model: slices each vocabulary tensor once, by identity, so that ties stay ties."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Container, Iterator
from typing import Any

import torch
from torch import nn

from hf_glmd.errors import UsageError
from hf_glmd.models.config_ids import is_token_name, map_id_value, owns_another_vocabulary, update_config_ids
from hf_glmd.vocab.vocab_map import VocabMap

logger = logging.getLogger(__name__)

_VOCABULARY_SETTING = re.compile(r"vocab|n_words|token")
_IN_A_STACK = re.compile(r"\.\d+\.")


def resize_model(model: Any, vocab_map: VocabMap) -> Any:
    """A copy of the model with the kept tokens only; the given model is untouched.

    What is cut: input and output embeddings, whatever shares their tensors, further tables and heads over the same vocabulary,
    their biases, and `final_logits_bias`. What the config says about ties is not asked: a tensor that was shared stays shared,
    one that was not does not become so. Token ids move along in the modules, the config and the generation config. Rows beyond
    the tokenizer, which only pad the table, are dropped. Beside the model only the smaller copy is held in memory.

    Args:
        model: a transformers model, with weights in memory and not quantised.
        vocab_map: from `VocabShrinker.shrink`.
    Returns: the same class, dtype and device; logits [..., K] equal those of the model in the kept columns.
    Raises: UsageError, the weights cannot be cut (quantised, on the meta device, sharded, wrapped in adapters), the table is
        smaller than the vocabulary, or a tensor has the size of the vocabulary for another reason.
    """
    check_weights(model)
    tables = find_vocabulary_tensors(model, vocab_map.original_size)
    _refuse_moved_positions(model, vocab_map, tables)
    rows = _table(model.get_input_embeddings()).shape[0]
    kept = torch.from_numpy(vocab_map.kept_ids.copy())

    # deepcopy asks its memo before it copies: with the small tensor filed under the large one, every place that held the
    # large one receives the same small one, and the large one is never copied.
    memo: dict[int, Any] = {}
    for tensor, dim in tables.values():
        small = tensor.detach().index_select(dim, kept.to(tensor.device))
        if isinstance(tensor, nn.Parameter):
            small = nn.Parameter(small, requires_grad=tensor.requires_grad)
        memo[id(tensor)] = small
    copied = copy.deepcopy(model, memo)

    small_tensors = {id(memo[key]) for key in tables}
    sizes = {rows, vocab_map.original_size}
    configs: dict[int, Any] = {}
    for module in copied.modules():
        _update_module(module, vocab_map, small_tensors, rows)
        for name in ("config", "generation_config"):
            if getattr(module, name, None) is not None:
                configs[id(getattr(module, name))] = getattr(module, name)
    # Some models give their halves copies of the config (T5), others share one: each object is changed once.
    nested = {id(part) for config in configs.values() for part in _parts(config)}
    for key, config in configs.items():
        # ... and a part may come with a config of its own and another vocabulary (a speech encoder).
        whole = config is copied.config or not hasattr(config, "vocab_size")
        foreign = not whole and owns_another_vocabulary(config, sizes)
        if key not in nested and not foreign:
            for change in update_config_ids(config, vocab_map, table_rows=rows):
                logger.debug("%s %s", type(config).__name__, change)
    return copied


def check_weights(model: Any) -> None:
    """Raises: UsageError, the weights of the model cannot be read, sliced or copied as plain tensors."""
    name = type(model).__name__
    if not hasattr(model, "get_input_embeddings") or not isinstance(model, nn.Module) or not hasattr(model, "config"):
        raise UsageError(f"{name} is not a transformers model: give the model itself, without a wrapper such as DDP.")
    if hasattr(model, "peft_config") or getattr(model, "_hf_peft_config_loaded", False):
        raise UsageError(f"{name} has adapters: merge them first (model.merge_and_unload()).")
    if getattr(model, "is_quantized", False) or getattr(model.config, "quantization_config", None) is not None:
        raise UsageError(f"{name} is quantised: load it without quantisation, and quantise the result.")
    for path, tensor in _tensors(model):
        if tensor.is_meta:
            raise UsageError(f"{path} is not in memory (meta or offloaded): load the model without device_map or offloading.")
        if type(tensor).__name__ in ("DTensor", "FlatParameter") or hasattr(tensor, "ds_id"):
            raise UsageError(f"{path} is sharded over processes: cut the vocabulary before the model is sharded.")


def find_vocabulary_tensors(model: Any, original_size: int) -> dict[int, tuple[torch.Tensor, int]]:
    """The distinct tensors with one entry per token, by `id`, each with the dimension that runs over the vocabulary.

    Raises: UsageError, a table is smaller than `original_size`, or a tensor cannot be told from a vocabulary table.
    """
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    found: dict[int, tuple[torch.Tensor, int]] = {}
    sizes = set()
    for part in (embeddings, head):
        if part is None:
            continue
        weight = _table(part)
        if weight.shape[0] < original_size:
            raise UsageError(
                f"The {'input' if part is embeddings else 'output'} embeddings have {weight.shape[0]} rows, the tokenizer "
                f"{original_size} tokens: this vocabulary was cut for another model."
            )
        if not weight.is_floating_point():
            raise UsageError(f"The embeddings are of {weight.dtype}, as in a quantised model: load it without quantisation.")
        found[id(weight)] = (weight, 0)
        sizes.add(weight.shape[0])
        bias = getattr(part, "bias", None)
        if isinstance(bias, torch.Tensor):
            found[id(bias)] = (bias, 0)
    if getattr(model.config, "share_encoder_decoder_embeddings", True) is False:
        raise UsageError(f"{type(model).__name__} reads and writes two different vocabularies: only a shared one can be cut.")

    parents = {id(parent) for parent in model.modules() for child in parent.children() if child is head}
    collisions = _settings_of_size(model.config, sizes)
    for path, module in model.named_modules():
        for name, tensor in _own_tensors(module):
            if id(tensor) in found:
                continue
            where = f"{path}.{name}" if path else name
            hits = [dim for dim, length in enumerate(tensor.shape) if length in sizes]
            if not hits:
                continue
            if name == "final_logits_bias" or (name == "bias" and tensor.ndim == 1 and id(module) in parents):
                found[id(tensor)] = (tensor, tensor.ndim - 1)
                continue
            # Anything else of this size is either a further table over the same vocabulary or a coincidence.
            width = getattr(module, "num_embeddings", getattr(module, "out_features", None))
            is_table = hits == [0] and (width in sizes or (name == "bias" and tensor.ndim == 1))
            if collisions:
                raise UsageError(
                    f"{where} has a dimension of {tensor.shape[hits[0]]}, the size of the vocabulary, but so has "
                    f"config.{collisions[0]}: it cannot be told which is meant. Such a model cannot be cut."
                )
            if not is_table or _IN_A_STACK.search(f".{path}."):
                raise UsageError(
                    f"{where} {list(tensor.shape)} has the size of the vocabulary ({tensor.shape[hits[0]]}) but is no known "
                    "vocabulary table: such a model cannot be cut."
                )
            found[id(tensor)] = (tensor, 0)
    return found


def _table(module: Any) -> torch.Tensor:
    weight = getattr(module, "weight", None)
    if not isinstance(weight, torch.Tensor) or weight.ndim != 2:
        raise UsageError(f"{type(module).__name__} is not a plain table [V, H] of embeddings: such a model cannot be cut.")
    return weight


def _own_tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters(recurse=False, remove_duplicate=False)
    yield from module.named_buffers(recurse=False, remove_duplicate=False)


def _tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for path, module in model.named_modules():
        for name, tensor in _own_tensors(module):
            yield (f"{path}.{name}" if path else name), tensor


def _parts(config: Any) -> Iterator[Any]:
    from transformers import PreTrainedConfig

    for value in vars(config).values():
        if isinstance(value, PreTrainedConfig):
            yield value
            yield from _parts(value)


def _settings_of_size(config: Any, sizes: set[int]) -> list[str]:
    """Settings that are no vocabulary size and yet of the same value."""
    names = [
        name
        for part in (config, *_parts(config))
        for name, value in vars(part).items()
        if isinstance(value, int) and not isinstance(value, bool) and value in sizes and not _VOCABULARY_SETTING.search(name)
    ]
    if getattr(config, "num_labels", None) in sizes:
        names.append("num_labels")
    return names


def _refuse_moved_positions(model: nn.Module, vocab_map: VocabMap, tables: Container[int]) -> None:
    """RoBERTa and its kin count positions from the padding id on: if that moved, every position would."""
    for path, module in model.named_modules():
        pad = getattr(module, "padding_idx", None)
        if not isinstance(pad, int) or id(getattr(module, "weight", None)) in tables:
            continue
        counts_positions = "osition" in type(module).__name__ or "osition" in path or hasattr(module, "position_embeddings")
        if counts_positions and 0 <= pad < vocab_map.original_size and _small_or_none(pad, vocab_map) != pad:
            raise UsageError(
                f"{path} counts positions from the padding id {pad}, which would move: keep the tokens before it "
                f"(keep=range({pad + 1}))."
            )


def _small_or_none(token_id: int, vocab_map: VocabMap) -> int | None:
    return vocab_map.to_small(token_id) if vocab_map.keeps(token_id) else None


def _update_module(module: nn.Module, vocab_map: VocabMap, small_tensors: set[int], rows: int) -> None:
    if id(getattr(module, "weight", None)) in small_tensors:
        for name in ("num_embeddings", "out_features"):
            if hasattr(module, name):
                setattr(module, name, vocab_map.size)
    for name, value in list(vars(module).items()):
        if isinstance(value, bool) or not isinstance(value, (int, list, tuple)) or name.startswith("_"):
            continue
        if name in ("vocab_size", "unpadded_vocab_size") and value in (rows, vocab_map.original_size):
            setattr(module, name, vocab_map.size)
        elif is_token_name(name) or name == "padding_idx":
            setattr(module, name, map_id_value(f"{type(module).__name__}.{name}", value, vocab_map))
