"""What a run ran on: hardware in words, versions of libraries."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from pathlib import Path

import psutil
import torch


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
    return device.type != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported()


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
