"""What lies in a folder that this package wrote, whichever of its commands wrote it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_glmd.errors import UsageError
from hf_glmd.reports.records import STAGES, RunRecord, StageRecord, TaskScores
from hf_glmd.reports.vocab_report import REPORT_FILE, VocabReport
from hf_glmd.utils.files import check_sums

RUN_FILE, METRICS_FILE, LOG_FILE, CACHE_FILE = "run.json", "metrics.json", "trainer_state.json", "cache.json"
MAP_FILE = "vocab_map.safetensors"

LOOKED_FOR = (
    f"{METRICS_FILE} or {RUN_FILE} (a recipe's run), {REPORT_FILE} or {MAP_FILE} (a smaller vocabulary), {LOG_FILE} or "
    f"checkpoint-* (training), {CACHE_FILE} (a teacher's cache)"
)

CURVES = {
    "eval_kl": "kl",
    "eval_agreement": "agreement",
    "eval_accuracy": "accuracy",
    "eval_loss": "held-out loss",
    "loss": "training loss",
    "learning_rate": "learning rate",
}
"""What the Trainer logs -> what it is called in a report."""

Curve = list[tuple[float, float]]
"""(step, value), in order."""


@dataclass
class StageFacts:
    """A training stage, finished or not.

    Attributes:
        title: what a person reads.
        task: of a list of tasks, which one.
        record: None: it is not finished, or no recipe ran it.
        settings: its section of the recipe, or what the Trainer wrote down.
        curves: by name, one of `CURVES`.
        step, max_steps: how far it came.
    """

    title: str
    task: str | None = None
    record: StageRecord | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    curves: dict[str, Curve] = field(default_factory=dict)
    step: int = 0
    max_steps: int = 0


@dataclass
class CheckpointFacts:
    """A model as its files say, without loading it.

    Attributes:
        architecture, model_type: as in config.json.
        layers, vocabulary: None: config.json does not say.
        parameters, bytes: of all tensors, shared ones as often as they are stored.
        dtypes: of the tensors, commonest first.
    """

    architecture: str
    model_type: str
    layers: int | None
    vocabulary: int | None
    parameters: int
    bytes: int
    dtypes: list[str]


@dataclass
class CacheFacts:
    """A teacher that was written to disk.

    Attributes:
        settings: what it holds, e.g. its kind and dtype.
        made_from: its fingerprint, flattened.
        finished: whether all shards are there.
        shards, rows, positions, bytes: of the shards that are there.
    """

    settings: dict[str, Any]
    made_from: dict[str, Any]
    finished: bool
    shards: int
    rows: int
    positions: int
    bytes: int


@dataclass
class Answers:
    """How often teacher and student gave which answer to a task's questions.

    Attributes:
        file: of the predictions, e.g. "cb_test.jsonl".
        answers: commonest first.
        table: [teacher's answer][student's answer] -> questions.
    """

    file: str
    answers: list[str]
    table: list[list[int]]


@dataclass
class FolderFacts:
    """Everything a report shows. What the folder does not have is None or empty.

    Attributes:
        name: of the folder.
        part_of: name of the run it belongs to, and that is reported on.
        run: None where no recipe wrote the folder, or not to its end yet.
        recipe: as it was understood; the section `hub` of it holds no token.
        vocabulary, removed: how the vocabulary was cut, and what became of removed tokens.
        stages: training, in order.
        tasks: scores of the tasks that are finished.
        checkpoint: the model in the folder.
        cache: the teacher in the folder.
        answers: of the tasks' test questions.
    """

    name: str
    part_of: str | None = None
    run: RunRecord | None = None
    recipe: dict[str, Any] = field(default_factory=dict)
    vocabulary: VocabReport | None = None
    removed: str | None = None
    stages: list[StageFacts] = field(default_factory=list)
    tasks: list[TaskScores] = field(default_factory=list)
    checkpoint: CheckpointFacts | None = None
    cache: CacheFacts | None = None
    answers: list[Answers] = field(default_factory=list)


def read_folder(directory: Path) -> FolderFacts:
    """Reads what a report is made from.

    Of a folder inside of a recipe's run, such as its student, the run is read.

    Raises: UsageError, the folder is missing or holds nothing of ours, or a file of it cannot be read.
    """
    if not directory.is_dir():
        raise UsageError(f"'{directory}' is not a folder: name one that this package wrote.")
    check_sums(directory)
    run = _run_around(directory)
    if run is not None:
        facts = _read_run(run)
        facts.part_of = None if run == directory else facts.name
        return facts
    facts = FolderFacts(name=directory.resolve().name)
    if (directory / REPORT_FILE).exists():
        facts.vocabulary = VocabReport.load(directory / REPORT_FILE)
    facts.removed = _removed(directory)
    if log := _newest_log(directory):
        facts.stages = [_logged_stage(log, "Training")]
    if (directory / CACHE_FILE).exists():
        facts.cache = _read_cache(directory)
    if not (facts.vocabulary or facts.removed or facts.stages or facts.cache):
        raise UsageError(f"'{directory}' holds nothing to report on. Looked for {LOOKED_FOR}.")
    facts.checkpoint = _read_checkpoint(directory) or (_read_checkpoint(log.parent) if log else None)
    return facts


def _run_around(directory: Path) -> Path | None:
    """The run that a folder is or belongs to: `student/`, `students/TASK/`, `stages/TASK/STAGE/`."""
    if _is_run(directory):
        return directory
    inside = directory.resolve()
    for parent in list(inside.parents)[:3]:
        owned = inside.relative_to(parent).parts[0]
        if owned in ("student", "students", "stages", "predictions", "plots", "logs") and _is_run(parent):
            return parent
    return None


def _is_run(directory: Path) -> bool:
    """Others call their files run.json and metrics.json, too."""
    signs = ((METRICS_FILE, "words_final"), (RUN_FILE, "teacher"))
    return any((directory / name).is_file() and sign in _read_json(directory / name) for name, sign in signs)


def _read_run(directory: Path) -> FolderFacts:
    metrics, stages = directory / METRICS_FILE, directory / "stages"
    recipe = _read_json(directory / RUN_FILE) if (directory / RUN_FILE).exists() else {}
    facts = FolderFacts(name=directory.resolve().name, recipe=recipe)
    if metrics.exists():
        facts.run = _built(RunRecord.load, metrics)
        facts.tasks = facts.run.tasks or ([facts.run.task] if facts.run.task else [])
    else:
        facts.tasks = [_built(_task_scores, file) for file in sorted(stages.glob("**/scores/done.json"))]
    for folder in (directory / "student", stages / "student"):
        if facts.vocabulary is None and (folder / REPORT_FILE).exists():
            facts.vocabulary = VocabReport.load(folder / REPORT_FILE)
        facts.removed = facts.removed or _removed(folder)
    facts.stages = _read_stages(stages, recipe)
    if not facts.stages and facts.run is not None:  # the folder of the stages was deleted
        facts.stages = [_stage(record, recipe, None) for record in facts.run.stages]
    facts.answers = _read_answers(directory / "predictions")
    return facts


def _read_stages(folder: Path, recipe: Mapping[str, Any]) -> list[StageFacts]:
    stages = []
    tasks = sorted({path.parent.parent.name for path in folder.glob("*/*/done.json")})
    for task in [None, *tasks]:
        for name in STAGES:
            here = folder / (task or "") / name
            if (here / "done.json").exists():
                stages.append(_stage(_built(_stage_record, here / "done.json"), recipe, task))
            elif log := _newest_log(here / "checkpoints"):
                unfinished = _logged_stage(log, name)
                unfinished.task, unfinished.settings = task, dict(recipe.get(name) or {})
                stages.append(unfinished)
    return stages


def _stage(record: StageRecord, recipe: Mapping[str, Any], task: str | None) -> StageFacts:
    steps = record.steps_evaluated
    curves = {
        "kl": _curve(steps, record.kl),
        "agreement": _curve(steps, record.agreement),
        "accuracy": _curve(steps, record.accuracy),
        "training loss": _curve(record.steps_logged, record.loss),
    }
    return StageFacts(
        title=record.title,
        task=task,
        record=record,
        settings=dict(recipe.get(record.name) or {}),
        curves={name: curve for name, curve in curves.items() if curve},
        step=record.steps,
        max_steps=record.steps,
    )


def _curve(steps: list[int], values: list[float]) -> Curve:
    return list(zip(steps, values, strict=True)) if values else []


def _newest_log(directory: Path) -> Path | None:
    """trainer_state.json of the folder itself, or of its newest checkpoint."""
    if (directory / LOG_FILE).exists():
        return directory / LOG_FILE
    logs = [path for path in directory.glob(f"checkpoint-*/{LOG_FILE}") if path.parent.name.split("-")[-1].isdigit()]
    return max(logs, key=lambda path: int(path.parent.name.split("-")[-1]), default=None)


def _logged_stage(log: Path, title: str) -> StageFacts:
    state = _read_json(log)
    history = state.get("log_history", [])
    curves: dict[str, Curve] = {}
    for logged, name in CURVES.items():
        points = {entry["step"]: entry[logged] for entry in history if logged in entry}
        curve = [(step, value) for step, value in sorted(points.items()) if _is_number(value)]
        if curve:
            curves[name] = curve
    settings = {
        name: state[name]
        for name in ("num_train_epochs", "train_batch_size", "num_input_tokens_seen", "best_metric", "best_global_step")
        if state.get(name)
    }
    settings |= {name: value for name, value in (history[-1] if history else {}).items() if name.startswith("train_")}
    return StageFacts(title, None, None, settings, curves, state.get("global_step", 0), state.get("max_steps", 0))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _removed(directory: Path) -> str | None:
    """What became of removed tokens, as the vocabulary map says; None: there is none."""
    file = directory / MAP_FILE
    if not file.exists():
        return None
    return _header(file).get("__metadata__", {}).get("removed", "resegment")


def _read_checkpoint(directory: Path) -> CheckpointFacts | None:
    files = [file for file in sorted(directory.glob("*.safetensors")) if file.name not in (MAP_FILE, "counts.safetensors")]
    if not files or not (directory / "config.json").exists():
        return None
    config = _read_json(directory / "config.json")
    text = config.get("text_config") or config
    tensors = [entry for file in files for name, entry in _header(file).items() if name != "__metadata__"]
    sizes: dict[str, int] = {}
    for tensor in tensors:
        sizes[tensor["dtype"]] = sizes.get(tensor["dtype"], 0) + math.prod(tensor["shape"])
    return CheckpointFacts(
        architecture=", ".join(config.get("architectures") or []),
        model_type=config.get("model_type", ""),
        layers=text.get("num_hidden_layers") or text.get("num_layers") or text.get("n_layer"),
        vocabulary=text.get("vocab_size"),
        parameters=sum(sizes.values()),
        bytes=sum(file.stat().st_size for file in files),
        dtypes=sorted(sizes, key=lambda dtype: -sizes[dtype]),
    )


def _header(file: Path) -> dict[str, Any]:
    """Of a safetensors file: name -> dtype and shape. Raises: UsageError, it is none."""
    try:
        with open(file, "rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > file.stat().st_size:
                raise ValueError("its header is longer than the file")
            return json.loads(stream.read(length))
    except (OSError, ValueError) as error:
        raise UsageError(f"'{file}' cannot be read ({error}): save it again.") from error


def _read_cache(directory: Path) -> CacheFacts:
    data = _read_json(directory / CACHE_FILE)
    made_from = data.pop("fingerprint", None) or {}
    shards = [_read_json(file) for file in sorted(directory.glob("shard-*.json"))]
    return CacheFacts(
        settings={name: value for name, value in data.items() if value is not None},
        made_from=_flat(made_from),
        finished=(directory / "whole.json").exists(),
        shards=len(shards),
        **{name: sum(shard.get(name, 0) for shard in shards) for name in ("rows", "positions", "bytes")},
    )


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"data": {"corpus": "x"}} -> {"data.corpus": "x"}."""
    flat: dict[str, Any] = {}
    for name, value in data.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def _read_answers(folder: Path) -> list[Answers]:
    """Files that both `teacher/` and `student/` have, one answer per question."""
    found = []
    for file in sorted(folder.glob("**/teacher/*.jsonl")):
        other = file.parent.parent / "student" / file.name
        if not other.exists():
            continue
        pairs = [[json.loads(line).get("label") for line in path.read_text("utf-8").splitlines()] for path in (file, other)]
        teacher, student = ([str(label) for label in labels] for labels in pairs)
        answers = sorted(set(teacher) | set(student), key=lambda answer: (-teacher.count(answer), answer))
        if "None" in answers or len(answers) > MAX_ANSWERS or len(teacher) != len(student):
            continue  # free text, or several answers a line
        place = {answer: number for number, answer in enumerate(answers)}
        table = [[0] * len(answers) for _ in answers]
        for one, another in zip(teacher, student, strict=True):
            table[place[one]][place[another]] += 1
        found.append(Answers(str(file.relative_to(folder).with_name(file.name)).replace("teacher/", ""), answers, table))
    return found


MAX_ANSWERS = 12
"""Different answers of a task that still make a table."""


def _read_json(file: Path) -> dict[str, Any]:
    data = _built(lambda path: json.loads(path.read_text(encoding="utf-8")), file)
    if not isinstance(data, dict):
        raise UsageError(f"'{file}' is not what this package writes: it holds no object.")
    return data


def _stage_record(file: Path) -> StageRecord:
    return StageRecord(**json.loads(file.read_text(encoding="utf-8")))


def _task_scores(file: Path) -> TaskScores:
    return TaskScores(**json.loads(file.read_text(encoding="utf-8")))


def _built(load: Any, file: Path) -> Any:
    """What `load` makes of the file. Raises: UsageError, it cannot be read."""
    try:
        return load(file)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UsageError(f"'{file}' cannot be read ({type(error).__name__}: {error}). Was it written by this package?") from error
