"""Custom containers: an image of a real framework from a registry, as a pool whose sessions are each a running program of it."""

from __future__ import annotations

import base64
import concurrent.futures
import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import tarfile
import tempfile
import textwrap
import time
import urllib.parse
import uuid
from pathlib import Path

import jwt
import pytest
import requests

import test_arm
import test_images
from documents import examples
from sandpool import CLEAN, PROGRAM, Server, Target, authority, check_error, children, descendants, kill, of_process, start_time, wait_for
from test_images import PASSWORD, USER, Layout, image, layer, needs, skopeo
from test_life import cgroups, left_behind

# A registry with a password, as the tests of images have it.
layout, registry = test_images.layout, test_images.registry

# The guide's commands, its pool, which is also held against the settings, and what may be said of it besides.
COMMANDS = examples("docs/containers.md", "sh")
POOL, *BESIDES = examples("docs/containers.md", "yaml")
EXAMPLES = [*COMMANDS, *BESIDES]

# What the image is made of; its archive is kept under the name of its recipe.
RECIPE = ["--quiet", "--variant=minbase", "--include=python3-flask,python3-simple-websocket,python3-h2,python3-requests,python3-cryptography,python3-typing-extensions",
          "--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/locale/*", "trixie"]  # fmt: skip
CACHE = Path("/var/lib/sandpool/cache/e2e") if os.geteuid() == 0 else Path.home() / ".cache/sandpool/e2e"

# Says what it was asked and what it has, counts, streams, echoes, logs, ends; and does what it is told, as itself.
APP = r'''
import os, queue, sys, threading, time

print("begins as", os.getuid(), "in", os.getcwd(), flush=True)
if "APP_EXIT" in os.environ:
    print("fatal: no database at", os.environ.get("APP_DATABASE", "nowhere"), file=sys.stderr, flush=True)
    sys.exit(int(os.environ["APP_EXIT"]))
if "APP_DEAF" in os.environ:
    time.sleep(1_000)
from flask import Flask, Response, jsonify, redirect, request
from simple_websocket import ConnectionClosed, Server

app, memory, told = Flask(__name__), {}, queue.Queue()
METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]

@app.route("/", defaults={"path": ""}, methods=METHODS)
@app.route("/<path:path>", methods=METHODS)
def asked(path):
    count = memory["asked"] = memory.get("asked", 0) + 1
    return jsonify(method=request.method, uri=request.environ["RAW_URI"] if "RAW_URI" in request.environ else request.full_path,
                   headers={name.lower(): value for name, value in request.headers}, env=dict(os.environ), pid=os.getpid(),
                   uid=os.getuid(), directory=os.getcwd(), arguments=sys.argv[1:], asked=count, body=len(request.get_data()))

BEGAN = time.monotonic()

@app.route("/up")
def up():
    memory["probed"] = request.headers.get("X-Probe")
    time.sleep(request.args.get("sleep", 0, type=float))
    late = time.monotonic() - BEGAN >= request.args.get("after", 0, type=float)
    return "", memory.get("up", request.args.get("status", 200, type=int) if late else 503)

@app.route("/up-for")
def up_for():
    return jsonify(seconds=time.monotonic() - BEGAN)

@app.route("/moved")
def moved():
    answer = redirect(request.args["to"])
    answer.set_cookie("kind", "own", path="/moved", domain="example.com")
    return answer

@app.route("/do", methods=["POST"])
def do():
    names = {"memory": memory, "result": None}
    exec(request.get_data(as_text=True), names)
    return jsonify(names["result"])

@app.route("/large/<int:mebibytes>")
def large(mebibytes):
    return Response((b"x" * (1 << 20) for _ in range(mebibytes)), mimetype="application/octet-stream")

@app.route("/size", methods=["POST"])
def size():
    size, letters = 0, set()
    while piece := request.stream.read(1 << 20):
        size, letters = size + len(piece), letters | set(piece)
    return jsonify(size=size, letters=sorted(letters))

@app.route("/events")
def events():
    def each():
        for number in range(3):
            yield f"data: {number}\n\n"
            # The next one only when it is asked for.
            told.get(timeout=30)
    return Response(each(), mimetype="text/event-stream")

@app.route("/next", methods=["POST"])
def go_on():
    told.put(True)
    return "", 204

@app.route("/echo", websocket=True)
def echo():
    socket = Server.accept(request.environ)
    try:
        while True:
            socket.send(socket.receive())
    except ConnectionClosed:
        pass
    return ""

@app.route("/log/<int:bytes>", methods=["POST"])
def log(bytes):
    line = "y" * 99 + "\n"
    for _ in range(bytes // len(line)):
        sys.stdout.write(line)
    print("that was all", flush=True)
    return "", 204

@app.route("/exit/<int:code>", methods=["POST"])
def end(code):
    print("fatal: told to end with", code, file=sys.stderr, flush=True)
    os._exit(code)

app.run("0.0.0.0", int(os.environ.get("APP_PORT", "80")), threaded=True)
'''

# Speaks HTTP/2 and nothing else: says what it was asked, counts what is sent, streams, and ends with trailers, as gRPC does.
APP_2 = r'''
import asyncio, json
import h2.config, h2.connection, h2.events

class Program(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport, self.asked = transport, {}
        self.state = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        self.state.initiate_connection()
        self.send()

    def send(self):
        self.transport.write(self.state.data_to_send())

    def data_received(self, data):
        for event in self.state.receive_data(data):
            stream = getattr(event, "stream_id", None)
            if isinstance(event, h2.events.RequestReceived):
                self.asked[stream] = (dict(event.headers), [])
                self.state.send_headers(stream, [(":status", "200"), ("content-type", "application/grpc+json"), ("trailer", "grpc-status")])
                if self.asked[stream][0][":path"].startswith("/events"):
                    self.state.send_data(stream, b"begun\n")
            elif isinstance(event, h2.events.DataReceived):
                self.asked[stream][1].append(len(event.data))
                self.state.acknowledge_received_data(event.flow_controlled_length, stream)
            elif isinstance(event, h2.events.StreamEnded):
                headers, pieces = self.asked.pop(stream)
                self.state.send_data(stream, json.dumps({"headers": headers, "size": sum(pieces), "pieces": len(pieces)}).encode() + b"\n")
                self.state.send_headers(stream, [("grpc-status", "0"), ("grpc-message", "fine")], end_stream=True)
        self.send()

async def main():
    server = await asyncio.get_running_loop().create_server(Program, "0.0.0.0", 50051)
    await server.serve_forever()

asyncio.run(main())
'''

SAID = {"Env": ["PATH=/usr/bin:/bin", "APP_IMAGE=of the image", "APP_BOTH=of the image"], "Entrypoint": ["python3"],
        "Cmd": ["/srv/app.py", "--of-image"], "WorkingDir": "/srv", "ExposedPorts": {"80/tcp": {}}}  # fmt: skip


def base() -> bytes:
    """Debian with Flask, made once."""
    needs("mmdebstrap")
    archive = CACHE / f"flask-{hashlib.sha256(' '.join(RECIPE).encode()).hexdigest()[:16]}.tar"
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not archive.exists():
            partial = archive.with_name(f"partial-{archive.name}")
            mirror = [os.environ["SANDPOOL_DEBIAN_MIRROR"]] if "SANDPOOL_DEBIAN_MIRROR" in os.environ else []
            done = subprocess.run(["mmdebstrap", *RECIPE, str(partial), *mirror], capture_output=True, text=True, timeout=560)
            assert done.returncode == 0, done.stderr[-2_000:]
            partial.rename(archive)
    return archive.read_bytes()


def azure() -> list[tuple[str, bytes, int]]:
    """Azure's identity client as it was installed for these tests, and what it needs besides Debian's packages."""
    import azure.identity

    place = Path(azure.identity.__file__).parents[2]
    files = [file for name in ("azure/core", "azure/identity", "msal", "msal_extensions", "jwt") for file in sorted((place / name).rglob("*.py"))]
    return [(f"srv/azure/{file.relative_to(place)}", file.read_bytes(), 0o644) for file in files]


class Images:
    """A store of our own, and what is in it."""

    def __init__(self, place: Path, registry: str):
        self.place, self.registry = place, registry
        self.tag = f"{registry}/acme/web:1"


@pytest.fixture(scope="module")
def images(tmp_path_factory, registry):
    """The store: the application by its tag and by its digest, and small images that need no Debian."""
    place = tmp_path_factory.mktemp("containers")
    # Pools are made of it while the server runs, who is not root.
    store = Path(tempfile.mkdtemp(prefix="sandpool-e2e-", dir="/var/tmp"))
    store.chmod(0o755)
    yield filled(Images(store / "images", registry), place)
    shutil.rmtree(store)


def filled(images: Images, place: Path) -> Images:
    registry = images.registry
    app = layer(("srv", tarfile.DIRTYPE, None), ("srv/app.py", APP.encode(), 0o644), ("srv/app2.py", APP_2.encode(), 0o644), *azure())
    made = Layout(place / "web", base(), app, config=SAID)
    skopeo("copy", f"oci:{made.place}:one", f"docker://{images.tag}")
    login = ("--username", USER)
    pulled = image("--json", "pull", images.tag, *login, images=images.place, input=PASSWORD, timeout=200)
    images.digest = f"{registry}/acme/web@{json.loads(pulled.stdout)['source']['digest']}"
    image("pull", images.digest, *login, "--name", "web-by-digest", images=images.place, input=PASSWORD, timeout=200)
    # The same application, another release of it.
    app = layer(("srv/app.py", APP.encode(), 0o644), ("srv/release", b"the second", 0o644))
    Layout(place / "web-2", base(), app, config={**SAID, "Env": ["PATH=/usr/bin:/bin", "APP_IMAGE=of the second"]})
    image("import", place / "web-2", "--name", "web-2", images=images.place, timeout=200)
    # As skopeo makes it.
    skopeo("copy", f"oci:{made.place}:one", f"oci:{place}/copied:one")
    image("import", place / "copied", "--name", "copied", images=images.place, timeout=200)
    busybox = Path(shutil.which("busybox")).read_bytes()
    names = ("sh", "cat", "echo", "httpd", "id", "pwd", "mkdir", "rm", "touch", "sleep", "test", "stat", "chown")
    users = b"root:x:0:0::/root:/bin/sh\nweb:x:33:34::/srv:/bin/sh\n"
    small = layer(
        ("bin", tarfile.DIRTYPE, None), ("bin/busybox", busybox, 0o755), *[(f"bin/{name}", tarfile.SYMTYPE, "busybox") for name in names],
        ("etc/passwd", users, 0o644), ("etc/group", b"root:x:0:\nweb:x:34:\nstaff:x:50:\n", 0o644),
        ("srv/site", tarfile.DIRTYPE, None), ("srv/site/index.html", b"a site\n", 0o644),
    )  # fmt: skip
    # Tells who it is, and serves that.
    serve = 'id >/tmp/who; pwd >>/tmp/who; exec httpd -f -v -p "$PORT" -h /tmp'
    for name, user, directory in (("by-name", "web", "/srv/site"), ("by-number", "1234:50", "/srv"), ("as-root", "", ""), ("stranger", "none", "")):
        config = {"User": user, "WorkingDir": directory, "Entrypoint": ["/bin/sh", "-c"], "Cmd": [serve], "Env": ["PATH=/bin", "PORT=80"]}
        Layout(place / name, small, config=config)
        image("import", place / name, "--name", name, images=images.place)
    alone = layer(("httpd", busybox, 0o755), ("site/index.html", b"no shell here\n", 0o644))
    Layout(place / "alone", alone, config={"Entrypoint": ["/httpd", "-f", "-p", "8080"], "Cmd": ["-h", "/site"]})
    image("import", place / "alone", "--name", "alone", images=images.place)
    return images


