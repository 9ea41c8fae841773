"""Checkpoints and tokenizers of other people's making: what they say of themselves stays, and what would be lost is named."""

import json
import os
from pathlib import Path

import pytest
import transformers
import vocab_helpers
from safetensors import safe_open
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hf_glmd import VocabShrinker
from hf_glmd.errors import UsageError
from hf_glmd.models.loading import load_checkpoint, load_word_model
from hf_glmd.shrinking.command import ShrinkOptions, shrink_checkpoint

DATA = os.environ.get("HF_GLMD_TEST_DATA")


def checkpoint(folder: Path, model, tokenizer=None) -> Path:
    model.save_pretrained(folder)
    (tokenizer or vocab_helpers.generic_tokenizer()).save_pretrained(folder)
    return folder


def corpus(folder: Path) -> str:
    file = folder / "corpus.txt"
    file.write_text("\n".join(vocab_helpers.texts(60)), encoding="utf-8")
    return str(file)


def shrunk(source: Path, folder: Path, **options) -> Path:
    output = folder / "small"
    settings = {"size": 0.8, "corpus": [corpus(folder)], **options}
    shrink_checkpoint(ShrinkOptions(model=str(source), output=str(output), **settings), progress=False)
    return output


@pytest.mark.parametrize("trimmed", [True, False])
def test_truncation_and_padding_of_the_file_stay_whatever_calls_set(trimmed, tmp_path):
    tokenizer = vocab_helpers.generic_tokenizer()
    backend = tokenizer.backend_tokenizer
    if trimmed:
        backend.enable_truncation(max_length=211)
        backend.enable_padding(pad_id=tokenizer.pad_token_id, pad_token=tokenizer.pad_token, length=7)
    before = json.loads(backend.to_str())
    source = checkpoint(tmp_path / "bert", vocab_helpers.tiny_model("bert"), tokenizer)
    output = shrunk(source, tmp_path)
    written = json.loads((output / "tokenizer.json").read_text())
    assert written["truncation"] == before["truncation"]
    assert (written["padding"] or {}).get("strategy") == (before["padding"] or {}).get("strategy")
    long = " ".join(vocab_helpers.texts(40))
    ids = Tokenizer.from_file(str(output / "tokenizer.json")).encode(long).ids
    assert len(ids) == 211 if trimmed else len(ids) > 211
    # In Python, too: a call between cutting and saving.
    vocab = VocabShrinker(tokenizer).count(vocab_helpers.texts(60), progress=False).shrink(size=0.8)
    vocab.tokenizer("a text", truncation=True, max_length=5, padding="max_length")
    vocab.save_pretrained(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "tokenizer.json").read_text())["truncation"] == before["truncation"]


@pytest.mark.skipif(not DATA, reason="HF_GLMD_TEST_DATA names no folder with the real tokenizer")
def test_the_real_bert_tokenizer_reads_long_texts(tmp_path):
    folder = Path(DATA or "") / "tokenizers" / "bert-base-uncased"
    text = "the quick brown fox jumps over the lazy dog again and again " * 20
    vocab = VocabShrinker(str(folder)).count([text, "a cat sat"] * 5, progress=False).shrink(size=0.5)
    vocab.verify([text], progress=False)
    vocab.save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "tokenizer.json").read_text())
    assert raw["truncation"] is None and len(Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode(text).ids) > 215


def keys(folder: Path) -> set[str]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return set(file.keys())


@pytest.mark.parametrize("architectures", [None, [], ["BertForSomethingOfMine"], "missing"])
def test_the_head_stays_where_the_config_names_no_class(architectures, tmp_path):
    source = checkpoint(tmp_path / "bert", vocab_helpers.tiny_model("bert"))
    config = json.loads((source / "config.json").read_text())
    if architectures == "missing":
        del config["architectures"]
    else:
        config["architectures"] = architectures
    (source / "config.json").write_text(json.dumps(config))
    assert type(load_checkpoint(source)).__name__ == "BertForMaskedLM"
    assert keys(shrunk(source, tmp_path)) == keys(source)


