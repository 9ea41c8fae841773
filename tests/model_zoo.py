"""Tiny random models of many architectures, and what cutting the vocabulary does to them: `python tests/model_zoo.py`.

All weights are random, biases too, so that a lost or shifted one shows. The vocabulary is a prime: no other size equals it.
"""

from __future__ import annotations

import inspect
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
import vocab_helpers as helpers
from torch import nn

from hf_glmd.models.surgery import find_vocabulary_tensors, resize_model
from hf_glmd.vocab.vocab_map import VocabMap

V, K = helpers.V, 97
MAP = helpers.tiny_map(K)
IDS = torch.tensor([[0, 5, 50, 96, 7, 33], [0, 90, 3, 44, 96, 2]])
"""Small ids, the first and the last of them too."""

IMAGE_ID = 4
"""Of the models that look at pictures; kept, as all ids up to it."""

_IDS = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
_ENCODER = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 40,
} | _IDS
_DECODER = _ENCODER | {"num_key_value_heads": 2, "head_dim": 8}
_NO_HEAD_DIM = _ENCODER | {"num_key_value_heads": 2}
_GPT = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 40} | _IDS
_BART = {
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 40,
    "decoder_start_token_id": 2,
} | _IDS
_T5 = {
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 24,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 2,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": 1,
}
_XLM = {"emb_dim": 16, "n_layers": 2, "n_heads": 2, "max_position_embeddings": 40, "pad_index": 2}
_PER_LAYER = _DECODER | {
    "num_hidden_layers": 3,
    "layer_types": ["sliding_attention", "full_attention", "full_attention"],
    "num_kv_shared_layers": 1,
    "hidden_size_per_layer_input": 4,
    "vocab_size_per_layer_input": V,
    "sliding_window": 8,
}
_MOE = _DECODER | {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12}

