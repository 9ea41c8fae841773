"""VocabShrinker: count a corpus, choose the tokens that matter, and cut the tokenizer and any model of it down to them."""

from __future__ import annotations

import dataclasses
import difflib
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
from tokenizers import Tokenizer

from hf_glmd.errors import UsageError
from hf_glmd.models.surgery import resize_model
from hf_glmd.vocab.counting import TokenCounts, backend_of, count_corpus, tokenizer_fingerprint, untrimmed, vocabulary_rows
from hf_glmd.vocab.rewrite import pinned_ids, refuse_unsupported, shrink_tokenizer_json, token_ids
from hf_glmd.vocab.selection import select, single_characters
from hf_glmd.vocab.vocab_map import REMOVED_MODES, VocabMap

logger = logging.getLogger(__name__)

REPORT_FILE = "vocab_report.json"
_GENERIC_CLASS = "PreTrainedTokenizerFast"  # takes everything from tokenizer.json, and is known to old and new transformers
_OWN_FILES = ("tokenizer.json", "tokenizer_config.json")
_STALE_FILES = (
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
    "source.spm",
    "target.spm",
)
_PROBES = (
    "The quick brown fox jumps over the lazy dog.",
    "MiXeD CaSe, ÀÉÎÕÜ ﬁ ½ x\u0301 naïve façade",
    "  two  spaces\tand\na line break\r\n",
    "1234567890 3.14 a_b-c/d@e.f #hash $5 100% (x) [y] {z} \"q\" 'r' `s` ~ ^ | \\ < >",
    "中文字符 かな 한국어 русский العربية हिन्दी ไทย 🙂",
    "a" * 60 + " " + "b" * 101 + " " + "ab" * 120,
    "\u200b\ufeff\u00a0\u2028",
    "x",
    "",
)


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


