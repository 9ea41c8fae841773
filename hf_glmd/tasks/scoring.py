"""A model's answers to cloze questions."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from hf_glmd.data.collators import CandidateCollator
from hf_glmd.tasks.candidates import LogitsAt, candidate_log_probs
from hf_glmd.tasks.cloze import ClozeTask
from hf_glmd.tasks.formats import label_lines
from hf_glmd.utils.files import replaced


@torch.no_grad()
def score_candidates(
    logits_at: LogitsAt,
    rows: datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device,
    batch_size: int = 64,
    desc: str = "Answering",
    progress: bool = True,
) -> np.ndarray:
    """The log-probability of each candidate of each row: fp32 [n, C], -inf where a row has fewer than C.

    The rows are shared among the processes of an `accelerate launch`; each of them gets all scores.

    Args:
        logits_at: model inputs, bool positions [B, S] -> logits [N, K], e.g. `LiveTeacher.logits`.
        rows: as `ClozeTask.encode` makes them.
        batch_size: sequences per forward pass; rows with candidates of several lengths have several sequences.
        progress: show a bar.
    """
    state = PartialState()
    collate = CandidateCollator(tokenizer)
    sizes = [_size(ids) for ids in rows["input_ids"][:]]
    # Rows of like length side by side waste little on padding.
    order = sorted(range(len(rows)), key=lambda number: sizes[number])[state.process_index :: state.num_processes]
    found: list[tuple[int, np.ndarray]] = []
    batches = list(_batches(order, [count for _, count in sizes], batch_size))
    hidden = not (progress and state.is_local_main_process)
    for numbers in tqdm(batches, desc=desc, unit="batch", disable=hidden, leave=False):
        columns = rows[numbers]
        batch = collate([dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)])
        scores = candidate_log_probs(logits_at, {name: value.to(device) for name, value in batch.items()})
        found += zip(numbers, scores.float().cpu().numpy(), strict=True)
    if state.num_processes > 1:
        found = gather_object(found)
    table = np.full((len(rows), max((len(scores) for _, scores in found), default=0)), -np.inf, dtype=np.float32)
    for number, scores in found:
        table[number, : len(scores)] = scores
    return table


def predict_answers(
    logits_at: LogitsAt,
    rows: datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device,
    batch_size: int = 64,
    desc: str = "Answering",
) -> np.ndarray:
    """The most probable candidate of each row, as an index into its candidates: int64 [n]. Arguments as of `score_candidates`."""
    if not len(rows):
        return np.zeros(0, dtype=np.int64)
    return score_candidates(logits_at, rows, tokenizer, device, batch_size, desc).argmax(-1)


def averaged_scores(scores: Sequence[np.ndarray]) -> np.ndarray:
    """The log of the mean, over several patterns, of how the probability is shared among the candidates.

    Args:
        scores: of each pattern, [n, C] as `score_candidates` returns it.
    Returns: fp64 [n, C], -inf where a row has fewer candidates.
    """
    shares = [
        np.exp(table - np.logaddexp.reduce(table, axis=-1, keepdims=True)) for table in np.asarray(scores, dtype=np.float64)
    ]
    with np.errstate(divide="ignore"):
        return np.log(np.mean(shares, axis=0))


def _size(input_ids: list) -> tuple[int, int]:
    """Length of a row's sequences, the longest counting, and their number."""
    return (max(map(len, input_ids)), len(input_ids)) if isinstance(input_ids[0], list) else (len(input_ids), 1)


def _batches(order: Sequence[int], sequences: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Rows in order, as many at a time as have `batch_size` sequences together; at least one."""
    batch: list[int] = []
    count = 0
    for number in order:
        if batch and count + sequences[number] > batch_size:
            yield batch
            batch, count = [], 0
        batch.append(number)
        count += sequences[number]
    if batch:
        yield batch


def chosen_patterns(task: ClozeTask, number: int | Literal["first"] | None, causal: bool) -> list[int]:
    """The numbers of the patterns to use: the one that is asked for, or the first one or (None) all that suit the kind of model.

    Raises: UsageError, there is no such pattern, or none suits.
    """
    if number is None or number == "first":
        return task.suitable_patterns(causal)[: 1 if number == "first" else None]
    task.with_pattern(number)
    return [number]


def encode_reworded(
    task: ClozeTask,
    data: datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    patterns: list[int],
    **options: Any,
) -> list[datasets.Dataset]:
    """`ClozeTask.encode` once for each pattern, with the same columns: where one wording needs several tokens, all say so."""
    parts = [task.encode(data, tokenizer, max_length, pattern=number, **options) for number in patterns]
    several = ["sequence" in part.column_names for part in parts]
    if any(several):
        parts = [part if plain else part.map(_general) for part, plain in zip(parts, several, strict=True)]
    return parts


def _general(row: Mapping[str, Any]) -> dict[str, Any]:
    """A question of single tokens as `ClozeTask.encode` writes those of several."""
    count = len(row["candidate_ids"])
    return {
        "input_ids": [row["input_ids"]],
        "blank": [row["blank"]],
        "candidate_ids": [[token] for token in row["candidate_ids"]],
        "sequence": [0] * count,
        "weight": [1.0] * count,
    } | ({"answer": [row["answer"]]} if "answer" in row else {})


def sequences(questions: datasets.Dataset) -> datasets.Dataset:
    """All that is read to answer the questions, as rows for word prediction: `input_ids` alone."""
    questions = questions.select_columns(["input_ids"])
    if not len(questions) or not isinstance(questions[0]["input_ids"][0], list):
        return questions
    return questions.map(
        lambda batch: {"input_ids": [ids for row in batch["input_ids"] for ids in row]}, batched=True, desc="One row per sequence"
    )


def choose_answers(
    logits_at: LogitsAt, parts: list[datasets.Dataset], tokenizer: PreTrainedTokenizerBase, device: Any, desc: str
) -> np.ndarray:
    """The most probable candidate of each question, averaged over its wordings: int64 [n].

    Args:
        parts: of `encode_reworded`.
    """
    scores = [score_candidates(logits_at, part, tokenizer, device, desc=desc) for part in parts]
    return (scores[0] if len(scores) == 1 else averaged_scores(scores)).argmax(-1)


def write_predictions(
    task: ClozeTask, data: datasets.Dataset, chosen: np.ndarray, folder: str | os.PathLike[str], split: str = "test"
) -> Path:
    """Writes the predictions for one split: jsonl, for GLUE tsv.

    Args:
        task: without an official format each line is `{"idx": ..., "label": ...}`.
        data: the examples; labels are not read. Without `idx` they are numbered.
        chosen: int64 [n], the chosen candidate of each, e.g. of `predict_answers`.
        folder: made if it is not there.
        split: the file of "test" has the name the server wants, e.g. CB.jsonl; others are named after the split too.
    Returns: the file's path.
    Raises: UsageError, data and answers differ in length.
    """
    answers = task.predictions(data, np.asarray(chosen))
    indices = data["idx"][:] if "idx" in data.column_names else list(range(len(data)))
    if task.official is None:
        name, lines = f"{task.name}_{split}.jsonl", label_lines(indices, answers)
    else:
        name, lines = task.official.file_name(split), task.official.lines(indices, answers)
    path = Path(folder) / name
    with replaced(path) as unfinished:
        unfinished.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path
