"""Questions with a blank."""

import dataclasses

import datasets
import numpy as np
import pytest
import tasks_helpers as helpers
import torch
import vocab_helpers
import yaml

from hf_glmd import ClozeTask, UsageError, VocabShrinker
from hf_glmd.tasks.metrics import METRICS
from hf_glmd.tasks.scoring import predict_answers

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
        ({"pattern": []}, "has no pattern"),
        ({"pattern": ["{mask} {text}", "{text}"]}, "pattern '{text}' of task bad needs the blank"),
        ({"candidates": ["a", "b"]}, "both verbalizers and candidates"),
        ({"verbalizers": {}, "candidates": ["a"]}, "at least two columns"),
        ({"verbalizers": {}, "candidates": ["a", "b"], "candidate_answers": ["x"]}, "one answer for each"),
        ({"candidate_answers": ["x", "y"]}, "candidate_answers but no candidates"),
        ({"split_verbalizers": "maybe"}, "Use 'refuse' or 'score'"),
        ({"metric": "acuracy"}, "Did you mean 'accuracy'"),
    ],
)
def test_a_task_without_sense_is_refused(fields, message):
    with pytest.raises(UsageError, match=message):
        ClozeTask(**{"name": "bad", "pattern": "{mask} {text}", "verbalizers": {"yes": "walk", "no": "talk"}, **fields})


def test_a_verbalizer_of_several_tokens_is_refused_with_its_pieces():
    task = ClozeTask("verbs", "{mask} : {text}", {"yes": "walk", "no": "zzz"})
    with pytest.raises(UsageError, match=r"'zzz' of answer 'no'.*\['z', '##z', '##z'\].*split_verbalizers: score"):
        task.encode(ROWS, TOKENIZER, 12)
    with pytest.raises(UsageError, match="'zzz'"):
        task.check_tokenizer(TOKENIZER)


def test_a_verbalizer_of_several_tokens_is_scored_if_configured():
    task = ClozeTask("verbs", "{mask} : {text}", {"yes": "walk", "no": "zzz"}, split_verbalizers="score")
    rows = task.encode(ROWS, TOKENIZER, 12, labelled=True)
    assert [len(ids) for ids in rows[0]["candidate_ids"]] == [1, 3]
    assert [ids.count(TOKENIZER.mask_token_id) for ids in rows[0]["input_ids"]] == [1, 3]
    assert rows["answer"][:] == [[1], [0], [1]] and rows[0]["weight"] == [1.0, 1.0]
    assert all(len(ids) <= 12 for row in rows["input_ids"] for ids in row)
    task.check_tokenizer(TOKENIZER)


def test_a_word_that_the_tokenizer_does_not_know_is_refused_either_way():
    task = ClozeTask("verbs", "{mask} : {text}", {"yes": "walk", "no": "\u4e2d"}, split_verbalizers="score")
    with pytest.raises(UsageError, match=r"'\u4e2d' of answer 'no'.*\['\[UNK\]'\]"):
        task.encode(ROWS, TOKENIZER, 12)


def test_missing_columns_and_unknown_answers_are_named():
    with pytest.raises(UsageError, match=r"\['text'\].*\['body'\]"):
        TASK.encode(datasets.Dataset.from_dict({"body": ["walk"]}), TOKENIZER, 12)
    rows = datasets.Dataset.from_dict({"text": ["walk"], "label": ["maybe"]})
    with pytest.raises(UsageError, match=r"\['maybe'\].*\['yes', 'no'\]"):
        TASK.encode(rows, TOKENIZER, 12, labelled=True)
    with pytest.raises(UsageError, match="no room for text in 5 tokens"):
        TASK.encode(ROWS, TOKENIZER, 5)


# Several patterns


