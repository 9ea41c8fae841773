from __future__ import annotations

import dataclasses
import math
import re
import subprocess
import sys

import pytest
import vocab_helpers
from huggingface_hub import ModelCard
from publishing_helpers import point_client_at, serving
from record_examples import ODD_TOKENS, TASK_LIST, example_record

from hf_glmd import VocabShrinker
from hf_glmd.errors import UsageError
from hf_glmd.reports.card import PAPER_URL, TAGS, SourceCard, display_name, is_hub_name
from hf_glmd.reports.run_card import (
    comparison_rows,
    render_card,
    render_teacher_card,
    task_table,
    terminal_table,
)
from hf_glmd.tasks.superglue import SUPERGLUE
from hf_glmd.utils.remote_code import trusting_remote_code
from hf_glmd.utils.text import code_span, markdown_table, markdown_text

TEACHER_FACTS = {
    "accuracy": 0.3917,
    "positions": 12_347,
    "steps": 907,
    "minutes": 41.0,
    "parameters": 5_370_641,
    "versions": {"torch": "2.9.0"},
    "args": {
        "vocab_size": 8191,
        "layers": 4,
        "hidden_size": 257,
        "block_size": 127,
        "batch_size": 31,
        "lr": 0.02,
        "embedding_lr": 0.003,
    },
    "corpus_texts": 40_009,
    "tokens_per_step": 3_937,
}


