"""Plugins that are installed: found, named, left out where they are broken."""

from __future__ import annotations

import json
import os
import types
from pathlib import Path
from typing import Any

import pytest
from plugin_site import add_distribution, run

from glm3sdk import load_service, load_tokenizer, load_tools
from glm3sdk.bootstrap import metric_sinks, tokenizers, tools, topology
from glm3sdk.bootstrap.metric_sinks import find_sinks, open_sinks
from glm3sdk.bootstrap.plugin_list import HOOKS, list_plugins
from glm3sdk.bootstrap.topology import load_topology
from glm3sdk.errors import CheckpointWriteError, PluginError, UnknownNameError
from glm3sdk.hookspecs import Hooks, hookimpl
from glm3sdk.plugins import plugin_manager, registrations
from glm3sdk.testing import CharacterTokenizer

TOOL = """
from glm3sdk.hookspecs import hookimpl

@hookimpl
def glm3_register_tools(register):
    register("shout", lambda: shout)

def shout(text: str) -> str:
    "Say it loudly."
    return text.upper()
"""


def having(patch: pytest.MonkeyPatch, module: types.ModuleType, **hooks: object) -> None:
    """Let a module of the bootstrap find a plugin, as if one were installed."""
    plugin = types.ModuleType("a_plugin")
    for name, function in hooks.items():
        setattr(plugin, name, hookimpl(function, specname=name))
    patch.setattr(
        module,
        "plugin_manager",
        lambda builtins: plugin_manager([*builtins, plugin], discover=False),
    )


def test_every_hook_has_a_kind_that_is_listed() -> None:
    assert set(HOOKS.values()) == {name for name in vars(Hooks) if name.startswith("glm3_")}


def test_what_ships_is_listed_as_ours() -> None:
    found = list_plugins()
    assert {part.owner.distribution for part in found.parts} >= {"glm3sdk"}
    ours = {(part.kind, part.name) for part in found.parts if part.owner.distribution == "glm3sdk"}
    assert ours >= {
        ("runtime", "mindspore-cpu"),
        ("runtime", "mindspore-ascend"),
        ("tokenizer", "sentencepiece"),
        ("blob store", "obs"),
        ("checkpoint store", "file"),
        ("topology", "cpu"),
        ("metric sink", "csv"),
        ("metric sink", "tensorboard"),
        ("tool", "interpreter"),
    }


def test_a_tokenizer_of_a_plugin_is_chosen_by_its_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    opened: list[Path] = []

    def open_tokenizer(path: Path) -> CharacterTokenizer:
        opened.append(path)
        return CharacterTokenizer()

    having(
        monkeypatch,
        tokenizers,
        glm3_register_tokenizers=lambda register: register("characters", open_tokenizer),
    )
    assert isinstance(load_tokenizer(tmp_path, tokenizer="characters"), CharacterTokenizer)
    assert opened == [tmp_path]
    for load in (load_tokenizer, load_service):
        with pytest.raises(UnknownNameError, match="did you mean 'characters'"):
            load("tiny", tokenizer="charcters")


def test_a_topology_of_a_plugin_is_chosen_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    made = object()
    having(
        monkeypatch,
        topology,
        glm3_register_topologies=lambda register: register("mine", lambda *, environ: made),
    )
    assert load_topology("mine", environ={}) is made


def test_tools_are_made_when_they_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def shout(text: str) -> str:
        """Say it loudly."""
        return text.upper()

    made: list[str] = []

    def make() -> object:
        made.append("shout")
        return shout

    having(monkeypatch, tools, glm3_register_tools=lambda register: register("shout", make))
    assert [tool.spec.name for tool in load_tools(["interpreter"])] == ["interpreter"]
    assert made == []
    (found,) = load_tools(["shout"])
    assert (found.spec.description, found(text="hi")) == ("Say it loudly.", "HI")
    with pytest.raises(UnknownNameError, match=r"no tool 'shuot'.*did you mean 'shout'"):
        load_tools(["shuot"])


