"""Every task on its real files: loaded, written as questions, answered by a random model, scored."""

import lzma
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tasks_helpers as helpers
import vocab_helpers
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from hf_glmd.tasks.catalogue import TASKS
from hf_glmd.tasks.loading import load_task_data
from hf_glmd.tasks.scoring import score_candidates, write_predictions

pytestmark = helpers.needs_data

ROOTS = ("superglue", "fewglue_32dev", "glue")
FILES = [
    pytest.param(root, name, id=f"{root}-{name}")
    for root in ROOTS
    for name, task in TASKS.items()
    if helpers.DATA is None or (Path(helpers.DATA) / root / task.official.folder).is_dir()
]
SCORED = 12


@pytest.fixture(scope="module")
def bert():
    tokenizer = AutoTokenizer.from_pretrained(Path(helpers.DATA) / "tokenizers" / "bert-base-uncased")
    model = vocab_helpers.tiny_model("bert", len(tokenizer), num_hidden_layers=1, max_position_embeddings=192)
    return tokenizer, helpers.logits_at(model)


@cache
def load(root, name):
    return load_task_data(TASKS[name], Path(helpers.DATA) / root)


def gold(task, part):
    """The right candidates as predictions."""
    if task.answers:
        return np.array([task.answer_index[label] for label in part[task.label_column]])
    return np.array([row[0] for row in task.right_candidates(part[task.label_column], task.candidate_texts(part))])


@pytest.mark.parametrize(("root", "name"), FILES)
def test_files_load_and_the_gold_answers_score_one(root, name, bert, tmp_path):
    task, (tokenizer, ask) = TASKS[name], bert
    data = load(root, name)
    assert set(data) <= {"train", "validation", "test"} and all("idx" in part.column_names for part in data.values())
    for split, part in data.items():
        labelled = task.label_column in part.column_names
        assert labelled == (split != "test")
        few = part.select(range(min(SCORED, len(part))))
        questions = task.encode(few, tokenizer, 192, labelled=labelled)
        lengths = [len(ids) for row in questions["input_ids"] for ids in (row if isinstance(row[0], list) else [row])]
        assert max(lengths) <= 192
        chosen = score_candidates(ask, questions, tokenizer, helpers.CPU, 16).argmax(-1)
        assert len(write_predictions(task, few, chosen, tmp_path, split).read_text().splitlines()) > 0
        if labelled:
            assert 0 <= task.score(few, chosen)["score"] <= 1 or name == "cola"
            assert task.score(part, gold(task, part))["score"] == 1.0


@pytest.mark.parametrize(("root", "name"), FILES)
def test_every_pattern_reads_well(root, name, bert):
    task, (tokenizer, _) = TASKS[name], bert
    part = load(root, name)["validation"].select(range(4))
    for number, pattern in enumerate(task.patterns):
        row = task.encode(part, tokenizer, 192, pattern=number)[0]
        ids = row["input_ids"][0] if isinstance(row["input_ids"][0], list) else row["input_ids"]
        text = tokenizer.decode(ids)
        assert "[MASK]" in text and "[UNK]" not in text
        words = [word for literal in pattern.literals for word in tokenizer.tokenize(literal)]
        assert set(words) <= set(tokenizer.convert_ids_to_tokens(ids))


@pytest.mark.parametrize("folder", ["bert-base-uncased", "gpt2", "roberta-base"])
def test_verbalizers_are_single_tokens_of_common_tokenizers(folder):
    path = Path(helpers.DATA) / "tokenizers" / folder / "tokenizer.json"
    text = path.read_bytes() if path.exists() else lzma.decompress(Path(f"{path}.xz").read_bytes())
    tokenizer = vocab_helpers.generic_tokenizer(Tokenizer.from_str(text.decode()))
    for task in TASKS.values():
        if task.verbalizers:
            assert len(task.candidate_ids(tokenizer)) == len(task.answers)
