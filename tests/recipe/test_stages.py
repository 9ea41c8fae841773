"""Learning curves out of a Trainer's log."""

import math

from hf_glmd.recipe.stages import learning_curves
from hf_glmd.reports.records import StageRecord

LOG = [
    {"step": 0, "eval_loss": 2.5, "eval_kl": 2.1, "eval_agreement": 0.11},
    {"step": 10, "loss": 1.9, "learning_rate": 1e-3},
    {"step": 20, "loss": math.nan},
    {"step": 20, "eval_loss": 1.5, "eval_kl": 1.1, "eval_agreement": 0.31},
    {"step": 20, "train_runtime": 3.0, "train_loss": 1.7},
]


def test_scores_and_losses_become_the_fields_of_a_record():
    curves = learning_curves(LOG)
    assert (curves["steps_evaluated"], curves["kl"], curves["agreement"]) == ([0, 20], [2.1, 1.1], [0.11, 0.31])
    assert (curves["steps_logged"], curves["loss"]) == ([10], [1.9]) and curves["accuracy"] == []
    record = StageRecord("general", "t", "word_prediction", 1.0, "all", 20, 3.0, 8, 1e-3, **curves)
    assert record.kl == [2.1, 1.1]


def test_gold_labels_have_an_accuracy_instead():
    curves = learning_curves([{"step": 4, "eval_accuracy": 0.6}, {"step": 8, "eval_accuracy": 0.7}])
    assert (curves["steps_evaluated"], curves["accuracy"], curves["kl"]) == ([4, 8], [0.6, 0.7], [])


def test_an_empty_log_has_no_curves():
    assert not any(learning_curves([]).values())
