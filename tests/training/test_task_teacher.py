"""The teacher's own fine-tuning."""

import datasets
import pytest
import training_helpers as helpers
import vocab_helpers
from transformers import TrainingArguments

from hf_glmd import ClozeTask
from hf_glmd.data.collators import CandidateCollator
from hf_glmd.training.task_teacher import LabelTrainer

TASK = ClozeTask("verbs", "call {mask} : {text}", {"yes": "walk", "no": "talk"})


SPLIT = ClozeTask("verbs", TASK.pattern, {"yes": "walk read", "no": "talk"}, split_verbalizers="score")


@pytest.mark.parametrize("task", [TASK, SPLIT], ids=["single tokens", "several tokens"])
def test_it_learns_the_gold_answers(tmp_path, task):
    texts = vocab_helpers.texts(60)
    rows = datasets.Dataset.from_dict({"text": texts, "label": ["yes" if "walk" in text else "no" for text in texts]})
    questions = task.encode(rows, helpers.TOKENIZER, 24, labelled=True)
    settings = {"per_device_train_batch_size": 10, "max_steps": 60, "learning_rate": 5e-3}
    trainer = LabelTrainer(
        model=helpers.student(),
        args=TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True, **settings),
        train_dataset=questions,
        eval_dataset=questions,
        data_collator=CandidateCollator(helpers.TOKENIZER),
        processing_class=helpers.TOKENIZER,
    )
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_loss"] < 0.7 * before["eval_loss"] and after["eval_accuracy"] > 0.75
