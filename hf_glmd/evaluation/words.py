"""What is measured of a model: how well it predicts words, beside its teacher; how large and how fast it is."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import datasets
import torch
from accelerate import PartialState
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_glmd.data.collators import drawn_words, padded
from hf_glmd.errors import UsageError
from hf_glmd.losses.reference import dense_word_prediction_loss
from hf_glmd.models.heads import WordHead, evaluating, is_masked_lm
from hf_glmd.reports.records import ModelFacts, WordScores
from hf_glmd.teachers.live import LiveTeacher

MLM_PROBABILITY = 0.15
"""Share of the words that are scored; as in BERT, which hides them."""


def masked_word_accuracy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, blocks: datasets.Dataset, **options
) -> WordScores:
    """`compare_word_predictions` without a teacher."""
    return compare_word_predictions(model, None, tokenizer, blocks, **options)


@torch.no_grad()
def compare_word_predictions(
    student: PreTrainedModel,
    teacher: LiveTeacher | None,
    tokenizer: PreTrainedTokenizerBase,
    blocks: datasets.Dataset,
    mlm_probability: float = MLM_PROBABILITY,
    seed: int = 0,
    batch_size: int = 32,
    desc: str = "Scoring words",
    visible: bool = False,
) -> WordScores:
    """Chooses a fixed share of the tokens and asks both models for them.

    Masked language models see the mask token in the place of every chosen one (none is left or replaced by chance), causal ones
    what stands before it. Which are chosen follows from `seed` and the row alone, so that scores of several models, batch sizes
    and process counts are about the same positions. The rows are shared among the processes of an `accelerate launch`; each of
    them gets the scores of all rows.

    Args:
        student: its own vocabulary is `tokenizer`'s.
        teacher: may be None.
        blocks: rows `input_ids` (list of int) in the student's ids.
        mlm_probability: in (0, 1).
        visible: leave the chosen tokens of a masked language model as they are: how well it knows what it sees.
    Raises: UsageError, the tokenizer has no mask token or there is nothing to score.
    """
    causal = not is_masked_lm(student)
    if not causal and tokenizer.mask_token_id is None:
        raise UsageError("the tokenizer has no mask token, so no word can be masked. Give the tokenizer of the model.")
    special = torch.tensor(sorted(set(tokenizer.all_special_ids)))
    state = PartialState()
    head = WordHead(student)
    device = next(student.parameters()).device
    rows = range(state.process_index, len(blocks), state.num_processes)
    totals = torch.zeros(5, dtype=torch.float64)
    starts = range(0, len(rows), batch_size)
    bar = tqdm(starts, desc=desc, unit="batch", disable=not state.is_local_main_process, leave=False)
    with evaluating(student):
        for start in bar:
            columns = blocks[list(rows[start : start + batch_size])]
            batch = padded([{"input_ids": ids} for ids in columns["input_ids"]], tokenizer)
            ids = batch["input_ids"]
            chosen = drawn_words(ids, batch["attention_mask"].bool(), mlm_probability, (seed, 0)) & ~torch.isin(ids, special)
            if causal:  # a word is predicted where the one before it stands, the first one nowhere
                chosen[:, 0] = False
                shown, predicting = ids, chosen.roll(-1, dims=1)
            else:
                shown = ids if visible else ids.masked_fill(chosen, tokenizer.mask_token_id)
                predicting = chosen
            inputs = {"input_ids": shown.to(device), "attention_mask": batch["attention_mask"].to(device)}
            hidden_ids, positions = ids[chosen].to(device), predicting.to(device)
            logits = head.logits(student, inputs, positions).float()
            scores = [torch.ones_like(hidden_ids), logits.argmax(-1) == hidden_ids]
            if teacher is not None:
                wanted = teacher.logits(inputs, positions).float()
                logits = logits[:, : teacher.size]  # rows that the tokenizer cannot address are no words
                guess = wanted.argmax(-1)
                scores += [guess == hidden_ids, dense_word_prediction_loss(logits, wanted, 1.0), guess == logits.argmax(-1)]
            totals[: len(scores)] += torch.stack([score.double().sum() for score in scores]).cpu()
    totals = _summed(totals, state)
    count = int(totals[0])
    if count == 0:
        raise UsageError(f"no token of {len(blocks)} rows was chosen at mlm_probability={mlm_probability}. Score more text.")
    if teacher is None:
        return WordScores(count, totals[1].item() / count)
    accuracy, teacher_accuracy, kl, agreement = (totals[1:] / count).tolist()
    return WordScores(count, accuracy, teacher_accuracy, kl, agreement)


def _summed(totals: Tensor, state: PartialState) -> Tensor:
    if state.num_processes > 1:
        totals = totals.to(state.device)
        torch.distributed.all_reduce(totals)
    return totals.cpu()


SPEED_SECONDS = 1.0
"""How long each speed is measured, after a warm-up; the median pass counts."""


def model_facts(
    models: Sequence[PreTrainedModel], names: Sequence[str], batch_sizes: Sequence[int], length: int
) -> list[ModelFacts]:
    """Size and speed of models, on the device they are on. The file's size is not known yet: 0.

    Args:
        names: one for each.
        batch_sizes: rows per forward pass.
        length: tokens per row; at most what all of them can read.
    """
    limits = [getattr(model.config.get_text_config(), "max_position_embeddings", None) for model in models]
    length = min([length, *(limit for limit in limits if limit)])
    speeds = {size: tokens_per_second(models, size, length) for size in batch_sizes}
    found = []
    for number, (model, name) in enumerate(zip(models, names, strict=True)):
        config = model.config.get_text_config()
        layers = config.num_hidden_layers + (getattr(config, "num_decoder_layers", 0) or 0 if config.is_encoder_decoder else 0)
        head = model.get_output_embeddings()
        tables = {one.weight.data_ptr(): one.weight.numel() for one in (model.get_input_embeddings(), head) if one is not None}
        embedding = sum(tables.values())
        found.append(
            ModelFacts(
                name=name,
                layers=layers,
                vocabulary=model.get_input_embeddings().weight.shape[0],
                embedding_parameters=embedding,
                body_parameters=model.num_parameters() - embedding,
                file_bytes=0,
                file_dtype="",
                speed_length=length,
                tokens_per_second={size: speeds[size][number] for size in batch_sizes},
            )
        )
    return found


@torch.no_grad()
def tokens_per_second(models: Sequence[PreTrainedModel], batch_size: int, length: int) -> list[float]:
    """Tokens per second of a whole forward pass of each model, logits included: the median over about `SPEED_SECONDS` each.

    They take turns, so that whatever else the machine does meets all of them alike.
    """
    rows = [
        torch.randint(model.get_input_embeddings().weight.shape[0], (batch_size, length), device=model.device) for model in models
    ]

    def one_pass(model: PreTrainedModel, ids: torch.Tensor) -> float:
        start = time.perf_counter()
        model(input_ids=ids)
        if ids.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - start

    times: list[list[float]] = [[] for _ in models]
    for model, ids in zip(models, rows, strict=True):
        model.eval()
        one_pass(model, ids)
    while min(map(sum, times)) < SPEED_SECONDS:
        for model, ids, one in zip(models, rows, times, strict=True):
            one.append(one_pass(model, ids))
    return [batch_size * length / statistics.median(one) for one in times]
