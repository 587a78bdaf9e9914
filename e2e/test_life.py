"""The life of sessions and executions: what a client was told is kept, and nothing is left behind."""

from __future__ import annotations

import json
import subprocess
import threading
import time
import urllib.parse
import uuid
from pathlib import Path

import pytest
import requests

from sandpool import MODERN, Server, check_error, descendants, kill, start_time, wait_for


def executions(pool: str, session: str) -> str:
    return f"/pools/{pool}/sessions/{session}/executions"


# 1.7: asynchronous executions


def test_1_7_asynchronous_executions(python, session):
    body = {"code": "import time; print('started'); time.sleep(1); 6 * 7", "executionType": "Asynchronous"}
    mine = str(uuid.uuid4())
    answer = python.call("POST", "executions", session, json=body, headers={"operation-id": mine})
    assert answer.status_code == 202, answer.text
    assert answer.headers["operation-id"] == answer.json()["id"] == mine
    assert answer.json()["status"] in ("Running", "NotStarted")
    assert answer.json()["executionType"] == "Asynchronous"
    location = answer.headers["Operation-Location"]
    where = urllib.parse.urlsplit(location)
    assert where.scheme == "http" and where.netloc, "absolute"
    parameters = urllib.parse.parse_qs(where.query)
    assert parameters["identifier"] == [session] and parameters["api-version"] == [MODERN]
    headers = {"Authorization": f"Bearer {python.server.bearer}"}

    def ended():
        record = requests.get(location, headers=headers, timeout=10).json()
        return record if record["status"] not in ("Running", "NotStarted") else None

    record = wait_for(ended, "the execution's end")
    assert (record["id"], record["status"]) == (mine, "Succeeded")
    assert (record["result"]["stdout"], record["result"]["executionResult"]) == ("started\n", 42)
    # The relative form, and the old route.
    assert python.call("GET", f"executions/{mine}", session).json()["status"] == "Succeeded"
    assert python.call("GET", f"code/execute/{mine}", session).json()["properties"]["status"] == "Success"


def test_1_7_a_synchronous_execution_can_be_read_again(python, session):
    answer = python.call("POST", "executions", session, json={"code": "1 + 1"})
    name = answer.json()["id"]
    assert answer.headers["operation-id"] == name
    assert python.call("GET", f"executions/{name}", session).json()["result"]["executionResult"] == 2


def test_1_5_a_timeout_is_an_answer(python, shell, session):
    began = time.monotonic()
    answer = python.modern(session, code="x = 1\nimport time; time.sleep(60)", timeoutInSeconds=1)
    assert time.monotonic() - began < 20
    assert answer["status"] == "Failed" and "timed out" in answer["result"]["stderr"].lower()
    assert answer["result"]["executionTimeInMilliseconds"] >= 1000
    assert python.legacy("x", session)["result"] == 1, "the variables are still there"
    answer = shell.modern(session, shellCommand="echo before; sleep 60", timeoutInSeconds=1)
    assert answer["status"] == "-1"
    assert answer["result"]["executionTimeInMilliseconds"] >= 1000


# 1.6: shell


def test_1_6_shell(shell, session):
    assert shell.modern(session, shellCommand="pwd")["result"]["stdout"] == "/mnt/data\n"
    argv = shell.modern(session, execCommandAndArgs=["/usr/bin/printf", "%s|", "a b", "$HOME", "*"])
    assert argv["result"]["stdout"] == "a b|$HOME|*|"
    assert shell.modern(session, shellCommand="tr a-z A-Z", stdin="text")["result"]["stdout"] == "TEXT"
    assert shell.modern(session, execCommandAndArgs=["cat"], stdin="")["result"]["stdout"] == ""
    assert shell.modern(session, shellCommand="echo $0; shopt login_shell")["result"]["stdout"].split()[-1] == "on"
    # Files and processes stay, variables do not.
    shell.modern(session, shellCommand="X=1; echo kept > file; (sleep 300 & echo $! > pid)")
    after = shell.modern(session, shellCommand="cat file; kill -0 $(cat pid) && echo alive; echo \"[$X]\"")
    assert after["result"]["stdout"] == "kept\nalive\n[]\n"
    # Longer than one argument of a program may be.
    long = shell.modern(session, shellCommand=f": {'x' * 300_000}\necho done")
    assert (long["status"], long["result"]["stdout"]) == ("0", "done\n")
    every = shell.modern(session, shellCommand="seq 1 800")
    assert every["result"]["stdout"] == "".join(f"{n}\n" for n in range(1, 801)), "the last line is not lost"


