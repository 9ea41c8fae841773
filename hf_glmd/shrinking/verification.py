"""Whether a smaller vocabulary is what it promises: against the original tokenizer, its own files, and the model it is for."""

from __future__ import annotations

import inspect
import itertools
import json
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from tokenizers import Tokenizer
from tqdm.auto import tqdm
from transformers.modeling_outputs import BaseModelOutput

from hf_glmd.errors import UsageError
from hf_glmd.reports.vocab_report import VerifyReport
from hf_glmd.vocab.counting import backend_of, settings_kept
from hf_glmd.vocab.mapped_tokenizer import MappedTokenizer, load_tokenizer
from hf_glmd.vocab.tokenizer_files import encode_texts
from hf_glmd.vocab.vocab_map import VocabMap

MODEL_TEXTS = 8
"""Texts that both models read; each also as a pair with the next one."""

MODEL_TOKENS = 64
"""Tokens of a text that the models read, fewer if they cannot read as many."""

PROBES = 200
"""Texts on which the files and the added special tokens are compared."""

_SECONDS_UNTIL_BAR = 2.0
_NEIGHBOURS = ("a", "e", "t", "1", ".")


class Cut(Protocol):
    """What is verified: a `ShrunkVocab`."""

    tokenizer: Any
    vocab_map: VocabMap

    def write_tokenizer(self, folder: Path, probes: Iterable[str] = ()) -> None:
        """Writes the tokenizer's own files."""

    def resize(self, model: Any) -> Any:
        """A smaller copy of the model."""


def verify_vocabulary(
    vocab: Cut, original: Any, texts: Iterable[str], model: Any, batch_size: int, progress: bool
) -> VerifyReport:
    """See `ShrunkVocab.verify`; `original` is the tokenizer before it was cut."""
    if batch_size < 1:
        raise UsageError(f"batch_size={batch_size} is not a number of texts: use 1 or more.")
    total = len(texts) if hasattr(texts, "__len__") and not isinstance(texts, str) else None
    chunks = _chunks(texts, batch_size)
    first = next(chunks, None)
    if first is None:
        raise UsageError("verify needs at least one text.")
    report, lossless = VerifyReport(), vocab.vocab_map.removed == "resegment"
    _check_names(vocab, original)
    with tempfile.TemporaryDirectory() as folder:
        vocab.write_tokenizer(Path(folder), first[:PROBES])
        written = (Path(folder) / "tokenizer.json").read_text(encoding="utf-8")
        reloaded = load_tokenizer(folder) if lossless else MappedTokenizer.from_pretrained(folder)
    if lossless:
        _check_reach(backend_of(vocab.tokenizer), backend_of(original), vocab.vocab_map, report)
        compare = _compare_resegmented
    else:
        _check_map(vocab, original, reloaded)
        compare = _compare_mapped
    with settings_kept(original), settings_kept(vocab.tokenizer):
        _check_special_tokens(vocab, original, first[:PROBES])
    if lossless:
        _check_file(written, backend_of(vocab.tokenizer), backend_of(original), first[:PROBES])
    with tqdm(total=total, unit=" texts", desc="Verifying", disable=not progress, delay=_SECONDS_UNTIL_BAR) as bar:
        for chunk in itertools.chain([first], chunks):
            compare(vocab, original, reloaded, chunk, report)
            bar.update(len(chunk))
    if model is not None:
        with settings_kept(vocab.tokenizer):
            compare_models(model, vocab.resize(model), vocab.tokenizer, vocab.vocab_map, first, report, progress)
    return report


