"""A corpus by name, always with the same three splits."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import datasets

from hf_glmd.data.sources import load_splits, read_texts
from hf_glmd.errors import UsageError

HELD_OUT_ROWS = 2000
"""At most that many rows are held out for validation, and as many for test, when a source has no such split."""

STREAM_HELD_OUT, STREAM_BUFFER = 1_000, 10_000
"""Texts of a stream for validation, and as many for test; and among how many the next text is drawn."""


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


def stream_corpus(
    name: str, config: str | None = None, seed: int = 0, column: str = "text", max_texts: int | None = None
) -> dict[str, Any]:
    """A corpus that is read while it is trained on, and of which nothing is kept on disk.

    Of its first 2,000 texts every other one is for validation, the rest for test; the others are `train`, shuffled among 10,000.
    Files are one stream, whatever their names; of a data set on the Hub it is the split train, unless the name says another.

    Args:
        name, config, column: as of `load_corpus`.
        seed: of the shuffling.
        max_texts: of `train`, at most.
    Returns: split -> `datasets.IterableDataset` (train) or `Dataset`, of the text column alone.
    Raises: UsageError, there is nothing of that name, or there are too few texts to hold some out.
    """
    source = name if config is None else f"{name}:{config}"
    held_out = list(itertools.islice(_texts(source, column, 0), 2 * STREAM_HELD_OUT + 1))
    if len(held_out) <= 2 * STREAM_HELD_OUT:
        raise UsageError(
            f"corpus '{name}' has {len(held_out):,} texts, and of a stream {2 * STREAM_HELD_OUT:,} are held out. "
            "Leave corpus.streaming out."
        )
    arguments = {"source": source, "column": column, "skipped": 2 * STREAM_HELD_OUT}
    features = datasets.Features({column: datasets.Value("string")})
    train = datasets.IterableDataset.from_generator(_texts, features=features, gen_kwargs=arguments)
    train = train if max_texts is None else train.take(max_texts)
    return {
        "train": train.shuffle(seed=seed, buffer_size=STREAM_BUFFER),
        "validation": datasets.Dataset.from_list(held_out[:-1:2], features=features),
        "test": datasets.Dataset.from_list(held_out[1::2], features=features),
    }


def _texts(source: str, column: str, skipped: int) -> Iterator[dict[str, str]]:
    rows = ({column: text} for text in read_texts(source, column)[0] if text)
    return itertools.islice(rows, skipped, None)


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
