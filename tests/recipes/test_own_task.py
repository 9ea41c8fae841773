"""A table of one's own: the recipe that the README names, and its student asked about tickets it has never seen."""

import subprocess
import sys

import pytest
import recipe_helpers

from hf_glmd import ClozeClassifier

TICKETS = {
    "It crashes when the file is empty": "bug",
    "Loading raises an exception if the path has a space": "bug",
    "How do I set the seed?": "question",
    "Is there a way to read the cache from another disk?": "question",
    "I love how simple and fast this library is": "praise",
}


@pytest.mark.slow
def test_its_student_knows_a_bug_from_a_question(tmp_path):
    options = ["--config", "recipes/own_task.yaml", "--output_dir", str(tmp_path / "run")]
    done = subprocess.run(
        [sys.executable, "-m", "hf_glmd", "distill", *options], cwd=recipe_helpers.ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    classifier = ClozeClassifier.from_pretrained(tmp_path / "run" / "student")
    assert dict(zip(TICKETS, classifier.predict(list(TICKETS)), strict=True)) == TICKETS
