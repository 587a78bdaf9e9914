"""Terminals of sessions: over WebSockets and by `sandpool shell`, left and found again, also after the server was killed."""

from __future__ import annotations

import contextlib
import re
import urllib.parse
import uuid

import pytest
import websockets
from websockets.sync.client import connect

from sandpool import PROGRAM, Server, check_error, json, kill, memory, wait_for
from test_cli import Terminal as Screen

PROTOCOL = "sandpool.terminal.v1"

# The longest wait for a message.
PATIENCE = 60

MEGABYTE = 1 << 20

CONFIG = """
listen: 127.0.0.1:0
tenants: [{ name: acme }]
pools:
  - metadata: { name: shell }
    spec:
      containerType: Shell
      scaleConfiguration: { maxConcurrentSessions: 8, readySessionInstances: 1 }
  - metadata: { name: brief }
    spec:
      containerType: Shell
      scaleConfiguration: { maxConcurrentSessions: 4, readySessionInstances: 1 }
      dynamicPoolConfiguration: { lifecycleConfiguration: { cooldownPeriodInSeconds: 3 } }
"""


@pytest.fixture(scope="module")
def own():
    """A server that may be killed, with a pool whose sessions end soon."""
    server = Server(config=CONFIG)
    wait_for(server.is_ready, "the server's pools")
    yield server
    server.remove()


def open_socket(server, path: str, headers=None, protocols=(PROTOCOL,), token: str | None = "", **query):
    """A WebSocket to a terminal; `token` None sends none."""
    words = [(name, word) for name, value in query.items() for word in (value if isinstance(value, list) else [value])]
    url = f"{server.endpoint.replace('http', 'ws', 1)}{path}?{urllib.parse.urlencode(words)}"
    sent = dict(headers or {})
    if token is not None:
        sent["Authorization"] = f"Bearer {token or server.bearer}"
    return connect(url, subprotocols=list(protocols) or None, additional_headers=sent, max_size=None, compression=None,
        proxy=None, open_timeout=PATIENCE)  # fmt: skip


def refusal(server, path: str, **more):
    """The status and code of a refused upgrade."""
    with pytest.raises(websockets.InvalidStatus) as refused:
        open_socket(server, path, **more)
    response = refused.value.response
    return response.status_code, response.headers.get("x-ms-error-code")


class Terminal:
    """One connection to a terminal."""

    def __init__(self, server, session: str, name: str = "main", pool: str = "shell", **query):
        self.path = f"/pools/{pool}/sessions/{session}/terminals/{name}"
        self.socket = open_socket(server, self.path, **query)
        self.attached = json.loads(self.socket.recv(PATIENCE))
        assert self.attached["type"] == "attached", self.attached
        self.offset = self.attached["offset"]
        self.missed = 0
        self.output = b""
        self.told = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def hear(self):
        """One message; output is also kept."""
        message = self.socket.recv(PATIENCE)
        if isinstance(message, bytes):
            self.output += message
            self.offset += len(message)
            return message
        message = json.loads(message)
        if message["type"] == "missed":
            self.missed += message["bytes"]
            self.offset += message["bytes"]
            assert message["offset"] == self.offset, message
        self.told.append(message)
        return message

    def send(self, text: str | bytes):
        self.socket.send(text.encode() if isinstance(text, str) else text)

    def say(self, **message):
        self.socket.send(json.dumps(message))

    def expect(self, pattern: str):
        """Reads until what was shown since the last time has this in it."""
        while not (found := re.search(pattern.encode(), self.output)):
            message = self.hear()
            assert not (isinstance(message, dict) and message["type"] == "ended"), f"{message} without {pattern}: {self.output!r}"
        self.output = self.output[found.end() :]
        return found

    def prompt(self):
        return self.expect(r"[$#] ")

    def ended(self) -> dict:
        """Its end, and that of the connection."""
        while True:
            message = self.hear()
            if isinstance(message, dict) and message["type"] == "ended":
                break
        with pytest.raises(websockets.ConnectionClosed) as closed:
            self.socket.recv(PATIENCE)
        assert closed.value.rcvd.code == 1000
        return message


def run(server, session: str, command: str, pool: str = "shell") -> str:
    """What a command in the session prints."""
    answer = server.native("POST", f"/pools/{pool}/sessions/{session}/executions", json={"command": command})
    assert answer.status_code == 200, answer.text
    return answer.json()["stdout"].strip()


def listed(server, session: str, pool: str = "shell") -> list[dict]:
    answer = server.native("GET", f"/pools/{pool}/sessions/{session}/terminals")
    assert answer.status_code == 200, answer.text
    return answer.json()["value"]


