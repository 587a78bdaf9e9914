"""Section 10.1 of the wire reference: clients of Node.js, with the variables of `sandpool env`."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

NODE = os.environ.get("SANDPOOL_E2E_NODE")


@pytest.fixture(autouse=True)
def has_node():
    if NODE is None:
        if os.environ.get("SANDPOOL_MUST") == "1":
            pytest.fail("SANDPOOL_MUST=1, and there is no node with npm here")
        pytest.skip("SKIPPED: no node with npm here")


def run(script: str, *arguments, cwd: Path) -> dict:
    path = Path(__file__).parent / "node" / script
    done = subprocess.run(["node", path, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_llamaindex_ts_speaks_generation_0(as_client, session, tmp_path):
    (tmp_path / "in.txt").write_text("abc")
    seen = run("llamaindex.mjs", session, tmp_path / "in.txt", cwd=tmp_path)
    assert (seen["value"]["status"], seen["value"]["result"]) == ("Success", 42)
    assert (seen["printed"]["stdout"], seen["printed"]["stderr"], seen["printed"]["result"]) == ("hello\n", "", "")
    assert seen["kept"]["result"] == 6
    assert seen["failed"]["status"] == "Failure" and "ZeroDivisionError" in seen["failed"]["stderr"]
    # It names its file twice in the path that it answers; the file is there all the same.
    [image] = (tmp_path / "tool-output").glob("*.png")
    assert seen["image"]["result"].endswith(image.name) and image.read_bytes().startswith(b"\x89PNG")
    assert (seen["uploaded"]["filename"], seen["uploaded"]["size"]) == ("in.txt", 3)
    assert [file["filename"] for file in seen["listed"]] == ["in.txt"]
    assert seen["downloaded"] == "abc"


def test_the_requests_of_langchain_js(as_client, session, tmp_path):
    seen = run("langchain-requests.mjs", session, cwd=tmp_path)
    assert seen["value"]["result"] == 42
    assert seen["printed"]["stdout"] == "hello\n" and seen["printed"]["result"] == ""
    assert "ZeroDivisionError" in seen["failed"]["stderr"]
    assert (seen["uploaded"]["filename"], seen["uploaded"]["size"]) == ("in.txt", 3)
    assert [file["filename"] for file in seen["listed"]] == ["in.txt"]
    assert seen["downloaded"] == "abc"
