from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import vocab_helpers as helpers
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_glmd.errors import UsageError
from hf_glmd.vocab import counting
from hf_glmd.vocab.counting import TokenCounts, count_corpus, tokenizer_fingerprint

TOKENIZER = helpers.generic_tokenizer()
TEXTS = helpers.texts()


def count(source, tokenizer=TOKENIZER, **options):
    return count_corpus(tokenizer, source, progress=False, **options).values


def plain(texts):
    counter = Counter(i for text in texts for i in TOKENIZER(text, add_special_tokens=False)["input_ids"])
    return np.array([counter[i] for i in range(helpers.V)])


@given(
    texts=st.lists(st.text("abkw .[]SEP", max_size=30)).filter(lambda t: any(x.strip() for x in t)), batch_size=st.integers(1, 7)
)
@settings(deadline=None, max_examples=30)
def test_counts_are_those_of_plain_tokenizing_for_any_batch_size(texts, batch_size):
    counts = count(texts, batch_size=batch_size)
    assert counts.dtype == np.int64 and counts.shape == (helpers.V,)
    assert np.array_equal(counts, plain(texts))


def test_truncation_and_padding_play_no_part_and_stay_set():
    tokenizer = helpers.generic_tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(max_length=3, stride=1)
    tokenizer.backend_tokenizer.enable_padding(length=20, pad_id=0, pad_token="[PAD]")
    before = tokenizer.backend_tokenizer.truncation, tokenizer.backend_tokenizer.padding
    counts = count(TEXTS, tokenizer)
    assert np.array_equal(counts, plain(TEXTS)) and counts[0] == 0
    assert (tokenizer.backend_tokenizer.truncation, tokenizer.backend_tokenizer.padding) == before
    with pytest.raises(UsageError):
        count([3], tokenizer)
    assert (tokenizer.backend_tokenizer.truncation, tokenizer.backend_tokenizer.padding) == before
    assert tokenizer_fingerprint(tokenizer) == tokenizer_fingerprint(TOKENIZER)


def test_a_corpus_is_read_from_wherever_it_lies(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    Dataset.from_dict({"body": TEXTS}).to_parquet(str(tmp_path / "b.parquet"))
    assert np.array_equal(count(tmp_path / "a.txt"), plain(TEXTS))
    assert np.array_equal(count(str(tmp_path / "*.parquet"), column="body"), plain(TEXTS))


def test_batches_are_bounded_by_characters_too(monkeypatch):
    monkeypatch.setattr(counting, "BATCH_CHARACTERS", 50)
    batches = list(counting.text_batches(iter(["a" * 20, None, "b" * 20, "c" * 20, "d" * 999, "e"]), 4))
    assert [[len(text) for text in batch] for batch in batches] == [[20, 0, 20, 20], [999], [1]]
    assert np.array_equal(count(TEXTS), plain(TEXTS))


@pytest.mark.parametrize("weight", [3, 3.0, np.int64(3)])
def test_whole_weights_are_exact(weight):
    counts = count(TEXTS, weight=weight)
    assert counts.dtype == np.int64 and np.array_equal(counts, 3 * plain(TEXTS))


def test_other_weights_are_rounded_once_and_lose_no_token():
    once = plain(TEXTS)
    assert np.array_equal(count(TEXTS, weight=2.5, batch_size=3), np.rint(2.5 * once))
    little = count(TEXTS, weight=1e-3, batch_size=3)
    assert np.array_equal(little > 0, once > 0) and little.max() == max(1, np.rint(once.max() / 1000))


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf"), True, "2", None, 10**400])
def test_impossible_weights_are_refused(weight):
    with pytest.raises(UsageError, match="weight="):
        count(TEXTS, weight=weight)


def test_weights_too_large_for_the_counts_are_refused():
    with pytest.raises(UsageError, match="64 bits"):
        count(TEXTS, weight=2**60)


def test_empty_rows_are_no_texts():
    counts = count_corpus(TOKENIZER, ["walk", "", None, "talk"], progress=False)
    assert (counts.texts, counts.rows, counts.values.sum()) == (2, 4, 2)
    assert {number: text for (_, number), text in counts.sample.items()} == {0: "walk", 3: "talk"}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "holds no token \\(0 rows"),
        (["", "  ", None], "3 rows, 1 of them not empty.*column='text'"),
        ([1, 2], "Row 0 is of type int"),
        (["walk", "talk", "\ud800"], "Row 2 is no valid Unicode"),
    ],
)
def test_what_cannot_be_counted_is_said(source, message):
    with pytest.raises(UsageError, match=message) as error:
        count(source, batch_size=2)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("batch_size", [0, -1, True, 2.0])
