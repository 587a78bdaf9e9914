// AzureDynamicSessionTool of LlamaIndexTS, unmodified: `node llamaindex.mjs SESSION FILE`. It speaks generation 0
// (`python/execute`). Prints one JSON document with what it saw.
import { createRequire } from "node:module";
import { readFile } from "node:fs/promises";

const require = createRequire(`${process.env.SANDPOOL_E2E_NODE}/`);
// This client logs what it sends and gets; standard output is for our document.
console.log = () => {};
const { AzureDynamicSessionTool } = require("@llamaindex/azure");

const [sessionId, file] = process.argv.slice(2);
const tool = new AzureDynamicSessionTool({ sessionId });
const data = new Blob([await readFile(file)]);
const seen = {
  value: await tool.call({ code: "6 * 7" }),
  printed: await tool.call({ code: "print('hello'); x = 5" }),
  kept: await tool.call({ code: "x + 1" }),
  failed: await tool.call({ code: "1 / 0" }),
  image: await tool.call({ code: "import matplotlib.pyplot as plt\nplt.plot([1, 4])\nplt.show()" }),
  uploaded: await tool.uploadFile({ data, remoteFilename: "in.txt" }),
  listed: await tool.listFiles(),
};
const chunks = [];
for await (const chunk of await tool.downloadFile({ remoteFilename: "in.txt" })) chunks.push(chunk);
seen.downloaded = Buffer.concat(chunks).toString();
process.stdout.write(JSON.stringify(seen));
