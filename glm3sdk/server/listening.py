"""A listening socket and the thread that serves an application on it."""

from __future__ import annotations

import socket
import threading
from types import TracebackType

import uvicorn
from starlette.applications import Starlette

from glm3sdk.errors import AddressUnavailableError, RuntimeFailureError

_KEEP_ALIVE_S = 30


def bind(host: str, port: int) -> socket.socket:
    """Take an address without answering on it yet, so that a wrong one is known early.

    Args:
        host: a name or address of this machine.
        port: 0 takes a free one.

    Raises:
        AddressUnavailableError: the address is in use, not of this machine, or not allowed.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError, OverflowError) as exc:
        raise AddressUnavailableError(f"no address {host!r}: {exc}; pass another --host") from exc
    try:
        # Connections of a server that has just ended would keep the port for a minute.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except (OSError, OverflowError) as exc:
        bound.close()
        raise _unavailable(host, port, exc) from exc
    return bound


class Listener:
    """Serves an application on an address, in a thread of its own.

        with Listener(app, port=0) as listener:
            print(listener.url)

    Args:
        app: what `create_app` made.
        host: a name or address of this machine.
        port: 0 takes a free one.
        bound: what `bind` took, in the place of host and port.
        grace_s: how long running requests may go on after `stop`; then they are cut off.

    Raises:
        AddressUnavailableError: as `bind`.
    """

    def __init__(
        self,
        app: Starlette,
        *,
        host: str = "127.0.0.1",
        port: int = 8000,
        bound: socket.socket | None = None,
        grace_s: int = 30,
    ) -> None:
        self._app = app
        self._socket = bind(host, port) if bound is None else bound
        self._host: str = self._socket.getsockname()[0]
        self._port: int = self._socket.getsockname()[1]
        self._failure: Exception | None = None
        self._begun = threading.Event()
        self._ended = threading.Event()
        config = uvicorn.Config(
            app,
            http="h11",
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=grace_s,
        )
        self._server = _Server(config, self._begun)
        self._thread = threading.Thread(target=self._run, name="glm3sdk-server", daemon=True)

    @property
    def url(self) -> str:
        """The address, such as "http://127.0.0.1:8000"."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}"

    def start(self) -> None:
        """Begin to answer.

        Raises:
            AddressUnavailableError: somebody else has begun to listen there.
            RuntimeFailureError: the server ended before it could.
        """
        self._thread.start()
        self._begun.wait()
        if isinstance(self._failure, OSError):
            raise _unavailable(self._host, self._port, self._failure) from self._failure
        if self._failure is not None or not self._server.started:
            raise RuntimeFailureError(
                f"the server could not start: {self._failure or 'its log says why'}"
            )

    def wait(self) -> None:
        """Wait until it has stopped; a signal's handler may raise out of it."""
        # Not join: an exception out of it takes a thread that still runs for one that ended.
        while not self._ended.wait(timeout=1):
            pass
        self._thread.join()

    def stop(self) -> None:
        """Take no new requests; the running ones may finish."""
        self._app.state.admission.closed = True
        self._server.should_exit = True

    def __enter__(self) -> Listener:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.stop()
        self.wait()

    def _run(self) -> None:
        try:
            self._server.run(sockets=[self._socket])
        except Exception as exc:
            self._failure = exc
        finally:
            self._socket.close()
            self._begun.set()
            self._ended.set()


class _Server(uvicorn.Server):
    """Tells another thread when it answers."""

    def __init__(self, config: uvicorn.Config, begun: threading.Event) -> None:
        super().__init__(config)
        self._begun = begun

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._begun.set()


def _unavailable(host: str, port: int, exc: Exception) -> AddressUnavailableError:
    reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else exc
    return AddressUnavailableError(
        f"cannot listen on {host}:{port}: {reason}; pass another --port or --host"
    )
