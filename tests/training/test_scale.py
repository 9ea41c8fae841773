"""One process, several, or weights sharded over them: the same losses, gradients, weights and scores."""

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import scale_helpers
import torch
import training_helpers as helpers
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType
from safetensors.torch import load_file
from torch.distributed.fsdp import StateDictType
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from hf_glmd import UsageError
from hf_glmd.models.distributed import check_distribution

REPOSITORY = Path(__file__).parents[2]
CONFIGS = REPOSITORY / "recipes" / "accelerate"

needs_deepspeed = pytest.mark.skipif(
    find_spec("deepspeed") is None or shutil.which("g++") is None,
    reason="needs deepspeed (the extra 'deepspeed') and a C++ compiler, with which it builds its exchange between CPUs",
)


def launch(config: Path, *arguments: str, **environment: str) -> None:
    """`accelerate launch` of `scale_helpers`, as a user would."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    script = REPOSITORY / "tests" / "scale_helpers.py"
    path = os.pathsep.join([str(REPOSITORY), str(script.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*command, "--main_process_port", "0", str(script), *arguments],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-4000:]


def check(case: str, folder: Path, one_folder: Path, sharded_teacher: bool) -> None:
    """Beside one process: within 1e-5, the weights within 1e-5 of how far they moved."""
    several, one = torch.load(folder / "result.pt", weights_only=False), scale_helpers.run(case, one_folder)
    for when in ("before", "after"):
        for name in ("eval_loss", "eval_kl", "eval_agreement", "eval_teacher_entropy"):
            assert several[when][name] == pytest.approx(one[when][name], rel=1e-5), (case, when, name)
    assert len(several["logs"]) == len(one["logs"]) > 0 and max(log["loss"] for log in one["logs"]) > 0
    for name in ("loss", "grad_norm"):
        values = [[log[name] for log in result["logs"]] for result in (several, one)]
        assert values[0] == pytest.approx(values[1], rel=1e-5), (case, name)
    auto = AutoModelForCausalLM if "causal" in case or case == "softcap" else AutoModelForMaskedLM
    weights = [
        torch.cat([p.detach().flatten() for p in auto.from_pretrained(place / "saved").parameters()])
        for place in (folder, one_folder)
    ]
    moved = (weights[1] - one["start"]).norm()
    assert moved > 0 and (weights[0] - weights[1]).norm() <= 1e-5 * weights[1].norm(), case
    assert (several["sharded"] < 0.8) == sharded_teacher, f"each process holds {several['sharded']:.0%} of the teacher"
    for names in zip(*(sorted(path.name for path in (place / "saved").iterdir()) for place in (folder, one_folder)), strict=True):
        assert names[0] == names[1]
    configs = [json.loads((place / "saved" / "config.json").read_text()) for place in (folder, one_folder)]
    assert configs[0] == configs[1]
    if "save_steps" in scale_helpers.CASES[case]:
        names = {path.name for path in (folder / "checkpoint-10").iterdir()}
        assert {"model.safetensors", "tokenizer.json", "vocab_map.safetensors"} <= names
        size = sum(tensor.numel() for tensor in load_file(folder / "checkpoint-10" / "model.safetensors").values())
        assert size == weights[1].numel()


def down_to_the_smallest_weight(folder: Path) -> Path:
    """zero3.yaml, but sharding every weight: DeepSpeed leaves those of less than 1e5 elements whole."""
    config = yaml.safe_load((CONFIGS / "zero3.yaml").read_text())
    given = config.pop("deepspeed_config")
    del config["mixed_precision"]  # belongs into the other file then
    zero = {"stage": 3, "stage3_gather_16bit_weights_on_model_save": given["zero3_save_16bit_model"]}
    auto = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    settings = {"zero_optimization": zero | {"stage3_param_persistence_threshold": 0}, **dict.fromkeys(auto, "auto")}
    (folder / "deepspeed.json").write_text(json.dumps(settings))
    config["deepspeed_config"] = {
        "deepspeed_config_file": str(folder / "deepspeed.json"),
        "zero3_init_flag": given["zero3_init_flag"],
    }
    (folder / "zero3.yaml").write_text(yaml.safe_dump(config))
    return folder / "zero3.yaml"


QUICK = ("masked", "accumulated", "causal, tied", "resumed")
REST = tuple(case for case in scale_helpers.CASES if case not in QUICK)
CASES = pytest.mark.parametrize("cases", [QUICK, pytest.param(REST, marks=pytest.mark.slow)], ids=["most", "rest"])


@needs_deepspeed
@CASES
def test_zero3_trains_as_one_process(tmp_path, cases):
    launch(down_to_the_smallest_weight(tmp_path), str(tmp_path), *cases, DS_ACCELERATOR="cpu")
    for number, case in enumerate(cases):
        check(case, tmp_path / str(number), tmp_path / f"{number} by one", sharded_teacher=True)


@CASES
def test_fsdp2_trains_as_one_process(tmp_path, cases):
    environment = {"ACCELERATE_TORCH_DEVICE": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    launch(CONFIGS / "fsdp2.yaml", "--gpus-are-cpus", str(tmp_path), *cases, **environment)
    for number, case in enumerate(cases):
        check(case, tmp_path / str(number), tmp_path / f"{number} by one", sharded_teacher=True)


@needs_deepspeed
@pytest.mark.slow
def test_zero2_trains_as_one_process_and_keeps_the_teacher_whole(tmp_path):
    launch(CONFIGS / "zero2.yaml", str(tmp_path), "cut vocabulary", DS_ACCELERATOR="cpu")
    check("cut vocabulary", tmp_path / "0", tmp_path / "by one", sharded_teacher=False)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_each_config_and_its_first_line_says_how(path):
    config = load_config_from_file(str(path))
    assert config.num_processes == (1 if path.stem == "single" else 2)
    command = (
        f"# accelerate launch --config_file recipes/accelerate/{path.name} recipes/glmd.py --config recipes/quickstart.yaml\n"
    )
    assert path.read_text().startswith(command)
    for name in ("recipes/glmd.py", "recipes/quickstart.yaml"):
        assert (REPOSITORY / name).is_file()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"sp_size": 2}, r"sequence parallelism \(sp_size=2\) is not supported.*DDP, DeepSpeed ZeRO or FSDP2"),
        ({"cp_size": 2}, r"context parallelism \(cp_size=2\)"),
        ({"tp_size": 2}, r"tensor parallelism \(tp_size=2\)"),
        ({"distributed_type": DistributedType.MEGATRON_LM}, "MEGATRON_LM is not supported"),
        ({"num_processes": 3}, "1 processes were started, but each of them sees 3"),
        ({"n_gpu": 2}, "one process sees 2 GPUs"),
        ({"zero_stage": 3}, "ZeRO-3 would save no whole weights. Set zero3_save_16bit_model: true"),
        ({"autotp_size": 4}, r"tensor parallelism \(tp_size=4\)"),
        ({"fsdp_version": 1}, "fsdp_version=1 is not supported"),
        ({"state_dict_type": "SHARDED_STATE_DICT"}, "fsdp_state_dict_type=SHARDED_STATE_DICT would save no whole weights"),
        ({"cpu_ram_efficient_loading": True}, "Set fsdp_cpu_ram_efficient_loading: false"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_would_train_wrongly_is_refused(monkeypatch, setting, message):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(UsageError, match=message):
        check_distribution(*distribution(**setting))
    check_distribution(*distribution(**{"zero_stage": 2} if "size" in next(iter(setting)) else {}))


@pytest.mark.parametrize("what", ["DEEPSPEED", "FSDP"])
def test_sharding_that_accelerate_leaves_out_is_refused(monkeypatch, what):
    """As with use_cpu=True, whereupon accelerate goes on without it."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv(f"ACCELERATE_USE_{what}", "true")
    with pytest.raises(UsageError, match=f"{what} was asked for, but accelerate uses NO"):
        check_distribution(*distribution())