def test_a_shell_on_a_terminal_of_its_own(server, session):
    with Terminal(server, session, rows=30, columns=100) as terminal:
        assert terminal.attached["isNew"] and terminal.attached["offset"] == terminal.attached["missed"] == 0
        assert terminal.socket.subprotocol == PROTOCOL
        terminal.prompt()
        terminal.send("tty; stty size; echo $TERM; ps -o sid=,pid= -p $$ | tr -s ' '\r")
        terminal.expect(r"/dev/pts/\d+\s+30 100\s+xterm-256color")
        session_id, pid = terminal.expect(r"(\d+) (\d+)").groups()
        assert session_id == pid, "it leads its session"
        terminal.say(type="resize", rows=43, columns=133)
        terminal.send("stty size\r")
        terminal.expect("43 133")
        [one] = listed(server, session)
        assert (one["name"], one["rows"], one["columns"], one["state"], one["attached"]) == ("main", 43, 133, "running", 1)
        assert one["execution"] == terminal.attached["execution"] and one["command"][-1] == "-l", one
        terminal.send("exit 7\r")
        assert terminal.ended() == {"type": "ended", "outcome": "exited", "exitCode": 7, "detail": None}
    [one] = listed(server, session)
    assert (one["state"], one["outcome"], one["exitCode"], one["attached"]) == ("ended", "exited", 7, 0)
    with Terminal(server, session) as again:
        assert again.attached["isNew"] and again.attached["execution"] != one["execution"]


def test_signals_reach_what_is_in_the_foreground(server, session):
    with Terminal(server, session) as terminal:
        terminal.prompt()
        # Said by what runs there: bash itself loses a signal that comes while it starts something.
        begin = "sh -c 'echo go\"\"ing; exec sleep 1000'\r"
        for end in ("\x03", {"signal": "INT"}, {"signal": "TERM"}, {"signal": "KILL"}, {"signal": "HUP"}, {"signal": "QUIT"}):
            terminal.send(begin)
            terminal.expect("going")
            if isinstance(end, str):
                terminal.send(end)
            else:
                terminal.say(type="signal", **end)
            terminal.prompt()
        terminal.send(begin)
        terminal.expect("going")
        terminal.say(type="signal", signal="TSTP")
        terminal.expect("Stopped")
        terminal.prompt()
        terminal.send("kill -9 %1; wait; echo ba''ck\r")
        terminal.expect("back")
        for bad in ('{"type":"signal","signal":"STOP"}', '{"type":"resize","rows":0,"columns":1}', "x", "[]", "{}", "x" * 5_000):
            terminal.socket.send(bad)
            while not terminal.told:
                terminal.hear()
            told = terminal.told.pop()
            assert told["type"] == "error" and len(told["message"]) > 10, (bad, told)
        terminal.send("echo st''ill\r")
        terminal.expect("still")


FULL_SCREEN = """
import curses
def main(screen):
    while True:
        screen.erase()
        screen.addstr(0, 0, f'size {curses.LINES} {curses.COLS}')
        screen.refresh()
        key = screen.getch()
        if key == ord('q'):
            return
        if key == curses.KEY_RESIZE:
            curses.update_lines_cols()
curses.wrapper(main)
print('done')
"""


def test_a_program_that_takes_the_whole_screen(server, session):
    program = ["python3", "-c", FULL_SCREEN]
    with Terminal(server, session, "screen", pool="python", command=program, rows=25, columns=90) as terminal:
        terminal.expect(r"\x1b\[\?1049h")
        terminal.expect("size 25 90")
        terminal.say(type="resize", rows=50, columns=120)
        # What has changed is drawn, and nothing else.
        terminal.expect(r"50")
        terminal.expect(r"120")
        terminal.send("q")
        terminal.expect(r"\x1b\[\?1049l")
        terminal.expect("done")
        assert terminal.ended()["exitCode"] == 0
    with Terminal(server, session, "top", pool="shell") as terminal:
        terminal.prompt()
        terminal.send("top -d 0.2\r")
        terminal.expect("PID")
        terminal.expect("load average")
        terminal.send("q")
        terminal.prompt()


