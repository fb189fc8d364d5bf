from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from adapters.saved_value import MODEL, STORE, save, value_of
from hypothesis import given
from hypothesis import strategies as st

from glm3sdk.adapters.storage import whole_directory
from glm3sdk.errors import CheckpointWriteError, Glm3Error, InvalidCheckpointError


def hidden(directory: Path) -> list[str]:
    return [name for name in os.listdir(directory) if name.startswith(".")]


def change_manifest(path: Path, change: Callable[[dict], object]) -> None:
    content = json.loads((path / "manifest.json").read_text())
    change(content)
    (path / "manifest.json").write_text(json.dumps(content))


def refuse(path: Path, words: str) -> None:
    with pytest.raises(InvalidCheckpointError, match=words) as raised:
        STORE.open(str(path))
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_manifest_says_what_sha256sum_says(tmp_path: Path) -> None:
    save(tmp_path / "a")
    content = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert content["version"] == 1
    assert content["files"].keys() == {MODEL, "value.json"}
    for name, entry in content["files"].items():
        file = tmp_path / "a" / name
        printed = subprocess.run(["sha256sum", file], capture_output=True, text=True, check=True)
        assert entry == {"size": file.stat().st_size, "sha256": printed.stdout.split()[0]}


def test_a_checkpoint_is_a_directory_of_its_files_and_nothing_is_left_beside_it(
    tmp_path: Path,
) -> None:
    for _ in range(2):
        save(tmp_path / "run" / "a")
        assert sorted(os.listdir(tmp_path / "run" / "a")) == ["manifest.json", MODEL, "value.json"]
        assert os.listdir(tmp_path / "run") == ["a"]


@pytest.mark.parametrize("uri", ["obs://bucket/run", "file://host/run", "", "a\0b"])
def test_a_uri_that_is_not_local_is_refused(uri: str) -> None:
    for use in (STORE.open, STORE.create, STORE.list, STORE.delete):
        with pytest.raises(InvalidCheckpointError, match="pass"):
            use(uri)


@pytest.mark.parametrize("name", [".hidden", ".a.tmp-1-0123abcd"])
def test_a_hidden_name_is_the_stores_own(tmp_path: Path, name: str) -> None:
    for use in (STORE.open, STORE.create, STORE.delete):
        with pytest.raises(InvalidCheckpointError, match="begin with a dot"):
            use(str(tmp_path / name))
    assert os.listdir(tmp_path) == []


