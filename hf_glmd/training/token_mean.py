"""A Trainer whose loss and scores are means over all counted positions, however the batch is cut."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput

from hf_glmd.errors import UsageError


class TokenMeanTrainer(Trainer):
    """Loss per position in, mean over the whole global batch out.

    The mean is over the positions that `prediction_mask` counts in all accumulation steps of all processes, and evaluation
    means are over those of the whole evaluation set: neither batch size, accumulation, padding nor the number of processes
    changes a result. Subclasses say what a position costs.
    """

    # The sum is divided by the count of the whole accumulation window: the Trainer must not divide again.
    loss_is_scaled_for_ga = True

    def position_losses(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        """The loss of each counted position: [N], with gradients."""
        raise NotImplementedError(f"{type(self).__name__} does not say what a position costs.")

    def position_metrics(self, model: nn.Module, inputs: dict[str, Any]) -> dict[str, Tensor]:
        """What evaluation averages, `loss` among it: name -> [N]."""
        return {"loss": self.position_losses(model, inputs)}

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        # evaluate() before train() marks the bare model as prepared, whereupon accelerate does not wrap it in DDP any more and
        # every process trains by itself, without a word (transformers 5.23, accelerate 1.15).
        if getattr(self.model, "_is_accelerate_prepared", False) and self.model_wrapped is self.model:
            self.model._is_accelerate_prepared = False
        return super()._prepare_for_training(*args, **kwargs)

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Tensor | None:
        """Counted positions of the whole global batch: of all accumulation steps and all processes."""
        if not batch_samples:
            return None
        count = torch.stack([batch["prediction_mask"].sum() for batch in batch_samples]).sum().to(device)
        return self.accelerator.gather(count).sum().clamp(min=1)  # an empty window must not divide by 0; its sum is 0 too

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        losses = self.position_losses(model, inputs)
        if num_items_in_batch is None:
            num_items_in_batch = max(losses.numel(), 1)
        # DDP averages gradients over the processes, each of which has divided by the count of all: undo the average.
        loss = losses.sum() * self.accelerator.num_processes / num_items_in_batch
        return (loss, {}) if return_outputs else loss

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[None, None, None]:
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            metrics = self.position_metrics(model, inputs)
        counted = inputs["prediction_mask"]
        self._metric_names = list(metrics)
        values = torch.stack([*metrics.values(), torch.ones_like(metrics["loss"])], dim=-1).double()
        # Sums per row, so that the rows repeated to fill the last batch of several processes can be told apart and dropped.
        rows = values.new_zeros(len(counted), values.shape[-1]).index_add_(0, counted.nonzero()[:, 0], values)
        total = self.accelerator.gather_for_metrics(rows).sum(0)
        self._totals = total if self._totals is None else self._totals + total
        return None, None, None

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> EvalLoopOutput:
        self._totals: Tensor | None = None
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        if self._totals is None or self._totals[-1] == 0:
            raise UsageError("no position of the evaluation set counts. Give it more text, or more to mask.")
        *sums, count = self._totals.tolist()
        for name, value in zip(self._metric_names, sums, strict=True):
            output.metrics[f"{metric_key_prefix}_{name}"] = value / count
        return output


def model_inputs(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a batch that the models read."""
    return {name: inputs[name] for name in ("input_ids", "attention_mask")}
