from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import vocab_helpers as helpers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

from hf_glmd.errors import UsageError
from hf_glmd.vocab.closure import MergeTree
from hf_glmd.vocab.rewrite import (
    LOWEST_SCORE,
    byte_tokens,
    is_byte_level,
    model_type,
    pinned_ids,
    placeholder_ids,
    shrink_tokenizer_json,
    token_ids,
)

# Read back once: the library moves some scores of a Unigram model by one bit when it reads them.
BACKENDS = {kind: Tokenizer.from_str(make().to_str()) for kind, make in helpers.BACKENDS.items()}
KINDS = {kind: (backend, json.loads(backend.to_str())) for kind, backend in BACKENDS.items()}
V_MAX = 600
BACKEND = helpers.wordpiece_backend()
DATA = json.loads(BACKEND.to_str())
TEXTS = helpers.texts(200)


def load(data):
    return Tokenizer.from_str(json.dumps(data))


def kept_with(data, others):
    return np.array(sorted(set(pinned_ids(data)) | set(others)))


@given(others=st.sets(st.integers(0, helpers.V - 1)))
@settings(deadline=None, max_examples=40)
def test_texts_of_kept_tokens_give_the_same_tokens(others):
    kept = kept_with(DATA, others)
    small = load(shrink_tokenizer_json(DATA, kept))
    assert small.get_vocab_size() == len(kept)
    assert [BACKEND.id_to_token(int(old)) for old in kept] == [small.id_to_token(new) for new in range(len(kept))]
    for text in TEXTS[:40]:
        old = BACKEND.encode(text).ids
        if set(old) <= set(kept.tolist()):
            assert [int(kept[i]) for i in small.encode(text).ids] == old


def test_with_the_single_characters_every_text_reads_as_before():
    characters = [i for token, i in token_ids(DATA).items() if len(token.removeprefix("##")) == 1]
    small = load(shrink_tokenizer_json(DATA, kept_with(DATA, characters)))
    for text in [*TEXTS, "naïve 中文 [MASK] walking"]:
        old, new = BACKEND.encode(text), small.encode(text)
        assert BACKEND.decode(old.ids, skip_special_tokens=False) == small.decode(new.ids, skip_special_tokens=False)
        assert old.tokens.count("[UNK]") == new.tokens.count("[UNK]")


@pytest.mark.parametrize("kind", ["template", "bert", "roberta", "sequence"])
def test_the_ids_of_every_post_processor_move(kind):
    data = json.loads(helpers.wordpiece_backend(kind).to_str())
    backend, small = load(data), load(shrink_tokenizer_json(data, kept_with(data, range(30, 90))))
    for inputs in (("walk",), ("walk", "talk")):
        old, new = backend.encode(*inputs), small.encode(*inputs)
        assert old.type_ids == new.type_ids
        assert old.ids[0] != new.ids[0]  # [CLS] does move here
        # A stale id would show under the right token string, so the ids are looked up.
        assert [backend.id_to_token(i) for i in old.ids][0] == small.id_to_token(new.ids[0]) == "[CLS]"
        assert small.id_to_token(new.ids[-1]) == "[SEP]"


def test_the_padding_id_moves():
    backend = helpers.wordpiece_backend()
    backend.enable_padding(length=9, pad_id=backend.token_to_id("[MASK]"), pad_token="[MASK]")
    backend.enable_truncation(max_length=9)
    data = json.loads(backend.to_str())
    result = shrink_tokenizer_json(data, kept_with(data, range(30, 60)))
    small = load(result)
    assert small.id_to_token(small.encode("walk").ids[-1]) == "[MASK]"
    assert result["truncation"] == data["truncation"]


