#!/bin/sh
# Byte code made here is never made in a session. The kind that is not checked against its source needs no time
# stamps, so the same packages give the same bytes.
set -eu
packages=$(python3 -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
# Some packages ship templates and test data that are no Python; those that do not compile are left as they are.
python3 -m compileall -q -j 0 --invalidation-mode unchecked-hash "$packages" >"$SCRATCH/compile.log" 2>&1 || true
# Matplotlib's list of fonts takes a second to make; sessions link to this one.
MPLCONFIGDIR=/usr/local/share/sandpool/matplotlib python3 -c 'import matplotlib.font_manager'
ls /usr/local/share/sandpool/matplotlib/fontlist-*.json
