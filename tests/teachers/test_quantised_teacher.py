"""Teachers in 4 and 8 bits, where bitsandbytes is installed."""

import pytest
import torch
import training_helpers as helpers
import vocab_helpers
from transformers import BitsAndBytesConfig

from hf_glmd import LiveTeacher
from hf_glmd.models.loading import load_word_model

pytest.importorskip("bitsandbytes")


@pytest.mark.parametrize(
    "config",
    [
        BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32),
        BitsAndBytesConfig(load_in_8bit=True),
    ],
    ids=["4 bits", "8 bits"],
)
def test_it_teaches_as_it_is_loaded(tmp_path, config):
    settings = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2}
    vocab_helpers.tiny_model("bert", **settings).save_pretrained(tmp_path / "teacher")
    helpers.TOKENIZER.save_pretrained(tmp_path / "teacher")
    low = load_word_model(tmp_path / "teacher", quantization_config=config, dtype=torch.float32, device_map="cpu")
    teacher = LiveTeacher(low)
    assert low.is_quantized and teacher.fallback is None, "the output embedding is not quantised"
    student = load_word_model(tmp_path / "teacher", dtype=torch.float32)
    trainer = helpers.trainer(tmp_path, model=student, teacher=teacher, temperature=2.0, max_steps=2)
    metrics = trainer.evaluate()
    assert 0 < metrics["eval_kl"] < 0.1, "nearly the same model"
    trainer.train()
    assert trainer.evaluate()["eval_kl"] != metrics["eval_kl"]
