"""What a session does, as those see it who look: samples, decisions about what it reaches, and traces, logs and metrics over OTLP."""

from __future__ import annotations

import json
import os
import re
import threading
import time

import pytest
import requests
from otlp import Collector, attributes
from sandpool import Server, Target, kill, of_process, wait_for


def events_of(server: Server, path: str, **headers: str):
    """A stream of server-sent events: each as (event, id, data)."""
    headers |= {"Authorization": f"Bearer {server.bearer}", "Accept": "text/event-stream"}
    with requests.get(server.endpoint + path, headers=headers, stream=True, timeout=60) as answer:
        assert answer.status_code == 200, answer.text
        event: dict[str, str] = {}
        for line in answer.iter_lines(decode_unicode=True):
            if line:
                name, _, value = line.partition(": ")
                event[name] = value
            elif "data" in event:
                yield event["event"], int(event["id"]), json.loads(event["data"])
                event = {}
            else:
                event = {}


@pytest.fixture(scope="module")
def target():
    """A server that sessions reach through the proxy."""
    target = Target(lambda request: (bytes(int(request.path[1:] or 0)), {}))
    yield target
    target.close()


@pytest.fixture(scope="module")
def server(target):
    pools = [
        {
            "metadata": {"name": "python"},
            "spec": {
                "containerType": "PythonLTS",
                "scaleConfiguration": {"readySessionInstances": 1, "maxConcurrentSessions": 8},
                "egress": {
                    "mode": "allow-list",
                    "allow": [f"one.test:{target.port}"],
                    "allowAddresses": ["127.0.0.0/8"],
                    "hosts": {"one.test": ["127.0.0.1"]},
                },
            },
        },
        {
            "metadata": {"name": "shell"},
            "spec": {"containerType": "Shell", "scaleConfiguration": {"readySessionInstances": 1, "maxConcurrentSessions": 4}},
        },
    ]
    server = Server(config=json.dumps({"listen": "127.0.0.1:0", "pools": pools}))
    server.bearer = server.token("--role", "admin")
    yield server
    server.remove()


def run(server: Server, session: str, code: str) -> dict:
    answer = server.native("POST", f"{session}/executions", json={"code": code})
    assert answer.status_code == 200 and answer.json()["outcome"] == "succeeded", answer.text
    return answer.json()


# Samples.

LOAD = """
import os, subprocess
held = bytearray(os.urandom(1 << 20)) * 96
children = [subprocess.Popen(["sleep", "300"]) for _ in range(3)]
x = 0
for i in range(20_000_000):
    x += i
"""


def test_samples_move_under_load_and_are_taken_up_again(server):
    session = "/pools/python/sessions/loaded"
    samples = f"{session}/samples"
    assert server.native("GET", samples).status_code == 404
    assert server.native("PUT", session, json={}).status_code == 201
    first = server.native("GET", samples).json()
    assert first["interval"] == 1 and first["samples"], first
    before = first["samples"][0]
    # What every kernel tells that we run on, and what only some do.
    assert before["cpuSeconds"] >= 0 and before["memoryBytes"] > 0 and before["processes"] > 0 and before["oomKills"] == 0
    assert before["throttledSeconds"] is not None and before["egressSentBytes"] == 0
    assert before["memoryPressure"] is None or 0 <= before["memoryPressure"] <= 1
    working = threading.Thread(target=run, args=(server, session, LOAD))
    working.start()
    seen = []
    for name, number, sample in events_of(server, samples):
        assert name == "sample" and number == sample["sequence"]
        seen.append(sample)
        moved = [sample[key] - before[key] for key in ("cpuSeconds", "memoryBytes", "processes")]
        if moved[0] > 0.5 and moved[1] > 64 << 20 and moved[2] >= 3:
            break
    working.join()
    numbers = [sample["sequence"] for sample in seen]
    assert numbers == sorted(set(numbers)) and numbers[0] >= before["sequence"]
    assert seen[-1]["memoryPeakBytes"] is None or seen[-1]["memoryPeakBytes"] >= before["memoryBytes"] + (64 << 20)
    # Taken up again after the last but one, and by a list too.
    stream = events_of(server, samples, **{"Last-Event-ID": str(numbers[-2] if len(numbers) > 1 else before["sequence"])})
    assert next(stream)[1] == numbers[-1]
    listed = server.native("GET", f"{samples}?after={numbers[-1]}").json()["samples"]
    assert all(sample["sequence"] > numbers[-1] for sample in listed)
    # The stream ends with its session, and a pool that reaches nothing has no bytes to tell.
    assert server.native("DELETE", session).status_code == 204
    assert all(name == "sample" for name, _, _ in stream)
    other = "/pools/shell/sessions/quiet"
    assert server.native("PUT", other, json={}).status_code == 201
    [sample] = server.native("GET", f"{other}/samples").json()["samples"][:1]
    assert sample["egressSentBytes"] is None and sample["egressReceivedBytes"] is None


