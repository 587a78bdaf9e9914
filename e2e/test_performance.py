"""The tables of docs/performance.md are those of the run that the page names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_page_has_what_its_run_gives():
    done = subprocess.run([sys.executable, ROOT / "bench/performance.py", "check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_peer_names_its_scenarios():
    peers = [path for path in (ROOT / "bench/peers").iterdir() if path.is_file() and "." not in path.name]
    assert len(peers) >= 7
    for peer in peers:
        found = subprocess.run([peer, "scenarios"], capture_output=True, text=True, check=True).stdout.split()
        assert "warm" in found, peer
