"""More of our MCP server, by the Python SDK's second generation: `python second.py URL TOKEN SESSION`. Prints what it saw as JSON."""

import asyncio
import json
import sys

from mcp import Client
from mcp.client.stdio import StdioServerParameters
from mcp.client.streamable_http import create_mcp_http_client, streamable_http_client

url, token, session, *stdio = sys.argv[1:]


async def use(client: Client) -> dict:
    seen = {"revision": client.protocol_version, "tools": [tool.name for tool in (await client.list_tools()).tools]}
    opened = await client.call_tool("open_session", {"pool": "python", "name": session})
    handle = opened.structured_content["session_id"]

    async def run(code: str, **more):
        return await client.call_tool("run_code", {"session_id": handle, "code": code}, **more)

    figure = await run("import matplotlib.pyplot as plt\nplt.plot([1, 4, 9])\nplt.show()")
    seen["figure"] = next(block.mime_type for block in figure.content if block.type == "image")
    raised = await run("1 / 0")
    seen["raised"] = [raised.is_error, raised.structured_content["error"]["name"]]
    written = {"session_id": handle, "path": "a.txt", "content": "äöü"}
    await client.call_tool("write_file", written)
    read = await client.read_resource(f"sandbox://{handle}/files/mnt/data/a.txt")
    seen["resource"] = read.contents[0].text
    templates = await client.list_resource_templates()
    seen["templates"] = len(templates.resource_templates)
    unknown = await client.call_tool("wait_execution", {"session_id": handle, "execution_id": "none"})
    seen["unknown"] = unknown.is_error
    told = []

    async def progressed(progress: float, total: float | None, message: str | None):
        told.append(message)

    await run("import time\nprint('begun', flush=True)\ntime.sleep(11)", progress_callback=progressed)
    seen["progress"] = told
    return seen


async def main():
    if stdio:
        async with Client(StdioServerParameters(command=stdio[0], args=stdio[1:])) as client:
            seen = await use(client)
    else:
        headers = {"Authorization": f"Bearer {token}"}
        async with (
            create_mcp_http_client(headers=headers) as http,
            Client(streamable_http_client(url, http_client=http)) as client,
        ):
            seen = await use(client)
    print(json.dumps(seen))


asyncio.run(main())
