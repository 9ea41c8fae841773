"""Sizes, floors and what they are measured on, beside the tokenizers that `shrink` writes."""

import itertools

import numpy as np
import pytest
import vocab_helpers as helpers
from published_tokenizers import TOKENIZERS, corpora, needs_data

from hf_glmd import VocabShrinker
from hf_glmd.data.held_out import EVERY, HELD_OUT_CHARACTERS, HeldOutSplit
from hf_glmd.errors import UsageError
from hf_glmd.vocab.tokenizer_files import encode_texts

WORDS = ("walking", "talked", "jumper", "readly", "playness", "look", "call", "turning", "helped", "worker", "rest", "marks")


def texts(first: int, number: int = 400) -> list[str]:
    """Each corpus has words of its own; the later ones of its list are rarer."""
    drawn = np.random.default_rng(first)
    own = [WORDS[(first + step) % len(WORDS)] + "xyz"[step % 3] * (step % 2) for step in range(8)]
    odds = np.array([2.0**-step for step in range(8)])
    return [" ".join(drawn.choice(own, 6, p=odds / odds.sum())) for _ in range(number)]


@pytest.fixture(params=sorted(helpers.BACKENDS.keys() - {"wordlevel"}))
def tokenizer(request):
    return helpers.fast_tokenizer(request.param)


def tokens_of(tokenizer, held_out: list[str]) -> int:
    return sum(map(len, encode_texts(tokenizer.backend_tokenizer, held_out)))


def test_every_twentieth_text_is_held_out_and_not_counted():
    stream = [f"text {number}" if number % 3 else "" for number in range(300)]
    split = HeldOutSplit(stream)
    counted = list(split)
    full = [text for text in stream if text]
    assert split.held_out == full[1::EVERY]
    assert sorted([*counted, *split.held_out]) == sorted(stream)
    long = HeldOutSplit(["word " * 2_000] * 5_000)
    list(long)
    assert HELD_OUT_CHARACTERS <= sum(map(len, long.held_out)) < HELD_OUT_CHARACTERS + 4_097


def test_growth_is_that_of_the_tokenizer_which_is_written(tokenizer):
    shrinker = VocabShrinker(tokenizer).count_corpora({"a": texts(0), "b": texts(5)}, progress=False)
    table = shrinker.sizes()
    assert len(table.rows) > 3 and table.rows[0].growth == {"a": 1.0, "b": 1.0}
    for row in [*table.rows, table.knee]:
        small = shrinker.shrink(size=row.size).tokenizer
        for name, corpus in shrinker.corpora.items():
            ratio = tokens_of(small, corpus.held_out) / tokens_of(tokenizer, corpus.held_out)
            assert row.growth[name] == pytest.approx(ratio, abs=1e-12)


def test_the_knee_is_the_smallest_that_keeps_to_its_growth(tokenizer):
    shrinker = VocabShrinker(tokenizer).count_corpora({"a": texts(0)}, progress=False)
    table = shrinker.sizes(knee_growth=1.1)
    grid = shrinker.sizes(sizes=range(table.least_size, table.original_size + 1), knee_growth=1.1)
    best = min(row.size for row in grid.rows if row.growth["a"] <= 1.1)
    assert table.knee.size == grid.knee.size == best


def test_a_tokenizer_of_whole_words_has_no_knee():
    shrinker = VocabShrinker(helpers.fast_tokenizer("wordlevel")).count_corpora({"a": texts(0)}, progress=False)
    assert shrinker.sizes().knee is None
    with pytest.raises(UsageError, match="use coverage"):
        shrinker.shrink(growth=1.02)


