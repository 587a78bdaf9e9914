"""The client for ordinary code: it carries out what `_protocol` asks for, and waits."""

from __future__ import annotations

import os
import ssl
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar, cast

import httpx

from . import _protocol as protocol
from ._errors import SandpoolError
from ._http import HEADERS, LIMITS, Server, reaching
from ._local import PIECE, Landing
from ._model import Egress, Entries, Event, ExecutionRecord, FileEntry, Pool, Secret, SessionInfo, Stderr, Stdout, Usage
from ._protocol import Answer, Flow, Follower, How, Request, Retry, SessionFlows, Stdin, Token

T = TypeVar("T")


class Sandpool:
    """A Sandpool server.

    `endpoint` and `token` are by default what SANDPOOL_ENDPOINT and SANDPOOL_TOKEN say; a token that is a function
    is asked before each request. `timeout` is in seconds, and does not count time that the server is asked to wait.
    A request that is refused with 429 or 503 and a `Retry-After` is sent again up to `retries` times, if that takes
    no more than `retry_seconds` in sum; 0 turns it off.

    It may be used by several threads, and is closed by `close` or by leaving its `with` block.
    """

    def __init__(
        self,
        endpoint: str | None = None,
        token: Token | None = None,
        *,
        timeout: float = 30.0,
        retries: int = 3,
        retry_seconds: float = 30.0,
        verify: ssl.SSLContext | bool = True,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._server = Server(endpoint, token, timeout)
        self._retry = Retry(retries, retry_seconds)
        self._http = httpx.Client(verify=verify, transport=transport, limits=LIMITS, headers=HEADERS)

    @property
    def endpoint(self) -> str:
        """The server's address."""
        return self._server.endpoint

    def pools(self) -> list[Pool]:
        """The pools."""
        return self.carry_out(protocol.pools())

    def pool(self, name: str) -> Pool:
        """One pool."""
        return self.carry_out(protocol.pool(name))

    def sessions(self, pool: str) -> list[SessionInfo]:
        """A pool's sessions, oldest first."""
        return self.carry_out(protocol.sessions(pool))

    def session(
        self,
        pool: str,
        identifier: str | None = None,
        *,
        env: Mapping[str, str] | None = None,
        secrets: Iterable[Secret] | None = None,
        egress: Egress | None = None,
        keep: bool = False,
    ) -> Session:
        """A session. Its `with` block finds or makes it, and ends it unless `keep`.

        `identifier` is by default a new one. `env` and `secrets` are for a session that is made: where there is one
        by this name, opening it is refused. `egress` narrows what it may reach.
        """
        return Session(self, SessionFlows(pool, identifier, protocol.opening(env, secrets, egress)), keep)

    def close(self) -> None:
        """Closes the connections. Sessions live on."""
        self._http.close()

    def __enter__(self) -> Sandpool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.endpoint!r})"

    def carry_out(self, flow: Flow[T]) -> T:
        """Sends what a flow asks for, until it returns. Not part of the public interface."""
        try:
            request = next(flow)
            while True:
                request = flow.send(self._ask(request))
        except StopIteration as end:
            return cast(T, end.value)

    def _ask(self, request: Request) -> Answer:
        response = self._send(request)
        with reaching():
            try:
                return Answer(response.status_code, response.headers, response.read())
            finally:
                response.close()

    def open(self, request: Request) -> httpx.Response:
        """A good answer whose bytes are still to be read. Not part of the public interface."""
        response = self._send(request)
        if response.is_success:
            return response
        with reaching():
            try:
                raise Answer(response.status_code, response.headers, response.read()).error()
            finally:
                response.close()

    def _send(self, request: Request) -> httpx.Response:
        """Sends it, and again where that may help."""
        tried, waited = 0, 0.0
        while True:
            with reaching():
                response = self._send_once(request)
            told = Answer(response.status_code, response.headers, b"")
            pause = self._retry.pause(request, told, tried, waited)
            if pause is None:
                return response
            response.close()
            time.sleep(pause)
            tried, waited = tried + 1, waited + pause

    def _send_once(self, request: Request) -> httpx.Response:
        if request.file is None:
            return self._http.send(self._server.built(self._http, request, request.content), stream=True)
        with open(request.file, "rb") as file:
            pieces = iter(lambda: file.read(PIECE), b"")
            return self._http.send(self._server.built(self._http, request, pieces), stream=True)


