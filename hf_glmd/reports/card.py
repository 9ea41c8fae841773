"""What every model card of ours consists of, and its text; what goes in comes from records."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_glmd.errors import UsageError, nearest
from hf_glmd.utils.remote_code import trust_remote_code
from hf_glmd.utils.text import code_span, duration, markdown_table, markdown_text, percent

TEMPLATES = Path(__file__).parent / "templates"
TAGS = ["glmd", "distillation", "vocabulary-compression"]
SHRUNK_TAGS = [tag for tag in TAGS if tag != "distillation"]
SENTENCE_TAGS = ["sentence-transformers", "feature-extraction"]
PAPER_URL = "https://arxiv.org/abs/2306.06625"

AUTO_CLASSES = {
    "fill-mask": "AutoModelForMaskedLM",
    "text-generation": "AutoModelForCausalLM",
    "text2text-generation": "AutoModelForSeq2SeqLM",
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
    "feature-extraction": "AutoModel",
}
"""Hub pipeline tag -> the class that loads such a model."""

KINDS = {
    "fill-mask": "masked language model",
    "text-generation": "causal language model",
    "text2text-generation": "encoder-decoder language model",
    "text-classification": "text classifier",
    "token-classification": "token classifier",
    "question-answering": "question answering model",
    "feature-extraction": "text encoder",
}
"""Hub pipeline tag -> in words."""

BASE_MODEL_RELATIONS = ("adapter", "finetune", "merge", "quantized")
"""What the Hub knows; it has no word for distilled, nor for a smaller vocabulary."""

REMOVED = {
    "resegment": "What was cut is split into smaller kept pieces, and the tokenizer is a plain one.",
    "nearest": "At the input each removed token is replaced by the most similar kept token, so different words can look alike.",
    "unk": "At the input each removed token becomes the unknown token, so what it said is lost.",
}

SCRIPTS_SHOWN = 12
LARGE_SCRIPT = 10
"""Tokens: a script with fewer of them in the original vocabulary is of no language that it was made for."""
NO_SCRIPT = "no letters"


@dataclass
class SourceCard:
    """What the card of the model that ours comes from says about rights and languages; unset where it says nothing.

    Attributes:
        license, license_name, license_link: as the Hub spells them; the latter two where `license` is "other".
        languages, datasets: of the Hub.
    """

    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    languages: list[str] = field(default_factory=list)
    datasets: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, name_or_path: str, revision: str | None = None) -> SourceCard:
        """From README.md in a folder, or of a repository on the Hub. What cannot be read says nothing."""
        from huggingface_hub import hf_hub_download

        file = Path(name_or_path) / "README.md"
        if not file.is_file():
            if not is_hub_name(name_or_path):
                return cls()
            try:
                file = Path(hf_hub_download(name_or_path, "README.md", revision=revision))
            except (OSError, ValueError):  # not there, or out of reach
                return cls()
        data = card_metadata(file)
        return cls(
            license=_text(data.get("license")),
            license_name=_text(data.get("license_name")),
            license_link=_text(data.get("license_link")),
            languages=_texts(data.get("language")),
            datasets=_texts(data.get("datasets")),
        )


@dataclass
class Card:
    """What a card is filled with. Parts that are empty are left out.

    Attributes:
        template: of the folder `templates`; it has the sentences.
        name: of the model.
        pipeline_tag: one of `AUTO_CLASSES`; None: there is a tokenizer only.
        facts: what else the template names.
        source: what the original model's card says.
        base_model: the original model's Hub name. A local folder is left out: the Hub would take it for somebody's repository.
        base_model_relation: one of `BASE_MODEL_RELATIONS`.
        tags, datasets: for the Hub, besides those of the source.
        eval_results: `huggingface_hub.EvalResult`s.
        load_from: what the usage code loads, a folder or Hub name. Unset: `name`.
        example: text of the usage code; `{mask}` stands for the mask token.
        task_columns: what the task in cloze_task.json reads, for `ClozeClassifier`; empty: there is no such file.
        removed: what happens to removed tokens, a key of `REMOVED`; it decides on the tokenizer's class.
        table_title, table: the original model beside this one.
        plots: Markdown images.
        stages: a table.
        command: how it was made.
        library: what loads it, as the Hub spells it.
        sentence_encoder: it is a repository of sentence-transformers, and used as such.
    """

    template: str
    name: str
    pipeline_tag: str | None
    facts: Mapping[str, Any]
    source: SourceCard = field(default_factory=SourceCard)
    base_model: str | None = None
    base_model_relation: str = "finetune"
    tags: Sequence[str] = ()
    datasets: Sequence[str] = ()
    eval_results: Sequence[Any] = ()
    load_from: str | None = None
    example: str = "The {mask} of the list is returned."
    task_columns: Sequence[str] = ()
    removed: str = "resegment"
    table_title: str = ""
    table: str = ""
    plots: Sequence[str] = ()
    stages: str = ""
    command: str = ""
    library: str = "transformers"
    sentence_encoder: bool = False

    def render(self) -> str:
        """The card, metadata included. The access token and where the home folder is, should a part hold them, are left out.

        Raises: UsageError, a value is not one of those named.
        """
        from huggingface_hub import ModelCardData

        if self.pipeline_tag is not None:
            _check("pipeline_tag", self.pipeline_tag, AUTO_CLASSES)
        _check("base_model_relation", self.base_model_relation, BASE_MODEL_RELATIONS)
        base_model = self.base_model if self.base_model is not None and is_hub_name(self.base_model) else None
        metadata = ModelCardData(
            model_name=self.name,
            library_name="sentence-transformers" if self.sentence_encoder else self.library,
            pipeline_tag="sentence-similarity" if self.sentence_encoder else self.pipeline_tag,
            tags=list(dict.fromkeys([*self.tags, *(SENTENCE_TAGS if self.sentence_encoder else ())])),
            license=self.source.license,
            license_name=self.source.license_name,
            license_link=self.source.license_link,
            language=self.source.languages or None,
            datasets=list(dict.fromkeys([*self.datasets, *self.source.datasets])) or None,
            base_model=base_model,
            base_model_relation=self.base_model_relation if base_model else None,
            metrics=list(dict.fromkeys(one.metric_type for one in self.eval_results)) or None,
            eval_results=list(self.eval_results) or None,
        )
        card = rendered(
            self.template,
            metadata,
            card=self,
            name=markdown_text(self.name),
            load_from=json.dumps(self.load_from or self.name, ensure_ascii=False),
            example=json.dumps(self.example if self.pipeline_tag == "fill-mask" else self.example.replace("{mask}", "end")),
            auto_class=AUTO_CLASSES.get(self.pipeline_tag),
            tokenizer_class="AutoTokenizer" if self.removed == "resegment" else "MappedTokenizer",
            own_code=trust_remote_code(),
            task_columns=", ".join(f"`{column}`" for column in self.task_columns),
            task_example=_task_example(self.task_columns),
            licence=self._licence(),
            **self.facts,
        )
        return without_token(card.replace(str(Path.home()), "~"))

    def _licence(self) -> str:
        given = self.source
        if given.license is None:
            return (
                "No licence is stated here, for none was given with the original model. Ask its authors before you pass this "
                "model on."
            )
        name = markdown_text(given.license_name or given.license)
        link = given.license_link or ""
        linked = re.fullmatch(r"https?://[^\s()<>]+|[\w./-]+", link) is not None  # and no javascript:
        return f"Licence: {f'[{name}]({link})' if linked else name}, the original model's."


def _task_example(columns: Sequence[str]) -> str:
    """What `ClozeClassifier.predict` is given, as Python."""
    values = {column: "..." for column in columns}
    return json.dumps(values if len(values) > 1 else "...", ensure_ascii=False)


def rendered(template: str, metadata: Any, **facts: Any) -> str:
    """A card from a template. `metadata`: a `huggingface_hub.CardData`."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined)
    environment.filters |= {
        "code": code_span,
        "duration": duration,
        "markdown": markdown_text,
        "number": "{:,}".format,
        "percent": percent,
        "versions": versions_in_words,
    }
    words = {"paper_url": PAPER_URL, "kinds": KINDS, "removed": REMOVED}
    functions = {"large_scripts": _large_scripts, "script_table": _script_table}
    return tidy(environment.get_template(template).render(card_data=metadata.to_yaml(), **words, **functions, **facts))


