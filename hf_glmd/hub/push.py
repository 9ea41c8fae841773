"""One folder, one commit on the Hub: all of it arrives, or nothing does."""

from __future__ import annotations

import fnmatch
import json
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hf_glmd import __version__
from hf_glmd.errors import UsageError
from hf_glmd.hub.folder import CARD, OUR_FILES, WEIGHTS, check_no_token, check_ours, content_of, files_that_stay, files_to_push
from hf_glmd.hub.options import PushOptions
from hf_glmd.reports.card import TAGS, card_metadata
from hf_glmd.reports.map_card import render_map_card
from hf_glmd.utils.text import markdown_table
from hf_glmd.vocab.mapped_tokenizer import ORIGINAL_FOLDER, TOP_LEVEL_FILES
from hf_glmd.vocab.vocab_map import FILE_NAME, VocabMap

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, HfApi


WRITTEN_AT_CREATION = ".gitattributes"
REPLACED = (*WEIGHTS, *TOP_LEVEL_FILES, "tokenizer.json", f"{ORIGINAL_FOLDER}/*", "plots/*", *OUR_FILES)
"""Of an earlier version: what would be mixed with the new one if it stayed."""


@dataclass
class PushResult:
    """What was pushed, or would be.

    Attributes:
        repo, revision: where to.
        files: path in the repository -> bytes.
        left_out: what lies in the folder and is no part of a model.
        commit, url: of the commit; None under `dry_run`.
    """

    repo: str
    revision: str
    files: dict[str, int]
    left_out: list[str] = field(default_factory=list)
    commit: str | None = None
    url: str | None = None

    @property
    def bytes(self) -> int:
        return sum(self.files.values())

    def table(self) -> str:
        """For people."""
        rows = [(name, f"{size:,}") for name, size in self.files.items()]
        where = f"{self.repo}, branch {self.revision}"
        told = f"Would go to {where}. Nothing was sent." if self.commit is None else f"Pushed to {where}: {self.url}"
        stays = f"\nNot pushed, no part of a model: {', '.join(self.left_out)}." if self.left_out else ""
        return f"{markdown_table([*rows, ('in all', f'{self.bytes:,}')], ['file', 'bytes'], 'lr')}\n\n{told}{stays}"


def push_folder(options: PushOptions, token: str | None = None, later: str | None = None) -> PushResult:
    """Pushes a folder in one commit.

    Args:
        options: see there.
        token: unset: HF_TOKEN, or the one of `hf auth login`.
        later: how to push again, for the message of a failure. Unset: the same with `hf-glmd push`.
    Raises: UsageError, the folder is not ours, or the Hub cannot be reached, does not allow it, or holds something else.
    """
    folder = Path(options.folder)
    files = files_to_push(folder)
    check_ours(folder, list(files))
    target = HubTarget(options.repo, options.revision, token, options.overwrite, later or options.command())
    contents = _contents(options, files, target.repo)
    sizes = {name: len(part) if isinstance(part, bytes) else part.stat().st_size for name, part in contents.items()}
    if options.dry_run:
        return PushResult(target.repo, target.revision, sizes, files_that_stay(folder, contents))
    target.check()
    check_no_token(files, target.token)
    if "/" not in options.repo:  # the card names the repository by the user's name, too, which is known now
        contents = _contents(options, files, target.repo)
    commit = target.push(contents, options.message, options.private or None)
    return PushResult(target.repo, target.revision, sizes, files_that_stay(folder, contents), commit.oid, commit.commit_url)


def _contents(options: PushOptions, files: Mapping[str, Path], repo: str) -> dict[str, Path | bytes]:
    """Raises: UsageError, the map alone was asked for, and there is none, or it does not say what it was made of."""
    if not options.map_only:
        return {name: content_of(name, path, repo) for name, path in files.items()}
    vocab_map = VocabMap.load(options.folder)
    card = render_map_card(vocab_map, repo, Path(options.folder) / CARD)
    return {FILE_NAME: files[FILE_NAME], CARD: card.encode()}


