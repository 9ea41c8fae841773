"""Encoders that learn where their teacher puts texts."""

import copy
import subprocess
import sys

import datasets
import numpy as np
import peft
import pytest
import torch
import training_helpers as helpers
import vocab_helpers
from transformers import AutoModel, DataCollatorWithPadding

from hf_glmd import GLMDConfig, LiveTeacher, UsageError, VocabShrinker, build_student
from hf_glmd.models.encoders import POOLINGS

TEXTS = [text for text in vocab_helpers.texts(60) if text][:20]


def encoder(layers: int = 2, **settings) -> torch.nn.Module:
    torch.manual_seed(layers)
    settings = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, **settings}
    return vocab_helpers.tiny_class("BertModel", vocab_helpers._SMALL | settings | {"num_hidden_layers": layers}, vocab_helpers.V)


def teacher() -> torch.nn.Module:
    torch.manual_seed(3)
    model = encoder(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    return model


def trainer(folder, **settings):
    rows = datasets.Dataset.from_dict({"text": TEXTS})
    parts = {"model": encoder(), "teacher": teacher(), "train_dataset": rows, "eval_dataset": rows.select(range(7))}
    return helpers.trainer(folder, **{**parts, "objective": "embedding", "max_length": 24, **settings})


def pooled(model, text: str, pooling: str) -> torch.Tensor:
    inputs = helpers.TOKENIZER(text, return_tensors="pt", truncation=True, max_length=24)
    states = model.double()(**{name: inputs[name] for name in ("input_ids", "attention_mask")}).last_hidden_state[0]
    return {"mean": states.mean(0), "cls": states[0], "lasttoken": states[-1], "max": states.amax(0)}[pooling]


@pytest.mark.parametrize("loss", ["mse", "cosine"])
@pytest.mark.parametrize("pooling", ["mean", "cls", "max", "lasttoken"])
def test_the_loss_is_that_of_one_text_at_a_time(tmp_path, pooling, loss):
    one, other = encoder(), teacher()
    found = trainer(tmp_path, model=one, teacher=other, pooling=pooling, embedding_loss=loss).evaluate()
    with torch.no_grad():
        pairs = [(pooled(one.eval(), text, pooling), pooled(other.eval(), text, pooling)) for text in TEXTS[:7]]
    cosines = [float(torch.cosine_similarity(*pair, dim=0)) for pair in pairs]
    squares = [float((a - b).square().mean()) for a, b in pairs]
    wanted = sum(squares) / 7 if loss == "mse" else 1 - sum(cosines) / 7
    assert found["eval_loss"] == pytest.approx(wanted, rel=1e-4) and wanted > 1e-3
    assert found["eval_cosine"] == pytest.approx(sum(cosines) / 7, rel=1e-4)


def test_it_teaches_and_batches_do_not_matter(tmp_path):
    weights = []
    for batch, accumulation in ((6, 1), (3, 2), (1, 6)):
        options = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation, "learning_rate": 5e-3}
        run = trainer(tmp_path, max_steps=12, **options)
        before = run.evaluate()["eval_loss"]
        run.train()
        assert run.evaluate()["eval_loss"] < 0.8 * before
        weights.append(torch.cat([p.detach().flatten() for p in run.model.parameters()]))
    for other in weights[1:]:
        torch.testing.assert_close(other, weights[0], rtol=1e-3, atol=2e-4)