def distribution(**settings):
    """What `check_distribution` looks at: of one process, but for the settings."""
    given = {"distributed_type": DistributedType.NO, "num_processes": 1, "n_gpu": 1} | settings
    if "zero_stage" in given or "autotp_size" in given:
        given["distributed_type"] = DistributedType.DEEPSPEED
    if given.keys() & {"fsdp_version", "state_dict_type", "cpu_ram_efficient_loading"}:
        given["distributed_type"] = DistributedType.FSDP
    zero = {"zero_optimization": {}, "tensor_parallel": {"autotp_size": given.get("autotp_size", 1)}}
    fsdp = {"fsdp_version": 2, "cpu_ram_efficient_loading": False, "state_dict_type": "FULL_STATE_DICT"} | settings
    fsdp["state_dict_type"] = StateDictType[fsdp["state_dict_type"]]
    accelerator = SimpleNamespace(
        distributed_type=given["distributed_type"],
        num_processes=given["num_processes"],
        parallelism_config=SimpleNamespace(**settings),
        deepspeed_plugin=SimpleNamespace(zero_stage=given.get("zero_stage", 2), deepspeed_config=zero),
        state=SimpleNamespace(fsdp_plugin=SimpleNamespace(**fsdp)),
    )
    return accelerator, SimpleNamespace(n_gpu=given["n_gpu"]), torch.nn.Identity()


@pytest.mark.skipif(torch.cuda.is_available(), reason="GPUs know of each other")
def test_processes_that_do_not_know_of_each_other_are_refused(tmp_path, monkeypatch):
    """As `torchrun` on CPUs without use_cpu=True: accelerate says nothing, and each process would train by itself."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="2 processes were started, but each of them sees 1, and would train by itself"):
        helpers.trainer(tmp_path, use_cpu=False)
