"""Published MCP clients against our server: what docs/mcp-clients.md shows, as it is written there, and more than it shows."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from documents import ROOT, examples
from sandpool import CLEAN, PROGRAM, installed, node_modules

HERE = Path(__file__).parent
GUIDE = "docs/mcp-clients.md"
# The guide's examples that are run here, by what stands behind their fences.
EXAMPLES = {language: examples(GUIDE, language) for language in ("python new", "python old", "js", "bash")}
TOOLS = [
    "open_session",
    "run_code",
    "run_command",
    "wait_execution",
    "stop_execution",
    "read_file",
    "write_file",
    "list_files",
    "close_session",
]

# Each client has a minute on a machine that has better to do.
pytestmark = pytest.mark.timeout(300)
PATIENCE = 240


def python(generation: str) -> Path:
    return installed(f"SANDPOOL_E2E_MCP_{generation.upper()}") / "bin/python"


def node(work: Path) -> dict[str, str]:
    """Variables with which the clients' Node.js, and what came with it, are found first."""
    modules, programs = node_modules()
    places = [programs, modules / ".bin"]
    (work / "node_modules").symlink_to(modules)
    # The Inspector keeps what it has seen in the home of whoever runs it.
    return {"PATH": os.pathsep.join([*map(str, places), os.environ["PATH"]]), "HOME": str(work)}


def run(words: list, cwd: Path, **variables: str) -> str:
    done = subprocess.run(
        list(map(str, words)), cwd=cwd, env={**CLEAN, **variables}, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def snippets(language: str) -> list:
    """The guide's examples in one language, each named after the client whose version stands before it."""
    lines = (ROOT / GUIDE).read_text().splitlines()
    found = []
    for example in EXAMPLES[language]:
        name = re.findall(r"`([^`\n]+)` [\d.]+", "\n".join(lines[: example.line]))[-1]
        found.append(pytest.param(example.code, id=name))
    assert found, language
    return found


@pytest.fixture
def variables(server):
    before = {one["identifier"] for one in server.native("GET", "/pools/python/sessions").json()["value"]}
    yield {"SANDPOOL_ENDPOINT": server.endpoint, "SANDPOOL_TOKEN": server.bearer}
    after = {one["identifier"] for one in server.native("GET", "/pools/python/sessions").json()["value"]}
    assert after <= before, "the examples end their sessions"


def check(printed: str):
    """Every tool was listed, and the code was run."""
    listed, value = printed.strip().splitlines()[-2:]
    assert [name for name in TOOLS if name not in listed] == [] and value == "42", printed


@pytest.mark.parametrize("code", snippets("python new"))
def test_python_clients_of_today(variables, tmp_path, code):
    check(run([python("new"), "-c", code], tmp_path, **variables))


@pytest.mark.parametrize("code", snippets("python old"))
def test_python_clients_of_yesterday(variables, tmp_path, code):
    check(run([python("old"), "-c", code], tmp_path, **variables))


@pytest.mark.parametrize("code", snippets("js"))
def test_clients_of_node(variables, tmp_path, code):
    # Printed as one line, however wide the terminal is said to be.
    code = code.replace("console.log((await client.listTools())", "console.log(...(await client.listTools())")
    (tmp_path / "example.mjs").write_text(code)
    check(run(["node", "example.mjs"], tmp_path, **node(tmp_path), **variables))


@pytest.mark.parametrize("script", snippets("bash"))
def test_the_inspector(server, variables, tmp_path, script):
    try:
        printed = run(["bash", "-euc", script], tmp_path, **node(tmp_path), **variables)
    finally:
        server.native("DELETE", "/pools/python/sessions/inspected")
    decoder, seen = json.JSONDecoder(), []
    while printed := printed.lstrip():
        value, end = decoder.raw_decode(printed)
        seen.append(value)
        printed = printed[end:]
    listed, opened, ran = seen
    assert [tool["name"] for tool in listed["tools"]] == TOOLS
    assert opened["structuredContent"]["session_id"] == "python/inspected"
    assert ran["structuredContent"]["result"] == "42"


@pytest.mark.parametrize("transport", ["http", "stdio"])
@pytest.mark.parametrize(("generation", "script"), [("new", "second.py"), ("old", "first.py")])
def test_all_of_it_by_the_sdk(server, session, tmp_path, generation, script, transport):
    words = [python(generation), HERE / "mcp" / script, server.endpoint + "/mcp", server.bearer, session]
    if transport == "stdio":
        words += [PROGRAM, "--home", server.home, "mcp"]
    seen = json.loads(run(words, tmp_path))
    assert seen["tools"] == TOOLS
    assert seen["revision"] == {"new": "2026-07-28", "old": "2025-11-25"}[generation]
    assert seen["figure"] == "image/png" and seen["raised"] == [True, "ZeroDivisionError"]
    assert seen["resource"] == "äöü" and seen["templates"] == 3 and seen["unknown"] is True
    assert seen["progress"] and "begun" in seen["progress"][0]
