from __future__ import annotations

import copy

import pytest
import torch
import vocab_helpers as helpers
from torch import nn

from hf_glmd.errors import UsageError
from hf_glmd.models.student import build_student, spread_layers

IDS = torch.tensor([[0, 5, 50, 96, 7, 33]])
EACH = ["bert", "roberta", "albert", "distilbert", "gpt2", "llama", "gemma2", "t5", "bart", "mt5-untied"]


@pytest.mark.parametrize("name", EACH)
def test_all_layers_compute_what_the_teacher_does(name):
    teacher = helpers.tiny_model(name)
    before = copy.deepcopy(teacher.state_dict())
    student = build_student(teacher, num_layers=3)
    assert torch.equal(helpers.outputs(student, IDS), helpers.outputs(teacher, IDS))
    assert not {id(t) for t in student.parameters()} & {id(t) for t in teacher.parameters()}
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    assert all(torch.equal(tensor, before[key]) for key, tensor in teacher.state_dict().items())


@pytest.mark.parametrize("name", ["bert-untied", "albert", "gpt2", "qwen2-tied", "bart", "mt5-untied"])
def test_fewer_layers_with_a_smaller_vocabulary_save_and_load(name, tmp_path):
    teacher = helpers.tiny_model(name)
    vocab_map = helpers.tiny_map()
    student = build_student(teacher, num_layers=2, vocab=vocab_map)
    assert student.config.num_hidden_layers == 2 and student.config.vocab_size == vocab_map.size
    student.save_pretrained(tmp_path)
    loaded, info = type(teacher).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(helpers.outputs(loaded.eval(), IDS), helpers.outputs(student, IDS))
    assert teacher.config.num_hidden_layers == 3 and teacher.config.vocab_size == helpers.V


def stack(model):
    return max((m for m in model.modules() if isinstance(m, nn.ModuleList)), key=len)


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "gpt2", "llama", "qwen2-tied", "gemma2"])
def test_the_student_is_the_teacher_without_the_layers_between(name):
    teacher = helpers.tiny_model(name)
    student = build_student(teacher, num_layers=2)
    reference = copy.deepcopy(teacher)
    parent = next(m for m in reference.modules() if stack(reference) in m.children())
    attribute = next(key for key, child in parent.named_children() if child is stack(reference))
    setattr(parent, attribute, nn.ModuleList([stack(reference)[0], stack(reference)[2]]))
    reference.config.num_hidden_layers = 2
    if getattr(reference.config, "layer_types", None):
        reference.config.layer_types = [reference.config.layer_types[i] for i in (0, 2)]
        assert student.config.layer_types == reference.config.layer_types
    with torch.no_grad():
        wanted = reference(input_ids=IDS, **({"use_cache": False} if name in ("gpt2", "llama", "qwen2-tied", "gemma2") else {}))[
            0
        ]
    assert torch.equal(helpers.outputs(student, IDS), wanted)


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_both_halves_of_an_encoder_decoder_are_shortened(name):
    teacher = helpers.tiny_model(name)
    key = {"t5": "num_decoder_layers", "bart": "decoder_layers"}[name]
    lengths = [len(m) for m in build_student(teacher, num_layers=2, **{key: 1}).modules() if isinstance(m, nn.ModuleList)]
    assert sorted(n for n in lengths if n)[:2] == [1, 2]


def test_t5_keeps_its_position_biases_when_the_first_layer_goes():
    teacher = helpers.tiny_model("t5")
    student = build_student(teacher, layers=[1, 2])
    mine, theirs = student.encoder.block[0].layer[0].SelfAttention, teacher.encoder.block[0].layer[0].SelfAttention
    assert torch.equal(mine.relative_attention_bias.weight, theirs.relative_attention_bias.weight)
    assert torch.equal(mine.q.weight, teacher.encoder.block[1].layer[0].SelfAttention.q.weight)


def test_ties_that_the_config_does_not_know_are_kept():
    teacher = helpers.tiny_model("llama")
    assert not teacher.config.tie_word_embeddings
    teacher.lm_head.weight = teacher.model.embed_tokens.weight
    student = build_student(teacher, num_layers=2, vocab=helpers.tiny_map())
    assert student.lm_head.weight is student.model.embed_tokens.weight


def test_explicit_layers():
    teacher = helpers.tiny_model("bert")
    student = build_student(teacher, layers=[1])
    assert torch.equal(student.bert.encoder.layer[0].output.dense.weight, teacher.bert.encoder.layer[1].output.dense.weight)


def test_layers_that_share_their_weights_are_applied_fewer_times():
    teacher = helpers.tiny_model("albert")
    student = build_student(teacher, num_layers=2)
    assert student.num_parameters() == teacher.num_parameters()
    assert not torch.equal(helpers.outputs(student, IDS), helpers.outputs(teacher, IDS))
    with pytest.raises(UsageError, match="share their weights"):
        build_student(teacher, layers=[0, 2])


