"""GLMDTrainer: the Trainer whose only signal is what the teacher predicts."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, EvalLoopOutput
from transformers.utils import ModelOutput

from hf_glmd.data.collators import MODEL_INPUTS
from hf_glmd.errors import UsageError
from hf_glmd.models.lengths import readable, row_length
from hf_glmd.models.loading import merged_copy
from hf_glmd.models.sentence_modules import encoder_inside
from hf_glmd.reports.card import pipeline_tag_of
from hf_glmd.reports.training_card import Sizes
from hf_glmd.teachers.base import Teacher
from hf_glmd.teachers.kinds import as_teacher
from hf_glmd.teachers.vocabularies import check_same_words, tokenizer_of
from hf_glmd.training.arguments import as_student, as_tokenizer, check_arguments, warn_of_low_precision
from hf_glmd.training.callbacks import MaskEpoch, masks_of_epoch
from hf_glmd.training.config import GLMDConfig
from hf_glmd.training.datasets import (
    check_ids,
    check_width,
    has_completions,
    is_stream,
    loaded_rows,
)
from hf_glmd.training.hub import PublishingTrainer
from hf_glmd.training.objectives.kinds import objective_for
from hf_glmd.vocab.counting import set_trimming, trimming_of
from hf_glmd.vocab.vocab_map import VocabMap

logger = logging.getLogger(__name__)


def in_words_if_worse(name: str, start: float, end: float, remedy: str) -> str | None:
    """That a student is further from its teacher than at its start, by more than noise of a few rows; None: it is not."""
    if end <= 1.1 * start + 1e-3:
        return None
    return f"the student is further from its teacher than before training: {name} went from {start:.4g} to {end:.4g}. {remedy}"


def _is_checkpoint(folder: str | None) -> bool:
    """Whether a model is written to go on from, rather than for use."""
    return folder is not None and Path(folder).name.startswith(PREFIX_CHECKPOINT_DIR)


DEFAULT_MLM_PROBABILITY = 0.15  # as BERT was trained


class GLMDTrainer(PublishingTrainer):
    """Distils a teacher's word predictions, or its answers, into a student.

    The loss is the mean over the counted tokens of the whole global batch: of all processes and all accumulation steps. No
    label is read. `eval_loss` is the mean over the counted tokens of the evaluation set; beside it stand `eval_kl`, the KL at
    temperature 1, `eval_agreement`, the share of positions where both models have the same top-1 token (or answer),
    `eval_teacher_entropy`, and `eval_cross_entropy` with `eval_perplexity`, of the words that were hidden or come next. The same
    (without `eval_`) stand in training logs, of the step that is logged.

    `compute_metrics` gets ids rather than logits: `predictions`, int64 [rows, S], the student's argmax, and
    `label_ids`, the pair of what the teacher does and the true words; -100 where nothing counts or nothing is known. S is the
    longest row. Of cloze questions and classifiers S is 1, the ids are those of candidates or classes, and `label_ids` are the
    teacher's.

    Args:
        model: the student; one that predicts words; for `soft_label` also an `AutoModelForSequenceClassification`,
            `AutoModelForTokenClassification` or `AutoModelForQuestionAnswering`; for `embedding` an `AutoModel` or a
            `SentenceTransformer`, whose encoder is trained in place.
        teacher: a model, its Hub name or path, the path of a cache, a list of these (the mean of their predictions), or a
            teacher: `LiveTeacher`, `AdaptersOffTeacher`, `TeacherEnsemble`, `TeacherCache`. It is frozen, and never saved with
            the student.
        args: a `GLMDConfig`.
        train_dataset, eval_dataset: rows of `input_ids` in the student's ids, or of text (`args.text_column`), which is then
            packed into blocks: a data set, or whatever else `VocabShrinker.count` takes, such as a path or a list of texts. For
            `soft_label`: cloze rows, as `ClozeTask.encode` makes them; or, of two classifiers, rows of `input_ids`, or of text
            (`args.text_column`, `args.pair_column`). Other columns are ignored. Each objective says what its rows are.
        processing_class: the student's tokenizer.
        vocab_map: the student's vocabulary, as cut from the teacher's. None: both share one.
        data_collator: default: `WordPredictionCollator`, `CandidateCollator`, or by the kind of model `ClassCollator`,
            `TokenClassCollator`.
        peft_config: a `peft.PeftConfig`: the student gets new adapters, and these alone are trained.
        **kwargs: of `transformers.Trainer`.
    Raises: UsageError, the two vocabularies do not fit, or a row or setting makes no sense with the others.
    Source: GLMD, arXiv:2306.06625.
    """

    _tag_names = ["glmd", "distillation"]

    def __init__(
        self,
        model: PreTrainedModel | str | PathLike[str] | None,
        teacher: PreTrainedModel | str | PathLike[str] | Sequence[Any] | Teacher,
        args: GLMDConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        vocab_map: VocabMap | None = None,
        data_collator: Callable[[list[Any]], dict[str, Any]] | None = None,
        peft_config: Any = None,
        **kwargs: Any,
    ) -> None:
        if args is None:
            args = GLMDConfig(output_dir="glmd_output")
        check_arguments(args, kwargs)
        processing_class = as_tokenizer(processing_class)
        self._trimming = trimming_of(processing_class)
        model, kwargs["model"] = as_student(model, kwargs.get("model_init"), peft_config)
        if encoder_inside(teacher) is model:
            raise UsageError(
                "the teacher is the student itself, so there is nothing to learn. Pass copy.deepcopy(model) as the teacher, or "
                "AdaptersOffTeacher(model) for a student with adapters."
            )
        warn_of_low_precision(model)
        self.vocab_map = vocab_map
        teacher = as_teacher(teacher, vocab_map)
        tokenizers = [tokenizer_of(one) for one in teacher.models]
        for tokenizer in tokenizers:
            if tokenizer is not None:
                check_same_words(processing_class, tokenizer, vocab_map)
        teacher.check_fits(processing_class, args.objective, args.temperature)
        self.student_sizes = Sizes.of(model)  # before an objective adds what is trained along
        objective = objective_for(args.objective, model)
        # Not `objective`: there a search of hyperparameters keeps the score of a trial.
        self.training_objective = objective(model, teacher, args, processing_class, known_tokenizers=None not in tokenizers)
        self.teacher = self.training_objective.teacher
        if kwargs.get("compute_metrics") is not None:
            self.training_objective.check_metrics()
        self.teacher_sizes = [Sizes.of(one) for one in self.teacher.models]
        self.pipeline_tag = pipeline_tag_of(model)
        train_dataset = loaded_rows(train_dataset, args.text_column)
        # Of a DatasetDict all splits are evaluated, as of any other dict.
        eval_dataset = loaded_rows(dict(eval_dataset) if isinstance(eval_dataset, dict) else eval_dataset, args.text_column)
        if data_collator is None and args.positions == "all" and has_completions(train_dataset):
            args.positions = "labels"  # as trl: prompts are read, completions are learnt
        if data_collator is None:
            data_collator = self.training_objective.collator(args, processing_class, model)
        data_collator = self.training_objective.adapted(data_collator)
        if is_stream(train_dataset) and args.max_steps <= 0:
            raise UsageError("the training set is a stream of unknown length: say how many steps to train, as max_steps.")
        if is_stream(train_dataset) or is_stream(eval_dataset):
            # accelerate's default has one process read for all and then cuts what it cannot put together: rows of other lengths.
            args.accelerator_config.dispatch_batches = False
        self._limit = readable([model, *self.teacher.models])
        self._length = row_length(args.max_length or self.teacher.max_length, self._limit, processing_class)
        super().__init__(
            args=args,
            data_collator=data_collator,
            train_dataset=self.training_objective.rows(train_dataset, self._length, self._limit),
            eval_dataset=self.training_objective.rows(eval_dataset, self._length, self._limit),
            processing_class=processing_class,
            **kwargs,
        )
        if args.merge_adapters:
            self._check_merging()
        self.teacher.prepare(self.accelerator)
        for whose, why in self.training_objective.slow_parts:
            logger.warning("All logits of the %s are computed, which takes memory and time: %s.", whose, why)
        self.teacher.check_rows(self._datasets(), self.data_collator, self.training_objective.teacher_inputs)
        self.add_callback(MaskEpoch(self.data_collator, self.teacher.epochs))
        self.model.add_model_tags(self._tag_names)

    def call_model_init(self, trial: Any = None) -> PreTrainedModel:
        """A fresh student of `model_init`, at the start and for each trial of a search; the objective is bound to its head."""
        model = super().call_model_init(trial)
        self.training_objective = self.training_objective.rebound(model)
        return model

    def _check_merging(self) -> None:
        if not hasattr(self.model, "merge_and_unload"):
            raise UsageError(
                f"merge_adapters=True, and the student {type(self.model).__name__} has no adapters. Wrap it with "
                "peft.get_peft_model, or leave it out."
            )
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            raise UsageError(
                "merge_adapters=True, and the student's weights are sharded. Leave it out, load the adapters that are saved with "
                "hf_glmd.models.loading.load_word_model, which merges them, and save that model."
            )

    # Data

    def _datasets(self) -> dict[str, Any]:
        """What to call each set of rows -> the rows."""
        held_out = self.eval_dataset if isinstance(self.eval_dataset, dict) else {"": self.eval_dataset}
        sets = {"train_dataset": self.train_dataset} | {f"eval_dataset {name}".strip(): part for name, part in held_out.items()}
        return {name: dataset for name, dataset in sets.items() if dataset is not None}

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As of `transformers.Trainer`; takes what `eval_dataset` of the constructor takes, text among it."""
        return super().evaluate(self._more_rows(eval_dataset, "eval_dataset"), *args, **kwargs)

    def predict(self, test_dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """As of `transformers.Trainer`; takes what `eval_dataset` of the constructor takes, text among it."""
        return super().predict(self._more_rows(test_dataset, "test_dataset"), *args, **kwargs)

    def _more_rows(self, dataset: Any, name: str) -> Any:
        """Rows of a data set that comes after the constructor; None and the name of one that is known stay as they are."""
        known = self.eval_dataset if isinstance(self.eval_dataset, dict) else {}
        if dataset is None or dataset is self.eval_dataset or (isinstance(dataset, str) and dataset in known):
            return dataset
        loaded = loaded_rows(dict(dataset) if isinstance(dataset, dict) else dataset, self.args.text_column)
        rows = self.training_objective.rows(loaded, self._length, self._limit)
        self.teacher.check_rows({name: rows}, self.data_collator, self.training_objective.teacher_inputs)
        return rows

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        for name in ("input_ids", "decoder_input_ids"):  # of a stream it is only known now what its rows are
            if name in inputs:
                check_width(inputs[name].shape[1], self._limit)
                if inputs[name].device.type == "cpu" and inputs[name].numel():
                    check_ids(int(inputs[name].min()), int(inputs[name].max()), self.training_objective.input_rows)
        return super()._prepare_inputs(inputs)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        read = {name for model in self.teacher.models for name in inspect.signature(model.forward).parameters}
        ours = [*self.training_objective.columns, "special_tokens_mask", *sorted(read & set(MODEL_INPUTS))]
        self._signature_columns += [name for name in ours if name not in self._signature_columns]

    # Loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The objective's loss of a batch: what differs from the teacher, summed, over what counts in the whole global batch.

        Args:
            inputs: as the collator makes them.
            num_items_in_batch: what counts in all accumulation steps of all processes. None: in this batch.
            return_outputs: also return a `ModelOutput` with the student's `logits`, [B, S, K] or [B, C], with gradients, for
                subclasses that add a loss of their own; all logits are then made, which takes memory and time.
        Returns: a scalar with gradients, in nats; or the pair of it and the outputs.
        """
        if not return_outputs:
            return self.mean_over_batch(self.summed_loss(model, inputs), inputs, num_items_in_batch)
        with self.accelerator.autocast():
            loss, logits = self.training_objective.loss_and_logits(model, inputs)
        return self.mean_over_batch(loss, inputs, num_items_in_batch), ModelOutput(logits=logits)

    def summed_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        """The objective's loss summed over what counts in a batch: a scalar, with gradients."""

        def compared(student: Any) -> Tensor:
            if self.logged_step:
                scores = self.training_objective.scores(student, told, inputs, choices=False)
                self.add_scores({name: score for name, score in scores.items() if name != "loss" and "_choice" not in name})
            return self.training_objective.loss(student, told, inputs)

        with self.accelerator.autocast():
            told = self.training_objective.teach(inputs)
            loss = self.training_objective.ask(model, inputs, compared)
        self._refuse_non_finite_teacher(loss.detach(), inputs)
        return loss

    def position_metrics(self, model: nn.Module, inputs: dict[str, Any]) -> dict[str, Tensor | tuple[Tensor, Tensor]]:
        choices = self.compute_metrics is not None
        with self.accelerator.autocast():
            told = self.training_objective.teach(inputs)
            return self.training_objective.ask(
                model, inputs, lambda student: self.training_objective.scores(student, told, inputs, choices)
            )

    def _refuse_non_finite_teacher(self, loss: Tensor, inputs: dict[str, Any]) -> None:
        # Looking costs a host synchronisation on a GPU: there once, at the start.
        if self.state.global_step > 0 and loss.device.type != "cpu":
            return
        if not self.teacher.models:
            return
        # All processes look together: it takes all of them to run a sharded teacher.
        if self.accelerator.gather(loss).isfinite().all():
            return
        with self.accelerator.autocast():
            broken = self.training_objective.teacher_logits(inputs, self.args.temperature).isnan().any()
        if broken:
            who = " and ".join(f"{one.config.name_or_path or type(one).__name__} ({one.dtype})" for one in self.teacher.models)
            raise UsageError(
                f"the teacher {who or type(self.teacher).__name__} predicts NaN at step {self.state.global_step}. Check its "
                "weights and its dtype."
            )

    def train(self, *args: Any, **kwargs: Any) -> Any:
        output = super().train(*args, **kwargs)
        if worse := self.worse_than_at_start():
            logger.warning("%s", worse)
        return output

    def worse_than_at_start(self) -> str | None:
        """What to say of a training that led away from the teacher, by the loss of the evaluation set or, if that was not
        scored twice, of training; None: it did not."""
        if self.args.load_best_model_at_end:
            return None
        for name in ("eval_loss", "loss"):
            losses = [entry[name] for entry in self.state.log_history if name in entry]
            if len(losses) > 1:
                return in_words_if_worse(name, losses[0], losses[-1], f"Lower learning_rate (now {self.args.learning_rate}).")
        return None

    # Evaluation

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        with masks_of_epoch(self.data_collator, 0):  # the same tokens are masked at every evaluation
            return super().evaluation_loop(*args, **kwargs)

    # Saving

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As the Trainer's, with trainer_state.json beside the model: `hf-glmd report` shows its curves. It is not pushed."""
        super().save_model(output_dir, _internal_call)
        if not _internal_call and self.args.should_save:
            self.state.save_to_json(str(Path(output_dir or self.args.output_dir) / TRAINER_STATE_NAME))

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        # Tokenising the rows has set truncation and padding, which would be written into tokenizer.json.
        set_trimming(self.processing_class, self._trimming)
        with self._saved_as_wanted(output_dir):
            if _is_checkpoint(output_dir):
                super()._save(output_dir, state_dict)
            else:
                folder = Path(output_dir or self.args.output_dir)
                with self.training_objective.saving(folder, state_dict) as weights:
                    super()._save(output_dir, weights)
        if self.args.should_save and self.vocab_map is not None:
            self.vocab_map.save(output_dir or self.args.output_dir)

    @contextmanager
    def _saved_as_wanted(self, output_dir: str | None) -> Iterator[None]:
        """Inside this context `model` is what is to be written: with merged adapters, unless it is for a checkpoint."""
        if _is_checkpoint(output_dir) or not self.args.merge_adapters:
            yield
            return
        trained, self.model = self.model, merged_copy(self.model)
        try:
            yield
        finally:
            self.model = trained
