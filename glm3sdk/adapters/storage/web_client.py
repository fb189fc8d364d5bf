"""One HTTP request, over verified TLS, to where its redirects lead; errors are of this package."""

from __future__ import annotations

import ipaddress
import re
import ssl
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NoReturn
from urllib.parse import unquote, urljoin

import urllib3
from urllib3.exceptions import HTTPError, LocationParseError
from urllib3.response import BaseHTTPResponse
from urllib3.util import Timeout, Url, make_headers, parse_url

from glm3sdk._version import __version__
from glm3sdk.adapters.offline import require_online
from glm3sdk.adapters.storage.retries import BusyError
from glm3sdk.adapters.storage.shown_uri import shown
from glm3sdk.errors import BlobAccessError, BlobUnavailableError, TransferError

_REDIRECTS = (301, 302, 303, 307, 308)
_MOST_REDIRECTS = 8
_LATER = (408, 425, 429)
_CONNECTIONS = 32
_DRAINED_BYTES = 64 * 1024  # more than this is not worth keeping a connection for


class WebClient:
    """A pool of connections. It may be used from several threads.

    Redirects are followed from https to https, and between servers of this machine. A proxy is
    taken from the environment (HTTPS_PROXY, NO_PROXY), never to this machine itself.

    Args:
        headers: sent along, but not to another server that a redirect leads to.
        ca_file: certificates to trust instead of the system's (SSL_CERT_FILE).
        connect_timeout_s: for a connection.
        read_timeout_s: for the next bytes.
    """

    def __init__(
        self,
        *,
        headers: Mapping[str, str],
        ca_file: str | None,
        connect_timeout_s: float,
        read_timeout_s: float,
    ) -> None:
        self._headers = dict(headers)
        self._settings: dict[str, Any] = {
            "num_pools": 16,
            "maxsize": _CONNECTIONS,
            "cert_reqs": "CERT_REQUIRED",
            "ca_certs": ca_file,
            "timeout": Timeout(connect=connect_timeout_s, read=read_timeout_s),
            "retries": False,
        }
        self._direct = urllib3.PoolManager(**self._settings)
        self._proxies: dict[str, urllib3.ProxyManager] = {}

    @contextmanager
    def request(
        self, method: str, uri: str, headers: Mapping[str, str]
    ) -> Iterator[BaseHTTPResponse]:
        """Send a request; the response's body is there to be read within the block.

        Raises:
            BlobUnavailableError: no answer, or the connection was lost, within the block too.
            BlobAccessError: the address or the certificate cannot be used.
            OfflineError: the offline switch is on.
        """
        require_online(shown(uri))
        with _translated(uri):
            response = self._followed(method, uri, headers)
            try:
                yield response
            finally:
                _finish(response)

    def _followed(self, method: str, uri: str, headers: Mapping[str, str]) -> BaseHTTPResponse:
        start = url = _parsed(uri)
        if not _may_follow(None, url):
            raise BlobAccessError(
                f"{shown(uri)} is not encrypted; pass an https:// address (http:// is for "
                "this machine itself)"
            )
        secret = dict(self._headers)
        if url.auth:
            secret |= make_headers(basic_auth=unquote(url.auth))
        plain = {"Accept-Encoding": "identity", "User-Agent": f"glm3sdk/{__version__}", **headers}
        for _ in range(_MOST_REDIRECTS + 1):
            same = (url.scheme, url.host, url.port) == (start.scheme, start.host, start.port)
            response = self._pool(url).urlopen(
                method,
                url._replace(auth=None, fragment=None).url,
                headers={**plain, **secret} if same else plain,
                preload_content=False,
                decode_content=False,
                redirect=False,
            )
            location = response.headers.get("Location")
            if response.status not in _REDIRECTS or not location:
                return response
            _finish(response)
            target = _parsed(urljoin(url.url, location))
            if not _may_follow(url, target):
                raise BlobAccessError(
                    f"{shown(uri)} redirects to {shown(target.url)}, which is not https; "
                    "pass another address"
                )
            url = target
        raise BlobAccessError(f"{shown(uri)} redirects more than {_MOST_REDIRECTS} times")

    def _pool(self, url: Url) -> urllib3.PoolManager:
        host, scheme = url.host or "", url.scheme or ""
        proxy = urllib.request.getproxies().get(scheme)
        if not proxy or _is_loopback(host) or urllib.request.proxy_bypass(host):
            return self._direct
        if "://" not in proxy:
            proxy = f"http://{proxy}"
        if proxy not in self._proxies:
            auth = parse_url(proxy).auth
            secret = make_headers(proxy_basic_auth=unquote(auth)) if auth else None
            self._proxies[proxy] = urllib3.ProxyManager(
                proxy, proxy_headers=secret, **self._settings
            )
        return self._proxies[proxy]


