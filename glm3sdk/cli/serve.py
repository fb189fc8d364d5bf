"""`glm3 serve`."""

from __future__ import annotations

import ipaddress
import os
import signal
from contextlib import closing
from typing import TYPE_CHECKING

import click

from glm3sdk.cli.completing import complete_model, complete_runtime
from glm3sdk.cli.loading import RUNTIME_HELP, Loaders, loaded_service
from glm3sdk.errors import UserError

if TYPE_CHECKING:
    from glm3sdk.server import Listener
    from glm3sdk.services.chat import Glm3Service

API_KEY = "GLM3SDK_API_KEY"
"""The environment variable with the key; an argument would stand in every list of processes."""

_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")


@click.command()
@click.argument("model", default="tiny", shell_complete=complete_model)
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option(
    "--port",
    default=8000,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="0 takes a free one.",
)
@click.option(
    "--slots",
    default=8,
    show_default=True,
    type=click.IntRange(1, 4096),
    help="Replies that are written side by side.",
)
@click.option(
    "--max-queue",
    default=64,
    show_default=True,
    type=click.IntRange(0),
    help="Replies that may wait; further ones are refused with 429.",
)
@click.option("--runtime", metavar="NAME", shell_complete=complete_runtime, help=RUNTIME_HELP)
@click.option(
    "--max-seq-length",
    type=int,
    metavar="TOKENS",
    help="Most tokens of prompt and reply together.  [default: the model's, up to 8192]",
)
@click.option("--model-name", metavar="NAME", help="What clients call it.  [default: MODEL's name]")
@click.option(
    "--max-body-bytes",
    default=4 * 2**20,
    show_default=True,
    type=click.IntRange(1),
    help="The largest request.",
)
@click.option(
    "--request-timeout",
    default=600,
    show_default=True,
    type=click.IntRange(1),
    metavar="SECONDS",
    help="The longest time that a request may take.",
)
@click.option(
    "--grace",
    default=30,
    show_default=True,
    type=click.IntRange(0),
    metavar="SECONDS",
    help="How long running requests may go on after SIGTERM or Ctrl-C.",
)
@click.option(
    "--cors-origin",
    "cors_origins",
    multiple=True,
    metavar="ORIGIN",
    help="An origin whose pages may call the server; repeatable.",
)
@click.option(
    "--allow-host",
    "allowed_hosts",
    multiple=True,
    metavar="NAME",
    help="A further name in the Host header that is answered; repeatable.",
)
@click.option("--no-auth", is_flag=True, help="Serve other machines without an API key.")
@click.make_pass_decorator(Loaders, ensure=True)
def serve(
    loaders: Loaders,
    /,
    *,
    model: str,
    host: str,
    port: int,
    slots: int,
    max_queue: int,
    runtime: str | None,
    max_seq_length: int | None,
    model_name: str | None,
    max_body_bytes: int,
    request_timeout: int,
    grace: int,
    cors_origins: tuple[str, ...],
    allowed_hosts: tuple[str, ...],
    no_auth: bool,
) -> None:
    r"""Serve MODEL over HTTP in OpenAI's API.

    MODEL is a directory in Hugging Face layout, a name (tiny, glm3-6b), or a URI to fetch. It
    listens to this machine alone unless --host says otherwise; then clients need the key in
    the environment variable GLM3SDK_API_KEY. Ctrl-C or SIGTERM lets running replies finish.

    \b
    Examples:
      glm3 serve
      GLM3SDK_API_KEY=... glm3 serve /models/chatglm3-6b --host 0.0.0.0
    """
    from glm3sdk.server import Listener, create_app
    from glm3sdk.server.listening import bind

    api_key = os.environ.get(API_KEY) or None
    loopback = _is_loopback(host)
    if not loopback and api_key is None and not no_auth:
        raise UserError(
            f"--host {host!r} lets other machines in: set {API_KEY}, or pass --no-auth to serve "
            "everyone who reaches it"
        )
    hosts: set[str] | None = set(allowed_hosts) or None
    if loopback and api_key is None:
        # A page of another site could have its own name point here.
        hosts = {*_LOOPBACK_NAMES, host, *allowed_hosts}
    with (
        closing(bind(host, port)) as bound,
        loaded_service(
            loaders, model=model, runtime=runtime, max_seq_length=max_seq_length, slots=slots
        ) as service,
    ):
        app = create_app(
            service,
            model_name=model_name or _name_of(model),
            api_key=api_key,
            max_queue=max_queue,
            max_body_bytes=max_body_bytes,
            request_timeout_s=request_timeout,
            cors_origins=cors_origins,
            allowed_hosts=hosts,
        )
        _warm_up(service)
        _run(Listener(app, bound=bound, grace_s=grace), model)


def _run(listener: Listener, model: str) -> None:
    before = signal.signal(signal.SIGTERM, lambda *_: listener.stop())
    try:
        listener.start()
        click.echo(f"serving {model} at {listener.url}")
        try:
            listener.wait()
        except KeyboardInterrupt:
            listener.stop()
            listener.wait()  # a second Ctrl-C ends the program
    finally:
        signal.signal(signal.SIGTERM, before)


def _warm_up(service: Glm3Service) -> None:
    """Have the first graphs compiled before anybody waits for them."""
    from glm3sdk.domain.chat import Message
    from glm3sdk.domain.generation import GenerationConfig

    service.chat([Message.user("你好")], GenerationConfig(do_sample=False, max_new_tokens=2))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _name_of(model: str) -> str:
    return os.path.basename(model.rstrip("/")) or model
