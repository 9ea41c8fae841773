"""A sentence encoder with fewer layers and fewer tokens, taught by the embeddings of the whole one.

    python recipes/distil_encoder.py sentence-transformers/all-MiniLM-L6-v2 --corpus texts.txt --layers 3 --output small

Modules of sentence-transformers go along. With --pairs, a table of text pairs with a label or score, both encoders are asked how
similar the pairs are; the rank correlation with the labels is printed.
"""

# ruff: noqa: T201 - what is printed is the result
from __future__ import annotations

import argparse
import time
from pathlib import Path

import pandas
import torch
from transformers import set_seed

from hf_glmd import GLMDConfig, GLMDTrainer, VocabShrinker, build_student
from hf_glmd.data.corpus import load_corpus
from hf_glmd.models.loading import load_checkpoint
from hf_glmd.shrinking.checkpoint_files import find_carried_files
from hf_glmd.shrinking.embeddings import compare_embeddings, text_embeddings
from hf_glmd.utils.system import has_fast_bf16
from hf_glmd.vocab.mapped_tokenizer import load_tokenizer

HELD_OUT = 500
"""Texts whose embeddings are compared."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder or Hub name of the encoder")
    parser.add_argument("--corpus", required=True, help="text like that it will read: files, a folder, a data set on the Hub")
    parser.add_argument("--layers", type=int, default=3, help="default 3")
    parser.add_argument("--size", type=float, default=0.4, help="share of the tokens that stay (default 0.4)")
    parser.add_argument("--steps", type=int, default=600, help="default 600")
    parser.add_argument("--batch-size", type=int, default=32, help="default 32")
    parser.add_argument("--learning-rate", type=float, default=3e-4, help="default 3e-4")
    parser.add_argument("--max-length", type=int, default=64, help="tokens of a text that are read in training (default 64)")
    parser.add_argument("--pairs", help="tab separated table of pairs")
    parser.add_argument("--pair-columns", nargs=3, default=["#1 String", "#2 String", "Quality"], help="default: those of MRPC")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    set_seed(0)
    tokenizer, teacher = load_tokenizer(options.model), load_checkpoint(options.model, dtype=torch.float32)
    corpus = load_corpus(options.corpus)
    vocab = VocabShrinker(tokenizer).count(corpus["train"]["text"][:]).shrink(size=options.size, model=teacher)
    untrained, student = (build_student(teacher, num_layers=options.layers, vocab=vocab) for _ in range(2))
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
        report_to="none",
        save_strategy="no",
        logging_steps=max(1, options.steps // 10),
    )
    words = {"processing_class": vocab.tokenizer, "vocab_map": vocab.vocab_map}
    trainer = GLMDTrainer(student, teacher, args, corpus["train"], **words)
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    trainer.save_model()
    carried = find_carried_files(options.model, None)
    if "modules.json" in carried.names:
        (options.output / "modules.json").unlink()  # the teacher's do more: normalise, among others
    carried.copy_to(options.output, vocab.report.size)

    texts = corpus["test"]["text"][:HELD_OUT]
    for name, model in (("before training", untrained), ("student", student)):
        scores = compare_embeddings(model, teacher, (vocab.tokenizer, tokenizer), texts, options.max_length)
        print(f"{name}: " + ", ".join(f"{what} {value}" for what, value in scores.rows()) + f" (n={scores.texts})")
    if options.pairs:
        *sides, label = options.pair_columns
        rows = pandas.read_csv(options.pairs, sep="\t", quoting=3, encoding="utf-8-sig").dropna(subset=options.pair_columns)
        asked = [("teacher", teacher, tokenizer), ("before training", untrained, vocab.tokenizer)]
        for name, model, own in (*asked, ("student", student, vocab.tokenizer)):
            embedded = [text_embeddings(model, own, rows[side].tolist(), 128) for side in sides]
            similar = pandas.Series(torch.cosine_similarity(*embedded).tolist())
            correlation = similar.corr(rows[label].reset_index(drop=True).astype(float), method="spearman")
            print(f"{name}: rank correlation of similarities with '{label}' {correlation:.4f} (n={len(rows):,})")
    print(f"{teacher.num_parameters():,} -> {student.num_parameters():,} parameters, {seconds:.0f} s of training")


if __name__ == "__main__":
    main()
