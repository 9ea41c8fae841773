from __future__ import annotations

import copy
import json
import lzma
import os
import pickle
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import vocab_helpers as helpers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    DataCollatorWithPadding,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    pipeline,
)

from hf_glmd.data.collators import WordPredictionCollator
from hf_glmd.data.packing import pack_blocks
from hf_glmd.errors import UsageError
from hf_glmd.models.surgery import resize_model
from hf_glmd.shrinking.shrinker import VocabShrinker
from hf_glmd.tasks.cloze import ClozeTask
from hf_glmd.utils.files import SUMS
from hf_glmd.vocab.mapped_tokenizer import ORIGINAL_FOLDER, MappedTokenizer
from hf_glmd.vocab.vocab_map import VocabMap, nearest_kept

V, SIZE = helpers.V, 113  # primes
TEXTS = helpers.texts(40)
DATA = os.environ.get("HF_GLMD_TEST_DATA")


def random_map(tokenizer: Any, removed: str, size: int = SIZE, keep: tuple[str, ...] = ()) -> VocabMap:
    """Keeps what has to be kept and random others, so that common words are removed too."""
    rows = len(tokenizer)
    fixed = sorted({*tokenizer.all_special_ids, *tokenizer.convert_tokens_to_ids(list(keep))})
    rng = np.random.default_rng(0)
    others = rng.choice(np.setdiff1d(np.arange(rows), fixed), size - len(fixed), replace=False)
    kept_ids = np.sort(np.concatenate([fixed, others]).astype(np.int64))
    if removed == "nearest":
        embeddings = torch.randn(rows, 8, generator=torch.Generator().manual_seed(0))
        return VocabMap(kept_ids, rows, removed, nearest_kept(embeddings, kept_ids, special_ids=tokenizer.all_special_ids), "dot")
    small = np.full(rows, np.searchsorted(kept_ids, tokenizer.unk_token_id))
    small[kept_ids] = np.arange(size)
    return VocabMap(kept_ids, rows, removed, small)


def mapped(removed: str = "nearest", tokenizer: Any = None, **options: Any) -> MappedTokenizer:
    tokenizer = tokenizer or helpers.generic_tokenizer()
    return MappedTokenizer(tokenizer, random_map(tokenizer, removed, **options))


def causal_tokenizer() -> PreTrainedTokenizerFast:
    """Words between spaces, no special tokens added, a chat template."""
    words = ["<end>", "<unk>", "User", ":", "Bot", *(f"w{number}" for number in range(102))]
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.decoder = decoders.Fuse()
    template = "{% for message in messages %}{{ message.role }} : {{ message.content }} {% endfor %}"
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<end>", pad_token="<end>", unk_token="<unk>", chat_template=template
    )


@pytest.mark.parametrize("removed", ["nearest", "unk"])
def test_every_way_to_call_gives_the_mapped_ids_of_the_original(removed, tmp_path):
    original = helpers.bert_tokenizer(tmp_path)
    tokenizer = mapped(removed, original)
    to_small = tokenizer.vocab_map.to_small
    calls: list[tuple[tuple, dict]] = [
        ((TEXTS[0],), {}),
        ((TEXTS,), {}),
        ((TEXTS[0], TEXTS[1]), {}),
        ((TEXTS[:3], TEXTS[3:6]), {"add_special_tokens": False}),
        ((TEXTS,), {"padding": True, "return_tensors": "pt"}),
        ((TEXTS,), {"padding": "max_length", "truncation": True, "max_length": 7, "return_tensors": "np"}),
        ((TEXTS[:2],), {"padding": True, "padding_side": "left", "pad_to_multiple_of": 8}),
        ((TEXTS[0].split(),), {"is_split_into_words": True}),
        ((TEXTS[:3],), {"truncation": True, "max_length": 6, "stride": 2, "return_overflowing_tokens": True}),
        ((["", "[MASK] walking"],), {"return_special_tokens_mask": True, "return_offsets_mapping": True, "return_length": True}),
        (("[MASK]",), {"split_special_tokens": True}),
    ]
    for inputs, options in calls:
        ours, theirs = tokenizer(*inputs, **options), original(*inputs, **options)
        assert type(ours) is type(theirs) and ours.keys() == theirs.keys()
        for name in theirs:
            expected = to_small(theirs[name]) if name == "input_ids" else theirs[name]
            assert type(ours[name]) is type(expected), (name, options)
            same = ours[name] == expected
            assert same if isinstance(same, bool) else same.all(), (name, options)
        assert ours.tokens() == theirs.tokens() and ours.word_ids() == theirs.word_ids()
    assert not tokenizer.vocab_map.keeps(original(TEXTS)["input_ids"][0]).all(), "nothing is mapped in these texts"
    assert tokenizer.encode(TEXTS[0], TEXTS[1]) == tokenizer(TEXTS[0], TEXTS[1])["input_ids"]
    both = tokenizer(TEXTS[0], text_target=TEXTS[1])
    assert both["labels"] == tokenizer(TEXTS[1])["input_ids"]


