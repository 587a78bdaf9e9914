"""The examples of the documents are run as they are written, or held against what the program does."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import requests
import yaml

import test_containers
import test_images
import test_mcp_clients
import test_mcp_hosted
import test_metrics
from documents import DOCUMENTS, ROOT, Example, Unreadable, examples_of, for_server, parameters
from sandpool import CLEAN, PROGRAM, Server, Target, authority, command, installed, wait_for
from test_mcp_clients import TOOLS
from test_openapi import mismatch

SESSIONS = ("chat-17", "chat-18")
POOLS = ("python", "node", "shell", "agents")
POOLS_GUIDE = "docs/pools.md"

ELSEWHERE = [*sum(test_mcp_clients.EXAMPLES.values(), []), *test_mcp_hosted.EXAMPLES, *test_images.EXAMPLES, *test_containers.EXAMPLES, *test_metrics.EXAMPLES]


# Every kind of example, and which examples are of it: an example is of the first kind that has it. A kind is a test below.
KINDS = {
    "object": lambda one: one.language == "yaml" and one.document == POOLS_GUIDE,
    "settings": lambda one: one.language == "yaml" and one not in ELSEWHERE,
    "elsewhere": lambda one: one in ELSEWHERE,
    "start": lambda one: one.language == "sh" and re.search(r"^(cargo run .*-- |sandpool )(up|serve)\b", one.code, re.M),
    "feeding": lambda one: one.language == "sh" and "$ID" in one.code,
    "egress": lambda one: one.language == "sh" and one.document == "docs/egress.md",
    "pools": lambda one: one.language == "sh" and one.document == POOLS_GUIDE,
    "ports": lambda one: one.language == "sh" and one.document == "docs/ports.md",
    "shell": lambda one: one.language == "sh",
    "python": lambda one: one.language == "python",
    "azure": lambda one: one.language == "python azure",
    "help": lambda one: one.language == "text" and one.document == "docs/cli.md" and one.heading.startswith("sandpool"),
    "stream": lambda one: one.language == "text" and is_answer(one) and one.code.startswith("event:"),
    "host": lambda one: one.language == "json" and "mcpServers" in parsed(one),
    "resource": lambda one: one.language == "json" and one.document == POOLS_GUIDE,
    "answer": lambda one: one.language == "json" and is_answer(one),
    "refusal": lambda one: one.language == "json" and {"error", "code"} <= parsed(one).keys(),
    "record": lambda one: one.language == "json" and "decision" in parsed(one),
}

# The kinds that some test has asked for.
TESTED = {"elsewhere"}


def is_answer(example: Example) -> bool:
    """It stands right below a command, and so is what that prints."""
    return example.follows is not None and kind(example.follows) in ("shell", "ports")


def parsed(example: Example) -> dict:
    try:
        return json.loads(example.code)
    except ValueError as error:
        raise Unreadable(f"{example}: no JSON: {error}") from error


def kind(example: Example) -> str | None:
    return next((name for name, has in KINDS.items() if has(example)), None)


def run_here() -> list[Example]:
    return [example for document in DOCUMENTS for example in examples_of(document) if example.reason is None]


def of(name: str) -> list:
    """The examples of one kind, a test for each."""
    TESTED.add(name)
    return parameters([example for example in run_here() if kind(example) == name])


def left_out(examples: list[Example]) -> list[str]:
    """What is to be said of examples that nobody runs or checks."""
    alone = [example for example in examples if example.reason is None and kind(example) is None]
    return [f"{one}: nobody runs or checks this block of {one.language or 'no language'}:\n{one.code}" for one in alone]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_no_example_is_left_out(document):
    assert left_out(examples_of(document)) == []


def test_every_kind_has_examples_and_a_test():
    assert {kind(example) for example in run_here()} == KINDS.keys() == TESTED


def test_what_would_be_left_out_is_told():
    def told(text: str) -> list[str]:
        return left_out(examples_of("docs/new.md", text))

    assert told("# New\n\n```sh\ntrue\n```\n\n```yaml\nlisten: 1\n```\n") == []
    [ruby] = told("# New\n\n```ruby\nputs 6 * 7\n```\n")
    assert ruby.startswith("docs/new.md:3: ") and "ruby" in ruby and "puts 6 * 7" in ruby
    assert told("# New\n\n<!-- not run: there is no Ruby here -->\n\n```ruby\nputs 6 * 7\n```\n") == []
    [text] = told("# New\n\n```sh\ntrue\n```\n\nSomething else:\n\n```\nnobody knows\n```\n")
    assert text.startswith("docs/new.md:9: ") and "no language" in text
    for text, line, why in (
        ("```json\n{,}\n```\n", 1, "no JSON"),
        ("# New\n\n```sh\ntrue\n", 3, "does not end"),
        ("<!-- not run: because -->\n\nWords.\n\n```sh\ntrue\n```\n", 1, "right below"),
        ("<!-- not run -->\n```sh\ntrue\n```\n", 1, "WHY"),
    ):
        with pytest.raises(Unreadable, match=f"^docs/new.md:[1-{line + 1}]: .*{why}"):
            told(text)


# In a shell.

# Is at a terminal, where nothing comes from a pipe, and types `exit` when there is a prompt.
PERSON = r"""
import os, pty, re, sys
seen = b""
def read(terminal):
    global seen
    had = re.search(rb"[$#] ", seen)
    text = os.read(terminal, 4096)
    seen += text
    if not had and re.search(rb"[$#] ", seen):
        os.write(terminal, b"exit\r")
    return text
sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:], read)))
"""

# The program, where there is no terminal, and where servers are started and stopped only by who says where they listen.
PROGRAM_HERE = """#!/bin/sh
case $1 in
up | serve) exec {program} "$@" --listen "${{LISTEN:?}}" ;;
down) : "${{LISTEN:?}}" && exec {program} "$@" ;;
shell) [ -p /dev/stdin ] && exec {program} "$@"; exec {python} {place}/person {program} "$@" ;;
*) exec {program} "$@" ;;
esac
"""

# What Cargo would build has been built.
CARGO_HERE = """#!/bin/sh
[ "$1 $2 $3 $4 $5" = "run --release --package sandpool --" ] || exit 64
shift 5
exec sandpool "$@"
"""

# Any client of SQLite will do: this is Python's.
SQLITE_HERE = """#!{python}
import sqlite3, sys
option, place, query = sys.argv[1:]
assert option == "-readonly", option
for row in sqlite3.connect(f"file:{{place}}?mode=ro", uri=True).execute(query):
    print(*row, sep="|")
"""


@pytest.fixture
def programs(tmp_path) -> dict[str, str]:
    """Variables of a shell that finds the program, and what stands for other programs."""
    place = tmp_path / "bin"
    place.mkdir()
    (place / "person").write_text(PERSON)
    for name, text in {"sandpool": PROGRAM_HERE, "cargo": CARGO_HERE, "sqlite3": SQLITE_HERE}.items():
        (place / name).write_text(text.format(program=PROGRAM, python=sys.executable, place=place))
        (place / name).chmod(0o755)
    # A refusal over HTTP is a failure.
    (place / ".curlrc").write_text("fail-with-body\n")
    return {**CLEAN, "PATH": f"{place}:{Path(sys.executable).parent}:{os.environ['PATH']}", "CURL_HOME": str(place)}


@pytest.fixture
def shell(programs, tmp_path):
    """Runs an example in a shell that knows a server; what earlier examples have left is there."""
    used = []

    def ran(code: str, server: Server, **variables: str) -> str:
        used.append(server)
        environment = {
            **programs,
            "SANDPOOL_HOME": str(server.home),
            # What the first example of docs/api.md sets.
            "API": server.endpoint,
            "TOKEN": server.bearer,
            **variables,
        }
        (tmp_path / "report.csv").write_text("a,b\n1,2\n")
        server.run("run", "-p", "python", "-s", "chat-17", "-c", "x = 41; open('/tmp/log', 'w').close()")
        return script(for_server(code, server.endpoint, server.bearer), tmp_path, environment)

    yield ran
    for server in used:
        for pool in POOLS:
            for session in SESSIONS:
                server.native("DELETE", f"/pools/{pool}/sessions/{session}")


# Writes down each command that fails.
FAILURES = "set -uo pipefail\ntrap 'echo \"$BASH_COMMAND\" >>failures' ERR\n"


def script(code: str, place: Path, variables: dict[str, str]) -> str:
    """Runs an example in a shell, and answers what it printed. What fails on purpose is followed by a look at `$?`."""
    failures = place / "failures"
    failures.write_text("")
    done = subprocess.run(
        ["bash", "-c", FAILURES + code], cwd=place, env=variables, capture_output=True, text=True, timeout=150,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    failed = failures.read_text().splitlines()
    said = f"{code}\n{done.stdout}\n{done.stderr}\nfailed: {failed}"
    assert done.returncode == 0 and len(failed) == code.count("$?"), said
    assert "error" not in done.stderr.lower(), said
    # As HTTP and MCP have it.
    assert not re.search(r'"error":\s*{|"isError":\s*true', done.stdout), said
    if re.search(r"6 \* 7|x \+ 1", code):
        assert "42" in done.stdout, said
    return done.stdout


@pytest.mark.parametrize("example", of("shell"))
def test_shell_examples(server, shell, example):
    shell(example.code, server)


@pytest.mark.parametrize("example", of("start"))
def test_examples_that_start_a_server(programs, tmp_path, example):
    # Not below pytest's own directory, which nobody but root may enter: the server is not root.
    home = Path(tempfile.mkdtemp(prefix="sandpool-e2e-", dir="/var/tmp"))
    home.chmod(0o755)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        listen = f"127.0.0.1:{free.getsockname()[1]}"
    try:
        # It is where the example says, by default.
        assert "listen: 127.0.0.1:7300" in command("config", "show", home=home).stdout
        code = for_server(example.code, f"http://{listen}", "") + "\nsandpool pool ls\nsandpool down\n"
        printed = script(code, tmp_path, {**programs, "SANDPOOL_HOME": str(home), "LISTEN": listen})
        assert all(pool in printed for pool in ("python", "node", "shell")), printed
    finally:
        command("down", "--timeout", "5", home=home, check=False)
        shutil.rmtree(home, ignore_errors=True)


# Hears interrupts, input, its end and the size of its terminal, and says so.
LISTENER = """
trap 'echo interrupted' INT
echo begins
while read -r line; do echo "read $line"; done
echo ended
until [ "$(stty size)" = "24 80" ]; do sleep 0.05; done
echo resized
"""


@pytest.mark.parametrize("example", of("feeding"))
def test_examples_for_an_execution_that_runs(server, shell, example):
    executions = "/pools/python/sessions/chat-17/executions"
    body = {"argv": ["bash", "-c", LISTENER], "terminal": {"rows": 10, "columns": 40}, "waitSeconds": 0}
    begun = server.native("POST", executions, json=body).json()

    def printed() -> str:
        return server.native("GET", f"{executions}/{begun['id']}?wait=0").json()["stdout"]

    wait_for(lambda: "begins" in printed(), "it begins")
    shell(example.code, server, ID=begun["id"])
    ended = server.native("GET", f"{executions}/{begun['id']}?wait=30").json()
    assert ended["outcome"] == "cancelled", "it was told to stop, though it went on"
    assert {"interrupted", "read hello", "ended", "resized"} <= set(ended["stdout"].splitlines()), ended


# Waits for the program that the first example of docs/ports.md starts.
LISTENS = """
until curl -s -o /dev/null -H "Authorization: Bearer $TOKEN" "$API/pools/python/sessions/chat-17/ports/8000/"; do sleep 0.1; done
"""


@pytest.mark.parametrize("example", of("ports"))
def test_examples_for_a_program_that_serves(server, shell, example):
    first = next(one for one in examples_of("docs/ports.md") if kind(one) == "ports")
    served = first.code.rpartition(">index.html")[0].rpartition("echo ")[2].strip(' "')
    printed = shell(first.code + LISTENS + (example.code if example != first else ""), server)
    # Each time that it is asked for.
    assert printed.count(served) == len(re.findall(r"^curl -s (?!.*/previews)", example.code, re.M)), printed


def test_what_the_first_lines_of_the_mcp_guide_set_is_enough(server, shell):
    [example] = [one for one in examples_of("docs/mcp-clients.md") if one.language == "sh"]
    # For whoever has not got the server's state directory, too.
    assert shell(example.code + "export SANDPOOL_HOME=$PWD/none\nsandpool run -c '6 * 7'\n", server) == "42\n"


# The settings, and servers that have them.

DIGEST = hashlib.sha256(b"the key of an example").hexdigest()


def completed(example: Example, digest: str = DIGEST) -> str:
    """A settings file with what the example shows: one that is indented is a part of a pool's spec."""
    code = example.code.replace("<64 digits>", digest)
    if not code.startswith(" "):
        return code
    return f"pools:\n  - metadata: {{ name: python }}\n    spec:\n      containerType: PythonLTS\n{code}"


