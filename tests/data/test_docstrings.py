"""The corpus every machine has."""

import pytest

from hf_glmd import UsageError
from hf_glmd.data.docstrings import MIN_WORDS, SPLIT_PERCENT, _docstrings, _split_of, docstring_corpus, library_versions


@pytest.fixture(scope="module")
def corpus():
    return docstring_corpus(("accelerate", "peft"), num_proc=1)


def test_it_has_texts_of_every_library_in_every_split(corpus):
    assert set(corpus) == {"train", "validation", "test"}
    for part in corpus.values():
        assert part.column_names == ["text", "library"] and set(part["library"]) == {"accelerate", "peft"}
    assert len(corpus["train"]) > 8 * len(corpus["test"]) > 0


def test_no_text_occurs_twice_whatever_its_white_space(corpus):
    texts = [" ".join(text.split()) for part in corpus.values() for text in part["text"]]
    assert len(texts) == len(set(texts)) > 500
    assert min(len(text.split()) for text in texts) >= MIN_WORDS


def test_a_text_stays_in_its_split_when_other_libraries_come(corpus):
    alone = docstring_corpus(("peft",), num_proc=1)
    for split in alone:
        ours = {row["text"] for row in corpus[split] if row["library"] == "peft"}
        # A text that another library has too counts for the library that comes first.
        assert ours <= set(alone[split]["text"]) and len(ours) > 0.9 * len(alone[split])


def test_splits_have_their_shares():
    counts = dict.fromkeys(SPLIT_PERCENT, 0)
    for number in range(10_000):
        counts[_split_of((number * 2654435761 % 2**64).to_bytes(8, "big"))] += 1
    assert {split: round(count / 100) for split, count in counts.items()} == SPLIT_PERCENT


def test_docstrings_are_read_without_running_anything(tmp_path):
    file = tmp_path / "module.py"
    file.write_text(
        '"""A module docstring of enough words."""\n'
        "raise SystemExit\n"
        'class A:\n    """A class docstring of enough words."""\n'
        '    async def f(self):\n        """An async method docstring of enough words."""\n'
        'def g():\n    """Too short."""\n'
    )
    broken = tmp_path / "broken.py"
    broken.write_text("def (:\n")
    rows = list(_docstrings(["x", "x"], [str(broken), str(file)], ()))
    assert [row["text"].split()[1] for row in rows] == ["module", "class", "async"]


def test_a_library_that_is_not_there_is_named():
    with pytest.raises(UsageError, match="'no_such_library' is not an installed package"):
        docstring_corpus(("no_such_library",))


def test_versions_are_known():
    assert set(library_versions()) >= {"python", "torch", "transformers"}
