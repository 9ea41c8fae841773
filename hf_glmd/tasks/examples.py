"""Examples and their candidate answers as token ids, with room made for the blank."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from hf_glmd.data.packing import boundary_ids
from hf_glmd.errors import UsageError
from hf_glmd.tasks.patterns import Pattern, Spans, written
from hf_glmd.vocab.mapped_tokenizer import MappedTokenizer

_WORD_BEFORE = "a"
"""Stands before a text that follows a space, so that it is split as it is inside of a sentence."""


@dataclass(frozen=True)
class Question:
    """One example, ready to be read.

    A masked model reads as many mask tokens in the blank as a candidate has tokens: candidates of one length share a sequence.
    A causal model reads each candidate up to its last token: candidates that differ only there share a sequence.

    Attributes:
        sequences: what the model reads, each a list of ids.
        blanks: for each sequence, the first position whose prediction counts; the next ones follow it.
        candidate_ids: each candidate's ids.
        sequence: which sequence each candidate is read in.
    """

    sequences: list[list[int]]
    blanks: list[int]
    candidate_ids: list[list[int]]
    sequence: list[int]


class QuestionWriter:
    """Writes examples into a pattern.

    Too long examples lose the end of their longest field, never the blank, the pattern or a candidate. Special tokens that are
    written out in the data ("[MASK]" in a text about BERT) are plain text there.

    Args:
        pattern: one with the blank behind all columns, for a causal model.
        tokenizer: a fast tokenizer.
        max_length: token ids per sequence.
        causal: whether the model predicts the next word rather than a hidden one.
        task: its name, for messages.
        too_long: what becomes of an example that does not fit even without its longest field: "refuse" it, or "shorten" its other
            fields, too, the longest ones first.
    Raises: UsageError, the pattern leaves no room for the example, or does not suit the kind of model.
    """

    def __init__(
        self,
        pattern: Pattern,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        causal: bool,
        task: str,
        too_long: str = "refuse",
    ) -> None:
        self.pattern, self.tokenizer, self.max_length, self.causal, self.task = pattern, tokenizer, max_length, causal, task
        self.too_long = too_long
        if causal and not pattern.blank_last:
            raise UsageError(
                f"pattern '{pattern.text}' of task {task} reads a column behind the blank, which a causal model has not seen yet "
                "when it answers. Put {mask} behind all columns, or use a masked language model."
            )
        if not causal and tokenizer.mask_token_id is None:
            raise UsageError(f"the tokenizer has no mask token, so task {task} has no blank. Use a masked language model.")
        self._start, end = boundary_ids(tokenizer)
        self._end = [] if causal else end
        empty = dict.fromkeys(pattern.columns, "")
        fixed = sum(len(side.ids) for side in self._sides([empty])[0][0])
        if max_length - self._specials - fixed - (not causal) < len(pattern.columns):
            raise UsageError(
                f"pattern '{pattern.text}' leaves no room for text in {max_length} tokens. Shorten it or raise max_length."
            )

    @property
    def _specials(self) -> int:
        return len(self._start) + len(self._end)

    def write(self, rows: Sequence[Mapping[str, str]], candidates: Sequence[Sequence[str]], first: int = 0) -> list[Question]:
        """Args:
            rows: the text of each column that the pattern reads.
            candidates: of each row, at least one, none of them empty.
            first: number of the first row, for messages.
        Raises: UsageError, a row does not fit even without its longest field, or a candidate has no tokens.
        """
        sides = self._sides(rows)
        ids = self._candidates(candidates, [spaced for _, spaced in sides], first)
        return [
            self._question(parts, answers, first + number)
            for number, ((parts, _), answers) in enumerate(zip(sides, ids, strict=True))
        ]

    def _question(self, sides: list[_Side], candidate_ids: list[list[int]], number: int) -> Question:
        # All sequences of an example show the same text, so it leaves room for the longest candidate.
        unseen = 1 if self.causal else 0
        width = max(map(len, candidate_ids)) - unseen
        parts = self._fitted(sides, self.max_length - self._specials - width, number)
        before = [*self._start, *parts[0]]
        if self.causal and not before:
            raise UsageError(
                f"example {number} of task {self.task} has no text before the blank, so a causal model has nothing to answer "
                "from. Begin the pattern with a word."
            )
        after = [*parts[1], *self._end] if not self.causal else []
        shared: dict[tuple[int, ...], int] = {}
        sequence = []
        for ids in candidate_ids:
            filling = tuple(ids[:-1]) if self.causal else (self.tokenizer.mask_token_id,) * len(ids)
            sequence.append(shared.setdefault(filling, len(shared)))
        sequences = [[*before, *filling, *after] for filling in shared]
        return Question(sequences, [len(before) - unseen] * len(sequences), candidate_ids, sequence)

    def _sides(self, rows: Sequence[Mapping[str, str]]) -> list[tuple[list[_Side], bool]]:
        """The text before and after the blank, and whether a space stood before the blank: it goes to the answer."""
        left = [written(self.pattern.left, row) for row in rows]
        spaced = [text.endswith(" ") for text, _ in left]
        columns = [[(text.rstrip(" "), spans) for text, spans in left]]
        if not self.causal:
            columns.append([written(self.pattern.right, row) for row in rows])
        sides = [_sides(texts, self.tokenizer) for texts in columns]
        return [([column[number] for column in sides], spaced[number]) for number in range(len(rows))]

    def _candidates(self, candidates: Sequence[Sequence[str]], spaced: Sequence[bool], first: int) -> list[list[list[int]]]:
        wanted = list(dict.fromkeys((text, space) for row, space in zip(candidates, spaced, strict=True) for text in row))
        ids = dict.fromkeys(wanted)
        for space in (False, True):
            texts = [text for text, with_space in wanted if with_space == space]
            ids.update(zip(((text, space) for text in texts), answer_ids(texts, space, self.tokenizer), strict=True))
        rows = [[ids[text, space] for text in row] for row, space in zip(candidates, spaced, strict=True)]
        for number, (row, texts) in enumerate(zip(rows, candidates, strict=True)):
            for found, text in zip(row, texts, strict=True):
                if not found:
                    raise UsageError(f"candidate '{text}' of example {first + number} of task {self.task} is empty. Drop it.")
        return rows

    def _fitted(self, sides: list[_Side], room: int, number: int) -> list[list[int]]:
        """The ids of each side, short enough together."""
        total = sum(len(side.ids) for side in sides)
        if total <= room:
            return [side.ids for side in sides]
        owners = [side.owners() for side in sides]
        lengths = [
            int(np.sum(part == field)) for part, side in zip(owners, sides, strict=True) for field in range(len(side.spans))
        ]
        least = total - (max(lengths) if self.too_long == "refuse" else sum(lengths))
        if least > room:
            without = "its longest field" if self.too_long == "refuse" else "any field"
            remedy = ", or set too_long: shorten" if self.too_long == "refuse" else ", or drop the example"
            raise UsageError(
                f"example {number} of task {self.task} has {total} tokens, and {least} without {without}, where {room} fit into "
                f"max_length={self.max_length}. Raise max_length{remedy}."
            )
        kept = shortened(lengths, room - (total - sum(lengths)))
        parts = []
        for part, side in zip(owners, sides, strict=True):
            stays = np.ones(len(side.ids), dtype=bool)
            for field, length in enumerate(kept[: len(side.spans)]):
                stays[np.flatnonzero(part == field)[length:]] = False
            kept = kept[len(side.spans) :]
            parts.append([token for token, stay in zip(side.ids, stays, strict=True) if stay])
        return parts


@dataclass(frozen=True)
class _Side:
    """The text on one side of the blank: its ids, its encoding and where its fields stand."""

    ids: list[int]
    encoding: Any
    spans: Spans

    def owners(self) -> np.ndarray:
        """For each token the number of the field its last character is of, -1 for the pattern's own: int64 [S]."""
        last = np.array([max(start, end - 1) for start, end in self.encoding.offsets])
        owners = np.full(len(last), -1)
        for field, (start, end) in enumerate(self.spans):
            owners[(last >= start) & (last < end)] = field
        return owners


