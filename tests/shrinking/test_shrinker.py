from __future__ import annotations

import dataclasses
import json
import logging
import lzma
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import vocab_helpers as helpers
from tokenizers import normalizers
from transformers import AutoTokenizer

from hf_glmd.errors import UsageError
from hf_glmd.models.student import build_student
from hf_glmd.shrinking.shrinker import VocabShrinker
from hf_glmd.shrinking.shrunk_vocab import ShrunkVocab

V = helpers.V
TEXTS = helpers.texts()
DATA = os.environ.get("HF_GLMD_TEST_DATA")


def counted(tokenizer=None):
    return VocabShrinker(tokenizer or helpers.generic_tokenizer()).count(TEXTS, progress=False)


def test_half_of_the_vocabulary():
    shrinker = counted()
    vocab = shrinker.shrink()
    assert vocab.report.size == vocab.vocab_map.size == len(vocab.tokenizer) == 106  # half of 211, rounded up
    assert sorted(vocab.tokenizer.get_vocab().values()) == list(range(106))
    assert np.array_equal(vocab.counts, shrinker.counts[vocab.vocab_map.kept_ids])
    result = vocab.verify([*TEXTS, "Mixed CASE walking!", "", "中文 [MASK] naïve"], helpers.tiny_model("bert"))
    assert result.texts == len(TEXTS) + 3 and 0 < result.texts_all_kept < result.texts
    assert result.max_logit_difference == 0.0


def test_the_order_of_tokens_stays():
    vocab = counted().shrink(size=150)
    large = helpers.generic_tokenizer()
    tokens = vocab.tokenizer.convert_ids_to_tokens(range(150))
    assert tokens == large.convert_ids_to_tokens(vocab.vocab_map.kept_ids.tolist())
    assert vocab.tokenizer.pad_token_id == 0 and vocab.tokenizer.unk_token_id == vocab.vocab_map.to_small(large.unk_token_id)


def test_the_three_ways_to_say_how_much():
    shrinker = counted()
    assert shrinker.shrink(150).report.size == 150
    assert shrinker.shrink(size=0.9).report.size == 190
    assert shrinker.shrink(size=0.9, multiple_of=8).report.size == 192
    assert shrinker.shrink(coverage=1.0).report.coverage == 1.0
    kept = shrinker.shrink(min_count=3).vocab_map.keeps(np.arange(V))
    assert kept[shrinker.counts >= 3].all()
    with pytest.raises(UsageError, match="exactly one of size, coverage and min_count, not size and coverage"):
        shrinker.shrink(size=0.5, coverage=0.9)


def test_the_report_adds_up():
    shrinker = counted()
    report = shrinker.shrink(size=120, keep=["walk", "markness"], keep_texts="turnness helpness").report
    assert (report.original_size, report.size, report.texts) == (V, 120, len(TEXTS))
    assert report.counted_tokens == shrinker.counts.sum()
    assert report.n_special == 5 and report.n_alphabet == 80  # 40 letters, both forms
    assert report.n_keep == 4 and report.new_unknown == 0
    tokens = [shrinker.tokenizer.convert_tokens_to_ids(t) for t in report.removed_examples]
    assert tokens and list(shrinker.counts[tokens]) == sorted(shrinker.counts[tokens], reverse=True)
    assert json.loads(json.dumps(dataclasses.asdict(report)))["size"] == 120
    everything = shrinker.shrink(size=V).report
    assert everything.coverage == everything.length_ratio == 1.0 and not everything.removed_examples


def test_length_ratio_is_tokens_after_over_before():
    shrinker = counted()
    vocab = shrinker.shrink(size=90)
    before = sum(len(shrinker.tokenizer(t, add_special_tokens=False)["input_ids"]) for t in TEXTS)
    after = sum(len(vocab.tokenizer(t, add_special_tokens=False)["input_ids"]) for t in TEXTS)
    assert vocab.report.length_ratio == pytest.approx(after / before) and after > before


