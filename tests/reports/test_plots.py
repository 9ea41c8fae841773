from __future__ import annotations

import csv
import dataclasses
import math
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from record_examples import TASK_LIST, example_record

from hf_glmd.errors import UsageError
from hf_glmd.reports.drawing import BLUE, PALE_BLUE, PALE_GREY, Plot, evenly, spread
from hf_glmd.reports.plots import MAX_POINTS, curve_plot, plot_titles, run_plots, save_plots, speed_and_score, task_plot
from hf_glmd.reports.records import RunRecord, TaskScores
from hf_glmd.reports.tail import draw_long_tail, save_vocabulary_plot
from hf_glmd.reports.vocab_report import LongTail, VocabReport
from hf_glmd.utils.text import percent, short

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def read_csv(path: Path) -> list[list[str]]:
    return list(csv.reader(path.read_text(encoding="utf-8").splitlines()))


def drawn(name: str, record: RunRecord, title: str = "t") -> Figure:
    return run_plots(record)[name].draw(title)


@pytest.fixture(scope="module")
def plots(tmp_path_factory):
    directory = tmp_path_factory.mktemp("run") / "plots"
    return directory, save_plots(example_record(), directory)


def test_every_plot_is_a_picture_with_its_numbers(plots):
    from matplotlib.image import imread

    directory, paths = plots
    names = ["long_tail", "parameters", "size_speed_score", "kl_over_steps", "tasks"]
    assert paths == [directory / f"{name}.{kind}" for name in names for kind in ("png", "csv")]
    assert sorted(directory.iterdir()) == sorted(paths)
    for path in paths[::2]:
        assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        pixels = imread(path)
        assert pixels.shape[0] > 300 and pixels.shape[1] > 900
        red, green, blue = (pixels[..., :3] * 255).astype(int).transpose(2, 0, 1)
        assert len(np.unique(65536 * red + 256 * green + blue)) > 100, path
        assert pixels.shape[2] == 3 or (pixels[..., 3] == 1).all(), "a see-through page is illegible on a dark one"


def test_the_csv_has_the_numbers_of_the_record(plots):
    directory, _ = plots
    record = example_record()
    header, *rows = read_csv(directory / "long_tail.csv")
    assert header == ["rank", "count"]
    assert [tuple(map(int, row)) for row in rows] == list(zip(record.count_ranks, record.counts_sorted, strict=True))
    assert read_csv(directory / "parameters.csv")[1:] == [
        ["teacher", "2129663", "3240977", "5370640"],
        ["student", "1047809", "1661453", "2709262"],
    ]
    header, *rows = read_csv(directory / "kl_over_steps.csv")
    assert header == ["stage", "step", "kl_nats", "agreement"]
    points = [
        (stage.name, *point)
        for stage in record.stages
        for point in zip(stage.steps_evaluated, stage.kl, stage.agreement, strict=True)
    ]
    assert [(name, int(step), float(kl), float(agreement)) for name, step, kl, agreement in rows] == points
    assert {name for name, *_ in points} == {"general", "task_words"}


def test_titles_state_the_finding():
    assert plot_titles(example_record()) == {
        "long_tail": "Half of the tokens cover 97.4% of the text",
        "parameters": "The student has 50% of the teacher's parameters",
        "size_speed_score": "The student is 2.1 times as fast as the teacher",
        "kl_over_steps": "KL to the teacher falls from 3.58 to 1.26 nats in 811 steps",
        "tasks": "The student keeps 96% of the teacher's gain over the commonest answer on docstring_library",
    }
    record = example_record()
    record.vocab = dataclasses.replace(record.vocab, size=3001, coverage=0.99996)
    record.stages[0].kl = [1.0, 2.5]
    record.stages[0].steps_evaluated = [0, 101]
    titles = plot_titles(record)
    assert titles["long_tail"] == "37% of the tokens cover 99.996% of the text"
    assert titles["kl_over_steps"] == "KL to the teacher rises from 1.00 to 2.50 nats in 101 steps"


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.9743, "97.4%"), (1, "100%"), (0.0, "0%"), (0.9996, "99.96%"), (0.0004, "0.04%"), (None, "-"), (float("nan"), "-")],
)
def test_percent_says_all_and_nothing_only_where_true(share, text):
    assert percent(share) == text


