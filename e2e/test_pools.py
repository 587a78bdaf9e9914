"""Pools as objects, over the native API and from the command line: what an apply does, and what it leaves alone."""

from __future__ import annotations

import copy
import random
import shutil
import tempfile
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
import yaml

from sandpool import Server, Target, check_error, descendants, json, kill, start_time, wait_for
from test_egress import REACH
from test_images import Layout, image, layer, needs, tool
from test_life import cgroups


class Operator:
    """A server, and an admin of it who changes its pools."""

    def __init__(self, server: Server):
        self.server = server
        self.bearer = server.token("--role", "admin", "--ttl", "2h")

    def put(self, object: dict, **parameters) -> requests.Response:
        return self.server.native("PUT", f"/pools/{object['metadata']['name']}", self.bearer, json=object, params=parameters)

    def applied(self, object: dict, word: str, **parameters) -> dict:
        """The object, as the server shows it when it has been applied."""
        answer = self.put(object, **parameters)
        assert answer.ok and answer.json()["result"] == word, answer.text
        return answer.json()["object"]

    def get(self, name: str) -> requests.Response:
        return self.server.native("GET", f"/pools/{name}/object", self.bearer)

    def remove(self, name: str) -> requests.Response:
        return self.server.native("DELETE", f"/pools/{name}", self.bearer)

    def condition(self, name: str) -> dict:
        [condition] = self.get(name).json()["status"]["conditions"]
        return condition

    def full(self, name: str):
        wait_for(lambda: self.condition(name)["status"] == "True", f"the reservoir of {name}", 60)

    def run(self, pool: str, session: str, **body) -> dict:
        answer = self.server.native("POST", f"/pools/{pool}/sessions/{session}/executions", self.bearer, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()


def pool(name: str, kind: str = "Shell", notes: dict | None = None, **spec) -> dict:
    scale = {"maxConcurrentSessions": 4, "readySessionInstances": 1}
    return {
        "apiVersion": "sandpool.dev/v1alpha1",
        "kind": "SessionPool",
        "metadata": {"name": name, **(notes or {})},
        "spec": {"containerType": kind, "scaleConfiguration": scale, **spec},
    }


@pytest.fixture(scope="module")
def own():
    """The server of these tests: what others count is not changed by them."""
    server = Server("--ready", "1")
    yield Operator(server)
    server.remove()


@pytest.fixture
def name(own):
    name = f"pool-{uuid.uuid4().hex[:8]}"
    yield name
    own.remove(name)


# What an apply answers.


def test_a_pool_is_made_looked_at_changed_and_removed(own, name):
    object = pool(name, notes={"labels": {"team": "blue"}, "annotations": {"ours/owner": "me"}})
    dry = own.put(object, dryRun="true")
    assert dry.status_code == 200 and dry.json()["isDryRun"] is True and dry.json()["result"] == "created"
    check_error(own.get(name), 404, "SessionPoolNotFound")
    made = own.put(object)
    assert made.status_code == 201 and (made.json()["result"], made.json()["isDryRun"]) == ("created", False)
    metadata = made.json()["object"]["metadata"]
    assert (metadata["generation"], metadata["origin"], metadata["labels"]) == (1, "applied", {"team": "blue"})
    own.full(name)
    assert own.run(name, "some", command="echo hello")["stdout"] == "hello\n"
    own.full(name)
    # What is so already is left alone, also when it comes with all that only answers have.
    shown = own.get(name).json()
    assert (shown["status"]["ready"], shown["status"]["sessions"], shown["status"]["observedGeneration"]) == (1, 1, 1)
    assert own.applied(object, "unchanged")["metadata"] == own.applied(shown, "unchanged")["metadata"] == metadata
    otherwise = copy.deepcopy(object)
    otherwise["spec"] |= {"resources": {"memory": "2048Mi", "cpu": 1}, "env": [], "mcpServerSettings": {"isMcpServerEnabled": True}}
    assert own.applied(otherwise, "unchanged")["metadata"] == metadata, "the same in other words"
    # A change counts, and one that is only tried does not.
    changed = copy.deepcopy(object)
    changed["spec"]["execution"] = {"queue": 3}
    assert own.applied(changed, "changed", dryRun="true")["spec"]["execution"]["queue"] == 3
    assert own.get(name).json()["metadata"]["generation"] == 1
    again = own.applied(changed, "changed")
    assert again["metadata"] == {**metadata, "generation": 2} and again["status"]["observedGeneration"] == 2
    assert own.server.native("GET", f"/pools/{name}").json()["queue"] == 3
    # What an object does not say is as it is by default: an apply is the whole of it.
    assert own.applied(object, "changed")["spec"]["execution"]["queue"] == 16
    assert own.remove(name).status_code == 204
    for answer in (own.get(name), own.remove(name), own.server.native("GET", f"/pools/{name}/sessions/some")):
        check_error(answer, 404, "SessionPoolNotFound")


def test_pools_are_changed_and_their_objects_seen_by_operators_only(own, name):
    own.applied(pool(name, env=[{"name": "KEY", "value": "of everybody"}]), "created")
    for words in (["--role", "reader"], ["--role", "executor"]):
        token = own.server.token(*words)
        native = lambda method, path, **more: own.server.native(method, path, token, **more)  # noqa: B023, E731
        check_error(native("PUT", f"/pools/{name}", json=pool(name)), 403)
        check_error(native("DELETE", f"/pools/{name}"), 403)
        check_error(native("GET", f"/pools/{name}/object"), 403)
        assert "of everybody" not in native("GET", f"/pools/{name}").text
    # An admin of one pool may change that one.
    bound = own.server.token("--role", "admin", "--pool", name)
    check_error(own.server.native("PUT", f"/pools/{name}-b", bound, json=pool(f"{name}-b")), 403)
    check_error(own.server.native("DELETE", "/pools/python", bound), 403)
    assert own.server.native("PUT", f"/pools/{name}", bound, json=pool(name)).status_code == 200
    assert requests.put(f"{own.server.endpoint}/pools/{name}", json=pool(name), timeout=30).status_code == 401


DEEP = "dynamicPoolConfiguration.lifecycleConfiguration"

# Where a value is put, which one, and of which kind the pool is.
WRONG = [
    ("apiVersion", "v1", "Shell"),
    ("kind", "Pod", "Shell"),
    ("extra", 1, "Shell"),
    ("metadata.extra", 1, "Shell"),
    ("metadata.name", "of-another", "Shell"),
    ("metadata.labels", {f"label-{n}": "x" for n in range(65)}, "Shell"),
    ("metadata.annotations", {"long": "x" * 4097}, "Shell"),
    ("metadata.labels.team", 7, "Shell"),
    ("spec.extra", 1, "Shell"),
    ("spec.containerType", "Perl", "Shell"),
    ("spec.scaleConfiguration.extra", 1, "Shell"),
    ("spec.scaleConfiguration.maxConcurrentSessions", 0, "Shell"),
    ("spec.scaleConfiguration.maxConcurrentSessions", 100_001, "Shell"),
    ("spec.scaleConfiguration.maxConcurrentSessions", 5_000_000_000, "Shell"),
    ("spec.scaleConfiguration.maxConcurrentSessions", "many", "Shell"),
    ("spec.scaleConfiguration.maxConcurrentSessions", -1, "Shell"),
    ("spec.scaleConfiguration.readySessionInstances", 5, "Shell"),
    ("spec.scaleConfiguration.maxReadySessionInstances", 0, "Shell"),
    ("spec.scaleConfiguration.maxReadySessionInstances", 5, "Shell"),
    ("spec.scaleConfiguration.waitWhenFullInSeconds", 61, "Shell"),
    (f"spec.{DEEP}.cooldownPeriodInSeconds", 0, "Shell"),
    (f"spec.{DEEP}.cooldownPeriodInSeconds", 31_536_001, "Shell"),
    (f"spec.{DEEP}.maxAlivePeriodInSeconds", 0, "Shell"),
    (f"spec.{DEEP}.lifecycleType", "OnContainerExit", "Shell"),
    ("spec.resources.cpu", 0, "Shell"),
    ("spec.resources.cpu", 1025, "Shell"),
    ("spec.resources.memory", "63Mi", "Shell"),
    ("spec.resources.memory", "lots", "Shell"),
    ("spec.resources.memory", -1, "Shell"),
    ("spec.resources.dataDisk", "1Ki", "Shell"),
    ("spec.resources.tmpDisk", "17Ti", "Shell"),
    ("spec.resources.pids", 15, "Shell"),
    ("spec.execution.maxTimeoutInSeconds", 0, "Shell"),
    ("spec.execution.maxTimeoutInSeconds", 86_401, "Shell"),
    ("spec.execution.outputLimit", "65Mi", "Shell"),
    ("spec.execution.outputStreamsMaxLength", 0, "Shell"),
    ("spec.execution.queue", 1001, "Shell"),
    ("spec.interpreterStart", "Zygote", "Shell"),
    ("spec.interpreterStart", "Warm", "PythonLTS"),
    ("spec.image", "No/Name", "Shell"),
    ("spec.image", "there-is-none", "Shell"),
    ("spec.image", "node", "PythonLTS"),
    ("spec.env[0]", {"name": "A=B", "value": "x"}, "Shell"),
    ("spec.env[0].values", "x", "Shell"),
    ("spec.sessionScope", "World", "Shell"),
    ("spec.egress.mode", "some", "Shell"),
    ("spec.egress.allow", ["not a host"], "Shell"),
    ("spec.egress.deny", ["not a host"], "Shell"),
    ("spec.egress.allowAddresses", ["300.1.1.1/8"], "Shell"),
    ("spec.egress.hosts.local[0]", "nowhere", "Shell"),
    ("spec.sessionNetworkConfiguration.status", "Sometimes", "Shell"),
    ("spec.mcpServerSettings.isMCPServerEnabled", "yes", "Shell"),
    ("spec.servers.time", {"pypi": "mcp-server-time==2026.10.19"}, "PythonLTS"),
    ("spec.sessionSecrets", True, "Shell"),
    ("spec.imageKey", "/etc/sandpool/cosign.pub", "Shell"),
]  # fmt: skip


def with_value(object: dict, field: str, value) -> dict:
    """The same with a value at the place that the field names."""
    object = copy.deepcopy(object)
    at, *rest = field.replace("[0]", ".0").split(".")
    place = object
    for step in rest:
        new = [] if step == "0" else {}
        if at == "0":
            if not place:
                place.append(new)
            place = place[0]
        else:
            place = place.setdefault(at, new)
        at = step
    if at == "0":
        place.append(value)
    else:
        place[at] = value
    if "egress." in field and field != "spec.egress.mode":
        object["spec"]["egress"] = {"mode": "allow-list", "allow": ["pypi.org"], **object["spec"]["egress"]}
    return object


def test_every_error_names_its_field(own, name):
    told = {}
    for field, value, kind in WRONG:
        object = with_value(pool(name, kind), field, value)
        answer = own.server.native("PUT", f"/pools/{name}", own.bearer, json=object)
        error = answer.json().get("error", {}) if answer.status_code == 400 else {}
        if error.get("target") != field or not error["message"].startswith(f"{field}: ") or error["code"] != "SessionPoolInvalid":
            told[f"{field} = {str(value)[:60]}"] = (answer.status_code, error or answer.text)
    assert not told
    check_error(own.get(name), 404)


def test_what_is_missing_contradicts_or_stays_is_named_too(own, name):
    for part, fields in (("metadata", {"metadata", "body"}), ("spec", {"spec", "body"})):
        object = {key: value for key, value in pool(name).items() if key != part}
        told = check_error(own.server.native("PUT", f"/pools/{name}", own.bearer, json=object), 400, "SessionPoolInvalid")
        assert told["error"]["target"] in fields and part in told["message"], told
    both = pool(name, egress={"mode": "open"}, sessionNetworkConfiguration={"status": "EgressDisabled"})
    assert check_error(own.put(both), 400)["error"]["target"] == "spec.sessionNetworkConfiguration.status"
    secret = {"name": "KEY", "from": {"env": "KEY"}, "hosts": ["api.test"]}
    secrets = pool(name, egress={"mode": "allow-list", "allow": ["api.test"]}, secrets=[secret])
    told = check_error(own.put(secrets), 400)
    assert told["error"]["target"] == "spec.secrets" and "configuration file" in told["message"]
    for text in ("", "[]", "{", "7"):
        check_error(own.server.native("PUT", f"/pools/{name}", own.bearer, data=text, headers={"Content-Type": "application/json"}), 400)
    large = pool(name, notes={"annotations": {f"a-{n}": "x" * 4096 for n in range(64)}})
    assert own.put(large).status_code == 413
    # A pool keeps what its sessions are of, and whose they are.
    own.applied(pool(name), "created")
    for field, value in (("containerType", "PythonLTS"), ("sessionScope", "Pool")):
        told = check_error(own.put(with_value(pool(name), f"spec.{field}", value)), 409, "SessionPoolConflict")
        assert told["message"].startswith(f"spec.{field}: ")
        assert told["error"].get("target") == f"spec.{field}", told
    assert own.get(name).json()["metadata"]["generation"] == 1


def test_the_command_line(own, name, tmp_path):
    run, file = own.server.run, tmp_path / "pools.yaml"
    two = f"{name}-two"
    documents = [pool(name, notes={"labels": {"team": "blue"}}), pool(two, resources={"memory": "300Mi"})]
    write = lambda: file.write_text("# Two pools.\n" + yaml.safe_dump_all(documents, sort_keys=False))  # noqa: E731
    write()
    try:
        assert run("pool", "apply", "-f", file, "--dry-run").stdout == f"pool {name} created (dry run)\npool {two} created (dry run)\n"
        differs = run("pool", "diff", "-f", file, check=False)
        assert differs.returncode == 1 and f"pool {name} (new)\n" in differs.stdout
        assert "+ spec.resources.memory: \"300Mi\"\n" in differs.stdout and "+ metadata.labels.team: \"blue\"\n" in differs.stdout
        assert run("pool", "get", name, "-o", "yaml", check=False).returncode == 1, "nothing has been done"
        # All of them are looked at before one is made.
        documents[1]["spec"]["resources"] = {"memory": "1Mi"}
        write()
        refused = run("pool", "apply", "-f", file, check=False)
        assert refused.returncode == 1 and "spec.resources.memory" in refused.stderr
        assert run("pool", "get", name, check=False).returncode == 1
        documents[1]["spec"]["resources"] = {"memory": "300Mi"}
        write()
        assert run("pool", "apply", "-f", file).stdout == f"pool {name} created\npool {two} created\n"
        assert run("pool", "apply", "-f", file).stdout == f"pool {name} unchanged\npool {two} unchanged\n"
        done = run("pool", "diff", "-f", file)
        assert (done.returncode, done.stdout) == (0, "")
        documents[0]["metadata"]["labels"] = {"team": "red"}
        documents[1]["spec"]["resources"] = {"memory": "400Mi"}
        write()
        differs = run("pool", "diff", "-f", file, check=False)
        assert differs.returncode == 1
        assert differs.stdout == (
            f"pool {name}\n- metadata.labels.team: \"blue\"\n+ metadata.labels.team: \"red\"\n"
            f"pool {two}\n- spec.resources.memory: \"300Mi\"\n+ spec.resources.memory: \"400Mi\"\n"
        )
        changes = run("--json", "pool", "diff", "-f", file, check=False).stdout
        assert '"field": "spec.resources.memory"' in changes and '"400Mi"' in changes
        assert run("pool", "apply", "-f", file).stdout == f"pool {name} changed\npool {two} changed\n"
        # What is got can be applied, from standard input too, and has nothing in it that nobody said.
        got = run("pool", "get", two, "-o", "yaml").stdout
        shown = yaml.safe_load(got)
        assert shown["spec"]["resources"]["memory"] == "400Mi" and "secrets" not in shown["spec"] and "null" not in got
        assert run("pool", "apply", "-f", "-", input=got).stdout == f"pool {two} unchanged\n"
        got = json.dumps(json.loads(run("pool", "get", two, "-o", "json").stdout))
        assert run("pool", "apply", "-f", "-", input=got).stdout == f"pool {two} unchanged\n"
        assert run("--json", "pool", "apply", "-f", file, "--dry-run").stdout.count('"result"') == 2
        for text, why in (("", "no object"), ("kind: Pod\nmetadata: { name: a }\n", "kind"), ("metadata: {}\n", "metadata.name")):
            wrong = run("pool", "apply", "-f", "-", input=text, check=False)
            assert wrong.returncode == 2 and why in wrong.stderr, wrong
        assert {name, two} <= {row.split()[0] for row in run("pool", "ls").stdout.splitlines()}
    finally:
        removed = run("pool", "rm", name, two, check=False)
    assert removed.stdout == f"pool {name} removed\npool {two} removed\n"
    again = run("pool", "rm", name, check=False)
    assert again.returncode == 1 and name in again.stderr


# What a change does to what is there.

TAKE = "len(bytearray({mebibytes} << 20)) >> 20"


def test_a_change_leaves_live_sessions_alone_and_new_ones_get_it(own, name):
    object = pool(name, "PythonLTS", resources={"memory": "300Mi"}, env=[{"name": "STAGE", "value": "one"}])
    own.applied(object, "created")
    own.full(name)
    assert own.run(name, "user-old", code="import os; x = 41; os.environ['STAGE']")["result"]["json"] == "one"
    sandbox = own.server.native("GET", f"/pools/{name}/sessions/user-old").json()["sandbox"]
    assert own.run(name, "user-old", code=TAKE.format(mebibytes=200))["result"]["json"] == 200
    object["spec"] |= {"resources": {"memory": "150Mi"}, "env": [{"name": "STAGE", "value": "two"}]}
    own.applied(object, "changed")
    # From the answer on: nobody gets a sandbox that was made before.
    new = own.run(name, "user-new", code="import os; os.environ['STAGE']")
    assert new["result"]["json"] == "two"
    assert own.server.native("GET", f"/pools/{name}").json()["limits"]["memoryBytes"] == 150 << 20
    ended = own.run(name, "user-new", code=TAKE.format(mebibytes=200))
    assert ended["outcome"] != "succeeded", ended
    # The old one has its variables, its environment, its memory and its sandbox.
    assert own.run(name, "user-old", code="f'{x} {os.environ[\"STAGE\"]}'")["result"]["json"] == "41 one"
    assert own.run(name, "user-old", code=TAKE.format(mebibytes=200))["result"]["json"] == 200
    assert own.server.native("GET", f"/pools/{name}/sessions/user-old").json()["sandbox"] == sandbox
    own.full(name)
    # And under its name comes a new one, when it has been closed.
    assert own.server.native("DELETE", f"/pools/{name}/sessions/user-old").status_code == 204
    assert own.run(name, "user-old", code="import os; os.environ['STAGE']")["result"]["json"] == "two"


def test_fewer_places_end_nobodys_session(own, name):
    object = pool(name)
    own.applied(object, "created")
    for session in ("user-1", "user-2", "user-3"):
        own.run(name, session, command=f"echo {session} >name")
    object["spec"]["scaleConfiguration"] = {"maxConcurrentSessions": 1, "readySessionInstances": 0, "waitWhenFullInSeconds": 0}
    own.applied(object, "changed")
    for session in ("user-1", "user-2", "user-3"):
        assert own.run(name, session, command="cat name")["stdout"] == f"{session}\n"
    refused = own.server.native("PUT", f"/pools/{name}/sessions/user-4")
    check_error(refused, 429, "SessionsCountExceedsLimit")
    object["spec"]["scaleConfiguration"] = {"maxConcurrentSessions": 4, "readySessionInstances": 0}
    own.applied(object, "changed")
    assert own.run(name, "user-4", command="echo in")["stdout"] == "in\n"


def test_the_end_of_idle_sessions_follows_the_change(own, name):
    life = lambda seconds: {"lifecycleConfiguration": {"cooldownPeriodInSeconds": seconds}}  # noqa: E731
    own.applied(pool(name, dynamicPoolConfiguration=life(300)), "created")
    own.run(name, "idle", command="true")
    own.applied(pool(name, dynamicPoolConfiguration=life(1)), "changed")
    path = f"/pools/{name}/sessions/idle"
    wait_for(lambda: own.server.native("GET", path).status_code == 404, "the end of an idle session", 20)


@pytest.fixture(scope="module")
def port():
    """Of a server that sessions reach through the proxy, under any name."""
    target = Target(lambda _: (b"hi", {}))
    yield target.port
    target.close()


class Reach:
    """A pool whose sessions may reach some of three hosts."""

    def __init__(self, own: Operator, name: str, port: int):
        self.own, self.name, self.port = own, name, port

    def allowing(self, *names: str) -> dict:
        return pool(self.name, "PythonLTS", egress={
            "mode": "allow-list", "allow": [f"{host}.test:{self.port}" for host in names], "allowAddresses": ["127.0.0.0/8"],
            "hosts": {f"{host}.test": ["127.0.0.1"] for host in ("one", "two", "three")},
        })  # fmt: skip

    def __call__(self, session: str) -> str:
        """Which of them a session reaches."""
        record = self.own.run(self.name, session, code=REACH.format(port=self.port))
        assert record["outcome"] == "succeeded", record
        return record["result"]["json"]


def test_what_may_be_reached_changes_for_live_sessions_at_once(own, name, port):
    reached = Reach(own, name, port)
    allowing = reached.allowing
    own.applied(allowing("one", "two"), "created")
    own.full(name)
    assert own.run(name, "live", code="x = 41\nx")["result"]["json"] == 41 and reached("live") == "one two"
    own.applied(allowing("one"), "changed")
    assert reached("live") == "one"
    own.applied(allowing("two", "three"), "changed")
    assert reached("live") == reached("other") == "two three"
    # A session's own policy goes on, and never gives more than the pool.
    narrow = {"mode": "allow-list", "allow": [f"one.test:{port}", f"two.test:{port}"]}
    assert own.server.native("PUT", f"/pools/{name}/sessions/live/egress", own.bearer, json=narrow).status_code == 200
    assert reached("live") == "two"
    own.applied(allowing("one", "three"), "changed")
    assert reached("live") == "one" and reached("other") == "one three"
    assert own.run(name, "live", code="x")["result"]["json"] == 41, "it is the same session"


@pytest.mark.parametrize("nothing", [{}, {"egress": {"mode": "none"}}, {"sessionNetworkConfiguration": {"status": "EgressDisabled"}}], ids=["left out", "mode", "status"])
def test_what_may_be_reached_ends_for_live_sessions_when_it_is_nothing(own, name, port, nothing):
    reached = Reach(own, name, port)
    allowed = reached.allowing("one")
    own.applied(allowed, "created")
    own.full(name)
    assert reached("live") == "one"
    own.applied(pool(name, "PythonLTS", **nothing), "changed")
    assert reached("fresh") == ""
    assert reached("live") == "", "a session that is there reaches what its pool reaches no more"
    # And back: a session that was made when nothing was reached has no way out, and new ones have.
    own.applied(allowed, "changed")
    assert reached("newest") == "one" and reached("fresh") == ""


def test_what_may_be_reached_outlives_the_server_and_the_proxy(start, port):
    own = Operator(start("--ready", "0", "--max-sessions", "2"))
    server, reached = own.server, Reach(own, "net", port)
    allowing = reached.allowing
    own.applied(allowing("one", "two"), "created")
    assert reached("live") == "one two"
    own.applied(allowing("two"), "changed")
    for part in (server.proxy, server.process):
        pid = part()
        kill(pid)
        wait_for(lambda: part() not in (0, pid) and server.is_ready(), "its return", 60)  # noqa: B023
        wait_for(lambda: reached("live") == "two", "the way out is back")
        assert reached(f"new-{pid}") == "two"
    own.applied(allowing("one", "three"), "changed")
    assert reached("live") == "one three"
    server.down()
    own = reached.own = Operator(start("--ready", "0", "--max-sessions", "2", home=server.home))
    assert reached("after") == "one three"
    own.applied(allowing("three"), "changed")
    assert reached("after") == "three"


# What is left of it.


def groups_of(server: Server) -> set[str]:
    """The control groups of a server's sandboxes."""
    return {str(path) for group in cgroups(server) for path in Path(group).glob("s[0-9]*")}


def test_removing_a_pool_ends_its_sessions_and_leaves_nothing(own, name):
    server = own.server
    # Nobody else's sandboxes come or go meanwhile.
    for other in ("python", "node", "shell"):
        own.full(other)

    def is_at_rest() -> bool:
        seen = (descendants(server.launcher), groups_of(server))
        time.sleep(1)
        return seen == (descendants(server.launcher), groups_of(server))

    wait_for(is_at_rest, "nothing to come or go", 60)
    before = {pid: start_time(pid) for pid in descendants(server.launcher)}
    groups = groups_of(server)
    assert groups
    own.applied(pool(name, "PythonLTS", egress={"mode": "open"}), "created")
    own.full(name)
    own.run(name, "user-1", code="import subprocess; subprocess.Popen(['sleep', '1000'], start_new_session=True); 1")
    own.run(name, "user-2", code="open('/mnt/data/file', 'w').write('x')")
    heard = {}

    def work():
        path = f"/pools/{name}/sessions/user-1/executions"
        heard["answer"] = server.native("POST", path, json={"code": "import time; time.sleep(60)", "waitSeconds": 60})

    thread = threading.Thread(target=work)
    thread.start()
    running = f"/pools/{name}/sessions/user-1/executions"
    wait_for(lambda: any(one["state"] == "running" for one in server.native("GET", running).json()["value"]), "an execution")
    # The proxy, which starts with the first pool that needs it, stays.
    made = {pid: start_time(pid) for pid in descendants(server.launcher) if pid not in before and pid != server.proxy()}
    assert made and groups_of(server) > groups
    began = time.monotonic()
    assert own.remove(name).status_code == 204
    assert time.monotonic() - began < 30
    thread.join(30)
    assert not thread.is_alive(), "who waited for code of the pool hears of its end"
    assert heard["answer"].status_code in (200, 404, 410, 503), heard["answer"].text
    if heard["answer"].status_code == 200:
        assert heard["answer"].json()["outcome"] != "succeeded"
    wait_for(lambda: not [pid for pid, start in made.items() if start_time(pid) == start], "the end of its processes", 20)
    wait_for(lambda: groups_of(server) <= groups, "the end of its control groups", 20)
    assert {row["pool"] for row in server.json("session", "ls")["value"]}.isdisjoint({name})
    assert not [line for line in server.log().splitlines() if '"ERROR"' in line or " ERROR " in line]
    # A pool of this name that is made then knows nothing of it.
    own.applied(pool(name, "PythonLTS"), "created")
    assert own.run(name, "user-2", code="import os; len(os.listdir('/mnt/data'))")["result"]["json"] == 0


def test_many_applies_and_removes_of_one_name(own, name):
    objects = [pool(name, execution={"queue": queue}) for queue in range(1, 4)]

    def change(number: int) -> int:
        return (own.remove(name) if number % 2 else own.put(objects[number % 3])).status_code

    for _ in range(2):
        with ThreadPoolExecutor(20) as threads:
            seen = list(threads.map(change, range(20)))
        assert set(seen) <= {200, 201, 204, 404}, seen
        answer = own.get(name)
        assert answer.status_code in (200, 404)
        listed = [one["name"] for one in own.server.native("GET", "/pools").json()["value"]]
        assert (name in listed) == (answer.status_code == 200)
        if answer.status_code == 200:
            assert answer.json()["spec"]["execution"]["queue"] in (1, 2, 3)
            own.full(name)
            assert own.run(name, "some", command="echo works")["stdout"] == "works\n"
        else:
            check_error(own.server.native("PUT", f"/pools/{name}/sessions/some"), 404)
    own.remove(name)
    assert own.server.is_ready()
    own.applied(objects[0], "created")
    own.full(name)
    assert own.run(name, "some", command="echo works")["stdout"] == "works\n"
    assert own.run("shell", "some", command="echo works")["stdout"] == "works\n"


def test_what_is_made_and_removed_at_once_leaves_nothing(own, name):
    """Also while its sandboxes are being made."""
    server = own.server
    for other in ("python", "node", "shell"):
        own.full(other)
    before, groups = descendants(server.launcher), groups_of(server)
    for number in range(3):
        own.applied(pool(f"{name}-{number}", "PythonLTS"), "created")
        assert own.remove(f"{name}-{number}").status_code == 204
    wait_for(lambda: len(descendants(server.launcher)) <= len(before), "the end of its processes", 30)
    wait_for(lambda: len(groups_of(server)) <= len(groups), "the end of its control groups", 30)


def test_an_apply_goes_through_when_its_caller_goes_away(own, name):
    with pytest.raises(requests.ReadTimeout):
        server, object = own.server, pool(name, "PythonLTS")
        server.native("PUT", f"/pools/{name}", own.bearer, json=object, timeout=0.1)
    wait_for(lambda: own.get(name).status_code == 200, "the pool", 30)
    own.full(name)
    assert own.run(name, "some", code="6 * 7")["result"]["json"] == 42


def test_an_apply_that_takes_long_holds_up_no_other(own, name):
    """A pool whose interpreters start slowly is that pool's affair."""
    other, heard = f"{name}-other", {}
    slow = pool(name, "PythonLTS", resources={"cpu": 0.2})
    thread = threading.Thread(target=lambda: heard.update(slow=own.put(slow).status_code))
    thread.start()
    time.sleep(0.5)
    began = time.monotonic()
    try:
        own.applied(pool(other), "created")
        took = time.monotonic() - began
    finally:
        thread.join(120)
        own.remove(other)
    assert heard["slow"] == 201
    assert took < 4, f"another pool's apply waited for it: {took:.1f} s"


# What lasts, and what comes from where.


def test_applied_pools_outlive_the_server_and_defaults_come_back(start):
    own = Operator(start("--ready", "1"))
    server = own.server
    defaults = own.get("python").json()
    assert (defaults["metadata"]["origin"], defaults["metadata"]["generation"]) == ("default", 1)
    kept = own.applied(pool("kept", notes={"labels": {"a": "b"}}, resources={"memory": "300Mi"}), "created")
    kept = own.applied(pool("kept", notes={"labels": {"a": "b"}}, resources={"memory": "400Mi"}), "changed")
    gone = pool("gone")
    own.applied(gone, "created")
    assert own.remove("gone").status_code == 204
    # A default one is applied over: what lives in it goes on.
    assert own.run("python", "live", code="x = 41\nx")["result"]["json"] == 41
    over = pool("python", "PythonLTS", env=[{"name": "STAGE", "value": "over"}])
    applied = own.applied(over, "changed")
    assert (applied["metadata"]["origin"], applied["metadata"]["generation"]) == ("applied", 2)
    own.run("kept", "live", command="echo precious >file")
    # Killed with the answer still warm.
    last = own.applied(pool("last"), "created")
    pid = server.process()
    kill(pid)
    wait_for(lambda: server.process() not in (0, pid) and server.is_ready(), "the server's return", 60)

    def same(user: str):
        for object in (kept, applied, last):
            found = own.get(object["metadata"]["name"]).json()
            assert (found["metadata"], found["spec"]) == (object["metadata"], object["spec"])
        check_error(own.get("gone"), 404)
        assert own.run("python", user, code="import os; os.environ['STAGE']")["result"]["json"] == "over"

    same("user-1")
    assert own.run("python", "live", code="x")["result"]["json"] == 41
    assert own.run("kept", "live", command="cat file")["stdout"] == "precious\n"
    # And stopped, and started again.
    server.down()
    own = Operator(start("--ready", "1", home=server.home))
    same("user-2")
    assert own.server.native("GET", "/pools/kept").json()["limits"]["memoryBytes"] == 400 << 20
    # Removed, the default one is there again, and its sessions go on.
    assert own.run("python", "later", code="x = 42\nx")["result"]["json"] == 42
    assert own.remove("python").status_code == 204
    back = own.get("python").json()
    assert back["spec"] == defaults["spec"] and back["metadata"]["origin"] == "default"
    assert own.run("python", "later", code="x")["result"]["json"] == 42
    assert own.run("python", "newest", code="import os; 'STAGE' in os.environ")["result"]["json"] is False
    told = check_error(own.remove("python"), 409, "SessionPoolNotApplied")
    assert "python" in told["message"] and "configuration file" in told["message"]
    assert own.applied(back, "unchanged")["metadata"]["origin"] == "default"


def test_a_kill_in_the_middle_of_a_change_leaves_one_of_both(start):
    own = Operator(start("--ready", "0", "--max-sessions", "2"))
    server, rng = own.server, random.Random(2026)
    objects = {memory: pool("some", resources={"memory": f"{memory}Mi"}) for memory in (300, 301)}
    own.applied(objects[300], "created")
    known, heard = 300, {}

    def change(wanted: int):
        try:
            heard[wanted] = own.put(objects[wanted]).status_code
        except requests.RequestException:
            heard[wanted] = None

    for _ in range(4):
        wanted = 601 - known
        heard.clear()
        thread = threading.Thread(target=change, args=(wanted,))
        thread.start()
        time.sleep(rng.random() * 0.03)
        pid = server.process()
        kill(pid)
        thread.join(60)
        wait_for(lambda: server.process() not in (0, pid) and server.is_ready(), "the server's return", 60)  # noqa: B023
        found = own.get("some").json()["spec"]["resources"]["memory"]
        assert found in (f"{known}Mi", f"{wanted}Mi")
        if heard[wanted] == 200:
            assert found == f"{wanted}Mi", "what was told has happened"
        assert own.server.native("GET", "/pools/some").json()["limits"]["memoryBytes"] == int(found[:3]) << 20
        assert own.run("some", "user", command="echo works")["stdout"] == "works\n"
        known = int(found[:3])


def of_file(*objects: dict) -> str:
    return yaml.safe_dump({"listen": "127.0.0.1:0", "pools": list(objects)})


def test_pools_of_the_configuration_file_are_the_files(start):
    filed = pool("filed")
    own = Operator(start(config=of_file(filed)))
    assert own.get("filed").json()["metadata"]["origin"] == "file"
    for answer in (own.put(with_value(filed, "spec.execution.queue", 3)), own.put(filed), own.remove("filed")):
        told = check_error(answer, 409, "SessionPoolNotApplied")
        assert "filed" in told["message"] and "configuration file" in told["message"]
    check_error(own.put(filed, dryRun="true"), 409, "SessionPoolNotApplied")
    refused = own.server.run("pool", "rm", "filed", check=False)
    assert refused.returncode == 1 and "configuration file" in refused.stderr
    group = "/subscriptions/some/resourceGroups/lab/providers/Microsoft.App/sessionPools"
    for method, body in (("PUT", {"properties": {"containerType": "Shell"}}), ("PATCH", {"tags": {"a": "b"}}), ("DELETE", None)):
        answer = own.server.native(method, f"{group}/filed", own.bearer, json=body)
        assert "filed" in check_error(answer, 409, "SessionPoolNotApplied")["message"]
    # Beside them others can be applied; what the file says later counts.
    own.applied(pool("other", execution={"queue": 3}), "created")
    own.server.down()
    own = Operator(start(config=of_file(filed, pool("other", execution={"queue": 5})), home=own.server.home))
    other = own.get("other").json()
    assert (other["metadata"]["origin"], other["spec"]["execution"]["queue"]) == ("file", 5)
    assert "other" in own.server.log() and "the file's counts" in own.server.log()
    own.server.down()
    own = Operator(start(config=of_file(filed), home=own.server.home))
    other = own.get("other").json()
    assert (other["metadata"]["origin"], other["spec"]["execution"]["queue"]) == ("applied", 3)


# Images.


def tools(version: str, place: Path) -> Path:
    """An image with a program that says its version."""
    changed = layer(("etc/tool/version", f"{version}\n".encode(), 0o640))
    return Layout(place, *tool(), changed).place


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    """Two versions of an image."""
    needs("busybox")
    place = tmp_path_factory.mktemp("layouts")
    return {version: tools(version, place / version) for version in ("one", "two")}


@pytest.fixture
def images():
    """A store that the server, which is not root, can read."""
    place = Path(tempfile.mkdtemp(prefix="sandpool-e2e-images-", dir="/var/tmp"))
    place.chmod(0o755)
    yield place
    shutil.rmtree(place)


def test_an_image_that_was_replaced_is_rolled_out_by_an_apply(layouts, images, tmp_path, start):
    import_as = lambda version: image("import", layouts[version], "--name", "tool", images=images)  # noqa: E731
    import_as("one")
    own = Operator(start("--images", str(images), config=of_file(pool("filed", image="tool"))))
    object = pool("tools", image="tool")
    own.applied(object, "created")
    own.full("tools")
    said = lambda session: own.run("tools", session, command="tool; cat /mnt/data/f 2>/dev/null || true")["stdout"].split()  # noqa: E731
    own.run("tools", "user-old", command="echo kept >/mnt/data/f")
    assert said("user-old") == ["tool", "one", "kept"]
    assert own.applied(object, "unchanged")["metadata"]["generation"] == 1
    file = tmp_path / "tools.yaml"
    file.write_text(yaml.safe_dump(object))
    import_as("two")
    # Nothing happens by itself.
    assert said("user-before") == ["tool", "one"]
    differs = own.server.run("pool", "diff", "-f", file, check=False)
    assert differs.returncode == 1 and "image" in differs.stdout, differs.stdout
    assert own.applied(object, "changed", dryRun="true")
    assert own.server.run("pool", "apply", "-f", file).stdout == "pool tools changed\n"
    assert said("user-new") == ["tool", "two"]
    assert said("user-old") == ["tool", "one", "kept"] and said("user-before") == ["tool", "one"]
    own.full("tools")
    assert own.applied(object, "unchanged")["metadata"]["generation"] == 2
    assert own.server.run("pool", "diff", "-f", file).stdout == ""
    # What nobody names any more may go, and its sessions go on.
    image("prune", images=images)
    assert said("user-old") == ["tool", "one", "kept"]


def test_a_pool_whose_image_is_gone_keeps_nobody_from_starting(layouts, images, tmp_path, start):
    for name in ("tool", "other"):
        image("import", layouts["one"], "--name", name, images=images)
    config = of_file(pool("filed", image="other"))
    own = Operator(start("--images", str(images), config=config))
    object = pool("tools", image="tool", env=[{"name": "STAGE", "value": "one"}])
    own.applied(object, "created")
    own.full("tools")
    own.server.down()
    image("rm", "tool", images=images)
    own = Operator(start("--images", str(images), config=config, home=own.server.home))
    assert own.run("filed", "some", command="tool")["stdout"] == "tool one\n"
    condition = own.condition("tools")
    assert (condition["type"], condition["status"], condition["reason"]) == ("Ready", "False", "Broken")
    assert "tool" in condition["message"]
    row = next(row for row in own.server.json("pool", "ls")["value"] if row["name"] == "tools")
    assert row["isReady"] is False and row["trouble"] and "tool" in row["trouble"], row
    assert "tool" in next(line for line in own.server.run("pool", "ls").stdout.splitlines() if line.startswith("tools "))
    answer = own.server.native("POST", "/pools/tools/sessions/some/executions", json={"command": "tool"})
    assert answer.status_code == 503, answer.text
    group = "/subscriptions/some/resourceGroups/lab/providers/Microsoft.App/sessionPools"
    assert own.server.native("GET", f"{group}/tools").json()["properties"]["provisioningState"] == "Failed"
    assert own.get("tools").json()["spec"]["env"] == object["spec"]["env"], "it is kept as it was said"
    assert own.run("filed", "some", command="tool")["stdout"] == "tool one\n", "nobody else is held up"
    # A change needs what is missing, a removal does not; and when it is there again, the same object heals it.
    told = check_error(own.put(object), 400, "SessionPoolInvalid")
    assert told["error"]["target"] == "spec.image"
    image("import", layouts["two"], "--name", "tool", images=images)
    own.applied(object, "changed")
    own.full("tools")
    assert own.run("tools", "some", command="tool; echo $STAGE")["stdout"] == "tool two\none\n"
    assert own.remove("tools").status_code == 204


def test_a_pool_of_which_no_sandbox_can_be_made_is_refused_and_all_is_as_it_was(layouts, images, tmp_path, start):
    image("import", layouts["one"], "--name", "tool", images=images)
    image("import", Layout(tmp_path / "bare", layer(("etc/note", b"x", 0o644))).place, "--name", "bare", images=images)
    own = Operator(start("--images", str(images), config=of_file(pool("filed", image="tool"))))
    # It has no shell.
    told = own.put(pool("tools", image="bare"))
    assert check_error(told, 400, "SessionPoolInvalid")["error"]["target"] == "spec.image" and "needs shell" in told.text
    check_error(own.get("tools"), 404)
    before = own.applied(pool("tools", image="tool"), "created")
    own.full("tools")
    assert own.put(pool("tools", image="bare")).status_code == told.status_code
    after = own.get("tools").json()
    assert (after["spec"], after["metadata"]) == (before["spec"], before["metadata"])
    own.full("tools")
    assert own.run("tools", "some", command="tool")["stdout"] == "tool one\n"
    pid = own.server.process()
    kill(pid)
    wait_for(lambda: own.server.process() not in (0, pid) and own.server.is_ready(), "the server's return", 60)
    assert own.get("tools").json()["spec"] == before["spec"]
