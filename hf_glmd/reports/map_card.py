"""The card of a vocabulary map that is published alone: what it makes of which model, and how."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_glmd.errors import UsageError
from hf_glmd.reports.card import card_metadata, rendered
from hf_glmd.utils.text import markdown_table

if TYPE_CHECKING:
    from hf_glmd.vocab.vocab_map import VocabMap


def render_map_card(vocab_map: VocabMap, repo: str, card: Path) -> str:
    """A card for the repository `repo`.

    Args:
        card: that of the cut model, whose licence, languages, base and tags it keeps.
    Raises: UsageError, the map does not say what it was made of.
    """
    from huggingface_hub import ModelCardData

    origin = vocab_map.origin
    if origin is None:
        raise UsageError("The map does not say which model it was made of: cut that model again with hf-glmd shrink.")
    kept: dict[str, Any] = {
        name: value for name, value in card_metadata(card).items() if name not in ("pipeline_tag", "library_name", "widget")
    }
    return rendered(
        "map_card.md",
        ModelCardData(**kept | {"library_name": "hf_glmd"}, ignore_metadata_errors=True),
        name=repo.split("/")[-1],
        repo=repo,
        vocab_map=vocab_map,
        origin=origin,
        sums=markdown_table([(file, f"`{digest}`") for file, digest in origin.files.items()], ["file", "SHA-256"], "ll"),
    )
