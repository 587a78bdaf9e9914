"""Suspended sessions, snapshots and forks, on the real program; also when all of it is killed in the middle.

`SANDPOOL_E2E_ISOLATION=microvm e2e/run test_suspend.py` runs the same at that level, which keeps variables too.
"""

from __future__ import annotations

import json
import os
import random
import threading
import time
from pathlib import Path

import pytest

from sandpool import Server, check_error, command, descendants, kill, start_time, wait_for

ISOLATION = os.environ.get("SANDPOOL_E2E_ISOLATION", "process")
KEEPS = "machine" if ISOLATION == "microvm" else "files"
# Machines are suspended and started again slowly, where they are emulated.
KILLS = int(os.environ.get("SANDPOOL_KILLS", "2" if KEEPS == "machine" else "6"))
SEED = int(os.environ.get("SANDPOOL_SEED", "2026"))

# The longest wait for an answer: machines are slow where there is no KVM.
PATIENCE = 120

CONFIG = f"""
listen: 127.0.0.1:0
pools:
  - apiVersion: sandpool.dev/v1alpha1
    kind: SessionPool
    metadata: {{ name: python }}
    spec:
      containerType: PythonLTS
      isolation: {ISOLATION}
      scaleConfiguration: {{ maxConcurrentSessions: 6, readySessionInstances: 1 }}
  - apiVersion: sandpool.dev/v1alpha1
    kind: SessionPool
    metadata: {{ name: idle }}
    spec:
      containerType: Shell
      isolation: {ISOLATION}
      scaleConfiguration: {{ maxConcurrentSessions: 4, readySessionInstances: 1 }}
      dynamicPoolConfiguration:
        lifecycleConfiguration: {{ cooldownPeriodInSeconds: 3600, suspendAfterInSeconds: 2 }}
"""

# Files of every kind that is kept, and one of a kind that is not.
MAKE = """
import os, socket
x = 41
os.makedirs("/mnt/data/deep/er", exist_ok=True)
open("/mnt/data/deep/er/file", "wb").write(bytes(range(256)) * 4000)
open("/mnt/data/empty", "w").close()
os.symlink("deep/er", "/mnt/data/link")
os.symlink("/etc/passwd", "/mnt/data/out")
os.link("/mnt/data/deep/er/file", "/mnt/data/again")
with open("/mnt/data/sparse", "wb") as sparse:
    sparse.seek(900_000_000)
    sparse.write(b"!")
open(os.path.expanduser("~/.note"), "w").write("home")
os.chmod("/mnt/data/empty", 0o000)
os.chmod("/mnt/data/deep/er", 0o500)
os.utime("/mnt/data/again", ns=(5, 1_000_000_000_000_000_007))
socket.socket(socket.AF_UNIX).bind("/mnt/data/socket")
"""

LOOK = """
import os
def seen(path):
    stat = os.lstat(path)
    return [oct(stat.st_mode), stat.st_size, stat.st_nlink, stat.st_mtime_ns if path.endswith("again") else 0, stat.st_uid, stat.st_gid]
paths = ["deep", "deep/er", "deep/er/file", "empty", "link", "out", "again", "sparse"]
found = {path: seen("/mnt/data/" + path) for path in paths}
found["links"] = [os.readlink("/mnt/data/link"), os.readlink("/mnt/data/out")]
found["content"] = open("/mnt/data/link/file", "rb").read() == bytes(range(256)) * 4000
found["blocks"] = os.stat("/mnt/data/sparse").st_blocks < 10_000
found["home"] = open(os.path.expanduser("~/.note")).read()
import json
print(json.dumps(found, sort_keys=True))
"""


