"""A checkpoint's scores on text and tasks, alone or beside its teacher: what `hf-glmd evaluate` does."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from hf_glmd.errors import UsageError
from hf_glmd.reports.records import EmbeddingScores, ModelFacts, WordScores
from hf_glmd.utils.options import TEXT_SOURCES, list_option, option
from hf_glmd.utils.remote_code import HELP as REMOTE_CODE
from hf_glmd.utils.remote_code import trusting_as_asked

if TYPE_CHECKING:
    import datasets
    import numpy as np
    import torch
    from transformers import PreTrainedModel

    from hf_glmd.tasks.cloze import ClozeTask

READERS = "the models can"
SPEED_LENGTH = 128
"""Tokens per row when the speed is measured."""


@dataclass
class EvaluateOptions:
    """What `hf-glmd evaluate` can be told; each field's help text is its documentation.

    Raises: UsageError, a value is missing or out of range; all such values are named together.
    """

    model: str = option("The checkpoint: a folder, or the name of a model on the Hub.", "")
    teacher: str | None = option(
        "The model it was made from, to be scored beside it. A smaller vocabulary is found in the folder of the checkpoint."
    )
    revision: str | None = option("Branch, tag or commit of the model on the Hub.")
    teacher_revision: str | None = option("Branch, tag or commit of the teacher on the Hub.")
    text: list[str] = list_option(f"Held-out text: {TEXT_SOURCES}.")
    column: str = option("Column that holds the text.", "text")
    max_texts: int = option("Score only that many texts, the first ones.", 2_000)
    tasks: list[str] = list_option("Tasks that come along, e.g. boolq cb sst2, asked as cloze questions.")
    task_data: str | None = option("Folder with the tasks' files, or a data set on the Hub (aps/super_glue, nyu-mll/glue).")
    split: str = option("Split of the tasks to score; it needs labels.", "validation")
    max_length: int | None = option("Token ids per row. Unset: what both models can read, at most 512.")
    batch_size: int = option("Rows per forward pass; it changes no score.", 32)
    no_speed: bool = option("Do not measure tokens per second.", False)
    trust_remote_code: bool = option(REMOTE_CODE, False)

    def __post_init__(self) -> None:
        mistakes = []
        if not self.model:
            mistakes.append("the model is missing: name a folder, or a model on the Hub")
        if not self.text and not self.tasks:
            mistakes.append("there is nothing to score: give --text, --tasks or both")
        for name, least in (("max_texts", 1), ("batch_size", 1), ("max_length", 3)):
            value = getattr(self, name)
            if value is not None and value < least:
                mistakes.append(f"--{name.replace('_', '-')} {value} is too small, use {least} or more")
        if (self.task_data is None) != (not self.tasks):
            mistakes.append("--tasks and --task-data belong together, e.g. --tasks cb rte --task-data aps/super_glue")
        if mistakes:
            raise UsageError("; ".join(mistakes) + ".")


@dataclass
class TaskScore:
    """A task's scores on one split.

    Attributes:
        name, metric: e.g. "cb", "accuracy_and_macro_f1".
        count: examples.
        score, teacher: in [0, 1]; a correlation in [-1, 1]. teacher: None without one.
        majority: of always giving the answer that is right most often in this split.
        agreement: share of the examples where both give the same answer; None without a teacher.
    """

    name: str
    metric: str
    count: int
    score: float
    majority: float
    teacher: float | None = None
    agreement: float | None = None


@dataclass
class ModelScores:
    """What `evaluate_checkpoint` found.

    Attributes:
        model, teacher: size and speed; teacher: None without one.
        words: on held-out text, masked tokens of masked models and next words of causal ones; None without text.
        kind: "masked" or "next": which words; "" of an encoder.
        embeddings: of an encoder, beside its teacher's.
        tasks: in the order that was asked for.
        hardware: on which the speed was measured.
    """

    model: ModelFacts
    teacher: ModelFacts | None
    words: WordScores | None
    kind: str
    tasks: list[TaskScore]
    hardware: str
    embeddings: EmbeddingScores | None = None

    def table(self) -> str:
        """For people."""
        from hf_glmd.utils.text import markdown_table, percent

        models = [self.model] if self.teacher is None else [self.teacher, self.model]
        rows = [
            ("layers", *(f"{facts.layers:,}" for facts in models)),
            ("vocabulary (tokens)", *(f"{facts.vocabulary:,}" for facts in models)),
            ("parameters", *(f"{facts.parameters:,}" for facts in models)),
        ]
        for size in self.model.tokens_per_second:
            speeds = [facts.tokens_per_second.get(size) for facts in models]
            rows.append((f"tokens/s, {size} x {self.model.speed_length} tokens", *(f"{speed:,.0f}" for speed in speeds)))
        if words := self.words:
            shown = [words.accuracy] if self.teacher is None else [words.teacher_accuracy, words.accuracy]
            rows.append((f"{self.kind}-word accuracy (n={words.positions:,})", *map(percent, shown)))
            if words.kl is not None:
                rows.append(("KL to the teacher, nats", "0", f"{words.kl:.3f}"))
                rows.append(("same top-1 word as the teacher", "100%", percent(words.agreement)))
        for task in self.tasks:
            shown = [task.score] if self.teacher is None else [task.teacher, task.score]
            rows.append((f"{task.name}, {task.metric} (n={task.count:,})", *map(percent, shown)))
            rows.append(("- always the commonest answer", *[percent(task.majority)] * len(models)))
            if task.agreement is not None:
                rows.append(("- same answer as the teacher", "100%", percent(task.agreement)))
        if self.embeddings is not None:
            rows.append(("texts embedded", *[f"{self.embeddings.texts:,}"] * len(models)))
            rows += [(name, "1", value) for name, value in self.embeddings.rows()]
        header = ["", "model"] if self.teacher is None else ["", "teacher", "model"]
        return markdown_table(rows, header, "l" + "r" * len(models)) + (
            f"\n\nSpeed on {self.hardware}." if self.model.tokens_per_second else ""
        )


@trusting_as_asked
def evaluate_checkpoint(options: EvaluateOptions) -> ModelScores:
    """Scores a masked or causal language model, and its teacher beside it, on the same text and questions; of a text encoder,
    how near its embeddings are to its teacher's.

    Raises: UsageError, something is missing, has no labels, or model and teacher do not fit together.
    """
    # Loaded here, for `hf-glmd evaluate --help` reads the options above and needs none of it.
    from accelerate import PartialState

    from hf_glmd.evaluation.words import compare_word_predictions, model_facts
    from hf_glmd.models.heads import is_masked_lm, output_embedding
    from hf_glmd.models.lengths import readable, row_length
    from hf_glmd.models.loading import load_config, predicts_nothing
    from hf_glmd.tasks.catalogue import task_by_name
    from hf_glmd.teachers.live import LiveTeacher
    from hf_glmd.teachers.vocabularies import check_same_words, with_shared_rows
    from hf_glmd.utils.system import hardware
    from hf_glmd.vocab.mapped_tokenizer import load_tokenizer
    from hf_glmd.vocab.tokenizer_files import set_missing_pad_token

    if predicts_nothing(load_config(options.model, options.revision)):
        return _evaluate_encoder(options)
    tasks = [task_by_name(name) for name in options.tasks]
    texts = _texts(options)
    tokenizer = load_tokenizer(options.model, options.revision)
    set_missing_pad_token(tokenizer)
    device = PartialState().device
    model = _load(options.model, options.revision, device)
    models: dict[str, tuple[Any, Any]] = {}
    teacher = None
    if options.teacher is not None:
        own = load_tokenizer(options.teacher, options.teacher_revision)
        set_missing_pad_token(own)
        vocab_map = _map_of(options.model)
        check_same_words(tokenizer, own, vocab_map)
        teacher = LiveTeacher(_load(options.teacher, options.teacher_revision, device), vocab_map)
        rows = output_embedding(model).weight.shape[0]
        teacher = with_shared_rows(rows, teacher, tokenizer, same_words=True, mapped=vocab_map is not None)
        if is_masked_lm(teacher.model) != is_masked_lm(model):
            raise UsageError(f"'{options.model}' and '{options.teacher}' are of different kinds: one fills blanks, one goes on.")
        models["teacher"] = (LiveTeacher(teacher.model), own)
    models["model"] = (LiveTeacher(model), tokenizer)
    length = row_length(options.max_length, readable([one.model for one, _ in models.values()]), tokenizer, READERS)
    words = None
    if texts is not None:
        from hf_glmd.data.packing import pack_blocks

        blocks = pack_blocks(texts, tokenizer, length)
        words = compare_word_predictions(model, teacher, tokenizer, blocks, batch_size=options.batch_size)
    speed = () if options.no_speed else (1, 32)
    both = [model] if teacher is None else [model, teacher.model]
    facts = model_facts(both, [options.model, options.teacher or ""][: len(both)], speed, min(length, SPEED_LENGTH))
    return ModelScores(
        model=facts[0],
        teacher=None if teacher is None else facts[1],
        words=words,
        kind="masked" if is_masked_lm(model) else "next",
        tasks=[_score(task, options, models, length, device, causal=not is_masked_lm(model)) for task in tasks],
        hardware=hardware(),
    )


def _evaluate_encoder(options: EvaluateOptions) -> ModelScores:
    """An encoder has no words to score: its embeddings are compared with the teacher's."""
    from accelerate import PartialState

    from hf_glmd.evaluation.words import model_facts
    from hf_glmd.models.lengths import readable, row_length
    from hf_glmd.models.loading import load_checkpoint
    from hf_glmd.models.sentence_modules import pooled_to_compare
    from hf_glmd.shrinking.embeddings import compare_embeddings
    from hf_glmd.utils.system import hardware
    from hf_glmd.vocab.mapped_tokenizer import load_tokenizer

    if options.tasks or options.teacher is None or not options.text:
        raise UsageError(
            f"'{options.model}' is a text encoder, which predicts no words: only its embeddings can be compared with those of "
            "the model it was made from. Give --teacher and --text, and no --tasks."
        )
    texts, device = _texts(options)["text"][:], PartialState().device
    names = [(options.model, options.revision), (options.teacher, options.teacher_revision)]
    tokenizers = tuple(load_tokenizer(name, revision) for name, revision in names)
    models = [load_checkpoint(name, revision=revision).to(device).float().eval() for name, revision in names]
    length = row_length(options.max_length, readable(models), tokenizers[0], READERS)
    speed = () if options.no_speed else (1, 32)
    facts = model_facts(models, [name for name, _ in names], speed, min(length, SPEED_LENGTH))
    pooled = pooled_to_compare(*names[1])
    scores = compare_embeddings(*models, tokenizers, texts, length, options.batch_size, pooled)
    return ModelScores(facts[0], facts[1], None, "", [], hardware(), scores)