def missing(wanted, shown, place: str = "") -> str | None:
    """What of `wanted` is not in `shown`, which may have more keys, and has no secrets."""
    if isinstance(wanted, dict) and isinstance(shown, dict):
        found = (missing(inner, shown.get(name), f"{place}.{name}") for name, inner in wanted.items())
    elif isinstance(wanted, list) and isinstance(shown, list) and len(wanted) == len(shown):
        found = (missing(inner, shown[at], f"{place}[{at}]") for at, inner in enumerate(wanted))
    else:
        return None if wanted == shown or shown == "***" else f"{place}: {wanted!r} is shown as {shown!r}"
    return next((why for why in found if why), None)


@pytest.mark.parametrize("example", of("settings"))
def test_settings(example, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(completed(example))
    shown = json.loads(command("--json", "config", "show", "--config", file, home=tmp_path).stdout)["settings"]
    wanted = yaml.safe_load(file.read_text())
    # They are where the command line says.
    wanted = {name: value for name, value in wanted.items() if name not in ("home", "images")}
    assert missing(wanted, shown) is None


def test_a_key_that_is_made_as_shown_is_good(programs, tmp_path, start):
    made, settings = [one for one in examples_of("docs/auth.md") if one.heading == "API keys"]
    printed = script(made.code + 'printf %s "$KEY" >key\n', tmp_path, programs)
    server = start("--listen", "127.0.0.1:0", config=completed(settings, printed.split()[0]))
    key = (tmp_path / "key").read_text()
    run = {"json": {"code": "6 * 7"}, "token": key}
    assert server.native("POST", "/pools/python/sessions/keyed/executions", **run).json()["result"]["json"] == 42
    assert server.native("POST", "/pools/node/sessions/keyed/executions", **run).status_code == 403
    assert server.native("GET", "/pools", token=key[::-1]).status_code == 401


# What is printed and answered.

# They are others each time.
VOLATILE = re.compile(r"id|.*At|.*Milliseconds|milliseconds|size|time|sandbox|address|sent|received|url|hostUrl")


def different(shown, real, place: str = "it") -> str | None:
    """How an example differs from what is answered really, but for what is another each time."""
    if isinstance(shown, dict) and isinstance(real, dict):
        if shown.keys() != real.keys():
            return f"{place} has {sorted(shown)}, and really {sorted(real)}"
        found = [
            different(type(shown[name]), type(real[name]), f"the type of {place}.{name}")
            if VOLATILE.fullmatch(name)
            else different(shown[name], real[name], f"{place}.{name}")
            for name in shown
        ]
    elif isinstance(shown, list) and isinstance(real, list) and len(shown) == len(real):
        found = [different(one, other, f"{place}[{at}]") for at, (one, other) in enumerate(zip(shown, real))]
    else:
        return None if shown == real else f"{place} is {shown!r}, and really {real!r}"
    return next((why for why in found if why), None)


def values_in(printed: str) -> list:
    """The JSON values of what commands have printed, one after the other, among other things."""
    decoder, found = json.JSONDecoder(), []
    while (at := printed.find("{")) >= 0:
        try:
            value, end = decoder.raw_decode(printed, at)
            found.append(value)
        except ValueError:
            end = at + 1
        printed = printed[end:]
    return found


@pytest.fixture(scope="module")
def closed():
    """The API's description, where an object has no keys but those that it names."""

    def close(schema):
        if isinstance(schema, dict):
            if isinstance(schema.get("properties"), dict):
                schema.setdefault("additionalProperties", False)
            for inner in schema.values():
                close(inner)
        elif isinstance(schema, list):
            for inner in schema:
                close(inner)

    document = json.loads((ROOT / "docs/openapi.json").read_text())
    close(document["components"]["schemas"])
    return document


# By the title above it, which of the API's schemas an answer has.
SCHEMAS = {"Run something": "Execution", "Files": "Files", "Errors": "Problem", "Three ways in": "Preview"}


def check_schema(closed, example: Example, value):
    schema = closed["components"]["schemas"][SCHEMAS[example.heading]]
    assert mismatch(closed, schema, value, str(example)) is None


@pytest.mark.parametrize("example", of("answer"))
def test_answers(server, shell, closed, example):
    check_schema(closed, example, parsed(example))
    real = values_in(shell(example.follows.code, server))
    assert real
    why = [different(parsed(example), value) for value in real]
    assert None in why, why


@pytest.mark.parametrize("example", of("refusal"))
def test_refusals(closed, example):
    shown = parsed(example)
    check_schema(closed, example, shown)
    assert shown["code"] == shown["error"]["code"] and shown["message"] == shown["error"]["message"]
    # It is one of those in the table below.
    assert re.search(rf"^\| \d+ \|.*`{shown['code']}`", (ROOT / example.document).read_text(), re.M)


def events_of(stream: str) -> list[dict]:
    """The events of a stream, with the output between two others as one, in however many pieces it came."""
    found = []
    for number, text in enumerate(filter(None, stream.split("\n\n")), 1):
        event = dict(line.split(": ", 1) for line in text.splitlines() if not line.startswith(":"))
        assert event.pop("id") == str(number), "they are counted"
        event["data"] = json.loads(event["data"])
        if found and event["event"] == found[-1]["event"] == "stdout":
            found[-1]["data"]["text"] += event["data"]["text"]
        else:
            found.append(event)
    return found


@pytest.mark.parametrize("example", of("stream"))
def test_streams(server, shell, example):
    assert different(events_of(example.code), events_of(shell(example.follows.code, server))) is None


@pytest.mark.parametrize("example", of("help"))
def test_help(example):
    """The program's own test holds the reference against its arguments; this one, the commands as people type them."""
    program, *words = example.heading.split()
    assert program == "sandpool"
    real = iter([line.rstrip() for line in command(*words, "-h").stdout.splitlines()])
    # Flags that every command takes are left out.
    for line in example.code.splitlines():
        assert line in real, f"{line!r} is not in what it prints"


@pytest.mark.parametrize("example", of("host"))
def test_hosts_find_the_server(server, programs, example):
    [(_, entry)] = json.loads(for_server(example.code, server.endpoint, server.bearer))["mcpServers"].items()
    about = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "host", "version": "1"}}
    said = [
        {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": about},
        {"jsonrpc": "2.0", "method": "notifications/initialized"},
        {"jsonrpc": "2.0", "id": 2, "method": "tools/list"},
    ]
    if entry.get("type") == "http":
        assert entry.keys() == {"type", "url", "headers"}
        accept = {"Accept": "application/json, text/event-stream"}
        answers = [requests.post(entry["url"], json=one, headers={**accept, **entry["headers"]}, timeout=30) for one in said]
        assert [answer.status_code for answer in answers] == [200, 202, 200]
        printed = "\n".join(answer.text for answer in answers)
    else:
        assert entry.keys() == {"command", "args"}
        lines = "".join(json.dumps(one) + "\n" for one in said)
        done = subprocess.run(
            [entry["command"], *entry["args"]],
            input=lines, env={**programs, "SANDPOOL_HOME": str(server.home)}, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        printed = done.stdout
    listed = [value["result"]["tools"] for value in values_in(printed) if value.get("id") == 2]
    assert [[tool["name"] for tool in tools] for tools in listed] == [TOOLS], printed


@pytest.mark.parametrize("example", of("python"))
def test_python_examples(as_client, example, tmp_path):
    done = subprocess.run([sys.executable, "-c", example.code], cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert "42" in done.stdout


# Pools as objects, and Azure's control plane of them.


@pytest.fixture
def guided(server, shell, tmp_path):
    """Runs an example of the guide to pools, beside the file that it shows, when that has been applied."""
    [file] = [one for one in examples_of(POOLS_GUIDE) if one.language == "yaml"]
    place = tmp_path / "pools.yaml"
    place.write_text(file.code)
    server.run("pool", "apply", "-f", place)

    def ran(code: str) -> str:
        return shell(code, server)

    yield ran
    for name in ("research", "research-tools", "calc"):
        server.native("DELETE", f"/pools/{name}", server.token("--role", "admin"))


@pytest.mark.parametrize("example", of("object"))
def test_objects(server, guided, example):
    for wanted in yaml.safe_load_all(example.code):
        shown = json.loads(server.run("pool", "get", wanted["metadata"]["name"], "-o", "json").stdout)
        assert missing(wanted, shown) is None


@pytest.mark.parametrize("example", of("pools"))
def test_pool_examples(guided, example):
    guided(example.code)


@pytest.mark.parametrize("example", of("resource"))
def test_resources(server, guided, example):
    [real] = values_in(guided(example.follows.code))
    shown = json.loads(for_server(example.code, server.endpoint, ""))
    # On a fast machine it is there already.
    assert real["properties"].pop("provisioningState") in (shown["properties"].pop("provisioningState"), "Succeeded")
    assert shown["id"] == real["id"]
    assert different(shown, real) is None


@pytest.mark.parametrize("example", of("azure"))
def test_azure_examples(server, guided, programs, tmp_path, example):
    # As the example before it sets them.
    variables = {**programs, "SANDPOOL_HOME": str(server.home), **server.env("--https")}
    python = installed("SANDPOOL_E2E_ARM_V5_1") / "bin/python"
    done = subprocess.run(
        [python, "-c", example.code], cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    ran, listed = done.stdout.splitlines()
    assert ran == "42" and "calc" in listed
    assert server.native("GET", "/pools/calc").status_code == 404


# What sessions may reach: the pools of docs/egress.md, in a world where their hosts are this machine.

WORLD = "127.77.0.1"
HOSTS = ("pypi.org", "api.openai.com", "api.github.com")
OPENAI_API_KEY = "sk-of-nobody-5a1f0c2e9b7d"
GITHUB_TOKEN = "ghp_of_nobody_8c1d3e5f7a90"


class World:
    """The server with these pools, and what their hosts were asked."""

    def __init__(self, server: Server, seen: list):
        self.server, self.seen = server, seen

    def run(self, pool: str, shell: str) -> str:
        """A command in a session of the pool."""
        answer = self.server.native("POST", f"/pools/{pool}/sessions/other/executions", json={"command": shell})
        assert answer.status_code == 200 and answer.json()["exitCode"] == 0, answer.text
        return answer.json()["stdout"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    place, seen = tmp_path_factory.mktemp("world"), []

    def answer(request):
        seen.append((request.headers["Host"], request.path, request.headers.get("Authorization")))
        return b"it is there\n", {}

    context, trusted = authority(place, *HOSTS)
    (place / "internal-ca.pem").write_text(trusted)
    hosts = Target(answer, context, (WORLD, 443))
    documented = [yaml.safe_load(completed(one)) for one in examples_of("docs/egress.md") if one.language == "yaml"]
    [python], [agents], limits = documented[0].pop("pools"), documented[1].pop("pools"), documented[2]
    # The second shows a pool with a secret; its sessions may also have some of their own.
    agents["metadata"]["name"], agents["spec"]["sessionSecrets"] = "agents", True
    agents["spec"]["egress"]["allow"].append("api.github.com")
    [secret] = agents["spec"]["secrets"]
    assert secret["trust"] == "/etc/sandpool/internal-ca.pem"
    secret["trust"] = str(place / "internal-ca.pem")
    for pool in (python, agents):
        pool["spec"]["egress"] |= {"allowAddresses": ["127.0.0.0/8"], "hosts": {name: [WORLD] for name in HOSTS}}
    config = yaml.safe_dump({"listen": "127.0.0.1:0", "pools": [python, agents], **limits})
    server = Server(config=config, env={"OPENAI_API_KEY": OPENAI_API_KEY})
    yield World(server, seen)
    server.remove()
    hosts.close()


@pytest.mark.parametrize("example", of("egress"))
def test_egress_examples(world, shell, example):
    printed = shell(example.code, world.server, GITHUB_TOKEN=GITHUB_TOKEN)
    assert GITHUB_TOKEN not in printed


@pytest.mark.parametrize("example", of("record"))
def test_records(world, example):
    shown = parsed(example)
    assert world.run("python", f"curl -sk --noproxy '*' https://{shown['destination']}/simple/") == "it is there\n"

    def written() -> list[dict]:
        lines = (world.server.home / "egress/egress.jsonl").read_text().splitlines()
        return [record for record in map(json.loads, lines) if record.get("via") == shown["via"] and record["pool"] == shown["pool"]]

    assert different(shown, wait_for(written, "the record")[-1]) is None


def test_the_secret_that_is_shown_is_used_and_not_had(world):
    placeholder = world.run("agents", 'printf %s "$OPENAI_API_KEY"')
    assert re.fullmatch(r"sandpool-openai-api-key-[0-9a-f]+", placeholder)
    world.run("agents", 'curl -sS -H "Authorization: Bearer $OPENAI_API_KEY" https://api.openai.com/v1/models')
    assert world.seen[-1] == ("api.openai.com", "/v1/models", f"Bearer {OPENAI_API_KEY}")
