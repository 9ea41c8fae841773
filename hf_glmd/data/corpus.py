"""A corpus by name, always with the same three splits."""

from __future__ import annotations

import datasets

from hf_glmd.data.sources import load_splits
from hf_glmd.errors import UsageError

HELD_OUT_ROWS = 2000
"""At most that many rows are held out for validation, and as many for test, when a source has no such split."""


def load_corpus(name: str, config: str | None = None, seed: int = 0, column: str | None = None) -> datasets.DatasetDict:
    """Loads a corpus and sees to it that it has the splits `train`, `validation` and `test`.

    Splits that the source lacks are cut off its training split: 5% each, at most 2,000 rows. Integer labels with names become
    the names.

    Args:
        name: see `load_splits`.
        config: configuration of a data set on the Hub.
        seed: of the choice of the rows that are held out.
        column: of the text, if there is one: rows without text are left out.
    Raises: UsageError, there is nothing of that name, or it is empty.
    """
    found = load_splits(name, config, column)
    if "train" not in found or len(found["train"]) == 0:
        raise UsageError(
            f"corpus '{name}' is empty: its splits are { ({s: len(p) for s, p in found.items()}) }. Give one with texts."
        )
    return datasets.DatasetDict({split: _named_labels(part) for split, part in _with_all_splits(found, seed).items()})


def require_text(corpus: datasets.DatasetDict, column: str, name: str) -> None:
    """Raises: UsageError, a corpus lacks the text column or has no text in it."""
    train = corpus["train"]
    if column not in train.column_names:
        raise UsageError(
            f"corpus '{name}' has the columns {train.column_names}, not '{column}'. Name one of them as corpus.column."
        )
    if not any(text and text.strip() for text in train[:1000][column]):
        raise UsageError(f"corpus '{name}' is empty: no text in column '{column}' of its first 1,000 rows. Give one with texts.")


def _with_all_splits(found: datasets.DatasetDict, seed: int) -> datasets.DatasetDict:
    count = min(HELD_OUT_ROWS, max(1, len(found["train"]) // 20))
    for split in ("validation", "test"):
        if split not in found:
            if len(found["train"]) <= count:
                raise UsageError(f"the corpus has {len(found['train'])} texts, too few to hold some out. Give a longer one.")
            parts = found["train"].train_test_split(test_size=count, seed=seed)
            found["train"], found[split] = parts["train"], parts["test"]
    return found


def _named_labels(part: datasets.Dataset) -> datasets.Dataset:
    for column, feature in part.features.items():
        if isinstance(feature, datasets.ClassLabel):
            names = feature.names
            values = [None if label is None or label < 0 else names[label] for label in part[column]]
            part = part.remove_columns(column).add_column(column, values)
    return part
