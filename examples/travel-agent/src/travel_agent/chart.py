"""Charting: what the model is asked for, how its code is checked, and what surrounds it when it runs."""

from __future__ import annotations

import ast
import json
import re
import struct
from collections.abc import Sequence

from .weather import Weather

# Characters of code, bytes of a picture, and pixels of one side.
MAX_CODE = 20_000
MAX_PICTURE = 4 << 20
MAX_SIDE = 4_000

ALLOWED = ("matplotlib", "numpy", "math", "datetime", "statistics")
FORBIDDEN = frozenset({"__import__", "breakpoint", "compile", "eval", "exec", "input", "open"})

PROMPT = f"""You write Python code that draws one chart with matplotlib, and nothing else.

`plt` is matplotlib.pyplot. `places` is a list with one dictionary for each place:
  {{"place": name, "measured": bool, "days": [{{"date": "YYYY-MM-DD", "high": C, "low": C, "rain": mm}}]}}
`measured` says that the days are of an earlier year. A number may be None.

Rules: import nothing but {", ".join(ALLOWED)}. Use no files, no network, no input. Do not call plt.show or
plt.savefig: the figure is saved for you. Answer with one Python code block and no words around it."""

BEFORE = """import json
import matplotlib
matplotlib.use("Agg")
import matplotlib.pyplot as plt
plt.close("all")
plt.figure(figsize=(10, 5))
places = json.loads({data})
"""

AFTER = """
plt.savefig({target}, format="png", dpi=100)
plt.close("all")
"""


class BadPicture(ValueError):
    """What came out is no picture that is shown."""


def question(about: str, found: Sequence[Weather]) -> str:
    """What the model is told beside the rules: what to show, of which places. Not the numbers, nor the conversation."""
    places = ", ".join(f"{one.place} ({len(one.days)} days)" for one in found)
    return f"Show: {about}\nPlaces: {places}"


def code_in(answer: str) -> str:
    """The code of the model's answer: its first code block, or all of it."""
    block = re.search(r"```[a-zA-Z]*\n(.*?)```", answer, re.S)
    return block[1] if block else answer


def objections(code: str) -> list[str]:
    """Why the code is not run.

    It helps a model that misunderstood its task, soon and in words. It keeps nobody out who wants to do harm: Python has
    too many ways to reach the same thing, and `hostile.py` takes one of them.
    """
    if len(code) > MAX_CODE:
        return [f"it has more than {MAX_CODE} characters"]
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return [f"it is no Python: {error}"]
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [f"it imports {one.name}" for one in node.names if one.name.partition(".")[0] not in ALLOWED]
        elif isinstance(node, ast.ImportFrom):
            if node.level or (node.module or "").partition(".")[0] not in ALLOWED:
                found.append(f"it imports {'.' * node.level}{node.module or ''}")
        elif isinstance(node, ast.Name) and node.id in FORBIDDEN:
            found.append(f"it uses {node.id}")
    return found


def wrapped(code: str, found: Sequence[Weather], target: str) -> str:
    """The code with its data before it, and with what saves the figure as `target` after it."""
    data = repr(json.dumps([one.as_json() for one in found]))
    return BEFORE.format(data=data) + code + AFTER.format(target=repr(target))


def checked(picture: bytes) -> bytes:
    """The picture, if it is a PNG of a size that is shown.

    It is not decoded here. The bytes come from code that nobody has read, and decoding is for a browser, which has its own
    sandbox for it.
    """
    if len(picture) > MAX_PICTURE:
        raise BadPicture(f"the chart has {len(picture)} bytes, at most {MAX_PICTURE} are taken")
    if picture[:8] != b"\x89PNG\r\n\x1a\n" or picture[12:16] != b"IHDR" or len(picture) < 33:
        raise BadPicture("the chart is no PNG")
    width, height = struct.unpack(">II", picture[16:24])
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
        raise BadPicture(f"the chart is {width} x {height} pixels, at most {MAX_SIDE} x {MAX_SIDE} are taken")
    return picture
