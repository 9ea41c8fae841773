"""The output embedding: what enters it, and logits only where they are wanted."""

import model_zoo
import peft
import pytest
import torch
import vocab_helpers
from accelerate.utils import convert_outputs_to_fp32
from torch import nn

from hf_glmd import UsageError
from hf_glmd.models.heads import HeadInputs, WordHead, evaluating, is_masked_lm, output_embedding

IDS = torch.randint(5, vocab_helpers.V, (3, 7), generator=torch.Generator().manual_seed(0))
POSITIONS = torch.rand(3, 7, generator=torch.Generator().manual_seed(1)) < 0.4
ROWS = torch.tensor([0, 3, 50, 210, 7])


def inputs_of(model):
    return {"input_ids": IDS} | ({"decoder_input_ids": IDS} if model.config.is_encoder_decoder else {})


def adapted(model, **settings):
    return peft.get_peft_model(model, peft.LoraConfig(init_lora_weights=False, r=2, **settings))


NO_WORDS = {"bert-classifier", "bert-pretraining", "bert-encoder", "roberta-tokens", "t5-encoder", "llama-classifier"}
NOT_FUSED = {"deberta-v2-new-head", "mobilebert", "prophetnet"}
NOT_TEXT = {"blip-2", "whisper"}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name in model_zoo.RARE))
        for name in model_zoo.NAMES
        if name not in NO_WORDS | NOT_TEXT
    ],
)
@torch.no_grad()
def test_logits_are_made_from_hidden_states_and_are_those_of_the_whole_forward(name):
    model = model_zoo.zoo_model(name)
    whole = model(**inputs_of(model)).logits
    head = WordHead(model)
    assert (head.fallback is not None) == (name in NOT_FUSED)
    some = head.logits(model, inputs_of(model), POSITIONS, head.rows(ROWS))
    scale = max(1.0, float(whole.abs().max()))
    torch.testing.assert_close(some / scale, whole[POSITIONS][:, ROWS] / scale, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(head.logits(model, inputs_of(model)) / scale, whole / scale, rtol=1e-5, atol=1e-6)
    assert torch.equal(model(**inputs_of(model)).logits, whole), "the model must be left as it was"


@pytest.mark.parametrize(
    ("name", "settings", "scale", "softcap"),
    [
        ("CohereForCausalLM", {"logit_scale": 0.0625}, 0.0625, None),
        ("GraniteForCausalLM", {"logits_scaling": 13.0}, 1 / 13, None),
        ("Gemma2ForCausalLM", {"final_logit_softcapping": 7.5}, 1.0, 7.5),
        ("LlamaForCausalLM", {}, 1.0, None),
    ],
)
def test_what_a_model_does_to_its_logits_is_found_out(name, settings, scale, softcap):
    model = vocab_helpers.tiny_class(name, vocab_helpers.MODELS["llama"][1] | settings, vocab_helpers.V)
    head = WordHead(model)
    found = head.inputs(model, {"input_ids": IDS})
    assert (found.scale, found.softcap) == (pytest.approx(scale, rel=1e-6), softcap)
    torch.testing.assert_close(found.logits(), model(input_ids=IDS).logits)


class Doubling(nn.Module):
    """A model whose logits are not what its output embedding says."""

    def __init__(self, model, change):
        super().__init__()
        self.model, self.change, self.config = model, change, model.config

    def forward(self, **inputs):
        output = self.model(**inputs)
        output.logits = self.change(output.logits)
        return output

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.model, name)


@pytest.mark.parametrize(
    "change",
    [
        lambda logits: logits.square(),
        lambda logits: logits * torch.arange(1.0, logits.shape[-1] + 1),
        lambda logits: logits.log_softmax(-1),
        lambda logits: logits * (torch.arange(logits.shape[1]) + 1.0)[:, None],
    ],
)
@torch.no_grad()
def test_unknown_changes_of_the_logits_lead_to_the_logits_themselves(change):
    model = Doubling(vocab_helpers.tiny_model("llama"), change)
    head = WordHead(model)
    assert head.fallback == "Doubling changes the logits of model.lm_head (Linear) in an unknown way"
    whole = model(input_ids=IDS).logits
    assert torch.equal(head.logits(model, {"input_ids": IDS}, POSITIONS, head.rows(ROWS)), whole[POSITIONS][:, ROWS])


@torch.no_grad()
def test_an_adapter_on_the_head_is_not_bypassed():
    model = adapted(vocab_helpers.tiny_model("llama"), target_modules=["lm_head", "q_proj"])
    head = WordHead(model)
    assert "lm_head (Linear) is no plain linear layer" in head.fallback
    whole = model(input_ids=IDS).logits
    assert torch.equal(head.logits(model, {"input_ids": IDS}, POSITIONS, head.rows(ROWS)), whole[POSITIONS][:, ROWS])


def test_an_adapter_in_the_body_changes_nothing_for_the_head():
    model = adapted(vocab_helpers.tiny_model("llama"), target_modules=["q_proj"])
    head = WordHead(model)
    assert head.fallback is None
    torch.testing.assert_close(head.logits(model, {"input_ids": IDS}), model(input_ids=IDS).logits)


@torch.no_grad()
def test_positions_of_prompt_learning_are_left_out():
    settings = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    model = peft.get_peft_model(vocab_helpers.tiny_model("llama"), settings).eval()
    head = WordHead(model)
    inputs = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    whole = model(**inputs).logits
    assert whole.shape[1] == IDS.shape[1] + 4
    torch.testing.assert_close(head.logits(model, inputs, POSITIONS), whole[:, 4:][POSITIONS])


