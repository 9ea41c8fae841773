"""Task data from files and from the Hub."""

import gzip
import lzma

import datasets
import pytest
import tasks_helpers as helpers

from hf_glmd import ClozeTask, UsageError
from hf_glmd.tasks.catalogue import TASKS
from hf_glmd.tasks.loading import load_task_data

CB_ROW = {"premise": "p", "hypothesis": "h", "label": "neutral", "idx": 5}


def test_a_folder_of_the_benchmark_has_a_folder_for_each_task(tmp_path):
    helpers.write_lines(tmp_path / "CB" / "train.jsonl", [CB_ROW, CB_ROW | {"idx": 6}])
    helpers.write_lines(tmp_path / "CB" / "val.jsonl", [CB_ROW])
    helpers.write_lines(tmp_path / "CB" / "test.jsonl", [{k: v for k, v in CB_ROW.items() if k != "label"}])
    helpers.write_lines(tmp_path / "CB" / "unlabeled.jsonl", [CB_ROW | {"label": None}])
    data = load_task_data(TASKS["cb"], tmp_path)
    assert {split: len(part) for split, part in data.items()} == {"train": 2, "validation": 1, "test": 1, "unlabeled": 1}
    assert data["train"][1] == CB_ROW | {"idx": 6}
    assert "label" not in data["test"].column_names and "label" not in data["unlabeled"].column_names


@pytest.mark.parametrize(("ending", "pack"), [(".xz", lzma.compress), (".gz", gzip.compress), ("", bytes)])
def test_files_may_be_packed(ending, pack, tmp_path):
    rows = ['{"question": "q\u2028", "passage": "p", "label": true, "idx": 0}']
    rows += ["", '{"question": "", "passage": "p", "label": false, "idx": 1}']
    text = "\n".join(rows)
    path = tmp_path / f"val.jsonl{ending}"
    path.write_bytes(pack(text.encode()))
    part = load_task_data(TASKS["boolq"], path)["validation"]
    assert part["label"][:] == ["true", "false"] and part["question"][:] == ["q\u2028", ""]


def test_nested_files_become_flat_rows(tmp_path):
    answers = [{"text": "a", "idx": 30, "label": 1}, {"text": "b", "idx": 31, "label": 0}]
    passage = {"text": "p", "questions": [{"question": "q", "idx": 20, "answers": answers}]}
    helpers.write_lines(tmp_path / "train.jsonl", [{"idx": 10, "passage": passage}])
    part = load_task_data(TASKS["multirc"], tmp_path)["train"]
    assert part[1] == {
        "paragraph": "p",
        "question": "q",
        "answer": "b",
        "idx": {"paragraph": 10, "question": 20, "answer": 31},
        "label": "0",
    }


def test_record_has_its_entities_as_candidates(tmp_path):
    text = 'Ann met Bob"\n@highlight\nAnn left'
    spans = [{"start": 0, "end": 2}, {"start": 8, "end": 10}, {"start": 24, "end": 26}]
    answers = [{"start": 0, "end": 2, "text": "Ann"}, {"start": 24, "end": 26, "text": "Ann"}]
    query = {"query": "Later '@placeholder' came", "idx": 3, "answers": answers}
    helpers.write_lines(tmp_path / "val.jsonl", [{"idx": 1, "passage": {"text": text, "entities": spans}, "qas": [query]}])
    (row,) = load_task_data(TASKS["record"], tmp_path)["validation"]
    assert (row["entities"], row["answers"], row["idx"]) == (["Ann", "Bob"], ["Ann"], {"passage": 1, "query": 3})
    assert (row["story"], row["before"], row["after"]) == ('Ann met Bob" Ann left', "Later '", "' came")


def test_wsc_and_copa_get_the_columns_of_their_patterns(tmp_path):
    target = {"span1_text": "Mark", "span1_index": 0, "span2_text": "He", "span2_index": 4}
    row = {"text": 'Mark told Pete lies. "He, then, left."', "target": target, "idx": 0, "label": False}
    helpers.write_lines(tmp_path / "WSC" / "train.jsonl", [row])
    (row,) = load_task_data(TASKS["wsc"], tmp_path)["train"]
    assert (row["before"], row["after"]) == ('Mark told Pete lies. "', ', then, left."')
    assert (row["candidates"], row["label"], row["span2_index"]) == (["Mark", "Pete"], "false", 4)
    row = {"premise": "The sun rose.", "choice1": "It was May.", "choice2": "I woke up.", "question": "effect", "idx": 0}
    helpers.write_lines(tmp_path / "COPA" / "train.jsonl", [row])
    (row,) = load_task_data(TASKS["copa"], tmp_path)["train"]
    assert [row[name] for name in ("clause", "joint", "clause1", "clause2")] == ["The sun rose", "so", "it was May", "I woke up"]


def test_glue_tables_are_read_without_quoting(tmp_path):
    (tmp_path / "MRPC").mkdir()
    header = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
    (tmp_path / "MRPC" / "train.tsv").write_text("\ufeff" + header + '1\t7\t8\tHe said " no\t" Yes , he did\r\n0\t1\n')
    (tmp_path / "MRPC" / "test.tsv").write_text(header.replace("Quality", "index") + "4\t7\t8\ta\tb\n")
    data = load_task_data(TASKS["mrpc"], tmp_path)
    (row,) = data["train"]  # the broken row is left out, and a warning says so
    assert (row["sentence1"], row["sentence2"], row["label"], row["idx"]) == ('He said " no', '" Yes , he did', "1", 0)
    assert data["test"]["idx"][:] == [4] and "label" not in data["test"].column_names


