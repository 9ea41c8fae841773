"""A sentence encoder with fewer layers and fewer tokens, taught by the embeddings of the whole one.

    python recipes/distil_encoder.py sentence-transformers/all-MiniLM-L6-v2 --corpus texts.txt --layers 3 --output small

Modules of sentence-transformers go along. With --pairs, tables of text pairs with a label of 0 or 1 (MRPC's, for example), both
encoders are asked how similar the pairs are, and to find the second text of the true pairs. --rival trains the same student by
sentence-transformers' own MSELoss as well, on the same rows, to compare.
"""

# ruff: noqa: T201 - what is printed is the result
from __future__ import annotations

import argparse
import copy
import json
import resource
import time
from pathlib import Path
from typing import Any

import pandas
import torch
from transformers import set_seed

from hf_glmd import GLMDConfig, GLMDTrainer, VocabShrinker, build_student
from hf_glmd.data.corpus import load_corpus
from hf_glmd.models.loading import load_teacher_model
from hf_glmd.models.sentence_modules import Pooled, pooled_to_compare, write_modules
from hf_glmd.shrinking.checkpoint_files import find_carried_files
from hf_glmd.shrinking.embeddings import compare_embeddings, text_embeddings
from hf_glmd.utils.system import has_fast_bf16
from hf_glmd.utils.text import markdown_table
from hf_glmd.vocab.mapped_tokenizer import load_tokenizer

HELD_OUT = 500
"""Texts whose embeddings are compared."""