@pytest.mark.parametrize(
    ("number", "of", "indices"),
    [(1, 12, [0]), (2, 12, [0, 11]), (4, 12, [0, 4, 7, 11]), (6, 12, [0, 2, 4, 7, 9, 11]), (3, 3, [0, 1, 2])],
)
def test_layers_arespread(number, of, indices):
    assert spread_layers(number, of) == indices


@pytest.mark.parametrize("of", range(1, 40))
def test_spread_layers_are_distinct_first_and_last(of):
    for number in range(2, of + 1):
        indices = spread_layers(number, of)
        assert len(set(indices)) == number and indices == sorted(indices) and (indices[0], indices[-1]) == (0, of - 1)


def test_layer_types_follow_the_chosen_layers():
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    teacher = helpers.tiny_model("gemma2", layer_types=kinds)
    assert build_student(teacher, layers=[1, 2]).config.layer_types == ["full_attention", "sliding_attention"]
    assert build_student(teacher, layers=[0, 2]).config.layer_types == ["sliding_attention"] * 2


@pytest.mark.parametrize("name", ["bert", "t5", "mt5-untied", "gpt2"])
def test_random_start_of_another_size(name):
    teacher = helpers.tiny_model(name)
    vocab_map = helpers.tiny_map()
    torch.manual_seed(1)
    student = build_student(teacher, num_layers=1, vocab=vocab_map, init="random", hidden_size=8)
    assert student.get_input_embeddings().weight.shape == (vocab_map.size, 8)
    assert helpers.outputs(student, IDS).shape[-1] == vocab_map.size
    tied = teacher.get_input_embeddings().weight is teacher.get_output_embeddings().weight
    assert (student.get_input_embeddings().weight is student.get_output_embeddings().weight) == tied
    torch.manual_seed(2)
    other = build_student(teacher, num_layers=1, vocab=vocab_map, init="random", hidden_size=8)
    assert not torch.equal(student.get_input_embeddings().weight, other.get_input_embeddings().weight)


def test_a_random_student_may_be_deeper():
    assert build_student(helpers.tiny_model("bert"), num_layers=5, init="random").config.num_hidden_layers == 5


def test_settings_that_change_no_shape_go_with_teacher_weights():
    student = build_student(helpers.tiny_model("bert"), num_layers=2, hidden_dropout_prob=0.0)
    assert student.config.hidden_dropout_prob == 0.0


def test_dtypes_mode_and_gradients():
    teacher = helpers.tiny_model("llama").to(torch.bfloat16).requires_grad_(False)
    student = build_student(teacher, num_layers=2)
    assert student.dtype == torch.float32 == student.config.dtype and not student.training
    assert {weight.dtype for weight in student.parameters()} == {torch.float32}
    assert all(p.requires_grad for p in student.parameters())
    assert build_student(teacher, num_layers=2, dtype=torch.bfloat16).dtype == torch.bfloat16 == teacher.dtype
    assert build_student(helpers.tiny_model("bert").double(), num_layers=2).dtype == torch.float64
    assert build_student(teacher.train(), num_layers=2, init="random").training


def test_the_teachers_name_does_not_stick(tmp_path):
    helpers.tiny_model("bert").save_pretrained(tmp_path)
    teacher = type(helpers.tiny_model("bert")).from_pretrained(tmp_path)
    student = build_student(teacher, num_layers=2)
    assert teacher.name_or_path == str(tmp_path) and student.name_or_path == "" == student.config._name_or_path


def test_generation_settings_come_along():
    teacher = helpers.tiny_model("gpt2")
    teacher.generation_config.max_length = 7
    for init in ("teacher", "random"):
        student = build_student(teacher, num_layers=1, vocab=helpers.tiny_map(), init=init)
        assert student.generation_config.max_length == 7 and student.generation_config is not teacher.generation_config
        assert student.generation_config.eos_token_id == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_layers": 4}, "more than the teacher's 3"),
        ({"num_layers": 0}, "num_layers=0"),
        ({"num_layers": True}, "num_layers=True"),
        ({"num_layers": 1.5}, "num_layers=1.5"),
        ({"layers": [0, 3]}, "layers 0 to 2"),
        ({"layers": [-1, 2]}, "layers 0 to 2"),
        ({"layers": [2, 0]}, "increasing"),
        ({"layers": []}, "increasing"),
        ({"layers": [0, 1], "num_layers": 3}, "num_layers=3"),
        ({"layers": "last"}, "'last'"),
        ({"layers": [0], "init": "random"}, "init='teacher' only"),
        ({"init": "zeros"}, "'zeros'"),
        ({"hiden_size": 8}, "Did you mean 'hidden_size'"),
        ({"hidden_size": 8}, "hidden_size=8.*init='random'"),
        ({"vocab": "half"}, "vocab"),
        ({"hidden_size": 7, "init": "random"}, "hidden_size=7"),
    ],
)
def test_impossible_wishes_are_refused(options, message):
    with pytest.raises(UsageError, match=message) as error:
        build_student(helpers.tiny_model("bert"), **options)
    assert "\n" not in str(error.value)