def test_all_floors_hold_with_no_more_tokens_than_any_weights_need(tokenizer):
    sources = {"a": texts(0), "b": texts(4), "c": texts(8)}
    floors = {"a": 1.05, "b": 1.3, "c": 1.0}
    shrinker = VocabShrinker(tokenizer).count_corpora(sources, progress=False)
    vocab = shrinker.shrink(growth=floors)
    growth = {
        name: tokens_of(vocab.tokenizer, corpus.held_out) / tokens_of(tokenizer, corpus.held_out)
        for name, corpus in shrinker.corpora.items()
    }
    assert all(growth[name] <= floors[name] + 1e-12 for name in floors), growth
    plain = shrinker.sizes(sizes=range(vocab.report.size // 2, vocab.report.size))
    assert not any(all(row.growth[name] <= floors[name] for name in floors) for row in plain.rows)


def test_a_limit_in_megabytes_or_parameters_is_used_up_and_not_passed():
    tokenizer = helpers.fast_tokenizer("wordpiece")
    model = helpers.tiny_model("bert")
    shrinker = VocabShrinker(tokenizer).count_corpora({"a": texts(0)}, progress=False)
    row = shrinker.sizes(sizes=[150], model=model).rows[0]
    for limit in ({"max_mb": row.mb}, {"max_params": row.parameters}):
        vocab = shrinker.shrink(**limit, model=model)
        assert vocab.report.size == 150
        small = vocab.resize(model)
        assert small.num_parameters() == row.parameters
        assert sum(part.numel() * part.element_size() for part in small.parameters()) == round(row.mb * 1e6)
        below = {name: value - 1e-5 if name == "max_mb" else value - 1 for name, value in limit.items()}
        assert shrinker.shrink(**below, model=model).report.size == 149


def test_what_cannot_be_met_is_refused_with_the_nearest_that_can():
    tokenizer = helpers.fast_tokenizer("wordpiece")
    model = helpers.tiny_model("bert")
    shrinker = VocabShrinker(tokenizer).count_corpora({"a": texts(0), "b": texts(5)}, progress=False)
    needed = shrinker.shrink(growth=1.0).report.size
    least = shrinker.sizes(model=model).least_size
    limit = shrinker.sizes(sizes=[needed - 3], model=model).rows[0].parameters
    with pytest.raises(
        UsageError, match=r"growth=a=1 b=1 takes .* that max_params=.* leaves. .* growth a=1\.\d+ b=1\.\d+"
    ) as error:
        shrinker.shrink(growth=1.0, max_params=limit, model=model)
    found = dict(part.split("=") for part in str(error.value).split("met: growth ")[1].split(", or")[0].split())
    nearest = shrinker.shrink(growth={name: float(value) for name, value in found.items()}, max_params=limit, model=model)
    assert least <= nearest.report.size <= needed - 3
    with pytest.raises(UsageError, match=f"fewer than the {least} that must stay .* max_mb="):
        shrinker.shrink(max_params=1_000, model=model)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"growth": 1.02, "size": 0.5}, "size and growth contradict each other"),
        ({"size": 100, "max_mb": 3}, "size and max_mb contradict each other"),
        ({"growth": 0.9}, "growth=0.9 of 'a' is no number of at least 1"),
        ({"growth": {"x": 1.1}}, "growth names 'x', which is no corpus: use a, b"),
        ({"max_mb": 3}, "max_mb limits a model"),
        ({"corpora": {"a": ["x"]}}, "The corpus 'a' was counted already"),
        ({"corpora": {"c": ["only one"]}}, "has one text"),
        ({"corpora": {"c": ["x", "y"], "d": ["x", "y"]}, "held_out": ["z"]}, "one source for 2 corpora"),
    ],
)
def test_bad_input_is_refused_in_one_line(arguments, words):
    tokenizer = helpers.fast_tokenizer("wordpiece")
    shrinker = VocabShrinker(tokenizer).count_corpora({"a": texts(0), "b": texts(5)}, progress=False)
    with pytest.raises(UsageError, match=words):
        shrinker.shrink(**arguments)


def test_growth_without_a_named_corpus_is_refused():
    shrinker = VocabShrinker(helpers.fast_tokenizer("wordpiece")).count(texts(0), progress=False)
    with pytest.raises(UsageError, match="give corpora="):
        shrinker.shrink(growth=1.02)
    with pytest.raises(UsageError, match="have a name"):
        shrinker.sizes()


@needs_data
@pytest.mark.parametrize("name", ["mBERT", "T5", "GPT-2", "Llama 2", "CLIP"])
def test_published_tokenizers_are_measured_exactly(name):
    tokenizer = TOKENIZERS[name]()
    sources = {which: list(itertools.islice(corpora()[which], 3_000)) for which in ("English", "German", "Python")}
    shrinker = VocabShrinker(tokenizer).count_corpora(sources, progress=False)
    rows = shrinker.counts.size
    for row in shrinker.sizes(sizes=[rows // 12, rows // 5], alphabet="none").rows:
        small = shrinker.shrink(size=row.size, alphabet="none").tokenizer
        for which, corpus in shrinker.corpora.items():
            before, after = (encode_texts(one.backend_tokenizer, corpus.held_out) for one in (tokenizer, small))
            assert row.growth[which] == sum(map(len, after)) / sum(map(len, before))
            if tokenizer.unk_token_id is not None:
                unknown = [
                    sum(ids.count(one.unk_token_id) for ids in part) for one, part in ((tokenizer, before), (small, after))
                ]
                assert (row.lost[which] > 0) == (unknown[1] > unknown[0])


def test_words_too_long_to_look_into_are_measured_all_the_same(monkeypatch, tokenizer):
    """Where candidates cannot be made smaller by what occurs in the words, they hold every token, and the figures are equal."""
    counted = VocabShrinker(tokenizer).count_corpora({"text": helpers.texts(80)})
    sizes = [tokenizer.backend_tokenizer.get_vocab_size() * share // 8 for share in (7, 5, 4)]
    table = counted.sizes(sizes=sizes)
    monkeypatch.setattr("hf_glmd.vocab.growth.LOOKUPS", 0)
    assert counted.sizes(sizes=sizes) == table


def test_scripts_grow_by_what_their_words_do(tokenizer):
    """Words of both corpora by their script: in all the tokens of the held-out texts, before and after."""
    counted = VocabShrinker(tokenizer).count_corpora({"a": helpers.texts(80), "b": ["12 34"] * 60})
    report = counted.shrink(size=counted.sizes().least_size + 15).report
    assert len([share for share in report.scripts if share.tokens_before]) >= 2
    for name in ("tokens_before", "tokens_after"):
        assert sum(getattr(share, name) for share in report.scripts) == sum(getattr(row, name) for row in report.ledger)
    latin = next(share for share in report.scripts if share.script == "Latin")
    assert latin.tokens_after > latin.tokens_before > 0