def test_the_ids_that_the_teacher_reads_come_along_on_request():
    tokenizer = mapped()
    original, pad = tokenizer.original, tokenizer.original.pad_token_id
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt", return_original_ids=True)
    assert torch.equal(batch["original_input_ids"], original(TEXTS, padding=True, return_tensors="pt")["input_ids"])
    assert "original_input_ids" not in tokenizer(TEXTS)
    rows = [tokenizer(text, return_original_ids=True) for text in TEXTS]
    for side in ("right", "left"):
        collated = DataCollatorWithPadding(_with_side(tokenizer, side))(rows)
        expected = original(TEXTS, padding=True, padding_side=side, return_tensors="pt")["input_ids"]
        assert torch.equal(collated["original_input_ids"], expected) and (expected == pad).any()
        assert torch.equal(collated["input_ids"], tokenizer.vocab_map.to_small(expected))


def _with_side(tokenizer: MappedTokenizer, side: str) -> MappedTokenizer:
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.padding_side = side
    return tokenizer


def test_small_ids_are_read_as_the_kept_tokens():
    tokenizer = mapped()
    original, kept_ids = tokenizer.original, tokenizer.vocab_map.kept_ids.tolist()
    names = original.convert_ids_to_tokens(kept_ids)
    assert tokenizer.convert_ids_to_tokens(range(SIZE)) == names == [tokenizer.convert_ids_to_tokens(i) for i in range(SIZE)]
    assert tokenizer.convert_ids_to_tokens(torch.arange(SIZE)) == names
    assert tokenizer.convert_ids_to_tokens(np.arange(3)) == names[:3]
    assert tokenizer.convert_tokens_to_ids(names) == list(range(SIZE))
    ids = tokenizer(TEXTS)["input_ids"]
    expected = original.batch_decode(tokenizer.vocab_map.to_original(ids))
    assert tokenizer.batch_decode(ids) == expected != original.batch_decode(original(TEXTS)["input_ids"])
    assert tokenizer.decode(torch.tensor(ids[0])) == tokenizer.decode(np.array(ids[0])) == tokenizer.decode(ids[0]) == expected[0]
    assert tokenizer.decode(ids[0][1]) == original.decode(kept_ids[ids[0][1]])
    assert tokenizer.decode(ids[0], skip_special_tokens=True) == expected[0].removeprefix("[CLS] ").removesuffix(" [SEP]")
    skipped = tokenizer.convert_ids_to_tokens(ids[0], skip_special_tokens=True)
    assert skipped == tokenizer.convert_ids_to_tokens(ids[0][1:-1])
    assert tokenizer.convert_tokens_to_string(names[:5]) == original.convert_tokens_to_string(names[:5])
    with pytest.raises(UsageError, match=f"{SIZE} is not an id of the small vocabulary"):
        tokenizer.decode([SIZE])


def test_a_removed_token_reads_as_the_one_that_stands_for_it():
    tokenizer = mapped()
    for text in TEXTS:
        tokens = tokenizer.tokenize(text)
        assert tokens == tokenizer.original.tokenize(text)
        assert tokenizer.convert_tokens_to_ids(tokens) == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_tokens_to_ids("no such token") == tokenizer.unk_token_id