def test_a_directory_that_is_no_checkpoint_is_never_replaced(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    for path in (mine, mine / "thesis.txt"):
        with pytest.raises(InvalidCheckpointError, match="is not a checkpoint; move it away"):
            STORE.create(str(path))
        with pytest.raises(InvalidCheckpointError, match="no checkpoint at"):
            STORE.delete(str(path))
    writer = STORE.create(str(tmp_path / "late"))
    mine.rename(tmp_path / "late")
    with pytest.raises(InvalidCheckpointError, match="is not a checkpoint; move it away"):
        writer.commit()
    assert (tmp_path / "late" / "thesis.txt").read_text() == "years of work"
    assert os.listdir(tmp_path) == ["late"]


def test_an_empty_directory_is_taken(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    save(tmp_path / "a", 2.0)
    assert value_of(tmp_path / "a") == 2.0


def test_a_linked_checkpoint_is_read_and_replacing_it_leaves_its_target(tmp_path: Path) -> None:
    save(tmp_path / "step-1", 1.0)
    (tmp_path / "latest").symlink_to("step-1")
    assert value_of(tmp_path / "latest") == 1.0
    save(tmp_path / "latest", 2.0)
    assert (value_of(tmp_path / "latest"), value_of(tmp_path / "step-1")) == (2.0, 1.0)
    (tmp_path / "other").symlink_to("step-1")
    STORE.delete(str(tmp_path / "other"))
    assert value_of(tmp_path / "step-1") == 1.0
    assert hidden(tmp_path) == []


def test_a_directory_without_a_manifest_is_no_checkpoint(tmp_path: Path) -> None:
    save(tmp_path / "a")
    (tmp_path / "a" / "manifest.json").unlink()
    assert STORE.list(str(tmp_path)) == ()
    refuse(tmp_path / "a", r"no checkpoint at .*manifest\.json")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.update(version=2), "version 2, and this glm3sdk reads version 1; upgrade"),
        (lambda c: c.update(version="1"), "is not an object"),
        (lambda c: c.update(version=True), "is not an object"),
        (lambda c: c.update(more=1), "is not an object"),
        (lambda c: c.pop("files"), "is not an object"),
        (lambda c: c.update(files=[]), "names no files"),
        (lambda c: c["files"].update({"../x": c["files"][MODEL]}), r"names '\.\./x'"),
        (lambda c: c["files"].update({"/etc/passwd": c["files"][MODEL]}), "names '/etc/passwd'"),
        (lambda c: c["files"].update({"manifest.json": c["files"][MODEL]}), "names 'manifest"),
        (lambda c: c["files"].update({MODEL: 3}), "size and the sha256 of"),
        (lambda c: c["files"][MODEL].update(more=1), "size and the sha256 of"),
        (lambda c: c["files"][MODEL].update(size=-1), "the size -1"),
        (lambda c: c["files"][MODEL].update(size=True), "the size True"),
        (lambda c: c["files"][MODEL].update(size=1.5), r"the size 1\.5"),
        (lambda c: c["files"][MODEL].update(sha256="A" * 64), "the sha256 'AAAA"),
        (lambda c: c["files"][MODEL].update(size=7), "bytes and manifest.json says 7"),
        (lambda c: c["files"].update(gone=c["files"][MODEL]), "gone is missing"),
    ],
)
def test_a_manifest_that_is_not_one_is_refused(
    tmp_path: Path, change: Callable[[dict], object], words: str
) -> None:
    save(tmp_path / "a")
    change_manifest(tmp_path / "a", change)
    refuse(tmp_path / "a", words)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"\xff", "is not UTF-8"),
        (b"null", "is not an object"),
        (b'{"version": 1, "version": 1, "files": {}}', "a name is there twice"),
    ],
)
def test_a_manifest_of_other_bytes_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    save(tmp_path / "a")
    (tmp_path / "a" / "manifest.json").write_bytes(content)
    refuse(tmp_path / "a", words)