def test_a_pattern_is_chosen_by_its_number():
    task = dataclasses.replace(TASK, pattern=("call {mask} : {text}", "{text} {mask}"))
    ids = [task.encode(ROWS, TOKENIZER, 12, pattern=number)[0]["input_ids"] for number in range(2)]
    assert ids[0] == encoded()[0]["input_ids"] and TOKENIZER.decode(ids[1]) == "[CLS] jump read [MASK] [SEP]"
    assert task.encode(ROWS, TOKENIZER, 12)[0]["input_ids"] == ids[0]
    assert task.columns == ["text"] and task.with_pattern(1).pattern == "{text} {mask}"
    with pytest.raises(UsageError, match="has no pattern 2. Use 0 to 1"):
        task.encode(ROWS, TOKENIZER, 12, pattern=2)


def test_a_causal_model_takes_the_first_pattern_it_can_read():
    tokenizer = helpers.byte_level_tokenizer()
    task = ClozeTask("verbs", ("{mask} : {text}", "{text} {mask}!"), {"a": "yes", "b": "no"})
    assert task.usable_patterns(causal=True) == [1] and task.usable_patterns(causal=False) == [0, 1]
    row = task.encode(ROWS, tokenizer, 30)[0]
    assert tokenizer.decode(row["input_ids"]) == "<s>jump read" and row["blank"] == len(row["input_ids"]) - 1
    assert tokenizer.convert_ids_to_tokens(row["candidate_ids"]) == ["\u0120yes", "\u0120no"]
    with pytest.raises(UsageError, match="which a causal model has not seen yet"):
        task.encode(ROWS, tokenizer, 30, pattern=0)
    with pytest.raises(UsageError, match="all patterns of task verbs"):
        task.with_pattern(0).check_tokenizer(tokenizer)


# Candidates from the example


COLUMNS = {"text": ["jump", "read", "play"], "a": ["walk", "talk", "walk"], "b": ["look here", "rest", "turn"]}


def choices(labels=None, **fields):
    rows = datasets.Dataset.from_dict(COLUMNS | ({"label": labels} if labels else {}))
    return ClozeTask("choose", "{text} {mask}", candidates=("a", "b"), **fields), rows


def test_candidates_may_stand_in_columns():
    task, rows = choices([1, 0, 1])
    encoded_rows = task.encode(rows, TOKENIZER, 20, labelled=True)
    assert [TOKENIZER.decode(ids) for ids in encoded_rows[0]["candidate_ids"]] == ["walk", "look here"]
    assert encoded_rows["answer"][:] == [[1], [0], [1]]
    assert task.predictions(rows, np.array([0, 1, 1])) == ["0", "1", "1"]
    assert task.score(rows, np.array([1, 1, 1]))["score"] == pytest.approx(2 / 3)
    assert task.commonest_answer(rows) == 1


def test_answers_of_columns_may_have_names():
    task, rows = choices(["left", "right", "left"], candidate_answers=("left", "right"))
    assert task.predictions(rows, np.array([0, 1, 1])) == ["left", "right", "right"]
    assert task.encode(rows, TOKENIZER, 20, labelled=True)["answer"][:] == [[0], [1], [0]]


def listed(gold, options=None):
    options = options or [["walk", "talk"], ["look", "turn", "rest"]]
    return datasets.Dataset.from_dict({"text": ["jump", "read"], "options": options, "gold": gold})


def test_candidates_may_be_their_own_answers():
    task = ClozeTask("choose", "{text} {mask}", candidates="options", label_column="gold")
    rows = listed([["talk"], ["look", "rest"]])
    assert task.encode(rows, TOKENIZER, 20, labelled=True)["answer"][:] == [[1], [0, 2]]
    assert task.predictions(rows, np.array([1, 2])) == ["talk", "rest"]
    assert [task.score(rows, np.array(chosen))["score"] for chosen in ([1, 2], [1, 0], [0, 1])] == [1.0, 1.0, 0.0]
    assert task.encode(listed(["talk", "turn"]), TOKENIZER, 20, labelled=True)["answer"][:] == [[1], [1]]


def test_the_last_answer_stands_for_all_further_candidates():
    task = ClozeTask("is it", "{text} {mask}", candidates="options", candidate_answers=("true", "false"), label_column="gold")
    rows = listed([True, False])
    assert task.encode(rows, TOKENIZER, 20, labelled=True)["answer"][:] == [[0], [1, 2]]
    assert task.predictions(rows, np.array([1, 2])) == ["false", "false"]
    assert task.score(rows, np.array([0, 2]))["accuracy"] == 1.0


