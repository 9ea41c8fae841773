"""Cuts the vocabulary of a model: slices each vocabulary tensor once, by identity, so that ties stay ties.

Ties of a student are those of its teacher (student.py), adapters keep theirs (loading.py), and a saved model has each tied weight
once (hf_glmd/training/token_mean.py).
"""

from __future__ import annotations

import copy
import re
from collections.abc import Container, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedConfig

from hf_glmd.errors import UsageError
from hf_glmd.models.config_ids import (
    IdChange,
    id_settings,
    is_token_name,
    map_id_value,
    moved_size,
    nested_configs,
    owns_another_vocabulary,
)
from hf_glmd.vocab.vocab_map import VocabMap

_VOCABULARY_SETTING = re.compile(r"vocab|n_words|token")
_IN_A_STACK = re.compile(r"\.\d+\.")
_PER_TOKEN = frozenset({"final_logits_bias", "weight_integer", "tid2eid"})
"""Names that can only mean one entry per token: BART's and its kin, I-BERT's, DeepSeek-V4's."""

_LENGTHS = (("num_embeddings", "out_features"), ("in_features",))
"""What a table calls the length of its weight, by the dimension that is cut."""


def resize_model(model: Any, vocab_map: VocabMap, *, in_place: bool = False, without_row: int = 0) -> Any:
    """The model with the kept tokens only: a copy, and the given model untouched, or the given model itself.

    What is cut: input and output embeddings, whatever shares their tensors, further tables and heads over the same vocabulary,
    their biases, and `final_logits_bias`. What the config says about ties is not asked: a tensor that was shared stays shared,
    one that was not does not become so. Token ids move along in the modules, the config and the generation config. Rows beyond
    the tokenizer, which only pad the table, are dropped.

    Beside the model the smaller copy is held in memory; with `in_place` one table of the kept rows at a time.

    Args:
        model: a transformers model, with weights in memory and not quantised.
        vocab_map: from `VocabShrinker.shrink`.
        in_place: change the given model rather than a copy, for models that fit into memory only once.
        without_row: as of `plan_cut`.
    Returns: the same class, dtype and device; logits [..., K] equal those of the model in the kept columns.
    Raises: UsageError, the weights cannot be cut (quantised, on the meta device, sharded, wrapped in adapters), the table is
        smaller than the vocabulary, a tensor has the size of the vocabulary for another reason, or a removed token is needed.
        The given model is then as it was.
    """
    cut = plan_cut(model, vocab_map, without_row)
    if in_place:
        places = places_of(model, cut.tensors)
        while cut.tensors:  # so that nothing holds on to the large ones that are done
            key, part = cut.tensors.popitem()
            put(places[key], part.small())
        for change in cut.settings:
            change.apply()
        return model

    # deepcopy asks its memo before it copies: with the small tensor filed under the large one, every place that held the
    # large one receives the same small one, and the large one is never copied.
    memo: dict[int, Any] = {key: tensor.small() for key, tensor in cut.tensors.items()}
    copied = copy.deepcopy(model, memo)
    for change in cut.settings:
        change.apply(memo[id(change.owner)])  # where deepcopy filed what became of the owner
    return copied


@dataclass(frozen=True)
class TensorCut:
    """A parameter or buffer with one entry per token along `dim`, and the entries (int64, increasing) that stay."""

    tensor: torch.Tensor
    dim: int
    kept: torch.Tensor

    def small(self) -> torch.Tensor:
        """A new tensor of the kept entries, of the same kind."""
        small = self.tensor.detach().index_select(self.dim, self.kept.to(self.tensor.device))
        if isinstance(self.tensor, nn.Parameter):
            return nn.Parameter(small, requires_grad=self.tensor.requires_grad)
        return small


@dataclass(frozen=True)
class Cut:
    """All that changes in a model whose vocabulary is cut.

    Attributes:
        tensors: by `id` of the large tensor.
        settings: sizes and token ids in modules and configs, those too that stay the same.
    """

    tensors: dict[int, TensorCut]
    settings: list[IdChange]


def plan_cut(model: Any, vocab_map: VocabMap, without_row: int = 0) -> Cut:
    """What `resize_model` does, with all that may be refused refused; nothing is changed.

    Args:
        without_row: tokens at the end of the original vocabulary that the model's table has no row for; all were removed.
    Raises: UsageError, as `resize_model`.
    """
    check_weights(model)
    addressed = vocab_map.original_size - without_row
    tables = find_vocabulary_tensors(model, addressed)
    _refuse_moved_positions(model, vocab_map, tables)
    tensors = {}
    for key, (tensor, dim) in tables.items():
        kept = vocab_map.kept_ids[vocab_map.kept_ids < tensor.shape[dim]]
        if tensor.shape[dim] < addressed and (not kept.size or kept[0] != 0):
            raise UsageError(
                f"A table of {type(model).__name__} has {tensor.shape[dim]} rows for {vocab_map.original_size} tokens; the rest "
                "reads the row of token 0, which was removed: cut the vocabulary again with keep=[0]."
            )
        tensors[key] = TensorCut(tensor, dim, torch.from_numpy(kept.copy()))
    return Cut(tensors, list(_id_settings(model, vocab_map, tensors, rows=input_layer(model).weight.shape[0])))


