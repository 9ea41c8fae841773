"""Several patterns, and answers in order."""

import datasets
import numpy as np
import tasks_helpers as helpers
import torch

from hf_glmd import ClozeTask
from hf_glmd.tasks.scoring import averaged_scores, predict_answers, score_candidates


def test_patterns_are_averaged_by_their_probabilities():
    tables = np.log([[[0.2, 0.6], [0.1, 0.3]], [[0.09, 0.01], [0.5, 0.5]]])
    expected = np.log([[(0.25 + 0.9) / 2, (0.75 + 0.1) / 2], [(0.25 + 0.5) / 2, (0.75 + 0.5) / 2]])
    np.testing.assert_allclose(averaged_scores(tables), expected)


def test_where_there_is_no_candidate_there_is_none_in_the_mean():
    tables = [np.array([[-1.0, -np.inf], [-1.0, -2.0]])] * 2
    found = averaged_scores(tables)
    assert found[0].tolist() == [0.0, -np.inf] and np.isfinite(found[1]).all()


def test_a_task_of_two_patterns_gives_two_tables():
    task = ClozeTask("verbs", ["call {mask} : {text}", "{text} {mask}"], {"yes": "walk", "no": "talk"})
    rows = datasets.Dataset.from_dict({"text": ["jump read", "play"]})
    ask = helpers.logits_at(helpers.opinionated("bert", len(helpers.TOKENIZER)))
    tables = [
        score_candidates(ask, task.encode(rows, helpers.TOKENIZER, 20, pattern=number), helpers.TOKENIZER, helpers.CPU)
        for number in range(2)
    ]
    assert not np.allclose(tables[0], tables[1])
    assert averaged_scores(tables).shape == (2, 2)


def test_there_may_be_no_rows():
    rows = datasets.Dataset.from_dict({"input_ids": [], "blank": [], "candidate_ids": []})
    assert predict_answers(lambda inputs, positions: torch.zeros(0, 5), rows, helpers.TOKENIZER, helpers.CPU).shape == (0,)
