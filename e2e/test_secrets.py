"""Secrets by placeholder: code uses a key that never enters its sandbox."""

from __future__ import annotations

import base64
import ssl
import subprocess
from collections import defaultdict

import pytest

from sandpool import Server, Target, authority, command, kill, wait_for

VALUE = "sk-test-5a1f0c2e9b7d4e68"
OTHER = "other-value-0123456789"

CONFIG = """
listen: 127.0.0.1:0
pools:
  - apiVersion: sandpool.dev/v1alpha1
    kind: SessionPool
    metadata: {{ name: {name} }}
    spec:
      containerType: {kind}
      isolation: {level}
      scaleConfiguration: {{ maxConcurrentSessions: 4, readySessionInstances: 1 }}
      egress:
        mode: allow-list
        allow: ["api.test:{port}", "other.test:{port}"]
        allowAddresses: [127.0.0.0/8]
        hosts: {{ api.test: [127.0.0.1], other.test: [127.0.0.1] }}
      secrets:
        - name: API_KEY
          from: {{ file: {home}/key }}
          hosts: ["api.test:{port}"]
          trust: {home}/own-ca.pem
        - name: SECOND_KEY
          from: {{ file: {home}/second }}
          hosts: ["api.test:{port}", "other.test:{port}"]
"""


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    """A TLS server with a certificate of an authority of its own; it remembers what it was sent, and says it again."""
    place = tmp_path_factory.mktemp("target")
    seen = defaultdict(list)

    def answer(request):
        given = request.headers.get("Authorization")
        seen[request.headers["Host"].partition(":")[0]].append((given, request.path))
        # As those do that help with debugging.
        return f"{given} {request.path}\n".encode() * 3, {"X-Seen": given or ""}

    context, trusted = authority(place, "api.test", "other.test")
    target = Target(answer, context)
    target.seen, target.authority = seen, trusted
    yield target
    target.close()


@pytest.fixture
def serve(target, tmp_path):
    servers = []

    def started(name: str, kind: str, level: str = "process") -> Server:
        (tmp_path / "key").write_text(VALUE + "\n")
        (tmp_path / "second").write_text(OTHER)
        (tmp_path / "own-ca.pem").write_text(target.authority)
        config = CONFIG.format(name=name, kind=kind, level=level, port=target.port, home=tmp_path)
        servers.append(Server(config=config))
        target.seen.clear()
        return servers[-1]

    yield started
    for server in servers:
        server.remove()


# Everything that code can read of its sandbox: memory of its own processes, their environments, and files.
SEARCH = """
import glob, os
needle = bytes.fromhex("{half}") + bytes.fromhex("{rest}")
found = []
for process in os.listdir("/proc"):
    if not process.isdigit():
        continue
    try:
        if needle in open(f"/proc/{{process}}/environ", "rb").read():
            found.append(f"environ of {{process}}")
        with open(f"/proc/{{process}}/maps") as maps, open(f"/proc/{{process}}/mem", "rb", 0) as memory:
            for line in maps:
                place, rights = line.split()[:2]
                if not rights.startswith("rw") or "[v" in line:
                    continue
                begin, end = (int(number, 16) for number in place.split("-"))
                memory.seek(begin)
                while begin < end:
                    piece = memory.read(min(end - begin, 1 << 22))
                    if not piece:
                        break
                    at = piece.find(needle)
                    # Our own search has it too.
                    while at >= 0:
                        if begin + at not in own(needle):
                            found.append(f"memory of {{process}} at {{begin + at:x}}")
                        at = piece.find(needle, at + 1)
                    begin += len(piece)
    except OSError:
        pass
for directory in ("/mnt/data", "/tmp", "/home/sandbox", "/dev/shm", "/etc"):
    for name in glob.glob(directory + "/**", recursive=True, include_hidden=True):
        try:
            if os.path.isfile(name) and needle in open(name, "rb").read():
                found.append(name)
        except OSError:
            pass
found
"""


def run(server: Server, code: str, pool: str = "python", session: str = "user"):
    answer = server.native("POST", f"/pools/{pool}/sessions/{session}/executions", json={"code": code})
    assert answer.status_code == 200 and answer.json()["outcome"] == "succeeded", answer.text
    return answer.json()["result"]


