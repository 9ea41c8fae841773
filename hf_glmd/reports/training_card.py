"""The model card of a student while it is trained: what its trainer knows, at each checkpoint."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from hf_glmd.reports.card import (
    KINDS,
    PAPER_URL,
    REMOVED,
    TAGS,
    Card,
    SourceCard,
    display_name,
    is_hub_name,
    versions_in_words,
    without_token,
)
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
    return Card(
        name=said.get("model_name") or Path(args.output_dir).absolute().name,
        pipeline_tag=pipeline_tag,
        summary=f"A {KINDS.get(pipeline_tag, 'language model')} with {student.vocabulary:,} tokens, distilled from "
        f"{' and '.join(linked) or 'its teacher'} by {_taught(args)}.",
        source=source,
        base_model=base_model,
        tags=tags,
        datasets=_many(said.get("dataset_tags")),
        eval_results=_eval_results(trainer),
        library="peft" if (Path(load_from) / "adapter_config.json").is_file() else "transformers",
        load_from=load_from,
        removed=vocab_map.removed if vocab_map is not None else "resegment",
        table_title="Beside its teacher",
        table=markdown_table(_rows(student, teachers, _last_scores(trainer)), ["", "teacher", "this model"], "lrr"),
        table_note=_note(_last_scores(trainer)),
        how=[
            _stage_in_words(trainer),
            *(
                [f"Data: {markdown_text(', '.join([*_many(said.get('dataset')), *_many(said.get('dataset_args'))]))}."]
                if said.get("dataset")
                else []
            ),
            f"On {markdown_text(hardware())}, with "
            f"{versions_in_words(versions('hf_glmd', 'torch', 'transformers', 'accelerate', 'datasets', 'tokenizers'))}.",
        ],
        command=without_token(_command(), args.hub_token),
        cut=[f"Of {vocab_map.original_size:,} tokens, {vocab_map.size:,} stayed. {REMOVED[vocab_map.removed]}"] if cut else [],
        limits=[
            "Text of another kind than what it was trained on is predicted worse; measure on yours.",
            "The figures are of one run; another seed gives slightly different ones.",
            "What the teacher has learned wrongly, biases included, the student copies.",
        ],
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


def _note(scores: dict[str, float]) -> str:
    if "cosine" in scores:
        return "The cosine is the mean over the held-out texts."
    if not scores:
        return ""
    return (
        "KL(teacher || student) at temperature 1 and agreement are means over the held-out positions, among the student's tokens."
    )


def _taught(args: Any) -> str:
    if args.objective == "embedding":
        return f"its embeddings of texts ({args.pooling} pooling), without labels"
    if args.objective not in OBJECTIVES:  # of a user's own, of which it is unknown what it looks at
        return f"{markdown_text(args.objective)}, an objective of its maker's own"
    return f"[GLMD]({PAPER_URL}): taught by its predictions alone, without its hidden states and without gold labels"


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


def _stage_in_words(trainer: Any) -> str:
    args, state = trainer.args, trainer.state
    batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    positions = f", {args.positions} positions" if args.objective == "word_prediction" else ""
    objective = OBJECTIVES.get(args.objective, markdown_text(args.objective))
    text = (
        f"Objective: {objective} at temperature {args.temperature:g}{positions}. {state.global_step:,} of "
        f"{state.max_steps:,} steps of {batch:,} rows, learning rate {args.learning_rate:g}, seed {args.seed}"
    )
    if state.num_input_tokens_seen:
        text += f", {int(state.num_input_tokens_seen):,} tokens read"
    if trainer.began is not None:
        text += f", {(time.monotonic() - trainer.began) / 60:.1f} minutes"
    return f"{text}."


def _command() -> str:
    """How the program was called; nothing for a notebook or a shell."""
    return " ".join(["python", *sys.argv]) if sys.argv and sys.argv[0].endswith(".py") else ""


def _many(value: Any) -> list[str]:
    return [] if not value else [value] if isinstance(value, str) else [str(one) for one in value]


def _one(value: Any) -> str | None:
    return next(iter(_many(value)), None)
