"""The model card of a student while it is trained: what its trainer knows, at each checkpoint."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from hf_glmd.reports.card import TAGS, Card, SourceCard, display_name, is_hub_name, without_token
from hf_glmd.utils.system import hardware, versions
from hf_glmd.utils.text import markdown_table, markdown_text

OBJECTIVES = {
    "word_prediction": "word prediction",
    "soft_label": "soft labels",
    "token_label": "soft labels of tokens",
    "span": "soft labels of answers' ends",
    "embedding": "embeddings of texts",
}


@dataclass
class Sizes:
    """Of a model before anything wraps or shards it.

    Attributes:
        name: Hub name or folder; empty: none.
        layers: None: its config does not say.
        vocabulary: tokens it knows.
    """

    name: str
    layers: int | None
    vocabulary: int
    parameters: int

    @classmethod
    def of(cls, model: nn.Module) -> Sizes:
        config = model.config.get_text_config()
        layers = getattr(config, "num_hidden_layers", None)
        if layers is not None and getattr(config, "is_encoder_decoder", False):
            layers += getattr(config, "num_decoder_layers", None) or 0
        parameters = sum(getattr(part, "ds_numel", part.numel()) for part in model.parameters())  # ZeRO-3 leaves empty ones
        return cls(model.config.name_or_path or "", layers, config.vocab_size, parameters)


def training_card(trainer: Any, load_from: str, **said: Any) -> str:
    """The card as of the trainer's last step.

    Args:
        trainer: with `student_sizes`, `teacher_sizes`, `pipeline_tag` and `source_card`.
        load_from: what the usage code loads.
        **said: of `Trainer.create_model_card`: what is given there goes before what the trainer knows.
    """
    args, student, vocab_map = trainer.args, trainer.student_sizes, trainer.vocab_map
    teachers: Sequence[Sizes] = trainer.teacher_sizes
    names = [one.name for one in teachers if one.name]
    base_model = said.get("finetuned_from") or (names[0] if len(names) == 1 else None)
    linked = [
        f"[{markdown_text(name)}](https://huggingface.co/{name})" if is_hub_name(name) else markdown_text(display_name(name))
        for name in names
    ]
    pipeline_tag = _one(said.get("tasks")) or trainer.pipeline_tag
    mine = trainer.source_card
    source = SourceCard(
        license=said.get("license") or mine.license,
        license_name=None if said.get("license") else mine.license_name,
        license_link=None if said.get("license") else mine.license_link,
        languages=_many(said.get("language")) or mine.languages,
        datasets=mine.datasets,
    )
    cut = vocab_map is not None and vocab_map.size < vocab_map.original_size
    tags = [*(TAGS if cut else TAGS[:2]), *(getattr(trainer.model, "model_tags", None) or []), *_many(said.get("tags"))]
    scores = _last_scores(trainer)
    facts = {
        "args": args,
        "state": trainer.state,
        "student": student,
        "teachers": linked,
        "vocab": vocab_map,
        "objectives": OBJECTIVES,
        "scores": scores,
        "batch": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
        "minutes": None if trainer.began is None else (time.monotonic() - trainer.began) / 60,
        "data": [*_many(said.get("dataset")), *_many(said.get("dataset_args"))] if said.get("dataset") else [],
        "hardware": hardware(),
        "library_versions": versions("hf_glmd", "torch", "transformers", "accelerate", "datasets", "tokenizers"),
    }
    return Card(
        template="training_card.md",
        name=said.get("model_name") or Path(args.output_dir).absolute().name,
        pipeline_tag=pipeline_tag,
        facts=facts,
        source=source,
        base_model=base_model,
        tags=tags,
        datasets=_many(said.get("dataset_tags")),
        eval_results=_eval_results(trainer),
        library="peft" if (Path(load_from) / "adapter_config.json").is_file() else "transformers",
        load_from=load_from,
        removed=vocab_map.removed if vocab_map is not None else "resegment",
        table_title="Beside its teacher",
        table=markdown_table(_rows(student, teachers, scores), ["", "teacher", "this model"], "lrr"),
        command=without_token(_command(), args.hub_token),
    ).render()


METRICS = {
    "agreement": "agreement with the teacher",
    "kl": "KL to the teacher, nats",
    "cosine": "cosine to the teacher's embedding",
}


def _rows(student: Sizes, teachers: Sequence[Sizes], scores: dict[str, float]) -> list[tuple[str, str, str]]:
    def of_teachers(name: str) -> str:
        values = [getattr(one, name) for one in teachers]
        return " + ".join("-" if value is None else f"{value:,}" for value in values) or "-"

    rows = [
        (label, of_teachers(name), f"{value:,}")
        for label, name in (("layers", "layers"), ("vocabulary (tokens)", "vocabulary"), ("parameters", "parameters"))
        if (value := getattr(student, name)) is not None
    ]
    if "kl" in scores:
        rows.append((f"KL to the teacher, step {scores['step']:,.0f} (nats)", "0", f"{scores['kl']:.3g}"))
    if "agreement" in scores:
        rows.append(("same top-1 answer as the teacher", "100%", f"{scores['agreement']:.1%}"))
    if "cosine" in scores:
        rows.append((f"cosine to the teacher's embedding, step {scores['step']:,.0f}", "1", f"{scores['cosine']:.4f}"))
    return rows


def _last_scores(trainer: Any) -> dict[str, float]:
    """Of the last evaluation, without the prefix `eval_`; of several evaluation sets the last one."""
    for entry in reversed(trainer.state.log_history):
        named = {name.rsplit("_", 1)[-1]: value for name, value in entry.items() if name.startswith("eval_")}
        found = {name: value for name, value in named.items() if name in METRICS}
        if found:
            return found | {"step": entry["step"]}
    return {}


def _eval_results(trainer: Any) -> list[Any]:
    from huggingface_hub import EvalResult

    scores = _last_scores(trainer)
    return [
        EvalResult(
            task_type=trainer.pipeline_tag,
            dataset_type="held-out",
            dataset_name="held-out rows",
            metric_type=name,
            metric_name=title,
            metric_value=round(scores[name], 4),
        )
        for name, title in METRICS.items()
        if name in scores
    ]


def _command() -> str:
    """How the program was called; nothing for a notebook or a shell."""
    return " ".join(["python", *sys.argv]) if sys.argv and sys.argv[0].endswith(".py") else ""


def _many(value: Any) -> list[str]:
    return [] if not value else [value] if isinstance(value, str) else [str(one) for one in value]


def _one(value: Any) -> str | None:
    return next(iter(_many(value)), None)
