"""GLMDTrainer: the Trainer whose only signal is what the teacher predicts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from os import PathLike
from typing import Any

import datasets
import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_utils import EvalLoopOutput

from hf_glmd.corpora.blocks import pack_blocks
from hf_glmd.errors import UsageError
from hf_glmd.losses.functional import soft_label_loss, word_prediction_loss_from_logits
from hf_glmd.losses.reference import dense_word_prediction_loss
from hf_glmd.models.heads import answer_logits, is_masked_lm, output_embedding, word_logits
from hf_glmd.training.collators import AnswerCollator, WordPredictionCollator
from hf_glmd.training.config import GLMDConfig
from hf_glmd.training.teachers import LiveTeacher
from hf_glmd.training.token_mean import TokenMeanTrainer, model_inputs
from hf_glmd.vocab.vocab_map import VocabMap

MAX_DEFAULT_LENGTH = 512
DEFAULT_MASK_SHARE = 0.15  # as BERT was trained
SUPPORTED = {DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU}


class GLMDTrainer(TokenMeanTrainer):
    """Distils a teacher's word predictions, or its answers, into a student.

    The loss is the mean over the counted tokens of the whole global batch: of all processes and all accumulation steps. No
    label is read. `eval_loss` is the mean over the counted tokens of the evaluation set; beside it stand `eval_kl`, the KL at
    temperature 1, and `eval_agreement`, the share of positions where both models find the same token (or answer) likeliest.

    Args:
        model: the student.
        teacher: a model, its Hub name or path, or a `LiveTeacher`. It is frozen, and never saved with the student.
        args: a `GLMDConfig`.
        train_dataset, eval_dataset: rows of `input_ids` in the student's ids, or of text (`args.text_column`), which is then
            packed into blocks. For `soft_label`: cloze rows, as `ClozeTask.encode` makes them. Other columns are ignored.
        processing_class: the student's tokenizer.
        vocab_map: the student's vocabulary, as cut from the teacher's. None: both share one.
        data_collator: default: `WordPredictionCollator` or `AnswerCollator`.
        **kwargs: of `transformers.Trainer`.
    Raises: UsageError, the two vocabularies do not fit, or a row or setting makes no sense with the others.
    Source: GLMD, arXiv:2306.06625.
    """

    _tag_names = ["glmd", "distillation"]

    def __init__(
        self,
        model: PreTrainedModel,
        teacher: PreTrainedModel | str | PathLike[str] | LiveTeacher,
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
        if kwargs.get("compute_metrics") is not None:
            raise UsageError(
                "compute_metrics is not supported: no logits of the whole evaluation set are kept. Read eval_loss, eval_kl and "
                "eval_agreement, or score the model with your own loop after training."
            )
        self.vocab_map = vocab_map
        self.teacher = teacher if isinstance(teacher, LiveTeacher) else LiveTeacher(teacher, vocab_map)
        student_size = output_embedding(model).weight.shape[0]
        if student_size != self.teacher.size:
            raise UsageError(
                f"the student predicts {student_size} tokens, the teacher {self.teacher.size}. "
                "Pass vocab_map=vocab.vocab_map of the vocabulary the student was cut with."
            )
        for who, part in (("student", model), ("teacher", self.teacher.model)):
            if getattr(part.config, "is_encoder_decoder", False):
                raise UsageError(f"the {who} {type(part).__name__} is an encoder-decoder, which cannot be distilled yet.")
        masked_lm = is_masked_lm(model)
        if not masked_lm and (args.positions == "masked" or args.mask_share):
            raise UsageError(
                f"positions='{args.positions}' with mask_share={args.mask_share} hides words, but {type(model).__name__} "
                "predicts the next one. Leave both at their defaults."
            )
        if data_collator is None:
            data_collator = default_collator(args, processing_class, masked_lm)
        if args.objective == "word_prediction":
            train_dataset = self._tokenised(train_dataset, model, args, processing_class)
            eval_dataset = self._tokenised(eval_dataset, model, args, processing_class)
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        if self.accelerator.distributed_type not in SUPPORTED:
            raise UsageError(
                f"{self.accelerator.distributed_type.value} does not shard the teacher correctly yet. "
                "Use one process or plain data parallelism (DDP)."
            )
        self.teacher.to(args.device)
        self.add_callback(_EpochOfMasks(self.data_collator))
        model.add_model_tags(self._tag_names)

    # Data

    def _tokenised(self, dataset: Any, model: PreTrainedModel, args: GLMDConfig, tokenizer: PreTrainedTokenizerBase) -> Any:
        if isinstance(dataset, Mapping) and not isinstance(dataset, datasets.Dataset):
            return {name: self._tokenised(part, model, args, tokenizer) for name, part in dataset.items()}
        columns = getattr(dataset, "column_names", None)
        if columns is None or "input_ids" in columns:
            return dataset
        length = args.max_length or min(
            max_positions(model.config), max_positions(self.teacher.model.config), tokenizer.model_max_length, MAX_DEFAULT_LENGTH
        )
        with PartialState().local_main_process_first():  # the others read what the first one cached
            return pack_blocks(dataset, tokenizer, length, column=args.text_column)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        self._signature_columns += [c for c in ("blank", "candidate_ids") if c not in self._signature_columns]

    # Loss

    def position_losses(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        student, teacher = self._both_logits(model, inputs)
        losses = self._loss(student, teacher, self.args.temperature)
        self._refuse_non_finite_teacher(losses.detach(), teacher)
        return losses

    def position_metrics(self, model: nn.Module, inputs: dict[str, Any]) -> dict[str, Tensor]:
        student, teacher = self._both_logits(model, inputs)
        student, teacher = student.float(), teacher.float()
        return {
            "loss": self._loss(student, teacher, self.args.temperature),
            "kl": kl_of_candidates(student, teacher),
            "agreement": (student.argmax(-1) == teacher.argmax(-1)).float(),
        }

    def _both_logits(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Student's and teacher's logits at the counted positions, [N, K] each, or of the candidates, [B, C] each."""
        counted = inputs["prediction_mask"]
        words = model_inputs(inputs)
        with self.accelerator.autocast():
            student = word_logits(model, words, counted)
            teacher = self.teacher.logits(words, counted)
        if self.args.objective == "soft_label":
            student, teacher = (answer_logits(logits, inputs["candidate_ids"]) for logits in (student, teacher))
        return student, teacher

    def _loss(self, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        loss = word_prediction_loss_from_logits if self.args.objective == "word_prediction" else soft_label_loss
        return loss(student, teacher, temperature=temperature, reduction="none")

    def _refuse_non_finite_teacher(self, losses: Tensor, teacher: Tensor) -> None:
        # Looking costs a host synchronisation on a GPU: there once, at the start.
        if self.state.global_step > 0 and losses.device.type != "cpu":
            return
        if not torch.isfinite(losses).all() and teacher.isnan().any():
            raise UsageError(
                f"the teacher {self.teacher.model.name_or_path or type(self.teacher.model).__name__} predicts NaN at step "
                f"{self.state.global_step}. Check its weights and its dtype ({self.teacher.model.dtype})."
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
        super()._save(output_dir, state_dict)
        if self.args.should_save and self.vocab_map is not None:
            self.vocab_map.save(output_dir or self.args.output_dir)


class _EpochOfMasks(TrainerCallback):
    """Tells the collator the epoch, so that each hides other words."""

    def __init__(self, collator: Any) -> None:
        self.collator = collator

    def on_epoch_begin(self, args, state, control, **kwargs) -> None:
        if hasattr(self.collator, "epoch"):
            self.collator.epoch = int(state.epoch or 0) + 1  # 0 is the evaluation's


def default_collator(
    args: GLMDConfig, tokenizer: PreTrainedTokenizerBase, masked_lm: bool
) -> WordPredictionCollator | AnswerCollator:
    """The collator that goes with an objective and a kind of model."""
    if args.objective == "soft_label":
        return AnswerCollator(tokenizer)
    mask_share = args.mask_share if args.mask_share is not None else (DEFAULT_MASK_SHARE if masked_lm else 0.0)
    return WordPredictionCollator(tokenizer, args.positions, mask_share, args.seed)


def kl_of_candidates(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student) at temperature 1 over the last dimension; columns of -inf in both are no candidates."""
    missing = torch.isinf(teacher)
    return dense_word_prediction_loss(student.masked_fill(missing, -1e30), teacher, 1.0)


def max_positions(config: PreTrainedConfig) -> int:
    """The longest input a model can read; very large when its positions are not limited by a table."""
    return getattr(config.get_text_config(), "max_position_embeddings", None) or 2**31