def places_of(model: nn.Module, tensors: Container[int]) -> dict[int, list[tuple[nn.Module, str]]]:
    """Where in the model each of the tensors (by `id`) stands: the modules, and under which name there."""
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, tensor in own_tensors(module):
            if id(tensor) in tensors:
                places.setdefault(id(tensor), []).append((module, name))
    return places


def put(places: list[tuple[nn.Module, str]], tensor: torch.Tensor) -> None:
    """One tensor into all these places."""
    for module, name in places:
        setattr(module, name, tensor)


def check_weights(model: Any) -> None:
    """Raises: UsageError, the weights of the model cannot be read, sliced or copied as plain tensors."""
    name = type(model).__name__
    if not hasattr(model, "get_input_embeddings") or not isinstance(model, nn.Module) or not hasattr(model, "config"):
        raise UsageError(f"{name} is not a transformers model: give the model itself, without a wrapper such as DDP.")
    if hasattr(model, "peft_config") or getattr(model, "_hf_peft_config_loaded", False):
        raise UsageError(f"{name} has adapters: merge them first (model.merge_and_unload()).")
    if getattr(model, "hf_quantizer", None) is not None or getattr(model.config, "quantization_config", None) is not None:
        raise UsageError(f"{name} is quantised: load it without quantisation, and quantise the result.")
    sharded = (getattr(model, "_tp_size", None) or 1) > 1
    for path, tensor in _tensors(model):
        if tensor.is_meta:
            raise UsageError(f"{path} is not in memory (meta or offloaded): load the model without device_map or offloading.")
        if sharded or type(tensor).__name__ in ("DTensor", "FlatParameter") or hasattr(tensor, "ds_id"):
            raise UsageError(f"{path} is sharded over processes: cut the vocabulary before the model is sharded.")
        if type(tensor) not in (torch.Tensor, nn.Parameter):
            raise UsageError(f"{path} is a {type(tensor).__name__}, as in a quantised model: load it without quantisation.")


def find_vocabulary_tensors(model: Any, original_size: int) -> dict[int, tuple[torch.Tensor, int]]:
    """The distinct tensors with one entry per token, by `id`, each with the dimension that runs over the vocabulary.

    Raises: UsageError, a table is smaller than `original_size`, or a tensor cannot be told from a vocabulary table.
    """
    embeddings, head = input_layer(model), _output_layer(model)
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
    _refuse_other_vocabularies(model, sizes)

    parents = {id(parent) for parent in model.modules() for child in parent.children() if child is head}
    collisions = _settings_of_size(model.config, sizes)
    for path, module in model.named_modules():
        for name, tensor in own_tensors(module):
            if id(tensor) in found:
                continue
            where = f"{path}.{name}" if path else name
            if where.endswith("embed_tokens_per_layer.weight"):  # Gemma 3n and 4; the one table that may be shorter
                found[id(tensor)] = (tensor, 0)
                continue
            hits = [dim for dim, length in enumerate(tensor.shape) if length in sizes]
            if not hits:
                continue
            if len(hits) == 1 and (name in _PER_TOKEN or (name == "bias" and tensor.ndim == 1 and id(module) in parents)):
                found[id(tensor)] = (tensor, hits[0])
                continue
            # Anything else of this size is either a further table over the same vocabulary or a coincidence.
            if collisions:
                raise UsageError(
                    f"{where} has a dimension of {tensor.shape[hits[0]]}, the size of the vocabulary, but so has "
                    f"config.{collisions[0]}: it cannot be told which is meant. Such a model cannot be cut."
                )
            # in_features: MobileBERT's head is two layers, one of them the wrong way round.
            is_bias = name == "bias" and tensor.ndim == 1
            told = {getattr(module, length, None) for length in _LENGTHS[hits[0]]} if hits[0] < len(_LENGTHS) else {}
            is_table = len(hits) == 1 and (is_bias or (tensor.ndim == 2 and tensor.shape[hits[0]] in told))
            if not is_table or _IN_A_STACK.search(f".{path}."):
                raise UsageError(
                    f"{where} {list(tensor.shape)} has the size of the vocabulary ({tensor.shape[hits[0]]}) but is no known "
                    "vocabulary table: such a model cannot be cut."
                )
            found[id(tensor)] = (tensor, hits[0])
    return found


def input_layer(model: Any) -> Any:
    """The table of the tokens that a model reads; of one that also sees, that of its text tower.

    Raises: UsageError, it reads no tokens.
    """
    embeddings = None
    for part in (model, getattr(model, "text_model", None)):
        try:
            embeddings = embeddings if part is None or embeddings is not None else part.get_input_embeddings()
        except NotImplementedError:  # CLIPModel does not say which of its towers is meant
            continue
    if embeddings is None:
        raise UsageError(f"{type(model).__name__} reads no tokens: it has no vocabulary to cut.")
    _table(embeddings)
    return embeddings


