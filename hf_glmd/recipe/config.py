"""What a recipe file can say: its sections, read from YAML and the command line, checked before anything is loaded."""

from __future__ import annotations

import copy
import dataclasses
import re
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from hf_glmd.errors import UsageError, nearest
from hf_glmd.recipe.examples import with_own_paths
from hf_glmd.recipe.reading import build, converted, parse_overrides, read_yaml, section_of, set_value
from hf_glmd.reports.records import STAGES, TASK_STAGES
from hf_glmd.utils.options import TEXT_SOURCES, cache_kind
from hf_glmd.utils.remote_code import HELP as REMOTE_CODE


def _help(text: str, default: Any = dataclasses.MISSING, factory: Any = dataclasses.MISSING) -> Any:
    if factory is not dataclasses.MISSING:
        return field(default_factory=factory, metadata={"help": text})
    return field(default=default, metadata={"help": text})


@dataclass
class TeacherSection:
    model: str = _help("The teacher: a folder, or the name of a model on the Hub.")
    revision: str | None = _help("Branch, tag or commit on the Hub.", None)
    trust_remote_code: bool = _help(REMOTE_CODE, False)


@dataclass
class CorpusSection:
    name: str = _help(f"Plain text: {TEXT_SOURCES} (of installed libraries, no download).", "docstrings")
    config: str | None = _help("Configuration of a data set on the Hub.", None)
    column: str = _help("Column that holds the text.", "text")
    max_texts: int | None = _help("Use only that many training texts.", None)
    num_proc: int | None = _help("Processes that tokenise.", None)
    streaming: bool = _help(
        "Read it while training, and keep nothing on disk; general.max_steps and vocab.max_texts are needed.", False
    )


@dataclass
class VocabSection:
    size: float | None = _help("Share of the tokens to keep (0.5), or their exact number (15000).", None)
    coverage: float | None = _help("Or: keep the smallest vocabulary that covers this share of the counted tokens.", None)
    min_count: int | None = _help("Or: keep every token that was counted at least this often.", None)
    keep: list[str] = _help("Tokens that must stay, beside those of the task.", factory=list)
    multiple_of: int = _help("Round the size up to a multiple of this.", 1)
    removed: str = _help("What happens to removed tokens. 'resegment': they are re-split into kept pieces.", "resegment")
    max_texts: int | None = _help("Count only that many training texts.", None)

    def __post_init__(self) -> None:
        if self.size is not None and self.size > 1:
            if self.size != int(self.size):
                raise UsageError(f"vocab.size={self.size} is neither a share of at most 1 nor a whole number of tokens.")
            self.size = int(self.size)  # 15000, written as a number of tokens

    @property
    def active(self) -> bool:
        """Whether anything is cut at all."""
        return any(value is not None for value in (self.size, self.coverage, self.min_count))


@dataclass
class StudentSection:
    num_layers: int | None = _help("Layers of the student. Unset: half of the teacher's.", None)
    layers: list[int] | None = _help("Which teacher layers it starts from. Unset: spread evenly, first and last included.", None)
    init: str = _help("'teacher': start from the teacher's weights. 'random': from scratch, as in the paper.", "teacher")
    config: dict[str, Any] = _help(
        "Other values of the model's configuration, e.g. {hidden_size: 512}; needs init: random.", factory=dict
    )
    model: str | None = _help(
        "Instead of all these: a smaller checkpoint to start from, a folder or a model on the Hub, with the teacher's tokenizer.",
        None,
    )
    revision: str | None = _help("Of student.model: branch, tag or commit on the Hub.", None)

    def __post_init__(self) -> None:
        if self.init not in ("teacher", "random"):
            raise UsageError(f"student.init='{self.init}' is unknown. Use 'teacher' or 'random'.")
        if self.model is None and self.revision is not None:
            raise UsageError(f"student.revision={self.revision} is that of no model. Set student.model, or leave it out.")
        built = {"num_layers": self.num_layers, "layers": self.layers, "config": self.config or None}
        built |= {"init": "random" if self.init == "random" else None}
        said = [f"student.{name}={value}" for name, value in built.items() if value is not None]
        if self.model is not None and said:
            raise UsageError(
                f"student.model='{self.model}' is a whole model, and {' and '.join(said)} would build one of the teacher. Leave "
                "one of them out."
            )


