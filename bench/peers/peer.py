"""What the peers' scripts share: the three verbs of CONTRACT.md, the scenarios as loops over a peer's sessions, and the clean-up.

A peer subclasses `Peer` and says how a session is opened, asked and closed. Everything it starts is a descendant of its script, which
is the reaper of its orphans: so memory is the sum over the descendants, and nothing outlives the script.
"""

import ctypes
import glob
import hashlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
LIBRARIES = "import numpy, pandas, matplotlib.pyplot"
CELL = "print(1)"
IMAGES = os.environ.get("SANDPOOL_IMAGES", "/var/lib/sandpool/images")

# A session of a peer that has no protocol of its own: code comes in, one literal a line, and what it prints goes out. It does less than
# any server would: no value, no display, no traceback, no limit. The links make matplotlib find its list of fonts, as in our sessions.
FONTS = """import glob, os
os.makedirs("/tmp/matplotlib", exist_ok=True)
for font in glob.glob("/usr/local/share/sandpool/matplotlib/fontlist-*.json"):
    if not os.path.lexists(link := "/tmp/matplotlib/" + os.path.basename(font)): os.symlink(font, link)
"""
LOOP = f"""{FONTS}
import sys
space = {{}}
for line in sys.stdin:
    exec(eval(line), space)
    sys.stdout.flush()
"""
ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "HOME": "/tmp",
    "LANG": "C.UTF-8",
    "MPLBACKEND": "Agg",
    "MPLCONFIGDIR": "/tmp/matplotlib",
}
PYTHON = ["/usr/bin/python3", "-u", "-c", LOOP]
NODE_CODE = "console.log(1+1)"

# No scenario takes longer, in seconds; whatever was measured by then counts.
SCENARIO_LIMIT = 5
RATE_SECONDS = 6
MEMORY_MIB = 8 * 1024
MEMORY_SESSIONS = 100
# A peer that does not answer within this many seconds has failed.
ANSWER_LIMIT = 90


class Unable(Exception):
    """Why a scenario has no figure, in one sentence."""


def say(*words):
    print(*words, file=sys.stderr, flush=True)


def now_ms():
    return time.perf_counter() * 1e3


def rootfs(name):
    """The root file system of an image of ours, so that a peer's Python and libraries are the same as ours."""
    try:
        with open(os.path.join(IMAGES, "names", name)) as file:
            path = os.path.join(IMAGES, file.read().strip(), "rootfs")
    except OSError as error:
        raise SystemExit(f"no image {name} in {IMAGES} (sandpool image build): {error}")
    return path


def debian(directory, *packages):
    """Unpacks Debian packages below DIRECTORY and returns its root and the version of each; nothing of the system is changed.

    The versions are this Debian release's own at the time of the first call, and are kept until DIRECTORY is removed.
    """
    root = os.path.join(directory, "debian")
    record = os.path.join(root, "versions.json")
    if os.path.exists(record):
        with open(record) as file:
            versions = json.load(file)
        if set(packages) <= set(versions):
            return root, versions
    shutil.rmtree(root, ignore_errors=True)
    os.makedirs(root)
    with tempfile.TemporaryDirectory(dir=directory) as downloads:
        run(["apt-get", "--quiet", "download", *packages], cwd=downloads)
        versions = {}
        for file in sorted(glob.glob(os.path.join(downloads, "*.deb"))):
            run(["dpkg-deb", "--extract", file, root])
            name, version = run(["dpkg-deb", "--show", file]).split()
            versions[name.split(":")[0]] = version
    with open(record, "w") as file:
        json.dump(versions, file)
    return root, versions


def run(command, **more):
    """Runs a command to its end, and returns what it printed."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600, **more)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise SystemExit(f"{command[0]}: exit status {done.returncode}: {said[-1] if said else 'no output'}")
    return done.stdout


def once(directory, name, *sources):
    """A directory below DIRECTORY that is new for each state of the lock files, and whether it is to be filled."""
    digest = hashlib.sha256()
    for source in sources:
        with open(source, "rb") as file:
            digest.update(file.read())
    path = os.path.join(directory, f"{name}-{digest.hexdigest()[:16]}")
    return path, not os.path.exists(os.path.join(path, ".complete"))


def complete(path):
    open(os.path.join(path, ".complete"), "w").close()


def locked(lock, name):
    """The version of a package in a lock file of pip's."""
    with open(lock) as file:
        for line in file:
            if line.startswith(f"{name}=="):
                return line.split("==")[1].split()[0]
    raise SystemExit(f"{lock}: no {name}")


# -- processes ---------------------------------------------------------------------------------------------------------


