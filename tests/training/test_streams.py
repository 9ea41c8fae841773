"""Text that is read while it is trained on: of unknown length, larger than memory, and divided among processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch
import training_helpers as helpers
import vocab_helpers

from hf_glmd import UsageError

TESTS = Path(__file__).parents[1]
TEXTS = vocab_helpers.texts(300)


def counted_stream(read: list[int], rows: int = 10**9) -> datasets.IterableDataset:
    def generate():
        for number in range(rows):
            read.append(number)
            yield {"text": TEXTS[number % len(TEXTS)], "number": number}

    return datasets.IterableDataset.from_generator(generate)


def test_only_what_the_steps_need_is_read(tmp_path):
    read: list[int] = []
    trainer = helpers.trainer(
        tmp_path, train_dataset=counted_stream(read), eval_dataset=counted_stream([], 40), max_steps=6, max_length=16
    )
    trainer.train()
    assert trainer.state.global_step == 6 and len(read) <= 2100  # a billion rows; 1,000 are packed at once
    stored = helpers.trainer(
        tmp_path,
        train_dataset=datasets.Dataset.from_dict({"text": [TEXTS[number % len(TEXTS)] for number in range(1000)]}),
        max_steps=6,
        max_length=16,
        train_sampling_strategy="sequential",
    )
    stored.train()
    for one, other in zip(trainer.model.parameters(), stored.model.parameters(), strict=True):
        assert torch.equal(one, other), "the same rows as if the text were stored"
    assert trainer.evaluate()["eval_loss"] > 0


def test_a_streamed_file_goes_on_after_a_checkpoint(tmp_path):
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    settings = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "max_length": 16}

    def made():
        rows = datasets.load_dataset("json", data_files=str(tmp_path / "texts.jsonl"), split="train", streaming=True)
        return helpers.trainer(tmp_path / "run", train_dataset=rows, **settings)

    whole, resumed = made(), made()
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_without_a_number_of_steps_it_has_no_end(tmp_path):
    with pytest.raises(UsageError, match="a stream of unknown length: say how many steps to train, as max_steps"):
        helpers.trainer(tmp_path, train_dataset=counted_stream([]), max_steps=-1)


def test_columns_of_a_stream_are_named(tmp_path):
    with pytest.raises(UsageError, match=r"no column 'body' and no 'input_ids', it has \['text', 'number'\]"):
        helpers.trainer(tmp_path, train_dataset=counted_stream([]), text_column="body")


def test_rows_that_are_too_long_are_found_before_training_or_in_a_stream_at_once(tmp_path):
    limit = helpers.student().config.max_position_embeddings
    rows = datasets.Dataset.from_dict({"input_ids": [[5] * 8] * 40 + [[5] * (limit + 1)]})
    with pytest.raises(UsageError, match=f"has {limit + 1} token ids, student and teacher can both read {limit}"):
        helpers.trainer(tmp_path, train_dataset=rows)
    with pytest.raises(UsageError, match=f"has {limit + 1} token ids, student and teacher can both read {limit}"):
        helpers.trainer(tmp_path, train_dataset=rows.to_iterable_dataset(), max_steps=99).train()
    with pytest.raises(UsageError, match=f"max_length={limit + 1} is more than the {limit} tokens"):
        helpers.trainer(tmp_path, train_dataset=counted_stream([]), max_length=limit + 1)
    short = helpers.trainer(tmp_path, train_dataset=rows.select(range(40)), max_steps=1)
    short.train()


SCRIPT = """
import json, sys
import training_helpers as helpers, torch
from test_streams import counted_stream

folder, settings = sys.argv[1], json.loads(sys.argv[2])
trainer = helpers.trainer(folder, train_dataset=counted_stream([], 5000), **settings)
loss, seen = trainer.summed_loss, []

def noted(model, inputs):
    seen.extend(inputs["targets"].where(inputs["targets"] >= 0, inputs["input_ids"]).tolist())
    return loss(model, inputs)

trainer.summed_loss = noted
trainer.train()
weights = [parameter.detach() for parameter in trainer.model.parameters()]
torch.save({"seen": seen, "weights": weights}, f"{folder}/{trainer.args.process_index}.pt")
"""


@pytest.mark.slow
def test_two_processes_read_different_rows(tmp_path):
    found = {}
    for processes, batch in ((1, 6), (2, 3)):
        folder = tmp_path / str(processes)
        folder.mkdir()
        settings = {"max_steps": 5, "per_device_train_batch_size": batch, "max_length": 16}
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        (tmp_path / "script.py").write_text(SCRIPT)
        path = os.pathsep.join([str(TESTS), str(TESTS / "training"), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        command = [*launch, str(tmp_path / "script.py"), str(folder), json.dumps(settings)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        found[processes] = [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(processes)]
    (one,), (first, second) = found[1], found[2]
    assert len(first["seen"]) == len(second["seen"]) == 15 and len(one["seen"]) == 30
    halves = [sorted(map(tuple, part["seen"])) for part in (first, second)]
    assert sorted(map(tuple, one["seen"])) == sorted(halves[0] + halves[1]), "the same rows, none twice, none left out"
    for alone, together in zip(one["weights"], first["weights"], strict=True):
        torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-6)
