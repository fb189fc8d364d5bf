"""Every block of code in the documentation runs, or says why it cannot."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click import UsageError
from documentation.commands import Line, check, lines_of, run
from documentation.pages import Block, pages, parse, read_blocks
from servers.obs_stores import without_settings
from servers.s3_double import ACCESS_KEY, SECRET_KEY, S3Double

from glm3sdk.adapters.cache_folder import cache_folder
from glm3sdk.errors import Glm3Error

SHELL = ("sh", "console", "setup")
# What every Python block of a page prints, where the page is about that.
PRINTED = {"docs/serving.md": "你好"}
LANGUAGES = {*SHELL, "python", "json", "jsonl", "yaml", "toml", "text"}


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """The current directory, with a cache of its own and `obs://` on this machine."""
    here, cache = tmp_path / "here", tmp_path / "cache"
    here.mkdir()
    cache.mkdir()
    if kept := cache_folder():
        graphs = kept / "graphs"
        graphs.mkdir(parents=True, exist_ok=True)  # nothing is kept behind a link to nowhere
        (cache / "graphs").symlink_to(graphs)  # compiled once for all tests
    with S3Double() as double, without_settings() as patch:
        patch.chdir(here)
        patch.syspath_prepend(here)
        patch.setenv("GLM3SDK_CACHE_DIR", str(cache))
        patch.setenv("OBS_ENDPOINT", double.endpoint)
        patch.setenv("OBS_ACCESS_KEY_ID", ACCESS_KEY)
        patch.setenv("OBS_SECRET_ACCESS_KEY", SECRET_KEY)
        yield here


TRANSLATIONS = [page for page in pages() if page.endswith(".zh.md")]


@pytest.mark.parametrize("page", TRANSLATIONS)
def test_a_translation_has_the_code_of_the_original(page: str):
    original = page.replace(".zh.md", ".md")
    assert [untranslated(block) for block in read_blocks(page)] == [
        untranslated(block) for block in read_blocks(original)
    ]


def untranslated(block: Block) -> tuple[str, str, str | None, str | None]:
    """A block without its comments."""
    return (block.language, re.sub(r" +# .*", "", block.code), block.file, block.not_run)


@pytest.mark.parametrize(
    "page", [page for page in pages() if page not in TRANSLATIONS and read_blocks(page)]
)
def test_the_code_of_a_page_runs_in_order_in_one_directory(
    page: str, folder: Path, capfd: pytest.CaptureFixture[str]
):
    namespace: dict[str, Any] = {"__name__": "__main__"}
    blocks = read_blocks(page)
    for block in blocks:
        try:
            follow(block, folder, namespace)
        except BaseException as exc:
            exc.add_note(f"in the block at {block.place}")
            raise
        printed = capfd.readouterr()
        if block.language == "python":  # readers who copy it see no warning either
            assert printed.err == "", block.place
            assert PRINTED.get(page, "") in printed.out, block.place
    used = " ".join(block.code for block in blocks if block.language in SHELL)
    written = [block.file for block in blocks if block.language == "python" and block.file]
    assert all(name in used for name in written), f"a file of {written} is never run"


def test_a_process_of_a_reader_s_own_warns_of_nothing(folder: Path):
    # pytest's process has a log level for MindSpore and has imported a lot.
    code = "\n".join(each.code for each in read_blocks("README.md") if each.language == "python")
    done = subprocess.run(
        [sys.executable, "-X", "utf8", "-c", code],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if name != "GLOG_v"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def follow(block: Block, folder: Path, namespace: dict[str, Any]) -> None:
    """Do what a reader of the block would do."""
    assert block.language in LANGUAGES, f"{block.language!r} is none of {sorted(LANGUAGES)}"
    if block.file:
        path = folder / block.file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.code, "utf-8")
    check_syntax(block)
    if block.not_run:
        return
    if block.language in SHELL:
        commands = [Line(block.code)] if block.language == "setup" else lines_of(block)
        for line in commands:
            run(line, folder)
    elif block.language == "python" and not block.file:
        exec(compile(block.code, block.place, "exec"), namespace)


def check_syntax(block: Block) -> None:
    """What holds without running anything; an example in YAML may be a part of a file."""
    if block.language in ("sh", "console"):
        for line in lines_of(block):
            check(line.command)
    elif block.language == "python":
        check_imports(block.code)
    elif block.language == "yaml":
        yaml.safe_load(block.code)
    elif block.language == "toml":
        tomllib.loads(block.code)
    elif block.language == "json":
        json.loads(block.code)
    elif block.language == "jsonl":
        for line in block.code.splitlines():
            json.loads(line)


def check_imports(code: str) -> None:
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "glm3sdk":
            module = importlib.import_module(node.module or "")
            for name in node.names:
                assert hasattr(module, name.name), f"{node.module} has no {name.name}"


EXAMPLE = "<!-- not run: it is an example -->\n"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("```\nglm3 chat\n```", "'' is none of"),
        ("```python\nassert 1 == 2, 'no sum'\n```", "no sum"),
        (EXAMPLE + "```python\nfrom glm3sdk import nothing\n```", "glm3sdk has no nothing"),
        ("```sh\nglm3 tokenize --text 你好 --model tiny\n```", "No such option"),
        (EXAMPLE + "```sh\nglm3 chat --modle tiny\n```", "No such option"),
        (EXAMPLE + "```sh\nglm3 launch -- glm3 finetun run.yaml\n```", "no command 'finetun'"),
        (EXAMPLE + "```sh\npip install 'glm3sdk[nothing]'\n```", "no extras"),
        (EXAMPLE + "```sh\nmake coffee\n```", "make has no coffee"),
        ("```console\n$ echo 1\n2\n```", "but the page shows"),
        ("```sh\nfalse\n```", "exit code 1"),
        ("```json\n{\n```", "Expecting property name"),
    ],
)
def test_what_is_wrong_with_a_block_is_noticed(text: str, complaint: str, folder: Path):
    (block,) = parse(text, "page")
    with pytest.raises((AssertionError, ValueError, UsageError, Glm3Error), match=complaint):
        follow(block, folder, {})


def test_a_titled_block_becomes_a_file_and_a_set_up_runs(tmp_path: Path):
    set_up = "<!-- setup: echo 1 > one -->\n"
    titled = '- a list\n\n    ```yaml title="run.yaml"\n    a: 1\n    ```\n'
    for block in parse(set_up + titled, "page"):
        follow(block, tmp_path, {})
    assert (tmp_path / "one").read_text() == "1\n"
    assert (tmp_path / "run.yaml").read_text() == "a: 1\n"


def test_output_is_compared_and_dots_stand_for_any(tmp_path: Path):
    (block,) = parse("```console\n$ echo 12 && echo 34\n1...\n34\n```", "page")
    follow(block, tmp_path, {})
