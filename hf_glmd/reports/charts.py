"""Charts of the report page as geometry, in percent of their frame; templates/report.html draws them.

Lines are stretched to whatever width there is, and text is HTML beside them, so that it keeps its size on a narrow screen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from hf_glmd.utils.text import short

Format = Callable[[float], str]

MAX_STRIPS = 80
"""Places of a chart that say their numbers under the mouse."""


@dataclass
class Series:
    """A line.

    Attributes:
        name: in the legend.
        style: class of the page's style sheet: "teacher", "student", "removed", "level".
        points: (x, y) of the data.
        dots: mark each point.
        area: fill what is below.
    """

    name: str
    style: str
    points: Sequence[tuple[float, float]]
    dots: bool = True
    area: bool = False
    path: str = ""
    places: list[tuple[float, float]] = field(default_factory=list)


@dataclass
class Strip:
    """What the mouse finds: a part of the width, and what is said there."""

    left: float
    width: float
    place: float
    text: str


@dataclass
class LineChart:
    """Lines over a common x.

    Attributes:
        title, x_label, y_label: of chart and axes.
        series: back to front.
        x_ticks, y_ticks: (place in percent, text); y from the bottom.
        strips: left to right.
        cut: place and text of an upright line.
        header, rows: the numbers as a table.
    """

    title: str
    x_label: str
    y_label: str
    series: list[Series]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    strips: list[Strip]
    cut: tuple[float, str] | None
    header: list[str]
    rows: list[list[str]]


def line_chart(
    title: str,
    series: list[Series],
    *,
    x_label: str,
    y_label: str = "",
    y_format: Format,
    tick_format: Format | None = None,
    x_format: Format = lambda value: f"{value:,.0f}",
    y_from: float | None = 0.0,
    x_from: float | None = None,
    x_to: float | None = None,
    logarithmic: bool = False,
    cut: tuple[float, str] | None = None,
    table_rows: int | None = None,
) -> LineChart:
    """Places lines in a frame.

    Args:
        tick_format: of the upright axis; None: `short`.
        y_from: where the upright axis begins; None, and with logarithms: at the least value.
        x_from, x_to: where the other one begins and ends; None: at the least and the largest value.
        logarithmic: both axes; values must then be positive.
        cut: x and text of an upright line.
        table_rows: at most that many points in the table of numbers, evenly chosen; None: all.
    """
    xs = sorted({x for line in series for x, _ in line.points})
    ys = [y for line in series for _, y in line.points]
    low_x, high_x = min(xs[0], xs[0] if x_from is None else x_from), max(xs[-1], xs[-1] if x_to is None else x_to)
    low_y, high_y = (min(ys) if y_from is None or logarithmic else min(y_from, *ys)), max(ys)
    if logarithmic:
        x_scale, y_scale = Scale(low_x, high_x, True), Scale(low_y / 1.5, high_y * 1.5, True)
    else:
        # Between round numbers, so that the highest point is below a line of the grid.
        y_ticks = nice_ticks(low_y, high_y, 5)
        x_scale, y_scale = Scale(low_x, high_x), Scale(min(low_y, y_ticks[0]), max(high_y, y_ticks[-1]))
    for line in series:
        line.places = [(x_scale(x), y_scale(y)) for x, y in line.points]
        line.path = " ".join(f"{x:.2f},{100 - y:.2f}" for x, y in line.places)
    texts = {x: [] for x in xs}
    for line in series:
        for x, y in line.points:
            texts[x].append(f"{line.name}: {y_format(y)}" if len(series) > 1 else y_format(y))
    chosen = evenly(xs, MAX_STRIPS)
    table = evenly(xs, table_rows or len(xs))
    by_x = [dict(line.points) for line in series]
    return LineChart(
        title=title,
        x_label=x_label,
        y_label=y_label,
        series=series,
        x_ticks=[(x_scale(tick), short(tick)) for tick in x_scale.ticks(4)],
        y_ticks=[(y_scale(tick), (tick_format or short)(tick)) for tick in y_scale.ticks(5)],
        strips=_strips(chosen, x_scale, [f"{x_label.split(',')[0]} {x_format(x)}\n" + "\n".join(texts[x]) for x in chosen]),
        cut=None if cut is None else (x_scale(cut[0]), cut[1]),
        header=[x_label.split(",")[0], *(line.name for line in series)],
        rows=[[x_format(x), *(y_format(line[x]) if x in line else "" for line in by_x)] for x in table],
    )


class Scale:
    """Values -> percent of an axis, clipped to it."""

    def __init__(self, low: float, high: float, logarithmic: bool = False) -> None:
        self.low, self.high, self.logarithmic = low, high if high > low else low + 1, logarithmic
        self._ends = (math.log(self.low), math.log(self.high)) if logarithmic else (self.low, self.high)

    def __call__(self, value: float) -> float:
        low, high = self._ends
        share = ((math.log(value) if self.logarithmic else value) - low) / (high - low)
        return round(100 * min(max(share, 0.0), 1.0), 3)

    def ticks(self, count: int) -> list[float]:
        """About `count` round values on the axis."""
        if not self.logarithmic:
            return [tick for tick in nice_ticks(self.low, self.high, count) if self.low <= tick <= self.high]
        powers = list(range(math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9) + 1))
        step = max(1, math.ceil(len(powers) / (count + 1)))
        return [10.0**power for power in powers[::step]]


def nice_ticks(low: float, high: float, count: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten, `count` to about twice as many, the outer ones not within low..high."""
    if high <= low:
        high = low + 1
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def evenly(values: Sequence[float], count: int) -> list[float]:
    """At most `count` of the values, the first and the last among them."""
    if len(values) <= count:
        return list(values)
    return [values[round(number * (len(values) - 1) / (count - 1))] for number in range(count)]


