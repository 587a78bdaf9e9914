#!/bin/sh
# Runs in the finished tree, as a user that owns nothing there: what sessions count on must be found and readable.
set -eu
export HOME="$SCRATCH" MPLCONFIGDIR="$SCRATCH/matplotlib" IPYTHONDIR="$SCRATCH/ipython"
mkdir -p "$MPLCONFIGDIR" "$IPYTHONDIR"
ln -s /usr/local/share/sandpool/matplotlib/fontlist-*.json "$MPLCONFIGDIR/"
cd "$SCRATCH"
python3 -W ignore - <<'PYTHON'
import importlib

for name in """IPython bs4 docx httpx lxml.etree matplotlib.pyplot networkx numpy openpyxl pandas PIL.Image pip
    pkg_resources pptx pyarrow.parquet reportlab.pdfgen.canvas requests scipy.stats seaborn setuptools
    sklearn.linear_model sqlite3 ssl statsmodels.api sympy tabulate xlsxwriter yaml zoneinfo""".split():
    importlib.import_module(name)

import matplotlib, numpy, os, pandas
matplotlib.use("Agg")
import matplotlib.pyplot as plt
import seaborn

frame = pandas.DataFrame({"x": numpy.arange(10.0), "y": numpy.arange(10.0) ** 2})
seaborn.lineplot(data=frame, x="x", y="y")
plt.savefig("figure.png")
assert os.path.getsize("figure.png") > 1000
frame.to_excel("frame.xlsx")
assert pandas.read_excel("frame.xlsx").shape[0] == 10
frame.to_parquet("frame.parquet")
assert pandas.read_parquet("frame.parquet").equals(frame)
from statsmodels.api import OLS
OLS(frame.y, frame.x).fit()
from IPython.core.interactiveshell import InteractiveShell
assert InteractiveShell.instance().run_cell("1 + 1", store_history=False).result == 2
PYTHON
for program in bash curl git jq pip pdftotext; do
    command -v "$program" >/dev/null || { echo "missing: $program"; exit 1; }
done
