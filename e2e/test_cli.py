"""The command line, as people use it."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import time

import jwt
import pytest

import sandpool
from sandpool import CLEAN, PROGRAM, command, wait_for


@pytest.mark.parametrize(
    "arguments, out, code",
    [
        (["-c", "print('hi'); 6 * 7"], "hi\n42\n", 0),
        (["-c", "None"], "", 0),
        (["-c", "raise SystemExit(3)"], "", 1),
        (["-p", "node", "-c", "console.log('hi'); 6 * 7"], "hi\n42\n", 0),
        (["-p", "shell", "-c", "echo hi; exit 3"], "hi\n", 3),
        (["--", "sh", "-c", "exit 0"], "", 0),
        (["--", "sh", "-c", "exit 1"], "", 1),
        (["--", "sh", "-c", "exit 2"], "", 2),
        (["--", "sh", "-c", "exit 255"], "", 255),
        (["--", "sh", "-c", "kill -9 $$"], "", 137),
        (["--", "no-such-command"], "", 127),
        (["-p", "python", "--", "python3", "-c", "print(1)"], "1\n", 0),
        (["--timeout", "1", "--", "sleep", "30"], "", 124),
        (["--timeout", "1", "-c", "import time; time.sleep(30)"], "", 124),
    ],
)
def test_run(server, arguments, out, code):
    done = server.run("run", *arguments, check=False)
    assert (done.returncode, done.stdout) == (code, out), done.stderr


def test_run_separates_the_streams_and_shows_a_traceback(server):
    done = server.run("run", "-c", "import sys\nprint('out')\nprint('err', file=sys.stderr)\n1 / 0", check=False)
    assert done.returncode == 1 and done.stdout == "out\n"
    assert done.stderr.startswith("err\n") and "ZeroDivisionError" in done.stderr


def test_run_passes_standard_input_and_bytes_on(server):
    data = bytes(range(256)) * 1000
    done = server.run("run", "--", "cat", input=data)
    assert done.stdout == data
    assert server.run("run", "--", "wc", "-c", input=b"").stdout.strip() == b"0"
    assert server.run("run", "-", input="print(6 * 7)").stdout == "42\n"
    assert server.run("run", "-p", "node", input="1 + 1").stdout == "2\n"


def test_run_takes_files_and_saves_images(server, tmp_path):
    for name, text, out in [
        ("a.py", "print('py')", "py\n"),
        ("a.mjs", "console.log('js')", "js\n"),
        ("a.sh", "echo sh; false; exit 5", "sh\n"),
    ]:
        (tmp_path / name).write_text(text)
        done = server.run("run", str(tmp_path / name), check=False)
        assert done.stdout == out and done.returncode == (5 if name == "a.sh" else 0), done.stderr
    code = "import matplotlib.pyplot as plt\nplt.plot([1])\nplt.show()"
    server.run("run", "--images", str(tmp_path), "-c", code)
    assert (tmp_path / "figure-1.png").read_bytes().startswith(b"\x89PNG")


def test_run_keeps_a_named_session_and_throws_others_away(server, session):
    server.run("run", "-s", session, "-c", "x = 41")
    assert server.run("run", "-s", session, "-c", "x + 1").stdout == "42\n"
    assert server.run("run", "-s", session, "--fresh", "-c", "'x' in globals()").stdout == "False\n"
    before = len(server.json("session", "ls")["value"])
    server.run("run", "-c", "1")
    assert len(server.json("session", "ls")["value"]) == before


def test_run_is_interrupted_once_and_keeps_the_session(server, session):
    words = [PROGRAM, "--home", str(server.home), "run", "-s", session, "-c", "y = 3\nprint('go', flush=True)\nwhile True: pass"]
    running = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=CLEAN)
    assert running.stdout.readline() == "go\n"
    running.send_signal(signal.SIGINT)
    _, _ = running.communicate(timeout=30)
    assert running.returncode in (1, 130)
    assert server.run("run", "-s", session, "-c", "y").stdout == "3\n"


def test_run_as_json(server):
    done = server.run("--json", "run", "-c", "print('a'); 5")
    record = json.loads(done.stdout)
    assert record["stdout"] == "a\n" and record["outcome"] == "succeeded" and record["result"]["json"] == 5


class Terminal:
    """A command in a pseudo terminal."""

    def __init__(self, *words: str, rows: int = 30, columns: int = 100):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ.clear()
            os.environ.update({**CLEAN, "TERM": "xterm"})
            os.execv(words[0], words)
        import fcntl
        import struct
        import termios

        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.text = ""

    def send(self, text: str):
        os.write(self.fd, text.encode())

    def expect(self, pattern: str, limit: float = 20):
        end = time.monotonic() + limit
        while not (found := re.search(pattern, self.text)):
            assert time.monotonic() < end, f"no {pattern!r} in {self.text!r}"
            if select.select([self.fd], [], [], 0.1)[0]:
                try:
                    self.text += os.read(self.fd, 4096).decode(errors="replace")
                except OSError:
                    assert re.search(pattern, self.text), f"ended without {pattern!r}: {self.text!r}"
        self.text = self.text[found.end() :]
        return found

    def ended(self, limit: float = 20) -> int:
        end = time.monotonic() + limit
        while time.monotonic() < end:
            if select.select([self.fd], [], [], 0.05)[0]:
                try:
                    os.read(self.fd, 4096)
                except OSError:
                    pass
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                os.close(self.fd)
                return os.waitstatus_to_exitcode(status)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        raise AssertionError("it does not end")


def test_shell_is_a_terminal(server, session):
    terminal = Terminal(PROGRAM, "--home", str(server.home), "shell", "-s", session)
    terminal.expect(r"[$#] ")
    terminal.send("tty; stty size; echo ma''rk\r")
    terminal.expect(r"/dev/pts/\d+")
    terminal.expect(r"\d+ \d+")
    terminal.expect("mark")
    # Said by what runs in the foreground: bash itself loses a ^C that comes while it starts something.
    terminal.send("sh -c 'echo go\"\"ing; exec sleep 100'\r")
    terminal.expect("going")
    terminal.send("\x03")
    terminal.expect(r"[$#] ")
    terminal.send("echo st''ill; exit 9\r")
    terminal.expect("still")
    assert terminal.ended() == 9
    assert server.run("shell", check=False).returncode == 0, "without input it ends"


def test_files(server, session, tmp_path):
    (tmp_path / "a.txt").write_text("alpha")
    (tmp_path / "b.bin").write_bytes(b"\x00\xff" * 10)
    files = lambda *words, **more: server.run("files", words[0], "-s", session, *words[1:], **more)  # noqa: E731
    files("put", tmp_path / "a.txt", tmp_path / "b.bin", "--to", "in/")
    files("put", "-", "--to", "from stdin.txt", input="typed")
    listed = json.loads(server.run("--json", "files", "ls", "-s", session, "-r").stdout)["value"]
    paths = {entry.get("path", entry["name"]) for entry in listed}
    assert {"in/a.txt", "in/b.bin", "from stdin.txt"} <= paths
    assert "from stdin.txt" in files("ls").stdout
    assert files("get", "from stdin.txt", "-o", "-").stdout == "typed"
    files("get", "in/b.bin", "-o", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == b"\x00\xff" * 10
    files("rm", "in/a.txt", "in")
    assert files("get", "in/b.bin", "-o", "-", check=False).returncode == 1
    missing = files("rm", "none", check=False)
    assert missing.returncode == 1 and "none" in missing.stderr
    assert files("put", tmp_path / "nowhere", check=False).returncode == 2


def test_sessions_and_pools(server, session):
    server.run("run", "-s", session, "-c", "1")
    [row] = [row for row in server.json("session", "ls", "-p", "python")["value"] if row["identifier"] == session]
    assert row["expiresAt"] > row["createdAt"]
    assert session in server.run("session", "ls").stdout
    assert server.json("session", "get", session)["identifier"] == session
    assert "ended" in server.run("session", "rm", session).stdout
    assert server.run("session", "get", session, check=False).returncode == 1
    pools = {pool["name"]: pool for pool in server.json("pool", "ls")["value"]}
    assert set(pools) == {"python", "node", "shell"}
    assert pools["shell"]["containerType"] == "Shell" and pools["python"]["maxSessions"] == 250
    assert server.json("pool", "get", "node")["containerType"] == "NodeLTS"
    assert server.run("pool", "get", "none", check=False).returncode == 1
    table = server.run("pool", "ls").stdout.splitlines()
    assert table[0].startswith("POOL") and len(table) == 4


def test_images(server):
    listed = server.run("image", "ls").stdout
    assert all(name in listed for name in ("python", "node", "shell"))
    assert json.loads(server.run("--json", "image", "ls").stdout)["value"]


def test_tokens(server, session):
    claims = lambda *words: jwt.decode(server.token(*words), options={"verify_signature": False})  # noqa: E731
    plain = claims()
    assert plain["roles"] == ["executor"] and plain["exp"] - plain["iat"] == 3600
    assert claims("--role", "admin")["roles"] == ["admin"]
    for ttl, seconds in (("90", 90), ("90s", 90), ("5m", 300), ("12h", 43200), ("2d", 2 * 86400)):
        limited = claims("--ttl", ttl)
        assert limited["exp"] - limited["iat"] == seconds
    assert claims("--pool", "node", "--session", session)["pools"] == ["node"]
    assert claims("--session", session)["session"] == session
    for words in (["--role", "king"], ["--ttl", "soon"], ["--pool", "No Pool"], ["--session", "x"]):
        assert server.run("token", *words, check=False).returncode == 2, words
    assert server.run("token", "--ttl", "400d", check=False).returncode in (1, 2)


def test_another_user_needs_a_token(server, tmp_path):
    """Whoever may not read the server's keys is told how to get a token, and it works with one."""
    program = tmp_path / "sandpool"
    program.write_bytes(open(PROGRAM, "rb").read())
    program.chmod(0o755)
    for directory in (tmp_path, *tmp_path.parents[:3]):
        if str(directory).startswith("/tmp/"):
            directory.chmod(directory.stat().st_mode | 0o055)
    words = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", str(program), "--home", str(server.home)]
    refused = subprocess.run([*words, "pool", "ls"], capture_output=True, text=True, env=CLEAN, check=False)
    assert refused.returncode == 1 and "SANDPOOL_TOKEN" in refused.stderr
    env = {**CLEAN, "SANDPOOL_TOKEN": server.token()}
    allowed = subprocess.run([*words, "pool", "ls"], capture_output=True, text=True, env=env, check=False)
    assert allowed.returncode == 0, allowed.stderr


