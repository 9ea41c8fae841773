"""Tasks of a comparison: labelled texts as their publishers' files hold them, split so that the test is large enough."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import pandas
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_glmd.errors import UsageError
from hf_glmd.tasks.metrics import accuracy, matthews_correlation


@dataclass(frozen=True)
class Files:
    """Where a task's labelled texts lie.

    Attributes:
        folder: with the files `parts`, each perhaps compressed; the last one is the development set.
        text, label: columns; `pair` is that of a second text, `word` of a word that both texts are about.
        columns: names of them, of a file that does not say.
    """

    folder: str
    parts: tuple[str, ...]
    text: str
    label: str
    pair: str | None = None
    word: str | None = None
    columns: tuple[str, ...] | None = None
    score: Callable[[np.ndarray, np.ndarray], float] = accuracy


TSV, JSONL = ("train.tsv", "dev.tsv"), ("train.jsonl", "val.jsonl")
TASKS = {
    "SST-2": Files("glue/SST-2", TSV, "sentence", "label"),
    "CoLA": Files(
        "glue/CoLA", TSV, "sentence", "label", columns=("source", "label", "star", "sentence"), score=matthews_correlation
    ),
    "MRPC": Files("glue/MRPC", TSV, "#1 String", "Quality", pair="#2 String"),
    "RTE": Files("superglue/RTE", JSONL, "premise", "label", pair="hypothesis"),
    "WiC": Files("superglue/WiC", JSONL, "sentence1", "label", pair="sentence2", word="word"),
}


def load_task(name: str, folder: str | Path, train: int, test: int, seed: int = 0) -> datasets.DatasetDict:
    """`train` and `test` rows `text`, `pair` (if there is one) and `label` (int).

    The test is the development set and, where that is smaller than `test`, rows of the training set that are then not trained on.

    Args:
        folder: of the data.
        train, test: at most so many rows, drawn with the seed.
    Raises: UsageError, a file is missing.
    """
    task = TASKS[name]
    *training, development = [_read(Path(folder) / task.folder, part, task) for part in task.parts]
    rest = pandas.concat(training).sample(frac=1.0, random_state=seed)
    lacking = min(max(0, test - len(development)), len(rest) // 2)
    splits = {"train": rest[lacking : lacking + train], "test": pandas.concat([development, rest[:lacking]])[:test]}
    names = sorted(rest["label"].unique())
    return datasets.DatasetDict(
        {
            split: datasets.Dataset.from_pandas(
                rows.assign(label=[names.index(value) for value in rows["label"]]), preserve_index=False
            )
            for split, rows in splits.items()
        }
    )


def _read(folder: Path, part: str, task: Files) -> pandas.DataFrame:
    found = next((path for path in (folder / part, folder / f"{part}.xz") if path.exists()), None)
    if found is None:
        raise UsageError(f"{folder / part} is missing. Give the folder of the tasks as tasks.folder.")
    if part.endswith(".tsv"):
        rows = pandas.read_csv(
            found, sep="\t", quoting=3, encoding="utf-8-sig", names=task.columns, header=None if task.columns else 0
        )
    else:
        rows = pandas.read_json(found, lines=True)
    text = rows[task.text] if task.word is None else rows[task.word] + ": " + rows[task.text]
    columns = {"text": text, "label": rows[task.label].astype(str)} | ({"pair": rows[task.pair]} if task.pair else {})
    return pandas.DataFrame(columns)


@torch.no_grad()
def predictions(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: datasets.Dataset, length: int, batch_size: int = 64
) -> list[int]:
    """The class that a model chooses for each row."""
    model.eval()
    chosen: list[int] = []
    for batch in rows.iter(batch_size):
        texts: Sequence[list[str]] = [batch[column] for column in ("text", "pair") if column in batch]
        inputs = tokenizer(*texts, truncation=True, max_length=length, padding=True, return_tensors="pt").to(model.device)
        chosen += model(**inputs).logits.argmax(-1).tolist()
    return chosen
