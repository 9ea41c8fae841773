"""Examples with what both models said."""

import datasets
import numpy as np
import pytest
import torch
import vocab_helpers
from record_examples import ANSWER_SAMPLES, WORD_SAMPLES, example_record

from hf_glmd.evaluation.samples import MAX_CHARACTERS, answer_samples, word_samples
from hf_glmd.reports.records import RunRecord
from hf_glmd.tasks.cloze import ClozeTask
from hf_glmd.teachers.live import LiveTeacher

TASK = ClozeTask("verbs", "call {mask} . {text}", {"yes": "walk", "no": "talk"}, source="ours")


@pytest.fixture(scope="module", params=["bert", "gpt2"])
def reader(request):
    """A model that reads masked words, or one that reads from left to right, with its tokenizer and rows."""
    tokenizer = vocab_helpers.generic_tokenizer()
    model = vocab_helpers.tiny_model(request.param).eval()
    rows = datasets.Dataset.from_dict({"input_ids": tokenizer(vocab_helpers.texts(30))["input_ids"]})
    return model, tokenizer, rows


def test_words_have_the_likeliest_tokens_of_both_models(reader):
    model, tokenizer, rows = reader
    samples = word_samples(model, LiveTeacher(model), tokenizer, rows, number=5)
    assert len(samples) == 5
    texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in rows["input_ids"][:]]
    for sample in samples:
        assert sample.teacher == sample.student, "a model agrees with itself"
        assert any(char.isalpha() for char in sample.hidden)
        shares = [share for _, share in sample.teacher]
        assert len(shares) == 3 and shares == sorted(shares, reverse=True) and 0 < sum(shares) <= 1
        whole = " ".join(part for part in (sample.before, sample.hidden, sample.behind) if part)
        assert any(text.replace(" ", "").startswith(whole.replace(" ", "").replace("##", "")[:8]) for text in texts)
    assert samples == word_samples(model, LiveTeacher(model), tokenizer, rows, number=5)
    assert samples != word_samples(model, LiveTeacher(model), tokenizer, rows, number=5, seed=1)


def test_the_words_own_probability_is_the_models(reader):
    model, tokenizer, rows = reader
    causal = model.config.model_type == "gpt2"
    ids = rows[0]["input_ids"]
    [sample] = word_samples(model, LiveTeacher(model), tokenizer, rows.select([0]), number=1)
    before = tokenizer(sample.before, add_special_tokens=False)["input_ids"]
    place = next(n for n in range(1, len(ids)) if tokenizer.decode([ids[n]]) == sample.hidden and len(before) in (n - 1, n))
    shown = ids[:place] if causal else [*ids[:place], tokenizer.mask_token_id, *ids[place + 1 :]]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([shown])).logits[0, place - 1 if causal else place]
    share, token = logits.softmax(-1).max(-1)
    assert sample.student[0] == (tokenizer.decode([token.item()]), pytest.approx(share.item(), abs=1e-3))
    assert bool(sample.behind) != causal or not ids[place + 2 :]


def test_as_many_answers_differ_as_agree():
    data = datasets.Dataset.from_dict({"text": [f"text {n}" for n in range(40)], "label": ["yes"] * 40})
    teacher, student = np.zeros(40, dtype=int), (np.arange(40) % 10 == 3).astype(int)
    samples = answer_samples(TASK, data, teacher, student, number=8)
    assert [sample.student for sample in samples].count("no") == 4 and len(samples) == 8
    assert samples[0].question == "call ___ . text 0" and samples[0].right == samples[0].teacher == "yes"
    assert len(answer_samples(TASK, data, teacher, teacher, number=8)) == 8
    few = data.select([0, 1, 2])
    assert [s.student for s in answer_samples(TASK, few, teacher[:3], np.array([1, 0, 0]), number=8)] == ["no", "yes", "yes"]


def test_questions_without_a_right_answer_and_long_ones():
    data = datasets.Dataset.from_dict({"text": ["x" * 999]})
    [sample] = answer_samples(TASK, data, np.array([0]), np.array([1]))
    assert sample.right is None and sample.question == "call ___ . " + "x" * (MAX_CHARACTERS - 1) + "…"


def test_samples_survive_a_file(tmp_path):
    record = example_record(samples=WORD_SAMPLES)
    record.task.samples = ANSWER_SAMPLES
    record.save(tmp_path / "metrics.json")
    assert RunRecord.load(tmp_path / "metrics.json") == record
