"""Sizes that are chosen by what they cost, and cut models that are made again from their map.

    python recipes/benchmarks/cuts.py --tokenizer FOLDER --corpora de=german.txt fr=french.txt --parts floors knee
    python recipes/benchmarks/cuts.py --tokenizer FOLDER ANOTHER --corpora en=english.txt --parts rebuild
    python recipes/benchmarks/cuts.py --tokenizer FOLDER --corpora en=english.txt --parts inspect

floors: a vocabulary is chosen so that held-out text of every corpus grows by at most --growth, which is measured by encoding
that text, and the last third of each corpus, which was neither counted nor held out. knee: beside the smallest of --grid sizes
that keeps to 1% more tokens. rebuild: cuts of a tiny model of each tokenizer, each made again from its map in a fresh folder; the
sums of both files are compared. inspect: `hf-glmd inspect` beside a process that only counts, in turns.
"""

# ruff: noqa: T201 - what is printed is the result
from __future__ import annotations

import argparse
import hashlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from common import aligned, append_results
from transformers import BertConfig, BertForMaskedLM

from hf_glmd import VocabMap, VocabShrinker
from hf_glmd.data.sources import read_texts
from hf_glmd.shrinking.command import ShrinkOptions, shrink_checkpoint
from hf_glmd.shrinking.rebuilding import RebuildOptions, rebuild_checkpoint
from hf_glmd.vocab.counting import vocabulary_rows
from hf_glmd.vocab.mapped_tokenizer import load_tokenizer
from hf_glmd.vocab.tokenizer_files import encode_texts

LARGEST = 262_144
"""Tokens of the largest vocabularies in use (Gemma 3), for the size of a map."""

