"""`glm3 tokenize`."""

from __future__ import annotations

import json

import click

from glm3sdk.cli.completing import complete_model_or_file
from glm3sdk.cli.input import read_json_list
from glm3sdk.cli.loading import Loaders
from glm3sdk.errors import InvalidMessageError, InvalidToolError


@click.command()
@click.option(
    "--tokenizer",
    "path",
    default="tiny",
    show_default=True,
    metavar="PATH",
    shell_complete=complete_model_or_file,
    help="A tokenizer.model, a directory that holds one, or the bundled model's name.",
)
@click.option("--text", metavar="TEXT", help="Text to encode, without special tokens.")
@click.option(
    "--messages",
    "file",
    type=click.Path(),
    metavar="FILE",
    help="A JSON list of messages to encode.",
)
@click.make_pass_decorator(Loaders, ensure=True)
def tokenize(loaders: Loaders, /, *, path: str, text: str | None, file: str | None) -> None:
    r"""Print the token ids of a text or a conversation.

    One JSON object on one line: {"input_ids": [...], "pieces": [...]}.

    \b
    Examples:
      glm3 tokenize --text 你好
      glm3 tokenize --messages talk.json --tokenizer /models/chatglm3-6b
    """
    if file is None and text is not None:
        tokenizer = loaders.tokenizer(path)
        input_ids = tokenizer.encode(text)
    elif file is not None and text is None:
        from glm3sdk.services.encoding import encode_chat

        messages = read_json_list(file, "messages")
        if not messages:
            raise InvalidMessageError(f"{file}: the history is empty; write at least one message")
        tokenizer = loaders.tokenizer(path)
        try:
            input_ids = encode_chat(messages, tokenizer)
        except (InvalidMessageError, InvalidToolError) as exc:
            raise type(exc)(f"{file}: {exc}") from exc
    else:
        raise click.UsageError("pass either --text or --messages")
    pieces = [tokenizer.piece(token_id) for token_id in input_ids]
    click.echo(json.dumps({"input_ids": input_ids, "pieces": pieces}, ensure_ascii=False))