def test_python_and_curl_use_a_key_that_they_do_not_have(serve, target):
    server = serve("python", "PythonLTS")
    url = f"https://api.test:{target.port}"
    placeholder = run(server, "import os; os.environ['API_KEY']")["json"]
    assert placeholder.startswith("sandpool-api-key-") and VALUE not in placeholder
    # The standard library, which looks at the image's certificates; and requests, which has its own.
    said = run(server, f"""
import os, urllib.request, requests
key = os.environ['API_KEY']
one = urllib.request.urlopen(urllib.request.Request('{url}/urllib', headers={{'Authorization': 'Bearer ' + key}}))
two = requests.get('{url}/requests?key=' + key, auth=('me', key))
(one.headers['X-Seen'], one.read().decode(), two.text)""")["text"]
    # What comes back has the placeholder again.
    assert VALUE not in said and placeholder in said
    assert target.seen["api.test"][0] == (f"Bearer {VALUE}", "/urllib")
    basic, path = target.seen["api.test"][1]
    assert base64.b64decode(basic.removeprefix("Basic ")).decode() == f"me:{VALUE}" and path == f"/requests?key={VALUE}"
    # curl, in a command.
    curl = {"command": f"curl -sS -H \"Authorization: Bearer $API_KEY\" {url}/curl"}
    answer = server.native("POST", "/pools/python/sessions/user/executions", json=curl).json()
    assert answer["exitCode"] == 0 and placeholder in answer["stdout"], answer
    assert target.seen["api.test"][2] == (f"Bearer {VALUE}", "/curl")
    # It is nowhere in the sandbox.
    half, rest = VALUE[:12].encode().hex(), VALUE[12:].encode().hex()
    own = "import ctypes\ndef own(needle):\n    import sys\n    return range(id(needle), id(needle) + sys.getsizeof(needle))\n"
    assert run(server, own + SEARCH.format(half=half, rest=rest))["text"] == "[]"
    # (The search finds what is there.)
    planted = f"planted = bytearray(bytes.fromhex('{half}') + bytes.fromhex('{rest}'))"
    assert "memory of" in run(server, planted + "\n" + SEARCH.format(half=half, rest=rest))["text"]
    # The record says which secret was used where, and never a value.
    record = (server.home / "egress/egress.jsonl").read_text()
    assert record.count('"secret":"API_KEY"') == 3 and VALUE not in record
    assert VALUE not in server.log() and VALUE not in (server.home / "run/plan.json").read_text()
    stored = server.home / "egress/secrets.json"
    assert stored.stat().st_mode & 0o777 == 0o400 and stored.stat().st_uid not in (0, 1000)
    # With the server it goes.
    server.down()
    assert not stored.exists()


def test_a_machine_uses_a_key_that_it_does_not_have(serve, target):
    server = serve("python", "PythonLTS", "microvm")
    said = run(server, f"""
import os, requests
requests.get('https://api.test:{target.port}/machine', headers={{'Authorization': 'Bearer ' + os.environ['API_KEY']}}).text""")["text"]
    assert VALUE not in said and "sandpool-api-key-" in said
    assert target.seen["api.test"] == [(f"Bearer {VALUE}", "/machine")]


def test_a_key_goes_to_its_own_hosts_alone(serve, target):
    # A pool need not bear the name of its image.
    server = serve("agents", "PythonLTS")
    other = f"https://other.test:{target.port}"
    run(server, f"""
import os, requests
requests.get('{other}/mine', headers={{'Authorization': os.environ['API_KEY']}})
requests.get('{other}/second', headers={{'Authorization': os.environ['SECOND_KEY']}})
requests.get('{other}/lie', headers={{'Authorization': os.environ['API_KEY'], 'Host': 'api.test:{target.port}'}}).status_code""", pool="agents")
    seen = dict((path, key) for key, path in target.seen["other.test"])
    assert seen["/mine"].startswith("sandpool-api-key-") and seen["/second"] == OTHER
    assert "api.test" not in target.seen and "/lie" not in seen, "another host's name is refused"
    # Each start has placeholders of its own, and its own authority, which signs for these hosts alone.
    text = run(server, "open('/etc/ssl/sandpool.pem').read()", pool="agents")["text"]
    certificate = subprocess.run(
        ["openssl", "x509", "-noout", "-text"], input=eval(text), capture_output=True, text=True, check=True
    ).stdout
    # What the image trusts it trusts still.
    trusted = run(server, "open('/etc/ssl/certs/ca-certificates.crt').read().count('BEGIN CERTIFICATE')", pool="agents")["json"]
    assert trusted > 100
    assert "DNS:api.test" in certificate and "DNS:other.test" in certificate and "CA:TRUE" in certificate


