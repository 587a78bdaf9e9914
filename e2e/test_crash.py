"""Everything may be killed at any moment: nothing that a client was told of is lost, and nothing runs twice."""

from __future__ import annotations

import os
import random
import threading
import time
import uuid

import pytest
import requests

from sandpool import command, json, kill, start_time, wait_for

# The longest of an answer; a client whose connection breaks hears it at once.
PATIENCE = 60

# How often the server is killed, and from which seed the moments come.
KILLS = int(os.environ.get("SANDPOOL_KILLS", "8"))
SEED = int(os.environ.get("SANDPOOL_SEED", "2026"))


class Load:
    """One session at work: what its client was told."""

    def __init__(self, server, name: str, seed: int):
        self.server, self.name, self.random = server, name, random.Random(seed)
        # By id: what it prints. Told that it has ended, or only that it was accepted; and both, in their order.
        self.told: dict[str, str] = {}
        self.accepted: dict[str, str] = {}
        self.all: dict[str, str] = {}
        self.wrong: list[str] = []
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.work)
        self.path = f"/pools/python/sessions/{name}/executions"

    def work(self):
        number = 0
        while not self.stop.is_set():
            number += 1
            id, word = str(uuid.UUID(int=self.random.getrandbits(128), version=4)), f"{self.name}-{number}"
            waits = self.random.random() < 0.7
            pause = self.random.choice([0, 0, 0, 0.02, 0.1])
            code = f"import time\nran = globals().setdefault('ran', [])\nran.append({word!r})\ntime.sleep({pause})\nprint({word!r})"
            body = {"id": id, "code": code, "waitSeconds": 60 if waits else 0}
            while not self.stop.is_set():
                try:
                    answer = self.server.native("POST", self.path, json=body, timeout=PATIENCE)
                except requests.RequestException:
                    # Nothing was told; the same id again starts nothing twice.
                    time.sleep(0.05)
                    continue
                if answer.status_code == 200:
                    self.told[id] = self.all[id] = word
                    if answer.json()["outcome"] == "succeeded" and answer.json()["stdout"] != word + "\n":
                        self.wrong.append(f"{id} said {answer.json()['stdout']!r}")
                elif answer.status_code == 202:
                    self.accepted[id] = self.all[id] = word
                elif answer.status_code in (429, 503):
                    time.sleep(0.05)
                    continue
                else:
                    self.wrong.append(f"{answer.status_code}: {answer.text}")
                break

    def ended(self, id: str):
        answer = self.server.native("GET", f"{self.path}/{id}", params={"wait": 30}, timeout=PATIENCE)
        assert answer.status_code == 200, f"{self.name} was told of {id}: {answer.text}"
        record = answer.json()
        assert record["state"] == "ended", record
        return record


def newest(told: dict[str, str], most: int) -> dict[str, str]:
    """The last of them: a session keeps 64."""
    return dict(list(told.items())[-most:])


def check(loads, known):
    """What was told is there, with its output; and nothing ran twice."""
    checked = 0
    for load in loads:
        assert not load.wrong, load.wrong
        for id, word in newest(load.all, 50).items():
            record = load.ended(id)
            checked += 1
            if record["outcome"] == "succeeded":
                assert record["stdout"] == word + "\n", record
            else:
                # Killed between the promise and the start: said so, and not run.
                assert record["outcome"] == "notStarted", record
                known["notStarted"] += 1
    return checked


@pytest.mark.timeout(240 + 15 * KILLS)
def test_a_server_killed_at_any_moment_loses_nothing_it_told_of(start):
    server = start("--ready", "2")
    rng = random.Random(SEED)
    loads = [Load(server, f"crash-{number}", rng.getrandbits(32)) for number in range(4)]
    for load in loads:
        load.thread.start()
    known = {"notStarted": 0}
    try:
        for _ in range(KILLS):
            time.sleep(0.2 + rng.random())
            pid = server.process()
            kill(pid)
            wait_for(lambda: server.process() not in (0, pid) and server.is_ready(), "the server's return")
    finally:
        for load in loads:
            load.stop.set()
        for load in loads:
            load.thread.join(PATIENCE)
    checked = check(loads, known)
    for load in loads:
        code = {"code": "len(ran), len(set(ran))"}
        all_of_them, different = map(int, server.native("POST", load.path, json=code).json()["result"]["text"].strip("()").split(","))
        assert all_of_them == different, f"{load.name}: something ran twice"
        assert different >= len(load.told) - known["notStarted"], f"{load.name} was told of {len(load.told)}, and {different} ran"
    told = sum(len(load.told) + len(load.accepted) for load in loads)
    print(f"{KILLS} kills, {told} executions told of, {checked} read again, {known['notStarted']} reported as not started")
    # Now all of it at once: the sandboxes end with the launcher, and the server with it.
    pid = server.process()
    time.sleep(0.2)
    kill(server.launcher)
    kill(pid)
    # A process that was killed takes a moment to be gone.
    wait_for(lambda: start_time(server.launcher) is None and start_time(pid) is None, "the end of all")
    command("up", "--listen", "127.0.0.1:0", "--detach", "--ready", "2", home=server.home, timeout=300)
    server.record = json.loads((server.home / "run/server.json").read_text())
    server.endpoint, server.launcher = server.record["endpoint"], server.record["pid"]
    for load in loads:
        for id, word in newest(load.told, 10).items():
            record = load.ended(id)
            assert record["stdout"] in (word + "\n", ""), record
        lost = server.native("PUT", f"/pools/python/sessions/{load.name}")
        assert lost.status_code == 410 and lost.json()["code"] == "SessionLost", lost.text
        assert server.native("PUT", f"/pools/python/sessions/{load.name}").status_code == 201


def test_state_that_cannot_be_used_is_refused_with_what_to_do(start):
    server = start("--ready", "1")
    server.down()
    state = server.home / "state/sandpool.db"
    assert state.stat().st_mode & 0o777 == 0o600, "for nobody else"
    state.write_bytes(b"x" * 8192)
    for rest in ("sandpool.db-wal", "sandpool.db-shm"):
        (state.parent / rest).unlink(missing_ok=True)
    done = command("up", "--listen", "127.0.0.1:0", "--detach", "--ready", "1", home=server.home, check=False, timeout=300)
    assert done.returncode != 0
    said = done.stderr + server.log()
    assert "is damaged" in said and "mv " in said, said
