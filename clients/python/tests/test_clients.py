"""Both clients carry out what the pure part asks for: against answers that are made here."""

from __future__ import annotations

import asyncio
import inspect
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from test_protocol import FINISHED, MINE, event, record

import sandpool
from sandpool import AsyncSandpool, Sandpool

Answering = Callable[[httpx.Request], httpx.Response]


class Hurried:
    """What the clients slept."""

    def __init__(self) -> None:
        self.pauses: list[float] = []


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> Hurried:
    """Nobody sleeps here."""
    hurried = Hurried()

    async def sleep(seconds: float) -> None:
        hurried.pauses.append(seconds)

    monkeypatch.setattr("sandpool._sync.time.sleep", hurried.pauses.append)
    monkeypatch.setattr("sandpool._async.asyncio.sleep", sleep)
    return hurried


def ordinary(answering: Answering, **more: Any) -> Sandpool:
    return Sandpool("http://pool.test", "key", transport=httpx.MockTransport(answering), **more)


def asynchronous(answering: Answering, **more: Any) -> AsyncSandpool:
    return AsyncSandpool("http://pool.test", "key", transport=httpx.MockTransport(answering), **more)


class Script:
    """Answers in turn, and remembers what was asked."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if isinstance(request.stream, httpx.SyncByteStream):
            request.read()
        self.asked.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def busy(after: str = "2") -> httpx.Response:
    error = {"code": "ExecutionQueueFull", "message": "Full.", "target": None, "traceId": "00"}
    return httpx.Response(429, headers={"Retry-After": after}, json={"error": error})


def test_requests_carry_the_token_and_keep_names_whole(hurried: Hurried) -> None:
    script = Script(httpx.Response(200, json=record()))
    with ordinary(script) as client:
        ran = client.session("python", "chat/17").run("1", id=MINE)
    [asked] = script.asked
    assert asked.headers["authorization"] == "Bearer key" and asked.headers["user-agent"].startswith("sandpool-python/")
    assert asked.url.raw_path == b"/pools/python/sessions/chat%2F17/executions"
    assert json.loads(asked.content) == {"id": MINE, "code": "1", "waitSeconds": 60.0}
    assert ran.stdout == "hi\n" and hurried.pauses == []


def test_a_token_that_is_a_function_is_asked_each_time() -> None:
    tokens = iter(["one", "two"])
    script = Script(*(httpx.Response(200, json={"value": []}) for _ in range(2)))
    with Sandpool("http://pool.test", lambda: next(tokens), transport=httpx.MockTransport(script)) as client:
        assert client.pools() == client.pools() == []
    assert [asked.headers["authorization"] for asked in script.asked] == ["Bearer one", "Bearer two"]


def test_a_busy_server_is_asked_again_with_the_same_id(hurried: Hurried) -> None:
    script = Script(busy(), busy("3"), httpx.Response(200, json=record()))
    with ordinary(script) as client:
        assert client.session("python", "chat-17").run("1").succeeded
    assert hurried.pauses == [2, 3]
    assert len({json.loads(asked.content)["id"] for asked in script.asked}) == 1
    script = Script(busy())
    with ordinary(script, retries=0) as client, pytest.raises(sandpool.QueueFull) as caught:
        client.session("python", "chat-17").run("1")
    assert caught.value.retry_after == 2 and len(script.asked) == 1


def test_a_busy_server_is_asked_again_from_asyncio(hurried: Hurried) -> None:
    async def work() -> None:
        script = Script(busy(), httpx.Response(200, json=record()))
        async with asynchronous(script) as client:
            assert (await client.session("python", "chat-17").run("1")).succeeded
        assert hurried.pauses == [2] and len({json.loads(asked.content)["id"] for asked in script.asked}) == 1
        script = Script(*[busy()] * 4)
        async with asynchronous(script) as client:
            with pytest.raises(sandpool.QueueFull):
                await client.session("python", "chat-17").run("1")
        assert len(script.asked) == 4

    asyncio.run(work())


def test_an_upload_is_sent_again_from_its_beginning(hurried: Hurried, tmp_path: Path) -> None:
    source = tmp_path / "x.bin"
    source.write_bytes(b"abc" * 1_000_000)
    entry = {"name": "x.bin", "path": "/mnt/data/x.bin", "type": "file", "size": 3_000_000, "modifiedAt": None}
    script = Script(busy(), httpx.Response(200, json=entry))
    with ordinary(script) as client:
        assert client.session("python", "chat-17").files.upload(source).size == 3_000_000
    assert [asked.headers["content-length"] for asked in script.asked] == ["3000000"] * 2
    assert all("transfer-encoding" not in asked.headers for asked in script.asked)
    assert [len(asked.content) for asked in script.asked] == [3_000_000] * 2

    async def work() -> None:
        sizes = []

        async def answering(request: httpx.Request) -> httpx.Response:
            sizes.append(len(await request.aread()))
            return busy() if len(sizes) == 1 else httpx.Response(200, json=entry)

        async with AsyncSandpool("http://pool.test", "key", transport=httpx.MockTransport(answering)) as client:
            await client.session("python", "chat-17").files.upload(source)
        assert sizes == [3_000_000] * 2

    asyncio.run(work())


class Breaking(httpx.SyncByteStream, httpx.AsyncByteStream):
    """Bytes, and then a broken connection."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = pieces

    def __iter__(self) -> Any:
        yield from self.pieces
        raise httpx.ReadError("it broke")

    async def __aiter__(self) -> Any:
        for piece in self.pieces:
            yield piece
        raise httpx.ReadError("it broke")


