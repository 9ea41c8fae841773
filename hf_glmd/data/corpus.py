"""A corpus by name: installed docstrings, files, or a data set on the Hub; always with the same three splits."""

from __future__ import annotations

from pathlib import Path

import datasets

from hf_glmd.data.docstrings import docstring_corpus
from hf_glmd.errors import UsageError

SPLITS = ("train", "validation", "test")
HELD_OUT_ROWS = 2000
"""At most that many rows are held out for validation, and as many for test, when a source has no such split."""

_READERS = {".txt": "text", ".jsonl": "json", ".json": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}
_PACKED = (".gz", ".xz", ".zst", ".bz2")
_SAVED = ("dataset_info.json", "dataset_dict.json")


def load_corpus(name: str, config: str | None = None, seed: int = 0) -> datasets.DatasetDict:
    """Loads a corpus and sees to it that it has the splits `train`, `validation` and `test`.

    Splits that the source lacks are cut off its training split: 5% each, at most 2,000 rows. Integer labels with names become
    the names.

    Args:
        name: "docstrings", a file, a folder of files named after their splits, or a data set on the Hub.
        config: configuration of a data set on the Hub.
        seed: of the choice of the rows that are held out.
    Raises: UsageError, there is nothing of that name, or it is empty.
    """
    if name == "docstrings":
        return docstring_corpus()
    found = load_splits(name, config)
    if "train" not in found or len(found["train"]) == 0:
        raise UsageError(
            f"corpus '{name}' is empty: its splits are { ({s: len(p) for s, p in found.items()}) }. Give one with texts."
        )
    return datasets.DatasetDict({split: _named_labels(part) for split, part in _with_all_splits(found, seed).items()})


def load_splits(name: str, config: str | None = None) -> datasets.DatasetDict:
    """Loads a corpus, or rows of token ids, with the splits it has; "val", "dev" and "valid" become "validation".

    Args:
        name: "docstrings", a file, a folder of files named after their splits, what `save_to_disk` of a data set wrote, or a data
            set on the Hub.
        config: configuration of a data set on the Hub.
    Raises: UsageError, there is nothing of that name, or it is empty.
    """
    path = Path(name)
    try:
        if name == "docstrings":
            found = docstring_corpus()
        elif any((path / file).is_file() for file in _SAVED):
            found = datasets.load_from_disk(name)
            found = found if isinstance(found, datasets.DatasetDict) else {"train": found}
        elif path.exists():
            found = _load_files(path)
        else:
            found = datasets.load_dataset(name, config)
    except UsageError:
        raise
    except (OSError, ValueError, datasets.exceptions.DatasetNotFoundError, datasets.exceptions.DatasetGenerationError) as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__).rstrip(".")
        raise UsageError(
            f"corpus '{name}' cannot be loaded: {reason}. Give 'docstrings', a file, a folder, or a data set on the Hub."
        ) from error
    return datasets.DatasetDict({_split_name(split): part for split, part in found.items()})


def require_text(corpus: datasets.DatasetDict, column: str, name: str) -> None:
    """Raises: UsageError, a corpus lacks the text column or has no text in it."""
    train = corpus["train"]
    if column not in train.column_names:
        raise UsageError(
            f"corpus '{name}' has the columns {train.column_names}, not '{column}'. Name one of them as corpus.column."
        )
    if not any(text and text.strip() for text in train[:1000][column]):
        raise UsageError(f"corpus '{name}' is empty: no text in column '{column}' of its first 1,000 rows. Give one with texts.")


def _load_files(path: Path) -> datasets.DatasetDict:
    files = [path] if path.is_file() else sorted(p for p in path.iterdir() if _reader(p))
    if not files or not all(_reader(file) for file in files):
        raise UsageError(f"corpus '{path}' has no file to read. Known endings: {', '.join(_READERS)}, also with .gz or .xz.")
    by_split: dict[str, list[str]] = {}
    for file in files:
        stem = file.name.split(".")[0].lower()
        by_split.setdefault(_split_name(stem) if path.is_dir() and _split_name(stem) in SPLITS else "train", []).append(str(file))
    if sum(file.stat().st_size for file in files) == 0:
        raise UsageError(f"corpus '{path}' is empty. Give a file with texts.")
    options = {"delimiter": "\t"} if any(".tsv" in file.suffixes for file in files) else {}
    reader = _reader(files[0])
    assert reader is not None
    return datasets.load_dataset(reader, data_files=by_split, **options)


def _reader(path: Path) -> str | None:
    suffixes = [suffix for suffix in path.suffixes if suffix not in _PACKED]
    return _READERS.get(suffixes[-1]) if suffixes else None


def _split_name(name: str) -> str:
    return "validation" if name in ("val", "dev", "valid") else name


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
