"""Data as people have it, in every command: the same texts are read, or the same is said."""

import bz2
import csv
import gzip
import json
import lzma

import datasets
import pyarrow
import pytest
import training_helpers
from datasets import Dataset, DatasetDict

from hf_glmd import ClozeTask, UsageError
from hf_glmd.data.corpus import load_corpus
from hf_glmd.data.sources import load_splits, read_texts
from hf_glmd.evaluation.command import EvaluateOptions, _texts
from hf_glmd.shrinking.command import ShrinkOptions, _counted
from hf_glmd.shrinking.shrinker import VocabShrinker
from hf_glmd.tasks.catalogue import TASKS
from hf_glmd.tasks.loading import load_task_data

TEXTS = ["walk", "talk about it", "NA", "Zürich 走 🙂", "null", 'he said "no", 1', "2020-01-01", "nan", "007", "last " * 9]
TEXTS += [f"text number {number}" for number in range(30)]
ROWS = [{"number": number, "text": text} for number, text in enumerate(TEXTS)]
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS)
TSV = "number\ttext\n" + "".join(f"{row['number']}\t{row['text']}\n" for row in ROWS)
COUNTED = VocabShrinker(training_helpers.TOKENIZER).count(TEXTS, progress=False).counts.tolist()


def shrink(source, column):
    """`hf-glmd shrink --corpus`: its counts are those of the texts, with those that are held out."""
    options = ShrinkOptions(model="m", output="o", corpus=[str(source)], column=column)
    shrinker = _counted(options, training_helpers.TOKENIZER, False)
    held_out = [text for corpus in shrinker.corpora.values() for text in corpus.held_out]
    counts = (shrinker.counts + VocabShrinker(training_helpers.TOKENIZER).count(held_out, progress=False).counts).tolist()
    texts = [text for text in read_texts(str(source), column)[0] if text]
    assert counts == VocabShrinker(training_helpers.TOKENIZER).count(texts, progress=False).counts.tolist()
    return texts


def evaluate(source, column):
    """`hf-glmd evaluate --text`."""
    return _texts(EvaluateOptions(model="m", text=[str(source)], column=column))["text"][:]


def cache(source, column):
    """`hf-glmd cache --data`."""
    return [text for part in load_splits(str(source), column=column).values() for text in part[column]]


def distill(source, column):
    """The corpus of a recipe."""
    return [text for part in load_corpus(str(source), column=column).values() for text in part[column]]


def task(source, column):
    """The examples of a task: those without a text are kept, and said."""
    data = load_task_data(ClozeTask("mine", f"{{{column}}} {{mask}}", {"0": "walk", "1": "talk"}), source)
    return [text for part in data.values() for text in part[column] if text]


def train(source, column):
    """`GLMDTrainer(train_dataset=...)`: its blocks are those of the texts."""
    found, expected = (
        training_helpers.trainer("unused", train_dataset=data, eval_dataset=None, text_column=column, max_length=32).train_dataset
        for data in (source, Dataset.from_dict({column: TEXTS}))
    )
    assert found["input_ids"][:] == expected["input_ids"][:]
    return TEXTS


COMMANDS = (shrink, evaluate, cache, distill, task, train)


def packed(compress, name="own.jsonl", content=JSONL):
    return lambda folder: write(folder / name, compress(content.encode()))


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def zst(content):
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as file:
        file.write(content)
    return sink.getvalue().to_pybytes()


def table(folder, name="own.csv", **options):
    with open(folder / name, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["number", "text"], **options)
        writer.writeheader()
        writer.writerows(ROWS)
    return folder / name


def parquet(folder, data=None, name="own.parquet"):
    (data or Dataset.from_list(ROWS)).to_parquet(str(folder / name))
    return folder / name


def saved(folder, data):
    data.save_to_disk(folder / "saved")
    return folder / "saved"


