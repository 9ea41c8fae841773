from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hf_glmd.errors import UsageError
from hf_glmd.vocab.closure import MergeTree
from hf_glmd.vocab.selection import load_order, save_order, select, single_characters, token_order

V = 211  # prime
SPECIAL_IDS = [0, 7, 100, 101]
COUNTS = arrays(np.int64, V, elements=st.integers(0, 9))


def _tree(seed=0):
    """The first 30 tokens are characters; the others are merged from two earlier ones, but for a few that nothing gives."""
    rng = np.random.default_rng(seed)
    parts = [() if i < 30 or i % 50 == 49 else tuple(rng.integers(0, i, 2).tolist()) for i in range(V)]
    never = [i for i in range(30, V) if i % 50 == 49]
    parts = [tuple(part if part not in never else 0 for part in own) for own in parts]
    return MergeTree(parts, never)


TREE = _tree()


def is_closed(ids, tree=TREE):
    return all(set(tree.parts[i]) <= set(ids) for i in ids)


@given(counts=COUNTS, size=st.integers(len(SPECIAL_IDS) + 1, V))
def test_a_larger_vocabulary_contains_the_smaller(counts, size):
    small, large = (select(counts, size=n, required=SPECIAL_IDS) for n in (size - 1, size))
    assert len(large) == size and set(small) < set(large) and set(SPECIAL_IDS) <= set(small)
    assert large.dtype == np.int64 and (np.diff(large) > 0).all()


@given(counts=COUNTS, size=st.integers(len(SPECIAL_IDS), V))
def test_of_equal_counts_the_lower_id_wins(counts, size):
    kept = select(counts, size=size, required=SPECIAL_IDS)
    free = [i for i in kept if i not in SPECIAL_IDS]
    gone = np.setdiff1d(np.arange(V), kept)
    for worst in free:
        assert all((counts[i], -i) < (counts[worst], -worst) for i in gone)


@given(counts=COUNTS.filter(lambda c: c.sum() > 0), coverage=st.floats(0.001, 1.0))
def test_coverage_is_reached_by_the_fewest_tokens(counts, coverage):
    kept = select(counts, coverage=coverage, required=SPECIAL_IDS)
    assert counts[kept].sum() / counts.sum() >= coverage - 1e-12
    free = [i for i in kept if i not in SPECIAL_IDS]
    if free:  # one less would not do
        weakest = min(free, key=lambda i: (counts[i], -i))
        assert (counts[kept].sum() - counts[weakest]) / counts.sum() < coverage


@given(counts=COUNTS, min_count=st.integers(1, 10))
def test_min_count_keeps_every_token_counted_that_often(counts, min_count):
    kept = select(counts, min_count=min_count, required=SPECIAL_IDS)
    assert set(kept) == set(np.flatnonzero(counts >= min_count)) | set(SPECIAL_IDS)


@given(counts=COUNTS, size=st.integers(4, 200), multiple=st.integers(1, 11))
def test_multiple_of_keeps_more_tokens(counts, size, multiple):
    kept = select(counts, size=size, multiple_of=multiple)
    assert len(kept) == math.ceil(size / multiple) * multiple
    assert set(select(counts, size=size)) <= set(kept)


@pytest.mark.parametrize(
    ("share", "rows", "size"), [(0.5, 211, 106), (0.07, 100, 7), (1.0, 211, 211), (0.29, 100, 29), (0.001, 211, 1)]
)
def test_a_share_is_rounded_up_as_the_decimal_it_was_written_as(share, rows, size):
    assert len(select(np.arange(rows), size=share)) == size


def test_gaps_are_never_kept():
    counts = np.ones(10, dtype=np.int64)
    assert select(counts, size=8, absent=[3, 5]).tolist() == [0, 1, 2, 4, 6, 7, 8, 9]
    with pytest.raises(UsageError, match="more than the 8 tokens"):
        select(counts, size=9, absent=[3, 5])
    with pytest.raises(UsageError, match="which no token has"):
        select(counts, size=5, absent=[3], required=[3])


