"""More of our MCP server, by the Python SDK's first generation: `python first.py URL TOKEN SESSION`. Prints what it saw as JSON."""

import asyncio
import json
import sys

from mcp import ClientSession
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamablehttp_client

url, token, session, *stdio = sys.argv[1:]


async def use(client: ClientSession) -> dict:
    begun = await client.initialize()
    seen = {"revision": begun.protocolVersion, "tools": [tool.name for tool in (await client.list_tools()).tools]}
    opened = await client.call_tool("open_session", {"pool": "python", "name": session})
    handle = opened.structuredContent["session_id"]

    async def run(code: str, **more):
        return await client.call_tool("run_code", {"session_id": handle, "code": code}, **more)

    figure = await run("import matplotlib.pyplot as plt\nplt.plot([1, 4, 9])\nplt.show()")
    seen["figure"] = next(block.mimeType for block in figure.content if block.type == "image")
    raised = await run("1 / 0")
    seen["raised"] = [raised.isError, raised.structuredContent["error"]["name"]]
    written = {"session_id": handle, "path": "a.txt", "content": "äöü"}
    await client.call_tool("write_file", written)
    read = await client.read_resource(f"sandbox://{handle}/files/mnt/data/a.txt")
    seen["resource"] = read.contents[0].text
    templates = await client.list_resource_templates()
    seen["templates"] = len(templates.resourceTemplates)
    unknown = await client.call_tool("wait_execution", {"session_id": handle, "execution_id": "none"})
    seen["unknown"] = unknown.isError
    told = []

    async def progressed(progress: float, total: float | None, message: str | None):
        told.append(message)

    await run("import time\nprint('begun', flush=True)\ntime.sleep(11)", progress_callback=progressed)
    seen["progress"] = told
    return seen


async def main():
    if stdio:
        streams = stdio_client(StdioServerParameters(command=stdio[0], args=stdio[1:]))
    else:
        streams = streamablehttp_client(url, {"Authorization": f"Bearer {token}"})
    async with streams as (read, write, *_), ClientSession(read, write) as client:
        print(json.dumps(await use(client)))


asyncio.run(main())