def test_kept_tokens_ids_and_texts_stay():
    shrinker = counted()
    shrunk = shrinker.shrink(size=100, keep=["markness", 205, np.int64(206)], keep_texts=["Turnness!"])
    known = shrunk.tokenizer.get_vocab()
    assert "markness" in known and "turnness" in known and shrunk.vocab_map.keeps([205, 206]).all()
    assert "markness" in shrinker.shrink(size=100, keep="markness").tokenizer.get_vocab()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": ["markmess"]}, "'markmess'.*Did you mean 'markness'"),
        ({"keep": [V]}, f"id {V}"),
        ({"keep": [-1]}, "id -1"),
        ({"keep": [True]}, "True"),
        ({"keep": [""]}, "''"),
        ({"keep_texts": [3]}, "int"),
        ({"size": 50}, r"size=50 is smaller than the 85 tokens that must stay \(5 special, 80 single characters, 0 from keep="),
        ({"size": V + 1}, "more than the 211 tokens"),
        ({"removed": "nearest"}, r"removed='nearest' compares embeddings: give embeddings=model.get_input_embeddings\(\).weight"),
        ({"removed": "nearest", "embeddings": torch.zeros(V - 1, 2)}, "embeddings must be a float"),
        ({"removed": "unk", "embeddings": torch.zeros(V, 2)}, "nearest"),
        ({"order": "best"}, "no order at 'best'"),
        ({"order": [1, 2]}, "order must hold each of the 211 ids"),
        ({"removed": "drop"}, "'drop' is unknown"),
        ({"similarity": "taste"}, "'taste'"),
        ({"embeddings": torch.zeros(V, 2)}, "nearest"),
        ({"alphabet": "some"}, "'some'"),
    ],
)
def test_impossible_wishes_are_refused(options, message):
    with pytest.raises(UsageError, match=message) as error:
        counted().shrink(**options)
    assert "\n" not in str(error.value)


def test_the_floor_that_an_error_names_is_possible():
    assert counted().shrink(size=85).report.size == 85


def test_nothing_counted_is_refused():
    with pytest.raises(UsageError, match="Nothing was counted"):
        VocabShrinker(helpers.generic_tokenizer()).shrink()


def test_a_tokenizer_that_grew_is_refused():
    shrinker = counted()
    shrinker.tokenizer.add_tokens(["walkabout"])
    with pytest.raises(UsageError, match="211 rows when the counting began, now 212"):
        shrinker.shrink()


def test_counts_add_up_and_can_be_saved(tmp_path):
    shrinker = VocabShrinker(helpers.generic_tokenizer())
    assert shrinker.counts.sum() == 0 and shrinker.counts.dtype == np.int64
    assert shrinker.count(TEXTS[:20], progress=False).count(TEXTS[20:], progress=False) is shrinker
    assert np.array_equal(shrinker.counts, counted().counts)
    shrinker.save_counts(tmp_path / "counts.safetensors")
    loaded = VocabShrinker.load_counts(tmp_path / "counts.safetensors", helpers.generic_tokenizer())
    assert loaded.shrink(150).report == shrinker.shrink(150).report == counted().shrink(150).report
    other = helpers.generic_tokenizer()
    other.add_tokens(["walkabout"])
    with pytest.raises(UsageError, match="another tokenizer"):
        VocabShrinker.load_counts(tmp_path / "counts.safetensors", other)


def test_a_tokenizer_can_be_named_by_its_path(tmp_path):
    helpers.bert_tokenizer(tmp_path)
    assert type(VocabShrinker(str(tmp_path)).tokenizer).__name__ == "BertTokenizer"
    with pytest.raises(UsageError, match="nowhere"):
        VocabShrinker(tmp_path / "nowhere")


def test_without_single_characters_new_unknowns_are_reported(caplog):
    with caplog.at_level(logging.WARNING):
        vocab = counted().shrink(size=20, alphabet="none")
    assert vocab.report.n_alphabet == 0 and vocab.report.new_unknown > 0 and "become unknown" in caplog.text
    with pytest.raises(UsageError, match="now reads"):
        vocab.verify(TEXTS)


def test_characters_never_seen_stay_on_request():
    tokenizer = helpers.generic_tokenizer()
    shrinker = VocabShrinker(tokenizer).count(["walk"], progress=False)
    # printable ASCII stays anyway; here everything is ASCII, so both agree
    assert shrinker.shrink(120).report.n_alphabet == shrinker.shrink(120, alphabet="all").report.n_alphabet


