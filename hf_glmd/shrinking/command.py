"""A checkpoint in, one with a smaller vocabulary out: counted, cut, verified, written. What `hf-glmd shrink` does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_glmd.errors import UsageError
from hf_glmd.shrinking.inspection import named_sources
from hf_glmd.utils.options import TEXT_SOURCES, list_option, option
from hf_glmd.utils.remote_code import HELP as REMOTE_CODE
from hf_glmd.utils.remote_code import trusting_as_asked

if TYPE_CHECKING:
    from hf_glmd.hub.push import PushResult
    from hf_glmd.reports.records import EmbeddingScores
    from hf_glmd.reports.vocab_report import VerifyReport, VocabReport
    from hf_glmd.shrinking.shrinker import VocabShrinker
    from hf_glmd.shrinking.shrunk_vocab import ShrunkVocab

EMBEDDED_TEXTS = 500
"""At most so many show how far an encoder's embeddings moved."""


@dataclass
class ShrinkOptions:
    """What `hf-glmd shrink` can be told, on the command line or in a YAML file; each field's help text is its documentation.

    Raises: UsageError, a value is missing or out of range; all such values are named together.
    """

    model: str = option("The checkpoint: a folder, or the name of a model on the Hub.", "")
    output: str = option("Folder to write to.", "")
    corpus: list[str] = list_option(f"Text to count, each with a name before it if you like (de=german.txt): {TEXT_SOURCES}.")
    revision: str | None = option("Branch, tag or commit of the model on the Hub.")
    column: str = option("Column that holds the text.", "text")
    weights: list[float] = list_option("How much each corpus counts, one number per corpus. Unset: 1 each.")
    max_texts: int | None = option("Count only that many texts of each corpus, the first ones.")
    counts: str | None = option("Counts that an earlier run saved, to be used instead of a corpus or added to it.")
    save_counts: str | None = option("Also save the counts to this file.")
    size: float | None = option("Share of the tokens to keep (0.5), or their exact number (32000). Unset: 0.5.")
    coverage: float | None = option("Or: keep the smallest vocabulary that covers this share of the counted tokens, e.g. 0.999.")
    min_count: int | None = option("Or: keep every token that was counted at least this often.")
    growth: list[str] = list_option(
        "Or: the fewest tokens with which held-out text takes at most so many times its tokens: 1.02, or of each corpus by its "
        "name, de=1.01 fr=1.03."
    )
    max_mb: float | None = option("As many tokens as keep the weights to so many megabytes; with --growth, a limit.")
    max_params: str | None = option("The same of the parameters, e.g. 30M.")
    held_out: list[str] = list_option("Text to measure growth on, by name alike. Unset: every 20th text, which is not counted.")
    ledger: list[str] = list_option("Files of text that is not counted, to say of each what the cut costs it; or their folder.")
    order: str = option(
        "Which tokens go first. 'count': the rarest, so that most texts keep their tokens. 'leaf': those that cost the least "
        "length, for BPE; or a file of an order that was saved.",
        "count",
    )
    keep: list[str] = list_option("Tokens that must stay.")
    keep_texts: list[str] = list_option("Files whose texts keep all of their tokens, e.g. prompts.")
    alphabet: str | None = option(
        "Single characters that stay: 'seen' in the corpus (and ASCII), those of its 'scripts' and all punctuation, 'all', or "
        "'none'. Unset: 'scripts', or 'seen' where a tokenizer spells characters in bytes."
    )
    removed: str = option(
        "What happens to removed tokens. 'resegment': their text is split into kept pieces, and the result is plain files. "
        "'nearest': the most similar kept token stands for them, as in the GLMD paper. 'unk': the unknown token does.",
        "resegment",
    )
    similarity: str = option("For 'nearest', of the model's input embeddings: 'dot', 'cosine' or 'euclidean'.", "dot")
    multiple_of: int = option("Round the size up to a multiple of this, by keeping more tokens.", 1)
    bits_texts: int = option(
        "Texts of each corpus of which a language model's bits per character are measured before and after; 0: none.", 16
    )
    verify_texts: int = option("Texts of the corpus on which the result is compared with the original.", 2_000)
    overwrite: bool = option("Replace what an earlier run left in the output folder.", False)
    push_to_hub: str | None = option("Also push the result to this repository on the Hub, user/name.", metavar="REPO")
    private: bool = option("Of the repository, if it is new: private.", False)
    trust_remote_code: bool = option(REMOTE_CODE, False)

    def __post_init__(self) -> None:
        mistakes = []
        if not self.model:
            mistakes.append("the model is missing: name a folder, or a model on the Hub")
        if not self.output:
            mistakes.append("--output is missing: name a folder to write to")
        if not self.corpus and not self.counts:
            mistakes.append("there is nothing to count: give --corpus, or --counts of an earlier run")
        bounds = ("size", "coverage", "min_count", "growth", "max_mb", "max_params")
        given = [f"--{name.replace('_', '-')}" for name in bounds if getattr(self, name) not in (None, [])]
        if len(given) > 1 and not (given[0] == "--growth" or given == ["--max-mb", "--max-params"]):
            mistakes.append(f"{' and '.join(given)} contradict each other: give one of them")
        if self.is_named and (self.weights or self.max_texts or self.counts or self.save_counts):
            mistakes.append("named corpora and --growth go without --weights, --max-texts, --counts and --save-counts")
        if self.weights and len(self.weights) != len(self.corpus):
            mistakes.append(f"--weights has {len(self.weights)} numbers for {len(self.corpus)} corpora: give one per corpus")
        if self.max_texts is not None and self.max_texts < 1:
            mistakes.append(f"--max-texts {self.max_texts} leaves nothing to count: use 1 or more")
        if self.bits_texts < 0:
            mistakes.append(f"--bits-texts {self.bits_texts} is no number of texts: use 0 or more")
        if self.verify_texts < 1:
            mistakes.append(f"--verify-texts {self.verify_texts} leaves nothing to compare: use 1 or more")
        if self.size is not None and self.size > 1:
            if self.size != int(self.size):
                mistakes.append(f"--size {self.size} is neither a share of at most 1 nor a whole number of tokens")
            else:
                self.size = int(self.size)
        if self.model and self.output and Path(self.model).resolve() == Path(self.output).resolve():
            mistakes.append(f"--output '{self.output}' is the model itself: name another folder")
        if mistakes:
            raise UsageError("; ".join(mistakes) + ".")
        named_sources(self.corpus if self.is_named else [], "--corpus")
        self.limits()

    @property
    def is_named(self) -> bool:
        """Whether corpora are counted by name, each with held-out text."""
        return bool(self.growth or self.held_out or any("=" in one and not Path(one).exists() for one in self.corpus))

    def limits(self) -> dict[str, Any]:
        """What `VocabShrinker.shrink` is told in place of a size. Raises: UsageError, a value is no number."""
        limits: Any = None
        if self.growth:
            named = any("=" in one for one in self.growth)
            limits = {name: number(one, "--growth") for name, one in named_sources(self.growth, "--growth").items()}
            limits = limits if named else limits["text"]
        return {
            "growth": limits,
            "max_mb": self.max_mb,
            "max_params": None if self.max_params is None else number(self.max_params, "--max-params"),
        }