def cells(line: str) -> list[str]:
    """A table line as GitHub splits it: at every pipe that no backslash precedes."""
    return [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def tables(text: str) -> list[list[list[str]]]:
    found: list[list[list[str]]] = [[]]
    for line in text.splitlines():
        if line.startswith("|"):
            found[-1].append(cells(line))
        elif found[-1]:
            found.append([])
    return [table for table in found if table]


def without(record, part: str, **changes):
    return dataclasses.replace(record, **{part: dataclasses.replace(getattr(record, part), **changes)})


def test_the_table_has_the_figures_of_the_record():
    rows = {label: (teacher, student) for label, teacher, student in comparison_rows(example_record())}
    assert rows == {
        "layers": ("4", "2 (50%)"),
        "vocabulary (tokens)": ("8,191", "4,093 (50%)"),
        "parameters": ("5,370,640", "2,709,262 (50%)"),
        "- of embeddings": ("2,129,663", "1,047,809 (49%)"),
        "- of the body": ("3,240,977", "1,661,453 (51%)"),
        "weights file": ("10.7 MB, float16", "5.42 MB, float16 (50%)"),
        "tokens/s, 1 x 127 tokens": ("8,123", "15,432 (1.9x)"),
        "tokens/s, 32 x 127 tokens": ("20,112", "43,211 (2.1x)"),
        "masked-word accuracy (n=12,347)": ("39.2%", "27.2%"),
        "KL to the teacher (before -> stage 1 -> final)": ("0", "3.58 -> 1.26 -> 1.42"),
        "same top-1 word as the teacher": ("100%", "36.4%"),
        "docstring_library, accuracy (n=1,009)": ("81.3%", "78.3%"),
        "- always the commonest answer": ("12.1%", "12.1%"),
        "- same answer as the teacher": ("100%", "85.2%"),
        "text covered by its tokens": ("100%", "97.4%"),
        "tokens per text": ("47.3", "49.8 (1.05x)"),
    }


def test_what_was_not_measured_has_no_figure():
    record = example_record(words_general=None, task=None)
    for part in ("words_start", "words_final"):
        record = without(record, part, teacher_accuracy=None, kl=None, agreement=math.nan)
    record = without(record, "teacher", tokens_per_second={})
    record = without(record, "student", tokens_per_second={8: 7919.0})
    rows = {label: (teacher, student) for label, teacher, student in comparison_rows(record)}
    assert rows["masked-word accuracy (n=12,347)"] == ("-", "27.2%")
    assert rows["tokens/s, 8 x 127 tokens"] == ("-", "7,919")
    assert not any("KL" in label or "top" in label or "answer" in label or "tokens/s, 1 x" in label for label in rows)
    assert not re.search(r"\b(nan|none)\b(?! was given)", render_card(record).lower())


@pytest.mark.parametrize("general", ["skipped", "last"])
def test_stage_1_is_named_only_where_another_stage_follows(general):
    record = example_record()
    record = dataclasses.replace(record, words_general=None if general == "skipped" else record.words_final)
    [row] = [row for row in comparison_rows(record) if row[0].startswith("KL")]
    assert row == ("KL to the teacher (before -> final)", "0", "3.58 -> 1.42")


def test_terminal_table_lines_are_of_equal_width():
    title, table, footer = terminal_table(example_record()).split("\n\n")
    assert title == "example-student, distilled from someone/example-teacher"
    assert len({len(line) for line in table.splitlines()}) == 1
    assert len(table.splitlines()) == 2 + len(comparison_rows(example_record()))
    assert footer == "Measured on 2 CPU cores. The run took 17.0 min."


def test_markdown_table_keeps_its_columns_whatever_the_cells_hold():
    rows = [[code_span(token), token, str(number)] for number, token in enumerate(ODD_TOKENS)]
    lines = markdown_table(rows, ["code", "text|", "n"], "llr").splitlines()
    assert lines[1].endswith(" --: |") and "n" in cells(lines[0])
    assert [len(cells(line)) for line in lines] == [3] * (len(rows) + 2)
    assert [cells(line)[2] for line in lines[2:]] == [row[2] for row in rows]
    assert cells(lines[2])[:2] == ["`|`", "|"]
    with pytest.raises(ValueError, match="3 columns"):
        markdown_table([["a", "b"]], ["1", "2", "3"])


def test_wide_characters_take_two_columns():
    assert markdown_table([["語"], ["abcd"]], ["x"]).splitlines()[2:] == ["| 語   |", "| abcd |"]


@pytest.mark.parametrize("token", ODD_TOKENS)
def test_code_span_gives_the_token_back(token):
    span = code_span(token)
    fence = re.match("`+", span)[0]
    inside = span[len(fence) : -len(fence)]
    assert fence not in re.findall("`+", inside), "the span would end early"
    if inside[:1] == inside[-1:] == " " and inside.strip():  # Markdown takes one space off each side
        inside = inside[1:-1]
    assert inside == token.replace("\n", "\\n")


def test_markdown_text_shows_markup_as_text():
    assert markdown_text("a*b `c` [d](e) <f> _g_ snake_case\n~h") == r"a\*b \`c\` \[d](e) \<f> \_g\_ snake_case \~h"


def test_card_parses_and_its_metadata_is_valid():
    text = render_card(
        example_record(),
        base_model="someone/example-teacher",
        source=SourceCard(license="mit", languages=["en"], datasets=["someone/texts", "someone/older-texts"]),
        datasets=["someone/texts"],
    )
    card = ModelCard(text)
    assert str(card).rstrip() == text.rstrip()
    data = card.data.to_dict()
    assert data["library_name"] == "transformers" and data["pipeline_tag"] == "fill-mask" and data["tags"] == TAGS
    assert (
        data["license"] == "mit" and data["language"] == ["en"] and data["datasets"] == ["someone/texts", "someone/older-texts"]
    )
    assert data["base_model"] == "someone/example-teacher" and data["base_model_relation"] == "finetune"
    assert card.data.model_name == "example-student"
    scores = {result.metric_name: result for result in card.data.eval_results}
    assert scores["accuracy"].metric_value == 0.7833 and scores["accuracy"].dataset_type == "docstring_library"
    assert scores["masked-word accuracy"].metric_value == 0.2719 and scores["masked-word accuracy"].task_type == "fill-mask"
    assert "Licence: mit" in text and "{{" not in text.replace("`{{ 7 * 7 }}`", "") and "{%" not in text


def test_card_without_a_task_scores_words_only():
    [result] = ModelCard(render_card(example_record(task=None))).data.eval_results
    assert result.metric_value == 0.2719


def test_card_states_no_licence_language_or_base_model_by_itself():
    card = ModelCard(render_card(example_record()))
    assert ".from_pretrained(name)" in card.text and "trust_remote_code" not in card.text
    with trusting_remote_code(True):  # of a student whose classes are its repository's
        assert "ForMaskedLM.from_pretrained(name, trust_remote_code=True)" in render_card(example_record())
    assert not {"license", "language", "datasets", "base_model", "base_model_relation"} & set(card.data.to_dict())
    assert "No licence is stated" in card.text and "huggingface.co" not in card.text


def test_a_local_folder_is_never_the_base_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "some" / "teacher").mkdir(parents=True)
    for folder in ("some/teacher", "./some/teacher", str(tmp_path / "some" / "teacher"), "~/teacher", "a/b/c", "..\\teacher"):
        assert not is_hub_name(folder)
        card = render_card(without(example_record(), "teacher", name=folder), base_model=folder)
        assert "base_model" not in card and str(tmp_path) not in card
        assert re.search(rf"\| teacher {display_name(folder)} +\|", card)
    assert is_hub_name("some/other") and is_hub_name("bert-base-uncased")
    assert display_name(str(tmp_path / "some")) == "some" and display_name("some/other") == "some/other"


