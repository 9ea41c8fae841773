from __future__ import annotations

import csv
import importlib.util
import json
import sys
from pathlib import Path

import pytest
import vocab_helpers as helpers

BENCHMARKS = Path(__file__).parents[2] / "recipes" / "benchmarks"
TINY = [
    "--bpe-sizes",
    "500",
    "300",
    "--unigram-sizes",
    "300",
    "200",
    "--nearest",
    "90:40:8",
    "--sizes",
    "0.9",
    "0.1",
    "--repeats",
    "1",
]


def load(name):
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look themselves up there
    sys.path.insert(0, str(BENCHMARKS))  # as when it is run: they share `common`
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(BENCHMARKS))
    return module


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text("\n".join(helpers.texts(200)), encoding="utf-8")
    return path


def test_the_vocabulary_benchmark_measures_all_parts_and_adds_up_its_runs(tmp_path, corpus, capsys):
    output = tmp_path / "results" / "vocab.json"
    parts = ["--parts", "counting", "rewriting", "nearest", "length"]
    for _ in range(2):
        assert load("vocab").main([*parts, "--corpus", str(corpus), *TINY, "--output", str(output)]) == 0
    table = capsys.readouterr().out
    runs = json.loads(output.read_text())
    assert len(runs) == 2
    rows = runs[1]["rows"]
    assert [row["part"] for row in rows] == ["counting"] * 2 + ["rewriting"] * 2 + ["nearest"] * 3 + ["length"] * 4
    assert all(row["case"] in table for row in rows)
    for row in rows:
        if row["case"].startswith("made-up bpe 500, size 0.1"):  # fewer than the 256 bytes
            assert row["ours"] is None and "must stay" in row["note"]
        else:
            assert row["ours"] > 0
            assert row["ratio"] is not None or "skeletoken is not installed" in row["note"]
    lines = list(csv.DictReader(output.with_name("benchmarks.csv").open()))
    assert {line["method"] for line in lines} == {"hf_glmd", "encode_batch_fast", "skeletoken", "matrix product"}
    assert sum(line["part"] == "vocab-nearest" and float(line["time_ms"]) > 0 for line in lines) == 2 * 2 * 3


def test_the_counting_process_of_the_vocabulary_benchmark_prints_its_memory(tmp_path, capsys):
    helpers.wordpiece_backend().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "texts.json").write_text(json.dumps(helpers.texts()))
    assert load("vocab").main(["--count-in", str(tmp_path), "--memory-mb", "0.01"]) == 0
    before, peak = map(float, capsys.readouterr().out.split())
    assert 10 < before <= peak


def test_bad_options_of_the_vocabulary_benchmark_are_said(tmp_path, corpus, capsys):
    output = ["--output", str(tmp_path / "vocab.json")]
    assert load("vocab").main(["--corpus", str(tmp_path / "none.txt"), *output]) == 2
    assert "no file" in capsys.readouterr().err
    too_many = ["--unigram-sizes", "99999", "9", "--parts", "rewriting", "--bpe-sizes", "500", "300"]
    assert load("vocab").main([*too_many, "--corpus", str(corpus), *output]) == 2
    assert "too few for 99,999" in capsys.readouterr().err
    for wrong in (["--repeats", "0"], ["--parts", "speed"], ["--nearest", "40:90:8"]):
        with pytest.raises(SystemExit) as error:
            load("vocab").main([*wrong, *output])
        assert error.value.code == 2
    assert not (tmp_path / "vocab.json").exists()


@pytest.mark.slow
def test_memory_stays_flat_while_counting(tmp_path, corpus):
    output = tmp_path / "vocab.json"
    options = ["--parts", "memory", "--memory-mb", "3", "30", "--corpus", str(corpus), *TINY, "--output", str(output)]
    assert load("vocab").main(options) == 0
    assert [row["met"] for row in json.loads(output.read_text())[0]["rows"]] == [True, True]


def test_the_scoring_benchmark_compares_the_same_batches(tmp_path, capsys):
    model = helpers.tiny_model("bert")
    model.save_pretrained(tmp_path)
    helpers.generic_tokenizer(model_max_length=40).save_pretrained(tmp_path)
    options = ["--model", str(tmp_path), "--questions", "9", "--length", "3", "6", "--batch", "4", "--repeats", "1"]
    assert load("scoring").main([*options, "--output", str(tmp_path / "out.json")]) == 0
    single, several = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert single["sequences"] == 9 < several["sequences"] <= 36 and single["tokens"] >= 9 * 7
    for row in (single, several):
        assert row["ratio"] == pytest.approx(row["scoring_s"] / row["bare_s"]) and row["bare_s"] > 0
    assert "target 1.3" in capsys.readouterr().out


