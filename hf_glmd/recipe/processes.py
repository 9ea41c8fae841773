"""Whether all processes of a run are about the same thing: on several machines, folders and packages may differ."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import datasets
import numpy as np
from accelerate.utils import gather_object

from hf_glmd import __version__
from hf_glmd.errors import UsageError
from hf_glmd.recipe.inputs import Inputs
from hf_glmd.utils.system import versions

LONGEST_WAIT = timedelta(hours=6)
"""For a process that is slower than the others, or writes a corpus that they then read. PyTorch's own 10 minutes for graphics
cards are too short for that; one that has died is noticed at once, by the launcher."""

ROWS_COMPARED = 1000
"""Of each table, evenly spread: enough to tell two tables apart, and quick for millions of rows."""

_PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "accelerate", "numpy")


def check_same_inputs(inputs: Inputs) -> None:
    """Compares recipe, packages, tokenizer, teacher and data of all processes; each of them calls this.

    Raises: UsageError, in all of them: one process has something else. Its number, and both values, are named.
    """
    if inputs.state.num_processes > 1:
        refuse_differences(gather_object([facts_of(inputs)]))


def facts_of(inputs: Inputs) -> dict[str, str]:
    """What must be equal everywhere, in words; of weights the sizes of the files alone, for to read them takes long."""
    recipe = inputs.recipe
    facts = {"hf_glmd": __version__, **versions(*_PACKAGES)}
    facts["the recipe"] = _digest(json.dumps(dataclasses.asdict(recipe), sort_keys=True, default=str))
    model, revision = Path(recipe.teacher.model), getattr(inputs.teacher_config, "_commit_hash", None)
    sizes = sorted((file.name, file.stat().st_size) for file in model.glob("*.safetensors")) if model.is_dir() else []
    facts["the teacher"] = revision or _digest(inputs.teacher_config.to_json_string() + str(sizes))
    facts["its tokenizer"] = _digest(json.dumps(sorted(inputs.teacher_tokenizer.get_vocab().items())))
    facts |= _tables("the corpus", inputs.corpus)
    for task in inputs.tasks:
        facts |= _tables(f"the data of task {task.section.name}", task.data)
    return facts


def refuse_differences(found: Sequence[dict[str, str]]) -> None:
    """Raises: UsageError, a process has found something else than the first one."""
    for rank, facts in enumerate(found):
        for what, value in facts.items():
            if value != (first := found[0].get(what)):
                what = what.removeprefix("the ").removeprefix("its ")
                raise UsageError(
                    f"process {rank} has another {what} than process 0: {value} instead of {first}. "
                    "All machines need the same packages and the same files at the same paths."
                )


def _tables(name: str, data: datasets.DatasetDict) -> dict[str, str]:
    facts = {}
    for split, table in data.items():
        if not hasattr(table, "__len__"):
            continue  # a stream is read by one process, which hands its rows to the others
        rows = np.unique(np.linspace(0, len(table) - 1, min(len(table), ROWS_COMPARED)).astype(int)) if len(table) else []
        content = json.dumps(table.select(rows).to_list(), sort_keys=True, default=str)
        facts[f"{name} ({split})"] = f"{len(table)} rows, {_digest(content)}"
    return facts


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:12]
