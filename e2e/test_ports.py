"""What programs in sessions serve is reached: with a token, by an address, and as a host of its own; and nothing else is. In a pool without
local servers nothing is served at all."""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import signal
import socket
import subprocess
import threading
import time
import urllib.parse
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest
import requests
import websockets
from websockets.sync.client import connect

from documents import ROOT
from sandpool import Server, Target, check_error, descendants, kill, memory, of_process, os, wait_for
from test_mcp import Ours

PROGRAMS = ROOT / "e2e/ports"

# What the server's memory may grow by while much more passes through it.
LIMIT = 16 << 20

MEGABYTE = 1 << 20

CONFIG = """
listen: 127.0.0.1:0
previewHost: sites.test
tenants: [{{ name: acme }}]
pools:
  - metadata: {{ name: python }}
    spec:
      containerType: PythonLTS
      scaleConfiguration: {{ maxConcurrentSessions: 8, readySessionInstances: 1 }}
  - metadata: {{ name: brief }}
    spec:
      containerType: PythonLTS
      scaleConfiguration: {{ maxConcurrentSessions: 4, readySessionInstances: 1 }}
      dynamicPoolConfiguration: {{ lifecycleConfiguration: {{ cooldownPeriodInSeconds: 2 }} }}
  - metadata: {{ name: shut }}
    spec:
      containerType: PythonLTS
      localServers: false
      scaleConfiguration: {{ maxConcurrentSessions: 4, readySessionInstances: 1 }}
      egress:
        mode: allow-list
        allow: ["one.test:{port}"]
        allowAddresses: [127.0.0.0/8]
        hosts: {{ one.test: [127.0.0.1], two.test: [127.0.0.1] }}
  - metadata: {{ name: shut-node }}
    spec:
      containerType: NodeLTS
      localServers: false
      scaleConfiguration: {{ maxConcurrentSessions: 2, readySessionInstances: 1 }}
"""


@dataclass
class Way:
    """One way to a port of a session."""

    base: str
    headers: dict[str, str] = field(default_factory=dict)

    def ask(self, method: str, path: str, **more) -> requests.Response:
        more.setdefault("timeout", 60)
        headers = {**self.headers, **more.pop("headers", {})}
        return requests.request(method, self.base + path, headers=headers, allow_redirects=False, **more)

    def get(self, path: str, **more) -> requests.Response:
        return self.ask("GET", path, **more)

    def socket(self, path: str, **more):
        """A WebSocket."""
        where = urllib.parse.urlsplit(self.base)
        stream = socket.create_connection((where.hostname, where.port))
        headers = dict(self.headers)
        uri = f"ws://{headers.pop('Host', where.netloc)}{where.path}{path}"
        more = {"compression": None, "max_size": None, "proxy": None, **more}
        return connect(uri, sock=stream, additional_headers=headers, **more)

    def raw(self, path: str) -> socket.socket:
        """A connection on which this has been asked, and nothing read."""
        where = urllib.parse.urlsplit(self.base)
        stream = socket.create_connection((where.hostname, where.port), timeout=30)
        headers = {"Host": where.netloc, **self.headers}
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        stream.sendall(f"GET {where.path}{path} HTTP/1.1\r\n{head}\r\n".encode())
        return stream


