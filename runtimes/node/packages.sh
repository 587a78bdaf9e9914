#!/bin/sh
# Installs what package-lock.json pins, checked against its integrity values; no package's script runs.
set -eu
echo "sandpool:total $(grep -c '"integrity"' package-lock.json)"
mkdir "$SCRATCH/packages"
cp package.json package-lock.json "$SCRATCH/packages/"
cd "$SCRATCH/packages"
# Complete downloads stay in the cache, so a build that was cut short goes on from there.
npm ci --ignore-scripts --no-audit --no-fund --no-bin-links --no-update-notifier --no-progress --loglevel http \
    --prefer-offline --cache "$CACHE/npm"
cd node_modules
for package in *; do
    mv "$package" "/usr/local/lib/node_modules/$package"
done
