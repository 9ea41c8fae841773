"""Copies of texts in which words were replaced: what may change, what may not, and that it can be done again."""

import re

import datasets
import pytest
import tasks_helpers as helpers
import torch
import vocab_helpers

from hf_glmd import ClozeTask
from hf_glmd.tasks.augmentation import WordReplacer

TASK = ClozeTask("verbs", "call {mask} : {text}", {"yes": "walk", "no": "talk"})
TEXTS = ["jump  read, mark play!", "walk talk call jump", "mark", "read [MASK] singing mark look help turn rest jump"]
DATA = datasets.Dataset.from_dict({"text": TEXTS, "kept": ["jump read mark play"] * 4})


def replacer(tokenizer=helpers.TOKENIZER, share=0.6, seed=0, **settings):
    model = helpers.opinionated("bert", len(tokenizer))
    untouched = TASK.keep_tokens(tokenizer)
    return WordReplacer(helpers.logits_at(model), tokenizer, 40, share, untouched, seed, **settings)


def copies(count=3, **settings):
    return replacer(**settings).copies(DATA, ["text"], count, helpers.CPU)


def test_only_whole_words_change_and_all_else_stays_letter_by_letter():
    found = copies(count=8, share=0.9)
    assert set(found["kept"]) == {"jump read mark play"} and found.column_names == DATA.column_names
    assert "mark" not in found["text"][:], "a text of one word stays as it is, so there is no copy of it"
    shapes = {re.sub("[a-z]+", "x", text.replace("singing", "SPLIT")) for text in found["text"]}
    assert shapes <= {"x  x, x x!", "x x x x", "x [MASK] SPLIT x x x x x x"} and len(shapes) == 3
    assert not set(found["text"]) & set(TEXTS)


def test_verbalizers_patterns_and_special_tokens_are_neither_replaced_nor_put_in():
    found = copies(count=12, share=0.95)
    for text in found["text"]:
        words = text.split()
        if len(words) == 4 and "!" not in text:
            assert words[:3] == ["walk", "talk", "call"] and words[3] not in ("walk", "talk", "call", "jump")
        else:
            assert not {"walk", "talk", "call"} & set(words)
    assert not set(replacer().words) & {*TASK.keep_tokens(helpers.TOKENIZER), *helpers.TOKENIZER.all_special_ids}


def test_the_same_seed_gives_the_same_copies_whatever_the_batch():
    one = copies()["text"][:]
    assert one == copies()["text"][:] and one != copies(seed=1)["text"][:]
    again = replacer().copies(DATA, ["text"], 3, helpers.CPU, batch_size=1)["text"][:]
    assert again == one
    alone = replacer().copies(DATA.select([3]), ["text"], 3, helpers.CPU)["text"][:]
    assert set(alone) <= set(one), "a copy does not depend on the other examples"
    assert len(set(alone)) > 1, "each copy has other words"


def test_spaces_that_belong_to_the_token_stay():
    tokenizer = helpers.byte_level_tokenizer(mask=True)
    rows = datasets.Dataset.from_dict({"text": ["yes no, maybe  yes no maybe (yes)"]})
    model = helpers.opinionated("roberta", len(tokenizer))
    found = WordReplacer(helpers.logits_at(model), tokenizer, 40, 0.8, (), 0).copies(rows, ["text"], 6, helpers.CPU)
    assert len(found) == 6
    for text in found["text"]:
        assert [text.count(sign) for sign in ", ()"] == [1, 7, 1, 1] and ", " in text and "  " in text and text.endswith(")")


@pytest.mark.parametrize("share", [0.2, 0.7])
def test_so_many_words_are_replaced(share):
    text = " ".join(["jump", "read", "mark", "play"] * 8)
    rows = datasets.Dataset.from_dict({"text": [text]})
    found = replacer(share=share).copies(rows, ["text"], 20, helpers.CPU)["text"]
    changed = sum(word != was for copy in found for word, was in zip(copy.split(), text.split(), strict=True))
    assert changed / (20 * 32) == pytest.approx(share, abs=0.06)


def test_words_are_drawn_as_likely_as_the_teacher_finds_them():
    text = "jump read mark play"
    tokenizer = helpers.TOKENIZER
    likely = tokenizer.convert_tokens_to_ids(["look", "help"])

    def logits_at(inputs, positions):
        logits = torch.full((int(positions.sum()), vocab_helpers.V), -30.0)
        logits[:, likely[0]], logits[:, likely[1]] = 1.0, 0.0
        return logits

    rows = datasets.Dataset.from_dict({"text": [text]})
    found = WordReplacer(logits_at, tokenizer, 40, 0.9, (), 0).copies(rows, ["text"], 120, helpers.CPU)["text"]
    words = [word for copy in found for word in copy.split() if word not in text.split()]
    assert set(words) == {"look", "help"}
    assert words.count("look") / len(words) == pytest.approx(2.718 / 3.718, abs=0.07)