def test_bad_candidates_are_named():
    task = ClozeTask("choose", "{text} {mask}", candidates="options", label_column="gold")
    with pytest.raises(UsageError, match="example 1 of task choose has no candidates in column 'options'"):
        task.encode(listed([["talk"], ["rest"]], [["talk"], []]), TOKENIZER, 20)
    with pytest.raises(
        UsageError, match=r"answer \['jump'\] of example 1 .* not among its candidates \['look', 'turn', 'rest'\]"
    ):
        task.encode(listed([["talk"], ["jump"]]), TOKENIZER, 20, labelled=True)
    with pytest.raises(UsageError, match=r"reads the columns \['options'\], the data have \['text'\]"):
        task.encode(datasets.Dataset.from_dict({"text": ["a"]}), TOKENIZER, 20)
    columns, rows = choices([0, 1, 2])
    with pytest.raises(UsageError, match=r"the answers \['2'\] in column 'label', its candidates are for \['0', '1'\]"):
        columns.encode(rows, TOKENIZER, 20, labelled=True)


# labels


def test_the_questions_are_the_same_whatever_the_gold_answers():
    for task, rows in ((TASK, ROWS.remove_columns("label")), choices()):
        labels = task.answers + task.answers[:1]
        versions = [rows, rows.add_column("label", labels), rows.add_column("label", labels[::-1])]
        first, *others = (task.encode(version, TOKENIZER, 12).to_dict() for version in versions)
        assert all(other == first for other in others)


def test_a_split_without_gold_answers_cannot_be_scored():
    rows = ROWS.remove_columns("label")
    for call in (lambda: TASK.score(rows, np.zeros(3, int)), lambda: TASK.commonest_answer(rows)):
        with pytest.raises(UsageError, match=r"no labels in a column 'label', only the columns \['text', 'extra'\]"):
            call()
    with pytest.raises(UsageError, match="1 of 2 examples of task verbs have no label in column 'label'"):
        TASK.score(datasets.Dataset.from_dict({"text": ["a", "b"], "label": ["yes", None]}), np.zeros(2, int))
    with pytest.raises(UsageError, match="3 examples and 2 answers"):
        TASK.score(ROWS, np.zeros(2, int))
    with pytest.raises(UsageError, match=r"metric multirc of task verbs reads the columns \['idx'\]"):
        dataclasses.replace(TASK, metric="multirc").score(ROWS, np.zeros(3, int))


def test_a_metric_may_be_a_name_or_a_function():
    def share_of_talk(predictions, references):
        return float(np.mean(predictions == 1))

    chosen = np.array([1, 1, 1])
    assert dataclasses.replace(TASK, metric=share_of_talk).score(ROWS, chosen) == {"share_of_talk": 1.0, "score": 1.0}
    named = dataclasses.replace(TASK, metric="macro_f1")
    assert named.metric is METRICS["macro_f1"] and named.metric_name == "macro_f1"
    assert named.score(ROWS, chosen) == pytest.approx({"f1": 0.4, "score": 0.4})
    assert TASK.metric(chosen, np.array([1, 0, 1])) == pytest.approx(2 / 3) and TASK.metric.__name__ == "accuracy"


def test_a_value_that_is_missing_is_named():
    with pytest.raises(UsageError, match="example 1 of task verbs has nothing in column 'text'"):
        TASK.encode(datasets.Dataset.from_dict({"text": ["a", None]}), TOKENIZER, 12)


# A user's own table