# Decisions.

REACH = """
import json, urllib.request
def get(host, path=""):
    try:
        return len(urllib.request.urlopen(f"http://{{host}}:{port}/{{path}}", timeout=20).read())
    except OSError as error:
        return None
print(json.dumps([get("one.test", "5000"), *(get("evil.test") for _ in range(40)), get("one.test", "7")]))
"""


def test_what_a_session_reached_is_told_counted_and_in_the_journal(server, target):
    session = "/pools/python/sessions/reaching"
    decisions = f"{session}/egress/decisions"
    assert server.native("PUT", session, json={}).status_code == 201
    assert server.native("GET", decisions).json() == {"decisions": [], "next": None}
    stream = events_of(server, decisions)
    printed = run(server, session, REACH.format(port=target.port))["stdout"]
    assert json.loads(printed) == [5000, *[None] * 40, 7]
    followed = []
    for name, _, decision in stream:
        assert name == "decision"
        followed.append(decision)
        if sum(one["decision"] == "allowed" and one["port"] == target.port for one in followed) == 2:
            break
    wait_for(lambda: len(listed(server, decisions)) >= 42, "all decisions are told")
    told = listed(server, decisions)
    numbers = [one["sequence"] for one in told]
    assert numbers == sorted(set(numbers))
    big = next(one for one in told if one["receivedBytes"] > 5000)
    assert (big["host"], big["port"], big["decision"], big["via"] in ("proxy", "http", "connect")) == ("one.test", target.port, "allowed", True)
    refused = [one for one in told if one["decision"] == "refused"]
    assert len(refused) >= 40 and {one["host"] for one in refused} == {"evil.test"} and all(one["reason"] for one in refused)
    page = server.native("GET", f"{decisions}?limit=10").json()
    assert [one["sequence"] for one in page["decisions"]] == numbers[:10] and page["next"] == numbers[9]
    # Counted.
    metrics = server.native("GET", "/metrics").text
    count = next(line for line in metrics.splitlines() if line.startswith('sandpool_pool_egress_decisions_total{pool="python",decision="refused"}'))
    assert float(count.split()[-1]) >= 40
    assert 'sandpool_egress_decisions_missed_total 0' in metrics
    assert 'sandpool_pool_egress_decisions_total{pool="shell"' not in metrics
    # In the journal, where forty tries are two records at most: the first, and later one for the rest; once the session is over.
    assert server.native("DELETE", session).status_code == 204

    def written() -> list[dict]:
        return server.json("journal", "ls", "-n", "100000", "--session", "reaching", "--what", "egress")

    wait_for(lambda: any(one["what"] == "egress.refused" and " count:" in one["detail"] for one in written()), "repeats are written", limit=60)
    of = {what: [one["detail"] for one in written() if one["what"] == f"egress.{what}"] for what in ("allowed", "refused")}
    assert any(detail.startswith(f"one.test:{target.port} via:") and " received:5" in detail for detail in of["allowed"]), of
    assert 1 < len(of["refused"]) <= 4, of
    assert sum(int(detail.split(" count:")[1].split()[0]) if " count:" in detail else 1 for detail in of["refused"]) == len(refused)
    assert server.json("journal", "verify")["isIntact"]


