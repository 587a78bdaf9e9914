"""What the tests share: one server for the whole run, and a session for each test."""

from __future__ import annotations

import os
import re
import uuid

import pytest

import sandpool
from sandpool import Server


# The wall around that server's sandboxes: SANDPOOL_E2E_ISOLATION=microvm has all that uses it run in machines.
LEVEL = [f"--isolation={os.environ['SANDPOOL_E2E_ISOLATION']}"] if "SANDPOOL_E2E_ISOLATION" in os.environ else []


def pytest_collection_modifyitems(items):
    why = None
    if os.geteuid() != 0:
        why = "making sandboxes needs root"
    elif not os.access(sandpool.PROGRAM, os.X_OK):
        why = f"SANDPOOL_BIN={sandpool.PROGRAM!r} is no program"
    if why is None:
        return
    if os.environ.get("SANDPOOL_MUST") == "1":
        pytest.exit(f"SANDPOOL_MUST=1, and {why}", returncode=1)
    for item in items:
        item.add_marker(pytest.mark.skip(reason=f"SKIPPED: {why}"))


@pytest.fixture(scope="session")
def server():
    """The server of the run, started as a person would. At its end nothing of it may be left."""
    server = Server("--https=127.0.0.1:0", *LEVEL)
    yield server
    server.remove()


@pytest.fixture(scope="session")
def python(server):
    return server.pool("python")


@pytest.fixture(scope="session")
def node(server):
    return server.pool("node")


@pytest.fixture(scope="session")
def shell(server):
    return server.pool("shell")


@pytest.fixture
def session(request, server):
    """A name for a session of this test; whatever pools have it end it afterwards."""
    test = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-")[:60]
    name = f"{test}-{uuid.uuid4().hex[:8]}"
    yield name
    for pool in ("python", "node", "shell"):
        server.native("DELETE", f"/pools/{pool}/sessions/{name}")


@pytest.fixture
def start():
    """Starts further servers: `start("--cooldown", "1")`, or `start(config="...")`."""
    servers = []

    def started(*arguments, **more):
        servers.append(Server(*arguments, **more))
        return servers[-1]

    yield started
    for server in servers:
        server.remove()


@pytest.fixture
def as_client(server, monkeypatch):
    """The variables of `sandpool env --https`, and no others that lead clients of Azure anywhere."""
    for name in list(os.environ):
        if re.match(r"AZURE_|IDENTITY_|MSI_|ACA_|IMDS_", name):
            monkeypatch.delenv(name)
    variables = server.env("--https")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return variables