def test_the_vocabulary_has_kept_tokens_only_each_under_its_own_id():
    tokenizer = mapped()
    vocabulary = tokenizer.get_vocab()
    assert sorted(vocabulary.values()) == list(range(SIZE)) and len(tokenizer) == tokenizer.vocab_size == SIZE and tokenizer
    whole = tokenizer.original.get_vocab()
    assert {token: whole[token] for token in vocabulary} == {
        t: int(tokenizer.vocab_map.kept_ids[i]) for t, i in vocabulary.items()
    }
    assert tokenizer.vocab == vocabulary
    added = {token: vocabulary[token] for token in ("[PAD]", *helpers.SPECIAL)}
    assert tokenizer.get_added_vocab() == tokenizer.added_tokens_encoder == added
    assert {index: token.content for index, token in tokenizer.added_tokens_decoder.items()} == {i: t for t, i in added.items()}


def test_special_ids_are_small_ids():
    tokenizer = mapped()
    original = tokenizer.original
    assert original.mask_token_id != tokenizer.mask_token_id
    for name in ("pad", "unk", "cls", "sep", "mask"):
        assert getattr(tokenizer, f"{name}_token") == f"[{name.upper()}]"
        small = tokenizer.vocab_map.to_small(getattr(original, f"{name}_token_id"))
        assert getattr(tokenizer, f"{name}_token_id") == tokenizer.convert_tokens_to_ids(f"[{name.upper()}]") == small
    assert tokenizer.bos_token is None and tokenizer.bos_token_id is None
    assert tokenizer.all_special_ids == tokenizer.vocab_map.to_small(original.all_special_ids)
    assert tokenizer.all_special_tokens == original.all_special_tokens
    assert tokenizer.special_tokens_map == original.special_tokens_map
    ids = tokenizer(TEXTS[0])["input_ids"]
    assert tokenizer.get_special_tokens_mask(ids, already_has_special_tokens=True) == [1, *[0] * (len(ids) - 2), 1]
    assert tokenizer.num_special_tokens_to_add(pair=True) == 3
    original_extra = helpers.generic_tokenizer(extra_special_tokens=["walk"])
    extra = mapped(tokenizer=original_extra)
    assert extra.extra_special_tokens_ids == [extra.convert_tokens_to_ids("walk")] and "walk" in extra.get_vocab()


def test_settings_are_the_originals_and_the_given_tokenizer_is_left_alone():
    given = helpers.generic_tokenizer(padding_side="left", truncation_side="left", model_max_length=9)
    tokenizer = mapped(tokenizer=given)
    assert (tokenizer.padding_side, tokenizer.truncation_side, tokenizer.model_max_length) == ("left", "left", 9)
    assert tokenizer.is_fast and tokenizer.max_len_single_sentence == 7 and tokenizer.name_or_path == given.name_or_path
    tokenizer.padding_side = "right"
    tokenizer.model_input_names = ["input_ids"]
    tokenizer.chat_template = "{{ messages }}"
    assert tokenizer(["walk", "walk talk"], padding=True)["input_ids"][0][-1] == tokenizer.pad_token_id
    assert tokenizer("walk").keys() == {"input_ids"} == set(tokenizer.original.model_input_names)
    assert tokenizer.original.padding_side == "right" and tokenizer.original.chat_template == "{{ messages }}"
    assert given.padding_side == "left" and given.chat_template is None and "attention_mask" in given("walk")
    with pytest.raises(AttributeError, match="taste"):
        _ = tokenizer.taste


def test_special_tokens_may_be_set_to_kept_tokens_only():
    tokenizer = mapped(keep=("walk",))
    removed = next(token for token, i in tokenizer.original.get_vocab().items() if not tokenizer.vocab_map.keeps(i))
    tokenizer.pad_token = "walk"
    assert (
        tokenizer.pad_token_id
        == tokenizer.convert_tokens_to_ids("walk")
        == tokenizer(["a", "a b"], padding=True)["input_ids"][0][-1]
    )
    tokenizer.pad_token_id = tokenizer.mask_token_id
    assert tokenizer.pad_token == tokenizer.original.pad_token == "[MASK]"
    assert tokenizer.add_special_tokens({"eos_token": "[SEP]"}) == 0 and tokenizer.eos_token_id == tokenizer.sep_token_id
    for change in (
        lambda: setattr(tokenizer, "pad_token", removed),
        lambda: setattr(tokenizer, "extra_special_tokens", ["[SEP]", removed]),
        lambda: tokenizer.add_special_tokens({"bos_token": "<new>"}),
    ):
        with pytest.raises(UsageError, match="not a token that was kept"):
            change()
    with pytest.raises(UsageError, match="'<new>' cannot be added"):
        tokenizer.add_tokens(["<new>"])
    assert tokenizer.pad_token == "[MASK]" and tokenizer.bos_token is None and len(tokenizer) == SIZE


