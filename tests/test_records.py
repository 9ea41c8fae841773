"""Records survive a file."""

import json

import pytest
from record_examples import example_record

from hf_glmd.records import RunRecord, write_json


@pytest.mark.parametrize("changes", [{}, {"task": None, "words_general": None}])
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
