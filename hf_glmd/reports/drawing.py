"""How figures look: colours, frame, ticks, files and SVG for a page."""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_glmd.errors import UsageError
from hf_glmd.utils.text import one_line, visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# of Okabe and Ito, told apart by the colour-blind too; on an opaque white page, so that a dark web page does not swallow the text
BLUE, ORANGE, GREY, INK, PAGE = "#0072B2", "#D55E00", "#8C8C8C", "#222222", "#FFFFFF"


INKS = {ORANGE: "#A84A00"}
"""A darker tone for text of that colour."""


PALE_BLUE, PALE_GREY = "#A9D0EA", "#DADADA"


DPI = 150


@dataclass
class Plot:
    """A chart that is not drawn yet, and its numbers.

    Attributes:
        name: of its files.
        caption: what is drawn.
        title: the finding, in words.
        draw: title -> figure; with "" it has no title.
        table: header and rows.
        shares: columns of the table that hold shares of 1.
    """

    name: str
    caption: str
    title: str
    draw: Callable[[str], Figure]
    table: Sequence[Sequence[Any]]
    shares: Sequence[str] = ()

    def save(self, image: Path) -> list[Path]:
        """Returns: the image and, beside it, the CSV. Raises: UsageError, matplotlib is not installed."""
        with _style():
            return save(self.draw(self.title), self.table, image)

    def svg(self, prefix: str) -> str:
        """The figure as an element of an HTML page, at its own size and without its title.

        Args:
            prefix: of the ids, which would else be the same in two figures of a page.
        """
        file = io.StringIO()
        with _style():
            from matplotlib.backends.backend_svg import FigureCanvasSVG

            figure = self.draw("")
            FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None})  # `savefig` would draw it twice
        # The names in the comments are also drawn. What comes before the first group is for a file of its own.
        drawing = re.sub(r"<!--.*?-->|xlink:|(?<=>)\s+(?=<)", "", file.getvalue(), flags=re.DOTALL)
        drawing = re.sub(r'( id="|href="#|url\(#)', rf"\1{prefix}-", drawing[drawing.index("<g ") :])
        width, height = figure.get_size_inches()
        sizes = f'width="{96 * width:g}" height="{96 * height:g}" viewBox="0 0 {72 * width:g} {72 * height:g}"'
        label = html.escape(self.caption if self.title in ("", self.caption) else f"{self.caption}. {self.title}")
        return f'<svg role="img" aria-label="{label}" {sizes}>{drawing}'


def _style() -> AbstractContextManager:
    """A name with two $ in it is no formula; text of an SVG is outlines, which need no font; the same ids each time."""
    figure_class()
    from matplotlib import rc_context

    return rc_context({"text.parse_math": False, "svg.fonttype": "path", "svg.hashsalt": "hf_glmd"})


def figure_class() -> type[Figure]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError("plots need matplotlib, which is not installed. Run: pip install hf_glmd[plots]") from error
    return Figure


def new_figure(title: str, width: float, height: float, columns: int = 1, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """Its panels come row by row."""
    figure = figure_class()(figsize=(width, height), facecolor=PAGE, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1, wspace=0.03)
    if title:
        figure.suptitle(title, x=0.02, ha="left", color=INK, fontsize=13, fontweight="bold")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for panel in axes:
        panel.set_facecolor(PAGE)
        panel.tick_params(colors=INK, labelsize=9)
        for side, spine in panel.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(GREY)
    return figure, axes


def _as_text(cell: object) -> object:
    """A name that a spreadsheet would take for a formula, as text."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t")) else cell


def save(figure: Figure, table: Sequence[Sequence], image: Path) -> list[Path]:
    """Returns: the image and, beside it, the CSV."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)  # a name with two $ in it is no formula
    # On an opaque page with a thin edge: a card is shown on white and on black, and dark text needs a light page.
    figure.patch.set(edgecolor=PALE_GREY, linewidth=2)
    undated = {"Software": None} if image.suffix == ".png" else {"Date": None}
    figure.savefig(image, format=image.suffix[1:], dpi=DPI, facecolor=PAGE, edgecolor=PALE_GREY, metadata=undated)
    numbers = image.with_suffix(".csv")
    with open(numbers, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([[_as_text(cell) for cell in row] for row in table])
    return [image, numbers]


def label_of(name: str, length: int = 32) -> str:
    """A name that somebody else chose, as one short line."""
    name = visible(one_line(name))
    return name if len(name) <= length else f"{name[: length - 1]}…"


def evenly(values: Sequence, count: int) -> list:
    """At most `count` of the values, two or more, the first and the last among them."""
    if len(values) <= count:
        return list(values)
    return [values[round(number * (len(values) - 1) / (count - 1))] for number in range(count)]


def spread(places: Sequence[float], gap: float) -> list[float]:
    """The sorted places, moved up where needed so that neighbours are `gap` apart."""
    spread: list[float] = []
    for place in places:
        spread.append(max(place, spread[-1] + gap) if spread else place)
    return spread


def plain_numbers(axis, ticks: int | None = None) -> None:
    """10,000 rather than 10^4; at most `ticks` of them on a linear axis."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

    if ticks:
        axis.set_major_locator(MaxNLocator(ticks, integer=True, min_n_ticks=1))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axis.set_minor_formatter(NullFormatter())


def columns(points: Sequence[tuple]) -> tuple[list[int], list[int]]:
    return [point[0] for point in points], [point[1] for point in points]


def mixed(share: float) -> tuple[float, ...]:
    """The pale colour of what was removed, with `share` of that of what was kept."""
    removed, kept = ([int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)] for color in (PALE_GREY, PALE_BLUE))
    return tuple((1 - share) * a + share * b for a, b in zip(removed, kept, strict=True))
