"""The console: driven by a real browser as a person would, its sources held against the API's description, and what it is served with."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import os
import secrets
import shutil
import struct
import subprocess
import threading
import time
import urllib.parse
import zlib
from pathlib import Path

import jwt
import pytest
import requests
from cryptography.hazmat.primitives.asymmetric import ec

from sandpool import CLEAN, Server, installed

ROOT = Path(__file__).parent.parent
CONSOLE = ROOT / "console"
SESSION = "/pools/{pool}/sessions/{session}"
DRIVER = Path(__file__).parent / "console"

CONFIG = """
listen: 127.0.0.1:0
pools:
  - metadata: { name: python }
    spec:
      containerType: PythonLTS
      scaleConfiguration: { maxConcurrentSessions: 20, readySessionInstances: 1 }
  - metadata: { name: shell }
    spec:
      containerType: Shell
      scaleConfiguration: { maxConcurrentSessions: 20, readySessionInstances: 1 }
"""


def chromium() -> str:
    found = shutil.which("chromium")
    if not found:
        if os.environ.get("SANDPOOL_MUST") == "1":
            pytest.fail("SANDPOOL_MUST=1, and there is no chromium here (Debian: apt-get install chromium)")
        pytest.skip("SKIPPED: there is no chromium here (Debian: apt-get install chromium)")
    return found


def artefacts() -> Path:
    """Where pictures are kept: SANDPOOL_ARTIFACTS, or below the build."""
    place = os.environ.get("SANDPOOL_ARTIFACTS")
    return Path(place) / "console" if place else Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "console-screenshots"


def picture(side: int = 240) -> bytes:
    """A PNG with a ramp of colours, without a library."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + b"".join(bytes((x, y, 160)) for x in range(side)) for y in range(side))
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def drive(script: str, told: dict, timeout: float) -> dict:
    """Runs a script that drives the browser, and returns the figures that it took."""
    work = installed("SANDPOOL_E2E_CONSOLE")
    for file in DRIVER.glob("*.mjs"):
        shutil.copy(file, work)
    done = subprocess.run(
        ["node", script], cwd=work, capture_output=True, text=True, timeout=timeout, env={**CLEAN, "SANDPOOL_DRIVE": json.dumps(told)}
    )  # fmt: skip
    assert done.returncode == 0, f"{script} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    print(done.stderr)
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def described():
    """A server that has a console, with the pools python and shell."""
    server = Server(config=CONFIG)
    if requests.get(server.endpoint + "/console/output.html", timeout=10).headers["content-security-policy"].startswith("default-src"):
        server.remove()
        why = "the program was built without npm and has no console"
        pytest.fail(why) if os.environ.get("SANDPOOL_MUST") == "1" else pytest.skip(f"SKIPPED: {why}")
    yield server
    server.remove()


def test_a_person_does_everything_in_a_browser(described, tmp_path):
    png = tmp_path / "chart.png"
    png.write_bytes(picture())
    pictures = artefacts()
    shutil.rmtree(pictures, ignore_errors=True)
    paths = requests.get(described.endpoint + "/openapi.json", timeout=10).json()["paths"]
    told = {
        "chromium": chromium(),
        "artefacts": str(pictures),
        "endpoint": described.endpoint,
        "address": described.run("console", "--ttl", "1h").stdout.strip(),
        "launcher": described.launcher,
        "server": described.process(),
        "png": str(png),
        "has": {"terminals": f"{SESSION}/terminals" in paths, "telemetry": f"{SESSION}/samples" in paths},
    }
    figures = drive("drive.mjs", told, timeout=420)
    print(json.dumps(figures, indent=2))
    # What a person waits for, with room for a machine that does other things besides.
    assert figures["first page"]["bytes"] < 60_000, figures
    assert figures.get("with a terminal", {"bytes": 0})["bytes"] < 160_000, figures
    assert (pictures / "playground-dark.png").stat().st_size > 20_000


