"""Our own client library, `clients/python`, against the real server: from ordinary code and from asyncio."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import importlib.util
import io
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from sandpool import CLEAN, descendants, kill, start_time, wait_for
from test_life import is_agent_of

SOURCE = Path(__file__).parent.parent / "clients/python/src"


def loaded():
    """The package under another name: `sandpool` is what these tests share."""
    place = SOURCE / "sandpool"
    spec = importlib.util.spec_from_file_location(
        "sandpool_client", place / "__init__.py", submodule_search_locations=[str(place)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["sandpool_client"] = module
    spec.loader.exec_module(module)
    return module


library = loaded()

FIGURE = "import matplotlib.pyplot as plt\nplt.plot([1, 2, 3])\nplt.show()"
# Without a period that a cut could hide behind.
LARGE = b"".join(n.to_bytes(5, "big") for n in range(1 << 20))


@pytest.fixture
def client(server):
    with library.Sandpool(server.endpoint, server.bearer) as client:
        yield client


def with_client(server, work):
    """Runs `work(client)` in an event loop of its own."""

    async def whole():
        async with library.AsyncSandpool(server.endpoint, server.bearer) as client:
            return await work(client)

    return asyncio.run(asyncio.wait_for(whole(), 200))


def identifiers(client, pool: str) -> list[str]:
    return [session.identifier for session in client.sessions(pool)]


def test_what_it_tests_by_itself():
    """Its own tests, which need no server."""
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(words, cwd=SOURCE.parent, env=CLEAN, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout


# Pools and sessions


def test_pools_are_told(client):
    pools = {pool.name: pool for pool in client.pools()}
    assert {"python", "node", "shell"} <= set(pools)
    python = client.pool("python")
    assert (python.name, python.container_type, python.trouble) == ("python", "PythonLTS", None)
    assert python.max_sessions > 0 and python.max_timeout.total_seconds() > 0 and python.raw["limits"]
    with pytest.raises(library.NotFound) as caught:
        client.pool("nothing")
    assert (caught.value.status, caught.value.code) == (404, "SessionPoolNotFound")


def test_a_session_ends_with_its_block(client):
    with client.session("python") as session:
        assert session.run("x = 41").raise_for_error().outcome == "succeeded"
        assert session.run("x + 1").result.json == 42
        assert session.identifier in identifiers(client, "python")
        usage = session.usage()
        assert usage.memory_bytes > 0 and usage.pids > 0 and session.info().pool == "python"
    assert session.identifier not in identifiers(client, "python")
    with pytest.raises(library.NotFound) as caught:
        session.info()
    assert caught.value.code == "NoSessionFoundError"
    with pytest.raises(RuntimeError, match="has ended"):
        session.run("1")
    assert session.identifier not in identifiers(client, "python"), "it was not made anew"
    session.end()


def test_a_session_ends_also_when_its_block_raises_and_stays_if_it_shall(client, session):
    with pytest.raises(ZeroDivisionError), client.session("python") as broken:
        raise ZeroDivisionError
    assert broken.identifier not in identifiers(client, "python")
    with client.session("python", session, keep=True) as kept:
        kept.run("x = 1")
    again = client.session("python", session)
    assert not again.open().is_new and again.run("x").result.json == 1
    again.end()
    assert session not in identifiers(client, "python")


def test_a_session_is_given_variables(client, session):
    given = client.session("python", session, env={"STAGE": "test"})
    with pytest.raises(RuntimeError, match="env"):
        given.run("1")
    assert session not in identifiers(client, "python"), "it was not made without them"
    with given:
        assert given.run("import os; os.environ['STAGE']").result.json == "test"
        with pytest.raises(library.InvalidRequest) as caught:
            given.open()
        assert caught.value.target == "env"


OPEN = """
listen: 127.0.0.1:0
pools:
  - apiVersion: sandpool.dev/v1alpha1
    kind: SessionPool
    metadata: { name: python }
    spec:
      containerType: PythonLTS
      scaleConfiguration: { maxConcurrentSessions: 4, readySessionInstances: 1 }
      egress: { mode: allow-list, allow: [api.test] }
      sessionSecrets: true
