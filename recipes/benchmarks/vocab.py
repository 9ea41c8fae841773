"""Measures the vocabulary tools beside what they are built on: counting, rewriting, nearest tokens, longer texts.

    python recipes/benchmarks/vocab.py                          # minutes, offline
    python recipes/benchmarks/vocab.py --full --tokenizer DIR   # the sizes the targets are stated for, with a real tokenizer

All that is compared is measured in one run, in turns, and the best of the repetitions counts. `README.md` says what each part is.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import itertools
import json
import math
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import aligned, append_results
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from hf_glmd import UsageError, VocabShrinker, docstring_corpus
from hf_glmd.data.sources import read_texts
from hf_glmd.vocab.counting import backend_of, count_corpus, text_batches
from hf_glmd.vocab.vocab_map import nearest_kept

CORPUS_CHARACTERS = 20_000_000
"""Of the corpus at most that much is read."""

FULL = {"memory_mb": [10.0, 100.0, 1000.0], "nearest": [(50_257, 25_128, 768), (128_000, 64_000, 512)]}


@dataclass
class Row:
    """One comparison. `ratio` is what `target` is about; what could not be measured is None, and `note` says why."""

    part: str
    case: str
    ours: float | None = None
    reference: float | None = None
    unit: str = "s"
    reference_name: str = ""
    ratio: float | None = None
    target: str = ""
    note: str = ""
    N: int | None = None
    V: int | None = None
    H: int | None = None

    @property
    def met(self) -> bool | None:
        if self.ratio is None or not self.target:
            return None
        sign, bound = self.target.split()
        return self.ratio >= float(bound) if sign == ">=" else self.ratio <= float(bound)


class Bench:
    """What the parts share: the options, the texts, the tokenizers, and the progress bar."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.texts = load_texts(options.corpus, options.column)
        self.bar = tqdm(desc="Loading", unit=" measurements", leave=False)
        self._shrinkers: dict[str, VocabShrinker] = {}

    def step(self, name: str) -> None:
        self.bar.set_description(name)
        self.bar.update()

    def shrinker(self, kind: str) -> VocabShrinker:
        """Of "bpe" or "unigram": the tokenizer that was named, or one made up; it has counted the texts."""
        if kind not in self._shrinkers:
            self.step(f"Making ready the {kind} tokenizer")
            path, size = getattr(self.options, f"{kind}_tokenizer"), getattr(self.options, f"{kind}_sizes")[0]
            tokenizer = path or {"bpe": made_up_bpe, "unigram": made_up_unigram}[kind](self.texts, size)
            self._shrinkers[kind] = VocabShrinker(tokenizer).count(self.texts, progress=False)
        return self._shrinkers[kind]

    def name(self, kind: str) -> str:
        path = getattr(self.options, f"{kind}_tokenizer")
        return f"{Path(path).name if path else f'made-up {kind}'} {self.shrinker(kind).counts.size:,}"

    def best_times(self, name: str, *work: Callable[[], Any]) -> list[float]:
        """The least seconds that each took. They take turns, so that what else the machine does hits all of them."""
        seconds = [math.inf] * len(work)
        for repetition in range(self.options.repeats):
            self.step(f"{name} ({repetition + 1}/{self.options.repeats})")
            for index, run in enumerate(work):
                started = time.perf_counter()
                run()
                seconds[index] = min(seconds[index], time.perf_counter() - started)
        return seconds


def load_texts(corpus: str, column: str) -> list[str]:
    rows = docstring_corpus()["train"]["text"][:] if corpus == "docstrings" else read_texts(corpus, column)[0]
    texts, characters = [], 0
    for text in itertools.chain.from_iterable(text_batches(rows)):
        if text:
            texts.append(text)
            characters += len(text)
        if characters >= CORPUS_CHARACTERS:
            break
    if not texts:
        raise UsageError(f"--corpus {corpus} holds no text: give 'docstrings', a file, a folder or the name of a data set.")
    return texts


def counting(bench: Bench) -> Iterator[Row]:
    """`count_corpus` beside the tokenizer's `encode_batch_fast` alone, on the same batches, with the results thrown away."""
    for kind in ("bpe", "unigram"):
        tokenizer = bench.shrinker(kind).tokenizer
        backend = backend_of(tokenizer)
        batches = list(text_batches(bench.texts))
        characters = sum(map(len, bench.texts))

        def bare(backend: Tokenizer = backend, batches: list[list[str]] = batches) -> None:
            for batch in batches:
                backend.encode_batch_fast(batch, add_special_tokens=False)

        def ours(tokenizer: Any = tokenizer) -> None:
            count_corpus(tokenizer, bench.texts, progress=False)

        reference, seconds = bench.best_times(f"Counting with {bench.name(kind)}", bare, ours)
        yield Row(
            "counting",
            bench.name(kind),
            seconds,
            reference,
            reference_name="encode_batch_fast",
            ratio=reference / seconds,
            target=">= 0.9",
            note=f"ratio of the rates; {characters / seconds / 1e6:.2f} M characters/s",
            N=len(bench.texts),
            V=bench.shrinker(kind).counts.size,
        )


