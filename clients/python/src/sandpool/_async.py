"""The client for asyncio: as `_sync`, with `await` where there is waiting. What a method does is written there."""

from __future__ import annotations

import asyncio
import inspect
import os
import ssl
import uuid
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar, cast

import httpx

from . import _protocol as protocol
from ._errors import SandpoolError
from ._http import HEADERS, LIMITS, Server, reaching
from ._local import PIECE, Landing
from ._model import (
    Egress,
    Entries,
    Event,
    ExecutionRecord,
    FileEntry,
    Pool,
    Secret,
    SessionInfo,
    Stderr,
    Stdout,
    Usage,
)
from ._protocol import Answer, Flow, Follower, How, Request, Retry, SessionFlows, Stdin, Token

T = TypeVar("T")
# A function that hears text; what it returns is awaited if it can be.
Hearer = Callable[[str], Awaitable[object] | object]


class AsyncSandpool:
    """A Sandpool server, asked from asyncio, as `Sandpool` asks it.

    It is closed by `aclose` or by leaving its `async with` block.
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
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._server = Server(endpoint, token, timeout)
        self._retry = Retry(retries, retry_seconds)
        self._http = httpx.AsyncClient(verify=verify, transport=transport, limits=LIMITS, headers=HEADERS)

    @property
    def endpoint(self) -> str:
        """The server's address."""
        return self._server.endpoint

    async def pools(self) -> list[Pool]:
        """The pools."""
        return await self.carry_out(protocol.pools())

    async def pool(self, name: str) -> Pool:
        """One pool."""
        return await self.carry_out(protocol.pool(name))

    async def sessions(self, pool: str) -> list[SessionInfo]:
        """A pool's sessions, oldest first."""
        return await self.carry_out(protocol.sessions(pool))

    def session(
        self,
        pool: str,
        identifier: str | None = None,
        *,
        env: Mapping[str, str] | None = None,
        secrets: Iterable[Secret] | None = None,
        egress: Egress | None = None,
        keep: bool = False,
    ) -> AsyncSession:
        """A session, as `Sandpool.session`. Its `async with` block finds or makes it, and ends it unless `keep`."""
        return AsyncSession(self, SessionFlows(pool, identifier, protocol.opening(env, secrets, egress)), keep)

    async def aclose(self) -> None:
        """Closes the connections. Sessions live on."""
        await self._http.aclose()

    async def __aenter__(self) -> AsyncSandpool:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.endpoint!r})"

    async def carry_out(self, flow: Flow[T]) -> T:
        """Sends what a flow asks for, until it returns. Not part of the public interface."""
        try:
            request = next(flow)
            while True:
                request = flow.send(await self._ask(request))
        except StopIteration as end:
            return cast(T, end.value)

    async def _ask(self, request: Request) -> Answer:
        response = await self._send(request)
        with reaching():
            try:
                return Answer(response.status_code, response.headers, await response.aread())
            finally:
                await response.aclose()

    async def open(self, request: Request) -> httpx.Response:
        """A good answer whose bytes are still to be read. Not part of the public interface."""
        response = await self._send(request)
        if response.is_success:
            return response
        with reaching():
            try:
                raise Answer(response.status_code, response.headers, await response.aread()).error()
            finally:
                await response.aclose()

    async def _send(self, request: Request) -> httpx.Response:
        """Sends it, and again where that may help."""
        tried, waited = 0, 0.0
        while True:
            content = request.content if request.file is None else pieces_of(request.file)
            with reaching():
                response = await self._http.send(self._server.built(self._http, request, content), stream=True)
            told = Answer(response.status_code, response.headers, b"")
            pause = self._retry.pause(request, told, tried, waited)
            if pause is None:
                return response
            await response.aclose()
            await asyncio.sleep(pause)
            tried, waited = tried + 1, waited + pause


async def pieces_of(path: Path) -> AsyncIterator[bytes]:
    """A local file's bytes. The disk is waited for elsewhere."""
    file = await asyncio.to_thread(open, path, "rb")
    try:
        while piece := await asyncio.to_thread(file.read, PIECE):
            yield piece
    finally:
        file.close()