def shards(folder, names=("a", "b")):
    for name, part in zip(names, (TEXTS[:25], TEXTS[25:]), strict=True):
        write(folder / "data" / f"{name}.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in part))
    write(folder / "data" / "README.md", "# About")
    return folder / "data"


def holed(value):
    """Rows without text between the others."""
    return "".join(f'{json.dumps(row)}\n{{"number": -1, "text": {value}}}\n' for row in ROWS)


VARIANTS = {
    "txt": lambda folder: write(folder / "own.txt", "\n".join(TEXTS)),
    "txt, CRLF": lambda folder: write(folder / "own.txt", "\r\n".join(TEXTS) + "\r\n"),
    "txt, BOM": lambda folder: write(folder / "own.txt", "\ufeff" + "\n".join(TEXTS)),
    "txt, empty lines": lambda folder: write(folder / "own.txt", "\n\n".join(TEXTS) + "\n\n"),
    "jsonl": lambda folder: write(folder / "own.jsonl", JSONL),
    "jsonl, CRLF and BOM": lambda folder: write(folder / "own.jsonl", "\ufeff" + JSONL.replace("\n", "\r\n")),
    "jsonl, null": lambda folder: write(folder / "own.jsonl", holed("null")),
    "jsonl, NaN": lambda folder: write(folder / "own.jsonl", holed("NaN")),
    "jsonl, empty": lambda folder: write(folder / "own.jsonl", holed('""')),
    "jsonl, fields that come and go": lambda folder: write(
        folder / "own.jsonl", "".join(json.dumps({"text": text, f"n{n % 3}": n}) + "\n" for n, text in enumerate(TEXTS))
    ),
    "json lines": lambda folder: write(folder / "own.json", JSONL),
    "json array": lambda folder: write(folder / "own.json", json.dumps(ROWS, indent=1)),
    "csv": table,
    "csv, CRLF and BOM": lambda folder: write(folder / "bom.csv", "\ufeff" + table(folder).read_bytes().decode()),
    "csv, all quoted": lambda folder: table(folder, quoting=csv.QUOTE_ALL),
    "tsv": lambda folder: write(folder / "own.tsv", TSV),
    "tsv, CRLF": lambda folder: write(folder / "own.tsv", TSV.replace("\n", "\r\n")),
    "parquet": parquet,
    "parquet, null": lambda folder: parquet(folder, Dataset.from_dict({"text": [None, *TEXTS, None]})),
    "gz": packed(gzip.compress, "own.jsonl.gz"),
    "xz": packed(lzma.compress, "own.jsonl.xz"),
    "bz2": packed(bz2.compress, "own.tsv.bz2", TSV),
    "zst": packed(zst, "own.tsv.zst", TSV),
    "folder": shards,
    "folder with splits": lambda folder: shards(folder, ("train", "val")),
    "pattern": lambda folder: shards(folder) / "*.jsonl",
    "pattern of all below": lambda folder: shards(folder).parent / "**" / "*.jsonl",
    "save_to_disk": lambda folder: saved(folder, Dataset.from_list(ROWS)),
    "save_to_disk of splits": lambda folder: saved(folder, DatasetDict(train=Dataset.from_list(ROWS))),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_command_reads_the_same_texts(variant, tmp_path):
    source = VARIANTS[variant](tmp_path)
    for command in COMMANDS:
        if variant == "folder with splits" and command is train:
            continue  # takes the split train alone
        assert sorted(command(source, "text")) == sorted(TEXTS), command.__name__


def test_lines_of_text_are_rows_of_any_column(tmp_path):
    for command in COMMANDS[:-2]:
        assert sorted(command(VARIANTS["txt"](tmp_path), "body")) == sorted(TEXTS), command.__name__


IN_PYTHON = {
    "list": lambda: list(TEXTS),
    "list with holes": lambda: [None, *TEXTS, ""],
    "generator": lambda: (text for text in TEXTS),
    "rows": lambda: list(ROWS),
    "keys": lambda: dict.fromkeys(TEXTS).keys(),
    "column": lambda: Dataset.from_list(ROWS)["text"],
    "generator of rows": lambda: iter(ROWS),
    "Dataset": lambda: Dataset.from_list(ROWS),
    "DatasetDict": lambda: DatasetDict(train=Dataset.from_list(ROWS), test=Dataset.from_list(ROWS[:3])),
    "DatasetDict of one": lambda: DatasetDict(corpus=Dataset.from_list(ROWS)),
}


@pytest.mark.parametrize("variant", IN_PYTHON)
def test_what_can_be_counted_can_be_trained_on(variant, caplog):
    counted = VocabShrinker(training_helpers.TOKENIZER).count(IN_PYTHON[variant](), progress=False)
    assert counted.counts.tolist() == COUNTED
    caplog.clear()
    train(IN_PYTHON[variant](), "text")
    assert ("2 of 42 rows of the data set have no text and are left out" in caplog.text) == (variant == "list with holes")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (["walk", 5], r"Row 1 is of type int \(5\), not a text"),
        ([{"text": "walk"}, {"text": 5}], r"Row 1 is of type int \(5\), not a text"),
        ([{"text": "walk"}, {"texts": "talk"}], "Row 1 has no field 'text'. Did you mean 'texts'"),
        (Dataset.from_list([{"text": ["walk"]}]), r"Row 0.* is of type list \(\['walk'\]\), not a text"),
        (Dataset.from_list(ROWS).to_pandas(), "Cannot count DataFrame"),
        (DatasetDict(one=Dataset.from_list(ROWS), two=Dataset.from_list(ROWS)), r"several splits \(one, two\)"),
    ],
)
def test_what_cannot_be_counted_cannot_be_trained_on(data, message):
    with pytest.raises(UsageError, match=message):
        VocabShrinker(training_helpers.TOKENIZER).count(data, progress=False)
    with pytest.raises(UsageError, match=message):
        train(data, "text")


