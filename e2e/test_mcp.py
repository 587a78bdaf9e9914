"""The Model Context Protocol: as Azure's documentation has it called, and our own server."""

from __future__ import annotations

import base64
import io
import json
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from PIL import Image

from sandpool import CLEAN, PROGRAM, kill, wait_for


def key(server, pool: str, *more: str) -> str:
    return server.run("pool", "mcp-key", pool, *more).stdout.strip()


def curl(endpoint: str, api_key: str, body: str) -> dict:
    """As the tutorials call: these headers and no others of our making."""
    words = ["curl", "-sS", "-X", "POST", endpoint]
    words += ["-H", "Content-Type: application/json", "-H", f"x-ms-apikey: {api_key}", "-d", body]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


class Tools:
    """The tools of one pool."""

    def __init__(self, server, pool: str):
        self.endpoint = f"{server.pool(pool).endpoint}/mcp"
        self.key = key(server, pool)

    def answer(self, name: str, **arguments) -> dict:
        call = {"jsonrpc": "2.0", "id": "7", "method": "tools/call", "params": {"name": name, "arguments": arguments}}
        answer = requests.post(self.endpoint, json=call, headers={"x-ms-apikey": self.key}, timeout=60)
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"].startswith("application/json")
        return answer.json()

    def __call__(self, name: str, **arguments) -> dict:
        answer = self.answer(name, **arguments)
        assert "result" in answer, answer
        return answer["result"]


@pytest.fixture
def tools(server):
    made = []

    def of(pool: str, where=server) -> tuple[Tools, str]:
        these = Tools(where, pool)
        environment = these("launchShell")["structuredContent"]["environmentId"]
        made.append((where, pool, environment))
        return these, environment

    yield of
    for where, pool, environment in made:
        if where is server:
            where.native("DELETE", f"/pools/{pool}/sessions/{environment}")


def test_the_calls_of_azures_tutorials(server):
    endpoint, api_key = f"{server.pool('shell').endpoint}/mcp", key(server, "shell")
    answer = curl(endpoint, api_key, '{ "jsonrpc": "2.0", "id": "1", "method": "initialize" }')
    assert answer["id"] == "1" and answer["result"]["protocolVersion"] == "2025-03-26"
    tools = answer["result"]["capabilities"]["tools"]
    assert tools["call"] is True and tools["list"] is True and answer["result"]["serverInfo"]["name"]
    launch = (
        '{ "jsonrpc": "2.0", "id": "2", "method": "tools/call", "params": { "name": "launchShell", "arguments": {} } }'
    )
    environment = curl(endpoint, api_key, launch)["result"]["structuredContent"]["environmentId"]
    run = """{
        "jsonrpc": "2.0",
        "id": "%s",
        "method": "tools/call",
        "params": {
            "name": "%s",
            "arguments": {
                "environmentId": "%s",
                "%s": %s
            }
        }
    }"""
    shell = "runShellCommandInRemoteEnvironment"
    said = curl(endpoint, api_key, run % (3, shell, environment, "shellCommand", '"echo Hello from the shell!"'))
    assert said["id"] == "3" and said["result"]["structuredContent"]["stdout"] == "Hello from the shell!\n"
    said = curl(endpoint, api_key, run % (4, shell, environment, "shellCommand", '"cat /etc/os-release && uname -a"'))
    assert "Linux" in said["result"]["structuredContent"]["stdout"]
    said = curl(endpoint, api_key, run % (5, shell, environment, "execCommandAndArgs", '["printf", "%s", "a b"]'))
    assert said["result"]["structuredContent"] == {"stdout": "a b", "stderr": "", "exitCode": 0}
    server.native("DELETE", f"/pools/shell/sessions/{environment}")

    endpoint, api_key = f"{server.pool('python').endpoint}/mcp", key(server, "python")
    environment = curl(endpoint, api_key, launch)["result"]["structuredContent"]["environmentId"]
    code = json.dumps('import math\nfor n in (4, 5):\n    print(f"{n}! = {math.factorial(n)}")')
    said = curl(endpoint, api_key, run % (6, "runPythonCodeInRemoteEnvironment", environment, "pythonCode", code))
    assert said["result"]["structuredContent"]["stdout"] == "4! = 24\n5! = 120\n"
    assert said["result"]["isError"] is False
    server.native("DELETE", f"/pools/python/sessions/{environment}")


def test_a_pools_key_survives_a_restart_and_a_rotation(start):
    server = start("--ready", "0")
    first = key(server, "shell")
    endpoint = f"{server.pool('shell').endpoint}/mcp"
    listing = '{"jsonrpc": "2.0", "id": 1, "method": "tools/list"}'
    assert len(curl(endpoint, first, listing)["result"]["tools"]) == 4
    old = server.process()
    kill(old)
    wait_for(lambda: server.process() not in (0, old) and server.is_ready(), "the server to come back")
    assert key(server, "shell") == first and curl(endpoint, first, listing)["result"]
    second = key(server, "shell", "--rotate")
    assert second != first
    assert curl(endpoint, second, listing)["result"] and curl(endpoint, first, listing)["result"]
    key(server, "shell", "--rotate")
    refused = requests.post(endpoint, data=listing, headers={"x-ms-apikey": first}, timeout=60)
    assert refused.status_code == 401 and "x-ms-apikey" in refused.json()["message"]


