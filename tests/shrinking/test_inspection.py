"""`hf-glmd inspect`, from the command line."""

import json

import pytest
import vocab_helpers as helpers
from transformers import AutoTokenizer

from hf_glmd.cli import main
from hf_glmd.reports.vocab_report import VocabReport


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    helpers.fast_tokenizer("wordpiece").save_pretrained(folder)
    helpers.tiny_model("bert").save_pretrained(folder)
    (folder / "de.txt").write_text("\n".join(f"walking talked {text}" for text in helpers.texts(200, 1)))
    (folder / "fr.txt").write_text("\n".join(helpers.texts(150, 2)))
    return folder


def inspected(capsys, *words: object) -> dict:
    assert main(["inspect", *map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_model_is_weighed_by_part(checkpoint, capsys):
    model = helpers.tiny_model("bert")
    parts = inspected(capsys, checkpoint)["model"]
    assert sum(parts[name] for name in ("input_table", "output_table", "other_vocabulary", "body")) == model.num_parameters()
    assert parts["tied"] and parts["output_table"] == 0 and parts["other_vocabulary"] == helpers.V  # the head's bias
    assert parts["input_table"] == model.get_input_embeddings().weight.numel() and parts["dtype"] == "float32"
    assert main(["inspect", str(checkpoint)]) == 0
    assert "with half of the tokens, 105:" in capsys.readouterr().out


def test_an_untied_model_has_two_tables(tmp_path, capsys):
    helpers.fast_tokenizer("wordpiece").save_pretrained(tmp_path)
    helpers.tiny_model("bert-untied").save_pretrained(tmp_path)
    parts = inspected(capsys, tmp_path)["model"]
    assert not parts["tied"] and parts["output_table"] == parts["input_table"]


def test_a_tokenizer_alone_is_told_of(tmp_path, checkpoint, capsys):
    helpers.fast_tokenizer("wordpiece").save_pretrained(tmp_path)
    found = inspected(capsys, tmp_path, "--corpus", checkpoint / "de.txt")
    assert found["model"] is None and list(found["sizes"]["corpora"]) == ["text"]


def test_sizes_of_two_corpora_their_knee_and_the_picture(checkpoint, tmp_path, capsys):
    corpora = [f"de={checkpoint / 'de.txt'}", f"fr={checkpoint / 'fr.txt'}"]
    for name in ("sizes.png", "sizes.svg"):
        found = inspected(capsys, checkpoint, "--corpus", *corpora, "--plot", tmp_path / name)
        assert found["pictures"] == [str(tmp_path / name), str(tmp_path / "sizes.csv")]
    assert (tmp_path / "sizes.png").read_bytes().startswith(b"\x89PNG") and "<svg" in (tmp_path / "sizes.svg").read_text()
    knee = found["sizes"]["knee"]
    assert max(knee["growth"].values()) <= 1.01 and knee["mb"] < found["model"]["bytes"] / 1e6
    rows = [line.split(",") for line in (tmp_path / "sizes.csv").read_text().splitlines()]
    assert rows[0] == ["tokens", "growth de", "growth fr", "coverage de", "coverage fr"]
    assert str(knee["size"]) in [row[0] for row in rows]
    assert main(["inspect", str(checkpoint), "--corpus", *corpora]) == 0
    screen = capsys.readouterr().out
    assert f"Knee: {knee['size']:,} tokens" in screen and f"<- knee {knee['size']:,} |" in screen


def test_held_out_text_of_ones_own_is_measured_and_the_corpus_counted_whole(checkpoint, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("walking talked\n" * 3)
    found = inspected(capsys, checkpoint, "--corpus", checkpoint / "de.txt", "--held-out", tmp_path / "mine.txt")
    assert found["sizes"]["corpora"]["text"] | {"tokens": 0} == {
        "texts": 200,
        "tokens": 0,
        "held_out_texts": 3,
        "held_out_tokens": 6,
    }


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "the model is missing"),
        (["M", "--corpus", "de=a.txt", "de=b.txt"], "--corpus names 'de' twice ('a.txt' and 'b.txt')"),
        (["M", "--corpus", "a.txt", "b.txt"], "--corpus 'a.txt' has no name: write a=a.txt"),
        (["M", "--corpus", "=a.txt"], "is no name=source"),
        (["M", "--plot", "x.gif"], "--plot 'x.gif' is no picture"),
        (["M", "--plot", "x.png"], "give --corpus"),
        (["M", "--knee-growth", "0.9"], "--knee-growth 0.9 is below 1"),
    ],
)
def test_bad_input_is_refused_in_one_line(words, said, capsys):
    assert main(["inspect", *words]) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.splitlines()) == 1