def _sides(texts: Iterable[tuple[str, Spans]], tokenizer: PreTrainedTokenizerBase) -> list[_Side]:
    texts = list(texts)
    encoded = tokenizer([text for text, _ in texts], add_special_tokens=False, split_special_tokens=True, verbose=False)
    if encoded.encodings is None:
        raise UsageError(f"{type(tokenizer).__name__} does not say where its tokens stand in the text. Use a fast tokenizer.")
    rows = zip(encoded["input_ids"], encoded.encodings, texts, strict=True)
    return [_Side(ids, encoding, spans) for ids, encoding, (_, spans) in rows]


def literal_ids(pattern: Pattern, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The ids of the pattern's own text, as it is split between words."""
    words = dict.fromkeys(pattern.columns, _WORD_BEFORE)
    ids: set[int] = set()
    left, spans = written(pattern.left, words)
    for side in _sides([(left.rstrip(" "), spans), written(pattern.right, words)], tokenizer):
        ids.update(np.array(side.ids, dtype=int)[side.owners() < 0].tolist() if side.ids else ())
    return ids


def answer_ids(texts: Sequence[str], spaced: bool, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Each text as it is split in the blank.

    Args:
        spaced: whether a space stands before the blank; in most vocabularies it belongs to the word that follows.
    """
    if not texts:
        return []
    texts = [text.strip() for text in texts]
    if not spaced:
        return _plain_ids(texts, tokenizer)
    # Alone, " yes" is two spaces and a word to tokenizers that put a space before every text themselves.
    (before,) = _plain_ids([_WORD_BEFORE], tokenizer)
    inside = _plain_ids([f"{_WORD_BEFORE} {text}" if text else _WORD_BEFORE for text in texts], tokenizer)
    alone = _plain_ids([f" {text}" if text else "" for text in texts], tokenizer)
    return [
        ids[len(before) :] if ids[: len(before)] == before and len(ids) > len(before) else other
        for ids, other in zip(inside, alone, strict=True)
    ]


def _plain_ids(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]


def shortened(lengths: Sequence[int], room: int) -> list[int]:
    """Lengths that fit together, the longest ones cut down to the same."""
    cap = bisect_right(range(max(lengths) + 1), room, key=lambda cap: sum(min(length, cap) for length in lengths)) - 1
    kept = [min(length, cap) for length in lengths]
    for number, length in enumerate(lengths):
        if length > cap and sum(kept) < room:
            kept[number] += 1
    return kept


def answer_key(value: Any) -> str:
    """A label as recipes spell it: booleans as `true` and `false`, numbers by their digits."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def column_texts(values: list[Any], column: str, task: str, first: int) -> list[str]:
    if None in values:
        raise UsageError(
            f"example {first + values.index(None)} of task {task} has nothing in column '{column}'. Fill it in, or drop it."
        )
    return [str(value) for value in values]


def check_words_kept(task: str, verbalizers: Mapping[str, str], spacings: Sequence[bool], tokenizer: MappedTokenizer) -> None:
    """A removed word would be scored as the token that stands for it, which may be the word of another answer.

    Args:
        task: its name, for the message.
        verbalizers: answer -> word.
        spacings: whether a space stands before the blank, one entry for each way of it.
    Raises: UsageError, a token of a word was removed.
    """
    kept = set(tokenizer.vocab_map.kept_ids.tolist())
    for spaced in spacings:
        ids_of_words = answer_ids(list(verbalizers.values()), spaced, tokenizer.original)
        for (answer, word), ids in zip(verbalizers.items(), ids_of_words, strict=True):
            if lost := [token for token in ids if token not in kept]:
                name = tokenizer.original.convert_ids_to_tokens(lost[0])
                instead = tokenizer.convert_ids_to_tokens(tokenizer.vocab_map.to_small(lost[0]))
                raise UsageError(
                    f"the token '{name}' of verbalizer '{word}' (answer '{answer}' of task {task}) was removed from the "
                    f"vocabulary, and '{instead}' stands for it. Shrink with keep=task.keep_tokens(tokenizer)."
                )