MODELS: dict[str, tuple[str, dict[str, Any]]] = helpers.MODELS | {
    # encoders
    "bert-encoder": ("BertModel", _ENCODER),
    "xlm-roberta": ("XLMRobertaForMaskedLM", _ENCODER),
    "camembert": ("CamembertForMaskedLM", _ENCODER),
    "roberta-tokens": ("RobertaForTokenClassification", _ENCODER),
    "deberta-v2": ("DebertaV2ForMaskedLM", _ENCODER | {"pad_token_id": 0, "legacy": True}),
    "deberta-v2-new-head": ("DebertaV2ForMaskedLM", _ENCODER | {"pad_token_id": 0, "legacy": False}),
    "modernbert": ("ModernBertForMaskedLM", _ENCODER | {"cls_token_id": 0, "sep_token_id": 2, "local_attention": 4}),
    "mpnet": ("MPNetForMaskedLM", _ENCODER),
    "xlm": ("XLMWithLMHeadModel", _XLM),
    "flaubert": ("FlaubertWithLMHeadModel", _XLM),
    "xlnet": ("XLNetLMHeadModel", {"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 24} | _IDS),
    "funnel": (
        "FunnelForMaskedLM",
        {"block_sizes": [1, 1], "num_decoder_layers": 1, "d_model": 16, "n_head": 2, "d_head": 8, "d_inner": 24},
    ),
    "big-bird": ("BigBirdForMaskedLM", _ENCODER | {"attention_type": "original_full", "sep_token_id": 2}),
    "longformer": ("LongformerForMaskedLM", _ENCODER | {"attention_window": [4, 4]}),
    "mobilebert": ("MobileBertForMaskedLM", _ENCODER | {"embedding_size": 8, "intra_bottleneck_size": 16}),
    "rembert": ("RemBertForMaskedLM", _ENCODER | {"input_embedding_size": 8, "output_embedding_size": 12}),
    "ibert": ("IBertForMaskedLM", _ENCODER),
    "esm": ("EsmForMaskedLM", _ENCODER | {"mask_token_id": 4}),
    "nomic-bert": ("NomicBertForMaskedLM", _ENCODER),
    # encoder-decoders
    "umt5": ("UMT5ForConditionalGeneration", _T5),
    "long-t5": ("LongT5ForConditionalGeneration", _T5 | {"local_radius": 4}),
    "t5-encoder": ("T5EncoderModel", _T5),
    "mbart": ("MBartForConditionalGeneration", _BART),
    "marian": ("MarianMTModel", _BART),
    "m2m-100": ("M2M100ForConditionalGeneration", _BART),
    "pegasus": ("PegasusForConditionalGeneration", _BART),
    "blenderbot": ("BlenderbotForConditionalGeneration", _BART),
    "led": ("LEDForConditionalGeneration", _BART | {"attention_window": 4, "max_encoder_position_embeddings": 40}),
    "prophetnet": (
        "ProphetNetForConditionalGeneration",
        {"hidden_size": 16, "num_encoder_layers": 2, "num_decoder_layers": 2, "num_encoder_attention_heads": 2}
        | {"num_decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_position_embeddings": 40}
        | _IDS,
    ),
    "seamless-text": (
        "SeamlessM4TForTextToText",
        _ENCODER
        | {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
        | {"encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "t2u_vocab_size": 50, "decoder_start_token_id": 2},
    ),
    # decoders
    "openai-gpt": ("OpenAIGPTLMHeadModel", _GPT),
    "gpt-neo": (
        "GPTNeoForCausalLM",
        {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]]}
        | {"max_position_embeddings": 40, "window_size": 8}
        | _IDS,
    ),
    "gpt-neox": ("GPTNeoXForCausalLM", _ENCODER),
    "gpt-bigcode": ("GPTBigCodeForCausalLM", _GPT),
    "codegen": ("CodeGenForCausalLM", _GPT | {"n_embd": 64, "n_head": 4, "rotary_dim": 4}),
    "ctrl": ("CTRLLMHeadModel", {"n_embd": 16, "n_layer": 2, "n_head": 2, "dff": 24, "n_positions": 40} | _IDS),
    "bloom": ("BloomForCausalLM", {"hidden_size": 16, "n_layer": 2, "n_head": 2} | _IDS),
    "mpt": ("MptForCausalLM", {"d_model": 16, "n_layers": 2, "n_heads": 2, "max_seq_len": 40} | _IDS),
    "falcon": ("FalconForCausalLM", _ENCODER),
    "opt": (
        "OPTForCausalLM",
        {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 24, "max_position_embeddings": 40}
        | _IDS,
    ),
    "opt-projected": (
        "OPTForCausalLM",
        {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 24, "max_position_embeddings": 40}
        | {"word_embed_proj_dim": 8, "do_layer_norm_before": False}
        | _IDS,
    ),
    "biogpt": ("BioGptForCausalLM", _ENCODER),
    "xglm": ("XGLMForCausalLM", {"d_model": 16, "num_layers": 2, "attention_heads": 2, "ffn_dim": 24} | _IDS),
    "llama-tied": ("LlamaForCausalLM", _DECODER | {"tie_word_embeddings": True}),
    "llama-classifier": ("LlamaForSequenceClassification", _DECODER | {"num_labels": 3}),
    "mistral": ("MistralForCausalLM", _DECODER),
    "mixtral": ("MixtralForCausalLM", _MOE),
    "qwen2": ("Qwen2ForCausalLM", _DECODER),
    "qwen3": ("Qwen3ForCausalLM", _DECODER | {"tie_word_embeddings": True}),
    "gemma": ("GemmaForCausalLM", _DECODER),
    "gemma3": ("Gemma3ForCausalLM", _DECODER | {"sliding_window": 8}),
    "gemma3n": (
        "Gemma3nForCausalLM",
        _PER_LAYER
        | {"intermediate_size": [24] * 3, "activation_sparsity_pattern": [0.0] * 3, "laurel_rank": 4}
        | {"vocab_size_per_layer_input": 193},  # fewer rows than the vocabulary, as published
    ),
    "gemma4": ("Gemma4ForCausalLM", _PER_LAYER | {"global_head_dim": 8}),
    "phi": ("PhiForCausalLM", _NO_HEAD_DIM),
    "phi3": ("Phi3ForCausalLM", _NO_HEAD_DIM),
    "cohere": ("CohereForCausalLM", _DECODER),
    "cohere2": ("Cohere2ForCausalLM", _DECODER | {"sliding_window": 8}),
    "granite": ("GraniteForCausalLM", _DECODER | {"logits_scaling": 3.0, "embedding_multiplier": 5.0}),
    "stablelm": ("StableLmForCausalLM", _NO_HEAD_DIM),
    "starcoder2": ("Starcoder2ForCausalLM", _NO_HEAD_DIM),
    "olmo2": ("Olmo2ForCausalLM", _NO_HEAD_DIM),
    "smollm3": ("SmolLM3ForCausalLM", _DECODER),
    "gpt-oss": ("GptOssForCausalLM", _MOE | {"sliding_window": 8}),
    "glm4": ("Glm4ForCausalLM", _DECODER),
    "modernbert-decoder": ("ModernBertDecoderForCausalLM", _ENCODER | {"cls_token_id": 0, "sep_token_id": 2}),
    "mamba": ("MambaForCausalLM", {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4} | _IDS),
    "rwkv": ("RwkvForCausalLM", {"hidden_size": 16, "num_hidden_layers": 2, "attention_hidden_size": 16} | _IDS),
    "whisper-decoder": (
        "WhisperForCausalLM",
        {key: value for key, value in _BART.items() if key != "max_position_embeddings"} | {"max_target_positions": 40},
    ),
}
UNTIED = ("mt5-untied",)
_VISION = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 8,
    "patch_size": 4,
}


def _llava() -> Any:
    return transformers.LlavaForConditionalGeneration(
        transformers.LlavaConfig(
            text_config={"model_type": "llama", "vocab_size": V} | _DECODER,
            vision_config={"model_type": "clip_vision_model"} | _VISION,
            image_token_id=IMAGE_ID,
            vision_feature_layer=-1,
        )
    )


def _gemma3() -> Any:
    return transformers.Gemma3ForConditionalGeneration(
        transformers.Gemma3Config(
            text_config={"vocab_size": V, "sliding_window": 8} | _DECODER,
            vision_config=_VISION,
            mm_tokens_per_image=4,
            image_token_index=IMAGE_ID,
            boi_token_index=3,
            eoi_token_index=2,
        )
    )


def _qwen2_vl() -> Any:
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2]}
    return transformers.Qwen2VLForConditionalGeneration(
        transformers.Qwen2VLConfig(
            text_config={"vocab_size": V, "rope_parameters": rope} | _NO_HEAD_DIM,
            vision_config={"embed_dim": 16, "hidden_size": 16, "depth": 1, "num_heads": 2, "patch_size": 4, "mlp_ratio": 2},
            image_token_id=IMAGE_ID,
            video_token_id=3,
            vision_start_token_id=2,
            vision_end_token_id=1,
        )
    )


