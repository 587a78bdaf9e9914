"""What a session may reach: its pool's policy, narrowed over HTTP and from the command line while it lives."""

from __future__ import annotations

import os

import pytest

from sandpool import Target, check_error, json, kill, of_process, wait_for

CONFIG = """
listen: 127.0.0.1:0
pools:
  - apiVersion: sandpool.dev/v1alpha1
    kind: SessionPool
    metadata: {{ name: python }}
    spec:
      containerType: PythonLTS
      scaleConfiguration: {{ maxConcurrentSessions: 4, readySessionInstances: 1 }}
      egress:
        mode: allow-list
        allow: ["one.test:{port}", "two.test:{port}"]
        allowAddresses: [127.0.0.0/8]
        hosts: {{ one.test: [127.0.0.1], two.test: [127.0.0.1], three.test: [127.0.0.1] }}
  - apiVersion: sandpool.dev/v1alpha1
    kind: SessionPool
    metadata: {{ name: shell }}
    spec:
      containerType: Shell
      scaleConfiguration: {{ maxConcurrentSessions: 2, readySessionInstances: 1 }}
"""

REACH = """
import urllib.request
reached = []
for name in ("one", "two", "three"):
    try:
        urllib.request.urlopen(f"http://{{name}}.test:{port}/", timeout=20).read()
        reached.append(name)
    except OSError:
        pass
" ".join(reached)
"""


@pytest.fixture(scope="module")
def port():
    """Of a server that sessions reach through the proxy, under any name."""
    target = Target(lambda _: (b"hi", {}))
    yield target.port
    target.close()


def test_a_session_reaches_what_its_pool_and_its_own_policy_allow(start, port, tmp_path):
    server = start(config=CONFIG.format(port=port))
    session = "/pools/python/sessions/narrow"

    def reached() -> str:
        answer = server.native("POST", f"{session}/executions", json={"code": REACH.format(port=port)})
        assert answer.status_code == 200 and answer.json()["outcome"] == "succeeded", answer.text
        return answer.json()["result"]["json"]

    # Narrower from its first moment.
    only_one = {"mode": "allow-list", "allow": [f"one.test:{port}"]}
    opened = server.native("PUT", session, json={"egress": only_one})
    assert opened.status_code == 201 and reached() == "one"
    # Another one is not: it has what the pool allows.
    other = server.native("POST", "/pools/python/sessions/wide/executions", json={"code": REACH.format(port=port)})
    assert other.json()["result"]["json"] == "one two"
    # Wider than the pool it never gets.
    assert server.native("PUT", f"{session}/egress", json={"mode": "open"}).status_code == 200
    assert reached() == "one two"
    # Nothing at all, and the server's end changes nothing about it.
    assert server.native("PUT", f"{session}/egress", json={"mode": "none"}).json()["session"]["mode"] == "none"
    assert reached() == ""
    seen = server.native("GET", f"{session}/egress").json()
    assert seen["pool"]["allow"] == [f"one.test:{port}", f"two.test:{port}"] and seen["session"]["mode"] == "none"
    assert server.native("DELETE", f"{session}/egress").status_code == 204 and reached() == "one two"
    # The same from the command line.
    policy = tmp_path / "policy.yaml"
    policy.write_text(f"mode: allow-list\nallow: ['two.test:{port}']\n")
    assert server.json("session", "egress", "narrow", "--set", str(policy))["session"]["allow"] == [f"two.test:{port}"]
    assert reached() == "two"
    assert server.json("session", "egress", "narrow", "--clear")["session"] is None and reached() == "one two"


FETCH = """
import urllib.request
fetched = 0
for _ in range({times}):
    try:
        fetched += len(urllib.request.urlopen("http://one.test:{port}/{bytes}", timeout=20).read())
    except OSError:
        break
fetched
"""


@pytest.fixture(scope="module")
def giving():
    """A server that answers with as many bytes as its path says."""
    target = Target(lambda request: (bytes(int(request.path[1:])), {}))
    yield target.port
    target.close()


def until_refused(ask):
    """Asks until a quota is found to be used up; what is used is looked at every few seconds."""
    answers = []

    def is_refused() -> bool:
        answers.append(ask())
        return answers[-1].status_code == 429

    wait_for(is_refused, "the quota is used up")
    return answers[-1]


