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
from hf_glmd.shrinker import VocabShrinker
from hf_glmd.shrunk_vocab import ShrunkVocab

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
        ({"removed": "nearest"}, "not there yet"),
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
    names = {"tokenizer.json", "tokenizer_config.json", "vocab_map.safetensors", "vocab_report.json", "model.safetensors"}
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
    tokenizer = helpers.generic_tokenizer()
    before = tokenizer.backend_tokenizer.to_str()
    VocabShrinker(tokenizer).count(TEXTS, progress=False).shrink().verify(TEXTS)
    assert tokenizer.backend_tokenizer.to_str() == before


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
