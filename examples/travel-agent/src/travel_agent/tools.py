"""Where the tools' code runs: in sessions of Sandpool, or, to show the difference, in the agent's own process."""

from __future__ import annotations

import contextlib
import io
import re
import tempfile
import threading
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from opentelemetry import trace
from sandpool import Execution, NotFound, Sandpool, Session, SessionLost

from .chart import MAX_PICTURE, BadPicture, checked

# Seconds, and bytes of output, of one run.
TIMEOUT = 40.0
OUTPUT = 64 << 10
PICTURE = "chart.png"


@dataclass(frozen=True)
class Ran:
    """What became of a tool's code. `error` is the traceback, or another reason, if it did not end well."""

    printed: str
    error: str | None = None
    picture: bytes | None = None


class Tools(Protocol):
    """The two places have the same face."""

    name: str
    # Where the chart's code leaves its figure.
    target: str

    def research(self, code: str) -> Ran:
        """Runs fixed code that may ask the weather service."""

    def draw(self, code: str) -> Ran:
        """Runs a model's code, which leaves a picture at `target`."""


class InSandpool:
    """Each run has a new session, which ends after it. Research and drawing have different pools: see `sandpool.yaml`."""

    name = "sandpool"
    target = f"/mnt/data/{PICTURE}"

    def __init__(self, client: Sandpool, weather_pool: str = "weather", chart_pool: str = "charts") -> None:
        self._client = client
        self._weather_pool = weather_pool
        self._chart_pool = chart_pool

    def research(self, code: str) -> Ran:
        with self._client.session(self._weather_pool) as session:
            return told(run(session, code))

    def draw(self, code: str) -> Ran:
        with self._client.session(self._chart_pool) as session:
            ran = told(run(session, code))
            if ran.error is not None:
                return ran
            try:
                return Ran(ran.printed, picture=checked(downloaded(session)))
            except (BadPicture, NotFound, SessionLost) as error:
                # Processes that the code left behind may still take the file away, or its sandbox down.
                return Ran(ran.printed, str(error))


def run(session: Session, code: str) -> Execution:
    execution = session.run(code, TIMEOUT, output_limit=OUTPUT)
    span = trace.get_current_span()
    span.set_attribute("sandpool.pool", session.pool)
    span.set_attribute("sandpool.session", session.identifier)
    span.set_attribute("sandpool.execution", execution.id)
    span.set_attribute("sandpool.outcome", execution.outcome or "")
    return execution


def told(execution: Execution) -> Ran:
    """Colours of the terminal are taken out of tracebacks."""
    if execution.succeeded:
        return Ran(execution.stdout)
    if execution.outcome == "timedOut":
        return Ran(execution.stdout, f"it took longer than {TIMEOUT:g} seconds")
    if execution.error is not None:
        return Ran(execution.stdout, re.sub(r"\x1b\[[0-9;]*m", "", execution.error.traceback))
    return Ran(execution.stdout, f"{execution.outcome}: {execution.detail or 'no reason given'}")


def downloaded(session: Session) -> bytes:
    """The picture. Its size is looked at first: what is brought here is in our memory.

    A process that the code left behind may still let it grow, up to what the pool's `dataDisk` allows.
    """
    sizes = {entry.name: entry.size for entry in session.files.list() if entry.type == "file"}
    if PICTURE not in sizes:
        raise BadPicture("the code left no chart")
    if sizes[PICTURE] > MAX_PICTURE:
        raise BadPicture(f"the chart has {sizes[PICTURE]} bytes, at most {MAX_PICTURE} are taken")
    return session.files.read(PICTURE)


class InProcess:
    """No sandbox at all: the code is this process, and has all that it has. For a comparison only.

    There is no limit of time or memory either: nothing in Python stops a thread. One run at a time, because output and
    figures are the process's.
    """

    name = "local"

    def __init__(self) -> None:
        self._place = tempfile.TemporaryDirectory(prefix="travel-agent-")
        self._turn = threading.Lock()
        self.target = str(Path(self._place.name) / PICTURE)

    def research(self, code: str) -> Ran:
        with self._turn:
            return self._run(code)

    def draw(self, code: str) -> Ran:
        with self._turn:
            picture = Path(self.target)
            picture.unlink(missing_ok=True)
            ran = self._run(code)
            if ran.error is not None:
                return ran
            try:
                return Ran(ran.printed, picture=checked(picture.read_bytes()))
            except (OSError, BadPicture) as error:
                return Ran(ran.printed, str(error))

    def _run(self, code: str) -> Ran:
        printed = io.StringIO()
        try:
            with contextlib.redirect_stdout(printed):
                exec(compile(code, "<tool>", "exec"), {"__name__": "__main__"})
        except (Exception, SystemExit):
            return Ran(printed.getvalue(), traceback.format_exc())
        return Ran(printed.getvalue())