def listed(server: Server, path: str) -> list[dict]:
    answer = server.native("GET", path)
    assert answer.status_code == 200, answer.text
    return answer.json()["decisions"]


def test_decisions_go_on_when_the_proxy_or_the_server_was_started_anew(server, target):
    session = "/pools/python/sessions/going-on"
    decisions = f"{session}/egress/decisions"
    assert server.native("PUT", session, json={}).status_code == 201
    code = f"import urllib.request; len(urllib.request.urlopen('http://one.test:{target.port}/9', timeout=20).read())"
    run(server, session, code)
    wait_for(lambda: any(one["port"] == target.port for one in listed(server, decisions)), "it is told")
    last = listed(server, decisions)[-1]["sequence"]
    for process in (server.proxy(), server.process()):
        kill(process)
        wait_for(server.is_ready, "all is there again")
        wait_for(lambda: server.native("GET", session).status_code == 200, "the session is there again")
        wait_for(lambda: server.native("POST", f"{session}/executions", json={"code": code}).json()["outcome"] == "succeeded", "it is reached again")
        wait_for(lambda: any(one["sequence"] > last and one["port"] == target.port for one in listed(server, decisions)), "later ones are told, with later numbers")
        last = listed(server, decisions)[-1]["sequence"]
    assert of_process(server.proxy(), "status")


# Traces, logs and metrics.

CANARY = "canary-7f3a9c51"

POOLS = [
    {"metadata": {"name": "python"}, "spec": {"containerType": "PythonLTS", "scaleConfiguration": {"readySessionInstances": 1, "maxConcurrentSessions": 8}}},
    {"metadata": {"name": "shell"}, "spec": {"containerType": "Shell", "scaleConfiguration": {"readySessionInstances": 1, "maxConcurrentSessions": 4}, "mcpServerSettings": {"isMcpServerEnabled": True}}},
]  # fmt: skip


def telling(endpoint: str, env: dict | None = None, **telemetry) -> Server:
    config = {"listen": "127.0.0.1:0", "pools": POOLS, "telemetry": {**telemetry, **({"endpoint": endpoint} if endpoint else {})}}
    server = Server(config=json.dumps(config), env=env)
    server.bearer = server.token("--role", "admin")
    return server


@pytest.fixture(scope="module")
def collector():
    collector = Collector()
    yield collector
    collector.close()


@pytest.fixture(scope="module")
def told(collector):
    server = telling(collector.endpoint, headers={"x-secret": "of-the-collector"}, metricsIntervalSeconds=1, resourceAttributes={"deployment.environment.name": "test"})
    yield server
    server.remove()


def caller(sampled: bool = True) -> tuple[str, str, dict[str, str]]:
    """A trace and a span of a caller's, and the header that says so."""
    trace, span = os.urandom(16).hex(), os.urandom(8).hex()
    return trace, span, {"traceparent": f"00-{trace}-{span}-{int(sampled):02x}"}


def whole(collector: Collector, trace: str, *names: str) -> dict[str, dict]:
    """The spans of a trace, by name, once those are there."""
    found: dict[str, dict] = {}

    def are_there() -> bool:
        found.clear()
        found.update({span["name"]: span for span in collector.spans(trace)})
        return set(names) <= set(found)

    wait_for(are_there, f"{names} of {trace}")
    return found


def check_tree(found: dict[str, dict], parents: dict[str, str], root: str):
    """Each span is below its parent, and within its time."""
    for name, parent in parents.items():
        span, above = found[name], found[parent]
        assert span["parent"] == above["id"], name
        assert above["start"] <= span["start"] <= span["end"], name
    assert found[root]["end"] >= max(found[name]["end"] for name in parents if found[name]["error"] is None) - 50_000_000


ALLOCATED = {"sandpool.allocation": "request", "sandpool.activation": "sandpool.allocation", "sandpool.execution": "request"}


