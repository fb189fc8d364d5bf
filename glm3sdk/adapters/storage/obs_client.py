"""How an object store is reached: endpoint, credentials, TLS."""

from __future__ import annotations

import ipaddress
import logging
import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import attrs

from glm3sdk.adapters.storage.obs_errors import no_credentials
from glm3sdk.errors import BackendUnavailableError, BlobAccessError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

# Names of Huawei's SDKs, of MoXing on ModelArts, and of AWS.
_ENDPOINTS = ("OBS_ENDPOINT", "S3_ENDPOINT", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
_CREDENTIALS = (
    ("OBS_ACCESS_KEY_ID", "OBS_SECRET_ACCESS_KEY", "OBS_SECURITY_TOKEN"),
    ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SECURITY_TOKEN"),
)
_REGION_OF_HOST = re.compile(r"obs\.([a-z0-9-]+)\.my(?:huaweicloud|hwclouds)\.(?:com|eu)")
_TOKEN = re.compile(r"""(x-amz-security-token['"]?: ?(?:b?['"])?)[^\s'",]+""", re.IGNORECASE)
_CONNECTIONS = 32


class _TokensHidden(logging.Filter):
    """Takes security tokens out of what botocore logs when it is asked for everything."""

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if _TOKEN.search(message):
            record.msg, record.args = _TOKEN.sub(r"\1***", message), ()
        return True


_TOKENS_HIDDEN = _TokensHidden()


def _without_password(endpoint: str | None) -> str:
    return repr(endpoint and re.sub(r"//.*@", "//***@", endpoint))


@attrs.frozen(kw_only=True)
class ObsConnection:
    """Where an object store is and who asks. What is None comes from the environment.

    Attributes:
        endpoint: such as "https://obs.cn-east-2.myhuaweicloud.com"; for s3:// it may stay
            None, and then it is Amazon's.
        access_key_id: with `secret_access_key`, else the credentials that AWS's tools would use.
        secret_access_key: never shown.
        security_token: of temporary credentials; never shown.
        region: that is signed with; else read from an endpoint of OBS.
        ca_bundle: a file of certificates to trust in place of the usual ones.
        allow_http: whether a plain http:// endpoint may be on another machine.
        path_style: whether the bucket goes into the path and not into the host's name; by
            default only where the host is an address or "localhost".
        connect_timeout_s: for a connection.
        read_timeout_s: without a byte.
    """

    endpoint: str | None = attrs.field(default=None, repr=_without_password)
    access_key_id: str | None = attrs.field(default=None, repr=False)
    secret_access_key: str | None = attrs.field(default=None, repr=False)
    security_token: str | None = attrs.field(default=None, repr=False)
    region: str | None = None
    ca_bundle: str | None = None
    allow_http: bool | None = None
    path_style: bool | None = None
    connect_timeout_s: float = 10.0
    read_timeout_s: float = 60.0

    def client(self, uri: str) -> S3Client:
        """Build the client; nothing is sent.

        Args:
            uri: what it is for: messages name it, and for obs:// an endpoint must be known.

        Raises:
            BackendUnavailableError: boto3 is not installed.
            BlobAccessError: endpoint or credentials are missing or cannot be used.
        """
        try:
            import boto3
            from botocore.config import Config
        except ImportError as exc:
            raise BackendUnavailableError(
                f"{uri} needs boto3; install it with `pip install 'glm3sdk[obs]'`"
            ) from exc
        endpoint = self._endpoint(uri)
        host = urlsplit(endpoint).hostname if endpoint else None
        key, secret, token = self._credentials(uri)
        in_path = self.path_style
        if in_path is None:
            in_path = host is not None and (host == "localhost" or _address(host) is not None)
        for logger in ("botocore.auth", "botocore.endpoint"):
            logging.getLogger(logger).addFilter(_TOKENS_HIDDEN)
        session = boto3.session.Session(
            aws_access_key_id=key, aws_secret_access_key=secret, aws_session_token=token
        )
        if key is None and session.get_credentials() is None:
            raise no_credentials(uri)
        config = Config(
            signature_version="s3v4",
            s3={"addressing_style": "path" if in_path else "virtual"},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            retries={"total_max_attempts": 1},  # retries.py tries again, and says so
            connect_timeout=self.connect_timeout_s,
            read_timeout=self.read_timeout_s,
            max_pool_connections=_CONNECTIONS,
            tcp_keepalive=True,
        )
        return session.client(
            "s3",
            endpoint_url=endpoint,
            region_name=self._region(host) or session.region_name or "us-east-1",
            verify=self._ca_bundle(),
            config=config,
        )

    def _endpoint(self, uri: str) -> str | None:
        given = self.endpoint or next(filter(None, map(os.environ.get, _ENDPOINTS)), None)
        if given is None:
            if uri.startswith("s3:"):
                return None
            raise BlobAccessError(
                f"no endpoint for {uri}: set OBS_ENDPOINT, such as "
                "https://obs.cn-east-2.myhuaweicloud.com"
            )
        endpoint = given if "://" in given else f"https://{given}"
        try:
            parts = urlsplit(endpoint)
            host, _ = parts.hostname, parts.port
        except ValueError:
            host = None
        if not host or parts.scheme not in ("https", "http") or "@" in parts.netloc or parts.query:
            # Not shown: what stands before an @ is a password.
            raise BlobAccessError(
                "the endpoint of the object store is not https://HOST or https://HOST:PORT; "
                "correct OBS_ENDPOINT"
            )
        if parts.scheme == "http" and not _is_loopback(host) and not self._may_use_http():
            raise BlobAccessError(
                f"{endpoint} is not encrypted: others could read and change what is sent; use "
                "https://, or, on a private network, set GLM3SDK_OBS_ALLOW_HTTP=1"
            )
        return endpoint

    def _may_use_http(self) -> bool:
        if self.allow_http is not None:
            return self.allow_http
        return os.environ.get("GLM3SDK_OBS_ALLOW_HTTP", "") == "1"

    def _credentials(self, uri: str) -> tuple[str | None, str | None, str | None]:
        if self.access_key_id or self.secret_access_key:
            found = (self.access_key_id, self.secret_access_key, self.security_token)
        else:
            found = _first_credentials(os.environ)
        if (found[0] is None) != (found[1] is None):
            raise no_credentials(uri)
        return found

    def _region(self, host: str | None) -> str | None:
        told = self.region or os.environ.get("OBS_REGION")
        match = _REGION_OF_HOST.fullmatch(host or "")
        return told or (match[1] if match else os.environ.get("AWS_REGION")) or None

    def _ca_bundle(self) -> str | None:
        path = self.ca_bundle or os.environ.get("AWS_CA_BUNDLE") or None
        if path is not None and not os.path.exists(path):
            raise BlobAccessError(
                f"there are no certificates at {path}; correct AWS_CA_BUNDLE, or unset it to "
                "trust the usual authorities"
            )
        return path


def _first_credentials(environ: Mapping[str, str]) -> tuple[str | None, str | None, str | None]:
    for names in _CREDENTIALS:
        key, secret, token = (environ.get(name) or None for name in names)
        if key or secret:
            return key, secret, token
    return None, None, None


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _is_loopback(host: str) -> bool:
    address = _address(host)
    if address is None:
        return host == "localhost" or host.endswith(".localhost")
    return address.is_loopback