class AsyncSession:
    """A session, as `Session`: `AsyncSandpool.session` makes it."""

    def __init__(self, client: AsyncSandpool, flows: SessionFlows, keep: bool) -> None:
        self._client = client
        self._flows = flows
        self._keep = keep
        self.files = AsyncFiles(client, flows)

    @property
    def pool(self) -> str:
        """Its pool's name."""
        return self._flows.pool

    @property
    def identifier(self) -> str:
        """Its name."""
        return self._flows.identifier

    async def open(self) -> SessionInfo:
        """Finds it, or makes it: `is_new` says which."""
        return await self._client.carry_out(self._flows.open())

    async def end(self) -> None:
        """Ends it, and all in it. One that is not there is fine."""
        await self._client.carry_out(self._flows.end())

    async def info(self) -> SessionInfo:
        """What the server knows of it, with what it uses."""
        return await self._client.carry_out(self._flows.info())

    async def usage(self) -> Usage:
        """What its sandbox uses."""
        return cast(Usage, (await self.info()).usage)

    async def run(
        self,
        code: str,
        timeout: float | None = None,
        *,
        fresh: bool = False,
        output_limit: int | None = None,
        id: str | uuid.UUID | None = None,  # noqa: A002 - the word of the API
        wait: bool = True,
        on_stdout: Hearer | None = None,
        on_stderr: Hearer | None = None,
    ) -> AsyncExecution:
        """Runs code in the session's interpreter, as `Session.run`.

        A task that is cancelled leaves the execution running.
        """
        body = protocol.start(code=code, timeout=timeout, fresh=fresh, output_limit=output_limit, id=id)
        return await self._start(body, wait, on_stdout, on_stderr)

    async def command(
        self,
        command: str | Sequence[str],
        *,
        stdin: Stdin = None,
        timeout: float | None = None,
        terminal: tuple[int, int] | None = None,
        output_limit: int | None = None,
        id: str | uuid.UUID | None = None,  # noqa: A002 - the word of the API
        wait: bool = True,
        on_stdout: Hearer | None = None,
        on_stderr: Hearer | None = None,
    ) -> AsyncExecution:
        """Runs a command line or a program, as `Session.command`."""
        protocol.check_input(stdin, wait, id)
        body = protocol.start(
            command=command, stdin=stdin, timeout=timeout, terminal=terminal, output_limit=output_limit, id=id
        )
        return await self._start(body, wait, on_stdout, on_stderr)

    async def _start(
        self, body: dict[str, Any], wait: bool, on_stdout: Hearer | None, on_stderr: Hearer | None
    ) -> AsyncExecution:
        if on_stdout is None and on_stderr is None:
            return self._execution(await self._client.carry_out(self._flows.execute(body, wait)))
        if not wait:
            raise ValueError("on_stdout and on_stderr go with wait=True")
        async with AsyncEventStream(self._client, self._flows, body) as events:
            async for event in events:
                heard: object = None
                if isinstance(event, Stdout) and on_stdout is not None:
                    heard = on_stdout(event.text)
                elif isinstance(event, Stderr) and on_stderr is not None:
                    heard = on_stderr(event.text)
                if inspect.isawaitable(heard):
                    await heard
        return await self.execution(body["id"])

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
    ) -> AsyncEventStream:
        """Runs code or a command, and tells its events as they happen, as `Session.stream`."""
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
        return AsyncEventStream(self._client, self._flows, body)

    async def executions(self) -> list[AsyncExecution]:
        """The executions that are still known, without their output: `refresh` brings it."""
        return [self._execution(one) for one in await self._client.carry_out(self._flows.executions())]

    async def execution(self, id: str | uuid.UUID) -> AsyncExecution:  # noqa: A002 - the word of the API
        """One execution, with its output so far."""
        return self._execution(await self._client.carry_out(self._flows.execution(str(id))))

    def _execution(self, fields: dict[str, Any]) -> AsyncExecution:
        return AsyncExecution(**fields, _client=self._client, _flows=self._flows)

    async def __aenter__(self) -> AsyncSession:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._keep:
            return
        try:
            await self.end()
        except SandpoolError:
            # What went wrong in the block matters more.
            if error is None:
                raise

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.pool!r}, {self.identifier!r})"


@dataclass
class AsyncExecution(ExecutionRecord):
    """An execution, as `Execution`. `wait` and `refresh` bring it up to date."""

    _client: AsyncSandpool = field(repr=False, compare=False)
    _flows: SessionFlows = field(repr=False, compare=False)

    async def wait(self, timeout: float | None = None) -> AsyncExecution:
        """Waits for the end, at most `timeout` seconds, and returns itself: `is_ended` says whether it has."""
        if not (self.is_ended and self.has_output):
            self.take(await self._client.carry_out(self._flows.wait(self.id, timeout)))
        return self

    async def refresh(self) -> AsyncExecution:
        """Asks how it is now, and returns itself."""
        self.take(await self._client.carry_out(self._flows.execution(self.id)))
        return self

    async def stop(self, how: How = "interrupt") -> None:
        """Interrupts it, which is Ctrl-C, or kills it.

        One that has ended is fine. It may end a little later: see `wait`.
        """
        await self._client.carry_out(self._flows.stop(self.id, how))

    async def input(self, data: str | bytes = b"", *, end: bool = False) -> None:
        """Sends bytes for its standard input or terminal, and with `end` the end of input after them."""
        await self._client.carry_out(self._flows.input(self.id, data, end))

    async def resize(self, rows: int, columns: int) -> None:
        """Tells its terminal a new size."""
        await self._client.carry_out(self._flows.resize(self.id, rows, columns))


