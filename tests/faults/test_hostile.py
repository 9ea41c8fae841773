"""Files and numbers that nobody should have to trust: each ends in one line, and nothing runs or leaks."""

import contextlib
import copy
import itertools
import json
import os
import random
import subprocess
import sys

import fault_helpers
import pytest
import recipe_helpers
import training_helpers
import transformers
import vocab_helpers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hf_glmd import GLMDTrainer, VocabShrinker
from hf_glmd.cli import main, run_recipe_command
from hf_glmd.errors import UsageError
from hf_glmd.hub import push as hub_push
from hf_glmd.reports.card import Card
from hf_glmd.vocab.mapped_tokenizer import load_tokenizer

FILES = 2000 if fault_helpers.EVERYTHING else 40
TOKEN = "hf_" + "Ab1" * 12
TOKENS = [TOKEN, "x_" + TOKEN, TOKEN.replace("hf_", "hf_oauth_"), TOKEN.replace("hf_", "api_org_")]


def last_line(capsys):
    return capsys.readouterr().err.strip().splitlines()[-1]


def saved(folder, change=None):
    """A WordPiece tokenizer's folder; `change` mends its tokenizer.json for the worse."""
    vocab_helpers.generic_tokenizer(model_max_length=24).save_pretrained(folder)
    if change is not None:
        file = folder / "tokenizer.json"
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))
    return folder


def set_id(number):
    def change(content):
        content["model"]["vocab"]["walk"] = number

    return change


def drop_unknown(content):
    vocabulary = content["model"]["vocab"]
    vocabulary["[OTHER]"] = vocabulary.pop("[UNK]")
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != "[UNK]"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_id(2**31), "the id 2147483648, among 211 tokens: tokenizer.json is damaged"),
        (set_id(10**8), "the id 100000000, among 211 tokens"),
        (set_id(7), "the same id 7"),
    ],
)
def test_a_vocabulary_that_cannot_be_is_refused_as_such(tmp_path, change, message):
    with pytest.raises(UsageError, match=message):
        load_tokenizer(saved(tmp_path, change))


def test_a_vocabulary_without_its_unknown_token_is_refused(tmp_path):
    saved(tmp_path, drop_unknown)
    with pytest.raises(UsageError, match=r"names '\[UNK\]' as its unknown token, and has no such token"):
        VocabShrinker(PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_file(str(tmp_path / "tokenizer.json"))))


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
def test_the_damaged_file_is_the_one_that_is_named(tmp_path, file):
    saved(tmp_path)
    (tmp_path / file).write_text((tmp_path / file).read_text()[:-30])
    with pytest.raises(UsageError, match=f"Its {file} is damaged: copy it once more"):
        load_tokenizer(tmp_path)


def mutated(content, drawn):
    """One value somewhere in a tokenizer.json is another, gone, or of another type."""
    content = copy.deepcopy(content)
    place = content
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return content
        key = drawn.choice(keys)
        deeper = isinstance(place[key], dict | list) and place[key] and drawn.random() < 0.85
        if not deeper:
            break
        place = place[key]
    kinds = (None, -1, 2**31, 2**63, 10**8, 0.5, "", "x\x00", [], {}, True, "unk", [[["a"]]], {"type": "Nothing"})
    if drawn.random() < 0.2:
        del place[key]
    else:
        place[key] = drawn.choice(kinds)
    return content


def test_mutated_tokenizers_are_cut_right_or_refused_in_one_line(tmp_path, trials):
    """Loaded, counted, cut and verified: either everything holds, or it is a UsageError; nothing else, and no hanging."""
    texts, whole = vocab_helpers.texts(25), {}
    for kind in vocab_helpers.BACKENDS:
        vocab_helpers.fast_tokenizer(kind).save_pretrained(tmp_path / kind)
        whole[kind] = json.loads((tmp_path / kind / "tokenizer.json").read_text())
    cut = refused = 0
    for number, kind in zip(range(FILES), itertools.cycle(whole), strict=False):
        file, drawn = tmp_path / kind / "tokenizer.json", random.Random(number)
        file.write_text(json.dumps(mutated(whole[kind], drawn)))
        with trials(f"{kind} {number}"), panics_are_errors():
            try:
                vocab = VocabShrinker(load_tokenizer(tmp_path / kind)).count(texts, progress=False).shrink(size=0.8)
                vocab.verify(texts, progress=False)
                cut += 1
            except UsageError:
                refused += 1
    assert cut and refused