def test_without_curves_no_kl_plot_and_without_counts_no_tail(tmp_path):
    record = example_record(count_ranks=[], counts_sorted=[], task=None)
    for stage in record.stages:
        stage.kl = []
    record.student.tokens_per_second = {8: 12.0}
    assert [path.name for path in save_plots(record, tmp_path)] == ["parameters.png", "parameters.csv"]


def test_lines_and_bars_are_the_numbers_of_the_record():
    record = example_record()
    general, words, *agreement = drawn("kl_over_steps", record).axes
    for panel, stage in zip(agreement, (record.stages[0], record.stages[2]), strict=True):
        assert panel.lines[0].get_xdata().tolist() == stage.steps_evaluated and panel.get_ylim() == (0, 100)
        assert panel.lines[0].get_ydata().tolist() == pytest.approx([100 * share for share in stage.agreement])
    for panel, stage in ((general, record.stages[0]), (words, record.stages[2])):
        curve = panel.lines[-1]
        assert curve.get_xdata().tolist() == stage.steps_evaluated and curve.get_ydata().tolist() == stage.kl
        assert panel.get_ylim()[0] == 0
    assert {line.get_ydata()[0] for line in general.lines[:-1]} == {3.581, 3.581 / 3}
    [panel] = drawn("parameters", record).axes
    assert [bar.get_width() for bar in panel.patches] == [2_129_663, 3_240_977, 1_047_809, 1_661_453]
    assert {"2,129,663", "3,240,977", "1,047,809", "1,661,453", "5,370,640", "2,709,262"} <= {
        text.get_text() for text in panel.texts
    }


def test_circles_have_the_area_of_their_model_at_its_speed_and_score():
    record = example_record()
    [panel] = drawn("size_speed_score", record).axes
    teacher, student = panel.collections
    assert teacher.get_offsets().tolist() == [pytest.approx([20_111.6, 81.27])]
    assert student.get_offsets().tolist() == [pytest.approx([43_210.9, 78.33])]
    circle, diamond = math.pi / 4 * teacher.get_sizes()[0], student.get_sizes()[0]
    assert diamond / circle == pytest.approx(record.student.parameters / record.teacher.parameters)


def test_what_is_scored_beside_speed():
    found = speed_and_score(example_record(task=None))
    assert (found.batch_size, found.score_name) == (32, "masked-word accuracy")
    assert found.points == [("teacher", 20_111.6, 0.3917), ("student", 43_210.9, 0.2719)]
    found = speed_and_score(example_record(task=None, tasks=TASK_LIST))
    assert found.score_name == "mean score of 4 tasks" and found.points[0][2] == pytest.approx((0.712 + 0.812 + 0.41 + 0.61) / 4)
    record = example_record()
    record.teacher.tokens_per_second = {1: 8123.4}
    assert speed_and_score(record).batch_size == 1
    record.teacher.tokens_per_second = {}
    assert speed_and_score(record) is None and "size_speed_score" not in plot_titles(record)


NEIGHBOURS = [(20_111.6, 0.81), (21_000.0, 0.80), (19_000.0, 0.60), (30_000.0, 0.99), (43_210.9, 0.02), (20_111.6, 0.81127)]


@pytest.mark.parametrize(("speed", "score"), NEIGHBOURS)
def test_no_text_of_near_bubbles_is_on_another_or_on_the_axis(speed, score):
    """Beside a teacher of 20,112 tokens/s and 81.3%."""
    record = example_record()
    record.student.tokens_per_second = {32: speed}
    record.task = dataclasses.replace(record.task, student=score)
    figure = drawn("size_speed_score", record, plot_titles(record)["size_speed_score"])
    figure.draw_without_rendering()
    [panel] = figure.axes
    boxes = [text.get_window_extent() for text in (*panel.texts, *panel.get_xticklabels(), figure._suptitle) if text.get_text()]
    assert not [(a, b) for number, a in enumerate(boxes) for b in boxes[:number] if a.overlaps(b)]
    for box, circle in zip(boxes[:2], reversed(panel.collections), strict=True):
        [place], radius = panel.transData.transform(circle.get_offsets()), math.sqrt(circle.get_sizes()[0]) / 2 * figure.dpi / 72
        assert not box.overlaps(box.from_extents(*(place - radius), *(place + radius))), "nor on the other's circle"


