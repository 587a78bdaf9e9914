#!/bin/sh
# Installs one npm package, of the version that was said, as the server $SERVER. No package's script runs.
set -eu
here=/opt/servers/$SERVER
mkdir -p "$here"
cd "$here"
echo '{ "private": true }' >package.json
npm install --save-exact --ignore-scripts --no-audit --no-fund --no-update-notifier --no-progress --loglevel http \
    --prefer-offline --cache "$CACHE/npm" -- "$PACKAGE"
ln -s node_modules/.bin bin
node - <<'NODE'
const fs = require("fs");
const read = (file) => JSON.parse(fs.readFileSync(file));
const [name] = Object.keys(read("package.json").dependencies);
const own = name.split("/").pop();
const { bin = {} } = read(`node_modules/${name}/package.json`);
const programs = typeof bin === "string" ? [own] : Object.keys(bin);
const wanted = process.env.COMMAND || (programs.length === 1 ? programs[0] : own);
if (!programs.includes(wanted)) {
    console.log(`the package ${name} has no program ${wanted}; command says which it is, of: ${programs.join(", ")}`);
    process.exit(1);
}
fs.symlinkSync(`bin/${wanted}`, "run");
NODE
