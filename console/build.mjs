// Bundles the console: `node build.mjs DIRECTORY`. Names below assets/ have a hash of their content, and each file is there packed too.

import { createHash } from "node:crypto";
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { brotliCompressSync, constants, gzipSync } from "node:zlib";
import { build } from "esbuild";

const out = process.argv[2];
if (!out) throw new Error("usage: node build.mjs DIRECTORY");

const { metafile } = await build({
  entryPoints: { main: "src/main.tsx", style: "src/style.css", theme: "src/theme.ts" },
  outdir: join(out, "assets"),
  entryNames: "[name]-[hash]",
  chunkNames: "[name]-[hash]",
  bundle: true,
  splitting: true,
  format: "esm",
  target: ["es2022", "chrome123", "firefox121", "safari17.5"],
  jsx: "automatic",
  jsxImportSource: "preact",
  minify: true,
  legalComments: "none",
  metafile: true,
  logLevel: "warning",
});

/** The name under which an entry came out. */
function named(source) {
  const found = Object.entries(metafile.outputs).find(([, output]) => output.entryPoint === source);
  if (!found) throw new Error(`${source} did not come out`);
  return `/console/assets/${found[0].split("/").at(-1)}`;
}

mkdirSync(out, { recursive: true });
const page = readFileSync("index.html", "utf8")
  .replace("STYLE", named("src/style.css"))
  .replace("THEME", named("src/theme.ts"))
  .replace("MAIN", named("src/main.tsx"));
writeFileSync(join(out, "index.html"), page);
// The document for HTML of sandboxes, as it is for those who want its scripts, and with a policy under which no script runs but its own.
const output = readFileSync("output.html", "utf8");
const [, own] = /<script>([^]*?)<\/script>/.exec(output);
const hash = createHash("sha256").update(own).digest("base64");
writeFileSync(join(out, "output-scripts.html"), output);
writeFileSync(
  join(out, "output.html"),
  output.replace('<meta charset="utf-8">', `<meta charset="utf-8">\n  <meta http-equiv="Content-Security-Policy" content="script-src 'sha256-${hash}'">`),
);

function pack(directory) {
  for (const entry of readdirSync(directory, { withFileTypes: true })) {
    const path = join(directory, entry.name);
    if (entry.isDirectory()) {
      pack(path);
      continue;
    }
    const bytes = readFileSync(path);
    const forms = {
      br: brotliCompressSync(bytes, { params: { [constants.BROTLI_PARAM_SIZE_HINT]: bytes.length } }),
      gz: gzipSync(bytes, { level: 9 }),
    };
    for (const [end, packed] of Object.entries(forms)) {
      if (packed.length < bytes.length * 0.9) writeFileSync(`${path}.${end}`, packed);
    }
  }
}
pack(out);