def test_two_terminals_and_two_who_look_at_one(server, session):
    with Terminal(server, session, "one") as one, Terminal(server, session, "two") as two:
        one.prompt(), two.prompt()
        one.send("x=mine; tty\r"), two.send("tty; echo x=$x.\r")
        names = {terminal.expect(r"(/dev/pts/\d+)")[1] for terminal in (one, two)}
        assert len(names) == 2
        two.expect(r"x=\.")
        with Terminal(server, session, "one") as other:
            assert not other.attached["isNew"] and other.attached["execution"] == one.attached["execution"]
            other.send("echo $x-by-''other\r")
            for terminal in (one, other):
                terminal.expect("mine-by-other")
            assert {entry["name"]: entry["attached"] for entry in listed(server, session)} == {"one": 2, "two": 1}
        one.send("echo al''one\r")
        one.expect("alone")


# Prints a block of numbered lines for each line that it reads.
BLOCKS = """stty -echo; echo ready
n=0; while read line; do i=0; while [ $i -lt 4000 ]; do echo "$n $i the line"; i=$((i + 1)); done; n=$((n + 1)); done"""
BLOCK = 4_000


def whole(blocks: int) -> bytes:
    return b"ready\r\n" + b"".join(f"{n} {i} the line\r\n".encode() for n in range(blocks) for i in range(BLOCK))


@pytest.mark.timeout(300)
def test_nothing_is_lost_or_doubled_over_broken_connections_and_a_killed_server(own):
    session = f"continuous-{uuid.uuid4().hex[:8]}"
    terminal = Terminal(own, session, command=["sh", "-c", BLOCKS])
    execution, got = terminal.attached["execution"], b""
    for block in range(8):
        while len(got) + len(terminal.output) < len(whole(block)):
            terminal.hear()
        terminal.send("go\n")
        # It is on its way.
        terminal.hear()
        if block % 2:
            terminal.socket.socket.close()
        else:
            before = own.process()
            kill(before)
            wait_for(lambda: own.process() not in (0, before) and own.is_ready(), "the server's return", 60)
        with contextlib.suppress(websockets.ConnectionClosed):
            while True:
                terminal.hear()
        got += terminal.output
        assert terminal.offset == len(got)
        terminal = Terminal(own, session, after=len(got), execution=execution)
        assert terminal.attached["offset"] == len(got) and terminal.attached["missed"] == 0, terminal.attached
    while len(got) + len(terminal.output) < len(whole(8)):
        terminal.hear()
    assert got + terminal.output == whole(8)
    # All of the scrollback, for who has nothing.
    with Terminal(own, session) as other:
        other.expect("7 3999 the line\r\n")
        assert other.attached["missed"] == 0 and other.offset == len(whole(8))
    # Another of that name is another.
    assert own.native("DELETE", terminal.path).status_code == 204
    assert terminal.ended()["outcome"] == "cancelled"
    assert refusal(own, terminal.path, execution=execution) == (404, "TerminalNotFound")
    with Terminal(own, session, after=len(got)) as other:
        assert other.attached["isNew"] and other.attached["offset"] == 0 and other.attached["execution"] != execution


@pytest.mark.timeout(300)
def test_a_flood_and_who_reads_slowly_cost_the_others_nothing(own):
    session = f"flood-{uuid.uuid4().hex[:8]}"
    with Terminal(own, session, command=["sh", "-c", "echo ready; read line; exec yes 0123456789abcdef"]) as quick:
        quick.expect("ready")
        with Terminal(own, session) as slow:
            process = own.process()
            before = memory(process)
            quick.send("\n")
            # One who reads gets all of it, in order, however slowly the other one does.
            quick.output, line = b"", b"0123456789abcdef\r\n"
            start = None
            total = 0
            while total < 24 * MEGABYTE:
                assert isinstance(quick.hear(), bytes)
                if start is None:
                    start = quick.output.find(line)
                    assert start >= 0 or len(quick.output) < 100, quick.output
                    if start < 0:
                        start = None
                        continue
                    quick.output = quick.output[start:]
                whole_lines = len(quick.output) // len(line)
                assert quick.output[: whole_lines * len(line)] == line * whole_lines
                quick.output = quick.output[whole_lines * len(line) :]
                total += whole_lines * len(line)
            assert quick.missed == 0
            assert memory(process) - before < 24 * MEGABYTE
            assert run(own, f"{session}-other", "echo quick") == "quick"
            # The other one has missed some, and hears how many; what follows is whole again.
            while not slow.missed:
                slow.hear()
            assert slow.missed > MEGABYTE
    # Nobody looks at it, or only one who does not read: its program goes on.
    count = "while :; do head -c 65536 /dev/zero | tr '\\0' x; echo >> /mnt/data/count; done"
    with Terminal(own, session, "count", command=["sh", "-c", count]) as deaf:
        for most in (120, 240):
            wait_for(lambda: int(run(own, session, "wc -l < /mnt/data/count || echo 0") or 0) > most, "a program that goes on", 60)
            deaf.socket.socket.close()
    for name in ("main", "count"):
        assert own.native("DELETE", f"/pools/shell/sessions/{session}/terminals/{name}").status_code == 204
    assert listed(own, session) == []


