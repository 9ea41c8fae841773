from __future__ import annotations

import copy

import pytest
import torch
import vocab_helpers as helpers
from torch import nn

from hf_glmd.errors import UsageError
from hf_glmd.models.surgery import find_vocabulary_tensors, resize_model
from hf_glmd.vocab.vocab_map import VocabMap

V, K = helpers.V, 97
MAP = helpers.tiny_map(K)
IDS = torch.tensor([[0, 5, 50, 96, 7, 33]])
ALL = [*helpers.MODELS, "mt5-untied"]
SAVED = {"bert", "bert-untied", "albert", "qwen2-tied", "t5", "bart", "mt5-untied", "gptj"}  # every kind of tie and of bias


def kept_outputs(model, vocab_map=MAP):
    """What the large model says to the same tokens, in the kept columns."""
    out = helpers.outputs(model, vocab_map.to_original(IDS))
    return out[..., torch.from_numpy(vocab_map.kept_ids.copy())] if out.shape[-1] >= V else out


@pytest.mark.parametrize("name", ALL)
def test_logits_are_the_kept_columns_also_after_saving(name, tmp_path):
    model = helpers.tiny_model(name)
    before = copy.deepcopy(model.state_dict())
    small = resize_model(model, MAP)
    wanted = kept_outputs(model)
    assert torch.equal(helpers.outputs(small, IDS), wanted)
    assert small.config.vocab_size == small.get_input_embeddings().num_embeddings == K
    # the given model is untouched
    assert model.config.vocab_size == V and model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    if name not in SAVED:
        return
    small.save_pretrained(tmp_path)
    loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert torch.equal(helpers.outputs(loaded.eval(), IDS), wanted)


@pytest.mark.parametrize("name", ALL)
def test_ties_follow_the_tensors(name):
    model = helpers.tiny_model(name)
    small = resize_model(model, MAP)

    def groups(one):
        names = {}
        for path, tensor in one.named_parameters(remove_duplicate=False):
            names.setdefault(id(tensor), []).append(path)
        return sorted(map(sorted, names.values()))

    assert groups(small) == groups(model)
    shared = {id(t) for t in model.parameters()} & {id(t) for t in small.parameters()}
    assert not shared
    assert not any(length == V for t in [*small.parameters(), *small.buffers()] for length in t.shape)


def test_the_config_is_not_asked_about_ties():
    model = helpers.tiny_model("mt5-untied")
    assert model.config.tie_word_embeddings  # as the published configs say, wrongly
    small = resize_model(model, MAP)
    assert small.lm_head.weight is not small.shared.weight
    assert torch.equal(small.lm_head.weight, model.lm_head.weight[torch.tensor(MAP.kept_ids)])


def test_a_bias_that_only_the_output_layer_has_is_cut_once():
    small = resize_model(helpers.tiny_model("bert"), MAP)
    assert small.cls.predictions.bias is small.cls.predictions.decoder.bias
    small = resize_model(helpers.tiny_model("bart"), MAP)
    assert small.final_logits_bias.shape == (1, K)


def test_rows_that_only_pad_the_table_are_dropped():
    model = helpers.tiny_model("qwen2-tied", vocab_size=256)
    small = resize_model(model, MAP)
    assert small.get_output_embeddings().out_features == K == len(small.get_output_embeddings().weight)
    assert torch.equal(helpers.outputs(small, IDS), kept_outputs(model))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtype_mode_and_frozen_weights_stay(dtype):
    model = helpers.tiny_model("llama").to(dtype).train()
    model.get_input_embeddings().weight.requires_grad_(False)
    small = resize_model(model, MAP)
    assert small.dtype == dtype and small.training
    assert not small.get_input_embeddings().weight.requires_grad and small.lm_head.weight.requires_grad
    assert type(small.lm_head.weight) is nn.Parameter


def test_the_padding_row_and_ids_move():
    keep = (0, 1, 2, 60, 61)
    vocab_map = helpers.tiny_map(K, keep=keep)
    model = helpers.tiny_model("llama", pad_token_id=61, eos_token_id=[60, 2])
    model.generation_config.suppress_tokens = [60]
    small = resize_model(model, vocab_map)
    pad, eos = vocab_map.to_small(61), vocab_map.to_small(60)
    assert pad != 61
    assert small.get_input_embeddings().padding_idx == small.config.pad_token_id == pad == small.model.padding_idx
    assert small.config.eos_token_id == [eos, 2] and small.generation_config.suppress_tokens == [eos]
    assert small.generation_config.eos_token_id == [eos, 2]
    assert model.config.pad_token_id == 61 == model.model.padding_idx


