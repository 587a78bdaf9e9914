"""Azure's control plane for session pools, as published clients of it use it: over TLS, with the server's own authority and tokens."""

from __future__ import annotations

import json
import subprocess
import uuid
from pathlib import Path

import pytest
import requests

from sandpool import CLEAN, PROGRAM, Server, check_error, installed, node_modules, wait_for

HERE = Path(__file__).parent
SUBSCRIPTION = "11111111-2222-3333-4444-555555555555"
# The package's versions, by the lock files in arm/; each speaks a version of the API that the others do not.
VERSIONS = ["v4", "v5", "v5_1"]
NEWEST = VERSIONS[-1]
OWN = ["node", "python", "shell"]


@pytest.fixture
def name(server):
    """Of a pool of this test."""
    name = f"calc-{uuid.uuid4().hex[:8]}"
    yield name
    server.native("DELETE", f"/pools/{name}", server.token("--role", "admin"))


def variables(server: Server) -> dict[str, str]:
    return {**CLEAN, **server.env("--https"), "SANDPOOL_HOME": str(server.home), "SANDPOOL_BIN": PROGRAM}


def ran(words: list, server: Server, **more: str) -> dict:
    done = subprocess.run(
        list(map(str, words)), env={**variables(server), **more}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def drive(server: Server, version: str, story: str, *words: str) -> dict:
    """What the client of this version saw."""
    python = installed(f"SANDPOOL_E2E_ARM_{version.upper()}") / "bin/python"
    return ran([python, HERE / "arm/drive.py", server.https_endpoint, story, *words], server)


class Arm:
    """The same as plain requests, by an admin."""

    def __init__(self, server: Server, group: str = "lab", version: str = "2026-07-01"):
        self.server, self.version = server, version
        self.bearer = server.token("--role", "admin")
        self.place = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{group}/providers/Microsoft.App/sessionPools"

    def __call__(self, method: str, pool: str, below: str = "", **more) -> requests.Response:
        path = f"{self.place}/{pool}{below}?api-version={self.version}"
        return self.server.native(method, path, more.pop("token", self.bearer), **more)


def settled(arm: Arm, answer: requests.Response) -> str:
    """How it ended, by the address that the answer names."""
    address = answer.headers["Azure-AsyncOperation"]

    def ended() -> str | None:
        told = requests.get(address, headers={"Authorization": f"Bearer {arm.bearer}"}, timeout=30).json()["status"]
        return told if told != "InProgress" else None

    return wait_for(ended, "the operation's end", 30)


@pytest.mark.parametrize("kind", ["PythonLTS", "Shell"])
@pytest.mark.parametrize("version", VERSIONS)
def test_10_10_a_pool_is_made_changed_listed_and_deleted(server, name, version, kind):
    seen = drive(server, version, "life", name, kind)
    group = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/lab"
    made = {
        "id": f"{group}/providers/Microsoft.App/sessionPools/{name}",
        "name": name,
        "type": "Microsoft.App/sessionPools",
        "location": "westus2",
        "tags": {"team": "blue", "Stage": "test"},
        "kind": kind,
        "most": 5,
        "ready": 1,
        "cooldown": 450,
        "egress": "EgressDisabled",
        "state": "Succeeded",
        "endpoint": f"{server.https_endpoint}{group}/sessionPools/{name}",
    }
    assert seen["made"] == seen["got"] == seen["again"] == seen["at once"] == made
    # It waits at the operation's address, and looks at the pool when that has ended.
    first, *polls, last = seen["making"]
    assert first == ["PUT", "pool", 201] and last == ["GET", "pool", 200]
    assert polls and all(poll == ["GET", "operation", 200] for poll in polls)
    # What is so already has ended when it is asked for.
    assert seen["making again"] == seen["giving back"] == [["PUT", "pool", 200], ["GET", "operation", 200], ["GET", "pool", 200]]
    status, answer = seen["ran"]
    assert status == 200, answer
    assert answer["result"].get("executionResult", answer["result"]["stdout"]) in (42, "42\n")
    # A patch changes what it names, and a null takes away.
    changed = {**made, "tags": {"Stage": "test", "cost": "7"}, "most": 6, "egress": "EgressEnabled"}
    assert seen["changed"] == seen["got then"] == changed
    assert seen["changing"][0] == ["PATCH", "pool", 202] and len(seen["changing"]) > 1
    # It is in its own group, and what was not made in any is in all of them.
    assert seen["in group"] == seen["in subscription"] == sorted([*OWN, name])
    assert seen["in another group"] == seen["in another subscription"] == OWN
    assert (seen["taken"]["status"], seen["taken"]["code"]) == (409, "SessionPoolConflict")
    assert seen["removed"] is None
    assert seen["removing"][0] == ["DELETE", "pool", 202] and seen["removing again"] == [["DELETE", "pool", 204]]
    assert (seen["missing"]["status"], seen["missing"]["code"]) == (404, "ResourceNotFound")


@pytest.mark.parametrize("version", VERSIONS)
def test_10_10_what_is_refused_is_raised_with_its_code_and_target(server, name, version):
    seen = drive(server, version, "errors", name)
    life = "dynamicPoolConfiguration.lifecycleConfiguration"
    for what, code, field in [
        ("most", "SessionPoolInvalid", "scaleConfiguration.maxConcurrentSessions"),
        ("ready", "SessionPoolInvalid", "scaleConfiguration.readySessionInstances"),
        ("kind", "SessionTypeNotSupported", "containerType"),
        ("management", "InvalidRequestContent", "poolManagementType"),
        ("life", "InvalidRequestContent", f"{life}.lifecycleType"),
        ("cooldown", "SessionPoolInvalid", f"{life}.cooldownPeriodInSeconds"),
        ("network", "InvalidRequestContent", "sessionNetworkConfiguration.status"),
        ("secrets", "InvalidRequestContent", "secrets"),
        ("identity", "InvalidRequestContent", "managedIdentitySettings"),
    ]:
        told = seen[what]
        assert (told["status"], told["code"], told["target"]) == (400, code, f"properties.{field}"), told
        assert told["message"].startswith(f"properties.{field}: "), told
    assert (seen["name"]["status"], seen["name"]["target"]) == (400, "name")
    for what in ("missing", "patch of nothing"):
        assert (seen[what]["status"], seen[what]["code"]) == (404, "ResourceNotFound")
        assert name in seen[what]["message"] and "lab" in seen[what]["message"]
    assert (seen["default"]["status"], seen["default"]["code"]) == (409, "SessionPoolNotApplied")
    for role in ("reader", "executor"):
        assert (seen[f"{role} reads"], seen[f"{role} lists"]) == ("shell", OWN)
        for verb in ("makes", "changes", "removes"):
            told = seen[f"{role} {verb}"]
            assert (told["status"], told["code"]) == (403, "AuthorizationFailed"), told
    assert server.native("GET", f"/pools/{name}").status_code == 404, "nothing came of it"


def test_a_data_plane_client_uses_the_endpoint_that_the_control_plane_says(server, as_client, name):
    from langchain_azure_dynamic_sessions import SessionsPythonREPLTool

    endpoint = drive(server, NEWEST, "make", name, "PythonLTS")["endpoint"]
    tool = SessionsPythonREPLTool(pool_management_endpoint=endpoint, session_id="chat-17")
    assert json.loads(tool.invoke("6 * 7"))["result"] == 42
    drive(server, NEWEST, "remove", name)
    with pytest.raises(requests.HTTPError, match="404"):
        tool.invoke("6 * 7")


def test_10_10_node(server, name):
    modules, programs = node_modules()
    seen = ran([programs / "node", HERE / "node/arm.mjs", server.https_endpoint, name], server,
               SANDPOOL_E2E_NODE=str(modules.parent))  # fmt: skip
    for pool, tags, most in (("made", {"team": "blue"}, 5), ("got", {"team": "blue"}, 5), ("changed", {"team": "red"}, 6)):
        shown = seen[pool]
        assert (shown["name"], shown["tags"]) == (name, tags)
        assert shown["provisioningState"] == "Succeeded"
        assert shown["scaleConfiguration"]["maxConcurrentSessions"] == most
    assert seen["listed"] == sorted([*OWN, name])
    assert seen["ran"]["result"]["executionResult"] == 42
    assert (seen["wrong"]["status"], seen["wrong"]["code"]) == (400, "SessionPoolInvalid")
    assert seen["wrong"]["message"].startswith("properties.scaleConfiguration.maxConcurrentSessions: ")
    assert (seen["missing"]["status"], seen["missing"]["code"]) == (404, "ResourceNotFound")


# What no client of ours says by itself.


def test_every_group_and_name_is_one_space_and_has_no_case(server, name):
    arm, other = Arm(server), Arm(server, "elsewhere")
    made = arm("PUT", name, json={"location": "here", "properties": {"containerType": "Shell"}})
    assert made.status_code == 201 and settled(arm, made) == "Succeeded"
    loud = Arm(server, "LAB")("GET", name.upper())
    assert loud.status_code == 200 and loud.json()["name"] == name
    check_error(other("GET", name), 404, "ResourceNotFound")
    check_error(other("PATCH", name, json={"tags": {"a": "b"}}), 404, "ResourceNotFound")
    assert other("DELETE", name).status_code == 204, "there is none there"
    assert arm("GET", name).status_code == 200
    check_error(other("PUT", name, json={"properties": {"containerType": "Shell"}}), 409, "SessionPoolConflict")
    # It is one of the server's pools for everybody else.
    assert server.native("GET", f"/pools/{name}").json()["origin"] == "applied"


def test_what_this_resource_cannot_say_of_a_pool_stays(server, name):
    arm = Arm(server)
    spec = {
        "containerType": "Shell",
        "scaleConfiguration": {"maxConcurrentSessions": 3, "readySessionInstances": 1},
        "resources": {"memory": "300Mi", "pids": 77},
        "env": [{"name": "TEAM", "value": "research"}],
        "egress": {"mode": "allow-list", "allow": ["pypi.org"]},
    }
    object = {"metadata": {"name": name, "annotations": {"owner": "me"}}, "spec": spec}
    assert server.native("PUT", f"/pools/{name}", arm.bearer, json=object).status_code == 201
    shown = arm("GET", name).json()["properties"]
    assert shown["sessionNetworkConfiguration"]["status"] == "EgressEnabled"
    body = {"tags": {"a": "b"}, "properties": {**shown, "scaleConfiguration": {"maxConcurrentSessions": 4, "readySessionInstances": 1}}}
    assert settled(arm, arm("PUT", name, json=body)) == "Succeeded"
    kept = server.native("GET", f"/pools/{name}/object", arm.bearer).json()
    assert kept["spec"]["resources"]["memory"] == "300Mi" and kept["spec"]["resources"]["pids"] == 77
    assert kept["spec"]["env"] == spec["env"] and kept["spec"]["egress"]["allow"] == ["pypi.org"]
    assert kept["spec"]["scaleConfiguration"]["maxConcurrentSessions"] == 4
    assert kept["metadata"]["labels"] == {"a": "b"} and kept["metadata"]["annotations"]["owner"] == "me"
    # Nothing is reached when that is said.
    closed = {"properties": {"sessionNetworkConfiguration": {"status": "EgressDisabled"}}}
    assert settled(arm, arm("PATCH", name, json=closed)) == "Succeeded"
    assert server.native("GET", f"/pools/{name}/object", arm.bearer).json()["spec"]["egress"] is None


def test_a_kind_is_for_ever_and_says_so(server, name):
    arm = Arm(server)
    arm("PUT", name, json={"properties": {"containerType": "Shell", "scaleConfiguration": {"readySessionInstances": 0}}})
    for method in ("PUT", "PATCH"):
        told = check_error(arm(method, name, json={"properties": {"containerType": "PythonLTS"}}), 409, "SessionPoolConflict")
        assert told["error"].get("target") == "properties.containerType", told
        assert told["message"].startswith("properties.containerType: "), told


def test_role_assignments_are_answered_and_grant_nothing(server, name):
    arm, reader = Arm(server), server.token("--role", "reader")
    arm("PUT", name, json={"properties": {"containerType": "Shell"}})
    guid = str(uuid.uuid4())
    role = f"/subscriptions/{SUBSCRIPTION}/providers/Microsoft.Authorization/roleDefinitions/0fb8eba5-a2bb-4abe-b1c1-49dfad359bb0"
    body = {"properties": {"roleDefinitionId": role, "principalId": str(uuid.uuid4())}}
    below = f"/providers/Microsoft.Authorization/roleAssignments/{guid}"
    made = arm("PUT", name, below, json=body)
    assert made.status_code == 201 and made.json()["name"] == guid
    assert made.json()["properties"]["roleDefinitionId"] == role
    check_error(arm("PUT", name, below, json=body, token=reader), 403, "AuthorizationFailed")
    run = server.native("POST", f"/pools/{name}/sessions/some/executions", reader, json={"command": "true"})
    assert run.status_code == 403


MCP = {"properties": {"containerType": "PythonLTS", "mcpServerSettings": {"isMCPServerEnabled": True}}}


def launched(arm: Arm, pool: str, key: str) -> int:
    """What an MCP client with this key is answered."""
    call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "launchPythonEnvironment", "arguments": {}}}
    headers = {"x-ms-apikey": key, "Accept": "application/json, text/event-stream"}
    endpoint = arm("GET", pool).json()["properties"]["mcpServerSettings"]["mcpServerEndpoint"]
    return requests.post(endpoint, json=call, headers=headers, timeout=60).status_code


