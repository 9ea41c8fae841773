"""One progress bar per stage that says what is happening, how far it is and how well it goes."""

from __future__ import annotations

import importlib
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch import distributed
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from hf_glmd.errors import UsageError

SHOWN = {"eval_kl": "KL", "eval_agreement": "agreement", "eval_accuracy": "accuracy", "loss": "loss"}


class StageProgress(ProgressCallback):
    """The Trainer's bar with a title, and the latest figures beside it instead of a dictionary per line.

    Args:
        title: what is happening.
    """

    def __init__(self, title: str) -> None:
        super().__init__()
        self.title, self.figures = title, {}

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        if self.training_bar is not None:
            self.training_bar.set_description(self.title)
            self.training_bar.unit = "step"
            self.current_step = state.global_step  # of a resumed run
            self.training_bar.update(state.global_step)

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs) -> None:
        super().on_prediction_step(args, state, control, eval_dataloader, **kwargs)
        if self.prediction_bar is not None:
            self.prediction_bar.set_description("  held-out rows", refresh=False)

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        self.figures.update({SHOWN[name]: f"{value:.3g}" for name, value in (logs or {}).items() if name in SHOWN})
        if self.training_bar is not None:
            self.training_bar.set_postfix(self.figures)


def show_progress(trainer: Trainer, title: str) -> None:
    """Replaces the Trainer's own bar, unless bars are switched off."""
    trainer.remove_callback(PrinterCallback)
    if not trainer.args.disable_tqdm:
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(StageProgress(title))


class StopOnSignal(TrainerCallback):
    """Saves and stops when the process is asked to end, as by a cluster that takes its machine back.

    The Trainer's own `enable_jit_checkpoint` saves in the middle of a step, after a wait, and each process by itself.

    Attributes:
        stopped: whether training ended because of the signal.
    """

    def __init__(self) -> None:
        self.stopped = False
        self._asked = False
        self._before: Any = None
        self._group: Any = None

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self.stopped = self._asked = False
        if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
            # On the CPU, so that asking the others does not wait for the graphics card.
            self._group = self._group or distributed.new_group(backend="gloo")
        if threading.current_thread() is threading.main_thread():  # Python allows no other to handle signals
            self._before = signal.signal(signal.SIGTERM, self._ask)

    def on_step_end(self, args, state, control, **kwargs) -> None:
        asked = self._asked
        if self._group is not None:
            flag = torch.tensor(int(asked))
            distributed.all_reduce(flag, distributed.ReduceOp.MAX, group=self._group)
            asked = bool(flag)
        if asked:
            self.stopped = control.should_save = control.should_training_stop = True

    def on_train_end(self, args, state, control, **kwargs) -> None:
        self.end()

    def end(self) -> None:
        """The signal means again what it did before training; also when an error ended that."""
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True


def callback_class(path: str) -> type[TrainerCallback]:
    """The callback of an import path, `package.module.Class`. Raises: UsageError, there is none, or it is no callback."""
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, ValueError, AttributeError) as error:
        raise UsageError(
            f"callbacks names '{path}', which cannot be imported ({error}). Use package.module.Class, of what is installed or "
            "lies in a folder of PYTHONPATH."
        ) from error
    if not (isinstance(found, type) and issubclass(found, TrainerCallback)):
        raise UsageError(f"callbacks names '{path}', which is no class derived from transformers.TrainerCallback.")
    return found


class MaskEpoch(TrainerCallback):
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


@contextmanager
def masks_of_epoch(collator: Any, epoch: int) -> Iterator[None]:
    """Inside this context a collator masks the tokens of another epoch, if it masks any."""
    if not hasattr(collator, "epoch"):
        yield
        return
    before, collator.epoch = collator.epoch, epoch
    try:
        yield
    finally:
        collator.epoch = before