def test_saved_files_load_in_a_fresh_process(tmp_path):
    vocab = counted(helpers.bert_tokenizer(tmp_path / "bert")).shrink()
    folder = tmp_path / "saved"
    folder.mkdir()
    for stale in ("vocab.txt", "special_tokens_map.json", "added_tokens.json"):  # of the tokenizer before
        (folder / stale).write_text("{}")
    (folder / "model.safetensors").write_text("not ours")
    vocab.save_pretrained(folder)
    student = build_student(helpers.tiny_model("bert-untied"), num_layers=2, vocab=vocab)
    student.save_pretrained(tmp_path / "model")
    names = {
        "README.md",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab_map.safetensors",
        "vocab_report.json",
        "model.safetensors",
        "SHA256SUMS",
    }
    assert {p.name for p in folder.iterdir()} == names
    assert {p.name for p in tmp_path.iterdir()} == {"bert", "saved", "model"}  # nothing half-written beside it
    code = (
        "import sys, json; from transformers import AutoTokenizer as A, AutoModelForMaskedLM as M\n"
        "t, m = A.from_pretrained(sys.argv[1]), M.from_pretrained(sys.argv[2]); texts = json.loads(sys.argv[3])\n"
        "logits = m(**t(texts[:2], padding=True, return_tensors='pt')).logits.tolist()\n"
        "sys.stdout.write(json.dumps([type(t).__name__, len(t), t(texts)['input_ids'], logits]))"
    )
    command = [sys.executable, "-c", code, str(folder), str(tmp_path / "model"), json.dumps(TEXTS)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    *tokenizer, logits = json.loads(run.stdout)
    assert tokenizer == ["BertTokenizer", 106, vocab.tokenizer(TEXTS)["input_ids"]]
    with torch.no_grad():
        wanted = student(**vocab.tokenizer(TEXTS[:2], padding=True, return_tensors="pt")).logits
    assert torch.allclose(torch.tensor(logits), wanted, atol=1e-6)
    loaded = ShrunkVocab.from_pretrained(folder, original_tokenizer=helpers.generic_tokenizer())
    assert loaded.vocab_map == vocab.vocab_map and loaded.report == vocab.report
    loaded.verify(TEXTS)
    with pytest.raises(UsageError, match="original tokenizer"):
        ShrunkVocab.from_pretrained(folder).verify(TEXTS)


def test_saving_over_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="is a file"):
        counted().shrink().save_pretrained(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_class_that_would_change_ids_is_not_written(tmp_path, caplog):
    # BertTokenizer builds its own normalizer from do_lower_case and drops this one.
    tokenizer = helpers.bert_tokenizer(tmp_path / "bert", padding_side="left", model_max_length=33)
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.Replace("walk", "talk"), normalizers.Lowercase()])
    with caplog.at_level(logging.WARNING):
        vocab = VocabShrinker(tokenizer).count(TEXTS, progress=False).shrink()
    assert "saved as PreTrainedTokenizerFast" in caplog.text
    vocab.save_pretrained(tmp_path / "saved")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "saved")
    for one in (vocab.tokenizer, loaded):
        assert one.tokenize("walking") == one.tokenize("talking")
        # BERT tells the two texts of a pair apart by these, and the generic class has none by default
        assert one.model_input_names == ["input_ids", "token_type_ids", "attention_mask"]
        assert one("walk", "talk")["token_type_ids"][-1] == 1
        assert (one.padding_side, one.model_max_length) == ("left", 33)
        assert one.special_tokens_map == tokenizer.special_tokens_map
    vocab.verify(TEXTS)


def test_settings_changed_since_loading_are_saved(tmp_path):
    tokenizer = helpers.bert_tokenizer(tmp_path / "bert")
    tokenizer.padding_side, tokenizer.model_max_length = "left", 17
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    vocab = counted(tokenizer).shrink()
    vocab.save_pretrained(tmp_path / "saved")
    for one in (vocab.tokenizer, AutoTokenizer.from_pretrained(tmp_path / "saved")):
        assert (one.padding_side, one.model_max_length) == ("left", 17)
        assert one.apply_chat_template([{"role": "user", "content": "walk"}], tokenize=False) == "walk"
    assert vocab.tokenizer.name_or_path == ""


def test_removed_names_in_the_config_do_not_come_back(tmp_path):
    tokenizer = helpers.bert_tokenizer(tmp_path / "bert", added_tokens_decoder={"70": {"content": "walkness", "special": False}})
    vocab = counted(tokenizer).shrink(120)
    vocab.save_pretrained(tmp_path / "saved")
    assert len(AutoTokenizer.from_pretrained(tmp_path / "saved")) == 120
    assert "added_tokens_decoder" not in json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())