def test_what_knows_only_original_ids_is_refused():
    tokenizer = mapped()
    with pytest.raises(AttributeError, match="original ids only: use .original.backend_tokenizer"):
        _ = tokenizer.backend_tokenizer
    with pytest.raises(UsageError, match="cannot be counted or cut"):
        VocabShrinker(tokenizer)
    tokenizer.original.get_sentinel_token_ids = lambda: [V - 1]  # as T5Tokenizer has
    tokenizer.original.lang_code_to_id = {"en": tokenizer.original.cls_token_id, "none": None}
    with pytest.raises(AttributeError, match="get_sentinel_token_ids knows original ids only"):
        tokenizer.get_sentinel_token_ids()
    assert not hasattr(tokenizer, "get_sentinel_token_ids")
    assert tokenizer.lang_code_to_id == {"en": tokenizer.cls_token_id, "none": None}


def test_a_map_that_does_not_fit_is_refused():
    original = helpers.generic_tokenizer()
    vocab_map = random_map(original, "nearest")
    with pytest.raises(UsageError, match="removed='resegment'"):
        MappedTokenizer(original, helpers.tiny_map())
    with pytest.raises(UsageError, match="already"):
        MappedTokenizer(MappedTokenizer(original, vocab_map), vocab_map)
    grown = helpers.generic_tokenizer()
    grown.add_tokens(["walkabout"])
    with pytest.raises(UsageError, match=f"{V + 1} rows, the map is for {V}"):
        MappedTokenizer(grown, vocab_map)
    without_mask = np.setdiff1d(vocab_map.kept_ids, original.mask_token_id)
    small = np.zeros(V, dtype=np.int64)
    small[without_mask] = np.arange(without_mask.size)
    with pytest.raises(UsageError, match=r"'\[MASK\]' is not a token that was kept"):
        MappedTokenizer(original, VocabMap(without_mask, V, "nearest", small))


def test_it_can_be_copied_and_sent_to_other_processes(monkeypatch):
    # Dataset.map changes both for its processes, and tokenizers would stay on one core in all tests after this one.
    monkeypatch.setattr(os, "environ", os.environ)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    tokenizer = mapped()
    expected = tokenizer(TEXTS)["input_ids"]
    for other in (copy.copy(tokenizer), copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer))):
        assert type(other) is MappedTokenizer and other(TEXTS)["input_ids"] == expected
    rows = datasets.Dataset.from_dict({"text": TEXTS})
    options: dict[str, Any] = {"fn_kwargs": {"tokenizer": tokenizer}, "load_from_cache_file": False}
    alone, shared = (rows.map(_ids, num_proc=number, **options) for number in (None, 2))
    assert alone["input_ids"][:] == shared["input_ids"][:] == expected
    assert datasets.fingerprint.Hasher.hash(tokenizer) == datasets.fingerprint.Hasher.hash(mapped())
    assert datasets.fingerprint.Hasher.hash(tokenizer) != datasets.fingerprint.Hasher.hash(mapped("unk"))


def _ids(row: dict[str, str], tokenizer: MappedTokenizer) -> dict[str, list[int]]:
    return {"input_ids": tokenizer(row["text"])["input_ids"]}


