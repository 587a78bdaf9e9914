"""Server, launcher, proxy and sandboxes killed at random moments under load: nothing is lost that a client was told of.

`SANDPOOL_KILLS=100 SANDPOOL_SEED=7 e2e/run -s test_kills.py` kills a hundred times, and prints what was seen.
"""

from __future__ import annotations

import os
import random
import threading
import time
import uuid
from collections import Counter

import pytest
import requests

from sandpool import Server, Target, command, descendants, json, kill, of_process, start_time, wait_for
from test_life import cgroups, left_behind

KILLS = int(os.environ.get("SANDPOOL_KILLS", "8"))
SEED = int(os.environ.get("SANDPOOL_SEED", "2026"))
CLIENTS = 4

# The longest of one answer, and of one call with all its repetitions: a loaded machine may take long to start again.
PATIENCE = 60
WHOLE = 120

CONFIG = """
listen: 127.0.0.1:0
pools:
  - apiVersion: sandpool.dev/v1alpha1
    kind: SessionPool
    metadata: {{ name: python }}
    spec:
      containerType: PythonLTS
      scaleConfiguration: {{ maxConcurrentSessions: 12, readySessionInstances: 2 }}
      egress:
        mode: allow-list
        allow: ["files.test:{port}"]
        allowAddresses: [127.0.0.0/8]
        hosts: {{ files.test: [127.0.0.1], forbidden.test: [127.0.0.1] }}
"""

COUNT = "n = globals().get('n', 0) + 1\nprint({word!r})\nn"

FETCH = """
import urllib.request
try:
    said = urllib.request.urlopen("http://{host}:{port}/{word}", timeout=10).read().decode()
except Exception as error:
    said = f"refused: {{error}}"
said
"""


class World:
    """The server under attack, and the ways to kill its parts."""

    def __init__(self):
        # Sessions reach it through the proxy; it remembers under which names.
        self.asked = Counter()
        self.target = Target(self.answer)
        self.server = Server(config=CONFIG.format(port=self.target.port))
        # Every process that belonged to it at some time, by its start: none may be left at the end.
        self.seen: dict[int, int | None] = {}

    def answer(self, request) -> tuple[bytes, dict]:
        self.asked[request.headers["Host"].partition(":")[0]] += 1
        return request.path.encode(), {}

    def note(self):
        for pid in {self.server.launcher, *descendants(self.server.launcher)}:
            self.seen.setdefault(pid, start_time(pid))

    def agents(self) -> list[int]:
        """The first processes of the sandboxes, as seen from outside."""

        def is_first(pid: int) -> bool:
            ids = of_process(pid, "status").partition("NSpid:")[2].partition("\n")[0].split()
            return len(ids) > 1 and ids[-1] == "1"

        return [pid for pid in descendants(self.server.launcher) if is_first(pid)]

    def is_whole(self) -> bool:
        return self.server.process() != 0 and self.server.proxy() != 0 and self.server.is_ready()

    def kill_part(self, word: str):
        # It may be between two lives, from the kill before.
        kill(wait_for(lambda: self.server.child(word), f"{word} to kill", WHOLE))

    def kill_agent(self, rng: random.Random):
        try:
            kill(rng.choice(wait_for(self.agents, "a sandbox to kill", WHOLE)))
        except ProcessLookupError:
            pass  # It ended by itself, which is as good.

    def kill_launcher(self):
        launcher = self.server.launcher
        parts = [launcher, *descendants(launcher)]
        begun = {pid: start_time(pid) for pid in parts}
        kill(launcher)
        are_over = lambda: all(start is None or start_time(pid) != start for pid, start in begun.items())  # noqa: E731
        wait_for(are_over, "the end of all that the launcher had started", WHOLE)
        command("serve", "--config", str(self.server.home / "config.yaml"), "--detach", home=self.server.home, timeout=300)
        self.server.record = json.loads((self.server.home / "run/server.json").read_text())
        self.server.endpoint, self.server.launcher = self.server.record["endpoint"], self.server.record["pid"]


