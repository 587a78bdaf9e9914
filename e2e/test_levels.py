"""`isolation: container`: the same sandboxes through OCI runtimes, in one server with those of the process level.

The host's own runtimes (Debian 12's) are below their floors, and refused; newer ones come from Debian's archive (`e2e/oci-runtimes`).
`SANDPOOL_FIGURES=1 e2e/run -s test_levels.py` prints what docs/isolation.md says of their start and memory.
"""

from __future__ import annotations

import os
import subprocess
import time
import uuid
from pathlib import Path

import pytest

from sandpool import Server, Target, check_error, command, descendants, json, kill, start_time, wait_for
from test_life import cgroups, left_behind

HERE = Path(__file__).parent

# Pools by their runtime; None is the process level.
RUNTIMES = {"process": None, "runc": "runc", "crun": "crun", "gvisor": "runsc"}

KINDS = {"python": "PythonLTS", "node": "NodeLTS", "shell": "Shell"}


@pytest.fixture(scope="module")
def runtimes() -> dict:
    """Settings for the newer runtimes. gVisor's is below its floor, and accepted."""
    path = subprocess.run([HERE / "oci-runtimes"], check=True, capture_output=True, text=True).stdout.strip()
    said = json.loads(Path(path).read_text())
    said["runsc"]["acceptBelowFloor"] = True
    return said


def pool(name: str, kind: str, runtime: str | None, **spec) -> dict:
    wall = {"isolation": "container", "ociRuntime": runtime} if runtime else {}
    scale = {"maxConcurrentSessions": 12, "readySessionInstances": 1, "maxReadySessionInstances": 1}
    return {
        "apiVersion": "sandpool.dev/v1alpha1",
        "kind": "SessionPool",
        "metadata": {"name": name},
        "spec": {"containerType": kind, "scaleConfiguration": scale, **wall, **spec},
    }


@pytest.fixture(scope="module")
def target():
    served = Target(lambda request: (b"served " + request.path.encode(), {}))
    yield served
    served.close()


@pytest.fixture(scope="module")
def levels(runtimes, target):
    """One server with pools of all levels."""
    pools = [
        pool(f"{name}-{kind}", KINDS[kind], runtime)
        for name, runtime in RUNTIMES.items()
        for kind in (("python", "node", "shell") if name in ("runc", "gvisor") else ("python",))
    ]
    egress = {
        "mode": "allow-list",
        "allow": [f"files.test:{target.port}"],
        "allowAddresses": ["127.0.0.0/8"],
        "hosts": {"files.test": ["127.0.0.1"], "other.test": ["127.0.0.1"]},
    }
    pools += [pool(f"{name}-web", "PythonLTS", RUNTIMES[name], egress=egress) for name in ("runc", "gvisor")]
    server = Server(config=json.dumps({"listen": "127.0.0.1:0", "ociRuntimes": runtimes, "pools": pools}))
    yield server
    server.remove()


def apply(server: Server, name: str, kind: str, runtime: str | None = None, **spec):
    body = pool(name, kind, runtime, **spec)
    return server.native("PUT", f"/pools/{name}", server.token("--role", "admin", "--ttl", "10m"), json=body)


def run(server: Server, name: str, session: str, **body) -> dict:
    return server.pool(name).modern(session, **body)


@pytest.fixture
def session(levels):
    """A name for a session of this test, in whatever pool has it."""
    name = f"s-{uuid.uuid4().hex[:10]}"
    yield name
    for listed in levels.native("GET", "/pools").json()["value"]:
        for each in (name, f"{name}-other"):
            levels.native("DELETE", f"/pools/{listed['name']}/sessions/{each}")


@pytest.mark.parametrize("name", ["runc", "crun", "gvisor"])
def test_python_keeps_its_variables_and_its_files(levels, session, name):
    python = levels.pool(f"{name}-python")
    assert python.legacy("import numpy\nx = numpy.arange(7).sum()", session)["status"] == "Success"
    assert python.upload(session, "in.txt", b"brought").status_code in (200, 201)
    said = python.legacy("open('/mnt/data/out.txt', 'w').write(str(x)); print(open('/mnt/data/in.txt').read()); int(x)", session)
    assert said["executionResult"] == 21 or "21" in json.dumps(said), said
    assert "brought" in said["stdout"]
    content = levels.native("GET", f"/pools/{name}-python/sessions/{session}/files/out.txt")
    assert (content.status_code, content.content) == (200, b"21"), content.text


@pytest.mark.parametrize("name", ["runc", "gvisor"])
def test_node_and_shell_work(levels, session, name):
    said = run(levels, f"{name}-node", session, code="let a = 6; console.log(`it is ${a * 7}`)")
    assert "it is 42" in json.dumps(said), said
    run(levels, f"{name}-shell", session, shellCommand="echo kept > /mnt/data/f; sleep 300 & echo $?")
    said = run(levels, f"{name}-shell", session, shellCommand="cat /mnt/data/f; id -u; exit 3")
    assert "kept" in json.dumps(said) and "1000" in json.dumps(said), said