def test_the_small_tokenizer_pads_with_the_new_id():
    tokenizer = helpers.generic_tokenizer(pad_token="[MASK]")
    vocab = counted(tokenizer).shrink()
    batch = vocab.tokenizer(["walk", "walk talk"], padding=True)["input_ids"]
    assert batch[0][-1] == vocab.tokenizer.mask_token_id == vocab.vocab_map.to_small(tokenizer.mask_token_id)


def test_the_given_tokenizer_is_untouched():
    tokenizer = helpers.generic_tokenizer(extra_special_tokens=["walk"])
    before = tokenizer.backend_tokenizer.to_str()
    vocab = VocabShrinker(tokenizer).count(TEXTS, progress=False).shrink()
    vocab.verify(TEXTS)
    vocab.tokenizer.pad_token = "[MASK]"
    vocab.tokenizer.padding_side = "left"
    vocab.tokenizer.add_tokens(["new"])
    assert tokenizer.backend_tokenizer.to_str() == before and tokenizer.extra_special_tokens == ["walk"]
    assert (tokenizer.pad_token, tokenizer.padding_side) == ("[PAD]", "right")


def test_a_tokenizer_of_the_tokenizers_library():
    vocab = VocabShrinker(helpers.bpe_backend()).count(TEXTS, progress=False).shrink(300)
    assert len(vocab.tokenizer) == 300
    vocab.verify(TEXTS, progress=False)


def test_verify_notices_a_wrong_map():
    vocab = counted().shrink()
    vocab.vocab_map = type(vocab.vocab_map)(np.arange(106), V)
    with pytest.raises(RuntimeError, match="The map says token"):
        vocab.verify(TEXTS)


def test_verify_notices_a_model_that_is_cut_otherwise(monkeypatch):
    vocab = counted().shrink()
    model = helpers.tiny_model("bert")
    small = vocab.resize(model)
    with torch.no_grad():
        small.bert.embeddings.word_embeddings.weight[vocab.tokenizer.convert_tokens_to_ids("walk")] += 1
    monkeypatch.setattr(ShrunkVocab, "resize", lambda self, model: small)
    with pytest.raises(RuntimeError, match="other logits"):
        vocab.verify(TEXTS, model)


def shrunk(kind, **options):
    shrinker = VocabShrinker(helpers.fast_tokenizer(kind)).count([*TEXTS, *TEXTS[:20]], progress=False)
    return shrinker, shrinker.shrink(**options)


@pytest.mark.parametrize("order", ["count", "leaf"])
@pytest.mark.parametrize("kind", sorted(helpers.BACKENDS))
def test_every_kind_of_tokenizer(kind, order, tmp_path):
    shrinker, vocab = shrunk(kind, size=0.9, order=order)
    large = shrinker.tokenizer
    assert vocab.report.size == len(vocab.tokenizer) == int(np.ceil(0.9 * shrinker.counts.size))
    texts = TEXTS if kind == "wordlevel" else [*TEXTS, "Mixed  CASE walking!", "1234 walker", "[MASK] <mask> turnwork"]
    kept = [text for text in texts if kind != "wordlevel" or vocab.vocab_map.keeps(large(text)["input_ids"]).all()]
    assert vocab.verify(kept, progress=False).texts_all_kept > 0
    vocab.save_pretrained(tmp_path / "saved")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert loaded(TEXTS)["input_ids"] == vocab.tokenizer(TEXTS)["input_ids"]
    assert loaded.special_tokens_map == large.special_tokens_map
    smallest = shrinker.shrink(min_count=10**9, order=order)  # what has to stay
    assert smallest.report.size < shrinker.counts.size - 10 and smallest.report.coverage < vocab.report.coverage
    if kind != "wordlevel":
        smallest.verify(texts, progress=False)
    assert set(smallest.vocab_map.kept_ids) <= set(vocab.vocab_map.kept_ids)


