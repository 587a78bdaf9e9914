"""Our client library for TypeScript: its own tests, its package as others install it, the examples of its page, and real sessions."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import tarfile
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from sandpool import CLEAN, descendants, installed, kill, node_modules, wait_for
from test_life import is_agent_of

ROOT = Path(__file__).parent.parent
HERE = Path(__file__).parent / "typescript"
PAGE = ROOT / "clients/typescript/README.md"

TSCONFIG = {
    "compilerOptions": {
        # What the compiler can rely on in Node.js 20, without the types of browsers; our declarations are checked too.
        "target": "ES2022",
        "module": "NodeNext",
        "lib": ["ES2022"],
        "types": ["node"],
        "strict": True,
        "skipLibCheck": False,
    }
}


def call(*words, cwd: Path, env: dict | None = None, timeout: float = 120) -> str:
    variables = {**CLEAN, "NO_UPDATE_NOTIFIER": "1", **(env or {})}
    done = subprocess.run(list(map(str, words)), cwd=cwd, env=variables, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def examples() -> list[str]:
    return re.findall(r"^```ts\n(.*?)^```", PAGE.read_text(), re.M | re.S)


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    """The package's sources with their tools, compiled and packed, in a copy of our tree."""
    modules = installed("SANDPOOL_E2E_TYPESCRIPT") / "node_modules"
    place = tmp_path_factory.mktemp("typescript")
    copy = place / "clients/typescript"
    shutil.copytree(PAGE.parent, copy, ignore=shutil.ignore_patterns("node_modules", "dist", "build"))
    (place / "docs").mkdir()
    shutil.copy(ROOT / "docs/openapi.json", place / "docs")
    (copy / "node_modules").symlink_to(modules)
    call("npm", "pack", "--offline", "--pack-destination", place, cwd=copy)
    return copy


@pytest.fixture(scope="module")
def program(package) -> Path:
    """A project of somebody who uses the package: `drive.js`, and the page's examples as `example-N.js`."""
    place = package.parent.parent / "program"
    ours = place / "node_modules/@sandpool/client"
    ours.mkdir(parents=True)
    [packed] = package.parent.parent.glob("*.tgz")
    with tarfile.open(packed) as archive:
        archive.extractall(place / "unpacked", filter="data")
    shutil.copytree(place / "unpacked/package", ours, dirs_exist_ok=True)
    shutil.rmtree(place / "unpacked")
    for name in ("@types", "undici-types"):
        (place / "node_modules" / name).symlink_to(package / "node_modules" / name)
    (place / "package.json").write_text('{"type": "module"}')
    (place / "tsconfig.json").write_text(json.dumps(TSCONFIG))
    shutil.copy(HERE / "drive.ts", place)
    for at, code in enumerate(examples()):
        (place / f"example-{at}.ts").write_text(code)
    call("node", package / "node_modules/typescript/bin/tsc", cwd=place)
    return place


@pytest.fixture
def drive(program, server, session):
    """`drive("run")`: what `drive.ts` saw."""

    def driven(what: str, *arguments, of=server):
        env = {"SANDPOOL_ENDPOINT": of.endpoint, "SANDPOOL_TOKEN": of.bearer}
        return json.loads(call("node", program / "drive.js", what, session, *arguments, cwd=program, env=env))

    yield driven
    assert server.native("GET", f"/pools/python/sessions/{session}").status_code == 404, "it is ended with its block"


@pytest.mark.parametrize("which", ["the oldest", "the newest"])
def test_its_own_tests(package, which):
    node = shutil.which("node") if which == "the oldest" else node_modules()[1] / "node"
    call("node", "node_modules/typescript/bin/tsc", "-p", "tsconfig.test.json", cwd=package)
    tests = sorted(package.glob("build/*.test.js"))
    said = call(node, "--test", "--test-reporter=tap", *tests, cwd=package)
    passed, failed = (int(re.search(rf"^# {word} (\d+)", said, re.M)[1]) for word in ("pass", "fail"))
    assert passed > 40 and failed == 0, said