def test_the_error_names_the_floor_and_what_it_is_made_of():
    required = {"special": [0, 1], "single characters": [1, 2, 3], "from keep=": [9]}
    with pytest.raises(
        UsageError, match=r"size=4 is smaller than the 5 .*2 special, 2 single characters, 1 from keep=.*size=5"
    ) as error:
        select(np.ones(V, dtype=np.int64), size=4, required=required)
    assert len(select(np.ones(V, dtype=np.int64), size=5, required=required)) == 5
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("size", [0, -1, 212, True, False, 0.0, -0.5, 1.5, math.nan, math.inf, "0.5", np.bool_(True)])
def test_impossible_sizes_are_refused(size):
    with pytest.raises(UsageError, match="size="):
        select(np.ones(V, dtype=np.int64), size=size)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"size": 5, "coverage": 0.5},
        {"coverage": 0.0},
        {"coverage": 1.5},
        {"coverage": math.nan},
        {"coverage": True},
        {"min_count": 0},
        {"min_count": 1.5},
        {"min_count": True},
        {"size": 5, "multiple_of": 0},
        {"size": 5, "multiple_of": True},
        {"size": 210, "multiple_of": 8},
        {"size": 5, "required": [V]},
        {"size": 5, "required": [-1]},
    ],
)
def test_other_impossible_choices_are_refused(options):
    with pytest.raises(UsageError):
        select(np.ones(V, dtype=np.int64), **options)


def test_coverage_of_nothing_is_refused():
    with pytest.raises(UsageError, match="no token was counted"):
        select(np.zeros(V, dtype=np.int64), coverage=0.9)


@pytest.mark.parametrize("counts", [np.ones((2, 2), dtype=np.int64), np.ones(3), np.array([1, -1]), np.array([], dtype=np.int64)])
def test_counts_must_be_counts(counts):
    with pytest.raises(UsageError, match="counts"):
        select(counts, size=1)


def test_single_characters_in_both_positions():
    vocabulary = {"[X]": 0, "ab": 1, "a": 2, "b": 3, "##a": 4, "##b": 5, "é": 6, "##é": 7, "éa": 8, "qa": 9, "a7": 10, "7": 11}
    counts = np.zeros(12, dtype=np.int64)
    ascii_only = [2, 3, 4, 5, 11]
    assert single_characters(vocabulary, counts, skip=[0]).tolist() == ascii_only
    counts[8] = 1  # the é was seen
    assert single_characters(vocabulary, counts, skip=[0]).tolist() == sorted([*ascii_only, 6, 7])
    counts[9] = 1  # there is no q to spell it with, so the whole token stays
    assert 9 in single_characters(vocabulary, counts, skip=[0])
    assert single_characters(vocabulary, counts, "none").tolist() == []
    # a7 cannot be spelt (no ##7)
    assert set(single_characters(vocabulary, counts * 0, "all", skip=[0])) == {*ascii_only, 6, 7, 9, 10}
    with pytest.raises(UsageError, match="alphabet='some'"):
        single_characters(vocabulary, counts, "some")


@given(counts=COUNTS, order=st.sampled_from(["count", "leaf"]))
def test_every_start_of_an_order_is_closed(counts, order):
    ids = token_order(counts, order, TREE, absent=[99]).tolist()
    assert sorted(ids) == [i for i in range(V) if i != 99]
    seen: set[int] = set()
    for token_id in ids:
        assert seen.issuperset(TREE.parts[token_id])
        seen.add(token_id)
    assert ids[-3:] and set(ids[-3:]) == set(TREE.never) - {99}  # what nothing gives is dropped first


@given(counts=COUNTS, order=st.sampled_from(["count", "leaf"]), size=st.integers(60, V - 1))
def test_with_merges_sizes_are_exact_and_vocabularies_lie_inside_each_other(counts, order, size):
    required = {"special": [0, 49, 180]}
    small, large = (select(counts, size=n, required=required, order=order, merges=TREE) for n in (size, size + 1))
    assert len(small) == size and len(large) == size + 1 and set(small) < set(large)
    assert is_closed(small) and is_closed(large) and {0, 49, 180} <= set(small)


@given(counts=COUNTS.filter(lambda c: c.sum() > 0), coverage=st.floats(0.1, 1.0), min_count=st.integers(1, 9))
def test_with_merges_coverage_and_min_count_hold_parts_too(counts, coverage, min_count):
    kept = select(counts, coverage=coverage, merges=TREE)
    assert is_closed(kept) and counts[kept].sum() / counts.sum() >= coverage - 1e-12
    reachable = np.setdiff1d(np.arange(V), TREE.never)
    often = reachable[counts[reachable] >= min_count]
    counts[TREE.never] = 0
    kept = select(counts, min_count=min_count, merges=TREE)
    assert set(kept) == set(TREE.closed(often.tolist()))


