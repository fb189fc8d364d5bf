"""Checks AWS signatures, version 4, in the Authorization header.

Written from the description of the protocol ("Authenticating Requests: Using the Authorization
Header (AWS Signature Version 4)" in the Amazon S3 API Reference), not from a client's code.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qsl, quote, unquote

_FIELDS = re.compile(
    r"AWS4-HMAC-SHA256 Credential=(?P<key>[^/,]+)/(?P<day>\d{8})/(?P<region>[^/,]+)/s3"
    r"/aws4_request, ?SignedHeaders=(?P<signed>[a-z0-9;-]+), ?Signature=(?P<signature>[0-9a-f]{64})"
)
SKEW = timedelta(minutes=15)


class RefusedSignatureError(Exception):
    """A request is not authentic.

    Attributes:
        status: of the answer.
        code: of the answer.
        details: further elements of the answer.
    """

    def __init__(self, status: int, code: str, **details: str) -> None:
        super().__init__(code)
        self.status, self.code, self.details = status, code, details


def check_signature(
    method: str,
    path: str,
    query: str,
    headers: Mapping[str, str],
    body: bytes | bytearray,
    *,
    secrets: Mapping[str, str],
    token: str | None,
    region: str | None,
    now: datetime,
) -> None:
    """Check one request, its parts as they came over the wire; header names in lower case."""
    match = _FIELDS.fullmatch(headers.get("authorization", ""))
    if match is None:
        raise RefusedSignatureError(403, "AccessDenied")
    if match["key"] not in secrets:
        raise RefusedSignatureError(403, "InvalidAccessKeyId", AWSAccessKeyId=match["key"])
    if headers.get("x-amz-security-token") != token:
        raise RefusedSignatureError(400, "InvalidToken")
    stamp = headers.get("x-amz-date", "")
    sent = datetime.strptime(stamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    if abs(now - sent) > SKEW:
        raise RefusedSignatureError(
            403,
            "RequestTimeTooSkewed",
            RequestTime=stamp,
            ServerTime=now.strftime("%Y-%m-%dT%H:%M:%SZ"),
            MaxAllowedSkewMilliseconds="900000",
        )
    if region is not None and match["region"] != region:
        raise RefusedSignatureError(400, "AuthorizationHeaderMalformed", Region=region)
    signed = match["signed"].split(";")
    must = {"host"} | {name for name in headers if name.startswith("x-amz-")}
    digest = headers.get("x-amz-content-sha256", "")
    wanted = _signature(match, stamp, secrets[match["key"]], method, path, query, headers, digest)
    authentic = hmac.compare_digest(wanted, match["signature"])
    if not authentic or not must <= set(signed) or not stamp.startswith(match["day"]):
        raise RefusedSignatureError(403, "SignatureDoesNotMatch")
    if digest not in ("UNSIGNED-PAYLOAD", hashlib.sha256(body).hexdigest()):
        raise RefusedSignatureError(400, "XAmzContentSHA256Mismatch")


def _signature(
    match: re.Match[str],
    stamp: str,
    secret: str,
    method: str,
    path: str,
    query: str,
    headers: Mapping[str, str],
    digest: str,
) -> str:
    pairs = parse_qsl(query, keep_blank_values=True)
    signed = match["signed"].split(";")
    lines = [
        method,
        quote(unquote(path), safe="/-_.~"),
        "&".join(sorted(f"{quote(k, safe='-_.~')}={quote(v, safe='-_.~')}" for k, v in pairs)),
        *(f"{name}:{' '.join(headers.get(name, '').split())}" for name in signed),
        "",
        match["signed"],
        digest,
    ]
    scope = f"{match['day']}/{match['region']}/s3/aws4_request"
    hashed = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    key = f"AWS4{secret}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashed}"
    return hmac.digest(key, text.encode(), "sha256").hex()
