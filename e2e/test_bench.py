"""The benchmark command: that it measures, keeps what it found, and leaves nothing behind. How fast anything is, is not asked."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest

from sandpool import CLEAN, PROGRAM, command, wait_for

IMAGES = CLEAN.get("SANDPOOL_IMAGES", "/var/lib/sandpool/images")


@pytest.fixture
def servers():
    """Where a benchmark's servers keep what they have: a directory that others than root may enter, as they must."""
    with tempfile.TemporaryDirectory(prefix="sandpool-e2e-", dir="/var/tmp") as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


def left(tmp: Path) -> list[str]:
    """What servers of a benchmark leave where it keeps them, and the processes that name it."""
    found = [str(path) for path in tmp.iterdir()]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if str(tmp).encode() in words:
            found.append(words.decode())
    return found


@pytest.mark.timeout(900)
def test_a_quick_benchmark_measures_and_leaves_nothing(servers, tmp_path):
    out = tmp_path / "run"
    scenarios = ["warm", "walls", "throughput-8", "shell", "new-session", "delete", "restart", "memory-node"]
    words = ["bench", "run", "--quick", "--images", IMAGES, "--out", str(out), "--json", *scenarios]
    found = json.loads(command(*words, timeout=900, env={"TMPDIR": str(servers)}).stdout)
    assert {row["scenario"] for row in found["rows"]} == {*scenarios, "floor"}
    for row in found["rows"]:
        assert row["ours"]["count"] > 0 and not row["spoilt"], row
        assert row["scenario"] in ("floor", "restart") or row["floor"]["count"] > 0, row
    assert {path.name for path in out.iterdir()} == {"command", "machine.json", "raw.jsonl", "summary.json", "summary.md"}
    assert "--quick" in (out / "command").read_text()
    raw = [json.loads(line) for line in (out / "raw.jsonl").read_text().splitlines()]
    warm = next(row for row in found["rows"] if row["scenario"] == "warm")
    kept = next(series for series in raw if series["scenario"] == warm["measure"] and series["side"] == "ours")
    assert sum(map(len, kept["rounds"])) == warm["ours"]["count"]
    shown = command("bench", "show", str(out)).stdout
    assert shown == (out / "summary.md").read_text() and "| G1 " in shown
    assert left(servers) == []


def test_an_interrupted_benchmark_leaves_nothing(servers, tmp_path):
    words = [PROGRAM, "bench", "run", "--images", IMAGES, "--out", str(tmp_path / "never"), "warm"]
    running = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env={**CLEAN, "TMPDIR": str(servers)})
    try:
        wait_for(lambda: list(servers.glob("sandpool-bench-*/run/server.json")), "the benchmark's server", 120)
        running.send_signal(signal.SIGINT)
        said = running.communicate(timeout=120)[1]
    finally:
        running.kill()
    assert running.returncode == 1 and "interrupted" in said
    assert left(servers) == []


def test_a_benchmark_says_what_it_needs(tmp_path):
    done = command("bench", "run", "--images", str(tmp_path), "warm", check=False)
    assert done.returncode == 1
    assert "there is no image python" in done.stderr and "sandpool image build" in done.stderr
    # Nobody in particular: not root.
    os.chmod(tmp_path, 0o755)
    nobody = subprocess.run([PROGRAM, "bench", "run", "warm"], user=65534, group=65534, extra_groups=[],
                            capture_output=True, text=True, env={**CLEAN, "HOME": "/nonexistent"}, timeout=60)
    assert nobody.returncode == 1 and "only root can make those" in nobody.stderr
