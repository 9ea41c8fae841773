"""Packing loses nothing."""

import datasets
import pytest
import vocab_helpers
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_glmd import UsageError
from hf_glmd.data.packing import _pack, boundary_ids, pack_blocks

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