def test_the_benchmark_of_cuts_keeps_to_what_was_asked(tmp_path, corpus, capsys):
    helpers.generic_tokenizer().save_pretrained(tmp_path / "words")
    (tmp_path / "other.txt").write_text("\n".join(helpers.texts(120, seed=1)), encoding="utf-8")
    options = ["--tokenizer", str(tmp_path / "words"), "--corpora", f"a={corpus}", f"b={tmp_path / 'other.txt'}", "--cuts", "2"]
    options += ["--shares", "0.8", "0.95"]
    parts = ["--parts", "floors", "knee", "rebuild", "--grid", "20", "--growth", "1.1", "--output", str(tmp_path / "cuts.json")]
    assert load("cuts").main([*options, *parts]) == 0
    (run,) = json.loads((tmp_path / "cuts.json").read_text())
    rows = {(row["part"], row["of"]): row["value"] for row in run["rows"]}
    assert 1 <= rows["floors", "words a"] <= 1.1 and 1 <= rows["floors", "words b"] <= 1.1
    assert 1 <= rows["knee", "words"] <= 1.01 and rows["rebuild", "2 cuts"] == "2 equal"
    assert rows["rebuild", "map of 262,144"] <= 40_000 and "<= 1.01" in capsys.readouterr().out


def test_the_benchmark_of_settings_trains_each_from_the_same_start(tmp_path, capsys):
    helpers.tiny_model("bert").save_pretrained(tmp_path)
    helpers.generic_tokenizer(model_max_length=40).save_pretrained(tmp_path)
    options = ["--model", str(tmp_path), "--texts", "40", "--held-out", "5", "--length", "20", "--layers", "1", "--steps", "3"]
    assert load("settings").main([*options, "--batch", "4", "--settings", "0", "5", "--output", str(tmp_path / "out.json")]) == 0
    first, last = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert first["kl_before"] == last["kl_before"] and first["kl"] != last["kl"] and first["positions"] == last["positions"] > 0
    assert capsys.readouterr().out.count(" -> ") == 6


def test_the_table_of_invariance_compares_each_cut_with_the_first(tmp_path, capsys):
    output = tmp_path / "results" / "invariance.json"
    cuts = ["--cuts", "12x1x1", "3x4x1", "--steps", "2"]
    assert load("invariance").main(["--trainers", "hf_glmd", *cuts, "--output", str(output)]) == 0
    table = capsys.readouterr().out
    rows = json.loads(output.read_text())[0]["rows"]
    assert [row["cut"]["accumulation"] for row in rows] == [1, 4] and len(table.splitlines()) == 4
    assert rows[0]["loss"] > 0.01 and rows[0]["loss_error"] == 0
    assert 0 < rows[1]["weight_error"] < 1e-5 and rows[1]["met"] is True
    assert len(list(csv.DictReader(output.with_name("benchmarks.csv").open()))) == 2
    with pytest.raises(SystemExit):
        load("invariance").main(["--cuts", "12x1x1", "3x2x1", "--output", str(output)])


def test_a_trainer_that_is_missing_or_fails_says_so_in_the_table_of_invariance():
    benchmark = load("invariance")
    rows = [benchmark.Row("trl GKDTrainer", benchmark.Cut.of(cut)) for cut in ("12x1x1", "6x1x2:zero3")]
    found = {"loss": [2.0, 1.0], "gradient_norm": [1.0, 1.0], "weights": benchmark.torch.ones(4)}
    benchmark.compare(rows[0], found, found)
    benchmark.compare(rows[1], "ValueError: no", found)
    assert rows[0].met is True and rows[1].met is None
    assert "ValueError: no" in benchmark.table_of(rows).splitlines()[-1]
    halved = benchmark.Row("trl GKDTrainer", benchmark.Cut.of("6x1x2"))
    benchmark.compare(halved, found | {"gradient_norm": [0.5, 1.0]}, found)
    assert halved.gradient_error == 0.5 and halved.met is False
