"""A recipe's section `hub`, and `hf-glmd shrink --push-to-hub`: the result is here, whatever becomes of the push."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import recipe_helpers
import vocab_helpers
from hub_server import Fault
from huggingface_hub import ModelCard
from publishing_helpers import TOKEN, point_client_at, serving

from hf_glmd.cli import main, run_recipe_command

REPO = "someone/student"
CARD = "---\nlicense: mit\nlanguage: [en, de]\ndatasets: [someone/texts]\n---\n# A teacher\n"


@pytest.fixture
def hub(monkeypatch):
    with serving() as running:
        point_client_at(running, monkeypatch)
        yield running


def shrink(folder: Path, *words: str, size: int = 150) -> int:
    model = folder / "model"
    if not model.exists():
        vocab_helpers.tiny_model("bert").save_pretrained(model)
        vocab_helpers.generic_tokenizer().save_pretrained(model)
        (model / "README.md").write_text(CARD)
        (folder / "corpus.txt").write_text("\n".join(vocab_helpers.texts(80)), encoding="utf-8")
    given = ["--corpus", str(folder / "corpus.txt"), "--size", str(size), "--output", str(folder / "small")]
    return main(["shrink", str(model), *given, *words])


def test_a_smaller_model_is_made_and_pushed_by_one_command(hub, tmp_path, capsys):
    assert shrink(tmp_path, "--push-to-hub", REPO, "--private", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["pushed"]["repo"] == REPO and set(result["pushed"]["files"]) == hub.files(REPO).keys()
    assert {"model.safetensors", "tokenizer.json", "vocab_map.safetensors", "README.md"} <= hub.files(REPO).keys()
    assert hub.repositories[REPO].private


def test_its_card_has_the_rights_of_the_original_and_what_was_cut(hub, tmp_path):
    assert shrink(tmp_path, size=110) == 0
    card = ModelCard.load(tmp_path / "small" / "README.md")
    assert (card.data.license, card.data.language, card.data.datasets) == ("mit", ["en", "de"], ["someone/texts"])
    assert card.data.pipeline_tag == "fill-mask" and card.data.tags == ["glmd", "vocabulary-compression"]
    for text in ("Of 211 tokens, 110 stayed", "| vocabulary (tokens)", "The commonest tokens that were cut", "texts verified",
                 "hf-glmd", "Nothing was trained", "110 of the 211 tokens of model"):  # fmt: skip
        assert text in card.text, text
    assert str(tmp_path / "model") not in card.text.split("## How")[0]


def test_a_push_that_would_fail_is_found_before_the_counting(hub, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    assert shrink(tmp_path, "--push-to-hub", REPO) == 2
    assert "may only read" in capsys.readouterr().err and not (tmp_path / "small").exists()


def test_a_push_that_fails_leaves_the_smaller_model(hub, tmp_path, capsys):
    hub.faults = [Fault("503", "commit", times=99)]
    assert shrink(tmp_path, "--push-to-hub", REPO) == 2
    assert f"push it later: hf-glmd push {tmp_path / 'small'} {REPO}" in capsys.readouterr().err
    assert (tmp_path / "small" / "model.safetensors").is_file() and hub.files(REPO) == {}


@pytest.mark.slow
def test_a_recipe_pushes_its_student_at_the_end_and_again_when_that_failed(hub, tmp_path, monkeypatch, capsys):
    none = dict.fromkeys(("task", "task_teacher", "task_words", "task_answers"))
    section = {"repo": REPO, "private": True}
    measured = {"rows": 16, "curve_rows": 8, "speed_batch_sizes": [], "speed_length": 16}
    stage = {**recipe_helpers.STAGE, "max_steps": 2}
    recipe = str(recipe_helpers.write_inputs(tmp_path, hub=section, general=stage, evaluation=measured, **none))
    (tmp_path / "teacher" / "README.md").write_text(CARD)
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    assert run_recipe_command(["--config", recipe]) == 2
    assert "may only read" in capsys.readouterr().err and not (tmp_path / "out").exists()
    monkeypatch.setenv("HF_TOKEN", TOKEN)

    hub.faults = [Fault("reset", "commit", times=99)]
    assert run_recipe_command(["--config", recipe]) == 2
    said, student = capsys.readouterr(), tmp_path / "out" / "student"
    assert f"push it later: hf-glmd push {student} {REPO} --private" in said.err
    assert (tmp_path / "out" / "metrics.json").is_file() and "The student is in" in said.out and hub.files(REPO) == {}

    hub.faults = []
    assert run_recipe_command(["--config", recipe]) == 0
    assert "Finished earlier" in (printed := capsys.readouterr().out) and f"Pushed to {REPO}: {hub.url}" in printed
    files = {path.relative_to(student).as_posix(): path.read_bytes() for path in student.rglob("*") if path.is_file()}
    assert hub.repositories[REPO].private and hub.files(REPO).keys() == files.keys()
    assert {"vocab_map.safetensors", "README.md", "plots/long_tail.png"} <= files.keys()
    card = ModelCard(hub.files(REPO)["README.md"].decode())
    assert f'name = "{REPO}"' in card.text and card.data.license == "mit" and card.data.language == ["en", "de"]
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert not [path for path in written if TOKEN.encode() in path.read_bytes()]


def test_a_recipe_takes_no_token(tmp_path, capsys):
    recipe = str(recipe_helpers.write_inputs(tmp_path))
    assert run_recipe_command(["--config", recipe, "--general.hub_token", "hf_secret"]) == 2
    assert "HF_TOKEN" in (line := capsys.readouterr().err) and "hf_secret" not in line


def test_a_dry_run_says_where_it_would_go(tmp_path, capsys):
    recipe = str(recipe_helpers.write_inputs(tmp_path))
    assert run_recipe_command(["--config", recipe, "--dry-run", "--hub.repo", REPO]) == 0
    assert f"{REPO}, branch main" in capsys.readouterr().out
    assert run_recipe_command(["--config", recipe, "--dry-run", "--hub.repo", "a b"]) == 2
