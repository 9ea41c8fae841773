"""A Trainer whose loss and scores are means over all counted positions, however the batch is cut."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import Trainer
from transformers.trainer_utils import (
    PREFIX_CHECKPOINT_DIR,
    EvalLoopOutput,
    IntervalStrategy,
    rotate_checkpoints,
)

from hf_glmd.errors import UsageError
from hf_glmd.losses.reference import IGNORE_INDEX
from hf_glmd.models.distributed import check_distribution, gathered, load_whole_unless_asked, shardable
from hf_glmd.training.callbacks import StopOnSignal
from hf_glmd.training.checkpoints import last_complete_checkpoint
from hf_glmd.utils.files import check_sums, read_json, write_json, write_sums
from hf_glmd.utils.system import hardware, has_fast_bf16, peak_memory_mib

logger = logging.getLogger(__name__)


class TokenMeanTrainer(Trainer):
    """Loss per position in, mean over the whole global batch out.

    The mean is over what `counted` counts in all accumulation steps of all processes, and evaluation means are over that of
    the whole evaluation set: neither batch size, accumulation, padding nor the number of processes changes a result.
    Subclasses override `compute_loss` and `position_metrics`.

    A SIGTERM saves a checkpoint at the end of the step and ends training; `signal.stopped` says so.
    """

    _last_log = 0.0

    # The sum is divided by the count of the whole accumulation window: the Trainer must not divide again.
    loss_is_scaled_for_ga = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        load_whole_unless_asked(self.accelerator.state.deepspeed_plugin)
        check_distribution(self.accelerator, self.args, self.model)
        if self.args.bf16 and not has_fast_bf16(self.args.device) and self.is_world_process_zero():
            logger.warning(
                "bf16=True, and %s has no instructions for it: training takes many times as long as with bf16=False.", hardware()
            )
        self._scores: dict[str, Tensor] = {}
        self._window: list[tuple[dict[str, Any], Tensor]] = []
        self._window_is_full = False
        self.args.logging_nan_inf_filter = False  # it logs 0 for a loss that is not finite, where training stops here
        self.signal = StopOnSignal()
        self.add_callback(self.signal)

    def position_metrics(self, model: nn.Module, inputs: dict[str, Any]) -> dict[str, Tensor | tuple[Tensor, Tensor]]:
        """What evaluation averages, `loss` among it: name -> [N], or a pair of [N] and bool [N], where there is such a value."""
        raise NotImplementedError(f"{type(self).__name__} does not say what evaluation averages.")

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        # evaluate() before train() marks the bare model as prepared, whereupon accelerate does not wrap it in DDP any more and
        # every process trains by itself, without a word (transformers 5.23, accelerate 1.15).
        if getattr(self.model, "_is_accelerate_prepared", False) and self.model_wrapped is self.model:
            self.model._is_accelerate_prepared = False
        return super()._prepare_for_training(*args, **kwargs)

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        if self.is_fsdp_enabled:
            prepare = self.accelerator.prepare

            def prepare_shardable(*parts: Any, **settings: Any) -> Any:
                with ExitStack() as stack:
                    for part in parts:
                        if isinstance(part, nn.Module):
                            stack.enter_context(shardable(part, self.accelerator.state.fsdp_plugin))
                    return prepare(*parts, **settings)

            self.accelerator.prepare = prepare_shardable

    def get_eval_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        with self._no_row_dropped():
            return super().get_eval_dataloader(*args, **kwargs)

    def get_test_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        with self._no_row_dropped():
            return super().get_test_dataloader(*args, **kwargs)

    @contextmanager
    def _no_row_dropped(self) -> Iterator[None]:
        """`dataloader_drop_last` is for training: a mean over the evaluation set is over all of it."""
        dropped, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            yield
        finally:
            self.args.dataloader_drop_last = dropped

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """One forward and backward pass. Raises: UsageError, the loss is no finite number; on all processes together."""
        if self._window_is_full:
            self._window.clear()
        loss = super().training_step(model, inputs, num_items_in_batch)
        # Before the optimizer's step, once per step: where the Trainer looks for the same, and logs 0 instead.
        self._window.append((inputs, loss.detach().isfinite().all()))
        self._window_is_full = self.accelerator.sync_gradients
        if self._window_is_full:
            finite = torch.stack([finite for _, finite in self._window])
            if not self.accelerator.gather(finite.all().view(1)).all():
                self._refuse_step("loss", [inputs for inputs, finite in self._window if not finite])
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """The norm of the gradients of all processes. Raises: UsageError, it is no finite number."""
        norm = super()._get_grad_norm(model, grad_norm)
        # A scaler of fp16 meets gradients that are not finite all the time, and leaves out the step by itself.
        if norm is not None and self.accelerator.scaler is None and not math.isfinite(float(norm)):
            self._refuse_step("gradient", [inputs for inputs, _ in self._window])
        return norm

    def _refuse_step(self, what: str, batches: list[dict[str, Any]]) -> NoReturn:
        """Keeps the batches of this process that are to blame, or may be, and raises: UsageError."""
        step, folder = self.state.global_step + 1, Path(self.args.output_dir) / "not_finite"
        folder.mkdir(parents=True, exist_ok=True)
        for number, inputs in enumerate(batches):
            batch = {name: value.detach().cpu().contiguous() for name, value in inputs.items() if isinstance(value, Tensor)}
            save_file(batch, folder / f"batch-{self.args.process_index}-{number}.safetensors", metadata={"step": str(step)})
        raise UsageError(
            f"the {what} is not finite at step {step}, so training has stopped before it changed the weights; the batch is in "
            f"'{folder}'. Lower learning_rate (now {self.args.learning_rate}) or max_grad_norm (now {self.args.max_grad_norm}), "
            "or train in bf16 or fp32 instead of fp16."
        )

    def _refuse_non_finite_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Raises: UsageError, a weight is no finite number: what is written is used, resumed from or published."""
        broken = [name for name, weight in weights.items() if weight.is_floating_point() and not weight.isfinite().all()]
        if broken:
            raise UsageError(
                f"{len(broken)} weights of the student are not finite after step {self.state.global_step}, '{broken[0]}' among "
                f"them: nothing is saved. Lower learning_rate (now {self.args.learning_rate}), and go on from a checkpoint."
            )

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        self._refuse_non_finite_weights(dict(self.model.named_parameters()) if state_dict is None else state_dict)
        if state_dict is not None:
            # Gathered from the processes, tied weights are one tensor no more, and would be saved twice.
            tied = getattr(self.model, "all_tied_weights_keys", None) or {}
            pairs = [(name, tied[name]) for name in state_dict if tied.get(name) in state_dict]
            twice = {name for name, source in pairs if torch.equal(state_dict[name], state_dict[source])}
            state_dict = {name: weight for name, weight in state_dict.items() if name not in twice}
        super()._save(output_dir, state_dict)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        tied = set(getattr(self.model, "all_tied_weights_keys", None) or ())  # saved once, under the other name
        missing = [name for name in load_result.missing_keys if name not in tied]
        super()._issue_warnings_after_load(load_result._replace(missing_keys=missing))

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Tensor | None:
        """Counted positions of the whole global batch: of all accumulation steps and all processes."""
        if not batch_samples:
            return None
        self._leave_out_repeats(batch_samples[-1])
        count = torch.stack([counted(batch).sum() for batch in batch_samples]).sum().to(device)
        count = self.accelerator.gather(count).sum()
        self._tokens_since_log = self._tokens_since_log + count  # stays on the device: nothing waits for it
        return count.clamp(min=1)  # an empty window must not divide by 0; its sum is 0 too

    def _leave_out_repeats(self, batch: dict[str, Any]) -> None:
        """Rows with which accelerate fills up the last batch of an epoch, for all processes to have as many, do not count."""
        state = self.accelerator.gradient_state
        if not state.end_of_dataloader or state.remainder <= 0:
            return
        rows = len(counted(batch))
        kept = state.remainder - rows * self.accelerator.process_index
        if kept < rows:
            device = counted(batch).device
            batch["repeated"] = torch.arange(rows, device=device) >= kept
            if "candidate_mask" not in batch:
                batch["prediction_mask"] = batch["prediction_mask"] & ~batch["repeated"][:, None]

    def mean_over_batch(self, summed: Tensor, inputs: Mapping[str, Any], num_items_in_batch: Tensor | int | None) -> Tensor:
        """A summed loss of this batch as its part of the mean over `num_items_in_batch`; None: over what counts in this batch."""
        if num_items_in_batch is None:
            num_items_in_batch = counted(inputs).sum().clamp(min=1)
        # DDP averages gradients over the processes, each of which has divided by the count of all: undo the average.
        return summed * self.accelerator.num_processes / num_items_in_batch

    @property
    def logged_step(self) -> bool:
        """Whether the training step that is under way will be logged, so that it is worth scoring."""
        step, every = self.state.global_step + 1, self.state.logging_steps
        if not self.model.training or self.args.logging_strategy != IntervalStrategy.STEPS:
            return False
        return step % every == 0 or (step == 1 and self.args.logging_first_step)

    def add_scores(self, scores: Mapping[str, Tensor | tuple[Tensor, Tensor]]) -> None:
        """Counts scores of positions, as of `position_metrics`, into the next training log; nothing waits for the device."""
        for name, value in scores.items():
            value, there = value if isinstance(value, tuple) else (value, torch.ones_like(value).bool())
            sums = torch.stack([value.detach().where(there, 0.0).double().sum(), there.double().sum()])
            self._scores[name] = self._scores[name] + sums if name in self._scores else sums

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        if resume_from_checkpoint is True:
            found = last_complete_checkpoint(Path(self.args.output_dir))
            resume_from_checkpoint = str(found) if found else True  # of which the Trainer says that there is none
        elif isinstance(resume_from_checkpoint, str):
            check_sums(resume_from_checkpoint)
        self._start_clock()
        scored_first, self.args.eval_on_start = self.args.eval_on_start, self.args.eval_on_start and not resume_from_checkpoint
        try:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            self.args.eval_on_start = scored_first
            self.signal.end()

    def _run_epoch(self, *args: Any, resume_from_checkpoint: str | None = None, **kwargs: Any) -> None:
        if self.state.global_step >= self.state.max_steps:  # resumed from the last step, after which the Trainer takes one more
            self.control.should_training_stop = True
            return
        if resume_from_checkpoint is not None and self.state.global_step == self._initial_global_step:
            self._read_window(Path(resume_from_checkpoint))
        super()._run_epoch(*args, resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    # The loss since the last log, without which the first log after a resumed step would be a mean over fewer steps

    def _window_file(self, checkpoint: Path) -> Path:
        return checkpoint / f"loss_since_log_{self.args.process_index}.json"

    def _read_window(self, checkpoint: Path) -> None:
        file = self._window_file(checkpoint)
        if file.exists():
            found = read_json(file, "Go on from another checkpoint.")
            self._tr_loss += found["loss"]
            self._globalstep_last_logged = found["last_logged"]

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """As the Trainer, with a list of sums, after which older checkpoints go: by their steps, not by the clock."""
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        folder = Path(self._get_output_dir(trial=trial))
        checkpoint = folder / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        write_json(self._window_file(checkpoint), {"loss": self._tr_loss.item(), "last_logged": self._globalstep_last_logged})
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            write_sums(checkpoint)
            rotate_checkpoints(str(folder), limit, self.state.best_model_checkpoint)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds to a training log how many counted tokens a second were learnt from, over all processes, the peak memory, and the
        means of what `add_scores` was given."""
        if "loss" in logs:
            logs |= self._mean_scores()
            tokens = float(self._tokens_since_log)
            logs["tokens_per_second"] = round(tokens / max(time.monotonic() - self._last_log, 1e-9), 1)
            logs["peak_memory_mib"] = round(peak_memory_mib(self.args.device), 1)
        super().log(logs, start_time)
        if "loss" in logs:
            self._start_clock()

    def _mean_scores(self) -> dict[str, float]:
        if not self._scores:
            return {}
        sums = self.accelerator.reduce(torch.stack(list(self._scores.values())), "sum").tolist()
        means = {name: total / count for name, (total, count) in zip(self._scores, sums, strict=True) if count}
        self._scores = {}
        return means | perplexity_of(means)

    def _start_clock(self) -> None:
        self._last_log, self._tokens_since_log = time.monotonic(), torch.zeros((), dtype=torch.long, device=self.args.device)

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[None, Tensor | None, Tensor | tuple[Tensor, Tensor] | None]:
        """Counts the scores of a batch. Returns: what `compute_metrics`, if there is one, gets of it, see `_choices`."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            metrics = self.position_metrics(model, inputs)
        units = counted(inputs)
        chosen = [metrics.pop(name, None) for name in ("student_choice", "teacher_choice")]
        self._metric_names = list(metrics)
        pairs = [value if isinstance(value, tuple) else (value, torch.ones_like(value).bool()) for value in metrics.values()]
        values = torch.stack([*(v.where(there, 0.0).double() for v, there in pairs), *(there.double() for _, there in pairs)], -1)
        # Sums per row, so that the rows repeated to fill the last batch of several processes can be told apart and dropped.
        rows = values.new_zeros(len(units), values.shape[-1]).index_add_(0, units.nonzero()[:, 0], values)
        total = self.accelerator.gather_for_metrics(rows).sum(0)
        self._totals = total if self._totals is None else self._totals + total
        if self.compute_metrics is None or None in chosen:
            return None, None, None
        return None, *_choices(*chosen, units, inputs)

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> EvalLoopOutput:
        self._totals: Tensor | None = None
        started = time.monotonic()
        with self._whole_before_training():
            output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        self._last_log += time.monotonic() - started  # nothing is learnt meanwhile
        totals = [] if self._totals is None else self._totals.view(2, -1).tolist()
        if not totals or not any(totals[1]):
            raise UsageError("no position of the evaluation set counts. Give it more text, or more to mask.")
        found = {name: value / count for name, value, count in zip(self._metric_names, *totals, strict=True) if count}
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in (found | perplexity_of(found)).items()})
        return output

    @contextmanager
    def _whole_before_training(self) -> Iterator[None]:
        """accelerate shards a student together with its optimizer, which training makes: until then every process scores it
        whole. Without this, transformers 5.23 fails under ZeRO-1, ZeRO-2 and FSDP2, and cannot train afterwards under ZeRO-3."""
        sharding = self.is_deepspeed_enabled, self.is_fsdp_enabled
        if not any(sharding) or self.accelerator._models:
            yield
            return
        self.is_deepspeed_enabled = self.is_fsdp_enabled = False
        try:
            with gathered(self.model.parameters()):
                self.model.to(self.args.device)
                yield
        finally:
            self.is_deepspeed_enabled, self.is_fsdp_enabled = sharding


