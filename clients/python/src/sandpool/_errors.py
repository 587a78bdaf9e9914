"""What can go wrong: one class for each thing that a caller can act on."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._model import ExecutionRecord


class SandpoolError(Exception):
    """The server refused, or did not answer as it should.

    `status` is HTTP's (0 when there was no answer), `code` the server's stable word for it, `message` a sentence
    for people, `target` the field or parameter that is wrong, and `retry_after` the seconds after which it may go
    better.
    """

    def __init__(
        self, status: int, code: str, message: str, target: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(status, code, message, target, retry_after)
        self.status = status
        self.code = code
        self.message = message
        self.target = target
        self.retry_after = retry_after

    def __str__(self) -> str:
        about = f" [{self.target}]" if self.target else ""
        return f"{self.message} ({self.code}{about})"


class InvalidRequest(SandpoolError):
    """A value is wrong, or the pool cannot do that (400)."""


class NotAllowed(SandpoolError):
    """There is no token, it is not good here, or not for this (401, 403)."""


class NotFound(SandpoolError):
    """There is no such pool, session, execution or file (404)."""


class SessionLost(SandpoolError):
    """The session's sandbox died, and all in it (410). What comes next under its name is a new session."""


class Busy(SandpoolError):
    """There is no room just now (429). `retry_after` says when there may be."""


class Exhausted(Busy):
    """Every session of the pool is in use."""


class OverQuota(Busy):
    """The tenant has used up a quota: `target` says which."""


class QueueFull(Busy):
    """Too many executions wait in the session."""


class Unavailable(SandpoolError):
    """Sandboxes do not start, or the server stops (503)."""


class Unreachable(SandpoolError):
    """There was no answer: the connection was refused, broke, or took too long. The cause is the exception of httpx."""


class ExecutionFailed(RuntimeError):
    """An execution did not succeed. `execution` is its record."""

    def __init__(self, message: str, execution: ExecutionRecord) -> None:
        super().__init__(message)
        self.execution = execution


_BY_CODE: dict[str, type[SandpoolError]] = {
    "SessionsCountExceedsLimit": Exhausted,
    "TenantQuotaExceeded": OverQuota,
    "ExecutionQueueFull": QueueFull,
}

_BY_STATUS: dict[int, type[SandpoolError]] = {
    400: InvalidRequest,
    401: NotAllowed,
    403: NotAllowed,
    404: NotFound,
    410: SessionLost,
    429: Busy,
    503: Unavailable,
}


def refusal(
    status: int, code: str, message: str, target: str | None = None, retry_after: float | None = None
) -> SandpoolError:
    """The exception for a refusal of the server."""
    kind = _BY_CODE.get(code) or _BY_STATUS.get(status, SandpoolError)
    return kind(status, code, message, target, retry_after)