def _texts(options: EvaluateOptions) -> datasets.Dataset | None:
    import datasets

    from hf_glmd.data.sources import read_texts, say_empty

    if not options.text:
        return None
    sources = [read_texts(source, options.column)[0] for source in options.text]
    rows = [text for source in sources for text in islice(source, options.max_texts)]
    texts = [text for text in rows if text]
    say_empty(len(rows) - len(texts), len(rows), "--text")
    if not texts:
        raise UsageError(f"--text {' '.join(options.text)} holds no text.")
    return datasets.Dataset.from_dict({"text": texts[: options.max_texts]})


def _load(name: str, revision: str | None, device: torch.device) -> PreTrainedModel:
    import torch

    from hf_glmd.models.loading import load_word_model

    model = load_word_model(name, revision=revision, **({"dtype": torch.float32} if device.type == "cpu" else {}))
    if model.config.is_encoder_decoder:
        raise UsageError(
            f"'{name}' is an encoder-decoder ({model.config.model_type}), of which neither text nor cloze questions are scored. "
            "Use GLMDTrainer.evaluate."
        )
    return model.to(device).eval()


def _map_of(folder: str) -> Any:
    from pathlib import Path

    from hf_glmd.vocab.vocab_map import FILE_NAME, VocabMap

    return VocabMap.load(folder) if (Path(folder) / FILE_NAME).exists() else None


