"""What an object store refuses, as an error with a remedy.

The codes are those of the S3 protocol ("Error responses" in the Amazon S3 API Reference),
which OBS shares. A message names the code, never what the server wrote beside it: that may
hold what was sent.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar

from glm3sdk.adapters.storage.retries import BusyError
from glm3sdk.errors import BlobAccessError, BlobUnavailableError, Glm3Error, TransferError

if TYPE_CHECKING:
    from botocore.exceptions import BotoCoreError, ClientError

E = TypeVar("E", bound=BaseException)

KEYS = "OBS_ACCESS_KEY_ID and OBS_SECRET_ACCESS_KEY"
_ENDPOINT = "OBS_ENDPOINT (https://obs.REGION.myhuaweicloud.com) and OBS_REGION"
_REFUSALS = {
    "InvalidAccessKeyId": (
        "does not know the access key",
        f"check {KEYS}, and that they belong to the account of this endpoint",
    ),
    "SignatureDoesNotMatch": (
        "finds the signature wrong",
        "check the secret access key (OBS_SECRET_ACCESS_KEY) and the region (OBS_REGION)",
    ),
    "AccessDenied": (
        "denies access",
        "ask the owner of the bucket for permission to read, list and write there",
    ),
    "NoSuchBucket": (
        "has no such bucket",
        "check its name, and that OBS_ENDPOINT is of the region that it is in",
    ),
} | dict.fromkeys(
    ("InvalidToken", "ExpiredToken", "InvalidSecurityToken", "TokenRefreshRequired"),
    (
        "does not take the security token, or not any more",
        "fetch new temporary credentials and set OBS_SECURITY_TOKEN with its two keys",
    ),
)
_WRONG_PLACE = (
    *("PermanentRedirect", "TemporaryRedirect", "AuthorizationHeaderMalformed"),
    *("IllegalLocationConstraintException", "InvalidRegion", "301", "307", "400"),
)
# The last three: what arrived there is not what was sent.
_PASSING = (
    *("RequestTimeout", "SlowDown", "InternalError", "ServiceUnavailable", "OperationAborted"),
    *("BadDigest", "XAmzContentSHA256Mismatch", "IncompleteBody"),
)
_LOST = ("NoSuchUpload", "InvalidPart", "InvalidPartOrder")


class LostUploadError(TransferError):
    """A multipart upload is gone or has other parts than were sent; begin a new one."""


@contextmanager
def telling(uri: str, endpoint: str) -> Iterator[None]:
    """Turn what botocore raises in the block into errors of this package.

    Args:
        uri: what the request is about.
        endpoint: of the server, for the messages.

    Raises:
        BlobUnavailableError: another try may succeed.
        BlobAccessError: it will not until a person acts; the message says what to do.
        LostUploadError: a multipart upload has to begin again.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as exc:
        raise _of_answer(exc, uri, endpoint) from exc
    except BotoCoreError as exc:
        raise _of_client(exc, uri, endpoint) from exc


def _of_answer(exc: ClientError, uri: str, endpoint: str) -> Glm3Error:
    code = str(exc.response.get("Error", {}).get("Code", ""))
    metadata = exc.response.get("ResponseMetadata", {})
    status = int(metadata.get("HTTPStatusCode", 0))
    headers = metadata.get("HTTPHeaders", {})
    request = headers.get("x-amz-request-id") or headers.get("x-obs-request-id") or "none"
    facts = f"({code or 'no code'}, status {status}, request {request})"
    if code in _LOST:
        return LostUploadError(f"the upload of {uri} is not there any more {facts}; start it again")
    if status >= 500 or status in (408, 429) or code in _PASSING:
        message = f"{endpoint} cannot serve {uri} now {facts}; try again later"
        wait = headers.get("retry-after", "")
        if wait.isdecimal():
            return BusyError(message, retry_after_s=float(wait))
        return BlobUnavailableError(message)
    if code == "RequestTimeTooSkewed":
        return BlobAccessError(
            f"{endpoint} refuses {uri}: this machine's clock says {_now()}, the server's "
            f"{_server_time(exc, headers)}; set the clock of this machine (NTP) {facts}"
        )
    if code in _REFUSALS:
        what, remedy = _REFUSALS[code]
    elif code in _WRONG_PLACE or 300 <= status < 400:
        what, remedy = "is not where this bucket is", f"check {_ENDPOINT}"
        region = headers.get("x-amz-bucket-region") or exc.response.get("Error", {}).get("Region")
        remedy += f"; the bucket is in {region}" if region else ""
    elif status == 403:
        what, remedy = _REFUSALS["AccessDenied"]
    else:
        what, remedy = "refuses the request", "see the description of this code"
    return BlobAccessError(f"{endpoint} {what}, for {uri}: {remedy} {facts}")


