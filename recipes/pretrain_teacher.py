"""Trains the quickstart's teacher: a small BERT, from scratch, on the docstrings of installed libraries.

    python recipes/pretrain_teacher.py --minutes 80 --output recipes/quickstart_teacher

Or gives an encoder that somebody published without a masked-word head, such as a sentence encoder, a head tied to its embeddings:

    python recipes/pretrain_teacher.py --model DIR --corpus 'texts/*.txt' --lr 5e-4 --embedding-lr 5e-4 --minutes 30 --output DIR

The budget is wall time, because the hardware differs: the learning rate falls to 0 exactly when the time is over. Nothing is
downloaded. The folder gets half-precision weights, the tokenizer and a card with what was measured on the test split.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import datasets
import torch
from torch import nn
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertTokenizer,
    DataCollatorForLanguageModeling,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from hf_glmd.data.corpus import load_corpus
from hf_glmd.data.docstrings import library_versions
from hf_glmd.data.packing import pack_blocks
from hf_glmd.evaluation.words import masked_word_accuracy
from hf_glmd.models.heads import WordHead
from hf_glmd.reports.run_card import render_teacher_card

WARM_UP_SHARE = 0.02
TRAIN_MLM_PROBABILITY = 0.2  # a little above the scored 15%: more predictions per step for the same forward


class TimeBudget(TrainerCallback):
    """Share of the time that is spent, for the schedule; stops the training when it is 1."""

    def __init__(self, minutes: float, spent_s: float = 0.0) -> None:
        self.total_s, self.spent_s, self.started = minutes * 60, spent_s, time.monotonic()

    @property
    def share(self) -> float:
        return min(1.0, (self.spent_s + time.monotonic() - self.started) / self.total_s)

    def learning_rate_factor(self, step: int) -> float:
        return min(1.0, self.share / WARM_UP_SHARE) * (1.0 - self.share)

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = self.share >= 1.0


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon for the matrices of the body, AdamW for embeddings, biases and norms, as Muon's authors advise.

    Validation loss after 300 steps of 32 x 128 tokens: 5.64 (both at 2e-3), beside 5.90 of AdamW alone (1e-3); AdamW at 2e-3
    stayed at 6.42 after 350. Muon's rate hardly matters (1e-3 and 4e-3: 5.70 and 5.72 after 400 steps of half the tokens); a
    step takes a tenth more time.
    """

    def __init__(self, model: nn.Module, lr: float, embedding_lr: float) -> None:
        table = model.get_input_embeddings().weight
        matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and p is not table and "embeddings" not in n]
        held = {id(p) for p in matrices}
        others = [p for p in model.parameters() if id(p) not in held]
        self.parts = [
            torch.optim.Muon(matrices, lr=lr, momentum=0.95, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=embedding_lr, betas=(0.9, 0.98), weight_decay=0.0),
        ]
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        # One list of groups, shared with the parts, so that the scheduler's changes reach them.
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    def step(self, closure=None):
        for part in self.parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none)

    def state_dict(self):
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]