@dataclass
class TaskSection:
    name: str = _help("What tables call the task; without a pattern one of those that come along, e.g. boolq, cb or sst2.", "")
    pattern: str | list[str] | None = _help(
        "Text with one {mask} and the columns it reads, e.g. 'from {mask} : {text}'; or several that ask the same.", None
    )
    verbalizers: dict[str, str] | None = _help("Answer, as it stands in the data -> the words that stand for it.", None)
    candidates: str | list[str] | None = _help(
        "Instead of verbalizers: the columns that hold one candidate each, or one column that holds a list of them.", None
    )
    candidate_answers: list[str] | None = _help(
        "What the label column says when the first, the second, ... candidate is right. Unset: 0, 1, ...; of a list, its text.",
        None,
    )
    metric: str | None = _help("What is scored, e.g. accuracy, accuracy_and_f1, macro_f1. Unset: accuracy.", None)
    split_verbalizers: str | None = _help(
        "'refuse' verbalizers of several tokens, or 'score' all of their tokens. Unset: refuse; tasks that come along: score.",
        None,
    )
    length_normalised: bool | None = _help("Score candidates by the mean over their tokens. Unset: by the total.", None)
    too_long: str | None = _help(
        "What becomes of an example that does not fit even without its longest field: 'refuse' it, or 'shorten' its others, "
        "too. Unset: refuse.",
        None,
    )
    pattern_number: int | Literal["first"] | None = _help(
        "Which pattern to use, from 0. first: the first one that suits the kind of model. null: train on all, and average their "
        "answers.",
        "first",
    )
    data: str = _help(
        "'docstrings', a data set on the Hub, or a folder with train/validation/test files (or of a benchmark's archive).",
        "docstrings",
    )
    config: str | None = _help("Configuration of a data set on the Hub.", None)
    test_data: str | None = _help("Where the test split is, if not in data.", None)
    unlabelled: str | None = _help(
        "More examples for the student, whose labels, if any, are not read: a file, a folder or a data set.",
        None,
    )
    replaced_copies: int = _help(
        "How many copies of each example the student reads besides, in which the teacher has replaced words by likely ones; for "
        "scarce text, needs a masked language model.",
        0,
    )
    replaced_share: float = _help("Share of the words that are replaced in a copy.", 0.15)
    label_column: str | None = _help(
        "Column of the labels: for the teacher and for scoring, never for the student. Unset: label.", None
    )
    train_split: str = _help("Split to train on.", "train")
    test_split: str = _help("Split to score on; it needs labels.", "test")
    predict_splits: list[str] = _help("More splits, possibly without labels, to write predictions for.", factory=list)
    max_length: int | None = _help("Token ids per example. Unset: what the teacher can read, at most 512.", None)
    max_train: int | None = _help("Use only that many training examples.", None)
    max_test: int | None = _help("Score only that many test examples.", None)
    patience: int | None = _help(
        "Stop the teacher's fine-tuning after so many evaluations without a better one. Unset: the best one counts, at the end.",
        None,
    )
    teacher_lora: dict[str, Any] | None = _help(
        "Fine-tune the teacher as an adapter on the general one: fields of peft.LoraConfig, e.g. {r: 8}.",
        None,
    )
    teacher: dict[str, Any] = _help(
        "What differs from the section task_teacher for this task, e.g. {num_train_epochs: 20}.", factory=dict
    )
    words: dict[str, Any] = _help("What differs from the section task_words for this task.", factory=dict)
    answers: dict[str, Any] = _help("What differs from the section task_answers for this task.", factory=dict)
    source: str | None = _help("Where pattern and words come from.", None)

    def __post_init__(self) -> None:
        if self.replaced_copies < 0 or not 0 < self.replaced_share < 1:
            raise UsageError(
                f"replaced_copies={self.replaced_copies} with replaced_share={self.replaced_share} of task {self.name} makes no "
                "sense. Use 0 copies or more, and a share between 0 and 1, e.g. 0.15."
            )

    def stage(self, stage: str) -> dict[str, Any]:
        """What differs for this task in a stage, e.g. "task_words"."""
        return getattr(self, stage.removeprefix("task_")) if stage != "general" else {}