Row = dict[str, Any]


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    corpora = dict(one.split("=", 1) for one in options.corpora)
    rows: list[Row] = []
    for part in options.parts:
        for row in PARTS[part](options, corpora):
            rows.append({"part": part, **row})
            print(", ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    print()
    print(aligned([["part", "of", "value", "target", "note"], *([str(row[name]) for name in COLUMNS] for row in rows)]))
    figures = [
        {"part": f"cuts {row['part']}", "method": row["of"], "device": "cpu", "note": f"{row['value']} {row['note']}"}
        for row in rows
    ]
    append_results(options.output, {"rows": rows}, figures, ("tokenizers", "transformers"))
    return 0


COLUMNS = ("part", "of", "value", "target", "note")


def texts_of(source: str) -> list[str]:
    return [text for text in read_texts(source)[0] if text.strip()]


def tokens(tokenizer: Any, texts: list[str]) -> int:
    return sum(map(len, encode_texts(tokenizer.backend_tokenizer, texts)))


def floors(options: argparse.Namespace, corpora: dict[str, str]) -> Iterator[Row]:
    for name in options.tokenizer:
        tokenizer = load_tokenizer(name)
        counted, apart = {}, {}
        for corpus, source in corpora.items():
            texts = texts_of(source)
            counted[corpus], apart[corpus] = texts[: 2 * len(texts) // 3], texts[2 * len(texts) // 3 :]
        shrinker = VocabShrinker(tokenizer)
        started = time.perf_counter()
        shrinker.count_corpora(counted, progress=False)
        counting = time.perf_counter() - started
        small = shrinker.shrink(growth=options.growth)
        seconds = time.perf_counter() - started - counting
        for corpus in corpora:
            held_out = shrinker.corpora[corpus].held_out
            kept, other = (tokens(small.tokenizer, part) / tokens(tokenizer, part) for part in (held_out, apart[corpus]))
            note = f"asked {options.growth}; {len(small.tokenizer):,} tokens; other text {other:.4f}"
            yield {"of": f"{Path(name).name} {corpus}", "value": round(kept, 4), "target": f"<= {options.growth}", "note": note}
        yield {"of": Path(name).name, "value": round(seconds, 1), "target": "", "note": f"s to choose; {counting:.1f} s to count"}


def knee(options: argparse.Namespace, corpora: dict[str, str]) -> Iterator[Row]:
    for name in options.tokenizer:
        shrinker = VocabShrinker(load_tokenizer(name)).count_corpora({n: texts_of(s) for n, s in corpora.items()}, progress=False)
        table = shrinker.sizes()
        assert table.knee is not None
        sizes = np.unique(np.linspace(table.least_size, table.original_size, options.grid).astype(int))
        near = np.arange(table.knee.size - 200, table.knee.size + 200, 2)
        near = near[(near >= table.least_size) & (near <= table.original_size)]
        grid = shrinker.sizes(sizes=np.unique([*sizes, *near]).tolist()).rows
        best = min(row.size for row in grid if max(row.growth.values()) <= 1.01)
        note = f"knee {table.knee.size:,}, smallest of {len(grid):,} sizes {best:,}"
        yield {"of": Path(name).name, "value": round(table.knee.size / best, 4), "target": "<= 1.01", "note": note}


def rebuild(options: argparse.Namespace, corpora: dict[str, str]) -> Iterator[Row]:
    equal = cuts = 0
    sizes, seconds = [], []
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus.txt"
        corpus.write_text("\n".join(text for source in corpora.values() for text in texts_of(source)[:2_000]), encoding="utf-8")
        for name in options.tokenizer:
            tokenizer = load_tokenizer(name)
            base = Path(folder) / Path(name).name
            shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
            BertForMaskedLM(BertConfig(vocab_size=vocabulary_rows(tokenizer), **shape)).save_pretrained(base)
            tokenizer.save_pretrained(base)
            for number, share in enumerate(np.linspace(*options.shares, options.cuts).tolist()):
                cut, again = (Path(folder) / f"{base.name}-{number}-{what}" for what in ("cut", "again"))
                asked = {"size": share, "verify_texts": 1, "bits_texts": 0, "alphabet": "seen"}
                shrink_checkpoint(ShrinkOptions(str(base), str(cut), [str(corpus)], **asked), progress=False)
                started = time.perf_counter()
                rebuild_checkpoint(RebuildOptions(str(base), str(cut / "vocab_map.safetensors"), str(again)))
                seconds.append(time.perf_counter() - started)
                sizes.append((cut / "vocab_map.safetensors").stat().st_size)
                cuts += 1
                equal += all(_sum(cut / file) == _sum(again / file) for file in ("model.safetensors", "tokenizer.json"))
        half = np.sort(np.random.default_rng(0).choice(LARGEST, LARGEST // 2, replace=False))
        VocabMap(half, LARGEST).save(Path(folder) / "large.safetensors")
        large = (Path(folder) / "large.safetensors").stat().st_size
    bases = ", ".join(Path(name).name for name in options.tokenizer)
    yield {"of": f"{cuts} cuts", "value": f"{equal} equal", "target": f"{cuts}", "note": f"weights and tokenizer.json; {bases}"}
    yield {
        "of": "rebuild",
        "value": round(max(seconds), 2),
        "target": "<= 5 s",
        "note": f"the longest; median {statistics.median(seconds):.2f} s",
    }
    yield {"of": "map", "value": max(sizes), "target": "", "note": "bytes, the largest of these"}
    yield {
        "of": f"map of {LARGEST:,}",
        "value": large,
        "target": "<= 40000",
        "note": "bytes; a random half is kept, the worst case",
    }


COUNT = "import sys; from hf_glmd import VocabShrinker; from hf_glmd.vocab.mapped_tokenizer import load_tokenizer; "
COUNT += "VocabShrinker(load_tokenizer(sys.argv[1])).count(sys.argv[2], progress=False)"


def inspect(options: argparse.Namespace, corpora: dict[str, str]) -> Iterator[Row]:
    for name in options.tokenizer:
        for corpus, source in corpora.items():
            counting = [sys.executable, "-c", COUNT, name, source]
            looking = [sys.executable, "-m", "hf_glmd", "inspect", name, "--corpus", f"{corpus}={source}"]
            times: list[list[float]] = [[], []]
            for _ in range(options.repeats):
                for command, found in zip((counting, looking), times, strict=True):
                    started = time.perf_counter()
                    subprocess.run(command, check=True, capture_output=True)
                    found.append(time.perf_counter() - started)
            alone, whole = map(statistics.median, times)
            note = f"{whole:.2f} s beside {alone:.2f} s; {Path(source).stat().st_size / 1e6:.1f} MB"
            yield {"of": f"{Path(name).name} {corpus}", "value": round(whole / alone, 3), "target": "<= 1.3", "note": note}


PARTS = {"floors": floors, "knee": knee, "rebuild": rebuild, "inspect": inspect}


def _sum(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", nargs="+", required=True, help="folders, or names on the Hub")
    parser.add_argument("--corpora", nargs="+", required=True, metavar="NAME=FILE", help="text, each with a name")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=["floors", "knee"], help="default floors knee")
    parser.add_argument("--growth", type=float, default=1.02, help="asked of every corpus, default 1.02")
    parser.add_argument("--grid", type=int, default=200, help="sizes that are tried for the knee, default 200")
    parser.add_argument("--cuts", type=int, default=10, help="of each tokenizer, default 10")
    parser.add_argument(
        "--shares", type=float, nargs=2, default=(0.1, 0.9), help="of the tokens, of these cuts (default 0.1 0.9)"
    )
    parser.add_argument("--repeats", type=int, default=3, help="default 3")
    parser.add_argument("--output", type=Path, default=Path("results/cuts.json"), help="default results/cuts.json")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
