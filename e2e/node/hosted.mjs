// A hosted server by the SDKs for JavaScript: `node hosted.mjs GENERATION URL TOKEN`. Prints what it saw as JSON.
const [generation, url, token] = process.argv.slice(2);
const first = generation === "first";
const { Client } = await import(first ? "@modelcontextprotocol/sdk/client/index.js" : "@modelcontextprotocol/client");
const { StreamableHTTPClientTransport } = await import(
  first ? "@modelcontextprotocol/sdk/client/streamableHttp.js" : "@modelcontextprotocol/client"
);
const client = new Client({ name: "test", version: "1.0.0" });
const headers = { Authorization: `Bearer ${token}` };
const transport = new StreamableHTTPClientTransport(new URL(url), { requestInit: { headers } });
await client.connect(transport);
const { tools } = await client.listTools();
const { content } = await client.callTool({ name: "get-sum", arguments: { a: 1, b: 2 } });
await transport.terminateSession();
await client.close();
console.log(JSON.stringify({ tools: tools.map((tool) => tool.name), text: content[0].text }));
