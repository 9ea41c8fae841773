from __future__ import annotations

import gzip
import json
import lzma
import os

import datasets
import pytest
from datasets import Dataset, DatasetDict, IterableDataset

from hf_glmd.data import sources
from hf_glmd.data.sources import read_texts
from hf_glmd.errors import UsageError

TEXTS = ["walk", "", "talk about it", " spaces \tstay ", "Zürich 走 🙂", "last"]
ROWS = [{"other": 1, "text": text} for text in TEXTS]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def read(source, column="text"):
    return list(read_texts(source, column)[0])


@pytest.fixture
def folder(tmp_path):
    """One file of each kind, all with the same texts."""
    folder = tmp_path / "a folder"
    (folder / "deeper" / ".cache").mkdir(parents=True)
    (folder / "a file.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    (folder / "b.jsonl").write_text(LINES)
    with gzip.open(folder / "c.txt.gz", "wt", encoding="utf-8", newline="") as file:
        file.write("\r\n".join(TEXTS))
    with lzma.open(folder / "deeper" / "d.JSONL.xz", "wt") as file:
        file.write(LINES)
    Dataset.from_list(ROWS).to_parquet(str(folder / "deeper" / "e.parquet"))
    (folder / "README.md").write_text("not a text")
    (folder / "deeper" / ".cache" / "hidden.txt").write_text("not a text")
    return folder


def test_every_kind_of_source_gives_the_same_texts(folder):
    in_memory = {
        "list": TEXTS,
        "tuple": tuple(TEXTS),
        "generator": (text for text in TEXTS),
        "rows": iter(ROWS),
        "Dataset": Dataset.from_list(ROWS),
        "column of a Dataset": Dataset.from_list(ROWS)["text"],
        "Dataset as numpy": Dataset.from_list(ROWS).with_format("numpy"),
        "IterableDataset": Dataset.from_list(ROWS).to_iterable_dataset(),
        "IterableDataset of a generator": IterableDataset.from_generator(lambda: iter(ROWS)),
    }
    files = {path.name: path for path in folder.rglob("[a-e]*.*")}
    assert len(files) == 5
    for name, source in (in_memory | files).items():
        assert read(source) == TEXTS, name
    assert read([{"body": text} for text in TEXTS], "body") == TEXTS
    assert read(str(files["b.jsonl"])) == TEXTS


def test_rows_come_in_order_across_the_portions_they_are_read_in(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "READ_ROWS", 4)
    data = Dataset.from_dict({"text": [str(i) for i in range(11)]})
    data.to_parquet(str(tmp_path / "a.parquet"))
    for source in (data, data["text"], data.to_iterable_dataset(), tmp_path / "a.parquet"):
        assert read(source) == data["text"][:]


def test_only_the_known_number_of_rows_is_told(folder):
    assert read_texts(TEXTS)[1] == read_texts(Dataset.from_list(ROWS))[1] == len(TEXTS)
    assert read_texts(iter(TEXTS))[1] is None and read_texts(folder)[1] is None


def test_folders_and_patterns_are_read_in_order(folder):
    for number, path in enumerate(sorted(folder.glob("*.txt")) + sorted(folder.glob("*.jsonl"))):
        path.write_text(f'"{number}"\n')
    numbers = ['"0"', "1", *TEXTS, *TEXTS, *TEXTS]
    assert read(folder) == read(str(folder)) == numbers
    assert read(str(folder / "**" / "*")) == numbers
    assert read(str(folder / "[ab]*")) == ['"0"', "1"]
    assert read([folder / "b.jsonl", folder / "deeper"]) == ["1", *TEXTS, *TEXTS]


def test_a_list_of_files_is_told_from_a_list_of_texts(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert read(["b.jsonl", "deeper/*.parquet"]) == TEXTS + TEXTS
    assert read(["see b.jsonl", "b.jsonl"]) == ["see b.jsonl", "b.jsonl"]


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "walk"}\n', encoding="utf-8-sig")
    (tmp_path / "b.txt").write_text("walk", encoding="utf-8-sig")
    assert read(tmp_path) == ["walk", "walk"]


def test_a_named_dataset_is_streamed(tmp_path):
    (tmp_path / "train.jsonl").write_text(LINES)
    (tmp_path / "test.jsonl").write_text('{"text": "held out"}\n')
    # The name of a data set on the Hub takes the same way: `load_dataset` reads folders as it reads the Hub.
    assert read(f"{tmp_path}::test") == ["held out"]
    assert read(f"{tmp_path}:default:train") == read(f"{tmp_path}:default") == TEXTS
    with pytest.raises(UsageError, match="Bad split: nope"):
        read(f"{tmp_path}::nope")
    with pytest.raises(UsageError, match="'other' not found"):
        read(f"{tmp_path}:other")


@pytest.mark.parametrize("name", ["word", "someone/some-corpus", "someone/some.corpus:en:validation"])
def test_names_of_the_hub_reach_load_dataset(name, monkeypatch):
    asked = []

    def load(path, config, *, split, streaming):
        asked.append((path, config, split, streaming))
        raise datasets.exceptions.DatasetNotFoundError(f"'{path}' doesn't exist on the Hub.\nMore.")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(UsageError, match="no data set that can be loaded.*doesn't exist") as error:
        read(name)
    assert "\n" not in str(error.value)
    path, _, rest = name.partition(":")
    assert asked == [(path, rest.partition(":")[0] or None, rest.partition(":")[2] or "train", True)]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("no/such/file.txt", "no file 'no/such/file.txt'"),
        (["no-such-file.txt"], "no file"),
        ("/no/such/folder", "no file '/no/such/folder'.*Files are .txt"),
        ("no-such-*.txt", "matches 'no-such"),
        ("walk and talk", "give it in a list"),
        ("is this a text?", "give it in a list"),
        ("a text of many words " * 1000, "give it in a list"),
        (7, "Cannot count int"),
        (b"walk", "Cannot count bytes"),
        (Dataset.from_dict({"text": ["walk"]}).to_pandas(), "Cannot count DataFrame"),
        ([{"body": "walk"}], "no field 'text'"),
        (Dataset.from_dict({"texts": ["walk"]}), "Did you mean 'texts'"),
        (IterableDataset.from_generator(lambda: iter([{"texts": "walk"}])), "Did you mean 'texts'"),
        (DatasetDict(one=Dataset.from_dict({"text": ["walk"]}), two=Dataset.from_dict({})), "splits \\(one, two\\)"),
    ],
)
def test_what_is_no_source_is_said(source, message):
    with pytest.raises(UsageError, match=message) as error:
        read(source)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_a_folder_without_texts_is_said(tmp_path):
    (tmp_path / "notes.pdf").write_text("walk")
    with pytest.raises(UsageError, match="holds no file to read"):
        read(tmp_path)


