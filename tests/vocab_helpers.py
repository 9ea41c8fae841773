"""Tiny tokenizers, corpora and models for the vocabulary tests: made by hand, offline, with a prime vocabulary."""

from __future__ import annotations

import collections
import functools
import itertools
import json
import string
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from hf_glmd.vocab.vocab_map import VocabMap

V = 211  # prime, so that no other size equals it by accident
SPECIAL = ("[UNK]", "[CLS]", "[SEP]", "[MASK]")
_ENDINGS = ("ing", "ed", "er", "ly", "ness")
_STEMS = ("walk", "talk", "jump", "read", "play", "look", "call", "turn", "help", "work", "rest", "mark")
_LETTERS = string.ascii_lowercase + string.digits + ".,!?"


def wordpiece_vocabulary() -> dict[str, int]:
    """V tokens. [PAD] is 0, the other specials stand behind words that will be removed, as in bert-base-uncased: they move."""
    words = [stem + ending for stem in _STEMS for ending in ("", *_ENDINGS)]  # 72
    letters = list(_LETTERS)
    tokens = ["[PAD]", *words[:20], *SPECIAL, *words[20:], *letters, *(f"##{c}" for c in letters), *(f"##{e}" for e in _ENDINGS)]
    fillers = (f"##{a}{b}" for a in "aeiou" for b in string.ascii_lowercase)
    while len(tokens) < V:
        token = next(fillers)
        if token not in tokens:
            tokens.append(token)
    return {token: index for index, token in enumerate(tokens)}


def wordpiece_backend(post_processor: str = "template") -> Tokenizer:
    vocabulary = wordpiece_vocabulary()
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    cls, sep = ("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])
    template = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[cls, sep]
    )
    tokenizer.post_processor = {
        "template": template,
        "bert": processors.BertProcessing(sep, cls),
        "roberta": processors.RobertaProcessing(sep, cls),
        "sequence": processors.Sequence([processors.ByteLevel(), template]),
    }[post_processor]
    tokenizer.add_special_tokens(["[PAD]", *SPECIAL])
    return tokenizer


MERGED_STYLES = ("bytes", "whole words", "fallback", "suffix", "prefix")
"""How BPE tokenizers differ: GPT-2's, Llama-3's (`ignore_merges`), Llama-2's, CLIP's, and with a prefix inside words."""


def bpe_backend(style: str = "bytes") -> Tokenizer:
    """Merges learned from the words above, and several merges for many a token, not all of them in the order of their lengths."""
    prefix, suffix = "##" if style == "prefix" else "", "</w>" if style == "suffix" else ""
    before = {"bytes": "Ġ", "whole words": "Ġ", "fallback": "▁"}.get(style, "")
    words = [before + stem + ending for stem in _STEMS for ending in ("", *_ENDINGS)]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet()) if before == "Ġ" else [*before, *_LETTERS, *(["é"] * (not before))]
    vocabulary = list(SPECIAL) + [f"<0x{byte:02X}>" for byte in range(256)] * (style == "fallback")
    vocabulary += [p + c + s for c in alphabet for p in sorted({"", prefix}) for s in sorted({"", suffix})]
    merges = _learned_merges(words, prefix, suffix, 70)
    vocabulary += dict.fromkeys(left + right.removeprefix(prefix) for left, right in merges)
    vocabulary += [t for pair in ("lk", "al", "in", "ng", "rk", "rn", "ea", "ee", "1234") for t in [pair] if t not in vocabulary]
    known = set(vocabulary)
    for token in vocabulary[::-1]:  # as conversions from SentencePiece and tiktoken make them: every way to split a token
        merges += [
            (token[:at], prefix + token[at:])
            for at in range(1, len(token))
            if token[:at] in known and prefix + token[at:] in known and (token[:at], prefix + token[at:]) not in merges
        ] * (not suffix)
    if style == "whole words":
        vocabulary += ["Ġmarks", "Ġturnwork"]  # merges do not give these
    settings: dict[str, Any] = {"byte_fallback": style == "fallback", "ignore_merges": style == "whole words"}
    if before != "Ġ":
        settings["unk_token"] = "[UNK]"
    if prefix:
        settings["continuing_subword_prefix"] = prefix
    if suffix:
        settings["end_of_word_suffix"] = suffix
    model = models.BPE({token: index for index, token in enumerate(vocabulary)}, merges, **settings)
    tokenizer = Tokenizer(model)
    if before == "Ġ":
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    elif before:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece(prefix) if prefix else decoders.BPEDecoder(suffix)
    return _with_specials(tokenizer)


