"""What the documentation says can be typed: commands parse, code runs where it can, every public name has its place."""

import ast
import dataclasses
import importlib
import importlib.util
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import recipe_helpers
import yaml
from torch import nn

import hf_glmd
from hf_glmd import GLMDConfig
from hf_glmd.cli import parsed
from hf_glmd.recipe.config import Recipe, TaskSection, load_recipe
from hf_glmd.recipe.reading import build, build_section
from hf_glmd.shrinking.checkpoint import ShrinkOptions
from hf_glmd.utils.options import given_options

DOCS = recipe_helpers.ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md"))
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def hooks():
    spec = importlib.util.spec_from_file_location("hooks", DOCS / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_public_name_stands_on_one_page_of_the_reference():
    text = "\n".join(page.read_text(encoding="utf-8") for page in (DOCS / "reference").glob("*.md"))
    listed = re.findall(r"^::: hf_glmd\.(\w+)$", text, flags=re.MULTILINE)
    assert sorted(listed) == sorted(set(hf_glmd.__all__) - {"__version__"})


@pytest.mark.parametrize("options", [GLMDConfig, Recipe, TaskSection])
def test_every_option_is_told_with_its_help(options):
    table = hooks().options_table(options)
    own = [field for field in dataclasses.fields(options) if field.name in options.__dict__["__annotations__"]]
    for field in own:
        if field.metadata.get("help"):
            told = re.escape(field.metadata["help"][:40])
            assert re.search(rf"^\| `{field.name}` \| .*\| {told}", table, re.MULTILINE), field.name
    assert len(own) > 5 and "`mask_replace_prob`" in hooks().options_table(GLMDConfig)


def test_a_page_gets_its_tables_and_commands():
    page = hooks().on_page_markdown("<!-- options: hf_glmd.GLMDConfig -->\n<!-- commands -->")
    assert "| `temperature` |" in page and "## hf-glmd shrink" in page and "--removed REMOVED" in page and "<!--" not in page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(DOCS).as_posix())
def test_what_a_page_says_can_be_typed(page, monkeypatch):
    monkeypatch.chdir(recipe_helpers.ROOT)
    for line in "".join(blocks(page, "bash")).splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["hf-glmd"] and words[-1] != "--help":
            arguments = parsed(words[1:])  # exits if it cannot be read
            if words[1] == "distill":
                load_recipe(arguments.config, arguments.overrides)
            elif words[1] == "shrink":
                recipe = None if arguments.config is None else recipe_helpers.ROOT / arguments.config
                build_section(ShrinkOptions, recipe, given_options(arguments, ShrinkOptions))
    for text in blocks(page, "yaml"):
        build(TaskSection, yaml.safe_load(text)["task"], "task")
    for code in blocks(page, "python"):
        check_imports(code)


def check_imports(code: str) -> None:
    """It compiles, and what it imports exists; other libraries may be missing here."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom):
            if not node.module.startswith("hf_glmd") and importlib.util.find_spec(node.module.split(".")[0]) is None:
                continue
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)


def test_links_lead_somewhere():
    for page in [recipe_helpers.ROOT / "README.md", *PAGES]:
        for link in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
            assert link.startswith("http") or (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_objective_of_the_guide_is_one(tmp_path):
    import training_helpers as helpers

    from hf_glmd.training.objectives import kinds

    (code,) = blocks(DOCS / "guides" / "new_objective.md", "python")
    before = list(kinds.OBJECTIVES)
    try:
        exec(code, {})
        student = helpers.student(hidden_size=24)
        trainer = helpers.trainer(tmp_path, model=student, objective="words_and_hidden", positions="masked")
        trainer.train()
        batch = trainer.data_collator([{"input_ids": row} for row in helpers.rows(4)["input_ids"]])
        both = float(trainer.summed_loss(trainer.model, batch).detach())
    finally:
        kinds.OBJECTIVES[:] = before
    plain = helpers.trainer(tmp_path, model=trainer.model, temperature=1.0, positions="masked")
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


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_can_be_read_and_has_no_outputs(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert notebook["nbformat"] == 4 and cells and all(not cell["outputs"] and cell["execution_count"] is None for cell in cells)
    check_imports("\n".join("".join(cell["source"]) for cell in cells))


def test_the_site_is_built_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install hf_glmd[docs]")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=recipe_helpers.ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    page = (tmp_path / "site" / "reference" / "training" / "index.html").read_text(encoding="utf-8")
    assert "mask_replace_prob" in page and "build_student" in page
