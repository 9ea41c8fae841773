"""What others learn from a teacher, as objectives: each rival of GLMD in the words of its paper, for BERT-like models.

All of them are run by `GLMDTrainer` like the package's own; `register()` makes their names known to `GLMDConfig(objective=...)`.
Where a paper averages, so does the code here; the trainer divides by the positions that count, which is made up for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from hf_glmd.errors import UsageError
from hf_glmd.losses.reference import IGNORE_INDEX
from hf_glmd.training.objectives.kinds import OBJECTIVES
from hf_glmd.training.objectives.word_prediction import WordPrediction

States = dict[str, Tensor]
"""What parts of a model put out in one forward, [B, S, H] each."""


class Rival(WordPrediction):
    """A loss of word predictions, gold words and what happens inside of both models.

    A rival overrides `mean_loss`, and `parts` if it looks inside.
    """

    default_temperature: ClassVar[float] = 1.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for teacher in self.teacher.models:
            widths = self.student.config.hidden_size, teacher.config.hidden_size
            if self.parts(teacher) and widths[0] != widths[1]:
                raise UsageError(
                    f"objective='{self.name}' compares hidden states, and the student is {widths[0]} wide, the teacher "
                    f"{widths[1]}. Use a student of the teacher's width."
                )

    @classmethod
    def parts(cls, model: nn.Module) -> dict[str, nn.Module]:
        """Name -> a module whose output the loss needs."""
        return {}

    def mean_loss(self, student: Tensor, teacher: Tensor, own: States, theirs: States, batch: Mapping[str, Tensor]) -> Tensor:
        """The loss of a batch, as the paper writes it.

        Args:
            student, teacher: logits at the positions that count, [N, K], fp32 or wider.
            own, theirs: what the parts of student and teacher put out, fp32 or wider.
            batch: as the collator made it.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say what it costs to differ.")

    def teach(self, inputs: Mapping[str, Any]) -> Any:
        with watched(self.parts(self.teacher.models[0])) as states:
            return super().teach(inputs), states

    def ask(self, model: nn.Module, inputs: Mapping[str, Any], compute: Callable[[Any], Any]) -> Any:
        with watched(self.parts(self.student)) as states:
            return super().ask(model, inputs, lambda head: compute((head, states)))

    def loss(self, student: Any, teacher: Any, inputs: Mapping[str, Any]) -> Tensor:
        (head, own), (told, theirs) = student, teacher
        with torch.autocast(head.hidden.device.type, enabled=False):
            own, theirs = ({name: widened(state) for name, state in states.items()} for states in (own, theirs))
            mean = self.mean_loss(head.logits(), None if told is None else told.logits(), own, theirs, inputs)
        return mean * inputs["prediction_mask"].sum()

    def scores(self, student: Any, teacher: Any, inputs: Mapping[str, Any], choices: bool) -> dict[str, Any]:
        return {} if teacher[0] is None else super().scores(student[0], teacher[0], inputs, choices)


class GoldWords(Rival):
    """No teacher: cross-entropy with the words that were hidden (BERT, arXiv:1810.04805)."""

    name = "gold_words"

    def teach(self, inputs: Mapping[str, Any]) -> Any:
        return None, {}

    def mean_loss(self, student: Tensor, teacher: Tensor, own: States, theirs: States, batch: Mapping[str, Tensor]) -> Tensor:
        return gold_loss(student, batch)


class KnowledgeDistillation(Rival):
    """Half T^2 KL at T = 2, half gold words (Hinton et al., arXiv:1503.02531; the weights are the usual ones)."""

    name = "kd"

    def mean_loss(self, student: Tensor, teacher: Tensor, own: States, theirs: States, batch: Mapping[str, Tensor]) -> Tensor:
        return 0.5 * soft_loss(student, teacher, 2.0) + 0.5 * gold_loss(student, batch)


class DistilBert(Rival):
    """5 soft words at T = 2, 2 gold words, 1 cosine of the last hidden states (arXiv:1910.01108; weights of its code)."""

    name = "distilbert"

    @classmethod
    def parts(cls, model: nn.Module) -> dict[str, nn.Module]:
        return {"last": layers_of(model)[-1]}

    def mean_loss(self, student: Tensor, teacher: Tensor, own: States, theirs: States, batch: Mapping[str, Tensor]) -> Tensor:
        cosine = 1.0 - functional.cosine_similarity(own["last"], theirs["last"], dim=-1)
        return 5.0 * soft_loss(student, teacher, 2.0) + 2.0 * gold_loss(student, batch) + mean_of(cosine, batch)


class TinyBert(Rival):
    """Embeddings, hidden states and attention scores of each layer, squared differences (arXiv:1909.10351, equations 7 to 9).

    Layer m of M learns from layer m N / M of N. It has no word loss: give it a stage of words afterwards.
    """

    name = "tinybert"

    @classmethod
    def parts(cls, model: nn.Module) -> dict[str, nn.Module]:
        found = {"embeddings": model.base_model.embeddings}
        for number, layer in enumerate(layers_of(model)):
            found |= {f"{number}.hidden": layer} | {f"{number}.{part}": module for part, module in projections_of(layer).items()}
        return found

    def mean_loss(self, student: Tensor, teacher: Tensor, own: States, theirs: States, batch: Mapping[str, Tensor]) -> Tensor:
        depth, teacher_depth = len(layers_of(self.student)), len(layers_of(self.teacher.models[0]))
        heads, seen = self.student.config.num_attention_heads, batch["attention_mask"].bool()
        pairs = (seen[:, :, None] & seen[:, None, :])[:, None].float()
        total = mean_of((own["embeddings"] - theirs["embeddings"]).square().mean(-1), batch)
        for number in range(depth):
            teaching = (number + 1) * teacher_depth // depth - 1
            difference = own[f"{number}.hidden"] - theirs[f"{teaching}.hidden"]
            total = total + mean_of(difference.square().mean(-1), batch)
            scores = [attention_scores(states, which, heads) for states, which in ((own, number), (theirs, teaching))]
            squares = (scores[0] - scores[1]).square() * pairs
            total = total + squares.sum() / (pairs.sum() * heads)
        # A word loss of 0, so that DDP finds the head used.
        return total + 0.0 * student.sum()


