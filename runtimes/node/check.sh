#!/bin/sh
# Runs in the finished tree, as a user that owns nothing there: what sessions count on must be found and readable.
set -eu
export HOME="$SCRATCH" NODE_PATH=/usr/local/lib/node_modules
cd "$SCRATCH"
node - <<'NODE'
const { dependencies } = JSON.parse(require("fs").readFileSync(process.env.RECIPE + "/package.json"));
for (const name of Object.keys(dependencies)) require(name);
require("repl");
NODE
npm --version
for program in bash curl git jq npx python3; do
    command -v "$program" >/dev/null || { echo "missing: $program"; exit 1; }
done
