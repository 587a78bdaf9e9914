"""What the server tells, as values. Keys that are not known are skipped, and nothing here sends anything."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from typing import Any, Literal, TypedDict, TypeVar

from ._errors import ExecutionFailed

Json = Mapping[str, Any]
Scalar = bool | int | float | str | None
State = Literal["queued", "running", "ended"]
Outcome = Literal["succeeded", "raised", "exited", "notStarted", "timedOut", "cancelled", "died"]
Record = TypeVar("Record", bound="ExecutionRecord")

# Forms that show something and do nothing. All others (HTML, SVG, scripts, widgets) may hold code, and it comes
# from a sandbox.
PASSIVE = frozenset({"text/plain", "application/json", "image/png", "image/jpeg", "image/gif", "image/webp"})


class Egress(TypedDict, total=False):
    """What a session may reach, of what its pool may."""

    mode: Literal["none", "allow-list", "open"]
    allow: Sequence[str]
    deny: Sequence[str]
    allowAddresses: Sequence[str]
    hosts: Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Secret:
    """A secret that a session uses and does not have.

    The session's variable `name` holds a placeholder, and only `hosts` get the value.
    """

    name: str
    value: str = field(repr=False)
    hosts: Sequence[str] = ()


@dataclass(frozen=True)
class Pool:
    """A pool. `raw` is all that the server says of it."""

    name: str
    container_type: str | None
    is_ready: bool
    ready: int
    sessions: int
    max_sessions: int
    max_timeout: timedelta
    cooldown: timedelta
    level: str
    trouble: str | None
    raw: Json = field(repr=False, compare=False)

    @classmethod
    def read(cls, raw: Json) -> Pool:
        return cls(
            name=raw["name"],
            container_type=raw["containerType"],
            is_ready=raw["isReady"],
            ready=raw["ready"],
            sessions=raw["sessions"],
            max_sessions=raw["maxSessions"],
            max_timeout=timedelta(seconds=raw["maxTimeoutSeconds"]),
            cooldown=timedelta(seconds=raw["cooldownSeconds"]),
            level=raw["level"],
            trouble=raw["trouble"],
            raw=raw,
        )


@dataclass(frozen=True)
class Usage:
    """What a session's sandbox uses."""

    cpu: timedelta
    memory_bytes: int
    memory_peak_bytes: int
    pids: int
    oom_kills: int
    stored_bytes: int
    sent_bytes: int
    received_bytes: int

    @classmethod
    def read(cls, raw: Json) -> Usage:
        return cls(
            cpu=timedelta(seconds=raw["cpuSeconds"]),
            memory_bytes=raw["memoryBytes"],
            memory_peak_bytes=raw["memoryPeakBytes"],
            pids=raw["pids"],
            oom_kills=raw["oomKills"],
            stored_bytes=raw["storedBytes"],
            sent_bytes=raw["sentBytes"],
            received_bytes=raw["receivedBytes"],
        )


@dataclass(frozen=True)
class SessionInfo:
    """A session, as the server knows it.

    `usage` is there when one session was asked for; `is_new` says that opening it made it. `state` is `live` or
    `suspended`, `keeps` what is kept of a suspended one (`files` or `machine`), and `lost` what a session does not have
    any more that opening it has brought back.
    """

    pool: str
    identifier: str
    sandbox: str
    level: str
    owner: str
    tenant: str
    busy: int
    created_at: datetime
    last_used_at: datetime
    expires_at: datetime
    is_new: bool = False
    usage: Usage | None = None
    state: Literal["live", "suspended"] = "live"
    keeps: Literal["files", "machine"] | None = None
    lost: tuple[str, ...] = ()
    raw: Json = field(repr=False, compare=False, default_factory=dict)

    @classmethod
    def read(cls, raw: Json) -> SessionInfo:
        return cls(
            pool=raw["pool"],
            identifier=raw["identifier"],
            sandbox=raw["sandbox"],
            level=raw["level"],
            owner=raw["owner"],
            tenant=raw["tenant"],
            busy=raw["busy"],
            created_at=instant(raw["createdAt"]),
            last_used_at=instant(raw["lastUsedAt"]),
            expires_at=instant(raw["expiresAt"]),
            is_new=raw.get("isNew", False),
            usage=Usage.read(raw["usage"]) if raw.get("usage") else None,
            state=raw.get("state", "live"),
            keeps=(raw.get("suspended") or {}).get("keeps"),
            lost=tuple((raw.get("resumed") or {}).get("lost", ())),
            raw=raw,
        )


@dataclass(frozen=True)
class FileEntry:
    """A file or directory.

    `path` is relative to the directory that was listed, and absolute in the answer to an upload.
    """

    name: str
    path: str
    type: Literal["file", "directory", "other"]
    size: int
    modified_at: datetime | None

    @classmethod
    def read(cls, raw: Json) -> FileEntry:
        modified = raw["modifiedAt"]
        return cls(raw["name"], raw["path"], raw["type"], raw["size"], None if modified is None else instant(modified))


