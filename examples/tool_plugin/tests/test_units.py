"""The tool, called as a model would call it."""

from __future__ import annotations

import pytest
from click.testing import CliRunner
from glm3sdk_units import convert_length, glm3_register_commands

from glm3sdk import Glm3Service, Message, tool
from glm3sdk.testing import CharacterTokenizer, ScriptedRuntime


def ask(arguments: str) -> list[str]:
    """A model that calls the tool, then says something; gives what it was told on the way."""
    call = Message.assistant(f"```python\ntool_call({arguments})\n```", metadata="convert_length")
    runtime = ScriptedRuntime(call, "done")
    with Glm3Service(runtime=runtime, tokenizer=CharacterTokenizer()) as service:
        reply = service.run_tools([Message.user("how far?")], [convert_length])
    assert reply.content == "done"
    return [each.content for each in reply.history if each.role.value == "observation"]


def test_the_model_gets_the_length() -> None:
    """A mile is 1609.344 metres by definition."""
    assert ask("value=3, unit='mile', to='km'") == ["4.82803 km"]


def test_a_unit_that_is_not_known_comes_back_as_an_observation() -> None:
    """So that the model can try again."""
    (told,) = ask("value=3, unit='parsec', to='km'")
    assert "no unit 'parsec'" in told


def test_the_model_is_told_what_the_docstring_says() -> None:
    """The units are the only ones that it may write."""
    spec = tool(convert_length).spec
    assert spec.description == "Convert a length from one unit into another."
    assert spec.parameters["properties"]["to"]["enum"] == ["m", "km", "mile", "里"]


@pytest.mark.parametrize(("arguments", "said"), [(["3", "mile", "km"], "4.82803 km\n")])
def test_the_command_says_it_too(arguments: list[str], said: str) -> None:
    """As `glm3 convert-length`."""
    made = {}
    glm3_register_commands(lambda name, factory: made.update({name: factory()}))
    assert CliRunner().invoke(made["convert-length"], arguments).stdout == said
