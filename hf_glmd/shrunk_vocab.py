"""ShrunkVocab: a smaller vocabulary as it is used, saved, loaded, and verified against the original one."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hf_glmd.errors import UsageError
from hf_glmd.mapped_tokenizer import ORIGINAL_FOLDER, TOP_LEVEL_FILES, MappedTokenizer
from hf_glmd.model_card import SourceCard
from hf_glmd.models.loading import load_config
from hf_glmd.models.surgery import find_vocabulary_tensors, resize_model
from hf_glmd.pipeline_tags import pipeline_tag
from hf_glmd.plots import save_vocabulary_plot
from hf_glmd.publishing.options import PushOptions
from hf_glmd.publishing.push import PushResult, push_folder
from hf_glmd.records import write_json
from hf_glmd.tokenizer_files import STALE_FILES, load_tokenizer, write_tokenizer
from hf_glmd.verification import VerifyReport, verify_vocabulary
from hf_glmd.vocab.scripts import ScriptShare
from hf_glmd.vocab.vocab_map import VocabMap
from hf_glmd.vocabulary_card import render_vocabulary_card
from hf_glmd.whole_folder import written_whole

if TYPE_CHECKING:
    from hf_glmd.shrinker import VocabShrinker

logger = logging.getLogger(__name__)

REPORT_FILE = "vocab_report.json"
CARD_FILE = "README.md"
PLOT_FILE = "vocabulary.png"
POINTS, MARKS = 512, 40
"""Of the plot: ranks at which the curve is known, and rare tokens that are marked."""


@dataclass
class ModelSizes:
    """What a model weighs; tensors that are shared count once."""

    parameters: int = field(metadata={"help": "All of them."})
    vocabulary_parameters: int = field(metadata={"help": "Those of tables and biases with one entry per token."})
    bytes: int = field(metadata={"help": "Of all parameters, in the dtype they have in memory."})

    @classmethod
    def of(cls, model: Any, vocabulary_parameters: int) -> ModelSizes:
        return cls(
            parameters=model.num_parameters(),
            vocabulary_parameters=vocabulary_parameters,
            bytes=sum(tensor.numel() * tensor.element_size() for tensor in model.parameters()),
        )


@dataclass
class LongTail:
    """How often each token was counted, commonest first, and which were kept: the numbers of a plot.

    The commonest tokens are kept and the others are not, with exceptions: special tokens, single characters, parts of kept tokens
    and what keep= names stay however rare they are. `cut` is the rank that parts kept from removed with the fewest exceptions.
    """

    ranks: list[int] = field(metadata={"help": "From 1, thinned."})
    counts: list[int] = field(metadata={"help": "Of the tokens at these ranks."})
    kept_shares: list[float] = field(metadata={"help": "Share kept of the tokens behind the rank before, up to each rank."})
    cut: int = field(metadata={"help": "The rank of the last token before the cut."})
    n_rarer_kept: int = field(default=0, metadata={"help": "Kept tokens behind the cut."})
    rarer_kept_ranks: list[int] = field(default_factory=list, metadata={"help": "Their ranks, thinned."})
    rarer_kept_counts: list[int] = field(default_factory=list, metadata={"help": "Their counts, thinned."})

    @classmethod
    def of(cls, counts: np.ndarray, kept_ids: np.ndarray) -> LongTail:
        """From int64 [V], [K]. Ranks are thinned evenly over their logarithm."""
        order = np.argsort(-counts, kind="stable")
        kept = np.isin(order, kept_ids)
        balance = np.concatenate([[0], np.cumsum(np.where(kept, 1, -1))])
        cut = int(balance.argmax())
        places = np.geomspace(1, counts.size, POINTS).round().astype(np.int64)
        ranks = np.union1d(places, [rank for rank in (cut, cut + 1) if 1 <= rank <= counts.size])
        steps = np.diff(ranks, prepend=0)
        rarer = np.flatnonzero(kept[cut:]) + cut + 1
        marks = np.searchsorted(rarer, np.geomspace(rarer[0], rarer[-1], MARKS)) if rarer.size else []
        marked = rarer[np.unique(np.minimum(marks, rarer.size - 1)).astype(np.int64)]
        return cls(
            ranks=ranks.tolist(),
            counts=counts[order[ranks - 1]].tolist(),
            kept_shares=(np.diff(np.cumsum(kept)[ranks - 1], prepend=0) / steps).round(4).tolist(),
            cut=cut,
            n_rarer_kept=int(rarer.size),
            rarer_kept_ranks=marked.tolist(),
            rarer_kept_counts=counts[order[marked - 1]].tolist(),
        )


@dataclass
class VocabReport:
    """What a smaller vocabulary holds and what it costs."""

    original_size: int = field(metadata={"help": "V: rows the tokenizer could address before."})
    size: int = field(metadata={"help": "K: tokens kept, exactly the ids 0 to K-1 of the new tokenizer."})
    coverage: float = field(metadata={"help": "Share of the counted tokens that were kept tokens."})
    length_ratio: float = field(
        metadata={"help": "Tokens after / before, on up to 500 of the counted texts (their first 4,096 characters each)."}
    )
    counted_tokens: int = field(metadata={"help": "Tokens in the counted corpora."})
    texts: int = field(metadata={"help": "Texts in the counted corpora, empty ones left out."})
    n_special: int = field(metadata={"help": "Special and added tokens, and others the tokenizer itself refers to."})
    n_alphabet: int = field(metadata={"help": "Further tokens kept so that what was removed can be spelt: single characters."})
    n_keep: int = field(metadata={"help": "Further tokens kept because of keep= and keep_texts=."})
    removed_examples: list[str] = field(default_factory=list, metadata={"help": "The most frequent removed tokens."})
    kept_examples: list[str] = field(
        default_factory=list, metadata={"help": "The least frequent tokens that were kept for their count."}
    )
    scripts: list[ScriptShare] = field(
        default_factory=list, metadata={"help": "How much of each writing system was kept, the largest first."}
    )
    new_unknown: int = field(
        default=0, metadata={"help": "Unknown tokens after, less those before, on the texts of length_ratio."}
    )
    n_closure: int = field(default=0, metadata={"help": "Kept though rarer than some removed ones: others are merged from them."})
    n_placeholders_removed: int = field(default=0, metadata={"help": "Added tokens such as <unused17> that were never counted."})
    long_tail: LongTail | None = field(default=None, metadata={"help": "How often tokens were counted, for the plot."})
    verified: VerifyReport | None = field(default=None, metadata={"help": "What was compared last with the original."})
    model_before: ModelSizes | None = field(default=None, metadata={"help": "The model that was cut last, before."})
    model_after: ModelSizes | None = field(default=None, metadata={"help": "The same, after."})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes JSON."""
        write_json(path, dataclasses.asdict(self))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> VocabReport:
        """Reads what `save` wrote. Raises: UsageError, there is no such file, or it holds something else."""
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
            parts = {"long_tail": LongTail, "verified": VerifyReport, "model_before": ModelSizes, "model_after": ModelSizes}
            for name, part in parts.items():
                if data.get(name) is not None:
                    data[name] = part(**data[name])
            data["scripts"] = [ScriptShare(**share) for share in data.get("scripts", [])]
            return cls(**data)
        except (OSError, AttributeError, TypeError, ValueError) as error:
            raise UsageError(f"'{path}' cannot be read ({error}): save the vocabulary again.") from error


