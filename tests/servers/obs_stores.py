"""Object stores for the tests: on our own double and on moto."""

from __future__ import annotations

import functools
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import botocore.session
import pytest
from servers.s3_double import ACCESS_KEY, SECRET_KEY, S3Double

from glm3sdk.adapters.storage.obs import ObsBlobStore
from glm3sdk.adapters.storage.obs_client import ObsConnection

# Building a client takes 60 ms, most of it to parse the description of the service.
_create_loader = functools.cache(botocore.session.create_loader)


def connection(endpoint: str, **settings: Any) -> ObsConnection:
    """A connection with the double's credentials."""
    return ObsConnection(
        endpoint=endpoint, access_key_id=ACCESS_KEY, secret_access_key=SECRET_KEY, **settings
    )


@contextmanager
def without_settings() -> Iterator[pytest.MonkeyPatch]:
    """What the environment says about object stores is not heard in the block."""
    names = ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SECURITY_TOKEN", "ENDPOINT", "REGION")
    ours = [start + name for start in ("", "OBS_", "AWS_", "S3_") for name in names]
    theirs = ("ENDPOINT_URL", "ENDPOINT_URL_S3", "PROFILE", "CA_BUNDLE", "DEFAULT_REGION")
    others = ("GLM3SDK_OBS_ALLOW_HTTP", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")
    with pytest.MonkeyPatch.context() as patch:
        for name in (*ours, *(f"AWS_{name}" for name in theirs), *others):
            patch.delenv(name, raising=False)
        for name in ("CONFIG_FILE", "SHARED_CREDENTIALS_FILE"):
            patch.setenv(f"AWS_{name}", "/dev/null")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setattr(botocore.session, "create_loader", _create_loader)
        yield patch


@contextmanager
def bucket_names_resolve() -> Iterator[None]:
    """Every name below localhost is this machine, as RFC 6761 has it and not every system."""
    resolve = socket.getaddrinfo

    def getaddrinfo(host: Any, *rest: Any, **more: Any) -> Any:
        local = isinstance(host, str) and host.endswith(".localhost")
        return resolve("127.0.0.1" if local else host, *rest, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", getaddrinfo)
        yield


@contextmanager
def moto_bucket(name: str = "bucket") -> Iterator[str]:
    """Run moto, a second opinion on the protocol, with a bucket in it. Gives its endpoint."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    keys = {"aws_access_key_id": ACCESS_KEY, "aws_secret_access_key": SECRET_KEY}
    endpoint = f"http://{host}:{port}"
    try:
        with closing(
            boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", **keys)
        ) as client:
            client.create_bucket(Bucket=name)
        yield endpoint
    finally:
        server.stop()


@pytest.fixture
def settings() -> Iterator[pytest.MonkeyPatch]:
    """An environment without settings of object stores, to be changed for one test."""
    with without_settings() as patch:
        yield patch


@pytest.fixture
def double(settings: pytest.MonkeyPatch) -> Iterator[S3Double]:
    with S3Double() as server:
        yield server


@pytest.fixture
def waits() -> list[float]:
    """How long the store waited between its tries: it does not really wait."""
    return []


@pytest.fixture
def store(double: S3Double, waits: list[float]) -> Iterator[ObsBlobStore]:
    """A store on the double whose parts have 1000 bytes."""
    with closing(
        ObsBlobStore(connection(double.endpoint), part_size=1000, sleep=waits.append)
    ) as made:
        yield made