def test_a_student_of_a_smaller_vocabulary_by_name_and_back(tmp_path):
    whole = teacher()
    vocab = VocabShrinker(helpers.TOKENIZER).count(TEXTS, progress=False).shrink(size=120)
    student = build_student(whole, num_layers=2, vocab=vocab)
    whole.save_pretrained(tmp_path / "teacher")
    rows = datasets.Dataset.from_dict({"text": TEXTS})
    parts = {"model": student, "teacher": str(tmp_path / "teacher"), "train_dataset": rows}
    run = trainer(tmp_path / "out", **parts, vocab_map=vocab.vocab_map, processing_class=vocab.tokenizer)
    run.train()
    run.save_model()
    again = AutoModel.from_pretrained(tmp_path / "out")
    assert again.config.vocab_size == 120 and type(again).__name__ == "BertModel"
    ids = {"input_ids": torch.arange(5, 15)[None]}
    torch.testing.assert_close(again(**ids).last_hidden_state, run.model.eval()(**ids).last_hidden_state)
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_dir()) == ["1_Pooling"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "pipeline_tag: feature-extraction" in card and "AutoModel" in card


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(UsageError, match="BertForMaskedLM is none. Load it with AutoModel"):
        trainer(tmp_path, model=helpers.student(), teacher=helpers.teacher())
    adapters = peft.LoraConfig(target_modules=["query"])
    with pytest.raises(
        UsageError, match="embeddings are 24 wide, the teacher's 16, and beside adapters no projection is trained"
    ):
        trainer(tmp_path, model=encoder(hidden_size=24), peft_config=adapters)
    with pytest.raises(UsageError, match="do not predict the same words|text encoder"):
        trainer(tmp_path, teacher=helpers.teacher())
    with pytest.raises(UsageError, match="BertModel predicts none: it has no head. Use objective='embedding'"):
        trainer(tmp_path, objective="word_prediction")
    with pytest.raises(UsageError, match="temperature=2.0 would do nothing"):
        trainer(tmp_path, temperature=2.0)
    with pytest.raises(UsageError, match="needs one teacher"):
        trainer(tmp_path, teacher=[teacher(), teacher()])
    with pytest.raises(UsageError, match="pooling='sum' is unknown, use 'mean', 'cls', 'max' or.*embedding_loss='l1' is unknown"):
        GLMDConfig(str(tmp_path), pooling="sum", embedding_loss="l1")


def test_padding_says_nothing(tmp_path):
    run = trainer(tmp_path)
    batch = run.data_collator([run.train_dataset[number] for number in range(4)])
    longer = {name: torch.nn.functional.pad(value, (0, 3)) if value.shape[1] > 1 else value for name, value in batch.items()}
    losses = [float(run.summed_loss(run.model.eval(), inputs).detach()) for inputs in (batch, longer)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert isinstance(run.teacher, LiveTeacher) and not any(p.requires_grad for p in run.teacher.model.parameters())


@pytest.mark.parametrize("loss", ["mse", "cosine"])
@pytest.mark.parametrize(("width", "pooling"), [(8, "mean"), (24, "max"), (8, "cls")])
def test_another_width_is_projected(tmp_path, width, pooling, loss):
    one, other = encoder(hidden_size=width), teacher()
    run = trainer(tmp_path, model=one, teacher=other, pooling=pooling, embedding_loss=loss, max_steps=30, learning_rate=1e-2)
    found, start = run.evaluate(), copy.deepcopy(run.model.embedding_projection.weight.detach()).double()
    with torch.no_grad():
        pairs = [
            (start @ pooled(copy.deepcopy(one).eval(), text, pooling), pooled(copy.deepcopy(other).eval(), text, pooling))
            for text in TEXTS[:7]
        ]
    cosines = [float(torch.cosine_similarity(*pair, dim=0)) for pair in pairs]
    wanted = sum(float((a - b).square().mean()) for a, b in pairs) / 7 if loss == "mse" else 1 - sum(cosines) / 7
    assert found["eval_loss"] == pytest.approx(wanted, rel=1e-4)
    assert found["eval_cosine"] == pytest.approx(sum(cosines) / 7, abs=1e-5)
    short = min(width, 16)
    torch.testing.assert_close(start.T @ start if width < 16 else start @ start.T, torch.eye(short).double(), atol=1e-5, rtol=0)
    run.train()
    assert run.evaluate()["eval_loss"] < 0.7 * wanted
    assert (run.model.embedding_projection.weight - start).abs().max() > 1e-2
    assert run.student_sizes.parameters == encoder(hidden_size=width).num_parameters()


def test_the_teacher_is_what_is_learnt(tmp_path):
    run = trainer(tmp_path, model=encoder(hidden_size=8))
    batch = run.data_collator([run.train_dataset[number] for number in range(4)])
    found = []
    for change in (1.0, 1.0, -1.0):
        with torch.no_grad():
            run.teacher.model.encoder.layer[-1].output.LayerNorm.weight.mul_(change)
        run.model.zero_grad()
        run.compute_loss(run.model.train(), batch).backward()
        found.append(torch.cat([p.grad.flatten() for p in run.model.parameters() if p.grad is not None]))
    torch.testing.assert_close(found[1], found[0])
    assert (found[2] - found[0]).norm() > 0.1 * found[0].norm()


def test_logits_are_hidden_states(tmp_path):
    run = trainer(tmp_path, model=encoder(hidden_size=8))
    batch = run.data_collator([run.train_dataset[number] for number in range(4)])
    loss, outputs = run.compute_loss(run.model, batch, return_outputs=True)
    torch.testing.assert_close(loss, run.compute_loss(run.model, batch))


def test_rows_of_other_collators_count_once_each(tmp_path):
    rows = trainer(tmp_path).eval_dataset
    parts = {"train_dataset": rows, "eval_dataset": rows, "per_device_eval_batch_size": 3}
    other = {"data_collator": DataCollatorWithPadding(helpers.TOKENIZER, padding="max_length", max_length=30)}
    found = [trainer(tmp_path, **parts, **options).evaluate() for options in ({}, other)]
    assert found[1]["eval_loss"] == pytest.approx(found[0]["eval_loss"], rel=1e-5)
    run = trainer(tmp_path, **parts, **other)
    batch = run.data_collator([rows[number] for number in range(4)])
    mean = run.compute_loss(run.model.eval(), batch) - run.summed_loss(run.model, batch) / 4
    assert batch["prediction_mask"].shape == (4, 1) and abs(float(mean.detach())) < 1e-6


def test_padding_on_the_left_is_not_taken_for_the_first_token():
    ids = torch.tensor([[0, 0, 5, 6], [7, 8, 9, 0]])
    states, mask = torch.randn(2, 4, 3), (ids > 0).long()
    assert POOLINGS["cls"](states, mask).equal(states[[0, 1], [2, 0]])
    assert POOLINGS["lasttoken"](states, mask).equal(states[[0, 1], [3, 2]])
    assert POOLINGS["max"](states, mask).equal(torch.stack([states[0, 2:].amax(0), states[1, :3].amax(0)]))


def test_a_resumed_training_goes_on_with_its_projection(tmp_path):
    rows = datasets.Dataset.from_dict({"text": TEXTS})
    options = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "train_dataset": rows, "eval_dataset": None}
    whole = trainer(tmp_path, model=encoder(hidden_size=8), **options)
    whole.train()
    again = trainer(tmp_path, model=encoder(hidden_size=8), **options)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    torch.testing.assert_close(again.model.embedding_projection.weight, whole.model.embedding_projection.weight)


FRESH = """
import sys, torch
from transformers import AutoModel
model, info = AutoModel.from_pretrained(sys.argv[1], output_loading_info=True)
assert type(model).__name__ == "BertModel" and not info["missing_keys"] and not info["unexpected_keys"], info
with torch.no_grad():
    torch.save(model.eval()(input_ids=torch.arange(5, 15)[None]).last_hidden_state, sys.argv[2])
if sys.argv[3] == "modules":
    from sentence_transformers import SentenceTransformer
    loaded = SentenceTransformer(sys.argv[1], device="cpu")
    torch.save(torch.from_numpy(loaded.encode(sys.argv[4:])), sys.argv[2] + ".embeddings")
"""


def sentence_transformer(model, folder, pooling="mean", normalize=True):
    """A whole one, of an encoder."""
    library = pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer import modules

    model.save_pretrained(folder)
    helpers.TOKENIZER.save_pretrained(folder)
    parts = [modules.Transformer(str(folder), max_seq_length=24), modules.Pooling(model.config.hidden_size, pooling)]
    return library.SentenceTransformer(modules=[*parts, *([modules.Normalize()] if normalize else [])], device="cpu")


def test_a_fresh_process_loads_the_encoder_and_its_modules(tmp_path):
    whole = sentence_transformer(teacher(), tmp_path / "encoder", "cls")
    whole.save(str(tmp_path / "whole"))
    folder = tmp_path / "out"
    run = trainer(folder, model=encoder(hidden_size=8), teacher=str(tmp_path / "whole"), max_steps=30, learning_rate=1e-2)
    assert run.args.pooling == "cls" and run.training_objective.pooled.normalized
    before = run.evaluate()
    run.train()
    after = run.evaluate()
    run.save_model()
    assert hasattr(run.model, "embedding_projection")
    subprocess.run([sys.executable, "-c", FRESH, folder, folder / "states", "modules", *TEXTS[:7]], check=True)
    with torch.no_grad():
        wanted = run.model.eval()(input_ids=torch.arange(5, 15)[None]).last_hidden_state
    torch.testing.assert_close(torch.load(folder / "states"), wanted, rtol=1e-5, atol=1e-6)
    theirs, ours = whole.encode(TEXTS[:7]), torch.load(f"{folder / 'states'}.embeddings").numpy()
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, rtol=1e-5)
    assert float((ours * theirs).sum(1).mean()) == pytest.approx(after["eval_cosine"], abs=1e-5)
    assert after["eval_cosine"] > before["eval_cosine"] + 0.01