def test_no_text_of_the_bubbles_leaves_the_picture_or_overlaps():
    for changes in ({}, {"task": None}, {"task": None, "tasks": TASK_LIST}):
        figure = drawn("size_speed_score", example_record(**changes))
        figure.draw_without_rendering()
        boxes = [text.get_window_extent() for text in figure.axes[0].texts if text.get_text()]
        assert len(boxes) == 2 and not boxes[0].overlaps(boxes[1])
        assert all(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1 for box in boxes)


def test_a_segment_too_narrow_for_its_number_is_named_beside_the_bar():
    record = example_record()
    record.student = dataclasses.replace(record.student, embedding_parameters=7_919)
    [panel] = drawn("parameters", record).axes
    assert any("embeddings 7,919" in text.get_text() for text in panel.texts)


@pytest.mark.parametrize("first", [0, 1])
def test_kept_and_cut_ranks_meet_at_the_cut(first):
    ranks = list(range(first, first + 211))
    record = example_record(count_ranks=ranks, counts_sorted=[211 - rank for rank in range(211)])
    record.vocab = dataclasses.replace(record.vocab, original_size=223, size=101)
    [panel] = drawn("long_tail", record).axes
    kept, removed, cut = panel.lines
    assert kept.get_xdata().tolist() == list(range(1, 102)) and removed.get_xdata().tolist() == list(range(101, 212))
    assert kept.get_ydata().tolist() == list(range(211, 110, -1)) and cut.get_xdata()[0] == 101
    assert panel.get_xscale() == panel.get_yscale() == "log" and panel.get_xlim() == (1, 223)
    assert len(panel.collections) == 2, "one area of kept tokens, one of removed ones"


def vocab_report(size: int, **changes: Any) -> VocabReport:
    """8,191 tokens, the rarer half never counted; kept are the commonest, and every hundredth of the others."""
    counts = np.maximum(0, 2e6 / (np.arange(8_191) + 2) ** 1.1 - 2e6 / 4_097**1.1).astype(np.int64)
    kept_ids = np.union1d(np.arange(size), np.arange(size + 50, 8_191, 100))
    report = VocabReport(8_191, kept_ids.size, counts[kept_ids].sum() / counts.sum(), 1.0531, int(counts.sum()), 9, 5, 80, 0)
    return dataclasses.replace(report, long_tail=LongTail.of(counts, kept_ids), **changes)


def test_the_vocabulary_plot_shows_the_cut_and_the_rare_tokens_that_stay(tmp_path):
    report = vocab_report(1_000)
    assert save_vocabulary_plot(report, tmp_path / "plots" / "vocabulary.png") == tmp_path / "plots" / "vocabulary.png"
    assert (tmp_path / "plots" / "vocabulary.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    tail = report.long_tail
    header, *rows = read_csv(tmp_path / "plots" / "vocabulary.csv")
    assert header == ["rank", "count", "kept_share_since_rank_before"] and len(rows) == len(tail.ranks)
    assert [(int(rank), int(count), float(share)) for rank, count, share in rows] == list(
        zip(tail.ranks, tail.counts, tail.kept_shares, strict=True)
    )
    rarer = list(zip(tail.rarer_kept_ranks, tail.rarer_kept_counts, strict=True))
    [panel] = draw_long_tail(tail.ranks, tail.counts, tail.kept_shares, report, "t", tail.cut, tail.n_rarer_kept, rarer).axes
    kept, removed, cut = panel.lines
    assert kept.get_xdata()[-1] == removed.get_xdata()[0] == cut.get_xdata()[0] == tail.cut == 1_000
    assert max(removed.get_xdata()) < 4_097, "what was never counted has no place on a logarithm"
    marks = panel.collections[-1].get_offsets()
    assert marks[:, 0].tolist() == tail.rarer_kept_ranks and marks[-1, 1] == panel.get_ylim()[0]
    assert [text.get_text() for text in panel.texts] == [
        "1,072 of 8,191 tokens kept",
        f"they cover {percent(report.coverage)} of the text",
        f"removed: {percent(1 - report.coverage)}",
        "tokens per text: × 1.053",
        "• 72 rarer tokens kept",
    ]


def test_areas_take_the_colour_of_what_was_kept_in_them():
    shares = [1.0, 1.0, 0.0, 0.0, 0.5]
    [panel] = draw_long_tail([1, 2, 3, 4, 5], [9, 8, 7, 6, 5], shares, vocab_report(1_000), "t", 2).axes
    colours = [area.get_facecolor()[0, :3] for area in panel.collections]
    assert len(colours) == 3
    pale_blue, pale_grey = (np.array([int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)]) for c in (PALE_BLUE, PALE_GREY))
    for colour, expected in zip(colours, (pale_blue, pale_grey, (pale_blue + pale_grey) / 2), strict=True):
        assert np.allclose(colour, expected)


