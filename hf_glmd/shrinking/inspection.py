"""A checkpoint, and text if there is any: what each size of its vocabulary would cost. What `hf-glmd inspect` does."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_glmd.errors import UsageError
from hf_glmd.utils.options import TEXT_SOURCES, list_option, option
from hf_glmd.utils.remote_code import HELP as REMOTE_CODE
from hf_glmd.utils.remote_code import trusting_as_asked

if TYPE_CHECKING:
    from hf_glmd.reports.sizes import ModelParts, SizeTable


@dataclass
class InspectOptions:
    """What `hf-glmd inspect` can be told; each field's help text is its documentation.

    Raises: UsageError, a value is missing or out of range; all such values are named together.
    """

    model: str = option("The checkpoint: a folder, or the name of a model on the Hub; of a tokenizer alone, sizes are told.", "")
    corpus: list[str] = list_option(f"Text to count, each with a name before it: de=german.txt fr=french.jsonl. {TEXT_SOURCES}.")
    held_out: list[str] = list_option("Text to measure growth on, by name alike. Unset: every 20th text, which is not counted.")
    revision: str | None = option("Branch, tag or commit of the model on the Hub.")
    column: str = option("Column that holds the text.", "text")
    sizes: list[int] = list_option("Numbers of tokens to tell of. Unset: a dozen.")
    knee_growth: float = option(
        "The knee is the smallest vocabulary with which no corpus takes more than so many times its tokens.", 1.01
    )
    order: str = option("Which tokens go first, as in shrink: 'count' or 'leaf'.", "count")
    plot: str | None = option("Also draw the curve, as this .png or .svg file, with the numbers in a .csv.", metavar="FILE")
    trust_remote_code: bool = option(REMOTE_CODE, False)

    def __post_init__(self) -> None:
        mistakes = []
        if not self.model:
            mistakes.append("the model is missing: name a folder, or a model on the Hub")
        if not self.knee_growth >= 1:
            mistakes.append(f"--knee-growth {self.knee_growth} is below 1: use e.g. 1.01")
        if self.plot and Path(self.plot).suffix not in (".png", ".svg"):
            mistakes.append(f"--plot '{self.plot}' is no picture: name a .png or .svg file")
        if not self.corpus and (self.plot or self.held_out):
            mistakes.append("there is nothing to measure on: give --corpus")
        if mistakes:
            raise UsageError("; ".join(mistakes) + ".")


@dataclass
class Inspection:
    """What `inspect_checkpoint` found."""

    name: str
    tokens: int
    tokens_without_row: list[str]
    model: ModelParts | None
    sizes: SizeTable | None
    pictures: list[str]

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def table(self) -> str:
        """For people."""
        parts = [self.model.table(self.tokens)] if self.model else [f"{self.name}: a tokenizer of {self.tokens:,} tokens."]
        if self.tokens_without_row:
            parts.append(f"tokens without a row: {', '.join(self.tokens_without_row)}")
        parts += [self.sizes.table()] if self.sizes else []
        parts += [f"Written to {', '.join(self.pictures)}"] if self.pictures else []
        return "\n\n".join(parts)


@trusting_as_asked
def inspect_checkpoint(options: InspectOptions, progress: bool = True) -> Inspection:
    """Weighs a model by part and, with corpora, tells what a dozen sizes of its vocabulary would cost.

    Raises: UsageError, something is missing or does not fit.
    """
    from hf_glmd.models.loading import load_checkpoint, load_config
    from hf_glmd.shrinking.shrinker import VocabShrinker
    from hf_glmd.shrinking.sizes import model_parts
    from hf_glmd.vocab.counting import vocabulary_rows
    from hf_glmd.vocab.mapped_tokenizer import load_tokenizer

    corpora, apart = named_sources(options.corpus, "--corpus"), named_sources(options.held_out, "--held-out")
    tokenizer = load_tokenizer(options.model, options.revision)
    tokens = vocabulary_rows(tokenizer)
    model = None
    if not Path(options.model).is_dir() or (Path(options.model) / "config.json").is_file():
        load_config(options.model, options.revision)
        model = load_checkpoint(options.model, revision=options.revision)
    sizes = pictures = None
    if corpora:
        shrinker = VocabShrinker(tokenizer)
        shrinker.count_corpora(corpora, options.column, held_out=apart or None, progress=progress)
        wanted = options.sizes or None
        sizes = shrinker.sizes(sizes=wanted, knee_growth=options.knee_growth, model=model, order=options.order)
        pictures = [str(file) for file in sizes.save_plot(options.plot)] if options.plot else []
    rows = tokens if model is None else len(model.get_input_embeddings().weight)
    without_row = [token for token, token_id in tokenizer.get_vocab().items() if token_id >= rows]
    parts = None if model is None else model_parts(model, min(tokens, rows))
    if sizes is not None:
        sizes.model = None  # it stands beside them
    return Inspection(options.model, tokens, sorted(without_row), parts, sizes, pictures or [])


def named_sources(values: list[str], flag: str) -> dict[str, str]:
    """`de=german.txt` -> {"de": "german.txt"}; one source alone may go without a name.

    Raises: UsageError, a name is missing or stands there twice.
    """
    found: dict[str, str] = {}
    for value in values:
        name, equals, source = value.partition("=")
        if not equals or Path(value).exists():
            name, source = "text", value
            if len(values) > 1:
                raise UsageError(f"{flag} '{value}' has no name: write {Path(value).stem}={value}.")
        if not name or not source:
            raise UsageError(f"{flag} '{value}' is no name=source: write e.g. de=german.txt.")
        if name in found:
            raise UsageError(f"{flag} names '{name}' twice ('{found[name]}' and '{source}'): give each corpus its own name.")
        found[name] = source
    return found
