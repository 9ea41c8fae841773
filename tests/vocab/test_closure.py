from __future__ import annotations

import json
import random

import pytest
import vocab_helpers as helpers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from hf_glmd.vocab.closure import MergeTree, merge_pairs

STYLES = {"plain": ("", ""), "suffix": ("", "_"), "prefix": ("##", ""), "both": ("##", "_")}


def random_model(seed: int, style: str) -> dict:
    """A BPE model of two or three letters: many merges per token, in any order, some of them given twice."""
    rng = random.Random(seed)
    prefix, suffix = STYLES[style]
    vocabulary = [p + c + s for c in "abc"[: rng.choice((2, 2, 3))] for p in sorted({"", prefix}) for s in sorted({"", suffix})]
    merges = []
    for _ in range(rng.randint(0, 25)):
        left, right = rng.choice(vocabulary), rng.choice(vocabulary)
        result = left + right.removeprefix(prefix)
        fits = not (suffix and left.endswith(suffix)) and right.startswith(prefix) and len(result) < 13
        if fits:
            merges.append((left, right))
            vocabulary += [result] * (result not in vocabulary)
    if rng.random() < 0.7:
        merges += [
            (token[:at], prefix + token[at:])
            for token in vocabulary
            for at in range(1, len(token))
            if {token[:at], prefix + token[at:]} <= set(vocabulary) and rng.random() < 0.5
        ]
    if rng.random() < 0.7:
        rng.shuffle(merges)
    rng.shuffle(vocabulary)
    return {
        "vocab": {token: index for index, token in enumerate(vocabulary)},
        "merges": [list(merge) for merge in merges],
        "continuing_subword_prefix": prefix or None,
        "end_of_word_suffix": suffix or None,
    }


def plain_merging(model: dict, symbols: list[str]) -> tuple[list[str], tuple[str, str] | None]:
    """What the symbols become, and the last merge: the definition of BPE, word for word."""
    cut = len(model["continuing_subword_prefix"] or "")
    rank = {tuple(pair): number for number, pair in enumerate(model["merges"])}
    last = None
    while True:
        found = [(rank[pair], at) for at, pair in enumerate(zip(symbols, symbols[1:], strict=False)) if pair in rank]
        if not found:
            return symbols, last
        at = min(found)[1]
        last = (symbols[at], symbols[at + 1])
        symbols = [*symbols[:at], last[0] + last[1][cut:], *symbols[at + 2 :]]


def spellings(model: dict, token: str) -> list[list[str]]:
    """The ways the token may stand in a text: at the start of a word or inside, at its end or not."""
    prefix, suffix = model["continuing_subword_prefix"] or "", model["end_of_word_suffix"] or ""
    found = []
    for before in sorted({"", prefix}):
        for after in sorted({"", suffix}):
            body = token[len(before) : len(token) - len(after)]
            if body and token == before + body + after:
                marked = [(before if i == 0 else prefix) + c for i, c in enumerate(body)]
                found.append([*marked[:-1], marked[-1] + after])
    return [symbols for symbols in found if all(symbol in model["vocab"] for symbol in symbols)]


@given(seed=st.integers(0, 2**32), style=st.sampled_from(sorted(STYLES)))
@settings(deadline=None, max_examples=150)
def test_parts_are_those_of_the_last_merge(seed, style):
    model = random_model(seed, style)
    tree, name = MergeTree.of(model), {index: token for token, index in model["vocab"].items()}
    for token, index in model["vocab"].items():
        results = [plain_merging(model, symbols) for symbols in spellings(model, token)]
        reached = [last for symbols, last in results if symbols == [token]]
        assert (index in tree.never) == (not reached), token
        parts = [name[part] for part in tree.parts[index]]
        assert set(zip(parts[::2], parts[1::2], strict=True)) == {last for last in reached if last}, token


@given(seed=st.integers(0, 2**32), text=st.lists(st.text("abc", max_size=14), max_size=6))
@settings(deadline=None, max_examples=80)
def test_a_closed_set_splits_texts_of_its_tokens_as_before(seed, text):
    model = random_model(seed, "plain")
    large = models.BPE(model["vocab"], [tuple(merge) for merge in model["merges"]])
    tree, rng = MergeTree.of(model), random.Random(seed)
    kept = set(tree.closed(rng.sample(range(len(model["vocab"])), rng.randint(1, len(model["vocab"])))))
    vocabulary = {token: index for token, index in model["vocab"].items() if index in kept}
    merges = [(a, b) for a, b in model["merges"] if {a, b, a + b} <= vocabulary.keys()]
    small = models.BPE(vocabulary, merges)
    words = [*text, *vocabulary]
    for word in filter(None, words):
        before = [token.id for token in large.tokenize(word)]
        if set(before) <= kept and len("".join(t.value for t in large.tokenize(word))) == len(word):
            assert [token.id for token in small.tokenize(word)] == before


