"""What a recipe is about: its teacher, corpus and tasks, each loaded once and checked before anything costs time."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from accelerate import PartialState
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel, PreTrainedTokenizerBase

from hf_glmd.data.corpus import load_corpus, require_text, stream_corpus
from hf_glmd.errors import UsageError
from hf_glmd.models.lengths import max_positions, row_length
from hf_glmd.models.loading import class_model_class, load_config, load_word_model, word_model_class
from hf_glmd.models.student import check_student_settings
from hf_glmd.recipe.config import Recipe
from hf_glmd.recipe.task_inputs import TaskInputs, first_rows
from hf_glmd.teachers.vocabularies import check_same_words
from hf_glmd.vocab.mapped_tokenizer import load_tokenizer
from hf_glmd.vocab.tokenizer_files import set_missing_pad_token


class Inputs:
    """Everything a recipe names, loaded when it is first asked for.

    Args:
        recipe: names it.
        state: of the processes; the first one loads, the others read what it cached.
    """

    def __init__(self, recipe: Recipe, state: PartialState) -> None:
        self.recipe, self.state = recipe, state

    @cached_property
    def teacher_config(self) -> Any:
        return load_config(self.recipe.teacher.model, revision=self.recipe.teacher.revision)

    @cached_property
    def teacher_tokenizer(self) -> PreTrainedTokenizerBase:
        return self.load_tokenizer()

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """The teacher's tokenizer as its files set it: one that has read rows is set to their length, and saved with that."""
        tokenizer = load_tokenizer(self.recipe.teacher.model, self.recipe.teacher.revision)
        set_missing_pad_token(tokenizer)
        return tokenizer

    def load_teacher(self) -> PreTrainedModel:
        """The teacher of plain text, in fp32: it is run under autocast where a stage asks for less."""
        return load_word_model(self.recipe.teacher.model, dtype=torch.float32, revision=self.recipe.teacher.revision)

    @cached_property
    def student_config(self) -> Any:
        """Of the checkpoint that the student starts from; None: it is built of the teacher."""
        section = self.recipe.student
        return None if section.model is None else load_config(section.model, revision=section.revision)

    def load_student(self) -> PreTrainedModel:
        """The checkpoint that the student starts from, before its vocabulary is cut, in fp32."""
        section = self.recipe.student
        return load_word_model(section.model, dtype=torch.float32, revision=section.revision)

    @cached_property
    def tasks(self) -> list[TaskInputs]:
        return [TaskInputs(section, self.recipe, self.state, self) for section in self.recipe.task_sections]

    @cached_property
    def corpus(self) -> dict[str, Any]:
        """Split -> `datasets.Dataset`; `train` is a stream if the recipe asks for one."""
        section = self.recipe.corpus
        if section.streaming:
            return stream_corpus(section.name, section.config, self.recipe.seed, section.column, section.max_texts)
        with self.state.main_process_first():  # the others read what it cached
            corpus = load_corpus(section.name, section.config, self.recipe.seed, section.column)
        require_text(corpus, section.column, section.name)
        corpus["train"] = first_rows(corpus["train"], section.max_texts, self.recipe.seed)
        return corpus

    @cached_property
    def max_length(self) -> int:
        return self.recipe.max_length or self.readable

    @property
    def causal(self) -> bool:
        """Whether the teacher predicts the next word rather than a hidden one."""
        return word_model_class(self.teacher_config) is AutoModelForCausalLM

    @property
    def kind(self) -> str:
        """What teacher and student are."""
        return "causal language model" if self.causal else "masked language model"

    @property
    def readable(self) -> int:
        """The most token ids that a row has, unless the recipe says otherwise."""
        return row_length(None, self._positions, self.teacher_tokenizer)

    @property
    def _positions(self) -> int:
        """The most token ids that both models can read."""
        return min(max_positions(config) for config in (self.teacher_config, self.student_config) if config is not None)

    @property
    def num_layers(self) -> int:
        if self.student_config is not None:
            return self.student_config.num_hidden_layers
        return self.recipe.student.num_layers or max(1, self.teacher_config.num_hidden_layers // 2)

    def load_data(self) -> None:
        """Loads corpus and tasks. Raises: UsageError, one is missing, empty or does not fit."""
        self.corpus  # noqa: B018 - a cached property
        for task in self.tasks:
            task.check_examples(self.teacher_tokenizer)

    def check_teacher(self) -> None:
        """Raises: UsageError, the teacher is missing, of the wrong kind, or cannot do what the recipe asks of it."""
        recipe = self.recipe
        if class_model_class(self.teacher_config) is not None:
            raise UsageError(
                f"teacher '{recipe.teacher.model}' is a classifier: {self.teacher_config.architectures[0]} predicts no words. "
                "Use a language model, or distil classifiers in Python: GLMDTrainer with objective='soft_label'."
            )
        if word_model_class(self.teacher_config) is AutoModelForSeq2SeqLM:
            raise UsageError(
                f"teacher '{recipe.teacher.model}' is an encoder-decoder ({self.teacher_config.model_type}). "
                "Recipes take masked and causal language models; GLMDTrainer takes encoder-decoders too."
            )
        if self.causal:
            self._check_nothing_is_hidden()
            if names := [task.section.name for task in self.tasks if task.section.replaced_copies]:
                raise UsageError(
                    f"replaced_copies of task {names[0]} needs a masked language model, and the teacher '{recipe.teacher.model}' "
                    "predicts the next word. Set it to 0."
                )
        for name, length in (("max_length", self.max_length), *(("task.max_length", task.length) for task in self.tasks)):
            if length > self._positions:
                both = "" if self.student_config is None else f" together with student.model='{recipe.student.model}'"
                raise UsageError(f"{name}={length} is more than the {self._positions} tokens the teacher can read{both}.")
        if self.student_config is None:
            self._check_student_settings()
        else:
            self._check_student_model()
        for task in self.tasks:
            task.check_tokenizer(self.teacher_tokenizer)

    def _check_student_settings(self) -> None:
        """Raises: UsageError, no such student can be built of the teacher."""
        recipe = self.recipe
        layers = self.teacher_config.num_hidden_layers
        if not 1 <= self.num_layers <= layers:
            raise UsageError(
                f"student.num_layers={recipe.student.num_layers}, the teacher has {layers} layers. Use 1 to {layers}."
            )
        check_student_settings(
            self.teacher_config,
            word_model_class(self.teacher_config),
            num_layers=self.num_layers,
            init=recipe.student.init,
            **({"layers": recipe.student.layers} if recipe.student.layers else {}),
            **recipe.student.config,
        )

    def _check_student_model(self) -> None:
        """Raises: UsageError, the student's checkpoint is of another kind than the teacher, or has another tokenizer."""
        student, teacher = self.recipe.student, self.recipe.teacher
        kinds = [word_model_class(config) for config in (self.student_config, self.teacher_config)]
        if kinds[0] is not kinds[1]:
            raise UsageError(
                f"student.model='{student.model}' is loaded by {kinds[0].__name__}, the teacher '{teacher.model}' by "
                f"{kinds[1].__name__}. Use two models of one kind."
            )
        tokenizers = [load_tokenizer(student.model, student.revision), self.load_tokenizer()]
        try:
            for ours, theirs in (tokenizers, tokenizers[::-1]):
                check_same_words(ours, theirs, None)
        except UsageError as error:
            raise UsageError(
                f"student.model='{student.model}' has another tokenizer than the teacher '{teacher.model}', so their predictions "
                "cannot be compared. Use a checkpoint with the teacher's tokenizer, or leave student.model out."
            ) from error

    def _check_nothing_is_hidden(self) -> None:
        """Raises: UsageError, words are to be hidden from a model that predicts the next one."""
        sections = {name: getattr(self.recipe, name) or {} for name in ("general", "task_words")}
        sections |= {f"words of task {task.section.name}": task.section.words for task in self.tasks}
        for name, options in sections.items():
            for option in ("positions", "mlm_probability", "mask_share"):
                if options.get(option) not in (None, "all", 0):
                    raise UsageError(
                        f"{name}: {option}={options[option]} hides words, but the teacher '{self.recipe.teacher.model}' predicts "
                        "the next one. Leave it out."
                    )
