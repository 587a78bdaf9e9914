"""Hosted MCP servers: published ones, unmodified, in real sandboxes, and published clients of them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import requests
import yaml

from documents import examples, for_server
from sandpool import Server, kill, wait_for
from test_mcp_clients import node, python, run

HERE = Path(__file__).parent
# The guide's examples: settings, and how a host is told of one of their servers.
EXAMPLES = [*examples("docs/mcp-servers.md", "yaml"), *examples("docs/mcp-servers.md", "json")]

# The first start installs the servers, from their registries; a client has a minute on a machine that has better to do.
pytestmark = pytest.mark.timeout(400)
LIMIT = 60

KEY = "the key of a small tenant"

CONFIG = f"""
listen: 127.0.0.1:0
tenants:
  - name: small
    apiKeys:
      - {{ name: small, sha256: {hashlib.sha256(KEY.encode()).hexdigest()} }}
    quota: {{ sessions: 1 }}
pools:
  - metadata: {{ name: tools }}
    spec:
      containerType: NodeLTS
      scaleConfiguration: {{ maxConcurrentSessions: 20, readySessionInstances: 1, waitWhenFullInSeconds: 0 }}
      servers:
        everything: {{ npm: "@modelcontextprotocol/server-everything@2026.8.31" }}
        files: {{ npm: "@modelcontextprotocol/server-filesystem@2026.8.31", args: [/mnt/data] }}
        time: {{ pypi: mcp-server-time==2026.10.19, args: [--local-timezone, UTC] }}
        over-http:
          npm: "@modelcontextprotocol/server-everything@2026.8.31"
          args: [streamableHttp]
          env: [{{ name: PORT, value: "3001" }}]
          http: {{ port: 3001 }}
        envied:
          npm: "@modelcontextprotocol/server-everything@2026.8.31"
          env: [{{ name: SAID, value: to one server only }}]
        absent: {{ command: /usr/bin/no-such-program }}
  - metadata: {{ name: brief }}
    spec:
      containerType: Shell
      scaleConfiguration: {{ readySessionInstances: 1 }}
      dynamicPoolConfiguration: {{ lifecycleConfiguration: {{ cooldownPeriodInSeconds: 2 }} }}
      servers:
        time: {{ pypi: mcp-server-time==2026.10.19, args: [--local-timezone, UTC] }}
