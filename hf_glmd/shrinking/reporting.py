"""What a cut is told to have done: the counts of its report."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from hf_glmd.reports.vocab_report import VocabReport
from hf_glmd.shrinking.preparation import Preparation
from hf_glmd.shrinking.required_tokens import (
    BYTES,
    CHARACTERS,
    CONTROL,
    KEEP,
    KEEP_TEXTS,
    MODEL,
    SPECIAL,
    TEMPLATE,
    placeholder_ids,
)
from hf_glmd.vocab.counting import TokenCounts
from hf_glmd.vocab.rewrite import byte_tokens, control_pieces, model_type
from hf_glmd.vocab.scripts import script_of, script_shares
from hf_glmd.vocab.vocab_map import VocabMap

logger = logging.getLogger(__name__)

EXAMPLES = 20
"""Of tokens that a report names."""


def report_of(
    prepared: Preparation, vocab_map: VocabMap, counted: TokenCounts, token_texts: Sequence[str], cost: tuple[float, int]
) -> VocabReport:
    """The report of a cut.

    Args:
        counted: how often each of the V tokens was read.
        token_texts: [V], what each token stands for.
        cost: tokens after / before, and unknown tokens after less those before, on a sample of the counted texts.
    """
    counts, required, kept_ids = counted.values, prepared.required, vocab_map.kept_ids
    floor = np.zeros(counts.size, dtype=bool)
    n_kind = dict.fromkeys((SPECIAL, TEMPLATE, MODEL, CONTROL, BYTES, CHARACTERS, KEEP, KEEP_TEXTS), 0)
    for name, ids in required.items():
        n_kind[name] = int((~floor[ids]).sum())
        floor[ids] = True
    kept = vocab_map.keeps(np.arange(counts.size))
    commonest_removed = int(counts[~kept].max(initial=0))
    free = [token for token_id, token in placeholder_ids(prepared.data).items() if not kept[token_id]]
    if free:
        logger.info("%d placeholder tokens that were never counted are removed, such as %r.", len(free), free[0])
    removed = np.flatnonzero(~kept & (counts > 0))
    removed = removed[np.lexsort((removed, -counts[removed]))][:EXAMPLES].tolist()
    rarest = np.flatnonzero(kept & ~floor & (counts >= max(commonest_removed, 1)))
    rarest = rarest[np.lexsort((rarest, counts[rarest]))][:EXAMPLES].tolist()
    marks = control_pieces(prepared.data)
    examples = {*removed, *rarest}
    names = {token_id: token for token, token_id in prepared.vocabulary.items() if token_id in examples}
    return VocabReport(
        original_size=vocab_map.original_size,
        size=vocab_map.size,
        coverage=float(counts[kept_ids].sum() / counts.sum()),
        length_ratio=cost[0],
        counted_tokens=int(counts.sum()),
        texts=counted.texts,
        n_special=n_kind[SPECIAL] + n_kind[TEMPLATE] + n_kind[MODEL],
        without_row=prepared.without_row,
        **_lost_characters(prepared, kept),
        n_control=n_kind[CONTROL],
        control_examples=[marks[token_id] for token_id in required.get(CONTROL, np.empty(0, int))[:EXAMPLES].tolist()],
        n_alphabet=n_kind[BYTES] + n_kind[CHARACTERS],
        n_keep=n_kind[KEEP] + n_kind[KEEP_TEXTS],
        n_closure=int((kept & ~floor & (counts < commonest_removed)).sum()),
        n_placeholders_removed=len(free),
        removed_examples=[names[token_id] for token_id in removed],
        kept_examples=[names[token_id] for token_id in rarest],
        scripts=script_shares(token_texts, counts, kept_ids),
        new_unknown=cost[1],
    )


def _lost_characters(prepared: Preparation, kept: np.ndarray) -> dict[str, Any]:
    """How many characters the original spells by a token of their own that is gone, and of which scripts."""
    data = prepared.data
    if byte_tokens(data) or model_type(data) == "WordLevel":
        return {}
    prefix = data["model"].get("continuing_subword_prefix") or ""
    forms: dict[str, list[int]] = {}
    for token, token_id in prepared.vocabulary.items():
        inside = bool(prefix) and token.startswith(prefix) and len(token) > len(prefix)
        body = token[len(prefix) :] if inside else token
        if len(body) == 1:
            forms.setdefault(body, []).append(token_id)
    lost = [character for character, ids in forms.items() if not kept[ids].all()]
    scripts = Counter(script_of(character) for character in lost)
    return {"characters_lost": len(lost), "scripts_lost": [script for script, _ in scripts.most_common()]}