class VocabShrinker:
    """Counts which tokens a corpus uses and cuts the vocabulary down to those.

    >>> vocab = VocabShrinker(tokenizer).count("corpus.txt").shrink(size=0.5)  # doctest: +SKIP
    >>> student = vocab.resize(model)  # doctest: +SKIP

    Args:
        tokenizer: a fast transformers tokenizer, or the Hub name or path of one.
    Raises: UsageError, it cannot be loaded, or has no fast backend.
    """

    def __init__(self, tokenizer: Any) -> None:
        if isinstance(tokenizer, (str, os.PathLike)):
            tokenizer = load_tokenizer(tokenizer)
        self.tokenizer = tokenizer
        self._backend = backend_of(tokenizer)
        self._counted = TokenCounts(values=np.zeros(vocabulary_rows(tokenizer), dtype=np.int64))

    @property
    def counts(self) -> np.ndarray:
        """int64 [V]: how often each token was counted so far."""
        return self._counted.values

    def count(self, source: Any, column: str = "text", *, batch_size: int = 1_000, progress: bool = True) -> VocabShrinker:
        """Counts the tokens of a corpus; called again, the counts add up.

        Under several processes (`accelerate launch`) the work is shared out and every process ends with the counts of all.

        Args:
            source: texts (any iterable of str), rows (dicts with `column`), a `datasets.Dataset` or `IterableDataset`, or one or
                several files: .txt (one text per line), .jsonl (also .txt.gz, .jsonl.xz, ...), .parquet.
            column: which field of a row holds the text.
            batch_size: texts tokenized at once, >= 1. It does not change the result.
            progress: show a progress bar.
        Returns: self.
        Raises: UsageError, the source is missing, of an unknown kind, without the column, or holds no token.
        """
        self._counted = self._counted + count_corpus(self.tokenizer, source, column, batch_size=batch_size, progress=progress)
        return self

    def save_counts(self, path: str | os.PathLike[str]) -> None:
        """Writes the counts to a safetensors file, with the fingerprint of the tokenizer that made them."""
        self._counted.save(path, tokenizer_fingerprint(self.tokenizer))

    @classmethod
    def load_counts(cls, path: str | os.PathLike[str], tokenizer: Any) -> VocabShrinker:
        """A shrinker with the counts that `save_counts` wrote.

        Raises: UsageError, the file is missing, or another tokenizer counted.
        """
        shrinker = cls(tokenizer)
        shrinker._counted = TokenCounts.load(path, tokenizer_fingerprint(shrinker.tokenizer))
        return shrinker

    def shrink(
        self,
        size: int | float | None = None,
        coverage: float | None = None,
        min_count: int | None = None,
        keep: Iterable[str | int] = (),
        keep_texts: Iterable[str] = (),
        removed: str = "resegment",
        similarity: str = "dot",
        embeddings: torch.Tensor | None = None,
        multiple_of: int = 1,
        *,
        alphabet: str = "seen",
    ) -> ShrunkVocab:
        """The smaller vocabulary. Of size, coverage and min_count one is given; with none of them size is 0.5.

        Args:
            size: float in (0, 1]: share of V, rounded up. int: the exact final number of tokens, specials and single characters
                included.
            coverage: in (0, 1]: the smallest vocabulary that covers this share of the counted tokens, e.g. 0.999.
            min_count: >= 1: every token counted at least this often.
            keep: tokens (str) or ids (int) that must stay.
            keep_texts: every token of these texts stays, e.g. prompts, verbalizers, the chat template.
            removed: "resegment": text of a removed token is split into kept pieces. "nearest", "unk": not there yet.
            similarity, embeddings: for "nearest".
            multiple_of: round the size up to this multiple by keeping more tokens.
            alphabet: single characters that stay, at the start of words and inside: "seen" (those of the counted tokens, and
                ASCII), "all", or "none". Text of these characters never becomes unknown.
        Returns: `ShrunkVocab`.
        Raises: UsageError, nothing was counted, a value is out of range, a kept token does not exist, more tokens have to stay
            than `size` allows, or the tokenizer is of a type that cannot be cut yet.
        """
        if removed not in REMOVED_MODES:
            raise UsageError(f"removed={removed!r} is unknown: use one of {', '.join(REMOVED_MODES)}.")
        if removed != "resegment":
            raise UsageError(f"removed={removed!r} is not there yet: use removed='resegment'.")
        if similarity not in ("dot", "cosine", "euclidean"):
            raise UsageError(f"similarity={similarity!r} is unknown: use 'dot', 'cosine' or 'euclidean'.")
        if embeddings is not None:
            raise UsageError("embeddings are used by removed='nearest' only: leave them out.")
        if size is None and coverage is None and min_count is None:
            size = 0.5
        data = json.loads(self._backend.to_str())
        refuse_unsupported(data)
        if vocabulary_rows(self.tokenizer) != self.counts.size:
            raise UsageError(
                f"The tokenizer had {self.counts.size} rows when the counting began, now {vocabulary_rows(self.tokenizer)}: "
                "add tokens first, then count."
            )
        if not self.counts.any():
            raise UsageError("Nothing was counted, so it is unknown which tokens matter: call count(corpus) first.")

        vocabulary = token_ids(data)
        special = set(pinned_ids(data)) | {token_id for token_id in self.tokenizer.all_special_ids if token_id is not None}
        characters = single_characters(
            vocabulary, self.counts, alphabet, prefix=data["model"].get("continuing_subword_prefix") or "", skip=special
        )
        required: dict[str, Iterable[int]] = {
            "special": sorted(special),
            "single characters": characters,
            "from keep=": _kept_ids(keep, vocabulary),
            "from keep_texts=": self._ids_of(keep_texts),
        }
        absent = np.setdiff1d(np.arange(self.counts.size), np.fromiter(vocabulary.values(), dtype=np.int64))
        kept_ids = select(
            self.counts,
            size=size,
            coverage=coverage,
            min_count=min_count,
            required=required,
            absent=absent,
            multiple_of=multiple_of,
        )
        vocab_map = VocabMap(kept_ids, original_size=self.counts.size)
        probes = list(self._counted.sample.values())[:200]
        tokenizer = _small_tokenizer(self.tokenizer, shrink_tokenizer_json(data, kept_ids), probes)
        expected = {token: vocab_map.to_small(token_id) for token, token_id in vocabulary.items() if vocab_map.keeps(token_id)}
        if tokenizer.get_vocab() != expected:
            raise RuntimeError("The small tokenizer numbers its tokens otherwise than the vocabulary map.")
        return ShrunkVocab(
            tokenizer=tokenizer,
            vocab_map=vocab_map,
            report=self._report(vocab_map, tokenizer, required, vocabulary),
            counts=self.counts[kept_ids],
            original_tokenizer=self.tokenizer,
            probes=probes,
        )

    def _ids_of(self, texts: Iterable[str]) -> np.ndarray:
        texts = [texts] if isinstance(texts, str) else list(texts)
        for text in texts:
            if not isinstance(text, str):
                raise UsageError(f"keep_texts holds a {type(text).__name__}, not a text.")
        return np.unique(np.array([i for ids in _encode(self._backend, texts) for i in ids], dtype=np.int64))

    def _report(
        self, vocab_map: VocabMap, tokenizer: Any, required: dict[str, Iterable[int]], vocabulary: dict[str, int]
    ) -> VocabReport:
        kept_ids = vocab_map.kept_ids
        seen: set[int] = set()
        n_kind = {}
        for name, ids in required.items():
            new = {int(i) for i in ids} - seen
            n_kind[name] = len(new)
            seen |= new
        names = {token_id: token for token, token_id in vocabulary.items()}
        removed = np.setdiff1d(np.flatnonzero(self.counts), kept_ids)
        removed = removed[np.lexsort((removed, -self.counts[removed]))]
        texts = list(self._counted.sample.values())
        before, after = _encode(self._backend, texts), _encode(tokenizer.backend_tokenizer, texts)
        tokens = sum(map(len, before))
        new_unknown = 0
        if tokenizer.unk_token_id is not None:
            unknown = vocab_map.to_original(tokenizer.unk_token_id)
            new_unknown = sum(ids.count(tokenizer.unk_token_id) for ids in after) - sum(ids.count(unknown) for ids in before)
        if new_unknown > 0:
            logger.warning(
                "%d words of the %d sampled texts become unknown: alphabet='all' or 'seen' keeps the single "
                "characters that spell them.",
                new_unknown,
                len(texts),
            )
        return VocabReport(
            original_size=vocab_map.original_size,
            size=vocab_map.size,
            coverage=float(self.counts[kept_ids].sum() / self.counts.sum()),
            length_ratio=sum(map(len, after)) / tokens if tokens else 1.0,
            counted_tokens=int(self.counts.sum()),
            texts=self._counted.texts,
            n_special=n_kind["special"],
            n_alphabet=n_kind["single characters"],
            n_keep=n_kind["from keep="] + n_kind["from keep_texts="],
            removed_examples=[names[int(i)] for i in removed[:20]],
            new_unknown=new_unknown,
        )


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
            _write_tokenizer(self.tokenizer, Path(partial), self._probes)
            self.vocab_map.save(partial)
            report = json.dumps(dataclasses.asdict(self.report), indent=2, ensure_ascii=False) + "\n"
            (Path(partial) / REPORT_FILE).write_text(report, encoding="utf-8")
            directory.mkdir(exist_ok=True)
            for name in _STALE_FILES:
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
            _write_tokenizer(self.tokenizer, Path(folder), [*self._probes, *texts[:200]])
            reloaded = backend_of(load_tokenizer(folder))
        result = VerifyReport(texts=len(texts), texts_all_kept=0)
        for start in range(0, len(texts), 1_000):
            chunk = texts[start : start + 1_000]
            old, new, again = (_encode(backend, chunk) for backend in (large, small, reloaded))
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
        ids = [ids[: limit - 2] for ids in _encode(backend_of(self.tokenizer), texts[:8]) if ids]
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


