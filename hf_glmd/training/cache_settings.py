"""What a teacher cache can be, and what it has to say about itself."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_glmd.errors import UsageError
from hf_glmd.training.fingerprints import teacher_fingerprint
from hf_glmd.vocab.vocab_map import VocabMap

if TYPE_CHECKING:
    from hf_glmd.training.teachers import Teacher

VERSION = 1
DTYPES = {"hidden": ("int8", "bf16", "fp16", "fp32"), "topk": ("fp16", "fp32")}
"""What each kind can be stored as, the default first."""

DEFAULT_K = 64


@dataclass(frozen=True)
class CacheSettings:
    """What a cache holds.

    Attributes:
        kind: "hidden" or "topk".
        dtype: of the hidden states, or of the likeliest tokens' logits.
        size: rows of the output embedding; for "topk": the tokens among which the likeliest were sought.
        k, temperature: of "topk".
        kept: of "topk": sha256 of the kept ids; None: the whole vocabulary.
        fingerprint: what it was made from.
    """

    kind: str
    dtype: str
    size: int
    k: int | None
    temperature: float | None
    kept: str | None
    fingerprint: dict[str, Any]
    version: int = VERSION


def settings_of(
    teacher: Teacher,
    kind: str,
    dtype: str | None,
    k: int | None,
    temperature: float | None,
    fingerprint: Mapping[str, Any] | None,
) -> CacheSettings:
    """Raises: UsageError, a setting makes no sense, or not with the others."""
    if kind not in DTYPES:
        raise UsageError(f"kind={kind!r} is unknown. Use 'hidden' or 'topk'.")
    dtype = DTYPES[kind][0] if dtype is None else dtype
    if dtype not in DTYPES[kind]:
        raise UsageError(f"dtype={dtype!r} is unknown for kind={kind!r}. Use one of {', '.join(DTYPES[kind])}.")
    if not teacher.models:
        raise UsageError(f"{type(teacher).__name__} runs no model, so there is nothing to cache. Give a live teacher.")
    vocab_map = vocab_map_of(teacher)
    if kind == "hidden":
        if teacher.fallback is not None:
            raise UsageError(f"no hidden states can be cached: {teacher.fallback}. Use kind='topk'.")
        if k is not None or temperature is not None:
            raise UsageError(f"k={k} and temperature={temperature} belong to kind='topk'. Leave them out: 'hidden' holds all.")
        size = teacher.head.size
    else:
        size = teacher.size
        k, temperature = DEFAULT_K if k is None else k, 1.0 if temperature is None else float(temperature)
        if not 1 <= k <= size:
            raise UsageError(f"k={k} is out of range: the teacher predicts {size} tokens. Use 1 to {size}, e.g. {DEFAULT_K}.")
        if not temperature > 0:
            raise UsageError(f"temperature={temperature} is not positive. Use the loss's, e.g. 1.0.")
    made_from = dict(fingerprint or {})
    if "teacher" not in made_from:
        made_from["teacher"] = " ".join(teacher_fingerprint(model) for model in teacher.models)
        if hasattr(teacher, "weights"):
            made_from["teacher"] += f" {teacher.weights}"
    kept = kept_hash(vocab_map) if kind == "topk" else None
    return CacheSettings(kind, dtype, size, k, temperature, kept, json.loads(json.dumps(made_from, default=str)))


def vocab_map_of(teacher: Any) -> VocabMap | None:
    return teacher.vocab_map if hasattr(teacher, "vocab_map") else vocab_map_of(teacher.teachers[0])


def kept_hash(vocab_map: VocabMap | None) -> str | None:
    return None if vocab_map is None else hashlib.sha256(vocab_map.kept_ids.astype("<i8").tobytes()).hexdigest()
