"""From what a user calls a model to where it is fetched from."""

from __future__ import annotations

import os
import re
from pathlib import Path

import attrs

from glm3sdk.domain.published_models import PUBLISHED_MODELS, PublishedModel
from glm3sdk.errors import UnknownNameError, unknown_name

SOURCE_VARIABLE = "GLM3SDK_MODEL_SOURCE"

_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_REPOSITORY = re.compile(r"[A-Za-z0-9_][\w.-]*/[\w.-]+(@[^@]+)?", re.ASCII)


@attrs.frozen
class ModelRequest:
    """A model that is to be in the cache.

    Attributes:
        key: what it is called there: its published name, or its URI.
        uri: where it is fetched from, without a slash at its end.
        published: the model that it must be.
        insists: whether the caller chose the source.
        weights: whether the files of weights are wanted, or the others alone.
    """

    key: str
    uri: str
    published: PublishedModel | None = None
    insists: bool = False
    weights: bool = True


def is_uri(text: str) -> bool:
    """Whether a text has a URI's scheme."""
    return _URI.match(text) is not None


def is_repository(text: str) -> bool:
    """Whether a text could be the bare id of a repository on the Hugging Face hub."""
    return _REPOSITORY.fullmatch(text) is not None


def request_for(model: str, source: str | None = None) -> ModelRequest:
    """What to fetch.

    Args:
        model: a published name, a URI, a path, or a repository's bare id.
        source: where to fetch a published name from; None: `GLM3SDK_MODEL_SOURCE`/NAME, or
            its repository on the hub.

    Raises:
        UnknownNameError: it is none of these, or `source` goes with something else than a name.
    """
    published = PUBLISHED_MODELS.get(model)
    if published is None:
        if source is not None:
            raise unknown_name("published model", model, PUBLISHED_MODELS)
        uri = _uri_of(model)
        return ModelRequest(uri, uri)
    if source is not None:
        return ModelRequest(model, _uri_of(source), published, insists=True)
    if base := os.environ.get(SOURCE_VARIABLE):
        return ModelRequest(model, f"{_uri_of(base)}/{model}", published)
    return ModelRequest(model, f"hf://{published.repository}", published)


def _uri_of(text: str) -> str:
    if is_uri(text):
        if not text.partition("://")[2].strip("/"):
            raise UnknownNameError(
                f"{text!r} says how to fetch and not what: pass a URI such as obs://BUCKET/PREFIX"
            )
        if re.match("https?:", text, re.IGNORECASE) and re.search("[?#]", text):
            raise UnknownNameError(
                "an address with '?' or '#' names no directory; pass one whose files are found "
                "behind a slash"
            )
        return text.rstrip("/")
    if os.path.lexists(text):
        return Path(os.path.abspath(text)).as_uri()
    if is_repository(text):
        return f"hf://{text}"
    raise UnknownNameError(
        f"no model or source {text!r}: pass one of {', '.join(PUBLISHED_MODELS)}, a URI such as "
        "obs://BUCKET/PREFIX or hf://OWNER/REPOSITORY, or a path (tiny comes with the SDK)"
    )