def check_push(options: PushOptions, token: str | None = None) -> None:
    """What can be known of a push before there is anything to push. Raises: UsageError, it would fail."""
    HubTarget(options.repo, options.revision, token, options.overwrite).check()


class HubTarget:
    """A branch of a model repository on the Hub, there or not yet.

    Args:
        repo: user/name, or name alone for the token's user.
        revision: the branch; None: main.
        token: None: HF_TOKEN, or the one of `hf auth login`. Kept out of every message.
        overwrite: replace what the repository holds even if it is nothing of ours.
        later: the command that pushes again, for the message of a push that failed.
    Raises: UsageError, the name cannot be one of a repository.
    """

    def __init__(
        self, repo: str, revision: str | None = None, token: str | None = None, overwrite: bool = False, later: str = ""
    ) -> None:
        from huggingface_hub.utils import HFValidationError, validate_repo_id

        try:
            validate_repo_id(repo)
        except HFValidationError as error:
            raise UsageError(
                f"'{repo}' cannot name a repository: use user/name, with letters, digits, '-', '_' and '.'."
            ) from error
        self.repo, self.revision, self.overwrite, self.later = repo, revision or "main", overwrite, later
        self._given_token = token
        self._user: str | None = None

    @property
    def token(self) -> str:
        """Raises: UsageError, there is none."""
        from huggingface_hub import get_token

        token = self._given_token or get_token()
        if not token:
            raise UsageError(
                "there is no access token for the Hub: run `hf auth login`, or set HF_TOKEN to one with write permission "
                f"(https://huggingface.co/settings/tokens).{self._then()}"
            )
        return token.strip()

    def check(self) -> None:
        """Asks whether a push can work, and changes nothing.

        Raises: UsageError, offline mode, no token or none that may write, or a repository with other content.
        """
        from huggingface_hub import constants

        if constants.is_offline_mode():
            raise UsageError(f"HF_HUB_OFFLINE is set: nothing can be pushed. Unset it.{self._then()}")
        api = self._api()
        with self._in_one_line():
            if self._user is None:
                who = with_retries(lambda: api.whoami(), "ask whose token this is")
                if who.get("auth", {}).get("accessToken", {}).get("role") == "read":
                    raise UsageError(f"the access token may only read. {_WRITE_TOKEN}{self._then()}")
                self._user = who["name"]
            if "/" not in self.repo:
                self.repo = f"{self._user}/{self.repo}"
            self._look(api)
            if self.exists:
                with_retries(lambda: api.auth_check(self.repo, write=True), "ask for the right to write")

    def _look(self, api: HfApi) -> None:
        """Finds what is there: `exists`, `head` (None: no such branch), `_there` and `_is_ours`."""
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

        self.exists, self.head, self._there, tags = True, None, [], set()
        try:
            info = with_retries(lambda: api.model_info(self.repo, revision=self.revision), "look at the repository")
        except RevisionNotFoundError:  # the new branch starts from main
            info = with_retries(lambda: api.model_info(self.repo), "look at the repository")
        except RepositoryNotFoundError:
            self.exists = False
            return
        else:
            self.head = info.sha
        self._there = [file.rfilename for file in info.siblings or [] if file.rfilename != WRITTEN_AT_CREATION]
        tags = {*(info.tags or []), *((info.card_data.tags if info.card_data else None) or [])}
        if CARD in self._there and not tags & set(TAGS):  # the Hub reads a card some time after it was pushed
            revision = self.revision if self.head else None
            card = with_retries(lambda: api.hf_hub_download(self.repo, CARD, revision=revision), "read the card")
            tags |= set(card_metadata(Path(card)).get("tags") or [])
        self._is_ours = bool(tags & set(TAGS)) or any(name in self._there for name in OUR_FILES)
        if self._there and not self._is_ours and not self.overwrite:
            raise UsageError(
                f"'{self.repo}' exists and holds something else ({', '.join(self._there[:3])}"
                f"{', ...' if len(self._there) > 3 else ''}). Give another name, or add --overwrite to replace it."
            )

    def create(self, private: bool | None = None) -> None:
        """Makes the repository and the branch if they are not there; `check` comes before. Raises: UsageError, it failed."""
        with self._in_one_line():
            self._create(self._api(), private)

    def _create(self, api: HfApi, private: bool | None) -> None:
        if not self.exists:
            with_retries(lambda: api.create_repo(self.repo, private=private, exist_ok=True), "create the repository")
            self._look(api)
        if self.head is None:
            with_retries(lambda: api.create_branch(self.repo, branch=self.revision, exist_ok=True), "create the branch")
            self._look(api)

    def push(self, contents: Mapping[str, Path | bytes], message: str, private: bool | None = None) -> CommitInfo:
        """Makes one commit of the given files; `check` comes before.

        A repository or branch that is not there is made first; it stays, empty, if the push fails then, for what was uploaded
        to it need not be sent again.

        Args:
            contents: path in the repository -> file or bytes.
            private: of a new repository.
        Raises: UsageError, it failed; the files in the repository are as before.
        """
        api, token = self._api(), self.token
        with self._in_one_line():
            self._create(api, private)
            operations = self._operations(contents)
            # Only files travel here, and this repeats by itself what fails; the commit below does not.
            api.preupload_lfs_files(
                self.repo, [one for one in operations if hasattr(one, "upload_info")], revision=self.revision, token=token
            )

            def commit() -> CommitInfo:
                nonlocal operations
                chosen, operations = operations, None
                # Made anew when repeated: a commit whose answer was lost is then found to be there already.
                return api.create_commit(
                    self.repo,
                    chosen or self._operations(contents),
                    commit_message=message,
                    revision=self.revision,
                    parent_commit=self.head,
                )

            return with_retries(commit, "commit")

    def _operations(self, contents: Mapping[str, Path | bytes]) -> list[Any]:
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        gone = [name for name in self._there if name not in contents and (not self._is_ours or _is_replaced(name))]
        added = [CommitOperationAdd(name, part if isinstance(part, bytes) else str(part)) for name, part in contents.items()]
        return [*(CommitOperationDelete(name) for name in gone), *added]

    def _api(self) -> HfApi:
        from huggingface_hub import HfApi

        _answer_in_time()
        return HfApi(token=self.token, library_name="hf_glmd", library_version=__version__)

    @contextmanager
    def _in_one_line(self) -> Iterator[None]:
        """Turns what the Hub's client raises into a UsageError that names reason and remedy, and not the token."""
        from huggingface_hub.errors import HTTPError

        try:
            yield
        except UsageError:
            raise
        except (HTTPError, OSError, ValueError, RuntimeError, KeyError) as error:
            token = self.token
            text = self._reason(error).replace(token, "<token>")
            hidden = error if token not in f"{error}{error.__cause__}{error.__context__}" else None
            raise UsageError(f"{text}{self._then()}") from hidden

    def _reason(self, error: BaseException) -> str:
        from huggingface_hub import constants
        from huggingface_hub.errors import HfHubHTTPError, HTTPError

        place = f"'{self.repo}' was not pushed"
        while isinstance(error, RuntimeError) and error.__cause__ is not None:  # "Error while uploading": why is below
            error = error.__cause__
        if not isinstance(error, HfHubHTTPError):
            if isinstance(error, (HTTPError, ConnectionError)):
                return f"{place}: {constants.ENDPOINT} cannot be reached ({_first_line(error) or type(error).__name__})."
            if isinstance(error, KeyError):  # the client looks for a field that the answer does not have
                return f"{place}: {constants.ENDPOINT} answers without {error}, which the client needs. Push again."
            return f"{place}: {' '.join(str(error).split()).rstrip('.')}."
        status, said = error.response.status_code, _first_line(error.server_message or error.response.reason_phrase)
        meanings: dict[int, Callable[[], str]] = {
            401: lambda: f"{place}: the Hub does not know the access token (401). Run `hf auth login`, or mend HF_TOKEN.",
            403: lambda: f"{place}: the access token may not write there (403: {said}). {_WRITE_TOKEN} Or give another name.",
            409: lambda: f"{place}: somebody else is changing it (409: {said}). Push again.",
            412: lambda: f"{place}: it was changed meanwhile (412: {said}). Look at it, and push again.",
        }
        if status in meanings:
            return meanings[status]()
        if status >= 500 or status == 429:
            return f"{place}: {constants.ENDPOINT} is out of order ({status}: {said}), after several tries."
        return f"{place}: the Hub refused ({status}: {said})."

    def _then(self) -> str:
        return f" The folder is complete; push it later: {self.later}" if self.later else ""


