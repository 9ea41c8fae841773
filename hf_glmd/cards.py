"""Records of a run as text: the table of teacher beside student, and the model card around it."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_glmd.errors import UsageError, nearest
from hf_glmd.plots import percent, plot_titles
from hf_glmd.records import ModelFacts, RunRecord, StageRecord, TaskScores, retained_share

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

TEMPLATES = Path(__file__).parent / "templates"
TAGS = ["glmd", "distillation", "vocabulary-compression"]
PAPER_URL = "https://arxiv.org/abs/2306.06625"

AUTO_CLASSES = {
    "fill-mask": "AutoModelForMaskedLM",
    "text-generation": "AutoModelForCausalLM",
    "text2text-generation": "AutoModelForSeq2SeqLM",
}
"""Hub pipeline tag -> the class that loads such a model."""

BASE_MODEL_RELATIONS = ("adapter", "finetune", "merge", "quantized")
"""What the Hub knows; it has no word for distilled."""

REMOVED = {
    "resegment": "What was cut is split into smaller kept pieces, so no text is lost and the tokenizer is a plain one.",
    "nearest": "At the input each removed token is replaced by the most similar kept token, so different words can look alike.",
    "unk": "At the input each removed token becomes the unknown token, so what it said is lost.",
}

OBJECTIVES = {"word_prediction": "word prediction", "soft_label": "soft labels", "gold_labels": "gold labels"}

REMOVED_EXAMPLES_SHOWN = 20

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
        (f"masked-word accuracy (n={words.positions:,})", percent(words.teacher_accuracy), percent(words.accuracy)),
    ]
    if _known(words.kl):
        labels, scores = _over_time(record)
        rows.append((f"KL to the teacher ({' -> '.join(labels)})", "0", " -> ".join(_nats(score) for score in scores)))
    if _known(words.agreement):
        rows.append(("same likeliest word as the teacher", "100%", percent(words.agreement)))
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


def markdown_table(rows: Sequence[Sequence[str]], header: Sequence[str], align: str | None = None) -> str:
    """A Markdown table whose columns are padded, so that the same text is legible in a terminal.

    Args:
        rows: cells, as many per row as `header` has. A `|` in a cell is escaped, a line break becomes a space.
        align: one letter per column, "l" or "r". Unset: all left.
    Raises: ValueError, a row or `align` has another number of columns.
    """
    align = align or "l" * len(header)
    table = [[_cell(cell) for cell in row] for row in [header, *rows]]
    if any(len(row) != len(header) for row in [*table, align]):
        raise ValueError(f"every row needs the {len(header)} columns of the header {list(header)}.")
    widths = [max(3, *(_width(row[column]) for row in table)) for column in range(len(header))]
    rule = ["-" * (width - 1) + ":" if side == "r" else "-" * width for width, side in zip(widths, align, strict=True)]
    lines = [[_padded(*cell) for cell in zip(row, widths, align, strict=True)] for row in table]
    return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], rule, *lines[1:]])


def task_table(tasks: Sequence[TaskScores]) -> str:
    """One line per task: what the commonest answer scores, the teacher and the student, and their mean below.

    "retained" is the student's share of the teacher's gain over the commonest answer, "-" where the teacher gains nothing.
    """
    lines = [
        (task.name, task.metric, f"{task.count:,}", *_score_cells([task]), duration(task.seconds) if task.seconds else "-")
        for task in tasks
    ]
    total = sum(task.seconds for task in tasks)
    lines.append(("mean", "", "", *_score_cells(tasks), duration(total) if total else "-"))
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
    return f"{title}\n\n{table}\n\nMeasured on {_one_line(record.hardware)}. The run took {duration(record.seconds)}."


def render_card(
    record: RunRecord,
    *,
    folder: str | None = None,
    example: str = "The {mask} of the list is returned.",
    plots_dir: str | None = "plots",
    base_model: str | None = None,
    base_model_relation: str = "finetune",
    teacher_license: str | None = None,
    languages: Sequence[str] | None = None,
    datasets: Sequence[str] | None = None,
    pipeline_tag: str = "fill-mask",
    removed: str = "resegment",
) -> str:
    """The student's model card, metadata included. Every figure is the record's.

    Args:
        folder: what the usage code loads, a folder or Hub name. Unset: `record.name`.
        example: text of the usage code; `{mask}` stands for the mask token.
        plots_dir: where `save_plots` wrote to, relative to the card. None: a card without plots.
        base_model: Hub name of the teacher. A local folder is left out, for the Hub would take it for somebody's repository.
        base_model_relation: one of `BASE_MODEL_RELATIONS`.
        teacher_license, languages, datasets: as the Hub spells them; unset ones stay out of the card.
        pipeline_tag: one of `AUTO_CLASSES`.
        removed: what `VocabShrinker.shrink` did with removed tokens: "resegment", "nearest" or "unk".
    Raises: UsageError, a value is not one of those named.
    """
    from huggingface_hub import ModelCard, ModelCardData

    _check("pipeline_tag", pipeline_tag, AUTO_CLASSES)
    _check("base_model_relation", base_model_relation, BASE_MODEL_RELATIONS)
    _check("removed", removed, REMOVED)
    name = display_name(record.name)
    if base_model is not None and not is_hub_name(base_model):
        base_model = None
    metadata = ModelCardData(
        model_name=name,
        library_name="transformers",
        pipeline_tag=pipeline_tag,
        tags=TAGS,
        license=teacher_license,
        language=list(languages) if languages else None,
        datasets=list(datasets) if datasets else None,
        base_model=base_model,
        base_model_relation=base_model_relation if base_model else None,
        metrics=["accuracy"],
        eval_results=_eval_results(record, datasets),
    )
    teacher = display_name(record.teacher.name)
    rows = [[markdown_text(cell) for cell in row] for row in comparison_rows(record)]
    card = ModelCard.from_template(
        metadata,
        template_path=str(TEMPLATES / "model_card.md"),
        record=record,
        name=markdown_text(name),
        teacher=f"[{markdown_text(teacher)}](https://huggingface.co/{base_model})" if base_model else markdown_text(teacher),
        folder=json.dumps(folder or name, ensure_ascii=False),
        example=json.dumps(example, ensure_ascii=False),
        auto_class=AUTO_CLASSES[pipeline_tag],
        table=markdown_table(rows, ["", f"teacher {markdown_text(teacher)}", "this model"]),
        stages=_stage_table(record.stages),
        teacher_is_tuned=any(stage.objective == "gold_labels" for stage in record.stages),
        plots=[] if plots_dir is None else _plot_links(record, plots_dir),
        hardware=markdown_text(record.hardware),
        corpus=markdown_text(record.corpus),
        duration=duration(record.seconds),
        versions=_versions(record.versions),
        coverage=percent(record.vocab.coverage),
        removed=REMOVED[removed],
        examples=", ".join(code_span(token) for token in record.vocab.removed_examples[:REMOVED_EXAMPLES_SHOWN]),
        task=markdown_text(record.task.name) if record.task else None,
        licence=None if teacher_license is None else markdown_text(teacher_license),
        paper_url=PAPER_URL,
    )
    return _tidy(str(card))


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
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    name = Path(folder).name
    score = EvalResult(
        task_type="fill-mask",
        dataset_type="docstrings",
        dataset_name="docstrings of installed libraries",
        dataset_split="test",
        metric_type="accuracy",
        metric_name="masked-word accuracy",
        metric_value=round(accuracy, 4),
    )
    metadata = ModelCardData(
        model_name=name,
        library_name="transformers",
        pipeline_tag="fill-mask",
        tags=["bert", "docstrings", "glmd"],
        license="apache-2.0",
        language=["en"],
        metrics=["accuracy"],
        eval_results=[score],
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
    card = ModelCard.from_template(
        metadata,
        template_path=str(TEMPLATES / "teacher_card.md"),
        name=name,
        folder=json.dumps(folder, ensure_ascii=False),
        training=markdown_table(training, ["", "value"]),
        scores=markdown_table(
            [("masked-word accuracy, test split", percent(accuracy), f"{positions:,}")], ["", "score", "n"], "lrr"
        ),
        versions=_versions(versions),
        block_size=args["block_size"],
    )
    return _tidy(str(card))


def card_tags(path: Path) -> list[str]:
    """The tags in the metadata of a card; none if it has no metadata that can be read."""
    import yaml
    from huggingface_hub import ModelCard

    try:
        return list(ModelCard.load(path, ignore_metadata_errors=True).data.tags or [])
    except (OSError, ValueError, TypeError, yaml.YAMLError):
        return []


def named_in_usage(text: str, name: str) -> str:
    """A card whose usage code loads `name`, a repository, in place of the folder it was written in."""
    line = f"name = {json.dumps(name, ensure_ascii=False)}"
    return re.sub(r'^name = ".*"$', lambda _: line, text, count=1, flags=re.MULTILINE)


def is_hub_name(name: str) -> bool:
    """Whether `name` can be a repository on the Hub: well-formed and no file or folder here."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not Path(name).exists()