def test_tensors_that_no_class_takes_are_named(tmp_path):
    from safetensors.torch import load_file, save_file

    source = checkpoint(tmp_path / "bert", vocab_helpers.tiny_model("bert"))
    weights = load_file(source / "model.safetensors")
    save_file(
        weights | {"my_head.weight": weights["cls.predictions.bias"].clone()}, source / "model.safetensors", {"format": "pt"}
    )
    config = json.loads((source / "config.json").read_text()) | {"architectures": None}
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="does not take my_head.weight. Write the class"):
        load_checkpoint(source)


def test_a_head_that_was_never_trained_is_refused(tmp_path):
    bare = transformers.BertModel(vocab_helpers.tiny_model("bert").config)
    source = checkpoint(tmp_path / "bert", bare)
    config = json.loads((source / "config.json").read_text()) | {"architectures": ["BertForMaskedLM"]}
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="lacks .* weights of BertForMaskedLM, which would be random: cls.predictions"):
        load_word_model(source)


def unigram_with(pieces: list[str]) -> PreTrainedTokenizerFast:
    backend = vocab_helpers.unigram_backend()
    data = json.loads(backend.to_str())
    data["model"]["vocab"] += [[piece, -20.0] for piece in pieces]
    return vocab_helpers.generic_tokenizer(Tokenizer.from_str(json.dumps(data)))


def test_sentinels_stay_wherever_they_stand():
    marks = [f"▁<extra_id_{n}>" for n in range(5)] + ["<2de>", ">>deu<<", "<|im_start|>"]
    vocab = (
        VocabShrinker(unigram_with([*marks, "<unused17>", "zzz"])).count(vocab_helpers.texts(60), progress=False).shrink(size=0.9)
    )
    kept = vocab.tokenizer.get_vocab()
    assert set(marks) <= set(kept) and "zzz" not in kept and "<unused17>" not in kept
    # One of them has the lowest score, for which it stays anyway.
    assert vocab.report.n_control == len(marks) - 1 and set(vocab.report.control_examples) < set(marks)


