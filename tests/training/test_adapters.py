"""Students and teachers with adapters (PEFT)."""

import json

import memory_helpers
import peft
import pytest
import torch
import training_helpers as helpers
import vocab_helpers
from transformers import AutoModelForMaskedLM, AutoTokenizer

from hf_glmd import LiveTeacher, TeacherCache, UsageError, VocabMap
from hf_glmd.data.collators import WordPredictionCollator
from hf_glmd.models.loading import load_word_model
from hf_glmd.teachers.live import AdaptersOffTeacher
from hf_glmd.teachers.writing import write_cache


def with_adapters(model=None, targets=("query", "value"), **settings):
    torch.manual_seed(1)
    made = peft.get_peft_model(model or helpers.student(), peft.LoraConfig(target_modules=targets, r=2, **settings))
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "lora_B" in name:  # fresh adapters change nothing
                torch.nn.init.normal_(parameter, std=0.5)
    return made


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(5, 21).view(2, 8)).logits


@pytest.mark.parametrize(
    ("targets", "settings"),
    [
        (["query", "value"], {}),
        ("all-linear", {}),
        (["query", "cls.predictions.decoder"], {}),
        (["query"], {"modules_to_save": ["cls"]}),
    ],
    ids=["attention", "all but the head", "the head too", "a trained head"],
)
def test_only_adapters_learn_and_the_student_is_saved_merged(tmp_path, targets, settings):
    model = with_adapters(vocab_helpers.tiny_model("bert-untied"), targets, **settings)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    trainer = helpers.trainer(tmp_path / "run", model=model, merge_adapters=True, save_strategy="steps", save_steps=2)
    trainer.train()
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed and changed <= {name for name in before if "lora" in name or "modules_to_save" in name}
    wanted = logits(model)
    trainer.save_model(str(tmp_path / "student"))
    checkpoint = {path.name for path in (tmp_path / "run" / "checkpoint-4").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= checkpoint
    assert "model.safetensors" not in checkpoint
    assert not (tmp_path / "student" / "adapter_config.json").exists() and trainer.model is model
    torch.testing.assert_close(logits(AutoModelForMaskedLM.from_pretrained(tmp_path / "student")), wanted, rtol=1e-4, atol=1e-4)
    assert torch.equal(logits(model), wanted)  # merging was done on a copy


def test_adapters_go_on_after_a_checkpoint(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    whole = helpers.trainer(tmp_path, model=with_adapters(), **settings)
    whole.train()
    resumed = helpers.trainer(tmp_path, model=with_adapters(), **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_vocabulary_that_was_cut_is_saved_beside_merged_adapters(tmp_path):
    vocab_map = VocabMap(torch.arange(vocab_helpers.V).numpy(), vocab_helpers.V)
    trainer = helpers.trainer(tmp_path, model=with_adapters(), vocab_map=vocab_map, merge_adapters=True, max_steps=1)
    trainer.save_model(str(tmp_path / "student"))
    assert VocabMap.load(tmp_path / "student").size == vocab_helpers.V
    assert AutoTokenizer.from_pretrained(tmp_path / "student").get_vocab() == helpers.TOKENIZER.get_vocab()


def test_merging_needs_adapters(tmp_path):
    with pytest.raises(UsageError, match="merge_adapters=True, and the student BertForMaskedLM has no adapters"):
        helpers.trainer(tmp_path, merge_adapters=True)


def test_a_folder_of_adapters_is_a_teacher(tmp_path):
    helpers.teacher().save_pretrained(tmp_path / "base")
    model = with_adapters(load_word_model(tmp_path / "base"))
    model.save_pretrained(tmp_path / "adapters")
    assert not (tmp_path / "adapters" / "config.json").exists()
    teacher = LiveTeacher(tmp_path / "adapters")
    assert teacher.fallback is None and type(teacher.model).__name__ == "BertForMaskedLM"
    torch.testing.assert_close(logits(teacher.model), logits(model), rtol=1e-5, atol=1e-5)
    settings = json.loads((tmp_path / "adapters" / "adapter_config.json").read_text())
    (tmp_path / "adapters" / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": None}))
    with pytest.raises(UsageError, match="does not name the model it belongs to"):
        LiveTeacher(tmp_path / "adapters")
    settings["base_model_name_or_path"] = str(tmp_path / "other")
    vocab_helpers.tiny_model("gpt2").save_pretrained(tmp_path / "other")
    (tmp_path / "adapters" / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(UsageError, match="the adapters of .* do not fit"):
        LiveTeacher(tmp_path / "adapters")


def test_the_student_without_its_adapters_takes_no_memory_of_its_own(tmp_path):
    """Peak of a training step, beside that of the same student with the same loss and no teacher to run."""

    def base():
        return vocab_helpers.tiny_model("bert", hidden_size=64, num_hidden_layers=4, intermediate_size=256)

    settings = {"per_device_train_batch_size": 16, "max_steps": 2, "mask_share": 0.0, "train_dataset": helpers.rows(40)}
    collator = WordPredictionCollator(helpers.TOKENIZER, "all", 0.0)
    write_cache(LiveTeacher(base()), [(helpers.rows(40), 1)], collator, helpers.TOKENIZER, tmp_path / "cache", data={})

    def peak(teacher_of) -> tuple[int, int]:
        model = with_adapters(base(), "all-linear")
        teacher = teacher_of(model)
        held = memory_helpers.parameter_bytes(model, *teacher.models)
        trainer = helpers.trainer(tmp_path, model=model, teacher=teacher, eval_dataset=None, **settings)
        with memory_helpers.LiveBytes(held) as counted:
            trainer.train()
        return held, counted.peak

    held, off = peak(AdaptersOffTeacher)
    alone_held, alone = peak(lambda model: TeacherCache.load(tmp_path / "cache"))
    assert held == alone_held, "no second copy of the weights"
    assert off <= 1.15 * alone and alone > 1.2 * held


def test_a_configuration_of_adapters_makes_them(tmp_path):
    config = peft.LoraConfig(r=2, target_modules=["query"])
    student = helpers.student()
    trainer = helpers.trainer(tmp_path, model=student, peft_config=config)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    moved = {name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved and all("lora_" in name for name in moved)
    with pytest.raises(UsageError, match="has adapters already"):
        helpers.trainer(tmp_path, model=trainer.model, peft_config=config)
    with pytest.raises(UsageError, match="peft_config is a dict. Pass a peft.PeftConfig"):
        helpers.trainer(tmp_path, peft_config={"r": 2})
    with pytest.raises(UsageError, match="peft_config and model_init are both passed"):
        helpers.trainer(tmp_path, model=None, model_init=helpers.student, peft_config=config)
