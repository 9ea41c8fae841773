"""The long tail: how often each token was counted, and where the vocabulary was cut."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hf_glmd.errors import UsageError
from hf_glmd.reports.drawing import BLUE, GREY, INK, INKS, ORANGE, Plot, columns, mixed, new_figure, plain_numbers
from hf_glmd.reports.records import VocabFacts
from hf_glmd.reports.vocab_report import VocabReport
from hf_glmd.utils.text import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


TAIL_CAPTION = "How often each token was counted, commonest first"


def save_vocabulary_plot(report: VocabReport, path: str | Path) -> Path:
    """Draws how often each token was counted and where the vocabulary was cut, with the numbers as CSV beside it.

    Returns: `path`, a PNG.
    Raises: UsageError, matplotlib is not installed, or nothing was counted.
    """
    plot = vocabulary_plot(report)
    if plot is None:
        raise UsageError("no token counts are known, so there is no long tail to draw. Cut the vocabulary with VocabShrinker.")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    plot.save(path)
    return path


def vocabulary_plot(report: VocabReport) -> Plot | None:
    """The long tail of a vocabulary, with all that was kept. None: nothing was counted."""
    tail = report.long_tail
    if tail is None or not any(tail.counts):
        return None
    rarer = list(zip(tail.rarer_kept_ranks, tail.rarer_kept_counts, strict=True))
    rows = zip(tail.ranks, tail.counts, tail.kept_shares, strict=True)
    share = "kept_share_since_rank_before"
    return Plot(
        "vocabulary",
        TAIL_CAPTION,
        tail_title(report),
        lambda title: draw_long_tail(
            tail.ranks, tail.counts, tail.kept_shares, report, title, tail.cut, tail.n_rarer_kept, rarer
        ),
        [("rank", "count", share), *rows],
        shares=[share],
    )


def tail_title(vocab: VocabFacts | VocabReport) -> str:
    """What the long tail shows, in words."""
    return f"{_share_in_words(vocab.size / vocab.original_size)} of the tokens cover {percent(vocab.coverage)} of the text"


def _share_in_words(share: float) -> str:
    named = {1 / 4: "A quarter", 1 / 3: "A third", 1 / 2: "Half", 2 / 3: "Two thirds", 3 / 4: "Three quarters", 1.0: "All"}
    for value, words in named.items():
        if abs(share - value) < 0.002 and (share == 1 or value < 1):
            return words
    return f"{share:.0%}"


def draw_long_tail(
    ranks: Sequence[int],
    counts: Sequence[int],
    kept_shares: Sequence[float],
    vocab: VocabFacts | VocabReport,
    title: str,
    cut: int,
    n_rarer_kept: int = 0,
    rarer_kept: Sequence[tuple[int, int]] = (),
) -> Figure:
    """Counts over ranks, both logarithmic, and what was kept of them.

    Args:
        ranks, counts: from rank 1, commonest first, possibly thinned.
        kept_shares: which share was kept of the tokens from behind the rank before up to each rank.
        vocab: its sizes, coverage and length ratio are written beside the cut.
        cut: the last rank before the cut.
        n_rarer_kept: tokens behind the cut that were kept nevertheless.
        rarer_kept: (rank, count) of some of them, to be marked.
    """
    figure, [panel] = new_figure(title, 7.2, 4.2)
    points = [point for point in zip(ranks, counts, kept_shares, strict=True) if point[1] > 0]
    lowest, top = min(count for _, count, _ in points) / 1.6, max(count for _, count, _ in points) * 2.2  # a logarithm has no 0
    # Neighbours of about one colour are filled together, or a fine line would show between them.
    for share, part in itertools.groupby(itertools.pairwise(points), key=lambda pair: round(pair[1][2] * 8) / 8):
        area = list(part)
        panel.fill_between(*columns([area[0][0], *(end for _, end in area)]), lowest, color=mixed(share), linewidth=0)
    kept = [point for point in points if point[0] <= cut]
    removed = kept[-1:] + [point for point in points if point[0] > cut]
    for part, color in ((kept, BLUE), (removed, GREY)):
        panel.plot(*columns(part), color=color, linewidth=2.2)
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xlim(1, vocab.original_size)
    panel.set_ylim(lowest, top)
    if rarer_kept:
        marked = [(rank, max(count, lowest)) for rank, count in rarer_kept]
        panel.scatter(*columns(marked), s=14, color=BLUE, linewidth=0, zorder=3, clip_on=False)
    if cut < vocab.original_size:
        _draw_cut(panel, vocab, cut, n_rarer_kept)
    panel.set_xlabel("rank of the token, commonest first (logarithmic)", color=INK, fontsize=10)
    panel.set_ylabel("times counted (logarithmic)", color=INK, fontsize=10)
    plain_numbers(panel.xaxis)
    plain_numbers(panel.yaxis)
    panel.grid(True, axis="y", color="#EEEEEE", linewidth=0.8)
    panel.set_axisbelow(True)
    return figure


def _draw_cut(panel: Axes, vocab: VocabFacts | VocabReport, cut: int, n_rarer_kept: int) -> None:
    """An upright line, and beside it, or at the right edge, what was kept."""
    lines = [
        (f"{vocab.size:,} of {vocab.original_size:,} tokens kept", ORANGE),
        (f"they cover {percent(vocab.coverage)} of the text", "#004B78"),
        (f"removed: {percent(1 - vocab.coverage)}", "#5A5A5A"),
        (f"tokens per text: × {vocab.length_ratio:.3f}", INK),
    ]
    if n_rarer_kept:
        lines.append((f"• {n_rarer_kept:,} rarer tokens kept", BLUE))
    place = math.log(max(cut, 1)) / math.log(vocab.original_size)
    beside_cut = place > 0.9  # farther left the curve would be in the way; the text is then at the right edge
    ends_below_text = 0.55 < place <= 0.9
    panel.axvline(cut, ymax=0.54 if ends_below_text else 1, color=ORANGE, linewidth=1.8, linestyle=(0, (5, 2)))
    for number, (text, color) in enumerate(lines):
        panel.annotate(
            text,
            (cut, 0.97) if beside_cut else (1, 0.97),
            xycoords=("data" if beside_cut else "axes fraction", "axes fraction"),
            xytext=(-8 if beside_cut else 0, -17 * number),
            textcoords="offset points",
            ha="right",
            va="top",
            color=INKS.get(color, color),
            fontsize=10.5,
            fontweight="bold",
        )
