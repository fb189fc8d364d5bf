"""Compiled graphs kept on disk between processes; docs/adr/0006 tells why not as MindSpore does.

MindSpore finds a cached graph by its number in the process and by nothing that the graph
holds. So it is given a folder of its own in which there is never more than the one right
graph under the right number; what outlives the process is kept beside, under a name made of
everything that the graph depends on.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import mindspore as ms
from mindspore import Tensor, nn
from mindspore.graph import api

from glm3sdk._version import __version__
from glm3sdk.adapters.cache_folder import cache_folder
from glm3sdk.adapters.mindspore import model

logger = logging.getLogger(__name__)

KEPT_GRAPHS = 64

# MindSpore hashes the script that was started and what it imports, and cannot when there is
# no such file (python -c). It is shown this constant file instead; the name tells the rest.
_DEPENDENCY = b"# what MindSpore is told that graphs depend on\n"
_DEPENDENCY_HASH = hashlib.sha256(hashlib.sha256(_DEPENDENCY).hexdigest().encode()).hexdigest()
_DIGEST_BYTES = 32


class CompileCache:
    """Compiles cells, or takes their graphs from disk; every method runs on the executor."""

    def __init__(self) -> None:
        self._scratch: Path | None = None
        self._number = 0
        self._usable = True
        # After one graph that it does not find, MindSpore looks for none in this process.
        self._finds = True

    def compile(self, cell: nn.Cell, inputs: Sequence[Tensor], *, key: str) -> None:
        """Compile `cell` for `inputs`.

        Args:
            cell: what to compile.
            inputs: its inputs.
            key: tells this graph from every other; the versions of MindSpore and of the
                cells are added to it.
        """
        entry = self._entry(key)
        graph = _read(entry) if entry else None
        if entry is None or (graph is not None and not self._finds):
            cell.compile(*inputs)
            return
        try:
            file = self._graph_file(entry.parent, graph)
        except OSError as exc:
            self._give_up(exc)
            cell.compile(*inputs)
            return
        # A compilation that fails leaves open whether MindSpore counted it.
        self._usable = False
        try:
            with self._switched_on():
                cell.compile(*inputs)
            if graph is None:
                self._finds = False
                _publish(entry, file.read_bytes())
            self._number += 1
            self._usable = True
        except OSError as exc:
            self._give_up(exc)
        finally:
            shutil.rmtree(file.parents[2], ignore_errors=True)

    def _entry(self, key: str) -> Path | None:
        """The file that keeps a graph, or None where nothing is to be kept."""
        folder = graph_folder()
        taken = self._scratch is None and _used_by_others()
        if folder is None or taken or not self._usable:
            return None
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as exc:
            self._give_up(exc)
            return None
        whole = f"{ms.__version__}\n{__version__}\n{_source_digest()}\n{key}"
        return folder / f"{hashlib.sha256(whole.encode()).hexdigest()}.graph"

    def _graph_file(self, folder: Path, graph: bytes | None) -> Path:
        """Put `graph` where MindSpore looks for the next one; returns that place."""
        if self._scratch is None:
            # MindSpore stays with the first path that it is given: it is made anew each time.
            self._scratch = Path(tempfile.mkdtemp(prefix="process-", dir=folder))
        place = self._scratch / "rank_0" / "graph_cache"
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        (place / "compile_dependency.hash").write_text(_DEPENDENCY_HASH)
        (self._scratch / "dependency.py").write_bytes(_DEPENDENCY)
        file = place / f"compile_cache_{self._number}.mindir"
        if graph is not None:
            file.write_bytes(graph)
        return file

    @contextlib.contextmanager
    def _switched_on(self) -> Iterator[None]:
        scratch, script = str(self._scratch), api.entry_script_path
        api.entry_script_path = os.path.join(scratch, "dependency.py")
        ms.set_context(enable_compile_cache=True, compile_cache_path=scratch)
        try:
            yield
        finally:
            ms.set_context(enable_compile_cache=False)
            api.entry_script_path = script

    def _give_up(self, reason: OSError) -> None:
        self._usable = False
        logger.info("compiled graphs are not kept: %s", reason)


COMPILE_CACHE = CompileCache()
"""The process's one cache, for MindSpore numbers the graphs of the whole process."""


def graph_folder() -> Path | None:
    """Where graphs are kept: `GLM3SDK_CACHE_DIR` (empty: nowhere), or the user's cache folder."""
    root = cache_folder()
    return root and root / "graphs"


def _used_by_others() -> bool:
    """Whether this process has MindSpore's compile cache set up for graphs of its own."""
    variables = ("MS_COMPILER_CACHE_ENABLE", "MS_COMPILER_CACHE_PATH")
    settings = ("enable_compile_cache", "compile_cache_path")
    return any(map(os.environ.get, variables)) or any(map(ms.get_context, settings))


def _source_digest() -> str:
    """Digest of the cells' sources: a graph is what they said when it was compiled."""
    digest = hashlib.sha256()
    for source in sorted(Path(model.__path__[0]).glob("*.py")):
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    return digest.hexdigest()


def _read(entry: Path) -> bytes | None:
    """A kept graph; None where there is none. One that is damaged is deleted."""
    try:
        stored = entry.read_bytes()
        graph = stored[_DIGEST_BYTES:]
        if graph and hashlib.sha256(graph).digest() == stored[:_DIGEST_BYTES]:
            os.utime(entry)  # the least used go first
            return graph
        entry.unlink()
    except OSError:
        pass
    return None


def _publish(entry: Path, graph: bytes) -> None:
    """Keep a graph: whole or not at all, whoever else writes it at the same time."""
    handle, name = tempfile.mkstemp(dir=entry.parent, suffix=".new")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(hashlib.sha256(graph).digest() + graph)
        os.replace(name, entry)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    by_use = sorted(entry.parent.glob("*.graph"), key=_last_used, reverse=True)
    for old in by_use[KEPT_GRAPHS:]:
        old.unlink(missing_ok=True)


def _last_used(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:  # another process deleted it
        return 0.0