@dataclass
class ShrinkResult:
    """What `shrink_checkpoint` wrote, in figures."""

    output: str
    vocabulary: VocabReport
    verified: VerifyReport
    carried: list[str]
    left_behind: dict[str, str]
    pushed: PushResult | None = None

    def table(self) -> str:
        """Before and after, for people."""
        from hf_glmd.reports.ledger import ledger_table
        from hf_glmd.reports.vocabulary_card import embedding_lines, size_rows
        from hf_glmd.utils.text import markdown_table

        lines = [markdown_table(size_rows(self.vocabulary), ["", "before", "after"], "lrr"), ""]
        lines += [ledger_table(self.vocabulary.ledger), ""] if self.vocabulary.ledger else []
        lines += embedding_lines(self.vocabulary)
        lines.append(self.verified.summary())
        if self.carried:
            lines.append(f"Carried along: {', '.join(self.carried)}.")
        for reason in dict.fromkeys(self.left_behind.values()):
            names = [name for name, why in self.left_behind.items() if why == reason]
            lines.append(f"Left behind, {reason}: {', '.join(names)}.")
        lines.append(f"Written to {self.output}")
        if self.pushed is not None:
            lines.append(f"Pushed to {self.pushed.repo}: {self.pushed.url}")
        return "\n".join(lines)