def display_name(name: str) -> str:
    """A Hub name as it is; of a local path its last part, so that a card does not tell where somebody keeps their files."""
    return name if is_hub_name(name) else re.split(r"[\\/]", name.rstrip("\\/"))[-1] or name


def duration(seconds: float) -> str:
    """45 -> "45 s", 754 -> "12.6 min", 9000 -> "2.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def markdown_text(text: str) -> str:
    """Free text that Markdown shows as it is. Underscores within words stay plain: they are harmless and frequent."""
    return re.sub(r"([\\`*\[<~])|(?<![^\W_])(_)|(_)(?![^\W_])", lambda match: "\\" + match[0], _one_line(text))


def code_span(text: str) -> str:
    """A token as Markdown code, whatever backticks, spaces or line breaks it has."""
    text = re.sub(r"[\n\r\t\v\f\x85\u2028\u2029]", lambda match: repr(match[0])[1:-1], text)
    fence = "`" * (max(map(len, re.findall("`+", text)), default=0) + 1)
    pad = " " if text.startswith("`") or text.endswith("`") or (text[:1] == text[-1:] == " " and text.strip()) else ""
    return f"{fence}{pad}{text}{pad}{fence}"


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


def _stage_table(stages: Sequence[StageRecord]) -> str:
    rows = [
        [
            markdown_text(stage.title),
            "teacher" if stage.objective == "gold_labels" else "student",
            markdown_text(OBJECTIVES.get(stage.objective, stage.objective)),
            "-" if stage.temperature is None else f"{stage.temperature:g}",
            markdown_text(stage.positions or "-"),
            f"{stage.steps:,}",
            f"{stage.batch_size:,}",
            f"{stage.learning_rate:g}",
            f"{stage.seconds / 60:.1f}",
        ]
        for stage in stages
    ]
    header = ["stage", "trained", "objective", "temperature", "positions", "steps", "batch", "learning rate", "minutes"]
    return markdown_table(rows, header, "lllrlrrrr")


def _plot_links(record: RunRecord, plots_dir: str) -> list[str]:
    folder = plots_dir.replace("\\", "/").strip("/").replace(" ", "%20")
    return [f"![{markdown_text(title)}]({folder}/{name}.png)" for name, title in plot_titles(record).items()]


def _eval_results(record: RunRecord, datasets: Sequence[str] | None) -> list[EvalResult]:
    from huggingface_hub import EvalResult

    results = [
        EvalResult(
            task_type="fill-mask",
            dataset_type=datasets[0] if datasets else _slug(record.corpus),
            dataset_name=_one_line(record.corpus),
            metric_type="accuracy",
            metric_name="masked-word accuracy",
            metric_value=round(record.words_final.accuracy, 4),
        )
    ]
    if task := record.task:
        results.insert(
            0,
            EvalResult(
                task_type="text-classification",
                dataset_type=_slug(task.name),
                dataset_name=task.name,
                dataset_split="test",
                metric_type=_slug(task.metric),
                metric_name=task.metric,
                metric_value=round(task.student, 4),
            ),
        )
    return results


def _slug(text: str) -> str:
    return re.sub(r"[^\w.]+", "-", text.lower()).strip("-")[:64] or "unnamed"


def _versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{markdown_text(library)} {markdown_text(version)}" for library, version in versions.items())


def _check(option: str, value: str, known: Sequence[str] | Mapping[str, Any]) -> None:
    if value not in known:
        raise UsageError(f"{option}={value!r} is not known. {nearest(value, known)}")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _cell(text: str) -> str:
    return re.sub(r"[\r\n]+", " ", text).replace("|", "\\|")


def _padded(text: str, width: int, side: str) -> str:
    space = " " * (width - _width(text))
    return space + text if side == "r" else text + space


def _width(text: str) -> int:
    """Columns in a terminal: wide characters take two, combining ones none."""
    return sum(0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


def _tidy(text: str) -> str:
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"
