"""Starting a recipe on several processes: `accelerate launch` with the configurations that come along."""

from __future__ import annotations

import contextlib
import gc
import logging
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import psutil

from hf_glmd.errors import UsageError, nearest
from hf_glmd.recipe.examples import recipe_folder
from hf_glmd.recipe.reading import read_yaml
from hf_glmd.utils.ending import Stopped

_SAID = (2, 128 + signal.SIGINT, 128 + signal.SIGTERM)
"""Exit statuses of a process that has said what the user can mend, or how to go on."""

_SAVING_S = 60
"""A process that was asked to end, and does not in this time, is killed."""


def launch(words: Sequence[str], config: str, processes: int | None = None) -> int:
    """Runs `hf-glmd WORDS` under `accelerate launch`.

    Args:
        words: of the command line, without `hf-glmd`.
        config: name of a configuration that comes along ("ddp", "zero3", ...), or a file that `accelerate config` wrote.
        processes: how many; None: as the configuration says.
    Returns: 0; 2 when a process has said what the user can mend; 130 or 143 when one was asked to end, and all did; 1 when one
        has failed otherwise.
    Raises: UsageError, there is no such configuration; Stopped, this process was asked to end, and all others have ended.
    """
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    path = accelerate_config(config)
    settings = read_yaml(path)
    options = ["--config_file", str(path)] + ([] if processes is None else ["--num_processes", str(processes)])
    if settings.get("num_machines", 1) == 1 and not settings.get("main_process_port"):
        options += ["--main_process_port", "0"]  # any free one, so that two runs do not get into each other's way
    arguments = launch_command_parser().parse_args([*options, "--module", "hf_glmd", *words])
    # What went wrong stands in the lines of the process that failed, above those of the launcher.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        launch_command(arguments)
    except ChildFailedError as error:
        # The others were cut off by the end of that one, in the same second maybe.
        rank, failure = min(error.failures.items(), key=lambda pair: (pair[1].exitcode == 1, pair[1].timestamp))
        if failure.exitcode < 0:
            name = signal.Signals(-failure.exitcode).name
            hint = ": if nobody did that, there was not enough memory" if name == "SIGKILL" else ""
            raise UsageError(
                f"process {rank} was ended by {name}{hint}. The same command goes on from the last checkpoint."
            ) from error
        return failure.exitcode if failure.exitcode in _SAID else 1
    except subprocess.CalledProcessError as error:
        return error.returncode if error.returncode in _SAID else 1
    except SignalException as error:
        raise Stopped(int(error.sigval)) from error
    except Stopped:
        _end_children()
        raise
    return 0


def _end_children() -> None:
    """Asks the processes that were started to end, which one process alone would outlive this one; they save first."""
    children = psutil.Process().children()
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.terminate()
    for child in psutil.wait_procs(children, timeout=_SAVING_S)[1]:
        child.kill()


def accelerate_config(name: str) -> Path:
    """The file of a configuration.

    Args:
        name: of one that comes along, or a path.
    Raises: UsageError, there is neither.
    """
    if Path(name).is_file():
        return Path(name)
    known = {path.stem: path for path in sorted((recipe_folder() / "accelerate").glob("*.yaml"))}
    if name not in known:
        raise UsageError(f"--accelerate {name} is neither a file nor a configuration that comes along. {nearest(name, known)}")
    return known[name]


def end_process_group() -> None:
    """At the end of a process of several: gloo's threads may abort a process that ends before they do."""
    from accelerate import PartialState

    gc.collect()  # the reducers of DDP, which trainers' cycles keep, hold the group
    PartialState().destroy_process_group()
