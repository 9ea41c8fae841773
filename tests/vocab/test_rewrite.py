from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import vocab_helpers as helpers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models

from hf_glmd.errors import UsageError
from hf_glmd.vocab.rewrite import model_type, pinned_ids, shrink_tokenizer_json, token_ids

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


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        (models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]), "BPE"),
        (models.Unigram([("a", 0.0), ("b", -1.0)], unk_id=0), "Unigram"),
        (models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"), "WordLevel"),
    ],
)
def test_other_model_types_are_refused_by_name(model, kind):
    data = json.loads(Tokenizer(model).to_str())
    with pytest.raises(UsageError, match=f"type {kind}"):
        shrink_tokenizer_json(data, np.array([0, 1]))
    del data["model"]["type"]  # as in early releases
    assert model_type(data) == kind


def test_the_model_type_of_early_files_is_recognised():
    data = copy.deepcopy(DATA)
    del data["model"]["type"]
    assert model_type(data) == "WordPiece"
    assert load(shrink_tokenizer_json(data, np.arange(helpers.V))).get_vocab() == BACKEND.get_vocab()