def _encode(backend: Tokenizer, texts: list[str]) -> list[list[int]]:
    with untrimmed(backend):
        return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]


def load_tokenizer(name: str | os.PathLike[str], revision: str | None = None) -> Any:
    """The tokenizer of a Hub name or a folder. Raises: UsageError, there is none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name, revision=revision)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"No tokenizer can be loaded from '{name}': {str(error).splitlines()[0].rstrip('.')}. Put tokenizer.json there."
        ) from error


def _kept_ids(keep: Iterable[str | int], vocabulary: dict[str, int]) -> list[int]:
    known = set(vocabulary.values())
    ids = []
    for item in [keep] if isinstance(keep, (str, int)) else keep:
        if isinstance(item, str):
            if item not in vocabulary:
                raise UsageError(f"keep names {item!r}, which is not a token of this tokenizer.{_closest(item, vocabulary)}")
            ids.append(vocabulary[item])
        elif isinstance(item, (int, np.integer)) and not isinstance(item, bool):
            if int(item) not in known:
                raise UsageError(f"keep names the id {item}, which no token has: the ids go from 0 to {max(known)}.")
            ids.append(int(item))
        else:
            raise UsageError(f"keep holds {item!r}: give tokens (str) or ids (int).")
    return ids


def _closest(token: str, vocabulary: dict[str, int]) -> str:
    """A hint. Only tokens of about the same length are compared: a vocabulary may hold a quarter of a million."""
    if not token:
        return ""
    near = [known for known in sorted(vocabulary) if abs(len(known) - len(token)) <= 2 and known[:1].lower() == token[:1].lower()]
    close = difflib.get_close_matches(token, near, n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"{hint} To keep the pieces of a word or phrase, use keep_texts=."


def _small_tokenizer(original: Any, data: dict[str, Any], probes: list[str]) -> Any:
    """The tokenizer of `data`, of the original's class and settings where that class leaves its ids alone."""
    with tempfile.TemporaryDirectory() as folder:
        _write_tokenizer(original, Path(folder), probes, data)
        tokenizer = load_tokenizer(folder)
    # The folder is gone: it must not be looked for, or be written into a model card as the origin.
    tokenizer.name_or_path = ""
    tokenizer.init_kwargs.pop("name_or_path", None)
    tokenizer.init_kwargs.pop("tokenizer_file", None)
    return tokenizer


