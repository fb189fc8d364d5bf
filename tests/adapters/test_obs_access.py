from __future__ import annotations

import logging
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from servers.certificates import Certificate, write_certificate
from servers.obs_stores import bucket_names_resolve, connection, double, settings, store, waits  # noqa: F401  # fixtures
from servers.s3_double import ACCESS_KEY, SECRET_KEY, S3Double

from glm3sdk.adapters.storage.obs import ObsBlobStore
from glm3sdk.adapters.storage.obs_client import ObsConnection
from glm3sdk.errors import BackendUnavailableError, BlobAccessError, BlobUnavailableError

URI = "obs://bucket/a"
TOKEN = "token/of+temporary=credentials"
HUAWEIS = ("OBS_ACCESS_KEY_ID", "OBS_SECRET_ACCESS_KEY")
AMAZONS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")

Settings = pytest.MonkeyPatch


def refusal(made: ObsConnection, uri: str = URI) -> str:
    """What is said to the one who wants to write, look or list; it never holds a secret."""
    messages = set()
    with closing(ObsBlobStore(made, sleep=lambda _: pytest.fail("it was tried again"))) as store:  # noqa: F811
        acts: tuple[Callable[[], object], ...] = (
            lambda: store.stat(uri),
            lambda: store.write(uri, b"x"),
            lambda: list(store.list(uri)),
        )
        for act in acts:
            with pytest.raises(BlobAccessError) as caught:
                act()
            messages.add(str(caught.value))
        assert SECRET_KEY not in repr((store, made, store.__dict__))
    for message in messages:
        assert SECRET_KEY not in message
        assert TOKEN not in message
        assert "\n" not in message
    return " | ".join(sorted(messages))


def test_an_unknown_access_key_is_told(double: S3Double):  # noqa: F811
    message = refusal(
        ObsConnection(endpoint=double.endpoint, access_key_id="AK", secret_access_key="SK")
    )
    assert "does not know the access key" in message
    assert "check OBS_ACCESS_KEY_ID" in message


def test_a_wrong_secret_is_told(double: S3Double):  # noqa: F811
    made = ObsConnection(endpoint=double.endpoint, access_key_id=ACCESS_KEY, secret_access_key="x")
    assert "check the secret access key (OBS_SECRET_ACCESS_KEY)" in refusal(made)


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_clock_that_is_wrong_is_told_with_both_times(double: S3Double, hours: int):  # noqa: F811
    double.clock_ahead = timedelta(hours=hours)
    message = refusal(connection(double.endpoint))
    assert "RequestTimeTooSkewed, status 403" in message
    assert "this machine's clock says 20" in message
    assert "the server's 20" in message
    assert "set the clock of this machine (NTP)" in message


def test_a_clock_within_a_quarter_of_an_hour_will_do(double: S3Double, store: ObsBlobStore):  # noqa: F811
    double.clock_ahead = timedelta(minutes=14)
    assert store.stat(URI) is None


def test_a_denial_is_told(double: S3Double):  # noqa: F811
    for method in ("HEAD", "GET", "PUT"):
        double.on(method, times=9, status=403)
    assert "denies access, for obs://bucket/a: ask the owner" in refusal(
        connection(double.endpoint)
    )


def test_an_expired_token_is_told(double: S3Double):  # noqa: F811
    for method in ("HEAD", "GET", "PUT"):
        double.on(method, times=9, status=400, code="ExpiredToken")
    message = refusal(connection(double.endpoint, security_token=TOKEN))
    assert "fetch new temporary credentials" in message


def test_a_missing_bucket_is_told(double: S3Double):  # noqa: F811
    message = refusal(connection(double.endpoint), "obs://absent/a")
    assert "has no such bucket, for obs://absent/a: check its name" in message


def test_a_wrong_region_is_told(double: S3Double):  # noqa: F811
    for method in ("HEAD", "GET", "PUT"):
        double.on(method, times=99, status=400, code="AuthorizationHeaderMalformed")
    message = refusal(connection(double.endpoint, region="cn-east-2"))
    assert "is not where this bucket is" in message
    assert "check OBS_ENDPOINT" in message


def test_a_region_that_the_server_names_is_signed_with(settings: Settings):  # noqa: F811
    with (
        S3Double(region="cn-north-4") as double,  # noqa: F811
        closing(ObsBlobStore(connection(double.endpoint, region="cn-east-2"))) as store,  # noqa: F811
    ):
        blob = store.write(URI, b"x")
        assert store.stat(URI) == blob


def test_a_redirection_to_another_endpoint_is_told_and_not_followed(double: S3Double):  # noqa: F811
    elsewhere = {"Location": "http://192.0.2.1/", "x-amz-bucket-region": "cn-south-1"}
    for method in ("HEAD", "GET", "PUT"):
        double.on(method, times=99, status=301, code="PermanentRedirect", headers=elsewhere)
    message = refusal(connection(double.endpoint))
    assert "is not where this bucket is" in message
    assert "cn-south-1" in message