def test_the_parts_of_the_card_come_in_order():
    text = render_card(example_record())
    headings = re.findall(r"^##? (.+)$", text, flags=re.MULTILINE)
    assert headings == [
        "example-student", "Usage", "Beside its teacher", "Plots", "How it was made", "What was cut", "Limits", "Paper"
    ]  # fmt: skip
    assert PAPER_URL in text and "eprint = {2306.06625}" in text
    assert (
        "Tan, Shicheng and Tam, Weng Lam and Wang, Yuanchun and Gong, Wenwen and Zhao, Shu and Zhang, Peng and Tang, Jie" in text
    )
    assert example_record().command in text and "torch 2.9.0, transformers 5.23.0" in text
    assert "1.053 times as many tokens" in text and "97.4% of the tokens counted" in text


def test_the_tables_of_the_card_are_those_of_the_record():
    record = example_record()
    comparison, stages = tables(render_card(record))
    assert [tuple(row) for row in comparison[2:]] == comparison_rows(record)
    assert stages[2:] == [
        ["word prediction on plain text", "student", "word prediction", "15", "all", "811", "791,291", "61", "0.0004", "10.2"],
        ["fine-tuning of the teacher", "teacher", "gold labels", "-", "-", "307", "-", "32", "5e-05", "1.4"],
        ["word prediction on the task's texts, from the tuned teacher", "student", "word prediction", "15", "all", "211", "-",
         "31", "0.0001", "1.6"],
        ["soft labels on the task's answers", "student", "soft labels", "1", "-", "223", "-", "29", "2e-05", "1.2"],
    ]  # fmt: skip


def test_odd_names_do_not_break_the_tables_of_the_card():
    record = without(without(example_record(), "task", name="a|b`c\nd"), "teacher", name="some|one/`teacher`")
    record.stages[0].title = "plain | text"
    comparison, stages = tables(render_card(record))
    assert {len(row) for row in comparison} == {3} and len(comparison) == 2 + len(comparison_rows(record))
    assert {len(row) for row in stages} == {10} and stages[2][0] == "plain | text"
    assert any(row[0] == r"a|b\`c d, accuracy (n=1,009)" for row in comparison)


def test_removed_tokens_stay_one_paragraph():
    [line] = [line for line in render_card(example_record()).splitlines() if line.startswith("The commonest tokens")]
    assert all(code_span(token) in line for token in ODD_TOKENS)
    assert "The commonest tokens" not in render_card(without(example_record(), "vocab", removed_examples=[]))


def test_plots_are_linked_where_they_lie_and_only_those_drawn():
    record = example_record()
    assert re.findall(r"\]\((\S+\.png)\)", render_card(record)) == [
        f"plots/{name}.png" for name in ("long_tail", "parameters", "size_speed_score", "kl_over_steps", "tasks")
    ]
    for stage in record.stages:
        stage.kl = []
    assert re.findall(r"\]\((\S+\.png)\)", render_card(record, plots_dir="../figures/")) == [
        "../figures/long_tail.png",
        "../figures/parameters.png",
        "../figures/size_speed_score.png",
        "../figures/tasks.png",
    ]
    assert ".png" not in render_card(record, plots_dir=None) and "## Plots" not in render_card(record, plots_dir=None)


@pytest.mark.parametrize("option", ["pipeline_tag", "base_model_relation"])
def test_an_unknown_option_names_the_nearest(option):
    wrong, right = {
        "pipeline_tag": ("fill_mask", "fill-mask"),
        "base_model_relation": ("finetuned", "finetune"),
    }[option]
    with pytest.raises(UsageError, match=f"{option}='{wrong}'.*Did you mean '{right}'"):
        render_card(example_record(), **{option: wrong})


