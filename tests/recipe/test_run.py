"""The whole recipe, as a user runs it: in processes of its own, one and two of them, killed and resumed, and with bad input."""

import json
import re
import subprocess
import sys

import pytest
import recipe_helpers
import yaml

from hf_glmd import GLMDTrainer
from hf_glmd.cli import run_recipe_command
from hf_glmd.reports.records import RunRecord
from hf_glmd.vocab.mapped_tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(folder, what was printed) of a run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("recipe")
    done = recipe_helpers.launch(recipe_helpers.write_inputs(folder))
    assert done.returncode == 0, done.stdout[-4000:]
    return folder, done.stdout


def test_it_writes_what_it_promises(finished):
    folder, _ = finished
    names = {str(path.relative_to(folder / "out")) for path in (folder / "out").rglob("*") if path.is_file()}
    student = {
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab_map.safetensors",
        "cloze_task.json",
        "README.md",
    }
    assert {f"student/{name}" for name in student} <= names
    plots = {
        f"{place}{name}.png" for place in ("plots/", "student/plots/") for name in ("long_tail", "parameters", "kl_over_steps")
    }
    assert plots | {"metrics.json", "run.json"} <= names
    assert not any("checkpoint" in name or name.endswith(".part") for name in names)


def test_its_student_answers_as_its_card_says(finished):
    """The code of the card, in a process of its own; the answers are those that were scored."""
    folder, _ = finished
    student = folder / "out" / "student"
    blocks = re.findall(r"```python\n(.*?)```", (student / "README.md").read_text(), flags=re.DOTALL)
    [code] = [block for block in blocks if "ClozeClassifier" in block]
    rows = [json.loads(line) for line in (folder / "corpus.jsonl").read_text().splitlines()][:20]
    code = (
        code.replace('["..."]', repr([row["text"] for row in rows]))
        + "\nprint(classifier.max_length, classifier.task.metric_name)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    answers, settings = done.stdout.splitlines()
    assert set(json.loads(answers.replace("'", '"'))) <= {"yes", "no"} and answers.count("'") == 40, done.stderr
    assert settings == "40 accuracy"


@pytest.mark.parametrize("fast", [True, False])
def test_bf16_is_used_where_the_device_has_it(tmp_path, monkeypatch, capsys, fast):
    monkeypatch.setattr("hf_glmd.recipe.stages.has_fast_bf16", lambda device: fast)
    monkeypatch.setattr("hf_glmd.training.token_mean.has_fast_bf16", lambda device: fast)
    stage = {**recipe_helpers.STAGE, "max_steps": 2, "bf16": "auto"}
    parts = {"general": stage} | dict.fromkeys(("task", "task_teacher", "task_words", "task_answers"))
    seen, train = [], GLMDTrainer.train
    monkeypatch.setattr(GLMDTrainer, "train", lambda self, **options: (seen.append(self.args.bf16), train(self, **options))[1])
    assert run_recipe_command(["--config", str(recipe_helpers.write_inputs(tmp_path, **parts))]) == 0
    assert seen == [fast]
    assert ("In fp32 (bf16: auto): " in capsys.readouterr().out) is not fast
    assert not (tmp_path / "out" / "student" / "cloze_task.json").exists()


def test_it_measures_what_it_says(finished):
    folder, printed = finished
    record = RunRecord.load(folder / "out" / "metrics.json")
    assert (record.teacher.layers, record.student.layers) == (4, 2)
    assert (record.teacher.vocabulary, record.student.vocabulary) == (211, 131)
    assert record.student.embedding_parameters == 131 * 32
    assert record.student.file_bytes == (folder / "out" / "student" / "model.safetensors").stat().st_size
    assert record.words_general.kl < record.words_start.kl
    assert record.words_start.positions == record.words_final.positions > 20
    assert [stage.name for stage in record.stages] == ["general", "task_teacher", "task_words", "task_answers"]
    assert [stage.steps for stage in record.stages] == [12, 4, 4, 4]
    assert record.stages[0].steps_evaluated == [0, 4, 8, 12] and record.stages[0].kl[-1] < record.stages[0].kl[0]
    assert 0 <= record.task.majority <= 1 and record.task.count == 45
    for text in (
        "layers",
        "parameters",
        "weights file",
        "tokens/s",
        "masked-word accuracy",
        "KL to the teacher",
        "verbs, accuracy",
    ):
        assert text in printed
    assert "Traceback" not in printed


def test_the_student_loads_with_plain_transformers(finished):
    folder, _ = finished
    code = (
        "import sys; from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline\n"
        "t = AutoTokenizer.from_pretrained(sys.argv[1]); m = AutoModelForMaskedLM.from_pretrained(sys.argv[1])\n"
        "assert len(t) == m.config.vocab_size == 131, (len(t), m.config.vocab_size)\n"
        "print(len(pipeline('fill-mask', model=m, tokenizer=t)('walk [MASK] talk')))\n"
        "assert 'hf_glmd' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder / "out" / "student")], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() == "5", done.stderr


def test_two_processes_come_to_the_same_student(finished, tmp_path):
    folder, _ = finished
    recipe = recipe_helpers.write_inputs(tmp_path)
    halves = [f"--{stage}.per_device_train_batch_size=4" for stage in ("general", "task_teacher", "task_words", "task_answers")]
    done = recipe_helpers.launch(recipe, *halves, processes=2)
    assert done.returncode == 0, done.stdout[-4000:]
    assert done.stdout.count("Stage 1: word prediction on plain text: 100%") >= 1
    one, two = (RunRecord.load(path / "out" / "metrics.json") for path in (folder, tmp_path))
    assert one.count_ranks == two.count_ranks and one.counts_sorted == two.counts_sorted
    assert two.words_start.kl == pytest.approx(one.words_start.kl, rel=1e-5)
    assert two.words_start.positions == one.words_start.positions
    assert two.words_general.kl == pytest.approx(one.words_general.kl, rel=1e-3)
    assert two.task.count == one.task.count
    assert [stage.batch_size for stage in two.stages] == [stage.batch_size for stage in one.stages]


def test_a_killed_run_goes_on_where_it_was(finished, tmp_path):
    folder, _ = finished
    recipe = recipe_helpers.write_inputs(tmp_path)
    recipe_helpers.killed_after_a_checkpoint(recipe)
    assert not (tmp_path / "out" / "metrics.json").exists()
    done = recipe_helpers.launch(recipe)
    assert done.returncode == 0, done.stdout[-4000:]
    assert "Going on with the run in" in done.stdout
    assert "building the student: done earlier" in done.stdout
    assert (
        "Stage 1: word prediction on plain text: going on from step" in done.stdout or "plain text: done earlier" in done.stdout
    )
    whole, resumed = (RunRecord.load(path / "out" / "metrics.json") for path in (folder, tmp_path))
    assert resumed.words_final == whole.words_final, "a resumed run must end as one that was never stopped"
    assert resumed.task == whole.task


CRASH = """
import os, sys
left, rename = int(sys.argv[1]), os.replace
def replace(source, target):
    global left
    left -= 1
    if left == 0:
        os._exit(9)
    rename(source, target)
os.replace = replace
from hf_glmd import GLMDTrainer
from hf_glmd.cli import run_recipe_command
sys.exit(run_recipe_command(sys.argv[2:]))
"""


def crashed_and_run_again(folder, write):
    """A run that dies at its write number `write`, and the same command once more. Returns: whether it died."""
    recipe = recipe_helpers.write_inputs(folder)
    (folder / "crash.py").write_text(CRASH)
    for number in (write, 0):
        command = [sys.executable, str(folder / "crash.py"), str(number), "--config", str(recipe)]
        done = subprocess.run(command, capture_output=True, text=True)
        if number:
            died = done.returncode == 9
            assert died or done.returncode == 0, done.stderr
    assert done.returncode == 0, f"after a crash at write {write}: {done.stderr}"
    return died


def test_killed_while_it_claims_its_folder(finished, tmp_path):
    assert crashed_and_run_again(tmp_path, 1)
    assert RunRecord.load(tmp_path / "out" / "metrics.json").words_final == record_of(finished).words_final


@pytest.mark.slow
def test_killed_at_any_write(finished, tmp_path):
    write, died = 1, True
    while died:
        write += 1
        (tmp_path / str(write)).mkdir()
        died = crashed_and_run_again(tmp_path / str(write), write)
        record = RunRecord.load(tmp_path / str(write) / "out" / "metrics.json")
        assert (record.words_final, record.task) == (record_of(finished).words_final, record_of(finished).task), write
    assert write > 20


def record_of(finished):
    return RunRecord.load(finished[0] / "out" / "metrics.json")


def test_all_cores_are_used_whatever_accelerate_says(tmp_path):
    """accelerate launch sets OMP_NUM_THREADS=1."""
    import torch

    from hf_glmd.recipe.config import load_recipe
    from hf_glmd.recipe.run import Run
    from hf_glmd.utils.system import cpu_cores

    recipe, before = recipe_helpers.write_inputs(tmp_path, threads=None), torch.get_num_threads()
    try:
        for options, expected in (([], cpu_cores()), (["--threads", "1"], 1)):
            torch.set_num_threads(3)
            Run(load_recipe(recipe, options))
            assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)


def test_a_finished_run_is_only_shown_again(finished, capsys):
    folder, _ = finished
    before = (folder / "out" / "metrics.json").stat().st_mtime_ns
    assert run_recipe_command(["--config", str(folder / "recipe.yaml")]) == 0
    printed = capsys.readouterr().out
    assert "Finished earlier" in printed and "masked-word accuracy" in printed
    assert (folder / "out" / "metrics.json").stat().st_mtime_ns == before


def test_word_prediction_alone_from_a_random_start(tmp_path, capsys):
    """No task, no cut, another width: the least a recipe can be; --overwrite does it again."""
    recipe = recipe_helpers.write_inputs(
        tmp_path, vocab={}, student={"num_layers": 1, "init": "random", "config": {"hidden_size": 16}}, evaluation={"rows": 4}
    )
    plain = [f"--{name}=null" for name in ("task", "task_teacher", "task_words", "task_answers")]
    options = ["--config", str(recipe), *plain, "--general.max_steps", "2", "--evaluation.speed_batch_sizes", "[1]"]
    assert run_recipe_command(options) == 0
    record = RunRecord.load(tmp_path / "out" / "metrics.json")
    assert record.task is None and record.student.vocabulary == 211 and record.vocab.coverage == 1.0
    assert run_recipe_command([*options, "--overwrite"]) == 0
    assert "Finished earlier" not in capsys.readouterr().out


def test_similar_tokens_may_stand_for_removed_ones(tmp_path):
    recipe = recipe_helpers.write_inputs(tmp_path, evaluation={"rows": 4, "speed_batch_sizes": [1], "speed_length": 16})
    plain = [f"--{name}=null" for name in ("task", "task_teacher", "task_words", "task_answers")]
    options = [*plain, "--general.max_steps", "1", "--vocab.removed", "nearest"]
    assert run_recipe_command(["--config", str(recipe), *options]) == 0
    assert RunRecord.load(tmp_path / "out" / "metrics.json").vocab.removed == "nearest"
    assert load_tokenizer(tmp_path / "out" / "student").vocab_map.removed == "nearest"


def test_a_dry_run_prints_the_plan_and_writes_nothing(tmp_path, capsys):
    recipe = recipe_helpers.write_inputs(tmp_path)
    assert run_recipe_command(["--config", str(recipe), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    for text in (
        "4 layers",
        "2 layers, 131 of 211 tokens",
        "train 810",
        "T = 2, masked positions; 12 steps of 8 rows",
        "soft_label, T = 1",
    ):
        assert text in printed
    assert not (tmp_path / "out").exists()


def test_a_dry_run_does_not_wait_for_docstrings(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("hf_glmd.data.docstrings.docstring_corpus", None)
    recipe = recipe_helpers.write_inputs(tmp_path, corpus={"name": "docstrings"})
    assert run_recipe_command(["--config", str(recipe), "--dry-run"]) == 0
    assert "docstrings: of the installed libraries, collected when the run starts" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        (
            {"config": {"hidden_size": 16}},
            "bert.embeddings.word_embeddings.weight is [211, 16], but [211, 32]",
        ),
        ({"config": {"num_attention_heads": 5}}, "cannot be built with num_attention_heads=5"),
        ({"config": {"hidden_siz": 16}}, "has no setting 'hidden_siz'"),
    ],
)
def test_a_dry_run_refuses_a_student_that_cannot_start_from_the_teacher(tmp_path, capsys, settings, complaint):
    recipe = recipe_helpers.write_inputs(tmp_path, student={"num_layers": 2, **settings})
    assert run_recipe_command(["--config", str(recipe), "--dry-run"]) == 2
    assert complaint in capsys.readouterr().err


def test_a_dry_run_says_what_it_could_not_check(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    recipe = recipe_helpers.write_inputs(tmp_path)
    assert run_recipe_command(["--config", str(recipe), "--teacher.model", "somebody/some-bert", "--dry-run"]) == 0
    assert "not checked: teacher 'somebody/some-bert'" in capsys.readouterr().out


def bad_yaml(tmp_path, text):
    (tmp_path / "bad.yaml").write_text(text)
    return ["--config", str(tmp_path / "bad.yaml")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--vocab.siz", "0.5"], "unknown key 'vocab.siz'. Did you mean 'vocab.size'?"),
        (["--general.learning_rat=1"], "general.learning_rat is not a field of GLMDConfig. Did you mean 'learning_rate'?"),
        (["--learning_rate=1"], "unknown key 'learning_rate'. Did you mean 'general.learning_rate'?"),
        (["--vocab.size", "half"], "vocab.size='half' is of type str, float or null is wanted"),
        (["--general.bf16", "3"], "general.bf16=3 is of type int, bool is wanted"),
        (["--general.temperature", "-1"], "section general: temperature=-1.0 is not positive"),
        (["--general.positions", "some"], "positions='some' is unknown"),
        (["--task_teacher.temperature", "2"], "task_teacher.temperature is not a field of TrainingArguments"),
        (["--general.output_dir", "x"], "general.output_dir is set by the recipe"),
        (["--general=null", "--task_words=null", "--task_answers=null"], "no stage that trains the student"),
        (["--teacher.model", "no/such/folder"], "no model at 'no/such/folder'"),
        (["--student.num_layers", "9"], "student.num_layers=9, the teacher has 4 layers"),
        (["--max_length", "99"], "max_length=99 is more than the 40 tokens the teacher can read"),
        (["--task.verbalizers.yes", "zebra"], "verbalizer 'zebra' of answer 'yes' in task verbs is not a single token"),
        (["--task.label_column", "gold"], "no labels in a column 'gold'"),
        (["--task.test_split", "dev"], "not 'dev'"),
        (["--corpus.name", "nothing.txt"], "corpus 'nothing.txt' cannot be loaded"),
        (["--corpus.column", "body"], "not 'body'"),
        (["--vocab.size", "20"], "size=20"),
        (["--vocab.keep", "[nonsense]"], "nonsense"),
        (["--seed"], "--seed has no value"),
        (["oops"], "'oops' is not an option"),
    ],
)
def test_bad_input_is_one_line_and_status_2(tmp_path, capsys, monkeypatch, options, message):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    recipe = recipe_helpers.write_inputs(tmp_path)
    assert run_recipe_command(["--config", str(recipe), *options]) == 2
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("glmd.py: ")]
    assert len(lines) == 1 and message in lines[0], error
    assert "Traceback" not in error
    stages = tmp_path / "out" / "stages"
    assert not stages.exists() or not any(stages.iterdir())


def test_the_floor_of_the_vocabulary_is_named(tmp_path, capsys):
    recipe = recipe_helpers.write_inputs(tmp_path)
    assert run_recipe_command(["--config", str(recipe), "--vocab.size", "20"]) == 2
    message = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("glmd.py: "))
    floor = next(int(word) for word in message.replace("=", " ").replace(",", " ").split() if word.isdigit() and int(word) > 20)
    assert "that must stay" in message
    # The floor itself is possible, and the try that came to nothing does not block the folder.
    stop = ["--general.max_steps", "1", "--evaluation.rows", "8", "--evaluation.speed_batch_sizes", "[1]"]
    stop += [f"--{name}=null" for name in ("task_teacher", "task_words", "task_answers")]
    assert run_recipe_command(["--config", str(recipe), "--vocab.size", str(floor), *stop]) == 0
    assert RunRecord.load(tmp_path / "out" / "metrics.json").student.vocabulary == floor


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{a: [", "is not YAML"),
        ("- a", "holds no sections"),
        ("output_dir: x", "teacher is missing"),
        (
            "output_dir: x\nteacher: bert",
            "teacher is 'bert', a section with the keys model, revision, trust_remote_code is wanted",
        ),
        ("output_dir: x\nteacher: {}", "teacher.model is missing"),
        ("output_dir: x\nteacher: {model: m}\ntask_words: {}", "section 'task_words' needs a section 'task'"),
    ],
)
def test_a_bad_file_is_one_line_and_status_2(tmp_path, capsys, text, message):
    assert run_recipe_command(bad_yaml(tmp_path, text)) == 2
    assert message in capsys.readouterr().err