def test_the_whole_vocabulary_has_no_cut():
    report = vocab_report(8_191)
    tail = report.long_tail
    [panel] = draw_long_tail(tail.ranks, tail.counts, tail.kept_shares, report, "t", tail.cut).axes
    assert tail.cut == 8_191 and len(panel.texts) == 0 and len(panel.lines) == 2


@pytest.mark.parametrize("size", [1, 20, 150, 700, 1_500, 2_200, 3_000, 6_000, 8_190])
def test_no_text_of_the_long_tail_is_on_the_curve(size):
    report = vocab_report(size)
    tail = report.long_tail
    figure = draw_long_tail(tail.ranks, tail.counts, tail.kept_shares, report, "A quarter of it", tail.cut, tail.n_rarer_kept)
    figure.draw_without_rendering()
    [panel] = figure.axes
    boxes = [text.get_window_extent() for text in (*panel.texts, figure._suptitle, panel.xaxis.label)]
    assert len(boxes) in (6, 7)
    assert not [(a, b) for number, a in enumerate(boxes) for b in boxes[:number] if a.overlaps(b)]
    points = panel.transData.transform([point for line in panel.lines[:2] for point in line.get_xydata()])
    assert not [box for box in boxes for x, y in points if box.contains(x, y)]
    frame, cut = panel.get_window_extent(), panel.lines[-1]
    assert all(box.x0 >= frame.x0 for box in boxes[:-2])
    x = panel.transData.transform((tail.cut, 1))[0]
    ends = [frame.y0 + end * frame.height for end in cut.get_ydata()]
    assert not [box for box in boxes[:-2] if box.x0 < x < box.x1 and box.y0 < max(ends)]


def test_without_counts_there_is_no_long_tail(tmp_path):
    for tail in (None, LongTail([1, 2], [0, 0], [1.0, 0.0], 1)):
        with pytest.raises(UsageError, match="no token counts are known"):
            save_vocabulary_plot(dataclasses.replace(vocab_report(9), long_tail=tail), tmp_path / "vocabulary.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("levels", [(3.581, 1.263), (3.581, 3.6), (3.581, 1.19), (1e-3, 1e-3)])
def test_no_two_texts_of_the_kl_plot_overlap(levels):
    record = example_record()
    record.stages[0].kl = [levels[0], *[sum(levels) / 2] * 4, levels[1]]
    figure = drawn("kl_over_steps", record, plot_titles(record)["kl_over_steps"])
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for panel in figure.axes for text in (*panel.texts, panel._left_title, panel.xaxis.label)]
    boxes.append(figure._suptitle.get_window_extent())
    overlapping = [(a, b) for number, a in enumerate(boxes) for b in boxes[:number] if a.padded(-1).overlaps(b.padded(-1))]
    assert not overlapping


def test_spread_keeps_order_and_distance():
    assert spread([1.0, 1.1, 3.0], 0.5) == [1.0, 1.5, 3.0]


def test_drawing_leaves_pyplot_alone(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)
    save_plots(example_record(), tmp_path)
    assert "matplotlib.pyplot" not in sys.modules


def test_the_same_record_gives_the_same_bytes(plots, tmp_path):
    _, paths = plots
    again = save_plots(example_record(), tmp_path)
    assert [path.read_bytes() for path in paths] == [path.read_bytes() for path in again]


def test_missing_matplotlib_is_named_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UsageError, match=r"pip install hf_glmd\[plots\]"):
        save_plots(example_record(), tmp_path / "plots")
    assert not (tmp_path / "plots").exists()


def test_the_bars_of_tasks_are_their_scores(tmp_path):
    record = example_record(task=None, tasks=TASK_LIST)
    [panel] = drawn("tasks", record).axes
    widths = [bar.get_width() for bar in panel.patches]
    assert widths == pytest.approx([100 * score for task in TASK_LIST for score in (task.teacher, task.student)])
    assert panel.get_xlim()[0] < -2, "a negative correlation is seen"
    assert [label.get_text().split("\n")[0] for label in panel.get_yticklabels()] == [task.name for task in TASK_LIST]
    assert [text.get_text() for text in panel.get_legend().get_texts()].count("teacher") == 1
    assert plot_titles(record)["tasks"] == (
        "The student keeps 54% of the teacher's gain over the commonest answer on 3 of 4 tasks"
    )
    save_plots(record, tmp_path)
    header, *rows = read_csv(tmp_path / "tasks.csv")
    assert header[:3] == ["task", "metric", "count"] and [row[0] for row in rows] == [task.name for task in TASK_LIST]
    assert float(rows[0][5]) == 0.695 and rows[3][7] == ""


