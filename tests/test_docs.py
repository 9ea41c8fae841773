"""The site's pages: what they name exists, what is public stands in the reference, and the site is built without a warning."""

import ast
import dataclasses
import importlib.util
import json
import os
import re
import subprocess
import sys
import typing
from types import SimpleNamespace

import docs_helpers
import pytest
import training_helpers
import yaml
from docs_helpers import DOCS, PAGES, ROOT, blocks, command_lines, text_of
from torch import nn

import hf_glmd
from hf_glmd.cli import parsed
from hf_glmd.recipe.cache import CacheOptions
from hf_glmd.recipe.config import Recipe, load_recipe
from hf_glmd.recipe.examples import copy_recipe, recipe_names
from hf_glmd.recipe.launch import accelerate_config
from hf_glmd.recipe.reading import build, build_section, section_of
from hf_glmd.shrinking.command import ShrinkOptions
from hf_glmd.training.objectives import kinds
from hf_glmd.utils.options import given_options

HOOKS = docs_helpers.hooks()
REFERENCE = "\n".join(path.read_text(encoding="utf-8") for path in sorted((DOCS / "reference").glob("*.md")))
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))


def test_every_public_name_stands_on_one_page_of_the_reference():
    named = sorted(re.findall(r"^::: hf_glmd\.(\w+)$", REFERENCE, flags=re.MULTILINE))
    assert named == sorted(set(hf_glmd.__all__) - {"__version__"})


def test_every_option_has_a_table_and_a_help_text():
    tables = re.findall(r"<!-- options: ([\w.]+)\.(\w+) -->", REFERENCE)
    hints = typing.get_type_hints(Recipe)
    sections = [section for section in map(section_of, hints.values()) if section is not None]
    assert sorted(name for _, name in tables) == sorted(section.__name__ for section in [hf_glmd.GLMDConfig, Recipe, *sections])
    for module, name in tables:
        options = getattr(importlib.import_module(module), name)
        own = [field for field in dataclasses.fields(options) if field.name in options.__dict__["__annotations__"]]
        told = set(re.findall(r"^\| `(\w+)` \|.*\| \S.* \|$", HOOKS.options_table(options), flags=re.MULTILINE))
        sections_of_it = {field.name for field in own if options is Recipe and section_of(hints[field.name]) is not None}
        assert told == {field.name for field in own} - sections_of_it, name


def test_a_page_gets_its_tables_and_commands():
    page = SimpleNamespace(file=SimpleNamespace(src_uri="reference/training.md"))
    text = HOOKS.on_page_markdown("<!-- options: hf_glmd.GLMDConfig -->\n<!-- commands -->", page)
    assert "| `temperature` |" in text and "## hf-glmd shrink" in text and "--removed REMOVED" in text and "<!--" not in text


def test_the_first_page_begins_like_the_readme():
    page = SimpleNamespace(file=SimpleNamespace(src_uri="index.md"))
    text = HOOKS.on_page_markdown(text_of("docs/index.md"), page)
    for part in ("make demo", "| masked-word accuracy (n=4,856) ", "build_student(teacher", "](pictures/kl_over_steps.png)"):
        assert part in text and part.replace("pictures", "model_cards/quickstart/plots") in text_of("README.md")


def test_a_link_that_leads_out_of_the_site_is_text_there():
    page = SimpleNamespace(file=SimpleNamespace(src_uri="guides/hub.md"))
    assert HOOKS.on_page_markdown("[a](../../recipes/quickstart.yaml) [b](../index.md)", page) == "a [b](../index.md)"


def test_every_command_is_shown():
    shown = re.findall(r"^## hf-glmd (\w+)$", HOOKS.commands(), flags=re.MULTILINE)
    added = re.findall(r'add_parser\(\s*"(\w+)"', (ROOT / "hf_glmd/cli.py").read_text(encoding="utf-8"))
    assert sorted(shown) == sorted(added)
    assert "--mask-share" in HOOKS.commands() and "--general.FIELD" in HOOKS.commands()


@pytest.mark.parametrize("page", PAGES)
def test_commands_of_a_page_are_valid(page, tmp_path, monkeypatch):
    """Of ours all options, and the recipe that they change; of others' the files."""
    monkeypatch.chdir(tmp_path)
    for name in ("recipes", "Makefile"):
        (tmp_path / name).symlink_to(ROOT / name)
    copy_recipe("own_task")  # as pages say before they use it
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    for words in command_lines(page, "hf-glmd"):
        if words[-1] == "--help":  # prints and exits
            continue
        arguments = parsed(words[1:])
        recipe = getattr(arguments, "config", None)
        if words[1] == "distill":
            load_recipe(recipe, arguments.overrides)
            if arguments.accelerate is not None:
                accelerate_config(arguments.accelerate)
        elif words[1] in ("shrink", "cache"):
            options = ShrinkOptions if words[1] == "shrink" else CacheOptions
            build_section(options, recipe, given_options(arguments, options))
        elif words[1] == "recipes" and arguments.copy is not None:
            assert arguments.copy in recipe_names()
    for words in command_lines(page, "accelerate launch"):
        script = next(number for number, word in enumerate(words) if word.endswith(".py"))
        assert all(os.path.exists(word) for word in words[2:script] if word.endswith(".yaml")), words
        if words[script] == "recipes/glmd.py":
            assert words[script + 1] == "--config"
            load_recipe(words[script + 2], words[script + 3 :])
    for words in command_lines(page, "python"):
        script = (ROOT / words[1]).read_text(encoding="utf-8")
        assert all(f'"{word}"' in script for word in words[2:] if word.startswith("--") and word != "--help"), words
    for words in command_lines(page, "make"):
        assert {word for word in words[1:] if "=" not in word} <= set(targets), words


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "yaml")])
def test_yaml_of_a_page_is_part_of_a_valid_recipe(page):
    for text in blocks(page, "yaml"):
        build(Recipe, {"output_dir": "run", "teacher": {"model": "teacher"}} | yaml.safe_load(text), "")


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")])
def test_python_of_a_page_names_what_exists(page):
    for code in blocks(page, "python"):
        docs_helpers.check_python(code)


