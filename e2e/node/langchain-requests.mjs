// The requests of @langchain/azure-dynamic-sessions 1.0.1 (its repository is archived, and the registry has it no more),
// as the wire reference describes them, with the real @azure/identity: `node langchain-requests.mjs SESSION`.
import { createRequire } from "node:module";

const require = createRequire(`${process.env.SANDPOOL_E2E_NODE}/`);
const { DefaultAzureCredential } = require("@azure/identity");

const [session] = process.argv.slice(2);
const { token } = await new DefaultAzureCredential().getToken("https://acasessions.io/.default");
const endpoint = process.env.AZURE_CONTAINER_APP_SESSION_POOL_MANAGEMENT_ENDPOINT;
const url = (path) => `${endpoint}/${path}?identifier=${encodeURIComponent(session)}&api-version=2024-02-02-preview`;
const authorization = `Bearer ${token}`;

async function call(method, path, options = {}) {
  const headers = { Authorization: authorization, ...options.headers };
  const response = await fetch(url(path), { method, body: options.body, headers });
  if (!response.ok) throw new Error(`${method} ${path}: ${response.status} ${await response.text()}`);
  return response;
}

async function run(code) {
  const properties = { codeInputType: "inline", executionType: "synchronous", code };
  const headers = { "Content-Type": "application/json" };
  const response = await call("POST", "code/execute", { headers, body: JSON.stringify({ properties }) });
  return (await response.json()).properties;
}

const form = new FormData();
form.append("file", new Blob(["abc"]), "in.txt");
const seen = {
  value: await run("6 * 7"),
  printed: await run("print('hello')"),
  failed: await run("1 / 0"),
  uploaded: (await (await call("POST", "files/upload", { body: form })).json()).value[0].properties,
  listed: (await (await call("GET", "files")).json()).value.map((file) => file.properties),
  downloaded: await (await call("GET", "files/content/in.txt")).text(),
};
process.stdout.write(JSON.stringify(seen));