def test_node_trusts_what_its_pool_trusts(serve, target):
    server = serve("node", "NodeLTS")
    said = run(server, f"""
const tunnel = (path) => new Promise((done, failed) => {{
  const connect = require('http').request({{ host: '127.0.0.1', port: 3128, method: 'CONNECT', path: 'api.test:{target.port}' }});
  connect.on('connect', (_, socket) => require('https').get({{ host: 'api.test', port: {target.port}, path, socket, agent: false,
    servername: 'api.test', headers: {{ Authorization: process.env.API_KEY }} }}, (answer) => {{
      let text = ''; answer.on('data', (piece) => text += piece); answer.on('end', () => done(text)); }}).on('error', failed));
  connect.on('error', failed); connect.end();
}});
await tunnel('/node')""", pool="node")
    assert target.seen["api.test"] == [(VALUE, "/node")], said


OWN = """
listen: 127.0.0.1:0
pools:
  - apiVersion: sandpool.dev/v1alpha1
    kind: SessionPool
    metadata: {{ name: python }}
    spec:
      containerType: PythonLTS
      scaleConfiguration: {{ maxConcurrentSessions: 4, readySessionInstances: 1 }}
      egress:
        mode: allow-list
        allow: ["api.test:{port}", "other.test:{port}"]
        allowAddresses: [127.0.0.0/8]
        hosts: {{ api.test: [127.0.0.1], other.test: [127.0.0.1] }}
      sessionSecrets: true
      secrets:
        - name: SHARED_KEY
          from: {{ file: {home}/key }}
          hosts: ["api.test:{port}"]
          trust: {home}/own-ca.pem
"""


