"""What is asked, and what the answers mean. Written once, for both clients, and without any I/O.

A *flow* is a generator that yields requests, is sent the answers, and returns what the caller asked for. A client
carries it out:

    flow yields Request ─> client sends it, again if the server says when ─> flow is sent the Answer ─> ... ─> returns

Streams are followed by a `Follower`, which says what to ask for next and turns bytes into events.
"""

from __future__ import annotations

import base64
import json
import os
import uuid
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import quote, urlsplit

from ._errors import SandpoolError, SessionLost, Unreachable, refusal
from ._model import Egress, Event, ExecutionRecord, FileEntry, Finished, Json, Pool, Secret, SessionInfo, read_event
from ._version import __version__

T = TypeVar("T")
Stdin = str | bytes | Literal[True] | None
How = Literal["interrupt", "kill"]
Token = str | Callable[[], str]

USER_AGENT = f"sandpool-python/{__version__}"

# Seconds that one request waits for an execution's end; longer ones are asked for again.
WAIT = 60.0
# Seconds that a new session may wait for a place in a full pool: the most that a pool can be set to.
OPENING = 60.0
# A stream says something every ten seconds: this long a silence is a broken connection.
SILENCE = 30.0
# How often a broken stream is taken up again without an event in between, and the first pause; each next one is
# twice as long.
RESUMES = 6
FIRST_PAUSE = 0.1
# The same where the server knows no such session: one that has just started anew finds its sessions a moment later.
FORGETFUL = 3
# Bytes of one request of input.
INPUT_PIECE = 8 << 20


@dataclass(frozen=True)
class Request:
    """One request. At most one of `body` (JSON), `content` and `file` (a local file's bytes) is there."""

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    body: Json | None = None
    content: bytes | None = None
    file: Path | None = None
    is_stream: bool = False
    # Seconds that the answer may take beyond the client's own time-out.
    patience: float = 0.0
    # Whether the same request may be sent again after a refusal.
    is_repeatable: bool = True

    def headers(self) -> dict[str, str]:
        headers = {"Accept": "text/event-stream" if self.is_stream else "application/json"}
        if self.content is not None or self.file is not None:
            headers["Content-Type"] = "application/octet-stream"
        return headers

    def read_timeout(self, timeout: float) -> float:
        """Seconds without a byte after which the connection is taken for broken."""
        return max(timeout, SILENCE) + self.patience if self.is_stream else timeout + self.patience


@dataclass(frozen=True)
class Answer:
    """What came back, as a whole."""

    status: int
    headers: Mapping[str, str]
    content: bytes

    def error(self) -> SandpoolError:
        """The refusal that it is."""
        try:
            told = json.loads(self.content)
            error = told["error"]
            code, message, target = str(error["code"]), str(error["message"]), error.get("target")
        except (ValueError, TypeError, KeyError, AttributeError):
            # Not of our server: something between us answers.
            text = self.content[:200].decode(errors="replace").strip()
            code, message, target = "UnexpectedAnswer", text or f"The answer has status {self.status}.", None
        return refusal(self.status, code, message, target, self.retry_after())

    def retry_after(self) -> float | None:
        """Seconds; None where the server does not say."""
        text = self.headers.get("retry-after", "").strip()
        return float(text) if text.isascii() and text.isdigit() else None


@dataclass(frozen=True)
class Retry:
    """When a refused request is sent again.

    That is only after a 429 or 503 that says when, some times, and for so long in sum.
    """

    times: int = 3
    seconds: float = 30.0

    def pause(self, request: Request, answer: Answer, tried: int, waited: float) -> float | None:
        """Seconds until it is sent again; None: the refusal stands."""
        if answer.status not in (429, 503) or not request.is_repeatable or tried >= self.times:
            return None
        after = answer.retry_after()
        return after if after is not None and waited + after <= self.seconds else None


Flow = Generator[Request, Answer, T]


def expect(answer: Answer) -> Answer:
    """The answer, if it is a good one."""
    if not 200 <= answer.status < 300:
        raise answer.error()
    return answer


def parsed(answer: Answer, read: Callable[[Any], T]) -> T:
    """What a good answer says."""
    expect(answer)
    try:
        return read(json.loads(answer.content))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise SandpoolError(answer.status, "UnexpectedAnswer", f"The answer cannot be read: {error!r}.") from error


def address(endpoint: str | None) -> str:
    """The server's address: as given, or out of the environment."""
    found = endpoint or os.environ.get("SANDPOOL_ENDPOINT")
    if not found:
        raise ValueError("there is no endpoint: pass one, or set SANDPOOL_ENDPOINT")
    parts = urlsplit(found)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError(f"{found!r} is no address such as http://127.0.0.1:7300")
    if parts.username is not None or parts.password is not None:
        raise ValueError("the endpoint has a user in it: pass the token as such")
    return found.rstrip("/")


