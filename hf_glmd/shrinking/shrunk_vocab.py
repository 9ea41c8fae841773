"""ShrunkVocab: a smaller vocabulary as it is used, saved, loaded, and verified against the original one."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_glmd.errors import UsageError
from hf_glmd.hub.options import PushOptions
from hf_glmd.hub.push import PushResult, push_folder
from hf_glmd.models.loading import load_config
from hf_glmd.models.surgery import find_vocabulary_tensors, resize_model
from hf_glmd.reports.card import SourceCard, pipeline_tag
from hf_glmd.reports.tail import save_vocabulary_plot
from hf_glmd.reports.vocab_report import REPORT_FILE, LongTail, ModelSizes, VerifyReport, VocabReport
from hf_glmd.reports.vocabulary_card import render_vocabulary_card
from hf_glmd.shrinking.verification import verify_vocabulary
from hf_glmd.utils.files import written_whole
from hf_glmd.vocab.counting import backend_of, set_trimming, trimming_of
from hf_glmd.vocab.mapped_tokenizer import ORIGINAL_FOLDER, TOP_LEVEL_FILES, MappedTokenizer, load_tokenizer
from hf_glmd.vocab.soundness import panics_named
from hf_glmd.vocab.tokenizer_files import STALE_FILES, write_tokenizer
from hf_glmd.vocab.vocab_map import VocabMap

logger = logging.getLogger(__name__)


CARD_FILE = "README.md"
PLOT_FILE = "vocabulary.png"


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
        self._backend = backend_of(getattr(tokenizer, "original", tokenizer))
        self._trimming = trimming_of(self._backend)  # of the file: what calls set meanwhile is not saved
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
        without_row = len(self.report.without_row)
        small_model = resize_model(model, self.vocab_map, without_row=without_row)
        tables = [tensor for tensor, _ in find_vocabulary_tensors(model, self.vocab_map.original_size - without_row).values()]
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
        set_trimming(self._backend, self._trimming)
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
        # Only a plain tokenizer is one that sentence-transformers loads by itself.
        modules = (directory / "modules.json").is_file() and self.vocab_map.removed == "resegment"
        facts = {"sentence_encoder": modules} | facts
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

    def export_resegment(self, shrinker: Any, alphabet: str | None = None) -> ShrunkVocab:
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

    @panics_named
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
