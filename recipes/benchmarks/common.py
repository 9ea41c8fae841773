"""What all benchmarks share: tables, and where their results are written."""

from __future__ import annotations

import csv
import datetime
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import hf_glmd

CSV_COLUMNS = "part,method,device,dtype,N,V,H_s,H_t,time_ms,peak_mib,loss_err,grad_err,commit,note".split(",")


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """A table whose first line is its heading, in columns."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    text = [" | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([text[0], "-|-".join("-" * width for width in widths), *text[1:]])


def append_results(
    path: Path,
    run: Mapping[str, Any],
    figures: Iterable[Mapping[str, Any]],
    packages: Sequence[str] = ("torch", "transformers"),
    device: str = "cpu",
) -> None:
    """Adds a run to a JSON list, and its figures to `benchmarks.csv` beside it.

    Args:
        path: the JSON file.
        run: what the run found; date, commit, machine and versions are added.
        figures: a line each, `CSV_COLUMNS` without the commit.
        packages: those whose versions are written down.
        device: the machine is named by its graphics card, unless this is "cpu".
    """
    machine = f"{platform.machine()}, {os.cpu_count()} cores" if device == "cpu" else torch.cuda.get_device_name()
    facts = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": machine,
        "versions": {name: metadata.version(name) for name in packages},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    runs = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps([*runs, {**facts, **run}], indent=1) + "\n", encoding="utf-8")
    os.replace(partial, path)
    table = path.with_name("benchmarks.csv")
    new = not table.exists()
    with open(table, "a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, CSV_COLUMNS)
        if new:
            writer.writeheader()
        for figure in figures:
            writer.writerow({**figure, "commit": facts["commit"]})


def commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        run = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent, check=True)
    except (OSError, subprocess.CalledProcessError):
        return hf_glmd.__version__  # no checkout, or no git
    return run.stdout.strip()
