"""What a model is used for, by the class it was saved as, in the Hub's words."""

from __future__ import annotations

from typing import Any

import transformers

from hf_glmd.model_card import AUTO_CLASSES


def pipeline_tag(config: Any) -> str | None:
    """The key of `AUTO_CLASSES` whose class loads a configuration's model; None if none does.

    A model without a head, and one whose head transformers has no common class for, is a text encoder.
    """
    names = set(config.architectures or ())
    # BART is listed as a masked language model, too.
    first = "text2text-generation" if getattr(config, "is_encoder_decoder", False) else ""
    for tag, auto_class in sorted(AUTO_CLASSES.items(), key=lambda item: item[0] != first):
        classes = getattr(transformers, auto_class)._model_mapping
        known = classes[type(config)] if type(config) in classes else ()
        if names & {one.__name__ for one in (known if isinstance(known, tuple) else (known,))}:
            return tag
    return "feature-extraction" if type(config) in transformers.AutoModel._model_mapping else None