@trusting_as_asked
def shrink_checkpoint(options: ShrinkOptions, progress: bool = True, command: str = "") -> ShrinkResult:
    """Writes `options.model` with a smaller vocabulary to `options.output`: model, tokenizer, map, card, and what was cut as
    JSON, picture and page.

    The result is verified against the original, tokenizer and model, before anything is written; the folder appears whole or not
    at all. What else of the checkpoint is still true goes along, see `hf_glmd.shrinking.checkpoint_files`: of a repository of
    sentence-transformers all modules do, and the tokens of its prompts stay. What stays behind is named, with the reason.

    Args:
        options: see there.
        progress: show progress bars.
        command: how it was called, for the card.
    Raises: UsageError, something is missing or does not fit, or could not be pushed; the folder is complete then. RuntimeError,
        the verification found a difference, which is a bug.
    """
    from hf_glmd.utils.files import locked

    with locked(options.output):
        return _shrink(options, progress, command)


def _shrink(options: ShrinkOptions, progress: bool, command: str) -> ShrinkResult:
    # Loaded here, for `hf-glmd shrink --help` reads the options above and needs none of it.
    from hf_glmd.hub.options import PushOptions
    from hf_glmd.hub.push import check_push, push_folder
    from hf_glmd.models.loading import load_checkpoint, load_config
    from hf_glmd.models.surgery import input_layer
    from hf_glmd.reports.card import SourceCard
    from hf_glmd.reports.page import write_report
    from hf_glmd.shrinking.checkpoint_files import REPLACED_FILES, find_carried_files
    from hf_glmd.shrinking.rebuilding import check_output, origin_of
    from hf_glmd.utils.files import write_sums, written_whole
    from hf_glmd.vocab.counting import vocabulary_rows
    from hf_glmd.vocab.mapped_tokenizer import ORIGINAL_FOLDER, TOP_LEVEL_FILES, load_tokenizer
    from hf_glmd.vocab.tokenizer_files import STALE_FILES

    check_output(Path(options.output), options.overwrite)
    push = PushOptions(options.output, options.push_to_hub, private=options.private) if options.push_to_hub else None
    if push is not None:
        check_push(push)
    carried = find_carried_files(options.model, options.revision)  # a wrong name is found before an hour of counting
    load_config(carried.model, options.revision)
    tokenizer = load_tokenizer(carried.model, options.revision)
    shrinker = _counted(options, tokenizer, progress)
    model = load_checkpoint(carried.model, revision=options.revision)
    carried = carried.without({vocabulary_rows(tokenizer), len(tokenizer), input_layer(model).weight.shape[0]})
    others = _ledger_texts(options.ledger, options.column)
    vocab = shrinker.shrink(
        size=options.size,
        coverage=options.coverage,
        min_count=options.min_count,
        keep=options.keep,
        keep_texts=[*_texts_of(options.keep_texts, options.column), *carried.prompts],
        removed=options.removed,
        similarity=options.similarity,
        embeddings=model.get_input_embeddings().weight if options.removed == "nearest" else None,
        multiple_of=options.multiple_of,
        alphabet=options.alphabet,
        order=options.order,
        model=model,
        others=others,
        **options.limits(),
    )
    verified = vocab.verify(shrinker.sample(options.verify_texts), model=model)
    small = vocab.resize(model)
    _measure_bits(shrinker, vocab, (model, small), others, options.bits_texts)
    vocab.report.embeddings = _embedding_shift(shrinker, vocab, small, model, (options.model, options.revision))
    stale = (*STALE_FILES, *TOP_LEVEL_FILES, ORIGINAL_FOLDER, *REPLACED_FILES)
    with written_whole(options.output, stale) as folder:
        small.save_pretrained(folder)
        vocab.save_pretrained(folder)
        vocab.save_report(folder)
        carried.copy_to(folder, vocab.report.size)
        vocab.vocab_map.origin = origin_of(options.model, model, tokenizer, folder)
        vocab.vocab_map.save(folder)
        write_sums(folder)  # the page below is made of files that are as they were listed
        vocab.save_card(
            folder,
            name=Path(options.output).name,
            load_from=options.output,
            original=options.model,
            source=SourceCard.read(options.model, options.revision),
            corpora=list(named_sources(options.corpus, "--corpus"))
            if options.is_named
            else options.corpus or [str(options.counts)],
            command=command,
            verified=verified.summary(),
        )
        write_report(folder, name=Path(options.output).name)
    pushed = push_folder(push) if push is not None else None
    return ShrinkResult(options.output, vocab.report, verified, sorted(carried.names.values()), carried.left, pushed)


