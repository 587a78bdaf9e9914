"""What a session may reach: its pool's policy, narrowed over HTTP and from the command line while it lives."""

from __future__ import annotations

import pytest

from sandpool import Target, check_error, json

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