ANSWER_S = 120.0
"""Seconds that one answer, or a part of an upload, may take. The client by itself waits for ever."""


def _answer_in_time() -> None:
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils import _http

    def client() -> Any:
        made = made_before()
        made.timeout = ANSWER_S
        return made

    made_before = _http._GLOBAL_CLIENT_FACTORY
    if made_before is _http.default_client_factory:  # a factory of the user's own knows better
        set_client_factory(client)


def _is_replaced(name: str) -> bool:
    """Whether a file of an earlier version goes when a new one comes; those of checkpoints, in folders of their own, stay."""
    return any(fnmatch.fnmatch(name, pattern) and ("/" not in name or "/" in pattern) for pattern in REPLACED)


_WRITE_TOKEN = "Use one with write permission (https://huggingface.co/settings/tokens)."


def _first_line(text: Any) -> str:
    """Of an error or message, without the request's id that the client adds."""
    lines = [line.strip() for line in str(text).splitlines() if line.strip()]
    return re.sub(r"\s*\(Request ID: [^)]*\)", "", lines[0]).rstrip(".") if lines else ""


logger = logging.getLogger(__name__)

Result = TypeVar("Result")

RETRIES, FIRST_WAIT_S, LONGEST_WAIT_S = 5, 1.0, 8.0
"""As `huggingface_hub` does where it repeats by itself: uploads, but not the creation of a repository, nor a commit."""