def memory(bench: Bench) -> Iterator[Row]:
    """Peak memory of a process that counts so much text, beside that of the least text."""
    smallest = None
    with tempfile.TemporaryDirectory() as folder:
        backend_of(bench.shrinker("bpe").tokenizer).save(f"{folder}/tokenizer.json")
        Path(folder, "texts.json").write_text(json.dumps(bench.texts))
        for megabytes in sorted(bench.options.memory_mb):
            bench.step(f"Counting {megabytes:g} MB in a process of its own")
            command = [sys.executable, __file__, "--count-in", folder, "--memory-mb", str(megabytes)]
            run = subprocess.run(command, capture_output=True, text=True, check=True)
            before, peak = map(float, run.stdout.split())
            smallest = smallest or peak
            yield Row(
                "memory",
                f"{megabytes:g} MB of text",
                peak,
                smallest,
                "MiB",
                f"{min(bench.options.memory_mb):g} MB",
                ratio=peak / smallest,
                target="<= 1.1",
                note=f"{before:.0f} MiB before counting",
                V=bench.shrinker("bpe").counts.size,
            )


def count_in(folder: str, megabytes: float) -> None:
    """The process of `memory`: counts the texts again and again until it is enough, and prints the peaks before and after."""
    tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
    texts = json.loads(Path(folder, "texts.json").read_text())

    def enough() -> Iterator[str]:
        left = megabytes * 1e6
        for text in itertools.cycle(texts):
            yield text
            left -= len(text.encode())
            if left <= 0:
                return

    before = peak_mib()
    count_corpus(tokenizer, enough(), progress=False)
    print(before, peak_mib())  # noqa: T201


def peak_mib() -> float:
    """Most memory this process ever had."""
    status = Path("/proc/self/status")
    if status.exists():  # not getrusage: on Linux it starts with what the parent process had
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def rewriting(bench: Bench) -> Iterator[Row]:
    """`VocabShrinker(...).shrink(...)` without the counting, beside `skeletoken` removing the same tokens."""
    for kind, target in (("bpe", "<= 0.6"), ("unigram", "<= 0.25")):
        shrinker, size = bench.shrinker(kind), getattr(bench.options, f"{kind}_sizes")[1]
        name = f"{bench.name(kind)} to {size:,}"
        row = Row("rewriting", name, reference_name="skeletoken", target=target, V=shrinker.counts.size)
        made: list[Any] = []

        def ours(shrinker: VocabShrinker = shrinker, size: int = size, made: list[Any] = made) -> None:
            VocabShrinker(shrinker.tokenizer)
            made.append(shrinker.shrink(size=size))

        def theirs(shrinker: VocabShrinker = shrinker, made: list[Any] = made) -> None:
            from skeletoken import TokenizerModel

            kept = made[-1].vocab_map.keeps(range(shrinker.counts.size))
            backend = backend_of(shrinker.tokenizer)
            removed = [token for token, token_id in backend.get_vocab().items() if not kept[token_id]]
            TokenizerModel.from_tokenizer(backend).remove_tokens_from_vocabulary(removed).to_tokenizer()

        try:
            import skeletoken  # noqa: F401

            row.ours, row.reference = bench.best_times(f"Rewriting {name}", ours, theirs)
            row.ratio = row.ours / row.reference
        except ImportError:
            row.note = "skeletoken is not installed: pip install 'hf_glmd[benchmarks]'"
            (row.ours,) = bench.best_times(f"Rewriting {name}", ours)
        except UsageError as error:  # say a size below what has to stay
            row.note = str(error)
        yield row