# 1.9: both sets of session calls


def test_1_9_sessions(python, session):
    made = python.call("POST", "executions", session, json={"code": "1"})
    assert made.headers["x-ms-new-allocation"].lower() == "true"
    again = python.call("POST", "executions", session, json={"code": "1"})
    assert again.headers["x-ms-new-allocation"].lower() == "false"
    assert made.headers["x-ms-session-guid"] == again.headers["x-ms-session-guid"]
    answer = python.call("GET", "session", session)
    record = answer.json()
    assert record["identifier"] == session and record["etag"] == answer.headers["x-ms-session-etag"]
    assert record["createdAt"] <= record["lastAccessedAt"] < record["expireAt"]
    listed = python.call("GET", "listSessions").json()["sessions"]
    assert session in [entry["identifier"] for entry in listed]
    managed = python.call("POST", ".management/getSession", session)
    assert managed.status_code == 200
    assert managed.json()["expiresAt"] == managed.json()["expireAt"] and managed.json()["etag"]
    page = python.call("POST", ".management/listSessions?skip=0").json()
    assert page["count"] == len(page["value"]) and session in [entry["identifier"] for entry in page["value"]]
    assert page["sessions"] == page["value"]
    stopped = python.call("POST", ".management/stopSession", session)
    assert stopped.status_code == 200 and stopped.headers["content-type"].startswith("text/plain")
    check_error(python.call("POST", ".management/stopSession", session), 400, "SessionWithIdentifierNotFound")
    check_error(python.call("POST", ".management/getSession", session), 400, "SessionWithIdentifierNotFound")
    assert python.call("GET", "session", session).status_code == 404
    # The name is free, and what has it next knows nothing of the one before.
    python.legacy("1", session)
    assert python.call("DELETE", "session", session).status_code == 204


def test_1_9_metadata(python, node, shell):
    answer = python.call("GET", "metadata").json()
    assert answer["runtimes"][0]["name"] == "Python" and answer["runtimes"][0]["version"].startswith("3.")
    packages = {package["name"].lower(): package["version"] for package in answer["preInstalledPackages"]}
    assert {"numpy", "pandas", "matplotlib", "requests"} <= set(packages)
    assert answer["jupyterKernel"]["name"]
    assert node.call("GET", "metadata").json()["runtimes"][0]["name"].lower().startswith("node")
    assert "jupyterKernel" not in shell.call("GET", "metadata").json()


def test_1_8_directories(python, session):
    python.legacy("import os; os.makedirs('a/b'); open('a/b/f.txt', 'w').write('x'); open('top', 'w').close()", session)
    top = {entry["name"]: entry["type"] for entry in python.call("GET", "files", session).json()["value"]}
    assert top == {"a": "directory", "top": "file"}
    assert python.call("GET", "files", session, params={"path": ""}).json()["value"]
    [inner] = python.call("GET", "files", session, params={"path": "a/b"}).json()["value"]
    assert inner["name"] == "f.txt"
    every = python.call("GET", "files", session, params={"recursive": "true"}).json()["value"]
    assert {(entry["directory"], entry["name"]) for entry in every} == {(".", "a"), (".", "top"), ("a", "b"), ("a/b", "f.txt")}
    assert python.upload(session, "g.txt", b"gg", params={"path": "a/c"}).status_code == 200
    assert python.call("GET", "files/g.txt/content", session, params={"path": "/mnt/data/a/c"}).content == b"gg"
    assert python.call("GET", "files/g.txt", session, params={"path": "a/c"}).json()["sizeInBytes"] == 2
    assert python.call("DELETE", "files/g.txt", session, params={"path": "a/c"}).status_code == 204


