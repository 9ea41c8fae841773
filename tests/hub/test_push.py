"""One folder, one commit, whatever the network does; each mistake one line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import vocab_helpers
from hub_server import Fault
from huggingface_hub import ModelCard
from publishing_helpers import TOKEN, environment, point_client_at, serving, shrunk_folder

from hf_glmd import ShrunkVocab, VocabShrinker
from hf_glmd.cli import main
from hf_glmd.errors import UsageError
from hf_glmd.hub.options import PushOptions
from hf_glmd.hub.push import push_folder
from hf_glmd.shrinking.shrunk_vocab import PLOT_FILE
from hf_glmd.vocab.vocab_map import VocabMap

REPO = "someone/smaller"


@pytest.fixture
def hub(monkeypatch):
    with serving() as running:
        point_client_at(running, monkeypatch)
        yield running


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return shrunk_folder(tmp_path_factory.mktemp("push") / "small")


def on_disk(folder: Path) -> dict[str, bytes]:
    """As it is pushed: the card's usage code names the repository."""
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    del files["SHA256SUMS"]  # of this folder, whose card is another
    named = files["README.md"].replace(f'name = "{folder}"'.encode(), f'name = "{REPO}"'.encode())
    return files | {"README.md": named}


def push(folder: Path, *words: str) -> int:
    return main(["push", str(folder), REPO, *words])


def test_one_commit_holds_everything(hub, folder, capsys):
    assert push(folder) == 0
    assert hub.files(REPO) == on_disk(folder)
    assert [commit.message for commit in hub.repositories[REPO].branches["main"]] == ["initial commit", "Upload model"]
    assert f"Pushed to {REPO}, branch main: {hub.url}/{REPO}/commit/" in capsys.readouterr().out


