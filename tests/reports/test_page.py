"""The report page: of every kind of folder, with every number, and self-contained."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import training_helpers
import vocab_helpers
from record_examples import TASK_LIST, example_record
from report_helpers import (
    FOLDERS,
    RECIPE,
    vocab_report,
    write_cache,
    write_checkpoint,
    write_run,
    write_training,
    write_vocabulary,
)

from hf_glmd.cli import main
from hf_glmd.reports.page import report_data, write_report
from hf_glmd.reports.records import RunRecord
from hf_glmd.teachers.cache import TeacherCache
from hf_glmd.utils.files import write_json
from hf_glmd.utils.text import percent, visible

VOID = {"meta", "link", "br", "hr", "img", "input"}


class Page(HTMLParser):
    """What the tests ask of a page: its text, its tags, and that each is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.parts: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()
        assert self.open == [], "every tag is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.parts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.parts).split())


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    made = {}
    for name, write in FOLDERS.items():
        made[name] = tmp_path_factory.mktemp("folders") / name
        made[name].mkdir()
        write(made[name])
    return made


def page_of(folder: Path) -> Page:
    return Page(write_report(folder).read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", FOLDERS)
def test_a_page_is_whole_and_loads_nothing(folders, name):
    page = page_of(folders[name])
    assert len(page.text) > 200 and "None" not in page.text and "nan" not in page.text.lower().split()
    text = (folders[name] / "report.html").read_text(encoding="utf-8")
    assert text.lower().lstrip().startswith("<!doctype html>")
    for tag, attributes in page.tags:
        assert tag not in ("script", "iframe", "object", "embed", "img"), tag
        for attribute in ("src", "href", "srcset", "data", "poster", "action"):
            value = attributes.get(attribute)
            if value is not None:  # a link may be followed, nothing may be fetched
                assert value.startswith(("#", "data:")) or (tag == "a" and value.startswith("https://arxiv.org/")), value
    assert not re.search(r"url\((?!#)|@import|\son\w+=|javascript:", text)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    linked = [attributes["href"] for tag, attributes in page.tags if tag == "a" and attributes["href"].startswith("#")]
    used = [attributes["href"][1:] for tag, attributes in page.tags if tag == "use"] + re.findall(r"url\(#([^)]*)\)", text)
    assert set(used) <= set(ids), "what a chart uses is on the page"
    assert len(ids) == len(set(ids)) and [link[1:] for link in linked] == [part for part in ids if f"#{part}" in linked]
    assert {"Teacher and student", "Cache", "Vocabulary"} & set(page.parts) or name in ("training", "unfinished")


CHARTS = {"run": 13, "list": 13, "unfinished": 9, "vocabulary": 2, "training": 5, "cache": 0}


@pytest.mark.parametrize("name", FOLDERS)
def test_every_chart_has_a_name_and_its_numbers_in_a_table(folders, name):
    page = page_of(folders[name])
    labels = [attributes["aria-label"] for tag, attributes in page.tags if tag == "svg" and attributes["role"] == "img"]
    assert len(labels) == CHARTS[name] == len([tag for tag, _ in page.tags if tag in ("svg", "figure")]) / 2
    for figure in re.findall("<figure>(.*?)</figure>", (folders[name] / "report.html").read_text("utf-8"), flags=re.DOTALL):
        caption = re.search("<figcaption>(.*?)</figcaption>", figure)[1]
        assert f'aria-label="{caption}' in figure
        assert ("<details><summary>Numbers</summary>" in figure) == (caption != "Scores"), "scores have a table in full view"


@pytest.mark.parametrize("name", FOLDERS)
def test_the_same_folder_gives_the_same_bytes(folders, name):
    first = write_report(folders[name]).read_bytes()
    assert write_report(folders[name]).read_bytes() == first


@pytest.mark.parametrize("name", FOLDERS)
def test_without_matplotlib_the_page_has_tables_and_says_what_to_install(folders, tmp_path, monkeypatch, name):
    whole = page_of(folders[name])
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    page = Page(write_report(folders[name], tmp_path / "page.html").read_text("utf-8"))
    assert "svg" not in {tag for tag, _ in page.tags}
    assert page.text.count("pip install hf_glmd[plots]") == (1 if CHARTS[name] else 0)
    tables = [attributes for tag, attributes in page.tags if tag == "details" and "open" in attributes]
    assert len(tables) == len(re.findall("Numbers", whole.text)), "the numbers are in full view"
    assert set(whole.parts) <= set(page.parts), "and nothing else is missing"


def numbers(record: RunRecord) -> Iterator[str]:
    """Every number of a record as a reader expects it."""
    for model in (record.teacher, record.student):
        counts = (model.layers, model.vocabulary, model.parameters, model.embedding_parameters, model.body_parameters)
        yield from (f"{count:,}" for count in counts)
        yield f"{model.file_bytes / 1e6:,.1f} MB" if model.file_bytes >= 1e7 else f"{model.file_bytes / 1e6:,.2f} MB"
        yield from (f"{speed:,.0f}" for speed in model.tokens_per_second.values())
        yield from (f"{size}×{model.speed_length} tokens" for size in model.tokens_per_second)
    vocab = record.vocab
    yield from (f"{vocab.original_size:,}", f"{vocab.size:,}", percent(vocab.coverage), f"{vocab.length_ratio:.3f}")
    yield from (f"{vocab.tokens_per_text_before:,.1f}", f"{vocab.tokens_per_text_after:,.1f}")
    for words in (record.words_start, record.words_general, record.words_final):
        yield from (f"{words.positions:,}", f"{words.kl:.2f}")
    final = record.words_final
    yield from (percent(share) for share in (final.accuracy, final.teacher_accuracy, final.agreement))
    for task in record.tasks or [record.task]:
        yield from (f"{task.count:,}", *(percent(value) for value in (task.teacher, task.majority, task.agreement)))
        yield percent(task.student).replace("-", "−")
    for stage in record.stages:
        yield from (f"{stage.steps:,}", f"{stage.batch_size:,}", f"{stage.learning_rate:g}", f"{stage.tokens:,}")
        yield from ([f"{stage.temperature:g}"] if stage.temperature else [])
        for steps, values in ((stage.steps_evaluated, stage.kl), (stage.steps_logged, stage.loss)):
            yield from (f"{step:,} {value:.4g}" for step, value in zip(steps, values, strict=bool(values)))
        for step, value in zip(stage.steps_evaluated, stage.agreement or stage.accuracy, strict=True):
            yield f"{step:,} {percent(value)}"
    yield from (f"{version}" for version in record.versions.values())
    yield from (f"{record.max_tokens:,}", f"{record.seconds:,.0f} s")


@pytest.mark.parametrize("listed", [False, True])
def test_every_number_of_the_record_is_on_the_page(tmp_path, listed):
    record = write_run(tmp_path, listed)
    text = page_of(tmp_path).text
    missing = [number for number in numbers(record) if not re.search(rf"(?<![\d.,]){re.escape(number)}(?![\d])", text)]
    assert missing == []
    for words in (record.corpus, record.hardware, record.teacher.name, record.name, "learning_rate: 0.0004", "cosine"):
        assert words in text
    assert "--config recipes/quickstart.yaml" in text


def test_a_list_of_tasks_has_a_mean_and_stages_of_their_own(folders):
    text = page_of(folders["list"]).text
    assert "mean 39.8% 63.6% 52.7% −10.9 54% 3.5 min" in text
    assert "cola matthews correlation 1,043 0% 41.0% −2.0% −43.0 −5% 83.0% 43 s" in text
    assert "(cb)" in text and "The student keeps 54% of the teacher's gain" in text


def test_both_models_words_and_answers_stand_side_by_side(folders):
    page = page_of(folders["run"])
    assert "the length of the list is returned teacher length 61% <b> 21% student size 31% length 29%" in page.text
    assert "␣ 100% `` <1% student \\n 1%" in page.text
    assert "from ___ : <script>alert(1)</script> & more right torch teacher torch student numpy" in page.text
    marked = [attributes for tag, attributes in page.tags if tag == "dd" and attributes.get("class") == "right"]
    assert len(marked) == 1, "only the teacher is right"
    assert "teacher ↓ student → yes no yes 2 1 no 1 0" in page.text, "how often which two answers were given"


def test_what_was_cut_is_told(folders):
    text = page_of(folders["vocabulary"]).text
    report = vocab_report()
    for number in (report.original_size, report.size, report.counted_tokens, report.texts, 211, 5_364_481, 3_501_007, 233_679):
        assert f"{number:,}" in text
    assert "13% of the tokens cover 91.2% of the text" in text and "The model has 65% of its parameters left" in text
    assert "Latin 6,007 1,013 16.9% 11,000,003 95.5%" in text and "Cyrillic lost 503 0 0% 41 0%" in text
    assert "| Ġthe \\n ␣ <b> 語 " + "a" * 90 in text and "Ġseldom ##ing" in text
    assert "What was cut is split into smaller kept pieces" in text
    assert "BertForMaskedLM" in text and "2,244" in text and "F16, F32" in text
    points = zip(report.long_tail.ranks, report.long_tail.counts, strict=True)
    assert sum(f" {rank:,} {count:,} " in text for rank, count in points) >= 30, "the long tail's numbers, thinned"


def test_a_training_shows_its_newest_checkpoint(folders):
    text = page_of(folders["training"]).text
    assert "53 of 211" in text and "not finished" in text and "0 0.9311 53 0.6131" in text and "0 51.1% 53 58.8%" in text
    assert "10 2.901 20 2.802" in text and "learning rate" in text and "BertForMaskedLM" in text
    assert "53 of 211" in page_of(folders["training"] / "checkpoint-53").text


def test_a_cache_says_what_it_holds_and_was_made_from(folders, tmp_path):
    text = page_of(folders["cache"]).text
    assert "hidden" in text and "int8" in text and "46,872" in text and "12,186,720 (260 per position)" in text
    assert "data.corpus docstrings" in text and "finished" in text
    write_cache(tmp_path, whole=False)
    assert "not finished: build it again" in page_of(tmp_path).text


def test_an_unfinished_run_shows_what_is_done(folders):
    text = page_of(folders["unfinished"]).text
    assert "The run is not finished" in text and "0 3.581 101 2.313" in text and "53 of 211" in text
    assert "cb accuracy and macro f1 56" in text and "learning_rate: 0.0004" in text


def test_a_folder_inside_of_a_run_gets_the_page_of_the_run(folders):
    run = page_of(folders["run"])
    student = page_of(folders["run"] / "student")
    assert "This folder belongs to the run run ; the page" in student.text and str(folders["run"].parent) not in student.text
    assert (folders["run"] / "student" / "report.html").exists() and student.text.endswith(run.text[-2000:])
    assert "0 3.581 101 2.313" in page_of(folders["run"] / "stages" / "general").text


def test_a_run_whose_stages_are_gone_still_has_its_curves(tmp_path):
    write_run(tmp_path)
    shutil.rmtree(tmp_path / "stages")
    text = page_of(tmp_path).text
    assert "0 3.581 101 2.313" in text and "How often each token was counted" in text


@pytest.mark.parametrize(
    "changes",
    [
        {"task": None},
        {"words_general": None, "stages": []},
        {"count_ranks": [], "counts_sorted": [], "command": "", "versions": {}},
        {"task": TASK_LIST[3]},
    ],
)
def test_what_was_not_measured_is_left_out(tmp_path, changes):
    example_record(**changes).save(tmp_path / "metrics.json")
    text = page_of(tmp_path).text
    assert "None" not in text and "nan" not in text


def test_records_of_unknown_scores_make_a_page(tmp_path):
    record = example_record(task=None)
    record.words_final = dataclasses.replace(record.words_final, kl=None, agreement=None, teacher_accuracy=None)
    record.words_general = record.words_start = record.words_final
    record.teacher.tokens_per_second = {}
    record.save(tmp_path / "metrics.json")
    text = page_of(tmp_path).text
    assert "None" not in text and "Size (area)" not in text


def test_no_token_is_on_a_page(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecret")
    example_record(command="hf-glmd distill --config a.yaml --hub.token hf_secretsecret").save(tmp_path / "metrics.json")
    assert "hf_secretsecret" not in write_report(tmp_path).read_text("utf-8") + report_data(tmp_path)
    assert "--hub.token <token>" in page_of(tmp_path).text


def test_hostile_names_are_shown_as_they_are(tmp_path):
    names = ["</svg><script>alert(1)</script>", "a $x^2$ & $y", "two\nlines", '" onload="alert(1)', "a" * 300]
    tasks = [dataclasses.replace(TASK_LIST[0], name=name, metric="<i>accuracy") for name in names]
    example_record(task=None, tasks=tasks, name="<b>$x$").save(tmp_path / "metrics.json")
    page = page_of(tmp_path)
    assert not {"script", "b>$x$"} & {tag for tag, _ in page.tags}
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert all(" ".join(name.split()) in page.text for name in (*names, "<i>accuracy"))


def test_json_holds_what_the_page_is_made_from(folders, capsys):
    assert main(["report", str(folders["run"]), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["run"]["teacher"]["body_parameters"] == 3_240_977
    assert data["recipe"] == RECIPE and len(data["stages"]) == 4 and data["vocabulary"]["counted_tokens"] == 12_345_679
    assert not list(folders["cache"].parent.glob("*.part"))
    (folders["cache"] / "report.html").unlink(missing_ok=True)
    assert json.loads(report_data(folders["cache"]))["cache"]["rows"] == 1_512
    assert not (folders["cache"] / "report.html").exists()


def test_the_command_writes_the_page_and_says_where(folders, tmp_path, capsys):
    page = tmp_path / "new" / "page.html"
    assert main(["report", str(folders["cache"]), "--output", str(page)]) == 0
    assert capsys.readouterr().out == f"Written to {page}\n"
    assert [path.name for path in page.parent.iterdir()] == ["page.html"] and "int8" in page.read_text("utf-8")


def broken(folder: Path, what: str) -> None:
    write: dict[str, Any] = {
        "nothing": lambda: (folder / "notes.txt").write_text("mine"),
        "others": lambda: write_json(folder / "metrics.json", {"accuracy": 0.5}),
        "metrics": lambda: (folder / "metrics.json").write_text('{"words_final": '),
        "record": lambda: write_json(folder / "metrics.json", {"words_final": {}}),
        "vocabulary": lambda: write_json(folder / "vocab_report.json", {"size": 3}),
        "log": lambda: (folder / "trainer_state.json").write_text("[]"),
        "weights": lambda: [write_vocabulary(folder), (folder / "model.safetensors").write_bytes(b"\xff" * 20)],
    }
    write[what]()


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("nothing", "holds nothing to report on. Looked for metrics.json or run.json (a recipe's run), vocab_report.json"),
        ("others", "holds nothing to report on"),
        ("metrics", "metrics.json' cannot be read"),
        ("record", "metrics.json' cannot be read"),
        ("vocabulary", "vocab_report.json' cannot be read"),
        ("log", "trainer_state.json' is not what this package writes"),
        ("weights", "model.safetensors' cannot be read"),
    ],
)
def test_a_bad_folder_is_one_line_and_status_2(tmp_path, capsys, what, said):
    broken(tmp_path, what)
    assert main(["report", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("hf-glmd: ") and said in error and error.count("\n") == 1
    assert not list(tmp_path.glob("report.html*"))


def test_a_missing_folder_and_an_unwritable_page_are_named(folders, tmp_path, capsys):
    assert main(["report", str(tmp_path / "nowhere")]) == 2
    assert f"'{tmp_path / 'nowhere'}' is not a folder" in capsys.readouterr().err
    assert main(["report"]) == 2
    assert "the folder is missing" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main(["report", str(folders["cache"]), "--output", str(tmp_path / "file" / "page.html")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_checkpoint_of_a_smaller_vocabulary_needs_no_report(tmp_path):
    write_checkpoint(tmp_path)
    assert "BertForMaskedLM" in page_of(tmp_path).text
    write_training(tmp_path)
    assert "53 of 211" in page_of(tmp_path).text


@pytest.mark.parametrize(("token", "shown"), [("\n", "\\n"), (" ", "␣"), ("a b", "a b"), ("\u200b", "\\u200b"), ("é", "é")])
def test_blanks_are_visible(token, shown):
    assert visible(token) == shown


def test_what_a_trainer_and_a_cache_really_write(tmp_path):
    made = training_helpers.trainer(
        tmp_path / "out", save_strategy="steps", save_steps=2, eval_strategy="steps", eval_steps=2, eval_on_start=True
    )
    made.train()
    facts = json.loads(report_data(tmp_path / "out"))
    [stage] = facts["stages"]
    logged = [entry for entry in made.state.log_history if "eval_kl" in entry]
    assert stage["curves"]["kl"] == [[entry["step"], entry["eval_kl"]] for entry in logged] and stage["step"] == 4
    parameters = sum(tensor.numel() for tensor in made.model.state_dict().values())
    assert facts["checkpoint"]["parameters"] == made.model.num_parameters() <= parameters
    assert percent(logged[-1]["eval_agreement"]) in page_of(tmp_path / "out" / "checkpoint-4").text
    batch = made.data_collator([made.eval_dataset[row] for row in range(5)])
    cache = TeacherCache.build(made.teacher, [batch], tmp_path / "cache", fingerprint={"data": {"corpus": "ours"}})
    text = page_of(tmp_path / "cache").text
    assert f"rows {cache.rows:,} positions {cache.positions:,}" in text and f"{cache.file_bytes:,}" in text
    assert "data.corpus ours" in text and "finished" in text


def test_what_shrinking_really_writes(tmp_path):
    vocab_helpers.tiny_model("bert").save_pretrained(tmp_path / "model")
    vocab_helpers.generic_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "corpus.txt").write_text("\n".join(vocab_helpers.texts(80)), encoding="utf-8")
    words = ["--corpus", str(tmp_path / "corpus.txt"), "--size", "100", "--output", str(tmp_path / "small")]
    assert main(["shrink", str(tmp_path / "model"), *words, "--json"]) == 0
    text = Page((tmp_path / "small" / "report.html").read_text("utf-8")).text
    assert "100 (47%)" in text and "76 texts verified" in text and "small" in text and "Latin" in text
