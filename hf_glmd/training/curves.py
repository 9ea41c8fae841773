"""A stage's learning curves out of what the Trainer logged."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any


def learning_curves(history: Sequence[Mapping[str, Any]]) -> dict[str, list]:
    """The curves of a `StageRecord`: of the scores on held-out rows, and of the training loss.

    Args:
        history: `trainer.state.log_history`.
    Returns: `steps_evaluated` with `kl` and `agreement`, or with `accuracy`; `steps_logged` with `loss`.
    """
    scored = [entry for entry in history if "eval_kl" in entry or "eval_accuracy" in entry]
    logged = [entry for entry in history if math.isfinite(entry.get("loss", math.nan))]
    return {
        "steps_evaluated": [entry["step"] for entry in scored],
        "kl": [entry["eval_kl"] for entry in scored if "eval_kl" in entry],
        "agreement": [entry["eval_agreement"] for entry in scored if "eval_agreement" in entry],
        "accuracy": [entry["eval_accuracy"] for entry in scored if "eval_kl" not in entry],
        "steps_logged": [entry["step"] for entry in logged],
        "loss": [entry["loss"] for entry in logged],
    }
