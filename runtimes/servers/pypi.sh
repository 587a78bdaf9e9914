#!/bin/sh
# Installs one package from PyPI, of the version that was said, as the server $SERVER: wheels only, so that nothing of
# them runs, in an environment of their own.
set -eu
here=/opt/servers/$SERVER
mkdir -p "$here"
cd "$here"
python3 -m venv --without-pip venv
# A pattern cannot reach into the archive: its name first.
set -- /usr/share/python-wheels/pip-*.whl
venv/bin/python3 "$1/pip" install --only-binary :all: --no-compile --no-input --progress-bar off \
    --root-user-action ignore --cache-dir "$CACHE/pip" -- "$PACKAGE"
venv/bin/python3 -m compileall -q -j 0 --invalidation-mode unchecked-hash venv/lib >/dev/null || true
ln -s venv/bin bin
venv/bin/python3 - <<'PYTHON'
import os, re, sys
from importlib.metadata import distribution

name = re.match(r"[A-Za-z0-9._-]+", os.environ["PACKAGE"])[0]
found = distribution(name).entry_points.select(group="console_scripts")
programs = [one.name for one in found]
wanted = os.environ["COMMAND"] or (programs[0] if len(programs) == 1 else name)
if wanted not in programs:
    sys.exit(f"the package {name} has no program {wanted}; command says which it is, of: {', '.join(programs)}")
os.symlink(f"bin/{wanted}", "run")
PYTHON
