"""The program under test: a server on a state directory of its own, and its pools as plain HTTP."""

from __future__ import annotations

import http.client
import http.server
import json
import os
import platform
import re
import shutil
import signal
import ssl
import subprocess
import tempfile
import threading
import time
import urllib.parse
from pathlib import Path

import pytest
import requests

LEGACY = "2024-02-02-preview"
MODERN = "2025-10-02-preview"

PROGRAM = os.environ.get("SANDPOOL_BIN", "")

# What commands inherit: the environment of the run, without what would lead them to another server. It is taken before
# the tests of unmodified clients put their variables in.
CLEAN = {
    name: value
    for name, value in os.environ.items()
    if name in ("SANDPOOL_IMAGES",) or not re.match(r"SANDPOOL_|AZURE_|IDENTITY_|MSI_|ACA_|RUST_LOG|COLUMNS$|LINES$", name)
}


def wait_for(condition, what: str, limit: float = 30.0):
    """Waits until `condition()` is true, and returns what it said."""
    end = time.monotonic() + limit
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < end, f"waited {limit} s for {what}"
        time.sleep(0.05)


def command(*arguments: str, home: Path | None = None, check: bool = True, timeout: float = 60, env=None, **more):
    """Runs the program as people do, and returns what it printed. `check`: it must succeed."""
    words = [PROGRAM, *(["--home", str(home)] if home else []), *map(str, arguments)]
    more.setdefault("stdin", None if "input" in more else subprocess.DEVNULL)
    if "input" in more:
        more.pop("stdin")
    text = not isinstance(more.get("input"), bytes)
    done = subprocess.run(words, capture_output=True, text=text, timeout=timeout, env={**CLEAN, **(env or {})}, **more)
    if check:
        assert done.returncode == 0, f"{words} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def installed(variable: str) -> Path:
    """Where `e2e/run` has put something that tests need."""
    if variable not in os.environ:
        if os.environ.get("SANDPOOL_MUST") == "1":
            pytest.fail(f"SANDPOOL_MUST=1, and {variable} is not set: e2e/run sets it")
        pytest.skip(f"SKIPPED: {variable} is not set: e2e/run sets it")
    return Path(os.environ[variable])


def node_modules() -> tuple[Path, Path]:
    """What npm has installed for the tests, and where the Node.js that came with it is."""
    modules = installed("SANDPOOL_E2E_NODE") / "node_modules"
    machine = {"x86_64": "x64", "aarch64": "arm64"}[platform.machine()]
    return modules, modules / f"node-linux-{machine}/bin"


class Server:
    """A running server. `start` is `up` or `serve`, with its arguments."""

    def __init__(self, *start: str, config: str | None = None, home: Path | None = None, env: dict[str, str] | None = None):
        # Not below pytest's own directory, which nobody but root may enter: the server is not root.
        self.home = home or Path(tempfile.mkdtemp(prefix="sandpool-e2e-", dir="/var/tmp"))
        self.home.chmod(0o755)
        if config is not None:
            (self.home / "config.yaml").write_text(config)
            start = ("serve", "--config", str(self.home / "config.yaml"), "--detach", *start)
        else:
            start = ("up", "--listen", "127.0.0.1:0", "--detach", *start)
        try:
            command(*start, home=self.home, timeout=300, env=env)
            self.record = json.loads((self.home / "run/server.json").read_text())
        except BaseException:
            self.remove()
            raise
        self.endpoint = self.record["endpoint"]
        self.https_endpoint = self.record.get("httpsEndpoint")
        self.launcher = self.record["pid"]
        self.bearer = self.token("--ttl", "2h")

    def run(self, *arguments: str, **more):
        return command(*arguments, home=self.home, **more)

    def json(self, *arguments: str):
        return json.loads(self.run("--json", *arguments).stdout)

    def token(self, *arguments: str) -> str:
        return self.run("token", *arguments).stdout.strip()

    def env(self, *arguments: str) -> dict[str, str]:
        return self.json("env", *arguments)

    def pool(self, name: str = "python", https: bool = False) -> Pool:
        return Pool(self, name, self.https_endpoint if https else self.endpoint)

    def native(self, method: str, path: str, token: str | None = None, **more) -> requests.Response:
        headers = {"Authorization": f"Bearer {token or self.bearer}", **more.pop("headers", {})}
        more.setdefault("timeout", 60)
        return requests.request(method, self.endpoint + path, headers=headers, **more)

    def process(self) -> int:
        """The unprivileged process that answers; the launcher is its parent."""
        return self.child("__server")

    def proxy(self) -> int:
        """The egress proxy's process."""
        return self.child("__egress")

    def child(self, word: str) -> int:
        for pid in children(self.launcher):
            if word in of_process(pid, "cmdline"):
                return pid
        return 0

    def is_ready(self) -> bool:
        try:
            return requests.get(self.endpoint + "/readyz", timeout=5).status_code == 200
        except requests.RequestException:
            return False

    def log(self) -> str:
        path = self.home / "log/server.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def down(self):
        self.run("down", "--timeout", "30", timeout=60)

    def remove(self):
        """Ends what still runs, and removes the state directory."""
        command("down", "--timeout", "5", home=self.home, check=False, timeout=60)
        shutil.rmtree(self.home, ignore_errors=True)


