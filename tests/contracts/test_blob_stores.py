from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from urllib.parse import quote

import pytest
from servers.obs_stores import bucket_names_resolve, connection, moto_bucket, without_settings
from servers.s3_double import S3Double

from glm3sdk.adapters.storage.local_blobs import LocalBlobStore
from glm3sdk.adapters.storage.obs import ObsBlobStore
from glm3sdk.ports.blob_store import BlobStore
from glm3sdk.testing.blob_contract import BlobStoreContract
from glm3sdk.testing.memory_blobs import MemoryBlobStore

_runs = itertools.count()


@pytest.fixture(scope="module", params=["path", "virtual host"])
def store_on_double(request: pytest.FixtureRequest) -> Iterator[BlobStore]:
    """In parts of 4096 bytes and pages of three."""
    virtual = request.param == "virtual host"
    with ExitStack() as stack:
        double = stack.enter_context(S3Double())
        double.page_size = 3
        stack.enter_context(without_settings())
        stack.enter_context(bucket_names_resolve())
        endpoint = f"http://localhost:{double.port}" if virtual else double.endpoint
        settings = connection(endpoint, path_style=False if virtual else None)
        yield stack.enter_context(closing(ObsBlobStore(settings, part_size=4096)))
        hosts = {seen.host for seen in double.seen}
        assert hosts == {"bucket.localhost" if virtual else "127.0.0.1"}


@pytest.fixture(scope="module")
def store_on_moto() -> Iterator[BlobStore]:
    """In parts of the smallest size that moto, like Amazon, takes."""
    with (
        without_settings(),
        moto_bucket() as endpoint,
        closing(ObsBlobStore(connection(endpoint), part_size=5 << 20)) as store,
    ):
        yield store


class TestMemoryBlobStore(BlobStoreContract):
    @pytest.fixture
    def store(self) -> BlobStore:
        return MemoryBlobStore()

    @pytest.fixture
    def root(self) -> str:
        return "memory://runs"


class TestLocalBlobStore(BlobStoreContract):
    @pytest.fixture
    def store(self) -> BlobStore:
        return LocalBlobStore()

    @pytest.fixture(params=["path", "uri", "relative"])
    def root(
        self, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> str:
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")
        if request.param == "uri":
            return f"file://{quote(str(tmp_path))}/not%20yet/runs"
        return "../runs" if request.param == "relative" else str(tmp_path / "not yet" / "runs")


class TestObsBlobStore(BlobStoreContract):
    @pytest.fixture
    def store(self, store_on_double: BlobStore) -> BlobStore:
        return store_on_double

    @pytest.fixture
    def root(self) -> str:
        return f"obs://bucket/runs/{next(_runs)}"


class TestObsBlobStoreOnMoto(BlobStoreContract):
    @pytest.fixture
    def store(self, store_on_moto: BlobStore) -> BlobStore:
        return store_on_moto

    @pytest.fixture
    def root(self) -> str:
        return f"s3://bucket/runs/{next(_runs)}"
