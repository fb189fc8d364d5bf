from __future__ import annotations

import json

import pytest
from click.testing import CliRunner, Result

from glm3sdk.cli.app import app

SMALL = ("--prompt", "8", "--new-tokens", "2", "--batch", "2", "--repeats", "1")


def glm3(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["bench", *arguments], prog_name="glm3")


def test_it_says_how_fast_a_model_is():
    result = glm3("tiny", "--runtime", "openvino", "--dtype", "int8", *SMALL)
    assert result.exit_code == 0, result.output
    first, *lines = result.stdout.splitlines()
    assert first.startswith("openvino, int8: loaded in ")
    names = ("prefill of 8 tokens", "time to first token", "decode", "decode of 2 together")
    assert [line.split("  ")[1].strip() for line in lines[:4]] == list(names)
    assert "  verifying three guesses" in result.stdout
    assert "peak memory" in result.stdout
    assert "GB/s that memory gives" in lines[-1]


def test_json_is_one_object():
    result = glm3("--runtime", "openvino", *SMALL, "--json")
    values = json.loads(result.stdout)
    assert (values["model"], values["runtime"], values["dtype"]) == ("tiny", "openvino", "float32")
    assert values["plan"] == {"prompt": 8, "new_tokens": 2, "batch": 2, "repeats": 1}
    for name in (
        "load_s",
        "decode_tokens_per_s",
        "batch_tokens_per_s",
        "bandwidth_share",
        "verify_steps",
    ):
        assert values[name] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--prompt", "2000"), "more than the 1024 that the model takes"),
        (("--runtime", "openvio"), "did you mean 'openvino'?"),
        (("/nowhere",), "no model directory '/nowhere'"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments: tuple[str, ...], message: str):
    result = (
        glm3(*arguments, "--runtime", "openvino")
        if "--runtime" not in arguments
        else glm3(*arguments)
    )
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("glm3: error: ")
    assert message in line
