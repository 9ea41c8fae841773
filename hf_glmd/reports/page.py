"""`hf-glmd report`: everything about a folder this package wrote, as one page that needs no network."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from hf_glmd.errors import UsageError
from hf_glmd.reports.card import PAPER_URL, REMOVED, TEMPLATES, display_name, without_token
from hf_glmd.reports.drawing import BLUE, ORANGE, Plot, evenly, figure_class
from hf_glmd.reports.folder import CacheFacts, CheckpointFacts, FolderFacts, StageFacts, read_folder
from hf_glmd.reports.ledger import ledger_cells
from hf_glmd.reports.options import REPORT_PAGE
from hf_glmd.reports.plots import curve_plot, parameter_plot, run_plots, task_plot
from hf_glmd.reports.records import RunRecord, TaskScores, gained, retained_share
from hf_glmd.reports.run_card import OBJECTIVES, comparison_rows
from hf_glmd.reports.tail import tail_title, vocabulary_plot
from hf_glmd.reports.vocab_report import VocabReport
from hf_glmd.utils.files import replaced
from hf_glmd.utils.text import bytes_in_words, duration, percent, percent_of, visible


def write_report(
    directory: str | os.PathLike[str], output: str | os.PathLike[str] | None = None, name: str | None = None
) -> Path:
    """Writes a page about everything that a folder holds; it replaces an older one.

    Args:
        directory: what a recipe, `hf-glmd shrink`, `GLMDTrainer` or a teacher's cache wrote, or a folder inside of a run.
        output: the file. None: `report.html` in the folder.
        name: what the page calls the folder. None: as it is called.
    Returns: the file.
    Raises: UsageError, the folder is missing or holds nothing of ours, or a file of it cannot be read.
    """
    directory = Path(directory)
    facts = read_folder(directory)
    page = render_report(facts if name is None else dataclasses.replace(facts, name=name))
    path = Path(output) if output is not None else directory / REPORT_PAGE
    with replaced(path) as unfinished:
        unfinished.write_text(page, encoding="utf-8")
    return path


def report_data(directory: str | os.PathLike[str]) -> str:
    """What the page is made from, as JSON. Raises: as `write_report`."""
    return without_token(json.dumps(dataclasses.asdict(read_folder(Path(directory))), indent=1, ensure_ascii=False))


def render_report(facts: FolderFacts) -> str:
    """The page. Every number on it is one of `facts`, or follows from them."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["visible"] = visible
    run, plots = facts.run, _plots(facts)
    page = environment.get_template("report.html").render(
        facts=facts,
        run=run,
        title=display_name(run.name) if run else facts.name,
        subtitle=_subtitle(facts),
        tiles=_tiles(facts),
        plots=plots,
        titles=_titles(facts, plots),
        numbers=_numbers,
        **_drawing(),
        comparison=_comparison(run) if run else [],
        tasks=[_task_view(task) for task in facts.tasks],
        task_mean=_mean(facts.tasks) if len(facts.tasks) > 1 else None,
        stages=[_stage_view(stage) for stage in facts.stages],
        vocabulary=_vocabulary_rows(facts),
        verified=_verified(facts.vocabulary),
        scripts=_script_rows(facts.vocabulary),
        ledger=ledger_cells(facts.vocabulary.ledger) if facts.vocabulary and facts.vocabulary.ledger else None,
        removed_examples=_removed_examples(facts),
        removed_note=REMOVED.get(facts.removed or ""),
        checkpoint=_checkpoint_rows(facts.checkpoint) if facts.checkpoint and not run else [],
        cache=_cache_rows(facts.cache) if facts.cache else [],
        made_from=[(name, _plain(value)) for name, value in facts.cache.made_from.items()] if facts.cache else [],
        recipe=yaml.safe_dump(_without_unset(facts.recipe), sort_keys=False, allow_unicode=True) if facts.recipe else "",
        question_samples=[(task.name, task.samples) for task in facts.tasks if task.samples],
        how=_how_rows(run) if run else [],
        command=run.command.replace(" --", " \\\n  --") if run else "",
        paper_url=PAPER_URL,
    )
    return without_token(page).replace("<token>", "&lt;token&gt;")