def custom(name: str, image: str, port: int = 80, *, ready: int = 1, most: int = 4, env=(), secrets=(), life=None, container=None, transport=None, **spec):
    """A pool of custom containers, as its object."""
    return {
        "metadata": {"name": name},
        "spec": {
            "containerType": "CustomContainer",
            "customContainerTemplate": {
                "containers": [{"image": image, "env": list(env), **(container or {})}], "ingress": {"targetPort": port, **({"transport": transport} if transport else {})},
            },
            "containerSecrets": list(secrets),
            "scaleConfiguration": {"maxConcurrentSessions": most, "readySessionInstances": ready, "maxReadySessionInstances": ready,
                                   "waitWhenFullInSeconds": 0},
            "dynamicPoolConfiguration": {"lifecycleConfiguration": life or {"lifecycleType": "Timed", "cooldownPeriodInSeconds": 600}},
            **spec,
        },
    }  # fmt: skip


ENV = [{"name": "APP_POOL", "value": "of the container"}, {"name": "APP_BOTH", "value": "of the container"},
       {"name": "APP_SECRET", "secretRef": "database"}]  # fmt: skip
SECRETS = [{"name": "database", "value": "postgres://of-the-pool"}]


def settings(*objects, **more) -> str:
    return json.dumps({"listen": "127.0.0.1:0", "pools": list(objects), **more})


class Web:
    """A pool of custom containers, as its clients address it."""

    def __init__(self, server: Server, name: str):
        self.server, self.name, self.pool = server, name, server.pool(name)

    def call(self, method: str, path: str, session: str | None, **more) -> requests.Response:
        return self.pool.call(method, path, session, version=None, **more)

    def get(self, session: str, path: str = "") -> dict:
        answer = self.call("GET", path, session)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def do(self, session: str, code: str):
        """What the program of a session does as itself; `result` is the answer."""
        answer = self.call("POST", "do", session, data=code.encode())
        assert answer.status_code == 200, answer.text
        return answer.json()

    def native(self, method: str, session: str = "", below: str = "", **more) -> requests.Response:
        return self.server.native(method, f"/pools/{self.name}" + (f"/sessions/{session}{below}" if session else ""), **more)

    def status(self) -> dict:
        return self.native("GET").json()

    def logs(self, session: str) -> tuple[str, int]:
        """All that is there of what its program wrote, and how many bytes are not."""
        text, dropped, after = "", 0, 0
        while True:
            answer = self.native("GET", session, f"/logs?after={after}")
            assert answer.status_code == 200, answer.text
            said = answer.json()
            text, dropped, after = text + said["text"], dropped + said["dropped"], said["next"]
            if said["isAll"]:
                return text, dropped

    def wait_until_full(self, ready: int = 1, limit: float = 90):
        wait_for(lambda: self.status()["ready"] >= ready, f"{ready} sandboxes of {self.name}", limit)


@pytest.fixture(scope="module")
def served(images):
    """One server for these tests, with the application as its pool."""
    web = custom("web", images.tag, env=ENV, secrets=SECRETS, ready=2, most=8)
    web["spec"]["env"] = [{"name": "APP_OF_POOL", "value": "of the pool"}]
    server = Server("--images", str(images.place), config=settings(web, https={"listen": "127.0.0.1:0"}))
    # Pools are changed by who may.
    server.bearer = server.token("--role", "admin", "--ttl", "2h")
    # What becomes of a program that never listens is found out while the others are at work.
    deaf = custom("deaf", "copied", env=[{"name": "APP_DEAF", "value": "1"}])
    assert server.native("PUT", "/pools/deaf", json=deaf).status_code == 201
    yield server
    server.remove()


@pytest.fixture
def web(served):
    return Web(served, "web")


@pytest.fixture
def name(web):
    """A session of this test, which ends with it."""
    name = f"user-{uuid.uuid4().hex[:8]}"
    yield name
    web.native("DELETE", name)


@pytest.fixture
def apply(served):
    """Makes a pool that goes with the test."""
    made = []

    def applied(*words, wait: bool = True, **more) -> Web:
        pool = Web(served, words[0])
        answer = pool.native("PUT", json=custom(*words, **more))
        assert answer.status_code in (200, 201), answer.text
        made.append(pool)
        if wait:
            pool.wait_until_full(more.get("ready", 1))
        return pool

    yield applied
    for pool in made:
        pool.native("DELETE", params={"force": "true"})


# A request, and what becomes of it.


def test_an_image_is_pulled_by_tag_and_by_digest_and_answers_by_identifier(web, images, apply, name):
    said = web.get(name, "hello/world?x=1&y=%20")
    assert said["method"] == "GET" and said["uri"].startswith("/hello/world?x=1&y=%20") and f"identifier={name}" in said["uri"]
    assert said["uid"] == 0 and said["directory"] == "/srv" and said["arguments"] == ["--of-image"]
    # The identifier is the session: the same program, and another one for another.
    assert web.get(name)["asked"] == 2
    other = web.get(f"{name}-b")
    assert other["asked"] == 1
    assert web.native("DELETE", f"{name}-b").status_code == 204
    # By its digest, and as skopeo copied it: the same.
    for number, reference in enumerate((images.digest, "web-by-digest", "copied")):
        said = apply(f"again-{number}", reference).get("user")
        assert said["env"]["APP_IMAGE"] == "of the image" and said["asked"] == 1


def test_what_is_forwarded_is_the_request_without_what_is_ours(web, name):
    for method in ("POST", "PUT", "PATCH", "OPTIONS", "DELETE", "GET"):
        said = web.call(method, "executions", name, data=b"abc", headers={"X-Mine": "1", "Cookie": "a=b"}, timeout=10).json()
        assert (said["method"], said["body"], said["headers"]["x-mine"]) == (method, 3, "1")
        assert not {"authorization", "x-ms-apikey"} & said["headers"].keys()
        # Its cookies are its own: whoever has a token is no browser.
        assert said["headers"]["cookie"] == "a=b"
        assert web.server.bearer not in json.dumps(said)
        # Where it came from, as servers behind others are told.
        where = urllib.parse.urlsplit(web.pool.endpoint)
        assert said["headers"]["host"] == "localhost:80" and said["headers"]["x-forwarded-host"] == where.netloc
        assert said["headers"]["x-forwarded-prefix"] == where.path
    # Paths that other pools have are the program's, files and MCP too.
    for path in ("files/content/x", "code/execute", "session", "healthz"):
        assert web.get(name, path)["uri"].startswith(f"/{path}?")
    # Who has no token has no session, and who names none hears it.
    assert web.call("GET", "", name, token=None).status_code == 401
    check_error(web.call("GET", "", None), 400)
    check_error(web.call("GET", "", "not an identifier"), 400)
    reader = web.server.token("--role", "reader")
    assert web.call("GET", "", f"{name}-never", token=reader).status_code == 403
    assert web.native("GET", f"{name}-never").status_code == 404


def test_the_services_own_routes_are_kept(web, name):
    before = web.get(name)["pid"]
    assert web.pool.call("GET", ".management/getSession", name).json()["identifier"] == name
    listed = web.pool.call("GET", ".management/listSessions").json()["value"]
    assert name in [one["identifier"] for one in listed]
    assert web.pool.call("POST", ".management/stopSession", name).status_code == 200
    wait_for(lambda: web.native("GET", name).status_code == 404, "its end")
    # The name is free: its next request has another program.
    assert web.get(name)["asked"] == 1 and before


def test_bodies_of_50_megabytes_pass_both_ways(web, name):
    size = 50_000_000
    for body in (b"z" * size, (b"z" * 1_000_000 for _ in range(50))):
        assert web.call("POST", "size", name, data=body, timeout=120).json() == {"size": size, "letters": [ord("z")]}
    got = 0
    with web.call("GET", "large/50", name, stream=True, timeout=120) as answer:
        for piece in answer.iter_content(1 << 20):
            got += len(piece)
    assert got == 50 << 20


def test_events_come_one_by_one(web, name):
    with web.call("GET", "events", name, stream=True) as answer:
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        lines = answer.iter_lines()
        for number in range(3):
            assert next(line for line in lines if line) == f"data: {number}".encode()
            # Only now does the program say the next.
            assert web.call("POST", "next", name).status_code == 204
        assert [line for line in lines if line] == []


