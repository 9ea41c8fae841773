"""Encoders that learn where their teacher puts texts."""

import datasets
import pytest
import torch
import training_helpers as helpers
import vocab_helpers
from transformers import AutoModel

from hf_glmd import GLMDConfig, LiveTeacher, UsageError, VocabShrinker, build_student

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
    return {"mean": states.mean(0), "cls": states[0], "lasttoken": states[-1]}[pooling]


@pytest.mark.parametrize("loss", ["mse", "cosine"])
@pytest.mark.parametrize("pooling", ["mean", "cls", "lasttoken"])
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
    card = (tmp_path / "out" / "README.md").read_text()
    assert "pipeline_tag: feature-extraction" in card and "AutoModel" in card


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(UsageError, match="BertForMaskedLM is none. Load it with AutoModel"):
        trainer(tmp_path, model=helpers.student(), teacher=helpers.teacher())
    with pytest.raises(UsageError, match="embeddings are 24 wide, the teacher's 16"):
        trainer(tmp_path, model=encoder(hidden_size=24))
    with pytest.raises(UsageError, match="do not predict the same words|text encoder"):
        trainer(tmp_path, teacher=helpers.teacher())
    with pytest.raises(UsageError, match="BertModel predicts none: it has no head. Use objective='embedding'"):
        trainer(tmp_path, objective="word_prediction")
    with pytest.raises(UsageError, match="temperature=2.0 would do nothing"):
        trainer(tmp_path, temperature=2.0)
    with pytest.raises(UsageError, match="needs one teacher"):
        trainer(tmp_path, teacher=[teacher(), teacher()])
    with pytest.raises(UsageError, match="pooling='max' is unknown.*embedding_loss='l1' is unknown"):
        GLMDConfig(str(tmp_path), pooling="max", embedding_loss="l1")


def test_padding_says_nothing(tmp_path):
    run = trainer(tmp_path)
    batch = run.data_collator([run.train_dataset[number] for number in range(4)])
    longer = {name: torch.nn.functional.pad(value, (0, 3)) if value.shape[1] > 1 else value for name, value in batch.items()}
    losses = [float(run.summed_loss(run.model.eval(), inputs).detach()) for inputs in (batch, longer)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert isinstance(run.teacher, LiveTeacher) and not any(p.requires_grad for p in run.teacher.model.parameters())
