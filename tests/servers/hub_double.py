"""A double of the Hugging Face hub's HTTP interface, and of the CDN that it redirects to.

What it answers follows the hub's documented interface: `/api/models/REPO[/revision/REV]` with
`blobs=True`, and `/REPO/resolve/REV/FILE`, which redirects to another host for files in LFS.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import attrs

LFS_SUFFIXES = (".bin", ".model", ".safetensors")
_API = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)(?:/revision/(?P<revision>[^/]+))?")
_FILE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<name>.+)")


@attrs.define
class Repository:
    """One repository: its commits, and the branch that points to one of them."""

    private: bool = False
    gated: bool = False
    moved_to: str = ""
    commits: dict[str, dict[str, bytes]] = attrs.field(factory=dict)
    branches: dict[str, str] = attrs.field(factory=dict)

    def push(self, files: dict[str, bytes], branch: str = "main") -> str:
        text = json.dumps(sorted((name, _sha256(data)) for name, data in files.items()))
        commit = hashlib.sha1(f"{len(self.commits)}{text}".encode()).hexdigest()
        self.commits[commit] = files
        self.branches[branch] = commit
        return commit

    def commit_of(self, revision: str) -> str | None:
        commit = self.branches.get(revision, revision)
        return commit if commit in self.commits else None


@attrs.define
class Hub:
    """The state of both servers."""

    endpoint: str = ""
    cdn: str = ""
    token: str = "hf_secret"
    repositories: dict[str, Repository] = attrs.field(factory=dict)
    requests: list[str] = attrs.field(factory=list)
    failures: list[int] = attrs.field(factory=list)
    leaked: list[str] = attrs.field(factory=list)

    def repository(self, name: str) -> Repository:
        return self.repositories.setdefault(name, Repository())


@contextmanager
def running_hub() -> Iterator[Hub]:
    """Both servers on loopback; at the end no token may have reached the CDN."""
    hub = Hub()
    servers = [_server(_HubHandler, hub), _server(_CdnHandler, hub)]
    hub.endpoint, hub.cdn = (f"http://127.0.0.1:{server.server_port}" for server in servers)
    threads = [threading.Thread(target=server.serve_forever, args=(0.01,)) for server in servers]
    for thread in threads:
        thread.start()
    try:
        yield hub
    finally:
        for server, thread in zip(servers, threads, strict=True):
            server.shutdown()
            thread.join()
            server.server_close()
    assert not hub.leaked, f"the token went to the CDN: {hub.leaked}"


def _server(handler: type[_Handler], hub: Hub) -> ThreadingHTTPServer:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type(handler.__name__, (handler,), {"hub": hub}))
    server.daemon_threads = True
    return server


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def answer_range(self, data: bytes, **headers: str) -> None:
        """A file's bytes, or the range that was asked for."""
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if not asked:
            self.answer(200, data, Accept_Ranges="bytes", **headers)
            return
        start, stop = int(asked[1]), min(int(asked[2]) + 1, len(data))
        if start >= len(data):
            self.answer(416, Content_Range=f"bytes */{len(data)}")
            return
        place = f"bytes {start}-{stop - 1}/{len(data)}"
        self.answer(206, data[start:stop], Content_Range=place, **headers)


class _HubHandler(_Handler):
    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        for pattern, handle in ((_API, self._model), (_FILE, self._file)):
            if match := pattern.fullmatch(path):
                self.hub.requests.append(f"{self.command} {unquote(path)}")
                if self.hub.failures:
                    self.answer(self.hub.failures.pop(0))
                    return
                parts = {key: unquote(text or "") for key, text in match.groupdict().items()}
                self._checked(handle, **parts)
                return
        self.answer(404)  # what the client library asks for itself

    def _checked(self, handle, *, repo: str, revision: str, **rest: str) -> None:
        known = self.headers.get("Authorization") == f"Bearer {self.hub.token}"
        repository = self.hub.repositories.get(repo)
        if repository and repository.moved_to:
            self.answer(307, Location=self.path.replace(repo, repository.moved_to))
        elif repository is None or (repository.private and not known):
            self.answer(
                404 if known else 401,
                X_Error_Code="RepoNotFound",
                X_Error_Message="Repository not found",
            )
        elif (commit := repository.commit_of(revision or "main")) is None:
            self.answer(404, X_Error_Code="RevisionNotFound", X_Error_Message="Invalid rev id")
        else:
            handle(repo, repository, commit, known, **rest)

    def _model(self, repo: str, repository: Repository, commit: str, known: bool) -> None:
        siblings = []
        for name, data in repository.commits[commit].items():
            sibling = {"rfilename": name, "size": len(data), "blobId": git_id(data)}
            if name.endswith(LFS_SUFFIXES):
                lfs = {"sha256": _sha256(data), "size": len(data), "pointerSize": 134}
                sibling["lfs"] = lfs
            siblings.append(sibling)
        body = {"id": repo, "modelId": repo, "sha": commit, "siblings": siblings}
        self.answer(200, json.dumps(body).encode(), Content_Type="application/json")

    def _file(
        self, repo: str, repository: Repository, commit: str, known: bool, *, name: str
    ) -> None:
        data = repository.commits[commit].get(name)
        if repository.gated and not known:
            self.answer(401, X_Error_Code="GatedRepo", X_Error_Message="Access is restricted")
        elif data is None:
            self.answer(404, X_Error_Code="EntryNotFound", X_Error_Message="Entry not found")
        elif name.endswith(LFS_SUFFIXES):
            self.answer(
                302,
                Location=f"{self.hub.cdn}/{repo}/{commit}/{name}?Signature=abc",
                X_Repo_Commit=commit,
                X_Linked_Etag=f'"{_sha256(data)}"',
                X_Linked_Size=str(len(data)),
            )
        else:
            self.answer_range(data, ETag=f'"{git_id(data)}"', X_Repo_Commit=commit)


class _CdnHandler(_Handler):
    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"CDN {path}")
        if "Authorization" in self.headers or self.hub.token in str(self.headers):
            self.hub.leaked.append(path)
            self.answer(400)
            return
        owner, repo, commit, name = path.lstrip("/").split("/", 3)
        data = self.hub.repositories[f"{owner}/{repo}"].commits[commit][name]
        self.answer_range(data, ETag=f'"{_sha256(data)[:32]}-cdn"')


def git_id(data: bytes) -> str:
    """The id that git gives these bytes."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
