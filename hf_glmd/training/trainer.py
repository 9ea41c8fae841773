"""GLMDTrainer: the Trainer whose only signal is what the teacher predicts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, EvalLoopOutput

from hf_glmd.corpora.blocks import ORIGINAL_IDS
from hf_glmd.errors import UsageError
from hf_glmd.losses.classes import class_loss, class_scores
from hf_glmd.losses.functional import (
    soft_label_loss,
    word_prediction_loss,
    word_prediction_loss_from_logits,
    word_prediction_scores,
)
from hf_glmd.losses.reference import dense_word_prediction_loss
from hf_glmd.losses.topk import TopTokens, topk_word_prediction_loss, topk_word_prediction_scores
from hf_glmd.models.adapters import merged_copy
from hf_glmd.models.class_heads import ClassHead, head_of, is_classifier, problem_of
from hf_glmd.models.heads import HeadInputs, is_masked_lm
from hf_glmd.tasks.candidates import QUESTION_COLUMNS, CandidateCollator, candidate_scores
from hf_glmd.training.cached_rows import check_cached
from hf_glmd.training.card import Sizes, pipeline_tag_of
from hf_glmd.training.class_rows import ClassCollator, check_same_classes
from hf_glmd.training.collators import TargetCollator, WordPredictionCollator
from hf_glmd.training.config import GLMDConfig
from hf_glmd.training.hub import PublishingTrainer
from hf_glmd.training.padded_vocab import first_rows_of, with_shared_rows
from hf_glmd.training.rows import check_width, is_stream, readable, row_length, token_rows
from hf_glmd.training.same_words import check_same_words, tokenizer_of
from hf_glmd.training.teacher_cache import TeacherCache
from hf_glmd.training.teachers import Teacher, TeacherEnsemble, as_teacher
from hf_glmd.training.token_mean import model_inputs, summed_over_examples
from hf_glmd.vocab.counting import tokenizer_fingerprint
from hf_glmd.vocab.vocab_map import IGNORED, VocabMap

logger = logging.getLogger(__name__)

DEFAULT_MASK_SHARE = 0.15  # as BERT was trained


class GLMDTrainer(PublishingTrainer):
    """Distils a teacher's word predictions, or its answers, into a student.

    The loss is the mean over the counted tokens of the whole global batch: of all processes and all accumulation steps. No
    label is read. `eval_loss` is the mean over the counted tokens of the evaluation set; beside it stand `eval_kl`, the KL at
    temperature 1, `eval_agreement`, the share of positions where both models find the same token (or answer) likeliest,
    `eval_teacher_entropy`, and `eval_cross_entropy` with `eval_perplexity`, of the words that were hidden or come next. The same
    (without `eval_`) stand in training logs, of the step that is logged.

    `compute_metrics` gets ids rather than logits: `predictions`, int64 [rows, S], what the student finds likeliest, and
    `label_ids`, the pair of what the teacher does and the true words; -100 where nothing counts or nothing is known. S is the
    longest row. Of cloze questions and classifiers S is 1, the ids are those of candidates or classes, and `label_ids` are the
    teacher's.

    Args:
        model: the student; one that predicts words or, for `soft_label`, an `AutoModelForSequenceClassification`.
        teacher: a model, its Hub name or path, the path of a cache, a list of these (the mean of their predictions), or a
            teacher: `LiveTeacher`, `AdaptersOffTeacher`, `TeacherEnsemble`, `TeacherCache`. It is frozen, and never saved with
            the student.
        args: a `GLMDConfig`.
        train_dataset, eval_dataset: rows of `input_ids` in the student's ids, or of text (`args.text_column`), which is then
            packed into blocks. For `soft_label`: cloze rows, as `ClozeTask.encode` makes them; or, of two classifiers, rows of
            `input_ids`, or of text (`args.text_column`, `args.pair_column`). Other columns are ignored.
        processing_class: the student's tokenizer.
        vocab_map: the student's vocabulary, as cut from the teacher's. None: both share one.
        data_collator: default: `WordPredictionCollator`, `CandidateCollator` or, of classifiers, `ClassCollator`.
        **kwargs: of `transformers.Trainer`.
    Raises: UsageError, the two vocabularies do not fit, or a row or setting makes no sense with the others.
    Source: GLMD, arXiv:2306.06625.
    """

    _tag_names = ["glmd", "distillation"]

    def __init__(
        self,
        model: PreTrainedModel,
        teacher: PreTrainedModel | str | PathLike[str] | Sequence[Any] | Teacher,
        args: GLMDConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        vocab_map: VocabMap | None = None,
        data_collator: Callable[[list[Any]], dict[str, Any]] | None = None,
        **kwargs: Any,
    ) -> None:
        if args is None:
            args = GLMDConfig(output_dir="glmd_output")
        if not isinstance(args, GLMDConfig):
            raise UsageError(f"args is a {type(args).__name__}. Pass a GLMDConfig: it takes every field of TrainingArguments.")
        if processing_class is None:
            raise UsageError("processing_class is missing. Pass the student's tokenizer, e.g. vocab.tokenizer.")
        if kwargs.get("preprocess_logits_for_metrics") is not None:
            raise UsageError(
                "preprocess_logits_for_metrics has nothing to do: no logits are kept. Leave it out; compute_metrics gets the "
                "likeliest tokens of both models."
            )
        if args.fp16 and args.device.type == "cpu":
            raise UsageError("fp16=True does nothing on a CPU, without a word from accelerate. Use bf16=True, or leave it out.")
        self.vocab_map = vocab_map
        self.teacher = as_teacher(teacher, vocab_map)
        tokenizers = [tokenizer_of(one) for one in self.teacher.models]
        for tokenizer in tokenizers:
            if tokenizer is not None:
                check_same_words(processing_class, tokenizer, vocab_map)
        if isinstance(self.teacher, TeacherCache):
            self.teacher.check({"tokenizer": tokenizer_fingerprint(processing_class)})
            self.teacher.check_temperature(args.temperature)
            if args.objective != "word_prediction":
                raise UsageError(f"objective='{args.objective}' needs a teacher that runs: a cache holds words only.")
        self.head = head_of(model)
        kind = kind_of(model)
        for other in self.teacher.models:
            if kind_of(other) != kind:
                raise UsageError(
                    f"the student {type(model).__name__} ({kind}) and the teacher {type(other).__name__} ({kind_of(other)}) do "
                    "not predict the same words. Use two models of one kind."
                )
        self.problem = problem_of(model.config) if isinstance(self.head, ClassHead) else None
        if self.problem is None:
            same_words, mapped = None not in tokenizers, vocab_map is not None
            self.teacher = with_shared_rows(self.head.size, self.teacher, processing_class, same_words, mapped)
        if self.problem is not None:
            self._check_classes(model, args)
            if kwargs.get("compute_metrics") is not None and self.problem != "single_label_classification":
                raise UsageError(
                    f"compute_metrics gets what is likeliest, and of {self.problem} nothing is. Read eval_loss instead."
                )
        self.student_sizes, self.teacher_sizes = Sizes.of(model), [Sizes.of(one) for one in self.teacher.models]
        self.pipeline_tag = pipeline_tag_of(model)
        if data_collator is None:
            data_collator = default_collator(args, processing_class, model)
        if is_stream(train_dataset) and args.max_steps <= 0:
            raise UsageError("the training set is a stream of unknown length: say how many steps to train, as max_steps.")
        if is_stream(train_dataset) or is_stream(eval_dataset):
            # accelerate's default has one process read for all and then cuts what it cannot put together: rows of other lengths.
            args.accelerator_config.dispatch_batches = False
        self._limit = limit = readable([model, *self.teacher.models])
        if args.objective == "word_prediction" or self.problem is not None:
            wanted = args.max_length or getattr(self.teacher, "max_length", None)  # a cache knows how long its rows are
            length, classes = row_length(wanted, limit, processing_class), self.problem is not None
            train_dataset, eval_dataset = (
                token_rows(part, processing_class, args, length, limit, classes) for part in (train_dataset, eval_dataset)
            )
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        if args.merge_adapters:
            self._check_merging()
        self.teacher.prepare(self.accelerator)
        self._say_why_not_fused()
        if isinstance(self.teacher, TeacherCache):
            self._check_cached(self.teacher)
        self.add_callback(_EpochOfMasks(self.data_collator, getattr(self.teacher, "epochs", None)))
        model.add_model_tags(self._tag_names)

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

    def _check_classes(self, model: PreTrainedModel, args: GLMDConfig) -> None:
        name = type(model).__name__
        if args.objective != "soft_label":
            raise UsageError(
                f"objective='{args.objective}' is about words, and {name} predicts classes. Use objective='soft_label', or "
                "distil the words first, with a model that predicts them."
            )
        if self.head.size != self.teacher.size:
            raise UsageError(
                f"the student has {self.head.size} outputs, the teacher {self.teacher.size}. Set num_labels={self.teacher.size} "
                "in the student's configuration."
            )
        if isinstance(self.teacher, TeacherEnsemble) and self.problem != "single_label_classification":
            raise UsageError(f"several teachers of a {self.problem} cannot be averaged as probabilities. Use one of them.")
        for other in self.teacher.models:
            check_same_classes(model.config, other.config)

    # Data

    def _check_cached(self, cache: TeacherCache) -> None:
        """Raises: UsageError, the cache was made from other rows, or with other words hidden."""
        cache.check_recorded({"data": getattr(self.data_collator, "choices", {})})
        held_out = self.eval_dataset if isinstance(self.eval_dataset, dict) else {"": self.eval_dataset}
        sets = {"train_dataset": self.train_dataset} | {f"eval_dataset {name}".strip(): part for name, part in held_out.items()}
        for name, dataset in sets.items():
            if dataset is not None:
                check_cached(cache, dataset, self.data_collator, name, self._teacher_inputs)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        for name in ("input_ids", "decoder_input_ids"):  # of a stream it is only known now how long its rows are
            if name in inputs:
                check_width(inputs[name].shape[1], self._limit)
        return super()._prepare_inputs(inputs)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        ours = (*QUESTION_COLUMNS, ORIGINAL_IDS)
        self._signature_columns += [name for name in ours if name not in self._signature_columns]

    # Loss

    @property
    def _fused(self) -> bool:
        """Whether the loss is made from hidden states, rather than from all logits of both models."""
        usable = self.head.fallback is None and self.teacher.fallback is None
        return self.args.fused_loss and usable and self.args.objective == "word_prediction"

    def _say_why_not_fused(self) -> None:
        if self.args.objective != "word_prediction" or not self.args.fused_loss or self._has_top_tokens:
            return
        for who, part in (("student", self.head), ("teacher", self.teacher)):
            if part.fallback is not None:
                logger.warning("All logits of the %s are computed, which takes memory and time: %s.", who, part.fallback)

    def summed_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        if self._has_top_tokens:
            loss = self._beside_top_tokens(model, inputs, self._top_tokens_loss)
        elif self._fused:
            with self.accelerator.autocast():
                teacher = self.teacher.head_inputs(self._teacher_inputs(inputs), inputs["prediction_mask"])

                def at_head(student: HeadInputs) -> Tensor:
                    if self.logged_step:
                        self._log_scores(self._fused_scores(student, teacher, inputs))
                    arguments = self._head_arguments(student, teacher)
                    return word_prediction_loss(**arguments, reduction="sum", check_teacher=False)

                loss = self.head.collect(model, model_inputs(inputs), at_head, inputs["prediction_mask"])
        else:
            teacher = self._teacher_logits(inputs, self.args.temperature)

            def of_logits(logits: Tensor) -> Tensor:
                student = self._of_candidates(logits[..., : self.teacher.size], inputs)
                if self.logged_step:
                    self._log_scores(self._dense_scores(student.detach(), teacher, inputs))
                return self._summed_dense_loss(student, teacher, inputs)

            with self.accelerator.autocast():
                loss = self.head.loss_of_logits(model, model_inputs(inputs), of_logits, inputs["prediction_mask"])
        self._refuse_non_finite_teacher(loss.detach(), inputs)
        return loss

    def _log_scores(self, scores: dict[str, Any]) -> None:
        self.add_scores({name: value for name, value in scores.items() if name != "loss" and not name.endswith("_choice")})

    @property
    def _has_top_tokens(self) -> bool:
        return isinstance(self.teacher, TeacherCache) and self.teacher.settings.kind == "topk"

    def _beside_top_tokens(self, model: nn.Module, inputs: dict[str, Any], compute: Callable[..., Any]) -> Any:
        """What `compute` makes of the student's head and a cache's likeliest tokens."""
        top = self.teacher.top_tokens(self._teacher_inputs(inputs), inputs["prediction_mask"], self.args.temperature)
        with self.accelerator.autocast():
            return self.head.collect(model, model_inputs(inputs), lambda head: compute(head, top), inputs["prediction_mask"])

    def _top_tokens_loss(self, student: HeadInputs, top: TopTokens) -> Tensor:
        if self.logged_step:
            self._log_scores(self._top_tokens_scores(student, top))
        return topk_word_prediction_loss(**self._top_tokens_arguments(student, top), reduction="sum")

    def _top_tokens_scores(self, student: HeadInputs, top: TopTokens) -> dict[str, Any]:
        return topk_word_prediction_scores(**self._top_tokens_arguments(student, top), choices=self._choices_wanted)

    def _top_tokens_arguments(self, student: HeadInputs, top: TopTokens) -> dict[str, Any]:
        student = first_rows_of(student, self.teacher.size)
        parts = {f"student_{name}": getattr(student, name) for name in ("hidden", "weight", "bias", "scale", "softcap")}
        return parts | {"teacher": top, "chunk_mib": self.args.loss_chunk_mib}

    @property
    def _choices_wanted(self) -> bool:
        return self.compute_metrics is not None and not self.model.training

    def position_metrics(self, model: nn.Module, inputs: dict[str, Any]) -> dict[str, Tensor | tuple[Tensor, Tensor]]:
        if self._has_top_tokens:
            return self._beside_top_tokens(model, inputs, self._top_tokens_scores)
        if self._fused:
            with self.accelerator.autocast():
                teacher = self.teacher.head_inputs(self._teacher_inputs(inputs), inputs["prediction_mask"])
                return self.head.collect(
                    model,
                    model_inputs(inputs),
                    lambda student: self._fused_scores(student, teacher, inputs),
                    inputs["prediction_mask"],
                )
        student, teacher = self._student_logits(model, inputs), self._teacher_logits(inputs, self.args.temperature)
        return self._dense_scores(student, teacher, inputs)

    def _fused_scores(self, student: HeadInputs, teacher: HeadInputs, inputs: dict[str, Any]) -> dict[str, Any]:
        targets = inputs["targets"][inputs["prediction_mask"]] if "targets" in inputs else None
        arguments = self._head_arguments(student, teacher)
        scores = word_prediction_scores(**arguments, targets=targets, choices=self._choices_wanted)
        if targets is not None:
            scores["cross_entropy"] = (scores["cross_entropy"], targets != IGNORED)
        return scores

    @torch.no_grad()
    def _dense_scores(self, student: Tensor, teacher: Tensor, inputs: dict[str, Any]) -> dict[str, Any]:
        temperature = self.args.temperature
        mixed = isinstance(self.teacher, TeacherEnsemble)  # whose logits depend on the temperature
        plain = self._teacher_logits(inputs, 1.0) if mixed and temperature != 1.0 else teacher
        loss = self._dense_loss(student, teacher, reduction="none")
        choices = {"student_choice": student.argmax(-1), "teacher_choice": plain.argmax(-1)}
        if self.problem is not None:
            return {"loss": loss} | class_scores(student, plain, self.problem) | choices
        scores = {
            "loss": loss,
            "kl": kl_of_candidates(student, plain),
            "agreement": (choices["student_choice"] == choices["teacher_choice"]).float(),
            "teacher_entropy": torch.special.entr(torch.softmax(plain, -1)).sum(-1),
        }
        if self.args.objective == "word_prediction" and "targets" in inputs:
            targets = inputs["targets"][inputs["prediction_mask"]]
            found = nn.functional.cross_entropy(student, targets, ignore_index=IGNORED, reduction="none")
            scores["cross_entropy"] = (found, targets != IGNORED)
        return scores | choices

    def _head_arguments(self, student: HeadInputs, teacher: HeadInputs) -> dict[str, Any]:
        student = first_rows_of(student, self.teacher.size)
        return {
            f"{who}_{name}": getattr(head, name)
            for who, head in (("student", student), ("teacher", teacher))
            for name in ("hidden", "weight", "bias", "scale", "softcap")
        } | {"temperature": self.args.temperature, "chunk_mib": self.args.loss_chunk_mib}

    def _student_logits(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        """At the counted positions, [N, K], or of the candidates, [B, C]."""
        with self.accelerator.autocast():
            logits = self.head.logits(model, model_inputs(inputs), inputs["prediction_mask"])
        return self._of_candidates(logits[..., : self.teacher.size], inputs)

    def _teacher_logits(self, inputs: dict[str, Any], temperature: float) -> Tensor:
        """As `_student_logits`."""
        with self.accelerator.autocast():
            logits = self.teacher.logits(self._teacher_inputs(inputs), inputs["prediction_mask"], temperature)
        return self._of_candidates(logits.float(), inputs)

    def _teacher_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        words = model_inputs(inputs)
        if ORIGINAL_IDS in inputs and not self.args.teacher_reads_replaced:
            words[ORIGINAL_IDS] = inputs[ORIGINAL_IDS]
        return words

    def _of_candidates(self, logits: Tensor, inputs: dict[str, Any]) -> Tensor:
        asked = self.args.objective == "soft_label" and self.problem is None
        return candidate_scores(logits, inputs) if asked else logits

    def _summed_dense_loss(self, student: Tensor, teacher: Tensor, inputs: dict[str, Any]) -> Tensor:
        if self.args.objective == "soft_label":
            return summed_over_examples(self._dense_loss(student, teacher, reduction="none"), inputs)
        return self._dense_loss(student, teacher, reduction="sum")

    def _dense_loss(self, student: Tensor, teacher: Tensor, reduction: str) -> Tensor:
        if self.problem is not None:
            return class_loss(student, teacher, self.problem, self.args.temperature)
        loss = word_prediction_loss_from_logits if self.args.objective == "word_prediction" else soft_label_loss
        return loss(student, teacher, temperature=self.args.temperature, reduction=reduction)

    def _refuse_non_finite_teacher(self, loss: Tensor, inputs: dict[str, Any]) -> None:
        # Looking costs a host synchronisation on a GPU: there once, at the start.
        if self.state.global_step > 0 and loss.device.type != "cpu":
            return
        if not self.teacher.models:
            return
        # All processes look together: it takes all of them to run a sharded teacher.
        if self.accelerator.gather(loss).isfinite().all():
            return
        if self._teacher_logits(inputs, self.args.temperature).isnan().any():
            who = " and ".join(f"{one.config.name_or_path or type(one).__name__} ({one.dtype})" for one in self.teacher.models)
            raise UsageError(
                f"the teacher {who or type(self.teacher).__name__} predicts NaN at step {self.state.global_step}. Check its "
                "weights and its dtype."
            )

    # Evaluation

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        epoch, self._collator_epoch = self._collator_epoch, 0  # the same words are masked at every evaluation
        try:
            return super().evaluation_loop(*args, **kwargs)
        finally:
            self._collator_epoch = epoch

    @property
    def _collator_epoch(self) -> int:
        return getattr(self.data_collator, "epoch", 0)

    @_collator_epoch.setter
    def _collator_epoch(self, epoch: int) -> None:
        if hasattr(self.data_collator, "epoch"):
            self.data_collator.epoch = epoch

    # Saving

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        with self._saved_as_wanted(output_dir):
            super()._save(output_dir, state_dict)
        if self.args.should_save and self.vocab_map is not None:
            self.vocab_map.save(output_dir or self.args.output_dir)

    @contextmanager
    def _saved_as_wanted(self, output_dir: str | None) -> Iterator[None]:
        """Inside this context `model` is what is to be written: with merged adapters, unless it is for a checkpoint."""
        checkpoint = output_dir is not None and Path(output_dir).name.startswith(PREFIX_CHECKPOINT_DIR)
        if checkpoint or not self.args.merge_adapters:
            yield
            return
        trained, self.model = self.model, merged_copy(self.model)
        try:
            yield
        finally:
            self.model = trained


class _EpochOfMasks(TrainerCallback):
    """Tells the collator the epoch, so that each hides other words.

    Args:
        collator: is told.
        cached: how many choices of words a cached teacher has seen, which are gone through again and again; None: any number.
    """

    def __init__(self, collator: Any, cached: int | None = None) -> None:
        self.collator, self.cached = collator, cached

    def on_epoch_begin(self, args, state, control, **kwargs) -> None:
        if hasattr(self.collator, "epoch"):
            epoch = int(state.epoch or 0)
            self.collator.epoch = epoch + 1 if self.cached is None else epoch % self.cached  # 0 is the evaluation's


def default_collator(
    args: GLMDConfig, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel
) -> WordPredictionCollator | TargetCollator | CandidateCollator | ClassCollator:
    """The collator that goes with an objective and a kind of model. Raises: UsageError, the model cannot do what is asked."""
    if is_classifier(model):
        return ClassCollator(tokenizer)
    if not is_masked_lm(model) and (args.positions == "masked" or args.mask_share):
        raise UsageError(
            f"positions='{args.positions}' with mask_share={args.mask_share} hides words, but {type(model).__name__} "
            "predicts the next one. Leave both at their defaults."
        )
    if args.objective == "soft_label":
        return CandidateCollator(tokenizer)
    if kind_of(model) == "encoder-decoder":
        return TargetCollator(tokenizer, model.config.decoder_start_token_id, args.seed)
    default = DEFAULT_MASK_SHARE if is_masked_lm(model) else 0.0
    mask_share = args.mask_share if args.mask_share is not None else default
    causal = kind_of(model) == "causal language model"
    return WordPredictionCollator(tokenizer, args.positions, mask_share, args.seed, causal)


def kind_of(model: nn.Module) -> str:
    """In words, what a model predicts."""
    if is_classifier(model):
        return "classifier"
    if getattr(model.config, "is_encoder_decoder", False):
        return "encoder-decoder"
    return "masked language model" if is_masked_lm(model) else "causal language model"


def kl_of_candidates(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student) at temperature 1 over the last dimension; columns of -inf in both are no candidates."""
    missing = torch.isinf(teacher)
    return dense_word_prediction_loss(student.masked_fill(missing, -1e30), teacher, 1.0)