def credential(token: Token | None) -> Callable[[], str]:
    """What gives the token for each request: as given, or out of the environment."""
    found = token or os.environ.get("SANDPOOL_TOKEN")
    if not found:
        raise ValueError("there is no token: pass one, or set SANDPOOL_TOKEN")
    return found if callable(found) else lambda: found


def segment(text: str) -> str:
    """A name as one segment of a path."""
    if text in ("", ".", ".."):
        raise ValueError(f"{text!r} is no name")
    return quote(text, safe="")


def pools() -> Flow[list[Pool]]:
    answer = yield Request("GET", "/pools")
    return parsed(answer, lambda raw: [Pool.read(pool) for pool in raw["value"]])


def pool(name: str) -> Flow[Pool]:
    answer = yield Request("GET", f"/pools/{segment(name)}")
    return parsed(answer, Pool.read)


def sessions(pool: str) -> Flow[list[SessionInfo]]:
    return (yield from pages(f"/pools/{segment(pool)}/sessions", {}, SessionInfo.read))


def pages(path: str, query: Mapping[str, str], read: Callable[[Json], T]) -> Flow[list[T]]:
    """A list, page after page."""
    found: list[T] = []
    after: str | None = None
    while True:
        answer = yield Request("GET", path, {**query, **({} if after is None else {"after": after})})
        page, after = parsed(answer, lambda raw: ([read(one) for one in raw["value"]], raw["next"]))
        found += page
        if after is None:
            return found


def start(
    *,
    code: str | None = None,
    command: str | Sequence[str] | None = None,
    stdin: Stdin = None,
    timeout: float | None = None,
    fresh: bool = False,
    terminal: tuple[int, int] | None = None,
    output_limit: int | None = None,
    id: str | uuid.UUID | None = None,  # noqa: A002 - the word of the API
) -> dict[str, Any]:
    """The body that starts an execution. It always has an id, so that sending it again starts nothing twice."""
    if (code is None) == (command is None):
        raise ValueError("exactly one of code and command is given")
    if code is not None and (stdin is not None or terminal is not None):
        raise ValueError("stdin and terminal go with a command")
    body: dict[str, Any] = {"id": str(uuid.uuid4() if id is None else uuid.UUID(str(id)))}
    if code is not None:
        body["code"] = code
    elif isinstance(command, str):
        body["command"] = command
    elif command is not None:
        body["argv"] = list(command)
    if isinstance(stdin, bytes):
        body["stdin"] = {"base64": base64.b64encode(stdin).decode("ascii")}
    elif stdin is not None:
        body["stdin"] = stdin
    if timeout is not None:
        body["timeoutSeconds"] = timeout
    if fresh:
        body["fresh"] = True
    if terminal is not None:
        body["terminal"] = {"rows": terminal[0], "columns": terminal[1]}
    if output_limit is not None:
        body["outputLimitBytes"] = output_limit
    return body


def check_input(stdin: Stdin, wait: bool, id: str | uuid.UUID | None) -> None:  # noqa: A002
    """Refuses to wait for an execution whose input nobody could send."""
    if stdin is True and wait and id is None:
        raise ValueError("stdin=True goes with wait=False: nobody could send the input")


def opening(
    env: Mapping[str, str] | None, secrets: Iterable[Secret] | None, egress: Egress | None
) -> dict[str, Any] | None:
    """The body that opens a session; None when nothing is given."""
    body: dict[str, Any] = {}
    if env:
        body["env"] = dict(env)
    given = list(secrets or ())
    if given:
        body["secrets"] = [
            {"name": secret.name, "value": secret.value, "hosts": list(secret.hosts)} for secret in given
        ]
    if egress is not None:
        body["egress"] = dict(egress)
    return body or None


class Stage(Enum):
    """What is known of a session from here."""

    NEW = "new"
    OPEN = "open"
    LOST = "lost"
    ENDED = "ended"


