"""GLMDConfig: everything a word-prediction distillation can be told, beside what the Trainer knows already."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments

from hf_glmd.errors import ACCESS_TOKEN, UsageError
from hf_glmd.losses.chunked import DEFAULT_CHUNK_MIB
from hf_glmd.models.distributed import load_whole_unless_asked
from hf_glmd.models.encoders import POOLINGS
from hf_glmd.training.objectives.kinds import default_temperatures

LOWER_IS_BETTER = ("loss", "kl", "cross_entropy", "perplexity", "absolute_difference")
"""Ends of the names of metrics that are to fall; all others that are reported are to rise."""

TEMPERATURES = (0.01, 1000.0)
"""Outside of these, losses and gradients vanish in fp32, and training goes on without a word."""

_LEAST = {
    **dict.fromkeys(("learning_rate", "weight_decay", "max_grad_norm", "adam_epsilon", "adam_beta1", "adam_beta2"), 0),
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"), 1),
    **dict.fromkeys(("warmup_steps", "dataloader_num_workers", "num_train_epochs", "logging_steps", "seed", "data_seed"), 0),
    **dict.fromkeys(("save_steps", "eval_steps", "eval_delay", "save_total_limit"), 0),
    **dict.fromkeys(("eval_accumulation_steps", "dataloader_prefetch_factor", "torch_empty_cache_steps"), 1),
    **dict.fromkeys(
        ("max_length", "mlm_probability", "mask_replace_prob", "temperature", "loss_chunk_mib"), -math.inf
    ),  # of ours, with a text each
    "max_steps": -1,
}
_OPTIONAL = ("warmup_steps", "seed", "data_seed", "save_total_limit", "eval_steps", "eval_accumulation_steps", "max_length")
_OPTIONAL += ("dataloader_prefetch_factor", "torch_empty_cache_steps", "mlm_probability", "temperature")
_BELOW = {"adam_beta1": 1, "adam_beta2": 1, "seed": 2**32, "data_seed": 2**32}


SHORT: dict[str, Any] = {"temperature": 1.0, "learning_rate": 1e-3, "lr_scheduler_type": "cosine", "warmup_steps": 0.05}
"""What teaches in hundreds or thousands of steps, see docs/settings.md; the defaults are the paper's, for 150,000."""


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"temperature": 15.0, "learning_rate": 5e-5, "max_steps": 150_000},
    "short": SHORT,
    "masked": SHORT
    | {"positions": "masked", "mlm_probability": 0.25, "mask_replace_prob": 0.9, "learning_rate": 2e-3}
    | {"adam_beta2": 0.98, "weight_decay": 0.1},
}
"""Settings by name, for `GLMDConfig.preset` and a stage's `preset` in recipes; docs/settings.md says what was measured of them.

paper: arXiv:2306.06625. short: hundreds or thousands of steps, any model. masked: the same, for masked language models, several
times cheaper per step."""


def preset_options(name: str) -> dict[str, Any]:
    """Raises: UsageError, there is no preset of that name."""
    if name not in PRESETS:
        raise UsageError(f"preset='{name}' is unknown, use {', '.join(PRESETS)}.")
    return dict(PRESETS[name])


def number_mistakes(options: Mapping[str, Any]) -> list[str]:
    """What is wrong with the numbers among training arguments, whose own checks let most of it pass.

    Args:
        options: name of a field of `TrainingArguments` or `GLMDConfig` -> its value; texts that can be read as numbers are.
    """
    mistakes = []
    for name in sorted(_LEAST.keys() & options.keys()):
        value = options[name]
        if value is None and name in _OPTIONAL:
            continue
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            mistakes.append(f"{name}={value!r} is not a number")
            continue
        if not math.isfinite(number):
            mistakes.append(f"{name}={value} is not a finite number")
        elif number < _LEAST[name]:
            mistakes.append(f"{name}={value} is too small, use {_LEAST[name]} or more")
        elif number >= _BELOW.get(name, math.inf):
            mistakes.append(f"{name}={value} is out of range, use less than {_BELOW[name]}")
    return mistakes