def under_a_reaper():
    """Goes on in a child; this process becomes the parent of all orphans and reaps them at once, since a runtime that is asked for a
    container's end waits until it is reaped. When the child has ended, so is what it left.
    """
    global top
    if ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) != 0:  # PR_SET_CHILD_SUBREAPER
        raise SystemExit("cannot become the reaper of orphans")
    top = os.getpid()
    child = os.fork()
    if child == 0:
        return

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: os.kill(child, number))
    while True:
        ended, status = os.waitpid(-1, 0)
        if ended == child:
            break
    end_descendants()
    sys.exit(os.waitstatus_to_exitcode(status) and 1)


# The process whose descendants are counted.
top = os.getpid()


def descendants():
    """The processes that were started here, but this one."""
    children = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat") as file:
                    fields = file.read().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if fields[0] != "Z":
                children.setdefault(int(fields[1]), []).append(int(entry))
    found, queue = [], [top]
    while queue:
        for child in children.get(queue.pop(0), []):
            queue.append(child)
            if child != os.getpid():
                found.append(child)
    return found


def pss_mib(pids):
    """The proportional share of the memory of some processes, in MiB."""
    total = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/smaps_rollup") as file:
                total += sum(int(line.split()[1]) for line in file if line.startswith("Pss:"))
        except OSError:
            continue
    return total / 1024


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def end_descendants():
    limit = time.monotonic() + 10
    while (left := descendants()) and time.monotonic() < limit:
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        time.sleep(0.02)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass


# -- sessions ----------------------------------------------------------------------------------------------------------


class Pipe:
    """A live session on a pipe: a process that runs LOOP somewhere inside."""

    def __init__(self, command, **more):
        self.errors = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, bufsize=0, **more
        )
        self.left = b""

    def send(self, code):
        try:
            self.process.stdin.write(repr(code).encode() + b"\n")
        except BrokenPipeError:
            pass  # It ended; whoever waits for the answer is told why.

    def line(self):
        """Waits for one line."""
        while b"\n" not in self.left:
            if not select.select([self.process.stdout], [], [], ANSWER_LIMIT)[0]:
                raise Unable(f"no answer within {ANSWER_LIMIT} s")
            got = os.read(self.process.stdout.fileno(), 65536)
            if not got:
                self.errors.seek(0)
                said = self.errors.read().decode(errors="replace").strip().splitlines()
                raise Unable(f"ended before it answered: {said[-1] if said else 'no message'}")
            self.left += got
        line, self.left = self.left.split(b"\n", 1)
        return line.decode()

    def ask(self, code):
        self.send(code)
        return self.line()

    def kill(self):
        self.process.kill()

    def forget(self):
        """Lets go of the descriptors, and reaps."""
        for file in (self.process.stdin, self.process.stdout, self.errors):
            file.close()
        self.process.wait(timeout=30)