class SessionFlows:
    """All that can be asked about one session.

        NEW ──open──> OPEN ──end──> ENDED
                       │ 410           │
                       └────> LOST ────┴──open──> OPEN

    What makes a session where there is none is only asked where that is meant: not after the end, and not by
    leaving out what the session was to be given.
    """

    def __init__(self, pool: str, identifier: str | None, given: Json | None) -> None:
        self.pool = pool
        self.identifier = str(uuid.uuid4()) if identifier is None else identifier
        self.given = given
        self.stage = Stage.NEW
        self.path = f"/pools/{segment(self.pool)}/sessions/{segment(self.identifier)}"
        self.executions_path = f"{self.path}/executions"

    def told(self, answer: Answer, read: Callable[[Any], T]) -> T:
        """As `parsed`; a session that is lost is remembered as such."""
        try:
            return parsed(answer, read)
        except SessionLost:
            self.lost()
            raise

    def done(self, answer: Answer) -> None:
        try:
            expect(answer)
        except SessionLost:
            self.lost()
            raise

    def lost(self) -> None:
        if self.stage is not Stage.ENDED:
            self.stage = Stage.LOST

    def may_make(self) -> None:
        """Refuses what would make a session that was not meant."""
        if self.stage is Stage.ENDED:
            raise RuntimeError(f"the session {self.identifier} has ended: open() it again, or use another")
        if self.given is not None and self.stage is not Stage.OPEN:
            raise RuntimeError(
                f"the session {self.identifier} is to be given {', '.join(self.given)}: "
                "open() it first, or use it in a with block"
            )

    def open(self) -> Flow[SessionInfo]:
        answer = yield Request("PUT", self.path, body=self.given, patience=OPENING)
        opened = self.told(answer, SessionInfo.read)
        self.stage = Stage.OPEN
        return opened

    def end(self) -> Flow[None]:
        answer = yield Request("DELETE", self.path)
        # It is gone, which is what was wanted.
        if answer.status not in (404, 410):
            expect(answer)
        self.stage = Stage.ENDED

    def info(self) -> Flow[SessionInfo]:
        return self.told((yield Request("GET", self.path)), SessionInfo.read)

    # Executions. Their fields are returned, because each client has a class of its own for them.

    def execute(self, body: Json, wait: bool) -> Flow[dict[str, Any]]:
        self.may_make()
        seconds = WAIT if wait else 0.0
        asked = {**body, "waitSeconds": seconds}
        answer = yield Request("POST", self.executions_path, body=asked, patience=OPENING + seconds)
        found = self.told(answer, ExecutionRecord.fields)
        while wait and found["state"] != "ended":
            found = yield from self.execution(found["id"], WAIT)
        return found

    def execution(self, id: str, wait: float | None = None) -> Flow[dict[str, Any]]:  # noqa: A002
        query = {} if wait is None else {"wait": f"{wait:.3f}"}
        answer = yield Request("GET", self.execution_path(id), query, patience=wait or 0.0)
        return self.told(answer, ExecutionRecord.fields)

    def wait(self, id: str, timeout: float | None) -> Flow[dict[str, Any]]:  # noqa: A002
        """The execution when it has ended, or as it is after `timeout` seconds."""
        left = timeout
        while True:
            seconds = WAIT if left is None else min(WAIT, max(left, 0.0))
            found = yield from self.execution(id, seconds)
            if left is not None:
                left -= seconds
            if found["state"] == "ended" or (left is not None and left <= 0):
                return found

    def executions(self) -> Flow[list[dict[str, Any]]]:
        answer = yield Request("GET", self.executions_path)
        return self.told(answer, lambda raw: [ExecutionRecord.fields(one) for one in raw["value"]])

    def stop(self, id: str, how: How) -> Flow[None]:  # noqa: A002
        self.done((yield Request("POST", f"{self.execution_path(id)}/stop", body={"how": how})))

    def input(self, id: str, data: str | bytes, end: bool) -> Flow[None]:  # noqa: A002
        """Input in pieces. A piece that was refused may have come through in part, and is not sent again."""
        path = f"{self.execution_path(id)}/input"
        rest = data.encode() if isinstance(data, str) else data
        pieces = [rest[at : at + INPUT_PIECE] for at in range(0, len(rest), INPUT_PIECE)]
        for piece in [*pieces, b""] if end else pieces:
            # As fast as it is read in the sandbox, which may be slowly.
            self.done((yield Request("POST", path, content=piece, patience=WAIT, is_repeatable=False)))

    def resize(self, id: str, rows: int, columns: int) -> Flow[None]:  # noqa: A002
        path = f"{self.execution_path(id)}/resize"
        self.done((yield Request("POST", path, body={"rows": rows, "columns": columns})))

    def execution_path(self, id: str) -> str:  # noqa: A002
        return f"{self.executions_path}/{segment(id)}"

    def follow(self, body: Json) -> Follower:
        """Starts an execution and follows it."""
        self.may_make()
        first = Request("POST", self.executions_path, body=body, is_stream=True, patience=OPENING)
        return Follower(first, f"{self.execution_path(body['id'])}/events", self.lost)

    # Files.

    def files(self, path: str, recursive: bool) -> Flow[list[FileEntry]]:
        query = {"path": path} if path else {}
        if recursive:
            query["recursive"] = "true"
        return (yield from pages(f"{self.path}/files", query, FileEntry.read))

    def read(self, path: str) -> Flow[bytes]:
        answer = yield self.reading(path)
        self.done(answer)
        return answer.content

    def reading(self, path: str) -> Request:
        where, query = self.file(path)
        return Request("GET", where, query)

    def write(self, path: str, data: bytes | Path) -> Flow[FileEntry]:
        self.may_make()
        where, query = self.file(path)
        content, file = (None, data) if isinstance(data, Path) else (data, None)
        answer = yield Request("PUT", where, query, content=content, file=file, patience=OPENING)
        return self.told(answer, FileEntry.read)

    def remove(self, path: str, missing_ok: bool) -> Flow[None]:
        where, query = self.file(path)
        answer = yield Request("DELETE", where, query)
        if missing_ok and answer.status == 404 and answer.error().code == "FileNotFound":
            return
        self.done(answer)

    def file(self, path: str) -> tuple[str, dict[str, str]]:
        """Where a file is in the API: its path and its query. Relative paths are below /mnt/data."""
        names = [name for name in path.split("/") if name not in ("", ".")]
        # A URL would take it for a step up, before the server sees it.
        if ".." in names:
            raise ValueError(f"{path!r} has a component .. in it")
        if not names:
            raise ValueError(f"{path!r} names no file")
        if path.startswith("/"):
            return f"{self.path}/files/-", {"absolute": "/" + "/".join(names)}
        return f"{self.path}/files/{'/'.join(map(segment, names))}", {}


