"""Hosted servers by the Python SDK's first generation: `python hosted_first.py BASE TOKEN SERVER`. SERVER is the one that has
everything. Prints what it saw as JSON."""

import asyncio
import json
import sys

from mcp import ClientSession, types
from mcp.client.streamable_http import streamablehttp_client

base, token, first = sys.argv[1:]
told = []


async def sampled(context, params):
    told.append("sampling")
    content = types.TextContent(type="text", text="a sampled answer")
    return types.CreateMessageResult(role="assistant", content=content, model="none")


async def elicited(context, params):
    told.append("elicitation")
    return types.ElicitResult(action="accept", content={"name": "Ann"})


async def roots(context):
    told.append("roots")
    return types.ListRootsResult(roots=[types.Root(uri="file:///mnt/data", name="data")])


async def use(server: str, work) -> dict:
    streams = streamablehttp_client(f"{base}/{server}/mcp", {"Authorization": f"Bearer {token}"})
    async with (
        streams as (read, write, _),
        ClientSession(
            read, write, sampling_callback=sampled, elicitation_callback=elicited, list_roots_callback=roots
        ) as client,
    ):
        begun = await client.initialize()
        listed = [tool.name for tool in (await client.list_tools()).tools]

        async def call(tool: str, arguments: dict, **more) -> str:
            result = await client.call_tool(tool, arguments, **more)
            return " ".join(block.text for block in result.content if block.type == "text")

        return {"revision": begun.protocolVersion, "tools": listed, **await work(client, call)}


async def everything(client: ClientSession, call) -> dict:
    progress = []

    async def progressed(done: float, total: float | None, message: str | None):
        progress.append(done)

    seen = {"echo": await call("echo", {"message": "hi"})}
    long = {"duration": 1, "steps": 4}
    seen["long"] = await call("trigger-long-running-operation", long, progress_callback=progressed)
    seen["progress"] = progress
    seen["sampled"] = await call("trigger-sampling-request", {"prompt": "say something", "maxTokens": 10})
    seen["elicited"] = await call("trigger-elicitation-request", {})
    seen["roots"] = await call("get-roots-list", {})
    image = await client.call_tool("get-tiny-image", {})
    seen["image"] = next(block.mimeType for block in image.content if block.type == "image")
    resource = (await client.list_resources()).resources[0]
    seen["resource"] = len((await client.read_resource(resource.uri)).contents[0].text)
    seen["prompts"] = len((await client.list_prompts()).prompts)
    together = [call("get-sum", {"a": number, "b": 1}) for number in range(20)]
    seen["sums"] = await asyncio.gather(*together)
    return seen


async def files(client: ClientSession, call) -> dict:
    written = await call("write_file", {"path": "/mnt/data/a.txt", "content": "kept"})
    outside = await call("read_file", {"path": "/etc/passwd"})
    return {"written": written, "read": await call("read_text_file", {"path": "/mnt/data/a.txt"}), "outside": outside}


async def time(client: ClientSession, call) -> dict:
    asked = {"source_timezone": "UTC", "time": "12:00", "target_timezone": "Asia/Tokyo"}
    return {"converted": await call("convert_time", asked)}


async def main():
    seen = {"everything": await use(first, everything), "files": await use("files", files), "time": await use("time", time)}
    print(json.dumps({**seen, "told": sorted(set(told))}))


asyncio.run(main())