@given(st.data())
def test_no_change_of_a_byte_goes_unnoticed(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("flip") / "a"
    save(path, size=4)
    file = path / data.draw(st.sampled_from(sorted(os.listdir(path))))
    content = bytearray(file.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    file.write_bytes(content)
    try:
        assert value_of(path) == 1.0  # a blank of the manifest, say
        assert file.name == "manifest.json"
    except InvalidCheckpointError as exc:
        assert str(path) in str(exc)  # noqa: PT017  # both ends are right, as long as one is


def test_a_flipped_byte_is_found_where_the_file_is_named(tmp_path: Path) -> None:
    save(tmp_path / "a")
    for name, read in ((MODEL, "t"), ("value.json", None)):
        content = (tmp_path / "a" / name).read_bytes()
        (tmp_path / "a" / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        opened = STORE.open(str(tmp_path / "a"))
        with pytest.raises(InvalidCheckpointError, match=f"{name} is not what was written"):
            opened.verify()
        with pytest.raises(InvalidCheckpointError, match=f"{name} is not what was written"):
            opened.read_file(name)
        assert read is None or opened.read(read).shape == (1000,)
        (tmp_path / "a" / name).write_bytes(content)


@pytest.mark.parametrize("place", ["link", "directory", "pipe"])
def test_only_plain_files_are_read(tmp_path: Path, place: str) -> None:
    save(tmp_path / "a")
    file = tmp_path / "a" / "value.json"
    (tmp_path / "copy").write_bytes(file.read_bytes())
    file.unlink()
    if place == "link":
        file.symlink_to(tmp_path / "copy")
    elif place == "directory":
        file.mkdir()
    else:
        os.mkfifo(file)
    refuse(tmp_path / "a", r"value\.json is not a plain file")


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "a")
    (tmp_path / "a" / "b.safetensors").write_bytes((tmp_path / "a" / MODEL).read_bytes())
    assert list(STORE.open(str(tmp_path / "a")).tensors) == ["t"]  # the manifest knows no b
    change_manifest(
        tmp_path / "a", lambda c: c["files"].update({"b.safetensors": c["files"][MODEL]})
    )
    refuse(tmp_path / "a", "tensor t is both in")


def test_an_open_checkpoint_that_was_replaced_says_so(tmp_path: Path) -> None:
    save(tmp_path / "a", 1.0)
    opened = STORE.open(str(tmp_path / "a"))
    save(tmp_path / "a", 2.0)
    uses = [lambda: opened.read("t"), lambda: opened.read_file("value.json"), opened.verify]
    for use in uses:
        with pytest.raises(InvalidCheckpointError, match="replaced or removed since"):
            use()
    STORE.delete(str(tmp_path / "a"))
    for use in uses:
        with pytest.raises(InvalidCheckpointError, match="replaced or removed since"):
            use()


def test_what_a_dead_process_left_is_removed_and_what_a_live_one_writes_stays(
    tmp_path: Path,
) -> None:
    alive = STORE.create(str(tmp_path / "alive"))
    (dead_name,) = {".dead.tmp-1-0123abcd"}
    # Named like the temporary directory of a process that runs (1), and not locked by any.
    (tmp_path / dead_name).mkdir()
    (tmp_path / dead_name / MODEL).write_bytes(b"half")
    others = [".mine", ".mine.tmp-x", ".mine.tmp-12-xyz", "..tmp-12-0123abcd", ".m.new-12-0123abcd"]
    for name in others:
        (tmp_path / name).mkdir()
    save(tmp_path / "a")
    assert dead_name not in os.listdir(tmp_path)
    assert set(others) < set(os.listdir(tmp_path))
    alive.add_file("x.json", b"{}")
    alive.commit()
    assert STORE.open(str(tmp_path / "alive")).files == ("x.json",)


def test_below_a_checkpoint_a_writer_leaves_alone_what_others_write(tmp_path: Path) -> None:
    # Ranks on other hosts: their locks may not be seen here.
    save(tmp_path / "shards")
    for name in (".rank_0.tmp-1-0123abcd", ".rank_1.tmp-1-0123abcd"):
        (tmp_path / "shards" / name).mkdir()
    save(tmp_path / "shards" / "rank_1")
    assert hidden(tmp_path / "shards") == [".rank_0.tmp-1-0123abcd"]


def test_a_writer_that_is_forgotten_leaves_nothing(tmp_path: Path) -> None:
    writer = STORE.create(str(tmp_path / "a"))
    writer.add_file("x.json", b"{}")
    del writer
    assert os.listdir(tmp_path) == []


@pytest.fixture(scope="module")
def syscalls() -> tuple[str, ...]:
    return ("mkdir", "open", "rename", "fsync", "unlink", "rmdir")


class Interrupted(Exception):
    """Not an OSError: nobody handles it."""


def failing_at(
    monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], step: int, error: Exception
) -> Callable[[], bool]:
    """Make the step-th of these calls raise, once; returns whether it did."""
    count = 0

    def wrap(original: Callable) -> Callable:
        def call(*args, **kwargs):
            nonlocal count
            count += 1
            if count == step:
                raise error
            return original(*args, **kwargs)

        return call

    for name in names:
        monkeypatch.setattr(os, name, wrap(getattr(os, name)))
    return lambda: count >= step


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), Interrupted()])
def test_a_commit_that_fails_at_any_step_leaves_the_old_or_the_new(
    tmp_path: Path, syscalls: tuple[str, ...], error: Exception
) -> None:
    outcomes = []
    for step in range(1, 100):
        path = tmp_path / str(step) / "a"
        save(path, 1.0)
        with pytest.MonkeyPatch.context() as patch:
            reached = failing_at(patch, syscalls, step, error)
            try:
                save(path, 2.0)
                failed = False
            except (Glm3Error, Interrupted) as exc:
                assert isinstance(exc, (CheckpointWriteError, Interrupted))  # noqa: PT017
                failed = True
        outcomes.append((failed, value_of(path)))
        assert STORE.list(str(path.parent)) == (str(path),)
        save(path, 3.0)
        assert value_of(path) == 3.0
        assert hidden(path.parent) == []
        if not reached():
            break
    else:
        pytest.fail("the commit takes more steps than were tried")
    assert len(outcomes) > 15
    assert outcomes[-1] == (False, 2.0)
    assert outcomes[0] == (True, 1.0)
    assert (False, 1.0) not in outcomes, "a commit that succeeded was lost"


