"""Hosted servers by the Python SDK's second generation: `python hosted_second.py BASE TOKEN`. Prints what it saw as JSON."""

import asyncio
import json
import sys

from mcp import Client
from mcp.client.streamable_http import create_mcp_http_client, streamable_http_client

base, token = sys.argv[1:]


async def use(server: str, tool: str, arguments: dict) -> dict:
    async with (
        create_mcp_http_client(headers={"Authorization": f"Bearer {token}"}) as http,
        Client(streamable_http_client(f"{base}/{server}/mcp", http_client=http)) as client,
    ):
        listed = [tool.name for tool in (await client.list_tools()).tools]
        result = await client.call_tool(tool, arguments)
        return {"revision": client.protocol_version, "tools": listed, "text": result.content[0].text}


async def main():
    seen = {
        "everything": await use("everything", "echo", {"message": "hi"}),
        "files": await use("files", "list_allowed_directories", {}),
        "time": await use("time", "get_current_time", {"timezone": "UTC"}),
    }
    print(json.dumps(seen))


asyncio.run(main())