"""


def test_a_session_is_given_secrets_and_less_to_reach(start):
    server = start(config=OPEN)
    secret = library.Secret("OWN_KEY", "own-value-4711", ["api.test"])
    with (
        library.Sandpool(server.endpoint, server.bearer) as client,
        client.session("python", secrets=[secret], egress={"mode": "none"}) as session,
    ):
        placeholder = session.run("import os; os.environ['OWN_KEY']").result.json
        assert placeholder.startswith("sandpool-own-key-") and "4711" not in placeholder
        policy = server.native("GET", f"/pools/python/sessions/{session.identifier}/egress").json()
        assert (policy["pool"]["mode"], policy["session"]["mode"]) == ("allow-list", "none")
    with library.Sandpool(server.endpoint, server.bearer) as client:
        short = client.session("python", secrets=[library.Secret("OWN_KEY", "short", ["api.test"])])
        with pytest.raises(library.InvalidRequest) as caught:
            short.open()
        assert "secrets" in caught.value.target and client.sessions("python") == []


EXAMPLES = re.findall(r"^```python\n(.*?)^```", (SOURCE.parent / "README.md").read_text(), re.M | re.S)
PRINTED = [
    "42\n3\nraised ZeroDivisionError\n",
    "'test'\n'test'\n",
    "0\n1\n2\n0\n1\n2\nHELLO\n\ncancelled\n",
    "['copy.csv', 'in', 'in/report.csv']\nb'text or bytes'\n",
    "[0, 1, 4, 9]\n",
]


@pytest.mark.parametrize(("code", "printed"), zip(EXAMPLES, PRINTED, strict=True))
def test_the_examples_of_the_guide(server, tmp_path, code, printed):
    variables = {"PYTHONPATH": str(SOURCE), "SANDPOOL_ENDPOINT": server.endpoint, "SANDPOOL_TOKEN": server.bearer}
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, cwd=tmp_path, env={**CLEAN, **variables}, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, printed), done.stderr
    assert not server.pool().call("GET", "session", "chat-17").ok


# Executions


def test_run(client, session):
    with client.session("python", session) as session:
        ran = session.run("print('hi'); import sys; print('oh', file=sys.stderr); 'ä' * 3")
        assert (ran.stdout, ran.stderr, ran.result.json) == ("hi\n", "oh\n", "äää")
        assert ran.succeeded and ran.is_ended and ran.duration.total_seconds() > 0 and ran.created_at.tzinfo
        assert session.run("x = 1").result is None
        nothing = session.run("None").result
        assert nothing.has_json and nothing.json is None
        assert session.run("2 ** 100").result.json == 2**100, "all digits"
        assert session.run("y = 1", fresh=True).succeeded
        assert session.run("y").error.name == "NameError"
        mine = session.run("z = globals().get('z', 0) + 1; z")
        assert session.run("this is not looked at", id=mine.id).result.json == 1, "the same id starts nothing"
        assert [one.id for one in session.executions()].count(mine.id) == 1
        [outline] = [one for one in session.executions() if one.id == ran.id]
        assert not outline.has_output and outline.wait().stdout == "hi\n"
        assert session.execution(ran.id).stdout == "hi\n"
        with pytest.raises(library.NotFound) as caught:
            session.execution("00000000-0000-4000-8000-000000000000")
        assert caught.value.code == "ExecutionNotFound"
        with pytest.raises(library.InvalidRequest) as caught:
            session.run("1", timeout=-1)
        assert caught.value.target == "timeoutSeconds"


def test_an_exception_is_told_and_raised_when_asked_for(client, session):
    with client.session("python", session) as session:
        ran = session.run("print('before')\n1 / 0")
        assert (ran.outcome, ran.stdout, ran.error.name) == ("raised", "before\n", "ZeroDivisionError")
        assert "ZeroDivisionError" in ran.error.traceback and "ZeroDivisionError" in ran.stderr
        with pytest.raises(library.ExecutionFailed, match="ZeroDivisionError: division by zero") as caught:
            ran.raise_for_error()
        assert caught.value.execution is ran


def test_a_timeout_is_an_outcome(client, session):
    with client.session("python", session) as session:
        began = time.monotonic()
        ran = session.run("x = 1\nimport time; time.sleep(60)", 1)
        assert time.monotonic() - began < 20
        assert ran.outcome == "timedOut"
        with pytest.raises(library.ExecutionFailed, match="time-out"):
            ran.raise_for_error()
        assert session.run("x").result.json == 1


def test_commands(client, session):
    with client.session("shell", session) as session:
        ran = session.command("pwd; echo problem >&2; exit 3")
        assert (ran.outcome, ran.exit_code, ran.stdout) == ("exited", 3, "/mnt/data\n")
        with pytest.raises(library.ExecutionFailed, match="exited with 3: problem"):
            ran.raise_for_error()
        assert session.command(["printf", "%s|", "a b", "$HOME"]).raise_for_error().stdout == "a b|$HOME|"
        assert session.command("tr a-z A-Z", stdin="text").stdout == "TEXT"
        assert session.command("wc -c", stdin=b"\xff\x00\n").stdout == "3\n"
        assert session.command("stty size", terminal=(17, 71)).stdout == "17 71\r\n"
        with pytest.raises(library.InvalidRequest) as caught:
            session.run("1")
        assert caught.value.code == "SessionRequestNotSupported"


def test_input_comes_while_it_runs(client, session):
    with client.session("shell", session) as session:
        running = session.command("cat", stdin=True, wait=False)
        assert not running.is_ended
        with pytest.raises(RuntimeError, match="not ended"):
            running.raise_for_error()
        running.input("one\n")
        running.input(b"two\n", end=True)
        assert running.wait(30).raise_for_error().stdout == "one\ntwo\n"
        with pytest.raises(library.SandpoolError) as caught:
            running.input("late")
        assert (caught.value.status, caught.value.code) == (409, "ExecutionEnded")
        # More than one request of input takes.
        size = 20 << 20
        counting = session.command("wc -c", stdin=True, wait=False)
        counting.input(b"x" * size, end=True)
        assert counting.wait(60).stdout == f"{size}\n"
        with pytest.raises(ValueError, match="wait=False"):
            session.command("cat", stdin=True)


@pytest.mark.parametrize("how", ["interrupt", "kill"])
def test_an_execution_is_stopped(client, session, how):
    with client.session("python", session) as session:
        running = session.run("x = 7\nwhile True: pass", wait=False)
        wait_for(lambda: running.refresh().state == "running", "the start")
        assert running.wait(0.2).state == "running"
        running.stop(how)
        assert running.wait(20).outcome in ("cancelled", "raised", "died")
        running.stop(how)
        assert running.state_lost == (how == "kill")
        assert (session.run("x").result is None) == (how == "kill")


def test_a_long_execution_is_waited_for_in_pieces(client, session, monkeypatch):
    monkeypatch.setattr(sys.modules["sandpool_client._protocol"], "WAIT", 0.5)
    with client.session("python", session) as session:
        assert session.run("import time; time.sleep(2); 'done'").result.json == "done"


# Streams


def test_events_come_as_they_happen(client, session):
    code = "import time\nfor n in range(3):\n    print(n, flush=True); time.sleep(0.5)\n1 / 0"
    with client.session("python", session) as session:
        at, seen, events = {}, "", []
        with session.stream(code) as stream:
            for event in stream:
                events.append(event)
                if isinstance(event, library.Stdout):
                    seen += event.text
                    at.update({n: time.monotonic() for n in "012" if n + "\n" in seen and n not in at})
        assert seen == "0\n1\n2\n" and at["2"] - at["0"] > 0.6, "not all at once at the end"
        assert isinstance(events[0], library.Started) and isinstance(events[-1], library.Finished)
        assert events[-1].outcome == "raised"
        assert [e.error.name for e in events if isinstance(e, library.Failed)] == ["ZeroDivisionError"]
        assert stream.execution().stdout == seen
        [result] = [e.value for e in session.stream("'v'") if isinstance(e, library.Resulted)]
        assert result.json == "v"


def test_callbacks_hear_output(client, session):
    with client.session("python", session) as session:
        out, err = [], []
        code = "import sys\nprint('a'); print('b', file=sys.stderr); print('c'); 5"
        ran = session.run(code, on_stdout=out.append, on_stderr=err.append)
        assert ("".join(out), "".join(err)) == (ran.stdout, ran.stderr) == ("a\nc\n", "b\n")
        assert ran.result.json == 5


def test_a_stream_is_fed_and_stopped(client, session):
    with client.session("shell", session) as session:
        with session.stream(command="while read line; do echo got $line; done; sleep 100", stdin=True) as stream:
            stream.input("one\n")
            seen = ""
            for event in stream:
                if isinstance(event, library.Stdout):
                    seen += event.text
                    if "one" in seen and "two" not in seen:
                        stream.input("two\n", end=True)
                    elif "two" in seen:
                        stream.stop("kill")
            assert seen == "got one\ngot two\n"
            assert event.outcome == "cancelled"


class Cutter:
    """A relay before the server that cuts each of its first connections after some bytes of the answer."""

    def __init__(self, server, cuts: int, after: int):
        where = urllib.parse.urlsplit(server.endpoint)
        self.target = (where.hostname, where.port)
        self.cuts, self.after, self.made = cuts, after, 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.relay, args=(client,), daemon=True).start()

    def relay(self, client):
        upstream = socket.create_connection(self.target)
        threading.Thread(target=self.copy, args=(client, upstream), daemon=True).start()
        self.made += 1
        left = self.after if self.made <= self.cuts else None
        try:
            while piece := upstream.recv(65536 if left is None else min(left, 65536)):
                client.sendall(piece)
                if left is not None:
                    left -= len(piece)
                    if left == 0:
                        break
        except OSError:
            pass
        for one in (client, upstream):
            try:
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            one.close()

    def copy(self, client, upstream):
        try:
            while piece := client.recv(65536):
                upstream.sendall(piece)
        except OSError:
            pass

    def close(self):
        self.listener.close()


COUNTING = "import time\nfor n in range(40):\n    print('line', n, 'ä', flush=True); time.sleep(0.05)"
COUNTED = "".join(f"line {n} ä\n" for n in range(40))


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_a_stream_that_breaks_is_taken_up_where_it_broke(server, session, asynchronous):
    server.native("PUT", f"/pools/python/sessions/{session}")
    cutter = Cutter(server, cuts=4, after=600)
    try:
        if asynchronous:

            async def work():
                async with library.AsyncSandpool(cutter.endpoint, server.bearer) as client:
                    return [event async for event in client.session("python", session).stream(COUNTING)]

            events = asyncio.run(work())
        else:
            with library.Sandpool(cutter.endpoint, server.bearer) as client:
                events = list(client.session("python", session).stream(COUNTING))
        assert "".join(event.text for event in events if isinstance(event, library.Stdout)) == COUNTED
        assert [type(event) for event in events].count(library.Finished) == 1
        assert cutter.made >= 5, "it did break"
    finally:
        cutter.close()


def test_a_stream_outlives_the_server(start):
    server = start("--ready", "1")
    with library.Sandpool(server.endpoint, server.bearer) as client, client.session("python") as session:
        code = "import time\nfor n in range(30):\n    print(n, flush=True); time.sleep(0.1)"
        seen, killed = "", 0
        for event in session.stream(code):
            if isinstance(event, library.Stdout):
                seen += event.text
                if not killed and "5\n" in seen:
                    killed = server.process()
                    kill(killed)
        assert seen == "".join(f"{n}\n" for n in range(30)) and event.outcome == "succeeded"
        wait_for(lambda: server.process() not in (0, killed) and server.is_ready(), "the server's return")


# Rich results


def test_a_figure_is_shown_as_jupyter_wants_it(client, session):
    with client.session("python", session) as session:
        ran = session.run(FIGURE).raise_for_error()
        [figure] = ran.displays
        image = Image.open(io.BytesIO(figure.form("image/png").data))
        assert image.format == "PNG" and image.width > 100
        bundle = ran._repr_mimebundle_()
        assert base64.b64decode(bundle["image/png"], validate=True).startswith(b"\x89PNG") and bundle["text/plain"]
        [shown] = [e.value for e in session.stream(FIGURE) if isinstance(e, library.Displayed)]
        assert shown._repr_mimebundle_()["image/png"]


def test_what_may_hold_code_is_shown_to_notebooks_only_if_it_is_trusted(client, session):
    with client.session("python", session) as session:
        table = session.run("import pandas; pandas.DataFrame({'a': [1, 2]})").result
        assert "<table" in table.form("text/html").text
        assert set(table._repr_mimebundle_()) == {"text/plain"}
        assert "<table" in table.trusted()._repr_mimebundle_()["text/html"]
        listed = session.run("from IPython.display import JSON; JSON({'a': [1]})").result
        assert listed._repr_mimebundle_()["application/json"] == {"a": [1]}


# Files


def test_files(client, session, tmp_path):
    with client.session("python", session) as session:
        written = session.files.write("in/ä b%2F?#.txt", "text ä")
        assert (written.path, written.size) == ("/mnt/data/in/ä b%2F?#.txt", 7)
        assert session.files.read("in/ä b%2F?#.txt") == "text ä".encode()
        assert session.run("open('/mnt/data/in/ä b%2F?#.txt').read()").result.json == "text ä"
        session.run("open('/tmp/log', 'w').write('x')")
        assert session.files.read("/tmp/log") == b"x"
        session.files.write("/tmp/own", b"")
        assert {entry.name for entry in session.files.list("/tmp")} >= {"log", "own"}
        [top] = session.files.list()
        assert (top.name, top.type) == ("in", "directory")
        assert [entry.path for entry in session.files.list(recursive=True)] == ["in", "in/ä b%2F?#.txt"]
        session.files.remove("in")
        assert session.files.list() == []
        with pytest.raises(library.NotFound) as caught:
            session.files.remove("in")
        assert caught.value.code == "FileNotFound"
        session.files.remove("in", missing_ok=True)
        with pytest.raises(library.NotFound):
            session.files.read("nothing")
        with pytest.raises(library.NotFound):
            session.files.download("nothing", tmp_path)
        assert list(tmp_path.iterdir()) == []
        with pytest.raises(ValueError):
            session.files.read("../../executions")


def test_large_files_go_both_ways(client, session, tmp_path):
    source = tmp_path / "large.bin"
    source.write_bytes(LARGE)
    with client.session("python", session) as session:
        assert session.files.upload(source).size == len(LARGE)
        digest = "import hashlib; hashlib.sha256(open('/mnt/data/large.bin', 'rb').read()).hexdigest()"
        assert session.run(digest).result.json == hashlib.sha256(LARGE).hexdigest()
        target = tmp_path / "back"
        target.mkdir()
        assert session.files.download("large.bin", target) == target / "large.bin"
        assert (target / "large.bin").read_bytes() == LARGE
        assert session.files.download("large.bin", tmp_path / "other.bin").read_bytes() == LARGE
        assert [path.name for path in target.iterdir()] == ["large.bin"], "no part is left"
        session.files.write("again.bin", LARGE)
        assert session.files.read("again.bin") == LARGE
        assert session.files.upload(source, "deep/er.bin").path == "/mnt/data/deep/er.bin"


def test_a_list_of_many_files_is_whole(client, session):
    with client.session("python", session) as session:
        session.run("for n in range(2500): open(f'/mnt/data/{n:04}', 'w').close()").raise_for_error()
        assert [entry.name for entry in session.files.list()] == [f"{n:04}" for n in range(2500)]


def test_a_file_is_no_directory(client, session):
    with client.session("python", session) as session:
        session.run("open('/mnt/data/file', 'w').close()")
        with pytest.raises(library.SandpoolError) as caught:
            session.files.write("file/below", b"x")
        assert caught.value.status == 409 and caught.value.code == "FileKindInvalid"


# What goes wrong


def test_a_lost_session_is_said_to_be_lost(server, client, session):
    lost = client.session("shell", session, env={"STAGE": "test"})
    lost.open()
    lost.command("echo precious > file")
    [agent] = [pid for pid in descendants(server.launcher) if is_agent_of(pid, session, server)]
    kill(agent)
    wait_for(lambda: start_time(agent) is None, "the end of the sandbox")
    with pytest.raises(library.SessionLost) as caught:
        lost.command("ls")
    assert (caught.value.status, caught.value.code) == (410, "SessionLost")
    # Nothing makes it anew without what it was to be given.
    with pytest.raises(RuntimeError, match="env"):
        lost.command("ls")
    with lost:
        assert lost.command("ls; echo $STAGE").stdout == "test\n"


def test_an_absent_session_is_not_found(client, session):
    absent = client.session("python", session)
    for call in (absent.info, absent.executions, absent.files.list, lambda: absent.files.read("x")):
        with pytest.raises(library.NotFound) as caught:
            call()
        assert caught.value.code == "NoSessionFoundError"
    absent.end()


def test_who_may_not_and_who_is_not_there(server, session):
    with library.Sandpool(server.endpoint, "nonsense") as client, pytest.raises(library.NotAllowed) as caught:
        client.pools()
    assert (caught.value.status, caught.value.code) == (401, "Unauthorized")
    reader = server.token("--role", "reader")
    with library.Sandpool(server.endpoint, reader) as client, pytest.raises(library.NotAllowed) as caught:
        client.session("python", session).open()
    assert caught.value.status == 403
    with library.Sandpool("http://127.0.0.1:1", "x") as client, pytest.raises(library.Unreachable) as caught:
        client.pools()
    assert caught.value.status == 0 and caught.value.__cause__ is not None


def test_a_full_pool_is_waited_for_or_told(start):
    server = start("--ready", "1", "--max-sessions", "1", "--cooldown", "2")
    patient = library.Sandpool(server.endpoint, server.bearer, retries=30, retry_seconds=60)
    hasty = library.Sandpool(server.endpoint, server.bearer, retries=0)
    brief = library.Sandpool(server.endpoint, server.bearer, retry_seconds=0.5)
    with patient, hasty, brief:
        # It is in use for so long, and ends by itself then.
        hasty.session("python").run("import time; time.sleep(6)", wait=False)
        for client in (hasty, brief):
            began = time.monotonic()
            with pytest.raises(library.Exhausted) as caught:
                client.session("python").open()
            assert caught.value.code == "SessionsCountExceedsLimit" and caught.value.retry_after >= 1
            assert time.monotonic() - began < 3
        began = time.monotonic()
        with patient.session("python") as session:
            assert time.monotonic() - began > 3, "longer than the server itself waits"
            assert session.run("1").succeeded


# Many at a time


def test_concurrent_sessions_of_threads(client):
    def work(number: int) -> int:
        with client.session("python") as session:
            session.run(f"x = {number}").raise_for_error()
            return session.run("x * 2").result.json

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(16))) == [2 * n for n in range(16)]


def test_concurrent_sessions_of_tasks(server):
    async def work(client):
        async def one(number: int) -> int:
            async with client.session("python") as session:
                (await session.run(f"x = {number}")).raise_for_error()
                return (await session.run("x * 2")).result.json

        return await asyncio.gather(*(one(n) for n in range(16)))

    assert with_client(server, work) == [2 * n for n in range(16)]


# From asyncio


def test_asyncio_run_stream_and_input(server, session):
    async def work(client):
        assert "python" in [pool.name for pool in await client.pools()]
        assert (await client.pool("shell")).container_type == "Shell"
        async with client.session("python", session) as own:
            ran = await own.run("print('hi'); 6 * 7")
            assert (ran.stdout, ran.result.json) == ("hi\n", 42)
            raised = await own.run("1 / 0")
            with pytest.raises(library.ExecutionFailed, match="ZeroDivisionError"):
                raised.raise_for_error()
            assert (await own.run("import time; time.sleep(60)", 1)).outcome == "timedOut"
            assert "image/png" in (await own.run(FIGURE))._repr_mimebundle_()
            seen, heard = [], []

            async def hear(text):
                await asyncio.sleep(0)
                heard.append(text)

            ran = await own.run(
                "print('a'); import sys; print('b', file=sys.stderr)", on_stdout=seen.append, on_stderr=hear
            )
            assert ("".join(seen), "".join(heard)) == ("a\n", "b\n")
            events = [event async for event in own.stream("print('x'); 1")]
            assert [type(event) for event in events] == [
                library.Started,
                library.Stdout,
                library.Resulted,
                library.Finished,
            ]
            assert (await own.usage()).memory_bytes > 0
            assert len(await own.executions()) >= 5
            assert (await own.execution(ran.id)).stdout == "a\n"
            running = await own.run("while True: pass", wait=False)
            await running.stop("kill")
            assert (await running.wait(20)).outcome in ("cancelled", "died")
        async with client.session("shell", session) as own:
            running = await own.command(["cat"], stdin=True, wait=False)
            await running.input("one\n")
            await running.input("two\n", end=True)
            assert (await running.wait()).stdout == "one\ntwo\n"
            assert (await own.command("tr a-z A-Z", stdin="text")).stdout == "TEXT"
            async with own.stream(command="cat; sleep 100", stdin=True) as stream:
                await stream.input("fed\n", end=True)
                async for event in stream:
                    if isinstance(event, library.Stdout):
                        assert event.text == "fed\n"
                        await stream.stop("kill")
            assert (await stream.execution()).outcome == "cancelled"
        with pytest.raises(library.NotFound):
            await own.info()
        with pytest.raises(RuntimeError, match="has ended"):
            await own.command("ls")

    with_client(server, work)


def test_asyncio_files(server, session, tmp_path):
    source = tmp_path / "large.bin"
    source.write_bytes(LARGE)

    async def work(client):
        async with client.session("python", session) as own:
            assert (await own.files.upload(source)).size == len(LARGE)
            assert await own.files.read("large.bin") == LARGE
            target = await own.files.download("large.bin", tmp_path / "back.bin")
            assert target.read_bytes() == LARGE
            await own.files.write("d/text", "ä")
            assert [entry.path for entry in await own.files.list(recursive=True)] == ["d", "d/text", "large.bin"]
            await own.files.remove("d")
            with pytest.raises(library.NotFound):
                await own.files.remove("d")
            await own.files.remove("d", missing_ok=True)
            with pytest.raises(library.NotFound):
                await own.files.download("nothing", tmp_path)

    with_client(server, work)
    assert sorted(os.listdir(tmp_path)) == ["back.bin", "large.bin"]


def test_asyncio_ends_its_session_when_its_task_is_cancelled(server, client, session):
    async def work(other):
        async def sleeping():
            async with other.session("python", session) as own:
                await own.run("import time; time.sleep(60)")

        task = asyncio.create_task(sleeping())
        while session not in [one.identifier for one in await other.sessions("python")]:
            await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with_client(server, work)
    assert session not in identifiers(client, "python")