@contextlib.contextmanager
def panics_are_errors():
    """The tokenizers library's PanicException is a BaseException."""
    try:
        yield
    except Exception:
        raise
    except BaseException as error:
        raise AssertionError(f"{type(error).__name__}: {error}") from error


@pytest.mark.parametrize("text", [r"{{ '\x' }}", r"{{ 'a\U1' }}", "{{ '\\\\' }}"])
def test_a_broken_escape_in_a_chat_template_is_read_as_it_stands(text):
    tokenizer = vocab_helpers.generic_tokenizer()
    tokenizer.chat_template = text
    assert VocabShrinker(tokenizer).count(vocab_helpers.texts(20), progress=False).shrink(size=0.8).report.size


def gpt2_like(folder):
    """A causal model whose tokenizer has an end token and none that pads, as GPT-2's and Llama's."""
    backend = Tokenizer(
        models.WordLevel(
            {word: i for i, word in enumerate([*{*" ".join(vocab_helpers.texts(40)).split()}, "<unk>", "<end>"])}, "<unk>"
        )
    )
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="<end>", model_max_length=24)
    tokenizer.save_pretrained(folder)
    config = transformers.GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=24)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def test_a_tokenizer_without_a_padding_token_is_used_as_it_is_published(tmp_path, capsys):
    model = gpt2_like(tmp_path / "gpt2")
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(vocab_helpers.texts(40)))
    assert main(["evaluate", str(model), "--text", str(corpus), "--no-speed"]) == 0
    assert main(["cache", str(model), "--data", str(corpus), "--output", str(tmp_path / "cache")]) == 0
    tokenizer = load_tokenizer(model)
    trainer = GLMDTrainer(
        str(model), str(model), training_helpers.arguments(tmp_path / "out"), vocab_helpers.texts(40), processing_class=tokenizer
    )
    trainer.train()
    assert "pad_token" not in json.loads((model / "tokenizer_config.json").read_text())


@pytest.mark.parametrize(
    "words",
    [
        ["shrink", "x", "--corpus", "y", "--output", TOKEN],
        ["push", "x", f"someone/{TOKEN}"],
        ["distill", "--config", "x.yaml", "--corpus.config", TOKEN],
        ["evaluate", "x", "--text", f"{TOKEN}.txt"],
    ],
)
@pytest.mark.parametrize("token", TOKENS)
def test_an_access_token_in_any_argument_is_refused_and_not_repeated(words, token, capsys):
    assert main([word.replace(TOKEN, token) for word in words]) == 2
    said = capsys.readouterr()
    assert "holds an access token of the Hub" in said.err and token not in said.err + said.out


def test_an_access_token_in_a_recipe_is_refused_and_not_repeated(tmp_path, capsys):
    path = recipe_helpers.write_inputs(tmp_path, hub={"repo": "a/b", "revision": TOKEN})
    assert run_recipe_command(["--config", str(path)]) == 2
    said = capsys.readouterr()
    assert "holds an access token of the Hub" in said.err and TOKEN not in said.err + said.out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--vocab.size", ".inf"], "vocab.size=inf is not a finite number"),
        (["--general.learning_rate", ".nan"], "learning_rate=nan is not a finite number"),
        (["--general.temperature", "1e30"], "temperature=1e+30 is out of range"),
        (["--task_teacher.learning_rate", "-1"], "learning_rate=-1.0 is too small"),
        (["--vocab.coverage", "1e400"], "vocab.coverage='1e400' is not a finite number"),
        (["--max_length", "99999999999999999999"], "max_length"),
    ],
)
def test_numbers_that_make_no_sense_are_refused_before_any_work(tmp_path, capsys, options, message):
    path = recipe_helpers.write_inputs(tmp_path)
    assert run_recipe_command(["--config", str(path), *options]) == 2
    assert message in last_line(capsys) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("size", ["inf", "nan", "-inf", "1e400"])