def _subtitle(facts: FolderFacts) -> str:
    if facts.run:
        return f"distilled from {display_name(facts.run.teacher.name)}"
    if facts.recipe:
        return "A recipe's run, not finished yet"
    kinds = [
        ("smaller vocabulary", facts.vocabulary or facts.removed),
        ("training", facts.stages),
        ("a teacher's predictions on disk", facts.cache),
    ]
    return " and ".join(name for name, there in kinds if there).capitalize()


def _tiles(facts: FolderFacts) -> list[tuple[str, str]]:
    """(figure, what it is) of what matters most."""
    run, report = facts.run, facts.vocabulary
    tiles = []
    if run:
        tiles.append((percent_of(run.student.parameters, run.teacher.parameters), "of the teacher's parameters"))
        sizes = [size for size in run.student.tokens_per_second if run.teacher.tokens_per_second.get(size)]
        if sizes:
            ratio = run.student.tokens_per_second[max(sizes)] / run.teacher.tokens_per_second[max(sizes)]
            tiles.append((f"{ratio:.1f}×", f"its speed, at batch size {max(sizes)}"))
        retained = retained_share(facts.tasks) if facts.tasks else None
        if retained is not None:
            won, count = len(gained(facts.tasks)), len(facts.tasks)
            where = f"{f'{won} of ' if won < count else ''}{count} tasks" if count > 1 else facts.tasks[0].name
            tiles.append((f"{retained:.0%}", f"of its gain over the commonest answer, on {where}"))
        if run.words_final.agreement is not None:
            tiles.append((percent(run.words_final.agreement), f"of {run.words_scored} words: the same top-1 one"))
    elif report:
        if report.model_before and report.model_after:
            share = percent_of(report.model_after.parameters, report.model_before.parameters)
            tiles.append((share, "of the parameters"))
        tiles += [
            (percent_of(report.size, report.original_size), "of the tokens"),
            (percent(report.coverage), "of the counted text covered by them"),
            (f"{report.length_ratio:.3f}×", "tokens per text"),
        ]
    elif facts.cache:
        tiles = [(f"{facts.cache.positions:,}", "positions"), (bytes_in_words(facts.cache.bytes), "on disk")]
    elif facts.stages:
        stage = facts.stages[-1]
        tiles = [(f"{stage.step:,}", f"of {stage.max_steps:,} steps")]
        for name in ("kl", "agreement"):
            if curve := stage.curves.get(name):
                tiles.append((_curve_value(name, curve[-1][1]), f"{LABELS[name]} at the end"))
    return tiles


def _plots(facts: FolderFacts) -> dict[str, Plot]:
    """Section -> chart, but for the curves of training."""
    plots = run_plots(facts.run) if facts.run else {}
    report = facts.vocabulary
    if report and (tail := vocabulary_plot(report)):
        plots["long_tail"] = tail  # it knows which tokens were kept
    if not facts.run and report and report.model_before and report.model_after:
        models = [
            (who, sizes.vocabulary_parameters, sizes.parameters - sizes.vocabulary_parameters)
            for who, sizes in (("before", report.model_before), ("after", report.model_after))
        ]
        share = percent_of(report.model_after.parameters, report.model_before.parameters)
        plots["parameters"] = parameter_plot(models, f"The model has {share} of its parameters left")
    if not facts.run and facts.tasks:
        plots["tasks"] = task_plot(facts.tasks, "")
    return plots


def _titles(facts: FolderFacts, plots: Mapping[str, Plot]) -> dict[str, str]:
    """Section -> what it shows, in words."""
    counted = {"long_tail": tail_title(facts.vocabulary)} if facts.vocabulary else {}
    return counted | {name: plot.title for name, plot in plots.items()}


def _drawing() -> dict[str, Any]:
    """`draw`: what makes the SVG of a chart, and `not_drawn`: why it does not, if it does not."""
    try:
        figure_class()
    except UsageError as error:  # the page is worth having without its charts: their numbers are in tables
        return {"draw": None, "not_drawn": str(error).replace("plots", "Charts", 1)}
    ids = itertools.count(1)
    return {"draw": lambda plot: Markup(plot.svg(f"chart{next(ids)}")), "not_drawn": ""}