def test_env_is_for_a_shell(server):
    text = server.run("env", "--https", "--pool", "shell").stdout
    script = text + '\nprintf "%s" "$AZURE_POOL_MANAGEMENT_ENDPOINT|$SSL_CERT_FILE|$IDENTITY_ENDPOINT"'
    out = subprocess.run(["sh", "-euc", script], capture_output=True, text=True, check=True).stdout
    endpoint, authority, identity = out.split("|")
    assert endpoint.startswith("https://") and endpoint.endswith("/sessionPools/shell")
    assert os.path.exists(authority) and identity.startswith("http://")


def test_config_show(server, tmp_path):
    assert "maxConcurrentSessions: 250" in server.run("config", "show").stdout
    for text, word in [("pols: []", "pols"), ("pools: 5", "pools"), ("listen: nowhere", "listen"), ("pools: []", "pools")]:
        (tmp_path / "bad.yaml").write_text(text)
        done = command("config", "show", "--config", tmp_path / "bad.yaml", check=False)
        assert done.returncode in (1, 2) and word in done.stderr, text
    (tmp_path / "empty.yaml").write_text("")
    assert "7300" in command("config", "show", "--config", tmp_path / "empty.yaml").stdout


def test_doctor(server):
    report = json.loads(command("--json", "doctor").stdout)
    assert report
    assert command("doctor").stdout.strip()