# The name `list` is a method where these are listed.
Entries = list[FileEntry]


@dataclass(frozen=True)
class Form:
    """One form of a value: its media type, and either text or bytes."""

    type: str
    text: str | None = None
    data: bytes | None = field(default=None, repr=False)

    @classmethod
    def read(cls, raw: Json) -> Form:
        encoded = raw.get("base64")
        return cls(raw["type"], raw.get("text"), None if encoded is None else base64.b64decode(encoded))

    def as_bytes(self) -> bytes:
        """The form as a file would hold it."""
        return self.data if self.data is not None else (self.text or "").encode()

    def as_jupyter(self) -> Any:
        """The form as Jupyter wants it in a bundle: an object for JSON, text for text and SVG, base64 for all else."""
        if self.type == "application/json" or self.type.endswith("+json"):
            try:
                return json.loads(self.as_bytes())
            except ValueError:
                return self.as_bytes().decode(errors="replace")
        if self.data is None:
            return self.text or ""
        if self.type.startswith("text/") or self.type.endswith("+xml"):
            return self.data.decode(errors="replace")
        return base64.b64encode(self.data).decode("ascii")


@dataclass(frozen=True)
class Rich:
    """A value, as the interpreter shows it.

    `json` is the value itself if it is null, a boolean, a number or a text (`has_json`).
    """

    text: str
    json: Scalar = None
    has_json: bool = False
    forms: tuple[Form, ...] = ()
    # Media types of forms that were too large, with their sizes in bytes.
    dropped: tuple[tuple[str, int], ...] = ()
    # Whether notebooks are shown active forms too: see `trusted`.
    is_trusted: bool = False

    @classmethod
    def read(cls, raw: Json) -> Rich:
        return cls(
            text=raw["text"],
            json=raw.get("json"),
            has_json="json" in raw,
            forms=tuple(Form.read(form) for form in raw["forms"]),
            dropped=tuple((form["type"], form["bytes"]) for form in raw["dropped"]),
        )

    def form(self, type: str) -> Form | None:  # noqa: A002 - the word of the API
        """The form with this media type, such as `image/png`."""
        return next((form for form in self.forms if form.type == type), None)

    def trusted(self) -> Rich:
        """The same value, whose HTML, SVG and scripts a notebook shows too.

        They come from code that nobody has read, and a notebook runs them beside your own. By default it is shown
        only text, JSON and bitmaps.
        """
        return replace(self, is_trusted=True)

    def __str__(self) -> str:
        return self.text

    def _repr_mimebundle_(
        self, include: Iterable[str] | None = None, exclude: Iterable[str] | None = None
    ) -> dict[str, Any]:
        """What Jupyter shows."""
        bundle: dict[str, Any] = {"text/plain": self.text}
        bundle.update((form.type, form.as_jupyter()) for form in self.forms if self.is_trusted or form.type in PASSIVE)
        wanted = set(include) if include else set(bundle)
        return {kind: shown for kind, shown in bundle.items() if kind in wanted.difference(exclude or ())}


@dataclass(frozen=True)
class Raised:
    """An exception that ended an execution."""

    name: str
    message: str
    traceback: str = field(repr=False)

    @classmethod
    def read(cls, raw: Json) -> Raised:
        return cls(raw["name"], raw["message"], raw["traceback"])


@dataclass(frozen=True)
class Truncated:
    """Bytes of output that were dropped over the limit."""

    stdout: int = 0
    stderr: int = 0

    @classmethod
    def read(cls, raw: Json) -> Truncated:
        return cls(raw["stdout"], raw["stderr"])


