"""ShrunkVocab: a smaller vocabulary as it is used, saved, loaded, and verified against the original one."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_glmd.errors import UsageError
from hf_glmd.models.surgery import resize_model
from hf_glmd.tokenizer_files import STALE_FILES, encode_texts, load_tokenizer, write_tokenizer
from hf_glmd.vocab.counting import backend_of
from hf_glmd.vocab.vocab_map import VocabMap

logger = logging.getLogger(__name__)

REPORT_FILE = "vocab_report.json"


@dataclass
class VocabReport:
    """What a smaller vocabulary holds and what it costs."""

    original_size: int = field(metadata={"help": "V: rows the tokenizer could address before."})
    size: int = field(metadata={"help": "K: tokens kept, exactly the ids 0 to K-1 of the new tokenizer."})
    coverage: float = field(metadata={"help": "Share of the counted tokens that were kept tokens."})
    length_ratio: float = field(
        metadata={"help": "Tokens after / before, on up to 2,000 of the counted texts (their first 4,096 characters each)."}
    )
    counted_tokens: int = field(metadata={"help": "Tokens in the counted corpora."})
    texts: int = field(metadata={"help": "Texts in the counted corpora, empty ones left out."})
    n_special: int = field(metadata={"help": "Special and added tokens, and others the tokenizer itself refers to."})
    n_alphabet: int = field(metadata={"help": "Further tokens kept so that what was removed can be spelt: single characters."})
    n_keep: int = field(metadata={"help": "Further tokens kept because of keep= and keep_texts=."})
    removed_examples: list[str] = field(default_factory=list, metadata={"help": "The most frequent removed tokens."})
    new_unknown: int = field(
        default=0, metadata={"help": "Unknown tokens after, less those before, on the texts of length_ratio."}
    )


@dataclass
class VerifyReport:
    """What `ShrunkVocab.verify` compared."""

    texts: int
    texts_all_kept: int
    max_logit_difference: float | None = None


class ShrunkVocab:
    """A smaller vocabulary: its tokenizer, its map to the original one, and what it costs.

    Attributes:
        tokenizer: what the smaller model is used with.
        vocab_map: `VocabMap`, small ids <-> original ids.
        report: `VocabReport`.
        counts: int64 [K], how often each kept token was counted; None if loaded from a folder.
    """

    def __init__(
        self,
        tokenizer: Any,
        vocab_map: VocabMap,
        report: VocabReport,
        counts: np.ndarray | None = None,
        original_tokenizer: Any = None,
        probes: Iterable[str] = (),
    ) -> None:
        self.tokenizer = tokenizer
        self.vocab_map = vocab_map
        self.report = report
        self.counts = counts
        self._original_tokenizer = original_tokenizer
        self._probes = list(probes)

    def __repr__(self) -> str:
        return (
            f"ShrunkVocab({self.report.size} of {self.report.original_size} tokens, coverage {self.report.coverage:.4f}, "
            f"length ratio {self.report.length_ratio:.3f})"
        )

    def resize(self, model: Any) -> Any:
        """A smaller copy of the model; the given one is untouched. See `hf_glmd.models.surgery.resize_model`."""
        return resize_model(model, self.vocab_map)

    def save_pretrained(self, directory: str | os.PathLike[str]) -> None:
        """Writes the tokenizer (for plain `AutoTokenizer`), `vocab_map.safetensors` and `vocab_report.json`.

        All files are written and checked beside the folder first and then moved in, so that nothing half-written stays. Other
        files in the folder stay, except vocabulary files of an earlier tokenizer, which would be mixed with the new one.

        Raises: UsageError, `directory` is a file.
        """
        directory = Path(directory)
        if directory.exists() and not directory.is_dir():
            raise UsageError(f"'{directory}' is a file: give a folder to save to.")
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{directory.name}.", dir=directory.parent) as partial:
            write_tokenizer(self.tokenizer, Path(partial), self._probes)
            self.vocab_map.save(partial)
            report = json.dumps(dataclasses.asdict(self.report), indent=2, ensure_ascii=False) + "\n"
            (Path(partial) / REPORT_FILE).write_text(report, encoding="utf-8")
            directory.mkdir(exist_ok=True)
            for name in STALE_FILES:
                if (directory / name).exists():
                    logger.warning("Removing '%s': it belongs to the tokenizer that is replaced.", directory / name)
                    (directory / name).unlink()
            for item in Path(partial).iterdir():
                if item.is_dir() and (directory / item.name).exists():
                    shutil.rmtree(directory / item.name)
                os.replace(item, directory / item.name)

    @classmethod
    def from_pretrained(cls, directory: str | os.PathLike[str], original_tokenizer: Any = None) -> ShrunkVocab:
        """Reads what `save_pretrained` wrote.

        Args:
            directory: the folder.
            original_tokenizer: the tokenizer before it was cut; only `verify` needs it.
        Raises: UsageError, a file is missing or of another kind.
        """
        vocab_map = VocabMap.load(directory)
        report_file = Path(directory) / REPORT_FILE
        try:
            report = VocabReport(**json.loads(report_file.read_text(encoding="utf-8")))
        except (OSError, TypeError, ValueError) as error:
            raise UsageError(f"'{report_file}' cannot be read ({error}): save the vocabulary again.") from error
        return cls(load_tokenizer(directory), vocab_map, report, original_tokenizer=original_tokenizer)

    def verify(self, texts: Iterable[str], model: Any = None) -> VerifyReport:
        """Compares the small tokenizer, as saved and loaded again, with the original one; and a model with its smaller copy.

        Each token has to be the one the map says. Each text has to decode to the same text as with the original tokenizer; a text
        whose tokens were all kept has to give the same tokens; the tokenizer loaded from its files has to give the same ids as
        the one in memory; the logits of the smaller model have to be the kept columns of the model's.

        Args:
            texts: some texts of the kind the model is meant for.
            model: a model with the original vocabulary; None checks the tokenizer only.
        Returns: what was compared.
        Raises: UsageError, a text is no longer the same because of characters that were not kept. RuntimeError, anything else
            differs, which is a bug.
        """
        if self._original_tokenizer is None:
            raise UsageError("verify needs the original tokenizer: from_pretrained(folder, original_tokenizer).")
        texts = [texts] if isinstance(texts, str) else list(texts)
        if not texts:
            raise UsageError("verify needs at least one text.")
        large, small = backend_of(self._original_tokenizer), backend_of(self.tokenizer)
        for small_id, old_id in enumerate(self.vocab_map.kept_ids.tolist()):
            ours, theirs = small.id_to_token(small_id), large.id_to_token(old_id)
            if ours != theirs:
                raise RuntimeError(f"The map says token {small_id} is {theirs!r}, but it is {ours!r}.")
        with tempfile.TemporaryDirectory() as folder:
            write_tokenizer(self.tokenizer, Path(folder), [*self._probes, *texts[:200]])
            reloaded = backend_of(load_tokenizer(folder))
        result = VerifyReport(texts=len(texts), texts_all_kept=0)
        for start in range(0, len(texts), 1_000):
            chunk = texts[start : start + 1_000]
            old, new, again = (encode_texts(backend, chunk) for backend in (large, small, reloaded))
            if new != again:
                raise RuntimeError("The tokenizer gives other ids once it is saved and loaded again.")
            before = large.decode_batch(old, skip_special_tokens=False)
            after = small.decode_batch(new, skip_special_tokens=False)
            for text, old_ids, new_ids, old_text, new_text in zip(chunk, old, new, before, after, strict=True):
                if self.vocab_map.keeps(old_ids).all():
                    result.texts_all_kept += 1
                    if self.vocab_map.to_small(old_ids) != new_ids:
                        raise RuntimeError(f"All tokens of {text[:200]!r} were kept, and yet it is split otherwise.")
                if old_text != new_text:
                    raise UsageError(
                        f"{text[:200]!r} now reads {new_text[:200]!r}, before {old_text[:200]!r}: count such texts, name "
                        "them in keep_texts=, or use alphabet='all'."
                    )
        if model is not None:
            result.max_logit_difference = self._compare_logits(model, texts)
        return result

    def _compare_logits(self, model: Any, texts: list[str]) -> float:
        limit = min(64, getattr(model.config, "max_position_embeddings", None) or 64)
        ids = [ids[: limit - 2] for ids in encode_texts(backend_of(self.tokenizer), texts[:8]) if ids]
        small_model = self.resize(model)
        kept = torch.from_numpy(self.vocab_map.kept_ids.copy())
        worst = 0.0
        training = model.training
        model.eval()
        small_model.eval()
        try:
            for row in ids:
                small_ids = torch.tensor([row], device=model.device)
                outputs = []
                for one, inputs in ((small_model, small_ids), (model, self.vocab_map.to_original(small_ids))):
                    decoder = {"decoder_input_ids": inputs} if model.config.is_encoder_decoder else {}
                    with torch.no_grad():
                        outputs.append(one(input_ids=inputs, attention_mask=torch.ones_like(inputs), **decoder)[0].float())
                new, old = outputs
                if old.shape[-1] >= self.vocab_map.original_size and new.shape[-1] == self.vocab_map.size:
                    old = old[..., kept.to(old.device)]
                difference = float((new - old).abs().max())
                # Fewer columns may be summed in another order: equal up to the rounding of the model's dtype.
                if not difference <= 64 * torch.finfo(model.dtype).eps * max(1.0, float(old.abs().max())):
                    raise RuntimeError(f"The smaller model computes other logits: they differ by {difference}.")
                worst = max(worst, difference)
        finally:
            model.train(training)
        return worst