@dataclass
class GLMDConfig(TrainingArguments):
    """`transformers.TrainingArguments` plus the options of the distillation; each field's help text is its documentation.

    Raises: UsageError, a value is out of range; all such values are named together.
    """

    objective: str = field(
        default="word_prediction",
        metadata={
            "help": "word_prediction: KL to the teacher's predictions of words. soft_label: cross-entropy with what its head "
            "says, by the kind of model: answers to a cloze task, classes of texts (of a regression the squared difference), "
            "classes of tokens, where an answer begins and ends. token_label, span: the last two by name. embedding: of two text "
            "encoders, what pooling makes of their last hidden states."
        },
    )
    temperature: float | None = field(
        default=None, metadata={"help": "Of both softmaxes. Unset: 15.0 for word_prediction, 1.0 for soft_label."}
    )
    positions: str = field(
        default="all",
        metadata={
            "help": "Which positions count. all: every non-padding one (the paper). masked: those that hold the mask token only, "
            "several times cheaper per step, for masked language models. labels: those whose labels are not -100, shifted for "
            "causal models, e.g. completions alone; also the default for collators of transformers and trl that make labels."
        },
    )
    mlm_probability: float | None = field(
        default=None,
        metadata={"help": "Share of the tokens that are masked. Unset: 0.15 for masked language models, else 0."},
    )
    mask_replace_prob: float = field(
        default=1.0,
        metadata={
            "help": "Share of the tokens chosen by mlm_probability that the mask token replaces; the others stay visible, and "
            "with positions='masked' count too: 0.8 keeps what the student knows of visible text."
        },
    )
    mask_share: float | None = field(default=None, metadata={"help": "Former name of mlm_probability."})
    max_length: int | None = field(
        default=None,
        metadata={
            "help": "Token ids per row when a dataset of text is tokenised. Unset: what both models can read, at most 512."
        },
    )
    target_column: str | None = field(
        default=None,
        metadata={
            "help": "For encoder-decoders, when a dataset of text is tokenised: column of what the decoder reads and predicts. "
            "Unset: each row of text is split, the encoder reads its beginning and the decoder predicts the rest."
        },
    )
    pooling: str | None = field(
        default=None,
        metadata={
            "help": "For embeddings, how a text's hidden states become one vector: mean (over what is no padding), cls (the "
            "first), max or lasttoken. A SentenceTransformer says it itself. Unset: as such a teacher, otherwise mean."
        },
    )
    embedding_loss: str = field(
        default="mse",
        metadata={
            "help": "For embeddings. mse: the squared difference, the mean over the width (MSELoss of sentence-transformers); it "
            "also teaches lengths, for scores by dot product. cosine: 1 - cosine, where only directions matter."
        },
    )
    pair_column: str | None = field(
        default=None,
        metadata={
            "help": "For classifiers, when a dataset of text is tokenised: column of the second text of each pair. For question "
            "answering: of the texts that the questions in text_column are about."
        },
    )
    teacher_reads_replaced: bool = field(
        default=False,
        metadata={
            "help": "Where similar tokens stand for removed ones (removed='nearest' or 'unk'): let the teacher read those, too, "
            "rather than the text as it was."
        },
    )
    separate_documents: bool = field(
        default=False,
        metadata={
            "help": "For causal models, when a dataset of text is tokenised: texts that share a row do not see each other. The "
            "model must take position_ids."
        },
    )
    fused_loss: bool = field(
        default=True,
        metadata={
            "help": "Make the word-prediction loss from hidden states, a slice of tokens at a time. False: from all logits of "
            "both models at once, which takes more memory and time; the result is the same."
        },
    )
    loss_chunk_mib: float = field(
        default=DEFAULT_CHUNK_MIB, metadata={"help": "Memory in MiB for the slices of logits that the fused loss holds at once."}
    )
    hub_overwrite: bool = field(
        default=False,
        metadata={"help": "With push_to_hub: replace what the repository holds, even if it is no model of hf_glmd."},
    )
    merge_adapters: bool = field(
        default=False,
        metadata={
            "help": "For a student with adapters (PEFT): save_model writes a plain model with the adapters in its weights. "
            "Checkpoints hold the adapters in any case."
        },
    )
    accept_worse: bool = field(
        default=False,
        metadata={"help": "Also push a student that is further from its teacher than it was at its start."},
    )
    text_column: str = field(default="text", metadata={"help": "Column to tokenise when a dataset has no input_ids."})

    def __post_init__(self) -> None:
        self._refuse_tokens()
        if mistakes := number_mistakes(vars(self)):
            raise UsageError("; ".join(mistakes) + ".")
        mistakes, temperatures = [], default_temperatures()
        if self.objective not in temperatures:
            names = " or ".join(f"'{name}'" for name in temperatures)
            mistakes.append(f"objective='{self.objective}' is unknown, use {names}")
        elif self.temperature is None:
            self.temperature = temperatures[self.objective]
        if self.mask_share is not None:
            if self.mlm_probability not in (None, self.mask_share):
                mistakes.append(
                    f"mask_share={self.mask_share} is the former name of mlm_probability={self.mlm_probability}, give one of them"
                )
            self.mlm_probability, self.mask_share = self.mask_share, None
        low, high = TEMPERATURES
        if self.temperature is not None and self.temperature <= 0:
            mistakes.append(f"temperature={self.temperature} is not positive, the paper uses 15.0 for words and 1.0 for answers")
        elif self.temperature is not None and not low <= self.temperature <= high:
            mistakes.append(
                f"temperature={self.temperature} is out of range, use {low} to {high:.0f}: far below, softmaxes are one-hot, "
                "far above, they are flat; the paper uses 15.0 for words and 1.0 for answers"
            )
        if self.positions not in ("all", "masked", "labels"):
            mistakes.append(f"positions='{self.positions}' is unknown, use 'all', 'masked' or 'labels'")
        if self.pooling is not None and self.pooling not in POOLINGS:
            mistakes.append(f"pooling='{self.pooling}' is unknown, use 'mean', 'cls', 'max' or 'lasttoken'")
        if self.embedding_loss not in ("mse", "cosine"):
            mistakes.append(f"embedding_loss='{self.embedding_loss}' is unknown, use 'mse' or 'cosine'")
        if self.mlm_probability is not None and not 0 <= self.mlm_probability < 1:
            mistakes.append(f"mlm_probability={self.mlm_probability} is out of range, use 0 or more and less than 1, e.g. 0.15")
        if not 0 < self.mask_replace_prob <= 1:
            mistakes.append(f"mask_replace_prob={self.mask_replace_prob} is out of range, use more than 0, up to 1, e.g. 0.8")
        if self.max_length is not None and self.max_length < 3:
            mistakes.append(f"max_length={self.max_length} leaves no room for text, use 3 or more")
        if not self.loss_chunk_mib > 0:
            mistakes.append(f"loss_chunk_mib={self.loss_chunk_mib} leaves no room for logits, use e.g. {DEFAULT_CHUNK_MIB}")
        if self.label_smoothing_factor:
            mistakes.append("label_smoothing_factor has no meaning without labels, leave it at 0")
        if mistakes:
            raise UsageError("; ".join(mistakes) + ".")
        if self.greater_is_better is None and (self.metric_for_best_model or "").endswith(LOWER_IS_BETTER):
            self.greater_is_better = False  # the Trainer knows of losses only
        super().__post_init__()
        load_whole_unless_asked(self.deepspeed_plugin)

    def _refuse_tokens(self) -> None:
        """Raises: UsageError, a field that is written into records and cards holds an access token, which is not repeated."""
        for name, value in vars(self).items():
            if name != "hub_token" and ACCESS_TOKEN.search(str(value)):
                raise UsageError(f"{name} holds an access token of the Hub. Give it as hub_token, or run `hf auth login`.")

    @classmethod
    def short(cls, output_dir: str, **options: Any) -> GLMDConfig:
        """Settings for a run of hundreds or thousands of steps: temperature 1, learning rate 1e-3 on a cosine, 5% warm-up.

        The defaults of the other fields are the paper's (temperature 15, 150,000 steps), which hardly move a student in so few.

        Args:
            output_dir: as of `GLMDConfig`.
            options: any field; they win.
        Raises: as `GLMDConfig`.
        """
        return cls(output_dir, **SHORT | options)

    @classmethod
    def preset(cls, name: str, output_dir: str, **options: Any) -> GLMDConfig:
        """Settings by name: "paper" (150,000 steps at T = 15), "short", "masked" (short, for masked language models).

        Args:
            output_dir: as of `GLMDConfig`.
            options: any field; they win.
        Raises: UsageError, there is no such preset; or as `GLMDConfig`.
        """
        return cls(output_dir, **preset_options(name) | options)

    def __getstate__(self) -> dict[str, Any]:
        # The Trainer pickles its arguments beside the weights, and what lies there is pushed.
        return self.__dict__ | {"hub_token": None}
