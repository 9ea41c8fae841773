"""Texts, data sets or files -> how often each token occurs, [V], over one or several processes."""

from __future__ import annotations

import gzip
import hashlib
import heapq
import itertools
import json
import lzma
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from torch import distributed
from tqdm.auto import tqdm

from hf_glmd.errors import UsageError, nearest

SAMPLE_TEXTS = 2_000
"""Texts remembered while counting, on which the length ratio is measured."""

SAMPLE_CHARACTERS = 4_096
"""A remembered text is cut to this many characters, so that the memory stays bounded whatever the corpus."""

_SUFFIXES = (".txt", ".jsonl", ".parquet")
_PACKED = (".gz", ".xz")
_FORMAT = "hf_glmd.counts"
_VERSION = "1"


@dataclass
class TokenCounts:
    """What one or several corpora were found to hold.

    `values` is int64 [V]. `texts` is the number of texts that were not empty. `sample` maps the number of a text (0 for the first
    one counted) to its beginning: the `SAMPLE_TEXTS` texts whose numbers hash lowest, so that the choice is uniform, the same in
    every run, and the same for any number of processes.
    """

    values: np.ndarray
    texts: int = 0
    rows: int = 0
    sample: dict[int, str] = field(default_factory=dict)

    def __add__(self, other: TokenCounts) -> TokenCounts:
        """The counts of both corpora, the other one counted after this one."""
        sample = self.sample | {self.rows + index: text for index, text in other.sample.items()}
        return TokenCounts(
            values=self.values + other.values,
            texts=self.texts + other.texts,
            rows=self.rows + other.rows,
            sample=_lowest(sample),
        )

    def save(self, path: str | os.PathLike[str], fingerprint: str) -> None:
        """Writes the counts to one safetensors file, whole or not at all.

        Args:
            path: the file; its folder is created.
            fingerprint: `tokenizer_fingerprint` of the tokenizer that counted.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        # The sample is data, not a note about it: in the header it would be parsed each time the file is opened.
        sample = np.frombuffer(json.dumps(sorted(self.sample.items())).encode(), dtype=np.uint8)
        metadata = {
            "format": _FORMAT,
            "version": _VERSION,
            "tokenizer_sha256": fingerprint,
            "texts": str(self.texts),
            "rows": str(self.rows),
        }
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            save_file({"counts": self.values, "sample": sample.copy()}, partial, metadata=metadata)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str], fingerprint: str | None = None) -> TokenCounts:
        """Reads what `save` wrote.

        Args:
            path: the file.
            fingerprint: of the tokenizer the counts are to be used with; None: any.
        Raises: UsageError, there is no such file, it holds no counts, or another tokenizer counted.
        """
        if not Path(path).is_file():
            raise UsageError(f"There are no counts at '{path}': write them with VocabShrinker.save_counts first.")
        try:
            with safe_open(path, framework="np") as file:
                metadata = file.metadata() or {}
                names = set(file.keys())
                if metadata.get("format") != _FORMAT or not {"counts", "sample"} <= names:
                    raise UsageError(f"'{path}' does not hold token counts: give a file that VocabShrinker.save_counts wrote.")
                if metadata.get("version") != _VERSION:
                    raise UsageError(
                        f"'{path}' has format version {metadata.get('version')}, this package reads {_VERSION}: count again."
                    )
                values, sample = file.get_tensor("counts"), file.get_tensor("sample")
        except UsageError:
            raise
        except Exception as error:  # safetensors raises its own class for a file that is none
            raise UsageError(f"'{path}' does not hold token counts ({error}): count again.") from error
        if fingerprint is not None and metadata["tokenizer_sha256"] != fingerprint:
            raise UsageError(
                f"The counts in '{path}' were made with another tokenizer (sha256 {metadata['tokenizer_sha256'][:12]}, "
                f"this one has {fingerprint[:12]}): count again with this tokenizer, or load the one that counted."
            )
        return cls(
            values=values.astype(np.int64),
            texts=int(metadata["texts"]),
            rows=int(metadata["rows"]),
            sample={int(index): text for index, text in json.loads(sample.tobytes().decode())},
        )


def backend_of(tokenizer: Any) -> Tokenizer:
    """The `tokenizers.Tokenizer` of a transformers tokenizer.

    Raises: UsageError, the tokenizer has none (it is written in Python only, a "slow" one).
    """
    if isinstance(tokenizer, Tokenizer):
        return tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise UsageError(
            f"{type(tokenizer).__name__} has no fast backend (no tokenizer.json), so its vocabulary cannot be counted or cut: "
            "load it with AutoTokenizer.from_pretrained, or convert it to a fast tokenizer first."
        )
    return backend


def vocabulary_rows(tokenizer: Any) -> int:
    """V: the rows an embedding table needs for this tokenizer, its highest id plus one (ids may have gaps)."""
    vocabulary = backend_of(tokenizer).get_vocab(with_added_tokens=True)
    if not vocabulary:
        raise UsageError("The tokenizer has an empty vocabulary: there is nothing to count or cut.")
    return max(vocabulary.values()) + 1


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """sha256 of the canonical tokenizer.json: what decides over ids, so without padding and truncation."""
    content = json.loads(backend_of(tokenizer).to_str())
    content.pop("padding", None)
    content.pop("truncation", None)
    text = json.dumps(_rounded(content), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@contextmanager
def untrimmed(backend: Tokenizer) -> Iterator[Tokenizer]:
    """The backend with truncation and padding off; what was set before is set again afterwards."""
    truncation, padding = backend.truncation, backend.padding
    backend.no_truncation()
    backend.no_padding()
    try:
        yield backend
    finally:
        if truncation is not None:
            backend.enable_truncation(**truncation)
        if padding is not None:
            backend.enable_padding(**padding)


def count_tokens(
    tokenizer: Any,
    source: Any,
    column: str = "text",
    *,
    batch_size: int = 1_000,
    progress: bool = True,
) -> np.ndarray:
    """How often each token occurs in `source`, without the special tokens a tokenizer adds around a text.

    Args:
        tokenizer: a fast transformers tokenizer; its truncation and padding play no part and stay as they are.
        source: texts (any iterable of str), rows (dicts with `column`), a `datasets.Dataset` or `IterableDataset`, or one or
            several files: .txt (one text per line), .jsonl (also .txt.gz, .jsonl.xz, ...), .parquet.
        column: which field of a row holds the text.
        batch_size: texts tokenized at once, >= 1. It bounds the memory and does not change the result.
        progress: show a progress bar (on the main process only).
    Returns: int64 [V], V = `vocabulary_rows(tokenizer)`.
    Raises: UsageError, the source is missing, of an unknown kind, without the column, or holds no token.
    """
    return count_corpus(tokenizer, source, column, batch_size=batch_size, progress=progress).values


def count_corpus(
    tokenizer: Any,
    source: Any,
    column: str = "text",
    *,
    batch_size: int = 1_000,
    progress: bool = True,
) -> TokenCounts:
    """`count_tokens`, with the number of texts and a sample of them. Same arguments, same errors.

    Under several processes each tokenizes every world-size-th batch and the counts are added up over all of them: the result is
    that of one process, on every process. All have to be given the same source.
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise UsageError(f"batch_size={batch_size!r} is not a number of texts: use 1 or more.")
    backend = backend_of(tokenizer)
    rows = vocabulary_rows(tokenizer)
    rank, world_size = _process()
    batches, total = _batches(source, column, batch_size)
    counts = TokenCounts(values=np.zeros(rows, dtype=np.int64))
    sample: list[tuple[int, int, str]] = []  # a heap: the highest hash on top, to be dropped first
    bar = tqdm(total=total, unit=" texts", desc="Counting tokens", disable=not progress or rank != 0)
    with untrimmed(backend), bar:
        for number, batch in enumerate(batches):
            first, counts.rows = counts.rows, counts.rows + len(batch)
            if number % world_size == rank:
                texts = {first + offset: text for offset, text in enumerate(_checked(batch, first))}
                texts = {index: text for index, text in texts.items() if text}
                encodings = backend.encode_batch_fast(list(texts.values()), add_special_tokens=False)
                ids = np.fromiter(itertools.chain.from_iterable(e.ids for e in encodings), dtype=np.int64)
                counts.values += np.bincount(ids, minlength=rows)
                counts.texts += len(texts)
                for index, text in texts.items():
                    item = (-_hash(index), -index, text[:SAMPLE_CHARACTERS])
                    if len(sample) < SAMPLE_TEXTS:
                        heapq.heappush(sample, item)
                    elif item > sample[0]:
                        heapq.heapreplace(sample, item)
            bar.update(len(batch))
    counts.sample = _lowest({-index: text for _, index, text in sample})
    if world_size > 1:
        counts = _sum_over_processes(counts)
    if not counts.values.any():
        raise UsageError(
            f"The corpus holds no token ({counts.rows} rows, {counts.texts} of them not empty): give texts to count"
            + (f", or the column that holds them (column={column!r} was read)." if counts.rows else ".")
        )
    return counts