def _strips(xs: Sequence[float], scale: Scale, texts: Sequence[str]) -> list[Strip]:
    """Each reaches half-way to its neighbours."""
    places = [scale(x) for x in xs]
    edges = [0.0, *((a + b) / 2 for a, b in zip(places[:-1], places[1:], strict=True)), 100.0]
    return [
        Strip(round(left, 3), round(right - left, 3), round((place - left) / max(right - left, 1e-9) * 100, 1), text)
        for left, right, place, text in zip(edges[:-1], edges[1:], places, texts, strict=True)
    ]


@dataclass
class Bubble:
    """A model as a circle.

    Attributes:
        name, style: as in `Series`.
        x, y: percent of the frame, y from the bottom.
        diameter: pixels.
        text: what the mouse finds, and what stands beside it.
    """

    name: str
    style: str
    x: float
    y: float
    diameter: float
    text: str


@dataclass
class BubbleChart:
    """Size against speed against score."""

    x_label: str
    y_label: str
    bubbles: list[Bubble]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]


LARGEST_BUBBLE = 56.0
"""Pixels."""


def bubble_chart(
    models: Sequence[tuple[str, str, float, float, float, str]], *, x_label: str, y_label: str, y_format: Format
) -> BubbleChart:
    """Places models in a frame; both axes begin at 0, or below where a score does.

    Args:
        models: (name, style, x, y, size, text) of each; the size is the area of the circle.
    """
    high_x, high_y = 1.25 * max(model[2] for model in models), max(model[3] for model in models)
    y_ticks = nice_ticks(min(0.0, *(model[3] for model in models)), min(1.0, 1.15 * high_y) if high_y <= 1 else high_y, 5)
    x_scale, y_scale = Scale(0.0, high_x), Scale(y_ticks[0], y_ticks[-1])
    largest = max(model[4] for model in models)
    return BubbleChart(
        x_label=x_label,
        y_label=y_label,
        bubbles=[
            Bubble(name, style, x_scale(x), y_scale(y), round(LARGEST_BUBBLE * math.sqrt(size / largest), 1), text)
            for name, style, x, y, size, text in models
        ],
        x_ticks=[(x_scale(tick), short(tick)) for tick in x_scale.ticks(4)],
        y_ticks=[(y_scale(tick), y_format(tick)) for tick in y_ticks],
    )