def test_a_task_can_be_written_in_yaml_alone():
    section = yaml.safe_load(
        """
        name: support
        pattern: ["{my text} . {mask}", "{mask} : {my text}"]
        verbalizers: {true: walk, false: talk}
        label_column: is it
        metric: accuracy_and_f1
        """
    )
    section["verbalizers"] = {str(answer).lower(): word for answer, word in section["verbalizers"].items()}  # as recipes do
    task = ClozeTask(**section)
    rows = datasets.Dataset.from_dict({"my text": ["jump", "read"], "is it": [False, True]})
    assert task.encode(rows, TOKENIZER, 12, labelled=True)["answer"][:] == [1, 0]
    assert task.score(rows, np.array([1, 0])) == {"accuracy": 1.0, "f1": 1.0, "score": 1.0}


# What a smaller vocabulary keeps


def test_kept_tokens_write_the_question_again():
    tokenizer = helpers.byte_level_tokenizer(mask=True)
    task = ClozeTask("verbs", ("Question: {text} Answer: {mask}.", "{mask}? {text}"), {"a": "yes", "b": "no"})
    kept = set(task.keep_tokens(tokenizer))
    for number in range(2):
        row = task.encode(datasets.Dataset.from_dict({"text": [""]}), tokenizer, 60, pattern=number)[0]
        ids = {*row["input_ids"], *(np.ravel(row["candidate_ids"]))}
        assert ids - set(tokenizer.all_special_ids) <= kept
    texts = "".join(tokenizer.convert_ids_to_tokens(sorted(kept)))
    assert "\u0120yes" in texts and "\u0120Answer" in texts and " yes" in task.keep_texts and "yes" in task.keep_texts
    assert set(TASK.keep_tokens(TOKENIZER)) == set(TOKENIZER.convert_tokens_to_ids(["call", "walk", "talk", "[UNK]"]))


@pytest.mark.parametrize("kind", ["wordpiece", "byte level"])
def test_a_cut_vocabulary_still_answers(kind):
    tokenizer = TOKENIZER if kind == "wordpiece" else helpers.byte_level_tokenizer(mask=True)
    words = ("markness", "lookness") if kind == "wordpiece" else ("yes", "no")
    task = ClozeTask("verbs", "Question: {text} turnly {mask}.", dict(zip("ab", words, strict=True)))
    rare = VocabShrinker(tokenizer).count(["walk talk"] * 9)
    size = len(task.keep_tokens(tokenizer)) + (270 if kind == "byte level" else 90)
    without = rare.shrink(size=size).tokenizer
    with pytest.raises(UsageError, match="is not a single token"):
        task.check_tokenizer(without)
    vocab = rare.shrink(size=size, keep=task.keep_tokens(tokenizer))
    task.check_tokenizer(vocab.tokenizer)
    found = [vocab.vocab_map.to_original(token) for token in task.keep_tokens(vocab.tokenizer)]
    assert found == task.keep_tokens(tokenizer)


def nearest_tokenizer(keep):
    """What is not in these texts is replaced by similar tokens."""
    shrinker = VocabShrinker(TOKENIZER).count([f"{word} jump read" for word in ("walk", "sing", "play")])
    embeddings = torch.randn(len(TOKENIZER), 8, generator=torch.Generator().manual_seed(0))
    return shrinker.shrink(min_count=1, removed="nearest", embeddings=embeddings, keep=keep).tokenizer


def test_a_removed_word_does_not_silently_become_another():
    task = ClozeTask("pairs", "call {mask} : {text}", {"yes": "walk talk", "no": "talk"}, split_verbalizers="score")
    words = [int(token) for token in TOKENIZER.convert_tokens_to_ids(["walk", "talk"])]
    small = nearest_tokenizer(keep=words[:1])
    assert not set(words) <= set(small.vocab_map.kept_ids.tolist()), "the test needs a word that was removed"
    with pytest.raises(UsageError, match=r"the token 'talk' of verbalizer 'walk talk' .* was removed .* Shrink with keep="):
        task.encode(ROWS, small, 12)
    with pytest.raises(UsageError, match="was removed from the vocabulary"):
        task.check_tokenizer(small)
    kept = nearest_tokenizer(keep=task.keep_tokens(TOKENIZER))
    row = task.encode(ROWS, kept, 12)[0]
    assert [kept.vocab_map.to_original(ids) for ids in row["candidate_ids"]] == [words, words[1:]]
