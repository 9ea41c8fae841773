"""Texts, data sets or files -> how often each token occurs, [V], over one or several processes."""

from __future__ import annotations

import hashlib
import heapq
import json
import logging
import os
from array import array
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from torch import distributed
from tqdm.auto import tqdm

from hf_glmd.data.long_texts import PORTION_CHARACTERS, TextCutter
from hf_glmd.data.sources import describe, read_texts, say_empty
from hf_glmd.errors import UsageError
from hf_glmd.utils.files import check_sha256, replaced, sha256_of

logger = logging.getLogger(__name__)

SAMPLE_TEXTS = 2_000
"""Texts remembered while counting, on which the length ratio is measured."""

SAMPLE_CHARACTERS = 4_096
"""A remembered text is cut to this many characters, so that the memory stays bounded whatever the corpus."""

BATCH_TEXTS = 10_000
BATCH_CHARACTERS = PORTION_CHARACTERS
"""A batch is closed at this many texts or characters: some 100 MB while it is tokenized, and enough to keep many cores busy."""

_FORMAT = "hf_glmd.counts"
_VERSION = "2"


@dataclass
class TokenCounts:
    """What one or several corpora were found to hold.

    `values` is int64 [V], weights included. `texts` is the number of texts that were not empty, `rows` that of all. `sample`
    holds the beginnings of up to `SAMPLE_TEXTS` texts by (place, number): number counts the rows from 0, place is a hash of it
    divided by the weight of the corpus, and the texts with the lowest places are the sample. So the choice is uniform (under
    weights, in proportion to them), the same in every run, and the same for any batch size and any number of processes.
    """

    values: np.ndarray
    texts: int = 0
    rows: int = 0
    sample: dict[tuple[float, int], str] = field(default_factory=dict)

    def __add__(self, other: TokenCounts) -> TokenCounts:
        """The counts of both corpora, the other one counted after this one."""
        if self.values.size != other.values.size:
            raise UsageError(
                f"Counts of {self.values.size} and of {other.values.size} tokens do not add up: they come from different "
                "tokenizers, or tokens were added in between. Count both with the same one."
            )
        later = {(place, self.rows + number): text for (place, number), text in other.sample.items()}
        return TokenCounts(
            values=self.values + other.values,
            texts=self.texts + other.texts,
            rows=self.rows + other.rows,
            sample=_lowest(self.sample | later),
        )

    def save(self, path: str | os.PathLike[str], fingerprint: str) -> None:
        """Writes the counts to one safetensors file, whole or not at all.

        Args:
            path: the file; its folder is created.
            fingerprint: `tokenizer_fingerprint` of the tokenizer that counted.
        """
        # The sample is data, not a note about it: in the header it would be parsed each time the file is opened.
        sample = np.frombuffer(json.dumps([[*key, text] for key, text in self.sample.items()]).encode(), dtype=np.uint8)
        metadata = {
            "format": _FORMAT,
            "version": _VERSION,
            "tokenizer_sha256": fingerprint,
            "texts": str(self.texts),
            "rows": str(self.rows),
        }
        tensors = {"counts": self.values, "sample": sample.copy()}
        with replaced(path) as unfinished:
            save_file(tensors, unfinished, metadata=metadata | {"sha256": sha256_of(tensors, metadata)})

    @classmethod
    def load(cls, path: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], fingerprint: str | None = None) -> TokenCounts:
        """Reads what `save` wrote; of several files, say one from each of several machines, the sum.

        >>> TokenCounts.load(sorted(Path("counts").glob("*.safetensors")))  # doctest: +SKIP

        Args:
            path: the file, or several.
            fingerprint: of the tokenizer the counts are to be used with; None: any, but all files of one.
        Raises: UsageError, there is no such file, it holds no counts, or another tokenizer counted.
        """
        paths = [path] if isinstance(path, (str, os.PathLike)) else list(path)
        if not paths:
            raise UsageError("No file of counts was named: give at least one that VocabShrinker.save_counts wrote.")
        total, fingerprint = _load_file(paths[0], fingerprint)
        for another in paths[1:]:
            total = total + _load_file(another, fingerprint)[0]
        return total