def test_a_long_paste_comes_whole(server, session):
    command = "stty raw -echo; echo ready; head -c 1500000 | sha256sum"
    data = bytes(range(256)) * 6_000
    with Terminal(server, session, command=["sh", "-c", command]) as terminal:
        terminal.expect("ready")
        for at in range(0, 1_500_000, MEGABYTE):
            terminal.send(data[:1_500_000][at : at + MEGABYTE])
        import hashlib

        terminal.expect(hashlib.sha256(data[:1_500_000]).hexdigest())
        # Longer than a message may be: the connection ends, and says why.
        terminal.ended()
    with Terminal(server, session, "other") as terminal:
        terminal.send(b"x" * (MEGABYTE + 1))
        with pytest.raises(websockets.ConnectionClosed) as closed:
            while True:
                terminal.socket.recv(PATIENCE)
        assert closed.value.rcvd.code == 1009
    assert [one["state"] for one in listed(server, session) if one["name"] == "other"] == ["running"]


def test_who_may_not_is_refused(own):
    session = f"refused-{uuid.uuid4().hex[:8]}"
    path = f"/pools/shell/sessions/{session}/terminals/main"
    foreign = {"Origin": "https://elsewhere.example"}
    assert refusal(own, path, token=None) == (401, "Unauthorized")
    assert refusal(own, path, token="wrong") == (401, "Unauthorized")
    assert refusal(own, path, token=None, protocols=(PROTOCOL, "sandpool.bearer.wrong")) == (401, "Unauthorized")
    assert refusal(own, path, token=None, headers=foreign) == (403, "OriginNotAllowed")
    assert refusal(own, path, token=own.token("--role", "reader")) == (403, "Forbidden")
    assert refusal(own, path, token=None, protocols=(f"sandpool.bearer.{own.bearer}",))[0] == 400
    for name, query in (("main", {"rows": 0}), ("main", {"term": "a b"}), ("main", {"create": "perhaps"}), ("x" * 65, {}), ("a%20b", {})):
        assert refusal(own, path.replace("main", name), **query) == (400, "SessionRequestValidationFailed"), (name, query)
    assert refusal(own, path, create="false")[0] == 404
    check_error(own.native("GET", path), 426, "WebSocketRequired")
    assert own.native("GET", f"/pools/shell/sessions/{session}").status_code == 404, "nobody has made a session"
    # A browser's way, also from another origin: the token is in the handshake, and nowhere else.
    mark = len(own.log())
    with open_socket(own, path, token=None, headers=foreign, protocols=(PROTOCOL, f"sandpool.bearer.{own.bearer}")) as socket:
        assert socket.subprotocol == PROTOCOL
        assert own.bearer not in str(socket.response.headers)
        assert json.loads(socket.recv(PATIENCE))["isNew"]
        # The same name in another tenant's room is another session.
        assert refusal(own, path, token=own.token("--tenant", "acme"), create="false")[0] == 404
    assert own.bearer not in own.log()[mark:]


def test_there_are_only_so_many(server, session):
    with contextlib.ExitStack() as stack:
        for number in range(16):
            stack.enter_context(Terminal(server, session, f"t{number}", command=["sleep", "1000"]))
        path = f"/pools/shell/sessions/{session}/terminals"
        assert refusal(server, f"{path}/more") == (429, "TerminalsCountExceedsLimit")
        for _ in range(16):
            stack.enter_context(Terminal(server, session, "t0"))
        assert refusal(server, f"{path}/t0") == (429, "TerminalsCountExceedsLimit")
        assert server.native("DELETE", f"{path}/t3").status_code == 204
    # Who has left has left a place; and one that has ended makes room.
    def attach():
        with contextlib.suppress(websockets.InvalidStatus), Terminal(server, session, "more") as terminal:
            return terminal.attached["isNew"]

    assert wait_for(attach, "a place")


