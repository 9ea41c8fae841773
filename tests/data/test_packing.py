"""Packing loses nothing."""

import datasets
import pytest
import vocab_helpers
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_glmd import UsageError
from hf_glmd.data.packing import _pack, boundary_ids, pack_blocks, pair_rows
from hf_glmd.training.datasets import class_rows

TOKENIZER = vocab_helpers.generic_tokenizer()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(vocab_helpers.texts(40)), min_size=1, max_size=20), st.integers(3, 40))
def test_every_token_is_in_some_block(texts, block_size):
    blocks = _pack({"text": texts}, TOKENIZER, block_size, "text")["input_ids"]
    (cls,), (sep,) = boundary_ids(TOKENIZER)
    assert all(block[0] == cls and len(block) <= block_size for block in blocks)
    assert all(len(block) == block_size for block in blocks[:-1])
    stream = [token for block in blocks for token in block[1:]]
    expected = [token for ids in TOKENIZER(texts, add_special_tokens=False)["input_ids"] for token in [*ids, sep]]
    assert stream == expected


def test_a_special_token_in_a_text_is_plain_text():
    blocks = _pack({"text": ["walk [MASK] talk"]}, TOKENIZER, 40, "text")["input_ids"]
    assert TOKENIZER.mask_token_id not in blocks[0]


def test_a_missing_column_and_a_tiny_block_are_refused():
    dataset = datasets.Dataset.from_dict({"body": ["walk"]})
    with pytest.raises(UsageError, match=r"no column 'text'.*\['body'\]"):
        pack_blocks(dataset, TOKENIZER, 16)
    with pytest.raises(UsageError, match="block_size=2"):
        pack_blocks(dataset, TOKENIZER, 2, column="body")


@pytest.mark.parametrize("stream", [False, True])
def test_rows_without_text_give_no_rows(stream):
    """Of pairs, those that lack either."""
    rows = datasets.Dataset.from_dict({"a": ["walk", "", None, "talk talk"], "b": ["talk", "x", "y", None]})
    for make in (
        lambda data: pack_blocks(data, TOKENIZER, 16, column="a"),
        lambda data: pair_rows(data, TOKENIZER, 8, "a", "b"),
        lambda data: class_rows(data, TOKENIZER, 8, "a", "b"),
    ):
        some, none, whole = (rows.select(chosen) for chosen in ([0, 1, 2], [1, 2], [0]))
        if stream:
            some, none, whole = (part.to_iterable_dataset() for part in (some, none, whole))
        assert list(make(some)) == list(make(whole)) != [] == list(make(none))
    with pytest.raises(UsageError, match=r"A row, column 'a', is of type int \(5\), not a text"):
        list(pair_rows(datasets.Dataset.from_dict({"a": [5], "b": ["walk"]}), TOKENIZER, 8, "a", "b"))


def test_separate_texts_count_from_zero_and_lose_nothing():
    texts = datasets.Dataset.from_dict({"text": vocab_helpers.texts(30)})
    blocks = pack_blocks(texts, TOKENIZER, 16, separate=True)
    stream = [token for row in blocks["input_ids"] for token in row]
    assert stream == [token for text in texts["text"] for token in TOKENIZER(text)["input_ids"]]
    for ids, places in zip(blocks["input_ids"], blocks["position_ids"], strict=True):
        assert places[0] == 0 and len(ids) == len(places) <= 16
        starts = [place for place in range(1, len(ids)) if ids[place] == TOKENIZER.cls_token_id]
        assert [place for place in range(1, len(ids)) if places[place] != places[place - 1] + 1] == starts
        assert all(places[start] == 0 for start in starts)