def test_the_report_counts_what_comes_with_other_tokens():
    shrinker, vocab = shrunk("bpe bytes", size=290)
    assert vocab.report.n_alphabet == 256 and vocab.report.n_special == 4
    removed = np.setdiff1d(np.arange(shrinker.counts.size), vocab.vocab_map.kept_ids)
    merged = vocab.vocab_map.kept_ids >= 4 + 256  # special tokens and bytes are first
    assert vocab.report.n_closure == (vocab.counts[merged] < shrinker.counts[removed].max()).sum() > 0
    assert counted().shrink().report.n_closure == 0


def test_whole_words_of_a_removed_kind_are_reported(caplog):
    with caplog.at_level(logging.WARNING):
        vocab = shrunk("wordlevel", size=30)[1]
    assert vocab.report.new_unknown > 0 and "otherwise keep more tokens" in caplog.text
    assert vocab.report.n_alphabet == 0  # characters spell nothing here


def test_an_order_serves_many_sizes_and_other_shrinkers(tmp_path):
    shrinker = VocabShrinker(helpers.fast_tokenizer("bpe fallback")).count(TEXTS, progress=False)
    for order in ("count", "leaf"):
        shrinker.save_order(tmp_path / order, order)
        for size in (310, 340):
            direct = shrinker.shrink(size, order=order)
            assert np.array_equal(shrinker.shrink(size, order=tmp_path / order).vocab_map.kept_ids, direct.vocab_map.kept_ids)
            assert np.array_equal(
                shrinker.shrink(size, order=str(tmp_path / order)).vocab_map.kept_ids, direct.vocab_map.kept_ids
            )
    assert shrinker.shrink(340, order=np.arange(shrinker.counts.size)).report.size == 340
    with pytest.raises(UsageError, match="another tokenizer"):
        counted().shrink(order=tmp_path / "leaf")
    with pytest.raises(UsageError, match="order='best' is unknown"):
        shrinker.save_order(tmp_path / "best", "best")
    with pytest.raises(UsageError, match="Nothing was counted"):
        VocabShrinker(helpers.generic_tokenizer()).save_order(tmp_path / "none")


def test_a_saved_order_serves_texts_counted_later(tmp_path):
    shrinker = counted()
    shrinker.save_order(tmp_path / "order")
    other = VocabShrinker(helpers.generic_tokenizer()).count(["zoo zoo zoo"], progress=False)
    kept = other.shrink(150, order=tmp_path / "order", alphabet="all").vocab_map.kept_ids
    assert np.array_equal(kept, shrinker.shrink(150, alphabet="all").vocab_map.kept_ids)


def test_weights_and_limits_of_a_corpus():
    one = VocabShrinker(helpers.generic_tokenizer()).count(TEXTS, weight=3, max_texts=5, progress=False)
    other = VocabShrinker(helpers.generic_tokenizer()).count(TEXTS[:5], progress=False)
    assert np.array_equal(one.counts, 3 * other.counts) and one.sample(99) == [text for text in other.sample(99)]
    assert sorted(other.sample(99)) == sorted(TEXTS[:5]) and len(other.sample(2)) == 2
    with pytest.raises(UsageError, match="max_texts=0"):
        other.count(TEXTS, max_texts=0)


def with_placeholders(**settings):
    backend = helpers.wordpiece_backend()
    backend.add_special_tokens([f"<unused{number}>" for number in range(9)])
    backend.add_special_tokens(["<extra_id_0>"])
    backend.add_tokens(["[unused9]"])
    return helpers.generic_tokenizer(backend, **settings)


def test_placeholders_that_were_never_counted_go_and_do_not_come_back(tmp_path, caplog):
    listed = [f"<unused{number}>" for number in range(9)] + ["<extra_id_0>"]
    tokenizer = with_placeholders(extra_special_tokens=listed, eos_token="<unused1>")
    tokenizer.chat_template = "{{ '<unused2>' }}{{ messages[0]['content'] }}"
    shrinker = VocabShrinker(tokenizer).count([*TEXTS, "walk <unused3>"], progress=False)
    with caplog.at_level(logging.INFO):
        vocab = shrinker.shrink(size=150, keep=["<unused4>"])
    assert vocab.report.n_placeholders_removed == 6 and "6 placeholder tokens" in caplog.text
    there = {f"<unused{number}>" for number in (1, 2, 3, 4)} | {"<extra_id_0>"}
    vocab.save_pretrained(tmp_path / "vocab")
    vocab.tokenizer.save_pretrained(tmp_path / "alone")  # as a trainer does
    for one in (vocab.tokenizer, *(AutoTokenizer.from_pretrained(tmp_path / name) for name in ("vocab", "alone"))):
        assert one(TEXTS)["input_ids"] == vocab.tokenizer(TEXTS)["input_ids"]
        assert {token for token in one.get_vocab() if "unused" in token or "extra" in token} == there
        assert len(one) == 150 and set(one.all_special_tokens) >= there - {"<unused4>"} | {"<unused1>"}
    vocab.verify(TEXTS, progress=False)
    assert len(tokenizer) == V + 11 and tokenizer.extra_special_tokens == listed  # the given one is as it was


