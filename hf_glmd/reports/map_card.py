"""The card of a vocabulary map that is published alone: what it makes of which model, and how."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_glmd.errors import UsageError
from hf_glmd.reports.card import card_metadata
from hf_glmd.utils.text import markdown_table, markdown_text

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
    data = ModelCardData(**kept | {"library_name": "hf_glmd"}, ignore_metadata_errors=True)
    name = repo.split("/")[-1]
    sums = markdown_table([(file, f"`{digest}`") for file, digest in origin.files.items()], ["file", "SHA-256"], "ll")
    made_with = ", ".join(f"{library} {version}" for library, version in origin.versions.items())
    return f"""---
{data.to_yaml()}
---

# {markdown_text(name)}

A vocabulary map: it makes a smaller model, with {vocab_map.size:,} of the {vocab_map.original_size:,} tokens, of
{markdown_text(origin.base)}{f" at revision {origin.revision}" if origin.revision else ""}. No weights are here.

## Usage

```
pip install hf_glmd
hf download {repo} vocab_map.safetensors --local-dir .
hf-glmd rebuild {origin} vocab_map.safetensors --output {name}
```

The result is compared with these sums. It was made with {made_with}; other versions may write other files.

{sums}
"""