def _write_tokenizer(tokenizer: Any, folder: Path, probes: Iterable[str], data: dict[str, Any] | None = None) -> None:
    """Writes tokenizer.json (`data`, or the tokenizer's own) and its config so that AutoTokenizer gives the ids of the file.

    Many classes of transformers build their tokenizer anew from the bare vocabulary and ignore the rest of the file. If that
    changes ids here, the generic class is written instead, with all that the specific one knew.
    """
    tokenizer.save_pretrained(folder)
    for item in folder.iterdir():
        if item.is_file() and (item.name in _STALE_FILES or item.suffix == ".model"):
            item.unlink()
    if data is not None:
        (folder / "tokenizer.json").write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
    config_file = folder / "tokenizer_config.json"
    config = json.loads(config_file.read_text(encoding="utf-8"))
    # Old ids, which would add removed tokens again past the end of the table; tokenizer.json has them all.
    for name in ("added_tokens_decoder", "vocab_size", "is_local", "local_files_only", "name_or_path", "tokenizer_file"):
        config.pop(name, None)
    # save_pretrained writes these only if they were in the file before, not if they were set since.
    config["padding_side"] = tokenizer.padding_side
    config["truncation_side"] = tokenizer.truncation_side
    config["model_input_names"] = list(tokenizer.model_input_names)
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = _GENERIC_CLASS
    _dump(config, config_file)
    texts = [*_PROBES, *probes]
    difference = _difference(folder, texts, tokenizer)
    if difference and config["tokenizer_class"] != _GENERIC_CLASS:
        logger.warning(
            "Loaded as %s the tokenizer gives other ids than its file (%s): it is saved as %s instead.",
            config["tokenizer_class"],
            difference,
            _GENERIC_CLASS,
        )
        config |= {"tokenizer_class": _GENERIC_CLASS} | dict(tokenizer.special_tokens_map)
        _dump(config, config_file)
        difference = _difference(folder, texts, tokenizer)
    if difference:
        raise RuntimeError(f"AutoTokenizer gives other ids than the file it loads: {difference}.")


def _dump(config: dict[str, Any], file: Path) -> None:
    file.write_text(json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def _difference(folder: Path, texts: list[str], like: Any) -> str:
    """In words, how what AutoTokenizer makes of the folder differs from its tokenizer.json; empty if it does not."""
    raw, loaded = Tokenizer.from_file(str(folder / "tokenizer.json")), load_tokenizer(folder)
    if loaded.get_vocab() != raw.get_vocab(with_added_tokens=True):
        return "another vocabulary"
    if {name: str(token) for name, token in loaded.special_tokens_map.items() if isinstance(token, str)} != {
        name: str(token) for name, token in like.special_tokens_map.items() if isinstance(token, str)
    }:
        return "other special tokens"
    with untrimmed(raw), untrimmed(loaded.backend_tokenizer):
        for special in (False, True):
            pairs = list(zip(texts, reversed(texts), strict=True))
            for inputs in (texts, pairs):
                ours, theirs = (one.encode_batch(inputs, add_special_tokens=special) for one in (raw, loaded.backend_tokenizer))
                for text, a, b in zip(inputs, ours, theirs, strict=True):
                    if a.ids != b.ids or a.type_ids != b.type_ids:
                        return f"{text[:60]!r}" if isinstance(text, str) else f"the pair {text[0][:30]!r}, {text[1][:30]!r}"
    return ""