class MaskedWordTrainer(Trainer):
    """The plain masked-word loss, with logits at the masked positions only."""

    def __init__(self, model, **kwargs):
        self.head = WordHead(model)
        super().__init__(model, **kwargs)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        masked = labels != -100
        with torch.autocast("cpu", torch.bfloat16, enabled=self.args.device.type == "cpu"):
            logits = self.head.logits(model, inputs, positions=masked)
        loss = nn.functional.cross_entropy(logits.float(), labels[masked])
        return (loss, {"logits": logits}) if return_outputs else loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=80, help="wall time to train for (default 80)")
    parser.add_argument("--output", type=Path, default=Path("recipes/quickstart_teacher"), help="where the teacher is written")
    parser.add_argument("--model", help="folder or name of an encoder to start from; default: from scratch")
    parser.add_argument("--corpus", default="docstrings", help="what to read, as in recipes: a name, files or a folder")
    parser.add_argument("--work", type=Path, default=Path("runs/pretrain_teacher"), help="checkpoints, for resuming")
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden-size", type=int, default=256)
    parser.add_argument("--block-size", type=int, default=128, help="tokens per training row, and positions of the model")
    parser.add_argument("--batch-size", type=int, default=16, help="rows per step; more once the loss has left its first plateau")
    parser.add_argument("--lr", type=float, default=2e-3, help="of Muon, for the matrices")
    parser.add_argument("--embedding-lr", type=float, default=2e-3, help="of AdamW, for everything else")
    args = parser.parse_args()
    torch.manual_seed(0)

    corpus = load_corpus(args.corpus)
    tokenizer, model = published(args) if args.model else from_scratch(corpus, args)
    blocks = {split: pack_blocks(corpus[split], tokenizer, args.block_size) for split in corpus}

    log_file = args.work / "spent.json"  # the clock survives a restart
    checkpoints = sorted(args.work.glob("checkpoint-*"))
    spent_s = json.loads(log_file.read_text())["spent_s"] if checkpoints and log_file.exists() else 0.0
    budget = TimeBudget(args.minutes, spent_s)

    class RememberTime(TrainerCallback):
        def on_save(self, train_args, state, control, **kwargs):
            log_file.write_text(json.dumps({"spent_s": budget.share * budget.total_s, "step": state.global_step}))

    optimizer = MuonWithAdamW(model, args.lr, args.embedding_lr)
    trainer = MaskedWordTrainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(args.work),
            per_device_train_batch_size=args.batch_size,
            per_device_eval_batch_size=64,
            max_steps=10_000_000,  # the clock decides
            logging_steps=100,
            eval_strategy="steps",
            eval_steps=2000,
            save_steps=1000,
            save_total_limit=1,
            max_grad_norm=1.0,
            report_to="none",
            prediction_loss_only=True,
            seed=0,
        ),
        train_dataset=blocks["train"],
        eval_dataset=blocks["validation"].select(range(min(512, len(blocks["validation"])))),
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm_probability=TRAIN_MLM_PROBABILITY),
        optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, budget.learning_rate_factor)),
        callbacks=[budget, RememberTime()],
    )
    trainer.train(resume_from_checkpoint=bool(checkpoints))
    save(trainer, tokenizer, blocks["test"], len(corpus["train"]), args)


def from_scratch(corpus: datasets.DatasetDict, args: argparse.Namespace) -> tuple[BertTokenizer, BertForMaskedLM]:
    tokenizer = BertTokenizer(model_max_length=args.block_size).train_new_from_iterator(
        iter(corpus["train"]["text"]), args.vocab_size, length=len(corpus["train"])
    )
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=args.hidden_size,
        num_hidden_layers=args.layers,
        num_attention_heads=args.hidden_size // 64,
        intermediate_size=4 * args.hidden_size,
        max_position_embeddings=args.block_size,
        hidden_dropout_prob=0.0,  # the corpus is seen about 15 times under ever new masks: it does not overfit
        attention_probs_dropout_prob=0.0,
        pad_token_id=tokenizer.pad_token_id,
    )
    return tokenizer, BertForMaskedLM(config)


def published(args: argparse.Namespace) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """A published encoder; the head that it lacks is fresh, tied to its embeddings."""
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return AutoTokenizer.from_pretrained(args.model), AutoModelForMaskedLM.from_pretrained(
        args.model, dtype=torch.float32, **no_dropout
    )


def save(trainer: Trainer, tokenizer: BertTokenizer, test_blocks, corpus_texts: int, args: argparse.Namespace) -> None:
    """Writes weights in half precision, tokenizer and card; the scores are those of the half-precision weights."""
    trainer.model.half().save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)
    model = BertForMaskedLM.from_pretrained(args.output, dtype=torch.float32)
    scores = masked_word_accuracy(model, tokenizer, test_blocks)
    facts = {
        "accuracy": scores.accuracy,
        "positions": scores.positions,
        "steps": trainer.state.global_step,
        "minutes": args.minutes,
        "parameters": model.num_parameters(),
        "versions": library_versions(),
    }
    print(json.dumps(facts, indent=1))  # noqa: T201
    (args.output / "training.json").write_text(json.dumps(facts | {"args": vars(args)}, indent=1, default=str) + "\n", "utf-8")
    if args.model:
        return  # its card is its publisher's
    card = render_teacher_card(
        **facts, args=vars(args), corpus_texts=corpus_texts, tokens_per_step=args.batch_size * args.block_size
    )
    (args.output / "README.md").write_text(card, encoding="utf-8")


if __name__ == "__main__":
    main()