class Peer:
    """A peer: its name, its version, and how its sessions are made. The scenarios are the same for all."""

    name = ""
    # Why it has none of these, by scenario.
    without = {}
    # What a reader must know, by scenario; "*" for all.
    notes = {}
    scenarios = ("warm", "throughput-8", "new-session", "cold", "cold-bare", "churn", "delete", "shell", "node", "memory")

    def __init__(self, directory):
        self.directory = directory

    # What a peer says.

    def install(self):
        """Installs; sets `self.version`."""

    def start(self, rounds):
        """Before the first scenario: a daemon, a configuration."""

    def stop(self):
        """After the last."""

    def open(self):
        """A new session, as soon as code can be sent to it."""
        raise NotImplementedError

    def ask(self, session, code):
        """Runs code, and returns what it printed."""
        return session.ask(code)

    def close(self, session):
        """Asks for the end of a session."""
        session.kill()

    def closed(self, session):
        """After the end: what is ours of the session is let go."""
        session.forget()

    def gone(self, session):
        """Whether anything but processes is left of a session that was closed."""
        return True

    def take(self):
        """A session from what is kept ready."""
        raise Unable("keeps no sessions ready")

    def shell(self, session):
        """`bash -c 'echo hi'`, and its output."""
        raise Unable("has no shell command")

    shell_needs_session = False

    def node(self):
        raise Unable("has no Node here")

    # What is the same for all.

    def ready(self):
        session = self.open()
        self.expect(self.ask(session, f"{LIBRARIES}\n{CELL}"))
        return session

    def expect(self, answer, wanted="1"):
        if answer.strip() != wanted:
            raise Unable(f"answered {answer[:200]!r} instead of {wanted!r}")

    def end(self, session):
        self.close(session)
        self.closed(session)

    def timed(self, rounds, work, after=lambda made: None, before=lambda: None):
        taken, limit = [], time.monotonic() + SCENARIO_LIMIT
        while len(taken) < rounds and (len(taken) < 3 or time.monotonic() < limit):
            given = before()
            began = now_ms()
            made = work() if given is None else work(given)
            taken.append(now_ms() - began)
            after(made)
        return {"samples_ms": [round(sample, 4) for sample in taken]}

    def measure_warm(self, rounds):
        session = self.ready()
        figures = self.timed(rounds, lambda: self.expect(self.ask(session, CELL)))
        self.end(session)
        return figures

    def throughput(self, sessions):
        live = [self.ready() for _ in range(sessions)]
        counts, failed = [0] * sessions, []
        start = threading.Barrier(sessions + 1)
        deadline = 0.0

        def caller(index):
            start.wait()
            try:
                while time.perf_counter() < deadline:
                    self.expect(self.ask(live[index], CELL))
                    counts[index] += 1
            except Unable as error:
                failed.append(str(error))

        callers = [threading.Thread(target=caller, args=(index,)) for index in range(sessions)]
        for thread in callers:
            thread.start()
        began = time.perf_counter()
        deadline = began + RATE_SECONDS
        start.wait()
        for thread in callers:
            thread.join()
        seconds = time.perf_counter() - began
        for session in live:
            self.end(session)
        if failed:
            raise Unable(failed[0])
        return {"count": sum(counts), "seconds": round(seconds, 3)}

    def measure_throughput_8(self, rounds):
        return self.throughput(8)

    def measure_new_session(self, rounds):
        def work():
            session = self.take()
            self.expect(self.ask(session, CELL))
            return session

        return self.timed(rounds, work, self.end)

    def measure_cold(self, rounds):
        return self.timed(rounds, self.ready, self.end)

    def measure_cold_bare(self, rounds):
        def work():
            session = self.open()
            self.expect(self.ask(session, CELL))
            return session

        return self.timed(rounds, work, self.end)

    def measure_churn(self, rounds):
        counts, failed = [0, 0], []
        began = time.perf_counter()

        def caller(index):
            try:
                while time.perf_counter() - began < RATE_SECONDS:
                    self.end(self.ready())
                    counts[index] += 1
            except Unable as error:
                failed.append(str(error))

        callers = [threading.Thread(target=caller, args=(index,)) for index in (0, 1)]
        for thread in callers:
            thread.start()
        for thread in callers:
            thread.join()
        if failed:
            raise Unable(failed[0])
        return {"count": sum(counts), "seconds": round(time.perf_counter() - began, 3)}

    def measure_delete(self, rounds):
        taken, limit = [], time.monotonic() + SCENARIO_LIMIT
        while len(taken) < rounds and (len(taken) < 3 or time.monotonic() < limit):
            others = set(descendants())
            session = self.ready()
            own = [pid for pid in descendants() if pid not in others]
            began = now_ms()
            self.close(session)
            give_up = time.monotonic() + 30
            while any(alive(pid) for pid in own) or not self.gone(session):
                if time.monotonic() > give_up:
                    raise Unable("a session's processes were still there 30 s after its end was asked for")
                time.sleep(0.0001)
            taken.append(round(now_ms() - began, 4))
            self.closed(session)
        return {"samples_ms": taken}

    def measure_shell(self, rounds):
        session = self.ready() if self.shell_needs_session else None
        figures = self.timed(rounds, lambda: self.expect(self.shell(session), "hi"))
        if session:
            self.end(session)
        return figures

    def measure_node(self, rounds):
        return self.timed(rounds, lambda: self.expect(self.node(), "2"))

    def measure_memory(self, rounds):
        """Prints one line for one session, and returns the other for many."""
        live = [self.ready()]
        time.sleep(0.5)
        one = pss_mib(descendants())
        self.tell("memory", {"memory_mib": round(one, 2), "sessions": 1})
        limit = time.monotonic() + 3 * SCENARIO_LIMIT
        used = one
        while len(live) < MEMORY_SESSIONS and used + one < MEMORY_MIB and time.monotonic() < limit:
            live.append(self.ready())
            # Pages are shared, so what fits is found by looking: now and then, since looking costs too.
            used = pss_mib(descendants()) if len(live) % 10 == 0 else used
        time.sleep(0.5)
        many = pss_mib(descendants()) / len(live)
        figures = {"memory_mib": round(many, 2), "sessions": len(live)}
        for session in live:
            self.end(session)
        return figures

    def tell(self, scenario, figures):
        line = {"peer": self.name, "version": self.version, "scenario": scenario, **figures}
        note = " ".join(filter(None, (self.notes.get(scenario), self.notes.get("*"))))
        if note and "skipped" not in figures:
            line["note"] = note
        print(json.dumps(line), flush=True)

    def measure(self, rounds, wanted):
        try:
            self.start(rounds)
            for scenario in self.scenarios:
                # The suite has no bare start of its own to ask for: it belongs to the cold one.
                if wanted and scenario.removesuffix("-bare") not in wanted and scenario not in wanted:
                    continue
                say(f"{self.name}: {scenario}")
                try:
                    if scenario in self.without:
                        raise Unable(self.without[scenario])
                    figures = getattr(self, "measure_" + scenario.replace("-", "_"))(rounds)
                except Unable as error:
                    figures = {"skipped": str(error)}
                self.tell(scenario, figures)
        finally:
            self.stop()