def test_an_unknown_refusal_has_its_code_and_not_the_servers_words(double: S3Double):  # noqa: F811
    for method in ("HEAD", "GET", "PUT"):
        double.on(method, times=9, status=405, code="MethodNotAllowed")
    assert "(MethodNotAllowed, status 405, request double)" in refusal(connection(double.endpoint))


@pytest.mark.parametrize(
    "given",
    [{}, {"OBS_ACCESS_KEY_ID": "AK"}, {"OBS_SECRET_ACCESS_KEY": SECRET_KEY}],
    ids=["none", "no secret", "no key"],
)
def test_missing_credentials_are_told_before_anything_is_sent(
    double: S3Double,  # noqa: F811
    settings: Settings,  # noqa: F811
    given: dict[str, str],
):
    for name, value in given.items():
        settings.setenv(name, value)
    message = refusal(ObsConnection(endpoint=double.endpoint))
    assert "no credentials for obs://bucket/a: set OBS_ACCESS_KEY_ID and OBS_SECRET" in message
    assert double.seen == []


@pytest.mark.parametrize(
    ("environment", "token"),
    [
        (("OBS_ENDPOINT", *HUAWEIS, "OBS_SECURITY_TOKEN"), True),
        (("S3_ENDPOINT", "ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SECURITY_TOKEN"), True),
        (("AWS_ENDPOINT_URL_S3", *AMAZONS, "AWS_SESSION_TOKEN"), True),
        (("AWS_ENDPOINT_URL", *AMAZONS), False),
    ],
    ids=["OBS", "MoXing", "AWS with a token", "AWS"],
)
def test_the_environment_may_say_who_and_where(
    settings: Settings,  # noqa: F811
    environment: tuple[str, ...],
    token: bool,
):
    with S3Double(token=TOKEN if token else None) as double:  # noqa: F811
        values = (double.endpoint, ACCESS_KEY, SECRET_KEY, TOKEN)
        for name, value in zip(environment, values, strict=False):
            settings.setenv(name, value)
        with closing(ObsBlobStore()) as store:
            assert store.write(URI, b"x").size == 1


def test_what_is_passed_counts_more_than_the_environment(
    double: S3Double,  # noqa: F811
    store: ObsBlobStore,  # noqa: F811
    settings: Settings,  # noqa: F811
):
    for name in (
        "OBS_ENDPOINT",
        "OBS_ACCESS_KEY_ID",
        "OBS_SECRET_ACCESS_KEY",
        "OBS_SECURITY_TOKEN",
    ):
        settings.setenv(name, "https://elsewhere.invalid")
    assert store.stat(URI) is None


@pytest.mark.parametrize(
    ("endpoint", "region", "host"),
    [
        ("https://obs.cn-east-2.myhuaweicloud.com", "cn-east-2", "bucket.obs.cn-east-2"),
        ("obs.cn-north-4.myhuaweicloud.com", "cn-north-4", "bucket.obs.cn-north-4"),
        ("https://minio.example:9000", "us-east-1", "bucket.minio.example:9000"),
        ("https://10.1.2.3", "us-east-1", "10.1.2.3/bucket/key"),
        ("http://localhost:9000", "us-east-1", "localhost:9000/bucket/key"),
        ("http://[::1]:9000", "us-east-1", "[::1]:9000/bucket/key"),
    ],
)
def test_the_endpoint_says_the_region_and_where_the_bucket_stands(
    settings: Settings,  # noqa: F811
    endpoint: str,
    region: str,
    host: str,
):
    with closing(connection(endpoint).client(URI)) as client:
        assert client.meta.region_name == region
        url = client.generate_presigned_url("get_object", {"Bucket": "bucket", "Key": "key"})
    assert f"://{host}" in url


def test_s3_without_an_endpoint_is_amazons_and_obs_is_an_error(settings: Settings):  # noqa: F811
    made = ObsConnection(access_key_id="AK", secret_access_key="SK", region="eu-central-1")
    with closing(made.client("s3://bucket/key")) as client:
        assert client.meta.endpoint_url == "https://s3.eu-central-1.amazonaws.com"
    with pytest.raises(BlobAccessError, match="no endpoint for obs://bucket/a: set OBS_ENDPOINT"):
        made.client(URI)


@pytest.mark.parametrize("endpoint", ["http://obs.example.com", "http://10.0.0.5:9000"])
def test_plain_http_to_another_machine_has_to_be_allowed(settings: Settings, endpoint: str):  # noqa: F811
    message = refusal(connection(endpoint))
    assert "is not encrypted" in message
    assert "GLM3SDK_OBS_ALLOW_HTTP=1" in message
    connection(endpoint, allow_http=True).client(URI).close()
    settings.setenv("GLM3SDK_OBS_ALLOW_HTTP", "1")
    connection(endpoint).client(URI).close()
    assert "is not encrypted" in refusal(connection(endpoint, allow_http=False))