def _process() -> tuple[int, int]:
    """The number of this process and how many there are; joins them if a launcher started several."""
    if not distributed.is_available():
        return 0, 1
    if not distributed.is_initialized():
        # Joining is left out for a lone process, which may want to set up its devices in its own way later.
        if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
            return 0, 1
        from accelerate import PartialState

        PartialState(cpu=not torch.accelerator.is_available())
    # Not PartialState's numbers: one that was made without cpu=True holds each process of a CPU machine for the only one.
    return (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)


def _sum_over_processes(counts: TokenCounts) -> TokenCounts:
    on_cpu = any(name in distributed.get_backend() for name in ("gloo", "mpi"))
    values = torch.from_numpy(np.append(counts.values, counts.texts))
    values = values if on_cpu else values.to(torch.accelerator.current_accelerator())
    distributed.all_reduce(values)
    summed = values.cpu().numpy()
    samples: list[dict[int, str]] = [{}] * distributed.get_world_size()
    distributed.all_gather_object(samples, counts.sample)
    sample = {index: text for part in samples for index, text in part.items()}
    # Every process went through all rows, so `rows` is not summed.
    return TokenCounts(values=summed[:-1].copy(), texts=int(summed[-1]), rows=counts.rows, sample=_lowest(sample))


def _hash(index: int) -> int:
    """splitmix64: spreads consecutive numbers evenly over 64 bits, the same in every Python."""
    mask = (1 << 64) - 1
    value = (index + 0x9E3779B97F4A7C15) & mask
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
    return value ^ (value >> 31)