class ShrunkVocab:
    """A smaller vocabulary: its tokenizer, its map to the original one, and what it costs.

    Attributes:
        tokenizer: what the smaller model is used with. A plain one under removed="resegment", otherwise a `MappedTokenizer`.
        vocab_map: `VocabMap`, small ids <-> original ids.
        report: `VocabReport`.
        counts: int64 [K], how often each kept token was counted; None if loaded from a folder.
    """

    def __init__(
        self,
        tokenizer: Any,
        vocab_map: VocabMap,
        report: VocabReport,
        original_tokenizer: Any = None,
        probes: Iterable[str] = (),
        original_counts: np.ndarray | None = None,  # int64 [V]
    ) -> None:
        self.tokenizer = tokenizer
        self.vocab_map = vocab_map
        self.report = report
        self.counts = None if original_counts is None else original_counts[vocab_map.kept_ids]
        if original_counts is not None:
            report.long_tail = LongTail.of(original_counts, vocab_map.kept_ids)
        self._original_tokenizer = original_tokenizer
        self._probes = list(probes)

    def __repr__(self) -> str:
        return (
            f"ShrunkVocab({self.report.size} of {self.report.original_size} tokens, coverage {self.report.coverage:.4f}, "
            f"length ratio {self.report.length_ratio:.3f})"
        )

    def resize(self, model: Any) -> Any:
        """A smaller copy of the model; the given one is untouched. See `hf_glmd.models.surgery.resize_model`.

        The sizes of both go into the report.
        """
        small_model = resize_model(model, self.vocab_map)
        tables = [tensor for tensor, _ in find_vocabulary_tensors(model, self.vocab_map.original_size).values()]
        before = sum(tensor.numel() for tensor in tables if isinstance(tensor, torch.nn.Parameter))
        removed = model.num_parameters() - small_model.num_parameters()  # nothing else became smaller
        self.report.model_before = ModelSizes.of(model, before)
        self.report.model_after = ModelSizes.of(small_model, before - removed)
        return small_model

    def save_pretrained(self, directory: str | os.PathLike[str]) -> None:
        """Writes the tokenizer, `vocab_map.safetensors`, `vocab_report.json` and, if the folder has none yet, a model card.

        Under removed="resegment" plain `AutoTokenizer` reads the folder; otherwise `MappedTokenizer.from_pretrained` does, and
        `AutoTokenizer` refuses it. All files are written and checked beside the folder first and then moved in, so that nothing
        half-written stays. Other files in the folder stay, except those of an earlier tokenizer, which would be mixed with it.

        Raises: UsageError, `directory` is a file, or has a model beside which `AutoTokenizer` changes the ids of any tokenizer.
        """
        stale = (*STALE_FILES, ORIGINAL_FOLDER) if self.vocab_map.removed == "resegment" else TOP_LEVEL_FILES
        with written_whole(directory, stale) as folder:
            self.write_tokenizer(folder, model_type=_model_type(Path(directory)))
            self.vocab_map.save(folder)
            self.report.save(folder / REPORT_FILE)
            if not (Path(directory) / CARD_FILE).exists():
                (folder / CARD_FILE).write_text(self.card(Path(directory)), encoding="utf-8")

    @classmethod
    def from_pretrained(cls, directory: str | os.PathLike[str], original_tokenizer: Any = None) -> ShrunkVocab:
        """Reads what `save_pretrained` wrote.

        Args:
            directory: the folder.
            original_tokenizer: the tokenizer before it was cut; only `verify` needs it, and only under removed="resegment", for
                otherwise the folder has it.
        Raises: UsageError, a file is missing or of another kind.
        """
        vocab_map = VocabMap.load(directory)
        report = VocabReport.load(Path(directory) / REPORT_FILE)
        if vocab_map.removed == "resegment":
            return cls(load_tokenizer(directory), vocab_map, report, original_tokenizer=original_tokenizer)
        tokenizer = MappedTokenizer.from_pretrained(directory)
        return cls(tokenizer, vocab_map, report, original_tokenizer=original_tokenizer or tokenizer.original)

    def write_tokenizer(self, folder: Path, probes: Iterable[str] = (), model_type: str | None = None) -> None:
        """Writes the tokenizer's own files.

        Args:
            folder: where to.
            probes: further texts whose ids are compared with those of the files.
            model_type: of the model that will lie beside them, which may decide over the class that AutoTokenizer takes.
        """
        if self.vocab_map.removed == "resegment":
            write_tokenizer(self.tokenizer, folder, [*self._probes, *probes], model_type=model_type)
        else:
            self.tokenizer.save_pretrained(folder)

    def save_report(self, directory: str | os.PathLike[str]) -> list[Path]:
        """Writes `vocab_report.json` and, where token counts are known and matplotlib is installed, `vocabulary.png` and `.csv`.

        Returns: the files written.
        """
        directory = Path(directory)
        files = [directory / REPORT_FILE]
        self.report.save(files[0])
        if self.report.long_tail is not None:
            try:
                plot = save_vocabulary_plot(self.report, directory / PLOT_FILE)
                files += [plot, plot.with_suffix(".csv")]
            except UsageError as error:
                logger.warning("%s was not drawn: %s", PLOT_FILE, error)
        return files

    def card(self, directory: Path, **facts: Any) -> str:
        """The model card of the folder, with the model that lies there, if there is one.

        Args:
            **facts: of `render_vocabulary_card`, e.g. `original`, `source`, `corpora`.
        """
        original = facts.pop("original", getattr(self._original_tokenizer, "name_or_path", ""))
        facts = {"name": directory.resolve().name, "load_from": str(directory), "source": SourceCard.read(original)} | facts
        config = load_config(directory) if (directory / "config.json").is_file() else None
        return render_vocabulary_card(
            self.report, self.vocab_map.removed, original, pipeline_tag=pipeline_tag(config) if config else None, **facts
        )

    def save_card(self, directory: str | os.PathLike[str], **facts: Any) -> None:
        """Writes the model card anew, with the picture if that is there. Arguments as for `card`."""
        directory = Path(directory)
        plot = PLOT_FILE if (directory / PLOT_FILE).is_file() else None
        (directory / CARD_FILE).write_text(self.card(directory, plot=plot, **facts), encoding="utf-8")

    def push_to_hub(
        self,
        repo_id: str,
        *,
        model: Any = None,
        private: bool | None = None,
        revision: str | None = None,
        commit_message: str = "Upload vocabulary",
        token: str | None = None,
        overwrite: bool = False,
    ) -> PushResult:
        """Puts the tokenizer, `vocab_map.safetensors`, `vocab_report.json`, the card and its picture on the Hub, in one commit.

        Args:
            repo_id: user/name, or name alone for your own.
            model: the smaller model, to be part of the commit.
            private: of a new repository.
            revision: branch; it is made if it is not there. None: main.
            token: None: HF_TOKEN, or the one of `hf auth login`.
            overwrite: replace what the repository holds even if it is no model of this package.
        Raises: UsageError, the Hub cannot be reached, does not allow it, or holds something else; it is as before then.
        """
        with tempfile.TemporaryDirectory() as parent:
            folder = Path(parent) / repo_id.split("/")[-1]
            if model is not None:
                model.save_pretrained(folder)
            self.save_pretrained(folder)
            self.save_report(folder)
            self.save_card(folder, load_from=repo_id)
            options = PushOptions(str(folder), repo_id, bool(private), revision, commit_message, overwrite)
            later = f"vocab.save_pretrained(FOLDER), then hf-glmd push FOLDER {repo_id}"
            return push_folder(options, token, later=later)

    def export_resegment(self, shrinker: VocabShrinker, alphabet: str | None = None) -> ShrunkVocab:
        """The same kept tokens as a plain tokenizer, which splits the text of removed tokens into kept pieces.

        What a lossless vocabulary needs besides is kept too: the parts that kept tokens are merged from, and the characters of
        `alphabet`. If the size stays the same so do the ids, and a model of this vocabulary can be used with the new tokenizer.

        Args:
            shrinker: has counted with the original tokenizer, e.g. `VocabShrinker.load_counts(file, tokenizer)`.
            alphabet: as in `VocabShrinker.shrink`.
        Raises: UsageError, nothing was counted, or with another tokenizer.
        """
        kept_ids = self.vocab_map.kept_ids.tolist()
        if shrinker.counts.size != self.vocab_map.original_size or (
            self._original_tokenizer is not None
            and shrinker.tokenizer.convert_ids_to_tokens(kept_ids) != self._original_tokenizer.convert_ids_to_tokens(kept_ids)
        ):
            raise UsageError("The shrinker has another tokenizer than the one this vocabulary was cut from: give that one.")
        # Nothing is counted more often than that: only what has to stay does.
        exported = shrinker.shrink(keep=kept_ids, min_count=int(shrinker.counts.max()) + 1, alphabet=alphabet)
        if exported.vocab_map.size != self.vocab_map.size:
            logger.warning(
                "A lossless vocabulary needs %d more tokens than the %d kept: resize the original model again, the ids differ.",
                exported.vocab_map.size - self.vocab_map.size,
                self.vocab_map.size,
            )
        return exported

    def verify(self, texts: Iterable[str], model: Any = None, *, batch_size: int = 1_000, progress: bool = True) -> VerifyReport:
        """Compares the small tokenizer, as saved and loaded again, with the original one; and a model with its smaller copy.

        Each token has to be the one the map says, and the tokenizer loaded from its files has to give the same ids as the one in
        memory. Under removed="resegment" each text has to decode to the same text as with the original tokenizer; a text whose
        tokens were all kept has to give the same tokens; every kept token that could be produced still can. Under "nearest" and
        "unk" the ids have to be those of the original tokenizer and the map, and kept and special tokens stand for themselves.
        What the smaller model computes has to be what the model does, logits in the kept columns.

        Args:
            texts: texts of the kind the model is meant for, as many as wanted: they are read `batch_size` at a time.
            model: a model with the original vocabulary; None checks the tokenizer only. It reads the first few texts.
            batch_size: >= 1.
            progress: show a progress bar if it takes longer.
        Returns: what was compared; the report keeps it, too.
        Raises: UsageError, a text is no longer the same because of characters that were not kept. RuntimeError, anything else
            differs, which is a bug.
        """
        if self._original_tokenizer is None:
            raise UsageError("verify needs the original tokenizer: from_pretrained(folder, original_tokenizer).")
        verified = verify_vocabulary(self, self._original_tokenizer, texts, model, batch_size, progress)
        self.report.verified = verified
        return verified


def _model_type(directory: Path) -> str | None:
    """Of the model in the folder; None if there is none."""
    file = directory / "config.json"
    return json.loads(file.read_text(encoding="utf-8")).get("model_type") if file.is_file() else None