# Forks a child for each step that dies there as if by kill -9, in a process without threads.
KILLED_AT_EACH_STEP = """
import json, os, pathlib, sys
sys.path[:0] = sys.argv[2:]
from saved_value import STORE, save, value_of

root, names = pathlib.Path(sys.argv[1]), ("mkdir", "open", "rename", "fsync", "unlink", "rmdir")
outcomes = []
for what in ("save", "delete", "delete what was moved away"):
    for step in range(1, 100):
        path = root / f"{what}-{step}" / "a"
        save(path, 1.0)
        if what.endswith("away"):
            path.rename(path.parent / ".a.old-7-0123abcd")
        child = os.fork()
        if child == 0:
            count = 0
            def wrap(original):
                def call(*args, **kwargs):
                    global count
                    count += 1
                    if count == step:
                        os._exit(9)
                    return original(*args, **kwargs)
                return call
            for name in names:
                setattr(os, name, wrap(getattr(os, name)))
            save(path, 2.0) if what == "save" else STORE.delete(str(path))
            os._exit(0)
        killed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        listed = STORE.list(str(path.parent))
        assert listed in ((), (str(path),)), listed
        outcomes.append([what, killed, value_of(path) if listed else None])
        save(path, 3.0)
        assert value_of(path) == 3.0
        assert os.listdir(path.parent) == ["a"], step
        if not killed:
            break
print(json.dumps(outcomes))
"""


def test_a_process_killed_at_any_step_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED_AT_EACH_STEP, str(tmp_path), str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    outcomes = json.loads(done.stdout)
    saved = [(killed, value) for what, killed, value in outcomes if what == "save"]
    assert len(saved) > 15
    assert set(saved) == {(9, 1.0), (9, 2.0), (0, 2.0)}
    for deletion in ("delete", "delete what was moved away"):
        deleted = [(killed, value) for what, killed, value in outcomes if what == deletion]
        assert len(deleted) > 4
        assert set(deleted) == {(9, 1.0), (9, None), (0, None)}


SAVES_FOR_EVER = """
import itertools, sys
sys.path[:0] = sys.argv[2:]
from saved_value import STORE, save

print("ready", flush=True)
for number in itertools.count():
    save(f"{sys.argv[1]}/step-{number % 3}", float(number), size=30_000)
    if number % 7 == 6:
        STORE.delete(f"{sys.argv[1]}/step-{number % 3}")
"""