def test_a_code_execute_is_one_trace_below_its_callers_span(told, collector):
    trace, span, header = caller()
    body = {"properties": {"codeInputType": "inline", "executionType": "synchronous", "code": f"print('{CANARY}'); {CANARY!r}"}}
    began = time.time_ns()
    answer = told.pool("python").call("POST", "code/execute", f"{CANARY}-azure", version="2024-02-02-preview", json=body, headers=header)
    ended = time.time_ns()
    assert answer.status_code == 200 and CANARY in answer.text, answer.text
    names = ("sandpool.allocation", "sandpool.activation", "sandpool.execution")
    route = "/subscriptions/{subscription}/resourceGroups/{resourceGroup}/sessionPools/{pool}/code/execute"
    found = whole(collector, trace, f"POST {route}", *names)
    assert set(found) <= {f"POST {route}", *names, "sandpool.wait"}
    request = found["request"] = found.pop(f"POST {route}")
    assert request["parent"] == span and request["kind"] == "SPAN_KIND_SERVER"
    check_tree(found, ALLOCATED, "request")
    # Named and timed: within what the caller saw, by the same clock.
    assert began <= request["start"] < request["end"] <= ended
    said = request["attributes"]
    assert (said["http.request.method"], said["http.route"], said["http.response.status_code"]) == ("POST", route, 200)
    assert said["sandpool.dialect"] == "azure"
    assert request["resource"]["service.name"] == "sandpool" and request["resource"]["deployment.environment.name"] == "test"
    # What the headers of the answer say of it.
    execution = found["sandpool.execution"]
    said = execution["attributes"]
    assert (said["sandpool.outcome"], said["sandpool.pool"], execution["error"]) == ("succeeded", "python", None)
    inside = float(answer.headers["x-ms-container-execution-duration"]) / 1000
    assert said["sandpool.execution.ran_seconds"] == pytest.approx(inside, abs=0.002)
    assert execution["end"] - execution["start"] >= said["sandpool.execution.ran_seconds"] * 1e9 * 0.9
    assert said["sandpool.sandbox"] == found["sandpool.allocation"]["attributes"]["sandpool.sandbox"]
    place = answer.headers["traceresponse"]
    assert place == f"00-{trace}-{request['id']}-01"
    # A second one finds its session: nothing is allocated.
    trace, _, header = caller()
    told.pool("python").call("POST", "code/execute", f"{CANARY}-azure", version="2024-02-02-preview", json=body, headers=header)
    assert set(whole(collector, trace, f"POST {route}", "sandpool.execution")) == {f"POST {route}", "sandpool.execution"}