def test_the_key_of_a_pools_mcp_server(server, name):
    arm = Arm(server, version="2025-10-02-preview")
    assert settled(arm, arm("PUT", name, json=MCP)) == "Succeeded"
    assert arm("GET", name).json()["properties"]["mcpServerSettings"]["isMcpServerEnabled"] is True
    key = arm("POST", name, "/fetchMCPServerCredentials").json()["apiKey"]
    assert launched(arm, name, key) == 200
    newer = arm("POST", name, "/rotateMcpServerCredentials").json()["apiKey"]
    assert newer != key and arm("POST", name, "/fetchMcpServerCredentials").json()["apiKey"] == newer
    # The one before is good for five more minutes, and none older.
    newest = arm("POST", name, "/rotateMcpServerCredentials").json()["apiKey"]
    assert [launched(arm, name, one) for one in (newest, newer, key)] == [200, 200, 401]
    off = arm("PATCH", name, json={"properties": {"mcpServerSettings": {"isMcpServerEnabled": False}}})
    assert settled(arm, off) == "Succeeded"
    check_error(arm("POST", name, "/fetchMcpServerCredentials"), 400, "SessionMCPServerNotEnabled")
    # The newest versions know nothing of it.
    assert "mcpServerSettings" not in Arm(server)("GET", name).json()["properties"]