def _lowest(sample: dict[int, str]) -> dict[int, str]:
    return {index: sample[index] for index in sorted(heapq.nsmallest(SAMPLE_TEXTS, sample, key=_hash))}


def _rounded(value: Any) -> Any:
    """Floats to 9 digits: writing and reading a tokenizer moves some Unigram scores by one bit."""
    if isinstance(value, float):
        return float(f"{value:.9g}")
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return value


def _checked(batch: list[Any], first: int) -> list[str]:
    for offset, text in enumerate(batch):
        if text is not None and not isinstance(text, str):
            raise UsageError(
                f"Row {first + offset} is of type {type(text).__name__}, not a text: give strings (or rows, and the column that "
                "holds the string)."
            )
    return [text or "" for text in batch]


def _batches(source: Any, column: str, batch_size: int) -> tuple[Iterator[list[Any]], int | None]:
    """Batches of texts, and how many texts there are if that is known."""
    if isinstance(source, Mapping):
        raise UsageError(f"The source holds several splits ({', '.join(map(str, source))}): give one of them.")
    paths = _paths(source)
    if paths is not None:
        return _chunks(itertools.chain.from_iterable(_read(path, column) for path in paths), batch_size), None
    columns = getattr(source, "column_names", None)
    if columns is not None and column not in columns:
        raise UsageError(f"The data set has no column '{column}'. {nearest(column, columns)}")
    if hasattr(source, "select_columns") and hasattr(source, "__len__"):  # datasets.Dataset: reads batches off the disk
        rows = source.select_columns([column])
        return (rows[start : start + batch_size][column] for start in range(0, len(rows), batch_size)), len(rows)
    total = len(source) if hasattr(source, "__len__") else None
    if hasattr(source, "select_columns") and columns is not None:
        source = source.select_columns([column])
    if not isinstance(source, Iterable) or isinstance(source, (bytes, bytearray)):
        raise UsageError(f"Cannot count {type(source).__name__}: give texts, a data set, or a .txt, .jsonl or .parquet file.")
    return _chunks((_field(row, column) for row in source), batch_size), total


