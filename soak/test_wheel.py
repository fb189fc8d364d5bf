"""The release as a stranger gets it: built, looked into, and installed where nothing else is."""

from __future__ import annotations

import email
import email.policy
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
from packaging.metadata import Metadata
from packaging.requirements import Requirement

from glm3sdk import __version__

REPOSITORY = Path(__file__).resolve().parents[1]
# The bundled model is most of both; a cache or a checkpoint that slips in is more.
MOST_WHEEL_MB, MOST_SDIST_MB = 12, 14
NEEDED_GB = 6  # of an environment with MindSpore, and of pip's way there
# Of these nothing belongs into an installation.
FOREIGN = (".pyc", ".ckpt", ".log", ".so")

CHATS = """
import sys
import glm3sdk
from glm3sdk import Glm3Service, Message
from glm3sdk.testing import CharacterTokenizer, ScriptedRuntime

assert "site-packages" in glm3sdk.__file__, glm3sdk.__file__
service = Glm3Service(runtime=ScriptedRuntime("hello"), tokenizer=CharacterTokenizer())
with service:
    assert service.chat([Message.user("hi")]).content == "hello"
    deltas = list(service.stream_chat([Message.user("hi")]))
assert "".join(delta.content for delta in deltas) == "hello"
assert "mindspore" not in sys.modules
"""

CONVERTS = """
import sys
from glm3sdk import Glm3Config, convert
from glm3sdk.config.loader import load_config
from glm3sdk.testing import write_random_checkpoint

config = Glm3Config(num_layers=1, hidden_size=8, ffn_hidden_size=12, num_attention_heads=2,
                    kv_channels=4, multi_query_group_num=1, padded_vocab_size=16, seq_length=32)
write_random_checkpoint(sys.argv[1], config)
assert convert(sys.argv[1], sys.argv[2], to="mindspore").verified
assert load_config("finetune_2k").training
"""


@attrs.frozen
class Built:
    """What a release is made of."""

    wheel: Path
    sdist: Path


