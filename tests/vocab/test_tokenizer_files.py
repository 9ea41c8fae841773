from __future__ import annotations

import json
import logging

import pytest
import vocab_helpers as helpers
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from hf_glmd.errors import UsageError
from hf_glmd.shrinking.shrinker import VocabShrinker
from hf_glmd.vocab.mapped_tokenizer import load_tokenizer
from hf_glmd.vocab.tokenizer_files import template_texts, write_tokenizer

TEXTS = helpers.texts()
SENTINELS = [f"<extra_id_{number}>" for number in range(7)]
CLASSES = {
    "LlamaTokenizer": ("bpe fallback", {"unk_token": "[UNK]", "bos_token": "[CLS]", "eos_token": "[SEP]"}),
    "GPT2Tokenizer": ("bpe bytes", {"unk_token": "[UNK]", "bos_token": "[CLS]", "eos_token": "[SEP]"}),
    "Qwen2Tokenizer": ("bpe bytes", {"unk_token": "[UNK]", "pad_token": "[SEP]", "eos_token": "[SEP]"}),
    "RobertaTokenizer": (
        "bpe bytes",
        {"bos_token": "[CLS]", "eos_token": "[SEP]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[UNK]"}
        | {"unk_token": "[UNK]", "mask_token": "[MASK]"},
    ),
    "XLMRobertaTokenizer": (
        "unigram",
        {"bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>"}
        | {"unk_token": "[UNK]", "mask_token": "<mask>"},
    ),
    "CLIPTokenizer": ("bpe suffix", {"bos_token": "[CLS]", "eos_token": "[SEP]", "unk_token": "[UNK]", "pad_token": "[SEP]"}),
    "BertTokenizer": ("wordpiece", {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}),
}


def t5_backend() -> Tokenizer:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((c, -4.0 - ord(c) / 99) for c in "abcdefghijklmnop")]
    pieces += [("▁abc", -3.0), ("def", -3.5), ("▁gh", -4.5), ("ijk", -5.5), ("lmnop", -6.5)]
    pieces += [(token, 0.0) for token in SENTINELS[::-1]]
    backend = Tokenizer(models.Unigram(pieces, unk_id=2))
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    backend.add_special_tokens(["<pad>", "</s>", "<unk>", *SENTINELS])
    return backend


def loaded_as(name, backend, folder, **config):
    folder.mkdir()
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name} | config))
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_classes_that_build_their_own_tokenizer(name, tmp_path):
    """Whatever class is written, the loaded tokenizer has the ids of the small one; and the class stays where it can."""
    kind, names = CLASSES[name]
    tokenizer = loaded_as(name, helpers.BACKENDS[kind](), tmp_path / "before", **names)
    assert type(tokenizer).__name__ == name
    shrinker = VocabShrinker(tokenizer).count([*TEXTS, "é"], progress=False)
    vocab = shrinker.shrink(shrinker.counts.size - 30)
    vocab.verify([*TEXTS, "MiXed 1234 é [MASK] <mask>"], progress=False)
    vocab.save_pretrained(tmp_path / "after")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "after")
    assert type(loaded).__name__ == type(vocab.tokenizer).__name__ == name
    raw = Tokenizer.from_file(str(tmp_path / "after" / "tokenizer.json"))
    for one in (loaded, vocab.tokenizer):
        assert one(TEXTS)["input_ids"] == [encoding.ids for encoding in raw.encode_batch(TEXTS)]
        assert one.special_tokens_map == tokenizer.special_tokens_map
        assert one.model_input_names == tokenizer.model_input_names and len(one) == vocab.report.size


def test_the_sentinels_of_t5_stay_as_many_as_they_were(tmp_path):
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = loaded_as("T5Tokenizer", t5_backend(), tmp_path / "before", extra_ids=7, **names)
    assert type(tokenizer).__name__ == "T5Tokenizer" and len(tokenizer) == t5_backend().get_vocab_size()
    vocab = VocabShrinker(tokenizer).count(["abc def gh", "xyz abc"], progress=False).shrink(size=27, alphabet="none")
    vocab.save_pretrained(tmp_path / "after")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "after")
    assert type(loaded).__name__ == "T5Tokenizer" and len(loaded) == 27
    assert loaded.convert_tokens_to_ids(SENTINELS) == list(range(26, 19, -1))
    text = "abc <extra_id_1> def z"
    assert loaded.convert_ids_to_tokens(loaded(text)["input_ids"]) == tokenizer.convert_ids_to_tokens(
        tokenizer(text)["input_ids"]
    )
    assert loaded.unk_token_id == 2 and set(SENTINELS) < set(loaded.all_special_tokens)


def test_a_class_that_drops_ignore_merges_is_not_written(tmp_path, caplog):
    tokenizer = helpers.fast_tokenizer("bpe whole words")
    tokenizer.__class__ = type(loaded_as("GPT2Tokenizer", helpers.bpe_backend(), tmp_path / "x", **CLASSES["GPT2Tokenizer"][1]))
    with caplog.at_level(logging.WARNING):
        loaded = write_tokenizer(tokenizer, tmp_path / "saved", ["walk turnwork"])
    assert "Loaded as GPT2Tokenizer" in caplog.text and type(loaded) is PreTrainedTokenizerFast
    assert "Ġturnwork" in AutoTokenizer.from_pretrained(tmp_path / "saved").tokenize("walk turnwork")


