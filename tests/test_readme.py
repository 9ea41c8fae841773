"""What the README promises is run."""

import json
import re
import shlex
import subprocess

import datasets
import recipe_helpers
import vocab_helpers
import yaml

from hf_glmd import ClozeTask, docstring_corpus
from hf_glmd.cli import parsed
from hf_glmd.models.loading import load_word_model
from hf_glmd.recipe.config import TaskSection, load_recipe
from hf_glmd.recipe.reading import build, build_section
from hf_glmd.shrinking.command import ShrinkOptions
from hf_glmd.utils.options import given_options
from hf_glmd.vocab.mapped_tokenizer import load_tokenizer

README = (recipe_helpers.ROOT / "README.md").read_text(encoding="utf-8")
GUIDES = recipe_helpers.ROOT / "docs" / "guides"


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def test_its_python_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("python")
    (shrinking,) = blocks("python", (GUIDES / "vocabulary.md").read_text(encoding="utf-8"))
    code = code.replace("max_steps=1000", 'max_steps=1, use_cpu=True, report_to="none"')
    assert "max_steps=1, " in code
    space = {
        "tokenizer": vocab_helpers.generic_tokenizer(),
        "teacher": vocab_helpers.tiny_model("bert"),
        "corpus": datasets.Dataset.from_dict({"text": vocab_helpers.texts(50)}),
    }
    # The tiny vocabulary is mostly single characters, which stay.
    exec(code.replace("size=0.5", "size=0.6"), space)
    assert space["student"].config.num_hidden_layers == 2 and space["student"].config.vocab_size == 127
    (tmp_path / "news.txt").write_text("\n".join(vocab_helpers.texts(40)))
    (tmp_path / "code.jsonl").write_text("".join(json.dumps({"content": text}) + "\n" for text in vocab_helpers.texts(9, seed=1)))
    space |= {"model": space["teacher"], "prompts": ["walking"], "held_out_texts": vocab_helpers.texts(9, seed=2)}
    exec(shrinking.replace("size=32_000", "size=150"), space)
    assert space["small"].config.vocab_size == 150


def test_its_python_teaches(tmp_path, monkeypatch):
    """With the teacher that comes along, which is stored in half precision: its KL on held-out text falls to under half."""
    monkeypatch.chdir(tmp_path)
    teacher = load_word_model(recipe_helpers.ROOT / "recipes/quickstart_teacher")
    corpus = docstring_corpus()
    rows, held_out = corpus["train"].select(range(1500)), corpus["test"].select(range(60))
    space = {"tokenizer": load_tokenizer(recipe_helpers.ROOT / "recipes/quickstart_teacher"), "teacher": teacher, "corpus": rows}
    short = 'max_steps=40, use_cpu=True, report_to="none", max_length=48, per_device_train_batch_size=16'
    code = blocks("python")[0].replace("max_steps=1000", short).replace("size=0.5", "size=0.25")
    exec(code.replace("GLMDTrainer(", "trainer = GLMDTrainer(").replace(").train()", ")"), space)
    trainer = space["trainer"]
    before = trainer.evaluate(held_out)["eval_kl"]
    trainer.train()
    assert trainer.evaluate(held_out)["eval_kl"] < before / 2


def test_its_commands_are_valid(monkeypatch):
    monkeypatch.chdir(recipe_helpers.ROOT)
    commands = [shlex.split(line, comments=True) for line in "".join(blocks("bash")).splitlines() if line.startswith("hf-glmd ")]
    assert {words[1] for words in commands} >= {"shrink", "distill", "report"}
    for words in commands:
        if words[-1] == "--help":  # prints and exits
            continue
        arguments = parsed(words[1:])
        if words[1] == "shrink":
            recipe = None if arguments.config is None else recipe_helpers.ROOT / arguments.config
            build_section(ShrinkOptions, recipe, given_options(arguments, ShrinkOptions))
        elif words[1] == "distill":
            load_recipe(arguments.config, arguments.overrides)


def test_it_is_short():
    assert README.count("\n") <= 160


def test_its_map_has_every_folder_and_five_steps_of_the_data():
    house = README.partition("## The house\n\n```\n")[2].partition("```")[0]
    folders = {line.split("/")[0] for line in house.splitlines() if not line.startswith(" ")}
    kept = subprocess.run(["git", "ls-files"], cwd=recipe_helpers.ROOT, capture_output=True, text=True).stdout.splitlines()
    there = {path.split("/")[0] for path in kept if "/" in path and not path.startswith(".")}
    assert folders == (there or folders)  # of an archive without git nothing is known
    steps = re.findall(r"^\d\. (.*)$", README, flags=re.MULTILINE)
    assert len(steps) == 5
    for path in re.findall(r"`([\w/]+(?:/|\.py))`", " ".join(steps)):
        assert (recipe_helpers.ROOT / "hf_glmd" / path).exists(), path


def test_its_files_exist():
    for path in re.findall(r"(?:recipes|model_cards)/[\w/.-]+\w", README):
        assert (recipe_helpers.ROOT / path).exists(), path


def test_its_task_is_one():
    (text,) = (text for text in blocks("yaml", (GUIDES / "recipes.md").read_text(encoding="utf-8")) if text.startswith("task:"))
    section = build(TaskSection, yaml.safe_load(text)["task"], "task")
    assert ClozeTask(section.name, section.pattern, section.verbalizers).columns == ["text"]


def test_the_recipes_are_valid_and_headed_by_their_command():
    recipes = sorted((recipe_helpers.ROOT / "recipes").glob("*.yaml"))
    assert len(recipes) >= 2
    for path in recipes:
        load_recipe(path)
        assert path.read_text().startswith(f"# accelerate launch recipes/glmd.py --config recipes/{path.name}\n")
