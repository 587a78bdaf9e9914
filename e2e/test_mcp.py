"""The Model Context Protocol, in the form of Azure's dynamic sessions, as its documentation has it called."""

from __future__ import annotations

import base64
import io
import json
import subprocess

import pytest
import requests
from PIL import Image

from sandpool import kill, wait_for


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