def main(peer_type, inside=None):
    """The three verbs. `inside` runs the measuring somewhere else (a private root): it gets the directory and does not return."""
    usage = f"usage: {os.path.basename(sys.argv[0])} scenarios | install DIRECTORY | measure DIRECTORY [--rounds N] [SCENARIO...]"
    words = sys.argv[1:]
    verb = words.pop(0) if words else ""
    if verb == "scenarios":
        print("\n".join(peer_type.scenarios))
        return
    if verb not in ("install", "measure") or not words:
        raise SystemExit(usage)
    directory, rounds = words.pop(0), 50
    if words[:1] == ["--rounds"] and len(words) > 1:
        rounds, words = int(words[1]), words[2:]
    directory = os.path.abspath(directory)
    os.makedirs(directory, exist_ok=True)
    peer = peer_type(directory)
    if verb == "install":
        peer.install()
        return
    if inside and not os.environ.get("SANDPOOL_PEER_INSIDE"):
        peer.install()
        inside(peer)

    under_a_reaper()

    def ended(*_):
        raise SystemExit("was told to end")

    signal.signal(signal.SIGTERM, ended)
    signal.signal(signal.SIGINT, ended)
    peer.install()
    peer.measure(rounds, words)


# Lets go of the machine's root and becomes `env -i WORD...`.
AWAY = """import ctypes, os, sys
if ctypes.CDLL(None).umount2(b'/mnt/data', 2) != 0: sys.exit('the old root stays')
os.execv('/usr/bin/env', ['env', '-i', *sys.argv[1:]])"""


def in_private_root(peer, environment, command, binds=()):
    """Starts COMMAND in a root of its own that is our Python image, read only, in a private mount namespace: for peers that use the
    machine's Python. Inside, /srv is this directory and /opt the peer's; `binds` are more pairs of a directory and where it is found.
    Returns the process, and an empty directory that is to be removed when it has ended.
    """
    place = tempfile.mkdtemp(prefix="sandpool-peer-")
    steps = ["set -e", "mount --make-rprivate /", f"mount --bind '{rootfs('python')}' '{place}'"]
    steps.append(f"mount -o remount,bind,ro '{place}'")
    steps += [f"mount --bind '{source}' '{place}{target}'" for source, target in [(HERE, "/srv"), (peer.directory, "/opt"), *binds]]
    steps += [f"mount --rbind {path} '{place}{path}'" for path in ("/dev", "/proc", "/sys")]
    steps += [f"mount -t tmpfs -o mode=1777 tmpfs '{place}{path}'" for path in ("/tmp", "/run")]
    # Not `chroot`: in one, the kernel refuses new user namespaces.
    steps += [f"cd '{place}'", "pivot_root . mnt/data", "cd /", f'exec /usr/bin/python3 -c "{AWAY}" "$@"']
    words = [f"{key}={value}" for key, value in {**ENVIRONMENT, **environment}.items()]
    return subprocess.Popen(["unshare", "--mount", "/bin/sh", "-c", "\n".join(steps), "sh", *words, *command]), place


def measure_in_private_root(peer, environment, binds=()):
    """Goes on there, and does not return."""
    rest = ["/opt" if word == sys.argv[2] else word for word in sys.argv[2:]]
    command = ["/usr/bin/python3", "/srv/" + os.path.basename(sys.argv[0]), "measure", *rest]
    settings = {"SANDPOOL_PEER_INSIDE": "1", "PYTHONDONTWRITEBYTECODE": "1", **environment}
    child, place = in_private_root(peer, settings, command, binds)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: child.send_signal(number))
    status = child.wait()
    os.rmdir(place)
    raise SystemExit(status)
