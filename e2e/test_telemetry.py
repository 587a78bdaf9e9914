"""What a session does, as those see it who look: samples, decisions about what it reaches, and traces, logs and metrics over OTLP."""

from __future__ import annotations

import json
import threading

import pytest
import requests
from sandpool import Server, Target, of_process, wait_for


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
import urllib.request
def get(host, path=""):
    try:
        return len(urllib.request.urlopen(f"http://{{host}}:{port}/{{path}}", timeout=20).read())
    except OSError as error:
        return None
[get("one.test", "5000"), *(get("evil.test") for _ in range(40)), get("one.test", "7")]
"""


def test_what_a_session_reached_is_told_counted_and_in_the_journal(server, target):
    session = "/pools/python/sessions/reaching"
    decisions = f"{session}/egress/decisions"
    assert server.native("PUT", session, json={}).status_code == 201
    assert server.native("GET", decisions).json() == {"decisions": [], "next": None}
    stream = events_of(server, decisions)
    result = run(server, session, REACH.format(port=target.port))["result"]["json"]
    assert json.loads(json.dumps(result)) == [5000, *[None] * 40, 7]
    followed = []
    for name, _, decision in stream:
        assert name == "decision"
        followed.append(decision)
        if sum(one["decision"] == "allowed" and one["port"] == target.port for one in followed) == 2:
            break
    wait_for(lambda: len(listed(server, decisions)) >= 43, "all decisions are told")
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
    from sandpool import kill

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
