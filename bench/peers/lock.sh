#!/usr/bin/env bash
# Writes the lock files anew: `bench/peers/lock.sh`. Needs Python 3.13 (PYTHON=...), the image's, and npm.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3.13}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet pip==26.3 pip-tools==7.6.2
# What the image has too has the image's version.
sed -n 's/^\([A-Za-z0-9._-]*==[^ ]*\).*/\1/p' "$here/../../runtimes/python/requirements.txt" >"$work/constraints.txt"
(cd "$here/locks" && CUSTOM_COMPILE_COMMAND="bench/peers/lock.sh" "$work/venv/bin/pip-compile" --quiet --generate-hashes \
    --allow-unsafe --strip-extras --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --no-annotate --upgrade \
    --constraint "$work/constraints.txt" --output-file jupyter.txt jupyter.in)
cp "$here/locks/sandbox-runtime/package.json" "$work/"
(cd "$work" && npm install --package-lock-only --ignore-scripts --no-audit --no-fund --omit-lockfile-registry-resolved)
cp "$work/package-lock.json" "$here/locks/sandbox-runtime/"
