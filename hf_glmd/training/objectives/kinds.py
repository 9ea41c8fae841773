"""Every objective, and the one that a name means for a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from hf_glmd.training.objectives.base import Objective
from hf_glmd.training.objectives.candidates import Candidates
from hf_glmd.training.objectives.classes import Classes
from hf_glmd.training.objectives.embeddings import Embeddings
from hf_glmd.training.objectives.spans import Spans
from hf_glmd.training.objectives.token_classes import TokenClasses
from hf_glmd.training.objectives.word_prediction import WordPrediction

OBJECTIVES: list[type[Objective]] = [WordPrediction, Classes, TokenClasses, Spans, Candidates, Embeddings]
"""Asked in this order whether they suit, see `Objective.suits`."""


def objective_for(name: str, model: nn.Module) -> type[Objective]:
    """The objective that `GLMDConfig.objective` means for a student."""
    suiting = [objective for objective in OBJECTIVES if objective.suits(name, model)]
    return next(iter(suiting), None) or next(objective for objective in OBJECTIVES if objective.name == name)


def default_temperatures() -> dict[str, float]:
    """Name of each objective -> the temperature of both softmaxes where none is said."""
    return {objective.name: objective.default_temperature for objective in OBJECTIVES}


def default_collator(args: Any, tokenizer: PreTrainedTokenizerBase, model: nn.Module) -> Callable[[list[Any]], dict[str, Any]]:
    """The collator that goes with an objective and a kind of model. Raises: UsageError, the model cannot do what is asked."""
    return objective_for(args.objective, model).collator(args, tokenizer, model)