def test_saved_and_loaded_it_is_the_same(tmp_path):
    tokenizer = mapped(tokenizer=helpers.bert_tokenizer(tmp_path / "bert"))
    tokenizer.padding_side, tokenizer.chat_template = "left", "{{ messages[0].content }}"
    files = tokenizer.save_pretrained(tmp_path / "saved")
    assert sorted(map(str, files)) == sorted(str(path) for path in (tmp_path / "saved").rglob("*") if path.is_file())
    assert {path.name for path in (tmp_path / "saved").iterdir()} == {
        ORIGINAL_FOLDER,
        "tokenizer.json",
        "vocab_map.safetensors",
        SUMS,
    }
    assert {path.name for path in tmp_path.iterdir()} == {"bert", "saved"}  # nothing half-written beside it
    loaded = MappedTokenizer.from_pretrained(tmp_path / "saved")
    assert type(loaded.original).__name__ == "BertTokenizer" and loaded.vocab_map == tokenizer.vocab_map
    assert (loaded.padding_side, loaded.chat_template) == ("left", "{{ messages[0].content }}")
    for options in ({}, {"padding": True}, {"return_original_ids": True}):
        assert loaded(TEXTS, **options) == tokenizer(TEXTS, **options)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    loaded.save_pretrained(tmp_path / "again")
    assert MappedTokenizer.from_pretrained(str(tmp_path / "again"), padding_side="right").padding_side == "right"
    # Whoever wants the original ids finds them where the name says so.
    assert AutoTokenizer.from_pretrained(tmp_path / "saved" / ORIGINAL_FOLDER)(TEXTS) == tokenizer.original(TEXTS)


@pytest.mark.parametrize("model_type", [None, "bert", "gpt2", "roberta", "llama", "qwen2", "t5", "gemma3_text", "nllb-moe"])
def test_plain_auto_tokenizer_refuses_and_says_what_to_do(model_type, tmp_path):
    # Without a tokenizer.json most of these classes would come up with an empty vocabulary of their own.
    mapped().save_pretrained(tmp_path)
    if model_type:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type, "vocab_size": SIZE}))
    with pytest.raises(Exception, match=r"load this folder with hf_glmd\.MappedTokenizer\.from_pretrained"):
        AutoTokenizer.from_pretrained(tmp_path)


def test_no_file_gives_two_tokens_one_id(tmp_path):
    mapped().save_pretrained(tmp_path)
    files = list(tmp_path.rglob("tokenizer.json"))
    assert len(files) == 2
    for file in files:
        vocabulary = json.loads(file.read_text()).get("model", {}).get("vocab", {})
        assert len(vocabulary) in (0, V) and len(set(vocabulary.values())) == len(vocabulary)


def test_saving_replaces_an_earlier_tokenizer_and_nothing_else(tmp_path):
    helpers.bert_tokenizer(tmp_path).save_pretrained(tmp_path)
    for name in ("vocab.txt", "model.safetensors", "config.json"):
        (tmp_path / name).write_text("{}")
    tokenizer = mapped()
    tokenizer.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)  # over itself
    names = {ORIGINAL_FOLDER, "tokenizer.json", "vocab_map.safetensors", "model.safetensors", "config.json", SUMS}
    assert {path.name for path in tmp_path.iterdir()} == names
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="is a file"):
        tokenizer.save_pretrained(tmp_path / "file")


def test_it_can_be_pushed_to_the_hub(tmp_path, monkeypatch):
    pushed = []
    monkeypatch.setattr(MappedTokenizer, "push_to_hub", lambda self, repo_id, **options: pushed.append((repo_id, options)))
    mapped().save_pretrained(tmp_path / "small-tokenizer", push_to_hub=True, private=True)
    mapped().save_pretrained(tmp_path, push_to_hub=True, repo_id="someone/name")
    assert pushed == [("small-tokenizer", {"private": True}), ("someone/name", {})]