def test_broken_files_are_named(tmp_path):
    broken = {
        "broken.jsonl": (b'{"text": "walk"}\n{"text": \n', "Line 2 of .*broken.jsonl"),
        "column.jsonl": (b'{"text": "walk"}\n\n{"texts": "walk"}', "Line 3 of .*column.jsonl.*Did you mean 'texts'"),
        "latin.txt": ("façade".encode("latin-1"), "latin.txt.*UTF-8"),
        "notes.pdf": (b"walk", "notes.pdf.*unknown kind"),
        "none.parquet": (b"walk", "none.parquet.*cannot be read"),
        "none.txt.gz": (b"walk", "none.txt.gz.*cannot be read"),
        "none.txt.xz": (b"walk", "none.txt.xz.*cannot be read"),
        "cut.txt.gz": (gzip.compress(os.urandom(999))[:-99], "cut.txt.gz.*cannot be read"),
        "cut.jsonl.xz": (lzma.compress(LINES.encode())[:-40], "cut.jsonl.xz.*cannot be read"),
        "flipped.txt.gz": (_flipped(gzip.compress(LINES.encode() * 9)), "flipped.txt.gz.*cannot be read"),
    }
    Dataset.from_list(ROWS).to_parquet(str(tmp_path / "whole.parquet"))
    broken["cut.parquet"] = ((tmp_path / "whole.parquet").read_bytes()[:-20], "cut.parquet.*cannot be read")
    for name, (content, message) in broken.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UsageError, match=message) as error:
            read(tmp_path / name)
        assert "\n" not in str(error.value), name
    with pytest.raises(UsageError, match="whole.parquet' has no column 'texts'. Did you mean 'text'"):
        read(tmp_path / "whole.parquet", "texts")


def _flipped(content):
    middle = len(content) // 2
    return content[:middle] + bytes(255 - byte for byte in content[middle : middle + 4]) + content[middle + 4 :]