def test_impossible_batch_sizes_are_refused(batch_size):
    with pytest.raises(UsageError, match="batch_size"):
        count(TEXTS, batch_size=batch_size)


def test_a_slow_tokenizer_is_refused():
    class Slow:
        pass

    with pytest.raises(UsageError, match="Slow has no fast backend"):
        count(TEXTS, Slow())


def test_ids_may_have_gaps():
    from tokenizers import Tokenizer, models, pre_tokenizers

    backend = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 2, "b": 6}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    assert count(["a b b c"], backend).tolist() == [1, 0, 1, 0, 0, 0, 2]


def test_one_core_is_worth_a_warning(monkeypatch, caplog):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    count(TEXTS)
    assert "TOKENIZERS_PARALLELISM is off" in caplog.text


def test_the_sample_is_bounded_and_does_not_depend_on_batches(monkeypatch):
    monkeypatch.setattr(counting, "SAMPLE_TEXTS", 7)
    monkeypatch.setattr(counting, "SAMPLE_CHARACTERS", 9)
    one, other = (count_corpus(TOKENIZER, TEXTS, batch_size=n, progress=False) for n in (3, 60))
    assert list(one.sample.items()) == list(other.sample.items()) and len(one.sample) == 7
    assert all(TEXTS[number][:9] == text for (_, number), text in one.sample.items())
    assert {number for _, number in one.sample} != set(range(7))  # not merely the first ones
    places = {float(place): number for number, place in enumerate(counting._places(0, len(TEXTS)))}
    assert list(one.sample) == sorted(places.items())[:7]


def test_places_are_spread_evenly_and_stay_what_they_are():
    places = counting._places(0, 100_000)
    assert np.array_equal(places[70:90], counting._places(70, 20))
    assert np.histogram(places, bins=10, range=(0, 1))[0].tolist() == pytest.approx([10_000] * 10, rel=0.03)
    # The first output of splitmix64 with seed 0, as its author's C code gives it.
    assert places[0] == 0xE220A8397B1DCDAF * 2.0**-64


def test_the_sample_of_several_corpora_is_uniform_over_all_of_them(monkeypatch):
    monkeypatch.setattr(counting, "SAMPLE_TEXTS", 200)
    first, second = (count_corpus(TOKENIZER, ["walk"] * n, progress=False) for n in (3_000, 1_000))
    both = first + second
    assert len(both.sample) == 200 and list(both.sample) == sorted(both.sample)
    assert 30 <= sum(number >= 3_000 for _, number in both.sample) <= 70
    heavy = first + count_corpus(TOKENIZER, ["walk"] * 1_000, weight=9, progress=False)
    assert 130 <= sum(number >= 3_000 for _, number in heavy.sample) <= 170


def test_counts_of_several_corpora_add_up():
    halves = [count_corpus(TOKENIZER, part, progress=False) for part in (TEXTS[:25], TEXTS[25:])]
    both, one = halves[0] + halves[1], count_corpus(TOKENIZER, TEXTS, progress=False)
    assert np.array_equal(both.values, one.values) and (both.texts, both.rows) == (one.texts, one.rows)
    assert sorted(both.sample.values()) == sorted(TEXTS)
    with pytest.raises(UsageError, match="do not add up"):
        both + TokenCounts(values=np.zeros(helpers.V + 1, dtype=np.int64))


