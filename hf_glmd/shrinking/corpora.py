"""Corpora that are counted by name, each with texts that are held out to measure on."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_glmd.data.held_out import EVERY, HeldOutSplit, first_texts
from hf_glmd.data.sources import read_texts
from hf_glmd.errors import UsageError
from hf_glmd.vocab.counting import TokenCounts, count_corpus


@dataclass
class Corpus:
    """A named corpus: what was counted, and the texts that were not."""

    counts: TokenCounts
    held_out: list[str]


def counted_corpora(
    tokenizer: Any,
    corpora: Mapping[str, Any],
    column: str = "text",
    held_out: Any = None,
    progress: bool = True,
    known: Container[str] = (),
    spare_small: bool = False,
) -> dict[str, Corpus]:
    """Args, raises: as of `VocabShrinker.count_corpora`.

    Further args:
        known: names that were counted before.
        spare_small: of a corpus of fewer than twenty texts all are counted, and nothing is held out.
    """
    twice = [name for name in corpora if name in known]
    if twice:
        raise UsageError(f"The corpus '{twice[0]}' was counted already: give each its own name.")
    if held_out is not None and not isinstance(held_out, Mapping):
        if len(corpora) != 1:
            raise UsageError(f"held_out is one source for {len(corpora)} corpora: give a dict with one of each.")
        held_out = {name: held_out for name in corpora}
    unknown = [name for name in held_out or {} if name not in corpora]
    if unknown:
        raise UsageError(f"held_out names '{unknown[0]}', which is no corpus: use {', '.join(corpora)}.")
    apart = {
        name: first_texts(read_texts(source, column)[0], f"held_out of '{name}'") for name, source in (held_out or {}).items()
    }
    sources = {name: read_texts(source, column)[0] for name, source in corpora.items()}  # what is missing is found first
    found = {}
    for name, texts in sources.items():
        split = HeldOutSplit(texts, first=EVERY if spare_small else 2)
        counts = count_corpus(tokenizer, texts if name in apart else split, progress=progress)
        found[name] = Corpus(counts, apart.get(name) or split.held_out)
        if not found[name].held_out and not spare_small:
            raise UsageError(f"The corpus '{name}' has one text, so that none can be held out: give more, or held_out.")
    return found


def growth_limits(growth: float | Mapping[str, float] | None, corpora: Iterable[str]) -> dict[str, float]:
    """The growth that each corpus may have. Raises: UsageError, one is no number of at least 1, or there is no such corpus."""
    names = list(corpora)
    if growth is None:
        return {}
    if not names:
        raise UsageError(f"growth={growth} is measured on held-out text of a corpus: give corpora={{'text': 'corpus.txt'}}.")
    max_growth = dict(growth) if isinstance(growth, Mapping) else dict.fromkeys(names, growth)
    for name, limit in max_growth.items():
        if name not in names:
            raise UsageError(f"growth names '{name}', which is no corpus: use {', '.join(names)}.")
        if isinstance(limit, bool) or not isinstance(limit, (int, float, np.number)) or not limit >= 1:
            raise UsageError(f"growth={limit!r} of '{name}' is no number of at least 1: use e.g. 1.02 for 2% more tokens.")
    return max_growth
