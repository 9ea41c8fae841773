"""What a vocabulary would cost at each size: a table for people, for programs, and as a picture."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_glmd.utils.text import markdown_table, percent


@dataclass
class ModelParts:
    """What a model weighs, by part; a tensor that is shared counts once."""

    input_table: int = field(metadata={"help": "Parameters of the input table."})
    output_table: int = field(metadata={"help": "Parameters of an output table of its own; 0 where it is tied or missing."})
    other_vocabulary: int = field(metadata={"help": "Parameters of further tables and biases with one entry per token."})
    body: int = field(metadata={"help": "All other parameters."})
    tied: bool = field(metadata={"help": "Whether the output table is the input table."})
    dtype: str = field(metadata={"help": "Of the input table."})
    rows: int = field(metadata={"help": "Of the input table."})
    bytes: int = field(metadata={"help": "Of all parameters."})
    parameters_per_token: int = field(metadata={"help": "What each token costs."})
    bytes_per_token: int = field(metadata={"help": "The same in bytes."})
    bytes_of_body: int = field(metadata={"help": "Of what no token costs."})

    @property
    def parameters(self) -> int:
        return self.input_table + self.output_table + self.other_vocabulary + self.body

    def parameters_at(self, size: int) -> int:
        """With so many tokens."""
        return self.body + size * self.parameters_per_token

    def mb_at(self, size: int) -> float:
        """Megabytes (1e6 bytes) with so many tokens."""
        return (self.bytes_of_body + size * self.bytes_per_token) / 1e6

    def table(self, tokens: int) -> str:
        """For people; `tokens` is the size of the tokenizer's vocabulary."""
        whole, per_parameter = self.parameters, self.bytes / max(self.parameters, 1)
        parts = [
            ("input table", self.input_table),
            ("output table" + (" (tied: the input table)" if self.tied else ""), self.output_table),
            *([("further tables and biases", self.other_vocabulary)] if self.other_vocabulary else []),
            ("body", self.body),
            ("in all", whole),
        ]
        rows = [(name, f"{n:,}", f"{n * per_parameter / 1e6:,.1f}", percent(n / whole)) for name, n in parts]
        spare = self.rows - tokens
        notes = [
            f"{self.rows:,} rows of {self.dtype} for {tokens:,} tokens"
            + (f": {spare:,} rows have no token" if spare > 0 else f": {-spare:,} tokens have no row" if spare < 0 else ""),
            *(
                f"with {what} of the tokens, {int(tokens * share):,}: {self.parameters_at(int(tokens * share)):,} parameters, "
                f"{self.mb_at(int(tokens * share)):,.1f} MB"
                for what, share in (("half", 0.5), ("a quarter", 0.25))
            ),
        ]
        return "\n".join([markdown_table(rows, ["part", "parameters", "MB", "share"], "lrrr"), "", *notes])


@dataclass
class CorpusSize:
    """A corpus that sizes were measured on."""

    texts: int = field(metadata={"help": "Counted texts, empty ones left out."})
    tokens: int = field(metadata={"help": "Tokens in them."})
    held_out_texts: int = field(metadata={"help": "Texts set aside."})
    held_out_tokens: int = field(metadata={"help": "Tokens in these, with the whole vocabulary."})


@dataclass
class SizeRow:
    """A vocabulary of one size; per corpus where that is a dict."""

    size: int = field(metadata={"help": "Tokens."})
    coverage: dict[str, float] = field(metadata={"help": "Share of the counted tokens that are kept."})
    growth: dict[str, float] = field(metadata={"help": "Tokens after / before, of the held-out texts."})
    lost: dict[str, int] = field(metadata={"help": "Characters of the held-out texts that become unknown."})
    parameters: int | None = field(default=None, metadata={"help": "Of the model."})
    mb: float | None = field(default=None, metadata={"help": "Of its weights, 1e6 bytes each."})