def test_a_head_that_is_named_but_not_called_is_not_used():
    settings = vocab_helpers.MODELS["bert"][1] | {"legacy": False}
    model = vocab_helpers.tiny_class("DebertaV2ForMaskedLM", settings, vocab_helpers.V)
    head = WordHead(model)
    assert "DebertaV2ForMaskedLM uses lm_predictions.lm_head.dense (Linear) in an unknown way" in head.fallback
    assert head.size == vocab_helpers.V


def test_the_head_is_restored_when_the_forward_fails():
    model = vocab_helpers.tiny_model("bert")
    head = WordHead(model)
    with pytest.raises(ValueError):
        head.logits(model, {"no_such_input": IDS}, POSITIONS)
    assert model(input_ids=IDS).logits.shape == (3, 7, vocab_helpers.V)


def test_a_forward_that_something_else_replaced_is_put_back():
    model = vocab_helpers.tiny_model("bert")
    linear = output_embedding(model)
    linear.forward = replaced = lambda hidden: nn.functional.linear(hidden, linear.weight, linear.bias)
    head = WordHead(model)
    head.logits(model, {"input_ids": IDS})
    assert linear.forward is replaced


def test_gradients_reach_body_and_tied_table():
    model = vocab_helpers.tiny_model("bert")
    head = WordHead(model)
    head.logits(model, {"input_ids": IDS}, POSITIONS).sum().backward()
    grad = model.get_input_embeddings().weight.grad.clone()
    model.zero_grad()
    model(input_ids=IDS).logits[POSITIONS].sum().backward()
    torch.testing.assert_close(grad, model.get_input_embeddings().weight.grad)


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_the_backward_of_a_scalar_made_at_the_head_passes_the_models_output_first(name):
    # Hooks that shard a module wait for the gradient of its output. Gemma changes what leaves its head.
    model = vocab_helpers.tiny_model(name)
    head, reached = WordHead(model), []

    def watch(module, args, output):
        found, name = (output.logits, "model") if module is model else (output, "head")
        if found.requires_grad:
            found.register_hook(lambda _: reached.append(name))

    for module in (model, output_embedding(model)):
        module.register_forward_hook(watch)
    loss = head.collect(model, {"input_ids": IDS}, lambda found: found.logits().sum())
    loss.backward()
    assert sorted(reached) == ["head", "model"] and (name == "llama" or reached[0] == "model")
    found = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    head.inputs(model, {"input_ids": IDS}).logits().sum().backward()
    assert all(torch.equal(one, parameter.grad) for one, parameter in zip(found, model.parameters(), strict=True))


def test_logits_are_wide_under_autocast_and_from_narrow_weights():
    model = vocab_helpers.tiny_model("bert")
    head = WordHead(model)
    with torch.autocast("cpu", torch.bfloat16):
        assert head.logits(model, {"input_ids": IDS}, POSITIONS).dtype == torch.float32
    for dtype, wide in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        head = WordHead(model.to(dtype))
        assert head.fallback is None
        assert head.logits(model, {"input_ids": IDS}, POSITIONS).dtype == wide


def test_a_compiled_model_gives_its_head_as_well():
    model = vocab_helpers.tiny_model("llama")
    head = WordHead(model)
    compiled = torch.compile(model, backend="eager")
    for _ in range(2):
        torch.testing.assert_close(head.logits(compiled, {"input_ids": IDS}), model(input_ids=IDS).logits)


def test_the_formula_caps_after_it_scales():
    found = HeadInputs(torch.ones(1, 1), torch.tensor([[1.0], [100.0]]), torch.tensor([1.0, 0.0]), scale=2.0, softcap=5.0)
    torch.testing.assert_close(found.logits(), 5 * torch.tanh(torch.tensor([[4.0, 200.0]]) / 5))


def test_each_module_keeps_its_mode():
    model = vocab_helpers.tiny_model("bert").train()
    model.bert.encoder.eval()
    modes = [module.training for module in model.modules()]
    WordHead(model)
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == modes


@pytest.mark.parametrize("name", sorted(NO_WORDS))
def test_a_model_without_words_is_refused(name):
    with pytest.raises(UsageError, match="AutoModelForMaskedLM"):
        WordHead(model_zoo.zoo_model(name))


def test_a_model_that_reads_more_than_text_is_refused():
    with pytest.raises(UsageError, match="WhisperForConditionalGeneration does not run on token ids alone"):
        WordHead(model_zoo.zoo_model("whisper"))


@pytest.mark.parametrize(
    ("name", "expected"), [("bert", True), ("bert-pretraining", False), ("roberta", True), ("gpt2", False), ("t5", False)]
)
def test_models_that_fill_blanks_are_known(name, expected):
    assert is_masked_lm(vocab_helpers.tiny_model(name)) is expected


def test_a_model_that_was_trained_under_autocast_is_known_again():
    """accelerate leaves its autocast around the forward of what it has trained, whose roundings are not the head's."""
    model = vocab_helpers.tiny_model("bert")
    model._original_forward = model.forward  # as `Accelerator.prepare_model` does it
    model.forward = convert_outputs_to_fp32(torch.autocast("cpu", torch.bfloat16)(model.forward))
    wrapped = model.forward
    head = WordHead(model)
    assert head.fallback is None and model.forward is wrapped