def _choices(student: Tensor, teacher: Tensor, units: Tensor, inputs: Mapping[str, Any]) -> tuple[Tensor, Any]:
    """What `compute_metrics` gets as predictions and label_ids: ids, not logits, of which a whole evaluation set would not fit.

    Args:
        student, teacher: int64 [N], the argmax of each model.
        units: bool [B, S], N of them True.
        inputs: the batch.
    Returns: the student's choices, int64 [B, S], -100 where nothing counts; and the teacher's, or the pair of the teacher's and
        the true words (-100: none) where a batch has `targets`.
    """

    def spread(choices: Tensor) -> Tensor:
        return torch.full(units.shape, IGNORE_INDEX, device=choices.device).masked_scatter(units, choices)

    if "targets" not in inputs:
        return spread(student), spread(teacher)
    return spread(student), (spread(teacher), inputs["targets"].where(units, IGNORE_INDEX))


def perplexity_of(means: Mapping[str, float]) -> dict[str, float]:
    """`perplexity`, e to the cross-entropy with the true words, where there is one."""
    if "cross_entropy" not in means:
        return {}
    return {"perplexity": math.exp(means["cross_entropy"]) if means["cross_entropy"] < 700 else math.inf}


def counted(inputs: Mapping[str, Any]) -> Tensor:
    """What a batch's means are over: bool [B, S], the positions that predict; of cloze questions and of texts to classify
    bool [B, 1], the examples.

    A question with candidates of several tokens has several predictions, and yet it is one example.
    """
    if "candidate_mask" not in inputs:
        return inputs["prediction_mask"]
    examples = inputs["candidate_mask"].any(1, keepdim=True)
    return examples & ~inputs["repeated"][:, None] if "repeated" in inputs else examples


def summed_over_examples(losses: Tensor, inputs: Mapping[str, Any]) -> Tensor:
    """The sum of [B] losses of questions or texts, over those that count."""
    return losses.where(counted(inputs)[:, 0], 0.0).sum()