def test_completions():
    for shell in ("bash", "zsh", "fish", "powershell", "elvish"):
        assert "sandpool" in command("completions", shell).stdout
    script = command("completions", "bash").stdout
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


@pytest.mark.parametrize(
    "words", [["nonsense"], ["run", "--timeout", "-1", "-c", "1"], ["up", "--listen", "here"], ["session"], ["run", "/none"]]
)
def test_wrong_use_is_2(server, words):
    done = server.run(*words, check=False)
    assert done.returncode == 2 and done.stderr and not done.stdout, done


def test_errors_say_what_why_and_what_to_do(server, tmp_path):
    done = command("pool", "ls", home=tmp_path, check=False)
    assert done.returncode == 1
    assert "because:" in done.stderr and "try:" in done.stderr and "sandpool up" in done.stderr
    as_json = command("--json", "pool", "ls", home=tmp_path, check=False)
    error = json.loads(as_json.stderr)["error"]
    assert error["message"] and error["why"] and error["advice"]
    nobody = server.run("--server", "http://127.0.0.1:9", "pool", "ls", check=False)
    assert nobody.returncode == 1 and "127.0.0.1:9" in nobody.stderr
    second = server.run("up", "--listen", "127.0.0.1:0", check=False)
    assert second.returncode == 1 and "already running" in second.stderr and server.endpoint in second.stderr
    taken = sandpool.urllib.parse.urlsplit(server.endpoint).netloc
    other = command("up", "--listen", taken, home=tmp_path / "other", check=False, timeout=100)
    assert other.returncode == 1 and taken in other.stderr


def test_it_works_over_https(server, session):
    variables = server.env("--https")
    done = server.run("run", "-s", session, "-c", "6 * 7", env={**variables, "SANDPOOL_TOKEN": server.bearer})
    assert done.stdout == "42\n"
    wait_for(server.is_ready, "the server")
