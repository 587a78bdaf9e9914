"""`sandpool doctor --attack`: every attacker, in sandboxes of a server of its own, over the HTTP API."""

from __future__ import annotations

import os

import pytest

from sandpool import command, json


@pytest.mark.timeout(900)
def test_the_walls_hold_against_every_attacker():
    arguments = ["--json", "doctor", "--attack", "--loud", "--images", os.environ["SANDPOOL_IMAGES"]]
    done = command(*arguments, check=False, timeout=850)
    assert done.stdout, done.stderr
    said = json.loads(done.stdout)
    broken = [attacker for attacker in said["attackers"] if attacker["verdict"] == "broken"]
    assert not broken and not said["host"], (broken, said["host"])
    # Nothing is left out: there is an image for each.
    assert all(attacker["verdict"] == "held" for attacker in said["attackers"])
    assert len(said["attackers"]) >= 200
    assert {attacker["pool"] for attacker in said["attackers"]} == {"zygote", "cold", "egress", "node", "shell"}
    assert done.returncode == 0


def test_without_images_it_says_what_to_do(tmp_path):
    done = command("doctor", "--attack", "--images", str(tmp_path), check=False)
    assert done.returncode != 0 and "sandpool image build --images" in done.stderr, done.stderr
    done = command("doctor", "--loud", check=False)
    assert done.returncode == 2 and "--attack" in done.stderr, done.stderr
