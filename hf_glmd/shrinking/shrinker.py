"""VocabShrinker: count a corpus, choose the tokens that matter, and cut the tokenizer down to them."""

from __future__ import annotations

import itertools
import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from hf_glmd.data.sources import read_texts
from hf_glmd.errors import UsageError
from hf_glmd.reports.sizes import SizeTable
from hf_glmd.shrinking.corpora import Corpus, counted_corpora, growth_limits
from hf_glmd.shrinking.preparation import (
    Preparation,
    absent_ids,
    check_mode,
    counted_vocabulary,
    merge_tree,
    no_garbage_collection,
    order_of,
)
from hf_glmd.shrinking.reporting import report_of
from hf_glmd.shrinking.required_tokens import (
    BYTES,
    SPECIAL,
)
from hf_glmd.shrinking.shrunk_vocab import ShrunkVocab
from hf_glmd.shrinking.sizes import Limits, Sizer, ledger_rows, model_parts
from hf_glmd.vocab.counting import (
    TokenCounts,
    backend_of,
    count_corpus,
    tokenizer_fingerprint,
    vocabulary_rows,
)
from hf_glmd.vocab.mapped_tokenizer import load_tokenizer
from hf_glmd.vocab.rewrite import (
    refuse_unsupported,
    shrink_tokenizer_json,
)
from hf_glmd.vocab.selection import save_order, select, token_order
from hf_glmd.vocab.soundness import check_vocabulary, panics_named
from hf_glmd.vocab.tokenizer_files import encode_texts, small_tokenizer
from hf_glmd.vocab.vocab_map import VocabMap, nearest_kept

logger = logging.getLogger(__name__)

COST_TEXTS = 500
"""Of the remembered texts so many are read with both tokenizers each time that a vocabulary is cut."""