def test_the_package_has_what_it_needs_and_no_more(program):
    ours = program / "node_modules/@sandpool/client"
    files = {str(path.relative_to(ours)) for path in ours.rglob("*") if path.is_file()}
    sources = {path.stem for path in (PAGE.parent / "src").glob("*.ts")}
    assert files == {"package.json", "README.md"} | {f"dist/{name}{end}" for name in sources for end in (".js", ".d.ts")}
    manifest = json.loads((ours / "package.json").read_text())
    assert "dependencies" not in manifest and "peerDependencies" not in manifest


def test_the_lock_names_no_host():
    assert not re.search(r"https?:|resolved", (PAGE.parent / "package-lock.json").read_text())


@pytest.mark.parametrize("at", range(len(examples())))
def test_examples(program, server, at):
    env = {"SANDPOOL_ENDPOINT": server.endpoint, "SANDPOOL_TOKEN": server.bearer}
    said = call("node", f"example-{at}.js", cwd=program, env=env)
    wanted = [["hi", "42"], ["raised ZeroDivisionError", "out: 2", "true", "0 a\nb"], ["hello world", "exited 0"], ["out.txt 4", "done"]]
    assert len(wanted) == len(examples())
    for text in wanted[at]:
        assert text in said, said
    assert at != 1 or re.search(r"^\d{4,}$", said, re.M), f"a figure has its bytes: {said}"


def test_run(drive, session):
    seen = drive("run")
    value = seen["value"]
    assert (value["outcome"], value["state"], value["stdout"], value["result"]["json"]) == ("succeeded", "ended", "hello\n", 42)
    failed = seen["failed"]
    assert (failed["outcome"], failed["succeeded"], failed["name"]) == ("raised", False, "ZeroDivisionError")
    assert "ZeroDivisionError" in failed["stderr"]
    assert (seen["kept"], seen["fresh"], seen["environment"]) == (41, "NameError", "test")
    assert seen["pools"][0] == "python" and {"python", "node", "shell"} <= set(seen["pools"][1])
    assert seen["known"] == ["succeeded", "raised", "succeeded", "raised"]
    assert (seen["again"], seen["info"], seen["isNew"]) == ("hello\n", session, True)


def test_the_same_id_starts_nothing_twice(drive):
    assert drive("once") == [1, 1, 2]


def test_a_figure_is_a_png(drive):
    seen = drive("figure")
    image = base64.b64decode(seen["base64"])
    assert seen["count"] == 1 and image.startswith(b"\x89PNG\r\n\x1a\n") and len(image) > 1000, seen["stderr"]


def test_a_stream_comes_as_it_happens_and_can_be_followed(drive):
    seen = drive("stream")
    events = [one["event"] for one in seen["seen"]]
    assert events[0]["type"] == "started" and events[-1]["type"] == "finished" and events[-1]["outcome"] == "succeeded"
    assert [event["id"] for event in events] == sorted({event["id"] for event in events})
    text = "".join(event["text"] for event in events if event["type"] == "stdout")
    assert text == "0\n1\n2\nä€😀\n" == "".join(seen["output"]) == seen["stdout"]
    [result] = [event["value"] for event in events if event["type"] == "result"]
    assert result["json"] == 42
    # A line may come in several pieces.
    said, at = "", {}
    for one in seen["seen"]:
        said += one["event"].get("text") or ""
        for line in said.split("\n")[:-1]:
            at.setdefault(line, one["at"])
    assert at["2"] - at["0"] > 400, "not all at once at the end"
    assert seen["rest"] == events[1:]


def test_a_stream_whose_connections_break_loses_nothing(drive):
    seen = drive("broken")
    assert seen["connections"] > 2
    assert seen["text"] == "".join(f"{n}\n" for n in range(8))
    assert seen["ids"] == sorted(set(seen["ids"]))


def test_input(drive):
    seen = drive("stdin")
    assert seen["text"] == ["2\n", 3, "exited"] and seen["bytes"].split() == ["00", "ff", "0a"]
    assert seen["echoed"] == "one\ntwo\n"
    assert seen["drawn"].split()[0:2] == ["24", "80"] and seen["drawn"].split()[-2:] == ["30", "100"]
    assert seen["late"] == [409, "ExecutionEnded"]