def test_a_stream_is_counted_and_trained_on_as_it_is_read(tmp_path):
    stream = Dataset.from_list([{"text": None}, *ROWS, {"text": ""}]).to_iterable_dataset()
    assert VocabShrinker(training_helpers.TOKENIZER).count(stream, progress=False).counts.tolist() == COUNTED
    trainer = training_helpers.trainer(tmp_path, train_dataset=stream, eval_dataset=None, max_length=32)
    expected = training_helpers.trainer(tmp_path, train_dataset=TEXTS, eval_dataset=None, max_length=32).train_dataset
    assert [row["input_ids"] for row in trainer.train_dataset] == expected["input_ids"][:]


REFUSED = {
    "missing file": (lambda folder: folder / "none.jsonl", "here is no file '.*none.jsonl': check the path"),
    "missing folder": (lambda folder: folder / "none", "here is no file '.*none': check the path"),
    "pattern of nothing": (lambda folder: folder / "*.jsonl", "o file to read matches '.*jsonl'"),
    "folder of nothing": (lambda folder: write(folder / "d" / "a.docx", "x").parent, "older '.*d' holds no file to read"),
    "unknown kind": (lambda folder: write(folder / "a.docx", "x"), "'.*a.docx' is of an unknown kind"),
    "latin-1": (
        lambda folder: write(folder / "a.txt", ("fine\n" * 1800 + "façade\n").encode("latin-1")),
        r"'.*a.txt' cannot be read as UTF-8 text \(line 1801: .* byte 0xe7 in position 2.*\): convert it to UTF-8",
    ),
    "latin-1 in a table": (
        lambda folder: write(folder / "a.csv", "text\nfaçade\n".encode("latin-1")),
        r"'.*a.csv' cannot be read as UTF-8 text \(line 2: .* byte 0xe7 in position 2.*\): convert it to UTF-8",
    ),
    "no JSON": (lambda folder: write(folder / "a.jsonl", JSONL + '{"text": \n'), "ine 41 of '.*a.jsonl' is not JSON"),
    "no object": (lambda folder: write(folder / "a.jsonl", JSONL + "[1]\n"), "ine 41 of '.*a.jsonl' is a list"),
    "commas without quotes": (
        lambda folder: write(folder / "a.csv", "number,text\n1,a\n2,b, c\n"),
        "ine 3 of '.*a.csv' has more fields than the header",
    ),
    "cut short": (
        lambda folder: write(folder / "a.jsonl.gz", gzip.compress(JSONL.encode())[:-20]),
        "'.*a.jsonl.gz' cannot be read",
    ),
    "cut short, zst": (lambda folder: write(folder / "a.tsv.zst", zst(TSV.encode())[:-9]), "'.*a.tsv.zst' cannot be read"),
    "empty": (lambda folder: write(folder / "a.txt", ""), "o token|no text|a.txt' is empty"),
    "blank": (lambda folder: write(folder / "a.jsonl", "\n\n"), "o token|no text|a.jsonl' is empty"),
    "header alone": (lambda folder: write(folder / "a.csv", "text,number\n"), "o token|no text|a.csv' is empty"),
    "no parquet": (lambda folder: write(folder / "a.parquet", "text"), "'.*a.parquet' cannot be read"),
}
NO_TEXT = {
    "number": ("5", r"of type int \(5\), not a text: make it a string or null"),
    "number with a point": ("1.5", r"of type float \(1.5\), not a text: make it a string or null"),
    "list": ('["a", "b"]', r"of type list \(\['a', 'b'\]\), not a text"),
    "object": ('{"en": "a"}', r"of type dict \(\{'en': 'a'\}\), not a text"),
}