@pytest.mark.parametrize("flags", [{"normalized": True}, {"single_word": True}, {"lstrip": True}, {"rstrip": True}])
def test_added_tokens_keep_their_flags_and_come_last(flags):
    backend = helpers.wordpiece_backend()
    backend.add_tokens([AddedToken("walkabout", **({"normalized": False} | flags)), AddedToken("zig zag", normalized=False)])
    data = json.loads(backend.to_str())
    assert token_ids(data)["zig zag"] == helpers.V + 1
    characters = [i for token, i in token_ids(data).items() if len(token.removeprefix("##")) == 1]
    kept = kept_with(data, characters)
    small = load(shrink_tokenizer_json(data, kept))
    assert small.token_to_id("zig zag") == len(kept) - 1 == small.get_vocab_size() - 1
    for text in ("a walkabout b", "Walkabout", "walkabouts zig zag", "x zig  zag"):
        old, new = ([t for t in one.encode(text).tokens if t in ("walkabout", "zig zag")] for one in (backend, small))
        assert old == new
        assert backend.decode(backend.encode(text).ids) == small.decode(small.encode(text).ids)
    assert all(t["id"] == small.token_to_id(t["content"]) for t in shrink_tokenizer_json(data, kept)["added_tokens"])
    before = {t["content"]: {k: v for k, v in t.items() if k != "id"} for t in data["added_tokens"]}
    result = shrink_tokenizer_json(data, kept)
    assert before == {t["content"]: {k: v for k, v in t.items() if k != "id"} for t in result["added_tokens"]}


def test_the_given_dict_is_not_changed():
    before = copy.deepcopy(DATA)
    shrink_tokenizer_json(DATA, kept_with(DATA, [50]))
    assert DATA == before


def test_all_tokens_kept_is_the_same_tokenizer():
    assert shrink_tokenizer_json(DATA, np.arange(helpers.V)) == DATA


def test_what_the_tokenizer_refers_to_cannot_be_removed():
    pinned = pinned_ids(DATA)
    assert set(pinned) == {token_ids(DATA)[t] for t in ("[PAD]", *helpers.SPECIAL)}
    for token_id in pinned:
        with pytest.raises(UsageError, match=f"id {token_id} cannot be removed"):
            shrink_tokenizer_json(DATA, np.setdiff1d(np.arange(helpers.V), [token_id]))
    without_added = DATA | {"added_tokens": []}
    assert set(pinned_ids(without_added).values()) == {"unknown token", "post-processor"}


def test_an_id_of_no_token_cannot_be_kept():
    with pytest.raises(UsageError, match=f"No token has the id {helpers.V}"):
        shrink_tokenizer_json(DATA, np.arange(helpers.V + 1))


def test_two_tokens_on_one_id_are_refused():
    data = copy.deepcopy(DATA)
    data["model"]["vocab"]["walking"] = data["model"]["vocab"]["talked"]
    with pytest.raises(UsageError, match="share the id"):
        shrink_tokenizer_json(data, np.arange(100))


def test_gaps_are_closed():
    vocabulary = {"[UNK]": 0, "a": 3, "b": 4, "##a": 7}
    data = json.loads(Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]")).to_str())
    small = load(shrink_tokenizer_json(data, np.array([0, 3, 7])))
    assert small.get_vocab() == {"[UNK]": 0, "a": 1, "##a": 2}


def test_an_unknown_post_processor_is_refused():
    with pytest.raises(UsageError, match="Fancy"):
        shrink_tokenizer_json(DATA | {"post_processor": {"type": "Fancy"}}, np.arange(helpers.V))


def closed(data, ids):
    return set(MergeTree.of(data["model"], V_MAX).closed(sorted(ids))) if model_type(data) == "BPE" else set(ids)


@pytest.mark.parametrize("kind", sorted(KINDS))
@given(share=st.floats(0, 1), seed=st.integers(0, 2**32))
@settings(deadline=None, max_examples=12)
def test_every_kind_splits_texts_of_kept_tokens_as_before(kind, share, seed):
    backend, data = KINDS[kind]
    rng = np.random.default_rng(seed)
    known = sorted(token_ids(data).values())
    kept = np.array(sorted(closed(data, set(pinned_ids(data)) | {i for i in known if rng.random() < share})))
    result = shrink_tokenizer_json(data, kept)
    small = load(result)
    assert small.get_vocab_size() == len(kept)
    assert [backend.id_to_token(int(old)) for old in kept] == [small.id_to_token(new) for new in range(len(kept))]
    assert token_ids(result) == small.get_vocab()
    words = [backend.decode([i]) for i in kept.tolist()]
    for text in [*TEXTS[:30], *words, "é 1234 中", "aaa  bb <mask> [MASK]"]:
        old = backend.encode(text).ids
        if set(old) <= set(kept.tolist()):
            assert [int(kept[i]) for i in small.encode(text).ids] == old


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"wordlevel"}))
def test_every_kind_that_spells_reads_every_text_as_before(kind):
    backend, data = KINDS[kind]
    marked = {t: t.removeprefix("##").removesuffix("</w>") for t in token_ids(data)}
    characters = {i for token, i in token_ids(data).items() if len(marked[token]) == 1 or token in byte_tokens(data)}
    small = load(shrink_tokenizer_json(data, np.array(sorted(closed(data, set(pinned_ids(data)) | characters)))))
    assert small.get_vocab_size() < backend.get_vocab_size() - 20
    for text in [*TEXTS, "naïve 中文 walking", "  two  spaces\n\t1234 é"]:
        old, new = backend.encode(text), small.encode(text)
        assert backend.decode(old.ids, skip_special_tokens=False) == small.decode(new.ids, skip_special_tokens=False)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_with_all_tokens_every_kind_stays_as_it_is(kind):
    backend, data = KINDS[kind]
    assert shrink_tokenizer_json(data, np.arange(backend.get_vocab_size())) == data
    early = copy.deepcopy(data)
    del early["model"]["type"]
    assert model_type(early) == model_type(data)
    assert load(shrink_tokenizer_json(early, np.arange(backend.get_vocab_size()))).to_str() == backend.to_str()


