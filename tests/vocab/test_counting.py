from __future__ import annotations

import gzip
import json
import lzma
import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import vocab_helpers as helpers
from datasets import Dataset, DatasetDict, IterableDataset
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_glmd.errors import UsageError
from hf_glmd.vocab import counting
from hf_glmd.vocab.counting import TokenCounts, count_corpus, count_tokens, tokenizer_fingerprint

TOKENIZER = helpers.generic_tokenizer()
TEXTS = helpers.texts()


def count(source, tokenizer=TOKENIZER, **options):
    return count_tokens(tokenizer, source, progress=False, **options)


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


def test_every_kind_of_source_gives_the_same_counts(tmp_path):
    wanted = plain(TEXTS)
    rows = [{"other": 1, "text": text} for text in TEXTS]
    (tmp_path / "a file.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "b.jsonl").write_text(lines)
    with gzip.open(tmp_path / "c.txt.gz", "wt", encoding="utf-8") as file:
        file.write("\r\n".join(TEXTS))
    with lzma.open(tmp_path / "d.jsonl.xz", "wt") as file:
        file.write(lines)
    Dataset.from_list(rows).to_parquet(str(tmp_path / "e.parquet"))
    sources = {
        "list": TEXTS,
        "generator": (text for text in TEXTS),
        "rows": iter(rows),
        "Dataset": Dataset.from_list(rows),
        "IterableDataset": Dataset.from_list(rows).to_iterable_dataset(),
        "IterableDataset of a generator": IterableDataset.from_generator(lambda: iter(rows)),
        **{path.name: path for path in tmp_path.iterdir()},
    }
    assert len(sources) == 11
    for name, source in sources.items():
        assert np.array_equal(count(source, batch_size=7), wanted), name
    assert np.array_equal(count(str(tmp_path / "b.jsonl")), wanted)
    assert np.array_equal(count([str(tmp_path / "b.jsonl"), str(tmp_path / "c.txt.gz")]), 2 * wanted)
    assert np.array_equal(count([{"body": text} for text in TEXTS], column="body"), wanted)


def test_empty_rows_are_no_texts():
    counts = count_corpus(TOKENIZER, ["walk", "", None, "talk"], progress=False)
    assert counts.texts == 2 and counts.values.sum() == 2 and list(counts.sample.values()) == ["walk", "talk"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "holds no token"),
        (["", "  "], "holds no token"),
        ("no/such/file.txt", "no file"),
        (["no-such-file.txt"], "no file"),
        ("walk and talk", "give it in a list"),
        ([1, 2], "type int"),
        (7, "Cannot count int"),
        ([{"body": "walk"}], "no field 'text'"),
        (Dataset.from_dict({"texts": ["walk"]}), "Did you mean 'texts'"),
        (DatasetDict(train=Dataset.from_dict({"text": ["walk"]})), "splits \\(train\\)"),
    ],
)
def test_what_cannot_be_counted_is_said(source, message):
    with pytest.raises(UsageError, match=message) as error:
        count(source)
    assert "\n" not in str(error.value)


def test_broken_files_are_named(tmp_path):
    (tmp_path / "broken.jsonl").write_text('{"text": "walk"}\n{"text": \n')
    with pytest.raises(UsageError, match="Line 2 of .*broken.jsonl"):
        count(tmp_path / "broken.jsonl")
    (tmp_path / "latin.txt").write_bytes("façade".encode("latin-1"))
    with pytest.raises(UsageError, match="latin.txt.*UTF-8"):
        count(tmp_path / "latin.txt")
    (tmp_path / "notes.pdf").write_text("walk")
    with pytest.raises(UsageError, match="unknown kind"):
        count(tmp_path / "notes.pdf")


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


def test_the_sample_is_bounded_and_does_not_depend_on_batches(monkeypatch):
    monkeypatch.setattr(counting, "SAMPLE_TEXTS", 7)
    monkeypatch.setattr(counting, "SAMPLE_CHARACTERS", 9)
    one, other = (count_corpus(TOKENIZER, TEXTS, batch_size=n, progress=False) for n in (3, 60))
    assert one.sample == other.sample and len(one.sample) == 7
    assert all(TEXTS[index][:9] == text for index, text in one.sample.items())
    assert list(one.sample) != list(range(7))  # not merely the first ones
    halves = [count_corpus(TOKENIZER, part, progress=False) for part in (TEXTS[:25], TEXTS[25:])]
    both = halves[0] + halves[1]
    assert np.array_equal(both.values, one.values) and both.texts == one.texts and len(both.sample) == 7


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


_WORKER = """
import json, sys
import numpy as np
import torch
from tokenizers import Tokenizer
from hf_glmd.vocab import counting

folder = sys.argv[1]
counting.SAMPLE_TEXTS = 11
tokenizer, texts = Tokenizer.from_file(f"{folder}/tokenizer.json"), json.load(open(f"{folder}/texts.json"))
counts = counting.count_corpus(tokenizer, texts, batch_size=4, progress=False)
assert torch.distributed.get_world_size() == 2
rest = [counts.texts, counts.rows, *counts.sample]
np.savez(f"{folder}/{torch.distributed.get_rank()}.npz", values=counts.values, rest=rest)
torch.distributed.destroy_process_group()
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
    alone = count_corpus(TOKENIZER, texts, batch_size=4, progress=False)
    for rank in (0, 1):
        both = np.load(tmp_path / f"{rank}.npz")
        assert np.array_equal(both["values"], alone.values)
        assert both["rest"].tolist() == [alone.texts, alone.rows, *alone.sample]
