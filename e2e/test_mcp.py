"""The Model Context Protocol: as Azure's documentation has it called, and our own server."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import textwrap
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


TENANTS = """
listen: 127.0.0.1:0
tenants: [{ name: acme }, { name: globex }]
pools:
  - apiVersion: sandpool.dev/v1alpha1
    kind: SessionPool
    metadata: { name: shell }
    spec:
      containerType: Shell
      scaleConfiguration: { maxConcurrentSessions: 2, readySessionInstances: 0 }
"""


class Ours:
    """Our own server, as the era of `version` calls it; without a session of the protocol, unless one is named."""

    def __init__(self, server, path: str = "/mcp", token: str | None = None, version: str = "2025-11-25", able=None):
        self.server, self.path, self.token, self.version, self.able = server, path, token, version, able or {}

    def post(self, message: dict, timeout: float = 60, **headers: str) -> requests.Response:
        params = message.get("params", {})
        sent = {"Accept": "application/json, text/event-stream", "MCP-Protocol-Version": self.version, **headers}
        if self.version >= "2026-07-28":
            kept = "io.modelcontextprotocol/"
            meta = {f"{kept}protocolVersion": self.version, f"{kept}clientCapabilities": self.able}
            message = {**message, "params": {**params, "_meta": meta}}
            sent["Mcp-Method"] = message["method"]
            if name := params.get("name") or params.get("uri") or params.get("taskId"):
                sent["Mcp-Name"] = name
            if handle := params.get("arguments", {}).get("session_id"):
                sent["Mcp-Param-Session"] = handle
        return self.server.native("POST", self.path, json=message, headers=sent, timeout=timeout, token=self.token)

    def request(self, method: str, timeout: float = 60, **params) -> dict:
        return self.post({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}, timeout=timeout).json()

    def answer(self, tool: str, /, *, timeout: float = 60, **arguments) -> dict:
        answer = self.request("tools/call", timeout=timeout, name=tool, arguments=arguments)
        assert "result" in answer, answer
        return answer["result"]

    def __call__(self, tool: str, /, **arguments) -> dict:
        result = self.answer(tool, **arguments)
        assert "structuredContent" in result, result
        return result["structuredContent"]


@pytest.fixture(scope="module", autouse=True)
def ninety_seconds(server):
    """A client that gives each call a minute, and what it hears of an execution that takes a minute and a half: while the others are tested."""

    def client():
        ours = Ours(server)
        handle = ours("open_session", name="ninety-seconds")["session_id"]
        code = "open('/mnt/data/runs', 'a').write('run\\n')\nimport time\nprint('begun')\ntime.sleep(90)\n'ended'"
        heard = [ours("run_code", session_id=handle, code=code)]
        while heard[-1]["status"] == "running":
            named = {"session_id": handle, "execution_id": heard[-1]["execution_id"], "after_seq": heard[-1]["last_seq"]}
            heard.append(ours("wait_execution", **named))
        return heard, ours("read_file", session_id=handle, path="runs")["content"]

    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(client)
    server.native("DELETE", "/pools/python/sessions/ninety-seconds")


def test_a_client_that_goes_away_ends_its_processes_and_keeps_their_output(server, session):
    ours = Ours(server)
    handle = ours("open_session", name=session)["session_id"]
    # One hears no interrupt, and so has to be killed; the other has children in the background and in a session of their own.
    mark = "sleep 86399"
    for command in (f"{mark} & setsid {mark} & {mark}", f"trap '' INT TERM; echo begun; {mark}; {mark}"):
        with pytest.raises(requests.Timeout):
            ours.answer("run_command", timeout=2, session_id=handle, command=command)

    def is_gone():
        listed = ours("run_command", session_id=handle, command="ps -eo args || cat /proc/[0-9]*/cmdline")
        return mark not in listed["stdout"].replace("\0", " ")

    wait_for(is_gone, "its processes to end")
    executions = server.native("GET", f"/pools/python/sessions/{session}/executions").json()["value"]
    stopped = [one for one in executions if one["outcome"] == "cancelled"][-1]
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


def test_ten_megabytes_of_output_are_bounded_and_the_rest_is_a_resource(server, session):
    ours = Ours(server)
    handle = ours("open_session", name=session)["session_id"]
    answer = ours.answer("run_command", session_id=handle, command="yes 0123456789abcde | head -c 10485760")
    said = answer["structuredContent"]
    assert said["truncated"] and len(json.dumps(answer)) < 100_000
    [rest] = said["artifacts"]
    whole = ours.request("resources/read", uri=rest["uri"])["result"]["contents"][0]["text"]
    assert len(whole) == rest["size"] and whole.startswith("0123456789abcde\n")


def test_a_command_has_the_directory_and_the_variables_it_was_given(server, session):
    ours = Ours(server)
    handle = ours("open_session", name=session)["session_id"]
    ours("run_command", session_id=handle, command="mkdir -p 'a b'")
    given = {"session_id": handle, "cwd": "a b", "env": {"WORD": "it's $HOME", "EMPTY": ""}}
    line = ours("run_command", command='pwd; echo "$WORD${EMPTY-unset}"', **given)
    assert line["stdout"] == "/mnt/data/a b\nit's $HOME\n", line
    program = ours("run_command", argv=["sh", "-c", 'pwd; echo "$WORD"'], **given)
    assert program["stdout"] == "/mnt/data/a b\nit's $HOME\n", program
    assert ours("run_command", session_id=handle, command="pwd; echo ${WORD-none}")["stdout"] == "/mnt/data\nnone\n", "once"
    missing = ours("run_command", session_id=handle, command="echo never", cwd="none")
    assert missing["exit_code"] != 0 and "never" not in missing["stdout"]
    refused = ours.answer("run_command", session_id=handle, command="true", env={"A B": "1"})
    assert refused["isError"] and "is no variable" in refused["content"][0]["text"]
    for number in range(3):
        ours("write_file", session_id=handle, path="log", content=f"{number}\n", append=True)
    assert ours("read_file", session_id=handle, path="log")["content"] == "0\n1\n2\n"


def test_another_tenants_handle_is_a_name_and_no_more(start):
    server = start(config=TENANTS)
    acme, globex = (Ours(server, token=server.token("--tenant", tenant)) for tenant in ("acme", "globex"))
    handle = acme("open_session", pool="shell", name="the-plan")["session_id"]
    assert acme("write_file", session_id=handle, path="plan", content="secret")["bytes_written"] == 6
    for tool, arguments in [
        ("run_command", {"command": "cat plan"}),
        ("read_file", {"path": "plan"}),
        ("list_files", {}),
        ("write_file", {"path": "plan", "content": ""}),
    ]:
        refused = globex.answer(tool, session_id=handle, **arguments)
        assert refused["isError"] and "secret" not in json.dumps(refused), refused
    assert globex("close_session", session_id=handle)["closed"] is False
    assert acme("read_file", session_id=handle, path="plan")["content"] == "secret"


def test_a_session_of_the_old_protocol_cancels_and_outlives_the_server(start):
    server = start("--ready", "0")
    about = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
    ours = Ours(server)
    opened = ours.post({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": about})
    name = {"Mcp-Session-Id": opened.headers["mcp-session-id"]}
    assert ours.post({"jsonrpc": "2.0", "method": "notifications/initialized"}, **name).status_code == 202
    handle = ours("open_session", pool="shell", name="cancelled")["session_id"]

    def executions():
        return server.native("GET", "/pools/shell/sessions/cancelled/executions").json()["value"]

    def call(number: int, **arguments) -> dict:
        params = {"name": "run_command", "arguments": {"session_id": handle, **arguments}}
        return {"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params}

    # It is cancelled by a word of the client, whose own request goes on.
    with ThreadPoolExecutor(1) as pool:
        waits = pool.submit(ours.post, call(2, command="echo begun; sleep 600"), **name)
        wait_for(executions, "the command to run")
        note = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 2}}
        assert ours.post(note, **name).status_code == 202
        wait_for(lambda: executions()[0]["outcome"] == "cancelled", "the command to be cancelled")
        assert waits.result(30).status_code == 200
    # And by going away.
    with pytest.raises(requests.RequestException):
        ours.post(call(3, command="sleep 601"), timeout=2, **name)
    wait_for(lambda: [one["outcome"] for one in executions()] == ["cancelled"] * 2, "the second to be cancelled")
    # The name is good after a restart too, for its owner and nobody else.
    old = server.process()
    kill(old)
    wait_for(lambda: server.process() not in (0, old) and server.is_ready(), "the server to come back")
    said = ours.post(call(4, command="echo again"), **name)
    assert said.status_code == 200 and "again" in said.text
    changed = {"Mcp-Session-Id": name["Mcp-Session-Id"][:-1] + "x"}
    assert ours.post(call(5, command="true"), **changed).status_code == 404
    assert server.native("DELETE", "/mcp", headers=name).status_code == 202
    assert ours.post(call(6, command="true"), **name).status_code == 404


def test_a_client_that_knows_tasks_has_one_for_what_takes_long(server, session):
    ours = Ours(server, version="2026-07-28", able={"extensions": {"io.modelcontextprotocol/tasks": {}}})
    handle = ours("open_session", name=session)["session_id"]
    assert ours("run_code", session_id=handle, code="6 * 7")["result"] == "42", "what is done at once is no task"
    task = ours.answer("run_code", session_id=handle, code="import time\ntime.sleep(7)\n'late'")
    assert task["resultType"] == "task" and task["status"] == "working", task

    def result():
        now = ours.request("tasks/get", taskId=task["taskId"])["result"]
        return now["status"] != "working" and now

    done = wait_for(result, "the task to end")
    assert done["status"] == "completed" and done["result"]["structuredContent"]["result"] == "'late'", done
    # One that is cancelled ends soon.
    task = ours.answer("run_code", session_id=handle, code="time.sleep(600)", background=True)
    assert ours.request("tasks/cancel", taskId=task["taskId"])["result"]["resultType"] == "complete"
    assert wait_for(result, "the task to be cancelled")["status"] == "cancelled"
    # Who does not say that it knows tasks is told so, and never has one.
    plain = Ours(server, version="2026-07-28")
    assert plain.request("tasks/get", taskId=task["taskId"])["error"]["code"] == -32021
    assert plain("run_code", session_id=handle, code="1", background=True)["status"] in ("running", "done")


def test_a_large_image_is_seen_smaller_and_linked_as_it_was(server, session):
    ours = Ours(server)
    handle = ours("open_session", name=session)["session_id"]
    code = """
        import numpy
        from PIL import Image
        noise = numpy.random.default_rng(7).integers(0, 255, (1500, 3000, 3), dtype=numpy.uint8)
        image = Image.fromarray(noise)
        image.crop((0, 0, 1500, 750)).save("/mnt/data/noise.png")
        image
    """
    answer = ours.answer("run_code", session_id=handle, code=textwrap.dedent(code))
    _, seen, link = answer["content"]
    shown = base64.b64decode(seen["data"])
    assert len(shown) <= 200 * 1024 and max(Image.open(io.BytesIO(shown)).size) <= 1568
    assert link["type"] == "resource_link" and link["size"] > 1_000_000
    whole = ours.request("resources/read", uri=link["uri"])["result"]["contents"][0]
    assert Image.open(io.BytesIO(base64.b64decode(whole["blob"]))).size == (3000, 1500)
    read = ours.answer("read_file", session_id=handle, path="noise.png")
    assert len(base64.b64decode(read["content"][1]["data"])) <= 200 * 1024, "a small image is read, large as the file is"


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


def test_a_client_that_gives_up_after_a_minute_has_what_takes_a_minute_and_a_half(ninety_seconds):
    heard, runs = ninety_seconds.result(180)
    first, last = heard[0], heard[-1]
    assert first["status"] == "running" and first["stdout"] == "begun\n"
    assert (last["status"], last["result"]) == ("done", "'ended'")
    assert "".join(one["stdout"] for one in heard) == "begun\n"
    assert runs == "run\n", "it ran once"