@pytest.fixture
def saving(tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen]]:
    started: list[subprocess.Popen] = []

    def start() -> subprocess.Popen:
        command = [sys.executable, "-c", SAVES_FOR_EVER, str(tmp_path), str(Path(__file__).parent)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def check_everything_listed(directory: Path) -> int:
    listed = STORE.list(str(directory))
    for uri in listed:
        assert value_of(uri) % 3 == int(uri[-1])
    return len(listed)


# Forked from one process, which has imported everything and has no threads.
KILLED_AT_RANDOM = """
import itertools, os, random, select, signal, sys
sys.path[:0] = sys.argv[2:]
from saved_value import STORE, save, value_of

rng, found = random.Random(20), 0
for _ in range(40):
    progress, saved = os.pipe()
    child = os.fork()
    if child == 0:
        for number in itertools.count():
            uri = f"{sys.argv[1]}/step-{number % 3}"
            save(uri, float(number), size=30_000)
            os.write(saved, b".")
            if number % 7 == 6:
                STORE.delete(uri)
    # Some whole checkpoints, however slow the machine is, and then a moment of the next one.
    for _ in range(rng.randint(1, 9)):
        assert os.read(progress, 1)
    select.select([], [], [], rng.uniform(0.0, 0.01))
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    os.close(progress)
    os.close(saved)
    for uri in STORE.list(sys.argv[1]):
        assert value_of(uri) % 3 == int(uri[-1])
        found += 1
print(found)
"""


def test_whenever_it_is_killed_everything_listed_is_whole(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED_AT_RANDOM, str(tmp_path), str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 40
    save(tmp_path / "last")
    assert hidden(tmp_path) == []


def test_two_processes_may_write_the_same_checkpoints_while_a_third_reads(
    tmp_path: Path, saving: Callable[[], subprocess.Popen]
) -> None:
    writers = [saving(), saving()]
    read = 0
    while read < 50:  # the first looks find nothing yet
        assert all(writer.poll() is None for writer in writers)
        try:
            read += value_of(tmp_path / "step-1") >= 0
        except InvalidCheckpointError as exc:
            assert any(  # noqa: PT017  # which of them happens is chance
                words in str(exc) for words in ("replaced or removed since", "no checkpoint at")
            ), exc
    for writer in writers:
        writer.kill()
        writer.wait()
    assert check_everything_listed(tmp_path) > 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "glm3sdk-test", str(disk)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if done.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_leaves_the_old_checkpoint_and_its_room(small_disk: Path) -> None:
    save(small_disk / "a", 1.0)
    before = os.statvfs(small_disk).f_bfree
    with pytest.raises(CheckpointWriteError, match="No space left on device; free some space"):
        save(small_disk / "a", 2.0, size=1_000_000)
    assert value_of(small_disk / "a") == 1.0
    assert os.listdir(small_disk) == ["a"]
    assert os.statvfs(small_disk).f_bfree == before


def test_a_read_only_disk_is_named_and_still_read(small_disk: Path) -> None:
    save(small_disk / "a", 1.0)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for path in (small_disk / "a", small_disk / "b", small_disk / "run" / "c"):
        with pytest.raises(CheckpointWriteError, match="Read-only file system; mount it"):
            save(path)
    with pytest.raises(CheckpointWriteError, match="Read-only file system"):
        STORE.delete(str(small_disk / "a"))
    assert value_of(small_disk / "a") == 1.0


def test_a_limit_on_the_size_of_files_is_named(tmp_path: Path) -> None:
    # The limit belongs to a process, so this runs in its own.
    script = """
import resource, signal, sys
sys.path[:0] = sys.argv[2:]
from saved_value import save
from glm3sdk.errors import CheckpointWriteError

save(sys.argv[1] + "/a", 1.0)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    save(sys.argv[1] + "/a", 2.0, size=1_000_000)
except CheckpointWriteError as exc:
    print(exc)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "File too large; raise the limit" in done.stdout, done.stderr
    assert value_of(tmp_path / "a") == 1.0
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("errno", [13, 1])
def test_a_place_without_permission_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, errno: int
) -> None:
    # A test that runs as root is refused nothing, so the system's answer is played.
    def refuse_mkdir(*args: object, **kwargs: object) -> None:
        raise OSError(errno, os.strerror(errno))

    monkeypatch.setattr(os, "mkdir", refuse_mkdir)
    with pytest.raises(CheckpointWriteError, match="ask for permission") as raised:
        STORE.create(str(tmp_path / "a"))
    assert str(tmp_path / "a") in str(raised.value)


def test_a_name_that_is_too_long_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointWriteError, match="File name too long; pass a shorter name"):
        STORE.create(str(tmp_path / ("x" * 250)))


def test_the_newest_of_what_was_moved_away_is_given_back(tmp_path: Path) -> None:
    for number in (1, 2):
        save(tmp_path / "a", float(number))
        os.utime(tmp_path / "a" / "manifest.json", (number, number))
        (tmp_path / "a").rename(tmp_path / f".a.old-{number}-0123abc{3 - number}")
    assert STORE.list(str(tmp_path)) == (str(tmp_path / "a"),)
    assert value_of(tmp_path / "a") == 2.0
    save(tmp_path / "b")
    assert value_of(tmp_path / "a") == 2.0
    assert whole_directory.is_published(tmp_path / "a")
    assert hidden(tmp_path) == []


def test_what_was_moved_away_is_deleted_too(tmp_path: Path) -> None:
    save(tmp_path / "a", 1.0)
    (tmp_path / "a").rename(tmp_path / ".a.old-7-0123abcd")
    STORE.delete(str(tmp_path / "a"))
    assert STORE.list(str(tmp_path)) == ()
    assert os.listdir(tmp_path) == []