def test_a_tool_that_cannot_be_made_is_an_error_that_names_its_owner(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken() -> Any:
        raise RuntimeError("no licence")

    having(monkeypatch, tools, glm3_register_tools=lambda register: register("mine", broken))
    with pytest.raises(PluginError, match=r"tool 'mine' of a_plugin.*no licence"):
        load_tools(["mine"])


def test_a_hook_that_raises_is_an_error_that_names_its_owner() -> None:
    def register_tools(register: object) -> None:
        raise KeyError("HOME")

    plugin = types.ModuleType("a_plugin")
    plugin.glm3_register_tools = hookimpl(  # type: ignore[attr-defined]  # a module's
        register_tools, specname="glm3_register_tools"
    )
    manager = plugin_manager([plugin], discover=False)
    with pytest.raises(PluginError, match=r"a_plugin fails in glm3_register_tools: KeyError"):
        registrations(manager, "glm3_register_tools", "tool")
    assert registrations(manager, "glm3_register_runtimes", "runtime") == {}


class Failing:
    """A sink that fails as a plugin may."""

    def __init__(self, error: Exception) -> None:
        self.error, self.recorded, self.closed = error, 0, 0

    def record(self, step: int, values: object) -> None:
        self.recorded += 1
        raise self.error

    def close(self) -> None:
        self.closed += 1


def sinks_with(patch: pytest.MonkeyPatch, sink: object, folder: Path) -> Any:
    having(
        patch,
        metric_sinks,
        glm3_register_metric_sinks=lambda register: register("mine", lambda **_: sink),
    )
    return open_sinks(find_sinks(["csv", "mine"]), folder=folder, uri="obs://b/r", first_step=1)


def test_a_sink_that_fails_is_given_up_and_the_run_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    failing = Failing(OSError("connection lost"))
    with sinks_with(monkeypatch, failing, tmp_path) as sinks:
        for step in (1, 2):
            for sink in sinks:
                sink.record(step, {"loss": 2.0})
    assert (failing.recorded, failing.closed) == (1, 1)
    assert "metric sink 'mine' of a_plugin failed at step 1" in caplog.text
    assert (tmp_path / "metrics.csv").read_text(encoding="utf-8").count("\n") == 3


def test_an_error_of_ours_in_a_sink_ends_the_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    failing = Failing(CheckpointWriteError("the disk is full"))
    with (
        pytest.raises(CheckpointWriteError),
        sinks_with(monkeypatch, failing, tmp_path) as (_, mine),
    ):
        mine.record(1, {"loss": 2.0})
    assert failing.closed == 1


def test_an_unknown_sink_names_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match=r"no metric sink 'tensorbord'.*'tensorboard'"):
        find_sinks(["tensorbord"])


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Two plugins: one that works, one that cannot be imported."""
    add_distribution(tmp_path / "a", "shouting", TOOL)
    add_distribution(tmp_path / "b", "broken-plugin", "import no_such_module_4711\n")
    return Path(os.pathsep.join([str(tmp_path / "a"), str(tmp_path / "b")]))


def glm3(*arguments: str, site: Path, cache: Path) -> tuple[int, str, list[str]]:
    done = run("-m", "glm3sdk", *arguments, path=site, cache=cache)
    return done.returncode, done.stdout, done.stderr.strip().splitlines()


USE = """
import sys
from glm3sdk import load_tools
print(load_tools(["shout"])[0](text="hi"))
"""


def test_a_broken_plugin_does_not_stop_what_has_nothing_to_do_with_it(
    site: Path, tmp_path: Path
) -> None:
    done = run("-c", USE, path=site, cache=tmp_path)
    assert (done.returncode, done.stdout) == (0, "HI\n")
    (warning,) = done.stderr.strip().splitlines()
    assert "plugin 'mine' of broken-plugin 1.0 cannot be used" in warning
    assert "no_such_module_4711" in warning
    for command in (("--help",), ("tokenize", "--help")):
        code, said, errors = glm3(*command, site=site, cache=tmp_path)
        assert (code, errors) == (0, [])
        assert "Usage" in said


def test_a_name_that_nobody_has_may_be_a_broken_plugin_s(site: Path, tmp_path: Path) -> None:
    code, _, errors = glm3("shuot", site=site, cache=tmp_path)
    assert code == 2
    assert errors[-1].startswith("glm3: error: no command 'shuot'")
    assert "plugin 'mine' of broken-plugin 1.0 cannot be used" in errors[-1]


def test_plugins_are_listed_with_their_distributions_and_what_is_broken(
    site: Path, tmp_path: Path
) -> None:
    code, said, _ = glm3("plugins", "--json", site=site, cache=tmp_path)
    found = json.loads(said)
    assert code == 1
    shout = {"kind": "tool", "name": "shout", "distribution": "shouting", "version": "1.0"}
    assert shout in found["parts"]
    assert {"kind": "command", "name": "chat"}.items() <= next(
        part for part in found["parts"] if part["name"] == "chat"
    ).items()
    (problem,) = found["problems"]
    assert "broken-plugin 1.0" in problem


COMMAND = """
from glm3sdk.hookspecs import hookimpl

@hookimpl
def glm3_register_commands(register):
    import click
    register("{name}", lambda: click.Command("{name}", callback=lambda: click.echo("mine")))
"""


def test_a_command_that_glm3_has_is_not_taken_over(tmp_path: Path) -> None:
    add_distribution(tmp_path / "a", "taking-over", COMMAND.format(name="tokenize"))
    code, said, errors = glm3("plugins", site=tmp_path / "a", cache=tmp_path)
    assert code == 1
    assert "runtime" in said  # the other kinds are listed
    (line,) = errors
    assert "command 'tokenize' is registered twice" in line
    assert "taking-over 1.0" in line
    assert "glm3sdk 0." in line
    assert glm3("tokenize", "hi", site=tmp_path / "a", cache=tmp_path)[1] != "mine\n"


def test_plugins_whose_entry_points_have_one_name_are_both_there(tmp_path: Path) -> None:
    add_distribution(tmp_path / "a", "plugin-one", COMMAND.format(name="one"))
    add_distribution(tmp_path / "b", "plugin-two", COMMAND.format(name="two"))
    site = Path(os.pathsep.join([str(tmp_path / "a"), str(tmp_path / "b")]))
    assert glm3("two", site=site, cache=tmp_path) == (0, "mine\n", [])
    assert glm3("one", site=site, cache=tmp_path) == (0, "mine\n", [])
