"""What a smaller vocabulary holds and costs, and what was compared with the original, as dataclasses, to and from JSON."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hf_glmd.errors import UsageError
from hf_glmd.reports.ledger import LedgerRow
from hf_glmd.reports.records import EmbeddingScores
from hf_glmd.utils.files import write_json
from hf_glmd.vocab.scripts import ScriptShare

REPORT_FILE = "vocab_report.json"


POINTS, MARKS = 512, 40
"""Of the plot: ranks at which the curve is known, and rare tokens that are marked."""


@dataclass
class ModelSizes:
    """What a model weighs; tensors that are shared count once."""

    parameters: int = field(metadata={"help": "All of them."})
    vocabulary_parameters: int = field(metadata={"help": "Those of tables and biases with one entry per token."})
    bytes: int = field(metadata={"help": "Of all parameters, in the dtype they have in memory."})

    @classmethod
    def of(cls, model: Any, vocabulary_parameters: int) -> ModelSizes:
        return cls(
            parameters=model.num_parameters(),
            vocabulary_parameters=vocabulary_parameters,
            bytes=sum(tensor.numel() * tensor.element_size() for tensor in model.parameters()),
        )


@dataclass
class LongTail:
    """How often each token was counted, commonest first, and which were kept: the numbers of a plot.

    The commonest tokens are kept and the others are not, with exceptions: special tokens, single characters, parts of kept tokens
    and what keep= names stay however rare they are. `cut` is the rank that parts kept from removed with the fewest exceptions.
    """

    ranks: list[int] = field(metadata={"help": "From 1, thinned."})
    counts: list[int] = field(metadata={"help": "Of the tokens at these ranks."})
    kept_shares: list[float] = field(metadata={"help": "Share kept of the tokens behind the rank before, up to each rank."})
    cut: int = field(metadata={"help": "The rank of the last token before the cut."})
    n_rarer_kept: int = field(default=0, metadata={"help": "Kept tokens behind the cut."})
    rarer_kept_ranks: list[int] = field(default_factory=list, metadata={"help": "Their ranks, thinned."})
    rarer_kept_counts: list[int] = field(default_factory=list, metadata={"help": "Their counts, thinned."})

    @classmethod
    def of(cls, counts: np.ndarray, kept_ids: np.ndarray) -> LongTail:
        """From int64 [V], [K]. Ranks are thinned evenly over their logarithm."""
        order = np.argsort(-counts, kind="stable")
        kept = np.isin(order, kept_ids)
        balance = np.concatenate([[0], np.cumsum(np.where(kept, 1, -1))])
        cut = int(balance.argmax())
        places = np.geomspace(1, counts.size, POINTS).round().astype(np.int64)
        ranks = np.union1d(places, [rank for rank in (cut, cut + 1) if 1 <= rank <= counts.size])
        steps = np.diff(ranks, prepend=0)
        rarer = np.flatnonzero(kept[cut:]) + cut + 1
        marks = np.searchsorted(rarer, np.geomspace(rarer[0], rarer[-1], MARKS)) if rarer.size else []
        marked = rarer[np.unique(np.minimum(marks, rarer.size - 1)).astype(np.int64)]
        return cls(
            ranks=ranks.tolist(),
            counts=counts[order[ranks - 1]].tolist(),
            kept_shares=(np.diff(np.cumsum(kept)[ranks - 1], prepend=0) / steps).round(4).tolist(),
            cut=cut,
            n_rarer_kept=int(rarer.size),
            rarer_kept_ranks=marked.tolist(),
            rarer_kept_counts=counts[order[marked - 1]].tolist(),
        )


@dataclass
class VerifyReport:
    """What `ShrunkVocab.verify` compared. It exists only if all of it agreed."""

    texts: int = field(default=0, metadata={"help": "Texts read."})
    texts_all_kept: int = field(default=0, metadata={"help": "Texts whose tokens were all kept: they have the same tokens."})
    texts_same_decoded: int = field(
        default=0,
        metadata={"help": "Texts that decode as with the original tokenizer: all of them, but for removed='nearest' or 'unk'."},
    )
    tokens_reached: int = field(
        default=0, metadata={"help": "Kept tokens that are produced from their own string, before and after."}
    )
    unreachable: int = field(default=0, metadata={"help": "Kept tokens that were produced before and are no longer."})
    unreachable_before: int = field(
        default=0, metadata={"help": "Kept tokens, added ones left out, that the original does not produce from their string."}
    )
    model_texts: int = field(default=0, metadata={"help": "Texts and pairs of texts that both models read."})
    max_logit_difference: float | None = field(
        default=None, metadata={"help": "Largest difference between the logits and the kept columns of the large model's."}
    )
    max_hidden_difference: float | None = field(
        default=None, metadata={"help": "Largest difference between the hidden states of the two models, over all layers."}
    )

    def summary(self) -> str:
        """For people, one line each for texts, tokens and models."""
        lines = [
            f"{self.texts:,} texts verified: {self.texts_same_decoded:,} read as before, {self.texts_all_kept:,} have kept "
            "tokens only, and the same ones as before."
        ]
        if self.tokens_reached:
            lines.append(
                f"{self.tokens_reached:,} kept tokens come out of their own string, as before; {self.unreachable_before:,} "
                "never did."
            )
        if self.model_texts:
            differences = (("logits", self.max_logit_difference), ("hidden states", self.max_hidden_difference))
            words = [f"{name} differ by {value:.3g} at most" for name, value in differences if value is not None]
            lines.append(f"{self.model_texts:,} inputs read by both models: {', '.join(words)}.")
        return "\n".join(lines)


@dataclass
class VocabReport:
    """What a smaller vocabulary holds and what it costs."""

    original_size: int = field(metadata={"help": "V: rows the tokenizer could address before."})
    size: int = field(metadata={"help": "K: tokens kept, exactly the ids 0 to K-1 of the new tokenizer."})
    coverage: float = field(metadata={"help": "Share of the counted tokens that were kept tokens."})
    length_ratio: float = field(
        metadata={"help": "Tokens after / before, on up to 500 of the counted texts (their first 4,096 characters each)."}
    )
    counted_tokens: int = field(metadata={"help": "Tokens in the counted corpora."})
    texts: int = field(metadata={"help": "Texts in the counted corpora, empty ones left out."})
    n_special: int = field(metadata={"help": "Special and added tokens, and others the tokenizer itself refers to."})
    n_alphabet: int = field(metadata={"help": "Further tokens kept so that what was removed can be spelt: single characters."})
    n_keep: int = field(metadata={"help": "Further tokens kept because of keep= and keep_texts=."})
    removed_examples: list[str] = field(default_factory=list, metadata={"help": "The most frequent removed tokens."})
    kept_examples: list[str] = field(
        default_factory=list, metadata={"help": "The least frequent tokens that were kept for their count."}
    )
    scripts: list[ScriptShare] = field(
        default_factory=list, metadata={"help": "How much of each writing system was kept, the largest first."}
    )
    new_unknown: int = field(
        default=0, metadata={"help": "Unknown tokens after, less those before, on the texts of length_ratio."}
    )
    n_closure: int = field(default=0, metadata={"help": "Kept though rarer than some removed ones: others are merged from them."})
    n_placeholders_removed: int = field(default=0, metadata={"help": "Added tokens such as <unused17> that were never counted."})
    without_row: list[str] = field(
        default_factory=list, metadata={"help": "Tokens that the model's table has no row for: removed."}
    )
    characters_lost: int = field(
        default=0, metadata={"help": "Characters that the original spells and that become the unknown token now."}
    )
    scripts_lost: list[str] = field(default_factory=list, metadata={"help": "Writing systems of these, the most first."})
    n_control: int = field(
        default=0,
        metadata={
            "help": "Pieces kept because they are written like sentinels, language codes or chat marks, which no text holds."
        },
    )
    control_examples: list[str] = field(default_factory=list, metadata={"help": "Some of these."})
    long_tail: LongTail | None = field(default=None, metadata={"help": "How often tokens were counted, for the plot."})
    verified: VerifyReport | None = field(default=None, metadata={"help": "What was compared last with the original."})
    model_before: ModelSizes | None = field(default=None, metadata={"help": "The model that was cut last, before."})
    model_after: ModelSizes | None = field(default=None, metadata={"help": "The same, after."})
    ledger: list[LedgerRow] = field(
        default_factory=list, metadata={"help": "What each named corpus costs, on held-out text, and further texts on request."}
    )
    embeddings: EmbeddingScores | None = field(
        default=None, metadata={"help": "Of an encoder that was cut: how far its embeddings moved."}
    )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes JSON."""
        write_json(path, dataclasses.asdict(self))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> VocabReport:
        """Reads what `save` wrote. Raises: UsageError, there is no such file, or it holds something else."""
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
            parts = {"long_tail": LongTail, "verified": VerifyReport, "model_before": ModelSizes, "model_after": ModelSizes}
            parts["embeddings"] = EmbeddingScores
            for name, part in parts.items():
                if data.get(name) is not None:
                    data[name] = part(**data[name])
            data["ledger"] = [LedgerRow(**row) for row in data.get("ledger", [])]
            data["scripts"] = [ScriptShare(**share) for share in data.get("scripts", [])]
            return cls(**data)
        except (OSError, AttributeError, TypeError, ValueError) as error:
            raise UsageError(f"'{path}' cannot be read ({error}): save the vocabulary again.") from error