def test_whole_sentence_transformers_are_both_pooled_as_they_say(tmp_path):
    one, other = (sentence_transformer(*parts) for parts in (
        (encoder(), tmp_path / "one", "max", False), (teacher(), tmp_path / "other", "lasttoken")))  # fmt: skip
    run = trainer(tmp_path, model=one, teacher=other, processing_class=helpers.TOKENIZER, pooling="cls")
    found = run.evaluate()
    ours, theirs = one.encode(TEXTS[:7]), other.encode(TEXTS[:7])
    assert found["eval_loss"] == pytest.approx(float(((ours - theirs) ** 2).mean()), rel=1e-4)
    run.train()
    assert not np.allclose(one.encode(TEXTS[:1]), ours[:1], atol=1e-4)  # it was trained in place
    with pytest.raises(UsageError, match="the teacher is the student itself"):
        trainer(tmp_path, model=one, teacher=one)


def test_what_sentence_transformers_do_besides_is_refused_with_a_way_out(tmp_path):
    whole = sentence_transformer(teacher(), tmp_path / "encoder")
    from sentence_transformers.sentence_transformer import modules

    deep = type(whole)(modules=[whole[0], whole[1], modules.Dense(16, 7)], device="cpu")
    deep.save(str(tmp_path / "deep"))
    with pytest.raises(UsageError, match=r"has the modules Transformer, Pooling, Dense: .* Pass model\[0\].auto_model, and"):
        trainer(tmp_path, teacher=deep)
    with pytest.raises(
        UsageError, match=r"deep' has the modules Transformer, Pooling, Dense: .* Pass AutoModel.from_pretrained\("
    ):
        trainer(tmp_path, teacher=str(tmp_path / "deep"))
    trainer(tmp_path, teacher=AutoModel.from_pretrained(tmp_path / "deep"), pooling="mean").evaluate()
    odd = type(whole)(modules=[whole[0], modules.Pooling(16, "weightedmean")], device="cpu")
    with pytest.raises(UsageError, match="pools by weightedmean: only one of mean, cls, max, lasttoken is known"):
        trainer(tmp_path, teacher=odd)