def test_an_environment_is_a_session_and_expires_as_one(server, start, tools):
    run, environment = tools("python")
    assert server.native("GET", f"/pools/python/sessions/{environment}").status_code == 404
    said = run("runPythonCodeInRemoteEnvironment", environmentId=environment, pythonCode="x = 41")
    assert said["structuredContent"]["exitCode"] == 0
    assert server.pool("python").modern(environment, code="x + 1")["result"]["executionResult"] == 42
    raised = run("runPythonCodeInRemoteEnvironment", environmentId=environment, pythonCode="1 / 0")
    assert raised["isError"] is True and "ZeroDivisionError" in raised["structuredContent"]["stderr"]

    short = start("--cooldown", "1", "--ready", "0")
    run, environment = tools("shell", short)
    command = {"environmentId": environment, "shellCommand": "true"}
    assert run("runShellCommandInRemoteEnvironment", **command)["structuredContent"]["exitCode"] == 0
    path = f"/pools/shell/sessions/{environment}"
    wait_for(lambda: short.native("GET", path).status_code == 404, "the session to end")
    error = run.answer("runShellCommandInRemoteEnvironment", **command)["error"]
    assert error["code"] == -32000
    assert "Environment not found" in error["message"] and "launchShell again" in error["message"]


def test_a_figure_is_answered_as_an_image(tools):
    run, environment = tools("python")
    code = "import matplotlib.pyplot as plt\nplt.plot([1, 4, 9])\nplt.show()"
    said = run("runPythonCodeInRemoteEnvironment", environmentId=environment, pythonCode=code)
    text, image = said["content"]
    assert json.loads(text["text"]) == said["structuredContent"]
    assert (image["type"], image["mimeType"]) == ("image", "image/png")
    assert Image.open(io.BytesIO(base64.b64decode(image["data"]))).width > 100


class Ours:
    """Our own server, as the era before 2026-07-28 calls it."""

    def __init__(self, server, path: str = "/mcp"):
        self.server, self.path = server, path

    def answer(self, tool: str, /, *, timeout: float = 60, **arguments) -> dict:
        call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": tool, "arguments": arguments}}
        accept = {"Accept": "application/json, text/event-stream", "MCP-Protocol-Version": "2025-11-25"}
        answer = self.server.native("POST", self.path, json=call, headers=accept, timeout=timeout)
        assert answer.status_code == 200, answer.text
        return answer.json()["result"]

    def __call__(self, tool: str, /, **arguments) -> dict:
        result = self.answer(tool, **arguments)
        assert "structuredContent" in result, result
        return result["structuredContent"]


def test_a_client_that_goes_away_ends_its_processes_and_keeps_their_output(server, session):
    ours = Ours(server)
    handle = ours("open_session", name=session)["session_id"]
    mark = "sleep 86399"
    with pytest.raises(requests.Timeout):
        ours.answer("run_command", timeout=2, session_id=handle, command=f"echo begun; {mark}")

    def is_gone():
        listed = ours("run_command", session_id=handle, command="ps -eo args || cat /proc/[0-9]*/cmdline")
        return mark not in listed["stdout"].replace("\0", " ")

    wait_for(is_gone, "its processes to end")
    executions = server.native("GET", f"/pools/python/sessions/{session}/executions").json()["value"]
    stopped = next(one for one in executions if one["outcome"] == "cancelled")
    kept = ours("wait_execution", session_id=handle, execution_id=stopped["id"], wait_seconds=0)
    assert kept["status"] == "cancelled" and kept["stdout"] == "begun\n"


def test_a_handle_outlives_the_server(start):
    server = start("--ready", "0")
    ours = Ours(server)
    handle = ours("open_session", pool="shell")["session_id"]
    assert ours("run_command", session_id=handle, command="echo kept > /mnt/data/a")["exit_code"] == 0
    old = server.process()
    kill(old)
    wait_for(lambda: server.process() not in (0, old) and server.is_ready(), "the server to come back")
    assert ours("read_file", session_id=handle, path="a")["content"] == "kept\n"


def test_fifty_calls_at_once_are_neither_lost_nor_mixed(server, session):
    ours = Ours(server, "/pools/shell/mcp")
    handle = ours("open_session", name=session)["session_id"]
    with ThreadPoolExecutor(50) as pool:
        said = pool.map(lambda number: ours("run_command", session_id=handle, command=f"echo {number}"), range(50))
        assert [one["stdout"] for one in said] == [f"{number}\n" for number in range(50)]


def test_over_stdio_it_is_the_same_server(server, session):
    words = [PROGRAM, "--home", str(server.home), "mcp", "--pool", "shell"]
    host = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=CLEAN)

    def send(method: str, params: dict, number: int | None = None):
        message = {"jsonrpc": "2.0", "method": method, "params": params}
        host.stdin.write(json.dumps(message if number is None else {**message, "id": number}) + "\n")
        host.stdin.flush()

    def call(number: int, tool: str, /, **arguments):
        send("tools/call", {"name": tool, "arguments": arguments}, number)

    about = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
    try:
        send("initialize", about, 1)
        assert json.loads(host.stdout.readline())["result"]["protocolVersion"] == "2025-11-25"
        send("notifications/initialized", {})
        call(2, "open_session", name=session)
        handle = json.loads(host.stdout.readline())["result"]["structuredContent"]["session_id"]
        # A call that takes long holds no other up, and is stopped when it is cancelled.
        call(3, "run_command", session_id=handle, command="sleep 600")
        executions = f"/pools/shell/sessions/{session}/executions"
        wait_for(lambda: server.native("GET", executions).json()["value"], "the command to run")
        call(4, "run_command", session_id=handle, command="echo hi")
        answer = json.loads(host.stdout.readline())
        assert answer["id"] == 4 and answer["result"]["structuredContent"]["stdout"] == "hi\n"
        send("notifications/cancelled", {"requestId": 3})

        def first():
            return server.native("GET", executions).json()["value"][0]["outcome"]

        assert wait_for(first, "the command to be stopped") == "cancelled"
    finally:
        host.stdin.close()
        assert host.wait(10) == 0