class Issuer(http.server.ThreadingHTTPServer):
    """An OpenID provider: discovery, a page that asks who one is, codes that are good once and with their verifier, keys."""

    daemon_threads = True

    def __init__(self, origin):
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.codes: dict[str, tuple[str, dict]] = {}
        self.refused: list[str] = []
        self.origin = origin

        class Handler(http.server.BaseHTTPRequestHandler):
            def answer(self, body: bytes, kind="application/json", status=200, **headers):
                self.send_response(status)
                for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name.replace("_", "-"), value)
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self):
                path, _, query = self.path.partition("?")
                asked = dict(urllib.parse.parse_qsl(query))
                if path == "/.well-known/openid-configuration":
                    at = self.server.address
                    said = {"issuer": at, "authorization_endpoint": at + "/authorize", "token_endpoint": at + "/token", "jwks_uri": at + "/keys"}
                    self.answer(json.dumps(said).encode())
                elif path == "/keys":
                    key = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(self.server.key.public_key()))
                    self.answer(json.dumps({"keys": [{**key, "kid": "1", "use": "sig", "alg": "ES256"}]}).encode())
                elif path == "/authorize":
                    self.server.check(asked)
                    links = "".join(f'<button name="who" value="{who}">I am {who}</button>' for who in ("Ada", "Eve"))
                    fields = "".join(f'<input type="hidden" name="{name}" value="{value}">' for name, value in asked.items())
                    page = f"<!doctype html><title>Who?</title><form action=/choose>{fields}{links}</form>"
                    self.answer(page.encode(), "text/html")
                elif path == "/choose":
                    code = secrets.token_urlsafe(16)
                    self.server.codes[code] = (asked["who"], asked)
                    back = urllib.parse.urlencode({"code": code, "state": asked["state"]})
                    self.answer(b"", status=302, Location=f"{asked['redirect_uri']}?{back}")
                else:
                    self.answer(b"{}", status=404)

            def do_POST(self):
                form = dict(urllib.parse.parse_qsl(self.rfile.read(int(self.headers["Content-Length"])).decode()))
                cors = {"Access_Control_Allow_Origin": self.server.origin()}
                try:
                    token = self.server.token(form)
                except (KeyError, AssertionError) as why:
                    self.server.refused.append(repr(why))
                    self.answer(b'{"error": "invalid_grant"}', status=400, **cors)
                else:
                    self.answer(json.dumps({"token_type": "Bearer", "id_token": token, "access_token": "opaque"}).encode(), **cors)

            def log_message(self, *_):
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def check(self, asked):
        wanted = {"response_type": "code", "client_id": "console", "code_challenge_method": "S256", "redirect_uri": self.origin() + "/console/"}
        if not wanted.items() <= asked.items() or "openid" not in asked.get("scope", "").split():
            self.refused.append(f"not asked as it should be: {asked}")

    def token(self, form) -> str:
        who, asked = self.codes.pop(form["code"])
        verifier = base64.urlsafe_b64encode(hashlib.sha256(form["code_verifier"].encode()).digest()).rstrip(b"=").decode()
        assert verifier == asked["code_challenge"] and form["redirect_uri"] == asked["redirect_uri"]
        assert form["grant_type"] == "authorization_code" and form["client_id"] == "console"
        now = int(time.time())
        claims = {"iss": self.address, "sub": who, "aud": "console", "iat": now, "exp": now + 600, "preferred_username": f"{who.lower()}@example"}
        return jwt.encode({**claims, "groups": ["looks"] if who == "Ada" else []}, self.key, "ES256", {"kid": "1"})


def test_people_sign_in_at_an_issuer(start):
    servers = []
    issuer = Issuer(lambda: servers[0].endpoint)
    settings = f"""
listen: 127.0.0.1:0
auth:
  issuers:
    - issuer: {issuer.address}
      audiences: [console]
      rolesClaim: groups
      roles: {{ looks: reader }}
      console: {{ clientId: console, name: Example, token: idToken }}
pools:
  - metadata: {{ name: shell }}
    spec: {{ containerType: Shell, scaleConfiguration: {{ readySessionInstances: 0, maxConcurrentSessions: 2 }} }}
"""
    try:
        servers.append(start(config=settings))
        endpoint = servers[0].endpoint
        policy = requests.get(endpoint + "/console/", timeout=10).headers["content-security-policy"]
        assert policy.endswith(f"connect-src 'self' {issuer.address}")
        [said] = requests.get(endpoint + "/console/sign-in.json", timeout=10).json()["issuers"]
        assert said["tokenEndpoint"] == issuer.address + "/token" and "origin" not in said
        told = {"chromium": chromium(), "artefacts": str(artefacts() / "issuer"), "endpoint": endpoint}
        figures = drive("oidc.mjs", told, timeout=120)
        assert "role" in figures["refusal"], figures
        assert issuer.refused == []
    finally:
        issuer.shutdown()
        issuer.server_close()


def npm(*words: str, work: Path) -> str:
    done = subprocess.run(["npm", "run", "--silent", *words], cwd=work, capture_output=True, text=True, timeout=180, env={**CLEAN, "NO_UPDATE_NOTIFIER": "1"})
    assert done.returncode == 0, f"npm run {words} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """The console's sources beside the API's description, with what they are built by."""
    place = tmp_path_factory.mktemp("console")
    work = place / "console"
    shutil.copytree(CONSOLE, work, ignore=shutil.ignore_patterns("node_modules", "build"))
    (place / "docs").mkdir()
    shutil.copy(ROOT / "docs/openapi.json", place / "docs")
    (work / "node_modules").symlink_to(installed("SANDPOOL_E2E_CONSOLE_BUILD") / "node_modules")
    return work


def test_the_consoles_types_are_those_of_the_api(sources):
    npm("check", work=sources)


def test_the_consoles_own_tests_pass(sources):
    assert "# fail 0" in npm("test", work=sources)


def test_no_source_of_the_console_loads_anything_from_elsewhere():
    for file in [CONSOLE / "index.html", CONSOLE / "output.html", *CONSOLE.glob("src/*")]:
        text = file.read_text().replace("http://www.w3.org/2000/svg", "")
        assert "https://" not in text and "http://" not in text, file


def test_the_command_line_prints_an_address_that_signs_in(described):
    address = described.run("console", "--role", "reader", "--ttl", "10m").stdout.strip()
    where, _, token = address.partition("#token=")
    assert where == described.endpoint + "/console/"
    assert described.native("GET", "/pools", token=token).status_code == 200
    assert described.native("PUT", "/pools/python/sessions/by-a-reader", token=token).status_code == 403
    assert json.loads(described.run("--json", "console").stdout)["url"].startswith(where)
    # No log has it.
    assert "#token" not in described.log() and f"Console: {where}" in described.log()