def test_figures_beside_bars_are_not_crossed_by_the_line():
    [panel] = drawn("tasks", example_record(task=None, tasks=TASK_LIST)).axes
    texts = {text.get_text(): text.get_position()[0] for text in panel.texts}
    assert texts["61.0"] > 63.5 and texts["62.0"] > 63.5 and texts["71.2"] == pytest.approx(72.2)


def test_a_teacher_that_gains_nothing_is_said_so():
    record = example_record(task=None, tasks=TASK_LIST[3:])
    assert plot_titles(record)["tasks"] == "The teacher gains nothing over the commonest answer on wsc"


CURVE = [(0, 4.0), (50, 1.0), (100, 2.0)]


def svg_points(svg: str, color: str) -> list[tuple[float, float]]:
    """Ends of the line of that colour, in points from the upper left corner."""
    [path] = re.findall(rf'<path d="([^"]*)"[^>]*style="fill: none; stroke: {color.lower()}', svg)
    return [(float(x), float(y)) for x, y in re.findall(r"[ML] ([\d.]+) ([\d.]+)", path)]


def ticks(axis: Any) -> list[str]:
    low, high = sorted(axis.get_view_interval())
    return [
        label.get_text() for place, label in zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=True) if low <= place <= high
    ]


def test_a_curve_is_where_its_numbers_are():
    plot = curve_plot("kl", "KL", CURVE, BLUE, False)
    [panel] = plot.draw("").axes
    assert panel.lines[0].get_xydata().tolist() == [[0, 4.0], [50, 1.0], [100, 2.0]]
    assert ticks(panel.yaxis) == ["0", "1", "2", "3", "4"] and ticks(panel.xaxis) == ["0", "20", "40", "60", "80", "100"]
    assert [text.get_text() for text in panel.texts] == ["2"] and panel.get_ylim()[0] == 0
    assert plot.table == [("step", "KL"), *CURVE]
    (x0, y0), (x1, y1), (x2, y2) = svg_points(plot.svg("a"), BLUE)
    assert (x1 - x0) / (x2 - x0) == pytest.approx(1 / 2) and (y1 - y0) / (y2 - y0) == pytest.approx(3 / 2)
    assert y0 < y2 < y1, "up is more"
    [panel] = curve_plot("agreement", "same", [(0, 0.25), (9, 0.5)], BLUE, True).draw("").axes
    assert ticks(panel.yaxis) == ["0%", "10%", "20%", "30%", "40%", "50%"] and panel.texts[0].get_text() == "50.0%"


@pytest.mark.parametrize(
    "points", [[(5, 2.0)], [(0, 0.0), (1, 0.0)], [(0, -3.0), (7, -1.0)], [(0, 1e-9), (1, 2e-9)], [(0, 1.0), (10**6, 1e5)]]
)
@pytest.mark.parametrize("is_share", [False, True])
def test_odd_curves_stay_in_their_frame(points, is_share):
    figure = curve_plot("loss", "loss", points, BLUE, is_share).draw("")
    figure.draw_without_rendering()
    [panel] = figure.axes
    for part, axis in enumerate((panel.xaxis, panel.yaxis)):
        low, high = axis.get_view_interval()
        assert all(low <= point[part] <= high for point in points)
        assert len(set(ticks(axis))) == len(ticks(axis)) >= 2
    boxes = [text.get_window_extent() for text in (*panel.texts, panel.xaxis.label)]
    assert all(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1 for box in boxes)


def test_a_long_curve_is_thinned_in_the_picture_only():
    points = [(step, 1.0 + step % 7) for step in range(10_000)]
    plot = curve_plot("loss", "loss", points, BLUE, False)
    xs = plot.draw("").axes[0].lines[0].get_xdata()
    assert len(xs) == MAX_POINTS and xs[0] == 0 and xs[-1] == 9_999 and len(plot.table) == 10_001
    assert evenly(range(100), 4) == [0, 33, 66, 99] and evenly([1, 2], 4) == [1, 2]


