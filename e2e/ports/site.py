"""A site inside a session, with what its image has: `site.py PORT`. Says what it was asked, counts and gives bytes, tells events, and echoes on
WebSockets."""

import asyncio
import base64
import hashlib
import json
import sys

MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

# What a browser would keep: for this host, for a host above it, or for all that is asked at its origin.
KEPT = """Content-Type: application/json
Set-Cookie: mine=1; Path=/
Set-Cookie: other=2
Set-Cookie: wide=3; Domain=preview.localhost; Path=/
Strict-Transport-Security: max-age=1
Clear-Site-Data: "cache"
Service-Worker-Allowed: /
Alt-Svc: h2="elsewhere.test:443"
Report-To: {"group": "all", "max_age": 86400, "endpoints": [{"url": "https://elsewhere.test/"}]}
NEL: {"report_to": "all", "max_age": 86400, "success_fraction": 1.0}
X-Own: kept""".splitlines()


async def head_of(reader):
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
    method, target, _ = lines[0].split(" ")
    headers = [line.split(": ", 1) for line in lines[1:]]
    return method, target, headers


def answered(body, *headers, status="200 OK"):
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


async def body_of(reader, headers):
    """The pieces of a request's body."""
    if headers.get("transfer-encoding") == "chunked":
        while size := int(await reader.readline(), 16):
            yield await reader.readexactly(size)
            await reader.readexactly(2)
        await reader.readline()
        return
    left = int(headers.get("content-length", 0))
    while left:
        piece = await reader.read(min(left, 1 << 16))
        if not piece:
            raise ConnectionError
        left -= len(piece)
        yield piece


async def echo(reader, writer, key):
    accept = base64.b64encode(hashlib.sha1(key.encode() + MAGIC).digest()).decode()
    writer.write(
        f"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n".encode()
    )
    while True:
        first, length = await reader.readexactly(2)
        length &= 127
        if length > 125:
            length = int.from_bytes(await reader.readexactly({126: 2, 127: 8}[length]))
        mask = await reader.readexactly(4)
        data = await reader.readexactly(length)
        mask = (mask * (length // 4 + 1))[:length]
        data = (int.from_bytes(data) ^ int.from_bytes(mask)).to_bytes(length)
        size = bytes([length]) if length < 126 else b"\x7e" + length.to_bytes(2) if length < 1 << 16 else b"\x7f" + length.to_bytes(8)
        # A ping is answered with a pong, all else with itself.
        writer.write(bytes([0x8A if first == 0x89 else first]) + size + data)
        await writer.drain()
        if first & 15 == 8:
            return


async def serve(reader, writer):
    try:
        while True:
            method, target, pairs = await head_of(reader)
            headers = {name.lower(): value for name, value in pairs}
            path = target.partition("?")[0]
            if "upgrade" in headers:
                return await echo(reader, writer, headers["sec-websocket-key"])
            if path == "/events":
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
                number = 0
                while True:
                    writer.write(f"data: {number}\n\n".encode())
                    await writer.drain()
                    await asyncio.sleep(0.3)
                    number += 1
            elif path.startswith("/bytes/"):
                left = int(path[7:])
                writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {left}\r\n\r\n".encode())
                while left:
                    piece = bytes(min(left, 1 << 16))
                    writer.write(piece)
                    await writer.drain()
                    left -= len(piece)
            elif path == "/slow":
                await asyncio.sleep(1)
                writer.write(answered(b"slow\n"))
            else:
                length, digest = 0, hashlib.sha256()
                async for piece in body_of(reader, headers):
                    length += len(piece)
                    digest.update(piece)
                asked = {"method": method, "target": target, "headers": pairs, "length": length, "sha256": digest.hexdigest()}
                body = b"" if method == "HEAD" else json.dumps(asked).encode()
                writer.write(answered(body, *(KEPT if path == "/kept" else ["Content-Type: application/json"])))
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[1]), backlog=512)
    await server.serve_forever()


asyncio.run(main())