def test_1_11_generation_0_has_files(python, session):
    up = python.call("POST", "python/uploadFile", session, None, files={"file": ("in.txt", b"abc")}).json()
    assert (up["filename"], up["bytes"]) == ("in.txt", 3)
    assert up["$values"][0]["filename"] == "in.txt" and up["value"][0]["properties"]["filename"] == "in.txt"
    [listed] = python.call("GET", "python/files", session, None).json()["$values"]
    assert (listed["filename"], listed["bytes"]) == ("in.txt", 3)
    down = python.call("GET", "python/downloadFile", session, None, params={"filename": "in.txt"})
    assert down.content == b"abc"
    body = {"properties": {"identifier": session, "codeInputType": "inline", "executionType": "synchronous", "pythonCode": "6*7"}}
    answer = python.call("POST", "python/execute", None, None, json=body).json()
    assert {name: answer[name] for name in ("status", "result", "stdout", "stderr")} == {
        "status": "Success",
        "result": 42,
        "stdout": "",
        "stderr": "",
    }


# The native API: streams, interrupts, queues


def events(response) -> list[dict]:
    """Reads server-sent events: `{"id", "event", ...data}`."""
    found, event = [], {}
    for line in response.iter_lines(decode_unicode=True):
        if not line:
            if "data" in event:
                found.append({**json.loads(event.pop("data")), **event})
                if found[-1].get("event") == "finished":
                    return found
            event = {}
        elif not line.startswith(":"):
            name, _, value = line.partition(":")
            event[name] = event[name] + "\n" + value[1:] if name in event else value.removeprefix(" ")
    return found


def test_output_is_streamed_as_it_happens(server, session):
    code = "import time\nfor n in range(3):\n    print(n, flush=True); time.sleep(0.5)\n6 * 7"
    response = server.native(
        "POST", executions("python", session), json={"code": code}, headers={"Accept": "text/event-stream"}, stream=True
    )
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = response.iter_lines(decode_unicode=True)
    seen, at = "", {}
    for line in lines:
        if line.startswith("data:"):
            data = json.loads(line[5:])
            seen += data.get("text") or ""
            for n in "012":
                if n + "\n" in seen and n not in at:
                    at[n] = time.monotonic()
            if data.get("outcome"):
                break
    assert at["2"] - at["0"] > 0.6, "not all at once at the end"


def test_a_stream_is_taken_up_where_it_broke_off(server, session):
    mine = str(uuid.uuid4())
    body = {"id": mine, "code": "import time\nfor n in range(10):\n    print(n, flush=True); time.sleep(0.1)"}
    accept = {"Accept": "text/event-stream"}
    first = server.native("POST", executions("python", session), json=body, headers=accept, stream=True)
    line = next(line for line in first.iter_lines(decode_unicode=True) if line.startswith("id:"))
    last = int(line[3:])
    first.close()
    path = f"{executions('python', session)}/{mine}/events"
    rest = events(server.native("GET", f"{path}?after={last}", headers=accept, stream=True))
    assert [int(event["id"]) for event in rest] == list(range(last + 1, last + 1 + len(rest)))
    assert rest[-1]["event"] == "finished" and rest[-1]["outcome"] == "succeeded"
    # From the beginning, after its end; and by the header that browsers send.
    every = events(server.native("GET", path, headers=accept, stream=True))
    text = "".join(event["text"] for event in every if event["event"] == "stdout")
    assert text == "".join(f"{n}\n" for n in range(10))
    resumed = server.native("GET", path, headers={**accept, "Last-Event-ID": every[-2]["id"]}, stream=True)
    assert [event["id"] for event in events(resumed)] == [every[-1]["id"]]


def test_an_execution_outlives_its_client(server, python, session):
    mine = str(uuid.uuid4())
    code = "import time; time.sleep(1.5); open('/mnt/data/done', 'w').write('yes'); 'kept'"
    python.legacy("1", session)
    with pytest.raises(requests.ReadTimeout):
        python.call("POST", "executions", session, json={"code": code}, headers={"operation-id": mine}, timeout=0.5)

    def ended():
        answer = python.call("GET", f"executions/{mine}", session)
        return answer.status_code == 200 and answer.json()["status"] == "Succeeded" and answer.json()

    assert wait_for(ended, "the end of what nobody waits for")["result"]["executionResult"] == "kept"
    assert python.call("GET", "files/done/content", session).content == b"yes"


