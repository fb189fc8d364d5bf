"""URIs as they may be shown and kept: without what gives access."""

from __future__ import annotations

import re

_USER = re.compile(r"(?<=://)[^/?#]*@")
_QUERY = re.compile(r"\?[^#]*")


def shown(uri: str) -> str:
    """A URI without its user and password, and, of http(s), its query: that may be a signature."""
    plain = _USER.sub("", uri, count=1)
    if plain.partition("://")[0].lower() in ("http", "https"):
        plain = _QUERY.sub("?...", plain, count=1)
    return plain
