"""`glm3 completion`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from glm3sdk.cli.completing import VARIABLE


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    r"""Print what makes SHELL complete commands, options, presets, models and files.

    \b
    Examples:
      eval "$(glm3 completion bash)"                   # in ~/.bashrc
      eval "$(glm3 completion zsh)"                    # in ~/.zshrc, after compinit
      glm3 completion fish > ~/.config/fish/completions/glm3.fish
    """
    kind = get_completion_class(shell)
    if kind is None:
        raise AssertionError(f"click knows bash, zsh and fish, not {shell}")
    # bash's own class would start a bash to ask for its version, which is not this shell's.
    script = kind(ctx.find_root().command, {}, "glm3", VARIABLE)
    click.echo(script.source_template % script.source_vars())
