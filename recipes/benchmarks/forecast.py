"""What `hf-glmd distill --dry-run --calibrate` says of runs, beside what they take.

    python recipes/benchmarks/forecast.py      # some twenty minutes; the machine has to be idle otherwise

Variants of the quickstart that differ in what decides time and memory: rows, lengths, layers, vocabulary, positions,
accumulation, evaluations, stages. Each forecast and each run is a process of its own. Targets: time within 15%, within 10% in the
median; peak memory within 7%.
"""

# ruff: noqa: T201 - what is printed is the result
from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import aligned, append_results
from tqdm.auto import tqdm

from hf_glmd.reports.records import RunRecord
from hf_glmd.utils.text import duration

ROOT = Path(__file__).parents[2]
NO_TASK = {"task": None, "task_teacher": None, "task_words": None, "task_answers": None}
SHORT = {"general.max_steps": 100}
VARIANTS: dict[str, dict[str, Any]] = {
    "as it is, 100 steps": {**SHORT, **NO_TASK},
    "twice the rows": {**SHORT, **NO_TASK, "general.per_device_train_batch_size": 64, "general.max_steps": 50},
    "half the length": {**SHORT, **NO_TASK, "max_length": 64},
    "all positions, T = 15": {**NO_TASK, "general.preset": "short", "general.temperature": 15, "general.max_steps": 40},
    "one layer": {**SHORT, **NO_TASK, "student.num_layers": 1},
    "a quarter of the tokens": {**SHORT, **NO_TASK, "vocab.size": 0.25},
    "accumulation": {**NO_TASK, "general.gradient_accumulation_steps": 2, "general.max_steps": 50},
    "often evaluated and saved": {**SHORT, **NO_TASK, "general.eval_steps": 10, "general.save_steps": 10},
    "with a task": {"general.max_steps": 20, "task.max_train": 800, "task_words.max_steps": 20},
    "no cut": {**SHORT, **NO_TASK, "vocab.size": None},
}

FORECAST = """
import dataclasses, json, sys
from hf_glmd.recipe.config import load_recipe
from hf_glmd.recipe.forecast import forecast
print(json.dumps(dataclasses.asdict(forecast(load_recipe(sys.argv[1], sys.argv[2:])).record())))
"""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=str(ROOT / "recipes" / "quickstart.yaml"), help="default: the quickstart")
    parser.add_argument(
        "--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), metavar="NAME", help="default: all"
    )
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="WORD", help="further overrides, e.g. --set=--corpus.max_texts=900"
    )
    parser.add_argument("--output", type=Path, default=Path("results/forecast.json"), help="default results/forecast.json")
    options = parser.parse_args(argv)
    rows = []
    for name in tqdm(options.variants, desc="Variants", unit="run"):
        rows.append({"variant": name, **measured(options.config, VARIANTS[name], options.set)})
        print(f"{name}: {rows[-1]}", flush=True)
    lines = [["variant", "told", "took", "time", "told MiB", "took MiB", "memory"]]
    for row in rows:
        times = [duration(row["told_s"]), duration(row["took_s"]), f"{row['time'] - 1:+.1%}"]
        lines.append([row["variant"], *times, f"{row['told_mib']:,.0f}", f"{row['took_mib']:,.0f}", f"{row['memory'] - 1:+.1%}"])
    print(aligned(lines))
    off = [abs(row["time"] - 1) for row in rows]
    memory = max(abs(row["memory"] - 1) for row in rows)
    print(
        f"time: {max(off):.1%} at most (target 15%), {statistics.median(off):.1%} in the median (10%); memory {memory:.1%} (7%)"
    )
    figures = [
        {"part": "forecast", "method": row["variant"], "device": "cpu", "note": f"{row['time']:.3f} {row['memory']:.3f}"}
        for row in rows
    ]
    append_results(options.output, {"rows": rows}, figures)
    return 0


def measured(config: str, changes: dict[str, Any], further: list[str]) -> dict[str, float]:
    """Seconds and peak memory as told and as taken, and told / taken."""
    with tempfile.TemporaryDirectory() as folder:
        changes = {"output_dir": str(Path(folder) / "run"), **changes}
        words = [f"--{key}={json.dumps(value)}" for key, value in changes.items()] + further
        told = json.loads(_output([sys.executable, "-c", FORECAST, config, *words]).splitlines()[-1])
        _output([sys.executable, "-m", "hf_glmd", "distill", "--config", config, *words])
        record = RunRecord.load(Path(folder) / "run" / "metrics.json")
    return {
        "told_s": told["seconds"],
        "took_s": record.seconds,
        "time": told["seconds"] / record.seconds,
        "told_mib": told["peak_memory_mib"],
        "took_mib": record.peak_memory_mib,
        "memory": told["peak_memory_mib"] / record.peak_memory_mib,
    }


def _output(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr[-3000:]}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
