"""What a trainer puts on the Hub, at its end and on its way, and what stays here when it cannot."""

from __future__ import annotations

import logging
import shlex
from pathlib import Path

import datasets
import pytest
import torch
import training_helpers as helpers
import vocab_helpers
from hub_server import Fault
from huggingface_hub import ModelCard
from publishing_helpers import TOKEN, point_client_at, serving

from hf_glmd import GLMDTrainer, UsageError, VocabMap, VocabShrinker
from hf_glmd.cli import main

REPO = "someone/student"
HIDDEN = "hf_given_by_hand"
TRAINING_STATE = {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"}


@pytest.fixture
def hub(monkeypatch):
    with serving() as running:
        running.tokens[HIDDEN] = ("someone", "write")
        point_client_at(running, monkeypatch)
        yield running


@pytest.fixture(scope="module")
def vocab():
    return VocabShrinker(helpers.TOKENIZER).count(vocab_helpers.texts(80)).shrink(size=150)


def trainer(folder: Path, vocab, **settings) -> GLMDTrainer:
    """Of a student with 150 of the teacher's 211 words, that saves twice in four steps."""
    rows = datasets.Dataset.from_dict({"text": vocab_helpers.texts(60)})
    settings = {"save_strategy": "steps", "save_steps": 2, "max_length": 16, **settings}
    return GLMDTrainer(
        model=vocab.resize(helpers.student()),
        teacher=settings.pop("teacher", None) or helpers.teacher(),
        args=helpers.arguments(folder, **settings),
        train_dataset=rows,
        eval_dataset=rows.select(range(9)),
        processing_class=vocab.tokenizer,
        vocab_map=vocab.vocab_map,
    )


def pushed_names(hub, prefix: str = "") -> set[str]:
    """Of the files in the repository, those of a whole model among them."""
    names = {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab_map.safetensors"}
    assert {prefix + name for name in names} <= hub.files(REPO).keys()
    return set(hub.files(REPO))


def test_the_end_of_training_is_one_commit_with_everything(hub, vocab, tmp_path):
    made = trainer(tmp_path / "out", vocab, hub_model_id=REPO, eval_strategy="steps", eval_steps=4)
    made.train()
    commit = made.push_to_hub(language="en", license="mit", tags="mine", dataset_tags=["someone/texts"], dataset="some texts")
    names = pushed_names(hub)
    assert commit.oid == hub.repositories[REPO].branches["main"][-1].sha and len(hub.repositories[REPO].branches["main"]) == 2
    assert not any("checkpoint" in name or "training_args" in name for name in names)
    assert hub.files(REPO)["model.safetensors"] == (tmp_path / "out" / "model.safetensors").read_bytes()
    card = ModelCard(hub.files(REPO)["README.md"].decode())
    assert card.data.license == "mit" and card.data.language == ["en"]
    assert {"glmd", "distillation", "vocabulary-compression", "mine"} <= set(card.data.tags)
    assert card.data.datasets == ["someone/texts"] and "Data: some texts." in card.text
    assert f'name = "{REPO}"' in card.text and "4 of 4 steps of 6 rows" in card.text
    assert {result.metric_type for result in card.data.eval_results} == {"agreement", "kl"}


def test_saving_pushes_when_that_was_asked_for(hub, vocab, tmp_path):
    made = trainer(tmp_path / "out", vocab, push_to_hub=True, hub_model_id=REPO, hub_strategy="end", hub_private_repo=True)
    assert hub.repositories[REPO].private and hub.files(REPO) == {}
    made.train()
    assert hub.files(REPO) == {}
    made.save_model()
    pushed_names(hub)


@pytest.mark.parametrize("strategy", ["every_save", "checkpoint", "all_checkpoints"])
def test_checkpoints_are_pushed_with_all_that_belongs_to_them(hub, vocab, tmp_path, strategy):
    """The Trainer's own push would leave the vocabulary map behind. The report lies beside the checkpoints."""
    out = tmp_path / "out"
    vocab.save_pretrained(out)
    settings = {"push_to_hub": True, "hub_model_id": REPO, "hub_strategy": strategy, "hub_always_push": True}
    trainer(out, vocab, save_total_limit=1, **settings).train()
    names = pushed_names(hub)
    assert "vocab_report.json" in names and not TRAINING_STATE & names
    messages = [commit.message for commit in hub.repositories[REPO].branches["main"]]
    assert messages == ["initial commit", "Training in progress, step 2", "Training in progress, step 4"]
    for folder in {"checkpoint": ["last-checkpoint"], "all_checkpoints": ["checkpoint-2", "checkpoint-4"]}.get(strategy, []):
        assert {f"{folder}/{name}" for name in TRAINING_STATE} <= pushed_names(hub, f"{folder}/")
    assert not list(out.glob("_push-*"))


@pytest.mark.parametrize("strategy", ["every_save", "checkpoint", "all_checkpoints"])
def test_a_second_run_finds_the_first_ones_repository(hub, tmp_path, strategy):
    """Without a vocabulary map it is the card alone that tells whose it is; the Hub may not have read it yet."""
    rows = datasets.Dataset.from_dict({"text": vocab_helpers.texts(60)})
    settings = {"push_to_hub": True, "hub_model_id": REPO, "hub_strategy": strategy, "hub_always_push": True}
    settings |= {"save_strategy": "steps", "save_steps": 2, "max_length": 16}
    for name in ("first", "second"):
        made = GLMDTrainer(
            model=helpers.student(),
            teacher=helpers.teacher(),
            args=helpers.arguments(tmp_path / name, **settings),
            train_dataset=rows,
            processing_class=helpers.TOKENIZER,
        )
        made.train()
        made.push_to_hub()
    assert "vocab_map.safetensors" not in hub.files(REPO)
    assert len(hub.repositories[REPO].branches["main"]) > 3


def test_training_goes_on_from_a_pushed_checkpoint(hub, vocab, tmp_path):
    trainer(tmp_path / "out", vocab, push_to_hub=True, hub_model_id=REPO, hub_strategy="checkpoint", hub_always_push=True).train()
    for name, data in hub.files(REPO).items():
        (tmp_path / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "copy" / name).write_bytes(data)
    made = trainer(tmp_path / "more", vocab, max_steps=6)
    made.train(resume_from_checkpoint=str(tmp_path / "copy" / "last-checkpoint"))
    assert made.state.global_step == 6


def test_a_push_in_the_background_that_fails_is_logged_and_training_goes_on(hub, vocab, tmp_path, caplog):
    made = trainer(tmp_path / "out", vocab, push_to_hub=True, hub_model_id=REPO, hub_always_push=True)
    hub.faults = [Fault("503", "commit", times=99)]
    before = hub.state()
    with caplog.at_level(logging.WARNING):
        made.train()
    assert made.state.global_step == 4 and hub.state() == before
    assert f"push it later: hf-glmd push {tmp_path / 'out'} {REPO}" in caplog.text and TOKEN not in caplog.text


def test_a_failed_push_leaves_a_complete_folder_and_the_command_works(hub, vocab, tmp_path):
    made = trainer(tmp_path / "out", vocab, hub_model_id=REPO)
    hub.faults = [Fault("reset", "commit", times=99)]
    with pytest.raises(UsageError, match="hf-glmd push") as failed:
        made.push_to_hub()
    assert hub.files(REPO) == {}
    hub.faults = []
    assert main(shlex.split(str(failed.value).split("hf-glmd ")[1])) == 0
    pushed_names(hub)


def test_not_waiting_gives_a_future(hub, vocab, tmp_path):
    made = trainer(tmp_path / "out", vocab, hub_model_id=REPO)
    assert made.push_to_hub(blocking=False).result(timeout=60).oid == hub.repositories[REPO].branches["main"][-1].sha


@pytest.mark.parametrize("mistake", ["no token", "reader", "foreign"])
def test_what_would_fail_at_the_end_fails_before_training(hub, vocab, tmp_path, monkeypatch, mistake):
    if mistake == "no token":
        monkeypatch.delenv("HF_TOKEN")
    if mistake == "reader":
        monkeypatch.setenv("HF_TOKEN", "hf_reader")
    if mistake == "foreign":
        hub.add_repository(REPO, {"cake.txt": b""})
    said = {"no token": "there is no access token", "reader": "may only read", "foreign": "holds something else"}[mistake]
    with pytest.raises(UsageError, match=said):
        trainer(tmp_path / "out", vocab, push_to_hub=True, hub_model_id=REPO)
    if mistake == "foreign":
        trainer(tmp_path / "out", vocab, push_to_hub=True, hub_model_id=REPO, hub_overwrite=True).push_to_hub()
        assert "cake.txt" not in pushed_names(hub)


def test_the_token_is_in_no_file(hub, vocab, tmp_path, monkeypatch, caplog):
    """Given by hand, as an argument of the Trainer, which pickles its arguments."""
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("sys.argv", ["train.py", "--hub_token", HIDDEN])
    settings = {"hub_token": HIDDEN, "push_to_hub": True, "hub_model_id": REPO, "hub_strategy": "all_checkpoints"}
    made = trainer(tmp_path / "out", vocab, **settings)
    with caplog.at_level(logging.DEBUG):
        made.train()
        made.push_to_hub()
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert {"training_args.bin", "README.md", "trainer_state.json"} <= {path.name for path in written}
    assert not [path for path in written if HIDDEN.encode() in path.read_bytes()]
    assert not [name for name, data in hub.files(REPO).items() if HIDDEN.encode() in data]
    assert HIDDEN not in caplog.text and made.args.hub_token == HIDDEN
    assert "--hub_token <token>" in (tmp_path / "out" / "README.md").read_text()
    assert torch.load(tmp_path / "out" / "training_args.bin", weights_only=False).hub_token is None


def test_every_checkpoint_has_a_card_that_says_how_far_it_is(vocab, tmp_path):
    made = trainer(tmp_path / "out", vocab, eval_strategy="steps", eval_steps=2)
    made.train()
    for step in (2, 4):
        folder = tmp_path / "out" / f"checkpoint-{step}"
        card = ModelCard.load(folder / "README.md")
        assert f"{step:,} of 4 steps" in card.text and f"step {step} (nats)" in card.text
        assert card.data.pipeline_tag == "fill-mask" and "base_model" not in card.data.to_dict()
        assert "Of 211 tokens, 150 stayed." in card.text and VocabMap.load(folder).size == 150


def test_the_card_has_the_rights_of_the_teachers_card(vocab, tmp_path):
    helpers.teacher().save_pretrained(tmp_path / "big-one")
    helpers.TOKENIZER.save_pretrained(tmp_path / "big-one")
    (tmp_path / "big-one" / "README.md").write_text("---\nlicense: bsd-3-clause\nlanguage: fr\n---\n")
    made = trainer(tmp_path / "out", vocab, teacher=str(tmp_path / "big-one"))
    made.save_model()
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.license == "bsd-3-clause" and card.data.language == ["fr"]
    assert "distilled from big-one by" in card.text and "base_model" not in card.data.to_dict()


def test_what_a_trainer_saved_is_reported_and_its_log_stays_here(tmp_path, capsys):
    trainer = helpers.trainer(tmp_path / "run", max_steps=4, eval_strategy="steps", eval_steps=2, logging_steps=2)
    trainer.train()
    trainer.save_model(tmp_path / "saved")
    assert main(["report", str(tmp_path / "saved")]) == 0
    page = (tmp_path / "saved" / "report.html").read_text()
    kl = [entry["eval_kl"] for entry in trainer.state.log_history if "eval_kl" in entry]
    assert len(kl) == 2 and f"{kl[-1]:.3f}" in page
    assert (tmp_path / "saved" / "trainer_state.json").exists() and "trainer_state.json" in TRAINING_STATE  # which is not pushed