def shrunk(capsys, checkpoint, output, *words) -> dict:
    assert main(["shrink", str(checkpoint), "--output", str(output), *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)["vocabulary"]


def test_shrink_takes_what_is_needed_instead_of_a_number(checkpoint, tmp_path, capsys):
    corpora = ["--corpus", f"de={checkpoint / 'de.txt'}", f"fr={checkpoint / 'fr.txt'}"]
    sizes = inspected(capsys, checkpoint, *corpora, "--knee-growth", "1.02")["sizes"]
    cut = shrunk(capsys, checkpoint, tmp_path / "a", *corpora, "--growth", "1.02")
    assert cut["size"] <= sizes["knee"]["size"]
    looser = shrunk(capsys, checkpoint, tmp_path / "b", *corpora, "--growth", "de=1.02", "fr=1.5")
    assert looser["size"] <= cut["size"]
    row = sizes["rows"][1]
    assert shrunk(capsys, checkpoint, tmp_path / "c", *corpora, "--max-mb", str(row["mb"]))["size"] == row["size"]
    most = f"{row['parameters'] / 1e6:.6f}M"
    assert shrunk(capsys, checkpoint, tmp_path / "d", *corpora, "--max-params", most)["size"] == row["size"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--growth", "1.02", "--size", "0.5"], "--size and --growth contradict each other"),
        (["--growth", "two"], "--growth 'two' is no number"),
        (["--growth", "de=1.1", "de=1.2"], "--growth names 'de' twice"),
        (["--growth", "xx=1.1"], "growth names 'xx', which is no corpus: use de"),
        (["--growth", "1.0", "--max-params", "1k"], "max_params=1,000 leaves 0 tokens"),
        (["--growth", "1.02", "--weights", "2"], "go without --weights"),
    ],
)
def test_floors_that_contradict_are_refused_in_one_line(words, said, checkpoint, tmp_path, capsys):
    start = ["shrink", str(checkpoint), "--output", str(tmp_path / "out"), "--corpus", f"de={checkpoint / 'de.txt'}"]
    assert main([*start, *words]) == 2
    error = capsys.readouterr().err
    assert said in error and len([line for line in error.splitlines() if line.startswith("hf-glmd:")]) == 1
    assert not (tmp_path / "out").exists()


def test_the_ledger_says_what_each_named_corpus_and_each_other_text_lost(checkpoint, tmp_path, capsys):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "ru.txt").write_text("walking talked qqq\n" * 5)
    (tmp_path / "texts" / "el.txt").write_text("resting marked zzz\n" * 7)
    words = ["--corpus", f"de={checkpoint / 'de.txt'}", f"fr={checkpoint / 'fr.txt'}", "--ledger", str(tmp_path / "texts")]
    out = tmp_path / "out"
    report = shrunk(capsys, checkpoint, out, *words, "--size", "0.5")
    rows = {row["name"]: row for row in report["ledger"]}
    assert {name: (row["counted"], row["texts"]) for name, row in rows.items()} == {
        "de": (True, 10),
        "fr": (True, 8),
        "el": (False, 7),
        "ru": (False, 5),
    }
    before, after = (AutoTokenizer.from_pretrained(folder) for folder in (checkpoint, out))
    for name in ("el", "ru"):
        texts = (tmp_path / "texts" / f"{name}.txt").read_text().splitlines()
        ids = [[token for text in texts for token in one.encode(text, add_special_tokens=False)] for one in (before, after)]
        assert [rows[name]["tokens_before"], rows[name]["tokens_after"]] == list(map(len, ids))
        kept = set(after.get_vocab())
        assert rows[name]["coverage"] == pytest.approx(
            sum(token in kept for token in before.convert_ids_to_tokens(ids[0])) / len(ids[0])
        )
        unknown = [part.count(one.unk_token_id) for one, part in ((before, ids[0]), (after, ids[1]))]
        assert (rows[name]["unknown_characters"] > 0) == (unknown[1] > unknown[0])
    card = (out / "README.md").read_text()
    assert "| ru (not counted) |" in card and "| de " in card
    assert VocabReport.load(out / "vocab_report.json").ledger[0].name == "de"
