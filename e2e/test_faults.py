"""What a machine runs out of: the server says so, loses nothing that it told of, and goes on when there is some again."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from sandpool import Server, of_process, wait_for

EXECUTIONS = "/pools/shell/sessions/{}/executions"


@pytest.fixture
def small_disk():
    """A state directory with little room."""
    home = Path(tempfile.mkdtemp(prefix="sandpool-e2e-", dir="/var/tmp"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m,mode=755", "tmpfs", str(home)], check=True)
    servers = []

    def started(*words) -> Server:
        servers.append(Server(*words, home=home))
        return servers[-1]

    yield started
    for server in servers:
        server.run("down", "--timeout", "5", check=False)
    subprocess.run(["umount", "-l", str(home)], check=True)
    home.rmdir()


def soft_limit(process: int, count: int | None = None) -> int:
    """How many descriptors a process may have, and from now on. Asked as its own user, which is enough everywhere."""
    status = dict(line.split(":", 1) for line in of_process(process, "status").splitlines())
    uid, gid = int(status["Uid"].split()[0]), int(status["Gid"].split()[0])
    code = "import resource, sys; pid, new = map(int, sys.argv[1:]); kind = resource.RLIMIT_NOFILE\n"
    code += "old = resource.prlimit(pid, kind); new and resource.prlimit(pid, kind, (new, old[1])); print(old[0])"
    words = ["/usr/bin/python3", "-c", code, str(process), str(count or 0)]
    done = subprocess.run(words, user=uid, group=gid, extra_groups=[], capture_output=True, text=True, check=True, cwd="/")
    return int(done.stdout)


def run(server: Server, session: str, command: str):
    return server.native("POST", EXECUTIONS.format(session), json={"command": command})


def test_a_full_disk_is_said_and_nothing_that_was_told_of_is_lost(small_disk):
    server = small_disk("--ready", "0")
    told = []
    assert run(server, "kept", "echo kept > /mnt/data/a; echo 0").status_code == 200
    filler = server.home / "filler"
    room = os.statvfs(server.home)
    with filler.open("wb") as file:
        left = room.f_bavail * room.f_frsize
        try:
            while left > 0:
                left -= file.write(b"x" * min(left, 1 << 20))
        except OSError:
            pass
    # What it still has room for is told of, and is kept; what it has none for is refused, with the reason.
    refused = None
    for number in range(400):
        answer = run(server, f"session-{number % 4}", f"echo {number}; head -c 20000 /dev/zero | tr '\\0' x")
        if answer.status_code == 200:
            told.append((f"session-{number % 4}", answer.json()["id"], answer.json()["stdout"]))
        else:
            refused = answer
            break
    assert refused is not None, "it never ran out"
    assert refused.status_code == 503, refused.text
    assert "cannot write its state" in refused.json()["error"]["message"], refused.text
    assert server.native("GET", "/pools/shell/sessions/kept").status_code == 200, "what needs no room works"
    counted = server.native("GET", "/metrics").text.splitlines()
    assert {"sandpool_store_trouble 1", 'sandpool_http_refusals_total{class="5xx",code="ServiceUnavailable"} 1'} <= set(counted)
    assert 'sandpool_pool_refusals_total{pool="shell",reason="unavailable"} 1' in counted
    assert server.is_ready() or server.process(), "it lives"
    filler.unlink()
    wait_for(lambda: run(server, "kept", "cat /mnt/data/a").status_code == 200, "the server to go on", 60)
    assert "sandpool_store_trouble 0" in server.native("GET", "/metrics").text.splitlines()
    assert run(server, "kept", "cat /mnt/data/a").json()["stdout"] == "kept\n"
    for session, execution, stdout in told:
        again = server.native("GET", EXECUTIONS.format(session) + f"/{execution}")
        # Of a live session the last 64 are at hand.
        assert again.status_code in (200, 404), again.text
        if again.status_code == 200:
            assert again.json()["stdout"] == stdout


def test_a_server_without_descriptors_refuses_and_goes_on(start):
    server = start("--ready", "0")
    assert run(server, "kept", "echo kept > /mnt/data/a").status_code == 200
    process = server.process()
    used = len(os.listdir(f"/proc/{process}/fd"))
    before = soft_limit(process)

    def allow(count: int):
        soft_limit(process, count)

    allow(used + 8)
    place = urlsplit(server.endpoint)
    held = []
    try:
        for _ in range(64):
            held.append(socket.create_connection((place.hostname, place.port), timeout=10))
        # Nobody is answered now; and nothing ends.
        assert server.process() == process
    finally:
        for one in held:
            one.close()
    wait_for(server.is_ready, "those that are left to be answered")
    # A session that is there is used; one that needs descriptors that are not there is refused, and says why.
    allow(used + 3)
    answers = [run(server, f"more-{number}", "echo hi") for number in range(2)]
    for answer in answers:
        assert answer.status_code in (200, 429, 500, 503), answer.text
        assert answer.status_code == 200 or answer.json()["error"]["message"], answer.text
    allow(before)
    assert run(server, "kept", "cat /mnt/data/a").json()["stdout"] == "kept\n"
    wait_for(lambda: run(server, "anew", "echo hi").status_code == 200, "new sessions", 60)
    assert server.process() == process, "it was the same server all the time"
