"""A task as a cloze question: the model fills a blank, and each answer has words that stand for it.

Source: PET, arXiv:2001.07676 (patterns and verbalizers), arXiv:2009.07118 (candidates of several tokens).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import datasets
import numpy as np
from datasets.fingerprint import generate_random_fingerprint
from transformers import PreTrainedTokenizerBase

from hf_glmd.errors import UsageError
from hf_glmd.tasks.examples import QuestionWriter, answer_ids, answer_key, check_words_kept, column_texts, literal_ids
from hf_glmd.tasks.formats import OfficialFormat
from hf_glmd.tasks.metrics import METRICS, TaskMetric, metric_by_name
from hf_glmd.tasks.patterns import Pattern
from hf_glmd.vocab.mapped_tokenizer import MappedTokenizer

SPLIT_VERBALIZERS = ("refuse", "score")
TOO_LONG = ("refuse", "shorten")


@dataclass(frozen=True)
class ClozeTask:
    """A row of data that says how examples become questions.

    The answer is looked for among words that are the same for all examples (`verbalizers`), or among texts that each example
    brings along (`candidates`).

    Attributes:
        name: what tables call it.
        pattern: text with one `{mask}` and the columns it reads, e.g. "from {mask} : {text}"; or several such texts that ask the
            same in other words.
        verbalizers: answer as it stands in the data (see `answer_key`) -> the word that stands for it.
        label_column: where labels are, for the teacher's fine-tuning and for scoring.
        metric: the name of one in `METRICS`, or a function of predictions [n] and references [n] (both indices into `answers`)
            that gives the score.
        source: where pattern and words come from.
        candidates: the columns that hold one candidate text each, or the name of one column that holds a list of them.
        candidate_answers: what the label column says when the first, the second, ... candidate is right; the last entry stands
            for all further candidates too. Default for several columns: "0", "1", ...; for a list: the label column holds the
            right text itself, or a list of right texts.
        split_verbalizers: what to do if a tokenizer splits a verbalizer: "refuse" it, or "score" it by all of its tokens.
        length_normalised: score candidates by the mean log-probability of their tokens instead of the total.
        too_long: what becomes of an example that does not fit even without its longest field: "refuse" it, or "shorten" its other
            fields, too, the longest ones first.
        derive: one example -> the columns to add before the pattern is read.
        official: how the files of a benchmark look, for `load_task_data` and `write_predictions`.
    Raises: UsageError, the parts do not make a task.
    """

    name: str
    pattern: str | Sequence[str]
    verbalizers: Mapping[str, str] = field(default_factory=dict)
    label_column: str = "label"
    metric: str | Callable[[np.ndarray, np.ndarray], float] = field(default=METRICS["accuracy"])
    source: str = ""
    candidates: str | Sequence[str] | None = None
    candidate_answers: Sequence[str] = ()
    split_verbalizers: str = "refuse"
    length_normalised: bool = False
    too_long: str = "refuse"
    derive: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None
    official: OfficialFormat | None = None

    def __post_init__(self) -> None:
        if isinstance(self.metric, str):
            object.__setattr__(self, "metric", metric_by_name(self.metric))
        if isinstance(self.candidates, Sequence) and not isinstance(self.candidates, str) and not self.candidate_answers:
            object.__setattr__(self, "candidate_answers", tuple(str(number) for number in range(len(self.candidates))))
        if not self.patterns:
            raise UsageError(f"task {self.name} has no pattern. Give one, e.g. '{{text}} It was {{mask}}.'.")
        for pattern in self.patterns:
            if pattern.blanks != 1:
                raise UsageError(f"pattern '{pattern.text}' of task {self.name} needs the blank {{mask}} exactly once.")
            if not pattern.columns:
                raise UsageError(f"pattern '{pattern.text}' of task {self.name} reads no column. Name one, e.g. {{text}}.")
        if self.split_verbalizers not in SPLIT_VERBALIZERS:
            raise UsageError(f"split_verbalizers='{self.split_verbalizers}' is unknown. Use 'refuse' or 'score'.")
        if self.too_long not in TOO_LONG:
            raise UsageError(f"too_long='{self.too_long}' is unknown. Use 'refuse' or 'shorten'.")
        if self.candidates is None:
            self._check_verbalizers()
        else:
            self._check_candidates()

    def _check_verbalizers(self) -> None:
        if self.candidate_answers:
            raise UsageError(f"task {self.name} has candidate_answers but no candidates. Name their columns as candidates.")
        if len(self.verbalizers) < 2:
            raise UsageError(
                f"task {self.name} has {len(self.verbalizers)} verbalizers. "
                "Give at least two answers, or candidates from the data."
            )
        words = list(self.verbalizers.values())
        if len(set(words)) < len(words):
            raise UsageError(f"two answers of task {self.name} share a verbalizer: {words}. Give each a word of its own.")

    def _check_candidates(self) -> None:
        if self.verbalizers:
            raise UsageError(f"task {self.name} has both verbalizers and candidates. Give words for all examples, or columns.")
        if isinstance(self.candidates, str):
            return
        if len(self.candidates) < 2 or len(self.candidate_answers) != len(self.candidates):
            raise UsageError(
                f"task {self.name} has the candidates {list(self.candidates)} for the answers {list(self.candidate_answers)}. "
                "Give at least two columns, and one answer for each; or one column, as text, that holds a list."
            )

    # What it is made of

    @property
    def patterns(self) -> list[Pattern]:
        return [Pattern(text) for text in ([self.pattern] if isinstance(self.pattern, str) else self.pattern)]

    @property
    def columns(self) -> list[str]:
        """The columns that its patterns and candidates read."""
        named = [self.candidates] if isinstance(self.candidates, str) else list(self.candidates or ())
        return list(dict.fromkeys([*(name for pattern in self.patterns for name in pattern.columns), *named]))

    @property
    def answers(self) -> list[str]:
        """What predictions are out of; empty where each candidate is its own answer."""
        return list(self.verbalizers or self.candidate_answers)

    @property
    def answer_index(self) -> dict[str, int]:
        """`answer_key` of a label -> its place in `answers`."""
        return {answer: number for number, answer in enumerate(self.answers)}

    def with_pattern(self, number: int) -> ClozeTask:
        """The same task with one of its patterns. Raises: UsageError, there is no such pattern."""
        if not 0 <= number < len(self.patterns):
            raise UsageError(f"task {self.name} has no pattern {number}. Use 0 to {len(self.patterns) - 1}.")
        return dataclasses.replace(self, pattern=self.patterns[number].text)

    def changed(self, **fields: Any) -> ClozeTask:
        """The same task with other values of some attributes.

        Raises: UsageError, the parts do not make a task.
        """
        if fields.get("verbalizers"):
            fields = {"candidates": None, "candidate_answers": ()} | fields
        elif fields.get("candidates"):
            fields = {"verbalizers": {}, "candidate_answers": ()} | fields
        return dataclasses.replace(self, **fields)

    def usable_patterns(self, causal: bool) -> list[int]:
        """The numbers of the patterns that suit a kind of model: all, or those whose blank is behind all columns."""
        return [number for number, pattern in enumerate(self.patterns) if pattern.blank_last or not causal]

    # What a smaller vocabulary has to keep

    @property
    def keep_texts(self) -> list[str]:
        """What a smaller vocabulary must be able to write: the words and the patterns' own text."""
        words = [(" " if space else "") + word for word in self.verbalizers.values() for space in self._spacings]
        return list(dict.fromkeys([*words, *(literal for pattern in self.patterns for literal in pattern.literals)]))

    def keep_tokens(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """The ids of the words as they stand in the blank and of the patterns' own text, for `VocabShrinker.shrink(keep=...)`.

        Candidates that examples bring along are not among them.
        """
        kept = {token for space in self._spacings for ids in self._word_ids(tokenizer, space) for token in ids}
        return sorted(kept.union(*(literal_ids(pattern, tokenizer) for pattern in self.patterns)))

    def candidate_ids(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """The token id of each answer's word, in the order of `answers`.

        Raises: UsageError, a word is not a single token, or the tokenizer has no mask token.
        """
        if tokenizer.mask_token_id is None:
            raise UsageError(f"the tokenizer has no mask token, so task {self.name} has no blank. Use a masked language model.")
        self._check_words(tokenizer, refuse_split=True)
        return [ids[0] for ids in self._word_ids(tokenizer, self._spacings[0])]

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase, causal: bool | None = None) -> None:
        """Raises: UsageError, no pattern suits the kind of model, or a verbalizer is unknown or, to be refused, split.

        Args:
            causal: see `encode`.
        """
        self._pattern_for(None, tokenizer.mask_token_id is None if causal is None else causal)
        self._check_words(tokenizer, refuse_split=self.split_verbalizers == "refuse")

    @property
    def _spacings(self) -> list[bool]:
        return sorted({space for pattern in self.patterns for space in pattern.spacings})

    def _word_ids(self, tokenizer: PreTrainedTokenizerBase, spaced: bool) -> list[list[int]]:
        return answer_ids(list(self.verbalizers.values()), spaced, tokenizer)

    def _check_words(self, tokenizer: PreTrainedTokenizerBase, refuse_split: bool) -> None:
        if isinstance(tokenizer, MappedTokenizer):
            check_words_kept(self.name, self.verbalizers, self._spacings, tokenizer)
        for space in self._spacings:
            for (answer, word), ids in zip(self.verbalizers.items(), self._word_ids(tokenizer, space), strict=True):
                if not ids or tokenizer.unk_token_id in ids or (refuse_split and len(ids) > 1):
                    remedy = " or set split_verbalizers: score" if len(ids) > 1 and tokenizer.unk_token_id not in ids else ""
                    raise UsageError(
                        f"verbalizer '{word}' of answer '{answer}' in task {self.name} is not a single token but "
                        f"{tokenizer.convert_ids_to_tokens(ids)}. Choose another word for it{remedy}."
                    )

    # Data

    def prepared(self, dataset: datasets.Dataset) -> datasets.Dataset:
        """The data with the columns that the task derives, unless they are there already."""
        if self.derive is None or not len(dataset) or all(column in dataset.column_names for column in self.columns):
            return dataset
        try:
            return dataset.map(self.derive, desc=f"Preparing {self.name}")
        except KeyError as error:
            raise UsageError(
                f"task {self.name} reads the column {error}, the data have {dataset.column_names}. Rename one side."
            ) from error

    def check_columns(self, dataset: datasets.Dataset, labelled: bool) -> None:
        """Raises: UsageError, a column that the task reads is missing, or a label is missing or has no verbalizer."""
        names = self.prepared(dataset.select(range(min(1, len(dataset))))).column_names
        missing = [column for column in self.columns if column not in names]
        if missing:
            raise UsageError(f"task {self.name} reads the columns {missing}, the data have {names}. Rename one side.")
        if not labelled:
            return
        if self.label_column not in names:
            raise UsageError(
                f"the data of task {self.name} have no labels in a column '{self.label_column}', only the columns {names}. "
                "Take a split with labels, or name their column as label_column."
            )
        labels = dataset[self.label_column][:]
        if without := sum(label is None for label in labels):
            raise UsageError(
                f"{without} of {len(dataset)} examples of task {self.name} have no label in column '{self.label_column}'. "
                "Take a split with labels, or drop them."
            )
        if self.answers:
            unknown = {answer_key(value) for value in labels} - set(self.answers)
            if unknown:
                raise UsageError(
                    f"the data of task {self.name} have the answers {sorted(unknown)} in column '{self.label_column}', "
                    f"its {'verbalizers' if self.verbalizers else 'candidates'} are for {self.answers}. Add a word for each."
                )

    def encode(
        self,
        dataset: datasets.Dataset,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        labelled: bool = False,
        pattern: int | None = None,
        causal: bool | None = None,
    ) -> datasets.Dataset:
        """Examples as token ids.

        Too long examples lose the end of their longest field (see `too_long`), never the blank, the pattern or a candidate.
        Special tokens that are written out in the data ("[MASK]" in a text about BERT) are plain text there.

        Args:
            labelled: keep the label. Only the teacher's fine-tuning and the scoring may ask for it.
            pattern: number of the pattern. None: the first one that suits the kind of model.
            causal: whether the model predicts the next word. None: if the tokenizer has no mask token.
        Returns: `Dataset`. If every verbalizer is a single token: `input_ids` (list of int), `blank` (the position that
            predicts), `candidate_ids` (list of int, one per answer) and, if asked for, `answer` (index into `answers`).
            Otherwise each row has several sequences, see `Question`: `input_ids` (list of lists), `blank` (list, one per
            sequence), `candidate_ids` (list of lists, one per candidate), `sequence` (list, which one each candidate is read in),
            `weight` (list, what each candidate's total log-probability is multiplied by) and, if asked for, `answer` (list of
            the right candidates). `CandidateCollator` takes both.
        Raises: UsageError, see `check_columns`, `check_tokenizer` and `QuestionWriter`; or an example has no candidate.
        """
        causal = tokenizer.mask_token_id is None if causal is None else causal
        task = self.with_pattern(self._pattern_for(pattern, causal))
        task.check_columns(dataset, labelled)
        task._check_words(tokenizer, refuse_split=self.split_verbalizers == "refuse")
        single = self.candidates is None and all(
            len(ids) == 1 for space in task._spacings for ids in task._word_ids(tokenizer, space)
        )
        writer = QuestionWriter(task.patterns[0], tokenizer, max_length, causal, self.name, self.too_long)
        dataset = task.prepared(dataset)

        def encode_batch(batch: Mapping[str, list[Any]], numbers: list[int]) -> dict[str, list[Any]]:
            texts = {name: column_texts(batch[name], name, task.name, numbers[0]) for name in task.patterns[0].columns}
            rows = [dict(zip(texts, values, strict=True)) for values in zip(*texts.values(), strict=True)]
            candidates = task.candidate_texts(batch, numbers[0])
            questions = writer.write(rows, candidates, numbers[0])
            encoded: dict[str, list[Any]] = {
                "input_ids": [question.sequences for question in questions],
                "blank": [question.blanks for question in questions],
                "candidate_ids": [question.candidate_ids for question in questions],
            }
            if single:
                encoded |= {name: [row[0] for row in encoded[name]] for name in ("input_ids", "blank")}
                encoded["candidate_ids"] = [[ids[0] for ids in row] for row in encoded["candidate_ids"]]
            else:
                encoded["sequence"] = [question.sequence for question in questions]
                encoded["weight"] = [
                    [1 / len(ids) if task.length_normalised else 1.0 for ids in row] for row in encoded["candidate_ids"]
                ]
            if labelled:
                right = task.right_candidates(batch[task.label_column], candidates, numbers[0])
                encoded["answer"] = [row[0] for row in right] if single else right
            return encoded

        return dataset.map(
            encode_batch,
            batched=True,
            with_indices=True,
            remove_columns=dataset.column_names,
            # To look for an earlier result takes a hash of the tokenizer, half a second; what was never on disk has none.
            new_fingerprint=None if dataset.cache_files else generate_random_fingerprint(),
            desc=f"Writing {self.name} as cloze questions",
        )

    def suitable_patterns(self, causal: bool) -> list[int]:
        """`usable_patterns`. Raises: UsageError, there are none."""
        usable = self.usable_patterns(causal)
        if not usable:
            raise UsageError(
                f"all patterns of task {self.name} read a column behind the blank, which a causal model has not seen yet when it "
                "answers. Add one with {mask} behind all columns, or use a masked language model."
            )
        return usable

    def _pattern_for(self, number: int | None, causal: bool) -> int:
        return self.suitable_patterns(causal)[0] if number is None else number

    def candidate_texts(self, batch: Mapping[str, Sequence[Any]], first: int = 0) -> list[list[str]]:
        """The candidates of each example: the words, or what stands in the candidate columns.

        Args:
            batch: columns, `datasets.Dataset` or a part of one.
            first: number of the first example, for messages.
        Raises: UsageError, an example has none.
        """
        if self.candidates is None:
            return [list(self.verbalizers.values())] * len(batch[self.patterns[0].columns[0]])
        if not isinstance(self.candidates, str):
            columns = [column_texts(batch[name][:], name, self.name, first) for name in self.candidates]
            return [list(row) for row in zip(*columns, strict=True)]
        rows = [list(row or ()) for row in batch[self.candidates][:]]
        for number, row in enumerate(rows):
            if not row:
                raise UsageError(
                    f"example {first + number} of task {self.name} has no candidates in column '{self.candidates}'. "
                    "Give it some, or drop it."
                )
        return rows

    # Answers

    def right_candidates(self, labels: Iterable[Any], candidates: Iterable[Sequence[str]], first: int = 0) -> list[list[int]]:
        """The right candidates of each example, as indices.

        Args:
            labels: as they stand in the data.
            candidates: of each example.
            first: number of the first example, for messages.
        Raises: UsageError, the right text of an example is not among its candidates.
        """
        right = []
        for number, (label, row) in enumerate(zip(labels, candidates, strict=True)):
            if self.answers:
                answer = self.answer_index[answer_key(label)]
                found = [place for place in range(len(row)) if min(place, len(self.answers) - 1) == answer]
            else:
                texts = [label] if isinstance(label, str) else list(label)
                found = [place for place, text in enumerate(row) if text in texts]
            if not found:
                raise UsageError(
                    f"the answer {label!r} of example {first + number} of task {self.name} is not among its candidates "
                    f"{list(row)}. Add it, or drop the example."
                )
            right.append(found)
        return right

    def predictions(self, data: datasets.Dataset, chosen: np.ndarray) -> list[str]:
        """What the chosen candidates say: answers, or the candidates' own texts.

        Args:
            data: the examples; labels are not read.
            chosen: int64 [n], the chosen candidate of each, e.g. of `predict_answers`.
        """
        self._check_length(data, chosen)
        if self.answers:
            return [self.answers[min(place, len(self.answers) - 1)] for place in chosen.tolist()]
        candidates = self.candidate_texts(self.prepared(data))
        return [row[min(place, len(row) - 1)] for row, place in zip(candidates, chosen.tolist(), strict=True)]

    def numbered_answers(self, data: datasets.Dataset, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Predicted and right answers as numbers: int64 [n] each, indices into `answers`.

        Where candidates are their own answers: indices of candidates; a prediction that is one of several right ones stands on
        both sides.
        """
        self._check_length(data, chosen)
        if self.answers:
            gold = [self.answer_index[answer_key(label)] for label in data[self.label_column][:]]
            return np.minimum(chosen, len(self.answers) - 1), np.array(gold)
        right = self.right_candidates(data[self.label_column][:], self.candidate_texts(self.prepared(data)))
        return chosen, np.array([place if place in row else row[0] for place, row in zip(chosen.tolist(), right, strict=True)])

    def score(self, data: datasets.Dataset, chosen: np.ndarray) -> dict[str, float]:
        """How well the chosen candidates answer.

        Args:
            data: examples with labels.
            chosen: int64 [n], the chosen candidate of each, e.g. of `predict_answers`.
        Returns: the parts of the metric, and `score`, their mean; in [0, 1], a correlation in [-1, 1].
        Raises: UsageError, there is nothing to score, or no labels.
        """
        self.check_columns(data, labelled=True)
        if not len(data):
            raise UsageError(f"task {self.name} has no examples to score. Give a split that is not empty.")
        if isinstance(self.metric, TaskMetric):
            if missing := [column for column in self.metric.columns if column not in data.column_names]:
                raise UsageError(
                    f"metric {self.metric_name} of task {self.name} reads the columns {missing}, the data have "
                    f"{data.column_names}. Add them, or take another metric."
                )
            return self.metric.compute(**self.metric.inputs(self, data, np.asarray(chosen)))
        value = float(self.metric(*self.numbered_answers(data, np.asarray(chosen))))
        return {self.metric_name: value, "score": value}

    @property
    def metric_name(self) -> str:
        return getattr(self.metric, "__name__", type(self.metric).__name__)

    def commonest_answer(self, data: datasets.Dataset) -> int:
        """The candidate that is right most often: what a guess without reading always takes. Raises: UsageError, no labels."""
        self.check_columns(data, labelled=True)
        if self.answers:
            return int(np.bincount([self.answer_index[answer_key(label)] for label in data[self.label_column][:]]).argmax())
        right = self.right_candidates(data[self.label_column][:], self.candidate_texts(self.prepared(data)))
        return int(np.bincount([place for row in right for place in row]).argmax())

    def _check_length(self, data: datasets.Dataset, chosen: np.ndarray) -> None:
        if len(data) != len(chosen):
            raise UsageError(
                f"task {self.name} has {len(data)} examples and {len(chosen)} answers. Pass the data that were asked."
            )