def _blip2() -> Any:
    """Its Q-Former has a vocabulary setting of its own."""
    return transformers.Blip2ForConditionalGeneration(
        transformers.Blip2Config(
            text_config={"model_type": "opt", "vocab_size": V} | MODELS["opt"][1],
            vision_config=_VISION,
            qformer_config={"vocab_size": 53, "pad_token_id": 0, "encoder_hidden_size": 16}
            | {key: value for key, value in _ENCODER.items() if not key.endswith("_id")},
            num_query_tokens=4,
            image_token_index=IMAGE_ID,
        )
    )


def _whisper() -> Any:
    settings = _BART | {"max_target_positions": 40, "max_source_positions": 8, "num_mel_bins": 4}
    return transformers.WhisperForConditionalGeneration(transformers.WhisperConfig(vocab_size=V, **settings))


def _bert_to_bert() -> Any:
    config = transformers.BertConfig(vocab_size=V, **_ENCODER)
    config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(
        config, config, decoder_start_token_id=0, pad_token_id=1
    )
    return transformers.EncoderDecoderModel(config)


COMPOSITES: dict[str, Callable[[], Any]] = {
    "llava": _llava,
    "gemma3-image": _gemma3,
    "qwen2-vl": _qwen2_vl,
    "blip-2": _blip2,
    "whisper": _whisper,
    "bert-to-bert": _bert_to_bert,
}
NAMES = (*MODELS, *UNTIED, *COMPOSITES)
RARE = frozenset(
    "roberta-tokens flaubert longformer esm nomic-bert umt5 long-t5 t5-encoder blenderbot led prophetnet seamless-text "
    "openai-gpt gpt-neo gpt-bigcode codegen ctrl falcon opt biogpt xglm llama-tied mistral mixtral qwen2 gemma cohere2 "
    "camembert mbart m2m-100 gemma2 qwen3 phi3 granite smollm3 mpt bert-pretraining starcoder2 "
    "stablelm olmo2 gpt-oss glm4 modernbert-decoder mamba rwkv whisper-decoder blip-2".split()
)
"""Much like others here: tested in the long run only."""


def zoo_model(name: str) -> Any:
    """A model in eval mode, all its weights random."""
    torch.manual_seed(0)
    if name in COMPOSITES:
        model = COMPOSITES[name]().eval()
    elif name in UNTIED:
        model = helpers.tiny_model(name)
    else:
        class_name, settings = MODELS[name]
        model = helpers.tiny_class(class_name, settings, V)
    for module in model.modules():
        if "Sinusoidal" in type(module).__name__:
            continue  # computed, not loaded
        for parameter in module.parameters(recurse=False):
            nn.init.normal_(parameter.data, std=0.2)
        if hasattr(module, "final_logits_bias"):
            nn.init.normal_(module.final_logits_bias)
    if name == "funnel":  # transformers zeroes this row when it loads the model
        model.funnel.embeddings.word_embeddings.weight.data[model.config.pad_token_id] = 0
    return model


