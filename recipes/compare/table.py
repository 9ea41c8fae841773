"""The table, the chart and the JSON of a comparison."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from cells import Result
from experiment import Method
from runs import Bench
from tasks import TASKS

from hf_glmd.errors import UsageError
from hf_glmd.reports.drawing import BLUE, GREY, INK, new_figure
from hf_glmd.reports.drawing import save as save_figure
from hf_glmd.reports.run_card import markdown_table
from hf_glmd.utils.files import write_json
from hf_glmd.utils.system import hardware, versions

RESAMPLES = 2_000


def save_table(bench: Bench, output: Path) -> str:
    """Writes `results.json`, `table.md` and `chart.png`; returns the table.

    Raises: UsageError, a cell is missing: an unfinished comparison is not averaged.
    """
    cells, complete = bench.plan()
    missing = [cell.name for cell in cells if bench.cells.result(cell) is None]
    if missing or not complete:
        more = "" if complete else ", and those that follow from them"
        raise UsageError(
            f"{len(missing)} of {len(cells)} cells are not measured yet{more}, the first is '{missing[0] if missing else ''}'. "
            "Run the command without --show."
        )
    rows = [row_of(bench, method) for method in bench.experiment.methods]
    reference = next(row for row in rows if row["method"] == bench.experiment.reference)
    teachers = {}
    if bench.experiment.tasks:
        teachers = {task: bench.cells.result(bench.task_teacher(task)) for task in bench.experiment.tasks.names}
    for row in rows:
        row |= differences(row, reference)
    output.mkdir(parents=True, exist_ok=True)
    text = in_words(bench, rows, teachers)
    (output / "table.md").write_text(text + "\n", encoding="utf-8")
    facts = {"hardware": hardware(), "bf16": bench.bf16, "versions": versions("torch", "transformers", "hf_glmd")}
    shown = [{key: value for key, value in row.items() if key != "tasks"} | {"tasks": scores_of(row)} for row in rows]
    taught = {task: result["score"] for task, result in teachers.items()}
    write_json(output / "results.json", facts | {"teacher": taught, "reference": reference["method"], "methods": shown})
    draw(rows, output / "chart.png")
    return text


def row_of(bench: Bench, method: Method) -> dict[str, Any]:
    """What a method came to: a list per measure, one value per seed."""
    rate = bench.best_rate(method)
    trained = [bench.trained(method, rate, seed) for seed in bench.experiment.seeds]
    results: list[Result] = [bench.cells.result(cell) for cell in trained]
    measures = ("kl", "kl_before", "accuracy", "teacher_accuracy", "visible", "seconds", "cpu_seconds")
    tasks = [{task: bench.cells.result(cell) for task, cell in bench.of_tasks(method, one).items()} for one in trained]
    return {
        "method": method.name,
        "rate": rate,
        "parameters": results[0]["parameters"],
        **{name: [result[name] for result in results] for name in measures},
        # nan is not greater, either
        "diverged": bool(method.stages) and not all(result["kl"] <= result["kl_before"] for result in results),
        "tasks": tasks,
    }


def scores_of(row: dict[str, Any]) -> dict[str, list[float]]:
    return {task: [one[task]["score"] for one in row["tasks"]] for task in row["tasks"][0]}


def task_mean(row: dict[str, Any]) -> float | None:
    scores = [value for values in scores_of(row).values() for value in values]
    return statistics.fmean(scores) if scores else None


def differences(row: dict[str, Any], reference: dict[str, Any]) -> dict[str, Any]:
    """To the reference, seed by seed, with standard errors: of KL over the seeds, of tasks over the test rows (bootstrap)."""
    kl = [one - other for one, other in zip(row["kl"], reference["kl"], strict=True)]
    found: dict[str, Any] = {"kl_difference": statistics.fmean(kl), "kl_se": standard_error(kl)}
    if names := list(row["tasks"][0]):
        draws = np.mean([task_differences(row, reference, task) for task in names], axis=0)
        found |= {"task_difference": task_mean(row) - task_mean(reference), "task_se": float(draws.std(ddof=1))}
    return found


def task_differences(row: dict[str, Any], reference: dict[str, Any], task: str) -> np.ndarray:
    """Resampled test rows, the same for both: the difference of the mean scores of all seeds, [RESAMPLES]."""
    score, drawn = TASKS[task].score, np.random.default_rng(0)
    right = np.array(row["tasks"][0][task]["right"])
    chosen = [[np.array(one[task]["chosen"]) for one in side["tasks"]] for side in (row, reference)]
    found = []
    for _ in range(RESAMPLES):
        rows = drawn.integers(len(right), size=len(right))
        means = [np.mean([score(one[rows], right[rows]) for one in side]) for side in chosen]
        found.append(means[0] - means[1])
    return np.array(found)


def standard_error(values: Sequence[float]) -> float:
    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")


def spread(values: Sequence[float], digits: int, percent: bool = False) -> str:
    """The mean and, of several, the standard deviation."""
    factor = 100 if percent else 1
    mean = f"{statistics.fmean(values) * factor:.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values) * factor:.{digits}f}"


def in_words(bench: Bench, rows: list[dict[str, Any]], teachers: dict[str, Result]) -> str:
    names = list(teachers)
    header = ["method", "rate", "KL", "accuracy %", "visible %", *names, *(["mean", "to reference"] if names else []), "CPU s"]
    lines = []
    if names:
        scores = [teachers[task]["score"] for task in names]
        accuracy = f"{statistics.fmean(rows[0]['teacher_accuracy']) * 100:.1f}"
        means = [f"{score * 100:.1f}" for score in (*scores, statistics.fmean(scores))]
        lines.append(["teacher", "", "0", accuracy, "100", *means, "", ""])
    for row in rows:
        tasks = [spread(values, 1, percent=True) for values in scores_of(row).values()]
        if names:
            difference = (
                ""
                if row["method"] == bench.experiment.reference
                else (f"{row['task_difference'] * 100:+.1f} ± {row['task_se'] * 100:.1f}")
            )
            tasks += [f"{task_mean(row) * 100:.1f}", difference]
        lines.append(
            [
                row["method"] + (" (diverged)" if row["diverged"] else ""),
                f"{row['rate']:g}" if row["rate"] else "",
                spread(row["kl"], 3),
                spread(row["accuracy"], 1, percent=True),
                spread(row["visible"], 1, percent=True),
                *tasks,
                f"{statistics.fmean(row['cpu_seconds']):.0f}",
            ]
        )
    return markdown_table(lines, header, "l" + "r" * (len(header) - 1))


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """KL at masked words over agreement on visible text, one dot per seed; beside it the mean of the tasks, if there are any."""
    with_tasks = task_mean(rows[0]) is not None
    columns = 3 if with_tasks else 2
    figure, panels = new_figure("What a student has learnt, by method", 4 + 2.5 * columns, 0.45 * len(rows) + 2.2, columns)
    places = list(range(len(rows)))[::-1]
    measures = [
        ("kl", 1, "KL to the teacher at masked words, nats"),
        ("visible", 100, "same word as the teacher, nothing masked, %"),
    ]
    for panel, (name, factor, label) in zip(panels, measures, strict=False):
        for place, row in zip(places, rows, strict=True):
            panel.plot([value * factor for value in row[name]], [place] * len(row[name]), "o", color=BLUE, alpha=0.7)
        panel.set_xlabel(label, color=INK, fontsize=9)
    if with_tasks:
        for place, row in zip(places, rows, strict=True):
            panels[2].errorbar(task_mean(row) * 100, place, xerr=200 * row["task_se"], fmt="o", color=BLUE, ecolor=GREY)
        panels[2].set_xlabel("mean of the tasks, %; bars: twice the SE of the difference", color=INK, fontsize=9)
    for number, panel in enumerate(panels):
        panel.set_yticks(places, [row["method"] for row in rows] if number == 0 else [""] * len(rows))
        panel.grid(axis="y", color=GREY, alpha=0.25)
    table = [["method", "kl", "visible", "task mean"]]
    table += [[row["method"], statistics.fmean(row["kl"]), statistics.fmean(row["visible"]), task_mean(row)] for row in rows]
    save_figure(figure, table, path)