def test_sizes_that_are_no_numbers_are_refused(tmp_path, capsys, size):
    assert main(["shrink", str(tmp_path), "--corpus", "x", "--output", str(tmp_path / "y"), f"--size={size}"]) == 2
    assert "is not a finite number" in last_line(capsys)


@pytest.mark.parametrize("rate", ["1e6", "1e12"])
def test_a_run_that_explodes_publishes_nothing(tmp_path, capsys, rate):
    stage = {**recipe_helpers.STAGE, "max_steps": 6, "max_grad_norm": 0, "optim": "sgd", "lr_scheduler_type": "constant"}
    parts = {"general": stage, "threads": 1} | dict.fromkeys(("task", "task_teacher", "task_words", "task_answers"))
    path = recipe_helpers.write_inputs(tmp_path, **parts)
    assert run_recipe_command(["--config", str(path), "--general.learning_rate", rate]) == 2
    said = capsys.readouterr().err
    (said,) = [line for line in said.splitlines() if line.startswith("glmd.py: ")]  # a bar is in nobody's way
    assert "the loss is not finite at step" in said or "nothing is published, for the student is further" in said, said
    assert not (tmp_path / "out" / "student").exists() and not (tmp_path / "out" / "metrics.json").exists()


def test_what_is_refused_as_worse_is_published_as_the_refusal_says(tmp_path, capsys):
    """The same command with the option goes on where it stopped: no second training."""
    stage = {**recipe_helpers.STAGE, "max_steps": 6, "optim": "sgd", "lr_scheduler_type": "constant", "learning_rate": 30.0}
    parts = {"general": stage, "threads": 1} | dict.fromkeys(("task", "task_teacher", "task_words", "task_answers"))
    path = recipe_helpers.write_inputs(tmp_path, **parts)
    assert run_recipe_command(["--config", str(path)]) == 2
    said = capsys.readouterr().err
    assert "nothing is published, for the student is further" in said and "--evaluation.accept_worse true" in said
    assert not (tmp_path / "out" / "student").exists()
    assert run_recipe_command(["--config", str(path), "--evaluation.accept_worse", "true"]) == 0
    assert (
        "Going on with the run" in "".join(capsys.readouterr()) and (tmp_path / "out" / "student" / "model.safetensors").exists()
    )


def test_a_licence_that_links_to_code_is_no_link():
    card = Card.__new__(Card)
    for link, linked in (("javascript:alert(1)", False), ("https://example.com/licence", True), ("LICENSE.md", True)):
        card.source = type("Source", (), {"license": "other", "license_name": "mine", "license_link": link})()
        assert (f"]({link})" in card._licence()) is linked


def test_a_process_that_is_killed_is_named_with_its_signal(tmp_path):
    """As the kernel does when memory runs out."""
    (tmp_path / "hf_glmd_killed.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    code = (
        "import sys; from hf_glmd.recipe import launch\n"
        "from accelerate.commands import launch as real\n"
        "parser = real.launch_command_parser()\n"
        "class Parser:\n"
        "    def parse_args(self, words):\n"
        "        return parser.parse_args([*words[:words.index('--module') + 1], 'hf_glmd_killed'])\n"
        "real.launch_command_parser = Parser\n"
        "try:\n    print(launch.launch(['distill'], 'ddp', 2))\nexcept ValueError as error:\n    print(error)"
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=200)
    assert "was ended by SIGKILL: if nobody did that, there was not enough memory" in done.stdout, done.stderr[-2000:]


def test_a_hub_that_never_answers_is_given_up(monkeypatch, tmp_path, capsys):
    import socket

    from huggingface_hub import constants, set_client_factory
    from huggingface_hub.utils import _http

    set_client_factory(_http.default_client_factory)
    monkeypatch.setattr(hub_push, "ANSWER_S", 0.2)
    monkeypatch.setattr(hub_push, "RETRIES", 1)
    monkeypatch.setattr(hub_push, "FIRST_WAIT_S", 0.01)
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    with socket.create_server(("127.0.0.1", 0)) as silent:  # it accepts, and says nothing
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", endpoint)
        with pytest.raises(UsageError, match="cannot be reached"):
            hub_push.HubTarget("someone/smaller").check()
    set_client_factory(_http.default_client_factory)
