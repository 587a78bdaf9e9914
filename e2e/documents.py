"""The examples of the documents: every fenced block of docs/ and of README.md, where it stands, and what stands before it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = ["README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))]

# Said before a block that nobody can run or check.
NOT_RUN = re.compile(r"<!-- not run: (.+) -->")


@dataclass(frozen=True)
class Example:
    document: str
    # Of its first fence, from 1.
    line: int
    # All that stands behind the fence, as `python new`.
    language: str
    code: str
    # The title of its section.
    heading: str = ""
    # Why it is not run, if the document says so.
    reason: str | None = None
    # The block before it, when nothing stands between: what the one prints, the other shows.
    follows: Example | None = None

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"


class Unreadable(ValueError):
    """A document whose blocks cannot be told from its text."""


def examples_of(document: str, text: str | None = None) -> list[Example]:
    """The blocks of a document, in their order; `text` instead of what the file has."""
    lines = ((ROOT / document).read_text() if text is None else text).splitlines()
    found, fence, heading, reason, before = [], None, "", None, None
    for number, line in enumerate(lines, 1):
        if fence is not None:
            begun, indent, mark, language, code = fence
            if re.fullmatch(rf" *{mark[0]}{{{len(mark)},}} *", line):
                text = "".join(f"{line.removeprefix(indent)}\n" for line in code)
                before = Example(document, begun, language, text, heading, reason, before)
                found.append(before)
                fence, reason = None, None
            else:
                code.append(line)
        elif opened := re.fullmatch(r"( *)(`{3,}|~{3,}) *([^`]*)", line):
            fence = (number, opened[1], opened[2], opened[3].strip(), [])
        elif line.strip():
            if reason is not None:
                raise Unreadable(f"{document}:{number - 1}: what is not run stands right below the note")
            said = NOT_RUN.fullmatch(line.strip())
            if "<!-- not run" in line and not said:
                raise Unreadable(f"{document}:{number}: a note is `<!-- not run: WHY -->`, on a line of its own")
            reason, before = said and said[1], None
            if title := re.match(r"#+ +(.*)", line):
                heading = title[1]
    if fence is not None:
        raise Unreadable(f"{document}:{fence[0]}: the block does not end")
    if reason is not None:
        raise Unreadable(f"{document}:{len(lines)}: what is not run stands right below the note")
    return found


def examples(document: str, language: str | None = None) -> list[Example]:
    """Those of a document that are to be run or checked; of one language, if it is given."""
    return [one for one in examples_of(document) if one.reason is None and language in (None, one.language)]


def parameters(examples: list[Example]) -> list:
    """One test for each, named after the place where it stands."""
    return [pytest.param(example, id=str(example)) for example in examples]


def for_server(code: str, endpoint: str, token: str) -> str:
    """An example as it is for a server at another address than the documents', and with a token for the one that they leave out."""
    return code.replace("http://127.0.0.1:7300", endpoint).replace("<token>", token)