class Here:
    """A server of this level, and what is asked of its sessions."""

    def __init__(self):
        self.server = Server(config=CONFIG)

    def ask(self, method: str, what: str, **more):
        return self.server.native(method, f"/pools/python/sessions/{what}", timeout=PATIENCE, **more)

    def run(self, session: str, code: str, **more) -> dict:
        answer = self.ask("POST", f"{session}/executions", json={"code": code, **more})
        assert answer.status_code == 200, answer.text
        assert answer.json()["outcome"] == "succeeded", answer.text
        return answer.json()

    def state(self, session: str) -> str | None:
        answer = self.ask("GET", session)
        return answer.json()["state"] if answer.status_code == 200 else None

    def suspend(self, session: str) -> dict:
        answer = self.ask("POST", f"{session}/suspend")
        assert answer.status_code == 200, answer.text
        assert (answer.json()["state"], answer.json()["suspended"]["keeps"]) == ("suspended", KEEPS)
        return answer.json()

    def snapshots(self) -> Path:
        return self.server.home / "state/snapshots"

    def kill_all(self):
        """Everything, at once, and then a start as a person would."""
        launcher = self.server.launcher
        begun = {pid: start_time(pid) for pid in [launcher, *descendants(launcher)]}
        # The server first: then it is not in the middle of hearing of its launcher.
        for pid in [self.server.process(), launcher]:
            if pid:
                kill(pid)
        over = lambda: all(start is None or start_time(pid) != start for pid, start in begun.items())  # noqa: E731
        wait_for(over, "the end of all that the launcher had started", PATIENCE)
        command("serve", "--config", str(self.server.home / "config.yaml"), "--detach", home=self.server.home, timeout=300)
        self.server.record = json.loads((self.server.home / "run/server.json").read_text())
        self.server.endpoint, self.server.launcher = self.server.record["endpoint"], self.server.record["pid"]


@pytest.fixture(scope="module")
def here():
    here = Here()
    yield here
    here.server.remove()


@pytest.fixture
def name(here, request):
    name = f"{request.node.name[:40]}-{os.urandom(3).hex()}"
    yield name
    here.ask("DELETE", name)


def test_files_outlive_the_kill_of_everything(here, name):
    here.run(name, MAKE)
    before = here.run(name, LOOK)["stdout"]
    assert json.loads(before)["content"]
    sandbox = here.ask("GET", name).json()["sandbox"]
    here.suspend(name)
    assert here.suspend(name)["sandbox"] == sandbox, "again is fine"
    here.kill_all()
    assert here.state(name) == "suspended"
    first = here.run(name, LOOK)
    assert first["stdout"] == before
    assert first["resumed"]["keeps"] == KEEPS
    assert here.ask("GET", name).json()["sandbox"] != sandbox
    variable = here.run(name, "repr(globals().get('x'))")
    assert variable["result"]["json"] == ("41" if KEEPS == "machine" else "None")
    assert ("variables" in first["resumed"]["lost"]) == (KEEPS == "files")
    # It is a session like every other.
    here.run(name, "y = 1")
    assert here.run(name, "y")["result"]["json"] == 1
    here.suspend(name)
    assert here.ask("DELETE", name).status_code == 204
    assert here.state(name) is None
    assert list(here.snapshots().iterdir()) == []


def test_a_flipped_byte_is_refused_with_its_file_named(here, name):
    here.run(name, "open('/mnt/data/kept', 'w').write('kept' * 1000)")
    here.suspend(name)
    [place] = here.snapshots().iterdir()
    assert place.stat().st_mode & 0o777 == 0o700
    for file in sorted(place.iterdir()):
        assert file.stat().st_mode & 0o777 == 0o600
        whole = file.read_bytes()
        file.write_bytes(whole[:99] + bytes([whole[99] ^ 1]) + whole[100:])
        for restarted in (False, True):
            if restarted:
                kill(here.server.process())
                wait_for(here.server.is_ready, "the server, again", PATIENCE)
            refused = here.ask("POST", f"{name}/executions", json={"code": "1"})
            check_error(refused, 409, "SnapshotDamaged")
            assert file.name in refused.json()["message"], refused.text
        file.write_bytes(whole)
    kill(here.server.process())
    wait_for(here.server.is_ready, "the server, again", PATIENCE)
    assert here.run(name, "len(open('/mnt/data/kept').read())")["result"]["json"] == 4000