@dataclass
class CacheSection:
    stages: list[str] = _help(
        "Stages whose teacher is run once over their rows and then read from disk: general, task_words.",
        factory=lambda: ["general"],
    )
    kind: str = _help(
        "'hidden': what enters the output embedding, good for any temperature. 'top_k': the top tokens, for T near 1.",
        "hidden",
    )
    dtype: str | None = _help("hidden: int8, bf16, fp16 or fp32; unset: int8. top_k: fp16 or fp32; unset: fp16.", None)
    k: int | None = _help("For top_k: how many tokens. Unset: 64.", None)
    epochs: int = _help("How many choices of masked tokens to cache of each row; training goes through them in turn.", 1)
    folder: str | None = _help(
        "Keep the caches here, one per stage, for other runs to use. Unset: in the output folder, until the stage is done.", None
    )

    def __post_init__(self) -> None:
        self.kind = cache_kind(self.kind)
        unknown = [stage for stage in self.stages if stage not in ("general", "task_words")]
        if unknown or not self.stages:
            raise UsageError(f"cache.stages={self.stages}: the teachers of general and task_words can be cached. Name these.")
        if self.kind not in ("hidden", "topk"):
            raise UsageError(f"cache.kind='{self.kind}' is unknown. Use 'hidden' or 'top_k'.")
        if self.epochs < 1:
            raise UsageError(f"cache.epochs={self.epochs} caches nothing. Use 1 or more.")


@dataclass
class EvaluationSection:
    rows: int = _help("Held-out rows on which masked words are scored, before and after.", 512)
    curve_rows: int = _help("Held-out rows on which the KL is measured while training.", 64)
    speed_batch_sizes: list[int] = _help("Batch sizes for tokens per second.", factory=lambda: [1, 32])
    speed_length: int = _help("Tokens per row when measuring speed.", 128)
    accept_worse: bool = _help("Publish even a student that plain text has led away from its teacher.", False)


@dataclass
class HubSection:
    repo: str = _help("Repository to push student/ to when the run is finished: user/name, or name alone for your own.")
    private: bool = _help("Create a private repository. One that exists stays as it is.", False)
    revision: str | None = _help("Branch to push to; it is made if it is not there. Unset: main.", None)
    overwrite: bool = _help("Replace what the repository holds, even if it is no model of hf_glmd; its history stays.", False)