def unigram_backend(byte_fallback: bool = False) -> Tokenizer:
    """As SentencePiece makes them: special tokens first, the unknown one at 3, and the words' pieces by score."""
    words = ["▁" + stem + ending for stem in _STEMS for ending in ("", *_ENDINGS)]
    pieces = [*words, *_STEMS, *_ENDINGS, "▁", *_LETTERS, "é"]
    scored = [(piece, -3.0 - 0.1 * index - 0.37 * (index % 7)) for index, piece in enumerate(dict.fromkeys(pieces))]
    scored += [(f"<0x{byte:02X}>", -20.0) for byte in range(256)] * byte_fallback
    specials = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "[UNK]")]
    tokenizer = Tokenizer(models.Unigram(specials + scored, unk_id=3, byte_fallback=byte_fallback))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
    tokenizer.decoder = (
        decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()]) if byte_fallback else decoders.Metaspace()
    )
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", None, [("<s>", 0), ("</s>", 2)])
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "[UNK]"])
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True)])  # outside of the model, as in XLM-R
    return tokenizer


def wordlevel_backend() -> Tokenizer:
    words = [stem + ending for stem in _STEMS for ending in ("", *_ENDINGS)]
    vocabulary = [*words[:20], *SPECIAL, *words[20:], *".,!?"]
    tokenizer = Tokenizer(models.WordLevel({token: index for index, token in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return _with_specials(tokenizer)


BACKENDS = {
    "wordpiece": wordpiece_backend,
    **{f"bpe {style}": functools.partial(bpe_backend, style) for style in MERGED_STYLES},
    "unigram": unigram_backend,
    "unigram bytes": functools.partial(unigram_backend, byte_fallback=True),
    "wordlevel": wordlevel_backend,
}
"""One of each kind of tokenizer."""


def fast_tokenizer(kind: str, **settings: Any) -> PreTrainedTokenizerFast:
    """One of `BACKENDS` as transformers has it, with the names of its special tokens."""
    backend = BACKENDS[kind]()
    names = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    if kind.startswith("unigram"):
        names = {"unk_token": "[UNK]", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "mask_token": "<mask>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **(names | settings))


def _with_specials(tokenizer: Tokenizer) -> Tokenizer:
    cls, sep = ((name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]"))
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", [cls, sep])
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def _learned_merges(words: list[str], prefix: str, suffix: str, number: int) -> list[tuple[str, str]]:
    """The commonest pair of neighbours again and again; of equally common ones the first by name."""
    rows = [[(prefix if i else "") + c + (suffix if i == len(word) - 1 else "") for i, c in enumerate(word)] for word in words]
    merges = []
    for _ in range(number):
        pairs = collections.Counter(pair for row in rows for pair in itertools.pairwise(row))
        left, right = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append((left, right))
        for row in rows:
            for at in range(len(row) - 2, -1, -1):
                if tuple(row[at : at + 2]) == (left, right):
                    row[at : at + 2] = [left + right.removeprefix(prefix)]
    return merges


def generic_tokenizer(backend: Tokenizer | None = None, **settings: Any) -> PreTrainedTokenizerFast:
    settings = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"} | settings
    return PreTrainedTokenizerFast(tokenizer_object=backend or wordpiece_backend(), mask_token="[MASK]", **settings)


def bert_tokenizer(folder: Path, **config: Any) -> Any:
    """A `BertTokenizer`, whose class builds its own backend from the vocabulary when it is loaded."""
    folder.mkdir(parents=True, exist_ok=True)
    wordpiece_backend().save(str(folder / "tokenizer.json"))
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True} | names | config)
    )
    return AutoTokenizer.from_pretrained(folder)


def texts(number: int = 60, seed: int = 0) -> list[str]:
    """Sentences of the tiny vocabulary's words and of words it has to spell; the earlier words are the more frequent."""
    rng = np.random.default_rng(seed)
    words = [stem + ending for stem in _STEMS for ending in ("", *_ENDINGS)] + ["walker2", "unknownword", "mix3d", "zoo."]
    weight = 1 / np.arange(1, len(words) + 1)
    return [" ".join(rng.choice(words, size=rng.integers(3, 9), p=weight / weight.sum())) + "." for _ in range(number)]


def tiny_map(size: int = 97, original_size: int = V, seed: int = 0, keep: tuple[int, ...] = (0, 1, 2, 3, 4)) -> VocabMap:
    """A map that keeps the first ids and random others."""
    rng = np.random.default_rng(seed)
    others = rng.choice(np.setdiff1d(np.arange(original_size), keep), size - len(keep), replace=False)
    return VocabMap(np.sort(np.concatenate([np.array(keep), others])), original_size)


_SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 40,
}
_DECODER = _SMALL | {"num_key_value_heads": 2, "head_dim": 8}
_BART = {"d_model": 16, "encoder_layers": 3, "decoder_layers": 3, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
_BART |= {"encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_position_embeddings": 40}
_T5 = {
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 24,
    "num_layers": 3,
    "num_decoder_layers": 3,
    "num_heads": 2,
    "decoder_start_token_id": 0,
}
_IDS = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertForMaskedLM", _SMALL),
    "bert-untied": ("BertForMaskedLM", _SMALL | {"tie_word_embeddings": False}),
    "bert-pretraining": ("BertForPreTraining", _SMALL),
    "bert-classifier": ("BertForSequenceClassification", _SMALL),
    "roberta": ("RobertaForMaskedLM", _SMALL | _IDS),
    "albert": ("AlbertForMaskedLM", _SMALL | {"embedding_size": 8} | _IDS),
    "electra": ("ElectraForMaskedLM", _SMALL | {"embedding_size": 8}),
    "distilbert": (
        "DistilBertForMaskedLM",
        {"dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 24, "max_position_embeddings": 40},
    ),
    "gpt2": (
        "GPT2LMHeadModel",
        {"n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 40, "bos_token_id": 2, "eos_token_id": 2},
    ),
    "llama": ("LlamaForCausalLM", _DECODER | _IDS),
    "qwen2-tied": ("Qwen2ForCausalLM", _DECODER | {"tie_word_embeddings": True}),
    "gemma2": ("Gemma2ForCausalLM", _DECODER | _IDS),
    "t5": ("T5ForConditionalGeneration", _T5),
    "bart": ("BartForConditionalGeneration", _BART | _IDS),
    "gptj": ("GPTJForCausalLM", {"n_embd": 16, "n_layer": 3, "n_head": 2, "rotary_dim": 4, "n_positions": 40} | _IDS),
}


def tiny_model(name: str, vocab_size: int = V, **settings: Any) -> Any:
    """A random model in eval mode; "mt5-untied" is one whose config says tied though its head is not, as the published ones."""
    torch.manual_seed(0)
    if name == "mt5-untied":
        model = tiny_class("MT5ForConditionalGeneration", _T5 | settings, vocab_size)
        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
        return model
    class_name, defaults = MODELS[name]
    model = tiny_class(class_name, defaults | settings, vocab_size)
    for path, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if path.endswith("bias") and tensor.is_floating_point():  # zero at first, so that a lost bias would go unnoticed
            torch.nn.init.normal_(tensor.data)
    return model


def tiny_class(class_name: str, settings: dict[str, Any], vocab_size: int) -> Any:
    cls = getattr(transformers, class_name)
    return cls(cls.config_class(vocab_size=vocab_size, **settings)).eval()


def outputs(model: Any, ids: torch.Tensor) -> torch.Tensor:
    decoder = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model(input_ids=ids, **decoder)[0]
