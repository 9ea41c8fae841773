"""General language model distillation: smaller language models from word predictions alone, and from fewer words."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "GLMDConfig": "hf_glmd.training.config",
    "GLMDTrainer": "hf_glmd.training.trainer",
    "AdaptersOffTeacher": "hf_glmd.teachers.live",
    "LiveTeacher": "hf_glmd.teachers.live",
    "MappedTokenizer": "hf_glmd.vocab.mapped_tokenizer",
    "TeacherCache": "hf_glmd.teachers.cache",
    "TeacherEnsemble": "hf_glmd.teachers.ensemble",
    "temporarily_shrunk": "hf_glmd.shrinking.temporary",
    "WordPredictionCollator": "hf_glmd.data.collators",
    "ClozeClassifier": "hf_glmd.evaluation.classifier",
    "ClozeTask": "hf_glmd.tasks.cloze",
    "ShrunkVocab": "hf_glmd.shrinking.shrunk_vocab",
    "VocabMap": "hf_glmd.vocab.vocab_map",
    "VocabShrinker": "hf_glmd.shrinking.shrinker",
    "UsageError": "hf_glmd.errors",
    "build_student": "hf_glmd.models.student",
    "docstring_corpus": "hf_glmd.data.docstrings",
    "soft_label_loss": "hf_glmd.losses.soft_labels",
    "word_prediction_loss": "hf_glmd.losses.functional",
}

__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    # Loaded on first use: torch and transformers take seconds, and `hf-glmd --help` needs neither.
    if name not in _HOMES:
        raise AttributeError(f"module 'hf_glmd' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__


if TYPE_CHECKING:
    from hf_glmd.data.collators import WordPredictionCollator as WordPredictionCollator
    from hf_glmd.data.docstrings import docstring_corpus as docstring_corpus
    from hf_glmd.errors import UsageError as UsageError
    from hf_glmd.evaluation.classifier import ClozeClassifier as ClozeClassifier
    from hf_glmd.losses.functional import word_prediction_loss as word_prediction_loss
    from hf_glmd.losses.soft_labels import soft_label_loss as soft_label_loss
    from hf_glmd.models.student import build_student as build_student
    from hf_glmd.shrinking.shrinker import VocabShrinker as VocabShrinker
    from hf_glmd.shrinking.shrunk_vocab import ShrunkVocab as ShrunkVocab
    from hf_glmd.shrinking.temporary import temporarily_shrunk as temporarily_shrunk
    from hf_glmd.tasks.cloze import ClozeTask as ClozeTask
    from hf_glmd.teachers.cache import TeacherCache as TeacherCache
    from hf_glmd.teachers.ensemble import TeacherEnsemble as TeacherEnsemble
    from hf_glmd.teachers.live import AdaptersOffTeacher as AdaptersOffTeacher
    from hf_glmd.teachers.live import LiveTeacher as LiveTeacher
    from hf_glmd.training.config import GLMDConfig as GLMDConfig
    from hf_glmd.training.trainer import GLMDTrainer as GLMDTrainer
    from hf_glmd.vocab.mapped_tokenizer import MappedTokenizer as MappedTokenizer
    from hf_glmd.vocab.vocab_map import VocabMap as VocabMap