def nearest(bench: Bench) -> Iterator[Row]:
    """`nearest_kept` beside the product of the removed and the kept rows alone, in portions that are thrown away."""
    for original_size, size, width in bench.options.nearest:
        table = torch.randn(original_size, width, generator=torch.Generator().manual_seed(0))
        kept = np.sort(np.random.default_rng(0).choice(original_size, size, replace=False))
        removed = np.setdiff1d(np.arange(original_size), kept)
        rows, columns = table[removed], table[kept]

        def product(portion: int, rows: torch.Tensor = rows, columns: torch.Tensor = columns) -> None:
            for start in range(0, len(rows), portion):
                rows[start : start + portion] @ columns.T

        def ours(similarity: str, table: torch.Tensor = table, kept: np.ndarray = kept) -> None:
            nearest_kept(table, kept, similarity)

        similarities = ("dot", "cosine", "euclidean")
        work = [*((product, portion) for portion in (512, 2048)), *((ours, similarity) for similarity in similarities)]
        calls = [lambda run=run, value=value: run(value) for run, value in work]
        *products, dot, cosine, euclidean = bench.best_times(f"Nearest of {original_size:,} x {width}", *calls)
        for similarity, seconds in zip(similarities, (dot, cosine, euclidean), strict=True):
            yield Row(
                "nearest",
                f"{original_size:,} to {size:,}, H {width}, {similarity}",
                seconds,
                min(products),
                reference_name="matrix product",
                ratio=seconds / min(products),
                target="<= 1.2",
                N=len(removed),
                V=original_size,
                H=width,
            )


def length(bench: Bench) -> Iterator[Row]:
    """How much longer texts become: tokens after / before, and the share of the counted tokens that stayed."""
    shrinker = bench.shrinker("bpe")
    for size, order in itertools.product(bench.options.sizes, ("count", "leaf")):
        bench.step(f"Length at size {size:g}, order {order}")
        row = Row("length", f"{bench.name('bpe')}, size {size:g}, by {order}", unit="x", V=shrinker.counts.size)
        try:
            report = shrinker.shrink(size=size if size < 1 else int(size), order=order).report
            row.ours = row.ratio = report.length_ratio
            row.note = f"coverage {report.coverage:.5f}, {report.size:,} tokens"
            row.target = "<= 1.01" if size == 0.5 else ""
        except UsageError as error:
            row.note = str(error)
        yield row


PARTS: dict[str, tuple[Callable[[Bench], Iterator[Row]], tuple[str, ...]]] = {
    "counting": (counting, ("bpe", "unigram")),
    "memory": (memory, ("bpe",)),
    "rewriting": (rewriting, ("bpe", "unigram")),
    "nearest": (nearest, ()),
    "length": (length, ("bpe",)),
}
"""Name -> what measures it, and the tokenizers it needs."""


def made_up_bpe(texts: list[str], size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on the texts; once they give no more tokens, merges of any two tokens fill it up to the size."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>"],
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    data = json.loads(backend.to_str())
    vocabulary, merges = data["model"]["vocab"], data["model"]["merges"]
    tokens = list(vocabulary)[1:]
    draw = random.Random(0)
    while len(vocabulary) < size:
        left, right = draw.choice(tokens), draw.choice(tokens)
        if left + right not in vocabulary and len(left + right) <= 24:
            vocabulary[left + right] = len(vocabulary)
            merges.append([left, right])
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(data)), eos_token="<|endoftext|>")


def made_up_unigram(texts: list[str], size: int) -> PreTrainedTokenizerFast:
    """The most frequent words of the texts and pieces of words; a score is the logarithm of a share, as in a trained one."""
    words = collections.Counter("▁" + word for text in texts for word in text.split())
    pieces: collections.Counter[str] = collections.Counter()
    for word, count in words.items():
        for start, end in itertools.combinations(range(min(len(word), 16) + 1), 2):
            pieces[word[start:end]] += count
    single = [piece for piece in pieces if len(piece) == 1]
    longer = [piece for piece, _ in pieces.most_common() if len(piece) > 1]
    specials = ["<unk>", "<s>", "</s>", "<pad>"]
    chosen = [piece for piece in (single + longer) if piece not in specials][: size - len(specials)]
    if len(chosen) < size - len(specials):
        raise UsageError(
            f"The corpus gives {len(chosen):,} pieces, too few for {size:,}: lower --unigram-sizes or give more text."
        )
    total = sum(pieces.values())
    scores = [(piece, math.log(pieces[piece] / total)) for piece in chosen]
    backend = Tokenizer(models.Unigram([(token, 0.0) for token in specials] + scores, unk_id=0, byte_fallback=False))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def table_of(rows: list[Row]) -> str:
    heads = ("part", "case", "ours", "reference", "ratio", "target", "met", "note")
    lines = [heads]
    for row in rows:
        reference = f"{_number(row.reference)} {row.unit} ({row.reference_name})" if row.reference is not None else "-"
        met = {True: "yes", False: "NO", None: ""}[row.met]
        ours = f"{_number(row.ours)} {row.unit}" if row.ours is not None else "-"
        note = row.note if len(row.note) <= 80 else f"{row.note[:79]}…"  # the results hold all of it
        lines.append((row.part, row.case, ours, reference, _number(row.ratio), row.target, met, note))
    return aligned(lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}" if value < 100 else f"{value:,.0f}"