@dataclass
class SizeTable:
    """Sizes of a vocabulary and what each costs, the largest first."""

    original_size: int = field(metadata={"help": "V: rows that the tokenizer can address."})
    least_size: int = field(metadata={"help": "Tokens that stay whatever is cut."})
    corpora: dict[str, CorpusSize] = field(metadata={"help": "What was counted."})
    rows: list[SizeRow] = field(metadata={"help": "The sizes."})
    knee: SizeRow | None = field(default=None, metadata={"help": "The smallest that keeps to `knee_growth` in every corpus."})
    knee_growth: float = field(default=1.01, metadata={"help": "Growth that the knee stays within."})
    model: ModelParts | None = field(default=None, metadata={"help": "The model, where there is one."})

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def table(self) -> str:
        """For people."""
        several, weighed = len(self.corpora) > 1, self.rows[0].parameters is not None
        names = list(self.corpora)
        loses = any(n for row in self.rows for n in row.lost.values())
        header = ["tokens", "share", *(["parameters", "MB"] if weighed else [])]
        for what in ("coverage", "growth", *(["characters lost"] if loses else [])):
            header += [f"{what} {name}" if several else what for name in names]
        cells = []
        for row in self._with_knee():
            mark = " <- knee" if self.knee is not None and row.size == self.knee.size else ""
            line = [f"{row.size:,}", percent(row.size / self.original_size)]
            line += [f"{row.parameters:,}", f"{row.mb:,.1f}"] if weighed else []
            line += [percent(row.coverage[name]) for name in names] + [f"{row.growth[name]:.4f}" for name in names]
            line += [f"{row.lost[name]:,}" for name in names] if loses else []
            line[0] = mark.strip() + (" " if mark else "") + line[0]
            cells.append(line)
        counted = ", ".join(
            f"{name}: {one.tokens:,} tokens in {one.texts:,} texts, and {one.held_out_texts:,} texts held out"
            for name, one in self.corpora.items()
        )
        lines = [markdown_table(cells, header, "r" * len(header)), "", f"Counted {counted}."]
        if self.knee is not None:
            lines.append(
                f"Knee: {self.knee.size:,} tokens ({percent(self.knee.size / self.original_size)}) keep held-out text within "
                f"{self.knee_growth - 1:.1%} more tokens."
            )
        return "\n".join(lines)

    def _with_knee(self) -> list[SizeRow]:
        extra = [self.knee] if self.knee is not None and all(row.size != self.knee.size for row in self.rows) else []
        return sorted([*self.rows, *extra], key=lambda row: -row.size)

    def save_plot(self, image: str | Path) -> list[Path]:
        """Growth over size, a line per corpus, with the knee.

        Args:
            image: a .png or .svg file; the numbers go beside it, as .csv.
        Returns: the files written.
        Raises: UsageError, matplotlib is not installed.
        """
        from hf_glmd.reports.drawing import save

        names = list(self.corpora)
        table = [["tokens", *(f"growth {name}" for name in names), *(f"coverage {name}" for name in names)]]
        table += [
            [row.size, *(row.growth[name] for name in names), *(row.coverage[name] for name in names)]
            for row in self._with_knee()
        ]
        return save(_figure(self, self._with_knee()), table, Path(image))


COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#8A6D00", "#56B4E9", "#222222")
"""Of Okabe and Ito, the yellow darkened."""


def _figure(sizes: SizeTable, rows: Sequence[SizeRow]) -> Any:
    from hf_glmd.reports.drawing import GREY, INK, new_figure, plain_numbers, spread

    figure, [panel] = new_figure("Tokens per text, by size of the vocabulary", 7.2, 4.2)
    shown = [row for row in rows if min(row.growth.values()) < 1.6] or list(rows)
    top = min(1.6, max(max(row.growth.values()) for row in shown))
    top = 1 + max(top - 1, 0.02) * 1.08
    panel.set_xscale("log")
    panel.set_ylim(1 - (top - 1) * 0.03, top)
    ends = []
    for number, name in enumerate(sizes.corpora):
        color, style = COLORS[number % len(COLORS)], "-" if number < len(COLORS) else "--"
        points = [(row.size, row.growth[name]) for row in rows]
        panel.plot(*zip(*points, strict=True), color=color, linestyle=style, linewidth=2, marker="o", markersize=3.5)
        inside = [point for point in points if point[1] <= top]
        ends.append((inside[-1], name, color))
    ends.sort(key=lambda end: end[0][1])
    for ((_, _), name, color), place in zip(ends, spread([end[0][1] for end in ends], (top - 1) * 0.06), strict=True):
        where = (1.01, place)
        panel.annotate(name, where, xycoords=("axes fraction", "data"), va="center", color=color, fontsize=10, fontweight="bold")
    panel.axhline(sizes.knee_growth, color=GREY, linewidth=1, linestyle=(0, (2, 2)))
    if sizes.knee is not None:
        panel.axvline(sizes.knee.size, color=INK, linewidth=1.4, linestyle=(0, (5, 2)))
        panel.annotate(
            f"knee: {sizes.knee.size:,} tokens,\nat most {sizes.knee_growth - 1:.0%} longer",
            (sizes.knee.size, 0.95),
            xycoords=("data", "axes fraction"),
            xytext=(6, 0),
            textcoords="offset points",
            va="top",
            color=INK,
            fontsize=10,
            fontweight="bold",
        )
    panel.invert_xaxis()
    panel.set_xlabel("tokens kept (logarithmic, smaller to the right)", color=INK, fontsize=10)
    panel.set_ylabel("tokens after / before, held-out text", color=INK, fontsize=10)
    plain_numbers(panel.xaxis)
    panel.grid(True, axis="y", color="#EEEEEE", linewidth=0.8)
    panel.set_axisbelow(True)
    return figure
