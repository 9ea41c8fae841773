"""Six tasks of GLUE.

Source: GLUE, arXiv:1804.07461 (data and metrics). Patterns and words are ours, after those of LM-BFF, arXiv:2012.15723.
"""

from __future__ import annotations

from functools import partial

from hf_glmd.tasks.cloze import ClozeTask
from hf_glmd.tasks.formats import OfficialFormat, table_lines

_SOURCE = "patterns and words ours, after LM-BFF, arXiv:2012.15723"
_glue_files = partial(OfficialFormat, lines=table_lines, suffix=".tsv")

SST2 = ClozeTask(
    name="sst2",
    pattern=("{sentence} All in all, it is {mask}.", "{sentence} What a {mask} film!", "A {mask} film: {sentence}"),
    verbalizers={"0": "bad", "1": "good"},
    split_verbalizers="score",
    source=f"{_SOURCE} (SST-2)",
    official=_glue_files(folder="SST-2", config="sst2", labels={"negative": "0", "positive": "1"}),
)

MRPC = ClozeTask(
    name="mrpc",
    pattern=(
        '"{sentence1}" and "{sentence2}" Do they say the same? {mask}.',
        "{sentence1} {mask}, {sentence2}",
    ),
    verbalizers={"0": "no", "1": "yes"},
    split_verbalizers="score",
    metric="accuracy_and_f1",
    source=f"{_SOURCE} (MRPC)",
    official=_glue_files(
        folder="MRPC",
        config="mrpc",
        columns={"Quality": "label", "#1 String": "sentence1", "#2 String": "sentence2"},
        labels={"not_equivalent": "0", "equivalent": "1"},
    ),
)

COLA = ClozeTask(
    name="cola",
    pattern=("{sentence} This sentence is {mask}.", '"{sentence}" The grammar of this is {mask}.', "This is {mask}: {sentence}"),
    verbalizers={"0": "wrong", "1": "correct"},
    split_verbalizers="score",
    metric="matthews_correlation",
    source=f"{_SOURCE} (CoLA)",
    official=_glue_files(
        folder="CoLA",
        config="cola",
        headerless=("source", "label", "star", "sentence"),
        labels={"unacceptable": "0", "acceptable": "1"},
    ),
)

MNLI = ClozeTask(
    name="mnli",
    pattern=(
        "{premise} So is this right: {hypothesis} {mask}.",
        "{hypothesis}? {mask}, {premise}",
    ),
    verbalizers={"entailment": "yes", "neutral": "maybe", "contradiction": "no"},
    split_verbalizers="score",
    source=f"{_SOURCE} (MNLI)",
    official=_glue_files(
        folder="MNLI",
        config="mnli",
        columns={"sentence1": "premise", "sentence2": "hypothesis", "gold_label": "label"},
        file_names={"test": "MNLI-m.tsv", "test_mismatched": "MNLI-mm.tsv"},
    ),
)

QNLI = ClozeTask(
    name="qnli",
    pattern=(
        "Question: {question} Text: {sentence} Does it say the answer? {mask}.",
        "{question} {mask}, {sentence}",
    ),
    verbalizers={"entailment": "yes", "not_entailment": "no"},
    split_verbalizers="score",
    source=f"{_SOURCE} (QNLI)",
    official=_glue_files(folder="QNLI", config="qnli"),
)

QQP = ClozeTask(
    name="qqp",
    pattern=(
        '"{question1}" and "{question2}" Do they ask the same? {mask}.',
        "{question1} {mask}, {question2}",
    ),
    verbalizers={"0": "no", "1": "yes"},
    split_verbalizers="score",
    metric="accuracy_and_f1",
    source=f"{_SOURCE} (QQP)",
    official=_glue_files(
        folder="QQP", config="qqp", columns={"is_duplicate": "label"}, labels={"not_duplicate": "0", "duplicate": "1"}
    ),
)

GLUE: dict[str, ClozeTask] = {task.name: task for task in (SST2, MRPC, COLA, MNLI, QNLI, QQP)}