def test_a_session_brings_secrets_of_its_own(start, target, tmp_path):
    (tmp_path / "key").write_text(OTHER)
    (tmp_path / "own-ca.pem").write_text(target.authority)
    server = start(config=OWN.format(port=target.port, home=tmp_path))
    target.seen.clear()
    url = f"https://api.test:{target.port}"
    values = {name: f"own-value-of-{name}-4711" for name in ("mine", "other")}
    for name, value in values.items():
        secret = {"name": "OWN_KEY", "value": value, "hosts": [f"api.test:{target.port}"]}
        made = server.native("PUT", f"/pools/python/sessions/{name}", json={"secrets": [secret], "env": {"STAGE": name}})
        assert made.status_code == 201 and value not in made.text, made.text
    use = f"""
import os, requests
requests.get('{url}/' + os.environ['STAGE'], headers={{'Authorization': os.environ['OWN_KEY']}})
requests.get('{url}/shared', headers={{'Authorization': os.environ['SHARED_KEY']}})
requests.get('https://other.test:{target.port}/elsewhere', verify=False, headers={{'Authorization': os.environ['OWN_KEY']}}).text
os.environ['OWN_KEY'] + ' ' + open('/etc/ssl/sandpool.pem').read()"""
    given = {name: run(server, use, session=name)["json"].split(" ", 1) for name in values}
    # Each has its own value at its own host, and its pool's; elsewhere a placeholder.
    assert target.seen["api.test"] == [(values["mine"], "/mine"), (OTHER, "/shared"), (values["other"], "/other"), (OTHER, "/shared")]
    assert [key for key, _ in target.seen["other.test"]] == [given["mine"][0], given["other"][0]]
    # The same from the command line, which takes the value from its own environment.
    opened = server.run("session", "open", "from-cli", "--env", "STAGE=cli", "--secret", f"OWN_KEY=api.test:{target.port}",
                        env={"OWN_KEY": values["mine"]})
    assert values["mine"] not in opened.stdout + opened.stderr
    run(server, f"import os, requests; requests.get('{url}/' + os.environ['STAGE'], headers={{'Authorization': os.environ['OWN_KEY']}}).text",
        session="from-cli")
    assert target.seen["api.test"][-1] == (values["mine"], "/cli")
    refused = server.run("session", "open", "never", "--secret", "MISSING_KEY=api.test", check=False)
    assert refused.returncode != 0 and "MISSING_KEY" in refused.stderr
    # Each has an authority of its own, and another one's placeholder is of no use.
    assert given["mine"][0] != given["other"][0] and given["mine"][1] != given["other"][1]
    steal = f"import requests; requests.get('{url}/stolen', headers={{'Authorization': '{given['mine'][0]}'}}).status_code"
    run(server, steal, session="other")
    assert target.seen["api.test"][-1] == (given["mine"][0], "/stolen")
    # A server that was killed, and a proxy that was, change nothing about it.
    kill(server.process())
    wait_for(server.is_ready, "the server is back")
    kill(server.proxy())
    again = f"import os, requests; requests.get('{url}/again', headers={{'Authorization': os.environ['OWN_KEY']}}).status_code"
    wait_for(lambda: run(server, f"try:\n    {again.replace('; ', chr(10) + '    ')}\n    done = True\nexcept OSError:\n    done = False\ndone",
                         session="mine")["json"], "the proxy is back")
    assert target.seen["api.test"][-1] == (values["mine"], "/again")
    # It is nowhere on the server's side: not in the sandbox, the store, a log or the record.
    half, rest = values["mine"][:12].encode().hex(), values["mine"][12:].encode().hex()
    own = "import ctypes\ndef own(needle):\n    import sys\n    return range(id(needle), id(needle) + sys.getsizeof(needle))\n"
    assert run(server, own + SEARCH.format(half=half, rest=rest), session="mine")["text"] == "[]"
    for file in [*server.home.glob("state/*"), *server.home.glob("egress/*"), *server.home.glob("run/*"), *server.home.glob("log/*")]:
        if not file.is_file():
            continue  # A socket keeps nothing.
        assert values["mine"].encode() not in file.read_bytes(), file
    # What cannot be is refused, and makes nothing.
    for secret in ({"hosts": ["10.0.0.1"]}, {"hosts": ["*"]}, {"value": "short"}, {"name": "SHARED_KEY"}):
        bad = {"name": "KEY", "value": "long-enough-value", "hosts": ["api.test"]} | secret
        said = server.native("PUT", "/pools/python/sessions/never", json={"secrets": [bad]})
        assert said.status_code == 400 and "secrets" in said.json()["error"]["target"] and "long-enough-value" not in said.text
        assert server.native("GET", "/pools/python/sessions/never").status_code == 404


def test_secrets_that_cannot_be_used_are_refused_at_the_start(target, tmp_path):
    def refused(**changes) -> str:
        settings = {"name": "python", "kind": "PythonLTS", "level": "process", "port": target.port, "home": tmp_path}
        text = CONFIG.format(**settings)
        for before, after in changes.get("replaced", {}).items():
            assert before in text
            text = text.replace(before, after)
        config = tmp_path / "config.yaml"
        config.write_text(text)
        home = tmp_path / "home"
        home.mkdir(exist_ok=True)
        done = command("serve", "--config", str(config), home=home, check=False, timeout=120)
        assert done.returncode != 0
        return done.stderr

    assert "secret API_KEY" in refused() and str(tmp_path / "key") in refused()
    (tmp_path / "key").write_text("short")
    (tmp_path / "own-ca.pem").write_text(target.authority)
    (tmp_path / "second").write_text(OTHER)
    assert "8 to 8192 printable ASCII characters" in refused()
    (tmp_path / "key").write_text(VALUE)
    said = refused(replaced={'hosts: ["api.test:': 'hosts: ["10.0.0.1:'})
    assert "secrets[0].hosts[0]" in said and VALUE not in said, said
    said = refused(replaced={"mode: allow-list": "mode: none"})
    assert "without egress" in said, said