class WebSocket:
    """A client, as plain as it can be."""

    def __init__(self, web: Web, session: str, path: str):
        where = urllib.parse.urlsplit(web.pool.endpoint)
        self.socket = socket.create_connection((where.hostname, where.port), timeout=30)
        key = base64.b64encode(os.urandom(16)).decode()
        request = (f"GET {where.path}/{path}?identifier={session} HTTP/1.1\r\nHost: {where.netloc}\r\nAuthorization: Bearer {web.server.bearer}\r\n"
                   f"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n")  # fmt: skip
        self.socket.sendall(request.encode())
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += self.read(1)
        accept = base64.b64encode(hashlib.sha1((key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest())
        assert head.startswith(b"HTTP/1.1 101") and accept in head, head

    def read(self, size: int) -> bytes:
        got = b""
        while len(got) < size:
            piece = self.socket.recv(size - len(got))
            assert piece, "it has ended"
            got += piece
        return got

    def send(self, data: bytes, kind: int = 1):
        mask = os.urandom(4)
        form, kind_of_size = (">B", len(data)) if len(data) < 126 else (">BH", 126) if len(data) < 1 << 16 else (">BQ", 127)
        size = struct.pack(form, 0x80 | kind_of_size, *[len(data)][: len(form) - 2])
        self.socket.sendall(bytes([0x80 | kind]) + size + mask + bytes(byte ^ mask[at % 4] for at, byte in enumerate(data)))

    def receive(self) -> bytes:
        kind, size = self.read(2)
        if size == 126:
            size = struct.unpack(">H", self.read(2))[0]
        elif size == 127:
            size = struct.unpack(">Q", self.read(8))[0]
        assert kind & 0x80 and kind & 0x0F in (1, 2, 8), kind
        return self.read(size)

    def close(self):
        self.send(struct.pack(">H", 1000), 8)
        self.socket.close()


def test_websockets_are_passed_through(web, name):
    echo, other = WebSocket(web, name, "echo"), WebSocket(web, name, "echo")
    for said in (b"hello", b"x" * 70_000, "grüße".encode()):
        echo.send(said)
        assert echo.receive() == said
    # Bytes, and two at once.
    other.send(bytes(range(256)), kind=2)
    echo.send(b"both")
    assert (other.receive(), echo.receive()) == (bytes(range(256)), b"both")
    # The session is in use meanwhile.
    assert web.native("GET", name).json()["busy"] >= 2
    echo.close()
    other.close()


def test_other_ports_and_addresses_for_browsers_lead_to_it_too(web, name):
    web.do(name, """
import http.server, threading
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b"another port")
memory["other"] = http.server.HTTPServer(("127.0.0.1", 9000), Handler)
threading.Thread(target=memory["other"].serve_forever, daemon=True).start()
""")
    assert web.native("GET", name, "/ports/9000/").text == "another port"
    assert web.native("GET", name, "/ports/80/x").json()["uri"].startswith("/x")
    preview = web.native("POST", name, "/previews", json={"port": 80}).json()["url"]
    # Nobody's token: the address is enough, and a browser takes the page for nobody's.
    answer = requests.get(f"{preview}x?y=1", timeout=30)
    assert answer.json()["uri"].startswith("/x?y=1") and answer.headers["Content-Security-Policy"].startswith("sandbox")


# What a program has.


def test_variables_of_image_pool_container_and_secrets_are_there(web, name):
    env = web.get(name)["env"]
    assert {key: env.get(key) for key in ("APP_IMAGE", "APP_OF_POOL", "APP_POOL", "APP_BOTH", "APP_SECRET")} == {
        "APP_IMAGE": "of the image", "APP_OF_POOL": "of the pool", "APP_POOL": "of the container", "APP_BOTH": "of the container",
        "APP_SECRET": "postgres://of-the-pool",
    }  # fmt: skip
    assert env["PATH"] == "/usr/bin:/bin"
    # Nothing of the server's.
    assert not [key for key in env if key.startswith(("SANDPOOL_HOME", "RUST_", "SUDO_"))]
    # The value of a secret is nobody's to read.
    for path in ("/pools/web", "/pools"):
        assert "of-the-pool" not in web.server.native("GET", path).text, path
    # But of who may change the pool.
    assert web.server.native("GET", "/pools/web/object", token=web.server.token()).status_code == 403


def test_command_and_arguments_are_the_pools_over_the_images(apply):
    assert apply("words", "copied", container={"args": ["/srv/app.py", "of", "the pool"]}).get("user")["arguments"] == ["of", "the pool"]
    # A command of one's own has none of the image's arguments.
    command = {"command": ["/usr/bin/python3", "/srv/app.py"]}
    assert apply("command", "copied", container=command).get("user")["arguments"] == []


def test_a_session_brings_variables_and_its_program_is_started_with_them(web, name):
    web.wait_until_full()
    waited = web.status()["waited"]
    made = web.native("PUT", name, json={"env": {"APP_OWN": "of the session", "APP_BOTH": "of the session"}})
    assert made.status_code == 201, made.text
    # The first request finds it so, however soon it comes.
    env = web.get(name)["env"]
    assert (env["APP_OWN"], env["APP_BOTH"], env["APP_POOL"]) == ("of the session", "of the session", "of the container")
    # Within the sandbox that was warm, and no other session has them.
    assert web.status()["waited"] == waited
    assert "APP_OWN" not in web.get(f"{name}-b")["env"]
    web.native("DELETE", f"{name}-b")
    # Later it is too late, and that is said.
    check_error(web.native("PUT", name, json={"env": {"APP_OWN": "late"}}), 400)
    assert web.get(name)["env"]["APP_OWN"] == "of the session"


TOKEN = """
import sys
sys.path.append("/srv/azure")
from azure.core.exceptions import ClientAuthenticationError
from azure.identity import ManagedIdentityCredential
try:
    result = ManagedIdentityCredential().get_token("%s/.default").token
except ClientAuthenticationError as error:
    result = "refused: " + str(error)
"""


def test_a_program_says_who_it_is_by_azures_identity_client(apply):
    pool = apply("named", "copied", managedIdentity={"audiences": ["api://one", "https://vault.test"]})
    server = pool.server
    keys = jwt.PyJWKClient(f"{server.endpoint}/.well-known/jwks.json")
    before = pool.get("user")["pid"]
    for audience in ("api://one", "https://vault.test"):
        token = pool.do("user", TOKEN % audience)
        claims = jwt.decode(token, keys.get_signing_key_from_jwt(token), algorithms=["ES256"], audience=audience)
        assert (claims["pool"], claims["session"], claims["tenant"], claims["idtyp"]) == ("named", "user", "default", "session")
        assert claims["sub"] == "tenant:default:pool:named:session:user" and claims["exp"] - time.time() > 1_800
        # It says who it is to others, and is nobody here.
        for path in ("/pools", "/pools/named/sessions"):
            assert server.native("GET", path, token).status_code in (401, 403)
    other = jwt.decode(pool.do("other", TOKEN % "api://one"), options={"verify_signature": False})
    assert other["session"] == "other"
    refused = pool.do("user", TOKEN % "api://two")
    assert refused.startswith("refused: ") and "api://one" in refused, refused
    ask = "import os, requests\nresult = requests.get(os.environ['IDENTITY_ENDPOINT'] + '?api-version=2019-08-01&resource=api://one', headers=%s).status_code"
    assert pool.do("user", ask % {"X-IDENTITY-HEADER": "wrong"}) == 401 and pool.do("user", ask % {"Metadata": "true"}) == 401
    # From outside it is not there, and a session that has it was warm.
    assert pool.native("GET", "user", "/ports/42356/msi/token").status_code == 400
    assert pool.get("user")["pid"] == before
    # A server that comes back gives new ones.
    kill(server.process())
    wait_for(server.is_ready, "the server is back", 60)
    assert jwt.decode(pool.do("user", TOKEN % "api://one"), options={"verify_signature": False})["session"] == "user"


def test_two_sessions_see_nothing_of_each_other(web, name):
    other = f"{name}-b"
    assert web.do(name, "open('/var/lib/mine', 'w').write('a'); open('/mnt/data/mine', 'w').write('a'); open('/tmp/mine', 'w').write('a')") is None
    web.do(name, "import socket; memory['socket'] = socket.create_server(('127.0.0.1', 7777))")
    find = """
import os, socket
result = [path for path in ("/var/lib/mine", "/mnt/data/mine", "/tmp/mine") if os.path.exists(path)]
try:
    socket.create_connection(("127.0.0.1", 7777), 2); result.append("port")
except OSError:
    pass
result += [open(f"/proc/{pid}/cmdline").read() for pid in os.listdir("/proc") if pid.isdigit() and "sleep" in open(f"/proc/{pid}/cmdline").read()]
"""
    web.do(name, "import subprocess; memory['sleep'] = subprocess.Popen(['sleep', '100'])")
    assert len(web.do(name, find)) == 5
    assert web.do(other, find) == []
    web.native("DELETE", other)


# What it wrote, and how it ends.


def test_logs_are_read_and_bounded(web, name):
    web.get(name)
    text, dropped = web.logs(name)
    assert text.startswith("begins as 0 in /srv\n") and dropped == 0 and "GET /?identifier=" in text
    assert web.call("POST", "log/3000000", name).status_code == 204
    wait_for(lambda: "that was all" in web.logs(name)[0], "the last line")
    text, dropped = web.logs(name)
    assert 1_000_000 <= len(text) <= (1 << 20) and "begins as" not in text and text.count("y" * 99) > 9_000
    assert dropped + len(text) >= 3_000_000
    # A pool of code has none.
    assert web.server.native("GET", f"/pools/{web.name}/sessions/{name}-never/logs").status_code == 404


def test_a_program_that_crashes_is_told_as_a_crash(web, name):
    web.get(name)
    # Its answer never comes; then it is told, once, and the next request has a new session.
    said = until_lost(web, name, web.call("POST", "exit/3", name))
    assert "exited with code 3" in said and "fatal: told to end with 3" in said, said
    assert web.get(name)["asked"] == 1
    # To whoever asked, and not in the server's log: what code says is in none.
    assert "told to end" not in web.server.log() and "begins as" not in web.server.log()


def until_lost(web: Web, session: str, answer: requests.Response) -> str:
    """Asks until it is told that the session is lost: why."""
    end = time.monotonic() + 20
    while answer.status_code != 410:
        # Nobody listened, or nobody does.
        check_error(answer, 502)
        assert time.monotonic() < end
        answer = web.call("GET", "", session)
    return check_error(answer, 410, "SessionLost")["message"]


def test_a_program_that_does_not_start_with_what_a_session_brings_is_that_sessions_trouble(web, name):
    assert web.native("PUT", name, json={"env": {"APP_EXIT": "7", "APP_DATABASE": "own.test"}}).status_code == 201
    said = until_lost(web, name, web.call("GET", "", name))
    assert "exited with code 7" in said and "fatal: no database at own.test" in said, said
    # The pool is none the worse.
    assert web.get(name)["asked"] == 1


FAULTS = {
    "exits": ("copied", {"env": [{"name": "APP_EXIT", "value": "9"}, {"name": "APP_DATABASE", "value": "db.test"}]},
              ("exited with code 9", "fatal: no database at db.test")),
    "is-missing": ("copied", {"container": {"command": ["/usr/bin/none"]}}, ("/usr/bin/none",)),
    "is-a-stranger": ("stranger", {}, ("no user none",)),
}  # fmt: skip


@pytest.mark.parametrize("word", FAULTS)
def test_a_program_that_does_not_start_is_the_pools_trouble(apply, word):
    image, more, said = FAULTS[word]
    pool = apply(f"one-that-{word}", image, wait=False, **more)
    # Not as a pool that is full: more of the same would not help.
    refused = pool.call("GET", "", "user")
    message = check_error(refused, 503, "SessionPoolBroken")["message"]
    assert all(part in message for part in said), message
    condition = pool.native("GET", "", "").json()
    assert all(part in json.dumps(condition) for part in said), condition
    # Mended, it is used.
    assert pool.native("PUT", json=custom(pool.name, "copied")).status_code == 200
    wait_for(lambda: pool.call("GET", "", "user").status_code == 200, "a program that starts", 60)


def test_a_full_pool_is_said_to_be_full(apply):
    pool = apply("narrow", "alone", 8080, ready=1, most=2)
    for name in ("first", "second"):
        assert pool.call("GET", "", name).text == "no shell here\n"
    refused = pool.call("GET", "", "third")
    check_error(refused, 429)
    assert int(refused.headers["Retry-After"]) >= 1
    assert pool.native("DELETE", "first").status_code == 204
    wait_for(lambda: pool.call("GET", "", "third").status_code == 200, "a place")


def test_where_the_pool_says_so_a_session_ends_with_its_program(apply):
    pool = apply("jobs", "copied", life={"lifecycleType": "OnContainerExit", "maxAlivePeriodInSeconds": 600})
    first = pool.get("user")
    assert first["asked"] == 1 and pool.get("user")["asked"] == 2
    for code in (0, 4):
        assert pool.call("POST", f"exit/{code}", "user").status_code in (404, 410, 502)
        wait_for(lambda: pool.native("GET", "user").status_code == 404, "its end")
        # In order: the next request has a new one, and hears of nothing lost.
        assert pool.get("user")["asked"] == 1


def test_where_the_pool_says_so_a_session_ends_when_nobody_asks(apply):
    pool = apply("short", "alone", 8080, life={"lifecycleType": "Timed", "cooldownPeriodInSeconds": 2})
    assert pool.call("GET", "", "user").status_code == 200
    begun = time.monotonic()
    while time.monotonic() < begun + 4:
        assert pool.call("GET", "", "user").status_code == 200
        assert pool.native("GET", "user").status_code == 200
        time.sleep(0.4)
    wait_for(lambda: pool.native("GET", "user").status_code == 404, "its cool-down", 20)
    assert pool.call("GET", "", "user").status_code == 200


def test_an_open_connection_is_use_and_the_longest_life_is_the_longest(apply):
    pool = apply("open", "copied", life={"lifecycleType": "Timed", "cooldownPeriodInSeconds": 1, "maxAlivePeriodInSeconds": 4})
    echo, begun = WebSocket(pool, "user", "echo"), time.monotonic()
    time.sleep(2.5)
    echo.send(b"still here")
    assert echo.receive() == b"still here"
    # It was not asked otherwise; and ends when it is as old as it may be.
    wait_for(lambda: pool.native("GET", "user").status_code == 404, "its end", 20)
    assert 3 <= time.monotonic() - begun < 15
    with pytest.raises((AssertionError, OSError)):
        echo.send(b"nobody")
        assert echo.receive() == b"nobody"


def test_a_program_that_is_slow_is_waited_for_by_the_first_request(apply):
    slow = {"command": ["/bin/sh", "-c", "sleep 1.5; exec httpd -f -p 80 -h /srv/site"]}
    pool = apply("slow", "as-root", ready=0, wait=False, container=slow)
    begun = time.monotonic()
    assert pool.call("GET", "", "user").text == "a site\n"
    assert time.monotonic() - begun >= 1.4
    # Started again with variables of a session, too.
    assert pool.native("PUT", "other", json={"env": {"OWN": "1"}}).status_code == 201
    assert pool.call("GET", "", "other").text == "a site\n"


def test_a_programs_redirections_and_cookies_are_those_of_its_address(web, name):
    for to, path in (("/hello?x=1", "hello"), ("http://localhost:80/hello?x=1", "hello"), ("hello?x=1&identifier=" + name, "hello")):
        said = web.call("GET", f"moved?to={urllib.parse.quote(to, safe='')}", name)
        assert said.status_code == 200 and said.json()["uri"].startswith(f"/{path}?x=1"), said.text
        assert said.json()["headers"]["x-forwarded-prefix"] + "/hello" in said.url
        # It is not one of ours that has versions.
        assert "api-supported-versions" not in said.headers
        [first] = said.history
        assert f"Path={urllib.parse.urlsplit(web.pool.endpoint).path}/moved" in first.headers["Set-Cookie"] and "example.com" not in first.headers["Set-Cookie"]
    away = web.call("GET", "moved?to=https%3A%2F%2Fexample.com%2F", name, allow_redirects=False)
    assert away.headers["Location"] == "https://example.com/"
    # Who asks is who is there; on this machine that may be a reverse proxy, which says who asked it.
    said = web.call("GET", "", name, headers={"X-Forwarded-For": "192.0.2.1", "X-Real-IP": "192.0.2.1", "Forwarded": "for=192.0.2.1"}).json()
    assert said["headers"]["x-forwarded-for"] == "192.0.2.1, 127.0.0.1"
    assert not {"x-real-ip", "forwarded"} & set(said["headers"])


def test_a_program_that_speaks_http_2_is_spoken_with_so(apply, images, tmp_path):
    pool = apply("second", "copied", 50051, wait=False, container={"args": ["/srv/app2.py"]}, transport="http2")
    pool.wait_until_full()
    address = f"{pool.pool.endpoint}/package.Service/Method?identifier=user"
    (tmp_path / "body").write_bytes(b"x" * (5 << 20))

    def ask(*words: str) -> tuple[str, dict]:
        words = ["curl", "-sS", "--max-time", "60", "-D", str(tmp_path / "head"), "-H", f"Authorization: Bearer {pool.server.bearer}", *words]
        done = subprocess.run(words, capture_output=True, text=True, timeout=90)
        assert done.returncode == 0, done.stderr
        return (tmp_path / "head").read_text(), json.loads(done.stdout.splitlines()[-1])

    head, said = ask("--http2-prior-knowledge", "-H", "TE: trailers", "--data-binary", f"@{tmp_path}/body", address)
    assert head.startswith("HTTP/2 200") and "grpc-status: 0" in head and "grpc-message: fine" in head, head
    assert said["size"] == 5 << 20 and said["pieces"] > 1
    headers = said["headers"]
    assert headers[":method"] == "POST" and headers[":path"] == "/package.Service/Method?identifier=user"
    assert headers[":authority"] == "localhost:50051" and headers["te"] == "trailers" and "authorization" not in headers
    # A client that speaks HTTP/1.1 is answered too, and a protocol that is changed is refused.
    head, said = ask("--http1.1", address)
    assert head.startswith("HTTP/1.1 200") and said["size"] == 0
    refused = pool.call("GET", "", "user", headers={"Connection": "Upgrade", "Upgrade": "websocket"})
    check_error(refused, 400, "SessionRequestNotSupported")
    # By an address for others, at its root, as clients of gRPC need it.
    preview = pool.native("POST", "user", "/previews", json={"port": 50051}).json()["hostUrl"]
    port = urllib.parse.urlsplit(preview).port
    host = urllib.parse.urlsplit(preview).hostname
    head, said = ask("--http2-prior-knowledge", "--resolve", f"{host}:{port}:127.0.0.1", "-d", "x", f"{preview}package.Service/Method")
    assert "grpc-status: 0" in head and said["headers"][":path"] == "/package.Service/Method"


# How it is, as its probes say.


def probe(kind: str, path: str | None = None, **more) -> dict:
    check = {"tcpSocket": {"port": 80}} if path is None else {"httpGet": {"path": path, "port": 80}}
    return {"type": kind, "periodSeconds": 1, "timeoutSeconds": 2, "failureThreshold": 2, **check, **more}


def answers(status: int) -> str:
    """What makes the program answer its probes so."""
    return f"memory['up'] = {status}"


def test_a_start_up_probe_says_when_a_program_is_ready_and_fails_with_a_reason(apply):
    # It listens at once, and says only after a while that it has started.
    ready = apply("starting", "copied", ready=0, wait=False, container={"probes": [probe("Startup", "/up?after=2", failureThreshold=10)]})
    assert ready.get("user", "up-for")["seconds"] >= 2
    never = apply("unstarted", "copied", wait=False, container={"probes": [probe("Startup", "/up?status=500", failureThreshold=5)]})
    message = check_error(never.call("GET", "", "user"), 503, "SessionPoolBroken")["message"]
    assert "start-up probe failed: GET /up?status=500 at port 80: it answers 500" in message, message
    silent = apply("unanswered", "copied", wait=False, container={"probes": [probe("Startup", "/up?sleep=60", timeoutSeconds=1, failureThreshold=5)]})
    message = check_error(silent.call("GET", "", "user"), 503, "SessionPoolBroken")["message"]
    assert "start-up probe failed" in message and "no answer in 1 s" in message, message


@pytest.mark.parametrize("life", ["Timed", "OnContainerExit"])
def test_a_program_whose_liveness_probe_fails_is_lost_with_the_reason(apply, life):
    check = {"path": "/up", "port": 80, "httpHeaders": [{"name": "X-Probe", "value": "alive?"}]}
    probes = [probe("Startup", failureThreshold=10), probe("Liveness", "/up", httpGet=check)]
    pool = apply("mortal", "copied", life={"lifecycleType": life, "maxAlivePeriodInSeconds": 600}, container={"probes": probes})
    assert pool.get("user")["asked"] == 1
    wait_for(lambda: pool.do("user", "result = memory.get('probed')") == "alive?", "a probe")
    # It was asked before it had a session, and not on the way of requests.
    pool.do("user", answers(503))
    wait_for(lambda: pool.native("GET", "user").status_code != 200, "its end")
    told = check_error(pool.call("GET", "", "user"), 410, "SessionLost")["message"]
    assert "liveness probe failed: GET /up at port 80: it answers 503" in told, told
    assert pool.get("user")["asked"] == 1


def test_a_program_whose_readiness_probe_fails_is_not_asked_until_it_recovers(apply):
    pool = apply("unready", "copied", container={"probes": [probe("Readiness", "/up", successThreshold=2)]})
    assert pool.get("user")["asked"] == 1
    # It recovers by itself, while nobody can ask it for that.
    pool.do("user", "import threading\n" + answers(500) + "\nthreading.Timer(5, memory.pop, ('up',)).start()")
    refused = wait_for(lambda: (answer := pool.call("GET", "", "user")).status_code == 503 and [answer], "that it is not ready")[0]
    assert "readiness probe" in check_error(refused, 503, "SessionNotReady")["message"] and refused.headers["Retry-After"]
    # Others are not held by it, and it is not lost.
    assert pool.get("other")["asked"] == 1
    wait_for(lambda: pool.call("GET", "", "user").status_code == 200, "its recovery")
    # A restart for what a session brings waits for it too.
    assert pool.native("PUT", "third", json={"env": {"OWN": "1"}}).status_code == 201
    assert pool.get("third")["env"]["OWN"] == "1"


# Beside it.


def test_executions_and_files_are_beside_the_program_and_of_its_user(web, name):
    web.get(name)
    words = web.server.json("run", "-p", "web", "-s", name, "--", "bash", "-c", "id -u; cat /proc/1/comm; echo from beside >/mnt/data/note")
    assert words["exitCode"] == 0 and words["stdout"].startswith("0\n"), words
    assert web.do(name, "result = open('/mnt/data/note').read()") == "from beside\n"
    # Files, both ways.
    assert web.native("PUT", name, "/files/up", data=b"by the API").status_code == 200
    assert web.do(name, "import os; s = os.stat('/mnt/data/up'); result = [open('/mnt/data/up').read(), s.st_uid]") == ["by the API", 0]
    web.do(name, "open('/mnt/data/down', 'w').write('by the program')")
    assert web.native("GET", name, "/files/down").content == b"by the program"
    listed = web.native("GET", name, "/files").json()
    assert {"note", "up", "down"} <= {one["name"] for one in listed["value"]}, listed
    # Interrupting what is beside it leaves the program alone.
    pid = web.get(name)["pid"]
    begun = web.native("POST", name, "/executions", json={"command": "sleep 100", "waitSeconds": 0}).json()
    assert web.native("POST", name, f"/executions/{begun['id']}/stop").status_code == 204
    assert web.get(name)["pid"] == pid
    # Code has nothing to answer it.
    check_error(web.native("POST", name, "/executions", json={"code": "1"}), 400)


def test_agents_run_commands_beside_it_by_mcp(web, name):
    web.get(name)

    def call(tool: str, **arguments) -> dict:
        said = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": tool, "arguments": arguments}}
        answer = web.server.native("POST", "/mcp", json=said, headers={"Accept": "application/json, text/event-stream"})
        assert answer.status_code == 200, answer.text
        text = answer.text.rpartition("data: ")[2] if "text/event-stream" in answer.headers["Content-Type"] else answer.text
        return json.loads(text)["result"]

    begun = call("open_session", pool="web")
    assert not begun.get("isError"), begun
    done = call("run_command", session_id=begun["structuredContent"]["session_id"], command="id -u; cat /srv/app.py | head -c 20")
    assert not done.get("isError") and "0\n" in done["structuredContent"]["stdout"], done


# Where it writes, and as whom it runs.


def test_a_program_writes_where_its_images_root_may_within_its_disk(apply):
    pool = apply("disk", "copied", ready=2, resources={"dataDisk": "64Mi", "tmpDisk": "16Mi"})
    write = "open('/var/lib/state', 'w').write('kept'); open('/etc/mine', 'w').write('1'); import os; os.mkdir('/opt/own'); os.remove('/srv/app.py')"
    pool.do("user", write)
    assert pool.do("user", "result = open('/var/lib/state').read()") == "kept"
    fill = """
import errno, os
def fill(place):
    size = 0
    try:
        with open(place, "wb", 0) as file:
            while size < 1 << 30:
                size += file.write(bytes(1 << 20))
    except OSError as error:
        return [errno.errorcode[error.errno], size >> 20]
    finally:
        os.remove(place)
result = [fill(place) for place in ("/var/lib/fill", "/mnt/data/fill", "/tmp/fill")]
"""
    filled = pool.do("user", fill)
    assert [why for why, _ in filled] == ["ENOSPC"] * 3, filled
    assert all(size <= most for (_, size), most in zip(filled, (64, 64, 16))), filled
    # It goes on, its neighbour has all it had, and the image is as it was.
    assert pool.get("user")["env"]["APP_IMAGE"] == "of the image"
    here = "import os; result = [os.path.exists('/srv/app.py'), os.path.exists('/var/lib/state'), os.statvfs('/var').f_bavail > 0]"
    assert pool.do("other", here) == [True, False, True]


def test_a_program_that_eats_memory_or_processes_harms_itself_alone(apply):
    pool = apply("greedy", "copied", ready=2, resources={"memory": "128Mi", "dataDisk": "16Mi", "tmpDisk": "16Mi", "pids": 64})
    neighbour = pool.get("other")["pid"]
    fork = """
import subprocess
memory["all"], result = [], None
try:
    while len(memory["all"]) < 500:
        memory["all"].append(subprocess.Popen(["sleep", "100"]))
except OSError as error:
    result = error.errno
assert len(memory["all"]) < 64
"""
    assert pool.do("forks", fork) == 11, "EAGAIN"
    # Killed by the kernel, it is told as killed, also when it has offered its first process in its stead.
    first = "open('/proc/1/oom_score_adj', 'w').write('1000')"
    for name, before in (("eater", "None"), ("sly-eater", first)):
        pool.do(name, f"try:\n    {before}\nexcept OSError:\n    pass")
        said = until_lost(pool, name, pool.call("POST", "do", name, data=b"memory['much'] = b'x' * (1 << 29)"))
        assert "exited with code 137" in said or name == "sly-eater", said
    assert (pool.get("other")["pid"], pool.get("other")["asked"]) == (neighbour, 3)


@pytest.mark.parametrize("image, id, groups, directory", [
    ("by-name", "uid=33(web) gid=34(web)", "34", "/srv/site"), ("by-number", "uid=1234 gid=50(staff)", "50", "/srv"),
    ("as-root", "uid=0(root) gid=0(root)", "0", "/"),
])  # fmt: skip
def test_a_program_is_whom_its_image_says_where_its_image_says(apply, image, id, groups, directory):
    """It listens below 1024, too."""
    pool = apply(image, image)
    who = pool.call("GET", "who", "user").text.splitlines()
    assert who[0].split(" groups=")[0] == id and who[1] == directory, who
    # Commands and files are of the same user.
    ran = pool.native("POST", "user", "/executions", json={"command": "id -u; test -w /mnt/data && echo may; touch /mnt/data/x && cat /tmp/who"}).json()
    assert ran["exitCode"] == 0 and ran["stdout"].startswith(re.search(r"uid=(\d+)", id)[1] + "\nmay\n"), ran
    assert pool.native("PUT", "user", "/files/up", data=b"x").status_code == 200
    changed = pool.native("POST", "user", "/executions", json={"command": "echo y >>/mnt/data/up && cat /mnt/data/up"}).json()
    assert changed["stdout"] == "xy\n", changed
    # Only root writes where only root may.
    wrote = pool.native("POST", "user", "/executions", json={"command": "touch /etc/mine"}).json()
    assert (wrote["exitCode"] == 0) == (image == "as-root"), wrote


def test_a_machine_runs_the_same_image_on_a_kernel_of_its_own(apply, images):
    # The guest's kernel is fetched once for a store; the other tests' has it, if it is there.
    kernel = Path(os.environ.get("SANDPOOL_IMAGES", "/var/lib/sandpool/images")) / "machines/kernel"
    if kernel.is_dir():
        (images.place / "machines").mkdir()
        subprocess.run(["cp", "-a", kernel, images.place / "machines"], check=True)
    env = [{"name": "PORT", "value": "8080"}, {"name": "APP_SECRET", "secretRef": "database"}]
    pool = apply("machine", "by-name", 8080, env=env, secrets=SECRETS, isolation="microvm")
    for session in ("user", "other"):
        answer = pool.call("GET", "who", session)
        assert answer.status_code == 200, answer.text
        assert answer.text.splitlines() == ["uid=33(web) gid=34(web)", "/srv/site"]

    def said(command: str) -> str:
        answer = pool.native("POST", "user", "/executions", json={"command": command})
        assert answer.status_code == 200, answer.text
        return answer.json()["stdout"].strip()

    assert said("cat /proc/version") != Path("/proc/version").read_text().strip()
    # Its files are on a disk of its own, and its root can be written to where the image lets it.
    assert said("echo ours >/mnt/data/new; cat /proc/mounts | while read d p k r; do case $p in /|/mnt/data) echo $k;; esac; done") == "overlay\next4"
    assert pool.native("GET", "user", "/files/new").text == "ours\n"
    assert pool.native("GET", "other", "/files/new").status_code == 404
    assert pool.native("GET", "user").json()["level"].startswith("microvm")


def test_an_image_without_a_shell_runs_as_a_pool(apply):
    pool = apply("alone", "alone", 8080)
    assert pool.call("GET", "", "user").text == "no shell here\n"
    # Also started again with what a session brings.
    assert pool.native("PUT", "other", json={"env": {"OWN": "1"}}).status_code == 201
    assert pool.call("GET", "index.html", "other").text == "no shell here\n"
    ran = pool.native("POST", "user", "/executions", json={"argv": ["/httpd", "--help"]}).json()
    assert "httpd" in ran["stdout"] + ran["stderr"], ran
    # A command line needs a shell, and that is said.
    refused = pool.native("POST", "user", "/executions", json={"command": "true"})
    assert refused.status_code >= 400 or refused.json()["exitCode"] != 0, refused.text
    assert pool.call("GET", "", "user").status_code == 200


# An attacker, as the program itself.

ATTACKS = r"""
import ctypes, errno, glob, os, re, shutil, signal, socket, stat, struct, subprocess
libc = ctypes.CDLL(None, use_errno=True)
def attempt(what, *arguments):
    try:
        what(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"
def call(number, *arguments):
    ctypes.set_errno(0)
    said = libc.syscall(number, *arguments)
    return errno.errorcode.get(ctypes.get_errno(), "done") if said < 0 else "done"
def write(path, text="1"):
    with open(path, "w") as file:
        file.write(text)
def status(name):
    return re.search(rf"^{name}:\s*(.*)$", open("/proc/self/status").read(), re.M)[1]
result = {}
result["capabilities"] = [int(status(name), 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")]
result["no new rights"] = [status("NoNewPrivs"), status("Seccomp")]
result["ids"] = [os.getresuid(), os.getresgid(), os.getgroups()]
inside, outside, count = map(int, open("/proc/self/uid_map").read().split())
result["range"] = [inside, outside >= 0x20000000, count]
result["other ids"] = [attempt(os.setuid, 1), attempt(os.setresuid, 998, 998, 998), attempt(os.setgroups, [1]), attempt(os.setgid, 1), attempt(os.setuid, 65536), attempt(os.setuid, outside), attempt(os.setuid, 1 << 31)]
result["mount"] = [call(165, b"none", b"/tmp", b"tmpfs", 0, None), call(165, b"/", b"/mnt", None, 4096, None), call(166, b"/proc", 2), call(161, b"/tmp")]
result["namespaces"] = [call(272, flag) for flag in (0x10000000, 0x00020000, 0x40000000, 0x20000000)]
result["new user"] = call(56, 0x10000000 | 17, None, None, None, None)
result["first"] = [attempt(os.kill, 1, signal.SIGKILL), call(101, 16, 1, None, None), attempt(open, "/proc/1/mem", "rb"), attempt(open, "/proc/1/environ", "rb"), *[attempt(os.readlink, f"/proc/1/{name}") for name in ("exe", "cwd", "root", "fd/0", "fd/3", "ns/user")]]
result["processes"] = max(int(pid) for pid in os.listdir("/proc") if pid.isdigit()) < 2000
result["kernel"] = [attempt(write, path) for path in ("/proc/sys/kernel/core_pattern", "/proc/sys/kernel/hostname", "/proc/sys/vm/overcommit_memory", "/proc/sysrq-trigger", "/proc/sys/net/ipv4/ip_forward")]
result["kernel's files"] = [os.path.exists(path) and bool(os.listdir(path)) for path in ("/sys", "/sys/fs/cgroup", "/sys/kernel")]
write("/var/lib/a")
result["owners"] = [attempt(os.chown, "/var/lib/a", 1, 1), attempt(os.chown, "/usr/bin/python3", 1, 1)]
result["devices"] = [attempt(os.mknod, "/var/lib/sda", 0o660 | stat.S_IFBLK, os.makedev(8, 0)), attempt(os.mknod, "/var/lib/mem", 0o660 | stat.S_IFCHR, os.makedev(1, 1)),
                     sorted(name for name in os.listdir("/dev"))]
shutil.copy("/usr/bin/id", "/var/lib/id"); os.chmod("/var/lib/id", 0o6755)
result["setuid"] = [subprocess.check_output(["/var/lib/id", "-u"]).decode().strip(),
                    [path for path in glob.glob("/usr/**", recursive=True) if os.path.isfile(path) and not os.path.islink(path) and os.stat(path).st_mode & 0o6000],
                    [line.split()[1] for line in open("/proc/mounts") if "nosuid" not in line.split()[3].split(",")]]
result["attributes"] = attempt(os.setxattr, "/var/lib/id", "security.capability", struct.pack("<5I", 0x02000001, 1 << 21, 0, 0, 0))
result["host"] = [word for word in ("sandpool-e2e", "/var/tmp", "/var/lib/sandpool") if word in open("/proc/self/mountinfo").read()]
result["interfaces"] = sorted(name for _, name in socket.if_nameindex())
result["raw"] = [attempt(socket.socket, socket.AF_INET, socket.SOCK_RAW, 1), attempt(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, 0)]
result["root"] = [attempt(os.chroot, "/tmp"), call(155, b"/", b"/")]
result["modules"] = [call(175, None, 0, b""), call(313, 0, b"", 0), call(321, 0, None, 0), call(246, 0, 0, None, 0), call(250, 0, 0, 0)]
result["limits"] = attempt(os.nice, -5)
"""


def test_an_attacker_who_is_the_program_and_its_root_gets_nowhere(web, name):
    program = web.get(name)["pid"]
    found = web.do(name, ATTACKS)
    denied = {"EPERM", "EACCES", "ENOSYS", "ENOENT", "EROFS", "EINVAL", "ENOTDIR", "ENODEV", "EAFNOSUPPORT", "EPROTONOSUPPORT"}
    for what in ("mount", "namespaces", "kernel", "raw", "root", "modules"):
        assert all(said in denied for said in found[what]), (what, found[what])
    assert found["new user"] in denied
    assert found["capabilities"] == [0] * 5 and found["no new rights"] == ["1", "2"]
    assert found["ids"] == [[0, 0, 0], [0, 0, 0], []] and found["range"] == [0, True, 65536]
    assert set(found["other ids"]) <= denied, found["other ids"]
    # Its first process is ours: not root's to kill, to trace, or to look into.
    assert set(found["first"]) <= denied, found["first"]
    assert found["processes"] and not any(found["kernel's files"])
    assert set(found["owners"]) <= denied, found["owners"]
    assert set(found["devices"][:2]) <= denied and found["devices"][2] == sorted(
        ["fd", "full", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout", "urandom", "zero"])
    assert found["setuid"] == ["0", [], []], found["setuid"]
    assert found["attributes"] in denied | {"EOPNOTSUPP", "ENOTSUP"}
    assert found["host"] == [] and found["interfaces"] == ["lo"] and found["limits"] in denied
    # On the host it is nobody's user, and one that no other sandbox has.
    uids = {int(of_process(pid, "status").split("Uid:")[1].split()[0])
            for pid in descendants(web.server.launcher) if "/srv/app.py" in of_process(pid, "cmdline")}  # fmt: skip
    assert uids and all(uid >= 0x20000000 for uid in uids) and len(uids) >= 2, uids
    assert web.get(name)["pid"] == program


def test_a_non_root_program_is_not_the_root_of_its_sandbox(apply):
    pool = apply("guest", "by-number")
    tried = {"command": "chown 0 /mnt/data 2>/dev/null || echo no; cat /proc/1/environ 2>/dev/null || echo no; "
                        "echo x 2>/dev/null >/bin/busybox || echo no; echo x 2>/dev/null >/etc/passwd || echo no"}  # fmt: skip
    assert pool.native("POST", "user", "/executions", json=tried).json()["stdout"] == "no\n" * 4


# Killed, and ended.


def test_a_killed_server_leaves_programs_alone_and_its_launchers_end_leaves_nothing(images):
    server = Server("--images", str(images.place), config=settings(custom("web", images.tag, env=ENV, secrets=SECRETS, ready=1)))
    try:
        pool = Web(server, "web")
        pool.wait_until_full()
        assert pool.native("PUT", "mine", json={"env": {"APP_OWN": "kept"}}).status_code == 201
        first = {name: pool.get(name)["pid"] for name in ("user", "mine")}
        pool.do("user", "memory['word'] = 'kept'; open('/var/lib/word', 'w').write('kept')")
        kill(server.process())
        wait_for(server.is_ready, "the server is back")
        assert pool.do("user", "result = [memory['word'], open('/var/lib/word').read()]") == ["kept", "kept"]
        assert pool.get("user")["pid"] == first["user"]
        own = pool.get("mine")
        assert (own["pid"], own["env"]["APP_OWN"]) == (first["mine"], "kept")
        assert pool.logs("user")[0].startswith("begins as 0 in /srv\n")
        # A new one has what a ready one has.
        assert pool.get("another")["asked"] == 1
        processes = {pid: start_time(pid) for pid in descendants(server.launcher) | {server.launcher}}
        assert cgroups(server)
        kill(server.launcher)
        # What is left of control groups is swept by the next start, as everywhere (test_kills.py).
        wait_for(lambda: not left_behind(server, processes), "all has ended", 30)
        # Who starts it anew hears what was lost, and nothing of it is left then.
        server.run("serve", "--config", server.home / "config.yaml", "--images", images.place, "--detach", timeout=120)
        server.record = json.loads((server.home / "run/server.json").read_text())
        server.endpoint, server.launcher = server.record["endpoint"], server.record["pid"]
        pool = Web(server, "web")
        check_error(pool.call("GET", "", "user"), 410, "SessionLost")
        assert pool.get("user")["asked"] == 1
        processes |= {pid: start_time(pid) for pid in descendants(server.launcher) | {server.launcher}}
        server.down()
        assert left_behind(server, processes) == []
        wait_for(lambda: not cgroups(server), "the end of every control group", 20)
    finally:
        server.remove()


def test_a_program_that_ends_while_the_server_is_away_is_told_as_lost(images):
    server = Server("--images", str(images.place), config=settings(custom("web", images.tag)))
    try:
        pool = Web(server, "web")
        pool.wait_until_full()
        pool.do("user", "memory['word'] = 'lost'")
        its = str(pool.do("user", "import os; result = os.stat('/proc/self/ns/pid').st_ino"))
        [victim] = [pid for pid in descendants(server.launcher) if its in namespace(pid) and "/srv/app.py" in of_process(pid, "cmdline")]
        kill(server.process())
        kill(victim)
        wait_for(server.is_ready, "the server is back")
        said = check_error(pool.call("GET", "", "user"), 410, "SessionLost")["message"]
        assert "exited with code 137" in said and "begins as 0 in /srv" in said, said
        assert pool.get("user")["asked"] == 1
    finally:
        server.remove()


def namespace(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return ""


# Many at once.

MANY = 50


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    """A TLS server with a certificate of an authority of its own, which remembers the keys that it was sent."""
    place, seen = tmp_path_factory.mktemp("target"), {}

    def answer(request):
        seen[request.path] = request.headers.get("Authorization")
        return b"it is there\n", {}

    context, trusted = authority(place, "api.test")
    target = Target(answer, context)
    target.seen, target.authority = seen, trusted
    yield target
    target.close()


# As small as a program can be that tells its environment and asks a host: many of it are started, and started again.
TELLS = r"""
import http.server, json, os
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        said = dict(os.environ)
        if self.path.startswith("/use"):
            import ssl, urllib.request
            context = ssl.create_default_context(cafile="/etc/ssl/sandpool.pem")
            asked = urllib.request.Request(os.environ["URL"] + "/" + os.environ["OWN"], headers={"Authorization": os.environ["OWN_KEY"]})
            said = urllib.request.urlopen(asked, context=context, timeout=60).read().decode()
        body = json.dumps(said).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
http.server.ThreadingHTTPServer(("0.0.0.0", 8080), Handler).serve_forever()
"""


def test_fifty_sessions_with_variables_and_secrets_of_their_own_are_warm_and_have_only_their_own(images, target, tmp_path):
    (tmp_path / "key").write_text("a-value-of-the-pool-0815")
    (tmp_path / "own-ca.pem").write_text(target.authority)
    host = f"api.test:{target.port}"
    pool = custom(
        "many", "copied", 8080, ready=MANY, most=MANY + 10, env=[{"name": "URL", "value": f"https://{host}"}],
        container={"command": ["/usr/bin/python3", "-c", TELLS]}, sessionSecrets=True, resources={"memory": "128Mi"},
        egress={"mode": "allow-list", "allow": [host], "allowAddresses": ["127.0.0.0/8"], "hosts": {"api.test": ["127.0.0.1"]}},
        secrets=[],
    )  # fmt: skip
    pool["spec"]["secrets"] = [{"name": "SHARED_KEY", "from": {"file": f"{tmp_path}/key"}, "hosts": [host], "trust": f"{tmp_path}/own-ca.pem"}]
    server = Server("--images", str(images.place), config=settings(pool))
    try:
        many = Web(server, "many")
        many.wait_until_full(MANY, 120)

        def use(number: int) -> tuple[dict, str]:
            name, value = f"user-{number}", f"own-value-of-{number}-4711"
            secret = {"name": "OWN_KEY", "value": value, "hosts": [host]}
            made = many.native("PUT", name, json={"env": {"OWN": name}, "secrets": [secret]}, timeout=120)
            assert made.status_code == 201 and value not in made.text, made.text
            env = many.call("GET", "", name, timeout=120).json()
            assert many.call("GET", "use", name, timeout=120).json() == "it is there\n"
            return env, value

        with concurrent.futures.ThreadPoolExecutor(10) as threads:
            used = list(threads.map(use, range(MANY)))
        assert many.status()["waited"] == 0, "each found one ready"
        assert [env["OWN"] for env, _ in used] == [f"user-{number}" for number in range(MANY)]
        # A placeholder each, and the value at the host alone.
        assert len({env["OWN_KEY"] for env, _ in used}) == MANY
        values = [value for _, value in used]
        assert not [value for env, _ in used for value in values if value in json.dumps(env)]
        assert target.seen == {f"/user-{number}": value for number, value in enumerate(values)}
        # None of them has what is another's, in any process of it.
        for pid in descendants(server.launcher):
            environment = of_process(pid, "environ")
            assert not re.search(r"own-value-of-\d+-4711", environment)
            assert len(set(re.findall(r"\0OWN=(user-\d+)", environment))) <= 1
    finally:
        server.remove()


# The same by Azure's resource.


def test_azures_resource_makes_changes_and_shows_a_pool_without_its_secrets(served, images):
    group = "/subscriptions/11111111-2222-3333-4444-555555555555/resourceGroups/lab/providers/Microsoft.App/sessionPools"
    path = f"{group}/by-arm?api-version=2025-07-01"

    def template(image: str) -> dict:
        env = [{"name": "APP_POOL", "value": "by ARM"}, {"name": "APP_SECRET", "secretRef": "database"}]
        containers = [{"name": "web", "image": image, "env": env, "resources": {"cpu": 0.5, "memory": "1Gi"}}]
        return {"containers": containers, "ingress": {"targetPort": 80}}

    def properties(image: str, **more) -> dict:
        return {
            "containerType": "CustomContainer", "poolManagementType": "Dynamic", "customContainerTemplate": template(image),
            "scaleConfiguration": {"maxConcurrentSessions": 4, "readySessionInstances": 1},
            "dynamicPoolConfiguration": {"lifecycleConfiguration": {"lifecycleType": "Timed", "cooldownPeriodInSeconds": 600}}, **more,
        }  # fmt: skip

    def settled() -> dict:
        def look():
            said = served.native("GET", path)
            assert said.status_code == 200, said.text
            return said.json() if said.json()["properties"]["provisioningState"] == "Succeeded" else None

        return wait_for(look, "the pool is provisioned", 60)

    secrets = [{"name": "database", "value": "postgres://of-arm"}]
    made = served.native("PUT", path, json={"location": "westeurope", "properties": properties(images.tag, secrets=secrets)})
    assert made.status_code in (200, 201) and "of-arm" not in made.text, made.text
    try:
        shown = settled()
        assert "of-arm" not in json.dumps(shown) and shown["properties"]["secrets"] == [{"name": "database"}]
        container = shown["properties"]["customContainerTemplate"]["containers"][0]
        assert container["image"] == images.tag and container["env"][1] == {"name": "APP_SECRET", "secretRef": "database"}
        pool = Web(served, "by-arm")
        said = pool.get("before")
        assert (said["env"]["APP_POOL"], said["env"]["APP_SECRET"]) == ("by ARM", "postgres://of-arm")
        # Another image: old sessions go on, new ones have it, and the secret that nobody said again is there.
        patched = served.native("PATCH", path, json={"properties": {"customContainerTemplate": template("web-2")}})
        assert patched.status_code in (200, 202) and "of-arm" not in patched.text, patched.text
        settled()
        new = wait_for(lambda: (said := pool.get(f"new-{uuid.uuid4().hex[:6]}"))["env"]["APP_IMAGE"] == "of the second" and said, "the new image", 60)
        assert new["env"]["APP_SECRET"] == "postgres://of-arm"
        old = pool.get("before")
        assert (old["pid"], old["env"]["APP_IMAGE"]) == (said["pid"], "of the image")
        for reading in ("", "listSecrets"):
            answer = served.native("POST" if reading else "GET", path.replace("?", f"/{reading}?") if reading else path)
            assert "of-arm" not in answer.text
        listed = served.native("GET", f"{group}?api-version=2025-07-01")
        assert "by-arm" in listed.text and "of-arm" not in listed.text
        # What cannot be is refused with the reason, and changes nothing.
        for more, part in (
            ({"registryCredentials": {"server": "r.test", "username": "u", "passwordSecretRef": "database"}}, "registryCredentials.server"),
            ({"containers": [{"image": images.tag, "probes": [{"type": "Liveness", "exec": {"command": ["true"]}}]}]}, "probes[0].exec"),
            ({"containers": [{"image": "never-pulled"}]}, "never-pulled"),
        ):  # fmt: skip
            refused = served.native("PATCH", path, json={"properties": {"customContainerTemplate": {**template("web-2"), **more}}})
            assert refused.status_code == 400 and part in refused.text, refused.text
        identity = served.native("PATCH", path, json={"identity": {"type": "UserAssigned"}})
        assert identity.status_code == 400 and "SystemAssigned" in identity.text
        named = {"managedIdentitySettings": [{"identity": "System", "lifecycle": "main"}]}
        assert served.native("PATCH", path, json={"properties": named}).status_code == 202
        shown = settled()
        assert shown["identity"] == {"type": "SystemAssigned"} and shown["properties"]["managedIdentitySettings"][0]["lifecycle"] == "Main"
        assert pool.get("named")["env"]["IDENTITY_ENDPOINT"].startswith("http://127.0.0.1:")
        assert pool.get("before")["pid"] == old["pid"]
    finally:
        served.native("DELETE", path)
    wait_for(lambda: served.native("GET", path).status_code == 404, "its end")


@pytest.mark.parametrize("version", test_arm.VERSIONS)
def test_azures_management_client_makes_such_a_pool_and_gives_it_another_image(served, images, version):
    seen = test_arm.drive(served, version, "container", f"by-client-{version.replace('_', '-')}", images.tag, "web-2")
    assert seen["made"] == seen["got"] == {
        "kind": "CustomContainer", "state": "Succeeded", "image": images.tag, "port": 80, "limits": [0.5, "1Gi"],
        "env": [["APP_POOL", "by the client", None], ["APP_SECRET", None, "database"]], "secrets": [["database", None]],
    }  # fmt: skip
    assert seen["changed"] == {**seen["made"], "image": "web-2"}
    env = {name: seen[name]["env"] for name in ("before", "before then", "after")}
    assert [one["APP_IMAGE"] for one in env.values()] == ["of the image", "of the image", "of the second"]
    assert {one["APP_SECRET"] for one in env.values()} == {"postgres://of-the-client"}
    assert seen["before then"]["pid"] == seen["before"]["pid"] and seen["missing"]["status"] == 404


# An image that only its registry has.


@pytest.fixture
def far(images, tmp_path):
    """Puts a site's image into the registry, and nowhere else: under this name, with this text."""

    def put(name: str, text: str) -> str:
        busybox = Path(shutil.which("busybox")).read_bytes()
        small = layer(("httpd", busybox, 0o755), ("site", tarfile.DIRTYPE, None), ("site/index.html", text.encode(), 0o644))
        made = Layout(tmp_path / f"{name}-{uuid.uuid4().hex[:6]}", small, config={"Entrypoint": ["/httpd", "-f", "-p", "8080"], "Cmd": ["-h", "/site"]})
        reference = f"{images.registry}/acme/{name}:1"
        skopeo("copy", f"oci:{made.place}:one", f"docker://{reference}")
        return reference

    return put


def credentials(images, user: str = USER) -> dict:
    return {"server": str(images.registry), "username": user, "passwordSecretRef": "password"}


def of_registry(images, name: str, reference: str, password: str | None = PASSWORD) -> dict:
    made = custom(name, reference, 8080, secrets=[{"name": "password", **({"value": password} if password else {})}])
    made["spec"]["customContainerTemplate"]["registryCredentials"] = credentials(images)
    return made


def condition(pool: Web, kind: str) -> dict:
    conditions = pool.server.native("GET", f"/pools/{pool.name}/object").json()["status"]["conditions"]
    [found] = [one for one in conditions if one["type"] == kind]
    return found


def test_an_image_that_only_its_registry_has_is_pulled_for_its_pool(served, images, far):
    reference = far("far", "from afar\n")
    pool = Web(served, "far")
    try:
        # Who is not let in hears so, and so does who wants a session.
        made = pool.native("PUT", json=of_registry(images, "far", reference, "wrong"))
        assert made.status_code == 201, made.text
        wait_for(lambda: condition(pool, "ImagePulled")["reason"] == "Failed", "that it cannot be had")
        assert "uthori" in condition(pool, "ImagePulled")["message"] and condition(pool, "Ready")["status"] == "False"
        refused = check_error(pool.call("GET", "", "user"), 503, "SessionPoolBroken")["message"]
        assert "cannot be pulled" in refused and "uthori" in refused, refused
        assert pool.native("PUT", json=of_registry(images, "far", reference)).status_code == 200
        pool.wait_until_full()
        assert condition(pool, "ImagePulled") == {
            "type": "ImagePulled", "status": "True", "reason": "Pulled", "message": "It is what its reference means."
        }  # fmt: skip
        assert pool.call("GET", "", "user").text == "from afar\n"
        # The password is nowhere to be read, and need not be said again.
        for told in (served.native("GET", "/pools/far/object"), served.native("GET", "/pools"), served.native("GET", "/pools/far")):
            assert told.status_code == 200 and PASSWORD not in told.text
        assert PASSWORD not in served.log() and PASSWORD not in served.run("journal", "export").stdout
        # The tag means another one now: sessions that are there go on, and who is told to look again finds it.
        far("far", "from further\n")
        assert pool.native("PUT", json=of_registry(images, "far", reference, None)).json()["result"] == "unchanged"

        wait_for(lambda: condition(pool, "ImagePulled")["reason"] != "Pulling", "the registry's answer")
        assert condition(pool, "ImagePulled")["reason"] == "Pulled", condition(pool, "ImagePulled")
        assert pool.call("GET", "", "another").text == "from further\n"
        assert pool.call("GET", "", "user").text == "from afar\n"
    finally:
        pool.native("DELETE")


def test_an_image_that_is_pulled_for_a_pool_must_be_signed_where_the_pool_says_so(served, images, far, tmp_path):
    reference = far("signed", "signed\n")
    ours, other = (test_images.key_pair(tmp_path, name) for name in ("ours", "other"))
    pool = Web(served, "signed")

    def applied(key) -> requests.Response:
        made = of_registry(images, "signed", reference)
        made["spec"]["imageKey"] = key.with_suffix(".pub").read_text()
        return pool.native("PUT", json=made)

    def why() -> str:
        wait_for(lambda: condition(pool, "ImagePulled")["reason"] != "Pulling", "the registry's answer")
        return condition(pool, "ImagePulled")["message"]

    try:
        assert applied(ours).status_code == 201
        assert "not signed" in why(), why()
        assert "not signed" in check_error(pool.call("GET", "", "user"), 503, "SessionPoolBroken")["message"]
        asked = requests.get(f"http://{images.registry}/v2/acme/signed/manifests/1", auth=(USER, PASSWORD), timeout=30,
                             headers={"Accept": "application/vnd.oci.image.manifest.v1+json"})  # fmt: skip
        test_images.sign(str(images.registry), tmp_path, asked.headers["Docker-Content-Digest"], ours, repository="acme/signed")
        assert applied(ours).status_code == 200
        pool.wait_until_full()
        assert pool.call("GET", "", "user").text == "signed\n"
        # What it runs was signed by somebody else than it wants now.
        assert check_error(applied(other), 409)["error"]["target"] == "spec.imageKey"
        assert pool.native("DELETE").status_code == 204
        assert applied(other).status_code == 201
        assert "of others" in why(), why()
        check_error(pool.call("GET", "", "another"), 503, "SessionPoolBroken")
        bad = of_registry(images, "signed", reference)
        bad["spec"]["imageKey"] = "-----BEGIN PUBLIC KEY-----\nMFkw\n-----END PUBLIC KEY-----\n"
        assert check_error(pool.native("PUT", json=bad), 400)["error"]["target"] == "spec.imageKey"
    finally:
        pool.native("DELETE")


def test_what_is_wrong_with_registry_credentials_is_said_with_its_field(served, images):
    reference = f"{images.registry}/acme/never:1"
    for change, part in (
        ({"server": "other.test"}, "registryCredentials.server"), ({"username": ""}, "registryCredentials.username"),
        ({"passwordSecretRef": "none"}, "registryCredentials.passwordSecretRef"), ({"identity": "system"}, "registryCredentials.identity"),
    ):  # fmt: skip
        made = of_registry(images, "never", reference)
        made["spec"]["customContainerTemplate"]["registryCredentials"].update(change)
        refused = served.native("PUT", "/pools/never", json=made)
        assert refused.status_code == 400 and part in refused.text, refused.text
    assert served.native("GET", "/pools/never").status_code == 404
    valueless = served.native("PUT", "/pools/never", json=of_registry(images, "never", reference, None))
    assert valueless.status_code == 400 and "containerSecrets[0]" in valueless.text, valueless.text


def test_a_server_that_was_killed_goes_on_with_a_pull(images, far, start):
    reference = far("later", "at last\n")
    server = start("--images", str(images.place), config=settings(custom("near", "alone", 8080)))
    server.bearer = server.token("--role", "admin")
    pool = Web(server, "later")
    assert pool.native("PUT", json=of_registry(images, "later", reference)).status_code == 201
    kill(server.process())
    wait_for(server.is_ready, "the server is back", 60)
    pool.wait_until_full()
    assert pool.call("GET", "", "user").text == "at last\n"


@pytest.mark.parametrize("version", test_arm.VERSIONS)
def test_azures_management_client_makes_a_pool_of_a_registrys_image(served, images, far, version):
    reference = far(f"by-{version.replace('_', '-')}", "for the client\n")
    seen = test_arm.drive(served, version, "registry", f"registry-{version.replace('_', '-')}", reference, str(images.registry), USER, PASSWORD)
    assert seen["refused"]["message"] is None or "uthori" in seen["refused"]["message"], seen["refused"]
    assert seen["made"] == ["Succeeded", str(images.registry), USER, "password"] and seen["secrets"] == [["password", None]]
    assert seen["asked"] == [200, "for the client\n"]


def test_what_is_wrong_with_a_pool_of_containers_is_said_and_makes_nothing(served):
    for changes, part in (
        ({"image": "never-pulled"}, "never-pulled"), ({"port": 0}, "targetPort"), ({"env": [{"name": "A", "secretRef": "none"}]}, "none"),
        ({"life": {"lifecycleType": "Sometimes"}}, "lifecycleType"), ({"container": {"volumes": []}}, "volumes"),
        ({"container": {"probes": [{"type": "Liveness", "httpGet": {"port": 80, "path": "up"}}]}}, "probes[0].httpGet.path"),
        ({"egress": {"mode": "open"}}, "80"),
    ):  # fmt: skip
        words = {"image": "copied", "port": 80, **changes}
        refused = served.native("PUT", "/pools/never", json=custom("never", words.pop("image"), words.pop("port"), **words))
        assert refused.status_code == 400 and part in refused.text, refused.text
        assert served.native("GET", "/pools/never").status_code == 404
    needs_one = {"metadata": {"name": "never"}, "spec": {"containerType": "CustomContainer"}}
    assert "customContainerTemplate" in served.native("PUT", "/pools/never", json=needs_one).text


def test_the_guides_commands_do_what_it_says(images, tmp_path, start):
    get, *use = [example.code for example in COMMANDS]
    probes, identity = (example.code for example in BESIDES)
    # The guide's registry is ours, and has what it names.
    skopeo("copy", f"docker://{images.tag}", f"docker://{images.registry}/team/web:1.4", "--src-tls-verify=false", f"--src-creds={USER}:{PASSWORD}")
    ours = str(images.registry)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/sandpool").symlink_to(PROGRAM)
    store = images.place.parent / "of-the-guide"
    variables = {**CLEAN, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "SANDPOOL_IMAGES": str(store), "TOKEN": PASSWORD, "PASSWORD": PASSWORD}

    def run(code: str, **more: str) -> str:
        done = subprocess.run(["bash", "-euo", "pipefail", "-c", code], cwd=tmp_path, env={**variables, **more}, capture_output=True, text=True,
                              timeout=120, stdin=subprocess.DEVNULL)  # fmt: skip
        assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    assert "registry.example.com" in get and "--username ci" in get
    run(get.replace("registry.example.com", ours).replace("--username ci", f"--username {USER}"))
    config = POOL.code.replace("registry.example.com", ours)
    for before, more in (("            resources:", probes), ("      containerSecrets:", identity)):
        assert config.count(before) == 1
        indent = " " * (len(before) - len(before.lstrip()))
        config = config.replace(before, textwrap.indent(more, indent) + before)
    use = [code.replace("registry.example.com", ours).replace("username: ci", f"username: {USER}") for code in use]
    server = start("--images", str(store), config="listen: 127.0.0.1:0\n" + config)
    # One after the other, in one shell.
    printed = run("\n".join(use), SANDPOOL_HOME=str(server.home), SANDPOOL_ENDPOINT=server.endpoint)
    assert '"/hello/world?identifier=user-1&x=1"' in printed and "\n42\n" in printed and '"DATABASE":"postgres://app@db.example.com"' in printed
    assert '"PLAN":"gold"' in printed and "begins as 0 in /srv" in printed and '"isAll":true' in printed, printed


def test_a_program_that_never_listens_is_the_pools_trouble_too(served):
    """The last of them: it had a minute for it."""
    message = check_error(Web(served, "deaf").call("GET", "", "user", timeout=120), 503, "SessionPoolBroken")["message"]
    assert "80" in message and "begins as 0" in message, message