def _of_client(exc: BotoCoreError, uri: str, endpoint: str) -> Glm3Error:
    import botocore.exceptions as theirs

    # Credentials come from a service of its own in some places (a container, SSO).
    credentials = (
        theirs.NoCredentialsError,
        theirs.PartialCredentialsError,
        theirs.CredentialRetrievalError,
        theirs.TokenRetrievalError,
        theirs.SSOError,
    )
    if isinstance(exc, credentials):
        return no_credentials(uri)
    if isinstance(exc, theirs.SSLError):
        return _of_tls(exc, uri, endpoint)
    if isinstance(exc, theirs.EndpointConnectionError):
        unresolved = _cause(exc, socket.gaierror)
        if unresolved is not None:
            message = (
                f"no address is known for {exc.kwargs.get('endpoint_url', endpoint)!r} "
                f"({unresolved.strerror}); check {_ENDPOINT}, the bucket's name and the network"
            )
            if unresolved.errno == socket.EAI_NONAME:
                return BlobAccessError(message)
            return BlobUnavailableError(message)
    passing = (
        theirs.ConnectionError,
        theirs.HTTPClientError,
        theirs.IncompleteReadError,
        theirs.ReadTimeoutError,
    )
    if isinstance(exc, passing):
        return BlobUnavailableError(
            f"the connection to {endpoint} failed for {uri} ({type(exc).__name__}); "
            "check the network and try again"
        )
    if isinstance(exc, theirs.ParamValidationError):
        return BlobAccessError(f"{uri!r} cannot be a blob there; pass obs://BUCKET/KEY")
    return BlobAccessError(f"{uri}: {exc}; check the settings of AWS that are in force here")


def no_credentials(uri: str) -> BlobAccessError:
    """The error for credentials that are missing or of which one half is."""
    return BlobAccessError(f"no credentials for {uri}: set {KEYS} (with OBS_SECURITY_TOKEN if any)")


def _of_tls(exc: BotoCoreError, uri: str, endpoint: str) -> Glm3Error:
    from urllib3.util.ssl_match_hostname import CertificateError

    unverified = _cause(exc, ssl.SSLCertVerificationError)
    other_name = _cause(exc, CertificateError)
    if unverified is not None or other_name is not None:
        reason = unverified.verify_message if unverified is not None else str(other_name)
        return BlobAccessError(
            f"the certificate of {endpoint} cannot be verified ({reason}); check OBS_ENDPOINT, "
            "or, if it is of an authority of your own, set AWS_CA_BUNDLE to the file with that "
            "authority's certificate"
        )
    if _cause(exc, ssl.SSLEOFError) is not None:
        return BlobUnavailableError(f"{endpoint} hung up while {uri} was asked for; try again")
    return BlobAccessError(
        f"{endpoint} does not speak TLS as expected ({_reason(exc)}); check OBS_ENDPOINT"
    )


def _reason(exc: BotoCoreError) -> str:
    failure = _cause(exc, ssl.SSLError)
    return str(failure.reason) if failure is not None else type(exc).__name__


def _cause(exc: BotoCoreError, kind: type[E]) -> E | None:
    """The error of that kind that botocore and urllib3 wrapped."""
    waiting: list[object] = [exc.kwargs.get("error"), exc]
    seen: set[int] = set()
    while waiting:
        error = waiting.pop()
        if isinstance(error, kind):
            return error
        if isinstance(error, BaseException) and id(error) not in seen:
            seen.add(id(error))
            waiting += [*error.args, error.__cause__, error.__context__]
    return None


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _server_time(exc: ClientError, headers: dict[str, str]) -> str:
    told = exc.response.get("Error", {}).get("ServerTime") or headers.get("date")
    return str(told or "another time")