def test_every_dialect_joins_and_what_goes_wrong_is_said(told, collector):
    session = f"/pools/python/sessions/{CANARY}-native"
    route = "POST /pools/{pool}/sessions/{session}/executions"
    for body, outcome in (
        ({"code": f"raise ValueError('{CANARY}')"}, "raised"),
        ({"code": "while True: pass", "timeoutSeconds": 1}, "timedOut"),
        ({"argv": ["sh", "-c", "exit 3"]}, "exited"),
    ):
        trace, _, header = caller()
        answer = told.native("POST", f"{session}/executions", json=body, headers=header)
        assert answer.status_code == 200 and answer.json()["outcome"] == outcome, answer.text
        found = whole(collector, trace, route, "sandpool.execution")
        execution = found["sandpool.execution"]
        assert (execution["attributes"]["sandpool.outcome"], execution["error"], execution["status"]["code"]) == (outcome, outcome, "STATUS_CODE_ERROR")
        # That code fails is no failure of the server.
        assert found[route]["error"] is None
        if outcome == "exited":
            assert execution["attributes"]["process.exit.code"] == 3
    # A refusal: its code, and the trace under which it is found again.
    trace, _, header = caller()
    refused = told.native("GET", f"/pools/python/sessions/{CANARY}-none", headers=header)
    assert refused.status_code == 404 and refused.json()["error"]["traceId"].startswith(f"00-{trace}-")
    span = whole(collector, trace, "GET /pools/{pool}/sessions/{session}")["GET /pools/{pool}/sessions/{session}"]
    assert span["attributes"]["error.type"] == refused.json()["error"]["code"] and span["attributes"]["http.response.status_code"] == 404
    # One that nobody waits for goes on, and its span with it.
    trace, _, header = caller()
    answer = told.native("POST", f"{session}/executions", json={"code": "import time; time.sleep(1.5)", "waitSeconds": 0}, headers=header)
    assert answer.status_code == 202
    found = whole(collector, trace, route, "sandpool.execution")
    assert found["sandpool.execution"]["end"] > found[route]["end"]
    # MCP: below what `_meta` says, which may be another trace than the header's.
    over, of_tool = caller(), caller()
    opened = mcp(told, "open_session", {"pool": "shell", "name": f"{CANARY}-mcp"}, over[2], of_tool[2])
    mcp(told, "run_command", {"session_id": opened["session_id"], "command": f"echo {CANARY}"}, over[2], of_tool[2])
    wait_for(lambda: len([span for span in collector.spans(of_tool[0]) if span["name"] == "mcp.tool"]) == 2, "both calls are told")
    spans = whole(collector, of_tool[0], "mcp.tool", "sandpool.execution", "sandpool.allocation")
    assert spans["mcp.tool"]["parent"] == of_tool[1] and spans["sandpool.execution"]["parent"] == spans["mcp.tool"]["id"]
    assert spans["mcp.tool"]["attributes"]["gen_ai.tool.name"] == "run_command"
    assert any(span["name"].startswith("POST /") and span["name"].endswith("/mcp") for span in collector.spans(over[0]))


