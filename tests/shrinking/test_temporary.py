from __future__ import annotations

import copy

import model_zoo as zoo
import numpy as np
import pytest
import torch
import vocab_helpers as helpers
from model_zoo import IDS, MAP, K, V

from hf_glmd.errors import UsageError
from hf_glmd.models.surgery import resize_model
from hf_glmd.shrinking.temporary import temporarily_shrunk
from hf_glmd.vocab.vocab_map import VocabMap

KEPT = torch.from_numpy(MAP.kept_ids.copy())
REMOVED = torch.from_numpy(np.setdiff1d(np.arange(V), MAP.kept_ids))
NAMES = ["bert", "bert-untied", "albert", "mt5-untied", "bart", "gptj", "gemma3n", "llava"]


def train(model, steps=2):
    """All weights move: AdamW with weight decay reaches even rows without a gradient."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(steps):
        inputs = zoo.zoo_inputs(model, IDS)
        logits = model(**inputs)[0]
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.arange(logits.shape[:2].numel()) % K).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    return optimizer


def names_of(model):
    return {path: id(tensor) for path, tensor in [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]}


def settings_of(model):
    modules = {
        f"{path}.{name}": value
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, (int, float, str, list, tuple)) and not name.startswith("_")
    }
    generation = getattr(model, "generation_config", None)
    return modules, model.config.to_dict(), generation and generation.to_dict()


@pytest.mark.parametrize("name", NAMES)
def test_the_trained_rows_are_put_back_and_all_else_is_as_before(name):
    model = zoo.zoo_model(name)
    objects, settings, weights = names_of(model), settings_of(model), copy.deepcopy(model.state_dict())
    with temporarily_shrunk(model, MAP) as vocab_map:
        assert vocab_map is MAP
        assert zoo.compare(zoo.zoo_model(name), model) == zoo.compare(zoo.zoo_model(name), resize_model(zoo.zoo_model(name), MAP))
        train(model)
        assert all(V not in parameter.shape for parameter in model.parameters())
        trained = copy.deepcopy(model.state_dict())
        saved = copy.deepcopy(model)
    assert names_of(model) == objects  # the same objects under the same names: ties are what they were
    assert settings_of(model) == settings
    tables = 0
    for key, before in weights.items():
        after = model.state_dict()[key]
        assert after.shape == before.shape
        if after.shape == trained[key].shape:
            assert torch.equal(after, trained[key])
            continue
        dim = next(d for d in range(after.ndim) if after.shape[d] != trained[key].shape[d])
        kept = KEPT[KEPT < after.shape[dim]]
        removed = REMOVED[REMOVED < after.shape[dim]]
        assert torch.equal(after.index_select(dim, kept), trained[key])
        assert torch.equal(after.index_select(dim, removed), before.index_select(dim, removed))
        assert key.endswith("bias") or not torch.equal(after, before)  # some biases are not read, or no parameters
        tables += 1
    assert tables and model.state_dict().keys() == weights.keys()
    # What it computes now for kept tokens is what the small one did.
    assert zoo.compare(model, saved).logit_difference < 1e-6
    assert not any(parameter.grad is not None and V in parameter.grad.shape for parameter in model.parameters())


def test_the_saved_model_is_one_whose_kept_rows_were_replaced(tmp_path):
    model, reference = zoo.zoo_model("bart"), zoo.zoo_model("bart")
    with temporarily_shrunk(model, MAP):
        train(model)
        trained = copy.deepcopy(model.state_dict())
    state = reference.state_dict()
    for key, value in trained.items():
        if state[key].shape == value.shape:
            state[key].copy_(value)
        elif key == "final_logits_bias":
            state[key][:, KEPT] = value
        else:
            state[key][KEPT] = value
    loaded, wanted = zoo.reload(model, tmp_path / "model"), zoo.reload(reference, tmp_path / "reference")
    assert all(torch.equal(tensor, wanted.state_dict()[key]) for key, tensor in loaded.state_dict().items())
    assert loaded.config.to_diff_dict() == wanted.config.to_diff_dict()


def test_an_optimizer_made_inside_holds_the_kept_rows_only():
    model = zoo.zoo_model("qwen2-tied")
    with temporarily_shrunk(model, MAP):
        optimizer = train(model)
        assert optimizer.state[model.lm_head.weight]["exp_avg"].shape == (K, 16)
    before = model.lm_head.weight.clone()
    optimizer.step()
    assert torch.equal(model.lm_head.weight, before)


@pytest.mark.parametrize("removed", ["nearest", "unk"])
def test_removed_tokens_that_are_mapped_make_no_difference(removed):
    full = np.zeros(V, dtype=np.int64)
    full[MAP.kept_ids] = np.arange(K)
    vocab_map = VocabMap(MAP.kept_ids, V, removed=removed, old_to_small=full)
    model = zoo.zoo_model("bert")
    before = model.get_input_embeddings().weight.detach().clone()
    with temporarily_shrunk(model, vocab_map) as small:
        assert small.to_small(torch.arange(V)).max() < len(model.get_input_embeddings().weight)
        train(model)
    after = model.get_input_embeddings().weight.detach()
    assert torch.equal(after[REMOVED], before[REMOVED]) and not torch.equal(after[KEPT], before[KEPT])


class Vocab:
    """What `VocabShrinker.shrink` returns, as far as it matters here."""

    vocab_map = MAP


def test_an_exception_inside_leaves_the_full_model_with_what_was_trained():
    model = zoo.zoo_model("bart")
    objects, settings = names_of(model), settings_of(model)
    with pytest.raises(KeyboardInterrupt), temporarily_shrunk(model, Vocab()):
        with torch.no_grad():
            model.get_input_embeddings().weight.fill_(7.0)
        raise KeyboardInterrupt
    assert names_of(model) == objects and settings_of(model) == settings
    weight = model.get_input_embeddings().weight
    assert (weight[KEPT] == 7).all() and not (weight[REMOVED] == 7).any()
    with temporarily_shrunk(model, MAP):  # and it can be done again
        assert model.config.vocab_size == K


def test_what_is_refused_changes_nothing():
    model = zoo.zoo_model("llama")
    objects, settings = names_of(model), settings_of(model)
    with temporarily_shrunk(model, MAP):
        inside = names_of(model)
        with pytest.raises(UsageError, match="smaller vocabulary already"), temporarily_shrunk(model, MAP):
            pass
        assert names_of(model) == inside and model.config.vocab_size == K
    model.generation_config.eos_token_id = [2, 10]
    with pytest.raises(UsageError, match=r"keep=\[10\]"), temporarily_shrunk(model, MAP):
        pass
    model.generation_config.eos_token_id = 2
    with pytest.raises(UsageError, match="not list"), temporarily_shrunk(model, [1, 2]):
        pass
    assert names_of(model) == objects and settings_of(model) == settings


def test_tables_that_got_another_shape_inside_are_refused_but_the_full_ones_are_back():
    model = zoo.zoo_model("llama")
    objects, settings, weights = names_of(model), settings_of(model), copy.deepcopy(model.state_dict())
    with pytest.raises(UsageError, match="another shape"), temporarily_shrunk(model, MAP):
        model.lm_head.weight = torch.nn.Parameter(torch.zeros(K + 3, 16))
    assert names_of(model) == objects and settings_of(model) == settings
    assert all(torch.equal(tensor, weights[key]) for key, tensor in model.state_dict().items())


def test_settings_changed_inside_stay_unless_they_are_token_ids():
    model = zoo.zoo_model("llama")
    model.config.sep_token_id = None
    with temporarily_shrunk(model, MAP):
        model.config.use_cache = False
        model.config.sep_token_id = 90  # as Trainer does with the ids of the small tokenizer
    assert model.config.use_cache is False and model.config.sep_token_id is None


def test_the_full_tables_follow_to_the_dtype_of_the_small_ones():
    model = zoo.zoo_model("bert")
    with temporarily_shrunk(model, MAP):
        model.double()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}
    wanted = helpers.outputs(zoo.zoo_model("bert").double(), IDS)
    assert torch.allclose(helpers.outputs(model, IDS), wanted)


def test_gradients_of_the_full_tables_are_dropped():
    model = zoo.zoo_model("llama")
    model(input_ids=IDS, labels=IDS).loss.backward()
    norm = model.model.norm.weight.grad
    with temporarily_shrunk(model, MAP):
        pass
    assert model.lm_head.weight.grad is None and model.model.norm.weight.grad is norm


def test_saving_inside_saves_the_small_model(tmp_path):
    model = zoo.zoo_model("bert")
    with temporarily_shrunk(model, MAP):
        loaded = zoo.reload(model, tmp_path)
    assert zoo.compare(model, loaded).states_identical and loaded.config.vocab_size == K


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_full_tables_wait_in_cpu_memory():
    model = zoo.zoo_model("llama").cuda()
    full = model.lm_head.weight
    before = full.detach().clone()
    with temporarily_shrunk(model, MAP):
        assert full.device.type == "cpu" and model.lm_head.weight.device.type == "cuda"
        with torch.no_grad():
            model.lm_head.weight.mul_(2)
    assert model.lm_head.weight is full and full.device.type == "cuda"
    assert torch.equal(full[KEPT.cuda()], 2 * before[KEPT.cuda()]) and torch.equal(full[REMOVED.cuda()], before[REMOVED.cuda()])