def test_python_that_names_nothing_is_found():
    with pytest.raises(AttributeError, match="GLMDConfg"):
        docs_helpers.check_python("from hf_glmd import GLMDConfg")
    with pytest.raises(AssertionError, match="short takes no learning_rte"):
        docs_helpers.check_python("from hf_glmd import GLMDConfig\nGLMDConfig.short('x', learning_rte=1)")


@pytest.mark.parametrize("page", PAGES)
def test_links_and_named_files_of_a_page_exist(page):
    """On GitHub; the site's own links are checked as it is built."""
    text = re.sub(r"^```.*?^```", "", text_of(page), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" not in target and not target.startswith("#"):
            assert (PAGES[page].parent / target.partition("#")[0]).exists(), target
    for path in re.findall(r"\b(?:recipes|model_cards|docs|tests)/[\w/.-]+\w", text_of(page)):
        assert (ROOT / path).exists(), path


def messages() -> list[str]:
    """The texts in the package's code, with ... where a value stands."""
    found = []
    for path in (ROOT / "hf_glmd").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "..." for part in node.values)
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_messages_that_are_explained_are_those_of_the_package():
    rows = re.findall(r"^\| `([^|]+)` \|", text_of("docs/troubleshooting.md"), flags=re.MULTILINE)
    known = messages()
    assert len(rows) >= 50
    unknown = []
    for row in rows:
        pattern = re.compile(".*".join(re.escape(part) for part in row.strip(". ").split("...")), flags=re.DOTALL)
        if not any(pattern.search(text) for text in known):
            unknown.append(row)
    assert not unknown


def test_a_reader_finds_the_way_in_two_clicks():
    """What people ask first, and the page that answers it: linked from the first page."""
    linked = set(re.findall(r"\]\(([\w/]+\.md)(?:#[\w-]+)?\)", text_of("docs/index.md")))
    assert linked >= {
        "settings.md",
        "guides/use_a_student.md",
        "guides/several_gpus.md",
        "guides/cost_of_a_cut.md",
        "guides/new_objective.md",
        "troubleshooting.md",
    }


def test_the_objective_of_the_guide_is_one(tmp_path):
    (code,) = blocks("docs/guides/new_objective.md", "python")
    before = list(kinds.OBJECTIVES)
    try:
        exec(code, {})
        student = training_helpers.student(hidden_size=24)
        trainer = training_helpers.trainer(tmp_path, model=student, objective="words_and_hidden", positions="masked")
        trainer.train()
        trainer.save_model(str(tmp_path / "saved"))
        assert "an objective of its maker's own" in (tmp_path / "saved" / "README.md").read_text(encoding="utf-8")
        batch = trainer.data_collator([{"input_ids": row} for row in training_helpers.rows(4)["input_ids"]])
        both = float(trainer.summed_loss(trainer.model, batch).detach())
    finally:
        kinds.OBJECTIVES[:] = before
    plain = training_helpers.trainer(tmp_path, model=trainer.model, temperature=1.0, positions="masked")
    words = float(plain.summed_loss(trainer.model, batch).detach())
    states = [
        model.eval()(**_read(batch), output_hidden_states=True).hidden_states[-1]
        for model in (trainer.model, plain.teacher.model)
    ]
    heads = [
        model.cls.predictions.transform(state) for model, state in zip((trainer.model, plain.teacher.model), states, strict=True)
    ]
    squares = nn.functional.mse_loss(*(head[batch["prediction_mask"]] for head in heads), reduction="none").mean(-1).sum()
    assert both == pytest.approx(words + float(squares.detach()), rel=1e-4) and squares > 0


def _read(batch):
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_valid_and_holds_no_output(path):
    content = json.loads(path.read_text(encoding="utf-8"))
    assert (content["nbformat"], content["metadata"]["kernelspec"]["name"]) == (4, "python3")
    cells = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    assert len({cell["id"] for cell in content["cells"]}) == len(content["cells"])
    docs_helpers.check_python("\n".join("".join(cell["source"]) for cell in cells))


def test_there_are_two_notebooks():
    assert [path.stem for path in NOTEBOOKS] == ["distil", "shrink"]


@pytest.mark.skipif(importlib.util.find_spec("mkdocstrings") is None, reason="needs the extra docs; `make docs` does the same")
def test_the_site_is_built_without_a_warning(tmp_path):
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    page = (tmp_path / "site/reference/training/index.html").read_text(encoding="utf-8")
    assert "mlm_probability" in page and "Share of the tokens that are masked" in page