@pytest.mark.parametrize("variant", REFUSED)
def test_every_command_says_the_same_of_what_cannot_be_read(variant, tmp_path):
    made, message = REFUSED[variant]
    source = made(tmp_path)
    for command in COMMANDS:
        with pytest.raises(UsageError, match=message) as error:
            command(source, "text")
        assert "\n" not in str(error.value) and "Hub" not in str(error.value).split("check")[0], command.__name__


@pytest.mark.parametrize("variant", NO_TEXT)
@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_what_is_no_text_is_named_with_file_row_and_value(variant, name, tmp_path):
    value, message = NO_TEXT[variant]
    if name == "a.jsonl":
        source = write(tmp_path / name, JSONL + f'{{"text": {value}}}\n')
        message = f"ine 41 of '.*{name}' is {message}"
    else:
        source = parquet(tmp_path, Dataset.from_list([{"text": None}, {"text": json.loads(value)}]), name)
        message = f"ow [12] of '.*{name}' is {message}"
    for command in (shrink, evaluate, cache, distill, train):
        with pytest.raises(UsageError, match=message):
            command(source, "text")


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])
def test_a_missing_column_is_named_with_the_nearest(name, tmp_path):
    Dataset.from_list([{"texts": text} for text in TEXTS]).to_parquet(str(tmp_path / "a.parquet"))
    write(tmp_path / "a.jsonl", '{"texts": "walk"}\n')
    write(tmp_path / "a.csv", "texts\nwalk\n")
    for command in (shrink, evaluate):
        with pytest.raises(UsageError, match=f"{name}'.* has no (field|column) 'text'. Did you mean 'texts'"):
            command(tmp_path / name, "text")
    with pytest.raises(UsageError, match=r"no column 'text' and no 'input_ids', it has \['texts'\]"):
        train(tmp_path / name, "text")


@pytest.mark.parametrize("value", ["null", '""'])
def test_a_corpus_without_any_text_is_refused(value, tmp_path):
    source = write(tmp_path / "a.jsonl", f'{{"text": {value}}}\n' * 50)
    for command in (shrink, evaluate, cache, distill, train):
        with pytest.raises(UsageError, match="holds no token|holds no text|a.jsonl' is empty: it has no row with a text"):
            command(source, "text")