@dataclass
class Recipe:
    """A whole run. A stage that is set to null is left out."""

    output_dir: str = _help("Where everything is written.")
    teacher: TeacherSection = _help("")
    corpus: CorpusSection = _help("", factory=CorpusSection)
    vocab: VocabSection = _help("", factory=VocabSection)
    student: StudentSection = _help("", factory=StudentSection)
    max_length: int | None = _help("Token ids per row of plain text. Unset: what the teacher can read, at most 512.", None)
    seed: int = _help("Of everything that is drawn.", 0)
    threads: int | None = _help("Threads of each process on a CPU. Unset: the cores, shared among the processes.", None)
    general: dict[str, Any] | None = _help(
        "Stage 1, word prediction on plain text: any field of GLMDConfig, and `preset`, settings by name that these win over.",
        None,
    )
    task: TaskSection | None = _help("", None)
    tasks: list[str | dict[str, Any]] | None = _help(
        "Several tasks, one student each from the same stage 1: names, or sections like 'task', which says what they share.", None
    )
    task_teacher: dict[str, Any] | None = _help("Fine-tuning of the teacher with labels: any field of TrainingArguments.", None)
    task_words: dict[str, Any] | None = _help("Stage 2, word prediction on the task's text: any field of GLMDConfig.", None)
    task_answers: dict[str, Any] | None = _help("Stage 3, the teacher's answers as soft labels: any field of GLMDConfig.", None)
    cache: CacheSection | None = _help("", None)
    callbacks: list[str] | None = _help(
        "TrainerCallbacks of every stage, by import path, e.g. my_package.my_module.MyCallback; each is made without arguments.",
        None,
    )
    evaluation: EvaluationSection = _help("", factory=EvaluationSection)
    hub: HubSection | None = _help("", None)

    @property
    def trust_remote_code(self) -> bool:
        """Whether the code of the teacher's repository may run; the student's is a copy of it."""
        return self.teacher.trust_remote_code

    def __post_init__(self) -> None:
        for stage in STAGES:
            options = getattr(self, stage)
            if options is None:
                continue
            self._apply_preset(stage)
            if stage != "general" and self.task is None and self.tasks is None:
                raise UsageError(f"section '{stage}' needs a section 'task'. Add it, or leave '{stage}' out.")
            _check_stage(getattr(self, stage), stage, stage)
        for stage in self.cache.stages if self.cache is not None else ():
            if getattr(self, stage) is None:
                raise UsageError(f"cache.stages names '{stage}', and there is no such section. Add it, or leave '{stage}' out.")
        for number, section in enumerate(self.task_sections):
            for stage in TASK_STAGES:
                part = stage.removeprefix("task_")
                where = f"task.{part}" if self.tasks is None else f"tasks[{number}].{part}"
                if section.stage(stage) and getattr(self, stage) is None:
                    raise UsageError(f"{where} says what differs from a section '{stage}', and there is none. Add it.")
                _check_stage(section.stage(stage), stage, where)
            if section.teacher_lora is not None:
                _check_lora(section.teacher_lora, "task" if self.tasks is None else f"tasks[{number}]")

    def _apply_preset(self, stage: str) -> None:
        """Writes out what a preset stands for, so that run.json says it. Raises: UsageError, it is unknown, or has no meaning."""
        from hf_glmd.training.config import preset_options

        options = getattr(self, stage)
        if "preset" not in options:
            return
        if stage in ("task_teacher", "task_answers"):
            raise UsageError(f"{stage}.preset has no meaning there: presets are for word prediction. Leave it out.")
        rest = {name: value for name, value in options.items() if name != "preset"}
        setattr(self, stage, preset_options(options["preset"]) | rest)

    @cached_property
    def task_sections(self) -> list[TaskSection]:
        """The tasks: those of the list, completed by what they share, or the one that there is.

        Raises: UsageError, one has no name, two have the same, or a key or value is wrong.
        """
        shared = dataclasses.asdict(self.task) if self.task is not None else {}
        if self.tasks is None:
            entries, wheres = ([{}] if shared else []), ["task"]
        else:
            entries = [{"name": entry} if isinstance(entry, str) else entry for entry in self.tasks]
            wheres = [f"tasks[{number}]" for number in range(len(entries))]
        sections = [
            build(TaskSection, copy.deepcopy(shared | entry), where) for entry, where in zip(entries, wheres, strict=False)
        ]
        for section, where in zip(sections, wheres, strict=False):
            if not section.name:
                raise UsageError(f"{where}.name is missing. {TaskSection.__dataclass_fields__['name'].metadata['help']}")
            if self.tasks is not None and not re.fullmatch(r"[\w-][\w.-]*", section.name):
                raise UsageError(f"{where}.name='{section.name}' cannot name a folder. Use letters, digits, - and _.")
            if self.tasks is not None and section.name.lower() in _TAKEN:
                raise UsageError(f"{where}.name='{section.name}' is the name of a folder of the run itself. Use another one.")
            # Folders of some file systems do not tell capitals apart.
            if sum(other.name.lower() == section.name.lower() for other in sections) > 1:
                raise UsageError(f"two tasks are called '{section.name}'. Give each a name of its own.")
        return sections


