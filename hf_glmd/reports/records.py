"""What a run did and what came out of it, as dataclasses, to and from JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_glmd.utils.files import write_json


@dataclass
class ModelFacts:
    """What a model weighs and how fast it is.

    Attributes:
        name: Hub name or folder.
        layers: transformer layers; encoder and decoder together.
        vocabulary: rows of the input embedding.
        embedding_parameters: of the input and output embeddings, shared tables counted once.
        body_parameters: all others.
        file_bytes: size of the weights as saved, in `file_dtype`.
        tokens_per_second: batch size -> tokens per second of a forward pass over rows of `speed_length` tokens.
    """

    name: str
    layers: int
    vocabulary: int
    embedding_parameters: int
    body_parameters: int
    file_bytes: int
    file_dtype: str
    speed_length: int = 0
    tokens_per_second: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.tokens_per_second = {int(size): speed for size, speed in self.tokens_per_second.items()}  # JSON keys are strings

    @property
    def parameters(self) -> int:
        return self.embedding_parameters + self.body_parameters


@dataclass
class EmbeddingScores:
    """How near an encoder's embeddings (pooled last hidden states) are to another's, on the same texts.

    Attributes:
        texts: how many were embedded.
        mean_cosine, worst_cosine: of both embeddings of a text, over the texts; None where their widths differ.
        similarity_correlation: Spearman's, of the cosines of pairs of texts under both encoders: whether they find the same texts
            alike; None of fewer than three texts.
        held_out: whether none of the texts was counted or trained on; None: unknown.
        pooling: how both were pooled, as sentence-transformers names it.
    """

    texts: int
    mean_cosine: float | None
    worst_cosine: float | None
    similarity_correlation: float | None
    held_out: bool | None = None
    pooling: str = "mean"

    def rows(self) -> list[tuple[str, str]]:
        """(fact, value), for people."""
        named = {
            "cosine to the original's embedding, mean": self.mean_cosine,
            "- of the worst text": self.worst_cosine,
            "rank correlation of text similarities": self.similarity_correlation,
        }
        return [(name, f"{value:.4f}") for name, value in named.items() if value is not None] + [("pooled by", self.pooling)]


@dataclass
class WordScores:
    """Word prediction at some positions of held-out text, masked ones or, of causal models, from what stands before them.

    Attributes:
        positions: how many were scored.
        accuracy: share where the top-1 token is the masked one.
        teacher_accuracy: the same of the teacher, among the student's tokens; None without a teacher.
        kl: mean KL(teacher || student) at temperature 1, in nats; None without a teacher.
        agreement: share where both have the same top-1 token; None without a teacher.
    """

    positions: int
    accuracy: float
    teacher_accuracy: float | None = None
    kl: float | None = None
    agreement: float | None = None


@dataclass
class WordSample:
    """One word of held-out text, and what both models took for likely.

    Attributes:
        before, behind: the text around it; nothing behind it for models that read from left to right.
        hidden: what stands there.
        teacher, student: (token, probability), most probable first, among the student's tokens.
    """

    before: str
    behind: str
    hidden: str
    teacher: list[tuple[str, float]]
    student: list[tuple[str, float]]

    def __post_init__(self) -> None:
        self.teacher, self.student = ([tuple(guess) for guess in guesses] for guesses in (self.teacher, self.student))


@dataclass
class AnswerSample:
    """One question of a task, and what both models answered.

    Attributes:
        question: the pattern filled in, long columns shortened, `___` for the blank.
        right: as the data say; None: they do not.
        teacher, student: their answers.
    """

    question: str
    right: str | None
    teacher: str
    student: str


@dataclass
class TaskScores:
    """A task's score on its test split.

    Attributes:
        name, metric: e.g. "docstring_library", "accuracy".
        count: examples scored.
        teacher, student: scores in [0, 1]; a correlation in [-1, 1].
        majority: score of always answering the commonest answer of the training split.
        agreement: share of examples where both give the same answer.
        seconds: of the task's stages and its scoring.
        samples: some questions with both answers.
    """

    name: str
    metric: str
    count: int
    teacher: float
    student: float
    majority: float
    agreement: float
    seconds: float = field(default=0.0, compare=False)  # two equal runs take different times
    samples: list[AnswerSample] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.samples = [AnswerSample(**sample) if isinstance(sample, dict) else sample for sample in self.samples]

    @property
    def retained(self) -> float | None:
        """The student's share of the teacher's gain over the commonest answer; None where the teacher gains nothing."""
        return retained_share([self])


def retained_share(tasks: Sequence[TaskScores]) -> float | None:
    """Of the tasks in which the teacher gains: the sum of the student's gains over the commonest answer by the teacher's."""
    tasks = gained(tasks)
    gain = sum(task.teacher - task.majority for task in tasks)
    return sum(task.student - task.majority for task in tasks) / gain if tasks else None


def gained(tasks: Sequence[TaskScores]) -> list[TaskScores]:
    """The tasks in which the teacher is better than the commonest answer: what was not gained cannot be retained."""
    return [task for task in tasks if task.teacher > task.majority]


@dataclass
class VocabFacts:
    """What was cut from the vocabulary; the fields of `VocabShrinker`'s report that people read.

    Attributes:
        original_size, size: tokens before and after.
        coverage: share of the counted tokens that were kept.
        length_ratio: tokens per text after, divided by before.
        tokens_per_text_before, tokens_per_text_after: on held-out text.
        removed_examples: the commonest tokens that were cut.
        removed: what happens to removed tokens: "resegment", "nearest" or "unk".
        scripts: of each writing system `script`, `tokens` before and `kept`, as in `VocabReport`.
    """

    original_size: int
    size: int
    coverage: float
    length_ratio: float
    tokens_per_text_before: float
    tokens_per_text_after: float
    removed_examples: list[str] = field(default_factory=list)
    removed: str = "resegment"
    scripts: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class StageRecord:
    """One training stage as it went.

    Attributes:
        name: "general", "task_teacher", "task_words" or "task_answers".
        title: what a person reads, e.g. "word prediction on plain text".
        objective: "word_prediction", "soft_label" or "gold_labels" (of the teacher's own fine-tuning).
        temperature: of both softmaxes; None for gold labels.
        positions: "all" or "masked"; None for answers.
        steps, seconds, batch_size, learning_rate: as run; `batch_size` over all processes and accumulation steps.
        steps_evaluated, kl, agreement: the curve on held-out rows, KL at temperature 1 in nats; empty for gold labels.
        accuracy: instead of KL and agreement, for gold labels.
        steps_logged, loss: the training loss as it was logged.
        tokens: read in training, padding left out; 0: not counted.
    """

    name: str
    title: str
    objective: str
    temperature: float | None
    positions: str | None
    steps: int
    seconds: float
    batch_size: int
    learning_rate: float
    steps_evaluated: list[int] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    agreement: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    steps_logged: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    tokens: int = 0


@dataclass
class ForecastRecord:
    """What a run was said to take before it began.

    Attributes:
        seconds: of all of it.
        peak_memory_mib: the most that the process was to hold.
        parts: seconds of each part, by its name.
    """

    seconds: float
    peak_memory_mib: float
    parts: dict[str, float]


@dataclass
class RunRecord:
    """A whole run: what `metrics.json` holds and model card, plots and table are made from.

    Attributes:
        words_start: the student before any training, beside the teacher, on held-out text.
        words_general: after stage 1. None: the stage was skipped.
        words_final: the published student, beside the same (general) teacher.
        words_visible: the same where no word is masked; None of causal models, which see what stands before a word alone, and of
            older records.
        task: None where a run has no task, or a list of them.
        tasks: of a list; each student comes from the published one, which has read plain text only.
        corpus, hardware, command: in words.
        versions: library -> version.
        counts_sorted: counted occurrences of tokens, commonest first, thinned to at most 512 ranks; `count_ranks` are theirs.
        max_tokens: longest input of the student.
        kind: what both models are: "masked language model" or "causal language model".
        samples: some words of held-out text with what both models took for likely.
        peak_memory_mib: the most that the process held, on its device; None of older records.
        forecast: what `--calibrate` said of time and memory; None: it was not asked.
    """

    name: str
    teacher: ModelFacts
    student: ModelFacts
    vocab: VocabFacts
    words_start: WordScores
    words_general: WordScores | None
    words_final: WordScores
    task: TaskScores | None
    stages: list[StageRecord]
    corpus: str
    hardware: str
    command: str
    versions: dict[str, str]
    count_ranks: list[int]
    counts_sorted: list[int]
    max_tokens: int
    seconds: float
    tasks: list[TaskScores] = field(default_factory=list)
    kind: str = "masked language model"
    samples: list[WordSample] = field(default_factory=list)
    words_visible: WordScores | None = None
    peak_memory_mib: float | None = None
    forecast: ForecastRecord | None = None

    @property
    def words_scored(self) -> str:
        """Which words its scores are about: "masked" or "next"."""
        return "masked" if self.kind.startswith("masked") else "next"

    def save(self, path: str | Path) -> None:
        write_json(path, dataclasses.asdict(self))

    @classmethod
    def load(cls, path: str | Path) -> RunRecord:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        parts: dict[str, Any] = {
            "teacher": ModelFacts,
            "student": ModelFacts,
            "vocab": VocabFacts,
            "words_start": WordScores,
            "words_general": WordScores,
            "words_final": WordScores,
            "words_visible": WordScores,
            "task": TaskScores,
            "forecast": ForecastRecord,
        }
        for key, part in parts.items():
            if data.get(key) is not None:
                data[key] = part(**data[key])
        data["stages"] = [StageRecord(**stage) for stage in data["stages"]]
        data["tasks"] = [TaskScores(**task) for task in data.get("tasks", [])]
        data["samples"] = [WordSample(**sample) for sample in data.get("samples", [])]
        return cls(**data)


TASK_STAGES = ("task_teacher", "task_words", "task_answers")


STAGES = ("general", *TASK_STAGES)
"""The training stages in their order; each is a section of the file."""