def test_a_missing_file_is_named_with_its_nearest(capsys):
    assert run_recipe_command(["--config", str(recipe_helpers.ROOT / "recipes" / "quickstrat.yaml")]) == 2
    error = capsys.readouterr().err
    assert "does not exist" in error and "quickstart.yaml" in error


def test_teachers_that_predict_no_words_are_refused(tmp_path, capsys):
    import vocab_helpers

    recipe = recipe_helpers.write_inputs(tmp_path)
    for name, message in (
        ("bert-classifier", "is a classifier: BertForSequenceClassification predicts no words"),
        ("t5", "is an encoder-decoder (t5)"),
    ):
        vocab_helpers.tiny_model(name).save_pretrained(tmp_path / name)
        assert run_recipe_command(["--config", str(recipe), "--teacher.model", str(tmp_path / name)]) == 2
        assert message in capsys.readouterr().err


def test_an_empty_corpus_is_refused(tmp_path, capsys):
    recipe = recipe_helpers.write_inputs(tmp_path)
    (tmp_path / "empty.txt").write_text("")
    assert run_recipe_command(["--config", str(recipe), "--corpus.name", str(tmp_path / "empty.txt")]) == 2
    assert "is empty" in capsys.readouterr().err


def test_a_folder_with_a_different_run_is_left_alone(tmp_path, capsys):
    recipe = recipe_helpers.write_inputs(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    (out / "holiday.jpg").write_text("")
    assert run_recipe_command(["--config", str(recipe)]) == 2
    assert "holds no run of ours" in capsys.readouterr().err
    (out / "holiday.jpg").unlink()
    data = yaml.safe_load(recipe.read_text())
    (out / "run.json").write_text(json.dumps({"seed": 7, **{k: v for k, v in data.items() if k != "output_dir"}}))
    (out / "stages" / "student").mkdir(parents=True)
    (out / "stages" / "student" / "done.json").write_text("{}")
    assert run_recipe_command(["--config", str(recipe)]) == 2
    assert "holds a different run: seed is 7 there and 0 here" in capsys.readouterr().err
    # Somebody cleared the stages of a finished run: its result is still not this recipe's.
    (out / "stages" / "student" / "done.json").unlink()
    (out / "metrics.json").write_text("{}")
    assert run_recipe_command(["--config", str(recipe)]) == 2
    assert "holds a different run" in capsys.readouterr().err


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit) as caught:
        run_recipe_command(["--help"])
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    for text in ("--dry-run", "--overwrite", "--vocab.size", "--general.FIELD", "--task.pattern"):
        assert text in printed
