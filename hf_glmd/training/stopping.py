"""SIGTERM: the checkpoint is written at the end of the step that is under way, and training stops, in all processes alike."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

import torch
from torch import distributed
from transformers import TrainerCallback


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
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