def test_it_is_busy_with_what_runs_and_not_with_what_is_in_the_background(here, name):
    begun = here.ask("POST", f"{name}/executions", json={"code": "import time; time.sleep(600)", "waitSeconds": 0}).json()
    check_error(here.ask("POST", f"{name}/suspend"), 409, "SessionBusy")
    forced = here.ask("POST", f"{name}/suspend", json={"force": True})
    assert forced.status_code == 200, forced.text
    # It is over: said so for a moment more, or not known any more.
    asked = here.ask("GET", f"{name}/executions/{begun['id']}")
    assert asked.status_code in (404, 409) or asked.json()["outcome"] == "cancelled", asked.text
    here.run(name, "import subprocess; p = subprocess.Popen(['sleep', '600'], start_new_session=True)")
    here.suspend(name)
    alive = here.run(name, "import os; os.system('pgrep -x sleep >/dev/null')")["result"]["json"] == 0
    assert alive == (KEEPS == "machine")


def test_the_command_line_copies_and_forks(here, name):
    server = here.server
    here.run(name, "open('/mnt/data/kept', 'w').write('one')")
    copy = server.json("session", "snapshot", name, "--name", "first")
    assert (copy["name"], copy["keeps"], copy["session"]) == ("first", KEEPS, name)
    here.run(name, "open('/mnt/data/kept', 'w').write('two')")
    other = f"{name}-b"[-60:]
    try:
        fork = server.json("session", "fork", name, other, "--snapshot", "first")
        assert fork["isNew"] and fork["identifier"] == other
        read = "open('/mnt/data/kept').read()"
        assert here.run(other, read)["result"]["json"] == "one"
        assert here.run(name, read)["result"]["json"] == "two"
        # No random number is drawn twice.
        draw = "import os, random, uuid; str([os.urandom(8), random.random(), uuid.uuid4()])"
        assert here.run(other, draw)["result"]["text"] != here.run(name, draw)["result"]["text"]
    finally:
        here.ask("DELETE", other)
    assert server.json("session", "suspend", name)["state"] == "suspended"
    listed = server.run("session", "ls", "--pool", "python").stdout
    assert any(name in line and "suspended" in line for line in listed.splitlines()), listed
    assert server.json("session", "resume", name)["resumed"]["keeps"] == KEEPS
    assert [one["name"] for one in server.json("session", "snapshot", name, "--list")["value"]] == ["first"]
    server.run("session", "snapshot", name, "--rm", "first")
    assert server.json("session", "snapshot", name, "--list")["value"] == []


def test_an_idle_session_is_suspended_and_woken(here):
    place = "/pools/idle/sessions/idle-one"
    ask = lambda method, what="", **more: here.server.native(method, place + what, timeout=PATIENCE, **more)  # noqa: E731
    ask("POST", "/executions", json={"command": "echo kept >/mnt/data/file; touch ~/too"})
    wait_for(lambda: ask("GET").json()["state"] == "suspended", "it is suspended", PATIENCE)
    assert ask("GET", "/files/file").text == "kept\n"
    assert ask("GET").json()["state"] == "live"
    assert ask("DELETE").status_code == 204


def test_killed_while_it_is_suspended_it_is_the_old_or_the_new(here, name):
    rng = random.Random(SEED)
    big = "import os; open('/mnt/data/big', 'wb').write(os.urandom(1 << 20) * 64)"
    seen = set()
    for turn in range(KILLS):
        here.run(name, f"{big}; open('/mnt/data/turn', 'w').write('{turn}')")
        # In the middle of it, at a moment of its own.
        suspending = threading.Thread(target=lambda: _quietly(lambda: here.ask("POST", f"{name}/suspend")))
        suspending.start()
        time.sleep(rng.uniform(0.0, 0.6))
        here.kill_all()
        suspending.join()
        state = here.state(name)
        seen.add(state)
        assert not list(here.snapshots().glob("partial-*")), "what is half is gone"
        if state == "suspended":
            found = here.run(name,
                             "import os; open('/mnt/data/turn').read() + ' ' + str(os.path.getsize('/mnt/data/big'))")
            assert found["result"]["json"] == f"{turn} {64 << 20}"
        else:
            # It was alive, and ended with everything: as every session, it says so once.
            answer = here.ask("POST", f"{name}/executions", json={"code": "1"})
            assert answer.status_code in (200, 410), answer.text
    assert seen, "something was killed"


def _quietly(work):
    try:
        work()
    except Exception:
        pass