class VocabShrinker:
    """Counts which tokens a corpus uses and cuts the vocabulary down to those.

    >>> student = VocabShrinker(tokenizer).count("corpus.txt").shrink(size=0.5).resize(model)  # doctest: +SKIP

    Args:
        tokenizer: a fast transformers tokenizer, or the Hub name or path of one; or a `tokenizers.Tokenizer`.
    Raises: UsageError, it cannot be loaded, or has no fast backend.
    """

    def __init__(self, tokenizer: Any) -> None:
        if isinstance(tokenizer, (str, os.PathLike)):
            tokenizer = load_tokenizer(tokenizer)
        elif isinstance(tokenizer, Tokenizer):
            tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
        self.tokenizer = tokenizer
        self._backend = check_vocabulary(backend_of(tokenizer), "The tokenizer")
        self._counted = TokenCounts(values=np.zeros(vocabulary_rows(tokenizer), dtype=np.int64))
        self.corpora: dict[str, Corpus] = {}
        self._sample_ids: list[list[int]] | None = None  # what the remembered texts are split into, once it is asked for

    @property
    def counts(self) -> np.ndarray:
        """int64 [V]: how often each token was counted so far."""
        return self._counted.values

    @panics_named
    def count(
        self,
        source: Any,
        column: str = "text",
        weight: float = 1.0,
        *,
        max_texts: int | None = None,
        batch_size: int = 10_000,
        progress: bool = True,
    ) -> VocabShrinker:
        """Counts the tokens of a corpus; called again, the counts add up.

        Under several processes (`accelerate launch`) the work is shared out and every process ends with the counts of all.

        Args:
            source, column: see `hf_glmd.data.sources.read_texts`: texts, rows, data sets, files or folders.
            weight: > 0. Each token of this corpus counts that often.
            max_texts: >= 1. Read only that many texts, the first ones.
            batch_size: texts tokenized at once, >= 1. It does not change the result.
            progress: show a progress bar.
        Returns: self.
        Raises: UsageError, the source is missing, of an unknown kind, without the column, or holds no token.
        """
        if max_texts is not None:
            if isinstance(max_texts, bool) or not isinstance(max_texts, int) or max_texts < 1:
                raise UsageError(f"max_texts={max_texts!r} is not a number of texts: use 1 or more, or None for all.")
            source = itertools.islice(read_texts(source, column)[0], max_texts)
        counted = count_corpus(self.tokenizer, source, column, weight, batch_size=batch_size, progress=progress)
        self._counted = self._counted + counted
        self._sample_ids = None
        return self

    def count_corpora(
        self, corpora: Mapping[str, Any], column: str = "text", *, held_out: Any = None, progress: bool = True
    ) -> VocabShrinker:
        """Counts corpora that are known by a name from then on: `sizes`, and `shrink(growth=...)`, tell of each.

        Every 20th text of each is held out, up to 250,000 characters: it is not counted, and growth is measured on it.

        Args:
            corpora: name -> source, as of `count`.
            held_out: texts, or a source of them, to measure on instead; of several corpora name -> source.
        Returns: self.
        Raises: UsageError, as `count`; a name was counted already, or a corpus has too few texts to hold one out.
        """
        self.add_corpora(counted_corpora(self.tokenizer, corpora, column, held_out, progress, known=self.corpora))
        return self

    def add_corpora(self, counted: Mapping[str, Corpus]) -> None:
        """Adds corpora that `hf_glmd.shrinking.corpora` counted with this tokenizer, name -> corpus."""
        for corpus in counted.values():
            self._counted = self._counted + corpus.counts
            self._sample_ids = None
        # Without held-out text nothing can be measured by its name.
        self.corpora |= {name: corpus for name, corpus in counted.items() if corpus.held_out}

    def sizes(
        self,
        corpora: Mapping[str, Any] | None = None,
        column: str = "text",
        *,
        held_out: Any = None,
        sizes: Sequence[int] | None = None,
        knee_growth: float = 1.01,
        model: Any = None,
        keep: Iterable[str | int] = (),
        keep_texts: Iterable[str] = (),
        alphabet: str | None = None,
        order: str | os.PathLike[str] | np.ndarray = "count",
    ) -> SizeTable:
        """What a vocabulary costs at a dozen sizes, for each named corpus, from one count; and the knee of the curve.

        >>> print(VocabShrinker(tokenizer).sizes({"de": "german.txt", "fr": "french.txt"}).table())  # doctest: +SKIP

        Growth is measured by splitting the held-out texts with each candidate, so it is exact.

        Args:
            corpora, column, held_out: as of `count_corpora`, to be counted first; None: what was counted by it before.
            sizes: numbers of tokens. None: twelve, from all to what has to stay.
            knee_growth: the knee is the smallest vocabulary with which no corpus grows by more, 1.01 for 1%.
            model, keep, keep_texts, alphabet, order: as of `shrink`; of a model, parameters and megabytes are told.
        Raises: UsageError, no named corpus was counted, or a value does not fit.
        """
        self.count_corpora(corpora or {}, column, held_out=held_out)
        if not self.corpora:
            raise UsageError("Sizes are measured on corpora that have a name: give corpora={'de': 'german.txt'}.")
        with no_garbage_collection():
            prepared = Preparation.of(self.tokenizer, self.counts, keep, keep_texts, alphabet, model=model)
            sizer = Sizer(prepared, self._backend, self.counts, self.corpora, order_of(self.tokenizer, order))
            rows = self.counts.size - len(prepared.without_row)
            return sizer.table(sizes, knee_growth, model_parts(model, rows) if hasattr(model, "parameters") else None)

    def sample(self, number: int) -> list[str]:
        """The beginnings of up to `number` of the counted texts, evenly chosen; at most `SAMPLE_TEXTS` are remembered."""
        return list(self._counted.sample.values())[:number]

    def save_counts(self, path: str | os.PathLike[str]) -> None:
        """Writes the counts to a safetensors file, with the fingerprint of the tokenizer that made them."""
        self._counted.save(path, tokenizer_fingerprint(self.tokenizer))

    @classmethod
    def load_counts(cls, path: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], tokenizer: Any) -> VocabShrinker:
        """A shrinker with the counts that `save_counts` wrote.

        Args:
            path: a file or several, say one from each of several machines; the counts of several add up.
            tokenizer: that counted.
        Raises: UsageError, a file is missing, or another tokenizer counted.
        """
        shrinker = cls(tokenizer)
        shrinker._counted = TokenCounts.load(path, tokenizer_fingerprint(shrinker.tokenizer))
        return shrinker

    def save_order(self, path: str | os.PathLike[str], order: str = "count") -> None:
        """Writes the order in which tokens are kept to a safetensors file, for `shrink(order=path)` at any size.

        Args:
            path: the file; its folder is created.
            order: "count" or "leaf", see `shrink`.
        Raises: UsageError, nothing was counted, or the tokenizer cannot be cut.
        """
        data = json.loads(self._backend.to_str())
        refuse_unsupported(data)
        absent = absent_ids(counted_vocabulary(data, self.counts), self.counts.size)
        ids = token_order(self.counts, order, merge_tree(data, self.counts.size), absent)
        save_order(ids, path, tokenizer_fingerprint(self.tokenizer))

    @panics_named
    def shrink(
        self,
        size: int | float | None = None,
        coverage: float | None = None,
        min_count: int | None = None,
        keep: Iterable[str | int] = (),
        keep_texts: Iterable[str] = (),
        removed: str = "resegment",
        similarity: str = "dot",
        embeddings: torch.Tensor | np.ndarray | None = None,
        multiple_of: int = 1,
        *,
        alphabet: str | None = None,
        order: str | os.PathLike[str] | np.ndarray = "count",
        model: Any = None,
        growth: float | Mapping[str, float] | None = None,
        max_mb: float | None = None,
        max_params: float | None = None,
        corpora: Mapping[str, Any] | None = None,
        held_out: Any = None,
        column: str = "text",
        others: Mapping[str, list[str]] | None = None,
    ) -> ShrunkVocab:
        """The smaller vocabulary. Of size, coverage, min_count and growth one is given; with none of them size is 0.5.

        What the tokenizer itself needs always stays: special tokens and other added ones (but for mere placeholders such as
        `<unused17>` that were never counted), the unknown token, what a chat template writes, the bytes of a byte-level model.
        A token of a BPE model comes with all that it is merged from, and the size includes that.

        Args:
            size: float in (0, 1]: share of V, rounded up. int: the exact final number of tokens, all included.
            coverage: in (0, 1]: the smallest vocabulary that covers this share of the counted tokens, e.g. 0.999.
            min_count: >= 1: every token counted at least this often.
            keep: tokens (str) or ids (int) that must stay.
            keep_texts: every token of these texts stays, e.g. prompts or verbalizers.
            removed: "resegment": text of a removed token is split into kept pieces, and the tokenizer is a plain one. "nearest":
                the most similar kept token stands for a removed one, as in the GLMD paper. "unk": the unknown token does.
            similarity: for "nearest": "dot", "cosine" or "euclidean".
            embeddings: for "nearest": [>= V, H] the teacher's input rows.
            multiple_of: round the size up to this multiple by keeping more tokens.
            alphabet: single characters that stay, wherever in a word: "seen" (those of the counted tokens, and ASCII), "scripts"
                (also the letters of the scripts that were counted, and all punctuation, figures and signs), "all", or "none".
                Text of these characters never becomes unknown. Unset: "scripts"; "seen" where a tokenizer spells characters in
                bytes; "none" where nothing is respelt.
            order: which tokens are kept first. "count": the most frequent, so that most texts keep all their tokens. "leaf": for
                BPE, made backwards by dropping the rarest token that no other is merged from, so that texts come out shorter.
                Or a file that `save_order` wrote, or an array of all ids. Smaller vocabularies lie inside larger ones.
            model: a model, or its config: the tokens it refers to by id (its generation config, too) stay.
            growth: >= 1: the fewest tokens with which held-out text takes at most that many times the tokens, 1.02 for 2% more;
                of each named corpus, or by name. Weights of the corpora are found so that all hold. It is measured by splitting
                the held-out texts with the candidates.
            max_mb, max_params: as many tokens as keep the model's weights (1e6 bytes) or parameters to that; with growth, a
                limit that it must not pass.
            corpora, held_out, column: as of `count_corpora`, to be counted first.
            others: name -> texts that are not counted, for which the ledger in the report says what was lost, too.
        Returns: `ShrunkVocab`.
        Raises: UsageError, nothing was counted, a value is out of range, a kept token does not exist, more tokens have to stay
            than `size` allows, limits contradict each other, or tokenizer, embeddings or model do not fit.
        """
        lossless = removed == "resegment"
        check_mode(removed, similarity, embeddings)
        self.count_corpora(corpora or {}, column, held_out=held_out)
        limits = Limits(growth_limits(growth, self.corpora), max_mb, max_params)
        given, limited = limits.beside({"size": size, "coverage": coverage, "min_count": min_count})
        if not given and not limited:
            size = 0.5
        with no_garbage_collection():
            prepared = Preparation.of(self.tokenizer, self.counts, keep, keep_texts, alphabet, lossless, model)
            by = order_of(self.tokenizer, order)
            if limited:
                sizer = Sizer(prepared, self._backend, self.counts, self.corpora, by)
                parts = None if model is None else model_parts(model, self.counts.size - len(prepared.without_row))
                by, size = limits.choose(sizer, parts, multiple_of)
            kept_ids = select(
                self.counts,
                size=size,
                coverage=coverage,
                min_count=min_count,
                required=prepared.required,
                absent=prepared.absent,
                multiple_of=multiple_of,
                order=by,
                merges=prepared.merges,
            )
            if lossless:
                vocab_map = VocabMap(kept_ids, original_size=self.counts.size)
                # AutoTokenizer looks at the model's config.json, where there is one.
                beside = getattr(getattr(model, "config", model), "model_type", None)
                small = shrink_tokenizer_json(prepared.data, kept_ids, prepared.vocabulary)
                tokenizer = small_tokenizer(self.tokenizer, small, self.sample(200), beside)
            else:
                tokenizer = self._mapped(kept_ids, prepared.required, removed, similarity, embeddings)
                vocab_map = tokenizer.vocab_map
            report = report_of(prepared, vocab_map, self._counted, self._token_texts(), self._cost(vocab_map, tokenizer))
            if lossless:
                report.ledger, by_script = ledger_rows(prepared, self._backend, kept_ids, self.corpora, others or {})
                for share in report.scripts:
                    share.tokens_before, share.tokens_after = by_script.get(share.script, (0, 0))
            return ShrunkVocab(
                tokenizer=tokenizer,
                vocab_map=vocab_map,
                report=report,
                original_tokenizer=self.tokenizer,
                probes=self.sample(200),
                original_counts=self.counts,
            )

    def _mapped(
        self,
        kept_ids: np.ndarray,
        required: dict[str, np.ndarray],
        removed: str,
        similarity: str,
        embeddings: torch.Tensor | np.ndarray | None,
    ) -> Any:
        """The original tokenizer with a map by which a kept token stands for each removed one."""
        from hf_glmd.vocab.mapped_tokenizer import MappedTokenizer

        if removed == "unk":
            if self.tokenizer.unk_token_id is None:
                raise UsageError("removed='unk' needs an unknown token, which the tokenizer lacks: use 'resegment' or 'nearest'.")
            old_to_small = np.full(self.counts.size, np.searchsorted(kept_ids, self.tokenizer.unk_token_id))
            old_to_small[kept_ids] = np.arange(kept_ids.size)
            vocab_map = VocabMap(kept_ids, self.counts.size, removed, old_to_small)
        else:
            assert embeddings is not None
            own = np.concatenate([required[SPECIAL], required.get(BYTES, [])]).astype(np.int64)
            old_to_small = nearest_kept(embeddings, kept_ids, similarity, special_ids=own, original_size=self.counts.size)
            vocab_map = VocabMap(kept_ids, self.counts.size, removed, old_to_small, similarity)
        return MappedTokenizer(self.tokenizer, vocab_map)

    def _token_texts(self) -> list[str]:
        """[V]: what each token stands for; special tokens and rows without a token for nothing."""
        return self._backend.decode_batch([[row] for row in range(self.counts.size)], skip_special_tokens=True)

    def _cost(self, vocab_map: VocabMap, tokenizer: Any) -> tuple[float, int]:
        """On the remembered texts: tokens after / before, and unknown tokens after less those before."""
        texts = self.sample(COST_TEXTS)
        if self._sample_ids is None:
            self._sample_ids = encode_texts(self._backend, texts)
        before = np.fromiter(itertools.chain.from_iterable(self._sample_ids), dtype=np.int64)
        if vocab_map.removed != "resegment":
            after = vocab_map.to_small(before)
        else:
            # A text of kept tokens only is split as before, so only the others are read again.
            ends = np.cumsum([0, *map(len, self._sample_ids)])
            gone = np.append(0, np.cumsum(~vocab_map.keeps(before)))[ends]
            other = np.diff(gone) > 0
            same = vocab_map.to_small(before[~np.repeat(other, np.diff(ends))])
            split = encode_texts(tokenizer.backend_tokenizer, [texts[at] for at in np.flatnonzero(other)])
            after = np.concatenate([same, *(np.array(ids, dtype=np.int64) for ids in split)])
        new_unknown = 0
        if tokenizer.unk_token_id is not None:
            unknown = vocab_map.to_original(tokenizer.unk_token_id)
            new_unknown = int((after == tokenizer.unk_token_id).sum() - (before == unknown).sum())
        if new_unknown > 0 and vocab_map.removed == "resegment":
            logger.warning(
                "%d words of the %d sampled texts become unknown: alphabet='all' or 'seen' keeps the single characters that "
                "spell them, where the tokenizer can spell; otherwise keep more tokens.",
                new_unknown,
                len(texts),
            )
        return (after.size / before.size if before.size else 1.0), new_unknown
