// Azure's management client for session pools in Node.js, with a token of the server's own: `node arm.mjs ADDRESS NAME`.
import { execFileSync } from "node:child_process";
import { createRequire } from "node:module";

const require = createRequire(`${process.env.SANDPOOL_E2E_NODE}/`);
const { ContainerAppsAPIClient } = require("@azure/arm-appcontainers");

const [address, name] = process.argv.slice(2);
const getToken = async () => {
  const words = ["token", "--role", "admin"];
  const token = execFileSync(process.env.SANDPOOL_BIN, words, { encoding: "utf8" }).trim();
  return { token, expiresOnTimestamp: Date.now() + 3_000_000 };
};
const client = new ContainerAppsAPIClient({ getToken }, "11111111-2222-3333-4444-555555555555", { endpoint: address });
const pools = client.containerAppsSessionPools;

async function refused(call) {
  try {
    await call;
  } catch (error) {
    // What waits for an end throws without the details of the answer.
    return { status: Number(error.statusCode), code: error.code, message: error.message };
  }
  throw new Error("it was not refused");
}

const pool = {
  location: "westus2",
  tags: { team: "blue" },
  containerType: "PythonLTS",
  poolManagementType: "Dynamic",
  scaleConfiguration: { maxConcurrentSessions: 5, readySessionInstances: 1 },
  dynamicPoolConfiguration: { lifecycleConfiguration: { lifecycleType: "Timed", cooldownPeriodInSeconds: 450 } },
  sessionNetworkConfiguration: { status: "EgressDisabled" },
};
const seen = {};
seen.made = await pools.createOrUpdate("lab", name, pool);
seen.got = await pools.get("lab", name);
seen.changed = await pools.update("lab", name, { tags: { team: "red" }, scaleConfiguration: { maxConcurrentSessions: 6 } });
seen.listed = [];
for await (const one of pools.listByResourceGroup("lab")) seen.listed.push(one.name);

const { token } = await getToken();
const run = `${seen.made.poolManagementEndpoint}/executions?identifier=chat-17&api-version=2025-10-02-preview`;
const headers = { Authorization: `Bearer ${token}`, "Content-Type": "application/json" };
seen.ran = await (await fetch(run, { method: "POST", headers, body: JSON.stringify({ code: "6 * 7" }) })).json();

seen.wrong = await refused(pools.createOrUpdate("lab", name, { ...pool, scaleConfiguration: { maxConcurrentSessions: 0 } }));
await pools.delete("lab", name);
seen.missing = await refused(pools.get("lab", name));
process.stdout.write(JSON.stringify(seen));
