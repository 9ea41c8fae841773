"""Rows of token ids -> padded batches that say which positions count."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hf_glmd.data.packing import ORIGINAL_IDS, boundary_ids
from hf_glmd.data.rows import trimmed
from hf_glmd.errors import UsageError
from hf_glmd.losses.reference import IGNORE_INDEX

Positions = Literal["all", "masked", "labels"]


class WordPredictionCollator:
    """Pads rows, masks words and marks the positions whose predictions are distilled.

    No model reads what was hidden: the words themselves are `targets`, which only evaluation compares predictions with.

    Which words are masked follows from `seed`, the epoch and the row itself, not from the batch the row happens to be in: so
    batch size, number of processes and a resumed run change nothing, and every epoch hides other words.

    Args:
        tokenizer: pads; its mask token hides words.
        positions: "all": every non-padding position counts (the paper). "masked": only positions that hold the mask token.
            "labels": those where the rows' `labels` are not -100; of causal models those that predict such a token.
        mlm_probability: share of the tokens to mask, in [0, 1). 0 leaves the rows as they are.
        seed: of the choice.
        causal: the model predicts the next word, so that this is the target of a position.
        mask_replace_prob: share of the chosen tokens that the mask token replaces, in (0, 1]. The rest of them stay visible, and
            count where "masked" ones do: so a student keeps what it knows of visible text (BERT, arXiv:1810.04805, section 3.1).
    Raises: UsageError, words are to be masked and the tokenizer has no mask token; or "masked" with nothing to mask.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        positions: Positions = "all",
        mlm_probability: float = 0.15,
        seed: int = 0,
        causal: bool = False,
        *,
        mask_share: float | None = None,  # former name of mlm_probability
        mask_replace_prob: float = 1.0,
    ) -> None:
        mlm_probability = mlm_probability if mask_share is None else mask_share
        if positions not in ("all", "masked", "labels"):
            raise UsageError(f"positions='{positions}' is unknown. Use 'all', 'masked' or 'labels'.")
        if not 0 <= mlm_probability < 1:
            raise UsageError(f"mlm_probability={mlm_probability} is out of range. Use 0 or more and less than 1, e.g. 0.15.")
        if not 0 < mask_replace_prob <= 1:
            raise UsageError(f"mask_replace_prob={mask_replace_prob} is out of range. Use more than 0 and at most 1, e.g. 0.8.")
        _require_padding(tokenizer)
        if tokenizer.mask_token_id is None and (mlm_probability > 0 or positions == "masked"):
            raise UsageError(
                "the tokenizer has no mask token, so no word can be masked. Use positions='all' and mlm_probability=0."
            )
        self.tokenizer, self.positions, self.mlm_probability = tokenizer, positions, mlm_probability
        self.mask_replace_prob = mask_replace_prob
        self.seed, self.epoch = seed, 0
        self.causal = causal
        self._special = torch.tensor(sorted(set(tokenizer.all_special_ids)))

    @property
    def choices(self) -> dict[str, Any]:
        """What decides which tokens are masked and which positions count, as caches of all versions write it down."""
        chosen: dict[str, Any] = {"positions": self.positions, "mask_share": self.mlm_probability}
        if self.mlm_probability:
            chosen["seed"] = self.seed
        if self.mask_replace_prob != 1:
            chosen["mask_replace_prob"] = self.mask_replace_prob
        return chosen

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Returns: `input_ids`, `attention_mask` int64 [B, S]; `prediction_mask` bool [B, S], True where a position counts;
        `targets` int64 [B, S], the word that was hidden, or (where none are) the next one, -100 elsewhere."""
        labelled = self.positions == "labels"
        if labelled and any(row.get("labels") is None for row in rows):
            raise UsageError("positions='labels', and a row has no labels. Give rows with labels, or use positions='all'.")
        rows = [trimmed(row, ("labels",) if labelled else ()) for row in rows]
        batch = padded(rows, self.tokenizer)
        ids, filled = batch["input_ids"], batch["attention_mask"].bool()
        labels = self._labels(rows, ids) if labelled else None
        if self.mlm_probability > 0:
            words = filled & ~_special_tokens(rows, ids) & ~torch.isin(ids, self._special)
            chosen, hidden = (self._drawn(ids, filled, share) & words for share in (1.0, self.mask_replace_prob))
            targets = ids.masked_fill(~hidden, IGNORE_INDEX)
            ids = ids.masked_fill(hidden, self.tokenizer.mask_token_id)
        else:
            chosen = hidden = torch.zeros_like(filled)
            targets = self.next_words(rows, ids, filled) if labels is None else labels
        counted = filled if self.positions == "all" else filled & (chosen | (ids == self.tokenizer.mask_token_id))
        if labels is not None:
            counted = filled & (labels != IGNORE_INDEX)
        if ORIGINAL_IDS in rows[0]:
            batch[ORIGINAL_IDS] = self._original_ids(rows, ids, hidden)
        if "position_ids" in rows[0]:
            batch["position_ids"] = _padded_positions(rows, ids.shape[1])
            if self.causal:  # several documents in a row, each with positions of its own: they do not see each other
                del batch["attention_mask"]
        return {**batch, "input_ids": ids, "prediction_mask": counted, "targets": targets}

    def _labels(self, rows: Sequence[Mapping[str, Any]], ids: Tensor) -> Tensor:
        """int64 [B, S]; of causal models each at the position that predicts it."""
        width = ids.shape[1]
        labels = torch.tensor([[*row["labels"], *[IGNORE_INDEX] * (width - len(row["labels"]))] for row in rows])
        if not self.causal:
            return labels
        return torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], IGNORE_INDEX)], 1)

    def _original_ids(self, rows: Sequence[Mapping[str, Any]], ids: Tensor, hidden: Tensor) -> Tensor:
        """The same text as `ids`, as it was before similar tokens took the place of removed ones: int64 [B, S]."""
        original = self.tokenizer.vocab_map.to_original(ids)  # right for padding and for masked tokens
        for number, row in enumerate(rows):
            was = torch.tensor(row[ORIGINAL_IDS])
            original[number, : len(was)] = torch.where(hidden[number, : len(was)], original[number, : len(was)], was)
        return original

    def next_words(self, rows: Sequence[Mapping[str, Any]], ids: Tensor, filled: Tensor) -> Tensor:
        """What a causal model is to say at each position, -100 at the end of a text."""
        targets = torch.full_like(ids, IGNORE_INDEX)
        if not self.causal:
            return targets
        goes_on = filled[:, 1:].clone()
        if "position_ids" in rows[0]:
            goes_on &= _padded_positions(rows, ids.shape[1])[:, 1:] > 0
        targets[:, :-1] = torch.where(goes_on, ids[:, 1:], IGNORE_INDEX)
        return targets

    def _drawn(self, ids: Tensor, filled: Tensor, share: float) -> Tensor:
        """That share of the chosen tokens, bool [B, S]; a larger share holds the smaller."""
        return drawn_words(ids, filled, self.mlm_probability * share, (self.seed, self.epoch))


def drawn_words(ids: Tensor, filled: Tensor, share: float, seeds: Sequence[int]) -> Tensor:
    """A share of the words of each row, bool [B, S]; which follows from the seeds and the row alone.

    Args:
        ids, filled: int64 and bool [B, S], padded on the right.
        share: in [0, 1].
    """
    rows, lengths = ids.numpy(), filled.sum(1).tolist()
    draws = np.ones(ids.shape)
    for number, length in enumerate(lengths):  # a row's draws must not depend on the rows beside it
        row = rows[number, :length]
        draws[number, :length] = np.random.default_rng([*seeds, zlib.crc32(row.tobytes())]).random(length)
    return torch.from_numpy(draws < share) & filled


class TargetCollator:
    """Pads rows for encoder-decoders, and marks the positions of the decoder, all of which count.

    A row with `labels` has them as the decoder's text. A row without is split: the encoder reads its first part, the decoder
    predicts the rest ("prefix language modelling", arXiv:1910.10683, section 3.2.1). Where follows from `seed`, the epoch and the
    row, as the masked words of `WordPredictionCollator` do.

    Args:
        tokenizer: pads; its end token closes both parts.
        decoder_start_token_id: what the decoder begins with, as in the model's configuration.
        seed: of the choice where a row is split.
    Raises: UsageError, the tokenizer cannot pad or the model does not say what its decoder begins with.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, decoder_start_token_id: int | None, seed: int = 0) -> None:
        _require_padding(tokenizer)
        if decoder_start_token_id is None:
            raise UsageError("the model's decoder_start_token_id is not set. Set it in the configuration of the student.")
        self.tokenizer, self.start, self.seed, self.epoch = tokenizer, decoder_start_token_id, seed, 0
        self._end = boundary_ids(tokenizer)[1]

    @property
    def choices(self) -> dict[str, Any]:
        """What decides where rows are split, for a cache to be compared with."""
        return {"seed": self.seed}

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Returns: `input_ids`, `attention_mask` int64 [B, S]; `decoder_input_ids` int64 [B, D]; `prediction_mask` bool [B, D],
        True where the decoder predicts a token of its text; `targets` int64 [B, D], that token, -100 elsewhere."""
        parts = [self._parts(row) for row in rows]
        batch = padded([{"input_ids": source} for source, _ in parts], self.tokenizer)
        longest = max(len(target) for _, target in parts)
        target = padded([{"input_ids": [self.start, *target[:-1]]} for _, target in parts], self.tokenizer)
        return {
            **batch,
            "decoder_input_ids": target["input_ids"],
            "prediction_mask": target["attention_mask"].bool(),
            "targets": torch.tensor([ids + [IGNORE_INDEX] * (longest - len(ids)) for _, ids in parts]),
        }

    def _parts(self, row: Mapping[str, Any]) -> tuple[list[int], list[int]]:
        ids = trimmed(row)["input_ids"]
        if row.get("labels") is not None:
            target = [token for token in row["labels"] if token != IGNORE_INDEX]
            if not target:
                raise UsageError("a row has no labels at all, so its decoder has nothing to predict. Leave such rows out.")
            return ids, target
        draw = np.random.default_rng([self.seed, self.epoch, zlib.crc32(np.array(ids).tobytes())])
        split = int(draw.integers(1, max(2, len(ids))))
        target = ids[split:] if ids[-1:] == self._end else ids[split:] + self._end
        return ids[:split] + self._end, target or ids[-1:]


def _require_padding(tokenizer: PreTrainedTokenizerBase) -> None:
    if tokenizer.pad_token_id is None:
        raise UsageError("the tokenizer has no padding token. Set one, e.g. tokenizer.pad_token = tokenizer.eos_token.")


def _padded_positions(rows: Sequence[Mapping[str, Any]], length: int) -> Tensor:
    """int64 [B, S]; in the padding they begin at 0 again, so that it counts as a document of its own."""
    return torch.tensor([[*row["position_ids"], *range(length - len(row["position_ids"]))] for row in rows])


def padded(rows: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase) -> dict[str, Tensor]:
    """`input_ids`, `attention_mask` and, if the rows have them, `token_type_ids`, int64 [B, S], padded on the right."""
    names = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in rows[0]]
    batch = tokenizer.pad([{name: list(row[name]) for name in names} for row in rows], padding_side="right", return_tensors="pt")
    return {name: batch[name] for name in dict.fromkeys(["input_ids", "attention_mask", *names])}


def _special_tokens(rows: Sequence[Mapping[str, Any]], ids: Tensor) -> Tensor:
    """What the rows themselves call special, bool [B, S]."""
    special = torch.zeros_like(ids, dtype=torch.bool)
    for number, row in enumerate(rows):
        mask = row.get("special_tokens_mask", ())
        special[number, : len(mask)] = torch.tensor(mask, dtype=torch.bool)
    return special


ROW_COLUMNS = ("input_ids", "token_type_ids", ORIGINAL_IDS)


class ClassCollator:
    """Pads rows of token ids for classifiers; every row counts once. Labels, if rows have any, are left behind.

    Args:
        tokenizer: pads.
    Raises: UsageError, it cannot.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if tokenizer.pad_token_id is None:
            raise UsageError(
                "the tokenizer has no padding token. Set one, e.g. tokenizer.pad_token = tokenizer.eos_token, and its id as "
                "pad_token_id in the configuration of both models."
            )
        self.tokenizer = tokenizer

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Returns: `input_ids`, `attention_mask` and, if the rows have them, `token_type_ids`, int64 [B, S];
        `prediction_mask` bool [B, 1], True: every text counts; and the original ids of a `MappedTokenizer`."""
        rows = [trimmed(row) for row in rows]
        names = [name for name in (*ROW_COLUMNS, "attention_mask") if name in rows[0]]
        batch = self.tokenizer.pad(
            [{name: row[name] for name in names} for row in rows], padding_side="right", return_tensors="pt"
        )
        mask = torch.ones(len(rows), 1, dtype=torch.bool)
        return {**{name: batch[name] for name in dict.fromkeys([*names, "attention_mask"])}, "prediction_mask": mask}


class TokenClassCollator(ClassCollator):
    """Pads rows of token ids for token classifiers; every token counts that is neither padding nor special.

    Args:
        tokenizer: pads. Where a row has no `special_tokens_mask`, its special tokens are special, all but the unknown one, which
            stands for a word.
        positions: "all", or "labels": the tokens count whose `labels` are not -100, as those that begin a word.
    Raises: UsageError, the tokenizer cannot pad, or `positions` is neither.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, positions: Positions = "all") -> None:
        super().__init__(tokenizer)
        if positions not in ("all", "labels"):
            raise UsageError(f"positions='{positions}' has no meaning for classes of tokens. Use 'all' or 'labels'.")
        self.positions = positions
        self._special = torch.tensor(sorted(set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}))

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Returns: as `ClassCollator`, but `prediction_mask` bool [B, S], True where a token counts; and, of "labels", `targets`
        int64 [B, S], the labels, which `compute_metrics` gets.
        Raises: UsageError, "labels" of rows without."""
        labelled = self.positions == "labels"
        if labelled and any(row.get("labels") is None for row in rows):
            raise UsageError("positions='labels', and a row has no labels. Give rows with labels, or use positions='all'.")
        batch = super().__call__(rows)
        rows = [trimmed(row, ("labels",) if labelled else ()) for row in rows]
        ids, filled = batch["input_ids"], batch["attention_mask"].bool()
        if labelled:
            targets = torch.full_like(ids, IGNORE_INDEX)
            for number, row in enumerate(rows):
                targets[number, : len(row["labels"])] = torch.tensor(row["labels"])
            return {**batch, "prediction_mask": filled & (targets != IGNORE_INDEX), "targets": targets}
        said = torch.tensor([["special_tokens_mask" in row] for row in rows])
        special = torch.where(said, _special_tokens(rows, ids), torch.isin(ids, self._special))
        return {**batch, "prediction_mask": filled & ~special}


MODEL_INPUTS = ("input_ids", "attention_mask", "position_ids", "token_type_ids", "decoder_input_ids")
"""What collators make for both models to read, where there is such a thing."""


def model_inputs(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a batch that the models read."""
    return {name: inputs[name] for name in MODEL_INPUTS if name in inputs}