class MiniLmV2(Rival):
    """Relations among queries, keys and values of the last layers (arXiv:2012.15828, equations 3 to 6).

    Relation heads are 16 wide, as its 48 of BERT-base are. It has no word loss: give it a stage of words afterwards.
    """

    name = "minilmv2"
    relation_width = 16

    @classmethod
    def parts(cls, model: nn.Module) -> dict[str, nn.Module]:
        return projections_of(layers_of(model)[-1])

    def mean_loss(self, student: Tensor, teacher: Tensor, own: States, theirs: States, batch: Mapping[str, Tensor]) -> Tensor:
        total = 0.0 * student.sum()
        for part in ("query", "key", "value"):
            wanted, found = (self._relations(states[part], batch) for states in (theirs, own))
            divergence = (wanted.exp() * (wanted - found)).masked_fill(wanted == -math.inf, 0.0).sum(-1)  # [B, A, S]
            total = total + mean_of(divergence.mean(1), batch)
        return total

    def _relations(self, states: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """log softmax(A A^T / sqrt(d)), [B, relation heads, S, S]; padding is no partner."""
        parts = split_heads(states, states.shape[-1] // self.relation_width)
        products = parts @ parts.transpose(-1, -2) / math.sqrt(self.relation_width)
        return products.masked_fill(~batch["attention_mask"].bool()[:, None, None], -math.inf).log_softmax(-1)


class WordsAndLastHidden(Rival):
    """KL at T = 1 and the squared difference of the last hidden states: how much one look inside adds to words alone."""

    name = "words_and_last_hidden"

    @classmethod
    def parts(cls, model: nn.Module) -> dict[str, nn.Module]:
        return {"last": layers_of(model)[-1]}

    def mean_loss(self, student: Tensor, teacher: Tensor, own: States, theirs: States, batch: Mapping[str, Tensor]) -> Tensor:
        difference = (own["last"] - theirs["last"]).square().mean(-1)
        return soft_loss(student, teacher, 1.0) + mean_of(difference, batch)


RIVALS: list[type[Rival]] = [GoldWords, KnowledgeDistillation, DistilBert, TinyBert, MiniLmV2, WordsAndLastHidden]


def register() -> None:
    """Makes the rivals known by name; again does no harm."""
    OBJECTIVES.extend(rival for rival in RIVALS if rival not in OBJECTIVES)


def soft_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher || student), the mean over [N, K] logits' rows."""
    wanted, found = (torch.log_softmax(logits / temperature, -1) for logits in (teacher, student))
    return temperature**2 * functional.kl_div(found, wanted, log_target=True, reduction="batchmean")


def gold_loss(student: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """Cross-entropy with the masked tokens, the mean over them."""
    targets = batch["targets"][batch["prediction_mask"]]
    return functional.cross_entropy(student, targets, ignore_index=IGNORE_INDEX)


def widened(state: Tensor) -> Tensor:
    return state.to(torch.promote_types(state.dtype, torch.float32))


def mean_of(values: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """[B, S] -> the mean over what is no padding."""
    return values[batch["attention_mask"].bool()].mean()


def layers_of(model: nn.Module) -> nn.ModuleList:
    """Raises: UsageError, it is not built as BERT is."""
    layers = getattr(getattr(model.base_model, "encoder", None), "layer", None)
    if layers is None or not hasattr(layers[0], "attention") or not hasattr(layers[0].attention, "self"):
        raise UsageError(f"{type(model).__name__} is not built as BERT is, whose layers the rivals know. Use a BERT or RoBERTa.")
    return layers


def projections_of(layer: nn.Module) -> dict[str, nn.Module]:
    attention = layer.attention.self
    return {"query": attention.query, "key": attention.key, "value": attention.value}


def split_heads(states: Tensor, heads: int) -> Tensor:
    """[B, S, H] -> [B, heads, S, H / heads]."""
    return states.unflatten(-1, (heads, -1)).transpose(1, 2)


def attention_scores(states: States, layer: int, heads: int) -> Tensor:
    """Before the softmax: Q K^T / sqrt(d), [B, heads, S, S]."""
    query, key = (split_heads(states[f"{layer}.{part}"], heads) for part in ("query", "key"))
    return query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])


@contextmanager
def watched(parts: Mapping[str, nn.Module]) -> Iterator[States]:
    """Inside this context: name -> what the part put out last."""
    states: States = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, arguments: Any, output: Any) -> None:
            states[name] = output[0] if isinstance(output, tuple) else output

        return hook

    hooks = [module.register_forward_hook(keep(name)) for name, module in parts.items()]
    try:
        yield states
    finally:
        for hook in hooks:
            hook.remove()