def _chunks(rows: Iterable[Any], size: int) -> Iterator[list[Any]]:
    rows = iter(rows)
    while chunk := list(itertools.islice(rows, size)):
        yield chunk


def _field(row: Any, column: str) -> Any:
    if not isinstance(row, Mapping):
        return row
    if column not in row:
        raise UsageError(f"A row has no field '{column}'. {nearest(column, map(str, row))}")
    return row[column]


def _paths(source: Any) -> list[Path] | None:
    """The files `source` names, or None if it is something else. A lone str is a path; in a list all have to look like one."""
    if isinstance(source, (str, os.PathLike)):
        source = [source]
    elif not isinstance(source, (list, tuple)) or not source:
        return None
    elif not all(isinstance(item, os.PathLike) or (isinstance(item, str) and _looks_like_a_file(item)) for item in source):
        return None
    paths = [Path(item) for item in source]
    for path in paths:
        if not path.is_file():
            hint = "" if _looks_like_a_file(str(path)) else " To count a text itself, give it in a list."
            raise UsageError(f"There is no file '{str(path)[:200]}' to count: check the path.{hint}")
        if not _looks_like_a_file(path.name.replace(" ", "_")):
            raise UsageError(
                f"'{path}' is of an unknown kind: give .txt (one text per line), .jsonl (both also as .gz or .xz) or .parquet."
            )
    return paths


def _looks_like_a_file(name: str) -> bool:
    if any(character.isspace() for character in name):
        return False
    stem, packed = os.path.splitext(name.lower())
    name = stem if packed in _PACKED else name.lower()
    return name.endswith(_SUFFIXES) and not (packed in _PACKED and name.endswith(".parquet"))


def _open(path: Path) -> IO[str]:
    opener: Any = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix.lower(), open)
    return opener(path, "rt", encoding="utf-8")


def _read(path: Path, column: str) -> Iterator[Any]:
    name = path.name.lower()
    if name.endswith(".parquet"):
        from pyarrow import parquet  # comes with datasets

        file = parquet.ParquetFile(path)
        if column not in file.schema_arrow.names:
            raise UsageError(f"'{path}' has no column '{column}'. {nearest(column, file.schema_arrow.names)}")
        for batch in file.iter_batches(columns=[column]):
            yield from batch.column(0).to_pylist()
        return
    lines_are_rows = ".jsonl" in name
    try:
        with _open(path) as lines:
            for number, line in enumerate(lines, start=1):
                if not lines_are_rows:
                    yield line.rstrip("\r\n")
                elif line.strip():
                    try:
                        row = json.loads(line)
                    except json.JSONDecodeError as error:
                        raise UsageError(f"Line {number} of '{path}' is not JSON ({error}): mend or remove it.") from error
                    yield _field(row, column)
    except (UnicodeDecodeError, EOFError, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise UsageError(f"'{path}' cannot be read as UTF-8 text ({error}): convert it to UTF-8.") from error