def test_the_key_of_a_pool_ends_with_it(server, name):
    """A pool that is made later under this name is another one."""
    arm = Arm(server, version="2025-10-02-preview")
    assert settled(arm, arm("PUT", name, json=MCP)) == "Succeeded"
    key = arm("POST", name, "/fetchMcpServerCredentials").json()["apiKey"]
    assert launched(arm, name, key) == 200
    assert arm("DELETE", name).status_code == 202
    wait_for(lambda: arm("GET", name).status_code == 404, "the pool's end")
    assert settled(arm, arm("PUT", name, json=MCP)) == "Succeeded"
    assert launched(arm, name, key) == 401, "the key of a pool that was deleted is good for another one"
    assert launched(arm, name, arm("POST", name, "/fetchMcpServerCredentials").json()["apiKey"]) == 200


def test_a_removal_ends_when_the_pool_is_gone_whatever_has_its_name_then(server, name):
    arm, quick = Arm(server), {"properties": {"containerType": "Shell", "scaleConfiguration": {"readySessionInstances": 0}}}
    # Twice, so that the second is made in the second of the first at least once.
    for _ in range(2):
        assert arm("PUT", name, json=quick).status_code == 201
        removed = arm("DELETE", name)
        again = arm("PUT", name, json=quick)
        assert (removed.status_code, again.status_code) == (202, 201)
        assert settled(arm, removed) == "Succeeded"
        assert arm("DELETE", name).status_code == 202


def test_a_default_pool_is_applied_over_and_given_back(server):
    arm = Arm(server)
    before = server.native("GET", "/pools/shell/object", arm.bearer).json()
    body = {"location": "here", "properties": {"containerType": "Shell", "scaleConfiguration": {"maxConcurrentSessions": 9}}}
    try:
        made = arm("PUT", "shell", json=body)
        assert made.status_code == 200 and settled(arm, made) == "Succeeded"
        assert arm("GET", "shell").json()["properties"]["scaleConfiguration"]["maxConcurrentSessions"] == 9
        check_error(Arm(server, "elsewhere")("GET", "shell"), 404, "ResourceNotFound")
        removed = arm("DELETE", "shell")
        assert removed.status_code == 202
        assert settled(arm, removed) == "Succeeded"
    finally:
        server.native("DELETE", "/pools/shell", arm.bearer)
    after = server.native("GET", "/pools/shell/object", arm.bearer).json()
    assert (after["spec"], after["metadata"]["origin"]) == (before["spec"], "default")
    assert Arm(server, "elsewhere")("GET", "shell").status_code == 200
