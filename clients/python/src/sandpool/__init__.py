"""The client library of Sandpool, a server that runs untrusted code in sandboxed sessions.

What it is for, in two lines:

    with Sandpool() as client, client.session("python") as session:
        print(session.run("6 * 7").result)
"""

from ._async import AsyncEventStream, AsyncExecution, AsyncFiles, AsyncSandpool, AsyncSession
from ._errors import (
    Busy,
    ExecutionFailed,
    Exhausted,
    InvalidRequest,
    NotAllowed,
    NotFound,
    OverQuota,
    QueueFull,
    SandpoolError,
    SessionLost,
    Unavailable,
    Unreachable,
)
from ._model import (
    Displayed,
    Egress,
    Event,
    ExecutionRecord,
    Failed,
    FileEntry,
    Finished,
    Form,
    Pool,
    Raised,
    Resulted,
    Rich,
    Secret,
    SessionInfo,
    Started,
    Stderr,
    Stdout,
    Truncated,
    Usage,
)
from ._sync import EventStream, Execution, Files, Sandpool, Session
from ._version import __version__

__all__ = [
    "AsyncEventStream",
    "AsyncExecution",
    "AsyncFiles",
    "AsyncSandpool",
    "AsyncSession",
    "Busy",
    "Displayed",
    "Egress",
    "Event",
    "EventStream",
    "Execution",
    "ExecutionFailed",
    "ExecutionRecord",
    "Exhausted",
    "Failed",
    "FileEntry",
    "Files",
    "Finished",
    "Form",
    "InvalidRequest",
    "NotAllowed",
    "NotFound",
    "OverQuota",
    "Pool",
    "QueueFull",
    "Raised",
    "Resulted",
    "Rich",
    "Sandpool",
    "SandpoolError",
    "Secret",
    "Session",
    "SessionInfo",
    "SessionLost",
    "Started",
    "Stderr",
    "Stdout",
    "Truncated",
    "Unavailable",
    "Unreachable",
    "Usage",
    "__version__",
]
