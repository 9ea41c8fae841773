"""Which checkpoint a run goes on from."""

import shutil

import pytest
import training_helpers

from hf_glmd.training.checkpoints import last_complete_checkpoint
from hf_glmd.utils.files import SUMS, write_sums

OPTIONS = {"max_steps": 6, "save_steps": 2, "save_strategy": "steps", "logging_steps": 3, "positions": "masked"}


def test_an_unfinished_checkpoint_is_passed_over_and_a_damaged_one_named(tmp_path, caplog):
    for step, state in ((3, "{}"), (6, "{}"), (9, None), (12, "{}"), (15, "{}")):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if state is not None:
            (folder / "trainer_state.json").write_text(state)
        if step in (3, 6, 15):
            write_sums(folder)
    (tmp_path / "checkpoint-15" / "trainer_state.json").write_text("[]")
    (tmp_path / "checkpoint-best").mkdir()  # somebody's own, which is left alone
    assert last_complete_checkpoint(tmp_path, remove_others=True).name == "checkpoint-6"
    assert "checkpoint-15/trainer_state.json' is damaged" in caplog.text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-3", "checkpoint-6", "checkpoint-best"]


@pytest.mark.parametrize("missing", [(SUMS,), (SUMS, "loss_since_log_0.json"), (SUMS, "trainer_state.json")])
def test_killed_in_a_checkpoint_it_goes_on_from_the_one_before_and_logs_the_same_losses(tmp_path, missing):
    """Without the losses since the last log, the next one would be a mean over fewer steps."""
    whole = training_helpers.trainer(tmp_path / "whole", **OPTIONS)
    whole.train()
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    shutil.rmtree(tmp_path / "killed" / "checkpoint-6")
    for name in missing:
        (tmp_path / "killed" / "checkpoint-4" / name).unlink()
    again = training_helpers.trainer(tmp_path / "killed", **OPTIONS)
    again.train(resume_from_checkpoint=True)
    losses = [[entry["loss"] for entry in one.state.log_history if "loss" in entry] for one in (whole, again)]
    assert losses[0] == losses[1] and len(losses[0]) == 2