class Session:
    """A session: `Sandpool.session` makes it. It is opened and ended by its `with` block, or by `open` and `end`.

    Where nothing is given to it, it may be used without being opened: the first execution or upload makes it.
    """

    def __init__(self, client: Sandpool, flows: SessionFlows, keep: bool) -> None:
        self._client = client
        self._flows = flows
        self._keep = keep
        self.files = Files(client, flows)

    @property
    def pool(self) -> str:
        """Its pool's name."""
        return self._flows.pool

    @property
    def identifier(self) -> str:
        """Its name."""
        return self._flows.identifier

    def open(self) -> SessionInfo:
        """Finds it, or makes it: `is_new` says which."""
        return self._client.carry_out(self._flows.open())

    def end(self) -> None:
        """Ends it, and all in it. One that is not there is fine."""
        self._client.carry_out(self._flows.end())

    def info(self) -> SessionInfo:
        """What the server knows of it, with what it uses."""
        return self._client.carry_out(self._flows.info())

    def usage(self) -> Usage:
        """What its sandbox uses."""
        return cast(Usage, self.info().usage)

    def run(
        self,
        code: str,
        timeout: float | None = None,
        *,
        fresh: bool = False,
        output_limit: int | None = None,
        id: str | uuid.UUID | None = None,  # noqa: A002 - the word of the API
        wait: bool = True,
        on_stdout: Callable[[str], object] | None = None,
        on_stderr: Callable[[str], object] | None = None,
    ) -> Execution:
        """Runs code in the session's interpreter, whose variables stay.

        An exception in it is told by the execution, and not raised here. `timeout` is the server's limit, in seconds.
        `fresh` runs it in an empty namespace. With `wait=False` the execution is returned while it goes on. `on_stdout`
        and `on_stderr` are called with text as it comes. The same `id` again finds the execution that has it.
        """
        body = protocol.start(code=code, timeout=timeout, fresh=fresh, output_limit=output_limit, id=id)
        return self._start(body, wait, on_stdout, on_stderr)

    def command(
        self,
        command: str | Sequence[str],
        *,
        stdin: Stdin = None,
        timeout: float | None = None,
        terminal: tuple[int, int] | None = None,
        output_limit: int | None = None,
        id: str | uuid.UUID | None = None,  # noqa: A002 - the word of the API
        wait: bool = True,
        on_stdout: Callable[[str], object] | None = None,
        on_stderr: Callable[[str], object] | None = None,
    ) -> Execution:
        """Runs a command line for bash, or a program with its arguments, in /mnt/data.

        `stdin` is all of its input, or True for what `Execution.input` brings (with `wait=False`). `terminal` is
        rows and columns of a terminal of its own. The rest is as with `run`.
        """
        protocol.check_input(stdin, wait, id)
        body = protocol.start(
            command=command, stdin=stdin, timeout=timeout, terminal=terminal, output_limit=output_limit, id=id
        )
        return self._start(body, wait, on_stdout, on_stderr)

    def _start(
        self,
        body: dict[str, Any],
        wait: bool,
        on_stdout: Callable[[str], object] | None,
        on_stderr: Callable[[str], object] | None,
    ) -> Execution:
        if on_stdout is None and on_stderr is None:
            return self._execution(self._client.carry_out(self._flows.execute(body, wait)))
        if not wait:
            raise ValueError("on_stdout and on_stderr go with wait=True")
        with EventStream(self._client, self._flows, body) as events:
            for event in events:
                if isinstance(event, Stdout) and on_stdout is not None:
                    on_stdout(event.text)
                elif isinstance(event, Stderr) and on_stderr is not None:
                    on_stderr(event.text)
        return self.execution(body["id"])

    def stream(
        self,
        code: str | None = None,
        *,
        command: str | Sequence[str] | None = None,
        stdin: Stdin = None,
        timeout: float | None = None,
        fresh: bool = False,
        terminal: tuple[int, int] | None = None,
        output_limit: int | None = None,
        id: str | uuid.UUID | None = None,  # noqa: A002 - the word of the API
    ) -> EventStream:
        """Runs code or a command, and tells its events as they happen.

        A connection that breaks is taken up where it broke. It starts with the first event that is asked for, or
        with its `with` block. Leaving it ends the stream, not the execution.
        """
        body = protocol.start(
            code=code,
            command=command,
            stdin=stdin,
            timeout=timeout,
            fresh=fresh,
            terminal=terminal,
            output_limit=output_limit,
            id=id,
        )
        return EventStream(self._client, self._flows, body)

    def executions(self) -> list[Execution]:
        """The executions that are still known, without their output: `refresh` brings it."""
        return [self._execution(one) for one in self._client.carry_out(self._flows.executions())]

    def execution(self, id: str | uuid.UUID) -> Execution:  # noqa: A002 - the word of the API
        """One execution, with its output so far."""
        return self._execution(self._client.carry_out(self._flows.execution(str(id))))

    def _execution(self, fields: dict[str, Any]) -> Execution:
        return Execution(**fields, _client=self._client, _flows=self._flows)

    def __enter__(self) -> Session:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._keep:
            return
        try:
            self.end()
        except SandpoolError:
            # What went wrong in the block matters more.
            if error is None:
                raise

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.pool!r}, {self.identifier!r})"