def _numbers(plot: Plot, most: int | None) -> list[list[str]]:
    """Header and rows of a chart's table, as a reader expects them; at most that many rows, evenly chosen."""
    header, *rows = plot.table
    rows = evenly(rows, most or len(rows))
    shown = [percent if name in plot.shares else _number for name in header]
    return [
        [name.replace("_", " ") for name in header],
        *([show(cell) for show, cell in zip(shown, row, strict=True)] for row in rows),
    ]


def _number(value: Any) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.4g}" if isinstance(value, float) and abs(value) < 1e4 else f"{value:,.0f}"


def _comparison(run: RunRecord) -> list[tuple[str, str, str]]:
    """As on the card and in the terminal, in better type."""
    return [
        tuple(re.sub(r"(?<=\d)x(?=\W|$)| x (?=\d)", "×", cell.replace("->", "→")) for cell in row) for row in comparison_rows(run)
    ]


def _task_view(task: TaskScores) -> dict[str, str]:
    """Cells of the table."""
    return {
        "name": task.name,
        "metric": task.metric.replace("_", " "),
        "count": f"{task.count:,}",
        **_score_cells([task]),
        "agreement": percent(task.agreement),
        "time": duration(task.seconds) if task.seconds else "-",
    }


def _mean(tasks: Sequence[TaskScores]) -> dict[str, str]:
    return _score_cells(tasks) | {"time": duration(sum(task.seconds for task in tasks))}


def _score_cells(tasks: Sequence[TaskScores]) -> dict[str, str]:
    means = {who: sum(getattr(task, who) for task in tasks) / len(tasks) for who in ("majority", "teacher", "student")}
    retained = retained_share(tasks)
    cells = {who: percent(value).replace("-", "−") for who, value in means.items()}
    cells["difference"] = f"{100 * (means['student'] - means['teacher']):+.1f}".replace("-", "−")
    return cells | {"retained": "-" if retained is None else f"{retained:.0%}".replace("-", "−")}


LABELS = {
    "kl": "KL to the teacher (nats)",
    "agreement": "same top-1 token as the teacher",
    "accuracy": "accuracy on held-out questions",
    "held-out loss": "held-out loss",
    "training loss": "training loss",
    "learning rate": "learning rate",
}
SHARES = ("agreement", "accuracy")
"""Curves of shares."""


def _curve_value(name: str, value: float) -> str:
    return percent(value) if name in SHARES else f"{value:.4g}"


def _stage_view(stage: StageFacts) -> dict[str, Any]:
    record = stage.record
    trained = "teacher" if record and record.objective == "gold_labels" else "student"
    rows: list[tuple[str, str]] = []
    if record:
        rows = [
            ("trained", trained),
            ("objective", OBJECTIVES.get(record.objective, record.objective)),
            ("temperature", "-" if record.temperature is None else f"{record.temperature:g}"),
            ("positions", record.positions or "-"),
            ("steps", f"{record.steps:,}"),
            ("batch size", f"{record.batch_size:,}"),
            ("learning rate", f"{record.learning_rate:g}"),
            *([("tokens read", f"{record.tokens:,}")] if record.tokens else []),
            ("time", duration(record.seconds)),
        ]
    elif stage.max_steps:
        rows = [("steps", f"{stage.step:,} of {stage.max_steps:,}")]
    return {
        "title": stage.title,
        "task": stage.task,
        "unfinished": record is None and stage.step < stage.max_steps,
        "rows": rows,
        "charts": [
            curve_plot(name, LABELS[name], curve, BLUE if trained == "teacher" else ORANGE, name in SHARES)
            for name, curve in stage.curves.items()
        ],
        "settings": [(name, _plain(value)) for name, value in stage.settings.items()],
    }


