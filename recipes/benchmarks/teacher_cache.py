"""Measures cached teachers beside the live one: bytes per token, error of loss and gradient at four temperatures, speed.

    python recipes/benchmarks/teacher_cache.py                                # minutes, offline
    HF_GLMD_TEST_DATA=FOLDER python recipes/benchmarks/teacher_cache.py       # also a real tiny Llama, if its files are there

The student has half the teacher's layers and is first distilled for some steps, for the error of a cache is relative to what is
left to learn. Live and cached take turns where time is measured, and the best of the repetitions counts. On a machine with other
work to do set OMP_NUM_THREADS=1: threads that wait for one another cost far more than they bring.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import lzma
import math
import os
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import aligned, append_results
from tokenizers import Tokenizer, decoders, models, normalizers, processors
from torch import Tensor
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hf_glmd import LiveTeacher, UsageError, WordPredictionCollator, build_student, docstring_corpus, word_prediction_loss
from hf_glmd.data.collators import model_inputs
from hf_glmd.data.packing import pack_blocks
from hf_glmd.losses.topk import TopTokens, topk_word_prediction_loss
from hf_glmd.models.heads import HeadInputs, WordHead
from hf_glmd.teachers.cache import TeacherCache
from hf_glmd.vocab.mapped_tokenizer import load_tokenizer

TEMPERATURES = (1.0, 2.0, 5.0, 15.0)
TOP_K = (16, 64, 256)
QUICKSTART_TEACHER = Path(__file__).parents[1] / "quickstart_teacher"
STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a big, red "
    "ball. She wanted to play with it."
)
NEGATIVE_LOG_LIKELIHOOD = 0.3917
"""Of the stories260K checkpoint on this story, in nats per token: what shows that it was read rightly."""


@dataclass
class Row:
    """One method at one temperature. The errors are relative to the live teacher's; what was not measured is None."""

    part: str
    data: str
    method: str
    temperature: float | None = None
    bytes_per_token: float | None = None
    loss_live: float | None = None
    loss: float | None = None
    loss_error: float | None = None
    gradient_error: float | None = None
    top_mass: float | None = None
    time_ms: float | None = None
    live_ms: float | None = None
    speed_ratio: float | None = None
    target: str = ""
    met: bool | None = None
    N: int | None = None
    V: int | None = None
    H_s: int | None = None
    H_t: int | None = None
    note: str = ""