@pytest.mark.parametrize("style", helpers.MERGED_STYLES)
def test_merges_stay_in_the_format_they_had(style):
    data = json.loads(helpers.bpe_backend(style).to_str())
    merged = [token_id for token_id, parts in enumerate(MergeTree.of(data["model"]).parts) if parts]
    kept = np.array(sorted(closed(data, {*pinned_ids(data), *merged[::5]})))
    early = data | {"model": data["model"] | {"merges": [" ".join(pair) for pair in data["model"]["merges"]]}}
    new, old = (shrink_tokenizer_json(one, kept)["model"]["merges"] for one in (data, early))
    assert 0 < len(new) < len(data["model"]["merges"]) and old == [" ".join(pair) for pair in new]
    assert load(shrink_tokenizer_json(early, kept)).to_str() == load(shrink_tokenizer_json(data, kept)).to_str()


def test_a_merge_whose_result_was_removed_goes():
    model = models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")])
    data = json.loads(Tokenizer(model).to_str())
    small = shrink_tokenizer_json(data, np.array([0, 1]))["model"]
    assert (small["vocab"], small["merges"]) == ({"a": 0, "b": 1}, [])


def test_the_unknown_token_of_a_unigram_model_moves_and_so_stays_unknown():
    pieces = [("a", -1.0), ("b", -2.0), ("low", -9.0), ("[UNK]", 0.0), ("low", -8.0), ("ab", -2.5), ("c", -9.0)]
    data = json.loads(Tokenizer(models.Unigram(pieces, unk_id=3)).to_str())
    # The first "low" is replaced by the second one, so "c" has the lowest score.
    assert pinned_ids(data) == {3: "unknown token", 6: LOWEST_SCORE}
    small = shrink_tokenizer_json(data, np.array([1, 3, 4, 6]))
    assert small["model"]["unk_id"] == 1 and [token for token, _ in small["model"]["vocab"]] == ["b", "[UNK]", "low", "c"]
    assert load(small).encode("xb").ids == [1, 0]
    with pytest.raises(UsageError, match="id 3 cannot be removed.*unknown token"):
        shrink_tokenizer_json(data, np.array([1, 4, 6]))
    with pytest.raises(UsageError, match="No token has the id 2"):
        shrink_tokenizer_json(data, np.array([2, 3, 6]))


def test_the_score_of_unknown_characters_stays():
    # Unknown characters cost 10 more than the lowest score: without "z" the split "a", unknown would be cheaper than "aé", "q".
    pieces = [("[UNK]", 0.0), ("a", -1.0), ("aé", -15.0), ("q", -3.0), ("éq", -25.0), ("z", -30.0)]
    data = json.loads(Tokenizer(models.Unigram(pieces, unk_id=0)).to_str())
    kept = np.array(sorted({*pinned_ids(data), 1, 2, 3}))
    assert load(shrink_tokenizer_json(data, kept)).encode("aéq").tokens == load(data).encode("aéq").tokens == ["aé", "q"]