@dataclass
class ExecutionRecord:
    """An execution, as it was when the server last told of it."""

    id: str
    pool: str
    session: str
    state: State
    outcome: Outcome | None
    exit_code: int | None
    detail: str | None
    created_at: datetime
    queued: timedelta | None
    duration: timedelta | None
    stdout: str
    stderr: str
    result: Rich | None
    displays: tuple[Rich, ...]
    error: Raised | None
    state_lost: bool
    truncated: Truncated
    # Lists tell of executions without their output: `wait` or `refresh` brings it.
    has_output: bool

    @staticmethod
    def fields(raw: Json) -> dict[str, Any]:
        """The fields of the server's record, or outline."""
        return {
            "id": raw["id"],
            "pool": raw["pool"],
            "session": raw["session"],
            "state": raw["state"],
            "outcome": raw["outcome"],
            "exit_code": raw["exitCode"],
            "detail": raw["detail"],
            "created_at": instant(raw["createdAt"]),
            "queued": milliseconds(raw["queuedMilliseconds"]),
            "duration": milliseconds(raw["durationMilliseconds"]),
            "stdout": raw.get("stdout", ""),
            "stderr": raw.get("stderr", ""),
            "result": Rich.read(raw["result"]) if raw.get("result") is not None else None,
            "displays": tuple(Rich.read(shown) for shown in raw.get("displays", ())),
            "error": Raised.read(raw["error"]) if raw.get("error") is not None else None,
            "state_lost": raw["stateLost"],
            "truncated": Truncated.read(raw["truncated"]),
            "has_output": "stdout" in raw,
        }

    def take(self, fields: Mapping[str, Any]) -> None:
        """Takes in what the server tells now."""
        for name, value in fields.items():
            setattr(self, name, value)

    @property
    def is_ended(self) -> bool:
        """It has ended, and nothing of it will change."""
        return self.state == "ended"

    @property
    def succeeded(self) -> bool:
        """Code ran to its end, or a command exited with 0."""
        return self.outcome == "succeeded" or (self.outcome == "exited" and self.exit_code == 0)

    def raise_for_error(self: Record) -> Record:
        """Returns the execution if it succeeded.

        Raises `ExecutionFailed` if it ended in any other way, and RuntimeError if it has not ended.
        """
        if not self.is_ended:
            raise RuntimeError(f"the execution {self.id} has not ended: wait for it first")
        if self.succeeded:
            return self
        raise ExecutionFailed(self._why(), self)

    def _why(self) -> str:
        if self.error is not None and self.outcome == "raised":
            return f"{self.error.name}: {self.error.message}"
        if self.outcome == "exited":
            last = self.stderr.strip().rpartition("\n")[2]
            return f"the command exited with {self.exit_code}" + (f": {last}" if last else "")
        words = {
            "raised": "the code raised an exception",
            "timedOut": "the time-out passed",
            "notStarted": "it could not be started",
            "cancelled": "it was cancelled",
            "died": "it died",
        }
        return words.get(self.outcome or "", f"it ended as {self.outcome}") + (
            f": {self.detail}" if self.detail else ""
        )

    def _repr_mimebundle_(
        self, include: Iterable[str] | None = None, exclude: Iterable[str] | None = None
    ) -> dict[str, Any]:
        """What Jupyter shows: the result if it is not null, or what was displayed last, or the output."""
        if self.result is not None and not (self.result.has_json and self.result.json is None):
            shown = self.result
        elif self.displays:
            shown = self.displays[-1]
        else:
            shown = Rich(self.stdout + self.stderr or repr(self))
        return shown._repr_mimebundle_(include, exclude)


@dataclass(frozen=True)
class Started:
    """The execution runs."""


@dataclass(frozen=True)
class Stdout:
    """Text on standard output, or on the terminal."""

    text: str


@dataclass(frozen=True)
class Stderr:
    """Text on standard error."""

    text: str


@dataclass(frozen=True)
class Displayed:
    """Something was shown on the way, such as a figure."""

    value: Rich


@dataclass(frozen=True)
class Resulted:
    """The value of the last expression."""

    value: Rich


@dataclass(frozen=True)
class Failed:
    """An exception ended the code. Its traceback has come on standard error already."""

    error: Raised


@dataclass(frozen=True)
class Finished:
    """The end. Nothing follows."""

    outcome: Outcome
    exit_code: int | None
    detail: str | None
    duration: timedelta | None
    state_lost: bool
    truncated: Truncated


Event = Started | Stdout | Stderr | Displayed | Resulted | Failed | Finished


def read_event(name: str, raw: Json) -> Event | None:
    """An event of a stream; None for one that is not known."""
    if name == "stdout":
        return Stdout(raw["text"])
    if name == "stderr":
        return Stderr(raw["text"])
    if name == "display":
        return Displayed(Rich.read(raw))
    if name == "result":
        return Resulted(Rich.read(raw))
    if name == "error":
        return Failed(Raised.read(raw))
    if name == "started":
        return Started()
    if name == "finished":
        return Finished(
            outcome=raw["outcome"],
            exit_code=raw["exitCode"],
            detail=raw["detail"],
            duration=milliseconds(raw["durationMilliseconds"]),
            state_lost=raw["stateLost"],
            truncated=Truncated.read(raw["truncated"]),
        )
    return None


def milliseconds(number: float | None) -> timedelta | None:
    return None if number is None else timedelta(milliseconds=number)


def instant(text: str) -> datetime:
    """A point in time: RFC 3339, with any number of digits after the second, of which six are kept."""
    found = re.fullmatch(r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d+))?(?:[Zz]|([+-]\d\d:\d\d))", text)
    if not found:
        raise ValueError(f"{text!r} is no point in time")
    day, time, fraction, offset = found.groups()
    micro = ((fraction or "") + "000000")[:6]
    return datetime.fromisoformat(f"{day}T{time}.{micro}{offset or '+00:00'}").astimezone(timezone.utc)
