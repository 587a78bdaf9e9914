"""The examples of the documents run as they are written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sandpool import CLEAN, PROGRAM

ROOT = Path(__file__).parent.parent
SESSIONS = ("chat-17", "chat-18")


def blocks(path: str, language: str) -> list[str]:
    """The fenced blocks of a document. Blocks after `<!-- not run: why -->` are left out."""
    text = (ROOT / path).read_text()
    found = re.findall(rf"(<!-- not run:[^>]*-->\s*)?^```{language}\n(.*?)^```", text, re.M | re.S)
    return [code for skipped, code in found if not skipped]


@pytest.fixture
def shell_environment(server, tmp_path):
    """A shell in which `sandpool` is the program and knows its server, and some files are there."""
    binaries = tmp_path / "bin"
    binaries.mkdir()
    (binaries / "sandpool").symlink_to(PROGRAM)
    (tmp_path / "report.csv").write_text("a,b\n1,2\n")
    yield {
        **CLEAN,
        "PATH": f"{binaries}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "SANDPOOL_HOME": str(server.home),
        # What the first example of docs/api.md sets, which also starts a server.
        "API": server.endpoint,
        "TOKEN": server.bearer,
    }
    for pool in ("python", "node", "shell"):
        for session in SESSIONS:
            server.native("DELETE", f"/pools/{pool}/sessions/{session}")


def usable(code: str) -> bool:
    """Blocks that build or start the program, or need a person at a terminal, are for other tests."""
    return not re.search(r"cargo |sandpool up|sandpool serve|sandpool down|apt-get|sudo |[$]ID", code)


def shell_blocks() -> list:
    found = []
    for path in ("README.md", "docs/cli.md", "docs/api.md", "docs/auth.md", "docs/mcp.md"):
        if (ROOT / path).exists():
            for at, code in enumerate(blocks(path, "sh")):
                if usable(code):
                    found.append(pytest.param(code, id=f"{path}-{at}"))
    return found


@pytest.mark.parametrize("code", shell_blocks())
def test_shell_examples(shell_environment, tmp_path, code):
    lines = []
    for line in code.splitlines():
        # `alias` is for people; `sandpool` is on the path here. A terminal is tested elsewhere.
        if not line.startswith("alias ") and "sandpool shell" not in line:
            lines.append(line)
    # What fails on purpose is followed by a look at `$?`.
    script = "set -u\nfailed() { echo \"failed: $1\" >&2; exit 99; }\n"
    script += 'sandpool run -p python -s chat-17 -c "x = 41; open(\'/tmp/log\', \'w\').close()"\n' + "\n".join(lines) + "\n"
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=shell_environment, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
    assert "error" not in done.stderr.lower() and "command not found" not in done.stderr, done.stderr
    assert not re.search(r'"error":\s*{', done.stdout), done.stdout


def test_readme_shows_the_value(shell_environment, tmp_path):
    code = "\n".join(blocks("README.md", "sh"))
    assert "6 * 7" in code and "exit 3" in code, "the README has its examples"


@pytest.mark.parametrize("code", [pytest.param(code, id=str(at)) for at, code in enumerate(blocks("README.md", "python"))])
def test_python_examples(as_client, code, tmp_path):
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert "42" in done.stdout