def test_positions_counted_from_the_padding_id_must_not_move():
    model = helpers.tiny_model("roberta", pad_token_id=5)
    with pytest.raises(UsageError, match=r"positions from the padding id 5"):
        resize_model(model, VocabMap([0, 1, 2, 5, 9], V))
    assert resize_model(model, VocabMap(range(9), V)).config.pad_token_id == 5


def test_both_halves_of_an_encoder_decoder_learn_the_new_ids():
    keep = (0, 60, 61)
    vocab_map = helpers.tiny_map(K, keep=keep)
    small = resize_model(helpers.tiny_model("t5", pad_token_id=60, eos_token_id=61), vocab_map)
    for config in (small.config, small.encoder.config, small.decoder.config):
        assert (config.pad_token_id, config.eos_token_id) == (vocab_map.to_small(60), vocab_map.to_small(61))
        assert config.vocab_size == K


def test_a_smaller_copy_can_be_trained():
    model = helpers.tiny_model("bert")
    small = resize_model(model, MAP).train()
    small(input_ids=IDS, labels=IDS).loss.backward()
    assert small.get_input_embeddings().weight.grad.shape == (K, 16)
    assert model.get_input_embeddings().weight.grad is None


def test_a_model_smaller_than_the_vocabulary_is_refused():
    with pytest.raises(UsageError, match="193 rows, the tokenizer 211 tokens"):
        resize_model(helpers.tiny_model("bert", vocab_size=193), MAP)


@pytest.mark.parametrize(
    "settings", [{"hidden_size": V, "num_attention_heads": 1}, {"intermediate_size": V}, {"max_position_embeddings": V}]
)
def test_another_dimension_of_the_same_size_is_refused(settings):
    with pytest.raises(UsageError, match=f"config.{next(iter(settings))}"):
        resize_model(helpers.tiny_model("bert", **settings), MAP)


def test_as_many_labels_as_tokens_are_refused():
    with pytest.raises(UsageError, match="num_labels"):
        resize_model(helpers.tiny_model("bert-classifier", num_labels=V), MAP)


def test_an_unknown_tensor_of_the_size_of_the_vocabulary_is_refused():
    model = helpers.tiny_model("bert")
    model.extra = nn.Parameter(torch.zeros(3, V))
    with pytest.raises(UsageError, match="extra"):
        resize_model(model, MAP)
    model = helpers.tiny_model("bert")
    model.bert.encoder.layer[0].extra = nn.Linear(4, V)
    with pytest.raises(UsageError, match="encoder.layer.0.extra"):
        resize_model(model, MAP)


def test_a_second_head_over_the_same_vocabulary_is_cut():
    model = helpers.tiny_model("bert")
    model.second = nn.Linear(16, V)
    small = resize_model(model, MAP)
    assert small.second.out_features == K and torch.equal(small.second.bias, model.second.bias[MAP.kept_ids])


def test_weights_that_are_not_there_are_refused():
    model = helpers.tiny_model("bert")
    with torch.device("meta"):
        empty = type(model)(model.config)
    with pytest.raises(UsageError, match="not in memory"):
        resize_model(empty, MAP)
    with pytest.raises(UsageError, match="DataParallel is not a transformers model"):
        resize_model(nn.DataParallel(model), MAP)
    model.config.quantization_config = {"load_in_8bit": True}
    with pytest.raises(UsageError, match="quantised"):
        resize_model(model, MAP)
    model = helpers.tiny_model("bert")
    model.get_input_embeddings().weight = nn.Parameter(torch.zeros(V, 16, dtype=torch.int8), requires_grad=False)
    with pytest.raises(UsageError, match="quantised"):
        resize_model(model, MAP)


def test_adapters_are_refused():
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(helpers.tiny_model("llama"), peft.LoraConfig(target_modules=["q_proj"], r=2))
    with pytest.raises(UsageError, match="merge"):
        resize_model(model, MAP)


def test_the_large_tables_are_not_copied(monkeypatch):
    model = helpers.tiny_model("t5")
    copied = []
    clone = torch.Tensor.clone
    monkeypatch.setattr(torch.Tensor, "clone", lambda self, **kw: copied.append(self.shape) or clone(self, **kw))
    resize_model(model, MAP)
    assert copied and not any(V in shape for shape in copied)


def test_found_tensors_are_distinct():
    found = find_vocabulary_tensors(helpers.tiny_model("bert"), V)
    assert len(found) == 2  # one table, one bias, however many names they have
