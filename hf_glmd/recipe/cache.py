"""A teacher run over text once, its predictions written to disk. What `hf-glmd cache` does."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_glmd.errors import UsageError
from hf_glmd.utils.options import TEXT_SOURCES, cache_kind, option
from hf_glmd.utils.remote_code import HELP as REMOTE_CODE
from hf_glmd.utils.remote_code import trusting_as_asked


@dataclass
class CacheOptions:
    """What `hf-glmd cache` can be told, on the command line or in a YAML file; each field's help text is its documentation.

    Raises: UsageError, a value is missing or out of range; all such values are named together.
    """

    model: str = option("The teacher: a folder, or the name of a model on the Hub.", "")
    output: str = option("Folder to write to; if it holds a part of this very cache, that is gone on with.", "")
    data: list[str] = field(
        default_factory=list,
        metadata={"help": f"Text, or rows with input_ids, to run the teacher over, held-out rows included: {TEXT_SOURCES}."},
    )
    revision: str | None = option("Branch, tag or commit of the model on the Hub.")
    tokenizer: str | None = option(
        "The student's tokenizer: a folder, with vocab_map.safetensors if the vocabulary was cut. Unset: the teacher's own."
    )
    kind: str = option(
        "'hidden': what enters the output embedding, good for any temperature and any cut of the vocabulary. 'top_k': the "
        "top tokens alone, for one temperature near 1.",
        "hidden",
    )
    dtype: str | None = option(
        "Of what is stored. hidden: int8 (H + 4 bytes per token), bf16 (2 H), fp16 or fp32; unset: int8. top_k: fp16 or fp32."
    )
    k: int | None = option("For top_k: how many tokens. Unset: 64.")
    temperature: float | None = option("For top_k: the temperature it will be trained at. Unset: 1.")
    column: str = option("Column that holds the text.", "text")
    target_column: str | None = option(
        "For encoder-decoders: column of what the decoder reads. Unset: each text is split in two."
    )
    max_length: int | None = option("Token ids per row of text. Unset: what the teacher can read, at most 512.")
    positions: str = option("Which positions count in training: 'all', or 'masked' (those that were chosen to be masked).", "all")
    mlm_probability: float | None = option("Share of the tokens that are masked. Unset: 0.15 for masked language models, else 0.")
    mask_replace_prob: float = option("Share of these that the mask token replaces; the others stay visible, and count too.", 1.0)
    mask_share: float | None = option("Former name of mlm_probability.")
    epochs: int = option("How many choices of masked tokens to cache of each row; training goes through them in turn.", 1)
    seed: int = option("Of these choices: the seed of the training.", 42)
    separate_documents: bool = option("For causal models: texts that share a row do not see each other.", False)
    max_rows: int | None = option("Cache only that many rows of each split, the first ones.")
    batch_size: int = option("Rows that the teacher reads at once.", 32)
    model_dtype: str | None = option(
        "What the teacher computes in: 'fp32', 'bf16' or 'fp16'. Unset: as its checkpoint is stored, on a CPU fp32."
    )
    shard_mib: float = option("Size of a file, which is also what is lost when the command is killed.", 256.0)
    trust_remote_code: bool = option(REMOTE_CODE, False)

    def __post_init__(self) -> None:
        mistakes = []
        self.kind = cache_kind(self.kind)
        if not self.model:
            mistakes.append("the model is missing: name a folder, or a model on the Hub")
        if not self.output:
            mistakes.append("--output is missing: name a folder to write to")
        if not self.data:
            mistakes.append("there is nothing to read: give --data")
        if self.kind not in ("hidden", "topk"):
            mistakes.append(f"--kind '{self.kind}' is unknown: use 'hidden' or 'top_k'")
        if self.model_dtype not in (None, *MODEL_DTYPES):
            mistakes.append(f"--model-dtype '{self.model_dtype}' is unknown: use {', '.join(MODEL_DTYPES)}")
        if self.mask_share is not None:
            if self.mlm_probability not in (None, self.mask_share):
                mistakes.append(
                    f"--mask-share {self.mask_share} is the former name of --mlm-probability {self.mlm_probability}: give one"
                )
            self.mlm_probability, self.mask_share = self.mask_share, None
        for name, least in (("epochs", 1), ("batch_size", 1), ("max_rows", 1), ("max_length", 3)):
            value = getattr(self, name)
            if value is not None and value < least:
                mistakes.append(f"--{name.replace('_', '-')} {value} is too small: use {least} or more")
        if mistakes:
            raise UsageError("; ".join(mistakes) + ".")


MODEL_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


@dataclass
class CacheResult:
    """What `cache_teacher` wrote, in figures."""

    output: str
    kind: str
    dtype: str
    rows: int
    positions: int
    bytes: int
    bytes_per_token: float
    seconds: float
    fingerprint: dict[str, Any]

    def table(self) -> str:
        """For people."""
        from hf_glmd.utils.text import markdown_table

        rows = [
            ("kind", f"{self.kind}, {self.dtype}"),
            ("rows", f"{self.rows:,}"),
            ("tokens that count", f"{self.positions:,}"),
            ("size (MB)", f"{self.bytes / 1e6:,.2f}"),
            ("bytes per token", f"{self.bytes_per_token:,.1f}"),
            ("seconds", f"{self.seconds:,.0f}"),
        ]
        return f'{markdown_table(rows, ["", "cache"], "lr")}\n\nWritten to {self.output}: GLMDTrainer(teacher="{self.output}")'


@trusting_as_asked
def cache_teacher(options: CacheOptions, progress: bool = True) -> CacheResult:
    """Runs the teacher over the data and writes what `GLMDTrainer` reads in its place.

    Killed and started again it goes on after the last whole file. Of several processes (`accelerate launch --module hf_glmd cache
    ...`) each runs the teacher over its share.

    Args:
        options: see there.
        progress: show progress bars.
    Raises: UsageError, something is missing or does not fit.
    """
    # Loaded here, for `hf-glmd cache --help` reads the options above and needs none of it.
    import torch
    from accelerate import PartialState

    from hf_glmd.data.sources import load_splits
    from hf_glmd.models.lengths import readable, row_length
    from hf_glmd.models.loading import load_config, load_word_model
    from hf_glmd.teachers.live import LiveTeacher
    from hf_glmd.teachers.writing import write_cache
    from hf_glmd.training.config import GLMDConfig
    from hf_glmd.training.datasets import token_rows
    from hf_glmd.training.objectives.kinds import default_collator
    from hf_glmd.vocab.mapped_tokenizer import load_tokenizer
    from hf_glmd.vocab.tokenizer_files import set_missing_pad_token
    from hf_glmd.vocab.vocab_map import FILE_NAME, VocabMap

    started = time.monotonic()
    on_cpu = not torch.accelerator.is_available()
    state = PartialState(cpu=on_cpu)
    args = GLMDConfig(
        output_dir=options.output,
        positions=options.positions,
        mlm_probability=options.mlm_probability,
        mask_replace_prob=options.mask_replace_prob,
        max_length=options.max_length,
        target_column=options.target_column,
        text_column=options.column,
        separate_documents=options.separate_documents,
        seed=options.seed,
        report_to="none",
        use_cpu=on_cpu,
    )
    load_config(options.model, options.revision)  # a wrong name is found before the data are read
    folder = options.tokenizer or options.model
    tokenizer = load_tokenizer(folder, None if options.tokenizer else options.revision)
    set_missing_pad_token(tokenizer)
    vocab_map = VocabMap.load(folder) if (Path(folder) / FILE_NAME).is_file() else None
    with state.main_process_first():  # the others read what it cached
        splits = [split for source in options.data for split in load_splits(source, column=options.column).values()]
    dtype = "float32" if on_cpu and options.model_dtype is None else MODEL_DTYPES.get(options.model_dtype or "", "auto")
    model = load_word_model(options.model, dtype=getattr(torch, dtype, dtype), revision=options.revision)
    collator = default_collator(args, tokenizer, model)
    teacher = LiveTeacher(model, vocab_map).to(state.device)
    limit = readable([model])
    length = row_length(options.max_length, limit, tokenizer)
    rows = [token_rows(split, tokenizer, args, length, limit) for split in splits]
    rows = [part.select(range(min(len(part), options.max_rows or len(part)))) for part in rows]
    parts = [(part, options.epochs) for part in rows if len(part)]
    cache = write_cache(
        teacher,
        parts,
        collator,
        tokenizer,
        options.output,
        data={"source": options.data, "max_length": length},
        batch_size=options.batch_size,
        kind=options.kind,
        dtype=options.dtype,
        k=options.k,
        temperature=options.temperature,
        shard_mib=options.shard_mib,
        progress=progress,
    )
    return CacheResult(
        output=options.output,
        kind=cache.settings.kind,
        dtype=cache.settings.dtype,
        rows=cache.rows,
        positions=cache.positions,
        bytes=cache.file_bytes,
        bytes_per_token=cache.file_bytes / cache.positions,
        seconds=time.monotonic() - started,
        fingerprint=cache.settings.fingerprint,
    )
