"""One progress bar per stage that says what is happening, how far it is and how well it goes."""

from __future__ import annotations

from transformers import Trainer
from transformers.trainer_callback import PrinterCallback, ProgressCallback

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
