"""The comparison: each rival is what its paper writes, and no result is averaged that was not measured."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch
import training_helpers as helpers
import vocab_helpers
import yaml
from torch.nn import functional

from hf_glmd import UsageError
from hf_glmd.data.collators import WordPredictionCollator
from hf_glmd.teachers.live import LiveTeacher

COMPARE = Path(__file__).parents[2] / "recipes" / "compare"
sys.path.insert(0, str(COMPARE))
import cells as cells_module  # noqa: E402
import compare as compare_module  # noqa: E402
import rivals  # noqa: E402

HEADS, WIDTH, WIDE = 2, 32, 16  # two relation heads of MiniLMv2
MEASURES = ("kl", "accuracy", "visible")


def bert(layers: int) -> torch.nn.Module:
    return helpers.student(num_hidden_layers=layers, hidden_size=WIDTH, num_attention_heads=HEADS).double()


@pytest.fixture
def models() -> tuple[torch.nn.Module, torch.nn.Module]:
    student, teacher = bert(2), bert(4)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.mul_(1.7)
    return student, teacher


def batch_of(positions: str) -> dict[str, torch.Tensor]:
    collator = WordPredictionCollator(helpers.TOKENIZER, positions, 0.3)
    return collator([{"input_ids": row} for row in helpers.rows(5)["input_ids"]])


def loss_of(name: str, models, batch, tmp_path) -> torch.Tensor:
    rivals.register()
    student, teacher = models
    args = helpers.arguments(tmp_path, objective=name, positions="masked")
    objective = next(one for one in rivals.RIVALS if one.name == name)(student, LiveTeacher(teacher), args, helpers.TOKENIZER)
    told = objective.teach(batch)
    return objective.ask(student, batch, lambda said: objective.loss(said, told, batch))


class Seen:
    """What a model does with a batch, by its own outputs rather than by hooks."""

    def __init__(self, model, batch):
        self.model, self.mask = model, batch["attention_mask"].bool()
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        output = model(**inputs, output_hidden_states=True)
        self.states, self.logits = output.hidden_states, output.logits

    def projected(self, layer: int, part: str) -> torch.Tensor:
        """[B, S, H] of the query, key or value of a layer."""
        return getattr(self.model.base_model.encoder.layer[layer].attention.self, part)(self.states[layer])

    def scores(self, layer: int) -> torch.Tensor:
        query, key = (self.projected(layer, part).unflatten(-1, (HEADS, -1)) for part in ("query", "key"))
        return torch.einsum("bihd,bjhd->bhij", query, key) / math.sqrt(WIDTH / HEADS)


def kl(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    p, q = (torch.softmax(logits / temperature, -1) for logits in (teacher, student))
    return temperature**2 * (p * (p.log() - q.log())).sum(-1).mean()


def expected(name: str, student: Seen, teacher: Seen, batch) -> torch.Tensor:
    counted, seen, targets = batch["prediction_mask"], batch["attention_mask"].bool(), batch["targets"]
    hidden = targets >= 0
    gold = -torch.log_softmax(student.logits, -1)[hidden].gather(-1, targets[hidden][:, None]).mean()
    words = [kl(student.logits[counted], teacher.logits[counted], temperature) for temperature in (1.0, 2.0)]
    difference = (student.states[-1] - teacher.states[-1])[seen]
    if name == "gold_words":
        return gold
    if name == "kd":
        return words[1] / 2 + gold / 2
    if name == "distilbert":
        ends = [one.states[-1][seen] for one in (student, teacher)]
        cosine = (ends[0] * ends[1]).sum(-1) / (ends[0].norm(dim=-1) * ends[1].norm(dim=-1))
        return 5 * words[1] + 2 * gold + (1 - cosine).mean()
    if name == "words_and_last_hidden":
        return words[0] + (difference**2).mean()
    if name == "tinybert":
        total = ((student.states[0] - teacher.states[0])[seen] ** 2).mean()
        for own, theirs in ((0, 1), (1, 3)):
            total = total + ((student.states[own + 1] - teacher.states[theirs + 1])[seen] ** 2).mean()
            squares = (student.scores(own) - teacher.scores(theirs)) ** 2
            kept = torch.cat([squares[row][:, one][:, :, one].flatten() for row, one in enumerate(seen)])
            total = total + kept.mean()
        return total
    total = 0.0
    for part in ("query", "key", "value"):
        values = []
        for row, one in enumerate(seen):
            relations = []
            for side, layer in ((teacher, 3), (student, 1)):
                heads = side.projected(layer, part)[row, one].reshape(-1, WIDTH // WIDE, WIDE).transpose(0, 1)
                relations.append(torch.softmax(heads @ heads.transpose(-1, -2) / math.sqrt(WIDE), -1))
            values.append((relations[0] * (relations[0].log() - relations[1].log())).sum(-1).mean(0))
        total = total + torch.cat(values).mean()
    return total


@pytest.mark.parametrize("name", [rival.name for rival in rivals.RIVALS])
@pytest.mark.parametrize("positions", ["masked", "all"])
def test_each_rival_is_what_its_paper_writes(tmp_path, models, name, positions):
    batch = batch_of(positions)
    assert batch["attention_mask"].min() == 0 and (batch["targets"] >= 0).any()
    found = loss_of(name, models, batch, tmp_path)
    wanted = expected(name, *(Seen(model, batch) for model in models), batch).detach()
    assert float(wanted) > 1e-3
    assert float(found.detach() / batch["prediction_mask"].sum()) == pytest.approx(float(wanted), rel=1e-9)
    found.backward()
    gradients = [parameter.grad for parameter in models[0].parameters()]
    assert sum(float(one.abs().sum()) for one in gradients if one is not None) > 0


def test_a_rival_that_looks_inside_wants_equal_widths(tmp_path, models):
    narrow = helpers.student(num_hidden_layers=2, hidden_size=WIDTH // 2, num_attention_heads=HEADS).double()
    with pytest.raises(UsageError, match="16 wide, the teacher 32. Use a student of the teacher's width"):
        loss_of("tinybert", (narrow, models[1]), batch_of("masked"), tmp_path)
    loss_of("kd", (narrow, models[1]), batch_of("masked"), tmp_path)


def test_padding_says_nothing(tmp_path, models):
    """The same rows, padded further, cost the same."""
    batch = batch_of("masked")
    longer = {name: functional.pad(value, (0, 3), value=-100 if name == "targets" else 0) for name, value in batch.items()}
    for rival in rivals.RIVALS:
        losses = [float(loss_of(rival.name, models, one, tmp_path).detach()) for one in (batch, longer)]
        assert losses[1] == pytest.approx(losses[0], rel=1e-9), rival.name


@pytest.fixture
def experiment(tmp_path) -> Path:
    """A config over a tiny teacher and a text file."""
    teacher = helpers.student(num_hidden_layers=3)
    teacher.save_pretrained(tmp_path / "teacher")
    helpers.TOKENIZER.save_pretrained(tmp_path / "teacher")
    (tmp_path / "text.txt").write_text("\n".join(vocab_helpers.texts(300)), encoding="utf-8")
    settings = {
        "teacher": str(tmp_path / "teacher"),
        "corpus": str(tmp_path / "text.txt"),
        "student": {"num_layers": 2, "vocab": 0.9},
        "steps": 4,
        "tune_steps": 2,
        "learning_rates": ["1e-3", 0.002],
        "seeds": [0, 1],
        "length": 16,
        "batch_size": 4,
        "held_out": 16,
        "common": {"mlm_probability": 0.3},
        "reference": "words",
        "methods": {
            "words": {"stages": [{"temperature": 1.0, "positions": "masked", "mask_replace_prob": 0.8}]},
            "DistilBERT": {"stages": [{"objective": "distilbert"}]},
            "relations, then words": {
                "stages": [{"objective": "tinybert", "share": 0.5}, {"temperature": 1.0, "share": 0.5}],
            },
            "nothing": {},
        },
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    return path


def compare(config: Path, capsys, *options: str) -> tuple[int, str, str]:
    """Exit code, what it prints and what it complains of."""
    threads = torch.get_num_threads()
    code = compare_module.main([str(config), "--cells", str(config.parent / "cells"), *options])
    torch.set_num_threads(threads)
    return code, *capsys.readouterr()


def test_a_comparison_is_measured_once_and_refuses_what_it_did_not_measure(experiment, capsys):
    code, _, complaint = compare(experiment, capsys, "--show")
    assert code == 2 and "not measured yet, and those that follow from them" in complaint and "Run the command" in complaint
    code, first, complaint = compare(experiment, capsys, "--jobs", "2")
    assert code == 0, complaint
    table = first[first.index("| method") :]
    assert table.count("\n| ") == 5 and "nan" not in table
    folder = experiment.parent / "cells"
    made = {path: path.read_text() for path in folder.glob("*.json")}
    assert len(made) == 3 * 2 + 4 * 2
    again = compare(experiment, capsys)
    assert again[1] == table and {path: path.read_text() for path in folder.glob("*.json")} == made
    results = json.loads((folder / "tiny" / "results.json").read_text())
    assert results["methods"][0]["method"] == "words" and (folder / "tiny" / "chart.png").stat().st_size > 10_000

    # Measured anew, a cell is the same to the last digit.
    one = next(path for path, text in made.items() if '"kind": "test"' in text and "distilbert" in text)
    one.unlink()
    code, printed, _ = compare(experiment, capsys)
    before, after = (json.loads(text)["result"] for text in (made[one], one.read_text()))
    assert code == 0 and {name: before[name] for name in MEASURES} == {name: after[name] for name in MEASURES}

    # A foreign result under its name is refused.
    other = next(path for path in made if path != one)
    one.write_text(other.read_text())
    code, _, complaint = compare(experiment, capsys, "--show")
    assert code == 2 and "is not the result of 'test DistilBERT" in complaint and "Delete the file" in complaint


def test_a_setting_that_nobody_reads_is_refused(experiment, capsys):
    said = yaml.safe_load(experiment.read_text())
    experiment.write_text(yaml.safe_dump(said | {"step": 3}))
    code, _, complaint = compare(experiment, capsys)
    assert code == 2 and "['step'] are no settings of Experiment" in complaint
    assert not (experiment.parent / "cells").exists()


def test_two_processes_do_not_measure_one_cell(tmp_path):
    measured = []
    cell = cells_module.Cell("one", {"a": 1}, lambda folder: measured.append(folder) or {"x": 1.0})
    cells = cells_module.Cells(tmp_path)

    def at_the_same_time(folder: Path) -> dict:
        assert not cells_module.Cells(tmp_path).measure(cell)
        return {"x": 2.0}

    assert cells.measure(cells_module.Cell("one", {"a": 1}, at_the_same_time)) and not measured
    assert cells.result(cell) == {"x": 2.0} and cells.measure(cell) and not measured


def test_tasks_are_split_so_that_the_test_is_large_enough(tmp_path):
    from tasks import load_task

    folder = tmp_path / "superglue" / "RTE"
    folder.mkdir(parents=True)
    for name, count in (("train", 40), ("val", 6)):
        rows = [{"premise": f"{name} {n}", "hypothesis": "b", "label": "ab"[n % 2]} for n in range(count)]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = load_task("RTE", tmp_path, train=25, test=16)
    assert len(task["test"]) == 16 and len(task["train"]) == 25 and set(task["train"]["label"]) == {0, 1}
    assert not set(task["test"]["text"]) & set(task["train"]["text"])
    assert sum(text.startswith("val") for text in task["test"]["text"]) == 6
    with pytest.raises(UsageError, match="MRPC.*is missing. Give the folder"):
        load_task("MRPC", tmp_path, 1, 1)
