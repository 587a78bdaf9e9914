"""The web interface: one page, what it asks for, and the charts. On loopback, for the one person who started it.

GET  /            the page
POST /plan        {"wish", "tools", "conversation"?} -> lines of JSON: {"step"}, ..., then {"plan"} or {"error"}
GET  /chart/ID    a picture
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import secrets
import threading
from collections import OrderedDict
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any, Generic, TypeVar

from sandpool import SandpoolError

from .agent import MAX_WISH, Agent, Plan, Step
from .model import Message, Model, ModelFailed
from .tools import Tools

T = TypeVar("T")

# Bytes of a request's body, plans that are made at a time, and conversations and charts that are kept.
MAX_BODY = 16 << 10
MAX_PLANS = 4
MAX_KEPT = 64
# Messages of a conversation that the model is told.
MAX_BEFORE = 20


def page() -> tuple[bytes, str]:
    """The page, and the policy under which it runs: its own script and style, known by their hashes, and nothing else at all."""
    text = resources.files(__package__).joinpath("page.html").read_text("utf-8")

    def allowed(tag: str) -> str:
        inside = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.S)
        digests = (base64.b64encode(hashlib.sha256(one.encode()).digest()).decode() for one in inside)
        return " ".join(f"'sha256-{digest}'" for digest in digests)

    policy = (
        f"default-src 'none'; script-src {allowed('script')}; style-src {allowed('style')}; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text.encode(), policy


class Kept(Generic[T]):
    """The last things that were kept, each under a name that cannot be guessed."""

    def __init__(self) -> None:
        self._things: OrderedDict[str, T] = OrderedDict()
        self._turn = threading.Lock()

    def keep(self, thing: T) -> str:
        name = secrets.token_urlsafe(16)
        with self._turn:
            self._things[name] = thing
            while len(self._things) > MAX_KEPT:
                self._things.popitem(last=False)
        return name

    def get(self, name: str) -> T | None:
        with self._turn:
            return self._things.get(name)


class Web(ThreadingHTTPServer):
    """The server. Port 0 is any that is free."""

    daemon_threads = True

    def __init__(self, port: int, model: Model, variants: Mapping[str, Tools], weather_url: str | None) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.hosts = {f"{name}:{self.server_port}" for name in ("127.0.0.1", "localhost")}
        self.page, self.policy = page()
        self.model, self.variants, self.weather_url = model, variants, weather_url
        self.conversations: Kept[list[Message]] = Kept()
        self.charts: Kept[bytes] = Kept()
        self.places = threading.Semaphore(MAX_PLANS)

    def answered(self, before: list[Message], wish: str, plan: Plan) -> dict[str, Any]:
        said = [*before, {"role": "user", "content": wish}, {"role": "assistant", "content": plan.text}][-MAX_BEFORE:]
        chart = None if plan.picture is None else f"/chart/{self.charts.keep(plan.picture)}"
        return {"conversation": self.conversations.keep(said), "text": plan.text, "chart": chart}


class Handler(BaseHTTPRequestHandler):
    server: Web
    # Seconds without a byte.
    timeout = 30

    def do_GET(self) -> None:
        if not self.is_ours():
            return
        if self.path == "/":
            self.say(200, "text/html; charset=utf-8", self.server.page)
        elif self.path.startswith("/chart/") and (picture := self.server.charts.get(self.path.removeprefix("/chart/"))):
            self.say(200, "image/png", picture)
        else:
            self.say(404, "text/plain", b"there is nothing here\n")

    def do_POST(self) -> None:
        if not self.is_ours():
            return
        # A form of another site cannot send this type.
        if self.path != "/plan" or self.headers.get_content_type() != "application/json":
            self.say(404, "text/plain", b"there is nothing here\n")
            return
        try:
            length = int(self.headers["Content-Length"])
            if not 0 <= length <= MAX_BODY:
                raise ValueError("the length")
            asked = json.loads(self.rfile.read(length))
            wish, tools = asked["wish"], self.server.variants[asked["tools"]]
            if not isinstance(wish, str) or not wish.strip() or len(wish) > MAX_WISH:
                raise ValueError("the wish")
            before = self.server.conversations.get(str(asked.get("conversation"))) or []
        except (KeyError, TypeError, ValueError, AttributeError):
            self.say(400, "text/plain", b"wish and tools are needed\n")
            return
        if not self.server.places.acquire(blocking=False):
            self.say(429, "text/plain", b"too many plans are being made\n")
            return
        try:
            self.plan(wish, tools, before)
        finally:
            self.server.places.release()

    def plan(self, wish: str, tools: Tools, before: list[Message]) -> None:
        """Makes a plan, and tells what happens as it happens."""
        self.head(200, "application/x-ndjson")

        def line(told: dict[str, Any]) -> None:
            self.wfile.write(json.dumps(told).encode() + b"\n")
            self.wfile.flush()

        def step(made: Step) -> None:
            line({"step": {"kind": made.kind, "text": made.text}})

        try:
            plan = Agent(self.server.model, tools, self.server.weather_url, step).run(wish, before)
            line({"plan": self.server.answered(before, wish, plan)})
        except (ModelFailed, SandpoolError) as error:
            line({"error": str(error)})
        except ConnectionError:
            pass  # The page was closed.

    def is_ours(self) -> bool:
        """The request is for this server under its own name, and not another site's doing."""
        origin = self.headers.get("Origin")
        if self.headers.get("Host") in self.server.hosts and origin in (None, f"http://{self.headers['Host']}"):
            return True
        self.say(403, "text/plain", b"not from there\n")
        return False

    def head(self, status: int, kind: str, length: int | None = None) -> None:
        self.send_response(status)
        headers = {
            "Content-Type": kind,
            "Content-Security-Policy": self.server.policy,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Cache-Control": "no-store",
        }
        if length is not None:
            headers["Content-Length"] = str(length)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def say(self, status: int, kind: str, body: bytes) -> None:
        self.head(status, kind, len(body))
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's word
        pass


def serve(port: int, model: Model, variants: Mapping[str, Tools], weather_url: str | None) -> None:
    """Serves until it is interrupted."""
    with Web(port, model, variants, weather_url) as web:
        print(f"the travel agent is at http://127.0.0.1:{web.server_port}/", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            web.serve_forever()
