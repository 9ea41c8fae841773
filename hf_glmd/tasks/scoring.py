"""A model's answers to cloze questions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import datasets
import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from hf_glmd.tasks.candidates import CandidateCollator, LogitsAt, candidate_log_probs


@torch.no_grad()
def score_candidates(
    logits_at: LogitsAt,
    rows: datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device,
    batch_size: int = 64,
    desc: str = "Answering",
) -> np.ndarray:
    """The log-probability of each candidate of each row: fp32 [n, C], -inf where a row has fewer than C.

    The rows are shared among the processes of an `accelerate launch`; each of them gets all scores.

    Args:
        logits_at: model inputs, bool positions [B, S] -> logits [N, K], e.g. `LiveTeacher.logits`.
        rows: as `ClozeTask.encode` makes them.
        batch_size: sequences per forward pass; rows with candidates of several lengths have several sequences.
    """
    state = PartialState()
    collate = CandidateCollator(tokenizer)
    sizes = [_size(ids) for ids in rows["input_ids"][:]]
    # Rows of like length side by side waste little on padding.
    order = sorted(range(len(rows)), key=lambda number: sizes[number])[state.process_index :: state.num_processes]
    found: list[tuple[int, np.ndarray]] = []
    batches = list(_batches(order, [count for _, count in sizes], batch_size))
    for numbers in tqdm(batches, desc=desc, unit="batch", disable=not state.is_local_main_process, leave=False):
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
    """The likeliest candidate of each row, as an index into its candidates: int64 [n]. Arguments as of `score_candidates`."""
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
