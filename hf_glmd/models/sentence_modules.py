"""The modules of sentence-transformers around an encoder: what they make of its hidden states, read from a model or its files,
and written beside one.

Source: sentence-transformers, arXiv:1908.10084; the files are those of its versions 2 to 6.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.utils import cached_file

from hf_glmd.errors import UsageError
from hf_glmd.models.encoders import POOLINGS
from hf_glmd.utils.files import read_json, replaced, write_json

logger = logging.getLogger(__name__)

_FLAGS = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
"""What a pooling is called in files of versions before 6, which version 6 reads, too."""


@dataclass(frozen=True)
class Pooled:
    """How hidden states become the embedding of a text.

    Attributes:
        pooling: one of `hf_glmd.models.encoders.POOLINGS`.
        normalized: whether it is then divided by its length.
    """

    pooling: str
    normalized: bool = False

    def __call__(self, states: Tensor, attention_mask: Tensor, projection: nn.Module | None = None) -> Tensor:
        """[B, S, H], int64 [B, S] -> [B, H], fp32 or wider; with a projection [B, its width]."""
        pooled = POOLINGS[self.pooling](states, attention_mask)
        pooled = pooled if projection is None else projection(pooled)
        return nn.functional.normalize(pooled, dim=-1) if self.normalized else pooled


def is_sentence_transformer(model: Any) -> bool:
    """Whether it is a `sentence_transformers.SentenceTransformer`; the library is not loaded to find out."""
    library = sys.modules.get("sentence_transformers")
    return library is not None and isinstance(model, library.SentenceTransformer)


def encoder_inside(model: Any) -> Any:
    """The encoder of a `SentenceTransformer`, which knows from then on how it is pooled; anything else as it is.

    Raises: UsageError, the model does more than pooling and normalising.
    """
    if not is_sentence_transformer(model):
        return model
    parts = [(type(part).__name__, part.get_config_dict() if hasattr(part, "get_config_dict") else {}) for part in model]
    encoder = getattr(model[0], "auto_model", None)
    pooled = _pooled_of(parts, "this SentenceTransformer", "model[0].auto_model")
    encoder.own_pooling = pooled
    return encoder


def pooled_in_files(name_or_path: str | PathLike[str], revision: str | None = None) -> Pooled | None:
    """What `modules.json` of a folder or a repository says; None: there is none.

    Raises: UsageError, the modules do more than pooling and normalising, or the file cannot be read.
    """

    def found(name: str) -> Any:
        options = {f"_raise_exceptions_for_{what}": False for what in ("missing_entries", "connection_errors", "gated_repo")}
        file = cached_file(str(name_or_path), name, revision=revision, **options)
        return None if file is None else read_json(Path(file), "Save the model once more.")

    modules = found("modules.json")
    if modules is None:
        return None
    parts = [(one["type"].rpartition(".")[2], found(f"{one['path']}/config.json") if one["path"] else {}) for one in modules]
    return _pooled_of(parts, f"'{name_or_path}'", f"AutoModel.from_pretrained('{name_or_path}')")


def pooled_to_compare(name_or_path: str | PathLike[str], revision: str | None = None) -> Pooled:
    """How to pool an encoder whose embeddings are only compared: as its modules say, by the mean where they say nothing.

    Where they do more than that, it is the mean as well, and a warning says so.
    """
    try:
        return pooled_in_files(name_or_path, revision) or Pooled("mean")
    except UsageError as error:
        logger.warning("Embeddings are compared by the mean of the hidden states: %s", error)
        return Pooled("mean")


def _pooled_of(parts: Sequence[tuple[str, Mapping[str, Any] | None]], name: str, encoder: str) -> Pooled:
    kinds = [kind for kind, _ in parts]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise UsageError(
            f"{name} has the modules {', '.join(kinds)}: of a SentenceTransformer only Transformer, Pooling and Normalize can be "
            f"distilled. Pass {encoder}, and pooling= of GLMDConfig, to distil what comes before the others."
        )
    config = parts[1][1] or {}
    chosen = config.get("pooling_mode", [mode for mode, flag in _FLAGS.items() if config.get(flag)])
    chosen = [chosen] if isinstance(chosen, str) else list(chosen)
    if len(chosen) != 1 or chosen[0] not in POOLINGS:
        flags = [flag for flag, value in config.items() if flag.startswith("pooling_mode_") and value]
        raise UsageError(
            f"{name} pools by {', '.join(chosen if 'pooling_mode' in config else flags) or 'nothing'}: only one of "
            f"{', '.join(POOLINGS)} is known. Pass {encoder}, and pooling= of GLMDConfig, to have it pooled otherwise."
        )
    return Pooled(chosen[0], normalized=len(parts) == 3)


def write_modules(folder: str | PathLike[str], width: int, pooled: Pooled, projection: Tensor | None = None) -> None:
    """Makes the encoder in a folder a model that `SentenceTransformer(folder)` loads; `AutoModel` loads it as before.

    Args:
        width: H_s, of its hidden states.
        projection: [H_t, H_s], applied between pooling and normalising.
    """
    folder = Path(folder)
    kinds = [
        "Transformer",
        "Pooling",
        *(["Dense"] if projection is not None else []),
        *(["Normalize"] if pooled.normalized else []),
    ]
    paths = ["", *(f"{number}_{kind}" for number, kind in enumerate(kinds) if number)]
    for path in paths[1:]:
        (folder / path).mkdir(exist_ok=True)
    flags = {flag: mode == pooled.pooling for mode, flag in _FLAGS.items()}
    write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": width} | flags)
    if projection is not None:
        sizes = {"in_features": projection.shape[1], "out_features": projection.shape[0], "bias": False}
        activation = {"activation_function": "torch.nn.modules.linear.Identity"}
        write_json(folder / "2_Dense" / "config.json", sizes | activation)
        with replaced(folder / "2_Dense" / "model.safetensors") as unfinished:
            save_file({"linear.weight": projection.detach().cpu().contiguous()}, unfinished)
    if pooled.normalized:
        write_json(folder / paths[-1] / "config.json", {})
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    write_json(folder / "modules.json", modules)