def test_saving_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    tokenizer = mapped()
    tokenizer.save_pretrained(tmp_path / "saved")
    before = {path: path.read_bytes() for path in (tmp_path / "saved").rglob("*") if path.is_file()}
    monkeypatch.setattr(VocabMap, "save", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    for folder in ("saved", "new"):
        with pytest.raises(OSError, match="disk full"):
            mapped("unk").save_pretrained(tmp_path / folder)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_folders_of_another_kind_are_refused(tmp_path):
    with pytest.raises(UsageError, match="no vocab_map.safetensors in"):
        MappedTokenizer.from_pretrained(tmp_path)
    mapped().vocab_map.save(tmp_path)
    with pytest.raises(UsageError, match=f"no tokenizer in '{tmp_path}/{ORIGINAL_FOLDER}'"):
        MappedTokenizer.from_pretrained(tmp_path)
    helpers.bert_tokenizer(tmp_path)
    helpers.tiny_map().save(tmp_path)
    with pytest.raises(UsageError, match="needs no map: load it with AutoTokenizer"):
        MappedTokenizer.from_pretrained(tmp_path)


def test_chat_templates():
    tokenizer = mapped(tokenizer=causal_tokenizer(), size=61, keep=("User", ":", "Bot"))
    chat = [{"role": "User", "content": "w1 w2 w3"}, {"role": "Bot", "content": "w4 w5"}]
    options: list[dict[str, Any]] = [{}, {"return_dict": False}, {"return_tensors": "pt"}, {"truncation": True, "max_length": 3}]
    for option in options:
        ours, theirs = tokenizer.apply_chat_template(chat, **option), tokenizer.original.apply_chat_template(chat, **option)
        if option.get("return_dict", True):
            ours, theirs = ours["input_ids"], theirs["input_ids"]
        assert np.array_equal(ours, tokenizer.vocab_map.to_small(theirs))
    assert tokenizer.apply_chat_template(chat, tokenize=False) == tokenizer.original.apply_chat_template(chat, tokenize=False)
    masked = mapped(tokenizer=helpers.generic_tokenizer(chat_template="{{ messages[0].content }} [SEP]"))
    for safe, count in ((False, 2), (True, 1)):
        chat_ids = masked.apply_chat_template([{"role": "user", "content": "walk [SEP]"}], sanitize_control_tokens=safe)[
            "input_ids"
        ]
        assert chat_ids.count(masked.sep_token_id) == count


# ---- where this package uses a tokenizer ----


def test_blocks_collators_and_cloze_tasks_read_small_ids():
    words = ("walk", "talk")
    tokenizer = mapped(keep=words)
    original, to_small = tokenizer.original, tokenizer.vocab_map.to_small
    rows = datasets.Dataset.from_dict({"text": [*TEXTS, "a [MASK] in a text"], "label": ["yes", "no"] * 20 + ["no"]})
    ours, theirs = (pack_blocks(rows, one, 16) for one in (tokenizer, original))
    assert ours["input_ids"][:] == to_small(theirs["input_ids"][:])
    batches = [
        WordPredictionCollator(one, "all", mask_share=0.0)([{"input_ids": ids} for ids in blocks["input_ids"][-3:]])
        for one, blocks in ((tokenizer, ours), (original, theirs))
    ]
    assert torch.equal(batches[0]["input_ids"], to_small(batches[1]["input_ids"]))
    assert torch.equal(batches[0]["attention_mask"], batches[1]["attention_mask"]) and (batches[0]["attention_mask"] == 0).any()
    masked = WordPredictionCollator(tokenizer, "masked", mask_share=0.5)([{"input_ids": ids} for ids in ours["input_ids"]])
    assert masked["prediction_mask"].any() and int(masked["input_ids"].max()) < SIZE
    assert (masked["input_ids"][masked["prediction_mask"]] == tokenizer.mask_token_id).all()
    special = torch.isin(to_small(torch.tensor(theirs["input_ids"][:1])), torch.tensor(tokenizer.all_special_ids))
    assert special.any() and not (special & masked["prediction_mask"][:1]).any()
    task = ClozeTask(name="t", pattern="{mask} : {text}", verbalizers={"yes": "walk", "no": "talk"})
    asked, wanted = (task.encode(rows, one, 24, labelled=True) for one in (tokenizer, original))
    assert asked["input_ids"][:] == to_small(wanted["input_ids"][:]) and asked["blank"][:] == wanted["blank"][:]
    assert asked["candidate_ids"][:] == to_small(wanted["candidate_ids"][:])
    assert asked["candidate_ids"][0] == tokenizer.convert_tokens_to_ids(list(words))


# ---- where transformers uses one ----


def test_it_serves_a_trainer(tmp_path):
    tokenizer = mapped()
    model = resize_model(helpers.tiny_model("bert"), tokenizer.vocab_map)
    rows = datasets.Dataset.from_dict({"input_ids": tokenizer(TEXTS)["input_ids"]})
    collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.5, seed=0)
    batch = collator([{"input_ids": ids} for ids in rows["input_ids"]])
    assert int(batch["input_ids"].max()) < SIZE and (batch["input_ids"] == tokenizer.mask_token_id).any()
    assert not torch.isin(batch["labels"], torch.tensor([*tokenizer.all_special_ids])).any()
    args = TrainingArguments(
        str(tmp_path), max_steps=2, per_device_train_batch_size=4, report_to="none", use_cpu=True, disable_tqdm=True, save_steps=2
    )
    trainer = Trainer(model, args, train_dataset=rows, data_collator=collator, processing_class=tokenizer)
    trainer.train()
    assert MappedTokenizer.from_pretrained(tmp_path / "checkpoint-2")(TEXTS) == tokenizer(TEXTS)
    assert trainer.model.config.pad_token_id == tokenizer.pad_token_id
    plain = Trainer(model, args, train_dataset=rows, processing_class=tokenizer)
    assert isinstance(plain.data_collator, DataCollatorWithPadding)