def _chunks(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    rows = iter([texts] if isinstance(texts, str) else texts)
    while chunk := list(itertools.islice(rows, size)):
        for text in chunk:
            if not isinstance(text, str):
                raise UsageError(f"verify reads texts, not {type(text).__name__}: give strings.")
        yield chunk


def _check_file(content: str, small: Tokenizer, original: Tokenizer, texts: list[str]) -> None:
    """The written tokenizer.json has every part of the original's but for what the cut changes; `tokenizers` alone reads it."""
    written, before = json.loads(content), json.loads(original.to_str())
    of_model, of_padding = {"vocab", "merges", "unk_id"}, {"pad_id"}
    pairs = [(name, written.get(name), before.get(name)) for name in ("truncation", "normalizer", "pre_tokenizer", "decoder")]
    for name, changed in (("model", of_model), ("padding", of_padding)):
        parts = ((one.get(name) or {}).items() for one in (written, before))
        pairs.append((name, *({key: value for key, value in part if key not in changed} for part in parts)))
    for name, after, wanted in pairs:
        if after != wanted:
            raise RuntimeError(f"The written tokenizer.json has the {name} {after}, the original {wanted}.")
    alone = Tokenizer.from_str(content)
    if [one.ids for one in alone.encode_batch(texts)] != [one.ids for one in small.encode_batch(texts)]:
        raise RuntimeError("tokenizers alone gives other ids for the written tokenizer.json than the tokenizer in memory.")


def _check_names(vocab: Cut, original: Any) -> None:
    # By the vocabularies: what a single id is called may differ from its token (one flagged `normalized` is in lower case).
    large, small = ({i: name for name, i in one.get_vocab().items()} for one in (original, vocab.tokenizer))
    for small_id, old_id in enumerate(vocab.vocab_map.kept_ids.tolist()):
        if large.get(old_id) != small.get(small_id):
            raise RuntimeError(
                f"The map says token {small_id} is {large.get(old_id)!r}, but the small tokenizer has {small.get(small_id)!r}."
            )
    if len(small) != vocab.vocab_map.size or len(vocab.tokenizer.get_vocab()) != len(small):
        raise RuntimeError("The small tokenizer has tokens beside those of the map.")


def _check_reach(small: Tokenizer, large: Tokenizer, vocab_map: VocabMap, report: VerifyReport) -> None:
    """No kept token may have become impossible to produce.

    Each is asked for by words made of its own string, read by the model alone: in a text the pre-tokenizer might never make such
    a word. Words that the original splits into kept tokens only have to be split as before.
    """
    added = set(large.get_added_tokens_decoder())
    kept_ids = [token_id for token_id in vocab_map.kept_ids.tolist() if token_id not in added]
    words = [_words_with(large.id_to_token(token_id), large.model) for token_id in kept_ids]
    flat = [word for own in words for word in own]
    # A tokenizer of the model alone: it reads on all cores, and knows no added tokens.
    before, after = (encode_texts(Tokenizer(backend.model), flat) for backend in (large, small))
    splits = zip(before, after, _all_kept(before, vocab_map), strict=True)
    small_id = {old: new for new, old in enumerate(vocab_map.kept_ids.tolist())}
    lost, changed = [], []
    for token_id, own in zip(kept_ids, words, strict=True):
        asked = [(old, new) for old, new, all_kept in itertools.islice(splits, len(own)) if all_kept]
        reached = [new for old, new in asked if token_id in old]
        report.tokens_reached += bool(reached)
        report.unreachable_before += not reached
        if any(small_id[token_id] not in new for new in reached):
            lost.append(large.id_to_token(token_id))
        elif any([small_id[i] for i in old] != new for old, new in asked):
            changed.append(large.id_to_token(token_id))
    report.unreachable = len(lost)
    if lost:
        raise RuntimeError(f"{len(lost)} kept tokens can no longer be produced, {lost[:5]} among them.")
    if changed:
        raise RuntimeError(f"Words of {len(changed)} kept tokens, {changed[:5]} among them, are split otherwise than before.")


def _words_with(token: str, model: Any) -> list[str]:
    """Words that ought to be split into the token and nothing else, or one character beside it."""
    # How models of the BPE and WordPiece kinds mark a piece that is not at the start, or is at the end, of its word.
    prefix, suffix = (getattr(model, name, None) or "" for name in ("continuing_subword_prefix", "end_of_word_suffix"))
    inside = bool(prefix) and token.startswith(prefix) and len(token) > len(prefix)
    last = not suffix or token.endswith(suffix)
    body = token[len(prefix) if inside else 0 : len(token) - (len(suffix) if suffix and last else 0)]
    befores, afters = (_NEIGHBOURS if inside else ("",)), (("",) if last else _NEIGHBOURS)
    return [before + body + after for before in befores for after in afters if body]


def _check_map(vocab: Cut, original: Any, reloaded: Any) -> None:
    """Kept ids and special tokens stand for themselves; removed ones for what the mode says."""
    vocab_map = vocab.vocab_map
    if vocab_map != vocab.tokenizer.vocab_map or vocab_map != reloaded.vocab_map:
        raise RuntimeError("The tokenizer has another map than the vocabulary, or loses it when it is saved.")
    ids = np.arange(vocab_map.original_size)
    kept, special = vocab_map.keeps(ids), np.array(sorted(set(original.all_special_ids)))
    if (vocab_map.to_original(vocab_map.to_small(ids[kept])) != ids[kept]).any() or not vocab_map.keeps(special).all():
        raise RuntimeError("A kept token or a special one does not stand for itself.")
    stand_ins = np.unique(vocab_map.to_original(vocab_map.to_small(ids[~kept])))
    if vocab_map.removed == "unk" and not set(stand_ins) <= {original.unk_token_id}:
        raise RuntimeError("A removed token stands for something else than the unknown token.")
    if vocab_map.removed == "nearest" and np.isin(stand_ins, special).any():
        raise RuntimeError("A removed token stands for a special one.")


def _check_special_tokens(vocab: Cut, original: Any, texts: list[str]) -> None:
    """What a tokenizer adds around a text and a pair of texts, and what it says of each token, is as before."""
    options = {"return_token_type_ids": True, "return_special_tokens_mask": True, "return_attention_mask": True}
    for second in (None, texts[::-1]):
        before, after = (one(texts, second, verbose=False, **options) for one in (original, vocab.tokenizer))
        mapped = vocab.vocab_map.removed != "resegment"
        for row, old in enumerate(before["input_ids"]):
            if not mapped and not vocab.vocab_map.keeps(old).all():
                continue
            expected = {name: values[row] for name, values in before.items()} | {"input_ids": vocab.vocab_map.to_small(old)}
            if expected != {name: values[row] for name, values in after.items()}:
                raise RuntimeError(f"{texts[row][:200]!r} comes with other special tokens, segments or masks than before.")


def _compare_resegmented(vocab: Cut, original: Any, reloaded: Any, texts: list[str], report: VerifyReport) -> None:
    large, small = backend_of(original), backend_of(vocab.tokenizer)
    old, new, again = (encode_texts(backend, texts) for backend in (large, small, backend_of(reloaded)))
    if new != again:
        raise RuntimeError("The tokenizer gives other ids once it is saved and loaded again.")
    before = large.decode_batch(old, skip_special_tokens=False)
    after = small.decode_batch(new, skip_special_tokens=False)
    for text, all_kept, old_ids, new_ids in zip(texts, _all_kept(old, vocab.vocab_map), old, new, strict=True):
        if all_kept and vocab.vocab_map.to_small(old_ids) != new_ids:
            raise RuntimeError(f"All tokens of {text[:200]!r} were kept, and yet it is split otherwise.")
        report.texts_all_kept += all_kept
    joins = large.decoder is not None  # without one, pieces are decoded with blanks between them, of which there are more now
    for text, old_text, new_text in zip(texts, before, after, strict=True):
        if old_text != new_text and (joins or old_text.replace(" ", "") != new_text.replace(" ", "")):
            raise UsageError(
                f"{text[:200]!r} now reads {new_text[:200]!r}, before {old_text[:200]!r}: count such texts, name "
                "them in keep_texts=, or use alphabet='all'."
            )
    report.texts += len(texts)
    report.texts_same_decoded += len(texts)


def _compare_mapped(vocab: Cut, original: Any, reloaded: Any, texts: list[str], report: VerifyReport) -> None:
    old = encode_texts(backend_of(original), texts)
    new, again = (one(texts, add_special_tokens=False, verbose=False)["input_ids"] for one in (vocab.tokenizer, reloaded))
    if new != vocab.vocab_map.to_small(old):
        raise RuntimeError("The tokenizer gives other ids than the original one and the map.")
    if new != again:
        raise RuntimeError("The tokenizer gives other ids once it is saved and loaded again.")
    all_kept = _all_kept(old, vocab.vocab_map)
    same = [a == b for a, b in zip(original.batch_decode(old), vocab.tokenizer.batch_decode(new), strict=True)]
    for text, kept, equal in zip(texts, all_kept, same, strict=True):
        if kept and not equal:
            raise RuntimeError(f"All tokens of {text[:200]!r} were kept, and yet it is decoded otherwise.")
    report.texts += len(texts)
    report.texts_all_kept += sum(all_kept)
    report.texts_same_decoded += sum(same)


def _all_kept(rows: list[list[int]], vocab_map: VocabMap) -> list[bool]:
    ends = np.cumsum([len(row) for row in rows])
    removed = np.cumsum(~vocab_map.keeps(np.fromiter(itertools.chain.from_iterable(rows), dtype=np.int64)))
    up_to = np.concatenate([[0], removed])[np.concatenate([[0], ends])]
    return (np.diff(up_to) == 0).tolist()


def compare_models(
    model: Any, small_model: Any, tokenizer: Any, vocab_map: VocabMap, texts: list[str], report: VerifyReport, progress: bool
) -> None:
    """Both models read the same tokens: whatever they compute has to agree, logits in the kept columns.

    Texts are read one by one, so that no padding token is needed, with all that the tokenizer says of them and the model takes;
    an encoder-decoder model reads them on both sides.

    Raises: RuntimeError, something differs by more than rounding.
    """
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 0
    # RoBERTa and its kin count positions from 2 on; XLNet says -1, for any number.
    limit = min(MODEL_TOKENS, positions - 2) if positions > 2 else MODEL_TOKENS
    texts = [text for text in texts if text.strip()][:MODEL_TEXTS]
    inputs = [(text,) for text in texts] + list(itertools.pairwise(texts))
    worst: dict[str, float] = {}
    training = model.training
    model.eval()
    small_model.eval()
    try:
        for pair in tqdm(inputs, desc="Comparing the models", disable=not progress, delay=_SECONDS_UNTIL_BAR):
            batch = tokenizer(*pair, truncation=True, max_length=limit, return_tensors="pt", verbose=False)
            ids = batch["input_ids"]
            if not ids.numel():
                continue
            end = getattr(small_model.config, "eos_token_id", None)
            if model.config.is_encoder_decoder and isinstance(end, int) and not (ids == end).any():
                ids[:, -1] = end  # the heads of BART that classify read the state of this token
            report.model_texts += 1
            new, old = _outputs(small_model, batch, ids), _outputs(model, batch, vocab_map.to_original(ids))
            for name in new:
                kind = "logits" if "logits" in name else "hidden states"
                difference, scale = _difference(new[name], old[name], vocab_map, f"{kind} ({name})")
                # Sums over fewer columns may be in another order, in fp32 at least; the rest is the same computation.
                info = torch.finfo(model.dtype)
                rounding = (64 if kind == "logits" and info.bits >= 32 else 4) * info.eps * max(1.0, scale)
                if not difference <= rounding:
                    raise RuntimeError(f"The smaller model computes other {kind} ({name}): they differ by {difference}.")
                worst[kind] = max(worst.get(kind, 0.0), difference)
    finally:
        model.train(training)
    report.max_logit_difference = worst.get("logits")
    report.max_hidden_difference = worst.get("hidden states")


@torch.no_grad()
def _outputs(model: Any, batch: dict[str, Any], ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Every tensor the model returns, by its path; caches are left out.

    A model that also sees or hears is run in part: its text tower, or its decoder after made-up outputs of the encoder.
    """
    model, made_up = _that_reads_text(model)
    accepted = inspect.signature(model.forward).parameters
    inputs = {name: value.to(ids.device) for name, value in batch.items() if name in accepted}
    if made_up:
        inputs.pop("attention_mask", None)  # it would be that of the encoder, which reads no text
    inputs |= {name: ids for name in ("input_ids", "decoder_input_ids") if name in accepted} | made_up
    inputs = {
        name: value.to(next(model.parameters()).device) if hasattr(value, "to") else value for name, value in inputs.items()
    }
    if "use_cache" in accepted:
        inputs["use_cache"] = False
    outputs = model(**inputs, output_hidden_states=True, return_dict=True)
    return dict(_tensors(outputs.items()))


_OTHER_SENSES = ("pixel_values", "input_features", "input_values")
_TEXT_PARTS = ("text_model", "text_decoder", "language_model", "decoder")


def _that_reads_text(model: Any) -> tuple[Any, dict[str, Any]]:
    """The part of a model that text alone can be given to, and the inputs that have to be made up for it."""
    parameters = inspect.signature(model.forward).parameters
    needed = [name for name in _OTHER_SENSES if name in parameters]
    if not needed:
        return model, {}
    if "encoder_outputs" in parameters:
        config = model.config.get_text_config(decoder=True)
        width = getattr(config, "cross_attention_hidden_size", None) or config.hidden_size
        encoder = getattr(model.config, "encoder", None)
        width = getattr(encoder, "hidden_size", None) or width
        states = torch.linspace(-1, 1, 4 * width).view(1, 4, width).to(model.dtype)
        return model, {"encoder_outputs": BaseModelOutput(last_hidden_state=states.to(model.device))}
    for name in _TEXT_PARTS:
        part = getattr(model, name, None) or getattr(getattr(model, "model", None), name, None)
        if part is not None and "input_ids" in inspect.signature(part.forward).parameters:
            return part, {}
    return model, {}


def _tensors(items: Iterable[tuple[Any, Any]], path: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    for key, value in items:
        name = f"{path}{key}"
        if isinstance(value, torch.Tensor):
            yield name, value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(enumerate(value), f"{name}.")


def _difference(new: torch.Tensor, old: torch.Tensor, vocab_map: VocabMap, name: str) -> tuple[float, float]:
    """The largest difference, and the largest finite value it is to be seen beside."""
    if new.shape != old.shape:
        if new.shape[-1] != vocab_map.size or old.shape[-1] <= vocab_map.kept_ids[-1]:
            raise RuntimeError(f"The smaller model's {name} are of shape {list(new.shape)}, the model's {list(old.shape)}.")
        old = old[..., torch.from_numpy(vocab_map.kept_ids.copy()).to(old.device)]
    new, old = (tensor.to(torch.promote_types(tensor.dtype, torch.float32)) for tensor in (new, old))
    return float(torch.where(new == old, 0, (new - old).abs()).max()), float(old.nan_to_num(0, 0, 0).abs().max())