def test_cola_has_no_header_but_for_test(tmp_path):
    (tmp_path / "dev.tsv").write_text("gj04\t0\t*\tThem went.\ngj04\t1\t\tThey went.\n")
    (tmp_path / "test.tsv").write_text("index\tsentence\n0\tThey go.\n")
    data = load_task_data(TASKS["cola"], tmp_path)
    assert data["validation"]["label"][:] == ["0", "1"] and data["validation"][0]["sentence"] == "Them went."
    assert data["test"][0] == {"sentence": "They go.", "idx": 0}


def test_hub_data_come_in_the_same_spelling(monkeypatch):
    asked = []

    def load_dataset(name, config):
        asked.append((name, config))
        labels = datasets.ClassLabel(names=["choice1", "choice2"])
        features = datasets.Features(
            {name: datasets.Value("string") for name in ("premise", "choice1", "choice2", "question")} | {"label": labels}
        )
        row = {"premise": "a.", "choice1": "Bees hum.", "choice2": "Ants do.", "question": "cause"}
        return {
            "train": datasets.Dataset.from_list([row | {"label": 1}, row | {"label": 0}], features=features),
            "test": datasets.Dataset.from_list([row | {"label": -1}], features=features),
        }

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    data = load_task_data(TASKS["copa"], "aps/super_glue")
    assert asked == [("aps/super_glue", "copa")]
    assert data["train"]["label"][:] == ["1", "0"] and data["train"][0]["clause1"] == "bees hum"
    assert "label" not in data["test"].column_names


def test_the_matched_split_of_mnli_is_the_usual_one(monkeypatch):
    row = {"premise": ["a"], "hypothesis": ["b"], "idx": [0]}
    found = {name: datasets.Dataset.from_dict(row) for name in ("train", "validation_matched", "test_mismatched")}
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config: found)
    assert set(load_task_data(TASKS["mnli"], "nyu-mll/glue")) == {"train", "validation", "test_mismatched"}


def test_a_table_of_ones_own_is_taken_as_it_is(tmp_path):
    task = ClozeTask("mine", "{text} {mask}", {"-1": "walk", "1": "talk"}, label_column="y")
    (tmp_path / "train.csv").write_text('text,y\n"a, b",-1\nc,1\n')
    (tmp_path / "notes.md").write_text("no data")
    data = load_task_data(task, tmp_path)
    assert data["train"].to_dict() == {"text": ["a, b", "c"], "idx": [0, 1], "y": ["-1", "1"]}


def test_what_cannot_be_read_is_named(tmp_path):
    task = TASKS["cb"]

    def refused(message, source):
        with pytest.raises(UsageError, match=message):
            load_task_data(task, source)

    (tmp_path / "empty").mkdir()
    refused(r"empty' holds no file to read.* Files are .txt .*, .jsonl, .json, .csv, .tsv or .parquet", tmp_path / "empty")
    (tmp_path / "a.jsonl").write_text('{"premise": "p"}\n{"premise": \n')
    refused("line 2 of '.*a.jsonl' is not JSON", tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl").write_text("[1]\n")
    refused("line 1 of '.*b.jsonl' is a list", tmp_path / "b.jsonl")
    (tmp_path / "c.jsonl").write_text("")
    refused("c.jsonl' is empty", tmp_path / "c.jsonl")
    (tmp_path / "d.jsonl.xz").write_bytes(b"no xz")
    refused("d.jsonl.xz' cannot be read", tmp_path / "d.jsonl.xz")
    helpers.write_lines(tmp_path / "e" / "dev.jsonl", [CB_ROW])
    helpers.write_lines(tmp_path / "e" / "val.jsonl", [CB_ROW])
    refused("dev.jsonl' and '.*val.jsonl' are both the split 'validation'", tmp_path / "e")
    helpers.write_lines(tmp_path / "f.jsonl", [CB_ROW])
    with pytest.raises(UsageError, match="row 0 of '.*f.jsonl' is not as task multirc has them: it has no 'passage'"):
        load_task_data(TASKS["multirc"], tmp_path / "f.jsonl")
    with pytest.raises(UsageError, match="task copa reads the column 'question', the data have"):
        load_task_data(TASKS["copa"], tmp_path / "f.jsonl")


def test_a_data_set_that_is_not_there_is_named(monkeypatch):
    def load_dataset(name, config):
        raise datasets.exceptions.DatasetNotFoundError(f"Dataset '{name}' doesn't exist on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UsageError, match="task data 'no/such' cannot be loaded: .*Dataset 'no/such' doesn't exist on the Hub"):
        load_task_data(TASKS["cb"], "no/such")


def test_missing_labels_and_empty_texts_are_told_from_answers(tmp_path, caplog):
    task = ClozeTask("mine", "{text} {mask}", {"0": "walk", "1": "talk"})
    nan = datasets.Dataset.from_dict({"text": ["a", "", "c"], "label": [0.0, float("nan"), 1.0]})
    nan.to_parquet(str(tmp_path / "train.parquet"))
    (tmp_path / "val.csv").write_text("text,label\na,0\n,\nc,1\n")
    (tmp_path / "test.tsv").write_text("text\tlabel\na\t\nc\t\n")
    data = load_task_data(task, tmp_path)
    assert [str(label) for label in data["train"]["label"]] == ["0", "None", "1"]
    assert [str(label) for label in data["validation"]["label"]] == ["0", "None", "1"]
    assert data["test"].column_names == ["text", "idx"]
    assert caplog.text.count("1 of 3 examples of task mine have nothing in column 'text'") == 2
    nan.save_to_disk(tmp_path / "saved")
    assert load_task_data(task, tmp_path / "saved")["train"]["label"][:] == data["train"]["label"][:]
    with pytest.raises(UsageError, match="1 of 3 examples of task mine have no label in column 'label'"):
        task.check_columns(data["train"], labelled=True)
