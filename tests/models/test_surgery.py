from __future__ import annotations

import copy
import subprocess
import sys

import model_zoo as zoo
import pytest
import torch
import vocab_helpers as helpers
from model_zoo import IDS, MAP, K, V
from torch import nn
from transformers import SpeechEncoderDecoderConfig, SpeechEncoderDecoderModel, Wav2Vec2Config, WhisperForConditionalGeneration

from hf_glmd.errors import UsageError
from hf_glmd.models.surgery import find_vocabulary_tensors, plan_cut, resize_model
from hf_glmd.vocab.vocab_map import VocabMap

REMOVED = 10
NAMES = [pytest.param(name, marks=pytest.mark.slow) if name in zoo.RARE else name for name in zoo.NAMES]


def put(config, **values):
    for name, value in values.items():
        setattr(config, name, value)


def ties(model):
    names = {}
    for path, tensor in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(tensor), []).append(path)
    return sorted(map(sorted, names.values()))


@pytest.mark.parametrize("name", NAMES)
def test_states_are_equal_bit_for_bit_and_logits_are_the_kept_columns_also_after_saving(name, tmp_path):
    model = zoo.zoo_model(name)
    before = copy.deepcopy(model.state_dict())
    settings = model.config.to_dict()
    small = resize_model(model, MAP)
    now = zoo.compare(model, small)
    assert now.states_identical and now.logit_difference < 1e-6
    # ties are those of the tensors, and nothing of the old size is left
    assert ties(small) == ties(model)
    assert not {id(t) for t in model.parameters()} & {id(t) for t in small.parameters()}
    assert not any(V in tensor.shape for tensor in [*small.parameters(), *small.buffers()])
    left = {name for module in small.modules() for name, value in vars(module).items() if type(value) is int and value == V}
    assert left <= {"num_"}  # I-BERT's, which it never reads
    assert V not in small.config.to_dict().values()
    # the given model is untouched
    assert model.config.to_dict() == settings and model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    again = zoo.compare(model, zoo.reload(small, tmp_path))
    assert again.logit_difference < 1e-6
    assert again.states_identical or name in ("mixtral", "gpt-oss")  # experts: sums in the order of the memory layout


