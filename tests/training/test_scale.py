"""One process, several, or weights sharded over them: the same losses, gradients, weights and scores."""

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import scale_helpers
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

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
        for name in ("eval_loss", "eval_kl", "eval_agreement", "eval_teacher_entropy", "eval_cross_entropy"):
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


@needs_deepspeed
def test_zero3_trains_as_one_process(tmp_path):
    cases = list(scale_helpers.CASES)
    launch(down_to_the_smallest_weight(tmp_path), str(tmp_path), *cases, DS_ACCELERATOR="cpu")
    for number, case in enumerate(cases):
        check(case, tmp_path / str(number), tmp_path / f"{number} by one", sharded_teacher=True)


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


FSDP_CASES = ("masked", "cut vocabulary", "accumulated", "causal", "causal, tied", "softcap", "untied", "dense")


def test_fsdp2_trains_as_one_process(tmp_path):
    environment = {"ACCELERATE_TORCH_DEVICE": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    launch(CONFIGS / "fsdp2.yaml", "--gpus-are-cpus", str(tmp_path), *FSDP_CASES, **environment)
    for number, case in enumerate(FSDP_CASES):
        check(case, tmp_path / str(number), tmp_path / f"{number} by one", sharded_teacher=True)