@pytest.mark.parametrize("read", [read_texts, load_splits, lambda name: load_task_data(TASKS["cb"], name)])
def test_a_missing_path_is_not_called_a_data_set_on_the_hub(read, tmp_path, monkeypatch):
    def unreachable(*_, **__):
        raise ConnectionError("Couldn't reach 'data/none' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    with pytest.raises(UsageError, match="here is no file or folder 'data/none': check the path") as error:
        read("data/none")
    assert "Hub" not in str(error.value)


def test_rows_without_text_are_counted_and_said(tmp_path, caplog):
    source = VARIANTS["jsonl, null"](tmp_path)
    for command in (shrink, evaluate, cache, distill, train):
        caplog.clear()
        command(source, "text")
        assert "40 of 80 rows of" in caplog.text and "have no text and are left out" in caplog.text, command.__name__
    caplog.clear()
    task(source, "text")
    assert "40 of 80 examples of task mine have nothing in column 'text'" in caplog.text


def test_missing_files_are_named_before_the_first_is_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(VocabShrinker, "count", lambda *_, **__: pytest.fail("counted before all was found"))
    options = ShrinkOptions(model="m", output="o", corpus=[str(VARIANTS["txt"](tmp_path)), str(tmp_path / "none.txt")])
    with pytest.raises(UsageError, match="no file '.*none.txt'"):
        _counted(options, training_helpers.TOKENIZER, False)


def test_a_changed_file_is_read_again(tmp_path):
    source = VARIANTS["txt"](tmp_path)
    assert len(cache(source, "text")) == len(TEXTS)
    source.write_text("walk\ntalk\n")
    assert cache(source, "text") == ["walk", "talk"]


def test_one_split_is_named_behind_the_path(tmp_path):
    source = shards(tmp_path, ("train", "val"))
    for named, texts in (("::train", TEXTS[:25]), (":default:validation", TEXTS[25:])):
        assert cache(f"{source}{named}", "text") == texts
    whole = saved(tmp_path, load_splits(source))
    assert cache(f"{whole}::validation", "text") == evaluate(f"{whole}::validation", "text") == TEXTS[25:]
    with pytest.raises(UsageError, match=r"has the splits \['train', 'validation'\], not 'test'. Name one of them"):
        cache(f"{source}::test", "text")
    with pytest.raises(UsageError, match="holds files, which have no configuration 'de'. Leave it out"):
        cache(f"{source}:de", "text")
    with pytest.raises(UsageError, match="holds files, which have no configuration 'de'. Leave it out"):
        load_corpus(str(source), config="de")


def test_a_column_that_begins_with_nulls_or_changes_its_type(tmp_path):
    rows = [{"text": "walk", "label": None if number < 2500 else "a"} for number in range(2600)]
    source = write(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert load_splits(source)["train"]["label"][2499:2501] == [None, "a"]
    source = write(tmp_path / "b.jsonl", JSONL + '{"text": "walk", "number": "one"}\n')
    with pytest.raises(UsageError, match="b.jsonl' has a column of several types, or .*: make them one"):
        load_splits(source)
    write(tmp_path / "d" / "1.jsonl", JSONL)
    write(tmp_path / "d" / "2.csv", "text,number\nwalk,one\n")
    with pytest.raises(UsageError, match="2.csv' has a column of several types, or with other files .*: make them one"):
        load_splits(tmp_path / "d")


def test_names_of_classes_are_kept(tmp_path):
    data = Dataset.from_list([{"text": "walk", "label": 1}, {"text": "talk", "label": 0}] * 30)
    data = data.cast_column("label", datasets.ClassLabel(names=["no", "yes"]))
    for number in (1, 2):
        parquet(write(tmp_path / "d" / "README.md", "").parent, data, f"{number}.parquet")
    assert load_corpus(str(tmp_path / "d"))["test"]["label"][0] in ("no", "yes")
    task = ClozeTask("mine", "{text} {mask}", {"no": "walk", "yes": "talk"})
    assert load_task_data(task, tmp_path / "d" / "1.parquet")["1"]["label"][:2] == ["yes", "no"]
