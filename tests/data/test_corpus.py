"""A corpus by name."""

import gzip
import json

import pytest

from hf_glmd import UsageError
from hf_glmd.data.corpus import load_corpus, require_text


def write_rows(path, count, start=0):
    rows = [{"text": f"text number {n}", "label": "even" if n % 2 == 0 else "odd"} for n in range(start, start + count)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode())) if path.suffix == ".gz" else path.write_text(text)
    return path


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_one_file_gets_held_out_splits(tmp_path, name):
    corpus = load_corpus(str(write_rows(tmp_path / name, 100)))
    assert {split: len(part) for split, part in corpus.items()} == {"train": 90, "validation": 5, "test": 5}
    assert len({text for part in corpus.values() for text in part["text"]}) == 100


def test_a_folder_has_the_splits_its_files_are_named_after(tmp_path):
    write_rows(tmp_path / "train.jsonl", 20)
    write_rows(tmp_path / "val.jsonl", 3, start=50)
    write_rows(tmp_path / "test.jsonl", 2, start=70)
    corpus = load_corpus(str(tmp_path))
    assert {split: len(part) for split, part in corpus.items()} == {"train": 20, "validation": 3, "test": 2}


def test_plain_text_is_read_by_line(tmp_path):
    (tmp_path / "a.txt").write_text("".join(f"line {n}\n" for n in range(40)))
    assert load_corpus(str(tmp_path / "a.txt"))["train"].column_names == ["text"]


@pytest.mark.parametrize("content", ["", "\n\n\n\n"])
def test_an_empty_corpus_is_refused(tmp_path, content):
    file = tmp_path / "empty.txt"
    file.write_text(content)
    with pytest.raises(UsageError, match="empty"):
        require_text(load_corpus(str(file)), "text", str(file))


def test_a_missing_column_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"columns \['text', 'label'\], not 'body'"):
        require_text(load_corpus(str(write_rows(tmp_path / "r.jsonl", 50))), "body", "r")


def test_a_file_of_unknown_kind_is_refused(tmp_path):
    (tmp_path / "a.docx").write_text("x")
    with pytest.raises(UsageError, match="no file to read"):
        load_corpus(str(tmp_path / "a.docx"))
