"""Examples as token ids, cut to length."""

import pytest
import tasks_helpers as helpers
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_glmd import UsageError
from hf_glmd.tasks.examples import QuestionWriter, answer_ids, literal_ids, shortened
from hf_glmd.tasks.patterns import Pattern

TOKENIZER = helpers.TOKENIZER
BYTES = helpers.byte_level_tokenizer()
WORDS = ["walk", "talk", "jump", "read", "walker2"]


@given(st.lists(st.integers(0, 30), min_size=1, max_size=6), st.integers(0, 90))
def test_the_longest_are_cut_down_to_the_same(lengths, room):
    kept = shortened(lengths, room)
    assert sum(kept) == min(sum(lengths), room)
    cut = [k for k, length in zip(kept, lengths, strict=True) if k < length]
    assert not cut or (max(cut) - min(cut) <= 1 and max(kept) - max(cut) <= 1)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join), min_size=2, max_size=2),
    st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=3).map(" ".join), min_size=1, max_size=4),
    st.booleans(),
)
def test_neither_blank_nor_pattern_nor_candidate_is_ever_cut(texts, candidates, causal):
    tokenizer = BYTES if causal else TOKENIZER
    pattern = Pattern("look {a} help {b} turn {mask}" if causal else "look {a} help {b} turn {mask} rest {a} .")
    row = dict(zip("ab", texts, strict=True))
    long = QuestionWriter(pattern, tokenizer, 500, causal, "t").write([row], [candidates])[0]
    assert [len(ids) for ids in long.candidate_ids] == [len(ids) for ids in answer_ids(candidates, True, tokenizer)]
    longest = max(map(len, long.sequences))
    try:
        short = QuestionWriter(pattern, tokenizer, max(longest - 4, 24), causal, "t").write([row], [candidates])[0]
    except UsageError as error:
        assert "without its longest field" in str(error)
        return
    assert max(map(len, short.sequences)) <= max(longest - 4, 24)
    assert short.candidate_ids == long.candidate_ids and short.sequence == long.sequence
    for question in (short, long):
        for sequence, blank, which in zip(question.sequences, question.blanks, range(9), strict=False):
            answer = question.candidate_ids[question.sequence.index(which)]
            hidden = answer[:-1] if causal else [tokenizer.mask_token_id] * len(answer)
            first = blank + 1 if causal else blank
            assert sequence[first : first + len(hidden)] == hidden
            space = tokenizer.convert_tokens_to_ids("Ġ")  # a token of its own before some words
            assert literal_ids(pattern, tokenizer) - {space} <= set(sequence)


def test_text_is_split_as_in_a_plain_sentence():
    writer = QuestionWriter(Pattern("Question: {a} Answer: {mask}."), BYTES, 60, True, "t")
    (question,) = writer.write([{"a": "walk no maybe"}], [["yes"]])
    ids = BYTES("Question: walk no maybe Answer: yes", add_special_tokens=False)["input_ids"]
    assert question.sequences[0] + question.candidate_ids[0] == [BYTES.bos_token_id, *ids]


def test_candidates_of_one_length_share_a_masked_sequence():
    writer = QuestionWriter(Pattern("{a} {mask}"), TOKENIZER, 60, False, "t")
    (question,) = writer.write([{"a": "walk"}], [["walk", "talk read", "jump", "help turn", "rest"]])
    assert question.sequence == [0, 1, 0, 1, 0]
    assert [ids.count(TOKENIZER.mask_token_id) for ids in question.sequences] == [1, 2]


def test_causal_candidates_share_what_they_begin_with():
    writer = QuestionWriter(Pattern("{a} {mask}"), BYTES, 60, True, "t")
    (question,) = writer.write([{"a": "walk"}], [["yes", "no", "yes no", "yes maybe"]])
    assert question.sequence == [0, 0, 1, 1]
    assert [len(ids) - len(question.sequences[0]) for ids in question.sequences] == [0, 1]
    assert question.blanks == [len(question.sequences[0]) - 1] * 2


def test_a_space_before_the_blank_belongs_to_the_answer():
    (spaced,), (plain,) = answer_ids(["yes"], True, BYTES), answer_ids(["yes"], False, BYTES)
    assert BYTES.convert_ids_to_tokens(spaced) == ["Ġyes"] and BYTES.decode(plain) == "yes"
    assert answer_ids(["walk"], True, TOKENIZER) == answer_ids(["walk"], False, TOKENIZER)


def test_what_does_not_fit_is_refused():
    pattern = Pattern("{a} and {b} {mask}")
    row = {"a": "walk " * 20, "b": "talk " * 20}
    with pytest.raises(UsageError, match=r"example 7 of task t has 43 tokens, and 23 without its longest field.*max_length=16"):
        QuestionWriter(pattern, TOKENIZER, 16, False, "t").write([row], [["walk"]], first=7)
    with pytest.raises(UsageError, match="no room for text in 7 tokens"):
        QuestionWriter(pattern, TOKENIZER, 7, False, "t")
    with pytest.raises(UsageError, match="candidate '  ' of example 3 of task t is empty"):
        QuestionWriter(pattern, TOKENIZER, 99, False, "t").write([row], [["walk", "  "]], first=3)


def test_a_causal_model_needs_the_blank_last():
    with pytest.raises(UsageError, match=r"reads a column behind the blank, which a causal model"):
        QuestionWriter(Pattern("{mask}: {a}"), BYTES, 60, True, "t")
    with pytest.raises(UsageError, match="has no mask token, so task t has no blank"):
        QuestionWriter(Pattern("{a} {mask}"), BYTES, 60, False, "t")


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 30), st.integers(0, 30), st.integers(14, 40))
def test_further_fields_are_shortened_when_asked_for(first, second, room):
    """The pattern, the blank and the candidates stay; both fields lose their ends, the longer one first."""
    pattern, row = Pattern("look {a} help {b} turn {mask} rest ."), {"a": "walk " * first, "b": "talk " * second}
    (question,) = QuestionWriter(pattern, TOKENIZER, room, False, "t", "shorten").write([row], [["walk talk"]])
    (ids,) = question.sequences
    walk, talk, look, rest = TOKENIZER.convert_tokens_to_ids(["walk", "talk", "look", "rest"])
    fixed = len(QuestionWriter(pattern, TOKENIZER, 500, False, "t").write([{"a": "", "b": ""}], [["walk talk"]])[0].sequences[0])
    assert len(ids) == min(fixed + first + second, room)
    assert [ids.count(walk), ids.count(talk)] == shortened([first, second], room - fixed)
    assert ids.count(look) == ids.count(rest) == 1 and question.candidate_ids == [[walk, talk]]
    assert ids[question.blanks[0] : question.blanks[0] + 2] == [TOKENIZER.mask_token_id] * 2


def test_a_candidate_that_leaves_no_room_is_refused_all_the_same():
    writer = QuestionWriter(Pattern("{a} so {mask}"), TOKENIZER, 12, False, "t", "shorten")
    with pytest.raises(UsageError, match="without any field.*or drop the example"):
        writer.write([{"a": "walk"}], [["walk " * 20]])