@pytest.mark.parametrize("pool", ["python", "node"])
def test_an_interrupt_ends_the_code_and_keeps_the_variables(server, session, pool):
    endless = {"python": "x = 7\nwhile True: pass", "node": "var x = 7; while (true) {}"}[pool]
    mine = str(uuid.uuid4())
    begun = server.native("POST", executions(pool, session), json={"id": mine, "code": endless, "waitSeconds": 0})
    assert begun.status_code in (200, 202), begun.text
    path = f"{executions(pool, session)}/{mine}"
    wait_for(lambda: server.native("GET", path).json()["state"] == "running", "the start")
    assert server.native("POST", path + "/stop", json={"how": "interrupt"}).ok
    ended = wait_for(lambda: (r := server.native("GET", path).json())["state"] == "ended" and r, "the end", 15)
    assert ended["outcome"] in ("cancelled", "raised") and not ended.get("stateLost")
    after = server.native("POST", executions(pool, session), json={"code": "x"}).json()
    assert after["result"]["json"] == 7


def test_executions_of_a_session_wait_for_their_turn(start):
    pool = json.dumps(
        {
            "listen": "127.0.0.1:0",
            "pools": [
                {
                    "apiVersion": "sandpool.dev/v1alpha1",
                    "kind": "SessionPool",
                    "metadata": {"name": "python"},
                    "spec": {
                        "containerType": "PythonLTS",
                        "scaleConfiguration": {"maxConcurrentSessions": 2, "readySessionInstances": 1},
                        "execution": {"queue": 2},
                        "env": [{"name": "TEAM", "value": "research"}],
                    },
                }
            ],
        }
    )
    server = start(config=pool)
    python = server.pool()
    assert python.legacy("import os; order = []; os.environ['TEAM']", "queue")["result"] == "research"
    wait = "import time\nwhile not os.path.exists('/mnt/data/go'): time.sleep(0.02)\norder.append(0)"
    assert python.modern("queue", 202, code=wait, executionType="Asynchronous")
    waiting = [
        python.modern("queue", 202, code=f"order.append({n})", executionType="Asynchronous")["id"] for n in (1, 2)
    ]
    full = python.call("POST", "executions", "queue", json={"code": "3", "executionType": "Asynchronous"})
    check_error(full, 429, "ExecutionQueueFull")
    assert int(full.headers["retry-after"]) >= 1
    assert python.call("GET", f"executions/{waiting[1]}", "queue").json()["status"] == "NotStarted"
    assert python.upload("queue", "go", b"").status_code == 200, "files do not wait"
    last = f"executions/{waiting[1]}"
    wait_for(lambda: python.call("GET", last, "queue").json()["status"] == "Succeeded", "the last that waited")
    assert python.legacy("order", "queue")["result"] == "[0, 1, 2]"


# Cool-down, kill -9, and the end


def test_an_idle_session_ends_and_one_that_works_does_not(start):
    server = start("--cooldown", "2", "--ready", "1")
    python = server.pool()
    python.legacy("x = 1", "idle")
    working = {}

    def work():
        working.update(python.legacy("import time; time.sleep(5); 'done'", "working"))

    thread = threading.Thread(target=work)
    thread.start()
    rows = server.json("session", "ls")["value"]
    assert "idle" in [row["identifier"] for row in rows]
    gone = lambda: python.call("GET", "session", "idle").status_code == 404  # noqa: E731
    wait_for(gone, "the end of an idle session", 15)
    thread.join(30)
    assert working["result"] == "done"
    assert python.legacy("x", "idle")["status"] == "Failure", "the name is free, and nothing is left of it"


