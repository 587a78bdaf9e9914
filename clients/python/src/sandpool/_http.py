"""What both clients have of httpx: requests that are built and not sent, and what goes wrong on the way."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import httpx

from . import _protocol as protocol
from ._errors import Unreachable
from ._protocol import Request, Token

Content = bytes | Iterator[bytes] | AsyncIterator[bytes] | None

HEADERS = {"User-Agent": protocol.USER_AGENT}
# A session is a connection that waits: how many there are at a time is for the server to say.
LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=20)


@contextmanager
def reaching() -> Iterator[None]:
    """What goes wrong on the way is told as an exception of ours."""
    try:
        yield
    except httpx.RequestError as error:
        name = type(error).__name__
        raise Unreachable(0, name, str(error) or name) from error


class Server:
    """Where the server is, and with which token and patience it is asked."""

    def __init__(self, endpoint: str | None, token: Token | None, timeout: float) -> None:
        self.endpoint = protocol.address(endpoint)
        self._token = protocol.credential(token)
        self._timeout = timeout

    def built(self, http: httpx.Client | httpx.AsyncClient, request: Request, content: Content) -> httpx.Request:
        """The request as httpx sends it; `content` is what there is beside JSON."""
        headers = {**request.headers(), "Authorization": f"Bearer {self._token()}"}
        if request.file is not None:
            # The bytes come in pieces, whose sum httpx does not know.
            headers["Content-Length"] = str(os.stat(request.file).st_size)
        return http.build_request(
            request.method,
            self.endpoint + request.path,
            params=request.query or None,
            headers=headers,
            json=request.body,
            content=content,
            timeout=httpx.Timeout(self._timeout, read=request.read_timeout(self._timeout)),
        )
