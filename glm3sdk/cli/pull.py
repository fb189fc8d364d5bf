"""`glm3 pull`."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING

import click

from glm3sdk.cli.completing import complete_model
from glm3sdk.cli.fetching import fetching
from glm3sdk.cli.progress import size_text

if TYPE_CHECKING:  # it imports numpy, and `glm3 --help` is to be quick
    from glm3sdk.bootstrap.pulling import PulledModel


_WORDS = {
    "built-in": "the sha256 of every file of weights is the published one",
    "source": "the sha256 of every file of weights is the one that the source gives",
    "none": "none were known, so only names, shapes and lengths were checked; the sha256 found "
    "were recorded",
}


@click.command()
@click.argument("model", shell_complete=complete_model)
@click.option(
    "--from", "source", metavar="URI", help="Fetch it from there, such as obs://bucket/models/glm3."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def pull(model: str, source: str | None, as_json: bool) -> None:
    r"""Fetch MODEL into the cache, verified; a fetch that was cut off goes on where it stopped.

    MODEL is a name (glm3-6b, glm3-6b-32k, glm3-6b-128k), or a URI: obs://BUCKET/PREFIX,
    hf://OWNER/REPOSITORY, https://HOST/PATH or file:///DIRECTORY.

    \b
    Examples:
      glm3 pull glm3-6b
      glm3 pull glm3-6b --from obs://bucket/models/chatglm3-6b --json
    """
    from glm3sdk.bootstrap.pulling import pull as pulled

    with fetching(model) as progress:
        result = pulled(model, source=source, progress=progress)
    if as_json:
        click.echo(json.dumps(result.to_json(), ensure_ascii=False))
    else:
        _show(model, result)


def _show(model: str, result: PulledModel) -> None:
    verb = "is already there:" if result.already_there else "fetched:"
    click.echo(
        f"{model} {verb} {result.path} ({len(result.files)} files, {size_text(result.bytes)})"
    )
    click.echo(f"digests: {_WORDS[result.digests]}")
    click.echo(f"chat with it: {shlex.join(['glm3', 'chat', '--model', model])}")
