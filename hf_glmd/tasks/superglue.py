"""The eight tasks of SuperGLUE.

Source: SuperGLUE, arXiv:1905.00537 (data and metrics). Patterns and words are ours, after those of PET, arXiv:2009.07118.
"""

from __future__ import annotations

from hf_glmd.tasks.cloze import ClozeTask
from hf_glmd.tasks.formats import OfficialFormat, capitalised_lines, number_lines, query_lines, question_lines
from hf_glmd.tasks.superglue_rows import derive_copa, derive_record, derive_wsc, flat_multirc, flat_record, flat_wsc

_SOURCE = "patterns and words ours, after PET, arXiv:2009.07118"
_BOOLEANS = {"False": "false", "True": "true"}
_YES_NO = {"false": "no", "true": "yes"}

BOOLQ = ClozeTask(
    name="boolq",
    pattern=(
        "{passage} Question: {question}? Answer: {mask}.",
        "{passage} From this text, {question}? {mask}.",
        "{question}? {mask}, as one can read here: {passage}",
    ),
    verbalizers=_YES_NO,
    split_verbalizers="score",
    source=f"{_SOURCE} (BoolQ)",
    official=OfficialFormat(folder="BoolQ", config="boolq", labels=_BOOLEANS),
)

CB = ClozeTask(
    name="cb",
    pattern=(
        "{premise} Is it true that {hypothesis}? {mask}.",
        '"{hypothesis}"? {mask}, for we know this: "{premise}"',
        "{hypothesis}? {mask}, {premise}",
    ),
    verbalizers={"entailment": "yes", "contradiction": "no", "neutral": "maybe"},
    split_verbalizers="score",
    metric="accuracy_and_macro_f1",
    source=f"{_SOURCE} (CB)",
    official=OfficialFormat(folder="CB", config="cb"),
)

COPA = ClozeTask(
    name="copa",
    pattern=("{clause}, {joint} {mask}.", '"{clause1}" or "{clause2}"? {clause}, {joint} {mask}.'),
    candidates=("clause1", "clause2"),
    derive=derive_copa,
    source=f"{_SOURCE} (COPA)",
    official=OfficialFormat(folder="COPA", config="copa", labels={"choice1": "0", "choice2": "1"}, lines=number_lines),
)

MULTIRC = ClozeTask(
    name="multirc",
    pattern=(
        '{paragraph} Question: {question} Is "{answer}" a right answer? {mask}.',
        '{paragraph} {question} Somebody says "{answer}". Is that so? {mask}.',
        "{question} Is it {answer}? {mask}, as one can read here: {paragraph}",
    ),
    verbalizers={"0": "no", "1": "yes"},
    split_verbalizers="score",
    metric="multirc",
    source=f"{_SOURCE} (MultiRC)",
    official=OfficialFormat(
        folder="MultiRC", config="multirc", flatten=flat_multirc, labels={"False": "0", "True": "1"}, lines=question_lines
    ),
)

RECORD = ClozeTask(
    name="record",
    pattern=("{story} {before} {mask}{after}", "{story} Fill the gap: {before} ___{after} It stands for {mask}."),
    candidates="entities",
    label_column="answers",
    derive=derive_record,
    metric="record",
    source=f"{_SOURCE} (ReCoRD)",
    official=OfficialFormat(folder="ReCoRD", config="record", flatten=flat_record, lines=query_lines),
)

RTE = ClozeTask(
    name="rte",
    pattern=(
        "{premise} So is this right: {hypothesis} {mask}.",
        '"{hypothesis}"? {mask}, for we know this: "{premise}"',
        "{hypothesis}? {mask}, {premise}",
    ),
    verbalizers={"entailment": "yes", "not_entailment": "no"},
    split_verbalizers="score",
    source=f"{_SOURCE} (RTE)",
    official=OfficialFormat(folder="RTE", config="rte"),
)

WIC = ClozeTask(
    name="wic",
    pattern=(
        '"{sentence1}" and "{sentence2}" Is {word} the same thing in both? {mask}.',
        'Does "{word}" mean the same in these two sentences? {mask}. {sentence1} {sentence2}',
        "{word}: {sentence1} {sentence2} Same meaning? {mask}.",
    ),
    verbalizers=_YES_NO,
    split_verbalizers="score",
    source=f"{_SOURCE} (WiC)",
    official=OfficialFormat(folder="WiC", config="wic", labels=_BOOLEANS),
)

WSC = ClozeTask(
    name="wsc",
    pattern=(
        '{before} *{pronoun}*{after} Here "{pronoun}" means {mask}.',
        "{before} {mask}{after}",
        "{before} *{pronoun}*{after} Who or what is *{pronoun}*? It is {mask}.",
    ),
    candidates="candidates",
    candidate_answers=("true", "false"),  # the phrase in question, or any other one
    derive=derive_wsc,
    source=f"{_SOURCE} (WSC); the other phrases are found by hf_glmd.tasks.superglue",
    official=OfficialFormat(folder="WSC", config="wsc", flatten=flat_wsc, labels=_BOOLEANS, lines=capitalised_lines),
)

SUPERGLUE: dict[str, ClozeTask] = {task.name: task for task in (BOOLQ, CB, COPA, MULTIRC, RECORD, RTE, WIC, WSC)}
