"""tokenizer.json as a dict -> a smaller one. One function per model type; everything around the model is the same for all."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Container, Iterator, Mapping
from operator import itemgetter
from typing import Any

import numpy as np
from tokenizers.pre_tokenizers import ByteLevel

from hf_glmd.errors import UsageError
from hf_glmd.vocab.closure import BYTE_NAMES, merge_pairs

LOWEST_SCORE = "lowest score"
"""Why the one piece of a Unigram model stays that is no special token."""


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
    """Raises: UsageError, the vocabulary of this model cannot be cut, or not so that text comes out the same every time."""
    kind, model = model_type(data), data["model"]
    if kind not in _REWRITERS:
        raise UsageError(
            f"The tokenizer is of type {kind}; only {', '.join(sorted(_REWRITERS))} vocabularies can be cut: use a model with "
            "such a tokenizer, or keep the whole vocabulary."
        )
    if model.get("dropout"):
        raise UsageError(
            f"The tokenizer leaves out merges at random (dropout={model['dropout']}), so a text has no fixed tokens: set "
            "tokenizer.backend_tokenizer.model.dropout = None first."
        )
    if kind in ("WordLevel", "WordPiece") and model.get("unk_token") not in model["vocab"]:
        raise UsageError(
            f"The tokenizer has no unknown token ({model.get('unk_token')!r} is not in its vocabulary), so it cannot read a word "
            "that is removed and cannot be spelt otherwise: give it an unk_token first."
        )


def pinned_ids(data: Mapping[str, Any]) -> dict[int, str]:
    """Ids that something other than the text refers to, and what: added tokens, unknown token, post-processor, padding.

    Mere placeholders among the added tokens are left out, see `placeholder_ids`.
    """
    model = data["model"]
    pinned: dict[int, str] = {}
    for token in data.get("added_tokens") or ():
        if not _PLACEHOLDER.fullmatch(token["content"]):
            pinned[token["id"]] = "added token"
    if model_type(data) == "Unigram":
        if model.get("unk_id") is not None:
            pinned.setdefault(model["unk_id"], "unknown token")
            # The unknown token's score is reckoned from the lowest one: were that to move, so might the split around it.
            lowest = _lowest_piece(model["vocab"])
            if lowest is not None:
                pinned.setdefault(lowest, LOWEST_SCORE)
    elif model.get("unk_token") in model["vocab"]:
        pinned.setdefault(model["vocab"][model["unk_token"]], "unknown token")
    for container, key in _post_processor_ids(data.get("post_processor")):
        pinned.setdefault(container[key], "post-processor")
    padding = data.get("padding")
    if padding and padding["pad_id"] in token_ids(data).values():
        pinned.setdefault(padding["pad_id"], "padding")
    return pinned


def placeholder_ids(data: Mapping[str, Any]) -> dict[int, str]:
    """Added tokens that only keep rows free, `<unused17>`, `[unused3]`, `<|reserved_special_token_5|>` and such: id -> token."""
    added = data.get("added_tokens") or ()
    return {token["id"]: token["content"] for token in added if _PLACEHOLDER.fullmatch(token["content"])}


def control_pieces(data: Mapping[str, Any], unmerged: Container[int] | None = None) -> dict[int, str]:
    """Pieces of the vocabulary itself that are written like sentinels, language codes or chat marks: id -> piece.

    No corpus holds them, so that they would go with the rarest, and yet code names them: `<extra_id_0>` of mT5, `>>deu<<`.

    Args:
        unmerged: of a BPE model, the ids that no merge makes: only these are no pieces of text.
    """
    placeholders = placeholder_ids(data)
    return {
        token_id: token
        for token, token_id in token_ids(data).items()
        if _CONTROL.fullmatch(token)
        and not _PLACEHOLDER.fullmatch(token.lstrip("▁"))
        and token not in BYTE_NAMES
        and token_id not in placeholders
        and (unmerged is None or token_id in unmerged)
    }


def is_byte_level(data: Mapping[str, Any]) -> bool:
    """Whether text is turned into bytes, each written as one character, before the model sees it."""
    return any(part.get("type") == "ByteLevel" for step in ("normalizer", "pre_tokenizer") for part in _steps(data.get(step)))


def byte_tokens(data: Mapping[str, Any]) -> set[str]:
    """Tokens that stand for single bytes: without one of them, characters that contain the byte are lost.

    They are the 256 characters that a byte-level tokenizer writes bytes as (also marked as inside or at the end of a word, where
    the model marks that), and `<0x00>` to `<0xFF>` of a model that falls back on bytes. The vocabulary may lack some.
    """
    model, names = data["model"], set()
    if is_byte_level(data):
        before, after = ({"", model.get(name) or ""} for name in ("continuing_subword_prefix", "end_of_word_suffix"))
        names |= {b + byte + a for byte in ByteLevel.alphabet() for b in before for a in after}
    if model.get("byte_fallback"):
        names |= set(BYTE_NAMES)
    return names


def shrink_tokenizer_json(
    data: Mapping[str, Any], kept_ids: np.ndarray, known: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """The same tokenizer with only the kept tokens, numbered 0 to K-1 in their old order.

    Nothing is said about the tokens that stay: they keep their string, their flags and their order, and what merely surrounds the
    model (normalizer, pre-tokenizer, decoder, truncation) is copied. A text whose tokens are all kept is split as before.

    Args:
        data: a parsed tokenizer.json; not changed.
        kept_ids: int64 [K] strictly increasing; has to hold all `pinned_ids(data)`. Those of a BPE model are to be closed, see
            `hf_glmd.vocab.closure`, or some kept tokens are never produced.
        known: `token_ids(data)`, if it is at hand: of a large vocabulary it takes a while.
    Returns: a new dict, to be dumped as tokenizer.json.
    Raises: UsageError, the model type is not supported, a pinned id is not kept, or a kept id has no token.
    """
    refuse_unsupported(data)
    new_id = {old: new for new, old in enumerate(np.asarray(kept_ids).tolist())}  # in the order of both
    for old, reason in pinned_ids(data).items():
        if old not in new_id:
            raise UsageError(f"The id {old} cannot be removed: the tokenizer refers to it ({reason}). Keep it.")
    _check_ids(data, new_id, token_ids(data) if known is None else known)
    small = {key: copy.deepcopy(value) for key, value in data.items() if key != "model"}
    # The model holds nearly everything, and its vocabulary is made anew, so it is not copied whole.
    small["model"] = _REWRITERS[model_type(data)](data["model"], new_id)
    # When the file is read, those outside of the model's own vocabulary are numbered on from its end, in this order.
    if small.get("added_tokens"):
        added = sorted((token for token in small["added_tokens"] if token["id"] in new_id), key=lambda token: token["id"])
        small["added_tokens"] = [token | {"id": new_id[token["id"]]} for token in added]
    for container, key in _post_processor_ids(small.get("post_processor")):
        container[key] = new_id[container[key]]
    padding = small.get("padding")
    if padding and padding["pad_id"] in new_id:
        padding["pad_id"] = new_id[padding["pad_id"]]
    return small


def token_ids(data: Mapping[str, Any]) -> dict[str, int]:
    """Token -> id of everything the tokenizer can emit, added tokens included."""
    return _vocabulary(data) | {token["content"]: token["id"] for token in data.get("added_tokens") or ()}


def _words(model: Mapping[str, Any], new_id: Mapping[int, int]) -> dict[str, Any]:
    """WordLevel: each word by itself. WordPiece: the longest match among all tokens, if kept, is the longest of the kept ones."""
    small = {key: copy.deepcopy(value) for key, value in model.items() if key not in ("vocab", "merges")}
    kept = [(new_id[old], token) for token, old in model["vocab"].items() if old in new_id]
    small["vocab"] = {token: new for new, token in sorted(kept)}
    return small


def _bpe(model: Mapping[str, Any], new_id: Mapping[int, int]) -> dict[str, Any]:
    """A merge needs both of its parts and its result, or the file cannot be read. Their order, which decides, stays."""
    small = _words(model, new_id)
    kept, cut = small["vocab"], len(model.get("continuing_subword_prefix") or "")
    early = any(isinstance(merge, str) for merge in model["merges"][:1])
    small["merges"] = [
        f"{left} {right}" if early else [left, right]
        for left, right in merge_pairs(model["merges"])
        if left in kept and right in kept and left + right[cut:] in kept
    ]
    return small


def _unigram(model: Mapping[str, Any], new_id: Mapping[int, int]) -> dict[str, Any]:
    """The best split among all tokens, if they are kept, is the best one among the kept tokens: scores stay as they are."""
    small = {key: copy.deepcopy(value) for key, value in model.items() if key != "vocab"}
    pieces, end = model["vocab"], len(model["vocab"])
    small["vocab"] = [pieces[old] for old in new_id if old < end]
    if model.get("unk_id") is not None:
        small["unk_id"] = new_id[model["unk_id"]]
    return small


_REWRITERS: dict[str, Callable[[Mapping[str, Any], Mapping[int, int]], dict[str, Any]]] = {
    "BPE": _bpe,
    "Unigram": _unigram,
    "WordLevel": _words,
    "WordPiece": _words,
}
"""Model type -> its part of tokenizer.json and old id -> new id, to its smaller part."""

_CONTROL = re.compile(r"▁?(<\|?[^<>|\s]{2,60}\|?>|>>[^<>\s]{1,60}<<|\[[A-Z]{2,}[A-Z0-9_]*\]|__[a-z]{2,3}(_[A-Za-z]+)?__)")
_PLACEHOLDER = re.compile(
    r"[<\[(|｜]+_?(unused|reserved|dummy|place[_▁]?holder|special)([_▁-]?(special|unused|token|id|no))*[_▁-]?\d+_?[>\])|｜]+",
    re.IGNORECASE,
)


def _lowest_piece(pieces: list[tuple[str, float]]) -> int | None:
    """The first piece with the lowest score; None if only pieces have it that a later one of the same name replaces."""
    scores = np.fromiter(map(itemgetter(1), pieces), dtype=np.float64, count=len(pieces))
    for at in np.flatnonzero(scores == scores.min()).tolist():
        if pieces[at][0] not in map(itemgetter(0), pieces[at + 1 :]):
            return at
    return None


def _vocabulary(data: Mapping[str, Any]) -> dict[str, int]:
    """Token -> id of the model itself. A Unigram model lists (token, score), and the place in the list is the id."""
    vocabulary = data["model"]["vocab"]
    if isinstance(vocabulary, list):
        return {token: index for index, (token, _) in enumerate(vocabulary)}
    return vocabulary


def _check_ids(data: Mapping[str, Any], new_id: Mapping[int, int], known: Mapping[str, int]) -> None:
    ids = set(known.values())
    if len(ids) < len(known):
        # Loading accepts it, but saving keeps one of the two at random.
        names: dict[int, str] = {}
        for token, token_id in known.items():
            if names.setdefault(token_id, token) != token:
                raise UsageError(f"Two tokens, {names[token_id]!r} and {token!r}, share the id {token_id}: give each its own.")
    missing = new_id.keys() - ids
    if missing:
        raise UsageError(f"No token has the id {min(missing)}: it cannot be kept.")
    own = data["model"]["vocab"]
    outside = {
        token["id"]
        for token in data.get("added_tokens") or ()
        if (token["id"] >= len(own) if isinstance(own, list) else token["content"] not in own)
    }
    first = min(new_id.keys() & outside, default=None)
    if first is not None and first < max(new_id.keys() - outside, default=-1):
        # tokenizers numbers such tokens after all others when it reads the file, whatever the file says.
        raise UsageError(f"The added token with the id {first} stands between the model's own ids: they cannot be renumbered.")


def _steps(step: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    """A normalizer or pre-tokenizer, or the single ones of a sequence."""
    if not step:
        return
    parts = step.get("normalizers") or step.get("pretokenizers")
    if parts is None:
        yield step
    for part in parts or ():
        yield from _steps(part)


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