def _measure_bits(
    shrinker: VocabShrinker, vocab: ShrunkVocab, models: tuple[Any, Any], others: Mapping[str, list[str]], count: int
) -> None:
    """Adds bits per character to the ledger, where the models predict text."""
    from hf_glmd.shrinking.bits import compare_bits, predicts_text

    if not count or not predicts_text(models[0]):
        return
    texts = {name: corpus.held_out for name, corpus in shrinker.corpora.items()} | dict(others)
    for row in vocab.report.ledger:
        found = compare_bits(
            models, (shrinker.tokenizer, vocab.tokenizer), texts[row.name][:count], desc=f"Bits per character of {row.name}"
        )
        if found is not None:
            row.bits_texts, row.bits_before, row.bits_after = found.texts, found.before, found.after


def _embedding_shift(
    shrinker: VocabShrinker, vocab: ShrunkVocab, small: Any, model: Any, source: tuple[str, str | None]
) -> EmbeddingScores | None:
    """How far the embeddings of some texts moved, those that were not counted if there are any; None: it is no encoder.

    Args:
        source: name and revision of `model`, whose files may say how it is pooled.
    """
    import dataclasses

    from hf_glmd.models.encoders import is_encoder
    from hf_glmd.models.lengths import readable, row_length
    from hf_glmd.models.sentence_modules import pooled_to_compare
    from hf_glmd.shrinking.embeddings import compare_embeddings

    if not is_encoder(model):
        return None
    held_out = [text for corpus in shrinker.corpora.values() for text in corpus.held_out]
    texts = (held_out or shrinker.sample(EMBEDDED_TEXTS))[:EMBEDDED_TEXTS]
    length = row_length(None, readable([model]), shrinker.tokenizer)
    tokenizers = (vocab.tokenizer, shrinker.tokenizer)
    scores = compare_embeddings(small, model, tokenizers, texts, length, pooled=pooled_to_compare(*source))
    return dataclasses.replace(scores, held_out=bool(held_out))


def _counted(options: ShrinkOptions, tokenizer: Any, progress: bool) -> VocabShrinker:
    from hf_glmd.data.sources import read_texts
    from hf_glmd.shrinking.corpora import counted_corpora
    from hf_glmd.shrinking.shrinker import VocabShrinker

    if options.is_named:
        corpora, apart = named_sources(options.corpus, "--corpus"), named_sources(options.held_out, "--held-out")
        return VocabShrinker(tokenizer).count_corpora(corpora, options.column, held_out=apart or None, progress=progress)
    if not (options.weights or options.max_texts or options.counts or options.save_counts):
        shrinker = VocabShrinker(tokenizer)
        sources = _named_by_file(options.corpus)
        shrinker.add_corpora(counted_corpora(tokenizer, sources, options.column, progress=progress, spare_small=True))
        return shrinker
    shrinker = VocabShrinker.load_counts(options.counts, tokenizer) if options.counts else VocabShrinker(tokenizer)
    for source in options.corpus:
        read_texts(source, options.column)  # what is missing is found before the first is counted
    for source, weight in zip(options.corpus, options.weights or [1.0] * len(options.corpus), strict=True):
        shrinker.count(source, options.column, weight=weight, max_texts=options.max_texts, progress=progress)
    if options.save_counts:
        shrinker.save_counts(options.save_counts)
    return shrinker


def _named_by_file(sources: Sequence[str]) -> dict[str, str]:
    """A name for each source that was given none: its last part, with a number where two have the same."""
    stems = [Path(source).name.partition(".")[0] or "text" for source in sources]
    seen = [stems[:place].count(stem) for place, stem in enumerate(stems)]
    return {f"{stem}-{before + 1}" if before else stem: source for stem, before, source in zip(stems, seen, sources, strict=True)}


def number(text: str, flag: str) -> float:
    """ "1.02", "30M", "1.5B" -> a number. Raises: UsageError, it is none."""
    text = str(text).strip()
    factor = {"k": 1e3, "m": 1e6, "b": 1e9}.get(text[-1:].lower(), 1)
    try:
        return float(text if factor == 1 else text[:-1]) * factor
    except ValueError:
        raise UsageError(f"{flag} '{text}' is no number: write e.g. 1.02, or 30M.") from None


def _ledger_texts(sources: list[str], column: str) -> dict[str, list[str]]:
    """By the name of the file, without what it ends with."""
    from hf_glmd.data.files import files_of
    from hf_glmd.data.held_out import first_texts
    from hf_glmd.data.sources import read_texts

    files = [file for source in sources for file in files_of(source)]
    return {file.name.partition(".")[0]: first_texts(read_texts(file, column)[0], f"--ledger '{file}'") for file in files}


def _texts_of(files: list[str], column: str) -> Iterator[str]:
    from hf_glmd.data.sources import read_texts

    for file in files:
        yield from read_texts(file, column)[0]