def test_the_teachers_card_has_its_facts():
    card = ModelCard(render_teacher_card(**TEACHER_FACTS))
    assert card.data.license == "apache-2.0" and card.data.pipeline_tag == "fill-mask"
    assert card.data.model_name == "quickstart_teacher" and card.data.eval_results[0].metric_value == 0.3917
    for fact in ("39.2%", "12,347", "907", "41 min", "5,370,641", "8,191", "4, 257", "127 tokens", "31 rows", "lr 0.02",
                 "lr 0.003", "40,009", "3,937", "torch 2.9.0", "Muon", "AdamW", "Apache-2.0"):  # fmt: skip
        assert fact in card.text, fact
    assert "{{" not in card.text


def code_blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.+?)```", text, flags=re.DOTALL)


def test_the_usage_code_runs(tmp_path, capsys):
    """On a BERT of a few words with random weights: both cards' code must load the folder and print guesses."""
    from transformers import BertConfig, BertForMaskedLM, BertTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "a", "list", "of", "is", "returned", "strings", "."]
    folder = tmp_path / 'a "quoted" folder'
    BertTokenizer(vocab=dict(zip(words, range(len(words)), strict=True))).save_pretrained(folder)
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    BertForMaskedLM(BertConfig(vocab_size=len(words), max_position_embeddings=17, **size)).save_pretrained(folder)
    for card in (render_card(example_record(), folder=str(folder)), render_teacher_card(**TEACHER_FACTS, folder=str(folder))):
        [code] = code_blocks(card)
        capsys.readouterr()
        exec(compile(code, "card", "exec"), {})
        assert len(capsys.readouterr().out.splitlines()) == 5  # the pipeline's five most probable words


def test_importing_cards_loads_no_heavy_library():
    heavy = ("torch", "huggingface_hub", "jinja2", "matplotlib")
    code = f"import sys, hf_glmd.reports.run_card; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_the_table_of_tasks_has_their_scores_and_the_mean():
    printed = terminal_table(example_record(task=None, tasks=TASK_LIST))
    table = tables(printed)[-1]
    assert table[2] == ["boolq", "accuracy", "3,270", "62.2%", "71.2%", "69.5%", "-1.7", "81%", "2.1 min"]
    assert table[5][6:] == ["+1.0", "-", "11 s"]
    assert table[6] == ["mean", "", "", "39.8%", "63.6%", "52.7%", "-10.9", "54%", "3.5 min"]


SCRIPTS = [
    {"script": "Latin", "tokens": 5_003, "kept": 4_001},
    {"script": "no letters", "tokens": 701, "kept": 31},
    {"script": "Cyrillic", "tokens": 401, "kept": 41},
    {"script": "Thai", "tokens": 73, "kept": 0},
    {"script": "Ogham", "tokens": 1, "kept": 0},
]


def test_the_card_says_which_scripts_lost_their_tokens():
    text = render_card(without(example_record(), "vocab", scripts=SCRIPTS))
    [table] = [table for table in tables(text) if table[0][0] == "tokens with letters of"]
    assert table[2:] == [["Latin", "5,003", "4,001", "80%"], ["Cyrillic", "401", "41", "10%"]]
    assert "No token of these scripts is left: Thai." in text
    assert "scripts" not in render_card(without(example_record(), "vocab", scripts=SCRIPTS[:1])).split("## What was cut")[1]


def test_a_vocabulary_that_was_not_cut_has_no_such_part():
    record = without(example_record(), "vocab", size=8191)
    assert "## What was cut" not in render_card(record) and "vocabulary-compression" not in render_card(record)


def test_a_mapped_vocabulary_is_loaded_with_its_own_class():
    text = render_card(without(example_record(), "vocab", removed="nearest"))
    assert "MappedTokenizer.from_pretrained(name)" in text and "replaced by the most similar kept token" in text


def test_a_list_of_tasks_is_shown_but_not_claimed_for_this_model():
    text = render_card(example_record(task=None, tasks=TASK_LIST))
    assert any(table[0][0] == "task" and len(table) == 2 + len(TASK_LIST) + 1 for table in tables(text))
    assert [result.metric_name for result in ModelCard(text).data.eval_results] == ["masked-word accuracy"]
    assert "scored with one student each" in text


@pytest.mark.parametrize(
    ("metadata", "wanted"),
    [
        ("license: mit\nlanguage: en\ndatasets: [a/b]", SourceCard("mit", languages=["en"], datasets=["a/b"])),
        ("license: [apache-2.0]\nlanguage: [de, fr]", SourceCard("apache-2.0", languages=["de", "fr"])),
        (
            "license: other\nlicense_name: gemma\nlicense_link: https://ai.google.dev/gemma/terms",
            SourceCard("other", "gemma", "https://ai.google.dev/gemma/terms"),
        ),
        ("tags: [x]", SourceCard()),
        (": : :", SourceCard()),
        ("- a list", SourceCard()),
    ],
)
def test_rights_and_languages_come_from_the_teachers_folder(tmp_path, metadata, wanted):
    (tmp_path / "README.md").write_text(f"---\n{metadata}\n---\n# A teacher\n")
    assert SourceCard.read(str(tmp_path)) == wanted
    card = ModelCard(render_card(example_record(), source=wanted))
    assert (card.data.license, card.data.get("license_link")) == (wanted.license, wanted.license_link)
    assert ("No licence is stated" in card.text) == (wanted.license is None)
    if wanted.license_name:
        assert "Licence: [gemma](https://ai.google.dev/gemma/terms)" in card.text


def test_a_folder_without_a_card_says_nothing(tmp_path):
    assert SourceCard.read(str(tmp_path)) == SourceCard.read(str(tmp_path / "missing")) == SourceCard()


def test_the_token_is_never_in_a_card(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    text = render_card(example_record(command="python train.py --hub_token hf_secret"))
    assert "hf_secret" not in text and "--hub_token <token>" in text


def test_all_tasks_of_superglue_have_a_mean_of_their_own():
    tasks = [dataclasses.replace(TASK_LIST[0], name=name, student=0.1 * place) for place, name in enumerate(SUPERGLUE)]
    *_, mean, benchmark = task_table([*tasks, dataclasses.replace(TASK_LIST[2], student=0.9)]).splitlines()
    assert "SuperGLUE (mean of 8)" in benchmark and "35.0%" in benchmark
    assert "| mean " in mean and "41.1%" in mean
    assert "SuperGLUE" not in task_table(tasks[:7])


EXAMPLE_MODELS = {
    "fill-mask": "bert",
    "text-generation": "llama",
    "text2text-generation": "bart",
    "text-classification": "bert-classifier",
    "feature-extraction": "BertModel",
    None: None,
}


@pytest.mark.parametrize("removed", ["resegment", "nearest"])
@pytest.mark.parametrize("tag", EXAMPLE_MODELS, ids=str)
def test_the_usage_code_of_every_kind_runs(tmp_path, capsys, tag, removed):
    """On a model whose vocabulary was cut; without a model there is a tokenizer only."""
    name = EXAMPLE_MODELS[tag]
    model = None
    if name == "BertModel":
        size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
        model = vocab_helpers.tiny_class(name, size, vocab_helpers.V)
    elif name is not None:
        model = vocab_helpers.tiny_model(name)
    embeddings = {"embeddings": vocab_helpers.tiny_model("bert").get_input_embeddings().weight} if removed == "nearest" else {}
    shrinker = VocabShrinker(vocab_helpers.generic_tokenizer()).count(vocab_helpers.texts(80))
    vocab = shrinker.shrink(size=150, removed=removed, **embeddings)
    folder = tmp_path / "small"
    if model is not None:
        vocab.resize(model).save_pretrained(folder)
    vocab.save_pretrained(folder)
    card = ModelCard.load(folder / "README.md")
    assert card.data.pipeline_tag == tag
    [code] = code_blocks(card.text)
    exec(compile(code, "card", "exec"), {})
    assert capsys.readouterr().out.strip() and ("hf_glmd" in code) == (removed == "nearest")


@pytest.mark.parametrize("changes", [{}, {"task": None}, {"task": None, "tasks": TASK_LIST}, {"kind": "causal language model"}])
def test_the_hub_finds_nothing_wrong_with_the_metadata(changes, monkeypatch):
    """By the rules that are documented; a list where a text must be is found."""
    source = SourceCard("other", "gemma", "https://ai.google.dev/gemma/terms", ["en", "de"], ["someone/texts"])
    tag = {"pipeline_tag": "text-generation"} if "kind" in changes else {}
    text = render_card(example_record(**changes), base_model="someone/example-teacher", source=source, **tag)
    with serving() as hub:
        point_client_at(hub, monkeypatch)
        ModelCard(text).validate()
        with pytest.raises(ValueError, match="base_model_relation"):
            ModelCard(text.replace("base_model_relation: finetune", "base_model_relation: distilled")).validate()