@pytest.mark.parametrize(
    ("token", "placeholder"),
    [
        ("<unused17>", True),
        ("[unused3]", True),
        ("[UNUSED_TOKEN_5]", True),
        ("<|reserved_special_token_5|>", True),
        ("<|reserved_200001|>", True),
        ("<SPECIAL_12>", True),
        ("<|dummy_3|>", True),
        ("<|placeholder1|>", True),
        ("<｜place▁holder▁no▁5｜>", True),
        ("<extra_id_5>", False),
        ("<|endoftext|>", False),
        ("unused17", False),
        ("<unused>", False),
        ("[MASK]", False),
        ("<loc0017>", False),
        ("<|2.34|>", False),
        ("<|fim_middle|>", False),
    ],
)
def test_placeholders_are_told_from_tokens_in_use(token, placeholder):
    backend = helpers.wordpiece_backend()
    backend.add_special_tokens([token])
    data = json.loads(backend.to_str())
    token_id = token_ids(data)[token]
    assert placeholder_ids(data) == ({token_id: token} if placeholder else {})
    assert (token_id in pinned_ids(data)) != placeholder


def test_placeholders_can_go_and_named_ones_cannot():
    backend = helpers.wordpiece_backend()
    backend.add_special_tokens(["<unused0>", "<unused1>", "<unused2>"])
    backend.post_processor = processors.TemplateProcessing("<unused1> $A", None, [("<unused1>", helpers.V + 1)])
    data = json.loads(backend.to_str())
    assert pinned_ids(data)[helpers.V + 1] == "post-processor"
    small = shrink_tokenizer_json(data, kept_with(data, range(30, 60)))
    assert [t["content"] for t in small["added_tokens"] if "unused" in t["content"]] == ["<unused1>"]
    tokenizer = load(small)
    assert tokenizer.encode("walk").ids[0] == tokenizer.token_to_id("<unused1>") == tokenizer.get_vocab_size() - 1


def test_added_tokens_that_the_file_lists_out_of_order():
    backend = helpers.wordpiece_backend()
    backend.add_tokens(["one1", "two2", "three3"])
    data = json.loads(backend.to_str())
    data["added_tokens"].reverse()
    small = load(shrink_tokenizer_json(data, kept_with(data, range(30, 60))))
    assert [small.id_to_token(small.get_vocab_size() - 3 + i) for i in range(3)] == ["one1", "two2", "three3"]


def test_bytes_of_each_kind():
    for kind, number in (
        ("bpe bytes", 256),
        ("bpe whole words", 256),
        ("bpe fallback", 256),
        ("unigram bytes", 256),
        ("bpe suffix", 0),
    ):
        assert len(byte_tokens(KINDS[kind][1]) & token_ids(KINDS[kind][1]).keys()) == number, kind
    backend = helpers.bpe_backend("suffix")
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(use_regex=False)])
    clip = json.loads(backend.to_str())
    assert len(byte_tokens(clip)) == 512 and "a</w>" in byte_tokens(clip)
    assert is_byte_level(clip) and not is_byte_level(KINDS["bpe fallback"][1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"type": "Fancy"}, "type Fancy; only BPE, Unigram, WordLevel, WordPiece"),
        ({"dropout": 0.1}, "dropout=0.1.*no fixed tokens"),
    ],
)
def test_models_that_cannot_be_cut_are_refused(changes, message):
    data = copy.deepcopy(KINDS["bpe bytes"][1])
    data["model"] |= changes
    with pytest.raises(UsageError, match=message):
        shrink_tokenizer_json(data, np.arange(20))


@pytest.mark.parametrize("kind", ["wordlevel", "wordpiece"])
def test_words_that_nothing_could_stand_for_are_refused(kind):
    data = copy.deepcopy(KINDS[kind][1])
    data["model"]["unk_token"] = "missing"
    with pytest.raises(UsageError, match="no unknown token"):
        shrink_tokenizer_json(data, np.arange(20))


def test_an_added_token_between_the_models_own_ids_is_refused():
    backend = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "b": 3}, unk_token="[UNK]"))
    backend.add_tokens(["new"])  # takes the id 3, as there are three tokens
    data = json.loads(backend.to_str())
    with pytest.raises(UsageError, match="share the id 3"):
        shrink_tokenizer_json(data, np.array([0, 1, 3]))
    data["added_tokens"][0]["id"] = 2
    with pytest.raises(UsageError, match="id 2 stands between the model's own ids"):
        shrink_tokenizer_json(data, np.array([0, 1, 2, 3]))


def test_the_model_type_of_early_files_is_recognised():
    data = copy.deepcopy(DATA)
    del data["model"]["type"]
    assert model_type(data) == "WordPiece"
    assert load(shrink_tokenizer_json(data, np.arange(helpers.V))).get_vocab() == BACKEND.get_vocab()