@pytest.mark.parametrize("name", ["runc", "crun", "gvisor"])
def test_a_session_tells_the_wall_that_it_has(levels, session, name):
    run(levels, f"{name}-python", session, code="1")
    detail = levels.native("GET", f"/pools/{name}-python/sessions/{session}").json()
    runtime = RUNTIMES[name]
    assert detail["level"].startswith(f"container ({runtime} "), detail
    assert ("gVisor" in detail["level"]) == (name == "gvisor")
    assert any(line.startswith("runtime: ") for line in detail["wall"]), detail["wall"]
    weaker = levels.native("GET", f"/pools/{name}-python").json()["weaker"]
    assert any("BELOW ITS FLOOR" in line for line in weaker) == (name == "gvisor"), weaker


def test_levels_are_mixed_in_one_server(levels, session):
    run(levels, "process-python", session, code="1")
    listed = {each["name"]: each["level"] for each in levels.native("GET", "/pools").json()["value"]}
    assert listed["process-python"] == "process"
    assert listed["runc-python"].startswith("container (runc 1.") and listed["gvisor-shell"].startswith("container (runsc ")
    # Each session has its own, and all are listed beside each other.
    assert levels.native("GET", f"/pools/process-python/sessions/{session}").json()["level"] == "process"


KERNEL = "import os\nopen('/proc/1/root/etc/hostname').read() if os.access('/proc/1/root', os.R_OK) else None\nprint(os.uname().release)"


def test_gvisors_kernel_is_not_the_hosts_and_runcs_is(levels, session):
    # A control that must fail the same question: a container that shares the kernel.
    seen = {name: json.dumps(run(levels, f"{name}-python", session, code=KERNEL)) for name in ("runc", "gvisor")}
    assert os.uname().release in seen["runc"]
    assert os.uname().release not in seen["gvisor"]


FETCH = """
import urllib.request
try:
    said = urllib.request.urlopen("http://{host}:{port}/{word}", timeout=10).read().decode()
except Exception as error:
    said = f"refused: {{error}}"
print(said)
"""


@pytest.mark.parametrize("name", ["runc", "gvisor"])
def test_egress_reaches_what_is_allowed_and_nothing_else(levels, target, session, name):
    def fetch(host: str) -> str:
        return json.dumps(run(levels, f"{name}-web", session, code=FETCH.format(host=host, port=target.port, word="w")))

    # The target's port is none that is listened at: the way there is the proxy of the environment.
    assert "served /w" in fetch("files.test")
    assert "refused" in fetch("other.test")
    # A session that is given less while it lives.
    narrowed = levels.native("PUT", f"/pools/{name}-web/sessions/{session}/egress", json={"mode": "none"})
    assert narrowed.status_code in (200, 204), narrowed.text
    assert "refused" in fetch("files.test")
    assert "refused" in json.dumps(run(levels, f"{name}-python", session, code=FETCH.format(host="files.test", port=target.port, word="w")))


SERVE = """
import http.server, threading
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = b"from inside " + self.path.encode() * 1000
        self.send_response(200); self.send_header("Content-Length", str(len(body))); self.end_headers(); self.wfile.write(body)
    def log_message(self, *_): pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 8000), H)
threading.Thread(target=server.serve_forever, daemon=True).start()
"""


@pytest.mark.parametrize("name", ["runc", "gvisor"])
def test_ports_of_a_session_are_reached(levels, session, name):
    run(levels, f"{name}-python", session, code=SERVE)
    answer = levels.native("GET", f"/pools/{name}-python/sessions/{session}/ports/8000/hello")
    assert answer.status_code == 200 and answer.content == b"from inside " + b"/hello" * 1000, answer.text[:200]
    nobody = levels.native("GET", f"/pools/{name}-python/sessions/{session}/ports/8001/")
    assert nobody.status_code in (502, 503), nobody.text


@pytest.mark.parametrize("name", ["runc", "gvisor"])
def test_who_takes_too_much_memory_is_told_so(levels, session, name):
    run(levels, f"{name}-python", session, code="kept = 1")
    body = {"code": "x = []\nwhile True: x.append(bytearray(64 << 20))"}
    levels.pool(f"{name}-python").call("POST", "executions", session, json=body, timeout=120)
    # Whatever ended, the next one answers clearly, and the host and the others are as before.
    after = levels.pool(f"{name}-python").call("POST", "executions", session, json={"code": "print('on')"})
    assert after.status_code in (200, 410), after.text
    assert "42" in json.dumps(run(levels, f"{name}-python", f"{session}-other", code="print(6 * 7)"))