def _vocabulary_rows(facts: FolderFacts) -> list[tuple[str, str]]:
    run, report = facts.run, facts.vocabulary
    if run is None and report is None:
        return []
    vocab = run.vocab if run else report
    rows = [
        ("tokens before", f"{vocab.original_size:,}"),
        ("tokens kept", f"{vocab.size:,} ({percent_of(vocab.size, vocab.original_size)})"),
        ("text covered by kept tokens", percent(vocab.coverage)),
        ("tokens per text, after / before", f"{vocab.length_ratio:.3f}"),
    ]
    if run:
        before, after = run.vocab.tokens_per_text_before, run.vocab.tokens_per_text_after
        rows.append(("tokens per held-out text", f"{before:,.1f} before, {after:,.1f} after"))
    if report:
        rows += [
            ("counted", f"{report.counted_tokens:,} tokens in {report.texts:,} texts"),
            ("kept as special tokens", f"{report.n_special:,}"),
            ("kept for spelling: single characters and bytes", f"{report.n_alphabet:,}"),
            ("kept because they were named", f"{report.n_keep:,}"),
        ]
        if report.n_control:
            shown = ", ".join(visible(token) for token in report.control_examples[:3])
            rows.append((f"kept as sentinels or marks, such as {shown}", f"{report.n_control:,}"))
        if report.n_closure:
            rows.append(("kept though rarer: others are merged from them", f"{report.n_closure:,}"))
        if report.n_placeholders_removed:
            rows.append(("removed placeholders, never counted", f"{report.n_placeholders_removed:,}"))
        if report.new_unknown:
            rows.append(("new unknown tokens on the texts compared", f"{report.new_unknown:,}"))
    return rows


def _verified(report: VocabReport | None) -> list[str]:
    return report.verified.summary().split("\n") if report and report.verified else []


def _script_rows(report: VocabReport | None) -> list[dict[str, Any]]:
    if report is None or not report.scripts:
        return []
    return [
        {
            "name": script.script,
            "tokens": f"{script.tokens:,}",
            "kept": f"{script.kept:,}",
            "kept_share": percent(script.kept / script.tokens),
            "share": round(100 * script.kept / script.tokens, 2),
            "counted": f"{script.counted:,}",
            "coverage": percent(script.kept_counted / script.counted) if script.counted else "-",
            "growth": f"{script.tokens_after / script.tokens_before:.3f}×" if script.tokens_before else "-",
            "lost": script.kept == 0,
        }
        for script in report.scripts
    ]


def _removed_examples(facts: FolderFacts) -> list[str]:
    if facts.vocabulary:
        return facts.vocabulary.removed_examples
    return facts.run.vocab.removed_examples if facts.run else []


def _checkpoint_rows(checkpoint: CheckpointFacts) -> list[tuple[str, str]]:
    rows = [
        ("architecture", checkpoint.architecture or checkpoint.model_type),
        ("layers", "-" if checkpoint.layers is None else f"{checkpoint.layers:,}"),
        ("vocabulary (tokens)", "-" if checkpoint.vocabulary is None else f"{checkpoint.vocabulary:,}"),
        ("parameters", f"{checkpoint.parameters:,}"),
        ("weights", f"{bytes_in_words(checkpoint.bytes)}, {', '.join(checkpoint.dtypes)}"),
    ]
    return rows


def _cache_rows(cache: CacheFacts) -> list[tuple[str, str]]:
    rows = [(name.replace("_", " "), _plain(value)) for name, value in cache.settings.items()]
    per_position = f" ({cache.bytes / cache.positions:,.0f} per position)" if cache.positions else ""
    return [
        *rows,
        ("state", "finished" if cache.finished else "not finished: build it again with the same settings, and it goes on"),
        ("rows", f"{cache.rows:,}"),
        ("positions", f"{cache.positions:,}"),
        ("shards", f"{cache.shards:,}"),
        ("bytes of the shards", f"{cache.bytes:,}{per_position}"),
    ]


def _how_rows(run: RunRecord) -> list[tuple[str, str]]:
    return [
        ("corpus", run.corpus),
        ("longest input", f"{run.max_tokens:,} tokens"),
        ("hardware", run.hardware),
        ("time", duration(run.seconds) + (f" ({run.seconds:,.0f} s)" if run.seconds >= 90 else "")),
        *([("forecast", f"{duration(run.forecast.seconds)}, {run.forecast.peak_memory_mib:,.0f} MiB")] if run.forecast else []),
        *([("peak memory", f"{run.peak_memory_mib:,.0f} MiB")] if run.peak_memory_mib else []),
        ("versions", ", ".join(f"{library} {version}" for library, version in run.versions.items())),
    ]


def _plain(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, float):
        return f"{value:g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _without_unset(data: Any) -> Any:
    """The recipe without the values that were left at null or empty."""
    if isinstance(data, Mapping):
        shown = {key: _without_unset(value) for key, value in data.items()}
        return {key: value for key, value in shown.items() if value not in (None, {}, [])}
    return [_without_unset(value) for value in data] if isinstance(data, list) else data