def test_a_class_that_cannot_be_loaded_is_not_written(tmp_path, caplog):
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = loaded_as("T5Tokenizer", t5_backend(), tmp_path / "before", extra_ids=7, **names)
    tokenizer.init_kwargs["additional_special_tokens"] = SENTINELS[:3]  # T5Tokenizer wants to have all seven named
    tokenizer.save_pretrained = lambda folder: with_list(type(tokenizer).save_pretrained(tokenizer, folder), folder)

    def with_list(_, folder):
        config = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps(config | {"additional_special_tokens": SENTINELS[:3]}))

    with caplog.at_level(logging.WARNING):
        loaded = write_tokenizer(tokenizer, tmp_path / "after", ["abc"])
    assert "cannot be loaded" in caplog.text and type(loaded) is PreTrainedTokenizerFast and len(loaded) == len(tokenizer)


def test_the_config_of_a_model_may_force_a_class(tmp_path):
    tokenizer = helpers.fast_tokenizer("bpe bytes")
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()  # a Qwen2Tokenizer has its own
    shrinker = VocabShrinker(tokenizer).count(TEXTS, progress=False)
    with pytest.raises(UsageError, match="Beside a model of type 'qwen2' AutoTokenizer loads any tokenizer as Qwen2Tokenizer"):
        write_tokenizer(tokenizer, tmp_path / "qwen", TEXTS, model_type="qwen2")
    for model_type in ("modernbert", "llama", "gpt2", None):
        folder = tmp_path / str(model_type)
        write_tokenizer(tokenizer, folder, TEXTS, model_type=model_type)
        assert not (folder / "config.json").exists()
        (folder / "config.json").write_text(json.dumps({"model_type": model_type or "bert"}))
        assert AutoTokenizer.from_pretrained(folder)(TEXTS)["input_ids"] == tokenizer(TEXTS)["input_ids"]
    plain = helpers.fast_tokenizer("bpe bytes")
    shrinker = VocabShrinker(plain).count(TEXTS, progress=False)
    config = helpers.tiny_model("gpt2", vocab_size=shrinker.counts.size).config
    assert type(shrinker.shrink(300, model=config).tokenizer) is PreTrainedTokenizerFast


def test_a_config_that_is_in_the_folder_counts_and_stays(tmp_path):
    tokenizer = helpers.fast_tokenizer("bpe bytes")
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    with pytest.raises(UsageError, match="Qwen2Tokenizer"):
        write_tokenizer(tokenizer, tmp_path, TEXTS)
    assert (tmp_path / "config.json").read_text() == '{"model_type": "qwen2"}'


def test_tokens_set_after_loading_are_found_again(tmp_path):
    tokenizer = helpers.generic_tokenizer(extra_special_tokens=["walk"])
    tokenizer.add_tokens([AddedToken("zig zag", lstrip=True)])
    loaded = write_tokenizer(tokenizer, tmp_path, TEXTS)
    assert loaded("walk zig zag talk")["input_ids"] == tokenizer("walk zig zag talk")["input_ids"]
    assert loaded.all_special_tokens == tokenizer.all_special_tokens and "walk" in loaded.all_special_tokens


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "damaged: copy it once more"),
        ("{}", "damaged"),
        ("[1, 2]", "damaged"),
        ("not json", "damaged"),
        ("half", "damaged"),
        ("no vocabulary", "damaged"),
    ],
)
@pytest.mark.parametrize("name", ["BertTokenizer", "PreTrainedTokenizerFast", "LlamaTokenizer", "GPT2Tokenizer"])
def test_damaged_files_give_one_clear_error(name, content, message, tmp_path):
    kind = {"BertTokenizer": "wordpiece", "LlamaTokenizer": "bpe fallback"}.get(name, "bpe bytes")
    whole = helpers.BACKENDS[kind]().to_str()
    text = {"half": whole[: len(whole) // 2], "no vocabulary": whole.replace('"vocab"', '"vokab"')}.get(content, content)
    (tmp_path / "tokenizer.json").write_text(text, encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name}))
    with pytest.raises(UsageError, match=message) as error:
        load_tokenizer(tmp_path)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)
    with pytest.raises(UsageError):
        VocabShrinker(tmp_path)


def test_a_folder_without_tokenizer_json(tmp_path):
    with pytest.raises(UsageError, match="Put tokenizer.json there"):
        load_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')  # for which transformers makes up five special tokens
    with pytest.raises(UsageError, match="tokenizer.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    with pytest.raises(UsageError, match="tokenizer.json"):
        load_tokenizer(tmp_path)


def test_tokenizers_written_in_python_only_are_refused(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "ByT5Tokenizer"}')
    with pytest.raises(UsageError, match="ByT5Tokenizer has no fast backend"):
        VocabShrinker(tmp_path)


def test_the_literal_texts_of_a_template():
    tokenizer = helpers.generic_tokenizer()
    assert template_texts(tokenizer) == []
    tokenizer.chat_template = "<|start|>{% if x == 'a\\n' %}{{ \"say \" + x }}{% endif %}\n"
    assert template_texts(tokenizer) == ["<|start|>", "a\n", "say ", "system", "user", "assistant", "tool"]
