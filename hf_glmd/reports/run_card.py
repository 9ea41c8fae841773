"""Records of a run as text: the table of teacher beside student, and the model card around it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_glmd.reports.card import TAGS, Card, SourceCard, display_name, is_hub_name, rendered
from hf_glmd.reports.plots import plot_titles
from hf_glmd.reports.records import ModelFacts, RunRecord, StageRecord, TaskScores, retained_share
from hf_glmd.utils.text import duration, markdown_table, markdown_text, one_line, percent

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

OBJECTIVES = {"word_prediction": "word prediction", "soft_label": "soft labels", "gold_labels": "gold labels"}

SCORED = ("majority", "teacher", "student")


def comparison_rows(record: RunRecord) -> list[tuple[str, str, str]]:
    """What a reader compares: (fact, teacher, student), in the order of size, speed, quality, text.

    The student's cell has its relation to the teacher in brackets where that helps. A fact that was not measured is "-" in
    the cell, and has no row if neither model has it.
    """
    teacher, student, words, vocab = record.teacher, record.student, record.words_final, record.vocab
    rows = [
        _count_row("layers", teacher.layers, student.layers),
        _count_row("vocabulary (tokens)", teacher.vocabulary, student.vocabulary),
        _count_row("parameters", teacher.parameters, student.parameters),
        _count_row("- of embeddings", teacher.embedding_parameters, student.embedding_parameters),
        _count_row("- of the body", teacher.body_parameters, student.body_parameters),
        ("weights file", _file_size(teacher), f"{_file_size(student)} {_share_of(student.file_bytes, teacher.file_bytes)}"),
        *_speed_rows(teacher, student),
        (
            f"{record.words_scored}-word accuracy (n={words.positions:,})",
            percent(words.teacher_accuracy),
            percent(words.accuracy),
        ),
    ]
    if _known(words.kl):
        labels, scores = _over_time(record)
        rows.append((f"KL to the teacher ({' -> '.join(labels)})", "0", " -> ".join(_nats(score) for score in scores)))
    if _known(words.agreement):
        rows.append(("same top-1 word as the teacher", "100%", percent(words.agreement)))
    if record.words_visible is not None:
        rows.append(("- where no word is masked", "100%", percent(record.words_visible.agreement)))
    if task := record.task:
        rows += [
            (f"{task.name}, {task.metric} (n={task.count:,})", percent(task.teacher), percent(task.student)),
            ("- always the commonest answer", percent(task.majority), percent(task.majority)),
            ("- same answer as the teacher", "100%", percent(task.agreement)),
        ]
    before, after = vocab.tokens_per_text_before, vocab.tokens_per_text_after
    rows += [
        ("text covered by its tokens", "100%", percent(vocab.coverage)),
        ("tokens per text", f"{before:,.1f}", f"{after:,.1f}" + (f" ({after / before:.2f}x)" if before else "")),
    ]
    return rows


def task_table(tasks: Sequence[TaskScores]) -> str:
    """One line per task: what the commonest answer scores, the teacher and the student, and their mean below; if all tasks of
    SuperGLUE are there, also the benchmark's own.

    "retained" is the student's share of the teacher's gain over the commonest answer, "-" where the teacher gains nothing; of the
    mean it is about the other tasks.
    """
    from hf_glmd.tasks.superglue import SUPERGLUE  # loads transformers, which a card without tasks need not wait for

    lines = [
        (task.name, task.metric, f"{task.count:,}", *_score_cells([task]), duration(task.seconds) if task.seconds else "-")
        for task in tasks
    ]
    benchmark = [task for task in tasks if task.name in SUPERGLUE]
    means = {"mean": tasks} | ({"SuperGLUE (mean of 8)": benchmark} if len(benchmark) == len(SUPERGLUE) else {})
    for name, part in means.items():
        total = sum(task.seconds for task in part)
        lines.append((name, "", "", *_score_cells(part), duration(total) if total else "-"))
    header = ["task", "metric", "n", "commonest", "teacher", "student", "difference", "retained", "time"]
    return markdown_table(lines, header, "llrrrrrrr")


def _score_cells(tasks: Sequence[TaskScores]) -> list[str]:
    majority, teacher, student = (sum(getattr(task, who) for task in tasks) / len(tasks) for who in SCORED)
    retained = retained_share(tasks)
    shown = [percent(value) for value in (majority, teacher, student)]
    return [*shown, f"{100 * (student - teacher):+.1f}", "-" if retained is None else f"{retained:.0%}"]


def terminal_table(record: RunRecord) -> str:
    """A title, the table of teacher beside student, and where and how long it was measured."""
    title = f"{display_name(record.name)}, distilled from {display_name(record.teacher.name)}"
    table = markdown_table(comparison_rows(record), ["", "teacher", "student"])
    if record.tasks:
        table += f"\n\n{task_table(record.tasks)}"
    return f"{title}\n\n{table}\n\nMeasured on {one_line(record.hardware)}. The run took {duration(record.seconds)}."


def render_card(
    record: RunRecord,
    *,
    folder: str | None = None,
    example: str = "The {mask} of the list is returned.",
    plots_dir: str | None = "plots",
    base_model: str | None = None,
    base_model_relation: str = "finetune",
    source: SourceCard | None = None,
    datasets: Sequence[str] = (),
    pipeline_tag: str = "fill-mask",
    task_columns: Sequence[str] = (),
) -> str:
    """The student's model card, metadata included. Every figure is the record's.

    Args:
        folder: what the usage code loads, a folder or Hub name. Unset: `record.name`.
        example: text of the usage code; `{mask}` stands for the mask token.
        plots_dir: where `save_plots` wrote to, relative to the card. None: a card without plots.
        base_model: Hub name of the teacher. A local folder is left out, for the Hub would take it for somebody's repository.
        base_model_relation: one of `BASE_MODEL_RELATIONS`.
        source: what the teacher's card says. None: nothing.
        datasets: Hub names of what was trained on.
        pipeline_tag: one of `AUTO_CLASSES`.
        task_columns: what the task reads that lies beside the model, for `ClozeClassifier`.
    Raises: UsageError, a value is not one of those named.
    """
    teacher, vocab = markdown_text(display_name(record.teacher.name)), record.vocab
    rows = [[markdown_text(cell) for cell in row] for row in comparison_rows(record)]
    table = markdown_table(rows, ["", f"teacher {teacher}", "this model"])
    linked = base_model is not None and is_hub_name(base_model)
    facts = {"run": record, "vocab": vocab, "teacher": f"[{teacher}](https://huggingface.co/{base_model})" if linked else teacher}
    return Card(
        template="run_card.md",
        name=display_name(record.name),
        pipeline_tag=pipeline_tag,
        facts=facts,
        source=source or SourceCard(),
        base_model=base_model,
        base_model_relation=base_model_relation,
        tags=TAGS if vocab.size < vocab.original_size else TAGS[:2],
        datasets=datasets,
        eval_results=_eval_results(record, datasets),
        load_from=folder,
        example=example,
        task_columns=task_columns,
        removed=vocab.removed,
        table_title="Beside its teacher",
        table=f"{table}\n\n{task_table(record.tasks)}" if record.tasks else table,
        plots=[] if plots_dir is None else _plot_links(record, plots_dir),
        stages=stage_table(record.stages),
        command=record.command,
    ).render()


def render_teacher_card(
    *,
    accuracy: float,
    positions: int,
    steps: int,
    minutes: float,
    parameters: int,
    versions: Mapping[str, str],
    args: Mapping[str, Any],
    corpus_texts: int,
    tokens_per_step: int,
    folder: str = "recipes/quickstart_teacher",
) -> str:
    """The card of the small teacher that comes with the repository.

    Args:
        accuracy: share of masked words found, in [0, 1], on `positions` positions of the test split.
        args: with `vocab_size`, `layers`, `hidden_size`, `block_size`, `batch_size`, `lr` (Muon's) and `embedding_lr` (AdamW's).
        corpus_texts: docstrings trained on.
        folder: what the usage code loads.
    """
    from huggingface_hub import ModelCardData

    name = Path(folder).name
    metadata = ModelCardData(
        model_name=name,
        library_name="transformers",
        pipeline_tag="fill-mask",
        tags=["bert", "docstrings", "glmd"],
        license="apache-2.0",
        language=["en"],
        metrics=["accuracy"],
        eval_results=[_docstring_score(accuracy)],
    )
    training = [
        ("parameters", f"{parameters:,}"),
        ("layers, width", f"{args['layers']}, {args['hidden_size']}"),
        ("vocabulary", f"{args['vocab_size']:,} WordPiece tokens"),
        ("longest input", f"{args['block_size']:,} tokens"),
        ("texts", f"{corpus_texts:,}"),
        ("steps", f"{steps:,} of {args['batch_size']:,} rows ({tokens_per_step:,} tokens)"),
        ("time", f"{minutes:g} min on 2 CPU cores"),
        ("optimizers", f"Muon (matrices, lr {args['lr']:g}) and AdamW (all else, lr {args['embedding_lr']:g})"),
    ]
    return rendered(
        "teacher_card.md",
        metadata,
        name=name,
        folder=json.dumps(folder, ensure_ascii=False),
        training=markdown_table(training, ["", "value"]),
        scores=markdown_table(
            [("masked-word accuracy, test split", percent(accuracy), f"{positions:,}")], ["", "score", "n"], "lrr"
        ),
        library_versions=versions,
        block_size=args["block_size"],
    )


def _docstring_score(accuracy: float) -> EvalResult:
    from huggingface_hub import EvalResult

    return EvalResult(
        task_type="fill-mask",
        dataset_type="docstrings",
        dataset_name="docstrings of installed libraries",
        dataset_split="test",
        metric_type="accuracy",
        metric_name="masked-word accuracy",
        metric_value=round(accuracy, 4),
    )


def _count_row(label: str, teacher: int, student: int) -> tuple[str, str, str]:
    return label, f"{teacher:,}", f"{student:,} {_share_of(student, teacher)}".strip()


def _share_of(part: float, whole: float) -> str:
    """In brackets, whole percents from 10% on."""
    if not whole:
        return ""
    share = part / whole
    text = f"{share:.0%}"
    return f"({text if 0.1 <= share and (text != '100%' or share == 1) else percent(share)})"


def _file_size(model: ModelFacts) -> str:
    megabytes = model.file_bytes / 1e6
    return f"{megabytes:,.{1 if megabytes >= 10 else 2}f} MB, {model.file_dtype}"


def _speed_rows(teacher: ModelFacts, student: ModelFacts) -> list[tuple[str, str, str]]:
    rows = []
    for batch_size in sorted({*teacher.tokens_per_second, *student.tokens_per_second}):
        speeds = [model.tokens_per_second.get(batch_size) for model in (teacher, student)]
        cells = ["-" if speed is None else f"{speed:,.0f}" for speed in speeds]
        if all(speeds):
            cells[1] += f" ({speeds[1] / speeds[0]:.1f}x)"
        rows.append((f"tokens/s, {batch_size} x {student.speed_length} tokens", *cells))
    return rows


def _over_time(record: RunRecord) -> tuple[list[str], list[float | None]]:
    """Names and values of the KL as the run went on. Stage 1 is left out where it is the end as well."""
    points = [("before", record.words_start), ("stage 1", record.words_general), ("final", record.words_final)]
    if record.words_general in (None, record.words_final):
        del points[1]
    return [name for name, _ in points], [scores.kl for _, scores in points]


def _nats(value: float | None) -> str:
    """Two digits after the point, or two that count."""
    if not _known(value):
        return "-"
    return f"{value:.2f}" if value >= 0.1 or value == 0 else f"{value:.2g}"


def _known(value: float | None) -> bool:
    return value is not None and not math.isnan(value)


def stage_table(stages: Sequence[StageRecord]) -> str:
    """One line per training stage."""
    rows = [
        [
            markdown_text(stage.title),
            "teacher" if stage.objective == "gold_labels" else "student",
            markdown_text(OBJECTIVES.get(stage.objective, stage.objective)),
            "-" if stage.temperature is None else f"{stage.temperature:g}",
            markdown_text(stage.positions or "-"),
            f"{stage.steps:,}",
            f"{stage.tokens:,}" if stage.tokens else "-",
            f"{stage.batch_size:,}",
            f"{stage.learning_rate:g}",
            f"{stage.seconds / 60:.1f}",
        ]
        for stage in stages
    ]
    header = ["stage", "trained", "objective", "temperature", "positions", "steps", "tokens", "batch", "learning rate", "minutes"]
    return markdown_table(rows, header, "lllrlrrrrr")


def _plot_links(record: RunRecord, plots_dir: str) -> list[str]:
    folder = plots_dir.replace("\\", "/").strip("/").replace(" ", "%20")
    return [f"![{markdown_text(title)}]({folder}/{name}.png)" for name, title in plot_titles(record).items()]


def _eval_results(record: RunRecord, datasets: Sequence[str]) -> list[EvalResult]:
    from huggingface_hub import EvalResult

    tasks = [
        EvalResult(
            task_type="text-classification",
            dataset_type=_slug(task.name),
            dataset_name=task.name,
            dataset_split="test",
            metric_type=_slug(task.metric),
            metric_name=task.metric,
            metric_value=round(task.student, 4),
        )
        for task in ([record.task] if record.task else [])
    ]
    words = EvalResult(
        task_type="fill-mask" if record.words_scored == "masked" else "text-generation",
        dataset_type=datasets[0] if datasets else _slug(record.corpus),
        dataset_name=one_line(record.corpus),
        metric_type="accuracy",
        metric_name=f"{record.words_scored}-word accuracy",
        metric_value=round(record.words_final.accuracy, 4),
    )
    return [*tasks, words]


def _slug(text: str) -> str:
    return re.sub(r"[^\w.]+", "-", text.lower()).strip("-")[:64] or "unnamed"