@pytest.mark.parametrize(
    "endpoint",
    [f"https://user:{SECRET_KEY}@host", "ftp://host", "https://", "https://host:port", "https://h?q=1"],
)  # fmt: skip
def test_an_endpoint_that_is_none_is_refused_and_not_repeated(settings: Settings, endpoint: str):  # noqa: F811
    assert "is not https://HOST" in refusal(connection(endpoint))


@pytest.mark.parametrize(
    ("number", "error"),
    [(socket.EAI_NONAME, BlobAccessError), (socket.EAI_AGAIN, BlobUnavailableError)],
)
def test_a_name_that_does_not_resolve_is_told(
    settings: Settings,  # noqa: F811
    number: int,
    error: type[Exception],
):
    def getaddrinfo(host: Any, *rest: Any, **more: Any) -> Any:
        raise socket.gaierror(number, "Name or service not known")

    settings.setattr(socket, "getaddrinfo", getaddrinfo)
    with (
        closing(ObsBlobStore(connection("https://obs.example.com"))) as store,  # noqa: F811
        pytest.raises(error, match=r"no address is known for 'https://bucket\.obs\.example\.com"),
    ):
        store.stat(URI)


def test_a_port_where_nobody_listens_is_unavailable(settings: Settings):  # noqa: F811
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        with (
            closing(ObsBlobStore(connection(endpoint))) as store,
            pytest.raises(BlobUnavailableError, match=f"connection to {endpoint} failed"),
        ):
            store.stat(URI)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return write_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def secure(certificate: Certificate, settings: Settings) -> Iterator[S3Double]:  # noqa: F811
    with S3Double(tls=certificate.server_context()) as double:  # noqa: F811
        yield double


def test_a_certificate_of_nobody_known_is_refused(secure: S3Double):
    message = refusal(connection(secure.endpoint))
    assert "cannot be verified (self-signed certificate)" in message
    assert "set AWS_CA_BUNDLE" in message
    assert secure.seen == []


@pytest.mark.parametrize("by_environment", [False, True])
def test_an_authority_of_ones_own_is_trusted_when_named(
    secure: S3Double,
    certificate: Certificate,
    settings: Settings,  # noqa: F811
    by_environment: bool,
):
    path = str(certificate.certificate)
    if by_environment:
        settings.setenv("AWS_CA_BUNDLE", path)
    made = connection(secure.endpoint, ca_bundle=None if by_environment else path)
    with closing(ObsBlobStore(made, part_size=1000)) as store:  # noqa: F811
        blob = store.write(URI, bytes(3500))
        assert store.read(blob, 0, 3500) == bytes(3500)
    parts = [seen.headers for seen in secure.seen if seen.method == "PUT"]
    assert {headers["x-amz-content-sha256"] for headers in parts} == {"UNSIGNED-PAYLOAD"}
    assert all("content-md5" in headers for headers in parts)


def test_a_certificate_for_another_name_is_refused(secure: S3Double, certificate: Certificate):
    trusting = {"ca_bundle": str(certificate.certificate), "path_style": False}
    with bucket_names_resolve():
        message = refusal(connection(f"https://localhost:{secure.port}", **trusting))
    assert "cannot be verified (hostname 'bucket.localhost'" in message
    assert secure.seen == []


def test_a_bundle_that_is_not_there_is_told(settings: Settings, tmp_path: Path):  # noqa: F811
    settings.setenv("AWS_CA_BUNDLE", str(tmp_path / "none.pem"))
    assert "correct AWS_CA_BUNDLE" in refusal(connection("https://127.0.0.1:1"))


def test_a_server_without_tls_is_told(double: S3Double):  # noqa: F811
    message = refusal(connection(double.endpoint.replace("http:", "https:")))
    assert "does not speak TLS as expected" in message


def test_without_boto3_the_extra_is_named(settings: Settings):  # noqa: F811
    settings.setitem(sys.modules, "boto3", None)
    for act in (ObsBlobStore().stat, lambda uri: ObsBlobStore().write(uri, b"x")):
        with pytest.raises(BackendUnavailableError, match=r"pip install 'glm3sdk\[obs\]'"):
            act(URI)


def test_no_secret_is_logged(settings: Settings, caplog: pytest.LogCaptureFixture):  # noqa: F811
    caplog.set_level(logging.DEBUG)
    with S3Double(token=TOKEN) as double:  # noqa: F811
        made = connection(double.endpoint, security_token=TOKEN)
        with closing(ObsBlobStore(made, part_size=1000)) as store:
            store.read(store.write(URI, bytes(3500)), 0, 10)
    assert "bucket" in caplog.text
    assert SECRET_KEY not in caplog.text
    assert TOKEN not in caplog.text
