"""A teacher is known by its weights."""

import torch
import vocab_helpers

from hf_glmd.teachers.keys import teacher_fingerprint


def test_a_model_is_the_same_teacher_wherever_it_came_from(tmp_path):
    for name in ("bert", "t5", "llama"):
        made = vocab_helpers.tiny_model(name)
        made.save_pretrained(tmp_path / name)
        assert teacher_fingerprint(type(made).from_pretrained(tmp_path / name)) == teacher_fingerprint(made)
    made = vocab_helpers.tiny_model("bert")
    first = teacher_fingerprint(made.bfloat16())
    assert teacher_fingerprint(made.float()) == first
    with torch.no_grad():
        made.bert.encoder.layer[2].attention.output.dense.weight[3, 5] += 1e-3
    assert teacher_fingerprint(made) != first
    made.config.layer_norm_eps *= 2
    assert len({first, teacher_fingerprint(made), teacher_fingerprint(vocab_helpers.tiny_model("bert"))}) == 3