def _load_file(path: str | os.PathLike[str], fingerprint: str | None) -> tuple[TokenCounts, str]:
    if not Path(path).is_file():
        raise UsageError(f"There are no counts at '{path}': write them with VocabShrinker.save_counts first.")
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except Exception as error:  # safetensors raises its own class for a file that is none
        raise UsageError(f"'{path}' does not hold token counts ({error}): count again.") from error
    if metadata.get("format") != _FORMAT or not {"counts", "sample"} <= set(tensors):
        raise UsageError(f"'{path}' does not hold token counts: give a file that VocabShrinker.save_counts wrote.")
    if metadata.get("version") != _VERSION:
        raise UsageError(f"'{path}' has format version {metadata.get('version')}, this package reads {_VERSION}: count again.")
    check_sha256(tensors, metadata, path, "Count again.")
    counted_by = metadata["tokenizer_sha256"]
    if fingerprint not in (None, counted_by):
        raise UsageError(
            f"The counts in '{path}' were made with another tokenizer (sha256 {counted_by[:12]}, not {fingerprint[:12]}): count "
            "again with this tokenizer, or load the one that counted."
        )
    counts = TokenCounts(
        values=tensors["counts"].astype(np.int64),
        texts=int(metadata["texts"]),
        rows=int(metadata["rows"]),
        sample={(place, number): text for place, number, text in json.loads(tensors["sample"].tobytes().decode())},
    )
    return counts, counted_by


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
    """The backend without truncation and padding, special tokens read as such; afterwards it is set as it was before."""
    truncation, padding, as_text = backend.truncation, backend.padding, backend.encode_special_tokens
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = False  # transformers leaves it on after a call with split_special_tokens
    try:
        yield backend
    finally:
        backend.encode_special_tokens = as_text
        if truncation is not None:
            backend.enable_truncation(**truncation)
        if padding is not None:
            backend.enable_padding(**padding)


@contextmanager
def settings_kept(tokenizer: Any) -> Iterator[None]:
    """Inside this context a tokenizer may be called with any truncation and padding; afterwards it is set as it was before."""
    before = trimming_of(tokenizer)
    try:
        yield
    finally:
        set_trimming(tokenizer, before)


Trimming = tuple[dict[str, Any] | None, dict[str, Any] | None]


def trimming_of(tokenizer: Any) -> Trimming:
    """The truncation and padding that a tokenizer's file says.

    Each call of a transformers tokenizer sets both in its backend, and saving it writes them into tokenizer.json.
    """
    backend = _trimmed(tokenizer)
    return (None, None) if backend is None else (backend.truncation, backend.padding)


def set_trimming(tokenizer: Any, trimming: Trimming) -> None:
    """Sets what `trimming_of` returned."""
    backend, (truncation, padding) = _trimmed(tokenizer), trimming
    if backend is not None:
        backend.no_truncation() if truncation is None else backend.enable_truncation(**truncation)
        backend.no_padding() if padding is None else backend.enable_padding(**padding)


def _trimmed(tokenizer: Any) -> Tokenizer | None:
    """What truncates and pads, of a `MappedTokenizer` in its original; None for one that is written in Python."""
    tokenizer = getattr(tokenizer, "original", tokenizer)
    return tokenizer if isinstance(tokenizer, Tokenizer) else getattr(tokenizer, "backend_tokenizer", None)


