"""`glm3 plugins`."""

from __future__ import annotations

import json

import click


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def plugins(ctx: click.Context, as_json: bool) -> None:
    r"""List what can be chosen by name, and the distribution that brought it.

    Exit code 1 where an installed plugin cannot be used or two register one name.

    \b
    Example:
      glm3 plugins --json
    """
    from glm3sdk.bootstrap.plugin_list import list_plugins
    from glm3sdk.cli import own_commands

    found = list_plugins(own_commands)
    if as_json:
        values = {
            "parts": [
                {
                    "kind": part.kind,
                    "name": part.name,
                    "distribution": part.owner.distribution,
                    "version": part.owner.version,
                }
                for part in found.parts
            ],
            "problems": [*found.problems, *map(str, found.broken)],
        }
        click.echo(json.dumps(values, ensure_ascii=False))
    else:
        names = [(part.kind, part.name, str(part.owner)) for part in found.parts]
        wide = [max(len(row[column]) for row in names) for column in range(2)]
        for kind, name, owner in names:
            click.echo(f"{kind:{wide[0]}}  {name:{wide[1]}}  {owner}")
        for problem in found.problems:  # a broken plugin was told of when it was found
            click.echo(f"problem: {problem}", err=True)
    if found.problems or found.broken:
        ctx.exit(1)