def said_by(*command: str | Path, code: int = 0, folder: Path = REPOSITORY) -> str:
    """What a process says that knows nothing of this checkout."""
    foreign = ("PYTHONPATH", "VIRTUAL_ENV", "GLM3SDK_CACHE_DIR")
    environment = {name: value for name, value in os.environ.items() if name not in foreign}
    done = subprocess.run(
        list(map(str, command)),
        cwd=folder,
        env={**environment, "XDG_CACHE_HOME": str(folder / "cache"), "PYTHONUTF8": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def built(folder: Path, *options: str, source: Path = REPOSITORY) -> Path:
    said_by(sys.executable, "-m", "build", *options, "--outdir", folder, source)
    return folder


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """`python -m build`: the source distribution, and the wheel that is built from it."""
    folder = built(tmp_path_factory.mktemp("dist"))
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    for path, most in ((wheel, MOST_WHEEL_MB), (sdist, MOST_SDIST_MB)):
        print(f"  {path.name}: {path.stat().st_size / 1e6:.2f} MB")
        assert path.stat().st_size < most * 1e6
    return Built(wheel, sdist)


@pytest.fixture(scope="module")
def installed(release: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of an environment with the wheel and what it asks for, without an extra."""
    return environment(tmp_path_factory.mktemp("core"), str(release.wheel))


def environment(folder: Path, *wanted: str) -> Path:
    said_by(sys.executable, "-m", "venv", folder, folder=folder)
    pip = (folder / "bin" / "python", "-m", "pip", "--disable-pip-version-check")
    said_by(*pip, "install", "--quiet", *wanted, folder=folder)
    said_by(*pip, "check", folder=folder)
    return folder / "bin"


def names(release: Built) -> tuple[set[str], set[str]]:
    with zipfile.ZipFile(release.wheel) as wheel, tarfile.open(release.sdist) as sdist:
        return set(wheel.namelist()), {name.partition("/")[2] for name in sdist.getnames()}


def package() -> Iterator[str]:
    """The package's files here."""
    for path in (REPOSITORY / "glm3sdk").rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            yield str(path.relative_to(REPOSITORY))


def test_the_wheel_holds_the_package_and_its_licence_and_nothing_else(release: Built) -> None:
    wheel, _ = names(release)
    about = f"glm3sdk-{__version__}.dist-info"
    wanted = {f"{about}/{n}" for n in ("METADATA", "RECORD", "WHEEL", "entry_points.txt")}
    assert wheel == {*package(), *wanted, f"{about}/licenses/LICENSE"}
    assert {"glm3sdk/py.typed", "glm3sdk/assets/tiny/tokenizer.model"} <= wheel
    assert not [name for name in wheel if name.endswith(FOREIGN) or "__pycache__" in name]


def test_the_sdist_holds_what_builds_and_tests_it(release: Built) -> None:
    wheel, sdist = names(release)
    assert {name for name in wheel if name.startswith("glm3sdk/")} <= sdist
    assert {"pyproject.toml", "Makefile", "README.md", "CHANGELOG.md", "LICENSE"} <= sdist
    assert {"tests/conftest.py", "soak/conftest.py", "docs/serving.md"} <= sdist
    hidden = [name for name in sdist if "/." in name or name.startswith(".")]
    assert set(hidden) <= {".gitignore"}
    assert not [name for name in sdist if "__pycache__" in name or name.endswith(".pyc")]


def test_the_wheel_of_the_sdist_is_the_wheel_of_the_checkout(
    release: Built, tmp_path: Path
) -> None:
    (again,) = built(tmp_path, "--wheel").glob("*.whl")
    with zipfile.ZipFile(release.wheel) as first, zipfile.ZipFile(again) as second:
        assert {n: first.read(n) for n in first.namelist()} == {
            n: second.read(n) for n in second.namelist()
        }


def test_the_metadata_is_what_an_index_takes(release: Built) -> None:
    with zipfile.ZipFile(release.wheel) as wheel:
        data = wheel.read(f"glm3sdk-{__version__}.dist-info/METADATA")
    metadata = Metadata.from_email(data, validate=True)
    assert str(metadata.version) == __version__
    assert metadata.license_expression == "Apache-2.0"
    assert metadata.description_content_type == "text/markdown"
    text = email.message_from_bytes(data, policy=email.policy.compat32).get_payload()
    # Relative links lead nowhere on an index's page; it shows them as text.
    assert "glm3sdk" in text
    core = [need for need in metadata.requires_dist if need.marker is None]
    assert core
    assert not [need for need in core if need.name in {"mindspore", "openvino", "torch"}]
    assert [need.specifier.contains("2.4") for need in core if need.name == "numpy"] == [True]
    assert all(isinstance(need, Requirement) for need in metadata.requires_dist)


@pytest.mark.timeout(900)
def test_the_core_runs_the_fakes_without_mindspore(installed: Path, tmp_path: Path) -> None:
    python = installed / "python"
    have = {each["name"]: each["version"] for each in packages(python)}
    print(f"  {len(have)} packages, numpy {have['numpy']}")
    assert not {"mindspore", "openvino", "torch", "boto3", "starlette"} & have.keys()
    said_by(python, "-W", "error", "-c", CHATS, folder=tmp_path)
    said_by(
        python, "-W", "error", "-c", CONVERTS, tmp_path / "m", tmp_path / "m.ckpt", folder=tmp_path
    )


@pytest.mark.timeout(900)
def test_the_command_says_what_is_lacking(installed: Path, tmp_path: Path) -> None:
    glm3 = installed / "glm3"
    assert __version__ in said_by(glm3, "--version", folder=tmp_path)
    assert "finetune" in said_by(glm3, "--help", folder=tmp_path)
    report = json.loads(said_by(glm3, "doctor", "--json", code=1, folder=tmp_path))
    assert "glm3sdk[mindspore]" in json.dumps(report)
    for command in (("chat", "hi"), ("serve", "tiny")):
        done = subprocess.run(
            [glm3, *command], capture_output=True, text=True, cwd=tmp_path, check=False
        )
        assert done.returncode == 2, done.stderr
        assert "pip install 'glm3sdk[" in done.stderr
        assert "Traceback" not in done.stderr


def packages(python: Path) -> list[dict[str, str]]:
    return json.loads(said_by(python, "-m", "pip", "list", "--format=json"))


@pytest.mark.timeout(1500)
def test_with_mindspore_the_bundled_model_answers(
    release: Built, tmp_path: Path, short: bool
) -> None:
    if short:
        pytest.skip("it downloads a gigabyte: in the long form")
    free = shutil.disk_usage(tmp_path).free / 1e9
    assert free > NEEDED_GB, f"{tmp_path} has {free:.1f} GB free; this takes {NEEDED_GB}"
    folder = tmp_path / "mindspore"
    folder.mkdir()
    try:
        place = environment(folder, f"glm3sdk[mindspore] @ {release.wheel.as_uri()}")
        said = said_by(place / "glm3", "chat", "--", "你好", folder=tmp_path)
    finally:
        shutil.rmtree(folder)
    assert said.strip()
    print(f"  {said.strip()[:60]}")