def test_a_map_goes_alone_with_a_card_that_says_how_to_rebuild(hub, tmp_path, capsys):
    (tmp_path / "corpus.txt").write_text("\n".join(vocab_helpers.texts(100)))
    tokenizer, base, small = vocab_helpers.fast_tokenizer("wordpiece"), tmp_path / "base", tmp_path / "small"
    tokenizer.save_pretrained(base)
    vocab_helpers.tiny_model("bert").save_pretrained(base)
    assert main(["shrink", str(base), "--corpus", str(tmp_path / "corpus.txt"), "--output", str(small)]) == 0
    assert push(small, "--map-only") == 0
    files = hub.files(REPO)
    assert set(files) == {"README.md", "vocab_map.safetensors"}
    card = files["README.md"].decode()
    assert "hf-glmd rebuild base vocab_map.safetensors --output smaller" in card and f"hf download {REPO}" in card
    assert all(digest in card for digest in VocabMap.load(small).origin.files.values())
    (tmp_path / "vocab_map.safetensors").write_bytes(files["vocab_map.safetensors"])
    assert main(["rebuild", str(base), str(tmp_path / "vocab_map.safetensors"), "--output", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (small / "model.safetensors").read_bytes()


def test_a_map_that_does_not_say_its_base_does_not_go_alone(hub, folder, capsys):
    assert VocabMap.load(folder).origin is None
    assert push(folder, "--map-only") == 2
    assert "does not say which model" in capsys.readouterr().err


def test_the_files_of_a_model_are_sent_in_parts(hub, folder):
    push(folder)
    assert hub.log.count("upload") > 3 and hub.log.count("complete") >= 1 and hub.log.count("verify") >= 2


def test_a_second_push_of_the_same_changes_nothing(hub, folder):
    push(folder)
    before = hub.state()
    assert push(folder) == 0 and hub.state() == before


def test_a_newer_version_replaces_the_older_one_and_what_belonged_to_it(hub, folder):
    hub.add_repository(REPO, {"vocab_map.safetensors": b"", "pytorch_model.bin": b"old", "vocab.txt": b"old", "LICENSE": b"mine",
                              "plots/old.png": b"", "last-checkpoint/model.safetensors": b"kept"})  # fmt: skip
    assert push(folder) == 0
    kept = {"LICENSE": b"mine", "last-checkpoint/model.safetensors": b"kept"}
    assert hub.files(REPO) == on_disk(folder) | kept


def test_other_content_stays_unless_told(hub, folder, capsys):
    hub.add_repository(REPO, {"README.md": b"# A cake", "cake.bin": b"x"})
    before = hub.state()
    assert push(folder) == 2 and hub.state() == before
    line = capsys.readouterr().err
    assert f"'{REPO}' exists and holds something else (README.md, cake.bin)" in line and "--overwrite" in line
    assert push(folder, "--overwrite") == 0 and hub.files(REPO) == on_disk(folder)


def test_a_private_repository_and_a_branch(hub, folder):
    assert push(folder, "--private", "--revision", "v2") == 0
    assert hub.repositories[REPO].private
    assert hub.files(REPO) == {} and hub.files(REPO, "v2") == on_disk(folder)


def test_a_name_alone_is_ones_own(hub, folder):
    assert main(["push", str(folder), "smaller"]) == 0 and hub.files(REPO) == on_disk(folder)


def test_a_dry_run_asks_nobody(hub, folder, monkeypatch, capsys):
    monkeypatch.delenv("HF_TOKEN")
    assert push(folder, "--dry-run") == 0
    shown = capsys.readouterr().out
    assert hub.log == [] and "Nothing was sent" in shown
    for name, data in on_disk(folder).items():
        assert any(name in line and f"{len(data):,}" in line for line in shown.splitlines())
    assert push(folder, "--dry-run", "--json") == 0
    assert json.loads(capsys.readouterr().out)["files"] == {name: len(data) for name, data in on_disk(folder).items()}


def test_training_state_and_hidden_files_stay_here(hub, folder, tmp_path):
    copy = shrunk_folder(tmp_path / "small")
    for name in ("optimizer.pt", "training_args.bin", "checkpoint-3/model.safetensors", ".cache/x", "trainer_state.json"):
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).write_bytes(b"x")
    assert push(copy) == 0 and hub.files(REPO).keys() == on_disk(folder).keys()


@pytest.mark.parametrize(
    ("token", "repo", "fault", "said"),
    [
        (None, REPO, None, "there is no access token for the Hub: run `hf auth login`, or set HF_TOKEN"),
        ("hf_unknown", REPO, None, "the Hub does not know the access token (401)"),
        ("hf_reader", REPO, None, "the access token may only read. Use one with write permission"),
        (TOKEN, "somebody-else/x", None, "the access token may not write there (403:"),
        (TOKEN, "a b/c", None, "'a b/c' cannot name a repository"),
        (TOKEN, "a/b/c", None, "'a/b/c' cannot name a repository"),
        (TOKEN, REPO, Fault("503", times=99), "is out of order (503: made up: 503), after several tries"),
        (TOKEN, REPO, Fault("reset", times=99), "cannot be reached ("),
        (TOKEN, REPO, Fault("403", "commit", times=99), "the access token may not write there (403: made up: 403)"),
        (TOKEN, REPO, Fault("412", "commit", times=99), "it was changed meanwhile (412: made up: 412)"),
        (TOKEN, REPO, Fault("413", "commit", times=99), "the Hub refused (413: made up: 413)"),
        (TOKEN, REPO, Fault("corrupt", "upload", times=99), "the Hub refused (400: The SHA-256 of the content does not match"),
        (TOKEN, REPO, Fault("400", "yaml", times=99), "'someone/smaller' was not pushed: Invalid metadata in README.md."),
    ],
)  # fmt: skip
def test_what_goes_wrong_is_said_in_one_line(hub, folder, monkeypatch, capsys, token, repo, fault, said):
    if token is None:
        monkeypatch.delenv("HF_TOKEN")
    else:
        monkeypatch.setenv("HF_TOKEN", token)
    hub.faults = [fault] if fault else []
    assert main(["push", str(folder), repo]) == 2
    shown = capsys.readouterr().err
    line = shown[shown.rindex("hf-glmd: ") :]  # bars of the client come before
    assert said in line and line.count("\n") == 1 and shown.count("hf-glmd: ") == 1
    assert token is None or token not in line
    if "cannot name" not in said:
        assert line.endswith(f"The folder is complete; push it later: hf-glmd push {folder} {repo}\n")
    assert not hub.repositories or hub.files(repo) == {}


def test_offline_mode_is_named(hub, folder, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert push(folder) == 2 and "HF_HUB_OFFLINE is set" in capsys.readouterr().err and hub.log == []


def test_no_network_is_named(hub, folder, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert push(folder) == 2
    assert "http://127.0.0.1:9 cannot be reached" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["missing", "file", "empty", "foreign", "run"])
def test_a_folder_that_is_not_ours_is_refused(hub, tmp_path, capsys, what):
    place = tmp_path / "x"
    if what == "file":
        place.write_text("")
    elif what != "missing":
        place.mkdir()
    if what == "foreign":
        (place / "config.json").write_text("{}")
        (place / "README.md").write_text("---\ntags: [cake]\n---\n")
    if what == "run":
        (place / "student").mkdir()
        (place / "student" / "README.md").write_text("x")
    assert push(place) == 2 and hub.log == []
    said = {
        "missing": "is not there",
        "file": "is a file",
        "empty": "holds nothing",
        "foreign": "is no model or vocabulary of hf_glmd",
        "run": f"Its model is in '{place / 'student'}': push that.",
    }
    assert said[what] in capsys.readouterr().err


def test_a_file_with_the_token_is_not_sent(hub, tmp_path, capsys):
    copy = shrunk_folder(tmp_path / "small")
    (copy / "NOTICE").write_text(f"export HF_TOKEN={TOKEN}")
    assert push(copy) == 2 and hub.repositories == {}
    line = capsys.readouterr().err
    assert "NOTICE' holds your access token" in line and TOKEN not in line


def test_folders_that_nobody_looks_into_are_named_too(hub, folder, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    for name in ("checkpoint-3", ".git", "_work", "runs"):
        (copy / name).mkdir()
        (copy / name / "file").write_text("x")
    (copy / ".env").write_text("SECRET=1")
    (tmp_path / "elsewhere").mkdir()
    (copy / "linked").symlink_to(tmp_path / "elsewhere")
    (copy / "1_Pooling").mkdir()
    (copy / "1_Pooling" / "config.json").write_text("{}")
    assert main(["push", str(copy), REPO]) == 0
    stays = [".env", ".git/", "_work/", "checkpoint-3/", "linked/", "runs/"]
    assert f"Not pushed, no part of a model: {', '.join(stays)}." in capsys.readouterr().out
    assert hub.files(REPO)["1_Pooling/config.json"] == b"{}" and not any(name.strip("/") in hub.files(REPO) for name in stays)


def test_what_is_no_part_of_a_model_stays_and_is_named(hub, tmp_path, capsys):
    copy = shrunk_folder(tmp_path / "small")
    stays = ["counts.safetensors", "credentials.json", "id_rsa", "notes.txt", "optimizer_0/bf16.pt", "server.pem"]
    stays += ["model_optimizer.safetensors", "tokenizer_secret.json", "train.jsonl"]
    for name in stays:
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).write_text("secret")
    assert push(copy) == 0
    assert hub.files(REPO) == {name: data for name, data in on_disk(copy).items() if name not in stays}
    assert f"Not pushed, no part of a model: {', '.join(sorted(stays))}." in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["outside", "dangling", "fifo", "damaged"])
def test_links_out_of_the_folder_and_damaged_files_are_refused(hub, tmp_path, capsys, kind):
    copy = shrunk_folder(tmp_path / "small")
    path, secret = copy / "LICENSE", tmp_path / "id_rsa"
    secret.write_text("secret")
    said = f"'{path}' is a link to '{secret}', outside of the folder"
    if kind == "outside":
        path.symlink_to(secret)
    elif kind == "dangling":
        path.symlink_to(copy / "nothing")
        said = f"'{path}' is a link to nothing: remove it"
    elif kind == "fifo":
        os.mkfifo(path)
        said = f"'{path}' is no plain file: remove it"
    else:
        path = copy / "tokenizer.json"
        path.write_text(path.read_text().replace("1", "2", 1))
        said = f"'{path}' is damaged: it is not what was written"
    assert push(copy) == 2 and hub.repositories == {}
    assert said in capsys.readouterr().err


def list_as_fifo(folder, sums):
    sums.unlink()
    os.mkfifo(sums)
    return "is no plain file"


def list_as_link(folder, sums):
    sums.unlink()
    sums.symlink_to("/dev/zero")
    return "is no plain file"


def list_that_leads_out(folder, sums):
    sums.write_text(sums.read_text() + "0" * 64 + "  ../id_rsa\n")
    return "is no sum of a file in this folder"


def link_to_itself(folder, sums):
    (folder / "LICENSE").symlink_to("LICENSE")
    return "is a link to nothing"


@pytest.mark.parametrize("change", [list_as_fifo, list_as_link, list_that_leads_out, link_to_itself])
def test_a_list_of_sums_that_cannot_be_is_refused(hub, tmp_path, capsys, change):
    copy = shrunk_folder(tmp_path / "small")
    said = change(copy, copy / "SHA256SUMS")
    assert push(copy) == 2 and hub.repositories == {}
    assert said in capsys.readouterr().err


ROUTES = ("whoami", "info", "auth", "create", "preupload", "batch", "upload", "complete", "verify", "commit")
KINDS = ("503", "502", "429", "reset", "lost", "403", "corrupt")


def outcome_of_push(hub, folder, fault: Fault, new: bool = False) -> str:
    """Of a push onto an earlier version of the model, or to a repository that is not there yet."""
    hub.faults, hub.objects, hub.repositories = [], {}, {}
    if not new:
        hub.add_repository(REPO, {"vocab_map.safetensors": b"old", "model.safetensors": b"old"})
    before = {} if new else hub.files(REPO)
    hub.faults = [fault]
    try:
        push_folder(PushOptions(str(folder), REPO))
        assert hub.files(REPO) == on_disk(folder)
        assert len(hub.repositories[REPO].branches["main"]) == 2  # one commit, though it may have been sent twice
        return "complete"
    except UsageError as error:
        assert "\n" not in str(error) and "push it later" in str(error) and TOKEN not in str(error)
        after = hub.files(REPO) if REPO in hub.repositories else {}
        return "unchanged" if after == before else "complete, unheard" if after == on_disk(folder) else "half done"


@pytest.mark.parametrize("times", [1, 99], ids=["once", "always"])
@pytest.mark.parametrize("kind", ["503", "502", "429", "reset", "lost", "403", "corrupt"])
def test_every_push_ends_complete_or_unchanged(hub, folder, kind, times, record_property):
    """Whatever request a fault strikes. What passes is got over, and what stays leaves the repository as it was."""
    outcomes = {}
    for route in ("upload",) if kind == "corrupt" else ROUTES:
        fault = Fault(kind, route, times=times)
        outcomes[route] = outcome_of_push(hub, folder, fault, new=route == "create")
        assert fault.done, f"no request was a {route}"
    record_property("outcomes", outcomes)
    passes = times == 1 and kind not in ("403", "corrupt")
    # A commit whose answer is lost, each time, is found to be there at the next try.
    for route, outcome in outcomes.items():
        assert outcome == ("complete" if passes or (kind, route) == ("lost", "commit") else "unchanged"), outcomes


@pytest.mark.parametrize("kind", ["503", "reset", "lost"])
def test_from_any_request_on_the_network_may_be_gone(hub, folder, kind):
    """The first so many requests are answered, and no other: there is no commit, or a whole one that nobody heard of."""
    outcome_of_push(hub, folder, Fault("200", first=10**6))
    requests = len(hub.log)
    outcomes = []
    for first in range(requests):
        outcomes.append(outcome_of_push(hub, folder, Fault(kind, first=first, times=10**6)))
    assert set(outcomes) == ({"unchanged", "complete, unheard"} if kind == "lost" else {"unchanged"}) and requests > 9


def test_a_pushed_model_is_loaded_by_its_name(hub, folder, tmp_path):
    """In a fresh process, with transformers alone."""
    push(folder)
    code = f"""
import sys, torch
from transformers import AutoModelForMaskedLM, AutoTokenizer
names = ({REPO!r}, {str(folder)!r})
ids = [AutoTokenizer.from_pretrained(name)("walking the marker", return_tensors="pt") for name in names]
logits = [AutoModelForMaskedLM.from_pretrained(name)(**given).logits for name, given in zip(names, ids)]
assert ids[0]["input_ids"].tolist() == ids[1]["input_ids"].tolist()
assert torch.equal(*logits) and "hf_glmd" not in sys.modules
print(tuple(logits[0].shape))
"""
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment(hub, tmp_path, token=None), cwd=tmp_path
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip().endswith(", 150)")


@pytest.fixture(scope="module")
def vocab():
    return VocabShrinker(vocab_helpers.generic_tokenizer()).count(vocab_helpers.texts(80)).shrink(size=110)


def test_a_vocabulary_alone_is_pushed_and_read_again(hub, vocab, tmp_path):
    pushed = vocab.push_to_hub("smaller", private=True)
    assert (pushed.repo, pushed.commit) == (REPO, hub.repositories[REPO].branches["main"][-1].sha)
    assert hub.repositories[REPO].private and "model.safetensors" not in hub.files(REPO)
    for name, data in hub.files(REPO).items():
        (tmp_path / name).write_bytes(data)
    read = ShrunkVocab.from_pretrained(tmp_path)
    assert read.tokenizer("walking").input_ids == vocab.tokenizer("walking").input_ids
    card = ModelCard.load(tmp_path / "README.md")
    assert f'name = "{REPO}"' in card.text and "A tokenizer with 110 of the 211 tokens" in card.text
    assert "pipeline_tag" not in card.data.to_dict() and f"({PLOT_FILE})" in card.text and PLOT_FILE in hub.files(REPO)


def test_a_vocabulary_goes_with_its_model_in_one_commit(hub, vocab):
    vocab.push_to_hub(REPO, model=vocab.resize(vocab_helpers.tiny_model("bert")), commit_message="Smaller")
    assert {"model.safetensors", "config.json", "tokenizer.json", "vocab_map.safetensors"} <= hub.files(REPO).keys()
    assert [commit.message for commit in hub.repositories[REPO].branches["main"][1:]] == ["Smaller"]
    assert ModelCard(hub.files(REPO)["README.md"].decode()).data.pipeline_tag == "fill-mask"


def test_a_vocabulary_that_cannot_be_pushed_says_how_to_do_it_later(hub, vocab):
    hub.faults = [Fault("503", "commit", times=99)]
    with pytest.raises(UsageError, match=r"vocab.save_pretrained\(FOLDER\), then hf-glmd push FOLDER someone/smaller$"):
        vocab.push_to_hub(REPO)
    assert hub.files(REPO) == {}