def _score(
    task: ClozeTask,
    options: EvaluateOptions,
    models: dict[str, tuple[Any, Any]],
    length: int,
    device: torch.device,
    causal: bool,
) -> TaskScore:
    import numpy as np

    from hf_glmd.tasks.loading import load_task_data
    from hf_glmd.tasks.scoring import choose_answers, chosen_patterns, encode_reworded

    data = load_task_data(task, options.task_data)
    if options.split not in data:
        raise UsageError(f"the data of task {task.name} have the splits {list(data)}, not '{options.split}'. Use --split.")
    examples = data[options.split]
    task.check_columns(examples, labelled=True)
    patterns = chosen_patterns(task, "first", causal)
    answers: dict[str, np.ndarray] = {}
    for who, (model, tokenizer) in models.items():
        task.check_tokenizer(tokenizer, causal=causal)
        parts = encode_reworded(task, examples, tokenizer, length, patterns, labelled=False, causal=causal)
        answers[who] = choose_answers(model.logits, parts, tokenizer, device, desc=f"Answers of the {who} ({task.name})")
    commonest = np.full(len(examples), task.commonest_answer(examples))
    taught = "teacher" in answers
    return TaskScore(
        name=task.name,
        metric=task.metric_name,
        count=len(examples),
        score=task.score(examples, answers["model"])["score"],
        majority=task.score(examples, commonest)["score"],
        teacher=task.score(examples, answers["teacher"])["score"] if taught else None,
        agreement=float(np.mean(answers["teacher"] == answers["model"])) if taught else None,
    )