def test_what_a_chat_template_writes_stays():
    tokenizer = helpers.generic_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% generation %}markness: {{ m['role'] + '\\u0068elpness' }}{% endgeneration %}{% endfor %}"
    )
    vocab = VocabShrinker(tokenizer).count(["walk"], progress=False).shrink(100)
    assert {"markness", "helpness"} <= vocab.tokenizer.get_vocab().keys()
    assert vocab.report.n_special > 5
    tokenizer.chat_template = {"default": "turnness", "tool_use": "{{ 'readness' }}"}
    known = VocabShrinker(tokenizer).count(["walk"], progress=False).shrink(100).tokenizer.get_vocab()
    assert {"turnness", "readness"} <= known.keys() and "helpness" not in known
    tokenizer.chat_template = "{{ 'open"
    with pytest.raises(UsageError, match="chat template is no valid Jinja"):
        counted(tokenizer).shrink()


def test_tokens_that_a_model_names_stay(caplog):
    model = helpers.tiny_model("gpt2")
    model.config.bos_token_id, model.generation_config.eos_token_id = 201, [2, 205]
    shrinker = counted()
    assert not shrinker.shrink(120).vocab_map.keeps([201, 205]).any()
    with caplog.at_level(logging.INFO):
        vocab = shrinker.shrink(120, model=model)
    assert vocab.vocab_map.keeps([2, 201, 205]).all()
    assert (
        "token 201 stays because the model's settings name it: bos_token_id" in caplog.text and "token 205 stays" in caplog.text
    )
    assert vocab.report.n_special == 5 + len({2, 201, 205} - set(shrinker.tokenizer.all_special_ids))
    small = vocab.resize(model)
    assert small.config.bos_token_id == vocab.vocab_map.to_small(201)
    assert shrinker.shrink(120, model=model.config).vocab_map.keeps([201]).all()


def test_characters_that_would_vanish_are_warned_of(caplog):
    backend = helpers.bpe_backend("suffix")
    backend.model.unk_token = None
    tokenizer = helpers.generic_tokenizer(backend, unk_token=None, pad_token=None)
    with caplog.at_level(logging.WARNING):
        VocabShrinker(tokenizer).count(TEXTS, progress=False).shrink(150)
    assert "will vanish" in caplog.text


@pytest.mark.parametrize("as_config", [False, True])
def test_a_model_of_fewer_rows_is_refused(as_config):
    model = helpers.tiny_model("gpt2", vocab_size=V - 1)
    with pytest.raises(UsageError, match=f"table has {V - 1} rows, fewer than the {V} tokens"):
        counted().shrink(model=model.config if as_config else model)


def test_a_special_token_that_is_not_there_is_refused():
    tokenizer = helpers.generic_tokenizer()
    tokenizer.pad_token = "[NOPE]"
    with pytest.raises(UsageError, match=r"pad_token '\[NOPE\]' is not in the vocabulary"):
        counted(tokenizer).shrink()