"""


@pytest.fixture(scope="module")
def hosted():
    server = Server(config=CONFIG)
    yield server
    server.remove()


class Host:
    """One MCP session, as plain requests."""

    def __init__(self, server: Server, pool: str, name: str, headers: dict | None = None):
        self.server, self.path = server, f"/pools/{pool}/servers/{name}/mcp"
        self.headers = {"Accept": "application/json, text/event-stream", **(headers or {})}
        about = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
        self.begun = self.send({"id": 0, "method": "initialize", "params": about})
        self.session = self.begun.headers.get("mcp-session-id")
        if self.session:
            self.headers["Mcp-Session-Id"] = self.session
            assert self.send({"method": "notifications/initialized"}).status_code == 202

    def send(self, message: dict) -> requests.Response:
        message = {"jsonrpc": "2.0", **message}
        return self.server.native("POST", self.path, json=message, headers=self.headers, timeout=LIMIT)

    def call(self, tool: str, **arguments) -> dict:
        answer = self.send({"id": 1, "method": "tools/call", "params": {"name": tool, "arguments": arguments}})
        assert answer.status_code == 200, answer.text
        if answer.headers["content-type"].startswith("application/json"):
            return answer.json()["result"]
        lines = [line for line in answer.content.decode().splitlines() if line.startswith("data: ")]
        return json.loads(lines[-1].removeprefix("data: "))["result"]

    def end(self) -> int:
        return self.server.native("DELETE", self.path, headers=self.headers, timeout=LIMIT).status_code


def sessions(server: Server, pool: str) -> list[str]:
    return [one["identifier"] for one in server.native("GET", f"/pools/{pool}/sessions").json()["value"]]


def leaves_nothing(server: Server, *names: str):
    """Waits until no session of these servers is there."""

    def are_gone() -> bool:
        return not any(one.startswith(f"mcp-{name}-") for one in sessions(server, "tools") for name in names)

    wait_for(are_gone, "the sessions to end", LIMIT)


def base(server: Server) -> str:
    return f"{server.endpoint}/pools/tools/servers"


@pytest.mark.parametrize("server", ["everything", "over-http"])
def test_published_servers_by_the_sdks_first_generation(hosted, tmp_path, server):
    seen = json.loads(run([python("old"), HERE / "mcp/hosted_first.py", base(hosted), hosted.bearer, server], tmp_path))
    everything = seen["everything"]
    assert everything["revision"] == "2025-11-25" and "echo" in everything["tools"]
    assert everything["echo"] == "Echo: hi" and "completed" in everything["long"]
    assert everything["progress"] == [1, 2, 3, 4]
    # What a server asks of its client passes through, and so do the answers.
    assert seen["told"] == ["elicitation", "roots", "sampling"]
    assert "a sampled answer" in everything["sampled"] and "Ann" in everything["elicited"]
    assert "file:///mnt/data" in everything["roots"]
    assert everything["image"] == "image/png" and everything["resource"] > 100 and everything["prompts"] > 0
    assert everything["sums"] == [f"The sum of {number} and 1 is {number + 1}." for number in range(20)]
    files = seen["files"]
    assert (files["read"], "denied" in files["outside"]) == ("kept", True)
    assert "21:00:00+09:00" in seen["time"]["converted"]
    # The SDK ends its sessions, and they leave nothing.
    leaves_nothing(hosted, server, "files", "time")


def test_published_servers_by_the_sdks_second_generation(hosted, tmp_path):
    seen = json.loads(run([python("new"), HERE / "mcp/hosted_second.py", base(hosted), hosted.bearer], tmp_path))
    assert seen["everything"]["text"] == "Echo: hi" and "/mnt/data" in seen["files"]["text"]
    assert seen["time"]["tools"] == ["get_current_time", "convert_time"] and "UTC" in seen["time"]["text"]
    leaves_nothing(hosted, "everything", "files", "time")


@pytest.mark.parametrize("generation", ["first", "second"])
def test_a_published_server_by_the_sdks_for_javascript(hosted, tmp_path, generation):
    script = tmp_path / "hosted.mjs"
    script.write_text((HERE / "node/hosted.mjs").read_text())
    words = ["node", script, generation, f"{base(hosted)}/everything/mcp", hosted.bearer]
    seen = json.loads(run(words, tmp_path, **node(tmp_path)))
    assert "get-sum" in seen["tools"] and seen["text"] == "The sum of 1 and 2 is 3."
    leaves_nothing(hosted, "everything")


def test_a_hosted_server_and_rest_share_the_session_and_its_files(hosted):
    host = Host(hosted, "tools", "files")
    session = f"mcp-files-{host.session}"
    files = f"/pools/tools/sessions/{session}/files/b.txt"
    assert hosted.native("PUT", files, data=b"by REST").status_code in (200, 201)
    assert host.call("read_text_file", path="/mnt/data/b.txt")["content"][0]["text"] == "by REST"
    assert session in sessions(hosted, "tools")
    assert host.end() == 204
    assert session not in sessions(hosted, "tools")
    assert host.end() == 404 and host.send({"id": 2, "method": "ping"}).status_code == 404


def test_a_hosted_server_that_is_not_asked_ends(hosted):
    host = Host(hosted, "brief", "time")
    assert "UTC" in host.call("get_current_time", timezone="UTC")["content"][0]["text"]
    wait_for(lambda: not sessions(hosted, "brief"), "the session to end", LIMIT)
    wait_for(lambda: host.send({"id": 2, "method": "ping"}).status_code == 404, "its server to be gone", LIMIT)


def test_hosted_servers_count_against_quotas(hosted):
    small = {"Authorization": f"Bearer {KEY}"}
    host = Host(hosted, "tools", "time", small)
    assert host.session, host.begun.text
    second = Host(hosted, "tools", "time", small)
    assert second.begun.status_code == 429 and second.begun.json()["code"] == "TenantQuotaExceeded"
    # Others have their own, and do not see it.
    other = Host(hosted, "tools", "time")
    assert other.session
    other.headers["Mcp-Session-Id"] = host.session
    assert other.send({"id": 2, "method": "ping"}).status_code == 404
    other.headers["Mcp-Session-Id"] = other.session
    assert (host.end(), other.end()) == (204, 204)


def test_a_hosted_server_ends_with_ours_and_is_begun_anew(start):
    config = CONFIG.split("  - metadata: { name: tools }")[0] + CONFIG[CONFIG.index("  - metadata: { name: brief }") :]
    server = start(config=config.replace("cooldownPeriodInSeconds: 2", "cooldownPeriodInSeconds: 300"))
    host = Host(server, "brief", "time")
    assert sessions(server, "brief") == [f"mcp-time-{host.session}"]
    old = server.process()
    kill(old)
    wait_for(lambda: server.process() not in (0, old) and server.is_ready(), "the server to come back", LIMIT)
    answer = host.send({"id": 2, "method": "ping"})
    assert answer.status_code == 404 and "initialize" in answer.json()["error"]["message"]
    assert sessions(server, "brief") == [], "what is of no use to anybody is not kept"
    again = Host(server, "brief", "time")
    assert again.call("get_current_time", timezone="UTC")["content"]
    assert again.end() == 204


def test_a_hosted_server_that_cannot_be_started_says_why(hosted):
    host = Host(hosted, "tools", "absent")
    assert host.begun.status_code == 502 and host.session is None
    assert "before it began" in host.begun.json()["error"]["message"]
    leaves_nothing(hosted, "absent")
    unknown = Host(hosted, "tools", "none")
    assert unknown.begun.status_code == 404 and "absent, envied, everything, files, over-http, time" in unknown.begun.json()["message"]


def test_a_hosted_server_reaches_nothing_and_knows_nothing_of_the_host(hosted):
    host = Host(hosted, "tools", "envied")
    variables = json.loads(host.call("get-env")["content"][0]["text"])
    assert variables["SAID"] == "to one server only" and variables["HOME"] == "/home/sandbox"
    # Nothing of the environment of whoever started ours, which these are surely in.
    assert not {"SANDPOOL_BIN", "SANDPOOL_IMAGES", "SANDPOOL_HOME"} & variables.keys()
    assert str(hosted.home) not in json.dumps(variables)
    inside = host.call("gzip-file-as-resource", name="a.gz", data="data:text/plain,hello")
    assert not inside.get("isError"), inside
    # The server that it runs on answers everybody on this machine, but nobody in a sandbox.
    assert requests.get(hosted.endpoint + "/healthz", timeout=LIMIT).status_code == 200
    outside = host.call("gzip-file-as-resource", name="b.gz", data=hosted.endpoint + "/healthz")
    assert outside["isError"] is True, outside
    assert host.end() == 204
    other = Host(hosted, "tools", "everything")
    assert "SAID" not in json.loads(other.call("get-env")["content"][0]["text"])
    assert other.end() == 204


def test_the_guides_servers_are_those_that_are_tested():
    settings, _ = EXAMPLES
    [guide] = yaml.safe_load(settings.code)["pools"]
    ours = next(pool for pool in yaml.safe_load(CONFIG)["pools"] if pool["metadata"] == guide["metadata"])
    assert guide["spec"]["containerType"] == ours["spec"]["containerType"]
    assert guide["spec"]["servers"]
    for name, server in guide["spec"]["servers"].items():
        assert ours["spec"]["servers"][name] == server


def test_a_host_is_told_of_a_server_as_the_guide_does(hosted):
    _, told = EXAMPLES
    [(name, entry)] = json.loads(for_server(told.code, hosted.endpoint, hosted.bearer))["mcpServers"].items()
    assert entry["type"] == "http" and entry["url"] == f"{base(hosted)}/{name}/mcp"
    host = Host(hosted, "tools", name, entry["headers"])
    assert "UTC" in host.call("get_current_time", timezone="UTC")["content"][0]["text"]
    assert host.end() == 204