QUESTION_COLUMNS = ("blank", "candidate_ids", "sequence", "weight")
"""What cloze rows have beside `input_ids` and, for the teacher's fine-tuning alone, `answer`."""


class CandidateCollator:
    """Pads cloze rows of either kind; each batch holds one kind.

    Rows whose candidates are single tokens have one sequence and one position for each example.
    Otherwise an example has R_b sequences, and candidates of L tokens are read at L positions of one of them (see `Question`).

    Args:
        tokenizer: pads.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Returns:
        candidate_ids: int64 [B, C] of single tokens, or [B, C, L]; -100 where there is no candidate, or no further token.
        candidate_mask: bool [B, C], True where there is a candidate.
        candidate_positions, candidate_weights: only beside [B, C, L]. int64 [B, C, L], which of the N predictions each
            token is looked up in; fp32 [B, C], what the total log-probability is multiplied by.
        input_ids, attention_mask: int64 [R, S], R = B or the sum of R_b.
        prediction_mask: bool [R, S], the N positions that predict.
        right: bool [B, C], the right candidates, if the rows have an `answer`.
        """
        if "sequence" in rows[0]:
            batch = self._several_tokens(rows)
            right = [row.get("answer") for row in rows]
        else:
            batch = self._single_tokens(rows)
            right = [[row["answer"]] if "answer" in row else None for row in rows]
        if right[0] is not None:
            batch["right"] = torch.zeros_like(batch["candidate_mask"])
            for number, answers in enumerate(right):
                batch["right"][number, answers] = True
        return batch

    def _single_tokens(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        width = max(len(row["candidate_ids"]) for row in rows)
        token_ids = torch.tensor([[*row["candidate_ids"], *[-100] * (width - len(row["candidate_ids"]))] for row in rows])
        batch = padded(rows, self.tokenizer)
        blanks = torch.tensor([[row["blank"]] for row in rows])
        return {
            "candidate_ids": token_ids,  # first, as below
            "candidate_mask": token_ids >= 0,
            **batch,
            "prediction_mask": torch.arange(batch["input_ids"].shape[1]) == blanks,
        }

    def _several_tokens(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        count = max(len(row["candidate_ids"]) for row in rows)
        longest = max(len(ids) for row in rows for ids in row["candidate_ids"])
        token_ids = np.full((len(rows), count, longest), -100, dtype=np.int64)
        positions = np.zeros_like(token_ids)
        weights = np.zeros((len(rows), count), dtype=np.float32)
        sequences, blanks, widths, predictions = [], [], [], 0
        for number, row in enumerate(rows):
            # Sequences of one blank have one width: the candidates that share it are of one length.
            width = dict(zip(row["sequence"], map(len, row["candidate_ids"]), strict=True))
            starts = {}
            for which, ids in enumerate(row["input_ids"]):
                starts[which] = predictions
                sequences.append({"input_ids": ids})
                blanks.append(row["blank"][which])
                widths.append(width[which])
                predictions += width[which]
            for candidate, (which, ids) in enumerate(zip(row["sequence"], row["candidate_ids"], strict=True)):
                token_ids[number, candidate, : len(ids)] = ids
                positions[number, candidate, : len(ids)] = range(starts[which], starts[which] + len(ids))
            weights[number, : len(row["weight"])] = row["weight"]
        batch = padded(sequences, self.tokenizer)
        first, width = (torch.tensor(values)[:, None] for values in (blanks, widths))
        places = torch.arange(batch["input_ids"].shape[1])
        return {
            "candidate_ids": torch.from_numpy(token_ids),  # first, as the Trainer counts the examples of a batch by it
            "candidate_mask": torch.from_numpy(token_ids[..., 0] >= 0),
            "candidate_positions": torch.from_numpy(positions),
            "candidate_weights": torch.from_numpy(weights),
            **batch,
            "prediction_mask": (places >= first) & (places < first + width),
        }