_TAKEN = ("student", "forecast", "general")
"""Folders of a run's steps, beside those of its tasks."""


def _check_stage(options: dict[str, Any], stage: str, where: str) -> None:
    """Converts the values in place. Raises: UsageError, one is not what the stage takes."""
    from transformers import TrainingArguments

    from hf_glmd.training.config import GLMDConfig

    # The teacher's fine-tuning is no distillation: it has neither a temperature nor a teacher.
    arguments = TrainingArguments if stage == "task_teacher" else GLMDConfig
    hints = typing.get_type_hints(arguments)
    for name, value in options.items():
        if name not in hints or name in RESERVED:
            why = RESERVED.get(name, f"is not a field of {arguments.__name__}. {nearest(name, set(hints) - set(RESERVED))}")
            raise UsageError(f"{where}.{name} {why}")
        if not (name == "bf16" and value == AUTO):
            options[name] = converted(value, hints[name], f"{where}.{name}")


def _check_lora(options: dict[str, Any], where: str) -> None:
    """Raises: UsageError, these are no values of an adapter."""
    from peft import LoraConfig

    known = {part.name for part in dataclasses.fields(LoraConfig)}
    for name in options:
        if name not in known:
            raise UsageError(f"{where}.teacher_lora.{name} is not a field of peft.LoraConfig. {nearest(name, known)}")
    try:
        LoraConfig(**options)
    except (ValueError, TypeError) as error:
        raise UsageError(f"{where}.teacher_lora: {' '.join(str(error).split())}") from error


AUTO = "auto"
"""bf16 of a stage: where the device has instructions for it. What the recipes that come along say."""

RESERVED = {
    "output_dir": "is set by the recipe. Use the top level's output_dir.",
    "objective": "follows from the stage. Leave it out.",
    "seed": "is set by the recipe. Use the top level's seed.",
    "hub_token": "would be written down with the recipe. Set the environment variable HF_TOKEN, or run `hf auth login`.",
}
"""GLMDConfig fields that a stage must not set, and why."""


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe.

    Args:
        path: YAML file.
        overrides: words of the command line, `--vocab.size 0.25` or `--vocab.size=0.25`; values are YAML.
    Raises: UsageError, there is no such file, or a key or value is wrong; the nearest valid key is named.
    """
    data = read_yaml(path)
    for key, value in parse_overrides(overrides):
        set_value(data, key, value)
    return build(Recipe, with_own_paths(data), "", _all_keys)


def options_help() -> str:
    """One line per key of a recipe, for `--help`."""
    lines = []
    for name, hint in typing.get_type_hints(Recipe).items():
        section = section_of(hint)
        help_text = Recipe.__dataclass_fields__[name].metadata["help"]
        if section is None:
            lines.append(f"  --{name}  {help_text}" if name not in STAGES else f"  --{name}.FIELD  {help_text}")
        else:
            lines += [f"  --{name}.{part.name}  {part.metadata['help']}" for part in dataclasses.fields(section)]
    return "\n".join(lines)


def _all_keys() -> list[str]:
    keys = []
    for name, hint in typing.get_type_hints(Recipe).items():
        section = section_of(hint)
        keys += [f"{name}.{part.name}" for part in dataclasses.fields(section)] if section else [name]
    from hf_glmd.training.config import GLMDConfig

    return keys + [f"{stage}.{part.name}" for stage in STAGES for part in dataclasses.fields(GLMDConfig)]