class Bench:
    """A teacher, the batches, and a student that has learnt from it for a while."""

    def __init__(self, name: str, teacher: Any, tokenizer: Any, blocks: list[list[int]], options: argparse.Namespace) -> None:
        self.name, self.options = name, options
        self.tokenizer, self.blocks, self.model = tokenizer, blocks, teacher
        self.teacher = LiveTeacher(teacher)
        if self.teacher.fallback is not None:
            raise UsageError(f"{name}: the teacher's hidden states cannot be used: {self.teacher.fallback}.")
        torch.manual_seed(0)
        self.student = build_student(teacher, num_layers=teacher.config.num_hidden_layers // 2).requires_grad_(True)
        self.head = WordHead(self.student)
        self.bar = tqdm(desc=name, unit=" measurements", leave=False)
        self.batches = self.collated("all", 0.15)
        self._learn()
        self.shape = {"N": sum(int(batch["prediction_mask"].sum()) for batch in self.batches), "V": self.teacher.size}
        width = self.teacher.head_inputs(*arguments(self.batches[0])).hidden.shape[1]
        self.shape |= {"H_s": self.student_inputs(self.batches[0]).hidden.shape[1], "H_t": width}

    def collated(self, positions: str, mask_share: float) -> list[dict[str, Tensor]]:
        if self.tokenizer.mask_token_id is None:
            positions, mask_share = "all", 0.0
        collate = WordPredictionCollator(self.tokenizer, positions, mask_share)
        rows = [{"input_ids": ids} for ids in self.blocks]
        size = self.options.batch_size
        return [collate(rows[start : start + size]) for start in range(0, len(rows), size)]

    def student_inputs(self, batch: dict[str, Tensor]) -> HeadInputs:
        return self.head.inputs(self.student, *arguments(batch))

    def step(self, name: str) -> None:
        self.bar.set_description(f"{self.name}: {name}")
        self.bar.update()

    def _learn(self) -> None:
        optimizer = torch.optim.AdamW(self.student.parameters(), lr=self.options.learning_rate)
        self.student.train()
        for number, batch in zip(range(self.options.steps), itertools.cycle(self.batches), strict=False):
            self.step(f"distilling the student ({number + 1}/{self.options.steps})")
            self.train_on(batch, self.teacher.head_inputs, optimizer, 2.0)
        self.student.eval()

    def train_on(self, batch: dict[str, Tensor], teacher: Callable[..., HeadInputs], optimizer: Any, temperature: float) -> None:
        student = self.student_inputs(batch)
        word_prediction_loss(**both(student, teacher(*arguments(batch))), temperature=temperature).backward()
        optimizer.step()
        optimizer.zero_grad()

    def best_times(self, *work: Callable[[], Any]) -> list[float]:
        """The least milliseconds that each took. They take turns, so that what else the machine does hits all of them."""
        best = [math.inf] * len(work)
        for _ in range(self.options.repeats):
            for number, run in enumerate(work):
                started = time.perf_counter()
                run()
                best[number] = min(best[number], 1000 * (time.perf_counter() - started))
        return best


def arguments(batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    return model_inputs(batch), batch["prediction_mask"]


def both(student: HeadInputs, teacher: HeadInputs) -> dict[str, Any]:
    return parts("student", student) | parts("teacher", teacher)


def parts(who: str, head: HeadInputs) -> dict[str, Any]:
    return {f"{who}_{field.name}": getattr(head, field.name) for field in dataclasses.fields(head)}


def errors_and_speed(bench: Bench, folder: Path) -> Iterator[Row]:
    """Each kind of cache on the same tokens; all positions count."""
    with torch.no_grad():
        students = [bench.student_inputs(batch) for batch in bench.batches]
    live = {}
    for temperature in TEMPERATURES:
        bench.step(f"live, T = {temperature:g}")
        live[temperature] = summed(bench, students, from_hidden(bench.teacher.head_inputs, temperature))
    shape = bench.shape | {"part": "error", "data": bench.name}
    for dtype in ("bf16", "int8"):
        bench.step(f"hidden states as {dtype}")
        cache = TeacherCache.build(bench.teacher, bench.batches, folder / dtype, dtype=dtype)
        times = beside_live(bench, cache.head_inputs)
        for temperature in TEMPERATURES:
            bench.step(f"hidden states as {dtype}, T = {temperature:g}")
            found = summed(bench, students, from_hidden(cache.head_inputs, temperature))
            row = compared(
                Row(method=f"hidden {dtype}", temperature=temperature, **shape), cache, live[temperature], found, times
            )
            if dtype == "int8":
                row.target, row.met = "loss error <= 1%", abs(row.loss_error) <= 0.01
            yield row
    for k, temperature in itertools.product([k for k in TOP_K if k < bench.teacher.size], TEMPERATURES):
        bench.step(f"the {k} top tokens, T = {temperature:g}")
        name = f"topk-{k}-{temperature:g}"
        cache = TeacherCache.build(bench.teacher, bench.batches, folder / name, "topk", k=k, temperature=temperature)
        read = partial(cache.top_tokens, temperature=temperature)
        found = summed(bench, students, from_top_tokens(read))
        times = beside_live(bench, read) if temperature == TEMPERATURES[0] else times  # for which the temperature is no matter
        row = compared(Row(method=f"topk {k}", temperature=temperature, **shape), cache, live[temperature], found, times)
        tails = torch.cat([read(*arguments(batch)).log_tail for batch in bench.batches])
        row.top_mass = float(1 - tails.double().exp().mean())
        yield row


LossOfBatch = Callable[[HeadInputs, dict[str, Tensor]], Tensor]


def from_hidden(read: Callable[..., HeadInputs], temperature: float) -> LossOfBatch:
    return lambda student, batch: word_prediction_loss(
        **both(student, read(*arguments(batch))), temperature=temperature, reduction="sum"
    )


def from_top_tokens(read: Callable[..., TopTokens]) -> LossOfBatch:
    return lambda student, batch: topk_word_prediction_loss(
        **parts("student", student), teacher=read(*arguments(batch)), reduction="sum"
    )


def beside_live(bench: Bench, read: Callable[..., Any]) -> list[float]:
    """Milliseconds of the live teacher and of the cache for all batches."""
    return bench.best_times(partial(read_all, bench, bench.teacher.head_inputs), partial(read_all, bench, read))


def read_all(bench: Bench, read: Callable[..., Any]) -> None:
    for batch in bench.batches:
        read(*arguments(batch))


def summed(bench: Bench, students: list[HeadInputs], loss: LossOfBatch) -> tuple[float, Tensor]:
    """The mean loss over all positions, and the gradient by the student's hidden states."""
    total, gradients = 0.0, []
    for student, batch in zip(students, bench.batches, strict=True):
        hidden = student.hidden.detach().requires_grad_()
        value = loss(dataclasses.replace(student, hidden=hidden, weight=student.weight.detach()), batch)
        gradients += torch.autograd.grad(value, hidden)
        total += value.item()
    gradient = torch.cat(gradients)
    return total / len(gradient), gradient


def compared(row: Row, cache: TeacherCache, live: tuple[float, Tensor], found: tuple[float, Tensor], times: list[float]) -> Row:
    row.bytes_per_token = cache.file_bytes / cache.positions
    row.loss_live, row.loss = live[0], found[0]
    row.loss_error = found[0] / live[0] - 1
    row.gradient_error = float((found[1] - live[1]).norm() / live[1].norm())
    row.live_ms, row.time_ms = times
    row.speed_ratio = times[0] / times[1]
    return row


def training(bench: Bench, folder: Path) -> Iterator[Row]:
    """Whole training steps of a student of half the depth: from an int8 cache, beside a live teacher."""
    bench.student.train()
    for positions, mask_share, temperature in (("masked", 0.25, 1.0), ("all", 0.15, 15.0)):
        if positions == "masked" and bench.tokenizer.mask_token_id is None:
            continue
        batches = bench.collated(positions, mask_share)
        bench.step(f"training steps, positions {positions}")
        cache = TeacherCache.build(bench.teacher, batches, folder / f"training-{positions}")
        optimizer = torch.optim.AdamW(bench.student.parameters(), lr=0.0)

        live_ms, time_ms = bench.best_times(
            *(partial(epoch, bench, batches, teacher, optimizer, temperature) for teacher in (bench.teacher, cache))
        )
        ratio = live_ms / time_ms
        yield Row(
            part="training",
            data=bench.name,
            method="hidden int8",
            temperature=temperature,
            time_ms=time_ms,
            live_ms=live_ms,
            speed_ratio=ratio,
            target="speed >= 1.5" if positions == "masked" else "",  # as the quickstart trains
            met=ratio >= 1.5 if positions == "masked" else None,
            note=f"an epoch of {len(batches)} steps, positions {positions}",
            **bench.shape | {"N": cache.positions},
        )


def epoch(bench: Bench, batches: list[dict[str, Tensor]], teacher: Any, optimizer: Any, temperature: float) -> None:
    for batch in batches:
        bench.train_on(batch, teacher.head_inputs, optimizer, temperature)


# What is measured on


def quickstart(options: argparse.Namespace) -> Bench:
    teacher = LiveTeacher(QUICKSTART_TEACHER).model
    tokenizer = load_tokenizer(QUICKSTART_TEACHER)
    blocks = pack_blocks(docstring_corpus()["test"].select(range(400)), tokenizer, options.length)["input_ids"][: options.rows]
    return Bench("quickstart BERT, docstrings", teacher, tokenizer, list(blocks), options)


def stories(options: argparse.Namespace, data: Path) -> Bench:
    checkpoint = data / "checkpoints" / "stories260K"
    tokenizer = stories_tokenizer(checkpoint / "tok512.bin")
    model = stories_model(lzma.decompress((checkpoint / "stories260K.bin.xz").read_bytes()))
    ids = torch.tensor([tokenizer(STORY)["input_ids"]])
    with torch.no_grad():
        loss = model(input_ids=ids, labels=ids).loss.item()
    if abs(loss - NEGATIVE_LOG_LIKELIHOOD) > 1e-3:
        raise UsageError(
            f"'{checkpoint}' gives {loss:.4f} nats per token, not {NEGATIVE_LOG_LIKELIHOOD}. Give the files of its README."
        )
    texts = (data / "corpora" / "en" / "tinystories_sample.txt").read_text(encoding="utf-8").split("\n\n")
    stream = [token for text in texts[:600] for token in tokenizer(text)["input_ids"]]
    blocks = [stream[start : start + options.length] for start in range(0, options.rows * options.length, options.length)]
    return Bench("stories260K Llama, TinyStories", model, tokenizer, blocks, options)


def stories_tokenizer(file: Path) -> Any:
    """From llama2.c's form: the longest token's length, then per token its score, length and bytes, little endian."""
    data, place, pieces = file.read_bytes(), 4, []
    while place < len(data):
        score, length = struct.unpack_from("<fi", data, place)
        pieces.append((score, data[place + 8 : place + 8 + length].decode()))
        place += 8 + length
    # That form has spaces where the vocabulary has "▁", and line breaks around the names of the specials.
    tokens = ["<unk>", "<s>", "</s>", *(piece.replace(" ", "▁") for _, piece in pieces[3:])]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    merges = [
        (token[:cut], token[cut:])
        for token in sorted(tokens[259:], key=lambda token: -pieces[vocabulary[token]][0])
        for cut in range(1, len(token))
        if token[:cut] in vocabulary and token[cut:] in vocabulary
    ]
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    specials = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **specials)


def stories_model(data: bytes) -> LlamaForCausalLM:
    """From llama2.c's export, version 0: seven int32, then fp32 tables of all layers, one after the other."""
    width, inner, layers, heads, kv_heads, size, length = struct.unpack_from("<7i", data)
    numbers, head = np.frombuffer(data, dtype="<f4", offset=28), width // heads
    place = 0

    def take(*shape: int) -> Tensor:
        nonlocal place
        place += math.prod(shape)
        return torch.from_numpy(numbers[place - math.prod(shape) : place].reshape(shape).copy())

    def half_split(weight: Tensor, count: int) -> Tensor:
        """Rows of rotary pairs (0, 1), (2, 3), ... of each head -> (0, head / 2), (1, head / 2 + 1), ..."""
        return weight.view(layers, count, head // 2, 2, width).transpose(2, 3).reshape(layers, count * head, width)

    tables = {"embed_tokens": take(size, width), "input_layernorm": take(layers, width)}
    tables["self_attn.q_proj"] = half_split(take(layers, heads * head, width), heads)
    tables["self_attn.k_proj"] = half_split(take(layers, kv_heads * head, width), kv_heads)
    tables["self_attn.v_proj"] = take(layers, kv_heads * head, width)
    tables["self_attn.o_proj"] = take(layers, width, heads * head)
    tables["post_attention_layernorm"] = take(layers, width)
    for name, shape in (("gate", (inner, width)), ("down", (width, inner)), ("up", (inner, width))):
        tables[f"mlp.{name}_proj"] = take(layers, *shape)
    weights = {"model.norm.weight": take(width), "model.embed_tokens.weight": tables.pop("embed_tokens")}
    weights |= {f"model.layers.{n}.{name}.weight": table[n] for name, table in tables.items() for n in range(layers)}
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=length,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).eval()
    missing, unknown = model.load_state_dict(weights, strict=False)
    if set(missing) - {"lm_head.weight"} or unknown:
        raise UsageError(f"the checkpoint lacks {missing} and has {unknown}. Give a version 0 export of llama2.c.")
    model.tie_weights()
    return model


# What is shown


def tables_of(rows: list[Row]) -> str:
    text = []
    for data in dict.fromkeys(row.data for row in rows):
        errors = [row for row in rows if row.data == data and row.part == "error"]
        heads = ["method", "bytes / token", "read / live speed", *(f"T = {t:g}" for t in TEMPERATURES), "mass in the top k"]
        lines = [heads]
        for method in dict.fromkeys(row.method for row in errors):
            at = {row.temperature: row for row in errors if row.method == method}
            cells = [f"{at[t].loss_error:+.2%} ({at[t].gradient_error:.2%})" if t in at else "-" for t in TEMPERATURES]
            masses = " ".join(f"{at[t].top_mass:.1%}" for t in TEMPERATURES if at[t].top_mass is not None)
            first = at[TEMPERATURES[0]]
            lines.append([method, f"{first.bytes_per_token:.0f}", f"{first.speed_ratio:.1f}x", *cells, masses or "all"])
        live = {row.temperature: row.loss_live for row in errors}
        lines.append(["live", "-", "1x", *(f"{live[t]:.4f} nats" for t in TEMPERATURES), ""])
        some = errors[0]
        text += [f"{data}: N={some.N:,} V={some.V:,} H_t={some.H_t}. Error of the loss (of its gradient), relative to live."]
        text += [aligned(lines), ""]
    lines = [["data", "training steps", "T", "live", "cached", "ratio", "target", "met"]]
    for row in (row for row in rows if row.part == "training"):
        cells = [row.data, row.note, f"{row.temperature:g}", f"{row.live_ms:,.0f} ms", f"{row.time_ms:,.0f} ms"]
        lines.append([*cells, f"{row.speed_ratio:.2f}", row.target, {True: "yes", False: "NO", None: ""}[row.met]])
    text.append(aligned(lines))
    int8 = [row for row in rows if row.part == "error" and row.target]
    worst = max(int8, key=lambda row: abs(row.loss_error))
    text.append(
        f"int8, worst error of the loss: {worst.loss_error:+.3%} (T = {worst.temperature:g}, {worst.data}); target <= 1%: "
        f"{'yes' if all(row.met for row in int8) else 'NO'}"
    )
    return "\n".join(text)


def add_results(path: Path, rows: list[Row], options: argparse.Namespace) -> None:
    run = {
        "options": {name: value for name, value in vars(options).items() if name != "output"},
        "rows": [dataclasses.asdict(row) for row in rows],
    }
    append_results(path, run, map(_csv_line, rows), ("torch", "safetensors", "transformers"))


def _csv_line(row: Row) -> dict[str, Any]:
    note = [row.data, f"T={row.temperature:g}", f"{row.speed_ratio:.2f}x live", row.note]
    if row.bytes_per_token is not None:
        note.append(f"{row.bytes_per_token:.1f} bytes/token")
    line = {"part": f"teacher_cache-{row.part}", "method": row.method, "device": "cpu", "dtype": "float32"}
    line |= {"N": row.N, "V": row.V, "H_s": row.H_s, "H_t": row.H_t, "time_ms": row.time_ms}
    return line | {"loss_err": row.loss_error, "grad_err": row.gradient_error, "note": "; ".join(filter(None, note))}


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="teacher_cache.py", description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=64, help="rows of text (default: 64)")
    parser.add_argument("--length", type=int, default=128, help="tokens per row (default: 128)")
    parser.add_argument("--batch-size", type=int, default=32, help="rows per batch (default: 32)")
    parser.add_argument("--steps", type=int, default=40, help="of the student before anything is measured (default: 40)")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="of these steps (default: 1e-3)")
    parser.add_argument(
        "--repeats", type=int, default=3, help="repetitions of each timing, of which the best counts (default: 3)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("results/teacher_cache.json"),
        metavar="FILE",
        help="the run is added to this JSON list, and to benchmarks.csv beside it (default: results/teacher_cache.json)",
    )
    options = parser.parse_args(argv)
    for name in ("rows", "length", "batch_size", "repeats"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} {getattr(options, name)} is too small: use 1 or more")
    return options


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    data = os.environ.get("HF_GLMD_TEST_DATA")
    rows: list[Row] = []
    try:
        makers = [quickstart] + ([lambda options: stories(options, Path(data))] if data else [])
        for make in makers:
            with tempfile.TemporaryDirectory(prefix="teacher_cache") as folder:
                bench = make(options)
                with bench.bar:
                    rows += [*errors_and_speed(bench, Path(folder)), *training(bench, Path(folder))]
    except (UsageError, FileNotFoundError) as error:
        print(f"teacher_cache.py: {error}", file=sys.stderr)  # noqa: T201
        return 2
    add_results(options.output, rows, options)
    print(tables_of(rows))  # noqa: T201
    if not data:
        print("The tiny Llama was left out: HF_GLMD_TEST_DATA is not set.")  # noqa: T201
    print(f"Added to {options.output} and {options.output.with_name('benchmarks.csv')}.")  # noqa: T201
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
