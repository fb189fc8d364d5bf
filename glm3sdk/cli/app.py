"""The commands of `glm3` together."""

from __future__ import annotations

import click

from glm3sdk._version import __version__
from glm3sdk.cli.bench import bench
from glm3sdk.cli.cache import cache
from glm3sdk.cli.chat import chat
from glm3sdk.cli.checkpoint import checkpoint
from glm3sdk.cli.completion import completion
from glm3sdk.cli.convert import convert
from glm3sdk.cli.dataset import dataset
from glm3sdk.cli.doctor import doctor
from glm3sdk.cli.evaluate import evaluate
from glm3sdk.cli.finetune import finetune
from glm3sdk.cli.generate import generate
from glm3sdk.cli.launch import launch
from glm3sdk.cli.plan import plan
from glm3sdk.cli.plugin_commands import ExtensibleGroup
from glm3sdk.cli.plugins import plugins
from glm3sdk.cli.pull import pull
from glm3sdk.cli.rank_table import rank_table
from glm3sdk.cli.serve import serve
from glm3sdk.cli.tokenize import tokenize


@click.group(
    cls=ExtensibleGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Plugins may add commands: `glm3 plugins` lists them.",
)
@click.version_option(__version__, prog_name="glm3")
def app() -> None:
    """ChatGLM3-6B: chat, raw completions, tokens and finetuning, on Ascend or a plain CPU."""


for _command in (
    bench,
    cache,
    chat,
    checkpoint,
    completion,
    convert,
    dataset,
    doctor,
    evaluate,
    finetune,
    generate,
    launch,
    plan,
    plugins,
    pull,
    rank_table,
    serve,
    tokenize,
):
    app.add_command(_command)
