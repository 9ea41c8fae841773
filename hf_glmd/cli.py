"""The command line: what people type, one function per command."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any

from hf_glmd import __version__
from hf_glmd.errors import ACCESS_TOKEN, UsageError
from hf_glmd.utils.ending import refused, run_command, say
from hf_glmd.utils.options import add_fields, given_options


def main(argv: Sequence[str] | None = None) -> int:
    """`hf-glmd`: makes language models smaller.

    Returns: 0; 2 after one line on standard error when the user can mend it.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if said := _refusal_of(argv):
        return refused("hf-glmd", said)

    def command() -> int | None:
        arguments = parsed(argv)
        return arguments.run(arguments)

    return run_command("hf-glmd", command)


def _refusal_of(argv: Sequence[str]) -> str | None:
    """What to say of a command line that holds an access token, or no text: it would be written into records and cards."""
    for number, word in enumerate(argv, start=1):
        if ACCESS_TOKEN.search(word):
            return f"word {number} of the command line holds an access token of the Hub. Run `hf auth login`, or set HF_TOKEN."
        if any("\udc80" <= character <= "\udcff" for character in word):  # so Python has bytes of other encodings
            return f"word {number} of the command line, {ascii(word)}, is no text in UTF-8: rename the file, e.g. by convmv."
    return None


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    """The words after `hf-glmd`; `run` is the function of the command. Exits where they are no command."""
    parser = argparse.ArgumentParser(prog="hf-glmd", description="Makes language models smaller.")
    parser.add_argument("--version", action="version", version=f"hf-glmd {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_shrink(commands)
    _add_inspect(commands)
    _add_rebuild(commands)
    _add_cache(commands)
    _add_distill(commands, argv)
    _add_recipes(commands)
    _add_evaluate(commands)
    _add_predict(commands)
    _add_report(commands)
    _add_push(commands)
    _add_environment(commands)
    _add_completion(commands, parser)
    arguments, rest = parser.parse_known_args(argv)
    if arguments.run is _distill:
        arguments.overrides = rest
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return arguments


def _add_shrink(commands: Any) -> None:
    from hf_glmd.shrinking.command import ShrinkOptions

    parser = commands.add_parser(
        "shrink",
        help="cut the vocabulary of a model",
        description="Counts a corpus, keeps the tokens that matter, and writes the model and its tokenizer with those alone. The "
        "result is compared with the original before it is written.",
        epilog="Example: hf-glmd shrink google-bert/bert-base-uncased --corpus texts.txt --size 0.5 --output smaller-bert",
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help="read options from a YAML file, e.g. one of recipes/shrink")
    _add_options(parser, ShrinkOptions, ("model",), run=_shrink)


def _shrink(options: Any, as_json: bool) -> Any:
    from hf_glmd.shrinking.command import shrink_checkpoint

    return shrink_checkpoint(options, progress=not as_json, command=shlex.join(["hf-glmd", *sys.argv[1:]]))


def _add_inspect(commands: Any) -> None:
    from hf_glmd.shrinking.inspection import InspectOptions

    parser = commands.add_parser(
        "inspect",
        help="tell what each size of a model's vocabulary would cost, before anything is cut",
        description="Weighs a model by part. With corpora, counts them once and tells for a dozen sizes how much of each is "
        "covered and how many more tokens held-out text takes; the knee is the smallest size that costs next to nothing.",
        epilog="Example: hf-glmd inspect FacebookAI/xlm-roberta-base --corpus de=german.txt fr=french.jsonl --plot sizes.png",
        allow_abbrev=False,
    )
    _add_options(parser, InspectOptions, ("model",), run=_inspect)


def _inspect(options: Any, as_json: bool) -> Any:
    from hf_glmd.shrinking.inspection import inspect_checkpoint

    return inspect_checkpoint(options, progress=not as_json)


def _add_rebuild(commands: Any) -> None:
    from hf_glmd.shrinking.rebuilding import RebuildOptions

    parser = commands.add_parser(
        "rebuild",
        help="make a cut model again from its base and its vocabulary map",
        description="A vocabulary map is a patch: with the model it was made of, it makes the cut model again, bit for bit. "
        "Weights and tokenizer are compared with what the map says of them.",
        epilog="Example: hf-glmd rebuild google-bert/bert-base-uncased vocab_map.safetensors --output smaller-bert",
        allow_abbrev=False,
    )
    _add_options(parser, RebuildOptions, ("base", "vocab_map"), run=_rebuild)


def _rebuild(options: Any, as_json: bool) -> Any:
    from hf_glmd.shrinking.rebuilding import rebuild_checkpoint

    return rebuild_checkpoint(options)


def _add_push(commands: Any) -> None:
    from hf_glmd.hub.options import PushOptions

    parser = commands.add_parser(
        "push",
        help="put a model on the Hub",
        description="Pushes a folder that hf-glmd has written, in one commit: weights, tokenizer, map, card and plots. A push "
        "that fails leaves the files of the repository as they were, and can be repeated.",
        epilog="Example: hf-glmd push smaller-bert my-name/smaller-bert --private. The access token is that of `hf auth login`, "
        "or HF_TOKEN.",
        allow_abbrev=False,
    )
    _add_options(parser, PushOptions, ("folder", "repo"), run=_push)


def _push(options: Any, as_json: bool) -> Any:
    from hf_glmd.hub.push import push_folder

    if as_json:
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()
    return push_folder(options)


def _add_distill(commands: Any, argv: Sequence[str]) -> None:
    parser = commands.add_parser(
        "distill",
        help="compress a teacher as a recipe says",
        epilog="Example: hf-glmd distill --config recipes/quickstart.yaml --accelerate ddp --processes 2\n\n"
        + _overridable(argv if "distill" in argv else ()),
        **_RECIPE_PARSER,
    )
    _add_recipe_options(parser)
    parser.add_argument(
        "--accelerate",
        metavar="NAME",
        help="run under `accelerate launch` with one of the configurations of recipes/accelerate, e.g. ddp or zero3, or with a "
        "file of yours. Unset: one process",
    )
    parser.add_argument("--processes", type=int, metavar="N", help="how many processes. Unset: as the configuration says")
    parser.set_defaults(run=_distill)


def _add_recipes(commands: Any) -> None:
    parser = commands.add_parser(
        "recipes",
        help="list the recipes that come along, or copy one to edit",
        epilog="Example: hf-glmd recipes --copy own_task; then hf-glmd distill --config own_task.yaml",
        allow_abbrev=False,
    )
    parser.add_argument("--copy", metavar="NAME", help="write that recipe into the current folder")
    parser.set_defaults(run=_recipes)


def _recipes(arguments: argparse.Namespace) -> None:
    from hf_glmd.recipe.examples import copy_recipe, recipe_rows
    from hf_glmd.utils.text import markdown_table

    if arguments.copy is None:
        say(markdown_table(recipe_rows(), ["command", "what it makes"]))
    else:
        say(f"Written to {copy_recipe(arguments.copy)}")


def _distill(arguments: argparse.Namespace) -> int | None:
    if arguments.accelerate is None:
        if arguments.processes not in (None, 1):
            raise UsageError(f"--processes {arguments.processes} needs --accelerate, e.g. --accelerate ddp.")
        return _run_recipe(arguments, arguments.overrides)
    from hf_glmd.recipe.config import load_recipe
    from hf_glmd.recipe.launch import launch

    load_recipe(arguments.config, arguments.overrides)  # one process finds what is wrong in less time than many
    words = ["distill", "--config", arguments.config, *(["--overwrite"] if arguments.overwrite else [])]
    words += ["--dry-run"] * arguments.dry_run + ["--calibrate"] * arguments.calibrate
    return launch([*words, *arguments.overrides], arguments.accelerate, arguments.processes)


def _add_environment(commands: Any) -> None:
    parser = commands.add_parser(
        "env",
        help="print what a bug report needs: versions, hardware, settings",
        description="Versions of Python and libraries, the hardware, and which variables of the Hugging Face libraries are set; "
        "secrets are not shown.",
        allow_abbrev=False,
    )
    parser.set_defaults(run=_environment)


def _environment(arguments: argparse.Namespace) -> None:
    from hf_glmd.utils.system import environment
    from hf_glmd.utils.text import markdown_table

    say(markdown_table(environment(), ["", ""]))


def _add_completion(commands: Any, program: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "completion",
        help="print what makes a shell complete commands and options",
        epilog="Example: hf-glmd completion bash > ~/.local/share/bash-completion/completions/hf-glmd",
        allow_abbrev=False,
    )
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh", "fish"))
    parser.set_defaults(run=lambda arguments: _complete(program, arguments.shell))


def _complete(program: argparse.ArgumentParser, shell: str) -> None:
    try:
        import shtab
    except ImportError as error:
        raise UsageError("completion needs the package shtab. Install it: pip install shtab") from error
    say(shtab.complete(program, shell))


def _add_evaluate(commands: Any) -> None:
    from hf_glmd.evaluation.command import EvaluateOptions

    parser = commands.add_parser(
        "evaluate",
        help="score a model, beside its teacher, on text and tasks",
        description="Words of held-out text and cloze questions of tasks, asked of a model and of the one it was made from; size "
        "and speed of both.",
        epilog="Example: hf-glmd evaluate runs/quickstart/student --teacher recipes/quickstart_teacher --text held_out.txt",
        allow_abbrev=False,
    )
    _add_options(parser, EvaluateOptions, ("model",), run=_evaluate)


def _evaluate(options: Any, as_json: bool) -> Any:
    from hf_glmd.evaluation.command import evaluate_checkpoint

    return evaluate_checkpoint(options)


def _add_predict(commands: Any) -> None:
    from hf_glmd.evaluation.predict import PredictOptions

    parser = commands.add_parser(
        "predict",
        help="ask a student the task it was trained on",
        description="Answers of a student of a recipe with a task, to texts or to each row of a table. If the rows have labels, "
        "the answers are scored.",
        epilog='Example: hf-glmd predict runs/own_task/student --text "It crashes when the file is empty"',
        allow_abbrev=False,
    )
    _add_options(parser, PredictOptions, ("model",), run=_predict)


def _predict(options: Any, as_json: bool) -> Any:
    from hf_glmd.evaluation.predict import predict_answers_of

    return predict_answers_of(options)


def _add_report(commands: Any) -> None:
    from hf_glmd.reports.options import ReportOptions

    parser = commands.add_parser(
        "report",
        help="show everything about a folder on one page",
        description="Writes report.html: size, speed, scores, curves, what was cut, settings. The page needs no network.",
        epilog="Example: hf-glmd report runs/quickstart",
        allow_abbrev=False,
    )
    add_fields(parser, ReportOptions, positional=("directory",))
    parser.add_argument("--json", action="store_true", help="print what the page is made from as JSON, and write no page")
    parser.set_defaults(run=_report)


def _report(arguments: argparse.Namespace) -> None:
    from hf_glmd.reports.options import ReportOptions
    from hf_glmd.reports.page import report_data, write_report

    options = ReportOptions(**given_options(arguments, ReportOptions))
    if arguments.json:
        say(report_data(options.directory))
    else:
        say(f"Written to {write_report(options.directory, options.output)}")


def _add_cache(commands: Any) -> None:
    from hf_glmd.recipe.cache import CacheOptions

    parser = commands.add_parser(
        "cache",
        help="run a teacher over text once, for training to read its predictions from disk",
        description="Writes what a teacher predicts for the rows that training will read, so that it need not run again in every "
        "epoch. Killed and started again, it goes on where it was.",
        epilog="Example: hf-glmd cache google-bert/bert-base-uncased --data texts.txt --output cached-bert; then "
        'GLMDTrainer(teacher="cached-bert") with the same text and settings.',
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help="read options from a YAML file")
    _add_options(parser, CacheOptions, ("model",), run=_cache)


def _cache(options: Any, as_json: bool) -> Any:
    from hf_glmd.recipe.cache import cache_teacher

    return cache_teacher(options, progress=not as_json)


def run_recipe_command(argv: Sequence[str] | None = None) -> int:
    """`recipes/glmd.py`: runs a recipe.

    Returns: 0; 2 after one line on standard error when the user can mend it.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if said := _refusal_of(argv):
        return refused("glmd.py", said)
    parser = argparse.ArgumentParser(prog="glmd.py", epilog=_overridable(argv), **_RECIPE_PARSER)
    _add_recipe_options(parser)
    known, overrides = parser.parse_known_args(argv)
    return run_command("glmd.py", lambda: _run_recipe(known, overrides))


_RECIPE_PARSER: dict[str, Any] = {
    "description": "Compresses a teacher as a recipe says. Killed and started again, it goes on where it was.",
    "formatter_class": argparse.RawDescriptionHelpFormatter,
    "allow_abbrev": False,
}


def _add_recipe_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="FILE", required=True, help="the recipe: a YAML file, or a name of `hf-glmd recipes`")
    parser.add_argument("--overwrite", action="store_true", help="remove what an earlier run left in the output folder")
    parser.add_argument("--dry-run", action="store_true", help="check everything that needs no weights, and print the plan")
    parser.add_argument("--calibrate", action="store_true", help="forecast time and memory from a few steps of each stage")


def _run_recipe(arguments: argparse.Namespace, overrides: Sequence[str]) -> None:
    _quiet_libraries()
    from hf_glmd.recipe.config import load_recipe

    recipe = load_recipe(arguments.config, overrides)
    if arguments.dry_run:
        from hf_glmd.recipe.plan import print_plan

        print_plan(recipe, arguments.calibrate)
    else:
        from hf_glmd.recipe.forecast import forecast
        from hf_glmd.recipe.launch import end_process_group
        from hf_glmd.recipe.run import run_recipe

        launcher = "accelerate launch" if "ACCELERATE_MIXED_PRECISION" in os.environ else "python"
        command = " ".join([launcher, *sys.argv])
        run_recipe(recipe, arguments.overwrite, command, forecast if arguments.calibrate else None)
        end_process_group()


def _add_options(
    parser: argparse.ArgumentParser, section: type, positional: Sequence[str], run: Callable[[Any, bool], Any]
) -> None:
    """The options of a command that shows what it found.

    Args:
        section: dataclass of the options.
        run: options, and whether JSON is wanted -> what has a `table()` for people.
    """

    def command(arguments: argparse.Namespace) -> None:
        from hf_glmd.recipe.reading import build_section

        _quiet_libraries()
        found = run(build_section(section, getattr(arguments, "config", None), given_options(arguments, section)), arguments.json)
        data = found.to_dict() if hasattr(found, "to_dict") else dataclasses.asdict(found)
        say(json.dumps(data, indent=1) if arguments.json else found.table())

    add_fields(parser, section, positional)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(run=command)


def _overridable(argv: Sequence[str]) -> str:
    """What a recipe can say, if somebody asks; to know it takes a while."""
    if not any(word in ("-h", "--help") for word in argv):
        return ""
    from hf_glmd.recipe.config import options_help

    return "Any value of the recipe can be overridden, e.g. --vocab.size 0.25:\n\n" + options_help()


def _quiet_libraries() -> None:
    """Our own lines and bars tell what happens; warnings and errors of the libraries still come through."""
    import transformers

    transformers.utils.logging.disable_progress_bar()  # one bar per loaded file