@pytest.mark.parametrize("style", helpers.MERGED_STYLES)
def test_it_agrees_with_the_library(style):
    backend = helpers.bpe_backend(style)
    data = json.loads(backend.to_str())["model"]
    tree = MergeTree.of(data | {"ignore_merges": False})
    for token, index in data["vocab"].items():
        if style in ("suffix", "prefix") or token.startswith("<0x"):
            continue  # the library reads a token's string as a whole word
        alone = [piece.id for piece in backend.model.tokenize(token)]
        if not data["ignore_merges"] and data["unk_token"] != token:
            assert (alone == [index]) == (index not in tree.never), token


def test_the_order_puts_parts_first():
    tree = MergeTree(parts=[(), (), (0, 1), (2, 0), (3, 3), ()], never=[])
    assert tree.closed([4]) == [0, 1, 2, 3, 4]
    assert tree.closed([5, 3, 4, 1]) == [5, 0, 1, 2, 3, 4]
    assert tree.closed([]) == []


def test_both_formats_of_merges():
    early = ["#version: 0.2", "a b", "ab c"]
    assert merge_pairs(early) == [["a", "b"], ["ab", "c"]] == merge_pairs([["a", "b"], ["ab", "c"]])
    vocabulary = {"a": 0, "b": 1, "c": 2, "ab": 3, "abc": 4}
    trees = [MergeTree.of({"vocab": vocabulary, "merges": merges}) for merges in (early, merge_pairs(early))]
    assert trees[0] == trees[1] == MergeTree([(), (), (), (0, 1), (3, 2)], [])


def test_not_the_first_merge_that_gives_a_token():
    # ("ab", "c") is first, but "bc" is made before "ab" can be.
    vocabulary = {"a": 0, "b": 1, "c": 2, "ab": 3, "bc": 4, "abc": 5}
    merges = [["ab", "c"], ["b", "c"], ["a", "bc"], ["a", "b"]]
    assert MergeTree.of({"vocab": vocabulary, "merges": merges}).parts[5] == (0, 4)


def test_where_merging_goes_by_whole_words_first_nothing_is_out_of_reach():
    model = {"vocab": {"a": 0, "b": 1, "ab": 2}, "merges": []}
    assert MergeTree.of(model).never == [2]
    assert MergeTree.of(model | {"ignore_merges": True}) == MergeTree([(), (), ()], [])


def test_bytes_merge_like_characters_and_their_names_can_be_spelt_out():
    vocabulary = {"<0xC3>": 0, "<0xA9>": 1, "<0xC3><0xA9>": 2, "<": 3, "0": 4, "x": 5, "A": 6, "9": 7, ">": 8, "<0": 9, "xA": 10}
    vocabulary |= {"9>": 11, "<0xA": 12}
    merges = [["<0xC3>", "<0xA9>"], ["<", "0"], ["x", "A"], ["9", ">"], ["<0", "xA"], ["<0xA", "9>"]]
    tree = MergeTree.of({"vocab": vocabulary, "merges": merges, "byte_fallback": True})
    assert tree.parts[2] == (0, 1) and tree.parts[1] == (12, 11) and tree.never == []


def test_long_chains():
    vocabulary = {"a" * length: length - 1 for length in range(1, 400)}
    merges = [["a" * 2**k, "a" * 2**k] for k in range(8)] + [["a" * (n - 1), "a"] for n in range(3, 400) if "a" * n in vocabulary]
    model = {"vocab": vocabulary, "merges": merges}
    tree = MergeTree.of(model | {"continuing_subword_prefix": None, "end_of_word_suffix": None})
    backend = Tokenizer(models.BPE(vocabulary, [tuple(merge) for merge in merges]))
    for token, index in vocabulary.items():
        assert (backend.encode(token).ids == [index]) == (index not in tree.never)


def test_added_tokens_beyond_the_model():
    tree = MergeTree.of({"vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}, rows=5)
    assert tree.closed([4, 2]) == [4, 0, 1, 2] and len(tree.parts) == 5
