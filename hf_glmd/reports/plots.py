"""Records of a run as figures, each beside a CSV of its numbers."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hf_glmd.reports.drawing import (
    BLUE,
    GREY,
    INK,
    INKS,
    ORANGE,
    PAGE,
    Plot,
    evenly,
    figure_class,
    label_of,
    new_figure,
    plain_numbers,
    spread,
)
from hf_glmd.reports.records import ModelFacts, RunRecord, StageRecord, TaskScores, gained, retained_share
from hf_glmd.reports.tail import TAIL_CAPTION, draw_long_tail, tail_title
from hf_glmd.utils.text import percent, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


LARGEST_BUBBLE = 1500.0
"""Points squared, of the square around the circle."""

MAX_POINTS, MAX_MARKS = 500, 40
"""Points of a curve that are drawn, and up to how many are marked."""


def save_plots(record: RunRecord, directory: str | Path) -> list[Path]:
    """Draws what the record has numbers for, as `NAME.png` and `NAME.csv`.

    - long_tail: how often each token was counted, commonest first, and where the vocabulary was cut.
    - parameters: of embeddings and body, teacher beside student.
    - size_speed_score: both models as circles of their size, over speed and score; no speed was measured, no such plot.
    - kl_over_steps: KL to the teacher on held-out rows, and how often both have the same top-1 token, one column per stage
      that has a curve; none has one, no such plot.
    - tasks: what teacher, student and the commonest answer score; without a task no such plot.

    Args:
        directory: made if it is not there; older plots in it are replaced.
    Returns: paths of the PNGs and CSVs, in the order of `plot_titles`.
    Raises: UsageError, matplotlib is not installed.
    """
    figure_class()  # before any file is written
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    return [path for plot in run_plots(record).values() for path in plot.save(directory / f"{plot.name}.png")]


def run_plots(record: RunRecord) -> dict[str, Plot]:
    """Name -> chart, of what the record has numbers for."""
    models = [(who, m.embedding_parameters, m.body_parameters) for who, m in _models(record)]
    make = {
        "long_tail": _long_tail_plot,
        "parameters": lambda record, title: parameter_plot(models, title),
        "size_speed_score": _bubble_plot,
        "kl_over_steps": _kl_plot,
        "tasks": lambda record, title: task_plot(scored_tasks(record), title),
    }
    return {name: make[name](record, title) for name, title in plot_titles(record).items()}


def plot_titles(record: RunRecord) -> dict[str, str]:
    """Name -> finding, of the plots that `save_plots` draws for this record."""
    titles = {}
    if any(count > 0 for count in record.counts_sorted):
        titles["long_tail"] = tail_title(record.vocab)
    share = record.student.parameters / record.teacher.parameters
    titles["parameters"] = f"The student has {share:.0%} of the teacher's parameters"
    if (found := speed_and_score(record)) is not None:
        (_, before, _), (_, after, _) = found.points
        titles["size_speed_score"] = f"The student is {after / before:.1f} times as fast as the teacher"
    if curves := _curves(record):
        first = curves[0]
        change = "falls" if first.kl[-1] < first.kl[0] else "rises" if first.kl[-1] > first.kl[0] else "goes"
        titles["kl_over_steps"] = (
            f"KL to the teacher {change} from {first.kl[0]:.2f} to {first.kl[-1]:.2f} nats in {first.steps_evaluated[-1]:,} steps"
        )
    if tasks := scored_tasks(record):
        retained, count, won = retained_share(tasks), len(tasks), len(gained(tasks))
        where = f"on {f'{won} of ' if 0 < won < count else ''}{count} tasks" if count > 1 else f"on {tasks[0].name}"
        titles["tasks"] = (
            f"The teacher gains nothing over the commonest answer {where}"
            if retained is None
            else f"The student keeps {retained:.0%} of the teacher's gain over the commonest answer {where}"
        )
    return titles


@dataclass
class SpeedAndScore:
    """What the plot of size, speed and score is about.

    Attributes:
        batch_size: at which the speed was measured, the largest of them.
        score_name: what was scored.
        points: (who, tokens per second, score) of teacher and student.
    """

    batch_size: int
    score_name: str
    points: list[tuple[str, float, float]]


def speed_and_score(record: RunRecord) -> SpeedAndScore | None:
    """Of the task, the mean of several, or words where there is none. None: no speed or score of both is known."""
    speeds = [model.tokens_per_second for model in (record.teacher, record.student)]
    sizes = [size for size in speeds[1] if speeds[0].get(size) and speeds[1][size]]
    tasks = scored_tasks(record)
    if tasks:
        scores = [sum(getattr(task, who) for task in tasks) / len(tasks) for who in ("teacher", "student")]
        name = f"mean score of {len(tasks)} tasks" if len(tasks) > 1 else f"{tasks[0].name}, {tasks[0].metric}"
    else:
        scores, name = [record.words_final.teacher_accuracy, record.words_final.accuracy], f"{record.words_scored}-word accuracy"
    if not sizes or None in scores:
        return None
    size = max(sizes)
    points = zip(("teacher", "student"), (speed[size] for speed in speeds), scores, strict=True)
    return SpeedAndScore(size, name.replace("_", " "), list(points))


def scored_tasks(record: RunRecord) -> list[TaskScores]:
    """The task, or the list of them."""
    return record.tasks or ([record.task] if record.task else [])


def _models(record: RunRecord) -> list[tuple[str, ModelFacts]]:
    return [("teacher", record.teacher), ("student", record.student)]


def _curves(record: RunRecord) -> list[StageRecord]:
    return [stage for stage in record.stages if stage.kl]


def _long_tail_plot(record: RunRecord, title: str) -> Plot:
    first = min(record.count_ranks)  # ranks may start at 0 or 1
    ranks = [rank - first + 1 for rank in record.count_ranks]
    shares = [float(rank <= record.vocab.size) for rank in ranks]
    return Plot(
        "long_tail",
        TAIL_CAPTION,
        title,
        lambda title: draw_long_tail(ranks, record.counts_sorted, shares, record.vocab, title, record.vocab.size),
        [("rank", "count"), *zip(record.count_ranks, record.counts_sorted, strict=True)],
    )


def parameter_plot(models: Sequence[tuple[str, int, int]], title: str) -> Plot:
    """Stacked bars. `models`: (who, parameters of the embeddings, of the body) of each."""
    rows = [(who, embeddings, body, embeddings + body) for who, embeddings, body in models]
    table = [("model", "embedding_parameters", "body_parameters", "parameters"), *rows]
    return Plot("parameters", "Parameters", title, lambda title: _draw_parameters(models, title), table)


def _draw_parameters(models: Sequence[tuple[str, int, int]], title: str) -> Figure:
    figure, [panel] = new_figure(title, 7.2, 2.9)
    largest = max(embeddings + body for _, embeddings, body in models)
    width = 1.25 * largest
    for place, (_, embeddings, body) in enumerate(models):
        left, beside = 0, [f"{embeddings + body:,}"]
        for count, color, label in ((embeddings, BLUE, "embeddings"), (body, ORANGE, "body")):
            panel.barh(
                place,
                count,
                left=left,
                height=0.62,
                color=color,
                edgecolor=PAGE,
                linewidth=1.5,
                label=label if place == 0 else None,
            )
            if count / largest > 0.01 + 0.0185 * len(f"{count:,}"):
                panel.text(
                    left + count / 2, place, f"{count:,}", ha="center", va="center", color=PAGE, fontsize=10, fontweight="bold"
                )
            else:  # too narrow for the figure
                beside.append(f"{label} {count:,}")
                width = 1.42 * largest
            left += count
        panel.text(left + 0.012 * largest, place, "\n".join(beside), ha="left", va="center", color=INK, fontsize=10)
    panel.set_yticks(range(len(models)), [who for who, _, _ in models], fontsize=11)
    panel.set_ylim(len(models) - 0.5, -0.5)
    panel.set_xlim(0, width)
    legend = panel.legend(
        loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=2, frameon=False, fontsize=10.5, handlelength=0.9, handleheight=0.9
    )
    for text in legend.get_texts():
        text.set_color(INK)
    panel.tick_params(axis="y", length=0)
    panel.set_xticks([])
    for spine in panel.spines.values():
        spine.set_visible(False)
    return figure


def _bubble_plot(record: RunRecord, title: str) -> Plot:
    found = speed_and_score(record)
    rows = [(who, m.parameters, *point) for (who, *point), (_, m) in zip(found.points, _models(record), strict=True)]
    return Plot(
        "size_speed_score",
        "Size (area) against speed and score",
        title,
        lambda title: _draw_bubbles(record, title),
        [("model", "parameters", f"tokens_per_second_batch_{found.batch_size}", found.score_name), *rows],
        shares=[found.score_name],
    )


def _draw_bubbles(record: RunRecord, title: str) -> Figure:
    found = speed_and_score(record)
    figure, [panel] = new_figure(title, 7.2, 4.2)
    largest = max(record.teacher.parameters, record.student.parameters)
    (_, *start), (_, *end) = ((who, speed, 100 * score) for who, speed, score in found.points)
    speeds, scores = zip(start, end, strict=True)
    lowest, highest = min(0.0, 1.3 * min(scores)), max(scores)
    # Two that are near would write on one another; the higher one's text then stands above it, and so does that of one so low
    # that it would write on the axis. A circle at the top, with its text, stays below the title.
    near = abs(speeds[1] - speeds[0]) < 0.46 * max(speeds) and abs(scores[1] - scores[0]) < 0.5 * (highest - lowest)
    top = max(highest + (0.45 if near else 0.18) * (highest - lowest), 0.0) or 1.0
    above = [near and scores[0] >= scores[1], near and scores[1] > scores[0]]
    if not near:
        above = [score - lowest < 0.3 * (top - lowest) for score in scores]
    panel.annotate("", end, start, arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 1.5, "linestyle": (0, (4, 3))})
    for (who, speed, score), (_, model), color, over in zip(found.points, _models(record), (BLUE, ORANGE), above, strict=True):
        area = LARGEST_BUBBLE * model.parameters / largest
        marker, square = ("o", area) if who == "teacher" else ("D", math.pi / 4 * area)  # a diamond fills its square
        panel.scatter(speed, 100 * score, s=square, color=color, marker=marker, linewidth=0, zorder=3, clip_on=False)
        panel.annotate(
            f"{who}: {100 * score:.1f}%\n{speed:,.0f} tokens/s\n{_millions(model.parameters)} parameters",
            (speed, 100 * score),
            xytext=(0, (1 if over else -1) * (math.sqrt(area) / 2 + 6)),
            textcoords="offset points",
            ha="center",
            va="bottom" if over else "top",
            color=INKS.get(color, color),
            fontsize=10,
            fontweight="bold",
        )
    panel.set_xlim(0, 1.28 * max(speeds))
    panel.set_ylim(lowest, top)
    panel.set_xlabel(f"tokens per second, {found.batch_size} rows at once", color=INK, fontsize=10)
    panel.set_ylabel(f"{label_of(found.score_name, 40)} (%)", color=INK, fontsize=10)
    plain_numbers(panel.xaxis, ticks=6)
    panel.grid(True, color="#EEEEEE", linewidth=0.8)
    panel.set_axisbelow(True)
    return figure


def _millions(count: int) -> str:
    return f"{count / 1e6:,.{0 if count >= 1e8 else 1}f} million" if count >= 1e6 else f"{count:,}"


def _kl_plot(record: RunRecord, title: str) -> Plot:
    rows: list[Sequence] = [("stage", "step", "kl_nats", "agreement")]
    for stage in _curves(record):
        agreement = stage.agreement or [""] * len(stage.kl)
        rows += [(stage.name, *point) for point in zip(stage.steps_evaluated, stage.kl, agreement, strict=True)]
    return Plot("kl_over_steps", "KL to the teacher", title, lambda title: _draw_kl(record, title), rows)


def _draw_kl(record: RunRecord, title: str) -> Figure:
    curves = _curves(record)
    rows = 2 if any(stage.agreement for stage in curves) else 1
    figure, panels = new_figure(title, max(7.2, 4.2 * len(curves)), 1.0 + 2.9 * rows, len(curves), rows)
    for column, stage in enumerate(curves):
        kl_panel = panels[column]
        _draw_kl_panel(kl_panel, stage)
        kl_panel.set_title("\n".join(textwrap.wrap(stage.title, 36)), loc="left", fontsize=10.5, color=INK)
        last = kl_panel
        if rows == 2:
            last = panels[len(curves) + column]
            _draw_agreement_panel(last, stage)
        last.set_xlabel("step", color=INK, fontsize=10)
    panels[0].set_ylabel("KL to the teacher (nats)", color=INK, fontsize=10)
    if rows == 2:
        panels[len(curves)].set_ylabel("same top-1 token (%)", color=INK, fontsize=10)
    return figure


def _draw_kl_panel(panel: Axes, stage: StageRecord) -> None:
    start, end = stage.kl[0], stage.kl[-1]
    top = 1.12 * max(stage.kl) or 1.0
    levels = [(start, f"start {start:.2f}", ORANGE), (end, f"end {end:.2f}", BLUE)]
    if stage.name == "general":
        levels.append((start / 3, f"a third {start / 3:.2f}", ORANGE))
    for level, _, color in levels:
        if color == ORANGE:
            panel.axhline(level, color=ORANGE, linewidth=1.3, linestyle=(0, (5, 2)), zorder=1)
    _draw_curve(panel, stage.steps_evaluated, stage.kl, levels, top)


def _draw_agreement_panel(panel: Axes, stage: StageRecord) -> None:
    shares = [100 * share for share in stage.agreement]
    levels = [(shares[-1], f"end {shares[-1]:.1f}", BLUE)] if shares else []
    _draw_curve(panel, stage.steps_evaluated[: len(shares)], shares, levels, 100.0)


def curve_plot(name: str, caption: str, curve: Sequence[tuple[float, float]], color: str, is_share: bool) -> Plot:
    """A curve of training as a small picture. `curve`: (step, value), in order."""

    def draw(title: str) -> Figure:
        figure, [panel] = new_figure(title, 3.4, 2.3)
        steps, values = zip(*evenly(curve, MAX_POINTS), strict=True)
        top = 1.12 * max(0.0, *values) or 1.0
        end = percent(values[-1]) if is_share else f"{values[-1]:.4g}"
        _draw_curve(panel, steps, values, [(values[-1], end, color)], top, color)
        plain_numbers(panel.xaxis, ticks=5)
        panel.xaxis.get_major_locator().set_params(steps=[1, 2, 5, 10])
        panel.xaxis.set_major_formatter(lambda value, _: short(value))
        panel.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g}%" if is_share else short(value))
        panel.set_xlabel("step", color=INK, fontsize=10)
        return figure

    return Plot(name, caption, caption, draw, [("step", caption), *curve], shares=[caption] if is_share else ())


def _draw_curve(
    panel: Axes,
    steps: Sequence[float],
    values: Sequence[float],
    levels: list[tuple[float, str, str]],
    top: float,
    color: str = BLUE,
) -> None:
    """A curve from 0, or from below, to `top`; (value, text, colour) of `levels` is written at the right edge."""
    marker = "o" if len(steps) <= MAX_MARKS else None
    panel.plot(steps, values, color=color, linewidth=2.2, marker=marker, markersize=4.5, clip_on=False)
    levels = sorted(levels, key=lambda level: level[0])
    for place, (_, text, color) in zip(spread([level for level, _, _ in levels], 0.095 * top), levels, strict=True):
        panel.annotate(
            text,
            (1, place),
            xycoords=("axes fraction", "data"),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            color=INKS.get(color, color),
            fontsize=10,
            fontweight="bold",
        )
    panel.set_xlim(min(0, *steps, 0), max(1, *steps, 1))
    panel.set_ylim(1.05 * min(0.0, *values, 0.0), top)
    plain_numbers(panel.xaxis, ticks=5)
    panel.grid(True, axis="y", color="#EEEEEE", linewidth=0.8)
    panel.set_axisbelow(True)


def task_plot(tasks: Sequence[TaskScores], title: str) -> Plot:
    """Bars of teacher and student, with what the commonest answer scores."""
    rows: list[Sequence] = [("task", "metric", "count", "majority", "teacher", "student", "difference", "retained")]
    for task in tasks:
        scores = (task.majority, task.teacher, task.student, task.student - task.teacher)
        rows.append((task.name, task.metric, task.count, *scores, "" if task.retained is None else task.retained))
    return Plot("tasks", "Scores", title, lambda title: _draw_tasks(tasks, title), rows)


def _draw_tasks(tasks: Sequence[TaskScores], title: str) -> Figure:
    figure, [panel] = new_figure("\n".join(textwrap.wrap(title, 62)), 7.2, 1.5 + 0.62 * len(tasks))
    lowest = min(0.0, *(100 * score for task in tasks for score in (task.teacher, task.student, task.majority)))
    for place, task in enumerate(tasks):
        for offset, score, color, label in (
            (-0.19, 100 * task.teacher, BLUE, "teacher"),
            (0.19, 100 * task.student, ORANGE, "student"),
        ):
            panel.barh(place + offset, score, height=0.36, color=color, label=label if place == 0 else None)
            beside = max(score, 0) + 1
            if score - 1 < 100 * task.majority < score + 8:  # the line would cross the figure
                beside = 100 * task.majority + 1
            panel.text(
                beside, place + offset, f"{score:.1f}", va="center", color=INKS.get(color, color), fontsize=9, fontweight="bold"
            )
        majority, label = 100 * task.majority, "always the commonest answer" if place == 0 else None
        # White below, so that the line is seen on both bars.
        panel.vlines(majority, place - 0.42, place + 0.42, color=PAGE, linewidth=4)
        panel.vlines(majority, place - 0.42, place + 0.42, color=INK, linewidth=1.8, linestyle=(0, (2, 1)), label=label)
    names = [f"{label_of(task.name)}\n{label_of(task.metric.replace('_', ' '))}" for task in tasks]
    panel.set_yticks(range(len(tasks)), names, fontsize=9)
    panel.set_ylim(len(tasks) - 0.5, -0.5)
    panel.set_xlim(lowest * 1.08, 108)
    panel.set_xlabel("score (%)", color=INK, fontsize=10)
    panel.tick_params(axis="y", length=0)
    panel.grid(True, axis="x", color="#EEEEEE", linewidth=0.8)
    panel.set_axisbelow(True)
    legend = panel.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=3, frameon=False, fontsize=10, handlelength=1.2)
    for text in legend.get_texts():
        text.set_color(INK)
    return figure
