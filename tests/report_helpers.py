"""Folders as this package writes them, made up by hand, for the tests of reports."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from record_examples import ANSWER_SAMPLES, TASK_LIST, WORD_SAMPLES, example_record
from safetensors.numpy import save_file

from hf_glmd.reports.records import RunRecord
from hf_glmd.reports.vocab_report import LongTail, ModelSizes, VocabReport
from hf_glmd.utils.files import write_json
from hf_glmd.vocab.scripts import ScriptShare
from hf_glmd.vocab.vocab_map import VocabMap

RECIPE = {
    "teacher": {"model": "someone/example-teacher", "revision": None},
    "vocab": {"size": 0.5, "keep": []},
    "general": {"max_steps": 811, "learning_rate": 4e-4, "lr_scheduler_type": "cosine"},
    "task_words": {"max_steps": 211},
    "task_answers": None,
}


def vocab_report(**changes: Any) -> VocabReport:
    counts = np.maximum(0, 2e6 / (np.arange(8_191) + 2) ** 1.1 - 200).astype(np.int64)
    kept_ids = np.union1d(np.arange(1_009), np.arange(1_050, 8_191, 100))
    report = VocabReport(
        original_size=8_191,
        size=kept_ids.size,
        coverage=0.91237,
        length_ratio=1.0817,
        counted_tokens=12_345_679,
        texts=32_393,
        n_special=7,
        n_alphabet=211,
        n_keep=13,
        removed_examples=["|", "Ġthe", "\n", " ", "<b>", "語", "a" * 90],
        kept_examples=["Ġseldom", "##ing"],
        new_unknown=3,
        n_closure=17,
        n_placeholders_removed=19,
        scripts=[
            ScriptShare("Latin", 6_007, 1_013, 11_000_003, 10_500_001),
            ScriptShare("Cyrillic", 503, 0, 41, 0),
            ScriptShare("Thai", 2, 0, 0, 0),
        ],
        long_tail=LongTail.of(counts, kept_ids),
        model_before=ModelSizes(5_364_481, 2_097_153, 10_728_962),
        model_after=ModelSizes(3_501_007, 233_679, 7_002_014),
    )
    return dataclasses.replace(report, **changes)


def full_record(**changes: Any) -> RunRecord:
    """With everything that a record can have."""
    record = example_record(samples=WORD_SAMPLES, **changes)
    for stage in record.stages:
        stage.steps_logged, stage.loss, stage.tokens = [10, 20, 30], [3.7771, 2.1113, 1.9337], 1_234_577
    record.stages[1].steps_evaluated, record.stages[1].accuracy = [0, 307], [0.1217, 0.8129]
    if record.task:
        record.task.samples = ANSWER_SAMPLES
    return record


def write_run(folder: Path, listed: bool = False) -> RunRecord:
    """A finished run: of one task, or of a list of them."""
    record = full_record(task=None, tasks=TASK_LIST) if listed else full_record()
    record.save(folder / "metrics.json")
    write_json(folder / "run.json", RECIPE)
    for stage in record.stages:
        place = folder / "stages" / ("cb" if listed and stage.name != "general" else "") / stage.name
        write_json(place / "done.json", dataclasses.asdict(stage))
    vocab_report(original_size=record.vocab.original_size, size=record.vocab.size).save(
        folder / "stages/student/vocab_report.json"
    )
    write_checkpoint(folder / "student")
    answers = {"teacher": ["yes", "no", "yes", "yes"], "student": ["yes", "yes", "yes", "no"]}
    for who, said in answers.items():
        file = folder / "predictions" / ("cb" if listed else "") / who / "cb_test.jsonl"
        file.parent.mkdir(parents=True)
        file.write_text("".join(json.dumps({"idx": n, "label": answer}) + "\n" for n, answer in enumerate(said)))
    return record


def write_unfinished_run(folder: Path) -> None:
    record = full_record()
    write_json(folder / "run.json", RECIPE)
    write_json(folder / "stages" / "general" / "done.json", dataclasses.asdict(record.stages[0]))
    write_log(folder / "stages" / "task_words" / "checkpoints" / "checkpoint-53")
    write_json(folder / "stages" / "cb" / "scores" / "done.json", dataclasses.asdict(TASK_LIST[1]))


def write_log(folder: Path, steps: int = 53, max_steps: int = 211) -> None:
    history: list[dict[str, Any]] = [{"step": 0, "eval_loss": 2.3137, "eval_kl": 0.9311, "eval_agreement": 0.5113}]
    history += [{"step": step, "loss": 3.0 - step / 101, "learning_rate": 1e-4 * step / 53} for step in range(10, steps, 10)]
    history += [{"step": steps, "eval_loss": 1.8713, "eval_kl": 0.6131, "eval_agreement": 0.5879}]
    state = {"log_history": history, "global_step": steps, "max_steps": max_steps, "train_batch_size": 31}
    write_json(folder / "trainer_state.json", state)


def write_checkpoint(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    config = {"architectures": ["BertForMaskedLM"], "model_type": "bert", "num_hidden_layers": 2, "vocab_size": 131}
    write_json(folder / "config.json", config)
    tensors = {"embeddings": np.zeros((131, 17), np.float16), "norm": np.zeros(17, np.float32)}
    save_file(tensors, folder / "model.safetensors")
    VocabMap(np.arange(0, 262, 2), 263).save(folder)


def write_vocabulary(folder: Path) -> None:
    write_checkpoint(folder)
    vocab_report().save(folder / "vocab_report.json")


def write_training(folder: Path) -> None:
    for step in (9, 53):
        write_log(folder / f"checkpoint-{step}", step)
    write_checkpoint(folder / "checkpoint-53")


def write_cache(folder: Path, whole: bool = True) -> None:
    fingerprint = {"teacher": "3f2a", "tokenizer": "91bc", "data": {"corpus": "docstrings", "mask_share": 0.15}}
    settings = {"kind": "hidden", "dtype": "int8", "size": 8191, "k": None, "fingerprint": fingerprint, "version": 1}
    write_json(folder / "cache.json", settings)
    for number, rows in enumerate((1_009, 503)):
        shard = {"rows": rows, "positions": 31 * rows, "bytes": 8_060 * rows, "sha256": "0"}
        write_json(folder / f"shard-00000-{number:05d}.json", shard)
    if whole:
        write_json(folder / "whole.json", {"shards": ["shard-00000-00000", "shard-00000-00001"]})


FOLDERS = {
    "run": write_run,
    "list": lambda folder: write_run(folder, listed=True),
    "unfinished": write_unfinished_run,
    "vocabulary": write_vocabulary,
    "training": write_training,
    "cache": write_cache,
}
"""Name -> function that writes such a folder."""
