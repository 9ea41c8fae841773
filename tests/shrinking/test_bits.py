"""Bits per character against whole forwards of one row at a time, in fp64."""

import json
import math

import pytest
import torch
import vocab_helpers
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_glmd import VocabShrinker
from hf_glmd.cli import main
from hf_glmd.shrinking.bits import Bits, compare_bits, predicts_text

TEXTS = [text for text in vocab_helpers.texts(60) if text]


def models(kind, size=95):
    """(original, cut), their tokenizers."""
    tokenizer = vocab_helpers.generic_tokenizer()
    if kind == "gpt2":
        tokenizer.bos_token = "[CLS]"
    model = vocab_helpers.tiny_model(kind).double()
    vocab = VocabShrinker(tokenizer).count(TEXTS, progress=False).shrink(size=size, alphabet="all")
    return (model, vocab.resize(model)), (tokenizer, vocab.tokenizer)


@torch.no_grad()
def causal_bits(model, tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    special = set(tokenizer.all_special_ids)
    if ids[0] not in special:
        ids = [tokenizer.bos_token_id, *ids]
    logs = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return -sum(float(logs[place, one]) for place, one in enumerate(ids[1:]) if one not in special) / math.log(2)


@torch.no_grad()
def test_causal_bits_are_those_of_one_text_at_a_time():
    pair, tokenizers = models("gpt2")
    texts = [text[:200] for text in TEXTS[:12]]
    readable = [text for text in texts if all(t.unk_token_id not in t(text)["input_ids"] for t in tokenizers)]
    found = compare_bits(pair, tokenizers, TEXTS[:12])
    assert found.texts == len(readable) >= 3
    characters = sum(map(len, readable))
    for value, model, tokenizer in zip((found.before, found.after), pair, tokenizers, strict=True):
        assert value == pytest.approx(sum(causal_bits(model.eval(), tokenizer, text) for text in readable) / characters, rel=1e-9)


def test_a_text_as_long_as_the_model_reads_leaves_room_for_a_beginning():
    pair, tokenizers = models("gpt2", size=1.0)
    text = " ".join(["walk"] * 60)
    ids = tokenizers[0](text)["input_ids"]
    for words in range(30, 45):  # about the 40 positions of the model
        found = compare_bits(pair, tokenizers, [" ".join(["walk"] * words)])
        assert found is None or math.isfinite(found.before)
    assert len(ids) > 40


@torch.no_grad()
def test_a_masked_word_is_told_without_its_own_later_pieces():
    """One text, so few words that all are drawn: each token with itself and the rest of its word masked."""
    pair, tokenizers = models("bert")
    text = next(one for one in TEXTS if 2 <= len(one.split()) <= 3 and len(tokenizers[1].tokenize(one)) > len(one.split()))
    found = compare_bits(pair, tokenizers, [text])
    for value, model, tokenizer in zip((found.before, found.after), pair, tokenizers, strict=True):
        encoded, bits, characters = tokenizer(text), 0.0, {}
        words = encoded.word_ids()
        for place, word in enumerate(words):
            if word is None:
                continue
            ids = torch.tensor([encoded["input_ids"]])
            for hidden in range(place, len(words)):
                if words[hidden] == word:
                    ids[0, hidden] = tokenizer.mask_token_id
            logs = model.eval()(input_ids=ids).logits[0, place].log_softmax(-1)
            bits -= float(logs[encoded["input_ids"][place]]) / math.log(2)
            span = encoded.word_to_chars(word)
            characters[word] = span.end - span.start
        assert value == pytest.approx(bits / sum(characters.values()), rel=1e-9)


@settings(max_examples=6, deadline=None)
@given(st.sampled_from(["gpt2", "bert"]), st.integers(0, 5))
def test_of_kept_tokens_a_cut_costs_no_bits(kind, seed):
    """Removed tokens' probability goes to those that stay, so that text of these is never told worse."""
    pair, tokenizers = models(kind)
    kept = [t for t in TEXTS if len(tokenizers[0](t)["input_ids"]) == len(tokenizers[1](t)["input_ids"])]
    found = compare_bits(pair, tokenizers, kept[:6], seed=seed)
    assert found.texts > 0 and found.after < found.before


def test_nothing_cut_changes_nothing_and_weights_come_back_as_they_were():
    pair, tokenizers = models("bert", size=1.0)
    half = tuple(model.to(torch.bfloat16) for model in pair)
    before = {name: tensor.clone() for name, tensor in half[0].state_dict().items()}
    found = compare_bits(half, tokenizers, TEXTS[:8])
    assert found.before == pytest.approx(found.after, rel=1e-6)
    assert all(
        torch.equal(tensor, before[name]) and tensor.dtype == torch.bfloat16 for name, tensor in half[0].state_dict().items()
    )
    assert compare_bits(half, tokenizers, ["☃☃", ""]) is None


def test_who_predicts_no_text_has_no_bits():
    assert predicts_text(vocab_helpers.tiny_model("gpt2")) and predicts_text(vocab_helpers.tiny_model("bert"))
    assert not predicts_text(vocab_helpers.tiny_model("t5"))
    assert not predicts_text(vocab_helpers.tiny_class("BertModel", vocab_helpers._SMALL, vocab_helpers.V))


def test_the_command_puts_them_into_report_and_card(tmp_path, capsys):
    tokenizer, model = vocab_helpers.generic_tokenizer(), vocab_helpers.tiny_model("bert")
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "mine.txt").write_text("\n".join(TEXTS))
    words = ["shrink", str(tmp_path / "model"), "--corpus", f"mine={tmp_path / 'mine.txt'}", "--size", "95", "--alphabet", "all"]
    assert main([*words, "--output", str(tmp_path / "a"), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["vocabulary"]["ledger"]
    assert row["bits_texts"] >= 1 and 0 < row["bits_before"] != row["bits_after"] > 0
    assert f"{row['bits_after']:.3f}" in (tmp_path / "a" / "README.md").read_text()
    assert main([*words, "--output", str(tmp_path / "b"), "--bits-texts", "0"]) == 0
    assert "bits per character" not in capsys.readouterr().out
    assert main([*words, "--output", str(tmp_path / "c"), "--bits-texts", "-1"]) == 2
    assert "--bits-texts -1 is no number of texts" in capsys.readouterr().err
    assert isinstance(compare_bits((model, model), (tokenizer, tokenizer), TEXTS[:3]), Bits)
