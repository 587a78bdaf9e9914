"""The official conformance suite of the Model Context Protocol, in both eras: all that it requires of servers against our transport with
the suite's own fixtures behind it, and what needs no fixtures against the server that people run."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import threading

import pytest

from sandpool import CLEAN, installed, node_modules

PATIENCE = 240
pytestmark = pytest.mark.timeout(300)

# Server scenarios that a revision requires, by the suite's own lists.
REQUIRED = {"2026-07-28": 37, "2025-11-25": 30}
# Those that ask for nothing that only a fixture has.
WITHOUT_FIXTURES = {
    "2026-07-28": ["server-stateless", "tools-list", "caching", "sep-2164-resource-not-found", "dns-rebinding-protection"],
    "2025-11-25": ["server-initialize", "ping", "tools-list", "dns-rebinding-protection"],
}
# Checks of `server-stateless` for which the suite wants tools of its own.
DIAGNOSTIC = {
    "sep-2575-server-rejects-undeclared-capability",
    "sep-2575-missing-capability-http-400",
    "sep-2575-http-server-no-independent-requests-on-stream",
    "sep-2575-server-no-log-without-loglevel",
}


class WithToken:
    """A door before a server that adds a token to each request, since the suite has none. It changes nothing else but that
    connections end after each answer."""

    def __init__(self, port: int, token: str):
        self.port, self.token = port, token
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.pass_on, args=(client,), daemon=True).start()

    def pass_on(self, client: socket.socket):
        with client:
            head = b""
            while b"\r\n\r\n" not in head:
                piece = client.recv(65536)
                if not piece:
                    return
                head += piece
            head, rest = head.split(b"\r\n\r\n", 1)
            head = re.sub(rb"(?im)^connection:.*\r\n", b"", head + b"\r\n")
            head += f"Connection: close\r\nAuthorization: Bearer {self.token}\r\n\r\n".encode()
            with socket.create_connection(("127.0.0.1", self.port)) as server:
                server.sendall(head + rest)
                # The client may go away first: that has to reach the server too.
                threading.Thread(target=self.pour, args=(client, server), daemon=True).start()
                self.pour(server, client)

    @staticmethod
    def pour(source: socket.socket, drain: socket.socket):
        try:
            while piece := source.recv(65536):
                drain.sendall(piece)
        except OSError:
            pass
        finally:
            try:
                drain.shutdown(socket.SHUT_WR)
            except OSError:
                pass

    def close(self):
        self.listener.close()


@pytest.fixture(scope="module")
def fixtures():
    """The suite's own tools, prompts and resources behind our transport."""
    program = installed("SANDPOOL_E2E_CONFORMANCE")
    with subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=CLEAN) as process:
        url, token = process.stdout.readline().split()
        door = WithToken(int(re.search(r":(\d+)/", url)[1]), token)
        yield f"http://127.0.0.1:{door.address}/conformance/mcp"
        door.close()
        process.stdin.close()
        assert process.wait(30) == 0


@pytest.fixture(scope="module")
def real(server):
    door = WithToken(int(re.search(r":(\d+)$", server.endpoint)[1]), server.bearer)
    yield f"http://127.0.0.1:{door.address}/mcp"
    door.close()


def suite(url: str, *words: str) -> tuple[int, str]:
    modules, programs = node_modules()
    script = modules / "@modelcontextprotocol/conformance/dist/index.js"
    done = subprocess.run(
        [programs / "node", script, "server", "--url", url, *words],
        env=CLEAN,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("revision", REQUIRED)
def test_all_that_a_revision_requires(fixtures, revision, tmp_path):
    code, told = suite(fixtures, "--requirements", revision, "-o", str(tmp_path))
    assert code == 0, told[-6000:]
    ran = re.findall(r"^[✓✗] ([\w-]+): \d+ passed", told, re.M)
    beside = re.search(r"^Not scored for .*: (\d+) scenario", told, re.M)
    assert len(ran) - (int(beside[1]) if beside else 0) == REQUIRED[revision], told[-6000:]


@pytest.mark.parametrize(
    ("revision", "scenario"), [(revision, name) for revision, names in WITHOUT_FIXTURES.items() for name in names]
)
def test_the_real_server(real, revision, scenario, tmp_path):
    code, told = suite(real, "--scenario", scenario, "--spec-version", revision, "-o", str(tmp_path))
    [file] = tmp_path.glob("*/checks.json")
    checks = json.loads(file.read_text())
    failed = {check["id"] for check in checks if check["status"] == "FAILURE"}
    assert failed <= DIAGNOSTIC and (code == 0 or failed), told[-6000:]
    assert sum(check["status"] == "SUCCESS" for check in checks) > len(failed)
