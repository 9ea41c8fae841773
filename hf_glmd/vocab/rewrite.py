"""tokenizer.json as a dict -> a smaller one. One function per model type; everything around the model is the same for all."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from hf_glmd.errors import UsageError


def model_type(data: Mapping[str, Any]) -> str:
    """ "WordPiece", "BPE", "Unigram" or "WordLevel". Early releases of tokenizer.json do not say; their parts do."""
    model = data["model"]
    if model.get("type"):
        return str(model["type"])
    if isinstance(model.get("vocab"), list):
        return "Unigram"
    if "merges" in model:
        return "BPE"
    return "WordPiece" if "max_input_chars_per_word" in model else "WordLevel"


def refuse_unsupported(data: Mapping[str, Any]) -> None:
    """Raises: UsageError, the vocabulary of this model type cannot be cut yet."""
    kind = model_type(data)
    if kind not in _REWRITERS:
        raise UsageError(
            f"The tokenizer is of type {kind}; only {', '.join(sorted(_REWRITERS))} vocabularies can be cut so far: "
            "use a model with such a tokenizer (BERT, DistilBERT, ELECTRA), or keep the whole vocabulary."
        )


def pinned_ids(data: Mapping[str, Any]) -> dict[int, str]:
    """Ids that something other than the text refers to, and what: added tokens, unknown token, post-processor, padding."""
    pinned: dict[int, str] = {}
    vocabulary = _vocabulary(data)
    for token in data.get("added_tokens") or ():
        pinned[token["id"]] = "added token"
    unknown = data["model"].get("unk_token")
    if unknown in vocabulary:
        pinned.setdefault(vocabulary[unknown], "unknown token")
    for container, key in _post_processor_ids(data.get("post_processor")):
        pinned.setdefault(container[key], "post-processor")
    padding = data.get("padding")
    if padding and padding["pad_id"] in set(token_ids(data).values()):
        pinned.setdefault(padding["pad_id"], "padding")
    return pinned


def shrink_tokenizer_json(data: Mapping[str, Any], kept_ids: np.ndarray) -> dict[str, Any]:
    """The same tokenizer with only the kept tokens, numbered 0 to K-1 in their old order.

    Nothing is said about the tokens that stay: they keep their string, their flags and their order, and what merely surrounds the
    model (normalizer, pre-tokenizer, decoder, truncation) is copied. A text whose tokens are all kept is split as before.

    Args:
        data: a parsed tokenizer.json; not changed.
        kept_ids: int64 [K] strictly increasing; has to hold all `pinned_ids(data)`.
    Returns: a new dict, to be dumped as tokenizer.json.
    Raises: UsageError, the model type is not supported, a pinned id is not kept, or a kept id has no token.
    """
    refuse_unsupported(data)
    new_id = {int(old): new for new, old in enumerate(kept_ids)}
    for old, reason in pinned_ids(data).items():
        if old not in new_id:
            raise UsageError(f"The id {old} cannot be removed: the tokenizer refers to it ({reason}). Keep it.")
    _check_ids(data, new_id)
    small = {key: copy.deepcopy(value) for key, value in data.items() if key != "model"}
    # The model holds nearly everything, and its vocabulary is made anew, so it is not copied whole.
    small["model"] = _REWRITERS[model_type(data)](data["model"], new_id)
    # Since all tokens outside of the model's own vocabulary come last, they are numbered on from its new end.
    for token in small.get("added_tokens") or ():
        token["id"] = new_id[token["id"]]
    for container, key in _post_processor_ids(small.get("post_processor")):
        container[key] = new_id[container[key]]
    padding = small.get("padding")
    if padding and padding["pad_id"] in new_id:
        padding["pad_id"] = new_id[padding["pad_id"]]
    return small


def token_ids(data: Mapping[str, Any]) -> dict[str, int]:
    """Token -> id of everything the tokenizer can emit, added tokens included."""
    return _vocabulary(data) | {token["content"]: token["id"] for token in data.get("added_tokens") or ()}


def _wordpiece(model: Mapping[str, Any], new_id: Mapping[int, int]) -> dict[str, Any]:
    """Longest match first: the longest match among all tokens, if kept, is also the longest among the kept ones."""
    small = {key: copy.deepcopy(value) for key, value in model.items() if key != "vocab"}
    kept = [(new_id[old], token) for token, old in model["vocab"].items() if old in new_id]
    small["vocab"] = {token: new for new, token in sorted(kept)}
    return small


_REWRITERS: dict[str, Callable[[Mapping[str, Any], Mapping[int, int]], dict[str, Any]]] = {"WordPiece": _wordpiece}
"""Model type -> its part of tokenizer.json and old id -> new id, to its smaller part."""


def _vocabulary(data: Mapping[str, Any]) -> dict[str, int]:
    """Token -> id of the model itself. A Unigram model lists (token, score), and the place in the list is the id."""
    vocabulary = data["model"]["vocab"]
    if isinstance(vocabulary, list):
        return {token: index for index, (token, _) in enumerate(vocabulary)}
    return vocabulary


def _check_ids(data: Mapping[str, Any], new_id: Mapping[int, int]) -> None:
    vocabulary = _vocabulary(data)
    names: dict[int, str] = {}
    for token, token_id in token_ids(data).items():
        if token_id in names:
            # Loading accepts it, but saving keeps one of the two at random.
            raise UsageError(f"Two tokens, {names[token_id]!r} and {token!r}, share the id {token_id}: give each its own.")
        names[token_id] = token
    missing = [old for old in new_id if old not in names]
    if missing:
        raise UsageError(f"No token has the id {missing[0]}: it cannot be kept.")
    own = [token_id for token_id in vocabulary.values() if token_id in new_id]
    outside = [t["id"] for t in data.get("added_tokens") or () if t["content"] not in vocabulary]
    if own and outside and min(outside) < max(own):
        # tokenizers numbers such tokens after all others when it reads the file, whatever the file says.
        raise UsageError(
            f"The added token with the id {min(outside)} stands between the model's own ids: they cannot be renumbered."
        )


def _post_processor_ids(processor: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of each id a post-processor emits, to be read or written in place."""
    if not processor:
        return
    kind = processor.get("type")
    if kind == "Sequence":
        for part in processor["processors"]:
            yield from _post_processor_ids(part)
    elif kind == "TemplateProcessing":
        for special in processor["special_tokens"].values():
            for index in range(len(special["ids"])):
                yield special["ids"], index
    elif kind in ("BertProcessing", "RobertaProcessing"):
        yield processor["sep"], 1
        yield processor["cls"], 1
    elif kind != "ByteLevel":
        raise UsageError(f"The post-processor of type {kind} is unknown: it may hold token ids that would go stale.")
