"""From one count, what a vocabulary costs at any size; and the smallest that keeps to what somebody needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from hf_glmd.errors import UsageError
from hf_glmd.models.surgery import find_vocabulary_tensors, input_layer
from hf_glmd.reports.ledger import LedgerRow
from hf_glmd.reports.sizes import CorpusSize, ModelParts, SizeRow, SizeTable
from hf_glmd.shrinking.corpora import Corpus
from hf_glmd.shrinking.preparation import Preparation
from hf_glmd.vocab.growth import HeldOutTexts
from hf_glmd.vocab.rewrite import model_type
from hf_glmd.vocab.selection import whole_order

LEAST_SHARE, STEPS = 1 / 64, 13
"""Of the sizes in the table: from all tokens, each by the square root of 2 smaller, or less where more has to stay."""

ROUNDS = 16
"""Of weights that are tried for several corpora."""


class Sizer:
    """Vocabularies of one preparation at any size.

    Args:
        prepared: see there.
        backend: of the original tokenizer.
        counts: int64 [V], of everything that was counted.
        corpora: by name.
        order: see `whole_order`.
    """

    def __init__(
        self, prepared: Preparation, backend: Any, counts: np.ndarray, corpora: Mapping[str, Corpus], order: str | np.ndarray
    ) -> None:
        self.prepared, self.counts, self.corpora, self._by = prepared, counts, dict(corpora), order
        self._backend = backend
        self.ids, self.least, self.kinds = self.ordered(counts)

    def ordered(self, counts: np.ndarray) -> tuple[np.ndarray, int, str]:
        prepared = self.prepared
        return whole_order(counts, prepared.required, prepared.absent, self._by, prepared.merges)

    @cached_property
    def held_out(self) -> HeldOutTexts:
        texts = {name: corpus.held_out for name, corpus in self.corpora.items()}
        return HeldOutTexts(self._backend, self.prepared.data, self.prepared.vocabulary, texts, self.ids[: self.least])

    def row(self, size: int, parts: ModelParts | None = None, ids: np.ndarray | None = None) -> SizeRow:
        """What the first `size` tokens cost."""
        kept = (self.ids if ids is None else ids)[:size]
        after, before = self.held_out.split(kept), self.held_out.before
        shares = {name: corpus.counts.values[kept].sum() / corpus.counts.values.sum() for name, corpus in self.corpora.items()}
        return SizeRow(
            size=int(kept.size),
            coverage={name: float(share) for name, share in shares.items()},
            growth={name: after[name].tokens / max(before[name].tokens, 1) for name in self.corpora},
            lost={name: after[name].unknown_characters - before[name].unknown_characters for name in self.corpora},
            parameters=parts.parameters_at(int(kept.size)) if parts else None,
            mb=parts.mb_at(int(kept.size)) if parts else None,
        )

    def table(self, sizes: Sequence[int] | None, knee_growth: float, parts: ModelParts | None) -> SizeTable:
        tokens, rows = self.ids.size, self.counts.size
        if sizes is None:
            sizes = np.geomspace(tokens, max(self.least, rows * LEAST_SHARE), STEPS).round().astype(int).tolist()
        wrong = [size for size in sizes if isinstance(size, bool) or not isinstance(size, (int, np.integer)) or size < 1]
        if wrong:
            raise UsageError(f"sizes holds {wrong[0]!r}, which is not a number of tokens: use 1 to {tokens}.")
        chosen = sorted({int(np.clip(size, self.least, tokens)) for size in sizes}, reverse=True)
        table = SizeTable(
            original_size=rows,
            least_size=self.least,
            corpora={
                name: CorpusSize(
                    corpus.counts.texts, int(corpus.counts.values.sum()), len(corpus.held_out), self.held_out.before[name].tokens
                )
                for name, corpus in self.corpora.items()
            },
            rows=[self.row(size, parts) for size in chosen],
            knee_growth=knee_growth,
            model=parts,
        )
        if model_type(self.prepared.data) == "WordLevel":  # grows never, so it has no knee
            return table
        max_growth = dict.fromkeys(self.corpora, knee_growth)
        known = [(row.size, holds(row, max_growth)) for row in table.rows]
        low = max((size for size, fits in known if not fits), default=self.least - 1)
        high = min((size for size, fits in known if fits and size > low), default=tokens)
        size = smallest(low, high, lambda size: holds(self.row(size), max_growth))
        table.knee = self.row(size, parts)
        return table

    def for_growth(self, max_growth: Mapping[str, float]) -> tuple[np.ndarray, int]:
        """The order of tokens, and the fewest of it, with which held-out text of each corpus grows by no more than its limit.

        Of one corpus that is a search for the size. With several, a token is worth the sum of its shares of the corpora, each by
        a weight; those weights are best (they solve the dual of: the fewest tokens that cover so much of each) at which no corpus
        has much more than it needs, so in each round those that have get less.
        """
        high = self.ids.size
        if len(self.corpora) == 1:
            return self.ids, smallest(self.least - 1, high, lambda size: holds(self.row(size), max_growth))
        weights = {name: 1.0 if name in max_growth else 0.0 for name in self.corpora}
        best_ids, best = self.ids, smallest(self.least - 1, high, lambda size: holds(self.row(size), max_growth))
        for _ in range(ROUNDS):
            ids = self.ordered(self._weighted(weights))[0]
            size = _near(best, self.least, high, lambda size, ids=ids: holds(self.row(size, ids=ids), max_growth))
            if size < best:
                best_ids, best = ids, size
            growth = self.row(size, ids=ids).growth
            used = {name: (growth[name] - 1 + 1e-4) / (max_growth[name] - 1 + 1e-4) for name in max_growth}
            if min(used.values()) > 0.97:
                break
            weights |= {name: max(weights[name] * used[name] ** 0.5, 1e-4) for name in max_growth}
        return best_ids, best

    def _weighted(self, weights: Mapping[str, float]) -> np.ndarray:
        """int64 [V]: shares of the corpora, weighted; what was counted stays above 0."""
        largest = max(weights.values())
        total = sum(
            weights[name] / largest * corpus.counts.values / corpus.counts.values.sum() for name, corpus in self.corpora.items()
        )
        return np.where(self.counts > 0, np.maximum(np.rint(total * 2**50), 1), 0).astype(np.int64)


def ledger_rows(
    prepared: Preparation,
    backend: Any,
    kept_ids: np.ndarray,
    corpora: Mapping[str, Corpus],
    others: Mapping[str, list[str]],
) -> tuple[list[LedgerRow], dict[str, tuple[int, int]]]:
    """What these tokens cost each corpus, on its held-out text, and each of the `others`, texts that were not counted.

    Returns: the rows, and tokens of all these texts before and after by script.
    """
    texts = {name: corpus.held_out for name, corpus in corpora.items()} | dict(others)
    if not texts:
        return [], {}
    measured = HeldOutTexts(backend, prepared.data, prepared.vocabulary, texts, kept_ids)
    after, covered = measured.split(kept_ids), measured.covered(kept_ids)
    rows = [
        LedgerRow(
            name,
            name in corpora,
            len(part),
            measured.before[name].tokens,
            after[name].tokens,
            covered[name],
            after[name].unknown_characters - measured.before[name].unknown_characters,
        )
        for name, part in texts.items()
    ]
    return rows, measured.by_script(kept_ids)


@dataclass
class Limits:
    """What somebody needs instead of a number of tokens.

    Attributes:
        growth: at most, by corpus.
        max_mb, max_params: of the model.
    """

    growth: dict[str, float]
    max_mb: float | None = None
    max_params: float | None = None

    def beside(self, others: Mapping[str, Any]) -> tuple[list[str], bool]:
        """Which of the other ways to say a size are used, and whether there is a limit. Raises: UsageError, both are."""
        given = [name for name, value in others.items() if value is not None]
        own = {"growth": self.growth or None, "max_mb": self.max_mb, "max_params": self.max_params}
        limits = [name for name, value in own.items() if value is not None]
        if given and limits:
            said = " and ".join(given + limits)
            raise UsageError(f"{said} contradict each other: give one, or growth with max_mb or max_params.")
        return given, bool(limits)

    def choose(self, sizer: Sizer, parts: ModelParts | None, multiple_of: int) -> tuple[np.ndarray, int]:
        """The order of tokens, and how many of it.

        Raises: UsageError, the limits contradict each other; the nearest that can be met is named.
        """
        most, why = self._most(sizer, parts)
        most = most // multiple_of * multiple_of
        if most < sizer.least:
            must = f"{sizer.least:,} that must stay ({sizer.kinds})"
            raise UsageError(f"{why} leaves {most:,} tokens, fewer than the {must}. Use {_at(sizer.least, parts)}")
        if not self.growth:
            return sizer.ids, most
        if model_type(sizer.prepared.data) == "WordLevel":
            raise UsageError("growth is always 1 where words are never split: use coverage, which says how many become unknown.")
        ids, size = sizer.for_growth(self.growth)
        size = min(-(-size // multiple_of) * multiple_of, ids.size)
        if size > most:
            reached = sizer.row(most, ids=ids).growth
            nearest = " ".join(f"{name}={np.ceil(reached[name] * 1e4) / 1e4:.4f}" for name in self.growth)
            raise UsageError(
                f"growth={_in_words(self.growth)} takes {size:,} tokens, more than the {most:,} that {why} leaves. The nearest "
                f"that can be met: growth {nearest}, or {_at(size, parts)}"
            )
        return ids, size

    def _most(self, sizer: Sizer, parts: ModelParts | None) -> tuple[int, str]:
        given = [(name, value) for name, value in (("max_mb", self.max_mb), ("max_params", self.max_params)) if value is not None]
        if given and parts is None:
            raise UsageError(f"{given[0][0]} limits a model: give shrink(model=...).")
        most, why = sizer.ids.size, "the vocabulary"
        for name, value in given:
            left = value * 1e6 - parts.bytes_of_body if name == "max_mb" else value - parts.body
            fits = int(left // (parts.bytes_per_token if name == "max_mb" else parts.parameters_per_token))
            if fits < most:
                most, why = fits, f"{name}={value:,.10g}"
        return max(most, 0), why


def _in_words(growth: Mapping[str, float]) -> str:
    return " ".join(f"{name}={limit:g}" for name, limit in growth.items())


def _at(size: int, parts: ModelParts | None) -> str:
    if parts is None:
        return f"{size:,} tokens."
    return f"max_mb={np.ceil(parts.mb_at(size) * 100) / 100:g}, max_params={parts.parameters_at(size):,} for {size:,} tokens."


def holds(row: SizeRow, max_growth: Mapping[str, float]) -> bool:
    return all(row.growth[name] <= limit + 1e-12 for name, limit in max_growth.items())


def smallest(low: int, high: int, fits: Callable[[int], bool]) -> int:
    """The smallest number above `low`, up to `high`, that fits; `high` is known to. Between them it is to be monotonic."""
    while high - low > 1 + high // 1000:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def _near(guess: int, least: int, most: int, fits: Callable[[int], bool]) -> int:
    """As `smallest`, looked for round about a guess first."""
    low, high = max(least, int(guess * 0.9)), min(most, int(guess * 1.1) + 1)
    if not fits(high):
        return smallest(high, most, fits)
    return smallest(low, high, fits) if low < high and not fits(low) else smallest(least - 1, max(low, least), fits)


def model_parts(model: Any, tokens: int) -> ModelParts:
    """What a model weighs, by part. `tokens` is the size of its tokenizer's vocabulary, less those without a row."""
    tables = find_vocabulary_tensors(model, tokens)
    whole = {id(parameter): parameter for parameter in model.parameters()}
    counted = [(tensor, dim) for key, (tensor, dim) in tables.items() if key in whole]
    table, head = input_layer(model).weight, getattr(model.get_output_embeddings(), "weight", None)
    separate = head.numel() if id(head) in tables and head is not table else 0
    in_all = sum(tensor.numel() for tensor, _ in counted)
    weight = sum(parameter.numel() * parameter.element_size() for parameter in whole.values())
    return ModelParts(
        input_table=table.numel(),
        output_table=separate,
        other_vocabulary=in_all - table.numel() - separate,
        body=sum(parameter.numel() for parameter in whole.values()) - in_all,
        tied=head is table,
        dtype=str(table.dtype).removeprefix("torch."),
        rows=len(table),
        bytes=weight,
        parameters_per_token=sum(tensor.numel() // tensor.shape[dim] for tensor, dim in counted),
        bytes_per_token=sum(tensor.numel() // tensor.shape[dim] * tensor.element_size() for tensor, dim in counted),
        bytes_of_body=weight - sum(tensor.numel() * tensor.element_size() for tensor, _ in counted),
    )
