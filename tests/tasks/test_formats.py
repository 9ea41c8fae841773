"""The files that are handed in."""

import json

import datasets
import numpy as np
import pytest

from hf_glmd import ClozeTask
from hf_glmd.tasks.catalogue import TASKS
from hf_glmd.tasks.scoring import write_predictions
from hf_glmd.tasks.superglue_rows import flat_multirc, flat_record, flat_wsc


def data(rows):
    return datasets.Dataset.from_list(list(rows))


def lines(name, rows, chosen, folder, split="test"):
    path = write_predictions(TASKS[name], data(rows), np.array(chosen), folder, split)
    return path.name, [json.loads(line) if path.suffix == ".jsonl" else line for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    ("name", "file", "chosen", "labels"),
    [
        ("boolq", "BoolQ.jsonl", [1, 0], ["true", "false"]),
        ("wic", "WiC.jsonl", [0, 1], ["false", "true"]),
        ("cb", "CB.jsonl", [2, 1], ["neutral", "contradiction"]),
        ("rte", "RTE.jsonl", [1, 0], ["not_entailment", "entailment"]),
        ("copa", "COPA.jsonl", [1, 0], [1, 0]),
    ],
)
def test_a_label_per_example(name, file, chosen, labels, tmp_path):
    rows = [{"idx": 7, "text": "a"}, {"idx": 3, "text": "b"}]
    assert lines(name, rows, chosen, tmp_path) == (
        file,
        [{"idx": 7, "label": labels[0]}, {"idx": 3, "label": labels[1]}],
    )


def test_wsc_is_true_for_the_first_candidate_alone(tmp_path):
    target = {"span1_text": "Mark", "span1_index": 0, "span2_text": "He", "span2_index": 4}
    rows = [dict(row) for idx in (4, 5) for row in flat_wsc({"idx": idx, "text": "Mark told Pete lies. He", "target": target})]
    expected = [{"idx": 4, "label": "True"}, {"idx": 5, "label": "False"}]
    assert lines("wsc", rows, [0, 2], tmp_path) == ("WSC.jsonl", expected)


def test_multirc_is_nested_by_passage_and_question(tmp_path):
    def passage(idx, questions):
        nested = [{"question": "?", "idx": q, "answers": [{"text": "a", "idx": a} for a in answers]} for q, answers in questions]
        return {"idx": idx, "passage": {"text": "t", "questions": nested}}

    rows = [*flat_multirc(passage(3, [(0, [0, 1]), (1, [2])])), *flat_multirc(passage(5, [(2, [3])]))]
    assert lines("multirc", rows, [1, 0, 1, 0], tmp_path) == (
        "MultiRC.jsonl",
        [
            {
                "idx": 3,
                "passage": {
                    "questions": [
                        {"idx": 0, "answers": [{"idx": 0, "label": 1}, {"idx": 1, "label": 0}]},
                        {"idx": 1, "answers": [{"idx": 2, "label": 1}]},
                    ]
                },
            },
            {"idx": 5, "passage": {"questions": [{"idx": 2, "answers": [{"idx": 3, "label": 0}]}]}},
        ],
    )


def test_record_names_the_entity_of_each_query(tmp_path):
    entities = [{"start": 0, "end": 2}, {"start": 8, "end": 10}]
    row = {"idx": 9, "passage": {"text": "Ann met Bob.", "entities": entities}}
    row["qas"] = [{"query": "@placeholder met", "idx": 21}, {"query": "met @placeholder", "idx": 22}]
    expected = [{"idx": 21, "label": "Ann"}, {"idx": 22, "label": "Bob"}]
    assert lines("record", flat_record(row), [0, 1], tmp_path) == ("ReCoRD.jsonl", expected)


@pytest.mark.parametrize(
    ("name", "split", "file", "labels"),
    [
        ("sst2", "test", "SST-2.tsv", ["0", "1"]),
        ("cola", "validation", "CoLA_validation.tsv", ["0", "1"]),
        ("mnli", "test", "MNLI-m.tsv", ["entailment", "neutral"]),
        ("mnli", "test_mismatched", "MNLI-mm.tsv", ["entailment", "neutral"]),
    ],
)
def test_glue_wants_tables(name, split, file, labels, tmp_path):
    rows = [{"idx": 0, "sentence": "a"}, {"idx": 1, "sentence": "b"}]
    expected = ["index\tprediction", f"0\t{labels[0]}", f"1\t{labels[1]}"]
    assert lines(name, rows, [0, 1], tmp_path / "new", split) == (file, expected)


def test_a_table_of_ones_own_is_numbered_by_its_rows(tmp_path):
    task = ClozeTask("mine", "{text} {mask}", {"a": "walk", "b": "talk"})
    path = write_predictions(task, data([{"text": "x"}, {"text": "y"}]), np.array([1, 0]), tmp_path)
    assert path.name == "mine_test.jsonl" and path.read_text() == '{"idx": 0, "label": "b"}\n{"idx": 1, "label": "a"}\n'
