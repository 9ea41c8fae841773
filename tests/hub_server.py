"""A Hub of our own for tests: a local server that speaks its API to the real `huggingface_hub` client, with faults on demand.

Run as a program it serves an empty Hub until it is stopped: `python tests/hub_server.py PORT`.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".png")
MULTIPART_BYTES = 4_000
"""Larger files are sent in parts of this size."""

ROUTES = [
    ("whoami", "GET", r"/api/whoami-v2"),
    ("create", "POST", r"/api/repos/create"),
    ("yaml", "POST", r"/api/validate-yaml"),
    ("info", "GET", r"/api/models/(?P<repo>[^/]+/[^/]+)(/revision/(?P<revision>[^/]+))?"),
    ("tree", "GET", r"/api/models/(?P<repo>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)(/(?P<path>.+))?"),
    ("paths", "POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/paths-info/(?P<revision>[^/]+)"),
    ("auth", "GET", r"/api/models/(?P<repo>[^/]+/[^/]+)/auth-check/write"),
    ("refs", "GET", r"/api/models/(?P<repo>[^/]+/[^/]+)/refs"),
    ("branch", "POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/branch/(?P<revision>[^/]+)"),
    ("preupload", "POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/preupload/(?P<revision>[^/]+)"),
    ("commit", "POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/commit/(?P<revision>[^/]+)"),
    ("batch", "POST", r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch"),
    ("upload", "PUT", r"/lfs/(?P<oid>[0-9a-f]{64})(/(?P<part>\d+))?"),
    ("complete", "POST", r"/lfs/(?P<oid>[0-9a-f]{64})/complete"),
    ("verify", "POST", r"/lfs/(?P<oid>[0-9a-f]{64})/verify"),
    ("resolve", "GET", r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)"),
]


@dataclass
class Commit:
    sha: str
    message: str
    files: dict[str, bytes]


@dataclass
class Repository:
    private: bool = False
    branches: dict[str, list[Commit]] = field(default_factory=dict)

    def find(self, revision: str) -> Commit | None:
        if revision in self.branches:
            return self.branches[revision][-1]
        return next((one for commits in self.branches.values() for one in commits if one.sha == revision), None)


@dataclass
class Fault:
    """What goes wrong.

    Attributes:
        kind: a status code ("503"), "reset" (the connection breaks before anything is done), "lost" (it is done, and then the
            connection breaks), or "corrupt" (a byte of an upload changes on its way).
        route: of which requests, one of the names in `ROUTES`; None: of all.
        first: from the how manieth such request on, from 0.
        times: how often.
    """

    kind: str
    route: str | None = None
    first: int = 0
    times: float = 1
    seen: int = 0
    done: int = 0

    def strikes(self, route: str) -> bool:
        if self.route not in (None, route):
            return False
        self.seen += 1
        if self.seen <= self.first or self.done >= self.times:
            return False
        self.done += 1
        return True


class Hub:
    """Repositories, tokens and faults.

    Attributes:
        tokens: token -> (user, role), the role one of "read", "write", "fineGrained".
        log: names of the routes asked for, in order.
    """

    def __init__(self) -> None:
        self.tokens = {"hf_writer": ("someone", "write"), "hf_reader": ("someone", "read")}
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.faults: list[Fault] = []
        self.log: list[str] = []
        self.url = ""
        self.lock = threading.RLock()
        self._numbers = itertools.count()

    def sha(self) -> str:
        return hashlib.sha1(f"commit {next(self._numbers)}".encode()).hexdigest()

    def add_repository(self, name: str, files: dict[str, bytes] | None = None) -> Repository:
        repository = self.repositories[name] = Repository()
        repository.branches["main"] = [Commit(self.sha(), "initial commit", {".gitattributes": b""} | (files or {}))]
        return repository

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        """Without .gitattributes."""
        return {path: data for path, data in self.repositories[name].find(revision).files.items() if path != ".gitattributes"}

    def state(self) -> dict[str, Any]:
        """Everything a visitor can see, to compare before and after."""
        return {
            name: {branch: [(commit.sha, sorted(commit.files)) for commit in commits] for branch, commits in one.branches.items()}
            for name, one in self.repositories.items()
        }


def git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def is_lfs(path: str) -> bool:
    return path.endswith(LFS_SUFFIXES)


class _Refusal(Exception):
    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize, disable_nagle_algorithm = -1, True  # an answer of several small packets waits 40 ms for the client's word
    hub: Hub

    def do_GET(self) -> None:
        self._answer("GET")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self._answer("POST")

    def do_PUT(self) -> None:
        self._answer("PUT")

    def log_message(self, *args: Any) -> None:
        pass

    def _answer(self, method: str) -> None:
        body = self._read_body()
        path = unquote(urlsplit(self.path).path)
        for route, verb, pattern in ROUTES:
            match = re.fullmatch(pattern, path if route in ("resolve", "tree") else urlsplit(self.path).path)
            if verb == method and match:
                break
        else:
            return self._send(404, {"error": f"no such page: {method} {path}"})
        given = {name: unquote(value) for name, value in match.groupdict().items() if value is not None}
        with self.hub.lock:
            self.hub.log.append(route)
            fault = next((one for one in self.hub.faults if one.strikes(route)), None)
            kind = fault.kind if fault else ""
            if kind == "reset":
                return self._break()
            if kind.isdigit():
                return self._send(int(kind), {"error": f"made up: {kind}"})
            if kind == "corrupt" and body:
                body = bytes([body[0] ^ 1]) + body[1:]
            try:
                status, answer, headers = getattr(self, f"_{route}")(body, **given)
            except _Refusal as refusal:
                named = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message}
                status, answer, headers = refusal.status, {"error": refusal.message}, {k: v for k, v in named.items() if v}
        if kind == "lost":
            return self._break()
        self._send(status, answer, headers)

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _send(self, status: int, answer: Any, headers: dict[str, str] | None = None) -> None:
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
        self.wfile.flush()

    def _break(self) -> None:
        """The client sees "connection reset by peer"."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.rfile.close()
        self.wfile.close()
        self.connection.close()

    # What is asked for

    def _user(self, write: bool = False) -> str:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token not in self.hub.tokens:
            raise _Refusal(401, "Invalid credentials in Authorization header")
        user, role = self.hub.tokens[token]
        if write and role == "read":
            raise _Refusal(403, "you must use a write token to write to a repository.")
        return user

    def _repository(self, name: str, write: bool = False) -> Repository:
        if name not in self.hub.repositories:
            raise _Refusal(404, "Repository not found", "RepoNotFound")
        if write and self._user(write=True) != name.split("/")[0]:
            raise _Refusal(403, f"you don't have the rights to write to {name}")
        repository = self.hub.repositories[name]
        if repository.private and self._user() != name.split("/")[0]:
            raise _Refusal(404, "Repository not found", "RepoNotFound")
        return repository

    def _commit_of(self, repository: Repository, revision: str) -> Commit:
        if (commit := repository.find(revision)) is None:
            raise _Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def _whoami(self, body: bytes) -> Any:
        user = self._user()
        role = next(role for _, role in [self.hub.tokens[self.headers["Authorization"].removeprefix("Bearer ")]])
        return 200, {"name": user, "type": "user", "orgs": [], "auth": {"accessToken": {"role": role}}}, {}

    def _create(self, body: bytes) -> Any:
        asked = json.loads(body)
        owner = asked.get("organization") or self._user()
        if self._user(write=True) != owner:
            raise _Refusal(403, f'You don\'t have the rights to create a model under the namespace "{owner}"')
        name = f"{owner}/{asked['name']}"
        answer = {"url": f"{self.hub.url}/{name}", "name": name}
        if name in self.hub.repositories:
            return 409, {"error": "You already created this model repo", **answer}, {}
        self.hub.add_repository(name).private = asked.get("visibility") == "private"
        return 200, answer, {}

    def _yaml(self, body: bytes) -> Any:
        content = json.loads(body)["content"]
        match = re.match(r"---\n(.*?)\n---\n", content, flags=re.DOTALL)
        if match is None:
            return 200, {"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]}, {}
        errors = metadata_errors(yaml.safe_load(match[1]))
        return (400 if errors else 200), {"errors": [{"message": error} for error in errors], "warnings": []}, {}

    def _info(self, body: bytes, repo: str, revision: str = "main") -> Any:
        commit = self._commit_of(self._repository(repo), revision)
        siblings = [{"rfilename": path, "size": len(data)} for path, data in sorted(commit.files.items())]
        return 200, {"id": repo, "modelId": repo, "sha": commit.sha, "siblings": siblings, "tags": [], "private": False}, {}

    def _auth(self, body: bytes, repo: str) -> Any:
        self._repository(repo, write=True)
        return 200, {}, {}

    def _tree(self, body: bytes, repo: str, revision: str, path: str = "") -> Any:
        commit = self._commit_of(self._repository(repo), revision)
        found = [self._entry(name, data) for name, data in sorted(commit.files.items()) if name.startswith(path)]
        if "recursive=true" not in self.path.lower() and "recursive=1" not in self.path:
            found = [entry for entry in found if "/" not in entry["path"].removeprefix(path).strip("/")]
        if not found and path:
            raise _Refusal(404, f"{path} does not exist", "EntryNotFound")
        return 200, found, {}

    def _paths(self, body: bytes, repo: str, revision: str) -> Any:
        commit = self._commit_of(self._repository(repo), revision)
        return 200, [self._entry(path, commit.files[path]) for path in json.loads(body)["paths"] if path in commit.files], {}

    def _entry(self, path: str, data: bytes) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": git_oid(data)}
        if is_lfs(path):
            entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 127}
        return entry

    def _refs(self, body: bytes, repo: str) -> Any:
        branches = self._repository(repo).branches.items()
        listed = [{"name": name, "ref": f"refs/heads/{name}", "targetCommit": commits[-1].sha} for name, commits in branches]
        return 200, {"branches": listed, "tags": [], "converts": []}, {}

    def _branch(self, body: bytes, repo: str, revision: str) -> Any:
        repository = self._repository(repo, write=True)
        if revision in repository.branches:
            return 409, {"error": f"Reference already exists: {revision}"}, {}
        start = self._commit_of(repository, json.loads(body or b"{}").get("startingPoint", "main"))
        repository.branches[revision] = [start]
        return 200, {}, {}

    def _preupload(self, body: bytes, repo: str, revision: str) -> Any:
        files = self._commit_of(self._repository(repo, write=True), revision).files
        answer = []
        for file in json.loads(body)["files"]:
            path = file["path"]
            there = files.get(path)
            oid = None if there is None else hashlib.sha256(there).hexdigest() if is_lfs(path) else git_oid(there)
            mode = "lfs" if is_lfs(path) else "regular"
            answer.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return 200, {"files": answer, "commitOid": self._repository(repo).find(revision).sha}, {}

    def _batch(self, body: bytes, repo: str) -> Any:
        self._repository(repo, write=True)
        objects = []
        for one in json.loads(body)["objects"]:
            oid, size = one["oid"], one["size"]
            if oid not in self.hub.objects:
                href, header = f"{self.hub.url}/lfs/{oid}", {}
                if size > MULTIPART_BYTES:
                    header = {"chunk_size": str(MULTIPART_BYTES)}
                    count = -(-size // MULTIPART_BYTES)
                    header |= {str(number): f"{href}/{number}" for number in range(1, count + 1)}
                    self.hub.parts[oid] = {}
                actions = {
                    "upload": {"href": f"{href}/complete" if header else href, "header": header},
                    "verify": {"href": f"{href}/verify", "header": {}},
                }
                one = one | {"actions": actions}
            objects.append(one)
        return 200, {"transfer": "multipart", "objects": objects}, {"Content-Type": "application/vnd.git-lfs+json"}

    def _upload(self, body: bytes, oid: str, part: str | None = None) -> Any:
        if part is None:
            self._store(oid, body)
        else:
            self.hub.parts[oid][int(part)] = body
        return 200, {}, {"ETag": f'"{hashlib.md5(body).hexdigest()}"'}

    def _complete(self, body: bytes, oid: str) -> Any:
        asked = [part["partNumber"] for part in json.loads(body)["parts"]]
        self._store(oid, b"".join(self.hub.parts[oid][number] for number in asked))
        return 200, {"success": True}, {}

    def _store(self, oid: str, data: bytes) -> None:
        if hashlib.sha256(data).hexdigest() != oid:
            raise _Refusal(400, "The SHA-256 of the content does not match its oid")
        self.hub.objects[oid] = data

    def _verify(self, body: bytes, oid: str) -> Any:
        self._user()
        if len(self.hub.objects.get(oid, b"")) != json.loads(body)["size"]:
            raise _Refusal(422, "The uploaded file has another size")
        return 200, {}, {}

    def _commit(self, body: bytes, repo: str, revision: str) -> Any:
        repository = self._repository(repo, write=True)
        commits = repository.branches.get(revision)
        if commits is None:
            raise _Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        lines = [json.loads(line) for line in body.splitlines()]
        header = lines[0]["value"]
        if header.get("parentCommit") not in (None, commits[-1].sha):
            raise _Refusal(412, "A commit has happened since. Please refresh and try again.")
        files = dict(commits[-1].files)
        for line in lines[1:]:
            value = line["value"]
            path = value["path"]
            if line["key"] == "file":
                files[path] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    raise _Refusal(400, f"LFS pointer of {path} points to a file that does not exist")
                files[path] = self.hub.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[path]
            else:
                files = {name: data for name, data in files.items() if not name.startswith(path)}
        commits.append(Commit(self.hub.sha(), header["summary"], files))
        return 200, {"commitUrl": f"{self.hub.url}/{repo}/commit/{commits[-1].sha}", "commitOid": commits[-1].sha}, {}

    def _resolve(self, body: bytes, repo: str, revision: str, path: str) -> Any:
        commit = self._commit_of(self._repository(repo), revision)
        if path not in commit.files:
            raise _Refusal(404, f"{path} does not exist", "EntryNotFound")
        data = commit.files[path]
        oid = hashlib.sha256(data).hexdigest() if is_lfs(path) else git_oid(data)
        return 200, data, {"ETag": f'"{oid}"', "X-Repo-Commit": commit.sha, "Content-Type": "application/octet-stream"}


def metadata_errors(metadata: Any) -> list[str]:
    """What the Hub finds wrong with a card's metadata, of the rules that are documented."""
    errors = []
    wanted: dict[str, tuple[type, ...]] = {
        "license": (str, list),
        "language": (str, list),
        "tags": (list,),
        "datasets": (str, list),
        "base_model": (str, list),
        "library_name": (str,),
        "pipeline_tag": (str,),
        "base_model_relation": (str,),
    }
    for name, kinds in wanted.items():
        if name in metadata and not isinstance(metadata[name], kinds):
            errors.append(f'"{name}" must be {" or ".join(kind.__name__ for kind in kinds)}')
    if metadata.get("base_model_relation", "finetune") not in ("adapter", "finetune", "merge", "quantized"):
        errors.append('"base_model_relation" must be one of [adapter, merge, quantized, finetune]')
    for model in metadata.get("model-index", []):
        for result in model.get("results", []):
            for metric in result.get("metrics", []):
                if not isinstance(metric.get("value"), (int, float, str)) or "type" not in metric:
                    errors.append('"model-index" has a metric without type or value')
            if "type" not in result.get("dataset", {}) or "type" not in result.get("task", {}):
                errors.append('"model-index" has a result without task or dataset')
    return errors


@contextmanager
def serving(hub: Hub | None = None, port: int = 0) -> Iterator[Hub]:
    """A Hub that answers at `hub.url` meanwhile."""
    hub = hub or Hub()
    handler: Callable[..., Any] = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    server.daemon_threads = True
    server.handle_error = lambda *args: None  # broken connections are wanted here
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


if __name__ == "__main__":
    with serving(port=int(sys.argv[1]) if len(sys.argv) > 1 else 0) as running:
        sys.stdout.write(f"{running.url}\n")
        sys.stdout.flush()
        threading.Event().wait()
