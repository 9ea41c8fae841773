"""Records survive a file."""

import dataclasses
import json

import pytest
from record_examples import TASK_LIST, example_record

from hf_glmd.reports.records import RunRecord, retained_share
from hf_glmd.utils.files import write_json


@pytest.mark.parametrize("changes", [{}, {"task": None, "words_general": None}, {"task": None, "tasks": TASK_LIST}])
def test_a_record_comes_back_as_it_was(tmp_path, changes):
    record = example_record(**changes)
    record.save(tmp_path / "metrics.json")
    assert RunRecord.load(tmp_path / "metrics.json") == record


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1} and [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_records_of_runs_without_a_list_of_tasks_can_be_read(tmp_path):
    record = example_record()
    data = dataclasses.asdict(record)
    del data["tasks"], data["task"]["seconds"]
    write_json(tmp_path / "metrics.json", data)
    assert RunRecord.load(tmp_path / "metrics.json") == record


def test_what_is_retained_is_the_share_of_the_gain():
    boolq, cb, _, wsc = TASK_LIST
    assert boolq.retained == pytest.approx((0.695 - 0.622) / (0.712 - 0.622))
    assert cb.retained > 1
    assert wsc.retained is None, "there is nothing to retain"
    assert retained_share([boolq, wsc]) == boolq.retained, "a task in which nothing is gained says nothing of what is retained"
    assert retained_share([boolq, cb]) == pytest.approx((0.073 + 0.4793) / (0.09 + 0.479))