class AsyncEventStream(AsyncIterator[Event]):
    """The events of one execution, as `EventStream`: `AsyncSession.stream` makes it."""

    def __init__(self, client: AsyncSandpool, flows: SessionFlows, body: dict[str, Any]) -> None:
        self.id: str = body["id"]
        self._client = client
        self._flows = flows
        self._follower: Follower = flows.follow(body)
        self._response: httpx.Response | None = None
        self._pieces: AsyncIterator[bytes] | None = None
        self._waiting: deque[Event] = deque()

    async def __anext__(self) -> Event:
        while not self._waiting:
            if self._follower.is_finished:
                await self.aclose()
                raise StopAsyncIteration
            try:
                await self._read()
            except SandpoolError as error:
                await self.aclose()
                await asyncio.sleep(self._follower.broke(error))
        return self._waiting.popleft()

    async def _read(self) -> None:
        """Reads some bytes, from a new connection if there is none."""
        pieces = self._pieces or await self._connect()
        with reaching():
            piece = await anext(pieces, None)
        if piece is None:
            raise self._follower.ended_early()
        self._waiting.extend(self._follower.feed(piece))

    async def _connect(self) -> AsyncIterator[bytes]:
        self._response = await self._client.open(self._follower.request())
        self._pieces = self._response.aiter_bytes()
        self._follower.opened()
        return self._pieces

    async def execution(self) -> AsyncExecution:
        """The execution as it is now, with its output so far."""
        fields = await self._client.carry_out(self._flows.execution(self.id))
        return AsyncExecution(**fields, _client=self._client, _flows=self._flows)

    async def stop(self, how: How = "interrupt") -> None:
        """Interrupts the execution, or kills it. Its events go on until its end."""
        await self._client.carry_out(self._flows.stop(self.id, how))

    async def input(self, data: str | bytes = b"", *, end: bool = False) -> None:
        """Sends bytes for its standard input or terminal, and with `end` the end of input after them."""
        await self._client.carry_out(self._flows.input(self.id, data, end))

    async def aclose(self) -> None:
        """Closes the connection. The execution goes on."""
        response, self._response, self._pieces = self._response, None, None
        if response is not None:
            await response.aclose()

    async def __aenter__(self) -> AsyncEventStream:
        try:
            await self._connect()
        except SandpoolError as error:
            self._follower.broke(error)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()


class AsyncFiles:
    """A session's files, as `Files`. Paths are below /mnt/data, or absolute."""

    def __init__(self, client: AsyncSandpool, flows: SessionFlows) -> None:
        self._client = client
        self._flows = flows

    async def list(self, path: str = "", *, recursive: bool = False) -> Entries:
        """A directory's entries, sorted by path."""
        return await self._client.carry_out(self._flows.files(path, recursive))

    async def read(self, path: str) -> bytes:
        """A file's bytes."""
        return await self._client.carry_out(self._flows.read(path))

    async def write(self, path: str, data: bytes | str) -> FileEntry:
        """Writes a file, whole or not at all, with the directories above it. Text is written in UTF-8."""
        return await self._client.carry_out(self._flows.write(path, data.encode() if isinstance(data, str) else data))

    async def remove(self, path: str, *, missing_ok: bool = False) -> None:
        """Removes a file, or a directory with all in it."""
        await self._client.carry_out(self._flows.remove(path, missing_ok))

    async def upload(self, local: str | os.PathLike[str], path: str | None = None) -> FileEntry:
        """Sends a file of this machine, without having it in memory. `path` is by default its name."""
        source = Path(local)
        return await self._client.carry_out(self._flows.write(source.name if path is None else path, source))

    async def download(self, path: str, local: str | os.PathLike[str]) -> Path:
        """Brings a file here, without having it in memory.

        It arrives as the file `local`, or in the directory `local` under its own name, and appears when it is whole.
        """
        response = await self._client.open(self._flows.reading(path))
        try:
            landing = Landing(local, Path(path).name)
            try:
                with reaching():
                    async for piece in response.aiter_bytes(PIECE):
                        await asyncio.to_thread(landing.write, piece)
                return landing.settle()
            except BaseException:
                landing.abandon()
                raise
        finally:
            await response.aclose()