def test_it_serves_pipelines():
    tokenizer = mapped(keep=("walk", "talk"))
    small = resize_model(helpers.tiny_model("bert"), tokenizer.vocab_map)
    filled = pipeline("fill-mask", model=small, tokenizer=tokenizer, device="cpu")("walk [MASK] talk.", top_k=SIZE)
    with torch.no_grad():
        logits = small(**tokenizer("walk [MASK] talk.", return_tensors="pt")).logits[0, 2]
    assert [row["token"] for row in filled[:5]] == logits.topk(5).indices.tolist()
    assert all(row["token_str"] == tokenizer.decode([row["token"]]) for row in filled)
    classifier = resize_model(helpers.tiny_model("bert-classifier"), tokenizer.vocab_map)
    scores = pipeline("text-classification", model=classifier, tokenizer=tokenizer, device="cpu")(TEXTS[:3], batch_size=3)
    assert len(scores) == 3
    causal = mapped(tokenizer=causal_tokenizer(), size=61)
    vocabulary = len(causal.original)
    writer = resize_model(helpers.tiny_model("gpt2", vocab_size=vocabulary, bos_token_id=0, eos_token_id=0), causal.vocab_map)
    writing = pipeline("text-generation", model=writer, tokenizer=causal, device="cpu")
    for prompt in ("w1 w2", [{"role": "User", "content": "w1"}]):
        [row] = writing(prompt, max_new_tokens=3, do_sample=False)
        assert row["generated_text"]


# ---- published tokenizers ----


@pytest.mark.skipif(not DATA, reason="HF_GLMD_TEST_DATA is not set: a folder with tokenizers/ and corpora/")
@pytest.mark.parametrize("name", ["bert-base-uncased", "gpt2", "t5-small"])
def test_published_tokenizers(name, tmp_path):
    for file in (Path(DATA) / "tokenizers" / name).iterdir():
        content = lzma.decompress(file.read_bytes()) if file.suffix == ".xz" else file.read_bytes()
        (tmp_path / (file.stem if file.suffix == ".xz" else file.name)).write_bytes(content)
    original = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer = mapped(tokenizer=original, size=4_001)
    texts = [line for line in Path(torch.nn.__file__).read_text().splitlines() if line.strip()][:200] + ["Ünïcode ﬁ 中文 🙂"]
    expected = tokenizer.vocab_map.to_small(original(texts)["input_ids"])
    assert tokenizer(texts)["input_ids"] == expected
    tokenizer.save_pretrained(tmp_path / "saved")
    loaded = MappedTokenizer.from_pretrained(tmp_path / "saved")
    assert loaded(texts)["input_ids"] == expected and loaded.get_vocab() == tokenizer.get_vocab()
    assert tokenizer.batch_decode(expected) == original.batch_decode(tokenizer.vocab_map.to_original(expected))
    assert sorted(tokenizer.get_vocab().values()) == list(range(4_001))