class Place:
    """A session in which programs of ours serve."""

    def __init__(self, server: Server, pool: str = "python", name: str | None = None):
        self.server, self.pool = server, pool
        self.name = name or f"ports-{uuid.uuid4().hex[:8]}"
        self.path = f"/pools/{pool}/sessions/{self.name}"

    def run(self, query: str = "", **body) -> dict:
        answer = self.server.native("POST", f"{self.path}/executions{query}", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def serve(self, command: str, port: int):
        """Starts a program that goes on after its command, and waits until it listens."""
        done = self.run(command=f"({command} >log-{port} 2>&1 &)")
        assert done["exitCode"] == 0, done
        listens = f"grep -q ':{port:04X} .* 0A ' /proc/net/tcp /proc/net/tcp6"
        wait_for(lambda: self.run(command=listens)["exitCode"] == 0, f"somebody listens at {port}")

    def serve_ours(self, program: str, port: int):
        given = self.server.native("PUT", f"{self.path}/files/{program}", data=(PROGRAMS / program).read_bytes())
        assert given.status_code == 200, given.text
        self.serve(f"{'node' if program.endswith('.js') else 'python3'} {program} {port}", port)

    def with_token(self, port: int) -> Way:
        return Way(f"{self.server.endpoint}{self.path}/ports/{port}", {"Authorization": f"Bearer {self.server.bearer}"})

    def address(self, port: int, **more) -> dict:
        made = self.server.native("POST", f"{self.path}/previews", json={"port": port, **more})
        assert made.status_code == 201, made.text
        return made.json()

    def by_address(self, port: int, **more) -> Way:
        return by(self.address(port, **more))

    def by_host(self, port: int, **more) -> Way:
        return as_host(self.server, self.address(port, **more))

    def ways(self, port: int) -> dict[str, Way]:
        made = self.address(port)
        return {"token": self.with_token(port), "path": by(made), "host": as_host(self.server, made)}

    def is_busy(self) -> bool:
        return self.server.native("GET", self.path).json()["busy"] > 0

    def end(self):
        self.server.native("DELETE", self.path)


def by(made: dict) -> Way:
    return Way(made["url"].rstrip("/"))


def as_host(server: Server, made: dict) -> Way:
    """Where its name leads is the test's to say."""
    return Way(server.endpoint, {"Host": urllib.parse.urlsplit(made["hostUrl"]).netloc})


every_way = pytest.mark.parametrize("way", ["token", "path", "host"])


@pytest.fixture(scope="module")
def site(server):
    """A session of the shared server: our site at port 8000, the hostile one at 8001, Python's own server at 8080."""
    place = Place(server)
    place.serve_ours("site.py", 8000)
    place.serve_ours("hostile.py", 8001)
    place.serve("python3 -m http.server --bind 127.0.0.1 --directory /mnt/data 8080", 8080)
    yield place
    place.end()


@pytest.fixture(scope="module")
def target():
    """What sessions reach through the proxy."""
    target = Target(lambda _: (b"hi", {}))
    yield target.port
    target.close()


@pytest.fixture(scope="module")
def other(target):
    """A server of these tests' own."""
    server = Server(config=CONFIG.format(port=target))
    yield server
    server.remove()


# The ways in


@every_way
def test_what_a_session_serves_is_reached(site, way):
    here = site.ways(8080)[way]
    assert "site.py" in here.get("/").text
    answer = here.get("/site.py")
    assert answer.content == (PROGRAMS / "site.py").read_bytes() and "python" in answer.headers["content-type"]
    assert here.get("/not-there").status_code == 404 and "x-ms-error-code" not in here.get("/not-there").headers
    head = here.ask("HEAD", "/site.py")
    assert (head.status_code, head.headers["content-length"], head.content) == (200, str(len(answer.content)), b"")


@every_way
def test_a_program_hears_what_it_is_asked_and_nothing_that_opens_doors(site, way):
    here = site.ways(8000)[way]
    sent = {"x-ms-apikey": "key-of-somebody", "Cookie": "who=me", "X-Mine": "1", "Connection": "X-Hop", "X-Hop": "1"}
    if way != "token":
        sent["Authorization"] = "Bearer of-somebody"
    asked = here.ask("PUT", "/a%2Fb/%20c?d=e%26&f", headers=sent, data=b"hello").json()
    assert (asked["method"], asked["target"], asked["length"]) == ("PUT", "/a%2Fb/%20c?d=e%26&f", 5)
    headers = {name.lower(): value for name, value in asked["headers"]}
    assert len(headers) == len(asked["headers"]), asked
    assert headers["x-mine"] == "1" and headers["host"] == "localhost:8000"
    assert not {"authorization", "x-ms-apikey", "x-hop"} & headers.keys(), headers
    assert site.server.bearer not in str(asked) and "of-somebody" not in str(asked)
    where = urllib.parse.urlsplit(here.base)
    assert headers["x-forwarded-host"] == here.headers.get("Host", where.netloc)
    assert headers.get("x-forwarded-prefix", "") == where.path
    # Cookies are a site's own where it is a host, and nobody's below ours.
    assert headers.get("cookie") == ("who=me" if way == "host" else None)


@every_way
def test_any_path_and_query_are_the_programs_to_read(site, way):
    """Bytes that are no UTF-8 too, and what looks like a parameter of ours."""
    here = site.ways(8000)[way]
    where = urllib.parse.urlsplit(here.base)
    targets = ["/a%ff", "/?a=%ff", "/a/../b/./c", "//a", "/?a=b?c&&d", "/?wait=x"]
    if way != "token":
        targets.append("/?tenant=acme")
    for target in targets:
        client = http.client.HTTPConnection(where.hostname, where.port, timeout=20)
        client.request("GET", where.path + target, headers=here.headers)
        answer = client.getresponse()
        body = answer.read()
        client.close()
        assert answer.status == 200 and json.loads(body)["target"] == target, (target, body)


@every_way
def test_what_is_said_of_the_way_is_the_servers_word(site, way):
    here = site.ways(8000)[way]
    where = urllib.parse.urlsplit(here.base)
    forged = {"X-Forwarded-Host": "elsewhere.test", "X-Forwarded-Prefix": "/elsewhere"}
    headers = {name.lower(): value for name, value in here.get("/", headers=forged).json()["headers"]}
    assert headers["x-forwarded-host"] == here.headers.get("Host", where.netloc)
    assert headers.get("x-forwarded-prefix", "") == where.path


@every_way
def test_in_a_browser_a_program_is_a_host_of_its_own_or_nobody(site, way):
    answer = site.ways(8000)[way].get("/kept")
    ours = {"set-cookie", "strict-transport-security", "clear-site-data", "service-worker-allowed"}
    assert answer.headers["x-own"] == "kept"
    if way == "host":
        assert ours <= {name.lower() for name in answer.headers}
        assert "mine=1; Path=/" in answer.headers["set-cookie"] and "other=2" in answer.headers["set-cookie"]
        assert "content-security-policy" not in answer.headers
    else:
        assert not ours & {name.lower() for name in answer.headers}
        policy = answer.headers["content-security-policy"].split()
        assert policy[0] == "sandbox" and "allow-scripts" in policy and "allow-same-origin" not in policy


@pytest.mark.parametrize("way", ["token", "path"])
def test_nothing_comes_back_that_a_browser_would_do_at_all_of_our_origin(site, way):
    """Report what else is asked there to somebody, or ask it elsewhere."""
    kept = {name.lower() for name in site.ways(8000)[way].get("/kept").headers}
    assert not {"alt-svc", "report-to", "nel"} & kept


def test_a_cookie_of_one_host_is_not_given_to_its_neighbours(site):
    """Other sessions are hosts below the same name."""
    cookies = site.by_host(8000).get("/kept").raw.headers.getlist("set-cookie")
    assert len(cookies) >= 2 and not [cookie for cookie in cookies if "domain" in cookie.lower()]


def test_cookies_that_come_in_pieces_are_one_header(site):
    """As browsers send them over HTTP/2, and as no program over HTTP/1.1 expects them."""
    here = site.by_host(8000)
    words = ["curl", "-sS", "--http2-prior-knowledge", here.base, "-H", f"Host: {here.headers['Host']}"]
    done = subprocess.run([*words, "-H", "Cookie: a=1", "-H", "Cookie: b=2"], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    cookies = [value for name, value in json.loads(done.stdout)["headers"] if name.lower() == "cookie"]
    assert cookies == ["a=1; b=2"]


def test_every_method_has_its_body(site):
    """Also those that mean nothing by one elsewhere."""
    for here in site.ways(8000).values():
        for method in ("POST", "PUT", "PATCH", "DELETE", "OPTIONS", "GET"):
            body = f"{method} with a body".encode()
            asked = here.ask(method, "/x", data=body, timeout=10).json()
            assert (asked["method"], asked["sha256"]) == (method, hashlib.sha256(body).hexdigest())


@every_way
def test_a_megabyte_passes_both_ways_on_a_websocket(site, way):
    data = os.urandom(MEGABYTE)
    with site.ways(8000)[way].socket("/socket") as echo:
        for message in (data, data.hex()[:MEGABYTE], b"", "short"):
            echo.send(message)
            assert echo.recv(30) == message
        assert echo.ping().wait(10), "a ping is answered"
        # Many at once, in their order.
        for number in range(200):
            echo.send(str(number))
        assert [echo.recv(30) for _ in range(200)] == [str(number) for number in range(200)]
        echo.close(1000)
    assert echo.close_code == 1000


@pytest.fixture(scope="module")
def events(server):
    place = Place(server, "node")
    place.serve_ours("events.js", 8000)
    yield place
    place.end()


@every_way
def test_events_come_when_they_happen(events, way):
    here = events.ways(8000)[way]
    answer = here.get("/", stream=True, timeout=20)
    assert answer.headers["content-type"] == "text/event-stream"
    lines = filter(None, answer.iter_lines(chunk_size=1, decode_unicode=True))
    # The next one happens only when this one has come.
    for number in range(3):
        assert next(lines) == f"data: {number}"
        assert here.get("/next").text == "told\n"
    assert list(lines) == []


class Peak:
    """How much a process's memory grows meanwhile."""

    def __init__(self, server: Server):
        self.pid = server.process()
        self.grown, self.stop = 0, threading.Event()

    def __enter__(self):
        before = memory(self.pid)

        def watch():
            while not self.stop.wait(0.01):
                self.grown = max(self.grown, memory(self.pid) - before)

        self.thread = threading.Thread(target=watch)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join()


@every_way
def test_large_bodies_pass_without_being_held(site, way):
    here, size = site.ways(8000)[way], 50 * MEGABYTE
    piece = os.urandom(MEGABYTE)
    whole = hashlib.sha256(piece * 50).hexdigest()
    with Peak(site.server) as peak:
        sent = here.ask("POST", "/count", data=(piece for _ in range(50))).json()
        assert (sent["length"], sent["sha256"]) == (size, whole)
        assert dict(sent["headers"]).get("transfer-encoding") == "chunked"
        sent = here.ask("POST", "/count", data=piece * 50).json()
        assert (sent["length"], sent["sha256"]) == (size, whole)
        got = here.get(f"/bytes/{size}", stream=True)
        assert sum(len(part) for part in got.iter_content(1 << 16)) == size
        # Who reads nothing is waited for.
        idle = here.raw(f"/bytes/{size}")
        time.sleep(0.5)
        idle.close()
    assert peak.grown < LIMIT, f"{peak.grown >> 20} MiB more"


def test_a_hundred_connections_at_once(site):
    here = site.by_address(8000)
    began = time.monotonic()
    with ThreadPoolExecutor(100) as people:
        answers = list(people.map(lambda _: here.get("/slow"), range(100)))
    assert {answer.text for answer in answers} == {"slow\n"}
    assert time.monotonic() - began < 30, "they were not answered one after the other"
    wait_for(lambda: not site.is_busy(), "all of them are let go")


def test_a_server_at_version_6_alone_is_reached(site):
    site.serve("python3 -m http.server --bind ::1 --directory /mnt/data 8006", 8006)
    assert "site.py" in site.with_token(8006).get("/").text
    assert "site.py" in site.by_address(8006).get("/").text


def test_where_nobody_listens_is_told(site):
    for here in site.ways(9999).values():
        error = check_error(here.get("/"), 502, "SessionPortRefused")
        assert "9999" in error["message"]
    for port in ("0", "65536", "http", "-1"):
        check_error(site.server.native("GET", f"{site.path}/ports/{port}/"), 400)


# What means harm

REFUSED = """nothing garbage another-protocol half-a-head no-head version status many-headers two-lengths no-length bare-return nul
name-with-space folded switch switch-to-nothing endless-header endless-line endless-reason""".split()


def test_what_is_no_answer_is_a_clear_refusal(site):
    with Peak(site.server) as peak:
        for here in site.ways(8001).values():
            for path in REFUSED:
                answer = here.get("/" + path, timeout=20)
                error = check_error(answer, 502, "SessionPortUnusable")
                assert "8001" in error["message"] and "stolen" not in str(answer.headers) + answer.text, path
        assert site.server.is_ready()
    assert peak.grown < LIMIT, f"{peak.grown >> 20} MiB more"


@pytest.mark.parametrize("path", ["short", "bad-chunk", "cut-chunk", "both"])
def test_a_body_that_is_cut_is_not_taken_for_a_whole_one(site, path):
    for here in site.ways(8001).values():
        with pytest.raises(requests.RequestException):
            assert "smuggled" not in here.get("/" + path, timeout=20).text


def test_one_request_has_one_answer(site):
    """Whatever a program says after it, and whoever asks next on the connection."""
    for path, status, body in (("two-answers", 200, b"hi"), ("body-of-none", 204, b"")):
        for here in site.ways(8001).values():
            where = urllib.parse.urlsplit(here.base)
            client = http.client.HTTPConnection(where.hostname, where.port, timeout=20)
            client.request("GET", f"{where.path}/{path}", headers=here.headers)
            answer = client.getresponse()
            assert (answer.status, answer.read(), answer.getheader("set-cookie")) == (status, body, None)
            client.request("GET", "/healthz")
            answer = client.getresponse()
            assert answer.status == 200 and b"second" not in answer.read()
            client.close()


def slowest(site, ask, limit: float = 3) -> float:
    """How long the server takes for an easy question at most, while `ask` waits for its answer."""
    begun = threading.Thread(target=lambda: pytest.raises(requests.RequestException, ask, timeout=limit))
    begun.start()
    times = []
    while begun.is_alive():
        began = time.monotonic()
        assert requests.get(f"{site.server.endpoint}/healthz", timeout=20).status_code == 200
        times.append(time.monotonic() - began)
        time.sleep(0.05)
    return sorted(times)[len(times) * 9 // 10]


def test_who_never_answers_holds_nobody_up_and_is_let_go_with_who_asked(site):
    here = site.by_address(8001)
    with ThreadPoolExecutor(20) as people:
        waiting = [people.submit(lambda: pytest.raises(requests.Timeout, here.get, "/drip", timeout=3)) for _ in range(20)]
        wait_for(site.is_busy, "they wait")
        assert slowest(site, lambda **more: here.get("/drip", **more)) < 0.5
        for one in waiting:
            one.result()
    wait_for(lambda: not site.is_busy(), "the connections end with those who asked")


def test_answers_that_are_none_without_end_cost_the_server_little(site):
    """A hundred, and a hundred, and so on: a head that does not come is as long as a head may be."""
    error = check_error(site.by_address(8001).get("/continue", timeout=10), 502, "SessionPortUnusable")
    assert "8001" in error["message"]


# Addresses


def test_an_address_is_good_for_its_time(site):
    brief, long = site.address(8000, ttlSeconds=2), site.address(8000)
    assert by(brief).get("/").status_code == 200
    open_before = by(brief).socket("/socket")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", brief["expiresAt"]) and brief["port"] == 8000

    def is_over() -> bool:
        return by(brief).get("/").status_code == 410

    wait_for(is_over, "its time is over", 5)
    for here in (by(brief), as_host(site.server, brief)):
        check_error(here.get("/"), 410, "PreviewExpired")
    with open_before as echo:
        echo.send("still here")
        assert echo.recv(10) == "still here", "what is open stays"
    assert by(long).get("/").status_code == 200
    for body, field in (({"port": 0}, "port"), ({"port": 8000, "ttlSeconds": 0}, "ttlSeconds"), ({"port": 8000, "ttlSeconds": 604801}, "ttlSeconds")):
        refused = check_error(site.server.native("POST", f"{site.path}/previews", json=body), 400)
        assert refused["error"]["target"] == field
    for body in ({}, {"port": 70000}, {"port": 8000, "ttl": 1}):
        check_error(site.server.native("POST", f"{site.path}/previews", json=body), 400)
    check_error(site.server.native("POST", "/pools/python/sessions/nobody-here/previews", json={"port": 8000}), 404)


def test_one_sign_changed_and_an_address_is_none(site):
    made = site.address(8000)
    word = made["url"].rstrip("/").rpartition("/")[2]
    assert urllib.parse.urlsplit(made["hostUrl"]).hostname == f"{word}.preview.localhost" and len(word) < 64
    client = requests.Session()
    for at in range(len(word)):
        other = word[:at] + ("b" if word[at] == "a" else "a") + word[at + 1 :]
        check_error(client.get(made["url"].replace(word, other)), 404, "PreviewNotFound")
        host = urllib.parse.urlsplit(made["hostUrl"]).netloc.replace(word, other)
        check_error(client.get(site.server.endpoint, headers={"Host": host}), 404, "PreviewNotFound")
    for other in (word[:-1], word + "a", word[1:], "a", "%00", "..%2f"):
        assert client.get(made["url"].replace(word, other)).status_code == 404
    # A host's name has no case.
    host = urllib.parse.urlsplit(made["hostUrl"]).netloc.upper()
    assert client.get(site.server.endpoint, headers={"Host": host}).status_code == 200


def test_an_address_ends_with_its_session_and_is_not_the_next_ones(server):
    place = Place(server)
    place.serve_ours("site.py", 8000)
    made = place.address(8000)
    with by(made).socket("/socket") as echo:
        echo.send("hello")
        assert echo.recv(10) == "hello"
        place.end()
        with pytest.raises(websockets.ConnectionClosed):
            echo.recv(15)
    for here in (by(made), as_host(server, made)):
        check_error(here.get("/"), 404, "PreviewNotFound")
    again = Place(server, name=place.name)
    again.serve_ours("site.py", 8000)
    for here in (by(made), as_host(server, made)):
        check_error(here.get("/"), 404, "PreviewNotFound")
    assert again.by_address(8000).get("/").status_code == 200
    again.end()


def test_a_session_that_dies_closes_what_was_open(server):
    place = Place(server)
    place.serve_ours("site.py", 8000)
    here = place.by_address(8000)
    with here.socket("/socket") as echo:
        kill(agent_of(place))
        with pytest.raises(websockets.ConnectionClosed):
            echo.recv(15)
    assert here.get("/").status_code in (404, 410)
    place.end()


def agent_of(place: Place) -> int:
    """The first process of a session's sandbox, seen as root."""
    mark = uuid.uuid4().hex
    place.run(command=f"touch /mnt/data/{mark}")
    for pid in descendants(place.server.launcher):
        inside = re.search(r"^NSpid:.*\t1$", of_process(pid, "status"), re.M)
        if inside and os.path.exists(f"/proc/{pid}/root/mnt/data/{mark}"):
            return pid
    pytest.fail("the sandbox has no first process")


def test_the_command_line_makes_addresses(site):
    url = site.server.run("session", "preview", site.name, "8000").stdout.strip()
    assert requests.get(url + "some/where", timeout=20).json()["target"] == "/some/where"
    made = site.server.json("session", "preview", site.name, "8000", "--ttl", "1")
    assert made.keys() == {"url", "hostUrl", "port", "expiresAt"}
    wait_for(lambda: requests.get(made["url"], timeout=20).status_code == 410, "its time is over", 5)
    refused = site.server.run("session", "preview", "nobody-here", "8000", check=False)
    assert refused.returncode == 1 and "nobody-here" in refused.stderr


def test_only_who_may_run_code_reaches_a_port(site):
    ports, previews = f"{site.path}/ports/8000/", f"{site.path}/previews"

    def reach(token: str) -> tuple[int, int]:
        made = site.server.native("POST", previews, token, json={"port": 8000})
        return site.server.native("GET", ports, token).status_code, made.status_code

    assert reach(site.server.token("--role", "reader")) == (403, 403)
    assert reach(site.server.token("--pool", "node")) == (403, 403)
    assert reach(site.server.token("--session", "another-one")) == (403, 403)
    assert reach(site.server.token("--session", site.name)) == (200, 201)
    assert reach("none") == (401, 401)
    assert requests.get(site.server.endpoint + ports, timeout=20).status_code == 401
    # A cookie or a parameter is no token.
    assert requests.get(site.server.endpoint + ports, cookies={"Authorization": site.server.bearer}, timeout=20).status_code == 401


def test_another_tenants_port_is_not_there(other):
    place = Place(other)
    place.serve_ours("site.py", 8000)
    acme = other.token("--tenant", "acme")
    nobody = check_error(other.native("GET", "/pools/python/sessions/nobody-here/ports/8000/", acme), 404)
    theirs = check_error(other.native("GET", f"{place.path}/ports/8000/", acme), 404)
    assert theirs["message"] == nobody["message"].replace("nobody-here", place.name)
    check_error(other.native("POST", f"{place.path}/previews", acme, json={"port": 8000}), 404)
    # The same name is another session of theirs.
    assert other.native("PUT", place.path, acme).status_code == 201
    check_error(other.native("GET", f"{place.path}/ports/8000/", acme), 502, "SessionPortRefused")
    assert place.with_token(8000).get("/").status_code == 200
    # The settings say below which name addresses are hosts.
    made = place.address(8000)
    assert urllib.parse.urlsplit(made["hostUrl"]).hostname.endswith(".sites.test")
    assert as_host(other, made).get("/").status_code == 200
    elsewhere = urllib.parse.urlsplit(made["hostUrl"]).netloc.replace("sites.test", "preview.localhost")
    assert Way(other.endpoint, {"Host": elsewhere}).get("/").status_code == 404
    place.end()


# In the life of a session and of the server


def test_a_session_with_a_connection_does_not_cool_down_and_does_afterwards(other):
    place = Place(other, "brief")
    place.serve_ours("site.py", 8000)
    made = place.address(8000)

    def is_there() -> bool:
        # Looking at it is no use.
        return place.name in [row["identifier"] for row in other.native("GET", "/pools/brief/sessions").json()["value"]]

    stream = by(made).get("/events", stream=True)
    lines = stream.iter_lines(chunk_size=1)
    end = time.monotonic() + 5
    while time.monotonic() < end:
        next(lines)
        assert is_there()
    stream.close()
    with by(made).socket("/socket"):
        time.sleep(4)
        assert is_there(), "a connection on which nothing is said is one"
    wait_for(lambda: not is_there(), "the end of a session that nobody uses", 10)
    check_error(by(made).get("/"), 404, "PreviewNotFound")


def test_addresses_outlive_a_server_that_is_killed_and_connections_do_not(other):
    place = Place(other)
    place.serve_ours("site.py", 8000)
    made = place.address(8000)
    with by(made).socket("/socket") as echo:
        pid = other.process()
        kill(pid)
        with pytest.raises(websockets.ConnectionClosed):
            echo.recv(15)
    wait_for(lambda: other.process() not in (0, pid) and other.is_ready(), "the server's return")
    # At once, though the session's agent may have yet to answer.
    for here in (by(made), as_host(other, made), place.with_token(8000)):
        assert here.get("/").status_code == 200
    with by(made).socket("/socket") as echo:
        echo.send("hello")
        assert echo.recv(10) == "hello"
    place.end()


def test_without_the_key_that_signed_it_an_address_is_none(other):
    """As docs/ports.md says how all of them are ended at once."""
    place = Place(other)
    place.serve_ours("site.py", 8000)
    made = place.address(8000)
    assert (other.home / "keys/previews").stat().st_mode & 0o777 == 0o600, "for nobody else"
    (other.home / "keys/previews").unlink()
    pid = other.process()
    kill(pid)
    wait_for(lambda: other.process() not in (0, pid) and other.is_ready(), "the server's return")
    for here in (by(made), as_host(other, made)):
        check_error(here.get("/"), 404, "PreviewNotFound")
    assert place.by_address(8000).get("/").status_code == 200
    place.end()


def test_after_a_kill_an_execution_is_asked_about_once_and_found(other):
    """Who asks is answered when the session's agent has, and not told before that nothing is there."""
    place = Place(other)
    mine = str(uuid.uuid4())
    assert place.run(id=mine, code="x = 41\nprint('hi')")["stdout"] == "hi\n"
    agent, pid = agent_of(place), other.process()
    os.kill(agent, signal.SIGSTOP)
    try:
        kill(pid)
        wait_for(lambda: other.process() not in (0, pid) and other.is_ready(), "the server's return")
        record = f"{place.path}/executions/{mine}"
        calls = {
            "record": lambda: other.native("GET", record),
            "events": lambda: other.native("GET", record + "/events", headers={"Accept": "text/event-stream"}),
            "list": lambda: other.native("GET", f"{place.path}/executions"),
            "stop": lambda: other.native("POST", record + "/stop"),
            "run": lambda: other.native("POST", f"{place.path}/executions?existing=true", json={"code": "x + 1"}),
            "port": lambda: other.native("GET", f"{place.path}/ports/9999/"),
        }
        with ThreadPoolExecutor(len(calls)) as people:
            answers = {name: people.submit(call) for name, call in calls.items()}
            time.sleep(1)
            early = {name: answer.result().status_code for name, answer in answers.items() if answer.done()}
            os.kill(agent, signal.SIGCONT)
            answers = {name: answer.result() for name, answer in answers.items()}
    finally:
        os.kill(agent, signal.SIGCONT)
    statuses = {name: answer.status_code for name, answer in answers.items()}
    assert statuses == {"record": 200, "events": 200, "list": 200, "stop": 204, "run": 200, "port": 502}, (early, statuses)
    assert not early, "nobody could know yet"
    assert answers["record"].json()["stdout"] == "hi\n" and answers["run"].json()["result"]["json"] == 42
    assert mine in [row["id"] for row in answers["list"].json()["value"]]
    place.end()


def test_where_a_session_must_be_there_none_is_made(server):
    place = Place(server)
    executions = f"{place.path}/executions?existing=true"
    for body in ({"code": "1"}, {"command": "true"}):
        check_error(server.native("POST", executions, json=body), 404, "NoSessionFoundError")
    check_error(server.native("GET", place.path), 404)
    check_error(server.native("POST", f"{place.path}/executions?existing=1", json={"code": "1"}), 400)
    assert place.run("?existing=false", code="x = 41")["outcome"] == "succeeded"
    assert place.run("?existing=true", code="x + 1")["result"]["json"] == 42
    place.end()
    check_error(server.native("POST", executions, json={"code": "1"}), 404, "NoSessionFoundError")


# Without servers of their own

ATTEMPTS = """
import errno, socket

def attempt(act):
    try:
        act()
    except OSError as error:
        return errno.errorcode[error.errno]

def v4(): return socket.socket(socket.AF_INET)
def v6(): return socket.socket(socket.AF_INET6)

", ".join(f"{name} {attempt(act)}" for name, act in {
    "bind": lambda: v4().bind(("127.0.0.1", 8000)),
    "bind-any": lambda: v4().bind(("", 0)),
    "bind-6": lambda: v6().bind(("::1", 8000)),
    "bind-egress": lambda: v4().bind(("127.0.0.1", 3128)),
    "connect": lambda: v4().connect(("127.0.0.1", 8000)),
    "connect-6": lambda: v6().connect(("::1", 8000)),
    "connect-away": lambda: v4().connect(("192.0.2.1", 8000)),
}.items())
"""

REFUSALS = ["bind", "bind-any", "bind-6", "bind-egress", "connect", "connect-6", "connect-away"]


@pytest.fixture(scope="module")
def shut(other):
    place = Place(other, "shut")
    yield place
    place.end()


@pytest.fixture(scope="module")
def shut_node(other):
    place = Place(other, "shut-node")
    yield place
    place.end()


def test_nothing_is_bound_or_connected_to_where_a_pool_has_no_local_servers(shut, shut_node):
    refused = ", ".join(f"{name} EACCES" for name in REFUSALS)
    assert shut.run(code=ATTEMPTS)["result"]["json"] == refused
    # The same in a program of a command.
    attempts, _, shown = ATTEMPTS.strip().rpartition("\n\n")
    assert shut.run(argv=["python3", "-c", f"{attempts}\nprint({shown})"])["stdout"] == refused + "\n"
    bash = shut.run(command="exec 3<>/dev/tcp/127.0.0.1/8000")
    assert bash["exitCode"] != 0 and "Permission denied" in bash["stderr"]
    served = shut.run(command="python3 -m http.server 8000")
    assert served["exitCode"] == 1 and "Permission denied" in served["stderr"]
    listen = "await new Promise(r => require('http').createServer().on('error', e => r(e.code)).listen(8000, () => r('up')))"
    dial = "await new Promise(r => require('net').connect(8000, '127.0.0.1').on('error', e => r(e.code)).on('connect', () => r('up')))"
    assert [shut_node.run(code=code)["result"]["json"] for code in (listen, dial)] == ["EACCES", "EACCES"]


# A socket that listens gets a port without asking for one; data may go with a connection's first packet, without a call that connects.
BESIDE = """
import errno, socket
served = socket.socket()
served.settimeout(2)
served.listen()
heard = "nothing"
for send in (
    lambda one, where: one.sendto(b"hello", socket.MSG_FASTOPEN, where),
    lambda one, where: one.sendmsg([b"hello"], [], socket.MSG_FASTOPEN, where),
):
    try:
        send(socket.socket(), ("127.0.0.1", served.getsockname()[1]))
        heard = served.accept()[0].recv(5).decode()
    except OSError as error:
        pass
heard
"""


def test_no_way_beside_bind_and_connect_makes_a_local_server(shut):
    assert shut.run(code=BESIDE)["result"]["json"] == "nothing"


def test_where_a_pool_has_no_local_servers_its_ports_say_so(shut, shut_node):
    for place in (shut, shut_node):
        assert place.run(command="true")["exitCode"] == 0
        for here in place.ways(8000).values():
            error = check_error(here.get("/"), 502, "SessionPortRefused")
            assert "may have no servers of their own" in error["message"]
    # What leads out is no program's, in this pool as in any other.
    check_error(shut.with_token(3128).get("/"), 400)


def test_where_a_pool_has_no_local_servers_all_else_works(shut, target):
    fetched = shut.run(command=f"curl -s http://one.test:{target}/")
    assert fetched["stdout"] == "hi"
    code = f"import urllib.request; urllib.request.urlopen('http://one.test:{target}/', timeout=20).read().decode()"
    assert shut.run(code=code)["result"]["json"] == "hi"
    assert shut.run(command=f"curl -sf http://two.test:{target}/")["exitCode"] != 0
    # Files, in both directions, and what listens at a path.
    assert shut.server.native("PUT", f"{shut.path}/files/in/a.txt", data=b"abc").status_code == 200
    assert shut.run(code="open('/mnt/data/in/a.txt').read()")["result"]["json"] == "abc"
    assert shut.server.native("GET", f"{shut.path}/files/in/a.txt").content == b"abc"
    talk = "import socket; a, b = socket.socketpair(); s = socket.socket(socket.AF_UNIX); s.bind('/tmp/s'); s.listen(); a.send(b'x'); b.recv(1).decode()"
    assert shut.run(code=talk)["result"]["json"] == "x"
    # The Model Context Protocol.
    ours = Ours(shut.server)
    handle = ours("open_session", pool="shut")["session_id"]
    assert ours("run_code", session_id=handle, code="6 * 7")["result"] == "42"
    assert ours("run_command", session_id=handle, command="echo hi")["stdout"] == "hi\n"
    ours("close_session", session_id=handle)