def _table(module: Any) -> torch.Tensor:
    weight = getattr(module, "weight", None)
    if not isinstance(weight, torch.Tensor) or weight.ndim != 2:
        raise UsageError(f"{type(module).__name__} is not a plain table [V, H] of embeddings: such a model cannot be cut.")
    return weight


def _output_layer(model: Any) -> Any:
    """The layer with one row per token. DeBERTa-v2 may name a square one before it, and multiply with the input's in the end."""
    head = model.get_output_embeddings()
    weight = None if head is None else _table(head)
    square = weight is not None and weight.shape[0] == weight.shape[1] != input_layer(model).weight.shape[0]
    return None if square else head


def own_tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and buffers of a module itself, under every name they have there."""
    yield from module.named_parameters(recurse=False, remove_duplicate=False)
    yield from module.named_buffers(recurse=False, remove_duplicate=False)


def _tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for path, module in model.named_modules():
        for name, tensor in own_tensors(module):
            yield (f"{path}.{name}" if path else name), tensor


def _configs(config: Any) -> list[Any]:
    return [config, *nested_configs(config)]


def _settings_of_size(config: Any, sizes: set[int]) -> list[str]:
    """Settings that are no vocabulary size and yet of the same value."""
    names = [
        name
        for part in _configs(config)
        for name, value in vars(part).items()
        if isinstance(value, int) and not isinstance(value, bool) and value in sizes and not _VOCABULARY_SETTING.search(name)
    ]
    if getattr(config, "num_labels", None) in sizes:
        names.append("num_labels")
    return names


def _refuse_other_vocabularies(model: Any, sizes: set[int]) -> None:
    """Models that read or write more than the one vocabulary of the tokenizer, in ids that belong together."""
    name = type(model).__name__
    if len(sizes) > 1 or getattr(model.config, "share_encoder_decoder_embeddings", True) is False:
        raise UsageError(f"{name} reads and writes two vocabularies (rows: {sorted(sizes)}): only a shared one can be cut.")
    for part in _configs(model.config):
        for setting, what in (("vocab_offset", "counts ids of its own from there"), ("vocabulary_map", "makes images of tokens")):
            if getattr(part, setting, None):
                raise UsageError(
                    f"{name} {what} (config setting {setting}), so ids must not move: cut the vocabulary of the text model alone."
                )


def _refuse_moved_positions(model: nn.Module, vocab_map: VocabMap, tables: Container[int]) -> None:
    """RoBERTa and its kin count positions from the padding id on: if that moved, every position would."""
    for path, module in model.named_modules():
        pad = getattr(module, "padding_idx", None)
        if not isinstance(pad, int) or id(getattr(module, "weight", None)) in tables:
            continue
        counts_positions = "osition" in type(module).__name__ or "osition" in path or hasattr(module, "position_embeddings")
        moves = not vocab_map.keeps(pad) or vocab_map.to_small(pad) != pad
        if counts_positions and 0 <= pad < vocab_map.original_size and moves:
            raise UsageError(
                f"{path} counts positions from the padding id {pad}, which would move: keep the tokens before it "
                f"(keep=range({pad + 1}))."
            )


def _id_settings(model: nn.Module, vocab_map: VocabMap, tensors: dict[int, TensorCut], rows: int) -> Iterator[IdChange]:
    """Every setting of the modules, their configs and generation configs that goes with the vocabulary."""
    sizes = {rows, vocab_map.original_size}
    foreign: dict[str, bool] = {}
    seen: set[int] = set()  # halves of a model may share a config, or have copies of it (T5)
    for path, module in model.named_modules():
        config = getattr(module, "config", None)
        foreign[path] = foreign.get(path.rpartition(".")[0], False)
        if isinstance(config, PreTrainedConfig) and config is not model.config:
            # A part may come with a config of its own and another vocabulary, or none (an image or speech encoder).
            foreign[path] = owns_another_vocabulary(config, sizes)
        if foreign[path]:
            continue
        for part in (config, getattr(module, "generation_config", None)):
            if isinstance(part, (PreTrainedConfig, GenerationConfig)) and id(part) not in seen:
                yield from id_settings(part, vocab_map, table_rows=rows)
                seen |= {id(one) for one in (part, *nested_configs(part))}
        table = tensors.get(id(getattr(module, "weight", None)))
        for name, value in list(vars(module).items()):
            if isinstance(value, bool) or not isinstance(value, (int, list, tuple)) or name.startswith("_"):
                continue
            where = f"{path}.{name}" if path else name
            after: Any = moved_size(name, value, vocab_map, sizes)
            if table is not None and name in _LENGTHS[table.dim]:
                after = len(table.kept)
            elif is_token_name(name) or (name == "padding_idx" and (table is not None or not isinstance(module, nn.Embedding))):
                after = map_id_value(where, value, vocab_map)
            elif after is None:
                continue
            yield IdChange(where, value, after, module, name)
