"""Starting a recipe on several processes: `accelerate launch` with the configurations that come along."""

from __future__ import annotations

import gc
import logging
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from hf_glmd.errors import UsageError, nearest
from hf_glmd.recipe.examples import recipe_folder
from hf_glmd.recipe.reading import read_yaml

_MISTAKE = 2  # exit status of a process that has said what the user can mend


def launch(words: Sequence[str], config: str, processes: int | None = None) -> int:
    """Runs `hf-glmd WORDS` under `accelerate launch`.

    Args:
        words: of the command line, without `hf-glmd`.
        config: name of a configuration that comes along ("ddp", "zero3", ...), or a file that `accelerate config` wrote.
        processes: how many; None: as the configuration says.
    Returns: 0; 2 when a process has said what the user can mend; 1 when one has failed otherwise.
    Raises: UsageError, there is no such configuration.
    """
    from accelerate.commands.launch import launch_command, launch_command_parser
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
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            name = signal.Signals(-failure.exitcode).name
            hint = ": if nobody did that, there was not enough memory" if name == "SIGKILL" else ""
            raise UsageError(
                f"process {rank} was ended by {name}{hint}. The same command goes on from the last checkpoint."
            ) from error
        return _MISTAKE if failure.exitcode == _MISTAKE else 1
    except subprocess.CalledProcessError as error:
        return _MISTAKE if error.returncode == _MISTAKE else 1
    return 0


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