def embedded(shrinker, seed=0):
    return torch.randn(shrinker.counts.size + 3, 6, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("similarity", ["dot", "cosine", "euclidean"])
@pytest.mark.parametrize("kind", ["wordpiece", "bpe fallback", "bpe bytes", "unigram"])
def test_removed_tokens_are_mapped_to_the_nearest(kind, similarity, tmp_path):
    shrinker = VocabShrinker(helpers.fast_tokenizer(kind)).count(TEXTS, progress=False)
    table = embedded(shrinker)
    size = shrinker.counts.size - 40
    vocab = shrinker.shrink(size, removed="nearest", similarity=similarity, embeddings=table)
    assert vocab.report.size == len(vocab.tokenizer) == size
    assert vocab.report.length_ratio == 1.0 and vocab.report.new_unknown == 0
    vocab_map, backend = vocab.vocab_map, shrinker.tokenizer.backend_tokenizer
    assert (vocab_map.removed, vocab_map.similarity) == ("nearest", similarity)
    own = set(shrinker.tokenizer.all_special_ids) | {
        i
        for i in vocab_map.kept_ids.tolist()
        if kind.startswith("bpe") and len(backend.decode([i])) < 2 or backend.id_to_token(i)[:3] == "<0x"
    }
    for token_id in np.setdiff1d(np.arange(shrinker.counts.size), vocab_map.kept_ids).tolist():
        stand_in = int(vocab_map.to_original(vocab_map.to_small(token_id)))
        assert stand_in not in shrinker.tokenizer.all_special_ids
        others = [i for i in vocab_map.kept_ids.tolist() if i not in own]
        one, rest = table[token_id], table[others]
        score = {
            "dot": rest @ one,
            "cosine": torch.nn.functional.cosine_similarity(rest, one[None]),
            "euclidean": -(rest - one).norm(dim=-1),
        }[similarity]
        if stand_in in others:
            assert score[others.index(stand_in)] >= score.max() - 1e-5
    assert vocab.tokenizer(TEXTS)["input_ids"] == vocab_map.to_small(shrinker.tokenizer(TEXTS)["input_ids"])
    vocab.verify(TEXTS, progress=False)
    vocab.save_pretrained(tmp_path)
    assert ShrunkVocab.from_pretrained(tmp_path).tokenizer(TEXTS)["input_ids"] == vocab.tokenizer(TEXTS)["input_ids"]


def test_for_a_map_the_commonest_tokens_stay_without_their_parts():
    shrinker = VocabShrinker(helpers.fast_tokenizer("bpe fallback")).count(TEXTS, progress=False)
    special = {*shrinker.tokenizer.all_special_ids, *range(4, 260)}
    kept = shrinker.shrink(300, removed="nearest", embeddings=embedded(shrinker)).vocab_map.kept_ids
    free = [i for i in np.lexsort((np.arange(shrinker.counts.size), -shrinker.counts)).tolist() if i not in special]
    assert kept.tolist() == sorted([*special, *free[: 300 - len(special)]])
    with_letters = shrinker.shrink(320, removed="nearest", embeddings=embedded(shrinker), alphabet="all").report
    assert with_letters.n_alphabet > 256


def test_removed_tokens_are_mapped_to_the_unknown_token():
    shrinker = counted()
    vocab = shrinker.shrink(60, removed="unk")
    assert vocab.report.n_alphabet == 0 and vocab.report.length_ratio == 1.0 and vocab.report.new_unknown > 0
    gone = np.setdiff1d(np.arange(V), vocab.vocab_map.kept_ids)
    assert set(vocab.vocab_map.to_small(gone)) == {vocab.tokenizer.unk_token_id}
    vocab.verify(TEXTS, progress=False)
    with pytest.raises(UsageError, match="removed='unk' needs an unknown token"):
        tokenizer = helpers.fast_tokenizer("bpe bytes", unk_token=None)
        VocabShrinker(tokenizer).count(TEXTS, progress=False).shrink(300, removed="unk")


def _real_tokenizer(name: str, folder: Path):
    for file in (Path(DATA) / "tokenizers" / name).iterdir():
        packed = file.suffix == ".xz"
        content = lzma.decompress(file.read_bytes()) if packed else file.read_bytes()
        (folder / (file.stem if packed else file.name)).write_bytes(content)
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.skipif(not DATA, reason="HF_GLMD_TEST_DATA is not set: a folder with tokenizers/ and corpora/")
def test_a_published_tokenizer_on_real_text(tmp_path):
    tokenizer = _real_tokenizer("bert-base-uncased", tmp_path)
    # This library's own sources: enough text that half of it has tokens that go.
    files = sorted(Path(torch.nn.__file__).parent.glob("*.py"))
    texts = [line for file in files for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    vocab = VocabShrinker(tokenizer).count(texts, progress=False).shrink(coverage=0.98)
    assert vocab.verify(texts).texts_all_kept < len(texts)
    assert vocab.tokenizer.unk_token_id == vocab.vocab_map.to_small(100)
