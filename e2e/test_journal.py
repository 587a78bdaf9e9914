"""The journal: who did what, and that nobody changed what is written of it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
import sqlite3
import subprocess

import pytest
from sandpool import Server, command, kill, wait_for

CODE = "print('this is in no journal')"


@pytest.fixture(scope="module")
def server():
    pool = {
        "metadata": {"name": "python"},
        "spec": {
            "containerType": "PythonLTS",
            "scaleConfiguration": {"readySessionInstances": 1, "maxConcurrentSessions": 4},
            "egress": {"mode": "allow-list", "allow": ["example.test"]},
            "mcpServerSettings": {"isMcpServerEnabled": True},
        },
    }
    server = Server(config=json.dumps({"listen": "127.0.0.1:0", "pools": [pool]}))
    server.bearer = server.token("--role", "admin")
    yield server
    server.remove()


def records(server: Server, *words: str) -> list[dict]:
    return server.json("journal", "ls", "-n", "1000000", *words)


def verify(home_or_server, *words: str) -> dict:
    home = home_or_server.home if isinstance(home_or_server, Server) else home_or_server
    done = command("--json", "journal", "verify", *words, home=home, check=False)
    assert done.stdout, done.stderr
    said = json.loads(done.stdout)
    assert done.returncode == (0 if said["isIntact"] else 1), done.stderr
    return said


def problems(said: dict) -> list[str]:
    return [problem["message"] for problem in said["problems"]]


def test_what_is_done_to_sessions_and_pools_is_told_with_who_did_it(server):
    session, other = "/pools/python/sessions/mine", server.token("--role", "executor")
    assert server.native("POST", f"{session}/executions", json={"code": CODE}).json()["stdout"] == "this is in no journal\n"
    azure = server.pool().call("POST", "executions", "mine", token=other, json={"properties": {"code": CODE, "codeInputType": "inline"}})
    assert azure.status_code in (200, 202), azure.text
    assert server.native("PUT", f"{session}/files/a.txt", data=b"never told").status_code == 200
    assert server.native("DELETE", f"{session}/files/a.txt").status_code == 204
    assert server.native("PUT", f"{session}/egress", json={"mode": "none"}).status_code == 200
    assert server.native("DELETE", f"{session}/egress").status_code == 204
    assert server.native("POST", "/pools/python/mcp/credentials?rotate=true").status_code == 200
    assert server.native("DELETE", session).status_code == 204
    made = {"kind": "SessionPool", "metadata": {"name": "made"}, "spec": {"containerType": "Shell"}}
    assert server.native("PUT", "/pools/made", json=made).status_code == 201
    assert server.native("PUT", "/pools/made", json=made).json()["result"] == "unchanged"
    assert server.native("PUT", "/pools/made?dryRun=true", json=made).status_code == 200
    assert server.native("DELETE", "/pools/made").status_code == 204

    words = [
        "session.opened", "execution.accepted", "execution.accepted", "file.written", "file.removed", "egress.narrowed",
        "egress.widened", "session.deleted", "session.ended",
    ]  # fmt: skip
    wait_for(lambda: records(server, "--what", "pool.removed"), "what was done to be written")
    told = records(server, "--session", "mine")
    assert [record["what"] for record in told] == words
    assert {(record["pool"], record["session"]) for record in told} == {("python", "mine")}
    assert len({record["sandbox"] for record in told}) == 1
    digest = hashlib.sha256(CODE.encode()).hexdigest()
    assert all(f"code sha256:{digest} execution:" in record["detail"] for record in told[1:3])
    assert told[3]["detail"] == told[4]["detail"] == "/mnt/data/a.txt"
    assert all(record["subject"] for record in told)
    of_pools = {record["what"]: record for record in records(server) if record["what"].split(".")[0] in ("pool", "key")}
    assert set(of_pools) == {"pool.applied", "pool.removed", "key.rotated"}
    assert of_pools["pool.applied"]["pool"] == "made" and of_pools["pool.applied"]["detail"].startswith("generation:1 sha256:")
    assert [record["what"] for record in records(server, "--what", "pool")] == ["pool.applied", "pool.removed"]
    # What was run, and what it printed, is nowhere in it.
    whole = server.run("journal", "export").stdout
    assert "in no journal" not in whole and "never told" not in whole
    listed = server.run("journal", "ls", "--session", "mine").stdout.splitlines()
    assert len(listed) == 1 + len(words) and "session.opened" in listed[1]
    said = verify(server)
    assert said["isIntact"] and said["records"] == len(records(server))


def test_a_killed_server_goes_on_with_the_same_chain(server):
    before = verify(server)
    noted = f"{before['head']['number']}:{before['head']['hash']}"
    kill(server.process())
    wait_for(server.is_ready, "the server is back")
    assert server.native("POST", "/pools/python/sessions/after/executions", json={"code": "1"}).status_code == 200
    wait_for(lambda: records(server, "--session", "after"), "it is written")
    after = verify(server, "--noted", noted)
    assert after["isIntact"] and after["records"] > before["records"], after
    wrong = verify(server, "--noted", f"{before['head']['number']}:{'0' * 64}")
    assert problems(wrong) == [f"record {before['head']['number']} does not have the hash that was noted: the journal was made anew"]


def test_an_export_is_verified_anywhere_and_what_was_changed_is_located(server, tmp_path):
    for number in range(6):
        assert server.native("POST", f"/pools/python/sessions/many/executions", json={"code": str(number)}).status_code == 200
    wait_for(lambda: len(records(server, "--session", "many")) == 7, "all is written")
    file = tmp_path / "journal.jsonl"
    file.write_text(server.run("journal", "export").stdout)
    nowhere = tmp_path / "nowhere"
    assert verify(nowhere, str(file))["isIntact"]
    lines = file.read_text().splitlines(keepends=True)

    def tampered(change) -> list[str]:
        copy = list(lines)
        change(copy)
        file.write_text("".join(copy))
        return problems(verify(nowhere, str(file)))

    def flip(copy):
        copy[5] = copy[5].replace('"pool":"python"', '"pool":"pythoo"')

    assert tampered(flip) == ["record 5 was changed: it does not have its hash"]
    assert tampered(lambda copy: copy.pop(6)) == ["record 6 is missing"]
    assert tampered(lambda copy: copy.insert(7, copy.pop(8))) == ["record 7 was moved: it stands after a later one"]
    assert tampered(lambda copy: copy.pop(-2)) == [f"record {len(lines) - 2} is missing"]
    # Any byte of a record.
    record = lines[4]
    for at in range(0, len(record) - 1, 7):
        def change(copy, at=at):
            copy[4] = record[:at] + chr(ord(record[at]) ^ 1) + record[at + 1 :]  # fmt: skip

        found = tampered(change)
        assert found and all("record" in problem for problem in found) and re.search(r"records? 4\b", found[0]), (at, found)
    # Half a file is none.
    file.write_text("".join(lines[:-1]))
    cut = command("journal", "verify", str(file), home=nowhere, check=False)
    assert cut.returncode == 1 and "cut off" in cut.stderr
    file.write_text("nonsense\n")
    assert "its first line" in command("journal", "verify", str(file), home=nowhere, check=False).stderr
    # A part of it is a chain too.
    part = server.run("journal", "export", "--after", "5").stdout
    file.write_text(part)
    assert verify(nowhere, str(file))["isIntact"] and '"number":6' in part.splitlines()[1]


def test_a_hundred_thousand_records(server, tmp_path):
    """Made by the journal's own rule, as docs/journal.md has it, and verified as a file and in the database."""
    home = tmp_path / "home"
    (home / "state").mkdir(parents=True)
    database = home / "state/sandpool.db"
    with sqlite3.connect(server.home / "state/sandpool.db") as source, sqlite3.connect(database) as copy:
        source.backup(copy)
    with sqlite3.connect(database) as copy:
        [last] = copy.execute("SELECT number, hash FROM audit ORDER BY number DESC LIMIT 1")
        number, previous = last
        rows = []
        for _ in range(100_000):
            number += 1
            texts = ["acme", "somebody", "python", f"s{number % 100}", "ab" * 16, "execution.accepted", f"code sha256:{number:064x}"]
            hashed = hashlib.sha256(b"sandpool journal 1\0" + previous + number.to_bytes(8) + (number * 1_000).to_bytes(8))
            for text in texts:
                hashed.update(len(text).to_bytes(8) + text.encode())
            previous = hashed.digest()
            rows.append((number, number * 1_000, *texts, previous))
        copy.executemany("INSERT INTO audit VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
    with contextlib.closing(sqlite3.connect(database)) as copy:
        copy.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    said = verify(home)
    assert said["isIntact"] and said["records"] > 100_000, said
    assert said["head"] == {"number": number, "hash": previous.hex()}
    middle = number - 50_000

    def damaged(*statements: str) -> list[str]:
        broken = tmp_path / "broken"
        shutil.rmtree(broken, ignore_errors=True)
        shutil.copytree(home, broken)
        with sqlite3.connect(broken / "state/sandpool.db") as database:
            for statement in statements:
                database.execute(statement)
        return problems(verify(broken))

    changed = damaged(f"UPDATE audit SET detail = replace(detail, 'code', 'codf') WHERE number = {middle}")
    assert changed == [f"record {middle} was changed: it does not have its hash"]
    assert damaged(f"DELETE FROM audit WHERE number = {middle}") == [f"record {middle} is missing"]
    swap = [f"UPDATE audit SET number = {to} WHERE number = {of}" for of, to in ((middle, -1), (middle + 1, middle), (-1, middle + 1))]
    assert damaged(*swap) == [
        f"record {middle} was moved: what stands there was written as record {middle + 1}",
        f"record {middle + 1} was moved: what stands there was written as record {middle}",
    ]
    # One bit in the file itself.
    broken = tmp_path / "broken"
    shutil.rmtree(broken, ignore_errors=True)
    shutil.copytree(home, broken)
    raw = bytearray((broken / "state/sandpool.db").read_bytes())
    at = raw.index(f"{middle:064x}".encode()) + 63
    raw[at] ^= 1
    (broken / "state/sandpool.db").write_bytes(raw)
    assert problems(verify(broken)) == [f"record {middle} was changed: it does not have its hash"]


def test_what_cannot_be_read_is_told(tmp_path):
    none = command("journal", "ls", home=tmp_path, check=False)
    assert none.returncode == 1 and "there is no journal" in none.stderr
    (tmp_path / "state").mkdir()
    (tmp_path / "state/sandpool.db").write_bytes(b"x" * 5_000)
    damaged = command("journal", "verify", home=tmp_path, check=False)
    assert damaged.returncode == 1 and "damaged" in damaged.stderr, damaged.stderr
    assert command("journal", "verify", "--noted", "7", home=tmp_path, check=False).returncode == 2


def test_a_stopped_servers_journal_is_read_and_starts_again(tmp_path):
    server = Server(config=json.dumps({"listen": "127.0.0.1:0", "pools": [{"metadata": {"name": "s"}, "spec": {"containerType": "Shell"}}]}))
    try:
        server.down()
        assert verify(server)["isIntact"]
        owner = (server.home / "state/sandpool.db").stat().st_uid
        assert {file.stat().st_uid for file in (server.home / "state").iterdir()} == {owner}
        server.run("serve", "--config", server.home / "config.yaml", "--detach", timeout=120)
        started = [record for record in server.json("journal", "ls") if record["what"] == "server.started"]
        assert len(started) == 2 and verify(server)["isIntact"]
        server.run("down")
    finally:
        server.remove()
