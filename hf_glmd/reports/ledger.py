"""What a smaller vocabulary costs each text that somebody named, so that nobody is surprised by what was lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from hf_glmd.utils.text import markdown_table, markdown_text, percent


@dataclass
class LedgerRow:
    """A text, before and after the cut."""

    name: str = field(metadata={"help": "Of the corpus or the file."})
    counted: bool = field(metadata={"help": "Whether it was counted for the cut; False: it was only measured."})
    texts: int = field(metadata={"help": "Texts measured; of a counted corpus those held out."})
    tokens_before: int = field(metadata={"help": "Tokens that the original splits them into."})
    tokens_after: int = field(metadata={"help": "Tokens that the smaller vocabulary splits them into."})
    coverage: float = field(metadata={"help": "Share of tokens_before that are kept tokens."})
    unknown_characters: int = field(metadata={"help": "Characters of them that became unknown."})
    bits_texts: int = field(default=0, metadata={"help": "Texts whose bits per character were measured, with a language model."})
    bits_before: float | None = field(default=None, metadata={"help": "Bits per character of the original model."})
    bits_after: float | None = field(default=None, metadata={"help": "Bits per character of the cut model, untrained."})

    @property
    def growth(self) -> float:
        """Tokens after / before."""
        return self.tokens_after / max(self.tokens_before, 1)


def ledger_cells(rows: Sequence[LedgerRow]) -> tuple[list[str], list[list[str]]]:
    """Header and lines of the table; bits per character only where some were measured."""
    with_bits = any(row.bits_after is not None for row in rows)
    header = ["text", "tokens before", "after", "growth", "covered", "characters that became unknown"]
    header += ["bits per character before", "after"] if with_bits else []
    cells = [
        [
            row.name + ("" if row.counted else " (not counted)"),
            f"{row.tokens_before:,}",
            f"{row.tokens_after:,}",
            f"{row.growth:.4f}x",
            percent(row.coverage),
            f"{row.unknown_characters:,}",
            *(("" if bits is None else f"{bits:.3f}" for bits in (row.bits_before, row.bits_after)) if with_bits else ()),
        ]
        for row in rows
    ]
    return header, cells


def ledger_table(rows: Sequence[LedgerRow]) -> str:
    """For the card and for a terminal."""
    header, cells = ledger_cells(rows)
    return markdown_table([[markdown_text(name), *rest] for name, *rest in cells], header, "l" + "r" * (len(header) - 1))