def test_what_sessions_move_and_store_is_counted_and_limited(start, giving):
    limits = """
egressLimits: { bytes: 10M, memory: 256Mi }
tenants:
  - name: default
    quota: { egressBytesPerHour: 25M }
"""
    server = start(config=CONFIG.format(port=giving) + limits)

    def used(session: str) -> dict:
        return server.native("GET", f"/pools/python/sessions/{session}").json()["usage"]

    def fetch(session: str, times: int, size: int):
        code = FETCH.format(port=giving, times=times, bytes=size)
        return server.native("POST", f"/pools/python/sessions/{session}/executions", json={"code": code})

    assert fetch("first", 2, 1_000_000).json()["result"]["json"] == 2_000_000
    before = used("first")
    assert 2_000_000 <= before["receivedBytes"] < 2_100_000 and 0 < before["sentBytes"] < 10_000
    # Counts outlive the proxy.
    kill(server.proxy())
    wait_for(lambda: fetch("first", 1, 1_000_000).json()["result"]["json"] == 1_000_000, "the proxy is back")
    assert used("first")["receivedBytes"] >= before["receivedBytes"] + 1_000_000
    # A session has its bytes, and not one more piece.
    assert fetch("first", 20, 1_000_000).json()["result"]["json"] < 8_000_000
    assert used("first")["receivedBytes"] < 10_200_000
    # And a tenant its own, within the hour: what is used up is noticed within seconds.
    for session in ("second", "third"):
        assert fetch(session, 9, 1_000_000).json()["result"]["json"] == 9_000_000
    refused = until_refused(lambda: fetch("third", 1, 1))
    check_error(refused, 429, "TenantQuotaExceeded")
    assert "egress bytes per hour" in refused.json()["error"]["message"] and int(refused.headers["Retry-After"]) > 60
    check_error(server.native("PUT", "/pools/python/sessions/fourth"), 429, "TenantQuotaExceeded")


def test_what_sessions_store_is_counted_and_limited(start, giving):
    limits = "\ntenants: [{ name: default, quota: { storedBytes: 20M } }]\n"
    server = start(config=CONFIG.format(port=giving) + limits)
    session = "/pools/shell/sessions/store"
    body = bytes(12_000_000)
    assert server.native("PUT", f"{session}/files/one", data=body).status_code == 200
    assert server.native("GET", session).json()["usage"]["storedBytes"] >= len(body)
    assert server.native("PUT", f"{session}/files/two", data=body).status_code == 200
    refused = until_refused(lambda: server.native("PUT", f"{session}/files/three", data=b"x"))
    check_error(refused, 429, "TenantQuotaExceeded")
    check_error(server.native("PUT", "/pools/shell/sessions/other"), 429, "TenantQuotaExceeded")
    # What removes something goes on, and then there is room again.
    done = server.native("POST", f"{session}/executions", json={"command": "rm /mnt/data/one"})
    assert done.json()["exitCode"] == 0
    wait_for(lambda: server.native("PUT", f"{session}/files/three", data=b"x").status_code == 200, "there is room again")
    # And a session that ends gives back all it had.
    assert server.native("PUT", f"{session}/files/one", data=body).status_code == 200
    until_refused(lambda: server.native("PUT", f"{session}/files/more", data=b"x"))
    assert server.native("DELETE", session).status_code == 204
    assert server.native("PUT", "/pools/shell/sessions/other").status_code == 201


def test_the_proxy_has_walls_of_its_own(start, port):
    server = start(config=CONFIG.format(port=port))
    proxy = wait_for(server.proxy, "the proxy runs")
    status = dict(line.split(":", 1) for line in of_process(proxy, "status").splitlines())
    assert status["NoNewPrivs"].strip() == "1" and status["Seccomp"].strip() == "2" and int(status["Seccomp_filters"]) >= 5
    assert int(status["CapEff"], 16) == 0 and int(status["CapBnd"], 16) == 0 and status["Uid"].split()[0] not in ("0", "65534")
    # Every thread of it.
    for thread in os.listdir(f"/proc/{proxy}/task"):
        assert "Seccomp:\t2" in of_process(proxy, f"task/{thread}/status")
    groups = of_process(proxy, "cgroup")
    assert "/egress" in groups
    # A session still reaches what it may.
    answer = server.native("POST", "/pools/python/sessions/some/executions", json={"code": REACH.format(port=port)})
    assert answer.json()["result"]["json"] == "one two"


def test_a_policy_that_cannot_be_used_is_refused_and_nothing_is_made(start, port):
    server = start(config=CONFIG.format(port=port))
    fresh = "/pools/python/sessions/never"
    for policy in ({"allow": ["not a host"], "mode": "allow-list"}, {"mode": "shut"}, {"allowAddresses": ["300.1.1.1/8"]}):
        check_error(server.native("PUT", fresh, json={"egress": policy}), 400)
        check_error(server.native("GET", fresh), 404)
    # A pool that reaches nothing has nothing to take away from.
    check_error(server.native("PUT", "/pools/shell/sessions/never", json={"egress": {"mode": "none"}}), 400)
    check_error(server.native("GET", "/pools/shell/sessions/never"), 404)
    done = server.run("session", "egress", "never", check=False)
    assert done.returncode != 0 and "never" in done.stderr, done.stderr
    assert json.loads(server.run("--json", "session", "ls").stdout)["value"] == []