PASSING_STATUS = (429, 500, 502, 503, 504)


def is_passing(error: BaseException) -> bool:
    """Whether the same call may succeed later: the server is busy or broken, or the connection is."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in PASSING_STATUS
    # A gateway's error page is no JSON, and some calls read the answer before they look at its status.
    return isinstance(error, (HTTPError, ConnectionError, json.JSONDecodeError)) and not isinstance(error, OfflineModeIsEnabled)


def with_retries(call: Callable[[], Result], what: str) -> Result:
    """The result of `call`, which must be safe to repeat.

    Args:
        what: named in the log, e.g. "commit".
    Raises: what `call` raises, at once if it will not pass, else after `RETRIES` repetitions.
    """
    for number in range(RETRIES + 1):
        try:
            return call()
        except Exception as error:
            if number == RETRIES or not is_passing(error):
                raise
            wait = _asked_to_wait(error) or min(FIRST_WAIT_S * 2**number, LONGEST_WAIT_S)
            logger.warning("%s: %s. Trying again in %g s (%d of %d).", what, type(error).__name__, wait, number + 1, RETRIES)
            time.sleep(wait)
    raise AssertionError("the last attempt returns or raises")


def _asked_to_wait(error: Exception) -> float | None:
    """Seconds of a Retry-After header, if it is a number and not too long to sit it out."""
    headers = getattr(getattr(error, "response", None), "headers", {})
    text = headers.get("Retry-After", "")
    return min(float(text), 60.0) if text.isdigit() and int(text) else None
