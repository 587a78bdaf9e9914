#!/usr/bin/env python3
"""Measures what a caller feels, beside the same work without us, in one run. Needs root, images, and nothing else.

    bench/figures.py [--program target/release/sandpool] [--images DIR] [--rounds N] [--json]

Closed loop, one caller: each figure is the time from the request's first byte to the answer's last, in milliseconds, over one
connection that is kept. Load at a fixed rate, and peers, are for the benchmark suite that this grows into.
"""

import argparse
import http.client
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from urllib.parse import urlsplit


class Server:
    """One server of its own, on a free port."""

    def __init__(self, program, images, *words):
        self.program, self.home = program, tempfile.TemporaryDirectory(prefix="sandpool-bench-")
        common = ["--listen", "127.0.0.1:0", "--images", images]
        began = time.perf_counter()
        self.run("up", "--detach", *common, *words)
        self.started_ms = (time.perf_counter() - began) * 1e3
        with open(os.path.join(self.home.name, "run/server.json")) as file:
            address = urlsplit(json.load(file)["endpoint"])
        token = self.run("token", "--role", "admin").strip()
        self.headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        self.connection = http.client.HTTPConnection(address.hostname, address.port)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.run("down")
        self.home.cleanup()

    def run(self, *words):
        command = [self.program, "--home", self.home.name, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def call(self, method, path, body=None):
        data = None if body is None else json.dumps(body)
        self.connection.request(method, path, data, self.headers)
        answer = self.connection.getresponse()
        text = answer.read()
        if answer.status >= 400:
            raise SystemExit(f"{method} {path}: {answer.status} {text[:300]!r}")
        return text

    def execute(self, pool, session, work):
        answer = json.loads(self.call("POST", f"/pools/{pool}/sessions/{session}/executions", work))
        if answer.get("outcome") not in ("succeeded", "exited"):
            raise SystemExit(f"{work}: {answer}")

    def full(self, pool, ready):
        """Waits until the reservoir is full."""
        limit = time.monotonic() + 120
        while time.monotonic() < limit:
            found = json.loads(self.call("GET", f"/pools/{pool}"))
            if found["ready"] >= ready and found["booting"] == 0:
                return
            time.sleep(0.02)
        raise SystemExit(f"the pool {pool} did not become full")


def timed(rounds, work, before=lambda: None):
    """The milliseconds of each round."""
    taken = []
    for _ in range(rounds):
        before()
        began = time.perf_counter()
        work()
        taken.append((time.perf_counter() - began) * 1e3)
    return taken


class Names:
    def __init__(self):
        self.count = 0

    def new(self):
        self.count += 1
        return f"bench-{self.count:06}"


def bare_python(rounds):
    """An interpreter on a pipe: what one evaluation costs without us."""
    loop = "import sys\nfor line in sys.stdin:\n print(eval(line), flush=True)"
    with subprocess.Popen(
        [sys.executable, "-c", loop], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as child:

        def once():
            child.stdin.write("6 * 7\n")
            child.stdin.flush()
            assert child.stdout.readline() == "42\n"

        once()
        taken = timed(rounds, once)
        child.stdin.close()
    return taken


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--program", default="target/release/sandpool")
    options.add_argument("--images", default=os.environ.get("SANDPOOL_IMAGES", "/var/lib/sandpool/images"))
    options.add_argument("--rounds", type=int, default=200)
    options.add_argument("--json", action="store_true")
    asked = options.parse_args()
    rows, memory, names = {}, {}, Names()
    code = {"python": {"code": "6 * 7"}, "node": {"code": "6 * 7"}, "shell": {"command": "true"}}

    rows["floor: an evaluation by an interpreter on a pipe"] = bare_python(asked.rounds)
    rows["floor: start of a bare shell command"] = timed(asked.rounds, lambda: subprocess.run(["/bin/bash", "-c", "true"], check=True))
    ready = 4
    with Server(asked.program, asked.images, "--ready", str(ready)) as server:
        rows["floor: GET /healthz"] = timed(asked.rounds, lambda: server.call("GET", "/healthz"))
        for pool, work in code.items():
            server.execute(pool, "bench-warm", work)
            rows[f"{pool}: execution, live session"] = timed(
                asked.rounds, lambda: server.execute(pool, "bench-warm", work)
            )
        legacy = {"properties": {"codeInputType": "inline", "executionType": "synchronous", "code": "6 * 7"}}
        path = "/pools/python/code/execute?api-version=2024-02-02-preview&identifier=bench-warm"
        rows["python: the same on Azure's route"] = timed(asked.rounds, lambda: server.call("POST", path, legacy))
        for pool, work in code.items():
            used = []

            def before():
                while used:
                    server.call("DELETE", f"/pools/{pool}/sessions/{used.pop()}")
                server.full(pool, ready)

            def fresh():
                used.append(names.new())
                server.execute(pool, used[-1], work)

            rows[f"{pool}: first execution, new identifier, full reservoir"] = timed(asked.rounds // 5, fresh, before)
            # What a session costs when nothing has been done in it but that.
            usage = json.loads(server.call("GET", f"/pools/{pool}/sessions/{used[-1]}"))["usage"]
            memory[pool] = usage.get("memoryBytes", usage.get("memory"))
        rows["server: start to ready (once)"] = [server.started_ms]
    with Server(asked.program, asked.images, "--ready", "0") as server:
        for pool, work in code.items():

            def cold():
                session = names.new()
                server.execute(pool, session, work)
                server.call("DELETE", f"/pools/{pool}/sessions/{session}")

            rows[f"{pool}: first execution, new identifier, empty reservoir"] = timed(asked.rounds // 20, cold)

    def percentile(values, part):
        ordered = sorted(values)
        return ordered[min(len(ordered) - 1, int(len(ordered) * part))]

    if asked.json:
        print(json.dumps({"machine": platform.platform(), "milliseconds": rows, "memoryBytes": memory}))
        return
    print(f"{'milliseconds':<62} {'rounds':>6} {'p50':>9} {'p90':>9} {'p99':>9}")
    for name, values in rows.items():
        figures = [statistics.median(values), percentile(values, 0.9), percentile(values, 0.99)]
        print(f"{name:<62} {len(values):>6} " + " ".join(f"{figure:>9.3f}" for figure in figures))
    for pool, size in memory.items():
        print(f"{pool}: memory of an idle session's control group: {size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
