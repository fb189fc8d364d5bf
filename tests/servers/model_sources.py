"""The same model in each kind of place that a model is fetched from."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import attrs
import pytest
from servers.certificates import write_certificate
from servers.hub_double import running_hub
from servers.obs_stores import without_settings
from servers.s3_double import ACCESS_KEY, SECRET_KEY, S3Double, StoredObject
from servers.web_server import Page, WebServer

REPOSITORY = Path(__file__).resolve().parents[2]
SCHEMES = ("file", "https", "hf", "obs")


@attrs.frozen
class Source:
    """A place with the files of a model.

    Attributes:
        uri: of the place.
        read: tells the names of the files whose bytes were asked for, in order.
    """

    uri: str
    read: Callable[[], list[str]]


@contextmanager
def source(scheme: str, files: Mapping[str, bytes], folder: Path) -> Iterator[Source]:
    """Put files there; the environment is such that the SDK reaches them."""
    with without_settings() as patch, ExitStack() as stack:
        if scheme == "file":
            for name, data in files.items():
                (folder / name).write_bytes(data)
            yield Source(folder.as_uri(), list)
        elif scheme == "https":
            certificate = write_certificate(folder)
            patch.setenv("SSL_CERT_FILE", str(certificate.certificate))
            web = stack.enter_context(WebServer(tls=certificate.server_context()))
            yield on_web(web, files)
        elif scheme == "hf":
            hub = stack.enter_context(running_hub())
            hub.repository("someone/model").push(dict(files))
            patch.setenv("HF_ENDPOINT", hub.endpoint)
            patch.setenv("HF_TOKEN", hub.token)
            yield Source("hf://someone/model", lambda: _names(hub.requests))
        else:
            double = stack.enter_context(S3Double())
            yield on_obs(double, files, patch)


def on_web(web: WebServer, files: Mapping[str, bytes]) -> Source:
    web.pages.update({f"/models/one/{name}": Page(data) for name, data in files.items()})
    return Source(
        f"{web.address}/models/one", lambda: _names(f"{s.method} {s.path}" for s in web.seen)
    )


def on_obs(double: S3Double, files: Mapping[str, bytes], patch: pytest.MonkeyPatch) -> Source:
    patch.setenv("OBS_ENDPOINT", double.endpoint)
    patch.setenv("OBS_ACCESS_KEY_ID", ACCESS_KEY)
    patch.setenv("OBS_SECRET_ACCESS_KEY", SECRET_KEY)
    for name, data in files.items():
        double.objects["bucket", f"models/one/{name}"] = StoredObject(data)
    return Source(
        "obs://bucket/models/one", lambda: _names(f"{s.method} {s.key}" for s in double.seen)
    )


def _names(requests: Iterable[str]) -> list[str]:
    """Of files that were read: GET PATH, and not what the hub redirects to."""
    names = (line.rsplit("/", 1)[-1] for line in requests if line.startswith("GET "))
    return [name for name in names if "." in name]


def pulling_process(uri: str) -> subprocess.Popen[str]:
    """Another process that pulls."""
    code = "import sys; from glm3sdk import pull; print(pull(sys.argv[1]).path)"
    return subprocess.Popen(
        [sys.executable, "-c", code, uri],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
