"""What a run ran on: hardware in words, versions of libraries."""

from __future__ import annotations

import os
import platform
import re
import sys
from importlib import metadata
from pathlib import Path

import psutil
import torch

from hf_glmd.errors import ACCESS_TOKEN


def hardware() -> str:
    """The machine in words: graphics card, or processor and number of cores."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.exists()
        else []
    )
    return f"{names[0] if names else platform.processor() or platform.machine()}, {cpu_cores()} cores"


def cpu_cores() -> int:
    """Physical cores that this process may use."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, psutil.cpu_count(logical=False) or usable)


def has_fast_bf16(device: torch.device) -> bool:
    """Whether a device has instructions for bf16; a CPU without them takes tens of times as long as in fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type != "cpu" or torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def versions(*packages: str) -> dict[str, str]:
    """Package -> installed version, Python's own first."""
    return {"python": platform.python_version(), **{package: metadata.version(package) for package in packages}}


def peak_memory_mib(device: torch.device) -> float:
    """The most memory this process has held: of its graphics card, or, without one, its resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # bytes there, KiB here


_LIBRARIES = (
    *("hf_glmd", "torch", "transformers", "accelerate", "datasets", "evaluate", "tokenizers", "safetensors", "huggingface_hub"),
    *("peft", "numpy", "deepspeed", "triton", "bitsandbytes", "matplotlib"),
)
_SECRET = re.compile("token|secret|password|key", re.IGNORECASE)


def environment() -> list[tuple[str, str]]:
    """What a bug report needs: versions, hardware, and variables of the Hugging Face libraries; secrets are not shown."""
    installed = {distribution.lower().replace("-", "_") for distribution in _installed()}
    rows = [("platform", platform.platform())]
    rows += list(versions(*(library for library in _LIBRARIES if library in installed)).items())
    rows += [
        ("hardware", hardware()),
        ("memory", f"{psutil.virtual_memory().total / 2**30:.0f} GiB"),
        ("cuda", f"{torch.version.cuda or 'none'}, {torch.cuda.device_count()} devices"),
        ("bf16 in hardware", "yes" if has_fast_bf16(torch.device("cuda" if torch.cuda.is_available() else "cpu")) else "no"),
    ]
    for name in sorted(os.environ):
        if name.startswith(("HF_", "HUGGINGFACE_", "TRANSFORMERS_", "ACCELERATE_", "OMP_", "CUDA_VISIBLE")):
            rows.append(
                (name, "set, not shown" if _SECRET.search(name) or ACCESS_TOKEN.search(os.environ[name]) else os.environ[name])
            )
    return rows


def _installed() -> list[str]:
    return [distribution.metadata["Name"] for distribution in metadata.distributions() if distribution.metadata["Name"]]