def test_a_killed_server_loses_nothing(start):
    server = start("--ready", "1")
    python, shell = server.pool("python"), server.pool("shell")
    python.legacy("x = 41", "survivor")
    python.upload("survivor", "kept.txt", b"kept")
    shell.modern("survivor", shellCommand="(sleep 300 & echo $! > pid)")
    before = python.call("GET", "session", "survivor").json()
    long = "import time\ntime.sleep(2)\ny = x + 1\n'finished'"
    running = python.modern("survivor", 202, code=long, executionType="Asynchronous")["id"]
    pid = server.process()
    kill(pid)
    wait_for(lambda: server.process() not in (0, pid) and server.is_ready(), "the server's return")
    assert server.record["pid"] == json.loads((server.home / "run/server.json").read_text())["pid"]

    def ended():
        answer = python.call("GET", f"executions/{running}", "survivor")
        return answer.status_code == 200 and answer.json()["status"] == "Succeeded" and answer.json()

    assert wait_for(ended, "the end of what ran then")["result"]["executionResult"] == "finished"
    assert python.legacy("(x, y)", "survivor")["result"] == "(41, 42)"
    assert python.call("GET", "files/kept.txt/content", "survivor").content == b"kept"
    assert shell.modern("survivor", shellCommand="kill -0 $(cat pid)")["status"] == "0"
    after = python.call("GET", "session", "survivor").json()
    # To the millisecond: what is remembered over a restart is.
    assert (after["etag"], after["createdAt"][:23]) == (before["etag"], before["createdAt"][:23])
    # Once more, with nothing in between.
    pid = server.process()
    kill(pid)
    wait_for(lambda: server.process() not in (0, pid) and server.is_ready(), "the server's second return")
    assert python.legacy("x", "survivor")["result"] == 41


def test_a_session_that_died_is_said_to_be_lost(server, shell, session):
    """The sandbox is used up from inside: nobody gets a new one under the old name without a word."""
    shell.modern(session, shellCommand="echo precious > file")
    record = server.native("GET", f"/pools/shell/sessions/{session}").json()
    assert record["identifier"] == session
    agents = [pid for pid in descendants(server.launcher) if is_agent_of(pid, session, server)]
    if not agents:
        pytest.skip("SKIPPED: the sandbox's first process is not told apart from outside")
    kill(agents[0])
    wait_for(lambda: start_time(agents[0]) is None, "the end of the sandbox")
    # Once, and not twice: then the name may be used anew.
    check_error(shell.call("POST", "executions", session, json={"shellCommand": "ls"}), 410, "SessionLost")
    assert shell.modern(session, shellCommand="ls")["result"]["stdout"] == ""


def is_agent_of(pid: int, session: str, server: Server) -> bool:
    """Whether a process is the first of a sandbox whose file is there: seen through /proc as root."""
    try:
        inside = Path(f"/proc/{pid}/status").read_text().split("NSpid:")[1].split("\n")[0].split()
        return inside[-1] == "1" and (Path(f"/proc/{pid}/root/mnt/data/file").read_text() == "precious\n")
    except (OSError, IndexError):
        return False


def left_behind(server: Server, before: dict) -> list[str]:
    """What there is of a server that should not be there."""
    left = [f"process {pid}" for pid, start in before.items() if start_time(pid) == start]
    for mounts in ("/proc/self/mounts",):
        left += [line for line in Path(mounts).read_text().splitlines() if str(server.home) in line]
    return left


def cgroups(server: Server) -> set[str]:
    """The control groups of a server, which are called after its state directory."""
    home = server.home.stat()
    name = f"sandpool-{home.st_dev:x}-{home.st_ino:x}"
    found = subprocess.run(
        ["find", "/sys/fs/cgroup", "-type", "d", "-name", name], capture_output=True, text=True, check=False
    )
    return set(found.stdout.split())


def test_down_leaves_nothing_behind():
    server = Server("--ready", "1")
    try:
        shell = server.pool("shell")
        shell.modern("leftover", shellCommand="setsid nohup sleep 1000 >/dev/null 2>&1 & echo started")
        assert cgroups(server)
        pids = {pid: start_time(pid) for pid in descendants(server.launcher) | {server.launcher}}
        assert len(pids) > 3
        # What runs may end within its grace.
        finished = {}

        def work():
            finished.update(shell.modern("finishing", shellCommand="sleep 1; echo whole"))

        thread = threading.Thread(target=work)
        thread.start()
        wait_for(lambda: "finishing" in [s["identifier"] for s in server.json("session", "ls")["value"]], "a session")
        server.down()
        thread.join(30)
        assert finished["result"]["stdout"] == "whole\n"
        wait_for(lambda: not left_behind(server, pids), "nothing to be left")
        assert not cgroups(server), "no group is left"
        assert not (server.home / "run/server.json").exists()
        again = server.run("down", check=False)
        assert again.returncode == 0, "twice is fine"
        refused = server.run("session", "ls", check=False)
        assert refused.returncode == 1 and "sandpool up" in refused.stderr
    finally:
        server.remove()
