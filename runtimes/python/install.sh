#!/bin/sh
# Installs the locked wheels for the system's own python3. The wheel of pip that Debian ships for `venv` does it,
# so that the only pip left in the image is the locked one.
set -eu
# A pattern cannot reach into the archive: its name first.
set -- /usr/share/python-wheels/pip-*.whl
echo "sandpool:total $(grep -c '^[A-Za-z0-9].*==' requirements.txt)"
rm -f /usr/lib/python3*/EXTERNALLY-MANAGED
# Complete downloads stay in the cache, so a build that was cut short goes on from there.
python3 "$1/pip" install --no-deps --require-hashes \
    --only-binary :all: --no-compile --no-input --progress-bar off --no-warn-script-location \
    --root-user-action ignore --cache-dir "$CACHE/pip" -r requirements.txt
python3 -m pip check