def add_results(path: Path, rows: list[Row], options: argparse.Namespace) -> None:
    run = {
        "options": {name: value for name, value in vars(options).items() if name != "output"},
        "rows": [dataclasses.asdict(row) | {"met": row.met} for row in rows],
    }
    figures = [
        _csv_line(row, method, value)
        for row in rows
        for method, value in (("hf_glmd", row.ours), (row.reference_name, row.reference))
        if method
    ]
    append_results(path, run, figures, ("torch", "tokenizers", "transformers"))


def _csv_line(row: Row, method: str, value: float | None) -> dict[str, Any]:
    line: dict[str, Any] = {"part": f"vocab-{row.part}", "method": method, "device": "cpu", "dtype": "float32" if row.H else ""}
    line |= {"N": row.N, "V": row.V, "H_t": row.H, "note": "; ".join(filter(None, (row.case, row.note)))}
    if value is not None:
        if row.unit == "s":
            line["time_ms"] = round(1000 * value, 3)
        elif row.unit == "MiB":
            line["peak_mib"] = round(value, 1)
        else:
            line["note"] = f"{row.ratio:.4f} x; {line['note']}"
    return line


def _shape(text: str) -> tuple[int, int, int]:
    original_size, size, width = map(int, text.split(":"))
    if not 0 < size < original_size or width < 1:
        raise argparse.ArgumentTypeError(f"{text} is not V:K:H with K < V")
    return original_size, size, width


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="vocab.py", description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="which parts (default: all)")
    parser.add_argument("--full", action="store_true", help="memory and nearest tokens at the sizes the targets are stated for")
    parser.add_argument(
        "--corpus",
        default="docstrings",
        help="what is counted: 'docstrings' of installed libraries (default), "
        "a file, a folder, a pattern, or the name of a data set; its first 20 M characters",
    )
    parser.add_argument("--column", default="text", help="which field of a row holds the text (default: text)")
    parser.add_argument(
        "--tokenizer", dest="bpe_tokenizer", metavar="PATH", help="a BPE tokenizer (default: one trained on the corpus)"
    )
    parser.add_argument("--unigram-tokenizer", metavar="PATH", help="a Unigram tokenizer (default: one made of the corpus)")
    parser.add_argument(
        "--bpe-sizes",
        nargs=2,
        type=int,
        default=[128_000, 48_000],
        metavar=("V", "K"),
        help="tokens of the BPE that is made up, and what is kept (default: 128000 48000)",
    )
    parser.add_argument(
        "--unigram-sizes",
        nargs=2,
        type=int,
        default=[250_000, 60_000],
        metavar=("V", "K"),
        help="the same of the Unigram tokenizer (default: 250000 60000)",
    )
    parser.add_argument(
        "--memory-mb",
        nargs="+",
        type=float,
        default=[2.0, 10.0],
        metavar="MB",
        help="sizes of text for the memory (default: 2 10)",
    )
    parser.add_argument(
        "--nearest",
        nargs="+",
        type=_shape,
        default=[(20_000, 10_000, 256)],
        metavar="V:K:H",
        help="tables for the nearest tokens (default: 20000:10000:256)",
    )
    parser.add_argument(
        "--sizes",
        nargs="+",
        type=float,
        default=[0.5, 0.25, 0.1],
        metavar="SIZE",
        help="sizes for the length, as shares of V or numbers of tokens (default: 0.5 0.25 0.1)",
    )
    parser.add_argument("--repeats", type=int, default=3, help="repetitions of each, of which the best counts (default: 3)")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("results/vocab.json"),
        metavar="FILE",
        help="the run is added to this JSON list, and to benchmarks.csv beside it (default: results/vocab.json)",
    )
    parser.add_argument("--count-in", help=argparse.SUPPRESS)  # the process that `memory` starts
    options = parser.parse_args(argv)
    if options.repeats < 1:
        parser.error(f"--repeats {options.repeats} is not a number of repetitions: use 1 or more")
    if options.full:
        vars(options).update(FULL)
    return options


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    if options.count_in:
        count_in(options.count_in, options.memory_mb[0])
        return 0
    try:
        bench = Bench(options)
        with bench.bar:
            for part in options.parts:
                for kind in PARTS[part][1]:
                    bench.shrinker(kind)  # what is wrong with the tokenizers shows before anything is measured
            rows = [row for part in options.parts for row in PARTS[part][0](bench)]
    except UsageError as error:
        print(f"vocab.py: {error}", file=sys.stderr)  # noqa: T201
        return 2
    add_results(options.output, rows, options)
    print(table_of(rows))  # noqa: T201
    print(f"Added to {options.output} and {options.output.with_name('benchmarks.csv')}.")  # noqa: T201
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