def test_saved_counts_go_with_their_tokenizer_only(tmp_path):
    counts = count_corpus(TOKENIZER, TEXTS, progress=False)
    counts.save(tmp_path / "new" / "counts.safetensors", tokenizer_fingerprint(TOKENIZER))
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["counts.safetensors"]
    loaded = TokenCounts.load(tmp_path / "new" / "counts.safetensors", tokenizer_fingerprint(TOKENIZER))
    assert np.array_equal(loaded.values, counts.values)
    assert (loaded.texts, loaded.rows, loaded.sample) == (counts.texts, counts.rows, counts.sample)
    other = helpers.generic_tokenizer()
    other.add_tokens(["walkabout"])
    with pytest.raises(UsageError, match="made with another tokenizer"):
        TokenCounts.load(tmp_path / "new" / "counts.safetensors", tokenizer_fingerprint(other))
    with pytest.raises(UsageError, match="There are no counts"):
        TokenCounts.load(tmp_path / "none")
    (tmp_path / "text").write_text("nothing")
    with pytest.raises(UsageError, match="does not hold token counts"):
        TokenCounts.load(tmp_path / "text")


def test_saved_counts_of_several_machines_are_merged(tmp_path):
    parts = [count_corpus(TOKENIZER, part, progress=False) for part in (TEXTS[:25], TEXTS[25:40], TEXTS[40:])]
    for number, part in enumerate(parts):
        part.save(tmp_path / f"{number}.safetensors", "one tokenizer")
    merged, added = TokenCounts.load(sorted(tmp_path.iterdir())), parts[0] + parts[1] + parts[2]
    assert np.array_equal(merged.values, plain(TEXTS)) and merged.sample == added.sample and merged.rows == len(TEXTS)
    parts[2].save(tmp_path / "2.safetensors", "another tokenizer")
    with pytest.raises(UsageError, match="2.safetensors' were made with another tokenizer"):
        TokenCounts.load(sorted(tmp_path.iterdir()))
    with pytest.raises(UsageError, match="No file of counts"):
        TokenCounts.load([])


_WORKER = """
import json, sys
import numpy as np
from torch import distributed
from tokenizers import Tokenizer
from hf_glmd.errors import UsageError
from hf_glmd.vocab import counting

folder = sys.argv[1]
counting.SAMPLE_TEXTS = 11
tokenizer, texts = Tokenizer.from_file(f"{folder}/tokenizer.json"), json.load(open(f"{folder}/texts.json"))
counts = counting.count_corpus(tokenizer, texts, weight=2.5, batch_size=4, progress=False)
assert distributed.get_world_size() == 2
rank = distributed.get_rank()
np.savez(f"{folder}/{rank}.npz", values=counts.values, rest=[counts.texts, counts.rows], sample=list(counts.sample))
try:
    counting.count_corpus(tokenizer, texts[rank:], batch_size=4, progress=False)
except UsageError as error:
    assert "read [61, 60] rows" in str(error)
else:
    raise AssertionError("sources that differ went unnoticed")
distributed.destroy_process_group()
"""


def test_two_processes_count_what_one_counts(tmp_path, monkeypatch):
    texts = helpers.texts(61)
    (tmp_path / "worker.py").write_text(_WORKER)
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    TOKENIZER.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launcher, str(tmp_path / "worker.py"), str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert run.returncode == 0, run.stderr[-2000:]
    monkeypatch.setattr(counting, "SAMPLE_TEXTS", 11)
    alone = count_corpus(TOKENIZER, texts, weight=2.5, progress=False)
    for rank in (0, 1):
        both = np.load(tmp_path / f"{rank}.npz")
        assert np.array_equal(both["values"], alone.values)
        assert both["rest"].tolist() == [alone.texts, alone.rows] and list(map(tuple, both["sample"])) == list(alone.sample)
