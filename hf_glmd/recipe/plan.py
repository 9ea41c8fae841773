"""What a recipe would do, said before it does it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import TrainingArguments

from hf_glmd.errors import UsageError
from hf_glmd.hub.push import HubTarget
from hf_glmd.models.loading import word_model_class
from hf_glmd.recipe.config import Recipe
from hf_glmd.recipe.forecast import forecast
from hf_glmd.recipe.run import Run
from hf_glmd.reports.records import STAGES
from hf_glmd.training.config import GLMDConfig
from hf_glmd.utils.remote_code import trust_remote_code, trusting_as_asked

DOCSTRINGS = "docstrings"
"""The corpus that takes a minute to collect, which a plan does not wait for."""


@trusting_as_asked
def print_plan(recipe: Recipe, calibrate: bool = False) -> None:
    """Checks all that can be known without weights and prints what a run would do.

    Args:
        calibrate: also run a few steps of each stage, and print what a run would take.
    Raises: UsageError, something is missing or does not fit.
    """
    run = Run(recipe)
    run.stages.check()
    notes = []
    plan: list[tuple[str, str]] = [
        ("output", str(run.run_folder.path) + (" (exists)" if (run.run_folder.path / "run.json").exists() else ""))
    ]
    try:
        run.inputs.check_teacher()
        config = run.inputs.teacher_config
        before = _parameters(config)
        plan.append(("teacher", f"{recipe.teacher.model}: {config.num_hidden_layers} layers, {before:,} parameters"))
        wanted = _wanted_tokens(recipe, config.vocab_size)
        start = f"from {recipe.student.model}" if recipe.student.model else f"init from {recipe.student.init}"
        plan.append(("student", f"{run.inputs.num_layers} layers, {wanted}, {start}"))
    except UsageError as error:
        if not _is_unreachable(error):
            raise
        notes.append(f"teacher '{recipe.teacher.model}': on the Hub, which cannot be reached from here")
    sources = [("corpus", recipe.corpus.name, recipe.corpus.name, lambda: run.inputs.corpus)]
    for task in run.inputs.tasks:
        data = task.section.data
        sources.append(("task", f"{task.section.name} ({data})", data, lambda task=task: task.data))
    for what, name, source, look in sources:
        if source == DOCSTRINGS:
            plan.append((what, f"{name}: of the installed libraries, collected when the run starts"))
            continue
        try:
            sizes = {split: f"{len(part):,}" if hasattr(part, "__len__") else "streamed" for split, part in look().items()}
            rows = ", ".join(f"{split} {size}" for split, size in sizes.items() if split != "student")
            plan.append((what, f"{name}: {rows}"))
        except UsageError as error:
            if not _is_unreachable(error):
                raise
            notes.append(f"{what} '{name}': not found here, and the Hub cannot be reached")
    for name in STAGES:
        if getattr(recipe, name) is not None:
            plan.append((name, _stage_in_words(run.stages.arguments(name))))
    if recipe.cache is not None:
        where = recipe.cache.folder or "the output folder, until the stage is done"
        plan.append(("cache", f"{', '.join(recipe.cache.stages)}: {recipe.cache.kind}, in {where}"))
    if (push := run.run_folder.push_options) is not None:
        target = HubTarget(push.repo, push.revision)
        plan.append(("pushed to", f"{target.repo}, branch {target.revision}{', private' if push.private else ''}"))
    width = max(len(what) for what, _ in plan)
    lines = [f"{what:<{width}}  {text}" for what, text in plan] + [f"not checked: {note}" for note in notes]
    run.run_folder.say("\n".join(lines))
    if calibrate:
        run.run_folder.say("\n" + forecast(recipe).table())


def _stage_in_words(args: TrainingArguments) -> str:
    length = f"{args.max_steps:,} steps" if args.max_steps > 0 else f"{args.num_train_epochs:g} epochs"
    batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    text = f"{length} of {batch} rows, learning rate {args.learning_rate:g}"
    if isinstance(args, GLMDConfig):
        positions = f", {args.positions} positions" if args.objective == "word_prediction" else ""
        return f"{args.objective}, T = {args.temperature:g}{positions}; {text}"
    return f"labels, for the teacher only; {text}"


def _wanted_tokens(recipe: Recipe, rows: int) -> str:
    section = recipe.vocab
    if section.coverage is not None:
        return f"the tokens that cover {section.coverage:.2%} of the text, of {rows:,}"
    if section.min_count is not None:
        return f"the tokens counted {section.min_count:,} times or more, of {rows:,}"
    size = section.size if section.size is not None else rows
    return f"{size if isinstance(size, int) else int(np.ceil(size * rows)):,} of {rows:,} tokens"


def _parameters(config: Any) -> int:
    with torch.device("meta"):
        return word_model_class(config).from_config(config, trust_remote_code=trust_remote_code()).num_parameters()


def _is_unreachable(error: UsageError) -> bool:
    cause = str(error.__cause__ or "").lower()
    return any(words in cause for words in ("connect", "offline", "couldn't reach", "cannot reach", "resolve host", "proxy"))
