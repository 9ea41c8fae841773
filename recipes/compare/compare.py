"""Compares ways to train a student on equal terms: same teacher, start, rows, steps, and as large a search for a learning rate.

    python recipes/compare/compare.py recipes/compare/quickstart.yaml --jobs 2    # goes on where it stopped
    python recipes/compare/compare.py recipes/compare/quickstart.yaml --show      # the table of what is measured

Each cell (one run of one method, or one task of its student) is a file, measured once; several processes share the work, here
or on several machines with one folder. Delete a file, and its cell is measured again.
"""

# ruff: noqa: T201 - what is printed is the result
from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import torch
from cells import Cells
from experiment import Experiment
from runs import Bench
from table import save_table

from hf_glmd.errors import UsageError

WAIT_S = 5.0


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="a YAML, see recipes/compare/quickstart.yaml")
    parser.add_argument("--cells", type=Path, default=Path("runs/compare"), help="folder of results (default runs/compare)")
    parser.add_argument("--output", type=Path, help="folder of table, chart and JSON (default: --cells/NAME of the config)")
    parser.add_argument("--jobs", type=int, default=1, help="processes, of one thread each on a CPU (default 1)")
    parser.add_argument("--show", action="store_true", help="measure nothing, print the table of what is there")
    parser.add_argument("--no-table", action="store_true", help=argparse.SUPPRESS)  # of the other processes
    options = parser.parse_args(words)
    try:
        experiment, cells = Experiment.load(options.config), Cells(options.cells)
        others = [] if options.show else more_processes(options)
        bench = Bench(experiment, cells)
        if not options.show:
            measure(bench)
            if any(process.wait() for process in others):
                print("A process of the comparison failed, see above.", file=sys.stderr)
                return 2
        if not options.no_table:
            print(save_table(bench, options.output or options.cells / options.config.stem))
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def more_processes(options: argparse.Namespace) -> list[subprocess.Popen]:
    if not torch.cuda.is_available():
        torch.set_num_threads(1)  # as many processes as cores finish more than one process with as many threads
    command = [sys.executable, __file__, str(options.config), "--cells", str(options.cells), "--no-table"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    return [subprocess.Popen(command, env=environment) for _ in range(options.jobs - 1)]


def measure(bench: Bench) -> None:
    """Until no cell is missing."""
    if bench.experiment.tasks:
        until_done(bench, lambda: ([bench.task_teacher(task) for task in bench.experiment.tasks.names], True))
    until_done(bench, bench.plan)


def until_done(bench: Bench, plan) -> None:
    while True:
        cells, complete = plan()
        missing = [cell for cell in cells if bench.cells.result(cell) is None]
        if not missing and complete:
            return
        # A task needs its student, which comes before it in the list.
        made = False
        for cell in missing:
            if cell.facts["kind"] == "task" and not bench.cells.has_key(cell.facts["student"]):
                continue
            started = time.monotonic()
            if made := bench.cells.measure(cell):
                print(
                    f"[{len(cells) - len(missing) + 1}/{len(cells)}{'' if complete else '+'}] {cell.name}: "
                    f"{time.monotonic() - started:.0f} s",
                    flush=True,
                )
                break
        if not made:
            time.sleep(WAIT_S)


if __name__ == "__main__":
    raise SystemExit(main())