class Pool:
    """One pool, as clients of the Azure wire address it."""

    def __init__(self, server: Server, name: str, base: str):
        self.server = server
        self.name = name
        self.path = f"/subscriptions/11111111-2222-3333-4444-555555555555/resourceGroups/lab/sessionPools/{name}"
        self.endpoint = base + self.path

    def call(self, method: str, route: str, session: str | None = None, version: str | None = MODERN, **more):
        """One request. `more` goes to requests; `token=None` sends none."""
        parameters = dict(more.pop("params", {}))
        if version:
            parameters["api-version"] = version
        if session is not None:
            parameters["identifier"] = session
        query = urllib.parse.urlencode(parameters, quote_via=urllib.parse.quote)
        token = more.pop("token", self.server.bearer)
        headers = {**({"Authorization": f"Bearer {token}"} if token else {}), **more.pop("headers", {})}
        more.setdefault("timeout", 60)
        separator = "&" if "?" in route else "?"
        return requests.request(method, f"{self.endpoint}/{route}{separator}{query}", headers=headers, **more)

    def legacy(self, code: str, session: str, **properties) -> dict:
        """`code/execute`; the answer's properties."""
        body = {"codeInputType": "inline", "executionType": "synchronous", "code": code, **properties}
        answer = self.call("POST", "code/execute", session, LEGACY, json={"properties": body})
        assert answer.status_code == 200, answer.text
        return answer.json()["properties"]

    def modern(self, session: str, status: int = 200, **body) -> dict:
        """`executions`; the whole answer."""
        answer = self.call("POST", "executions", session, json=body)
        assert answer.status_code == status, answer.text
        return answer.json()

    def upload(self, session: str, name: str, data: bytes, **more):
        return self.call("POST", "files", session, files={"file": (name, data)}, **more)

    def raw(self, method: str, target: str, body: bytes | None = None, headers: dict | None = None):
        """One request whose target nobody normalizes: what follows the pool's endpoint, byte for byte."""
        where = urllib.parse.urlsplit(self.endpoint)
        connection = http.client.HTTPConnection(where.hostname, where.port, timeout=60)
        try:
            connection.putrequest(method, where.path + target, skip_accept_encoding=True)
            sent = {"Authorization": f"Bearer {self.server.bearer}", **(headers or {})}
            if body is not None:
                sent.setdefault("Content-Type", "application/json")
                sent.setdefault("Content-Length", str(len(body)))
            for name, value in sent.items():
                connection.putheader(name, value)
            connection.endheaders(body)
            response = connection.getresponse()
            text = response.read()
            return response.status, text
        finally:
            connection.close()


def authority(place: Path, *names: str) -> tuple[ssl.SSLContext, str]:
    """What a TLS server for these names needs, and the certificate of an authority that nobody else trusts."""

    def openssl(*words):
        subprocess.run(["openssl", *words], cwd=place, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout")
    openssl("req", "-x509", *key, "ca.key", "-out", "ca.pem", "-subj", "/CN=target authority", "-days", "2",
        "-addext", "basicConstraints=critical,CA:true", "-addext", "keyUsage=critical,keyCertSign")  # fmt: skip
    openssl("req", *key, "server.key", "-out", "server.csr", "-subj", "/CN=target")
    # What Python's strict verification wants, of both.
    identifiers = "subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
    (place / "names").write_text(f"subjectAltName={','.join(f'DNS:{name}' for name in names)}\n{identifiers}")
    openssl("x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-out", "server.pem",
        "-days", "2", "-extfile", "names")  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(place / "server.pem", place / "server.key")
    return context, (place / "ca.pem").read_text()


class Target(http.server.ThreadingHTTPServer):
    """A server of the test's own, that sessions reach through the proxy. `answer` gets each request, and gives the body and more headers,
    or nothing, for what is not there."""

    daemon_threads = True

    def __init__(self, answer, context: ssl.SSLContext | None = None, address: tuple[str, int] = ("127.0.0.1", 0)):
        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                answered = answer(self)
                body, headers = answered or (b"", {})
                self.send_response(200 if answered else 404)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        super().__init__(address, Handler)
        self.port = self.server_port
        if context:
            self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request, client_address):
        pass  # Whoever asked was killed, or does not trust us.

    def close(self):
        self.shutdown()
        self.server_close()


def of_process(pid: int, what: str) -> str:
    """A file below /proc/PID; empty when the process is gone, be it before the opening or before the reading."""
    try:
        return Path(f"/proc/{pid}/{what}").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def children(pid: int) -> list[int]:
    return [int(child) for child in of_process(pid, f"task/{pid}/children").split()]


def descendants(pid: int) -> set[int]:
    found, waiting = set(), [pid]
    while waiting:
        for child in children(waiting.pop()):
            if child not in found:
                found.add(child)
                waiting.append(child)
    return found


def memory(pid: int, field: str = "VmRSS") -> int:
    """Bytes of a process's memory."""
    return int(re.search(rf"{field}:\s+(\d+) kB", of_process(pid, "status"))[1]) * 1024


def start_time(pid: int) -> int | None:
    """When a process started; None when there is none, or it only waits to be reaped."""
    fields = of_process(pid, "stat").rpartition(")")[2].split()
    return None if not fields or fields[0] in "ZX" else int(fields[19])


def kill(pid: int):
    os.kill(pid, signal.SIGKILL)


def check_error(answer: requests.Response, status: int, code: str | None = None) -> dict:
    """An error as documented: nested and flat at once, with the code in a header, and a sentence."""
    assert answer.status_code == status, f"{answer.status_code} instead of {status}: {answer.text[:500]}"
    body = answer.json()
    assert body["code"] == body["error"]["code"] == answer.headers["x-ms-error-code"]
    assert body["message"] == body["error"]["message"] and len(body["message"]) > 10
    assert body["error"]["traceId"]
    if code:
        assert body["code"] == code, body
    return body


__all__ = [name for name in dir() if not name.startswith("_")]