def zoo_inputs(model: Any, ids: torch.Tensor, image_id: int = IMAGE_ID) -> dict[str, torch.Tensor]:
    """All that the model wants to see beside `ids`, which it gets in both its halves; one picture per text, in four tokens."""
    torch.manual_seed(1)
    kind = model.config.model_type
    if kind == "whisper" and model.config.is_encoder_decoder:
        return {"input_features": torch.randn(len(ids), 4, 16), "decoder_input_ids": ids}
    inputs = {"input_ids": ids}
    if "decoder_input_ids" in inspect.signature(model.forward).parameters:
        inputs["decoder_input_ids"] = ids
    if kind in ("llava", "gemma3", "blip-2", "qwen2_vl"):
        picture = torch.full((len(ids), 4), image_id)
        inputs["input_ids"] = torch.cat([picture, ids], dim=1)
        inputs["pixel_values"] = torch.randn(len(ids), 3, 8, 8)
    if kind == "gemma3":
        inputs["token_type_ids"] = (inputs["input_ids"] == image_id).long()  # they see each other, not only what came before
    if kind == "qwen2_vl":
        inputs["pixel_values"] = torch.randn(len(ids) * 16, 3 * 2 * 4 * 4)
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == image_id).long()
        inputs["image_grid_thw"] = torch.tensor([[1, 4, 4]] * len(ids))
    return inputs


@dataclass(frozen=True)
class Comparison:
    """A smaller model beside the one it was cut from, on the same tokens."""

    states: int
    states_identical: bool
    """Hidden states of all layers (for a model without, its output) are equal bit for bit."""

    logit_difference: float
    """Largest, over the kept columns; 0 as well for a model without logits over the vocabulary, whose output is compared."""


def compare(large: Any, small: Any, vocab_map: VocabMap = MAP, ids: torch.Tensor = IDS) -> Comparison:
    old_states, old = _states_and_logits(large, vocab_map.to_original(ids), vocab_map.to_original(IMAGE_ID))
    new_states, new = _states_and_logits(small, ids, IMAGE_ID)
    if old.shape[-1] >= vocab_map.original_size:
        old = old[..., torch.from_numpy(vocab_map.kept_ids.copy())]
    identical = len(old_states) == len(new_states) and all(map(torch.equal, old_states, new_states))
    return Comparison(len(new_states), identical, float((new - old).abs().max()))


def reload(model: Any, folder: Any) -> Any:
    """The model as it comes back from its files, all of whose weights are used."""
    model.save_pretrained(folder)
    loaded, info = type(model).from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
    return loaded.eval()


def _states_and_logits(model: Any, ids: torch.Tensor, image_id: int) -> tuple[list[torch.Tensor], torch.Tensor]:
    with torch.no_grad():
        output = model(**zoo_inputs(model, ids, image_id), output_hidden_states=True)
    states = []
    for name, value in output.items():
        if name.endswith("hidden_states") and value is not None:  # those of a picture are a single tensor
            states += [value] if isinstance(value, torch.Tensor) else value
    for name, value in output.get("language_model_outputs", {}).items():  # BLIP-2
        states += value if name == "hidden_states" else ()
    first = next(output[name] for name in ("logits", "prediction_logits", "last_hidden_state") if name in output)
    return states or [first], first


def main() -> None:
    """Prints a table of what was cut, compared, saved, loaded and compared again."""
    sys.stdout.write("| model | class | tensors cut | tied | states equal | logits differ by | the same, loaded again |\n")
    sys.stdout.write("|---|---|---|---|---|---|---|\n")
    for name in NAMES:
        large = zoo_model(name)
        small = resize_model(large, MAP)
        now = compare(large, small)
        with tempfile.TemporaryDirectory() as folder:
            again = compare(large, reload(small, folder))
        cells = (
            name,
            type(large).__name__,
            len(find_vocabulary_tensors(large, V)),
            tie_of(large),
            f"{now.states} {'yes' if now.states_identical else 'NO'}",
            f"{now.logit_difference:.1e}",
            f"{'yes' if again.states_identical else 'NO'}, {again.logit_difference:.1e}",
        )
        sys.stdout.write(f"| {' | '.join(map(str, cells))} |\n")


def tie_of(model: Any) -> str:
    head = model.get_output_embeddings()
    return "no head" if head is None else "tied" if head.weight is model.get_input_embeddings().weight else "untied"


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    main()
