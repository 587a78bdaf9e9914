"""A peer that is an OCI runtime: one bundle, one container a session, its standard streams passed through."""

import json
import os
import shutil
import subprocess
import tempfile
import threading

from peer import ANSWER_LIMIT, ENVIRONMENT, NODE_CODE, PYTHON, Peer, Pipe, rootfs, run


class Container(Pipe):
    """A session: the container's streams are the pipe's."""


class Oci(Peer):
    without = {"new-session": "keeps no sessions ready"}
    notes = {
        "warm": "A loop on the container's standard streams, without a server: no HTTP, no display, no limits.",
        "throughput-8": "A loop on the containers' standard streams, without a server.",
        "shell": "`exec` in a live container.",
    }
    shell_needs_session = True

    def start(self, rounds):
        self.place = tempfile.mkdtemp(prefix="sandpool-peer-")
        self.lock, self.count = threading.Lock(), 0
        self.bundle("python", PYTHON)
        self.bundle("node", ["/usr/local/bin/node", "-e", NODE_CODE])

    def bundle(self, image, arguments):
        """The runtime's own example configuration, with our root, user and program."""
        path = os.path.join(self.place, image)
        os.mkdir(path)
        run([*self.runtime, "spec"], cwd=path)
        file = os.path.join(path, "config.json")
        with open(file) as source:
            settings = json.load(source)
        settings["root"] = {"path": rootfs(image), "readonly": True}
        process = settings["process"]
        process["terminal"], process["args"], process["cwd"] = False, arguments, "/tmp"
        process["user"] = {"uid": 65534, "gid": 65534}
        process["env"] = [f"{key}={value}" for key, value in ENVIRONMENT.items()]
        settings.setdefault("mounts", []).append(
            {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev", "mode=1777"]}
        )
        with open(file, "w") as target:
            json.dump(settings, target)

    def stop(self):
        if not hasattr(self, "place"):
            return
        for name in json.loads(run([*self.runtime, "list", "--format", "json"])) or []:
            subprocess.run([*self.runtime, "delete", "--force", name["id"]], capture_output=True, timeout=60)
        shutil.rmtree(self.place, ignore_errors=True)

    def name_one(self):
        with self.lock:
            self.count += 1
            return f"sandpool-peer-{os.getpid()}-{self.count}"

    def command(self, image, identifier):
        return [*self.runtime, "run", "--bundle", os.path.join(self.place, image), identifier]

    def open(self):
        identifier = self.name_one()
        session = Container(self.command("python", identifier))
        session.identifier = identifier
        return session

    def close(self, session):
        run([*self.runtime, "delete", "--force", session.identifier])

    def shell(self, session):
        command = [*self.runtime, "exec", session.identifier, "/bin/bash", "-c", "echo hi"]
        return self.once(command)

    def node(self):
        return self.once(self.command("node", self.name_one()))

    def once(self, command):
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=ANSWER_LIMIT
        ).stdout
