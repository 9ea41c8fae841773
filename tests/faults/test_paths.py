"""Names of folders and files that shells, formats and libraries read in their own ways: they work, or one line says why not."""

import json
import os
import shutil

import fault_helpers
import pytest
import recipe_helpers
import vocab_helpers
import yaml

from hf_glmd.cli import main

LONG = [
    "a b",
    "ünï-日本-😀",
    "it's",
    'say "so"',
    "50% %s %(a)s",
    "a:b",
    "#a&b;c|d",
    "$HOME {a} {{b}}",
    "~",
    ".hidden",
    "[ab]*?",
    "new\nline",
    "back\\slash",
    "bytes\udcff",
    "x" * 180,
    "x" * 300,
    "CON.txt",
    "model.safetensors",
    "corpus.json",
    "a=b,c",
    "-dash",
    "--json",
    "link",
    "trailing/",
    "./dots",
    "deep/er/still",
]
NAMES = LONG if fault_helpers.EVERYTHING else ['say "it\'s" 50% -日本', "-dash"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    vocab_helpers.tiny_model("bert").save_pretrained(folder / "bert")
    vocab_helpers.generic_tokenizer(model_max_length=24).save_pretrained(folder / "bert")
    (folder / "corpus.txt").write_text("\n".join(vocab_helpers.texts(60)))
    words = ["shrink", str(folder / "bert"), "--corpus", str(folder / "corpus.txt"), "--size", "131"]
    assert main([*words, "--output", str(folder / "small")]) == 0
    recipe = yaml.safe_load(recipe_helpers.write_inputs(folder).read_text())
    (folder / "recipe.json").write_text(json.dumps(recipe))
    return folder


def commands(inputs, model, small, corpus, output):
    """Every command with that model, cut model and corpus, and with that output."""
    bert, cut, text = str(inputs / "bert"), str(inputs / "small"), str(inputs / "corpus.txt")
    size, length, one = ["--size=131"], ["--max-length=16"], ["--no-speed"]
    return {
        "shrink a model": ["shrink", f"--corpus={text}", "--output=o1", *size, "--", model],
        "shrink with a corpus": ["shrink", bert, f"--corpus={corpus}", "--output=o2", *size],
        "shrink to": ["shrink", bert, f"--corpus={text}", f"--output={output}", *size],
        "shrink again": ["shrink", bert, f"--corpus={text}", f"--output={output}", *size, "--overwrite"],
        "report": ["report", "--", output],
        "inspect": ["inspect", f"--corpus={corpus}", "--", model],
        "inspect a plot": ["inspect", bert, f"--corpus={text}", f"--plot={output}.png"],
        "cache a model": ["cache", f"--data={text}", "--output=o3", *length, "--", model],
        "cache a corpus": ["cache", bert, f"--data={corpus}", "--output=o4", *length],
        "cache to": ["cache", bert, f"--data={text}", f"--output={output}_cache", *length],
        "evaluate": ["evaluate", f"--text={corpus}", *one, "--", small],
        "rebuild": ["rebuild", f"--output={output}_again", "--", model, f"{small}/vocab_map.safetensors"],
        "predict": ["predict", "--text=a", "--", small],
        "predict rows": ["predict", cut, f"--data={corpus}"],
        "push": ["push", "--dry-run", "--", small, "a/b"],
        "distill": ["distill", f"--config={inputs / 'recipe.json'}", "--dry-run", f"--teacher.model={model}"],
        "distill a corpus": ["distill", f"--config={inputs / 'recipe.json'}", "--dry-run", f"--corpus.name={corpus}"],
        "distill to": ["distill", f"--config={inputs / 'recipe.json'}", "--dry-run", f"--output_dir={output}"],
        "distill a recipe": ["distill", f"--config={corpus}", "--dry-run"],
    }


NEVER = {"predict", "predict rows", "distill a recipe"}
"""A model that knows no task, and a text that is no recipe."""

YAML = {"distill", "distill to"}
"""Values of recipes are YAML, in which these names mean something else."""

REFUSED = {"#a&b;c|d": YAML, "~": YAML, "[ab]*?": YAML, "new\nline": {*YAML, "distill a corpus"}, "trailing/": {"inspect a plot"}}


@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name)[1:30])
def test_odd_names_work_or_are_refused_in_one_line(name, inputs, tmp_path, monkeypatch, capsys, trials):
    """Relative ones, so that a name may begin with a dash."""
    plain, possible = name.rstrip("/"), "\udcff" not in name
    (tmp_path / "m").mkdir()
    try:
        for part, source in (("m", "bert"), ("s", "small")):
            if name == "link":
                (tmp_path / part).mkdir(exist_ok=True)
                (tmp_path / part / plain).symlink_to(inputs / source)
            else:
                shutil.copytree(inputs / source, tmp_path / part / plain)
        (tmp_path / "c" / plain).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(inputs / "corpus.txt", tmp_path / "c" / f"{plain}.txt")
    except OSError:
        possible = False
    monkeypatch.chdir(tmp_path / "m")  # where the model is named from, for a dash to come first
    output = f"{name}o" if name[0] == "-" else f"new{name}"
    for what, words in commands(inputs, name, f"../s/{name}", f"../c/{plain}.txt", output).items():
        with trials(f"{what} {name!r}"):
            try:
                status = main(words)
            except SystemExit as error:  # argparse's own refusal
                status = error.code
            said = capsys.readouterr()
            assert status in (0, 2), said.err[-2000:]
            if status == 2:
                assert "Traceback" not in said.err, said.err[-2000:]
                line = said.err.strip().splitlines()[-1]
                assert line.startswith("hf-glmd: "), said.err[-2000:]
                assert not possible or what in NEVER | REFUSED.get(name, set()), line


def test_files_whose_names_are_no_text_may_lie_anywhere(inputs, tmp_path, capsys, trials):
    """As an old disk or archive has them, in another encoding than UTF-8."""
    corpora, model, output = tmp_path / "corpora", tmp_path / "model", str(tmp_path / "out")
    shutil.copytree(inputs / "bert", model)
    corpora.mkdir()
    for folder in (corpora, model):
        shutil.copy(inputs / "corpus.txt", os.fsdecode(os.path.join(os.fsencode(folder), b"caf\xe9.txt")))
    text = str(inputs / "corpus.txt")
    for what, words in {
        "shrink": ["shrink", str(inputs / "bert"), "--corpus", str(corpora), "--output", output, "--size=131"],
        "shrink a folder with one": ["shrink", str(model), "--corpus", text, "--output", f"{output}2", "--size=131"],
        "inspect": ["inspect", str(model), "--corpus", str(corpora)],
        "cache": ["cache", str(inputs / "bert"), "--data", str(corpora), "--output", f"{output}3", "--max-length=16"],
        "evaluate": ["evaluate", str(model), "--text", str(corpora), "--no-speed"],
        "push": ["push", str(model), "a/b", "--dry-run"],
        "report": ["report", output],
    }.items():
        with trials(what):
            assert main(words) in (0, 2)
            assert "Traceback" not in capsys.readouterr().err
