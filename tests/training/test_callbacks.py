"""A process that is asked to end saves, stops, and goes on later as if nothing had happened."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import training_helpers as helpers
from transformers import TrainerCallback

TESTS = Path(__file__).parents[1]
SETTINGS = "dict(max_steps=40, positions='masked', save_strategy='no', logging_steps=1, disable_tqdm=True)"
SCRIPT = f"""
import sys, time, training_helpers as helpers
from transformers import TrainerCallback

class Slow(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        print(state.global_step, flush=True)
        time.sleep(0.2)

trainer = helpers.trainer(sys.argv[1], **{SETTINGS})
trainer.add_callback(Slow())
trainer.train()
print("stopped", trainer.signal.stopped, trainer.state.global_step, flush=True)
"""


def test_sigterm_saves_and_the_next_run_ends_as_one_that_was_never_stopped(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "cut")],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
    )
    for line in process.stdout:
        if line.strip() == "3":
            process.send_signal(signal.SIGTERM)
            break
    rest = process.stdout.read()
    assert process.wait(60) == 0
    step = int(rest.split()[-1])
    assert "stopped True" in rest and 3 <= step < 40
    settings = eval(SETTINGS)  # the very words of the other process
    resumed = helpers.trainer(tmp_path / "cut", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / f"checkpoint-{step}"))
    whole = helpers.trainer(tmp_path / "whole", **settings)
    whole.train()
    assert not whole.signal.stopped
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_signal_means_what_it_did_before_once_training_is_over(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    trainer = helpers.trainer(tmp_path, max_steps=1)
    trainer.train()
    assert signal.getsignal(signal.SIGTERM) == before


def test_nor_does_training_that_an_error_ends_keep_the_signal(tmp_path):
    """Else the process could not be asked to end any more."""

    class Breaks(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            raise ZeroDivisionError

    before = signal.getsignal(signal.SIGTERM)
    trainer = helpers.trainer(tmp_path, max_steps=1)
    trainer.add_callback(Breaks())
    with pytest.raises(ZeroDivisionError):
        trainer.train()
    assert signal.getsignal(signal.SIGTERM) == before