def test_a_terminal_that_is_hung_up_leaves_nothing_behind(server, session):
    with Terminal(server, session) as terminal:
        terminal.prompt()
        terminal.send("nohup sleep 31415 >/dev/null 2>&1 & setsid sleep 31416 &\r")
        terminal.send("sh -c 'trap \"\" HUP; echo dea\"\"f; sleep 31417'\r")
        terminal.expect("deaf")
        here = f"/pools/shell/sessions/{session}/terminals/main"
        assert server.native("DELETE", here).status_code == 204
        check_error(server.native("DELETE", here), 404, "TerminalNotFound")
        assert terminal.ended()["outcome"] == "cancelled"
    # Not the command that looks for them.
    assert run(server, session, "pgrep -f 'sleep 3141[5-7]' || echo none") == "none"

    def deeds() -> list[dict]:
        return [record for record in journal(server) if record.get("session") == session or session in json.dumps(record)]

    # They are written a moment after they were answered.
    for word in ("terminal.opened", "terminal.ended"):
        wait_for(lambda: any(word in json.dumps(deed) for deed in deeds()), word)
    assert not any("31415" in json.dumps(deed) for deed in deeds())


def journal(server) -> list[dict]:
    return [json.loads(line) for line in server.run("journal", "export").stdout.splitlines() if line.strip()]


def test_a_terminal_ends_with_its_session(server, session):
    with Terminal(server, session) as terminal:
        terminal.prompt()
        assert server.native("DELETE", f"/pools/shell/sessions/{session}").status_code == 204
        ended = terminal.ended()
        assert ended["outcome"] == "died" and "session" in ended["detail"], ended


@pytest.mark.timeout(120)
def test_what_is_shown_keeps_a_session_and_a_silent_connection_does_not(own):
    name = f"idle-{uuid.uuid4().hex[:8]}"
    ticks = "i=0; while :; do i=$((i + 1)); echo tick $i; sleep 0.3; done"
    with Terminal(own, name, pool="brief", command=["sh", "-c", ticks]) as terminal:
        # Twice its cool-down.
        terminal.expect("tick 20\r")
    with Terminal(own, f"{name}-silent", pool="brief", command=["sleep", "1000"]) as terminal:
        assert terminal.ended()["outcome"] == "died"


def shell(server, *words: str) -> Screen:
    return Screen(PROGRAM, "--home", str(server.home), "shell", *words)


def test_shell_is_left_and_found_again(server, session):
    screen = shell(server, "-s", session)
    screen.expect(r"[$#] ")
    screen.send("x=ke''pt; stty size\r")
    screen.expect(r"30 100|24 80")
    screen.send("\x1dd")
    screen.expect(rf"detached.*-s {session} --name main")
    assert screen.ended() == 0
    screen = shell(server, "-s", session)
    screen.expect("which was there")
    # What was shown is shown again.
    screen.expect("stty size")
    screen.send("echo is-$x\r")
    screen.expect("is-kept")
    other = shell(server, "-s", session, "--new")
    other.expect(r"[$#] ")
    other.send("echo is-$x.; exit 4\r")
    other.expect(r"is-\.")
    assert other.ended() == 4
    named = shell(server, "-s", session, "--name", "build", "--", "sh", "-c", "echo named; exit 5")
    named.expect("named")
    assert named.ended() == 5
    screen.send("exit 9\r")
    assert screen.ended() == 9
    assert {one["name"]: one["exitCode"] for one in listed(server, session)}["build"] == 5


@pytest.mark.timeout(180)
def test_shell_outlives_a_killed_server(own):
    session = f"outlives-{uuid.uuid4().hex[:8]}"
    screen = shell(own, "-s", session)
    screen.expect(r"[$#] ")
    screen.send("x=ke''pt; echo re''ady\r")
    screen.expect("ready")
    before = own.process()
    kill(before)
    screen.expect("the connection broke off")
    wait_for(lambda: own.process() not in (0, before) and own.is_ready(), "the server's return", 60)
    screen.expect("connected again", 60)
    screen.send("echo is-$x\r")
    screen.expect("is-kept")
    assert own.native("DELETE", f"/pools/shell/sessions/{session}").status_code == 204
    screen.expect("the terminal is gone: its session has ended")
    assert screen.ended() == 1


def test_shell_in_a_pipe(server, session):
    done = server.run("shell", "-s", session, input="echo $((6 * 7))\nexit 5\n", check=False)
    assert done.returncode == 5 and "42" in done.stdout, done
    # Whoever reads hears that input has ended, also one that comes to read later.
    done = server.run("shell", "-s", session, input="sleep 1; echo la''ter\n", check=False)
    assert done.returncode == 0 and "later" in done.stdout, done
    done = server.run("shell", "-s", session, "--", "sh", "-c", "exit 3", check=False)
    assert done.returncode == 3, done
    done = server.run("shell", "-s", session, "--", "no-such-program", check=False)
    assert done.returncode == 127 and "could not be started" in done.stderr, done
