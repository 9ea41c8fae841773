"""Where the models of a run are put: the teacher is spread over the processes as the student is, and what would silently train
wrongly is refused."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from accelerate import Accelerator
from accelerate.utils import DistributedType, fsdp2_prepare_model
from accelerate.utils.dataclasses import get_module_class_from_name
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import TrainingArguments
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from hf_glmd.errors import UsageError

SUPPORTED = {
    DistributedType.NO,
    DistributedType.MULTI_CPU,
    DistributedType.MULTI_GPU,
    DistributedType.DEEPSPEED,
    DistributedType.FSDP,
}


def prepare_frozen(model: nn.Module, accelerator: Accelerator) -> nn.Module:
    """Puts a model that is only read where the student is put: whole on the device of each process, or, where the student's
    weights are sharded (ZeRO-3, FSDP2), sharded as well.

    Returns: what has to be called in place of the model.
    """
    if accelerator.distributed_type == DistributedType.FSDP:
        return _fully_sharded(model, accelerator)
    if accelerator.distributed_type == DistributedType.DEEPSPEED and accelerator.deepspeed_plugin.zero_stage == 3:
        return _zero3_sharded(model, accelerator)
    return model.to(accelerator.device)


def _fully_sharded(model: nn.Module, accelerator: Accelerator) -> nn.Module:
    plugin = accelerator.state.fsdp_plugin
    accelerator.state.fsdp_plugin = copy.copy(plugin)  # for the student may have other layers
    try:
        with shardable(model, accelerator.state.fsdp_plugin):
            return fsdp2_prepare_model(accelerator, model.to(accelerator.device))
    finally:
        accelerator.state.fsdp_plugin = plugin


@contextmanager
def shardable(model: nn.Module, plugin: Any) -> Iterator[None]:
    """Inside this context accelerate can shard a model with FSDP2.

    accelerate 1.15 shards the two embeddings by themselves, together where they are tied, and fails at a weight that is in two
    groups: so no layer that contains an embedding is wrapped (BERT names its embeddings among those not to split), and no module
    around the output embedding has a parameter of it as its own, too (the heads of BERT and RoBERTa have its bias).
    """
    wanted = plugin.transformer_cls_names_to_wrap or getattr(model, "_no_split_modules", None) or ()
    head = model.get_output_embeddings()
    embeddings = [model.get_input_embeddings(), *([] if head is None else [head])]
    around = [module for module in model.modules() if any(part in embeddings for part in module.modules())]
    holders = {type(module) for module in around}
    layers = (get_module_class_from_name(model, name) for name in wanted)
    plugin.transformer_cls_names_to_wrap = [layer.__name__ for layer in layers if layer is not None and layer not in holders]
    if head is None:
        yield
        return
    names = {id(parameter): name for name, parameter in head.named_parameters(recurse=False)}
    aliases = [
        (module, name, names[id(parameter)])
        for module in around
        if module not in embeddings
        for name, parameter in module.named_parameters(recurse=False)
        if id(parameter) in names
    ]
    for module, name, _ in aliases:
        delattr(module, name)
    try:
        yield
    finally:
        for module, name, name_in_head in aliases:
            module.register_parameter(name, getattr(head, name_in_head))


def _zero3_sharded(model: nn.Module, accelerator: Accelerator) -> nn.Module:
    if "_zero3_engine" not in vars(model):  # a teacher may serve several trainers
        import deepspeed

        # Not accelerator.prepare, which takes the latest engine for the one to train. "auto" stands for what depends on the
        # student's width.
        given = accelerator.deepspeed_plugin.deepspeed_config
        zero = {name: value for name, value in given["zero_optimization"].items() if value != "auto"}
        zero.pop("offload_optimizer", None)
        config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": zero}
        config |= {name: given[name] for name in ("bf16", "fp16") if name in given}
        engine, *_ = deepspeed.initialize(model=model, config=config)
        engine.eval()
        vars(model)["_zero3_engine"] = engine  # not as a submodule: the engine holds the model
    return vars(model)["_zero3_engine"]


def load_whole_unless_asked(plugin: Any) -> None:
    """Makes transformers respect `zero3_init_flag: false`: TrainingArguments and Trainer turn on, whatever the flag, that every
    later `from_pretrained` shards its weights, and a model without an engine cannot be run then (transformers 5.23)."""
    if plugin is not None and not plugin.zero3_init_flag:
        unset_hf_deepspeed_config()


def check_distribution(accelerator: Accelerator, args: TrainingArguments, model: nn.Module) -> None:
    """Refuses what cannot train, or would train something else than it says.

    Raises: UsageError.
    """
    kind = accelerator.distributed_type
    if kind not in SUPPORTED:
        raise UsageError(f"{kind.value} is not supported. Use DDP, DeepSpeed ZeRO or FSDP2: see recipes/accelerate.")
    for asked in (DistributedType.DEEPSPEED, DistributedType.FSDP):
        if os.environ.get(f"ACCELERATE_USE_{asked.value}", "").lower() == "true" and kind != asked:
            raise UsageError(
                f"{asked.value} was asked for, but accelerate uses {kind.value}. Both need GPUs; on CPUs use multi_cpu.yaml of "
                "recipes/accelerate, or, for DeepSpeed, use_cpu=False with ddp_backend='gloo' and DS_ACCELERATOR=cpu."
            )
    started = int(os.environ.get("WORLD_SIZE", 1))
    if started != accelerator.num_processes:
        raise UsageError(
            f"{started} processes were started, but each of them sees {accelerator.num_processes}, and would train by itself. "
            "Without a GPU set use_cpu=True (DDP) or ddp_backend='gloo' (DeepSpeed); FSDP needs GPUs."
        )
    if args.n_gpu > 1:
        raise UsageError(
            f"one process sees {args.n_gpu} GPUs. Start one per GPU, accelerate launch --num_processes {args.n_gpu} ..., "
            "or show it one with CUDA_VISIBLE_DEVICES=0."
        )
    _refuse_split_sequences(accelerator, model)
    if kind == DistributedType.DEEPSPEED:
        _check_deepspeed(accelerator.deepspeed_plugin)
    if kind == DistributedType.FSDP:
        _check_fsdp(accelerator.state.fsdp_plugin)


def _refuse_split_sequences(accelerator: Accelerator, model: nn.Module) -> None:
    """The loss reads whole rows of whole logits."""
    config = accelerator.parallelism_config
    sizes = {name: getattr(config, f"{name}_size", 1) for name in ("sp", "cp", "tp")}
    sizes["tp"] = max(sizes["tp"], getattr(model, "_tp_size", None) or 1)
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        tensor_parallel = accelerator.deepspeed_plugin.deepspeed_config.get("tensor_parallel", {})
        sizes["tp"] = max(sizes["tp"], tensor_parallel.get("autotp_size", 1))
    for short, name in (("sp", "sequence"), ("cp", "context"), ("tp", "tensor")):
        if sizes[short] > 1:
            raise UsageError(
                f"{name} parallelism ({short}_size={sizes[short]}) is not supported: a process would see a part of a row or of "
                f"its logits. Set {short}_size to 1 and use DDP, DeepSpeed ZeRO or FSDP2."
            )


def _check_deepspeed(plugin: Any) -> None:
    saves_whole = plugin.deepspeed_config["zero_optimization"].get("stage3_gather_16bit_weights_on_model_save")
    if plugin.zero_stage == 3 and saves_whole is not True:
        raise UsageError(
            "ZeRO-3 would save no whole weights. Set zero3_save_16bit_model: true in the accelerate config "
            "(stage3_gather_16bit_weights_on_model_save in a DeepSpeed config)."
        )


def _check_fsdp(plugin: Any) -> None:
    if plugin.fsdp_version != 2:
        raise UsageError(f"fsdp_version={plugin.fsdp_version} is not supported. Set fsdp_version: 2 in the accelerate config.")
    if "FULL_STATE_DICT" not in str(plugin.state_dict_type):
        raise UsageError(
            f"fsdp_state_dict_type={plugin.state_dict_type.name} would save no whole weights. Set fsdp_state_dict_type: "
            "FULL_STATE_DICT in the accelerate config."
        )
    if plugin.cpu_ram_efficient_loading:
        raise UsageError(
            "fsdp_cpu_ram_efficient_loading leaves the weights of all processes but one empty, and their heads are looked at "
            "before they are sharded. Set fsdp_cpu_ram_efficient_loading: false in the accelerate config."
        )


def is_sharded(weight: Tensor) -> bool:
    """Whether this process holds but a part of a weight, outside of the forward of its module."""
    return isinstance(weight, DTensor) or hasattr(weight, "ds_id")


def whole(weight: Tensor) -> Tensor:
    """A weight of FSDP2, gathered from all processes, which all have to ask; any other as it is."""
    # Weights that were put off to the CPU are exchanged on the device.
    return weight.to(weight.device_mesh.device_type).full_tensor() if isinstance(weight, DTensor) else weight


@contextmanager
def gathered(weights: Iterable[Tensor]) -> Iterator[None]:
    """Inside this context the weights that ZeRO-3 shards are whole; all processes have to enter it. Others are as they were."""
    sharded = [weight for weight in weights if hasattr(weight, "ds_id")]
    if not sharded:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(sharded):
        yield
