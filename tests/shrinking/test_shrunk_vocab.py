from __future__ import annotations

import dataclasses
import json
import logging
import lzma
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import vocab_helpers as helpers
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from hf_glmd.errors import UsageError
from hf_glmd.reports.vocab_report import POINTS, LongTail, ModelSizes, VerifyReport, VocabReport
from hf_glmd.shrinking import verification
from hf_glmd.shrinking.shrinker import VocabShrinker
from hf_glmd.shrinking.shrunk_vocab import ShrunkVocab
from hf_glmd.vocab.mapped_tokenizer import ORIGINAL_FOLDER, MappedTokenizer
from hf_glmd.vocab.vocab_map import VocabMap, nearest_kept

V, SIZE = helpers.V, 113  # primes
TEXTS = helpers.texts()
ODD_TEXTS = ["Mixed CASE walking!", "", "中文 [MASK] naïve"]
DATA = os.environ.get("HF_GLMD_TEST_DATA")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """The models are so small that threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def counted(tokenizer: Any = None) -> VocabShrinker:
    return VocabShrinker(tokenizer or helpers.generic_tokenizer()).count(TEXTS, progress=False)


def resegmented(shrinker: VocabShrinker | None = None, **options: Any) -> ShrunkVocab:
    """With the counts of all tokens, whatever `shrink` passes on."""
    shrinker = shrinker or counted()
    vocab = shrinker.shrink(**{"size": SIZE, "keep": range(3), **options})
    return ShrunkVocab(
        vocab.tokenizer,
        vocab.vocab_map,
        vocab.report,
        original_tokenizer=shrinker.tokenizer,
        original_counts=shrinker.counts,
    )


def mapped(removed: str = "nearest", shrinker: VocabShrinker | None = None, vocab_map: VocabMap | None = None) -> ShrunkVocab:
    """The same kept tokens, and a map for the others."""
    shrinker = shrinker or counted()
    plain = resegmented(shrinker)
    kept_ids, tokenizer = plain.vocab_map.kept_ids, shrinker.tokenizer
    if vocab_map is None and removed == "nearest":
        embeddings = torch.randn(V, 8, generator=torch.Generator().manual_seed(0))
        small = nearest_kept(embeddings, kept_ids, special_ids=tokenizer.all_special_ids)
        vocab_map = VocabMap(kept_ids, V, removed, small, "dot")
    elif vocab_map is None:
        small = np.full(V, np.searchsorted(kept_ids, tokenizer.unk_token_id))
        small[kept_ids] = np.arange(SIZE)
        vocab_map = VocabMap(kept_ids, V, removed, small)
    report = dataclasses.replace(plain.report, length_ratio=1.0)
    return ShrunkVocab(
        MappedTokenizer(tokenizer, vocab_map),
        vocab_map,
        report,
        original_tokenizer=tokenizer,
        original_counts=shrinker.counts,
    )


# ---- verify: what it compares ----


def test_a_correct_vocabulary_passes_and_the_report_says_what_was_compared():
    vocab = resegmented()
    report = vocab.verify([*TEXTS, *ODD_TEXTS], helpers.tiny_model("bert"))
    assert report.texts == report.texts_same_decoded == len(TEXTS) + 3
    rows = helpers.generic_tokenizer()([*TEXTS, *ODD_TEXTS], add_special_tokens=False)["input_ids"]
    assert report.texts_all_kept == sum(bool(vocab.vocab_map.keeps(row).all()) for row in rows)
    assert 3 < report.texts_all_kept < len(TEXTS)
    # Of the kept tokens [PAD] and the like are no text; all others of a WordPiece vocabulary are made of their own string.
    assert (report.tokens_reached, report.unreachable, report.unreachable_before) == (SIZE - 5, 0, 0)
    assert report.model_texts == 15  # eight texts and seven pairs
    assert report.max_logit_difference <= 1e-6 and report.max_hidden_difference == 0.0
    assert re.search(
        r"15 inputs read by both models: logits differ by \S+ at most, hidden states differ by 0 at", report.summary()
    )
    assert VerifyReport(texts=3).summary().count("\n") == 0


@pytest.mark.parametrize("removed", ["nearest", "unk"])
def test_a_correct_map_passes(removed):
    vocab = mapped(removed)
    report = vocab.verify([*TEXTS, *ODD_TEXTS], helpers.tiny_model("bert"))
    assert report.texts == len(TEXTS) + 3 and report.texts_all_kept <= report.texts_same_decoded < report.texts
    assert 3 < report.texts_all_kept == resegmented().verify([*TEXTS, *ODD_TEXTS]).texts_all_kept
    assert report.tokens_reached == 0 and report.model_texts == 15
    assert report.max_logit_difference <= 1e-6 and report.max_hidden_difference == 0.0


def test_texts_are_read_as_they_come():
    taken = []

    def stream() -> Iterator[str]:
        for number in range(10_000):
            taken.append(number)
            yield "walk" if number else "中文 unknown, and yet it is not"

    vocab = counted(PreTrainedTokenizerFast(tokenizer_object=_with_chinese(), unk_token="[UNK]", pad_token="[PAD]")).shrink(
        size=100
    )
    with pytest.raises(UsageError, match="now reads"):
        vocab.verify(stream(), batch_size=7, progress=False)
    assert len(taken) == 7
    report = resegmented().verify((text for text in TEXTS), batch_size=7, progress=False)
    assert report == resegmented().verify(TEXTS, batch_size=1_000) and report.texts == len(TEXTS)
    assert resegmented().verify("walking").texts == 1


def _with_chinese() -> Tokenizer:
    data = json.loads(helpers.wordpiece_backend().to_str())
    data["model"]["vocab"] |= {"中": V, "文": V + 1}
    return Tokenizer.from_str(json.dumps(data))


@pytest.mark.parametrize(
    ("texts", "message"), [([], "at least one text"), (["walk", 3], "reads texts, not int"), ([None], "NoneType")]
)
def test_what_is_no_text_is_refused(texts, message):
    with pytest.raises(UsageError, match=message):
        resegmented().verify(texts)
    with pytest.raises(UsageError, match="batch_size=0"):
        resegmented().verify(TEXTS, batch_size=0)


# ---- verify: what it finds ----


def bpe(merges: list[tuple[str, str]], words: tuple[str, ...] = (), **options: Any) -> PreTrainedTokenizerFast:
    """Letters a to e, what the merges make of them, and further words."""
    prefix, suffix = options.get("continuing_subword_prefix", ""), options.get("end_of_word_suffix", "")
    letters = [f"{start}{letter}{end}" for letter in "abcde" for start in {"", prefix} for end in {"", suffix}]
    made = [left + right.removeprefix(prefix) for left, right in merges]
    # sorted: in the smaller vocabulary too the tokens stand in this order
    vocabulary = {token: index for index, token in enumerate(["<unk>", *sorted({*letters, *made, *words})])}
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", **options))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", pad_token="<unk>")


def by_hand(small: Any, large: Any) -> ShrunkVocab:
    whole = large.get_vocab()
    kept_ids = np.array([whole[token] for token, _ in sorted(small.get_vocab().items(), key=lambda item: item[1])])
    report = VocabReport(len(whole), kept_ids.size, 1.0, 1.0, 1, 1, 1, 0, 0)
    return ShrunkVocab(small, VocabMap(kept_ids, len(whole)), report, original_tokenizer=large)


def test_a_token_that_can_no_longer_be_produced_is_found():
    large = bpe([("a", "b"), ("ab", "c"), ("d", "e")])
    by_hand(bpe([("a", "b"), ("ab", "c"), ("d", "e")]), large).verify(["abc de"])
    # "abc" stays, "ab" does not, so nothing leads to it: the text still decodes as before, and is never split as before.
    with pytest.raises(RuntimeError, match=r"1 kept tokens can no longer be produced, \['abc'\]"):
        by_hand(bpe([("d", "e")], words=("abc",)), large).verify(["de"])


def test_a_token_that_never_could_be_produced_is_no_fault():
    tokenizer = bpe([("a", "b")], words=("cde",))
    report = by_hand(tokenizer, tokenizer).verify(["ab cde"])
    assert (report.tokens_reached, report.unreachable_before, report.unreachable) == (6, 1, 0)  # without <unk>, an added token


def test_a_word_that_is_split_otherwise_is_found():
    # The order of the merges was lost. "abc" comes out of no text, before or after, but its string has kept tokens only.
    large, small = (bpe(merges, words=("abc",)) for merges in ([("a", "b"), ("b", "c")], [("b", "c"), ("a", "b")]))
    with pytest.raises(RuntimeError, match=r"Words of 1 kept tokens, \['abc'\] among them, are split otherwise"):
        by_hand(small, large).verify(["d"])


@pytest.mark.parametrize(
    ("options", "merges"),
    [
        ({"end_of_word_suffix": "</w>"}, [("a", "b"), ("ab", "c</w>"), ("d", "e</w>")]),
        ({"continuing_subword_prefix": "##"}, [("a", "##b"), ("ab", "##c"), ("##d", "##e")]),
    ],
)
def test_marked_pieces_are_asked_for_where_they_can_stand(options, merges):
    tokenizer = bpe(merges, **options)
    report = by_hand(tokenizer, tokenizer).verify(["abc ade"])
    assert (report.tokens_reached, report.unreachable_before) == (len(tokenizer) - 1, 0)
    # without the first merge, what is made of its result is lost
    lost = merges[0][0] + merges[0][1].removeprefix("##") + merges[1][1].removeprefix("##")
    with pytest.raises(RuntimeError, match=rf"can no longer be produced, \['{lost}'\]"):
        by_hand(bpe(merges[2:], words=(lost,), **options), tokenizer).verify(["d"])


def _other_post_processor(vocab: ShrunkVocab) -> None:
    wrong = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 7), ("[SEP]", 8)]
    )
    vocab.tokenizer.backend_tokenizer.post_processor = wrong


def _one_segment(vocab: ShrunkVocab) -> None:
    ids = [(name, vocab.tokenizer.convert_tokens_to_ids(name)) for name in ("[CLS]", "[SEP]")]
    vocab.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=ids
    )


def _further_token(vocab: ShrunkVocab) -> None:
    vocab.tokenizer.add_tokens(["walkabout"])


def _other_words(vocab: ShrunkVocab) -> None:
    vocab.tokenizer.backend_tokenizer.normalizer = None  # no longer in lower case


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (_other_post_processor, RuntimeError, "other special tokens"),
        (_one_segment, RuntimeError, "other special tokens, segments"),
        (_further_token, RuntimeError, "tokens beside those of the map"),
        (_other_words, RuntimeError, "'Walking' comes with other"),
    ],
)
def test_a_tokenizer_that_differs_is_found(change, error, message):
    vocab = resegmented()
    change(vocab)
    with pytest.raises(error, match=message):
        vocab.verify([*TEXTS, "Walking"])


def test_a_tokenizer_that_changes_when_it_is_loaded_is_found(monkeypatch):
    other = helpers.generic_tokenizer()
    monkeypatch.setattr(verification, "load_tokenizer", lambda folder: other)
    with pytest.raises(RuntimeError, match="other ids once it is saved and loaded again"):
        resegmented().verify(TEXTS)
    vocab, another = mapped(), mapped("unk")
    monkeypatch.setattr(MappedTokenizer, "from_pretrained", lambda folder: another.tokenizer)
    with pytest.raises(RuntimeError, match="loses it when it is saved"):
        vocab.verify(TEXTS)
    another.tokenizer.vocab_map = vocab.vocab_map
    another.tokenizer.original.backend_tokenizer.normalizer = None
    with pytest.raises(RuntimeError, match="other ids once it is saved and loaded again"):
        vocab.verify(["Walking"])


def test_a_wrong_map_is_found():
    good = mapped().vocab_map
    own = good.to_small(np.arange(V))
    special = good.to_small(counted().tokenizer.mask_token_id)
    removed = int(np.flatnonzero(~good.keeps(np.arange(V)))[0])
    for mode, message in (("nearest", "stands for a special one"), ("unk", "something else than the unknown token")):
        wrong = own.copy()
        wrong[removed] = special
        with pytest.raises(RuntimeError, match=message):
            mapped(vocab_map=VocabMap(good.kept_ids, V, mode, wrong)).verify(TEXTS)
    vocab = mapped()
    vocab.tokenizer.vocab_map = mapped("unk").vocab_map
    with pytest.raises(RuntimeError, match="another map than the vocabulary"):
        vocab.verify(TEXTS)


def test_a_wrapper_that_maps_wrongly_is_found(monkeypatch):
    vocab = mapped()
    monkeypatch.setattr(MappedTokenizer, "_encode_plus", lambda self, *a, **k: self.original._encode_plus(*a, **k))
    with pytest.raises(RuntimeError):
        vocab.verify(TEXTS)
    monkeypatch.undo()
    monkeypatch.setattr(MappedTokenizer, "_decode", lambda self, **options: self.original._decode(**options))
    with pytest.raises(RuntimeError, match="yet it is decoded otherwise"):
        vocab.verify(TEXTS)


def test_verify_needs_the_original_tokenizer(tmp_path):
    resegmented().save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="needs the original tokenizer"):
        ShrunkVocab.from_pretrained(tmp_path).verify(TEXTS)


# ---- verify: models ----

MORE_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert-bare": ("BertModel", helpers._SMALL),
    "bert-words": ("BertForTokenClassification", helpers._SMALL),
    "bert-questions": ("BertForQuestionAnswering", helpers._SMALL),
    "bart-classifier": ("BartForSequenceClassification", helpers._BART | helpers._IDS),
    "t5-encoder": ("T5EncoderModel", helpers._T5),
    "t5-bare": ("T5Model", helpers._T5),
    "llama-classifier": ("LlamaForSequenceClassification", helpers._DECODER | helpers._IDS),
    "xlnet": ("XLNetLMHeadModel", {"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 24} | helpers._IDS),
    "modernbert": (
        "ModernBertForMaskedLM",
        helpers._SMALL | helpers._IDS | {"cls_token_id": 0, "sep_token_id": 2, "global_attn_every_n_layers": 2},
    ),
}


def tiny(name: str) -> Any:
    if name in MORE_MODELS:
        torch.manual_seed(0)
        return helpers.tiny_class(*MORE_MODELS[name], V)
    return helpers.tiny_model(name)


@pytest.mark.parametrize("name", [*helpers.MODELS, *MORE_MODELS, "mt5-untied"])
def test_models_of_every_kind_are_compared(name, tmp_path):
    # This tokenizer tells segments apart, which not every model reads; 40 positions are fewer than two of the texts have.
    vocab = resegmented(counted(helpers.bert_tokenizer(tmp_path)))
    model = tiny(name).train()
    texts = [" ".join(TEXTS[start : start + 5]) for start in range(0, 50, 5)]
    report = vocab.verify(texts, model)
    assert model.training and report.model_texts == 15
    assert report.max_hidden_difference == 0.0
    has_logits = not name.endswith(("bare", "encoder"))
    assert (report.max_logit_difference is not None) == has_logits or name == "bert-questions"
    if has_logits and report.max_logit_difference is not None:
        assert report.max_logit_difference <= 1e-6


def test_models_in_half_precision_are_compared():
    report = resegmented().verify(TEXTS, helpers.tiny_model("bert").bfloat16())
    assert report.max_hidden_difference == 0.0 and report.max_logit_difference < 0.1


def _changed(change: Callable[[Any], torch.Tensor]) -> Callable[[ShrunkVocab, Any], Any]:
    resize = ShrunkVocab.resize

    def resized(self: ShrunkVocab, model: Any) -> Any:
        small = resize(self, model)
        with torch.no_grad():
            tensor = change(small)
            tensor[: tensor.shape[0] // 2] += 1e-3
        return small

    return resized


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: model.cls.predictions.bias, r"computes other logits \(logits\): they differ by 0.00[01]"),
        (lambda model: model.bert.embeddings.word_embeddings.weight, "computes other"),
        (lambda model: model.bert.encoder.layer[1].output.LayerNorm.bias, "computes other"),
    ],
)
def test_a_model_that_computes_otherwise_is_found(change, message, monkeypatch, tmp_path):
    monkeypatch.setattr(ShrunkVocab, "resize", _changed(change))
    for vocab in (resegmented(counted(helpers.bert_tokenizer(tmp_path))), mapped()):
        with pytest.raises(RuntimeError, match=message):
            vocab.verify(TEXTS, helpers.tiny_model("bert"))


def test_an_output_of_another_shape_is_found(monkeypatch):
    monkeypatch.setattr(ShrunkVocab, "resize", lambda self, model: helpers.tiny_model("bert", vocab_size=SIZE + 1))
    with pytest.raises(RuntimeError, match=r"logits \(logits\) are of shape \[1, \d+, 114\], the model's \[1, \d+, 211\]"):
        resegmented().verify(TEXTS, helpers.tiny_model("bert"))


# ---- report ----


def test_what_the_models_weigh_goes_into_the_report():
    vocab, model = resegmented(), helpers.tiny_model("bert")
    assert vocab.report.model_before is None
    small = vocab.resize(model)
    before, after = vocab.report.model_before, vocab.report.model_after
    assert before == ModelSizes(
        model.num_parameters(), V * 17, 4 * model.num_parameters()
    )  # 16 columns and the head's bias, tied
    assert after == ModelSizes(small.num_parameters(), SIZE * 17, 4 * small.num_parameters())
    assert before.parameters - after.parameters == (V - SIZE) * 17
    for name, columns in (("bert-untied", 16 + 16 + 1 + 1), ("bart", 16), ("llama", 16 + 16)):  # BART's bias is no parameter
        vocab.resize(helpers.tiny_model(name))
        sizes = [vocab.report.model_before.vocabulary_parameters, vocab.report.model_after.vocabulary_parameters]
        assert sizes == [V * columns, SIZE * columns]
    vocab.resize(model.bfloat16())
    assert vocab.report.model_before.bytes == 2 * before.parameters and vocab.report.model_after.bytes == 2 * after.parameters
    # Something else may be of the new size by accident.
    assert vocab.resize(helpers.tiny_model("bert", intermediate_size=SIZE)).config.vocab_size == SIZE


@given(
    counts=arrays(np.int64, st.integers(1, 300), elements=st.integers(0, 10**6)),
    seed=st.integers(0, 9),
    share=st.floats(0.01, 1.0),
)
def test_the_long_tail_has_every_token_once(counts, seed, share):
    rng = np.random.default_rng(seed)
    kept_ids = np.sort(rng.choice(counts.size, max(1, int(share * counts.size)), replace=False))
    tail = LongTail.of(counts, kept_ids)
    assert tail.ranks[0] == 1 and tail.ranks[-1] == counts.size and (np.diff(tail.ranks) > 0).all()
    assert tail.counts == np.sort(counts)[::-1][np.array(tail.ranks) - 1].tolist()
    assert np.dot(tail.kept_shares, np.diff(tail.ranks, prepend=0)) == pytest.approx(kept_ids.size, abs=0.01 * counts.size)
    assert all(rank > tail.cut for rank in tail.rarer_kept_ranks) and len(tail.rarer_kept_ranks) <= tail.n_rarer_kept
    assert bool(tail.n_rarer_kept) == bool(tail.rarer_kept_ranks) and len(tail.rarer_kept_counts) == len(tail.rarer_kept_ranks)


def test_the_cut_parts_kept_from_removed():
    counts = np.arange(1_000, 0, -1)
    tail = LongTail.of(counts, np.arange(400))
    assert (tail.cut, tail.n_rarer_kept, tail.rarer_kept_ranks) == (400, 0, [])
    assert all(share == (rank <= 400) for rank, share in zip(tail.ranks, tail.kept_shares, strict=True))
    # twenty rare ones in the place of twenty of the commonest four hundred
    tail = LongTail.of(counts, np.concatenate([np.arange(380), np.arange(900, 920)]))
    assert (tail.cut, tail.n_rarer_kept) == (380, 20) and set(tail.rarer_kept_ranks) <= set(range(901, 921))
    assert tail.rarer_kept_counts == [1_001 - rank for rank in tail.rarer_kept_ranks]
    assert len(LongTail.of(np.arange(10**6, 0, -1), np.arange(10**5)).ranks) <= POINTS + 2


@pytest.mark.parametrize("make", [resegmented, mapped])
def test_saved_and_loaded_it_is_the_same(make, tmp_path):
    vocab = make()
    vocab.resize(helpers.tiny_model("bert"))
    vocab.save_pretrained(tmp_path / "saved")
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]
    loaded = ShrunkVocab.from_pretrained(tmp_path / "saved", original_tokenizer=helpers.generic_tokenizer())
    assert loaded.report == vocab.report and loaded.report.long_tail == vocab.report.long_tail is not None
    assert loaded.vocab_map == vocab.vocab_map and loaded.counts is None
    assert loaded.tokenizer(TEXTS) == vocab.tokenizer(TEXTS)
    assert loaded.verify(TEXTS, helpers.tiny_model("bert")) == vocab.verify(TEXTS, helpers.tiny_model("bert"))
    if make is mapped:  # has the original tokenizer beside it
        assert ShrunkVocab.from_pretrained(tmp_path / "saved").verify(TEXTS) == vocab.verify(TEXTS)


def test_saving_the_other_kind_leaves_no_trace_of_the_first(tmp_path):
    (tmp_path / "model.safetensors").write_text("not ours")
    for vocab in (mapped(), resegmented(), mapped("unk")):
        vocab.save_pretrained(tmp_path)
        loaded = ShrunkVocab.from_pretrained(tmp_path, original_tokenizer=helpers.generic_tokenizer())
        assert loaded.tokenizer(TEXTS) == vocab.tokenizer(TEXTS)
        plain = vocab.vocab_map.removed == "resegment"
        assert (tmp_path / ORIGINAL_FOLDER).exists() == (not plain) and (tmp_path / "tokenizer_config.json").exists() == plain
        if plain:
            assert AutoTokenizer.from_pretrained(tmp_path)(TEXTS) == vocab.tokenizer(TEXTS)
    assert (tmp_path / "model.safetensors").read_text() == "not ours"


def test_saving_that_fails_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(VocabReport, "save", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        resegmented().save_pretrained(tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_the_report_is_written_with_its_picture(tmp_path):
    vocab = resegmented()
    names = ("vocab_report.json", "vocabulary.png", "vocabulary.csv")
    assert vocab.save_report(tmp_path) == [tmp_path / name for name in names] and all(
        (tmp_path / name).exists() for name in names
    )
    assert VocabReport.load(tmp_path / "vocab_report.json") == vocab.report
    assert (tmp_path / "vocabulary.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert vocab.counts.tolist() == counted().counts[vocab.vocab_map.kept_ids].tolist()


def test_the_report_knows_scripts_and_both_sides_of_the_cut():
    shrinker = counted()
    report = shrinker.shrink(size=100).report
    [latin] = [share for share in report.scripts if share.script == "Latin"]
    assert sum(share.tokens for share in report.scripts) == report.original_size
    assert sum(share.kept for share in report.scripts) == report.size
    assert sum(share.kept_counted for share in report.scripts) / sum(share.counted for share in report.scripts) == report.coverage
    assert 0 < latin.kept < latin.tokens
    ids = shrinker.tokenizer.get_vocab()
    counts = {token: shrinker.counts[ids[token]] for token in [*report.kept_examples, *report.removed_examples]}
    assert report.kept_examples and report.removed_examples
    assert min(counts[token] for token in report.kept_examples) >= max(counts[token] for token in report.removed_examples)


def test_without_matplotlib_or_counts_the_report_is_written_alone(tmp_path, monkeypatch, caplog):
    vocab = resegmented()
    vocab.report.long_tail = None
    assert vocab.save_report(tmp_path / "counts") == [tmp_path / "counts" / "vocab_report.json"]
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with caplog.at_level(logging.WARNING):
        assert resegmented().save_report(tmp_path / "plots") == [tmp_path / "plots" / "vocab_report.json"]
    assert caplog.text.count("pip install hf_glmd[plots]") == 1
    assert [path.name for path in (tmp_path / "plots").iterdir()] == ["vocab_report.json"]


@pytest.mark.parametrize("content", [None, "[", "[]", "{}", '{"size": 3}', '{"long_tail": {"ranks": 1}}'])
def test_a_report_of_another_kind_is_refused(content, tmp_path):
    resegmented().save_pretrained(tmp_path)
    file = tmp_path / "vocab_report.json"
    file.unlink() if content is None else file.write_text(content)
    with pytest.raises(UsageError, match="vocab_report.json' cannot be read"):
        ShrunkVocab.from_pretrained(tmp_path)


# ---- export ----


def test_a_mapped_vocabulary_becomes_a_plain_one(tmp_path):
    shrinker = counted()
    vocab = mapped(shrinker=shrinker)
    vocab.save_pretrained(tmp_path / "mapped")
    shrinker.save_counts(tmp_path / "counts.safetensors")
    # later, in another process: from the files alone
    loaded = ShrunkVocab.from_pretrained(tmp_path / "mapped")
    shrinker = VocabShrinker.load_counts(tmp_path / "counts.safetensors", loaded.tokenizer.original)
    exported = loaded.export_resegment(shrinker)
    assert exported.vocab_map.removed == "resegment" and exported.vocab_map.kept_ids.tolist() == vocab.vocab_map.kept_ids.tolist()
    assert exported.tokenizer.get_vocab() == vocab.tokenizer.get_vocab() and not isinstance(exported.tokenizer, MappedTokenizer)
    assert exported.report.coverage == vocab.report.coverage and exported.report.length_ratio > 1
    exported.verify(TEXTS, helpers.tiny_model("bert"))
    exported.save_pretrained(tmp_path / "plain")
    assert AutoTokenizer.from_pretrained(tmp_path / "plain")(TEXTS) == exported.tokenizer(TEXTS)


def test_an_export_that_needs_more_tokens_says_so(caplog):
    shrinker = counted()
    few = VocabMap(np.arange(60), V, "nearest", np.minimum(np.arange(V), 59))
    vocab = ShrunkVocab(
        MappedTokenizer(shrinker.tokenizer, few), few, resegmented().report, original_tokenizer=shrinker.tokenizer
    )
    with caplog.at_level(logging.WARNING):
        exported = vocab.export_resegment(shrinker)
    assert exported.vocab_map.keeps(np.arange(60)).all() and exported.vocab_map.size > 60
    assert f"needs {exported.vocab_map.size - 60} more tokens than the 60 kept" in caplog.text
    assert vocab.export_resegment(shrinker, alphabet="none").vocab_map.kept_ids.tolist() == list(range(60))


def test_another_tokenizers_counts_cannot_export():
    vocab = mapped()
    grown = helpers.generic_tokenizer()
    grown.add_tokens(["walkabout"])
    with pytest.raises(UsageError, match="another tokenizer"):
        vocab.export_resegment(counted(grown))
    with pytest.raises(UsageError, match="Nothing was counted"):
        vocab.export_resegment(VocabShrinker(helpers.generic_tokenizer()))


# ---- published tokenizers ----


def published(name: str, folder: Path) -> Any:
    for file in (Path(DATA or "") / "tokenizers" / name).iterdir():
        content = lzma.decompress(file.read_bytes()) if file.suffix == ".xz" else file.read_bytes()
        (folder / (file.stem if file.suffix == ".xz" else file.name)).write_bytes(content)
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.skipif(not DATA, reason="HF_GLMD_TEST_DATA is not set: a folder with tokenizers/ and corpora/")
@pytest.mark.parametrize("name", ["bert-base-uncased", "gpt2", "t5-small", pytest.param("clip", marks=pytest.mark.slow)])
def test_published_tokenizers(name, tmp_path):
    tokenizer = published(name, tmp_path)
    # Sources of a library: enough text that part of it has tokens that go.
    files = sorted(Path(transformers.__file__).parent.glob("*.py"))[:8]
    texts = [line for file in files for line in file.read_text(encoding="utf-8").splitlines() if line.strip()][:3_000]
    shrinker = VocabShrinker(tokenizer).count(texts, progress=False)
    vocab = shrinker.shrink(coverage=0.98)
    report = vocab.verify(texts, progress=False)
    assert report.texts == report.texts_same_decoded == len(texts) and 0 < report.texts_all_kept < len(texts)
    assert report.unreachable == 0 and report.tokens_reached > 0.9 * vocab.vocab_map.size
    # and the other way: a map, and its kept tokens as a plain tokenizer afterwards
    embeddings = torch.randn(shrinker.counts.size, 8, generator=torch.Generator().manual_seed(0))
    mapped_vocab = shrinker.shrink(size=2_003, removed="nearest", embeddings=embeddings)
    report = mapped_vocab.verify(texts, progress=False)
    assert 0 < report.texts_all_kept <= report.texts_same_decoded < report.texts == len(texts)
    exported = mapped_vocab.export_resegment(shrinker)
    assert exported.vocab_map.keeps(mapped_vocab.vocab_map.kept_ids).all()
    assert exported.verify(texts, progress=False).texts_same_decoded == len(texts)
