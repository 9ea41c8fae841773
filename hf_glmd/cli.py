"""The command line: what people type, one function per command."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from hf_glmd.errors import UsageError


def run_recipe_command(argv: Sequence[str] | None = None) -> int:
    """`recipes/glmd.py`: runs a recipe.

    Returns: 0; 2 after one line on standard error when the user can mend it.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="glmd.py",
        description="Compresses a teacher as a recipe says. Killed and started again, it goes on where it was.",
        epilog="Any value of the recipe can be overridden, e.g. --vocab.size 0.25:\n\n"
        + (_options() if _wants_help(argv) else ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, help="the recipe, a YAML file")
    parser.add_argument("--overwrite", action="store_true", help="remove what an earlier run left in the output folder")
    parser.add_argument("--dry-run", action="store_true", help="check everything that needs no weights, and print the plan")
    known, overrides = parser.parse_known_args(argv)
    try:
        _quiet_libraries()
        from hf_glmd.recipe import load_recipe

        recipe = load_recipe(known.config, overrides)
        if known.dry_run:
            from hf_glmd.plan import print_plan

            print_plan(recipe)
        else:
            from hf_glmd.pipeline import run_recipe

            launcher = "accelerate launch" if "ACCELERATE_MIXED_PRECISION" in os.environ else "python"
            run_recipe(recipe, known.overwrite, command=" ".join([launcher, *sys.argv]))
    except UsageError as error:
        if int(os.environ.get("RANK", "0")) == 0:  # every process finds the same mistake
            print(f"glmd.py: {error}", file=sys.stderr)  # noqa: T201
        return 2
    return 0


def _wants_help(argv: Sequence[str]) -> bool:
    return any(word in ("-h", "--help") for word in argv)


def _options() -> str:
    from hf_glmd.recipe import options_help

    return options_help()


def _quiet_libraries() -> None:
    """Our own lines and bars tell what happens; warnings and errors of the libraries still come through."""
    import transformers

    transformers.utils.logging.disable_progress_bar()  # one bar per loaded file