def test_files_both_ways(drive, tmp_path):
    data = os.urandom(5_000_000)
    (tmp_path / "data").write_bytes(data)
    seen = drive("files", tmp_path / "data")
    written = seen["written"]
    assert (written["path"], written["size"], written["type"]) == ("/mnt/data/in/big data.bin", len(data), "file")
    assert seen["there"] == hashlib.sha256(data).hexdigest()
    assert seen["taken"] == [5_000_000, seen["sent"]]
    assert seen["note"] == "abc"
    assert seen["listed"] == [["in", "directory"], ["in/big data.bin", "file"], ["out.bin", "file"]]
    assert seen["left"] == ["out.bin"] and seen["missing"] == [True, "FileNotFound"]


def test_what_is_not_there_and_what_is_wrong(drive):
    seen = drive("absent")
    codes = ["ExecutionNotFound", "NoSessionFoundError", "SessionPoolNotFound"]
    assert seen["missing"] == [[True, 404, code] for code in codes]
    assert seen["token"] == [401, "Unauthorized"]
    assert seen["value"] == [400, "SessionRequestValidationFailed", "timeoutSeconds"]


def test_a_timeout_is_an_outcome(drive):
    seen = drive("timeout")
    assert (seen["outcome"], seen["succeeded"]) == ("timedOut", False) and 0.9 < seen["seconds"] < 20


def test_an_abort_signal_interrupts_and_keeps_the_variables(drive):
    seen = drive("abort")
    for kind in ("waited", "streamed"):
        said, outcome, lost = seen[kind]
        assert said == "enough" and outcome in ("cancelled", "raised") and not lost, seen
    assert seen["command"][0] == "enough" and seen["command"][1] in ("cancelled", "exited"), seen
    assert seen["kept"] == 7


def test_what_is_started_is_waited_for_later(drive):
    state, stdout, outcome = drive("started")
    assert state in ("queued", "running") and stdout == "late\n" and outcome in ("cancelled", "exited")


def test_what_waits_and_what_reads_survive_a_killed_server(drive, session, start):
    server = start("--ready", "1")
    path = f"/pools/python/sessions/{session}/executions"
    killed = []

    def runs(nth: int) -> bool:
        # As long as the request that started it waits, it is in no record of the server.
        answer = server.native("GET", path)
        known = answer.json()["value"][nth:] if answer.status_code == 200 else []
        age = [datetime.now(UTC) - datetime.fromisoformat(one["createdAt"][:19] + "+00:00") for one in known]
        return [one["state"] for one in known] == ["running"] and age[0] > timedelta(seconds=3)

    def kill_twice():
        for nth in range(2):
            wait_for(lambda nth=nth: runs(nth), "an execution")
            pid = server.process()
            kill(pid)
            wait_for(lambda pid=pid: server.process() not in (0, pid) and server.is_ready(), "the server's return")
            killed.append(pid)

    killer = threading.Thread(target=kill_twice)
    killer.start()
    try:
        seen = drive("survive", of=server)
    finally:
        killer.join()
    assert len(set(killed)) == 2
    assert seen == {"text": "begun\nended\n", "value": "kept", "streamed": "begun\nended\n", "count": 1}


def test_a_lost_session_is_an_error_of_its_own(drive, server):
    def lose():
        def find() -> list[int]:
            return [pid for pid in descendants(server.launcher) if is_agent_of(pid, "", server)]

        [agent] = wait_for(find, "the session's sandbox")
        kill(agent)

    killer = threading.Thread(target=lose)
    killer.start()
    try:
        seen = drive("lost")
    finally:
        killer.join()
    assert seen == [True, 410, "SessionLost", False]


def test_a_full_pool(drive, start):
    config = {
        "listen": "127.0.0.1:0",
        "pools": [
            {
                "apiVersion": "sandpool.dev/v1alpha1",
                "kind": "SessionPool",
                "metadata": {"name": "python"},
                "spec": {
                    "containerType": "PythonLTS",
                    "scaleConfiguration": {"maxConcurrentSessions": 1, "readySessionInstances": 1},
                },
            }
        ],
    }
    full = start(config=json.dumps(config))
    assert drive("exhausted", of=full) == [True, 429, "SessionsCountExceedsLimit", True]
