"""Several tasks from one recipe: a student each from the same stage 1, one table, one chart, and predictions to hand in."""

import json

import datasets
import pytest
import recipe_helpers
import tasks_helpers
import torch
import vocab_helpers
import yaml
from accelerate import PartialState

from hf_glmd.cli import run_recipe_command
from hf_glmd.models.loading import load_word_model
from hf_glmd.recipe.config import load_recipe
from hf_glmd.recipe.inputs import Inputs
from hf_glmd.reports.records import RunRecord
from hf_glmd.vocab.mapped_tokenizer import load_tokenizer

STAGES = ("task_teacher", "task_words", "task_answers")
TASKS = ["cb", "verbs", "choice"]


def write_inputs(folder):
    """CB in its official files, whose words the tiny tokenizer splits; a table with words of one token; one with candidates."""
    texts = vocab_helpers.texts(260)
    answers = ("entailment", "contradiction", "neutral")
    for split, size in (("train", 30), ("val", 13), ("test", 7)):
        (folder / "CB").mkdir(exist_ok=True)
        rows = [
            {"premise": texts[n][:6], "hypothesis": texts[n + 50][:6], "label": answers[n % 3], "idx": n} for n in range(size)
        ]
        for row in rows if split == "test" else ():
            del row["label"]
        (folder / "CB" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = [
        {"text": text, "label": "yes" if len(text) % 2 else "no", "one": texts[n][:9], "two": texts[n - 1][:5], "gold": n % 2}
        for n, text in enumerate(texts)
    ]
    (folder / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = {"data": str(folder / "table.jsonl"), "max_test": 11, "test_split": "test"}
    stage = {**recipe_helpers.STAGE, "max_steps": 2, "eval_steps": 1}
    return recipe_helpers.write_inputs(
        folder,
        task={"data": str(folder), "test_split": "validation", "max_length": 40},
        tasks=[
            {"name": "cb", "predict_splits": ["test"], "pattern_number": None, "words": {"max_steps": 3}},
            {
                **table,
                "name": "verbs",
                "pattern": "call {mask} . {text}",
                "verbalizers": {"yes": "walk", "no": "talk"},
                "replaced_copies": 2,
                "replaced_share": 0.4,
            },
            {
                **table,
                "name": "choice",
                "pattern": "{text} so {mask}",
                "candidates": ["one", "two"],
                "label_column": "gold",
                "patience": 1,
                "teacher": {"max_steps": 8},
            },
        ],
        **{name: stage for name in ("general", *STAGES)},
        evaluation={"rows": 16, "curve_rows": 8, "speed_batch_sizes": [1], "speed_length": 16},
    )


def task_inputs(tmp_path, **section):
    recipe = load_recipe(write_inputs(tmp_path), [])
    recipe.tasks = [{"name": "cb", **section}]
    del recipe.task_sections
    return Inputs(recipe, PartialState(cpu=True)).tasks[0]


def test_the_student_reads_unlabelled_examples_too(tmp_path):
    row = {"premise": "walk", "hypothesis": "talk", "label": "nonsense", "idx": 0}
    (tmp_path / "more.jsonl").write_text(3 * (json.dumps(row) + "\n"))
    given = task_inputs(tmp_path, unlabelled=str(tmp_path / "more.jsonl"))
    assert len(given.data["train"]) == 27 and len(given.data["student"]) == 30
    assert given.data["student"].column_names == ["premise", "hypothesis"]
    assert given.data["student"]["premise"][27:] == ["walk"] * 3


def test_words_of_a_csv_table_are_replaced_too(tmp_path):
    """Its columns of text are of another type than those of jsonl files; candidates stay as they are."""
    rows = [f"walk talk read jump,one {number},two,{number % 2}" for number in range(40)]
    (tmp_path / "table.csv").write_text("\n".join(["text,one,two,label", *rows]))
    table = {
        "name": "own",
        "data": str(tmp_path / "table.csv"),
        "pattern": "{text} so {one} {mask}",
        "candidates": ["one", "two"],
    }
    given = task_inputs(tmp_path, **table, test_split="test", replaced_copies=1, replaced_share=0.9)

    def logits_at(inputs, positions):
        return torch.arange(211.0).expand(int(positions.sum()), -1)

    copies = given.copies_with_replaced_words(logits_at, given.teacher.teacher_tokenizer, torch.device("cpu"))
    assert 20 < len(copies) and not set(copies["text"]) & {"walk talk read jump"}
    assert all(text.startswith("one ") for text in copies["one"]) and set(copies["two"]) == {"two"}
    before = given.questions("student", given.teacher.teacher_tokenizer, labelled=False)
    given.add_examples(copies)
    after = given.questions("student", given.teacher.teacher_tokenizer, labelled=False)
    assert len(after) == len(before) + len(copies)


def test_questions_are_scored_whole_if_not_all_are(tmp_path):
    """MultiRC counts a question as right if all of its options are judged right: some of them say nothing."""
    answers = [{"text": "walk", "label": number % 2, "idx": number} for number in range(3)]
    lines = [
        {
            "idx": number,
            "passage": {"text": "talk", "questions": [{"question": f"q{n}", "idx": n, "answers": answers} for n in (0, 1)]},
        }
        for number in range(20)
    ]
    for split in ("train", "val"):
        tasks_helpers.write_lines(tmp_path / "MultiRC" / f"{split}.jsonl", lines)
    test = task_inputs(tmp_path, name="multirc", max_test=10).data["test"]
    keys = [(idx["paragraph"], idx["question"]) for idx in test["idx"]]
    assert len(test) == 9 and [keys.count(key) for key in keys] == [3] * 9
    assert len({key[0] for key in keys}) > 1, "drawn from all of the passages"


def test_the_best_checkpoint_is_not_chosen_by_what_is_scored(tmp_path):
    data = task_inputs(tmp_path).data
    numbers = {split: set(data[split]["idx"][:]) for split in ("train", "validation")}
    assert len(data["validation"]) == 3 and not numbers["train"] & numbers["validation"]
    assert numbers["train"] | numbers["validation"] == set(range(30))
    data = task_inputs(tmp_path, test_data=str(tmp_path / "CB" / "val.jsonl")).data  # scored on another file
    assert len(data["train"]) == 30 and len(data["validation"]) == len(data["test"]) == 13


def test_a_task_that_comes_along_can_be_changed(tmp_path):
    task = task_inputs(tmp_path, metric="accuracy", length_normalised=True).task
    assert task.metric_name == "accuracy" and task.length_normalised and len(task.patterns) == 3
    (tmp_path / "other").mkdir()
    changed = task_inputs(tmp_path / "other", verbalizers={"entailment": "a", "contradiction": "b", "neutral": "c"}).task
    assert list(changed.verbalizers.values()) == ["a", "b", "c"] and changed.official is not None


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    recipe = write_inputs(folder)
    assert run_recipe_command(["--config", str(recipe)]) == 0
    return folder, recipe


def test_the_record_has_every_task(finished):
    folder, _ = finished
    record = RunRecord.load(folder / "out" / "metrics.json")
    assert record.task is None and [task.name for task in record.tasks] == TASKS
    assert [task.metric for task in record.tasks] == ["accuracy_and_macro_f1", "accuracy", "accuracy"]
    assert [task.count for task in record.tasks] == [13, 11, 11]
    assert all(task.seconds > 0 for task in record.tasks)
    assert [stage.name for stage in record.stages] == ["general"]


def test_what_a_task_asks_for_itself_is_what_it_gets(finished):
    folder, _ = finished
    done = {
        name: json.loads((folder / "out/stages" / name / "done.json").read_text())
        for name in ("cb/task_words", "verbs/task_words")
    }
    assert (done["cb/task_words"]["steps"], done["verbs/task_words"]["steps"]) == (3, 2)
    steps = json.loads((folder / "out/stages/choice/task_teacher/done.json").read_text())["steps"]
    assert 2 <= steps <= 8


def test_the_student_reads_copies_with_replaced_words(finished):
    folder, _ = finished
    copies = datasets.load_from_disk(folder / "out/stages/verbs/copies/rows")
    done = json.loads((folder / "out/stages/verbs/copies/done.json").read_text())
    originals = {json.loads(line)["text"] for line in (folder / "table.jsonl").read_text().splitlines()}
    assert 100 < len(copies) == done["examples"] and copies.column_names == ["text"]
    assert sum(text not in originals for text in copies["text"]) > 0.9 * len(copies)
    assert not (folder / "out/stages/cb/copies").exists(), "off by default"


def test_it_writes_a_student_for_each_task(finished):
    folder, _ = finished
    models = [load_word_model(folder / "out" / place) for place in ("student", *(f"students/{name}" for name in TASKS))]
    weights = [model.get_input_embeddings().weight for model in models]
    assert all(weight.shape == weights[0].shape for weight in weights)
    assert all(not weight.equal(other) for number, weight in enumerate(weights) for other in weights[:number])
    for name, other in (("cb", "verbs"), ("verbs", "cb")):
        card = (folder / "out/students" / name / "README.md").read_text()
        assert f"{name}, acc" in card and f"{other}, acc" not in card and f"out-{name}" in card
        assert "Stage 3" in card and f"out/students/{name}" in card
        assert (folder / "out/students" / name / "plots/kl_over_steps.png").exists()
    assert len(load_tokenizer(folder / "out/students/cb")) == len(weights[0])
    assert (folder / "out/students/cb/vocab_map.safetensors").exists()
    assert not list((folder / "out").rglob("checkpoint*"))


def test_predictions_are_in_the_official_format(finished):
    folder, _ = finished
    for who in ("teacher", "student"):
        lines = [json.loads(line) for line in (folder / "out/predictions/cb" / who / "CB.jsonl").read_text().splitlines()]
        assert [line["idx"] for line in lines] == list(range(7))
        assert {line["label"] for line in lines} <= {"entailment", "contradiction", "neutral"}
        assert len((folder / "out/predictions/cb" / who / "CB_validation.jsonl").read_text().splitlines()) == 13
    assert (folder / "out/predictions/choice/student/choice_test.jsonl").exists()


def test_the_words_of_all_tasks_are_kept(finished):
    folder, _ = finished
    small, large = (load_tokenizer(folder / place) for place in ("out/student", "teacher"))
    for word in ("walk", "talk", "yes", "no", "maybe"):
        ids = [tokenizer(word, add_special_tokens=False)["input_ids"] for tokenizer in (small, large)]
        assert [tokenizer.convert_ids_to_tokens(part) for tokenizer, part in zip((small, large), ids, strict=True)][0] == (
            large.convert_ids_to_tokens(ids[1])
        )


def test_the_table_and_the_chart_are_there(finished, capsys):
    folder, recipe = finished
    assert run_recipe_command(["--config", str(recipe)]) == 0
    printed = capsys.readouterr().out
    assert "Finished earlier" in printed
    for text in ("| task ", "retained", "| cb ", "accuracy_and_macro_f1", "| mean "):
        assert text in printed
    for place in ("plots", "student/plots"):
        assert (folder / "out" / place / "tasks.png").read_bytes().startswith(b"\x89PNG")
        assert len((folder / "out" / place / "tasks.csv").read_text().splitlines()) == 4


def test_finished_tasks_are_kept_when_it_goes_on(finished, tmp_path, capsys):
    """As if killed while the last task learnt: the result is the same, and nothing is done twice."""
    import shutil

    folder, recipe = finished
    before = RunRecord.load(folder / "out/metrics.json")
    shutil.copytree(folder / "out", tmp_path / "out")
    (tmp_path / "out/metrics.json").unlink()
    for name in ("task_answers", "scores"):
        shutil.rmtree(tmp_path / "out/stages/choice" / name)
    assert run_recipe_command(["--config", str(recipe), "--output_dir", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "Scores (cb): done earlier" in printed and "text (choice): done earlier" in printed
    assert "Scores (choice): done earlier" not in printed
    after = RunRecord.load(tmp_path / "out/metrics.json")
    assert after.tasks == before.tasks and after.words_final == before.words_final


def run_with(tmp_path, capsys, *options, **changes):
    recipe = write_inputs(tmp_path)
    data = yaml.safe_load(recipe.read_text()) | changes
    recipe.write_text(yaml.safe_dump(data))
    assert run_recipe_command(["--config", str(recipe), *options]) == 2
    assert not (tmp_path / "out" / "stages").exists()
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (["cbb"], "task 'cbb' is unknown. Did you mean 'cb'?"),
        (["cb", "CB"], "two tasks are called 'cb'"),
        (["cb", "Student"], "name='Student' is the name of a folder of the run itself"),
        ([{"data": "x"}], "tasks[0].name is missing"),
        ([{"name": "cb/../x"}], "tasks[0].name='cb/../x' cannot name a folder"),
        ([{"name": "cb", "patern": "x"}], "unknown key 'tasks[0].patern'. Did you mean 'tasks[0].pattern'?"),
        ([{"name": "cb", "teacher": {"steps": 3}}], "tasks[0].teacher.steps is not a field of TrainingArguments"),
        ([{"name": "cb", "words": {"objective": "x"}}], "tasks[0].words.objective follows from the stage"),
        ([{"name": "cb", "metric": "acuracy"}], "metric 'acuracy' is unknown. Did you mean 'accuracy'?"),
        ([{"name": "cb", "pattern_number": 9}], "has no pattern 9"),
        ([{"name": "cb", "test_split": "test"}], "Take a split with labels"),
        ([{"name": "cb", "split_verbalizers": "refuse"}], "is not a single token"),
        ([{"name": "cb", "verbalizers": {"entailment": "walk", "neutral": "talk"}}], "have the answers ['contradiction']"),
        ([{"name": "cb", "max_length": 12}], "leaves no room"),
        ([{"name": "cb", "candidates": ["one", "premise"]}], "reads the columns ['one'], the data have ['premise', 'hypothesis'"),
        ([{"name": "cb", "too_long": "cut"}], "too_long='cut' is unknown"),
        ([{"name": "cb", "replaced_copies": 1, "replaced_share": 1.5}], "replaced_share=1.5 of task cb makes no sense"),
    ],
)
def test_bad_tasks_are_refused_before_anything_is_done(tmp_path, capsys, tasks, message):
    assert message in run_with(tmp_path, capsys, tasks=tasks)


def test_an_example_without_candidates_is_found_before_anything_is_done(tmp_path, capsys):
    rows = [{"text": "walk", "options": ["talk", "jump"][: 2 if number != 7 else 0], "gold": "talk"} for number in range(90)]
    (tmp_path / "options.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"name": "own", "data": str(tmp_path / "options.jsonl"), "pattern": "{text} so {mask}", "candidates": "options"}
    message = run_with(tmp_path, capsys, tasks=[{**task, "label_column": "gold", "test_split": "test"}])
    assert "has no candidates in column 'options'. Give it some, or drop it." in message


def test_a_too_long_example_is_found_before_anything_is_done(tmp_path, capsys):
    """Of the last task, of the split that is scored; and what to do about it works."""
    text = " ".join(["walk"] * 60)
    rows = [{"premise": text, "hypothesis": text, "label": "neutral", "idx": number} for number in range(40)]
    for split, part in (("train", [{**row, "premise": "", "hypothesis": "x"} for row in rows]), ("val", rows)):
        (tmp_path / "long" / "CB").mkdir(parents=True, exist_ok=True)
        (tmp_path / "long" / "CB" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    task = {"name": "cb", "data": str(tmp_path / "long")}
    assert "without its longest field, where" in run_with(tmp_path, capsys, tasks=[task])
    given = task_inputs(tmp_path / "long", **task, too_long="shorten")
    given.check_examples(given.teacher.teacher_tokenizer)


def test_a_plan_of_all_tasks(tmp_path, capsys):
    assert run_recipe_command(["--config", str(write_inputs(tmp_path)), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "cb (" in printed and "train 27, validation 3, test 13" in printed and "choice (" in printed