def test_count_takes_the_frequent_with_their_parts():
    #        a  b  c  ab abc
    tree = MergeTree([(), (), (), (0, 1), (3, 2)], [])
    counts = np.array([9, 0, 8, 1, 5])
    assert token_order(counts, "count", tree).tolist() == [0, 2, 1, 3, 4]
    assert token_order(counts, "count").tolist() == [0, 2, 4, 3, 1]


def test_leaf_passes_occurrences_on_to_the_parts():
    # a b c d, ab (from a b), cd (from c d), abab (from ab ab)
    tree = MergeTree([(), (), (), (), (0, 1), (2, 3), (4, 4)], [])
    counts = np.array([50, 50, 50, 50, 1, 4, 2])
    # By itself "ab" is rarer than "cd"; after "abab" has gone, its two occurrences make four of "ab", and 1 + 4 > 4.
    assert token_order(counts, "leaf", tree).tolist()[:5] == [0, 1, 2, 3, 4]
    assert token_order(counts, "leaf", tree).tolist()[5:] == [5, 6]
    counts[5] = 6
    assert token_order(counts, "leaf", tree).tolist()[4:] == [5, 4, 6]


@given(counts=COUNTS)
def test_without_merges_both_orders_are_one(counts):
    assert np.array_equal(token_order(counts, "leaf"), token_order(counts, "count"))


def test_a_required_token_brings_its_parts_and_the_error_says_so():
    tree = MergeTree([(), (), (), (0, 1), (3, 2)], [])
    counts = np.array([0, 0, 0, 0, 0])
    assert select(counts, size=5, required={"from keep=": [4]}, merges=tree).tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(UsageError, match=r"the 5 tokens that must stay \(1 from keep=, 4 that these are merged from\)"):
        select(counts, size=4, required={"from keep=": [4]}, merges=tree)


def test_an_order_of_ones_own_is_made_closed():
    backwards = np.arange(V)[::-1]
    kept = select(np.zeros(V, dtype=np.int64), size=100, order=backwards, merges=TREE)
    assert len(kept) == 100 and is_closed(kept) and V - 1 in kept
    assert select(np.zeros(V, dtype=np.int64), size=2, order=backwards).tolist() == [V - 2, V - 1]
    for wrong in (np.arange(V - 1), np.zeros(V, dtype=np.int64), np.arange(V) * 1.0, np.arange(1, V + 1), np.arange(V)[None]):
        with pytest.raises(UsageError, match="order must hold each of the 211 ids"):
            select(np.zeros(V, dtype=np.int64), size=2, order=wrong)
    with pytest.raises(UsageError, match="order='best' is unknown"):
        select(np.zeros(V, dtype=np.int64), size=2, order="best")


def test_an_order_is_saved_for_one_tokenizer(tmp_path):
    order = token_order(np.arange(V), "leaf", TREE)
    save_order(order, tmp_path / "a" / "order.safetensors", "abc" * 20)
    assert np.array_equal(load_order(tmp_path / "a" / "order.safetensors", "abc" * 20), order)
    with pytest.raises(UsageError, match="another tokenizer"):
        load_order(tmp_path / "a" / "order.safetensors", "abd" * 20)
    with pytest.raises(UsageError, match="no order at"):
        load_order(tmp_path / "none", "abc")
    (tmp_path / "text").write_text("no tensors")
    with pytest.raises(UsageError, match="does not hold an order"):
        load_order(tmp_path / "text", "abc")
    assert [file.name for file in (tmp_path / "a").iterdir()] == ["order.safetensors"]


def test_single_characters_at_the_end_of_words():
    vocabulary = {"a": 0, "a</w>": 1, "b": 2, "b</w>": 3, "ab</w>": 4, "é</w>": 5, "bé</w>": 6, "éb": 7}
    counts = np.zeros(8, dtype=np.int64)
    assert single_characters(vocabulary, counts, prefix="", suffix="</w>").tolist() == [0, 1, 2, 3]
    counts[6] = 1
    assert single_characters(vocabulary, counts, prefix="", suffix="</w>").tolist() == [0, 1, 2, 3, 5]
    counts[7] = 1  # there is no é at the start of a word
    assert single_characters(vocabulary, counts, prefix="", suffix="</w>").tolist() == [0, 1, 2, 3, 5, 7]
    assert single_characters(vocabulary, counts, prefix="", suffix="</w>", spelt_in_bytes=True).tolist() == [0, 1, 2, 3, 5]
