"""Jupyter Kernel Gateway, over HTTP and WebSocket."""

import http.client
import json
import socket
import subprocess
import sys
import time
import uuid

from jupyter import Jupyter, printed
from peer import ANSWER_LIMIT, CELL, LIBRARIES, Unable

# Sessions that the gateway starts ahead, at most: each holds its libraries.
PRESPAWNED = 24


class Gateway:
    """One gateway on a free port of the loopback."""

    def __init__(self, *words):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.log = open(f"/tmp/gateway-{self.port}.log", "w+")
        self.process = subprocess.Popen(
            [
                sys.executable, "-m", "kernel_gateway", "--KernelGatewayApp.ip=127.0.0.1", f"--KernelGatewayApp.port={self.port}",
                "--KernelGatewayApp.log_level=WARN", "--JupyterWebsocketPersonality.list_kernels=True", *words,
            ],
            stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log,
        )  # fmt: skip
        limit = time.monotonic() + 5 * ANSWER_LIMIT
        while time.monotonic() < limit and self.process.poll() is None:
            try:
                self.call("GET", "/api")
                return
            except OSError:
                time.sleep(0.05)
        self.log.seek(0)
        said = self.log.read().strip().splitlines()
        raise Unable(f"the gateway did not start (exit status {self.process.poll()}): {said[-1] if said else 'no message'}")

    def call(self, method, path, body=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=ANSWER_LIMIT)
        try:
            connection.request(method, path, None if body is None else json.dumps(body), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            text = answer.read()
        finally:
            connection.close()
        if answer.status >= 400:
            raise Unable(f"{method} {path}: {answer.status} {text[-600:]!r}")
        return json.loads(text) if text else None

    def end(self):
        self.process.terminate()
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()


class Session:
    def __init__(self, gateway, kernel, quick):
        import websocket

        self.gateway, self.kernel, self.quick = gateway, kernel, quick
        # This client sets TCP_NODELAY itself.
        self.socket = websocket.create_connection(
            f"ws://127.0.0.1:{gateway.port}/api/kernels/{kernel}/channels", timeout=ANSWER_LIMIT
        )

    def send(self, code):
        identifier = uuid.uuid4().hex
        header = {"msg_id": identifier, "msg_type": "execute_request", "username": "", "session": self.kernel, "version": "5.3", "date": ""}
        content = {"code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False}
        message = {"header": header, "parent_header": {}, "metadata": {}, "content": content, "channel": "shell", "buffers": []}
        self.socket.send(json.dumps(message))
        return identifier

    def receive(self):
        import websocket

        if self.quick:
            # Not kept by the kernel: it is set again for each message.
            self.socket.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        try:
            return json.loads(self.socket.recv())
        except websocket.WebSocketTimeoutException:
            raise Unable(f"no answer within {ANSWER_LIMIT} s") from None

    def ask(self, code):
        return printed(code, self.receive, self.send)


class JupyterGateway(Jupyter):
    package = "jupyter-kernel-gateway"
    quick = False
    without = {"node": "ipykernel runs Python only"}
    notes = {
        "shell": "The `%%bash` magic in a live kernel.",
        "new-session": "A kernel of the gateway's pre-spawned ones (`prespawn_count`), taken from its list; it imports the libraries in the round, since with a seed notebook (`seed_uri`) this version lists no kernels (status 500).",
    }

    def start(self, rounds):
        super().start(rounds)
        self.gateway = Gateway()

    def stop(self):
        if hasattr(self, "gateway"):
            self.gateway.end()

    def open(self):
        return Session(self.gateway, self.gateway.call("POST", "/api/kernels", {})["id"], self.quick)

    def close(self, session):
        session.socket.shutdown()
        session.gateway.call("DELETE", f"/api/kernels/{session.kernel}")

    def closed(self, session):
        pass

    def measure_new_session(self, rounds):
        rounds = min(rounds, PRESPAWNED)
        plain, self.used = self.gateway, set()
        self.gateway = Gateway(f"--KernelGatewayApp.prespawn_count={rounds}")
        try:
            limit = time.monotonic() + 2 * ANSWER_LIMIT
            while self.listed() < rounds:
                if time.monotonic() > limit:
                    raise Unable(f"{rounds} pre-spawned kernels were not there in time")
                time.sleep(0.2)

            def work():
                session = self.take()
                self.expect(self.ask(session, f"{LIBRARIES}\n{CELL}"))
                return session

            return self.timed(rounds, work, self.end)
        finally:
            self.gateway.end()
            self.gateway = plain

    def listed(self):
        try:
            return len(self.gateway.call("GET", "/api/kernels"))
        except Unable:
            return 0  # It answers 500 while a kernel starts.

    def take(self):
        for kernel in self.gateway.call("GET", "/api/kernels"):
            if kernel["id"] not in self.used:
                self.used.add(kernel["id"])
                return Session(self.gateway, kernel["id"], self.quick)
        raise Unable("the pre-spawned kernels are used up")