PAIR_TOKENS = 128
"""That are read of each text of a pair."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder or Hub name of the encoder")
    parser.add_argument(
        "--corpus", required=True, help="text like that it will read: a file, a pattern, a folder, or a data set on the Hub"
    )
    parser.add_argument("--layers", type=int, default=3, help="default 3")
    parser.add_argument("--size", type=float, default=0.4, help="share of the tokens that stay (default 0.4)")
    parser.add_argument("--steps", type=int, default=600, help="default 600")
    parser.add_argument("--batch-size", type=int, default=32, help="default 32")
    parser.add_argument("--learning-rate", type=float, default=3e-4, help="default 3e-4")
    parser.add_argument("--max-length", type=int, default=64, help="tokens of a text that are read in training (default 64)")
    parser.add_argument("--pairs", nargs="+", default=[], help="tab separated tables of pairs")
    parser.add_argument("--pair-columns", nargs=3, default=["#1 String", "#2 String", "Quality"], help="default: those of MRPC")
    parser.add_argument("--rival", action="store_true", help="train by sentence-transformers, too")
    parser.add_argument("--seed", type=int, default=0, help="default 0")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    set_seed(options.seed)
    tokenizer, teacher = load_tokenizer(options.model), load_teacher_model(options.model, dtype=torch.float32)
    corpus = load_corpus(options.corpus)
    vocab = VocabShrinker(tokenizer).count(corpus["train"]["text"][:]).shrink(size=options.size, model=teacher)
    student = build_student(teacher, num_layers=options.layers, vocab=vocab)
    models, seconds = {"before training": copy.deepcopy(student)}, {}
    if options.rival:
        started = resource.getrusage(resource.RUSAGE_SELF).ru_utime
        models["sentence-transformers"] = by_sentence_transformers(copy.deepcopy(student), vocab.tokenizer, corpus, options)
        seconds["sentence-transformers"] = resource.getrusage(resource.RUSAGE_SELF).ru_utime - started
    started = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    distil(student, teacher, vocab, corpus, options)
    seconds["hf_glmd"] = resource.getrusage(resource.RUSAGE_SELF).ru_utime - started
    models["hf_glmd"] = student

    pooled = pooled_to_compare(options.model)
    texts = corpus["test"]["text"][:HELD_OUT]
    scores: dict[str, dict[str, Any]] = {name: {} for name in ["teacher", *models]}
    for name, model in models.items():
        moved = compare_embeddings(model, teacher, (vocab.tokenizer, tokenizer), texts, options.max_length, pooled=pooled)
        scores[name] |= {"cosine": moved.mean_cosine, "rank correlation": moved.similarity_correlation}
        scores[name]["training, CPU s"] = seconds.get(name)
    if options.pairs:
        scores["teacher"] |= pair_scores(teacher, tokenizer, pooled, options)
        for name, model in models.items():
            scores[name] |= pair_scores(model, vocab.tokenizer, pooled, options)
    columns = list(dict.fromkeys(column for row in scores.values() for column in row))
    cells = [[name, *(_cell(row.get(column)) for column in columns)] for name, row in scores.items()]
    print(markdown_table(cells, ["", *columns], "l" + "r" * len(columns)))
    print(f"{teacher.num_parameters():,} -> {student.num_parameters():,} parameters; n={len(texts)} held-out texts.")
    (options.output / "scores.json").write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")


def distil(student: Any, teacher: Any, vocab: Any, corpus: Any, options: argparse.Namespace) -> None:
    """Trains the student, and writes it with the modules of the teacher's folder."""
    on_cpu = not torch.cuda.is_available()
    args = GLMDConfig(
        str(options.output),
        objective="embedding",
        max_steps=options.steps,
        per_device_train_batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.05,
        max_length=options.max_length,
        use_cpu=on_cpu,
        bf16=has_fast_bf16(torch.device("cpu" if on_cpu else "cuda")),
        seed=options.seed,
        report_to="none",
        save_strategy="no",
        logging_steps=max(1, options.steps // 10),
    )
    words = {"processing_class": vocab.tokenizer, "vocab_map": vocab.vocab_map}
    trainer = GLMDTrainer(student, teacher, args, corpus["train"], **words)
    trainer.train()
    trainer.save_model()
    carried = find_carried_files(options.model, None)
    if "modules.json" in carried.names:
        (options.output / "modules.json").unlink()  # the teacher's do more: normalise, among others
    carried.copy_to(options.output, vocab.report.size)


def by_sentence_transformers(student: Any, tokenizer: Any, corpus: Any, options: argparse.Namespace) -> Any:
    """The same student after as many steps of the same rows with `MSELoss` of sentence-transformers; its encoder."""
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
        losses,
    )

    folder = options.output / "rival"
    student.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # Their recipe for fewer layers takes the teacher's embeddings as labels; the student has the modules of its teacher.
    pooled = pooled_to_compare(options.model)
    write_modules(folder, student.config.hidden_size, pooled)
    small, large = SentenceTransformer(str(folder), device="cpu"), SentenceTransformer(options.model, device="cpu")
    small.max_seq_length = large.max_seq_length = options.max_length
    rows = corpus["train"].select_columns("text").shuffle(seed=options.seed)
    rows = rows.select(range(min(len(rows), options.steps * options.batch_size)))
    labels = large.encode(rows["text"][:], batch_size=options.batch_size, show_progress_bar=True)
    args = SentenceTransformerTrainingArguments(
        str(folder / "run"),
        max_steps=options.steps,
        per_device_train_batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.05,
        use_cpu=True,
        seed=options.seed,
        report_to="none",
        save_strategy="no",
        logging_steps=max(1, options.steps // 10),
    )
    trainer = SentenceTransformerTrainer(small, args, rows.add_column("label", labels.tolist()), loss=losses.MSELoss(small))
    trainer.train()
    return small[0].auto_model.eval()


def pair_scores(model: Any, tokenizer: Any, pooled: Pooled, options: argparse.Namespace) -> dict[str, float]:
    """Spearman's correlation of cosine and label, and how often the second text of a true pair is the nearest of all."""
    first, second, label = options.pair_columns
    tables = [pandas.read_csv(path, sep="\t", quoting=3, encoding="utf-8-sig") for path in options.pairs]
    rows = pandas.concat(tables, ignore_index=True).dropna(subset=options.pair_columns)
    sides = [
        torch.nn.functional.normalize(
            text_embeddings(model, tokenizer, rows[side].tolist(), PAIR_TOKENS, desc="Embedding pairs", pooled=pooled), dim=-1
        )
        for side in (first, second)
    ]
    truth = torch.tensor(rows[label].to_numpy(dtype=float))
    cosines = pandas.Series((sides[0] * sides[1]).sum(-1).tolist())
    true = truth == truth.max()
    found = (sides[0][true] @ sides[1][true].T).argmax(1) == torch.arange(int(true.sum()))
    return {
        f"Spearman, {len(rows):,} pairs": float(cosines.corr(pandas.Series(truth.tolist()), method="spearman")),
        f"recall@1, {int(true.sum()):,} true pairs": float(found.double().mean()),
    }


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}" if value > 2 else f"{value:.4f}"


if __name__ == "__main__":
    started = time.perf_counter()
    main()
    print(f"{time.perf_counter() - started:.0f} s in all")
