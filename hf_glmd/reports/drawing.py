"""How figures look: colours, frame, ticks and files."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hf_glmd.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# of Okabe and Ito, told apart by the colour-blind too; on an opaque white page, so that a dark web page does not swallow the text
BLUE, ORANGE, GREY, INK, PAGE = "#0072B2", "#D55E00", "#8C8C8C", "#222222", "#FFFFFF"


INKS = {ORANGE: "#A84A00"}
"""A darker tone for text of that colour."""


PALE_BLUE, PALE_GREY = "#A9D0EA", "#DADADA"


DPI = 150


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
    # On an opaque page with a thin edge: a card is shown on white and on black, and dark text needs a light page.
    figure.patch.set(edgecolor=PALE_GREY, linewidth=2)
    undated = {"Software": None} if image.suffix == ".png" else {"Date": None}
    figure.savefig(image, format=image.suffix[1:], dpi=DPI, facecolor=PAGE, edgecolor=PALE_GREY, metadata=undated)
    numbers = image.with_suffix(".csv")
    with open(numbers, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([[_as_text(cell) for cell in row] for row in table])
    return [image, numbers]


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