def test_pieces_that_decode_with_blanks_between_them_are_compared_without(tmp_path):
    words = ["walk", "walking", "w", "a", "l", "k", "i", "n", "g", "wa", "lk", "in", "ing", "[UNK]"]
    merges = [("w", "a"), ("l", "k"), ("wa", "lk"), ("i", "n"), ("in", "g"), ("walk", "ing")]
    backend = Tokenizer(models.BPE(vocab={word: n for n, word in enumerate(words)}, merges=merges, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")
    vocab = VocabShrinker(tokenizer).count(["walk walk ing"] * 9 + ["walking"], progress=False).shrink(size=len(words) - 1)
    assert "walking" not in vocab.tokenizer.get_vocab()
    assert vocab.verify(["walking walk"], progress=False).texts_same_decoded == 1


_SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
_TEXT = _SIZES | {"vocab_size": vocab_helpers.V, "max_position_embeddings": 64}
_IMAGE = _SIZES | {"image_size": 8, "patch_size": 4}


def clip():
    text = _TEXT | {"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3}  # the default ones lie behind this small vocabulary
    return transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=_IMAGE, projection_dim=8))


def siglip():
    return transformers.SiglipModel(transformers.SiglipConfig(text_config=_TEXT, vision_config=_IMAGE))


def whisper():
    sizes = dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 2) | {"d_model": 16, "num_mel_bins": 4}
    sizes |= dict.fromkeys(("encoder_layers", "decoder_layers"), 1) | dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 32)
    ids = {"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 2}
    config = transformers.WhisperConfig(
        vocab_size=vocab_helpers.V, max_target_positions=80, max_source_positions=8, begin_suppress_tokens=None, **sizes, **ids
    )
    return transformers.WhisperForConditionalGeneration(config)


def trocr():
    decoder = transformers.BertConfig(**_TEXT, is_decoder=True, add_cross_attention=True)
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(transformers.ViTConfig(**_IMAGE), decoder)
    config.decoder_start_token_id, config.pad_token_id = 0, 1
    return transformers.VisionEncoderDecoderModel(config)


def blip():
    ids = {"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3, "sep_token_id": 3}
    text, image = _TEXT | ids | {"encoder_hidden_size": 16}, _IMAGE | {"hidden_act": "gelu"}
    return transformers.BlipForConditionalGeneration(transformers.BlipConfig(text_config=text, vision_config=image))


def speech_to_text():
    sizes = dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 2) | {"d_model": 16}
    sizes |= dict.fromkeys(("encoder_layers", "decoder_layers"), 1) | dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 32)
    sizes |= {"input_feat_per_channel": 4, "conv_channels": 16, "max_target_positions": 80, "max_source_positions": 80}
    ids = {"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 2}
    config = transformers.Speech2TextConfig(vocab_size=vocab_helpers.V, **sizes, **ids)
    return transformers.Speech2TextForConditionalGeneration(config)


def dual_encoder():
    config = transformers.VisionTextDualEncoderConfig.from_vision_text_configs(
        transformers.ViTConfig(**_IMAGE), transformers.BertConfig(**_TEXT), projection_dim=8
    )
    return transformers.VisionTextDualEncoderModel(config)


@pytest.mark.parametrize("build", [clip, siglip, whisper, trocr, blip, speech_to_text, dual_encoder])
def test_models_that_also_see_or_hear_are_verified_on_what_reads_text(build):
    model = build().eval()
    tokenizer = vocab_helpers.generic_tokenizer()
    vocab = VocabShrinker(tokenizer).count(vocab_helpers.texts(60), progress=False).shrink(size=0.8, model=model)
    report = vocab.verify(vocab_helpers.texts(9, seed=3), model=model, progress=False)
    assert report.model_texts > 0 and report.max_hidden_difference is not None


def test_tokens_without_a_row_are_removed_with_a_note(tmp_path, caplog):
    tokenizer = vocab_helpers.generic_tokenizer()
    model = vocab_helpers.tiny_model("bert")
    tokenizer.add_special_tokens({"extra_special_tokens": ["<image_soft_token>"]})
    source = checkpoint(tmp_path / "gemma", model, tokenizer)
    output = shrunk(source, tmp_path)
    assert "1 tokens have no row" in caplog.text and "<image_soft_token>" in caplog.text
    report = json.loads((output / "vocab_report.json").read_text())
    assert report["without_row"] == ["<image_soft_token>"]
    small = transformers.AutoTokenizer.from_pretrained(output)
    assert "<image_soft_token>" not in small.get_vocab() and len(small) == load_word_model(output).config.vocab_size


def test_a_tokenizer_of_another_model_is_still_refused(tmp_path):
    model = vocab_helpers.tiny_model("bert", vocab_size=vocab_helpers.V - 80)
    with pytest.raises(UsageError, match="they do not belong together"):
        shrunk(checkpoint(tmp_path / "bert", model), tmp_path)


def test_characters_that_become_unknown_are_counted_and_named(tmp_path):
    shrinker = VocabShrinker(vocab_helpers.generic_tokenizer()).count(["walk"] * 9, progress=False)
    seen, everything = (shrinker.shrink(size=0.9, alphabet=alphabet).report for alphabet in ("none", "all"))
    assert everything.characters_lost == 0
    vocab = shrinker.shrink(size=60, alphabet="none")
    kept, before = vocab.tokenizer.get_vocab(), shrinker.tokenizer.get_vocab()
    lost = {token.removeprefix("##") for token in before if len(token.removeprefix("##")) == 1 and token not in kept}
    assert vocab.report.characters_lost == len(lost) > 0 and "Latin" in vocab.report.scripts_lost and seen
    assert f"{len(lost):,} characters that the original spells" in vocab.card(tmp_path)