def mcp(server: Server, tool: str, arguments: dict, headers: dict, meta: dict) -> dict:
    """A call in the protocol's newer form, which needs no session of its own."""
    about = {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": tool, "arguments": arguments, "_meta": {**about, **meta}}}
    more = {"Accept": "application/json, text/event-stream", "Mcp-Method": "tools/call", "Mcp-Name": tool, "MCP-Protocol-Version": "2026-07-28"}
    if "session_id" in arguments:
        more["Mcp-Param-Session"] = arguments["session_id"]
    answer = server.native("POST", "/mcp", json=body, headers={**headers, **more})
    assert answer.status_code == 200, answer.text
    text = answer.text
    if answer.headers["content-type"].startswith("text/event-stream"):
        [text] = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: {")]
    return json.loads(text)["result"]["structuredContent"]


def test_who_is_not_recorded_is_not_and_hostile_headers_are_nothing(told, collector):
    trace, _, header = caller(sampled=False)
    answer = told.native("GET", "/pools", headers=header)
    assert answer.status_code == 200 and "traceresponse" not in answer.headers
    for hostile in ("00-" + "0" * 32 + "-00f067aa0ba902b7-01", "x" * 5000, "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01", "ff-" + trace + "-00f067aa0ba902b7-01"):
        answer = told.native("GET", "/pools", headers={"traceparent": hostile})
        assert answer.status_code == 200 and re.fullmatch("00-[0-9a-f]{32}-[0-9a-f]{16}-01", answer.headers["traceresponse"])
        assert trace not in answer.headers["traceresponse"]
    last, _, header = caller()
    told.native("GET", "/pools", headers=header)
    whole(collector, last, "GET /pools")
    assert collector.spans(trace) == []


def test_logs_and_metrics_arrive_and_no_word_of_users_does(told, collector):
    # A sandbox that dies is told in the log.
    session = f"/pools/shell/sessions/{CANARY}-dies"
    assert told.native("PUT", session, json={}).status_code == 201
    told.native("PUT", f"{session}/files/{CANARY}.txt", data=CANARY.encode())
    wait_for(lambda: any(record["body"].get("stringValue") == "pools are ready" for record in collector.logs()), "the log arrives")
    record = next(record for record in collector.logs() if record["body"].get("stringValue") == "listening")
    assert record["severityText"] == "INFO" and record["attributes"]["endpoint"] == told.endpoint

    def same() -> bool:
        metrics = collector.metrics()
        lines = told.native("GET", "/metrics").text.splitlines()
        named = {re.sub(r"_total$", "", line.split("{")[0].split(" ")[0]) for line in lines if not line.startswith("#")}
        missing = {name for name in named if re.sub(r"_(bucket|sum|count)$", "", name) not in metrics and name not in metrics}
        return metrics and not missing

    wait_for(same, "the metrics arrive")
    metrics = collector.metrics()
    points = metrics["sandpool_pool_execution_seconds"]["histogram"]["dataPoints"]
    [point] = [point for point in points if attributes(point) == {"pool": "python"}]
    assert sum(map(int, point["bucketCounts"])) == int(point["count"]) >= 4 and len(point["bucketCounts"]) == len(point["explicitBounds"]) + 1
    assert metrics["sandpool_pool_executions"]["sum"]["isMonotonic"] and metrics["sandpool_pool_ready_sandboxes"]["gauge"]["dataPoints"]
    # Nobody's words, and not the collector's secret either, are in anything that was sent; the secret is in the headers, and nowhere to be seen here.
    assert CANARY.encode() not in collector.bytes() and b"of-the-collector" not in collector.bytes()
    assert all(headers.get("x-secret") == "of-the-collector" for _, headers, _ in collector.came)
    assert "of-the-collector" not in told.run("config", "show").stdout and "of-the-collector" not in told.log()
    assert told.bearer.encode() not in collector.bytes()


@pytest.mark.parametrize("kind", ["away", "silent", "overloaded", "redirecting", "flooding"])
def test_a_collector_that_is_no_good_harms_nothing(kind):
    elsewhere = Collector()
    answers = {
        "silent": lambda _: None,
        "overloaded": lambda _: (503, {"Retry-After": "9999999"}),
        "redirecting": lambda _: (307, {"Location": elsewhere.endpoint + "/v1/traces"}),
        "flooding": lambda _: (200, {"body": os.urandom(8 << 20)}),
    }
    collector = Collector(answers[kind]) if kind != "away" else None
    server = telling(collector.endpoint if collector else "http://127.0.0.1:1", metricsIntervalSeconds=1)
    try:
        session = "/pools/python/sessions/unharmed"
        for number in range(20):
            answer = server.native("POST", f"{session}/executions", json={"code": f"{number} + 1"})
            assert answer.json()["result"]["json"] == number + 1
        if kind == "redirecting":
            wait_for(lambda: "refused" in dropped(server), "what was refused is counted")
        elif kind in ("away", "overloaded"):
            wait_for(lambda: "unreachable" in dropped(server), "what was lost is counted", limit=90)
        assert elsewhere.came == []
        began = time.monotonic()
        server.down()
        assert time.monotonic() - began < 30
    finally:
        server.remove()
        elsewhere.close()
        if collector:
            collector.close()


def dropped(server: Server) -> set[str]:
    lines = re.findall(r'^sandpool_telemetry_dropped_total\{signal="\w+",reason="(\w+)"\} (\d+)', server.native("GET", "/metrics").text, re.M)
    return {reason for reason, count in lines if int(count) > 0}


def test_variables_of_the_environment_turn_it_on(collector):
    variables = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint,
        "OTEL_EXPORTER_OTLP_HEADERS": "x-from=environment",
        "OTEL_SERVICE_NAME": "boxes-of-the-test",
        "OTEL_TRACES_SAMPLER": "always_off",
        "OTEL_METRICS_EXPORTER": "none",
    }
    server = telling("", env=variables)
    try:
        assert "traceresponse" not in server.native("GET", "/pools", headers=caller()[2]).headers
        wait_for(lambda: any(headers.get("x-from") == "environment" for _, headers, _ in collector.came), "logs come")
        assert {path for path, headers, _ in collector.came if headers.get("x-from")} == {"/v1/logs"}
        assert b"boxes-of-the-test" in collector.bytes()
    finally:
        server.remove()
    with pytest.raises(AssertionError, match="http/protobuf"):
        telling("", env={**variables, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"})