def broken_stream() -> Script:
    return Script(
        httpx.Response(200, stream=Breaking(event("started", {}, 1) + event("stdout", {"text": "a"}, 2))),
        httpx.ConnectError("it is not there"),
        httpx.Response(502, text="somebody between us"),
        httpx.Response(200, content=event("stdout", {"text": "b"}, 3)),
        httpx.Response(200, content=event("finished", FINISHED, 4)),
    )


def texts(events: list[Any]) -> list[str]:
    return [one.text for one in events if isinstance(one, sandpool.Stdout)]


def test_a_stream_goes_on_after_it_broke(hurried: Hurried) -> None:
    script = broken_stream()
    with ordinary(script) as client, client.session("python", "chat-17").stream("1", id=MINE) as stream:
        events = list(stream)
        assert list(stream) == []
    assert texts(events) == ["a", "b"] and isinstance(events[-1], sandpool.Finished)
    assert [asked.method for asked in script.asked] == ["POST", "GET", "GET", "GET", "GET"]
    assert [asked.url.params["after"] for asked in script.asked[1:]] == ["2", "2", "2", "3"]
    assert hurried.pauses == [0.1, 0.2, 0.4, 0.1]


def test_a_stream_goes_on_after_it_broke_from_asyncio(hurried: Hurried) -> None:
    async def work() -> list[Any]:
        async with asynchronous(broken_stream()) as client:
            return [one async for one in client.session("python", "chat-17").stream("1")]

    assert texts(asyncio.run(work())) == ["a", "b"]
    assert hurried.pauses == [0.1, 0.2, 0.4, 0.1]


def test_a_stream_that_cannot_begin_is_an_error(hurried: Hurried) -> None:
    with ordinary(Script(httpx.ConnectError("it is not there"))) as client:
        with pytest.raises(sandpool.Unreachable) as caught:
            next(client.session("python", "chat-17").stream("1"))
        assert isinstance(caught.value.__cause__, httpx.ConnectError)
    with ordinary(Script(busy("300"))) as client, pytest.raises(sandpool.QueueFull):
        client.session("python", "chat-17").stream("1").__enter__()
    assert hurried.pauses == []


def test_a_download_that_breaks_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"before")
    script = Script(httpx.Response(200, stream=Breaking(b"half")))
    with ordinary(script) as client, pytest.raises(sandpool.Unreachable):
        client.session("python", "chat-17").files.download("x", tmp_path)

    async def work() -> None:
        async with asynchronous(Script(httpx.Response(200, stream=Breaking(b"half")))) as client:
            with pytest.raises(sandpool.Unreachable):
                await client.session("python", "chat-17").files.download("x", tmp_path)

    asyncio.run(work())
    assert [path.name for path in tmp_path.iterdir()] == ["x"] and (tmp_path / "x").read_bytes() == b"before"


def test_redirects_are_not_followed() -> None:
    script = Script(httpx.Response(302, headers={"Location": "http://elsewhere.test/"}))
    with ordinary(script) as client, pytest.raises(sandpool.SandpoolError):
        client.pools()
    assert len(script.asked) == 1, "the token goes nowhere else"


def test_what_went_wrong_in_a_block_is_not_hidden_by_its_end() -> None:
    opened = {
        **dict.fromkeys(("pool", "identifier", "sandbox", "level", "owner", "tenant"), "x"),
        **dict.fromkeys(("createdAt", "lastUsedAt", "expiresAt"), "2026-11-24T20:17:29Z"),
        "busy": 0,
    }
    script = Script(httpx.Response(201, json=opened), httpx.ConnectError("gone"))
    with ordinary(script) as client, pytest.raises(ZeroDivisionError), client.session("python", "chat-17"):
        raise ZeroDivisionError
    script = Script(httpx.Response(201, json=opened), httpx.ConnectError("gone"))
    with ordinary(script) as client, pytest.raises(sandpool.Unreachable), client.session("python", "chat-17"):
        pass


def test_one_client_serves_many_threads() -> None:
    with ordinary(lambda request: httpx.Response(200, json=record())) as client:
        found: list[str] = []
        threads = [
            threading.Thread(target=lambda: found.append(client.session("python").run("1").stdout)) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == ["hi\n"] * 8


@pytest.mark.parametrize("name", ["Sandpool", "Session", "Execution", "EventStream", "Files"])
def test_both_clients_have_the_same_methods(name: str) -> None:
    """With the same parameters, so that what is said of one is true of the other."""
    other = {"close": "aclose", "__enter__": "__aenter__", "__exit__": "__aexit__", "__next__": "__anext__"}

    def methods(kind: type) -> dict[str, Any]:
        own = {key: value for key, value in vars(kind).items() if inspect.isfunction(value)}
        return {key: value for key, value in own.items() if not key.startswith("_") or key in {*other, *other.values()}}

    mine, theirs = methods(getattr(sandpool, name)), methods(getattr(sandpool, f"Async{name}"))
    assert {other.get(key, key) for key in mine} == set(theirs)
    for key, method in mine.items():
        assert list(inspect.signature(method).parameters) == list(
            inspect.signature(theirs[other.get(key, key)]).parameters
        ), key
