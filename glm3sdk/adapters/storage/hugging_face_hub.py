"""Repositories of the Hugging Face hub as a `BlobStore`: hf://OWNER/REPOSITORY[@REVISION]/FILE.

huggingface_hub lists a repository; the bytes come over the same https as everywhere.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import attrs

from glm3sdk.adapters.offline import require_online
from glm3sdk.adapters.storage.https import HttpsBlobStore
from glm3sdk.errors import (
    BackendUnavailableError,
    BlobAccessError,
    BlobChangedError,
    BlobUnavailableError,
    OfflineError,
    UnsupportedOptionError,
)
from glm3sdk.ports.blob_checks import check_blob_uri, check_range
from glm3sdk.ports.blob_store import Blob

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import ModelInfo

ENDPOINT_VARIABLE = "HF_ENDPOINT"
_PUBLIC_ENDPOINT = "https://huggingface.co"
_URI = re.compile(
    r"hf://(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^/@]+))?(?:/(?P<path>.*))?", re.ASCII
)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SAFE_ENDPOINT = re.compile(r"https://.|http://(127\.0\.0\.1|localhost|\[::1\])(:|/|$)")
_TIMEOUT_S = 20.0


@attrs.frozen
class _Place:
    """A URI's parts.

    Attributes:
        root: the URI of the repository at that revision.
        path: within it.
    """

    root: str
    repository: str
    revision: str | None
    path: str


@attrs.frozen
class _Snapshot:
    """A repository at one commit."""

    commit: str
    files: Mapping[str, Blob]


class HubBlobStore:
    """A read-only `BlobStore` of the Hugging Face hub, or of a mirror of it.

    A revision (a branch, a tag, a commit; "/" in it is written %2F) is looked up once and
    read at that commit from then on, so that a push does not mix two editions.

    Args:
        endpoint: of the hub; by default `HF_ENDPOINT`, or huggingface.co.
        token: sent to the endpoint alone; by default the one that `hf auth login` stored, or
            `HF_TOKEN`.

    Raises:
        BackendUnavailableError: huggingface_hub is not installed.
        BlobAccessError: the endpoint is not encrypted.
    """

    def __init__(self, *, endpoint: str | None = None, token: str | None = None) -> None:
        try:
            import huggingface_hub
        except ImportError as exc:
            raise BackendUnavailableError(
                "hf:// needs huggingface_hub: pip install 'glm3sdk[hub]'"
            ) from exc
        chosen = endpoint or os.environ.get(ENDPOINT_VARIABLE) or _PUBLIC_ENDPOINT
        if not _SAFE_ENDPOINT.match(chosen):
            raise BlobAccessError(
                f"{ENDPOINT_VARIABLE}={chosen!r} is not encrypted; set an https:// address"
            )
        self._endpoint = chosen.rstrip("/")
        self._token = token or huggingface_hub.get_token()
        self._api: HfApi = huggingface_hub.HfApi(
            endpoint=self._endpoint, token=self._token or False, library_name="glm3sdk"
        )
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        self._web = HttpsBlobStore(headers=headers)
        self._lock = threading.Lock()
        self._snapshots: dict[str, _Snapshot] = {}

    def stat(self, uri: str) -> Blob | None:
        """What is at `uri`, or None.

        Raises:
            BlobAccessError: no such repository or revision, or no permission for it.
            BlobUnavailableError: the hub did not answer.
            OfflineError: the offline switch is on.
        """
        check_blob_uri(uri)
        place = _place(uri)
        return self._snapshot(place).files.get(place.path)

    def list(self, uri: str) -> Iterator[Blob]:
        """Every file below `uri`, sorted by URI. Raises as `stat`."""
        place = _place(uri.rstrip("/"))
        start = f"{place.path}/" if place.path else ""
        files = self._snapshot(place).files
        return iter([files[path] for path in sorted(files) if path.startswith(start)])

    def read(self, blob: Blob, start: int, stop: int) -> bytes:
        """The bytes `[start, stop)` of a file.

        Raises:
            BlobChangedError: the revision has another file there by now, or none.
            BlobAccessError: the repository is gated and this token has no access.
            BlobUnavailableError: the hub did not answer, or not to the end.
        """
        from huggingface_hub import hf_hub_url

        check_range(blob, start, stop)
        place = _place(blob.uri)
        snapshot = self._snapshot(place)
        there = snapshot.files.get(place.path)
        if there is None or blob.version not in (None, there.version):
            raise BlobChangedError(f"{blob.uri} was replaced or removed while it was read")
        url = hf_hub_url(
            place.repository, place.path, revision=snapshot.commit, endpoint=self._endpoint
        )
        try:
            return self._web.read(Blob(url, blob.size), start, stop)
        except BlobAccessError as exc:
            raise BlobAccessError(f"{blob.uri}: {exc}; {self._remedy(place.repository)}") from exc

    def write(self, uri: str, source: bytes | Path) -> Blob:  # noqa: ARG002  # the port's
        """Not offered.

        Raises:
            UnsupportedOptionError: always.
        """
        raise UnsupportedOptionError(
            f"{uri}: nothing is written to the Hugging Face hub; write to a directory or obs://"
        )

    def delete(self, uri: str) -> None:
        """Not offered.

        Raises:
            UnsupportedOptionError: always.
        """
        raise UnsupportedOptionError(f"{uri}: nothing is deleted on the Hugging Face hub")

    def _snapshot(self, place: _Place) -> _Snapshot:
        require_online(place.root)
        with self._lock:
            if place.root not in self._snapshots:
                self._snapshots[place.root] = _snapshot_of(place, self._look_up(place))
            return self._snapshots[place.root]

    def _look_up(self, place: _Place) -> ModelInfo:
        from huggingface_hub import errors

        # The base of what its connections raise: httpx's HTTPError, or requests', an OSError.
        connection: Any = errors.HfHubHTTPError.__mro__[1]
        try:
            return self._api.model_info(
                place.repository,
                revision=place.revision,
                files_metadata=True,
                timeout=_TIMEOUT_S,
            )
        except errors.OfflineModeIsEnabled as exc:
            raise OfflineError(f"{place.root}: {exc}") from exc
        except errors.RevisionNotFoundError as exc:
            raise BlobAccessError(
                f"{place.repository} on {self._endpoint} has no revision {place.revision!r}; pass "
                "a branch, a tag or a commit after the @"
            ) from exc
        except errors.HFValidationError as exc:
            raise BlobAccessError(f"{place.root} is no repository: {exc}") from exc
        except errors.RepositoryNotFoundError as exc:
            raise BlobAccessError(
                f"{self._endpoint} has no repository {place.repository} that you may see; "
                f"{self._remedy(place.repository)}"
            ) from exc
        except errors.HfHubHTTPError as exc:
            status = getattr(exc.response, "status_code", 0)
            refused = 400 <= status < 500 and status not in (408, 429)
            kind = BlobAccessError if refused else BlobUnavailableError
            advice = f"; {self._remedy(place.repository)}" if refused else ""
            raise kind(f"{place.root}: the hub answered {status}{advice}") from exc
        except (connection, OSError) as exc:
            raise BlobUnavailableError(
                f"{self._endpoint} did not answer ({exc}); if it cannot be reached from here, set "
                f"{ENDPOINT_VARIABLE} to a mirror or pass another source"
            ) from exc
        except (ValueError, KeyError, TypeError, AttributeError) as exc:
            raise _strange(place, str(exc)) from exc

    def _remedy(self, repository: str) -> str:
        page = f"{self._endpoint}/{repository}"
        if self._token is None:
            advice = "if it is not public, log in with `hf auth login` or set HF_TOKEN"
        else:
            advice = "ask for access there or use another token"
        return f"see whether {page} exists; {advice}"


def _place(uri: str) -> _Place:
    match = _URI.fullmatch(uri)
    if match is None:
        raise BlobAccessError(
            f"{uri!r} is no hf://OWNER/REPOSITORY, with @REVISION behind it or not"
        )
    revision = match["revision"]
    return _Place(
        root=f"hf://{match['repository']}{'@' + revision if revision else ''}",
        repository=match["repository"],
        revision=unquote(revision) if revision else None,
        path=match["path"] or "",
    )


def _snapshot_of(place: _Place, info: ModelInfo) -> _Snapshot:
    if info.sha is None or not _COMMIT.fullmatch(info.sha):
        raise _strange(place, f"the commit {info.sha!r}")
    files = {}
    for entry in info.siblings or ():
        sha256 = entry.lfs.sha256 if entry.lfs else None
        if not isinstance(entry.size, int) or not (sha256 is None or _SHA256.fullmatch(sha256)):
            raise _strange(place, f"no size or no sha256 of {entry.rfilename}")
        uri = f"{place.root}/{entry.rfilename}"
        files[entry.rfilename] = Blob(uri, entry.size, version=entry.blob_id, sha256=sha256)
    return _Snapshot(info.sha, files)


def _strange(place: _Place, what: str) -> BlobUnavailableError:
    return BlobUnavailableError(f"{place.root}: the hub's answer is not what it should be: {what}")
