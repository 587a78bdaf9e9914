"""A server inside a session that means harm: `hostile.py PORT`. The path of a request says how it is answered."""

import asyncio
import itertools
import os
import sys

OK = b"HTTP/1.1 200 OK\r\n"

# What is said once; then the connection ends.
SAID = {
    "nothing": b"",
    "garbage": os.urandom(10_000),
    "another-protocol": b"220 ready\r\n",
    "half-a-head": OK + b"Content-Le",
    "no-head": b"<p>as in the year 1991</p>",
    "version": b"HTTP/9.9 200 OK\r\n\r\n",
    "status": b"HTTP/1.1 20000 OK\r\n\r\n",
    "many-headers": OK + b"".join(b"X-%d: 1\r\n" % n for n in range(300)) + b"\r\n",
    "two-lengths": OK + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nabc",
    "no-length": OK + b"Content-Length: -1\r\n\r\nabc",
    "bare-return": OK + b"X-A: b\rSet-Cookie: stolen=1\r\nContent-Length: 2\r\n\r\nhi",
    "nul": OK + b"X-A: b\0c\r\nContent-Length: 2\r\n\r\nhi",
    "name-with-space": OK + b"X A: b\r\nContent-Length: 2\r\n\r\nhi",
    "switch": b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
    "switch-to-nothing": b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
    # Heads that are good, with bodies that are not what they say.
    "short": OK + b"Content-Length: 100\r\n\r\n0123456789",
    "bad-chunk": OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n",
    "cut-chunk": OK + b"Transfer-Encoding: chunked\r\n\r\nff\r\nhello",
    "two-answers": OK + b"Content-Length: 2\r\n\r\nhi" + OK + b"Set-Cookie: stolen=1\r\nContent-Length: 6\r\n\r\nsecond",
    "both": OK + b"Content-Length: 40\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\nHTTP/1.1 200 OK\r\nX-A: smuggled\r\n\r\n",
    "folded": OK + b"X-A: b\r\n Set-Cookie: stolen=1\r\nContent-Length: 2\r\n\r\nhi",
    "body-of-none": b"HTTP/1.1 204 No Content\r\nContent-Length: 6\r\n\r\nsecond",
}


def endless(path):
    """What is said without end: pieces, and the pause after each."""
    if path == "endless-header":
        return (OK if n == 0 else b"X-%d: %s\r\n" % (n, b"a" * 1000) for n in itertools.count()), 0
    if path == "endless-line":
        return (OK + b"X-A: " if n == 0 else b"a" * 1000 for n in itertools.count()), 0
    if path == "endless-reason":
        return (b"HTTP/1.1 200 " if n == 0 else b"a" * 1000 for n in itertools.count()), 0
    if path == "continue":
        return itertools.repeat(b"HTTP/1.1 100 Continue\r\n\r\n" * 100), 0
    if path == "drip":
        return (bytes([byte]) for byte in itertools.chain(OK + b"X-A: ", itertools.repeat(97))), 0.1
    return None, 0


async def serve(reader, writer):
    try:
        path = (await reader.readuntil(b"\r\n\r\n")).split(b" ")[1].decode().strip("/").partition("?")[0]
        pieces, pause = endless(path)
        for piece in pieces or ():
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause)
        writer.write(SAID[path])
        await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[1]), backlog=512)
    await server.serve_forever()


asyncio.run(main())