def test_what_debian_12_has_is_refused_with_the_reason(server):
    shown = json.loads(command("--json", "doctor", check=False).stdout)["runtimes"]
    found = {each["runtime"]: each for each in shown}
    assert set(found) == {"runc", "crun", "youki", "runsc"}
    there = [name for name, each in found.items() if each["found"] == "refused"]
    for name in there:
        assert "below the floor" in found[name]["why"] and ("CVE" in found[name]["why"] or "GHSA" in found[name]["why"]), found[name]
    if os.environ.get("SANDPOOL_MUST") == "1":
        assert {"runc", "crun", "runsc"} <= set(there), f"apt-get install runc crun runsc: {shown}"
    text = command("doctor", check=False).stdout
    for name in there:
        assert f"refused  {name}" in text
        # The pool is refused, not the server; with the same reason.
        answer = apply(server, f"old-{name}", "Shell", name)
        assert answer.status_code >= 400 and "below the floor" in answer.text, answer.text
    absent = apply(server, "old-youki", "Shell", "youki")
    assert absent.status_code >= 400 and "youki" in absent.text


def test_a_pool_that_is_refused_keeps_no_other_from_working(runtimes):
    config = {"listen": "127.0.0.1:0", "pools": [pool("good", "Shell", None), pool("bad", "Shell", "youki")]}
    server = Server(config=json.dumps(config))
    try:
        assert "works" in json.dumps(run(server, "good", "works-1", shellCommand="echo works"))
        assert "youki is not" in server.native("GET", "/pools/bad").json()["trouble"]
        assert server.pool("bad").call("POST", "executions", "works-1", json={"shellCommand": "true"}).status_code >= 500
    finally:
        server.remove()


def test_doctor_shows_what_is_accepted_below_its_floor(levels):
    text = levels.run("doctor", check=False).stdout
    assert "ACCEPTED BELOW ITS FLOOR" in text and "container (runc 1." in text, text
    shown = {each["runtime"]: each for each in levels.json("doctor")["runtimes"]}
    assert shown["runsc"]["found"] == "accepted below floor" and shown["runc"]["found"] == "good", shown


def test_what_a_pool_cannot_have_at_this_level_is_refused_by_its_field(levels):
    def refused(field: str, **more):
        answer = apply(levels, "wrong", "PythonLTS", **more)
        problem = check_error(answer, 400)
        assert field in json.dumps(problem), problem

    refused("interpreterStart", runtime="runc", interpreterStart="Zygote")
    refused("localServers", runtime="runsc", localServers=False)
    refused("ociRuntime", runtime=None, ociRuntime="runc")
    changed = apply(levels, "changed", "Shell")
    assert changed.status_code in (200, 201), changed.text
    again = apply(levels, "changed", "Shell", "runc")
    assert again.status_code == 409 and "isolation" in again.text
    removed = levels.native("DELETE", "/pools/changed", levels.token("--role", "admin", "--ttl", "10m"))
    assert removed.status_code in (200, 202, 204), removed.text


def test_killed_servers_and_launchers_leave_nothing(runtimes):
    pools = [pool("runc", "Shell", "runc"), pool("gvisor", "Shell", "runsc")]
    server = Server(config=json.dumps({"listen": "127.0.0.1:0", "ociRuntimes": runtimes, "pools": pools}))
    try:
        for name in ("runc", "gvisor"):
            run(server, name, "kept", shellCommand="echo 7 > /mnt/data/kept; (sleep 1000 &) ; echo on")
        # The server alone: the sandboxes live on.
        kill(server.process())
        wait_for(server.is_ready, "the next server")
        for name in ("runc", "gvisor"):
            assert "7" in json.dumps(run(server, name, "kept", shellCommand="cat /mnt/data/kept"))
        pids = {pid: start_time(pid) for pid in descendants(server.launcher) | {server.launcher}}
        kill(server.launcher)
        wait_for(lambda: not left_behind(server, pids), "the end of all that a killed launcher had")
        # What a kernel does not remove, the next launcher does.
        command("serve", "--config", str(server.home / "config.yaml"), "--detach", home=server.home, timeout=300)
        command("down", "--timeout", "30", home=server.home, timeout=60)
        wait_for(lambda: not cgroups(server), "the end of its control groups")
    finally:
        server.remove()


if "SANDPOOL_FIGURES" in os.environ:

    def test_figures(levels):
        for name in RUNTIMES:
            starts = []
            for number in range(9):
                session = f"figure-{name}-{number}"
                began = time.monotonic()
                run(levels, f"{name}-python", session, code="1")
                starts.append(time.monotonic() - began)
                used = levels.native("GET", f"/pools/{name}-python/sessions/{session}").json()["usage"]["memoryBytes"]
                levels.native("DELETE", f"/pools/{name}-python/sessions/{session}")
            shown = sorted(round(1000 * start) for start in starts)
            print(f"{name}: first answer of a new session from a reservoir of one, ms: {shown}; memory of one: {used >> 20} MiB")