def test_the_rank_of_a_token_is_on_a_logarithm_in_the_svg_too():
    record = example_record(count_ranks=[1, 10, 100, 1000], counts_sorted=[1000, 100, 10, 1])
    record.vocab = dataclasses.replace(record.vocab, original_size=10_000, size=10_000)
    points = svg_points(run_plots(record)["long_tail"].svg("a"), BLUE)
    steps = [(b[0] - a[0], b[1] - a[1]) for a, b in zip(points[:-1], points[1:], strict=True)]
    assert len(steps) == 3 and steps[0][0] > 0 < steps[0][1], "rarer is to the right and below"
    assert all(step == pytest.approx(steps[0], abs=0.01) for step in steps)


def hostile_tasks() -> list[TaskScores]:
    names = ["<script>alert(1)</script>", "a $x^2$ b $y", "two\nlines & more", '"quoted" --> ]]>', "a" * 300, "$\\frac{1}$"]
    return [TaskScores(name, "accuracy", 7, teacher=0.7, student=0.6, majority=0.5, agreement=0.9) for name in names]


def test_hostile_names_are_drawn_as_they_are(tmp_path):
    tasks = hostile_tasks()
    svg = task_plot(tasks, '<b>"title" & more</b>').svg("a")
    assert not re.search(r"<script|alert|<b>|<!--|-->|<text", svg) and svg.count("<svg") == svg.count("</svg>") == 1
    assert 'aria-label="Scores. &lt;b&gt;&quot;title&quot; &amp; more&lt;/b&gt;"' in svg
    figures = []

    def draw(title: str) -> Figure:
        figures.append(task_plot(tasks, title).draw(title))
        return figures[0]

    Plot("tasks", "Scores", "a $x^2$ $", draw, [("task",)]).save(tmp_path / "tasks.png")
    labels = figures[0].axes[0].get_yticklabels()
    assert not any(text.get_parse_math() for text in (*labels, figures[0]._suptitle))
    names = [label.get_text().removesuffix("\naccuracy") for label in labels]
    assert names[:4] == ["<script>alert(1)</script>", "a $x^2$ b $y", "two lines & more", '"quoted" --> ]]>']
    assert len(names[4]) == 32 and names[5] == "$\\frac{1}$"


@pytest.mark.parametrize("name", ["long_tail", "parameters", "size_speed_score", "kl_over_steps", "tasks"])
def test_an_svg_is_for_one_page_with_others(name):
    plot = run_plots(example_record())[name]
    one, other = plot.svg("one"), plot.svg("other")
    assert one == plot.svg("one") and re.sub(r"\bother-", "one-", other) == one
    assert re.match(r'<svg role="img" aria-label="[^"]+" width="[\d.]+" height="[\d.]+" viewBox="0 0 [\d.]+ [\d.]+"><g ', one)
    ids, used = re.findall(r' id="([^"]*)"', one), re.findall(r'(?:href="|url\()#([^")]*)', one)
    assert len(ids) == len(set(ids)) and set(used) <= set(ids) and all(part.startswith("one-") for part in ids)
    assert not re.search(r"https?:|xlink|<style|<metadata|<text|<image|<!", one)
    assert "fill: #ffffff" in one.split("</g>")[0], "an opaque page, for dark ones"


@pytest.mark.parametrize("scores", [(1.0, 1.0), (0.99, 0.2), (0.0, 0.0), (-0.05, -0.5), (0.003, 0.002), (0.41, -0.02)])
def test_no_circle_reaches_the_title_or_leaves_the_picture(scores):
    record = example_record()
    record.task = dataclasses.replace(record.task, teacher=scores[0], student=scores[1])
    figure = drawn("size_speed_score", record, plot_titles(record)["size_speed_score"])
    figure.draw_without_rendering()
    [panel] = figure.axes
    title = figure._suptitle.get_window_extent()
    for circle in panel.collections:
        x, y = panel.transData.transform(circle.get_offsets()[0])
        radius = math.sqrt(circle.get_sizes()[0]) / 2 * figure.dpi / 72
        assert y + radius < title.y0 and y - radius > 0 and x - radius > 0 and x + radius < figure.bbox.x1


def test_numbers_are_short():
    values = (0, 0.25, 1500, 20_000, 3_000_000, 2.5e9, -0.5)
    assert [short(value) for value in values] == ["0", "0.25", "1,500", "20k", "3M", "2.5B", "-0.5"]