def test_a_fresh_process_loads_the_same_model(tmp_path):
    names = {"bert": "MaskedLM", "bart": "Seq2SeqLM", "mt5-untied": "Seq2SeqLM", "gemma3n": "CausalLM", "gptj": "CausalLM"}
    lines = ["import sys, torch, transformers", "IDS = torch.load('ids.pt')"]
    torch.save(IDS, tmp_path / "ids.pt")
    for name, kind in names.items():
        small = resize_model(zoo.zoo_model(name), MAP)
        small.save_pretrained(tmp_path / name)
        torch.save(helpers.outputs(small, IDS), tmp_path / f"{name}.pt")
        inputs = "input_ids=IDS, decoder_input_ids=IDS" if kind == "Seq2SeqLM" else "input_ids=IDS"
        lines += [
            f"model = transformers.AutoModelFor{kind}.from_pretrained('{name}').eval()",
            f"with torch.no_grad(): same = torch.equal(model({inputs})[0], torch.load('{name}.pt'))",
            f"if not same: sys.exit('{name}')",
        ]
    result = subprocess.run([sys.executable, "-c", "\n".join(lines)], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_the_config_is_not_asked_about_ties():
    model = zoo.zoo_model("mt5-untied")
    assert model.config.tie_word_embeddings  # as the published configs say, wrongly
    small = resize_model(model, MAP)
    assert small.lm_head.weight is not small.shared.weight
    assert torch.equal(small.lm_head.weight, model.lm_head.weight[torch.tensor(MAP.kept_ids)])


def test_a_bias_that_only_the_output_layer_has_is_cut_once():
    small = resize_model(zoo.zoo_model("bert"), MAP)
    assert small.cls.predictions.bias is small.cls.predictions.decoder.bias
    small = resize_model(zoo.zoo_model("bart"), MAP)
    assert small.final_logits_bias.shape == (1, K) and small.final_logits_bias.abs().min() > 0


@pytest.mark.parametrize("name", ["qwen2-tied", "t5", "bert-untied", "gptj"])
def test_rows_that_only_pad_the_table_are_dropped(name):
    model = helpers.tiny_model(name, vocab_size=256)
    small = resize_model(model, MAP)
    assert small.get_output_embeddings().out_features == K == len(small.get_output_embeddings().weight)
    assert small.config.vocab_size == K
    assert torch.equal(helpers.outputs(small, IDS), helpers.outputs(model, MAP.to_original(IDS))[..., MAP.kept_ids.copy()])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtype_mode_and_frozen_weights_stay(dtype):
    model = zoo.zoo_model("llama").to(dtype).train()
    model.get_input_embeddings().weight.requires_grad_(False)
    small = resize_model(model, MAP)
    assert small.dtype == dtype and small.training
    assert not small.get_input_embeddings().weight.requires_grad and small.lm_head.weight.requires_grad
    assert type(small.lm_head.weight) is nn.Parameter
    assert zoo.compare(model.eval(), small.eval()).states_identical


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


@pytest.mark.parametrize("name", ["llava", "gemma3-image", "qwen2-vl"])
def test_the_image_token_moves_and_the_image_encoder_does_not(name):
    vocab_map = VocabMap([0, 1, 2, 4, *range(7, 100)], V)  # without 3, so that the image token moves
    model = zoo.zoo_model(name)
    for config in (model.config, model.config.text_config):  # what else had the id 3
        for key, value in vars(config).items():
            if value == 3 and ("token" in key):
                setattr(config, key, 2)
    vision = {key: value for key, value in vars(model.config.vision_config).items() if isinstance(value, (int, list, str))}
    small = resize_model(model, vocab_map)
    assert small.config.image_token_id == 3 and model.config.image_token_id == 4
    assert small.config.text_config.vocab_size == vocab_map.size
    assert {key: vars(small.config.vision_config)[key] for key in vision} == vision
    large, cut = model.state_dict(), small.state_dict()
    towers = [key for key in large if "vis" in key]
    assert towers and all(torch.equal(large[key], cut[key]) for key in towers)


def test_a_part_with_another_vocabulary_is_left_alone():
    model = zoo.zoo_model("blip-2")
    small = resize_model(model, MAP)
    assert small.config.qformer_config.vocab_size == 53 and small.config.text_config.vocab_size == K
    assert small.config.qformer_config.pad_token_id == 0

    speech = Wav2Vec2Config(
        **{"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 32},
        **{"conv_dim": [16], "conv_kernel": [4], "conv_stride": [4], "num_conv_pos_embeddings": 4, "pad_token_id": REMOVED},
        **{"num_conv_pos_embedding_groups": 2, "feat_extract_norm": "layer"},
    )
    text = helpers.tiny_model("bert").config
    config = SpeechEncoderDecoderConfig.from_encoder_decoder_configs(speech, text, pad_token_id=0, decoder_start_token_id=0)
    model = SpeechEncoderDecoderModel(config).eval()
    small = resize_model(model, MAP)
    assert small.encoder.config.vocab_size == 32 and small.encoder.config.pad_token_id == REMOVED and not MAP.keeps(REMOVED)
    assert small.decoder.config.vocab_size == K
    sound = torch.randn(2, 64)
    wanted = model(input_values=sound, decoder_input_ids=MAP.to_original(IDS)).logits[..., MAP.kept_ids.copy()]
    assert torch.equal(small(input_values=sound, decoder_input_ids=IDS).logits, wanted)


def test_ids_of_speech_recognition_move():
    vocab_map = VocabMap([*range(0, 20, 2), *range(100, V)], V)  # id 100 becomes 10
    config = zoo.zoo_model("whisper").config
    put(config, pad_token_id=2, bos_token_id=4, eos_token_id=6, decoder_start_token_id=8)
    put(config, suppress_tokens=[10, 11], begin_suppress_tokens=[12, 50256])
    model = WhisperForConditionalGeneration(config)
    put(
        model.generation_config,
        forced_decoder_ids=[[1, None], [2, 100]],
        lang_to_id={"<|en|>": 101},
        task_to_id={"transcribe": 102},
        no_timestamps_token_id=104,
        prev_sot_token_id=103,
        max_initial_timestamp_index=50,
        alignment_heads=[[1, 0]],
    )
    small = resize_model(model, vocab_map)
    generation = small.generation_config
    assert (generation.pad_token_id, generation.eos_token_id, small.config.decoder_start_token_id) == (1, 3, 4)
    assert generation.suppress_tokens == small.config.suppress_tokens == [5] and generation.begin_suppress_tokens == [6]
    assert generation.forced_decoder_ids == [[1, None], [2, 10]] and generation.no_timestamps_token_id == 14
    assert generation.lang_to_id == {"<|en|>": 11} and generation.task_to_id == {"transcribe": 12}
    assert generation.prev_sot_token_id == 13
    assert generation.max_initial_timestamp_index == 50 and generation.alignment_heads == [[1, 0]]
    assert model.generation_config.lang_to_id == {"<|en|>": 101}
    with pytest.raises(UsageError, match=r"no_timestamps_token_id \(its time stamps\)=210 names a removed token"):
        resize_model(model, VocabMap([*range(0, 20, 2), *range(100, V - 1)], V))


def test_a_per_layer_table_shorter_than_the_vocabulary_keeps_what_it_has():
    model = zoo.zoo_model("gemma3n")
    small = resize_model(model, MAP)
    rows = small.config.vocab_size_per_layer_input
    assert rows == (MAP.kept_ids < 193).sum() < K
    assert small.model.embed_tokens_per_layer.weight.shape[0] == rows == small.model.embed_tokens_per_layer.num_embeddings
    for config in (model.config, model.generation_config):
        put(config, pad_token_id=1, bos_token_id=1, eos_token_id=2)
    with pytest.raises(UsageError, match=r"193 rows for 211 tokens.*keep=\[0\]"):
        resize_model(model, VocabMap(range(1, V), V))


def test_a_smaller_copy_can_be_trained():
    model = helpers.tiny_model("bert")
    small = resize_model(model, MAP).train()
    small(input_ids=IDS, labels=IDS).loss.backward()
    assert small.get_input_embeddings().weight.grad.shape == (K, 16)
    assert model.get_input_embeddings().weight.grad is None


@pytest.mark.parametrize("name", ["xlm", "prophetnet", "bert-pretraining", "mobilebert"])
def test_the_loss_of_a_smaller_copy_is_computed_over_the_small_vocabulary(name):
    small = resize_model(zoo.zoo_model(name), MAP)
    extra = {"next_sentence_label": torch.zeros(len(IDS), dtype=torch.long)} if name == "bert-pretraining" else {}
    output = small(**zoo.zoo_inputs(small, IDS), labels=IDS, **extra)
    assert torch.isfinite(output.loss)


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
    assert small.second.out_features == K and torch.equal(small.second.bias, model.second.bias[MAP.kept_ids.copy()])


def test_two_vocabularies_are_refused():
    model = helpers.tiny_model("llama")
    model.lm_head = nn.Linear(16, V + 2, bias=False)
    with pytest.raises(UsageError, match=r"two vocabularies \(rows: \[211, 213\]\)"):
        resize_model(model, MAP)
    model = zoo.zoo_model("marian")
    model.config.share_encoder_decoder_embeddings = False
    with pytest.raises(UsageError, match="two vocabularies"):
        resize_model(model, MAP)
    model = zoo.zoo_model("llava")
    model.config.vision_config.vocab_offset = 100
    with pytest.raises(UsageError, match="vocab_offset.*text model alone"):
        resize_model(model, MAP)


def test_an_id_of_a_removed_token_is_refused_before_anything_is_copied(monkeypatch):
    model = helpers.tiny_model("llama")
    model.generation_config.eos_token_id = [2, REMOVED]
    monkeypatch.setattr(copy, "deepcopy", lambda *args: pytest.fail("copied"))
    with pytest.raises(UsageError, match=rf"eos_token_id={REMOVED} names a removed token.*keep=\[{REMOVED}\]"):
        resize_model(model, MAP)


def test_a_model_without_words_is_refused():
    from transformers import ViTConfig, ViTModel

    model = ViTModel(ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, image_size=32))
    with pytest.raises(UsageError, match="ViT"):
        resize_model(model, MAP)


def test_weights_that_are_not_there_are_refused():
    model = helpers.tiny_model("bert")
    with torch.device("meta"):
        empty = type(model)(model.config)
    with pytest.raises(UsageError, match="not in memory"):
        resize_model(empty, MAP)
    with pytest.raises(UsageError, match="DataParallel is not a transformers model"):
        resize_model(nn.DataParallel(model), MAP)


def test_offloaded_weights_are_refused(tmp_path):
    from accelerate import cpu_offload, disk_offload

    with pytest.raises(UsageError, match="offloaded"):
        resize_model(cpu_offload(helpers.tiny_model("llama"), torch.device("cpu")), MAP)
    with pytest.raises(UsageError, match="offloaded"):
        resize_model(disk_offload(helpers.tiny_model("llama"), tmp_path, torch.device("cpu")), MAP)


def test_quantised_weights_are_refused():
    model = helpers.tiny_model("bert")
    model.config.quantization_config = {"load_in_8bit": True}
    with pytest.raises(UsageError, match="quantised"):
        resize_model(model, MAP)
    model = helpers.tiny_model("bert")
    model.get_input_embeddings().weight = nn.Parameter(torch.zeros(V, 16, dtype=torch.int8), requires_grad=False)
    with pytest.raises(UsageError, match="quantised"):
        resize_model(model, MAP)

    class Packed(nn.Parameter):  # as Params4bit of bitsandbytes
        pass

    model = helpers.tiny_model("llama")
    model.model.layers[0].mlp.up_proj.weight = Packed(torch.zeros(24, 16))
    with pytest.raises(UsageError, match="up_proj.weight is a Packed"):
        resize_model(model, MAP)


@pytest.fixture(scope="module")
def mesh(tmp_path_factory):
    """One process that believes it is many."""
    store = tmp_path_factory.mktemp("gloo") / "store"
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield torch.distributed.init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


def test_sharded_weights_are_refused(mesh):
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    model = helpers.tiny_model("llama")
    fully_shard(model, mesh=mesh)
    assert isinstance(model.lm_head.weight, DTensor)
    with pytest.raises(UsageError, match="sharded over processes"):
        resize_model(model, MAP)


def test_weights_sharded_by_others_are_refused():
    model = helpers.tiny_model("llama")
    model.model.norm.weight.ds_id = 3  # what DeepSpeed's ZeRO-3 puts on each
    with pytest.raises(UsageError, match="model.norm.weight is sharded"):
        resize_model(model, MAP)
    model = helpers.tiny_model("llama")
    model._tp_size = 2
    with pytest.raises(UsageError, match="sharded"):
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


MEMORY = """
import sys, torch, transformers
from pathlib import Path
from hf_glmd.models.surgery import resize_model
from hf_glmd.vocab.vocab_map import VocabMap

def model_of(rows, width, layers, tied):
    config = transformers.LlamaConfig(vocab_size=rows, hidden_size=width, num_hidden_layers=layers, num_attention_heads=2,
        intermediate_size=4 * width, tie_word_embeddings=tied)
    return transformers.LlamaForCausalLM(config)

def peak():
    return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])

def cut(model, rows, in_place=False):
    return resize_model(model, VocabMap([0, 1, 2, *range(3, rows, 3)], rows), in_place=in_place)

cut(model_of(211, 16, 1, True), 211)  # whatever is loaded on first use
tied = sys.argv[1] == "tied"
rows = 150_000 if tied else 75_000
model = model_of(rows, 512, 6, tied)
Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
before = peak()
size = lambda one: sum(tensor.nbytes for tensor in one.parameters())
large = size(model)
small = cut(model, rows, sys.argv[2] == "in place")
sys.stdout.write(f"{large} {size(small)} {small.lm_head.weight.nbytes} {peak() - before}")
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("tie", ["tied", "untied"])
@pytest.mark.parametrize("where", ["copied", "in place"])
def test_beside_the_model_only_what_is_new_is_held(tie, where):
    """Peak memory in a fresh process, of a model of 400 MB whose tables are the most of it."""
    result = subprocess.run([sys.executable, "-c", MEMORY, tie, where], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    model, small, table, growth = map(int, result.stdout.split())
    assert model > 400e6 and growth < 1.02 * (small if where == "copied" else table) + 10e6, (model, small, table, growth)


@pytest.mark.parametrize("name", ["bert-untied", "bart", "qwen2-tied"])
def test_the_given_model_itself_can_be_cut(name):
    model = zoo.zoo_model(name)
    tie = ties(model)
    with pytest.raises(UsageError):
        resize_model(model, VocabMap(range(V), V + 1), in_place=True)
    layer = next(tensor for tensor in model.parameters() if V not in tensor.shape)
    small = resize_model(model, MAP, in_place=True)
    assert small is model and ties(model) == tie and any(tensor is layer for tensor in model.parameters())
    assert zoo.compare(zoo.zoo_model(name), small) == zoo.compare(zoo.zoo_model(name), resize_model(zoo.zoo_model(name), MAP))
    assert small.config.vocab_size == K


def test_found_tensors_are_distinct():
    found = find_vocabulary_tensors(helpers.tiny_model("bert"), V)
    assert len(found) == 2  # one table, one bias, however many names they have


def test_a_plan_changes_nothing():
    model = zoo.zoo_model("gemma3n")
    before = model.config.to_dict()
    changes = [change for change in plan_cut(model, MAP).settings if change.is_one]
    assert model.config.to_dict() == before and model.get_input_embeddings().num_embeddings == V
    assert {"vocab_size", "model.vocab_size", "model.embed_tokens.num_embeddings"} <= {change.name for change in changes}
