"""How a folder is pushed; apart from the push itself, so that --help needs nothing of it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from hf_glmd.errors import UsageError
from hf_glmd.utils.options import option


@dataclass
class PushOptions:
    """What `hf-glmd push` can be told; each field's help text is its documentation."""

    folder: str = option("The folder of a model, as hf-glmd shrink, a recipe (its student/) or a trainer wrote it.", "")
    repo: str = option("Name on the Hub: user/name, organization/name, or name alone for your own.", "")
    private: bool = option("Create a private repository. One that exists stays as it is.", False)
    revision: str | None = option("Branch to push to; it is made if it is not there. Unset: main.")
    message: str = option("Title of the commit.", "Upload model")
    overwrite: bool = option("Replace what the repository holds, even if it is no model of hf_glmd; its history stays.", False)
    map_only: bool = option("Push the vocabulary map alone, from which hf-glmd rebuild makes the model again.", False)
    dry_run: bool = option("Only list what would go. Nothing is asked of the Hub.", False)

    def __post_init__(self) -> None:
        missing = [name.upper() for name in ("folder", "repo") if not getattr(self, name)]
        if missing:
            raise UsageError(f"{' and '.join(missing)} missing. Write: hf-glmd push FOLDER USER/NAME.")

    def command(self) -> str:
        """What to type to push the same thing again."""
        words = ["hf-glmd", "push", self.folder, self.repo]
        words += ["--private"] if self.private else []
        words += ["--revision", self.revision] if self.revision else []
        words += ["--map-only"] if self.map_only else []
        return shlex.join([*words, "--overwrite"] if self.overwrite else words)