class Follower:
    """One execution's events, across broken connections: each is told once."""

    def __init__(self, first: Request, events_path: str, lost: Callable[[], None]) -> None:
        self._first = first
        self._events_path = events_path
        self._lost = lost
        self._parser = Parser()
        self._is_known = False
        self._last = 0
        self._failures = 0
        # Events without an id belong to the next that has one: they come again with it.
        self._held: list[Event] = []
        self.is_finished = False

    def request(self) -> Request:
        """What to ask for now."""
        if not self._is_known:
            return self._first
        return Request("GET", self._events_path, {"after": str(self._last)}, is_stream=True)

    def opened(self) -> None:
        """The server answers with a stream: it knows the execution."""
        self._is_known = True
        self._parser = Parser()
        self._held = []

    def feed(self, piece: bytes) -> list[Event]:
        """The events that these bytes bring."""
        told: list[Event] = []
        for message in self._parser.feed(piece):
            try:
                event = read_event(message.name, json.loads(message.data))
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise SandpoolError(200, "UnexpectedAnswer", f"An event cannot be read: {error!r}.") from error
            if message.id is None:
                self._held += [event] if event else []
                continue
            if message.id > self._last:
                self._last = message.id
                self._failures = 0
                told += [*self._held, event] if event else self._held
            self._held = []
            if isinstance(event, Finished):
                self.is_finished = True
                break
        return told

    def ended_early(self) -> SandpoolError:
        return Unreachable(0, "StreamBroken", "The stream of events ended before the execution did.")

    def broke(self, error: SandpoolError) -> float:
        """Seconds until the stream is to be taken up again, after the last event that was told.

        Raises `error` if it is final.
        """
        if isinstance(error, SessionLost):
            self._lost()
        self._failures += 1
        if not self._is_known or self._failures > self._patience_with(error):
            raise error
        return FIRST_PAUSE * float(2 ** (self._failures - 1))

    def _patience_with(self, error: SandpoolError) -> int:
        """How many failures in a row are borne, if this is the last of them."""
        if error.code == "NoSessionFoundError":
            return FORGETFUL
        return 0 if 0 < error.status < 500 else RESUMES


@dataclass(frozen=True)
class Message:
    """One server-sent event."""

    name: str
    data: str
    id: int | None


class Parser:
    """Server-sent events out of bytes that come in pieces of any size.

    Lines end with LF or CRLF, which is what the server sends.
    """

    def __init__(self) -> None:
        self._line: list[bytes] = []
        self._name = ""
        self._data: list[str] = []
        self._id: int | None = None

    def feed(self, piece: bytes) -> list[Message]:
        found: list[Message] = []
        *whole, rest = piece.split(b"\n")
        for end in whole:
            line = b"".join([*self._line, end]).removesuffix(b"\r").decode(errors="replace")
            self._line = []
            message = self._take(line)
            if message:
                found.append(message)
        if rest:
            self._line.append(rest)
        return found

    def _take(self, line: str) -> Message | None:
        if not line:
            message = Message(self._name or "message", "\n".join(self._data), self._id) if self._data else None
            self._name, self._data, self._id = "", [], None
            return message
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            self._name = value
        elif name == "data":
            self._data.append(value)
        elif name == "id" and value.isascii() and value.isdigit():
            self._id = int(value)
        return None
