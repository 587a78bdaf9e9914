"""What people install and fetch with works in a session whose pool allows the host, and says why where it does not: pip, npm, git over HTTPS,
curl and wget, unmodified, against a server of the test's own."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import subprocess
import tarfile
import zipfile
from types import SimpleNamespace

import pytest

from sandpool import Server, Target, authority

CONFIG = """
listen: 127.0.0.1:0
pools:
{pools}
"""
POOL = """
  - apiVersion: sandpool.dev/v1alpha1
    kind: SessionPool
    metadata: {{ name: {name} }}
    spec:
      containerType: {kind}
      scaleConfiguration: {{ maxConcurrentSessions: 3, readySessionInstances: 1 }}
      egress:
        mode: allow-list
        allow: ["packages.test:{port}"]
        allowAddresses: [127.0.0.0/8]
        hosts: {{ packages.test: [127.0.0.1], other.test: [127.0.0.1] }}
"""


def wheel() -> bytes:
    """A package of Python with one module."""
    files = {
        "tiny_package.py": "def answer():\n    return 42\n",
        "tiny_package-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: tiny-package\nVersion: 1.0\n",
        "tiny_package-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files["tiny_package-1.0.dist-info/RECORD"] = "".join(f"{name},,\n" for name in files)
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return made.getvalue()


def tarball() -> bytes:
    """A package of Node.js with one module."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as archive:
        about = json.dumps({"name": "tiny-package", "version": "1.0.0", "main": "index.js"})
        for name, text in {"package.json": about, "index.js": "module.exports = () => 42\n"}.items():
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    return made.getvalue()


def repository(place) -> None:
    """A repository as a server of files gives it."""

    def git(*words, cwd):
        who = ["-c", "user.name=test", "-c", "user.email=test@packages.test", "-c", "init.defaultBranch=main"]
        subprocess.run(["git", *who, *words], cwd=cwd, check=True, capture_output=True)

    work = place / "work"
    work.mkdir()
    git("init", "-q", cwd=work)
    (work / "file.txt").write_text("cloned\n")
    git("add", ".", cwd=work)
    git("commit", "-qm", "one", cwd=work)
    git("clone", "-q", "--bare", str(work), str(place / "repository.git"), cwd=place)
    git("update-server-info", cwd=place / "repository.git")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    place = tmp_path_factory.mktemp("packages")
    context, trusted = authority(place, "packages.test")
    repository(place)
    packed, rolled = wheel(), tarball()

    def answer(request):
        path = request.path.partition("?")[0]
        here = f"https://packages.test:{target.port}"
        if path == "/simple/tiny-package/":
            page = f'<a href="/files/tiny_package-1.0-py3-none-any.whl#sha256={hashlib.sha256(packed).hexdigest()}">it</a>'
            return page.encode(), {"Content-Type": "text/html"}
        if path == "/files/tiny_package-1.0-py3-none-any.whl":
            return packed, {}
        if path == "/tiny-package":
            digest = "sha512-" + base64.b64encode(hashlib.sha512(rolled).digest()).decode()
            version = {"name": "tiny-package", "version": "1.0.0", "main": "index.js"}
            version["dist"] = {"tarball": f"{here}/tiny-package/-/tiny-package-1.0.0.tgz", "integrity": digest}
            about = {"name": "tiny-package", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": version}}
            return json.dumps(about).encode(), {"Content-Type": "application/json"}
        if path == "/tiny-package/-/tiny-package-1.0.0.tgz":
            return rolled, {}
        if path.startswith("/repository.git/") and ".." not in path:
            file = place / path.lstrip("/")
            return (file.read_bytes(), {}) if file.is_file() else None
        return (b"hello\n", {}) if path == "/hello" else None

    target = Target(answer, context)
    pools = "".join(
        POOL.format(name=name, kind=kind, port=target.port) for name, kind in [("python", "PythonLTS"), ("node", "NodeLTS")]
    )
    server = Server(config=CONFIG.format(pools=pools))
    for pool in ("python", "node"):
        sent = server.native("PUT", f"/pools/{pool}/sessions/installs/files/ca.pem", data=trusted.encode())
        assert sent.status_code == 200, sent.text
    yield SimpleNamespace(server=server, port=target.port)
    server.remove()
    target.close()


def run(world, pool: str, command: str) -> dict:
    lead = f"set -e; cd /mnt/data; CA=/mnt/data/ca.pem; HOST=https://packages.test:{world.port}; "
    body = {"command": lead + command, "timeoutSeconds": 120}
    answer = world.server.native("POST", f"/pools/{pool}/sessions/installs/executions", json=body, timeout=150)
    assert answer.status_code == 200, answer.text
    return answer.json()


def printed(world, pool: str, command: str) -> str:
    said = run(world, pool, command)
    assert said["exitCode"] == 0, f"{said['stdout']}\n{said['stderr']}"
    return said["stdout"]


def test_pip_installs_from_an_allowed_host(world):
    said = printed(world, "python", "pip install -q --target lib --cert $CA --index-url $HOST/simple tiny-package >&2; "
        "PYTHONPATH=lib python3 -c 'import tiny_package; print(tiny_package.answer())'")  # fmt: skip
    assert said == "42\n"


def test_npm_installs_from_an_allowed_host(world):
    said = printed(world, "node", "mkdir -p project && cd project && npm install --silent --cafile=$CA --registry=$HOST/ tiny-package >&2; "
        "node -e 'console.log(require(\"tiny-package\")())'")  # fmt: skip
    assert said == "42\n"


@pytest.mark.parametrize("pool", ["python", "node"])
def test_git_clones_and_curl_and_wget_fetch_from_an_allowed_host(world, pool):
    assert printed(world, pool, "GIT_SSL_CAINFO=$CA git clone -q $HOST/repository.git clone >&2; cat clone/file.txt") == "cloned\n"
    assert printed(world, pool, "curl -sS --cacert $CA $HOST/hello") == "hello\n"
    assert printed(world, pool, "wget -q --ca-certificate=$CA -O - $HOST/hello") == "hello\n"


@pytest.mark.parametrize("pool", ["python", "node"])
def test_who_asks_another_host_is_told_that_it_is_not_allowed(world, pool):
    said = run(world, pool, f"curl -sS --cacert $CA https://other.test:{world.port}/hello")
    assert said["exitCode"] != 0 and "403" in said["stderr"], said
    said = run(world, pool, f"GIT_SSL_CAINFO=$CA git clone -q https://other.test:{world.port}/repository.git refused")
    assert said["exitCode"] != 0 and "403" in said["stderr"], said