@dataclass
class Execution(ExecutionRecord):
    """An execution, as it was when the server last told of it. `wait` and `refresh` bring it up to date."""

    _client: Sandpool = field(repr=False, compare=False)
    _flows: SessionFlows = field(repr=False, compare=False)

    def wait(self, timeout: float | None = None) -> Execution:
        """Waits for the end, at most `timeout` seconds, and returns itself: `is_ended` says whether it has."""
        if not (self.is_ended and self.has_output):
            self.take(self._client.carry_out(self._flows.wait(self.id, timeout)))
        return self

    def refresh(self) -> Execution:
        """Asks how it is now, and returns itself."""
        self.take(self._client.carry_out(self._flows.execution(self.id)))
        return self

    def stop(self, how: How = "interrupt") -> None:
        """Interrupts it, which is Ctrl-C, or kills it.

        One that has ended is fine. It may end a little later: see `wait`.
        """
        self._client.carry_out(self._flows.stop(self.id, how))

    def input(self, data: str | bytes = b"", *, end: bool = False) -> None:
        """Sends bytes for its standard input or terminal, and with `end` the end of input after them."""
        self._client.carry_out(self._flows.input(self.id, data, end))

    def resize(self, rows: int, columns: int) -> None:
        """Tells its terminal a new size."""
        self._client.carry_out(self._flows.resize(self.id, rows, columns))


class EventStream(Iterator[Event]):
    """The events of one execution: `Session.stream` makes it."""

    def __init__(self, client: Sandpool, flows: SessionFlows, body: dict[str, Any]) -> None:
        self.id: str = body["id"]
        self._client = client
        self._flows = flows
        self._follower: Follower = flows.follow(body)
        self._response: httpx.Response | None = None
        self._pieces: Iterator[bytes] | None = None
        self._waiting: deque[Event] = deque()

    def __next__(self) -> Event:
        while not self._waiting:
            if self._follower.is_finished:
                self.close()
                raise StopIteration
            try:
                self._read()
            except SandpoolError as error:
                self.close()
                time.sleep(self._follower.broke(error))
        return self._waiting.popleft()

    def _read(self) -> None:
        """Reads some bytes, from a new connection if there is none."""
        pieces = self._pieces or self._connect()
        with reaching():
            piece = next(pieces, None)
        if piece is None:
            raise self._follower.ended_early()
        self._waiting.extend(self._follower.feed(piece))

    def _connect(self) -> Iterator[bytes]:
        self._response = self._client.open(self._follower.request())
        self._pieces = self._response.iter_bytes()
        self._follower.opened()
        return self._pieces

    def execution(self) -> Execution:
        """The execution as it is now, with its output so far."""
        fields = self._client.carry_out(self._flows.execution(self.id))
        return Execution(**fields, _client=self._client, _flows=self._flows)

    def stop(self, how: How = "interrupt") -> None:
        """Interrupts the execution, or kills it. Its events go on until its end."""
        self._client.carry_out(self._flows.stop(self.id, how))

    def input(self, data: str | bytes = b"", *, end: bool = False) -> None:
        """Sends bytes for its standard input or terminal, and with `end` the end of input after them."""
        self._client.carry_out(self._flows.input(self.id, data, end))

    def close(self) -> None:
        """Closes the connection. The execution goes on."""
        response, self._response, self._pieces = self._response, None, None
        if response is not None:
            response.close()

    def __enter__(self) -> EventStream:
        try:
            self._connect()
        except SandpoolError as error:
            self._follower.broke(error)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class Files:
    """A session's files. Paths are below /mnt/data, or absolute."""

    def __init__(self, client: Sandpool, flows: SessionFlows) -> None:
        self._client = client
        self._flows = flows

    def list(self, path: str = "", *, recursive: bool = False) -> Entries:
        """A directory's entries, sorted by path."""
        return self._client.carry_out(self._flows.files(path, recursive))

    def read(self, path: str) -> bytes:
        """A file's bytes."""
        return self._client.carry_out(self._flows.read(path))

    def write(self, path: str, data: bytes | str) -> FileEntry:
        """Writes a file, whole or not at all, with the directories above it. Text is written in UTF-8."""
        return self._client.carry_out(self._flows.write(path, data.encode() if isinstance(data, str) else data))

    def remove(self, path: str, *, missing_ok: bool = False) -> None:
        """Removes a file, or a directory with all in it."""
        self._client.carry_out(self._flows.remove(path, missing_ok))

    def upload(self, local: str | os.PathLike[str], path: str | None = None) -> FileEntry:
        """Sends a file of this machine, without having it in memory. `path` is by default its name."""
        source = Path(local)
        return self._client.carry_out(self._flows.write(source.name if path is None else path, source))

    def download(self, path: str, local: str | os.PathLike[str]) -> Path:
        """Brings a file here, without having it in memory.

        It arrives as the file `local`, or in the directory `local` under its own name, and appears when it is whole.
        """
        response = self._client.open(self._flows.reading(path))
        try:
            landing = Landing(local, Path(path).name)
            try:
                with reaching():
                    for piece in response.iter_bytes(PIECE):
                        landing.write(piece)
                return landing.settle()
            except BaseException:
                landing.abandon()
                raise
        finally:
            response.close()
