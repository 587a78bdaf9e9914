"""What the Jupyter peers share: the locked packages, on our image's Python and libraries, in a root of its own."""

import os
import shutil
import sys

from peer import FONTS, HERE, Peer, Unable, complete, in_private_root, locked, once, run

LOCK = os.path.join(HERE, "locks/jupyter.txt")
# The image's Python, for which the lock file was made.
PYTHON_VERSION = "3.13"
BASH = "%%bash\necho hi"


def site(directory):
    return once(directory, "site", LOCK)


class Jupyter(Peer):
    package = ""

    def install(self):
        self.version = locked(LOCK, self.package)
        path, empty = site(self.directory)
        if not empty:
            return
        shutil.rmtree(path, ignore_errors=True)
        tool = os.path.join(self.directory, "pip")
        run([sys.executable, "-m", "venv", "--clear", tool])
        run([
            os.path.join(tool, "bin/pip"), "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--require-hashes", "--no-compile",
            "--only-binary", ":all:", "--python-version", PYTHON_VERSION, "--target", path, "-r", LOCK,
        ])  # fmt: skip
        # With the Python that will run it.
        inside = "/opt/" + os.path.basename(path)
        child, place = in_private_root(self, {}, ["/usr/bin/python3", "-m", "compileall", "-q", "-j", "0", inside])
        child.wait()  # Templates and test data that are no Python do not compile.
        os.rmdir(place)
        complete(path)

    def start(self, rounds):
        exec(FONTS, {})

    def environment(self):
        return {"PYTHONPATH": "/opt/" + os.path.basename(site(self.directory)[0]) + ":/srv", "HOME": "/tmp"}

    def shell(self, session):
        return self.ask(session, BASH)

    shell_needs_session = True


def printed(code, receive, send):
    """Runs code over Jupyter's messages, and returns what it printed. The answer is whole when the kernel is idle and has replied."""
    identifier, out, open_ends = send(code), [], {"reply", "idle"}
    while open_ends:
        message = receive()
        if message.get("parent_header", {}).get("msg_id") != identifier:
            continue
        kind, content = message["header"]["msg_type"], message["content"]
        if kind == "stream" and content["name"] == "stdout":
            out.append(content["text"])
        elif kind == "error":
            raise Unable(f"{content['ename']}: {content['evalue']}")
        elif kind == "execute_reply":
            open_ends.discard("reply")
        elif kind == "status" and content["execution_state"] == "idle":
            open_ends.discard("idle")
    return "".join(out)
