"""VocabShrinker: count a corpus, choose the tokens that matter, and cut the tokenizer down to them."""

from __future__ import annotations

import difflib
import json
import logging
import os
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from hf_glmd.errors import UsageError
from hf_glmd.shrunk_vocab import ShrunkVocab, VocabReport
from hf_glmd.tokenizer_files import encode_texts, load_tokenizer, small_tokenizer
from hf_glmd.vocab.counting import TokenCounts, backend_of, count_corpus, tokenizer_fingerprint, vocabulary_rows
from hf_glmd.vocab.rewrite import pinned_ids, refuse_unsupported, shrink_tokenizer_json, token_ids
from hf_glmd.vocab.selection import select, single_characters
from hf_glmd.vocab.vocab_map import REMOVED_MODES, VocabMap

logger = logging.getLogger(__name__)


class VocabShrinker:
    """Counts which tokens a corpus uses and cuts the vocabulary down to those.

    >>> vocab = VocabShrinker(tokenizer).count("corpus.txt").shrink(size=0.5)  # doctest: +SKIP
    >>> student = vocab.resize(model)  # doctest: +SKIP

    Args:
        tokenizer: a fast transformers tokenizer, or the Hub name or path of one.
    Raises: UsageError, it cannot be loaded, or has no fast backend.
    """

    def __init__(self, tokenizer: Any) -> None:
        if isinstance(tokenizer, (str, os.PathLike)):
            tokenizer = load_tokenizer(tokenizer)
        self.tokenizer = tokenizer
        self._backend = backend_of(tokenizer)
        self._counted = TokenCounts(values=np.zeros(vocabulary_rows(tokenizer), dtype=np.int64))

    @property
    def counts(self) -> np.ndarray:
        """int64 [V]: how often each token was counted so far."""
        return self._counted.values

    def count(self, source: Any, column: str = "text", *, batch_size: int = 1_000, progress: bool = True) -> VocabShrinker:
        """Counts the tokens of a corpus; called again, the counts add up.

        Under several processes (`accelerate launch`) the work is shared out and every process ends with the counts of all.

        Args:
            source: texts (any iterable of str), rows (dicts with `column`), a `datasets.Dataset` or `IterableDataset`, or one or
                several files: .txt (one text per line), .jsonl (also .txt.gz, .jsonl.xz, ...), .parquet.
            column: which field of a row holds the text.
            batch_size: texts tokenized at once, >= 1. It does not change the result.
            progress: show a progress bar.
        Returns: self.
        Raises: UsageError, the source is missing, of an unknown kind, without the column, or holds no token.
        """
        self._counted = self._counted + count_corpus(self.tokenizer, source, column, batch_size=batch_size, progress=progress)
        return self

    def save_counts(self, path: str | os.PathLike[str]) -> None:
        """Writes the counts to a safetensors file, with the fingerprint of the tokenizer that made them."""
        self._counted.save(path, tokenizer_fingerprint(self.tokenizer))

    @classmethod
    def load_counts(cls, path: str | os.PathLike[str], tokenizer: Any) -> VocabShrinker:
        """A shrinker with the counts that `save_counts` wrote.

        Raises: UsageError, the file is missing, or another tokenizer counted.
        """
        shrinker = cls(tokenizer)
        shrinker._counted = TokenCounts.load(path, tokenizer_fingerprint(shrinker.tokenizer))
        return shrinker

    def shrink(
        self,
        size: int | float | None = None,
        coverage: float | None = None,
        min_count: int | None = None,
        keep: Iterable[str | int] = (),
        keep_texts: Iterable[str] = (),
        removed: str = "resegment",
        similarity: str = "dot",
        embeddings: torch.Tensor | None = None,
        multiple_of: int = 1,
        *,
        alphabet: str = "seen",
    ) -> ShrunkVocab:
        """The smaller vocabulary. Of size, coverage and min_count one is given; with none of them size is 0.5.

        Args:
            size: float in (0, 1]: share of V, rounded up. int: the exact final number of tokens, specials and single characters
                included.
            coverage: in (0, 1]: the smallest vocabulary that covers this share of the counted tokens, e.g. 0.999.
            min_count: >= 1: every token counted at least this often.
            keep: tokens (str) or ids (int) that must stay.
            keep_texts: every token of these texts stays, e.g. prompts, verbalizers, the chat template.
            removed: "resegment": text of a removed token is split into kept pieces. "nearest", "unk": not there yet.
            similarity, embeddings: for "nearest".
            multiple_of: round the size up to this multiple by keeping more tokens.
            alphabet: single characters that stay, at the start of words and inside: "seen" (those of the counted tokens, and
                ASCII), "all", or "none". Text of these characters never becomes unknown.
        Returns: `ShrunkVocab`.
        Raises: UsageError, nothing was counted, a value is out of range, a kept token does not exist, more tokens have to stay
            than `size` allows, or the tokenizer is of a type that cannot be cut yet.
        """
        if removed not in REMOVED_MODES:
            raise UsageError(f"removed={removed!r} is unknown: use one of {', '.join(REMOVED_MODES)}.")
        if removed != "resegment":
            raise UsageError(f"removed={removed!r} is not there yet: use removed='resegment'.")
        if similarity not in ("dot", "cosine", "euclidean"):
            raise UsageError(f"similarity={similarity!r} is unknown: use 'dot', 'cosine' or 'euclidean'.")
        if embeddings is not None:
            raise UsageError("embeddings are used by removed='nearest' only: leave them out.")
        if size is None and coverage is None and min_count is None:
            size = 0.5
        data = json.loads(self._backend.to_str())
        refuse_unsupported(data)
        if vocabulary_rows(self.tokenizer) != self.counts.size:
            raise UsageError(
                f"The tokenizer had {self.counts.size} rows when the counting began, now {vocabulary_rows(self.tokenizer)}: "
                "add tokens first, then count."
            )
        if not self.counts.any():
            raise UsageError("Nothing was counted, so it is unknown which tokens matter: call count(corpus) first.")

        vocabulary = token_ids(data)
        special = set(pinned_ids(data)) | {token_id for token_id in self.tokenizer.all_special_ids if token_id is not None}
        characters = single_characters(
            vocabulary, self.counts, alphabet, prefix=data["model"].get("continuing_subword_prefix") or "", skip=special
        )
        required: dict[str, Iterable[int]] = {
            "special": sorted(special),
            "single characters": characters,
            "from keep=": _kept_ids(keep, vocabulary),
            "from keep_texts=": self._ids_of(keep_texts),
        }
        absent = np.setdiff1d(np.arange(self.counts.size), np.fromiter(vocabulary.values(), dtype=np.int64))
        kept_ids = select(
            self.counts,
            size=size,
            coverage=coverage,
            min_count=min_count,
            required=required,
            absent=absent,
            multiple_of=multiple_of,
        )
        vocab_map = VocabMap(kept_ids, original_size=self.counts.size)
        probes = list(self._counted.sample.values())[:200]
        tokenizer = small_tokenizer(self.tokenizer, shrink_tokenizer_json(data, kept_ids), probes)
        expected = {token: vocab_map.to_small(token_id) for token, token_id in vocabulary.items() if vocab_map.keeps(token_id)}
        if tokenizer.get_vocab() != expected:
            raise RuntimeError("The small tokenizer numbers its tokens otherwise than the vocabulary map.")
        return ShrunkVocab(
            tokenizer=tokenizer,
            vocab_map=vocab_map,
            report=self._report(vocab_map, tokenizer, required, vocabulary),
            counts=self.counts[kept_ids],
            original_tokenizer=self.tokenizer,
            probes=probes,
        )

    def _ids_of(self, texts: Iterable[str]) -> np.ndarray:
        texts = [texts] if isinstance(texts, str) else list(texts)
        for text in texts:
            if not isinstance(text, str):
                raise UsageError(f"keep_texts holds a {type(text).__name__}, not a text.")
        return np.unique(np.array([i for ids in encode_texts(self._backend, texts) for i in ids], dtype=np.int64))

    def _report(
        self, vocab_map: VocabMap, tokenizer: Any, required: dict[str, Iterable[int]], vocabulary: dict[str, int]
    ) -> VocabReport:
        kept_ids = vocab_map.kept_ids
        seen: set[int] = set()
        n_kind = {}
        for name, ids in required.items():
            new = {int(i) for i in ids} - seen
            n_kind[name] = len(new)
            seen |= new
        names = {token_id: token for token, token_id in vocabulary.items()}
        removed = np.setdiff1d(np.flatnonzero(self.counts), kept_ids)
        removed = removed[np.lexsort((removed, -self.counts[removed]))]
        texts = list(self._counted.sample.values())
        before, after = encode_texts(self._backend, texts), encode_texts(tokenizer.backend_tokenizer, texts)
        tokens = sum(map(len, before))
        new_unknown = 0
        if tokenizer.unk_token_id is not None:
            unknown = vocab_map.to_original(tokenizer.unk_token_id)
            new_unknown = sum(ids.count(tokenizer.unk_token_id) for ids in after) - sum(ids.count(unknown) for ids in before)
        if new_unknown > 0:
            logger.warning(
                "%d words of the %d sampled texts become unknown: alphabet='all' or 'seen' keeps the single "
                "characters that spell them.",
                new_unknown,
                len(texts),
            )
        return VocabReport(
            original_size=vocab_map.original_size,
            size=vocab_map.size,
            coverage=float(self.counts[kept_ids].sum() / self.counts.sum()),
            length_ratio=sum(map(len, after)) / tokens if tokens else 1.0,
            counted_tokens=int(self.counts.sum()),
            texts=self._counted.texts,
            n_special=n_kind["special"],
            n_alphabet=n_kind["single characters"],
            n_keep=n_kind["from keep="] + n_kind["from keep_texts="],
            removed_examples=[names[int(i)] for i in removed[:20]],
            new_unknown=new_unknown,
        )


def _kept_ids(keep: Iterable[str | int], vocabulary: dict[str, int]) -> list[int]:
    known = set(vocabulary.values())
    ids = []
    for item in [keep] if isinstance(keep, (str, int)) else keep:
        if isinstance(item, str):
            if item not in vocabulary:
                raise UsageError(f"keep names {item!r}, which is not a token of this tokenizer.{_closest(item, vocabulary)}")
            ids.append(vocabulary[item])
        elif isinstance(item, (int, np.integer)) and not isinstance(item, bool):
            if int(item) not in known:
                raise UsageError(f"keep names the id {item}, which no token has: the ids go from 0 to {max(known)}.")
            ids.append(int(item))
        else:
            raise UsageError(f"keep holds {item!r}: give tokens (str) or ids (int).")
    return ids


def _closest(token: str, vocabulary: dict[str, int]) -> str:
    """A hint. Only tokens of about the same length are compared: a vocabulary may hold a quarter of a million."""
    if not token:
        return ""
    near = [known for known in sorted(vocabulary) if abs(len(known) - len(token)) <= 2 and known[:1].lower() == token[:1].lower()]
    close = difflib.get_close_matches(token, near, n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"{hint} To keep the pieces of a word or phrase, use keep_texts=."