def _large_scripts(scripts: Sequence[Any]) -> list[dict[str, Any]]:
    """Those that a language is written in; each with `script`, `tokens` before and `kept`."""
    found = [one if isinstance(one, dict) else vars(one) for one in scripts]
    return [one for one in found if one["tokens"] >= LARGE_SCRIPT and one["script"] != NO_SCRIPT]


def _script_table(scripts: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (one["script"], f"{one['tokens']:,}", f"{one['kept']:,}", f"{one['kept'] / one['tokens']:.0%}")
        for one in scripts
        if one["kept"]
    ]
    return markdown_table(rows[:SCRIPTS_SHOWN], ["tokens with letters of", "before", "kept", "share"], "lrrr")


def versions_in_words(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{markdown_text(library)} {markdown_text(version)}" for library, version in versions.items())


def card_metadata(path: str | Path) -> dict[str, Any]:
    """Of a card's file; empty if it has none that can be read."""
    import yaml

    try:
        match = re.match(r"\s*---\r?\n(.*?)\r?\n---\s*(\r?\n|$)", Path(path).read_text(encoding="utf-8"), flags=re.DOTALL)
        data = yaml.safe_load(match[1]) if match else {}
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return data if isinstance(data, dict) else {}


def named_in_usage(text: str, name: str) -> str:
    """A card whose usage code loads `name`, a repository, in place of the folder it was written in."""
    line = f"name = {json.dumps(name, ensure_ascii=False)}"
    return re.sub(r'^name = ".*"$', lambda _: line, text, flags=re.MULTILINE)


def is_hub_name(name: str) -> bool:
    """Whether `name` can be a repository on the Hub: well-formed and no file or folder here."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not Path(name).exists()


def display_name(name: str) -> str:
    """A Hub name as it is; of a local path its last part, so that a card does not tell where somebody keeps their files."""
    return name if is_hub_name(name) else re.split(r"[\\/]", name.rstrip("\\/"))[-1] or name


def without_token(text: str, token: str | None = None) -> str:
    """`text` without the access token, given or found where the Hub's client finds it."""
    from huggingface_hub import get_token

    for secret in (token, get_token()):
        if secret:
            text = text.replace(secret, "<token>")
    return text


def tidy(text: str) -> str:
    """No more than one empty line in a row, one line break at the end."""
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _check(option: str, value: str, known: Sequence[str] | Mapping[str, Any]) -> None:
    if value not in known:
        raise UsageError(f"{option}={value!r} is not known. {nearest(value, known)}")


def _text(value: Any) -> str | None:
    if isinstance(value, list):
        value = value[0] if len(value) == 1 else None
    return str(value) if value else None


def _texts(value: Any) -> list[str]:
    return [str(one) for one in (value if isinstance(value, list) else [value]) if one]


def pipeline_tag(config: Any) -> str | None:
    """The key of `AUTO_CLASSES` whose class loads a configuration's model; None if none does.

    A model without a head, and one whose head transformers has no common class for, is a text encoder.
    """
    import transformers  # takes seconds, and a card from records needs nothing of it

    names = set(config.architectures or ())
    # BART is listed as a masked language model, too.
    first = "text2text-generation" if getattr(config, "is_encoder_decoder", False) else ""
    for tag, auto_class in sorted(AUTO_CLASSES.items(), key=lambda item: item[0] != first):
        classes = getattr(transformers, auto_class)._model_mapping
        known = classes[type(config)] if type(config) in classes else ()
        if names & {one.__name__ for one in (known if isinstance(known, tuple) else (known,))}:
            return tag
    return "feature-extraction" if type(config) in transformers.AutoModel._model_mapping else None


def pipeline_tag_of(model: Any) -> str:
    """The Hub's word for what a model predicts."""
    from hf_glmd.models.class_heads import class_kind
    from hf_glmd.models.encoders import is_encoder
    from hf_glmd.models.heads import is_masked_lm

    if is_encoder(model):
        return "feature-extraction"
    if (kind := class_kind(model)) is not None:
        return {"classifier": "text-classification", "token classifier": "token-classification"}.get(kind, "question-answering")
    if getattr(model.config, "is_encoder_decoder", False):
        return "text2text-generation"
    return "fill-mask" if is_masked_lm(model) else "text-generation"