def refuse(uri: str, response: BaseHTTPResponse) -> NoReturn:
    """Raise the error that an unexpected status stands for."""
    status, said = response.status, f"{shown(uri)}: the server answered {response.status}"
    if response.reason:
        said += f" {response.reason[:100]}"
    if status in _LATER or status >= 500:
        wait = _retry_after(response.headers.get("Retry-After", ""))
        if wait is not None:
            raise BusyError(said, retry_after_s=wait)
        raise BlobUnavailableError(said)
    if status in (401, 403, 407):
        raise BlobAccessError(f"{said}; it needs permission: ask for it, or use another source")
    if 400 <= status < 500:
        raise BlobAccessError(f"{said}; check the address")
    raise TransferError(f"{said}, which is no answer to what was asked; use another source")


def _parsed(uri: str) -> Url:
    try:
        return parse_url(uri)
    except LocationParseError as exc:
        raise BlobAccessError(f"{shown(uri)} is no address: {exc}; pass https://HOST/PATH") from exc


def _may_follow(source: Url | None, target: Url) -> bool:
    if not target.host:
        return False
    if target.scheme == "http":
        came_safely = source is not None and source.scheme == "https"
        return _is_loopback(target.host) and not came_safely
    return target.scheme == "https"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _retry_after(text: str) -> float | None:
    """Seconds, from a number of them or a date."""
    if re.fullmatch(r"\d{1,9}", text.strip()):
        return float(text)
    try:
        return max((parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds(), 0.0)
    except (ValueError, TypeError):  # TypeError: a date without a zone
        return None


def _finish(response: BaseHTTPResponse) -> None:
    """Give the connection back if little is left to read, or else close it."""
    length = response.headers.get("Content-Length", "")
    try:
        if length.isdigit() and int(length) <= _DRAINED_BYTES:
            response.drain_conn()
            response.release_conn()
        else:
            rest = getattr(response, "length_remaining", None)
            (response.release_conn if rest == 0 else response.close)()
    except HTTPError:
        response.close()


@contextmanager
def _translated(uri: str) -> Iterator[None]:
    try:
        yield
    except (HTTPError, OSError) as exc:
        if (refusal := _certificate_error(exc)) is not None:
            raise BlobAccessError(
                f"{shown(uri)}: the server's certificate is not trusted ({refusal}); set "
                "SSL_CERT_FILE to the certificates of your own authority, or use another source"
            ) from exc
        raise BlobUnavailableError(f"{shown(uri)}: {_reason(exc)}") from exc


def _certificate_error(error: BaseException | None) -> str | None:
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        if isinstance(error, ssl.SSLCertVerificationError):
            return error.verify_message
        seen.append(error)
        inner = next((arg for arg in error.args if isinstance(arg, BaseException)), None)
        error = inner or error.__cause__ or error.__context__
    return None


def _reason(error: BaseException) -> str:
    """What a connection's error says, without the objects and the URLs that it names."""
    kinds = {
        "NameResolutionError": "its host name is not known here",
        "ConnectTimeoutError": "it did not take the connection in time",
        "NewConnectionError": "no connection could be made",
        "ReadTimeoutError": "nothing more came in time",
        "IncompleteRead": "the connection ended early",
        "ProtocolError": "the connection was lost",
        "ProxyError": "the proxy gave no connection",
        "SSLError": "the encrypted connection failed",
    }
    return kinds.get(type(error).__name__, type(error).__name__)
