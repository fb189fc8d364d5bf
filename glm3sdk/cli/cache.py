"""`glm3 cache`."""

from __future__ import annotations

import json
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from glm3sdk.cli.failures import ReportingGroup
from glm3sdk.cli.progress import size_text

if TYPE_CHECKING:  # it imports numpy, and `glm3 --help` is to be quick
    from glm3sdk.adapters.storage.cache_layout import CachedModel


@click.group(cls=ReportingGroup)
def cache() -> None:
    """Look at the models that were fetched, and remove them."""


@cache.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON list.")
def list_models(as_json: bool) -> None:
    r"""List the models in the cache.

    \b
    Example:
      glm3 cache list --json
    """
    from glm3sdk.bootstrap.cached import cached_models

    models = cached_models()
    if as_json:
        click.echo(json.dumps([_json(model) for model in models], ensure_ascii=False))
        return
    for model in models:
        used = datetime.fromtimestamp(model.last_used).strftime("%Y-%m-%d %H:%M")
        digests = "digests compared" if model.digests_known else "no digests known"
        came = "" if model.source == model.key else f", from {model.source}"
        click.echo(f"{model.key}: {size_text(model.size)}, used {used}, {digests}{came}")
        click.echo(f"  {model.path}")
    if not models:
        click.echo("no models in the cache", err=True)


@cache.command()
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Every model.")
@click.option("--dry-run", is_flag=True, help="Only tell which models would go.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def prune(names: tuple[str, ...], everything: bool, dry_run: bool, as_json: bool) -> None:
    r"""Remove models by their NAME in `glm3 cache list`, and what no other model needs.

    Without a NAME only leftovers go: fetches that were not finished, and files that no model
    has. What another process uses stays.

    \b
    Examples:
      glm3 cache prune glm3-6b
      glm3 cache prune --all --dry-run
    """
    from glm3sdk.bootstrap.cached import cached_models, prune_models

    if everything and names:
        raise click.UsageError("pass either NAME or --all")
    models = cached_models(None if everything else names)
    if dry_run:
        if as_json:
            click.echo(json.dumps({"would_remove": [model.key for model in models]}))
            return
        for model in models:
            click.echo(f"would remove {model.key}: {size_text(model.size)}")
        return
    pruned = prune_models([model.key for model in models])
    removed = [model.key for model in models if model.key not in pruned.in_use]
    if as_json:
        values = {"removed": removed, "in_use": [*pruned.in_use], "freed_bytes": pruned.freed}
        click.echo(json.dumps(values))
        return
    for key in removed:
        click.echo(f"removed {key}")
    for key in pruned.in_use:
        click.echo(f"kept {key}: another process uses it", err=True)
    click.echo(f"freed {size_text(pruned.freed)}")


def _json(model: CachedModel) -> dict[str, Any]:
    return {
        "key": model.key,
        "path": str(model.path),
        "source": model.source,
        "bytes": model.size,
        "digests_known": model.digests_known,
        "last_used": model.last_used,
    }
