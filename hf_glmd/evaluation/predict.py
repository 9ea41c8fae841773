"""Answers of a task's student for texts or a table: what `hf-glmd predict` does."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_glmd.errors import UsageError
from hf_glmd.utils.options import list_option, option
from hf_glmd.utils.remote_code import HELP as REMOTE_CODE
from hf_glmd.utils.remote_code import trusting_as_asked

if TYPE_CHECKING:
    import datasets

SHOWN, SHOWN_CHARACTERS = 20, 80
"""Rows of the table for people, and characters of each text in it."""


@dataclass
class PredictOptions:
    """What `hf-glmd predict` can be told; each field's help text is its documentation.

    Raises: UsageError, a value is missing or out of range; all such values are named together.
    """

    model: str = option(
        "A student of a recipe with a task: a folder with cloze_task.json, or the name of a model on the Hub.", ""
    )
    revision: str | None = option("Branch, tag or commit of the model on the Hub.")
    text: list[str] = list_option("Texts to ask about, for a task that reads one column.")
    data: str | None = option("Table with the columns that the task reads: a file, a folder, or a data set on the Hub.")
    split: str | None = option("Split of the data. Unset: test, or the only one there is.")
    output: str | None = option("Write all answers there as JSON lines: idx, label and probability.")
    overwrite: bool = option("Replace the output file, if there is one.", False)
    batch_size: int = option("Sequences per forward pass; it changes no answer.", 64)
    trust_remote_code: bool = option(REMOTE_CODE, False)

    def __post_init__(self) -> None:
        mistakes = []
        if not self.model:
            mistakes.append("the model is missing: name a folder, or a model on the Hub")
        if bool(self.text) == (self.data is not None):
            mistakes.append("give either --text or --data")
        if self.batch_size < 1:
            mistakes.append(f"--batch-size {self.batch_size} is too small, use 1 or more")
        if self.split is not None and self.data is None:
            mistakes.append("--split belongs to --data")
        if self.output is not None and Path(self.output).exists() and not self.overwrite:
            mistakes.append(f"--output '{self.output}' exists: name another file, or add --overwrite")
        if mistakes:
            raise UsageError("; ".join(mistakes) + ".")


@dataclass
class Predictions:
    """What `predict_answers_of` found.

    Attributes:
        task: its name.
        answers: of each row.
        probabilities: of those answers, in [0, 1], as the probability is shared among the answers.
        texts: of each row, the columns that the task reads.
        unread: columns of the data that the task does not read.
        score: what the answers score, if the rows have labels; then `metric` says by which measure.
        unscored: why they could not be scored, although there is a column of labels.
        output: the file that was written.
    """

    task: str
    answers: list[str]
    probabilities: list[float]
    texts: list[dict[str, Any]]
    unread: list[str] = field(default_factory=list)
    metric: str | None = None
    score: float | None = None
    unscored: str | None = None
    output: str | None = None

    def table(self) -> str:
        """For people: the first rows, how often each answer was given, and the score."""
        from hf_glmd.utils.text import markdown_table, percent, visible

        columns = list(self.texts[0])
        rows = [
            (answer, percent(share), *(_short(visible(str(row[column]))) for column in columns))
            for answer, share, row in zip(self.answers[:SHOWN], self.probabilities, self.texts, strict=False)
        ]
        parts = [markdown_table(rows, [self.task, "probability", *columns])]
        if len(self.answers) > SHOWN:
            where = f"all are in {self.output}" if self.output else "--output FILE writes all"
            counts = ", ".join(f"{answer} {count:,}" for answer, count in Counter(self.answers).most_common(10))
            parts.append(f"The first {SHOWN} of {len(self.answers):,}; {where}. {counts}.")
        elif self.output:
            parts.append(f"Written to {self.output}")
        if self.score is not None:
            parts.append(f"{self.metric}: {percent(self.score)} (n={len(self.answers):,})")
        if self.unscored is not None:
            parts.append(f"Not scored: {self.unscored}")
        if self.unread:
            parts.append(f"Columns that the task does not read: {', '.join(self.unread)}.")
        return "\n\n".join(parts)


def _short(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 3]}..."


@trusting_as_asked
def predict_answers_of(options: PredictOptions) -> Predictions:
    """Asks a student the task it learnt, of texts or of each row of a table.

    Raises: UsageError, the model was trained on no task, or the data lack what it reads.
    """
    # Loaded here, for `hf-glmd predict --help` reads the options above and needs none of it.
    from hf_glmd.evaluation.classifier import ClozeClassifier
    from hf_glmd.tasks.task_file import SavedTask
    from hf_glmd.utils.files import replaced

    saved = SavedTask.load(options.model, options.revision)
    data = None if options.data is None else _table(saved, options)  # before a large model is loaded
    classifier = ClozeClassifier.from_pretrained(options.model, options.revision)
    rows = classifier.rows(options.text if data is None else data)
    shares = classifier.scores(rows, options.batch_size)
    chosen = shares.argmax(-1)
    answers, columns = classifier.task.predictions(rows, chosen), classifier.task.columns
    best = [math.exp(share) for share in shares.max(-1)]
    found = Predictions(
        task=classifier.task.name,
        answers=answers,
        probabilities=best,
        texts=[{column: row[column] for column in columns} for row in rows.select_columns(columns)],
        unread=[name for name in rows.column_names if name not in {*columns, classifier.task.label_column, "idx"}],
        output=options.output,
    )
    if classifier.task.label_column in rows.column_names:
        try:
            found.metric, found.score = classifier.task.metric_name, classifier.task.score(rows, chosen)["score"]
        except UsageError as error:  # of labels, which the answers do not need
            found.metric, found.unscored = None, str(error)
    if options.output is not None:
        indices = rows["idx"][:] if "idx" in rows.column_names else range(len(rows))
        with replaced(Path(options.output)) as unfinished:
            unfinished.write_text(
                "".join(
                    json.dumps({"idx": index, "label": answer, "probability": share}, ensure_ascii=False) + "\n"
                    for index, answer, share in zip(indices, answers, best, strict=True)
                ),
                encoding="utf-8",
            )
    return found


def _table(saved: Any, options: PredictOptions) -> datasets.Dataset:
    from hf_glmd.tasks.loading import load_task_data

    found = load_task_data(saved.task, options.data)
    split = options.split or ("test" if "test" in found else next(iter(found)) if len(found) == 1 else None)
    if split not in found:
        named = f"not '{split}'" if split else "none of them called test"
        raise UsageError(f"'{options.data}' has the splits {list(found)}, {named}. Choose one with --split.")
    saved.task.check_columns(found[split], labelled=False)
    if not len(found[split]):
        raise UsageError(f"the split '{split}' of '{options.data}' is empty. Choose one with rows.")
    return found[split]
