from __future__ import annotations

import types
from pathlib import Path

import pytest

from glm3sdk import load_runtime, load_service, load_tokenizer
from glm3sdk.bootstrap.runtimes import glm3_register_runtimes
from glm3sdk.errors import (
    BackendUnavailableError,
    InvalidCheckpointError,
    InvalidTokenizerError,
    OfflineError,
    PluginError,
    UnknownNameError,
)
from glm3sdk.hookspecs import hookimpl
from glm3sdk.plugins import plugin_manager, registered
from glm3sdk.testing import ScriptedRuntime


def plugin(name: str, **functions: object) -> types.ModuleType:
    module = types.ModuleType(name)
    for key, function in functions.items():
        setattr(module, key, hookimpl(function))
    return module


def scripted(**_: object) -> ScriptedRuntime:
    return ScriptedRuntime("hi")


def test_a_plugin_registers_a_runtime_like_the_built_in_ones():
    builtin = plugin("builtin", glm3_register_runtimes=glm3_register_runtimes)
    other = plugin("other", glm3_register_runtimes=lambda register: register("mine", scripted))
    factories = registered(
        plugin_manager([builtin, other], discover=False), "glm3_register_runtimes", "runtime"
    )
    assert sorted(factories) == ["mindspore-ascend", "mindspore-cpu", "mine", "openvino"]
    assert factories["mine"] is scripted


def test_a_name_that_two_plugins_register_is_an_error_that_names_both():
    def register_mine(register):
        register("mine", scripted)

    one = plugin("plugin_one", glm3_register_runtimes=register_mine)
    two = plugin("plugin_two", glm3_register_runtimes=register_mine)
    manager = plugin_manager([one, two], discover=False)
    with pytest.raises(PluginError, match="'mine' is registered twice") as raised:
        registered(manager, "glm3_register_runtimes", "runtime")
    assert "plugin_one" in str(raised.value)
    assert "plugin_two" in str(raised.value)


def test_a_plugin_with_a_misspelt_hook_is_refused():
    wrong = plugin("wrong", glm3_register_runtime=lambda register: None)
    with pytest.raises(PluginError, match="glm3_register_runtime"):
        plugin_manager([wrong], discover=False)


def test_an_unknown_runtime_names_the_likeliest():
    with pytest.raises(UnknownNameError, match="did you mean 'mindspore-cpu'"):
        load_runtime("tiny", runtime="mindspore-cp")


def test_ascend_without_a_card_says_what_it_needs():
    with pytest.raises(BackendUnavailableError, match="CANN"):
        load_service("tiny", runtime="mindspore-ascend")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("tinny", "did you mean 'tiny'"),
        ("/no/such/place", "no model directory '/no/such/place'"),
        ("glm3-6", "did you mean 'glm3-6b'"),
        ("THUDM/chatglm3-6b", "pass hf://THUDM/chatglm3-6b"),
    ],
)
def test_a_model_that_is_not_there_is_named(model: str, message: str):
    with pytest.raises(InvalidCheckpointError, match=message):
        load_service(model)


@pytest.mark.parametrize("model", ["glm3-6b", "obs://bucket/run", "hf://a/b", "https://host/x/"])
def test_what_would_be_fetched_is_refused_offline(model: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GLM3SDK_OFFLINE", "1")
    for load in (load_service, load_runtime, load_tokenizer):
        with pytest.raises(OfflineError, match="GLM3SDK_OFFLINE=1"):
            load(model)


def test_a_directory_without_a_tokenizer_is_refused(tmp_path: Path):
    with pytest.raises(InvalidTokenizerError, match=r"tokenizer\.model"):
        load_tokenizer(tmp_path)
    with pytest.raises(InvalidTokenizerError, match="no tokenizer at"):
        load_tokenizer(tmp_path / "nothing")