def count_corpus(
    tokenizer: Any,
    source: Any,
    column: str = "text",
    weight: float = 1.0,
    *,
    batch_size: int = BATCH_TEXTS,
    progress: bool = True,
) -> TokenCounts:
    """How often each token occurs in `source`, without the special tokens a tokenizer adds around a text.

    Tokenizes with all cores (unless TOKENIZERS_PARALLELISM=false) and in constant memory, beside the longest text itself: texts
    of more than a million characters are cut where that changes no token, see `TextCutter`.

    Under several processes each reads the source, tokenizes every world-size-th batch, and the counts are added up over all of
    them: the result is that of one process, on every process.

    Args:
        tokenizer: a fast transformers tokenizer; its truncation and padding play no part and stay as they are.
        source, column: see `hf_glmd.data.sources.read_texts`. Under several processes the same on all of them.
        weight: > 0. Each token counts that often: whole numbers are exact; other products are rounded to the nearest whole
            number, once, at the end, and tokens that occur stay at 1 or more.
        batch_size: texts tokenized at once, >= 1; fewer where they are long. It bounds the memory and does not change the result.
        progress: show a progress bar (on the main process only).
    Returns: the counts, [V] with V = `vocabulary_rows(tokenizer)`.
    Raises: UsageError, the source is missing, of an unknown kind, without the column, or holds no token.
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise UsageError(f"batch_size={batch_size!r} is not a number of texts: use 1 or more.")
    if isinstance(weight, bool) or not isinstance(weight, (int, float, np.number)) or not 0 < weight < 2**62:
        raise UsageError(f"weight={weight!r} is not the weight of a corpus: use a number above 0, such as 2 or 0.5.")
    if os.environ.get("TOKENIZERS_PARALLELISM", "true").lower() in ("", "0", "false", "off", "no", "f", "n"):
        logger.warning("TOKENIZERS_PARALLELISM is off, so only one core counts: unset it to use all.")
    backend = backend_of(tokenizer)
    rank, world_size = _process()
    texts, total = read_texts(source, column)
    counts = TokenCounts(values=np.zeros(vocabulary_rows(tokenizer), dtype=np.int64))
    bar = tqdm(total=total, unit=" texts", desc="Counting tokens", disable=not progress or rank != 0)

    cutter = TextCutter(backend, lambda text: backend.encode(text, add_special_tokens=False))

    def own_portions() -> Iterator[list[tuple[int, str]]]:
        for number, batch in enumerate(text_batches(texts, batch_size)):
            first = counts.rows
            counts.rows += len(batch)
            bar.update(len(batch))
            if number % world_size == rank:
                counts.texts += len(batch) - batch.count("")
                _add_to_sample(counts.sample, batch, first, float(weight))
                yield from cutter.portions(batch, first)

    with bar, untrimmed(backend):
        for ids in _tokenized(backend, own_portions()):
            counts.values += np.bincount(ids, minlength=counts.values.size)
    counts.sample = _lowest(counts.sample)
    if world_size > 1:
        counts = _sum_over_processes(counts)
    if not counts.values.any():
        raise UsageError(
            f"The corpus holds no token ({counts.rows} rows, {counts.texts} of them not empty): give texts to count"
            + (f", or the column that holds them (column={column!r} was read)." if counts.rows else ".")
        )
    if rank == 0:
        apart = len(getattr(source, "held_out", ()))  # rows of the corpus, too, that were not counted
        say_empty(counts.rows - counts.texts, counts.rows + apart, describe(source))
    counts.values = _weighted(counts.values, weight)
    return counts


def text_batches(texts: Iterable[str | None], batch_size: int = BATCH_TEXTS) -> Iterator[list[str]]:
    """The texts in the portions that are tokenized at once; None stands for ""."""
    batch: list[str] = []
    characters = 0
    for text in texts:
        text = text or ""
        batch.append(text)
        characters += len(text)
        if len(batch) >= batch_size or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _tokenized(backend: Tokenizer, portions: Iterator[list[tuple[int, str]]]) -> Iterator[np.ndarray]:
    """The ids of all texts of each portion, int64.

    The tokenizer works on the next portion in the background, for which it needs no Python, while this one is made an array and
    counted. More than one portion ahead brings nothing but memory: a portion keeps all cores busy.
    """
    ahead: deque[Future[list[Any]]] = deque()
    with ThreadPoolExecutor(max_workers=1) as background:
        for portion in portions:
            ahead.append(background.submit(_encode, backend, portion))
            if len(ahead) > 1:
                yield _ids(ahead.popleft())
        while ahead:
            yield _ids(ahead.popleft())


def _encode(backend: Tokenizer, portion: list[tuple[int, str]]) -> list[Any]:
    try:
        return backend.encode_batch_fast([text for _, text in portion], add_special_tokens=False)
    except TypeError:
        for number, text in portion:
            try:
                text.encode("utf-8")
            except UnicodeEncodeError as error:
                raise UsageError(f"Row {number} is no valid Unicode ({error}): mend or remove it.") from error
        raise


def _ids(encoded: Future[list[Any]]) -> np.ndarray:
    ids = array("q")  # takes the lists that `Encoding.ids` makes at twice the speed of numpy
    for encoding in encoded.result():
        ids.extend(encoding.ids)
    return np.frombuffer(ids, dtype=np.int64)


def _weighted(values: np.ndarray, weight: float) -> np.ndarray:
    if float(values.max()) * float(weight) >= 2**62:
        raise UsageError(f"weight={weight!r} makes the counts too large for 64 bits: use smaller weights in the same proportion.")
    if weight == int(weight):
        return values * int(weight)
    return np.where(values > 0, np.maximum(np.rint(values * float(weight)), 1), 0).astype(np.int64)


def _add_to_sample(sample: dict[tuple[float, int], str], batch: list[str], first: int, weight: float) -> None:
    """Puts those of the batch into the sample that belong there."""
    places = _places(first, len(batch)) / weight
    bound = max(sample)[0] if len(sample) >= SAMPLE_TEXTS else np.inf
    for offset in np.flatnonzero(places <= bound).tolist():
        if batch[offset]:
            sample[float(places[offset]), first + offset] = batch[offset][:SAMPLE_CHARACTERS]
    if len(sample) > SAMPLE_TEXTS:
        lowest = _lowest(sample)
        sample.clear()
        sample.update(lowest)


def _places(first: int, number: int) -> np.ndarray:
    """float64 [number] in [0, 1): splitmix64 of consecutive numbers, spread evenly and the same everywhere."""
    value = np.arange(first, first + number, dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (value ^ (value >> np.uint64(31))) * 2.0**-64


def _lowest(sample: dict[tuple[float, int], str]) -> dict[tuple[float, int], str]:
    return {key: sample[key] for key in heapq.nsmallest(SAMPLE_TEXTS, sample)}


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
    # Not PartialState's numbers: made without cpu=True, it reports a world of one process on machines without a GPU.
    return (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)


def _sum_over_processes(counts: TokenCounts) -> TokenCounts:
    shares: list[tuple[int, dict[tuple[float, int], str]]] = [(0, {})] * distributed.get_world_size()
    distributed.all_gather_object(shares, (counts.rows, counts.sample))
    if len({rows for rows, _ in shares}) > 1:
        raise UsageError(
            f"The processes read {[rows for rows, _ in shares]} rows, but have to read the same: give the whole corpus to each, "
            "the work is shared out here."
        )
    on_cpu = any(name in distributed.get_backend() for name in ("gloo", "mpi"))
    values = torch.from_numpy(np.append(counts.values, counts.texts))
    values = values if on_cpu else values.to(torch.accelerator.current_accelerator())
    distributed.all_reduce(values)
    summed = values.cpu().numpy()
    sample = {key: text for _, share in shares for key, text in share.items()}
    return TokenCounts(values=summed[:-1].copy(), texts=int(summed[-1]), rows=counts.rows, sample=_lowest(sample))


def _rounded(value: Any) -> Any:
    """Floats to 9 digits: writing and reading a tokenizer moves some Unigram scores by one bit."""
    if isinstance(value, float):
        return float(f"{value:.9g}")
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return value