class Client:
    """One session's client: does something, and holds what it hears against what it was told before."""

    def __init__(self, world: World, name: str, seed: int):
        self.world, self.name, self.random = world, name, random.Random(seed)
        self.sums = Counter()
        self.wrong: list[str] = []
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.work)
        self.forget()

    def forget(self):
        """A new life of the session: what is known of it."""
        self.count = 0
        self.files: dict[str, bytes] = {}
        # What had ended, in its order, with what it printed.
        self.ended: dict[str, str] = {}

    def call(self, method: str, path: str, **more) -> requests.Response | None:
        """One request, again and again until somebody answers. `None`: nobody did in a long time."""
        end = time.monotonic() + WHOLE
        while time.monotonic() < end:
            try:
                answer = self.world.server.native(method, f"/pools/python/sessions/{self.name}{path}", timeout=PATIENCE, **more)
            except requests.RequestException:
                time.sleep(0.05)
                continue
            if answer.status_code in (429, 503):
                time.sleep(0.05)
                continue
            return answer
        self.wrong.append(f"{method} {path}: nobody answered for {WHOLE} s")
        return None

    def work(self):
        try:
            while not self.stop.is_set() and not self.wrong:
                self.random.choices((self.execute, self.store, self.read, self.read_again, self.fetch), (6, 2, 2, 1, 2))[0]()
        except Exception as error:  # Whatever it is, the test must hear of it.
            self.wrong.append(repr(error))

    def is_lost(self, answer: requests.Response) -> bool:
        """Whether it says that the session was lost, which is told, and so allowed."""
        if answer.status_code != 410:
            return False
        if answer.json()["code"] != "SessionLost":
            self.wrong.append(answer.text)
        self.sums["lost"] += 1
        self.forget()
        return True

    def run(self, code: str) -> dict | None:
        """The record of an execution that ended well. The same id again starts nothing twice."""
        id = str(uuid.UUID(int=self.random.getrandbits(128), version=4))
        answer = self.call("POST", "/executions", json={"id": id, "code": code, "waitSeconds": 30})
        if answer is None or self.is_lost(answer):
            return None
        while answer is not None and answer.status_code == 202:
            answer = self.call("GET", f"/executions/{id}", params={"wait": 30})
            if answer is not None and answer.status_code == 404:
                self.wrong.append(f"{id} was promised, and is not known: {answer.text}")
        if answer is None or self.is_lost(answer):
            return None
        if answer.status_code != 200:
            self.wrong.append(f"{answer.status_code}: {answer.text}")
            return None
        record = answer.json()
        self.sums[record["outcome"]] += 1
        if record["stateLost"]:
            self.wrong.append(f"variables were lost without a kill of the interpreter: {record}")
        if record["outcome"] == "succeeded":
            self.ended[id] = record["stdout"]
            return record
        if record["outcome"] == "died":
            # Told: the next call meets the loss once more, or a new session.
            self.forget()
        elif record["outcome"] != "notStarted":
            self.wrong.append(f"{code!r} ended as {record}")
        return None

    def execute(self):
        word = f"{self.name}-{self.random.getrandbits(40)}"
        record = self.run(COUNT.format(word=word))
        if record is None:
            return
        count = record["result"]["json"]
        if count != self.count + 1 or record["stdout"] != word + "\n":
            self.wrong.append(f"the count went from {self.count} to {count}, and {record['stdout']!r} was said: {record}")
        self.count = count

    def store(self):
        name, data = f"file-{self.random.getrandbits(32)}", self.random.randbytes(self.random.randrange(20_000))
        answer = self.call("PUT", f"/files/{name}", data=data)
        if answer is None or self.is_lost(answer):
            return
        if not answer.ok:
            self.wrong.append(f"storing {name}: {answer.status_code} {answer.text}")
        self.files[name] = data
        self.sums["stored"] += 1

    def read(self):
        if not self.files:
            return
        name = self.random.choice(sorted(self.files))
        answer = self.call("GET", f"/files/{name}")
        if answer is None or self.is_lost(answer):
            return
        if answer.status_code != 200 or answer.content != self.files[name]:
            self.wrong.append(f"{name} was stored, and reading it says {answer.status_code} {answer.content[:200]!r}")
        self.sums["read"] += 1

    def read_again(self):
        """An execution that had ended; a session keeps its last 64."""
        if not self.ended:
            return
        id = self.random.choice(list(self.ended)[-50:])
        said = self.ended[id]
        answer = self.call("GET", f"/executions/{id}")
        if answer is None or self.is_lost(answer):
            return
        if answer.status_code != 200 or answer.json()["stdout"] != said:
            self.wrong.append(f"{id} had said {said!r}; now {answer.status_code} {answer.text}")
        self.sums["read again"] += 1

    def fetch(self):
        host = self.random.choice(("files.test", "files.test", "forbidden.test"))
        record = self.run(FETCH.format(host=host, port=self.world.target.port, word=self.random.getrandbits(32)))
        if record is not None:
            is_there = "refused" not in record["result"]["text"]
            self.sums[f"{host} {'reached' if is_there else 'not reached'}"] += 1


@pytest.fixture
def world():
    world = World()
    yield world
    world.server.remove()
    world.target.close()


@pytest.mark.timeout(600 + 30 * KILLS)
def test_whatever_is_killed_nothing_is_lost_that_was_told(world):
    rng = random.Random(SEED)
    clients = [Client(world, f"client-{number}", rng.getrandbits(32)) for number in range(CLIENTS)]
    for client in clients:
        client.thread.start()
    killed = Counter()
    try:
        for number in range(KILLS):
            time.sleep(0.1 + rng.random())
            world.note()
            kind = rng.choices(("server", "proxy", "agent", "launcher"), (40, 20, 30, 10))[0] if number else "launcher"
            killed[kind] += 1
            if kind == "launcher":
                world.kill_launcher()
            elif kind == "agent":
                world.kill_agent(rng)
            else:
                world.kill_part({"server": "__server", "proxy": "__egress"}[kind])
            wait_for(world.is_whole, f"what follows the end of the {kind}", WHOLE)
            assert not any(client.wrong for client in clients), [client.wrong for client in clients]
        # A little of peace: everybody gets through.
        time.sleep(1)
    finally:
        for client in clients:
            client.stop.set()
        for client in clients:
            client.thread.join(2 * WHOLE)
    for client in clients:
        assert not client.thread.is_alive() and not client.wrong, (client.name, client.wrong)
        # And once more, in order: what was told last is what is there.
        while not client.wrong and client.sums["whole at the end"] == 0:
            before = client.count
            client.execute()
            for _ in range(5):
                client.read()
                client.read_again()
            client.sums["whole at the end"] += client.count == before + 1
        assert not client.wrong, (client.name, client.wrong)
    sums = sum((client.sums for client in clients), Counter())
    print(f"{KILLS} kills from seed {SEED}: {dict(killed)}; the clients heard {dict(sums)}; the target {dict(world.asked)}")
    assert sums["succeeded"] > 0 and sums["stored"] > 0 and sums["files.test reached"] > 0
    assert world.asked["forbidden.test"] == 0 and sums["forbidden.test reached"] == 0
    world.note()
    world.server.down()
    wait_for(lambda: not left_behind(world.server, world.seen), "the end of every process that there was", WHOLE)
    wait_for(lambda: not cgroups(world.server), "the end of every control group", WHOLE)
