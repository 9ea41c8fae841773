"""What `hf-glmd report` can be told; apart from the report itself, so that --help needs nothing of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from hf_glmd.errors import UsageError

REPORT_PAGE = "report.html"


@dataclass
class ReportOptions:
    """Each field's help text is its documentation. Raises: UsageError, the folder is missing."""

    directory: str = field(
        default="",
        metadata={
            "help": "A folder this package wrote: a recipe's run or a part of it, a smaller model, what GLMDTrainer saved, or a "
            "teacher's cache."
        },
    )
    output: str | None = field(
        default=None, metadata={"help": f"The file to write. Unset: {REPORT_PAGE} in the folder.", "metavar": "FILE"}
    )

    def __post_init__(self) -> None:
        if not self.directory:
            raise UsageError("the folder is missing: name one that this package wrote, e.g. runs/quickstart.")
