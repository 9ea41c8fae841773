"""Questions with a blank."""

import datasets
import numpy as np
import pytest
import torch
import vocab_helpers

from hf_glmd import ClozeTask, UsageError
from hf_glmd.tasks.cloze import predict_answers

TOKENIZER = vocab_helpers.generic_tokenizer()
TASK = ClozeTask("verbs", "call {mask} : {text}", {"yes": "walk", "no": "talk"})
ROWS = datasets.Dataset.from_dict(
    {"text": ["jump read", "walked [MASK] talked", "play " * 50], "label": ["no", "yes", "no"], "extra": [1, 2, 3]}
)


def encoded(labelled=False, max_length=12):
    return TASK.encode(ROWS, TOKENIZER, max_length, labelled)


def test_a_question_reads_as_its_pattern():
    row = encoded()[0]
    assert TOKENIZER.decode(row["input_ids"]) == "[CLS] call [MASK] : jump read [SEP]".replace(":", "[UNK]")
    assert row["input_ids"][row["blank"]] == TOKENIZER.mask_token_id
    assert row["candidate_ids"] == TOKENIZER.convert_tokens_to_ids(["walk", "talk"])


def test_gold_answers_leave_only_when_asked_for():
    assert set(encoded().column_names) == {"input_ids", "blank", "candidate_ids"}
    assert encoded(labelled=True)["answer"][:] == [1, 0, 1]


def test_long_text_is_cut_and_the_blank_never():
    row = encoded()[2]
    assert len(row["input_ids"]) == 12 and row["input_ids"][row["blank"]] == TOKENIZER.mask_token_id
    assert row["input_ids"][-1] == TOKENIZER.sep_token_id


def test_a_mask_token_written_in_the_text_is_no_blank():
    row = encoded()[1]
    assert row["input_ids"].count(TOKENIZER.mask_token_id) == 1


def test_the_longest_field_is_shortened():
    task = ClozeTask("pair", "{a} {mask} {b}", {"yes": "walk", "no": "talk"})
    rows = datasets.Dataset.from_dict({"a": ["jump " * 30], "b": ["read read read"]})
    ids = task.encode(rows, TOKENIZER, 12)[0]["input_ids"]
    jump, read = TOKENIZER.convert_tokens_to_ids(["jump", "read"])
    assert (len(ids), ids.count(read), ids.count(jump)) == (12, 3, 6)


def test_answers_come_in_the_order_of_the_rows_whatever_the_batches():
    questions = encoded()
    scores = {10: 1.0, 5: 2.0}

    def logits_at(inputs, positions):
        lengths = inputs["attention_mask"].sum(1)
        logits = torch.zeros(len(lengths), vocab_helpers.V)
        logits[:, questions[0]["candidate_ids"][1]] = (lengths < 12).float() * scores[10] - 0.5
        return logits

    expected = [int(len(row["input_ids"]) < 12) for row in questions]
    for size in (1, 2, 3):
        assert predict_answers(logits_at, questions, TOKENIZER, torch.device("cpu"), size).tolist() == expected
    assert isinstance(predict_answers(logits_at, questions, TOKENIZER, torch.device("cpu")), np.ndarray)


@pytest.mark.parametrize("answers", [[True, False], [1, 0], ["1", "0"]])
def test_answers_may_be_booleans_or_numbers(answers):
    keys = ["true", "false"] if answers[0] is True else ["1", "0"]
    task = ClozeTask("verbs", "{mask} : {text}", dict(zip(keys, ["walk", "talk"], strict=True)))
    rows = datasets.Dataset.from_dict({"text": ["jump", "read"], "label": answers})
    assert task.encode(rows, TOKENIZER, 12, labelled=True)["answer"][:] == [0, 1]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pattern": "{text} only"}, "needs the blank"),
        ({"pattern": "{mask} {mask} {text}"}, "exactly once"),
        ({"pattern": "{mask} alone"}, "reads no column"),
        ({"verbalizers": {"yes": "walk"}}, "at least two"),
        ({"verbalizers": {"yes": "walk", "no": "walk"}}, "share a verbalizer"),
    ],
)
def test_a_task_without_sense_is_refused(fields, message):
    with pytest.raises(UsageError, match=message):
        ClozeTask(**{"name": "bad", "pattern": "{mask} {text}", "verbalizers": {"yes": "walk", "no": "talk"}, **fields})


def test_a_verbalizer_of_several_tokens_is_refused_with_its_pieces():
    task = ClozeTask("verbs", "{mask} : {text}", {"yes": "walk", "no": "zzz"})
    with pytest.raises(UsageError, match=r"'zzz' of answer 'no'.*\['z', '##z', '##z'\]"):
        task.encode(ROWS, TOKENIZER, 12)


def test_missing_columns_and_unknown_answers_are_named():
    with pytest.raises(UsageError, match=r"\['text'\].*\['body'\]"):
        TASK.encode(datasets.Dataset.from_dict({"body": ["walk"]}), TOKENIZER, 12)
    rows = datasets.Dataset.from_dict({"text": ["walk"], "label": ["maybe"]})
    with pytest.raises(UsageError, match=r"\['maybe'\].*\['yes', 'no'\]"):
        TASK.encode(rows, TOKENIZER, 12, labelled=True)
    with pytest.raises(UsageError, match="no room for text in 5 tokens"):
        TASK.encode(ROWS, TOKENIZER, 5)
