"""The model card of a model whose vocabulary was cut, and nothing else done to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hf_glmd.reports.card import SHRUNK_TAGS, Card, SourceCard, display_name, is_hub_name
from hf_glmd.reports.ledger import ledger_table
from hf_glmd.utils.system import versions
from hf_glmd.utils.text import markdown_table, markdown_text, percent

if TYPE_CHECKING:
    from hf_glmd.reports.vocab_report import VocabReport


def render_vocabulary_card(
    report: VocabReport,
    removed: str,
    original: str,
    *,
    name: str,
    load_from: str | None = None,
    pipeline_tag: str | None = None,
    source: SourceCard | None = None,
    plot: str | None = None,
    corpora: Sequence[str] = (),
    command: str = "",
    verified: str = "",
    sentence_encoder: bool = False,
) -> str:
    """A card whose every figure is the report's.

    Args:
        removed: what happens to removed tokens, as in `VocabShrinker.shrink`.
        original: Hub name or folder of the model, or tokenizer, that was cut; empty: unknown.
        name: of the result.
        load_from: what the usage code loads. Unset: `name`.
        pipeline_tag: see `hf_glmd.models.loading`. None: there is a tokenizer only.
        source: what the original model's card says.
        plot: the picture of the cut, relative to the card.
        corpora: what was counted, in words.
        verified: what was compared with the original, in words.
        sentence_encoder: it is a repository of sentence-transformers.
    """
    called = markdown_text(display_name(original) if original else "another tokenizer")
    linked = original and is_hub_name(original)
    return Card(
        template="vocabulary_card.md",
        name=name,
        pipeline_tag=pipeline_tag,
        facts={
            "vocab": report,
            "original": f"[{called}](https://huggingface.co/{original})" if linked else called,
            "corpora": [markdown_text(display_name(one)) for one in corpora],
            "verified": verified,
            "library_versions": versions("hf_glmd", "torch", "transformers", "tokenizers"),
            "embeddings": embedding_lines(report),
            "ledger_table": ledger_table,
        },
        source=source or SourceCard(),
        base_model=original or None,
        tags=SHRUNK_TAGS,
        load_from=load_from,
        example="The {mask} of the list is returned." if pipeline_tag == "fill-mask" else "The end of the list is returned.",
        removed=removed,
        table_title="Beside the original",
        table=markdown_table(size_rows(report), ["", called, "this model"], "lrr"),
        plots=[f"![How often tokens were counted, and where the cut is]({plot})"] if plot else [],
        command=command,
        sentence_encoder=sentence_encoder,
    ).render()


def embedding_lines(report: VocabReport) -> list[str]:
    """How far an encoder's embeddings moved: a table and what it is of."""
    if (scores := report.embeddings) is None:
        return []
    which = "that were not counted" if scores.held_out else "of the counted ones; others may move further"
    return [markdown_table(scores.rows(), [f"embeddings of {scores.texts:,} texts, {which}", ""], "lr"), ""]


def size_rows(report: VocabReport) -> list[tuple[str, str, str]]:
    """What a reader compares: (fact, original, this model). Weights only where a model was cut."""
    rows = [("vocabulary (tokens)", f"{report.original_size:,}", _beside(report.size, report.original_size))]
    if (before := report.model_before) and (after := report.model_after):
        rows += [
            ("parameters", f"{before.parameters:,}", _beside(after.parameters, before.parameters)),
            (
                "- of the vocabulary",
                f"{before.vocabulary_parameters:,}",
                _beside(after.vocabulary_parameters, before.vocabulary_parameters),
            ),
            ("weights (MB)", f"{before.bytes / 1e6:,.1f}", f"{after.bytes / 1e6:,.1f}"),
        ]
    return [
        *rows,
        *([("characters that become unknown", "0", f"{report.characters_lost:,}")] if report.characters_lost else []),
        ("text covered by its tokens", "100%", percent(report.coverage)),
        ("tokens per text", "1.000x", f"{report.length_ratio:.3f}x"),
    ]


def _beside(after: int, before: int) -> str:
    return f"{after:,} ({after / before:.0%})"
